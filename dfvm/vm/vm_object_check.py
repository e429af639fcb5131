"""The checker of objects: everything vm_object.py promises, looked at in all objects of a machine.

For Machine.check(), between two steps of the machine: no thread is inside the VM then, so nothing
is held and no I/O is under way. Slow by design, and only reads.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING

from dfvm.vm.vm_object import (
    OBJ_CLEANING,
    OBJ_DEAD,
    OBJ_MIGHTBEDIRTY,
    OBJ_NOSPLIT,
    OBJ_ONEMAPPING,
    OBJ_WRITEABLE,
    OBJT_DEAD,
    OBJT_SWAP,
    OBJT_VNODE,
    VMOBJ_HMASK,
    VmObjectHash,
)
from dfvm.vm.vm_page import PG_WRITEABLE, VM_PAGE_BITS_ALL
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_object import VmObject


def vm_object_check(vm: VmSystem) -> list[str]:
    """What is wrong with the objects of `vm`, a line for each thing; empty when nothing is."""
    wrong = []
    hash = vm.object_hash
    assert isinstance(hash, VmObjectHash)
    checked = {}
    for n, bucket in enumerate(hash):
        for object in bucket:
            if object.id & VMOBJ_HMASK != n:
                wrong.append(f"{object!r} is in bucket {n}")
            for check in (_check_counts, _check_pages, _check_backing, _check_type):
                wrong += [f"{object!r}: {text}" for text in check(object)]
            members = frozenset(object.rb_memq.items())
            before = hash.checked.get(object)
            if before is not None and before[0] == object.generation and before[1] != members:
                wrong.append(f"{object!r}: other pages, but the same generation as before")
            checked[object] = (object.generation, members)
    hash.checked = checked
    return wrong


def _check_counts(object: VmObject) -> Iterator[str]:
    """ref_count is explained by backing elements, and the hold of the kernel on its own object and
    of a System V segment on its memory; nothing else is counted while the machine rests."""
    owners = len(object.backing_list)
    if object is object.vm.kernel_object or object.shm is not None:
        owners += 1
    if object.ref_count != owners:
        yield f"{owners} owners"
    if object.hold_count:
        yield f"hold_count {object.hold_count} at rest"
    if object.paging_in_progress:
        yield f"paging_in_progress {object.paging_in_progress} at rest"
    if object.flags & OBJ_CLEANING:
        yield "CLEANING at rest"
    if object.flags & OBJ_DEAD or object.type == OBJT_DEAD:
        yield "dead, but still in the hash"
    if object.ref_count == 0 and object.type != OBJT_VNODE:
        yield "nobody owns it"


def _check_pages(object: VmObject) -> Iterator[str]:
    """Pages and object agree about each other."""
    if object.resident_page_count != len(object.rb_memq):
        yield f"{len(object.rb_memq)} pages resident"
    for pindex, m in object.rb_memq.items():
        if m.object is not object or m.pindex != pindex:
            yield f"page {m.phys_addr:#x} at {pindex} believes to be {m.object!r} {m.pindex}"
        if pindex >= object.size and not m.wire_count:
            yield f"page {pindex} lies beyond the end"
        if m.dirty & ~m.valid:
            yield f"page {pindex} has dirty chunks {m.dirty:#x}, valid ones {m.valid:#x}"


def _check_backing(object: VmObject) -> Iterator[str]:
    """The backing elements show this object, each page index once if ONEMAPPING says so."""
    ranges = []
    for ba in object.backing_list:
        if ba.object is not object:
            yield f"in backing_list: {ba.start:#x}-{ba.end:#x}, which shows {ba.object!r}"
        if ba.offset & PAGE_MASK or ba.start & PAGE_MASK or not ba.start < ba.end:
            yield f"backing {ba.start:#x}-{ba.end:#x} from {ba.offset:#x}"
        ranges.append((ba.offset, ba.offset + ba.end - ba.start))
    ranges.sort()
    by_index = object.flags & OBJ_NOSPLIT  # pages nobody shows may be shown again
    if object.type <= OBJT_SWAP and len(ranges) == object.ref_count and not by_index:
        yield from _check_reach(object, ranges)
    if not object.flags & OBJ_ONEMAPPING:
        return
    for (_, end), (start, _) in pairwise(ranges):
        if start < end:
            yield f"ONEMAPPING, but {start:#x} is shown more than once"


def _check_reach(object: VmObject, ranges: list[tuple[int, int]]) -> Iterator[str]:
    """Anonymous memory that only maps own: every page is shown by one of the elements, whose
    ranges these are in order of their start. What nobody can reach should have been freed."""
    at = 0  # everything below has been compared
    lost = sorted(object.rb_memq)
    for first, end in [*ranges, (1 << 63, 1 << 63)]:
        hidden = bisect_left(lost, first >> PAGE_SHIFT, at)
        if at < hidden:
            yield f"{hidden - at} pages from {lost[at]} on that nothing shows"
        at = max(at, bisect_left(lost, end >> PAGE_SHIFT, hidden))


def _check_type(object: VmObject) -> Iterator[str]:
    """What is true of anonymous memory, and what of a file."""
    if object.type != OBJT_VNODE:
        if object.handle is not None:
            yield f"has handle {object.handle!r}"
        if object.flags & OBJ_ONEMAPPING and object.type > OBJT_SWAP:
            yield "ONEMAPPING"
        return
    vp = object.handle
    if vp is None:
        yield "has no vnode"
        return
    if vp.v_object is not object:
        yield f"its vnode has {vp.v_object!r}"
    if object.size != (vp.v_filesize + PAGE_MASK) >> PAGE_SHIFT:
        yield f"the file has {vp.v_filesize} bytes"
    clean = not object.flags & OBJ_MIGHTBEDIRTY
    readonly = not object.flags & OBJ_WRITEABLE
    for pindex, m in object.rb_memq.items():
        if pindex >= object.size:
            continue
        # A truncation takes from a wired page all that it can: its contents.
        if m.valid != VM_PAGE_BITS_ALL and (m.valid or not m.wire_count):
            yield f"page {pindex} is valid in part ({m.valid:#x})"
        if clean and m.dirty:
            yield f"page {pindex} is dirty, but not MIGHTBEDIRTY"
        if readonly and m.flags & PG_WRITEABLE:
            yield f"page {pindex} may be written, but not WRITEABLE"
    base = vp.v_filesize & PAGE_MASK
    last = object.rb_memq.get(object.size - 1)
    # What a page that is not valid holds nobody will see: a wired one keeps what a truncation took.
    if base and readonly and last is not None and last.valid:
        pa = last.phys_addr
        if any(object.vm.ram.mem[pa + base : pa + PAGE_SIZE]):
            yield "something stands behind the end of the file"
