"""A file's pages as mappings, read and write see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dfvm.machine.pte import PG_FRAME, PG_M, PG_RW
from dfvm.vm.pager import VM_PAGER_OK
from dfvm.vm.pager.default_pager import DefaultPager
from dfvm.vm.pager.vnode_pager import VnodePager
from dfvm.vm.vm_map_entry import MAP_ENTRY_COW, MAP_ENTRY_NEEDS_COPY
from dfvm.vm.vm_object import OBJ_MIGHTBEDIRTY, OBJ_ONEMAPPING, OBJ_WRITEABLE, OBJT_VNODE
from dfvm.vm.vm_page import VM_PAGE_BITS_ALL
from tests.guest.watch import PAGE, Look, watch_same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfvm.vm.pager import VmPager
    from dfvm.vm.vm_object import VmObject

DIRTY = OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY


class FileView:
    """file_pages: a is a shared mapping of five pages, b a private one, c the descriptor."""

    def __init__(self, look: Look) -> None:
        vp = look.proc.p_fd.fget(look.c).f_vnode
        assert vp is not None
        object: VmObject | None = vp.v_object
        self.uses = vp.v_usecount
        self.counts = look.counts()
        self.shared = look.ptes(look.a, 5)
        self.private = look.ptes(look.b, 5)
        self.refs = self.resident = self.flags = self.size = -1
        if object is not None:
            assert object.type == OBJT_VNODE
            self.refs = object.ref_count
            self.size = object.size
            self.flags = object.flags
            self.frames = {i: m.phys_addr for i, m in object.rb_memq.items()}
            self.dirty = {i: m.dirty for i, m in sorted(object.rb_memq.items())}
            self.valid = {m.valid for m in object.rb_memq.values()}
        self.chain: list[tuple[VmObject | None, int, list[int]]] = []
        self.eflags = 0
        if look.entries(look.b, look.b + PAGE):
            chain = look.chain(look.b + 2 * PAGE)
            self.chain = [
                (ba.object, ba.object.ref_count, list(ba.object.rb_memq))
                for ba in chain
                if ba.object is not None
            ]
            self.eflags = look.entry(look.b + 2 * PAGE).eflags
        self.object = object


def frames(ptes: list[int]) -> list[int]:
    return [pte & PG_FRAME for pte in ptes]


@pytest.mark.spec("PAGER-4", "OBJ-1", "MAP-7")
def test_one_page_of_a_file_for_all_who_see_it(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "file_pages", at=FileView)
    v = seen.one(3)
    expected = [v.frames[i] for i in range(4)]
    assert frames(v.shared)[:4] == frames(v.private)[:4] == expected
    assert v.shared[4] == v.private[4] == 0  # beyond the end
    assert (v.refs, v.size) == (2, 4)
    assert not v.flags & OBJ_ONEMAPPING
    assert v.chain == [(v.object, 2, list(v.frames))]
    assert v.eflags & (MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY)


@pytest.mark.spec("OBJ-3")
def test_each_mapping_holds_the_file(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "file_pages", at=FileView)
    mapped, unmapped = seen.one(1), seen.one(9)
    assert mapped.refs == 2
    assert unmapped.refs <= 0
    assert mapped.uses == unmapped.uses + 2
    # The private mapping's new object in front changes nothing: its chain still ends there.
    assert seen.one(5).uses == mapped.uses


@pytest.mark.spec("MAP-8", "FAULT-4")
def test_a_private_write_leaves_the_file_alone(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "file_pages", at=FileView)
    before, after = seen.one(4), seen.one(5)
    took = after.counts - before.counts
    assert took["v_cow_faults"] == 1
    assert len(after.chain) == 2
    assert after.chain[1][0] is after.object
    assert after.chain[0][1:] == (1, [2])
    assert frames(after.private)[2] not in after.frames.values()
    assert after.dirty == before.dirty
    assert not after.eflags & MAP_ENTRY_NEEDS_COPY


@pytest.mark.spec("OBJ-6", "MAP-18", "PAGE-10")
def test_msync_cleans_pages_and_the_object(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "file_pages", at=FileView)
    assert seen.one(1).flags & DIRTY == DIRTY  # write(2) has filled it
    assert any(seen.one(1).dirty.values())
    clean, stored, written, again = (seen.one(tag) for tag in (2, 4, 6, 7))
    assert clean.dirty == {0: 0, 1: 0, 2: 0, 3: 0}
    assert clean.flags & DIRTY == 0
    # A store: the whole page is dirty. A write of one byte: its chunk of 512.
    assert stored.dirty == {0: 0, 1: VM_PAGE_BITS_ALL, 2: 0, 3: 0}
    assert stored.flags & DIRTY == DIRTY
    assert written.dirty == {0: 1 << 1000 // 512, 1: VM_PAGE_BITS_ALL, 2: 0, 3: 0}
    assert again.dirty == clean.dirty
    assert again.flags & DIRTY == 0
    # It was write-protected first, so that a store afterwards is noticed.
    assert stored.shared[1] & (PG_RW | PG_M) == PG_RW | PG_M
    assert again.shared[1] & (PG_RW | PG_M) == 0
    assert again.counts.v_vnodeout - written.counts.v_vnodeout > 0
    assert again.counts.v_vnodepgsout - written.counts.v_vnodepgsout == 2


@pytest.mark.spec("PAGER-4", "PAGE-10")
def test_the_tail_of_the_last_page_is_zero(guest_bin: Path) -> None:
    def at(look: Look) -> bytes:
        m = look.page(look.a + 3 * PAGE) if look.pte(look.a + 3 * PAGE) else None
        return b"" if m is None else bytes(look.kernel.ram.mem[m.phys_addr : m.phys_addr + PAGE])

    seen = watch_same(guest_bin / "file_pages", at=at)
    assert seen.one(3) == b"d" * 100 + bytes(PAGE - 100)


@pytest.mark.spec("OBJ-7", "PAGER-4")
def test_truncation_takes_the_pages_and_their_mappings(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "file_pages", at=FileView)
    before, after = seen.one(7), seen.one(8)
    assert (before.size, after.size) == (4, 2)
    assert sorted(after.frames) == [0, 1]
    assert [bool(pte) for pte in after.shared] == [True, True, False, False, False]
    assert not after.private[3]
    # Pages 2 and 3 of the file, and the private copy of page 2.
    assert (after.counts - before.counts)["v_tfree"] == 3
    assert b"cut off: 7, 83 0" in seen.stdout  # page 1 keeps its start, and zeros behind it


@pytest.mark.spec("PAGER-1", "PAGER-2", "PAGER-4")
def test_what_pagers_are_asked_and_answer(guest_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the program, touching beyond the end of a file, writing back, and the end."""
    asked: set[tuple[str, str, Any]] = set()

    def listen(pager: type[VmPager], call: str, answer: Callable[[Any], Any]) -> None:
        real = getattr(pager, call)

        def heard(self: VmPager, *args: Any) -> Any:
            result = real(self, *args)
            asked.add((pager.__name__, call, answer(result)))
            return result

        monkeypatch.setattr(pager, call, heard)

    for pager in (DefaultPager, VnodePager):
        listen(pager, "getpage", lambda result: result[0])
        listen(pager, "putpages", lambda result: tuple(set(result)))
        listen(pager, "dealloc", lambda result: result)
    watch_same(guest_bin / "file_pages", at=lambda look: None)
    assert asked == {
        ("VnodePager", "getpage", VM_PAGER_OK),
        ("VnodePager", "putpages", (VM_PAGER_OK,)),
        ("VnodePager", "dealloc", None),  # the file had no name: it went with its last user
    }  # anonymous memory has nothing to ask for
