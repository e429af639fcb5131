"""Processes, their threads, process groups and sessions: the structures, and what links them.

A process owns resources (address space, descriptors, signal actions, credentials, limits); an lwp
owns a CPU context, a kernel stack, a signal mask and the LWKT thread that runs it. Whoever changes
these does it in `kern_fork`, `kern_exec`, `kern_exit`, `kern_sig` or `kern_prot`; this module only
knows how they hang together.

The kernel runs on one host thread and gives up the CPU only where it sleeps, so none of the fields
below has a lock: "stable" means that it stays as it is across a sleep, and everything else must be
looked at again after one.

Source: DragonFly sys/sys/proc.h and sys/kern/kern_proc.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_FULL
from dfvm.vm.vm_proc import (
    RLIM_INFINITY,
    RLIMIT_MEMLOCK,
    RLIMIT_STACK,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.fsinfo import FsInfo
    from dfvm.kern.kern_descrip import FileDesc
    from dfvm.kern.kern_event import Kqinfo
    from dfvm.kern.kern_sig import SigActs, SigQueue
    from dfvm.kern.kern_time import ProcTimers
    from dfvm.kern.kern_umtx import UmtxPi, UmtxQ
    from dfvm.kern.kernel import Kernel, KernelStack
    from dfvm.kern.sysv_sem import SemUndoList
    from dfvm.kern.tty import Tty
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.lwkt.lwkt_thread import Thread
    from dfvm.machine.cpu import CpuContext
    from dfvm.vm.vmspace import Vmspace

# p_stat
SIDL: Final = 1  # being made by fork
SACTIVE: Final = 2  # runs or sleeps
SSTOP: Final = 3  # stopped by a signal
SZOMB: Final = 4  # dead, not waited for

# p_flags
P_CONTROLT: Final = 0x0000_0002  # has a controlling terminal
P_PPWAIT: Final = 0x0000_0010  # the parent waits in vfork until we exec or exit
P_SYSTEM: Final = 0x0000_0200  # no user space: init
P_WEXIT: Final = 0x0000_2000  # on its way out: takes no more signals
P_COREDUMP: Final = 0x0000_8000  # on its way out, but writing a core still: can be killed
P_EXEC: Final = 0x0000_4000  # has called execve: setpgid by the parent is too late

# Limits by number (Linux); the ones the VM enforces are in vm_proc.
RLIMIT_CPU: Final = 0
RLIMIT_FSIZE: Final = 1
RLIMIT_CORE: Final = 4
RLIMIT_NPROC: Final = 6
RLIMIT_NOFILE: Final = 7
RLIMIT_LOCKS: Final = 10
RLIMIT_SIGPENDING: Final = 11
RLIMIT_MSGQUEUE: Final = 12
RLIMIT_NICE: Final = 13
RLIMIT_RTPRIO: Final = 14
RLIMIT_RTTIME: Final = 15
RLIM_NLIMITS: Final = 16

PID_MAX: Final = 99_999  # until kernel.pid_max says otherwise
THREADS_MAX: Final = 64_000  # likewise, kernel.threads-max

# What is in a core unless coredump_filter says otherwise: private and shared memory without a file,
# headers of ELF files, private huge pages.
COREDUMP_FILTER: Final = 0x33

# The segments of ring 3.
USER_CS: Final = 0x33
USER_SS: Final = 0x2B

# The alternate signal stack's flags (stack_t.ss_flags).
SS_ONSTACK: Final = 1
SS_DISABLE: Final = 2
SS_AUTODISARM: Final = 1 << 31


class Ucred:
    """Who a process is. Never changed in place: whoever changes an id makes a new one, so that it
    can be shared by reference.

    `cr_uid` and `cr_gid` are the effective ids, as in DragonFly. Files are checked against
    `cr_fsuid` and `cr_fsgid`, which follow them unless setfsuid is used.
    """

    __slots__ = ("cr_cap_a", "cr_cap_b", "cr_cap_e", "cr_cap_i", "cr_cap_p", "cr_fsgid",
                 "cr_fsuid", "cr_gid", "cr_groups", "cr_rgid", "cr_ruid", "cr_securebits",
                 "cr_svgid", "cr_svuid", "cr_uid")  # fmt: skip

    cr_uid: int  # effective user
    cr_ruid: int  # real user
    cr_svuid: int  # saved user: what seteuid may return to
    cr_fsuid: int  # user for access to files
    cr_gid: int  # effective group
    cr_rgid: int
    cr_svgid: int
    cr_fsgid: int
    cr_groups: tuple[int, ...]  # supplementary groups
    cr_cap_e: int  # capabilities in force (CAP_*); see kern_caps
    cr_cap_p: int  # those that may be
    cr_cap_i: int  # those that exec may pass on
    cr_cap_b: int  # those that exec may give
    cr_cap_a: int  # those that exec passes on without the file's or root's help
    cr_securebits: int  # SECBIT_*

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
        self.cr_uid = self.cr_ruid = self.cr_svuid = self.cr_fsuid = uid
        self.cr_gid = self.cr_rgid = self.cr_svgid = self.cr_fsgid = gid
        self.cr_groups = groups
        self.cr_cap_e = self.cr_cap_p = 0 if uid else CAP_FULL
        self.cr_cap_b = CAP_FULL
        self.cr_cap_i = self.cr_cap_a = self.cr_securebits = 0

    def copy(self) -> Ucred:
        """A private copy, for the caller to change and put in place."""
        new = Ucred(self.cr_uid, self.cr_gid, self.cr_groups)
        new.cr_ruid, new.cr_svuid, new.cr_fsuid = self.cr_ruid, self.cr_svuid, self.cr_fsuid
        new.cr_rgid, new.cr_svgid, new.cr_fsgid = self.cr_rgid, self.cr_svgid, self.cr_fsgid
        new.cr_cap_e, new.cr_cap_p, new.cr_cap_i = self.cr_cap_e, self.cr_cap_p, self.cr_cap_i
        new.cr_cap_b, new.cr_cap_a = self.cr_cap_b, self.cr_cap_a
        new.cr_securebits = self.cr_securebits
        return new

    def groupmember(self, gid: int) -> bool:
        """Whether access to files of group `gid` is decided by its group bits."""
        return gid == self.cr_fsgid or gid in self.cr_groups


class Session:
    """A login's worth of process groups."""

    __slots__ = ("s_leader", "s_pgrps", "s_sid", "s_ttyp")

    s_sid: int  # the leader's pid; never changes
    s_leader: Proc | None  # None once it has exited
    s_pgrps: dict[int, Pgrp]  # its process groups by id
    s_ttyp: Tty | None  # the controlling terminal

    def __init__(self, leader: Proc) -> None:
        self.s_sid = leader.p_pid
        self.s_leader = leader
        self.s_pgrps = {}
        self.s_ttyp = None


class Pgrp:
    """A process group: what a terminal sends its signals to. Gone when its last member leaves."""

    __slots__ = ("pg_id", "pg_jobc", "pg_members", "pg_session")

    pg_id: int  # pid of the process that made it; never changes
    pg_session: Session  # never changes
    pg_members: dict[int, Proc]  # by pid, zombies included
    pg_jobc: int  # members (not zombies) whose parent is in another group of the same session:
    #               who could continue the group when it stops. 0: the group is orphaned

    def __init__(self, pg_id: int, session: Session) -> None:
        self.pg_id = pg_id
        self.pg_session = session
        self.pg_members = {}
        self.pg_jobc = 0


class Rusage:
    """Resources used, in the units of getrusage except for the times."""

    __slots__ = ("ru_inblock", "ru_majflt", "ru_maxrss", "ru_minflt", "ru_nivcsw", "ru_nvcsw",
                 "ru_oublock", "ru_stime_ns", "ru_utime_ns")  # fmt: skip

    ru_utime_ns: int  # in the guest
    ru_stime_ns: int  # in the kernel
    ru_maxrss: int  # largest resident set, KiB
    ru_minflt: int
    ru_majflt: int
    ru_inblock: int  # 512-byte blocks read by pagers
    ru_oublock: int
    ru_nvcsw: int  # the thread slept
    ru_nivcsw: int  # its slice was over

    def __init__(self) -> None:
        self.ru_utime_ns = self.ru_stime_ns = self.ru_maxrss = 0
        self.ru_minflt = self.ru_majflt = self.ru_inblock = self.ru_oublock = 0
        self.ru_nvcsw = self.ru_nivcsw = 0

    def add(self, other: Rusage) -> None:
        """Add a child that has been waited for; the resident set is a maximum, not a sum."""
        self.ru_utime_ns += other.ru_utime_ns
        self.ru_stime_ns += other.ru_stime_ns
        self.ru_maxrss = max(self.ru_maxrss, other.ru_maxrss)
        self.ru_minflt += other.ru_minflt
        self.ru_majflt += other.ru_majflt
        self.ru_inblock += other.ru_inblock
        self.ru_oublock += other.ru_oublock
        self.ru_nvcsw += other.ru_nvcsw
        self.ru_nivcsw += other.ru_nivcsw


class Lwp:
    """One thread of a process."""

    __slots__ = ("ctx", "lwp_clear_tid", "lwp_cpumask", "lwp_cr2", "lwp_cr3", "lwp_cs", "lwp_err",
                 "lwp_nivcsw", "lwp_nvcsw", "lwp_oldsigmask", "lwp_pending", "lwp_pi_blocked",
                 "lwp_pi_contested", "lwp_policy", "lwp_proc", "lwp_restart", "lwp_restart_block",
                 "lwp_robust_list", "lwp_rtprio", "lwp_rtslept", "lwp_rtticks", "lwp_sigmask",
                 "lwp_sigqueue", "lwp_sigstk_flags", "lwp_sigstk_size", "lwp_sigstk_sp",
                 "lwp_sigwait", "lwp_ss", "lwp_stack", "lwp_syscall", "lwp_thread", "lwp_tid",
                 "lwp_trapno")  # fmt: skip

    lwp_proc: Proc  # never changes
    lwp_tid: int  # thread id; the pid for the first lwp
    lwp_thread: Thread  # the LWKT thread that runs it
    lwp_stack: KernelStack  # its kernel stack, which holds ctx
    ctx: CpuContext  # user registers
    lwp_cr3: int  # physical address of the top page table of the space it runs in
    lwp_pending: bool  # something is to be done before it returns to the guest: a signal that
    #                    is not blocked, a system call to restart, a mask to put back
    lwp_syscall: int  # number of the system call it is in; -1 when it entered otherwise
    lwp_restart: int  # the errno (ERESTART and its kin) with which the call was left; 0 otherwise
    lwp_restart_block: Callable[[Lwp], int] | None  # how restart_syscall goes on
    lwp_sigmask: int  # blocked signals; bit n - 1 is signal n
    lwp_oldsigmask: int  # what to put back after sigsuspend, ppoll or pselect; -1: nothing
    lwp_sigqueue: SigQueue  # pending signals sent to this thread
    lwp_sigwait: int  # signals that rt_sigtimedwait waits for; 0 outside of it
    lwp_sigstk_sp: int  # the alternate signal stack
    lwp_sigstk_size: int
    lwp_sigstk_flags: int  # as sigaltstack was told: SS_ONSTACK, SS_DISABLE, SS_AUTODISARM
    lwp_trapno: int  # the last exception, for ucontext: vector, error code, address
    lwp_err: int
    lwp_cr2: int
    lwp_cs: int  # its segments, which are USER_CS and USER_SS but between a sigreturn to others,
    lwp_ss: int  # which can't be done, and the signal that comes of it
    lwp_clear_tid: int  # user address that is zeroed and woken when the thread ends; 0 none
    lwp_robust_list: int  # user address of its list of robust futexes; 0 none
    lwp_pi_blocked: UmtxQ | None  # its place in line while it waits for a lock (kern_umtx)
    lwp_pi_contested: dict[UmtxPi, None] | tuple[()] | None  # what it has and others wait for;
    #                                                          None: it ends, and takes no more
    lwp_policy: int  # scheduling class (SCHED_*), with SCHED_RESET_ON_FORK
    lwp_rtprio: int  # real-time priority of its class, 0 none; it may run with a higher one, which
    #                  it has inherited (td_rtprio)
    lwp_rtticks: int  # clock ticks while it was real-time, since it last slept
    lwp_rtslept: int  # lwp_nvcsw when that was counted last
    lwp_cpumask: int  # CPUs it may run on; bit n is CPU n, never 0
    lwp_nvcsw: int  # switches because it slept
    lwp_nivcsw: int  # switches because its slice was over

    def __init__(self, proc: Proc, tid: int, stack: KernelStack, sigqueue: SigQueue) -> None:
        self.lwp_proc = proc
        self.lwp_tid = tid
        self.lwp_stack = stack
        self.ctx = stack.ctx
        self.lwp_cr3 = 0
        self.lwp_pending = False
        self.lwp_syscall = -1
        self.lwp_restart = 0
        self.lwp_restart_block = None
        self.lwp_sigmask = 0
        self.lwp_oldsigmask = -1
        self.lwp_sigqueue = sigqueue
        self.lwp_sigwait = 0
        self.lwp_sigstk_sp = self.lwp_sigstk_size = 0
        self.lwp_sigstk_flags = 0
        self.lwp_trapno = self.lwp_err = self.lwp_cr2 = 0
        self.lwp_cs, self.lwp_ss = USER_CS, USER_SS
        self.lwp_clear_tid = self.lwp_robust_list = 0
        self.lwp_pi_blocked = None
        self.lwp_pi_contested = ()
        self.lwp_policy = self.lwp_rtprio = 0  # SCHED_OTHER
        self.lwp_rtslept = self.lwp_rtticks = 0
        self.lwp_cpumask = (1 << proc.kernel.ncpu) - 1
        self.lwp_nvcsw = self.lwp_nivcsw = 0


class Proc:
    """A process. Fulfils `vm.vm_proc.VmProc`."""

    __slots__ = ("kernel", "p_args", "p_auxv", "p_changed", "p_children", "p_comm", "p_contsig",
                 "p_coredump_filter", "p_cru", "p_dumpable", "p_env", "p_execpath", "p_exitkq",
                 "p_exitsig", "p_fd", "p_flags", "p_fs", "p_ioprio", "p_limit", "p_lowmemkill",
                 "p_lwps", "p_majflt", "p_mcekill", "p_membarrier", "p_minflt", "p_nice",
                 "p_nonewprivs", "p_oom_score_adj", "p_oom_score_min", "p_pdeathsig",
                 "p_personality", "p_pgrp", "p_pid", "p_pptr", "p_ru", "p_semundo", "p_sigacts",
                 "p_sigkq", "p_sigqueue", "p_start_ns", "p_stat", "p_stopsig", "p_subreaper",
                 "p_sysent", "p_textvp", "p_thpdisable", "p_timers", "p_timerslack",
                 "p_timerslack0", "p_ucred", "p_vmspace", "p_xstat", "p_zombies")  # fmt: skip

    kernel: Kernel  # the machine it lives in; never changes
    p_pid: int  # never changes
    p_stat: int  # SIDL … SZOMB
    p_flags: int  # P_*
    p_pptr: Proc  # the parent; init (its own parent) takes over orphans
    p_children: dict[int, Proc]  # by pid, zombies included, oldest first
    p_zombies: dict[int, Proc]  # those of them that wait to be waited for
    p_changed: dict[int, Proc]  # those that stopped or went on and have not been waited for
    p_pgrp: Pgrp  # its process group, and through it the session
    p_lwps: dict[int, Lwp]  # its threads by id; the first one is the oldest
    p_vmspace: Vmspace  # its address space; another one after exec
    p_fd: FileDesc  # descriptors
    p_fs: FsInfo  # current and root directory, umask
    p_sigacts: SigActs  # what each signal does
    p_sigqueue: SigQueue  # pending signals sent to the process
    p_exitkq: Kqinfo | None  # who polls a pidfd of it; None until somebody does
    p_sigkq: Kqinfo | None  # who polls a signalfd; None until somebody does
    p_ucred: Ucred  # replaced as a whole
    p_limit: list[tuple[int, int]]  # (soft, hard) by RLIMIT_*
    p_nice: int  # -20 … 19
    p_ioprio: int  # ioprio_set(2): class << 13 | level; class 0: by the nice level
    p_comm: str  # the last component of what it runs, at most 15 bytes
    p_coredump_filter: int  # what memory a core has: bits of core(5), set by way of /proc
    p_args: tuple[int, int]  # from where to where in user memory exec put the argument strings
    p_env: tuple[int, int]  # the environment's likewise
    p_auxv: bytes  # the auxiliary vector it was given
    p_execpath: str  # absolute path of what it runs
    p_textvp: Vnode | None  # the file it runs, referenced
    p_sysent: dict[int, Callable[[Lwp, memoryview], int]]  # system calls of its ABI, by number
    p_start_ns: int  # the machine's monotonic clock at fork
    p_minflt: int
    p_majflt: int
    p_lowmemkill: bool  # it is being killed because memory is exhausted
    p_oom_score_adj: int  # see VmProc; set by way of /proc
    p_oom_score_min: int  # how low it may go without privileges
    p_ru: Rusage  # what its dead threads have used
    p_cru: Rusage  # what its dead and waited-for children have used
    p_xstat: int  # wait status, valid once it stopped or died
    p_stopsig: int  # the signal that stopped it
    p_contsig: bool  # it was continued and nobody has waited for that yet
    p_exitsig: int  # what the parent is sent at exit; SIGCHLD, or what clone said, 0 nothing
    p_semundo: SemUndoList | None  # semaphores that its end puts right; None until it has any
    p_timers: ProcTimers | None  # interval and POSIX timers; None until it has one
    p_pdeathsig: int  # prctl(PR_SET_PDEATHSIG): sent when the parent dies
    p_dumpable: int  # prctl(PR_SET_DUMPABLE)
    p_nonewprivs: bool  # prctl(PR_SET_NO_NEW_PRIVS)
    p_subreaper: bool  # prctl(PR_SET_CHILD_SUBREAPER): orphans below it become its children
    p_personality: int  # personality(2)
    p_timerslack: int  # prctl(PR_SET_TIMERSLACK), in ns
    p_timerslack0: int  # what that was in the parent at fork: the default
    p_mcekill: int  # prctl(PR_MCE_KILL)
    p_membarrier: int  # what it has registered by membarrier(2); not kept by exec
    p_thpdisable: bool  # prctl(PR_SET_THP_DISABLE)

    def __init__(self, kernel: Kernel, pid: int) -> None:
        self.kernel = kernel
        self.p_pid = pid
        self.p_stat = SIDL
        self.p_flags = 0
        self.p_exitkq = self.p_sigkq = None
        self.p_children = {}
        self.p_zombies = {}
        self.p_changed = {}
        self.p_lwps = {}
        self.p_nice = self.p_ioprio = 0
        self.p_comm = ""
        self.p_args = self.p_env = (0, 0)
        self.p_auxv = b""
        self.p_coredump_filter = COREDUMP_FILTER
        self.p_oom_score_adj = self.p_oom_score_min = 0
        self.p_execpath = ""
        self.p_textvp = None
        self.p_minflt = self.p_majflt = 0
        self.p_lowmemkill = False
        self.p_ru = Rusage()
        self.p_cru = Rusage()
        self.p_xstat = 0
        self.p_stopsig = 0
        self.p_contsig = False
        self.p_exitsig = 0
        self.p_timers = None
        self.p_semundo = None
        self.p_pdeathsig = 0
        self.p_dumpable = 1
        self.p_nonewprivs = self.p_subreaper = False
        self.p_personality = 0
        self.p_timerslack = self.p_timerslack0 = 50_000
        self.p_mcekill = 2  # PR_MCE_KILL_DEFAULT
        self.p_membarrier = 0
        self.p_thpdisable = False

    @property
    def p_system(self) -> bool:
        """The kernel's own: never killed for memory, has no program."""
        return self.p_flags & P_SYSTEM != 0

    @p_system.setter
    def p_system(self, value: bool) -> None:
        self.p_flags = self.p_flags & ~P_SYSTEM | (P_SYSTEM if value else 0)

    def p_rlimit(self, which: int) -> int:
        """The soft limit, RLIM_INFINITY without one."""
        return self.p_limit[which][0]

    @property
    def p_session(self) -> Session:
        return self.p_pgrp.pg_session

    @property
    def p_mainlwp(self) -> Lwp:
        """Its oldest thread. It has one unless it is a zombie or init."""
        return next(iter(self.p_lwps.values()))

    def p_ppid(self) -> int:
        """What getppid answers."""
        return self.p_pptr.p_pid


def default_limits() -> list[tuple[int, int]]:
    """Linux's defaults, for init. Programs from outside have the limits of who starts them."""
    inf = (RLIM_INFINITY, RLIM_INFINITY)
    limits = [inf] * RLIM_NLIMITS
    limits[RLIMIT_STACK] = (8 << 20, RLIM_INFINITY)
    limits[RLIMIT_CORE] = (0, RLIM_INFINITY)
    limits[RLIMIT_NPROC] = (THREADS_MAX // 2, THREADS_MAX // 2)
    limits[RLIMIT_NOFILE] = (1024, 1 << 20)
    limits[RLIMIT_MEMLOCK] = (8 << 20, 8 << 20)
    limits[RLIMIT_SIGPENDING] = (32_000, 32_000)
    limits[RLIMIT_MSGQUEUE] = (819_200, 819_200)
    limits[RLIMIT_NICE] = limits[RLIMIT_RTPRIO] = (0, 0)
    return limits


def maxrss(p: Proc) -> int:
    """The largest resident set of `p`, which has an address space, up to now: KiB."""
    return max(p.p_ru.ru_maxrss, p.p_vmspace.vm_pmap.pm_stats.resident_count * 4)


def calcru(p: Proc) -> Rusage:
    """What `p` itself has used up to now, its live threads included."""
    ru = Rusage()
    ru.add(p.p_ru)
    ru.ru_minflt += p.p_minflt
    ru.ru_majflt += p.p_majflt
    if p.p_stat != SZOMB and not p.p_flags & P_SYSTEM:
        ru.ru_maxrss = maxrss(p)
    for lp in p.p_lwps.values():
        td = lp.lwp_thread
        ru.ru_utime_ns += td.user_ns
        ru.ru_stime_ns += td.sys_ns
        ru.ru_nvcsw += lp.lwp_nvcsw
        ru.ru_nivcsw += lp.lwp_nivcsw
    return ru


# ---- process groups ------------------------------------------------------------------------------


def enterpgrp(p: Proc, pgid: int, new_session: bool) -> None:
    """Move `p` to group `pgid`, which is made when it does not exist, in a session of its own when
    `new_session` says so. The caller has checked that `p` may."""
    kernel = p.kernel
    pgrp = kernel.pgrps.get(pgid)
    if pgrp is None:
        session = Session(p) if new_session else p.p_pgrp.pg_session
        pgrp = Pgrp(pgid, session)
        session.s_pgrps[pgid] = pgrp
        kernel.pgrps[pgid] = pgrp
        if new_session:
            kernel.sids[pgid] = session
            p.p_flags &= ~P_CONTROLT
    elif pgrp is p.p_pgrp:
        return
    # The members' right to be continued is counted before the move and after it, so that a group
    # that would only for a moment be orphaned is not told.
    old = p.p_pgrp
    fixjobc(p, pgrp, entering=True)
    fixjobc(p, old, entering=False)
    _leave(p)
    p.p_pgrp = pgrp
    pgrp.pg_members[p.p_pid] = p


def joinpgrp(p: Proc, pgrp: Pgrp) -> None:
    """Enter a new process in its parent's group (fork). Its own children don't exist yet."""
    p.p_pgrp = pgrp
    pgrp.pg_members[p.p_pid] = p
    parent = p.p_pptr.p_pgrp
    if parent is not pgrp and parent.pg_session is pgrp.pg_session:
        pgrp.pg_jobc += 1


def leavepgrp(p: Proc) -> None:
    """Take a reaped process out of its group."""
    _leave(p)


def _leave(p: Proc) -> None:
    pgrp = p.p_pgrp
    del pgrp.pg_members[p.p_pid]
    if not pgrp.pg_members:
        kernel = p.kernel
        del kernel.pgrps[pgrp.pg_id]
        session = pgrp.pg_session
        del session.s_pgrps[pgrp.pg_id]
        if not session.s_pgrps:
            del kernel.sids[session.s_sid]
        if session.s_ttyp is not None:
            session.s_ttyp.pgrp_gone(pgrp)


def fixjobc(p: Proc, pgrp: Pgrp, entering: bool) -> None:
    """Adjust job control counts for `p` entering or leaving `pgrp`: its parent may qualify that
    group, and `p` may qualify the groups of its children. A group that becomes orphaned while a
    member is stopped is told (orphanpg)."""
    session = pgrp.pg_session
    parent = p.p_pptr.p_pgrp
    if parent is not pgrp and parent.pg_session is session:
        _count(pgrp, entering)
    for child in p.p_children.values():
        hers = child.p_pgrp
        if hers is not pgrp and hers.pg_session is session and child.p_stat != SZOMB:
            _count(hers, entering)


def _count(pgrp: Pgrp, entering: bool) -> None:
    if entering:
        pgrp.pg_jobc += 1
        return
    pgrp.pg_jobc -= 1
    if pgrp.pg_jobc == 0:
        orphanpg(pgrp)


def orphanpg(pgrp: Pgrp) -> None:
    """`pgrp` has nobody left who could continue it. When a member is stopped, all get SIGHUP and
    SIGCONT, or they would stay stopped for ever."""
    if any(q.p_stat == SSTOP for q in pgrp.pg_members.values()):
        from dfvm.kern.kern_sig import SIGCONT, SIGHUP, pgsignal

        pgsignal(pgrp, SIGHUP)
        pgsignal(pgrp, SIGCONT)
