"""Threads: who runs next, what ends them, how run() ends."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.lwkt.lwkt_thread import Deadlock, Scheduler, lwkt_exit
from dfvm.lwkt.panic import Panic

MS = 1_000_000


def test_round_robin(sched: Scheduler) -> None:
    turns: list[str] = []

    def worker(name: str) -> None:
        for _ in range(3):
            turns.append(name)
            sched.yield_()

    for name in "abc":
        sched.create(worker, name)
    sched.run()
    assert "".join(turns) == "abcabcabc"


def shares(levels: list[int], turns: int) -> list[int]:
    """Turns of threads that always compute, at these nice levels."""
    sched = Scheduler()
    count = [0] * len(levels)

    def hog(n: int) -> None:
        while True:
            count[n] += 1
            sched.yield_()

    for n, nice in enumerate(levels):
        sched.create(hog, n, nice=nice)
    sched.run(until=lambda: sum(count) >= turns)
    sched.close()
    return count


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-20, 19), min_size=2, max_size=6))
def test_nice_levels_share_by_weight_and_nobody_starves(levels: list[int]) -> None:
    turns = 3000
    count = shares(levels, turns)
    weights = [1.25**-nice for nice in levels]
    for got, weight in zip(count, weights, strict=True):
        fair = turns * weight / sum(weights)
        assert abs(got - fair) <= 2 + fair * 0.02
        assert got >= 1


def test_same_history_every_time() -> None:
    assert shares([0, 5, -5, 0], 500) == shares([0, 5, -5, 0], 500)


def test_equal_realtime_threads_take_no_turns(sched: Scheduler) -> None:
    """A thread that goes first until it sleeps also goes first after the others had a turn."""
    ticks: list[str] = []

    def compute(name: str, rtprio: int) -> None:
        sched.set_realtime(sched.curthread, rtprio, False)
        for _ in range(50):
            ticks.append(name)
            if sched.hardclock():
                sched.yield_()

    def starter() -> None:
        sched.set_realtime(sched.curthread, 9, False)
        for name in "ab":
            td = sched.create(compute, name, 5, name=name)
            sched.set_realtime(td, 5, False)
        sched.create(compute, "-", 0, name="-")

    sched.create(starter)
    sched.run()
    order = "".join(ticks)
    assert order.replace("-", "") == 50 * "a" + 50 * "b"
    assert order.rstrip("-").split("-") == [
        19 * "a",
        19 * "a",
        12 * "a" + 7 * "b",
        19 * "b",
        19 * "b",
        5 * "b",
    ]


def test_realtime_threads_that_are_moved(sched: Scheduler) -> None:
    """One that is raised goes behind its new equals, one that is lowered before them."""

    def order(moved: int, rtprio: int) -> str:
        ran: list[str] = []

        def starter() -> None:
            sched.set_realtime(sched.curthread, 9, False)
            threads = [sched.create(ran.append, name) for name in "abcd"]
            for td, prio in zip(threads, (3, 3, 5, 5), strict=True):
                sched.set_realtime(td, prio, False)
            sched.set_realtime(threads[moved], rtprio, False)

        sched.create(starter)
        sched.run()
        return "".join(ran)

    assert order(3, 3) == "cdab"
    assert order(0, 5) == "cdab"
    assert order(2, 1) == "dabc"
    assert order(0, 6) == "acdb"


def test_a_realtime_thread_does_not_keep_run_from_ending(sched: Scheduler) -> None:
    ticks = 0

    def compute() -> None:
        nonlocal ticks
        td = sched.curthread
        asked: list[bool] = []
        td.td_ast = lambda: asked.append(True)
        sched.set_realtime(td, 9, False)
        sched.interrupt_run()
        while ticks < 100:
            if sched.hardclock():
                sched.yield_()
            ticks += 1
            if asked:
                sched.preempt()

    sched.create(compute)
    with pytest.raises(KeyboardInterrupt):
        sched.run()
    assert ticks == 1


def test_sleepers_get_ahead_of_those_who_compute(sched: Scheduler) -> None:
    turns: list[str] = []

    def hog() -> None:
        while True:
            turns.append("h")
            sched.yield_()

    def ping(me: str, other: str) -> None:
        for _ in range(8):
            turns.append(me)
            sched.wakeup(other)
            sched.tsleep(me, 0, "ping")
        sched.wakeup(other)

    sched.create(hog, daemon=True)
    sched.create(ping, "a", "b")
    sched.create(ping, "b", "a")
    sched.run()
    text = "".join(turns)
    assert text.count("a") == text.count("b") == 8
    assert 2 <= text.count("h") <= 5


def test_renice_is_felt(sched: Scheduler) -> None:
    count = [0, 0]

    def hog(n: int) -> None:
        while True:
            count[n] += 1
            sched.yield_()

    sched.create(hog, 0)
    td = sched.create(hog, 1)
    sched.run(until=lambda: sum(count) >= 100)
    assert abs(count[0] - count[1]) <= 1
    td.td_nice = 10
    assert td.td_nice == 10
    count[:] = [0, 0]
    sched.run(until=lambda: sum(count) >= 100)
    assert count[0] > 7 * count[1]


def test_until_stops_at_once_and_run_goes_on_where_it_was(sched: Scheduler) -> None:
    count = 0

    def worker() -> None:
        nonlocal count
        for _ in range(10):
            count += 1
            sched.yield_()

    sched.create(worker)
    sched.run(until=lambda: count == 4)
    assert count == 4
    sched.run()
    assert count == 10


def test_until_is_asked_when_idle(sched: Scheduler) -> None:
    done: list[int] = []
    sched.create(sched.tsleep, "x", 0, "x")
    sched.callout(2 * MS, done.append, 1)
    sched.run(until=lambda: bool(done))
    sched.wakeup("x")


def test_thread0_runs_and_sleeps_like_any_other(sched: Scheduler) -> None:
    order: list[str] = []

    def other() -> None:
        order.append("other")
        sched.wakeup("main")
        order.append("still other")

    sched.create(other)
    assert sched.tsleep("main", 0, "main") == 0
    order.append("main")
    assert order == ["other", "still other", "main"]


def test_threads_may_make_threads(sched: Scheduler) -> None:
    ended: list[int] = []

    def generation(n: int) -> None:
        if n:
            sched.create(generation, n - 1)
        ended.append(n)

    sched.create(generation, 50)
    sched.run()
    assert ended == list(range(50, -1, -1))
    assert list(sched.threads()) == [sched.thread0]


def test_an_exception_comes_out_of_run_and_the_rest_survives(sched: Scheduler) -> None:
    lived: list[str] = []

    def bad() -> None:
        raise ValueError("bad")

    def good() -> None:
        sched.tsleep_ns("x", 0, "x", MS)
        lived.append("good")

    sched.create(good)
    sched.create(bad)
    with pytest.raises(ValueError, match="bad"):
        sched.run()
    assert sched.curthread is sched.thread0
    sched.run()
    assert lived == ["good"]


def test_lwkt_exit_unwinds(sched: Scheduler) -> None:
    trace: list[str] = []

    def deep() -> None:
        try:
            lwkt_exit()
        finally:
            trace.append("finally")

    def body() -> None:
        deep()
        trace.append("not reached")

    sched.create(body)
    sched.run()
    assert trace == ["finally"]


def test_close_unwinds_every_thread(sched: Scheduler) -> None:
    trace: list[str] = []

    def body() -> None:
        try:
            sched.tsleep("never", 0, "never")
        finally:
            trace.append("unwound")
            sched.tsleep("again", 0, "again")
            trace.append("not reached")

    sched.create(body)
    sched.create(body, daemon=True)
    with pytest.raises(Deadlock):
        sched.run()
    sched.create(body)  # never started: nothing to unwind
    sched.close()
    assert trace == ["unwound", "unwound"]
    assert list(sched.threads()) == [sched.thread0]


def test_cpu_time_is_the_threads_own(sched: Scheduler) -> None:
    def busy() -> None:
        time.sleep(0.02)

    def idle() -> None:
        sched.tsleep_ns("x", 0, "x", 30 * MS)

    a = sched.create(busy)
    sched.run()
    assert a.cpu_ns >= 20 * MS
    b = sched.create(idle)
    began = time.monotonic_ns()
    sched.run()
    assert b.cpu_ns <= time.monotonic_ns() - began - 30 * MS  # for which nobody ran
    a.user_ns = 15 * MS
    assert a.sys_ns == a.cpu_ns - 15 * MS


def test_ticks(sched: Scheduler) -> None:
    assert sched.hz == 100
    before, began = sched.ticks, time.monotonic()
    time.sleep(0.025)
    assert 2 <= sched.ticks - before <= (time.monotonic() - began) * 100 + 1


@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_leaves_run_between_two_threads(sched: Scheduler, busy: bool) -> None:
    unwound: list[str] = []

    def body() -> None:
        try:
            while True:
                if busy:
                    time.sleep(0.001)
                    sched.yield_()
                else:
                    sched.tsleep_ns("x", 0, "x", 10_000 * MS)
        finally:
            unwound.append("body")

    sched.create(body)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        sched.run()
    assert not unwound  # the thread still stands where it stood
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sched.curthread is sched.thread0
    deadline = time.monotonic() + 0.02
    sched.callout(20 * MS, print)
    sched.run(until=lambda: time.monotonic() >= deadline)


def test_ending_with_a_lock_held_panics(sched: Scheduler) -> None:
    from dfvm.lwkt.kern_lock import Lock, lockmgr_exclusive

    lock = Lock(sched, "vmmap")
    sched.create(lockmgr_exclusive, lock, name="careless")
    with pytest.raises(Panic, match="careless ended holding lock vmmap"):
        sched.run()


def test_a_long_line_of_descent(sched: Scheduler) -> None:
    """What a thread may use of the stack and of the recursion limit does not depend on how many
    threads before it have each made the next."""
    generations: list[int] = []

    def descend(n: int) -> None:
        generations.append(n)
        if n < 2000:
            sched.create(descend, n + 1)
            sched.yield_()

    sched.create(descend, 1)
    sched.run()
    assert generations == list(range(1, 2001))
