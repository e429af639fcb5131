"""Callouts: functions that run at a given time, the time itself, and the load averages.

The scheduler keeps one queue of them and runs what is due when it switches threads, at the clock
tick of a computing thread, and when the machine idles. A callout must not sleep.

Source: DragonFly sys/kern/kern_timeout.c, sys/kern/kern_clock.c (hz, ticks).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import exp
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HZ: Final = 100  # ticks in a second, as DragonFly's default
TICK_NS: Final = 1_000_000_000 // HZ
NEVER: Final = 1 << 62  # a time that does not come

LOAD_INTERVAL_NS: Final = 5_000_000_000  # between two samples of the load
_LOAD_LATE_NS: Final = 1_000_000_000  # how late a sample may be taken of who runs
_LOAD_DECAY: Final = tuple(exp(-5 / (60 * minutes)) for minutes in (1, 5, 15))

_COMPACT_MIN: Final = 64  # stopped callouts that may lie about before the heap is cleaned


class Callout:
    """One function waiting for its time."""

    __slots__ = ("c_args", "c_fn", "c_queue", "c_time")

    c_time: int  # when, in ns of the scheduler's clock; never changes
    c_fn: Callable[..., object] | None  # None: has run, or was stopped
    c_args: tuple[Any, ...]
    c_queue: CalloutQueue

    def __init__(
        self, queue: CalloutQueue, when: int, fn: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.c_queue = queue
        self.c_time = when
        self.c_fn = fn
        self.c_args = args

    @property
    def pending(self) -> bool:
        """Neither run nor stopped yet."""
        return self.c_fn is not None

    def stop(self) -> bool:
        """Do not run. True if that is in time, False when it has run or was stopped before."""
        if self.c_fn is None:
            return False
        self.c_fn = None
        self.c_args = ()
        self.c_queue.stopped()
        return True


class CalloutQueue:
    """Pending callouts in order of time, first come first served among equals."""

    __slots__ = ("_heap", "_seq", "_stopped", "ran")

    _heap: list[tuple[int, int, Callout]]  # (time, order of arrival, callout), stopped ones too
    _seq: int  # arrivals so far; makes the order total
    ran: int  # callouts run so far
    _stopped: int  # stopped callouts still in the heap

    def __init__(self) -> None:
        self._heap = []
        self._seq = 0
        self._stopped = 0
        self.ran = 0

    def __len__(self) -> int:
        """Callouts that will run unless they are stopped."""
        return len(self._heap) - self._stopped

    def __iter__(self) -> Iterator[Callout]:
        """Those callouts, in no order."""
        return (item[2] for item in self._heap if item[2].c_fn is not None)

    def add(self, when: int, fn: Callable[..., object], args: tuple[Any, ...]) -> Callout:
        """Have fn(*args) called at `when`."""
        callout = Callout(self, when, fn, args)
        self._seq += 1
        heappush(self._heap, (when, self._seq, callout))
        return callout

    def stopped(self) -> None:
        """A queued callout was stopped. It stays in the heap until its time, unless such corpses
        come to outnumber the living: a server that always sets and stops timeouts must not grow."""
        self._stopped += 1
        if self._stopped > _COMPACT_MIN and self._stopped * 2 > len(self._heap):
            self._heap = [item for item in self._heap if item[2].c_fn is not None]
            heapify(self._heap)
            self._stopped = 0

    def first_time(self) -> int:
        """When the next callout is due; NEVER when there is none."""
        heap = self._heap
        while heap and heap[0][2].c_fn is None:
            heappop(heap)
            self._stopped -= 1
        return heap[0][0] if heap else NEVER

    def run_due(self, now: int) -> None:
        """Run every callout whose time has come, including those that these add for `now`."""
        while self.first_time() <= now:
            callout = heappop(self._heap)[2]
            fn, args = callout.c_fn, callout.c_args
            assert fn is not None  # first_time has just removed the stopped ones
            callout.c_fn = None
            callout.c_args = ()
            self.ran += 1
            fn(*args)


class LoadAverage:
    """How many threads wanted the CPU in the last minute, five, and fifteen: the number is taken
    every five seconds, and what was counts less and less.

    Nothing is set up to run every five seconds, which would keep an idle machine busy. A sample
    that nobody took in time is one of an idle machine: a thread that runs meets a clock tick.

    Source: DragonFly sys/kern/kern_synch.c (loadav).
    """

    __slots__ = ("_next", "ldavg")

    ldavg: tuple[float, ...]  # as of the last sample
    _next: int  # when the next sample is due

    def __init__(self, now: int) -> None:
        self.ldavg = (0.0,) * len(_LOAD_DECAY)
        self._next = now + LOAD_INTERVAL_NS

    def due(self, now: int) -> bool:
        """Whether it is time for a sample."""
        return now >= self._next

    def sample(self, now: int, running: int) -> None:
        """Take the samples that are due; `running` threads want the CPU now."""
        while now >= self._next:
            n = running if now - self._next <= _LOAD_LATE_NS else 0
            self.ldavg = tuple(
                average * decay + n * (1 - decay)
                for average, decay in zip(self.ldavg, _LOAD_DECAY, strict=True)
            )
            self._next += LOAD_INTERVAL_NS
