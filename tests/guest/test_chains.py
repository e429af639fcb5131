"""Fork: who sees which page, through which chain, and what each copy costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from dfvm.machine.pte import PG_A, PG_FRAME, PG_RW
from dfvm.vm import probe
from dfvm.vm.pmap import pmap_page_protect, pmap_ts_referenced
from dfvm.vm.vm import VM_PROT_READ
from dfvm.vm.vm_map_entry import MAP_ENTRY_COW, MAP_ENTRY_NEEDS_COPY
from dfvm.vm.vm_object import OBJ_ONEMAPPING
from dfvm.vm.vm_page import PG_MAPPEDMULTI, VM_PAGE_BITS_ALL, vm_page_hash_get, vm_page_sbusy_drop
from tests.guest.watch import PAGE, Counts, Look, watch_same

if TYPE_CHECKING:
    from pathlib import Path

    from dfvm import Machine
    from dfvm.vm.vm_object import VmObject

N = 32  # pages of cow_counts
COW = MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY


class View(NamedTuple):
    """cow_counts' memory as one of its processes has it."""

    counts: Counts
    chain: list[tuple[int, int, int]]  # object, its references, its pages; front first
    eflags: int
    ptes: list[int]
    dirty: list[bool]


def view(look: Look) -> View:
    chain = [(ba.object.id, ba.object.ref_count, len(ba.object.rb_memq))
             for ba in look.chain(look.a) if ba.object is not None]  # fmt: skip
    ptes = look.ptes(look.a, N)
    dirty = [
        look.page(look.a + i * PAGE).dirty == VM_PAGE_BITS_ALL for i, pte in enumerate(ptes) if pte
    ]
    return View(look.counts(), chain, look.entry(look.a).eflags & COW, ptes, dirty)


@pytest.mark.spec("SPACE-2", "PMAP-3", "MAP-7")
def test_fork_copies_the_map_and_no_page(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "cow_counts", at=view)
    before, parent, child = (seen.one(tag) for tag in (1, 2, 10))
    assert all(pte & PG_RW for pte in before.ptes)
    # The same frames, still known as used, but without the right to write.
    assert parent.ptes == [pte & ~PG_RW for pte in before.ptes]
    assert all(pte & PG_A for pte in parent.ptes)
    assert child.ptes == [0] * N
    assert before.eflags == 0
    assert parent.eflags == child.eflags == COW
    ((ident, refs, resident),) = before.chain
    assert (refs, resident) == (1, N)
    assert parent.chain == child.chain == [(ident, 2, N)]
    assert child.counts.v_cow_faults - before.counts.v_cow_faults < N  # some, of the stack


@pytest.mark.spec("FAULT-4", "MAP-8")
def test_each_copy_is_one_fault(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "cow_counts", at=view)
    took = seen.one(12).counts - seen.one(11).counts
    assert took == {"v_vm_faults": 7, "v_cow_faults": 7, "v_active_count": 7, "v_free_count": -7}
    took = seen.one(4).counts - seen.one(3).counts
    assert took == {"v_vm_faults": 15, "v_cow_faults": 15, "v_active_count": 15,
                    "v_free_count": -15}  # fmt: skip
    took = seen.one(6).counts - seen.one(5).counts
    assert (took["v_vm_faults"], took["v_cow_faults"]) == (16, 16)


@pytest.mark.spec("FAULT-4", "MAP-8", "MAP-7", "OBJ-1")
def test_a_new_object_in_front_takes_the_copies(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[View, list[bool], list[tuple[int, int, int, bool]]]:
        chain = look.chain(look.a)
        objects = [ba.object for ba in chain if ba.object is not None]
        return (
            view(look),
            [bool(object.flags & OBJ_ONEMAPPING) for object in objects],
            [(ba.start, ba.end, ba.backing_count, ba.pmap is look.pmap) for ba in chain],
        )

    seen = watch_same(guest_bin / "cow_counts", at=at)
    old = seen.one(1)[0].chain[0][0]
    child, parent = seen.one(12)[0], seen.one(4)[0]
    assert child.chain[0][1:] == (1, 8)
    assert parent.chain[0][1:] == (1, 16)
    # What is behind stays whole: 32 pages, seen by both, also where both have copies.
    assert child.chain[1:] == [(old, 2, N)]
    assert parent.chain[1:] == [(old, 2, N)]
    assert child.chain[0][0] != parent.chain[0][0]
    assert child.eflags == parent.eflags == MAP_ENTRY_COW
    assert [flags for _, flags, _ in (seen.one(1), seen.one(12))] == [[True], [True, False]]
    start, end = seen.one(12)[2][0][:2]
    assert end - start == N * PAGE
    assert seen.one(12)[2] == [(start, end, 1, True), (start, end, 0, True)]
    # The child has gone: its reference, too.
    assert seen.one(5)[0].chain[1] == (old, 1, N)


@pytest.mark.spec("FAULT-4")
def test_copies_are_writable_and_dirty_and_what_is_read_is_not(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "cow_counts", at=view)
    child, parent = seen.one(13), seen.one(4)
    assert [bool(pte & PG_RW) for pte in child.ptes] == [True] * 8 + [False] * (N - 8)
    assert child.dirty == [True] * N  # the parent's pages were dirty before
    old = [pte & PG_FRAME for pte in seen.one(1).ptes]
    ours = [pte & PG_FRAME for pte in child.ptes]
    assert ours[8:] == old[8:]
    assert not set(ours[:8]) & set(old)
    theirs = [pte & PG_FRAME for pte in parent.ptes]
    assert theirs[16:] == old[16:]
    assert not set(theirs[:16]) & (set(old) | set(ours))


@pytest.mark.spec("PMAP-4")
def test_copying_on_write_flushes_nothing(guest_bin: Path) -> None:
    """The parent's 32 pages were in the TLB, for reading; each write fault puts another frame in
    their place, and the engine forgets the old one by itself."""
    seen = watch_same(guest_bin / "cow_counts", at=view)
    assert seen.one(4).counts.flushes == seen.one(3).counts.flushes
    assert seen.one(6).counts.flushes == seen.one(5).counts.flushes
    assert seen.one(2).counts.flushes > seen.one(1).counts.flushes  # fork did flush


@pytest.mark.spec("MAP-11", "SPACE-2")
def test_inheritance(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int]:
        none = look.entries(look.a + (1 << 30), look.a + (1 << 30) + 4 * PAGE)
        if look.tag > 2 and look.tag != 10:
            return 0, 0, 0
        shared = look.entry(look.c)
        assert shared.ba.object is not None
        assert not shared.eflags & COW
        return len(none), shared.ba.object.id, shared.ba.object.ref_count

    seen = watch_same(guest_bin / "cow_counts", at=at)
    assert seen.one(1)[0] == 1
    assert seen.one(2) == (1, seen.one(1)[1], 2)  # SHARE: the same object
    assert seen.one(10) == (0, seen.one(1)[1], 2)  # NONE: nothing is there


@pytest.mark.spec("FAULT-8", "FAULT-4")
def test_a_debuggers_write_is_a_copy_too(guest_bin: Path) -> None:
    """The child writes to /proc/self/mem where it may only read and the parent sees the page: it
    gets a page of its own, in an object of its own, and still may not write there."""

    def at(look: Look) -> tuple[Counts, list[int], list[list[int]]]:
        chain = [ba.object.rb_memq for ba in look.chain(look.a) if ba.object is not None]
        return look.counts(), look.ptes(look.a, 4), [sorted(pages) for pages in chain]

    seen = watch_same(guest_bin / "proc_mem", at=at)
    (before, old, chain), (after, new, copied) = seen.one(1), seen.one(2)
    assert chain == [[0, 1, 2, 3]]
    assert copied == [[1], [0, 1, 2, 3]]
    assert (after - before)["v_cow_faults"] == 1
    assert new == [old[0], 0, old[2], old[3]]  # what was mapped there is not the page any more
    again = seen.one(3)[1][1]
    assert again & PG_FRAME not in (pte & PG_FRAME for pte in old)
    assert not again & PG_RW


@pytest.mark.spec("MAP-8")
def test_who_is_alone_again_copies_nothing(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "fork_alone", at=view, faults=True)
    before, after = seen.one(1), seen.one(2)
    assert before.eflags == COW
    assert not any(pte & PG_RW for pte in before.ptes[:16])
    took = after.counts - before.counts
    assert took["v_vm_faults"] == 16
    assert "v_cow_faults" not in took
    assert "v_free_count" not in took
    assert after.chain == before.chain
    assert after.eflags == MAP_ENTRY_COW
    assert after.ptes[:16] == [pte | PG_RW for pte in before.ptes[:16]]
    assert sum(1 for f in seen.faults if f.how & probe.HOW_WPTE) >= 16


def depths(look: Look) -> tuple[int, int, list[int]]:
    chain = look.chain(look.a)
    assert [ba.backing_count for ba in chain] == list(range(len(chain) - 1, -1, -1))
    return look.c, len(chain) - 1, [len(ba.object.rb_memq) for ba in chain if ba.object is not None]


@pytest.mark.spec("FAULT-9")
@pytest.mark.parametrize("limit", [5, 3, 1])
def test_a_chain_is_never_longer_than_the_limit(guest_bin: Path, limit: int) -> None:
    """All children live. The chain grows with each fork and write, and the fork that meets the
    limit brings all 24 pages into one object."""

    def setup(m: Machine) -> None:
        m.kernel.vm.sysctl.map_backing_limit = limit

    seen = watch_same(guest_bin / "chain_depth", at=depths, setup=setup)
    assert [depth for _, depth, _ in seen[1]] == [i % limit for i in range(16)]
    assert [depth for _, depth, _ in seen[2]] == [i % limit + 1 for i in range(16)]
    for i, depth, resident in seen[2]:
        assert resident == [1] * depth + [24], f"fork {i}"


@pytest.mark.spec("FAULT-9")
def test_a_process_that_waits_for_its_children_has_no_chain(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "chain_depth", "reap", at=depths)
    assert [depth for _, depth, _ in seen[1]] == [0] * 16
    assert max(depth for _, depth, _ in seen[2]) == 1


@pytest.mark.spec("FAULT-3")
def test_pages_are_found_at_every_depth(guest_bin: Path) -> None:
    """The children read what the parent wrote up to five forks ago, each page as deep as it is old.
    (They have checked what they read.)"""
    where: list[int] = []

    def at(look: Look) -> None:
        where.append(look.a)

    seen = watch_same(guest_bin / "chain_depth", at=at, faults=True)
    p = where[0]
    found = {
        (f.depth, f.pindex * PAGE == f.va - p)
        for f in seen.faults
        if p <= f.va < p + 24 * PAGE and f.page is not None and not f.how & probe.HOW_ZFOD
    }
    assert found == {(depth, True) for depth in range(6)}


class Shared(NamedTuple):
    counts: Counts
    known: list[bool]  # which pages the page hash knows
    multi: list[bool]  # which are mapped more than once


def shared(look: Look) -> Shared:
    object = look.chain(look.a)[0].object
    known, multi = [], []
    for pindex in range(look.b):
        m = vm_page_hash_get(object, pindex) if object is not None else None
        known.append(m is not None)
        multi.append(m is not None and bool(m.flags & PG_MAPPEDMULTI))
        if m is not None:
            vm_page_sbusy_drop(look.vm, m)
    return Shared(look.counts(), known, multi)


@pytest.mark.spec("FAULT-2", "PAGE-6")
def test_shared_pages_are_found_by_the_bypass(guest_bin: Path) -> None:
    """Eight pages, eight processes. The first makes them, the second maps them once more, from
    then on the hash has them; but until the fifth has written to them, mapping them for writing
    has something to do yet."""
    seen = watch_same(guest_bin / "share_hits", at=shared, faults=True)
    took = [b.counts - a.counts for a, b in zip(seen[1], seen[2], strict=True)]
    assert [n["v_vm_faults"] for n in took] == [8] * 8
    assert [n.get("v_zfod", 0) for n in took] == [8] + [0] * 7
    assert [n.get("v_fault_bypass", 0) for n in took] == [0, 0, 0, 0, 0, 8, 8, 8]
    known = [s.known for s in seen[2]]
    assert known[0] == [False] * 8
    assert known[1][1:] == [True] * 7  # the first went the long way, which looks before it maps
    assert known[2:] == [[True] * 8] * 6
    assert all(s.multi == s.known for s in seen[2])
    hits = [f for f in seen.faults if f.how & probe.HOW_BYPASS]
    assert len(hits) >= 24
    assert all(f.page is not None for f in hits)


@pytest.mark.spec("FAULT-2")
def test_the_bypass_takes_what_the_object_would_have_given(guest_bin: Path) -> None:
    """Without the quick way through the engine's callback every fault goes the long way: the
    same hits."""

    def setup(m: Machine) -> None:
        m.kernel.vcpu.on_fault = lambda va, error: False

    seen = watch_same(guest_bin / "share_hits", at=shared, setup=setup)
    hits = [(b.counts - a.counts).get("v_fault_bypass", 0)
            for a, b in zip(seen[1], seen[2], strict=True)]  # fmt: skip
    assert hits == [0, 0, 0, 0, 0, 8, 8, 8]


@pytest.mark.spec("OBJ-5", "MAP-7", "PMAP-3")
def test_a_page_knows_who_maps_it(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int, list[int], int]:
        object: VmObject | None = look.chain(look.a)[0].object
        if object is None:
            return 0, 0, 0, [], 0
        pmaps = {ba.pmap for ba in object.backing_list}
        referenced, writable = 0, []
        if look.tag == 3:
            m = object.rb_memq[0]
            referenced = pmap_ts_referenced(look.vm, m)
            for pmap in pmaps:
                base = pmap.pm_pt.get(look.a >> 21)
                writable.append(0 if base is None else pmap.q[base + (look.a >> 12 & 511)] & PG_RW)
            pmap_page_protect(look.vm, m, VM_PROT_READ)
            left = 0
            for pmap in pmaps:
                base = pmap.pm_pt.get(look.a >> 21)
                left += 0 if base is None else pmap.q[base + (look.a >> 12 & 511)] & PG_RW
            assert left == 0
        return len(object.backing_list), len(pmaps), object.ref_count, writable, referenced

    seen = watch_same(guest_bin / "share_hits", at=at)
    entries, spaces, refs, writable, referenced = seen.one(3)
    assert entries == spaces == refs == 9  # the parent, and eight children
    assert sorted(writable) == [0] + [PG_RW] * 8
    assert referenced == 5  # and does not count on: so many make a page active beyond doubt
    assert seen.one(4)[:3] == (1, 1, 1)
