"""Busy pages (vm_page_busy.py), and what needs them busy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dfvm.lwkt.panic import Panic
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PBUSY_MASK,
    PBUSY_WANTED,
    PG_REFERENCED,
    VM_ALLOC_NORMAL,
    VM_ALLOC_RETRY,
    VmPage,
    vm_page_activate,
    vm_page_busy_try,
    vm_page_busy_wait,
    vm_page_free,
    vm_page_grab,
    vm_page_insert,
    vm_page_io_finish,
    vm_page_io_start,
    vm_page_lookup,
    vm_page_lookup_busy_try,
    vm_page_lookup_busy_wait,
    vm_page_remove,
    vm_page_rename,
    vm_page_sbusy_drop,
    vm_page_sbusy_try,
    vm_page_set_invalid,
    vm_page_set_valid,
    vm_page_set_validdirty,
    vm_page_sleep_busy,
    vm_page_unwire,
    vm_page_wakeup,
    vm_page_wire,
)
from tests.vm.page_util import alloc, check, make_object, make_vm

pytestmark = pytest.mark.spec("PAGE-2")


def test_hard_busy_excludes_everyone() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    assert m.busy_count == PBUSY_LOCKED
    assert vm_page_busy_try(vm, m, False)
    assert vm_page_busy_try(vm, m, True)
    assert vm_page_sbusy_try(vm, m)
    vm_page_wakeup(vm, m)
    assert m.busy_count == 0


def test_soft_busy_counts_and_excludes_hard_busy_only() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    vm_page_wakeup(vm, m)
    assert not vm_page_sbusy_try(vm, m)
    assert not vm_page_sbusy_try(vm, m)
    assert m.busy_count & PBUSY_MASK == 2
    assert vm_page_busy_try(vm, m, True)
    vm_page_sbusy_drop(vm, m)
    assert vm_page_busy_try(vm, m, True)
    vm_page_sbusy_drop(vm, m)
    assert not vm_page_busy_try(vm, m, True)


def test_io_turns_hard_busy_into_soft_busy() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    vm_page_io_start(vm, m)
    vm_page_wakeup(vm, m)
    assert m.busy_count == 1
    assert not vm_page_busy_try(vm, m, False)
    vm_page_wakeup(vm, m)
    vm_page_io_finish(vm, m)
    assert m.busy_count == 0
    with pytest.raises(Panic):
        vm_page_io_finish(vm, m)
    with pytest.raises(Panic):
        vm_page_io_start(vm, m)


def test_waiter_sets_wanted_sleeps_and_gets_the_page() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    log: list[str] = []

    def waiter() -> None:
        log.append("wait")
        vm_page_busy_wait(vm, m, True, "tstbsy")
        log.append("got")
        vm_page_wakeup(vm, m)

    def owner() -> None:
        assert m.busy_count == PBUSY_LOCKED | PBUSY_WANTED
        assert m.flags & PG_REFERENCED
        log.append("release")
        vm_page_wakeup(vm, m)

    vm.sched.create(waiter)
    vm.sched.create(owner)
    vm.sched.run()
    assert log == ["wait", "release", "got"]
    assert m.busy_count == 0


def test_last_soft_busy_wakes_a_hard_waiter() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    vm_page_wakeup(vm, m)
    vm_page_sbusy_try(vm, m)
    vm_page_sbusy_try(vm, m)
    got: list[int] = []

    def waiter() -> None:
        vm_page_busy_wait(vm, m, True, "tstbsy")
        got.append(m.busy_count)
        vm_page_wakeup(vm, m)

    def reader() -> None:
        vm_page_sbusy_drop(vm, m)
        vm.sched.yield_()
        assert not got
        vm_page_sbusy_drop(vm, m)

    vm.sched.create(waiter)
    vm.sched.create(reader)
    vm.sched.run()
    assert got == [PBUSY_LOCKED]


def test_a_page_that_leaves_while_it_is_waited_for_is_looked_up_again() -> None:
    vm = make_vm()
    object = make_object(vm)
    first = alloc(object, 7)
    seen: list[VmPage | None] = []

    def waiter(pindex: int) -> None:
        m = vm_page_lookup_busy_wait(object, pindex, True, "tstlkp")
        seen.append(m)
        if m is not None:
            vm_page_wakeup(vm, m)

    def owner() -> None:
        vm_page_free(vm, first)
        second = alloc(object, 7)
        vm_page_activate(vm, second)
        seen.append(second)
        vm_page_wakeup(vm, second)

    vm.sched.create(waiter, 7)
    vm.sched.create(owner)
    vm.sched.run()
    assert len(seen) == 2
    assert seen[0] is seen[1]

    third = alloc(object, 8)
    seen.clear()
    vm.sched.create(waiter, 8)
    vm.sched.create(vm_page_free, vm, third)
    vm.sched.run()
    assert seen == [None]
    check(vm)


def test_lookup_busy_try_reports_busy_pages() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = alloc(object, 1)
    assert vm_page_lookup(object, 1) is m
    assert vm_page_lookup_busy_try(object, 2, True) == (None, False)
    assert vm_page_lookup_busy_try(object, 1, True) == (m, True)
    vm_page_wakeup(vm, m)
    assert not vm_page_sbusy_try(vm, m)
    assert vm_page_lookup_busy_try(object, 1, True) == (m, True)
    assert vm_page_lookup_busy_try(object, 1, False) == (m, False)
    vm_page_wakeup(vm, m)
    vm_page_sbusy_drop(vm, m)


def test_sleep_busy_sleeps_once_and_busies_nothing() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    result: list[bool] = []
    vm.sched.create(lambda: result.append(vm_page_sleep_busy(vm, m, True, "tstslp")))
    vm.sched.create(vm_page_wakeup, vm, m)
    vm.sched.run()
    assert result == [True]
    assert m.busy_count == 0
    assert not vm_page_sleep_busy(vm, m, True, "tstslp")


def test_grab_waits_for_a_busy_page_only_with_retry() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = alloc(object, 5)
    got: list[VmPage | None] = []

    def grab(flags: int) -> None:
        got.append(vm_page_grab(object, 5, flags))

    def owner() -> None:
        vm_page_wakeup(vm, m)

    vm.sched.create(grab, VM_ALLOC_NORMAL)
    vm.sched.create(owner)
    vm.sched.run()
    assert got == [None]
    vm_page_busy_try(vm, m, True)
    vm.sched.create(grab, VM_ALLOC_NORMAL | VM_ALLOC_RETRY)
    vm.sched.create(owner)
    vm.sched.run()
    assert got == [None, m]
    assert m.busy_count == PBUSY_LOCKED


def _unwire_unbusied(vm: VmSystem, m: VmPage) -> None:
    vm_page_busy_try(vm, m, True)
    vm_page_wire(vm, m)
    vm_page_wakeup(vm, m)
    vm_page_unwire(vm, m, False)


@pytest.mark.parametrize(
    "change",
    [
        vm_page_wakeup,
        vm_page_remove,
        vm_page_free,
        vm_page_wire,
        lambda vm, m: vm_page_rename(m, make_object(vm), 0),
        lambda vm, m: vm_page_set_invalid(vm, m, 0, 512),
        _unwire_unbusied,
    ],
)
def test_changing_a_page_that_is_not_busy_panics(
    change: Callable[[VmSystem, VmPage], object],
) -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    vm_page_wakeup(vm, m)
    with pytest.raises(Panic):
        change(vm, m)


@pytest.mark.parametrize("change", [vm_page_set_valid, vm_page_set_validdirty])
def test_making_a_page_valid_needs_hard_busy(change: Callable[..., None]) -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    m.valid = 0
    vm_page_wakeup(vm, m)
    with pytest.raises(Panic):
        change(vm, m, 0, 512)


def test_a_soft_busied_page_cannot_be_freed() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    vm_page_io_start(vm, m)
    with pytest.raises(Panic):
        vm_page_free(vm, m)


def test_insert_refuses_what_is_taken() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = alloc(object, 0)
    with pytest.raises(Panic):
        vm_page_insert(m, object, 1)
    generation = object.generation
    vm_page_remove(vm, m)
    assert object.generation > generation
    alloc(object, 0)
    assert not vm_page_insert(m, object, 0)
    assert m.object is None
    assert vm_page_insert(m, object, 9)
    assert object.rb_memq[9] is m
    assert object.resident_page_count == 2
    check(vm)
