"""Kernel memory: addresses in kernel_map, with or without pages.

    kmem_alloc3, kmem_alloc   wired, zeroed pages of kernel_object: page n of it is the page at
                              address n << 12, so no two allocations meet. With KM_PAGEABLE, memory
                              of an object of its own that comes with the first touch
    kmem_alloc_attr           wired pages from a part of RAM, with a memory attribute
    kmem_alloc_pageable       addresses only (in kernel_map), or pageable memory (in a submap)
    kmem_alloc_wait           pageable memory from a submap; waits until there is room

The kernel's own code is Python and reaches RAM by physical address; kva_to_pa, kcopyin and kcopyout
are for what it keeps at kernel addresses. The page tables are real all the same.

Source: DragonFly sys/vm/vm_kern.c, sys/vm/vm_kern.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.machine.pte import PG_A, PG_FRAME, PG_M, PG_RW, PG_V
from dfvm.vm.pmap import pmap_enter, pmap_extract, pmap_page_set_memattr
from dfvm.vm.vm import (
    KERN_RESOURCE_SHORTAGE,
    KERN_SUCCESS,
    VM_MEMATTR_DEFAULT,
    VM_PROT_ALL,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_SYSMAP,
)
from dfvm.vm.vm_fault import VM_FAULT_NORMAL, vm_fault
from dfvm.vm.vm_map_clip import vm_map_lookup_entry
from dfvm.vm.vm_map_entry import (
    MAP_IS_KSTACK,
    VM_MAPTYPE_NORMAL,
    VM_MAPTYPE_UNSPECIFIED,
    VmMap,
    vm_map_lock,
    vm_map_unlock,
)
from dfvm.vm.vm_map_insert import (
    vm_map_delete,
    vm_map_find,
    vm_map_insert,
    vm_map_remove,
    vm_map_submap,
)
from dfvm.vm.vm_map_space import vm_map_findspace
from dfvm.vm.vm_map_wire import KM_PAGEABLE
from dfvm.vm.vm_object import (
    OBJT_DEFAULT,
    vm_object_allocate,
    vm_object_deallocate,
    vm_object_drop,
    vm_object_hold,
    vm_object_reference_quick,
)
from dfvm.vm.vm_page import (
    VM_ALLOC_NORMAL,
    VM_ALLOC_ZERO,
    VM_PAGE_BITS_ALL,
    vm_no_memory,
    vm_page_alloc,
    vm_page_free,
    vm_page_insert,
    vm_page_wakeup,
    vm_page_wire,
    vm_wait,
)
from dfvm.vm.vm_param import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_MAX_KERNEL_ADDRESS,
    VM_MIN_KERNEL_ADDRESS,
    round_page,
    trunc_page,
)

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_page import VmPage

KM_STACK: Final = 0x0004  # a kernel stack: the first page is a guard and gets no memory

_WIRED: Final = VM_ALLOC_NORMAL | VM_ALLOC_ZERO


def kmem_init(vm: VmSystem) -> None:
    """Boot: vm.kernel_map, empty."""
    map = VmMap(vm, VM_MIN_KERNEL_ADDRESS, VM_MAX_KERNEL_ADDRESS, vm.kernel_pmap)
    map.system_map = True
    vm.kernel_map = map


def kmem_suballoc(parent: VmMap, size: int) -> VmMap:
    """A submap of `size` bytes: what is allocated there comes out of its own addresses, and is
    pageable. For ever."""
    size = round_page(size)
    rv, addr = vm_map_find(
        parent,
        None,
        0,
        parent.min_addr,
        size,
        PAGE_SIZE,
        True,
        VM_MAPTYPE_UNSPECIFIED,
        VM_SUBSYS_SYSMAP,
        VM_PROT_ALL,
        VM_PROT_ALL,
        0,
    )
    if rv != KERN_SUCCESS:
        panic(f"kmem_suballoc: no room for {size:#x} bytes: {rv}")
    submap = VmMap(parent.vm, addr, addr + size, parent.pmap)
    if vm_map_submap(parent, addr, addr + size, submap) != KERN_SUCCESS:
        panic("kmem_suballoc: unable to change range to submap")
    return submap


def kmem_alloc(map: VmMap, size: int, id: int) -> int:
    """kmem_alloc3 without more ado."""
    return kmem_alloc3(map, size, id, 0)


def kmem_alloc3(map: VmMap, size: int, id: int, kmflags: int) -> int:
    """Allocate kernel memory of `size` bytes: wired, mapped and zero, or as KM_* in `kmflags`
    say. Returns its address, 0 if there is no room. May block for memory; if there is none and the
    process is being killed for it, that is 0, too."""
    size = round_page(size)
    if kmflags & KM_PAGEABLE:
        return _alloc_pageable_object(map, size, id)
    addr = _reserve(map, size, id, MAP_IS_KSTACK if kmflags & KM_STACK else 0)
    if addr == 0:
        return 0
    vm = map.vm
    obj = vm.kernel_object
    vm_object_hold(obj)
    for va in range(addr + (PAGE_SIZE if kmflags & KM_STACK else 0), addr + size, PAGE_SIZE):
        while (m := vm_page_alloc(vm, obj, va >> PAGE_SHIFT, _WIRED)) is None:
            if not vm_wait(vm, 0):
                vm_object_drop(obj)
                kmem_free(map, addr, size)
                return 0
        _enter(map, va, m)
    vm_object_drop(obj)
    return addr


def _reserve(map: VmMap, size: int, id: int, cow: int) -> int:
    """Addresses for wired memory of kernel_object; the caller puts the pages in, so the entry
    counts as wired from the start."""
    obj = map.vm.kernel_object
    vm_map_lock(map)
    addr = vm_map_findspace(map, map.min_addr, size, PAGE_SIZE)
    if addr is None:
        vm_map_unlock(map)
        return 0
    vm_object_reference_quick(obj)
    rv = vm_map_insert(
        map,
        obj,
        addr,
        addr,
        addr + size,
        VM_MAPTYPE_NORMAL,
        id,
        VM_PROT_ALL,
        VM_PROT_ALL,
        cow,
    )
    if rv != KERN_SUCCESS:
        panic(f"kmem_alloc: {addr:#x} was free and can't be mapped: {rv}")
    _, entry = vm_map_lookup_entry(map, addr)
    assert entry is not None
    entry.wired_count = 1
    vm_map_unlock(map)
    return addr


def _enter(map: VmMap, va: int, m: VmPage) -> None:
    """Wire and map a busy page of kernel_object, and unbusy it."""
    m.valid = VM_PAGE_BITS_ALL
    vm_page_wire(map.vm, m)
    pmap_enter(map.pmap, va, m, VM_PROT_ALL, True, None)
    vm_page_wakeup(map.vm, m)


def _alloc_pageable_object(map: VmMap, size: int, id: int) -> int:
    obj = vm_object_allocate(map.vm, OBJT_DEFAULT, size >> PAGE_SHIFT)
    rv, addr = vm_map_find(
        map,
        obj,
        0,
        map.min_addr,
        size,
        PAGE_SIZE,
        True,
        VM_MAPTYPE_NORMAL,
        id,
        VM_PROT_ALL,
        VM_PROT_ALL,
        0,
    )
    if rv != KERN_SUCCESS:
        vm_object_deallocate(obj)
        return 0
    return addr


def kmem_alloc_attr(
    map: VmMap, size: int, id: int, low: int, high: int, alignment: int, memattr: int
) -> int:
    """Wired, zeroed memory at a multiple of `alignment`, each page with low <= its physical
    address < high and memory attribute `memattr`. Returns its address, 0 if there is no room or
    no such page is free. Does not wait for memory."""
    size = round_page(size)
    vm = map.vm
    pages = _alloc_in_range(vm, size >> PAGE_SHIFT, low, high)
    if pages is None:
        return 0
    addr = _reserve(map, size, id, 0)
    if addr == 0:
        for m in pages:
            vm_page_free(vm, m)
        return 0
    obj = vm.kernel_object
    vm_object_hold(obj)
    for i, m in enumerate(pages):
        va = addr + (i << PAGE_SHIFT)
        vm_page_insert(m, obj, va >> PAGE_SHIFT)
        if memattr != VM_MEMATTR_DEFAULT:
            pmap_page_set_memattr(vm, m, memattr)
        _enter(map, va, m)
    vm_object_drop(obj)
    return addr


def _alloc_in_range(vm: VmSystem, count: int, low: int, high: int) -> list[VmPage] | None:
    """`count` busy pages without an object in a part of RAM. The free queues go by colour and not
    by address, so what lies elsewhere is set aside until enough has been found."""
    found: list[VmPage] = []
    aside: list[VmPage] = []
    color = 0
    while len(found) < count:
        m = vm_page_alloc(vm, None, color, _WIRED)
        if m is None:
            break
        (found if low <= m.phys_addr < high else aside).append(m)
        color += 1
    short = len(found) < count
    for m in aside + found if short else aside:
        vm_page_free(vm, m)
    return None if short else found


def kmem_alloc_pageable(map: VmMap, size: int, id: int) -> int:
    """Addresses in `map`. In a submap the first touch of a page brings memory; in kernel_map
    itself there is none, and the caller maps what he likes (pmap_qenter). 0 if there is no
    room."""
    size = round_page(size)
    rv, addr = vm_map_find(
        map,
        None,
        0,
        map.min_addr,
        size,
        PAGE_SIZE,
        True,
        VM_MAPTYPE_NORMAL,
        id,
        VM_PROT_ALL,
        VM_PROT_ALL,
        0,
    )
    return addr if rv == KERN_SUCCESS else 0


def kmem_alloc_wait(map: VmMap, size: int, id: int = VM_SUBSYS_SYSMAP) -> int:
    """kmem_alloc_pageable in a submap, waiting for kmem_free_wakeup while there is no room. 0 only
    if the submap is too small altogether. May block."""
    size = round_page(size)
    if size > map.max_addr - map.min_addr:
        return 0
    while (addr := kmem_alloc_pageable(map, size, id)) == 0:
        map.vm.sched.tsleep(map, 0, "kmaw", 0)
    return addr


def kmem_free(map: VmMap, addr: int, size: int) -> None:
    """Give kernel memory back, and its pages."""
    vm_map_remove(map, trunc_page(addr), round_page(addr + size))


def kmem_free_wakeup(map: VmMap, addr: int, size: int) -> None:
    """kmem_free for memory of kmem_alloc_wait: wakes those who wait for room."""
    vm_map_lock(map)
    vm_map_delete(map, trunc_page(addr), round_page(addr + size))
    map.vm.sched.wakeup(map)
    vm_map_unlock(map)


def kva_to_pa(vm: VmSystem, kva: int, write: bool = False) -> int:
    """The physical address behind a kernel address, with its memory faulted in; for `write` the
    PTE says so afterwards. A kernel address that can't be resolved is a panic.

    :raises OSError: ENOMEM if the process is being killed to free memory. May block.
    """
    pmap = vm.kernel_pmap
    base = pmap.pm_pt.get(kva >> 21)
    pte = 0 if base is None else pmap.q[base + (kva >> 12 & 511)]
    if not pte & PG_V or (write and not pte & PG_RW):
        pa = None if pte else pmap_extract(pmap, kva)
        if pa is not None:
            return pa  # the direct map
        prot = VM_PROT_READ | VM_PROT_WRITE if write else VM_PROT_READ
        rv = vm_fault(vm.kernel_map, trunc_page(kva), prot, VM_FAULT_NORMAL)
        if rv == KERN_RESOURCE_SHORTAGE:
            raise vm_no_memory()
        if rv != KERN_SUCCESS:
            panic(f"kernel access to {kva:#x} cannot be resolved: {rv}")
        base = pmap.pm_pt[kva >> 21]
        pte = pmap.q[base + (kva >> 12 & 511)]
    assert base is not None
    # What the engine's walk would have done.
    pmap.q[base + (kva >> 12 & 511)] = pte | (PG_A | PG_M if write else PG_A)
    return pte & PG_FRAME | kva & PAGE_MASK


def kcopyin(vm: VmSystem, kva: int, n: int) -> bytes:
    """`n` bytes from kernel address `kva` on. May block."""
    mem = vm.ram.mem
    parts = []
    while n > 0:
        chunk = min(n, PAGE_SIZE - (kva & PAGE_MASK))
        pa = kva_to_pa(vm, kva)
        parts.append(bytes(mem[pa : pa + chunk]))
        kva += chunk
        n -= chunk
    return b"".join(parts)


def kcopyout(vm: VmSystem, kva: int, data: bytes | memoryview) -> None:
    """Write `data` at kernel address `kva`. May block."""
    mem = vm.ram.mem
    done, n = 0, len(data)
    while done < n:
        chunk = min(n - done, PAGE_SIZE - (kva & PAGE_MASK))
        pa = kva_to_pa(vm, kva, True)
        mem[pa : pa + chunk] = data[done : done + chunk]
        kva += chunk
        done += chunk
