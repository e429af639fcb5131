"""What the VM must know of a vnode, and nothing more. `vm` may not import `kern`; the vnode layer
provides objects of this shape.

The size of a file is the vnode's `v_filesize` and nothing else; whoever changes it goes through
vnode_pager_setsize, which keeps the pages in step. The contents are the pages of `v_object` where
they are resident, and the storage below where they are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dfvm.vm.vm_object import VmObject


class VmVnode(Protocol):
    """A regular file as the VM sees it."""

    v_object: VmObject | None  # the file's pages; set and cleared by the vnode pager
    v_filesize: int  # bytes

    def vref(self) -> None:
        """One more reference; the caller knows that there is one already, or holds the object.
        Does not block."""
        ...

    def vrele(self) -> None:
        """Give up a reference. The last one may reclaim the vnode, through vnode_pager_reclaim.
        May block."""
        ...

    def vop_getpage(self, off: int, mv: memoryview) -> int:
        """Read up to len(mv) bytes at byte `off` of the storage straight into mv. Returns how many
        there were; fewer than asked for means that the storage ends there, or that nothing has
        been written behind. May block; the page that mv is part of is busy.

        :raises OSError: the storage cannot be read.
        """
        ...

    def vop_putpage(self, off: int, mv: memoryview) -> None:
        """Write mv at byte `off` of the storage: all of it or an error. May block; the page that mv
        is part of is busy.

        :raises OSError: the storage cannot be written.
        """
        ...

    def vop_stored(self, wait: bool) -> bool:
        """A shared mapping is about to become writable for a store: note the time. Without `wait`
        only if that does not block. Returns whether it was noted."""
        ...
