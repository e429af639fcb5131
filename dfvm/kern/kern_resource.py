"""Resource limits, resource usage, and priorities.

A limit is a pair (soft, hard) in p_limit. It takes effect where the resource is given out, which
asks p_rlimit; only RLIMIT_CPU is a timer, which is set anew when the limit changes.

Source: DragonFly sys/kern/kern_resource.c, sys/kern/kern_plimit.c; Linux kernel/sys.c for the
behaviour.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_caps import CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_SYS_RESOURCE
from dfvm.kern.kern_errno import EACCES, EINVAL, EPERM, ESRCH, err
from dfvm.kern.kern_exit import rusage_pack
from dfvm.kern.kern_sched import SCHED_FIFO, SCHED_IDLE, SCHED_RESET_ON_FORK, SCHED_RR
from dfvm.kern.kern_time import update_cpu_limit
from dfvm.kern.proc import (
    P_SYSTEM,
    RLIM_NLIMITS,
    RLIMIT_CPU,
    RLIMIT_NICE,
    RLIMIT_NOFILE,
    calcru,
)
from dfvm.lwkt.lwkt_thread import PRIO_MAX, PRIO_MIN
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfvm.kern.proc import Lwp, Proc, Rusage


RUSAGE_SELF: Final = 0
RUSAGE_CHILDREN: Final = -1
RUSAGE_THREAD: Final = 1

PRIO_PROCESS: Final = 0
PRIO_PGRP: Final = 1
PRIO_USER: Final = 2

IOPRIO_WHO_PROCESS: Final = 1
IOPRIO_CLASS_RT: Final = 1
IOPRIO_CLASS_BE: Final = 2
IOPRIO_CLASS_IDLE: Final = 3
_IOPRIO_CLASS: Final = 13  # where the class is, above the level and hints
_IOPRIO_OF_POLICY: Final = {
    SCHED_FIFO: IOPRIO_CLASS_RT,
    SCHED_RR: IOPRIO_CLASS_RT,
    SCHED_IDLE: IOPRIO_CLASS_IDLE,
}

_RLIMIT: Final = Struct("<QQ")


# ---- limits --------------------------------------------------------------------------------------


def _check_resource(resource: int) -> int:
    resource = u32(resource)
    if resource >= RLIM_NLIMITS:
        raise err(EINVAL)
    return resource


def _set_limit(lp: Lwp, p: Proc, resource: int, soft: int, hard: int) -> None:
    """Change a limit of `p` on behalf of `lp`."""
    if soft > hard:
        raise err(EINVAL)
    if resource == RLIMIT_NOFILE and hard > p.kernel.files.sysctl.nr_open:
        raise err(EPERM)
    if hard > p.p_limit[resource][1] and not lp.lwp_proc.p_ucred.cr_cap_e & CAP_SYS_RESOURCE:
        raise err(EPERM)
    p.p_limit[resource] = (soft, hard)
    if resource == RLIMIT_CPU:
        update_cpu_limit(p)


def sys_getrlimit(lp: Lwp, resource: int, ulimit: int) -> int:
    """Tell a limit."""
    p = lp.lwp_proc
    copyout(p.p_vmspace, _RLIMIT.pack(*p.p_limit[_check_resource(resource)]), ulimit)
    return 0


def sys_setrlimit(lp: Lwp, resource: int, ulimit: int) -> int:
    """Set a limit."""
    p = lp.lwp_proc
    soft, hard = _RLIMIT.unpack(copyin(p.p_vmspace, ulimit, 16))
    _set_limit(lp, p, _check_resource(resource), soft, hard)
    return 0


def sys_prlimit64(lp: Lwp, pid: int, resource: int, unew: int, uold: int) -> int:
    """Set and tell a limit of any process that one may inspect."""
    p = lp.lwp_proc
    new = _RLIMIT.unpack(copyin(p.p_vmspace, unew, 16)) if unew else None
    pid = s32(pid)
    target = p if pid in (0, p.p_pid) else _find(lp, pid)
    if target is not p:
        mine, hers = p.p_ucred, target.p_ucred
        if not mine.cr_cap_e & CAP_SYS_RESOURCE and not (
            mine.cr_ruid == hers.cr_uid == hers.cr_svuid == hers.cr_ruid
            and mine.cr_rgid == hers.cr_gid == hers.cr_svgid == hers.cr_rgid
        ):
            raise err(EPERM)
    resource = _check_resource(resource)
    old = target.p_limit[resource]
    if new is not None:
        _set_limit(lp, target, resource, *new)
    if uold:
        copyout(p.p_vmspace, _RLIMIT.pack(*old), uold)
    return 0


def _find(lp: Lwp, pid: int) -> Proc:
    """The process of that number, dead or alive."""
    target = lp.lwp_proc.kernel.procs.get(pid)
    if target is None:
        raise err(ESRCH)
    return target


# ---- usage ---------------------------------------------------------------------------------------


def getrusage(lp: Lwp, who: int) -> Rusage:
    """What the process, its children, or the thread have used."""
    p = lp.lwp_proc
    if who == RUSAGE_CHILDREN:
        return p.p_cru
    if who not in (RUSAGE_SELF, RUSAGE_THREAD):
        raise err(EINVAL)
    ru = calcru(p)
    if who == RUSAGE_THREAD:
        td = lp.lwp_thread
        ru.ru_utime_ns, ru.ru_stime_ns = td.user_ns, td.sys_ns
        ru.ru_nvcsw, ru.ru_nivcsw = lp.lwp_nvcsw, lp.lwp_nivcsw
    return ru


def sys_getrusage(lp: Lwp, who: int, uru: int) -> int:
    """Tell what was used."""
    copyout(lp.lwp_proc.p_vmspace, rusage_pack(getrusage(lp, s32(who))), uru)
    return 0


# ---- priorities ----------------------------------------------------------------------------------


def _prio_targets(lp: Lwp, which: int, who: int) -> Iterable[Proc]:
    """The processes that getpriority and setpriority speak of."""
    p = lp.lwp_proc
    kernel = p.kernel
    if which == PRIO_PROCESS:
        if who == 0:
            return (p,)
        target = kernel.procs.get(who)
        return () if target is None else (target,)
    if which == PRIO_PGRP:
        pgrp = p.p_pgrp if who == 0 else kernel.pgrps.get(who)
        return () if pgrp is None else list(pgrp.pg_members.values())
    if which == PRIO_USER:
        uid = who or p.p_ucred.cr_ruid
        return [
            q for q in kernel.procs.values()
            if q.p_ucred.cr_ruid == uid and not q.p_flags & P_SYSTEM
        ]  # fmt: skip
    raise err(EINVAL)


def sys_getpriority(lp: Lwp, which: int, who: int) -> int:
    """The best nice level among some processes, as 20 - nice so that it is no error number."""
    levels = [q.p_nice for q in _prio_targets(lp, s32(which), s32(who))]
    if not levels:
        raise err(ESRCH)
    return 20 - min(levels)


def sys_setpriority(lp: Lwp, which: int, who: int, nice: int) -> int:
    """Set the nice level of some processes. Those that one may not touch make it an error, but
    don't keep the others from being changed."""
    nice = min(max(s32(nice), PRIO_MIN), PRIO_MAX)
    error = ESRCH
    for q in _prio_targets(lp, s32(which), s32(who)):
        result = _set_nice(lp, q, nice)
        if result or error == ESRCH:
            error = result
    if error:
        raise err(error)
    return 0


def _set_nice(lp: Lwp, q: Proc, nice: int) -> int:
    """Set the nice level of `q` if `lp` may. Returns an error number."""
    mine, hers = lp.lwp_proc.p_ucred, q.p_ucred
    if not mine.cr_cap_e & CAP_SYS_NICE:
        if mine.cr_uid not in (hers.cr_ruid, hers.cr_uid):
            return EPERM
        if nice < q.p_nice and 20 - nice > q.p_rlimit(RLIMIT_NICE):
            return EACCES
    set_nice(q, nice)
    return 0


def set_nice(p: Proc, nice: int) -> None:
    """The scheduler favours `p` accordingly from now on, and so does memory when it is short."""
    p.p_nice = nice
    for lp in p.p_lwps.values():
        lp.lwp_thread.td_nice = nice


# ---- priorities of I/O ---------------------------------------------------------------------------
# Kept for those who ask: a page of a file is there, or is read from the host at once.


def sys_ioprio_get(lp: Lwp, which: int, who: int) -> int:
    """What ioprio_set has set for a process; for several of them, the best that results."""
    which = s32(which)
    targets = list(_prio_targets(lp, which - 1, s32(who)))
    if not targets:
        raise err(ESRCH)
    if which == IOPRIO_WHO_PROCESS:
        return targets[0].p_ioprio
    return min(_ioprio(q) for q in targets)


def _ioprio(q: Proc) -> int:
    """The I/O priority of `q`, which its nice level and scheduling class decide unless it has been
    given one."""
    if q.p_ioprio >> _IOPRIO_CLASS:
        return q.p_ioprio
    ioclass = IOPRIO_CLASS_BE
    for lp in q.p_lwps.values():
        ioclass = _IOPRIO_OF_POLICY.get(lp.lwp_policy & ~SCHED_RESET_ON_FORK, IOPRIO_CLASS_BE)
    return ioclass << _IOPRIO_CLASS | (q.p_nice + 20) // 5


def sys_ioprio_set(lp: Lwp, which: int, who: int, ioprio: int) -> int:
    """Give processes an I/O priority, the newest first, up to one that the caller may not touch."""
    ioprio = u32(ioprio) & 0xFFFF
    mine = lp.lwp_proc.p_ucred
    ioclass = ioprio >> _IOPRIO_CLASS
    if ioclass > IOPRIO_CLASS_IDLE or (not ioclass and ioprio & 7):
        raise err(EINVAL)
    if ioclass == IOPRIO_CLASS_RT and not mine.cr_cap_e & (CAP_SYS_ADMIN | CAP_SYS_NICE):
        raise err(EPERM)
    targets = list(_prio_targets(lp, s32(which) - 1, s32(who)))
    if not targets:
        raise err(ESRCH)
    for q in reversed(targets):
        if q.p_ucred.cr_ruid not in (mine.cr_uid, mine.cr_ruid):
            if not mine.cr_cap_e & CAP_SYS_NICE:
                raise err(EPERM)
        q.p_ioprio = ioprio
    return 0
