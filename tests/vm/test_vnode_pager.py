"""Files: the vnode pager, cleaning, truncation, and what read, write and mmap see of each other.

A mapping's store is played by `store`: it changes the page's memory and calls the page dirty, as
the M bit of a PTE would. The tests with real PTEs are those of pmap and the guest programs.
"""

from __future__ import annotations

from errno import EIO
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.lwkt.panic import Panic
from dfvm.vm.pager import VM_PAGER_BAD, VM_PAGER_ERROR, VM_PAGER_OK
from dfvm.vm.pager.vnode_pager import (
    vnode_pager_alloc,
    vnode_pager_object,
    vnode_pager_readpage,
    vnode_pager_reclaim,
    vnode_pager_setsize,
    vnode_pager_writepage,
    vnode_pager_wrote,
)
from dfvm.vm.vm_object import (
    OBJ_DEAD,
    OBJ_MIGHTBEDIRTY,
    OBJ_WRITEABLE,
    OBJPC_NOSYNC,
    OBJPC_SYNC,
    OBJT_DEAD,
    OBJT_VNODE,
    VmObject,
    vm_object_deallocate,
    vm_object_drop,
    vm_object_hold,
    vm_object_page_clean,
    vm_object_page_remove,
    vm_object_reference_locked,
)
from dfvm.vm.vm_object_check import vm_object_check
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PG_CLEANCHK,
    PG_NOSYNC,
    PG_RAM,
    PQ_CACHE,
    VM_ALLOC_NORMAL,
    VM_PAGE_BITS_ALL,
    VmPage,
    vm_page_alloc,
    vm_page_cache,
    vm_page_free,
    vm_page_unhold,
    vm_page_unwire,
    vm_page_wakeup,
    vm_page_wire,
)
from dfvm.vm.vm_pager import vm_pager_get_page, vm_pager_has_page, vm_pager_put_pages
from tests.vm.vnode_stub import StubVnode, make_vm

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem

PAGE = 4096


def pattern(n: int) -> bytes:
    """Bytes that tell where they come from."""
    return b"".join(b"%07d\n" % i for i in range(0, n + 8, 8))[:n]


def read(vm: VmSystem, vp: StubVnode, off: int, n: int) -> bytes:
    """What read(2) would return."""
    object = vnode_pager_object(vm, vp)
    parts = []
    end = min(off + n, vp.v_filesize)
    while off < end:
        base = off % PAGE
        take = min(PAGE - base, end - off)
        m = vnode_pager_readpage(object, off // PAGE)
        pa = m.phys_addr + base
        parts.append(bytes(vm.ram.mem[pa : pa + take]))
        vm_page_unhold(vm, m)
        off += take
    return b"".join(parts)


def write(vm: VmSystem, vp: StubVnode, off: int, data: bytes) -> None:
    """What write(2) does."""
    if off + len(data) > vp.v_filesize:
        vnode_pager_setsize(vp, off + len(data))
    object = vnode_pager_object(vm, vp)
    while data:
        base = off % PAGE
        take = min(PAGE - base, len(data))
        m = vnode_pager_writepage(object, off // PAGE, base, take)
        pa = m.phys_addr + base
        vm.ram.mem[pa : pa + take] = data[:take]
        vnode_pager_wrote(m, base, take)
        vm_page_unhold(vm, m)
        data = data[take:]
        off += take


def store(vm: VmSystem, object: VmObject, off: int, data: bytes) -> None:
    """A store through a shared mapping, within one page; may reach behind the end of the file."""
    m = vnode_pager_readpage(object, off // PAGE)
    pa = m.phys_addr + off % PAGE
    vm.ram.mem[pa : pa + len(data)] = data
    m.dirty = VM_PAGE_BITS_ALL
    object.flags |= OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
    vm_page_unhold(vm, m)


def truncate(vp: StubVnode, size: int) -> None:
    """What ftruncate(2) does: pages, then storage."""
    vnode_pager_setsize(vp, size)
    del vp.storage[size:]


def getpage(vm: VmSystem, object: VmObject, pindex: int, seqaccess: int) -> tuple[int, VmPage]:
    """What a fault does: the page hard-busied, then the pager."""
    m = object.rb_memq.get(pindex)
    if m is None:
        m = vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL)
        assert m is not None
    else:
        assert not m.busy_count
        m.busy_count = PBUSY_LOCKED
    vm_object_hold(object)
    rv, m = vm_pager_get_page(object, pindex, m, seqaccess)
    vm_object_drop(object)
    assert m.busy_count == PBUSY_LOCKED
    return rv, m


def resident(object: VmObject) -> list[int]:
    return sorted(object.rb_memq)


# --- Vnode and object --------------------------------------------------------------------------


@pytest.mark.spec("OBJ-3")
def test_each_reference_is_one_on_the_vnode(vm: VmSystem) -> None:
    vp = StubVnode(bytes(5000))
    object = vnode_pager_alloc(vm, vp, 5000)
    assert (object.type, object.size, object.handle, vp.v_object) == (OBJT_VNODE, 2, vp, object)
    assert (object.ref_count, vp.refs) == (1, 2)
    assert vnode_pager_alloc(vm, vp, 5000) is object
    assert vnode_pager_alloc(vm, vp, 5000) is object
    vm_object_hold(object)
    vm_object_reference_locked(object)
    vm_object_drop(object)
    assert (object.ref_count, vp.refs) == (4, 5)
    for left in (3, 2, 1, 0):
        vm_object_deallocate(object)
        assert (object.ref_count, vp.refs) == (left, left + 1)
    # The cache stays with the vnode.
    assert vp.v_object is object
    assert not object.flags & OBJ_DEAD
    with pytest.raises(Panic, match="too many"):
        vm_object_deallocate(object)
    assert vnode_pager_alloc(vm, vp, 5000) is object
    assert (object.ref_count, vp.refs) == (1, 2)
    vm_object_deallocate(object)
    assert vm_object_check(vm) == []


@pytest.mark.spec("OBJ-3")
def test_reading_and_writing_take_no_reference(vm: VmSystem) -> None:
    vp = StubVnode(pattern(100))
    object = vnode_pager_object(vm, vp)
    assert vnode_pager_object(vm, vp) is object
    assert (object.ref_count, vp.refs) == (0, 1)
    assert vm_object_check(vm) == []


@pytest.mark.spec("OBJ-2")
@pytest.mark.spec("PAGER-4")
def test_reclaim_writes_and_parts_vnode_and_object(vm: VmSystem) -> None:
    free = vm.gd.gd_vmstats.v_free_count
    vp = StubVnode(pattern(3 * PAGE))
    write(vm, vp, 4000, b"x" * 200)
    object = vnode_pager_object(vm, vp)
    vnode_pager_reclaim(vp)
    assert vp.storage[4000:4200] == b"x" * 200
    assert vp.v_object is None
    assert vp.v_filesize == 3 * PAGE
    assert (object.type, object.handle) == (OBJT_DEAD, None)
    assert vm.gd.gd_vmstats.v_free_count == free
    vnode_pager_reclaim(vp)
    # The same vnode may be used again.
    assert read(vm, vp, 3990, 20) == pattern(3 * PAGE)[3990:4000] + b"x" * 10
    assert vm_object_check(vm) == []


def test_reclaim_of_a_mapped_file_panics(vm: VmSystem) -> None:
    vp = StubVnode(b"x")
    vnode_pager_alloc(vm, vp, 1)
    with pytest.raises(Panic, match="owners"):
        vnode_pager_reclaim(vp)


# --- Reading -----------------------------------------------------------------------------------


@pytest.mark.spec("PAGER-4")
@pytest.mark.parametrize("size", [1, 511, 512, 513, 4095, 4096, 4097, 8192, 70_000])
def test_a_file_reads_as_it_is_and_zeros_follow(vm: VmSystem, size: int) -> None:
    data = pattern(size)
    vp = StubVnode(data)
    assert read(vm, vp, 0, size + 10) == data
    object = vnode_pager_object(vm, vp)
    last = object.rb_memq[object.size - 1]
    assert bytes(vm.ram.mem[last.phys_addr : last.phys_addr + PAGE]) == data[
        (object.size - 1) * PAGE :
    ].ljust(PAGE, b"\0")
    assert last.valid == VM_PAGE_BITS_ALL
    assert last.dirty == 0
    assert vm_object_check(vm) == []


@pytest.mark.spec("PAGER-4")
def test_pages_of_reused_frames_end_in_zeros(vm: VmSystem) -> None:
    # All memory has been full of something.
    junk: list[VmPage] = []
    while (m := vm_page_alloc(vm, None, len(junk), VM_ALLOC_NORMAL)) is not None:
        vm.ram.mem[m.phys_addr : m.phys_addr + PAGE] = b"\xee" * PAGE
        junk.append(m)
    for m in junk:
        vm_page_free(vm, m)
    vp = StubVnode(b"short")
    read(vm, vp, 0, 5)
    (m,) = vnode_pager_object(vm, vp).rb_memq.values()
    assert bytes(vm.ram.mem[m.phys_addr : m.phys_addr + PAGE]) == b"short".ljust(PAGE, b"\0")


@pytest.mark.spec("PAGER-4")
def test_a_run_of_16_and_a_mark_at_its_end(vm: VmSystem) -> None:
    vp = StubVnode(pattern(64 * PAGE))
    object = vnode_pager_object(vm, vp)
    assert read(vm, vp, 0, 10) == vp.storage[:10]
    assert resident(object) == list(range(16))
    assert [i for i, m in object.rb_memq.items() if m.flags & PG_RAM] == [15]
    # Nothing more is read before the mark is reached …
    assert read(vm, vp, 0, 15 * PAGE) == vp.storage[: 15 * PAGE]
    assert resident(object) == list(range(16))
    # … and then the next run, before anybody has to wait for it.
    assert read(vm, vp, 15 * PAGE, 1) == vp.storage[15 * PAGE : 15 * PAGE + 1]
    assert len(object.rb_memq) > 24
    assert not object.rb_memq[15].flags & PG_RAM
    assert vm.gd.gd_cnt.v_vnodepgsin == len(vp.reads)
    assert vm_object_check(vm) == []


@pytest.mark.spec("PAGER-4")
def test_read_ahead_of_faults(vm: VmSystem) -> None:
    vp = StubVnode(pattern(64 * PAGE))
    object = vnode_pager_object(vm, vp)

    # Random access: that page alone.
    rv, m = getpage(vm, object, 40, 0)
    assert rv == VM_PAGER_OK
    assert resident(object) == [40]
    vm_page_wakeup(vm, m)
    # Unknown: the cluster of 8 around, what is there stays as it is.
    rv, m = getpage(vm, object, 43, -1)
    assert resident(object) == list(range(40, 48))[:1] + list(range(41, 48))
    vm_page_wakeup(vm, m)
    # Sequential: a run.
    rv, m = getpage(vm, object, 10, 1)
    assert resident(object)[:16] == list(range(10, 26))
    vm_page_wakeup(vm, m)
    # A marked page is valid; the pages behind it are read.
    mark = object.rb_memq[25]
    assert mark.flags & PG_RAM
    rv, m = getpage(vm, object, 25, -1)
    assert (rv, m) == (VM_PAGER_OK, mark)
    assert resident(object) == list(range(10, 48))
    vm_page_wakeup(vm, m)
    # Up to the end of the file, not beyond.
    rv, m = getpage(vm, object, 60, 1)
    assert resident(object)[-4:] == [60, 61, 62, 63]
    vm_page_wakeup(vm, m)
    assert all(m.valid == VM_PAGE_BITS_ALL and not m.busy_count for m in object.rb_memq.values())
    for i, m in object.rb_memq.items():
        assert vm.ram.mem[m.phys_addr : m.phys_addr + PAGE] == vp.storage[i * PAGE : (i + 1) * PAGE]


@pytest.mark.spec("PAGER-4")
def test_beyond_the_end(vm: VmSystem) -> None:
    vp = StubVnode(pattern(PAGE + 1))
    object = vnode_pager_object(vm, vp)
    assert vm_pager_has_page(object, 1)
    assert not vm_pager_has_page(object, 2)
    rv, m = getpage(vm, object, 2, -1)
    assert rv == VM_PAGER_ERROR
    vm_page_free(vm, m)
    with pytest.raises(OSError, match="Input/output") as info:
        vnode_pager_readpage(object, 2)
    assert info.value.errno == EIO
    assert vp.reads == []
    assert vm_object_check(vm) == []


@pytest.mark.spec("PAGER-4")
def test_read_errors(vm: VmSystem) -> None:
    vp = StubVnode(pattern(8 * PAGE))
    vp.bad = {2 * PAGE}
    object = vnode_pager_object(vm, vp)
    free = vm.gd.gd_vmstats.v_free_count
    # Whoever asks for the page is told, with the storage's own error …
    with pytest.raises(OSError, match="bad sector"):
        vnode_pager_readpage(object, 2)
    rv, m = getpage(vm, object, 2, -1)
    assert rv == VM_PAGER_ERROR
    assert m.valid == 0
    vm_page_free(vm, m)
    assert resident(object) == []
    assert vm.gd.gd_vmstats.v_free_count == free
    # … whoever asks for another is not.
    assert read(vm, vp, 0, PAGE) == vp.storage[:PAGE]
    assert resident(object) == [0, 1]
    vp.bad = set()
    assert read(vm, vp, 0, 8 * PAGE) == vp.storage
    assert vm_object_check(vm) == []


@pytest.mark.spec("PAGER-4")
def test_only_what_is_not_valid_is_read(vm: VmSystem) -> None:
    vp = StubVnode(pattern(PAGE))
    object = vnode_pager_object(vm, vp)
    m = vm_page_alloc(vm, object, 0, VM_ALLOC_NORMAL)
    assert m is not None
    vm.ram.mem[m.phys_addr + 512 : m.phys_addr + 1024] = b"n" * 512
    m.valid = m.dirty = 0b10
    vm_page_wakeup(vm, m)
    rv, m = getpage(vm, object, 0, 0)
    assert rv == VM_PAGER_OK
    vm_page_wakeup(vm, m)
    want = vp.storage[:512] + b"n" * 512 + vp.storage[1024:]
    assert bytes(vm.ram.mem[m.phys_addr : m.phys_addr + PAGE]) == want
    assert (m.valid, m.dirty) == (VM_PAGE_BITS_ALL, 0b10)


def test_reading_takes_a_page_back_from_the_cache_queue(vm: VmSystem) -> None:
    vp = StubVnode(pattern(PAGE))
    object = vnode_pager_object(vm, vp)
    read(vm, vp, 0, 1)
    m = object.rb_memq[0]
    m.busy_count = PBUSY_LOCKED
    vm_page_cache(vm, m)
    if m.busy_count & PBUSY_LOCKED:
        vm_page_wakeup(vm, m)
    assert m.queue - m.pc == PQ_CACHE
    assert read(vm, vp, 0, PAGE) == vp.storage
    assert m.queue - m.pc != PQ_CACHE
    assert len(vp.reads) == 1


def test_a_reader_waits_for_a_busy_page(vm: VmSystem) -> None:
    vp = StubVnode(pattern(2 * PAGE))
    object = vnode_pager_object(vm, vp)
    read(vm, vp, 0, 1)
    m = object.rb_memq[0]
    m.busy_count = PBUSY_LOCKED
    log: list[Any] = []

    def reader() -> None:
        log.append(read(vm, vp, 0, 4))

    def holder() -> None:
        vm.sched.tsleep("work", 0, "work", 1)
        log.append("ready")
        vm_page_wakeup(vm, m)

    vm.sched.create(reader, name="reader")
    vm.sched.create(holder, name="holder")
    vm.sched.run()
    assert log == ["ready", bytes(vp.storage[:4])]
    assert (object.hold_count, m.hold_count) == (0, 0)


def test_a_held_page_keeps_its_bytes_through_truncation(vm: VmSystem) -> None:
    vp = StubVnode(pattern(PAGE))
    object = vnode_pager_object(vm, vp)
    m = vnode_pager_readpage(object, 0)
    truncate(vp, 0)
    assert m.object is None
    for i in range(100):
        other = vm_page_alloc(vm, None, i, VM_ALLOC_NORMAL)
        assert other is not m
    assert bytes(vm.ram.mem[m.phys_addr : m.phys_addr + PAGE]) == pattern(PAGE)
    vnode_pager_wrote(m, 0, PAGE)
    assert m.dirty == 0
    vm_page_unhold(vm, m)


# --- Writing and cleaning ----------------------------------------------------------------------


@pytest.mark.spec("PAGER-4")
def test_dirty_chunks_are_written_in_runs(vm: VmSystem) -> None:
    vp = StubVnode(pattern(4 * PAGE))
    object = vnode_pager_object(vm, vp)
    write(vm, vp, 600, b"a" * 10)  # chunk 1
    write(vm, vp, 1500, b"b" * 100)  # chunks 2 and 3
    write(vm, vp, 4000, b"c" * 200)  # the last of page 0, the first of page 1
    assert object.rb_memq[0].dirty == 0b1000_1110
    assert object.rb_memq[1].dirty == 0b0000_0001
    assert object.flags & OBJ_MIGHTBEDIRTY
    assert vp.writes == []
    want = read(vm, vp, 0, 4 * PAGE)
    assert vm_object_page_clean(object, 0, 0, OBJPC_SYNC) == 0
    assert vp.writes == [(512, 3 * 512), (7 * 512, 512), (PAGE, 512)]
    assert vp.storage == want
    assert all(m.dirty == 0 for m in object.rb_memq.values())
    assert not object.flags & (OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY)
    cnt = vm.gd.gd_cnt
    assert cnt.v_vnodepgsout == 2
    assert vm_object_check(vm) == []


@pytest.mark.spec("PAGER-4")
def test_nothing_is_written_behind_the_end(vm: VmSystem) -> None:
    vp = StubVnode(pattern(PAGE + 100))
    object = vnode_pager_alloc(vm, vp, PAGE + 100)
    store(vm, object, PAGE + 90, b"z" * 1000)
    vm_object_page_clean(object, 0, 0, OBJPC_SYNC)
    assert vp.writes == [(PAGE, 100)]
    assert len(vp.storage) == PAGE + 100
    assert vp.storage[PAGE + 90 :] == b"z" * 10
    # A page the file has lost meanwhile is not written at all.
    m = object.rb_memq[1]
    m.dirty = VM_PAGE_BITS_ALL
    vp.v_filesize = PAGE
    assert vm_pager_put_pages(object, [m], 0) == [VM_PAGER_BAD]
    assert len(vp.writes) == 1


@pytest.mark.spec("OBJ-6")
def test_cleaning_leaves_flags_when_something_was_left(vm: VmSystem) -> None:
    vp = StubVnode(pattern(4 * PAGE))
    object = vnode_pager_object(vm, vp)
    for i in range(4):
        write(vm, vp, i * PAGE, b"w")
    object.rb_memq[1].flags |= PG_NOSYNC
    assert vm_object_page_clean(object, 0, 0, OBJPC_SYNC | OBJPC_NOSYNC) == 0
    assert [i for i, m in object.rb_memq.items() if m.dirty] == [1]
    assert object.flags & OBJ_MIGHTBEDIRTY
    # A part of the object says nothing about the rest.
    write(vm, vp, 0, b"w")
    assert vm_object_page_clean(object, 0, 1, OBJPC_SYNC) == 0
    assert not object.rb_memq[0].dirty
    assert object.flags & OBJ_MIGHTBEDIRTY
    assert vm_object_page_clean(object, 0, 4, OBJPC_SYNC) == 0
    assert not object.flags & OBJ_MIGHTBEDIRTY
    assert not any(m.flags & PG_CLEANCHK or m.dirty for m in object.rb_memq.values())
    assert vp.storage == read(vm, vp, 0, 4 * PAGE)


@pytest.mark.spec("OBJ-6")
@pytest.mark.spec("PAGER-4")
def test_a_page_that_cannot_be_written_stays_dirty(vm: VmSystem) -> None:
    vp = StubVnode(pattern(4 * PAGE))
    object = vnode_pager_object(vm, vp)
    for i in range(4):
        write(vm, vp, i * PAGE + 700, b"w")
    vp.bad = {2 * PAGE}
    assert vm_object_page_clean(object, 0, 0, OBJPC_SYNC) == 1
    assert {i: m.dirty for i, m in object.rb_memq.items()} == {0: 0, 1: 0, 2: 0b10, 3: 0}
    assert object.flags & OBJ_MIGHTBEDIRTY
    vp.bad = set()
    assert vm_object_page_clean(object, 0, 0, OBJPC_SYNC) == 0
    assert vp.storage == read(vm, vp, 0, 4 * PAGE)
    assert vm_object_check(vm) == []


@pytest.mark.spec("OBJ-6")
def test_what_appears_during_cleaning_is_left_to_the_next(vm: VmSystem) -> None:
    vp = StubVnode(pattern(8 * PAGE))
    object = vnode_pager_object(vm, vp)
    for i in (0, 1, 4):
        write(vm, vp, i * PAGE, b"1")
    plain = vp.vop_putpage

    def putpage(off: int, mv: memoryview) -> None:
        plain(off, mv)
        vm.sched.tsleep("disk", 0, "disk", 1)

    vp.vop_putpage = putpage  # type: ignore[method-assign]
    failed = []

    def cleaner() -> None:
        failed.append(vm_object_page_clean(object, 0, 0, OBJPC_SYNC))

    def writer() -> None:
        write(vm, vp, 5 * PAGE, b"2")  # was not dirty in pass 1
        write(vm, vp, 0, b"2")  # is just being written
        write(vm, vp, 4 * PAGE, b"2")  # is going to be

    vm.sched.create(cleaner, name="cleaner")
    vm.sched.create(writer, name="writer")
    vm.sched.run()
    assert failed == [0]
    assert [off for off, _ in vp.writes] == [0, PAGE, 4 * PAGE]
    assert {i for i, m in object.rb_memq.items() if m.dirty} == {0, 5}
    assert object.flags & OBJ_MIGHTBEDIRTY
    vm_object_page_clean(object, 0, 0, OBJPC_SYNC)
    assert vp.storage == read(vm, vp, 0, 8 * PAGE)
    assert vm_object_check(vm) == []


@pytest.mark.spec("OBJ-6")
def test_cleaning_waits_for_busy_pages(vm: VmSystem) -> None:
    vp = StubVnode(pattern(2 * PAGE))
    object = vnode_pager_object(vm, vp)
    write(vm, vp, 0, b"1")
    m = object.rb_memq[0]
    m.busy_count = PBUSY_LOCKED
    log: list[Any] = []

    def cleaner() -> None:
        vm_object_page_clean(object, 0, 0, OBJPC_SYNC)
        log.append("clean")

    def holder() -> None:
        vm.sched.tsleep("work", 0, "work", 1)
        log.append(list(vp.writes))
        vm_page_wakeup(vm, m)

    vm.sched.create(cleaner, name="cleaner")
    vm.sched.create(holder, name="holder")
    vm.sched.run()
    assert log == [[], "clean"]
    assert vp.writes == [(0, 512)]


@pytest.mark.spec("OBJ-6")
def test_cleaning_holds_no_page_while_it_waits_for_another(vm: VmSystem) -> None:
    vp = StubVnode(pattern(4 * PAGE))
    object = vnode_pager_object(vm, vp)
    for i in range(4):
        write(vm, vp, i * PAGE, b"1")
    m = object.rb_memq[2]
    m.busy_count = PBUSY_LOCKED
    log: list[Any] = []

    def holder() -> None:
        log.append([off for off, _ in vp.writes])
        log.append([p.busy_count & PBUSY_LOCKED for p in object.rb_memq.values()])
        vm_page_wakeup(vm, m)

    vm.sched.create(vm_object_page_clean, object, 0, 0, OBJPC_SYNC, name="cleaner")
    vm.sched.create(holder, name="holder")
    vm.sched.run()
    assert log == [[0, PAGE], [0, 0, PBUSY_LOCKED, 0]]
    assert [off for off, _ in vp.writes] == [0, PAGE, 2 * PAGE, 3 * PAGE]
    assert vm_object_page_clean(object, 0, 0, OBJPC_SYNC) == 0
    assert vm_object_check(vm) == []


@pytest.mark.spec("OBJ-6")
def test_two_who_want_it_clean_both_find_it_clean(vm: VmSystem) -> None:
    vp = StubVnode(pattern(2 * PAGE))
    object = vnode_pager_object(vm, vp)
    write(vm, vp, 0, b"1")
    plain = vp.vop_putpage

    def putpage(off: int, mv: memoryview) -> None:
        vm.sched.tsleep("disk", 0, "disk", 1)
        plain(off, mv)

    vp.vop_putpage = putpage  # type: ignore[method-assign]
    vp.bad = {0}
    failed = []

    def fsync() -> None:
        failed.append(vm_object_page_clean(object, 0, 0, OBJPC_SYNC))
        vp.bad = set()

    vm.sched.create(fsync, name="one")
    vm.sched.create(fsync, name="two")
    vm.sched.run()
    # The second does not return before the first is through, and does what that could not.
    assert failed == [1, 0]
    assert vp.storage.startswith(b"1")


@pytest.mark.spec("OBJ-7")
def test_invalidating_a_clean_cache_keeps_dirty_pages(vm: VmSystem) -> None:
    vp = StubVnode(pattern(4 * PAGE))
    object = vnode_pager_object(vm, vp)
    read(vm, vp, 0, 4 * PAGE)
    write(vm, vp, PAGE, b"w")
    vp.storage[0:4] = b"host"
    vm_object_page_remove(object, 0, 0, True)
    assert resident(object) == [1]
    assert read(vm, vp, 0, 4) == b"host"
    assert read(vm, vp, PAGE, 1) == b"w"


@pytest.mark.spec("OBJ-7")
def test_invalidating_leaves_a_page_that_is_being_written_to(vm: VmSystem) -> None:
    vp = StubVnode(pattern(PAGE))
    object = vnode_pager_object(vm, vp)
    m = vnode_pager_writepage(object, 0, 0, 3)
    vm_object_page_remove(object, 0, 0, True)
    vm.ram.mem[m.phys_addr : m.phys_addr + 3] = b"new"
    vnode_pager_wrote(m, 0, 3)
    vm_page_unhold(vm, m)
    assert read(vm, vp, 0, 3) == b"new"


@pytest.mark.parametrize("where", [(1, 0, 1), (0, 4000, 97), (0, 0, 0), (0, -1, 1)])
def test_a_write_stays_inside_page_and_file(vm: VmSystem, where: tuple[int, int, int]) -> None:
    vp = StubVnode(pattern(PAGE))
    with pytest.raises(Panic, match="writepage"):
        vnode_pager_writepage(vnode_pager_object(vm, vp), *where)


# --- Sizes -------------------------------------------------------------------------------------


@pytest.mark.spec("PAGER-4")
def test_truncation_removes_pages_and_clears_the_tail(vm: VmSystem) -> None:
    data = pattern(6 * PAGE)
    vp = StubVnode(data)
    object = vnode_pager_object(vm, vp)
    read(vm, vp, 0, 6 * PAGE)
    write(vm, vp, 2 * PAGE, b"w" * PAGE)
    truncate(vp, 2 * PAGE + 1000)
    assert object.size == 3
    assert resident(object) == [0, 1, 2]
    m = object.rb_memq[2]
    assert bytes(vm.ram.mem[m.phys_addr : m.phys_addr + PAGE]) == (b"w" * 1000).ljust(PAGE, b"\0")
    # The chunk the file ends in is still to be written, those behind it are not.
    assert m.dirty == 0b11
    vm_object_page_clean(object, 0, 0, OBJPC_SYNC)
    assert vp.writes == [(2 * PAGE, 1000)]
    # Growing brings zeros, not what was there.
    truncate(vp, 6 * PAGE)
    assert read(vm, vp, 0, 6 * PAGE) == (data[: 2 * PAGE] + b"w" * 1000).ljust(6 * PAGE, b"\0")
    assert vm_object_check(vm) == []


@pytest.mark.spec("PAGER-4")
def test_growing_clears_what_a_mapping_wrote_behind_the_end(vm: VmSystem) -> None:
    vp = StubVnode(b"12345")
    object = vnode_pager_alloc(vm, vp, 5)
    store(vm, object, 3, b"abcdef")
    write(vm, vp, 10, b"X")
    assert read(vm, vp, 0, 100) == b"123ab\0\0\0\0\0X"
    vm_object_page_clean(object, 0, 0, OBJPC_SYNC)
    assert vp.storage == b"123ab\0\0\0\0\0X"


@pytest.mark.spec("PAGER-4")
def test_setsize_without_an_object(vm: VmSystem) -> None:
    vp = StubVnode(pattern(100))
    vnode_pager_setsize(vp, 50)
    assert vp.v_filesize == 50
    assert vp.v_object is None


@pytest.mark.spec("PAGER-4")
def test_truncation_waits_for_a_page_that_is_being_written(vm: VmSystem) -> None:
    vp = StubVnode(pattern(4 * PAGE))
    object = vnode_pager_object(vm, vp)
    for i in range(4):
        write(vm, vp, i * PAGE, b"1")
    plain = vp.vop_putpage
    log = []

    def putpage(off: int, mv: memoryview) -> None:
        vm.sched.tsleep("disk", 0, "disk", 1)
        plain(off, mv)
        log.append(off)

    vp.vop_putpage = putpage  # type: ignore[method-assign]

    def cutter() -> None:
        truncate(vp, 100)
        log.append(-1)

    vm.sched.create(vm_object_page_clean, object, 0, 0, OBJPC_SYNC, name="cleaner")
    vm.sched.create(cutter, name="cutter")
    vm.sched.run()
    # Page 0 was being written and came through; the others had no business in the file any more.
    assert log[-1] == -1
    assert vp.storage == b"1" + pattern(100)[1:]
    assert resident(object) == [0]
    assert vm_object_check(vm) == []


@pytest.mark.spec("PAGER-4")
def test_a_wired_page_beyond_the_end_stays_but_loses_its_contents(vm: VmSystem) -> None:
    vp = StubVnode(pattern(2 * PAGE))
    object = vnode_pager_object(vm, vp)
    write(vm, vp, PAGE, b"w")
    read(vm, vp, 0, 2 * PAGE)
    m = object.rb_memq[1]
    m.busy_count = PBUSY_LOCKED
    vm_page_wire(vm, m)
    vm_page_wakeup(vm, m)
    truncate(vp, PAGE)
    assert object.rb_memq[1] is m
    assert (m.valid, m.dirty) == (0, 0)
    assert vm_object_check(vm) == []
    truncate(vp, 2 * PAGE)
    assert read(vm, vp, 0, 2 * PAGE) == pattern(PAGE) + bytes(PAGE)
    m.busy_count = PBUSY_LOCKED
    vm_page_unwire(vm, m, False)
    vm_page_wakeup(vm, m)


def test_code_that_is_overwritten_is_forgotten(vm: VmSystem) -> None:
    vp = StubVnode(pattern(PAGE))
    object = vnode_pager_object(vm, vp)
    read(vm, vp, 0, 1)
    pfn = object.rb_memq[0].phys_addr >> 12
    vm.mmu.code_frames.add(pfn)

    def forgotten() -> bool:
        """Since the last call. The frame stays mapped, so it may hold code again."""
        assert pfn in vm.mmu.code_frames
        flag = vm.mmu.need_flush_code
        vm.mmu.need_flush_code = False
        return flag

    assert not forgotten()
    write(vm, vp, 0, b"x")
    assert forgotten()
    truncate(vp, 100)
    assert forgotten()
    vm_object_page_clean(object, 0, 0, OBJPC_SYNC)
    assert forgotten()


@pytest.mark.parametrize(
    ("breakage", "complaint"),
    [
        (lambda o: setattr(o, "size", 5), "the file has"),
        (lambda o: setattr(o.handle, "v_object", None), "its vnode has"),
        (lambda o: setattr(o, "handle", None), "has no vnode"),
        (lambda o: setattr(o.rb_memq[0], "valid", 3), "in part"),
        (lambda o: setattr(o.rb_memq[0], "dirty", 1), "MIGHTBEDIRTY"),
        (lambda o: setattr(o.rb_memq[0], "flags", 0x10), "WRITEABLE"),
        (lambda o: setattr(o, "ref_count", 1), "owners"),
    ],
)
def test_the_checker_sees(vm: VmSystem, breakage: object, complaint: str) -> None:
    vp = StubVnode(pattern(PAGE + 1))
    read(vm, vp, 0, PAGE + 1)
    assert vm_object_check(vm) == []
    breakage(vp.v_object)  # type: ignore[operator]
    assert any(complaint in line for line in vm_object_check(vm))


def test_the_checker_sees_junk_behind_the_end(vm: VmSystem) -> None:
    vp = StubVnode(pattern(PAGE + 1))
    read(vm, vp, 0, PAGE + 1)
    m = vnode_pager_object(vm, vp).rb_memq[1]
    vm.ram.mem[m.phys_addr + 1] = 7
    assert any("behind the end" in line for line in vm_object_check(vm))


# --- Everything against a model ----------------------------------------------------------------

_OFF = st.integers(0, 5 * PAGE)
_OPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _OFF, st.integers(1, 2 * PAGE)),
        st.tuples(st.just("read"), _OFF, st.integers(1, 2 * PAGE)),
        st.tuples(st.just("store"), _OFF, st.integers(1, 700)),
        st.tuples(st.just("truncate"), _OFF, st.just(0)),
        st.tuples(st.just("clean"), st.integers(0, 4), st.integers(0, 5)),
        st.tuples(st.just("purge"), st.integers(0, 4), st.integers(0, 5)),
        st.tuples(st.just("reclaim"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@pytest.mark.spec("PAGER-4")
@settings(max_examples=150, deadline=None)
@given(size=st.integers(0, 5 * PAGE), ops=_OPS)
def test_a_file_is_what_a_file_is(size: int, ops: list[tuple[str, int, int]]) -> None:
    """read, write, mapped stores, truncation, cleaning, loss of clean pages and of the vnode, in
    any order, against a string of bytes."""
    vm = make_vm(4)
    vp = StubVnode(pattern(size))
    model = bytearray(vp.storage)
    for serial, (op, a, b) in enumerate(ops):
        fill = bytes([serial + 1])
        object = vnode_pager_object(vm, vp)
        if op == "write":
            write(vm, vp, a, fill * b)
            model.extend(bytes(max(a - len(model), 0)))
            model[a : a + b] = fill * b
        elif op == "read":
            assert read(vm, vp, a, b) == model[a : a + b]
        elif op == "store" and a < object.size * PAGE:
            n = min(b, PAGE - a % PAGE)
            store(vm, object, a, fill * n)
            keep = len(model)
            model[a : a + n] = fill * n
            del model[keep:]
            model[:] = model[:keep]
        elif op == "truncate":
            truncate(vp, a)
            model.extend(bytes(max(a - len(model), 0)))
            del model[a:]
        elif op == "clean" and (b == 0 or a < b):
            assert vm_object_page_clean(object, a, b, OBJPC_SYNC) == 0
            if b == 0 and a == 0:
                assert vp.storage == model[: len(vp.storage)]
                assert not any(model[len(vp.storage) :])
        elif op == "purge" and (b == 0 or a < b):
            vm_object_page_remove(object, a, b, True)
        elif op == "reclaim":
            vnode_pager_reclaim(vp)
        assert vm_object_check(vm) == []
        assert vp.v_filesize == len(model)
    assert read(vm, vp, 0, len(model)) == model
    vnode_pager_reclaim(vp)
    assert bytes(vp.storage).ljust(len(model), b"\0") == model
    assert vm.gd.gd_vmstats.v_free_count == make_vm(4).gd.gd_vmstats.v_free_count
