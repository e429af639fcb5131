"""Where a page stands with the pager: wired, active, inactive, cached.

    active ⇄ inactive → cache → free      (free is vm_page_alloc.py)
       wired: on no queue

A page that is wired or PG_UNQUEUED is on no queue, and asking to move it there is not an error.

Source: DragonFly sys/vm/vm_page.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic
from dfvm.vm.vm import VM_PROT_NONE, VM_PROT_READ
from dfvm.vm.vm_meter import VMSTATS_ADJ_LIMIT, vmstats_rollup
from dfvm.vm.vm_page_busy import vm_page_busy_try, vm_page_wakeup
from dfvm.vm.vm_page_queue import (
    ACT_INIT,
    PBUSY_LOCKED,
    PBUSY_MASK,
    PG_FICTITIOUS,
    PG_MAPPED,
    PG_NEED_COMMIT,
    PG_REFERENCED,
    PG_UNQUEUED,
    PG_WINATCFLS,
    PG_WRITEABLE,
    PQ_ACTIVE,
    PQ_CACHE,
    PQ_INACTIVE,
    vm_page_add_queue,
    vm_page_rem_queue,
)
from dfvm.vm.vm_page_valid import vm_page_test_dirty
from dfvm.vm.vm_page_wait import vm_page_free_wakeup

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_page_queue import VmPage


def vm_page_protect(vm: VmSystem, m: VmPage, prot: int) -> None:
    """Take rights away from every mapping of `m`: VM_PROT_NONE unmaps it, VM_PROT_READ leaves it
    readable. Rights are never added. The M and A bits of the PTEs go to the page. The page is
    hard-busied; does not block."""
    if not m.busy_count & PBUSY_LOCKED:
        panic(f"vm_page_protect: page not busy: {m}")
    if prot == VM_PROT_NONE:
        if not m.flags & (PG_MAPPED | PG_WRITEABLE):
            return
    elif prot != VM_PROT_READ or not m.flags & PG_WRITEABLE:
        return
    from dfvm.vm.pmap import pmap_page_protect  # pmap is built on this module

    pmap_page_protect(vm, m, prot)


def vm_page_wire(vm: VmSystem, m: VmPage) -> None:
    """One more wiring: `m` stays in memory, and on no queue, until as many are undone. The page
    is hard-busied; does not block. Fictitious pages can't go away and ignore it."""
    if not m.busy_count & PBUSY_LOCKED:
        panic(f"vm_page_wire: page not busy: {m}")
    if m.flags & PG_FICTITIOUS:
        return
    m.wire_count += 1
    if m.wire_count == 1:
        if m.queue:
            vm_page_rem_queue(vm, m)
        vm_page_count_wired(vm, 1)


def vm_page_unwire(vm: VmSystem, m: VmPage, activate: bool) -> None:
    """Undo a wiring. With the last one the page becomes inactive, or active if `activate` is set
    or it needs a commit. The page is hard-busied; does not block."""
    if not m.busy_count & PBUSY_LOCKED:
        panic(f"vm_page_unwire: page not busy: {m}")
    if m.flags & PG_FICTITIOUS:
        return
    if m.wire_count <= 0:
        panic(f"vm_page_unwire: page not wired: {m}")
    m.wire_count -= 1
    if m.wire_count:
        return
    vm_page_count_wired(vm, -1)
    if m.flags & PG_UNQUEUED:
        return
    if activate or m.flags & PG_NEED_COMMIT:
        vm_page_add_queue(vm, m, PQ_ACTIVE)
    else:
        m.flags &= ~PG_WINATCFLS
        vm_page_add_queue(vm, m, PQ_INACTIVE)


def vm_page_count_wired(vm: VmSystem, n: int) -> None:
    """Note that `n` more pages are wired."""
    gd = vm.gd
    gd.gd_vmstats.v_wire_count += n
    adj = gd.gd_vmstats_adj
    adj.v_wire_count += n
    if not -VMSTATS_ADJ_LIMIT <= adj.v_wire_count <= VMSTATS_ADJ_LIMIT:
        vmstats_rollup(vm)


def vm_page_activate(vm: VmSystem, m: VmPage) -> None:
    """Make `m` active, with an act_count of at least ACT_INIT. No requirements; does not
    block."""
    queue = m.queue
    if queue - m.pc == PQ_ACTIVE:
        if m.act_count < ACT_INIT:
            m.act_count = ACT_INIT
        return
    if queue and vm_page_rem_queue(vm, m) == PQ_CACHE:
        vm.gd.gd_cnt.v_reactivated += 1
    if m.wire_count or m.flags & PG_UNQUEUED:
        return
    if m.act_count < ACT_INIT:
        m.act_count = ACT_INIT
    # vm_page_add_queue(vm, m, PQ_ACTIVE), spelled out: every fault ends here.
    pages = vm.pages
    queue = PQ_ACTIVE + m.pc
    q = pages.vm_page_queues[queue]
    if q is None:
        q = pages.queue(queue)
    m.queue = queue
    q.lcnt += 1
    before = q.pq_prev
    m.pq_prev = before
    m.pq_next = q
    before.pq_next = m
    q.pq_prev = m
    gd = vm.gd
    gd.gd_vmstats.v_active_count += 1
    adj = gd.gd_vmstats_adj
    n = adj.v_active_count = adj.v_active_count + 1
    if n > VMSTATS_ADJ_LIMIT:
        vmstats_rollup(vm)


def vm_page_queue_run(vm: VmSystem, run: list[VmPage], base: int) -> None:
    """Put fresh pages, as vm_page_alloc_run gave them, on PQ_ACTIVE or PQ_INACTIVE and give up
    their hard busy: what vm_page_activate or vm_page_deactivate and then vm_page_wakeup do for
    one. Does not block."""
    queues = vm.pages.vm_page_queues
    for m in run:
        queue = base + m.pc
        q = queues[queue]
        if q is None:
            q = vm.pages.queue(queue)
        m.queue = queue
        m.act_count = ACT_INIT
        q.lcnt += 1
        before = q.pq_prev
        m.pq_prev = before
        m.pq_next = q
        before.pq_next = m
        q.pq_prev = m
        if m.busy_count == PBUSY_LOCKED:
            m.busy_count = 0
        else:
            vm_page_wakeup(vm, m)
    n = len(run)
    own = vm.gd.gd_vmstats
    adj = vm.gd.gd_vmstats_adj
    if base == PQ_ACTIVE:
        own.v_active_count += n
        n = adj.v_active_count = adj.v_active_count + n
    else:
        own.v_inactive_count += n
        n = adj.v_inactive_count = adj.v_inactive_count + n
    if n > VMSTATS_ADJ_LIMIT:
        vmstats_rollup(vm)


def vm_page_deactivate(vm: VmSystem, m: VmPage) -> None:
    """Make `m` inactive, last in line. No requirements; does not block."""
    vm_page_deactivate_locked(vm, m, False)


def vm_page_deactivate_locked(vm: VmSystem, m: VmPage, athead: bool) -> None:
    """Make `m` inactive; `athead`: first in line, almost as if it were cached, but still mapped.
    A page that is inactive already stays where it is. No requirements; does not block."""
    queue = m.queue
    if queue - m.pc == PQ_INACTIVE:
        return
    base = vm_page_rem_queue(vm, m) if queue else 0
    if m.wire_count or m.flags & PG_UNQUEUED:
        return
    if base == PQ_CACHE:
        vm.gd.gd_cnt.v_reactivated += 1
    m.flags &= ~PG_WINATCFLS
    vm_page_add_queue(vm, m, PQ_INACTIVE, athead)


def vm_page_cache(vm: VmSystem, m: VmPage) -> None:
    """Unmap the clean page `m` and put it on the cache queue, from where an allocation may take
    it. If unmapping shows that it is dirty it is deactivated instead; a page in use stays where it
    is. The page is hard-busied, and not busied on return. Does not block."""
    if (
        m.flags & (PG_UNQUEUED | PG_NEED_COMMIT)
        or m.busy_count & PBUSY_MASK
        or m.wire_count
        or m.hold_count
        or m.queue - m.pc == PQ_CACHE
    ):
        vm_page_wakeup(vm, m)
        return
    if m.dirty:
        panic(f"vm_page_cache: page dirty: {m}")
    vm_page_protect(vm, m, VM_PROT_NONE)
    if m.dirty:
        vm_page_deactivate(vm, m)
        vm_page_wakeup(vm, m)
        return
    if m.queue:
        vm_page_rem_queue(vm, m)
    vm_page_add_queue(vm, m, PQ_CACHE)
    vm_page_wakeup(vm, m)
    if vm.pages.pages_waiting:
        vm_page_free_wakeup(vm)


def vm_page_try_to_cache(vm: VmSystem, m: VmPage) -> bool:
    """Cache `m` if it is clean and nobody has a claim on it. The page is not busied by the
    caller. True if it is cached now. Does not block."""
    if vm_page_busy_try(vm, m, True):
        return False
    if not (m.dirty or m.hold_count or m.wire_count or m.flags & (PG_UNQUEUED | PG_NEED_COMMIT)):
        vm_page_test_dirty(vm, m)
        if not m.dirty:
            vm_page_cache(vm, m)
            return m.queue - m.pc == PQ_CACHE
    vm_page_wakeup(vm, m)
    return False


def vm_page_dontneed(vm: VmSystem, m: VmPage) -> None:
    """madvise(MADV_DONTNEED) for a page: it is probably not needed soon. Always to move such
    pages to where they are reused first would let one program's pages cycle too quickly, so of 32
    calls in a row one leaves the page alone, three deactivate it, last in line, and 28 first in
    line. (The same applies 16 times before it is the next one's turn.) The page is hard-busied and
    stays so; does not block."""
    pages = vm.pages
    weight = pages.dnweight = pages.dnweight + 1
    if not weight & 0x01F0 or m.queue - m.pc in (PQ_INACTIVE, PQ_CACHE):
        if m.act_count >= ACT_INIT:
            m.act_count -= 1
        return
    m.flags &= ~PG_REFERENCED
    if m.flags & PG_MAPPED:
        from dfvm.vm.pmap import pmap_clear_reference  # pmap is built on this module

        pmap_clear_reference(vm, m)
    if not m.dirty:
        vm_page_test_dirty(vm, m)
    athead = not m.dirty and weight & 0x0070 != 0
    vm_page_deactivate_locked(vm, m, athead)
