"""Points where others may watch the VM. Each probe is a module-level callable, None while nobody
listens, so that an unwatched probe costs one test:

    if probe.fault is not None:
        probe.fault(record)

`dfvm.trace` subscribes and is the only one that does. A probe gets the VmSystem (through its
record), because one Python process may run several machines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dfvm.vm.vm import KERN_SUCCESS

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMapEntry
    from dfvm.vm.vm_page import VmPage

# How a fault was resolved: bits of FaultRecord.how.
HOW_ZFOD: Final = 0x001  # a new page, zero filled
HOW_COW: Final = 0x002  # copied from a page deeper in the chain
HOW_FILE: Final = 0x004  # read from a file (major)
HOW_RESIDENT: Final = 0x008  # the page was there; only the mapping was missing
HOW_BYPASS: Final = 0x010  # found in the page hash, no object lock taken
HOW_GROW: Final = 0x020  # the stack grew first
HOW_WPTE: Final = 0x040  # the page was the front object's own; only the right to write was missing
HOW_QUICK: Final = 0x080  # resolved inside the engine's callback
HOW_SIGNAL: Final = 0x100  # not resolved: the process gets a signal
HOW_WIRE: Final = 0x200  # the kernel wired the page (mlock)
HOW_KERNEL: Final = 0x400  # the kernel's own access, to user memory or to kernel_map


class FaultRecord:
    """One page fault, after it was dealt with."""

    __slots__ = ("depth", "entry_end", "entry_start", "fault_type", "how", "major", "map_entry",
                 "ns", "page", "pindex", "prefault", "pte", "result", "va", "vm")  # fmt: skip

    vm: VmSystem  # the machine it happened in
    va: int  # the address that was accessed
    fault_type: int  # VM_PROT_READ, WRITE or EXECUTE
    how: int  # HOW_* bits
    result: int  # KERN_*
    map_entry: VmMapEntry | None  # the entry it fell in, None when there was none
    entry_start: int  # the entry's bounds at the time
    entry_end: int
    depth: int  # which element of the chain held the page, 0 the front
    page: VmPage | None  # the page that was mapped
    pindex: int  # of the page, in its object
    pte: int  # the PTE as installed, 0 when none was
    prefault: int  # how many neighbours were mapped along with it
    major: bool  # a pager had to read
    ns: int  # how long vm_fault took

    def __init__(
        self, vm: VmSystem, entry: VmMapEntry | None, va: int, fault_type: int, how: int
    ) -> None:
        """A fault that was resolved with nothing to tell but `how`; the rest is filled in."""
        self.vm = vm
        self.map_entry = entry
        self.entry_start = entry.ba.start if entry is not None else 0
        self.entry_end = entry.ba.end if entry is not None else 0
        self.va = va
        self.fault_type = fault_type
        self.how = how
        self.result = KERN_SUCCESS
        self.page = None
        self.depth = self.pindex = self.pte = self.prefault = 0
        self.major = False
        self.ns = 0


fault: Callable[[FaultRecord], None] | None = None
