"""Spinlocks: sections in which nothing may block.

With one thread running at a time a free spinlock is always free, and a held one that is asked for
again is a bug (the other holder can't be running, so it slept; the same holder would spin for
ever). What remains is the promise: tsleep, yield and lockmgr panic while one is held.

Source: DragonFly sys/kern/kern_spinlock.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic
from dfvm.lwkt.subr_witness import witness_lock

if TYPE_CHECKING:
    from dfvm.lwkt.lwkt_thread import Scheduler, Thread


class Spinlock:
    """A spinlock."""

    __slots__ = ("desc", "holder", "sched")

    desc: str  # for people; also its class in lock order
    sched: Scheduler
    holder: Thread | None  # who is inside

    def __init__(self, sched: Scheduler, desc: str) -> None:
        self.sched = sched
        self.desc = desc
        self.holder = None

    def __repr__(self) -> str:
        return f"<Spinlock {self.desc}>"


def spin_lock(spin: Spinlock) -> None:
    """Enter. From here to spin_unlock nothing may block."""
    sched = spin.sched
    td = sched.curthread
    if spin.holder is not None:
        panic(f"spin_lock: {spin.desc} wanted by {td.td_name}, held by {spin.holder.td_name}")
    if sched.debug:
        witness_lock(sched, f"spinlock {spin.desc}")
    spin.holder = td
    td.td_nosleep += 1
    td.td_spinlocks.append(spin)


def spin_trylock(spin: Spinlock) -> bool:
    """Enter unless somebody is inside; True if entered."""
    if spin.holder is not None:
        return False
    td = spin.sched.curthread
    spin.holder = td
    td.td_nosleep += 1
    td.td_spinlocks.append(spin)
    return True


def spin_unlock(spin: Spinlock) -> None:
    """Leave."""
    td = spin.sched.curthread
    if spin.holder is not td:
        panic(f"spin_unlock: {spin.desc} is not held by {td.td_name}")
    spin.holder = None
    td.td_nosleep -= 1
    td.td_spinlocks.remove(spin)
