"""How short of memory are we? The tests that faults, allocation and paging decide by.

All read the CPU's own picture (gd_vmstats), never the global figures: on a machine with many CPUs
those would bounce between caches, and here they are up to a tick old.

    reserved < severe < min < wait < start < target1 < target2

A test is true when free + cache is below its mark, and always when the free queue alone is below
the reserve. No requirements; nothing here blocks.

Source: DragonFly sys/vm/vm_page2.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem


def vm_paging_severe(vm: VmSystem) -> bool:
    """User processes should stall, so that the kernel's own needs can be met."""
    s = vm.gd.gd_vmstats
    free = s.v_free_count
    return s.v_free_severe > free + s.v_cache_count or s.v_free_reserved > free


def vm_paging_min(vm: VmSystem) -> bool:
    """Most page faults should block."""
    s = vm.gd.gd_vmstats
    free = s.v_free_count
    return s.v_free_min > free + s.v_cache_count or s.v_free_reserved > free


def vm_paging_min_dnc(vm: VmSystem, donotcount: int) -> bool:
    """As vm_paging_min, with `donotcount` free pages left out of the count: for hysteresis."""
    s = vm.gd.gd_vmstats
    free = s.v_free_count
    return s.v_free_min + donotcount > free + s.v_cache_count or s.v_free_reserved > free


def vm_paging_min_nice(vm: VmSystem, nice: int) -> bool:
    """As vm_paging_min for a process of that nice value (-20 … 20): a nicer one blocks earlier,
    at the latest half way from min to wait. Nice 0 is the mark itself, as in DragonFly."""
    if not nice:
        return vm_paging_min(vm)
    s = vm.gd.gd_vmstats
    delta = (s.v_paging_wait - s.v_free_min - 1) >> 1
    return vm_paging_min_dnc(vm, (nice + 20) * delta // 40 if delta > 0 else 0)


def vm_paging_wait(vm: VmSystem) -> bool:
    """Allocations should slow down, but not stop."""
    s = vm.gd.gd_vmstats
    free = s.v_free_count
    return s.v_paging_wait > free + s.v_cache_count or s.v_free_reserved > free


def vm_paging_start(vm: VmSystem, adj: int) -> bool:
    """Paging should start, or go on. `adj` pages are counted as free."""
    s = vm.gd.gd_vmstats
    free = s.v_free_count
    return (
        s.v_paging_start > free + s.v_cache_count + adj
        or s.v_free_min > free + adj
        or s.v_free_reserved > free
    )


def vm_paging_target1(vm: VmSystem) -> bool:
    """Paging has not reached its first target yet, for which it works hard."""
    s = vm.gd.gd_vmstats
    free = s.v_free_count
    return s.v_paging_target1 > free + s.v_cache_count or s.v_free_reserved > free


def vm_paging_target1_count(vm: VmSystem) -> int:
    """Pages missing to the first target; negative when it is exceeded."""
    s = vm.gd.gd_vmstats
    return s.v_paging_target1 - s.v_free_count - s.v_cache_count


def vm_paging_target2(vm: VmSystem) -> bool:
    """Paging has not reached its final target yet."""
    s = vm.gd.gd_vmstats
    free = s.v_free_count
    return s.v_paging_target2 > free + s.v_cache_count or s.v_free_reserved > free


def vm_paging_target2_count(vm: VmSystem) -> int:
    """Pages missing to the final target; negative when it is exceeded."""
    s = vm.gd.gd_vmstats
    return s.v_paging_target2 - s.v_free_count - s.v_cache_count


def vm_paging_inactive(vm: VmSystem) -> bool:
    """More pages should be deactivated."""
    return vm_paging_inactive_count(vm) > 0


def vm_paging_inactive_count(vm: VmSystem) -> int:
    """How many pages to deactivate for the inactive target; negative when there are enough."""
    s = vm.gd.gd_vmstats
    return (
        s.v_free_min + s.v_inactive_target - s.v_free_count - s.v_cache_count - s.v_inactive_count
    )
