"""mremap: growing, shrinking and moving a mapping; and remap_file_pages, which has another part of
a file, or of shared memory, appear in it.

DragonFly has no such call. It is built here from what maps can do: memory belongs to objects and
not to addresses, so to move a mapping is to take its entries out and put them, with their backing
chains untouched, back in at another address. No page is copied and no object hears of it; the page
tables forget the old place and learn the new one by faults.

Source: Linux mm/mremap.c, mm/mmap.c (remap_file_pages) for arguments, errors, and their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.kern_commit import check_expand, is_data
from dfvm.kern.kern_errno import EAGAIN, EFAULT, EINVAL, ENOMEM, EOVERFLOW, EPERM, err
from dfvm.kern.sys_mlock import lock_range
from dfvm.kern.sys_mman import check_place, find_room, populate
from dfvm.kern.vfs.vnode_param import OFF_MAX
from dfvm.kern.vma import (
    MARK_NORESERVE,
    MARK_ONFAULT,
    MARK_SEALED,
    TASK_SIZE,
    U64,
    chain_end,
    check_unmap,
    entries,
    is_anonymous,
    is_locked,
    is_shared,
    lock_room,
    mapped_prefix,
    vma_end,
    vma_full,
)
from dfvm.lwkt.kern_lock import lockmgr_exclusive, lockmgr_release
from dfvm.vm.pmap import pmap_remove
from dfvm.vm.vm import KERN_SUCCESS, VM_INHERIT_COPY, VM_PROT_READ, VM_PROT_WRITE
from dfvm.vm.vm_map import (
    MAP_COPY_ON_WRITE,
    MAP_ENTRY_ABI_MASK,
    MAP_ENTRY_BEHAV_MASK,
    MAP_ENTRY_COW,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_NOCOREDUMP,
    MAP_ENTRY_NOSYNC,
    vm_map_clip_end,
    vm_map_clip_start,
    vm_map_findspace,
    vm_map_first_entry,
    vm_map_insert,
    vm_map_lock,
    vm_map_lookup_entry,
    vm_map_remove,
    vm_map_simplify_entry,
    vm_map_transition_wait,
    vm_map_unlock,
)
from dfvm.vm.vm_map_backing import vm_map_backing_adjust
from dfvm.vm.vm_map_clip import vm_map_entry_link, vm_map_entry_unlink, vm_map_shm_cut
from dfvm.vm.vm_map_entry import VmMapBacking, VmMapEntry
from dfvm.vm.vm_map_insert import vm_map_entry_unwire
from dfvm.vm.vm_map_space import vm_map_freehint_hole
from dfvm.vm.vm_object import OBJT_VNODE, vm_object_deallocate, vm_object_reference_quick
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SHIFT, round_page, trunc_page

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.vm.vm_map import VmMap

MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
MREMAP_DONTUNMAP: Final = 4

_ROOM_TO_MOVE: Final = 4  # mappings fewer than may be, for moving one

_KEPT_FLAGS: Final = (
    MAP_ENTRY_BEHAV_MASK | MAP_ENTRY_NOCOREDUMP | MAP_ENTRY_NOSYNC | MAP_ENTRY_ABI_MASK
)


def mremap(lp: Lwp, addr: int, old_len: int, new_len: int, flags: int, new_addr: int) -> int:
    """Change the size of a mapping, its address, or both; returns the address."""
    flags = u32(flags)
    p = lp.lwp_proc
    map = p.p_vmspace.vm_map
    if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP):
        raise err(EINVAL)
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and not flags & MREMAP_MAYMOVE:
        raise err(EINVAL)
    if flags & MREMAP_DONTUNMAP and old_len != new_len:
        raise err(EINVAL)
    if addr & PAGE_MASK:
        raise err(EINVAL)
    old_len, new_len = round_page(old_len) & U64, round_page(new_len) & U64
    if not 0 < new_len <= TASK_SIZE:
        raise err(EINVAL)
    if flags & MREMAP_FIXED and old_len == new_len:
        return _move_all(p, addr, old_len, flags, new_addr)
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return _remap_to(p, addr, old_len, new_len, flags, new_addr)
    found, first = vm_map_lookup_entry(map, addr)
    if not found or first is None:
        raise err(EFAULT)
    if first.eflags & MARK_SEALED:
        raise err(EPERM)
    if old_len >= new_len:
        if old_len > new_len:
            if addr + old_len > TASK_SIZE:
                raise err(EINVAL)
            check_unmap(map, addr + new_len, addr + old_len)
            vm_map_remove(map, addr + new_len, addr + old_len)
        return addr
    entry = _check_grow(p, addr, old_len, new_len)
    locked = is_locked(entry)
    end = addr + old_len
    if old_len and end == vma_end(entry, end + 1) and _is_free(map, end, addr + new_len):
        _append(map, end, addr + new_len)
        if locked:
            _lock(map, end, addr + new_len)
        return addr
    if not flags & MREMAP_MAYMOVE or vma_full(map, _ROOM_TO_MOVE):
        raise err(ENOMEM)
    return _move(p, addr, old_len, find_room(map, 0, new_len), new_len, False)


def _check_target(map: VmMap, addr: int, old_len: int, new_addr: int, new_len: int) -> None:
    """Whether something may move to new_addr.

    :raises OSError: EINVAL; ENOMEM with about as many mappings as may be.
    """
    if new_addr & PAGE_MASK or new_addr > TASK_SIZE - new_len:
        raise err(EINVAL)
    if addr + old_len > new_addr and new_addr + new_len > addr:
        raise err(EINVAL)
    if vma_full(map, _ROOM_TO_MOVE + 2):
        raise err(ENOMEM)  # as long as nothing is unmapped yet


def _move_all(p: Proc, addr: int, size: int, flags: int, new_addr: int) -> int:
    """MREMAP_FIXED of as much as there was: the only one that may have several mappings, and holes
    between them, to move. What was moved before something that can't be stays there."""
    map = p.p_vmspace.vm_map
    _check_target(map, addr, size, new_addr, size)
    if not vm_map_lookup_entry(map, addr)[0]:
        raise err(EFAULT)
    at, end = addr, addr + size
    while at < end:
        entry = vm_map_first_entry(map, at)
        if entry is None or entry.ba.start >= end:
            break
        first = max(entry.ba.start, at)
        at = min(vma_end(entry, end), end)
        if entry.ba.object is not None and entry.ba.object.shm is not None and at - first < size:
            raise err(EFAULT)  # attachments of segments move alone
        _remap_to(p, first, at - first, at - first, flags, new_addr + first - addr)
    return new_addr


def _remap_to(p: Proc, addr: int, old_len: int, new_len: int, flags: int, new_addr: int) -> int:
    """MREMAP_FIXED and MREMAP_DONTUNMAP. What can be refused is refused before anything goes, but
    for the room that MREMAP_DONTUNMAP takes."""
    map = p.p_vmspace.vm_map
    _check_target(map, addr, old_len, new_addr, new_len)
    keep = min(old_len, new_len)
    entry = _check_grow(p, addr, keep, new_len)
    data = is_data(entry)
    if flags & MREMAP_FIXED:
        check_place(p, new_addr, new_len)
    if addr + old_len > TASK_SIZE:
        raise err(EINVAL)
    if flags & MREMAP_FIXED:
        check_unmap(map, new_addr, new_addr + new_len)
        vm_map_remove(map, new_addr, new_addr + new_len)
    if old_len > new_len:
        vm_map_remove(map, addr + new_len, addr + old_len)
    if flags & MREMAP_DONTUNMAP:  # with what was at the new place gone already
        check_expand(p, keep, data, False)
    if not flags & MREMAP_FIXED:
        new_addr = find_room(map, new_addr, new_len)
    return _move(p, addr, keep, new_addr, new_len, bool(flags & MREMAP_DONTUNMAP))


def _check_grow(p: Proc, addr: int, old_len: int, new_len: int) -> VmMapEntry:
    """Whether the mapping at `addr` may become new_len bytes long. Returns its entry.

    :raises OSError: EFAULT when old_len reaches beyond the mapping, EPERM when it is sealed,
        EINVAL, EAGAIN, ENOMEM.
    """
    map = p.p_vmspace.vm_map
    found, entry = vm_map_lookup_entry(map, addr)
    if not found or entry is None:
        raise err(EFAULT)
    if entry.eflags & MARK_SEALED:
        raise err(EPERM)
    if not old_len and not is_shared(entry):
        raise err(EINVAL)  # only what is shared can be had twice
    end = addr + old_len
    if end > vma_end(entry, end):
        raise err(EFAULT)
    more = new_len - old_len
    if more:
        if is_locked(entry) and more > lock_room(p):
            raise err(EAGAIN)
        private = bool(entry.protection & VM_PROT_WRITE) and not is_shared(entry)
        check_expand(p, more, is_data(entry), private and not entry.eflags & MARK_NORESERVE)
    return entry


def _is_free(map: VmMap, start: int, end: int) -> bool:
    if end > TASK_SIZE:
        return False
    behind = vm_map_first_entry(map, start)
    return behind is None or behind.ba.start - behind.avail_ssize >= end


def _append(map: VmMap, start: int, end: int) -> None:
    """Let the mapping that ends at `start` go on up to `end`, which is free: anonymous memory
    with more of it, a file with what comes next in the file. (Shared memory without a file can't
    grow: what is added lies beyond its end, and an access is SIGBUS.)"""
    vm_map_lock(map)
    try:
        found, last = vm_map_lookup_entry(map, start - 1)
        assert found and last is not None  # nothing has blocked since the caller looked
        _show(map, last, start, end, last.ba.end - last.ba.start, last.forked)
    finally:
        vm_map_unlock(map)


def _show(
    map: VmMap, like: VmMapEntry, start: int, end: int, distance: int, forked: int = 0
) -> None:
    """Map at [start, end) what an entry like `like` shows `distance` bytes from its start on, but
    for private pages. With `forked` it is one with what has the same. Exclusive map lock.

    :raises OSError: ENOMEM when the range is not free after all.
    """
    ba = chain_end(like)
    obj = ba.object
    cow = 0
    offset = 0
    if is_anonymous(like):
        obj = None
    else:
        assert obj is not None  # files and shared memory have theirs from the beginning
        offset = ba.offset + distance
        if obj.shm is not None and start == ba.end == ba.start + distance and not like.wired_count:
            # One attachment of a segment stays one, though it shows more.
            vm_map_backing_adjust(like, like.ba.start, end)
            map.size += end - start
            return
        vm_object_reference_quick(obj)
        if obj.type == OBJT_VNODE and like.eflags & MAP_ENTRY_COW:
            cow = MAP_COPY_ON_WRITE
    rv = vm_map_insert(
        map, obj, offset, start, end,
        like.maptype, like.id, like.protection, like.max_protection, cow,
    )  # fmt: skip
    if rv != KERN_SUCCESS:
        vm_object_deallocate(obj)
        raise err(ENOMEM)
    kept = like.eflags & _KEPT_FLAGS
    if kept or forked or like.inheritance != VM_INHERIT_COPY:
        _, new = vm_map_lookup_entry(map, start)
        assert new is not None
        vm_map_clip_start(map, new, start)
        vm_map_clip_end(map, new, end)
        new.eflags |= kept
        new.inheritance = like.inheritance
        new.forked = forked
        vm_map_shm_cut(map, new)
        vm_map_simplify_entry(map, new)


def _move(p: Proc, addr: int, old_len: int, new_addr: int, new_len: int, keep_old: bool) -> int:
    """Move [addr, addr + old_len), one VMA, to new_addr, which is free, and let it go on up to
    new_len bytes there. With `keep_old` the old place stays mapped, without its pages."""
    map = p.p_vmspace.vm_map
    vm_map_lock(map)
    try:
        locked = _settle(map, addr, addr + old_len)
        found, first = vm_map_lookup_entry(map, addr)
        if not found or first is None or mapped_prefix(map, addr, addr + old_len) < addr + old_len:
            raise err(EFAULT)  # somebody was here while we waited
        if old_len:
            end = new_addr + new_len
            place = vm_map_findspace(map, new_addr, new_len, 1, intrude=True)
            if place != new_addr:
                raise err(ENOMEM)
            last = _relocate(map, addr, addr + old_len, new_addr - addr)
            if last.ba.end < end:
                _show(map, last, last.ba.end, end, last.ba.end - last.ba.start, last.forked)
            if keep_old:
                _refill(map, new_addr, old_len, addr - new_addr)
        else:
            locked = is_locked(first)
            _show(map, first, new_addr, new_addr + new_len, addr - first.ba.start)
        for start in {new_addr, addr}:
            found, entry = vm_map_lookup_entry(map, start)
            if found and entry is not None:
                vm_map_simplify_entry(map, entry)
    finally:
        vm_map_unlock(map)
    if locked:
        _lock(map, new_addr, new_addr + new_len)
    return new_addr


def _lock(map: VmMap, start: int, end: int) -> None:
    """Lock what has come to [start, end), each part of it the way its mapping is locked."""
    for entry, first, last in entries(map, start, end):
        lock_range(map, entry, first, last, bool(entry.eflags & MARK_ONFAULT))


def _settle(map: VmMap, start: int, end: int) -> bool:
    """Make [start, end) consist of whole entries, none of them in transition or wired. Returns
    whether it was locked by the user. Exclusive map lock, given up while waiting."""
    entry = vm_map_first_entry(map, start)
    while entry is not None and entry.ba.start < end:
        if entry.eflags & MAP_ENTRY_IN_TRANSITION:
            vm_map_transition_wait(map, entry, relock=True)
            entry = vm_map_first_entry(map, start)
        else:
            entry = entry.next
    locked = False
    entry = vm_map_first_entry(map, start)
    if entry is not None and entry.ba.start < end:
        vm_map_clip_start(map, entry, start)
    while entry is not None and entry.ba.start < end:
        vm_map_clip_end(map, entry, end)
        locked |= is_locked(entry)
        if entry.wired_count:
            vm_map_entry_unwire(map, entry)
        entry = entry.next
    return locked


def _relocate(map: VmMap, start: int, end: int, delta: int) -> VmMapEntry:
    """Take the entries of [start, end), which they fill, `delta` bytes further, chains and all.
    Returns the last one. Exclusive map lock; may block for backing_lk only."""
    pmap_remove(map.pmap, start, end)
    _, entry = vm_map_lookup_entry(map, start)
    assert entry is not None
    before = entry.prev
    moving: list[VmMapEntry] = []
    scan: VmMapEntry | None = entry
    while scan is not None and scan.ba.start < end:
        moving.append(scan)
        scan = scan.next
    for entry in moving:
        vm_map_entry_unlink(map, entry)
    hole_start = map.min_addr if before is None else before.ba.end
    hole_end = map.max_addr if scan is None else scan.ba.start
    vm_map_freehint_hole(map, hole_start, hole_end)
    if before is not None:
        map.index.hole(before, hole_end - hole_start)
    _, prev = vm_map_lookup_entry(map, start + delta)
    for entry in moving:
        _shift(entry.ba, delta)
        entry.avail_ssize = 0
        vm_map_entry_link(map, prev, entry)
        vm_map_shm_cut(map, entry)
        prev = entry
    return moving[-1]


def _shift(front: VmMapBacking, delta: int) -> None:
    """Change the addresses of a chain; each element goes on showing the same part of its object.
    There are no PTEs in either place."""
    ba: VmMapBacking | None = front
    while ba is not None:
        obj = ba.object
        if obj is not None:
            lockmgr_exclusive(obj.backing_lk)
        ba.start += delta
        ba.end += delta
        if obj is not None:
            lockmgr_release(obj.backing_lk)
            if obj.shm is not None:  # which has been attached there and detached here
                obj.shm.shm_open()
                obj.shm.shm_close()
        ba = ba.backing_ba


def _refill(map: VmMap, start: int, size: int, delta: int) -> None:
    """MREMAP_DONTUNMAP: behind the entries of [start, start + size), which have moved here, leave
    mappings alike at the old place, `delta` bytes from here."""
    end = start + size
    while start < end:
        found, entry = vm_map_lookup_entry(map, start)
        assert found and entry is not None
        last = min(entry.ba.end, end)
        _show(map, entry, start + delta, last + delta, start - entry.ba.start)
        start = last


def remap_file_pages(p: Proc, start: int, size: int, prot: int, pgoff: int) -> int:
    """Show what is mapped at `start` from page `pgoff` on: the same object, mapped anew."""
    map = p.p_vmspace.vm_map
    start, size = trunc_page(start), trunc_page(size)
    end = start + size
    if prot or not size or end > TASK_SIZE or pgoff + (size >> PAGE_SHIFT) > U64:
        raise err(EINVAL)
    found, entry = vm_map_lookup_entry(map, start)
    obj = entry.ba.object if found and entry is not None else None
    if entry is None or obj is None or not is_shared(entry):
        raise err(EINVAL)
    if not entry.max_protection & VM_PROT_WRITE or mapped_prefix(map, start, end) < end:
        raise err(EINVAL)
    for piece, _, _ in entries(map, start, end):
        if piece.ba.object is not obj or piece.protection != entry.protection:
            raise err(EINVAL)
    offset = pgoff << PAGE_SHIFT
    if offset + size > OFF_MAX:
        raise err(EOVERFLOW)
    shown = VmMapBacking(start, end, map.pmap, obj, offset)
    like = VmMapEntry(
        shown, entry.eflags, entry.maptype, entry.protection, entry.max_protection,
        entry.inheritance, entry.id,
    )  # fmt: skip
    locked = is_locked(entry)
    vm_object_reference_quick(obj)  # while nothing may show it
    segment = obj.shm
    try:
        if vma_full(map, 0):
            raise err(ENOMEM)
        check_unmap(map, start, end)
        vm_map_remove(map, start, end)
        if obj.shm is not segment:
            raise err(EINVAL)  # that was the last of a segment that had been removed
        vm_map_lock(map)
        try:
            _show(map, like, start, end, 0)
        finally:
            vm_map_unlock(map)
    finally:
        vm_object_deallocate(obj)
    if locked:
        _lock(map, start, end)
    else:
        populate(map, start, end, VM_PROT_READ)
    return 0
