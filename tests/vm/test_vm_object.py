"""Objects: how they come and go, and what is done to ranges of their pages."""

from __future__ import annotations

import pytest

from dfvm.lwkt.panic import Panic
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_object import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_WILLNEED,
    OBJ_DEAD,
    OBJ_MIGHTBEDIRTY,
    OBJ_ONEMAPPING,
    OBJT_DEAD,
    OBJT_DEFAULT,
    OBJT_DEVICE,
    OBJT_MARKER,
    OBJT_MGTDEVICE,
    OBJT_PHYS,
    OBJT_SWAP,
    OBJT_VNODE,
    VMOBJ_HSIZE,
    VmObject,
    vm_object_allocate,
    vm_object_coalesce,
    vm_object_deallocate,
    vm_object_drop,
    vm_object_hash,
    vm_object_hold,
    vm_object_hold_shared,
    vm_object_madvise,
    vm_object_page_remove,
    vm_object_pages,
    vm_object_pip_add,
    vm_object_pip_wait,
    vm_object_pip_wakeup,
    vm_object_reference_locked,
    vm_object_reference_quick,
    vm_object_set_writeable_dirty,
)
from dfvm.vm.vm_object_check import vm_object_check
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PG_REFERENCED,
    PQ_ACTIVE,
    PQ_INACTIVE,
    VM_ALLOC_NORMAL,
    VM_ALLOC_ZERO,
    VM_PAGE_BITS_ALL,
    VmPage,
    vm_page_activate,
    vm_page_alloc,
    vm_page_deactivate,
    vm_page_wakeup,
    vm_page_wire,
)
from tests.vm.vnode_stub import make_vm


def anonymous(vm: VmSystem, npages: int) -> VmObject:
    return vm_object_allocate(vm, OBJT_DEFAULT, npages)


def page(object: VmObject, pindex: int, dirty: int = VM_PAGE_BITS_ALL) -> VmPage:
    """A valid page as a fault leaves it."""
    vm = object.vm
    m = vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL | VM_ALLOC_ZERO)
    assert m is not None
    m.valid = VM_PAGE_BITS_ALL
    m.dirty = dirty
    vm_page_activate(vm, m)
    vm_page_wakeup(vm, m)
    return m


def free_pages(vm: VmSystem) -> int:
    return vm.gd.gd_vmstats.v_free_count


def owned(object: VmObject) -> list[str]:
    """The checker's complaints, but for the one that no map shows an object whose owner is this
    test."""
    return [line for line in vm_object_check(object.vm) if "owners" not in line]


@pytest.mark.spec("OBJ-1")
@pytest.mark.parametrize(
    "type",
    [OBJT_DEFAULT, OBJT_SWAP, OBJT_VNODE, OBJT_DEVICE, OBJT_MGTDEVICE, OBJT_PHYS, OBJT_DEAD,
     OBJT_MARKER],
)  # fmt: skip
def test_types_and_onemapping(vm: VmSystem, type: int) -> None:
    object = vm_object_allocate(vm, type, 3)
    assert object.type == type
    assert object.size == 3
    assert (object.ref_count, object.hold_count, object.paging_in_progress) == (1, 0, 0)
    assert bool(object.flags & OBJ_ONEMAPPING) == (type in (OBJT_DEFAULT, OBJT_SWAP))


@pytest.mark.spec("OBJ-1")
def test_the_types_are_numbered_as_in_the_seed() -> None:
    assert list(range(8)) == [OBJT_DEFAULT, OBJT_SWAP, OBJT_VNODE, OBJT_DEVICE, OBJT_MGTDEVICE,
                              OBJT_PHYS, OBJT_DEAD, OBJT_MARKER]  # fmt: skip


@pytest.mark.spec("OBJ-2")
def test_the_last_reference_takes_an_anonymous_object_down(vm: VmSystem) -> None:
    object = anonymous(vm, 8)
    before = free_pages(vm)
    for i in range(5):
        page(object, i)
    vm_object_reference_quick(object)
    vm_object_deallocate(object)
    assert object.ref_count == 1
    assert object.resident_page_count == 5
    vm_object_deallocate(object)
    assert object.flags & OBJ_DEAD
    assert object.resident_page_count == 0
    assert free_pages(vm) == before
    assert object not in vm_object_hash(object)
    assert vm_object_check(vm) == []


@pytest.mark.spec("OBJ-2")
def test_too_many_deallocations_panic(vm: VmSystem) -> None:
    object = anonymous(vm, 1)
    vm_object_deallocate(object)
    with pytest.raises(Panic, match="too many"):
        vm_object_deallocate(object)
    with pytest.raises(Panic, match="no owner"):
        vm_object_reference_quick(object)


@pytest.mark.spec("OBJ-2")
def test_a_hold_outlives_the_object(vm: VmSystem) -> None:
    object = anonymous(vm, 1)
    vm_object_hold(object)
    vm_object_deallocate(object)
    assert object.flags & OBJ_DEAD
    assert object.hold_count == 1
    with pytest.raises(Panic, match="dead"):
        vm_object_reference_locked(object)
    vm_object_drop(object)
    assert object.hold_count == 0
    with pytest.raises(Panic, match="not held"):
        vm_object_drop(object)


@pytest.mark.spec("OBJ-2")
def test_termination_waits_for_paging(vm: VmSystem) -> None:
    object = anonymous(vm, 2)
    page(object, 0)
    vm_object_pip_add(object, 2)
    seen = []

    def io() -> None:
        vm_object_pip_wakeup(object)
        seen.append(("one left", object.resident_page_count, bool(object.flags & OBJ_DEAD)))
        vm.sched.tsleep("disk", 0, "disk", 1)
        vm_object_pip_wakeup(object)

    vm.sched.create(vm_object_deallocate, object, name="exit")
    vm.sched.create(io, name="io")
    vm.sched.run()
    # While the second operation was under way the object was dead, and still had its page.
    assert seen == [("one left", 1, True)]
    assert object.resident_page_count == 0
    assert vm_object_check(vm) == []


@pytest.mark.spec("OBJ-2")
def test_termination_waits_for_busy_pages(vm: VmSystem) -> None:
    object = anonymous(vm, 2)
    m = page(object, 0)
    m.busy_count = PBUSY_LOCKED
    log = []

    def holder() -> None:
        vm.sched.tsleep("work", 0, "work", 1)
        log.append(object.resident_page_count)
        vm_page_wakeup(vm, m)

    vm.sched.create(vm_object_deallocate, object, name="exit")
    vm.sched.create(holder, name="holder")
    vm.sched.run()
    assert log == [1]
    assert object.resident_page_count == 0


@pytest.mark.spec("OBJ-2")
def test_termination_leaves_wired_pages_to_their_owner(vm: VmSystem) -> None:
    object = anonymous(vm, 2)
    before = free_pages(vm)
    m = page(object, 0)
    page(object, 1)
    m.busy_count = PBUSY_LOCKED
    vm_page_wire(vm, m)
    vm_page_wakeup(vm, m)
    vm_object_deallocate(object)
    assert m.object is None
    assert m.wire_count == 1
    assert free_pages(vm) == before - 1


def test_pip_wait_and_underflow(vm: VmSystem) -> None:
    object = anonymous(vm, 1)
    vm_object_pip_wait(object, "nothing")
    with pytest.raises(Panic, match="no paging"):
        vm_object_pip_wakeup(object)


def test_holds_nest(vm: VmSystem) -> None:
    object = anonymous(vm, 1)
    vm_object_hold(object)
    vm_object_hold_shared(object)
    assert object.hold_count == 2
    vm_object_drop(object)
    vm_object_drop(object)
    assert object.hold_count == 0


@pytest.mark.spec("OBJ-4")
def test_pages_are_found_by_range(vm: VmSystem) -> None:
    object = anonymous(vm, 1 << 40)
    far = 1 << 39
    pages = {i: page(object, i) for i in (0, 1, 5, far)}
    assert object.rb_memq == pages

    def indices(start: int, end: int) -> list[int]:
        return sorted(m.pindex for m in vm_object_pages(object, start, end))

    # Neither of these may look at every index of the range, or at every page.
    assert indices(0, 1 << 40) == [0, 1, 5, far]
    assert indices(1, 6) == [1, 5]
    assert indices(2, 5) == []
    assert indices(far, far + 1) == [far]
    vm_object_deallocate(object)


@pytest.mark.spec("OBJ-4")
def test_a_small_range_does_not_visit_the_other_pages(vm: VmSystem) -> None:
    class Counting(dict[int, VmPage]):
        looked_at = 0

        def get(self, key: int, default: object = None) -> VmPage | None:  # type: ignore[override]
            self.looked_at += 1
            return super().get(key)

        def items(self) -> object:  # type: ignore[override]
            raise AssertionError("visits all pages")

    object = anonymous(vm, 100)
    for i in range(50):
        page(object, i)
    object.rb_memq = counting = Counting(object.rb_memq)
    assert len(vm_object_pages(object, 20, 24)) == 4
    assert counting.looked_at == 4


@pytest.mark.spec("OBJ-4")
def test_generation_moves_with_membership(vm: VmSystem) -> None:
    object = anonymous(vm, 4)
    seen = [object.generation]
    page(object, 0)
    seen.append(object.generation)
    page(object, 1)
    seen.append(object.generation)
    vm_object_page_remove(object, 0, 1, False)
    seen.append(object.generation)
    assert len(set(seen)) == 4
    assert owned(object) == []


@pytest.mark.spec("OBJ-4")
def test_the_checker_notices_a_generation_that_stood_still(vm: VmSystem) -> None:
    object = anonymous(vm, 4)
    m = page(object, 0)
    assert owned(object) == []
    del object.rb_memq[0]
    object.rb_memq[1] = m
    m.pindex = 1
    assert any("same generation" in line for line in vm_object_check(vm))


@pytest.mark.spec("OBJ-7")
def test_page_remove(vm: VmSystem) -> None:
    object = anonymous(vm, 10)
    before = free_pages(vm)
    for i in range(10):
        page(object, i)
    vm_object_page_remove(object, 2, 5, False)
    assert sorted(object.rb_memq) == [0, 1, 5, 6, 7, 8, 9]
    assert free_pages(vm) == before - 7
    vm_object_page_remove(object, 6, 0, False)
    assert sorted(object.rb_memq) == [0, 1, 5]
    vm_object_page_remove(object, 0, 0, False)
    assert not object.rb_memq
    assert free_pages(vm) == before
    assert object.paging_in_progress == 0


@pytest.mark.spec("OBJ-7")
def test_page_remove_clean_only_keeps_dirty_pages(vm: VmSystem) -> None:
    object = anonymous(vm, 4)
    page(object, 0, dirty=0)
    page(object, 1, dirty=1)
    page(object, 2, dirty=0)
    vm_object_page_remove(object, 0, 0, True)
    assert sorted(object.rb_memq) == [1]


@pytest.mark.spec("OBJ-7")
def test_page_remove_only_invalidates_wired_pages(vm: VmSystem) -> None:
    object = anonymous(vm, 4)
    m = page(object, 0, dirty=0)
    m.busy_count = PBUSY_LOCKED
    vm_page_wire(vm, m)
    vm_page_wakeup(vm, m)
    vm_object_page_remove(object, 0, 0, True)
    assert object.rb_memq == {0: m}
    assert m.valid == VM_PAGE_BITS_ALL
    vm_object_page_remove(object, 0, 0, False)
    assert object.rb_memq == {0: m}
    assert m.valid == 0
    assert m.busy_count == 0


@pytest.mark.spec("OBJ-7")
def test_page_remove_waits_for_busy_pages_and_takes_new_ones(vm: VmSystem) -> None:
    object = anonymous(vm, 4)
    m = page(object, 0)
    m.busy_count = PBUSY_LOCKED

    def fault() -> None:
        vm.sched.tsleep("work", 0, "work", 1)
        page(object, 1)
        vm_page_wakeup(vm, m)

    vm.sched.create(vm_object_page_remove, object, 0, 4, False, name="remove")
    vm.sched.create(fault, name="fault")
    vm.sched.run()
    assert not object.rb_memq


@pytest.mark.spec("OBJ-8")
def test_coalesce(vm: VmSystem) -> None:
    assert vm_object_coalesce(None, 0, 4096, 4096)

    # The end of the object: it grows, however many owners it has.
    object = anonymous(vm, 4)
    vm_object_reference_quick(object)
    assert vm_object_coalesce(object, 0, 4 << 12, 2 << 12)
    assert object.size == 6
    # Not from the middle of it, when somebody else may have something there.
    assert not vm_object_coalesce(object, 0, 2 << 12, 1 << 12)
    assert object.size == 6
    # A sole owner can, and what an earlier mapping left must not show again.
    vm_object_deallocate(object)
    for i in range(6):
        page(object, i)
    assert vm_object_coalesce(object, 1, 2 << 12, 2 << 12)
    assert sorted(object.rb_memq) == [0, 1, 2, 5]
    assert object.size == 6
    assert vm_object_coalesce(object, 2, 3 << 12, 4 << 12)
    assert object.size == 9
    assert sorted(object.rb_memq) == [0, 1, 2]

    assert not vm_object_coalesce(vm_object_allocate(vm, OBJT_PHYS, 4), 0, 4 << 12, 1 << 12)


@pytest.mark.spec("OBJ-9")
def test_madvise_willneed_and_dontneed(vm: VmSystem) -> None:
    object = anonymous(vm, 600)
    m = page(object, 0)
    m.busy_count = PBUSY_LOCKED
    vm_page_deactivate(vm, m)
    vm_page_wakeup(vm, m)
    assert m.queue - m.pc == PQ_INACTIVE
    vm_object_madvise(object, 0, 40, MADV_WILLNEED)
    assert m.queue - m.pc == PQ_ACTIVE
    m.flags |= PG_REFERENCED
    pages = [page(object, i) for i in range(1, 513)]
    vm_object_madvise(object, 1, 512, MADV_DONTNEED)
    # One page of 32 is left where it is.
    assert sum(p.queue - p.pc == PQ_ACTIVE for p in pages) == 16
    assert sum(p.queue - p.pc == PQ_INACTIVE for p in pages) == 496
    assert m.queue - m.pc == PQ_ACTIVE
    assert owned(object) == []


@pytest.mark.spec("OBJ-9")
def test_madvise_free(vm: VmSystem) -> None:
    object = anonymous(vm, 4)
    m = page(object, 0)
    wired = page(object, 1)
    wired.busy_count = PBUSY_LOCKED
    vm_page_wire(vm, wired)
    vm_page_wakeup(vm, wired)
    object.flags &= ~OBJ_ONEMAPPING
    vm_object_madvise(object, 0, 4, MADV_FREE)
    assert m.dirty == VM_PAGE_BITS_ALL
    object.flags |= OBJ_ONEMAPPING
    vm_object_madvise(object, 0, 4, MADV_FREE)
    assert m.dirty == 0
    assert m.act_count == 0
    assert m.object is object
    assert wired.dirty == VM_PAGE_BITS_ALL
    assert owned(object) == []


@pytest.mark.spec("OBJ-9")
def test_madvise_free_is_not_for_files(vm: VmSystem) -> None:
    object = vm_object_allocate(vm, OBJT_PHYS, 4)
    m = page(object, 0)
    vm_object_madvise(object, 0, 4, MADV_FREE)
    assert m.dirty == VM_PAGE_BITS_ALL
    vm_object_madvise(None, 0, 4, MADV_FREE)


@pytest.mark.spec("OBJ-10")
def test_the_hash_has_every_object(vm: VmSystem) -> None:
    assert len(vm.object_hash) == VMOBJ_HSIZE == 256
    before = {object for bucket in vm.object_hash for object in bucket}
    assert vm.kernel_object in before
    made = [anonymous(vm, 1) for _ in range(1000)]
    assert {object for bucket in vm.object_hash for object in bucket} == before | set(made)
    assert max(len(bucket) for bucket in vm.object_hash) <= 5
    for object in made:
        assert object in vm_object_hash(object)
        vm_object_deallocate(object)
    assert {object for bucket in vm.object_hash for object in bucket} == before


@pytest.mark.spec("OBJ-10")
def test_two_machines_have_their_own_objects(vm: VmSystem) -> None:
    other = make_vm()
    object = anonymous(vm, 1)
    assert not any(object in bucket for bucket in other.object_hash)


def test_objects_start_at_different_colours(vm: VmSystem) -> None:
    assert len({anonymous(vm, 1).pg_color for _ in range(256)}) == 256


@pytest.mark.parametrize(
    ("breakage", "complaint"),
    [
        (vm_object_pip_add, "paging_in_progress"),
        (lambda o: setattr(o, "hold_count", 1), "hold_count"),
        (lambda o: setattr(o, "resident_page_count", 7), "pages resident"),
        (lambda o: setattr(o, "size", 1), "beyond the end"),
        (lambda o: setattr(o.rb_memq[1], "valid", 1), "valid ones"),
        (lambda o: setattr(o.rb_memq[1], "pindex", 2), "believes"),
        (lambda o: setattr(o, "handle", o), "handle"),
        (lambda o: setattr(o, "id", o.id + 1), "bucket"),
        (lambda o: setattr(o, "ref_count", 0), "nobody"),
        (lambda o: setattr(o, "type", OBJT_PHYS), "ONEMAPPING"),
        (lambda o: setattr(o, "type", OBJT_DEAD), "dead"),
        (lambda o: setattr(o, "flags", o.flags | 0x200), "CLEANING"),
    ],
)  # fmt: skip
def test_the_checker_sees(vm: VmSystem, breakage: object, complaint: str) -> None:
    object = anonymous(vm, 4)
    page(object, 1)
    assert owned(object) == []
    breakage(object)  # type: ignore[operator]
    assert any(complaint in line for line in vm_object_check(vm))


def test_set_writeable_dirty(vm: VmSystem) -> None:
    object = anonymous(vm, 1)
    vm_object_set_writeable_dirty(object)
    assert object.flags & OBJ_MIGHTBEDIRTY
