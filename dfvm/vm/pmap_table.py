"""The page tables themselves: a pmap, its table pages, and the kernel's half of every space.

    A virtual address, and who is indexed by its parts:

     63        48 47      39 38      30 29      21 20      12 11         0
    +------------+----------+----------+----------+----------+------------+
    | sign of 47 |   PML4   |   PDP    |    PD    |    PT    |   offset   |
    +------------+----------+----------+----------+----------+------------+
                  512 GiB    1 GiB      2 MiB      4 KiB
                 '------ va >> 21: the key of pm_pt ----'

Tables are real: frames of guest RAM that the engine's MMU walks. Each is a wired page whose
wire_count is 1 + the number of its entries that are in use, so that an empty table is known for
empty at once and given back (DragonFly counts the same way). `pm_pt` is a shortcut past the three
upper levels and holds nothing that the tables don't say.

The kernel's half (PML4 entries 256 to 511) is the same in every pmap: its PDP pages are made at
boot and stay, so copying the PML4 entries once, at pmap_pinit, is enough. Kernel tables are kept
for good: they are few, and kernel stacks come and go.

Ranges of mappings are `pmap.py`; from a page to its mappings, `pmap_page.py`. Nothing here blocks
except for memory for a table.

Source: DragonFly platform/pc64/x86_64/pmap.c.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.machine.pte import PG_A, PG_FRAME, PG_G, PG_M, PG_MANAGED, PG_NX, PG_PS, PG_RW, PG_U, PG_V
from dfvm.vm.vm_page import (
    PHYS_TO_VM_PAGE,
    VM_ALLOC_INTERRUPT,
    VM_ALLOC_SYSTEM,
    VM_ALLOC_ZERO,
    vm_page_alloczwq,
    vm_page_freezwq,
    vm_wait,
)
from dfvm.vm.vm_page2 import vm_paging_severe
from dfvm.vm.vm_param import DMAP_MIN_ADDRESS, NBPDR, VM_MIN_KERNEL_ADDRESS

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_page import VmPage

PML4SHIFT: Final = 39
PDPSHIFT: Final = 30
PDRSHIFT: Final = 21
_KERNEL_PML4E: Final = 256  # first PML4 entry of the kernel's half

# What a table entry above the leaves grants: everything; the leaf decides.
_TABLE_USER: Final = PG_V | PG_RW | PG_U | PG_A | PG_M
_TABLE_KERNEL: Final = PG_V | PG_RW | PG_A | PG_M

# Leaf bits for each VM_PROT combination (READ 1, WRITE 2, EXECUTE 4, FETCH 32; never 8 or 16). x86
# can't withhold reading from a page that may be written or executed. What may be written is
# executable only once something in it has been executed: most such pages never hold code, but
# would count as if they did, and cost all translated code when the kernel writes to them.
_PROTECTION: Final = tuple(
    PG_V | (PG_RW if prot & 2 else 0) | (0 if prot & 4 and (prot & 32 or not prot & 2) else PG_NX)
    for prot in range(40)
)
_PROT_USER: Final = tuple(bits | PG_U | PG_MANAGED for bits in _PROTECTION)
# The kernel's code is not in guest RAM: what is mapped there is data, whatever its entry allows. A
# frame that might hold code would cost all translated code when it is given out again.
_PROT_KERNEL: Final = tuple(bits | PG_G | PG_NX | PG_MANAGED for bits in _PROTECTION)


class PmapStatistics:
    """What a pmap maps. Kept by every function that writes a leaf."""

    __slots__ = ("resident_count", "wired_count")

    resident_count: int  # valid leaf PTEs
    wired_count: int  # those with PG_W; <= resident_count

    def __init__(self) -> None:
        self.resident_count = 0
        self.wired_count = 0


class Pmap:
    """One address space as the MMU sees it.

    Everything in it is changed by the kernel's one thread without blocking in between, so no lock
    guards it; the only place where a pmap function may block is the allocation of a table page,
    after which the walk starts again.
    """

    __slots__ = ("code_frames", "pm_kernel", "pm_pgout_va", "pm_pml4", "pm_pml4_m", "pm_prot",
                 "pm_pt", "pm_pt_m", "pm_stats", "q", "vm")  # fmt: skip

    vm: VmSystem
    q: memoryview  # guest RAM as 64-bit words (ram.q)
    code_frames: set[int]  # mmu.code_frames: frames that may hold translated code
    pm_pml4: int  # physical address of the top table, what CR3 gets; 0 after pmap_release
    pm_pml4_m: VmPage | None  # its page; wire_count counts the entries of the user half only
    pm_pt: dict[int, int]  # va >> 21 → index in q of the first PTE of that page table
    pm_pt_m: dict[int, VmPage]  # va >> 21 → page of that page table; same keys as pm_pt
    pm_stats: PmapStatistics
    pm_prot: tuple[int, ...]  # leaf bits by VM_PROT, of a managed page
    pm_pgout_va: int  # where the next scan for an RLIMIT_RSS begins
    pm_kernel: bool  # the kernel's own: PTEs without PG_U, tables never given back

    def __init__(self, vm: VmSystem, kernel: bool = False) -> None:
        self.vm = vm
        self.q = vm.ram.q
        self.code_frames = vm.mmu.code_frames
        self.pm_pml4 = 0
        self.pm_pml4_m = None
        self.pm_pt = {}
        self.pm_pt_m = {}
        self.pm_stats = PmapStatistics()
        self.pm_prot = _PROT_KERNEL if kernel else _PROT_USER
        self.pm_pgout_va = 0
        self.pm_kernel = kernel


def pmap_bootstrap(vm: VmSystem) -> None:
    """Make vm.kernel_pmap: the direct map of all RAM in 2 MiB pages, and the top of the tables
    for kernel_map."""
    kernel = vm.kernel_pmap = Pmap(vm, kernel=True)
    kernel.pm_pml4_m = _boot_table(vm)
    kernel.pm_pml4 = kernel.pm_pml4_m.phys_addr
    q, size, leaf = vm.ram.q, vm.ram.size, _TABLE_KERNEL | PG_PS | PG_G | PG_NX
    for pa in range(0, size, 1 << PDPSHIFT):
        end = min(pa + (1 << PDPSHIFT), size)
        table = _next_table(vm, kernel.pm_pml4, DMAP_MIN_ADDRESS + pa >> PML4SHIFT)
        table = _next_table(vm, table, DMAP_MIN_ADDRESS + pa >> PDPSHIFT)
        ptes = array("Q", range(pa | leaf, end | leaf, NBPDR))
        q[table >> 3 : (table >> 3) + len(ptes)] = memoryview(ptes)
    _next_table(vm, kernel.pm_pml4, VM_MIN_KERNEL_ADDRESS >> PML4SHIFT)


def _boot_table(vm: VmSystem) -> VmPage:
    """A zeroed table page; there is memory at boot."""
    m = vm_page_alloczwq(vm, 0, VM_ALLOC_SYSTEM | VM_ALLOC_ZERO)
    if m is None:
        panic("pmap_bootstrap: no memory for the kernel's page tables")
    return m


def _next_table(vm: VmSystem, table: int, index: int) -> int:
    """The table below entry `index` of the kernel table at `table`, made when missing."""
    q, slot = vm.ram.q, (table >> 3) + (index & 511)
    if not q[slot]:
        q[slot] = _boot_table(vm).phys_addr | _TABLE_KERNEL
    below: int = q[slot] & PG_FRAME
    return below


def pmap_pinit(pmap: Pmap) -> bool:
    """Give `pmap` a top table with the kernel's half in it. May block for memory. False: there is
    none, and the process is being killed for it."""
    vm = pmap.vm
    while (m := _alloc_table(vm, 0)) is None:
        if not vm_wait(vm, 0):
            return False
    pmap.pm_pml4_m = m
    pa = pmap.pm_pml4 = m.phys_addr
    mine, kernel = (pa >> 3) + _KERNEL_PML4E, (vm.kernel_pmap.pm_pml4 >> 3) + _KERNEL_PML4E
    pmap.q[mine : mine + 256] = pmap.q[kernel : kernel + 256]
    return True


def pmap_release(pmap: Pmap) -> None:
    """Give the top table back. Nothing is mapped any more, so no other table is left. The pmap
    may be initialised again. Idempotent."""
    m = pmap.pm_pml4_m
    if m is None:
        return
    if pmap.pm_stats.resident_count or m.wire_count != 1:
        panic(f"pmap_release: {pmap.pm_stats.resident_count} pages are still mapped, "
              f"{m.wire_count - 1} tables in use")  # fmt: skip
    # The frame may become the top of another space while the engine still has this one loaded:
    # it would then see no reason to flush.
    pmap.vm.mmu.stale(pmap.pm_pml4)
    pmap.pm_pml4_m = None
    pmap.pm_pml4 = 0
    vm_page_freezwq(pmap.vm, m)


def _alloc_table(vm: VmSystem, pindex: int) -> VmPage | None:
    """A zeroed, wired page for a table, from the reserves if need be: freeing memory itself
    needs mappings."""
    return vm_page_alloczwq(vm, pindex, VM_ALLOC_SYSTEM | VM_ALLOC_INTERRUPT | VM_ALLOC_ZERO)


def pmap_allocpt(pmap: Pmap, va: int) -> int:
    """The page table for `va`, made when missing, with those above it: returns the index in q of
    its first PTE. May block for memory, before anything has changed; where pmap_ready has been
    asked before it will not."""
    vm, q = pmap.vm, pmap.q
    entry_bits = _TABLE_KERNEL if pmap.pm_kernel else _TABLE_USER
    key = va >> PDRSHIFT
    while True:
        parent = pmap.pm_pml4_m
        assert parent is not None
        for shift in (PML4SHIFT, PDPSHIFT, PDRSHIFT):
            slot = (parent.phys_addr >> 3) + (va >> shift & 511)
            entry = q[slot]
            if entry:
                table = PHYS_TO_VM_PAGE(vm, entry & PG_FRAME)
                assert table is not None
            else:
                new = _alloc_table(vm, key)
                if new is None:
                    break
                q[slot] = new.phys_addr | entry_bits
                parent.wire_count += 1
                table = new
            parent = table
        else:
            base = pmap.pm_pt[key] = parent.phys_addr >> 3
            pmap.pm_pt_m[key] = parent
            return base
        if not pmap.pm_kernel:
            _unlink(pmap, _path(pmap, va), va)  # what was made for nothing
        vm_wait(vm, 0)


def pmap_ready(pmap: Pmap, va: int) -> bool:
    """Whether something could be mapped at `va` now: its page table is there, or memory for it.
    Whoever is being killed for memory must not be made to wait for a table."""
    return va >> PDRSHIFT in pmap.pm_pt or not vm_paging_severe(pmap.vm)


def _path(pmap: Pmap, va: int) -> list[VmPage]:
    """The table pages that exist for `va`, from the top."""
    vm, q = pmap.vm, pmap.q
    m = pmap.pm_pml4_m
    assert m is not None
    path = [m]
    for shift in (PML4SHIFT, PDPSHIFT, PDRSHIFT):
        entry = q[(m.phys_addr >> 3) + (va >> shift & 511)]
        if not entry:
            break
        below = PHYS_TO_VM_PAGE(vm, entry & PG_FRAME)
        assert below is not None
        m = below
        path.append(m)
    return path


def _unlink(pmap: Pmap, path: list[VmPage], va: int) -> None:
    """Give back the last table of `path`, which is empty, and those above that become so."""
    q = pmap.q
    while len(path) > 1:
        m = path[-1]
        if m.wire_count > 1:
            return
        path.pop()
        parent = path[-1]
        shift = PML4SHIFT - 9 * (len(path) - 1)
        q[(parent.phys_addr >> 3) + (va >> shift & 511)] = 0
        parent.wire_count -= 1
        vm_page_freezwq(pmap.vm, m)


def pmap_freept(pmap: Pmap, key: int) -> None:
    """The page table of `key` (va >> 21) has become empty: give it back, and the tables above
    that were there for it only. The kernel keeps its tables."""
    if pmap.pm_kernel:
        return
    del pmap.pm_pt[key]
    del pmap.pm_pt_m[key]
    va = key << PDRSHIFT
    _unlink(pmap, _path(pmap, va), va)


def pmap_pte(pmap: Pmap, va: int) -> int:
    """The leaf PTE of `va`; 0 when there is none."""
    base = pmap.pm_pt.get(va >> 21)
    if base is None:
        return 0
    pte: int = pmap.q[base + (va >> 12 & 511)]
    return pte


def pmap_extract(pmap: Pmap, va: int) -> int | None:
    """The physical address that `va` is mapped to, None when it isn't."""
    base = pmap.pm_pt.get(va >> 21)
    if base is not None:
        pte: int = pmap.q[base + (va >> 12 & 511)]
        if pte & PG_V:
            return pte & PG_FRAME | va & 0xFFF
    if DMAP_MIN_ADDRESS <= va < DMAP_MIN_ADDRESS + pmap.vm.ram.size:
        return va - DMAP_MIN_ADDRESS
    return None
