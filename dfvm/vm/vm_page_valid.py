"""Which parts of a page hold what they should, and which the pager has older.

`valid` and `dirty` are bit maps of the eight DEV_BSIZE (512-byte) chunks of a page. A range that
is set valid takes every chunk it touches along; what such a chunk has outside of the range is
zeroed if it was not valid before, since nobody would know later that it never held anything.
A range that is set clean takes along only what it touches too, so callers keep to chunk
boundaries where that matters (the end of a file).

The M bit of PTEs is the other half of `dirty`: vm_page_test_dirty brings it in.

Source: DragonFly sys/vm/vm_page.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic
from dfvm.vm.vm_object import vm_object_set_writeable_dirty
from dfvm.vm.vm_page_queue import (
    PBUSY_LOCKED,
    PG_MAPPED,
    PG_NOSYNC,
    PQ_CACHE,
    PQ_FREE,
    VM_PAGE_BITS_ALL,
)
from dfvm.vm.vm_param import DEV_BSHIFT, DEV_BSIZE, PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_page_queue import VmPage


def vm_page_bits(base: int, size: int) -> int:
    """The chunks that bytes base … base + size - 1 of a page touch."""
    if not (base >= 0 and size >= 0 and base + size <= PAGE_SIZE):
        panic(f"vm_page_bits: illegal base/size {base}/{size}")
    if not size:
        return 0
    return (2 << (base + size - 1 >> DEV_BSHIFT)) - (1 << (base >> DEV_BSHIFT))


def _change_valid(m: VmPage, valid: int) -> None:
    """valid changes only under hard busy."""
    if m.valid != valid:
        if not m.busy_count & PBUSY_LOCKED:
            panic(f"valid bits of a page that is not busy: {m}")
        m.valid = valid


def _zero(vm: VmSystem, m: VmPage, start: int, end: int) -> None:
    """Zero bytes start … end - 1 of the page."""
    pa = m.phys_addr
    vm.mmu.code_written(pa >> 12)
    vm.ram.mem[pa + start : pa + end] = bytes(end - start)


def _zero_edges(vm: VmSystem, m: VmPage, base: int, size: int) -> None:
    """Before the range becomes valid: zero what the chunks at its ends hold outside of it, where
    they are not valid yet."""
    if not size:
        return
    end = base + size
    first = base & -DEV_BSIZE
    if first != base and not m.valid & 1 << (base >> DEV_BSHIFT):
        _zero(vm, m, first, base)
    last = end & -DEV_BSIZE
    if last != end and not m.valid & 1 << (end >> DEV_BSHIFT):
        _zero(vm, m, end, last + DEV_BSIZE)


def vm_page_set_valid(vm: VmSystem, m: VmPage, base: int, size: int) -> None:
    """The range holds what it should. The page is hard-busied; does not block."""
    bits = vm_page_bits(base, size)
    _zero_edges(vm, m, base, size)
    _change_valid(m, m.valid | bits)


def vm_page_set_validclean(vm: VmSystem, m: VmPage, base: int, size: int) -> None:
    """The range holds what the pager has. M bits in PTEs stay as they are. The page is
    hard-busied; does not block."""
    vm_page_set_valid(vm, m, base, size)
    vm_page_clear_dirty(vm, m, base, size)


def vm_page_set_validdirty(vm: VmSystem, m: VmPage, base: int, size: int) -> None:
    """The range holds what it should, and the pager has not got it. The page is hard-busied,
    unless the range is valid already; does not block."""
    bits = vm_page_bits(base, size)
    _zero_edges(vm, m, base, size)
    _change_valid(m, m.valid | bits)
    m.dirty |= bits
    if m.object is not None:
        vm_object_set_writeable_dirty(m.object)


def vm_page_clear_dirty(vm: VmSystem, m: VmPage, base: int, size: int) -> None:
    """The pager has the range. M bits in PTEs stay as they are. The page is hard-busied; does
    not block."""
    m.dirty &= ~vm_page_bits(base, size)
    if size == PAGE_SIZE:
        m.flags &= ~PG_NOSYNC


def vm_page_set_invalid(vm: VmSystem, m: VmPage, base: int, size: int) -> None:
    """The range holds nothing, and nothing worth keeping. The page is hard-busied; does not
    block."""
    bits = vm_page_bits(base, size)
    _change_valid(m, m.valid & ~bits)
    m.dirty &= ~bits
    if m.object is not None:
        m.object.generation += 1


def vm_page_is_valid(vm: VmSystem, m: VmPage, base: int, size: int) -> bool:
    """Whether the whole range is valid. An empty range is, if anything of the page is."""
    bits = vm_page_bits(base, size)
    valid = m.valid
    return valid != 0 and valid & bits == bits


def vm_page_zero_invalid(vm: VmSystem, m: VmPage, setvalid: bool) -> None:
    """Zero every chunk that is not valid: before a user sees the page, which may have its last
    valid byte in the middle (the end of a file). `setvalid`: and call them valid, which is right
    when nobody but us changes the file. The page is hard-busied; does not block."""
    valid = m.valid
    if valid == VM_PAGE_BITS_ALL:
        return
    if not valid:
        _zero(vm, m, 0, PAGE_SIZE)
    else:
        for i in range(PAGE_SIZE >> DEV_BSHIFT):
            if not valid & 1 << i:
                _zero(vm, m, i << DEV_BSHIFT, i + 1 << DEV_BSHIFT)
    if setvalid:
        _change_valid(m, VM_PAGE_BITS_ALL)


def vm_page_dirty(vm: VmSystem, m: VmPage) -> None:
    """The pager has nothing of this page any more. Its object will know that it has something to
    clean. Never for pages on the cache or free queues. The page is busied; does not block."""
    if m.queue - m.pc in (PQ_CACHE, PQ_FREE):
        panic(f"vm_page_dirty: page on the free or cache queue: {m}")
    if m.dirty != VM_PAGE_BITS_ALL:
        m.dirty = VM_PAGE_BITS_ALL
        if m.object is not None:
            vm_object_set_writeable_dirty(m.object)


def vm_page_undirty(vm: VmSystem, m: VmPage) -> None:
    """The pager has the whole page. M bits in PTEs stay as they are. Does not block."""
    m.dirty = 0


def vm_page_test_dirty(vm: VmSystem, m: VmPage) -> None:
    """Bring the M bits of the PTEs that map `m` into its dirty map. The page is busied; does not
    block."""
    if m.dirty != VM_PAGE_BITS_ALL and m.flags & PG_MAPPED:
        from dfvm.vm.pmap import pmap_is_modified  # pmap is built on this module

        if pmap_is_modified(vm, m):
            vm_page_dirty(vm, m)
