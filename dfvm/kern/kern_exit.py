"""The end of processes: exit, what becomes of the children, and waiting for them.

A process ends in two steps. `exit1`, in its own thread, gives back everything but the structure:
descriptors, mappings, kernel stack. What is left is a zombie, which keeps the status and the
resources used until the parent asks (`proc_reap`). Init asks at once.

Source: DragonFly sys/kern/kern_exit.c; the rules of wait as Linux kernel/exit.c.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NoReturn

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_descrip import O_NONBLOCK
from dfvm.kern.kern_errno import EAGAIN, ECHILD, EINVAL, ERESTART, ESRCH, err
from dfvm.kern.kern_event import POLLIN
from dfvm.kern.kern_fork import vfork_done
from dfvm.kern.kern_sig import (
    CLD_CONTINUED,
    CLD_DUMPED,
    CLD_EXITED,
    CLD_KILLED,
    CLD_STOPPED,
    NSIG,
    SA_NOCLDWAIT,
    SIG_IGN,
    SIGCHLD,
    SIGCONT,
    Siginfo,
    child_info,
    ksignal,
)
from dfvm.kern.proc import (
    P_SYSTEM,
    P_WEXIT,
    SSTOP,
    SZOMB,
    calcru,
    fixjobc,
    leavepgrp,
    maxrss,
)
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.lwkt.lwkt_thread import lwkt_exit
from dfvm.lwkt.panic import panic
from dfvm.vm.copyio import copyout, suword32
from dfvm.vm.vmspace import vmspace_exitfree, vmspace_relexit

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp, Proc, Rusage
    from dfvm.vm.vmspace import Vmspace

# Options of wait4 and waitid.
WNOHANG: Final = 0x0000_0001
WUNTRACED: Final = 0x0000_0002
WSTOPPED: Final = WUNTRACED
WEXITED: Final = 0x0000_0004
WCONTINUED: Final = 0x0000_0008
WNOWAIT: Final = 0x0100_0000
WNOTHREAD: Final = 0x2000_0000
WALL: Final = 0x4000_0000
WCLONE: Final = 0x8000_0000

# What waitid's id means.
P_ALL: Final = 0
P_PID: Final = 1
P_PGID: Final = 2
P_PIDFD: Final = 3

WCOREFLAG: Final = 0x80  # in the wait status of who died of a signal: there is a core
_W_STOPPED: Final = 0x7F
_W_CONTINUED: Final = 0xFFFF

_THREE_INTS: Final = Struct("<iIi")
_RUSAGE: Final = Struct("<18q")
_SI_PID: Final = 16  # where pid, uid and status are in a siginfo; signo, errno, code begin it


# ---- exit ----------------------------------------------------------------------------------------


def exit1(lp: Lwp, status: int) -> NoReturn:
    """End the process of `lp`, the current thread. `status` is what wait4 tells: a signal, or
    with WCOREFLAG if there is a core, or 256 times an exit code. Does not return."""
    p = lp.lwp_proc
    kernel = p.kernel
    if p.p_flags & P_SYSTEM:
        panic(f"{p.p_comm} (pid {p.p_pid}) exits")
    p.p_flags |= P_WEXIT
    if p.p_timers is not None:
        from dfvm.kern.kern_time import timers_exit

        timers_exit(p)
    space = p.p_vmspace
    lwp_release_user(lp, space)
    if p.p_semundo is not None:
        from dfvm.kern.sysv_sem import sem_exit

        sem_exit(p)
    p.p_fd.fdfree()
    p.p_fs.fsfree()
    _leave_session(p)
    p.p_ru.ru_maxrss = maxrss(p)
    lp.ctx.discard()
    vmspace_relexit(space)
    if kernel.ipc is not None:
        from dfvm.kern.sysv_shm import shm_exit

        shm_exit(p)
    vfork_done(p)
    if p.p_textvp is not None:
        p.p_textvp.cleartext()
        p.p_textvp.vrele()
        p.p_textvp = None
    _give_away_children(p)

    td = lp.lwp_thread
    p.p_ru.ru_utime_ns += td.user_ns
    p.p_ru.ru_stime_ns += td.sys_ns
    p.p_ru.ru_nvcsw += lp.lwp_nvcsw
    p.p_ru.ru_nivcsw += lp.lwp_nivcsw
    del p.p_lwps[lp.lwp_tid]
    kernel.kstack_free(lp.lwp_stack)
    p.p_xstat = status
    # Its parent no longer counts for its group, nor it for its children's groups.
    fixjobc(p, p.p_pgrp, entering=False)
    p.p_stat = SZOMB
    if p.p_exitkq is not None:
        p.p_exitkq.knote(POLLIN)
    _become_zombie(p)
    if kernel.checking:
        kernel.check_if_resting()
    lwkt_exit()
    raise AssertionError("lwkt_exit came back")


def lwp_release_user(lp: Lwp, space: Vmspace) -> None:
    """The thread leaves `space`, by exec or exit: tell those who wait for its robust futexes, and
    those in the space who wait for its end (CLONE_CHILD_CLEARTID). May block."""
    head, lp.lwp_robust_list = lp.lwp_robust_list, 0
    if head:
        from dfvm.kern.sys_futex import exit_robust_list

        exit_robust_list(lp, space, head)
    if lp.lwp_pi_contested:
        from dfvm.kern.kern_umtx import umtx_exit

        umtx_exit(lp)
    if lp.lwp_proc.p_flags & P_WEXIT:
        lp.lwp_pi_contested = None
    addr, lp.lwp_clear_tid = lp.lwp_clear_tid, 0
    if addr and space.vm_refcnt > 1:
        from dfvm.kern.sys_futex import futex_wake

        try:
            suword32(space, addr, 0)
            futex_wake(lp, space, addr, 1)
        except OSError:
            pass  # any address may have been given, and nobody is left to be told


def _leave_session(p: Proc) -> None:
    """When a session's leader exits, its terminal is free for another session, and the group in
    the foreground is told that nobody is there any more."""
    session = p.p_pgrp.pg_session
    if session.s_leader is not p:
        return
    session.s_leader = None
    if session.s_ttyp is not None:
        session.s_ttyp.leader_gone()


def _give_away_children(p: Proc) -> None:
    """Children go to the nearest ancestor that asked for orphans, or to init."""
    if not p.p_children:
        return
    init = p.kernel.initproc
    heir = p.p_pptr
    while heir is not init and not heir.p_subreaper:
        heir = heir.p_pptr
    for child in list(p.p_children.values()):
        dead = child.p_stat == SZOMB
        if not dead:
            # The count for the child's group changes with its parent.
            _reparent_jobc(child, p, heir)
        child.p_pptr = heir
        del p.p_children[child.p_pid]
        heir.p_children[child.p_pid] = child
        if child.p_pdeathsig and not dead:
            ksignal(child, child.p_pdeathsig, Siginfo(child.p_pdeathsig, 0, p.p_pid))
        child.p_exitsig = SIGCHLD
        if dead:
            p.p_zombies.pop(child.p_pid, None)
            _become_zombie(child)
    p.p_changed.clear()


def _reparent_jobc(child: Proc, old: Proc, new: Proc) -> None:
    from dfvm.kern.proc import orphanpg

    pgrp = child.p_pgrp
    for parent, step in ((new, 1), (old, -1)):
        theirs = parent.p_pgrp
        if theirs is not pgrp and theirs.pg_session is pgrp.pg_session:
            pgrp.pg_jobc += step
            if step < 0 and pgrp.pg_jobc == 0:
                orphanpg(pgrp)


def _become_zombie(p: Proc) -> None:
    """Tell the parent, and go at once if it does not care."""
    parent = p.p_pptr
    if parent.p_flags & P_SYSTEM:
        proc_reap(p)
        return
    parent.p_zombies[p.p_pid] = p
    parent.p_changed.pop(p.p_pid, None)
    sig = p.p_exitsig
    autoreap = False
    if sig == SIGCHLD:
        handler, flags, _, _ = parent.p_sigacts.ps_act[SIGCHLD]
        autoreap = handler == SIG_IGN or bool(flags & SA_NOCLDWAIT)
        if handler == SIG_IGN:
            sig = 0
    if 1 <= sig <= NSIG:  # clone does not check what it is told
        code, status = _cld(p.p_xstat)
        info = child_info(p, code, status)
        info.si_signo = sig
        ksignal(parent, sig, info)
    if autoreap:
        proc_reap(p)
    p.kernel.sched.wakeup(parent)


def _cld(xstat: int) -> tuple[int, int]:
    """si_code and si_status of a dead child."""
    if xstat & 0x7F:
        return CLD_DUMPED if xstat & WCOREFLAG else CLD_KILLED, xstat & 0x7F
    return CLD_EXITED, xstat >> 8 & 0xFF


def proc_reap(p: Proc) -> None:
    """The last of a zombie: what it used is its parent's children's, and its number is free."""
    parent = p.p_pptr
    parent.p_cru.add(calcru(p))
    parent.p_cru.add(p.p_cru)
    parent.p_children.pop(p.p_pid, None)
    parent.p_zombies.pop(p.p_pid, None)
    parent.p_changed.pop(p.p_pid, None)
    leavepgrp(p)
    del p.kernel.procs[p.p_pid]
    vmspace_exitfree(p.p_vmspace)


def sys_exit_group(lp: Lwp, code: int) -> int:
    """exit_group(2)"""
    exit1(lp, (code & 0xFF) << 8)


def sys_exit(lp: Lwp, code: int) -> int:
    """exit(2): ends the thread, and with the last one the process."""
    exit1(lp, (code & 0xFF) << 8)


# ---- wait ----------------------------------------------------------------------------------------


def _chosen(idtype: int, ident: int, options: int) -> Callable[[Proc], bool]:
    """Which children a wait is about, as a test."""
    clone, either = options & WCLONE, options & WALL

    def test(child: Proc) -> bool:
        if idtype == P_PID and child.p_pid != ident:
            return False
        if idtype == P_PGID and child.p_pgrp.pg_id != ident:
            return False
        return bool(either) or (child.p_exitsig != SIGCHLD) == bool(clone)

    return test


def kern_wait(lp: Lwp, idtype: int, ident: int, options: int) -> tuple[Proc, int] | None:
    """Wait for a child to change: (child, wait status), None with WNOHANG when none has. A dead
    child is reaped unless WNOWAIT is given.

    :raises OSError: ECHILD when there is none to wait for, ERESTART for a signal.
    """
    p = lp.lwp_proc
    chosen = _chosen(idtype, ident, options)
    sched = p.kernel.sched
    error = 0
    while True:
        if options & WEXITED:
            for child in _candidates(p.p_zombies, idtype, ident):
                if chosen(child):
                    if not options & WNOWAIT:
                        proc_reap(child)
                    return child, child.p_xstat
        if options & (WSTOPPED | WCONTINUED) and p.p_changed:
            for child in _candidates(p.p_changed, idtype, ident):
                status = _changed(child, options)
                if status and chosen(child):
                    if not options & WNOWAIT:
                        child.p_contsig = False
                        del p.p_changed[child.p_pid]
                    return child, status
        # The dead that are not waited for will never change again.
        candidates = _candidates(p.p_children, idtype, ident)
        if not any(child.p_stat != SZOMB and chosen(child) for child in candidates):
            raise err(ECHILD)
        if options & WNOHANG:
            return None
        if error:  # a signal, be it the child's, after which there is still nothing to tell
            raise err(ERESTART)
        error = sched.tsleep(p, PCATCH, "wait")


def _candidates(children: dict[int, Proc], idtype: int, ident: int) -> list[Proc]:
    """Those among `children` that may be chosen; one at most when one is asked for by number."""
    if idtype == P_PID:
        child = children.get(ident)
        return [] if child is None else [child]
    return list(children.values())


def _changed(child: Proc, options: int) -> int:
    """Wait status of a child that stopped or was continued, if `options` ask for that; else 0."""
    if child.p_stat == SSTOP:
        if options & WSTOPPED:
            return child.p_stopsig << 8 | _W_STOPPED
    elif child.p_contsig and options & WCONTINUED:
        return _W_CONTINUED
    return 0


def rusage_pack(ru: Rusage) -> bytes:
    """struct rusage. What Linux does not count is zero here, too."""
    user_us, system_us = ru.ru_utime_ns // 1000, ru.ru_stime_ns // 1000
    return _RUSAGE.pack(
        *divmod(user_us, 1_000_000), *divmod(system_us, 1_000_000), ru.ru_maxrss, 0, 0, 0,
        ru.ru_minflt, ru.ru_majflt, 0, ru.ru_inblock, ru.ru_oublock, 0, 0, 0,
        ru.ru_nvcsw, ru.ru_nivcsw,
    )  # fmt: skip


def _copyout_usage(p: Proc, child: Proc, urusage: int) -> None:
    """Tell what a child and those it has waited for have used."""
    ru = calcru(child)
    ru.add(child.p_cru)
    copyout(p.p_vmspace, rusage_pack(ru), urusage)


def sys_wait4(lp: Lwp, pid: int, ustatus: int, options: int, urusage: int) -> int:
    """wait4(2)"""
    pid, options = s32(pid), u32(options)
    if options & ~(WNOHANG | WUNTRACED | WCONTINUED | WNOTHREAD | WALL | WCLONE):
        raise err(EINVAL)
    if pid == -(1 << 31):
        raise err(ESRCH)
    p = lp.lwp_proc
    if pid > 0:
        idtype, ident = P_PID, pid
    elif pid == -1:
        idtype, ident = P_ALL, 0
    else:
        idtype, ident = P_PGID, -pid if pid else p.p_pgrp.pg_id
    found = kern_wait(lp, idtype, ident, options | WEXITED)
    if found is None:
        return 0
    child, status = found
    if ustatus:
        suword32(p.p_vmspace, ustatus, status)
    if urusage:
        _copyout_usage(p, child, urusage)
    return child.p_pid


def sys_waitid(lp: Lwp, idtype: int, ident: int, uinfo: int, options: int, urusage: int) -> int:
    """waitid(2). Like Linux it writes the fields it knows, and no others, and zeros to them when
    there is nothing to tell or it fails."""
    p = lp.lwp_proc
    error: OSError | None = None
    signo = code = pid = uid = value = 0
    try:
        found = _waitid(lp, s32(idtype), s32(ident), u32(options))
    except OSError as e:
        found, error = None, e
    if found is not None:
        child, status = found
        signo, pid, uid = SIGCHLD, child.p_pid, child.p_ucred.cr_ruid
        if status == _W_CONTINUED:
            code, value = CLD_CONTINUED, SIGCONT
        elif status & 0xFF == _W_STOPPED:
            code, value = CLD_STOPPED, status >> 8
        else:
            code, value = _cld(status)
        if urusage:
            _copyout_usage(p, child, urusage)
    if uinfo:
        copyout(p.p_vmspace, _THREE_INTS.pack(signo, 0, code), uinfo)
        copyout(p.p_vmspace, _THREE_INTS.pack(pid, uid, value), uinfo + _SI_PID)
    if error is not None:
        raise error
    return 0


def _waitid(lp: Lwp, idtype: int, ident: int, options: int) -> tuple[Proc, int] | None:
    known = WNOHANG | WNOWAIT | WEXITED | WSTOPPED | WCONTINUED | WNOTHREAD | WALL | WCLONE
    if options & ~known or not options & (WEXITED | WSTOPPED | WCONTINUED):
        raise err(EINVAL)
    if idtype == P_PID:
        if ident <= 0:
            raise err(EINVAL)
    elif idtype == P_PGID:
        if ident < 0:
            raise err(EINVAL)
        ident = ident or lp.lwp_proc.p_pgrp.pg_id
    elif idtype == P_PIDFD:
        return _waitid_pidfd(lp, ident, options)
    elif idtype != P_ALL:
        raise err(EINVAL)
    return kern_wait(lp, idtype, ident, options)


def _waitid_pidfd(lp: Lwp, fd: int, options: int) -> tuple[Proc, int] | None:
    """waitid about the process of a pidfd. One with O_NONBLOCK does not wait, and says so."""
    from dfvm.kern.sys_pidfd import pidfd_get

    if fd < 0:
        raise err(EINVAL)
    fp = pidfd_get(lp, fd)
    nonblock = fp.f_flag & O_NONBLOCK and not options & WNOHANG
    child = fp.pf_proc
    if lp.lwp_proc.p_children.get(child.p_pid) is not child:
        raise err(ECHILD)
    found = kern_wait(lp, P_PID, child.p_pid, options | (WNOHANG if nonblock else 0))
    if found is None and nonblock:
        raise err(EAGAIN)
    return found
