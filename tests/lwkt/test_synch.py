"""Sleeping, waking, timeouts, signals, host descriptors, and standing still."""

from __future__ import annotations

import os
import signal
import threading
import time
from errno import EINTR, EWOULDBLOCK
from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.lwkt import kern_synch, lwkt_thread
from dfvm.lwkt.kern_clock import LoadAverage
from dfvm.lwkt.kern_event import POLLHUP, POLLIN, POLLNVAL, POLLOUT
from dfvm.lwkt.kern_synch import ERESTART, PCATCH
from dfvm.lwkt.lwkt_thread import Deadlock, Scheduler
from dfvm.lwkt.panic import Panic

MS = 1_000_000

pytestmark = pytest.mark.spec("LOCK-4")


def test_wakeup_is_first_come_first_served(sched: Scheduler) -> None:
    woken: list[int] = []

    def sleeper(n: int) -> None:
        assert sched.tsleep("page", 0, "pgbusy") == 0
        woken.append(n)

    def waker() -> None:
        sched.wakeup_one("page")
        sched.yield_()
        assert woken == [0]
        sched.wakeup("page")

    for n in range(5):
        sched.create(sleeper, n)
    sched.create(waker)
    sched.run()
    assert woken == [0, 1, 2, 3, 4]


def test_wakeup_of_another_identity_wakes_nobody(sched: Scheduler) -> None:
    td = sched.create(sched.tsleep, "a", 0, "a", daemon=True)
    sched.create(lambda: sched.wakeup("b"))
    sched.run()
    assert td.td_wchan == "a"


def test_timeout(sched: Scheduler) -> None:
    began = time.monotonic()
    assert sched.tsleep("never", 0, "test", 3) == EWOULDBLOCK
    assert time.monotonic() - began >= 0.03
    began = time.monotonic_ns()
    assert sched.tsleep_ns("never", 0, "test", 300_000) == EWOULDBLOCK
    assert time.monotonic_ns() - began >= 300_000


def test_wakeup_before_timeout_counts_and_stops_it(
    sched: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic_ns()]
    for module in (kern_synch, lwkt_thread):
        monkeypatch.setattr(module, "monotonic_ns", lambda: now[0])
    results: list[int] = []
    td = sched.create(lambda: results.append(sched.tsleep_ns("x", 0, "x", 20 * MS)))

    def waker() -> None:
        sched.wakeup("x")
        now[0] += 30 * MS  # the timeout is over before the sleeper gets to run
        sched.hardclock()

    sched.create(waker)
    sched.run()
    assert results == [0]
    assert td.td_callout is None
    assert not list(sched._callouts)


def test_one_of_several_sleepers_times_out_and_the_ring_stays_whole(sched: Scheduler) -> None:
    order: list[str] = []

    def sleeper(name: str, timeout_ns: int) -> None:
        order.append(f"{name}{sched.tsleep_ns('x', 0, 'x', timeout_ns)}")

    for name, timeout_ns in (("a", 0), ("b", 150 * MS), ("c", 0), ("d", 1 * MS), ("e", 0)):
        sched.create(sleeper, name, timeout_ns)
    sched.callout(300 * MS, sched.wakeup, "x")
    sched.run()
    assert order == [f"d{EWOULDBLOCK}", f"b{EWOULDBLOCK}", "a0", "c0", "e0"]


def test_signals_end_only_interruptible_sleeps(sched: Scheduler) -> None:
    results: list[int] = []
    catching = sched.create(lambda: results.append(sched.tsleep("x", PCATCH, "x")))
    deaf = sched.create(lambda: results.append(sched.tsleep("x", 0, "x")))

    def signaller() -> None:
        assert sched.interrupt(catching, ERESTART)
        assert not sched.interrupt(catching, EINTR)  # it is awake already
        assert not sched.interrupt(deaf, EINTR)
        sched.yield_()
        sched.wakeup("x")

    sched.create(signaller)
    sched.run()
    assert results == [ERESTART, 0]


def test_sleepers_can_be_chosen_and_moved(sched: Scheduler) -> None:
    woken: list[str] = []

    def sleeper(name: str) -> None:
        sched.tsleep("x", 0, "x")
        woken.append(name)

    tds = [sched.create(sleeper, name) for name in "abcd"]
    sched.yield_()
    assert sched.sleepers("x") == tds
    sched.requeue(tds[0], "y")
    sched.wakeup_thread(tds[2])
    sched.yield_()
    assert woken == ["c"]
    assert sched.sleepers("x") == [tds[1], tds[3]]
    sched.requeue(tds[1], "y")
    assert sched.sleepers("y") == tds[:2]
    sched.wakeup("y")
    sched.wakeup("x")
    sched.run()
    assert woken == ["c", "a", "b", "d"]
    assert sched.sleepers("x") == []


def test_a_signal_that_is_pending_prevents_the_sleep(sched: Scheduler) -> None:
    sched.thread0.td_cursig = lambda: EINTR
    assert sched.tsleep("x", PCATCH, "x") == EINTR
    assert sched.tsleep_ns("x", 0, "x", 1) == EWOULDBLOCK


def test_callouts_run_in_order_and_may_not_sleep(sched: Scheduler) -> None:
    ran: list[str] = []
    sched.callout(2 * MS, ran.append, "late")
    sched.callout(1 * MS, ran.append, "early")
    stopped = sched.callout(1 * MS, ran.append, "stopped")
    assert stopped.stop()
    assert not stopped.stop()
    sched.tsleep_ns("x", 0, "x", 5 * MS)
    assert ran == ["early", "late"]

    sched.callout(0, sched.tsleep, "x", 0, "wrong")
    with pytest.raises(Panic, match="inside a callout"):
        sched.tsleep_ns("x", 0, "x", 5 * MS)
    assert sched.tsleep_ns("x", 0, "x", MS) == EWOULDBLOCK  # and the scheduler has survived


def test_stopped_timeouts_do_not_pile_up(sched: Scheduler) -> None:
    for _ in range(10_000):
        sched.callout(10_000 * MS, print).stop()
    assert len(sched._callouts._heap) < 200


def test_waiting_for_a_host_descriptor(sched: Scheduler) -> None:
    r, w = os.pipe()
    seen: list[tuple[int, int]] = []

    def reader() -> None:
        seen.append((sched.waitfd(r, POLLIN, 0, "ttyin"), sched.curthread.td_revents))
        os.read(r, 1)
        seen.append((sched.waitfd(r, POLLIN, 0, "ttyin", 2 * MS), sched.curthread.td_revents))
        os.close(w)
        seen.append((sched.waitfd(r, POLLIN, 0, "ttyin"), sched.curthread.td_revents))

    def writer() -> None:
        for _ in range(3):  # the descriptor is looked at while others run, too
            time.sleep(0.002)
            sched.yield_()
        os.write(w, b"x")

    sched.create(reader)
    sched.create(writer)
    sched.run()
    os.close(r)
    assert seen == [(0, POLLIN), (EWOULDBLOCK, 0), (0, POLLHUP)]
    assert not len(sched._events)


def test_waiting_for_a_descriptor_or_an_identity(sched: Scheduler) -> None:
    r, w = os.pipe()
    seen: list[tuple[int, int]] = []

    def waiter() -> None:
        fds = ((r, POLLIN), (w, POLLIN))
        seen.append((sched.waitfds(fds, "pipe", 0, "select"), sched.curthread.td_revents))
        seen.append((sched.waitfds(((w, POLLOUT),), "pipe", 0, "x"), sched.curthread.td_revents))
        seen.append((sched.waitfd(9999, POLLIN, 0, "x"), sched.curthread.td_revents))

    sched.create(waiter)
    sched.create(sched.wakeup, "pipe")
    sched.run()
    os.close(r)
    os.close(w)
    assert seen == [(0, 0), (0, POLLOUT), (0, POLLNVAL)]


def test_two_threads_wait_for_one_descriptor(sched: Scheduler) -> None:
    r, w = os.pipe()
    os.write(w, b"x")
    done: list[str] = []
    sched.create(lambda: done.append(f"in {sched.waitfd(r, POLLIN, 0, 'r')}"))
    sched.create(lambda: done.append(f"out {sched.waitfd(r, POLLIN, PCATCH, 'r')}"))
    sched.run()
    os.close(r)
    os.close(w)
    assert done == ["in 0", "out 0"]


def test_who_listened_for_host_signals_before_hears_of_them(sched: Scheduler) -> None:
    """asyncio, for example, has its signal handlers called by way of set_wakeup_fd."""
    r, w = os.pipe2(os.O_NONBLOCK)
    before = signal.signal(signal.SIGUSR1, lambda signo, frame: sched.post(sched.wakeup, "x"))
    listened = signal.set_wakeup_fd(w)
    try:
        sched.create(lambda: signal.raise_signal(signal.SIGUSR1))
        sched.create(sched.tsleep_ns, "x", 0, "x", 60_000 * MS)
        sched.run()
        assert os.read(r, 9) == bytes([signal.SIGUSR1])
        sched.create(lambda: signal.raise_signal(signal.SIGUSR1))
        sched.run()
        assert os.read(r, 9) == bytes([signal.SIGUSR1])
    finally:
        assert signal.set_wakeup_fd(listened) == w
        signal.signal(signal.SIGUSR1, before)
        os.close(r)
        os.close(w)


def test_another_host_thread_may_post(sched: Scheduler) -> None:
    seen: list[str] = []
    poster = threading.Timer(0.02, lambda: sched.post(sched.wakeup, "x"))

    def sleeper() -> None:
        seen.append(f"woken {sched.tsleep_ns('x', 0, 'x', 5000 * MS)}")

    sched.create(sleeper)
    poster.start()
    sched.run()
    assert seen == ["woken 0"]


def test_standstill_is_reported_with_wait_channels(sched: Scheduler) -> None:
    def first() -> None:
        sched.tsleep("hen", 0, "henwait")

    def second() -> None:
        sched.tsleep("egg", PCATCH, "eggwait")

    sched.create(first, name="hen")
    sched.create(second, name="egg")
    sched.create(sched.tsleep, "work", 0, "idle", name="helper", daemon=True)
    with pytest.raises(Deadlock) as caught:
        sched.run()
    report = str(caught.value)
    assert "hen: sleeps on henwait ('hen')" in report
    assert "egg: sleeps on eggwait ('egg'), interruptible" in report
    assert "helper (daemon): sleeps on idle" in report
    sched.wakeup("hen")  # nothing is lost: it can go on
    sched.wakeup("egg")
    sched.run()


def test_thread0_sleeping_for_ever_is_a_standstill_too(sched: Scheduler) -> None:
    with pytest.raises(Deadlock, match="thread0: sleeps on test"):
        sched.tsleep("never", 0, "test")
    assert sched.curthread is sched.thread0
    assert sched.tsleep("never", 0, "test", 1) == EWOULDBLOCK


def test_a_daemon_that_ticks_does_not_hide_a_standstill(sched: Scheduler) -> None:
    turns: list[int] = []

    def pager() -> None:
        while True:
            turns.append(sched.tsleep_ns("pager", 0, "psleep", 2 * MS))

    sched.create(pager, daemon=True)
    sched.create(sched.tsleep, "never", 0, "lost")
    with pytest.raises(Deadlock, match="lost"):
        sched.run()
    assert 2 < len(turns) < 20


def test_a_daemon_that_helps_in_the_end_is_waited_for(sched: Scheduler) -> None:
    def pager() -> None:
        for _ in range(3):
            sched.tsleep_ns("pager", 0, "psleep", 2 * MS)
        sched.wakeup("memory")

    sched.create(pager, daemon=True)
    sched.create(sched.tsleep, "memory", 0, "vmwait")
    sched.run()


def test_an_interruptible_sleep_is_no_standstill_when_signals_can_come(sched: Scheduler) -> None:
    td = sched.create(sched.tsleep, "pause", PCATCH, "pause")
    sched.signals_can_come = True
    threading.Timer(0.02, lambda: sched.post(sched.interrupt, td, EINTR)).start()
    sched.run()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.lists(st.sampled_from(["put", "get", "yield", "nap"]), min_size=1, max_size=12),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_wakeup_is_lost(threads: list[tuple[int, list[str]]]) -> None:
    """Producers and consumers of a counter, in any mixture: every consumer that could be served
    is served, whatever order naps, yields and wakeups come in."""
    sched = Scheduler()
    stock = 0
    got = 0

    def worker(script: list[str]) -> None:
        nonlocal stock, got
        for step in script:
            if step == "put":
                stock += 1
                sched.wakeup_one("stock")
            elif step == "get":
                while stock == 0:
                    sched.tsleep("stock", 0, "stock")
                stock -= 1
                got += 1
            elif step == "yield":
                sched.yield_()
            else:
                sched.tsleep_ns("nap", 0, "nap", 10_000)

    for nice, script in threads:
        sched.create(worker, script, nice=nice)
    try:
        sched.run()
        assert got == sum(script.count("get") for _, script in threads)
    except Deadlock:
        assert stock == 0  # those who still wait have nothing to get
    finally:
        sched.close()


def test_load_averages() -> None:
    """A minute of two threads that compute, and one of nothing. What no clock tick has sampled in
    time was idle."""
    second = 1_000_000_000
    load = LoadAverage(0)
    for now in range(1, 61):
        assert load.due(now * second) == (now % 5 == 0)
        load.sample(now * second, 2)
    busy = tuple(2 * (1 - exp(-1 / minutes)) for minutes in (1, 5, 15))
    assert load.ldavg == pytest.approx(busy)
    load.sample(119 * second, 3)  # 65 … 115 passed unnoticed
    load.sample(120 * second, 0)
    assert load.ldavg == pytest.approx(
        tuple(n * exp(-1 / minutes) for n, minutes in zip(busy, (1, 5, 15), strict=True))
    )
