"""Is the whole machine as it should be? Machine.check(), and `--check` along the way.

Each part checks itself (the *_check modules); here they are put together, and the process layer's
own invariants added: who is whose child, who is in which group, how many could continue a group,
and whether every open file is somebody's. The machine must be at rest: called between two threads,
or by one that is about to return to its guest.

Cost is in proportion to memory, entries and processes.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from dfvm.kern.proc import SZOMB
from dfvm.kern.vfs.vfs_check import vfs_check
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.lwkt.panic import panic
from dfvm.vm.pmap_check import pmap_check, pmap_check_all
from dfvm.vm.vm_map_check import vm_map_check
from dfvm.vm.vm_map_entry import MAP_ENTRY_IN_TRANSITION
from dfvm.vm.vm_object_check import vm_object_check
from dfvm.vm.vm_page_check import vm_page_check
from dfvm.vm.vmspace import vmspace_getrefs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Pgrp, Proc
    from dfvm.lwkt.lwkt_thread import Thread
    from dfvm.vm.vmspace import Vmspace

_OUTSIDE: Final = ("", "ppwait", "stop", "pipelk", "sblock", "f_pos")  # sleeps that no signal ends
_SHOWN = 20  # complaints that a panic lists


def check_machine(kernel: Kernel) -> None:
    """Verify everything.

    :raises Panic: with what is wrong.
    """
    bad = list(_complaints(kernel))
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        panic("Machine.check:\n  " + "\n  ".join(bad[:_SHOWN]) + more)


def at_rest(kernel: Kernel) -> bool:
    """Whether no other thread is in the middle of the VM, where it waits for memory or for another
    thread, with things half done. Only then can everything be expected to be as it should."""
    current = kernel.sched.curthread
    for p in kernel.procs.values():
        for lp in p.p_lwps.values():
            if lp.lwp_thread is not current and _is_inside(lp.lwp_thread, p.p_vmspace):
                return False
            if lp.lwp_cr3 != p.p_vmspace.vm_pmap.pm_pml4:
                return False  # in exec, which has a space nobody else knows of
    return not any(
        entry.eflags & MAP_ENTRY_IN_TRANSITION
        for space in _spaces(kernel)
        for entry in space.vm_map
    )


def _is_inside(td: Thread, space: Vmspace) -> bool:
    """Whether `td`, which does not run, may be in the middle of the VM. One that waits for a lock
    of a space that it shares may have been woken, and not have run since."""
    if td.td_toks:
        return True
    if td.td_sflags & PCATCH or td.td_wmesg in _OUTSIDE:
        return False
    return td.td_wchan is not None or vmspace_getrefs(space) > 1


def _complaints(kernel: Kernel) -> Iterator[str]:
    vm = kernel.vm
    yield from vm_page_check(vm)
    yield from vm_object_check(vm)
    maps = [vm.kernel_map]
    maps += [entry.sub_map for entry in vm.kernel_map if entry.sub_map is not None]
    for map in maps:
        yield from vm_map_check(map)
    yield from pmap_check(vm.kernel_pmap)
    for space, users in _spaces(kernel).items():
        yield from _check_space(space, users)
        maps.append(space.vm_map)
    yield from pmap_check_all(vm, maps)
    yield from vfs_check(kernel)
    for p in kernel.procs.values():
        yield from (f"pid {p.p_pid} ({p.p_comm}): {bad}" for bad in _check_proc(p))
    for pgrp in kernel.pgrps.values():
        yield from (f"group {pgrp.pg_id}: {bad}" for bad in _check_pgrp(kernel, pgrp))
    yield from _check_files(kernel)
    from dfvm.kern.kern_umtx import umtx_check

    yield from umtx_check(kernel)
    if kernel.ipc is not None:
        from dfvm.kern.sysv_ipc import ipc_check
        from dfvm.kern.sysv_msg import msg_check
        from dfvm.kern.sysv_sem import sem_check
        from dfvm.kern.sysv_shm import shm_check

        yield from ipc_check(kernel.ipc)
        yield from shm_check(kernel.ipc)
        yield from sem_check(kernel.ipc)
        yield from msg_check(kernel.ipc)


def _spaces(kernel: Kernel) -> dict[Vmspace, int]:
    """Every address space in use, with the processes that use it."""
    return Counter(p.p_vmspace for p in kernel.procs.values() if p.p_stat != SZOMB)


def _check_space(space: Vmspace, users: int) -> Iterator[str]:
    if space.vm_refcnt != users:
        yield f"{space!r} is used by {users} processes"
    yield from vm_map_check(space.vm_map)
    yield from pmap_check(space.vm_pmap, space.vm_map)


def _check_proc(p: Proc) -> Iterator[str]:
    kernel = p.kernel
    parent = p.p_pptr
    if kernel.procs.get(parent.p_pid) is not parent:
        yield f"its parent {parent.p_pid} is gone"
    if p is not parent and parent.p_children.get(p.p_pid) is not p:
        yield f"its parent {parent.p_pid} does not know it"
    for child in p.p_children.values():
        if child.p_pptr is not p:
            yield f"its child {child.p_pid} has another parent, {child.p_pptr.p_pid}"
        if (child.p_stat == SZOMB) != (child.p_pid in p.p_zombies):
            yield f"its child {child.p_pid} is a zombie, or is not, and p_zombies says otherwise"
    if p.p_pgrp.pg_members.get(p.p_pid) is not p:
        yield f"its group {p.p_pgrp.pg_id} does not know it"
    if p.p_stat == SZOMB and p.p_lwps:
        yield "a zombie with threads"
    for tid, lp in p.p_lwps.items():
        if lp.lwp_tid != tid or lp.lwp_proc is not p:
            yield f"thread {tid} is not its own"
        if lp.lwp_cr3 != p.p_vmspace.vm_pmap.pm_pml4:
            yield f"thread {tid} runs on page tables {lp.lwp_cr3:#x} of another space"
        for queue in (lp.lwp_sigqueue, p.p_sigqueue):
            if queue.pending != sum(1 << (sig - 1) for sig, infos in queue.infos.items() if infos):
                yield f"pending signals {queue.pending:#x} are not those queued"


def _check_pgrp(kernel: Kernel, pgrp: Pgrp) -> Iterator[str]:
    session = pgrp.pg_session
    if not pgrp.pg_members:
        yield "nobody is in it"
    if session.s_pgrps.get(pgrp.pg_id) is not pgrp or kernel.sids.get(session.s_sid) is not session:
        yield f"its session {session.s_sid} does not know it"
    jobc = 0
    for p in pgrp.pg_members.values():
        theirs = p.p_pptr.p_pgrp
        if p.p_stat != SZOMB and theirs is not pgrp and theirs.pg_session is session:
            jobc += 1
    if jobc != pgrp.pg_jobc:
        yield f"{jobc} members have a parent who could continue it, but pg_jobc is {pgrp.pg_jobc}"


def _check_files(kernel: Kernel) -> Iterator[str]:
    """Descriptors are references, and so are files under way in sockets; system calls that sleep
    may hold more."""
    tables = {p.p_fd: None for p in kernel.procs.values() if p.p_stat != SZOMB}
    counts = Counter(fp for fdp in tables for fp in fdp.fd_files.values())
    if kernel.files.unix is not None:
        from dfvm.kern.uipc_check import unp_check, unp_files

        counts.update(unp_files(kernel.files))
        yield from unp_check(kernel.files)
    for fp, count in counts.items():
        if fp.f_count < count:
            yield f"{fp.fo_name()}: {count} places have it, but {fp.f_count} references"
