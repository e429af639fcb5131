"""Page faults: from an address and an access to a PTE.

    vm_fault            the whole way; may sleep and do I/O
      vm_map_lookup       the entry, made ready: shadowed, given an object, cut to a partition
      vm_map_growstack    no entry, but a stack just above
      vm_fault_bypass     the page is in the page hash and nothing has to be done about it
      vm_fault_object     down the chain: find, read, copy, zero-fill (vm_fault_object.py)
      pmap_enter          the PTE
      vm_prefault         neighbours (vm_fault_burst.py)
      vm_fault_rss_…      what is over the process's limit goes (vm_fault_rss.py)
    vm_fault_quick      the part of it that neither sleeps nor meets anything unusual; called from
                        inside the engine (vm_fault_quick.py)
    vm_fault_page       the page without a PTE, for the kernel's own use
    vm_fault_wire …     in vm_fault_wire.py

What a fault answers, and what a user's access that faulted gets for it:

    KERN_SUCCESS              it is done again
    KERN_INVALID_ADDRESS      nothing is mapped there                     SIGSEGV, SEGV_MAPERR
    KERN_PROTECTION_FAILURE   the entry does not allow it                 SIGSEGV, SEGV_ACCERR
    KERN_FAILURE              the object has no such page, or a read error   SIGBUS, BUS_ADRERR
    KERN_RESOURCE_SHORTAGE    the process is being killed to free memory

(DragonFly answers KERN_PROTECTION_FAILURE for both the second and the third.)

Source: DragonFly sys/vm/vm_fault.c.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic
from dfvm.machine.pte import PG_FRAME, PG_MANAGED, PG_RW, PG_U
from dfvm.vm import probe
from dfvm.vm.pmap import pmap_enter, pmap_pte, pmap_ready, pmap_remove
from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_PROTECTION_FAILURE,
    KERN_SUCCESS,
    KERN_TRY_AGAIN,
    VM_PROT_ALL,
    VM_PROT_EXECUTE,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_fault_burst import vm_prefault, vm_prefault_quick
from dfvm.vm.vm_fault_object import (
    VM_FAULT_BURST,
    VM_FAULT_CHANGE_WIRING,
    VM_FAULT_DIRTY,
    VM_FAULT_NORMAL,
    VM_FAULT_UNSWAP,
    VM_FAULT_USER_WIRE,
    VM_FAULT_USERMODE,
    VM_FAULT_WIRE_MASK,
    FaultState,
    unlock_things,
    vm_fault_bypass,
    vm_fault_no_memory,
    vm_fault_object,
)
from dfvm.vm.vm_fault_quick import vm_fault_quick, vm_fault_stored
from dfvm.vm.vm_fault_rss import (
    RSS_SLACK,
    vm_fault_rss_surplus,
    vm_pageout_map_deactivate_pages,
)
from dfvm.vm.vm_fault_wire import (
    vm_fault_collapse,
    vm_fault_copy_entry,
    vm_fault_unwire,
    vm_fault_wire,
)
from dfvm.vm.vm_map_clip import vm_map_lookup_entry
from dfvm.vm.vm_map_entry import MAP_ENTRY_KSTACK, MAP_ENTRY_NOFAULT, MAP_ENTRY_WIREONFAULT
from dfvm.vm.vm_map_lookup import FW_WIRED, vm_map_lookup
from dfvm.vm.vm_map_stack import vm_map_growstack
from dfvm.vm.vm_object import OBJT_VNODE, vm_object_hold, vm_object_hold_shared
from dfvm.vm.vm_page import (
    PG_REFERENCED,
    PHYS_TO_VM_PAGE,
    VM_PAGE_BITS_ALL,
    vm_page_hold,
    vm_page_sbusy_drop,
    vm_page_wakeup,
    vm_page_wire,
)
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap
    from dfvm.vm.vm_map_lookup import LookupResult
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage

__all__ = [
    "VM_FAULT_BURST", "VM_FAULT_CHANGE_WIRING", "VM_FAULT_DIRTY", "VM_FAULT_NORMAL",
    "VM_FAULT_UNSWAP", "VM_FAULT_USERMODE", "VM_FAULT_USER_WIRE", "VM_FAULT_WIRE_MASK", "vm_fault",
    "vm_fault_collapse", "vm_fault_copy_entry", "vm_fault_page", "vm_fault_quick",
    "vm_fault_unwire", "vm_fault_wire", "vm_prefault", "vm_prefault_quick",
]  # fmt: skip


def vm_fault(map: VmMap, vaddr: int, fault_type: int, fault_flags: int) -> int:
    """Resolve a fault at `vaddr` for an access of `fault_type`: the page is in memory and mapped
    when this answers KERN_SUCCESS. The answers stand above. Nothing is locked by the caller; may
    block."""
    vm = map.vm
    started = 0 if probe.fault is None else perf_counter_ns()
    va = vaddr & ~PAGE_MASK
    fs = FaultState(map, fault_flags)
    while (rv := _attempt(fs, map, va, fault_type)) == KERN_TRY_AGAIN:
        pass
    vm.gd.gd_cnt.v_vm_faults += 1
    proc = vm.sched.curthread.td_proc
    if proc is not None:
        if rv == KERN_SUCCESS:
            if fs.hardfault:
                proc.p_majflt += 1
            else:
                proc.p_minflt += 1
        if fault_flags & VM_FAULT_USERMODE:
            if map.pmap.pm_stats.resident_count > RSS_SLACK:
                surplus = vm_fault_rss_surplus(map, proc)
                if surplus:
                    vm_pageout_map_deactivate_pages(map, surplus)
    if probe.fault is not None:
        _report(fs, map, vaddr, fault_type, rv, started)
    entry = fs.entry
    if rv == KERN_SUCCESS and entry is not None and entry.eflags & MAP_ENTRY_WIREONFAULT:
        if not fault_flags & VM_FAULT_WIRE_MASK:
            from dfvm.vm.vm_map_madvise import vm_map_mark
            from dfvm.vm.vm_map_wire import (  # which faults pages in
                vm_map_user_wiring,
                vm_map_wire_copies,
            )

            if vm_map_wire_copies(entry, fs.m):
                return rv  # nobody has written to it: what others write to the file is to show
            # That it can't be wired is no reason to fail: it is there.
            if vm_map_user_wiring(map, va, va + PAGE_SIZE, False) != KERN_SUCCESS:
                vm_map_mark(map, va, va + PAGE_SIZE, 0, MAP_ENTRY_WIREONFAULT)
    return rv


def _lookup(
    fs: FaultState, map: VmMap, va: int, fault_type: int
) -> tuple[int, LookupResult | None]:
    """vm_map_lookup, noted in `fs`; where there is no entry but a stack that can grow, it grows
    and is to be looked up again (KERN_TRY_AGAIN). May block."""
    rv, look = vm_map_lookup(map, va, fault_type)
    if look is None:
        if rv == KERN_INVALID_ADDRESS and not fs.how & probe.HOW_GROW and not map.system_map:
            fs.how |= probe.HOW_GROW
            if vm_map_growstack(map, va) == KERN_SUCCESS:
                return KERN_TRY_AGAIN, None
            fs.how &= ~probe.HOW_GROW
        return rv, None
    fs.map = look.map
    fs.map_locked = True
    fs.entry = look.entry
    fs.first_ba = fs.ba = look.ba
    fs.first_prot = fs.prot = look.prot
    fs.wflags = look.wflags
    object = look.ba.object
    if object is None:
        panic(f"vm_fault: unrecoverable fault at {va:#x} in {look.entry!r}")
    if object.type == OBJT_VNODE and look.prot & VM_PROT_WRITE:
        if not fault_type & VM_PROT_WRITE:
            fs.first_prot = fs.prot = look.prot & ~VM_PROT_WRITE
        elif look.pindex < object.size and not _note_store(fs, va, object):
            return KERN_TRY_AGAIN, None
    return rv, look


def _note_store(fs: FaultState, va: int, object: VmObject) -> bool:
    """vm_fault_stored, and when that might block, by blocking: once a fault. False: it has, and
    everything was given back."""
    vp = object.handle
    if vp is None or vp is fs.stored or vm_fault_stored(fs.map.pmap, va, object):
        return True
    fs.stored = vp
    vp.vref()
    unlock_things(fs)
    vp.vop_stored(True)
    vp.vrele()
    return False


def _attempt(fs: FaultState, map: VmMap, va: int, fault_type: int) -> int:
    """One try from the map to the PTE. KERN_TRY_AGAIN: it slept on the way."""
    rv, look = _lookup(fs, map, va, fault_type)
    if look is None:
        return rv
    entry, ba = look.entry, look.ba
    if entry.eflags & (MAP_ENTRY_NOFAULT | MAP_ENTRY_KSTACK):
        if entry.eflags & MAP_ENTRY_NOFAULT:
            panic(f"vm_fault: fault on nofault entry, address {va:#x}")
        if va < ba.start + PAGE_SIZE:
            panic(f"vm_fault: fault on stack guard, address {va:#x}")
    object = ba.object
    assert object is not None
    if fs.wflags & FW_WIRED:
        fault_type = fs.first_prot  # what is wired must not fault again

    if not pmap_ready(fs.map.pmap, va):
        return vm_fault_no_memory(fs)  # there will be none for the page table either

    if not (fs.first_shared and vm_fault_bypass(fs, look.pindex)):
        if fs.first_shared and look.pindex in object.rb_memq:
            vm_object_hold_shared(object)
        else:
            fs.first_shared = False  # a page will be put into it
            vm_object_hold(object)
        fs.first_held = True
        rv = vm_fault_object(fs, look.pindex, fault_type)
        if rv != KERN_SUCCESS:
            return rv

    m = fs.m
    assert m is not None
    m.flags |= PG_REFERENCED
    fault_flags = fs.fault_flags
    pmap = fs.map.pmap
    if probe.fault is not None and (pmap_pte(pmap, va) ^ m.phys_addr) & PG_FRAME == 0:
        fs.how = fs.how & ~probe.HOW_RESIDENT | probe.HOW_WPTE
    healing = bool(fault_flags & VM_FAULT_USERMODE and fault_type & VM_PROT_WRITE)
    prot = fs.prot | (fault_type & VM_PROT_EXECUTE) << 3  # FETCH
    pmap_enter(pmap, va, m, prot, bool(fs.wflags & FW_WIRED), entry, healing)
    if fs.soft:
        fs.vm.gd.gd_cnt.v_fault_bypass += 1
        vm_page_sbusy_drop(fs.vm, m)
    else:
        if fault_flags & VM_FAULT_WIRE_MASK:
            vm_page_wire(fs.vm, m)
        vm_page_wakeup(fs.vm, m)
        if (
            fault_flags & VM_FAULT_BURST
            and not fs.wflags & FW_WIRED
            and not entry.eflags & MAP_ENTRY_WIREONFAULT
        ):
            prefault = vm_prefault_quick if fs.first_shared else vm_prefault
            fs.prefault = prefault(pmap, va, entry, fs.prot, fault_flags)
    unlock_things(fs)
    return KERN_SUCCESS


def _report(fs: FaultState, map: VmMap, va: int, fault_type: int, rv: int, started: int) -> None:
    """Tell whoever listens what happened."""
    how = fs.how
    if rv != KERN_SUCCESS:
        how |= probe.HOW_SIGNAL
    if fs.fault_flags & VM_FAULT_WIRE_MASK:
        how |= probe.HOW_WIRE
    elif not fs.fault_flags & VM_FAULT_USERMODE:
        how |= probe.HOW_KERNEL
    entry = fs.entry
    if entry is None:  # refused because of what the entry allows, if there is one
        found, there = vm_map_lookup_entry(map, va)
        entry = there if found else None
    record = probe.FaultRecord(fs.vm, entry, va, fault_type & VM_PROT_ALL, how)
    record.result = rv
    record.depth = fs.depth
    record.pindex = fs.pindex
    if rv == KERN_SUCCESS:
        record.page = fs.m
        record.pte = pmap_pte(map.pmap, va)
    record.prefault = fs.prefault
    record.major = fs.hardfault
    record.ns = perf_counter_ns() - started
    assert probe.fault is not None
    probe.fault(record)


def vm_fault_page(
    map: VmMap, vaddr: int, fault_type: int, fault_flags: int
) -> tuple[VmPage | None, int]:
    """The page that an access at `vaddr` would reach, held (vm_page_unhold gives it back), and
    KERN_SUCCESS; or None and why not. For writing it is copied first where it must be, and dirty.
    The page table is left alone, except that a mapping of the old page of such a copy goes. Nothing
    is locked by the caller; may block."""
    va = vaddr & ~PAGE_MASK
    pmap = map.pmap
    pte = pmap_pte(pmap, va)
    need = PG_MANAGED | PG_U | (PG_RW if fault_type & VM_PROT_WRITE else 0)
    if pte & need == need:
        m = PHYS_TO_VM_PAGE(map.vm, pte & PG_FRAME)
        assert m is not None
        if fault_type & VM_PROT_WRITE:
            m.dirty = VM_PAGE_BITS_ALL
        vm_page_hold(map.vm, m)
        return m, KERN_SUCCESS

    fs = FaultState(map, fault_flags)
    while (rv := _attempt_page(fs, map, va, fault_type)) == KERN_TRY_AGAIN:
        pass
    m = fs.m
    if rv != KERN_SUCCESS or m is None:
        return None, rv
    pte = pmap_pte(pmap, va)
    if pte and (pte ^ m.phys_addr) & PG_FRAME:
        pmap_remove(pmap, va, va + PAGE_SIZE)
    if fault_type & VM_PROT_WRITE:
        m.dirty = VM_PAGE_BITS_ALL
    m.flags |= PG_REFERENCED
    vm_page_hold(map.vm, m)
    vm_page_wakeup(map.vm, m)
    return m, rv


def _attempt_page(fs: FaultState, map: VmMap, va: int, fault_type: int) -> int:
    """One try of vm_fault_page; on success fs.m is hard-busied and nothing else is kept."""
    rv, look = _lookup(fs, map, va, fault_type)
    if look is None:
        return rv
    object = look.ba.object
    assert object is not None
    if look.entry.eflags & MAP_ENTRY_NOFAULT:
        panic(f"vm_fault_page: nofault entry, address {va:#x}")
    fs.first_shared = False
    vm_object_hold(object)
    fs.first_held = True
    rv = vm_fault_object(fs, look.pindex, fs.first_prot if fs.wflags & FW_WIRED else fault_type)
    if rv != KERN_SUCCESS:
        return rv
    unlock_things(fs)
    if fault_type & VM_PROT_WRITE and not fs.prot & VM_PROT_WRITE:
        assert fs.m is not None
        vm_page_wakeup(fs.vm, fs.m)
        return KERN_PROTECTION_FAILURE
    return KERN_SUCCESS
