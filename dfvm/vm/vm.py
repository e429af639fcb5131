"""The constants every part of the VM speaks in: protections, inheritance, results, attributes.

Source: DragonFly sys/vm/vm.h, sys/vm/vm_param.h (KERN_* results) and sys/vm/pmap.h.
"""

from __future__ import annotations

from typing import Final

# Protection of a mapping, and the type of a fault.
VM_PROT_NONE: Final = 0x00
VM_PROT_READ: Final = 0x01
VM_PROT_WRITE: Final = 0x02
VM_PROT_EXECUTE: Final = 0x04
VM_PROT_OVERRIDE_WRITE: Final = 0x08  # force a copy on write even where writing is not allowed
VM_PROT_NOSYNC: Final = 0x10  # the page takes PG_NOSYNC from its mapping
VM_PROT_FETCH: Final = 0x20  # pmap_enter: for an instruction fetch; VM_PROT_EXECUTE << 3
VM_PROT_ALL: Final = VM_PROT_READ | VM_PROT_WRITE | VM_PROT_EXECUTE

# What fork does with an entry. DragonFly's numbers.
VM_INHERIT_SHARE: Final = 0
VM_INHERIT_COPY: Final = 1
VM_INHERIT_NONE: Final = 2
VM_INHERIT_ZERO: Final = 3  # the child gets zeros in its place; FreeBSD's

# Results of VM functions (vm_param.h).
KERN_SUCCESS: Final = 0
KERN_INVALID_ADDRESS: Final = 1
KERN_PROTECTION_FAILURE: Final = 2
KERN_NO_SPACE: Final = 3
KERN_INVALID_ARGUMENT: Final = 4
KERN_FAILURE: Final = 5
KERN_RESOURCE_SHORTAGE: Final = 6
KERN_NOT_RECEIVER: Final = 7
KERN_NO_ACCESS: Final = 8
KERN_TRY_AGAIN: Final = 9
KERN_FAILURE_NOFAULT: Final = 10

# Memory attributes: the values of the PAT entries they stand for (cpufunc.h, PAT_*).
VM_MEMATTR_UNCACHEABLE: Final = 0x00
VM_MEMATTR_WRITE_COMBINING: Final = 0x01
VM_MEMATTR_WRITE_THROUGH: Final = 0x04
VM_MEMATTR_WRITE_PROTECTED: Final = 0x05
VM_MEMATTR_WRITE_BACK: Final = 0x06
VM_MEMATTR_WEAK_UNCACHEABLE: Final = 0x07
VM_MEMATTR_DEFAULT: Final = VM_MEMATTR_WRITE_BACK

# Where a map entry comes from (vm.h, vm_subsys_t); for people who look at a map.
VM_SUBSYS_UNKNOWN: Final = 0
VM_SUBSYS_KMALLOC: Final = 1
VM_SUBSYS_STACK: Final = 2
VM_SUBSYS_IMGACT: Final = 3
VM_SUBSYS_EFI: Final = 4
VM_SUBSYS_RESERVED: Final = 5
VM_SUBSYS_INIT: Final = 6
VM_SUBSYS_PIPE: Final = 7
VM_SUBSYS_PROC: Final = 8
VM_SUBSYS_SHMEM: Final = 9
VM_SUBSYS_SYSMAP: Final = 10
VM_SUBSYS_MMAP: Final = 11
VM_SUBSYS_BRK: Final = 12
VM_SUBSYS_BOGUS: Final = 13
VM_SUBSYS_BUF: Final = 14
VM_SUBSYS_BUFDATA: Final = 15
VM_SUBSYS_GD: Final = 16
VM_SUBSYS_IPIQ: Final = 17
VM_SUBSYS_PVENTRY: Final = 18
VM_SUBSYS_PML4: Final = 19
VM_SUBSYS_MAPDEV: Final = 20
VM_SUBSYS_ZALLOC: Final = 21

VM_SUBSYS_NAMES: Final = (
    "unknown", "kmalloc", "stack", "imgact", "efi", "reserved", "init", "pipe", "proc", "shmem",
    "sysmap", "mmap", "brk", "bogus", "buf", "bufdata", "gd", "ipiq", "pventry", "pml4", "mapdev",
    "zalloc",
)  # fmt: skip
