"""Statistics of the VM: page counts and thresholds (vmstats), events (vmmeter), and their per-CPU
halves.

Hot paths write only to their own CPU's `Globaldata`. Page counts are kept twice there:
`gd_vmstats` is that CPU's picture of the whole machine, which the paging tests read, and
`gd_vmstats_adj` is what the CPU has changed since it last told the others. `vm_page_rollup` moves
adjustments and events into the global figures; it runs at each clock tick, and at once when an
adjustment passes VMSTATS_ADJ_LIMIT.

Whoever wants exact global figures calls `vm_page_rollup` first.

Source: DragonFly sys/sys/vmmeter.h, sys/vm/vm_meter.c, sys/kern/kern_clock.c (vmstats rollup).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem

_KIB_PAGE: Final = 4  # KiB in a page
_FREE_MIN: Final = 32  # pages: v_free_min is at least that

VMSTATS_ADJ_LIMIT: Final = 1024  # pages one CPU may keep to itself


def _shown(counters: VmStats | VmMeter) -> str:
    values = ((name, getattr(counters, name)) for name in type(counters).__slots__)
    names = " ".join(f"{name}={value}" for name, value in values if value)
    return f"<{type(counters).__name__} {names or 'all 0'}>"


class VmStats:
    """struct vmstats: how many pages are where, and the marks that paging goes by. In pages.

    reserved < severe < min < wait < start < target1 < target2
    """

    __slots__ = (
        "v_active_count",
        "v_cache_count",
        "v_free_count",
        "v_free_min",
        "v_free_reserved",
        "v_free_severe",
        "v_inactive_count",
        "v_inactive_target",
        "v_interrupt_free_min",
        "v_page_count",
        "v_paging_start",
        "v_paging_target1",
        "v_paging_target2",
        "v_paging_wait",
        "v_wire_count",
    )

    v_page_count: int  # frames the VM manages; fixed at boot
    v_free_count: int  # on PQ_FREE, frames that were never used included
    v_cache_count: int  # on PQ_CACHE: clean, unmapped, still in their object
    v_inactive_count: int  # on PQ_INACTIVE
    v_active_count: int  # on PQ_ACTIVE, and on PQ_HOLD as in DragonFly
    v_wire_count: int  # pages with wire_count != 0
    v_interrupt_free_min: int  # VM_ALLOC_SYSTEM leaves this many
    v_free_reserved: int  # VM_ALLOC_NORMAL leaves this many
    v_free_severe: int  # user processes stall
    v_free_min: int  # faults block
    v_paging_wait: int  # nice processes begin to block
    v_paging_start: int  # paging begins
    v_paging_target1: int  # paging works hard up to here
    v_paging_target2: int  # and takes it easy up to here
    v_inactive_target: int  # inactive pages wanted

    def __init__(self) -> None:
        self.v_page_count = 0
        self.v_free_count = 0
        self.v_cache_count = 0
        self.v_inactive_count = 0
        self.v_active_count = 0
        self.v_wire_count = 0
        self.v_interrupt_free_min = 0
        self.v_free_reserved = 0
        self.v_free_severe = 0
        self.v_free_min = 0
        self.v_paging_wait = 0
        self.v_paging_start = 0
        self.v_paging_target1 = 0
        self.v_paging_target2 = 0
        self.v_inactive_target = 0

    def __repr__(self) -> str:
        return _shown(self)


class VmStatsAdj:
    """What one CPU has added to each page count since its last rollup."""

    __slots__ = (
        "v_active_count",
        "v_cache_count",
        "v_free_count",
        "v_inactive_count",
        "v_wire_count",
    )

    v_free_count: int
    v_cache_count: int
    v_inactive_count: int
    v_active_count: int
    v_wire_count: int

    def __init__(self) -> None:
        self.v_free_count = 0
        self.v_cache_count = 0
        self.v_inactive_count = 0
        self.v_active_count = 0
        self.v_wire_count = 0


class VmMeter:
    """struct vmmeter: things that happened, counted since boot (in gd_cnt: since the last
    rollup)."""

    __slots__ = (
        "v_cow_faults",
        "v_dfree",
        "v_exec",
        "v_fault_bypass",
        "v_forks",
        "v_intrans",
        "v_ozfod",
        "v_pdpages",
        "v_pdwakeups",
        "v_ppwakeups",
        "v_prefault",
        "v_reactivated",
        "v_swtch",
        "v_syscall",
        "v_tfree",
        "v_trap",
        "v_vforks",
        "v_vm_faults",
        "v_vnodein",
        "v_vnodeout",
        "v_vnodepgsin",
        "v_vnodepgsout",
        "v_zfod",
    )

    v_swtch: int  # switches to another process
    v_trap: int  # exits of the CPU for faults and exceptions
    v_syscall: int  # system calls
    v_vm_faults: int  # calls of vm_fault
    v_cow_faults: int  # pages copied on write
    v_zfod: int  # pages zero-filled on demand
    v_ozfod: int  # allocations of zeroed memory that met a frame which was never used
    v_fault_bypass: int  # faults that vm_fault_bypass resolved
    v_prefault: int  # neighbours that a fault mapped along with its page
    v_intrans: int  # faults that met a busy page and waited
    v_vnodein: int  # reads by the vnode pager
    v_vnodeout: int  # writes by the vnode pager
    v_vnodepgsin: int  # pages they read
    v_vnodepgsout: int  # pages they wrote
    v_reactivated: int  # pages taken back from the inactive or cache queue
    v_pdwakeups: int  # times paging had to work
    v_pdpages: int  # pages it looked at
    v_dfree: int  # pages it freed
    v_tfree: int  # pages freed, all reasons
    v_ppwakeups: int  # times memory waiters were woken
    v_forks: int  # fork() calls
    v_vforks: int  # vfork() calls
    v_exec: int  # execve() calls

    def __init__(self) -> None:
        for name in VmMeter.__slots__:
            setattr(self, name, 0)

    def __repr__(self) -> str:
        return _shown(self)


class Globaldata:
    """The VM's part of one CPU's struct globaldata. Only that CPU writes it."""

    __slots__ = ("gd_cnt", "gd_cpuid", "gd_vmstats", "gd_vmstats_adj")

    gd_cpuid: int  # which CPU; selects its slice of the page colours
    gd_vmstats: VmStats  # this CPU's picture of the machine; hot paths read this one
    gd_vmstats_adj: VmStatsAdj  # page counts changed here and not yet in the global figures
    gd_cnt: VmMeter  # events counted here and not yet in the global figures

    def __init__(self, cpuid: int = 0) -> None:
        self.gd_cpuid = cpuid
        self.gd_vmstats = VmStats()
        self.gd_vmstats_adj = VmStatsAdj()
        self.gd_cnt = VmMeter()


def vm_page_rollup(vm: VmSystem) -> None:
    """Bring the global figures up to date with the CPU's own, and the CPU's picture up to date
    with them. No requirements; does not block."""
    vmstats_rollup(vm)
    cnt = vm.gd.gd_cnt
    total = vm.vmmeter
    for name in VmMeter.__slots__:
        n = getattr(cnt, name)
        if n:
            setattr(total, name, getattr(total, name) + n)
            setattr(cnt, name, 0)


def vmstats_rollup(vm: VmSystem) -> None:
    """The part of the rollup that page counts need; the queues call it when an adjustment passes
    its limit."""
    adj = vm.gd.gd_vmstats_adj
    own = vm.gd.gd_vmstats
    total = vm.vmstats
    for name in VmStatsAdj.__slots__:
        n = getattr(total, name) + getattr(adj, name)
        setattr(total, name, n)
        setattr(own, name, n)
        setattr(adj, name, 0)


def vmstats_set_thresholds(vm: VmSystem) -> None:
    """Work out the marks from vm.min_free_kbytes and give every CPU a copy. Where that is 0 so far,
    v_page_count says what it is; the marks don't follow where the kernel would have no page for
    itself, or the pagers could never be done.

    v_free_reserved is 3/8 of v_free_min where DragonFly has 4/8: with 4/8 + 7 it would lie above
    v_free_severe, against the order that vm_page2.h itself states.

    Source: DragonFly sys/vm/vm_pageout.c, vm_pageout_free_page_calc, vm_pageout_thread.
    """
    s = vm.vmstats
    vmstats_rollup(vm)
    usual = 64 + s.v_page_count // 200
    if s.v_free_min == 0:
        vm.sysctl.min_free_kbytes = usual * _KIB_PAGE
        s.v_inactive_target = s.v_free_count // 4
    wanted = vm.sysctl.min_free_kbytes // _KIB_PAGE
    low = s.v_free_min = max(min(wanted, max(s.v_page_count // 8, usual)), _FREE_MIN)
    s.v_free_reserved = low * 3 // 8 + 7
    s.v_free_severe = low * 4 // 8
    s.v_interrupt_free_min = low // 8 + 7
    s.v_paging_wait = low * 3
    s.v_paging_start = low * 7 // 2
    s.v_paging_target1 = low * 4
    s.v_paging_target2 = low * 5
    own = vm.gd.gd_vmstats
    for name in VmStats.__slots__:
        setattr(own, name, getattr(s, name))
