"""Machine: the face of it all to whoever embeds it, the command line included.

    from dfvm import PIPE, Machine

    with Machine(mem="64M") as m:
        p = m.spawn(["/usr/bin/busybox", "cat"], stdin=b"hello\\n", stdout=PIPE)
        m.run()
        assert p.exit_status == 0 and p.stdout == b"hello\\n"
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from math import inf
from operator import index
from typing import TYPE_CHECKING, Any, Final

from dfvm.kern.host_file import InputFile, OutputFile, host_stdio, reserve_stdio
from dfvm.kern.kern_descrip import NR_OPEN
from dfvm.kern.kern_errno import EACCES, EBADF, ENOENT, ENOMEM, ENOTDIR, err
from dfvm.kern.kern_exec import ImageParams, exec_args_given, exec_check, kern_execve
from dfvm.kern.kern_fork import alloc_pgid, alloc_pid, newproc, start_lwp
from dfvm.kern.kern_sig import NSIG, SIG_IGN, SIGPIPE, SIGSYS, SIGXFSZ, SigActs, ksignal
from dfvm.kern.kernel import Kernel
from dfvm.kern.proc import (
    P_CONTROLT,
    RLIM_NLIMITS,
    RLIMIT_CPU,
    RLIMIT_NOFILE,
    SZOMB,
    Pgrp,
    Proc,
    joinpgrp,
    leavepgrp,
)
from dfvm.kern.tty import HostSignals
from dfvm.kern.vfs.namei import NAMEI_DIRECTORY, NAMEI_FOLLOW, namei
from dfvm.lwkt.lwkt_thread import Deadlock
from dfvm.lwkt.panic import Panic, panic
from dfvm.vm.vm_page import vm_page_rollup
from dfvm.vm.vm_proc import RLIM_INFINITY
from dfvm.vm.vmspace import vmspace_alloc, vmspace_free

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike
    from types import TracebackType
    from typing import IO

    from dfvm.kern.kern_descrip import File
    from dfvm.kern.proc import Lwp
    from dfvm.kern.tty import Tty
    from dfvm.vm.vm_meter import VmMeter, VmStats

__all__ = ["INHERIT", "PIPE", "STDOUT", "Deadlock", "Machine", "Panic", "Process"]

PIPE: Final = -1  # collect the output
INHERIT: Final = None  # the host's own descriptor
STDOUT: Final = -2  # standard error goes where standard output goes

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LARGE_PAGE: Final = 2 << 20
MEM_MIN: Final = 8 << 20
NCPU_MAX: Final = 1024
_DIRECTORY: Final = NAMEI_FOLLOW | NAMEI_DIRECTORY


def parse_size(text: str | int) -> int:
    """Bytes from a number, or a number with K, M, G or T behind it.

    :raises ValueError: when it is neither.
    :raises TypeError: likewise.
    """
    if isinstance(text, int):
        return text
    if not isinstance(text, str):
        raise TypeError(f"a size is a number or a string, not {text!r}")
    number, unit = text.strip().upper(), ""
    if number and not number[-1].isdecimal():
        number, unit = number[:-1], number[-1]
    if unit not in _UNITS or not (number.isascii() and number.isdecimal()) or len(number) > 18:
        raise ValueError(f"size {text!r} is not a number with K, M, G or T behind it")
    return int(number) * _UNITS[unit]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A ^C meanwhile counts at the end: Python would raise KeyboardInterrupt in the middle of the
    kernel, with its locks held, or inside a callback of the engine, where it is lost. A second one
    raises on the spot."""
    import signal

    caught = False

    def handler(signo: int, frame: object) -> None:
        nonlocal caught
        if caught:
            raise KeyboardInterrupt
        caught = True

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if ours:
            signal.signal(signal.SIGINT, handler)
    except ValueError:  # this is not Python's main thread, and SIGINT does not come here
        ours = False
    if not ours:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if caught:
        raise KeyboardInterrupt


@contextmanager
def _about(path: str | bytes | PathLike[str]) -> Iterator[None]:
    """An error meanwhile is about this file."""
    try:
        yield
    except OSError as e:
        e.filename = os.fsdecode(path)
        raise


def _inherited_signals() -> SigActs:
    """What signals do to a program that this process starts: what is ignored here stays so (nohup),
    but for the two that Python ignores for itself."""
    import signal

    acts = SigActs()
    for sig in range(1, SIGSYS + 1):
        if signal.getsignal(sig) == signal.SIG_IGN and sig not in (SIGPIPE, SIGXFSZ):
            acts.set(sig, (SIG_IGN, 0, 0, 0))
    return acts


def _inherited_limits() -> list[tuple[int, int]]:
    """This process's limits, which programs that it starts inherit. They count what the machine
    has: files, processes, memory and time of its programs. Descriptors there are only so many."""
    import resource

    limits = []
    for which in range(RLIM_NLIMITS):
        soft, hard = (limit & RLIM_INFINITY for limit in resource.getrlimit(which))
        if which == RLIMIT_NOFILE:
            soft, hard = min(soft, NR_OPEN), min(hard, NR_OPEN)
        limits.append((soft, hard))
    return limits


def _umask() -> int:
    """This process's own."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _environment(env: Mapping[str, str]) -> list[bytes]:
    """The strings of an environment.

    :raises ValueError: for a name with a "=", or a zero byte.
    """
    strings = []
    for name, value in env.items():
        pair = os.fsencode(name), os.fsencode(value)
        if b"=" in pair[0]:
            raise ValueError(f"a = in {name!r}, which is to be the name of a variable")
        strings.append(_string(b"=".join(pair)))
    return strings


def _string(text: str | bytes | PathLike[str]) -> bytes:
    """A string as programs get them.

    :raises ValueError: for one with a zero byte, where it would end.
    """
    data = os.fsencode(text)
    if b"\0" in data:
        raise ValueError(f"a zero byte in {text!r}")
    return data


def _stream(name: str, what: bytes | int | IO[Any] | None) -> bytes | int | None:
    """What was given for a standard stream: data, a descriptor, or PIPE, STDOUT or INHERIT.

    :raises ValueError: when it can't be that stream.
    """
    if isinstance(what, (bytearray, memoryview)):
        what = bytes(what)
    if isinstance(what, bytes) and name == "stdin":
        return what
    if what is not None and not isinstance(what, int):
        if isinstance(what, (bytes, str)) or not hasattr(what, "fileno"):
            raise TypeError(f"{name}: {what!r} is no descriptor or file")
        return what.fileno()
    special = {"stdin": (), "stdout": (PIPE,), "stderr": (PIPE, STDOUT)}[name]
    if what is not None and what < 0 and what not in special:
        raise ValueError(f"{name} can't be {what}")
    return what


def _psignal(proc: Proc, sig: int) -> None:
    if proc.p_stat != SZOMB:
        ksignal(proc, sig)


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
        """Its process id in the machine."""
        return self.proc.p_pid

    @property
    def exit_status(self) -> int | None:
        """Its exit code, or 128 + n when signal n killed it; None while it lives, and if it did
        when the machine was closed."""
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
        """The same for standard error."""
        return None if self._err is None else bytes(self._err)

    def __repr__(self) -> str:
        status = self.exit_status
        state = "" if status is None else f", exit status {status}"
        return f"<Process {self.pid} {self.proc.p_comm}{state}>"

    def kill(self, sig: int) -> None:
        """Send it a signal. One that has ended does not mind. Signal handlers and other threads of
        the host's may do so too, while the machine runs.

        :raises ValueError: when there is no signal of that number.
        """
        sig = index(sig)
        if not 0 <= sig <= NSIG:
            raise ValueError(f"no signal {sig}")
        if sig:
            self.proc.kernel.sched.post(_psignal, self.proc, sig)


class Machine:
    """A computer with DragonFly's virtual memory, running Linux programs. It is used by the thread
    that made it, one call at a time: any other one is a RuntimeError.

    :param mem: RAM, in bytes or as "64M"; at least 8 MiB.
    :param root: host directory that is the root of the file system; None is the host's own. It is
        visible read-only, and what programs change is kept in memory.
    :param rw: directories in which changes are made on the host itself.
    :param env: environment for programs that are given none; None is the host's.
    :param check: verify the machine's state along the way and at the end.
    :param ncpu: CPUs that programs are told of.
    :raises ValueError: for a size or a number of CPUs that makes no sense, or an `rw` that is not
        below the root.
    :raises OSError: when the host has not that much memory, or a directory does not exist.
    """

    kernel: Kernel
    root: str  # the host directory that programs see as /
    _env: Mapping[str, str]
    _busy: bool  # a call of run() and the like is under way
    _host_root: bool  # the guest's file names are the host's
    _programs: list[Process]

    def __init__(
        self,
        mem: str | int = "64M",
        root: str | PathLike[str] | None = None,
        rw: Sequence[str | PathLike[str]] = (),
        env: Mapping[str, str] | None = None,
        check: bool = False,
        ncpu: int = 1,
    ) -> None:
        size = parse_size(mem)
        if size < MEM_MIN:
            raise ValueError(f"a machine needs at least {MEM_MIN >> 20}M of memory, not {mem}")
        if not 1 <= ncpu <= NCPU_MAX:
            raise ValueError(f"a machine has 1 to {NCPU_MAX} CPUs, not {ncpu}")
        if isinstance(rw, (str, bytes)):
            raise TypeError(f"rw is a list of directories, not {rw!r}")
        size = (size + _LARGE_PAGE - 1) & ~(_LARGE_PAGE - 1)
        if size > sys.maxsize:
            raise err(ENOMEM)
        reserve_stdio()
        self._busy = False
        self._env = os.environ if env is None else env
        self._host_root = root is None
        self.root = "/" if root is None else os.fsdecode(root)
        self._programs = []
        shared = [os.path.abspath(os.fsencode(name)) for name in rw]
        try:
            with _uninterrupted():
                self.kernel = Kernel(size, os.fsencode(self.root), shared, ncpu, check)
        except KeyboardInterrupt:
            self.close()
            raise

    def __getattr__(self, name: str) -> Any:
        # Only what is not there is asked for here.
        if name == "kernel":
            raise RuntimeError("the machine is closed")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @contextmanager
    def _entered(self) -> Iterator[Kernel]:
        """The kernel, for one call from outside at a time, and where its thread0 is.

        :raises RuntimeError: a call is under way, and this is a signal handler's or another
            thread's; or the machine was made by another thread.
        """
        kernel = self.kernel
        if self._busy:
            raise RuntimeError("the machine is running")
        if not kernel.sched.at_home():
            raise RuntimeError("a machine can be used only by the thread that made it")
        self._busy = True
        try:
            yield kernel
        finally:
            self._busy = False

    # ---- running ---------------------------------------------------------------------------------

    def spawn(
        self,
        argv: Sequence[str | bytes | PathLike[str]],
        stdin: bytes | int | IO[Any] | None = INHERIT,
        stdout: int | IO[Any] | None = INHERIT,
        stderr: int | IO[Any] | None = INHERIT,
        env: Mapping[str, str] | None = None,
        cwd: str | PathLike[str] | None = None,
    ) -> Process:
        """Start a program, as a job of its own. It runs when `run` is called.

        :param argv: the program and its arguments. A program without a "/" is looked for in PATH.
        :param stdin: what it reads: bytes, a file or descriptor of the host, or None for the
            host's own.
        :param stdout: PIPE to collect it, a file or descriptor of the host, or None for the host's
            own.
        :param stderr: the same, or STDOUT.
        :param env: its environment; None is the machine's.
        :param cwd: where it starts; None is where the host's process is.
        :raises OSError: when it can't be run; the errno is that of execve.
        :raises ValueError: for arguments that make no sense.
        """
        if isinstance(argv, (str, bytes)):
            raise TypeError(f"argv is a list of words, not {argv!r}")
        args = [_string(arg) for arg in argv]
        if not args:
            raise ValueError("no program to run")
        env = self._env if env is None else env
        envp = _environment(env)
        given = _stream("stdin", stdin), _stream("stdout", stdout), _stream("stderr", stderr)
        with self._entered(), _uninterrupted():
            return self._spawn(args, envp, env.get("PATH"), given, cwd)

    def _spawn(
        self,
        args: list[bytes],
        envp: list[bytes],
        path: str | None,
        given: tuple[bytes | int | None, ...],
        cwd: str | PathLike[str] | None,
    ) -> Process:
        kernel = self.kernel
        stdin, stdout, stderr = given
        p, lp = self._new_program(cwd)
        out: bytearray | None = bytearray() if stdout == PIPE else None
        err = out if stderr == STDOUT else bytearray() if stderr == PIPE else None
        td = kernel.sched.thread0
        td.td_proc, lp.lwp_thread = p, td
        try:
            self._open_stdio(p, (stdin, stdout, stdout if stderr == STDOUT else stderr), (out, err))
            with _about(args[0]):
                name, image = self._find(p, args[0], path)
                kern_execve(lp, image, name, lambda: exec_args_given(p, args, envp, name))
        except BaseException:
            self._discard(p, lp)
            raise
        finally:
            td.td_proc = None
        start_lwp(p, lp)
        if p.p_limit[RLIMIT_CPU][0] != RLIM_INFINITY:
            from dfvm.kern.kern_time import timers_fork

            timers_fork(p)
        process = Process(p, stdin is INHERIT, out, err)
        self._programs.append(process)
        return process

    def _new_program(self, cwd: str | PathLike[str] | None) -> tuple[Proc, Lwp]:
        """A child of the launcher with everything but a program."""
        kernel = self.kernel
        parent = kernel.launcher
        p, lp = newproc(kernel, alloc_pid(kernel), parent)
        p.p_vmspace = vmspace_alloc(kernel.vm)
        p.p_sigacts = _inherited_signals()
        p.p_ucred = parent.p_ucred
        p.p_limit = _inherited_limits()
        p.p_sysent = parent.p_sysent
        p.p_fd = parent.p_fd.fdcopy()
        p.p_fs = parent.p_fs.fscopy()
        p.p_fs.fs_cmask = _umask()
        p.p_nice = os.getpriority(os.PRIO_PROCESS, 0)
        # A job of its own, as if a shell with job control had started it; but not its leader, as
        # a script's programs are not: setsid(1) would fork, end, and the machine with it.
        session = parent.p_session
        p.p_pgrp = pgrp = Pgrp(alloc_pgid(kernel), session)
        session.s_pgrps[pgrp.pg_id] = pgrp
        kernel.pgrps[pgrp.pg_id] = pgrp
        joinpgrp(p, pgrp)
        p.p_flags = parent.p_flags & P_CONTROLT
        try:
            self._chdir(p, cwd)
        except BaseException:
            self._discard(p, lp)
            raise
        return p, lp

    def _chdir(self, p: Proc, cwd: str | PathLike[str] | None) -> None:
        root = self.kernel.vfs.rootvnode
        if cwd is not None:
            with _about(cwd):
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
        given: tuple[bytes | int | None, ...],
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
                fp = host_stdio(table, fd if what is None else what)
                if fp is None and what is not None:
                    raise err(EBADF)
                files.append(fp)
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
        :raises KeyboardInterrupt: likewise.
        :raises Deadlock: nothing can run, and nothing can change that.
        :raises Panic: the machine's state is broken; as it is once any other exception (of a signal
            handler, for example) has come out of here.
        :raises ValueError: `until` is another machine's.
        """
        if until is not None and until.proc.kernel is not self.kernel:
            raise ValueError(f"{until!r} is another machine's")
        with self._entered() as kernel, kernel.vcpu.catching():
            self._run(kernel, None if timeout == inf else timeout, until)

    def run_last(self, process: Process) -> None:
        """run(until=process) for a host process that stands for this program and then ends, as
        `dfvm run` does: signals that come when the program has ended already are ignored."""
        with self._entered() as kernel, kernel.vcpu.catching():
            self._run(kernel, None, process, last=True)

    def _run(
        self, kernel: Kernel, timeout: float | None, until: Process | None, last: bool = False
    ) -> None:
        sched = kernel.sched
        if sched.broken:
            panic(sched.broken)
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
        signals = HostSignals(kernel.files, self._alive, last)
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
            kernel.check_if_resting()

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
        with self._entered() as kernel:
            kernel.check()

    # ---- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything that still runs, write what is to be written to the host, and give the
        memory back. The machine can't be used afterwards; its programs' results can. Done at the
        end of `with`; a machine that is forgotten warns, and closes itself if it can."""
        if "kernel" in self.__dict__:
            with self._entered() as kernel, _uninterrupted():
                del self.kernel
                kernel.shutdown()

    def __del__(self) -> None:
        kernel: Kernel | None = self.__dict__.get("kernel")
        if kernel is None or sys.is_finalizing():
            return
        import warnings

        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        if kernel.sched.at_home():
            self.close()

    def __enter__(self) -> Machine:
        assert self.kernel is not None, "a closed one says so here"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
