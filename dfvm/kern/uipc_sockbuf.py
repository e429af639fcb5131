"""Buffers of sockets: what was sent and has not been received, and whom it is charged to.

A message goes straight into the receive buffer of the socket it is for, and is charged to the send
buffer of the one that sent it until it has been received. What is charged is what Linux would
allocate for it, so that a sender blocks where it does there.

Source: DragonFly sys/kern/uipc_sockbuf.c (struct sockbuf), sys/sys/mbuf.h; sizes of Linux
net/core/skbuff.c.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dfvm.kern.kern_descrip import File
    from dfvm.kern.uipc_socket import Socket

SB_MAX: Final = 212_992  # what SO_SNDBUF and SO_RCVBUF may ask for at most; and the default

_PAGE: Final = 4096
_MBUF: Final = 256  # sizeof(struct sk_buff), as allocated
_SHARED_INFO: Final = 320  # sizeof(struct skb_shared_info), behind the data
_LINE: Final = 64  # what the data before it are rounded up to
_LEAST: Final = 512  # the smallest allocation that is used for data


def mbuf_size(linear: int, paged: int = 0) -> int:
    """What a message is charged as, of which `linear` bytes lie in one allocation and `paged` bytes
    in whole pages (skb->truesize)."""
    need = (linear + _LINE - 1 & -_LINE) + _SHARED_INFO
    room = _LEAST
    while room < need:
        room *= 2
    return _MBUF + room + (paged + _PAGE - 1 & -_PAGE)


class Rights:
    """Open files on their way from one process to another (SCM_RIGHTS)."""

    __slots__ = ("r_files", "r_uid")

    r_files: list[File]  # each is a reference
    r_uid: int  # who has sent them: whose number of files under way is limited

    def __init__(self, files: list[File], uid: int) -> None:
        self.r_files = files
        self.r_uid = uid


class Mbuf:
    """One message, or one piece of a stream."""

    __slots__ = ("m_conn", "m_cred", "m_data", "m_name", "m_off", "m_owner", "m_rights",
                 "m_size")  # fmt: skip

    m_data: bytes
    m_off: int  # bytes of it that were received; of a stream only
    m_size: int  # what m_owner is charged for it
    m_owner: Socket  # who sent it
    m_name: bytes  # its address, empty if it had none
    m_cred: tuple[int, int, int] | None  # pid, uid and gid of the sender, when that was asked for
    m_rights: Rights | None  # files that come with it
    m_conn: Socket | None  # in the queue of a listener: the connection; there are no data

    def __init__(self, owner: Socket, data: bytes, size: int) -> None:
        self.m_data = data
        self.m_off = 0
        self.m_size = size
        self.m_owner = owner
        self.m_name = b""
        self.m_cred = None
        self.m_rights = None
        self.m_conn = None

    def left(self) -> int:
        """Bytes that have not been received."""
        return len(self.m_data) - self.m_off


class Sockbuf:
    """One of the two buffers of a socket. Also the channel on which those sleep who wait for data
    (so_rcv) or for room (so_snd)."""

    __slots__ = ("sb_cc", "sb_hiwat", "sb_locked", "sb_lowat", "sb_mb", "sb_timeo")

    sb_mb: deque[Mbuf]  # so_rcv: what waits to be received, oldest first
    sb_cc: int  # so_rcv: unread bytes. so_snd: what is charged for messages under way
    sb_hiwat: int  # so_snd: no message is begun while sb_cc is not below this
    sb_lowat: int  # so_rcv: bytes that a receiver waits for
    sb_timeo: int  # ns after which one who waits gives up; 0: never
    sb_locked: bool  # so_rcv: somebody copies, and the first messages must stay

    def __init__(self) -> None:
        self.sb_mb = deque()
        self.sb_cc = 0
        self.sb_hiwat = SB_MAX
        self.sb_lowat = 1
        self.sb_timeo = 0
        self.sb_locked = False
