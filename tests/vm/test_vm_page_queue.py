"""Frames, colours, queues and their counts (vm_page_queue.py)."""

from __future__ import annotations

import time
import tracemalloc
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dfvm.lwkt.panic import Panic
from dfvm.machine.mmu import Mmu
from dfvm.machine.ram import Ram
from dfvm.vm.vm_init import VmSysctl
from dfvm.vm.vm_meter import Globaldata, VmMeter, VmStats
from dfvm.vm.vm_page import (
    ACT_ADVANCE,
    ACT_DECLINE,
    ACT_INIT,
    ACT_MAX,
    PHYS_TO_VM_PAGE,
    PQ_ACTIVE,
    PQ_CACHE,
    PQ_FREE,
    PQ_HOLD,
    PQ_INACTIVE,
    PQ_L2_SIZE,
    VM_ALLOC_INTERRUPT,
    VmPage,
    page_color,
    vm_page_alloc,
    vm_page_free,
    vm_page_startup,
)
from dfvm.vm.vm_page_queue import vm_page_add_queue, vm_page_list_find, vm_page_rem_queue
from tests.vm.page_util import alloc, check, make_object, make_vm

_ALL_QUEUES = (PQ_FREE, PQ_INACTIVE, PQ_ACTIVE, PQ_CACHE, PQ_HOLD)


@pytest.mark.spec("PAGE-1")
def test_page_is_found_from_any_address_in_its_frame() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 3)
    for offset in (0, 1, 4095):
        assert PHYS_TO_VM_PAGE(vm, m.phys_addr + offset) is m
    assert PHYS_TO_VM_PAGE(vm, m.phys_addr ^ 0x1000) is not m


@pytest.mark.spec("PAGE-1")
def test_a_frame_that_was_never_used_has_no_structure() -> None:
    vm = make_vm(64)
    used = sum(m is not None for m in vm.pages.vm_page_array)
    alloc(make_object(vm), 0)
    assert sum(m is not None for m in vm.pages.vm_page_array) == used + 1
    assert PHYS_TO_VM_PAGE(vm, vm.ram.size - 1) is None
    check(vm)


@pytest.mark.spec("PAGE-1")
def test_boot_costs_the_same_for_any_size_of_ram() -> None:
    def startup(mib: int) -> tuple[int, float]:
        vm = _bare_vm(mib)
        tracemalloc.start()
        start = time.process_time()
        vm_page_startup(vm)
        seconds = time.process_time() - start
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size, seconds

    startup(64)
    small, _ = startup(64)
    large, seconds = startup(16384)
    assert large - small < 1000
    assert seconds < 0.01


def _bare_vm(mib: int):  # type: ignore[no-untyped-def]  # no more of a VmSystem than startup needs
    class Bare:
        pass

    vm = Bare()
    vm.ram = Ram(mib << 20)  # type: ignore[attr-defined]
    vm.mmu = Mmu()  # type: ignore[attr-defined]
    vm.gd = Globaldata()  # type: ignore[attr-defined]
    vm.vmstats = VmStats()  # type: ignore[attr-defined]
    vm.vmmeter = VmMeter()  # type: ignore[attr-defined]
    vm.sysctl = VmSysctl()  # type: ignore[attr-defined]
    return vm


@pytest.mark.spec("PAGE-1")
@pytest.mark.parametrize("mib", [2, 4, 6, 8, 14])
def test_every_frame_but_the_first_can_be_allocated_once(mib: int) -> None:
    vm = make_vm(mib)
    already = {m.phys_addr for m in vm.pages.vm_page_array if m is not None}
    got = set()
    while (m := vm_page_alloc(vm, None, 0, VM_ALLOC_INTERRUPT)) is not None:
        assert m.phys_addr not in got
        got.add(m.phys_addr)
    assert got | already == set(range(0x1000, mib << 20, 0x1000))
    assert not got & already
    check(vm)


@pytest.mark.spec("PAGE-3")
def test_colour_of_a_frame() -> None:
    for n in (0, 1, 1023, 1024, 1025, 0x12345, 0x100000, 0x3FFFFF):
        assert page_color(n) == (n ^ n // 1024 ^ n // 1024**2) & 1023
    vm = make_vm()
    for _ in range(100):
        m = vm_page_alloc(vm, None, 0, VM_ALLOC_INTERRUPT)
        assert m is not None
        assert m.pc == page_color(m.phys_addr >> 12)


@pytest.mark.spec("PAGE-3")
def test_each_block_of_1024_frames_has_every_colour_once() -> None:
    for block in (0, 1, 5, 1023, 1024, 4097):
        colors = {page_color(block * 1024 + i) for i in range(1024)}
        assert len(colors) == PQ_L2_SIZE


@pytest.mark.spec("PAGE-3")
def test_free_takes_pages_at_the_head_and_others_where_they_are_told() -> None:
    vm = make_vm(16)
    pages = _same_color(vm, 4)
    for m in pages:
        vm_page_add_queue(vm, m, PQ_FREE)
    assert vm_page_list_find(vm, PQ_FREE, pages[0].pc) is pages[-1]
    for m in pages[:-1]:
        vm_page_rem_queue(vm, m)
    vm_page_add_queue(vm, pages[0], PQ_ACTIVE)
    vm_page_add_queue(vm, pages[1], PQ_ACTIVE)
    vm_page_add_queue(vm, pages[2], PQ_ACTIVE, athead=True)
    q = vm.pages.queue(PQ_ACTIVE + pages[0].pc)
    assert list(q.pages()) == [pages[2], pages[0], pages[1]]


@pytest.mark.spec("PAGE-3")
def test_a_page_is_on_one_queue_only() -> None:
    vm = make_vm()
    m = alloc(make_object(vm), 0)
    vm_page_add_queue(vm, m, PQ_ACTIVE)
    with pytest.raises(Panic):
        vm_page_add_queue(vm, m, PQ_INACTIVE)
    assert vm_page_rem_queue(vm, m) == PQ_ACTIVE
    assert vm_page_rem_queue(vm, m) == 0


@pytest.mark.spec("PAGE-11")
def test_activity_constants() -> None:
    assert (ACT_INIT, ACT_ADVANCE, ACT_DECLINE, ACT_MAX) == (5, 3, 1, 64)


def _same_color(vm, n: int) -> list[VmPage]:  # type: ignore[no-untyped-def]
    """`n` pages of one colour, on no queue."""
    object = make_object(vm)
    return [alloc(object, i * PQ_L2_SIZE) for i in range(n)]


@pytest.mark.spec("PAGE-5")
def test_search_takes_the_exact_colour_then_the_16_around_it_then_wider() -> None:
    vm = make_vm(16)
    object = make_object(vm)
    by_color = {}
    for i in range(PQ_L2_SIZE):
        m = alloc(object, i)
        by_color[m.pc] = m
    want = 0x155
    near, around, far = by_color[0x15A], by_color[0x148], by_color[0x3FF]
    for m in (far, around, near, by_color[want]):
        vm_page_add_queue(vm, m, PQ_CACHE)
    found = [vm_page_list_find(vm, PQ_CACHE, want) for _ in range(5)]
    assert found == [by_color[want], near, around, far, None]


@pytest.mark.spec("PAGE-5")
def test_lastq_leads_back_to_where_pages_were_found() -> None:
    vm = make_vm(16)
    object = make_object(vm)
    pages = {m.pc: m for m in (alloc(object, i) for i in range(PQ_L2_SIZE))}
    second = alloc(object, pages[0x20].pindex + PQ_L2_SIZE)
    assert second.pc == 0x20
    for m in (pages[0x18], pages[0x20], second):
        vm_page_add_queue(vm, m, PQ_CACHE)
    q = vm.pages.queue(PQ_CACHE + 0x10)
    assert q.lastq == -1
    assert vm_page_list_find(vm, PQ_CACHE, 0x10) is pages[0x18]
    assert q.lastq == 0x18
    assert vm_page_list_find(vm, PQ_CACHE, 0x10) is pages[0x20]
    assert q.lastq == 0x20
    # What comes back nearer by is found again: the search goes all the way round.
    vm_page_add_queue(vm, pages[0x18], PQ_CACHE)
    assert vm_page_list_find(vm, PQ_CACHE, 0x10) is pages[0x18]
    assert vm_page_list_find(vm, PQ_CACHE, 0x10) is second
    assert vm_page_list_find(vm, PQ_CACHE, 0x10) is None


class QueueMachine(RuleBasedStateMachine):
    """Queues against lists, counters against lengths. Few colours, so that lists get long."""

    def __init__(self) -> None:
        super().__init__()
        self.vm = make_vm(4)
        self.object = make_object(self.vm)
        self.idle: list[VmPage] = []
        self.model: dict[int, deque[VmPage]] = {}
        self.next = 0

    def _queue(self, base: int, m: VmPage) -> deque[VmPage]:
        return self.model.setdefault(base + m.pc, deque())

    @precondition(lambda self: self.next < 12)
    @rule()
    def new(self) -> None:
        # 4 MiB has one frame of each colour; three colours and their neighbours will do.
        m = vm_page_alloc(self.vm, None, 0, VM_ALLOC_INTERRUPT)
        assert m is not None
        self.next += 1
        self.idle.append(m)

    @precondition(lambda self: self.idle)
    @rule(
        data=st.data(),
        base=st.sampled_from((PQ_INACTIVE, PQ_ACTIVE, PQ_CACHE, PQ_HOLD)),
        athead=st.booleans(),
    )
    def add(self, data: st.DataObject, base: int, athead: bool) -> None:
        m = self.idle.pop(data.draw(st.integers(0, len(self.idle) - 1)))
        vm_page_add_queue(self.vm, m, base, athead)
        queue = self._queue(base, m)
        if athead:
            queue.appendleft(m)
        else:
            queue.append(m)

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(k for k, v in self.model.items() if v)))
        queue = self.model[number]
        m = queue[data.draw(st.integers(0, len(queue) - 1))]
        assert vm_page_rem_queue(self.vm, m) == number - m.pc
        queue.remove(m)
        self.idle.append(m)

    @rule(color=st.integers(0, 15))
    def find(self, color: int) -> None:
        base = PQ_CACHE
        m = vm_page_list_find(self.vm, base, color)
        candidates = {k: v for k, v in self.model.items() if base <= k < base + 1024 and v}
        if m is None:
            assert not candidates
            return
        if base + color in candidates:
            assert m.pc == color
        assert self.model[base + m.pc].popleft() is m
        self.idle.append(m)

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def free_and_allocate(self, data: st.DataObject) -> None:
        m = self.idle.pop(data.draw(st.integers(0, len(self.idle) - 1)))
        m.busy_count = 0x80000000
        vm_page_free(self.vm, m)
        again = vm_page_list_find(self.vm, PQ_FREE, m.pc)
        assert again is m  # the head of its colour
        self.idle.append(m)

    @invariant()
    def agrees(self) -> None:
        own = self.vm.gd.gd_vmstats
        for base, name in (
            (PQ_INACTIVE, "v_inactive_count"),
            (PQ_CACHE, "v_cache_count"),
        ):
            total = sum(len(v) for k, v in self.model.items() if base <= k < base + PQ_L2_SIZE)
            assert getattr(own, name) == total
        for number, queue in self.model.items():
            q = self.vm.pages.queue(number)
            assert list(q.pages()) == list(queue)
            assert q.lcnt == len(queue)
            for a, b in pairwise(queue):
                assert a.pq_next is b
                assert b.pq_prev is a


TestQueues = pytest.mark.spec("PAGE-3")(QueueMachine.TestCase)
QueueMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
