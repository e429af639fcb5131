"""Finding room in a map: first fit, the four hints, and the index's bounds on holes."""

from __future__ import annotations

import pytest

from dfvm.vm.vm import VM_PROT_READ
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_map import (
    VmMap,
    vm_map_remove,
)
from dfvm.vm.vm_map_entry import VM_MAP_FFCOUNT
from dfvm.vm.vm_map_index import CHUNK
from tests.vm.map_util import RW, P, anon, room, sound

BASE = 0x10_0000


@pytest.mark.spec("MAP-4")
def test_findspace_is_first_fit(map: VmMap) -> None:
    lo = map.min_addr
    anon(map, lo, 1)
    anon(map, lo + 3 * P, 1)
    anon(map, lo + 9 * P, 1)
    assert room(map, 1) == lo + P
    assert room(map, 2) == lo + P
    assert room(map, 3) == lo + 4 * P
    assert room(map, 6) == lo + 10 * P
    assert room(map, 1, lo + 4 * P) == lo + 4 * P
    assert room(map, 1, lo + 9 * P + 5) == lo + 10 * P
    sound(map)


@pytest.mark.spec("MAP-4")
def test_alignment_need_not_be_a_power_of_two(map: VmMap) -> None:
    lo = map.min_addr
    anon(map, lo, 1)
    addr = room(map, 1, align=3 * P)
    assert addr is not None and addr % (3 * P) == 0 and addr >= lo + P
    addr = room(map, 4, lo + 50 * P, align=7 * P)
    assert addr is not None and addr % (7 * P) == 0 and addr >= lo + 50 * P
    sound(map)


@pytest.mark.spec("MAP-4")
def test_no_room_is_no_room(vm: VmSystem, map: VmMap) -> None:
    small = VmMap(vm, BASE, BASE + 8 * P, map.pmap)
    assert room(small, 8) == BASE
    assert room(small, 9) is None
    anon(small, BASE + 4 * P, 1)
    assert room(small, 4) == BASE
    assert room(small, 5) is None
    assert room(small, 1, BASE + 8 * P) is None
    sound(small)


@pytest.mark.spec("MAP-4")
def test_hints_stay_true_when_ranges_go(map: VmMap) -> None:
    lo = map.min_addr
    for i in range(40):
        anon(map, lo + i * P, 1, RW if i % 2 else VM_PROT_READ)
    assert room(map, 1) == room(map, 2) == lo + 40 * P
    vm_map_remove(map, lo + 10 * P, lo + 11 * P)
    assert room(map, 2) == lo + 40 * P
    sound(map)
    # Together with the hole before it, this one holds two pages.
    vm_map_remove(map, lo + 11 * P, lo + 12 * P)
    assert room(map, 1) == room(map, 2) == lo + 10 * P
    sound(map)
    vm_map_remove(map, lo + 9 * P, lo + 10 * P)
    assert room(map, 3) == lo + 9 * P
    sound(map)


@pytest.mark.spec("MAP-4")
def test_hints_of_a_search_that_began_higher_up_do_not_hide_holes(map: VmMap) -> None:
    lo = map.min_addr
    assert room(map, 1, lo + 100 * P) == lo + 100 * P
    assert room(map, 1) == lo
    assert room(map, 1, lo + 200 * P) == lo + 200 * P
    assert room(map, 1, lo + 50 * P) == lo + 50 * P
    sound(map)


@pytest.mark.spec("MAP-4")
def test_there_are_four_hints(map: VmMap) -> None:
    for n in range(1, 8):
        room(map, n)
    assert len(map.freehint) == VM_MAP_FFCOUNT
    assert sorted(h.length for h in map.freehint) == [n * P for n in range(4, 8)]


@pytest.mark.spec("MAP-4")
def test_a_long_search_passes_over_lists_without_a_hole(map: VmMap) -> None:
    lo = map.min_addr
    n = 4 * CHUNK
    for i in range(n):
        anon(map, lo + i * P, 1, RW if i % 2 else VM_PROT_READ)
    hole = lo + (n - 10) * P
    vm_map_remove(map, hole, hole + 2 * P)
    vm_map_remove(map, lo + 5 * P, lo + 6 * P)
    assert room(map, 2) == hole
    assert room(map, 1) == lo + 5 * P
    assert room(map, 3) == lo + n * P
    sound(map)
