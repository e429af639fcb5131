"""What the VM must know of processes, and nothing more.

`vm` may not import `kern`. Where DragonFly's VM looks at `curproc`, ours asks an object with this
shape; `kern` provides it. A thread of the kernel's own (a daemon, the boot thread) has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfvm.vm.vmspace import Vmspace

# Resource limits the VM enforces (numbers of Linux, which kern uses throughout).
RLIMIT_DATA: Final = 2
RLIMIT_STACK: Final = 3
RLIMIT_RSS: Final = 5
RLIMIT_MEMLOCK: Final = 8
RLIMIT_VMEM: Final = 9  # Linux: RLIMIT_AS

RLIM_INFINITY: Final = (1 << 64) - 1


class VmProc(Protocol):
    """A process as the VM sees it."""

    p_vmspace: Vmspace  # its address space
    p_nice: int  # -20 … 19; a nicer process waits earlier when memory is short
    p_lowmemkill: bool  # it is being killed to free memory: let it through, it must exit
    p_system: bool  # never killed for memory (init, daemons)
    p_oom_score_adj: int  # -1000 … 1000: by which thousandths of memory it counts as larger than
    #                       it is when one is killed; with -1000 only if there is nobody else
    p_minflt: int  # faults that needed no I/O, for getrusage
    p_majflt: int  # faults that read from a pager

    def p_rlimit(self, which: int) -> int:
        """The soft limit of RLIMIT_* `which` in bytes, RLIM_INFINITY without one."""
        ...


class VmHooks(Protocol):
    """What the VM asks of the process layer as a whole."""

    def allproc(self) -> Iterable[VmProc]:
        """Every process that has an address space."""
        ...

    def kill_for_memory(self, victim: VmProc) -> None:
        """Kill `victim` because memory is exhausted, and say so on the console. Sets
        p_lowmemkill and wakes it wherever it sleeps. Does not block."""
        ...
