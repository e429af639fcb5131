"""Kernel threads and the scheduler that runs them, one at a time.

A thread is a greenlet. When it gives the CPU away it picks its successor itself and switches
straight to it. When nothing can run, the idle thread waits for a callout or for the host. The
thread that made the scheduler is thread0; it is an ordinary thread that may sleep, and it is where
an exception that no thread caught comes out.

Who runs next: every thread has a virtual time, td_pass, and the smallest goes first, ties in
order of arrival. A turn of the CPU costs a thread its stride, which a nicer thread has longer; one
that goes to sleep before its slice is over pays an eighth. So threads of one nice level take turns,
levels share the CPU in the ratio of their weights, nobody starves, a pipe's two ends get ahead of
a thread that computes, and none of it depends on the clock, which is what makes a run repeat
itself.

A real-time thread goes before all others, by its priority: its td_pass is minus that, and stays.
It keeps the CPU until it sleeps or a higher one comes; with a slice (round robin) its equals take
turns. After 19 ticks of real-time threads the others get one, so that nobody is starved for ever.

Source: DragonFly sys/kern/lwkt_thread.c; the weights stand in for usched_dfly.c.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from greenlet import GreenletExit, getcurrent, greenlet

from dfvm.lwkt.kern_clock import HZ, NEVER, TICK_NS, LoadAverage
from dfvm.lwkt.kern_synch import PCATCH, Synch
from dfvm.lwkt.panic import panic

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from dfvm.lwkt.kern_clock import Callout
    from dfvm.lwkt.kern_lock import Lock
    from dfvm.lwkt.kern_spinlock import Spinlock
    from dfvm.lwkt.lwkt_token import TokenRef
    from dfvm.lwkt.subr_witness import Witness

PRIO_MIN: Final = -20
PRIO_MAX: Final = 19
RTPRIO_MAX: Final = 99
RR_SLICE_NS: Final = 100_000_000  # how long a round-robin thread keeps its equals waiting
_STRIDE0: Final = 4096  # virtual time that a whole turn costs at nice 0
# One nice level is a factor of 1.25, so that a step costs or gains about a tenth of the CPU
# wherever one stands.
_STRIDES: Final = tuple(round(_STRIDE0 * 1.25**nice) for nice in range(PRIO_MIN, PRIO_MAX + 1))

_DAEMON_CHANCES: Final = 4  # timeouts of each daemon before a standstill is called a deadlock
_RT_TICKS: Final = 19  # of real-time threads, before others have a turn
_FIRST: Final = -1000  # a td_pass before everybody's
_FDPOLL_NS: Final = 1_000_000  # how often host descriptors are looked at while threads run


class Deadlock(Exception):
    """Nothing can run and nothing can change that. The argument is deadlock_report()."""


class LwktExit(BaseException):
    """Unwinds a thread that ends itself; see lwkt_exit."""


def lwkt_exit() -> None:
    """End the current thread, from however deep; `finally` clauses on the way are run."""
    raise LwktExit


def _no_signal() -> int:
    return 0


def _nothing() -> None:
    pass


def _is_live(td: Thread) -> bool:
    return not td.daemon


class Thread:
    """One kernel thread.

    Source: DragonFly sys/sys/thread.h, struct thread.
    """

    __slots__ = (
        "_td_nice", "daemon", "td_ast", "td_callout", "td_cursig", "td_error", "td_fn",
        "td_greenlet", "td_locks", "td_lwp", "td_name", "td_nosleep", "td_pass", "td_proc",
        "td_resume", "td_revents", "td_rrleft", "td_rtprio", "td_runtime_ns", "td_sched",
        "td_sflags", "td_spinlocks", "td_sqnext", "td_sqprev", "td_stride", "td_toks", "td_wchan",
        "td_wmesg", "user_ns",
    )  # fmt: skip

    td_name: str  # for people
    td_sched: Scheduler  # who runs it; never changes
    td_greenlet: greenlet  # its stack
    td_resume: Callable[[], object]  # td_greenlet.switch, bound once
    td_fn: tuple[Callable[..., object], tuple[Any, ...]] | None  # what it runs; None: thread0, idle
    daemon: bool  # run() does not wait for it; never changes once it runs
    td_proc: Any  # the process it works for, or None; the kernel layer's
    td_lwp: Any  # and the lwp
    td_ast: Callable[[], None]  # told, while it runs, that another should at once: preempt()
    td_cursig: Callable[[], int]  # asked before a PCATCH sleep: the error a pending signal makes
    #                               of it, 0 without one
    td_wchan: Hashable | None  # what it sleeps on; None iff it is on no sleep queue
    td_wmesg: str  # why it sleeps, or slept last
    td_sflags: int  # flags of that tsleep
    td_error: int  # what that tsleep is to return
    td_revents: int  # host events that ended the last waitfd
    td_callout: Callout | None  # end of a timed sleep
    td_sqnext: Thread  # neighbours in the ring of sleepers; meaningless when awake
    td_sqprev: Thread
    td_pass: int  # virtual time at which it is to run next; grows. Real-time: minus td_rtprio
    td_stride: int  # what a whole turn adds to td_pass; from td_nice. Real-time: 0
    td_rtprio: int  # real-time priority, 1 … RTPRIO_MAX; 0: it is none. See set_realtime
    td_rrleft: int  # round robin: ticks left of its slice; -1 when it has none
    td_toks: list[TokenRef]  # tokens held, in order of acquisition; in force while it runs
    td_locks: list[Lock]  # lockmgr locks held, an element for each acquisition
    td_spinlocks: list[Spinlock]  # spinlocks held, in order of acquisition
    td_nosleep: int  # reasons not to sleep: spinlocks held, plus one inside a callout
    td_runtime_ns: int  # CPU time up to the last switch away from it
    user_ns: int  # the part of its CPU time spent in the guest; counted by who runs the guest

    def __init__(self, sched: Scheduler, stack: greenlet, name: str, nice: int) -> None:
        self.td_sched = sched
        self.td_greenlet = stack
        self.td_resume = stack.switch
        self.td_fn = None
        self.td_name = name
        self.daemon = False
        self.td_proc = None
        self.td_lwp = None
        self.td_ast = _nothing
        self.td_cursig = _no_signal
        self.td_wchan = None
        self.td_wmesg = ""
        self.td_sflags = 0
        self.td_error = 0
        self.td_revents = 0
        self.td_callout = None
        self.td_sqnext = self
        self.td_sqprev = self
        self.td_pass = 0
        self.td_rtprio = 0
        self.td_rrleft = -1
        self.td_nice = nice
        self.td_toks = []
        self.td_locks = []
        self.td_spinlocks = []
        self.td_nosleep = 0
        self.td_runtime_ns = 0
        self.user_ns = 0

    def __repr__(self) -> str:
        return f"<Thread {self.td_name}>"

    @property
    def td_nice(self) -> int:
        """Nice level, PRIO_MIN (favoured) to PRIO_MAX; felt from the next turn on."""
        return self._td_nice

    @td_nice.setter
    def td_nice(self, nice: int) -> None:
        self._td_nice: int = min(max(nice, PRIO_MIN), PRIO_MAX)
        self.td_stride = 0 if self.td_rtprio else _STRIDES[self._td_nice - PRIO_MIN]

    @property
    def cpu_ns(self) -> int:
        """CPU time used, up to now."""
        if self is self.td_sched.curthread:
            return self.td_runtime_ns + monotonic_ns() - self.td_sched.switch_ns
        return self.td_runtime_ns

    @property
    def sys_ns(self) -> int:
        """CPU time used in the kernel."""
        return max(self.cpu_ns - self.user_ns, 0)


class Scheduler(Synch):
    """One machine's threads, and the one CPU of its kernel."""

    thread0: Thread  # the greenlet that made the scheduler
    hz: Final = HZ
    switch_ns: int  # when the current thread got the CPU
    signals_can_come: bool  # the host may deliver signals to guests (through post): a thread that
    #                         sleeps with PCATCH is waiting for the world, not deadlocked
    witness: Witness | None  # what has been seen of lock order; None unless debug
    _threads: dict[Thread, None]  # every thread but the idle one, in order of creation
    _nlive: int  # threads that run() waits for: not thread0, no daemons
    _runq: list[tuple[int, int, Thread]]  # heap of (td_pass, order of arrival, thread)
    _seq: int  # arrivals at the run queue so far
    _vpass: int  # td_pass of the last thread dispatched: the virtual time
    _head: int  # arrivals at the run queue so far that went before their equals, counted down
    _rt_ticks: int  # ticks of real-time threads since others had a turn
    _rt_rest: bool  # it is the others' turn
    _until: Callable[[], bool] | None  # condition that ends run(); asked at every switch
    _idle: Thread  # runs when nothing else can
    _cradle: greenlet
    # Where every thread's stack begins. A greenlet begins on top of the stack of the one that
    # switches to it first, and with as much of Python's recursion limit used: begun by whoever
    # happens to make way for it, the child of a child of a child … would have nothing left.
    _boot_ns: int  # clock at the start, where ticks count from
    _idle_moves: int  # sum of what grows as the live threads run, when nothing could last time
    _idle_ran: int  # callouts run when that last changed
    _load: LoadAverage  # of threads that are no daemons
    _abort: BaseException | None  # to be raised out of run()
    _running: bool  # thread0 is inside run()
    broken: str  # which thread an exception ended that nobody caught; "" while there is none
    _dying: bool  # close() is unwinding the threads

    def __init__(self) -> None:
        super().__init__()
        self._boot_ns = self.switch_ns = monotonic_ns()
        self._load = LoadAverage(self._boot_ns)
        self._next_event = NEVER
        self._runq = []
        self._seq = 0
        self._vpass = 0
        self._head = 0
        self._rt_ticks = 0
        self._rt_rest = False
        self._nlive = 0
        self._until = None
        self._idle_moves = 0
        self._idle_ran = 0
        self._abort = None
        self._running = False
        self.broken = ""
        self._dying = False
        self.signals_can_come = False
        self.witness = None
        self.thread0 = Thread(self, getcurrent(), "thread0", 0)
        self.curthread = self.thread0
        self._threads = {self.thread0: None}
        self._idle = self._make_idle()
        self._cradle = greenlet(_cradle_loop, self.thread0.td_greenlet)

    # -- time -----------------------------------------------------------------------------------

    @property
    def ticks(self) -> int:
        """Ticks since the scheduler was made."""
        return (monotonic_ns() - self._boot_ns) // TICK_NS

    @property
    def uptime_ns(self) -> int:
        """ns since the scheduler was made."""
        return monotonic_ns() - self._boot_ns

    # -- threads --------------------------------------------------------------------------------

    def create(
        self,
        fn: Callable[..., object],
        *args: Any,
        name: str = "",
        nice: int = 0,
        daemon: bool = False,
    ) -> Thread:
        """A new thread that calls fn(*args), and ends when that returns. It is runnable at once
        but does not run before the caller gives the CPU away."""
        td = Thread(self, greenlet(self._start, self.thread0.td_greenlet), name, nice)
        td.td_name = name or f"td{id(td):x}"
        td.td_fn = (fn, args)
        td.daemon = daemon
        td.td_resume = lambda: self._bear(td)
        self._threads[td] = None
        if not daemon:
            self._nlive += 1
        td.td_pass = self._vpass
        self.setrunnable(td)
        return td

    def threads(self) -> Iterator[Thread]:
        """Every thread, in order of creation."""
        return iter(tuple(self._threads))

    def _bear(self, td: Thread) -> None:
        """The first dispatch of `td`."""
        td.td_resume = td.td_greenlet.switch
        self._cradle.switch(td.td_greenlet)

    def _start(self) -> greenlet | None:
        """First and last frame of every thread."""
        td = self.curthread
        assert td.td_fn is not None
        fn, args = td.td_fn
        try:
            fn(*args)
        except LwktExit:
            pass
        except GreenletExit:
            return None  # close(), or the garbage collector: nobody is there to go on
        except BaseException as e:
            self.broken = f"{td.td_name} ended in the middle: {e!r}"
            raise
        finally:
            self._reap(td)
        if td.td_toks or td.td_locks or td.td_spinlocks:
            panic(f"{td.td_name} ended holding {_held(td)}")
        # A greenlet that ends switches to its parent and hands it its result: make our successor
        # the parent, or the cradle if it has yet to begin.
        successor = self._pick(td)
        if successor.td_resume == successor.td_greenlet.switch:
            td.td_greenlet.parent = successor.td_greenlet
            return None
        successor.td_resume = successor.td_greenlet.switch
        td.td_greenlet.parent = self._cradle
        return successor.td_greenlet

    def _reap(self, td: Thread) -> None:
        """`td`, which runs, is about to end."""
        del self._threads[td]
        if not td.daemon:
            self._nlive -= 1
            if not self._nlive and self.thread0.td_wchan is self:
                self.wakeup_one(self)

    # -- choosing -------------------------------------------------------------------------------

    def setrunnable(self, td: Thread) -> None:
        """Put `td`, which is on no queue, on the run queue. If it slept it does not get back what
        it did not use: it starts at the present virtual time."""
        if td.td_pass < self._vpass:
            if not td.td_rtprio:
                td.td_pass = self._vpass
            elif td.td_pass < self.curthread.td_pass:
                self.curthread.td_ast()
        self._seq += 1
        heappush(self._runq, (td.td_pass, self._seq, td))

    def switch(self, td: Thread) -> None:
        """Give the CPU away: the current thread `td` has put itself on a queue. Returns when it
        is dispatched again."""
        successor = self._pick(td)
        if successor is td:
            return
        try:
            successor.td_resume()
        except BaseException:
            self._interrupted(td)
            raise
        if self._abort is not None and td is self.thread0:
            self._raise_abort()

    def _pick(self, td: Thread) -> Thread:
        """Account for `td`, which leaves the CPU, and take the next thread off the run queue. The
        caller switches to it."""
        now = monotonic_ns()
        td.td_runtime_ns += now - self.switch_ns
        self.switch_ns = now
        if now >= self._next_event:
            self._softclock(now)
        until = self._until
        if until is not None and self.thread0.td_wchan is self and until():
            self._unsleep(self.thread0)
            self.curthread = self.thread0
            return self.thread0
        if self._runq:
            vpass, _, successor = heappop(self._runq)
            if vpass >= 0:
                self._vpass = vpass
            elif self._rt_rest:
                successor = self._rest(successor)
        else:
            successor = self._idle
        self.curthread = successor
        return successor

    def _interrupted(self, td: Thread) -> None:
        """An exception arrives in place of a dispatch. In thread0 it is the end of another
        thread that nobody caught; thread0 has the CPU now, wherever it was queued."""
        if td is not self.thread0:
            return
        if td.td_wchan is not None:
            self._unsleep(td)
        else:
            self._runq = [item for item in self._runq if item[2] is not td]
            self._runq.sort()
        self.curthread = td
        self.switch_ns = monotonic_ns()
        if self._idle.td_greenlet.dead:
            self._idle = self._make_idle()

    def yield_(self) -> None:
        """Let others run, if any want to; the turn is counted as used."""
        td = self.curthread
        if td.td_nosleep:
            self._bad_sleep(td, "yield")
        if monotonic_ns() >= self._next_event:
            self._softclock(monotonic_ns())
        if self._runq or self._until is not None:
            if self._rt_rest and td.td_rtprio:
                self._put_first(td)
            else:
                td.td_pass += td.td_stride
                self.setrunnable(td)
            self.switch(td)

    def hardclock(self) -> bool:
        """The clock tick of a thread that computes: run what is due. Returns whether another
        thread waits for the CPU."""
        now = monotonic_ns()
        if now >= self._next_event:
            self._softclock(now)
        if self._load.due(now):
            self._load.sample(now, self._running_threads())
        if self.curthread.td_rtprio:
            return self._rt_tick(self.curthread)
        return bool(self._runq)

    # -- real-time threads ----------------------------------------------------------------------

    def set_realtime(self, td: Thread, rtprio: int, round_robin: bool) -> None:
        """Make `td` a real-time thread, or with rtprio 0 one of the others. It goes behind those
        of its new priority, or before them if it had a higher one."""
        lowered = 0 < rtprio < td.td_rtprio
        td.td_rtprio = rtprio
        td.td_rrleft = RR_SLICE_NS // TICK_NS if rtprio and round_robin else -1
        td.td_nice = td.td_nice  # sets the stride
        td.td_pass = -rtprio if rtprio else self._vpass
        if td is self.curthread:
            if self._runq and self._outranked(td):
                td.td_ast()
        elif any(item[2] is td for item in self._runq):
            self._runq = [item for item in self._runq if item[2] is not td]
            heapify(self._runq)
            if lowered:
                self._put_first(td)
            else:
                self.setrunnable(td)

    def _outranked(self, td: Thread) -> bool:
        first = self._runq[0][0]
        return first < 0 and first < td.td_pass

    def preempt(self) -> None:
        """Give the CPU to a real-time thread, or to thread0 that is to end run(), if there is one
        that goes before the current one. That stays the first of its kind."""
        td = self.curthread
        if self._runq and self._outranked(td):
            self._put_first(td)
            self.switch(td)

    def _put_first(self, td: Thread) -> None:
        """Put `td`, which is on no queue, on the run queue before its equals."""
        self._head -= 1
        heappush(self._runq, (td.td_pass, self._head, td))

    def _rt_tick(self, td: Thread) -> bool:
        """The clock tick of a real-time thread. Whether it is to yield."""
        self._rt_ticks += 1
        if self._rt_ticks >= _RT_TICKS:
            self._rt_ticks = 0
            self._rt_rest = any(item[0] >= 0 for item in self._runq)
            if self._rt_rest:
                return True
        if td.td_rrleft > 0:
            td.td_rrleft -= 1
            if not td.td_rrleft:
                td.td_rrleft = RR_SLICE_NS // TICK_NS
                return bool(self._runq) and self._runq[0][0] == td.td_pass
        return False

    def _rest(self, first: Thread) -> Thread:
        """It is the turn of those that are not real-time. `first` would be next; who is next
        instead, if there is somebody."""
        self._rt_rest = False
        others = [item for item in self._runq if item[0] >= 0]
        if not others:
            return first
        self._head -= 1
        self._runq = [item for item in self._runq if item[0] < 0]
        self._runq.append((first.td_pass, self._head, first))
        heapify(others)
        self._vpass, _, successor = heappop(others)
        self._runq += others
        heapify(self._runq)
        return successor

    # -- load ------------------------------------------------------------------------------------

    def _running_threads(self) -> int:
        """The current thread, and those that wait for the CPU."""
        return 1 + sum(1 for _, _, td in self._runq if not td.daemon)

    def loadavg(self) -> tuple[float, ...]:
        """The load of the last minute, of five, and of fifteen."""
        self._load.sample(monotonic_ns(), self._running_threads())
        return self._load.ldavg

    # -- events ---------------------------------------------------------------------------------

    def post(self, fn: Callable[..., object], *args: object) -> None:
        """Have fn(*args) called at the next switch, clock tick or idle moment. For other host
        threads and host signal handlers, which may call nothing else here. It must not sleep."""
        self._events.post(fn, args)
        self._next_event = 0

    def _softclock(self, now: int) -> None:
        """Run posted calls and due callouts, look at the host's descriptors, and find out when to
        do so next."""
        if self._dying:
            raise GreenletExit
        td = self.curthread
        td.td_nosleep += 1
        try:
            if self._events.posted:
                self._events.run_posted()
            self._callouts.run_due(now)
            for sleeper, _, events in self._events.poll():
                self._fd_ready(sleeper, events)
        finally:
            td.td_nosleep -= 1
        when = self._callouts.first_time()
        if self._events:
            when = min(when, now + _FDPOLL_NS)
        self._next_event = when
        if self._events.posted:  # in the meantime, and our store may have hidden its own
            self._next_event = 0

    def _make_idle(self) -> Thread:
        return Thread(self, greenlet(self._idle_loop, self.thread0.td_greenlet), "idle", 0)

    def _idle_loop(self, *_dispatched: object) -> None:
        """Wait until a thread can run, then run it."""
        td = self._idle
        while True:
            successor = self._pick(td)
            if successor is not td:
                successor.td_resume()
                continue
            if self._is_deadlock():
                raise Deadlock(self.deadlock_report())
            when = self._callouts.first_time()
            wait = when if when == NEVER else max(when - monotonic_ns(), 0)
            for sleeper, _, events in self._events.wait(wait):
                self._fd_ready(sleeper, events)

    def _is_deadlock(self) -> bool:
        """Nothing runs. Can anything still happen to a thread that is not a daemon? A daemon
        that wakes up now and then might help, but once all of them have had their chances and
        nobody has moved, they won't."""
        if self._events.posted or self._events.someone(_is_live):
            return False
        daemons = 0
        for callout in self._callouts:
            if callout.c_fn != self._endtsleep or not callout.c_args[0].daemon:
                return False
            daemons += 1
        if self.signals_can_come and any(
            td.td_wchan is not None and td.td_sflags & PCATCH
            for td in filter(_is_live, self._threads)
        ):
            return False
        moves = sum(
            td.td_runtime_ns if td.td_rtprio else td.td_pass
            for td in filter(_is_live, self._threads)
        )
        if moves != self._idle_moves:
            self._idle_moves = moves
            self._idle_ran = self._callouts.ran
        return self._callouts.ran - self._idle_ran >= _DAEMON_CHANCES * daemons

    # -- running --------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Run threads until only daemons are left, or until() is true; called by thread0.

        Host signals that Python would turn into KeyboardInterrupt end it at the next switch,
        between two threads, so that everything stays as it is and may be run on.

        :raises Deadlock: when every thread sleeps and nothing can wake one.
        :raises KeyboardInterrupt: on SIGINT.
        """
        td = self.thread0
        if self.curthread is not td or self._running:
            panic(f"run: called by {self.curthread.td_name}")
        self._events.adopt()
        self._running = True
        self._until = until
        restore = self._catch_sigint()
        self._events.listen()
        try:
            if self._abort is not None:  # from before: there was nobody to wake
                self._raise_abort()
            while self._nlive and not (until is not None and until()):
                self.tsleep(self, 0, "run")
        finally:
            self._running = False
            self._until = None
            self._events.unlisten()
            restore()

    def _catch_sigint(self) -> Callable[[], object]:
        """Turn SIGINT into a posted call while run() is in charge: Python would raise in the
        middle of whatever runs, or inside an engine callback, where it is lost. Returns what
        undoes it. A second SIGINT before the first is honoured raises on the spot."""
        import signal

        def handler(signo: int, frame: object) -> None:
            if self._abort is not None:
                raise KeyboardInterrupt
            self.interrupt_run()

        try:
            if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
                return _no_signal
            signal.signal(signal.SIGINT, handler)
        except ValueError:  # not Python's main thread: SIGINT does not come here
            return _no_signal
        return lambda: signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt_run(self) -> None:
        """Have run() raise KeyboardInterrupt at the next switch, or when it is called next."""
        self._abort = KeyboardInterrupt()
        self.post(self._abort_run)

    def _abort_run(self) -> None:
        """Posted: make thread0 the next to run."""
        td = self.thread0
        if td.td_wchan is not None:
            self._unsleep(td)
            td.td_pass = _FIRST
            self._seq += 1
            heappush(self._runq, (_FIRST, self._seq, td))
            self.curthread.td_ast()

    def _raise_abort(self) -> None:
        exc, self._abort = self._abort, None
        assert exc is not None
        raise exc

    def at_home(self) -> bool:
        """Whether thread0 is what the host's thread runs, so that close() may be called."""
        return getcurrent() is self.thread0.td_greenlet

    def close(self) -> None:
        """End every thread where it stands; called by thread0. Their `finally` clauses are run,
        and a sleep in one of them ends it at once."""
        self._dying = True
        self._next_event = 0  # _softclock, at the next switch, ends a thread that wants to sleep
        for td in self.threads():
            if td is not self.thread0:
                if td.td_wchan is not None:
                    self._unsleep(td)
                self.curthread = td
                td.td_greenlet.throw(GreenletExit)
                self._threads.pop(td, None)
        # A greenlet that stands somewhere is never collected, nor is what its frames refer to.
        self._idle.td_greenlet.throw(GreenletExit)
        self._cradle.throw(GreenletExit)
        self._events.close()
        self._runq.clear()
        self.curthread = self.thread0

    # -- reports --------------------------------------------------------------------------------

    def deadlock_report(self) -> str:
        """Every thread: its state, what it waits for and for how long at most, what it holds."""
        runnable = {id(item[2]) for item in self._runq}
        lines = []
        for td in self._threads:
            if td is self.curthread:
                state = "running"
            elif td.td_wchan is not None:
                state = f"sleeps on {td.td_wmesg} ({_name(td.td_wchan)})"
                if td.td_sflags & PCATCH:
                    state += ", interruptible"
                fds = self._events.waiting(td)
                if fds:
                    state += f", host fd {', '.join(map(str, fds))}"
                if td.td_callout is not None and td.td_callout.pending:
                    left = td.td_callout.c_time - monotonic_ns()
                    state += f", {left / 1e9:.3f} s left"
            else:
                state = "runnable" if id(td) in runnable else "not started"
            held = _held(td)
            lines.append(
                f"  {td.td_name}{' (daemon)' if td.daemon else ''}: {state}"
                + (f"; holds {held}" if held else "")
            )
        return "kernel threads:\n" + "\n".join(lines)


def _cradle_loop(born: greenlet) -> None:
    """Begin one greenlet after the other; what comes back from one is the next."""
    while True:
        born = born.switch()


def _held(td: Thread) -> str:
    """What `td` holds, in words."""
    held = [f"lock {lock.lk_wmesg}" for lock in td.td_locks]
    held += [f"token {ref.tok.desc}" for ref in td.td_toks]
    held += [f"spinlock {spin.desc}" for spin in td.td_spinlocks]
    return ", ".join(held)


def _name(ident: Hashable) -> str:
    """A wait channel in a line."""
    text = repr(ident)
    return text if len(text) <= 60 else text[:57] + "..."
