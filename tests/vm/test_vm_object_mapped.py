"""Objects and files under real maps and page tables: what a program that maps a file sees of
write(2), truncation, msync and reclaim, and they of what it stores. The CPU is played by `poke` and
`peek`, which walk the PTEs and set A and D as it would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfvm.machine.pte import PG_A, PG_FRAME, PG_M, PG_RW, PG_V
from dfvm.vm.pager.vnode_pager import vnode_pager_object, vnode_pager_reclaim, vnode_pager_setsize
from dfvm.vm.pmap import pmap_pte
from dfvm.vm.pmap_check import pmap_check
from dfvm.vm.vm import (
    KERN_FAILURE,
    KERN_SUCCESS,
    VM_INHERIT_SHARE,
    VM_PROT_ALL,
    VM_PROT_READ,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_fault import VM_FAULT_NORMAL, vm_fault
from dfvm.vm.vm_map import vm_map_findspace, vm_map_inherit, vm_map_protect, vm_map_remove
from dfvm.vm.vm_map_check import vm_map_check
from dfvm.vm.vm_mmap import MAP_PRIVATE, MAP_SHARED, vm_mmap
from dfvm.vm.vm_object import (
    MADV_FREE,
    OBJ_MIGHTBEDIRTY,
    OBJ_ONEMAPPING,
    OBJ_WRITEABLE,
    OBJPC_SYNC,
    VmObject,
    vm_object_madvise,
    vm_object_page_clean,
    vm_object_page_remove,
)
from dfvm.vm.vm_object_check import vm_object_check
from dfvm.vm.vm_page import VM_PAGE_BITS_ALL
from dfvm.vm.vm_page_check import vm_page_check
from dfvm.vm.vm_pageout import vm_pageout_reclaim
from dfvm.vm.vmspace import vmspace_fork
from tests.vm.map_util import Proc
from tests.vm.vnode_stub import StubVnode

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map import VmMap

PAGE = 4096
RW = VM_PROT_READ | VM_PROT_WRITE


def access(map: VmMap, va: int, write: bool) -> int | None:
    """The physical address behind `va` after an access by the CPU; None when it is a signal."""
    vm = map.vm
    need = PG_V | PG_RW if write else PG_V
    for _ in range(4):
        pte = pmap_pte(map.pmap, va)
        if pte & need == need:
            base = map.pmap.pm_pt[va >> 21]
            vm.ram.q[base + (va >> 12 & 511)] = pte | PG_A | (PG_M if write else 0)
            return (pte & PG_FRAME) + va % PAGE
        kind = VM_PROT_WRITE if write else VM_PROT_READ
        if vm_fault(map, va & -PAGE, kind, VM_FAULT_NORMAL) != KERN_SUCCESS:
            return None
    raise AssertionError("the fault does not end")


def peek(map: VmMap, va: int, n: int = 1) -> bytes | None:
    pa = access(map, va, False)
    return None if pa is None else bytes(map.vm.ram.mem[pa : pa + n])


def poke(map: VmMap, va: int, data: bytes) -> bool:
    pa = access(map, va, True)
    if pa is not None:
        map.vm.ram.mem[pa : pa + len(data)] = data
    return pa is not None


def mmap(map: VmMap, vp: StubVnode | None, size: int, shared: bool, prot: int = RW) -> int:
    addr = vm_map_findspace(map, 0, size, PAGE)
    assert addr is not None
    flags = MAP_SHARED if shared else MAP_PRIVATE
    assert vm_mmap(map, addr, size, prot, VM_PROT_ALL, flags, vp, 0) == KERN_SUCCESS
    return addr


def sound(vm: VmSystem, *maps: VmMap) -> None:
    assert vm_object_check(vm) == []
    assert vm_page_check(vm) == []
    for map in maps:
        assert vm_map_check(map) == []
        assert pmap_check(map.pmap, map) == []


def mappings(object: VmObject) -> list[tuple[int, int]]:
    return [(ba.start, ba.end) for ba in object.backing_list]


@pytest.mark.spec("OBJ-5")
def test_backing_list_has_every_mapping(vm: VmSystem, proc: Proc) -> None:
    map = proc.map
    vp = StubVnode(bytes(range(256)) * 64)
    object = vnode_pager_object(vm, vp)
    a = mmap(map, vp, 4 * PAGE, shared=True)
    b = mmap(map, vp, 2 * PAGE, shared=False)
    assert mappings(object) == [(a, a + 4 * PAGE), (b, b + 2 * PAGE)]
    assert (object.ref_count, vp.refs) == (2, 3)

    # A page finds its PTEs by it, whichever mapping they belong to.
    assert peek(map, a + PAGE) == peek(map, b + PAGE) == b"\0"
    m = object.rb_memq[1]
    assert pmap_pte(map.pmap, a + PAGE) and pmap_pte(map.pmap, b + PAGE)
    vm_object_page_remove(object, 1, 2, False)
    assert not pmap_pte(map.pmap, a + PAGE) and not pmap_pte(map.pmap, b + PAGE)
    assert m.object is None
    sound(vm, map)

    # Elements behind the first are in it, too; fork adds its own; unmapping takes them out.
    assert poke(map, b, b"private")
    child = vmspace_fork(proc.p_vmspace)
    # (only what the child inherits by copying, or shares)
    assert len(object.backing_list) == 4
    assert {ba.pmap for ba in object.backing_list} == {map.pmap, child.vm_map.pmap}
    sound(vm, map, child.vm_map)
    vm_map_remove(map, a, a + 4 * PAGE)
    assert len(object.backing_list) == 3
    vm_map_remove(map, b, b + 2 * PAGE)
    assert len(object.backing_list) == 2
    vm_map_remove(child.vm_map, 0, 1 << 47)
    assert mappings(object) == []
    assert (object.ref_count, vp.refs) == (0, 1)
    sound(vm, map, child.vm_map)


@pytest.mark.spec("OBJ-1")
@pytest.mark.spec("OBJ-5")
def test_onemapping_ends_with_a_second_mapping(vm: VmSystem, proc: Proc) -> None:
    addr = mmap(proc.map, None, 4 * PAGE, shared=True)
    vm_map_inherit(proc.map, addr, addr + 4 * PAGE, VM_INHERIT_SHARE)
    assert poke(proc.map, addr, b"x")
    (object,) = {e.ba.object for e in proc.map}
    assert object is not None
    assert object.flags & OBJ_ONEMAPPING
    child = vmspace_fork(proc.p_vmspace)
    assert not object.flags & OBJ_ONEMAPPING
    assert object.ref_count == len(object.backing_list) == 2
    assert peek(child.vm_map, addr) == b"x"
    sound(vm, proc.map, child.vm_map)


@pytest.mark.spec("OBJ-6")
@pytest.mark.spec("PAGER-4")
def test_cleaning_takes_the_right_to_write(vm: VmSystem, proc: Proc) -> None:
    map = proc.map
    vp = StubVnode(b"." * (3 * PAGE))
    object = vnode_pager_object(vm, vp)
    addr = mmap(map, vp, 3 * PAGE, shared=True)
    assert peek(map, addr + PAGE, 3) == b"..."
    assert poke(map, addr + PAGE + 5, b"one")
    assert object.flags & OBJ_MIGHTBEDIRTY
    assert pmap_pte(map.pmap, addr + PAGE) & (PG_RW | PG_M)
    assert vm_object_page_clean(object, 0, 0, OBJPC_SYNC) == 0
    assert vp.storage[PAGE + 5 : PAGE + 8] == b"one"
    assert [off for off, _ in vp.writes] == [PAGE]
    # It can still read, and the next store is noticed.
    pte = pmap_pte(map.pmap, addr + PAGE)
    assert pte & PG_V and not pte & (PG_RW | PG_M)
    assert not object.flags & (OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY)
    assert object.rb_memq[1].dirty == 0
    sound(vm, map)
    assert vm_object_page_clean(object, 0, 0, OBJPC_SYNC) == 0
    assert len(vp.writes) == 1
    assert poke(map, addr + PAGE + 5, b"two")
    assert vm_object_page_clean(object, 1, 2, OBJPC_SYNC) == 0
    assert vp.storage[PAGE + 5 : PAGE + 8] == b"two"
    sound(vm, map)


@pytest.mark.spec("OBJ-6")
def test_a_mark_outlives_the_right_to_write(vm: VmSystem, proc: Proc) -> None:
    """mprotect leaves D in the PTE. The page is written once, and not at every cleaning."""
    map = proc.map
    vp = StubVnode(b"." * PAGE)
    object = vnode_pager_object(vm, vp)
    addr = mmap(map, vp, PAGE, shared=True)
    assert poke(map, addr, b"late")
    assert vm_map_protect(map, addr, addr + PAGE, VM_PROT_READ, False) == KERN_SUCCESS
    for _ in range(2):
        object.flags |= OBJ_MIGHTBEDIRTY
        assert vm_object_page_clean(object, 0, 0, OBJPC_SYNC) == 0
        assert not object.flags & OBJ_MIGHTBEDIRTY
    assert vp.writes == [(0, PAGE)]
    assert vp.storage.startswith(b"late")
    sound(vm, map)


@pytest.mark.spec("PAGER-4")
def test_truncation_under_a_mapping(vm: VmSystem, proc: Proc) -> None:
    map = proc.map
    vp = StubVnode(b"." * (4 * PAGE))
    shared = mmap(map, vp, 4 * PAGE, shared=True)
    private = mmap(map, vp, 4 * PAGE, shared=False)
    for i in range(4):
        assert poke(map, shared + i * PAGE, b"%d" % i)
        assert peek(map, private + i * PAGE) == b"%d" % i
    assert poke(map, private + 3 * PAGE, b"P")
    vnode_pager_setsize(vp, PAGE + 10)
    del vp.storage[PAGE + 10 :]
    # Gone for every mapping of the file, with SIGBUS from now on …
    assert peek(map, shared) == peek(map, private) == b"0"
    assert peek(map, shared + PAGE, 12) == b"1" + b"." * 9 + b"\0\0"
    for page in (shared + 2 * PAGE, shared + 3 * PAGE, private + 2 * PAGE):
        assert peek(map, page) is None
        assert vm_fault(map, page, VM_PROT_READ, VM_FAULT_NORMAL) == KERN_FAILURE
    # … but not a private copy.
    assert peek(map, private + 3 * PAGE) == b"P"
    sound(vm, map)
    # Memory behind the end in the last page is there, and nobody else's.
    assert poke(map, shared + PAGE + 100, b"scribble")
    vm_object_page_clean(vnode_pager_object(vm, vp), 0, 0, OBJPC_SYNC)
    assert len(vp.storage) == PAGE + 10
    # The file comes back longer: zeros.
    vnode_pager_setsize(vp, 3 * PAGE)
    assert peek(map, shared + PAGE + 100, 8) == bytes(8)
    assert peek(map, shared + 2 * PAGE) == b"\0"
    assert peek(map, private + 2 * PAGE) == b"\0"
    sound(vm, map)


@pytest.mark.spec("PAGER-4")
def test_a_read_error_is_a_failed_fault(vm: VmSystem, proc: Proc) -> None:
    vp = StubVnode(b"." * (4 * PAGE))
    vp.bad = {2 * PAGE}
    addr = mmap(proc.map, vp, 4 * PAGE, shared=True)
    assert peek(proc.map, addr) == b"."
    assert peek(proc.map, addr + 2 * PAGE) is None
    vp.bad = set()
    assert peek(proc.map, addr + 2 * PAGE) == b"."
    sound(vm, proc.map)


@pytest.mark.spec("OBJ-9")
def test_madvise_free_of_mapped_memory(vm: VmSystem, proc: Proc) -> None:
    map = proc.map
    addr = mmap(map, None, 2 * PAGE, shared=False)
    assert poke(map, addr, b"x")
    (object,) = {e.ba.object for e in map}
    assert object is not None
    vm_object_madvise(object, 0, 2, MADV_FREE)
    m = object.rb_memq[0]
    pte = pmap_pte(map.pmap, addr)
    assert (m.dirty, pte & PG_M, pte & PG_RW) == (0, 0, PG_RW)
    # Touched again it is like any other memory, without a fault …
    assert poke(map, addr, b"y")
    vm_pageout_reclaim(vm, 100)
    assert peek(map, addr) == b"y"
    assert object.rb_memq[0] is m
    # … and idle it goes without I/O.
    vm_object_madvise(object, 0, 2, MADV_FREE)
    vm_pageout_reclaim(vm, 100)
    assert 0 not in object.rb_memq
    assert peek(map, addr) == b"\0"
    sound(vm, map)


@pytest.mark.spec("PAGER-4")
def test_reclaim_writes_what_is_dirty_and_reads_it_back(vm: VmSystem, proc: Proc) -> None:
    map = proc.map
    size = 64 * PAGE
    vp = StubVnode(b"." * size)
    object = vnode_pager_object(vm, vp)
    addr = mmap(map, vp, size, shared=True)
    for i in range(0, 64, 3):
        assert poke(map, addr + i * PAGE, b"%02d" % i)
    for _ in range(4):
        vm_pageout_reclaim(vm, 1000)
    sound(vm, map)
    assert not any(m.dirty for m in object.rb_memq.values())
    vm_object_page_remove(object, 0, 0, True)
    assert object.rb_memq == {}
    for i in range(64):
        assert peek(map, addr + i * PAGE, 2) == (b"%02d" % i if i % 3 == 0 else b"..")
    sound(vm, map)


@pytest.mark.spec("OBJ-2")
@pytest.mark.spec("OBJ-3")
def test_the_end_of_a_space_ends_its_objects(vm: VmSystem, proc: Proc) -> None:
    map = proc.map
    free = vm.gd.gd_vmstats.v_free_count
    objects = sum(map_ is not None for bucket in vm.object_hash for map_ in bucket)
    vp = StubVnode(b"." * (4 * PAGE))
    shared = mmap(map, vp, 4 * PAGE, shared=True)
    private = mmap(map, vp, 4 * PAGE, shared=False)
    anon = mmap(map, None, 40 * PAGE, shared=False)
    assert poke(map, shared, b"1") and poke(map, private, b"2") and poke(map, anon + PAGE, b"3")
    m = vnode_pager_object(vm, vp).rb_memq[0]
    vm_map_remove(map, 0, 1 << 47)
    assert vp.refs == 1
    # The store is remembered although its PTE is gone; the file has it when the vnode goes.
    assert m.dirty == VM_PAGE_BITS_ALL
    sound(vm, map)
    vnode_pager_reclaim(vp)
    assert vp.storage[:2] == b"1."
    assert sum(map_ is not None for bucket in vm.object_hash for map_ in bucket) == objects
    assert vm.gd.gd_vmstats.v_free_count == free
    sound(vm, map)
