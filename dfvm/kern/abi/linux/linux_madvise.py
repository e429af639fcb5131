"""madvise as Linux means it.

Most advice is DragonFly's by another number. What is not: MADV_DONTNEED throws private pages away
at once, so that the next access sees zeros or the file again, MADV_REMOVE makes a hole in shared
memory, MADV_POPULATE_* faults pages in, MADV_GUARD_* forbid access to pages of a mapping that
stays one. These are made from map operations; the maps' own DONTNEED
stays what it is.

Advice that this kernel has no machinery for is EINVAL, as it is on a Linux built without it: KSM
(MERGEABLE), memory failure (HWPOISON).

Source: Linux mm/madvise.c for arguments, errors, and their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32
from dfvm.kern.kern_errno import EACCES, EAGAIN, EFAULT, EINVAL, ENOMEM, EOPNOTSUPP, EPERM, err
from dfvm.kern.sys_mlock import lock_range
from dfvm.kern.sys_mman import populate
from dfvm.kern.vma import (
    MARK_NOREAD,
    MARK_ONFAULT,
    MARK_SEALED,
    MARK_WIPE,
    as_if,
    chain_end,
    check_cut,
    entries,
    is_anonymous,
    is_locked,
    is_shared,
)
from dfvm.vm.pmap import pmap_remove
from dfvm.vm.vm import (
    KERN_SUCCESS,
    VM_INHERIT_COPY,
    VM_INHERIT_NONE,
    VM_INHERIT_SHARE,
    VM_INHERIT_ZERO,
    VM_PROT_READ,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_map import (
    MADV_CORE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_NOCORE,
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MAP_ENTRY_COW,
    MAP_ENTRY_GUARD,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_NEEDS_COPY,
    VmMapBacking,
    vm_map_backing_dispose,
    vm_map_clip_end,
    vm_map_clip_start,
    vm_map_first_entry,
    vm_map_inherit,
    vm_map_lock,
    vm_map_madvise,
    vm_map_mark,
    vm_map_simplify_entry,
    vm_map_transition_wait,
    vm_map_unlock,
    vm_map_user_wiring,
)
from dfvm.vm.vm_map_madvise import ENTRY_ADVICE
from dfvm.vm.vm_object import (
    OBJ_ONEMAPPING,
    OBJT_SWAP,
    OBJT_VNODE,
    vm_object_drop,
    vm_object_hold,
    vm_object_page_remove,
)
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SHIFT, round_page

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.vm.vm_map import VmMap, VmMapEntry

LINUX_MADV_NORMAL: Final = 0
LINUX_MADV_RANDOM: Final = 1
LINUX_MADV_SEQUENTIAL: Final = 2
LINUX_MADV_WILLNEED: Final = 3
LINUX_MADV_DONTNEED: Final = 4
LINUX_MADV_FREE: Final = 8
LINUX_MADV_REMOVE: Final = 9
LINUX_MADV_DONTFORK: Final = 10
LINUX_MADV_DOFORK: Final = 11
LINUX_MADV_HUGEPAGE: Final = 14
LINUX_MADV_NOHUGEPAGE: Final = 15
LINUX_MADV_DONTDUMP: Final = 16
LINUX_MADV_DODUMP: Final = 17
LINUX_MADV_WIPEONFORK: Final = 18
LINUX_MADV_KEEPONFORK: Final = 19
LINUX_MADV_COLD: Final = 20
LINUX_MADV_PAGEOUT: Final = 21
LINUX_MADV_POPULATE_READ: Final = 22
LINUX_MADV_POPULATE_WRITE: Final = 23
LINUX_MADV_DONTNEED_LOCKED: Final = 24
LINUX_MADV_GUARD_INSTALL: Final = 102
LINUX_MADV_GUARD_REMOVE: Final = 103

# What the maps do themselves. Cold pages become the next to go; without swap, paging them out
# can't do more.
_SAME: Final = {
    LINUX_MADV_NORMAL: MADV_NORMAL,
    LINUX_MADV_RANDOM: MADV_RANDOM,
    LINUX_MADV_SEQUENTIAL: MADV_SEQUENTIAL,
    LINUX_MADV_WILLNEED: MADV_WILLNEED,
    LINUX_MADV_FREE: MADV_FREE,
    LINUX_MADV_DONTDUMP: MADV_NOCORE,
    LINUX_MADV_DODUMP: MADV_CORE,
    LINUX_MADV_COLD: MADV_DONTNEED,
    LINUX_MADV_PAGEOUT: MADV_DONTNEED,
}
# Pages are never larger here: taken, and without effect.
_NOTHING: Final = (LINUX_MADV_HUGEPAGE, LINUX_MADV_NOHUGEPAGE)
_OWN: Final = (LINUX_MADV_DONTNEED, LINUX_MADV_DONTNEED_LOCKED, LINUX_MADV_REMOVE,
               LINUX_MADV_DONTFORK, LINUX_MADV_DOFORK, LINUX_MADV_WIPEONFORK,
               LINUX_MADV_KEEPONFORK, LINUX_MADV_POPULATE_READ,
               LINUX_MADV_POPULATE_WRITE, LINUX_MADV_GUARD_INSTALL,
               LINUX_MADV_GUARD_REMOVE)  # fmt: skip
# Not for what is sealed and can't be written to: these are ways to write to it.
_DISCARD: Final = (LINUX_MADV_FREE, LINUX_MADV_DONTNEED, LINUX_MADV_DONTNEED_LOCKED,
                   LINUX_MADV_REMOVE, LINUX_MADV_DONTFORK, LINUX_MADV_WIPEONFORK,
                   LINUX_MADV_GUARD_INSTALL)  # fmt: skip
# About what a child gets.
_FORK: Final = (LINUX_MADV_DONTFORK, LINUX_MADV_DOFORK, LINUX_MADV_WIPEONFORK,
                LINUX_MADV_KEEPONFORK)  # fmt: skip
# What the mapping keeps, and may be cut for.
_KEPT: Final = (*_FORK, *(linux for linux, behav in _SAME.items() if behav in ENTRY_ADVICE))
# What one process may advise for another.
REMOTE_ADVICE: Final = (LINUX_MADV_WILLNEED, LINUX_MADV_COLD, LINUX_MADV_PAGEOUT)
# Not for locked memory.
_UNLOCKED: Final = (LINUX_MADV_DONTNEED, LINUX_MADV_FREE, LINUX_MADV_REMOVE, LINUX_MADV_COLD,
                    LINUX_MADV_PAGEOUT, LINUX_MADV_GUARD_INSTALL)  # fmt: skip


def madvise(lp: Lwp, map: VmMap, start: int, length: int, behavior: int) -> int:
    """Take advice on a range of `map`. Holes make it ENOMEM, but what is mapped is advised."""
    behavior = s32(behavior)
    if behavior not in _SAME and behavior not in _NOTHING and behavior not in _OWN:
        raise err(EINVAL)
    end = start + round_page(length)
    if start & PAGE_MASK or end >= 1 << 64:
        raise err(EINVAL)
    if end == start:
        return 0
    if behavior in (LINUX_MADV_POPULATE_READ, LINUX_MADV_POPULATE_WRITE):
        _populate(map, start, end, behavior == LINUX_MADV_POPULATE_WRITE)
        return 0
    at = checked = start
    holes = False
    for entry, first, last in entries(map, start, end):
        holes |= first > at
        at = last
        if (
            entry.eflags & MARK_SEALED
            and behavior in _DISCARD
            and is_anonymous(entry)
            and not entry.protection & VM_PROT_WRITE
        ):
            raise err(EPERM)
        if behavior in _UNLOCKED and is_locked(entry):
            raise err(EINVAL)
        if behavior in _KEPT and first >= checked:
            try:
                checked = check_cut(map, first, end, lambda entry: _advised(entry, behavior))
            except OSError:
                raise err(EAGAIN) from None
        _advise(lp, map, entry, first, last, behavior)
    if holes or at < end:
        raise err(ENOMEM)
    return 0


def _advised(entry: VmMapEntry, behavior: int) -> VmMapEntry:
    """What advice that is _KEPT makes of `entry`, as as_if."""
    inherit = entry.inheritance
    if behavior == LINUX_MADV_DONTFORK:
        return as_if(entry, inheritance=VM_INHERIT_NONE)
    if behavior == LINUX_MADV_DOFORK:
        if inherit == VM_INHERIT_NONE:
            keep = VM_INHERIT_ZERO if entry.eflags & MARK_WIPE else VM_INHERIT_COPY
            inherit = VM_INHERIT_SHARE if is_shared(entry) else keep
        return as_if(entry, inheritance=inherit)
    if behavior == LINUX_MADV_WIPEONFORK:
        inherit = VM_INHERIT_ZERO if inherit == VM_INHERIT_COPY else inherit
        return as_if(entry, add=MARK_WIPE, inheritance=inherit)
    if behavior == LINUX_MADV_KEEPONFORK:
        inherit = VM_INHERIT_COPY if inherit == VM_INHERIT_ZERO else inherit
        return as_if(entry, clear=MARK_WIPE, inheritance=inherit)
    return as_if(entry, None, *ENTRY_ADVICE[_SAME[behavior]])


def _advise(lp: Lwp, map: VmMap, entry: VmMapEntry, start: int, end: int, behavior: int) -> None:
    """Advice on [start, end), which lies in `entry`."""
    if behavior == LINUX_MADV_DONTNEED:
        _dontneed(map, start, end)
    elif behavior == LINUX_MADV_DONTNEED_LOCKED:
        on_fault = bool(entry.eflags & MARK_ONFAULT)
        wired = entry.wired_count != 0
        if wired:
            vm_map_user_wiring(map, start, end, True)
        _dontneed(map, start, end)
        if wired:
            for piece, first, last in entries(map, start, end):
                lock_range(map, piece, first, last, on_fault)
    elif behavior == LINUX_MADV_GUARD_INSTALL:
        vm_map_mark(map, start, end, 0, MAP_ENTRY_GUARD)
        for _, first, last in entries(map, start, end):
            _dontneed(map, first, last)
    elif behavior == LINUX_MADV_GUARD_REMOVE:
        vm_map_mark(map, start, end, MAP_ENTRY_GUARD, 0)
    elif behavior == LINUX_MADV_REMOVE:
        _remove(lp, map, entry, start, end)
    elif behavior in _FORK:
        if behavior == LINUX_MADV_WIPEONFORK and not is_anonymous(entry):
            raise err(EINVAL)
        new = _advised(entry, behavior)
        wipe = new.eflags & MARK_WIPE
        if wipe != entry.eflags & MARK_WIPE:
            vm_map_mark(map, start, end, MARK_WIPE, wipe)
        vm_map_inherit(map, start, end, new.inheritance)
    elif behavior not in _NOTHING:
        if behavior == LINUX_MADV_FREE and not is_anonymous(entry):
            raise err(EINVAL)
        vm_map_madvise(map, start, end, _SAME[behavior])


# ---- MADV_DONTNEED -------------------------------------------------------------------------------


def _dontneed(map: VmMap, start: int, end: int) -> None:
    """Forget [start, end) of one entry: private pages are freed, shared ones only unmapped."""
    vm_map_lock(map)
    try:
        while True:
            entry = vm_map_first_entry(map, start)
            if entry is None or entry.ba.start >= end:
                return  # somebody was here while we waited
            if not entry.eflags & MAP_ENTRY_IN_TRANSITION:
                break
            vm_map_transition_wait(map, entry, relock=True)
        if entry.wired_count:
            return  # the kernel's own: this is advice
        if entry.ba.object is None:
            return
        start, end = max(start, entry.ba.start), min(end, entry.ba.end)
        if is_shared(entry) or _is_plain_file(entry):
            pmap_remove(map.pmap, start, end)
        elif _owns_front(entry):
            _free_front(map, entry, start, end)
        else:
            _forget_chain(map, entry, start, end)
    finally:
        vm_map_unlock(map)


def _is_plain_file(entry: VmMapEntry) -> bool:
    """A private view of a file into which nobody has written."""
    obj = entry.ba.object
    return obj is not None and obj.type > OBJT_SWAP


def _owns_front(entry: VmMapEntry) -> bool:
    """The front object is this entry's own, as far as the entry shows it, and behind it there is
    nothing or the file: freeing its pages is all there is to do."""
    ba = entry.ba
    obj = ba.object
    if obj is None or obj.type > OBJT_SWAP or entry.eflags & MAP_ENTRY_NEEDS_COPY:
        return False
    if obj.ref_count > 1 and not obj.flags & OBJ_ONEMAPPING:
        return False
    behind = ba.backing_ba
    return behind is None or (behind.object is not None and behind.object.type == OBJT_VNODE)


def _free_front(map: VmMap, entry: VmMapEntry, start: int, end: int) -> None:
    ba = entry.ba
    obj = ba.object
    assert obj is not None
    pmap_remove(map.pmap, start, end)
    first = ba.offset + start - ba.start >> PAGE_SHIFT
    vm_object_hold(obj)
    vm_object_page_remove(obj, first, first + (end - start >> PAGE_SHIFT), False)
    vm_object_drop(obj)


def _forget_chain(map: VmMap, entry: VmMapEntry, start: int, end: int) -> None:
    """Others see the objects in the chain (a fork): cut the range out as an entry of its own that
    does not see them any more, only the file at the end of the chain if there is one."""
    vm_map_clip_start(map, entry, start)
    vm_map_clip_end(map, entry, end)
    pmap_remove(map.pmap, start, end)
    front = entry.ba
    tail = chain_end(entry)
    obj = tail.object
    if obj is not None and obj.type == OBJT_VNODE:
        before: VmMapBacking = front
        while before.backing_ba is not tail:
            assert before.backing_ba is not None
            before = before.backing_ba
        before.backing_ba = None
        entry.ba = tail
        entry.eflags |= MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY
        vm_map_backing_dispose(front)
    else:
        # Memory nobody has touched.
        entry.ba = VmMapBacking(start, end, front.pmap, None, 0)
        entry.eflags &= ~(MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY)
        vm_map_backing_dispose(front)
    vm_map_simplify_entry(map, entry)


# ---- MADV_REMOVE ---------------------------------------------------------------------------------


def _remove(lp: Lwp, map: VmMap, entry: VmMapEntry, start: int, end: int) -> None:
    """Free the pages of shared memory, or make a hole in the file that is mapped."""
    obj = entry.ba.object
    if is_anonymous(entry) or obj is None:
        raise err(EINVAL)
    if not is_shared(entry) or not entry.max_protection & VM_PROT_WRITE:
        raise err(EACCES)
    offset = entry.ba.offset + start - entry.ba.start
    if obj.type == OBJT_VNODE:
        vp = obj.handle
        allocate = getattr(vp, "allocate", None)
        if allocate is None:
            raise err(EOPNOTSUPP)
        allocate(_PUNCH_HOLE, offset, end - start)
        return
    pages = end - start >> PAGE_SHIFT
    vm_object_hold(obj)
    vm_object_page_remove(obj, offset >> PAGE_SHIFT, (offset >> PAGE_SHIFT) + pages, False)
    vm_object_drop(obj)


_PUNCH_HOLE: Final = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


# ---- MADV_POPULATE_* -----------------------------------------------------------------------------


def _populate(map: VmMap, start: int, end: int, write: bool) -> None:
    want = VM_PROT_WRITE if write else VM_PROT_READ
    at = start
    for entry, first, last in entries(map, start, end):
        if first > at:
            raise err(ENOMEM)
        if not entry.protection & want or (not write and entry.eflags & MARK_NOREAD):
            raise err(EINVAL)
        if populate(map, first, last, want) != KERN_SUCCESS:
            raise err(EFAULT)
        at = last
    if at < end:
        raise err(ENOMEM)
