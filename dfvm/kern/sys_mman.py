"""The system calls on memory: mmap, munmap, mprotect, brk, msync and mincore. The mlock family is
in sys_mlock; mremap and madvise, whose Linux meaning has no counterpart in the maps, in abi/linux.

What Linux calls a VMA may be several entries here: see vma.py.

Arguments, errors and their order are those of Linux mm/{mmap,mprotect,msync,mincore}.c.

Source: DragonFly sys/vm/vm_mmap.c for what is done to the maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_caps import CAP_FOWNER
from dfvm.kern.kern_commit import (
    OVERCOMMIT_NEVER,
    check_data,
    check_expand,
    check_memory,
    is_committed,
    stays_committed,
)
from dfvm.kern.kern_errno import (
    EACCES,
    EAGAIN,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    ENODEV,
    ENOMEM,
    ENOSPC,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    err,
)
from dfvm.kern.vfs.mount import ST_NOEXEC
from dfvm.kern.vfs.seals import sealed_map
from dfvm.kern.vfs.vnode import Vnode
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, MMAP_ANON, OFF_MAX, VREG, VWRITE
from dfvm.kern.vma import (
    MARK_ACCOUNT,
    MARK_NOREAD,
    MARK_NORESERVE,
    MARK_ONFAULT,
    MARK_SEALED,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_SEM,
    PROT_WRITE,
    TASK_SIZE,
    U64,
    as_if,
    chain_end,
    check_cut,
    check_unmap,
    entries,
    is_locked,
    is_sealed,
    is_shared,
    lock_room,
    lowest,
    mapped_prefix,
    may_lock,
    may_map_low,
    prot_mark,
    vm_prot,
    vma_end,
    vma_full,
)
from dfvm.kern.vnode_file import VnodeFile
from dfvm.machine.pte import PG_RW, PG_V
from dfvm.vm.copyio import copyout
from dfvm.vm.pmap import pmap_pte
from dfvm.vm.vm import (
    KERN_RESOURCE_SHORTAGE,
    KERN_SUCCESS,
    VM_PROT_ALL,
    VM_PROT_EXECUTE,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_MMAP,
)
from dfvm.vm.vm_fault import VM_FAULT_BURST, VM_FAULT_DIRTY, vm_fault, vm_fault_quick
from dfvm.vm.vm_map import (
    MAP_ENTRY_STACK,
    MAP_ENTRY_WIREONFAULT,
    MAP_FUTUREONFAULT,
    MAP_IS_STACK,
    MAP_SEALED,
    MAP_WIREFUTURE,
    VM_MAPTYPE_NORMAL,
    vm_map_clean,
    vm_map_find,
    vm_map_findspace,
    vm_map_first_entry,
    vm_map_lock,
    vm_map_lookup_entry,
    vm_map_mark,
    vm_map_protect,
    vm_map_remove,
    vm_map_unlock,
)
from dfvm.vm.vm_map_backing import vm_map_entry_resident
from dfvm.vm.vm_mmap import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, vm_mmap
from dfvm.vm.vm_object import OBJT_VNODE
from dfvm.vm.vm_param import (
    NBPDR,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    round_page,
    trunc_page,
)
from dfvm.vm.vm_proc import RLIMIT_STACK, RLIMIT_VMEM
from dfvm.vm.vm_unix import vm_brk

if TYPE_CHECKING:
    from dfvm.kern.kern_descrip import File
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.vm.vm_map import VmMap, VmMapEntry

MAP_SHARED_VALIDATE: Final = 0x03
MAP_TYPE: Final = 0x0F
MAP_ANONYMOUS: Final = 0x20
MAP_32BIT: Final = 0x40
MAP_GROWSDOWN: Final = 0x0100
MAP_DENYWRITE: Final = 0x0800
MAP_EXECUTABLE: Final = 0x1000
MAP_LOCKED: Final = 0x2000
MAP_NORESERVE: Final = 0x4000
PKEY_DISABLE_ACCESS: Final = 1
PKEY_DISABLE_WRITE: Final = 2
MAP_POPULATE: Final = 0x8000
MAP_NONBLOCK: Final = 0x1_0000
MAP_STACK: Final = 0x2_0000
MAP_HUGETLB: Final = 0x4_0000
MAP_FIXED_NOREPLACE: Final = 0x10_0000

_PROT_MARKS: Final = MARK_NOREAD | MARK_ACCOUNT  # what mprotect sets of an entry's marks

# What MAP_SHARED_VALIDATE lets pass (LEGACY_MAP_MASK), the huge page sizes included.
_KNOWN_FLAGS: Final = (
    MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_DENYWRITE | MAP_EXECUTABLE
    | MAP_GROWSDOWN | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK
    | MAP_HUGETLB | MAP_32BIT | 0x400_0000 | 0x3F << 26
)  # fmt: skip

MS_ASYNC: Final = 1
MS_INVALIDATE: Final = 2
MS_SYNC: Final = 4

MMAP_MIN_ADDR: Final = 0x1_0000  # nothing is put below it unless it is asked for

# Where room is looked for, one after the other: in the same gigabyte as the stack (its page
# directory is there already), in the same half terabyte, and wherever there is some.
_PLACES: Final = (0x7FFF_C000_0000, 0x7F80_0000_0000, MMAP_MIN_ADDR)
_PLACE_32BIT: Final = (0x4000_0000, 0x8000_0000)


# ---- mmap ----------------------------------------------------------------------------------------


def find_room(map: VmMap, hint: int, size: int, flags: int = 0) -> int:
    """A place for `size` bytes: at `hint` if that is free, else somewhere.

    :raises OSError: ENOMEM without room.
    """
    if hint and hint + size <= TASK_SIZE:
        behind = vm_map_first_entry(map, hint)
        if behind is None or lowest(behind) >= hint + size:
            return hint
    if flags & MAP_32BIT:
        low, high = _PLACE_32BIT
        place = vm_map_findspace(map, low, size, PAGE_SIZE)
        if place is None or place + size > high:
            raise err(ENOMEM)
        return place
    # Large mappings share no page table with others, and go away with whole tables.
    align = NBPDR if size % NBPDR == 0 or size > 16 * NBPDR else PAGE_SIZE
    for low in _PLACES:
        place = vm_map_findspace(map, low, size, align)
        if place is not None:
            return place
    raise err(ENOMEM)


def check_place(p: Proc, addr: int, size: int) -> None:
    """Check that [addr, addr + size) may be mapped with MAP_FIXED.

    :raises OSError: EINVAL not aligned, ENOMEM outside of user memory, EPERM too low.
    """
    if size > TASK_SIZE or addr > TASK_SIZE - size:
        raise err(ENOMEM)
    if addr & PAGE_MASK:
        raise err(EINVAL)
    if addr < p.kernel.mmap_min_addr and not may_map_low(p):
        raise err(EPERM)


def _file_rights(fp: File, prot: int, flags: int) -> tuple[int, bool, bool]:
    """What a mapping of `fp` may be raised to, whether it is shared, and whether it is anonymous
    memory after all (/dev/zero).

    :raises OSError: EACCES, EPERM, EINVAL, ENODEV, EOPNOTSUPP.
    """
    kind = flags & MAP_TYPE
    maximum = VM_PROT_ALL
    if kind == MAP_SHARED_VALIDATE and flags & ~(_KNOWN_FLAGS | MAP_FIXED_NOREPLACE):
        raise err(EOPNOTSUPP)
    shared = kind in (MAP_SHARED, MAP_SHARED_VALIDATE)
    if not shared and kind != MAP_PRIVATE:
        raise err(EINVAL)
    if shared and not fp.f_mode & FWRITE:
        if prot & PROT_WRITE:
            raise err(EACCES)
        maximum &= ~VM_PROT_WRITE
    if not fp.f_mode & FREAD:
        raise err(EACCES)
    vp = fp.f_vnode
    if vp is None:
        raise err(ENODEV)
    if vp.v_mount.mnt_flags & ST_NOEXEC:
        if prot & PROT_EXEC:
            raise err(EPERM)
        maximum &= ~VM_PROT_EXECUTE
    how = vp.mmap()
    if shared and vp.v_seals and not sealed_map(vp, bool(prot & PROT_WRITE)):
        maximum &= ~VM_PROT_WRITE
    if flags & MAP_GROWSDOWN:
        raise err(EINVAL)
    if isinstance(fp, VnodeFile):
        fp.accessed()
    return maximum, shared, how == MMAP_ANON


def sys_mmap(lp: Lwp, addr: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
    """Map a file or new memory."""
    if offset & PAGE_MASK:
        raise err(EINVAL)
    p = lp.lwp_proc
    flags = u32(flags)
    fp = _mmap_file(p, flags, fd)
    map = p.p_vmspace.vm_map
    size = _mmap_size(map, length)
    if flags & MAP_FIXED_NOREPLACE:
        flags |= MAP_FIXED
    addr = _mmap_place(p, addr, size, flags)
    if flags & MAP_NORESERVE and p.kernel.overcommit.overcommit_memory == OVERCOMMIT_NEVER:
        flags &= ~MAP_NORESERVE
    locked = bool(flags & MAP_LOCKED)
    if locked and not may_lock(p):
        raise err(EPERM)
    if (locked or map.flags & MAP_WIREFUTURE) and size > lock_room(p):
        raise err(EAGAIN)

    if fp is None:
        shared = _anonymous_shared(flags)
        maximum, anonymous = VM_PROT_ALL, True
    else:
        vnode = fp.f_vnode
        last = OFF_MAX if vnode is not None and vnode.v_type == VREG else U64
        if offset + size > last:
            raise err(EOVERFLOW)
        maximum, shared, anonymous = _file_rights(fp, prot, flags)
    bits = vm_prot(p, prot) & maximum  # which only execution for the personality's sake can exceed
    _check_room(p, addr, size, bits, flags, shared, anonymous)
    if flags & MAP_FIXED:
        check_unmap(map, addr, addr + size)
    if flags & MAP_GROWSDOWN:
        addr = _map_stack(p, addr, size, bits, flags)
    else:
        vp = None
        if fp is not None and fp.f_vnode is not None and not anonymous:
            vp = fp.f_vnode.vop_data()
            fp.f_vnode.vop_mapped()
        how = flags & (MAP_SHARED | MAP_FIXED)  # SHARED is one of MAP_SHARED_VALIDATE's bits
        if vp is not None:
            vp.vref()  # the descriptor may be closed meanwhile, too
        try:
            addr = _map_somewhere(map, addr, size, bits, maximum, how, vp, offset, flags)
        finally:
            if vp is not None:
                vp.vrele()
    marks = prot_mark(prot, bits) | (MARK_NORESERVE if flags & MAP_NORESERVE else 0)
    if marks:
        vm_map_mark(map, addr, addr + size, 0, marks)
    mapped(map, addr, size, locked, bits, shared, flags)
    return addr


def _map_somewhere(
    map: VmMap,
    hint: int,
    size: int,
    bits: int,
    maximum: int,
    how: int,
    vp: Vnode | None,
    offset: int,
    flags: int,
) -> int:
    """vm_mmap at `hint` with MAP_FIXED, else where there is room; again when somebody who shares
    the space was faster while we waited for the map. Returns the address."""
    addr = hint
    while True:
        if not flags & MAP_FIXED:
            addr = find_room(map, hint, size, flags)
        if vm_mmap(map, addr, size, bits, maximum, how, vp, offset) == KERN_SUCCESS:
            return addr
        taken = vm_map_first_entry(map, addr)
        if taken is None or taken.ba.start >= addr + size:
            raise err(ENOMEM)


def _mmap_file(p: Proc, flags: int, fd: int) -> File | None:
    """The file to be mapped, if it is one.

    :raises OSError: EBADF; EINVAL and ENOMEM for huge pages, of which there is no pool.
    """
    if not flags & MAP_ANONYMOUS:
        fp = p.p_fd.fget(s32(fd))
        if flags & MAP_HUGETLB:
            raise err(EINVAL)
        return fp
    if flags & MAP_HUGETLB:
        raise err(ENOMEM)
    return None


def _mmap_size(map: VmMap, length: int) -> int:
    """`length` in whole pages.

    :raises OSError: EINVAL for nothing; ENOMEM for what no map has room for, and when there are
        more mappings than may be.
    """
    if not length:
        raise err(EINVAL)
    size = round_page(length)
    if size > TASK_SIZE or (map.nentries > map.vm.sysctl.max_proc_mmap and vma_full(map, 0)):
        raise err(ENOMEM)
    return size


def _check_room(
    p: Proc, addr: int, size: int, bits: int, flags: int, shared: bool, anonymous: bool
) -> None:
    """Check that the limits and memory allow the mapping. What MAP_FIXED is going to replace does
    not count.

    :raises OSError: ENOMEM
    """
    map = p.p_vmspace.vm_map
    overlap = promised = 0
    if flags & MAP_FIXED:
        for entry, first, last in entries(map, addr, addr + size):
            overlap += last - first
            promised += last - first if is_committed(entry) else 0
    private_write = bool(bits & VM_PROT_WRITE) and not shared
    check_expand(p, size - overlap, private_write and not flags & MAP_GROWSDOWN, False)
    # All that shared memory without a file could be is there from the beginning.
    if (private_write or (shared and anonymous)) and not flags & MAP_NORESERVE:
        check_memory(p, size - promised)


def _mmap_place(p: Proc, addr: int, size: int, flags: int) -> int:
    """Where the program wants its `size` bytes: with MAP_FIXED the place itself, which is checked,
    else a hint.

    :raises OSError: what check_place raises, EEXIST
    """
    if flags & MAP_FIXED:
        check_place(p, addr, size)
        if flags & MAP_FIXED_NOREPLACE:
            for _ in entries(p.p_vmspace.vm_map, addr, addr + size):
                raise err(EEXIST)
        return addr
    addr = trunc_page(addr)
    return max(addr, round_page(p.kernel.mmap_min_addr)) if addr else 0


def _anonymous_shared(flags: int) -> bool:
    """Whether memory without a file is to be shared.

    :raises OSError: EINVAL
    """
    kind = flags & MAP_TYPE
    if kind == MAP_PRIVATE:
        return False
    if kind != MAP_SHARED or flags & MAP_GROWSDOWN:
        raise err(EINVAL)
    return True


def _map_stack(p: Proc, addr: int, size: int, prot: int, flags: int) -> int:
    """MAP_GROWSDOWN: memory that grows below itself, up to the size of a stack."""
    map = p.p_vmspace.vm_map
    room = max(min(p.p_rlimit(RLIMIT_STACK), TASK_SIZE) - size, 0) & ~PAGE_MASK
    guard = map.vm.sysctl.stack_guard_gap << PAGE_SHIFT
    if flags & MAP_FIXED:
        vm_map_remove(map, addr, addr + size)
    else:
        behind = vm_map_first_entry(map, addr)
        if not addr or (behind is not None and lowest(behind) < addr + size):
            addr = find_room(map, 0, size + room + guard) + room + guard
    rv, addr = vm_map_find(
        map, None, 0, addr, size, PAGE_SIZE, False,
        VM_MAPTYPE_NORMAL, VM_SUBSYS_MMAP, prot, VM_PROT_ALL, MAP_IS_STACK,
    )  # fmt: skip
    if rv != KERN_SUCCESS:
        raise err(ENOMEM)
    vm_map_lock(map)
    found, entry = vm_map_lookup_entry(map, addr)
    if found and entry is not None and entry.ba.start == addr and entry.ba.object is None:
        below = map.min_addr if entry.prev is None else entry.prev.ba.end + guard
        entry.avail_ssize = max(min(room, addr - below), 0)
    vm_map_unlock(map)
    return addr


def mapped(
    map: VmMap, addr: int, size: int, locked: bool, prot: int, shared: bool, flags: int
) -> None:
    """What follows a successful mapping: MAP_LOCKED, mlockall(MCL_FUTURE), MAP_POPULATE. That
    pages can't be had is not an error here."""
    if locked or map.flags & MAP_WIREFUTURE:
        from dfvm.kern.sys_mlock import lock_range  # which needs us, and few programs need

        on_fault = bool(map.flags & MAP_FUTUREONFAULT)
        for entry, first, last in entries(map, addr, addr + size):
            lock_range(map, entry, first, last, on_fault)
    elif flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE and prot:
        write = prot & VM_PROT_WRITE and not shared
        populate(map, addr, addr + size, VM_PROT_WRITE if write else VM_PROT_READ)


def populate(map: VmMap, start: int, end: int, prot: int) -> int:
    """Fault every page of [start, end) in for an access of kind `prot`. Stops at the first that
    can't be had and returns what vm_fault said of it."""
    want = PG_V | PG_RW if prot & VM_PROT_WRITE else PG_V
    flags = VM_FAULT_BURST | VM_FAULT_DIRTY if prot & VM_PROT_WRITE else VM_FAULT_BURST
    for va in range(start, end, PAGE_SIZE):
        if pmap_pte(map.pmap, va) & want != want and not vm_fault_quick(map, va, prot, False):
            rv = vm_fault(map, va, prot, flags)
            if rv != KERN_SUCCESS:
                return rv
    return KERN_SUCCESS


def sys_munmap(lp: Lwp, addr: int, length: int) -> int:
    """Remove what is mapped in a range."""
    if addr & PAGE_MASK or addr > TASK_SIZE or length > TASK_SIZE - addr or not length:
        raise err(EINVAL)
    map = lp.lwp_proc.p_vmspace.vm_map
    end = addr + round_page(length)
    check_unmap(map, addr, end)
    vm_map_remove(map, addr, end)
    return 0


# ---- protection ----------------------------------------------------------------------------------


def sys_mprotect(lp: Lwp, start: int, length: int, prot: int) -> int:
    """Change what a range may be used for. What lies before a hole, or before something that may
    not be changed so, is changed."""
    grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    prot &= ~(PROT_GROWSDOWN | PROT_GROWSUP)
    if grows == PROT_GROWSDOWN | PROT_GROWSUP or start & PAGE_MASK:
        raise err(EINVAL)
    if not length:
        return 0
    end = start + round_page(length)
    if end >= 1 << 64:
        raise err(ENOMEM)
    if prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM):
        raise err(EINVAL)
    p = lp.lwp_proc
    map = p.p_vmspace.vm_map
    bits = vm_prot(p, prot)
    mark = prot_mark(prot, bits)
    found, entry = vm_map_lookup_entry(map, start)
    if grows & PROT_GROWSUP:
        raise err(EINVAL)  # no memory here grows upwards
    if grows:
        entry = vm_map_first_entry(map, start)
        if entry is None or entry.ba.start >= end:
            raise err(ENOMEM)
        if not entry.eflags & MAP_ENTRY_STACK:
            raise err(EINVAL)
        start = entry.ba.start
    elif not found:
        raise err(ENOMEM)
    asked = start  # up to where the limits have been asked
    checked = start  # and up to where what is cut may be cut
    while start < end:
        found, entry = vm_map_lookup_entry(map, start)
        if not found or entry is None:
            raise err(ENOMEM)
        last = min(entry.ba.end, end)
        if bits & ~entry.max_protection:
            raise err(EACCES)
        if entry.eflags & MARK_SEALED:
            raise err(EPERM)
        gets_write = bits & VM_PROT_WRITE & ~entry.protection and not is_shared(entry)
        if gets_write and start >= asked:
            asked = min(vma_end(entry, end), end)
            # (Linux asks what it would ask of new memory, and only what has changed in that.)
            grown = map.size + asked - start
            if not entry.eflags & MAP_ENTRY_STACK and grown <= p.p_rlimit(RLIMIT_VMEM):
                check_data(p, asked - start)
            if not entry.eflags & MARK_NORESERVE and not is_committed(entry):
                check_memory(p, asked - start)
        if start >= checked:
            checked = check_cut(map, start, end, lambda entry: _protected(entry, bits, mark))
        marks = mark
        if not bits & VM_PROT_WRITE and stays_committed(entry):
            marks |= MARK_ACCOUNT
        if bits != entry.protection or (entry.eflags ^ marks) & _PROT_MARKS:
            rv = vm_map_protect(map, start, last, bits, False, _PROT_MARKS, marks)
            if rv == KERN_RESOURCE_SHORTAGE:
                _lock_again(map, start, last, True)
            elif rv != KERN_SUCCESS:
                raise err(EACCES)
        if gets_write and entry.eflags & (MAP_ENTRY_WIREONFAULT | MARK_ONFAULT):
            _lock_again(map, start, last, False)
        start = last
    return 0


def _protected(entry: VmMapEntry, bits: int, mark: int) -> VmMapEntry:
    """What mprotect makes of `entry`, as as_if."""
    if not bits & VM_PROT_WRITE and stays_committed(entry):
        mark |= MARK_ACCOUNT
    return as_if(entry, bits, _PROT_MARKS, mark)


def _lock_again(map: VmMap, start: int, end: int, lost: bool) -> None:
    """Locked memory has become writable. Pages that could not be had before can be now; or (`lost`)
    one that was wired could not be copied, and nothing is wired any more."""
    from dfvm.kern.sys_mlock import lock_range

    for entry, first, last in entries(map, start, end):
        on_fault = bool(entry.eflags & MARK_ONFAULT)
        if lost or (entry.eflags & MAP_ENTRY_WIREONFAULT and not on_fault):
            lock_range(map, entry, first, last, on_fault)


def sys_mseal(lp: Lwp, start: int, length: int, flags: int) -> int:
    """mseal(2): what is mapped in a range can't be unmapped, moved, or given other rights from now
    on."""
    size = round_page(length) & U64
    if flags or start & PAGE_MASK or (length and not size) or start + size > U64:
        raise err(EINVAL)
    map = lp.lwp_proc.p_vmspace.vm_map
    end = start + size
    if mapped_prefix(map, start, end) < end:
        raise err(ENOMEM)
    checked = start
    for _, first, last in entries(map, start, end):
        if first >= checked:
            checked = check_cut(map, first, end, lambda entry: as_if(entry, add=MARK_SEALED))
        map.flags |= MAP_SEALED
        vm_map_mark(map, first, last, 0, MARK_SEALED)
    return 0


# ---- brk -----------------------------------------------------------------------------------------


def sys_brk(lp: Lwp, addr: int) -> int:
    """Move the end of the data segment; returns where it is now, moved or not."""
    p = lp.lwp_proc
    space = p.p_vmspace
    map = space.vm_map
    base = space.vm_daddr
    now = base + space.vm_dsize
    if addr < base or addr > TASK_SIZE:
        return now
    more = round_page(addr) - round_page(now)
    if more > 0:
        behind = vm_map_first_entry(map, round_page(now))
        if behind is not None and round_page(addr) + PAGE_SIZE > lowest(behind):
            return now  # a page is left free between data and what comes next
        if (map.flags & MAP_WIREFUTURE and more > lock_room(p)) or vma_full(map, 0):
            return now
        try:
            check_data(p, more)
            check_memory(p, more)
        except OSError:
            return now
    elif is_sealed(map, round_page(addr), round_page(now)):
        return now
    if vm_brk(space, addr) != KERN_SUCCESS:
        return now
    if more > 0 and map.flags & MAP_FUTUREONFAULT:
        vm_map_mark(map, round_page(now), round_page(addr), 0, MARK_ONFAULT)
    return addr


# ---- msync and mincore ---------------------------------------------------------------------------


def sys_msync(lp: Lwp, start: int, length: int, flags: int) -> int:
    """Write shared file mappings back. Holes make it ENOMEM, but what is mapped is written."""
    flags = s32(flags)
    if flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC) or start & PAGE_MASK:
        raise err(EINVAL)
    if flags & MS_ASYNC and flags & MS_SYNC:
        raise err(EINVAL)
    end = start + (round_page(length) & U64) & U64
    if end < start:
        raise err(ENOMEM)
    map = lp.lwp_proc.p_vmspace.vm_map
    at = start
    holes = False
    for entry, first, last in entries(map, start, end):
        holes |= first > at
        at = last
        if flags & MS_INVALIDATE and is_locked(entry):
            raise err(EBUSY)
        obj = entry.ba.object
        if flags & MS_SYNC and is_shared(entry) and obj is not None and obj.type == OBJT_VNODE:
            vm_map_clean(map, first, last, True, False)
    if holes or at < end:
        raise err(ENOMEM)
    return 0


def sys_mincore(lp: Lwp, start: int, length: int, vec: int) -> int:
    """A byte for each page of a range: 1 if it is resident."""
    if start & PAGE_MASK:
        raise err(EINVAL)
    if start + length > TASK_SIZE:
        raise err(ENOMEM)
    pages = round_page(length) >> PAGE_SHIFT
    if vec + pages > TASK_SIZE:
        raise err(EFAULT)
    space = lp.lwp_proc.p_vmspace
    map = space.vm_map
    end = start + (pages << PAGE_SHIFT)
    while start < end:
        found, entry = vm_map_lookup_entry(map, start)
        if not found or entry is None:
            raise err(ENOMEM)
        # As much as the kernel looks at before it copies out: one page of answers.
        last = min(entry.ba.end, end, start + (PAGE_SIZE << PAGE_SHIFT))
        if _may_know(lp.lwp_proc, entry):
            answer = bytes(vm_map_entry_resident(entry, va) for va in range(start, last, PAGE_SIZE))
        else:
            answer = b"\1" * (last - start >> PAGE_SHIFT)
        copyout(space, answer, vec)
        vec += len(answer)
        start = last
    return 0


def _may_know(p: Proc, entry: VmMapEntry) -> bool:
    """Whether `p` may learn which pages of what `entry` maps are in memory: who can only read a
    file could watch by it what others do with it."""
    obj = chain_end(entry).object
    vp = None if obj is None else obj.handle
    if not isinstance(vp, Vnode):
        return True
    cred = p.p_ucred
    if cred.cr_fsuid == vp.v_uid or cred.cr_cap_e & CAP_FOWNER:
        return True
    try:
        vp.access(VWRITE, cred)
    except OSError:
        return False
    return True


# ---- what Linux has of its own -------------------------------------------------------------------


def sys_mremap(lp: Lwp, addr: int, old_len: int, new_len: int, flags: int, new_addr: int) -> int:
    """Change the size of a mapping, its address, or both."""
    from dfvm.kern.abi.linux.linux_mremap import mremap  # most programs never call it

    return mremap(lp, addr, old_len, new_len, flags, new_addr)


def sys_remap_file_pages(lp: Lwp, start: int, size: int, prot: int, pgoff: int, flags: int) -> int:
    """Show other pages of what is mapped."""
    from dfvm.kern.abi.linux.linux_mremap import remap_file_pages

    return remap_file_pages(lp.lwp_proc, start, size, prot, pgoff)


def sys_madvise(lp: Lwp, start: int, length: int, behavior: int) -> int:
    """Take advice on a range."""
    from dfvm.kern.abi.linux.linux_madvise import madvise

    return madvise(lp, lp.lwp_proc.p_vmspace.vm_map, start, length, behavior)


# ---- protection keys -----------------------------------------------------------------------------
# The CPU has none. What Linux says on such a one is that they are all taken.


def sys_pkey_alloc(lp: Lwp, flags: int, rights: int) -> int:
    """pkey_alloc(2)"""
    if flags or rights & ~(PKEY_DISABLE_ACCESS | PKEY_DISABLE_WRITE):
        raise err(EINVAL)
    raise err(ENOSPC)


def sys_pkey_free(lp: Lwp, pkey: int) -> int:
    """pkey_free(2)"""
    raise err(EINVAL)


def sys_pkey_mprotect(lp: Lwp, start: int, length: int, prot: int, pkey: int) -> int:
    """pkey_mprotect(2); a key of -1 means none."""
    if s32(pkey) != -1:
        raise err(EINVAL)
    return sys_mprotect(lp, start, length, prot)
