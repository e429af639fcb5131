"""What a fault needs of a map: the entry at an address, made ready for the access.

Source: DragonFly sys/vm/vm_map.c (vm_map_lookup, vm_map_lookup_done, vm_map_entry_partition).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_PROTECTION_FAILURE,
    KERN_SUCCESS,
    VM_PROT_ALL,
    VM_PROT_OVERRIDE_WRITE,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_map_backing import vm_map_entry_allocate_object, vm_map_entry_shadow
from dfvm.vm.vm_map_clip import (
    vm_map_clip_end,
    vm_map_clip_start,
    vm_map_lookup_entry,
    vm_map_transition_wait,
)
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_GUARD,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_PARTITION_MASK,
    MAP_ENTRY_PARTITION_SIZE,
    vm_map_lock,
    vm_map_lock_downgrade,
    vm_map_lock_read,
    vm_map_lock_upgrade,
    vm_map_unlock,
    vm_map_unlock_read,
)
from dfvm.vm.vm_param import PAGE_SHIFT

if TYPE_CHECKING:
    from dfvm.vm.vm_map_entry import VmMap, VmMapBacking, VmMapEntry

# LookupResult.wflags
FW_WIRED: Final = 0x0001  # the entry is wired: whatever is mapped there must be, too
FW_DIDCOW: Final = 0x0002  # the lookup has put a new object in front


class LookupResult:
    """Where an access goes. Stays true until vm_map_lookup_done, since the map is locked."""

    __slots__ = ("ba", "entry", "map", "pcount", "pindex", "prot", "wflags")

    def __init__(
        self,
        map: VmMap,
        entry: VmMapEntry,
        ba: VmMapBacking,
        pindex: int,
        pcount: int,
        prot: int,
        wflags: int,
    ) -> None:
        self.map = map  # which map the entry is in: a submap, perhaps. Locked shared
        self.entry = entry
        self.ba = ba  # front of its chain; without an object only in the kernel's maps
        self.pindex = pindex  # of the page, in the front object
        self.pcount = pcount  # pages from there to the end of the entry
        self.prot = prot  # what the page may be mapped with, as far as the entry is concerned
        self.wflags = wflags  # FW_*


def vm_map_lookup(map: VmMap, vaddr: int, fault_type: int) -> tuple[int, LookupResult | None]:
    """Find out where an access of `fault_type` at `vaddr` goes, and prepare its entry: a write to
    a NEEDS_COPY entry shadows it, memory without an object gets one, a large entry without one is
    first cut down to the partition around `vaddr`. VM_PROT_OVERRIDE_WRITE in fault_type goes by
    what the entry could be allowed, for debuggers.

    On success the result's map is locked shared, until vm_map_lookup_done. May block, but only for
    the lock and for entries in transition."""
    exclusive = False
    while True:
        if exclusive:
            vm_map_lock(map)
        else:
            vm_map_lock_read(map)
        found, entry = vm_map_lookup_entry(map, vaddr)
        if not found or entry is None:
            rv = KERN_INVALID_ADDRESS
            break
        if entry.sub_map is not None:
            vm_map_unlock(map)
            map = entry.sub_map
            exclusive = False
            continue

        override = fault_type & VM_PROT_OVERRIDE_WRITE
        prot = entry.max_protection if override else entry.protection
        access = fault_type & VM_PROT_ALL
        eflags = entry.eflags
        if eflags & MAP_ENTRY_GUARD:
            rv = KERN_INVALID_ADDRESS
            break
        if access & ~prot or (
            # A wired page would have to be replaced. (vm_map_protect sees to it that only a
            # debugger can get here.)
            entry.wired_count != 0 and eflags & MAP_ENTRY_NEEDS_COPY and access & VM_PROT_WRITE
        ):
            rv = KERN_PROTECTION_FAILURE
            break
        wflags = 0
        if entry.wired_count != 0:
            # The page will not fault again: map it for everything that may come.
            wflags = FW_WIRED
            prot = access = entry.protection

        if eflags & MAP_ENTRY_NEEDS_COPY:
            if access & VM_PROT_WRITE:
                if not exclusive and not vm_map_lock_upgrade(map):
                    exclusive = True
                    continue
                exclusive = True
                vm_map_entry_shadow(entry)
                wflags |= FW_DIDCOW
            else:
                prot &= ~VM_PROT_WRITE

        ba = entry.ba
        if ba.object is None and not map.system_map:
            if not exclusive and not vm_map_lock_upgrade(map):
                exclusive = True
                continue
            exclusive = True
            if (
                ba.start ^ ba.end
            ) & ~MAP_ENTRY_PARTITION_MASK and map.vm.sysctl.map_partition_enable:
                if eflags & MAP_ENTRY_IN_TRANSITION:
                    vm_map_transition_wait(map, entry, relock=False)
                    continue
                _partition(map, entry, vaddr)
            vm_map_entry_allocate_object(entry)
            ba = entry.ba

        if exclusive:
            vm_map_lock_downgrade(map)
        offset = vaddr - ba.start + ba.offset
        return KERN_SUCCESS, LookupResult(
            map,
            entry,
            ba,
            offset >> PAGE_SHIFT,
            (ba.end >> PAGE_SHIFT) - (vaddr >> PAGE_SHIFT),
            prot,
            wflags,
        )
    vm_map_unlock(map)
    return rv, None


def vm_map_lookup_done(map: VmMap) -> None:
    """Unlock the map of a successful lookup."""
    vm_map_unlock_read(map)


def _partition(map: VmMap, entry: VmMapEntry, vaddr: int) -> None:
    """Cut `entry` down to the partition that holds `vaddr`. Smaller objects mean less to search
    for everything that goes by object, and less to free at once."""
    start = vaddr & ~MAP_ENTRY_PARTITION_MASK
    vm_map_clip_start(map, entry, start)
    vm_map_clip_end(map, entry, start + MAP_ENTRY_PARTITION_SIZE)
