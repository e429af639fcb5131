"""Statistics and their per-CPU halves (vm_meter.py)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.vm.vm_meter import VMSTATS_ADJ_LIMIT, VmStats, VmStatsAdj
from dfvm.vm.vm_page import (
    PQ_ACTIVE,
    VM_ALLOC_NORMAL,
    vm_page_activate,
    vm_page_alloc,
    vm_page_alloc_run,
    vm_page_free,
    vm_page_queue_run,
    vm_page_rollup,
    vm_page_wakeup,
    vm_page_wire,
)
from tests.vm.page_util import alloc, check, make_object, make_vm

pytestmark = pytest.mark.spec("PAGE-13")


def test_the_global_figures_lag_behind_until_the_rollup() -> None:
    vm = make_vm()
    vm_page_rollup(vm)
    free = vm.vmstats.v_free_count
    object = make_object(vm)
    for i in range(10):
        m = alloc(object, i)
        vm_page_activate(vm, m)
        vm_page_wakeup(vm, m)
    vm_page_wire(vm, alloc(object, 10))
    assert vm.vmstats.v_free_count == free
    assert vm.gd.gd_vmstats.v_free_count == free - 11
    assert vm.gd.gd_vmstats_adj.v_free_count == -11
    assert vm.gd.gd_vmstats_adj.v_active_count == 10
    assert vm.gd.gd_vmstats_adj.v_wire_count == 1
    vm_page_rollup(vm)
    assert vm.vmstats.v_free_count == free - 11
    assert all(getattr(vm.gd.gd_vmstats_adj, name) == 0 for name in VmStatsAdj.__slots__)
    check(vm)


@pytest.mark.parametrize("run", [False, True])
def test_an_adjustment_past_the_limit_is_rolled_up_at_once(run: bool) -> None:
    vm = make_vm(32)
    vm_page_rollup(vm)
    free = vm.vmstats.v_free_count
    object = make_object(vm)
    n = 0
    while n < VMSTATS_ADJ_LIMIT:
        if run:
            pages = vm_page_alloc_run(object, n, 16, VM_ALLOC_NORMAL)
            n += len(pages)
            vm_page_queue_run(vm, pages, PQ_ACTIVE)
        else:
            m = alloc(object, n)
            vm_page_activate(vm, m)
            n += 1
    assert vm.gd.gd_vmstats_adj.v_free_count == -VMSTATS_ADJ_LIMIT
    assert vm.gd.gd_vmstats_adj.v_active_count == VMSTATS_ADJ_LIMIT
    assert vm.vmstats.v_free_count == free
    if run:
        [m] = vm_page_alloc_run(object, n, 1, VM_ALLOC_NORMAL)
    else:
        m = alloc(object, n)
    assert vm.vmstats.v_free_count == free - n - 1
    assert vm.gd.gd_vmstats_adj.v_free_count == 0
    vm_page_free(vm, m)
    check(vm)


def test_freeing_rolls_up_too() -> None:
    vm = make_vm(32)
    object = make_object(vm)
    pages = [alloc(object, i) for i in range(VMSTATS_ADJ_LIMIT + 1)]
    vm_page_rollup(vm)
    free = vm.vmstats.v_free_count
    for m in pages:
        vm_page_free(vm, m)
    assert vm.vmstats.v_free_count == free + len(pages)
    check(vm)


def test_wiring_rolls_up_too() -> None:
    vm = make_vm(32)
    object = make_object(vm)
    vm_page_rollup(vm)
    wired = vm.vmstats.v_wire_count
    for i in range(VMSTATS_ADJ_LIMIT):
        vm_page_wire(vm, alloc(object, i))
    assert vm.gd.gd_vmstats.v_wire_count == wired + VMSTATS_ADJ_LIMIT
    vm_page_wire(vm, alloc(object, VMSTATS_ADJ_LIMIT))
    assert abs(vm.gd.gd_vmstats_adj.v_wire_count) <= 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 700), st.booleans()), max_size=12))
def test_own_figures_are_global_figures_plus_adjustment(steps: list[tuple[int, bool]]) -> None:
    vm = make_vm(16)
    object = make_object(vm)
    pages = []
    for i, (n, rollup) in enumerate(steps):
        for j in range(n):
            m = vm_page_alloc(vm, object, i * 1000 + j, VM_ALLOC_NORMAL)
            if m is not None:
                pages.append(m)
        for m in pages[: n // 2]:
            vm_page_free(vm, m)
        del pages[: n // 2]
        if rollup:
            vm_page_rollup(vm)
        own, adj = vm.gd.gd_vmstats, vm.gd.gd_vmstats_adj
        for name in VmStatsAdj.__slots__:
            assert getattr(own, name) == getattr(vm.vmstats, name) + getattr(adj, name)
            assert abs(getattr(adj, name)) <= VMSTATS_ADJ_LIMIT


def test_events_are_rolled_up_and_kept() -> None:
    vm = make_vm()
    vm_page_rollup(vm)
    before = vm.vmmeter.v_vm_faults
    vm.gd.gd_cnt.v_vm_faults += 3
    assert vm.vmmeter.v_vm_faults == before
    vm_page_rollup(vm)
    vm.gd.gd_cnt.v_vm_faults += 2
    vm_page_rollup(vm)
    assert vm.vmmeter.v_vm_faults == before + 5
    assert vm.gd.gd_cnt.v_vm_faults == 0


def test_every_cpu_knows_the_marks() -> None:
    vm = make_vm()
    for name in VmStats.__slots__:
        if name not in VmStatsAdj.__slots__:
            assert getattr(vm.gd.gd_vmstats, name) == getattr(vm.vmstats, name)
