"""The system calls about signals: what they do, which are blocked, sending, waiting, the alternate
stack. What comes of a signal that was sent is in kern_sig.py.

Numbers and rules are Linux's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, s64
from dfvm.kern.kern_caps import CAP_KILL
from dfvm.kern.kern_errno import EAGAIN, EINTR, EINVAL, ENOMEM, EPERM, ERESTART, ESRCH, err
from dfvm.kern.kern_sig import (
    ERESTARTNOHAND,
    MINSIGSTKSZ,
    NSIG,
    SA_NOCLDSTOP,
    SA_NOCLDWAIT,
    SA_NODEFER,
    SA_ONSTACK,
    SA_RESETHAND,
    SA_RESTART,
    SA_RESTORER,
    SA_SIGINFO,
    SI_TKILL,
    SI_USER,
    SIG_BLOCK,
    SIG_SETMASK,
    SIG_UNBLOCK,
    SIGCONT,
    SIGKILL,
    SIGRTMIN,
    SIGS_MASKABLE,
    SIGS_SYNCHRONOUS,
    SIGSTOP,
    Siginfo,
    discard_everywhere,
    ksignal,
    lwpsignal,
    setsigmask,
    sigbit,
)
from dfvm.kern.proc import P_SYSTEM, RLIMIT_SIGPENDING, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.machine.reg import RSP
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp, Proc

_SA_KNOWN: Final = (SA_NOCLDSTOP | SA_NOCLDWAIT | SA_SIGINFO | SA_RESTORER | SA_ONSTACK
                    | SA_RESTART | SA_NODEFER | SA_RESETHAND | 0x800)  # fmt: skip


def sys_rt_sigaction(lp: Lwp, sig: int, act: int, oact: int, sigsetsize: int) -> int:
    """Set and tell what a signal does. struct: handler, flags, restorer, mask."""
    if sigsetsize != 8:
        raise err(EINVAL)
    sig = s32(sig)
    p = lp.lwp_proc
    raw = memoryview(copyin(p.p_vmspace, act, 32) if act else b"").cast("Q")
    if not 1 <= sig <= NSIG or (act and sig in (SIGKILL, SIGSTOP)):
        raise err(EINVAL)
    old = p.p_sigacts.ps_act[sig]
    if act:
        # Flags nobody knows are dropped, so that a program can find out which are supported.
        flags = raw[1] & _SA_KNOWN
        new = (raw[0], flags, raw[2], raw[3] & SIGS_MASKABLE)
        p.p_sigacts.set(sig, new)
        if p.p_sigacts.ps_sigignore >> (sig - 1) & 1:
            discard_everywhere(p, sigbit(sig))
    if oact:
        copyout(p.p_vmspace, b"".join(x.to_bytes(8, "little") for x in old), oact)
    return 0


def sys_rt_sigprocmask(lp: Lwp, how: int, nset: int, oset: int, sigsetsize: int) -> int:
    """Change and tell the mask of blocked signals."""
    if sigsetsize != 8:
        raise err(EINVAL)
    space = lp.lwp_proc.p_vmspace
    old = lp.lwp_sigmask
    if nset:
        bits = int.from_bytes(copyin(space, nset, 8), "little")
        how = s32(how)
        if how == SIG_BLOCK:
            lp.lwp_sigmask = (old | bits) & SIGS_MASKABLE
        elif how == SIG_UNBLOCK:
            setsigmask(lp, old & ~bits)
        elif how == SIG_SETMASK:
            setsigmask(lp, bits)
        else:
            raise err(EINVAL)
    if oset:
        copyout(space, old.to_bytes(8, "little"), oset)
    return 0


def sys_rt_sigpending(lp: Lwp, uset: int, sigsetsize: int) -> int:
    """Which blocked signals are pending."""
    if sigsetsize > 8:
        raise err(EINVAL)
    p = lp.lwp_proc
    pending = (lp.lwp_sigqueue.pending | p.p_sigqueue.pending) & lp.lwp_sigmask
    copyout(p.p_vmspace, pending.to_bytes(8, "little")[:sigsetsize], uset)
    return 0


def sys_rt_sigsuspend(lp: Lwp, uset: int, sigsetsize: int) -> int:
    """Wait for a signal with another mask."""
    if sigsetsize != 8:
        raise err(EINVAL)
    mask = int.from_bytes(copyin(lp.lwp_proc.p_vmspace, uset, 8), "little")
    lp.lwp_oldsigmask = lp.lwp_sigmask
    lp.lwp_pending = True
    setsigmask(lp, mask)
    _wait_for_signal(lp, "sigsusp")
    raise err(ERESTARTNOHAND)


def sys_pause(lp: Lwp) -> int:
    """Wait for a signal."""
    _wait_for_signal(lp, "pause")
    raise err(ERESTARTNOHAND)


def _wait_for_signal(lp: Lwp, wmesg: str) -> None:
    sched = lp.lwp_proc.kernel.sched
    while not sched.tsleep(lp.lwp_sigqueue, PCATCH, wmesg):
        pass


def sys_rt_sigtimedwait(lp: Lwp, uthese: int, uinfo: int, uts: int, sigsetsize: int) -> int:
    """Take a pending signal of a set, waiting for one if need be."""
    if sigsetsize != 8:
        raise err(EINVAL)
    p = lp.lwp_proc
    space = p.p_vmspace
    these = int.from_bytes(copyin(space, uthese, 8), "little") & SIGS_MASKABLE
    timeout = -1
    if uts:
        raw = copyin(space, uts, 16)
        seconds = s64(int.from_bytes(raw[:8], "little"))
        ns = s64(int.from_bytes(raw[8:], "little"))
        if seconds < 0 or not 0 <= ns < 1_000_000_000:
            raise err(EINVAL)
        timeout = min(seconds * 1_000_000_000 + ns, 1 << 61)
    info = take_pending(lp, these)
    if info is None and timeout:
        lp.lwp_sigwait = these
        try:
            sched = p.kernel.sched
            error = sched.tsleep_ns(lp.lwp_sigqueue, PCATCH, "sigwait", max(timeout, 0))
        finally:
            lp.lwp_sigwait = 0
        info = take_pending(lp, these)
        if info is None and error == ERESTART:
            raise err(EINTR)
    if info is None:
        raise err(EAGAIN)
    if uinfo:
        copyout(space, p.kernel.siginfo_pack(info), uinfo)
    return info.si_signo


def take_pending(lp: Lwp, these: int) -> Siginfo | None:
    """Take the lowest pending signal of a set, blocked or not."""
    for queue in (lp.lwp_sigqueue, lp.lwp_proc.p_sigqueue):
        while ready := queue.pending & these:
            first = ready & SIGS_SYNCHRONOUS or ready
            info = queue.take((first & -first).bit_length())
            if not info.si_stale:
                return info
    return None


def check_signal(lp: Lwp, target: Proc, sig: int) -> None:
    """`sig`, or 0, can be sent by `lp` to `target`, which exists.

    :raises OSError: EINVAL there is no such signal, EPERM.
    """
    if not 0 <= sig <= NSIG:
        raise err(EINVAL)
    if not can_signal(lp, target, sig):
        raise err(EPERM)


def can_signal(lp: Lwp, target: Proc, sig: int) -> bool:
    """Whether `lp` may send `sig` to `target`."""
    p = lp.lwp_proc
    mine, hers = p.p_ucred, target.p_ucred
    if mine.cr_cap_e & CAP_KILL or mine.cr_uid in (hers.cr_ruid, hers.cr_svuid):
        return True
    if mine.cr_ruid in (hers.cr_ruid, hers.cr_svuid):
        return True
    return sig == SIGCONT and p.p_session is target.p_session


def user_info(lp: Lwp, sig: int, code: int = SI_USER) -> Siginfo:
    """What is told about a signal that `lp` sends."""
    p = lp.lwp_proc
    return Siginfo(sig, code, p.p_pid, p.p_ucred.cr_ruid)


def sys_kill(lp: Lwp, pid: int, sig: int) -> int:
    """Send a signal to a process (pid > 0), one's own group (0), a group (< -1) or everybody whom
    one may (-1)."""
    pid, sig = s32(pid), s32(sig)
    p = lp.lwp_proc
    kernel = p.kernel
    if pid > 0:
        target = kernel.procs.get(pid)
        targets = [] if target is None else [target]
    elif pid == -1:
        targets = [q for q in kernel.procs.values() if not q.p_flags & P_SYSTEM and q is not p]
    else:
        pgrp = p.p_pgrp if pid == 0 else kernel.pgrps.get(-pid)
        targets = [] if pgrp is None else list(pgrp.pg_members.values())
    if not targets:
        raise err(ESRCH)
    if not 0 <= sig <= NSIG:
        raise err(EINVAL)
    allowed = [q for q in targets if can_signal(lp, q, sig)]
    if not allowed:
        raise err(EPERM)
    if sig:
        info = user_info(lp, sig)
        for q in allowed:
            send_user(q, None, info)
    return 0


def _find_lwp(lp: Lwp, tgid: int, tid: int, sig: int) -> Lwp | None:
    """The thread `tid`, of process `tgid` unless that is 0, if `lp` may signal it. A zombie has
    no threads any more but takes signals without effect: None."""
    if tid <= 0:
        raise err(EINVAL)
    target = lp.lwp_proc.kernel.find_lwp(tid)
    proc = target.lwp_proc if target is not None else lp.lwp_proc.kernel.procs.get(tid)
    if proc is None or (tgid and proc.p_pid != tgid):
        raise err(ESRCH)
    check_signal(lp, proc, sig)
    return target


def sys_tkill(lp: Lwp, tid: int, sig: int) -> int:
    """Send a signal to a thread."""
    sig = s32(sig)
    _send_lwp(_find_lwp(lp, 0, s32(tid), sig), user_info(lp, sig, SI_TKILL))
    return 0


def sys_tgkill(lp: Lwp, tgid: int, tid: int, sig: int) -> int:
    """Send a signal to a thread of a certain process."""
    sig = s32(sig)
    if s32(tgid) <= 0:
        raise err(EINVAL)
    _send_lwp(_find_lwp(lp, s32(tgid), s32(tid), sig), user_info(lp, sig, SI_TKILL))
    return 0


def _send_lwp(target: Lwp | None, info: Siginfo) -> None:
    """Send a signal (none if it is 0) to what _find_lwp found."""
    if info.si_signo and target is not None:
        send_user(target.lwp_proc, target, info)


def copyin_siginfo(lp: Lwp, sig: int, uinfo: int, target_pid: int, exact: bool = False) -> Siginfo:
    """A siginfo that a program made up. It may not pretend to come from the kernel or kill, nor,
    with `exact`, to be about another signal."""
    raw = copyin(lp.lwp_proc.p_vmspace, uinfo, 128)
    if exact and s32(int.from_bytes(raw[:4], "little")) != sig:
        raise err(EINVAL)
    code = s32(int.from_bytes(raw[8:12], "little"))
    if (code >= 0 or code == SI_TKILL) and target_pid != lp.lwp_proc.p_pid:
        raise err(EPERM)
    info = Siginfo(sig, code, int.from_bytes(raw[16:20], "little"),
                   int.from_bytes(raw[20:24], "little"))  # fmt: skip
    info.si_errno = s32(int.from_bytes(raw[4:8], "little"))
    info.si_value = int.from_bytes(raw[24:32], "little")
    info.si_raw = raw[16:]
    return info


def send_user(p: Proc, lp: Lwp | None, info: Siginfo) -> None:
    """Send what a program sends to `p`, or to its thread `lp`, as far as RLIMIT_SIGPENDING lets
    it be queued. That is counted by receiver here, not by user.

    :raises OSError: EAGAIN for a real-time signal that is not sent by kill.
    """
    sig, code = info.si_signo, info.si_code
    if (sig >= SIGRTMIN or code < 0) and queued_signals(p) >= p.p_rlimit(RLIMIT_SIGPENDING):
        if sig >= SIGRTMIN:
            if code != SI_USER:
                raise err(EAGAIN)
            if p.p_sigqueue.pending & sigbit(sig):
                return
        info = Siginfo(sig, SI_USER)  # it arrives, but what it would tell is lost
    if lp is None:
        ksignal(p, sig, info)
    else:
        lwpsignal(lp, sig, info)


def queued_signals(p: Proc) -> int:
    """How many signals wait for `p` and its threads."""
    return p.p_sigqueue.count() + sum(lp.lwp_sigqueue.count() for lp in p.p_lwps.values())


def sys_rt_sigqueueinfo(lp: Lwp, pid: int, sig: int, uinfo: int) -> int:
    """Send a signal with a value to a process."""
    pid, sig = s32(pid), s32(sig)
    info = copyin_siginfo(lp, sig, uinfo, pid)
    target = lp.lwp_proc.kernel.procs.get(pid)
    if target is None:
        raise err(ESRCH)
    check_signal(lp, target, sig)
    if sig:
        send_user(target, None, info)
    return 0


def sys_rt_tgsigqueueinfo(lp: Lwp, tgid: int, tid: int, sig: int, uinfo: int) -> int:
    """Send a signal with a value to a thread."""
    tgid, tid, sig = s32(tgid), s32(tid), s32(sig)
    info = copyin_siginfo(lp, sig, uinfo, tgid)
    if tgid <= 0 or tid <= 0:
        raise err(EINVAL)
    _send_lwp(_find_lwp(lp, tgid, tid, sig), info)
    return 0


def on_sigstack(lp: Lwp, sp: int) -> bool:
    """Whether `sp` lies in the alternate stack. With SS_AUTODISARM nobody can be on it, since it
    is taken away when a handler is entered."""
    if lp.lwp_sigstk_flags & SS_AUTODISARM:
        return False
    base = lp.lwp_sigstk_sp
    return base < sp <= base + lp.lwp_sigstk_size


def sigstack_flags(lp: Lwp, sp: int) -> int:
    """ss_flags as sigaltstack tells them."""
    if not lp.lwp_sigstk_size:
        state = SS_DISABLE
    else:
        state = SS_ONSTACK if on_sigstack(lp, sp) else 0
    return state | (lp.lwp_sigstk_flags & SS_AUTODISARM)


def set_sigstack(lp: Lwp, sp: int, flags: int, size: int, user_sp: int) -> None:
    """Install an alternate stack. `user_sp` is the stack pointer of the caller."""
    if on_sigstack(lp, user_sp):
        raise err(EPERM)
    mode = flags & ~SS_AUTODISARM
    if mode not in (0, SS_ONSTACK, SS_DISABLE):
        raise err(EINVAL)
    if mode == SS_DISABLE:
        sp = size = 0
    elif size < MINSIGSTKSZ:
        raise err(ENOMEM)
    lp.lwp_sigstk_sp, lp.lwp_sigstk_size = sp, size
    lp.lwp_sigstk_flags = flags


def sys_sigaltstack(lp: Lwp, uss: int, uoss: int) -> int:
    """Set and tell the alternate signal stack."""
    space = lp.lwp_proc.p_vmspace
    user_sp = lp.ctx.q[RSP]
    old = sigstack_pack(lp, sigstack_flags(lp, user_sp))
    if uss:
        raw = copyin(space, uss, 24)
        set_sigstack(lp, int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:12], "little"),
                     int.from_bytes(raw[16:24], "little"), user_sp)  # fmt: skip
    if uoss:
        copyout(space, old, uoss)
    return 0


def sigstack_pack(lp: Lwp, flags: int) -> bytes:
    """stack_t: sp, flags, (padding), size."""
    return (lp.lwp_sigstk_sp | flags << 64 | lp.lwp_sigstk_size << 128).to_bytes(24, "little")


def sys_restart_syscall(lp: Lwp) -> int:
    """Go on with a sleep that a stop interrupted. The kernel makes programs call this."""
    block: Callable[[Lwp], int] | None = lp.lwp_restart_block
    lp.lwp_restart_block = None
    if block is None:
        raise err(EINTR)
    return block(lp)
