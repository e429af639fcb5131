"""Stacks: entries that grow downwards when the page below them is touched.

              addrbos                                      addrbos + max_ssize
                 │                                               │
                 ▼          avail_ssize                          ▼
                 ├──────────────────────────────────┬────────────┤
                 │      left free by findspace      │ the entry  │
                 └──────────────────────────────────┴────────────┘

Source: DragonFly sys/vm/vm_map.c (vm_map_stack, vm_map_growstack). Unlike there, growing moves the
start of the entry where its object has the room (vm_map_entry_allocate_object provides it), so a
stack stays one entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.vm.vm import (
    KERN_FAILURE,
    KERN_INVALID_ADDRESS,
    KERN_NO_SPACE,
    KERN_SUCCESS,
    VM_INHERIT_COPY,
    VM_PROT_NONE,
    VM_SUBSYS_STACK,
)
from dfvm.vm.vm_map_backing import vm_map_backing_adjust
from dfvm.vm.vm_map_clip import vm_map_first_entry, vm_map_lookup_entry
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_GUARD,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_STACK,
    MAP_ENTRY_WIREONFAULT,
    MAP_FUTUREONFAULT,
    MAP_IS_STACK,
    MAP_WIREFUTURE,
    VM_MAPTYPE_NORMAL,
    vm_map_lock,
    vm_map_unlock,
)
from dfvm.vm.vm_map_insert import vm_map_insert
from dfvm.vm.vm_map_madvise import vm_map_mark
from dfvm.vm.vm_map_space import vm_map_findspace
from dfvm.vm.vm_map_wire import vm_map_user_wiring
from dfvm.vm.vm_param import PAGE_SHIFT, PAGE_SIZE, SGROWSIZ, trunc_page
from dfvm.vm.vm_proc import RLIMIT_STACK, RLIMIT_VMEM

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap, VmMapBacking, VmMapEntry


def vm_map_stack(
    map: VmMap,
    addrbos: int,
    max_ssize: int,
    fitit: bool,
    prot: int,
    max: int,
    cow: int,
    init_ssize: int = SGROWSIZ,
) -> tuple[int, int]:
    """Make a stack of at most `max_ssize` bytes whose lowest possible byte is at `addrbos`, or
    with `fitit` at the first place at or above it that has room. What is mapped at first is its
    upper end, `init_ssize` bytes. Returns (KERN_*, lowest possible address). Locks the map."""
    init_ssize = min(max_ssize, init_ssize)
    vm_map_lock(map)
    if fitit:
        place = vm_map_findspace(map, addrbos, max_ssize, PAGE_SIZE)
        if place is None:
            vm_map_unlock(map)
            return KERN_NO_SPACE, addrbos
        addrbos = place
    top = addrbos + max_ssize
    behind = vm_map_first_entry(map, addrbos)
    if behind is not None and behind.ba.start < top:
        vm_map_unlock(map)
        return KERN_NO_SPACE, addrbos
    start = top - init_ssize
    rv = vm_map_insert(
        map,
        None,
        0,
        start,
        top,
        VM_MAPTYPE_NORMAL,
        VM_SUBSYS_STACK,
        prot,
        max,
        cow | MAP_IS_STACK,
    )
    if rv == KERN_SUCCESS:
        entry = vm_map_first_entry(map, start)
        assert entry is not None
        entry.avail_ssize = max_ssize - init_ssize
    vm_map_unlock(map)
    return rv, addrbos


def vm_map_growstack(map: VmMap, addr: int) -> int:
    """Let the stack above `addr` grow down to it, in steps of SGROWSIZ.

    :return: KERN_SUCCESS if `addr` is mapped now, KERN_INVALID_ADDRESS if it is no stack's, or a
        guard's,
        KERN_NO_SPACE if the stack may not become so large, KERN_FAILURE if the map is not the
        current process's: a stack grows only for its own. Locks the map. Blocks only for the lock,
        and under MAP_WIREFUTURE for memory.
    """
    p = map.vm.curproc()
    if p is None or p.p_vmspace.vm_map is not map:
        return KERN_FAILURE
    vmspace = p.p_vmspace
    vm_map_lock(map)
    found, before = vm_map_lookup_entry(map, addr)
    if found:
        assert before is not None
        guard = before.eflags & MAP_ENTRY_GUARD
        vm_map_unlock(map)
        return KERN_INVALID_ADDRESS if guard else KERN_SUCCESS
    entry = map.first if before is None else before.next
    if entry is None or not entry.ba.start - entry.avail_ssize <= addr < entry.ba.start:
        vm_map_unlock(map)
        return KERN_INVALID_ADDRESS

    need = entry.ba.start - trunc_page(addr)
    is_procstack = addr >= vmspace.vm_maxsaddr
    room = min(entry.avail_ssize, entry.ba.start - _floor(map, before))
    if is_procstack:
        room = min(room, trunc_page(p.p_rlimit(RLIMIT_STACK)) - vmspace.vm_ssize)
    # (DragonFly refuses to grow where the limit on all memory leaves less than a whole step.)
    room = min(room, trunc_page(p.p_rlimit(RLIMIT_VMEM)) - map.size)
    if need > room:
        vm_map_unlock(map)
        return KERN_NO_SPACE
    grow = min(-(-need // SGROWSIZ) * SGROWSIZ, room)
    start, old_start = entry.ba.start - grow, entry.ba.start
    rv = _grow(map, entry, start)
    on_fault = entry.eflags & MAP_ENTRY_WIREONFAULT
    if rv == KERN_SUCCESS and is_procstack:
        vmspace.vm_ssize += grow
    vm_map_unlock(map)
    if rv == KERN_SUCCESS and map.flags & MAP_WIREFUTURE and not on_fault:
        if map.flags & MAP_FUTUREONFAULT:
            vm_map_mark(map, start, old_start, 0, MAP_ENTRY_WIREONFAULT)
        else:
            vm_map_user_wiring(map, start, old_start, False)
    return rv


def _floor(map: VmMap, before: VmMapEntry | None) -> int:
    """How far down a stack above `before` may grow. Somebody may have mapped into its growth room
    (at a fixed address): an array on the stack must not reach from one into the other."""
    if before is None:
        return map.min_addr
    if before.protection == VM_PROT_NONE or before.eflags & MAP_ENTRY_STACK:
        return before.ba.end
    return before.ba.end + (map.vm.sysctl.stack_guard_gap << PAGE_SHIFT)


def _grow(map: VmMap, entry: VmMapEntry, start: int) -> int:
    """Make the stack `entry` begin at `start`, which is free and within its growth room."""
    old_start = entry.ba.start
    grow = old_start - start
    avail_ssize = entry.avail_ssize - grow
    if (
        entry.wired_count == 0  # the new pages are not
        and not entry.eflags & MAP_ENTRY_IN_TRANSITION  # somebody relies on its range
        and not entry.eflags & MAP_ENTRY_GUARD  # what is below one is none
        and entry.inheritance == VM_INHERIT_COPY  # a sharer's growth is his own
        and _has_room(entry, grow)
    ):
        map.index.rekey(old_start, start)
        vm_map_backing_adjust(entry, start, entry.ba.end)
        if entry.ba.object is None:
            entry.ba.offset = 0
        map.size += grow
        entry.avail_ssize = avail_ssize
        return KERN_SUCCESS
    rv = vm_map_insert(
        map,
        None,
        0,
        start,
        old_start,
        VM_MAPTYPE_NORMAL,
        VM_SUBSYS_STACK,
        entry.protection,
        entry.max_protection,
        MAP_IS_STACK,
    )
    if rv == KERN_SUCCESS:
        lower = entry.prev
        assert lower is not None
        lower.inheritance = entry.inheritance
        lower.forked = entry.forked
        lower.avail_ssize = avail_ssize
        entry.avail_ssize = 0
    return rv


def _has_room(entry: VmMapEntry, grow: int) -> bool:
    """Every object of the entry's chain has `grow` bytes below what it shows. No page can be
    there: whoever could have put one there would have had to grow by it first."""
    ba: VmMapBacking | None = entry.ba
    while ba is not None:
        if ba.object is not None and ba.offset < grow:
            return False
        ba = ba.backing_ba
    return True
