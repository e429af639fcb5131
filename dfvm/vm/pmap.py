"""Mappings by address: enter, remove, protect, copy, unwire, and the kernel's own unmanaged ones.

This is the VM's way to the MMU: vm_map and vm_fault call it, nothing else writes a leaf PTE except
`pmap_page.py`, whose functions (from a page to its mappings) are to be had here, too, as are those
of `pmap_table.py` (the tables). There is no record of a mapping besides its PTE. What a PTE knows
of its page's use, A and M, goes to the page (PG_REFERENCED, dirty) when the PTE goes.

Staleness. Whoever takes a right away or exchanges a frame tells the MMU, but only where the engine
can have the translation: it sets A in a PTE when it loads it, so a PTE without A is in no TLB.
Adding rights, or filling in a PTE that was absent, needs nothing: the engine walks again before it
faults.

Source: DragonFly platform/pc64/x86_64/pmap.c.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.machine.pte import (
    PG_A,
    PG_FRAME,
    PG_G,
    PG_M,
    PG_MANAGED,
    PG_NX,
    PG_RW,
    PG_V,
    PG_W,
    pat_bits,
)
from dfvm.vm.pmap_page import (
    pmap_alias,
    pmap_clear_modify,
    pmap_clear_reference,
    pmap_is_modified,
    pmap_mapped,
    pmap_page_protect,
    pmap_page_set_memattr,
    pmap_pgscan,
    pmap_ts_referenced,
)
from dfvm.vm.pmap_table import (
    Pmap,
    PmapStatistics,
    pmap_allocpt,
    pmap_bootstrap,
    pmap_extract,
    pmap_freept,
    pmap_pinit,
    pmap_pte,
    pmap_ready,
    pmap_release,
)
from dfvm.vm.vm import VM_MEMATTR_DEFAULT, VM_PROT_EXECUTE, VM_PROT_READ, VM_PROT_WRITE
from dfvm.vm.vm_map_entry import MAP_PREFAULT_PARTIAL
from dfvm.vm.vm_object import OBJT_VNODE
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PG_FICTITIOUS,
    PG_MAPPED,
    PG_MAPPEDMULTI,
    PG_REFERENCED,
    PG_WRITEABLE,
    PHYS_TO_VM_PAGE,
    PQ_CACHE,
    VM_PAGE_BITS_ALL,
    vm_page_deactivate,
)
from dfvm.vm.vm_param import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMapEntry
    from dfvm.vm.vm_page import VmPage

__all__ = [
    "Pmap", "PmapStatistics", "pmap_allocpt", "pmap_bootstrap", "pmap_clear_modify",
    "pmap_clear_reference", "pmap_copy", "pmap_enter", "pmap_enter_quick", "pmap_enter_run",
    "pmap_extract", "pmap_freept", "pmap_is_modified", "pmap_kenter",
    "pmap_kremove", "pmap_mapped", "pmap_object_init_pt", "pmap_page_protect",
    "pmap_page_set_memattr", "pmap_pgscan", "pmap_pinit", "pmap_prefault_ok", "pmap_protect",
    "pmap_pte", "pmap_qenter", "pmap_qremove", "pmap_ready", "pmap_release", "pmap_remove",
    "pmap_resident_count", "pmap_ts_referenced", "pmap_unwire",
]  # fmt: skip

_ZEROS: Final = memoryview(bytes(PAGE_SIZE)).cast("Q")
_NOTHING_BYTES: Final = 512
_NOTHING: Final = bytes(_NOTHING_BYTES)  # 64 PTEs that are 0
_KERNEL_LEAF: Final = PG_V | PG_RW | PG_A | PG_M | PG_G | PG_NX  # of an unmanaged mapping
_MAX_INIT_PT: Final = 96  # pages that object_init_pt maps of a large object when asked lightly

# One bit of every PTE of a table, as a number: a whole table is changed by integer arithmetic,
# hundreds of times faster than entry by entry. Bit n of entry i is bit 64 i + n.
_ALL_V: Final = int.from_bytes(PG_V.to_bytes(8, "little") * 512, "little")
_BULK: Final = 24  # PTEs from which on it pays


def pmap_enter(pmap: Pmap, va: int, m: VmPage, prot: int, wired: bool, entry: VmMapEntry | None,
               healing: bool = False) -> int:  # fmt: skip
    """Map page `m` at `va` with `prot`, instead of what was there. Returns the PTE.

    The page is busy (soft suffices), or fictitious; its object holds the map entry's backing
    element in its backing_list. `healing`: this is the answer to the guest's own write fault at
    `va` in the loaded space, so that the engine replaces its translation by itself. May block for
    memory for a table.
    """
    key = va >> 21
    base = pmap.pm_pt.get(key)
    if base is None:
        base = pmap_allocpt(pmap, va)
    q = pmap.q
    slot = base + (va >> 12 & 511)
    old: int = q[slot]
    pa = m.phys_addr
    new = pa | pmap.pm_prot[prot & 0x27]
    stats = pmap.pm_stats
    if m.pat_mode != VM_MEMATTR_DEFAULT:
        new |= pat_bits(m.pat_mode)
    if wired:
        new |= PG_W
        stats.wired_count += 1
    flags = m.flags
    if flags & PG_FICTITIOUS:
        new &= ~PG_MANAGED
    if old:
        if old & PG_W:
            stats.wired_count -= 1
        if (old ^ new) & PG_FRAME:
            if old & PG_A and not (healing and old & PG_NX):
                pmap.vm.mmu.stale(pmap.pm_pml4)
            _leave(pmap, old)
            flags = m.flags | (PG_MAPPEDMULTI if flags & PG_MAPPED else 0)
        else:
            if not old & PG_NX and prot & VM_PROT_EXECUTE:
                new &= ~PG_NX
            if old & PG_A and (old & ~new & PG_RW or new & ~old & PG_NX
                               or (old ^ new) & _PAT_BITS):  # fmt: skip
                pmap.vm.mmu.stale(pmap.pm_pml4)
            new |= old & (PG_A | PG_M)
    else:
        pmap.pm_pt_m[key].wire_count += 1
        stats.resident_count += 1
        if flags & PG_MAPPED:
            flags |= PG_MAPPEDMULTI
    if new & PG_MANAGED:
        m.flags = flags | (PG_MAPPED | PG_WRITEABLE if new & PG_RW else PG_MAPPED)
    q[slot] = new
    if not new & PG_NX:
        pmap.code_frames.add(pa >> 12)
        if flags & PG_MAPPEDMULTI and m.flags & PG_WRITEABLE:
            pmap_alias(pmap, va, m, new)
    elif new & PG_RW and pa >> 12 in pmap.code_frames:
        pmap_alias(pmap, va, m, new)
    return new


_PAT_BITS: Final = pat_bits(5) | pat_bits(0) | pat_bits(1)  # every bit that selects a memory type


def pmap_enter_run(pmap: Pmap, va: int, run: list[VmPage], prot: int) -> None:
    """Map the pages of `run` at `va` and behind it with `prot`, in one page table, which exists,
    and where nothing is mapped: what pmap_enter does, once for all of them. A program that was
    just forked gets most of its pages this way. The pages are busy or idle, managed, and of the
    default memory type. Does not block."""
    key = va >> 21
    slot = pmap.pm_pt[key] + (va >> 12 & 511)
    q = pmap.q
    bits = pmap.pm_prot[prot & 7]
    mapped = PG_MAPPED | PG_WRITEABLE if bits & PG_RW else PG_MAPPED
    code_frames = pmap.code_frames
    alias = False
    for m in run:
        flags = m.flags
        if flags & PG_MAPPED:
            alias |= flags & PG_WRITEABLE != 0
            flags |= PG_MAPPEDMULTI
        m.flags = flags | mapped
        q[slot] = m.phys_addr | bits
        slot += 1
    if not bits & PG_NX:
        code_frames.update([m.phys_addr >> 12 for m in run])
    elif bits & PG_RW:
        alias = not code_frames.isdisjoint([m.phys_addr >> 12 for m in run])
    else:
        alias = False  # to be read only: that disturbs nobody
    if alias:
        for i, m in enumerate(run):
            if m.phys_addr >> 12 in code_frames:
                pmap_alias(pmap, va + (i << 12), m, bits)
    pmap.pm_pt_m[key].wire_count += len(run)
    pmap.pm_stats.resident_count += len(run)


def pmap_enter_quick(pmap: Pmap, va: int, m: VmPage, prot: int) -> None:
    """Map the busy page `m` at `va` without the right to write, unless something is mapped there
    or memory is too short for a table. Does not block."""
    base = pmap.pm_pt.get(va >> 21)
    if pmap_ready(pmap, va) if base is None else not pmap.q[base + (va >> 12 & 511)]:
        pmap_enter(pmap, va, m, prot & ~VM_PROT_WRITE, False, None)


def pmap_prefault_ok(pmap: Pmap, va: int) -> bool:
    """Whether `va` could be mapped in passing: its table is there, and nothing is mapped."""
    base = pmap.pm_pt.get(va >> 21)
    return base is not None and not pmap.q[base + (va >> 12 & 511)]


def _leave(pmap: Pmap, pte: int) -> None:
    """The leaf `pte` is going: hand what it knows to its page. Not the counts."""
    if pte & PG_MANAGED:
        m = PHYS_TO_VM_PAGE(pmap.vm, pte & PG_FRAME)
        assert m is not None
        flags = m.flags
        if pte & PG_A:
            flags |= PG_REFERENCED
        if pte & PG_M:
            m.dirty = VM_PAGE_BITS_ALL
        if not flags & PG_MAPPEDMULTI:
            flags &= ~(PG_MAPPED | PG_WRITEABLE)
        m.flags = flags


def pmap_remove(pmap: Pmap, sva: int, eva: int) -> None:
    """Unmap [sva, eva). Tables that become empty are given back. Does not block."""
    if sva >= eva or not pmap.pm_pt:
        return
    first, last = sva >> 21, eva - 1 >> 21
    for key in pmap_tables(pmap, first, last):
        lo = sva >> 12 & 511 if key == first else 0
        hi = (eva - 1 >> 12 & 511) + 1 if key == last else 512
        _remove_run(pmap, key, lo, hi)


def pmap_tables(pmap: Pmap, first: int, last: int) -> Sequence[int]:
    """Which keys of pm_pt lie in first … last, in no order: asks the smaller of the two sets."""
    pt = pmap.pm_pt
    if first == last:
        return (first,) if first in pt else ()
    if last - first < len(pt):
        return [key for key in range(first, last + 1) if key in pt]
    return [key for key in pt if first <= key <= last]


def pmap_ptes(pmap: Pmap, sva: int, eva: int) -> Iterator[tuple[int, int]]:
    """The address and the PTE of each page that is mapped in [sva, eva), from low to high. Only
    page tables that exist are looked at, however large the range is."""
    if sva >= eva:
        return
    for key in sorted(pmap_tables(pmap, sva >> 21, eva - 1 >> 21)):
        base = key << 21
        lo = max(sva - base, 0) >> 12
        hi = min(eva - base, 1 << 21) >> 12
        for i, pte in enumerate(_ptes(pmap, key, lo, hi), lo):
            if pte & PG_V:
                yield base + (i << 12), pte


def pmap_clear_young(pmap: Pmap, sva: int, eva: int) -> None:
    """Clear the A bit of every PTE in [sva, eva), so that the next access shows, and that of the
    pages there which had been seen used."""
    vm = pmap.vm
    for key in pmap_tables(pmap, sva >> 21, eva - 1 >> 21):
        base = pmap.pm_pt[key]
        lo = max(sva - (key << 21), 0) >> 12
        hi = min(eva - (key << 21), 1 << 21) >> 12
        for slot in range(base + lo, base + hi):
            pte = pmap.q[slot]
            if not pte & PG_V:
                continue
            m = PHYS_TO_VM_PAGE(vm, pte & PG_FRAME)
            if m is not None:
                m.flags &= ~PG_REFERENCED
            if pte & PG_A:
                pmap.q[slot] = pte & ~PG_A
                vm.mmu.stale(pmap.pm_pml4)


def _remove_run(pmap: Pmap, key: int, lo: int, hi: int) -> None:
    """Clear the PTEs lo … hi - 1 of the page table of `key`."""
    table, base, q = pmap.pm_pt_m[key], pmap.pm_pt[key], pmap.q
    pages = pmap.vm.pages.vm_page_array
    in_use = table.wire_count - 1
    found = wired = accessed = 0
    for pte in _present(pmap, base + lo, base + hi):
        found += 1
        if pte & PG_MANAGED and (m := pages[(pte & PG_FRAME) >> 12]) is not None:
            flags = m.flags
            if pte & PG_A:
                flags |= PG_REFERENCED
                accessed = 1
            if pte & PG_M:
                m.dirty = VM_PAGE_BITS_ALL
            if not flags & PG_MAPPEDMULTI:
                flags &= ~(PG_MAPPED | PG_WRITEABLE)
            m.flags = flags
        else:
            accessed |= pte & PG_A
        if pte & PG_W:
            wired += 1
    if not found:
        return
    q[base + lo : base + hi] = _ZEROS[lo:hi]
    pmap.pm_stats.resident_count -= found
    pmap.pm_stats.wired_count -= wired
    table.wire_count -= found
    if accessed:
        pmap.vm.mmu.stale(pmap.pm_pml4)
    if found == in_use:
        pmap_freept(pmap, key)


def _present(pmap: Pmap, first: int, end: int) -> list[int]:
    """The PTEs among slots first … end - 1 that are not 0. Most of a table is: runs of zeros are
    passed over at the speed of C."""
    q = pmap.q
    raw = bytes(pmap.vm.ram.mem[first * 8 : end * 8])
    ptes: list[int] = []
    for at in range(0, len(raw), _NOTHING_BYTES):
        if raw[at : at + _NOTHING_BYTES] != _NOTHING:
            slot = first + (at >> 3)
            ptes += filter(None, q[slot : min(slot + (_NOTHING_BYTES >> 3), end)].tolist())
    return ptes


def pmap_protect(pmap: Pmap, sva: int, eva: int, prot: int) -> None:
    """Take from the mappings in [sva, eva) what `prot` does not have. Nobody gains a right by it:
    that takes a fault. What is no longer executable can't be written either until the next store
    has faulted, which pmap_alias has to know of. A and M stay as they are. Without the right to
    read a mapping goes, also a wired one (its page stays wired, and is mapped wired by the next
    fault). Does not block."""
    if not prot & VM_PROT_READ:
        pmap_remove(pmap, sva, eva)
        return
    clear = 0 if prot & VM_PROT_WRITE else PG_RW
    nx = 0 if prot & VM_PROT_EXECUTE else PG_NX
    if sva >= eva or not clear | nx:
        return
    first, last = sva >> 21, eva - 1 >> 21
    stale = 0
    for key in pmap_tables(pmap, first, last):
        lo = sva >> 12 & 511 if key == first else 0
        hi = (eva - 1 >> 12 & 511) + 1 if key == last else 512
        start = pmap.pm_pt[key] + lo
        if hi - lo < _BULK:
            stale |= _protect_few(pmap.q, start, start + hi - lo, clear, nx)
        else:
            stale |= _protect_many(pmap.vm.ram.mem, start * 8, (start + hi - lo) * 8, clear, nx)
    if stale:
        pmap.vm.mmu.stale(pmap.pm_pml4)


def _protect_few(q: memoryview, start: int, end: int, clear: int, nx: int) -> int:
    """Protect the PTEs start … end - 1; nonzero when the engine may have one that lost a right."""
    stale = 0
    for slot in range(start, end):
        old = q[slot]
        if old:
            new = old & ~clear | nx
            if new != old:
                if (old ^ new) & PG_NX:
                    new &= ~PG_RW
                q[slot] = new
                stale |= old & PG_A
    return stale


def _protect_many(mem: memoryview, start: int, end: int, clear: int, nx: int) -> int:
    """The same for the PTEs in bytes start … end - 1 of RAM, all at once."""
    old = int.from_bytes(mem[start:end], "little")
    if not old:
        return 0
    ones = _ALL_V & (1 << (end - start) * 8) - 1
    new = old
    if clear:
        new ^= old & ones << 1  # PG_RW
    if nx:
        new |= (old & ones) << 63  # PG_V, moved to PG_NX
        new &= ~(((new ^ old) >> 63 & ones) << 1)  # PG_RW, where PG_NX is new
    if new == old:
        return 0
    mem[start:end] = new.to_bytes(end - start, "little")
    changed = old ^ new
    lost = changed >> 1 | changed >> 63  # where PG_V is
    return 1 if lost & old >> 5 & ones else 0


def pmap_copy(
    dst: Pmap, src: Pmap, dst_addr: int, length: int, src_addr: int, writable: bool
) -> None:
    """Let `dst` have the mappings that `src` has in the range, as they are but not wired, not yet
    used, and unless `writable` only for reading; the addresses must be the same. To spare a forked
    child its first faults: the caller has write-protected what is to be copied on write, and has
    both maps, which hold the same objects, locked exclusively. Leaves out what there is no
    memory for a table for. Does not block.
    """
    if dst_addr != src_addr:
        return
    vm = src.vm
    pages, q, stats = vm.pages.vm_page_array, src.q, dst.pm_stats
    eva = src_addr + length
    first, last = src_addr >> 21, eva - 1 >> 21
    drop = ~(PG_A | PG_M | PG_W | (0 if writable else PG_RW))
    for key in pmap_tables(src, first, last):
        lo = src_addr >> 12 & 511 if key == first else 0
        hi = (eva - 1 >> 12 & 511) + 1 if key == last else 512
        ptes = _ptes(src, key, lo, hi)
        if not any(ptes):
            continue
        base = dst.pm_pt.get(key)
        if base is None:
            if not pmap_ready(dst, key << 21):
                continue
            base = pmap_allocpt(dst, key << 21)
        there = q[base + lo : base + hi].tolist()
        found = 0
        for i, pte in enumerate(ptes):
            if pte & PG_MANAGED and not there[i]:
                there[i] = pte & drop
                m = pages[(pte & PG_FRAME) >> 12]
                assert m is not None
                m.flags |= PG_MAPPEDMULTI
                found += 1
        q[base + lo : base + hi] = memoryview(array("Q", there))
        dst.pm_pt_m[key].wire_count += found
        stats.resident_count += found
        if dst.pm_pt_m[key].wire_count == 1:
            pmap_freept(dst, key)


def _ptes(pmap: Pmap, key: int, lo: int, hi: int) -> list[int]:
    """The PTEs lo … hi - 1 of the page table of `key`; none if there is no table."""
    base = pmap.pm_pt.get(key)
    return [] if base is None else pmap.q[base + lo : base + hi].tolist()


def pmap_unwire(pmap: Pmap, va: int) -> VmPage | None:
    """The mapping at `va`, if it is wired, becomes an ordinary one; returns its page, which the
    caller unwires. Does not block."""
    base = pmap.pm_pt.get(va >> 21)
    if base is None:
        return None
    slot = base + (va >> 12 & 511)
    pte = pmap.q[slot]
    if not pte & PG_W:
        return None
    pmap.q[slot] = pte & ~PG_W
    pmap.pm_stats.wired_count -= 1
    return PHYS_TO_VM_PAGE(pmap.vm, pte & PG_FRAME) if pte & PG_MANAGED else None


def pmap_resident_count(pmap: Pmap) -> int:
    """How many pages are mapped."""
    return pmap.pm_stats.resident_count


def pmap_kenter(vm: VmSystem, va: int, pa: int) -> None:
    """Map the frame at `pa` at kernel address `va`, unmanaged: the page's state is none of the
    mapping's business. Replaces what was there. May block for memory for a table."""
    pmap = vm.kernel_pmap
    key = va >> 21
    base = pmap.pm_pt.get(key)
    if base is None:
        base = pmap_allocpt(pmap, va)
    slot = base + (va >> 12 & 511)
    old = pmap.q[slot]
    if not old:
        pmap.pm_pt_m[key].wire_count += 1
        pmap.pm_stats.resident_count += 1
    elif old & PG_MANAGED:
        panic(f"pmap_kenter: {va:#x} holds a managed mapping, {old:#x}")
    pmap.q[slot] = pa | _KERNEL_LEAF


def pmap_kremove(vm: VmSystem, va: int) -> None:
    """Undo a pmap_kenter. Does not block."""
    pmap_qremove(vm, va, 1)


def pmap_qenter(vm: VmSystem, va: int, pages: Sequence[VmPage]) -> None:
    """Map wired or held pages at kernel addresses from `va` on, unmanaged. May block for memory
    for a table."""
    for m in pages:
        pmap_kenter(vm, va, m.phys_addr)
        va += PAGE_SIZE


def pmap_qremove(vm: VmSystem, va: int, count: int) -> None:
    """Undo a pmap_qenter of `count` pages. Does not block. The engine never runs in ring 0, so it
    has no translation of a kernel address to forget."""
    pmap = vm.kernel_pmap
    for _ in range(count):
        base = pmap.pm_pt.get(va >> 21)
        slot = 0 if base is None else base + (va >> 12 & 511)
        if not slot or not pmap.q[slot]:
            panic(f"pmap_qremove: nothing is mapped at {va:#x}")
        if pmap.q[slot] & PG_MANAGED:
            panic(f"pmap_qremove: {va:#x} holds a managed mapping")
        pmap.q[slot] = 0
        pmap.pm_pt_m[va >> 21].wire_count -= 1
        pmap.pm_stats.resident_count -= 1
        va += PAGE_SIZE


def pmap_object_init_pt(pmap: Pmap, entry: VmMapEntry, addr: int, size: int, limit: int) -> None:
    """Map what is resident and valid of a file in [addr, addr + size) of `entry`, without the
    right to write. With MAP_PREFAULT_PARTIAL in `limit` only where there is not much to do. The
    map is locked, the object held. Does not block."""
    object, prot = entry.ba.object, entry.protection
    if object is None or object.type != OBJT_VNODE or entry.ba.backing_ba is not None:
        return
    if not prot & VM_PROT_READ:
        return
    pindex = entry.ba.offset + addr - entry.ba.start >> PAGE_SHIFT
    count = min(size >> PAGE_SHIFT, object.size - pindex)
    memq = object.rb_memq
    if limit & MAP_PREFAULT_PARTIAL and count > _MAX_INIT_PT and len(memq) > _MAX_INIT_PT:
        return
    wanted: Sequence[int]
    if count <= len(memq):
        wanted = range(pindex, pindex + count)
    else:
        wanted = [index for index in memq if pindex <= index < pindex + count]
    for index in wanted:
        m = memq.get(index)
        if m is None or m.valid != VM_PAGE_BITS_ALL or m.busy_count & PBUSY_LOCKED:
            continue
        if m.flags & PG_FICTITIOUS:
            continue
        if m.queue - m.pc == PQ_CACHE:
            vm_page_deactivate(pmap.vm, m)
        pmap_enter_quick(pmap, addr + (index - pindex << PAGE_SHIFT), m, prot)
