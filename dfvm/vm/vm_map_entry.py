"""The structures of an address map: vm_map_backing, vm_map_entry, vm_map, with their flags; and
the map's lock.

    VmMap ──index──▶ VmMapEntry ──ba──▶ VmMapBacking ──backing_ba──▶ VmMapBacking ─▶ …
      │                  ▲ │ prev/next       │ object                     │ object
      └──first───────────┘ ▼                 ▼                            ▼
                                          VmObject (newest)            VmObject (older)

An entry says what a range of addresses is; its first backing element (embedded, as in DragonFly)
says which object shows there, and the elements behind it say what shows through where that object
has no page. Whoever changes any of it holds the map's lock exclusively; whoever reads it holds the
lock shared, or the map's token where he only wants a picture that stays put while he does not
block.

Source: DragonFly sys/vm/vm_map.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.kern_lock import (
    LK_EXCLUPGRADE,
    LK_NOWAIT,
    LK_SHARED,
    Lock,
    lockmgr_downgrade,
    lockmgr_exclusive,
    lockmgr_release,
    lockmgr_shared,
    lockmgr_upgrade,
)
from dfvm.lwkt.lwkt_token import Token
from dfvm.vm.vm_map_index import VmMapIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.vm.pmap import Pmap
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_object import VmObject

# Kinds of entries (vm.h, vm_maptype_t).
VM_MAPTYPE_UNSPECIFIED: Final = 0  # addresses set aside, about to become a submap
VM_MAPTYPE_NORMAL: Final = 1  # memory: an object, or none yet
VM_MAPTYPE_SUBMAP: Final = 3  # another map of the kernel's decides

# VmMapEntry.eflags
MAP_ENTRY_NOSYNC: Final = 0x0001  # the syncer leaves its dirty pages alone
MAP_ENTRY_STACK: Final = 0x0002  # grows downwards
MAP_ENTRY_COW: Final = 0x0004  # a private view: writes must never reach what is behind it
MAP_ENTRY_NEEDS_COPY: Final = 0x0008  # … and the object in front is not ours to write yet
MAP_ENTRY_NOFAULT: Final = 0x0010  # a fault here is a bug of the kernel's
MAP_ENTRY_USER_WIRED: Final = 0x0020  # one of the wirings is the user's (mlock)
MAP_ENTRY_BEHAV_NORMAL: Final = 0x0000
MAP_ENTRY_BEHAV_SEQUENTIAL: Final = 0x0040  # madvise: read ahead, little behind
MAP_ENTRY_BEHAV_RANDOM: Final = 0x0080  # madvise: neighbours are of no use
MAP_ENTRY_BEHAV_MASK: Final = 0x00C0
MAP_ENTRY_IN_TRANSITION: Final = 0x0100  # somebody works on it with the map unlocked
MAP_ENTRY_NEEDS_WAKEUP: Final = 0x0200  # … and somebody sleeps until he is done
MAP_ENTRY_NOCOREDUMP: Final = 0x0400  # left out of core files
MAP_ENTRY_KSTACK: Final = 0x0800  # kernel stack: its first page is a guard and has no memory
MAP_ENTRY_WIREONFAULT: Final = 0x1000
# A page that is faulted in is wired at once, for the user: not in DragonFly. What is wired becomes
# an entry of its own, USER_WIRED and without this.
MAP_ENTRY_GUARD: Final = 0x2000
# Nothing can be accessed, whatever the protection is, and no page is mapped: not in DragonFly.
MAP_ENTRY_ABI_MASK: Final = 0x00FF_0000
# Marks of the system call layer's own (vm_map_mark). They say nothing to the VM, which only carries
# them along, and keeps apart what differs in them.
MAP_ENTRY_KIND_MASK: Final = (
    MAP_ENTRY_STACK | MAP_ENTRY_BEHAV_MASK | MAP_ENTRY_NOCOREDUMP | MAP_ENTRY_ABI_MASK
)
# What was asked for: entries that differ in it are not alike, whatever the VM has made of them.

# How vm_map_insert is to make an entry ("cow" in its arguments).
MAP_COPY_ON_WRITE: Final = 0x0002
MAP_NOFAULT: Final = 0x0004
MAP_PREFAULT: Final = 0x0008  # map what is resident at once
MAP_PREFAULT_PARTIAL: Final = 0x0010  # … unless it is much
MAP_DISABLE_SYNCER: Final = 0x0020
MAP_IS_STACK: Final = 0x0040
MAP_IS_KSTACK: Final = 0x0080
MAP_DISABLE_COREDUMP: Final = 0x0100
MAP_PREFAULT_MADVISE: Final = 0x0200  # the user asked for it: however much it is

# vm_map_clip_range and vm_map_unclip_range
MAP_CLIP_NO_HOLES: Final = 0x0001

# VmMap.flags
MAP_WIREFUTURE: Final = 0x0001  # mlockall(MCL_FUTURE): wire whatever is mapped from now on
MAP_FUTUREONFAULT: Final = 0x0002  # … as it is faulted in
MAP_SEALED: Final = 0x0004  # the system call layer has marked some entries as not to be changed

VM_MAP_FFCOUNT: Final = 4  # free hints of a map

MAP_ENTRY_PARTITION_SIZE: Final = 32 * 1024 * 1024  # what one object of a large entry covers
MAP_ENTRY_PARTITION_MASK: Final = MAP_ENTRY_PARTITION_SIZE - 1


class VmMapBacking:
    """One element of a backing chain: which object shows through a range of one map. Elements are
    never shared between maps (contrast Mach's shadow objects, which are), so a chain can be
    changed under its own map's lock.

    Source: DragonFly sys/vm/vm_map.h, struct vm_map_backing.
    """

    __slots__ = ("backing_ba", "backing_count", "end", "object", "offset", "pmap", "start")

    start: int
    # First byte in the map; page aligned. Every element of a chain has its entry's range. Changed
    # with the map locked and the object's backing_lk held.
    end: int  # one past the last; start < end; protected like start
    pmap: Pmap  # whose page tables hold the PTEs of this range; never changes
    backing_ba: VmMapBacking | None  # the element behind, whose object is older; map lock
    object: VmObject | None
    # What shows. None only in the first element: anonymous memory nobody has touched yet, or a
    # submap. While set, the element holds one reference on the object and is entered in its
    # backing_list. Map lock.
    offset: int  # where `start` is in the object, in bytes; page aligned; map lock
    backing_count: int  # elements behind this one; 0 iff backing_ba is None; map lock

    def __init__(
        self, start: int, end: int, pmap: Pmap, object: VmObject | None, offset: int
    ) -> None:
        self.start = start
        self.end = end
        self.pmap = pmap
        self.backing_ba = None
        self.object = object
        self.offset = offset
        self.backing_count = 0


class VmMapEntry:
    """A range of addresses that is alike in every respect.

    Source: DragonFly sys/vm/vm_map.h, struct vm_map_entry. The map's lock protects everything.
    """

    __slots__ = ("avail_ssize", "ba", "eflags", "forked", "id", "inheritance", "maptype",
                 "max_protection", "next", "prev", "protection", "sub_map",
                 "wired_count")  # fmt: skip

    ba: VmMapBacking  # front of the backing chain; ba.start and ba.end are the entry's range
    prev: VmMapEntry | None  # neighbours in order of address; both None in an entry
    next: VmMapEntry | None  # that is in no map
    eflags: int  # MAP_ENTRY_*
    maptype: int  # VM_MAPTYPE_*
    protection: int  # VM_PROT_*: what an access may do
    max_protection: int  # … and what protect may raise it to; protection is a subset
    inheritance: int  # VM_INHERIT_*: what fork does with it
    wired_count: int
    # Wirings, one of them the user's if USER_WIRED; while not 0 every page of the range is
    # resident, wired and mapped, except the guard page of a kernel stack
    id: int  # VM_SUBSYS_*: who made it, for people
    avail_ssize: int
    # Bytes by which a STACK entry may still grow downwards; 0 in every other. findspace leaves
    # them free.
    sub_map: VmMap | None  # the map that decides; not None iff maptype is SUBMAP
    forked: int
    # For private memory that the map was forked with and that had been written to by then: where a
    # piece ended of what it was one with at that time; 0 for everything else.
    # Not in DragonFly. It is never one with what has another number (in Linux, whose processes
    # see which mappings are one, it is its anon_vma that has parents)

    def __init__(
        self,
        ba: VmMapBacking,
        eflags: int,
        maptype: int,
        protection: int,
        max_protection: int,
        inheritance: int,
        id: int,
    ) -> None:
        self.ba = ba
        self.prev = None
        self.next = None
        self.eflags = eflags
        self.maptype = maptype
        self.protection = protection
        self.max_protection = max_protection
        self.inheritance = inheritance
        self.wired_count = 0
        self.id = id
        self.avail_ssize = 0
        self.sub_map = None
        self.forked = 0

    def __repr__(self) -> str:
        prot = "".join(c if self.protection & 1 << i else "-" for i, c in enumerate("rwx"))
        return f"<VmMapEntry {self.ba.start:#x}-{self.ba.end:#x} {prot} eflags={self.eflags:#x}>"


class VmMapFreehint:
    """What findspace remembers of an earlier search: no hole of `length` bytes at `align` starts
    at or above `low` and below `start`. (`start` itself need not be free.) DragonFly's hints have
    no `low`, and are untrue after a search that was told to begin higher up."""

    __slots__ = ("align", "length", "low", "start")

    def __init__(self, low: int, start: int, length: int, align: int) -> None:
        self.low = low
        self.start = start
        self.length = length
        self.align = align


class VmMap:
    """An address map: the entries of one address space, or of a part of the kernel's.

    Source: DragonFly sys/vm/vm_map.h, struct vm_map.
    """

    __slots__ = ("first", "flags", "freehint", "freehint_newindex", "hint", "index", "lock",
                 "max_addr", "min_addr", "nentries", "nvmas", "nvmas_at", "pmap", "shm_cut",
                 "shm_cut_at", "size", "system_map", "timestamp", "token", "vm")  # fmt: skip

    vm: VmSystem  # the machine
    lock: Lock  # lockmgr lock of everything below; may be held over blocking
    token: Token
    # Serialises soft state: held while entries are made and thrown away, so that whoever holds
    # only the token can walk the entries as long as he does not block.
    index: VmMapIndex  # the entries by address; lock
    first: VmMapEntry | None  # the lowest entry; the rest hangs on its `next`; lock
    hint: VmMapEntry | None
    # The entry the last lookup found, tried first by the next one: an entry of this map or None.
    # Any lookup sets it; under a shared lock, too, as threads do not run in parallel.
    min_addr: int  # no entry lies below; never changes
    max_addr: int  # … or at or above
    nentries: int  # entries in index; lock
    nvmas: int  # how many mappings programs saw in them (kern/vma.py) when the lock was taken the
    nvmas_at: int  # nvmas_at'th time; -1: that has not been asked yet
    size: int  # sum of their lengths in bytes; lock
    timestamp: int
    # Counts exclusive holds: whoever gives up the lock and has it back finds out whether he must
    # look again, since the same value means that nothing has changed; lock
    shm_cut: set[VmMapEntry]
    # Pieces of what shows a System V segment that were cut, or moved, since the lock was taken
    # the shm_cut_at'th time: they may be merged again until it is given up; exclusive lock
    shm_cut_at: int  # a timestamp; exclusive lock
    system_map: bool
    # The kernel's own: entries without an object have no memory, instead of getting an object at
    # the first fault; never changes after boot
    flags: int  # MAP_WIREFUTURE, MAP_FUTUREONFAULT, MAP_SEALED; lock
    freehint: list[VmMapFreehint]  # at most VM_MAP_FFCOUNT; exclusive lock
    freehint_newindex: int  # which one the next new hint replaces; exclusive lock
    pmap: Pmap  # the page tables; never changes

    def __init__(self, vm: VmSystem, min_addr: int, max_addr: int, pmap: Pmap) -> None:
        self.vm = vm
        self.lock = Lock(vm.sched, "vm_maplk", 0)
        self.token = Token(vm.sched, "vm_map")
        self.index = VmMapIndex()
        self.first = None
        self.hint = None
        self.min_addr = min_addr
        self.max_addr = max_addr
        self.nentries = 0
        self.nvmas, self.nvmas_at = 0, -1
        self.size = 0
        self.timestamp = 0
        self.shm_cut = set()
        self.shm_cut_at = -1
        self.system_map = False
        self.flags = 0
        self.freehint = []
        self.freehint_newindex = 0
        self.pmap = pmap

    def __repr__(self) -> str:
        return f"<VmMap {self.min_addr:#x}-{self.max_addr:#x} {self.nentries} entries>"

    def __iter__(self) -> Iterator[VmMapEntry]:
        """The entries in order. The entry just given may be taken out by the caller, no other."""
        entry = self.first
        while entry is not None:
            next_entry = entry.next
            yield entry
            entry = next_entry


def vm_map_lock(map: VmMap) -> None:
    """Lock the map exclusively. May block."""
    lockmgr_exclusive(map.lock)
    map.timestamp += 1


def vm_map_unlock(map: VmMap) -> None:
    """Give up an exclusive hold."""
    lockmgr_release(map.lock)


def vm_map_lock_read(map: VmMap) -> None:
    """Lock the map shared. May block."""
    lockmgr_shared(map.lock)


def vm_map_unlock_read(map: VmMap) -> None:
    """Give up a shared hold."""
    lockmgr_release(map.lock)


def vm_map_lock_read_try(map: VmMap) -> bool:
    """Lock the map shared if that needs no waiting."""
    return lockmgr_shared(map.lock, LK_SHARED | LK_NOWAIT) == 0


def vm_map_lock_upgrade(map: VmMap) -> bool:
    """Turn a shared hold into an exclusive one. False: another thread upgrades already, and the
    shared hold is gone, too. May block."""
    if lockmgr_upgrade(map.lock, LK_EXCLUPGRADE) != 0:
        return False
    map.timestamp += 1
    return True


def vm_map_lock_downgrade(map: VmMap) -> None:
    """Turn an exclusive hold into a shared one. Does not block."""
    lockmgr_downgrade(map.lock)
