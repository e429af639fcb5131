"""Address maps: entries, lookup, insertion, clipping, chains, protection, advice, deletion."""

from __future__ import annotations

import pytest

from dfvm.lwkt.kern_lock import LK_EXCLUSIVE, lockstatus
from dfvm.lwkt.panic import Panic
from dfvm.vm.pager.vnode_pager import vnode_pager_alloc
from dfvm.vm.pmap import pmap_extract, pmap_pte
from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_INVALID_ARGUMENT,
    KERN_NO_SPACE,
    KERN_PROTECTION_FAILURE,
    KERN_RESOURCE_SHORTAGE,
    KERN_SUCCESS,
    VM_INHERIT_COPY,
    VM_INHERIT_NONE,
    VM_INHERIT_SHARE,
    VM_PROT_ALL,
    VM_PROT_EXECUTE,
    VM_PROT_NONE,
    VM_PROT_OVERRIDE_WRITE,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_BRK,
    VM_SUBSYS_MMAP,
    VM_SUBSYS_NAMES,
)
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_map import (
    FW_DIDCOW,
    MADV_AUTOSYNC,
    MADV_CORE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_INVAL,
    MADV_NOCORE,
    MADV_NORMAL,
    MADV_NOSYNC,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MAP_COPY_ON_WRITE,
    MAP_DISABLE_COREDUMP,
    MAP_ENTRY_BEHAV_MASK,
    MAP_ENTRY_BEHAV_RANDOM,
    MAP_ENTRY_BEHAV_SEQUENTIAL,
    MAP_ENTRY_COW,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_NOCOREDUMP,
    MAP_ENTRY_NOSYNC,
    VM_MAPTYPE_NORMAL,
    VmMap,
    vm_map_check_protection,
    vm_map_clean,
    vm_map_clip_end,
    vm_map_clip_start,
    vm_map_find,
    vm_map_inherit,
    vm_map_lock,
    vm_map_lock_read,
    vm_map_lock_upgrade,
    vm_map_lookup,
    vm_map_lookup_done,
    vm_map_lookup_entry,
    vm_map_madvise,
    vm_map_protect,
    vm_map_remove,
    vm_map_simplify_entry,
    vm_map_stack,
    vm_map_unlock,
    vm_map_unlock_read,
)
from dfvm.vm.vm_map_check import vm_map_check
from dfvm.vm.vm_map_entry import MAP_ENTRY_PARTITION_SIZE
from dfvm.vm.vm_map_index import CHUNK
from dfvm.vm.vm_object import (
    OBJ_DEAD,
    OBJ_ONEMAPPING,
    OBJT_DEFAULT,
    vm_object_reference_quick,
)
from dfvm.vm.vm_page import PG_REFERENCED
from dfvm.vm.vm_pageout import vm_pageout_reclaim
from dfvm.vm.vm_param import VM_MAX_USER_ADDRESS
from dfvm.vm.vmspace import vmspace_fork, vmspace_rel
from tests.vm.map_util import (
    RW,
    P,
    Proc,
    anon,
    chain,
    entries,
    load,
    ranges,
    room,
    show,
    sound,
    store,
)
from tests.vm.vnode_stub import StubVnode

BASE = 0x10_0000


# --- MAP-1: order and lookup ---


@pytest.mark.spec("MAP-1")
def test_lookup_finds_the_entry_or_the_one_below(map: VmMap) -> None:
    for i in (4, 0, 8):
        assert anon(map, BASE + i * P, 2) == KERN_SUCCESS
    first, second, third = entries(map)
    vm_map_lock_read(map)
    assert vm_map_lookup_entry(map, BASE - 1) == (False, None)
    assert vm_map_lookup_entry(map, BASE) == (True, first)
    assert vm_map_lookup_entry(map, BASE + 2 * P - 1) == (True, first)
    assert vm_map_lookup_entry(map, BASE + 2 * P) == (False, first)
    assert vm_map_lookup_entry(map, BASE + 5 * P) == (True, second)
    assert vm_map_lookup_entry(map, BASE + 100 * P) == (False, third)
    vm_map_unlock_read(map)
    sound(map)


@pytest.mark.spec("MAP-1")
def test_order_survives_thousands_of_entries(map: VmMap) -> None:
    n = 3 * CHUNK
    scattered = [(i * 7919) % n for i in range(n)]
    for i in scattered:
        assert anon(map, BASE + 2 * i * P, 1) == KERN_SUCCESS
    assert map.nentries == n
    assert ranges(map) == [(BASE + 2 * i * P, BASE + (2 * i + 1) * P) for i in range(n)]
    sound(map)
    for i in scattered[: n // 2]:
        vm_map_remove(map, BASE + 2 * i * P, BASE + (2 * i + 1) * P)
    sound(map)
    vm_map_remove(map, map.min_addr, map.max_addr)
    assert map.nentries == map.size == 0
    sound(map)


# --- MAP-2, MAP-3: insertion ---


@pytest.mark.spec("MAP-2")
def test_anonymous_memory_gets_its_object_at_the_first_fault(map: VmMap) -> None:
    anon(map, BASE, 8)
    (entry,) = map
    assert entry.ba.object is None
    assert load(map, BASE + 3 * P) == 0
    obj = entry.ba.object
    assert obj is not None
    assert (obj.type, obj.size, obj.ref_count) == (OBJT_DEFAULT, 8, 1)
    sound(map)


@pytest.mark.spec("MAP-2")
def test_a_clip_makes_the_object_so_that_both_halves_share_it(map: VmMap) -> None:
    anon(map, BASE, 8)
    vm_map_protect(map, BASE + 2 * P, BASE + 4 * P, VM_PROT_READ, False)
    objects = {e.ba.object for e in map}
    assert len(objects) == 1 and None not in objects
    assert [e.ba.offset for e in map] == [0, 2 * P, 4 * P]
    sound(map)


@pytest.mark.spec("MAP-2")
def test_a_fork_that_shares_makes_the_object(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 2)
    anon(map, BASE + 4 * P, 2)
    vm_map_inherit(map, BASE, BASE + P * 2, VM_INHERIT_SHARE)
    child = vmspace_fork(proc.p_vmspace)
    shared, private = map
    assert shared.ba.object is not None and private.ba.object is None
    sound(map, child.vm_map)
    vmspace_rel(child)


@pytest.mark.spec("MAP-3")
def test_insert_coalesces_with_its_like(map: VmMap) -> None:
    anon(map, BASE, 2)
    anon(map, BASE + 2 * P, 2)
    assert ranges(map) == [(BASE, BASE + 4 * P)]
    store(map, BASE, 1)  # now with an object
    anon(map, BASE + 4 * P, 4)
    (entry,) = map
    assert entry.ba.object is not None and entry.ba.object.size == 8
    assert store(map, BASE + 7 * P, 1) == KERN_SUCCESS
    sound(map)


@pytest.mark.spec("MAP-3")
@pytest.mark.parametrize("other", ["prot", "max", "flags", "id", "inherit", "wired", "chain"])
def test_insert_does_not_coalesce_with_others(proc: Proc, map: VmMap, other: str) -> None:
    anon(map, BASE, 2)
    prot, max, cow, ident = RW, VM_PROT_ALL, 0, VM_SUBSYS_MMAP
    if other == "prot":
        prot = VM_PROT_READ
    elif other == "max":
        max = RW
    elif other == "flags":
        cow = MAP_DISABLE_COREDUMP
    elif other == "id":
        ident = VM_SUBSYS_BRK
    elif other == "inherit":
        vm_map_inherit(map, BASE, BASE + 2 * P, VM_INHERIT_NONE)
    elif other == "wired":
        from dfvm.vm.vm_map import vm_map_user_wiring

        assert vm_map_user_wiring(map, BASE, BASE + 2 * P, False) == KERN_SUCCESS
    elif other == "chain":
        store(map, BASE, 1)
        child = vmspace_fork(proc.p_vmspace)
        store(map, BASE, 2)
        vmspace_rel(child)
    rv, _ = vm_map_find(
        map, None, 0, BASE + 2 * P, 2 * P, P, False, VM_MAPTYPE_NORMAL, ident, prot, max, cow
    )
    assert rv == KERN_SUCCESS
    assert ranges(map) == [(BASE, BASE + 2 * P), (BASE + 2 * P, BASE + 4 * P)]
    sound(map)


def test_insert_refuses_what_is_taken_or_outside(map: VmMap) -> None:
    anon(map, BASE, 4)
    for addr, n in ((BASE, 1), (BASE + 3 * P, 2), (BASE - P, 2), (BASE - P, 10)):
        assert anon(map, addr, n) == KERN_NO_SPACE
    assert anon(map, map.min_addr - P, 1) == KERN_INVALID_ADDRESS
    assert anon(map, VM_MAX_USER_ADDRESS, 1) == KERN_INVALID_ADDRESS
    assert anon(map, BASE + 16 * P, 0) == KERN_INVALID_ADDRESS
    assert map.size == 4 * P
    sound(map)


@pytest.mark.spec("MAP-19")
def test_entries_know_who_made_them(map: VmMap) -> None:
    anon(map, BASE, 1)
    vm_map_stack(map, BASE + 16 * P, 4 * P, False, RW, VM_PROT_ALL, 0)
    assert [VM_SUBSYS_NAMES[e.id] for e in map] == ["mmap", "stack"]


# --- MAP-5: clipping and simplifying ---


@pytest.mark.spec("MAP-5")
def test_clip_replicates_the_chain_and_simplify_merges_it_back(
    vm: VmSystem, proc: Proc, map: VmMap
) -> None:
    anon(map, BASE, 8)
    for i in range(8):
        store(map, BASE + i * P, i)
    child = vmspace_fork(proc.p_vmspace)
    store(map, BASE, 100)
    (entry,) = map
    assert entry.ba.backing_count == 1
    front, behind = chain(entry)
    assert front is not None and behind is not None
    refs = front.ref_count, behind.ref_count

    vm_map_lock(map)
    vm_map_clip_start(map, entry, BASE + 2 * P)
    vm_map_clip_end(map, entry, BASE + 5 * P)
    vm_map_unlock(map)
    assert ranges(map) == [
        (BASE, BASE + 2 * P), (BASE + 2 * P, BASE + 5 * P), (BASE + 5 * P, BASE + 8 * P)
    ]  # fmt: skip
    assert all(chain(e) == [front, behind] for e in map)
    assert (front.ref_count, behind.ref_count) == (refs[0] + 2, refs[1] + 2)
    assert [load(map, BASE + i * P) for i in range(8)] == [100, 1, 2, 3, 4, 5, 6, 7]
    sound(map, child.vm_map)

    vm_map_lock(map)
    vm_map_simplify_entry(map, entry)
    vm_map_unlock(map)
    assert ranges(map) == [(BASE, BASE + 8 * P)]
    assert (front.ref_count, behind.ref_count) == refs
    assert [load(map, BASE + i * P) for i in range(8)] == [100, 1, 2, 3, 4, 5, 6, 7]
    sound(map, child.vm_map)
    vmspace_rel(child)


@pytest.mark.spec("MAP-5")
def test_a_clip_keeps_onemapping(map: VmMap) -> None:
    anon(map, BASE, 4)
    store(map, BASE, 1)
    vm_map_protect(map, BASE, BASE + P, VM_PROT_READ, False)
    obj = entries(map)[0].ba.object
    assert obj is not None and obj.ref_count == 2 and obj.flags & OBJ_ONEMAPPING


@pytest.mark.spec("MAP-5")
def test_protecting_there_and_back_leaves_one_entry(map: VmMap) -> None:
    anon(map, BASE, 16)
    store(map, BASE + 5 * P, 7)
    for i in range(1, 15, 2):
        vm_map_protect(map, BASE + i * P, BASE + (i + 1) * P, VM_PROT_READ, False)
    assert map.nentries == 15
    vm_map_protect(map, BASE, BASE + 16 * P, RW, False)
    assert ranges(map) == [(BASE, BASE + 16 * P)]
    assert load(map, BASE + 5 * P) == 7
    sound(map)


# --- MAP-7, MAP-8: chains ---


@pytest.mark.spec("MAP-7")
def test_replicated_elements_are_the_childs_own(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    store(map, BASE, 1)
    (entry,) = map
    obj = entry.ba.object
    assert obj is not None and obj.flags & OBJ_ONEMAPPING
    child = vmspace_fork(proc.p_vmspace)
    (new,) = child.vm_map
    assert new.ba is not entry.ba and new.ba.object is obj
    assert new.ba.pmap is child.vm_pmap
    assert obj.ref_count == 2 and set(obj.backing_list) == {entry.ba, new.ba}
    assert not obj.flags & OBJ_ONEMAPPING
    vmspace_rel(child)
    assert obj.ref_count == 1 and set(obj.backing_list) == {entry.ba}
    sound(map)


@pytest.mark.spec("MAP-8")
def test_a_write_to_a_shared_object_puts_one_in_front(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    store(map, BASE, 1)
    child = vmspace_fork(proc.p_vmspace)
    (entry,) = map
    old = entry.ba.object
    assert entry.eflags & (MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY) == 12
    rv, look = vm_map_lookup(map, BASE, VM_PROT_WRITE)
    assert rv == KERN_SUCCESS and look is not None
    assert look.wflags & FW_DIDCOW
    vm_map_lookup_done(map)
    assert chain(entry)[1:] == [old] and entry.ba.object is not old
    assert entry.ba.backing_count == 1
    assert entry.eflags & (MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY) == MAP_ENTRY_COW
    sound(map, child.vm_map)
    vmspace_rel(child)


@pytest.mark.spec("MAP-8")
def test_the_last_owner_just_writes(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    store(map, BASE, 1)
    vmspace_rel(vmspace_fork(proc.p_vmspace))
    (entry,) = map
    obj = entry.ba.object
    assert entry.eflags & MAP_ENTRY_NEEDS_COPY
    store(map, BASE, 2)
    assert chain(entry) == [obj] and not entry.eflags & MAP_ENTRY_NEEDS_COPY
    sound(map)


@pytest.mark.spec("MAP-8")
def test_a_private_file_mapping_is_always_shadowed(vm: VmSystem, map: VmMap) -> None:
    vp = StubVnode(b"abc" * P)
    obj = vnode_pager_alloc(vm, vp, vp.v_filesize)
    show(map, obj, 0, BASE, 3, RW, MAP_COPY_ON_WRITE)
    assert load(map, BASE) == ord("a")
    (entry,) = map
    assert chain(entry) == [obj]
    store(map, BASE, ord("X"))
    assert chain(entry)[1:] == [obj]
    assert load(map, BASE) == ord("X") and load(map, BASE + P) == vp.storage[P]
    assert vp.storage[0] == ord("a")
    sound(map)


# --- MAP-9: partitions ---


@pytest.mark.spec("MAP-9")
def test_a_fault_cuts_a_large_entry_to_its_partition(vm: VmSystem, map: VmMap) -> None:
    size = MAP_ENTRY_PARTITION_SIZE
    start = 4 * size + 5 * P
    anon(map, start, 4 * size // P)
    store(map, 6 * size + 7 * P, 1)
    assert ranges(map) == [
        (start, 6 * size), (6 * size, 7 * size), (7 * size, start + 4 * size)
    ]  # fmt: skip
    assert [e.ba.object is not None for e in map] == [False, True, False]
    store(map, start, 1)
    assert ranges(map)[0] == (start, 5 * size)
    sound(map)


@pytest.mark.spec("MAP-9")
def test_partitioning_can_be_turned_off(vm: VmSystem, map: VmMap) -> None:
    vm.sysctl.map_partition_enable = 0
    anon(map, BASE, 4 * MAP_ENTRY_PARTITION_SIZE // P)
    store(map, BASE, 1)
    assert map.nentries == 1
    sound(map)


# --- MAP-10: protection ---


@pytest.mark.spec("MAP-10")
def test_protect_changes_all_or_nothing(map: VmMap) -> None:
    anon(map, BASE, 4)
    anon(map, BASE + 4 * P, 4, VM_PROT_READ, 0, VM_PROT_READ)
    before = [(e.ba.start, e.ba.end, e.protection, e.max_protection) for e in map]
    assert vm_map_protect(map, BASE + P, BASE + 6 * P, RW, False) == KERN_PROTECTION_FAILURE
    assert [(e.ba.start, e.ba.end, e.protection, e.max_protection) for e in map] == before
    assert vm_map_protect(map, BASE + P, BASE + 6 * P, VM_PROT_NONE, False) == KERN_SUCCESS
    assert [e.protection for e in map] == [RW, 0, 0, VM_PROT_READ]
    sound(map)


@pytest.mark.spec("MAP-10")
def test_protect_takes_rights_from_ptes_at_once(map: VmMap) -> None:
    anon(map, BASE, 2)
    store(map, BASE, 1)
    assert pmap_pte(map.pmap, BASE) & 2
    vm_map_protect(map, BASE, BASE + P, VM_PROT_READ, False)
    assert pmap_pte(map.pmap, BASE) & 3 == 1
    assert store(map, BASE, 2) == KERN_PROTECTION_FAILURE
    vm_map_protect(map, BASE, BASE + P, VM_PROT_NONE, False)
    assert pmap_pte(map.pmap, BASE) == 0
    vm_map_protect(map, BASE, BASE + P, RW, False)
    assert load(map, BASE) == 1 and store(map, BASE, 2) == KERN_SUCCESS


@pytest.mark.spec("MAP-10")
def test_a_cow_entry_gains_no_writable_pte(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 1)
    store(map, BASE, 1)
    child = vmspace_fork(proc.p_vmspace)
    for m in (map, child.vm_map):
        load(m, BASE)
        vm_map_protect(m, BASE, BASE + P, VM_PROT_READ, False)
        vm_map_protect(m, BASE, BASE + P, RW | VM_PROT_EXECUTE, False)
        assert not pmap_pte(m.pmap, BASE) & 2
    store(map, BASE, 2)
    assert load(child.vm_map, BASE) == 1
    vmspace_rel(child)


@pytest.mark.spec("MAP-10")
def test_set_max_lowers_the_protection_with_it(map: VmMap) -> None:
    anon(map, BASE, 2)
    assert vm_map_protect(map, BASE, BASE + P, VM_PROT_READ, True) == KERN_SUCCESS
    first, second = map
    assert (first.protection, first.max_protection) == (VM_PROT_READ, VM_PROT_READ)
    assert (second.protection, second.max_protection) == (RW, VM_PROT_ALL)
    assert vm_map_protect(map, BASE, BASE + P, RW, False) == KERN_PROTECTION_FAILURE
    assert vm_map_check_protection(map, BASE, BASE + 2 * P, VM_PROT_READ, False)
    assert not vm_map_check_protection(map, BASE, BASE + 2 * P, RW, False)
    assert not vm_map_check_protection(map, BASE, BASE + 3 * P, VM_PROT_READ, False)
    assert not vm_map_check_protection(map, BASE - P, BASE + P, VM_PROT_READ, False)


def test_lookup_goes_by_protection_or_by_what_a_debugger_may(map: VmMap) -> None:
    anon(map, BASE, 1, VM_PROT_READ)
    assert vm_map_lookup(map, BASE, VM_PROT_WRITE) == (KERN_PROTECTION_FAILURE, None)
    assert vm_map_lookup(map, BASE + P, VM_PROT_READ) == (KERN_INVALID_ADDRESS, None)
    rv, look = vm_map_lookup(map, BASE, VM_PROT_WRITE | VM_PROT_OVERRIDE_WRITE)
    assert rv == KERN_SUCCESS and look is not None and look.prot == VM_PROT_ALL
    assert (look.pindex, look.pcount, look.map) == (0, 1, map)
    vm_map_lookup_done(map)
    assert lockstatus(map.lock) == 0


# --- MAP-11: inheritance and advice ---


@pytest.mark.spec("MAP-11")
def test_inherit_clips_and_is_kept(map: VmMap) -> None:
    anon(map, BASE, 6)
    assert vm_map_inherit(map, BASE, BASE + 2 * P, VM_INHERIT_SHARE) == KERN_SUCCESS
    assert vm_map_inherit(map, BASE + 4 * P, BASE + 6 * P, VM_INHERIT_NONE) == KERN_SUCCESS
    assert [e.inheritance for e in map] == [VM_INHERIT_SHARE, VM_INHERIT_COPY, VM_INHERIT_NONE]
    assert vm_map_inherit(map, BASE, BASE + P, 7) == KERN_INVALID_ARGUMENT
    vm_map_inherit(map, BASE, BASE + 6 * P, VM_INHERIT_COPY)
    assert map.nentries == 1
    sound(map)


@pytest.mark.spec("MAP-11")
def test_advice_that_entries_keep(map: VmMap) -> None:
    anon(map, BASE, 4)
    mid = (BASE + P, BASE + 3 * P)

    def middle() -> int:
        return entries(map)[min(1, map.nentries - 1)].eflags

    vm_map_madvise(map, *mid, MADV_SEQUENTIAL)
    assert middle() & MAP_ENTRY_BEHAV_MASK == MAP_ENTRY_BEHAV_SEQUENTIAL
    vm_map_madvise(map, *mid, MADV_RANDOM)
    assert middle() & MAP_ENTRY_BEHAV_MASK == MAP_ENTRY_BEHAV_RANDOM
    vm_map_madvise(map, *mid, MADV_NOSYNC)
    vm_map_madvise(map, *mid, MADV_NOCORE)
    assert middle() & (MAP_ENTRY_NOSYNC | MAP_ENTRY_NOCOREDUMP) == 0x401
    assert map.nentries == 3
    for advice in (MADV_NORMAL, MADV_AUTOSYNC, MADV_CORE):
        assert vm_map_madvise(map, *mid, advice) == KERN_SUCCESS
    assert middle() == 0 and map.nentries == 1
    assert vm_map_madvise(map, *mid, 99) == KERN_INVALID_ARGUMENT
    sound(map)


@pytest.mark.spec("MAP-11")
def test_advice_for_objects_goes_to_the_range_only(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, i + 1)
    obj = entries(map)[0].ba.object
    assert obj is not None
    assert all(m.dirty for m in obj.rb_memq.values())
    assert vm_map_madvise(map, BASE + P, BASE + 3 * P, MADV_FREE) == KERN_SUCCESS
    assert [bool(obj.rb_memq[i].dirty) for i in range(4)] == [True, False, False, True]
    for i in range(4):
        obj.rb_memq[i].flags |= PG_REFERENCED
    vm_map_madvise(map, BASE + 3 * P, BASE + 9 * P, MADV_DONTNEED)
    assert obj.rb_memq[2].flags & PG_REFERENCED
    assert vm_map_madvise(map, BASE, BASE + 4 * P, MADV_WILLNEED) == KERN_SUCCESS
    assert map.nentries == 1


@pytest.mark.spec("MAP-11")
def test_what_was_freed_never_shows_what_was_there_before_a_fork(vm: VmSystem, proc: Proc) -> None:
    """In place of a page that is freed there must be zeros: not the page behind it."""
    map = proc.map
    anon(map, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, 1)
    child = vmspace_fork(proc.p_vmspace)
    store(map, BASE, 2)
    assert vm_map_madvise(map, BASE, BASE + 4 * P, MADV_FREE) == KERN_SUCCESS
    vm_pageout_reclaim(vm, 1 << 20)
    assert load(map, BASE) in (0, 2)
    vmspace_rel(child)
    sound(map)


@pytest.mark.spec("MAP-11")
def test_inval_removes_mappings_not_contents(map: VmMap) -> None:
    anon(map, BASE, 3)
    for i in range(3):
        store(map, BASE + i * P, i + 1)
    assert vm_map_madvise(map, BASE + P, BASE + 2 * P, MADV_INVAL) == KERN_SUCCESS
    assert pmap_extract(map.pmap, BASE + P) is None
    assert pmap_extract(map.pmap, BASE) is not None
    assert load(map, BASE + P) == 2


@pytest.mark.spec("MAP-11")
def test_willneed_maps_what_is_resident(vm: VmSystem, map: VmMap) -> None:
    vp = StubVnode(bytes(8 * P))
    obj = vnode_pager_alloc(vm, vp, vp.v_filesize)
    show(map, obj, 0, BASE, 8, VM_PROT_READ)
    load(map, BASE)
    vm_map_madvise(map, BASE, BASE + 8 * P, MADV_INVAL)
    assert pmap_extract(map.pmap, BASE) is None
    vm_map_madvise(map, BASE, BASE + 8 * P, MADV_WILLNEED)
    assert pmap_extract(map.pmap, BASE) is not None


# --- MAP-17: deletion ---


@pytest.mark.spec("MAP-17")
def test_deleting_a_part_frees_its_pages_at_once(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 8)
    for i in range(8):
        store(map, BASE + i * P, i)
    obj = entries(map)[0].ba.object
    assert obj is not None and obj.resident_page_count == 8
    free = vm.gd.gd_vmstats.v_free_count
    vm_map_remove(map, BASE + 2 * P, BASE + 5 * P)
    assert obj.resident_page_count == 5
    assert vm.gd.gd_vmstats.v_free_count == free + 3
    assert [load(map, BASE + i * P) for i in (0, 1, 5, 6, 7)] == [0, 1, 5, 6, 7]
    vm_map_remove(map, BASE + 6 * P, BASE + 8 * P)
    assert obj.size == 6
    sound(map)
    vm_map_remove(map, BASE, BASE + 8 * P)
    assert obj.flags & OBJ_DEAD and map.nentries == 0
    sound(map)


@pytest.mark.spec("MAP-17")
def test_pages_that_others_can_see_stay(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, i + 1)
    child = vmspace_fork(proc.p_vmspace)
    vm_map_remove(map, BASE + P, BASE + 3 * P)
    assert [load(child.vm_map, BASE + i * P) for i in range(4)] == [1, 2, 3, 4]
    sound(map, child.vm_map)
    vmspace_rel(child)


def test_what_is_mapped_again_is_zero(map: VmMap) -> None:
    anon(map, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, 9)
    vm_map_remove(map, BASE + P, BASE + 4 * P)
    anon(map, BASE + P, 3)
    assert map.nentries == 1
    assert [load(map, BASE + i * P) for i in range(4)] == [9, 0, 0, 0]
    sound(map)


# --- MAP-18: writing back ---


@pytest.mark.spec("MAP-18")
def test_clean_writes_the_files_dirty_pages(vm: VmSystem, map: VmMap) -> None:
    vp = StubVnode(bytes(4 * P))
    obj = vnode_pager_alloc(vm, vp, vp.v_filesize)
    show(map, obj, 0, BASE, 4)
    for i in range(4):
        store(map, BASE + i * P, i + 1)
    assert vp.storage == bytes(4 * P)
    assert vm_map_clean(map, BASE + P, BASE + 3 * P, True, False) == KERN_SUCCESS
    assert [vp.storage[i * P] for i in range(4)] == [0, 2, 3, 0]
    assert vm_map_clean(map, BASE, BASE + 4 * P, True, True) == KERN_SUCCESS
    assert [vp.storage[i * P] for i in range(4)] == [1, 2, 3, 4]
    assert obj.resident_page_count == 0
    assert load(map, BASE + 3 * P) == 4
    sound(map)


@pytest.mark.spec("MAP-18")
def test_clean_finds_the_file_at_the_end_of_a_chain(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    vp = StubVnode(bytes(6 * P))
    obj = vnode_pager_alloc(vm, vp, vp.v_filesize)
    vm_object_reference_quick(obj)
    show(map, obj, 0, BASE, 4)  # shared
    vm_map_inherit(map, BASE, BASE + 4 * P, VM_INHERIT_SHARE)
    show(map, obj, P, BASE + 16 * P, 4, RW, MAP_COPY_ON_WRITE)  # private
    store(map, BASE + 16 * P, 77)
    child = vmspace_fork(proc.p_vmspace)
    store(map, BASE + 17 * P, 78)
    assert len(chain(entries(map)[1])) == 3
    store(map, BASE + 3 * P, 5)
    assert vm_map_clean(map, BASE + 16 * P, BASE + 20 * P, True, False) == KERN_SUCCESS
    assert vp.storage[3 * P] == 5
    assert 77 not in vp.storage and 78 not in vp.storage
    sound(map, child.vm_map)
    vmspace_rel(child)


@pytest.mark.spec("MAP-18")
def test_clean_refuses_holes_and_what_is_wired(vm: VmSystem, map: VmMap) -> None:
    from dfvm.vm.vm_map import vm_map_user_wiring

    anon(map, BASE, 2)
    anon(map, BASE + 3 * P, 1)
    assert vm_map_clean(map, BASE, BASE + 4 * P, True, False) == KERN_INVALID_ADDRESS
    assert vm_map_clean(map, BASE + 2 * P, BASE + 4 * P, True, False) == KERN_INVALID_ADDRESS
    assert vm_map_clean(map, BASE, BASE + 3 * P, True, False) == KERN_INVALID_ADDRESS
    assert vm_map_clean(map, BASE, BASE + 2 * P, True, True) == KERN_SUCCESS
    assert vm_map_user_wiring(map, BASE, BASE + P, False) == KERN_SUCCESS
    assert vm_map_clean(map, BASE, BASE + 2 * P, True, True) == KERN_RESOURCE_SHORTAGE
    assert vm_map_clean(map, BASE, BASE + 2 * P, True, False) == KERN_SUCCESS


# --- MAP-19: the lock ---


@pytest.mark.spec("MAP-19")
def test_exclusive_holds_move_the_timestamp(map: VmMap) -> None:
    before = map.timestamp
    vm_map_lock_read(map)
    vm_map_unlock_read(map)
    assert map.timestamp == before
    vm_map_lock(map)
    assert lockstatus(map.lock) == LK_EXCLUSIVE
    vm_map_unlock(map)
    assert map.timestamp == before + 1
    vm_map_lock_read(map)
    assert vm_map_lock_upgrade(map)
    vm_map_unlock(map)
    assert map.timestamp == before + 2
    anon(map, BASE, 1)
    store(map, BASE, 1)
    assert map.timestamp > before + 3


@pytest.mark.spec("MAP-19")
def test_a_writer_waits_for_readers(vm: VmSystem, map: VmMap) -> None:
    order: list[str] = []

    def reader() -> None:
        vm_map_lock_read(map)
        vm.sched.tsleep("reader", 0, "test", 1)
        order.append("read")
        vm_map_unlock_read(map)

    def writer() -> None:
        anon(map, BASE, 1)
        order.append("wrote")

    vm.sched.create(reader, name="reader")
    vm.sched.create(writer, name="writer")
    vm.sched.run()
    assert order == ["read", "wrote"]


# --- the checker ---


def test_the_checker_sees_what_is_wrong(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 2)
    anon(map, BASE + 4 * P, 2, VM_PROT_READ)
    store(map, BASE, 1)
    first, second = map
    obj = first.ba.object
    assert obj is not None
    sound(map)

    def complaint(word: str) -> None:
        assert any(word in line for line in vm_map_check(map)), vm_map_check(map)

    map.size += P
    complaint("size")
    map.size -= P
    map.nentries += 1
    complaint("nentries")
    map.nentries -= 1
    second.ba.start = BASE + P
    complaint("begins below")
    second.ba.start = BASE + 4 * P
    second.protection = RW
    second.max_protection = VM_PROT_READ
    complaint("exceeds")
    second.max_protection = VM_PROT_ALL
    del obj.backing_list[first.ba]
    complaint("backing_list")
    obj.backing_list[first.ba] = None
    first.ba.backing_count = 1
    complaint("elements")
    first.ba.backing_count = 0
    map.index.gaps[0] = 0
    complaint("hole")
    map.index.gaps[0] = map.max_addr
    room(map, 1)
    map.freehint[0].start += P
    complaint("free hint")
    map.freehint[0].start -= P
    second.prev = None
    complaint("before it")
    second.prev = first
    sound(map)


def test_unlinking_an_entry_in_transition_panics(map: VmMap) -> None:
    from dfvm.vm.vm_map_clip import vm_map_entry_unlink
    from dfvm.vm.vm_map_entry import MAP_ENTRY_IN_TRANSITION

    anon(map, BASE, 1)
    (entry,) = map
    entry.eflags |= MAP_ENTRY_IN_TRANSITION
    with pytest.raises(Panic, match="in transition"):
        vm_map_entry_unlink(map, entry)
