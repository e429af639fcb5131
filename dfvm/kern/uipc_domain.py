"""The address families there are.

Source: DragonFly sys/kern/uipc_domain.c; errors of Linux net/socket.c and net/unix/af_unix.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EAFNOSUPPORT, EINVAL, EPROTONOSUPPORT, ESOCKTNOSUPPORT, err
from dfvm.kern.uipc_socket import SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_STREAM, Socket
from dfvm.kern.uipc_usrreq import AF_UNIX, UnixSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp

_AF_MAX: Final = 46
_SOCK_MAX: Final = 11

# Of the families that are not there, what --stats calls those that programs ask for.
_NAMES: Final = {2: "AF_INET", 10: "AF_INET6", 16: "AF_NETLINK", 17: "AF_PACKET", 38: "AF_ALG",
                 40: "AF_VSOCK"}  # fmt: skip


def _unix(lwp: Lwp, kind: int, proto: int) -> Socket:
    if proto not in (0, AF_UNIX):
        raise err(EPROTONOSUPPORT)
    if kind == SOCK_RAW:  # as in BSD, where it meant this
        kind = SOCK_DGRAM
    if kind not in (SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET):
        raise err(ESOCKTNOSUPPORT)
    cred = lwp.lwp_proc.p_ucred
    table = lwp.lwp_proc.p_fd.fd_table
    return UnixSocket(table, kind, cred.cr_fsuid, cred.cr_fsgid)


_DOMAINS: Final[dict[int, Callable[[Lwp, int, int], Socket]]] = {AF_UNIX: _unix}


def socreate(lwp: Lwp, domain: int, kind: int, proto: int) -> Socket:
    """A new socket, for which the caller makes a file.

    :raises OSError: EAFNOSUPPORT, EINVAL, ESOCKTNOSUPPORT, EPROTONOSUPPORT
    """
    if not 0 <= domain < _AF_MAX:
        raise err(EAFNOSUPPORT)
    if not 0 <= kind < _SOCK_MAX:
        raise err(EINVAL)
    attach = _DOMAINS.get(domain)
    if attach is None:
        name = _NAMES.get(domain, str(domain))
        lwp.lwp_proc.kernel.sysent.refuse(f"socket({name})")
        raise err(EAFNOSUPPORT)
    return attach(lwp, kind, proto)
