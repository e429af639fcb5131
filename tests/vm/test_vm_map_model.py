"""Maps against a model that knows pages only: whatever is mapped, protected, forked, wired and
unmapped, every page has the rights and the contents that the model says, and the map checks out.

The model has no entries, objects or chains. A page of a space has its rights and a cell, which is
where its contents are; spaces that share a page share its cell. A copy that has not been made yet
(`cow`) looks at the other's cell until somebody writes through it. If the other cell changes
meanwhile, the page may show the old or the new contents: the kernel is free to make the copy
early.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dfvm.vm import vm_map_index, vm_map_space
from dfvm.vm.pager.vnode_pager import vnode_pager_alloc
from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_INVALID_ARGUMENT,
    KERN_NO_SPACE,
    KERN_PROTECTION_FAILURE,
    KERN_SUCCESS,
    VM_INHERIT_COPY,
    VM_INHERIT_NONE,
    VM_INHERIT_SHARE,
    VM_PROT_READ,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_map import (
    MADV_AUTOSYNC,
    MADV_DONTNEED,
    MADV_INVAL,
    MADV_NOCORE,
    MADV_NOSYNC,
    MADV_RANDOM,
    MADV_WILLNEED,
    MAP_COPY_ON_WRITE,
    vm_map_clip_end,
    vm_map_clip_start,
    vm_map_findspace,
    vm_map_inherit,
    vm_map_lock,
    vm_map_lookup_entry,
    vm_map_madvise,
    vm_map_protect,
    vm_map_remove,
    vm_map_simplify_entry,
    vm_map_unlock,
    vm_map_user_wiring,
)
from dfvm.vm.vm_map_check import vm_map_check
from dfvm.vm.vm_object_check import vm_object_check
from dfvm.vm.vmspace import vmspace_alloc, vmspace_fork, vmspace_rel
from tests.vm.map_util import P, Proc, anon, load, show, store
from tests.vm.vnode_stub import StubVnode, make_vm

N = 24  # pages of a space
LOW = 0x20_0000 - 8 * P  # so that it lies on two page tables
FILE_PAGES = 10

starts = st.integers(0, N - 1)
lengths = st.integers(1, 10)
prots = st.sampled_from([0, 1, 3, 3, 3, 5, 7])


class Cell:
    """Where contents are; `values` is what they may be."""

    def __init__(self, values: set[int]) -> None:
        self.values = values


class Page:
    """One page of a space."""

    def __init__(self, prot: int, max: int, cell: Cell, cow: bool) -> None:
        self.prot, self.max, self.cell, self.cow = prot, max, cell, cow
        self.inherit = VM_INHERIT_COPY
        self.older: set[int] = set()  # what a copy made early would hold
        self.wired = False

    def allowed(self) -> set[int]:
        return self.cell.values | self.older

    def own(self) -> None:
        """The copy is made."""
        if self.cow:
            self.cell, self.cow, self.older = Cell(self.allowed()), False, set()


class Space:
    def __init__(self, proc: Proc) -> None:
        self.proc = proc
        self.pages: dict[int, Page] = {}


class MapMachine(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 5))
    def boot(self, limit: int) -> None:
        # Lists so short, and walks too, that a few entries have the index split and searched.
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(vm_map_index, "CHUNK", 3)
        self.patch.setattr(vm_map_space, "STEPS", 1)
        self.vm = make_vm()
        self.vm.sysctl.map_backing_limit = limit
        self.free = self.vm.gd.gd_vmstats.v_free_count
        self.vp = StubVnode(b"".join(bytes([100 + i]) * P for i in range(FILE_PAGES)))
        self.file = [Cell({100 + i}) for i in range(FILE_PAGES)]
        self.spaces = [self.new_space()]
        self.map_anonymous(0, 4, 10, 3, 7)

    def new_space(self) -> Space:
        return Space(Proc(self.vm, vmspace_alloc(self.vm, LOW, LOW + N * P)))

    def pick(self, which: int) -> Space:
        space = self.spaces[which % len(self.spaces)]
        self.vm.sched.curthread.td_proc = space.proc
        return space

    def set(self, page: Page, value: int) -> None:
        """The model's store."""
        if page.cow:
            page.cell, page.cow, page.older = Cell({value}), False, set()
            return
        for space in self.spaces:
            for other in space.pages.values():
                if other.cow and other.cell is page.cell:
                    other.older |= page.cell.values
        page.cell.values = {value}

    # -- mapping

    @rule(which=starts, start=starts, n=lengths, prot=prots, max=st.sampled_from([7, 7, 3]))
    def map_anonymous(self, which: int, start: int, n: int, prot: int, max: int) -> None:
        space = self.pick(which)
        prot &= max
        rv = anon(space.proc.map, LOW + start * P, n, prot, 0, max)
        if start + n > N:
            assert rv == KERN_INVALID_ADDRESS
        elif any(i in space.pages for i in range(start, start + n)):
            assert rv == KERN_NO_SPACE
        else:
            assert rv == KERN_SUCCESS
            for i in range(start, start + n):
                space.pages[i] = Page(prot, max, Cell({0}), False)

    @rule(which=starts, start=starts, n=lengths, off=st.integers(0, FILE_PAGES - 1),
          prot=prots, private=st.booleans())  # fmt: skip
    def map_file(self, which: int, start: int, n: int, off: int, prot: int, private: bool) -> None:
        space = self.pick(which)
        n = min(n, FILE_PAGES - off, N - start)
        if any(i in space.pages for i in range(start, start + n)):
            return
        obj = vnode_pager_alloc(self.vm, self.vp, self.vp.v_filesize)
        cow = MAP_COPY_ON_WRITE if private else 0
        assert show(space.proc.map, obj, off * P, LOW + start * P, n, prot, cow) == KERN_SUCCESS
        for i in range(n):
            space.pages[start + i] = Page(prot, 7, self.file[off + i], private)
        if not private:
            self.inherit(which, start, n, VM_INHERIT_SHARE)

    @rule(which=starts, start=starts, n=lengths)
    def unmap(self, which: int, start: int, n: int) -> None:
        space = self.pick(which)
        assert vm_map_remove(space.proc.map, LOW + start * P, LOW + (start + n) * P) == 0
        for i in range(start, start + n):
            space.pages.pop(i, None)

    @rule(which=starts, start=starts, n=lengths, align=st.sampled_from([1, 1, 2, 3, 4]))
    def find(self, which: int, start: int, n: int, align: int) -> None:
        space = self.pick(which)
        map = space.proc.map
        vm_map_lock(map)
        found = vm_map_findspace(map, LOW + start * P, n * P, align * P)
        vm_map_unlock(map)
        expected = None
        for i in range(start, N - n + 1):
            free = all(j not in space.pages for j in range(i, i + n))
            if free and (LOW // P + i) % align == 0:
                expected = LOW + i * P
                break
        assert found == expected

    # -- changing

    @rule(which=starts, start=starts, n=lengths, prot=prots, set_max=st.booleans())
    def protect(self, which: int, start: int, n: int, prot: int, set_max: bool) -> None:
        space = self.pick(which)
        rv = vm_map_protect(
            space.proc.map, LOW + start * P, LOW + (start + n) * P, prot, set_max and prot == 1
        )
        there = [space.pages[i] for i in range(start, start + n) if i in space.pages]
        if any(prot & ~page.max for page in there):
            assert rv == KERN_PROTECTION_FAILURE
            return
        assert rv == KERN_SUCCESS
        for page in there:
            if set_max and prot == 1:
                page.max, page.prot = prot, page.prot & prot
            else:
                page.prot = prot
            if page.wired and page.prot & VM_PROT_WRITE:
                page.own()

    @rule(which=starts, start=starts, n=lengths,
          how=st.sampled_from([VM_INHERIT_SHARE, VM_INHERIT_COPY, VM_INHERIT_NONE]))  # fmt: skip
    def inherit(self, which: int, start: int, n: int, how: int) -> None:
        space = self.pick(which)
        rv = vm_map_inherit(space.proc.map, LOW + start * P, LOW + (start + n) * P, how)
        assert rv == KERN_SUCCESS
        for i in range(start, start + n):
            if i in space.pages:
                space.pages[i].inherit = how

    @rule(which=starts, start=starts, n=lengths, advice=st.sampled_from(
        [MADV_NOSYNC, MADV_AUTOSYNC, MADV_NOCORE, MADV_RANDOM, MADV_INVAL, MADV_WILLNEED,
         MADV_DONTNEED]))  # fmt: skip
    def advise(self, which: int, start: int, n: int, advice: int) -> None:
        space = self.pick(which)
        rv = vm_map_madvise(space.proc.map, LOW + start * P, LOW + (start + n) * P, advice)
        assert rv == KERN_SUCCESS

    @rule(which=starts, start=starts, cut=st.booleans(), merge=st.booleans())
    def clip(self, which: int, start: int, cut: bool, merge: bool) -> None:
        map = self.pick(which).proc.map
        vm_map_lock(map)
        found, entry = vm_map_lookup_entry(map, LOW + start * P)
        if found and entry is not None:
            (vm_map_clip_start if cut else vm_map_clip_end)(
                map, entry, LOW + start * P + P * (not cut)
            )
            if merge:
                vm_map_simplify_entry(map, entry)
        vm_map_unlock(map)

    @rule(which=starts, start=starts, n=lengths)
    def wire(self, which: int, start: int, n: int) -> None:
        space = self.pick(which)
        there = [space.pages.get(i) for i in range(start, min(start + n, N))]
        if any(page is not None and not page.prot & VM_PROT_READ for page in there):
            return  # what a failure on the way leaves is test_vmspace's subject
        rv = vm_map_user_wiring(space.proc.map, LOW + start * P, LOW + (start + n) * P, False)
        if None in there:
            assert rv == KERN_INVALID_ADDRESS
            return
        assert rv == KERN_SUCCESS
        for page in there:
            assert page is not None
            page.wired = True
            if page.prot & VM_PROT_WRITE:
                page.own()

    @rule(which=starts, start=starts, n=lengths)
    def unwire(self, which: int, start: int, n: int) -> None:
        space = self.pick(which)
        there = [space.pages.get(i) for i in range(start, min(start + n, N))]
        rv = vm_map_user_wiring(space.proc.map, LOW + start * P, LOW + (start + n) * P, True)
        if None in there:
            assert rv == KERN_INVALID_ADDRESS
        elif not all(page is not None and page.wired for page in there):
            assert rv == KERN_INVALID_ARGUMENT
        else:
            assert rv == KERN_SUCCESS
            for page in there:
                assert page is not None
                page.wired = False

    # -- touching

    @rule(which=starts, i=starts, value=st.integers(1, 99))
    def write(self, which: int, i: int, value: int) -> None:
        space = self.pick(which)
        page = space.pages.get(i)
        rv = store(space.proc.map, LOW + i * P, value)
        if page is None:
            assert rv == KERN_INVALID_ADDRESS
        elif not page.prot & VM_PROT_WRITE:
            assert rv == KERN_PROTECTION_FAILURE
        else:
            assert rv == KERN_SUCCESS
            self.set(page, value)

    @rule(which=starts, start=starts, n=lengths, value=st.integers(1, 99))
    def write_all(self, which: int, start: int, n: int, value: int) -> None:
        for i in range(start, min(start + n, N)):
            self.write(which, i, value)

    @rule(which=starts)
    def read_all(self, which: int) -> None:
        for i in range(N):
            self.read(which, i)

    @rule(which=starts, i=starts)
    def read(self, which: int, i: int) -> None:
        space = self.pick(which)
        page = space.pages.get(i)
        if page is not None and page.prot & VM_PROT_READ:
            assert load(space.proc.map, LOW + i * P) in page.allowed()

    # -- spaces

    @precondition(lambda self: len(self.spaces) < 5)
    @rule(which=starts)
    def fork(self, which: int) -> None:
        space = self.pick(which)
        child = Space(Proc(self.vm, vmspace_fork(space.proc.p_vmspace)))
        for i, page in space.pages.items():
            if page.inherit == VM_INHERIT_NONE:
                continue
            if page.inherit == VM_INHERIT_SHARE:
                page.own()
                new = Page(page.prot, page.max, page.cell, False)
            elif page.wired:
                new = Page(page.prot, page.max, Cell(page.allowed()), False)
            else:
                page.cow = True
                new = Page(page.prot, page.max, page.cell, True)
                new.older = set(page.older)
            new.inherit = page.inherit
            child.pages[i] = new
        self.spaces.append(child)

    @precondition(lambda self: len(self.spaces) > 1)
    @rule(which=starts)
    def exit(self, which: int) -> None:
        space = self.spaces.pop(which % len(self.spaces))
        vmspace_rel(space.proc.p_vmspace)

    # -- always

    @invariant()
    def sound(self) -> None:
        for space in getattr(self, "spaces", ()):
            map = space.proc.map
            assert vm_map_check(map) == []
            left = dict(space.pages)
            for entry in map:
                for i in range((entry.ba.start - LOW) // P, (entry.ba.end - LOW) // P):
                    page = left.pop(i)
                    assert (entry.protection, entry.max_protection) == (page.prot, page.max)
                    assert entry.inheritance == page.inherit
                    assert bool(entry.wired_count) == page.wired
            assert not left
            # (A wired page that nobody could access for a while has no PTE until it is used.)
            wired = sum(page.wired for page in space.pages.values())
            assert map.pmap.pm_stats.wired_count <= wired

    def teardown(self) -> None:
        if not hasattr(self, "spaces"):
            return
        self.patch.undo()
        for space in self.spaces:
            self.vm.sched.curthread.td_proc = space.proc
            for i, page in space.pages.items():
                if page.prot & VM_PROT_READ:
                    assert load(space.proc.map, LOW + i * P) in page.allowed(), (i, page.allowed())
        assert vm_object_check(self.vm) == []
        for space in self.spaces:
            vmspace_rel(space.proc.p_vmspace)
        assert vm_object_check(self.vm) == []
        kept = 0 if self.vp.v_object is None else self.vp.v_object.resident_page_count
        assert self.vm.gd.gd_vmstats.v_free_count + kept == self.free


MapMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMapModel = MapMachine.TestCase
