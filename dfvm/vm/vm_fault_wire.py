"""Faults that nobody had: pages wired in advance and let go again, copied for a child because the
parent's are wired, or pulled to the front of a chain that has become long.

The maps call these functions with their entries in the right state and locked as each says.

Source: DragonFly sys/vm/vm_fault.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.machine.pte import PG_FRAME
from dfvm.vm.pmap import pmap_enter, pmap_pte, pmap_ptes, pmap_ready, pmap_remove, pmap_unwire
from dfvm.vm.vm import (
    KERN_SUCCESS,
    KERN_TRY_AGAIN,
    VM_PROT_NONE,
    VM_PROT_OVERRIDE_WRITE,
    VM_PROT_READ,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_fault_object import (
    VM_FAULT_CHANGE_WIRING,
    VM_FAULT_NORMAL,
    VM_FAULT_USER_WIRE,
    FaultState,
    unlock_things,
    vm_fault_object,
)
from dfvm.vm.vm_map_backing import vm_map_entry_allocate_object
from dfvm.vm.vm_map_clip import vm_map_lookup_entry
from dfvm.vm.vm_map_entry import MAP_ENTRY_KSTACK, vm_map_lock, vm_map_unlock
from dfvm.vm.vm_object import (
    OBJ_MIGHTBEDIRTY,
    OBJ_WRITEABLE,
    OBJT_VNODE,
    vm_object_drop,
    vm_object_hold,
    vm_object_page_remove,
)
from dfvm.vm.vm_page import (
    PG_FICTITIOUS,
    PG_REFERENCED,
    VM_ALLOC_NORMAL,
    VM_PAGE_BITS_ALL,
    vm_page_activate,
    vm_page_alloc,
    vm_page_busy_wait,
    vm_page_free,
    vm_page_protect,
    vm_page_unwire,
    vm_page_wakeup,
    vm_wait,
)
from dfvm.vm.vm_param import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMap, VmMapBacking, VmMapEntry
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage

_COLLAPSE_PROT: Final = VM_PROT_READ | VM_PROT_WRITE | VM_PROT_OVERRIDE_WRITE


def vm_fault_wire(map: VmMap, entry: VmMapEntry, user_wire: bool) -> int:
    """Fault in, map and wire every page of `entry`, whose wired_count is raised already and which
    is in transition. On failure none of them stays wired.

    :return: KERN_SUCCESS, or what vm_fault answered for the page that failed.

    The map is locked exclusively; it is unlocked meanwhile. May block. The entry may have been cut
    when this returns.
    """
    from dfvm.vm.vm_fault import vm_fault

    if user_wire:
        wire_prot, flags = VM_PROT_READ, VM_FAULT_USER_WIRE
    else:
        wire_prot, flags = VM_PROT_READ | VM_PROT_WRITE, VM_FAULT_CHANGE_WIRING
        if not entry.protection & VM_PROT_WRITE:
            wire_prot = VM_PROT_READ
    start, end = entry.ba.start, entry.ba.end
    if entry.eflags & MAP_ENTRY_KSTACK:
        start += PAGE_SIZE
    vm_map_unlock(map)
    rv = KERN_SUCCESS
    for va in range(start, end, PAGE_SIZE):
        rv = vm_fault(map, va, wire_prot, flags)
        if rv != KERN_SUCCESS:
            break
    vm_map_lock(map)
    if rv != KERN_SUCCESS:
        _unwire_range(map, start, va)
        # Others' faults may have mapped what comes next as part of a wired entry.
        for beyond, _ in pmap_ptes(map.pmap, va, end):
            pmap_unwire(map.pmap, beyond)
    return rv


def vm_fault_unwire(map: VmMap, entry: VmMapEntry) -> None:
    """Let go of every page of `entry`, which was wired. The map is locked exclusively. May block
    for busy pages."""
    start, end = entry.ba.start, entry.ba.end
    if entry.eflags & MAP_ENTRY_KSTACK:
        start += PAGE_SIZE
    _unwire_range(map, start, end)


def _unwire_range(map: VmMap, start: int, end: int) -> None:
    """Let go of the pages of [start, end), which are all wired and in entries that others may cut
    but not remove."""
    for va in range(start, end, PAGE_SIZE):
        m = pmap_unwire(map.pmap, va)
        if m is None:
            # Its mapping was taken away (by mprotect, or with the contents as a file was
            # truncated), but not the wiring.
            found, entry = vm_map_lookup_entry(map, va)
            m = _wired_page(entry.ba, va) if found and entry is not None else None
        _unwire_page(map.vm, m)


def _unwire_page(vm: VmSystem, m: VmPage | None) -> None:
    """One wiring of `m` less, if it is a page of RAM. May block while somebody has it busy, or
    writes it: it may have to be freed."""
    if m is not None and not m.flags & PG_FICTITIOUS:
        vm_page_busy_wait(vm, m, True, "vmwrpg")
        vm_page_unwire(vm, m, True)
        object = m.object
        if (
            not m.wire_count
            and object is not None
            and (not m.valid or (object.type == OBJT_VNODE and m.pindex >= object.size))
        ):
            # A file was truncated; only the wiring has kept the page, or the private copy of it.
            vm_object_hold(object)
            vm_page_protect(vm, m, VM_PROT_NONE)
            vm_page_free(vm, m)
            vm_object_drop(object)
        else:
            vm_page_wakeup(vm, m)


def _wired_page(ba: VmMapBacking | None, va: int) -> VmPage | None:
    """The first page down the chain at `va`, if it is wired."""
    while ba is not None:
        m = _page_at(ba, va)
        if m is not None:
            return m if m.wire_count else None
        ba = ba.backing_ba
    return None


def _page_at(ba: VmMapBacking, va: int) -> VmPage | None:
    """The resident page of this element of a chain at `va`."""
    object = ba.object
    if object is None:
        return None
    return object.rb_memq.get(va - ba.start + ba.offset >> PAGE_SHIFT)


def vm_fault_copy_entry(
    dst_map: VmMap, src_map: VmMap, dst_entry: VmMapEntry, src_entry: VmMapEntry
) -> bool:
    """Give the child's `dst_entry`, which has no object yet, one of its own with a copy of every
    page of the parent's wired `src_entry`, and map them: wired pages can't be write-protected for
    a copy later. Pages of a file, which a private view shows that can't be written to, need no
    copy: the child shows the file, too. Both maps are locked exclusively. May block for memory.
    False: there is not enough, and the process is being killed for it; `dst_entry` has a part of
    the pages."""
    vm = dst_map.vm
    vm_map_entry_allocate_object(dst_entry)
    ba = dst_entry.ba
    object = ba.object
    assert object is not None
    vm_object_hold(object)
    for va in range(ba.start, ba.end, PAGE_SIZE):
        src_m, m = _copy_target(vm, src_entry, va, object, va - ba.start + ba.offset >> PAGE_SHIFT)
        if src_m is None:
            vm_object_drop(object)
            return False
        if m is None:
            continue
        vm.ram.copy(m.phys_addr, src_m.phys_addr)
        m.valid = m.dirty = VM_PAGE_BITS_ALL
        object.flags |= OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
        if dst_entry.protection & VM_PROT_READ and pmap_ready(dst_map.pmap, va):
            pmap_enter(dst_map.pmap, va, m, dst_entry.protection, False, dst_entry)
        vm_page_activate(vm, m)
        vm_page_wakeup(vm, m)
    _forget_behind_end(object, ba, src_entry)
    vm_object_drop(object)
    return True


def _forget_behind_end(object: VmObject, ba: VmMapBacking, src_entry: VmMapEntry) -> None:
    """A file behind the private pages that were copied to `object` may have been truncated while we
    waited for memory. Whoever did that has found the pages of the parent, and not these, as the
    child's space is nobody's yet: they go, too. The object is held; does not block, as nobody else
    knows of its pages."""
    tail = src_entry.ba
    while tail.backing_ba is not None:
        tail = tail.backing_ba
    file = tail.object
    if file is not None and file.type == OBJT_VNODE:
        first, count = ba.offset >> PAGE_SHIFT, ba.end - ba.start >> PAGE_SHIFT
        left = max(file.size - (tail.offset >> PAGE_SHIFT), 0)
        if left < count:
            vm_object_page_remove(object, first + left, first + count, False)


def _copy_target(
    vm: VmSystem, src_entry: VmMapEntry, va: int, object: VmObject, pindex: int
) -> tuple[VmPage | None, VmPage | None]:
    """What the wired `src_entry` shows at `va`, and a new page at `pindex` of `object` for a copy
    of that; no new one if it needs no copy, and neither if the process is being killed for memory.
    May block for memory."""
    while True:
        src_m = _front_page(src_entry.ba, va)
        if src_m is None:
            panic(f"vm_fault_copy_entry: page at {va:#x} of a wired entry is missing")
        if not src_m.valid:
            return src_m, None  # a file was truncated, perhaps while we waited; the wiring kept it
        if src_m.object is not None and src_m.object.type == OBJT_VNODE:
            return src_m, None
        m = vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL)
        if m is not None:
            return src_m, m
        if not vm_wait(vm, 0):
            return None, None


def _front_page(ba: VmMapBacking | None, va: int) -> VmPage | None:
    """The page that shows at `va`: the first one down the chain."""
    while ba is not None:
        m = _page_at(ba, va)
        if m is not None:
            return m
        ba = ba.backing_ba
    return None


def vm_fault_collapse(map: VmMap, entry: VmMapEntry, addresses: Sequence[int]) -> int:
    """Bring what shows in `entry` at the pages of `addresses` into its front object, so that the
    caller can drop what is behind it. Pages that are nowhere are zero-filled. Afterwards no PTE of
    theirs maps a page from behind.

    :return: KERN_SUCCESS, or what vm_fault_object answered (an unreadable page): then the chain
        has to stay.

    The map is locked exclusively and stays so. May block for memory and I/O.
    """
    ba = entry.ba
    object = ba.object
    assert object is not None
    fs = FaultState(map, VM_FAULT_NORMAL)
    fs.entry = entry
    fs.first_ba = ba
    fs.first_prot = entry.max_protection | _COLLAPSE_PROT
    fs.first_shared = fs.shared = False
    vm_object_hold(object)
    rv = KERN_SUCCESS
    for va in addresses:
        m = _page_at(ba, va)
        while m is None or m.valid != VM_PAGE_BITS_ALL:
            fs.ba = ba
            rv = vm_fault_object(fs, va - ba.start + ba.offset >> PAGE_SHIFT, fs.first_prot)
            if rv == KERN_SUCCESS:
                m = fs.m
                assert m is not None
                unlock_things(fs)
                m.flags |= PG_REFERENCED
                vm_page_wakeup(map.vm, m)
            elif rv != KERN_TRY_AGAIN:
                vm_object_drop(object)
                return rv
        pte = pmap_pte(map.pmap, va)
        if pte and (pte ^ m.phys_addr) & PG_FRAME:
            pmap_remove(map.pmap, va, va + PAGE_SIZE)
    vm_object_drop(object)
    return rv
