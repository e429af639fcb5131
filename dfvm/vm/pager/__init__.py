"""The pagers: where the pages of an object come from, and where they go.

One class for each kind of object, with the four calls of VmPager. Pagers keep no state of their
own; what they need to know is in the object. They are reached through dfvm/vm/vm_pager.py.

    default_pager  anonymous memory: nothing anywhere, the fault code fills with zeros
    vnode_pager    files; also the page cache under read(2) and write(2)
    phys_pager     memory of the kernel's own, wired

Source: DragonFly sys/vm/vm_pager.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage

# What a pager answers.
VM_PAGER_OK: Final = 0  # done
VM_PAGER_BAD: Final = 1  # the object has no such page
VM_PAGER_FAIL: Final = 2  # nothing is stored for this page: look deeper, or fill with zeros
VM_PAGER_PEND: Final = 3  # begun; the page stays soft-busied until it is done
VM_PAGER_ERROR: Final = 4  # I/O error
VM_PAGER_AGAIN: Final = 5  # not now


class VmPager:
    """What every pager can do. The object is held in every call."""

    __slots__ = ()

    def dealloc(self, object: VmObject) -> None:
        """`object` is dead and has no pages: give back what is stored for it. May block."""
        raise NotImplementedError

    def getpage(
        self, object: VmObject, pindex: int, m: VmPage, seqaccess: int
    ) -> tuple[int, VmPage]:
        """Make page `m`, which is hard-busied and stands at `pindex`, wholly valid. seqaccess: 0
        the access is random, > 0 sequential, < 0 unknown. Returns VM_PAGER_* and the page to use
        instead of m; it is hard-busied, whatever the result. May block."""
        raise NotImplementedError

    def putpages(self, object: VmObject, ms: list[VmPage], flags: int) -> list[int]:
        """Write what is dirty in `ms`, soft-busied and write-protected pages in order, with
        OBJPC_* flags. Returns VM_PAGER_* for each; OK ones are clean now. May block."""
        raise NotImplementedError

    def haspage(self, object: VmObject, pindex: int) -> bool:
        """Whether something is stored for this page. Does not block."""
        raise NotImplementedError
