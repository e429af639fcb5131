"""What goes when a mapping goes: the pages that no other element of their object shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.vm import vm_object_shown
from dfvm.vm.vm import KERN_SUCCESS, VM_PROT_READ
from dfvm.vm.vm_map import (
    MADV_FREE,
    VmMapBacking,
    vm_map_backing_attach,
    vm_map_backing_detach,
    vm_map_clip_start,
    vm_map_lock,
    vm_map_lookup_entry,
    vm_map_madvise,
    vm_map_protect,
    vm_map_remove,
    vm_map_simplify_entry,
    vm_map_unlock,
)
from dfvm.vm.vm_object import OBJ_ONEMAPPING, OBJT_DEFAULT, vm_object_allocate
from dfvm.vm.vm_object_check import vm_object_check
from dfvm.vm.vm_object_shown import vm_object_unshown
from dfvm.vm.vmspace import vmspace_fork, vmspace_rel
from tests.vm.map_util import P, Proc, anon, chain, entries, load, sound, store
from tests.vm.vnode_stub import make_vm

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map import VmMap

BASE = 0x40_0000
PAGES = 64  # of the object in the model


def fill(map: VmMap, n: int) -> None:
    assert anon(map, BASE, n) == KERN_SUCCESS
    for i in range(n):
        store(map, BASE + i * P, i & 0xFF)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_unshown_is_what_a_set_of_pages_says(data: st.DataObject) -> None:
    vm = make_vm()
    pmap = Proc(vm).map.pmap
    object = vm_object_allocate(vm, OBJT_DEFAULT, PAGES)
    elements: list[VmMapBacking] = []
    for _ in range(data.draw(st.integers(1, 60))):
        if elements and data.draw(st.integers(0, 3)) == 0:
            gone = elements.pop(data.draw(st.integers(0, len(elements) - 1)))
            vm_map_backing_detach(gone)
        else:
            first = data.draw(st.integers(0, PAGES - 1))
            n = data.draw(st.one_of(st.integers(1, 2), st.integers(1, PAGES - first)))
            ba = VmMapBacking(BASE, BASE + n * P, pmap, object, first * P)
            vm_map_backing_attach(ba)
            elements.append(ba)
        if not elements:
            continue
        ba = data.draw(st.sampled_from(elements))
        expected = set(shown(ba)).difference(*(shown(o) for o in elements if o is not ba))
        parts = vm_object_unshown(object, ba)
        assert [i for first, end in parts for i in range(first, end)] == sorted(expected)


def shown(ba: VmMapBacking) -> range:
    return range(ba.offset // P, (ba.offset + ba.end - ba.start) // P)


@pytest.mark.spec("MAP-17")
@pytest.mark.parametrize("depth", [1, 2])
def test_what_parent_and_child_have_both_left_goes(
    vm: VmSystem, proc: Proc, map: VmMap, depth: int
) -> None:
    fill(map, 8)
    child = vmspace_fork(proc.p_vmspace)
    if depth == 2:
        store(map, BASE, 50)  # puts an object in front
    assert vm_map_remove(map, BASE + 2 * P, BASE + 6 * P) == KERN_SUCCESS
    behind = chain(entries(map)[0])[-1]
    assert behind is not None
    assert sorted(behind.rb_memq) == list(range(8))  # the child sees them
    assert load(child.vm_map, BASE + 3 * P) == 3
    vm.sched.curthread.td_proc = Proc(vm, child)
    assert vm_map_remove(child.vm_map, BASE + 4 * P, BASE + 8 * P) == KERN_SUCCESS
    assert sorted(behind.rb_memq) == [0, 1, 2, 3, 6, 7]
    sound(map, child.vm_map)
    vmspace_rel(child)
    assert sorted(behind.rb_memq) == [0, 1, 6, 7]
    assert vm_object_check(vm) == []
    assert load(map, BASE + 7 * P) == 7


@pytest.mark.spec("MAP-17")
def test_merging_entries_removes_nothing(vm: VmSystem, map: VmMap) -> None:
    fill(map, 8)
    vm_map_lock(map)
    _, entry = vm_map_lookup_entry(map, BASE)
    assert entry is not None
    vm_map_clip_start(map, entry, BASE + 4 * P)
    vm_map_simplify_entry(map, entry)
    vm_map_unlock(map)
    assert [load(map, BASE + i * P) for i in range(8)] == list(range(8))
    assert len(entries(map)) == 1


@pytest.mark.spec("MAP-8", "OBJ-9")
def test_the_last_one_to_see_an_object_is_its_only_mapping(
    vm: VmSystem, proc: Proc, map: VmMap
) -> None:
    fill(map, 2)
    vmspace_rel(vmspace_fork(proc.p_vmspace))
    object = entries(map)[0].ba.object
    assert object is not None and not object.flags & OBJ_ONEMAPPING
    store(map, BASE, 9)
    assert entries(map)[0].ba.object is object
    assert object.flags & OBJ_ONEMAPPING
    vm_map_madvise(map, BASE, BASE + 2 * P, MADV_FREE)
    assert object.rb_memq[0].dirty == 0


@pytest.mark.spec("MAP-17")
def test_many_pieces_are_not_walked_for_each(
    vm: VmSystem, proc: Proc, map: VmMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1000 pieces in parent and child: each that goes looks at a handful of others."""
    n = 2000
    fill(map, n)
    for i in range(0, n, 2):
        vm_map_protect(map, BASE + i * P, BASE + (i + 1) * P, VM_PROT_READ, False)
    child = vmspace_fork(proc.p_vmspace)
    object = entries(map)[0].ba.object
    assert object is not None and len(object.backing_list) == 2 * n
    looked = 0
    near = vm_object_shown.ShownIndex.near

    def counting(self: Any, first: int, end: int) -> Any:
        nonlocal looked
        for ba in near(self, first, end):
            looked += 1
            yield ba

    monkeypatch.setattr(vm_object_shown.ShownIndex, "near", counting)
    for i in range(0, n, 3):
        vm_map_remove(map, BASE + i * P, BASE + (i + 1) * P)
    assert len(object.rb_memq) == n
    vmspace_rel(child)
    assert len(object.rb_memq) == n - len(range(0, n, 3))
    assert 0 < looked < 10 * n
    assert vm_object_check(vm) == []
    sound(map)


def test_the_checker_sees_pages_nobody_can_reach(vm: VmSystem, map: VmMap) -> None:
    fill(map, 4)
    ba = entries(map)[0].ba
    assert vm_object_check(vm) == []
    ba.end -= P
    assert any("1 pages from 3 on that nothing shows" in line for line in vm_object_check(vm))
