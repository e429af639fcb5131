"""epoll: waiting for many files without looking at all of them.

An item is a knote on its file. When the file reports a change the item goes on the epoll's ready
list; a wait looks at the items on that list only. A level-triggered item that was ready goes back
to the end of it, so that everybody gets a turn.

Descriptors of the host (terminals, inherited pipes) report nothing: they are few, are looked at in
each wait, and waited for with the scheduler. An edge there is an event that was absent when last
looked at, or one that is present after somebody has read or written.

Source: behaviour of Linux fs/eventpoll.c.
"""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import EPOLL_EVENT, NS, TIMESPEC, anon_attr
from dfvm.kern.host_file import HostFile
from dfvm.kern.kern_descrip import O_CLOEXEC, O_RDWR, File, FileTable, nofile
from dfvm.kern.kern_errno import (
    EEXIST,
    EFAULT,
    EINTR,
    EINVAL,
    ELOOP,
    ENOENT,
    EPERM,
    ERESTART,
    EWOULDBLOCK,
    err,
)
from dfvm.kern.kern_event import (
    POLL_ALWAYS,
    POLL_READABLE,
    POLLIN,
    POLLOUT,
    POLLPRI,
    Knote,
    Kqinfo,
)
from dfvm.kern.kern_sig import restore_user_sigmask, set_user_sigmask
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import UIO_READ, Uio, copyin, uiomove
from dfvm.vm.vm_param import VM_MAX_USER_ADDRESS

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.vnode_param import Vattr

EPOLL_CTL_ADD: Final = 1
EPOLL_CTL_DEL: Final = 2
EPOLL_CTL_MOD: Final = 3

EPOLLEXCLUSIVE: Final = 1 << 28
EPOLLWAKEUP: Final = 1 << 29
EPOLLONESHOT: Final = 1 << 30
EPOLLET: Final = 1 << 31
_FLAGS: Final = EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET

_INOUT: Final = POLLIN | POLLOUT

_MAXEVENTS: Final = 0x7FFF_FFFF // EPOLL_EVENT.size
_MAXNESTS: Final = 4  # how deep epolls may watch epolls


class EpollItem(Knote):
    """One file that an epoll watches."""

    __slots__ = ("ei_data", "ei_ep", "ei_events", "ei_fd", "ei_file", "ei_info", "ei_moves",
                 "ei_seen", "ei_want")  # fmt: skip

    ei_ep: EpollFile
    ei_file: File  # not referenced: when it is closed it leaves every epoll
    ei_fd: int  # the number it was added by; with ei_file its name
    ei_events: int  # as the user gave them, flags included
    ei_want: int  # events it reports; 0 once a one-shot item has fired
    ei_data: int  # the user's 64 bits
    ei_info: Kqinfo | None  # where it listens; None: a descriptor of the host
    ei_seen: int  # of the host, edge-triggered: events that were reported and are still there
    ei_moves: int  # of the host: f_moves at that time

    def __init__(self, ep: EpollFile, fp: File, fd: int) -> None:
        self.ei_ep = ep
        self.ei_file = fp
        self.ei_fd = fd
        self.ei_info = fp.fo_kqinfo()
        self.ei_seen = self.ei_moves = 0

    def attach(self, exclusive: bool) -> None:
        """Start to listen."""
        fp, ep = self.ei_file, self.ei_ep
        if fp.f_epitems is None:
            fp.f_epitems = {}
        fp.f_epitems[self] = None
        ep.ep_items[self.ei_fd, fp] = self
        if self.ei_info is not None:
            self.ei_info.attach(self, exclusive)
        elif fp.fo_hostfd() >= 0:
            ep.ep_hosts[self] = None

    def set(self, events: int, data: int) -> None:
        """What to watch for; takes notice of what holds already."""
        self.ei_events = events
        self.ei_want = events & ~_FLAGS | POLL_ALWAYS
        self.ei_data = data
        self.ei_seen = 0
        if self.ei_file.fo_poll() & self.ei_want:
            self.ei_ep.item_ready(self)

    def detach(self) -> None:
        """Leave the epoll: by request, or one of the two files is closed."""
        fp, ep = self.ei_file, self.ei_ep
        assert fp.f_epitems is not None
        del fp.f_epitems[self]
        del ep.ep_items[self.ei_fd, fp]
        ep.ep_ready.pop(self, None)
        ep.ep_hosts.pop(self, None)
        if self.ei_info is not None:
            self.ei_info.detach(self)

    def kn_event(self, hint: int) -> bool:
        # Whoever waits for one of several exclusive items is the only one who is woken, if what
        # happened is what he waits for.
        if not hint & self.ei_want:
            return False
        woken = self.ei_ep.item_ready(self)
        return woken and (not hint & _INOUT or bool(hint & self.ei_events & _INOUT))

    def host_events(self) -> int:
        """Of a descriptor of the host: what is to be reported now. An edge-triggered item does
        not repeat itself."""
        fp = self.ei_file
        got = fp.fo_poll() & self.ei_want
        if not self.ei_events & EPOLLET:
            return got
        if isinstance(fp, HostFile) and fp.f_moves != self.ei_moves:
            self.ei_moves = fp.f_moves
            self.ei_seen = 0
        new = got & ~self.ei_seen
        self.ei_seen = got
        return got if new else 0


class EpollFile(File):
    """An epoll instance."""

    __slots__ = ("ep_hosts", "ep_items", "ep_kq", "ep_ready")

    ep_items: dict[tuple[int, File], EpollItem]  # everything it watches
    ep_ready: OrderedDict[EpollItem, None]  # items to look at, in order
    ep_hosts: dict[EpollItem, None]  # items that are descriptors of the host
    ep_kq: Kqinfo  # who polls the epoll itself

    def __init__(self, table: FileTable) -> None:
        super().__init__(table, O_RDWR)
        self.ep_items = {}
        self.ep_ready = OrderedDict()
        self.ep_hosts = {}
        self.ep_kq = Kqinfo()

    def item_ready(self, item: EpollItem) -> bool:
        """`item` may have something to report. True if somebody waited for it."""
        self.ep_ready[item] = None
        woken = self.f_table.sched.wakeup_one(self)
        self.ep_kq.knote(POLLIN)
        return woken

    def collect(self, maxevents: int) -> list[tuple[int, EpollItem]]:
        """(events, item) of up to `maxevents` items that are ready."""
        found: list[tuple[int, EpollItem]] = []
        again: list[EpollItem] = []
        ready = self.ep_ready
        for item in self.ep_hosts:
            got = item.host_events()
            if got and len(found) < maxevents:
                found.append((got, item))
                if item.ei_events & EPOLLONESHOT:
                    item.ei_want = 0
        while ready and len(found) < maxevents:
            item, _ = ready.popitem(last=False)
            if item in self.ep_hosts:
                continue
            got = item.ei_file.fo_poll() & item.ei_want
            if not got:
                continue
            found.append((got, item))
            if item.ei_events & EPOLLONESHOT:
                item.ei_want = 0
            elif not item.ei_events & EPOLLET:
                again.append(item)
        for item in again:
            ready[item] = None
        return found

    def put_back(self, items: list[EpollItem]) -> None:
        """What `collect` found could not be told: it is first again, in this order. May have
        blocked since then."""
        for item in reversed(items):
            if self.ep_items.get((item.ei_fd, item.ei_file)) is not item:
                continue  # it has left meanwhile
            item.ei_want = item.ei_events & ~_FLAGS | POLL_ALWAYS
            item.ei_seen = 0
            if item not in self.ep_hosts:
                self.ep_ready[item] = None
                self.ep_ready.move_to_end(item, last=False)

    def wait(self, maxevents: int, deadline: int | None) -> list[tuple[int, EpollItem]]:
        """collect, waiting for at least one until `deadline` (monotonic ns; None: for ever). May
        block.

        :raises OSError: EINTR
        """
        sched = self.f_table.sched
        while True:
            found = self.collect(maxevents)
            if found:
                return found
            timeout = 0
            if deadline is not None:
                timeout = deadline - monotonic_ns()
                if timeout <= 0:
                    return found
            self.fhold()
            try:
                hosts = self._host_waits()
                if hosts:
                    error = sched.waitfds(hosts, self, PCATCH, "epoll", timeout)
                else:
                    error = sched.tsleep_ns(self, PCATCH, "epoll", timeout)
            finally:
                self.fdrop()
            if error in (EINTR, ERESTART):
                raise err(EINTR)
            if error == EWOULDBLOCK:
                return self.collect(maxevents)

    def _host_waits(self) -> list[tuple[int, int]]:
        waits = []
        for item in self.ep_hosts:
            events = item.ei_want & (POLLIN | POLLOUT | POLLPRI) & ~item.ei_seen
            if events:
                waits.append((item.ei_file.fo_hostfd(), events))
        return waits

    def watches(self, other: EpollFile, depth: int) -> bool:
        """Whether `other` is among what it watches, directly or through others.

        :raises OSError: ELOOP when they are nested too deep
        """
        if self is other:
            return True
        if depth > _MAXNESTS:
            raise err(ELOOP)
        return any(
            isinstance(fp, EpollFile) and fp.watches(other, depth + 1) for _, fp in self.ep_items
        )

    def watched_depth(self) -> int:
        """How long the longest chain of epolls is that watch one another and last this one."""
        items = self.f_epitems
        return max(1 + item.ei_ep.watched_depth() for item in items) if items else 0

    def fo_poll(self) -> int:
        for item in self.ep_ready:
            if item.ei_file.fo_poll() & item.ei_want:
                return POLL_READABLE
        for item in self.ep_hosts:
            if item.ei_file.fo_poll() & item.ei_want & ~item.ei_seen:
                return POLL_READABLE
        return 0

    def fo_kqinfo(self) -> Kqinfo:
        return self.ep_kq

    def fo_seek(self, lwp: Lwp, offset: int, whence: int) -> int:
        return 0  # as Linux: no position, no error

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return anon_attr()

    def fo_close(self) -> None:
        for item in list(self.ep_items.values()):
            item.detach()

    def fo_name(self) -> str:
        return "anon_inode:[eventpoll]"


# -- system calls -------------------------------------------------------------------------------


def sys_epoll_create1(lwp: Lwp, flags: int) -> int:
    """epoll_create1(2)"""
    flags = u32(flags)
    if flags & ~O_CLOEXEC:
        raise err(EINVAL)
    p = lwp.lwp_proc
    fp = EpollFile(p.p_fd.fd_table)
    try:
        return p.p_fd.fdinstall(fp, 0, nofile(p), bool(flags))
    except OSError:
        fp.fdrop()
        raise


def sys_epoll_create(lwp: Lwp, size: int) -> int:
    """epoll_create(2)"""
    if s32(size) <= 0:
        raise err(EINVAL)
    return sys_epoll_create1(lwp, 0)


def sys_epoll_ctl(lwp: Lwp, epfd: int, op: int, fd: int, uevent: int) -> int:
    """epoll_ctl(2)"""
    p = lwp.lwp_proc
    op, fd = s32(op), u32(fd)
    events = data = 0
    if op != EPOLL_CTL_DEL:
        events, data = EPOLL_EVENT.unpack(copyin(p.p_vmspace, uevent, EPOLL_EVENT.size))
    ep = p.p_fd.fget(epfd)
    fp = p.p_fd.fget(fd)
    if not fp.f_pollable:
        raise err(EPERM)
    if ep is fp or not isinstance(ep, EpollFile):
        raise err(EINVAL)
    if events & EPOLLEXCLUSIVE:
        allowed = POLLIN | POLLOUT | POLL_ALWAYS | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE
        if op == EPOLL_CTL_MOD or events & ~allowed or isinstance(fp, EpollFile):
            raise err(EINVAL)
    item = ep.ep_items.get((fd, fp))
    if op == EPOLL_CTL_ADD:
        if isinstance(fp, EpollFile) and fp.watches(ep, ep.watched_depth() + 1):
            raise err(ELOOP)
        if item is not None:
            raise err(EEXIST)
        item = EpollItem(ep, fp, fd)
        item.attach(bool(events & EPOLLEXCLUSIVE))
        item.set(events, data)
    elif op == EPOLL_CTL_DEL:
        if item is None:
            raise err(ENOENT)
        item.detach()
    elif op == EPOLL_CTL_MOD:
        if item is None:
            raise err(ENOENT)
        if item.ei_events & EPOLLEXCLUSIVE:
            raise err(EINVAL)
        item.set(events, data)
    else:
        raise err(EINVAL)
    return 0


def _epoll_wait(lwp: Lwp, epfd: int, uevents: int, maxevents: int, deadline: int | None) -> int:
    maxevents = s32(maxevents)
    if not 0 < maxevents <= _MAXEVENTS:
        raise err(EINVAL)
    if uevents + maxevents * EPOLL_EVENT.size > VM_MAX_USER_ADDRESS:
        raise err(EFAULT)
    p = lwp.lwp_proc
    ep = p.p_fd.fget(epfd)
    if not isinstance(ep, EpollFile):
        raise err(EINVAL)
    found = ep.wait(maxevents, deadline)
    if not found:
        return 0
    events = b"".join([EPOLL_EVENT.pack(got, item.ei_data) for got, item in found])
    uio = Uio(p.p_vmspace, [(uevents, len(events))], UIO_READ)
    try:
        uiomove(events, uio)
    except OSError:
        told = (len(events) - uio.uio_resid) // EPOLL_EVENT.size
        ep.put_back([item for _, item in found[told:]])
        if not told:
            raise
        return told
    return len(found)


def _deadline_ms(timeout: int) -> int | None:
    timeout = s32(timeout)
    return None if timeout < 0 else monotonic_ns() + timeout * 1_000_000


def sys_epoll_wait(lwp: Lwp, epfd: int, uevents: int, maxevents: int, timeout: int) -> int:
    """epoll_wait(2)"""
    return _epoll_wait(lwp, epfd, uevents, maxevents, _deadline_ms(timeout))


def _epoll_pwait(
    lwp: Lwp,
    epfd: int,
    uevents: int,
    maxevents: int,
    deadline: int | None,
    sigmask: int,
    size: int,
) -> int:
    if sigmask:
        set_user_sigmask(lwp, sigmask, size)
    interrupted = False
    try:
        return _epoll_wait(lwp, epfd, uevents, maxevents, deadline)
    except OSError as exc:
        interrupted = exc.errno == EINTR
        raise
    finally:
        restore_user_sigmask(lwp, interrupted)


def sys_epoll_pwait(
    lwp: Lwp, epfd: int, uevents: int, maxevents: int, timeout: int, sigmask: int, size: int
) -> int:
    """epoll_pwait(2)"""
    return _epoll_pwait(lwp, epfd, uevents, maxevents, _deadline_ms(timeout), sigmask, size)


def sys_epoll_pwait2(
    lwp: Lwp, epfd: int, uevents: int, maxevents: int, uts: int, sigmask: int, size: int
) -> int:
    """epoll_pwait2(2)"""
    deadline = None
    if uts:
        sec, nsec = TIMESPEC.unpack(copyin(lwp.lwp_proc.p_vmspace, uts, 16))
        if sec < 0 or not 0 <= nsec < NS:
            raise err(EINVAL)
        deadline = monotonic_ns() + sec * NS + nsec
    return _epoll_pwait(lwp, epfd, uevents, maxevents, deadline, sigmask, size)
