"""The checker finds what is wrong (vm_page_check.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dfvm.vm.vm_object import OBJT_VNODE
from dfvm.vm.vm_page import (
    PBUSY_WANTED,
    PG_MAPPED,
    PG_MARKER,
    VM_ALLOC_SYSTEM,
    VmPage,
    vm_page_activate,
    vm_page_alloczwq,
    vm_page_cache,
    vm_page_free,
    vm_page_hash_enter,
    vm_page_wakeup,
)
from dfvm.vm.vm_page_check import vm_page_check
from tests.vm.page_util import alloc, make_object, make_vm


class Pages:
    """A machine with a page in every state."""

    def __init__(self) -> None:
        self.vm = vm = make_vm(16)
        object = make_object(vm, type=OBJT_VNODE)
        self.active, self.second, self.cached, self.free, self.held, self.shared = (
            alloc(object, i * 1024 if i < 2 else i) for i in range(6)
        )
        for m in (self.active, self.second, self.shared):
            vm_page_activate(vm, m)
            vm_page_wakeup(vm, m)
        vm_page_cache(vm, self.cached)
        vm_page_free(vm, self.free)
        self.held.hold_count = 1
        vm_page_free(vm, self.held)
        wired = vm_page_alloczwq(vm, 0, VM_ALLOC_SYSTEM)
        assert wired is not None
        self.wired = wired
        self.shared.flags |= 0x40
        vm_page_hash_enter(self.shared)
        assert vm_page_check(vm) == []

    def forget(self, m: VmPage) -> None:
        self.vm.pages.vm_page_array[m.phys_addr >> 12] = None


def _unlink(pages: Pages) -> None:
    pages.active.pq_next.pq_prev = pages.active.pq_next


def _cycle(pages: Pages) -> None:
    pages.second.pq_next = pages.active


def _unown(pages: Pages) -> None:
    assert pages.active.object is not None
    del pages.active.object.rb_memq[pages.active.pindex]


def _miscount_object(pages: Pages) -> None:
    assert pages.active.object is not None
    pages.active.object.resident_page_count += 1


def _cursor(pages: Pages) -> None:
    pages.vm.pages.next_block[77] += 1


def _twice_in_hash(pages: Pages) -> None:
    for ways in pages.vm.pages.vm_page_hash.values():
        ways.append(pages.shared)


def _set(attribute: str, value: object) -> Callable[[VmPage], None]:
    def change(m: VmPage) -> None:
        setattr(m, attribute, value)

    return change


@pytest.mark.spec("PAGE-3")
@pytest.mark.parametrize(
    "damage",
    [
        _unlink,
        _cycle,
        _unown,
        _miscount_object,
        _cursor,
        _twice_in_hash,
        lambda p: _set("queue", 0)(p.active),
        lambda p: _set("pc", 1000)(p.active),
        lambda p: _set("phys_addr", 0x5000)(p.active),
        lambda p: _set("pindex", 17)(p.active),
        lambda p: _set("object", None)(p.active),
        lambda p: _set("wire_count", 1)(p.active),
        lambda p: _set("wire_count", 0)(p.wired),
        lambda p: _set("wire_count", -1)(p.wired),
        lambda p: _set("act_count", 65)(p.active),
        lambda p: _set("valid", 0x100)(p.active),
        lambda p: _set("busy_count", PBUSY_WANTED)(p.active),
        lambda p: _set("flags", PG_MARKER)(p.active),
        lambda p: _set("dirty", 1)(p.cached),
        lambda p: _set("flags", PG_MAPPED)(p.cached),
        lambda p: _set("valid", 1)(p.free),
        lambda p: _set("flags", PG_MAPPED)(p.free),
        lambda p: _set("hold_count", 1)(p.free),
        lambda p: _set("hold_count", 0)(p.held),
        lambda p: p.forget(p.wired),
        lambda p: _set("lcnt", 5)(p.vm.pages.queue(p.active.queue)),
        lambda p: _set("v_free_count", 1)(p.vm.gd.gd_vmstats),
        lambda p: _set("v_wire_count", 1)(p.vm.vmstats),
    ],
)
def test_damage_is_found(damage: Callable[[Pages], None]) -> None:
    pages = Pages()
    damage(pages)
    assert vm_page_check(pages.vm)


@pytest.mark.spec("PAGE-1")
def test_the_checker_changes_nothing() -> None:
    pages = Pages()
    before = [repr(m) for m in pages.vm.pages.vm_page_array]
    vm_page_check(pages.vm)
    assert [repr(m) for m in pages.vm.pages.vm_page_array] == before
