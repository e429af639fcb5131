"""Scheduling, as far as programs have a say: yielding, CPU affinity, scheduling classes.

Threads share the CPU by their nice levels (that is kern_resource's setpriority), whatever class
they are in: BATCH and IDLE are remembered and run as OTHER does. Real-time classes are refused as
they are to anybody without RLIMIT_RTPRIO. The CPUs a thread may run on are remembered, too; which
one of them it is makes no difference.

Source: DragonFly sys/kern/kern_synch.c, sys/kern/kern_usched.c; behaviour as Linux
kernel/sched/syscalls.c.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_errno import E2BIG, EINVAL, EPERM, ESRCH, err
from dfvm.kern.proc import RLIMIT_NICE
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

# struct sched_attr up to sched_priority: size, policy, flags, nice, priority.
_SCHED_ATTR: Final = Struct("<IIQiI")
SCHED_FLAG_RESET_ON_FORK: Final = 1
SCHED_FLAG_KEEP_POLICY: Final = 8
SCHED_FLAG_KEEP_PARAMS: Final = 16
_KNOWN_FLAGS: Final = SCHED_FLAG_RESET_ON_FORK | SCHED_FLAG_KEEP_POLICY | SCHED_FLAG_KEEP_PARAMS


def sys_sched_yield(lp: Lwp) -> int:
    """sched_yield(2)"""
    lp.lwp_proc.kernel.sched.yield_()
    return 0


def _target(lp: Lwp, pid: int) -> Lwp:
    """The thread `pid`, 0 meaning the caller."""
    if s32(pid) < 0:
        raise err(EINVAL)
    return _find(lp, pid)


def _find(lp: Lwp, pid: int) -> Lwp:
    # As _target, for calls that take a negative number for one that nobody has.
    pid = s32(pid)
    target = lp.lwp_proc.kernel.find_lwp(pid) if pid else lp
    if target is None:
        raise err(ESRCH)
    return target


def _may_change(lp: Lwp, target: Lwp) -> None:
    mine, hers = lp.lwp_proc.p_ucred, target.lwp_proc.p_ucred
    if mine.cr_uid not in (0, hers.cr_ruid, hers.cr_uid):
        raise err(EPERM)


def _privileged(lp: Lwp) -> bool:
    return lp.lwp_proc.p_ucred.cr_uid == 0


def sched_fork(lp: Lwp, child: Lwp) -> None:
    """The thread of a new process inherits what its maker has, unless that said otherwise."""
    p, policy = lp.lwp_proc, lp.lwp_policy
    nice = p.p_nice
    if policy & SCHED_RESET_ON_FORK:
        policy &= ~SCHED_RESET_ON_FORK
        nice = max(nice, 0)
    child.lwp_policy = policy
    child.lwp_cpumask = lp.lwp_cpumask
    child.lwp_proc.p_nice = nice


def sys_sched_getaffinity(lp: Lwp, pid: int, size: int, umask: int) -> int:
    """sched_getaffinity(2)"""
    ncpu = lp.lwp_proc.kernel.ncpu
    size = u32(size)
    if size * 8 < ncpu or size & 7:
        raise err(EINVAL)
    target = _find(lp, pid)
    size = min(size, 8 * ((ncpu + 63) // 64))
    copyout(lp.lwp_proc.p_vmspace, target.lwp_cpumask.to_bytes(size, "little"), umask)
    return size


def sys_sched_setaffinity(lp: Lwp, pid: int, size: int, umask: int) -> int:
    """sched_setaffinity(2): any set with a CPU of the machine in it will do."""
    size = min(u32(size), 128)
    mask = int.from_bytes(copyin(lp.lwp_proc.p_vmspace, umask, size), "little") if size else 0
    target = _find(lp, pid)
    _may_change(lp, target)
    mask &= (1 << target.lwp_proc.kernel.ncpu) - 1
    if not mask:
        raise err(EINVAL)
    target.lwp_cpumask = mask
    return 0


def sys_sched_getscheduler(lp: Lwp, pid: int) -> int:
    """sched_getscheduler(2)"""
    return _target(lp, pid).lwp_policy


def _set_policy(lp: Lwp, target: Lwp, policy: int, priority: int) -> None:
    """Put `target` into a class.

    :raises OSError: EINVAL for what does not exist, EPERM for what `lp` may not do.
    """
    kind, old = policy & ~SCHED_RESET_ON_FORK, target.lwp_policy
    if kind not in _CLASSES:
        raise err(EINVAL)
    if kind in _REALTIME:
        raise err(EPERM if 1 <= priority <= 99 else EINVAL)
    if priority:
        raise err(EINVAL)
    _may_change(lp, target)
    if not _privileged(lp):
        if old & ~SCHED_RESET_ON_FORK == SCHED_IDLE != kind and not _can_nice(target):
            raise err(EPERM)
        if old & ~policy & SCHED_RESET_ON_FORK:
            raise err(EPERM)
    target.lwp_policy = policy


def _can_nice(target: Lwp) -> bool:
    # Whether RLIMIT_NICE lets it have the nice level that it has.
    p = target.lwp_proc
    return 20 - p.p_nice <= p.p_rlimit(RLIMIT_NICE)


def _copyin_priority(lp: Lwp, uparam: int) -> int:
    return s32(int.from_bytes(copyin(lp.lwp_proc.p_vmspace, uparam, 4), "little"))


def sys_sched_setscheduler(lp: Lwp, pid: int, policy: int, uparam: int) -> int:
    """sched_setscheduler(2)"""
    policy = s32(policy)
    if policy < 0:
        raise err(EINVAL)
    priority = _copyin_priority(lp, uparam)
    _set_policy(lp, _target(lp, pid), policy, priority)
    return 0


def sys_sched_getparam(lp: Lwp, pid: int, uparam: int) -> int:
    """sched_getparam(2): no class that a thread can be in has priorities."""
    _target(lp, pid)
    copyout(lp.lwp_proc.p_vmspace, bytes(4), uparam)
    return 0


def sys_sched_setparam(lp: Lwp, pid: int, uparam: int) -> int:
    """sched_setparam(2)"""
    priority = _copyin_priority(lp, uparam)
    target = _target(lp, pid)
    _set_policy(lp, target, target.lwp_policy, priority)
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
    flags = SCHED_FLAG_RESET_ON_FORK if target.lwp_policy & SCHED_RESET_ON_FORK else 0
    policy = target.lwp_policy & ~SCHED_RESET_ON_FORK
    attr = _SCHED_ATTR.pack(size, policy, flags, target.lwp_proc.p_nice, 0)
    copyout(lp.lwp_proc.p_vmspace, attr.ljust(size, b"\0"), uattr)
    return 0


def sys_sched_setattr(lp: Lwp, pid: int, uattr: int, flags: int) -> int:
    """sched_setattr(2)"""
    space = lp.lwp_proc.p_vmspace
    size = int.from_bytes(copyin(space, uattr, 4), "little") or 48
    if size < 48:
        raise err(E2BIG)
    _, policy, how, nice, priority = _SCHED_ATTR.unpack(copyin(space, uattr, _SCHED_ATTR.size))
    if u32(flags) or how & ~_KNOWN_FLAGS:
        raise err(EINVAL)
    target = _target(lp, pid)
    p = target.lwp_proc
    if how & SCHED_FLAG_KEEP_POLICY:
        policy = target.lwp_policy
    elif policy not in _CLASSES:
        raise err(EINVAL)
    else:
        if how & SCHED_FLAG_KEEP_PARAMS:  # the class is one of them
            policy = target.lwp_policy & ~SCHED_RESET_ON_FORK
        if how & SCHED_FLAG_RESET_ON_FORK:
            policy |= SCHED_RESET_ON_FORK
    nice = p.p_nice if how & SCHED_FLAG_KEEP_PARAMS else min(max(nice, -20), 19)
    if nice < p.p_nice and not _privileged(lp):
        raise err(EPERM)
    _set_policy(lp, target, policy, priority)
    from dfvm.kern.kern_resource import set_nice

    set_nice(p, nice)
    return 0
