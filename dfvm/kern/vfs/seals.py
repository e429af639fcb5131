"""Seals: what can no longer be done to a file in memory made by memfd_create.

Source: behaviour of Linux mm/memfd.c, mm/shmem.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EBUSY, EINVAL, EPERM, err
from dfvm.kern.vfs.vnode_param import VREG, VSEALABLE
from dfvm.vm.vm import VM_PROT_WRITE
from dfvm.vm.vm_map_clip import vm_map_lookup_entry
from dfvm.vm.vm_map_entry import MAP_ENTRY_COW
from dfvm.vm.vm_param import PAGE_MASK

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode

F_SEAL_SEAL: Final = 0x01  # no more seals
F_SEAL_SHRINK: Final = 0x02
F_SEAL_GROW: Final = 0x04
F_SEAL_WRITE: Final = 0x08
F_SEAL_FUTURE_WRITE: Final = 0x10  # as WRITE, but mappings that may write stay
F_SEAL_EXEC: Final = 0x20  # the x bits stay as they are
_ALL: Final = 0x3F
_NO_WRITE: Final = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE


def get_seals(vp: Vnode | None) -> int:
    """F_GET_SEALS.

    :raises OSError: EINVAL for a file that can't be sealed
    """
    if vp is None or vp.v_type != VREG:
        raise err(EINVAL)
    if not vp.v_flag & VSEALABLE:
        if vp.v_mount.mnt_fstype != "tmpfs":
            raise err(EINVAL)
        return F_SEAL_SEAL  # of the kind, but made with a name
    return vp.v_seals


def add_seals(vp: Vnode | None, seals: int, writable: bool) -> None:
    """F_ADD_SEALS through a descriptor that may write (`writable`) or not.

    :raises OSError: EINVAL, EPERM; EBUSY when WRITE is asked for and a mapping may write
    """
    old = get_seals(vp)
    assert vp is not None
    if not writable:
        raise err(EPERM)
    if seals & ~_ALL:
        raise err(EINVAL)
    if old & F_SEAL_SEAL:
        raise err(EPERM)
    if seals & F_SEAL_EXEC and vp.v_mode & 0o111:
        seals |= F_SEAL_SHRINK | F_SEAL_GROW | _NO_WRITE
    if seals & F_SEAL_WRITE and not old & F_SEAL_WRITE and mapped_writable(vp):
        raise err(EBUSY)
    vp.v_seals = old | seals


def mapped_writable(vp: Vnode) -> bool:
    """Is there a shared mapping of the file through which it may be written, now or later?"""
    object = vp.v_object
    hooks = vp.v_mount.mnt_vfs.vm.hooks
    if object is None or hooks is None:
        return False
    maps = {p.p_vmspace.vm_pmap: p.p_vmspace.vm_map for p in hooks.allproc()}
    for ba in object.backing_list:
        map = maps.get(ba.pmap)
        if map is None:
            continue
        found, entry = vm_map_lookup_entry(map, ba.start)
        if found and entry is not None and not entry.eflags & MAP_ENTRY_COW:
            if entry.max_protection & VM_PROT_WRITE:
                return True
    return False


def sealed_write(vp: Vnode, off: int, end: int) -> int:
    """Bytes off … end of a sealed file are to be written: up to where that is allowed. Linux
    writes page by page, and no page that would make the file longer.

    :raises OSError: EPERM
    """
    if vp.v_seals & _NO_WRITE:
        raise err(EPERM)
    if vp.v_seals & F_SEAL_GROW and end > vp.v_filesize:
        end = vp.v_filesize & ~PAGE_MASK
        if end <= off:
            raise err(EPERM)
    return end


def sealed_size(vp: Vnode, osize: int, nsize: int) -> None:
    """A sealed file of `osize` bytes is to have `nsize`.

    :raises OSError: EPERM
    """
    if (nsize < osize and vp.v_seals & F_SEAL_SHRINK) or (
        nsize > osize and vp.v_seals & F_SEAL_GROW
    ):
        raise err(EPERM)


def sealed_zero(vp: Vnode) -> None:
    """Part of a sealed file is to become zero.

    :raises OSError: EPERM
    """
    if vp.v_seals & _NO_WRITE:
        raise err(EPERM)


def sealed_map(vp: Vnode, write: bool) -> bool:
    """A sealed file is to be mapped shared, for writing with `write`: whether the mapping may ever
    be written.

    :raises OSError: EPERM
    """
    if not vp.v_seals & _NO_WRITE:
        return True
    if write:
        raise err(EPERM)
    return False


def sealed_mode(vp: Vnode, mode: int) -> None:
    """A sealed file is to have the permission bits `mode`.

    :raises OSError: EPERM
    """
    if vp.v_seals & F_SEAL_EXEC and (mode ^ vp.v_mode) & 0o111:
        raise err(EPERM)
