"""Getting memory back when it is short.

There is no pageout daemon: who needs memory and gets none does this work itself, in vm_wait.
What can be got back without swap is what a file has, or can be given, a copy of: clean pages go to
the cache queue, dirty ones are written first. Anonymous memory that was written to stays. When
that does not help, vm_pageout_oom ends the process that has most of it.

Source: DragonFly sys/vm/vm_pageout.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.vm.pmap_page import pmap_mapped
from dfvm.vm.vm import VM_PROT_NONE
from dfvm.vm.vm_object import (
    OBJ_DEAD,
    OBJPC_TRY_TO_CACHE,
    OBJT_SWAP,
    OBJT_VNODE,
    vm_object_drop,
    vm_object_hold,
)
from dfvm.vm.vm_page import (
    PG_NEED_COMMIT,
    PG_UNQUEUED,
    PQ_ACTIVE,
    PQ_CACHE,
    PQ_INACTIVE,
    PQ_L2_MASK,
    PQ_PRIME2,
    VM_PAGE_BITS_ALL,
    vm_page_busy_try,
    vm_page_cache,
    vm_page_free,
    vm_page_protect,
    vm_page_test_dirty,
    vm_page_wakeup,
)
from dfvm.vm.vm_page_alloc import vm_page_select_cache
from dfvm.vm.vm_pager import vm_pager_flush

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMapBacking
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage
    from dfvm.vm.vm_proc import VmProc

OOM_SCORE_ADJ_MIN: Final = -1000


def vm_pageout_reclaim(vm: VmSystem, want: int) -> int:
    """Make up to `want` pages free or cached: inactive ones first, then active ones. Returns how
    many it got. May block for I/O."""
    cnt = vm.gd.gd_cnt
    cnt.v_pdwakeups += 1
    got = 0
    for base in (PQ_INACTIVE, PQ_ACTIVE):
        for q in vm.pages.queues(base):
            for m in list(q.pages()):
                if got >= want:
                    return got
                cnt.v_pdpages += 1
                # Laundering another page may have blocked: is this one still where it was?
                if m.queue == q.queue and _reclaim_page(vm, m):
                    cnt.v_dfree += 1
                    got += 1
    return got


def vm_pageout_scan_cache(vm: VmSystem) -> None:
    """Free pages of the cache queue until the free queue alone is where it should be: allocations
    below NORMAL take nothing else, and below v_free_reserved every fault waits, however much is
    cached. Does not block.

    Source: DragonFly sys/vm/vm_pageout.c.
    """
    s = vm.gd.gd_vmstats
    color = 0
    while s.v_free_count < (s.v_paging_start + s.v_paging_target2) // 2:
        m = vm_page_select_cache(vm, color)
        if m is None:
            break
        vm_page_free(vm, m)
        color = color + PQ_PRIME2 & PQ_L2_MASK


def _reclaim_page(vm: VmSystem, m: VmPage) -> bool:
    """Free or cache one page of a paging queue, writing it first if it is dirty and a file's.
    True if that worked. May block."""
    if m.hold_count or m.wire_count or m.flags & (PG_UNQUEUED | PG_NEED_COMMIT):
        return False
    object = m.object
    if object is None:
        if vm_page_busy_try(vm, m, True):
            return False
        vm_page_free(vm, m)
        return True
    vm_object_hold(object)
    try:
        if (
            m.object is not object
            or object.flags & OBJ_DEAD
            or object.paging_in_progress
            or vm_page_busy_try(vm, m, True)
        ):
            return False
        return _reclaim_busied(vm, object, m)
    finally:
        vm_object_drop(object)


def _reclaim_busied(vm: VmSystem, object: VmObject, m: VmPage) -> bool:
    """The same for a page that is hard-busied, of a held object. The page is not busied any more
    on return."""
    if not m.valid:
        vm_page_free(vm, m)
        return True
    vm_page_test_dirty(vm, m)
    if not m.dirty and object.type <= OBJT_SWAP:
        # Anonymous memory nobody has written to: zero, as it will be again when it is touched.
        vm_page_protect(vm, m, VM_PROT_NONE)
        if not m.dirty:
            vm_page_free(vm, m)
            return True
    elif not m.dirty:
        vm_page_cache(vm, m)
        return m.queue - m.pc == PQ_CACHE
    elif object.type == OBJT_VNODE and m.valid == VM_PAGE_BITS_ALL:
        vm_pager_flush(object, [m], OBJPC_TRY_TO_CACHE)
        return m.queue - m.pc == PQ_CACHE
    vm_page_wakeup(vm, m)
    return False


def vm_pageout_drop_clean(vm: VmSystem) -> int:
    """Free every clean page of a file that nobody has mapped, wired or busy. Returns how many.
    Does not block."""
    count = 0
    for base in (PQ_CACHE, PQ_INACTIVE, PQ_ACTIVE):
        for q in vm.pages.queues(base):
            for m in list(q.pages()):
                object = m.object
                if (
                    object is None
                    or object.type != OBJT_VNODE
                    or object.flags & OBJ_DEAD
                    or object.paging_in_progress
                    or m.dirty
                    or m.hold_count
                    or m.wire_count
                    or m.flags & (PG_UNQUEUED | PG_NEED_COMMIT)
                    or any(True for _ in pmap_mapped(m))
                    or vm_page_busy_try(vm, m, True)
                ):
                    continue
                vm_page_free(vm, m)
                count += 1
    return count


def vm_pageout_oom(vm: VmSystem) -> None:
    """Memory is short and nothing more can be reclaimed: kill the process with most anonymous
    memory, as far as p_oom_score_adj does not say otherwise, at most one in a second, and not while
    the last victim is still on its way out. Does not block."""
    hooks = vm.hooks
    if hooks is None:
        panic("out of memory with no process to kill")
    victim: VmProc | None = None
    most = (False, 0)
    for proc in hooks.allproc():
        if proc.p_lowmemkill:
            if vm.sched.ticks - vm.pages.oom_time < vm.sched.hz:
                return
        elif not proc.p_system:
            score = (proc.p_oom_score_adj != OOM_SCORE_ADJ_MIN, vm_oom_badness(vm, proc))
            if victim is None or score > most:
                most = score
                victim = proc
    if victim is None:
        if any(proc.p_lowmemkill for proc in hooks.allproc()):
            return
        panic("out of memory with no process to kill")
    vm.pages.oom_time = vm.sched.ticks
    hooks.kill_for_memory(victim)
    vm.sched.wakeup(vm.pages)  # the victim may be one of those who wait for memory


def vm_oom_badness(vm: VmSystem, proc: VmProc) -> int:
    """How much would be gained by killing `proc`, pages, with what p_oom_score_adj adds."""
    return (
        vmspace_anonymous_count(proc) + proc.p_oom_score_adj * vm.gd.gd_vmstats.v_page_count // 1000
    )


def vmspace_anonymous_count(proc: VmProc) -> int:
    """Resident pages of anonymous memory that `proc` maps; what it shares with others counts in
    full. Does not block."""
    seen: set[VmObject] = set()
    for entry in proc.p_vmspace.vm_map:
        ba: VmMapBacking | None = entry.ba
        while ba is not None:
            if ba.object is not None and ba.object.type <= OBJT_SWAP:
                seen.add(ba.object)
            ba = ba.backing_ba
    return sum(object.resident_page_count for object in seen)
