"""Advice on a range (madvise), and writing it back (msync).

Source: DragonFly sys/vm/vm_map.c (vm_map_madvise, vm_map_clean), sys/sys/mman.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.lwkt_token import lwkt_gettoken, lwkt_reltoken
from dfvm.vm.pmap import pmap_object_init_pt, pmap_remove
from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_INVALID_ARGUMENT,
    KERN_RESOURCE_SHORTAGE,
    KERN_SUCCESS,
)
from dfvm.vm.vm_map_clip import (
    vm_map_clip_end,
    vm_map_clip_start,
    vm_map_first_entry,
    vm_map_lookup_entry,
    vm_map_range_check,
    vm_map_simplify_entry,
)
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_BEHAV_MASK,
    MAP_ENTRY_BEHAV_NORMAL,
    MAP_ENTRY_BEHAV_RANDOM,
    MAP_ENTRY_BEHAV_SEQUENTIAL,
    MAP_ENTRY_GUARD,
    MAP_ENTRY_NOCOREDUMP,
    MAP_ENTRY_NOSYNC,
    MAP_PREFAULT_MADVISE,
    VM_MAPTYPE_NORMAL,
    VM_MAPTYPE_SUBMAP,
    vm_map_lock,
    vm_map_lock_read,
    vm_map_unlock,
    vm_map_unlock_read,
)
from dfvm.vm.vm_object import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_WILLNEED,
    OBJ_NOMSYNC,
    OBJPC_INVAL,
    OBJPC_SYNC,
    OBJT_VNODE,
    vm_object_deallocate,
    vm_object_drop,
    vm_object_hold,
    vm_object_madvise,
    vm_object_page_clean,
    vm_object_page_remove,
    vm_object_reference_locked,
)
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SHIFT

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap, VmMapBacking, VmMapEntry
    from dfvm.vm.vm_object import VmObject

# Advice (DragonFly's numbers). WILLNEED, DONTNEED and FREE are for the object.
MADV_NORMAL: Final = 0
MADV_RANDOM: Final = 1
MADV_SEQUENTIAL: Final = 2
MADV_NOSYNC: Final = 6
MADV_AUTOSYNC: Final = 7
MADV_NOCORE: Final = 8
MADV_CORE: Final = 9
MADV_INVAL: Final = 10

# Advice that is kept in the entry: bits that go, bits that come.
ENTRY_ADVICE: Final = {
    MADV_NORMAL: (MAP_ENTRY_BEHAV_MASK, MAP_ENTRY_BEHAV_NORMAL),
    MADV_RANDOM: (MAP_ENTRY_BEHAV_MASK, MAP_ENTRY_BEHAV_RANDOM),
    MADV_SEQUENTIAL: (MAP_ENTRY_BEHAV_MASK, MAP_ENTRY_BEHAV_SEQUENTIAL),
    MADV_NOSYNC: (0, MAP_ENTRY_NOSYNC),
    MADV_AUTOSYNC: (MAP_ENTRY_NOSYNC, 0),
    MADV_NOCORE: (0, MAP_ENTRY_NOCOREDUMP),
    MADV_CORE: (MAP_ENTRY_NOCOREDUMP, 0),
}


def vm_map_madvise(map: VmMap, start: int, end: int, behav: int) -> int:
    """Take advice on everything in [start, end); holes don't matter. Locks the map: exclusively
    for advice that entries keep, shared for what is done to objects and page tables."""
    advice = ENTRY_ADVICE.get(behav)
    if advice is not None:
        vm_map_mark(map, start, end, *advice)
    elif behav in (MADV_WILLNEED, MADV_DONTNEED, MADV_FREE, MADV_INVAL):
        _madvise_objects(map, start, end, behav)
    else:
        return KERN_INVALID_ARGUMENT
    return KERN_SUCCESS


def vm_map_mark(map: VmMap, start: int, end: int, clear: int, add: int) -> None:
    """Take bits from, and give others to, the eflags of everything in [start, end): advice, or
    marks of the ABI's. Holes don't matter. Locks the map."""
    vm_map_lock(map)
    start, end = vm_map_range_check(map, start, end)
    entry = vm_map_first_entry(map, start)
    while entry is not None and entry.ba.start < end:
        eflags = entry.eflags & ~clear | add
        if eflags != entry.eflags and entry.maptype != VM_MAPTYPE_SUBMAP:
            vm_map_clip_start(map, entry, start)
            vm_map_clip_end(map, entry, end)
            entry.eflags = eflags
            vm_map_simplify_entry(map, entry)
        entry = entry.next
    vm_map_unlock(map)


def _madvise_objects(map: VmMap, start: int, end: int, behav: int) -> None:
    """The front object only: what shows through from behind others use, too."""
    vm_map_lock_read(map)
    start, end = vm_map_range_check(map, start, end)
    entry = vm_map_first_entry(map, start)
    while entry is not None and entry.ba.start < end:
        ba = entry.ba
        first, last = max(start, ba.start), min(end, ba.end)
        if entry.maptype == VM_MAPTYPE_NORMAL and first < last:
            if behav == MADV_INVAL:
                # A wired page keeps its mapping: unwiring finds the page by it.
                if entry.wired_count == 0:
                    pmap_remove(map.pmap, first, last)
            elif behav == MADV_FREE and ba.backing_ba is not None:
                pass  # in place of the pages there would be older ones, and not zeros
            elif ba.object is not None:
                pindex = ba.offset + first - ba.start >> PAGE_SHIFT
                vm_object_madvise(ba.object, pindex, last - first >> PAGE_SHIFT, behav)
                if behav == MADV_WILLNEED and not entry.eflags & MAP_ENTRY_GUARD:
                    pmap_object_init_pt(map.pmap, entry, first, last - first, MAP_PREFAULT_MADVISE)
        entry = entry.next
    vm_map_unlock_read(map)


def vm_map_clean(map: VmMap, start: int, end: int, syncio: bool, invalidate: bool) -> int:
    """Write the dirty pages of the files shown in [start, end) back, waiting for it with
    `syncio`, and with `invalidate` take them out of memory afterwards. Anonymous memory has
    nowhere to go and stays.

    :return: KERN_INVALID_ADDRESS if part of the range is not mapped, KERN_INVALID_ARGUMENT for a
        submap, KERN_RESOURCE_SHORTAGE if wired memory should be invalidated. Nothing has been
        done then. Locks the map shared; blocks for I/O.
    """
    vm_map_lock_read(map)
    start, end = vm_map_range_check(map, start, end)
    rv, entry = _clean_check(map, start, end, invalidate)
    if rv == KERN_SUCCESS:
        lwkt_gettoken(map.token)
        if invalidate:
            pmap_remove(map.pmap, start, end)
        while entry is not None and entry.ba.start < end:
            if entry.maptype == VM_MAPTYPE_NORMAL:
                first, last = max(start, entry.ba.start), min(end, entry.ba.end)
                obj, offset = _vnode_object(entry.ba, first)
                if obj is not None:
                    _clean_object(obj, offset, last - first, syncio, invalidate)
            entry = entry.next
        lwkt_reltoken(map.token)
    vm_map_unlock_read(map)
    return rv


def _clean_check(
    map: VmMap, start: int, end: int, invalidate: bool
) -> tuple[int, VmMapEntry | None]:
    """Whether all of the range is mapped and may be cleaned: KERN_*, and its first entry. The map
    is locked."""
    found, first = vm_map_lookup_entry(map, start)
    if not found:
        return KERN_INVALID_ADDRESS, None
    entry = first
    while start < end:
        if entry is None or entry.ba.start > start:
            return KERN_INVALID_ADDRESS, None
        if entry.maptype == VM_MAPTYPE_SUBMAP:
            return KERN_INVALID_ARGUMENT, None
        if invalidate and entry.wired_count != 0:
            return KERN_RESOURCE_SHORTAGE, None
        start = entry.ba.end
        entry = entry.next
    return KERN_SUCCESS, first


def _vnode_object(ba: VmMapBacking, address: int) -> tuple[VmObject | None, int]:
    """The vnode object at the end of the chain, if there is one, and where `address` is in it."""
    while ba.backing_ba is not None:
        ba = ba.backing_ba
    obj = ba.object
    if obj is None or obj.type != OBJT_VNODE or obj.flags & OBJ_NOMSYNC:
        return None, 0
    return obj, ba.offset + address - ba.start


def _clean_object(obj: VmObject, offset: int, size: int, syncio: bool, invalidate: bool) -> None:
    first = offset >> PAGE_SHIFT
    last = min(offset + size + PAGE_MASK >> PAGE_SHIFT, obj.size)
    if first >= last:
        return
    flags = (OBJPC_SYNC if syncio or invalidate else 0) | (OBJPC_INVAL if invalidate else 0)
    vm_object_hold(obj)
    vm_object_reference_locked(obj)
    vm_object_page_clean(obj, first, last, flags)
    if invalidate:
        vm_object_page_remove(obj, first, last, True)
    vm_object_drop(obj)
    vm_object_deallocate(obj)
