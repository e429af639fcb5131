"""Making processes: fork, vfork and clone, the first ones out of nothing, and unshare.

A child is made in three steps: `newproc` makes the structures and the kernel stack, the caller
fills in what is inherited, `start_lwp` lets it run. There are no threads: clone with
CLONE_THREAD fails with ENOSYS.

Source: DragonFly sys/kern/kern_fork.c; flags and rules as Linux kernel/fork.c.
"""

from __future__ import annotations

from struct import unpack
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.kern_caps import CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, CAP_SYS_RESOURCE
from dfvm.kern.kern_commit import check_fork
from dfvm.kern.kern_descrip import nofile
from dfvm.kern.kern_errno import E2BIG, EAGAIN, EEXIST, EINVAL, ENOSYS, EPERM, err
from dfvm.kern.kern_sched import sched_fork, sched_start
from dfvm.kern.kern_sig import (
    NSIG,
    SIG_DFL,
    SIG_IGN,
    SIGCHLD,
    SigActs,
    SigQueue,
    cursig,
    killed,
)
from dfvm.kern.proc import (
    P_CONTROLT,
    P_PPWAIT,
    RLIMIT_CPU,
    RLIMIT_NPROC,
    SACTIVE,
    SS_DISABLE,
    SZOMB,
    Lwp,
    Proc,
    joinpgrp,
)
from dfvm.kern.trap import user_mode
from dfvm.machine.reg import RAX, RSP
from dfvm.vm.copyio import copyin, suword32
from dfvm.vm.vm_proc import RLIM_INFINITY
from dfvm.vm.vmspace import vmspace_fork, vmspace_free, vmspace_ref, vmspace_unshare

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.sys_pidfd import PidFile
    from dfvm.vm.vmspace import Vmspace

CSIGNAL: Final = 0x0000_00FF  # the signal to send at exit
CLONE_VM: Final = 0x0000_0100
CLONE_FS: Final = 0x0000_0200
CLONE_FILES: Final = 0x0000_0400
CLONE_SIGHAND: Final = 0x0000_0800
CLONE_PIDFD: Final = 0x0000_1000
CLONE_VFORK: Final = 0x0000_4000
CLONE_PARENT: Final = 0x0000_8000
CLONE_THREAD: Final = 0x0001_0000
CLONE_NEWNS: Final = 0x0002_0000
CLONE_SYSVSEM: Final = 0x0004_0000
CLONE_SETTLS: Final = 0x0008_0000
CLONE_PARENT_SETTID: Final = 0x0010_0000
CLONE_CHILD_CLEARTID: Final = 0x0020_0000
CLONE_CHILD_SETTID: Final = 0x0100_0000
_CLONE_NEW: Final = 0x7E02_0080  # namespaces of every kind
CLONE_DETACHED: Final = 0x0040_0000  # of old, no effect
_CLONE_CLEAR_SIGHAND: Final = 0x1_0000_0000
_UNSHARE_FLAGS: Final = (
    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | _CLONE_NEW
)
_CLONE3_FLAGS: Final = 0x1_FFFF_FFFF & ~(CSIGNAL | CLONE_DETACHED)

_CLONE_ARGS_V0: Final = 64
_SET_TID_MAX: Final = 32  # namespaces of processes that may be nested


def newproc(kernel: Kernel, pid: int, parent: Proc) -> tuple[Proc, Lwp]:
    """A process of one thread, child of `parent`, that inherits nothing yet.

    :raises OSError: ENOMEM. Takes a kernel stack, so it may block for memory.
    """
    p = Proc(kernel, pid)
    stack = kernel.kstack_alloc()
    lp = Lwp(p, pid, stack, SigQueue())
    p.p_sigqueue = SigQueue()
    p.p_lwps[pid] = lp
    p.p_pptr = parent
    p.p_exitsig = SIGCHLD
    p.p_start_ns = kernel.sched.uptime_ns
    return p, lp


def start_lwp(p: Proc, lp: Lwp) -> None:
    """`p` is complete: enter it everywhere and let its thread run."""
    kernel = p.kernel
    kernel.procs[p.p_pid] = p
    p.p_pptr.p_children[p.p_pid] = p
    p.p_stat = SACTIVE
    td = kernel.sched.create(lwp_main, lp, name=f"{p.p_comm}/{lp.lwp_tid}", nice=p.p_nice)
    td.td_proc = p
    td.td_lwp = lp
    td.td_cursig = lambda: cursig(lp)
    td.td_ast = lambda: _ast(lp)
    lp.lwp_thread = td


def _ast(lp: Lwp) -> None:
    # Something is to be done on the way back to the guest.
    lp.lwp_pending = True


def lwp_main(lp: Lwp) -> None:
    """What the thread of an lwp runs."""
    user_mode(lp)


def alloc_pid(kernel: Kernel) -> int:
    """A number that no process, group or session uses.

    :raises OSError: EAGAIN when there is none.
    """
    procs, pgrps, sids = kernel.procs, kernel.pgrps, kernel.sids
    pid = kernel.lastpid
    for _ in range(kernel.pid_max):
        pid += 1
        if pid >= kernel.pid_max:
            pid = 100  # the low ones stay with what was there at boot
        if pid not in procs and pid not in pgrps and pid not in sids:
            kernel.lastpid = pid
            return pid
    raise err(EAGAIN)


def take_pid(kernel: Kernel, lp: Lwp, pid: int) -> int:
    """`pid`, if the caller may choose it and nobody uses it.

    :raises OSError: EINVAL, EPERM, EEXIST
    """
    if not 0 < pid < kernel.pid_max:
        raise err(EINVAL)
    if not lp.lwp_proc.p_ucred.cr_cap_e & (CAP_SYS_ADMIN | CAP_CHECKPOINT_RESTORE):
        raise err(EPERM)
    if pid in kernel.procs or pid in kernel.pgrps or pid in kernel.sids:
        raise err(EEXIST)
    return pid


def alloc_pgid(kernel: Kernel) -> int:
    """A number for a group of processes that none of them leads: the highest that is free, so that
    those of processes follow one another."""
    pgid = kernel.pid_max - 1
    while pgid in kernel.pgrps or pgid in kernel.procs or pgid in kernel.sids:
        pgid -= 1
    return pgid


def fork1(
    lp: Lwp,
    flags: int,
    exitsig: int,
    stack: int = 0,
    tls: int = 0,
    parent_tid: int = 0,
    child_tid: int = 0,
    upidfd: int = 0,
    set_tid: int = -1,
) -> Proc:
    """Make a child of the calling process; CLONE_* flags say what it shares instead of getting a
    copy. It starts where the caller is, with 0 as the call's result.

    :raises OSError: EINVAL for flags that don't go together, EAGAIN over RLIMIT_NPROC, ENOMEM;
        with CLONE_PIDFD also EMFILE, and EFAULT when `upidfd` can't be written; with `set_tid`, the
        child's number, what take_pid does.
    """
    if not flags & CLONE_PIDFD:
        return _fork(lp, flags, exitsig, stack, tls, parent_tid, child_tid, -1, 0, set_tid)
    p = lp.lwp_proc
    _check_limits(p)
    fdp = p.p_fd
    pidfd = fdp.fdalloc(0, nofile(p))
    try:
        return _fork(lp, flags, exitsig, stack, tls, parent_tid, child_tid, pidfd, upidfd, set_tid)
    except OSError:
        fdp.fdrelease(pidfd)
        raise


def _fork(
    lp: Lwp,
    flags: int,
    exitsig: int,
    stack: int,
    tls: int,
    parent_tid: int,
    child_tid: int,
    pidfd: int,
    upidfd: int,
    set_tid: int,
) -> Proc:
    """fork1, with `pidfd` the reserved number of the child's pidfd, or -1."""
    p = lp.lwp_proc
    kernel = p.kernel
    _check_limits(p)
    pid = alloc_pid(kernel) if set_tid < 0 else take_pid(kernel, lp, set_tid)
    parent = p.p_pptr if flags & CLONE_PARENT else p
    child, clp = newproc(kernel, pid, parent)

    # What can fail comes first: the address space may find no memory.
    space, pidfile = _fork_space(lp, child, clp, flags, pidfd, upidfd)
    child.p_vmspace = space
    clp.lwp_cr3 = space.vm_pmap.pm_pml4
    clp.ctx.copy_from(lp.ctx)
    clp.ctx.q[RAX] = 0
    if stack:
        clp.ctx.q[RSP] = stack
    if flags & CLONE_SETTLS:
        clp.ctx.fs_base = tls
    _inherit(lp, child, clp, flags)
    # A sibling must not send the common parent what that has not asked for.
    child.p_exitsig = p.p_exitsig if flags & CLONE_PARENT else exitsig
    clp.lwp_robust_list = 0
    if flags & CLONE_CHILD_CLEARTID:
        clp.lwp_clear_tid = child_tid
    joinpgrp(child, p.p_pgrp)
    cnt = kernel.vm.gd.gd_cnt
    if flags & CLONE_VFORK:
        cnt.v_vforks += 1
        child.p_flags |= P_PPWAIT  # before it can exec or exit
    else:
        cnt.v_forks += 1
    if pidfile is not None:
        p.p_fd.fdset(pidfd, pidfile, True)
    start_lwp(child, clp)
    sched_start(lp, clp)
    if child.p_limit[RLIMIT_CPU][0] != RLIM_INFINITY:
        from dfvm.kern.kern_time import timers_fork

        timers_fork(child)

    if flags & CLONE_PARENT_SETTID:
        _store_tid(p.p_vmspace, pid, parent_tid)
    if flags & CLONE_CHILD_SETTID:
        _store_tid(space, pid, child_tid)
    if flags & CLONE_VFORK:
        _vfork_wait(lp, child)
    return child


def _fork_space(
    lp: Lwp, child: Proc, clp: Lwp, flags: int, pidfd: int, upidfd: int
) -> tuple[Vmspace, PidFile | None]:
    """The child's address space, and its pidfd if one is wanted, whose number the parent finds at
    `upidfd`. Fails with all of it given back, the child's kernel stack included."""
    p = lp.lwp_proc
    pidfile: PidFile | None = None
    try:
        if pidfd >= 0:
            from dfvm.kern import sys_pidfd

            pidfile = sys_pidfd.PidFile(p.p_fd.fd_table, child, 0)
        space: Vmspace
        if flags & CLONE_VM:
            space = p.p_vmspace
            vmspace_ref(space)
        else:
            check_fork(p)
            space = vmspace_fork(p.p_vmspace)
        if pidfile is not None:  # the child's copy of the word is as it was
            try:
                suword32(p.p_vmspace, upidfd, pidfd)
            except OSError:
                vmspace_free(space)
                raise
    except OSError:
        p.kernel.kstack_free(clp.lwp_stack)
        if pidfile is not None:
            pidfile.fdrop()
        raise
    return space, pidfile


def _inherit(lp: Lwp, child: Proc, clp: Lwp, flags: int) -> None:
    """What a child has from its parent besides memory and registers, shared or copied as `flags`
    say."""
    p = lp.lwp_proc
    child.p_fd = p.p_fd.fdshare() if flags & CLONE_FILES else p.p_fd.fdcopy()
    child.p_fs = p.p_fs.fsshare() if flags & CLONE_FS else p.p_fs.fscopy()
    if flags & CLONE_SIGHAND:
        child.p_sigacts = p.p_sigacts
    else:
        child.p_sigacts = p.p_sigacts.copy()
        if flags & _CLONE_CLEAR_SIGHAND:
            _clear_handlers(child.p_sigacts)
    if flags & CLONE_SYSVSEM:
        from dfvm.kern.sysv_sem import sem_fork

        sem_fork(p, child)
    child.p_ucred = p.p_ucred
    child.p_limit = p.p_limit.copy()
    sched_fork(lp, clp)
    child.p_ioprio = p.p_ioprio
    child.p_comm, child.p_args, child.p_env = p.p_comm, p.p_args, p.p_env
    child.p_auxv, child.p_execpath = p.p_auxv, p.p_execpath
    child.p_coredump_filter = p.p_coredump_filter
    child.p_oom_score_adj, child.p_oom_score_min = p.p_oom_score_adj, p.p_oom_score_min
    if p.p_textvp is not None:
        p.p_textvp.vref()
        p.p_textvp.settext()
        child.p_textvp = p.p_textvp
    child.p_sysent = p.p_sysent
    child.p_flags = p.p_flags & P_CONTROLT
    child.p_dumpable, child.p_nonewprivs = p.p_dumpable, p.p_nonewprivs
    child.p_personality = p.p_personality
    child.p_timerslack = child.p_timerslack0 = p.p_timerslack
    child.p_mcekill, child.p_thpdisable = p.p_mcekill, p.p_thpdisable
    child.p_membarrier = p.p_membarrier
    clp.lwp_sigmask = lp.lwp_sigmask if lp.lwp_oldsigmask < 0 else lp.lwp_oldsigmask
    if not flags & CLONE_VM or flags & CLONE_VFORK:
        clp.lwp_sigstk_sp, clp.lwp_sigstk_size = lp.lwp_sigstk_sp, lp.lwp_sigstk_size
        clp.lwp_sigstk_flags = lp.lwp_sigstk_flags
    else:
        clp.lwp_sigstk_flags = SS_DISABLE  # two threads of control can't use one stack


def _check_limits(p: Proc) -> None:
    uid = p.p_ucred.cr_ruid
    limit = p.p_rlimit(RLIMIT_NPROC)
    kernel = p.kernel
    if len(kernel.procs) >= kernel.threads_max:
        raise err(EAGAIN)
    if len(kernel.procs) <= limit:
        return
    if uid == 0 or p.p_ucred.cr_cap_e & (CAP_SYS_RESOURCE | CAP_SYS_ADMIN):
        return
    if sum(q.p_ucred.cr_ruid == uid for q in kernel.procs.values()) >= limit:
        raise err(EAGAIN)


def _clear_handlers(acts: SigActs) -> None:
    for sig, action in enumerate(acts.ps_act):
        if action[0] not in (SIG_DFL, SIG_IGN):
            acts.set(sig, (SIG_DFL, 0, 0, 0))


def _store_tid(space: Vmspace, tid: int, addr: int) -> None:
    """As in Linux, a bad address here is the caller's own problem."""
    try:
        suword32(space, addr, tid)
    except OSError:
        pass


def _vfork_wait(lp: Lwp, child: Proc) -> None:
    """The parent lends its memory to the child and waits until it is given back. Only a deadly
    signal to the parent ends that early, as its death is not the child's business."""
    sched = lp.lwp_proc.kernel.sched
    while child.p_flags & P_PPWAIT and not killed(lp):
        sched.tsleep(child, 0, "ppwait")


def vfork_done(p: Proc) -> None:
    """`p` execs or exits: the memory it borrowed is the parent's again."""
    if p.p_flags & P_PPWAIT:
        p.p_flags &= ~P_PPWAIT
        p.kernel.sched.wakeup(p)


def sys_fork(lp: Lwp) -> int:
    """fork(2)"""
    return fork1(lp, 0, SIGCHLD).p_pid


def sys_vfork(lp: Lwp) -> int:
    """vfork(2)"""
    return fork1(lp, CLONE_VM | CLONE_VFORK, SIGCHLD).p_pid


def sys_clone(lp: Lwp, flags: int, stack: int, parent_tid: int, child_tid: int, tls: int) -> int:
    """clone(2), for processes."""
    flags &= 0xFFFF_FFFF
    exitsig = flags & CSIGNAL
    flags &= ~CSIGNAL
    if flags & CLONE_PIDFD and flags & (CLONE_PARENT_SETTID | CLONE_DETACHED):
        raise err(EINVAL)
    _check_clone(lp, flags)
    return fork1(lp, flags, exitsig, stack, tls, parent_tid, child_tid, parent_tid).p_pid


def sys_clone3(lp: Lwp, uargs: int, size: int) -> int:
    """clone3(2), for processes: a structure of flags, pidfd, child_tid, parent_tid, exit_signal,
    stack, stack_size, tls, set_tid, set_tid_size, cgroup."""
    if size > 4096:
        raise err(E2BIG)
    if size < _CLONE_ARGS_V0:
        raise err(EINVAL)
    raw = copyin(lp.lwp_proc.p_vmspace, uargs, size)
    if any(raw[88:]):
        raise err(E2BIG)
    args = [int.from_bytes(raw[n : n + 8], "little") for n in range(0, min(size, 88), 8)]
    args += [0] * (11 - len(args))
    flags, upidfd, child_tid, parent_tid, exitsig, stack, stack_size, tls, set_tid, nset, _ = args
    if flags & ~_CLONE3_FLAGS or exitsig > NSIG:
        raise err(EINVAL)
    if nset > _SET_TID_MAX or bool(set_tid) != bool(nset):
        raise err(EINVAL)
    pids = unpack(f"<{nset}i", copyin(lp.lwp_proc.p_vmspace, set_tid, 4 * nset))
    if flags & (CLONE_THREAD | CLONE_PARENT) and exitsig:
        raise err(EINVAL)
    if bool(stack) != bool(stack_size):
        raise err(EINVAL)
    _check_clone(lp, flags)
    if len(pids) > 1 or (pids and pids[0] < 0):
        raise err(EINVAL)  # there is one namespace of them
    top = (stack + stack_size) & (1 << 64) - 1
    pid = pids[0] if pids else -1
    return fork1(lp, flags, exitsig, top, tls, parent_tid, child_tid, upidfd, pid).p_pid


def _check_clone(lp: Lwp, flags: int) -> None:
    """Which flags go together, and which of them there are."""
    if flags & CLONE_SIGHAND and not flags & CLONE_VM:
        raise err(EINVAL)
    if flags & CLONE_SIGHAND and flags & _CLONE_CLEAR_SIGHAND:
        raise err(EINVAL)
    if flags & CLONE_THREAD:
        if not flags & CLONE_SIGHAND:
            raise err(EINVAL)
        lp.lwp_proc.kernel.sysent.refuse("clone(CLONE_THREAD)")
        raise err(ENOSYS)
    if flags & _CLONE_NEW:
        raise err(EINVAL)


# ---- unshare -------------------------------------------------------------------------------------


def sys_unshare(lp: Lwp, flags: int) -> int:
    """unshare(2): what was shared by clone is copied. Unlike Linux, which refuses it, this does so
    for the address space, too."""
    flags = u32(flags)
    if flags & ~_UNSHARE_FLAGS:
        raise err(EINVAL)
    p = lp.lwp_proc
    if flags & (CLONE_VM | CLONE_SIGHAND) and any(
        q.p_sigacts is p.p_sigacts and q is not p and q.p_stat != SZOMB
        for q in p.kernel.procs.values()
    ):
        raise err(EINVAL)
    if flags & _CLONE_NEW:
        raise err(EPERM)  # there is one of each
    if flags & CLONE_VM:
        vmspace_unshare(p)
        lp.lwp_cr3 = p.p_vmspace.vm_pmap.pm_pml4
    if flags & CLONE_SYSVSEM and p.p_semundo is not None:
        from dfvm.kern.sysv_sem import sem_exit

        sem_exit(p)
    if flags & CLONE_FS:
        p.p_fs = p.p_fs.fsunshare()
    if flags & CLONE_FILES:
        p.p_fd = p.p_fd.fdunshare()
    return 0
