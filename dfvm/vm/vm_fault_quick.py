"""The faults that make up most of all faults, resolved inside the engine's callback.

No thread switch is possible there, so nothing here sleeps or waits, and whatever is not plain is
left to vm_fault: False is answered before anything has changed. Plain is

    a page of the front object, idle and valid                     map it, and neighbours
    the same, known to the page hash and with nothing to change    (without the object: bypass)
    anonymous memory that is nowhere, memory plentiful             zero-fill it, and neighbours
    a write to private memory that is behind the front object      copy it, memory plentiful
    a read of such memory                                          map it without WRITE

in an entry that is not wired and has its object, while no thread sleeps with the map locked
exclusively; if the entry needs a shadow, not even shared. (The shadow stays when the rest turns out
not to be plain after all: it is the first thing that vm_fault would make.)

What vm_fault would do in these cases is done here in the same order and with the same effect, only
without holds and busies: nobody else runs between the first look and the PTE. (Two things apart.
A page that was copied keeps its place on its queue; vm_fault deactivates it. And a copy takes no
neighbours along: what lies beside it is mostly written to, which would fault all the same, or not
used at all by a child that soon execs or exits.)

This is the code that decides how fast memory is touched for the first time; it is written out
rather than composed.

Source: DragonFly sys/vm/vm_fault.c, whose vm_fault_bypass it extends.
"""

from __future__ import annotations

from array import array
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from dfvm.machine.pte import PG_M, PG_NX
from dfvm.vm import probe
from dfvm.vm.pmap import pmap_allocpt, pmap_enter, pmap_pte
from dfvm.vm.vm import VM_PROT_ALL, VM_PROT_EXECUTE, VM_PROT_WRITE
from dfvm.vm.vm_fault_burst import (
    prefault_extent,
    vm_fault_lookup,
    vm_prefault,
    vm_prefault_quick,
)
from dfvm.vm.vm_fault_object import VM_FAULT_DIRTY
from dfvm.vm.vm_fault_rss import RSS_SLACK, vm_fault_rss_surplus
from dfvm.vm.vm_map_backing import vm_map_entry_shadow
from dfvm.vm.vm_map_clip import vm_map_lookup_entry
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_BEHAV_RANDOM,
    MAP_ENTRY_GUARD,
    MAP_ENTRY_KSTACK,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_NOFAULT,
    MAP_ENTRY_NOSYNC,
    MAP_ENTRY_WIREONFAULT,
    VM_MAPTYPE_NORMAL,
)
from dfvm.vm.vm_object import OBJ_DEAD, OBJ_MIGHTBEDIRTY, OBJ_WRITEABLE, OBJT_DEFAULT, OBJT_VNODE
from dfvm.vm.vm_page import (
    ACT_INIT,
    PG_FICTITIOUS,
    PG_MAPPED,
    PG_MAPPEDMULTI,
    PG_NOSYNC,
    PG_RAM,
    PG_REFERENCED,
    PG_SWAPPED,
    PG_WRITEABLE,
    PQ_ACTIVE,
    PQ_CACHE,
    VM_ALLOC_NORMAL,
    VM_ALLOC_ZERO,
    VM_PAGE_BITS_ALL,
    vm_page_activate,
    vm_page_alloc,
    vm_page_alloc_run,
    vm_page_hash_enter,
    vm_page_hash_get,
    vm_page_sbusy_drop,
)

if TYPE_CHECKING:
    from dfvm.vm.pmap import Pmap
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMap, VmMapEntry
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage

_UNUSUAL_ENTRY: Final = (
    MAP_ENTRY_NOFAULT | MAP_ENTRY_KSTACK | MAP_ENTRY_NOSYNC | MAP_ENTRY_WIREONFAULT
    | MAP_ENTRY_GUARD
)  # fmt: skip
_UNUSUAL_PAGE: Final = PG_FICTITIOUS | PG_RAM | PG_SWAPPED | PG_NOSYNC
_DIRTY_OBJECT: Final = OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
_PLENTY: Final = 64  # free pages above v_paging_start from which on memory is plentiful


def vm_fault_quick(map: VmMap, vaddr: int, fault_type: int, user: bool = True) -> bool:
    """Resolve a fault at `vaddr` if that is plain. `user`: it is the guest's own, in the space
    that is loaded; not the kernel's on its behalf. False: nothing was done, call vm_fault. Does
    not block or switch threads."""
    entry = map.hint
    if entry is None or not entry.ba.start <= vaddr < entry.ba.end:
        found, entry = vm_map_lookup_entry(map, vaddr)
        if not found or entry is None:
            return False
    prot = entry.protection
    eflags = entry.eflags
    if (
        fault_type & VM_PROT_ALL & ~prot
        or entry.wired_count
        or eflags & _UNUSUAL_ENTRY
        or map.lock.lk_holder is not None
        or entry.maptype != VM_MAPTYPE_NORMAL
    ):
        return False
    prot |= (fault_type & VM_PROT_EXECUTE) << 3  # FETCH
    write = fault_type & VM_PROT_WRITE
    object = entry.ba.object
    if object is None or object.flags & OBJ_DEAD:
        return False
    vm = map.vm
    pmap = map.pmap
    if vaddr >> 21 not in pmap.pm_pt and not _plenty(vm):
        return False  # a page table might have to be waited for
    if eflags & MAP_ENTRY_NEEDS_COPY:
        if not write:
            prot &= ~VM_PROT_WRITE
        elif map.lock.lk_shared:
            return False
        else:
            map.timestamp += 1
            vm_map_entry_shadow(entry)
    ba = entry.ba
    object = ba.object
    assert object is not None
    td_proc = vm.sched.curthread.td_proc
    if pmap.pm_stats.resident_count > RSS_SLACK and vm_fault_rss_surplus(map, td_proc) > 0:
        return False
    va = vaddr & ~0xFFF
    if probe.fault is not None:
        started = perf_counter_ns()
        prefaulted = vm.gd.gd_cnt.v_prefault
        depth = vm_fault_lookup(entry, va)[1]  # where a copy will have come from
    pindex = va - ba.start + ba.offset >> 12
    if object.type == OBJT_VNODE and prot & VM_PROT_WRITE:
        if not write:
            prot &= ~VM_PROT_WRITE
        elif pindex not in object.rb_memq or not vm_fault_stored(pmap, va, object):
            return False

    # What several processes have mapped belongs to several chains.
    m = vm_page_hash_get(object, pindex) if object.ref_count > 1 else None
    if m is not None and (how := _bypass(pmap, va, entry, object, m, prot, write, user)):
        pass
    elif (m := object.rb_memq.get(pindex)) is not None:
        how = _resident(pmap, va, entry, m, prot, write, user)
    elif object.type != OBJT_DEFAULT or pindex >= object.size:
        return False
    elif ba.backing_ba is None and prot & VM_PROT_WRITE:
        how = _zero_fill(pmap, va, entry, object, pindex, write)
    else:
        how = _behind(pmap, va, entry, object, pindex, prot, write, user)
    if not how:
        return False
    vm.gd.gd_cnt.v_vm_faults += 1
    if td_proc is not None:
        td_proc.p_minflt += 1
    if probe.fault is not None:
        if not user:
            how |= probe.HOW_KERNEL
        _report(map, entry, vaddr, fault_type, how, depth, prefaulted, started)
    return True


def vm_fault_stored(pmap: Pmap, va: int, object: VmObject) -> bool:
    """The page at `va` of a file's `object` is going to be written by way of a shared mapping:
    tell the vnode, unless it has been told since the page was clean. False: that might block."""
    if pmap_pte(pmap, va) & PG_M:
        return True
    vp = object.handle
    return vp is None or vp.vop_stored(False)


def _resident(
    pmap: Pmap, va: int, entry: VmMapEntry, m: VmPage, prot: int, write: int, user: bool
) -> int:
    """Map page `m` of the front object, and what else of it is resident near by. HOW_*, 0: not
    plain."""
    vm = pmap.vm
    flags = m.flags
    if m.busy_count or m.valid != VM_PAGE_BITS_ALL or flags & _UNUSUAL_PAGE or m.queue >= PQ_CACHE:
        return 0
    object = m.object
    assert object is not None
    if m.queue < PQ_ACTIVE:
        vm_page_activate(vm, m)
    elif m.act_count < ACT_INIT:
        m.act_count = ACT_INIT
    if prot & VM_PROT_WRITE:
        object.flags |= _DIRTY_OBJECT
        if write:
            m.dirty = VM_PAGE_BITS_ALL
    m.flags = flags | PG_REFERENCED
    old = pmap_pte(pmap, va)
    pmap_enter(pmap, va, m, prot, False, entry, bool(write and user))
    if m.flags & PG_MAPPEDMULTI:
        vm_page_hash_enter(m)
    if old:
        return probe.HOW_QUICK | probe.HOW_WPTE
    vm_prefault_quick(pmap, va, entry, prot, VM_FAULT_DIRTY if write else 0)
    return probe.HOW_QUICK | probe.HOW_RESIDENT


def _bypass(
    pmap: Pmap,
    va: int,
    entry: VmMapEntry,
    object: VmObject,
    m: VmPage,
    prot: int,
    write: int,
    user: bool,
) -> int:
    """vm_fault_bypass: map `m`, soft-busied as it came from the page hash, if nothing about it or
    the front object has to change, and what else is resident near by. Drops the busy. HOW_*, 0:
    not so, look for the page in the object."""
    if (
        m.busy_count != 1
        or m.valid != VM_PAGE_BITS_ALL
        or m.flags & _UNUSUAL_PAGE
        or m.queue - m.pc != PQ_ACTIVE
        or (
            prot & VM_PROT_WRITE
            and (object.flags & _DIRTY_OBJECT != _DIRTY_OBJECT or m.dirty != VM_PAGE_BITS_ALL)
        )
    ):
        vm_page_sbusy_drop(pmap.vm, m)
        return 0
    if m.act_count < ACT_INIT:
        m.act_count = ACT_INIT
    m.flags |= PG_REFERENCED
    old = pmap_pte(pmap, va)
    pmap_enter(pmap, va, m, prot, False, entry, bool(write and user))
    pmap.vm.gd.gd_cnt.v_fault_bypass += 1
    vm_page_sbusy_drop(pmap.vm, m)
    if old:
        return probe.HOW_QUICK | probe.HOW_BYPASS | probe.HOW_WPTE
    vm_prefault_quick(pmap, va, entry, prot, VM_FAULT_DIRTY if write else 0)
    return probe.HOW_QUICK | probe.HOW_BYPASS


def _behind(
    pmap: Pmap,
    va: int,
    entry: VmMapEntry,
    object: VmObject,
    pindex: int,
    prot: int,
    write: int,
    user: bool,
) -> int:
    """The front object, which is `object`, has no page: map one from behind for reading, copy it
    for writing, zero-fill where there is none. HOW_*, 0: not plain."""
    vm = pmap.vm
    src, depth = vm_fault_lookup(entry, va)
    if src is None:
        if depth < 0 or not _plenty(vm):
            return 0
        m = vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL | VM_ALLOC_ZERO)
        if m is None:
            return 0
        how = probe.HOW_QUICK | probe.HOW_ZFOD
        vm.gd.gd_cnt.v_zfod += 1
    else:
        if (
            src.busy_count
            or src.valid != VM_PAGE_BITS_ALL
            or src.flags & _UNUSUAL_PAGE
            or src.queue >= PQ_CACHE
        ):
            return 0
        if not write:
            how = _resident(pmap, va, entry, src, prot & ~VM_PROT_WRITE, 0, user)
            if how & probe.HOW_RESIDENT:
                vm_prefault(pmap, va, entry, prot & ~VM_PROT_WRITE, 0)
            return how
        if not _plenty(vm):
            return 0
        m = vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL)
        if m is None:
            return 0
        pa, from_pa = m.phys_addr, src.phys_addr
        mem = vm.ram.mem
        mem[pa : pa + 4096] = mem[from_pa : from_pa + 4096]
        how = probe.HOW_QUICK | probe.HOW_COW
        vm.gd.gd_cnt.v_cow_faults += 1
    m.valid = VM_PAGE_BITS_ALL
    if write:
        m.dirty = VM_PAGE_BITS_ALL
    if prot & VM_PROT_WRITE:
        object.flags |= _DIRTY_OBJECT
    m.flags |= PG_REFERENCED
    pmap_enter(pmap, va, m, prot, False, entry, bool(write and user))
    vm_page_activate(vm, m)
    m.busy_count = 0
    return how


def _plenty(vm: VmSystem) -> bool:
    """Whether a page may be taken without a thought about paging."""
    own = vm.gd.gd_vmstats
    return own.v_free_count > own.v_paging_start + _PLENTY


def _zero_fill(
    pmap: Pmap, va: int, entry: VmMapEntry, object: VmObject, pindex: int, write: int
) -> int:
    """Zero-fill the page at `va` of anonymous, writable memory with nothing behind it, and as many
    neighbours as seems right. HOW_*, 0: not plain.

    No PTE can be there where the object has no page, so the run of indices without a page is the
    run of free PTEs, too. It does not leave the page table.
    """
    vm = pmap.vm
    own = vm.gd.gd_vmstats
    if own.v_free_count <= own.v_paging_start + _PLENTY:
        return 0
    base = pmap.pm_pt.get(va >> 21)
    if base is None:
        base = pmap_allocpt(pmap, va)
    slot = base + (va >> 12 & 511)
    q = pmap.q
    if q[slot]:
        return 0
    back = ahead = 0
    if vm.sysctl.fast_fault and not entry.eflags & MAP_ENTRY_BEHAV_RANDOM:
        back, ahead = prefault_extent(pmap, entry, va)
    if not (back or ahead):
        # A run of one takes half as long again as what it consists of.
        m = vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL | VM_ALLOC_ZERO)
        if m is None:
            return 0
        object.flags |= _DIRTY_OBJECT
        bits = pmap.pm_prot[entry.protection & 7]
        m.valid = VM_PAGE_BITS_ALL
        m.flags = PG_MAPPED | PG_WRITEABLE | PG_REFERENCED
        if write:
            m.dirty = VM_PAGE_BITS_ALL
        q[slot] = m.phys_addr | bits
        if not bits & PG_NX:
            pmap.code_frames.add(m.phys_addr >> 12)
        pmap.pm_pt_m[va >> 21].wire_count += 1
        pmap.pm_stats.resident_count += 1
        vm_page_activate(vm, m)
        m.busy_count = 0
        vm.gd.gd_cnt.v_zfod += 1
        return probe.HOW_QUICK | probe.HOW_ZFOD
    ba = entry.ba
    memq = object.rb_memq
    first = pindex
    if back:
        # Memory for this many is certain, so that the run gets as far as the page itself.
        back = min(back, va - ba.start >> 12, va >> 12 & 511, _PLENTY - 1)
        lowest = max(pindex - back, 0)
        while first > lowest and first - 1 not in memq:
            first -= 1
    room = min(ahead + 1, ba.end - va >> 12, 512 - (va >> 12 & 511), object.size - pindex)
    run = vm_page_alloc_run(
        object,
        first,
        pindex - first + room,
        VM_ALLOC_NORMAL | VM_ALLOC_ZERO,
        True,
        PG_MAPPED | PG_WRITEABLE,
    )
    object.flags |= _DIRTY_OBJECT
    bits = pmap.pm_prot[entry.protection & 7]
    count = len(run)
    slot += first - pindex
    q[slot : slot + count] = array("Q", [m.phys_addr | bits for m in run])
    if not bits & PG_NX:
        pmap.code_frames.update([m.phys_addr >> 12 for m in run])
    m = run[pindex - first]
    m.flags = PG_MAPPED | PG_WRITEABLE | PG_REFERENCED
    if write:
        m.dirty = VM_PAGE_BITS_ALL
    pmap.pm_pt_m[va >> 21].wire_count += count
    pmap.pm_stats.resident_count += count
    cnt = vm.gd.gd_cnt
    cnt.v_zfod += count
    cnt.v_prefault += count - 1
    return probe.HOW_QUICK | probe.HOW_ZFOD


def _report(
    map: VmMap,
    entry: VmMapEntry,
    va: int,
    fault_type: int,
    how: int,
    depth: int,
    prefaulted: int,
    started: int,
) -> None:
    """Tell whoever listens what happened."""
    record = probe.FaultRecord(map.vm, entry, va, fault_type & VM_PROT_ALL, how)
    record.page, _ = vm_fault_lookup(entry, va)
    record.depth = depth
    assert record.page is not None
    record.pindex = record.page.pindex
    record.pte = pmap_pte(map.pmap, va)
    record.prefault = map.vm.gd.gd_cnt.v_prefault - prefaulted
    record.ns = perf_counter_ns() - started
    assert probe.fault is not None
    probe.fault(record)
