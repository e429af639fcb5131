"""Is everything in a page table as it should be? For Machine.check; off every path that counts.

Source: the invariants that pmap_table.py, pmap.py and vm_fault.py state.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dfvm.machine.pte import (
    PG_FRAME,
    PG_M,
    PG_MANAGED,
    PG_NX,
    PG_PS,
    PG_RW,
    PG_U,
    PG_V,
    PG_W,
    pte_flags,
)
from dfvm.vm.vm import VM_PROT_EXECUTE, VM_PROT_NONE, VM_PROT_WRITE
from dfvm.vm.vm_fault_burst import vm_fault_lookup
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_GUARD,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_NEEDS_COPY,
    VM_MAPTYPE_NORMAL,
)
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PG_MAPPED,
    PG_MAPPEDMULTI,
    PG_WRITEABLE,
    PHYS_TO_VM_PAGE,
    PQ_CACHE,
    PQ_FREE,
    VM_PAGE_BITS_ALL,
)
from dfvm.vm.vm_param import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Collection

    from dfvm.vm.pmap_table import Pmap
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMap, VmMapEntry
    from dfvm.vm.vm_page import VmPage

_KERNEL_HALF = 256  # first PML4 entry of the kernel's half
_SIGN = 0xFFFF << 48


def pmap_check(pmap: Pmap, map: VmMap | None = None) -> list[str]:
    """What is wrong with `pmap`, a line each; nothing is best. The tables and their counts, and of
    each leaf whether its page knows that it is mapped and would find the mapping. With the user
    map of the pmap also whether each leaf maps what its entry shows, with no more rights than the
    entry and its chain give. Does not block."""
    if pmap.pm_pml4_m is None:
        used = pmap.pm_pt or pmap.pm_stats.resident_count
        return [f"pmap: released, but maps {pmap.pm_stats.resident_count} pages"] if used else []
    bad: list[str] = []
    leaves: dict[int, int] = {}
    tables: dict[int, VmPage] = {}
    _walk(pmap, pmap.pm_pml4_m, 39, 0, leaves, tables, bad)
    if {key: m.phys_addr >> 3 for key, m in tables.items()} != pmap.pm_pt:
        bad.append(f"pmap {pmap.pm_pml4:#x}: pm_pt knows {len(pmap.pm_pt)} page tables, "
                   f"there are {len(tables)}, or others")  # fmt: skip
    if tables != pmap.pm_pt_m:
        bad.append(f"pmap {pmap.pm_pml4:#x}: pm_pt_m disagrees with the tables")
    wired = sum(1 for pte in leaves.values() if pte & PG_W)
    stats = pmap.pm_stats
    if stats.resident_count != len(leaves) or stats.wired_count != wired:
        bad.append(f"pmap {pmap.pm_pml4:#x}: counts {stats.resident_count} resident, "
                   f"{stats.wired_count} wired; has {len(leaves)}, {wired}")  # fmt: skip
    for va, pte in leaves.items():
        bad += [f"va {va:#x}, PTE {pte_flags(pte)}: {text}" for text in _leaf(pmap, va, pte)]
    if map is not None:
        _against_map(map, leaves, bad)
    return bad


def pmap_check_all(vm: VmSystem, maps: Collection[VmMap]) -> list[str]:
    """What takes all maps there are to see. A page that is mapped more than once must know it, or
    it would pass for unmapped as soon as one mapping goes; what is executable somewhere is
    remembered, and nowhere writable only; and a page is wired once by every wired entry that shows
    it, and by nobody else. Does not block."""
    mapped: Counter[int] = Counter()
    wired: Counter[VmPage] = Counter()
    code: set[int] = set()
    data: set[int] = set()
    for pmap in {map.pmap for map in maps}:
        for base in pmap.pm_pt.values():
            ptes = [pte for pte in pmap.q[base : base + 512] if pte & PG_MANAGED]
            mapped.update(pte & PG_FRAME for pte in ptes)
            code.update((pte & PG_FRAME) >> 12 for pte in ptes if not pte & PG_NX)
            data.update((pte & PG_FRAME) >> 12 for pte in ptes if pte & PG_NX and pte & PG_RW)
    for map in maps:
        for entry in map:
            if entry.wired_count and entry.ba.object is not None:
                for va in range(entry.ba.start, entry.ba.end, PAGE_SIZE):
                    m, _depth = vm_fault_lookup(entry, va)
                    if m is not None:
                        wired[m] += 1
    bad = [f"frame {pfn:#x} is executable, and forgotten" for pfn in code - vm.mmu.code_frames]
    if vm.mmu.step is None:
        bad += [f"frame {pfn:#x} is executable, and writable elsewhere" for pfn in code & data]
    for m in vm.pages.vm_page_array:
        if m is None or m.object is None:
            continue
        if m.wire_count != wired[m]:
            bad.append(f"{m!r}: {wired[m]} wired entries show it")
        if mapped[m.phys_addr] > 1 and not m.flags & PG_MAPPEDMULTI:
            bad.append(f"{m!r}: {mapped[m.phys_addr]} mappings, but PG_MAPPEDMULTI is not set")
    return bad


def _walk(pmap: Pmap, table: VmPage, shift: int, base: int, leaves: dict[int, int],
          tables: dict[int, VmPage], bad: list[str]) -> None:  # fmt: skip
    """Collect the leaves and page tables below `table`, whose entries cover 1 << shift bytes."""
    first = table.phys_addr >> 3
    entries: list[int] = pmap.q[first : first + 512].tolist()
    if shift == 39:
        half = slice(_KERNEL_HALF, 512) if pmap.pm_kernel else slice(0, _KERNEL_HALF)
        if not pmap.pm_kernel:
            kernel = (pmap.vm.kernel_pmap.pm_pml4 >> 3) + _KERNEL_HALF
            if entries[_KERNEL_HALF:] != pmap.q[kernel : kernel + 256].tolist():
                bad.append(f"pmap {pmap.pm_pml4:#x}: its kernel half is not the kernel's")
        entries = [pte if half.start <= i < half.stop else 0 for i, pte in enumerate(entries)]
    in_use = sum(1 for entry in entries if entry)
    # The kernel's upper tables were made at boot, and their entries are not counted.
    if table.wire_count != 1 + in_use and not (pmap.pm_kernel and shift > 12):
        bad.append(f"pmap {pmap.pm_pml4:#x}: table {table.phys_addr:#x} for {base:#x} has "
                   f"wire_count {table.wire_count}, {in_use} entries")  # fmt: skip
    if not in_use and shift != 39 and not pmap.pm_kernel:
        bad.append(f"pmap {pmap.pm_pml4:#x}: empty table {table.phys_addr:#x} for {base:#x}")
    for i, entry in enumerate(entries):
        if not entry:
            continue
        va = base + (i << shift)
        if shift == 39 and i >= _KERNEL_HALF:
            va |= _SIGN
        if not entry & PG_V:
            bad.append(f"va {va:#x}: entry {entry:#x} is neither valid nor empty")
        elif shift == 12:
            leaves[va] = entry
        elif entry & PG_PS:
            if not pmap.pm_kernel or entry & PG_FRAME >= pmap.vm.ram.size:
                bad.append(f"va {va:#x}: large page {entry:#x}")
        else:
            below = PHYS_TO_VM_PAGE(pmap.vm, entry & PG_FRAME)
            if below is None or not below.wire_count or below.object is not None:
                bad.append(f"va {va:#x}: entry {entry:#x} leads to {below!r}, which is no table")
                continue
            if shift == 21:
                tables[va >> 21] = below
            _walk(pmap, below, shift - 9, va, leaves, tables, bad)


def _leaf(pmap: Pmap, va: int, pte: int) -> list[str]:
    """What is wrong between a leaf and its page."""
    bad = []
    if bool(pte & PG_U) == pmap.pm_kernel:
        bad.append("on the wrong side of ring 3")
    if not pte & PG_NX and (pte & PG_FRAME) >> 12 not in pmap.code_frames:
        bad.append("executable, but its frame is not in code_frames")
    if not pte & PG_MANAGED:
        return bad
    m = PHYS_TO_VM_PAGE(pmap.vm, pte & PG_FRAME)
    if m is None or m.object is None:
        bad.append(f"maps {m!r}, which is in no object")
        return bad
    if not m.flags & PG_MAPPED:
        bad.append(f"PG_MAPPED is not set in {m!r}")
    if pte & (PG_RW | PG_M) and not m.flags & PG_WRITEABLE:
        bad.append(f"PG_WRITEABLE is not set in {m!r}")
    if m.queue - m.pc in (PQ_FREE, PQ_CACHE):
        bad.append(f"maps {m!r}, which is on the free or cache queue")
    if pte & PG_W and not m.wire_count:
        bad.append(f"wired, but {m!r} is not")
    for ba in m.object.backing_list:
        if ba.pmap is pmap and ba.start <= va < ba.end:
            if va - ba.start + ba.offset >> 12 == m.pindex:
                return bad
    bad.append(f"{m!r} would not find this mapping by its object's backing_list")
    return bad


def _against_map(map: VmMap, leaves: dict[int, int], bad: list[str]) -> None:
    """Compare the leaves with the entries they are in."""
    inside = 0
    addresses = sorted(leaves)
    at = 0
    for entry in map:
        while at < len(addresses) and addresses[at] < entry.ba.start:
            at += 1
        while at < len(addresses) and addresses[at] < entry.ba.end:
            va = addresses[at]
            text = _wrong(entry, va, leaves[va])
            if text:
                bad.append(f"va {va:#x} in {entry!r}, PTE {pte_flags(leaves[va])}: {text}")
            at += 1
            inside += 1
        if entry.wired_count and not entry.eflags & MAP_ENTRY_IN_TRANSITION:
            for va in range(entry.ba.start, entry.ba.end, PAGE_SIZE):
                m, _depth = vm_fault_lookup(entry, va)
                if m is None or not m.wire_count:
                    bad.append(f"va {va:#x} in {entry!r}: the entry is wired, but not {m!r}")
    if inside != len(addresses):
        lost = len(addresses) - inside
        bad.append(f"pmap {map.pmap.pm_pml4:#x}: {lost} mappings lie in no entry")


def _wrong(entry: VmMapEntry, va: int, pte: int) -> str:
    """What is wrong with a leaf inside its entry, if anything."""
    if entry.maptype != VM_MAPTYPE_NORMAL:
        return ""
    if entry.eflags & MAP_ENTRY_GUARD:
        return "the entry is a guard"
    if entry.protection == VM_PROT_NONE:
        return "the entry allows nothing"
    if pte & PG_RW and not entry.protection & VM_PROT_WRITE:
        return "the entry does not allow writing"
    if not pte & PG_NX and not entry.protection & VM_PROT_EXECUTE:
        return "the entry does not allow execution"
    if pte & PG_RW and entry.eflags & MAP_ENTRY_NEEDS_COPY:
        return "the entry needs a copy first"
    if pte & PG_W and not entry.wired_count:
        return "the entry is not wired"
    depth = 0
    ba = entry.ba
    while True:
        object = ba.object
        m = None
        if object is not None:
            m = object.rb_memq.get(va - ba.start + ba.offset >> 12)
        if m is not None:
            if m.phys_addr == pte & PG_FRAME:
                return "its page is not the front object's" if depth and pte & PG_RW else ""
            if m.valid == VM_PAGE_BITS_ALL and not m.busy_count & PBUSY_LOCKED:
                return f"the page that shows here is {m!r}, {depth} deep"
        if ba.backing_ba is None:
            return "the chain has no such page here"
        ba = ba.backing_ba
        depth += 1
