"""Linux's VMAs, as far as programs can tell them apart, in terms of map entries; and what limits
them.

What Linux calls a VMA may be several entries here: memory is cut where forks, partitions and old
objects make it so, and no program may notice. Where it matters (mremap, PROT_GROWSDOWN,
/proc/PID/maps), `same_vma` and `vma_end` say how far entries belong together. What a VMA has and an
entry has not is kept in marks, MAP_ENTRY_ABI_MASK of the entry's flags.

Nothing here blocks. The map is locked, or nothing that blocks comes between.

Source: behaviour of Linux mm/vma.c (vma_merge, split_vma), mm/mlock.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_IPC_LOCK, CAP_SYS_RAWIO
from dfvm.kern.kern_errno import ENOMEM, EPERM, err
from dfvm.vm.vm import (
    VM_INHERIT_SHARE,
    VM_PROT_ALL,
    VM_PROT_EXECUTE,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_SHMEM,
)
from dfvm.vm.vm_map import (
    MAP_ENTRY_COW,
    MAP_ENTRY_KIND_MASK,
    MAP_ENTRY_USER_WIRED,
    MAP_ENTRY_WIREONFAULT,
    MAP_SEALED,
    VmMapEntry,
    vm_map_first_entry,
    vm_map_lookup_entry,
)
from dfvm.vm.vm_object import OBJT_SWAP
from dfvm.vm.vm_param import PAGE_MASK, VM_MAX_USER_ADDRESS, round_page, trunc_page
from dfvm.vm.vm_proc import RLIM_INFINITY, RLIMIT_MEMLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfvm.kern.proc import Proc
    from dfvm.vm.vm_map import VmMap, VmMapBacking

PROT_READ: Final = 0x1
PROT_WRITE: Final = 0x2
PROT_EXEC: Final = 0x4
PROT_SEM: Final = 0x8
PROT_GROWSDOWN: Final = 0x0100_0000
PROT_GROWSUP: Final = 0x0200_0000

# What a VMA has and an entry has not: marks in its eflags.
MARK_NORESERVE: Final = 0x0001_0000  # MAP_NORESERVE: does not count as memory to be had
MARK_ONFAULT: Final = 0x0002_0000  # locked with MLOCK_ONFAULT
MARK_NOREAD: Final = 0x0004_0000  # PROT_READ was not asked for, but the MMU has no way to refuse it
MARK_WIPE: Final = 0x0008_0000  # MADV_WIPEONFORK: a child gets zeros, unless DONTFORK says nothing
MARK_ACCOUNT: Final = 0x0010_0000  # no longer writable, and memory is promised for it all the same
MARK_SEALED: Final = 0x0020_0000  # mseal

TASK_SIZE: Final = VM_MAX_USER_ADDRESS
READ_IMPLIES_EXEC: Final = 0x0040_0000  # personality
U64: Final = (1 << 64) - 1


def chain_end(entry: VmMapEntry) -> VmMapBacking:
    """The deepest element of an entry's chain: the file, if it maps one."""
    ba = entry.ba
    while ba.backing_ba is not None:
        ba = ba.backing_ba
    return ba


def is_shared(entry: VmMapEntry) -> bool:
    """Whether it was made with MAP_SHARED, whatever MADV_DONTFORK has done to it since."""
    if entry.inheritance == VM_INHERIT_SHARE or entry.id == VM_SUBSYS_SHMEM:
        return True
    obj = entry.ba.object
    return obj is not None and obj.type > OBJT_SWAP and not entry.eflags & MAP_ENTRY_COW


def is_anonymous(entry: VmMapEntry) -> bool:
    """Whether it is private memory with no file behind it."""
    obj = chain_end(entry).object
    return (obj is None or obj.type <= OBJT_SWAP) and not is_shared(entry)


def is_locked(entry: VmMapEntry) -> bool:
    """Whether it is locked: wired, or wired as its pages come."""
    return entry.eflags & (MAP_ENTRY_USER_WIRED | MAP_ENTRY_WIREONFAULT) != 0


def _alike(a: VmMapEntry, b: VmMapEntry) -> bool:
    """Whether two entries differ in nothing that was asked for, whatever they map and where."""
    return (
        a.protection == b.protection
        and a.max_protection == b.max_protection
        and a.inheritance == b.inheritance
        and a.forked == b.forked
        and not (a.eflags ^ b.eflags) & MAP_ENTRY_KIND_MASK
        and is_locked(a) == is_locked(b)
    )


def same_vma(lower: VmMapEntry, upper: VmMapEntry) -> bool:
    """Whether two entries, `upper` the next one, are one VMA."""
    if lower.ba.end != upper.ba.start or not _alike(lower, upper):
        return False
    a, b = chain_end(lower), chain_end(upper)
    if a.object is not None and a.object.shm is not None:
        return False  # each is counted as an attachment of its segment
    if is_anonymous(lower):
        return is_anonymous(upper)
    return (
        a.object is b.object
        and a.offset + a.end - a.start == b.offset
        and is_shared(lower) == is_shared(upper)
    )


def vma_end(entry: VmMapEntry, limit: int) -> int:
    """Where the VMA of `entry` ends; looks no further than `limit`. The map is locked."""
    while entry.ba.end < limit:
        behind = entry.next
        if behind is None or not same_vma(entry, behind):
            break
        entry = behind
    return entry.ba.end


def vma_start(entry: VmMapEntry) -> int:
    """Where the VMA of `entry` begins. The map is locked."""
    before = entry.prev
    while before is not None and same_vma(before, entry):
        entry, before = before, before.prev
    return entry.ba.start


def as_if(
    entry: VmMapEntry,
    protection: int | None = None,
    clear: int = 0,
    add: int = 0,
    inheritance: int | None = None,
) -> VmMapEntry:
    """What `entry` would be with another protection, without and with some of its eflags, or with
    another inheritance: to be compared, and in no map."""
    new = VmMapEntry(
        entry.ba,
        entry.eflags & ~clear | add,
        entry.maptype,
        entry.protection if protection is None else protection,
        entry.max_protection,
        entry.inheritance if inheritance is None else inheritance,
        entry.id,
    )
    new.forked = entry.forked
    return new


def entries(map: VmMap, start: int, end: int) -> Iterator[tuple[VmMapEntry, int, int]]:
    """(entry, first, last) for every entry in [start, end) with its part of it. Looks up again
    after each, so that the caller may change the map."""
    while start < end:
        entry = vm_map_first_entry(map, start)
        if entry is None or entry.ba.start >= end:
            return
        last = min(entry.ba.end, end)
        yield entry, max(entry.ba.start, start), last
        start = last


def lowest(entry: VmMapEntry) -> int:
    """Where an entry begins, or may grow down to."""
    return entry.ba.start - entry.avail_ssize


def mapped_prefix(map: VmMap, start: int, end: int) -> int:
    """How far [start, end) is mapped without a hole."""
    found, entry = vm_map_lookup_entry(map, start)
    if not found:
        return start
    while entry is not None and entry.ba.start <= start < end:
        start = entry.ba.end
        entry = entry.next
    return min(start, end)


# ---- max_map_count -------------------------------------------------------------------------------

# What one operation with the map locked exclusively can make of one VMA, at most.
_VMAS_A_HOLD: Final = 4


def vma_full(map: VmMap, more: int) -> bool:
    """Whether with `more` VMAs the map would have more than vm.max_map_count.

    They are only counted when there are enough entries for that, and enough has happened since they
    were counted last.
    """
    limit = map.vm.sysctl.max_proc_mmap
    if map.nentries + more <= limit:
        return False
    if map.nvmas_at != map.timestamp:
        held = map.timestamp - map.nvmas_at
        if map.nvmas_at >= 0 and map.nvmas + held * _VMAS_A_HOLD + more <= limit:
            return False
        map.nvmas, map.nvmas_at = vma_count(map), map.timestamp
    return map.nvmas + more > limit


def vma_count(map: VmMap) -> int:
    """How many VMAs there are: the lines of /proc/PID/maps."""
    count, before = 0, None
    for entry in map:
        if before is None or not same_vma(before, entry):
            count += 1
        before = entry
    return count


def check_cut(map: VmMap, start: int, end: int, change: Callable[[VmMapEntry], VmMapEntry]) -> int:
    """Check that the VMA at `start`, from there on and as far as it lies below `end`, may become
    what `change` (see as_if) makes of its entries: that there may be as many VMAs as it is then in.
    Where it becomes like its neighbour, only the border between them moves. Returns up to where
    nothing has to be checked any more.

    :raises OSError: ENOMEM
    """
    if not vma_full(map, 2):
        return end  # one more at each end of a range is all that a change of it can make
    found, entry = vm_map_lookup_entry(map, start)
    assert found and entry is not None
    last = min(vma_end(entry, end), end)
    at_start, at_end = start == vma_start(entry), last == vma_end(entry, last + 1)
    _, upper = vm_map_lookup_entry(map, last - 1)
    assert upper is not None
    new = change(entry)
    if (
        (at_start and at_end)
        or _alike(entry, new)
        or (at_start and entry.prev is not None and same_vma(entry.prev, new))
        or (at_end and upper.next is not None and same_vma(change(upper), upper.next))
    ):
        return last
    if vma_full(map, 2 - at_start - at_end):
        raise err(ENOMEM)
    return last


def is_sealed(map: VmMap, start: int, end: int) -> bool:
    """Whether something in [start, end) is sealed."""
    return map.flags & MAP_SEALED != 0 and any(
        entry.eflags & MARK_SEALED for entry, _, _ in entries(map, start, end)
    )


def check_unmap(map: VmMap, start: int, end: int) -> None:
    """Check that [start, end) may be unmapped.

    :raises OSError: ENOMEM when that leaves two VMAs of one, and there are as many as may be; EPERM
        for what is sealed.
    """
    if map.nentries < map.vm.sysctl.max_proc_mmap and not map.flags & MAP_SEALED:
        return
    if vma_full(map, 1):
        found, entry = vm_map_lookup_entry(map, start)
        if found and entry is not None and vma_start(entry) < start:
            if vma_end(entry, end + 1) > end:
                raise err(ENOMEM)
    if is_sealed(map, start, end):
        raise err(EPERM)


# ---- limits --------------------------------------------------------------------------------------


def may_map_low(p: Proc) -> bool:
    """Whether `p` may map something below vm.mmap_min_addr."""
    return bool(p.p_ucred.cr_cap_e & CAP_SYS_RAWIO)


def may_lock(p: Proc) -> bool:
    """Whether `p` may lock any memory at all."""
    return p.p_rlimit(RLIMIT_MEMLOCK) != 0 or bool(p.p_ucred.cr_cap_e & CAP_IPC_LOCK)


def locked_size(map: VmMap, start: int = 0, end: int = TASK_SIZE) -> int:
    """Bytes of [start, end) that are locked."""
    return sum(last - first for entry, first, last in entries(map, start, end) if is_locked(entry))


def lock_room(p: Proc) -> int:
    """How many more bytes `p` may lock."""
    limit = p.p_rlimit(RLIMIT_MEMLOCK)
    if p.p_ucred.cr_cap_e & CAP_IPC_LOCK or limit == RLIM_INFINITY:
        return U64
    return trunc_page(limit) - locked_size(p.p_vmspace.vm_map)


# ---- arguments -----------------------------------------------------------------------------------


def page_range(start: int, length: int) -> tuple[int, int]:
    """The pages that `length` bytes from `start` lie in: the first one, and their size, which is 0
    where 64 bits are not enough."""
    return trunc_page(start), round_page((length & U64) + (start & PAGE_MASK)) & U64


def vm_prot(p: Proc, prot: int) -> int:
    """PROT_* as VM_PROT_*. The MMU can't withhold reading from what may be written or executed."""
    bits = prot & VM_PROT_ALL
    if bits & (VM_PROT_WRITE | VM_PROT_EXECUTE):
        bits |= VM_PROT_READ
    if prot & PROT_READ and p.p_personality & READ_IMPLIES_EXEC:
        bits |= VM_PROT_EXECUTE
    return bits


def prot_mark(prot: int, bits: int) -> int:
    """MARK_NOREAD for PROT_* that vm_prot has made `bits` of, if it applies."""
    return MARK_NOREAD if bits & VM_PROT_READ and not prot & PROT_READ else 0
