"""Chains at fork: what is merged, what is faulted to the front, and what has to stay."""

from __future__ import annotations

import pytest

from dfvm.vm.pager.vnode_pager import vnode_pager_alloc
from dfvm.vm.pmap import pmap_extract
from dfvm.vm.vm import KERN_SUCCESS, VM_INHERIT_SHARE
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_map import (
    MAP_COPY_ON_WRITE,
    VmMap,
    vm_map_inherit,
    vm_map_protect,
    vm_map_stack,
    vm_map_user_wiring,
)
from dfvm.vm.vm_param import SGROWSIZ
from dfvm.vm.vmspace import Vmspace, vmspace_fork, vmspace_rel
from tests.vm.map_util import RW, P, Proc, anon, chain, entries, load, ranges, show, sound, store
from tests.vm.vnode_stub import StubVnode

BASE = 0x10_0000


def depth(space: Vmspace | VmMap) -> int:
    map = space.vm_map if isinstance(space, Vmspace) else space
    return len(chain(entries(map)[0]))


def contents(map: VmMap, n: int) -> list[int]:
    return [load(map, BASE + i * P) for i in range(n)]


@pytest.mark.spec("FAULT-9")
@pytest.mark.parametrize("written", [1, 7])
def test_elements_that_nobody_else_shows_become_one(
    vm: VmSystem, proc: Proc, map: VmMap, written: int
) -> None:
    anon(map, BASE, 8)
    for i in range(8):
        store(map, BASE + i * P, i + 1)
    child = vmspace_fork(proc.p_vmspace)
    for i in range(written):
        store(map, BASE + i * P, 10 + i)
    assert depth(map) == 2
    vmspace_rel(child)
    copies = vm.gd.gd_cnt.v_cow_faults
    pages = vm.gd.gd_vmstats.v_free_count
    frames = [pmap_extract(map.pmap, BASE + i * P) for i in range(8)]
    child = vmspace_fork(proc.p_vmspace)
    assert depth(map) == depth(child) == 1
    assert vm.gd.gd_cnt.v_cow_faults == copies  # pages were moved, not copied
    assert vm.gd.gd_vmstats.v_free_count >= pages + written - 2  # less the child's tables
    expected = [10 + i if i < written else i + 1 for i in range(8)]
    assert contents(map, 8) == contents(child.vm_map, 8) == expected
    assert [pmap_extract(map.pmap, BASE + i * P) for i in range(8)] == frames
    sound(map, child.vm_map)
    vmspace_rel(child)
    sound(map)


@pytest.mark.spec("FAULT-9")
def test_forking_and_waiting_in_a_loop_costs_no_collapse(
    vm: VmSystem, proc: Proc, map: VmMap
) -> None:
    anon(map, BASE, 8)
    for i in range(8):
        store(map, BASE + i * P, 1)
    copies = vm.gd.gd_cnt.v_cow_faults
    for i in range(40):
        child = vmspace_fork(proc.p_vmspace)
        store(map, BASE + i % 8 * P, i)
        store(child.vm_map, BASE, 200)
        vmspace_rel(child)
        assert depth(map) <= 2
    # One for each page that one of the two wrote while the other could see it.
    assert vm.gd.gd_cnt.v_cow_faults - copies <= 80
    assert contents(map, 8) == list(range(32, 40))
    sound(map)


@pytest.mark.spec("FAULT-9")
def test_what_a_living_child_shows_is_not_touched(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, i + 1)
    first = vmspace_fork(proc.p_vmspace)
    store(map, BASE, 11)
    second = vmspace_fork(proc.p_vmspace)
    store(map, BASE + P, 12)
    assert depth(map) == 3
    vmspace_rel(second)
    third = vmspace_fork(proc.p_vmspace)
    assert depth(map) == depth(third) == 2  # the front two are one
    assert contents(map, 4) == contents(third.vm_map, 4) == [11, 12, 3, 4]
    assert contents(first.vm_map, 4) == [1, 2, 3, 4]
    sound(map, first.vm_map, third.vm_map)


@pytest.mark.spec("FAULT-9")
def test_a_private_file_mapping_merges_down_to_the_file(
    vm: VmSystem, proc: Proc, map: VmMap
) -> None:
    vp = StubVnode(b"f" * 5 * P)
    obj = vnode_pager_alloc(vm, vp, vp.v_filesize)
    show(map, obj, 0, BASE, 5, RW, MAP_COPY_ON_WRITE)
    store(map, BASE, 1)
    for i in range(1, 4):
        vmspace_rel(vmspace_fork(proc.p_vmspace))
        child = vmspace_fork(proc.p_vmspace)
        store(map, BASE + i * P, i + 1)
        vmspace_rel(child)
    child = vmspace_fork(proc.p_vmspace)
    assert depth(map) == 2 and chain(entries(map)[0])[1] is obj
    assert contents(map, 4) == contents(child.vm_map, 4) == [1, 2, 3, 4]
    assert vp.storage == b"f" * 5 * P
    sound(map, child.vm_map)


@pytest.mark.spec("FAULT-9")
def test_a_front_that_covers_the_chain_drops_it(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, 1)
    child = vmspace_fork(proc.p_vmspace)
    for i in range(4):
        store(map, BASE + i * P, 2)
    assert depth(map) == 2
    other = vmspace_fork(proc.p_vmspace)
    assert depth(map) == depth(other) == 1
    assert contents(other.vm_map, 4) == [2] * 4 and contents(child.vm_map, 4) == [1] * 4
    sound(map, child.vm_map, other.vm_map)


@pytest.mark.spec("FAULT-9")
def test_parts_of_a_cut_entry_do_not_merge(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, i + 1)
    child = vmspace_fork(proc.p_vmspace)
    store(map, BASE, 11)
    store(map, BASE + 3 * P, 14)
    vmspace_rel(child)
    vm_map_protect(map, BASE, BASE + P, RW | 4, False)
    child = vmspace_fork(proc.p_vmspace)
    assert [len(chain(e)) for e in map] == [2, 2]
    assert contents(map, 4) == contents(child.vm_map, 4) == [11, 2, 3, 14]
    sound(map, child.vm_map)


@pytest.mark.spec("FAULT-9")
def test_a_merged_stack_still_grows(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    top, size = 0x7000_0000, 1 << 20
    rv, low = vm_map_stack(map, top - size, size, False, RW, 7, 0)
    assert rv == KERN_SUCCESS
    store(map, top - P, 1)
    store(map, top - 2 * P, 2)
    child = vmspace_fork(proc.p_vmspace)
    store(map, top - P, 3)
    vmspace_rel(child)
    child = vmspace_fork(proc.p_vmspace)
    assert depth(map) == 1
    assert store(map, top - 3 * SGROWSIZ, 4) == KERN_SUCCESS
    assert store(map, low, 5) == KERN_SUCCESS
    assert ranges(map) == [(low, top)]
    assert [load(map, a) for a in (top - P, top - 2 * P, top - 3 * SGROWSIZ, low)] == [3, 2, 4, 5]
    assert [load(child.vm_map, a) for a in (top - P, top - 2 * P)] == [3, 2]
    sound(map, child.vm_map)


@pytest.mark.spec("SPACE-2")
def test_sharing_wired_memory_keeps_it_wired(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 2)
    store(map, BASE, 1)
    sibling = vmspace_fork(proc.p_vmspace)
    assert vm_map_user_wiring(map, BASE, BASE + 2 * P, False) == KERN_SUCCESS
    vm_map_inherit(map, BASE, BASE + 2 * P, VM_INHERIT_SHARE)
    child = vmspace_fork(proc.p_vmspace)
    assert depth(map) == 1 and map.pmap.pm_stats.wired_count == 2
    store(child.vm_map, BASE, 2)
    assert load(map, BASE) == 2 and load(sibling.vm_map, BASE) == 1
    assert vm_map_user_wiring(map, BASE, BASE + 2 * P, True) == KERN_SUCCESS
    assert map.pmap.pm_stats.wired_count == 0
    sound(map, child.vm_map, sibling.vm_map)
