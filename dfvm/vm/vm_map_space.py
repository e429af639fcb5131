"""Finding room in an address map.

The search is first fit. What keeps it short: four hints that remember how far earlier searches
for the same length came, and, where those don't help, the index's bounds on the holes behind
hundreds of entries at a time.

Source: DragonFly sys/vm/vm_map.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.vm.vm_map_entry import MAP_ENTRY_STACK, VM_MAP_FFCOUNT, VmMapFreehint

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap, VmMapEntry

STEPS: Final = 8  # entries to walk before the index is asked


def vm_map_freehint_find(map: VmMap, start: int, length: int, align: int) -> int:
    """Where a search from `start` may begin instead."""
    for scan in map.freehint:
        if scan.length == length and scan.align == align and scan.low <= start < scan.start:
            return scan.start
    return start


def vm_map_freehint_update(map: VmMap, low: int, start: int, length: int, align: int) -> None:
    """A search from `low` has found nothing below `start`."""
    hints = map.freehint
    for scan in hints:
        if scan.length == length and scan.align == align and low <= scan.start:
            if scan.low <= low:
                scan.start = max(scan.start, start)
                return
            if start >= scan.low:
                scan.low = low
                scan.start = max(scan.start, start)
                return
    hint = VmMapFreehint(low, start, length, align)
    if len(hints) < VM_MAP_FFCOUNT:
        hints.append(hint)
    else:
        hints[map.freehint_newindex] = hint
        map.freehint_newindex = (map.freehint_newindex + 1) % VM_MAP_FFCOUNT


def vm_map_freehint_hole(map: VmMap, start: int, end: int) -> None:
    """[start, end) is free now, and what is next to it is not."""
    for scan in map.freehint:
        fit = max(start, scan.low)
        if fit < scan.start and end - fit >= scan.length:
            scan.start = fit


def _fits(
    map: VmMap, entry: VmMapEntry | None, start: int, length: int, align: int, intrude: bool
) -> int | None:
    """The first aligned address at or above `start` with `length` bytes before whatever follows
    `entry`, if there is one."""
    start = -(-start // align) * align
    behind = map.first if entry is None else entry.next
    if behind is None:
        limit = map.max_addr
    elif behind.eflags & MAP_ENTRY_STACK and not intrude:
        limit = behind.ba.start - behind.avail_ssize
    else:
        limit = behind.ba.start
    return start if start + length <= limit else None


def vm_map_findspace(
    map: VmMap, start: int, length: int, align: int, *, intrude: bool = False
) -> int | None:
    """The lowest address at or above `start`, a multiple of `align`, with `length` bytes free.
    None: there is no room. The growth room of stacks counts as taken unless `intrude`. Exclusive
    map lock; nothing is reserved."""
    low = max(start, map.min_addr)
    # A hole that is only free to intruders is no business of the hints'.
    start = low if intrude else vm_map_freehint_find(map, low, length, align)
    entry = map.index.find(start)
    if entry is not None and start < entry.ba.end:
        start = entry.ba.end
    addr = _fits(map, entry, start, length, align, intrude)
    for _ in range(STEPS):
        if addr is not None:
            break
        entry = map.first if entry is None else entry.next
        if entry is None:
            return None
        addr = _fits(map, entry, entry.ba.end, length, align, intrude)
    if addr is None:
        assert entry is not None
        addr = _search(map, entry, length, align, intrude)
        if addr is None:
            return None
    if not intrude:
        vm_map_freehint_update(map, low, addr, length, align)
    return addr


def _search(map: VmMap, after: VmMapEntry, length: int, align: int, intrude: bool) -> int | None:
    """The first fit behind an entry behind `after`."""
    for entry in map.index.candidates(after, length, map.max_addr):
        addr = _fits(map, entry, entry.ba.end, length, align, intrude)
        if addr is not None:
            return addr
    return None
