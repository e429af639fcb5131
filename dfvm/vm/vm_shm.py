"""What the VM knows of System V shared memory: that somebody counts who shows a segment's object,
and that a segment may be told to stay in memory.

Segments themselves are kern's (sysv_shm.py).

Source: DragonFly sys/kern/sysv_shm.c, which makes segments of OBJT_PHYS objects when
kern.ipc.shm_use_phys is set. Here a segment's object is one while the segment is locked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dfvm.vm.vm_object import (
    OBJ_NOSPLIT,
    OBJ_ONEMAPPING,
    OBJT_DEFAULT,
    OBJT_PHYS,
    vm_object_allocate,
    vm_object_drop,
    vm_object_hold,
)
from dfvm.vm.vm_page import (
    PG_UNQUEUED,
    vm_page_activate,
    vm_page_lookup_busy_wait,
    vm_page_wakeup,
)
from dfvm.vm.vm_page_queue import vm_page_rem_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage


class VmShm(Protocol):
    """A segment, as its object knows it."""

    def shm_open(self) -> None:
        """One more element of a map shows the object. Does not block."""

    def shm_close(self) -> None:
        """One does so no more; it still has its reference. May block."""


def vm_shm_object(vm: VmSystem, pages: int, shm: VmShm) -> VmObject:
    """The memory of a new segment, with one reference, the segment's. Does not block."""
    obj = vm_object_allocate(vm, OBJT_DEFAULT, pages)
    obj.flags = obj.flags & ~OBJ_ONEMAPPING | OBJ_NOSPLIT
    obj.shm = shm
    return obj


def vm_shm_lock(obj: VmObject) -> None:
    """Keep the pages of `obj` in memory, those that will come, too: the memory becomes the phys
    pager's, whose pages are in no queue. May block."""
    vm = obj.vm
    obj.type = OBJT_PHYS
    for m in _busied(obj):
        if obj.type == OBJT_PHYS:  # nobody has undone it while we waited
            if m.queue:
                vm_page_rem_queue(vm, m)
            m.flags |= PG_UNQUEUED
        vm_page_wakeup(vm, m)


def vm_shm_unlock(obj: VmObject) -> None:
    """Undo vm_shm_lock. May block."""
    vm = obj.vm
    obj.type = OBJT_DEFAULT
    for m in _busied(obj):
        if obj.type == OBJT_DEFAULT:
            m.flags &= ~PG_UNQUEUED
            m.dirty = m.valid  # it is nowhere else
            vm_page_activate(vm, m)
        vm_page_wakeup(vm, m)


def _busied(obj: VmObject) -> Iterator[VmPage]:
    """The resident pages, one after the other, hard-busied. May block."""
    vm_object_hold(obj)
    for pindex in list(obj.rb_memq):
        m = vm_page_lookup_busy_wait(obj, pindex, True, "shmlck")
        if m is not None:
            yield m
    vm_object_drop(obj)
