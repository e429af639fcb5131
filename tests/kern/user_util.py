"""A process without a program: system calls are made on its behalf by calling their functions, and
its memory is touched the way the kernel touches it. For tests of what system calls do to the
kernel's state; programs that run are in tests/guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.kern.fsinfo import FsInfo
from dfvm.kern.kern_descrip import FileDesc
from dfvm.kern.kern_fork import alloc_pid, newproc
from dfvm.kern.kern_sig import SigActs, cursig
from dfvm.kern.kernel import Kernel
from dfvm.kern.proc import SACTIVE, Ucred, default_limits, joinpgrp
from dfvm.vm.copyio import copyin, copyout
from dfvm.vm.pmap_check import pmap_check
from dfvm.vm.vm_map_check import vm_map_check
from dfvm.vm.vm_object_check import vm_object_check
from dfvm.vm.vm_page_check import vm_page_check
from dfvm.vm.vmspace import vmspace_alloc, vmspace_fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp, Proc
    from dfvm.vm.vmspace import Vmspace

PAGE = 4096
SCRATCH = 0x7000_0000_0000  # where tests put arguments; a page, mapped by `User`


class User:
    """A process, run by thread0."""

    def __init__(self, kernel: Kernel, uid: int = 0, space: Vmspace | None = None) -> None:
        init = kernel.initproc
        pid = alloc_pid(kernel)
        p, lp = newproc(kernel, pid, init)
        p.p_vmspace = space or vmspace_alloc(kernel.vm)
        p.p_vmspace.vm_daddr = 0x60_0000
        p.p_fd = FileDesc(kernel.files)
        p.p_fs = FsInfo(kernel.vfs.rootvnode, kernel.vfs.rootvnode)
        p.p_sigacts = SigActs()
        p.p_ucred = Ucred(uid, uid)
        p.p_limit = default_limits()
        p.p_stat = SACTIVE
        p.p_comm = "test"
        joinpgrp(p, init.p_pgrp)
        kernel.procs[pid] = p
        init.p_children[pid] = p
        self.kernel = kernel
        self.p: Proc = p
        self.lp: Lwp = lp
        lp.lwp_thread = kernel.sched.thread0
        self.run()
        if space is None:
            from dfvm.kern.sys_mman import sys_mmap

            sys_mmap(lp, SCRATCH, 16 * PAGE, 3, 0x32, -1 & (1 << 64) - 1, 0)

    def run(self) -> User:
        """Be the current process from now on."""
        td = self.kernel.sched.thread0
        td.td_proc, td.td_lwp = self.p, self.lp
        td.td_cursig = lambda: cursig(self.lp)
        return self

    def fork(self) -> User:
        """A child with a copy of the address space; the parent goes on running."""
        child = User(self.kernel, self.p.p_ucred.cr_uid, vmspace_fork(self.p.p_vmspace))
        child.p.p_limit = self.p.p_limit.copy()
        self.run()
        return child

    def call(self, fn: Callable[..., int], *args: int) -> int:
        """Make a system call: its result, or minus an error number. Arguments may be negative."""
        self.run()
        try:
            return fn(self.lp, *[a & (1 << 64) - 1 for a in args])
        except OSError as e:
            assert e.errno is not None
            return -abs(e.errno)

    def read(self, addr: int, n: int) -> bytes:
        """User memory, as the user sees it; EFAULT is an OSError."""
        self.run()
        return copyin(self.p.p_vmspace, addr, n)

    def write(self, addr: int, data: bytes) -> None:
        self.run()
        copyout(self.p.p_vmspace, data, addr)

    def put(self, data: bytes) -> int:
        """Put arguments into scratch memory; returns where."""
        self.write(SCRATCH, data)
        return SCRATCH

    def nentries(self) -> int:
        return self.p.p_vmspace.vm_map.nentries


def verify(kernel: Kernel) -> None:
    """Nothing is wrong with the machine."""
    bad = vm_page_check(kernel.vm) + vm_object_check(kernel.vm)
    for p in kernel.procs.values():
        bad += vm_map_check(p.p_vmspace.vm_map)
        bad += pmap_check(p.p_vmspace.vm_pmap, p.p_vmspace.vm_map)
    assert not bad, "\n".join(bad)
