"""Allocating and freeing (vm_page_alloc.py)."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dfvm.lwkt.panic import Panic
from dfvm.vm.vm import VM_MEMATTR_DEFAULT, VM_MEMATTR_UNCACHEABLE
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_object import OBJT_VNODE
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PG_MAPPED,
    PG_NEED_COMMIT,
    PG_REFERENCED,
    PQ_ACTIVE,
    PQ_CACHE,
    PQ_FREE,
    PQ_HOLD,
    PQ_INACTIVE,
    VM_ALLOC_CPU,
    VM_ALLOC_FORCE_ZERO,
    VM_ALLOC_INTERRUPT,
    VM_ALLOC_NORMAL,
    VM_ALLOC_NULL_OK,
    VM_ALLOC_QUICK,
    VM_ALLOC_RETRY,
    VM_ALLOC_SYSTEM,
    VM_ALLOC_USE_GD,
    VM_ALLOC_ZERO,
    VM_PAGE_BITS_ALL,
    VmPage,
    page_color,
    vm_page_activate,
    vm_page_alloc,
    vm_page_alloc_run,
    vm_page_alloczwq,
    vm_page_busy_try,
    vm_page_cache,
    vm_page_deactivate,
    vm_page_dirty,
    vm_page_free,
    vm_page_freezwq,
    vm_page_grab,
    vm_page_hold,
    vm_page_queue_run,
    vm_page_startup,
    vm_page_try_to_free,
    vm_page_unhold,
    vm_page_unwire,
    vm_page_wakeup,
    vm_page_wire,
)
from tests.vm.page_util import alloc, check, make_object, make_vm


def _drain(vm: VmSystem, page_req: int) -> list[VmPage]:
    """Allocate until there is no more."""
    object = make_object(vm)
    got: list[VmPage] = []
    for i in count():
        m = vm_page_alloc(vm, object, i, page_req)
        if m is None:
            return got
        got.append(m)
    raise AssertionError


# -- classes ----------------------------------------------------------------------------------


@pytest.mark.spec("PAGE-4")
@pytest.mark.parametrize("page_req", [VM_ALLOC_NORMAL, VM_ALLOC_QUICK])
def test_normal_and_quick_stop_at_the_reserve(page_req: int) -> None:
    vm = make_vm()
    _drain(vm, page_req)
    assert vm.gd.gd_vmstats.v_free_count == vm.gd.gd_vmstats.v_free_reserved
    check(vm)


@pytest.mark.spec("PAGE-4")
def test_system_goes_on_to_the_interrupt_reserve_and_interrupt_to_the_end() -> None:
    vm = make_vm()
    own = vm.gd.gd_vmstats
    _drain(vm, VM_ALLOC_SYSTEM)
    assert own.v_free_count == own.v_interrupt_free_min
    _drain(vm, VM_ALLOC_NORMAL)
    assert own.v_free_count == own.v_interrupt_free_min
    _drain(vm, VM_ALLOC_INTERRUPT)
    assert own.v_free_count == 0
    check(vm)


def _cached(vm: VmSystem, n: int) -> list[VmPage]:
    """`n` pages on the cache queue."""
    object = make_object(vm, type=OBJT_VNODE)
    pages = [alloc(object, i) for i in range(n)]
    for m in pages:
        vm_page_cache(vm, m)
    return pages


@pytest.mark.spec("PAGE-4")
def test_normal_takes_clean_pages_from_the_cache_and_quick_does_not() -> None:
    vm = make_vm()
    own = vm.gd.gd_vmstats
    pages = _cached(vm, 50)
    file = pages[0].object
    _drain(vm, VM_ALLOC_QUICK)
    assert own.v_free_count == own.v_free_reserved
    assert own.v_cache_count == 50
    got = _drain(vm, VM_ALLOC_NORMAL)
    assert len(got) == 50
    assert all(m.object is not file for m in pages)
    assert own.v_cache_count == 0
    assert own.v_free_count == own.v_free_reserved
    check(vm)


@pytest.mark.spec("PAGE-4")
def test_system_leaves_the_reserve_alone_while_the_cache_can_help() -> None:
    vm = make_vm()
    own = vm.gd.gd_vmstats
    _cached(vm, 5)
    _drain(vm, VM_ALLOC_QUICK)
    object = make_object(vm)
    for i in range(5):
        alloc(object, i, VM_ALLOC_NORMAL | VM_ALLOC_SYSTEM)
        assert own.v_free_count == own.v_free_reserved
        assert own.v_cache_count == 4 - i
    alloc(object, 5, VM_ALLOC_NORMAL | VM_ALLOC_SYSTEM)
    assert own.v_free_count == own.v_free_reserved - 1


@pytest.mark.spec("PAGE-4")
def test_cached_pages_in_use_are_deactivated_not_taken() -> None:
    vm = make_vm()
    held, busied, dirty, commit = _cached(vm, 4)
    vm_page_hold(vm, held)
    vm_page_busy_try(vm, busied, True)
    dirty.dirty = 1
    commit.flags |= PG_NEED_COMMIT
    _drain(vm, VM_ALLOC_NORMAL)
    for m in (held, busied, dirty, commit):
        assert m.queue - m.pc == PQ_INACTIVE
    assert vm.gd.gd_vmstats.v_cache_count == 0
    check(vm)


@pytest.mark.spec("PAGE-4")
def test_an_allocation_says_what_class_it_is_of() -> None:
    vm = make_vm()
    _drain(vm, VM_ALLOC_NORMAL)
    with pytest.raises(Panic):
        vm_page_alloc(vm, None, 0, VM_ALLOC_ZERO)


@pytest.mark.spec("PAGE-4")
def test_zero_returns_zeroed_memory_whatever_was_there() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = alloc(object, 0)
    pa = m.phys_addr
    vm.ram.mem[pa : pa + 4096] = b"\xaa" * 4096
    vm_page_free(vm, m)
    again = alloc(object, 0, VM_ALLOC_NORMAL)
    assert again is m
    assert vm.ram.mem[pa] == 0xAA
    vm_page_free(vm, m)
    again = alloc(object, 0, VM_ALLOC_NORMAL | VM_ALLOC_ZERO)
    assert again is m
    assert bytes(vm.ram.mem[pa : pa + 4096]) == bytes(4096)


@pytest.mark.spec("PAGE-4")
def test_a_frame_that_was_never_used_is_not_zeroed_again() -> None:
    vm = make_vm()
    zeroed = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            zeroed.append(name)
            raise AssertionError(name)

    object = make_object(vm)
    vm.ram = Watched()  # type: ignore[assignment]
    m = vm_page_alloc(vm, object, 0, VM_ALLOC_NORMAL | VM_ALLOC_ZERO)
    assert m is not None
    assert not zeroed
    assert vm.gd.gd_cnt.v_ozfod >= 1


@pytest.mark.spec("PAGE-4")
def test_zeroing_on_the_slow_path() -> None:
    vm = make_vm()
    pages = _drain(vm, VM_ALLOC_NORMAL)
    for m in pages[:40]:
        vm.ram.mem[m.phys_addr] = 1
        vm_page_free(vm, m)
    object = make_object(vm)
    for i in range(50):
        m = alloc(object, i, VM_ALLOC_SYSTEM | VM_ALLOC_ZERO)
        assert bytes(vm.ram.mem[m.phys_addr : m.phys_addr + 4096]) == bytes(4096)


@pytest.mark.spec("PAGE-4")
def test_collision_in_the_object() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = alloc(object, 3)
    free = vm.gd.gd_vmstats.v_free_count
    assert vm_page_alloc(vm, object, 3, VM_ALLOC_NORMAL | VM_ALLOC_NULL_OK) is None
    with pytest.raises(Panic):
        vm_page_alloc(vm, object, 3, VM_ALLOC_NORMAL)
    assert object.rb_memq[3] is m
    assert vm.gd.gd_vmstats.v_free_count == free
    check(vm)


@pytest.mark.spec("PAGE-4")
def test_reused_frames_lose_their_translated_code() -> None:
    vm = make_vm()
    object = make_object(vm)
    for run in (False, True):
        m = alloc(object, 0)
        vm.mmu.code_frames.add(m.phys_addr >> 12)
        vm_page_free(vm, m)
        vm.mmu.need_flush_code = False
        if run:
            assert vm_page_alloc_run(object, 0, 1, VM_ALLOC_NORMAL) == [m]
        else:
            assert alloc(object, 0) is m
        assert vm.mmu.need_flush_code
        assert m.phys_addr >> 12 not in vm.mmu.code_frames
        vm_page_free(vm, m)


@pytest.mark.spec("PAGE-4")
def test_one_reused_frame_takes_the_code_of_all_that_are_mapped_nowhere() -> None:
    vm = make_vm()
    object = make_object(vm)
    pages = [alloc(object, i) for i in range(6)]
    frames = [m.phys_addr >> 12 for m in pages]
    vm.mmu.code_frames.update(frames)
    pages[4].flags |= PG_MAPPED
    for m in pages[:4]:
        vm_page_free(vm, m)
    again = alloc(object, 0)
    assert vm.mmu.need_flush_code
    assert vm.mmu.code_frames == {frames[4]}
    pages[4].flags &= ~PG_MAPPED
    for m in (again, *pages[4:]):
        vm_page_free(vm, m)


@pytest.mark.spec("PAGE-4")
def test_grab_zero_and_force_zero() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = vm_page_grab(object, 0, VM_ALLOC_NORMAL)
    assert m is not None
    assert m.valid == 0
    assert m.busy_count == PBUSY_LOCKED
    vm.ram.mem[m.phys_addr] = 7
    vm_page_wakeup(vm, m)
    # ZERO: what is not valid is zeroed and becomes valid.
    assert vm_page_grab(object, 0, VM_ALLOC_NORMAL | VM_ALLOC_ZERO) is m
    assert m.valid == VM_PAGE_BITS_ALL
    assert vm.ram.mem[m.phys_addr] == 0
    # A page that is valid stays as it is, unless FORCE_ZERO.
    vm.ram.mem[m.phys_addr] = 8
    vm_page_wakeup(vm, m)
    assert vm_page_grab(object, 0, VM_ALLOC_NORMAL | VM_ALLOC_ZERO) is m
    assert vm.ram.mem[m.phys_addr] == 8
    vm_page_wakeup(vm, m)
    assert vm_page_grab(object, 0, VM_ALLOC_NORMAL | VM_ALLOC_FORCE_ZERO) is m
    assert vm.ram.mem[m.phys_addr] == 0
    # A new page.
    new = vm_page_grab(object, 1, VM_ALLOC_NORMAL | VM_ALLOC_ZERO | VM_ALLOC_RETRY)
    assert new is not None
    assert new.valid == VM_PAGE_BITS_ALL
    check(vm)


@pytest.mark.spec("PAGE-4")
def test_pages_of_no_object_are_wired_and_not_busy() -> None:
    vm = make_vm()
    wired = vm.gd.gd_vmstats.v_wire_count
    m = vm_page_alloczwq(vm, 42, VM_ALLOC_SYSTEM | VM_ALLOC_ZERO)
    assert m is not None
    assert (m.pindex, m.wire_count, m.busy_count, m.queue, m.object) == (42, 1, 0, 0, None)
    assert vm.gd.gd_vmstats.v_wire_count == wired + 1
    check(vm)
    vm_page_freezwq(vm, m)
    assert vm.gd.gd_vmstats.v_wire_count == wired
    assert m.queue == PQ_FREE + m.pc
    with pytest.raises(Panic):
        vm_page_freezwq(vm, m)


# -- colours ----------------------------------------------------------------------------------


@pytest.mark.spec("PAGE-5")
def test_neighbours_in_an_object_get_neighbouring_colours() -> None:
    vm = make_vm()
    object = make_object(vm)
    for pindex in (0, 1, 2, 1023, 1024, 5000):
        m = alloc(object, pindex)
        assert m.pc == (pindex + object.pg_color) % 1024
        assert m.pc == page_color(m.phys_addr >> 12)


@pytest.mark.spec("PAGE-5")
@pytest.mark.spec("PAGE-4")
def test_each_cpu_has_its_slice_of_the_colours() -> None:
    vm = make_vm()
    vm_page_startup(vm, ncpus=4)
    object = make_object(vm)
    for cpu in range(4):
        for pindex in (0, 255, 256, 1000):
            m = vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL | VM_ALLOC_CPU(cpu))
            assert m is not None
            assert m.pc == cpu * 256 + (pindex + object.pg_color) % 256
            vm_page_free(vm, m)
    vm.gd.gd_cpuid = 2
    for req in (VM_ALLOC_NORMAL, VM_ALLOC_NORMAL | VM_ALLOC_USE_GD):
        m = alloc(object, 3, req)
        assert m.pc == 512 + (3 + object.pg_color) % 256
        vm_page_free(vm, m)
    [m] = vm_page_alloc_run(object, 3, 1, VM_ALLOC_NORMAL)
    assert m.pc == 512 + (3 + object.pg_color) % 256


@pytest.mark.spec("PAGE-5")
def test_pages_of_no_object_take_the_colours_in_turn() -> None:
    vm = make_vm()
    pages = [vm_page_alloczwq(vm, 0, VM_ALLOC_SYSTEM) for _ in range(8)]
    colors = [m.pc for m in pages if m is not None]
    assert colors == [(colors[0] + i) % 1024 for i in range(8)]


@pytest.mark.spec("PAGE-5")
def test_a_colour_that_is_used_up_borrows_from_its_neighbourhood() -> None:
    vm = make_vm(8)  # 2 frames of each colour
    object = make_object(vm)
    colors = [alloc(object, i * 1024).pc for i in range(6)]
    home = object.pg_color
    assert colors[0] == colors[1] == home
    for color in colors[2:]:
        assert color != home
        assert color & ~15 == home & ~15
    check(vm)


# -- runs -------------------------------------------------------------------------------------


@pytest.mark.spec("PAGE-5")
@settings(deadline=None, max_examples=50)
@given(
    present=st.sets(st.integers(0, 20)),
    start=st.integers(0, 15),
    n=st.integers(0, 16),
    used=st.integers(0, 30),
)
def test_a_run_is_what_single_allocations_would_be(
    present: set[int], start: int, n: int, used: int
) -> None:
    frames = []
    for run in (True, False):
        vm = make_vm(4)
        other = make_object(vm)
        for m in [alloc(other, i) for i in range(used)]:
            vm.ram.mem[m.phys_addr] = 1
            vm_page_free(vm, m)
        object = make_object(vm)
        object.pg_color = 1
        for i in sorted(present):
            alloc(object, i)
        req = VM_ALLOC_NORMAL | VM_ALLOC_ZERO
        if run:
            got = vm_page_alloc_run(object, start, n, req)
        else:
            got = []
            for i in range(start, start + n):
                if i in present:
                    break
                single = vm_page_alloc(vm, object, i, req)
                assert single is not None
                got.append(single)
        for i, m in enumerate(got):
            assert (m.object, m.pindex, m.busy_count) == (object, start + i, PBUSY_LOCKED)
            assert (m.valid, m.dirty, m.flags, m.queue) == (0, 0, 0, 0)
            assert vm.ram.mem[m.phys_addr] == 0
        frames.append([m.phys_addr for m in got])
        check(vm)
        vm_page_queue_run(vm, got, PQ_ACTIVE)
        assert all(m.queue - m.pc == PQ_ACTIVE and not m.busy_count for m in got)
        check(vm)
    assert frames[0] == frames[1]


@pytest.mark.spec("PAGE-5")
@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(0, 40),
    used=st.integers(0, 30),
    left=st.integers(0, 40),
)
def test_a_run_that_is_ready_for_use(n: int, used: int, left: int) -> None:
    """Queued while it is allocated, it is what one gets that is queued afterwards; also where the
    colours run out."""
    seen = []
    for at_once in (True, False):
        vm = make_vm(4)
        other = make_object(vm)
        for m in [alloc(other, i) for i in range(used)]:
            vm.ram.mem[m.phys_addr] = 1
            vm_page_free(vm, m)
        own = vm.gd.gd_vmstats
        at = 1000
        while own.v_free_count > own.v_free_reserved + left:
            alloc(other, at)
            at += 1
        object = make_object(vm)
        object.pg_color = 1
        req = VM_ALLOC_NORMAL | VM_ALLOC_ZERO
        if at_once:
            got = vm_page_alloc_run(object, 5, n, req, True, PG_REFERENCED)
        else:
            got = vm_page_alloc_run(object, 5, n, req)
            for m in got:
                m.valid = VM_PAGE_BITS_ALL
                m.flags = PG_REFERENCED
            vm_page_queue_run(vm, got, PQ_ACTIVE)
        assert len(got) == min(n, left)
        check(vm)
        seen.append([
            (m.phys_addr, m.pindex, m.queue, m.act_count, m.valid, m.dirty, m.flags, m.busy_count,
             m.wire_count, m.hold_count, m.pat_mode, vm.ram.mem[m.phys_addr]) for m in got
        ])  # fmt: skip
        seen[-1].append([[m.phys_addr for m in q.pages()] for q in vm.pages.queues(PQ_ACTIVE)])
        seen[-1].append((own.v_free_count, own.v_active_count, own.v_inactive_count))
    assert seen[0] == seen[1]


@pytest.mark.spec("PAGE-4")
def test_a_run_stops_at_the_reserve() -> None:
    vm = make_vm()
    own = vm.gd.gd_vmstats
    pages = _drain(vm, VM_ALLOC_NORMAL)
    object = make_object(vm)
    assert vm_page_alloc_run(object, 0, 16, VM_ALLOC_NORMAL) == []
    for m in pages[:5]:
        vm_page_free(vm, m)
    got = vm_page_alloc_run(object, 0, 16, VM_ALLOC_NORMAL)
    assert len(got) <= 5
    assert own.v_free_count >= own.v_free_reserved
    check(vm)


# -- free -------------------------------------------------------------------------------------


@pytest.mark.spec("PAGE-7")
def test_a_freed_page_has_left_everything() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = alloc(object, 4)
    m.dirty = 3
    m.pat_mode = VM_MEMATTR_UNCACHEABLE
    vm_page_activate(vm, m)
    generation = object.generation
    freed = vm.gd.gd_cnt.v_tfree
    vm_page_free(vm, m)
    assert 4 not in object.rb_memq
    assert object.resident_page_count == 0
    assert object.generation > generation
    assert m.queue == PQ_FREE + m.pc
    assert (m.object, m.valid, m.dirty, m.flags, m.busy_count, m.act_count) == (None, 0, 0, 0, 0, 0)
    assert m.pat_mode == VM_MEMATTR_DEFAULT
    assert vm.gd.gd_cnt.v_tfree == freed + 1
    check(vm)
    with pytest.raises(Panic):
        vm_page_free(vm, m)


@pytest.mark.spec("PAGE-7")
def test_a_held_page_waits_on_the_hold_queue() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    own = vm.gd.gd_vmstats
    free, active = own.v_free_count, own.v_active_count
    vm_page_hold(vm, m)
    vm_page_hold(vm, m)
    vm_page_free(vm, m)
    assert m.queue == PQ_HOLD + m.pc
    assert (own.v_free_count, own.v_active_count) == (free, active + 1)
    check(vm)
    vm_page_unhold(vm, m)
    assert m.queue == PQ_HOLD + m.pc
    vm_page_unhold(vm, m)
    assert m.queue == PQ_FREE + m.pc
    assert (own.v_free_count, own.v_active_count) == (free + 1, active)
    check(vm)
    with pytest.raises(Panic):
        vm_page_unhold(vm, m)
    vm_page_hold(vm, m)  # a free page that somebody holds is not given out
    assert m.queue == PQ_HOLD + m.pc
    check(vm)


@pytest.mark.spec("PAGE-7")
def test_a_hold_does_not_keep_a_page_from_paging() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    vm_page_activate(vm, m)
    vm_page_hold(vm, m)
    assert m.queue - m.pc == PQ_ACTIVE
    vm_page_unhold(vm, m)
    assert m.queue - m.pc == PQ_ACTIVE


@pytest.mark.spec("PAGE-7")
def test_a_wired_page_is_not_freed() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    vm_page_wire(vm, m)
    with pytest.raises(Panic):
        vm_page_free(vm, m)


@pytest.mark.spec("PAGE-7")
def test_who_waits_for_a_page_that_is_freed_is_woken() -> None:
    vm = make_vm()
    object = make_object(vm)
    m = alloc(object, 0)
    got: list[VmPage | None] = []
    vm.sched.create(lambda: got.append(vm_page_grab(object, 0, VM_ALLOC_NORMAL | VM_ALLOC_RETRY)))
    vm.sched.create(vm_page_free, vm, m)
    vm.sched.run()
    [again] = got
    assert again is not None
    assert object.rb_memq[0] is again


@pytest.mark.spec("PAGE-9")
def test_try_to_free_frees_only_what_nobody_claims() -> None:
    vm = make_vm()
    object = make_object(vm)

    def fresh(i: int) -> VmPage:
        m = alloc(object, i)
        vm_page_deactivate(vm, m)
        return m

    busied = fresh(0)
    assert not vm_page_try_to_free(vm, busied)
    dirty = fresh(1)
    vm_page_dirty(vm, dirty)
    held = fresh(2)
    vm_page_hold(vm, held)
    wired = fresh(3)
    vm_page_wire(vm, wired)
    commit = fresh(4)
    commit.flags |= PG_NEED_COMMIT
    for m in (dirty, held, wired, commit):
        vm_page_wakeup(vm, m)
        assert not vm_page_try_to_free(vm, m)
        assert m.busy_count == 0
        assert m.object is object
    clean = fresh(5)
    vm_page_wakeup(vm, clean)
    assert vm_page_try_to_free(vm, clean)
    assert clean.queue - clean.pc == PQ_FREE
    assert not vm_page_try_to_free(vm, clean)
    check(vm)


# -- all of it against a model ------------------------------------------------------------------


class PageMachine(RuleBasedStateMachine):
    """Life of pages: every operation in any order, against what a simple model expects, and the
    checker after each step. A file's object, so that the cache has a meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.vm = make_vm(2)
        self.object = make_object(self.vm, type=OBJT_VNODE)
        self.pages: dict[int, VmPage] = {}  # not busied, in the object
        self.held: list[VmPage] = []

    def _pick(self, data: st.DataObject) -> VmPage:
        m = self.pages[data.draw(st.sampled_from(sorted(self.pages)))]
        assert not vm_page_busy_try(self.vm, m, True)
        return m

    @rule(pindex=st.integers(0, 600), n=st.integers(1, 40))
    def allocate(self, pindex: int, n: int) -> None:
        for i in range(pindex, pindex + n):
            m = vm_page_alloc(self.vm, self.object, i, VM_ALLOC_NORMAL | VM_ALLOC_NULL_OK)
            if i in self.pages and self.object.rb_memq.get(i) is self.pages[i]:
                assert m is None
            elif m is not None:
                m.valid = VM_PAGE_BITS_ALL
                vm_page_activate(self.vm, m)
                vm_page_wakeup(self.vm, m)
                self.pages[i] = m
        # NORMAL may have eaten pages of ours from the cache queue.
        self.pages = dict(self.object.rb_memq)

    @rule(pindex=st.integers(0, 600))
    def run(self, pindex: int) -> None:
        run = vm_page_alloc_run(self.object, pindex, 16, VM_ALLOC_NORMAL)
        for m in run:
            m.valid = VM_PAGE_BITS_ALL
            self.pages[m.pindex] = m
        vm_page_queue_run(self.vm, run, PQ_INACTIVE)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        m = self._pick(data)
        if m.wire_count:
            vm_page_wakeup(self.vm, m)
            return
        del self.pages[m.pindex]
        vm_page_free(self.vm, m)
        assert m.queue - m.pc == (PQ_HOLD if m.hold_count else PQ_FREE)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def wire(self, data: st.DataObject) -> None:
        m = self._pick(data)
        vm_page_wire(self.vm, m)
        assert m.queue == 0
        vm_page_wakeup(self.vm, m)

    @precondition(lambda self: self.pages)
    @rule(data=st.data(), activate=st.booleans())
    def unwire(self, data: st.DataObject, activate: bool) -> None:
        m = self._pick(data)
        if m.wire_count:
            vm_page_unwire(self.vm, m, activate)
            if not m.wire_count:
                assert m.queue - m.pc == (PQ_ACTIVE if activate else PQ_INACTIVE)
        vm_page_wakeup(self.vm, m)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        m = self._pick(data)
        vm_page_hold(self.vm, m)
        vm_page_wakeup(self.vm, m)
        self.held.append(m)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.held) - 1))
        vm_page_unhold(self.vm, self.held.pop(i))

    @precondition(lambda self: self.pages)
    @rule(data=st.data(), to=st.sampled_from(("activate", "deactivate", "cache", "dirty")))
    def move(self, data: st.DataObject, to: str) -> None:
        m = self._pick(data)
        if to == "cache" and not m.dirty:
            vm_page_cache(self.vm, m)
            return
        if to == "activate":
            vm_page_activate(self.vm, m)
        elif to == "deactivate" or (to == "dirty" and m.queue - m.pc == PQ_CACHE):
            vm_page_deactivate(self.vm, m)
        elif to == "dirty":
            vm_page_dirty(self.vm, m)
        vm_page_wakeup(self.vm, m)

    @invariant()
    def agrees(self) -> None:
        check(self.vm)
        assert self.object.resident_page_count == len(self.pages)


TestPages = pytest.mark.spec("PAGE-3")(pytest.mark.spec("PAGE-7")(PageMachine.TestCase))
PageMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
