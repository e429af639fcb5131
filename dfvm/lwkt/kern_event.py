"""Waiting for the host: its file descriptors, and calls that other host threads and host signal
handlers post to the kernel.

The scheduler owns one HostEvents. While threads run it looks without blocking, now and then; when
nothing is runnable this is where the whole machine waits.
"""

from __future__ import annotations

from collections import deque
from os import (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    O_CLOEXEC,
    O_NONBLOCK,
    close,
    eventfd,
    eventfd_read,
    eventfd_write,
    getpid,
    pipe2,
    read,
    write,
)  # fmt: skip
from time import sleep
from typing import TYPE_CHECKING, Final

from dfvm.lwkt.kern_clock import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable
    from select import poll

    from dfvm.lwkt.lwkt_thread import Thread

# Bits of poll(2), in `events` of waitfd and in what td_revents reports.
POLLIN: Final = 0x001
POLLPRI: Final = 0x002
POLLOUT: Final = 0x004
POLLERR: Final = 0x008
POLLHUP: Final = 0x010
POLLNVAL: Final = 0x020

_LONGEST_MS: Final = (1 << 31) - 1  # what poll(2) can be told
_ALWAYS: Final = POLLERR | POLLHUP | POLLNVAL  # reported whether asked for or not
_PIPE_BYTES: Final = 65536  # as much as a pipe holds


class HostEvents:
    """What the host may tell us."""

    __slots__ = ("_eventfd", "_others", "_pid", "_poller", "_posted", "_sigpipe", "_waiters")

    _waiters: dict[int, dict[Thread, int]]  # fd → who waits there, and for which events
    _posted: deque[tuple[Callable[..., object], tuple[object, ...]]]  # calls to make when safe
    _poller: poll | None  # knows _eventfd and every fd of _waiters; made when first needed
    _eventfd: int  # wakes the idle wait; -1 until the first one
    _pid: int  # the host's process that _eventfd was made by
    _sigpipe: tuple[int, int] | None  # Python writes into it when a signal comes; see listen()
    _others: int  # where it wrote that before; -1 for nowhere

    def __init__(self) -> None:
        self._waiters = {}
        self._posted = deque()
        self._poller = None
        self._eventfd = -1
        self._pid = 0
        self._sigpipe = None
        self._others = -1

    def close(self) -> None:
        """Give the host its descriptor back. Nobody waits any more; post() is harmless."""
        fd, self._eventfd = self._eventfd, -1
        self._poller = None
        if fd >= 0:
            close(fd)

    def __del__(self) -> None:
        self.close()

    # -- posted calls ---------------------------------------------------------------------------

    def post(self, fn: Callable[..., object], args: tuple[object, ...]) -> None:
        """Queue fn(*args) for the kernel's next safe point and end an idle wait. The only entry
        that host threads and signal handlers may use: append and the write are atomic."""
        self._posted.append((fn, args))
        if self._eventfd >= 0:
            eventfd_write(self._eventfd, 1)

    @property
    def posted(self) -> bool:
        """Calls are waiting to be made."""
        return bool(self._posted)

    def run_posted(self) -> None:
        """Make the calls that were posted, in order."""
        posted = self._posted
        while posted:
            fn, args = posted.popleft()
            fn(*args)

    # -- host signals ---------------------------------------------------------------------------

    def listen(self) -> None:
        """Until unlisten(), a signal of the host's ends the idle wait even if it comes just before
        that begins. Python calls a handler only between two of its own instructions, and so would
        call it after the wait; but what set_wakeup_fd names is written to at once. In a host
        thread that is not Python's main one no handler is called anyway."""
        import signal

        if self._sigpipe is not None:
            return
        r, w = pipe2(O_CLOEXEC | O_NONBLOCK)
        try:
            self._others = signal.set_wakeup_fd(w, warn_on_full_buffer=False)
        except ValueError:
            close(r)
            close(w)
            return
        self._sigpipe = r, w
        if self._poller is not None:
            self._poller.register(r, POLLIN)

    def unlisten(self) -> None:
        """Undo listen(). What came meanwhile is passed on to whoever listened before."""
        if self._sigpipe is None:
            return
        import signal

        (r, w), self._sigpipe = self._sigpipe, None
        signal.set_wakeup_fd(self._others)
        if self._poller is not None:
            self._poller.unregister(r)
        self._signalled(r)
        close(r)
        close(w)

    def _signalled(self, r: int) -> None:
        try:
            numbers = read(r, _PIPE_BYTES)
            if self._others >= 0:
                write(self._others, numbers)
        except OSError:
            pass  # none came, or whoever listened before has more than it can take

    # -- host file descriptors ------------------------------------------------------------------

    def __len__(self) -> int:
        """Host descriptors somebody waits for."""
        return len(self._waiters)

    def waiting(self, td: Thread) -> list[int]:
        """The descriptors `td` waits for; for reports, not for speed."""
        return [fd for fd, who in self._waiters.items() if td in who]

    def someone(self, which: Callable[[Thread], bool]) -> bool:
        """Whether a thread for which `which` is true waits for the host."""
        return any(which(td) for who in self._waiters.values() for td in who)

    def adopt(self) -> None:
        """A child that the host's process forked has our descriptor too: what is posted to the one
        would wake the other. If this is a child, it takes one of its own."""
        if self._eventfd >= 0 and self._pid != getpid():
            self.close()
            poller = self._get_poller()
            for fd, who in self._waiters.items():
                poller.register(fd, _wanted(who))

    def add(self, td: Thread, fd: int, events: int) -> None:
        """`td` goes to sleep until `fd` shows one of `events` or an error."""
        who = self._waiters.setdefault(fd, {})
        who[td] = who.get(td, 0) | events
        self._watch(fd, who)

    def remove(self, td: Thread, fd: int) -> None:
        """`td` no longer waits for `fd`. Harmless when it does not."""
        who = self._waiters.get(fd)
        if who is None or who.pop(td, None) is None:
            return
        if who:
            self._watch(fd, who)
        else:
            del self._waiters[fd]
            if self._poller is not None:
                self._poller.unregister(fd)

    def _watch(self, fd: int, who: dict[Thread, int]) -> None:
        self._get_poller().register(fd, _wanted(who))

    def _get_poller(self) -> poll:
        poller = self._poller
        if poller is None:
            from select import poll as make_poll  # most guests never wait for the host

            self._eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
            self._pid = getpid()
            poller = self._poller = make_poll()
            poller.register(self._eventfd, POLLIN)
            if self._sigpipe is not None:
                poller.register(self._sigpipe[0], POLLIN)
        return poller

    def poll(self) -> list[tuple[Thread, int, int]]:
        """(thread, fd, events) for what is ready now. Does not block."""
        return self._collect(0) if self._waiters else []

    def wait(self, timeout_ns: int) -> list[tuple[Thread, int, int]]:
        """Block the host thread until a descriptor is ready, a call is posted, or the time is
        over. poll(2) counts in ms; the rest is slept exactly so that a timer is not late."""
        self._get_poller()  # from here on a post() is seen by the poll below
        if self._posted:
            return []
        if timeout_ns >= NEVER:
            return self._collect(None)
        ready = self._collect(min(timeout_ns // 1_000_000, _LONGEST_MS))
        if not ready and not self._posted and timeout_ns < 1_000_000:
            sleep(timeout_ns / 1e9)
        return ready

    def _collect(self, timeout_ms: int | None) -> list[tuple[Thread, int, int]]:
        ready: list[tuple[Thread, int, int]] = []
        for fd, revents in self._get_poller().poll(timeout_ms):
            if fd == self._eventfd:
                eventfd_read(fd)
                continue
            if self._sigpipe is not None and fd == self._sigpipe[0]:
                self._signalled(fd)
                continue
            for td, wanted in self._waiters[fd].items():
                got = revents & (wanted | _ALWAYS)
                if got:
                    ready.append((td, fd, got))
        return ready


def _wanted(who: dict[Thread, int]) -> int:
    """The events that one of them waits for."""
    events = 0
    for wanted in who.values():
        events |= wanted
    return events
