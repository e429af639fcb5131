"""Page tables: what is in them, what they tell the pages, and when the engine must flush."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfvm.lwkt.panic import Panic
from dfvm.machine.pte import (
    MSR_PAT,
    PAT_MSR_VALUE,
    PG_A,
    PG_FRAME,
    PG_M,
    PG_NC_PCD,
    PG_NC_PWT,
    PG_NX,
    PG_PS,
    PG_PTE_PAT,
    PG_RW,
    PG_U,
    PG_V,
    PG_W,
    pat_bits,
    pat_memattr,
)
from dfvm.machine.walk import walk
from dfvm.vm import pmap_table
from dfvm.vm.pmap import (
    Pmap,
    pmap_clear_modify,
    pmap_copy,
    pmap_enter,
    pmap_enter_quick,
    pmap_extract,
    pmap_is_modified,
    pmap_kenter,
    pmap_kremove,
    pmap_mapped,
    pmap_object_init_pt,
    pmap_page_protect,
    pmap_page_set_memattr,
    pmap_pgscan,
    pmap_prefault_ok,
    pmap_protect,
    pmap_pte,
    pmap_qenter,
    pmap_qremove,
    pmap_ready,
    pmap_remove,
    pmap_resident_count,
    pmap_ts_referenced,
    pmap_unwire,
)
from dfvm.vm.pmap_check import pmap_check, pmap_check_all
from dfvm.vm.vm import (
    VM_MEMATTR_UNCACHEABLE,
    VM_MEMATTR_WEAK_UNCACHEABLE,
    VM_MEMATTR_WRITE_BACK,
    VM_MEMATTR_WRITE_COMBINING,
    VM_MEMATTR_WRITE_PROTECTED,
    VM_MEMATTR_WRITE_THROUGH,
    VM_PROT_EXECUTE,
    VM_PROT_NONE,
    VM_PROT_READ,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_fault import (
    VM_FAULT_BURST,
    VM_FAULT_DIRTY,
    VM_FAULT_NORMAL,
    vm_fault,
    vm_fault_quick,
)
from dfvm.vm.vm_map import MAP_COPY_ON_WRITE, MAP_PREFAULT_PARTIAL, vm_map_user_wiring
from dfvm.vm.vm_object import vm_object_drop, vm_object_hold
from dfvm.vm.vm_page import (
    PG_MAPPED,
    PG_MAPPEDMULTI,
    PG_REFERENCED,
    PG_WRITEABLE,
    VM_ALLOC_NORMAL,
    VM_ALLOC_ZERO,
    VM_PAGE_BITS_ALL,
    vm_page_alloc,
    vm_page_busy_wait,
    vm_page_wakeup,
    vm_page_wire,
)
from dfvm.vm.vm_param import DMAP_MIN_ADDRESS, NBPDR, VM_MIN_KERNEL_ADDRESS
from dfvm.vm.vmspace import vmspace_exitfree, vmspace_fork, vmspace_rel, vmspace_relexit
from tests.vm.map_util import P, Proc, anon, entries, load, show, store
from tests.vm.tiny_guest import JUMP, LOAD, STORE, TinyGuest
from tests.vm.vnode_stub import StubVnode

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map import VmMap
    from dfvm.vm.vm_page import VmPage

RW = VM_PROT_READ | VM_PROT_WRITE
RX = VM_PROT_READ | VM_PROT_EXECUTE
RWX = RW | VM_PROT_EXECUTE
BASE = 0x40_0000


def page_at(map: VmMap, va: int) -> VmPage:
    """The page that the front object of the entry at `va` has there."""
    entry = next(e for e in map if e.ba.start <= va < e.ba.end)
    assert entry.ba.object is not None
    return entry.ba.object.rb_memq[va - entry.ba.start + entry.ba.offset >> 12]


def sound(*maps: VmMap) -> None:
    for map in maps:
        assert pmap_check(map.pmap, map) == []
    assert pmap_check(maps[0].vm.kernel_pmap) == []


def loaded(pmap: Pmap) -> None:
    """Pretend that the engine runs in this space and owes nothing."""
    pmap.vm.mmu.cr3 = pmap.pm_pml4
    pmap.vm.mmu.need_flush = pmap.vm.mmu.need_flush_code = False


def fault_in(map: VmMap, va: int) -> None:
    """Have a page mapped, writable, that the hardware has not used yet."""
    assert vm_fault(map, va, RW, VM_FAULT_DIRTY) == 0


def fetch(map: VmMap, va: int) -> None:
    """Have a page mapped to be executed."""
    assert vm_fault(map, va, RX, VM_FAULT_NORMAL) == 0


def use(pmap: Pmap, va: int, bits: int = PG_A) -> None:
    """What the hardware does to the PTE on an access."""
    slot = pmap.pm_pt[va >> 21] + (va >> 12 & 511)
    assert pmap.q[slot] & PG_V
    pmap.q[slot] |= bits


# --- PMAP-1: tables ----------------------------------------------------------------------------


@pytest.mark.spec("PMAP-1")
def test_a_walk_finds_what_was_stored(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 4)
    store(map, BASE + P, 0x5A)
    levels = walk(vm.ram, map.pmap.pm_pml4, BASE + P)
    assert [level.name for level in levels] == ["PML4", "PDP", "PD", "PT"]
    leaf = levels[-1]
    assert leaf.leaf
    assert vm.ram.mem[leaf.entry & PG_FRAME] == 0x5A
    assert leaf.entry & (PG_V | PG_RW | PG_U | PG_NX) == PG_V | PG_RW | PG_U | PG_NX
    assert leaf.entry == pmap_pte(map.pmap, BASE + P)


@pytest.mark.spec("PMAP-1")
def test_every_table_is_a_wired_page_that_counts_its_entries(vm: VmSystem, map: VmMap) -> None:
    wired = vm.gd.gd_vmstats.v_wire_count
    anon(map, BASE, 3)
    for i in range(3):
        store(map, BASE + i * P, i)
    assert vm.gd.gd_vmstats.v_wire_count == wired + 3  # PDP, PD, PT
    table = map.pmap.pm_pt_m[BASE >> 21]
    assert table.wire_count == 1 + pmap_resident_count(map.pmap)
    sound(map)


@pytest.mark.spec("PMAP-1")
def test_the_engine_walks_the_tables_in_ring_3(vm: VmSystem, proc: Proc) -> None:
    guest = TinyGuest(vm, proc.p_vmspace)
    anon(proc.map, BASE, 2)
    guest.store(BASE + 5, 99)
    assert guest.faults == [(BASE + 5, 6)]
    assert guest.load(BASE + 5) == 99
    assert guest.faults == []
    pa = pmap_extract(proc.map.pmap, BASE + 5)
    assert pa is not None
    assert vm.ram.mem[pa] == 99
    sound(proc.map)


@pytest.mark.spec("PMAP-1")
def test_the_walk_honours_nx(vm: VmSystem, proc: Proc) -> None:
    guest = TinyGuest(vm, proc.p_vmspace)
    anon(proc.map, BASE, 1)
    guest.store(BASE, 0x90)
    with pytest.raises(Exception, match="2"):  # KERN_PROTECTION_FAILURE
        guest.run(JUMP, rdi=BASE)


# --- PMAP-2: PAT -------------------------------------------------------------------------------


@pytest.mark.spec("PMAP-2")
def test_the_pat_msr_is_what_the_leaf_bits_assume(vm: VmSystem, proc: Proc) -> None:
    types = [PAT_MSR_VALUE >> 8 * i & 0xFF for i in range(8)]
    assert types == [6, 4, 7, 0, 6, 5, 1, 0]
    guest = TinyGuest(vm, proc.p_vmspace)
    assert guest.vcpu.engine.uc.msr_read(MSR_PAT) == PAT_MSR_VALUE


@pytest.mark.spec("PMAP-2")
@pytest.mark.parametrize(
    ("memattr", "bits"),
    [
        (VM_MEMATTR_WRITE_BACK, 0),
        (VM_MEMATTR_WRITE_THROUGH, PG_NC_PWT),
        (VM_MEMATTR_WEAK_UNCACHEABLE, PG_NC_PCD),
        (VM_MEMATTR_UNCACHEABLE, PG_NC_PCD | PG_NC_PWT),
        (VM_MEMATTR_WRITE_PROTECTED, PG_PTE_PAT | PG_NC_PWT),
        (VM_MEMATTR_WRITE_COMBINING, PG_PTE_PAT | PG_NC_PCD),
    ],
)
def test_a_page_is_mapped_with_its_memory_type(
    vm: VmSystem, map: VmMap, memattr: int, bits: int
) -> None:
    anon(map, BASE, 1)
    store(map, BASE, 1)
    m = page_at(map, BASE)
    use(map.pmap, BASE)
    loaded(map.pmap)
    pmap_page_set_memattr(vm, m, memattr)
    mask = PG_NC_PWT | PG_NC_PCD | PG_PTE_PAT
    assert pmap_pte(map.pmap, BASE) & mask == bits
    assert vm.mmu.need_flush
    pmap_remove(map.pmap, BASE, BASE + P)
    load(map, BASE)  # mapped again: the page remembers
    assert pat_memattr(pmap_pte(map.pmap, BASE)) == memattr
    if bits & PG_PTE_PAT:
        assert pat_bits(memattr, large=True) == bits & ~PG_PTE_PAT | 0x1000


# --- PMAP-3: the interface ---------------------------------------------------------------------


@pytest.mark.spec("PMAP-3")
def test_enter_and_remove_keep_the_counts(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 600)
    for i in (0, 1, 5, 599):
        store(map, BASE + i * P, i & 0xFF)
    before = pmap_resident_count(map.pmap)
    assert before >= 4
    pmap_remove(map.pmap, BASE, BASE + 2 * P)
    assert pmap_extract(map.pmap, BASE) is None
    assert pmap_resident_count(map.pmap) == before - 2
    pmap_remove(map.pmap, BASE, BASE + 600 * P)
    assert pmap_resident_count(map.pmap) == 0
    assert map.pmap.pm_pt == {}
    sound(map)
    assert load(map, BASE + 5 * P) == 5  # the pages were never touched


@pytest.mark.spec("PMAP-3")
def test_what_a_pte_knows_goes_to_its_page(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 2)
    load(map, BASE)
    load(map, BASE + P)
    m, idle = page_at(map, BASE), page_at(map, BASE + P)
    assert m.flags & (PG_MAPPED | PG_WRITEABLE) == PG_MAPPED | PG_WRITEABLE
    m.flags &= ~PG_REFERENCED
    idle.flags &= ~PG_REFERENCED
    use(map.pmap, BASE, PG_A | PG_M)
    pmap_remove(map.pmap, BASE, BASE + 2 * P)
    assert m.dirty == VM_PAGE_BITS_ALL
    assert m.flags & PG_REFERENCED
    assert not m.flags & (PG_MAPPED | PG_WRITEABLE)
    assert idle.dirty == 0
    assert not idle.flags & PG_REFERENCED


@pytest.mark.spec("PMAP-3")
@pytest.mark.parametrize("quick", [False, True])
def test_what_may_be_written_is_executable_when_it_is_executed(
    vm: VmSystem, map: VmMap, quick: bool
) -> None:
    """Pages with every right count as code from the first fetch on, and keep that when written."""

    def access(fault_type: int) -> tuple[bool, bool]:
        if quick:
            assert vm_fault_quick(map, BASE, fault_type)
        else:
            assert vm_fault(map, BASE, fault_type, VM_FAULT_BURST) == 0
        pte = pmap_pte(map.pmap, BASE)
        assert pmap_pte(map.pmap, BASE + P) & PG_NX
        return bool(pte & PG_RW), not pte & PG_NX

    anon(map, BASE, 3, RWX, max=RWX)
    store(map, BASE, 1)
    store(map, BASE + P, 1)
    assert access(RW) == (True, False)
    assert not vm.mmu.code_frames
    assert access(RX) == (True, True)
    assert vm.mmu.code_frames == {page_at(map, BASE).phys_addr >> 12}
    assert access(RW) == (True, True)
    pmap_protect(map.pmap, BASE, BASE + P, RX)
    assert access(RW) == (True, True)
    pmap_protect(map.pmap, BASE, BASE + P, RW)
    assert access(RW) == (True, False)
    assert access(RX) == (True, True)
    sound(map)


@pytest.mark.spec("PMAP-3")
@pytest.mark.parametrize("npages", [3, 700])
def test_protect_takes_rights_and_never_gives_any(vm: VmSystem, map: VmMap, npages: int) -> None:
    anon(map, BASE, npages, RWX, max=RWX)
    for i in range(npages):
        store(map, BASE + i * P, 1)
        fetch(map, BASE + i * P)
    last = BASE + (npages - 1) * P
    use(map.pmap, last, PG_A | PG_M)
    pmap_protect(map.pmap, BASE + P, BASE + npages * P, RX)
    assert pmap_pte(map.pmap, BASE) & PG_RW
    assert pmap_pte(map.pmap, last) & (PG_RW | PG_A | PG_M) == PG_A | PG_M
    assert not pmap_pte(map.pmap, last) & PG_NX
    pmap_protect(map.pmap, BASE, BASE + npages * P, VM_PROT_READ)
    ptes = [pmap_pte(map.pmap, BASE + i * P) for i in range(npages)]
    assert all(pte & (PG_V | PG_RW | PG_NX) == PG_V | PG_NX for pte in ptes)
    pmap_protect(map.pmap, BASE, BASE + npages * P, RWX)
    assert [pmap_pte(map.pmap, BASE + i * P) for i in range(npages)] == ptes
    pmap_protect(map.pmap, BASE, BASE + npages * P, VM_PROT_NONE)
    assert pmap_resident_count(map.pmap) == 0


@pytest.mark.spec("PMAP-3")
def test_protect_leaves_gaps_and_neighbours_alone(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 1024)
    vm.sysctl.prefault_pages = 0
    touched = [0, 1, 63, 64, 511, 512, 513, 1000, 1023]
    for i in touched:
        store(map, BASE + i * P, 1)
    pmap_protect(map.pmap, BASE + P, BASE + 1023 * P, VM_PROT_READ)
    for i in range(1024):
        pte = pmap_pte(map.pmap, BASE + i * P)
        assert bool(pte) == (i in touched)
        assert bool(pte & PG_RW) == (i in (0, 1023))
    assert pmap_resident_count(map.pmap) == len(touched)


@pytest.mark.spec("PMAP-3")
def test_copy_does_not_wait_for_a_table(
    vm: VmSystem, proc: Proc, map: VmMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = BASE + (1 << 30)
    for addr in (BASE, far):
        anon(map, addr, 2)
        store(map, addr, 1)
    cmap = vmspace_fork(proc.p_vmspace).vm_map
    assert load(cmap, BASE) == 1
    pmap_remove(cmap.pmap, BASE, BASE + P)
    monkeypatch.setattr(pmap_table, "vm_paging_severe", lambda vm: True)
    pmap_copy(cmap.pmap, map.pmap, BASE, far + P - BASE, BASE, True)
    assert not pmap_ready(cmap.pmap, far)
    assert pmap_resident_count(cmap.pmap) == 0
    monkeypatch.undo()
    pmap_copy(cmap.pmap, map.pmap, BASE, far + P - BASE, BASE, True)
    assert pmap_pte(cmap.pmap, BASE)
    assert pmap_pte(cmap.pmap, far)
    sound(map, cmap)


@pytest.mark.spec("PMAP-3")
def test_copy_gives_a_child_the_parents_mappings(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, 10 + i)
        use(map.pmap, BASE + i * P, PG_A | PG_M)
    child = vmspace_fork(proc.p_vmspace)
    cmap = child.vm_map
    pmap_remove(cmap.pmap, BASE, BASE + 4 * P)
    assert cmap.pmap.pm_pt == {}
    pmap_copy(cmap.pmap, map.pmap, BASE, 4 * P, BASE, True)
    for i in range(4):
        pte = pmap_pte(cmap.pmap, BASE + i * P)
        assert pte & PG_FRAME == pmap_pte(map.pmap, BASE + i * P) & PG_FRAME
        assert not pte & (PG_RW | PG_A | PG_M | PG_W)
        assert page_at(map, BASE + i * P).flags & PG_MAPPEDMULTI
    assert pmap_resident_count(cmap.pmap) == 4
    pmap_copy(cmap.pmap, map.pmap, BASE, 4 * P, BASE, True)  # again: nothing new
    assert pmap_resident_count(cmap.pmap) == 4
    sound(map, cmap)
    store(map, BASE, 77)
    assert load(cmap, BASE) == 10


@pytest.mark.spec("PMAP-3")
def test_the_mappings_of_a_page_come_from_its_object(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    vp = StubVnode(bytes(range(256)) * 16 * 4)
    from dfvm.vm.pager.vnode_pager import vnode_pager_alloc

    obj = vnode_pager_alloc(vm, vp, vp.v_filesize)
    vnode_pager_alloc(vm, vp, vp.v_filesize)
    show(map, obj, 0, BASE, 4, VM_PROT_READ)
    show(map, obj, P, BASE + 64 * P, 3, VM_PROT_READ)
    load(map, BASE + 2 * P)
    load(map, BASE + 65 * P)
    m = obj.rb_memq[2]
    assert sorted(va for _, va, _ in pmap_mapped(m)) == [BASE + 2 * P, BASE + 65 * P]
    assert m.flags & PG_MAPPEDMULTI
    vm_page_busy_wait(vm, m, True, "test")
    pmap_page_protect(vm, m, VM_PROT_NONE)
    vm_page_wakeup(vm, m)
    assert list(pmap_mapped(m)) == []
    assert not m.flags & (PG_MAPPED | PG_MAPPEDMULTI | PG_WRITEABLE)
    assert pmap_extract(map.pmap, BASE + 2 * P) is None
    sound(map)


@pytest.mark.spec("PMAP-3")
def test_page_protect_read_pulls_modification_out_of_every_pte(
    vm: VmSystem, proc: Proc, map: VmMap
) -> None:
    anon(map, BASE, 1)
    load(map, BASE)
    m = page_at(map, BASE)
    assert m.dirty == 0
    use(map.pmap, BASE, PG_A | PG_M)
    assert pmap_is_modified(vm, m)
    pmap_page_protect(vm, m, VM_PROT_READ)
    assert m.dirty == VM_PAGE_BITS_ALL
    assert not pmap_pte(map.pmap, BASE) & (PG_RW | PG_M)
    assert not m.flags & PG_WRITEABLE
    assert m.flags & PG_MAPPED
    assert not pmap_is_modified(vm, m)


@pytest.mark.spec("PMAP-3")
def test_a_page_that_mprotect_made_read_only_can_still_be_cleaned(vm: VmSystem, map: VmMap) -> None:
    """M stays in the PTE when only the right to write goes, and must not stay for ever."""
    anon(map, BASE, 1)
    load(map, BASE)
    m = page_at(map, BASE)
    use(map.pmap, BASE, PG_A | PG_M)
    pmap_protect(map.pmap, BASE, BASE + P, VM_PROT_READ)
    assert pmap_is_modified(vm, m)
    pmap_page_protect(vm, m, VM_PROT_READ)
    assert m.dirty == VM_PAGE_BITS_ALL
    assert not pmap_is_modified(vm, m)


@pytest.mark.spec("PMAP-3")
def test_ts_referenced_counts_and_clears(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 1)
    fault_in(map, BASE)
    child = vmspace_fork(proc.p_vmspace)
    assert vm_fault(child.vm_map, BASE, VM_PROT_READ, 0) == 0
    m = page_at(map, BASE)
    assert pmap_ts_referenced(vm, m) == 0
    use(map.pmap, BASE)
    use(child.vm_map.pmap, BASE)
    assert pmap_ts_referenced(vm, m) == 2
    assert pmap_ts_referenced(vm, m) == 0
    use(map.pmap, BASE, PG_M)
    pmap_clear_modify(vm, m)
    assert not pmap_is_modified(vm, m)


@pytest.mark.spec("PMAP-3")
def test_unwire_gives_back_only_what_is_wired(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 1)
    store(map, BASE, 1)
    m = page_at(map, BASE)
    assert pmap_unwire(map.pmap, BASE) is None
    assert pmap_unwire(map.pmap, BASE + 64 * NBPDR) is None
    pmap_enter(map.pmap, BASE, m, RW, True, entries(map)[0])
    assert map.pmap.pm_stats.wired_count == 1
    assert pmap_unwire(map.pmap, BASE) is m
    assert map.pmap.pm_stats.wired_count == 0


@pytest.mark.spec("PMAP-3")
def test_enter_quick_leaves_what_is_there(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 2)
    store(map, BASE, 1)
    pte = pmap_pte(map.pmap, BASE)
    m = page_at(map, BASE)
    pmap_enter_quick(map.pmap, BASE, m, RW)
    assert pmap_pte(map.pmap, BASE) == pte
    pmap_remove(map.pmap, BASE, BASE + P)
    pmap_enter_quick(map.pmap, BASE, m, RW)
    assert pmap_pte(map.pmap, BASE) & (PG_V | PG_RW) == PG_V
    assert not pmap_prefault_ok(map.pmap, BASE)


@pytest.mark.spec("PMAP-3")
def test_pgscan_shows_pages_in_order_and_resumes(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 1200)
    vm.sysctl.prefault_pages = 0
    want = [0, 3, 511, 512, 1100]
    for i in want:
        store(map, BASE + i * P, 1)
    seen: list[int] = []

    def look(va: int, m: VmPage) -> bool:
        seen.append(va - BASE >> 12)
        pmap_remove(map.pmap, va, va + P)
        return True

    at = pmap_pgscan(map.pmap, BASE, BASE + 1200 * P, 2, look)
    assert seen == want[:2]
    assert pmap_pgscan(map.pmap, at, BASE + 1200 * P, 99, look) == BASE + 1200 * P
    assert seen == want
    assert pmap_resident_count(map.pmap) == 0


@pytest.mark.spec("PMAP-3")
def test_object_init_pt_maps_what_is_resident(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    from dfvm.vm.pager.vnode_pager import vnode_pager_alloc, vnode_pager_readpage
    from dfvm.vm.vm_page import vm_page_unhold

    vp = StubVnode(bytes(8 * P))
    obj = vnode_pager_alloc(vm, vp, vp.v_filesize)
    for i in range(4):
        vm_page_unhold(vm, vnode_pager_readpage(obj, i))
    resident = sorted(obj.rb_memq)
    show(map, obj, P, BASE, 7, RW)
    entry = entries(map)[0]
    vm_object_hold(obj)
    pmap_object_init_pt(map.pmap, entry, BASE, 7 * P, MAP_PREFAULT_PARTIAL)
    vm_object_drop(obj)
    mapped = [i for i in range(7) if pmap_pte(map.pmap, BASE + i * P)]
    assert mapped == [i - 1 for i in resident if i]
    assert not any(pmap_pte(map.pmap, BASE + i * P) & PG_RW for i in mapped)
    sound(map)


@pytest.mark.spec("PMAP-3")
def test_qenter_maps_pages_for_the_kernel(vm: VmSystem) -> None:
    kernel = vm.kernel_pmap
    va = VM_MIN_KERNEL_ADDRESS + 0x3000_0000
    pages = [vm_page_alloc(vm, None, i, VM_ALLOC_NORMAL | VM_ALLOC_ZERO) for i in range(3)]
    for m in pages:
        assert m is not None
        vm_page_wire(vm, m)
    count = pmap_resident_count(kernel)
    pmap_qenter(vm, va, [m for m in pages if m is not None])
    assert pages[1] is not None
    assert pmap_extract(kernel, va + P + 7) == pages[1].phys_addr + 7
    assert not pages[1].flags & PG_MAPPED  # unmanaged
    assert pmap_resident_count(kernel) == count + 3
    pmap_qremove(vm, va, 3)
    assert pmap_extract(kernel, va) is None
    with pytest.raises(Panic):
        pmap_kremove(vm, va)
    pmap_kenter(vm, va, 0x5000)
    pmap_kenter(vm, va, 0x6000)
    assert pmap_extract(kernel, va) == 0x6000
    pmap_kremove(vm, va)
    assert pmap_check(kernel) == []


# --- PMAP-4: flushes ---------------------------------------------------------------------------


@pytest.mark.spec("PMAP-4")
def test_nothing_is_flushed_that_need_not_be(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 8)
    loaded(map.pmap)
    fault_in(map, BASE)  # absent PTEs filled in
    assert not vm.mmu.need_flush
    pmap_remove(map.pmap, BASE, BASE + 8 * P)  # the hardware never saw them
    assert not vm.mmu.need_flush
    fault_in(map, BASE)
    use(map.pmap, BASE)
    vm.mmu.cr3 = 0x1000
    pmap_remove(map.pmap, BASE, BASE + P)  # seen, but the space is not loaded
    assert not vm.mmu.need_flush


@pytest.mark.spec("PMAP-4")
@pytest.mark.parametrize("change", ["remove", "protect", "nx", "frame", "page", "ts", "modify"])
def test_what_takes_away_flushes(vm: VmSystem, proc: Proc, map: VmMap, change: str) -> None:
    anon(map, BASE, 2, RWX, max=RWX)
    store(map, BASE, 1)
    store(map, BASE + P, 1)
    fetch(map, BASE)
    use(map.pmap, BASE, PG_A | PG_M)
    entry, m, other = entries(map)[0], page_at(map, BASE), page_at(map, BASE + P)
    loaded(map.pmap)
    if change == "remove":
        pmap_remove(map.pmap, BASE, BASE + P)
    elif change == "protect":
        pmap_protect(map.pmap, BASE, BASE + 64 * P, RX)
    elif change == "nx":
        pmap_enter(map.pmap, BASE, m, RW, False, entry)
    elif change == "frame":
        pmap_enter(map.pmap, BASE, other, RWX, False, entry)
    elif change == "page":
        pmap_page_protect(vm, m, VM_PROT_NONE)
    elif change == "ts":
        pmap_ts_referenced(vm, m)
    else:
        pmap_clear_modify(vm, m)
    assert vm.mmu.need_flush


@pytest.mark.spec("PMAP-4")
def test_the_guest_sees_a_protection_change_at_once(vm: VmSystem, proc: Proc) -> None:
    map = proc.map
    guest = TinyGuest(vm, proc.p_vmspace)
    anon(map, BASE, 1)
    guest.store(BASE, 1)
    guest.store(BASE, 2)
    assert guest.faults == []
    pmap_protect(map.pmap, BASE, BASE + P, VM_PROT_READ)
    guest.store(BASE, 3)
    assert guest.faults == [(BASE, 7)]


@pytest.mark.spec("PMAP-4")
@pytest.mark.parametrize("quick", [False, True])
def test_copy_on_write_needs_no_flush_in_the_guests_own_space(
    vm: VmSystem, proc: Proc, quick: bool
) -> None:
    map = proc.map
    guest = TinyGuest(vm, proc.p_vmspace, quick=quick)
    anon(map, BASE, 1)
    guest.store(BASE, 1)
    child = vmspace_fork(proc.p_vmspace)
    guest.load(BASE)
    flushes = vm.mmu.flushes
    # The first load puts a read-only translation into the TLB, the last must not find it.
    assert guest.run(LOAD + STORE + LOAD, rdi=BASE, rsi=2) == 2
    assert guest.faults == [(BASE, 7)]
    assert vm.mmu.flushes == flushes + 1  # for the new code, before it began
    assert load(child.vm_map, BASE) == 1
    sound(map, child.vm_map)


@pytest.mark.spec("PMAP-4")
def test_copy_on_write_by_the_kernel_reaches_the_guest(vm: VmSystem, proc: Proc) -> None:
    from dfvm.vm.copyio import copyout

    map = proc.map
    guest = TinyGuest(vm, proc.p_vmspace)
    anon(map, BASE, 1)
    guest.store(BASE, 1)
    child = vmspace_fork(proc.p_vmspace)
    assert guest.load(BASE) == 1
    copyout(proc.p_vmspace, b"\x09", BASE)
    assert guest.load(BASE) == 9
    assert load(child.vm_map, BASE) == 1


@pytest.mark.spec("PMAP-4")
def test_code_that_the_kernel_overwrites_is_translated_anew(vm: VmSystem, proc: Proc) -> None:
    from dfvm.vm.copyio import copyout

    guest = TinyGuest(vm, proc.p_vmspace)
    anon(proc.map, BASE, 1, RWX, max=RWX)
    for value in (1, 2, 3):
        # mov al, value; syscall
        copyout(proc.p_vmspace, bytes([0xB0, value, 0x0F, 0x05]), BASE)
        assert guest.run(JUMP, rdi=BASE) == value
        assert guest.run(JUMP, rdi=BASE) == value


@pytest.mark.spec("PMAP-4")
def test_a_page_table_that_is_used_again_is_not_taken_for_the_old_one(vm: VmSystem) -> None:
    """A space whose top table lies where a dead one's lay must not see its translations."""
    first = Proc(vm)
    guest = TinyGuest(vm, first.p_vmspace)
    anon(first.map, BASE, 1)
    guest.store(BASE, 5)
    assert vm.mmu.cr3 == first.map.pmap.pm_pml4
    vmspace_rel(first.p_vmspace)
    assert vm.mmu.need_flush


# --- PMAP-5: the kernel's half -----------------------------------------------------------------


@pytest.mark.spec("PMAP-5")
def test_the_direct_map_covers_ram_with_large_pages(vm: VmSystem, map: VmMap) -> None:
    for pa in (0, 0x1234, vm.ram.size - 1):
        assert pmap_extract(vm.kernel_pmap, DMAP_MIN_ADDRESS + pa) == pa
        for cr3 in (vm.kernel_pmap.pm_pml4, map.pmap.pm_pml4):
            leaf = walk(vm.ram, cr3, DMAP_MIN_ADDRESS + pa)[-1]
            assert leaf.name == "PD"
            assert leaf.entry & PG_PS
            assert not leaf.entry & PG_U
            assert (leaf.entry & PG_FRAME & -NBPDR) + pa % NBPDR == pa
    beyond = walk(vm.ram, vm.kernel_pmap.pm_pml4, DMAP_MIN_ADDRESS + vm.ram.size)[-1]
    assert not beyond.leaf


@pytest.mark.spec("PMAP-5")
def test_a_space_sees_kernel_mappings_made_later_but_not_from_ring_3(
    vm: VmSystem, proc: Proc
) -> None:
    guest = TinyGuest(vm, proc.p_vmspace)
    va = VM_MIN_KERNEL_ADDRESS + 0x3000_0000
    pmap_kenter(vm, va, 0x5000)
    leaf = walk(vm.ram, proc.map.pmap.pm_pml4, va)[-1]
    assert leaf.leaf
    assert not leaf.entry & PG_U
    for address in (va, DMAP_MIN_ADDRESS):
        with pytest.raises(Exception, match="1"):  # KERN_INVALID_ADDRESS
            guest.load(address)
    pmap_kremove(vm, va)


# --- PMAP-6: giving tables back ----------------------------------------------------------------


@pytest.mark.spec("PMAP-6")
def test_exit_gives_back_every_table(vm: VmSystem) -> None:
    free = vm.gd.gd_vmstats.v_free_count
    wired = vm.gd.gd_vmstats.v_wire_count
    proc = Proc(vm)
    vm.sysctl.prefault_pages = 0
    spread = [0x40_0000, 0x4000_0000, 0x80_0000_0000, 0x7FFF_0000_0000]
    for addr in spread:
        anon(proc.map, addr, 2)
        store(proc.map, addr, 1)
    assert vm.gd.gd_vmstats.v_wire_count - wired == 1 + (1 + 2 + 2) + 3 + 3
    sound(proc.map)
    vmspace_relexit(proc.p_vmspace)
    assert vm.gd.gd_vmstats.v_wire_count == wired + 1  # the top table stays until it is reaped
    vmspace_exitfree(proc.p_vmspace)
    assert proc.map.pmap.pm_pml4 == 0
    assert vm.gd.gd_vmstats.v_wire_count == wired
    assert vm.gd.gd_vmstats.v_free_count == free
    assert pmap_check(proc.map.pmap) == []


@pytest.mark.spec("PMAP-6")
def test_an_empty_table_goes_at_once_with_those_above(vm: VmSystem, map: VmMap) -> None:
    wired = vm.gd.gd_vmstats.v_wire_count
    anon(map, BASE, 1)
    anon(map, BASE + NBPDR, 1)
    store(map, BASE, 1)
    store(map, BASE + NBPDR, 1)
    assert vm.gd.gd_vmstats.v_wire_count == wired + 4
    pmap_remove(map.pmap, BASE, BASE + P)
    assert vm.gd.gd_vmstats.v_wire_count == wired + 3
    m = page_at(map, BASE + NBPDR)
    pmap_page_protect(vm, m, VM_PROT_NONE)
    assert vm.gd.gd_vmstats.v_wire_count == wired
    sound(map)


@pytest.mark.spec("PMAP-6")
def test_release_refuses_a_space_that_still_maps(vm: VmSystem, map: VmMap) -> None:
    from dfvm.vm.pmap import pmap_release

    anon(map, BASE, 1)
    store(map, BASE, 1)
    with pytest.raises(Panic):
        pmap_release(map.pmap)


# --- the checker -------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["frame", "right", "count", "table", "flag", "stray", "kernel"])
def test_the_checker_sees_what_is_wrong(vm: VmSystem, proc: Proc, map: VmMap, harm: str) -> None:
    anon(map, BASE, 2)
    store(map, BASE, 1)
    store(map, BASE + P, 1)
    pmap = map.pmap
    slot = pmap.pm_pt[BASE >> 21] + (BASE >> 12 & 511)
    sound(map)
    if harm == "frame":
        pmap.q[slot] = pmap.q[slot] & ~PG_FRAME | pmap.q[slot + 1] & PG_FRAME
    elif harm == "right":
        entries(map)[0].protection = VM_PROT_READ
    elif harm == "count":
        pmap.pm_stats.resident_count += 1
    elif harm == "table":
        pmap.pm_pt_m[BASE >> 21].wire_count += 1
    elif harm == "flag":
        page_at(map, BASE).flags &= ~PG_MAPPED
    elif harm == "stray":
        pmap.q[slot + 9] = pmap.q[slot]
    else:
        pmap.q[slot] &= ~PG_U
    assert pmap_check(pmap, map)


@pytest.mark.parametrize("harm", ["multi", "wired", "unwired"])
def test_the_checker_sees_what_takes_all_maps(
    vm: VmSystem, proc: Proc, map: VmMap, harm: str
) -> None:
    anon(map, BASE, 2)
    store(map, BASE, 1)
    child = vmspace_fork(proc.p_vmspace).vm_map
    assert load(child, BASE) == 1
    assert load(map, BASE) == 1
    vm_map_user_wiring(map, BASE + P, BASE + 2 * P, False)
    maps = [vm.kernel_map, map, child]
    assert pmap_check_all(vm, maps) == []
    if harm == "multi":
        page_at(map, BASE).flags &= ~PG_MAPPEDMULTI
    elif harm == "wired":
        page_at(map, BASE).wire_count += 1
    else:
        page_at(map, BASE + P).wire_count -= 1
    assert len(pmap_check_all(vm, maps)) == 1


def test_a_cow_entry_may_not_be_mapped_writable(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    from dfvm.vm.pager.vnode_pager import vnode_pager_alloc

    vp = StubVnode(bytes(4 * P))
    obj = vnode_pager_alloc(vm, vp, vp.v_filesize)
    show(map, obj, 0, BASE, 4, RW, MAP_COPY_ON_WRITE)
    load(map, BASE)
    sound(map)
    pmap_enter(map.pmap, BASE, obj.rb_memq[0], RW, False, entries(map)[0])
    assert any("needs a copy" in line for line in pmap_check(map.pmap, map))
