"""What a map looks like after the calls of a program: entries, objects, holes, stacks, wirings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dfvm.machine.pte import PG_M, PG_RW, PG_W
from dfvm.vm import probe
from dfvm.vm.vm import (
    KERN_FAILURE,
    KERN_INVALID_ADDRESS,
    VM_PROT_NONE,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_BRK,
    VM_SUBSYS_IMGACT,
    VM_SUBSYS_MMAP,
    VM_SUBSYS_SHMEM,
    VM_SUBSYS_STACK,
)
from dfvm.vm.vm_map import vm_map_lookup_entry
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_BEHAV_RANDOM,
    MAP_ENTRY_BEHAV_SEQUENTIAL,
    MAP_ENTRY_NOCOREDUMP,
    MAP_ENTRY_STACK,
    MAP_ENTRY_USER_WIRED,
    MAP_WIREFUTURE,
    VM_MAP_FFCOUNT,
)
from dfvm.vm.vm_map_index import CHUNK
from dfvm.vm.vm_page import ACT_INIT, PQ_ACTIVE, PQ_INACTIVE, PQ_NONE, VM_PAGE_BITS_ALL
from dfvm.vm.vm_param import SGROWSIZ
from tests.guest.watch import PAGE, Counts, Look, place, watch, watch_same

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dfvm import Machine
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage

RW = VM_PROT_READ | VM_PROT_WRITE


class Range:
    """An entry, in pages from the address that the guest gave."""

    def __init__(self, look: Look, entry: Any) -> None:
        ba = entry.ba
        self.range = ((ba.start - look.a) // PAGE, (ba.end - look.a) // PAGE)
        self.prot: int = entry.protection
        self.flags: int = entry.eflags
        self.object: VmObject | None = ba.object
        self.offset = ba.offset // PAGE
        self.resident, self.refs, self.size = 0, 0, 0
        if ba.object is not None:
            self.resident = len(ba.object.rb_memq)
            self.refs = ba.object.ref_count
            self.size = ba.object.size


def ranges(look: Look) -> tuple[list[Range], Counts]:
    found = look.entries(look.a, look.a + look.b * PAGE) if look.b < 1 << 30 else []
    return [Range(look, entry) for entry in found], look.counts()


def spans(entries: Sequence[Range]) -> list[tuple[int, int]]:
    return [r.range for r in entries]


@pytest.mark.spec("MAP-3", "OBJ-8")
def test_a_mapping_grows_at_its_end(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "map_shapes", at=ranges)
    (r,), _ = seen.one(1)  # nothing has been touched
    assert (r.range, r.object) == ((0, 32), None)
    (r,), _ = seen.one(2)  # it had an object of 32 pages
    assert (r.range, r.size, r.resident, r.refs) == ((0, 48), 48, 32, 1)
    (grown,), _ = seen.one(3)
    assert grown.object is r.object
    assert grown.resident == 48


@pytest.mark.spec("MAP-5", "MAP-10")
def test_rights_for_a_part_cut_the_entry_and_rights_for_all_merge_it(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "map_shapes", at=ranges)
    (whole,), before = seen.one(3)
    parts, cut = seen.one(4)
    assert spans(parts) == [(0, 8), (8, 16), (16, 48)]
    assert [r.prot for r in parts] == [RW, VM_PROT_READ, RW]
    assert [r.offset for r in parts] == [0, 8, 16]
    assert {r.object for r in parts} == {whole.object}
    assert parts[0].refs == 3
    (merged,), after = seen.one(5)
    assert (merged.range, merged.refs, merged.prot) == ((0, 48), 1, RW)
    assert merged.object is whole.object
    assert after - before == {"flushes": 1} == cut - before  # no page was copied, none faulted


@pytest.mark.spec("MAP-17", "OBJ-7", "MAP-3")
def test_a_hole_gives_its_pages_back_at_once(guest_bin: Path) -> None:
    """munmap of the middle third: the object lives on in the two others, but only one entry could
    see those pages."""
    seen = watch_same(guest_bin / "map_shapes", at=ranges)
    (_,), before = seen.one(6)
    parts, after = seen.one(7)
    assert spans(parts) == [(0, 16), (32, 48)]
    assert (parts[0].resident, parts[0].refs) == (32, 2)
    took = after - before
    assert (took["v_free_count"], took["v_active_count"], took["v_tfree"]) == (16, -16, 16)
    # New memory there is new: it must not see what the object may have at these indices.
    parts, _ = seen.one(8)
    assert spans(parts) == [(0, 16), (16, 32), (32, 48)]
    assert parts[1].object is None
    assert seen.stdout.startswith(b"0")


@pytest.mark.spec("MAP-4")
def test_the_lowest_hole_that_fits_is_found(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int, int]:
        return look.a, look.b, look.c, len(look.map.freehint)

    seen = watch(guest_bin / "map_shapes", at=at)
    assert seen.status == 0
    three, low, high, hints = seen.one(10)
    assert three == low + 2 * PAGE  # a hole of three pages there, of four above
    four, _, _, _ = seen.one(11)
    assert four == high + 2 * PAGE
    assert 0 < hints <= VM_MAP_FFCOUNT


@pytest.mark.spec("MAP-1", "MAP-5")
def test_thousands_of_entries(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int]:
        map = look.map
        entries = list(map)
        starts = [e.ba.start for e in entries]
        assert starts == sorted(starts)
        assert list(map.index) == entries
        assert max(len(chunk) for chunk in map.index.starts) <= CHUNK  # bisected, never walked
        for i in range(0, look.b, 7):
            found, entry = vm_map_lookup_entry(map, look.a + i * PAGE + 5)
            if look.tag == 1:
                assert found
                assert entry is map.hint
                assert entry is not None
                assert entry.ba.start == look.a + i * PAGE
            else:
                assert not found
        return map.nentries, len(map.index.starts)

    seen = watch_same(guest_bin / "many_entries", at=at)
    (many, lists), (few, lists_after) = seen.one(1), seen.one(2)
    assert many - few == 3000
    assert lists > 3000 // CHUNK
    assert lists_after < lists


MIB = 256  # pages


@pytest.mark.spec("MAP-9")
def test_a_large_mapping_is_cut_where_it_is_used(guest_bin: Path) -> None:
    """From 16 MiB above a 32 MiB boundary to 176; touched at 66, 67 and 175."""
    seen = watch_same(guest_bin / "partitions", at=ranges)
    assert spans(seen.one(1)[0]) == [(0, 160 * MIB)]
    assert spans(seen.one(2)[0]) == [(0, 48 * MIB), (48 * MIB, 80 * MIB), (80 * MIB, 160 * MIB)]
    assert [r.size for r in seen.one(2)[0]] == [0, 32 * MIB, 0]
    assert spans(seen.one(3)[0]) == spans(seen.one(2)[0])
    assert spans(seen.one(4)[0])[2:] == [(80 * MIB, 144 * MIB), (144 * MIB, 160 * MIB)]
    assert seen.one(4)[0][-1].size == 16 * MIB


@pytest.mark.spec("MAP-9")
def test_partitions_can_be_turned_off(guest_bin: Path) -> None:
    def setup(m: Machine) -> None:
        m.kernel.vm.sysctl.map_partition_enable = 0

    seen = watch_same(guest_bin / "partitions", at=ranges, setup=setup)
    assert spans(seen.one(4)[0]) == [(0, 160 * MIB)]


@pytest.mark.spec("MAP-10")
def test_protect_gives_no_right_and_takes_every(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[list[int], list[Range]]:
        return look.ptes(look.a, min(look.b, 4)), ranges(look)[0]

    seen = watch_same(guest_bin / "rights", at=at)
    writable = {tag: [bool(pte & PG_RW) for pte in seen.one(tag)[0]] for tag in range(1, 6)}
    assert writable[1] == [True] * 4
    assert writable[2] == [False] * 4
    assert seen.one(3)[1][0].prot == RW
    assert writable[3] == [False] * 4  # a fault will tell
    assert writable[4] == [True] * 4
    assert seen.one(5)[0] == [0] * 4
    # What is refused changes nothing: a file opened for reading, mapped shared.
    (before,), (after,) = seen.one(8)[1], seen.one(9)[1]
    assert before.prot == after.prot == VM_PROT_READ
    assert before.flags == after.flags
    assert seen.one(5)[1][0].prot == VM_PROT_NONE


@pytest.mark.spec("MAP-11", "MAP-5")
def test_advice_about_order_is_the_entrys(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "advice", at=ranges)
    assert spans(seen.one(7)[0]) == [(0, 512)]
    entries = seen.one(8)[0]
    assert spans(entries) == [(0, 8), (8, 16), (16, 512)]
    assert [r.flags for r in entries] == [
        MAP_ENTRY_BEHAV_RANDOM, MAP_ENTRY_BEHAV_SEQUENTIAL, MAP_ENTRY_BEHAV_RANDOM,
    ]  # fmt: skip
    assert seen.one(9)[0][1].flags == MAP_ENTRY_BEHAV_RANDOM | MAP_ENTRY_NOCOREDUMP


def queues(look: Look) -> tuple[list[str], list[tuple[int, int]]]:
    """On which queue each page is, how dirty, how active."""
    pages = [m for m in _front(look).rb_memq.values() if m.pindex < look.b]
    pages.sort(key=_pindex)
    names = {PQ_ACTIVE: "active", PQ_INACTIVE: "inactive"}
    return [names[m.queue - m.pc] for m in pages], [(m.dirty, m.act_count) for m in pages]


def _front(look: Look) -> VmObject:
    object = look.chain(look.a)[-1].object
    assert object is not None
    return object


def _pindex(m: VmPage) -> int:
    return m.pindex


@pytest.mark.spec("PAGE-9", "MAP-11", "OBJ-9")
def test_cold_pages_become_inactive_but_for_one_of_32(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "advice", at=queues)
    assert seen.one(1)[0] == ["active"] * 512
    assert sorted(seen.one(2)[0]) == ["active"] * 16 + ["inactive"] * 496
    assert seen.one(3)[0] == ["active"] * 512  # WILLNEED takes them back


@pytest.mark.spec("OBJ-9", "PAGE-11", "MAP-11")
def test_free_pages_are_clean_and_idle_and_stay(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "advice", at=queues)
    assert {dirty for dirty, _ in seen.one(3)[1]} == {VM_PAGE_BITS_ALL}
    assert min(activity for _, activity in seen.one(3)[1]) >= ACT_INIT - 1
    assert seen.one(4)[1] == [(0, 0)] * 512
    # After a fork others may rely on what is there: the advice is not taken.
    assert seen.one(11)[1] == seen.one(10)[1]

    def ptes(look: Look) -> list[int]:
        return look.ptes(look.a, 16)

    dirty = watch(guest_bin / "advice", at=ptes)
    assert not any(pte & PG_M for pte in dirty.one(4))
    assert [bool(pte & PG_M) for pte in dirty.one(5)] == [True] * 8 + [False] * 8


class Wired:
    def __init__(self, look: Look) -> None:
        entries = look.entries(look.a, look.a + look.b * PAGE)
        self.counts = [e.wired_count for e in entries]
        self.user = [bool(e.eflags & MAP_ENTRY_USER_WIRED) for e in entries]
        self.ptes = look.ptes(look.a, look.b)
        self.pages = [
            (m.wire_count, m.queue) for m in look.pages(look.a, look.b)
        ] if all(self.ptes) else []  # fmt: skip
        self.total = look.counts().v_wire_count
        self.pmap = look.pmap.pm_stats.wired_count
        self.future = look.map.flags & MAP_WIREFUTURE
        self.cow = look.counts().v_cow_faults
        self.frames = {pte & ~0xFFF for pte in self.ptes}


@pytest.mark.spec("MAP-12", "PAGE-8", "FAULT-8")
def test_mlock_brings_wires_and_keeps(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "wiring", at=Wired, faults=True)
    before, locked, unlocked = (seen.one(tag) for tag in (1, 2, 8))
    assert before.counts == [0]
    assert locked.counts == [1]
    assert locked.user == [True]
    assert all(pte & PG_W and pte & PG_RW for pte in locked.ptes)
    assert locked.pages == [(1, PQ_NONE)] * 8
    assert (locked.total - before.total, locked.pmap) == (8, 8)
    base = place(0)
    wiring = [f for f in seen.faults if f.how & probe.HOW_WIRE and base <= f.va < base + 8 * PAGE]
    assert [(f.va - base) // PAGE for f in wiring] == list(range(8))
    # Locking a part twice counts once; one munlock is enough.
    assert unlocked.counts == [0]
    assert unlocked.pmap == 0
    assert not any(pte & PG_W for pte in unlocked.ptes)
    assert {wired for wired, _ in unlocked.pages} == {0}
    assert {queue & ~1023 for _, queue in unlocked.pages} == {PQ_ACTIVE & ~1023}


@pytest.mark.spec("SPACE-2", "FAULT-8", "MAP-12")
def test_wired_memory_is_copied_at_fork(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "wiring", at=Wired)
    parent, child = seen.one(6), seen.one(4)
    assert parent.ptes == seen.one(3).ptes  # wired, writable: not one bit has changed
    assert all(pte & PG_RW and not pte & PG_W for pte in child.ptes)
    assert not parent.frames & child.frames
    assert (child.counts, child.pmap) == ([0], 0)
    # So nobody copies on write later.
    assert seen.one(7).cow == parent.cow
    assert seen.one(5).cow == child.cow


@pytest.mark.spec("MAP-12")
def test_what_is_mapped_after_mlockall_is_wired(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "wiring", at=Wired)
    future, over, gone = (seen.one(tag) for tag in (9, 10, 11))
    assert future.future
    assert future.pages == [(1, PQ_NONE)] * 8
    assert not over.future
    assert over.counts == [0]
    assert gone.total == seen.one(8).total


@pytest.mark.spec("MAP-12")
def test_what_can_not_be_wired_wholly(guest_bin: Path) -> None:
    """The last of three pages is beyond the end of the file: the first two are unwired again. To
    Linux the three are locked all the same: then what there is is wired alone."""
    seen = watch_same(guest_bin / "wiring", at=Wired, faults=True)
    before, after = seen.one(12), seen.one(13)
    tried = [f for f in seen.faults if f.how & probe.HOW_WIRE and f.va >= place(3)]
    assert [f.result == KERN_FAILURE for f in tried] == [False, False, True] * 2
    assert (before.counts, after.counts) == ([0], [1])
    assert (after.total, after.pmap) == (before.total + 2, 2)


@pytest.mark.spec("MAP-14")
def test_a_stack_grows_in_steps_within_its_limit(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int, int]:
        entry = look.entry(look.a)
        assert entry.eflags & MAP_ENTRY_STACK
        room = entry.ba.start - entry.avail_ssize
        assert look.entries(room, entry.ba.start) == []  # nobody was put where it may grow
        assert len(look.entries(room, entry.ba.end)) == 1
        size = entry.ba.end - entry.ba.start
        return size, size + entry.avail_ssize, look.proc.p_vmspace.vm_ssize, look.c

    seen = watch_same(guest_bin / "stack_steps", at=at, faults=True)
    sizes = [seen.one(tag)[0] for tag in (1, 2, 3, 4)]
    assert sizes == [SGROWSIZ, 3 * SGROWSIZ, 1 << 20, 1 << 20]
    assert len({seen.one(tag)[1] for tag in (1, 2, 3, 4)}) == 1
    assert [seen.one(tag)[2] for tag in (1, 2, 3, 4)] == sizes
    assert [seen.one(tag)[3] for tag in (3, 4)] == [0, 11]
    grown = [f for f in seen.faults if f.how & probe.HOW_GROW]
    assert len(grown) >= 2
    (refused,) = (f for f in seen.faults if f.how & probe.HOW_SIGNAL)
    assert refused.result == KERN_INVALID_ADDRESS


@pytest.mark.spec("MAP-19")
def test_entries_say_where_they_come_from(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[set[int], int, list[int]]:
        marks = [look.entry(va).id for va in (look.a, look.c) if va]
        return {e.id for e in look.map}, look.map.timestamp, marks

    seen = watch_same(guest_bin / "cow_counts", at=at)
    ids, _, marks = seen.one(1)
    assert ids >= {VM_SUBSYS_IMGACT, VM_SUBSYS_STACK, VM_SUBSYS_MMAP, VM_SUBSYS_SHMEM}
    assert marks == [VM_SUBSYS_MMAP, VM_SUBSYS_SHMEM]
    assert ids <= {VM_SUBSYS_IMGACT, VM_SUBSYS_STACK, VM_SUBSYS_MMAP, VM_SUBSYS_SHMEM,
                   VM_SUBSYS_BRK}  # fmt: skip


@pytest.mark.spec("MAP-19")
def test_the_timestamp_counts_exclusive_holds(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "map_shapes", at=lambda look: look.map.timestamp)
    assert seen.one(3) == seen.one(2)  # 16 faults
    assert seen.one(4) == seen.one(3) + 1  # one mprotect
    assert seen.one(7) == seen.one(6) + 1  # one munmap
