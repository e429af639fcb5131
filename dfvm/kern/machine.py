"""Machine: the face of it all to whoever embeds it, the command line included.

from dfvm import PIPE, Machine

with Machine(mem="64M") as m:
    p = m.spawn(["/usr/bin/busybox", "cat"], stdin=b"hello\\n", stdout=PIPE)
    m.run()
    assert p.exit_status == 0 and p.stdout == b"hello\\n"
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from dfvm.kern.host_file import InputFile, OutputFile, host_stdio, reserve_stdio
from dfvm.kern.kern_errno import EACCES, ENOENT, ENOTDIR, err
from dfvm.kern.kern_exec import ImageParams, exec_args_given, exec_check, kern_execve
from dfvm.kern.kern_fork import alloc_pid, newproc, start_lwp
from dfvm.kern.kern_sig import SigActs, ksignal
from dfvm.kern.kernel import Kernel
from dfvm.kern.proc import P_CONTROLT, SZOMB, Pgrp, Proc, joinpgrp, leavepgrp
from dfvm.kern.tty import HostSignals
from dfvm.kern.vfs.namei import NAMEI_DIRECTORY, NAMEI_FOLLOW, namei
from dfvm.vm.vm_page import vm_page_rollup
from dfvm.vm.vmspace import vmspace_alloc, vmspace_free

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from dfvm.kern.kern_descrip import File
    from dfvm.kern.proc import Lwp
    from dfvm.kern.tty import Tty
    from dfvm.vm.vm_meter import VmMeter, VmStats

PIPE: Final = -1  # collect the output
INHERIT: Final = None  # the host's own descriptor
STDOUT: Final = -2  # standard error goes where standard output goes

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LARGE_PAGE: Final = 2 << 20
MEM_MIN: Final = 8 << 20
_DIRECTORY: Final = NAMEI_FOLLOW | NAMEI_DIRECTORY


def parse_size(text: str | int) -> int:
    """Bytes from a number, or a number with K, M, G or T behind it.

    :raises ValueError: when it is neither.
    """
    if isinstance(text, int):
        return text
    number, unit = text.strip().upper(), ""
    if number and not number[-1].isdecimal():
        number, unit = number[:-1], number[-1]
    if unit not in _UNITS or not (number.isascii() and number.isdecimal()) or len(number) > 18:
        raise ValueError(f"size {text!r} is not a number with K, M, G or T behind it")
    return int(number) * _UNITS[unit]


class Process:
    """A program that the machine was asked to run."""

    __slots__ = ("_err", "_out", "hears_host", "proc")

    proc: Proc  # the kernel's idea of it; stays when it is dead
    hears_host: bool  # its standard input is the host's: so are signals
    _out: bytearray | None  # what it wrote to standard output, when that is collected
    _err: bytearray | None

    def __init__(
        self, proc: Proc, hears_host: bool, out: bytearray | None, err: bytearray | None
    ) -> None:
        self.proc = proc
        self.hears_host = hears_host
        self._out = out
        self._err = err

    @property
    def pid(self) -> int:
        return self.proc.p_pid

    @property
    def exit_status(self) -> int | None:
        """Its exit code, or 128 + n when signal n killed it; None while it lives."""
        if self.proc.p_stat != SZOMB:
            return None
        status = self.proc.p_xstat
        return 128 + (status & 0x7F) if status & 0x7F else status >> 8

    @property
    def stdout(self) -> bytes | None:
        """What it and its children wrote there up to now; None unless it is collected."""
        return None if self._out is None else bytes(self._out)

    @property
    def stderr(self) -> bytes | None:
        """Likewise."""
        return None if self._err is None else bytes(self._err)

    def kill(self, sig: int) -> None:
        """Send it a signal."""
        ksignal(self.proc, sig)


class Machine:
    """A computer with DragonFly's virtual memory, running Linux programs.

    :param mem: RAM, in bytes or as "64M"; at least 8 MiB.
    :param root: host directory that is the root of the file system; None is the host's own. It is
        visible read-only, and what programs change is kept in memory.
    :param rw: directories in which changes are made on the host itself.
    :param env: environment for programs that are given none; None is the host's.
    :param check: verify the machine's state along the way and at the end.
    :param ncpu: CPUs that programs are told of.
    :raises ValueError: for a size that makes no sense.
    :raises OSError: when the host has not that much memory, or a directory does not exist.
    """

    kernel: Kernel
    root: str  # the host directory that programs see as /
    _env: Mapping[str, str]
    _host_root: bool  # the guest's file names are the host's
    _programs: list[Process]

    def __init__(
        self,
        mem: str | int = "64M",
        root: str | None = None,
        rw: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        check: bool = False,
        ncpu: int = 1,
    ) -> None:
        size = parse_size(mem)
        if size < MEM_MIN:
            raise ValueError(f"a machine needs at least {MEM_MIN >> 20}M of memory, not {mem}")
        if ncpu < 1:
            raise ValueError(f"a machine needs a CPU, not {ncpu}")
        size = (size + _LARGE_PAGE - 1) & ~(_LARGE_PAGE - 1)
        reserve_stdio()
        self._env = os.environ if env is None else env
        self._host_root = root is None
        self.root = root or "/"
        self._programs = []
        self.kernel = Kernel(
            size,
            os.fsencode(root or "/"),
            [os.path.abspath(os.fsencode(name)) for name in rw],
            ncpu,
            check,
        )

    # ---- running ---------------------------------------------------------------------------------

    def spawn(
        self,
        argv: Sequence[str | bytes],
        stdin: bytes | int | None = INHERIT,
        stdout: int | None = INHERIT,
        stderr: int | None = INHERIT,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Start a program, as a job of its own. It runs when `run` is called.

        :param argv: the program and its arguments. A program without a "/" is looked for in PATH.
        :param stdin: what it reads: bytes, a descriptor of the host, or None for the host's own.
        :param stdout: PIPE to collect it, a descriptor of the host, or None for the host's own.
        :param stderr: the same, or STDOUT.
        :param env: its environment; None is the machine's.
        :param cwd: where it starts; None is where the host's process is.
        :raises OSError: when it can't be run; the errno is that of execve.
        """
        kernel = self.kernel
        args = [os.fsencode(arg) for arg in argv]
        if not args:
            raise ValueError("no program to run")
        pairs = (self._env if env is None else env).items()
        envp = [os.fsencode(f"{name}={value}") for name, value in pairs]
        p, lp = self._new_program(cwd)
        out: bytearray | None = bytearray() if stdout == PIPE else None
        err = out if stderr == STDOUT else bytearray() if stderr == PIPE else None
        td = kernel.sched.thread0
        td.td_proc, lp.lwp_thread = p, td
        try:
            self._open_stdio(p, (stdin, stdout, stdout if stderr == STDOUT else stderr), (out, err))
            name, image = self._find(p, args[0], dict(pairs).get("PATH"))
            kern_execve(lp, image, name, lambda: exec_args_given(p, args, envp, name))
        except BaseException:
            self._discard(p, lp)
            raise
        finally:
            td.td_proc = None
        start_lwp(p, lp)
        process = Process(p, stdin is INHERIT, out, err)
        self._programs.append(process)
        return process

    def _new_program(self, cwd: str | None) -> tuple[Proc, Lwp]:
        """A child of the launcher with everything but a program."""
        kernel = self.kernel
        parent = kernel.launcher
        p, lp = newproc(kernel, alloc_pid(kernel), parent)
        p.p_vmspace = vmspace_alloc(kernel.vm)
        p.p_sigacts = SigActs()
        p.p_ucred = parent.p_ucred
        p.p_limit = parent.p_limit.copy()
        p.p_sysent = parent.p_sysent
        p.p_fd = parent.p_fd.fdcopy()
        p.p_fs = parent.p_fs.fscopy()
        # A job of its own, as if a shell with job control had started it.
        session = parent.p_session
        p.p_pgrp = pgrp = Pgrp(p.p_pid, session)
        session.s_pgrps[p.p_pid] = pgrp
        kernel.pgrps[p.p_pid] = pgrp
        joinpgrp(p, pgrp)
        p.p_flags = parent.p_flags & P_CONTROLT
        try:
            self._chdir(p, cwd)
        except BaseException:
            self._discard(p, lp)
            raise
        return p, lp

    def _chdir(self, p: Proc, cwd: str | None) -> None:
        root = self.kernel.vfs.rootvnode
        if cwd is not None:
            p.p_fs.set_cdir(namei(root, root, os.fsencode(cwd), p.p_ucred, _DIRECTORY))
        elif self._host_root:
            try:
                p.p_fs.set_cdir(namei(root, root, os.getcwdb(), p.p_ucred, _DIRECTORY))
            except OSError:
                pass  # the host's directory is gone, or the guest may not go there: stay at "/"

    def _discard(self, p: Proc, lp: Lwp) -> None:
        """Undo _new_program."""
        kernel = self.kernel
        p.p_fd.fdfree()
        p.p_fs.fsfree()
        vmspace_free(p.p_vmspace)
        kernel.kstack_free(lp.lwp_stack)
        leavepgrp(p)

    def _open_stdio(
        self,
        p: Proc,
        given: tuple[bytes | int | None, int | None, int | None],
        sinks: tuple[bytearray | None, bytearray | None],
    ) -> None:
        """Descriptors 0, 1 and 2. If one is a terminal it becomes the controlling one, with the
        program in the foreground unless another one is there."""
        table = self.kernel.files
        files: list[File | None] = []
        for fd, what in enumerate(given):
            sink = sinks[fd - 1] if fd else None
            if isinstance(what, bytes):
                files.append(InputFile(table, what))
            elif sink is not None:
                files.append(OutputFile(table, sink))
            else:
                files.append(host_stdio(table, fd if what is None else what))
        for fd, fp in enumerate(files):
            if fp is None:
                continue  # closed on the host, so closed here
            p.p_fd.dup2(fp, fd, cloexec=False)
            fp.fdrop()
            tty: Tty | None = getattr(fp, "f_tty", None)
            if tty is not None and tty.t_pgrp is None and tty.t_session in (None, p.p_session):
                tty.set_ctty(p)

    def _find(self, p: Proc, name: bytes, path: str | None) -> tuple[bytes, ImageParams]:
        """Find the program, as execvp does: its file's name, and the file, held."""
        if not name:
            raise err(ENOENT)
        candidates = [name]
        if b"/" not in name:
            places = os.fsencode(path or "/usr/local/bin:/usr/bin:/bin").split(b":")
            candidates = [os.path.join(place or b".", name) for place in places]
        error: OSError | None = None
        for candidate in candidates:
            try:
                vp = namei(p.p_fs.fs_rdir, p.p_fs.fs_cdir, candidate, p.p_ucred, NAMEI_FOLLOW)
                return candidate, exec_check(p, vp)
            except OSError as e:
                if e.errno not in (ENOENT, ENOTDIR, EACCES):
                    raise
                # A file that may not be executed is reported unless another will do.
                if error is None or e.errno == EACCES:
                    error = e
        assert error is not None
        raise error

    def run(self, timeout: float | None = None, until: Process | None = None) -> None:
        """Run until every program has ended, or only `until`.

        While a program is alive that has the host's own standard input, signals that the host
        sends us (SIGINT, SIGTERM, SIGTSTP …) are handed on to it, and it may wait for them for
        ever. Without one nothing can come from outside, and waiting for ever is a Deadlock.

        :param timeout: seconds after which to give up.
        :raises TimeoutError: they are over; everything stays as it is and can be run on.
        :raises Deadlock: nothing can run, and nothing can change that.
        :raises Panic: the machine's state is broken.
        """
        kernel = self.kernel
        sched = kernel.sched
        over = False

        def expire() -> None:
            nonlocal over
            over = True
            sched.wakeup(sched)

        proc = None if until is None else until.proc
        callout = None
        if timeout is not None:
            callout = sched.callout(max(int(timeout * 1e9), 0), expire)
        kernel.vcpu.start_clock()
        signals = HostSignals(kernel.files, self._alive)
        if any(q.hears_host for q in self._programs if q.exit_status is None):
            signals.install()
            sched.signals_can_come = True
        try:
            if timeout is None and proc is None:
                sched.run()
            else:
                sched.run(lambda: over or (proc is not None and proc.p_stat == SZOMB))
        finally:
            signals.remove()
            sched.signals_can_come = False
            if callout is not None:
                callout.stop()
        if over:
            raise TimeoutError(f"the machine still runs after {timeout} s")
        if kernel.checking:
            kernel.check()

    def _alive(self) -> list[Proc]:
        return [q.proc for q in self._programs if q.proc.p_stat != SZOMB]

    # ---- looking at it ---------------------------------------------------------------------------

    @property
    def vmmeter(self) -> VmMeter:
        """The VM's event counters (v_vm_faults, v_cow_faults …)."""
        vm_page_rollup(self.kernel.vm)
        return self.kernel.vm.vmmeter

    @property
    def vmstats(self) -> VmStats:
        """The VM's page counts and thresholds."""
        vm_page_rollup(self.kernel.vm)
        return self.kernel.vm.vmstats

    def check(self) -> None:
        """Verify the whole machine.

        :raises Panic: with what is wrong.
        """
        self.kernel.check()

    # ---- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything that still runs, write what is to be written to the host, and give the
        memory back. The machine can't be used afterwards; its programs' results can."""
        kernel: Kernel | None = self.__dict__.pop("kernel", None)
        if kernel is None:
            return
        kernel.shutdown()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
