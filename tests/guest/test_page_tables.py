"""The page tables that the engine walks, who owns them, and the TLB flushes it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from dfvm.machine.pte import (
    PAT_NAMES,
    PG_A,
    PG_FRAME,
    PG_M,
    PG_MANAGED,
    PG_NC_PCD,
    PG_NC_PWT,
    PG_NX,
    PG_PS,
    PG_PTE_PAT,
    PG_RW,
    PG_U,
    PG_V,
    pat_memattr,
)
from dfvm.machine.walk import walk
from dfvm.vm.pmap import pmap_extract, pmap_page_set_memattr
from dfvm.vm.vm_object import OBJ_DEAD
from dfvm.vm.vm_page import (
    PHYS_TO_VM_PAGE,
    PQ_FREE,
    PQ_HOLD,
    PQ_NONE,
    vm_page_hold,
    vm_page_unhold,
)
from dfvm.vm.vm_param import DMAP_MIN_ADDRESS
from tests.guest.watch import PAGE, Look, watch_same

if TYPE_CHECKING:
    from pathlib import Path

    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage

PAT = PG_PTE_PAT | PG_NC_PCD | PG_NC_PWT


@pytest.mark.spec("PMAP-1", "PMAP-3")
def test_four_levels_of_wired_pages(guest_bin: Path) -> None:
    def at(look: Look) -> None:
        if look.tag != 2:
            return
        assert look.kernel.mmu.cr3 == look.pmap.pm_pml4
        for i in range(look.b):
            va = look.a + i * PAGE
            levels = walk(look.kernel.ram, look.kernel.mmu.cr3, va)
            assert [level.name for level in levels] == ["PML4", "PDP", "PD", "PT"]
            assert [level.index for level in levels] == [va >> s & 511 for s in (39, 30, 21, 12)]
            for level in levels:
                table = PHYS_TO_VM_PAGE(look.vm, level.table_pa)
                assert table is not None
                assert table.wire_count > 0
                assert (table.object, table.queue) == (None, PQ_NONE)
                assert level.entry & (PG_V | PG_U) == PG_V | PG_U
            leaf = levels[-1].entry
            assert leaf == look.pte(va)
            assert leaf & PG_MANAGED
            assert leaf & (PG_A | PG_M) == PG_A | PG_M  # the engine's own walk has set them
            assert pmap_extract(look.pmap, va + 5) == (leaf & PG_FRAME) + 5
            # What the program has written is in that frame of RAM.
            assert look.kernel.ram.mem[leaf & PG_FRAME] == ord("A") + i % 26

    seen = watch_same(guest_bin / "anon_faults", at=at)
    assert len(seen[2]) == 1


@pytest.mark.spec("PMAP-1")
def test_code_can_not_be_written_and_data_not_run(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int]:
        text = look.pte(look.lwp.ctx.q[16] & ~0xFFF)
        stack = look.pte(look.lwp.ctx.q[4] & ~0xFFF)
        return text, stack, look.pte(look.a)

    seen = watch_same(guest_bin / "rights", at=at)
    text, stack, data = seen.one(1)
    assert text & (PG_V | PG_RW | PG_NX) == PG_V
    assert stack & (PG_V | PG_RW | PG_NX) == PG_V | PG_RW | PG_NX
    assert data & (PG_V | PG_RW | PG_NX) == PG_V | PG_RW | PG_NX
    assert seen.one(6)[2] & (PG_V | PG_RW | PG_NX) == PG_V  # mprotect(READ | EXEC)
    assert seen.one(7)[2] & (PG_V | PG_RW | PG_NX) == PG_V | PG_NX


@pytest.mark.spec("PMAP-2")
def test_the_memory_type_is_in_the_pte(guest_bin: Path) -> None:
    """The memory type of the pages is changed while the program stands still. It goes on with
    them, and what it does to their rights leaves the type alone."""
    kinds = list(PAT_NAMES)

    def at(look: Look) -> list[tuple[int, int]]:
        if look.tag == 1:
            for i, kind in enumerate(kinds):
                pmap_page_set_memattr(look.vm, look.page(look.a + i * PAGE), kind)
        return [(pat_memattr(pte), pte & PAT) for pte in look.ptes(look.a, len(kinds))]

    seen = watch_same(guest_bin / "rights", at=at)
    bits = {"WB": 0, "WT": PG_NC_PWT, "UC-": PG_NC_PCD, "UC": PG_NC_PCD | PG_NC_PWT,
            "WP": PG_PTE_PAT | PG_NC_PWT, "WC": PG_PTE_PAT | PG_NC_PCD}  # fmt: skip
    expected = [(kind, bits[PAT_NAMES[kind]]) for kind in kinds]
    for tag in (1, 2, 3, 4, 6, 7):  # 6: new PTEs, made from the pages
        assert seen.one(tag) == expected, f"look {tag}"


@pytest.mark.spec("PMAP-4")
def test_rights_taken_flush_once_and_rights_given_do_not(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "rights", at=lambda look: look.kernel.mmu.flushes)
    at = {tag: seen.one(tag) for tag in range(1, 8)}
    assert at[2] - at[1] == 1  # eight pages write-protected
    assert at[3] - at[2] == 0  # allowed again; a write was refused meanwhile
    assert at[4] - at[3] == 0  # four pages written: each PTE gains W
    assert at[5] - at[4] == 1  # PROT_NONE: eight PTEs go
    assert at[6] - at[5] == 0  # READ | EXEC: eight PTEs come
    assert at[7] - at[6] == 1  # NX


@pytest.mark.spec("PMAP-4")
def test_new_memory_flushes_nothing(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "anon_faults", at=lambda look: look.kernel.mmu.flushes)
    assert seen.one(2) == seen.one(1)  # 64 pages
    assert seen.one(9) == seen.one(6)  # and neighbours


@pytest.mark.spec("PMAP-5")
def test_the_kernels_half_is_not_the_users(guest_bin: Path) -> None:
    """The guest has read at the start of the direct map, and got SIGSEGV."""

    def at(look: Look) -> int:
        levels = walk(look.kernel.ram, look.pmap.pm_pml4, DMAP_MIN_ADDRESS + look.a % (1 << 21))
        assert [level.name for level in levels] == ["PML4", "PDP", "PD"]
        assert levels[-1].leaf
        assert levels[-1].entry & (PG_PS | PG_U) == PG_PS
        assert levels[-1].entry & PG_FRAME & ~(1 << 12) == 0
        # A page of kernel_map: the process's own kernel stack.
        stack = walk(look.kernel.ram, look.pmap.pm_pml4, look.lwp.lwp_stack.ks_kva + PAGE)
        assert stack[-1].leaf
        assert not stack[-1].entry & PG_U
        guard = walk(look.kernel.ram, look.pmap.pm_pml4, look.lwp.lwp_stack.ks_kva)
        assert not guard[-1].leaf
        return levels[0].table_pa

    seen = watch_same(guest_bin / "rights", at=at)
    assert b"kernel: MAPERR" in seen.stdout
    assert len(seen) == 9


class Owned(NamedTuple):
    free: int
    wired: int
    resident: int
    tables: int
    anonymous: int  # pages in the objects of the process, mapped or not


def owned(look: Look) -> Owned:
    stats = look.vm.gd.gd_vmstats
    objects = {ba.object for entry in look.map for ba in look.chain(entry.ba.start)}
    anonymous = sum(
        len(object.rb_memq) for object in objects if object is not None and not object.handle
    )
    return Owned(stats.v_free_count, stats.v_wire_count, look.pmap.pm_stats.resident_count,
                 len(look.pmap.pm_pt), anonymous)  # fmt: skip


@pytest.mark.spec("PMAP-6", "SPACE-1")
def test_a_process_gives_back_every_page(guest_bin: Path) -> None:
    """Six children in a row take page tables all over their space. After each of them the free
    page count is the same to the page, but for what the parent has copied itself before its child
    was gone."""
    seen = watch_same(guest_bin / "come_and_go", at=owned)
    begun, ended, after = seen[10], seen[11], seen[1]
    assert len(after) == 6
    assert len({(now.free + now.anonymous, now.wired, now.tables) for now in after}) == 1
    for start, end in zip(begun, ended, strict=True):
        assert end.tables - start.tables == 5
        assert end.resident - start.resident == 5 * 8
        # For each of the five a page table, a directory, and for two of them a table above it
        # more; and 40 pages.
        assert end.wired - start.wired >= 5 + 5
        assert start.free - end.free == (end.wired - start.wired) + 40
    assert after[0].free > begun[0].free


@pytest.mark.spec("PMAP-6", "PAGE-7", "OBJ-2")
def test_munmap_gives_back_pages_tables_and_object(guest_bin: Path) -> None:
    held: list[tuple[VmObject, list[VmPage]]] = []

    def at(look: Look) -> Owned:
        if look.tag == 2:
            object = look.chain(look.a)[0].object
            assert object is not None
            held.append((object, look.pages(look.a, look.b)))
        if look.tag == 3:
            object, pages = held[-1]
            assert (object.ref_count, object.hold_count, len(object.rb_memq)) == (0, 0, 0)
            assert object.flags & OBJ_DEAD
            assert object not in look.vm.object_hash[object.id & 255]
            for m in pages:
                assert m.queue == PQ_FREE + m.pc
                assert (m.object, m.valid, m.dirty, m.flags & 0x70) == (None, 0, 0, 0)
        return owned(look)

    seen = watch_same(guest_bin / "come_and_go", at=at)
    mapped, gone = seen[2], seen[3]
    assert len(set(mapped)) == len(set(gone)) == 1
    assert gone[0] == seen[1][-1]
    assert mapped[0].tables - gone[0].tables == 1
    assert gone[0].free - mapped[0].free == 40 + mapped[0].wired - gone[0].wired


@pytest.mark.spec("PAGE-7")
def test_a_page_that_is_held_is_not_used_again(guest_bin: Path) -> None:
    """Held while the program unmaps it: the page waits on the hold queue. Given up, it is free."""
    held: list[VmPage] = []

    def at(look: Look) -> tuple[int, int] | None:
        stats = look.vm.gd.gd_vmstats
        if look.tag == 2 and not held:
            held.append(look.page(look.a))
            vm_page_hold(look.vm, held[0])
        elif look.tag == 3 and held[0].hold_count:
            m = held[0]
            assert m.queue == PQ_HOLD + m.pc
            assert (m.object, m.valid) == (None, 0)
            before = stats.v_free_count
            vm_page_unhold(look.vm, m)
            assert m.queue == PQ_FREE + m.pc
            return before, stats.v_free_count
        return stats.v_free_count, stats.v_free_count

    seen = watch_same(guest_bin / "come_and_go", at=at)
    (before, after), others = seen[3][0], seen[3][1:]
    assert after == before + 1
    assert others == [(after, after)] * 2


@pytest.mark.spec("SPACE-1")
def test_a_zombie_has_no_memory_but_still_a_space(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int, int, int]:
        child = look.kernel.procs.get(look.a)
        free = look.vm.gd.gd_vmstats.v_free_count
        if child is None:
            return free, 0, 0, 0, 0
        space = child.p_vmspace
        return (free, space.vm_refcnt, space.vm_holdcnt, space.vm_map.nentries,
                space.vm_pmap.pm_stats.resident_count)  # fmt: skip

    seen = watch_same(guest_bin / "zombie", at=at)
    for zombie in seen[2]:
        assert zombie[1:] == (-1, 1, 0, 0)  # exiting; held by who has not been reaped
    for before, after in zip(seen[2][1:], seen[3][1:], strict=True):
        assert after[0] == before[0] + 1  # the top page table was the last
