"""The pager interface, and the pagers that are not for files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfvm.lwkt.panic import Panic
from dfvm.vm import vm_pager
from dfvm.vm.pager import VmPager
from dfvm.vm.pager.default_pager import DefaultPager
from dfvm.vm.pager.phys_pager import PhysPager
from dfvm.vm.pager.vnode_pager import VnodePager
from dfvm.vm.vm_object import (
    OBJT_DEAD,
    OBJT_DEFAULT,
    OBJT_PHYS,
    vm_object_allocate,
    vm_object_deallocate,
    vm_object_drop,
    vm_object_hold,
)
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PG_UNQUEUED,
    PQ_ACTIVE,
    VM_ALLOC_NORMAL,
    VM_PAGE_BITS_ALL,
    vm_page_alloc,
)
from dfvm.vm.vm_pager import (
    VM_PAGER_AGAIN,
    VM_PAGER_BAD,
    VM_PAGER_ERROR,
    VM_PAGER_FAIL,
    VM_PAGER_OK,
    VM_PAGER_PEND,
    vm_pager_deallocate,
    vm_pager_flush,
    vm_pager_get_page,
    vm_pager_has_page,
    vm_pager_put_pages,
)

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem


@pytest.mark.spec("PAGER-1")
def test_four_calls_and_six_answers() -> None:
    answers = [VM_PAGER_OK, VM_PAGER_BAD, VM_PAGER_FAIL, VM_PAGER_PEND, VM_PAGER_ERROR,
               VM_PAGER_AGAIN]  # fmt: skip
    assert answers == list(range(6))
    calls = {"dealloc", "getpage", "putpages", "haspage"}
    assert {name for name in vars(VmPager) if not name.startswith("_")} == calls
    for pager in (DefaultPager, VnodePager, PhysPager, vm_pager.DeadPager):
        assert issubclass(pager, VmPager)
        assert calls <= set(vars(pager)), f"{pager.__name__} leaves a call out"


@pytest.mark.spec("PAGER-2")
def test_default_has_nothing_and_takes_nothing(vm: VmSystem) -> None:
    object = vm_object_allocate(vm, OBJT_DEFAULT, 4)
    m = vm_page_alloc(vm, object, 0, VM_ALLOC_NORMAL)
    assert m is not None
    vm_object_hold(object)
    assert not vm_pager_has_page(object, 0)
    assert vm_pager_get_page(object, 0, m, -1) == (VM_PAGER_FAIL, m)
    assert m.valid == 0
    m.valid = m.dirty = VM_PAGE_BITS_ALL
    assert vm_pager_put_pages(object, [m], 0) == [VM_PAGER_FAIL]
    assert m.dirty == VM_PAGE_BITS_ALL
    vm_object_drop(object)


@pytest.mark.spec("PAGER-2")
def test_a_page_that_cannot_be_laundered_stays_dirty_and_active(vm: VmSystem) -> None:
    object = vm_object_allocate(vm, OBJT_DEFAULT, 4)
    ms = []
    for i in range(3):
        m = vm_page_alloc(vm, object, i, VM_ALLOC_NORMAL)
        assert m is not None
        m.valid = m.dirty = VM_PAGE_BITS_ALL
        ms.append(m)
    vm_object_hold(object)
    assert vm_pager_flush(object, ms, 0) == 3
    vm_object_drop(object)
    for m in ms:
        assert m.dirty == VM_PAGE_BITS_ALL
        assert m.busy_count == 0
        assert m.queue - m.pc == PQ_ACTIVE
    assert object.paging_in_progress == 0
    vm_object_deallocate(object)


def test_flush_wants_whole_pages(vm: VmSystem) -> None:
    object = vm_object_allocate(vm, OBJT_DEFAULT, 4)
    m = vm_page_alloc(vm, object, 0, VM_ALLOC_NORMAL)
    assert m is not None
    m.valid = 1
    with pytest.raises(Panic, match="only in part"):
        vm_pager_flush(object, [m], 0)


def test_phys_is_zeros_in_no_queue(vm: VmSystem) -> None:
    object = vm_object_allocate(vm, OBJT_PHYS, 4)
    m = vm_page_alloc(vm, object, 1, VM_ALLOC_NORMAL)
    assert m is not None
    vm.ram.mem[m.phys_addr + 5] = 1
    assert vm_pager_get_page(object, 1, m, -1) == (VM_PAGER_OK, m)
    assert not any(vm.ram.mem[m.phys_addr : m.phys_addr + 4096])
    assert (m.valid, m.dirty) == (VM_PAGE_BITS_ALL, 0)
    assert m.flags & PG_UNQUEUED
    # What is valid stays.
    vm.ram.mem[m.phys_addr + 5] = 1
    assert vm_pager_get_page(object, 1, m, -1) == (VM_PAGER_OK, m)
    assert vm.ram.mem[m.phys_addr + 5] == 1
    assert vm_pager_has_page(object, 3)
    assert not vm_pager_has_page(object, 4)
    with pytest.raises(Panic, match="phys_pager_putpages"):
        vm_pager_put_pages(object, [m], 0)
    vm_pager_deallocate(object)


def test_a_dead_object_has_nothing(vm: VmSystem) -> None:
    object = vm_object_allocate(vm, OBJT_DEAD, 4)
    m = vm_page_alloc(vm, object, 0, VM_ALLOC_NORMAL)
    assert m is not None
    assert m.busy_count == PBUSY_LOCKED
    assert vm_pager_get_page(object, 0, m, -1) == (VM_PAGER_FAIL, m)
    assert vm_pager_put_pages(object, [m], 0) == [VM_PAGER_AGAIN]
    assert not vm_pager_has_page(object, 0)
    vm_pager_deallocate(object)
