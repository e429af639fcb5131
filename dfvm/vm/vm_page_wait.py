"""Waiting for memory.

A thread that gets no page gives up what it holds, waits here, and tries again. Nicer processes
wait earlier (vm_paging_min_nice). There is no pageout daemon: whoever waits does its work first.
vm_pageout_reclaim frees or caches what is clean and writes out what is a file's, and
vm_pageout_scan_cache frees what is cached. When that is not enough, nothing but the end of a
process will free memory, and vm_pageout_oom sees to that; the waiter then sleeps until pages come
free.

A process that is being killed for memory is never made to wait: it has to run to exit, and what it
wanted the memory for has to fail.

Source: DragonFly sys/vm/vm_page.c.
"""

from __future__ import annotations

from errno import ENOMEM
from os import strerror
from typing import TYPE_CHECKING, Final

from dfvm.vm.vm_page2 import (
    vm_paging_min,
    vm_paging_min_dnc,
    vm_paging_min_nice,
    vm_paging_target2,
    vm_paging_target2_count,
)

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem

VM_PAGE_FREE_HYSTERESIS: Final = 16  # waiters are woken this many pages beyond the minimum


def vm_page_free_wakeup(vm: VmSystem) -> None:
    """Pages have come free while threads wait: wake them, if there are enough that they won't
    have to wait again at once. Does not block."""
    if vm_paging_min_dnc(vm, VM_PAGE_FREE_HYSTERESIS) and vm_paging_target2(vm):
        return
    vm.pages.pages_waiting = 0
    vm.gd.gd_cnt.v_ppwakeups += 1
    vm.sched.wakeup(vm.pages)


def vm_wait(vm: VmSystem, timo: int = 0) -> bool:
    """Wait until there is memory for the current thread, or `timo` ticks (0: a second) are over.
    The caller tries again; it must not hold anything busy that others need to free memory. False:
    the process is being killed to free memory, nobody else may be able to, and the caller gives up.
    May block."""
    proc = vm.curproc()
    if proc is None:
        _wait(vm, "vmwait", timo, 0)
        return True
    if not proc.p_lowmemkill:
        _wait(vm, "vmwait", timo, proc.p_nice + 1)
    return not proc.p_lowmemkill


def vm_no_memory() -> OSError:
    """What is to be raised when vm_wait has answered False."""
    return OSError(ENOMEM, strerror(ENOMEM))


def vm_wait_pfault(vm: VmSystem, wmesg: str = "pfault", timo: int = 0) -> None:
    """Wait, for the current process which takes a page fault, until there is memory for a process
    of its nice value. Returns early when the process is being killed to free memory. Holds
    nothing; may block."""
    proc = vm.curproc()
    nice = 0 if proc is None else proc.p_nice
    while vm_paging_min_nice(vm, nice):
        if proc is not None and proc.p_lowmemkill:
            return
        _wait(vm, wmesg, timo, nice)


def vm_wait_nominal(vm: VmSystem) -> None:
    """Wait until memory is not short: before kernel operations that will take much of it. Never
    from code that paging depends on. May block."""
    while vm_paging_min(vm):
        proc = vm.curproc()
        if proc is not None and proc.p_lowmemkill:
            return
        vm_wait(vm, 0)


def _wait(vm: VmSystem, wmesg: str, timo: int, nice: int) -> None:
    """Free memory if that can be done, and sleep if it is not enough."""
    if not vm_paging_target2(vm):
        return
    from dfvm.vm.vm_pageout import (  # needs the pagers
        vm_pageout_oom,
        vm_pageout_reclaim,
        vm_pageout_scan_cache,
    )

    vm_pageout_reclaim(vm, vm_paging_target2_count(vm))
    vm_pageout_scan_cache(vm)
    if not vm_paging_min_nice(vm, nice):
        return
    vm_pageout_oom(vm)
    proc = vm.curproc()
    if proc is not None and proc.p_lowmemkill:
        return
    vm.pages.pages_waiting += 1
    vm.sched.tsleep(vm.pages, 0, wmesg, timo or vm.sched.hz)
