"""Changing what a range may be used for: protection and inheritance.

Source: DragonFly sys/vm/vm_map.c (vm_map_protect, vm_map_inherit, vm_map_check_protection).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.vm.pmap import pmap_protect
from dfvm.vm.vm import (
    KERN_INVALID_ARGUMENT,
    KERN_PROTECTION_FAILURE,
    KERN_SUCCESS,
    VM_INHERIT_SHARE,
    VM_INHERIT_ZERO,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_map_clip import (
    vm_map_clip_end,
    vm_map_clip_start,
    vm_map_first_entry,
    vm_map_lookup_entry,
    vm_map_range_check,
    vm_map_simplify_entry,
    vm_map_transition_wait,
)
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_COW,
    MAP_ENTRY_IN_TRANSITION,
    VM_MAPTYPE_SUBMAP,
    vm_map_lock,
    vm_map_lock_read,
    vm_map_unlock,
    vm_map_unlock_read,
)
from dfvm.vm.vm_map_wire import vm_map_rewire, vm_map_rewire_begin

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap


def vm_map_protect(
    map: VmMap,
    start: int,
    end: int,
    new_prot: int,
    set_max: bool,
    clear: int = 0,
    add: int = 0,
) -> int:
    """Set the protection of everything in [start, end), or with `set_max` the maximum, which the
    protection then keeps to; take the bits `clear` from its eflags, and give them `add`, in the
    same go (vm_map_mark). Holes don't matter. Nothing changes unless all of it may be changed.
    Locks the map; blocks for memory only if wired private memory becomes writable, and
    KERN_RESOURCE_SHORTAGE says then that it is not wired any more."""
    vm_map_lock(map)
    start, end = vm_map_range_check(map, start, end)
    entry = first = vm_map_first_entry(map, start)
    while entry is not None and entry.ba.start < end:
        rv = KERN_SUCCESS
        if (
            entry.eflags & MAP_ENTRY_IN_TRANSITION
            and entry.eflags & MAP_ENTRY_COW
            and new_prot & ~entry.protection & VM_PROT_WRITE
        ):
            # Whoever wires it wires what shows through from behind.
            vm_map_transition_wait(map, entry, relock=True)
            entry = first = vm_map_first_entry(map, start)
            continue
        if entry.maptype == VM_MAPTYPE_SUBMAP:
            rv = KERN_INVALID_ARGUMENT
        elif new_prot & ~entry.max_protection:
            rv = KERN_PROTECTION_FAILURE
        if rv != KERN_SUCCESS:
            vm_map_unlock(map)
            return rv
        entry = entry.next

    entry = first
    rewire: list[tuple[int, int]] = []
    if entry is not None and entry.ba.start < end:
        vm_map_clip_start(map, entry, start)
    while entry is not None and entry.ba.start < end:
        vm_map_clip_end(map, entry, end)
        old_prot = entry.protection
        entry.eflags = entry.eflags & ~clear | add
        if set_max:
            entry.max_protection = new_prot
            entry.protection = new_prot & old_prot
        else:
            entry.protection = new_prot
        # PTEs lose what is no longer allowed. What is newly allowed comes with the next fault,
        # which knows whether a page has to be copied first.
        if old_prot & ~entry.protection:
            mask = ~VM_PROT_WRITE if entry.eflags & MAP_ENTRY_COW else ~0
            pmap_protect(map.pmap, entry.ba.start, entry.ba.end, entry.protection & mask)
        if entry.wired_count and entry.eflags & MAP_ENTRY_COW:
            if entry.protection & ~old_prot & VM_PROT_WRITE:
                rewire.append((entry.ba.start, entry.ba.end))
                vm_map_rewire_begin(map, entry)
        vm_map_simplify_entry(map, entry)
        entry = entry.next
    rv = KERN_SUCCESS
    for bounds in rewire:
        rv = vm_map_rewire(map, *bounds) or rv
    vm_map_unlock(map)
    return rv


def vm_map_inherit(map: VmMap, start: int, end: int, new_inheritance: int) -> int:
    """Set what fork does with everything in [start, end). Locks the map."""
    if not VM_INHERIT_SHARE <= new_inheritance <= VM_INHERIT_ZERO:
        return KERN_INVALID_ARGUMENT
    vm_map_lock(map)
    start, end = vm_map_range_check(map, start, end)
    entry = vm_map_first_entry(map, start)
    while entry is not None and entry.ba.start < end:
        if entry.inheritance != new_inheritance:
            vm_map_clip_start(map, entry, start)
            vm_map_clip_end(map, entry, end)
            entry.inheritance = new_inheritance
            vm_map_simplify_entry(map, entry)
        entry = entry.next
    vm_map_unlock(map)
    return KERN_SUCCESS


def vm_map_check_protection(
    map: VmMap, start: int, end: int, protection: int, have_lock: bool
) -> bool:
    """Whether all of [start, end) is mapped and allows `protection`. Locks the map, unless the
    caller has."""
    if not have_lock:
        vm_map_lock_read(map)
    _, entry = vm_map_lookup_entry(map, start)
    while (
        start < end
        and entry is not None
        and entry.ba.start <= start < entry.ba.end
        and not protection & ~entry.protection
    ):
        start = entry.ba.end
        entry = entry.next
    if not have_lock:
        vm_map_unlock_read(map)
    return start >= end
