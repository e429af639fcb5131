"""Neighbours: what a fault maps besides the page it is about.

Which ones: `vm.prefault_pages` around the page, half each way. madvise(RANDOM) turns it off,
madvise(SEQUENTIAL) makes it VM_FAULT_MAX_QUICK - 1 pages forward; and so does a program that is
seen to go through memory in order, by the page on the other side being mapped and used (a stack
goes downwards). A scan ends at the first page in its direction that is mapped already or can't be
had at once.

    vm_prefault        goes down the chain, and with `vm.fast_fault` zero-fills what is nowhere in
                       anonymous memory that may be written
    vm_prefault_quick  maps what is resident and valid in the first object, where nothing is behind
                       it: enough for a file's pages that others use already

Neither waits for anything. Pages are not busied while they are mapped, because nothing sleeps
between finding them idle and entering them.

Source: DragonFly sys/vm/vm_fault.c (vm_prefault, vm_prefault_quick).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.machine.pte import PG_A
from dfvm.vm.pmap import pmap_enter, pmap_enter_run, pmap_prefault_ok, pmap_pte
from dfvm.vm.vm import VM_MEMATTR_DEFAULT, VM_PROT_ALL, VM_PROT_WRITE
from dfvm.vm.vm_fault_object import VM_FAULT_DIRTY, vm_set_nosync
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_BEHAV_MASK,
    MAP_ENTRY_BEHAV_RANDOM,
    MAP_ENTRY_BEHAV_SEQUENTIAL,
)
from dfvm.vm.vm_object import OBJ_MIGHTBEDIRTY, OBJ_WRITEABLE, OBJT_DEFAULT, OBJT_VNODE
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PBUSY_MASK,
    PG_FICTITIOUS,
    PG_SWAPPED,
    PQ_CACHE,
    VM_ALLOC_NORMAL,
    VM_ALLOC_ZERO,
    VM_PAGE_BITS_ALL,
    vm_page_activate,
    vm_page_alloc,
    vm_page_deactivate,
    vm_page_wakeup,
)
from dfvm.vm.vm_page2 import vm_paging_min
from dfvm.vm.vm_param import PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.vm.pmap import Pmap
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMapEntry
    from dfvm.vm.vm_page import VmPage

VM_FAULT_MAX_QUICK: Final = 16  # pages one fault maps at most when it knows the direction
_MAX_PREFAULT: Final = 1024  # whatever vm.prefault_pages says


def prefault_extent(pmap: Pmap, entry: VmMapEntry, va: int) -> tuple[int, int]:
    """How many pages to try below and above `va`, which may reach beyond the entry."""
    pages = pmap.vm.sysctl.prefault_pages
    behavior = entry.eflags & MAP_ENTRY_BEHAV_MASK
    if pages <= 0 or behavior == MAP_ENTRY_BEHAV_RANDOM:
        return 0, 0
    ba = entry.ba
    base, index = pmap.pm_pt.get(va >> 21), va >> 12 & 511
    if base is not None and 0 < index < 511:
        before, behind = pmap.q[base + index - 1], pmap.q[base + index + 1]
    else:
        before, behind = pmap_pte(pmap, va - PAGE_SIZE), pmap_pte(pmap, va + PAGE_SIZE)
    # What another entry has beside this one says nothing of how this one is used.
    if va == ba.start:
        before = 0
    if va + PAGE_SIZE == ba.end:
        behind = 0
    if behavior == MAP_ENTRY_BEHAV_SEQUENTIAL or before & PG_A:
        return 0, VM_FAULT_MAX_QUICK - 1
    if behind & PG_A:
        return VM_FAULT_MAX_QUICK - 1, 0
    pages = min(pages, _MAX_PREFAULT)
    return pages + 1 >> 1, pages >> 1


def vm_prefault(pmap: Pmap, va: int, entry: VmMapEntry, prot: int, fault_flags: int) -> int:
    """Map neighbours of `va` in the entry with at most `prot`, down the chain and by zero-fill.
    The map is locked, the first object held exclusively. Returns how many. Does not block."""
    prot &= VM_PROT_ALL
    back, ahead = prefault_extent(pmap, entry, va)
    object = entry.ba.object
    if object is not None and object.type == OBJT_VNODE and prot & VM_PROT_WRITE:
        return 0  # the first store to each page of a file is to be noted
    above = range(va + PAGE_SIZE, min(entry.ba.end, va + (ahead + 1) * PAGE_SIZE), PAGE_SIZE)
    below = range(va - PAGE_SIZE, max(entry.ba.start, va - back * PAGE_SIZE) - 1, -PAGE_SIZE)
    count = _scan(pmap, above, entry, prot, fault_flags)
    count += _scan(pmap, below, entry, prot, fault_flags)
    pmap.vm.gd.gd_cnt.v_prefault += count
    return count


def _scan(pmap: Pmap, addresses: range, entry: VmMapEntry, prot: int, fault_flags: int) -> int:
    """Map pages at `addresses` as far as it goes; returns how many."""
    vm = pmap.vm
    count = 0
    for addr in addresses:
        if not pmap_prefault_ok(pmap, addr):
            break
        m, depth = vm_fault_lookup(entry, addr)
        if m is not None:
            allowed = prot & ~VM_PROT_WRITE if depth else prot
            if not _idle(vm, m, entry, allowed, fault_flags):
                break
            pmap_enter(pmap, addr, m, allowed, False, entry)
        else:
            if depth < 0 or not (prot & VM_PROT_WRITE and vm.sysctl.fast_fault):
                break
            m = _zero_page(vm, entry, addr)
            if m is None:
                break
            vm_set_nosync(m, entry)
            pmap_enter(pmap, addr, m, prot, False, entry)
            vm_page_activate(vm, m)
            vm_page_wakeup(vm, m)
        count += 1
    return count


def vm_fault_lookup(entry: VmMapEntry, va: int) -> tuple[VmPage | None, int]:
    """The page that shows at `va`, and how deep in the chain. None, 0: it is nowhere, and zeros
    would be right. None, -1: a pager would have to be asked. The map is locked."""
    ba = entry.ba
    depth = 0
    while True:
        object = ba.object
        assert object is not None
        m = object.rb_memq.get(va - ba.start + ba.offset >> 12)
        if m is not None:
            return m, depth
        if object.type != OBJT_DEFAULT:
            return None, -1
        below = ba.backing_ba
        if below is None:
            return None, 0
        ba = below
        depth += 1


def _zero_page(vm: VmSystem, entry: VmMapEntry, addr: int) -> VmPage | None:
    """A new page of zeros for `addr` in the first object, hard-busied; None if memory is not
    plentiful."""
    if vm_paging_min(vm):
        return None
    ba = entry.ba
    object = ba.object
    assert object is not None
    pindex = addr - ba.start + ba.offset >> 12
    if pindex >= object.size:
        return None
    m = vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL | VM_ALLOC_ZERO)
    if m is not None:
        m.valid = VM_PAGE_BITS_ALL
        object.flags |= OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
        vm.gd.gd_cnt.v_zfod += 1
    return m


def _idle(vm: VmSystem, m: VmPage, entry: VmMapEntry, prot: int, fault_flags: int) -> bool:
    """Whether page `m` can be mapped with `prot` at once: it is there, valid, and nobody is at
    work on it. If so it is made ready for that."""
    if (
        m.valid != VM_PAGE_BITS_ALL
        or m.busy_count & (PBUSY_LOCKED | PBUSY_MASK)
        or m.flags & PG_FICTITIOUS
        or m.pat_mode != VM_MEMATTR_DEFAULT
    ):
        return False
    if prot & VM_PROT_WRITE:
        if m.flags & PG_SWAPPED and fault_flags & VM_FAULT_DIRTY:
            return False
        object = m.object
        assert object is not None
        object.flags |= OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
        vm_set_nosync(m, entry)
    if m.queue - m.pc == PQ_CACHE:
        vm_page_deactivate(vm, m)
    return True


def vm_prefault_quick(pmap: Pmap, va: int, entry: VmMapEntry, prot: int, fault_flags: int) -> int:
    """Map neighbours of `va` that the entry's only object has resident and valid. The map is
    locked; the object may be held shared. Returns how many. Does not block."""
    ba = entry.ba
    object = ba.object
    if object is None or ba.backing_ba is not None:
        return 0
    if object.type == OBJT_VNODE and prot & VM_PROT_WRITE:
        return 0  # the first store to each page of a file is to be noted
    back, ahead = prefault_extent(pmap, entry, va)
    memq, pindex = object.rb_memq, va - ba.start + ba.offset >> 12
    # It does not leave the page table, so that all PTEs can be looked at at once.
    index = va >> 12 & 511
    ahead = min(ahead, (ba.end - va >> 12) - 1, 511 - index)
    back = min(back, va - ba.start >> 12, index)
    base = pmap.pm_pt.get(va >> 21)
    if base is None:
        return 0
    ptes = pmap.q[base + index - back : base + index + ahead + 1].tolist()
    above: list[VmPage] = []
    below: list[VmPage] = []
    for run, indices in ((above, range(1, ahead + 1)), (below, range(-1, -back - 1, -1))):
        for i in indices:
            m = memq.get(pindex + i)
            if m is None or ptes[back + i]:
                break
            # Text that others run is by far the most of it: no call for what _idle would find.
            if (
                prot & VM_PROT_WRITE
                or m.busy_count
                or m.valid != VM_PAGE_BITS_ALL
                or m.queue >= PQ_CACHE
                or m.flags & PG_FICTITIOUS
                or m.pat_mode != VM_MEMATTR_DEFAULT
            ) and not _idle(pmap.vm, m, entry, prot, fault_flags):
                break
            run.append(m)
    if above:
        pmap_enter_run(pmap, va + PAGE_SIZE, above, prot)
    if below:
        below.reverse()
        pmap_enter_run(pmap, va - len(below) * PAGE_SIZE, below, prot)
    count = len(above) + len(below)
    pmap.vm.gd.gd_cnt.v_prefault += count
    return count
