"""A machine's VM for the page tests, and pages in states that are tedious to bring about."""

from __future__ import annotations

from dfvm.lwkt.lwkt_thread import Scheduler
from dfvm.machine.mmu import Mmu
from dfvm.machine.ram import Ram
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_object import OBJT_DEFAULT, VmObject, vm_object_allocate
from dfvm.vm.vm_page import VM_ALLOC_NORMAL, VM_PAGE_BITS_ALL, VmPage, vm_page_alloc
from dfvm.vm.vm_page_check import vm_page_check


def make_vm(mib: int = 8) -> VmSystem:
    return VmSystem(Ram(mib << 20), Scheduler(), Mmu())


def make_object(vm: VmSystem, size: int = 1 << 20, type: int = OBJT_DEFAULT) -> VmObject:
    return vm_object_allocate(vm, type, size)


def alloc(object: VmObject, pindex: int, page_req: int = VM_ALLOC_NORMAL) -> VmPage:
    """A hard-busied page that is valid and clean."""
    m = vm_page_alloc(object.vm, object, pindex, page_req)
    assert m is not None
    m.valid = VM_PAGE_BITS_ALL
    return m


def check(vm: VmSystem) -> None:
    """Everything agrees."""
    found = vm_page_check(vm)
    assert not found, found
