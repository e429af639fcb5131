"""Busy pages: who may change a page, and how others wait for it.

Hard busy (PBUSY_LOCKED) has one owner and excludes everybody: only under it may the page's object,
pindex or valid bits change, or its wiring go from or to 0. Soft busy is a count; it keeps hard busy
away and nothing else, so that a page which is being written to disk can be mapped meanwhile.

Whoever finds a page too busy sets PBUSY_WANTED, sleeps on the page and looks it up again when it
is woken: by then it may be another page's frame.

hold_count is weaker than both: it keeps the frame from being reused, not the page from changing.

Source: DragonFly sys/vm/vm_page.c, sys/vm/vm_page2.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic
from dfvm.vm.vm_page_queue import (
    PBUSY_LOCKED,
    PBUSY_MASK,
    PBUSY_WANTED,
    PG_REFERENCED,
    PQ_FREE,
    PQ_HOLD,
    vm_page_add_queue,
    vm_page_rem_queue,
)

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_page_queue import VmPage


def vm_page_busy_try(vm: VmSystem, m: VmPage, also_m_busy: bool) -> bool:
    """Hard-busy `m`, and return True if that can't be done now: somebody else has, or, with
    `also_m_busy`, it is soft-busied. Does not block."""
    busy = m.busy_count
    if busy & PBUSY_LOCKED or (also_m_busy and busy & PBUSY_MASK):
        return True
    m.busy_count = busy | PBUSY_LOCKED
    return False


def vm_page_busy_wait(vm: VmSystem, m: VmPage, also_m_busy: bool, wmesg: str) -> None:
    """Hard-busy `m`, sleeping as long as that can't be done. The caller makes sure that it still
    wants this page when it has slept."""
    while vm_page_busy_try(vm, m, also_m_busy):
        vm_page_sleep_wanted(vm, m, wmesg)


def vm_page_sleep_wanted(vm: VmSystem, m: VmPage, wmesg: str) -> None:
    """Sleep until `m`, which is too busy for the caller, becomes less so. To wait for a page is
    to use it: PG_REFERENCED."""
    m.busy_count |= PBUSY_WANTED
    m.flags |= PG_REFERENCED
    vm.sched.tsleep(m, 0, wmesg)


def vm_page_sleep_busy(vm: VmSystem, m: VmPage, also_m_busy: bool, wmesg: str) -> bool:
    """If `m` is hard-busied, or with `also_m_busy` soft-busied, sleep once until that changes and
    return True. The page is not busied for the caller, and may be anything by then."""
    busy = m.busy_count
    if not (busy & PBUSY_LOCKED or (also_m_busy and busy & PBUSY_MASK)):
        return False
    vm_page_sleep_wanted(vm, m, wmesg)
    return True


def vm_page_wakeup(vm: VmSystem, m: VmPage) -> None:
    """Give up the caller's hard busy and wake whoever waits for the page. Does not block."""
    busy = m.busy_count
    if not busy & PBUSY_LOCKED:
        panic(f"vm_page_wakeup: page not busy: {m}")
    m.busy_count = busy & ~(PBUSY_LOCKED | PBUSY_WANTED)
    if busy & PBUSY_WANTED:
        vm.sched.wakeup(m)


def vm_page_sbusy_try(vm: VmSystem, m: VmPage) -> bool:
    """Soft-busy `m`, and return True if that can't be done now because it is hard-busied. Does
    not block."""
    if m.busy_count & PBUSY_LOCKED:
        return True
    m.busy_count += 1
    return False


def vm_page_sbusy_drop(vm: VmSystem, m: VmPage) -> None:
    """Give up one soft busy; the last one wakes whoever waits for the page. Does not block."""
    busy = m.busy_count
    if not busy & PBUSY_MASK:
        panic(f"vm_page_sbusy_drop: page not soft-busied: {m}")
    busy -= 1
    m.busy_count = busy
    if busy & (PBUSY_WANTED | PBUSY_LOCKED | PBUSY_MASK) == PBUSY_WANTED:
        m.busy_count = busy & ~PBUSY_WANTED
        vm.sched.wakeup(m)


def vm_page_io_start(vm: VmSystem, m: VmPage) -> None:
    """Soft-busy a page that the caller has hard-busied, so that it can give up the hard busy
    while I/O goes on. Does not block."""
    if not m.busy_count & PBUSY_LOCKED:
        panic(f"vm_page_io_start: page not busy: {m}")
    m.busy_count += 1


def vm_page_io_finish(vm: VmSystem, m: VmPage) -> None:
    """The I/O that vm_page_io_start announced is over. Does not block."""
    vm_page_sbusy_drop(vm, m)


def vm_page_hold(vm: VmSystem, m: VmPage) -> None:
    """Keep the frame of `m` from being reused. The page may leave its object or be freed
    meanwhile, its contents stay. A free page goes to PQ_HOLD. Does not block."""
    m.hold_count += 1
    if m.queue - m.pc == PQ_FREE:
        vm_page_rem_queue(vm, m)
        vm_page_add_queue(vm, m, PQ_HOLD)


def vm_page_unhold(vm: VmSystem, m: VmPage) -> None:
    """Undo a hold. The last one frees a page that was freed while held. Does not block."""
    count = m.hold_count - 1
    base = m.queue - m.pc
    if count < 0 or base == PQ_FREE:
        panic(f"vm_page_unhold: not held, or free: {m}")
    m.hold_count = count
    if not count and base == PQ_HOLD:
        vm_page_rem_queue(vm, m)
        vm_page_add_queue(vm, m, PQ_FREE)
