"""Address spaces: their counts, fork, exec, exit, wiring across fork, waiting for transitions."""

from __future__ import annotations

import pytest

from dfvm.lwkt.panic import Panic
from dfvm.vm import vm_fault as vm_fault_module
from dfvm.vm.pager.vnode_pager import vnode_pager_alloc, vnode_pager_readpage
from dfvm.vm.pmap import pmap_extract, pmap_pte
from dfvm.vm.vm import (
    KERN_FAILURE,
    KERN_INVALID_ADDRESS,
    KERN_INVALID_ARGUMENT,
    KERN_RESOURCE_SHORTAGE,
    KERN_SUCCESS,
    VM_INHERIT_NONE,
    VM_INHERIT_SHARE,
    VM_PROT_NONE,
    VM_PROT_READ,
    VM_SUBSYS_SYSMAP,
)
from dfvm.vm.vm_fault import vm_fault
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_kern import kcopyout, kmem_alloc, kmem_alloc_wait, kmem_suballoc
from dfvm.vm.vm_map import (
    MAP_COPY_ON_WRITE,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_USER_WIRED,
    VmMap,
    vm_map_inherit,
    vm_map_kernel_wiring,
    vm_map_lock,
    vm_map_protect,
    vm_map_remove,
    vm_map_unlock,
    vm_map_user_wiring,
)
from dfvm.vm.vm_map_clip import vm_map_clip_range, vm_map_clip_start, vm_map_unclip_range
from dfvm.vm.vm_map_entry import MAP_CLIP_NO_HOLES
from dfvm.vm.vm_map_wire import KM_PAGEABLE
from dfvm.vm.vm_page import VM_ALLOC_INTERRUPT, vm_page_alloc, vm_page_wakeup
from dfvm.vm.vmspace import (
    VMSPACE_EXIT1,
    VMSPACE_EXIT2,
    Vmspace,
    vmspace_alloc,
    vmspace_anonymous_count,
    vmspace_drop,
    vmspace_exitfree,
    vmspace_fork,
    vmspace_free,
    vmspace_getrefs,
    vmspace_hold,
    vmspace_ref,
    vmspace_rel,
    vmspace_relexit,
    vmspace_unshare,
)
from tests.vm.map_util import RW, P, Proc, anon, chain, entries, load, ranges, show, sound, store
from tests.vm.page_util import alloc, make_object
from tests.vm.vnode_stub import StubVnode

BASE = 0x10_0000


def wired(vm: VmSystem) -> int:
    return vm.gd.gd_vmstats.v_wire_count


# --- SPACE-1: counts ---


@pytest.mark.spec("SPACE-1")
def test_a_space_ends_in_two_stages(vm: VmSystem) -> None:
    free = vm.gd.gd_vmstats.v_free_count
    vmspace = vmspace_alloc(vm)
    assert (vmspace.vm_refcnt, vmspace.vm_holdcnt) == (1, 1)
    anon(vmspace.vm_map, BASE, 4)
    store(vmspace.vm_map, BASE, 1)
    vmspace_hold(vmspace)
    vmspace_rel(vmspace)
    assert vmspace_getrefs(vmspace) == -1 and vmspace.vm_holdcnt == 1
    assert vmspace.vm_map.nentries == 0 and vmspace.vm_flags == VMSPACE_EXIT1
    assert vmspace.vm_pmap.pm_pml4 != 0
    vmspace_drop(vmspace)
    assert vmspace.vm_flags == VMSPACE_EXIT1 | VMSPACE_EXIT2
    assert vmspace.vm_pmap.pm_pml4 == 0
    assert vm.gd.gd_vmstats.v_free_count == free


@pytest.mark.spec("SPACE-1")
def test_users_are_counted(vm: VmSystem) -> None:
    vmspace = vmspace_alloc(vm)
    anon(vmspace.vm_map, BASE, 1)
    vmspace_ref(vmspace)
    assert vmspace_getrefs(vmspace) == 2
    vmspace_rel(vmspace)
    assert vmspace.vm_map.nentries == 1
    vmspace_rel(vmspace)
    assert vmspace.vm_map.nentries == 0
    with pytest.raises(Panic, match="no user"):
        vmspace_ref(vmspace)
    with pytest.raises(Panic, match="no user"):
        vmspace_rel(vmspace)


@pytest.mark.spec("SPACE-1")
def test_exit_and_reap_are_separate_steps(proc: Proc) -> None:
    vmspace = proc.p_vmspace
    anon(vmspace.vm_map, BASE, 1)
    vmspace_relexit(vmspace)
    assert vmspace.vm_flags == VMSPACE_EXIT1 and vmspace.vm_map.nentries == 0
    vmspace_exitfree(vmspace)
    assert vmspace.vm_flags == VMSPACE_EXIT1 | VMSPACE_EXIT2


@pytest.mark.spec("SPACE-1")
def test_a_space_nobody_used_can_be_given_back(vm: VmSystem) -> None:
    free = vm.gd.gd_vmstats.v_free_count
    vmspace_free(vmspace_alloc(vm))
    assert vm.gd.gd_vmstats.v_free_count == free


@pytest.mark.spec("SPACE-1")
def test_wired_memory_is_unwired_at_exit(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    before = wired(vm)
    anon(map, BASE, 4)
    assert vm_map_user_wiring(map, BASE, BASE + 4 * P, False) == KERN_SUCCESS
    vmspace_rel(proc.p_vmspace)
    assert wired(vm) == before - 1  # the top page table had been there before


def test_anonymous_count(proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 8)
    for i in range(5):
        store(map, BASE + i * P, 1)
    assert vmspace_anonymous_count(proc.p_vmspace) == 5


# --- SPACE-2: fork ---


@pytest.mark.spec("SPACE-2")
def test_fork_copies_no_page(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 8)
    for i in range(8):
        store(map, BASE + i * P, i)
    vm.gd.gd_cnt.v_cow_faults = 0
    child = vmspace_fork(proc.p_vmspace)
    assert entries(child.vm_map)[0].ba.object is entries(map)[0].ba.object
    assert [load(child.vm_map, BASE + i * P) for i in range(8)] == list(range(8))
    assert vm.gd.gd_cnt.v_cow_faults == 0
    assert not any(pmap_pte(s, BASE + i * P) & 2 for s in (map.pmap, child.vm_pmap) for i in (0, 7))
    store(child.vm_map, BASE, 50)
    store(map, BASE + P, 60)
    assert vm.gd.gd_cnt.v_cow_faults == 2
    assert [load(map, BASE + i * P) for i in range(3)] == [0, 60, 2]
    assert [load(child.vm_map, BASE + i * P) for i in range(3)] == [50, 1, 2]
    sound(map, child.vm_map)
    vmspace_rel(child)
    sound(map)


@pytest.mark.spec("SPACE-2")
def test_fork_obeys_inheritance(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 6)
    vm_map_inherit(map, BASE, BASE + 2 * P, VM_INHERIT_SHARE)
    vm_map_inherit(map, BASE + 4 * P, BASE + 6 * P, VM_INHERIT_NONE)
    child = vmspace_fork(proc.p_vmspace)
    new = child.vm_map
    assert ranges(new) == [(BASE, BASE + 2 * P), (BASE + 2 * P, BASE + 4 * P)]
    assert new.size == 4 * P
    store(map, BASE, 1)
    store(new, BASE + P, 2)
    assert load(new, BASE) == 1 and load(map, BASE + P) == 2
    store(map, BASE + 2 * P, 3)
    assert load(new, BASE + 2 * P) == 0
    sound(map, new)
    # What is shared can be shared on, also when it was copied before.
    grandchild = vmspace_fork(child)
    store(grandchild.vm_map, BASE, 9)
    assert load(map, BASE) == load(new, BASE) == 9
    sound(map, new, grandchild.vm_map)


@pytest.mark.spec("SPACE-2")
def test_sharing_what_needs_a_copy_copies_first(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 2)
    store(map, BASE, 1)
    child = vmspace_fork(proc.p_vmspace)
    vm_map_inherit(child.vm_map, BASE, BASE + 2 * P, VM_INHERIT_SHARE)
    grandchild = vmspace_fork(child)
    store(grandchild.vm_map, BASE, 2)
    assert load(child.vm_map, BASE) == 2 and load(map, BASE) == 1
    sound(map, child.vm_map, grandchild.vm_map)


@pytest.mark.spec("SPACE-2")
def test_a_copy_of_a_shared_mapping(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 1)
    store(map, BASE, 1)
    vm_map_inherit(map, BASE, BASE + P, VM_INHERIT_SHARE)
    child = vmspace_fork(proc.p_vmspace)
    grandchild = vmspace_fork(child)
    for space in (child, grandchild):
        store(space.vm_map, BASE, 5)
    assert load(map, BASE) == 5


@pytest.mark.spec("SPACE-2")
def test_wired_memory_is_copied(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 3)
    store(map, BASE, 1)
    assert vm_map_user_wiring(map, BASE, BASE + 3 * P, False) == KERN_SUCCESS
    frames = [pmap_extract(map.pmap, BASE + i * P) for i in range(3)]
    child = vmspace_fork(proc.p_vmspace)
    (entry,), (new,) = map, child.vm_map
    assert not entry.eflags & MAP_ENTRY_NEEDS_COPY and entry.wired_count == 1
    assert new.wired_count == 0 and not new.eflags & MAP_ENTRY_USER_WIRED
    assert new.ba.object is not entry.ba.object
    assert load(child.vm_map, BASE) == 1
    store(map, BASE, 2)
    assert load(child.vm_map, BASE) == 1
    assert [pmap_extract(map.pmap, BASE + i * P) for i in range(3)] == frames
    sound(map, child.vm_map)
    vmspace_rel(child)
    assert vm_map_user_wiring(map, BASE, BASE + 3 * P, True) == KERN_SUCCESS
    sound(map)


@pytest.mark.spec("SPACE-2")
def test_the_sizes_are_inherited(proc: Proc) -> None:
    names = [n for n in Vmspace.__slots__ if n[3:] in
             ("tsize", "dsize", "ssize", "taddr", "daddr", "maxsaddr", "minsaddr")]  # fmt: skip
    assert len(names) == 7
    for i, name in enumerate(names):
        setattr(proc.p_vmspace, name, i + 1)
    child = vmspace_fork(proc.p_vmspace)
    assert [getattr(child, name) for name in names] == list(range(1, 8))


@pytest.mark.spec("FAULT-9")
def test_a_chain_does_not_grow_by_forking_in_a_loop(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    store(map, BASE, 0)
    children = []
    for i in range(1, 30):
        children.append(vmspace_fork(proc.p_vmspace))
        store(map, BASE + i % 4 * P, i)
        assert len(chain(entries(map)[0])) <= vm.sysctl.map_backing_limit + 1
    sound(map, *(c.vm_map for c in children))
    assert [load(map, BASE + i * P) for i in range(4)] == [28, 29, 26, 27]
    assert [load(children[10].vm_map, BASE + i * P) for i in range(4)] == [8, 9, 10, 7]


@pytest.mark.spec("FAULT-9")
def test_the_child_of_a_child_of_a_child(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 8)
    space = proc.p_vmspace
    for i in range(20):
        store(space.vm_map, BASE + i % 8 * P, i)
        child = vmspace_fork(space)
        vmspace_rel(space)
        space = child
        assert len(chain(entries(space.vm_map)[0])) <= vm.sysctl.map_backing_limit + 1
    assert [load(space.vm_map, BASE + i * P) for i in range(8)] == [16, 17, 18, 19, 12, 13, 14, 15]
    sound(space.vm_map)


# --- SPACE-3: sharing, unsharing ---


@pytest.mark.spec("SPACE-3")
def test_unshare(vm: VmSystem, proc: Proc) -> None:
    shared = proc.p_vmspace
    anon(shared.vm_map, BASE, 1)
    store(shared.vm_map, BASE, 1)
    vmspace_unshare(proc)
    assert proc.p_vmspace is shared
    vmspace_ref(shared)
    other = Proc(vm, shared)
    vmspace_unshare(other)
    assert other.p_vmspace is not shared and vmspace_getrefs(shared) == 1
    store(other.map, BASE, 2)
    assert (load(shared.vm_map, BASE), load(other.map, BASE)) == (1, 2)
    sound(shared.vm_map, other.map)


# --- MAP-12: wiring ---


@pytest.mark.spec("MAP-12")
def test_mlock_and_munlock(vm: VmSystem, map: VmMap) -> None:
    before = wired(vm)
    anon(map, BASE, 6)
    assert vm_map_user_wiring(map, BASE + P, BASE + 4 * P, False) == KERN_SUCCESS
    assert wired(vm) - before >= 3
    assert [e.wired_count for e in map] == [0, 1, 0]
    assert all(pmap_extract(map.pmap, BASE + i * P) is not None for i in (1, 2, 3))
    assert map.pmap.pm_stats.wired_count == 3
    # A second time is no second wiring.
    assert vm_map_user_wiring(map, BASE, BASE + 6 * P, False) == KERN_SUCCESS
    assert [e.wired_count for e in map] == [1]
    assert vm_map_user_wiring(map, BASE, BASE + 6 * P, True) == KERN_SUCCESS
    assert map.pmap.pm_stats.wired_count == 0
    assert map.nentries == 1
    assert vm_map_user_wiring(map, BASE, BASE + 6 * P, True) == KERN_INVALID_ARGUMENT
    sound(map)


@pytest.mark.spec("MAP-12")
def test_holes_cannot_be_wired(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 2)
    anon(map, BASE + 3 * P, 2)
    for start, end in ((0, 2), (0, 5), (2, 4), (3, 6)):
        if (start, end) == (0, 2):
            continue
        rv = vm_map_user_wiring(map, BASE + start * P, BASE + end * P, False)
        assert rv == KERN_INVALID_ADDRESS
    assert all(e.wired_count == 0 and not e.eflags & MAP_ENTRY_IN_TRANSITION for e in map)
    sound(map)


@pytest.mark.spec("MAP-12")
@pytest.mark.parametrize("kernel", [False, True])
def test_a_failed_wiring_leaves_nothing_wired(vm: VmSystem, map: VmMap, kernel: bool) -> None:
    anon(map, BASE, 4)
    vp = StubVnode(bytes(2 * P))
    vp.bad.add(P)
    obj = vnode_pager_alloc(vm, vp, vp.v_filesize)
    show(map, obj, 0, BASE + 4 * P, 2, RW, MAP_COPY_ON_WRITE)
    anon(map, BASE + 6 * P, 2)
    if kernel:
        rv = vm_map_kernel_wiring(map, BASE, BASE + 8 * P, 0)
    else:
        rv = vm_map_user_wiring(map, BASE, BASE + 8 * P, False)
    assert rv != KERN_SUCCESS
    assert [(e.wired_count, e.eflags & MAP_ENTRY_USER_WIRED) for e in map] == [(0, 0)] * 3
    assert map.pmap.pm_stats.wired_count == 0
    sound(map)
    # What was wired before the failure stays as it was.
    assert vm_map_user_wiring(map, BASE, BASE + 2 * P, False) == KERN_SUCCESS
    vp.bad.add(0)
    if kernel:
        assert vm_map_kernel_wiring(map, BASE, BASE + 8 * P, 0) != KERN_SUCCESS
    else:
        assert vm_map_user_wiring(map, BASE, BASE + 8 * P, False) != KERN_SUCCESS
    assert [e.wired_count for e in map] == [1, 0, 0, 0]
    assert map.pmap.pm_stats.wired_count == 2
    sound(map)


@pytest.mark.spec("MAP-12")
def test_a_failed_wiring_unwires_all_pieces_of_what_was_cut(
    vm: VmSystem, map: VmMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread cuts an entry that this call has wired, before a later one fails."""
    anon(map, BASE, 4)
    anon(map, BASE + 4 * P, 2, VM_PROT_READ)
    store(map, BASE, 1)  # the page tables are there
    before = wired(vm)

    def fault(map: VmMap, va: int, prot: int, flags: int) -> int:
        if va != BASE + 5 * P:
            return vm_fault(map, va, prot, flags)
        vm_map_lock(map)
        vm_map_clip_start(map, entries(map)[0], BASE + 2 * P)
        vm_map_unlock(map)
        return KERN_FAILURE

    monkeypatch.setattr(vm_fault_module, "vm_fault", fault)
    assert vm_map_user_wiring(map, BASE, BASE + 6 * P, False) == KERN_FAILURE
    assert [(e.wired_count, e.eflags & MAP_ENTRY_USER_WIRED) for e in map] == [(0, 0)] * 2
    assert map.pmap.pm_stats.wired_count == 0
    assert wired(vm) == before
    sound(map)


@pytest.mark.spec("MAP-12")
def test_a_failed_wiring_finds_pages_that_are_not_mapped_any_more(
    vm: VmSystem, map: VmMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread takes the right to read from a page that is wired already: that unmaps it."""
    anon(map, BASE, 4)
    store(map, BASE, 1)
    before = wired(vm)

    def fault(map: VmMap, va: int, prot: int, flags: int) -> int:
        if va != BASE + 2 * P:
            return vm_fault(map, va, prot, flags)
        vm_map_protect(map, BASE, BASE + P, VM_PROT_NONE, False)
        return KERN_FAILURE

    monkeypatch.setattr(vm_fault_module, "vm_fault", fault)
    assert vm_map_user_wiring(map, BASE, BASE + 4 * P, False) == KERN_FAILURE
    assert all(e.wired_count == 0 for e in map)
    assert wired(vm) == before
    sound(map)


@pytest.mark.spec("MAP-12", "MAP-19")
def test_wiring_looks_again_after_others_had_the_map(
    vm: VmSystem, map: VmMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    anon(map, BASE, 4)
    anon(map, BASE + 4 * P, 2, VM_PROT_READ)

    def fault(map: VmMap, va: int, prot: int, flags: int) -> int:
        if va == BASE + 3 * P:
            vm_map_lock(map)
            vm_map_clip_start(map, entries(map)[0], BASE + 2 * P)
            vm_map_unlock(map)
        return vm_fault(map, va, prot, flags)

    monkeypatch.setattr(vm_fault_module, "vm_fault", fault)
    assert vm_map_user_wiring(map, BASE, BASE + 6 * P, False) == KERN_SUCCESS
    assert [e.wired_count for e in map] == [1, 1]
    assert map.pmap.pm_stats.wired_count == 6
    sound(map)


@pytest.mark.spec("MAP-12")
def test_the_kernels_wirings_count(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 2)
    assert vm_map_kernel_wiring(map, BASE, BASE + 2 * P, 0) == KERN_SUCCESS
    assert vm_map_kernel_wiring(map, BASE, BASE + P, 0) == KERN_SUCCESS
    assert vm_map_user_wiring(map, BASE, BASE + 2 * P, False) == KERN_SUCCESS
    assert [e.wired_count for e in map] == [3, 2]
    assert vm_map_kernel_wiring(map, BASE, BASE + P, KM_PAGEABLE) == KERN_SUCCESS
    assert vm_map_user_wiring(map, BASE, BASE + 2 * P, True) == KERN_SUCCESS
    assert [e.wired_count for e in map] == [1]
    assert vm_map_kernel_wiring(map, BASE, BASE + 2 * P, KM_PAGEABLE) == KERN_SUCCESS
    assert vm_map_kernel_wiring(map, BASE, BASE + 2 * P, KM_PAGEABLE) == KERN_INVALID_ARGUMENT
    assert map.pmap.pm_stats.wired_count == 0
    sound(map)


@pytest.mark.spec("MAP-12")
def test_wired_memory_is_written_without_another_page(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 2)
    store(map, BASE, 1)
    child = vmspace_fork(proc.p_vmspace)
    # Shared and copy on write: wiring for writing makes the copy.
    assert vm_map_user_wiring(map, BASE, BASE + 2 * P, False) == KERN_SUCCESS
    frame = pmap_extract(map.pmap, BASE)
    vm_map_protect(map, BASE, BASE + 2 * P, VM_PROT_READ, False)
    vm_map_protect(map, BASE, BASE + 2 * P, RW, False)
    assert store(map, BASE, 2) == KERN_SUCCESS
    assert pmap_extract(map.pmap, BASE) == frame
    assert load(child.vm_map, BASE) == 1
    assert map.pmap.pm_stats.wired_count == 2
    assert vm_map_user_wiring(map, BASE, BASE + 2 * P, True) == KERN_SUCCESS
    sound(map, child.vm_map)


@pytest.mark.spec("MAP-12")
def test_unmapping_wired_memory_unwires_it(vm: VmSystem, map: VmMap) -> None:
    before = wired(vm)
    anon(map, BASE, 4)
    vm_map_user_wiring(map, BASE, BASE + 4 * P, False)
    vm_map_remove(map, BASE, BASE + 4 * P)
    assert map.pmap.pm_stats.wired_count == 0
    assert wired(vm) == before
    sound(map)


# --- MAP-6: transitions ---


@pytest.mark.spec("MAP-6")
def test_whoever_meets_an_entry_in_transition_waits(vm: VmSystem, map: VmMap) -> None:
    anon(map, BASE, 8)
    log: list[str] = []

    def holder() -> None:
        vm_map_lock(map)
        entry = vm_map_clip_range(map, BASE + 2 * P, BASE + 4 * P, MAP_CLIP_NO_HOLES)
        assert entry is not None and entry.eflags & MAP_ENTRY_IN_TRANSITION
        assert [bool(e.eflags & MAP_ENTRY_IN_TRANSITION) for e in map] == [False, True, False]
        vm_map_unlock(map)
        vm.sched.tsleep("holder", 0, "hold", 2)
        log.append("held")
        vm_map_lock(map)
        vm_map_unclip_range(map, BASE + 2 * P, BASE + 4 * P)
        vm_map_unlock(map)

    def remover() -> None:
        vm_map_remove(map, BASE, BASE + 6 * P)
        log.append("removed")

    def wirer() -> None:
        rv = vm_map_user_wiring(map, BASE + 3 * P, BASE + 8 * P, False)
        log.append("wired" if rv == KERN_SUCCESS else "gone")

    vm.sched.create(holder, name="holder")
    vm.sched.create(wirer, name="wirer")
    vm.sched.create(remover, name="remover")
    vm.sched.run()
    assert log[0] == "held" and sorted(log[1:]) in (["removed", "wired"], ["gone", "removed"])
    assert ranges(map) == [(BASE + 6 * P, BASE + 8 * P)]
    assert not any(e.eflags & MAP_ENTRY_IN_TRANSITION for e in map)
    sound(map)


@pytest.mark.spec("MAP-6")
def test_fork_waits_for_a_wiring(vm: VmSystem, proc: Proc, map: VmMap) -> None:
    anon(map, BASE, 4)
    order: list[str] = []

    def holder() -> None:
        vm_map_lock(map)
        vm_map_clip_range(map, BASE, BASE + 4 * P, MAP_CLIP_NO_HOLES)
        vm_map_unlock(map)
        vm.sched.tsleep("holder", 0, "hold", 2)
        order.append("unclipped")
        vm_map_lock(map)
        vm_map_unclip_range(map, BASE, BASE + 4 * P)
        vm_map_unlock(map)

    def forker() -> None:
        child = vmspace_fork(proc.p_vmspace)
        order.append("forked")
        sound(child.vm_map)

    vm.sched.create(holder, name="holder")
    vm.sched.create(forker, name="forker")
    vm.sched.run()
    assert order == ["unclipped", "forked"]


@pytest.mark.spec("MAP-6")
def test_ranges_with_holes_are_left_alone(map: VmMap) -> None:
    anon(map, BASE, 2)
    anon(map, BASE + 4 * P, 2)
    vm_map_lock(map)
    assert vm_map_clip_range(map, BASE + P, BASE + 5 * P, MAP_CLIP_NO_HOLES) is None
    assert vm_map_clip_range(map, BASE + 2 * P, BASE + 5 * P, 0) is None
    entry = vm_map_clip_range(map, BASE + P, BASE + 5 * P, 0)
    assert entry is not None and entry.ba.start == BASE + P
    vm_map_unclip_range(map, BASE + P, BASE + 5 * P)
    vm_map_unlock(map)
    assert ranges(map) == [(BASE, BASE + 2 * P), (BASE + 4 * P, BASE + 6 * P)]
    sound(map)


@pytest.mark.spec("PAGE-14", "SPACE-2")
def test_what_a_victim_wanted_memory_for_fails(vm: VmSystem, proc: Proc) -> None:
    """A process that is being killed for memory does not wait for any: what it was about to do
    fails, and leaves nothing behind."""
    map = proc.map
    anon(map, BASE, 40)
    vm_map_user_wiring(map, BASE, BASE + 40 * P, False)
    filler = make_object(vm)
    n = 0
    while vm.gd.gd_vmstats.v_free_count > vm.gd.gd_vmstats.v_free_reserved + 8:
        vm_page_wakeup(vm, alloc(filler, n))
        n += 1
    proc.p_lowmemkill = True
    wired = vm.gd.gd_vmstats.v_wire_count
    with pytest.raises(OSError, match="Cannot allocate"):
        vmspace_fork(proc.p_vmspace)
    assert vm.gd.gd_vmstats.v_wire_count == wired
    assert kmem_alloc(vm.kernel_map, 40 * P, VM_SUBSYS_SYSMAP) == 0
    pageable = kmem_alloc_wait(kmem_suballoc(vm.kernel_map, 64 * P), 40 * P)
    with pytest.raises(OSError, match="Cannot allocate"):
        kcopyout(vm, pageable, bytes(40 * P))
    vp = StubVnode(bytes(P))
    anon(map, BASE + (1 << 30), 1)
    assert vm_fault(map, BASE + (1 << 30), RW, 0) == KERN_RESOURCE_SHORTAGE
    while vm_page_alloc(vm, filler, n, VM_ALLOC_INTERRUPT) is not None:
        n += 1
    with pytest.raises(OSError, match="Cannot allocate"):
        vmspace_alloc(vm)
    with pytest.raises(OSError, match="Cannot allocate"):
        vnode_pager_readpage(vnode_pager_alloc(vm, vp, P), 0)
    sound(map)
