"""The system calls about sockets, on a machine that has none: no address family is supported, and
no descriptor is a socket. Programs ask both (a shell, whether its input is a network connection)
and rely on the right answer.

Source: errors of Linux net/socket.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.kern.kern_errno import EAFNOSUPPORT, ENOTSOCK, err

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp


def sys_socket(lwp: Lwp, domain: int, kind: int, protocol: int) -> int:
    """socket(2)"""
    raise err(EAFNOSUPPORT)


def sys_socketpair(lwp: Lwp, domain: int, kind: int, protocol: int, usv: int) -> int:
    """socketpair(2)"""
    raise err(EAFNOSUPPORT)


def _no_socket(lwp: Lwp, fd: int) -> int:
    """What every call on a socket says: EBADF or ENOTSOCK."""
    lwp.lwp_proc.p_fd.fget(fd)
    raise err(ENOTSOCK)


def sys_bind(lwp: Lwp, fd: int, uaddr: int, length: int) -> int:
    """bind(2)"""
    return _no_socket(lwp, fd)


def sys_listen(lwp: Lwp, fd: int, backlog: int) -> int:
    """listen(2)"""
    return _no_socket(lwp, fd)


def sys_accept(lwp: Lwp, fd: int, uaddr: int, ulength: int) -> int:
    """accept(2)"""
    return _no_socket(lwp, fd)


def sys_accept4(lwp: Lwp, fd: int, uaddr: int, ulength: int, flags: int) -> int:
    """accept4(2)"""
    return _no_socket(lwp, fd)


def sys_connect(lwp: Lwp, fd: int, uaddr: int, length: int) -> int:
    """connect(2)"""
    return _no_socket(lwp, fd)


def sys_getsockname(lwp: Lwp, fd: int, uaddr: int, ulength: int) -> int:
    """getsockname(2)"""
    return _no_socket(lwp, fd)


def sys_getpeername(lwp: Lwp, fd: int, uaddr: int, ulength: int) -> int:
    """getpeername(2)"""
    return _no_socket(lwp, fd)


def sys_sendto(
    lwp: Lwp, fd: int, ubuf: int, length: int, flags: int, uaddr: int, addrlen: int
) -> int:
    """sendto(2)"""
    return _no_socket(lwp, fd)


def sys_recvfrom(
    lwp: Lwp, fd: int, ubuf: int, length: int, flags: int, uaddr: int, uaddrlen: int
) -> int:
    """recvfrom(2)"""
    return _no_socket(lwp, fd)


def sys_sendmsg(lwp: Lwp, fd: int, umsg: int, flags: int) -> int:
    """sendmsg(2)"""
    return _no_socket(lwp, fd)


def sys_recvmsg(lwp: Lwp, fd: int, umsg: int, flags: int) -> int:
    """recvmsg(2)"""
    return _no_socket(lwp, fd)


def sys_shutdown(lwp: Lwp, fd: int, how: int) -> int:
    """shutdown(2)"""
    return _no_socket(lwp, fd)


def sys_setsockopt(lwp: Lwp, fd: int, level: int, name: int, uvalue: int, length: int) -> int:
    """setsockopt(2)"""
    return _no_socket(lwp, fd)


def sys_getsockopt(lwp: Lwp, fd: int, level: int, name: int, uvalue: int, ulength: int) -> int:
    """getsockopt(2)"""
    return _no_socket(lwp, fd)
