"""Do pages, queues, objects and counts agree? For Machine.check() and tests; linear in pages.

Every frame is in exactly one state:

    unused     never allocated; no VmPage
    free       on PQ_FREE: no object, not busy, wired or held, nothing valid
    hold       on PQ_HOLD: freed while held
    paging     on PQ_INACTIVE, PQ_ACTIVE or PQ_CACHE; a cached page is clean and unmapped
    wired      on no queue, wire_count > 0
    busy       on no queue, in somebody's hands: hard-busied
    unqueued   on no queue because of PG_UNQUEUED, in an object

Anything else is a page that was lost. The checker runs between two steps of the kernel, so a busy
page is one whose owner sleeps.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from dfvm.vm.vm_meter import VmStatsAdj
from dfvm.vm.vm_page_hash import VM_PAGE_HASH_SET
from dfvm.vm.vm_page_queue import (
    ACT_MAX,
    PBUSY_LOCKED,
    PBUSY_MASK,
    PBUSY_WANTED,
    PG_FICTITIOUS,
    PG_MAPPED,
    PG_MARKER,
    PG_UNQUEUED,
    PG_WRITEABLE,
    PQ_ACTIVE,
    PQ_CACHE,
    PQ_COUNT,
    PQ_FREE,
    PQ_HOLD,
    PQ_INACTIVE,
    PQ_L2_MASK,
    PQ_L2_SHIFT,
    PQ_L2_SIZE,
    PQ_NONE,
    VM_PAGE_BITS_ALL,
    page_color,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_page_queue import VmPage, VpgQueue

_KINDS: Final = {
    PQ_FREE: "v_free_count",
    PQ_INACTIVE: "v_inactive_count",
    PQ_ACTIVE: "v_active_count",
    PQ_CACHE: "v_cache_count",
    PQ_HOLD: "v_active_count",
}


def vm_page_check(vm: VmSystem) -> list[str]:
    """What is wrong with the pages of this machine, one line each; empty when all is well. No
    requirements; does not block and changes nothing."""
    found: list[str] = []
    queued: dict[VmPage, int] = {}
    counts: Counter[str] = Counter()
    for q in vm.pages.vm_page_queues:
        if q is not None:
            found += _check_queue(q, queued)
            base = _base(q.queue)
            counts[_KINDS[base]] += q.lcnt
            if q.lcnt and not vm.pages.colors.get(base, -1) >> q.queue - base & 1:
                found.append(f"{q}: has pages that no search will find")
    for n, m in enumerate(vm.pages.vm_page_array):
        if m is not None:
            found += _check_page(n, m, queued)
            counts["v_wire_count"] += m.wire_count > 0
    found += _check_unused(vm, counts)
    found += _check_objects(vm)
    found += _check_hash(vm)
    found += _check_counts(vm, counts)
    return found


def _base(queue: int) -> int:
    """PQ_FREE … PQ_HOLD for a queue number."""
    return queue - (queue - PQ_FREE & PQ_L2_MASK)


def _check_queue(q: VpgQueue, queued: dict[VmPage, int]) -> Iterator[str]:
    """One list: linked both ways, no page twice, as many as it says."""
    number = q.queue
    if not PQ_NONE < number < PQ_COUNT:
        yield f"{q}: bad number"
    length = 0
    before: VmPage = q
    m = q.pq_next
    while m is not q:
        if m.pq_prev is not before:
            yield f"{q}: {m} is not linked back to {before}"
        if not m.flags & PG_MARKER:
            length += 1
            if m in queued:
                yield f"{q}: {m} is on queue {queued[m]}, too"
                return  # the list is not a list any more
            queued[m] = number
            if m.queue != number:
                yield f"{q}: {m} does not know that it is here"
            if m.pc != number - PQ_FREE & PQ_L2_MASK:
                yield f"{q}: {m} is of colour {m.pc}"
        before = m
        m = m.pq_next
    if q.pq_prev is not before:
        yield f"{q}: the tail is not {before}"
    if q.lcnt != length:
        yield f"{q}: has {length} pages"


def _check_page(n: int, m: VmPage, queued: dict[VmPage, int]) -> Iterator[str]:
    """One frame: is what it says it is, and in one of the states."""
    if m.phys_addr != n << 12:
        yield f"frame {n:#x}: {m} is elsewhere"
    if m.pc != page_color(n):
        yield f"{m}: colour {m.pc}, not {page_color(n)}"
    if m.flags & (PG_MARKER | PG_FICTITIOUS):
        yield f"{m}: a marker or fictitious page in vm_page_array"
    if m.queue != queued.get(m, PQ_NONE):
        yield f"{m}: is not on the queue it says"
    if m.valid & ~VM_PAGE_BITS_ALL or m.dirty & ~VM_PAGE_BITS_ALL:
        yield f"{m}: impossible valid or dirty bits"
    if m.wire_count < 0 or m.hold_count < 0 or not 0 <= m.act_count <= ACT_MAX:
        yield f"{m}: impossible count (act_count {m.act_count})"
    busy = m.busy_count
    if busy & PBUSY_WANTED and not busy & (PBUSY_LOCKED | PBUSY_MASK):
        yield f"{m}: wanted, but not busy"
    if m.object is not None and m.object.rb_memq.get(m.pindex) is not m:
        yield f"{m}: its object does not know it: {m.object}"
    base = m.queue - m.pc
    if base in (PQ_FREE, PQ_HOLD):
        if (
            m.object is not None
            or busy
            or m.wire_count
            or m.valid
            or m.dirty
            or m.flags
            or (m.hold_count > 0) != (base == PQ_HOLD)
        ):
            yield f"{m}: not in a state to be on the {'free' if base == PQ_FREE else 'hold'} queue"
    elif m.queue:
        if m.wire_count or m.flags & PG_UNQUEUED:
            yield f"{m}: on a paging queue, but wired or unqueued"
        if m.object is None and not busy & PBUSY_LOCKED:
            yield f"{m}: on a paging queue without an object"
        if base == PQ_CACHE and (m.dirty or m.flags & (PG_MAPPED | PG_WRITEABLE)):
            yield f"{m}: cached, but dirty or mapped"
    elif not (m.wire_count or busy & PBUSY_LOCKED):
        if not (m.flags & PG_UNQUEUED and m.object is not None):
            yield f"{m}: lost: on no queue, not wired, not busy"


def _check_unused(vm: VmSystem, counts: Counter[str]) -> Iterator[str]:
    """Frames without a VmPage are those the colours' cursors say, and are counted as free."""
    pages = vm.pages
    array = pages.vm_page_array
    if len(array) > pages.npages:
        yield f"vm_page_array has {len(array)} entries for {pages.npages} frames"
    for n, m in enumerate(array):
        if n and (m is None) != (n >> PQ_L2_SHIFT >= pages.next_block[page_color(n)]):
            yield f"frame {n:#x}: unused and allocated, or neither"
    beyond = max(pages.next_block) << PQ_L2_SHIFT
    if beyond > max(len(array) + PQ_L2_MASK, PQ_L2_SIZE):
        yield f"frames below {beyond:#x} are in use, vm_page_array ends at {len(array):#x}"
    counts["v_free_count"] += sum(pages.unused_count(c) for c in range(PQ_L2_SIZE))


def _check_objects(vm: VmSystem) -> Iterator[str]:
    """Every object knows its pages, and they know it."""
    for bucket in vm.object_hash:
        for object in bucket:
            if object.resident_page_count != len(object.rb_memq):
                yield f"{object}: has {len(object.rb_memq)} resident pages"
            for pindex, m in object.rb_memq.items():
                if m.object is not object or m.pindex != pindex:
                    yield f"{object}: page {pindex} is not its own: {m}"


def _check_hash(vm: VmSystem) -> Iterator[str]:
    """Sets are where the mask allows and not too large, with no page twice. What is in them may be
    stale: see vm_page_hash.py."""
    pages = vm.pages
    for index, ways in pages.vm_page_hash.items():
        if index > pages.hash_mask or not 0 < len(ways) <= VM_PAGE_HASH_SET:
            yield f"page hash: set {index} has {len(ways)} ways"
        if len(set(ways)) != len(ways):
            yield f"page hash: set {index} has a page twice"


def _check_counts(vm: VmSystem, counts: Counter[str]) -> Iterator[str]:
    """The CPU's picture, and the global figures with what the CPU has not told yet, are what was
    counted."""
    own = vm.gd.gd_vmstats
    adj = vm.gd.gd_vmstats_adj
    for name in VmStatsAdj.__slots__:
        counted = counts[name]
        if getattr(own, name) != counted:
            yield f"gd_vmstats.{name} is {getattr(own, name)}, counted {counted}"
        total = getattr(vm.vmstats, name) + getattr(adj, name)
        if total != counted:
            yield f"vmstats.{name} with its adjustment is {total}, counted {counted}"
