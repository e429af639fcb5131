"""Sockets, whatever their protocol: state, options, waiting.

A protocol derives from Socket and fills in the `pru_` methods; `uipc_domain` knows which there are.
The system calls (uipc_syscalls.py) and the open file (sys_socket.py) use nothing else.

    socreate → pru_bind, pru_listen, pru_accept, pru_connect, pru_connect2 (socketpair)
             → pru_send, pru_recv, pru_shutdown → pru_detach

Who waits sleeps on the buffer it waits for (so_rcv for data and connections, so_snd for room), or
on so_peerwait of another socket for room in that one's queue. sorwakeup, sowwakeup and
sostatechange wake them and tell who polls.

Source: DragonFly sys/kern/uipc_socket.c, uipc_socket2.c, sys/sys/socketvar.h, sys/sys/protosw.h;
options as Linux net/core/sock.c.
"""

from __future__ import annotations

from struct import pack, unpack_from
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, ClassVar, Final

from dfvm.kern.kern_caps import CAP_NET_ADMIN
from dfvm.kern.kern_errno import (
    EAGAIN,
    EDOM,
    EINTR,
    EINVAL,
    ENODATA,
    ENOPROTOOPT,
    EOPNOTSUPP,
    EPERM,
    EWOULDBLOCK,
    err,
)
from dfvm.kern.kern_event import (
    POLL_READABLE,
    POLL_WRITABLE,
    POLLERR,
    POLLHUP,
    POLLPRI,
    POLLRDHUP,
    POLLWRBAND,
    Kqinfo,
)
from dfvm.kern.uipc_sockbuf import SB_MAX, Sockbuf
from dfvm.lwkt.kern_synch import PCATCH

if TYPE_CHECKING:
    from dfvm.kern.kern_descrip import FileTable
    from dfvm.kern.proc import Lwp, Ucred
    from dfvm.kern.sys_socket import SocketFile
    from dfvm.kern.uipc_sockbuf import Mbuf, Rights
    from dfvm.vm.copyio import Uio

SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3
SOCK_SEQPACKET: Final = 5

# so_state
SS_UNCONNECTED: Final = 0
SS_LISTENING: Final = 1
SS_CONNECTED: Final = 2

# so_shutdown
SHUT_RCV: Final = 1
SHUT_SND: Final = 2

MSG_OOB: Final = 0x1
MSG_PEEK: Final = 0x2
MSG_CTRUNC: Final = 0x8
MSG_TRUNC: Final = 0x20
MSG_DONTWAIT: Final = 0x40
MSG_WAITALL: Final = 0x100
MSG_NOSIGNAL: Final = 0x4000
MSG_WAITFORONE: Final = 0x1_0000
MSG_CMSG_CLOEXEC: Final = 0x4000_0000

SOL_SOCKET: Final = 1
SO_REUSEADDR: Final = 2
SO_TYPE: Final = 3
SO_ERROR: Final = 4
SO_DONTROUTE: Final = 5
SO_BROADCAST: Final = 6
SO_SNDBUF: Final = 7
SO_RCVBUF: Final = 8
SO_KEEPALIVE: Final = 9
SO_OOBINLINE: Final = 10
SO_PRIORITY: Final = 12
SO_LINGER: Final = 13
SO_REUSEPORT: Final = 15
SO_PASSCRED: Final = 16
SO_PEERCRED: Final = 17
SO_RCVLOWAT: Final = 18
SO_SNDLOWAT: Final = 19
SO_RCVTIMEO: Final = 20
SO_SNDTIMEO: Final = 21
SO_ACCEPTCONN: Final = 30
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_PROTOCOL: Final = 38
SO_DOMAIN: Final = 39
SO_PEEK_OFF: Final = 42
SO_PEERGROUPS: Final = 59

# Options that are on or off. All but SO_PASSCRED say what a network should do: on a local socket
# they are kept for those who ask, as in Linux.
_SWITCHES: Final = frozenset(
    (SO_REUSEADDR, SO_DONTROUTE, SO_BROADCAST, SO_KEEPALIVE, SO_OOBINLINE, SO_PASSCRED)
)
_SNDBUF_MIN: Final = 4608
_RCVBUF_MIN: Final = 2304
_INT_MAX: Final = (1 << 31) - 1
_PRIORITY_MAX: Final = 6  # without privileges
_NOBODY: Final = (1 << 32) - 1
SOMAXCONN: Final = 4096  # connections that a listener lets wait at most

POLL_CHANGED: Final = POLL_READABLE | POLL_WRITABLE | POLLWRBAND | POLLPRI | POLLRDHUP | POLLERR | (
    POLLHUP
)  # fmt: skip

_US: Final = 1000
_SEC: Final = 1_000_000_000


class Msg:
    """What goes with the data of sendmsg and recvmsg (struct msghdr, without the data)."""

    __slots__ = ("msg_cred", "msg_flags", "msg_name", "msg_passcred", "msg_rights")

    msg_name: bytes | None  # send: where to; None: not given. Receive: where from, maybe empty
    msg_flags: int  # receive: MSG_TRUNC, MSG_CTRUNC
    msg_cred: tuple[int, int, int] | None  # send: who one says one is. Receive: who sent it
    msg_passcred: bool  # receive: the receiver wants to know who
    msg_rights: Rights | None  # files; the receiver's own references once it has them

    def __init__(self) -> None:
        self.msg_name = None
        self.msg_flags = 0
        self.msg_cred = None
        self.msg_passcred = False
        self.msg_rights = None

    def drop_rights(self) -> None:
        """Nobody wants the files. May block."""
        rights, self.msg_rights = self.msg_rights, None
        if rights is not None:
            for fp in rights.r_files:
                fp.fdrop()


class Socket:
    """A communication endpoint. It lives as long as its file, or as the listener whose connection
    it is going to be; others may still point at it then, and see so_dead."""

    __slots__ = ("so_atime", "so_ctime", "so_dead", "so_error", "so_file", "so_gid", "so_kq",
                 "so_linger", "so_mode", "so_mtime", "so_options", "so_peekoff", "so_peercred",
                 "so_peerwait", "so_priority",
                 "so_qlimit", "so_rcv", "so_serial", "so_shutdown", "so_snd",
                 "so_state", "so_table", "so_type", "so_uid")  # fmt: skip

    so_domain: ClassVar[int]  # AF_*

    so_table: FileTable
    so_type: int  # SOCK_*; never changes
    so_state: int  # SS_*
    so_shutdown: int  # SHUT_*: ways that are closed
    so_error: int  # an error that the next call gets; 0 none
    so_options: int  # bit n: option n is on (_SWITCHES)
    so_linger: tuple[int, int]  # SO_LINGER as it was set
    so_priority: int  # SO_PRIORITY likewise
    so_peekoff: int  # where MSG_PEEK looks (SO_PEEK_OFF); -1: at the front, always
    so_qlimit: int  # messages or connections that others may put into so_rcv
    so_rcv: Sockbuf
    so_snd: Sockbuf
    so_peerwait: object  # wait channel of those who want to put something into so_rcv
    so_peercred: tuple[int, Ucred] | None  # pid and rights of the other side, as of its connecting
    so_kq: Kqinfo  # who polls it
    so_file: SocketFile | None  # its open file; None before accept
    so_dead: bool  # closed
    so_serial: int  # inode number
    so_mode: int  # permission bits of the inode; bind gives them to the file it makes
    so_uid: int
    so_gid: int
    so_atime: int  # ns: the inode's times, which only fchmod and its kin change
    so_mtime: int
    so_ctime: int

    def __init__(self, table: FileTable, kind: int, uid: int, gid: int) -> None:
        self.so_table = table
        self.so_type = kind
        self.so_state = SS_UNCONNECTED
        self.so_shutdown = self.so_error = self.so_options = self.so_priority = 0
        self.so_linger = (0, 0)
        self.so_peekoff = -1
        self.so_qlimit = 0
        self.so_rcv = Sockbuf()
        self.so_snd = Sockbuf()
        self.so_peerwait = object()
        self.so_peercred = None
        self.so_kq = Kqinfo()
        self.so_file = None
        self.so_dead = False
        self.so_serial = table.new_serial()
        self.so_mode = 0o777
        self.so_uid = uid
        self.so_gid = gid
        self.so_atime = self.so_mtime = self.so_ctime = time_ns()

    # -- what a protocol provides -----------------------------------------------------------------
    # Names are what the user gave, a whole sockaddr. Calls may block where that is said.

    def pru_bind(self, lwp: Lwp, name: bytes) -> None:
        """Give the socket the name."""
        raise err(EOPNOTSUPP)

    def pru_listen(self, lwp: Lwp, backlog: int) -> None:
        """Take connections from now on."""
        raise err(EOPNOTSUPP)

    def pru_connect(self, lwp: Lwp, name: bytes, nonblock: bool) -> None:
        """Connect to who has the name. May block."""
        raise err(EOPNOTSUPP)

    def pru_connect2(self, lwp: Lwp, other: Socket) -> None:
        """Connect two new sockets with each other."""
        raise err(EOPNOTSUPP)

    def pru_accept(self, nonblock: bool) -> Socket:
        """The next connection of a listener, which is the caller's. May block."""
        raise err(EOPNOTSUPP)

    def pru_sockaddr(self) -> bytes:
        """The socket's own name."""
        raise err(EOPNOTSUPP)

    def pru_peeraddr(self) -> bytes:
        """The name of whom it is connected with."""
        raise err(EOPNOTSUPP)

    def pru_send(self, lwp: Lwp, uio: Uio, msg: Msg, flags: int) -> int:
        """Send what uio has; returns how much was sent. Its rights are taken, or the caller's
        when it fails. May block."""
        raise err(EOPNOTSUPP)

    def pru_recv(self, uio: Uio, msg: Msg, flags: int) -> int:
        """Receive into uio; returns what recv(2) does. May block."""
        raise err(EOPNOTSUPP)

    def pru_shutdown(self, ways: int) -> None:
        """Close one way or both (SHUT_*)."""
        raise err(EOPNOTSUPP)

    def pru_detach(self) -> None:
        """The socket's file is closed. May block."""
        raise NotImplementedError

    def pru_inq(self) -> int:
        """FIONREAD."""
        raise err(EOPNOTSUPP)

    # -- readiness --------------------------------------------------------------------------------

    def sowriteable(self) -> bool:
        """Whether there is enough room to tell those who poll: three quarters of it."""
        return self.so_state != SS_LISTENING and 4 * self.so_snd.sb_cc <= self.so_snd.sb_hiwat

    def sopoll(self) -> int:
        """The POLL* events that are true now."""
        events = POLLERR if self.so_error else 0
        shut = self.so_shutdown
        if shut & SHUT_RCV:
            events |= POLLRDHUP | POLL_READABLE
            if shut & SHUT_SND:
                events |= POLLHUP
        if self.so_rcv.sb_mb:
            events |= POLL_READABLE
        if self.so_type != SOCK_DGRAM and self.so_state == SS_UNCONNECTED:
            events |= POLLHUP
        if self.sowriteable():
            events |= POLL_WRITABLE | POLLWRBAND
        return events

    def sorwakeup(self) -> None:
        """Something can be received."""
        self.so_table.sched.wakeup(self.so_rcv)
        self.so_kq.knote(POLL_READABLE)

    def sowwakeup(self) -> None:
        """There may be room to send."""
        self.so_table.sched.wakeup(self.so_snd)
        self.so_kq.knote(POLL_WRITABLE | POLLWRBAND)

    def sostatechange(self) -> None:
        """A way was closed, or there is an error: everybody is to look."""
        self.so_table.sched.wakeup(self.so_snd)
        self.so_table.sched.wakeup(self.so_rcv)
        self.so_kq.knote(POLL_CHANGED)

    # -- waiting ----------------------------------------------------------------------------------

    def soerror(self) -> None:
        """Raise the error that waits to be told, which is told once."""
        if self.so_error:
            error, self.so_error = self.so_error, 0
            raise err(error)

    def sleep(self, channel: object, deadline: int | None, wmesg: str) -> None:
        """Wait to be woken. May return for no reason, but not for ever once `deadline` (of
        sodeadline) is over.

        :raises OSError: EAGAIN when it is, EINTR, ERESTART
        """
        timeout = 0
        if deadline is not None:
            timeout = deadline - monotonic_ns() if deadline else 0
            if timeout <= 0:
                raise err(EAGAIN)
        error = self.so_table.sched.tsleep_ns(channel, PCATCH, wmesg, timeout)
        if error and error != EWOULDBLOCK:
            raise err(error if deadline is None else EINTR)

    def sblock(self) -> None:
        """Take the lock of so_rcv, which keeps its first messages there. Not to be interrupted:
        whoever has it copies to its memory, and does not wait for data meanwhile."""
        rcv = self.so_rcv
        while rcv.sb_locked:
            self.so_table.sched.tsleep((rcv, "lock"), 0, "sblock")
        rcv.sb_locked = True

    def sbunlock(self) -> None:
        """Give it up."""
        self.so_rcv.sb_locked = False
        self.so_table.sched.wakeup((self.so_rcv, "lock"))

    # -- charging ---------------------------------------------------------------------------------

    def charge(self, size: int) -> None:
        """A message of this size is under way from here."""
        self.so_snd.sb_cc += size
        self.so_table.so_charged += size

    def uncharge(self, size: int) -> None:
        """It is not any more: there may be room."""
        self.so_snd.sb_cc -= size
        self.so_table.so_charged -= size
        if not self.so_dead and self.sowriteable():
            self.sowwakeup()

    def m_free(self, m: Mbuf) -> None:
        """`m` was received or is thrown away; it is in no queue."""
        m.m_owner.uncharge(m.m_size)


def sodeadline(timeo: int, nonblock: bool) -> int | None:
    """When one who starts to wait now, on a buffer with this sb_timeo, gives up: monotonic ns; 0 at
    once, None never."""
    if nonblock:
        return 0
    return monotonic_ns() + timeo if timeo else None


# -- options --------------------------------------------------------------------------------------


def _timeval(ns: int) -> bytes:
    sec, rest = divmod(ns, _SEC)
    return pack("<qq", sec, rest // _US)


def sogetopt(so: Socket, name: int) -> bytes:
    """The value of an option at level SOL_SOCKET.

    :raises OSError: ENOPROTOOPT; ENODATA for SO_PEERGROUPS of nobody
    """
    if name in _SWITCHES:
        return pack("<i", so.so_options >> name & 1)
    if name == SO_ERROR:
        error, so.so_error = so.so_error, 0
        return pack("<i", error)
    if name == SO_LINGER:
        return pack("<ii", *so.so_linger)
    if name in (SO_RCVTIMEO, SO_SNDTIMEO):
        return _timeval((so.so_rcv if name == SO_RCVTIMEO else so.so_snd).sb_timeo)
    peer = so.so_peercred
    if name == SO_PEERCRED:
        if peer is None:
            return pack("<iII", 0, _NOBODY, _NOBODY)
        return pack("<iII", peer[0], peer[1].cr_uid, peer[1].cr_gid)
    if name == SO_PEERGROUPS:
        if peer is None:
            raise err(ENODATA)
        return pack(f"<{len(peer[1].cr_groups)}I", *peer[1].cr_groups)
    values = {
        SO_TYPE: so.so_type,
        SO_SNDBUF: so.so_snd.sb_hiwat,
        SO_RCVBUF: so.so_rcv.sb_hiwat,
        SO_PRIORITY: so.so_priority,
        SO_REUSEPORT: 0,
        SO_RCVLOWAT: so.so_rcv.sb_lowat,
        SO_SNDLOWAT: 1,
        SO_ACCEPTCONN: int(so.so_state == SS_LISTENING),
        SO_PROTOCOL: 0,
        SO_DOMAIN: so.so_domain,
        SO_PEEK_OFF: so.so_peekoff,
    }
    if name not in values:
        raise err(ENOPROTOOPT)
    return pack("<i", values[name])


def sosetopt(so: Socket, lwp: Lwp, name: int, value: bytes) -> None:
    """Set an option at level SOL_SOCKET.

    :raises OSError: EINVAL, ENOPROTOOPT, EDOM, EPERM, EOPNOTSUPP
    """
    if len(value) < 4:
        raise err(EINVAL)
    (n,) = unpack_from("<i", value)
    if name in _SWITCHES:
        so.so_options = so.so_options & ~(1 << name) | bool(n) << name
    elif name in (SO_SNDBUF, SO_SNDBUFFORCE):
        so.so_snd.sb_hiwat = _bufsize(lwp, n, name == SO_SNDBUFFORCE, _SNDBUF_MIN)
        so.sowwakeup()
    elif name in (SO_RCVBUF, SO_RCVBUFFORCE):
        so.so_rcv.sb_hiwat = _bufsize(lwp, n, name == SO_RCVBUFFORCE, _RCVBUF_MIN)
    elif name in (SO_RCVTIMEO, SO_SNDTIMEO):
        (so.so_rcv if name == SO_RCVTIMEO else so.so_snd).sb_timeo = _timeo(value)
    elif name == SO_LINGER:
        if len(value) < 8:
            raise err(EINVAL)
        onoff, linger = unpack_from("<ii", value)
        so.so_linger = (int(bool(onoff)), linger if onoff else so.so_linger[1])
    elif name == SO_PRIORITY:
        if not 0 <= n <= _PRIORITY_MAX and not lwp.lwp_proc.p_ucred.cr_cap_e & CAP_NET_ADMIN:
            raise err(EPERM)
        so.so_priority = n
    elif name == SO_RCVLOWAT:
        so.so_rcv.sb_lowat = _INT_MAX if n < 0 else n or 1
    elif name == SO_PEEK_OFF:
        so.so_peekoff = n
    elif name == SO_REUSEPORT:
        if n:
            raise err(EOPNOTSUPP)
    else:
        raise err(ENOPROTOOPT)


def _bufsize(lwp: Lwp, n: int, force: bool, least: int) -> int:
    """The size of a buffer for which `n` bytes were asked: Linux gives twice that, for what it
    charges beside the data."""
    if force:
        if not lwp.lwp_proc.p_ucred.cr_cap_e & CAP_NET_ADMIN:
            raise err(EPERM)
        n = max(n, 0)
    else:
        n = min(n & (1 << 32) - 1, SB_MAX)
    return max(2 * min(n, _INT_MAX // 2), least)


def _timeo(value: bytes) -> int:
    """A struct timeval in ns; a negative one waits for no time at all."""
    if len(value) < 16:
        raise err(EINVAL)
    sec, usec = unpack_from("<qq", value)
    if not 0 <= usec < 1_000_000:
        raise err(EDOM)
    if sec < 0:
        return 1
    return int(min(sec * _SEC + usec * _US, 1 << 61))
