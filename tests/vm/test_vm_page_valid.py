"""Valid and dirty chunks (vm_page_valid.py)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.lwkt.panic import Panic
from dfvm.vm import pmap
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_object import OBJ_MIGHTBEDIRTY, OBJ_WRITEABLE, OBJT_VNODE
from dfvm.vm.vm_page import (
    PG_MAPPED,
    PG_NOSYNC,
    VM_PAGE_BITS_ALL,
    VmPage,
    vm_page_bits,
    vm_page_cache,
    vm_page_clear_dirty,
    vm_page_dirty,
    vm_page_is_valid,
    vm_page_set_invalid,
    vm_page_set_valid,
    vm_page_set_validclean,
    vm_page_set_validdirty,
    vm_page_test_dirty,
    vm_page_undirty,
    vm_page_zero_invalid,
)
from tests.vm.page_util import alloc, make_object, make_vm

pytestmark = pytest.mark.spec("PAGE-10")

_DIRTY_OBJECT = OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
_ranges = st.integers(0, 4096).flatmap(
    lambda base: st.tuples(st.just(base), st.integers(0, 4096 - base))
)


def _fresh(vm: VmSystem) -> VmPage:
    """A page full of garbage, nothing of it valid."""
    m = alloc(make_object(vm, type=OBJT_VNODE), 0)
    m.valid = 0
    vm.ram.mem[m.phys_addr : m.phys_addr + 4096] = b"\xee" * 4096
    return m


def _bytes(vm: VmSystem, m: VmPage) -> bytes:
    return bytes(vm.ram.mem[m.phys_addr : m.phys_addr + 4096])


@given(_ranges)
def test_bits_are_the_chunks_a_range_touches(span: tuple[int, int]) -> None:
    base, size = span
    expected = 0
    for byte in range(base, base + size):
        expected |= 1 << byte // 512
    assert vm_page_bits(base, size) == expected


@pytest.mark.parametrize(("base", "size"), [(0, 4097), (4096, 1), (-1, 2), (10, -1)])
def test_bits_outside_of_the_page(base: int, size: int) -> None:
    with pytest.raises(Panic):
        vm_page_bits(base, size)


_VM = make_vm(2)
_PAGE = _fresh(_VM)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("valid", "clean", "dirty", "invalid")), _ranges)))
def test_ranges_against_a_model(steps: list[tuple[str, tuple[int, int]]]) -> None:
    """What was made valid keeps its bytes, and what came along with it reads as zero."""
    vm, m = _VM, _PAGE
    m.valid = m.dirty = 0
    vm.ram.mem[m.phys_addr : m.phys_addr + 4096] = b"\xee" * 4096
    model = bytearray(b"\xee" * 4096)
    valid = dirty = 0
    for step, (base, size) in steps:
        chunks = [i for i in range(8) if size and i * 512 < base + size and base < i * 512 + 512]
        bits = sum(1 << i for i in chunks)
        if step == "invalid":
            vm_page_set_invalid(vm, m, base, size)
            valid &= ~bits
            dirty &= ~bits
            continue
        for i in chunks:
            if not valid & 1 << i:
                for byte in range(i * 512, i * 512 + 512):
                    if not base <= byte < base + size:
                        model[byte] = 0
        valid |= bits
        if step == "valid":
            vm_page_set_valid(vm, m, base, size)
        elif step == "clean":
            vm_page_set_validclean(vm, m, base, size)
            dirty &= ~bits
        else:
            vm_page_set_validdirty(vm, m, base, size)
            dirty |= bits
        assert (m.valid, m.dirty) == (valid, dirty)
        assert _bytes(vm, m) == model
        assert vm_page_is_valid(vm, m, base, size) == (valid != 0)


@pytest.mark.parametrize("valid", [0x00, 0x01, 0x0F, 0x81, 0x5A, 0xFE, 0xFF])
@pytest.mark.parametrize("setvalid", [True, False])
def test_zero_invalid_zeroes_what_a_user_must_not_see(valid: int, setvalid: bool) -> None:
    vm = make_vm()
    m = _fresh(vm)
    m.valid = valid
    vm_page_zero_invalid(vm, m, setvalid)
    expected = b"".join((b"\xee" if valid & 1 << i else b"\0") * 512 for i in range(8))
    assert _bytes(vm, m) == expected
    assert m.valid == (VM_PAGE_BITS_ALL if setvalid else valid)


def test_zeroing_a_frame_drops_its_translated_code() -> None:
    vm = make_vm()
    m = _fresh(vm)
    vm.mmu.code_frames.add(m.phys_addr >> 12)
    vm_page_zero_invalid(vm, m, True)
    assert vm.mmu.need_flush_code


def test_is_valid_wants_the_whole_range() -> None:
    vm = make_vm()
    m = _fresh(vm)
    assert not vm_page_is_valid(vm, m, 0, 0)
    m.valid = 0x07
    assert vm_page_is_valid(vm, m, 0, 1536)
    assert not vm_page_is_valid(vm, m, 0, 1537)
    assert vm_page_is_valid(vm, m, 2048, 0)


def test_dirty_tells_the_object() -> None:
    vm = make_vm()
    m = _fresh(vm)
    object = m.object
    assert object is not None
    assert not object.flags & _DIRTY_OBJECT
    vm_page_dirty(vm, m)
    assert m.dirty == VM_PAGE_BITS_ALL
    assert object.flags & _DIRTY_OBJECT == _DIRTY_OBJECT
    vm_page_undirty(vm, m)
    assert m.dirty == 0
    object.flags &= ~_DIRTY_OBJECT
    vm_page_set_validdirty(vm, m, 0, 100)
    assert m.dirty == 1
    assert object.flags & _DIRTY_OBJECT == _DIRTY_OBJECT


def test_clearing_all_of_a_page_takes_nosync_along() -> None:
    vm = make_vm()
    m = _fresh(vm)
    m.flags |= PG_NOSYNC
    m.dirty = 0xFF
    vm_page_clear_dirty(vm, m, 0, 512)
    assert m.dirty == 0xFE
    assert m.flags & PG_NOSYNC
    vm_page_clear_dirty(vm, m, 0, 4096)
    assert m.dirty == 0
    assert not m.flags & PG_NOSYNC


def test_pages_on_the_cache_or_free_queue_cannot_become_dirty() -> None:
    vm = make_vm()
    m = alloc(make_object(vm, type=OBJT_VNODE), 0)
    vm_page_cache(vm, m)
    with pytest.raises(Panic):
        vm_page_dirty(vm, m)


def test_test_dirty_brings_the_m_bit_in(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    asked: list[VmPage] = []

    def is_modified(vm: VmSystem, m: VmPage) -> bool:
        asked.append(m)
        return True

    monkeypatch.setattr(pmap, "pmap_is_modified", is_modified)
    vm_page_test_dirty(vm, m)
    assert (m.dirty, asked) == (0, [])  # not mapped: there is no M bit
    m.flags |= PG_MAPPED
    vm_page_test_dirty(vm, m)
    assert (m.dirty, asked) == (VM_PAGE_BITS_ALL, [m])
    vm_page_test_dirty(vm, m)
    assert asked == [m]  # dirty already
