"""Keeping backing chains short.

Every fork after which somebody writes makes a chain one element longer. Two things keep that in
bounds, both done at fork, for the good of parent and child alike:

  - Where two neighbours of a chain are both nobody else's (the child that shared them has gone),
    they become one: the pages of the smaller object move to the larger. A process that forks in
    a loop and waits for its children has chains of one element, at the cost of the pages it has
    written since the last fork.
  - A chain of vm.map_backing_limit elements, or one that the front object covers, is faulted into
    the front object and dropped, as in DragonFly.

Source: DragonFly sys/vm/vm_map.c (vmspace_fork_normal_entry) for the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic
from dfvm.vm.pmap import pmap_enter
from dfvm.vm.vm import KERN_SUCCESS, VM_PROT_READ
from dfvm.vm.vm_fault import vm_fault_collapse
from dfvm.vm.vm_map_backing import vm_map_backing_dispose, vm_map_entry_shadow
from dfvm.vm.vm_map_entry import MAP_ENTRY_NEEDS_COPY, MAP_ENTRY_USER_WIRED
from dfvm.vm.vm_map_insert import vm_map_entry_unwire
from dfvm.vm.vm_object import (
    OBJT_DEFAULT,
    OBJT_SWAP,
    vm_object_drop,
    vm_object_hold,
    vm_object_pages,
)
from dfvm.vm.vm_page import (
    vm_page_busy_try,
    vm_page_free,
    vm_page_lookup_busy_wait,
    vm_page_rename,
    vm_page_wakeup,
    vm_page_wire,
)
from dfvm.vm.vm_param import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap, VmMapBacking, VmMapEntry
    from dfvm.vm.vm_object import VmObject


def vm_map_shorten_chain(map: VmMap, entry: VmMapEntry) -> None:
    """What fork does to the chain of `entry`, which has more than one element, before it copies
    it. Exclusive map lock. May block."""
    _merge_elements(entry)
    count = entry.ba.backing_count
    if count <= 1 and vm_map_file_tail(entry) is not None:
        return
    if count and (count >= map.vm.sysctl.map_backing_limit or _covers_chain(entry)):
        _squash_chain(map, entry)


def _merge_elements(entry: VmMapEntry) -> None:
    """Make one of neighbours that nobody else sees, as long as there are any."""
    before: list[VmMapBacking] = []  # the elements in front of `ba`
    ba = entry.ba
    while (behind := ba.backing_ba) is not None:
        a, b = ba.object, behind.object
        assert a is not None and b is not None
        if not (_is_private(a) and _is_private(b)):
            before.append(ba)
            ba = behind
        elif len(a.rb_memq) <= len(b.rb_memq):
            if not _move_pages(ba, behind, replace=True):
                return
            if before:
                before[-1].backing_ba = behind
            else:
                entry.ba = behind
            _drop_element(before, ba)
            ba = behind
        else:
            if not _move_pages(behind, ba, replace=False):
                return
            ba.backing_ba = behind.backing_ba
            _drop_element([*before, ba], behind)


def _is_private(obj: VmObject) -> bool:
    """Only one element shows `obj`, and all it holds is in its pages."""
    return obj.ref_count == 1 and obj.type == OBJT_DEFAULT and obj.paging_in_progress == 0


def _move_pages(src: VmMapBacking, dst: VmMapBacking, *, replace: bool) -> bool:
    """Move what `src` shows to the object of `dst`, its neighbour: in place of the pages that are
    there, or where there are none. The PTEs stay right: they map the same frames, and the other
    element leads to them as well. False: a page is in use, and nothing was done."""
    from_obj, to_obj = src.object, dst.object
    assert from_obj is not None and to_obj is not None
    vm = to_obj.vm
    first, end = src.offset >> PAGE_SHIFT, src.offset + src.end - src.start >> PAGE_SHIFT
    shift = (dst.offset - src.offset) >> PAGE_SHIFT
    there = to_obj.rb_memq
    moving = [(m, there.get(m.pindex + shift)) for m in vm_object_pages(from_obj, first, end)]
    if any(m.busy_count or (old and (old.busy_count or old.wire_count)) for m, old in moving):
        return False
    vm_object_hold(from_obj)
    vm_object_hold(to_obj)
    to_obj.size = max(to_obj.size, end + shift)
    for m, old in moving:
        if old is not None:
            if not replace:
                continue
            vm_page_busy_try(vm, old, True)
            vm_page_free(vm, old)
        vm_page_busy_try(vm, m, True)
        vm_page_rename(m, to_obj, m.pindex + shift)
        vm_page_wakeup(vm, m)
    vm_object_drop(to_obj)
    vm_object_drop(from_obj)
    return True


def _drop_element(before: list[VmMapBacking], ba: VmMapBacking) -> None:
    """Give back `ba`, which has been taken out from behind `before`."""
    for element in before:
        element.backing_count -= 1
    ba.backing_ba = None
    vm_map_backing_dispose(ba)


def _covers_chain(entry: VmMapEntry) -> bool:
    """Every page of the entry is resident in the front object, as far as counting can tell:
    nothing shows through from behind."""
    ba = entry.ba
    obj = ba.object
    return (
        obj is not None
        and obj.resident_page_count >= (ba.end - ba.start) >> PAGE_SHIFT
        and obj.resident_page_count + (ba.offset >> PAGE_SHIFT) >= obj.size
    )


def vm_map_file_tail(entry: VmMapEntry) -> VmMapBacking | None:
    """The file at the end of the chain of a private view; None for anonymous memory."""
    ba = entry.ba
    while ba.backing_ba is not None:
        ba = ba.backing_ba
    return ba if ba.object is not None and ba.object.type > OBJT_SWAP else None


def _squash_chain(map: VmMap, entry: VmMapEntry) -> None:
    """Bring what shows through from the anonymous elements behind into a front object of the
    entry's own, and let go of them. A file at the end stays: what nobody has written to goes on
    showing it, and all of it must be there again when the private pages are thrown away. Pages
    that are nowhere are not made: a large mapping may hold few. Exclusive map lock. May block."""
    if entry.eflags & MAP_ENTRY_NEEDS_COPY:
        vm_map_entry_shadow(entry)
    front, tail = entry.ba, vm_map_file_tail(entry)
    there: set[int] = set()
    ba, before = front.backing_ba, front
    while ba is not None and ba is not tail:
        obj = ba.object
        assert obj is not None
        first, shift = ba.offset >> PAGE_SHIFT, ba.start - ba.offset
        end = first + (ba.end - ba.start >> PAGE_SHIFT)
        there.update((m.pindex << PAGE_SHIFT) + shift for m in vm_object_pages(obj, first, end))
        before, ba = ba, ba.backing_ba
    if before is front or vm_fault_collapse(map, entry, sorted(there)) != KERN_SUCCESS:
        return
    rest, front.backing_ba = front.backing_ba, tail
    before.backing_ba = None
    front.backing_count = 0 if tail is None else 1
    vm_map_backing_dispose(rest)


def vm_map_collapse_chain(map: VmMap, entry: VmMapEntry) -> None:
    """Bring everything that shows through from behind into a front object of the entry's own, and
    let go of the chain. Exclusive map lock. May block."""
    wired_count, user_wired = entry.wired_count, entry.eflags & MAP_ENTRY_USER_WIRED
    if wired_count:
        vm_map_entry_unwire(map, entry)
    if entry.eflags & MAP_ENTRY_NEEDS_COPY:
        vm_map_entry_shadow(entry)
    ok = True
    if entry.ba.backing_ba is not None:
        everywhere = range(entry.ba.start, entry.ba.end, PAGE_SIZE)
        ok = vm_fault_collapse(map, entry, everywhere) == KERN_SUCCESS
        if ok:
            rest = entry.ba.backing_ba
            entry.ba.backing_ba = None
            entry.ba.backing_count = 0
            vm_map_backing_dispose(rest)
    if wired_count and ok:
        entry.wired_count = wired_count
        entry.eflags |= user_wired
        _wire_front(map, entry)


def _wire_front(map: VmMap, entry: VmMapEntry) -> None:
    """Wire the pages of an entry, all of which its front object has: those that were wired may
    have been replaced by copies."""
    ba, vm = entry.ba, map.vm
    obj = ba.object
    assert obj is not None
    vm_object_hold(obj)
    for va in range(ba.start, ba.end, PAGE_SIZE):
        m = vm_page_lookup_busy_wait(obj, va - ba.start + ba.offset >> PAGE_SHIFT, True, "wirefr")
        if m is None:
            panic(f"vmspace_fork: page at {va:#x} of wired {entry!r} is gone")
        vm_page_wire(vm, m)
        if entry.protection & VM_PROT_READ:
            pmap_enter(map.pmap, va, m, entry.protection, True, entry)
        vm_page_wakeup(vm, m)
    vm_object_drop(obj)
