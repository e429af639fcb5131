"""The pager of anonymous memory that has never been paged out. It has nothing: the fault code
fills new pages with zeros, and without a swap device dirty pages can go nowhere.

Source: DragonFly sys/vm/default_pager.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.vm.pager import VM_PAGER_FAIL, VmPager

if TYPE_CHECKING:
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage


class DefaultPager(VmPager):
    """OBJT_DEFAULT."""

    __slots__ = ()

    def dealloc(self, object: VmObject) -> None:
        """Nothing is stored."""

    def getpage(
        self, object: VmObject, pindex: int, m: VmPage, seqaccess: int
    ) -> tuple[int, VmPage]:
        """Nothing is stored: FAIL."""
        return VM_PAGER_FAIL, m

    def putpages(self, object: VmObject, ms: list[VmPage], flags: int) -> list[int]:
        """There is nowhere to write to: FAIL, and the pages stay dirty."""
        return [VM_PAGER_FAIL] * len(ms)

    def haspage(self, object: VmObject, pindex: int) -> bool:
        """Nothing is stored."""
        return False
