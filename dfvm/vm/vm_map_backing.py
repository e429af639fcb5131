"""Backing chains: entering elements in their objects, copying, shadowing and giving back.

    write to a NEEDS_COPY entry whose object is shared (vm_map_entry_shadow):

      entry.ba ─▶ [ object ]                 entry.ba ─▶ [ new, empty ]
                                                             │ backing_ba
                                                             ▼
                                                         [ object ]

What is behind the first element is set in stone: its pages come and go with paging, but no mapping
writes to them any more. So a chain can be copied (fork, clip) by copying its elements. (A file at
the end of a private view is the exception that does no harm: what others write to it shows where
the view has no page of its own, as it should.) How chains become shorter again is in
vm_map_collapse.

Source: DragonFly sys/vm/vm_map.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.kern_lock import lockmgr_exclusive, lockmgr_release
from dfvm.machine.pte import PG_M
from dfvm.vm.pmap_table import pmap_pte
from dfvm.vm.vm_map_entry import MAP_ENTRY_NEEDS_COPY, VmMapBacking
from dfvm.vm.vm_object import (
    OBJ_NOSPLIT,
    OBJ_ONEMAPPING,
    OBJT_DEFAULT,
    OBJT_SWAP,
    vm_object_allocate,
    vm_object_deallocate,
    vm_object_page_remove,
    vm_object_reference_quick,
)
from dfvm.vm.vm_object_shown import vm_object_unshown
from dfvm.vm.vm_param import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfvm.vm.pmap import Pmap
    from dfvm.vm.vm_map_entry import VmMapEntry
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage

_ASKED: Final = 64  # pages that vm_map_entry_written looks at


def _backing_busy(obj: VmObject) -> bool:
    """Somebody holds obj's backing_lk. If not, what is done without blocking needs no lock."""
    lk = obj._backing_lk
    return lk is not None and (lk.lk_holder is not None or lk.lk_shared != 0)


def vm_map_backing_attach(ba: VmMapBacking) -> None:
    """Enter `ba` in its object's backing_list, where page → PTE lookups find it. The object is
    referenced. May block for those who walk the list."""
    obj = ba.object
    assert obj is not None
    if _backing_busy(obj):
        lockmgr_exclusive(obj.backing_lk)
        obj.backing_list[ba] = None
        lockmgr_release(obj.backing_lk)
    else:
        obj.backing_list[ba] = None
    if obj.shown is not None:
        obj.shown.add(ba)
    if obj.shm is not None:
        obj.shm.shm_open()


def vm_map_backing_detach(ba: VmMapBacking) -> None:
    """Take `ba` out of its object's backing_list. No PTE in its range may map a page of the
    object any more, unless another element that stays covers it. May block."""
    obj = ba.object
    assert obj is not None
    if _backing_busy(obj):
        lockmgr_exclusive(obj.backing_lk)
        del obj.backing_list[ba]
        lockmgr_release(obj.backing_lk)
    else:
        del obj.backing_list[ba]
    if obj.shown is not None:
        obj.shown.remove(ba)


def vm_map_backing_replicate(
    ba: VmMapBacking, pmap: Pmap, start: int, end: int, *, clipped: bool
) -> VmMapBacking:
    """Copy the chain that begins with `ba` for the range [start, end) of the map with `pmap`.
    Every object gets a reference and the new element. The objects lose ONEMAPPING, unless the
    copy is half of a clip: then each page of theirs is still seen at one place only. Both maps
    are locked exclusively."""
    first: VmMapBacking | None = None
    last: VmMapBacking | None = None
    src: VmMapBacking | None = ba
    while src is not None:
        obj = src.object
        new = VmMapBacking(start, end, pmap, obj, src.offset + start - src.start)
        new.backing_count = src.backing_count
        if obj is not None:
            vm_object_reference_quick(obj)
            vm_map_backing_attach(new)
            if not clipped:
                obj.flags &= ~OBJ_ONEMAPPING
        if last is None:
            first = new
        else:
            last.backing_ba = new
        last = new
        src = src.backing_ba
    assert first is not None
    return first


def vm_map_backing_adjust(entry: VmMapEntry, start: int, end: int) -> None:
    """Change the range of every element of the entry's chain; what shows at each address stays.
    Exclusive map lock. The caller tells the map's index of a new start. May block."""
    ba: VmMapBacking | None = entry.ba
    while ba is not None:
        obj = ba.object
        busy = obj is not None and _backing_busy(obj)
        if busy:
            assert obj is not None
            lockmgr_exclusive(obj.backing_lk)
        shown = None if obj is None else obj.shown
        if shown is not None:
            shown.remove(ba)
        ba.offset += start - ba.start
        ba.start = start
        ba.end = end
        if shown is not None:
            shown.add(ba)
        if busy:
            assert obj is not None
            lockmgr_release(obj.backing_lk)
        ba = ba.backing_ba


def vm_map_entry_allocate_object(entry: VmMapEntry) -> None:
    """Give anonymous memory its object, when it can be put off no longer: a fault, a clip, a fork
    that shares. Exclusive map lock.

    A stack's object has room for the pages the stack may still grow by, so that growing moves the
    entry's start and needs no new entry."""
    ba = entry.ba
    room = entry.avail_ssize
    ba.offset = room
    ba.object = vm_object_allocate(
        ba.pmap.vm, OBJT_DEFAULT, (ba.end - ba.start + room) >> PAGE_SHIFT
    )
    vm_map_backing_attach(ba)


def vm_map_entry_resident(entry: VmMapEntry, va: int) -> bool:
    """Whether the page that an access at `va`, which `entry` maps, would see is in memory."""
    ba: VmMapBacking | None = entry.ba
    while ba is not None and ba.object is not None:
        m = ba.object.rb_memq.get(va - ba.start + ba.offset >> PAGE_SHIFT)
        if m is not None:
            return m.valid != 0
        ba = ba.backing_ba
    return False


def vm_map_entry_shadow(entry: VmMapEntry) -> None:
    """Make a NEEDS_COPY entry writable: put a new, empty object in front of its chain, unless
    nobody else sees the object that is there. Exclusive map lock."""
    ba = entry.ba
    source = ba.object
    assert source is not None
    entry.eflags &= ~MAP_ENTRY_NEEDS_COPY

    # Quite often the other process has gone before anyone wrote (fork, exec, wait).
    if (
        source.ref_count == 1
        and source.handle is None
        and (source.type == OBJT_DEFAULT or source.type == OBJT_SWAP)
    ):
        source.flags |= OBJ_ONEMAPPING
        return

    # As part of chains the object may be seen anywhere from now on.
    source.flags &= ~OBJ_ONEMAPPING
    room = entry.avail_ssize
    front = VmMapBacking(ba.start, ba.end, ba.pmap, None, room)
    front.object = vm_object_allocate(
        ba.pmap.vm, OBJT_DEFAULT, (ba.end - ba.start + room) >> PAGE_SHIFT
    )
    front.backing_ba = ba
    front.backing_count = ba.backing_count + 1
    entry.ba = front
    vm_map_backing_attach(front)


def vm_map_backing_dispose(ba: VmMapBacking | None, *, merged: bool = False) -> None:
    """Give back a chain from `ba` on: each element leaves its object and drops its reference, and
    the pages of anonymous memory that nobody can reach any more go, unless the chain has been
    `merged` into another that shows the same. No PTE in the range maps a page of the objects, in
    the first case. May block, for busy pages and as the last reference to an object ends it."""
    while ba is not None:
        obj = ba.object
        if obj is not None:
            if not merged and obj.ref_count > 1 and obj.type <= OBJT_SWAP:
                _remove_unshown(ba, obj)
            vm_map_backing_detach(ba)
            ba.object = None
            if obj.shm is not None and not merged:
                obj.shm.shm_close()
            vm_object_deallocate(obj)
        ba = ba.backing_ba


def _remove_unshown(ba: VmMapBacking, obj: VmObject) -> None:
    """`ba` is about to leave `obj`, which stays because other elements show other parts of it:
    throw away the pages that only `ba` shows. (With the last element they go with the object.)
    May block."""
    if obj.flags & OBJ_NOSPLIT or len(obj.backing_list) != obj.ref_count:
        return  # somebody owns it who goes by page index
    if obj.flags & OBJ_ONEMAPPING:
        first = ba.offset >> PAGE_SHIFT
        parts = [(first, first + (ba.end - ba.start >> PAGE_SHIFT))]
    else:
        parts = vm_object_unshown(obj, ba)
    for first, end in parts:
        vm_object_page_remove(obj, first, end, False)
        if first < obj.size <= end:
            obj.size = first


def vm_map_entry_written(entry: VmMapEntry) -> bool:
    """Whether private memory has been written to, as far as its pages tell: whether it shows any
    that is dirty and no file's. Of many pages not all are asked, and it is taken for written then.
    The map is locked, or nothing blocks."""
    ba: VmMapBacking | None = entry.ba
    while ba is not None and ba.object is not None and ba.object.type <= OBJT_SWAP:
        object = ba.object
        if object.type == OBJT_SWAP:
            return True  # it has been paged out
        memq = object.rb_memq
        first, last = ba.offset >> PAGE_SHIFT, ba.offset + ba.end - ba.start >> PAGE_SHIFT
        asked = 0
        pages: Iterable[VmPage] = memq.values()
        if last - first < len(memq):
            pages = (memq[pindex] for pindex in range(first, last) if pindex in memq)
        for m in pages:
            if first <= m.pindex < last:
                if m.dirty or asked == _ASKED:
                    return True
                if pmap_pte(ba.pmap, ba.start + (m.pindex - first << PAGE_SHIFT)) & PG_M:
                    return True
                asked += 1
        ba = ba.backing_ba
    return False
