"""Putting ranges into an address map and taking them out.

Source: DragonFly sys/vm/vm_map.c (vm_map_insert, vm_map_find, vm_map_delete, vm_map_submap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.lwkt_token import lwkt_gettoken, lwkt_reltoken
from dfvm.vm.pmap import pmap_object_init_pt, pmap_remove
from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_INVALID_ARGUMENT,
    KERN_NO_SPACE,
    KERN_SUCCESS,
    VM_INHERIT_COPY,
)
from dfvm.vm.vm_map_backing import (
    vm_map_backing_adjust,
    vm_map_backing_attach,
    vm_map_backing_dispose,
)
from dfvm.vm.vm_map_clip import (
    vm_map_clip_end,
    vm_map_clip_start,
    vm_map_entry_link,
    vm_map_entry_unlink,
    vm_map_first_entry,
    vm_map_lookup_entry,
    vm_map_range_check,
    vm_map_simplify_entry,
    vm_map_transition_wait,
)
from dfvm.vm.vm_map_entry import (
    MAP_COPY_ON_WRITE,
    MAP_DISABLE_COREDUMP,
    MAP_DISABLE_SYNCER,
    MAP_ENTRY_COW,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_KSTACK,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_NOCOREDUMP,
    MAP_ENTRY_NOFAULT,
    MAP_ENTRY_NOSYNC,
    MAP_ENTRY_STACK,
    MAP_ENTRY_USER_WIRED,
    MAP_IS_KSTACK,
    MAP_IS_STACK,
    MAP_NOFAULT,
    MAP_PREFAULT,
    MAP_PREFAULT_PARTIAL,
    VM_MAPTYPE_NORMAL,
    VM_MAPTYPE_SUBMAP,
    VM_MAPTYPE_UNSPECIFIED,
    VmMapBacking,
    VmMapEntry,
    vm_map_lock,
    vm_map_unlock,
)
from dfvm.vm.vm_map_index import VmMapIndex
from dfvm.vm.vm_map_space import vm_map_findspace, vm_map_freehint_hole
from dfvm.vm.vm_object import (
    OBJ_ONEMAPPING,
    vm_object_coalesce,
    vm_object_page_remove,
)
from dfvm.vm.vm_param import PAGE_SHIFT

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap
    from dfvm.vm.vm_object import VmObject


def _entry_flags(cow: int) -> int:
    """MAP_ENTRY_* for the flags that an insert was asked for."""
    eflags = 0
    if cow & MAP_COPY_ON_WRITE:
        eflags |= MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY
    if cow & MAP_NOFAULT:
        eflags |= MAP_ENTRY_NOFAULT
    if cow & MAP_DISABLE_SYNCER:
        eflags |= MAP_ENTRY_NOSYNC
    if cow & MAP_DISABLE_COREDUMP:
        eflags |= MAP_ENTRY_NOCOREDUMP
    if cow & MAP_IS_STACK:
        eflags |= MAP_ENTRY_STACK
    if cow & MAP_IS_KSTACK:
        eflags |= MAP_ENTRY_KSTACK
    return eflags


def vm_map_insert(
    map: VmMap,
    object: VmObject | None,
    offset: int,
    start: int,
    end: int,
    maptype: int,
    id: int,
    prot: int,
    max: int,
    cow: int,
) -> int:
    """Map `object` from byte `offset` at [start, end), which must be free; no object makes
    anonymous memory. The caller's reference on the object becomes the entry's, on success.
    `cow` has MAP_* bits. Exclusive map lock. May block (prefault)."""
    if start < map.min_addr or end > map.max_addr or start >= end:
        return KERN_INVALID_ADDRESS
    found, prev = vm_map_lookup_entry(map, start)
    if found:
        return KERN_NO_SPACE
    behind = map.first if prev is None else prev.next
    if behind is not None and behind.ba.start < end:
        return KERN_NO_SPACE
    eflags = _entry_flags(cow)

    lwkt_gettoken(map.token)
    # Anonymous memory behind anonymous memory of the same kind: let that grow. (A stack grows at
    # its other end, and a private view's object is no longer its own.)
    if (
        object is None
        and prev is not None
        and prev.ba.end == start
        and prev.eflags == eflags
        and prev.maptype == maptype == VM_MAPTYPE_NORMAL
        and prev.id == id
        and prev.wired_count == 0
        and not prev.forked
        and not eflags & (MAP_ENTRY_COW | MAP_ENTRY_STACK)
        and prev.inheritance == VM_INHERIT_COPY
        and prev.protection == prot
        and prev.max_protection == max
        and prev.ba.backing_ba is None
        and vm_object_coalesce(
            prev.ba.object, prev.ba.offset >> PAGE_SHIFT, start - prev.ba.start, end - start
        )
    ):
        map.size += end - start
        vm_map_backing_adjust(prev, prev.ba.start, end)
        vm_map_simplify_entry(map, prev)
        lwkt_reltoken(map.token)
        return KERN_SUCCESS

    ba = VmMapBacking(start, end, map.pmap, object, offset)
    entry = VmMapEntry(ba, eflags, maptype, prot, max, VM_INHERIT_COPY, id)
    if object is not None:
        vm_map_backing_attach(ba)
        if object.ref_count > 1:
            object.flags &= ~OBJ_ONEMAPPING  # its pages may be seen elsewhere, too
    vm_map_entry_link(map, prev, entry)
    map.size += end - start
    if cow & (MAP_PREFAULT | MAP_PREFAULT_PARTIAL) and object is not None:
        pmap_object_init_pt(map.pmap, entry, start, end - start, cow & MAP_PREFAULT_PARTIAL)
    lwkt_reltoken(map.token)
    return KERN_SUCCESS


def vm_map_find(
    map: VmMap,
    object: VmObject | None,
    offset: int,
    addr: int,
    length: int,
    align: int,
    fitit: bool,
    maptype: int,
    id: int,
    prot: int,
    max: int,
    cow: int,
) -> tuple[int, int]:
    """vm_map_insert at `addr`, or with `fitit` at the first place at or above it that has room.
    Returns (KERN_*, address). Locks the map."""
    vm_map_lock(map)
    if fitit:
        place = vm_map_findspace(map, addr, length, align)
        if place is None:
            vm_map_unlock(map)
            return KERN_NO_SPACE, addr
        addr = place
    rv = vm_map_insert(map, object, offset, addr, addr + length, maptype, id, prot, max, cow)
    vm_map_unlock(map)
    return rv, addr


def vm_map_submap(map: VmMap, start: int, end: int, submap: VmMap) -> int:
    """Leave [start, end) to `submap`. The range is one that vm_map_find has just made, of type
    UNSPECIFIED. Submaps are never removed. Locks the map."""
    vm_map_lock(map)
    found, entry = vm_map_lookup_entry(map, start)
    rv = KERN_INVALID_ARGUMENT
    if found and entry is not None and entry.maptype == VM_MAPTYPE_UNSPECIFIED:
        vm_map_clip_start(map, entry, start)
        vm_map_clip_end(map, entry, end)
        if entry.ba.end == end:
            entry.sub_map = submap
            entry.maptype = VM_MAPTYPE_SUBMAP
            rv = KERN_SUCCESS
    vm_map_unlock(map)
    return rv


def vm_map_entry_delete(map: VmMap, entry: VmMapEntry) -> None:
    """Remove an entry whose PTEs are gone already, and give back its objects. Exclusive map
    lock. May block."""
    vm_map_entry_unlink(map, entry)
    map.size -= entry.ba.end - entry.ba.start
    vm_map_backing_dispose(entry.ba)


def _delete_pages(map: VmMap, entry: VmMapEntry) -> None:
    """Remove the PTEs of an entry about to go, and the pages if they are the kernel's own. (With
    others' it depends on who else shows them: vm_map_backing_dispose.)"""
    ba = entry.ba
    obj = ba.object
    if obj is None:
        return  # nothing was ever there (or, in the kernel's maps, whoever mapped it unmaps it)
    pmap_remove(map.pmap, ba.start, ba.end)
    if obj is map.vm.kernel_object:
        first = ba.offset >> PAGE_SHIFT
        vm_object_page_remove(obj, first, first + (ba.end - ba.start >> PAGE_SHIFT), False)


def vm_map_delete(map: VmMap, start: int, end: int) -> int:
    """Remove everything in [start, end), wired or not. Exclusive map lock, given up while waiting
    for entries in transition. May block."""
    lwkt_gettoken(map.token)
    entry = vm_map_first_entry(map, start)
    if entry is not None:
        vm_map_clip_start(map, entry, start)
    while entry is not None and entry.ba.start < end:
        if entry.eflags & MAP_ENTRY_IN_TRANSITION:
            # Others may map something into what is free already: go on from here.
            start = entry.ba.start
            vm_map_transition_wait(map, entry, relock=True)
            entry = vm_map_first_entry(map, start)
            if entry is not None:
                vm_map_clip_start(map, entry, start)
            continue
        vm_map_clip_end(map, entry, end)
        before, behind = entry.prev, entry.next
        if entry.wired_count != 0:
            vm_map_entry_unwire(map, entry)
        _delete_pages(map, entry)
        vm_map_entry_delete(map, entry)
        if behind is None or behind.ba.start >= end or behind.eflags & MAP_ENTRY_IN_TRANSITION:
            _free_hole(map, before, behind)
        entry = behind
    lwkt_reltoken(map.token)
    return KERN_SUCCESS


def vm_map_clear(map: VmMap) -> None:
    """Remove everything, whose PTEs are gone already: what vm_map_delete does entry by entry for
    what goes on. Exclusive map lock. May block."""
    entries = list(map)
    for entry in entries:
        if entry.wired_count or entry.eflags & MAP_ENTRY_IN_TRANSITION:
            vm_map_delete(map, map.min_addr, map.max_addr)
            return
    map.first = map.hint = None
    map.nentries = map.size = 0
    map.index = VmMapIndex()
    vm_map_freehint_hole(map, map.min_addr, map.max_addr)
    for entry in entries:
        entry.prev = entry.next = None
        vm_map_backing_dispose(entry.ba)


def _free_hole(map: VmMap, before: VmMapEntry | None, behind: VmMapEntry | None) -> None:
    """Tell the hints and the index that everything between two neighbours is free."""
    start = map.min_addr if before is None else before.ba.end
    end = map.max_addr if behind is None else behind.ba.start
    vm_map_freehint_hole(map, start, end)
    if before is not None:
        map.index.hole(before, end - start)


def vm_map_entry_unwire(map: VmMap, entry: VmMapEntry) -> None:
    """Undo all wirings of an entry at once. Exclusive map lock."""
    from dfvm.vm.vm_fault import vm_fault_unwire  # vm_fault looks up in maps

    entry.eflags &= ~MAP_ENTRY_USER_WIRED
    entry.wired_count = 0
    vm_fault_unwire(map, entry)


def vm_map_remove(map: VmMap, start: int, end: int) -> int:
    """vm_map_delete for callers without the lock. Locks the map; may block."""
    vm_map_lock(map)
    start, end = vm_map_range_check(map, start, end)
    rv = vm_map_delete(map, start, end)
    vm_map_unlock(map)
    return rv
