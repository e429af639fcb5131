"""brk: the end of the data segment.

Source: DragonFly sys/vm/vm_unix.c (sys_obreak).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.vm.vm import (
    KERN_INVALID_ARGUMENT,
    KERN_NO_SPACE,
    KERN_SUCCESS,
    VM_PROT_ALL,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_BRK,
)
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_WIREONFAULT,
    MAP_FUTUREONFAULT,
    MAP_WIREFUTURE,
    VM_MAPTYPE_NORMAL,
)
from dfvm.vm.vm_map_insert import vm_map_find, vm_map_remove
from dfvm.vm.vm_map_madvise import vm_map_mark
from dfvm.vm.vm_map_wire import vm_map_user_wiring
from dfvm.vm.vm_param import PAGE_SIZE, round_page
from dfvm.vm.vm_proc import RLIMIT_DATA, RLIMIT_VMEM

if TYPE_CHECKING:
    from dfvm.vm.vmspace import Vmspace


def vm_brk(vmspace: Vmspace, addr: int) -> int:
    """Move the end of the data segment to `addr`, of the space of the current process.

    :return: KERN_INVALID_ARGUMENT below the start of the segment, KERN_NO_SPACE beyond
        RLIMIT_DATA or RLIMIT_VMEM, or where something else is mapped. May block.
    """
    map = vmspace.vm_map
    p = map.vm.curproc()
    base = vmspace.vm_daddr
    if addr < base:
        return KERN_INVALID_ARGUMENT
    old = round_page(base + vmspace.vm_dsize)
    new = round_page(addr)
    if new > old:
        if p is not None and (
            addr - base > p.p_rlimit(RLIMIT_DATA) or map.size + new - old > p.p_rlimit(RLIMIT_VMEM)
        ):
            return KERN_NO_SPACE
        rv, _ = vm_map_find(
            map,
            None,
            0,
            old,
            new - old,
            PAGE_SIZE,
            False,
            VM_MAPTYPE_NORMAL,
            VM_SUBSYS_BRK,
            VM_PROT_READ | VM_PROT_WRITE,
            VM_PROT_ALL,
            0,
        )
        if rv != KERN_SUCCESS:
            return KERN_NO_SPACE
        if map.flags & MAP_FUTUREONFAULT:
            vm_map_mark(map, old, new, 0, MAP_ENTRY_WIREONFAULT)
        elif map.flags & MAP_WIREFUTURE:
            vm_map_user_wiring(map, old, new, False)
    elif new < old:
        vm_map_remove(map, new, old)
    vmspace.vm_dsize = addr - base
    return KERN_SUCCESS
