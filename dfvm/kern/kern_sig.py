"""Signals: sending, choosing, stopping, continuing. (sys_signal.py has the system calls.)

A signal is *sent* (ksignal to a process, lwpsignal to a thread) by putting it on a queue and, when
some thread does not block it, making that thread look: `lwp_pending` is set, and a sleep with
PCATCH ends with ERESTART. It is *acted upon* by the thread itself on its way back to the guest
(`userret`): it stops, dies, or gets a frame for its handler from the ABI (`sendsig`).

A system call that a signal cuts short says by its errno what is to become of it:

    ERESTART          made again, unless a handler without SA_RESTART is called: then EINTR
    ERESTARTNOINTR    made again in any case
    ERESTARTNOHAND    made again if no handler is called; else EINTR
    ERESTART_RESTARTBLOCK  the same, but with `lwp_restart_block` (a sleep with time left)

Numbers and rules are Linux's; the structure follows DragonFly sys/kern/kern_sig.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import (
    EINTR,
    EINVAL,
    ERESTART,
    err,
)
from dfvm.kern.kern_event import POLLIN
from dfvm.kern.proc import (
    P_COREDUMP,
    P_SYSTEM,
    P_WEXIT,
    SACTIVE,
    SSTOP,
    SZOMB,
)
from dfvm.machine.reg import RAX, RIP
from dfvm.vm.copyio import copyin

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp, Pgrp, Proc

SIGHUP: Final = 1
SIGINT: Final = 2
SIGQUIT: Final = 3
SIGILL: Final = 4
SIGTRAP: Final = 5
SIGABRT: Final = 6
SIGBUS: Final = 7
SIGFPE: Final = 8
SIGKILL: Final = 9
SIGUSR1: Final = 10
SIGSEGV: Final = 11
SIGUSR2: Final = 12
SIGPIPE: Final = 13
SIGALRM: Final = 14
SIGTERM: Final = 15
SIGSTKFLT: Final = 16
SIGCHLD: Final = 17
SIGCONT: Final = 18
SIGSTOP: Final = 19
SIGTSTP: Final = 20
SIGTTIN: Final = 21
SIGTTOU: Final = 22
SIGURG: Final = 23
SIGXCPU: Final = 24
SIGXFSZ: Final = 25
SIGVTALRM: Final = 26
SIGPROF: Final = 27
SIGWINCH: Final = 28
SIGIO: Final = 29
SIGPWR: Final = 30
SIGSYS: Final = 31
SIGRTMIN: Final = 32
NSIG: Final = 64  # the highest signal

SIG_DFL: Final = 0
SIG_IGN: Final = 1

SIG_BLOCK: Final = 0
SIG_UNBLOCK: Final = 1
SIG_SETMASK: Final = 2

SA_NOCLDSTOP: Final = 0x0000_0001
SA_NOCLDWAIT: Final = 0x0000_0002
SA_SIGINFO: Final = 0x0000_0004
SA_RESTORER: Final = 0x0400_0000
SA_ONSTACK: Final = 0x0800_0000
SA_RESTART: Final = 0x1000_0000
SA_NODEFER: Final = 0x4000_0000
SA_RESETHAND: Final = 0x8000_0000

# si_code
SI_USER: Final = 0
SI_KERNEL: Final = 0x80
SI_QUEUE: Final = -1
SI_TIMER: Final = -2
SI_MESGQ: Final = -3
SI_TKILL: Final = -6
ILL_ILLOPN: Final = 2
FPE_INTDIV: Final = 1
FPE_FLTDIV: Final = 3
FPE_FLTOVF: Final = 4
FPE_FLTUND: Final = 5
FPE_FLTRES: Final = 6
FPE_FLTINV: Final = 7
SEGV_MAPERR: Final = 1
SEGV_ACCERR: Final = 2
BUS_ADRALN: Final = 1
BUS_ADRERR: Final = 2
TRAP_BRKPT: Final = 1
TRAP_TRACE: Final = 2
CLD_EXITED: Final = 1
CLD_KILLED: Final = 2
CLD_DUMPED: Final = 3
CLD_STOPPED: Final = 5
CLD_CONTINUED: Final = 6

MINSIGSTKSZ: Final = 2048

# Ends of a system call that only this module understands (see above); beside kern_errno.ERESTART.
ERESTARTNOINTR: Final = -3
ERESTARTNOHAND: Final = -4
ERESTART_RESTARTBLOCK: Final = -5

NR_RESTART_SYSCALL: Final = 219
_SYSCALL_BYTES: Final = 2  # length of the syscall instruction


def sigbit(sig: int) -> int:
    """The bit of signal `sig` in a set."""
    return 1 << (sig - 1)


def _set(*signals: int) -> int:
    bits = 0
    for sig in signals:
        bits |= 1 << (sig - 1)
    return bits


_ALL: Final = (1 << NSIG) - 1
SIGS_CANTMASK: Final = _set(SIGKILL, SIGSTOP)  # can't be blocked, ignored or caught
_STOPS: Final = _set(SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU)  # default action: stop
_IGNORED: Final = _set(SIGCHLD, SIGCONT, SIGURG, SIGWINCH)  # default action: nothing
SIGS_SYNCHRONOUS: Final = _set(SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS)  # acted upon first
_CORES: Final = _set(SIGQUIT, SIGILL, SIGABRT, SIGFPE, SIGSEGV, SIGBUS, SIGSYS, SIGTRAP, SIGXCPU,
                     SIGXFSZ)  # fmt: skip
_KILLS: Final = _ALL & ~(_STOPS | _IGNORED | _CORES)  # default action: end, without a core
SIGS_MASKABLE: Final = _ALL & ~SIGS_CANTMASK

# handler, flags, restorer, mask
SigAction = tuple[int, int, int, int]
_DEFAULT: Final[SigAction] = (SIG_DFL, 0, 0, 0)


class Siginfo:
    """What a handler with SA_SIGINFO, waitid, sigtimedwait and signalfd learn about a signal.
    Which fields count depends on si_code and, for the kernel's own codes, on the signal."""

    __slots__ = ("si_addr", "si_code", "si_errno", "si_overrun", "si_pid", "si_raw", "si_signo",
                 "si_stale", "si_status", "si_stime", "si_timerid", "si_uid", "si_utime",
                 "si_value")  # fmt: skip

    si_signo: int
    si_errno: int
    si_code: int
    si_pid: int  # sender, or the child
    si_uid: int  # its real user
    si_status: int  # SIGCHLD: exit status or signal
    si_utime: int  # SIGCHLD: clock ticks (1/100 s)
    si_stime: int
    si_addr: int  # faults: the address
    si_value: int  # SI_QUEUE, SI_TIMER: the 64 bits the sender gave along
    si_timerid: int  # SI_TIMER
    si_overrun: int  # SI_TIMER: expirations that this signal stands for beyond the first
    si_stale: bool  # SI_TIMER: the timer has been set again or deleted; nobody gets it any more
    si_raw: bytes | None  # rt_sigqueueinfo: bytes 16 … 127 as the sender wrote them

    def __init__(self, signo: int, code: int, pid: int = 0, uid: int = 0, addr: int = 0,
                 value: int = 0) -> None:  # fmt: skip
        self.si_signo = signo
        self.si_errno = 0
        self.si_code = code
        self.si_pid = pid
        self.si_uid = uid
        self.si_addr = addr
        self.si_value = value
        self.si_status = self.si_utime = self.si_stime = 0
        self.si_timerid = self.si_overrun = 0
        self.si_raw = None
        self.si_stale = False


class SigActs:
    """What each signal does to a process. Shared by processes made with CLONE_SIGHAND."""

    __slots__ = ("ps_act", "ps_sigcatch", "ps_sigignore")

    ps_act: list[SigAction]  # by signal; [0] unused
    ps_sigignore: int  # signals that vanish when sent: SIG_IGN, or SIG_DFL that does nothing
    ps_sigcatch: int  # signals with a handler

    def __init__(self) -> None:
        self.ps_act = [_DEFAULT] * (NSIG + 1)
        self.ps_sigignore = _IGNORED
        self.ps_sigcatch = 0

    def copy(self) -> SigActs:
        """For fork."""
        new = SigActs.__new__(SigActs)
        new.ps_act = self.ps_act.copy()
        new.ps_sigignore = self.ps_sigignore
        new.ps_sigcatch = self.ps_sigcatch
        return new

    def set(self, sig: int, action: SigAction) -> None:
        """Replace the action of `sig`."""
        bit = 1 << (sig - 1)
        handler = action[0]
        self.ps_act[sig] = action
        self.ps_sigcatch &= ~bit
        self.ps_sigignore &= ~bit
        if handler == SIG_IGN or (handler == SIG_DFL and bit & _IGNORED):
            self.ps_sigignore |= bit
        elif handler != SIG_DFL:
            self.ps_sigcatch |= bit

    def ignored_explicitly(self) -> int:
        """Signals set to SIG_IGN: what /proc/PID/status shows."""
        bits = 0
        for sig in range(1, NSIG + 1):
            if self.ps_act[sig][0] == SIG_IGN:
                bits |= 1 << (sig - 1)
        return bits


class SigQueue:
    """Pending signals of a process or a thread. A standard signal is pending once or not at all;
    a real-time signal as often as it was sent, and any signal once for each POSIX timer."""

    __slots__ = ("infos", "pending")

    pending: int  # set of signals; a bit is set iff infos has the signal
    infos: dict[int, list[Siginfo]]  # in order of arrival; not empty

    def __init__(self) -> None:
        self.pending = 0
        self.infos = {}

    def add(self, info: Siginfo) -> None:
        """Queue a signal. One that is pending already, and neither real-time nor a timer's, is the
        same signal."""
        sig = info.si_signo
        bit = 1 << (sig - 1)
        if not self.pending & bit:
            self.pending |= bit
            self.infos[sig] = [info]
        elif sig >= SIGRTMIN or info.si_code == SI_TIMER:
            self.infos[sig].append(info)

    def take(self, sig: int) -> Siginfo:
        """Take the oldest `sig`, which is pending."""
        queue = self.infos[sig]
        info = queue.pop(0)
        if not queue:
            del self.infos[sig]
            self.pending &= ~(1 << (sig - 1))
        return info

    def discard(self, signals: int) -> None:
        """Forget all pending signals of a set."""
        gone = self.pending & signals
        if gone:
            self.pending &= ~gone
            for sig in [s for s in self.infos if gone >> (s - 1) & 1]:
                del self.infos[sig]

    def count(self) -> int:
        """Signals queued, for RLIMIT_SIGPENDING."""
        return sum(map(len, self.infos.values()))


# ---- sending -------------------------------------------------------------------------------------


def ksignal(p: Proc, sig: int, info: Siginfo | None = None) -> None:
    """Send `sig` to process `p`. Without `info` it is the kernel's own. Does not block."""
    _send(p, None, sig, info)


def lwpsignal(lp: Lwp, sig: int, info: Siginfo | None = None) -> None:
    """Send `sig` to one thread. Does not block."""
    _send(lp.lwp_proc, lp, sig, info)


def pgsignal(pgrp: Pgrp, sig: int, info: Siginfo | None = None) -> None:
    """Send `sig` to every member of a process group. Does not block."""
    for p in list(pgrp.pg_members.values()):
        _send(p, None, sig, info)


def _send(p: Proc, lp: Lwp | None, sig: int, info: Siginfo | None) -> None:
    if p.p_stat == SZOMB or p.p_flags & (P_WEXIT | P_SYSTEM):
        if sig != SIGKILL or not p.p_flags & P_COREDUMP:
            return
    bit = 1 << (sig - 1)
    if bit & _STOPS:
        discard_everywhere(p, sigbit(SIGCONT))
    elif sig == SIGCONT:
        # It undoes a stop whether or not anybody catches it, and even when it is blocked.
        discard_everywhere(p, _STOPS)
        if p.p_stat == SSTOP:
            proc_continue(p)
    elif sig == SIGKILL and p.p_stat == SSTOP:
        p.p_stat = SACTIVE
        for each in p.p_lwps.values():
            p.kernel.sched.wakeup(each)
    targets = p.p_lwps.values() if lp is None else (lp,)
    if bit & p.p_sigacts.ps_sigignore and all(not bit & t.lwp_sigmask for t in targets):
        return
    queue = p.p_sigqueue if lp is None else lp.lwp_sigqueue
    queue.add(info if info is not None else Siginfo(sig, SI_KERNEL))
    if p.p_sigkq is not None:
        p.p_sigkq.knote(POLLIN)
    for target in targets:
        if bit & (~target.lwp_sigmask | target.lwp_sigwait):
            signotify(target)
            if sig != SIGKILL:
                break


def signotify(lp: Lwp) -> None:
    """Make `lp` look at its signals: before it returns to the guest, and now if it sleeps
    interruptibly."""
    lp.lwp_pending = True
    sched, td = lp.lwp_proc.kernel.sched, lp.lwp_thread
    if not sched.interrupt(td, ERESTART) and td.td_wmesg == "ppwait" and td.td_wchan is not None:
        # The parent of a vfork does not listen to signals, but it can be killed.
        sched.wakeup(td.td_wchan)


def discard_everywhere(p: Proc, signals: int) -> None:
    """Forget pending `signals` (a mask) of the process and of all its threads."""
    p.p_sigqueue.discard(signals)
    for lp in p.p_lwps.values():
        lp.lwp_sigqueue.discard(signals)


def trapsignal(lp: Lwp, info: Siginfo) -> None:
    """The thread did something that it can't go on from: it gets the signal whatever it thinks
    of it. Blocked or ignored, the signal kills."""
    p, sig = lp.lwp_proc, info.si_signo
    bit = 1 << (sig - 1)
    acts = p.p_sigacts
    if lp.lwp_sigmask & bit or acts.ps_act[sig][0] == SIG_IGN:
        acts.set(sig, _DEFAULT)
        lp.lwp_sigmask &= ~bit
    lp.lwp_sigqueue.add(info)
    lp.lwp_pending = True


def signal_pending(lp: Lwp) -> bool:
    """Whether there is a signal to act upon that is not blocked."""
    pending = lp.lwp_sigqueue.pending | lp.lwp_proc.p_sigqueue.pending
    return bool(pending & ~lp.lwp_sigmask)


def killed(lp: Lwp) -> bool:
    """Whether a signal will end the process for sure: SIGKILL, or one whose default action that is
    and that nobody catches, ignores or blocks. (One that leaves a core does not count, as in
    Linux: that is not done before the thread is on its way back to the guest.)"""
    p = lp.lwp_proc
    pending = (lp.lwp_sigqueue.pending | p.p_sigqueue.pending) & _KILLS
    if pending & sigbit(SIGKILL):
        return True
    caught = p.p_sigacts.ps_sigcatch | p.p_sigacts.ps_sigignore | lp.lwp_sigmask
    return bool(pending & ~caught)


def cursig(lp: Lwp) -> int:
    """Asked by tsleep before it sleeps with PCATCH (Thread.td_cursig): what a pending signal makes
    of the sleep. An ignored one counts too; the call is then simply made again. Without one the
    thread gives the CPU away, which is counted here."""
    if lp.lwp_pending:
        p = lp.lwp_proc
        pending = lp.lwp_sigqueue.pending | p.p_sigqueue.pending
        if pending & (~lp.lwp_sigmask | lp.lwp_sigwait) or p.p_stat == SSTOP:
            return ERESTART
    lp.lwp_nvcsw += 1
    lp.lwp_proc.kernel.vm.gd.gd_cnt.v_swtch += 1
    return 0


# ---- acting --------------------------------------------------------------------------------------


def userret(lp: Lwp) -> None:
    """On the way back to the guest, with lwp_pending set: let real-time threads go first,
    act on signals, decide about the system call that was cut short, put a temporary mask back. May
    stop for a long time, and does not return when a signal kills the process."""
    p = lp.lwp_proc
    restart, lp.lwp_restart = lp.lwp_restart, 0
    while True:
        lp.lwp_pending = False
        p.kernel.sched.preempt()
        if p.p_stat == SSTOP:
            _stopped(lp)
        if (lp.lwp_sigqueue.pending | p.p_sigqueue.pending) & ~lp.lwp_sigmask:
            info = issignal(lp)
            if info is not None:
                if restart:
                    handler, flags, _, _ = p.p_sigacts.ps_act[info.si_signo]
                    if handler > SIG_IGN:
                        _restart_handler(lp, restart, flags)
                    else:
                        lp.lwp_restart = restart  # it dies here: a core tells
                    restart = 0
                postsig(lp, info)
                lp.lwp_pending = True
                continue
        if lp.lwp_oldsigmask >= 0:
            lp.lwp_sigmask, lp.lwp_oldsigmask = lp.lwp_oldsigmask, -1
            lp.lwp_pending = True
            continue
        if not lp.lwp_pending:
            break
    if restart:
        _restart_silently(lp, restart)


def _restart_handler(lp: Lwp, restart: int, flags: int) -> None:
    """A handler is about to be called in the middle of a system call."""
    q = lp.ctx.q
    if restart == ERESTARTNOINTR or (restart == ERESTART and flags & SA_RESTART):
        q[RAX] = lp.lwp_syscall
        q[RIP] -= _SYSCALL_BYTES
    else:
        q[RAX] = (1 << 64) - EINTR


def _restart_silently(lp: Lwp, restart: int) -> None:
    """No handler was called: the guest must not notice."""
    q = lp.ctx.q
    q[RAX] = NR_RESTART_SYSCALL if restart == ERESTART_RESTARTBLOCK else lp.lwp_syscall
    q[RIP] -= _SYSCALL_BYTES


def issignal(lp: Lwp) -> Siginfo | None:
    """Take the next signal that is to be acted upon by a handler or by dying. Ignored ones are
    dropped and stops are made on the way, so it may sleep."""
    p = lp.lwp_proc
    acts = p.p_sigacts
    while True:
        queue = lp.lwp_sigqueue
        ready = queue.pending & ~lp.lwp_sigmask
        if not ready:
            queue = p.p_sigqueue
            ready = queue.pending & ~lp.lwp_sigmask
            if not ready:
                return None
        if p.p_sigqueue.pending & sigbit(SIGKILL):
            queue, sig = p.p_sigqueue, SIGKILL
        else:
            first = ready & SIGS_SYNCHRONOUS or ready
            sig = (first & -first).bit_length()
        info = queue.take(sig)
        if info.si_stale:
            continue
        handler = acts.ps_act[sig][0]
        bit = 1 << (sig - 1)
        if sig == SIGKILL or handler > SIG_IGN:
            return info
        if bit & acts.ps_sigignore:
            continue
        if bit & _STOPS:
            # A group without anybody who could continue it is not stopped from the terminal.
            if sig == SIGSTOP or p.p_pgrp.pg_jobc:
                proc_stop(p, sig)
                _stopped(lp)
            continue
        return info


def postsig(lp: Lwp, info: Siginfo) -> None:
    """Act on a signal from issignal: die, or call the handler."""
    p, sig = lp.lwp_proc, info.si_signo
    acts = p.p_sigacts
    action = acts.ps_act[sig]
    handler, flags, _, mask = action
    if sig == SIGKILL or handler <= SIG_IGN:
        sigexit(lp, info)
    old = lp.lwp_sigmask
    if lp.lwp_oldsigmask >= 0:  # sigsuspend: the handler returns to the mask before it
        old, lp.lwp_oldsigmask = lp.lwp_oldsigmask, -1
    try:
        p.kernel.sendsig(lp, info, action, old)
    except OSError:
        # No room for the frame: no handler can be called. A SIGSEGV that can't be delivered
        # kills, anything else becomes one.
        lp.lwp_sigmask = old
        if sig == SIGSEGV:
            acts.set(SIGSEGV, _DEFAULT)
            lp.lwp_sigmask &= ~sigbit(SIGSEGV)
        trapsignal(lp, Siginfo(SIGSEGV, SI_KERNEL))
        return
    lp.lwp_sigmask |= mask
    if not flags & SA_NODEFER:
        lp.lwp_sigmask |= 1 << (sig - 1)
    lp.lwp_sigmask &= SIGS_MASKABLE
    if flags & SA_RESETHAND:
        acts.set(sig, (SIG_DFL, *action[1:]))


def sigexit(lp: Lwp, info: Siginfo) -> None:
    """Die of a signal, and leave a core where that is its default action. Does not return."""
    from dfvm.kern.kern_exit import WCOREFLAG, exit1

    p, status = lp.lwp_proc, info.si_signo
    if sigbit(status) & _CORES:
        from dfvm.kern.kern_core import coredump

        if coredump(lp, info):
            status |= WCOREFLAG
        if p.p_sigqueue.pending & sigbit(SIGKILL):
            status = SIGKILL
        p.p_flags &= ~P_COREDUMP
    exit1(lp, status)


def proc_stop(p: Proc, sig: int) -> None:
    """Stop `p`: its threads sleep where they would return to the guest. The parent is told."""
    p.p_stat = SSTOP
    p.p_stopsig = sig
    p.p_contsig = False
    for lp in p.p_lwps.values():
        signotify(lp)
    _tell_parent(p, CLD_STOPPED, sig)


def proc_continue(p: Proc) -> None:
    """Let a stopped process go on. The parent is told."""
    p.p_stat = SACTIVE
    p.p_stopsig = 0
    p.p_contsig = True
    for lp in p.p_lwps.values():
        p.kernel.sched.wakeup(lp)
    _tell_parent(p, CLD_CONTINUED, SIGCONT)


def _stopped(lp: Lwp) -> None:
    """Sleep until the process is continued or killed."""
    p = lp.lwp_proc
    sched = p.kernel.sched
    while p.p_stat == SSTOP:
        sched.tsleep(lp, 0, "stop")


def _tell_parent(p: Proc, code: int, status: int) -> None:
    parent = p.p_pptr
    parent.p_changed[p.p_pid] = p
    if not parent.p_sigacts.ps_act[SIGCHLD][1] & SA_NOCLDSTOP:
        ksignal(parent, SIGCHLD, child_info(p, code, status))
    p.kernel.sched.wakeup(parent)


def child_info(p: Proc, code: int, status: int) -> Siginfo:
    """The siginfo of a SIGCHLD about `p`."""
    from dfvm.kern.proc import calcru

    info = Siginfo(SIGCHLD, code, p.p_pid, p.p_ucred.cr_ruid)
    info.si_status = status
    ru = calcru(p)
    info.si_utime = ru.ru_utime_ns // 10_000_000
    info.si_stime = ru.ru_stime_ns // 10_000_000
    return info


def exec_signals(p: Proc, lp: Lwp) -> None:
    """exec: handlers are gone with the program, what was ignored stays ignored, pending signals
    and the mask stay, the alternate stack is gone."""
    old = p.p_sigacts
    if old.ps_sigcatch or any(action[1] for action in old.ps_act):
        acts = SigActs()
        for sig in range(1, NSIG + 1):
            if old.ps_act[sig][0] == SIG_IGN:
                acts.set(sig, (SIG_IGN, 0, 0, 0))
        p.p_sigacts = acts
    lp.lwp_sigstk_sp = lp.lwp_sigstk_size = 0


# ---- masks for a while ---------------------------------------------------------------------------


def setsigmask(lp: Lwp, mask: int) -> None:
    """Replace the mask of blocked signals; what becomes unblocked is acted upon before the
    return to the guest."""
    lp.lwp_sigmask = mask & SIGS_MASKABLE
    if (lp.lwp_sigqueue.pending | lp.lwp_proc.p_sigqueue.pending) & ~lp.lwp_sigmask:
        lp.lwp_pending = True


def set_user_sigmask(lp: Lwp, uset: int, size: int) -> None:
    """For ppoll, pselect6 and epoll_pwait: the mask at user address `uset` (0: none) holds until
    the call is over. To be followed by restore_user_sigmask."""
    if not uset:
        return
    if size != 8:
        raise err(EINVAL)
    mask = int.from_bytes(copyin(lp.lwp_proc.p_vmspace, uset, 8), "little")
    lp.lwp_oldsigmask = lp.lwp_sigmask
    setsigmask(lp, mask)


def restore_user_sigmask(lp: Lwp, interrupted: bool) -> None:
    """The end of a call that began with set_user_sigmask. When a signal interrupted it, the
    temporary mask holds until the signal has been acted upon."""
    if lp.lwp_oldsigmask < 0:
        return
    if interrupted:
        lp.lwp_pending = True
    else:
        mask, lp.lwp_oldsigmask = lp.lwp_oldsigmask, -1
        setsigmask(lp, mask)
