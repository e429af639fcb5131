"""Pseudo terminals: /dev/ptmx and /dev/pts.

Opening /dev/ptmx makes a pair. What the master writes is typed at the slave's terminal; what
programs print there, and the echo, is what the master reads. The slave is a terminal like any
other: it can control a session.

Source: behaviour of Linux drivers/tty/pty.c and fs/devpts; structure of DragonFly
sys/kern/tty_pty.c.
"""

from __future__ import annotations

from struct import Struct, pack, unpack
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_caps import CAP_SYS_ADMIN
from dfvm.kern.kern_descrip import FIONREAD, O_CLOEXEC, O_NONBLOCK, O_RDWR, File, FileTable, nofile
from dfvm.kern.kern_errno import (
    EAGAIN,
    EBUSY,
    EINVAL,
    EIO,
    ENOSPC,
    ENOTTY,
    ENXIO,
    EPERM,
    EWOULDBLOCK,
    err,
)
from dfvm.kern.kern_event import (
    POLL_READABLE,
    POLL_WRITABLE,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLPRI,
    Kqinfo,
)
from dfvm.kern.kern_sig import (
    SIGCONT,
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTSTP,
    SIGTTIN,
    SIGTTOU,
    SIGWINCH,
    ksignal,
)
from dfvm.kern.tty import (
    TCFLSH,
    TCGETA,
    TCGETS,
    TCGETS2,
    TCSBRK,
    TCSBRKP,
    TCSETA,
    TCSETAF,
    TCSETAW,
    TCSETS,
    TCSETS2,
    TCSETSF,
    TCSETSF2,
    TCSETSW,
    TCSETSW2,
    TCXONC,
    TIOCGETD,
    TIOCGPGRP,
    TIOCGSID,
    TIOCGWINSZ,
    TIOCOUTQ,
    TIOCSWINSZ,
    Tty,
)
from dfvm.kern.tty_ldisc import ICANON, IXON, TOSTOP, VMIN, VTIME, LineDiscipline
from dfvm.kern.vfs.devfs import Cdev
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, KCRED, VCHR, VUNLINKED
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, copyout, uiogive, uiomove, uioread

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.devfs import DevMount
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred, Vattr
    from dfvm.vm.copyio import Uio

TIOCGPTN: Final = 0x80045430
TIOCSPTLCK: Final = 0x40045431
TIOCGPTLCK: Final = 0x80045439
TIOCSIG: Final = 0x40045436
TIOCEXCL: Final = 0x540C
TIOCNXCL: Final = 0x540D
TIOCGEXCL: Final = 0x80045440
TIOCSTI: Final = 0x5412
TIOCPKT: Final = 0x5420
TIOCSETD: Final = 0x5423
TIOCGPKT: Final = 0x80045438
TIOCGPTPEER: Final = 0x5441
TIOCGLCKTRMIOS: Final = 0x5456
TIOCSLCKTRMIOS: Final = 0x5457

_PTS_MAJOR: Final = 136
_NPTS: Final = 256  # pairs at a time: the minor numbers of one major
# What the first byte of a read in packet mode tells (TIOCPKT_*); 0: data follow.
_PKT_FLUSHREAD: Final = 1
_PKT_FLUSHWRITE: Final = 2
_PKT_STOP: Final = 4
_PKT_START: Final = 8
_PKT_NOSTOP: Final = 16
_PKT_DOSTOP: Final = 32

_OUT_MAX: Final = 1 << 16  # bytes shown that the master has not read
_MASTER_BUF: Final = 4096  # the part of them that ^C does not take back

_SET: Final = {TCSETS: 36, TCSETSW: 36, TCSETSF: 36, TCSETS2: 44, TCSETSW2: 44, TCSETSF2: 44}
_SETA: Final = (TCSETA, TCSETAW, TCSETAF)
_OUTPUT: Final = frozenset((*_SET, *_SETA, TCSBRK, TCSBRKP, TCXONC, TCFLSH))

_TERMIO: Final = Struct("<4HB8sx")  # four words of flags, the discipline, 8 control characters


class PtyTty(Tty):
    """The terminal between a master and its slaves."""

    __slots__ = (
        "t_dev",
        "t_exclusive",
        "t_index",
        "t_inwait",
        "t_kq",
        "t_lckflags",
        "t_ldisc",
        "t_locked",
        "t_master",
        "t_masterkq",
        "t_masterwait",
        "t_out",
        "t_outwait",
        "t_packet",
        "t_slaves",
        "t_status",
        "t_table",
        "t_used",
        "t_vp",
        "t_winsize",
    )  # fmt: skip

    t_table: FileTable
    t_dev: PtsDir  # where its name is
    t_index: int  # N of /dev/pts/N
    t_vp: Vnode  # /dev/pts/N
    t_ldisc: LineDiscipline
    t_out: bytearray  # shown, and not read by the master; about _OUT_MAX at most
    t_winsize: bytes  # struct winsize
    t_master: bool  # the master is open
    t_slaves: int  # open files of the slave
    t_used: bool  # a slave has been opened once: without one the master now reads EIO
    t_packet: bool  # packet mode: each read of the master begins with a byte that says what it is
    t_status: int  # TIOCPKT_* that the next such byte is to tell; 0: data follow it
    t_exclusive: bool  # TIOCEXCL: nobody without CAP_SYS_ADMIN opens the slave
    t_lckflags: bytes  # struct termios: the flags, and the characters where it is not 0, that
    #                    stay as they are whatever is set (TIOCSLCKTRMIOS)
    t_locked: bool  # until unlockpt() the slave can't be opened
    t_inwait: object  # wait channel: input for the slave
    t_outwait: object  # room in t_out, or ^Q
    t_masterwait: object  # output for the master, or room for its input
    t_kq: Kqinfo  # who polls the slave
    t_masterkq: Kqinfo  # who polls the master

    def __init__(self, table: FileTable, dev: PtsDir, index: int) -> None:
        super().__init__()
        self.t_table = table
        self.t_dev = dev
        self.t_index = index
        self.t_ldisc = LineDiscipline(self.signal)
        self.t_out = bytearray()
        self.t_lckflags = bytes(_SET[TCSETS])
        self.t_winsize = bytes(8)
        self.t_master = True
        self.t_slaves = 0
        self.t_used = False
        self.t_packet = False
        self.t_status = 0
        self.t_exclusive = False
        self.t_locked = True
        self.t_inwait, self.t_outwait, self.t_masterwait = object(), object(), object()
        self.t_kq = Kqinfo()
        self.t_masterkq = Kqinfo()

    def new_file(self, table: FileTable) -> File:
        if not self.t_master:
            raise err(EIO)
        return PtsFile(self, O_RDWR)

    # -- events ---------------------------------------------------------------------------------

    def wait(self, fp: File, channel: object, wmesg: str, timeout_ns: int = 0) -> bool:
        """Sleep until something happens at `channel`; False when the time is over.

        :raises OSError: EAGAIN for a non-blocking file, EIO when it was hung up, EINTR, ERESTART
        """
        if fp.f_flag & O_NONBLOCK:
            raise err(EAGAIN)
        fp.fhold()
        try:
            error = self.t_table.sched.tsleep_ns(channel, PCATCH, wmesg, timeout_ns)
        finally:
            fp.fdrop()
        if not self.t_master:
            raise err(EIO)
        if error == EWOULDBLOCK:
            return False
        if error:
            raise err(error)
        return True

    def settle(self) -> None:
        """The discipline's state has changed: bring the echo to the master and wake whoever can
        go on."""
        ldisc = self.t_ldisc
        if ldisc.flushed:
            ldisc.flushed = False
            del self.t_out[_MASTER_BUF:]
        if ldisc.echoed:
            self.t_out += ldisc.echoed
            ldisc.echoed.clear()
        wakeup = self.t_table.sched.wakeup
        wakeup(self.t_inwait)
        wakeup(self.t_outwait)
        wakeup(self.t_masterwait)
        self.t_kq.knote(POLLIN | POLLOUT)
        self.t_masterkq.knote(POLLIN | POLLOUT)

    def hangup(self) -> None:
        """The master is closed: readers see the end, writers an error, and the session loses its
        terminal."""
        session = self.t_session
        leader = None if session is None else session.s_leader
        self.leader_gone(exits=False)
        if leader is not None:
            ksignal(leader, SIGHUP)
            ksignal(leader, SIGCONT)
        self.settle()
        self.t_kq.knote(POLLHUP | POLLERR)

    # -- ioctl ----------------------------------------------------------------------------------

    def ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        """What both sides understand."""
        space = lwp.lwp_proc.p_vmspace
        ldisc = self.t_ldisc
        size = _TERMIO.size if cmd in _SETA else _SET.get(cmd)
        if size is not None:
            new = copyin(space, arg, size)
            if cmd in _SETA:
                new = self._from_termio(new)
            new = self._keep_locked(new)
            if cmd in (TCSETSF, TCSETSF2, TCSETAF):
                ldisc.flush_input()
            dostop = self._dostop()
            ldisc.set_termios(new)
            if self._dostop() != dostop:
                self.tell(_PKT_NOSTOP if dostop else _PKT_DOSTOP)
            self.settle()
        elif cmd in (TCGETS, TCGETS2):
            copyout(space, ldisc.termios.pack(cmd == TCGETS2), arg)
        elif cmd == TCGETA:
            termios = ldisc.termios.pack(False)
            flags = [flag & 0xFFFF for flag in unpack("<4I", termios[:16])]
            copyout(space, _TERMIO.pack(*flags, termios[16], termios[17:25]), arg)
        elif cmd == TIOCGWINSZ:
            copyout(space, self.t_winsize, arg)
        elif cmd == TIOCSWINSZ:
            new = copyin(space, arg, 8)
            if new != self.t_winsize:
                self.t_winsize = new
                self.signal(SIGWINCH)
        elif cmd == TIOCGETD:
            copyout(space, bytes(4), arg)
        elif cmd in (TIOCEXCL, TIOCNXCL):
            self.t_exclusive = cmd == TIOCEXCL
        elif cmd == TIOCGEXCL:
            copyout(space, pack("<i", self.t_exclusive), arg)
        elif cmd == TIOCSETD:
            if copyin(space, arg, 4) != bytes(4):  # N_TTY is the only one there is
                raise err(EINVAL)
        elif cmd == TIOCGLCKTRMIOS:
            copyout(space, self.t_lckflags, arg)
        elif cmd == TIOCSLCKTRMIOS:
            if not lwp.lwp_proc.p_ucred.cr_cap_e & CAP_SYS_ADMIN:
                raise err(EPERM)
            self.t_lckflags = copyin(space, arg, len(self.t_lckflags))
        elif cmd == TIOCSTI:
            p = lwp.lwp_proc
            if not p.p_ucred.cr_cap_e & CAP_SYS_ADMIN and not self.is_ctty(p):
                raise err(EPERM)
            ldisc.input(copyin(space, arg, 1))
            self.settle()
        elif cmd == TCFLSH:
            self._flush(s32(arg))
        elif cmd == TCXONC:
            self._flow(s32(arg))
        elif cmd not in (TCSBRK, TCSBRKP):  # there is no line to break, and nothing to wait for
            raise err(ENOTTY)
        return 0

    def _from_termio(self, termio: bytes) -> bytes:
        # The termios that is set with a struct termio: the halves and characters it lacks stay.
        old = self.t_ldisc.termios.pack(False)
        *low, line, cc = _TERMIO.unpack(termio)
        flags = [flag & ~0xFFFF | half
                 for flag, half in zip(unpack("<4I", old[:16]), low, strict=True)]  # fmt: skip
        return pack("<4IB", *flags, line) + bytes(cc) + old[25:]

    def _keep_locked(self, new: bytes) -> bytes:
        # What is set of the struct termios `new`, or termios2: its first 16 bytes are flags.
        lock, old = self.t_lckflags, self.t_ldisc.termios.pack(False)
        kept = bytes(
            n & ~lk | o & lk if i < 16 else o if lk else n
            for i, (n, o, lk) in enumerate(zip(new, old, lock, strict=False))
        )
        return kept + new[len(lock) :]

    def _flush(self, queue: int) -> None:
        if queue not in (0, 1, 2):
            raise err(EINVAL)
        if queue != 1:
            self.t_ldisc.flush_input()
            self.tell(_PKT_FLUSHREAD)
        if queue != 0:
            self.t_out.clear()
            self.tell(_PKT_FLUSHWRITE)
        self.settle()

    def _dostop(self) -> bool:
        # Do ^S and ^Q stop and start the output?
        termios = self.t_ldisc.termios
        return bool(termios.iflag & IXON) and termios.cc[8:10] == b"\x11\x13"

    def tell(self, status: int) -> None:
        """A master in packet mode is told of `status`; starting takes back stopping, and so on."""
        if self.t_packet:
            for pair in (_PKT_STOP | _PKT_START, _PKT_NOSTOP | _PKT_DOSTOP):
                if status & pair:
                    self.t_status &= ~pair
            self.t_status |= status
            self.t_masterkq.knote(POLLIN | POLLPRI)
            self.t_table.sched.wakeup(self.t_masterwait)

    def _flow(self, action: int) -> None:
        ldisc = self.t_ldisc
        if action in (0, 1):
            ldisc.stopped = action == 0
            self.tell(_PKT_STOP if action == 0 else _PKT_START)
        elif action in (2, 3):
            self.t_out.append(ldisc.termios.cc[9 if action == 2 else 8])  # VSTOP, VSTART
        else:
            raise err(EINVAL)
        self.settle()


class PtsFile(File):
    """An open slave."""

    __slots__ = ("f_tty",)

    f_fasync = True
    f_splice = FREAD | FWRITE
    f_seekable = False

    f_tty: PtyTty

    def __init__(self, tty: PtyTty, flag: int) -> None:
        super().__init__(tty.t_table, flag)
        self.f_tty = tty
        tty.t_slaves += 1
        tty.t_used = True

    def fo_opened(self, lwp: Lwp, flag: int) -> None:
        self.f_tty.opened(lwp, flag, self.f_mode)

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        tty = self.f_tty
        ldisc = tty.t_ldisc
        if not tty.t_master or not uio.uio_resid:
            return
        timed = False
        while True:
            tty.check_change(lwp, SIGTTIN)
            have = ldisc.readable()
            if ldisc.termios.lflag & ICANON:
                if have:
                    break
                tty.wait(self, tty.t_inwait, "ttyin")
                continue
            vmin = min(ldisc.termios.cc[VMIN], uio.uio_resid)
            vtime = ldisc.termios.cc[VTIME] * 100_000_000
            if have >= max(vmin, 1) or (have and (timed or self.f_flag & O_NONBLOCK)):
                break
            if not vmin:
                if not vtime or timed:
                    return
                timed = not tty.wait(self, tty.t_inwait, "ttyin", vtime)
            else:  # VTIME runs from the first byte on
                timed = not tty.wait(self, tty.t_inwait, "ttyin", vtime if have else 0)
        data = ldisc.take(uio.uio_resid)
        tty.t_table.sched.wakeup(tty.t_masterwait)
        tty.t_masterkq.knote(POLLOUT)
        uiogive(data, uio)

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        tty = self.f_tty
        ldisc = tty.t_ldisc
        wanted = uio.uio_resid
        if ldisc.termios.lflag & TOSTOP:
            tty.check_change(lwp, SIGTTOU)
        while uio.uio_resid:
            left = uio.uio_resid
            try:
                if not tty.t_master:
                    raise err(EIO)
                if ldisc.stopped or len(tty.t_out) >= _OUT_MAX:
                    tty.wait(self, tty.t_outwait, "ttyout")
                    continue
                data = uioread(uio, min(left, _OUT_MAX - len(tty.t_out)))
            except OSError:
                uio.uio_resid = left
                if left == wanted:
                    raise
                return
            tty.t_out += ldisc.output(data)
            tty.t_table.sched.wakeup(tty.t_masterwait)
            tty.t_masterkq.knote(POLLIN)

    def fo_poll(self) -> int:
        tty = self.f_tty
        if not tty.t_master:
            return POLL_READABLE | POLL_WRITABLE | POLLHUP | POLLERR
        termios = tty.t_ldisc.termios
        need = 1
        if not termios.lflag & ICANON and not termios.cc[VTIME]:
            need = max(termios.cc[VMIN], 1)
        events = POLL_READABLE if tty.t_ldisc.readable() >= need else 0
        if not tty.t_ldisc.stopped and len(tty.t_out) < _OUT_MAX:
            events |= POLL_WRITABLE
        return events

    def fo_kqinfo(self) -> Kqinfo:
        return self.f_tty.t_kq

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        tty = self.f_tty
        if not tty.t_master:
            raise err(EIO)
        done = tty.jobctl_ioctl(lwp, cmd, arg, self.f_mode)
        if done is not None:
            return done
        if cmd in _OUTPUT:
            tty.check_change(lwp, SIGTTOU)
        if cmd in (FIONREAD, TIOCOUTQ):
            n = tty.t_ldisc.pending() if cmd == FIONREAD else len(tty.t_out)
            copyout(lwp.lwp_proc.p_vmspace, pack("<i", n), arg)
            return 0
        return tty.ioctl(lwp, cmd, arg)

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return self.f_tty.t_vp.getattr()

    def fo_name(self) -> str:
        return f"/dev/pts/{self.f_tty.t_index}"

    def fo_reopen(self, lwp: Lwp, flag: int) -> File:
        return self.f_tty.new_file(self.f_table)

    def fo_close(self) -> None:
        tty = self.f_tty
        tty.t_slaves -= 1
        if not tty.t_slaves:
            tty.t_exclusive = False
            tty.t_table.sched.wakeup(tty.t_masterwait)
            tty.t_masterkq.knote(POLLIN | POLLHUP)


class PtmFile(File):
    """An open master. There is one for each pair; dup and fork share it."""

    __slots__ = ("f_tty",)

    f_fasync = True
    f_splice = FREAD | FWRITE
    f_seekable = False

    f_tty: PtyTty

    def __init__(self, tty: PtyTty, flag: int) -> None:
        super().__init__(tty.t_table, flag)
        self.f_tty = tty

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        tty = self.f_tty
        if not uio.uio_resid:
            return
        while not tty.t_out and not tty.t_status:
            if tty.t_used and not tty.t_slaves:
                raise err(EIO)
            tty.wait(self, tty.t_masterwait, "ptmin")
        if tty.t_packet:
            status, tty.t_status = tty.t_status, 0
            uiomove(bytes((status,)), uio)
            if status:
                return
        data = bytes(tty.t_out[: uio.uio_resid])
        del tty.t_out[: len(data)]  # as Linux: what can't be handed over is gone
        try:
            uiogive(data, uio)
        finally:
            tty.t_table.sched.wakeup(tty.t_outwait)
            tty.t_kq.knote(POLLOUT)

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        tty = self.f_tty
        wanted = uio.uio_resid
        while uio.uio_resid:
            left = uio.uio_resid
            try:
                room = tty.t_ldisc.room()
                if not room:
                    tty.wait(self, tty.t_masterwait, "ptmout")
                    continue
                data = uioread(uio, min(left, room))
            except OSError:
                uio.uio_resid = left
                if left == wanted:
                    raise
                return
            tty.t_ldisc.input(data)
            tty.settle()

    def fo_poll(self) -> int:
        tty = self.f_tty
        events = POLL_READABLE if tty.t_out else 0
        if tty.t_status:
            events |= POLLPRI | POLL_READABLE
        if tty.t_ldisc.room():
            events |= POLL_WRITABLE
        if tty.t_used and not tty.t_slaves:
            events |= POLLHUP
        return events

    def fo_kqinfo(self) -> Kqinfo:
        return self.f_tty.t_masterkq

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        tty = self.f_tty
        space = lwp.lwp_proc.p_vmspace
        if cmd == TIOCGPTN:
            copyout(space, pack("<i", tty.t_index), arg)
        elif cmd == TIOCSPTLCK:
            tty.t_locked = copyin(space, arg, 4) != bytes(4)
        elif cmd == TIOCGPTLCK:
            copyout(space, pack("<i", tty.t_locked), arg)
        elif cmd == TIOCPKT:
            tty.t_packet = copyin(space, arg, 4) != bytes(4)
            tty.t_status = 0
        elif cmd == TIOCGPKT:
            copyout(space, pack("<i", tty.t_packet), arg)
        elif cmd == TIOCGPTPEER:
            return self._open_peer(lwp, u32(arg))
        elif cmd == TIOCSIG:
            if s32(arg) not in (SIGINT, SIGQUIT, SIGTSTP):
                raise err(EINVAL)
            tty.signal(s32(arg))
        elif cmd == TIOCGPGRP:  # of the terminal, which need not be the caller's
            pgid = 0 if tty.t_pgrp is None else tty.t_pgrp.pg_id
            copyout(space, pack("<i", pgid), arg)
        elif cmd == TIOCGSID:
            if tty.t_session is None:
                raise err(ENOTTY)
            copyout(space, pack("<i", tty.t_session.s_sid), arg)
        elif cmd in (FIONREAD, TIOCOUTQ):
            n = len(tty.t_out) if cmd == FIONREAD else tty.t_ldisc.pending()
            copyout(space, pack("<i", n), arg)
        else:
            done = tty.jobctl_ioctl(lwp, cmd, arg, self.f_mode)
            return tty.ioctl(lwp, cmd, arg) if done is None else done
        return 0

    def _open_peer(self, lwp: Lwp, flag: int) -> int:
        p = lwp.lwp_proc
        fp = PtsFile(self.f_tty, flag & ~O_CLOEXEC)
        fp.fo_opened(lwp, flag)
        try:
            return p.p_fd.fdinstall(fp, 0, nofile(p), bool(flag & O_CLOEXEC))
        except OSError:
            fp.fdrop()
            raise

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return self.f_tty.t_dev.pd_ptmx.getattr()

    def fo_name(self) -> str:
        return "/dev/ptmx"

    def fo_close(self) -> None:
        tty = self.f_tty
        tty.t_master = False
        tty.t_dev.remove(tty)
        tty.hangup()


class PtsDev(Cdev):
    """/dev/pts/N."""

    __slots__ = ("d_tty",)

    d_tty: PtyTty

    def __init__(self, tty: PtyTty) -> None:
        self.d_tty = tty

    def d_open(self, vp: Vnode, fflag: int, cred: Cred) -> File:
        tty = self.d_tty
        if tty.t_locked or not tty.t_master:
            raise err(EIO)
        if tty.t_exclusive and not cred.cr_cap_e & CAP_SYS_ADMIN:
            raise err(EBUSY)
        return PtsFile(tty, O_RDWR if fflag & FWRITE else 0)


class PtsDir:
    """The pairs of a machine, and /dev/pts, where their names are."""

    __slots__ = ("pd_dir", "pd_mount", "pd_ptmx", "pd_table", "pd_ttys")

    pd_table: FileTable
    pd_mount: DevMount
    pd_dir: Vnode  # /dev/pts; kept by the file system
    pd_ptmx: Vnode  # /dev/ptmx
    pd_ttys: dict[int, PtyTty]  # the pairs by number

    def __init__(self, table: FileTable, dev: DevMount, ptmx: Vnode, pts: Vnode) -> None:
        self.pd_table = table
        self.pd_mount = dev
        self.pd_ttys = {}
        self.pd_dir = pts
        self.pd_ptmx = ptmx

    def new_pair(self, cred: Cred) -> File:
        """The master of a new pair; the slave's name belongs to `cred`."""
        pts = self.pd_dir
        if pts.v_flag & VUNLINKED:
            raise err(ENXIO)  # somebody has removed /dev/pts
        index = 0
        while index in self.pd_ttys or pts.lookup(b"%d" % index) is not None:
            index += 1
        if index >= _NPTS:
            raise err(ENOSPC)
        tty = PtyTty(self.pd_table, self, index)
        rdev = _PTS_MAJOR << 8 | index
        name = b"%d" % index
        tty.t_vp = pts.vop_create(name, VCHR, 0o620, cred.cr_fsuid, cred.cr_fsgid, rdev)
        tty.t_vp.vref()
        pts.cache_enter(name, tty.t_vp)
        self.pd_mount.mnt_vfs.devices[rdev] = PtsDev(tty)
        self.pd_ttys[index] = tty
        return PtmFile(tty, O_RDWR)

    def remove(self, tty: PtyTty) -> None:
        """The pair's master is closed: its name goes, and the number is free. May block."""
        index = tty.t_index
        name = b"%d" % index
        pts = self.pd_dir
        if not pts.v_flag & VUNLINKED and pts.lookup(name) is tty.t_vp:  # nobody has moved it
            pts.unlink(name, KCRED)
        del self.pd_ttys[index]
        del self.pd_mount.mnt_vfs.devices[_PTS_MAJOR << 8 | index]
        tty.t_vp.vrele()
