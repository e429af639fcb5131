"""How many faults a program takes, of what kind, and what each of them leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfvm.machine.pte import PG_A, PG_M, PG_RW
from dfvm.vm import probe
from dfvm.vm.vm import (
    KERN_FAILURE,
    KERN_INVALID_ADDRESS,
    KERN_PROTECTION_FAILURE,
    VM_PROT_EXECUTE,
    VM_PROT_READ,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_object import OBJ_ONEMAPPING, OBJT_DEFAULT
from dfvm.vm.vm_page import (
    ACT_INIT,
    PQ_ACTIVE,
    VM_PAGE_BITS_ALL,
    page_color,
    vm_page_test_dirty,
)
from tests.guest.watch import PAGE, Counts, Look, watch, watch_same

if TYPE_CHECKING:
    from pathlib import Path

    from dfvm import Machine


def counts(look: Look) -> tuple[Counts, list[int]]:
    return look.counts(), [i for i, pte in enumerate(look.ptes(look.a, look.b)) if pte]


@pytest.mark.spec("FAULT-3", "FAULT-11", "PAGER-2")
def test_each_page_of_new_memory_is_one_fault_and_one_page_of_zeros(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "anon_faults", at=counts)
    took = seen.one(2)[0] - seen.one(1)[0]
    assert took["v_vm_faults"] == took["v_zfod"] == took["v_active_count"] == 64
    assert "v_prefault" not in took
    assert "v_cow_faults" not in took
    # 64 pages, and a table of each level that this part of the space did not have.
    assert took["v_wire_count"] == 3
    assert took["v_free_count"] == -64 - took["v_wire_count"]


@pytest.mark.spec("FAULT-5")
def test_a_read_maps_memory_for_writing_too(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[Counts, list[int]]:
        return look.counts(), look.ptes(look.a, min(look.b, 16))

    seen = watch_same(guest_bin / "anon_faults", at=at)
    read = seen.one(4)[0] - seen.one(3)[0]
    assert read["v_vm_faults"] == read["v_zfod"] == 15
    ptes = seen.one(4)[1][1:]
    assert all(pte & PG_RW and pte & PG_A and not pte & PG_M for pte in ptes)
    assert seen.one(5)[0] - seen.one(4)[0] == {}
    assert all(pte & PG_M for pte in seen.one(5)[1])


@pytest.mark.spec("FAULT-6")
@pytest.mark.parametrize(
    ("first", "second", "at", "expected"),
    [
        (5, 6, 20, range(16, 25)),  # the first touch of an object, 8 neighbours
        (6, 7, 60, range(56, 65)),  # and a later one
        (7, 8, 20, range(20, 36)),  # madvise(SEQUENTIAL): 15 pages forward
        (8, 9, 60, range(60, 76)),
    ],
)
def test_neighbours_come_with_a_page(
    guest_bin: Path, first: int, second: int, at: int, expected: range
) -> None:
    seen = watch_same(guest_bin / "anon_faults", at=counts)
    took = seen.one(second)[0] - seen.one(first)[0]
    assert took["v_vm_faults"] == 1
    assert took["v_zfod"] == len(expected)
    assert took["v_prefault"] == len(expected) - 1
    assert set(seen.one(second)[1]) >= set(expected)
    assert at in expected
    assert not {expected.start - 1, expected.stop} & set(seen.one(second)[1])


@pytest.mark.spec("FAULT-6")
@pytest.mark.parametrize(("sysctl", "value", "mapped"), [
    ("prefault_pages", 0, [20]), ("prefault_pages", 2, [19, 20, 21]), ("fast_fault", 0, [20]),
])  # fmt: skip
def test_neighbours_are_tunable(
    guest_bin: Path, sysctl: str, value: int, mapped: list[int]
) -> None:
    def setup(m: Machine) -> None:
        setattr(m.kernel.vm.sysctl, sysctl, value)

    seen = watch_same(guest_bin / "anon_faults", at=counts, setup=setup)
    assert seen.one(6)[1] == mapped


@pytest.mark.spec("FAULT-12", "PAGE-10")
def test_who_sets_the_a_and_d_bits(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[list[int], tuple[int, int]]:
        m = look.page(look.a + 2 * PAGE)
        before = m.dirty
        if look.tag == 5:
            vm_page_test_dirty(look.vm, m)
        return look.ptes(look.a, 8), (before, m.dirty)

    def bits(tag: int) -> str:
        return "".join(
            "D" if pte & PG_M else "A" if pte & PG_A else "-" for pte in seen.one(tag)[0]
        )

    seen = watch_same(guest_bin / "used_bits", at=at)
    assert bits(1) == "---D----"  # neighbours are mapped, and not used
    assert bits(2) == "---DA---"  # write(2) reads
    assert bits(3) == "---DAD--"  # read(2) writes
    assert bits(4) == "--ADAD--"  # the program does, without a fault
    assert bits(5) == "--DDAD--"
    assert seen.one(4)[1] == (0, 0)
    assert seen.one(5)[1] == (0, VM_PAGE_BITS_ALL)  # test_dirty pulls D out of the PTE


@pytest.mark.spec("PAGE-1", "PAGE-3", "PAGE-5", "PAGE-11")
def test_pages_of_an_object_have_colours_in_a_row(guest_bin: Path) -> None:
    def at(look: Look) -> None:
        if look.tag != 2:
            return
        object = look.chain(look.a)[0].object
        assert object is not None
        for i, m in enumerate(look.pages(look.a, look.b)):
            assert look.vm.pages.vm_page_array[m.phys_addr >> 12] is m
            assert (m.object, m.pindex) == (object, i)
            assert m.pc == page_color(m.phys_addr >> 12) == object.pg_color + i & 1023
            assert m.queue == PQ_ACTIVE + m.pc
            assert (m.act_count, m.valid, m.wire_count) == (ACT_INIT, VM_PAGE_BITS_ALL, 0)

    seen = watch_same(guest_bin / "anon_faults", at=at)
    assert len(seen[2]) == 1


@pytest.mark.spec("PAGE-1")
def test_ram_that_is_not_used_has_no_page_structures(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int]:
        made = sum(m is not None for m in look.vm.pages.vm_page_array)
        return made, look.vm.vmstats.v_page_count - look.vm.gd.gd_vmstats.v_free_count

    seen = watch(guest_bin / "anon_faults", at=at, mem="1G")
    made, used = seen.one(2)
    assert used <= made < used + 10  # a few are free again
    assert used < 1000


@pytest.mark.spec("PAGE-3", "PAGE-7")
def test_a_page_that_was_freed_is_the_next_of_its_colour(guest_bin: Path) -> None:
    """MADV_DONTNEED frees pages 16 … 31; touched again, each gets the frame it had: free pages go
    to the head of their colour."""

    def at(look: Look) -> list[int]:
        return [pte & ~(PG_A | PG_M) for pte in look.ptes(look.a + 16 * PAGE, 16)]

    seen = watch_same(guest_bin / "advice", at=at)
    assert not any(seen.one(6))
    assert seen.one(7) == seen.one(5)


@pytest.mark.spec("PAGE-13")
def test_the_cpu_knows_at_once_and_the_others_later(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int]:
        return (look.vm.gd.gd_vmstats.v_active_count, look.vm.vmstats.v_active_count,
                look.vm.gd.gd_vmstats_adj.v_active_count)  # fmt: skip

    seen = watch_same(guest_bin / "anon_faults", at=at)
    own, total, adj = seen.one(2)
    assert own - seen.one(1)[0] == 64
    assert own == total + adj
    seen = watch_same(guest_bin / "rss_limit", "no limit", at=at)
    own, total, adj = seen.one(1)
    assert own == total + adj
    assert own > 6144
    assert adj <= 1024 < total  # 6144 pages and no tick: the limit alone has moved them


@pytest.mark.spec("MAP-2", "OBJ-1", "OBJ-4", "OBJ-10")
def test_memory_has_no_object_before_the_first_touch(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int] | None:
        object = look.chain(look.a)[0].object if look.a else None
        if object is None:
            return None
        assert object.type == OBJT_DEFAULT
        assert object.flags & OBJ_ONEMAPPING
        assert object in look.vm.object_hash[object.id & 255]
        for pindex, m in object.rb_memq.items():
            assert look.pte(look.a + pindex * PAGE) & ~0xFFF & (1 << 52) - 1 == m.phys_addr
        return object.id, object.generation, object.resident_page_count

    seen = watch_same(guest_bin / "anon_faults", at=at)
    assert seen.one(1) is None
    assert seen.one(2)[2] == 64
    (ident, generation, resident), after_reads = seen.one(3), seen.one(4)
    assert after_reads[0] == ident
    assert after_reads[1] > generation
    assert (resident, after_reads[2]) == (1, 16)
    assert seen.one(5) == after_reads  # writes to pages that are there change no membership


@pytest.mark.spec("FAULT-11")
def test_faults_are_the_processs_own_too(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int]:
        return look.counts().v_vm_faults, look.proc.p_minflt, look.proc.p_majflt

    seen = watch_same(guest_bin / "anon_faults", at=at)
    faults, minor, major = (b - a for a, b in zip(seen.one(1), seen.one(9), strict=True))
    assert (faults, major) == (minor, 0)
    assert seen.one(0)[2] > 0  # the program itself was read from its file


@pytest.mark.spec("FAULT-1", "FAULT-10")
def test_what_was_refused_and_why(guest_bin: Path) -> None:
    """The error codes of the engine as fault types, and what vm_fault made of them. The guest has
    checked the signals, their codes and addresses."""
    where: list[int] = []
    seen = watch_same(guest_bin / "rights", at=lambda look: where.append(look.a), faults=True)
    refused = [f for f in seen.faults if f.how & probe.HOW_SIGNAL]
    p = where[0]
    assert [(f.va - p, f.fault_type, f.result) for f in refused if f.va < p + 8 * PAGE] == [
        (3 * PAGE + 5, VM_PROT_WRITE, KERN_PROTECTION_FAILURE),
        (2 * PAGE, VM_PROT_READ, KERN_PROTECTION_FAILURE),
        (0, VM_PROT_EXECUTE, KERN_PROTECTION_FAILURE),
        (6 * PAGE, VM_PROT_READ, KERN_INVALID_ADDRESS),
    ]


@pytest.mark.spec("FAULT-10", "PAGER-4")
def test_beyond_the_end_of_a_file(guest_bin: Path) -> None:
    where: list[int] = []
    seen = watch_same(guest_bin / "file_pages", at=lambda look: where.append(look.a), faults=True)
    refused = [f for f in seen.faults if f.how & probe.HOW_SIGNAL]
    assert [((f.va - where[0]) // PAGE, f.result) for f in refused] == [
        (4, KERN_FAILURE),  # five pages are mapped of a file of four
        (2, KERN_FAILURE),  # and it was cut off
    ]


@pytest.mark.spec("FAULT-11")
def test_the_rss_limit_takes_pages_away_and_keeps_them_in_memory(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int]:
        return look.pmap.pm_stats.resident_count, look.vm.gd.gd_vmstats.v_inactive_count

    seen = watch_same(guest_bin / "rss_limit", at=at)
    resident, inactive = seen.one(1)
    assert resident <= 512 + 4096  # 2 MiB, and the slack
    assert inactive >= 6144 - resident
    free, _ = watch(guest_bin / "rss_limit", "no limit", at=at).one(1)
    assert free > 6144


@pytest.mark.spec("FAULT-11")
def test_the_rss_limit_can_be_turned_off(guest_bin: Path) -> None:
    def setup(m: Machine) -> None:
        m.kernel.vm.sysctl.pageout_memuse_mode = 0

    seen = watch_same(
        guest_bin / "rss_limit", at=lambda look: look.pmap.pm_stats.resident_count, setup=setup
    )
    assert seen.one(1) > 6144


@pytest.mark.spec("FAULT-11", "FAULT-3")
def test_the_first_run_of_a_program_reads_it_and_the_second_does_not(guest_bin: Path) -> None:
    """Hard faults are those that a pager had to read for; what a process has read stays for the
    next."""
    seen = watch_same(guest_bin / "kernel_memory", at=lambda look: look.proc.p_majflt, faults=True)
    assert seen.one(1) > 0
    assert seen.one(9) == 0
    hard = [f for f in seen.faults if f.major]
    assert all(f.how & probe.HOW_FILE for f in hard)
    # A few were the children's, for pages that their parent had no use for.
    assert seen.one(1) <= len(hard) < seen.one(1) + 5


@pytest.mark.spec("PAGER-4")
def test_a_file_is_read_in_runs(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "anon_faults", at=lambda look: look.counts())
    n = seen.one(0)
    assert 1 <= n.v_vnodein * 4 <= n.v_vnodepgsin <= n.v_vnodein * 16
