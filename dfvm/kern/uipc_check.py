"""Looking at the local sockets: who is connected with whom, what each is charged for, and which
files are under way, for Machine.check(); and what /proc/net/unix tells.

Only reads; cost is in proportion to sockets and messages.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from dfvm.kern.sys_socket import SocketFile
from dfvm.kern.uipc_socket import SOCK_DGRAM, SS_CONNECTED, SS_LISTENING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.kern_descrip import File, FileTable
    from dfvm.kern.uipc_socket import Socket
    from dfvm.kern.uipc_usrreq import UnixSocket

_ACCEPTCON: Final = 1 << 16
_UNCONNECTED: Final = 1
_CONNECTING: Final = 2
_CONNECTED: Final = 3


def unp_check(table: FileTable) -> Iterator[str]:
    """What is wrong with the machine's local sockets. The machine is at rest."""
    un = table.unix
    if un is None:
        return
    charged: Counter[Socket] = Counter()
    files: Counter[int] = Counter()
    inflight: Counter[SocketFile] = Counter()
    for so in un.un_sockets:
        for m in so.so_rcv.sb_mb:
            charged[m.m_owner] += m.m_size
            if m.m_rights is not None:
                files[m.m_rights.r_uid] += len(m.m_rights.r_files)
                inflight.update(fp for fp in m.m_rights.r_files if isinstance(fp, SocketFile))
        yield from (f"socket {so.so_serial}: {bad}" for bad in _check_socket(so))
    for owner, size in charged.items():
        have = owner.so_snd.sb_cc
        if have < size:
            yield f"socket {owner.so_serial}: {size} bytes of it under way, {have} charged"
    idle = [so for so in un.un_sockets if so.so_file is None or so.so_file.f_count == 1]
    for so in idle:
        if so.so_snd.sb_cc != charged[so]:
            yield f"socket {so.so_serial}: {so.so_snd.sb_cc} bytes charged, {charged[so]} under way"
    if table.so_charged < charged.total():
        yield f"{charged.total()} bytes in sockets, {table.so_charged} charged"
    if +un.un_files != +files:
        yield f"files under way: {dict(files)}, counted {dict(un.un_files)}"
    if un.un_inflight != inflight:
        yield f"sockets under way: {len(inflight)}, counted {len(un.un_inflight)}"
    for (kind, name), so in un.un_names.items():
        if so not in un.un_sockets or so.so_type != kind or so.unp_name != name:
            yield f"{name!r} names a socket that has not that name"


def _check_socket(so: UnixSocket) -> Iterator[str]:
    if so.so_dead:
        yield "it is dead"
    rcv, other = so.so_rcv, so.unp_conn
    listening = so.so_state == SS_LISTENING
    if any((m.m_conn is not None) != listening for m in rcv.sb_mb):
        yield "connections wait where no one listens, or messages where one does"
    if rcv.sb_cc != sum(m.left() for m in rcv.sb_mb):
        yield f"{rcv.sb_cc} bytes wait, but the messages have others"
    if so.so_type != SOCK_DGRAM and (other is not None) != (so.so_state == SS_CONNECTED):
        yield f"in state {so.so_state}, connected with {other}"
    if other is not None and not other.so_dead:
        if so not in other.unp_refs:
            yield f"socket {other.so_serial}, with which it is connected, does not know"
        if so.so_type != SOCK_DGRAM and other.unp_conn is not so:
            yield f"socket {other.so_serial} is connected with another one"
    if any(ref.so_dead or ref.unp_conn is not so for ref in so.unp_refs):
        yield "one that was connected with it is not"
    vp = so.unp_vnode
    if vp is not None and vp.v_socket is not so:
        yield "the file it is bound to does not know"
    if so.so_file is not None and so.so_file.f_socket is not so:
        yield "its file is another socket's"


def unp_files(table: FileTable) -> Iterator[File]:
    """Every reference to a file that is under way."""
    for so in table.unix.un_sockets if table.unix is not None else ():
        for m in so.so_rcv.sb_mb:
            if m.m_rights is not None:
                yield from m.m_rights.r_files


def unp_lines(table: FileTable) -> bytes:
    """/proc/net/unix: references, whether it listens, type, state, inode number and name of each
    socket. A connection that waits to be accepted has no inode yet."""
    lines = [b"Num       RefCount Protocol Flags    Type St Inode Path\n"]
    for so in table.unix.un_sockets if table.unix is not None else ():
        state = _CONNECTED if so.so_state == SS_CONNECTED else _UNCONNECTED
        if so.so_file is None:
            state = _CONNECTING
        name = so.unp_name[2:]
        if name[:1] == b"\0":
            name = name.replace(b"\0", b"@")
        lines.append(
            b"%016X: %08X %08X %08X %04X %02X %5d%s%s\n" % (
                0, 2 + len(so.unp_refs), 0, _ACCEPTCON if so.so_state == SS_LISTENING else 0,
                so.so_type, state, so.so_serial if so.so_file is not None else 0,
                b" " if name else b"", name.rstrip(b"\0"),
            )
        )  # fmt: skip
    return b"".join(lines)
