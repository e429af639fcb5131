"""Is an address map as it should be? For Machine.check() and the tests.

Everything that vm_map_entry.py says of its fields is verified here, as far as a map can be judged
without its page tables. The answer is a list of sentences, empty if all is well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.vm.vm import VM_INHERIT_ZERO
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_COW,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_NEEDS_WAKEUP,
    MAP_ENTRY_STACK,
    MAP_ENTRY_USER_WIRED,
    MAP_ENTRY_WIREONFAULT,
    VM_MAP_FFCOUNT,
    VM_MAPTYPE_NORMAL,
    VM_MAPTYPE_SUBMAP,
    VM_MAPTYPE_UNSPECIFIED,
)
from dfvm.vm.vm_object import OBJ_DEAD, OBJT_VNODE
from dfvm.vm.vm_param import PAGE_MASK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.vm.vm_map_entry import VmMap, VmMapBacking, VmMapEntry, VmMapFreehint


def vm_map_check(map: VmMap) -> list[str]:
    """What is wrong with `map`. No thread may be in the middle of an operation on it."""
    return [
        *_check_order(map),
        *_check_index(map),
        *_check_hints(map),
        *(f"{entry!r}: {bad}" for entry in map for bad in _check_entry(map, entry)),
    ]


def _check_order(map: VmMap) -> Iterator[str]:
    end, size, n = map.min_addr, 0, 0
    prev: VmMapEntry | None = None
    for entry in map:
        ba = entry.ba
        if ba.start < end:
            yield f"{entry!r} begins below {end:#x}"
        if ba.start >= ba.end:
            yield f"{entry!r} is empty"
        if entry.prev is not prev:
            yield f"{entry!r} has {entry.prev!r} before it instead of {prev!r}"
        end = ba.end
        size += ba.end - ba.start
        n += 1
        prev = entry
    if end > map.max_addr:
        yield f"{prev!r} ends beyond {map.max_addr:#x}"
    if size != map.size:
        yield f"{map!r}: size is {map.size:#x}, the entries' sum {size:#x}"
    if n != map.nentries:
        yield f"{map!r}: nentries is {map.nentries}, there are {n}"
    if map.hint is not None and all(entry is not map.hint for entry in map):
        yield f"{map!r}: the hint is not in the map: {map.hint!r}"


def _check_index(map: VmMap) -> Iterator[str]:
    index = map.index
    if [id(e) for e in index] != [id(e) for e in map]:
        yield f"{map!r}: index and links disagree"
        return
    if index.heads[0] != 0 or index.heads != sorted(set(index.heads)):
        yield f"{map!r}: index heads are not ascending from 0"
    for i, (starts, entries) in enumerate(zip(index.starts, index.entries, strict=True)):
        if starts != [e.ba.start for e in entries]:
            yield f"{map!r}: index list {i} has wrong starts"
        if not starts and len(index.heads) > 1:
            yield f"{map!r}: index list {i} is empty"
        if starts and starts[0] < index.heads[i]:
            yield f"{map!r}: index list {i} begins below its head"
        if starts and i + 1 < len(index.heads) and starts[-1] >= index.heads[i + 1]:
            yield f"{map!r}: index list {i} ends at or above the next head"
        largest = max((_gap(map, e) for e in entries), default=0)
        if largest > index.gaps[i]:
            yield f"{map!r}: index list {i} has a hole of {largest:#x}, above its bound"


def _gap(map: VmMap, entry: VmMapEntry) -> int:
    return (map.max_addr if entry.next is None else entry.next.ba.start) - entry.ba.end


def _check_hints(map: VmMap) -> Iterator[str]:
    if len(map.freehint) > VM_MAP_FFCOUNT:
        yield f"{map!r}: {len(map.freehint)} free hints"
    for hint in map.freehint:
        hole = _hole_below(map, hint)
        if hole is not None:
            yield (
                f"{map!r}: free hint says nothing of {hint.length:#x} bytes fits in "
                f"{hint.low:#x}-{hint.start:#x}, but {hole:#x} does"
            )


def _hole_below(map: VmMap, hint: VmMapFreehint) -> int | None:
    """A place that would fit and lies where the hint says there is none."""
    start = map.min_addr
    entry = map.first
    while True:
        if entry is None:
            end = map.max_addr
        else:
            end = entry.ba.start
            if entry.eflags & MAP_ENTRY_STACK:
                end -= entry.avail_ssize
        place = -(-max(start, hint.low) // hint.align) * hint.align
        if place >= hint.start:
            return None
        if place + hint.length <= end:
            return place
        if entry is None:
            return None
        start = entry.ba.end
        entry = entry.next


def _check_entry(map: VmMap, entry: VmMapEntry) -> Iterator[str]:
    eflags = entry.eflags
    if (entry.ba.start | entry.ba.end) & PAGE_MASK:
        yield "is not page aligned"
    if entry.protection & ~entry.max_protection:
        yield f"protection {entry.protection} exceeds {entry.max_protection}"
    if not 0 <= entry.inheritance <= VM_INHERIT_ZERO:
        yield f"inheritance {entry.inheritance}"
    if eflags & (MAP_ENTRY_IN_TRANSITION | MAP_ENTRY_NEEDS_WAKEUP):
        yield "is in transition"
    if eflags & MAP_ENTRY_NEEDS_COPY and (not eflags & MAP_ENTRY_COW or entry.ba.object is None):
        yield "needs a copy of nothing, or is not COW"
    if entry.wired_count < (1 if eflags & MAP_ENTRY_USER_WIRED else 0):
        yield f"wired_count {entry.wired_count}"
    if eflags & MAP_ENTRY_USER_WIRED and eflags & MAP_ENTRY_WIREONFAULT:
        yield "is wired, and to be wired on fault"
    if (entry.avail_ssize and not eflags & MAP_ENTRY_STACK) or entry.avail_ssize < 0:
        yield f"avail_ssize {entry.avail_ssize:#x}"
    if entry.avail_ssize & PAGE_MASK:
        yield f"avail_ssize {entry.avail_ssize:#x} is not page aligned"
    if (entry.sub_map is not None) != (entry.maptype == VM_MAPTYPE_SUBMAP):
        yield "submap and type disagree"
    if entry.maptype == VM_MAPTYPE_NORMAL:
        yield from _check_chain(map, entry)
    elif entry.maptype in (VM_MAPTYPE_SUBMAP, VM_MAPTYPE_UNSPECIFIED):
        if entry.ba.object is not None or entry.ba.backing_ba is not None:
            yield "has an object and no memory"
    else:
        yield f"maptype {entry.maptype}"


def _check_chain(map: VmMap, entry: VmMapEntry) -> Iterator[str]:
    ba: VmMapBacking | None = entry.ba
    depth = 0
    count = entry.ba.backing_count
    while ba is not None:
        where = f"element {depth}"
        if (ba.start, ba.end) != (entry.ba.start, entry.ba.end):
            yield f"{where} has another range"
        if ba.pmap is not map.pmap:
            yield f"{where} has another map's pmap"
        if ba.backing_count != count - depth:
            yield f"{where} has backing_count {ba.backing_count}, not {count - depth}"
        obj = ba.object
        if obj is None:
            if depth or ba.backing_ba is not None:
                yield f"{where} has no object"
        else:
            if ba not in obj.backing_list:
                yield f"{where} is not in the backing_list of {obj!r}"
            if obj.flags & OBJ_DEAD:
                yield f"{where} shows {obj!r}, which is dead"
            if obj.ref_count < len(obj.backing_list):
                yield f"{obj!r} has fewer references than elements that show it"
            if ba.offset < 0 or ba.offset & PAGE_MASK:
                yield f"{where} has offset {ba.offset:#x}"
            if obj.type == OBJT_VNODE and ba.backing_ba is not None:
                yield f"{where} is a file in front of something"
        depth += 1
        ba = ba.backing_ba
    if depth != count + 1:
        yield f"has {depth} elements, not {count + 1}"
