"""The system calls about sockets.

Source: DragonFly sys/kern/uipc_syscalls.c for the structure; arguments and errors of Linux
net/socket.c, net/core/scm.c.
"""

from __future__ import annotations

from struct import Struct, pack
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import NS, TIMESPEC
from dfvm.kern.kern_descrip import O_CLOEXEC, O_NONBLOCK, nofile
from dfvm.kern.kern_errno import (
    EBADF,
    EINVAL,
    EMSGSIZE,
    ENOBUFS,
    ENOTSOCK,
    EOPNOTSUPP,
    ERANGE,
    err,
)
from dfvm.kern.sys_generic import IOV_MAX, user_iov, user_range
from dfvm.kern.sys_socket import SocketFile
from dfvm.kern.uipc_domain import socreate
from dfvm.kern.uipc_sockbuf import Rights
from dfvm.kern.uipc_socket import (
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_WAITFORONE,
    SO_PEERGROUPS,
    SOL_SOCKET,
    Msg,
    sogetopt,
    sosetopt,
)
from dfvm.vm.copyio import UIO_READ, UIO_WRITE, Uio, copyin, copyout, fuword32, suword32

if TYPE_CHECKING:
    from dfvm.kern.kern_descrip import File
    from dfvm.kern.proc import Lwp
    from dfvm.kern.uipc_socket import Socket

SOCK_TYPE_MASK: Final = 0xF
SOCK_NONBLOCK: Final = O_NONBLOCK
SOCK_CLOEXEC: Final = O_CLOEXEC

SCM_RIGHTS: Final = 1
SCM_CREDENTIALS: Final = 2
SCM_MAX_FD: Final = 253  # files that one message may carry

_SOCKADDR_MAX: Final = 128  # sizeof(struct sockaddr_storage)
_INT_MAX: Final = (1 << 31) - 1
_OPTMEM_MAX: Final = 131_072  # bytes of control messages that sendmsg takes
_OPTLEN_MAX: Final = 4096  # bytes of an option's value that are looked at

# struct msghdr: name, namelen, pad, iov, iovlen, control, controllen, flags, pad
_MSGHDR: Final = Struct("<QI4xQQQQI4x")
_MSG_NAMELEN: Final = 8  # where in it
_MSG_CONTROLLEN: Final = 40
_MSG_FLAGS: Final = 48
_MMSGHDR: Final = 64  # sizeof: a msghdr, and the length
_MSG_LEN: Final = 56
_CMSGHDR: Final = Struct("<Qii")  # len, level, type
_UCRED: Final = Struct("<iII")
_OVERFLOW_ID: Final = 65_534  # the user and group of one who did not say


def _socket(lwp: Lwp, fd: int) -> SocketFile:
    """The socket at `fd`.

    :raises OSError: EBADF, ENOTSOCK
    """
    fp = lwp.lwp_proc.p_fd.fget(fd)
    if not isinstance(fp, SocketFile):
        raise err(ENOTSOCK)
    return fp


def _check_flags(flags: int) -> None:
    if flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK):
        raise err(EINVAL)


def _make_file(so: Socket, flags: int) -> SocketFile:
    """The file of a new socket, which goes if there can be none.

    :raises OSError: ENFILE
    """
    try:
        return SocketFile(so, flags & SOCK_NONBLOCK)
    except OSError:
        so.pru_detach()
        raise


# -- making and naming ----------------------------------------------------------------------------


def sys_socket(lwp: Lwp, domain: int, kind: int, proto: int) -> int:
    """socket(2)"""
    kind = u32(kind)
    flags = kind & ~SOCK_TYPE_MASK
    _check_flags(flags)
    so = socreate(lwp, s32(domain), kind & SOCK_TYPE_MASK, s32(proto))
    fp = _make_file(so, flags)
    p = lwp.lwp_proc
    try:
        return p.p_fd.fdinstall(fp, 0, nofile(p), bool(flags & SOCK_CLOEXEC))
    except OSError:
        fp.fdrop()
        raise


def sys_socketpair(lwp: Lwp, domain: int, kind: int, proto: int, usv: int) -> int:
    """socketpair(2)"""
    kind = u32(kind)
    flags = kind & ~SOCK_TYPE_MASK
    _check_flags(flags)
    p = lwp.lwp_proc
    fdp = p.p_fd
    made: list[SocketFile] = []
    fds: list[int] = []
    try:
        for _ in range(2):
            fds.append(fdp.fdalloc(0, nofile(p)))
        copyout(p.p_vmspace, pack("<ii", *fds), usv)
        for _ in range(2):
            so = socreate(lwp, s32(domain), kind & SOCK_TYPE_MASK, s32(proto))
            made.append(_make_file(so, flags))
        made[0].f_socket.pru_connect2(lwp, made[1].f_socket)
    except OSError:
        for fd in fds:
            fdp.fdrelease(fd)
        for fp in made:
            fp.fdrop()
        raise
    for fd, fp in zip(fds, made, strict=True):
        fdp.fdset(fd, fp, bool(flags & SOCK_CLOEXEC))
    return 0


def _get_name(lwp: Lwp, uaddr: int, length: int) -> bytes:
    """An address of the user's.

    :raises OSError: EINVAL, EFAULT
    """
    length = s32(length)
    if not 0 <= length <= _SOCKADDR_MAX:
        raise err(EINVAL)
    return copyin(lwp.lwp_proc.p_vmspace, uaddr, length) if length else b""


def _put_name(lwp: Lwp, name: bytes, uaddr: int, ulength: int) -> None:
    """Tell the user an address, as much of it as there is room for, and how long it is.

    :raises OSError: EINVAL, EFAULT
    """
    space = lwp.lwp_proc.p_vmspace
    room = s32(fuword32(space, ulength))
    if room < 0:
        raise err(EINVAL)
    copyout(space, name[:room], uaddr)
    suword32(space, ulength, len(name))


def sys_bind(lwp: Lwp, fd: int, uaddr: int, length: int) -> int:
    """bind(2)"""
    fp = _socket(lwp, fd)
    fp.f_socket.pru_bind(lwp, _get_name(lwp, uaddr, length))
    return 0


def sys_listen(lwp: Lwp, fd: int, backlog: int) -> int:
    """listen(2)"""
    _socket(lwp, fd).f_socket.pru_listen(lwp, s32(backlog))
    return 0


def sys_accept(lwp: Lwp, fd: int, uaddr: int, ulength: int) -> int:
    """accept(2)"""
    return sys_accept4(lwp, fd, uaddr, ulength, 0)


def sys_accept4(lwp: Lwp, fd: int, uaddr: int, ulength: int, flags: int) -> int:
    """accept4(2)"""
    flags = u32(flags)
    _check_flags(flags)
    fp = _socket(lwp, fd)
    p = lwp.lwp_proc
    fdp = p.p_fd
    new = fdp.fdalloc(0, nofile(p))
    fp.fhold()
    try:
        so = fp.f_socket.pru_accept(bool(fp.f_flag & O_NONBLOCK))
        so.so_uid, so.so_gid = p.p_ucred.cr_fsuid, p.p_ucred.cr_fsgid
        newfp = _make_file(so, flags)
        if uaddr:
            try:
                _put_name(lwp, so.pru_peeraddr(), uaddr, ulength)
            except OSError:
                newfp.fdrop()
                raise
    except OSError:
        fdp.fdrelease(new)
        raise
    finally:
        fp.fdrop()
    fdp.fdset(new, newfp, bool(flags & SOCK_CLOEXEC))
    return new


def sys_connect(lwp: Lwp, fd: int, uaddr: int, length: int) -> int:
    """connect(2)"""
    fp = _socket(lwp, fd)
    fp.fhold()
    try:
        name = _get_name(lwp, uaddr, length)
        fp.f_socket.pru_connect(lwp, name, bool(fp.f_flag & O_NONBLOCK))
    finally:
        fp.fdrop()
    return 0


def sys_getsockname(lwp: Lwp, fd: int, uaddr: int, ulength: int) -> int:
    """getsockname(2)"""
    _put_name(lwp, _socket(lwp, fd).f_socket.pru_sockaddr(), uaddr, ulength)
    return 0


def sys_getpeername(lwp: Lwp, fd: int, uaddr: int, ulength: int) -> int:
    """getpeername(2)"""
    _put_name(lwp, _socket(lwp, fd).f_socket.pru_peeraddr(), uaddr, ulength)
    return 0


def sys_shutdown(lwp: Lwp, fd: int, how: int) -> int:
    """shutdown(2)"""
    how = s32(how)
    so = _socket(lwp, fd).f_socket
    if not 0 <= how <= 2:
        raise err(EINVAL)
    so.pru_shutdown(how + 1)
    return 0


# -- options --------------------------------------------------------------------------------------


def sys_setsockopt(lwp: Lwp, fd: int, level: int, name: int, uvalue: int, length: int) -> int:
    """setsockopt(2)"""
    length = s32(length)
    so = _socket(lwp, fd).f_socket
    if length < 0:
        raise err(EINVAL)
    if s32(level) != SOL_SOCKET:
        raise err(EOPNOTSUPP)
    value = copyin(lwp.lwp_proc.p_vmspace, uvalue, min(length, _OPTLEN_MAX)) if length >= 4 else b""
    sosetopt(so, lwp, s32(name), value)
    return 0


def sys_getsockopt(lwp: Lwp, fd: int, level: int, name: int, uvalue: int, ulength: int) -> int:
    """getsockopt(2)"""
    so = _socket(lwp, fd).f_socket
    if s32(level) != SOL_SOCKET:
        raise err(EOPNOTSUPP)
    space = lwp.lwp_proc.p_vmspace
    room = s32(fuword32(space, ulength))
    if room < 0:
        raise err(EINVAL)
    value = sogetopt(so, s32(name))
    if s32(name) == SO_PEERGROUPS and room < len(value):
        suword32(space, ulength, len(value))
        raise err(ERANGE)
    value = value[:room]
    copyout(space, value, uvalue)
    suword32(space, ulength, len(value))
    return 0


# -- transfers ------------------------------------------------------------------------------------


def sys_sendto(
    lwp: Lwp, fd: int, ubuf: int, length: int, flags: int, uaddr: int, addrlen: int
) -> int:
    """sendto(2)"""
    length = user_range(ubuf, length)
    fp = _socket(lwp, fd)
    msg = Msg()
    if uaddr:
        msg.msg_name = _get_name(lwp, uaddr, addrlen)
    uio = Uio(lwp.lwp_proc.p_vmspace, [(ubuf, length)], UIO_WRITE)
    return fp.send(lwp, uio, msg, u32(flags))


def sys_recvfrom(
    lwp: Lwp, fd: int, ubuf: int, length: int, flags: int, uaddr: int, uaddrlen: int
) -> int:
    """recvfrom(2)"""
    length = user_range(ubuf, length)
    fp = _socket(lwp, fd)
    msg = Msg()
    try:
        uio = Uio(lwp.lwp_proc.p_vmspace, [(ubuf, length)], UIO_READ)
        got = fp.receive(uio, msg, u32(flags))
        if uaddr:
            _put_name(lwp, msg.msg_name or b"", uaddr, uaddrlen)
    finally:
        msg.drop_rights()
    return got


def _get_msghdr(lwp: Lwp, umsg: int) -> tuple[int, int, list[tuple[int, int]], int, int]:
    """Name, length of the name, buffers, control messages, length of those.

    :raises OSError: EFAULT, EINVAL, EMSGSIZE
    """
    raw = copyin(lwp.lwp_proc.p_vmspace, umsg, _MSGHDR.size)
    name, namelen, uiov, iovlen, control, controllen, _ = _MSGHDR.unpack(raw)
    if not name:
        namelen = 0
    if s32(namelen) < 0:
        raise err(EINVAL)
    if iovlen > IOV_MAX:
        raise err(EMSGSIZE)
    iov = user_iov(lwp, uiov, iovlen)
    return name, min(namelen, _SOCKADDR_MAX), iov, control, controllen


def sys_sendmsg(lwp: Lwp, fd: int, umsg: int, flags: int) -> int:
    """sendmsg(2)"""
    return _sendmsg(lwp, _socket(lwp, fd), umsg, u32(flags))


def _sendmsg(lwp: Lwp, fp: SocketFile, umsg: int, flags: int) -> int:
    name, namelen, iov, control, controllen = _get_msghdr(lwp, umsg)
    msg = Msg()
    if name and namelen:
        msg.msg_name = _get_name(lwp, name, namelen)
    if controllen > _INT_MAX or controllen > _OPTMEM_MAX:
        raise err(ENOBUFS)
    try:
        if controllen:
            _internalize(lwp, copyin(lwp.lwp_proc.p_vmspace, control, controllen), msg)
        return fp.send(lwp, Uio(lwp.lwp_proc.p_vmspace, iov, UIO_WRITE), msg, flags)
    finally:
        msg.drop_rights()


def sys_recvmsg(lwp: Lwp, fd: int, umsg: int, flags: int) -> int:
    """recvmsg(2)"""
    return _recvmsg(lwp, _socket(lwp, fd), umsg, u32(flags))


def _recvmsg(lwp: Lwp, fp: SocketFile, umsg: int, flags: int) -> int:
    name, _, iov, control, controllen = _get_msghdr(lwp, umsg)
    space = lwp.lwp_proc.p_vmspace
    msg = Msg()
    msg.msg_flags = flags & MSG_CMSG_CLOEXEC
    try:
        got = fp.receive(Uio(space, iov, UIO_READ), msg, flags)
        used = _externalize(lwp, msg, control, controllen, bool(flags & MSG_CMSG_CLOEXEC))
        if name:
            _put_name(lwp, msg.msg_name or b"", name, umsg + _MSG_NAMELEN)
        suword32(space, umsg + _MSG_FLAGS, msg.msg_flags)
        copyout(space, used.to_bytes(8, "little"), umsg + _MSG_CONTROLLEN)
    finally:
        msg.drop_rights()
    return got


def sys_sendmmsg(lwp: Lwp, fd: int, uvec: int, vlen: int, flags: int) -> int:
    """sendmmsg(2)"""
    fp = _socket(lwp, fd)
    done = 0
    fp.fhold()
    try:
        for at in range(uvec, uvec + min(u32(vlen), IOV_MAX) * _MMSGHDR, _MMSGHDR):
            try:
                sent = _sendmsg(lwp, fp, at, u32(flags))
                suword32(lwp.lwp_proc.p_vmspace, at + _MSG_LEN, sent)
            except OSError:
                if not done:
                    raise
                break
            done += 1
    finally:
        fp.fdrop()
    return done


def sys_recvmmsg(lwp: Lwp, fd: int, uvec: int, vlen: int, flags: int, uts: int) -> int:
    """recvmmsg(2). As on Linux the timeout is looked at after each message only, and an error after
    the first one is left for the next call."""
    space = lwp.lwp_proc.p_vmspace
    flags = u32(flags)
    deadline = None
    if uts:
        sec, nsec = TIMESPEC.unpack(copyin(space, uts, TIMESPEC.size))
        if sec < 0 or not 0 <= nsec < NS:
            raise err(EINVAL)
        deadline = monotonic_ns() + sec * NS + nsec
    fp = _socket(lwp, fd)
    done = 0
    fp.fhold()
    try:
        fp.f_socket.soerror()
        for at in range(uvec, uvec + min(u32(vlen), IOV_MAX) * _MMSGHDR, _MMSGHDR):
            try:
                got = _recvmsg(lwp, fp, at, flags & ~MSG_WAITFORONE)
                suword32(space, at + _MSG_LEN, got)
            except OSError as e:
                if not done:
                    raise
                if e.errno is not None and e.errno > 0 and not flags & MSG_DONTWAIT:
                    fp.f_socket.so_error = e.errno
                break
            done += 1
            if flags & MSG_WAITFORONE:
                flags |= MSG_DONTWAIT
            if deadline is not None and monotonic_ns() >= deadline:
                break
    finally:
        fp.fdrop()
    if deadline is not None and done:
        left = max(deadline - monotonic_ns(), 0)
        copyout(space, TIMESPEC.pack(*divmod(left, NS)), uts)
    return done


# -- control messages -----------------------------------------------------------------------------


def _internalize(lwp: Lwp, control: bytes, msg: Msg) -> None:
    """What the user's control messages say. The rights in `msg` are the caller's, even when it
    fails.

    :raises OSError: EINVAL, EBADF
    """
    at = 0
    files: list[File] = []
    while at + _CMSGHDR.size <= len(control):
        size, level, kind = _CMSGHDR.unpack_from(control, at)
        if not _CMSGHDR.size <= size <= len(control) - at:
            raise err(EINVAL)
        data = control[at + _CMSGHDR.size : at + size]
        at += size + 7 & -8
        if level != SOL_SOCKET:
            continue
        if kind == SCM_RIGHTS:
            _hold_files(lwp, data, files, msg)
        elif kind == SCM_CREDENTIALS:
            if len(data) != _UCRED.size:
                raise err(EINVAL)
            msg.msg_cred = _UCRED.unpack(data)
        else:
            raise err(EINVAL)


def _hold_files(lwp: Lwp, data: bytes, files: list[File], msg: Msg) -> None:
    """More files for a message, by their descriptors."""
    p = lwp.lwp_proc
    fds = memoryview(data)[: len(data) & -4].cast("i")
    if len(files) + len(fds) > SCM_MAX_FD:
        raise err(EINVAL)
    if not fds:
        return
    if msg.msg_rights is None:
        msg.msg_rights = Rights(files, p.p_ucred.cr_ruid)
    for fd in fds:
        if fd < 0:
            raise err(EBADF)
        fp = p.p_fd.fget_path(fd)
        fp.fhold()
        files.append(fp)


def _externalize(lwp: Lwp, msg: Msg, control: int, room: int, cloexec: bool) -> int:
    """Tell the user who has sent a message and give it the files that came with it, as far as
    there is room. Returns how much of it was used.

    :raises OSError: EFAULT
    """
    if not control:
        if msg.msg_passcred or msg.msg_rights is not None:
            msg.msg_flags |= MSG_CTRUNC
        return 0
    used = 0
    if msg.msg_passcred:
        cred = _UCRED.pack(*(msg.msg_cred or (0, _OVERFLOW_ID, _OVERFLOW_ID)))
        if room < _CMSGHDR.size:
            msg.msg_flags |= MSG_CTRUNC
        else:
            size = _CMSGHDR.size + len(cred)
            if size > room:
                size = room
                msg.msg_flags |= MSG_CTRUNC
            cmsg = _CMSGHDR.pack(size, SOL_SOCKET, SCM_CREDENTIALS) + cred
            copyout(lwp.lwp_proc.p_vmspace, cmsg[:size], control)
            used = min(size + 7 & -8, room)
    if msg.msg_rights is not None:
        used += _give_files(lwp, msg, control + used, room - used, cloexec)
    return used


def _give_files(lwp: Lwp, msg: Msg, control: int, room: int, cloexec: bool) -> int:
    """Descriptors for the files that came, as many as there is room for. Returns how much of it
    was used."""
    rights = msg.msg_rights
    assert rights is not None
    p = lwp.lwp_proc
    fits = max((room - _CMSGHDR.size) // 4, 0)
    given = 0
    at = control + _CMSGHDR.size
    for fp in rights.r_files[:fits]:
        try:
            fd = p.p_fd.fdalloc(0, nofile(p))
        except OSError:
            break
        try:
            suword32(p.p_vmspace, at + 4 * given, fd)
        except OSError:
            p.p_fd.fdrelease(fd)
            break
        fp.fhold()
        p.p_fd.fdset(fd, fp, cloexec)
        given += 1
    if given < len(rights.r_files):
        msg.msg_flags |= MSG_CTRUNC
    if not given:
        return 0
    size = _CMSGHDR.size + 4 * given
    copyout(p.p_vmspace, _CMSGHDR.pack(size, SOL_SOCKET, SCM_RIGHTS), control)
    return min(size + 7 & -8, room)
