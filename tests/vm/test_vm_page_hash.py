"""The page hash (vm_page_hash.py)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_object import VmObject
from dfvm.vm.vm_page import (
    PG_MAPPEDMULTI,
    VmPage,
    vm_page_activate,
    vm_page_busy_try,
    vm_page_free,
    vm_page_hash_enter,
    vm_page_hash_get,
    vm_page_lookup,
    vm_page_sbusy_drop,
    vm_page_wakeup,
)
from dfvm.vm.vm_page_hash import VM_PAGE_HASH_SET, vm_page_hash_set
from tests.vm.page_util import alloc, check, make_object, make_vm

pytestmark = pytest.mark.spec("PAGE-6")


def _shared(object: VmObject, pindex: int) -> VmPage:
    """A page that is mapped more than once, as far as it knows."""
    m = alloc(object, pindex)
    m.flags |= PG_MAPPEDMULTI
    vm_page_activate(object.vm, m)
    vm_page_wakeup(object.vm, m)
    return m


def _hit(object: VmObject, pindex: int) -> VmPage | None:
    m = vm_page_hash_get(object, pindex)
    if m is not None:
        vm_page_sbusy_drop(object.vm, m)
    return m


def _same_set(object: VmObject, n: int) -> list[int]:
    """The first `n` indices of `object` that fall in one set."""
    mask = object.vm.pages.hash_mask
    want = vm_page_hash_set(object, 0) & mask
    found: list[int] = []
    pindex = 0
    while len(found) < n:
        if vm_page_hash_set(object, pindex) & mask == want:
            found.append(pindex)
        pindex += 1
    return found


@pytest.mark.parametrize(("mib", "sets"), [(2, 8), (4, 16), (64, 256), (96, 512), (128, 512)])
def test_size_is_a_sixteenth_of_the_pages_in_sets_of_four(mib: int, sets: int) -> None:
    assert make_vm(mib).pages.hash_mask + 1 == sets


def test_a_hit_is_soft_busied() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = _shared(object, 5)
    assert vm_page_hash_get(object, 5) is None
    assert vm_page_lookup(object, 5) is m  # a lookup under the token makes it known
    assert vm_page_hash_get(object, 5) is m
    assert m.busy_count == 1
    assert vm_page_busy_try(vm, m, True)
    vm_page_sbusy_drop(vm, m)


def test_pages_with_one_mapping_stay_out() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = _shared(object, 5)
    m.flags &= ~PG_MAPPEDMULTI
    vm_page_lookup(object, 5)
    vm_page_hash_enter(m)
    assert vm_page_hash_get(object, 5) is None
    assert not vm.pages.vm_page_hash


def test_a_hard_busied_page_is_a_miss() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = _shared(object, 5)
    vm_page_hash_enter(m)
    vm_page_busy_try(vm, m, True)
    assert vm_page_hash_get(object, 5) is None
    vm_page_wakeup(vm, m)
    assert _hit(object, 5) is m


def test_a_page_that_changed_hands_is_a_miss() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = _shared(object, 5)
    vm_page_hash_enter(m)
    vm_page_busy_try(vm, m, True)
    vm_page_free(vm, m)
    assert vm_page_hash_get(object, 5) is None
    again = alloc(object, 6)
    again.flags |= PG_MAPPEDMULTI
    assert vm_page_hash_get(object, 5) is None
    vm_page_hash_enter(again)
    vm_page_wakeup(vm, again)
    assert _hit(object, 6) is again


def test_the_oldest_of_a_set_gives_way() -> None:
    vm = make_vm(16)
    object = make_object(vm)
    indices = _same_set(object, VM_PAGE_HASH_SET + 2)
    pages = [_shared(object, i) for i in indices]
    for m in pages[:VM_PAGE_HASH_SET]:
        vm_page_hash_enter(m)
    assert _hit(object, indices[0]) is pages[0]  # the oldest is used, so the next is oldest now
    vm_page_hash_enter(pages[VM_PAGE_HASH_SET])
    assert _hit(object, indices[1]) is None
    vm_page_hash_enter(pages[VM_PAGE_HASH_SET + 1])
    assert _hit(object, indices[2]) is None
    for i in (0, 3, 4, 5):
        assert _hit(object, indices[i]) is pages[i]
    check(vm)


def _model_hit(ways: dict[int, list[VmPage]], object: VmObject, pindex: int) -> VmPage | None:
    key = vm_page_hash_set(object, pindex) & object.vm.pages.hash_mask
    for m in ways.get(key, []):
        if m.object is object and m.pindex == pindex:
            ways[key].remove(m)
            ways[key].append(m)
            return m
    return None


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(("enter", "get", "free")), st.integers(0, 2), st.integers(0, 40)),
        max_size=120,
    )
)
def test_against_a_model(steps: list[tuple[str, int, int]]) -> None:
    vm: VmSystem = make_vm(2)
    objects = [make_object(vm) for _ in range(3)]
    ways: dict[int, list[VmPage]] = {}
    for step, which, pindex in steps:
        object = objects[which]
        m = object.rb_memq.get(pindex)
        if step == "get":
            assert _hit(object, pindex) is _model_hit(ways, object, pindex)
        elif step == "enter":
            if m is None:
                m = _shared(object, pindex)
            vm_page_hash_enter(m)
            key = vm_page_hash_set(object, pindex) & vm.pages.hash_mask
            entry = ways.setdefault(key, [])
            if m in entry:
                entry.remove(m)
            elif len(entry) == VM_PAGE_HASH_SET:
                del entry[0]
            entry.append(m)
        elif m is not None:
            vm_page_busy_try(vm, m, True)
            vm_page_free(vm, m)
    check(vm)
