"""Terminals: controlling terminals and job control, and the host's terminal as the guest's.

The host's terminal keeps its line discipline: it echoes, edits lines and turns ^C, ^\\ and ^Z into
signals, and the guest's termios calls go straight to it (and are taken back when the machine ends).
What is ours is *whose* terminal it is: sessions, the foreground process group, SIGTTIN and SIGTTOU.

Signals of the host terminal reach the dfvm process, as the host's foreground job. HostSignals hands
them on (also when there is no terminal and somebody sends them):

    SIGINT, SIGQUIT, SIGTSTP
                        to the guest's foreground process group; without a controlling terminal,
                        to the process group of every program the machine was asked to run
    SIGHUP, SIGTERM     to both
    SIGWINCH            to the foreground group
    SIGUSR1 and others that a person or another program may send
                        to every program the machine was asked to run, unless the host's process
                        has a use of its own for them

so `sh -i` and `bash -i` in the guest stop and continue their own jobs. When the programs themselves
stop, by ^Z or by SIGTTIN, nobody in the guest could continue them: then the dfvm process stops,
with the terminal as it was found, and the host's shell takes over as it would from the program. On
SIGCONT the programs are continued and, in the host's foreground, get their terminal settings back.

Source: rules of Linux drivers/tty/tty_jobctrl.c; structure of DragonFly sys/kern/tty.c.
"""

from __future__ import annotations

import os
from struct import pack, unpack
from typing import TYPE_CHECKING, Any, Final

from dfvm.kern.abi.linux.args import s32
from dfvm.kern.host_file import HostFile, host_poll
from dfvm.kern.kern_caps import CAP_SYS_ADMIN
from dfvm.kern.kern_descrip import FIONREAD, O_ACCMODE, O_NOCTTY, File, FileTable
from dfvm.kern.kern_errno import (
    EINVAL,
    EIO,
    ENOTTY,
    ENXIO,
    EPERM,
    ERESTART,
    ESRCH,
    err,
)  # fmt: skip
from dfvm.kern.kern_event import POLLIN
from dfvm.kern.kern_sig import (
    SIG_IGN,
    SIGALRM,
    SIGCONT,
    SIGHUP,
    SIGINT,
    SIGIO,
    SIGPROF,
    SIGPWR,
    SIGQUIT,
    SIGSTKFLT,
    SIGTERM,
    SIGTSTP,
    SIGTTIN,
    SIGTTOU,
    SIGURG,
    SIGUSR1,
    SIGUSR2,
    SIGVTALRM,
    SIGWINCH,
    SIGXCPU,
    ksignal,
    pgsignal,
    sigbit,
)  # fmt: skip
from dfvm.kern.proc import P_CONTROLT, P_SYSTEM, SSTOP
from dfvm.kern.vfs.devfs import Cdev
from dfvm.kern.vfs.vnode_param import FREAD, KCRED
from dfvm.vm.copyio import copyin, copyout, uiogive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dfvm.kern.proc import Lwp, Pgrp, Proc, Session
    from dfvm.kern.tty_pty import PtsDir
    from dfvm.kern.vfs.devfs import DevMount
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred, Vattr
    from dfvm.vm.copyio import Uio

TCGETS: Final = 0x5401
TCSETS: Final = 0x5402
TCSETSW: Final = 0x5403
TCSETSF: Final = 0x5404
TCGETA: Final = 0x5405  # the older struct termio
TCSETA: Final = 0x5406
TCSETAW: Final = 0x5407
TCSETAF: Final = 0x5408
TCSBRK: Final = 0x5409
TCXONC: Final = 0x540A
TCFLSH: Final = 0x540B
TIOCSCTTY: Final = 0x540E
TIOCGPGRP: Final = 0x540F
TIOCSPGRP: Final = 0x5410
TIOCOUTQ: Final = 0x5411
TIOCGWINSZ: Final = 0x5413
TIOCSWINSZ: Final = 0x5414
TIOCNOTTY: Final = 0x5422
TIOCGETD: Final = 0x5424
TCSBRKP: Final = 0x5425
TIOCGSID: Final = 0x5429
TCGETS2: Final = 0x802C542A
TCSETS2: Final = 0x402C542B
TCSETSW2: Final = 0x402C542C
TCSETSF2: Final = 0x402C542D

# ioctls of the host terminal that are handed through: what goes out to the user, what comes in.
_OUT: Final = {TCGETS: 36, TCGETS2: 44, TCGETA: 18, TIOCOUTQ: 4, TIOCGWINSZ: 8, FIONREAD: 4,
               TIOCGETD: 4}  # fmt: skip
_IN: Final = {TCSETS: 36, TCSETSW: 36, TCSETSF: 36, TCSETS2: 44, TCSETSW2: 44, TCSETSF2: 44,
              TCSETA: 18, TCSETAW: 18, TCSETAF: 18, TIOCSWINSZ: 8}  # fmt: skip
_INT: Final = frozenset((TCSBRK, TCXONC, TCFLSH, TCSBRKP))
# Of these the ones that a background process may not do (they are "output").
_OUTPUT: Final = frozenset((TCSETS, TCSETSW, TCSETSF, TCSETS2, TCSETSW2, TCSETSF2, TCSETA, TCSETAW,
                            TCSETAF, TCSBRK, TCXONC, TCFLSH, TCSBRKP))  # fmt: skip

# struct termios: four words of flags, the discipline, 19 control characters
_LFLAG: Final = 12
_CC: Final = 17
# As in tty_ldisc, which only pseudo terminals need.
_VTIME: Final = 5
_VMIN: Final = 6
_ICANON: Final = 0o2
_TOSTOP: Final = 0o400


# What HostSignals hands on: to groups, and to programs alone.
_FORWARDED: Final = (SIGINT, SIGQUIT, SIGHUP, SIGTERM, SIGWINCH, SIGTSTP)
_PASSED_ON: Final = (
    SIGUSR1, SIGUSR2, SIGALRM, SIGSTKFLT, SIGURG, SIGXCPU, SIGVTALRM, SIGPROF, SIGIO, SIGPWR
)  # fmt: skip


class Tty:
    """A terminal, as far as sessions are concerned."""

    __slots__ = ("t_pgrp", "t_session")

    t_session: Session | None  # whose controlling terminal it is; its s_ttyp is us
    t_pgrp: Pgrp | None  # the foreground process group, of that session; stays, and keeps others
    #                      in the background, when its last member has gone

    def __init__(self) -> None:
        self.t_session = None
        self.t_pgrp = None

    def new_file(self, table: FileTable) -> File:
        """A new open file on it, for /dev/tty."""
        raise NotImplementedError

    # -- whose it is ----------------------------------------------------------------------------

    def is_ctty(self, p: Proc) -> bool:
        """Whether it is the controlling terminal of `p`."""
        return p.p_flags & P_CONTROLT != 0 and p.p_session.s_ttyp is self

    def set_ctty(self, p: Proc) -> None:
        """It becomes the controlling terminal of session leader `p`, with its process group in
        the foreground."""
        session = p.p_session
        self.t_session = session
        self.t_pgrp = p.p_pgrp
        session.s_ttyp = self
        for pgrp in session.s_pgrps.values():
            for member in pgrp.pg_members.values():
                member.p_flags |= P_CONTROLT

    def opened(self, lwp: Lwp, flag: int, mode: int) -> None:
        """`lwp` opened it: a session leader without a terminal thereby gets one."""
        p = lwp.lwp_proc
        if (
            not flag & O_NOCTTY
            and mode & FREAD
            and self.t_session is None
            and p.p_session.s_leader is p
            and p.p_session.s_ttyp is None
        ):
            self.set_ctty(p)

    def disassociate(self) -> None:
        """The session loses it: the terminal hung up, or its leader gave it up or exited."""
        session = self.t_session
        if session is None:
            return
        self.t_session = None
        self.t_pgrp = None
        session.s_ttyp = None
        for pgrp in session.s_pgrps.values():
            for member in pgrp.pg_members.values():
                member.p_flags &= ~P_CONTROLT

    def leader_gone(self, exits: bool = True) -> None:
        """The session leader exits, or gives it up: the foreground group is told to go as well."""
        pgrp = self.t_pgrp
        self.disassociate()
        if pgrp is not None:
            pgsignal(pgrp, SIGHUP)
            if not exits:
                pgsignal(pgrp, SIGCONT)

    def pgrp_gone(self, pgrp: Pgrp) -> None:
        """A process group of the session has lost its last member. Even if it was in the
        foreground it stays there: everybody else is told that they are not."""

    def signal(self, sig: int) -> None:
        """Send `sig` to the foreground group."""
        if self.t_pgrp is not None:
            pgsignal(self.t_pgrp, sig)

    # -- job control ----------------------------------------------------------------------------

    def check_change(self, lwp: Lwp, sig: int) -> None:
        """A process in the background wants to read (SIGTTIN) or to change or write to (SIGTTOU)
        its terminal: it is stopped, and tries again when continued.

        :raises OSError: EIO when that would do no good, ERESTART
        """
        p = lwp.lwp_proc
        pgrp = p.p_pgrp
        if self.t_pgrp is None or pgrp is self.t_pgrp or not self.is_ctty(p):
            return
        if lwp.lwp_sigmask & sigbit(sig) or p.p_sigacts.ps_act[sig][0] == SIG_IGN:
            if sig == SIGTTIN:
                raise err(EIO)
            return
        if self.orphaned(pgrp):
            raise err(EIO)
        pgsignal(pgrp, sig)
        raise err(ERESTART)

    def orphaned(self, pgrp: Pgrp) -> bool:
        """Nobody could continue `pgrp` if it stopped."""
        return pgrp.pg_jobc == 0

    def jobctl_ioctl(self, lwp: Lwp, cmd: int, arg: int, mode: int) -> int | None:
        """The ioctls about sessions and process groups; None when `cmd` is none of them."""
        p = lwp.lwp_proc
        if cmd == TIOCGPGRP:
            self._my_tty(p)
            pgid = 0 if self.t_pgrp is None else self.t_pgrp.pg_id
            copyout(p.p_vmspace, pack("<i", pgid), arg)
        elif cmd == TIOCSPGRP:
            self._set_pgrp(lwp, arg)
        elif cmd == TIOCGSID:
            self._my_tty(p)
            if self.t_session is None:
                raise err(ENOTTY)
            copyout(p.p_vmspace, pack("<i", self.t_session.s_sid), arg)
        elif cmd == TIOCSCTTY:
            self._set_ctty(p, s32(arg), mode)
        elif cmd == TIOCNOTTY:
            self._my_tty(p)
            if p.p_session.s_leader is p:
                self.leader_gone(exits=False)
            else:
                p.p_flags &= ~P_CONTROLT
        else:
            return None
        return 0

    def _my_tty(self, p: Proc) -> None:
        if not self.is_ctty(p):
            raise err(ENOTTY)

    def _set_pgrp(self, lwp: Lwp, arg: int) -> None:
        try:
            self.check_change(lwp, SIGTTOU)
        except OSError as exc:
            if exc.errno == EIO:
                raise err(ENOTTY) from None
            raise
        p = lwp.lwp_proc
        (pgid,) = unpack("<i", copyin(p.p_vmspace, arg, 4))
        self._my_tty(p)
        if pgid < 0:
            raise err(EINVAL)
        pgrp = p.kernel.pgrps.get(pgid)
        if pgrp is None:
            raise err(ESRCH)
        if pgrp.pg_session is not p.p_session:
            raise err(EPERM)
        self.t_pgrp = pgrp

    def _set_ctty(self, p: Proc, steal: int, mode: int) -> None:
        session = p.p_session
        leader = session.s_leader is p
        if leader and self.t_session is session:
            return
        if not leader or session.s_ttyp is not None:
            raise err(EPERM)
        root = p.p_ucred.cr_cap_e & CAP_SYS_ADMIN
        if self.t_session is not None:
            if not (steal == 1 and root):
                raise err(EPERM)
            self.disassociate()
        if not mode & FREAD and not root:
            raise err(EPERM)
        self.set_ctty(p)


class HostTty(Tty):
    """A terminal of the host's, however many descriptors lead to it."""

    __slots__ = ("t_fd", "t_saved", "t_suspended", "t_vp")

    t_fd: int  # a descriptor of it; inherited, not ours to close
    t_vp: Vnode | None  # /dev/console, when this is the console: what fstat shows
    t_saved: bytes | None  # its struct termios from before the guest's first change
    t_suspended: bytes | None  # the guest's, while the machine is stopped

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.t_fd = fd
        self.t_vp = None
        self.t_saved = None
        self.t_suspended = None

    def new_file(self, table: FileTable) -> File:
        from fcntl import F_GETFL, fcntl

        return HostTtyFile(table, self.t_fd, fcntl(self.t_fd, F_GETFL) & O_ACCMODE)

    def get(self) -> bytes:
        """Its struct termios now."""
        from fcntl import ioctl

        return ioctl(self.t_fd, TCGETS, bytes(36))

    def set(self, termios: bytes) -> None:
        """Change it, without being stopped for it should the machine be in the host's
        background."""
        import signal
        from fcntl import ioctl

        try:
            old = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        except ValueError:  # not Python's main thread: it can't change what signals do
            ioctl(self.t_fd, TCSETSW, termios)
            return
        try:
            ioctl(self.t_fd, TCSETSW, termios)
        finally:
            signal.signal(signal.SIGTTOU, old)

    def keep(self) -> None:
        """The guest is about to change the settings."""
        if self.t_saved is None:
            self.t_saved = self.get()

    def restore(self) -> None:
        """Put the settings back as they were before the guest came."""
        if self.t_saved is not None:
            saved, self.t_saved = self.t_saved, None
            try:
                self.set(saved)
            except OSError:
                pass  # the terminal has gone

    def suspend(self) -> None:
        """The machine is about to stop; the host's shell takes over."""
        if self.t_saved is not None:
            self.t_suspended = self.get()
            self.set(self.t_saved)

    def resume(self) -> None:
        """It goes on. In the host's background the terminal is somebody else's for now."""
        if self.t_suspended is not None and not self.in_background():
            guest, self.t_suspended = self.t_suspended, None
            self.set(guest)

    def in_background(self) -> bool:
        """Whether dfvm is a background job of the host's."""
        try:
            return os.tcgetpgrp(self.t_fd) != os.getpgrp()
        except OSError:  # a terminal, but not the one that controls us
            return False

    def orphaned(self, pgrp: Pgrp) -> bool:
        # The launcher can continue its programs only if somebody on the host continues dfvm.
        return super().orphaned(pgrp) or (
            all(p.p_pptr.p_flags & P_SYSTEM or p.p_pptr.p_pgrp is pgrp
                for p in pgrp.pg_members.values())
            and not host_job_control()
        )  # fmt: skip

    def read_timeout(self) -> tuple[int, int] | None:
        """(VMIN, VTIME in ns) when reads are not by line and may end without data."""
        termios = self.get()
        (lflag,) = unpack("<I", termios[_LFLAG : _LFLAG + 4])
        if lflag & _ICANON or termios[_CC + _VMIN]:
            return None
        return 0, termios[_CC + _VTIME] * 100_000_000


def host_job_control() -> bool:
    """Whether somebody on the host could continue the dfvm process if it stopped: a shell with
    job control above it in its session."""
    pid, pgid, sid = os.getpid(), os.getpgrp(), os.getsid(0)
    try:
        while True:
            parent = os.getppid() if pid == os.getpid() else _host_ppid(pid)
            if not parent or os.getsid(parent) != sid:
                return False
            if os.getpgid(parent) != pgid:
                return True
            pid = parent
    except (OSError, ValueError):
        return False


def _host_ppid(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as f:
        return int(f.read().rpartition(")")[2].split()[1])


def host_tty(table: FileTable, fd: int) -> HostTty:
    """The Tty behind host descriptor `fd`: the same one for every descriptor of one terminal."""
    dev = os.fstat(fd).st_rdev
    tty = table.host_ttys.get(dev)
    if tty is None:
        tty = HostTty(fd)
        if not table.host_ttys:
            tty.t_vp = table.console_vp
        table.host_ttys[dev] = tty
    return tty


class HostTtyFile(HostFile):
    """An open file on the host's terminal."""

    __slots__ = ("f_tty",)

    f_tty: HostTty

    def __init__(self, table: FileTable, fd: int, flag: int) -> None:
        super().__init__(table, fd, flag)
        self.f_tty = host_tty(table, fd)

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        tty = self.f_tty
        tty.check_change(lwp, SIGTTIN)
        if not uio.uio_resid:
            return
        fd = self.f_hostfd
        while True:
            while tty.in_background():
                if not host_job_control():
                    raise err(EIO)
                os.kill(os.getpid(), SIGTTIN)  # stops us here, as the read would in the end
            limits = tty.read_timeout()
            if limits is None:
                self.wait(POLLIN)
                tty.check_change(lwp, SIGTTIN)
            elif not self._wait_raw(limits[1]):
                return
            try:
                data = os.read(fd, min(uio.uio_resid, 4096))
            except BlockingIOError:
                continue
            uiogive(data, uio)
            return

    def _wait_raw(self, timeout_ns: int) -> bool:
        # VMIN 0: whatever is there, or comes in the time of VTIME, and maybe nothing.
        if host_poll(self.f_hostfd, POLLIN):
            return True
        return timeout_ns > 0 and self.wait(POLLIN, timeout_ns)

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        tty = self.f_tty
        if tty.t_pgrp is not None and lwp.lwp_proc.p_pgrp is not tty.t_pgrp:
            (lflag,) = unpack("<I", tty.get()[_LFLAG : _LFLAG + 4])
            if lflag & _TOSTOP:
                tty.check_change(lwp, SIGTTOU)
        super().fo_write(lwp, uio)

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        tty = self.f_tty
        done = tty.jobctl_ioctl(lwp, cmd, arg, self.f_mode)
        if done is not None:
            return done
        if cmd in _OUTPUT:
            tty.check_change(lwp, SIGTTOU)
        from fcntl import ioctl

        space = lwp.lwp_proc.p_vmspace
        size = _OUT.get(cmd)
        if size is not None:
            copyout(space, ioctl(self.f_hostfd, cmd, bytes(size)), arg)
            return 0
        size = _IN.get(cmd)
        if size is not None:
            new = copyin(space, arg, size)
            if cmd != TIOCSWINSZ:
                tty.keep()
            ioctl(self.f_hostfd, cmd, new)
            return 0
        if cmd in _INT:
            return ioctl(self.f_hostfd, cmd, s32(arg))
        raise err(ENOTTY)

    def fo_opened(self, lwp: Lwp, flag: int) -> None:
        self.f_tty.opened(lwp, flag, self.f_mode)

    def fo_stat(self, lwp: Lwp) -> Vattr:
        vp = self.f_tty.t_vp
        return super().fo_stat(lwp) if vp is None else vp.getattr()

    def fo_name(self) -> str:
        return super().fo_name() if self.f_tty.t_vp is None else "/dev/console"


class CttyDev(Cdev):
    """/dev/tty: whatever terminal controls the process that opens it."""

    __slots__ = ("d_table",)

    d_table: FileTable

    def __init__(self, table: FileTable) -> None:
        self.d_table = table

    def d_open(self, vp: Vnode, fflag: int, cred: Cred) -> File:
        p: Proc | None = self.d_table.sched.curthread.td_proc
        tty = None if p is None else p.p_session.s_ttyp
        if p is None or tty is None or not tty.is_ctty(p):
            raise err(ENXIO)
        return tty.new_file(self.d_table)


class ConsoleDev(Cdev):
    """/dev/console: the terminal dfvm was started on, if it was."""

    __slots__ = ("d_table",)

    d_table: FileTable

    def __init__(self, table: FileTable) -> None:
        self.d_table = table

    def d_open(self, vp: Vnode, fflag: int, cred: Cred) -> File:
        tty = console(self.d_table)
        if tty is None:
            raise err(ENXIO)
        return tty.new_file(self.d_table)


def console(table: FileTable) -> HostTty | None:
    """The terminal dfvm was started on: the first one a File was made for."""
    for tty in table.host_ttys.values():
        return tty
    return None


class PtmxDev(Cdev):
    """/dev/ptmx: opening it makes a pseudo terminal."""

    __slots__ = ("d_dev", "d_pts", "d_ptsdir", "d_table")

    d_table: FileTable
    d_dev: DevMount
    d_pts: Vnode  # /dev/pts
    d_ptsdir: PtsDir | None  # the pairs; made with the first

    def __init__(self, table: FileTable, dev: DevMount, pts: Vnode) -> None:
        self.d_table = table
        self.d_dev = dev
        self.d_pts = pts
        self.d_ptsdir = None

    def d_open(self, vp: Vnode, fflag: int, cred: Cred) -> File:
        ptsdir = self.d_ptsdir
        if ptsdir is None:
            from dfvm.kern.tty_pty import PtsDir

            ptsdir = self.d_ptsdir = PtsDir(self.d_table, self.d_dev, vp, self.d_pts)
        return ptsdir.new_pair(cred)


def tty_attach(dev: DevMount, table: FileTable) -> None:
    """Boot: make the terminal devices in /dev."""
    dev.make_dev(b"tty", 5, 0, 0o666, CttyDev(table))
    table.console_vp = dev.make_dev(b"console", 5, 1, 0o600, ConsoleDev(table))
    pts = dev.mnt_root.mkdir(b"pts", 0o755, KCRED)
    pts.vref()
    dev.make_dev(b"ptmx", 5, 2, 0o666, PtmxDev(table, dev, pts))


class HostSignals:
    """Job control between the host and the machine: the signals that the host sends to the dfvm
    process, and the stops of its programs."""

    __slots__ = ("_last", "_launcher", "_old", "_programs", "_table")

    _table: FileTable
    _last: bool  # the host's process ends with the programs: signals that come later are too late
    _programs: Callable[[], Iterable[Proc]]  # those the machine was asked to run, alive
    _old: dict[int, Any]  # what the signals did before; empty while not installed
    _launcher: Proc | None  # the programs' parent, whose thread waits for them to stop

    def __init__(
        self, table: FileTable, programs: Callable[[], Iterable[Proc]], last: bool
    ) -> None:
        self._table = table
        self._last = last
        self._programs = programs
        self._old = {}
        self._launcher = None

    def install(self) -> None:
        """From now on until remove(). In a host thread that is not Python's main one there is
        nothing to catch. What the host ignores (nohup) stays ignored."""
        import signal

        def handler(signo: int, frame: object) -> None:
            self._table.sched.post(self._deliver, signo)

        try:
            for signo in (*_FORWARDED, SIGCONT):
                if signal.getsignal(signo) != signal.SIG_IGN:
                    self._old[signo] = signal.signal(signo, handler)
            for signo in _PASSED_ON:
                if signal.getsignal(signo) == signal.SIG_DFL:
                    self._old[signo] = signal.signal(signo, handler)
        except ValueError:
            return
        for p in self._programs():
            self._launcher = p.p_pptr
            self._table.sched.create(self._watch, p.p_pptr, name="launcher", daemon=True)
            return

    def remove(self) -> None:
        """Back to how it was, the terminals included; or, when the process ends with the programs,
        deaf at once: what they wrote is still to be written to the host, all of it, whatever
        somebody sends them who does not know yet that they have ended."""
        import signal

        for signo, old in self._old.items():
            late = self._last and signo not in (SIGTSTP, SIGCONT)
            signal.signal(signo, signal.SIG_IGN if late else old)
        self._old.clear()
        self._programs = tuple  # the launcher's thread has yet to end: it must not keep the machine
        if self._launcher is not None:
            self._table.sched.wakeup(self._launcher)
        for tty in self._table.host_ttys.values():
            tty.restore()

    def _deliver(self, signo: int) -> None:
        # Posted: runs at a safe point of the kernel, and must not sleep.
        tty = console(self._table)
        if signo == SIGCONT:
            if tty is not None:
                tty.resume()
            return
        if signo in _PASSED_ON:
            for p in self._programs():
                ksignal(p, signo)
            return
        foreground = None if tty is None else tty.t_pgrp
        groups = {} if foreground is None else {foreground: None}
        if foreground is None or signo in (SIGHUP, SIGTERM):
            groups |= {p.p_pgrp: None for p in self._programs()}
        for pgrp in groups:
            pgsignal(pgrp, signo)

    def _watch(self, launcher: Proc) -> None:
        """The launcher's thread, for as long as this is installed: when the last of its programs
        has stopped, the machine does."""
        sched = self._table.sched
        while self._old:
            programs = list(self._programs())
            if programs and all(p.p_stat == SSTOP for p in programs):
                self._stop()
                for p in programs:
                    pgsignal(p.p_pgrp, SIGCONT)
            sched.tsleep(launcher, 0, "launch")

    def _stop(self) -> None:
        import signal

        tty = console(self._table)
        if tty is not None:
            tty.suspend()
        handler = signal.signal(SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), SIGTSTP)  # does nothing, as it should, when nobody could continue us
        signal.signal(SIGTSTP, handler)
        if tty is not None:
            tty.resume()
            tty.signal(SIGWINCH)
