"""Machine: the face of it all to whoever embeds it, the command line included.

    from dfvm import PIPE, Machine

    with Machine(mem="64M") as m:
        p = m.spawn(["/usr/bin/busybox", "cat"], stdin=b"hello\\n", stdout=PIPE)
        m.run()
        assert p.exit_status == 0 and p.stdout == b"hello\\n"

`machine_args.py` says what arguments must be like.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from dfvm.kern.host_file import InputFile, OutputFile, host_stdio, reserve_stdio
from dfvm.kern.kern_descrip import NR_OPEN
from dfvm.kern.kern_errno import EACCES, EBADF, ENOENT, ENOTDIR, err
from dfvm.kern.kern_exec import ImageParams, exec_args_given, exec_check, kern_execve
from dfvm.kern.kern_fork import alloc_pgid, alloc_pid, newproc, start_lwp
from dfvm.kern.kern_sig import SIG_IGN, SIGPIPE, SIGSYS, SIGXFSZ, SigActs, ksignal
from dfvm.kern.kernel import Kernel
from dfvm.kern.machine_args import (
    INHERIT,
    PIPE,
    STDOUT,
    argv_arg,
    bool_arg,
    env_arg,
    mem_arg,
    ncpu_arg,
    path_arg,
    paths_arg,
    sig_arg,
    stream_arg,
    timeout_arg,
)  # fmt: skip
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
    from typing import IO, NoReturn, Self

    from dfvm.kern.kern_descrip import File
    from dfvm.kern.proc import Lwp
    from dfvm.kern.tty import Tty
    from dfvm.vm.vm_meter import VmMeter, VmStats

__all__ = ["INHERIT", "PIPE", "STDOUT", "Deadlock", "Machine", "Panic", "Process"]

_LARGE_PAGE: Final = 2 << 20
_DIRECTORY: Final = NAMEI_FOLLOW | NAMEI_DIRECTORY


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
def _about(path: bytes) -> Iterator[None]:
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
        sig = sig_arg(sig)
        if sig:
            self.proc.kernel.sched.post(_psignal, self.proc, sig)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Process can't be copied or pickled: it is in its machine's kernel")


class Machine:
    """A computer with DragonFly's virtual memory, running Linux programs. It is used by the thread
    that made it, one call at a time: any other one is a RuntimeError.

    :param mem: RAM, in bytes or as "64M", "64MiB" or "1.5G" (powers of 1024); at least 8 MiB, and
        less than 1 TiB.
    :param root: host directory that is the root of the file system; None is the host's own. It is
        visible read-only, and what programs change is kept in memory.
    :param rw: directories in which changes are made on the host itself.
    :param env: environment for programs that are given none; None is the host's.
    :param check: verify the machine's state along the way and at the end.
    :param ncpu: CPUs that programs are told of.
    :raises TypeError: for an argument of another kind.
    :raises ValueError: for one that makes no sense, or an `rw` that is not below the root, or in
        /dev, /proc or /sys, which are the machine's own.
    :raises OSError: when the host has not that much memory, or a directory does not exist.
    """

    kernel: Kernel
    root: str  # the host directory that programs see as /
    _env: Mapping[str, str]
    _busy: bool  # a call of run() and the like is under way
    _host_root: bool  # the guest's file names are the host's
    _programs: list[Process]
    _size: int  # of RAM, in bytes

    def __init__(
        self,
        mem: str | int = "64M",
        root: str | PathLike[str] | None = None,
        rw: Sequence[str | PathLike[str]] = (),
        env: Mapping[str, str] | None = None,
        check: bool = False,
        ncpu: int = 1,
    ) -> None:
        size = (mem_arg(mem) + _LARGE_PAGE - 1) & ~(_LARGE_PAGE - 1)
        cpus, checking = ncpu_arg(ncpu), bool_arg("check", check)
        place = b"/" if root is None else path_arg("root", root)
        shared = []
        for name in paths_arg("rw", rw):
            with _about(name):  # it may be below a directory that is gone
                shared.append(os.path.abspath(name))
        if env is not None:
            env_arg(env)
        reserve_stdio()
        self._busy = False
        self._env = os.environ if env is None else dict(env)
        self._host_root = root is None
        self.root = os.fsdecode(place)
        self._programs = []
        self._size = size
        try:
            with _uninterrupted():
                self.kernel = Kernel(size, place, shared, cpus, checking)
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
        :raises TypeError: for an argument of another kind.
        :raises ValueError: for one that makes no sense.
        """
        args = argv_arg(argv)
        env = self._env if env is None else env
        envp = env_arg(env)
        given = (
            stream_arg("stdin", stdin), stream_arg("stdout", stdout), stream_arg("stderr", stderr)
        )  # fmt: skip
        place = None if cwd is None else path_arg("cwd", cwd)
        with self._entered(), _uninterrupted():
            return self._spawn(args, envp, env.get("PATH"), given, place)

    def _spawn(
        self,
        args: list[bytes],
        envp: list[bytes],
        path: str | None,
        given: tuple[bytes | int | None, ...],
        cwd: bytes | None,
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

    def _new_program(self, cwd: bytes | None) -> tuple[Proc, Lwp]:
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

    def _chdir(self, p: Proc, cwd: bytes | None) -> None:
        root = self.kernel.vfs.rootvnode
        if cwd is not None:
            with _about(cwd):
                p.p_fs.set_cdir(namei(root, root, cwd, p.p_ucred, _DIRECTORY))
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
                    with _about((b"stdin", b"stdout", b"stderr")[fd]):
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

        :param timeout: seconds after which to give up; None is never.
        :raises TimeoutError: they are over; everything stays as it is and can be run on.
        :raises KeyboardInterrupt: likewise.
        :raises Deadlock: nothing can run, and nothing can change that.
        :raises Panic: the machine's state is broken; as it is once any other exception (of a signal
            handler, for example) has come out of here.
        :raises TypeError: for an argument of another kind.
        :raises ValueError: `until` is another machine's, or `timeout` is no number.
        """
        timeout_ns = timeout_arg(timeout)
        if until is not None:
            if not isinstance(until, Process):
                raise TypeError(f"until: a Process that spawn() returned, or None, not {until!r}")
            if until.proc.kernel is not self.kernel:
                raise ValueError(f"until: {until!r} is another machine's")
        with self._entered() as kernel, kernel.vcpu.catching():
            self._run(kernel, timeout_ns, until)

    def run_last(self, process: Process) -> None:
        """run(until=process) for a host process that stands for this program and then ends, as
        `dfvm run` does: signals that come when the program has ended already are ignored."""
        with self._entered() as kernel, kernel.vcpu.catching():
            self._run(kernel, None, process, last=True)

    def _run(
        self, kernel: Kernel, timeout_ns: int | None, until: Process | None, last: bool = False
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
        if timeout_ns is not None:
            callout = sched.callout(timeout_ns, expire)
        kernel.vcpu.start_clock()
        signals = HostSignals(kernel.files, self._alive, last)
        if any(q.hears_host for q in self._programs if q.exit_status is None):
            signals.install()
            sched.signals_can_come = True
        try:
            if timeout_ns is None and proc is None:
                sched.run()
            else:
                sched.run(lambda: over or (proc is not None and proc.p_stat == SZOMB))
        finally:
            signals.remove()
            sched.signals_can_come = False
            if callout is not None:
                callout.stop()
        if over:
            assert timeout_ns is not None, "nothing else makes it be over"
            raise TimeoutError(f"the machine still runs after {timeout_ns / 1e9:g} s")
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

    def __repr__(self) -> str:
        size = self.__dict__.get("_size", 0)
        if "kernel" not in self.__dict__:
            return f"<Machine {size >> 20}M, closed>"
        state = "running, " if self._busy else ""
        alive, programs = len(self._alive()), len(self._programs)
        return f"<Machine {size >> 20}M, {state}{alive} of {programs} programs alive>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a Machine can't be copied or pickled: it is memory and threads of this process"
        )

    def __del__(self) -> None:
        kernel: Kernel | None = self.__dict__.get("kernel")
        if kernel is None or sys.is_finalizing():
            return
        import warnings

        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        if kernel.sched.at_home():
            self.close()

    def __enter__(self) -> Self:
        assert self.kernel is not None, "a closed one says so here"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
