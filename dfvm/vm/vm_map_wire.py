"""Wiring: keeping a range of a map resident and mapped, for the user (mlock) or for the kernel.

An entry counts its wirings; all of the user's together are one of them, marked by USER_WIRED. The
first wiring makes the objects that will be needed, faults every page in and wires it; the last
one to go unwires the pages. While pages are faulted in the map is not locked, so the entries are
in transition.

Source: DragonFly sys/vm/vm_map.c (vm_map_unwire, vm_map_wire).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_INVALID_ARGUMENT,
    KERN_RESOURCE_SHORTAGE,
    KERN_SUCCESS,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_map_backing import vm_map_entry_allocate_object, vm_map_entry_shadow
from dfvm.vm.vm_map_clip import (
    clip_check_fwd,
    vm_map_clip_end,
    vm_map_clip_range,
    vm_map_clip_start,
    vm_map_first_entry,
    vm_map_lookup_entry,
    vm_map_range_check,
    vm_map_simplify_entry,
    vm_map_transition_wait,
    vm_map_unclip_range,
)
from dfvm.vm.vm_map_entry import (
    MAP_CLIP_NO_HOLES,
    MAP_ENTRY_COW,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_USER_WIRED,
    MAP_ENTRY_WIREONFAULT,
    VM_MAPTYPE_NORMAL,
    vm_map_lock,
    vm_map_unlock,
)
from dfvm.vm.vm_object import OBJT_VNODE

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap, VmMapEntry
    from dfvm.vm.vm_page import VmPage

KM_PAGEABLE: Final = 0x0001  # kernel_wiring: unwire. kmem_alloc3: don't wire in the first place


def vm_map_user_wiring(map: VmMap, start: int, end: int, new_pageable: bool) -> int:
    """mlock, or with `new_pageable` munlock, of [start, end), which must be mapped without holes.
    If a page can't be wired, what this call has wired is unwired again.

    :return: KERN_INVALID_ADDRESS for a hole, KERN_INVALID_ARGUMENT for unwiring what the user has
        not wired, or what the fault says. Locks the map; blocks for memory and I/O.
    """
    vm_map_lock(map)
    start, end = vm_map_range_check(map, start, end)
    entry = vm_map_clip_range(map, start, end, MAP_CLIP_NO_HOLES)
    if entry is None:
        vm_map_unlock(map)
        return KERN_INVALID_ADDRESS
    if new_pageable:
        rv = _user_unwire(map, entry, end)
    else:
        rv = _user_wire(map, entry, start, end)
    vm_map_unclip_range(map, start, end)
    vm_map_unlock(map)
    return rv


def _user_wire(map: VmMap, first: VmMapEntry, start: int, end: int) -> int:
    """Wire the entries from `first` to `end`, which were cut to fit, for the user; all or none.
    Exclusive map lock, which is given up while pages are read."""
    newly: list[tuple[int, int]] = []  # what this call has wired
    entry: VmMapEntry | None = first
    while entry is not None and entry.ba.start < end:
        if not entry.eflags & MAP_ENTRY_USER_WIRED:
            entry.eflags = entry.eflags & ~MAP_ENTRY_WIREONFAULT | MAP_ENTRY_USER_WIRED
            save_start, save_end = entry.ba.start, entry.ba.end
            if entry.wired_count == 0:
                _prepare(map, entry)
                entry.wired_count = 1
                rv, entry = _wire_pages(map, entry, True)
                if rv != KERN_SUCCESS:
                    # Of this entry nothing is wired.
                    _forget(map, save_start, save_end, MAP_ENTRY_USER_WIRED)
                    for start, end in newly:
                        _drop_user_wirings(map, start, end)
                    return rv
            else:
                entry.wired_count += 1
            newly.append((save_start, save_end))
        entry = entry.next
    return KERN_SUCCESS


def _wire_pages(map: VmMap, entry: VmMapEntry, user_wire: bool) -> tuple[int, VmMapEntry]:
    """vm_fault_wire, which gives up the map's lock: others may have cut the entry when it is back.
    Returns its result, and the last piece of what was the entry."""
    from dfvm.vm.vm_fault import vm_fault_wire  # vm_fault looks up in maps

    start, end, timestamp = entry.ba.start, entry.ba.end, map.timestamp
    cut = map.shm_cut.copy() if map.shm_cut_at == timestamp else None
    rv = vm_fault_wire(map, entry, user_wire)
    if cut is not None:  # it is one operation all the same
        map.shm_cut, map.shm_cut_at = cut, map.timestamp
    if map.timestamp != timestamp + 1:  # ours is one; others were here, too
        entry = clip_check_fwd(_entry_at(map, start), end)
    return rv, entry


def _user_unwire(map: VmMap, first: VmMapEntry, end: int) -> int:
    """Take the user's wiring from the entries; nothing changes if one of them has none."""
    entry: VmMapEntry | None = first
    while entry is not None and entry.ba.start < end:
        if not entry.eflags & MAP_ENTRY_USER_WIRED:
            return KERN_INVALID_ARGUMENT
        entry = entry.next
    entry = first
    while entry is not None and entry.ba.start < end:
        _drop_user_wiring(map, entry)
        entry = entry.next
    return KERN_SUCCESS


def _drop_user_wirings(map: VmMap, start: int, end: int) -> None:
    """_drop_user_wiring for all that was one entry when it was wired."""
    entry: VmMapEntry | None = _entry_at(map, start)
    while entry is not None and entry.ba.start < end:
        _drop_user_wiring(map, entry)
        entry = entry.next


def _drop_user_wiring(map: VmMap, entry: VmMapEntry) -> None:
    """The user's wiring of one entry goes."""
    if entry.wired_count == 0:
        panic(f"vm_map_user_wiring: {entry!r} is user wired and has no wirings")
    entry.eflags &= ~MAP_ENTRY_USER_WIRED
    _drop_wiring(map, entry)


def vm_map_wire_on_fault(map: VmMap, start: int, end: int) -> None:
    """What the user has wired of private views in [start, end) stays locked, but is wired again as
    it is faulted in: its pages are about to go with the end of a file, and what will be there when
    the file has grown again is the file's. Locks the map; may block for busy pages."""
    vm_map_lock(map)
    at = start
    while (entry := vm_map_first_entry(map, at)) is not None and entry.ba.start < end:
        if entry.eflags & MAP_ENTRY_IN_TRANSITION:
            vm_map_transition_wait(map, entry, relock=True)
            continue
        at = entry.ba.end
        if entry.eflags & MAP_ENTRY_USER_WIRED and entry.eflags & MAP_ENTRY_COW:
            vm_map_clip_start(map, entry, start)
            vm_map_clip_end(map, entry, end)
            at = entry.ba.end
            _drop_user_wiring(map, entry)
            entry.eflags |= MAP_ENTRY_WIREONFAULT
            vm_map_simplify_entry(map, entry)
    vm_map_unlock(map)


def _drop_wiring(map: VmMap, entry: VmMapEntry) -> None:
    """One wiring less; the last one lets the pages go."""
    from dfvm.vm.vm_fault import vm_fault_unwire

    entry.wired_count -= 1
    if entry.wired_count == 0:
        vm_fault_unwire(map, entry)


def vm_map_kernel_wiring(map: VmMap, start: int, end: int, kmflags: int) -> int:
    """Wire [start, end) for the kernel, or with KM_PAGEABLE in `kmflags` give one such wiring up.
    All or nothing, as vm_map_user_wiring. Locks the map; blocks for memory and I/O."""
    vm_map_lock(map)
    start, end = vm_map_range_check(map, start, end)
    entry = vm_map_clip_range(map, start, end, MAP_CLIP_NO_HOLES)
    if entry is None:
        vm_map_unlock(map)
        return KERN_INVALID_ADDRESS
    if kmflags & KM_PAGEABLE:
        rv = _kernel_unwire(map, entry, end)
    else:
        rv = _kernel_wire(map, entry, end)
    vm_map_unclip_range(map, start, end)
    vm_map_unlock(map)
    return rv


def _kernel_wire(map: VmMap, first: VmMapEntry, end: int) -> int:
    """One more wiring for the entries from `first` to `end`; all or none. Exclusive map lock, which
    is given up while pages are read."""
    # All objects are made, and all counts raised, before the map is unlocked for the first time.
    start = first.ba.start
    entry: VmMapEntry | None = first
    while entry is not None and entry.ba.start < end:
        if entry.wired_count == 0:
            _prepare(map, entry)
        entry.wired_count += 1
        entry = entry.next

    entry = first
    while entry is not None and entry.ba.start < end:
        save_start = entry.ba.start
        if entry.wired_count == 1:
            rv, entry = _wire_pages(map, entry, False)
            if rv != KERN_SUCCESS:
                # Of this entry nothing is wired, of those behind it nothing was; those before it
                # are unwired as ever.
                _kernel_backout(map, start, save_start, end)
                return rv
        entry = entry.next
    return KERN_SUCCESS


def _kernel_backout(map: VmMap, start: int, bad_start: int, end: int) -> None:
    """Undo a _kernel_wire that failed at the entry at bad_start."""
    entry: VmMapEntry | None = _entry_at(map, start)
    while entry is not None and entry.ba.start < end:
        if entry.ba.start < bad_start:
            _drop_wiring(map, entry)
        else:
            # A wiring that was there before is there still.
            entry.wired_count -= 1
        entry = entry.next


def _kernel_unwire(map: VmMap, first: VmMapEntry, end: int) -> int:
    entry: VmMapEntry | None = first
    while entry is not None and entry.ba.start < end:
        if entry.wired_count == 0:
            return KERN_INVALID_ARGUMENT
        entry = entry.next
    entry = first
    while entry is not None and entry.ba.start < end:
        _drop_wiring(map, entry)
        entry = entry.next
    return KERN_SUCCESS


def _prepare(map: VmMap, entry: VmMapEntry) -> None:
    """Make the object that the pages of an entry about to be wired belong in. Later, with the
    map locked shared or not at all, it would be too late."""
    if entry.maptype != VM_MAPTYPE_NORMAL:
        return
    if entry.eflags & MAP_ENTRY_NEEDS_COPY and entry.protection & VM_PROT_WRITE:
        vm_map_entry_shadow(entry)
    elif entry.ba.object is None and not map.system_map:
        vm_map_entry_allocate_object(entry)


def _forget(map: VmMap, start: int, end: int, eflag: int) -> None:
    """Take back the only wiring of what was one entry and has no wired page."""
    entry: VmMapEntry | None = _entry_at(map, start)
    while entry is not None and entry.ba.start < end:
        if entry.wired_count != 1:
            panic(f"vm_map_wire: wired_count of {entry!r} changed unexpectedly")
        entry.eflags &= ~eflag
        entry.wired_count = 0
        entry = entry.next


def _entry_at(map: VmMap, start: int) -> VmMapEntry:
    """The entry in transition that begins at `start`. Others may have cut it meanwhile."""
    _, entry = vm_map_lookup_entry(map, start)
    if entry is None or entry.ba.start != start:
        panic(f"vm_map_wire: no entry begins at {start:#x} any more")
    return entry


def vm_map_wire_copies(entry: VmMapEntry, m: VmPage | None) -> bool:
    """Whether to wire page `m`, which `entry` shows, would put a copy in its place: it is a file's,
    and a private view may be written to."""
    return (
        m is not None
        and m.object is not None
        and m.object.type == OBJT_VNODE
        and entry.eflags & MAP_ENTRY_COW != 0
        and entry.protection & VM_PROT_WRITE != 0
    )


def vm_map_rewire_begin(map: VmMap, entry: VmMapEntry) -> None:
    """Wired private memory becomes writable: let go of the pages that show through from behind, and
    make the object that their copies belong in, before a write could put another page in place of a
    wired one. The entry is in transition until vm_map_rewire, which wires it again. Exclusive map
    lock, from the change of its protection on; may block for busy pages."""
    from dfvm.vm.vm_fault import vm_fault_unwire

    entry.eflags |= MAP_ENTRY_IN_TRANSITION
    vm_fault_unwire(map, entry)
    _prepare(map, entry)


def vm_map_rewire(map: VmMap, start: int, end: int) -> int:
    """Wire what was the entry [start, end) at vm_map_rewire_begin. Exclusive map lock, which is
    given up meanwhile; blocks for memory. What can't be copied is not wired any more, and the
    answer KERN_RESOURCE_SHORTAGE."""
    rv = KERN_SUCCESS
    entry: VmMapEntry | None = _entry_at(map, start)
    while entry is not None and entry.ba.start < end:
        save_start, save_end = entry.ba.start, entry.ba.end
        wired, entry = _wire_pages(map, entry, entry.eflags & MAP_ENTRY_USER_WIRED != 0)
        if wired != KERN_SUCCESS:
            rv = KERN_RESOURCE_SHORTAGE
            scan: VmMapEntry | None = _entry_at(map, save_start)
            while scan is not None and scan.ba.start < save_end:
                scan.wired_count = 0
                scan.eflags &= ~MAP_ENTRY_USER_WIRED
                scan = scan.next
        entry = entry.next
    vm_map_unclip_range(map, start, end)
    return rv
