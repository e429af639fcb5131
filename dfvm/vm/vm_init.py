"""VmSystem: everything that sys/vm keeps in global variables, one for each machine; and its boot.

The process layer (kern) makes one, then asks the functions of the other modules. Nothing here
blocks.

Source: DragonFly sys/vm/vm_init.c (vm_mem_init), with the globals of vm_page.c, vm_object.c,
vm_kern.c and vm_meter.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.vm.vm_meter import Globaldata, VmMeter, VmStats

if TYPE_CHECKING:
    from dfvm.lwkt.lwkt_thread import Scheduler
    from dfvm.machine.mmu import Mmu
    from dfvm.machine.ram import Ram
    from dfvm.vm.pmap import Pmap
    from dfvm.vm.vm_map import VmMap
    from dfvm.vm.vm_object import VmObject, VmObjectHash
    from dfvm.vm.vm_page import PageSystem
    from dfvm.vm.vm_proc import VmHooks, VmProc


class VmSysctl:
    """The vm.* tunables, named by the leaf of the sysctl."""

    __slots__ = ("fast_fault", "map_backing_limit", "map_partition_enable", "max_proc_mmap",
                 "min_free_kbytes", "pageout_memuse_mode", "prefault_pages", "shared_fault",
                 "stack_guard_gap")  # fmt: skip

    def __init__(self) -> None:
        self.prefault_pages = 8  # neighbours a fault looks at, half on each side
        self.fast_fault = 1  # zero-fill neighbours too
        self.shared_fault = 1  # try the shared object lock, and the bypass, first
        self.map_backing_limit = 5  # longest chain fork leaves behind
        self.map_partition_enable = 1  # clip large entries to 32 MiB at the first fault
        self.min_free_kbytes = 0  # four times v_free_min, if that can be; set by vm_meter
        self.pageout_memuse_mode = 1  # RLIMIT_RSS: 0 off, 1 passive, 2 active
        self.max_proc_mmap = 65_530  # mappings in one user map, as programs count them
        self.stack_guard_gap = 256  # pages between a stack that grows and what is below it


class VmSystem:
    """One machine's virtual memory system."""

    ram: Ram  # guest physical memory
    sched: Scheduler  # who runs, sleeps, and what time it is
    mmu: Mmu  # what the engine must forget before the guest runs again
    gd: Globaldata  # statistics of the (one) CPU: what hot paths read and adjust
    vmstats: VmStats  # queue counters and thresholds, rolled up from gd
    vmmeter: VmMeter  # event counters, rolled up from gd
    sysctl: VmSysctl
    pages: PageSystem  # vm_page_array, the queues, the page hash (vm_page.py)
    object_hash: VmObjectHash  # 256 buckets of all objects
    kernel_object: VmObject  # owns the pages of kernel_map; phys, never paged
    kernel_pmap: Pmap  # the upper half of every address space
    kernel_map: VmMap
    hooks: VmHooks | None  # the process layer; None until kern has started

    def __init__(self, ram: Ram, sched: Scheduler, mmu: Mmu) -> None:
        self.ram = ram
        self.sched = sched
        self.mmu = mmu
        self.sysctl = VmSysctl()
        self.gd = Globaldata()
        self.vmstats = VmStats()
        self.vmmeter = VmMeter()
        self.hooks = None
        vm_mem_init(self)

    def curproc(self) -> VmProc | None:
        """The process on whose behalf the kernel runs now; None in a kernel thread."""
        proc: VmProc | None = self.sched.curthread.td_proc
        return proc


def vm_mem_init(vm: VmSystem) -> None:
    """Bring the VM up, in the order in which each part needs the ones before it."""
    from dfvm.vm.pmap import pmap_bootstrap
    from dfvm.vm.vm_kern import kmem_init
    from dfvm.vm.vm_object import vm_object_init
    from dfvm.vm.vm_page import vm_page_startup

    vm_page_startup(vm)  # vm.pages, thresholds
    vm_object_init(vm)  # vm.object_hash, vm.kernel_object
    pmap_bootstrap(vm)  # vm.kernel_pmap with the direct map
    kmem_init(vm)  # vm.kernel_map
