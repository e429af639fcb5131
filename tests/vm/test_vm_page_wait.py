"""Waiting for memory, and getting some back (vm_page_wait.py, vm_page2.py, vm_pageout.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfvm.lwkt.panic import Panic
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_object import VmObject
from dfvm.vm.vm_page import (
    PQ_CACHE,
    PQ_FREE,
    VM_ALLOC_NORMAL,
    VM_ALLOC_QUICK,
    VM_ALLOC_RETRY,
    VM_ALLOC_SYSTEM,
    VM_PAGE_BITS_ALL,
    VmPage,
    vm_page_activate,
    vm_page_alloc,
    vm_page_busy_try,
    vm_page_cache,
    vm_page_deactivate,
    vm_page_dirty,
    vm_page_free,
    vm_page_grab,
    vm_page_hold,
    vm_page_wakeup,
    vm_wait,
    vm_wait_nominal,
    vm_wait_pfault,
)
from dfvm.vm.vm_page2 import (
    vm_paging_inactive,
    vm_paging_inactive_count,
    vm_paging_min,
    vm_paging_min_dnc,
    vm_paging_min_nice,
    vm_paging_severe,
    vm_paging_start,
    vm_paging_target1,
    vm_paging_target1_count,
    vm_paging_target2,
    vm_paging_target2_count,
    vm_paging_wait,
)
from dfvm.vm.vm_page_wait import VM_PAGE_FREE_HYSTERESIS
from dfvm.vm.vm_pageout import vm_pageout_reclaim
from dfvm.vm.vmspace import Vmspace, vmspace_alloc
from tests.vm.page_util import alloc, check, make_object, make_vm
from tests.vm.vnode_stub import StubVnode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfvm.vm.vm_proc import VmProc


class Proc:
    """A process as the VM sees it."""

    def __init__(self, vm: VmSystem, nice: int = 0) -> None:
        self.p_vmspace: Vmspace = vmspace_alloc(vm)
        self.p_nice = nice
        self.p_lowmemkill = False
        self.p_system = False
        self.p_oom_score_adj = 0
        self.p_minflt = 0
        self.p_majflt = 0

    def p_rlimit(self, which: int) -> int:
        return (1 << 64) - 1


class Hooks:
    """The process layer: processes that, when killed, free an object's pages."""

    def __init__(self, vm: VmSystem) -> None:
        self.vm = vm
        self.procs: list[Proc] = []
        self.killed: list[VmProc] = []

    def allproc(self) -> Iterable[VmProc]:
        return list(self.procs)

    def kill_for_memory(self, victim: VmProc) -> None:
        victim.p_lowmemkill = True
        self.killed.append(victim)


def _fill(vm: VmSystem, leave: int) -> list[VmPage]:
    """Take dirty, active, anonymous pages until `leave` are free."""
    object = make_object(vm)
    pages: list[VmPage] = []
    while vm.gd.gd_vmstats.v_free_count > leave:
        m = alloc(object, len(pages), VM_ALLOC_SYSTEM)
        vm_page_dirty(vm, m)
        vm_page_activate(vm, m)
        vm_page_wakeup(vm, m)
        pages.append(m)
    return pages


def _give_back(vm: VmSystem, pages: list[VmPage], n: int) -> None:
    for _ in range(n):
        m = pages.pop()
        vm_page_busy_try(vm, m, True)
        vm_page_free(vm, m)


# -- how short is it? ---------------------------------------------------------------------------


@pytest.mark.parametrize("mib", [2, 16, 64, 1024, 16384])
def test_thresholds_are_in_order(mib: int) -> None:
    s = make_vm(mib).gd.gd_vmstats
    order = (
        s.v_interrupt_free_min,
        s.v_free_reserved,
        s.v_free_severe,
        s.v_free_min,
        s.v_paging_wait,
        s.v_paging_start,
        s.v_paging_target1,
        s.v_paging_target2,
    )
    assert list(order) == sorted(set(order))
    assert s.v_free_min == 64 + s.v_page_count // 200
    assert order[4:] == tuple(int(x * s.v_free_min) for x in (3, 3.5, 4, 5))


def test_each_test_trips_at_its_own_mark() -> None:
    vm = make_vm(64)
    s = vm.gd.gd_vmstats
    for test, mark in (
        (vm_paging_severe, s.v_free_severe),
        (vm_paging_min, s.v_free_min),
        (vm_paging_wait, s.v_paging_wait),
        (lambda vm: vm_paging_start(vm, 0), s.v_paging_start),
        (vm_paging_target1, s.v_paging_target1),
        (vm_paging_target2, s.v_paging_target2),
    ):
        s.v_free_count = mark
        s.v_cache_count = 0
        assert not test(vm)
        s.v_free_count = mark - 1
        assert test(vm)
        s.v_cache_count = 1
        if test is not vm_paging_severe or s.v_free_count >= s.v_free_reserved:
            assert not test(vm)
        # Cached pages don't make up for an empty free queue.
        s.v_free_count = s.v_free_reserved - 1
        s.v_cache_count = 1 << 20
        assert test(vm)
    s.v_free_count = s.v_free_min
    s.v_cache_count = 0
    assert vm_paging_min_dnc(vm, 1)
    assert vm_paging_target1_count(vm) == s.v_paging_target1 - s.v_free_min
    assert vm_paging_target2_count(vm) == s.v_paging_target2 - s.v_free_min
    s.v_free_count = s.v_free_min + s.v_inactive_target - s.v_inactive_count
    assert not vm_paging_inactive(vm)
    s.v_free_count -= 3
    assert vm_paging_inactive_count(vm) == 3
    assert vm_paging_inactive(vm)


def test_nicer_processes_are_short_of_memory_earlier() -> None:
    vm = make_vm(64)
    s = vm.gd.gd_vmstats

    def mark(nice: int) -> int:
        """The least number of free pages that is enough."""
        s.v_free_count = s.v_free_min
        while vm_paging_min_nice(vm, nice):
            s.v_free_count += 1
        return s.v_free_count

    marks = [mark(nice) for nice in range(-20, 21) if nice != 0]
    assert marks == sorted(marks)
    assert marks[0] == mark(0) == s.v_free_min
    assert s.v_free_min < marks[-1] < (s.v_free_min + s.v_paging_wait) // 2 + 1


# -- waiting ------------------------------------------------------------------------------------


@pytest.mark.spec("PAGE-14")
def test_with_enough_memory_nobody_waits() -> None:
    vm = make_vm()
    before = vm.sched.ticks
    vm_wait(vm)
    vm_wait_pfault(vm, "pfault")
    vm_wait_nominal(vm)
    assert vm.sched.ticks - before < 50


@pytest.mark.spec("PAGE-14")
@pytest.mark.spec("PAGE-7")
def test_waiters_are_woken_past_the_hysteresis() -> None:
    vm = make_vm()
    vm.hooks = hooks = Hooks(vm)
    hooks.procs.append(Proc(vm))
    s = vm.gd.gd_vmstats
    pages = _fill(vm, s.v_free_min - 1)
    log: list[str] = []

    def waiter() -> None:
        vm_wait_pfault(vm, "pfault", 1000)
        log.append("woken")

    def freer() -> None:
        assert vm.pages.pages_waiting == 1
        _give_back(vm, pages, VM_PAGE_FREE_HYSTERESIS)
        assert vm.pages.pages_waiting == 1  # enough to go on, but it would be back at once
        _give_back(vm, pages, 1)
        assert vm.pages.pages_waiting == 0
        log.append("freed")

    vm.sched.create(waiter)
    vm.sched.create(freer)
    vm.sched.run()
    assert log == ["freed", "woken"]
    assert vm.gd.gd_cnt.v_ppwakeups == 1
    check(vm)


@pytest.mark.spec("PAGE-14")
def test_a_nice_process_waits_where_others_go_on() -> None:
    vm = make_vm()
    vm.hooks = hooks = Hooks(vm)
    victim = Proc(vm)
    hooks.procs.append(victim)
    s = vm.gd.gd_vmstats
    pages = _fill(vm, s.v_free_min + 10)
    log: list[int] = []

    def fault(nice: int) -> None:
        vm.sched.curthread.td_proc = Proc(vm, nice)
        vm_wait_pfault(vm, "pfault", 1000)
        log.append(nice)

    def freer() -> None:
        assert log == [0, -20]
        _give_back(vm, pages, s.v_paging_wait)

    for nice in (0, 20, -20):
        vm.sched.create(fault, nice)
    vm.sched.create(freer)
    vm.sched.run()
    assert log == [0, -20, 20]


@pytest.mark.spec("PAGE-14")
def test_vm_wait_counts_a_process_as_one_nicer() -> None:
    """At a level where nice 0 may go on, vm_wait (nice + 1) sleeps, and vm_wait_pfault does not."""
    vm = make_vm()
    vm.hooks = hooks = Hooks(vm)
    hooks.procs.append(Proc(vm))
    s = vm.gd.gd_vmstats
    proc = Proc(vm)
    _fill(vm, s.v_free_min)
    slept: dict[str, bool] = {}

    def io() -> None:
        vm.sched.curthread.td_proc = proc
        vm_wait_pfault(vm, "pfault")
        slept["pfault"] = vm.pages.pages_waiting > 0
        vm_wait(vm, 2)
        slept["wait"] = vm.pages.pages_waiting > 0

    vm.sched.create(io)
    vm.sched.run()
    assert slept == {"pfault": False, "wait": True}


@pytest.mark.spec("PAGE-14")
def test_a_process_that_is_being_killed_for_memory_does_not_wait() -> None:
    vm = make_vm()
    _fill(vm, 60)
    proc = Proc(vm)
    proc.p_lowmemkill = True
    vm.sched.curthread.td_proc = proc
    before = vm.sched.uptime_ns
    vm_wait_pfault(vm, "pfault")
    assert not vm_wait(vm)
    vm_wait_nominal(vm)
    assert vm.sched.uptime_ns - before < 500_000_000


@pytest.mark.spec("PAGE-14")
def test_vm_wait_nominal_lasts_until_memory_is_not_short() -> None:
    vm = make_vm()
    vm.hooks = hooks = Hooks(vm)
    hooks.procs.append(Proc(vm))
    s = vm.gd.gd_vmstats
    pages = _fill(vm, s.v_free_min - 50)
    done: list[bool] = []

    def kernel() -> None:
        vm_wait_nominal(vm)
        done.append(vm_paging_min(vm))

    def freer() -> None:
        while vm_paging_min(vm):
            assert not done
            _give_back(vm, pages, 20)
            vm.sched.yield_()
        _give_back(vm, pages, VM_PAGE_FREE_HYSTERESIS)

    vm.sched.create(kernel)
    vm.sched.create(freer)
    vm.sched.run()
    assert done == [False]


@pytest.mark.spec("PAGE-14")
def test_grab_with_retry_waits_for_memory() -> None:
    vm = make_vm()
    vm.hooks = hooks = Hooks(vm)
    hooks.procs.append(Proc(vm))
    s = vm.gd.gd_vmstats
    pages = _fill(vm, s.v_free_reserved)
    object = make_object(vm)
    got: list[VmPage | None] = []
    vm.sched.create(lambda: got.append(vm_page_grab(object, 0, VM_ALLOC_NORMAL | VM_ALLOC_RETRY)))
    vm.sched.create(_give_back, vm, pages, 200)
    vm.sched.run()
    assert got[0] is object.rb_memq[0]


# -- reclaiming ---------------------------------------------------------------------------------


def _file(vm: VmSystem, npages: int) -> tuple[StubVnode, VmObject]:
    from dfvm.vm.pager.vnode_pager import vnode_pager_alloc

    vp = StubVnode(b"x" * (npages * 4096))
    return vp, vnode_pager_alloc(vm, vp, npages * 4096)


def _file_page(object: VmObject, pindex: int) -> VmPage:
    m = alloc(object, pindex)
    vm_page_deactivate(object.vm, m)
    return m


def test_reclaim_caches_clean_file_pages_and_writes_dirty_ones() -> None:
    vm = make_vm()
    vp, object = _file(vm, 8)
    clean, dirty, active, held = (_file_page(object, i) for i in range(4))
    vm.ram.mem[dirty.phys_addr : dirty.phys_addr + 4096] = b"y" * 4096
    vm_page_dirty(vm, dirty)
    vm_page_activate(vm, active)
    vm_page_hold(vm, held)
    for m in (clean, dirty, active, held):
        vm_page_wakeup(vm, m)
    assert vm_pageout_reclaim(vm, 100) == 3
    assert [m.queue - m.pc == PQ_CACHE for m in (clean, dirty, active, held)] == [True] * 3 + [
        False
    ]
    assert vp.storage[4096:8192] == b"y" * 4096
    assert dirty.dirty == 0
    check(vm)


def test_reclaim_takes_inactive_pages_first_and_no_more_than_wanted() -> None:
    vm = make_vm()
    _, object = _file(vm, 8)
    pages = [_file_page(object, i) for i in range(4)]
    vm_page_activate(vm, pages[0])
    for m in pages:
        vm_page_wakeup(vm, m)
    assert vm_pageout_reclaim(vm, 2) == 2
    assert vm.gd.gd_vmstats.v_cache_count == 2
    assert pages[0].queue - pages[0].pc != PQ_CACHE
    check(vm)


def test_reclaim_leaves_what_it_has_no_place_for() -> None:
    vm = make_vm()
    anonymous = make_object(vm)
    dirty, untouched = alloc(anonymous, 0), alloc(anonymous, 1)
    vm_page_dirty(vm, dirty)
    vp, object = _file(vm, 8)
    bad = _file_page(object, 0)
    vm_page_dirty(vm, bad)
    vp.bad.add(0)
    for m in (dirty, untouched, bad):
        vm_page_deactivate(vm, m)
        vm_page_wakeup(vm, m)
    assert vm_pageout_reclaim(vm, 100) == 1
    assert untouched.queue - untouched.pc == PQ_FREE  # never written to: zero, as before
    assert dirty.object is anonymous
    assert (bad.object, bad.dirty) == (object, VM_PAGE_BITS_ALL)
    check(vm)


def test_wait_gets_by_with_what_can_be_reclaimed() -> None:
    vm = make_vm()
    s = vm.gd.gd_vmstats
    _, object = _file(vm, 4096)
    for i in range(400):
        vm_page_wakeup(vm, _file_page(object, i))
    pages = _fill(vm, s.v_free_reserved + 1)
    vm_wait_pfault(vm, "pfault")  # no hooks: to kill somebody would be a panic
    assert s.v_free_count + s.v_cache_count >= s.v_free_min
    m = vm_page_alloc(vm, make_object(vm), 0, VM_ALLOC_NORMAL)
    assert m is not None
    assert len(pages) > 0
    check(vm)


def test_wait_turns_cached_pages_into_free_ones_when_the_reserve_is_touched() -> None:
    """Nothing is dirty and plenty is cached, but the free queue alone is below its reserve, where
    every fault waits: that is no reason to kill anybody."""
    vm = make_vm()
    s = vm.gd.gd_vmstats
    _, object = _file(vm, 4096)
    for i in range(s.v_paging_target2):
        m = _file_page(object, i)
        vm_page_wakeup(vm, m)
    assert vm_pageout_reclaim(vm, s.v_paging_target2) == s.v_paging_target2
    _fill(vm, s.v_free_reserved - 1)
    assert vm_paging_min(vm)
    vm_wait_pfault(vm, "pfault")  # no hooks: to kill somebody would be a panic
    assert s.v_free_count >= (s.v_paging_start + s.v_paging_target2) // 2
    assert s.v_free_count + s.v_cache_count >= s.v_paging_target2
    check(vm)


# -- the end of somebody ------------------------------------------------------------------------


def _use(proc: Proc, object: VmObject) -> None:
    """Map `object` in the space of `proc`."""
    from dfvm.vm.vm import VM_PROT_ALL, VM_SUBSYS_MMAP
    from dfvm.vm.vm_map import VM_MAPTYPE_NORMAL, vm_map_find

    rv, _ = vm_map_find(
        proc.p_vmspace.vm_map, object, 0, 0x100000, object.size << 12, 4096, True,
        VM_MAPTYPE_NORMAL, VM_SUBSYS_MMAP, VM_PROT_ALL, VM_PROT_ALL, 0,
    )  # fmt: skip
    assert rv == 0


def test_oom_kills_the_largest_process_once_a_second_and_spares_the_system() -> None:
    vm = make_vm(16)
    vm.hooks = hooks = Hooks(vm)
    small, large, system = Proc(vm), Proc(vm), Proc(vm)
    system.p_system = True
    hooks.procs += [small, large, system]
    for proc, n in ((small, 10), (large, 300), (system, 600)):
        object = make_object(vm, 1024)
        _use(proc, object)
        for i in range(n):
            m = alloc(object, i)
            vm_page_dirty(vm, m)
            vm_page_activate(vm, m)
            vm_page_wakeup(vm, m)
    _fill(vm, 60)
    for _ in range(3):
        vm_wait(vm, 1)
    assert hooks.killed == [large]
    vm.pages.oom_time -= vm.sched.hz
    vm_wait(vm, 1)
    assert hooks.killed == [large, small]
    # Both are on their way out: wait for them, however long it takes.
    vm.pages.oom_time -= vm.sched.hz
    vm_wait(vm, 1)
    assert hooks.killed == [large, small]
    hooks.procs = [system]
    with pytest.raises(Panic, match="no process to kill"):
        vm_wait(vm, 1)


def test_out_of_memory_before_there_are_processes_is_a_panic() -> None:
    vm = make_vm()
    _fill(vm, 60)
    with pytest.raises(Panic, match="out of memory"):
        vm_wait(vm)


def test_a_victim_that_waits_for_memory_itself_goes_on() -> None:
    vm = make_vm()
    vm.hooks = hooks = Hooks(vm)
    victim = Proc(vm)
    other = Proc(vm)
    hooks.procs += [victim]
    _fill(vm, 60)
    log: list[str] = []

    def wait(name: str, proc: Proc) -> None:
        vm.sched.curthread.td_proc = proc
        vm_wait_pfault(vm, "pfault", 3)
        log.append(name)

    vm.sched.create(wait, "victim", victim)
    vm.sched.create(wait, "other", other)
    vm.sched.run(until=lambda: bool(log))
    assert log == ["victim"]
    assert hooks.killed == [victim]


def test_cache_wakes_waiters_too() -> None:
    vm = make_vm()
    vm.hooks = hooks = Hooks(vm)
    hooks.procs.append(Proc(vm))
    s = vm.gd.gd_vmstats
    _, object = _file(vm, 4096)
    clean = []
    for i in range(VM_PAGE_FREE_HYSTERESIS + 2):
        m = _file_page(object, i)
        vm_page_hold(vm, m)  # out of reach for the waiter's own reclaiming
        clean.append(m)
        vm_page_wakeup(vm, m)
    _fill(vm, s.v_free_min - 1)
    done: list[int] = []

    def waiter() -> None:
        vm_wait_pfault(vm, "pfault", 1000)
        done.append(s.v_cache_count)

    def cacher() -> None:
        for m in clean:
            m.hold_count = 0
            vm_page_busy_try(vm, m, True)
            vm_page_cache(vm, m)

    vm.sched.create(waiter)
    vm.sched.create(cacher)
    vm.sched.run()
    assert done == [len(clean)]


def test_quick_leaves_cached_pages_for_those_who_wait() -> None:
    vm = make_vm()
    s = vm.gd.gd_vmstats
    _, object = _file(vm, 4096)
    vm_page_cache(vm, alloc(object, 0))
    _fill(vm, s.v_free_reserved)
    assert vm_page_alloc(vm, None, 0, VM_ALLOC_QUICK) is None
    assert vm_page_alloc(vm, None, 0, VM_ALLOC_NORMAL) is not None
