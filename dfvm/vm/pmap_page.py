"""From a page to its mappings, for those who want to reclaim, clean or judge it.

A page has no list of its PTEs. Its object has the list of all backing elements that show it
(`backing_list`), each of which says at which address the page would be mapped, if it is:

    va = ba.start + pindex * PAGE_SIZE - ba.offset        when ba.start <= va < ba.end

and the PTE there counts if it has the page's frame (it may have another: a newer page of a front
object, or none). The flags PG_MAPPED, PG_WRITEABLE and PG_MAPPEDMULTI keep most pages from being
looked for at all; they may be set without need, never clear wrongly.

Nothing here blocks. The page is busy, or its object is held, so that it keeps its place.

Source: DragonFly platform/pc64/x86_64/pmap.c (PMAP_PAGE_BACKING_SCAN).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from dfvm.machine.pte import (
    PG_A,
    PG_FRAME,
    PG_M,
    PG_MANAGED,
    PG_NC_PCD,
    PG_NC_PWT,
    PG_NX,
    PG_PTE_PAT,
    PG_RW,
    PG_V,
    PG_W,
    pat_bits,
)
from dfvm.vm.pmap_table import pmap_freept
from dfvm.vm.vm import VM_PROT_EXECUTE, VM_PROT_READ, VM_PROT_WRITE
from dfvm.vm.vm_page import (
    PG_FICTITIOUS,
    PG_MAPPED,
    PG_MAPPEDMULTI,
    PG_REFERENCED,
    PG_WRITEABLE,
    PHYS_TO_VM_PAGE,
    VM_PAGE_BITS_ALL,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfvm.vm.pmap_table import Pmap
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_page import VmPage

_PAT_MASK: Final = PG_NC_PWT | PG_NC_PCD | PG_PTE_PAT
_INSTRUCTION_BYTES: Final = 15  # at most
_TS_REFERENCED_MAX: Final = 4  # cleared A bits after which a page is active enough


def pmap_mapped(m: VmPage) -> Iterator[tuple[Pmap, int, int]]:
    """Where the page is mapped: (pmap, va, index of the PTE in ram.q) of each mapping. The mapping
    just given may be changed or removed by the caller."""
    object = m.object
    if object is None:
        return
    offset, pa = m.pindex << 12, m.phys_addr
    for ba in object.backing_list:
        va = ba.start + offset - ba.offset
        if ba.start <= va < ba.end:
            pmap = ba.pmap
            base = pmap.pm_pt.get(va >> 21)
            if base is not None:
                slot = base + (va >> 12 & 511)
                pte = pmap.q[slot]
                if pte & PG_MANAGED and pte & PG_FRAME == pa:
                    yield pmap, va, slot


def pmap_alias(pmap: Pmap, va: int, m: VmPage, pte: int) -> None:
    """`pte` has just mapped page `m` at `va`, executable, or writable where it has been executable:
    what the page's other mappings may have left.

    The engine drops translated code when it sees a store to it, but by way of a translation that is
    not executable it sees only the first store. So a page is executable at some addresses and
    writable without being executable at others by turns only, and the fault of either takes the
    other's right: the writer's drops the code, too. In one space that holds for what is executable
    and writable as well, as a translation may be older than the code. An instruction that writes to
    its own page elsewhere could never be done so: there are both rights until it is over."""
    mmu = pmap.vm.mmu
    if m.flags & PG_MAPPEDMULTI and _take_turns(pmap, va, m, pte):
        mmu.step = partial(_end_alias, pmap, va, m.phys_addr)
        mmu.need_flush = True
    elif pte & PG_NX:
        mmu.code_written(m.phys_addr >> 12)
        _forget_code(pmap, va, m)


def _forget_code(pmap: Pmap, va: int, m: VmPage) -> None:
    """All translated code is going to be dropped, and `m`, at `va`, is executable nowhere any more.
    Nor are other pages near by that are mapped once: who has made many writable, to put code there,
    pays once."""
    pmap.code_frames.discard(m.phys_addr >> 12)
    base, array = pmap.pm_pt[va >> 21], pmap.vm.pages.vm_page_array
    data = PG_NX | PG_MANAGED
    near = {(pte & PG_FRAME) >> 12 for pte in pmap.q[base : base + 512] if pte & data == data}
    for pfn in near & pmap.code_frames:
        page = array[pfn]
        if page is not None and not page.flags & PG_MAPPEDMULTI:
            pmap.code_frames.discard(pfn)


def _take_turns(pmap: Pmap, va: int, m: VmPage, pte: int) -> bool:
    """Take from the other mappings of `m` what pmap_alias says. Whether one was spared, as the
    instruction that writes at `va` is there."""
    vm = pmap.vm
    pc = vm.mmu.pc()
    here = (pc >> 12, pc + _INSTRUCTION_BYTES - 1 >> 12)  # where the instruction may lie
    spared = False
    for other, at, slot in pmap_mapped(m):
        mine = other is pmap
        if mine and at == va:
            continue
        old = pmap.q[slot]
        new = old
        if not pte & PG_NX and (mine or old & PG_NX):
            new &= ~PG_RW
        if pte & PG_RW and (mine or pte & PG_NX):
            if mine and not old & PG_NX and at >> 12 in here:
                spared = True
            else:
                new |= PG_NX
        if new != old:
            pmap.q[slot] = new
            if old & PG_A:
                vm.mmu.stale(other.pm_pml4)
    return spared


def _end_alias(pmap: Pmap, va: int, pa: int) -> None:
    """The instruction that had to write at `va`, to the page it is in itself, is over."""
    pmap.vm.mmu.code_written(pa >> 12)
    base = pmap.pm_pt.get(va >> 21)
    if base is not None:
        slot = base + (va >> 12 & 511)
        pte = pmap.q[slot]
        if pte & PG_RW and pte & PG_FRAME == pa:
            pmap.q[slot] = pte & ~PG_RW
            pmap.vm.mmu.stale(pmap.pm_pml4)


def pmap_page_protect(vm: VmSystem, m: VmPage, prot: int) -> None:
    """Take from every mapping of the page what `prot` (READ and EXECUTE, or NONE) does not have.
    Nothing happens while it has the right to write. What the PTEs knew of modification is in
    `dirty` afterwards when they are removed, and stays in them otherwise."""
    if prot & VM_PROT_WRITE or not m.flags & PG_MAPPED or m.flags & PG_FICTITIOUS:
        return
    if prot & (VM_PROT_READ | VM_PROT_EXECUTE):
        _write_protect(vm, m)
    else:
        _remove_all(vm, m)


def _write_protect(vm: VmSystem, m: VmPage) -> None:
    """No mapping of the page allows writing any more."""
    if not m.flags & PG_WRITEABLE:
        return
    for pmap, _va, slot in pmap_mapped(m):
        pte = pmap.q[slot]
        # A PTE that pmap_protect has made read-only keeps its M, and PG_WRITEABLE with it.
        if pte & (PG_RW | PG_M):
            if pte & PG_M:
                m.dirty = VM_PAGE_BITS_ALL
            pmap.q[slot] = pte & ~(PG_RW | PG_M)
            if pte & PG_A:
                vm.mmu.stale(pmap.pm_pml4)
    m.flags &= ~PG_WRITEABLE


def _remove_all(vm: VmSystem, m: VmPage) -> None:
    """The page is mapped nowhere any more."""
    for pmap, va, slot in pmap_mapped(m):
        pte = pmap.q[slot]
        pmap.q[slot] = 0
        if pte & PG_A:
            m.flags |= PG_REFERENCED
            vm.mmu.stale(pmap.pm_pml4)
        if pte & PG_M:
            m.dirty = VM_PAGE_BITS_ALL
        stats = pmap.pm_stats
        stats.resident_count -= 1
        if pte & PG_W:
            stats.wired_count -= 1
        table = pmap.pm_pt_m[va >> 21]
        table.wire_count -= 1
        if table.wire_count == 1:
            pmap_freept(pmap, va >> 21)
    m.flags &= ~(PG_MAPPED | PG_MAPPEDMULTI | PG_WRITEABLE)


def pmap_is_modified(vm: VmSystem, m: VmPage) -> bool:
    """Whether the page was written through any mapping since M was last cleared."""
    if not m.flags & PG_MAPPED:
        return False
    return any(pmap.q[slot] & PG_M for pmap, _va, slot in pmap_mapped(m))


def pmap_clear_modify(vm: VmSystem, m: VmPage) -> None:
    """Clear M in every mapping of the page, so that the next write shows."""
    _clear(vm, m, PG_M)


def pmap_clear_reference(vm: VmSystem, m: VmPage) -> None:
    """Clear A in every mapping of the page, so that the next access shows."""
    _clear(vm, m, PG_A)


def _clear(vm: VmSystem, m: VmPage, bit: int) -> None:
    """Clear `bit`, A or M, in every mapping of the page."""
    if not m.flags & PG_MAPPED or m.flags & PG_FICTITIOUS:
        return
    for pmap, _va, slot in pmap_mapped(m):
        pte = pmap.q[slot]
        if pte & bit:
            pmap.q[slot] = pte & ~bit
            vm.mmu.stale(pmap.pm_pml4)


def pmap_ts_referenced(vm: VmSystem, m: VmPage) -> int:
    """How many mappings of the page were used since the last call; their A bits are cleared. Stops
    counting where a page is active beyond doubt."""
    count = 0
    if m.flags & PG_MAPPED and not m.flags & PG_FICTITIOUS:
        for pmap, _va, slot in pmap_mapped(m):
            pte = pmap.q[slot]
            if pte & PG_A:
                pmap.q[slot] = pte & ~PG_A
                vm.mmu.stale(pmap.pm_pml4)
                count += 1
                if count > _TS_REFERENCED_MAX:
                    break
    return count


def pmap_page_set_memattr(vm: VmSystem, m: VmPage, memattr: int) -> None:
    """From now on the page is accessed as memory type `memattr`, wherever it is mapped."""
    m.pat_mode = memattr
    if m.flags & PG_MAPPED:
        bits = pat_bits(memattr)
        for pmap, _va, slot in pmap_mapped(m):
            pmap.q[slot] = pmap.q[slot] & ~_PAT_MASK | bits
            vm.mmu.stale(pmap.pm_pml4)


def pmap_pgscan(pmap: Pmap, sva: int, eva: int, limit: int,
                callback: Callable[[int, VmPage], bool]) -> int:  # fmt: skip
    """Show `callback` the managed, unwired pages that are mapped in [sva, eva), in order of
    address, at most `limit` of them, until it returns False. It may unmap the page it is shown,
    and may block. Returns the address to go on from; eva when all were seen. The pages are not
    busy."""
    pt, q, vm = pmap.pm_pt, pmap.q, pmap.vm
    first, last = sva >> 21, eva - 1 >> 21
    for key in sorted(key for key in pt if first <= key <= last):
        for va in range(max(sva, key << 21), min(eva, key + 1 << 21), 4096):
            base = pt.get(key)
            if base is None:
                break  # the callback unmapped the last page of this table
            pte = q[base + (va >> 12 & 511)]
            if pte & (PG_V | PG_MANAGED | PG_W) != PG_V | PG_MANAGED:
                continue
            if limit <= 0:
                return va
            m = PHYS_TO_VM_PAGE(vm, pte & PG_FRAME)
            assert m is not None
            limit -= 1
            if not callback(va, m):
                return va + 4096
    return eva
