"""What the tests of maps share: a space to work on, a process to own it, and accesses as a guest
would make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.machine.pte import PG_A, PG_FRAME, PG_M, PG_RW, PG_V
from dfvm.vm.pmap import pmap_extract, pmap_pte
from dfvm.vm.vm import KERN_SUCCESS, VM_PROT_ALL, VM_PROT_READ, VM_PROT_WRITE, VM_SUBSYS_MMAP
from dfvm.vm.vm_fault import VM_FAULT_DIRTY, VM_FAULT_NORMAL, vm_fault
from dfvm.vm.vm_map import (
    VM_MAPTYPE_NORMAL,
    vm_map_find,
    vm_map_findspace,
    vm_map_lock,
    vm_map_unlock,
)
from dfvm.vm.vm_map_check import vm_map_check
from dfvm.vm.vm_param import PAGE_SIZE
from dfvm.vm.vm_proc import RLIM_INFINITY
from dfvm.vm.vmspace import Vmspace, vmspace_alloc

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map import VmMap, VmMapEntry
    from dfvm.vm.vm_object import VmObject

P = PAGE_SIZE
RW = VM_PROT_READ | VM_PROT_WRITE


class Proc:
    """A process as the VM sees it, made the current one."""

    def __init__(self, vm: VmSystem, vmspace: Vmspace | None = None) -> None:
        self.p_vmspace = vmspace if vmspace is not None else vmspace_alloc(vm)
        self.p_nice = 0
        self.p_lowmemkill = False
        self.p_system = False
        self.p_oom_score_adj = 0
        self.p_minflt = 0
        self.p_majflt = 0
        self.limits: dict[int, int] = {}
        vm.sched.curthread.td_proc = self

    def p_rlimit(self, which: int) -> int:
        return self.limits.get(which, RLIM_INFINITY)

    @property
    def map(self) -> VmMap:
        return self.p_vmspace.vm_map


def anon(
    map: VmMap, addr: int, npages: int, prot: int = RW, cow: int = 0, max: int = VM_PROT_ALL
) -> int:
    """Anonymous memory at `addr`; returns KERN_*."""
    return vm_map_find(
        map, None, 0, addr, npages * P, P, False,
        VM_MAPTYPE_NORMAL, VM_SUBSYS_MMAP, prot, max, cow,
    )[0]  # fmt: skip


def show(
    map: VmMap, obj: VmObject, offset: int, addr: int, npages: int, prot: int = RW, cow: int = 0
) -> int:
    """`obj`, with the caller's reference, at `addr`; returns KERN_*."""
    return vm_map_find(
        map, obj, offset, addr, npages * P, P, False,
        VM_MAPTYPE_NORMAL, VM_SUBSYS_MMAP, prot, VM_PROT_ALL, cow,
    )[0]  # fmt: skip


def room(map: VmMap, npages: int, start: int = 0, align: int = P) -> int | None:
    """What findspace says."""
    vm_map_lock(map)
    addr = vm_map_findspace(map, start, npages * P, align)
    vm_map_unlock(map)
    return addr


def entries(map: VmMap) -> list[VmMapEntry]:
    return list(map)


def ranges(map: VmMap) -> list[tuple[int, int]]:
    return [(e.ba.start, e.ba.end) for e in map]


def chain(entry: VmMapEntry) -> list[VmObject | None]:
    """The objects of an entry, front first."""
    objects = []
    ba = entry.ba
    while ba is not None:
        objects.append(ba.object)
        ba = ba.backing_ba
    return objects


def store(map: VmMap, addr: int, value: int) -> int:
    """A guest's store of one byte: by the PTE, and only if that does not allow it by a fault.
    Returns KERN_*."""
    if not pmap_pte(map.pmap, addr) & PG_RW:
        rv = vm_fault(map, addr & -P, VM_PROT_WRITE, VM_FAULT_DIRTY)
        if rv != KERN_SUCCESS:
            return rv
    pte = pmap_pte(map.pmap, addr)
    assert pte & PG_V and pte & PG_RW
    base = map.pmap.pm_pt[addr >> 21]
    map.vm.ram.q[base + (addr >> 12 & 511)] |= PG_A | PG_M
    map.vm.ram.mem[pte & PG_FRAME | addr & P - 1] = value
    return KERN_SUCCESS


def load(map: VmMap, addr: int) -> int:
    """A guest's load of one byte."""
    pa = pmap_extract(map.pmap, addr)
    if pa is None:
        rv = vm_fault(map, addr & -P, VM_PROT_READ, VM_FAULT_NORMAL)
        assert rv == KERN_SUCCESS, f"load from {addr:#x}: {rv}"
        pa = pmap_extract(map.pmap, addr)
        assert pa is not None
    return map.vm.ram.mem[pa]


def sound(*maps: VmMap) -> None:
    """Nothing is wrong with the maps."""
    for map in maps:
        assert vm_map_check(map) == []
