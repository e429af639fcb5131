"""Scheduling, as far as programs have a say: yielding, CPU affinity, scheduling classes.

Threads of FIFO and RR go before all others, by their priority (lwkt_thread). The others share the
CPU by their nice levels (that is kern_resource's setpriority): BATCH and IDLE are remembered and
run as OTHER does. The CPUs a thread may run on are remembered, too; which one of them it is makes
no difference.

Source: DragonFly sys/kern/kern_synch.c, sys/kern/kern_usched.c; behaviour as Linux
kernel/sched/syscalls.c.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_caps import CAP_SYS_NICE
from dfvm.kern.kern_errno import E2BIG, EINVAL, EPERM, ESRCH, err
from dfvm.kern.proc import RLIMIT_NICE, RLIMIT_RTPRIO, RLIMIT_RTTIME
from dfvm.lwkt.kern_clock import TICK_NS
from dfvm.lwkt.lwkt_thread import RR_SLICE_NS, RTPRIO_MAX
from dfvm.vm.copyio import copyin, copyout
from dfvm.vm.vm_proc import RLIM_INFINITY

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp

SCHED_OTHER: Final = 0
SCHED_FIFO: Final = 1
SCHED_RR: Final = 2
SCHED_BATCH: Final = 3
SCHED_IDLE: Final = 5
SCHED_DEADLINE: Final = 6  # not here
SCHED_EXT: Final = 7  # nor this
SCHED_RESET_ON_FORK: Final = 0x4000_0000
_CLASSES: Final = (SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE)
_REALTIME: Final = (SCHED_FIFO, SCHED_RR)
_WITHOUT_PRIORITIES: Final = (SCHED_OTHER, SCHED_BATCH, SCHED_IDLE, SCHED_DEADLINE, SCHED_EXT)

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
    """As _target, for calls that take a negative number for one that nobody has."""
    pid = s32(pid)
    target = lp.lwp_proc.kernel.find_lwp(pid) if pid else lp
    if target is None:
        raise err(ESRCH)
    return target


def _has_no_thread(lp: Lwp, pid: int) -> bool:
    """Whether `pid` is a zombie, or init: a process that can be asked, but has no thread."""
    p = lp.lwp_proc.kernel.procs.get(s32(pid))
    return p is not None and not p.p_lwps


def _may_change(lp: Lwp, target: Lwp) -> None:
    mine, hers = lp.lwp_proc.p_ucred, target.lwp_proc.p_ucred
    if mine.cr_uid not in (hers.cr_ruid, hers.cr_uid) and not mine.cr_cap_e & CAP_SYS_NICE:
        raise err(EPERM)


def _privileged(lp: Lwp) -> bool:
    return bool(lp.lwp_proc.p_ucred.cr_cap_e & CAP_SYS_NICE)


def sched_fork(lp: Lwp, child: Lwp) -> None:
    """The thread of a new process inherits what its maker has, unless that said otherwise."""
    p, policy = lp.lwp_proc, lp.lwp_policy
    nice = p.p_nice
    if policy & SCHED_RESET_ON_FORK:
        policy &= ~SCHED_RESET_ON_FORK
        nice = max(nice, 0)
        if policy in _REALTIME:
            policy = nice = SCHED_OTHER
    child.lwp_policy = policy
    child.lwp_cpumask = lp.lwp_cpumask
    child.lwp_proc.p_nice = nice


def sched_start(lp: Lwp, child: Lwp) -> None:
    """Later, when the child has got its LWKT thread."""
    if child.lwp_policy in _REALTIME:
        child.lwp_rtprio = lp.lwp_rtprio  # not what it has inherited by a lock
        lp.lwp_proc.kernel.sched.set_realtime(
            child.lwp_thread, child.lwp_rtprio, child.lwp_policy == SCHED_RR
        )


def rt_tick(lp: Lwp) -> None:
    """The clock tick of a real-time thread: count what it computes without a sleep, which
    RLIMIT_RTTIME bounds. At the soft limit, and every second from there, it gets SIGXCPU, at the
    hard one SIGKILL."""
    soft, hard = lp.lwp_proc.p_limit[RLIMIT_RTTIME]  # us
    if lp.lwp_nvcsw != lp.lwp_rtslept:
        lp.lwp_rtslept, lp.lwp_rtticks = lp.lwp_nvcsw, 0
    lp.lwp_rtticks += 1
    if soft == RLIM_INFINITY:
        return
    from dfvm.kern.kern_sig import SIGKILL, SIGXCPU, ksignal

    used = lp.lwp_rtticks * TICK_NS // 1000
    if used > hard:
        ksignal(lp.lwp_proc, SIGKILL)
    elif used > soft:
        lp.lwp_proc.p_limit[RLIMIT_RTTIME] = (soft + 1_000_000, hard)
        ksignal(lp.lwp_proc, SIGXCPU)


def sys_sched_getaffinity(lp: Lwp, pid: int, size: int, umask: int) -> int:
    """sched_getaffinity(2)"""
    ncpu = lp.lwp_proc.kernel.ncpu
    size = u32(size)
    if size * 8 < ncpu or size & 7:
        raise err(EINVAL)
    mask = (1 << ncpu) - 1 if _has_no_thread(lp, pid) else _find(lp, pid).lwp_cpumask
    size = min(size, 8 * ((ncpu + 63) // 64))
    copyout(lp.lwp_proc.p_vmspace, mask.to_bytes(size, "little"), umask)
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
    return SCHED_OTHER if _has_no_thread(lp, pid) else _target(lp, pid).lwp_policy


def _set_policy(lp: Lwp, target: Lwp, policy: int, priority: int) -> None:
    """Put `target` into a class.

    :raises OSError: EINVAL for what does not exist, EPERM for what `lp` may not do.
    """
    kind, old = policy & ~SCHED_RESET_ON_FORK, target.lwp_policy
    if kind not in _CLASSES or not 0 <= priority <= RTPRIO_MAX:
        raise err(EINVAL)
    if (kind in _REALTIME) != (priority > 0):
        raise err(EINVAL)
    _may_change(lp, target)
    td = target.lwp_thread
    if not _privileged(lp):
        limit = target.lwp_proc.p_rlimit(RLIMIT_RTPRIO)
        if kind in _REALTIME and kind != old & ~SCHED_RESET_ON_FORK and not limit:
            raise err(EPERM)
        if priority > target.lwp_rtprio and priority > limit:
            raise err(EPERM)
        if old & ~SCHED_RESET_ON_FORK == SCHED_IDLE != kind and not _can_nice(target):
            raise err(EPERM)
        if old & ~policy & SCHED_RESET_ON_FORK:
            raise err(EPERM)
    target.lwp_policy = policy
    round_robin = kind == SCHED_RR
    if priority != target.lwp_rtprio or round_robin != (td.td_rrleft >= 0):
        target.lwp_rtprio = priority
        if target.lwp_pi_contested or target.lwp_pi_blocked is not None:
            from dfvm.kern.kern_umtx import umtx_adjust

            umtx_adjust(target)
        else:
            lp.lwp_proc.kernel.sched.set_realtime(td, priority, round_robin)


def _can_nice(target: Lwp) -> bool:
    # Whether RLIMIT_NICE lets it have the nice level that it has.
    p = target.lwp_proc
    return 20 - p.p_nice <= p.p_rlimit(RLIMIT_NICE)


def _copyin_priority(lp: Lwp, pid: int, uparam: int) -> int:
    if not uparam or s32(pid) < 0:
        raise err(EINVAL)
    return s32(int.from_bytes(copyin(lp.lwp_proc.p_vmspace, uparam, 4), "little"))


def sys_sched_setscheduler(lp: Lwp, pid: int, policy: int, uparam: int) -> int:
    """sched_setscheduler(2)"""
    policy = s32(policy)
    if policy < 0:
        raise err(EINVAL)
    priority = _copyin_priority(lp, pid, uparam)
    _set_policy(lp, _target(lp, pid), policy, priority)
    return 0


def sys_sched_getparam(lp: Lwp, pid: int, uparam: int) -> int:
    """sched_getparam(2)"""
    if not uparam:
        raise err(EINVAL)
    priority = 0 if _has_no_thread(lp, pid) else _target(lp, pid).lwp_rtprio
    copyout(lp.lwp_proc.p_vmspace, priority.to_bytes(4, "little"), uparam)
    return 0


def sys_sched_setparam(lp: Lwp, pid: int, uparam: int) -> int:
    """sched_setparam(2)"""
    priority = _copyin_priority(lp, pid, uparam)
    target = _target(lp, pid)
    _set_policy(lp, target, target.lwp_policy, priority)
    return 0


def sys_sched_get_priority_max(lp: Lwp, policy: int) -> int:
    """sched_get_priority_max(2)"""
    return _priority(policy, RTPRIO_MAX)


def sys_sched_get_priority_min(lp: Lwp, policy: int) -> int:
    """sched_get_priority_min(2)"""
    return _priority(policy, 1)


def _priority(policy: int, of_realtime: int) -> int:
    policy = s32(policy)
    if policy in _REALTIME:
        return of_realtime
    if policy not in _WITHOUT_PRIORITIES:
        raise err(EINVAL)
    return 0


def sys_sched_rr_get_interval(lp: Lwp, pid: int, uts: int) -> int:
    """sched_rr_get_interval(2): the length of a slice; 0 if there are none."""
    policy = sys_sched_getscheduler(lp, pid) & ~SCHED_RESET_ON_FORK
    ns = RR_SLICE_NS if policy == SCHED_RR else 0 if policy == SCHED_FIFO else TICK_NS
    copyout(lp.lwp_proc.p_vmspace, bytes(8) + ns.to_bytes(8, "little"), uts)
    return 0


def sys_sched_getattr(lp: Lwp, pid: int, uattr: int, size: int, flags: int) -> int:
    """sched_getattr(2)"""
    size = u32(size)
    if u32(flags) or not uattr or not 48 <= size <= 4096:
        raise err(EINVAL)
    policy = sys_sched_getscheduler(lp, pid)
    if _has_no_thread(lp, pid):
        priority, nice = 0, lp.lwp_proc.kernel.procs[s32(pid)].p_nice
    else:
        target = _target(lp, pid)
        priority = target.lwp_rtprio
        nice = 0 if priority else target.lwp_proc.p_nice
    size = min(size, _SCHED_ATTR_BYTES)
    flags = SCHED_FLAG_RESET_ON_FORK if policy & SCHED_RESET_ON_FORK else 0
    policy &= ~SCHED_RESET_ON_FORK
    attr = _SCHED_ATTR.pack(size, policy, flags, nice, priority)
    copyout(lp.lwp_proc.p_vmspace, attr.ljust(size, b"\0"), uattr)
    return 0


def sys_sched_setattr(lp: Lwp, pid: int, uattr: int, flags: int) -> int:
    """sched_setattr(2)"""
    space = lp.lwp_proc.p_vmspace
    if not uattr or s32(pid) < 0 or u32(flags):
        raise err(EINVAL)
    size = int.from_bytes(copyin(space, uattr, 4), "little") or 48
    if not 48 <= size <= 4096 or any(copyin(space, uattr, size)[_SCHED_ATTR_BYTES:]):
        copyout(space, _SCHED_ATTR_BYTES.to_bytes(4, "little"), uattr)
        raise err(E2BIG)
    _, policy, how, nice, priority = _SCHED_ATTR.unpack(copyin(space, uattr, _SCHED_ATTR.size))
    if how & ~_KNOWN_FLAGS:
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
    if how & SCHED_FLAG_KEEP_PARAMS:
        priority = target.lwp_rtprio
    if how & SCHED_FLAG_KEEP_PARAMS or policy & ~SCHED_RESET_ON_FORK in _REALTIME:
        nice = p.p_nice
    else:
        nice = min(max(nice, -20), 19)
    if nice < p.p_nice and not _privileged(lp):
        raise err(EPERM)
    _set_policy(lp, target, policy, priority)
    from dfvm.kern.kern_resource import set_nice

    set_nice(p, nice)
    return 0
