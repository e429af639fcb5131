"""Stacks: how they start, grow, stop growing, and come apart."""

from __future__ import annotations

import pytest

from dfvm.vm.vm import (
    KERN_FAILURE,
    KERN_INVALID_ADDRESS,
    KERN_NO_SPACE,
    KERN_SUCCESS,
    VM_PROT_ALL,
    VM_PROT_NONE,
    VM_PROT_READ,
)
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_map import (
    MAP_ENTRY_WIREONFAULT,
    MAP_FUTUREONFAULT,
    MAP_WIREFUTURE,
    VmMap,
    vm_map_findspace,
    vm_map_growstack,
    vm_map_lock,
    vm_map_protect,
    vm_map_remove,
    vm_map_stack,
    vm_map_unlock,
    vm_map_user_wiring,
)
from dfvm.vm.vm_param import SGROWSIZ
from dfvm.vm.vm_proc import RLIMIT_STACK, RLIMIT_VMEM
from dfvm.vm.vmspace import vmspace_fork
from tests.vm.map_util import RW, P, Proc, anon, entries, load, ranges, room, sound, store

BASE = 0x10_0000


TOP = 0x7000_0000


def stack(map: VmMap, size: int) -> int:
    rv, low = vm_map_stack(map, TOP - size, size, False, RW, VM_PROT_ALL, 0)
    assert rv == KERN_SUCCESS and low == TOP - size
    return low


@pytest.mark.spec("MAP-14")
def test_a_stack_starts_small_and_grows_by_faults(proc: Proc, map: VmMap) -> None:
    low = stack(map, 1 << 20)
    proc.p_vmspace.vm_maxsaddr = low
    proc.p_vmspace.vm_ssize = SGROWSIZ
    assert ranges(map) == [(TOP - SGROWSIZ, TOP)]
    assert store(map, TOP - 8, 1) == KERN_SUCCESS
    addr = TOP - SGROWSIZ - 8
    assert store(map, addr, 2) == KERN_SUCCESS
    assert ranges(map) == [(TOP - 2 * SGROWSIZ, TOP)]
    assert proc.p_vmspace.vm_ssize == 2 * SGROWSIZ
    assert store(map, low, 3) == KERN_SUCCESS
    assert ranges(map) == [(low, TOP)] and map.size == 1 << 20
    assert (load(map, TOP - 8), load(map, addr), load(map, low)) == (1, 2, 3)
    assert store(map, low - 1, 4) == KERN_INVALID_ADDRESS
    sound(map)


@pytest.mark.spec("MAP-14")
def test_a_small_stack_is_mapped_whole(map: VmMap) -> None:
    low = stack(map, 3 * P)
    assert ranges(map) == [(low, TOP)]


@pytest.mark.spec("MAP-14")
def test_findspace_leaves_the_growth_room_free(vm: VmSystem, map: VmMap) -> None:
    low = stack(map, 1 << 20)
    assert room(map, 1, low - P) == low - P
    assert room(map, 2, low - P) == TOP
    vm_map_lock(map)
    assert vm_map_findspace(map, low - P, 2 * P, P, intrude=True) == low - P
    vm_map_unlock(map)
    sound(map)


@pytest.mark.spec("MAP-14")
def test_growth_ends_at_the_entry_below(proc: Proc, map: VmMap) -> None:
    """… and far enough above it that what runs off the stack does not run into it, if there is
    anything to run into."""
    low = stack(map, 4 << 20)
    wall = low + (1 << 20)
    assert anon(map, wall, 1) == KERN_SUCCESS
    floor = wall + P + map.vm.sysctl.stack_guard_gap * P
    assert store(map, floor - P, 1) == KERN_INVALID_ADDRESS
    assert store(map, floor, 1) == KERN_SUCCESS
    assert ranges(map) == [(wall, wall + P), (floor, TOP)]
    assert vm_map_protect(map, wall, wall + P, VM_PROT_NONE, False) == KERN_SUCCESS
    assert store(map, wall + P, 1) == KERN_SUCCESS
    assert ranges(map) == [(wall, wall + P), (wall + P, TOP)]
    assert store(map, low, 1) == KERN_INVALID_ADDRESS
    assert vm_map_remove(map, wall, wall + P) == KERN_SUCCESS
    assert store(map, low, 1) == KERN_SUCCESS
    assert entries(map)[0].avail_ssize == 0
    sound(map)


@pytest.mark.spec("MAP-14")
def test_no_gap_above_another_stack(proc: Proc, map: VmMap) -> None:
    low = stack(map, 4 << 20)
    wall = low + (1 << 20)
    rv, _ = vm_map_stack(map, wall, P, False, RW, VM_PROT_ALL, 0)
    assert rv == KERN_SUCCESS
    assert store(map, wall + P, 1) == KERN_SUCCESS
    sound(map)


@pytest.mark.spec("MAP-14")
def test_growth_keeps_to_rlimit_stack_for_the_process_stack(proc: Proc, map: VmMap) -> None:
    low = stack(map, 1 << 20)
    proc.p_vmspace.vm_maxsaddr = low
    proc.p_vmspace.vm_ssize = SGROWSIZ
    proc.limits[RLIMIT_STACK] = SGROWSIZ + 3 * P
    assert store(map, TOP - SGROWSIZ - P, 1) == KERN_SUCCESS
    assert ranges(map) == [(TOP - SGROWSIZ - 3 * P, TOP)]
    assert vm_map_growstack(map, TOP - SGROWSIZ - 3 * P - 1) == KERN_NO_SPACE
    sound(map)


@pytest.mark.spec("MAP-14")
def test_growth_keeps_to_rlimit_vmem(proc: Proc, map: VmMap) -> None:
    stack(map, 1 << 20)
    proc.limits[RLIMIT_VMEM] = map.size + 2 * P - 1
    assert vm_map_growstack(map, TOP - SGROWSIZ - 2 * P) == KERN_NO_SPACE
    proc.limits[RLIMIT_VMEM] = map.size + 3 * P + 1
    assert vm_map_growstack(map, TOP - SGROWSIZ - 2 * P) == KERN_SUCCESS
    assert ranges(map) == [(TOP - SGROWSIZ - 3 * P, TOP)]  # not a whole step
    sound(map)


@pytest.mark.spec("MAP-14")
def test_a_stack_grows_for_its_own_process_only(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    stack(map, 1 << 20)
    Proc(vm)
    assert vm_map_growstack(map, TOP - SGROWSIZ - P) == KERN_FAILURE
    vm.sched.curthread.td_proc = proc
    assert vm_map_growstack(map, TOP - P) == KERN_SUCCESS  # is there already
    assert vm_map_growstack(map, BASE) == KERN_INVALID_ADDRESS


@pytest.mark.spec("MAP-14")
def test_stacks_of_parent_and_child_grow_apart(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    low = stack(map, 1 << 20)
    store(map, TOP - 8, 1)
    child = Proc(vm, vmspace_fork(proc.p_vmspace))
    vm.sched.curthread.td_proc = proc
    addr = TOP - 3 * SGROWSIZ
    assert store(map, addr, 2) == KERN_SUCCESS
    vm.sched.curthread.td_proc = child
    assert store(child.map, TOP - 8, 3) == KERN_SUCCESS
    assert store(child.map, addr + 1, 4) == KERN_SUCCESS
    assert load(child.map, addr) == 0 and load(map, addr + 1) == 0
    assert (load(map, TOP - 8), load(child.map, TOP - 8)) == (1, 3)
    assert ranges(map) == ranges(child.map) == [(TOP - 3 * SGROWSIZ, TOP)]
    grandchild = Proc(vm, vmspace_fork(child.p_vmspace))
    assert store(grandchild.map, low, 5) == KERN_SUCCESS
    assert load(grandchild.map, addr + 1) == 4 and load(grandchild.map, TOP - 8) == 3
    sound(map, child.map, grandchild.map)


@pytest.mark.spec("MAP-14")
def test_the_lower_part_of_a_cut_stack_grows(proc: Proc, map: VmMap) -> None:
    low = stack(map, 1 << 20)
    store(map, TOP - 8, 1)
    vm_map_protect(map, TOP - 4 * P, TOP, VM_PROT_READ, False)
    assert [e.avail_ssize for e in map] == [(1 << 20) - SGROWSIZ, 0]
    assert store(map, low, 2) == KERN_SUCCESS
    assert load(map, TOP - 8) == 1
    vm_map_protect(map, TOP - 4 * P, TOP, RW, False)
    assert ranges(map) == [(low, TOP)]
    sound(map)
    vm_map_remove(map, low, TOP - P)
    assert store(map, TOP - 2 * P, 1) == KERN_INVALID_ADDRESS
    sound(map)


@pytest.mark.spec("MAP-14")
def test_a_wired_stack_grows_by_entries_of_its_own(proc: Proc, map: VmMap) -> None:
    low = stack(map, 1 << 20)
    assert vm_map_user_wiring(map, TOP - SGROWSIZ, TOP, False) == KERN_SUCCESS
    assert store(map, TOP - SGROWSIZ - 1, 1) == KERN_SUCCESS
    assert [(e.wired_count, e.avail_ssize) for e in map] == [(0, (1 << 20) - 2 * SGROWSIZ), (1, 0)]
    map.flags |= MAP_WIREFUTURE
    assert store(map, TOP - 2 * SGROWSIZ - 1, 1) == KERN_SUCCESS
    assert entries(map)[0].wired_count == 1
    assert store(map, low, 1) == KERN_SUCCESS
    sound(map)


@pytest.mark.spec("MAP-14")
def test_what_a_stack_grows_by_is_wired_as_it_is_faulted_in(proc: Proc, map: VmMap) -> None:
    stack(map, 1 << 20)
    map.flags |= MAP_WIREFUTURE | MAP_FUTUREONFAULT
    for n in (1, 2):
        assert store(map, TOP - n * SGROWSIZ - 1, 1) == KERN_SUCCESS
        wired = [(e.ba.start, e.ba.end) for e in map if e.wired_count]
        assert wired == [(TOP - k * SGROWSIZ - P, TOP - k * SGROWSIZ) for k in range(n, 0, -1)]
        assert entries(map)[0].eflags & MAP_ENTRY_WIREONFAULT
    sound(map)
