"""Finding entries, linking them, cutting them at an address and merging them again.

Every operation on a range first makes the range consist of whole entries: clip_start and clip_end
cut the entries at its ends. Afterwards simplify merges neighbours that have become alike. When an
operation must give up the map's lock in the middle (wiring faults pages in), clip_range marks its
entries IN_TRANSITION, and whoever wants one of them sleeps until unclip_range.

Source: DragonFly sys/vm/vm_map.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic
from dfvm.vm.vm_map_backing import (
    vm_map_backing_adjust,
    vm_map_backing_dispose,
    vm_map_backing_replicate,
    vm_map_entry_allocate_object,
)
from dfvm.vm.vm_map_entry import (
    MAP_CLIP_NO_HOLES,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_NEEDS_WAKEUP,
    MAP_ENTRY_PARTITION_MASK,
    VM_MAPTYPE_NORMAL,
    VmMapEntry,
    vm_map_lock,
    vm_map_unlock,
)

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap, VmMapBacking


def vm_map_lookup_entry(map: VmMap, address: int) -> tuple[bool, VmMapEntry | None]:
    """(True, the entry that holds `address`), or (False, the last entry below it, None without
    one). The map is locked."""
    entry = map.hint
    if entry is not None and entry.ba.start <= address < entry.ba.end:
        return True, entry
    entry = map.index.find(address)
    if entry is None or address >= entry.ba.end:
        return False, entry
    map.hint = entry
    return True, entry


def vm_map_first_entry(map: VmMap, address: int) -> VmMapEntry | None:
    """The entry that holds `address`, else the next one above. The map is locked."""
    found, entry = vm_map_lookup_entry(map, address)
    if found or entry is None:
        return entry if found else map.first
    return entry.next


def vm_map_range_check(map: VmMap, start: int, end: int) -> tuple[int, int]:
    """The part of [start, end) that can lie in the map at all."""
    start = max(start, map.min_addr)
    end = min(end, map.max_addr)
    return min(start, end), end


def vm_map_entry_link(map: VmMap, prev: VmMapEntry | None, entry: VmMapEntry) -> None:
    """Put `entry` behind `prev`, at the front for None. Exclusive map lock."""
    if prev is None:
        behind = map.first
        map.first = entry
    else:
        behind = prev.next
        prev.next = entry
    entry.prev = prev
    entry.next = behind
    if behind is None:
        gap = map.max_addr - entry.ba.end
    else:
        behind.prev = entry
        gap = behind.ba.start - entry.ba.end
    map.nentries += 1
    map.index.insert(entry, gap)


def vm_map_entry_unlink(map: VmMap, entry: VmMapEntry) -> None:
    """Take `entry` out of the map. Exclusive map lock."""
    if entry.eflags & MAP_ENTRY_IN_TRANSITION:
        panic(f"vm_map_entry_unlink: {entry!r} is in transition")
    before, behind = entry.prev, entry.next
    if before is None:
        map.first = behind
    else:
        before.next = behind
    if behind is not None:
        behind.prev = before
    entry.prev = entry.next = None
    if map.hint is entry:
        map.hint = None
    map.nentries -= 1
    map.index.remove(entry.ba.start)


def _split(map: VmMap, entry: VmMapEntry, start: int, end: int) -> VmMapEntry:
    """A new entry for [start, end), an end of `entry`, like it in everything."""
    # Without an object now, the halves would get one each later, and could not be merged again.
    # Entries that faults will partition are better off with one for each partition.
    ba = entry.ba
    if (
        ba.object is None
        and not map.system_map
        and (ba.start ^ ba.end) & ~MAP_ENTRY_PARTITION_MASK == 0
    ):
        vm_map_entry_allocate_object(entry)
    # The new half is in the objects' lists before the old one is cut: no mapping of a page is
    # ever without an element that leads to it.
    new = VmMapEntry(
        vm_map_backing_replicate(ba, ba.pmap, start, end, clipped=True),
        entry.eflags,
        entry.maptype,
        entry.protection,
        entry.max_protection,
        entry.inheritance,
        entry.id,
    )
    new.wired_count = entry.wired_count
    new.forked = entry.forked
    new.sub_map = entry.sub_map
    vm_map_shm_cut(map, entry)
    vm_map_shm_cut(map, new)
    return new


def vm_map_shm_cut(map: VmMap, entry: VmMapEntry) -> None:
    """`entry` was cut, or has come to its place: if it shows a System V segment it may be merged
    with a neighbour as long as the exclusive map lock is held."""
    obj = entry.ba.object
    if obj is not None and obj.shm is not None:
        if map.shm_cut_at != map.timestamp:
            map.shm_cut_at = map.timestamp
            map.shm_cut.clear()
        map.shm_cut.add(entry)


def _stays_cut(map: VmMap, lower: VmMapEntry, upper: VmMapEntry) -> bool:
    """What shows a System V segment is counted, and stays cut where it was cut by an earlier
    operation: programs see how often a segment is attached. An operation may only move the border
    between two."""
    obj = lower.ba.object
    if obj is None or obj.shm is None:
        return False
    cut = map.shm_cut
    return map.shm_cut_at != map.timestamp or not (lower in cut or upper in cut)


def vm_map_clip_start(map: VmMap, entry: VmMapEntry, start: int) -> None:
    """Cut `entry` so that it begins at or above `start`; what is below becomes an entry before
    it. A stack grows at its lower part. Exclusive map lock."""
    old = entry.ba.start
    if start <= old:
        return
    new = _split(map, entry, old, start)
    new.avail_ssize = entry.avail_ssize
    entry.avail_ssize = 0
    vm_map_backing_adjust(entry, start, entry.ba.end)
    map.index.rekey(old, start)
    vm_map_entry_link(map, entry.prev, new)


def vm_map_clip_end(map: VmMap, entry: VmMapEntry, end: int) -> None:
    """Cut `entry` so that it ends at or below `end`; what is above becomes an entry behind it.
    Exclusive map lock."""
    if end >= entry.ba.end:
        return
    new = _split(map, entry, end, entry.ba.end)
    vm_map_backing_adjust(entry, entry.ba.start, end)
    vm_map_entry_link(map, entry, new)


def _same_chain(lower: VmMapBacking, upper: VmMapBacking) -> bool:
    """Two chains show the same objects, `upper` where `lower` leaves off."""
    size = lower.end - lower.start
    a: VmMapBacking | None = lower
    b: VmMapBacking | None = upper
    while a is not None and b is not None:
        if a.object is not b.object:
            return False
        if a.object is not None and a.offset + size != b.offset:
            return False
        a, b = a.backing_ba, b.backing_ba
    return a is b


def _mergeable(map: VmMap, lower: VmMapEntry, upper: VmMapEntry) -> bool:
    """Whether two neighbours differ in nothing but their range."""
    return (
        lower.ba.end == upper.ba.start
        and lower.eflags == upper.eflags
        and lower.protection == upper.protection
        and lower.max_protection == upper.max_protection
        and lower.inheritance == upper.inheritance
        and lower.forked == upper.forked
        and lower.id == upper.id
        and lower.wired_count == upper.wired_count
        and lower.maptype == upper.maptype
        and upper.avail_ssize == 0
        and _same_chain(lower.ba, upper.ba)
        and not _stays_cut(map, lower, upper)
    )


def vm_map_simplify_entry(map: VmMap, entry: VmMapEntry) -> None:
    """Merge `entry` with those neighbours it could have been one with all along. `entry` stays,
    possibly larger. Exclusive map lock."""
    if entry.eflags & MAP_ENTRY_IN_TRANSITION or entry.maptype != VM_MAPTYPE_NORMAL:
        return

    # The neighbour's elements leave their objects only after ours have grown over its range.
    before = entry.prev
    if before is not None and _mergeable(map, before, entry):
        start = before.ba.start
        vm_map_entry_unlink(map, before)
        map.index.rekey(entry.ba.start, start)
        vm_map_backing_adjust(entry, start, entry.ba.end)
        if entry.ba.object is None:
            entry.ba.offset = 0
        entry.avail_ssize = before.avail_ssize
        vm_map_backing_dispose(before.ba, merged=True)
        map.shm_cut.discard(entry)
    behind = entry.next
    if behind is not None and _mergeable(map, entry, behind):
        end = behind.ba.end
        vm_map_entry_unlink(map, behind)
        vm_map_backing_adjust(entry, entry.ba.start, end)
        # Its hole is ours now, and it may have been in another list of the index.
        upper = map.max_addr if entry.next is None else entry.next.ba.start
        map.index.hole(entry, upper - end)
        vm_map_backing_dispose(behind.ba, merged=True)


def vm_map_transition_wait(map: VmMap, entry: VmMapEntry, *, relock: bool) -> None:
    """Sleep until `entry` may no longer be in transition. The exclusive map lock is given up
    meanwhile; what the caller knew about entries is void."""
    entry.eflags |= MAP_ENTRY_NEEDS_WAKEUP
    vm_map_unlock(map)
    map.vm.sched.tsleep(map, 0, "vment", 0)
    if relock:
        vm_map_lock(map)


def vm_map_clip_range(map: VmMap, start: int, end: int, flags: int) -> VmMapEntry | None:
    """Make [start, end) consist of whole entries, mark them IN_TRANSITION, and return the first.
    None when nothing is mapped at `start`, or with MAP_CLIP_NO_HOLES at any address of the range.
    Exclusive map lock, which is given up while waiting for others' transitions."""
    while True:
        found, entry = vm_map_lookup_entry(map, start)
        if not found:
            return None
        assert entry is not None
        if not entry.eflags & MAP_ENTRY_IN_TRANSITION:
            break
        vm_map_transition_wait(map, entry, relock=True)
    vm_map_clip_start(map, entry, start)
    vm_map_clip_end(map, entry, end)
    entry.eflags |= MAP_ENTRY_IN_TRANSITION

    # From here on nobody but us cuts or removes what we have marked, so after a sleep only the
    # entries still ahead need another look.
    while True:
        behind = entry.next
        if behind is None or behind.ba.start >= end:
            break
        if flags & MAP_CLIP_NO_HOLES and behind.ba.start > entry.ba.end:
            break
        if behind.eflags & MAP_ENTRY_IN_TRANSITION:
            save_end = entry.ba.end
            vm_map_transition_wait(map, behind, relock=True)
            entry = clip_check_fwd(entry, save_end)
            continue
        vm_map_clip_end(map, behind, end)
        behind.eflags |= MAP_ENTRY_IN_TRANSITION
        entry = behind
    if flags & MAP_CLIP_NO_HOLES and entry.ba.end != end:
        vm_map_unclip_range(map, start, entry.ba.end)
        return None
    return vm_map_lookup_entry(map, start)[1]


def clip_check_fwd(entry: VmMapEntry, save_end: int) -> VmMapEntry:
    """Others may cut (never remove) an entry in transition while its holder sleeps: the last
    piece of what was `entry` and ended at `save_end`."""
    while entry.ba.end != save_end:
        if entry.next is None:
            panic(f"bad entry clip: nothing ends at {save_end:#x}")
        entry = entry.next
    return entry


def vm_map_unclip_range(map: VmMap, start: int, end: int) -> None:
    """Undo vm_map_clip_range for the same range: clear the marks, wake whoever waits, and merge.
    Exclusive map lock."""
    found, entry = vm_map_lookup_entry(map, start)
    if not found or entry is None or entry.ba.start != start:
        panic("unclip_range: illegal base entry")
    wanted = False
    scan: VmMapEntry | None = entry
    while scan is not None and scan.ba.start < end:
        if not scan.eflags & MAP_ENTRY_IN_TRANSITION or scan.ba.end > end:
            panic(f"unclip_range: {scan!r} is not in transition, or was not clipped")
        wanted |= scan.eflags & MAP_ENTRY_NEEDS_WAKEUP != 0
        scan.eflags &= ~(MAP_ENTRY_IN_TRANSITION | MAP_ENTRY_NEEDS_WAKEUP)
        scan = scan.next
    if wanted:
        map.vm.sched.wakeup(map)
    scan = entry
    while scan is not None and scan.ba.start < end:
        vm_map_simplify_entry(map, scan)
        scan = scan.next
