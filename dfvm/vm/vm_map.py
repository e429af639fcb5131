"""Address maps, as the rest of the kernel uses them: everything below comes from the modules that
this one gathers, as vm_map.h does in DragonFly.

    vm_map_entry      the structures, their flags, the map's lock
    vm_map_index      from an address to an entry, from a length to a hole
    vm_map_backing    backing chains: attach, copy, shadow, give back
    vm_map_clip       finding, linking, cutting and merging entries
    vm_map_space      first-fit search and the free hints
    vm_map_insert     insert, find, delete, submaps
    vm_map_lookup     what a fault asks
    vm_map_protect    protection and inheritance
    vm_map_madvise    advice, and writing back (msync)
    vm_map_wire       wiring by the user and by the kernel
    vm_map_stack      stacks that grow
    vm_map_collapse   keeping chains short
    vm_map_check      is everything as it should be?
    vmspace           a map with its page tables: the address space of a process

A map knows nothing of processes and files: it maps objects. Entries are changed with the map's
lock held exclusively; the order in which locks are taken is in the package's docstring.

Source: DragonFly sys/vm/vm_map.c, sys/vm/vm_map.h.
"""

from __future__ import annotations

from dfvm.vm.vm_map_backing import (
    vm_map_backing_attach,
    vm_map_backing_detach,
    vm_map_backing_dispose,
    vm_map_backing_replicate,
    vm_map_entry_allocate_object,
    vm_map_entry_shadow,
)
from dfvm.vm.vm_map_clip import (
    vm_map_clip_end,
    vm_map_clip_start,
    vm_map_first_entry,
    vm_map_lookup_entry,
    vm_map_range_check,
    vm_map_simplify_entry,
    vm_map_transition_wait,
)
from dfvm.vm.vm_map_entry import (
    MAP_COPY_ON_WRITE,
    MAP_DISABLE_COREDUMP,
    MAP_DISABLE_SYNCER,
    MAP_ENTRY_ABI_MASK,
    MAP_ENTRY_BEHAV_MASK,
    MAP_ENTRY_BEHAV_NORMAL,
    MAP_ENTRY_BEHAV_RANDOM,
    MAP_ENTRY_BEHAV_SEQUENTIAL,
    MAP_ENTRY_COW,
    MAP_ENTRY_GUARD,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_KIND_MASK,
    MAP_ENTRY_KSTACK,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_NEEDS_WAKEUP,
    MAP_ENTRY_NOCOREDUMP,
    MAP_ENTRY_NOFAULT,
    MAP_ENTRY_NOSYNC,
    MAP_ENTRY_STACK,
    MAP_ENTRY_USER_WIRED,
    MAP_ENTRY_WIREONFAULT,
    MAP_FUTUREONFAULT,
    MAP_IS_KSTACK,
    MAP_IS_STACK,
    MAP_NOFAULT,
    MAP_PREFAULT,
    MAP_PREFAULT_MADVISE,
    MAP_PREFAULT_PARTIAL,
    MAP_SEALED,
    MAP_WIREFUTURE,
    VM_MAPTYPE_NORMAL,
    VM_MAPTYPE_SUBMAP,
    VM_MAPTYPE_UNSPECIFIED,
    VmMap,
    VmMapBacking,
    VmMapEntry,
    vm_map_lock,
    vm_map_lock_downgrade,
    vm_map_lock_read,
    vm_map_lock_read_try,
    vm_map_lock_upgrade,
    vm_map_unlock,
    vm_map_unlock_read,
)
from dfvm.vm.vm_map_insert import (
    vm_map_delete,
    vm_map_find,
    vm_map_insert,
    vm_map_remove,
    vm_map_submap,
)
from dfvm.vm.vm_map_lookup import (
    FW_DIDCOW,
    FW_WIRED,
    LookupResult,
    vm_map_lookup,
    vm_map_lookup_done,
)
from dfvm.vm.vm_map_madvise import (
    MADV_AUTOSYNC,
    MADV_CORE,
    MADV_INVAL,
    MADV_NOCORE,
    MADV_NORMAL,
    MADV_NOSYNC,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    vm_map_clean,
    vm_map_madvise,
    vm_map_mark,
)
from dfvm.vm.vm_map_protect import vm_map_check_protection, vm_map_inherit, vm_map_protect
from dfvm.vm.vm_map_space import vm_map_findspace
from dfvm.vm.vm_map_stack import vm_map_growstack, vm_map_stack
from dfvm.vm.vm_map_wire import vm_map_kernel_wiring, vm_map_user_wiring
from dfvm.vm.vm_object import MADV_DONTNEED, MADV_FREE, MADV_WILLNEED

__all__ = [
    "FW_DIDCOW",
    "FW_WIRED",
    "MADV_AUTOSYNC",
    "MADV_CORE",
    "MADV_DONTNEED",
    "MADV_FREE",
    "MADV_INVAL",
    "MADV_NOCORE",
    "MADV_NORMAL",
    "MADV_NOSYNC",
    "MADV_RANDOM",
    "MADV_SEQUENTIAL",
    "MADV_WILLNEED",
    "MAP_COPY_ON_WRITE",
    "MAP_DISABLE_COREDUMP",
    "MAP_DISABLE_SYNCER",
    "MAP_ENTRY_ABI_MASK",
    "MAP_ENTRY_BEHAV_MASK",
    "MAP_ENTRY_BEHAV_NORMAL",
    "MAP_ENTRY_BEHAV_RANDOM",
    "MAP_ENTRY_BEHAV_SEQUENTIAL",
    "MAP_ENTRY_COW",
    "MAP_ENTRY_GUARD",
    "MAP_ENTRY_IN_TRANSITION",
    "MAP_ENTRY_KIND_MASK",
    "MAP_ENTRY_KSTACK",
    "MAP_ENTRY_NEEDS_COPY",
    "MAP_ENTRY_NEEDS_WAKEUP",
    "MAP_ENTRY_NOCOREDUMP",
    "MAP_ENTRY_NOFAULT",
    "MAP_ENTRY_NOSYNC",
    "MAP_ENTRY_STACK",
    "MAP_ENTRY_USER_WIRED",
    "MAP_ENTRY_WIREONFAULT",
    "MAP_FUTUREONFAULT",
    "MAP_IS_KSTACK",
    "MAP_IS_STACK",
    "MAP_NOFAULT",
    "MAP_PREFAULT",
    "MAP_PREFAULT_MADVISE",
    "MAP_PREFAULT_PARTIAL",
    "MAP_SEALED",
    "MAP_WIREFUTURE",
    "VM_MAPTYPE_NORMAL",
    "VM_MAPTYPE_SUBMAP",
    "VM_MAPTYPE_UNSPECIFIED",
    "LookupResult",
    "VmMap",
    "VmMapBacking",
    "VmMapEntry",
    "vm_map_backing_attach",
    "vm_map_backing_detach",
    "vm_map_backing_dispose",
    "vm_map_backing_replicate",
    "vm_map_check_protection",
    "vm_map_clean",
    "vm_map_clip_end",
    "vm_map_clip_start",
    "vm_map_delete",
    "vm_map_entry_allocate_object",
    "vm_map_entry_shadow",
    "vm_map_find",
    "vm_map_findspace",
    "vm_map_first_entry",
    "vm_map_growstack",
    "vm_map_inherit",
    "vm_map_insert",
    "vm_map_kernel_wiring",
    "vm_map_lock",
    "vm_map_lock_downgrade",
    "vm_map_lock_read",
    "vm_map_lock_read_try",
    "vm_map_lock_upgrade",
    "vm_map_lookup",
    "vm_map_lookup_done",
    "vm_map_lookup_entry",
    "vm_map_madvise",
    "vm_map_mark",
    "vm_map_protect",
    "vm_map_range_check",
    "vm_map_remove",
    "vm_map_simplify_entry",
    "vm_map_stack",
    "vm_map_submap",
    "vm_map_transition_wait",
    "vm_map_unlock",
    "vm_map_unlock_read",
    "vm_map_user_wiring",
]
