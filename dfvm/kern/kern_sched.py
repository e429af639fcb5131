"""Scheduling, as far as programs have a say: yielding, CPU affinity, scheduling classes.

There is one class, SCHED_OTHER, whose threads share the CPU by their nice levels (that is
kern_resource's setpriority); BATCH and IDLE are accepted and run as OTHER does. Real-time classes
are refused as they are to anybody without RLIMIT_RTPRIO.

Source: DragonFly sys/kern/kern_synch.c, sys/kern/kern_usched.c; behaviour as Linux
kernel/sched/syscalls.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_errno import E2BIG, EINVAL, EPERM, ESRCH, err
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp

SCHED_OTHER: Final = 0
SCHED_FIFO: Final = 1
SCHED_RR: Final = 2
SCHED_BATCH: Final = 3
SCHED_IDLE: Final = 5
SCHED_RESET_ON_FORK: Final = 0x4000_0000
_CLASSES: Final = (SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE)
_REALTIME: Final = (SCHED_FIFO, SCHED_RR)

_SLICE_NS: Final = 10_000_000
_SCHED_ATTR_BYTES: Final = 56


def sys_sched_yield(lp: Lwp) -> int:
    """sched_yield(2)"""
    lp.lwp_proc.kernel.sched.yield_()
    return 0


def _target(lp: Lwp, pid: int) -> Lwp:
    """The thread `pid`, 0 meaning the caller."""
    pid = s32(pid)
    if pid < 0:
        raise err(EINVAL)
    target = lp.lwp_proc.kernel.find_lwp(pid) if pid else lp
    if target is None:
        raise err(ESRCH)
    return target


def _may_change(lp: Lwp, target: Lwp) -> None:
    mine, hers = lp.lwp_proc.p_ucred, target.lwp_proc.p_ucred
    if mine.cr_uid not in (0, hers.cr_ruid, hers.cr_uid):
        raise err(EPERM)


def sys_sched_getaffinity(lp: Lwp, pid: int, size: int, umask: int) -> int:
    """sched_getaffinity(2): the machine's CPUs."""
    kernel = _target(lp, pid).lwp_proc.kernel
    size = u32(size)
    if size * 8 < kernel.ncpu or size & 7:
        raise err(EINVAL)
    size = min(size, 8 * ((kernel.ncpu + 63) // 64))
    copyout(lp.lwp_proc.p_vmspace, ((1 << kernel.ncpu) - 1).to_bytes(size, "little"), umask)
    return size


def sys_sched_setaffinity(lp: Lwp, pid: int, size: int, umask: int) -> int:
    """sched_setaffinity(2): any set with a CPU of the machine in it will do."""
    target = _target(lp, pid)
    size = min(u32(size), 128)
    mask = int.from_bytes(copyin(lp.lwp_proc.p_vmspace, umask, size), "little") if size else 0
    _may_change(lp, target)
    if not mask & (1 << target.lwp_proc.kernel.ncpu) - 1:
        raise err(EINVAL)
    return 0


def sys_sched_getscheduler(lp: Lwp, pid: int) -> int:
    """sched_getscheduler(2)"""
    _target(lp, pid)
    return SCHED_OTHER


def _check_class(policy: int, priority: int) -> None:
    policy &= ~SCHED_RESET_ON_FORK
    if policy not in _CLASSES:
        raise err(EINVAL)
    if policy in _REALTIME:
        if not 1 <= priority <= 99:
            raise err(EINVAL)
        raise err(EPERM)
    if priority:
        raise err(EINVAL)


def sys_sched_setscheduler(lp: Lwp, pid: int, policy: int, uparam: int) -> int:
    """sched_setscheduler(2)"""
    policy = s32(policy)
    if policy < 0:
        raise err(EINVAL)
    priority = s32(int.from_bytes(copyin(lp.lwp_proc.p_vmspace, uparam, 4), "little"))
    target = _target(lp, pid)
    _may_change(lp, target)
    _check_class(policy, priority)
    return 0


def sys_sched_getparam(lp: Lwp, pid: int, uparam: int) -> int:
    """sched_getparam(2)"""
    _target(lp, pid)
    copyout(lp.lwp_proc.p_vmspace, bytes(4), uparam)
    return 0


def sys_sched_setparam(lp: Lwp, pid: int, uparam: int) -> int:
    """sched_setparam(2)"""
    priority = s32(int.from_bytes(copyin(lp.lwp_proc.p_vmspace, uparam, 4), "little"))
    target = _target(lp, pid)
    _may_change(lp, target)
    _check_class(SCHED_OTHER, priority)
    return 0


def sys_sched_get_priority_max(lp: Lwp, policy: int) -> int:
    """sched_get_priority_max(2)"""
    return _priority(policy, 99)


def sys_sched_get_priority_min(lp: Lwp, policy: int) -> int:
    """sched_get_priority_min(2)"""
    return _priority(policy, 1)


def _priority(policy: int, of_realtime: int) -> int:
    policy = s32(policy)
    if policy not in _CLASSES:
        raise err(EINVAL)
    return of_realtime if policy in _REALTIME else 0


def sys_sched_rr_get_interval(lp: Lwp, pid: int, uts: int) -> int:
    """sched_rr_get_interval(2): the length of a slice."""
    _target(lp, pid)
    copyout(lp.lwp_proc.p_vmspace, bytes(8) + _SLICE_NS.to_bytes(8, "little"), uts)
    return 0


def sys_sched_getattr(lp: Lwp, pid: int, uattr: int, size: int, flags: int) -> int:
    """sched_getattr(2)"""
    size = u32(size)
    if u32(flags) or not 48 <= size <= 4096:
        raise err(EINVAL)
    target = _target(lp, pid)
    size = min(size, _SCHED_ATTR_BYTES)
    nice = target.lwp_proc.p_nice & 0xFFFF_FFFF
    attr = size.to_bytes(4, "little") + bytes(12) + nice.to_bytes(4, "little")
    copyout(lp.lwp_proc.p_vmspace, attr.ljust(size, b"\0"), uattr)
    return 0


def sys_sched_setattr(lp: Lwp, pid: int, uattr: int, flags: int) -> int:
    """sched_setattr(2)"""
    space = lp.lwp_proc.p_vmspace
    size = int.from_bytes(copyin(space, uattr, 4), "little") or 48
    if size < 48:
        raise err(E2BIG)
    raw = copyin(space, uattr, 48)
    if u32(flags):
        raise err(EINVAL)
    target = _target(lp, pid)
    _may_change(lp, target)
    _check_class(int.from_bytes(raw[4:8], "little"), int.from_bytes(raw[20:24], "little"))
    from dfvm.kern.kern_resource import set_nice

    nice = s32(int.from_bytes(raw[16:20], "little"))
    p = target.lwp_proc
    if nice < p.p_nice and lp.lwp_proc.p_ucred.cr_uid != 0:
        raise err(EPERM)
    set_nice(p, min(max(nice, -20), 19))
    return 0
