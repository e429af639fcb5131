"""lockmgr: locks that are kept while their holder sleeps.

Shared or exclusive, recursive if the lock or the call says so, with upgrade, downgrade, timeout,
and waiting that signals or a cancellation may end.

Waiting is first come first served: a lock that becomes free is handed to those who wait longest
(one exclusive, or as many shared as stand together) before they run, so nobody can slip in
between, nobody starves, and nobody is woken in vain. Two exceptions, both against deadlock: an
upgrade goes before everyone, since the lock can't become free without it; and a thread that
already holds the lock shared may take it shared again although someone exclusive waits.

Source: DragonFly sys/kern/kern_lock.c, sys/sys/lock.h.
"""

from __future__ import annotations

from collections import deque
from errno import EBUSY, ENOLCK
from typing import TYPE_CHECKING, Final

from dfvm.lwkt.kern_synch import PCATCH
from dfvm.lwkt.panic import panic
from dfvm.lwkt.subr_witness import witness_lock

if TYPE_CHECKING:
    from dfvm.lwkt.lwkt_thread import Scheduler, Thread

# What is asked for.
LK_TYPE_MASK: Final = 0x0000000F
LK_SHARED: Final = 0x00000001
LK_EXCLUSIVE: Final = 0x00000002
LK_UPGRADE: Final = 0x00000003  # shared to exclusive; others may have had it in between
LK_EXCLUPGRADE: Final = 0x00000004  # the same, but fail rather than let another upgrade go first
LK_DOWNGRADE: Final = 0x00000005
LK_RELEASE: Final = 0x00000006
LK_CANCEL_BEG: Final = 0x00000009  # end every wait that is LK_CANCELABLE, now and from now on
LK_CANCEL_END: Final = 0x0000000A
LK_EXCLOTHER: Final = 0x0000000C  # answer of lockstatus only: another thread holds it exclusively

# How.
LK_NOWAIT: Final = 0x00000010  # EBUSY instead of sleeping
LK_SLEEPFAIL: Final = 0x00000020  # after sleeping fail with ENOLCK: what was looked up is stale
LK_CANRECURSE: Final = 0x00000040  # the holder may take it again; also a property of a lock
LK_TIMELOCK: Final = 0x00000100  # wait `timo` ticks at most
LK_PCATCH: Final = 0x00000200  # signals end the wait
LK_CANCELABLE: Final = 0x01000000  # LK_CANCEL_BEG ends the wait

_WAIT_EXCL: Final = 0
_WAIT_SHARED: Final = 1
_WAIT_UPGRADE: Final = 2


class _Waiter:
    """One thread in a lock's line; what it sleeps on."""

    __slots__ = ("flags", "kind", "lock", "result", "td")

    td: Thread
    lock: Lock
    kind: int  # _WAIT_*
    flags: int  # of the call
    result: int | None  # None: in line. 0: the lock is ours. An error: out of line without it

    def __init__(self, lock: Lock, td: Thread, kind: int, flags: int) -> None:
        self.lock = lock
        self.td = td
        self.kind = kind
        self.flags = flags
        self.result = None

    def __repr__(self) -> str:
        return repr(self.lock)


class Lock:
    """A lockmgr lock.

    Source: DragonFly sys/sys/lock.h, struct lock.
    """

    __slots__ = ("lk_cancel", "lk_count", "lk_flags", "lk_holder", "lk_line", "lk_sched",
                 "lk_shared", "lk_wmesg")  # fmt: skip

    lk_wmesg: str  # why people sleep here; also its class in lock order
    lk_sched: Scheduler
    lk_flags: int  # LK_CANRECURSE, or 0
    lk_holder: Thread | None  # who holds it exclusively
    lk_count: int  # how often the holder does; 0 iff lk_holder is None
    lk_shared: int  # shared holds; 0 while lk_count is not
    lk_line: deque[_Waiter] | None  # who waits, longest first; None: nobody ever has
    lk_cancel: bool  # between LK_CANCEL_BEG and LK_CANCEL_END

    def __init__(self, sched: Scheduler, wmesg: str, flags: int = 0) -> None:
        self.lk_sched = sched
        self.lk_wmesg = wmesg
        self.lk_flags = flags
        self.lk_holder = None
        self.lk_count = 0
        self.lk_shared = 0
        self.lk_line = None
        self.lk_cancel = False

    def __repr__(self) -> str:
        if self.lk_holder is not None:
            state = f"held by {self.lk_holder.td_name}"
            if self.lk_count > 1:
                state += f", {self.lk_count} times"
        elif self.lk_shared:
            names = [td.td_name for td in self.lk_sched.threads() if self in td.td_locks]
            state = "shared by " + ", ".join(names)
        else:
            state = "free"
        return f"<Lock {self.lk_wmesg}, {state}>"


def lockmgr(lkp: Lock, flags: int, timo: int = 0) -> int:
    """Do to `lkp` what `flags` say.

    :param timo: ticks to wait at most, with LK_TIMELOCK.
    :return: 0; EBUSY it would have to wait (LK_NOWAIT), or another upgrade is first
        (LK_EXCLUPGRADE); ENOLCK cancelled, or slept (LK_SLEEPFAIL); EWOULDBLOCK time is over;
        EINTR, ERESTART a signal (LK_PCATCH). After a failed upgrade the lock is not held at all.
    """
    what = flags & LK_TYPE_MASK
    if what == LK_SHARED:
        return lockmgr_shared(lkp, flags, timo)
    if what == LK_EXCLUSIVE:
        return lockmgr_exclusive(lkp, flags, timo)
    if what == LK_RELEASE:
        lockmgr_release(lkp)
    elif what in (LK_UPGRADE, LK_EXCLUPGRADE):
        return lockmgr_upgrade(lkp, flags, timo)
    elif what == LK_DOWNGRADE:
        lockmgr_downgrade(lkp)
    elif what == LK_CANCEL_BEG:
        lockmgr_cancel_beg(lkp)
    elif what == LK_CANCEL_END:
        lockmgr_cancel_end(lkp)
    else:
        panic(f"lockmgr: {lkp!r}: unknown request {what}")
    return 0


def lockmgr_shared(lkp: Lock, flags: int = LK_SHARED, timo: int = 0) -> int:
    """Take `lkp` shared. Its exclusive holder takes it exclusively once more instead."""
    sched = lkp.lk_sched
    td = sched.curthread
    if sched.debug and not flags & LK_NOWAIT and lkp not in td.td_locks:
        witness_lock(sched, f"lock {lkp.lk_wmesg}")
    if lkp.lk_holder is None:
        if not lkp.lk_line or lkp in td.td_locks:
            lkp.lk_shared += 1
            td.td_locks.append(lkp)
            return 0
    elif lkp.lk_holder is td:
        lkp.lk_count += 1
        td.td_locks.append(lkp)
        return 0
    return _wait(lkp, td, _WAIT_SHARED, flags, timo)


def lockmgr_exclusive(lkp: Lock, flags: int = LK_EXCLUSIVE, timo: int = 0) -> int:
    """Take `lkp` exclusively."""
    sched = lkp.lk_sched
    td = sched.curthread
    if sched.debug and not flags & LK_NOWAIT and lkp not in td.td_locks:
        witness_lock(sched, f"lock {lkp.lk_wmesg}")
    if lkp.lk_holder is None:
        if not lkp.lk_shared:  # and nobody waits: a free lock has been handed on
            lkp.lk_holder = td
            lkp.lk_count = 1
            td.td_locks.append(lkp)
            return 0
        if lkp in td.td_locks and not flags & LK_NOWAIT:
            panic(f"lockmgr: {td.td_name} holds {lkp!r} shared and wants it exclusive")
    elif lkp.lk_holder is td:
        if (flags | lkp.lk_flags) & LK_CANRECURSE:
            lkp.lk_count += 1
            td.td_locks.append(lkp)
            return 0
        if flags & LK_NOWAIT:
            return EBUSY
        panic(f"lockmgr: locking against myself: {lkp!r}")
    return _wait(lkp, td, _WAIT_EXCL, flags, timo)


def lockmgr_release(lkp: Lock) -> None:
    """Give one hold of `lkp` back."""
    td = lkp.lk_sched.curthread
    locks = td.td_locks
    if locks and locks[-1] is lkp:
        locks.pop()
    elif lkp in locks:
        locks.remove(lkp)
    else:
        panic(f"lockmgr: {td.td_name} releases {lkp!r}, which it does not hold")
    if lkp.lk_count:
        lkp.lk_count -= 1
        if lkp.lk_count:
            return
        lkp.lk_holder = None
    else:
        lkp.lk_shared -= 1
    if lkp.lk_line:
        _hand_on(lkp)


def lockmgr_downgrade(lkp: Lock) -> None:
    """Make the current thread's exclusive holds shared ones."""
    td = lkp.lk_sched.curthread
    if lkp.lk_holder is not td:
        panic(f"lockmgr: {td.td_name} downgrades {lkp!r}, which it does not hold exclusively")
    lkp.lk_shared = lkp.lk_count
    lkp.lk_count = 0
    lkp.lk_holder = None
    if lkp.lk_line:
        _hand_on(lkp)


def lockmgr_upgrade(lkp: Lock, flags: int = LK_UPGRADE, timo: int = 0) -> int:
    """Make the current thread's only shared hold exclusive. On failure it holds nothing. With
    LK_UPGRADE others may have held the lock exclusively before this returns 0; with
    LK_EXCLUPGRADE not."""
    td = lkp.lk_sched.curthread
    if lkp.lk_holder is td:
        return 0
    if lkp not in td.td_locks:
        panic(f"lockmgr: {td.td_name} upgrades {lkp!r}, which it does not hold")
    if td.td_locks.count(lkp) > 1:
        panic(f"lockmgr: {td.td_name} upgrades one of several shared holds of {lkp!r}")
    line = lkp.lk_line
    pending = line is not None and bool(line) and line[0].kind == _WAIT_UPGRADE  # it is in front
    if lkp.lk_shared == 1 and not pending:
        lkp.lk_shared = 0
        lkp.lk_holder = td
        lkp.lk_count = 1
        return 0
    td.td_locks.remove(lkp)
    lkp.lk_shared -= 1
    if pending:
        _hand_on(lkp)  # our going may be what the other upgrade waits for
        if flags & LK_TYPE_MASK == LK_EXCLUPGRADE:
            return EBUSY
    return _wait(lkp, td, _WAIT_UPGRADE, flags, timo)


def lockmgr_cancel_beg(lkp: Lock) -> None:
    """End every cancelable wait for `lkp` with ENOLCK, until LK_CANCEL_END."""
    lkp.lk_cancel = True
    line = lkp.lk_line
    if not line:
        return
    stay: deque[_Waiter] = deque()
    for waiter in line:
        if waiter.flags & LK_CANCELABLE:
            waiter.result = ENOLCK
            lkp.lk_sched.wakeup(waiter)
        else:
            stay.append(waiter)
    lkp.lk_line = stay
    _hand_on(lkp)


def lockmgr_cancel_end(lkp: Lock) -> None:
    """Cancelable waits are possible again."""
    lkp.lk_cancel = False


def lockstatus(lkp: Lock) -> int:
    """LK_EXCLUSIVE if the current thread holds `lkp` exclusively, LK_EXCLOTHER if another one
    does, LK_SHARED if anybody holds it shared, 0 if it is free."""
    holder = lkp.lk_holder
    if holder is not None:
        return LK_EXCLUSIVE if holder is lkp.lk_sched.curthread else LK_EXCLOTHER
    return LK_SHARED if lkp.lk_shared else 0


def lockowned(lkp: Lock) -> bool:
    """Whether the current thread holds `lkp` exclusively."""
    return lkp.lk_holder is lkp.lk_sched.curthread


def _wait(lkp: Lock, td: Thread, kind: int, flags: int, timo: int) -> int:
    """Stand in line until the lock has been handed to `td`, or the wait ends without it."""
    if flags & LK_NOWAIT:
        _hand_on(lkp)  # a failed upgrade has just given up its hold
        return EBUSY
    if flags & LK_CANCELABLE and lkp.lk_cancel:
        _hand_on(lkp)
        return ENOLCK
    waiter = _Waiter(lkp, td, kind, flags)
    line = lkp.lk_line
    if line is None:
        line = lkp.lk_line = deque()
    if kind == _WAIT_UPGRADE:
        # Before everyone, but behind upgrades that were asked for earlier.
        line.insert(sum(1 for other in line if other.kind == _WAIT_UPGRADE), waiter)
    else:
        line.append(waiter)
    sched = lkp.lk_sched
    error = sched.tsleep(
        waiter,
        PCATCH if flags & LK_PCATCH else 0,
        lkp.lk_wmesg,
        timo if flags & LK_TIMELOCK else 0,
    )
    if waiter.result is not None:
        return waiter.result
    # Timeout or signal, and the lock had not been handed over before it.
    if lkp.lk_line is not None:
        lkp.lk_line.remove(waiter)
    _hand_on(lkp)  # those behind us may be able to go
    return error


def _hand_on(lkp: Lock) -> None:
    """Give `lkp` to the head of its line as far as its state allows."""
    line = lkp.lk_line
    while line:
        waiter = line[0]
        if lkp.lk_holder is not None:
            return
        if waiter.kind != _WAIT_SHARED and lkp.lk_shared:
            return
        line.popleft()
        if waiter.flags & LK_SLEEPFAIL:
            waiter.result = ENOLCK
        else:
            waiter.result = 0
            waiter.td.td_locks.append(lkp)
            if waiter.kind == _WAIT_SHARED:
                lkp.lk_shared += 1
            else:
                lkp.lk_holder = waiter.td
                lkp.lk_count = 1
        lkp.lk_sched.wakeup(waiter)
