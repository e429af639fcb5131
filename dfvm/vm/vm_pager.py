"""The way to the pagers: which one an object has, and the four calls to it; and writing dirty pages
with everything that belongs to it (vm_pager_flush).

Called by the fault code (get), by cleaning and the pageout code (put, flush), and by terminate.

Source: DragonFly sys/vm/vm_pager.c; vm_pager_flush is vm_pageout_flush of sys/vm/vm_pageout.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.vm.pager import (
    VM_PAGER_AGAIN,
    VM_PAGER_BAD,
    VM_PAGER_ERROR,
    VM_PAGER_FAIL,
    VM_PAGER_OK,
    VM_PAGER_PEND,
    VmPager,
)
from dfvm.vm.pager.default_pager import DefaultPager
from dfvm.vm.pager.phys_pager import PhysPager
from dfvm.vm.pager.vnode_pager import VnodePager
from dfvm.vm.pmap import pmap_clear_modify, pmap_page_protect
from dfvm.vm.vm import VM_PROT_READ
from dfvm.vm.vm_object import (
    OBJPC_TRY_TO_CACHE,
    OBJT_DEAD,
    OBJT_DEFAULT,
    OBJT_PHYS,
    OBJT_VNODE,
    vm_object_pip_add,
    vm_object_pip_wakeup,
)
from dfvm.vm.vm_page import (
    PG_WRITEABLE,
    VM_PAGE_BITS_ALL,
    vm_page_activate,
    vm_page_io_finish,
    vm_page_io_start,
    vm_page_try_to_cache,
    vm_page_wakeup,
)

if TYPE_CHECKING:
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage

__all__ = ["VM_PAGER_AGAIN", "VM_PAGER_BAD", "VM_PAGER_ERROR", "VM_PAGER_FAIL", "VM_PAGER_OK",
           "VM_PAGER_PEND", "vm_pager_deallocate", "vm_pager_flush", "vm_pager_get_page",
           "vm_pager_has_page", "vm_pager_put_pages"]  # fmt: skip


class DeadPager(VmPager):
    """OBJT_DEAD: what is left when a pager has let go of its object."""

    __slots__ = ()

    def dealloc(self, object: VmObject) -> None:
        """It is gone."""

    def getpage(
        self, object: VmObject, pindex: int, m: VmPage, seqaccess: int
    ) -> tuple[int, VmPage]:
        """There is nothing any more."""
        return VM_PAGER_FAIL, m

    def putpages(self, object: VmObject, ms: list[VmPage], flags: int) -> list[int]:
        """There is nowhere to write to."""
        return [VM_PAGER_AGAIN] * len(ms)

    def haspage(self, object: VmObject, pindex: int) -> bool:
        """There is nothing any more."""
        return False


_pagertab: Final[dict[int, VmPager]] = {
    OBJT_DEFAULT: DefaultPager(),
    OBJT_VNODE: VnodePager(),
    OBJT_PHYS: PhysPager(),
    OBJT_DEAD: DeadPager(),
}


def vm_pager_deallocate(object: VmObject) -> None:
    """Tell the pager that `object` is dead. Object held. May block."""
    _pagertab[object.type].dealloc(object)


def vm_pager_get_page(
    object: VmObject, pindex: int, m: VmPage, seqaccess: int
) -> tuple[int, VmPage]:
    """Have the pager make `m` valid: see VmPager.getpage. Object held. May block."""
    return _pagertab[object.type].getpage(object, pindex, m, seqaccess)


def vm_pager_put_pages(object: VmObject, ms: list[VmPage], flags: int) -> list[int]:
    """Have the pager write `ms`: see VmPager.putpages. Object held. May block."""
    return _pagertab[object.type].putpages(object, ms, flags)


def vm_pager_has_page(object: VmObject, pindex: int) -> bool:
    """Whether the pager has something stored for a page. Does not block."""
    return _pagertab[object.type].haspage(object, pindex)


def vm_pager_flush(object: VmObject, ms: list[VmPage], flags: int) -> int:
    """Launder `ms`: pages of `object` one after the other, wholly valid and hard-busied; they are
    not busied any more afterwards. Returns how many are still dirty. Object held. May block.

    While the pages are written they are soft-busied and write-protected. So others can read and
    map them, but a store has to fault and wait, and no change can fall between the write and the
    page being called clean."""
    vm = object.vm
    for m in ms:
        if m.valid != VM_PAGE_BITS_ALL:
            panic(f"vm_pager_flush: {object!r} page {m.pindex} is valid only in part")
        vm_page_io_start(vm, m)
        if m.flags & PG_WRITEABLE:
            pmap_page_protect(vm, m, VM_PROT_READ)
        # Also where a mapping has lost the right to write and kept the mark of having used it.
        pmap_clear_modify(vm, m)
        vm_page_wakeup(vm, m)
    count = len(ms)
    vm_object_pip_add(object, count)
    failed = 0
    for m, rv in zip(ms, vm_pager_put_pages(object, ms, flags), strict=True):
        if rv == VM_PAGER_BAD:
            # Outside the object (a file that was truncated): what was written there is void.
            m.dirty = 0
        elif rv != VM_PAGER_OK:
            # Out of the pageout daemon's way: it would find the page dirty for ever.
            vm_page_activate(vm, m)
            failed += 1
        vm_page_io_finish(vm, m)
        if flags & OBJPC_TRY_TO_CACHE and rv == VM_PAGER_OK:
            vm_page_try_to_cache(vm, m)
    vm_object_pip_wakeup(object, count)
    return failed
