"""RLIMIT_RSS: what a process may keep mapped.

Looked at after the faults of a user only, and only 16 MiB beyond the limit, so that a process at
its limit does not pay for each page. `vm.pageout_memuse_mode` says what happens then:

    0  nothing
    1  the surplus is unmapped and deactivated: it stays in memory as long as nobody needs it
    2  and is moved to the cache queue at once where it is clean

Source: DragonFly sys/vm/vm_fault.c (end of vm_fault), sys/vm/vm_pageout.c
(vm_pageout_map_deactivate_pages).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.vm.pmap import pmap_pgscan, pmap_remove
from dfvm.vm.vm_page import (
    PG_MAPPED,
    vm_page_busy_try,
    vm_page_deactivate,
    vm_page_try_to_cache,
    vm_page_wakeup,
)
from dfvm.vm.vm_param import PAGE_SHIFT, PAGE_SIZE
from dfvm.vm.vm_proc import RLIM_INFINITY, RLIMIT_RSS

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap
    from dfvm.vm.vm_page import VmPage
    from dfvm.vm.vm_proc import VmProc

RSS_SLACK: Final = 4096  # pages over the limit that are let pass


def vm_fault_rss_surplus(map: VmMap, proc: VmProc | None) -> int:
    """How many pages `proc` has mapped beyond its limit and RSS_SLACK; 0 if it may."""
    if proc is None or not map.vm.sysctl.pageout_memuse_mode:
        return 0
    limit = proc.p_rlimit(RLIMIT_RSS)
    if limit == RLIM_INFINITY:
        return 0
    stats = map.pmap.pm_stats
    surplus = stats.resident_count - stats.wired_count - (limit >> PAGE_SHIFT)
    return surplus if surplus > RSS_SLACK else 0


def vm_pageout_map_deactivate_pages(map: VmMap, count: int) -> None:
    """Unmap about `count` pages of the map, going on from where the last call ended, and make
    those that nobody else maps candidates for reuse. Nothing is locked. Does not block."""
    vm, pmap = map.vm, map.pmap
    reuse = vm.sysctl.pageout_memuse_mode >= 2

    def deactivate(va: int, m: VmPage) -> bool:
        if not vm_page_busy_try(vm, m, True):
            pmap_remove(pmap, va, va + PAGE_SIZE)
            unmapped = not m.flags & PG_MAPPED
            if unmapped and not m.wire_count:
                vm_page_deactivate(vm, m)
            vm_page_wakeup(vm, m)
            if unmapped and reuse:
                vm_page_try_to_cache(vm, m)
        return True

    begin = pmap.pm_pgout_va
    for start, end in ((begin, map.max_addr), (map.min_addr, begin)):
        resident = pmap.pm_stats.resident_count
        if start < end and count > 0:
            pmap.pm_pgout_va = pmap_pgscan(pmap, start, end, count, deactivate)
            count -= resident - pmap.pm_stats.resident_count
