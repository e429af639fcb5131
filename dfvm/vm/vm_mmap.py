"""mmap, as far as it is the VM's: from what a system call asks to a map operation.

System calls translate their ABI's flags into those below, which are DragonFly's, look up the file,
and turn the result into an errno.

Source: DragonFly sys/vm/vm_mmap.c (vm_mmap), sys/vm/vm_map.c (vm_map_hint), sys/sys/mman.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.vm.pager.vnode_pager import vnode_pager_alloc
from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_INVALID_ARGUMENT,
    KERN_NO_SPACE,
    KERN_SUCCESS,
    VM_INHERIT_SHARE,
    VM_SUBSYS_MMAP,
)
from dfvm.vm.vm_map_entry import (
    MAP_COPY_ON_WRITE,
    MAP_DISABLE_COREDUMP,
    MAP_DISABLE_SYNCER,
    MAP_PREFAULT_PARTIAL,
    MAP_WIREFUTURE,
    VM_MAPTYPE_NORMAL,
)
from dfvm.vm.vm_map_insert import vm_map_find, vm_map_remove
from dfvm.vm.vm_map_protect import vm_map_inherit
from dfvm.vm.vm_map_stack import vm_map_stack
from dfvm.vm.vm_map_wire import vm_map_user_wiring
from dfvm.vm.vm_object import vm_object_deallocate
from dfvm.vm.vm_param import NBPDR, PAGE_MASK, PAGE_SIZE, round_page
from dfvm.vm.vm_proc import RLIMIT_DATA, RLIMIT_VMEM

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_proc import VmProc
    from dfvm.vm.vm_vnode import VmVnode

MAP_SHARED: Final = 0x0001  # writes are seen by all, and by the file
MAP_PRIVATE: Final = 0x0002
MAP_FIXED: Final = 0x0010  # there and nowhere else; what was there goes
MAP_INHERIT: Final = 0x0080  # children share it, even if it is private
MAP_STACK: Final = 0x0400  # grows downwards to the address, from address + size
MAP_NOSYNC: Final = 0x0800  # the syncer leaves its dirty pages alone
MAP_ANON: Final = 0x1000  # no file
MAP_NOCORE: Final = 0x00020000  # left out of core files

MAXDSIZ: Final = 32 << 30  # room kept for brk where the data limit is larger, bytes


def vm_map_hint(p: VmProc, addr: int) -> int:
    """Where to look for room for a mapping of p's that asks for `addr`, 0 for none: not where the
    heap may grow."""
    vms = p.p_vmspace
    start, end = vms.vm_taddr, vms.vm_daddr + min(p.p_rlimit(RLIMIT_DATA), MAXDSIZ)
    if addr == 0 or round_page(start) <= addr < round_page(end):
        return round_page(end)
    return addr


def vm_mmap(
    map: VmMap,
    addr: int,
    size: int,
    prot: int,
    maxprot: int,
    flags: int,
    handle: VmVnode | None,
    foff: int,
    fitit: bool,
) -> tuple[int, int]:
    """Map `size` bytes of the file `handle` from `foff` on, or with MAP_ANON of new memory. With
    `fitit` the first room at or above `addr` will do (a good place if `addr` is 0); without it, it
    is `addr` or nothing, in place of what is there if `flags` have MAP_FIXED.

    :return: KERN_SUCCESS and the address; KERN_INVALID_ARGUMENT for what is not aligned,
        KERN_INVALID_ADDRESS outside the map, KERN_NO_SPACE without room or beyond RLIMIT_VMEM.
    Locks the map; may block.
    """
    size = round_page(size)
    p = map.vm.curproc()
    if p is not None and p.p_vmspace.vm_map is not map:
        p = None
    if size == 0 or foff & PAGE_MASK or (not fitit and addr & PAGE_MASK):
        return KERN_INVALID_ARGUMENT, addr
    if p is not None and map.size + size > p.p_rlimit(RLIMIT_VMEM):
        return KERN_NO_SPACE, addr
    align = PAGE_SIZE
    if fitit:
        addr = round_page(addr)
        if p is not None:
            addr = vm_map_hint(p, addr)
        # Large mappings share no page table with others, and go away with whole tables.
        if size & NBPDR - 1 == 0 or size > 16 * NBPDR:
            align = NBPDR
    else:
        if addr < map.min_addr or addr + size > map.max_addr:
            return KERN_INVALID_ADDRESS, addr
        if flags & MAP_FIXED:
            vm_map_remove(map, addr, addr + size)

    obj: VmObject | None = None
    cow = 0
    if not flags & MAP_ANON:
        assert handle is not None
        obj = vnode_pager_alloc(map.vm, handle, handle.v_filesize)
        cow = MAP_PREFAULT_PARTIAL
        if not flags & MAP_SHARED:
            cow |= MAP_COPY_ON_WRITE
    if flags & MAP_NOSYNC:
        cow |= MAP_DISABLE_SYNCER
    if flags & MAP_NOCORE:
        cow |= MAP_DISABLE_COREDUMP

    if flags & MAP_STACK:
        rv, addr = vm_map_stack(map, addr, size, fitit, prot, maxprot, cow)
    else:
        rv, addr = vm_map_find(
            map,
            obj,
            foff,
            addr,
            size,
            align,
            fitit,
            VM_MAPTYPE_NORMAL,
            VM_SUBSYS_MMAP,
            prot,
            maxprot,
            cow,
        )
    if rv != KERN_SUCCESS:
        vm_object_deallocate(obj)
        return rv, addr
    if flags & (MAP_SHARED | MAP_INHERIT):
        vm_map_inherit(map, addr, addr + size, VM_INHERIT_SHARE)
    if map.flags & MAP_WIREFUTURE:
        vm_map_user_wiring(map, addr, addr + size, False)
    return KERN_SUCCESS, addr
