"""The kernel of one machine: what is global in a kernel on bare metal hangs off this.

It ties the parts together at boot, hands out what all processes take from (numbers, kernel stacks,
room for exec arguments), and answers what the VM asks of the process layer (vm_proc.VmHooks).

Source: DragonFly sys/kern/init_main.c; kernel stacks as platform/pc64/x86_64/vm_machdep.c.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.linux_sigframe import sendsig, siginfo_pack
from dfvm.kern.abi.linux.sysent import SysentTable
from dfvm.kern.fsinfo import FsInfo
from dfvm.kern.kern_commit import Overcommit
from dfvm.kern.kern_descrip import FileDesc, FileTable
from dfvm.kern.kern_errno import ENOMEM, err
from dfvm.kern.kern_sig import SIGKILL, SigActs, SigQueue, ksignal
from dfvm.kern.proc import (
    PID_MAX,
    SACTIVE,
    THREADS_MAX,
    Pgrp,
    Proc,
    Session,
    Ucred,
    default_limits,
)
from dfvm.kern.trap import install_quick_faults
from dfvm.kern.vfs.mount import Vfs
from dfvm.kern.vfs.vfs_init import vfs_mountall
from dfvm.kern.vfs.vnode import vn_fullpath
from dfvm.lwkt.lwkt_thread import Scheduler
from dfvm.machine.cpu import PCB_PAGES, CpuContext, Vcpu
from dfvm.machine.mmu import Mmu
from dfvm.machine.ram import Ram
from dfvm.vm.vm import VM_SUBSYS_STACK
from dfvm.vm.vm_init import VmSystem
from dfvm.vm.vm_kern import KM_STACK, kmem_alloc3, kmem_free, kmem_suballoc, kva_to_pa
from dfvm.vm.vm_param import PAGE_SIZE, UPAGES
from dfvm.vm.vmspace import vmspace_alloc, vmspace_ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dfvm.kern.kern_umtx import UmtxPi
    from dfvm.kern.proc import Lwp
    from dfvm.kern.sysv_ipc import IpcNs
    from dfvm.kern.vfs.mqueuefs import MqMount
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.vm.vm_map import VmMap
    from dfvm.vm.vm_proc import VmProc

# Room for the arguments of several execs at once. Addresses, not memory.
EXEC_MAP_BYTES: Final = 64 << 20

_KSTACK_BYTES: Final = (UPAGES + 1) * PAGE_SIZE  # the guard page included
_KSTACK_CACHE: Final = 64  # stacks kept for the next fork


class KernelStack:
    """A kernel stack: wired pages of kernel_map above a guard page.

    ks_kva            guard, no memory
    ks_kva + 4096     (the kernel's own frames are Python's)
    … - 2 pages       pcb: the user registers while they are not loaded
    """

    __slots__ = ("ctx", "ks_kva")

    ks_kva: int  # address of the guard page
    ctx: CpuContext  # the registers in its top two pages

    def __init__(self, vm: VmSystem, vcpu: Vcpu) -> None:
        """:raises OSError: ENOMEM. May block for memory."""
        self.ks_kva = kmem_alloc3(vm.kernel_map, _KSTACK_BYTES, VM_SUBSYS_STACK, KM_STACK)
        if not self.ks_kva:
            raise err(ENOMEM)
        pcb = self.ks_kva + _KSTACK_BYTES - PCB_PAGES * PAGE_SIZE
        self.ctx = CpuContext(vcpu, kva_to_pa(vm, pcb), kva_to_pa(vm, pcb + PAGE_SIZE))


class Kernel:
    """One running kernel."""

    ram: Ram
    mmu: Mmu
    sched: Scheduler
    vm: VmSystem
    vcpu: Vcpu
    ncpu: int  # CPUs that programs are told of
    vfs: Vfs
    files: FileTable
    exec_map: VmMap  # submap for the arguments of execs under way
    procs: dict[int, Proc]  # every process, zombies included, by pid
    pgrps: dict[int, Pgrp]
    sids: dict[int, Session]  # sessions that have a group, by id
    lastpid: int  # the number given out last
    initproc: Proc  # pid 1: no program, inherits orphans and reaps them at once
    launcher: Proc  # pid 2: the parent of programs that were asked for from outside, in the place
    #                 of the shell they would be jobs of; its session has the terminal
    sysent: SysentTable  # the Linux ABI
    hostname: bytes
    domainname: bytes
    mmap_min_addr: int  # nobody but root maps anything below it
    overcommit: Overcommit  # what memory may be promised
    pid_max: int  # pids are below it
    threads_max: int  # processes there may be
    core_pattern: bytes  # what core files are called: see kern_core
    core_uses_pid: int  # … and whether the pid is added to a name without it
    checking: bool  # verify the machine along the way (--check)
    faults: int  # the guests' page faults so far, counted while checking
    kstacks: list[KernelStack]  # stacks nobody uses, kept for the next fork
    ipc: IpcNs | None  # System V IPC; None until somebody uses it
    mqueues: MqMount  # POSIX message queues
    umtx_pis: dict[tuple[int, int], UmtxPi]  # locks that somebody waits for, by their word

    def __init__(
        self,
        mem: int,
        root: bytes = b"/",
        rw: Sequence[bytes] = (),
        ncpu: int = 1,
        check: bool = False,
    ) -> None:
        """Boot a machine with `mem` bytes of RAM, the host directory `root` as the root of its
        file systems, and the directories `rw` written through to the host.

        :raises ValueError: for a size that can't be.
        :raises OSError: when the host has not that much memory, or no such directories.
        """
        self.ram = Ram(mem)
        self.mmu = Mmu()
        self.sched = Scheduler()
        self.vm = VmSystem(self.ram, self.sched, self.mmu)
        self.vcpu = Vcpu(self.ram, self.mmu)
        self.ncpu = ncpu
        self.checking = check
        self.faults = 0
        self.kstacks = []
        self.ipc = None
        self.umtx_pis = {}
        self.exec_map = kmem_suballoc(self.vm.kernel_map, EXEC_MAP_BYTES)
        self.files = FileTable(self.vm, self.sched)
        self.sysent = SysentTable()
        self.procs = {}
        self.pgrps = {}
        self.sids = {}
        self.hostname = os.uname().nodename.encode()
        self.domainname = b"(none)"
        self.mmap_min_addr = 0x1_0000
        self.overcommit = Overcommit(self.vm.vmstats.v_page_count)
        self.pid_max = PID_MAX + 1
        self.threads_max = THREADS_MAX
        self.core_pattern, self.core_uses_pid = b"core", 0
        self.vfs = vfs_mountall(self, root, rw)
        self._make_init()
        self.vm.hooks = self
        install_quick_faults(self)

    # ---- boot ------------------------------------------------------------------------------------

    def _make_init(self) -> None:
        """Process 1 and the launcher, process 2. They run nothing: their part, to reap children,
        is done as these die."""
        init = self.initproc = Proc(self, 1)
        init.p_pptr = init
        init.p_vmspace = vmspace_alloc(self.vm)
        init.p_fd = FileDesc(self.files)
        init.p_fs = FsInfo(self.vfs.rootvnode, self.vfs.rootvnode)
        init.p_ucred = Ucred(os.getuid(), os.getgid(), tuple(os.getgroups()))
        init.p_limit = default_limits()
        self._complete(init, "init")

        launcher = self.launcher = Proc(self, 2)
        launcher.p_pptr = init
        init.p_children[2] = launcher
        launcher.p_vmspace = init.p_vmspace
        vmspace_ref(init.p_vmspace)
        launcher.p_fd = init.p_fd.fdcopy()
        launcher.p_fs = init.p_fs.fscopy()
        launcher.p_ucred = init.p_ucred
        launcher.p_limit = init.p_limit.copy()
        self._complete(launcher, "dfvm")
        self.lastpid = 2

    def _complete(self, p: Proc, name: str) -> None:
        """Make `p` a process of the kernel's own, leading a session."""
        p.p_system = True
        p.p_stat = SACTIVE
        p.p_comm = name
        p.p_sigacts = SigActs()
        p.p_sigqueue = SigQueue()
        p.p_start_ns = 0
        p.p_sysent = self.sysent
        session = self.sids[p.p_pid] = Session(p)
        pgrp = p.p_pgrp = Pgrp(p.p_pid, session)
        session.s_pgrps[p.p_pid] = pgrp
        pgrp.pg_members[p.p_pid] = p
        self.pgrps[p.p_pid] = pgrp
        self.procs[p.p_pid] = p

    # ---- what processes take from ----------------------------------------------------------------

    def kstack_alloc(self) -> KernelStack:
        """A kernel stack.

        :raises OSError: ENOMEM. May block for memory.
        """
        if self.kstacks:
            return self.kstacks.pop()
        return KernelStack(self.vm, self.vcpu)

    def kstack_free(self, stack: KernelStack) -> None:
        """Nobody runs on `stack` any more, and its context is not loaded."""
        if len(self.kstacks) < _KSTACK_CACHE:
            self.kstacks.append(stack)
        else:
            kmem_free(self.vm.kernel_map, stack.ks_kva, _KSTACK_BYTES)

    def find_lwp(self, tid: int) -> Lwp | None:
        """The thread `tid`. The first thread of a process has its number; others are looked for
        in their processes."""
        p = self.procs.get(tid)
        if p is not None:
            return p.p_lwps.get(tid)
        for p in self.procs.values():
            lp = p.p_lwps.get(tid)
            if lp is not None:
                return lp
        return None

    def vn_name(self, vp: Vnode) -> str:
        """The absolute path of a file, as /proc shows it."""
        return os.fsdecode(vn_fullpath(vp, self.vfs.rootvnode))

    # ---- the ABI's part in signals ---------------------------------------------------------------

    sendsig = staticmethod(sendsig)
    siginfo_pack = staticmethod(siginfo_pack)

    # ---- what the VM asks (VmHooks) --------------------------------------------------------------

    def allproc(self) -> Iterable[VmProc]:
        """Every process that has an address space."""
        return [p for p in self.procs.values() if p.p_lwps]

    def kill_for_memory(self, victim: VmProc) -> None:
        """Kill `victim` because memory is exhausted, and say so."""
        assert isinstance(victim, Proc)
        victim.p_lowmemkill = True
        self.console(f"out of memory: killed process {victim.p_pid} ({victim.p_comm})")
        ksignal(victim, SIGKILL)
        self.sched.wakeup(self.vm.pages)  # it may itself be waiting for memory

    def console(self, message: str) -> None:
        """A line from the kernel to whoever runs the machine."""
        print(f"dfvm: {message}", file=sys.stderr, flush=True)

    # ---- the end ---------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """End every thread where it stands, write to the host what is to be written there, and
        let go of what Python would not let go of by itself."""
        self.sched.close()
        for vp, why in self.vfs.sync():
            self.console(f"{os.fsdecode(vn_fullpath(vp, self.vfs.rootvnode))}: lost: {why}")
        self.vfs.fds.close()
        self.vcpu.stop_clock()
        self.vcpu.on_fault = None
        self.vm.hooks = None

    # ---- verification ----------------------------------------------------------------------------

    def check_if_resting(self) -> None:
        """Verify the whole machine, unless a thread is in the middle of something."""
        from dfvm.kern.kern_check import at_rest

        if at_rest(self):
            self.check()

    def check(self) -> None:
        """Verify the whole machine.

        :raises Panic: with the first things that are wrong.
        """
        from dfvm.kern.kern_check import check_machine

        check_machine(self)
