"""Wired, active, inactive, cached (vm_page_paging.py)."""

from __future__ import annotations

from collections import Counter

import pytest

from dfvm.lwkt.panic import Panic
from dfvm.vm import pmap
from dfvm.vm.vm import VM_PROT_NONE, VM_PROT_READ
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_object import OBJ_MIGHTBEDIRTY, OBJT_VNODE, VmObject
from dfvm.vm.vm_page import (
    ACT_INIT,
    ACT_MAX,
    PBUSY_LOCKED,
    PG_FICTITIOUS,
    PG_MAPPED,
    PG_NEED_COMMIT,
    PG_REFERENCED,
    PG_UNQUEUED,
    PG_WINATCFLS,
    PG_WRITEABLE,
    PQ_ACTIVE,
    PQ_CACHE,
    PQ_INACTIVE,
    PQ_NONE,
    VM_PAGE_BITS_ALL,
    VmPage,
    vm_page_activate,
    vm_page_busy_try,
    vm_page_cache,
    vm_page_deactivate,
    vm_page_deactivate_locked,
    vm_page_dirty,
    vm_page_dontneed,
    vm_page_free,
    vm_page_hold,
    vm_page_protect,
    vm_page_rename,
    vm_page_try_to_cache,
    vm_page_unwire,
    vm_page_wakeup,
    vm_page_wire,
)
from tests.vm.page_util import alloc, check, make_object, make_vm


def _base(m: VmPage) -> int:
    return m.queue - m.pc if m.queue else PQ_NONE


@pytest.fixture
def vm() -> VmSystem:
    return make_vm()


@pytest.fixture
def file(vm: VmSystem) -> VmObject:
    return make_object(vm, type=OBJT_VNODE)


# -- wiring -----------------------------------------------------------------------------------


@pytest.mark.spec("PAGE-8")
def test_wiring_takes_a_page_out_of_paging(vm: VmSystem) -> None:
    m = alloc(make_object(vm), 0)
    wired = vm.gd.gd_vmstats.v_wire_count
    vm_page_activate(vm, m)
    vm_page_wire(vm, m)
    assert _base(m) == PQ_NONE
    assert vm.gd.gd_vmstats.v_wire_count == wired + 1
    vm_page_wire(vm, m)
    assert vm.gd.gd_vmstats.v_wire_count == wired + 1
    vm_page_activate(vm, m)
    vm_page_deactivate(vm, m)
    assert _base(m) == PQ_NONE
    check(vm)
    vm_page_unwire(vm, m, False)
    assert _base(m) == PQ_NONE
    m.flags |= PG_WINATCFLS
    vm_page_unwire(vm, m, False)
    assert _base(m) == PQ_INACTIVE
    assert not m.flags & PG_WINATCFLS
    assert vm.gd.gd_vmstats.v_wire_count == wired
    with pytest.raises(Panic):
        vm_page_unwire(vm, m, False)
    check(vm)


@pytest.mark.spec("PAGE-8")
@pytest.mark.parametrize(("activate", "flags"), [(True, 0), (False, PG_NEED_COMMIT)])
def test_last_unwire_activates_on_demand_or_before_a_commit(
    vm: VmSystem, activate: bool, flags: int
) -> None:
    m = alloc(make_object(vm), 0)
    vm_page_wire(vm, m)
    m.flags |= flags
    vm_page_unwire(vm, m, activate)
    assert _base(m) == PQ_ACTIVE


@pytest.mark.spec("PAGE-8")
def test_unqueued_pages_stay_off_the_queues(vm: VmSystem) -> None:
    m = alloc(make_object(vm), 0)
    m.flags |= PG_UNQUEUED
    vm_page_wire(vm, m)
    vm_page_unwire(vm, m, True)
    vm_page_activate(vm, m)
    vm_page_deactivate(vm, m)
    assert _base(m) == PQ_NONE
    vm_page_wakeup(vm, m)
    check(vm)


@pytest.mark.spec("PAGE-8")
def test_fictitious_pages_ignore_wiring(vm: VmSystem) -> None:
    m = VmPage(1 << 40, 0, None, 0)
    m.flags = PG_FICTITIOUS
    m.wire_count = 1
    vm_page_wire(vm, m)
    vm_page_unwire(vm, m, False)
    vm_page_unwire(vm, m, False)
    assert (m.wire_count, m.queue) == (1, PQ_NONE)
    vm_page_free(vm, m)  # leaves its object, and that is all
    assert (m.wire_count, m.queue, m.busy_count) == (1, PQ_NONE, 0)
    check(vm)


# -- queues -----------------------------------------------------------------------------------


@pytest.mark.spec("PAGE-9")
@pytest.mark.spec("PAGE-11")
def test_activate_raises_act_count_to_act_init(vm: VmSystem) -> None:
    m = alloc(make_object(vm), 0)
    vm_page_activate(vm, m)
    assert (_base(m), m.act_count) == (PQ_ACTIVE, ACT_INIT)
    m.act_count = 2
    vm_page_activate(vm, m)
    assert m.act_count == ACT_INIT
    m.act_count = ACT_MAX
    vm_page_activate(vm, m)
    assert m.act_count == ACT_MAX


@pytest.mark.spec("PAGE-9")
def test_deactivate_clears_the_second_chance(vm: VmSystem) -> None:
    m = alloc(make_object(vm), 0)
    vm_page_activate(vm, m)
    m.flags |= PG_WINATCFLS
    vm_page_deactivate(vm, m)
    assert _base(m) == PQ_INACTIVE
    assert not m.flags & PG_WINATCFLS
    # A page that is inactive already keeps its place, and its mark.
    m.flags |= PG_WINATCFLS
    vm_page_deactivate_locked(vm, m, True)
    assert m.flags & PG_WINATCFLS


@pytest.mark.spec("PAGE-9")
def test_deactivate_at_the_head_or_the_tail() -> None:
    vm = make_vm(16)
    object = make_object(vm)
    a, b, c = (alloc(object, i * 1024) for i in range(3))
    vm_page_deactivate_locked(vm, a, False)
    vm_page_deactivate_locked(vm, b, False)
    vm_page_deactivate_locked(vm, c, True)
    assert list(vm.pages.queue(a.queue).pages()) == [c, a, b]


@pytest.mark.spec("PAGE-9")
def test_cache_takes_clean_pages(vm: VmSystem, file: VmObject) -> None:
    m = alloc(file, 0)
    vm_page_deactivate(vm, m)
    vm_page_cache(vm, m)
    assert (_base(m), m.busy_count, m.object) == (PQ_CACHE, 0, file)
    assert vm.gd.gd_vmstats.v_cache_count == 1
    check(vm)
    # Use brings it back.
    vm_page_activate(vm, m)
    assert _base(m) == PQ_ACTIVE
    assert vm.gd.gd_cnt.v_reactivated == 1


@pytest.mark.spec("PAGE-9")
def test_cache_unmaps_first_and_a_page_that_was_dirty_is_deactivated(
    vm: VmSystem, file: VmObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    modified = False

    def page_protect(vm: VmSystem, m: VmPage, prot: int) -> None:
        assert prot == VM_PROT_NONE
        m.flags &= ~(PG_MAPPED | PG_WRITEABLE)
        if modified:
            m.dirty = VM_PAGE_BITS_ALL

    monkeypatch.setattr(pmap, "pmap_page_protect", page_protect)
    clean, dirty = alloc(file, 0), alloc(file, 1)
    clean.flags |= PG_MAPPED
    dirty.flags |= PG_MAPPED | PG_WRITEABLE
    vm_page_cache(vm, clean)
    modified = True
    vm_page_cache(vm, dirty)
    assert (_base(clean), _base(dirty)) == (PQ_CACHE, PQ_INACTIVE)
    assert dirty.busy_count == 0
    assert not clean.flags & PG_MAPPED
    check(vm)


@pytest.mark.spec("PAGE-9")
def test_cache_leaves_pages_in_use_where_they_are(vm: VmSystem, file: VmObject) -> None:
    held, wired, commit = (alloc(file, i) for i in range(3))
    vm_page_hold(vm, held)
    vm_page_wire(vm, wired)
    vm_page_activate(vm, held)
    commit.flags |= PG_NEED_COMMIT
    vm_page_activate(vm, commit)
    for m in (held, wired, commit):
        vm_page_cache(vm, m)
        assert _base(m) != PQ_CACHE
        assert m.busy_count == 0
    dirty = alloc(file, 3)
    vm_page_dirty(vm, dirty)
    with pytest.raises(Panic):
        vm_page_cache(vm, dirty)


@pytest.mark.spec("PAGE-9")
def test_try_to_cache(vm: VmSystem, file: VmObject) -> None:
    clean, dirty, busy = (alloc(file, i) for i in range(3))
    for m in (clean, dirty, busy):
        vm_page_deactivate(vm, m)
    vm_page_dirty(vm, dirty)
    vm_page_wakeup(vm, clean)
    vm_page_wakeup(vm, dirty)
    assert vm_page_try_to_cache(vm, clean)
    assert not vm_page_try_to_cache(vm, dirty)
    assert not vm_page_try_to_cache(vm, busy)
    assert [_base(m) for m in (clean, dirty, busy)] == [PQ_CACHE, PQ_INACTIVE, PQ_INACTIVE]
    assert (clean.busy_count, dirty.busy_count, busy.busy_count) == (0, 0, PBUSY_LOCKED)
    check(vm)


@pytest.mark.spec("PAGE-9")
def test_dontneed_weighs_32_ways() -> None:
    vm = make_vm(16)
    object = make_object(vm)
    # A page that stays in the middle of each colour's queue shows where the other went.
    outcome: Counter[str] = Counter()
    for i in range(512):
        m = alloc(object, i)
        other = alloc(object, i + 1024)
        assert other.pc == m.pc
        vm_page_deactivate(vm, other)
        vm_page_activate(vm, m)
        m.flags |= PG_REFERENCED
        vm_page_dontneed(vm, m)
        if _base(m) == PQ_ACTIVE:
            outcome["alone"] += 1
            assert m.flags & PG_REFERENCED
            assert m.act_count == ACT_INIT - 1
        else:
            assert not m.flags & PG_REFERENCED
            first = next(vm.pages.queue(m.queue).pages())
            outcome["head" if first is m else "tail"] += 1
    assert outcome == {"alone": 512 // 32, "tail": 512 * 3 // 32, "head": 512 * 28 // 32}


@pytest.mark.spec("PAGE-9")
def test_dontneed_puts_dirty_pages_last(vm: VmSystem) -> None:
    object = make_object(vm)
    vm.pages.dnweight = 16 + 0x7F  # the next ones would go to the head
    other = alloc(object, 1024)
    vm_page_deactivate(vm, other)
    m = alloc(object, 0)
    vm_page_activate(vm, m)
    vm_page_dirty(vm, m)
    vm_page_dontneed(vm, m)
    assert list(vm.pages.queue(m.queue).pages()) == [other, m]


@pytest.mark.spec("PAGE-9")
def test_protect_only_takes_rights_away(vm: VmSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(pmap, "pmap_page_protect", lambda vm, m, prot: calls.append(prot))
    m = alloc(make_object(vm), 0)
    vm_page_protect(vm, m, VM_PROT_NONE)
    vm_page_protect(vm, m, VM_PROT_READ)
    assert calls == []  # it is not mapped
    m.flags |= PG_MAPPED
    vm_page_protect(vm, m, VM_PROT_READ)
    assert calls == []  # nor writable
    vm_page_protect(vm, m, VM_PROT_NONE)
    m.flags |= PG_WRITEABLE
    vm_page_protect(vm, m, VM_PROT_READ)
    assert calls == [VM_PROT_NONE, VM_PROT_READ]
    m.flags = 0
    vm_page_wakeup(vm, m)
    with pytest.raises(Panic):
        vm_page_protect(vm, m, VM_PROT_NONE)


@pytest.mark.spec("PAGE-9")
def test_rename_dirties_and_leaves_the_cache(vm: VmSystem, file: VmObject) -> None:
    m = alloc(file, 5)
    vm_page_cache(vm, m)
    assert not vm_page_busy_try(vm, m, True)
    target = make_object(vm)
    vm_page_rename(m, target, 9)
    assert (m.object, m.pindex) == (target, 9)
    assert 5 not in file.rb_memq
    assert _base(m) == PQ_INACTIVE
    assert m.dirty == VM_PAGE_BITS_ALL
    assert target.flags & OBJ_MIGHTBEDIRTY
    other = alloc(file, 5)
    with pytest.raises(Panic):
        vm_page_rename(other, target, 9)


@pytest.mark.spec("PAGE-7")
def test_free_unmaps(vm: VmSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[VmPage, int]] = []
    monkeypatch.setattr(pmap, "pmap_page_protect", lambda vm, m, prot: calls.append((m, prot)))
    m = alloc(make_object(vm), 0)
    m.flags |= PG_MAPPED
    vm_page_free(vm, m)
    assert calls == [(m, VM_PROT_NONE)]
    assert m.flags == 0
