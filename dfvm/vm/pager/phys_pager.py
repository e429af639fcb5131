"""The pager of memory that is never paged: the kernel's own. New pages are zeros, and there is no
other place for them than RAM.

Source: DragonFly sys/vm/phys_pager.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic
from dfvm.vm.pager import VM_PAGER_OK, VmPager
from dfvm.vm.vm_page import PG_UNQUEUED, VM_PAGE_BITS_ALL

if TYPE_CHECKING:
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage


class PhysPager(VmPager):
    """OBJT_PHYS."""

    __slots__ = ()

    def dealloc(self, object: VmObject) -> None:
        """Nothing is stored."""

    def getpage(
        self, object: VmObject, pindex: int, m: VmPage, seqaccess: int
    ) -> tuple[int, VmPage]:
        """Zeros, in a page no queue will ever hold."""
        if m.valid != VM_PAGE_BITS_ALL:
            object.vm.ram.zero(m.phys_addr)
            m.valid = VM_PAGE_BITS_ALL
            m.dirty = 0
        m.flags |= PG_UNQUEUED
        return VM_PAGER_OK, m

    def putpages(self, object: VmObject, ms: list[VmPage], flags: int) -> list[int]:
        """Never asked for: such pages are in no queue that anyone launders."""
        panic(f"phys_pager_putpages: {object!r} page {ms[0].pindex}")

    def haspage(self, object: VmObject, pindex: int) -> bool:
        """Every page inside the object can be had."""
        return pindex < object.size
