"""Kernel memory, mmap and brk."""

from __future__ import annotations

import pytest

from dfvm.lwkt.panic import Panic
from dfvm.vm.pmap import pmap_extract
from dfvm.vm.vm import (
    KERN_INVALID_ARGUMENT,
    KERN_NO_SPACE,
    KERN_SUCCESS,
    VM_INHERIT_COPY,
    VM_INHERIT_SHARE,
    VM_MEMATTR_WRITE_COMBINING,
    VM_PROT_ALL,
    VM_PROT_READ,
    VM_SUBSYS_BRK,
    VM_SUBSYS_KMALLOC,
    VM_SUBSYS_MMAP,
    VM_SUBSYS_PIPE,
    VM_SUBSYS_PROC,
    VM_SUBSYS_SHMEM,
)
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_kern import (
    KM_STACK,
    kcopyin,
    kcopyout,
    kmem_alloc,
    kmem_alloc3,
    kmem_alloc_attr,
    kmem_alloc_pageable,
    kmem_alloc_wait,
    kmem_free,
    kmem_free_wakeup,
    kmem_suballoc,
    kva_to_pa,
)
from dfvm.vm.vm_map import (
    MAP_ENTRY_NEEDS_COPY,
    MAP_WIREFUTURE,
    VM_MAPTYPE_SUBMAP,
)
from dfvm.vm.vm_map_wire import KM_PAGEABLE
from dfvm.vm.vm_mmap import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, vm_mmap
from dfvm.vm.vm_page import PHYS_TO_VM_PAGE, VmPage
from dfvm.vm.vm_param import (
    DMAP_MIN_ADDRESS,
    VM_MAX_KERNEL_ADDRESS,
    VM_MIN_KERNEL_ADDRESS,
)
from dfvm.vm.vm_proc import RLIMIT_DATA
from dfvm.vm.vm_unix import vm_brk
from tests.vm.map_util import RW, P, Proc, anon, entries, load, ranges, sound, store
from tests.vm.vnode_stub import StubVnode

BASE = 0x10_0000


@pytest.fixture
def proc(vm: VmSystem) -> Proc:
    proc = Proc(vm)
    proc.p_vmspace.vm_taddr = proc.p_vmspace.vm_daddr = 0x4000_0000
    return proc


def page_at(vm: VmSystem, kva: int) -> VmPage:
    pa = pmap_extract(vm.kernel_pmap, kva)
    assert pa is not None
    m = PHYS_TO_VM_PAGE(vm, pa)
    assert m is not None
    return m


# --- KERN-1 ---


@pytest.mark.spec("KERN-1")
def test_kmem_alloc_is_wired_mapped_and_zero(vm: VmSystem) -> None:
    free = vm.gd.gd_vmstats.v_free_count
    addr = kmem_alloc(vm.kernel_map, 3 * P - 5, VM_SUBSYS_KMALLOC)
    assert VM_MIN_KERNEL_ADDRESS <= addr < VM_MAX_KERNEL_ADDRESS
    for kva in range(addr, addr + 3 * P, P):
        m = page_at(vm, kva)
        assert m.wire_count == 1 and m.object is vm.kernel_object and m.pindex == kva >> 12
    assert kcopyin(vm, addr, 3 * P) == bytes(3 * P)
    data = bytes(range(256)) * 40
    kcopyout(vm, addr + 100, data)
    assert kcopyin(vm, addr + 100, len(data)) == data
    sound(vm.kernel_map)
    kmem_free(vm.kernel_map, addr, 3 * P)
    assert pmap_extract(vm.kernel_pmap, addr) is None
    sound(vm.kernel_map)
    # The kernel keeps its page table.
    again = kmem_alloc(vm.kernel_map, 3 * P, VM_SUBSYS_KMALLOC)
    assert again == addr and kcopyin(vm, addr, 3 * P) == bytes(3 * P)
    kmem_free(vm.kernel_map, addr, 3 * P)
    assert free - vm.gd.gd_vmstats.v_free_count <= 2
    assert vm.kernel_pmap.pm_stats.wired_count == 0


@pytest.mark.spec("KERN-1")
def test_a_kernel_stack_has_a_guard_page(vm: VmSystem) -> None:
    addr = kmem_alloc3(vm.kernel_map, 5 * P, VM_SUBSYS_PROC, KM_STACK)
    assert pmap_extract(vm.kernel_pmap, addr) is None
    assert all(pmap_extract(vm.kernel_pmap, addr + i * P) is not None for i in range(1, 5))
    with pytest.raises(Panic, match="guard"):
        kcopyout(vm, addr + P - 1, b"overflow")
    sound(vm.kernel_map)


@pytest.mark.spec("KERN-1")
def test_freeing_a_kernel_stack_gives_its_pages_back(vm: VmSystem) -> None:
    kmem_free(vm.kernel_map, kmem_alloc3(vm.kernel_map, 5 * P, VM_SUBSYS_PROC, KM_STACK), 5 * P)
    free, wired = vm.gd.gd_vmstats.v_free_count, vm.gd.gd_vmstats.v_wire_count
    for _ in range(50):
        addr = kmem_alloc3(vm.kernel_map, 5 * P, VM_SUBSYS_PROC, KM_STACK)
        kmem_free(vm.kernel_map, addr, 5 * P)
    assert (vm.gd.gd_vmstats.v_free_count, vm.gd.gd_vmstats.v_wire_count) == (free, wired)
    sound(vm.kernel_map)


@pytest.mark.spec("KERN-1")
def test_pageable_kernel_memory_comes_with_the_first_touch(vm: VmSystem) -> None:
    addr = kmem_alloc3(vm.kernel_map, 4 * P, VM_SUBSYS_KMALLOC, KM_PAGEABLE)
    assert pmap_extract(vm.kernel_pmap, addr) is None
    kcopyout(vm, addr + P - 2, b"abcd")
    assert kcopyin(vm, addr + P - 4, 8) == b"\0\0abcd\0\0"
    m = page_at(vm, addr)
    assert m.wire_count == 0 and m.object is not vm.kernel_object
    sound(vm.kernel_map)
    kmem_free(vm.kernel_map, addr, 4 * P)
    sound(vm.kernel_map)


@pytest.mark.spec("KERN-1")
def test_kmem_alloc_attr(vm: VmSystem) -> None:
    low, high = 0x40_0000, 0x80_0000
    addr = kmem_alloc_attr(
        vm.kernel_map, 4 * P, VM_SUBSYS_KMALLOC, low, high, 0x1_0000, VM_MEMATTR_WRITE_COMBINING
    )
    assert addr and addr % 0x1_0000 == 0
    for kva in range(addr, addr + 4 * P, P):
        m = page_at(vm, kva)
        assert low <= m.phys_addr < high and m.wire_count == 1
        assert m.pat_mode == VM_MEMATTR_WRITE_COMBINING
    free = vm.gd.gd_vmstats.v_free_count
    none = kmem_alloc_attr(vm.kernel_map, P, VM_SUBSYS_KMALLOC, 1 << 40, 1 << 41, P, 6)
    assert none == 0 and vm.gd.gd_vmstats.v_free_count == free
    kmem_free(vm.kernel_map, addr, 4 * P)
    assert vm.gd.gd_vmstats.v_free_count == free + 4
    sound(vm.kernel_map)


@pytest.mark.spec("KERN-1")
def test_no_room_in_the_kernel_map(vm: VmSystem) -> None:
    size = VM_MAX_KERNEL_ADDRESS - VM_MIN_KERNEL_ADDRESS
    assert kmem_alloc_pageable(vm.kernel_map, size + P, VM_SUBSYS_KMALLOC) == 0
    addr = kmem_alloc_pageable(vm.kernel_map, size, VM_SUBSYS_KMALLOC)
    assert addr == VM_MIN_KERNEL_ADDRESS
    assert kmem_alloc(vm.kernel_map, P, VM_SUBSYS_KMALLOC) == 0
    # Addresses only: there is no memory, and a touch is a bug.
    with pytest.raises(Panic):
        kva_to_pa(vm, addr)


def test_the_direct_map_needs_no_fault(vm: VmSystem) -> None:
    assert kva_to_pa(vm, DMAP_MIN_ADDRESS + 0x1234) == 0x1234
    with pytest.raises(Panic, match="cannot be resolved"):
        kva_to_pa(vm, VM_MIN_KERNEL_ADDRESS)


# --- MAP-15: submaps ---


@pytest.mark.spec("MAP-15")
def test_a_submap_has_its_own_room(vm: VmSystem) -> None:
    submap = kmem_suballoc(vm.kernel_map, 16 * P)
    (entry,) = vm.kernel_map
    assert entry.maptype == VM_MAPTYPE_SUBMAP and entry.sub_map is submap
    assert (submap.min_addr, submap.max_addr) == (entry.ba.start, entry.ba.end)
    addr = kmem_alloc_wait(submap, 3 * P, VM_SUBSYS_PIPE)
    assert addr == submap.min_addr
    kcopyout(vm, addr + P - 1, b"pipe")
    assert kcopyin(vm, addr + P - 1, 4) == b"pipe"
    assert entries(submap)[0].ba.object is not None
    sound(vm.kernel_map, submap)
    kmem_free_wakeup(submap, addr, 3 * P)
    assert submap.nentries == 0
    assert kmem_alloc_wait(submap, 17 * P, VM_SUBSYS_PIPE) == 0
    outside = kmem_alloc(vm.kernel_map, P, VM_SUBSYS_KMALLOC)
    assert not submap.min_addr <= outside < submap.max_addr


@pytest.mark.spec("MAP-15")
def test_who_finds_no_room_waits_for_it(vm: VmSystem) -> None:
    submap = kmem_suballoc(vm.kernel_map, 4 * P)
    first = kmem_alloc_wait(submap, 3 * P, VM_SUBSYS_PROC)
    log: list[object] = []

    def waiter() -> None:
        log.append(kmem_alloc_wait(submap, 2 * P, VM_SUBSYS_PROC))

    def freer() -> None:
        log.append("free")
        kmem_free_wakeup(submap, first, 3 * P)

    vm.sched.create(waiter, name="waiter")
    vm.sched.create(freer, name="freer")
    vm.sched.run()
    assert log == ["free", first]
    sound(submap, vm.kernel_map)


# --- mmap ---


def mmap(
    proc: Proc, addr: int, size: int, flags: int, vp: StubVnode | None = None, foff: int = 0
) -> int:
    return vm_mmap(proc.map, addr, size, RW, VM_PROT_ALL, flags, vp, foff)


def test_mmap_of_memory(proc: Proc) -> None:
    assert mmap(proc, BASE, 5 * P, MAP_PRIVATE) == KERN_SUCCESS
    assert mmap(proc, BASE + 5 * P, P, MAP_SHARED, None, 7 * P) == KERN_SUCCESS
    private, shared = proc.map
    assert (private.inheritance, shared.inheritance) == (VM_INHERIT_COPY, VM_INHERIT_SHARE)
    assert private.ba.object is None and shared.ba.object is not None
    assert (private.id, shared.id) == (VM_SUBSYS_MMAP, VM_SUBSYS_SHMEM)
    assert shared.ba.offset == 0  # that of a file means nothing here
    sound(proc.map)


def test_mmap_fixed_replaces_and_others_do_not(proc: Proc) -> None:
    anon(proc.map, BASE, 4)
    store(proc.map, BASE + P, 7)
    assert mmap(proc, BASE + P, P, MAP_PRIVATE) == KERN_NO_SPACE
    assert load(proc.map, BASE + P) == 7
    assert mmap(proc, BASE + P, P, MAP_PRIVATE | MAP_FIXED) == KERN_SUCCESS
    assert load(proc.map, BASE + P) == 0
    sound(proc.map)


def test_mmap_of_files(vm: VmSystem, proc: Proc) -> None:
    vp = StubVnode(b"A" * P + b"B" * P)
    private, shared = BASE, BASE + 16 * P
    assert mmap(proc, private, 2 * P, MAP_PRIVATE, vp) == KERN_SUCCESS
    assert mmap(proc, shared, P, MAP_SHARED, vp, P) == KERN_SUCCESS
    assert vp.refs == 3
    first, second = proc.map
    assert first.eflags & MAP_ENTRY_NEEDS_COPY and not second.eflags
    assert load(proc.map, private) == 65 and load(proc.map, shared) == 66
    store(proc.map, shared, 90)
    assert load(proc.map, private + P) == 90
    store(proc.map, private + P, 91)
    assert load(proc.map, shared) == 90
    assert mmap(proc, BASE, P, MAP_PRIVATE, vp) == KERN_NO_SPACE and vp.refs == 3
    sound(proc.map)


# --- brk ---


@pytest.mark.spec("MAP-12")
def test_what_brk_adds_under_wirefuture_is_wired(proc: Proc) -> None:
    proc.map.flags |= MAP_WIREFUTURE
    proc.p_vmspace.vm_daddr = 0x50_0000
    assert vm_brk(proc.p_vmspace, 0x50_0000 + P) == KERN_SUCCESS
    assert entries(proc.map)[0].wired_count == 1
    sound(proc.map)


def test_brk(proc: Proc) -> None:
    space, base = proc.p_vmspace, 0x50_0123
    space.vm_daddr = base
    top = 0x50_1000
    assert vm_brk(space, base + 10) == KERN_SUCCESS
    assert proc.map.nentries == 0 and space.vm_dsize == 10
    assert vm_brk(space, top + 1) == KERN_SUCCESS
    assert ranges(proc.map) == [(top, top + P)]
    assert entries(proc.map)[0].id == VM_SUBSYS_BRK
    assert entries(proc.map)[0].protection == RW
    store(proc.map, top, 5)
    assert vm_brk(space, top + 3 * P) == KERN_SUCCESS
    assert ranges(proc.map) == [(top, top + 3 * P)] and load(proc.map, top) == 5
    assert vm_brk(space, top) == KERN_SUCCESS
    assert proc.map.nentries == 0
    assert vm_brk(space, base - 1) == KERN_INVALID_ARGUMENT
    proc.limits[RLIMIT_DATA] = 4 * P
    assert vm_brk(space, base + 4 * P + 1) == KERN_NO_SPACE
    assert vm_brk(space, base + 4 * P) == KERN_SUCCESS
    assert load(proc.map, top) == 0
    anon(proc.map, top + 8 * P, 1, VM_PROT_READ)
    proc.limits.clear()
    assert vm_brk(space, top + 9 * P) == KERN_NO_SPACE
    assert space.vm_dsize == 4 * P
    sound(proc.map)
