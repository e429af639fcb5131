"""lockmgr, spinlocks, and their order."""

from __future__ import annotations

from errno import EBUSY, EINTR, ENOLCK, EWOULDBLOCK
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.lwkt.kern_lock import (
    LK_CANCEL_BEG,
    LK_CANCEL_END,
    LK_CANCELABLE,
    LK_CANRECURSE,
    LK_DOWNGRADE,
    LK_EXCLOTHER,
    LK_EXCLUPGRADE,
    LK_EXCLUSIVE,
    LK_NOWAIT,
    LK_PCATCH,
    LK_RELEASE,
    LK_SHARED,
    LK_SLEEPFAIL,
    LK_TIMELOCK,
    LK_UPGRADE,
    Lock,
    lockmgr,
    lockowned,
    lockstatus,
)
from dfvm.lwkt.kern_spinlock import Spinlock, spin_lock, spin_trylock, spin_unlock
from dfvm.lwkt.lwkt_thread import Deadlock, Scheduler
from dfvm.lwkt.panic import Panic

if TYPE_CHECKING:
    from collections.abc import Callable

lockmgr_spec = pytest.mark.spec("LOCK-2")
spin_spec = pytest.mark.spec("LOCK-3")


@pytest.fixture
def lock(sched: Scheduler) -> Lock:
    return Lock(sched, "test")


def holding(lock: Lock, flags: int, event: str = "go") -> Callable[[], None]:
    """A thread body that takes the lock, sleeps on `event`, and gives it back."""

    def body() -> None:
        assert lockmgr(lock, flags) == 0
        lock.lk_sched.tsleep(event, 0, event)
        lockmgr(lock, LK_RELEASE)

    return body


@lockmgr_spec
def test_kept_while_asleep(sched: Scheduler, lock: Lock) -> None:
    sched.create(holding(lock, LK_EXCLUSIVE), name="holder")
    sched.yield_()
    assert lockstatus(lock) == LK_EXCLOTHER
    assert not lockowned(lock)
    assert lockmgr(lock, LK_EXCLUSIVE | LK_NOWAIT) == EBUSY
    assert lockmgr(lock, LK_SHARED | LK_NOWAIT) == EBUSY
    sched.wakeup("go")
    assert lockmgr(lock, LK_EXCLUSIVE) == 0
    assert lockstatus(lock) == LK_EXCLUSIVE
    assert lockowned(lock)
    lockmgr(lock, LK_RELEASE)
    assert lockstatus(lock) == 0


@lockmgr_spec
def test_shared_holders_exclude_only_exclusive_ones(sched: Scheduler, lock: Lock) -> None:
    sched.create(holding(lock, LK_SHARED))
    sched.yield_()
    assert lockmgr(lock, LK_SHARED) == 0
    assert lockstatus(lock) == LK_SHARED
    sched.wakeup("go")
    sched.yield_()
    lockmgr(lock, LK_RELEASE)
    assert lockstatus(lock) == 0


@lockmgr_spec
def test_those_who_wait_are_served_in_order(sched: Scheduler, lock: Lock) -> None:
    order: list[str] = []

    def body(name: str, flags: int) -> None:
        lockmgr(lock, flags)
        order.append(name)
        sched.yield_()
        lockmgr(lock, LK_RELEASE)

    lockmgr(lock, LK_EXCLUSIVE)
    for name, flags in (("s1", 1), ("s2", 1), ("x1", 2), ("s3", 1), ("x2", 2), ("s4", 1)):
        sched.create(body, name, flags)
    sched.yield_()
    lockmgr(lock, LK_RELEASE)
    sched.run()
    assert order == ["s1", "s2", "x1", "s3", "x2", "s4"]


@lockmgr_spec
def test_a_writer_is_not_starved_but_recursion_passes_it(sched: Scheduler, lock: Lock) -> None:
    lockmgr(lock, LK_SHARED)
    sched.create(holding(lock, LK_EXCLUSIVE))
    sched.yield_()
    sched.create(lambda: lockmgr(lock, LK_SHARED | LK_NOWAIT) == EBUSY or pytest.fail("passed"))
    sched.yield_()
    assert lockmgr(lock, LK_SHARED) == 0
    lockmgr(lock, LK_RELEASE)
    lockmgr(lock, LK_RELEASE)
    assert lockstatus(lock) == LK_EXCLOTHER
    sched.yield_()
    sched.wakeup("go")
    sched.run()


@lockmgr_spec
def test_recursion(sched: Scheduler, lock: Lock) -> None:
    lockmgr(lock, LK_EXCLUSIVE)
    assert lockmgr(lock, LK_EXCLUSIVE | LK_NOWAIT) == EBUSY
    with pytest.raises(Panic, match="locking against myself"):
        lockmgr(lock, LK_EXCLUSIVE)
    assert lockmgr(lock, LK_EXCLUSIVE | LK_CANRECURSE) == 0
    assert lockmgr(lock, LK_SHARED) == 0
    lockmgr(lock, LK_RELEASE)
    lockmgr(lock, LK_RELEASE)
    assert lockowned(lock)
    lockmgr(lock, LK_RELEASE)
    with pytest.raises(Panic, match="does not hold"):
        lockmgr(lock, LK_RELEASE)
    recursive = Lock(sched, "r", LK_CANRECURSE)
    assert lockmgr(recursive, LK_EXCLUSIVE) == lockmgr(recursive, LK_EXCLUSIVE) == 0
    lockmgr(recursive, LK_RELEASE)
    lockmgr(recursive, LK_RELEASE)


@lockmgr_spec
def test_downgrade_lets_readers_in(sched: Scheduler, lock: Lock) -> None:
    lockmgr(lock, LK_EXCLUSIVE)
    sched.create(holding(lock, LK_SHARED))
    sched.yield_()
    lockmgr(lock, LK_DOWNGRADE)
    assert lock.lk_shared == 2
    lockmgr(lock, LK_RELEASE)
    sched.yield_()
    sched.wakeup("go")
    sched.run()
    with pytest.raises(Panic, match="not hold exclusively"):
        lockmgr(lock, LK_DOWNGRADE)


@lockmgr_spec
def test_upgrade_alone_is_immediate_and_goes_before_those_who_wait(
    sched: Scheduler, lock: Lock
) -> None:
    order: list[str] = []

    def writer() -> None:
        lockmgr(lock, LK_EXCLUSIVE)
        order.append("writer")
        lockmgr(lock, LK_RELEASE)

    sched.create(holding(lock, LK_SHARED))
    sched.yield_()
    lockmgr(lock, LK_SHARED)
    sched.create(writer)
    sched.yield_()
    sched.wakeup("go")
    assert lockmgr(lock, LK_UPGRADE) == 0
    order.append("upgrade")
    assert lockmgr(lock, LK_UPGRADE) == 0  # held exclusively already
    lockmgr(lock, LK_RELEASE)
    sched.run()
    assert order == ["upgrade", "writer"]
    with pytest.raises(Panic, match="upgrades"):
        lockmgr(lock, LK_UPGRADE)


@lockmgr_spec
@pytest.mark.parametrize(
    ("how", "expected"), [(LK_EXCLUPGRADE, EBUSY), (LK_UPGRADE, 0), (LK_UPGRADE | LK_NOWAIT, EBUSY)]
)
def test_the_second_of_two_upgrades_gives_way(
    sched: Scheduler, lock: Lock, how: int, expected: int
) -> None:
    order: list[str] = []

    def first() -> None:
        lockmgr(lock, LK_SHARED)
        sched.yield_()
        assert lockmgr(lock, LK_EXCLUPGRADE) == 0
        order.append("first")
        lockmgr(lock, LK_RELEASE)

    def second() -> None:
        lockmgr(lock, LK_SHARED)
        sched.yield_()
        error = lockmgr(lock, how)
        order.append(f"second {error}")
        if not error:
            lockmgr(lock, LK_RELEASE)
        assert lock not in sched.curthread.td_locks

    sched.create(first)
    sched.create(second)
    sched.run()
    assert sorted(order) == ["first", f"second {expected}"]
    assert lockstatus(lock) == 0


@lockmgr_spec
def test_timeout_signal_sleepfail_cancel(sched: Scheduler, lock: Lock) -> None:
    results: dict[str, int] = {}

    def body(name: str, flags: int) -> None:
        results[name] = lockmgr(lock, flags, 1)

    lockmgr(lock, LK_EXCLUSIVE)
    sched.create(body, "time", LK_EXCLUSIVE | LK_TIMELOCK)
    signalled = sched.create(body, "signal", LK_SHARED | LK_PCATCH)
    sched.create(body, "fail", LK_EXCLUSIVE | LK_SLEEPFAIL)
    sched.create(body, "cancel", LK_SHARED | LK_CANCELABLE)
    sched.tsleep("x", 0, "x", 3)
    assert sched.interrupt(signalled, EINTR)
    lockmgr(lock, LK_CANCEL_BEG)
    sched.create(body, "late", LK_SHARED | LK_CANCELABLE)
    sched.yield_()
    lockmgr(lock, LK_CANCEL_END)
    lockmgr(lock, LK_RELEASE)
    sched.run()
    assert results == {
        "time": EWOULDBLOCK, "signal": EINTR, "fail": ENOLCK, "cancel": ENOLCK, "late": ENOLCK,
    }  # fmt: skip
    assert lockstatus(lock) == 0
    assert not lock.lk_line


@lockmgr_spec
def test_a_writer_that_gives_up_lets_the_readers_behind_it_go(sched: Scheduler, lock: Lock) -> None:
    lockmgr(lock, LK_SHARED)
    sched.create(lambda: lockmgr(lock, LK_EXCLUSIVE | LK_TIMELOCK, 1))
    sched.create(holding(lock, LK_SHARED))
    sched.tsleep("x", 0, "x", 3)
    assert lock.lk_shared == 2
    lockmgr(lock, LK_RELEASE)
    sched.wakeup("go")
    sched.run()


@lockmgr_spec
def test_deadlock_report_names_holder_and_waiters(sched: Scheduler) -> None:
    a, b = Lock(sched, "alpha"), Lock(sched, "beta")

    def body(first: Lock, second: Lock) -> None:
        lockmgr(first, LK_EXCLUSIVE)
        sched.yield_()
        lockmgr(second, LK_EXCLUSIVE)

    sched.create(body, a, b, name="ab")
    sched.create(body, b, a, name="ba")
    with pytest.raises(Deadlock) as caught:
        sched.run()
    report = str(caught.value)
    assert "ab: sleeps on beta (<Lock beta, held by ba>); holds lock alpha" in report
    assert "ba: sleeps on alpha (<Lock alpha, held by ab>); holds lock beta" in report


STEPS = st.sampled_from(["shared", "excl", "upgrade", "downgrade", "release", "yield", "timed"])


@lockmgr_spec
@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(STEPS, max_size=14), min_size=1, max_size=5))
def test_any_mixture_excludes_and_ends(scripts: list[list[str]]) -> None:
    """Threads that do arbitrary things to one lock: readers and writers exclude each other at
    every moment, everyone gets through, and the lock is free in the end."""
    sched = Scheduler()
    lock = Lock(sched, "model")
    inside: dict[int, str] = {}  # what each thread believes it holds

    def check() -> None:
        writers = [n for n, how in inside.items() if how == "x"]
        assert not writers or len(inside) == 1
        assert bool(lock.lk_holder) == bool(writers)
        assert lock.lk_shared == len(inside) - len(writers)

    def body(n: int, script: list[str]) -> None:
        for step in [*script, "release"]:
            held = inside.get(n)
            if step in ("shared", "excl", "timed") and held is None:
                flags = LK_SHARED if step == "shared" else LK_EXCLUSIVE
                error = lockmgr(lock, flags | (LK_TIMELOCK if step == "timed" else 0), 1)
                if not error:
                    inside[n] = "s" if step == "shared" else "x"
            elif step == "upgrade" and held == "s":
                del inside[n]
                if lockmgr(lock, LK_EXCLUPGRADE) == 0:
                    inside[n] = "x"
            elif step == "downgrade" and held == "x":
                lockmgr(lock, LK_DOWNGRADE)
                inside[n] = "s"
            elif step == "release" and held is not None:
                del inside[n]
                lockmgr(lock, LK_RELEASE)
            elif step == "yield":
                sched.yield_()

    def observer() -> None:
        while len(list(sched.threads())) > 2:
            holders = [td for td in sched.threads() if lock in td.td_locks]
            assert len(holders) == (1 if lock.lk_holder else lock.lk_shared)
            assert not (lock.lk_holder and lock.lk_shared)
            sched.yield_()

    for n, script in enumerate(scripts):
        sched.create(body, n, script)
    sched.create(observer)
    sched.run()
    check()
    assert lockstatus(lock) == 0
    assert not lock.lk_line
    sched.close()


@spin_spec
def test_sleeping_with_a_spinlock_panics(sched: Scheduler) -> None:
    spin = Spinlock(sched, "vm queue")
    spin_lock(spin)
    with pytest.raises(Panic, match=r"thread0 sleeps .* with spinlock vm queue held"):
        sched.tsleep("x", 0, "x")
    with pytest.raises(Panic, match="vm queue"):
        sched.yield_()
    with pytest.raises(Panic, match="spin_lock: vm queue"):
        spin_lock(spin)
    assert not spin_trylock(spin)
    spin_unlock(spin)
    assert spin_trylock(spin)
    spin_unlock(spin)
    with pytest.raises(Panic, match="not held"):
        spin_unlock(spin)
    assert sched.tsleep("x", 0, "x", 1) == EWOULDBLOCK


@spin_spec
def test_lock_order_is_learnt_and_enforced_in_debug_mode(sched: Scheduler) -> None:
    sched.debug = True
    a, b, c = (Lock(sched, name) for name in ("a", "b", "c"))
    for first, second in ((a, b), (b, c)):
        lockmgr(first, LK_SHARED)
        lockmgr(second, LK_EXCLUSIVE)
        lockmgr(second, LK_RELEASE)
        lockmgr(first, LK_RELEASE)
    lockmgr(c, LK_EXCLUSIVE)
    assert lockmgr(a, LK_SHARED | LK_NOWAIT) == 0  # can't deadlock
    lockmgr(a, LK_RELEASE)
    with pytest.raises(Panic, match=r"takes lock a while it holds lock c.*a before lock b before"):
        lockmgr(a, LK_SHARED)
    lockmgr(c, LK_RELEASE)
    twin = Lock(sched, "a")
    lockmgr(a, LK_EXCLUSIVE)
    lockmgr(twin, LK_EXCLUSIVE)  # one class: its owner knows the order
    lockmgr(twin, LK_RELEASE)
    lockmgr(a, LK_RELEASE)


@spin_spec
def test_spinlock_order_is_enforced_in_debug_mode(sched: Scheduler) -> None:
    sched.debug = True
    a, b = Spinlock(sched, "a"), Spinlock(sched, "b")
    spin_lock(a)
    spin_lock(b)
    spin_unlock(b)
    spin_unlock(a)
    spin_lock(b)
    with pytest.raises(Panic, match="takes spinlock a while it holds spinlock b"):
        spin_lock(a)
