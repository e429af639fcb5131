"""Page faults: how each is resolved, by the long way and by the quick one, and what is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.lwkt.panic import Panic
from dfvm.machine.pte import PG_A, PG_FRAME, PG_M, PG_RW, PG_V, PG_W
from dfvm.vm import probe
from dfvm.vm.pager.vnode_pager import vnode_pager_alloc, vnode_pager_setsize
from dfvm.vm.pmap import pmap_clear_modify, pmap_extract, pmap_pte, pmap_remove
from dfvm.vm.pmap_check import pmap_check
from dfvm.vm.vm import (
    KERN_FAILURE,
    KERN_INVALID_ADDRESS,
    KERN_PROTECTION_FAILURE,
    KERN_RESOURCE_SHORTAGE,
    KERN_SUCCESS,
    VM_INHERIT_SHARE,
    VM_PROT_ALL,
    VM_PROT_NONE,
    VM_PROT_READ,
)
from dfvm.vm.vm_fault import (
    VM_FAULT_BURST,
    VM_FAULT_DIRTY,
    VM_FAULT_NORMAL,
    VM_FAULT_USERMODE,
    vm_fault,
    vm_fault_page,
    vm_fault_quick,
)
from dfvm.vm.vm_map import (
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MAP_COPY_ON_WRITE,
    MAP_ENTRY_KSTACK,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_NOFAULT,
    vm_map_inherit,
    vm_map_madvise,
    vm_map_protect,
    vm_map_stack,
    vm_map_user_wiring,
)
from dfvm.vm.vm_map_check import vm_map_check
from dfvm.vm.vm_object import OBJ_MIGHTBEDIRTY, OBJ_WRITEABLE
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PG_SWAPPED,
    VM_ALLOC_NORMAL,
    VM_PAGE_BITS_ALL,
    vm_page_alloc,
    vm_page_hash_enter,
    vm_page_rollup,
    vm_page_unhold,
    vm_page_wakeup,
)
from dfvm.vm.vm_proc import RLIMIT_RSS
from dfvm.vm.vmspace import vmspace_exitfree, vmspace_fork, vmspace_relexit
from tests.vm.map_util import RW, P, Proc, anon, chain, entries, load, show, store
from tests.vm.tiny_guest import LOAD, STORE, Segv, TinyGuest
from tests.vm.vnode_stub import StubVnode, make_vm

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map import VmMap, VmMapEntry
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage

BASE = 0x40_0000
USER_WRITE = VM_FAULT_BURST | VM_FAULT_USERMODE | VM_FAULT_DIRTY
USER_READ = VM_FAULT_BURST | VM_FAULT_USERMODE


def file(vm: VmSystem, npages: int, tail: int = 0) -> tuple[StubVnode, VmObject]:
    """A file whose page i is full of bytes i + 1, and `tail` bytes more; with a reference."""
    data = b"".join(bytes([i + 1]) * P for i in range(npages)) + bytes([npages + 1]) * tail
    vp = StubVnode(data)
    return vp, vnode_pager_alloc(vm, vp, vp.v_filesize)


def sound(*maps: VmMap) -> None:
    for map in maps:
        assert vm_map_check(map) == []
        assert pmap_check(map.pmap, map) == []


def front(map: VmMap, va: int) -> VmPage | None:
    """The page of the front object at `va`."""
    entry = entry_at(map, va)
    assert entry.ba.object is not None
    return entry.ba.object.rb_memq.get(va - entry.ba.start + entry.ba.offset >> 12)


def entry_at(map: VmMap, va: int) -> VmMapEntry:
    return next(e for e in map if e.ba.start <= va < e.ba.end)


def mapped(map: VmMap, base: int, npages: int) -> list[int]:
    """Which of the pages from `base` are mapped."""
    return [i for i in range(npages) if pmap_pte(map.pmap, base + i * P) & PG_V]


def count(vm: VmSystem, name: str) -> int:
    vm_page_rollup(vm)
    return int(getattr(vm.vmmeter, name))


def touch(map: VmMap, va: int, write: bool, quick: bool = False) -> int:
    """A user's access; `quick`: it must be plain."""
    kind = RW if write else VM_PROT_READ
    if quick:
        assert vm_fault_quick(map, va, kind)
        return KERN_SUCCESS
    return vm_fault(map, va, kind, USER_WRITE if write else USER_READ)


# --- FAULT-1: from the trap to the entry -------------------------------------------------------


@pytest.mark.spec("FAULT-1")
def test_error_codes_become_accesses(vm: VmSystem, proc: Proc) -> None:
    guest = TinyGuest(vm, proc.p_vmspace)
    anon(proc.map, BASE, 1)
    anon(proc.map, BASE + 4 * P, 1, VM_PROT_READ)
    guest.load(BASE)
    assert guest.faults == [(BASE, 4)]
    guest.store(BASE, 1)  # FAULT-5: mapped with write already
    assert guest.faults == []
    assert guest.load(BASE + 4 * P) == 0
    with pytest.raises(Segv) as failure:
        guest.store(BASE + 4 * P, 1)
    assert failure.value.args == (KERN_PROTECTION_FAILURE,)


@pytest.mark.spec("FAULT-1", "FAULT-10")
def test_what_is_not_mapped_or_not_allowed(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 1, VM_PROT_READ)
    anon(map, BASE + 4 * P, 1, VM_PROT_NONE)
    assert touch(map, BASE + P, False) == KERN_INVALID_ADDRESS
    assert touch(map, BASE, True) == KERN_PROTECTION_FAILURE
    assert touch(map, BASE + 4 * P, False) == KERN_PROTECTION_FAILURE
    assert not vm_fault_quick(map, BASE + P, VM_PROT_READ)
    assert not vm_fault_quick(map, BASE, RW)
    assert mapped(map, BASE, 8) == []


@pytest.mark.spec("FAULT-1")
def test_a_stack_grows_to_the_fault(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    rv, low = vm_map_stack(map, 0x7000_0000_0000, 1 << 20, False, RW, RW, 0)
    assert rv == KERN_SUCCESS
    top = low + (1 << 20)
    bottom = entries(map)[0].ba.start
    assert bottom > low
    assert touch(map, top - 8, True) == KERN_SUCCESS
    assert touch(map, bottom - 5 * P, True) == KERN_SUCCESS
    assert entries(map)[0].ba.start <= bottom - 5 * P
    assert touch(map, low - P, True) == KERN_INVALID_ADDRESS
    sound(map)


# --- FAULT-2: bypass ---------------------------------------------------------------------------


@pytest.mark.spec("FAULT-2")
def test_pages_of_several_processes_are_found_by_the_bypass(vm: VmSystem) -> None:
    vp, obj = file(vm, 4)
    maps = [Proc(vm).map for _ in range(4)]
    for n, map in enumerate(maps):
        if n:
            vnode_pager_alloc(vm, vp, vp.v_filesize)
        show(map, obj, 0, BASE, 4, VM_PROT_READ)
        assert touch(map, BASE, False) == KERN_SUCCESS
    assert count(vm, "v_fault_bypass") >= 1
    assert vm.ram.mem[pmap_pte(maps[3].pmap, BASE) & PG_FRAME] == 1
    assert obj.rb_memq[0].busy_count == 0
    sound(*maps)


@pytest.mark.spec("FAULT-2")
def test_a_hit_in_the_quick_path_does_not_ask_the_object(vm: VmSystem) -> None:
    vp, obj = file(vm, 1)
    maps = [Proc(vm).map for _ in range(3)]
    for n, map in enumerate(maps):
        if n:
            vnode_pager_alloc(vm, vp, vp.v_filesize)
        show(map, obj, 0, BASE, 1, VM_PROT_READ)
    for map in maps[:2]:
        touch(map, BASE, False)

    class Asked(dict[int, Any]):
        def get(self, *args: Any) -> Any:
            raise AssertionError("the object was asked")

    vm_page_hash_enter(obj.rb_memq[0])
    pages = obj.rb_memq
    obj.rb_memq = Asked(pages)
    vm.sysctl.prefault_pages = 0  # the neighbours come from the object
    before = count(vm, "v_fault_bypass")
    touch(maps[2], BASE, False, quick=True)
    obj.rb_memq = pages
    assert count(vm, "v_fault_bypass") == before + 1
    assert obj.rb_memq[0].busy_count == 0
    sound(*maps)


@pytest.mark.spec("FAULT-2")
@pytest.mark.parametrize("spoil", ["invalid", "inactive", "swapped", "clean", "object"])
def test_the_bypass_declines(vm: VmSystem, proc: Proc, map: VmMap, spoil: str) -> None:
    _, obj = file(vm, 1)
    show(map, obj, 0, BASE, 1, RW)
    vm_map_inherit(map, BASE, BASE + P, VM_INHERIT_SHARE)
    store(map, BASE, 9)
    child = vmspace_fork(proc.p_vmspace).vm_map
    touch(child, BASE, True)
    m = obj.rb_memq[0]
    vm_page_hash_enter(m)
    pmap_remove(child.pmap, BASE, BASE + P)
    before = count(vm, "v_fault_bypass")
    assert touch(child, BASE, True) == KERN_SUCCESS
    assert count(vm, "v_fault_bypass") == before + 1
    pmap_remove(child.pmap, BASE, BASE + P)
    if spoil == "invalid":
        m.valid = 0x7F
    elif spoil == "inactive":
        from dfvm.vm.vm_page import vm_page_deactivate

        vm_page_deactivate(vm, m)
    elif spoil == "swapped":
        m.flags |= PG_SWAPPED
    elif spoil == "clean":
        m.dirty = 0
    else:
        obj.flags &= ~(OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY)
    assert touch(child, BASE, True) == KERN_SUCCESS
    assert count(vm, "v_fault_bypass") == before + 1
    assert m.dirty == VM_PAGE_BITS_ALL
    assert m.busy_count == 0


# --- FAULT-3: the chain ------------------------------------------------------------------------


@pytest.mark.spec("FAULT-3")
@pytest.mark.parametrize("quick", [False, True])
def test_each_element_shows_through_at_its_own_offset(
    vm: VmSystem, proc: Proc, map: VmMap, quick: bool
) -> None:
    _, obj = file(vm, 8)
    show(map, obj, 2 * P, BASE, 6, RW, MAP_COPY_ON_WRITE)
    store(map, BASE + P, 100)
    child = vmspace_fork(proc.p_vmspace).vm_map
    store(child, BASE + 3 * P, 101)
    assert len(chain(entries(child)[0])) == 3
    pmap_remove(child.pmap, BASE, BASE + 6 * P)
    assert [load(child, BASE + i * P) for i in range(6)] == [3, 100, 5, 101, 7, 8]
    pmap_remove(child.pmap, BASE, BASE + 6 * P)
    vm.sysctl.prefault_pages = 0
    touch(child, BASE, False)  # makes the page table
    for i in range(1, 6):
        touch(child, BASE + i * P, False, quick)
    assert [load(child, BASE + i * P) for i in range(6)] == [3, 100, 5, 101, 7, 8]
    assert [load(map, BASE + i * P) for i in range(6)] == [3, 100, 5, 6, 7, 8]
    sound(map, child)


@pytest.mark.spec("FAULT-3")
def test_a_busy_page_is_waited_for(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 1)
    store(map, BASE, 5)
    pmap_remove(map.pmap, BASE, BASE + P)
    m = front(map, BASE)
    assert m is not None
    m.busy_count |= PBUSY_LOCKED
    order: list[str] = []

    def owner() -> None:
        vm.sched.tsleep("io", 0, "io", 1)
        order.append("done")
        vm_page_wakeup(vm, m)

    def faulter() -> None:
        assert not vm_fault_quick(map, BASE, RW)
        assert touch(map, BASE, True) == KERN_SUCCESS
        order.append("faulted")

    vm.sched.create(faulter, name="faulter")
    vm.sched.create(owner, name="owner")
    vm.sched.run()
    assert order == ["done", "faulted"]
    assert count(vm, "v_intrans") == 1
    assert m.busy_count == 0


@pytest.mark.spec("FAULT-3")
def test_a_pager_read_is_a_hard_fault(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    vp, obj = file(vm, 2)
    show(map, obj, 0, BASE, 2, VM_PROT_READ)
    assert touch(map, BASE, False) == KERN_SUCCESS
    assert len(vp.reads) >= 1
    assert (proc.p_majflt, proc.p_minflt) == (1, 0)
    pmap_remove(map.pmap, BASE, BASE + P)
    assert touch(map, BASE, False) == KERN_SUCCESS
    assert (proc.p_majflt, proc.p_minflt) == (1, 1)
    sound(map)


@pytest.mark.spec("FAULT-3", "FAULT-10")
def test_an_unreadable_page_and_the_end_of_the_file_are_sigbus(vm: VmSystem, map: VmMap) -> None:
    vp, obj = file(vm, 3, tail=10)
    show(map, obj, 0, BASE, 8, RW)
    vp.bad.add(P)
    assert touch(map, BASE + P, False) == KERN_FAILURE
    assert touch(map, BASE + 4 * P, False) == KERN_FAILURE
    assert touch(map, BASE + 4 * P, True) == KERN_FAILURE
    assert load(map, BASE + 3 * P + 9) == 4
    assert load(map, BASE + 3 * P + 10) == 0  # the tail of the last page
    vp.bad.clear()
    assert load(map, BASE + P) == 2  # the failure has left nothing behind
    vnode_pager_setsize(vp, P)
    assert touch(map, BASE + P, False) == KERN_FAILURE
    assert obj.paging_in_progress == 0
    assert obj.hold_count == 0
    sound(map)


@pytest.mark.spec("FAULT-3")
@pytest.mark.parametrize("quick", [False, True])
def test_the_end_of_a_chain_is_zero_fill_in_front(
    vm: VmSystem, proc: Proc, map: VmMap, quick: bool
) -> None:
    anon(map, BASE, 4)
    store(map, BASE, 1)
    child = vmspace_fork(proc.p_vmspace).vm_map
    store(child, BASE, 2)
    zfod = count(vm, "v_zfod")
    vm.sysctl.prefault_pages = 0
    touch(child, BASE + 2 * P, True, quick)
    assert count(vm, "v_zfod") == zfod + 1
    m = front(child, BASE + 2 * P)
    assert m is not None
    assert bytes(vm.ram.mem[m.phys_addr : m.phys_addr + P]) == bytes(P)
    assert m.valid == m.dirty == VM_PAGE_BITS_ALL
    sound(map, child)


# --- FAULT-4, FAULT-5: copy on write, writable at once ----------------------------------------


@pytest.mark.spec("FAULT-4")
@pytest.mark.parametrize("quick", [False, True])
def test_a_write_copies_and_a_read_does_not(
    vm: VmSystem, proc: Proc, map: VmMap, quick: bool
) -> None:
    anon(map, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, 10 + i)
    old = [front(map, BASE + i * P) for i in range(4)]
    child = vmspace_fork(proc.p_vmspace).vm_map
    store(child, BASE + 3 * P, 99)  # shadows the entry; the quick way leaves that to the long one
    cow = count(vm, "v_cow_faults")
    pmap_remove(child.pmap, BASE, BASE + 2 * P)
    vm.sysctl.prefault_pages = 0
    touch(child, BASE, False, quick)
    assert count(vm, "v_cow_faults") == cow
    assert pmap_pte(child.pmap, BASE) & (PG_FRAME | PG_RW) == old[0].phys_addr  # type: ignore[union-attr]
    touch(child, BASE + P, True, quick)
    assert count(vm, "v_cow_faults") == cow + 1
    new = front(child, BASE + P)
    assert new is not None
    assert new is not old[1]
    assert new.dirty == VM_PAGE_BITS_ALL
    assert vm.ram.mem[new.phys_addr] == 11
    assert front(map, BASE + P) is old[1]
    assert pmap_pte(child.pmap, BASE + P) & PG_RW
    sound(map, child)


@pytest.mark.spec("FAULT-4")
def test_every_direction_of_copy_on_write(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 1)
    store(map, BASE, 1)
    child = vmspace_fork(proc.p_vmspace)
    grandchild = vmspace_fork(child)
    store(map, BASE, 2)
    assert (load(child.vm_map, BASE), load(grandchild.vm_map, BASE)) == (1, 1)
    store(grandchild.vm_map, BASE, 3)
    assert (load(map, BASE), load(child.vm_map, BASE)) == (2, 1)
    store(child.vm_map, BASE, 4)
    assert (load(map, BASE), load(grandchild.vm_map, BASE)) == (2, 3)
    sound(map, child.vm_map, grandchild.vm_map)


@pytest.mark.spec("FAULT-5")
@pytest.mark.parametrize("quick", [False, True])
def test_a_read_of_unshared_memory_maps_it_writable(vm: VmSystem, map: VmMap, quick: bool) -> None:
    anon(map, BASE, 64)
    touch(map, BASE + 32 * P, False)
    vm.sysctl.prefault_pages = 0
    touch(map, BASE, False, quick)
    assert pmap_pte(map.pmap, BASE) & PG_RW
    m = front(map, BASE)
    assert m is not None
    assert m.dirty == 0  # the M bit will tell


@pytest.mark.spec("FAULT-5")
def test_a_private_file_page_is_not(vm: VmSystem, map: VmMap) -> None:
    _, obj = file(vm, 2)
    show(map, obj, 0, BASE, 2, RW, MAP_COPY_ON_WRITE)
    touch(map, BASE, False)
    assert not pmap_pte(map.pmap, BASE) & PG_RW
    assert entries(map)[0].eflags & MAP_ENTRY_NEEDS_COPY


# --- FAULT-6: bursts ---------------------------------------------------------------------------


@pytest.mark.spec("FAULT-6")
@pytest.mark.parametrize("quick", [False, True])
def test_neighbours_half_each_way(vm: VmSystem, map: VmMap, quick: bool) -> None:
    anon(map, BASE, 64)
    touch(map, BASE + 60 * P, True)
    pmap_remove(map.pmap, BASE + 50 * P, BASE + 60 * P)
    touch(map, BASE + 20 * P, True, quick)
    assert mapped(map, BASE, 40) == list(range(16, 25))
    assert count(vm, "v_vm_faults") == 2
    sound(map)


@pytest.mark.spec("FAULT-6")
@pytest.mark.parametrize("quick", [False, True])
def test_sequential_touching_maps_sixteen_pages_a_fault(
    vm: VmSystem, proc: Proc, quick: bool
) -> None:
    guest = TinyGuest(vm, proc.p_vmspace, quick=quick)
    anon(proc.map, BASE, 512)
    addresses = []
    for i in range(512):
        guest.store(BASE + i * P, i & 0xFF)
        addresses += [va for va, _ in guest.faults]
    assert addresses[1:] == [BASE + i * P for i in range(5, 512, 16)]
    assert all(guest.load(BASE + i * P) == i & 0xFF for i in (0, 4, 5, 20, 21, 511))
    sound(proc.map)


@pytest.mark.spec("FAULT-6")
@pytest.mark.parametrize("quick", [False, True])
def test_a_stack_is_followed_downwards(vm: VmSystem, proc: Proc, quick: bool) -> None:
    guest = TinyGuest(vm, proc.p_vmspace, quick=quick)
    anon(proc.map, BASE, 400)
    addresses = []
    for i in range(399, -1, -1):
        guest.store(BASE + i * P, 1)
        addresses += [va for va, _ in guest.faults]
    assert addresses[1:] == [BASE + i * P for i in range(394, -1, -16)]
    sound(proc.map)


@pytest.mark.spec("FAULT-6")
def test_advice_changes_the_burst(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 64)
    vm_map_madvise(map, BASE, BASE + 64 * P, MADV_SEQUENTIAL)
    touch(map, BASE + 8 * P, True)
    assert mapped(map, BASE, 64) == list(range(8, 24))
    vm_map_madvise(map, BASE, BASE + 64 * P, MADV_RANDOM)
    touch(map, BASE + 40 * P, True)
    assert mapped(map, BASE + 30 * P, 34) == [10]
    assert vm_fault_quick(map, BASE + 50 * P, RW)
    assert mapped(map, BASE + 42 * P, 22) == [8]


@pytest.mark.spec("FAULT-6")
@pytest.mark.parametrize("quick", [False, True])
def test_fast_fault_and_prefault_can_be_turned_off(vm: VmSystem, map: VmMap, quick: bool) -> None:
    anon(map, BASE, 128)
    touch(map, BASE, True)
    vm.sysctl.fast_fault = 0
    touch(map, BASE + 64 * P, True, quick)
    assert mapped(map, BASE + 32 * P, 96) == [32]
    vm.sysctl.fast_fault = 1
    vm.sysctl.prefault_pages = 0
    touch(map, BASE + 96 * P, True, quick)
    assert mapped(map, BASE + 32 * P, 96) == [32, 64]


@pytest.mark.spec("FAULT-6")
def test_the_quick_form_maps_only_what_is_resident(vm: VmSystem, map: VmMap) -> None:
    _, obj = file(vm, 32)
    show(map, obj, 0, BASE, 32, VM_PROT_READ)
    vm_map_madvise(map, BASE, BASE + 32 * P, MADV_RANDOM)
    for i in (10, 11, 12, 14):
        touch(map, BASE + i * P, False)
    resident = sorted(obj.rb_memq)
    assert resident == [10, 11, 12, 14]
    pmap_remove(map.pmap, BASE, BASE + 32 * P)
    vm_map_madvise(map, BASE, BASE + 32 * P, 0)  # MADV_NORMAL
    touch(map, BASE + 11 * P, False)
    assert mapped(map, BASE, 32) == [10, 11, 12]  # a hole ends the scan
    assert sorted(obj.rb_memq) == resident
    assert count(vm, "v_prefault") >= 2


@pytest.mark.spec("FAULT-6")
@pytest.mark.parametrize("quick", [False, True])
def test_a_burst_stays_in_its_entry_and_skips_no_page(
    vm: VmSystem, map: VmMap, quick: bool
) -> None:
    anon(map, BASE, 1)
    anon(map, BASE + 8 * P, 4)
    anon(map, BASE + 16 * P, 1)
    touch(map, BASE, True)
    touch(map, BASE + 16 * P, True)
    touch(map, BASE + 9 * P, True)
    assert mapped(map, BASE, 20) == [0, 8, 9, 10, 11, 16]
    pmap_remove(map.pmap, BASE + 8 * P, BASE + 12 * P)
    touch(map, BASE + 10 * P, True, quick)
    assert mapped(map, BASE, 20) == [0, 8, 9, 10, 11, 16]
    sound(map)


@pytest.mark.spec("FAULT-6")
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("middle", [16, 512, 513])  # within a page table, and at its borders
def test_what_lies_beside_an_entry_says_nothing_of_its_use(
    vm: VmSystem, proc: Proc, quick: bool, middle: int
) -> None:
    guest = TinyGuest(vm, proc.p_vmspace, quick=quick)
    map, base = proc.map, BASE + middle * P
    anon(map, base - 16 * P, 16, VM_PROT_ALL)
    anon(map, base, 32)
    anon(map, base + 32 * P, 16, VM_PROT_ALL)
    guest.store(base - P, 1)  # the last page below, the first one above
    guest.store(base + 32 * P, 1)
    guest.store(base, 1)
    assert mapped(map, base, 32) == [0, 1, 2, 3, 4]
    guest.store(base + 31 * P, 1)
    assert mapped(map, base, 32) == [0, 1, 2, 3, 4, *range(27, 32)]
    guest.store(base + 4 * P, 1)
    guest.store(base + 5 * P, 1)  # within it, it does: it is gone through in order
    assert mapped(map, base, 32) == list(range(21)) + list(range(27, 32))
    sound(map)


# --- FAULT-7 -----------------------------------------------------------------------------------


@pytest.mark.spec("FAULT-7")
def test_a_write_drops_the_swap_copy_and_a_read_keeps_it(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 1)
    store(map, BASE, 1)
    m = front(map, BASE)
    assert m is not None
    m.flags |= PG_SWAPPED
    m.dirty = 0
    pmap_remove(map.pmap, BASE, BASE + P)
    touch(map, BASE, False)
    assert m.flags & PG_SWAPPED
    pmap_remove(map.pmap, BASE, BASE + P)
    assert not vm_fault_quick(map, BASE, RW)
    touch(map, BASE, True)
    assert not m.flags & PG_SWAPPED
    assert m.dirty == VM_PAGE_BITS_ALL


# --- FAULT-8: wiring, and the kernel's own faults ---------------------------------------------


@pytest.mark.spec("FAULT-8")
def test_wiring_faults_everything_in_and_unwiring_lets_go(vm: VmSystem, map: VmMap) -> None:
    wired = vm.gd.gd_vmstats.v_wire_count
    anon(map, BASE, 8)
    store(map, BASE + 3 * P, 33)
    assert vm_map_user_wiring(map, BASE, BASE + 8 * P, False) == KERN_SUCCESS
    assert map.pmap.pm_stats.wired_count == 8
    assert all(pmap_pte(map.pmap, BASE + i * P) & (PG_W | PG_RW) == PG_W | PG_RW for i in range(8))
    assert load(map, BASE + 3 * P) == 33
    sound(map)
    assert not vm_fault_quick(map, BASE, RW)
    assert vm_map_user_wiring(map, BASE, BASE + 8 * P, True) == KERN_SUCCESS
    assert map.pmap.pm_stats.wired_count == 0
    assert vm.gd.gd_vmstats.v_wire_count == wired + 3  # the page tables
    sound(map)


@pytest.mark.spec("FAULT-8")
def test_wiring_that_fails_leaves_nothing_wired(vm: VmSystem, map: VmMap) -> None:
    vp, obj = file(vm, 8)
    show(map, obj, 0, BASE, 8, RW)
    vp.bad.add(5 * P)
    assert vm_map_user_wiring(map, BASE, BASE + 8 * P, False) == KERN_FAILURE
    assert map.pmap.pm_stats.wired_count == 0
    assert all(m.wire_count == 0 for m in obj.rb_memq.values())
    sound(map)


@pytest.mark.spec("FAULT-8")
def test_unwiring_finds_pages_that_a_truncation_unmapped(vm: VmSystem, map: VmMap) -> None:
    vp, obj = file(vm, 4)
    show(map, obj, 0, BASE, 4, RW)
    assert vm_map_user_wiring(map, BASE, BASE + 4 * P, False) == KERN_SUCCESS
    vnode_pager_setsize(vp, P)
    assert pmap_pte(map.pmap, BASE + 2 * P) == 0
    assert vm_map_user_wiring(map, BASE, BASE + 4 * P, True) == KERN_SUCCESS
    assert all(m.wire_count == 0 for m in obj.rb_memq.values())


@pytest.mark.spec("FAULT-8")
def test_wired_memory_that_may_not_be_touched_for_a_while(vm: VmSystem, map: VmMap) -> None:
    """mprotect(PROT_NONE) takes the mappings, not the wirings."""
    wired = vm.gd.gd_vmstats.v_wire_count
    anon(map, BASE, 4)
    store(map, BASE, 9)
    assert vm_map_user_wiring(map, BASE, BASE + 4 * P, False) == KERN_SUCCESS
    vm_map_protect(map, BASE, BASE + 4 * P, VM_PROT_NONE, False)
    assert touch(map, BASE, False) == KERN_PROTECTION_FAILURE
    sound(map)
    vm_map_protect(map, BASE, BASE + 4 * P, RW, False)
    assert load(map, BASE) == 9
    assert pmap_pte(map.pmap, BASE) & PG_W
    sound(map)
    assert vm_map_user_wiring(map, BASE, BASE + 4 * P, True) == KERN_SUCCESS
    assert map.pmap.pm_stats.wired_count == 0
    assert vm.gd.gd_vmstats.v_wire_count == wired + 3  # the page tables
    sound(map)


@pytest.mark.spec("FAULT-8")
def test_fork_copies_wired_memory_at_once(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    store(map, BASE + P, 7)
    assert vm_map_user_wiring(map, BASE, BASE + 4 * P, False) == KERN_SUCCESS
    child = vmspace_fork(proc.p_vmspace).vm_map
    sound(map, child)
    frame = pmap_pte(map.pmap, BASE + P) & PG_FRAME
    assert pmap_pte(map.pmap, BASE + P) & (PG_W | PG_RW) == PG_W | PG_RW
    assert pmap_extract(child.pmap, BASE + P) not in (None, frame)
    assert child.pmap.pm_stats.wired_count == 0
    assert load(child, BASE + P) == 7
    store(map, BASE + P, 8)
    assert load(child, BASE + P) == 7
    assert pmap_pte(map.pmap, BASE + P) & PG_FRAME == frame


@pytest.mark.spec("FAULT-8")
def test_fault_page_gives_the_page_a_write_would_reach(
    vm: VmSystem, proc: Proc, map: VmMap
) -> None:
    anon(map, BASE, 2)
    store(map, BASE, 1)
    child = vmspace_fork(proc.p_vmspace).vm_map
    shared, rv = vm_fault_page(child, BASE, VM_PROT_READ, VM_FAULT_NORMAL)
    assert rv == KERN_SUCCESS
    assert shared is front(map, BASE)
    own, rv = vm_fault_page(child, BASE, RW, VM_FAULT_NORMAL)
    assert rv == KERN_SUCCESS
    assert own is front(child, BASE)
    assert own is not None
    assert shared is not None
    assert own is not shared
    assert own.hold_count == 1
    assert own.dirty == VM_PAGE_BITS_ALL
    assert pmap_pte(child.pmap, BASE) & PG_FRAME in (0, own.phys_addr)  # not the old page
    vm.ram.mem[own.phys_addr] = 50
    assert load(child, BASE) == 50
    assert load(map, BASE) == 1
    again, _ = vm_fault_page(child, BASE, VM_PROT_READ, VM_FAULT_NORMAL)  # by the PTE
    assert again is own
    for m in (shared, own, own):
        vm_page_unhold(vm, m)
    assert vm_fault_page(child, BASE + 9 * P, RW, VM_FAULT_NORMAL) == (None, KERN_INVALID_ADDRESS)
    sound(map, child)


# --- FAULT-9: collapse -------------------------------------------------------------------------


@pytest.mark.spec("FAULT-9")
def test_forking_in_a_loop_never_lengthens_the_chain(vm: VmSystem) -> None:
    proc = Proc(vm)
    anon(proc.map, BASE, 8)
    vmspace = proc.p_vmspace
    for i in range(30):
        store(vmspace.vm_map, BASE + (i % 4) * P, i)
        child = vmspace_fork(vmspace)
        store(vmspace.vm_map, BASE + 7 * P, 100 + i)
        store(child.vm_map, BASE + 6 * P, 50 + i)
        assert len(chain(entries(child.vm_map)[0])) <= vm.sysctl.map_backing_limit + 2
        sound(vmspace.vm_map, child.vm_map)
        vmspace_relexit(vmspace)
        vmspace_exitfree(vmspace)
        vmspace = child
    assert [load(vmspace.vm_map, BASE + i * P) for i in range(8)] == [28, 29, 26, 27, 0, 0, 79, 0]


# --- FAULT-10: what must not fault --------------------------------------------------------------


@pytest.mark.spec("FAULT-10")
@pytest.mark.parametrize(
    ("eflag", "message"), [(MAP_ENTRY_NOFAULT, "nofault"), (MAP_ENTRY_KSTACK, "guard")]
)
def test_nofault_entries_and_guard_pages_panic(
    vm: VmSystem, map: VmMap, eflag: int, message: str
) -> None:
    anon(map, BASE, 2)
    touch(map, BASE + P, True)
    pmap_remove(map.pmap, BASE, BASE + P)
    entries(map)[0].eflags |= eflag
    assert not vm_fault_quick(map, BASE, RW)
    with pytest.raises(Panic, match=message):
        touch(map, BASE, True)


@pytest.mark.spec("FAULT-10")
def test_a_fault_in_unused_kernel_memory_panics(vm: VmSystem) -> None:
    from dfvm.vm.vm import VM_SUBSYS_KMALLOC
    from dfvm.vm.vm_kern import kmem_alloc

    kva = kmem_alloc(vm.kernel_map, P, VM_SUBSYS_KMALLOC)
    assert vm_fault(vm.kernel_map, kva + 64 * P, VM_PROT_READ, VM_FAULT_NORMAL) != KERN_SUCCESS


# --- FAULT-11: statistics, limits ---------------------------------------------------------------


@pytest.mark.spec("FAULT-11")
@pytest.mark.parametrize("quick", [False, True])
def test_faults_are_counted(vm: VmSystem, proc: Proc, map: VmMap, quick: bool) -> None:
    vm.sysctl.prefault_pages = 0
    anon(map, BASE, 8)
    touch(map, BASE, True)
    before = {n: count(vm, n) for n in ("v_vm_faults", "v_zfod", "v_cow_faults", "v_ozfod")}
    minflt = proc.p_minflt
    touch(map, BASE + P, True, quick)
    touch(map, BASE + 2 * P, False, quick)
    after = {n: count(vm, n) for n in before}
    assert after["v_vm_faults"] - before["v_vm_faults"] == 2
    assert after["v_zfod"] - before["v_zfod"] == 2
    assert after["v_cow_faults"] == before["v_cow_faults"]
    assert after["v_ozfod"] - before["v_ozfod"] == 2  # frames never used before
    assert proc.p_minflt - minflt == 2
    assert proc.p_majflt == 0


@pytest.mark.spec("FAULT-11")
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_rss_limit_is_enforced_after_user_faults(mode: int) -> None:
    vm = make_vm(64)
    proc = Proc(vm)
    map = proc.map
    vm.sysctl.pageout_memuse_mode = mode
    proc.limits[RLIMIT_RSS] = 1 << 20
    anon(map, BASE, 6000)
    for i in range(0, 6000, 9):
        va = BASE + i * P
        if not vm_fault_quick(map, va, RW):
            assert vm_fault(map, va, RW, USER_WRITE) == KERN_SUCCESS
    if mode:
        assert map.pmap.pm_stats.resident_count <= 4096 + 256 + 32
    else:
        assert map.pmap.pm_stats.resident_count > 4500
    sound(map)
    proc.limits.clear()
    assert load(map, BASE) == 0  # still there


@pytest.mark.spec("FAULT-11")
def test_memory_that_runs_out_ends_the_fault_of_who_is_killed(vm: VmSystem) -> None:
    proc = Proc(vm)
    map = proc.map

    class Hooks:
        def allproc(self) -> list[Proc]:
            return [proc]

        def kill_for_memory(self, victim: Proc) -> None:
            victim.p_lowmemkill = True

    vm.hooks = Hooks()  # type: ignore[assignment]
    anon(map, BASE, 8192)
    rv = KERN_SUCCESS
    for i in range(8192):
        if not vm_fault_quick(map, BASE + i * P, RW):
            rv = vm_fault(map, BASE + i * P, RW, USER_WRITE)
            if rv != KERN_SUCCESS:
                break
    assert rv == KERN_RESOURCE_SHORTAGE
    assert vm.gd.gd_vmstats.v_free_count > 0
    sound(map)


# --- FAULT-12: A and D --------------------------------------------------------------------------


@pytest.mark.spec("FAULT-12")
@pytest.mark.parametrize("quick", [False, True])
def test_the_hardware_sets_a_and_d(vm: VmSystem, proc: Proc, quick: bool) -> None:
    guest = TinyGuest(vm, proc.p_vmspace, quick=quick)
    anon(proc.map, BASE, 16)
    guest.load(BASE + 2 * P)
    assert pmap_pte(proc.map.pmap, BASE + 2 * P) & (PG_A | PG_M) == PG_A
    assert pmap_pte(proc.map.pmap, BASE + 3 * P) & (PG_V | PG_A | PG_M) == PG_V  # came along
    guest.store(BASE + 2 * P, 1)
    guest.store(BASE + 3 * P, 1)
    assert guest.faults == []
    for i in (2, 3):
        assert pmap_pte(proc.map.pmap, BASE + i * P) & (PG_A | PG_M) == PG_A | PG_M
    m = front(proc.map, BASE + 3 * P)
    assert m is not None
    assert m.dirty == 0
    pmap_clear_modify(vm, m)
    guest.run(LOAD, rdi=BASE + 3 * P)
    assert not pmap_pte(proc.map.pmap, BASE + 3 * P) & PG_M
    guest.run(STORE, rdi=BASE + 3 * P, rsi=3)
    assert pmap_pte(proc.map.pmap, BASE + 3 * P) & PG_M


# --- the quick way keeps to what is plain -------------------------------------------------------


def test_the_quick_way_leaves_the_unusual_alone(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    from dfvm.vm.vm_map import vm_map_lock, vm_map_lock_read, vm_map_unlock, vm_map_unlock_read

    anon(map, BASE, 32)
    assert not vm_fault_quick(map, BASE, RW)  # no object yet
    touch(map, BASE, True)
    touch(map, BASE + 31 * P, True)
    free = vm.gd.gd_vmstats.v_free_count

    def locker() -> None:
        vm_map_lock(map)
        vm.sched.tsleep("x", 0, "x", 1)
        vm_map_unlock(map)

    vm.sched.create(locker, name="locker")
    vm.sched.yield_()
    assert not vm_fault_quick(map, BASE + 16 * P, RW)
    vm.sched.run()
    assert vm_fault_quick(map, BASE + 16 * P, RW)
    assert vm.gd.gd_vmstats.v_free_count < free
    child = vmspace_fork(proc.p_vmspace).vm_map
    vm_map_lock_read(child)
    assert not vm_fault_quick(child, BASE, RW)  # needs a shadow first, under somebody's eyes
    vm_map_unlock_read(child)
    assert vm_fault_quick(child, BASE, RW)  # makes it, and a page table
    assert child.hint is not None
    assert child.hint.ba.backing_count == 1
    own = vm.gd.gd_vmstats
    own.v_paging_start, keep = own.v_free_count + 1, own.v_paging_start
    vm.sysctl.prefault_pages = 0
    touch(map, BASE + 24 * P, True)  # shadows
    assert not vm_fault_quick(map, BASE + 25 * P, RW)  # memory is not plentiful
    own.v_paging_start = keep
    assert vm_fault_quick(map, BASE + 25 * P, RW)
    sound(map, child)


def test_the_probe_tells_how_each_fault_was_resolved(
    vm: VmSystem, proc: Proc, map: VmMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[probe.FaultRecord] = []
    monkeypatch.setattr(probe, "fault", records.append)
    vm.sysctl.prefault_pages = 0
    _, obj = file(vm, 2)
    show(map, obj, 0, BASE + 64 * P, 2, VM_PROT_READ)
    anon(map, BASE, 4)
    touch(map, BASE, True)
    touch(map, BASE + P, True, True)
    touch(map, BASE + 64 * P, False)
    vmspace_fork(proc.p_vmspace)
    touch(map, BASE, True)
    touch(map, BASE + P, True, True)
    touch(map, BASE + 99 * P, True)
    vm_fault(map, BASE + 2 * P, RW, VM_FAULT_NORMAL)
    kinds = [r.how & (probe.HOW_ZFOD | probe.HOW_COW | probe.HOW_FILE | probe.HOW_SIGNAL)
             for r in records]  # fmt: skip
    assert kinds == [probe.HOW_ZFOD, probe.HOW_ZFOD, probe.HOW_FILE, probe.HOW_COW, probe.HOW_COW,
                     probe.HOW_SIGNAL, probe.HOW_ZFOD]  # fmt: skip
    assert [bool(r.how & probe.HOW_QUICK) for r in records] == [
        False, True, False, False, True, False, False]  # fmt: skip
    assert records[2].major
    assert records[5].result == KERN_INVALID_ADDRESS
    assert records[5].map_entry is None
    assert records[6].how & probe.HOW_KERNEL
    for r in records:
        assert r.ns > 0
        if r.result == KERN_SUCCESS:
            assert r.page is not None
            assert r.pte & PG_FRAME == r.page.phys_addr or r.va == BASE
            assert r.entry_start <= r.va < r.entry_end


def test_no_hold_busy_or_pip_is_left(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    _, obj = file(vm, 4)
    show(map, obj, 0, BASE, 4, RW, MAP_COPY_ON_WRITE)
    anon(map, BASE + 16 * P, 8)
    for write in (False, True):
        for i in (0, 1, 2, 3, 16, 17):
            touch(map, BASE + i * P, write)
    vmspace_fork(proc.p_vmspace)
    for i in (0, 1, 2, 3, 16, 17):
        touch(map, BASE + i * P, True)
    for entry in map:
        for o in chain(entry):
            assert o is not None
            assert (o.hold_count, o.paging_in_progress) == (0, 0)
            assert all(m.busy_count == 0 for m in o.rb_memq.values())
    assert vm.sched.curthread.td_toks == []
    assert map.lock.lk_shared == 0
    assert vm_page_alloc(vm, None, 0, VM_ALLOC_NORMAL) is not None


# --- against a model ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["store", "load", "quick", "fork", "exit", "wire", "unwire", "ro", "none"]
            ),
            st.integers(0, 3),
            st.integers(0, 11),
        ),
        max_size=60,
    )
)
def test_processes_see_what_they_wrote(ops: list[tuple[str, int, int]]) -> None:
    """Any sequence of stores, loads, forks, exits, wirings and protections: each process sees its
    own memory, and the page tables are sound after each step."""
    vm = make_vm(8)
    first = Proc(vm)
    _, obj = file(vm, 4)
    show(first.map, obj, 0, BASE, 4, RW, MAP_COPY_ON_WRITE)
    anon(first.map, BASE + 4 * P, 8)
    alive = [(first.p_vmspace, [1, 2, 3, 4] + [0] * 8)]
    value = 10
    for op, who, page in ops:
        vmspace, model = alive[who % len(alive)]
        map = vmspace.vm_map
        va = BASE + page * P
        if op == "store":
            value = value % 250 + 1
            if store(map, va, value) == KERN_SUCCESS:
                model[page] = value
        elif op == "load":
            if entry_at(map, va).protection:
                assert load(map, va) == model[page]
        elif op == "quick":
            if vm_fault_quick(map, va, VM_PROT_READ):
                assert load(map, va) == model[page]
        elif op == "fork" and len(alive) < 4:
            alive.append((vmspace_fork(vmspace), list(model)))
        elif op == "exit" and len(alive) > 1:
            alive.remove((vmspace, model))
            vmspace_relexit(vmspace)
            vmspace_exitfree(vmspace)
        elif op in ("wire", "unwire"):
            vm_map_user_wiring(map, va, va + P, op == "unwire")
        elif op == "none":
            vm_map_protect(map, va, va + P, VM_PROT_NONE, False)
        elif op == "ro":
            vm_map_protect(map, va, va + P, VM_PROT_READ if value & 1 else RW, False)
        sound(*(space.vm_map for space, _ in alive))
    for vmspace, model in alive:
        vm_map_protect(vmspace.vm_map, BASE, BASE + 12 * P, VM_PROT_READ, False)
        assert [load(vmspace.vm_map, BASE + i * P) for i in range(12)] == model
