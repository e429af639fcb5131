"""mmap, as far as it is the VM's: the object behind a mapping, and its place in the map.

The system call has checked everything, found the file, and chosen the address: where mappings go
is part of an ABI.

Source: DragonFly sys/vm/vm_mmap.c (vm_mmap), sys/sys/mman.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.vm.pager.vnode_pager import vnode_pager_alloc
from dfvm.vm.vm import (
    KERN_SUCCESS,
    VM_INHERIT_SHARE,
    VM_SUBSYS_MMAP,
    VM_SUBSYS_SHMEM,
)
from dfvm.vm.vm_map_entry import MAP_COPY_ON_WRITE, MAP_PREFAULT_PARTIAL, VM_MAPTYPE_NORMAL
from dfvm.vm.vm_map_insert import vm_map_find, vm_map_remove
from dfvm.vm.vm_map_protect import vm_map_inherit
from dfvm.vm.vm_object import OBJ_NOSPLIT, OBJT_DEFAULT, vm_object_allocate, vm_object_deallocate
from dfvm.vm.vm_param import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_vnode import VmVnode

# The same numbers on Linux.
MAP_SHARED: Final = 0x0001  # writes are seen by all, and by the file
MAP_PRIVATE: Final = 0x0002
MAP_FIXED: Final = 0x0010  # what was there goes


def vm_mmap(
    map: VmMap,
    addr: int,
    size: int,
    prot: int,
    maxprot: int,
    flags: int,
    handle: VmVnode | None,
    foff: int,
) -> int:
    """Map `size` bytes of the file `handle` from `foff` on, or of new memory if it is None, at
    `addr`. All are page aligned and within the map. Returns KERN_*: without MAP_FIXED nothing may
    be there yet. Locks the map; may block."""
    obj: VmObject | None = None
    cow = 0
    if handle is not None:
        obj = vnode_pager_alloc(map.vm, handle, handle.v_filesize)
        cow = MAP_PREFAULT_PARTIAL
        if not flags & MAP_SHARED:
            cow |= MAP_COPY_ON_WRITE
    elif flags & MAP_SHARED:
        # What is shared must have its object before anybody can share it.
        obj = vm_object_allocate(map.vm, OBJT_DEFAULT, size >> PAGE_SHIFT)
        obj.flags |= OBJ_NOSPLIT  # what is not shown now may be shown again (mremap)
        return vm_mmap_shmem(map, addr, size, prot, maxprot, flags, obj)
    else:
        foff = 0
    if flags & MAP_FIXED:
        vm_map_remove(map, addr, addr + size)
    rv, _ = vm_map_find(
        map, obj, foff, addr, size, PAGE_SIZE, False,
        VM_MAPTYPE_NORMAL, VM_SUBSYS_MMAP, prot, maxprot, cow,
    )  # fmt: skip
    if rv != KERN_SUCCESS:
        vm_object_deallocate(obj)
    elif flags & MAP_SHARED:
        vm_map_inherit(map, addr, addr + size, VM_INHERIT_SHARE)
    return rv


def vm_mmap_shmem(
    map: VmMap, addr: int, size: int, prot: int, maxprot: int, flags: int, obj: VmObject
) -> int:
    """vm_mmap of shared memory without a file, `obj`, from its beginning. The caller's reference on
    it becomes the map's, or is given back on failure."""
    if flags & MAP_FIXED:
        vm_map_remove(map, addr, addr + size)
    # The subsystem keeps it from ever becoming one entry with memory that is not shared.
    rv, _ = vm_map_find(
        map, obj, 0, addr, size, PAGE_SIZE, False,
        VM_MAPTYPE_NORMAL, VM_SUBSYS_SHMEM, prot, maxprot, 0,
    )  # fmt: skip
    if rv == KERN_SUCCESS:
        vm_map_inherit(map, addr, addr + size, VM_INHERIT_SHARE)
    else:
        vm_object_deallocate(obj)
    return rv
