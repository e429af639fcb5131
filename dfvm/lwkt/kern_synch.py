"""Sleeping and waking: tsleep, wakeup, and what ends a sleep early.

A thread sleeps on an identity, any hashable object (a page, a lock, a pipe); whoever changes it
wakes those who sleep there, in the order in which they went to sleep. The queue is intrusive: a
sleeper links to the next one, the table points at the first. Every operation is O(1) but for
waking many.

`Synch` is the part of the scheduler that does this; lwkt_thread.Scheduler completes it.

Source: DragonFly sys/kern/kern_synch.c.
"""

from __future__ import annotations

from errno import EINTR, EWOULDBLOCK
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from dfvm.lwkt.kern_clock import TICK_NS, CalloutQueue
from dfvm.lwkt.kern_event import HostEvents
from dfvm.lwkt.panic import panic

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from dfvm.lwkt.kern_clock import Callout
    from dfvm.lwkt.lwkt_thread import Thread

# Flags of tsleep.
PCATCH: Final = 0x00000100  # signals end the sleep

# Errors of tsleep beside those of errno.h.
ERESTART: Final = -1  # a signal arrived; the system call is to be made again after it


class Synch:
    """The sleep half of the scheduler."""

    curthread: Thread  # who runs
    debug: bool  # check the order of locks (subr_witness.py)
    _slpq: dict[Hashable, Thread]  # identity → first sleeper; a ring through td_sqnext/td_sqprev
    _callouts: CalloutQueue  # what runs at a given time, the ends of timed sleeps among it
    _events: HostEvents  # sleepers that wait for the host, and calls it posted
    _next_event: int  # no callout, no posted call and no look at the host is due before this time

    def __init__(self) -> None:
        self.debug = False
        self._slpq = {}
        self._callouts = CalloutQueue()
        self._events = HostEvents()

    def setrunnable(self, td: Thread) -> None:
        """Put `td`, which is on no queue, on the run queue."""
        raise NotImplementedError

    def switch(self, td: Thread) -> None:
        """Give the CPU away: the current thread `td` has put itself on a queue. Returns when it
        is dispatched again."""
        raise NotImplementedError

    # -- going to sleep -------------------------------------------------------------------------

    def tsleep(self, ident: Hashable, flags: int, wmesg: str, timo: int = 0) -> int:
        """Sleep until wakeup(ident). Tokens are given up meanwhile; no spinlock may be held.

        :param flags: PCATCH: signals end the sleep too.
        :param wmesg: what one waits for, in a word, for people who look at the thread.
        :param timo: ticks to wait at most; 0 is for ever.
        :return: 0 woken, EWOULDBLOCK time is over, EINTR or ERESTART a signal came (PCATCH).
        """
        if timo:
            return self.tsleep_ns(ident, flags, wmesg, timo * TICK_NS)
        td = self.curthread
        if td.td_nosleep:
            self._bad_sleep(td, wmesg)
        if flags & PCATCH:
            error = td.td_cursig()
            if error:
                return error
        self._enqueue(td, ident)
        td.td_wmesg = wmesg
        td.td_sflags = flags
        td.td_error = 0
        td.td_pass += td.td_stride >> 3
        self.switch(td)
        return td.td_error

    def tsleep_ns(self, ident: Hashable, flags: int, wmesg: str, timeout_ns: int = 0) -> int:
        """tsleep with the timeout in ns instead of ticks; 0 is for ever."""
        if not timeout_ns:
            return self.tsleep(ident, flags, wmesg)
        td = self.curthread
        callout = self._callout_at(monotonic_ns() + timeout_ns, self._endtsleep, td)
        td.td_callout = callout
        try:
            return self.tsleep(ident, flags, wmesg)
        finally:
            callout.stop()
            td.td_callout = None

    def waitfd(self, fd: int, events: int, flags: int, wmesg: str, timeout_ns: int = 0) -> int:
        """Sleep until host descriptor `fd` shows one of `events` (POLLIN …) or an error; returns
        as tsleep does, with what was seen in curthread.td_revents."""
        return self.waitfds(((fd, events),), None, flags, wmesg, timeout_ns)

    def waitfds(
        self,
        fds: Sequence[tuple[int, int]],
        ident: Hashable | None,
        flags: int,
        wmesg: str,
        timeout_ns: int = 0,
    ) -> int:
        """Sleep until one of several host descriptors is ready or somebody wakes `ident`: what
        poll(2) and select(2) need that watch pipes of ours and files of the host together.
        curthread.td_revents is the events seen, 0 when it was `ident`."""
        td = self.curthread
        td.td_revents = 0
        host = self._events
        for fd, events in fds:
            host.add(td, fd, events)
        self._next_event = 0  # have a first look at the next switch
        try:
            return self.tsleep_ns(td if ident is None else ident, flags, wmesg, timeout_ns)
        finally:
            for fd, _ in fds:
                host.remove(td, fd)

    # -- waking up ------------------------------------------------------------------------------

    def wakeup(self, ident: Hashable) -> None:
        """Wake every thread that sleeps on `ident`, first come first."""
        head = self._slpq.pop(ident, None)
        if head is None:
            return
        td = head
        while True:
            following = td.td_sqnext
            td.td_wchan = None
            self.setrunnable(td)
            if following is head:
                return
            td = following

    def wakeup_one(self, ident: Hashable) -> bool:
        """Wake the thread that has slept on `ident` longest. False if there is none."""
        td = self._slpq.get(ident)
        if td is None:
            return False
        self._unsleep(td)
        self.setrunnable(td)
        return True

    def interrupt(self, td: Thread, error: int = EINTR) -> bool:
        """A signal for `td`: end its sleep with `error` if it sleeps with PCATCH. True if it did;
        otherwise its td_cursig is asked when it next wants to sleep."""
        if td.td_wchan is None or not td.td_sflags & PCATCH:
            return False
        self._unsleep(td)
        td.td_error = error
        self.setrunnable(td)
        return True

    def sleepers(self, ident: Hashable) -> list[Thread]:
        """The threads that sleep on `ident`, first come first."""
        found: list[Thread] = []
        head = td = self._slpq.get(ident)
        while td is not None:
            found.append(td)
            td = td.td_sqnext if td.td_sqnext is not head else None
        return found

    def wakeup_thread(self, td: Thread) -> None:
        """Wake one of sleepers() in particular."""
        self._unsleep(td)
        self.setrunnable(td)

    def requeue(self, td: Thread, ident: Hashable) -> None:
        """Let one of sleepers() sleep on, last in the queue of another identity."""
        self._unsleep(td)
        self._enqueue(td, ident)

    def _enqueue(self, td: Thread, ident: Hashable) -> None:
        """Put `td`, which is on no queue, on the sleep queue of `ident`."""
        slpq = self._slpq
        head = slpq.get(ident)
        if head is None:
            slpq[ident] = td.td_sqnext = td.td_sqprev = td
        else:
            tail = head.td_sqprev
            td.td_sqnext = head
            td.td_sqprev = tail
            tail.td_sqnext = head.td_sqprev = td
        td.td_wchan = ident

    def _unsleep(self, td: Thread) -> None:
        """Take a sleeping thread off its queue."""
        following = td.td_sqnext
        if following is td:
            del self._slpq[td.td_wchan]
        else:
            previous = td.td_sqprev
            previous.td_sqnext = following
            following.td_sqprev = previous
            if self._slpq[td.td_wchan] is td:
                self._slpq[td.td_wchan] = following
        td.td_wchan = None

    def _endtsleep(self, td: Thread) -> None:
        """Callout: the time of a timed sleep is over. When it has been woken but has not run
        yet, the wakeup came first and counts."""
        if td.td_wchan is not None:
            self._unsleep(td)
            td.td_error = EWOULDBLOCK
            self.setrunnable(td)

    def _fd_ready(self, td: Thread, events: int) -> None:
        """A host descriptor `td` waits for is ready."""
        td.td_revents |= events
        if td.td_wchan is not None:
            self._unsleep(td)
            self.setrunnable(td)

    def _bad_sleep(self, td: Thread, wmesg: str) -> None:
        held = ", ".join(spin.desc for spin in td.td_spinlocks)
        what = f"spinlock {held} held" if held else "inside a callout"
        panic(f"tsleep: {td.td_name} sleeps ({wmesg}) with {what}")

    # -- callouts -------------------------------------------------------------------------------

    def callout(self, ns_from_now: int, fn: Callable[..., object], *args: object) -> Callout:
        """Call fn(*args) in `ns_from_now` ns, in the context of whichever thread runs then. It
        must not sleep."""
        return self._callout_at(monotonic_ns() + ns_from_now, fn, *args)

    def _callout_at(self, when: int, fn: Callable[..., object], *args: object) -> Callout:
        if when < self._next_event:
            self._next_event = when
        return self._callouts.add(when, fn, args)
