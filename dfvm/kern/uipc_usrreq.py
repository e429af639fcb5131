"""Local sockets (AF_UNIX): streams, datagrams and packets between the machine's own processes.

Two connected sockets point at each other (unp_conn), and what one sends goes into the receive
buffer of the other. A datagram socket may point at one that does not point back; that one knows
those in unp_refs. A listener's receive buffer holds connections: sockets that nobody has accepted
yet, which their clients can send to.

A name is a file (the vnode's v_socket) or, beginning with a zero byte, a string that exists nowhere
else (UnixDomain.un_names).

uipc_rights.py keeps account of the files that are sent, uipc_check.py verifies everything here.

Source: DragonFly sys/kern/uipc_usrreq.c; behaviour of Linux net/unix/af_unix.c, net/core/datagram.c
and net/core/scm.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from dfvm.kern.kern_caps import CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_RESOURCE
from dfvm.kern.kern_descrip import nofile, signal_self
from dfvm.kern.kern_errno import (
    EADDRINUSE,
    ECONNREFUSED,
    ECONNRESET,
    EEXIST,
    EINVAL,
    EISCONN,
    EMSGSIZE,
    ENOBUFS,
    ENOSPC,
    ENOTCONN,
    EOPNOTSUPP,
    EPERM,
    EPIPE,
    EPROTOTYPE,
    ESRCH,
    ETOOMANYREFS,
    err,
)
from dfvm.kern.kern_event import POLL_WRITABLE, POLLWRBAND
from dfvm.kern.kern_sig import SIGPIPE
from dfvm.kern.uipc_rights import unix_domain
from dfvm.kern.uipc_sockbuf import Mbuf, Rights, mbuf_size
from dfvm.kern.uipc_socket import (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_OOB,
    MSG_PEEK,
    MSG_TRUNC,
    MSG_WAITALL,
    SHUT_RCV,
    SHUT_SND,
    SO_PASSCRED,
    SOCK_DGRAM,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOMAXCONN,
    SS_CONNECTED,
    SS_LISTENING,
    SS_UNCONNECTED,
    Socket,
    sodeadline,
)
from dfvm.kern.vfs.namei import NAMEI_FOLLOW, namei, nameiat
from dfvm.kern.vfs.vnode_param import VSOCK, VWRITE
from dfvm.vm.copyio import uiomove, uioread

if TYPE_CHECKING:
    from dfvm.kern.kern_descrip import FileTable
    from dfvm.kern.proc import Lwp
    from dfvm.kern.uipc_socket import Msg
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.vm.copyio import Uio

AF_UNSPEC: Final = 0
AF_UNIX: Final = 1

_FAMILY: Final = AF_UNIX.to_bytes(2, "little")  # how a struct sockaddr_un begins
_SOCKADDR_UN: Final = 110  # sizeof
_AUTOBIND_NAMES: Final = 1 << 20  # abstract names of five digits

_LINEAR: Final = 3776  # bytes of a stream's piece that lie beside one another (SKB_MAX_HEAD)
_CHUNK: Final = _LINEAR + 32768  # bytes of one piece
_DGRAM_LINEAR: Final = 16064  # the same of a datagram (SKB_MAX_ALLOC)
_DGRAM_PAGED: Final = 17 * 4096  # what of it is in pages; the rest is in one allocation again
_DGRAM_EXTRA: Final = 32  # that the send buffer is to have room for beside a datagram

MAX_DGRAM_QLEN: Final = 10  # messages that wait in a datagram socket for one not connected with it

_PAGE: Final = 4096


class UnixSocket(Socket):
    """A local socket of any type."""

    __slots__ = ("unp_conn", "unp_name", "unp_refs", "unp_vnode")

    so_domain: ClassVar[int] = AF_UNIX

    unp_conn: UnixSocket | None  # whom it is connected with; may be dead, but for datagrams
    unp_refs: dict[UnixSocket, None]  # who is connected with it
    unp_name: bytes  # its address; empty: it has none
    unp_vnode: Vnode | None  # the file it is bound to, referenced

    def __init__(self, table: FileTable, kind: int, uid: int, gid: int) -> None:
        super().__init__(table, kind, uid, gid)
        self.unp_conn = None
        self.unp_refs = {}
        self.unp_name = b""
        self.unp_vnode = None
        self.so_qlimit = MAX_DGRAM_QLEN
        unix_domain(table).un_sockets[self] = None

    # -- names ------------------------------------------------------------------------------------

    def pru_bind(self, lwp: Lwp, name: bytes) -> None:
        if name == _FAMILY:
            self._autobind()
            return
        path = _check_name(name)
        if path[:1] != b"\0":
            self._bind_file(lwp, path.partition(b"\0")[0])
            return
        if self.unp_name:
            raise err(EINVAL)
        names = unix_domain(self.so_table).un_names
        if (self.so_type, name) in names:
            raise err(EADDRINUSE)
        names[self.so_type, name] = self
        self.unp_name = name

    def _autobind(self) -> None:
        """An abstract name that is free."""
        if self.unp_name:
            return
        un = unix_domain(self.so_table)
        if len(un.un_names) >= _AUTOBIND_NAMES:
            raise err(ENOSPC)
        while True:
            un.un_number = (un.un_number + 1) % _AUTOBIND_NAMES
            name = _FAMILY + b"\0%05x" % un.un_number
            if (self.so_type, name) not in un.un_names:
                break
        un.un_names[self.so_type, name] = self
        self.unp_name = name

    def _bind_file(self, lwp: Lwp, path: bytes) -> None:
        p = lwp.lwp_proc
        nd = nameiat(p.p_fs.fs_rdir, p.p_fs.fs_cdir, path, p.p_ucred)
        try:
            nd.may_create(False)
        except OSError as e:
            raise err(EADDRINUSE) if e.errno == EEXIST else e from None
        if self.unp_name:
            raise err(EINVAL)
        mode = self.so_mode & ~p.p_fs.fs_cmask
        vp = nd.ni_dvp.mknod(nd.ni_name, VSOCK, mode, 0, p.p_ucred)
        vp.vref()
        vp.v_socket = self
        self.unp_vnode = vp
        self.unp_name = _FAMILY + path + b"\0"

    def pru_sockaddr(self) -> bytes:
        return self.unp_name or _FAMILY

    def pru_peeraddr(self) -> bytes:
        if self.unp_conn is None:
            raise err(ENOTCONN)
        return self.unp_conn.pru_sockaddr()

    def _find(self, lwp: Lwp, name: bytes, path: bytes) -> UnixSocket:
        """The socket of the same type that has the name.

        :raises OSError: ECONNREFUSED, EPROTOTYPE, and what looking for the file does
        """
        if path[:1] == b"\0":
            found = unix_domain(self.so_table).un_names.get((self.so_type, name))
            if found is None:
                raise err(ECONNREFUSED)
            return found
        p = lwp.lwp_proc
        path = path.partition(b"\0")[0]
        vp = namei(p.p_fs.fs_rdir, p.p_fs.fs_cdir, path, p.p_ucred, NAMEI_FOLLOW)
        vp.access(VWRITE, p.p_ucred)
        other: UnixSocket | None = vp.v_socket
        if vp.v_type != VSOCK or other is None:
            raise err(ECONNREFUSED)
        if other.so_type != self.so_type:
            raise err(EPROTOTYPE)
        return other

    # -- connections ------------------------------------------------------------------------------

    def pru_listen(self, lwp: Lwp, backlog: int) -> None:
        if self.so_type == SOCK_DGRAM:
            raise err(EOPNOTSUPP)
        if not self.unp_name or self.so_state == SS_CONNECTED:
            raise err(EINVAL)
        if not 0 <= backlog <= SOMAXCONN:
            backlog = SOMAXCONN
        if backlog > self.so_qlimit:
            self.so_table.sched.wakeup(self.so_peerwait)
        self.so_qlimit = backlog
        self.so_state = SS_LISTENING
        self.so_peercred = lwp.lwp_proc.p_pid, lwp.lwp_proc.p_ucred

    def pru_connect(self, lwp: Lwp, name: bytes, nonblock: bool) -> None:
        if len(name) < 2:
            raise err(EINVAL)
        if self.so_type != SOCK_DGRAM:
            self._connect_stream(lwp, name, nonblock)
            return
        other = None
        if int.from_bytes(name[:2], "little") != AF_UNSPEC:
            path = _check_name(name)
            if self.so_options >> SO_PASSCRED & 1:
                self._autobind()
            other = self._find(lwp, name, path)
            if not self._may_send(other):
                raise err(EPERM)
        self._disconnect()
        if other is not None:
            self.unp_conn = other
            other.unp_refs[self] = None
            self.so_state = SS_CONNECTED
        self.so_kq.knote(POLL_WRITABLE | POLLWRBAND)

    def _connect_stream(self, lwp: Lwp, name: bytes, nonblock: bool) -> None:
        path = _check_name(name)
        if self.so_options >> SO_PASSCRED & 1:
            self._autobind()
        deadline = sodeadline(self.so_snd.sb_timeo, nonblock)
        while True:
            other = self._find(lwp, name, path)
            if other.so_state != SS_LISTENING or other.so_shutdown & SHUT_RCV:
                raise err(ECONNREFUSED)
            if not other._full():
                break
            self.sleep(other.so_peerwait, deadline, "unpconn")
        if self.so_state != SS_UNCONNECTED:
            raise err(EISCONN if self.so_state == SS_CONNECTED else EINVAL)
        p = lwp.lwp_proc
        new = UnixSocket(self.so_table, self.so_type, p.p_ucred.cr_fsuid, p.p_ucred.cr_fsgid)
        new.so_options = other.so_options & 1 << SO_PASSCRED
        new.unp_name = other.unp_name
        new.so_peercred = p.p_pid, p.p_ucred
        self.so_peercred = other.so_peercred
        self._join(new)
        m = Mbuf(new, b"", mbuf_size(1))
        m.m_conn = new
        new.charge(m.m_size)
        other.so_rcv.sb_mb.append(m)
        other.sorwakeup()

    def _join(self, other: UnixSocket) -> None:
        self.unp_conn, other.unp_conn = other, self
        self.unp_refs[other] = other.unp_refs[self] = None
        self.so_state = other.so_state = SS_CONNECTED

    def pru_connect2(self, lwp: Lwp, other: Socket) -> None:
        assert isinstance(other, UnixSocket)
        self.so_peercred = other.so_peercred = lwp.lwp_proc.p_pid, lwp.lwp_proc.p_ucred
        self._join(other)

    def pru_accept(self, nonblock: bool) -> Socket:
        if self.so_type == SOCK_DGRAM:
            raise err(EOPNOTSUPP)
        if self.so_state != SS_LISTENING:
            raise err(EINVAL)
        deadline = sodeadline(self.so_rcv.sb_timeo, nonblock)
        queue = self.so_rcv.sb_mb
        while not queue:
            if self.so_shutdown & SHUT_RCV:
                raise err(EINVAL)
            self.sleep(self.so_rcv, deadline, "accept")
        m = queue.popleft()
        self.m_free(m)
        self.so_table.sched.wakeup(self.so_peerwait)
        assert m.m_conn is not None
        return m.m_conn

    def _disconnect(self) -> None:
        """A datagram socket is about to have another partner, or none: what the old one has sent is
        forgotten, and it is told if it was connected with us."""
        other, self.unp_conn = self.unp_conn, None
        self.so_state = SS_UNCONNECTED
        if other is None:
            return
        other.unp_refs.pop(self, None)
        if self.so_rcv.sb_mb:
            self._flush()
            self._room()
            if other.unp_conn is self:
                other.so_error = ECONNRESET
                other.sostatechange()

    def pru_shutdown(self, ways: int) -> None:
        self.so_shutdown |= ways
        self.sostatechange()
        other = self.unp_conn
        if other is not None and self.so_type != SOCK_DGRAM and not other.so_dead:
            theirs = (SHUT_SND if ways & SHUT_RCV else 0) | (SHUT_RCV if ways & SHUT_SND else 0)
            other.so_shutdown |= theirs
            other.sostatechange()

    # -- the end ----------------------------------------------------------------------------------

    def pru_detach(self) -> None:
        table = self.so_table
        un = unix_domain(table)
        self._close(reset=False)
        vp, self.unp_vnode = self.unp_vnode, None
        if vp is not None:
            vp.v_socket = None
            vp.vrele()
        un.discard([])

    def _close(self, reset: bool) -> None:
        """Everything about closing that does not block. `reset`: it was never accepted."""
        un = unix_domain(self.so_table)
        listening = self.so_state == SS_LISTENING
        self.so_dead = True
        self.so_state = SS_UNCONNECTED
        self.so_shutdown = SHUT_RCV | SHUT_SND
        del un.un_sockets[self]
        if un.un_names.get((self.so_type, self.unp_name)) is self:
            del un.un_names[self.so_type, self.unp_name]
        other, self.unp_conn = self.unp_conn, None
        if other is not None:
            other.unp_refs.pop(self, None)
            if self.so_type != SOCK_DGRAM and not other.so_dead:
                if self.so_rcv.sb_mb or reset:
                    other.so_error = ECONNRESET
                other.so_shutdown = SHUT_RCV | SHUT_SND
                other.sostatechange()
        if listening:
            for m in self.so_rcv.sb_mb:
                assert isinstance(m.m_conn, UnixSocket)
                m.m_conn._close(reset=True)
        self._flush()
        self._room()

    def _flush(self) -> None:
        """Throw away what waits to be received. The files that come with it are left for
        UnixDomain.discard."""
        un = unix_domain(self.so_table)
        queue = self.so_rcv.sb_mb
        while queue:
            m = queue.popleft()
            if m.m_rights is not None:
                un.dequeue(m.m_rights)
                un.un_doomed += m.m_rights.r_files
            self.m_free(m)
        self.so_rcv.sb_cc = 0

    # -- sending ----------------------------------------------------------------------------------

    def _full(self) -> bool:
        """Whether those who are not connected with it must wait."""
        return len(self.so_rcv.sb_mb) > self.so_qlimit

    def _room(self) -> None:
        """Something was taken from the receive buffer: those may go on who wait for room there,
        and poll says so."""
        self.so_table.sched.wakeup(self.so_peerwait)
        for so in self.unp_refs:
            if so is not self.unp_conn:
                so.so_kq.knote(POLL_WRITABLE | POLLWRBAND)

    def _may_send(self, other: UnixSocket) -> bool:
        """One that is connected takes datagrams from its partner only."""
        return other.unp_conn is None or other.unp_conn is self

    def sopoll(self) -> int:
        events = super().sopoll()
        other = self.unp_conn
        if (
            events & POLL_WRITABLE and self.so_type != SOCK_STREAM
            and other is not None and other.unp_conn is not self and other._full()
        ):  # fmt: skip
            events &= ~(POLL_WRITABLE | POLLWRBAND)
        return events

    def _reserve(self, size: int, deadline: int | None) -> None:
        """Wait for room in the send buffer, and charge it with `size`. May block.

        :raises OSError: the socket's error, EPIPE, ENOBUFS, EAGAIN, EINTR, ERESTART
        """
        snd = self.so_snd
        while True:
            self.soerror()
            if self.so_shutdown & SHUT_SND:
                raise err(EPIPE)
            if snd.sb_cc < snd.sb_hiwat:
                break
            self.sleep(snd, deadline, "sbwait")
        if self.so_table.so_charged + size > self.so_table.vm.ram.size // 2:
            raise err(ENOBUFS)
        self.charge(size)

    def _label(self, lwp: Lwp, m: Mbuf, msg: Msg, other: UnixSocket) -> None:
        """Who sent it, if one of the two wants that said."""
        m.m_name = self.unp_name
        m.m_cred = msg.msg_cred
        if m.m_cred is None and (self.so_options | other.so_options) >> SO_PASSCRED & 1:
            p = lwp.lwp_proc
            m.m_cred = p.p_pid, p.p_ucred.cr_ruid, p.p_ucred.cr_rgid

    def _deliver(self, m: Mbuf, other: UnixSocket) -> None:
        if m.m_rights is not None:
            unix_domain(self.so_table).enqueue(m.m_rights, other)
        other.so_rcv.sb_mb.append(m)
        other.so_rcv.sb_cc += len(m.m_data)
        other.sorwakeup()

    def pru_send(self, lwp: Lwp, uio: Uio, msg: Msg, flags: int) -> int:
        if flags & MSG_OOB:
            raise err(EOPNOTSUPP)
        _check_sender(lwp, msg)
        if self.so_type == SOCK_STREAM:
            return self._send_stream(lwp, uio, msg, flags)
        if self.so_type == SOCK_SEQPACKET:
            self.soerror()
            if self.so_state != SS_CONNECTED:
                raise err(ENOTCONN)
            msg.msg_name = None
        return self._send_dgram(lwp, uio, msg, flags)

    def _send_stream(self, lwp: Lwp, uio: Uio, msg: Msg, flags: int) -> int:
        if msg.msg_name:
            raise err(EISCONN if self.so_state == SS_CONNECTED else EOPNOTSUPP)
        other = self.unp_conn
        if other is None:
            raise err(ENOTCONN)
        deadline = sodeadline(self.so_snd.sb_timeo, bool(flags & MSG_DONTWAIT))
        wanted = uio.uio_resid
        if not wanted and self.so_shutdown & SHUT_SND:
            _broken(lwp, flags)
        while uio.uio_resid:
            left = uio.uio_resid
            if self.so_shutdown & SHUT_SND:
                if left != wanted:
                    break
                _broken(lwp, flags)
            # No piece may fill the buffer, so that two are under way at a time.
            n = min(left, max((self.so_snd.sb_hiwat >> 1) - 64, 1), _CHUNK)
            paged = min(n, max(n - _LINEAR, 0) + _PAGE - 1 & -_PAGE)
            size = mbuf_size(n - paged, paged)
            try:
                self._reserve(size, deadline)
                try:
                    m = Mbuf(self, uioread(uio, n), size)
                except OSError:
                    self.uncharge(size)
                    raise
            except OSError:
                uio.uio_resid = left
                if left == wanted:
                    raise
                break
            if other.so_dead or other.so_shutdown & SHUT_RCV:
                uio.uio_resid = left
                self.uncharge(size)
                if left != wanted:
                    break
                _broken(lwp, flags)
            self._label(lwp, m, msg, other)
            m.m_rights, msg.msg_rights = msg.msg_rights, None
            self._deliver(m, other)
        return wanted - uio.uio_resid

    def _send_dgram(self, lwp: Lwp, uio: Uio, msg: Msg, flags: int) -> int:
        name, path = msg.msg_name, b""
        if name:
            path = _check_name(name)
        if self.so_options >> SO_PASSCRED & 1:
            self._autobind()
        n = uio.uio_resid
        if n > self.so_snd.sb_hiwat - _DGRAM_EXTRA:
            raise err(EMSGSIZE)
        paged = 0
        if n > _DGRAM_LINEAR:
            paged = min(n - _DGRAM_LINEAR, _DGRAM_PAGED) + _PAGE - 1 & -_PAGE
        deadline = sodeadline(self.so_snd.sb_timeo, bool(flags & MSG_DONTWAIT))
        size = mbuf_size(n - paged, paged)
        self._reserve(size, deadline)
        try:
            m = Mbuf(self, uioread(uio, n), size)
            other = self._receiver(lwp, name, path, deadline)
        except OSError:
            self.uncharge(size)
            raise
        self._label(lwp, m, msg, other)
        m.m_rights, msg.msg_rights = msg.msg_rights, None
        self._deliver(m, other)
        return n

    def _receiver(
        self, lwp: Lwp, name: bytes | None, path: bytes, deadline: int | None
    ) -> UnixSocket:
        """Who gets a datagram, once there is room for it. May block."""
        while True:
            other = self._find(lwp, name, path) if name else self.unp_conn
            if other is None:
                raise err(ENOTCONN)
            if not self._may_send(other):
                raise err(EPERM)
            if other.so_dead:
                if self.so_type == SOCK_DGRAM:
                    self._disconnect()
                raise err(ECONNREFUSED)
            if other.so_shutdown & SHUT_RCV:
                raise err(EPIPE)
            if other is self or other.unp_conn is self or not other._full():
                return other
            self.sleep(other.so_peerwait, deadline, "unpsend")

    # -- receiving --------------------------------------------------------------------------------

    def pru_inq(self) -> int:
        if self.so_state == SS_LISTENING:
            raise err(EINVAL)
        queue = self.so_rcv.sb_mb
        if self.so_type == SOCK_DGRAM:
            return queue[0].left() if queue else 0
        return self.so_rcv.sb_cc

    def pru_recv(self, uio: Uio, msg: Msg, flags: int) -> int:
        if self.so_type == SOCK_STREAM:
            if self.so_state != SS_CONNECTED:
                raise err(EINVAL)
            if flags & MSG_OOB:
                raise err(EOPNOTSUPP)
            msg.msg_passcred = bool(self.so_options >> SO_PASSCRED & 1)
            self.sblock()
            try:
                return self._recv_stream(uio, msg, flags)
            finally:
                self.sbunlock()
        if self.so_type == SOCK_SEQPACKET and self.so_state != SS_CONNECTED:
            raise err(ENOTCONN)
        if flags & MSG_OOB:
            raise err(EOPNOTSUPP)
        return self._recv_dgram(uio, msg, flags)

    def _seek(self, skip: int) -> tuple[Mbuf | None, int]:
        """The message in which byte `skip` of what waits is, and where in it; None: behind it."""
        for m in self.so_rcv.sb_mb:
            if skip < m.left():
                return m, skip
            skip -= m.left()
        return None, 0

    def _recv_stream(self, uio: Uio, msg: Msg, flags: int) -> int:
        """Receive from a stream, with the lock of so_rcv, which is given up while it waits."""
        rcv = self.so_rcv
        wanted = uio.uio_resid
        peek = bool(flags & MSG_PEEK)
        target = wanted if flags & MSG_WAITALL else min(rcv.sb_lowat, wanted)
        target = target or 1
        deadline = sodeadline(rcv.sb_timeo, bool(flags & MSG_DONTWAIT))
        begin = self.so_peekoff if peek and self.so_peekoff > 0 else 0
        labelled = False
        while True:
            copied = wanted - uio.uio_resid
            m, at = self._seek(begin + copied if peek else 0)
            if m is None:
                try:
                    if copied >= target or not self._await_stream(deadline):
                        break
                except OSError:
                    if not copied:
                        raise
                    break
                continue
            # What different senders have sent is never put together.
            if not labelled:
                msg.msg_name = m.m_name
                msg.msg_cred = m.m_cred
                labelled = True
            elif msg.msg_passcred and msg.msg_cred != m.m_cred:
                break
            at += m.m_off
            left = uio.uio_resid
            n = min(left, len(m.m_data) - at)
            try:
                uiomove(memoryview(m.m_data)[at : at + n], uio)
            except OSError:
                uio.uio_resid = left
                if not copied:
                    raise
                break
            if peek:
                if m.m_rights is not None:
                    msg.msg_rights = _copy_rights(m.m_rights)
                    break
            else:
                m.m_off += n
                rcv.sb_cc -= n
                rights, m.m_rights = m.m_rights, None
                if rights is not None:
                    unix_domain(self.so_table).dequeue(rights)
                    msg.msg_rights = rights
                if m.left():
                    break
                rcv.sb_mb.popleft()
                self.m_free(m)
                if rights is not None:
                    break
            if not uio.uio_resid:
                break
        copied = wanted - uio.uio_resid
        self._peeked(copied, peek)
        return copied

    def _await_stream(self, deadline: int | None) -> bool:
        """Wait, without the lock, for something to receive. False: nothing will come.

        :raises OSError: the socket's error, EAGAIN, EINTR, ERESTART
        """
        self.soerror()
        if self.so_shutdown & SHUT_RCV:
            return False
        self.sbunlock()
        try:
            self.sleep(self.so_rcv, deadline, "sbwait")
        finally:
            self.sblock()
        return True

    def _peeked(self, n: int, peek: bool) -> None:
        """SO_PEEK_OFF follows what was looked at, and what was taken from before it."""
        if self.so_peekoff >= 0:
            self.so_peekoff = self.so_peekoff + n if peek else max(self.so_peekoff - n, 0)

    def _recv_dgram(self, uio: Uio, msg: Msg, flags: int) -> int:
        peek = bool(flags & MSG_PEEK)
        queue = self.so_rcv.sb_mb
        deadline = sodeadline(self.so_rcv.sb_timeo, bool(flags & MSG_DONTWAIT))
        while True:
            self.soerror()
            begin = self.so_peekoff if peek and self.so_peekoff > 0 else 0
            m = self._seek(begin)[0] if begin else queue[0] if queue else None
            if m is not None:
                break
            if self.so_shutdown & SHUT_RCV and (deadline != 0 or self.so_type == SOCK_SEQPACKET):
                return 0
            if self.so_type == SOCK_SEQPACKET and self.so_state != SS_CONNECTED:
                raise err(ENOTCONN)
            self.sleep(self.so_rcv, deadline, "sbwait")
        msg.msg_passcred = bool(self.so_options >> SO_PASSCRED & 1)
        msg.msg_name = m.m_name
        msg.msg_cred = m.m_cred
        if begin:
            _, begin = self._seek(begin)
        if peek:
            if m.m_rights is not None:
                msg.msg_rights = _copy_rights(m.m_rights)
        else:
            was_full = self._full()
            queue.popleft()
            self.so_rcv.sb_cc -= len(m.m_data)
            if m.m_rights is not None:
                unix_domain(self.so_table).dequeue(m.m_rights)
                msg.msg_rights, m.m_rights = m.m_rights, None
            if was_full:
                self._room()
        size = len(m.m_data) - begin
        n = min(size, uio.uio_resid)
        if n < size:
            msg.msg_flags |= MSG_TRUNC
        try:
            uiomove(memoryview(m.m_data)[begin : begin + n], uio)
        finally:
            if not peek:
                self.m_free(m)
        self._peeked(n if peek else size, peek)
        return size if flags & MSG_TRUNC else n


def _check_name(name: bytes) -> bytes:
    """The path, or abstract name, of an address.

    :raises OSError: EINVAL
    """
    if not 2 < len(name) <= _SOCKADDR_UN or name[:2] != _FAMILY:
        raise err(EINVAL)
    return name[2:]


def _broken(lwp: Lwp, flags: int) -> None:
    """Nobody will ever receive what is sent."""
    if not flags & MSG_NOSIGNAL:
        signal_self(lwp, SIGPIPE)
    raise err(EPIPE)


def _check_sender(lwp: Lwp, msg: Msg) -> None:
    """What one says of oneself must be true, and one may not have too many files under way.

    :raises OSError: EPERM, ESRCH, ETOOMANYREFS
    """
    p = lwp.lwp_proc
    cred = p.p_ucred
    if msg.msg_cred is not None:
        pid, uid, gid = msg.msg_cred
        if not (
            (pid == p.p_pid or cred.cr_cap_e & CAP_SYS_ADMIN)
            and (uid in (cred.cr_ruid, cred.cr_uid, cred.cr_svuid) or cred.cr_cap_e & CAP_SETUID)
            and (gid in (cred.cr_rgid, cred.cr_gid, cred.cr_svgid) or cred.cr_cap_e & CAP_SETGID)
        ):
            raise err(EPERM)
        if pid not in p.kernel.procs:
            raise err(ESRCH)
    if msg.msg_rights is not None:
        un = unix_domain(p.p_fd.fd_table)
        if un.un_files[msg.msg_rights.r_uid] > nofile(p):
            if not cred.cr_cap_e & (CAP_SYS_RESOURCE | CAP_SYS_ADMIN):
                raise err(ETOOMANYREFS)


def _copy_rights(rights: Rights) -> Rights:
    """More references to files that stay under way, for one who only looks."""
    for fp in rights.r_files:
        fp.fhold()
    return Rights(rights.r_files.copy(), rights.r_uid)
