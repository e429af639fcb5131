"""mlock and its kin: memory that stays.

What is locked is wired, an entry at a time (vm_map_user_wiring). Where that can't be, or is not
asked for, memory is locked all the same and is wired as it is faulted in: behind PROT_NONE, beyond
the end of a file, and with MLOCK_ONFAULT and MCL_ONFAULT.

Arguments, errors and their order are those of Linux mm/mlock.c.

Source: DragonFly sys/vm/vm_mmap.c (sys_mlock, sys_mlockall) for what is done to the maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32
from dfvm.kern.kern_caps import CAP_IPC_LOCK
from dfvm.kern.kern_errno import EINVAL, ENOMEM, EPERM, err
from dfvm.kern.sys_mman import populate
from dfvm.kern.vma import (
    MARK_ONFAULT,
    TASK_SIZE,
    U64,
    as_if,
    check_cut,
    entries,
    lock_room,
    locked_size,
    mapped_prefix,
    may_lock,
    page_range,
)
from dfvm.machine.pte import PG_FRAME
from dfvm.vm.pmap import pmap_ptes
from dfvm.vm.vm import KERN_SUCCESS, VM_PROT_READ
from dfvm.vm.vm_map import (
    MAP_ENTRY_USER_WIRED,
    MAP_ENTRY_WIREONFAULT,
    MAP_FUTUREONFAULT,
    MAP_WIREFUTURE,
    vm_map_mark,
    vm_map_user_wiring,
)
from dfvm.vm.vm_map_wire import vm_map_wire_copies
from dfvm.vm.vm_page import PHYS_TO_VM_PAGE
from dfvm.vm.vm_param import PAGE_SIZE, trunc_page
from dfvm.vm.vm_proc import RLIMIT_MEMLOCK

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.vm.vm_map import VmMap, VmMapEntry

MLOCK_ONFAULT: Final = 1
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4

# All that says that an entry is locked, and how.
_LOCKED: Final = MAP_ENTRY_USER_WIRED | MAP_ENTRY_WIREONFAULT | MARK_ONFAULT


def lock_range(map: VmMap, entry: VmMapEntry, start: int, end: int, on_fault: bool) -> bool:
    """Lock [start, end), which lies in `entry`. False if some of its pages can't be had; it is
    locked all the same. May block for memory and I/O."""
    mark = MARK_ONFAULT if on_fault else 0
    if (entry.eflags ^ mark) & MARK_ONFAULT:
        # All at once: two changes of what shows a segment would leave it in more pieces.
        wire = MAP_ENTRY_WIREONFAULT if on_fault and not entry.eflags & MAP_ENTRY_USER_WIRED else 0
        vm_map_mark(map, start, end, MARK_ONFAULT, mark | wire)
    if entry.eflags & MAP_ENTRY_USER_WIRED:
        # What was wired may have gone since with the end of its file, or be out of reach.
        return on_fault or populate(map, start, end, VM_PROT_READ) == KERN_SUCCESS
    if on_fault:
        _wire_present(map, entry, start, end)
        return True
    if entry.protection and vm_map_user_wiring(map, start, end, False) == KERN_SUCCESS:
        return True
    at = start
    if entry.protection:
        while at < end and vm_map_user_wiring(map, at, at + PAGE_SIZE, False) == KERN_SUCCESS:
            at += PAGE_SIZE
    vm_map_mark(map, at, end, 0, MAP_ENTRY_WIREONFAULT)
    return False


def _wire_present(map: VmMap, entry: VmMapEntry, start: int, end: int) -> None:
    """Wire what is mapped already in [start, end), which lies in `entry`, and have the rest wired
    on fault. What a private view shows of its file is not copied for it."""
    vm_map_mark(map, start, end, 0, MAP_ENTRY_WIREONFAULT)
    runs: list[tuple[int, int]] = []
    for va, pte in pmap_ptes(map.pmap, start, end):
        if vm_map_wire_copies(entry, PHYS_TO_VM_PAGE(map.vm, pte & PG_FRAME)):
            continue
        if runs and runs[-1][1] == va:
            runs[-1] = (runs[-1][0], va + PAGE_SIZE)
        else:
            runs.append((va, va + PAGE_SIZE))
    for first, last in runs:
        vm_map_user_wiring(map, first, last, False)


def _unlock_range(map: VmMap, start: int, end: int) -> None:
    checked = start
    for entry, first, last in entries(map, start, end):
        if first >= checked:
            checked = check_cut(map, first, end, lambda entry: as_if(entry, None, _LOCKED))
        if entry.eflags & MAP_ENTRY_USER_WIRED:
            vm_map_user_wiring(map, first, last, True)
        if entry.eflags & (MAP_ENTRY_WIREONFAULT | MARK_ONFAULT):
            vm_map_mark(map, first, last, MAP_ENTRY_WIREONFAULT | MARK_ONFAULT, 0)


def _mlock(lp: Lwp, start: int, length: int, on_fault: bool) -> int:
    p = lp.lwp_proc
    if not may_lock(p):
        raise err(EPERM)
    map = p.p_vmspace.vm_map
    start, size = page_range(start, length)
    end = (start + size) & U64
    room = lock_room(p)
    if size > room and size - locked_size(map, start, end) > room:
        raise err(ENOMEM)
    if end < start:
        raise err(EINVAL)
    stop = mapped_prefix(map, start, end)
    missing = stop < end
    checked = start
    locked = MAP_ENTRY_WIREONFAULT | (MARK_ONFAULT if on_fault else 0)
    for entry, first, last in entries(map, start, stop):
        if first >= checked:
            checked = check_cut(map, first, stop, lambda entry: as_if(entry, None, _LOCKED, locked))
        missing |= not lock_range(map, entry, first, last, on_fault)
    if missing:
        raise err(ENOMEM)
    return 0


def sys_mlock(lp: Lwp, start: int, length: int) -> int:
    """Keep a range in memory. What lies before a hole stays locked."""
    return _mlock(lp, start, length, False)


def sys_mlock2(lp: Lwp, start: int, length: int, flags: int) -> int:
    """mlock with flags: MLOCK_ONFAULT leaves out what is not in memory yet, until it is."""
    flags = s32(flags)
    if flags & ~MLOCK_ONFAULT:
        raise err(EINVAL)
    return _mlock(lp, start, length, bool(flags & MLOCK_ONFAULT))


def sys_munlock(lp: Lwp, start: int, length: int) -> int:
    """Undo mlock, where there was one."""
    map = lp.lwp_proc.p_vmspace.vm_map
    start, size = page_range(start, length)
    end = (start + size) & U64
    if end < start:
        raise err(EINVAL)
    stop = mapped_prefix(map, start, end)
    _unlock_range(map, start, stop)
    if stop < end:
        raise err(ENOMEM)
    return 0


def sys_mlockall(lp: Lwp, flags: int) -> int:
    """Lock everything that is mapped, that will be mapped, or both."""
    flags = s32(flags)
    if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        raise err(EINVAL)
    p = lp.lwp_proc
    if not may_lock(p):
        raise err(EPERM)
    map = p.p_vmspace.vm_map
    if (
        flags & MCL_CURRENT
        and not p.p_ucred.cr_cap_e & CAP_IPC_LOCK
        and map.size > trunc_page(p.p_rlimit(RLIMIT_MEMLOCK))
    ):
        raise err(ENOMEM)
    on_fault = bool(flags & MCL_ONFAULT)
    map.flags &= ~(MAP_WIREFUTURE | MAP_FUTUREONFAULT)
    if flags & MCL_FUTURE:
        map.flags |= MAP_WIREFUTURE | MAP_FUTUREONFAULT if on_fault else MAP_WIREFUTURE
    if flags & MCL_CURRENT:
        for entry, first, last in entries(map, 0, TASK_SIZE):
            lock_range(map, entry, first, last, on_fault)
    return 0


def sys_munlockall(lp: Lwp) -> int:
    """Unlock everything, now and in future."""
    map = lp.lwp_proc.p_vmspace.vm_map
    map.flags &= ~(MAP_WIREFUTURE | MAP_FUTUREONFAULT)
    _unlock_range(map, 0, TASK_SIZE)
    return 0
