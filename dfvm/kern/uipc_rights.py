"""What all local sockets of a machine share: names, and the files that are under way (SCM_RIGHTS).

A file under way is in the buffer of a socket and counts as a holder of it. If it is itself a local
socket, it can be on its way to itself, or two of them to each other, and nowhere else: nobody will
ever receive them. UnixDomain.discard finds those, as DragonFly and Linux do, when a socket is
closed; and only if such a ring was made, as it costs in proportion to the sockets under way.

Source: DragonFly sys/kern/uipc_usrreq.c (unp_gc); when there may be a ring, Linux
net/unix/garbage.c.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dfvm.kern.sys_socket import SocketFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.kern_descrip import File, FileTable
    from dfvm.kern.uipc_sockbuf import Mbuf, Rights
    from dfvm.kern.uipc_socket import Socket
    from dfvm.kern.uipc_usrreq import UnixSocket


class UnixDomain:
    """What all local sockets of a machine share."""

    __slots__ = ("un_cyclic", "un_doomed", "un_dooming", "un_files", "un_inflight", "un_names",
                 "un_number", "un_sockets")  # fmt: skip

    un_sockets: dict[UnixSocket, None]  # all that are alive, oldest first
    un_names: dict[tuple[int, bytes], UnixSocket]  # abstract ones by type and address
    un_number: int  # the last name given by autobind
    un_files: Counter[int]  # files under way, by who has sent them
    un_inflight: Counter[SocketFile]  # local sockets among them: how often each is under way
    un_cyclic: bool  # one of those may be under way to itself
    un_doomed: list[File]  # files that were under way and are to be closed
    un_dooming: bool  # somebody is at it. Closing one may doom others: not to be nested

    def __init__(self) -> None:
        self.un_sockets = {}
        self.un_names = {}
        self.un_number = 0
        self.un_files = Counter()
        self.un_inflight = Counter()
        self.un_cyclic = False
        self.un_doomed = []
        self.un_dooming = False

    # -- files under way --------------------------------------------------------------------------

    def enqueue(self, rights: Rights, so: Socket) -> None:
        """Files are under way from here on: they are in the buffer of `so`."""
        self.un_files[rights.r_uid] += len(rights.r_files)
        for fp in rights.r_files:
            if isinstance(fp, SocketFile):
                self.un_inflight[fp] += 1
                # The last link of a ring leads to a socket that is under way. What has no file is
                # reached through its listener, which may be.
                if so.so_file is None or so.so_file in self.un_inflight:
                    self.un_cyclic = True

    def dequeue(self, rights: Rights) -> None:
        """They are no more, and whose they are is the caller's business."""
        self.un_files[rights.r_uid] -= len(rights.r_files)
        for fp in rights.r_files:
            if isinstance(fp, SocketFile):
                self.un_inflight[fp] -= 1
                if not self.un_inflight[fp]:
                    del self.un_inflight[fp]

    def discard(self, files: list[File]) -> None:
        """Nobody will receive these files, which are not under way any more; nor, as may be seen
        now, others that are. May block."""
        self.un_doomed += files
        if self.un_dooming:
            return
        self.un_dooming = True
        try:
            while self.un_doomed or self._collect():
                self.un_doomed.pop().fdrop()
        finally:
            self.un_dooming = False

    def _collect(self) -> bool:
        """Doom what is in the buffers of sockets that nobody can reach: that are on their way to
        one another, and nowhere else. True if there are any."""
        if not self.un_inflight:
            self.un_cyclic = False
        if not self.un_cyclic:
            return False
        for fp in self._unreachable():
            for m in _messages(fp.f_socket):
                rights, m.m_rights = m.m_rights, None
                if rights is not None:
                    self.dequeue(rights)
                    self.un_doomed += rights.r_files
        return bool(self.un_doomed)

    def _unreachable(self) -> list[SocketFile]:
        # Candidates are those that are referenced from buffers only. Those to which a buffer of
        # one that is no candidate refers, and what they lead to, can be reached.
        inner = {fp: n for fp, n in self.un_inflight.items() if fp.f_count == n}
        for fp in inner:
            for other in _carried(fp.f_socket):
                if other in inner:
                    inner[other] -= 1
        reached = [fp for fp, n in inner.items() if n]
        garbage = dict.fromkeys(inner)
        for fp in reached:
            del garbage[fp]
        while reached:
            for other in _carried(reached.pop().f_socket):
                if other in garbage:
                    del garbage[other]
                    reached.append(other)
        return list(garbage)


def _messages(so: Socket) -> Iterator[Mbuf]:
    """What waits in a socket, and in the connections that wait in it."""
    for m in so.so_rcv.sb_mb:
        if m.m_conn is not None:
            yield from m.m_conn.so_rcv.sb_mb
        else:
            yield m


def _carried(so: Socket) -> Iterator[SocketFile]:
    """The sockets that are under way to `so`."""
    for m in _messages(so):
        if m.m_rights is not None:
            for fp in m.m_rights.r_files:
                if isinstance(fp, SocketFile):
                    yield fp


def unix_domain(table: FileTable) -> UnixDomain:
    """The machine's one."""
    if table.unix is None:
        table.unix = UnixDomain()
    return table.unix
