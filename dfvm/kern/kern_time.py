"""Clocks, sleeping, and timers.

The machine has three sources of time: the host's real time, the time since boot (the scheduler's
monotonic clock), and the CPU time of threads and processes. Every timer, be it alarm, setitimer,
timer_create or RLIMIT_CPU, is a Ktimer on one of them, and every Ktimer is a callout: on a clock
that runs with the host exactly, on CPU time by looking again after as much real time as is
missing, since CPU time can't pass faster than that.

Numbers, structures and errors are Linux's (x86-64).

Source: DragonFly sys/kern/kern_time.c and kern_timeout.c; Linux kernel/time/posix-timers.c,
posix-cpu-timers.c, itimer.c, hrtimer.c for the behaviour.
"""

from __future__ import annotations

from struct import Struct
from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import NS, TIMESPEC
from dfvm.kern.kern_errno import (
    EAGAIN,
    EINVAL,
    EOPNOTSUPP,
    EPERM,
    err,
)
from dfvm.kern.kern_sig import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    NSIG,
    SI_TIMER,
    SIGALRM,
    SIGKILL,
    SIGPROF,
    SIGVTALRM,
    SIGXCPU,
    Siginfo,
    ksignal,
    lwpsignal,
)
from dfvm.kern.proc import RLIMIT_CPU, RLIMIT_SIGPENDING, SZOMB, calcru
from dfvm.kern.sys_signal import queued_signals
from dfvm.lwkt.kern_clock import TICK_NS
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, copyout
from dfvm.vm.vm_proc import RLIM_INFINITY

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp, Proc
    from dfvm.lwkt.kern_clock import Callout

CLOCK_REALTIME: Final = 0
CLOCK_MONOTONIC: Final = 1
CLOCK_PROCESS_CPUTIME_ID: Final = 2
CLOCK_THREAD_CPUTIME_ID: Final = 3
CLOCK_MONOTONIC_RAW: Final = 4
CLOCK_REALTIME_COARSE: Final = 5
CLOCK_MONOTONIC_COARSE: Final = 6
CLOCK_BOOTTIME: Final = 7
CLOCK_REALTIME_ALARM: Final = 8
CLOCK_BOOTTIME_ALARM: Final = 9
CLOCK_TAI: Final = 11

# A negative clock names the CPU time of a process or thread: (~pid << 3) | thread | which.
CPUCLOCK_PERTHREAD: Final = 4
CPUCLOCK_PROF: Final = 0  # user and system time
CPUCLOCK_VIRT: Final = 1  # user time
CPUCLOCK_SCHED: Final = 2  # what was spent on the CPU, which here is PROF

TIMER_ABSTIME: Final = 1

ITIMER_REAL: Final = 0
ITIMER_VIRTUAL: Final = 1
ITIMER_PROF: Final = 2

SIGEV_SIGNAL: Final = 0
SIGEV_NONE: Final = 1
SIGEV_THREAD: Final = 2
SIGEV_THREAD_ID: Final = 4

USER_HZ: Final = 100  # clock ticks in a second, as times() counts
TIME_MAX: Final = (1 << 63) - 1  # ns; later times saturate, as the kernel's ktime_t does
LONGEST_NS: Final = 1 << 61  # what a sleep is cut into, when it is longer

ITIMERSPEC: Final = Struct("<qqqq")  # interval, value: seconds and ns each
_TMS: Final = Struct("<qqqq")
_SIGEVENT: Final = Struct("<Qiii44x")

_UNNOTICED_NS: Final = 1_000_000  # least time to a timer's next expiry while nobody notices

# Clocks that would wake a sleeping computer, on one that has no alarm clock to do so.
ALARMS: Final = (CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM)
_COARSE: Final = (CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE)
_REAL: Final = (CLOCK_REALTIME, CLOCK_REALTIME_COARSE, CLOCK_TAI)
_WALL: Final = (CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI)  # have timers
_ANY_WALL: Final = (*_WALL, CLOCK_MONOTONIC_RAW, *_COARSE)


# ---- structures in user memory -------------------------------------------------------------------


def copyin_timespec(lp: Lwp, addr: int) -> int:
    """A struct timespec as ns, at most TIME_MAX.

    :raises OSError: EFAULT, EINVAL for negative seconds or ns out of range.
    """
    seconds, ns = TIMESPEC.unpack(copyin(lp.lwp_proc.p_vmspace, addr, 16))
    return timespec_ns(seconds, ns)


def timespec_ns(seconds: int, ns: int) -> int:
    """The fields of a struct timespec as ns, at most TIME_MAX. EINVAL as copyin_timespec."""
    if seconds < 0 or not 0 <= ns < NS:
        raise err(EINVAL)
    return min(seconds * NS + ns, TIME_MAX)


def copyout_timespec(lp: Lwp, ns: int, addr: int) -> None:
    """Write `ns` as a struct timespec."""
    copyout(lp.lwp_proc.p_vmspace, TIMESPEC.pack(ns // NS, ns % NS), addr)


def copyin_timeval(lp: Lwp, addr: int) -> int:
    """A struct timeval as ns, at most TIME_MAX; errors as copyin_timespec."""
    seconds, us = TIMESPEC.unpack(copyin(lp.lwp_proc.p_vmspace, addr, 16))
    return timespec_ns(seconds, us * 1000)


# ---- clocks --------------------------------------------------------------------------------------


def cputime_ns(p: Proc, which: int = CPUCLOCK_PROF) -> int:
    """CPU time that `p` and its threads, live and dead, have used."""
    ru = calcru(p)
    return ru.ru_utime_ns + (0 if which == CPUCLOCK_VIRT else ru.ru_stime_ns)


def clock_reader(lp: Lwp, clock: int) -> Callable[[], int]:
    """The function that reads `clock` in ns.

    :raises OSError: EINVAL when there is no such clock for `lp`.
    """
    p = lp.lwp_proc
    if clock in _REAL:
        return time_ns
    if clock in _ANY_WALL:
        sched = p.kernel.sched
        return lambda: sched.uptime_ns
    if clock == CLOCK_PROCESS_CPUTIME_ID:
        return lambda: cputime_ns(p)
    if clock == CLOCK_THREAD_CPUTIME_ID:
        td = lp.lwp_thread
        return lambda: td.cpu_ns
    if clock < 0 and clock & 3 <= CPUCLOCK_SCHED:
        return _cpu_clock_reader(lp, ~(clock >> 3), clock & 3, bool(clock & CPUCLOCK_PERTHREAD))
    raise err(EINVAL)


def _cpu_clock_reader(lp: Lwp, pid: int, which: int, thread: bool) -> Callable[[], int]:
    p = lp.lwp_proc
    if thread:
        target = lp if pid == 0 else p.p_lwps.get(pid)
        if target is None:  # only threads of one's own process
            raise err(EINVAL)
        td = target.lwp_thread
        if which == CPUCLOCK_VIRT:
            return lambda: td.user_ns
        return lambda: td.cpu_ns
    other = p if pid == 0 else p.kernel.procs.get(pid)
    if other is None:
        raise err(EINVAL)
    return lambda: cputime_ns(other, which)


def clock_gettime(lp: Lwp, clock: int) -> int:
    """What `clock` shows, in ns."""
    now = clock_reader(lp, clock)()
    return now - now % TICK_NS if clock in _COARSE else now


def sys_clock_gettime(lp: Lwp, clock: int, tp: int) -> int:
    """Read a clock."""
    clock = s32(clock)
    # The two that programs read all the time, without a detour.
    if clock == CLOCK_MONOTONIC:
        now = lp.lwp_proc.kernel.sched.uptime_ns
    elif clock == CLOCK_REALTIME:
        now = time_ns()
    else:
        now = clock_gettime(lp, clock)
    copyout(lp.lwp_proc.p_vmspace, TIMESPEC.pack(now // NS, now % NS), tp)
    return 0


def sys_clock_getres(lp: Lwp, clock: int, tp: int) -> int:
    """How fine a clock is."""
    clock = s32(clock)
    clock_reader(lp, clock)
    if tp:
        copyout_timespec(lp, TICK_NS if clock in _COARSE else 1, tp)
    return 0


def sys_clock_settime(lp: Lwp, clock: int, tp: int) -> int:
    """Nobody in the machine may set the host's clock, not even root; the others can't be set."""
    clock = s32(clock)
    if clock > CLOCK_REALTIME:
        raise err(EINVAL)
    copyin_timespec(lp, tp)
    if clock < 0:
        clock_reader(lp, clock)
    raise err(EPERM)


def sys_gettimeofday(lp: Lwp, tv: int, tz: int) -> int:
    """Real time in µs; the time zone is the C library's business and zero here."""
    space = lp.lwp_proc.p_vmspace
    if tv:
        us = time_ns() // 1000
        copyout(space, TIMESPEC.pack(us // 1_000_000, us % 1_000_000), tv)
    if tz:
        copyout(space, bytes(8), tz)
    return 0


def sys_settimeofday(lp: Lwp, tv: int, tz: int) -> int:
    """As clock_settime."""
    if tv:
        copyin_timeval(lp, tv)
    if tz:
        copyin(lp.lwp_proc.p_vmspace, tz, 8)
    raise err(EPERM)


def sys_time(lp: Lwp, tloc: int) -> int:
    """Real time in seconds."""
    now = time_ns() // NS
    if tloc:
        copyout(lp.lwp_proc.p_vmspace, now.to_bytes(8, "little"), tloc)
    return now


def sys_times(lp: Lwp, buf: int) -> int:
    """CPU times of the process and of the children it has waited for; returns the time since
    boot. All in clock ticks."""
    p = lp.lwp_proc
    if buf:
        ru, cru = calcru(p), p.p_cru
        ticks = [
            ns * USER_HZ // NS
            for ns in (ru.ru_utime_ns, ru.ru_stime_ns, cru.ru_utime_ns, cru.ru_stime_ns)
        ]
        copyout(p.p_vmspace, _TMS.pack(*ticks), buf)
    return p.kernel.sched.uptime_ns * USER_HZ // NS


# ---- sleeping ------------------------------------------------------------------------------------


def _sleep_until(lp: Lwp, read: Callable[[], int], target: int, on_cpu: bool) -> int:
    """Sleep until `read` shows `target`, in ns. Returns 0, or ERESTART when a signal came."""
    sched = lp.lwp_proc.kernel.sched
    while (left := target - read()) > 0:
        if on_cpu:
            left = max(left, TICK_NS)
        error = sched.tsleep_ns(lp.lwp_thread, PCATCH, "nanslp", min(left, LONGEST_NS))
        if error < 0:
            return error
    return 0


def _sleep(lp: Lwp, read: Callable[[], int], target: int, rmtp: int, on_cpu: bool) -> int:
    """A relative sleep, which ends at `target`. Cut short, it tells what is left at `rmtp`, and
    goes on when the signal has no handler."""
    if _sleep_until(lp, read, target, on_cpu):
        left = target - read()
        if left <= 0:
            return 0
        if rmtp:
            copyout_timespec(lp, left, rmtp)
        lp.lwp_restart_block = lambda again: _sleep(again, read, target, rmtp, on_cpu)
        raise err(ERESTART_RESTARTBLOCK)
    return 0


def sys_nanosleep(lp: Lwp, rqtp: int, rmtp: int) -> int:
    """Sleep for a time."""
    ns = copyin_timespec(lp, rqtp)
    read = clock_reader(lp, CLOCK_MONOTONIC)
    return _sleep(lp, read, min(read() + ns, TIME_MAX), rmtp, False)


def sys_clock_nanosleep(lp: Lwp, clock: int, flags: int, rqtp: int, rmtp: int) -> int:
    """Sleep for a time, or until a time (TIMER_ABSTIME), on a clock."""
    clock = s32(clock)
    if clock in ALARMS:
        raise err(EOPNOTSUPP)
    read = clock_reader(lp, clock)
    if clock == CLOCK_THREAD_CPUTIME_ID or (clock in _ANY_WALL and clock not in _WALL):
        raise err(EOPNOTSUPP)
    ns = copyin_timespec(lp, rqtp)
    on_cpu = clock < 0 or clock == CLOCK_PROCESS_CPUTIME_ID
    if clock < 0 and clock & CPUCLOCK_PERTHREAD and ~(clock >> 3) in (0, lp.lwp_tid):
        raise err(EINVAL)  # a thread that sleeps does not use the time it waits for
    if s32(flags) & TIMER_ABSTIME:
        if _sleep_until(lp, read, ns, on_cpu) and read() < ns:
            raise err(ERESTARTNOHAND)
        return 0
    return _sleep(lp, read, min(read() + ns, TIME_MAX), rmtp, on_cpu)


# ---- timers --------------------------------------------------------------------------------------


class Ktimer:
    """A timer on any clock: calls `fire` when the clock reaches `expiry`, and then every
    `interval` ns. Expirations that were missed are one call."""

    __slots__ = ("callout", "expiry", "fire", "interval", "on_cpu", "proc", "read")

    proc: Proc  # whose it is
    read: Callable[[], int]  # the clock, in ns
    on_cpu: bool  # the clock is a CPU time
    fire: Callable[[int], bool]  # told how many expirations there were since the last call;
    #                              answers whether anybody notices
    expiry: int  # when it expires next, on its clock; 0: disarmed
    interval: int  # ns between expirations; 0: only one
    callout: Callout | None  # pending iff armed, unless the timer is of the silent sort

    def __init__(
        self, proc: Proc, read: Callable[[], int], on_cpu: bool, fire: Callable[[int], bool]
    ) -> None:
        self.proc = proc
        self.read = read
        self.on_cpu = on_cpu
        self.fire = fire
        self.expiry = 0
        self.interval = 0
        self.callout = None

    def left(self) -> int:
        """ns until it expires; 0 when it is disarmed. One that has expired but not been served
        has the least time there is left."""
        return max(self.expiry - self.read(), 1) if self.expiry else 0

    def set(self, expiry: int, interval: int) -> None:
        """Arm it for `expiry` on its clock, or disarm it (0)."""
        self.stop()
        self.interval = interval
        self.expiry = expiry
        if expiry:
            self._arm(0)

    def stop(self) -> None:
        """Disarm it."""
        self.expiry = 0
        if self.callout is not None:
            self.callout.stop()
            self.callout = None

    def _arm(self, least_ns: int) -> None:
        delay = max(self.expiry - self.read(), least_ns)
        if self.on_cpu:
            delay = max(delay, TICK_NS)
        sched = self.proc.kernel.sched
        self.callout = sched.callout(min(delay, LONGEST_NS), self._expire)

    def _expire(self) -> None:
        """Callout: look at the clock."""
        self.callout = None
        if self.proc.p_stat == SZOMB:
            self.expiry = 0
            return
        late = self.read() - self.expiry
        if late < 0:
            self._arm(0)
            return
        count = 1
        if self.interval:
            count += late // self.interval
            self.expiry += count * self.interval
        else:
            self.expiry = 0
        noticed = self.fire(count)
        if self.expiry and self.callout is None:
            # A signal that is blocked or ignored need not be sent a million times a second.
            self._arm(0 if noticed else _UNNOTICED_NS)


class PosixTimer:
    """A timer of timer_create."""

    __slots__ = ("clock", "info", "ktimer", "notify", "signo", "target", "timerid", "value")

    timerid: int
    clock: int  # CLOCK_*
    ktimer: Ktimer
    notify: int  # SIGEV_*
    signo: int  # the signal it sends
    value: int  # what the signal carries along
    target: Lwp | None  # SIGEV_THREAD_ID: the thread that gets it
    info: Siginfo | None  # the last signal sent; its si_overrun counts until it is taken
    #                       A timer has one signal in the queue at most: see fire

    def __init__(
        self, timerid: int, clock: int, notify: int, signo: int, value: int, target: Lwp | None
    ) -> None:
        self.timerid = timerid
        self.clock = clock
        self.notify = notify
        self.signo = signo
        self.value = value
        self.target = target
        self.info = None

    def fire(self, count: int) -> bool:
        """Send the signal. One that is still queued stands for this expiration, too."""
        if self.notify & ~SIGEV_THREAD_ID == SIGEV_NONE:
            return False
        p = self.ktimer.proc
        queue = p.p_sigqueue if self.target is None else self.target.lwp_sigqueue
        info = self.info
        if info is not None and info in queue.infos.get(self.signo, ()):
            if info.si_stale:
                info.si_stale, info.si_overrun = False, -1
            info.si_overrun = min(info.si_overrun + count, (1 << 31) - 1)
            return False  # it has not noticed yet
        info = self.info = Siginfo(self.signo, SI_TIMER, value=self.value)
        info.si_timerid = self.timerid
        info.si_overrun = min(count - 1, (1 << 31) - 1)
        if self.target is None:
            ksignal(p, self.signo, info)
        else:
            lwpsignal(self.target, self.signo, info)
        return info in queue.infos.get(self.signo, ())

    def forget(self) -> None:
        """It is set again, or deleted: a signal that is still queued is not its any more."""
        if self.info is not None:
            self.info.si_stale = True

    def overrun(self) -> int:
        """Expirations beyond the first that the last signal stood for."""
        return 0 if self.info is None or self.info.si_stale else self.info.si_overrun


class ProcTimers:
    """The timers of a process: made when it first has one, not inherited by fork."""

    __slots__ = ("cpulimit", "itimers", "nextid", "posix")

    itimers: list[Ktimer]  # by ITIMER_*
    posix: dict[int, PosixTimer]  # by timer id
    nextid: int  # the id to try next
    cpulimit: Ktimer  # RLIMIT_CPU

    def __init__(self, p: Proc) -> None:
        sched = p.kernel.sched

        def sender(sig: int) -> Callable[[int], bool]:
            def fire(count: int) -> bool:
                before = p.p_sigqueue.pending
                ksignal(p, sig)
                return p.p_sigqueue.pending != before

            return fire

        self.itimers = [
            Ktimer(p, lambda: sched.uptime_ns, False, sender(SIGALRM)),
            Ktimer(p, lambda: cputime_ns(p, CPUCLOCK_VIRT), True, sender(SIGVTALRM)),
            Ktimer(p, lambda: cputime_ns(p), True, sender(SIGPROF)),
        ]
        self.cpulimit = Ktimer(p, lambda: cputime_ns(p), True, lambda count: _cpu_exceeded(p))
        self.posix = {}
        self.nextid = 0


def proc_timers(p: Proc) -> ProcTimers:
    """The timers of `p`, made when it has none."""
    timers = p.p_timers
    if timers is None:
        timers = p.p_timers = ProcTimers(p)
    return timers


def timers_fork(p: Proc) -> None:
    """`p` is a new process: it has no timers but the limit on CPU time it has inherited."""
    p.p_timers = None
    if p.p_limit[RLIMIT_CPU][0] != RLIM_INFINITY:
        update_cpu_limit(p)


def timers_exec(p: Proc) -> None:
    """exec: POSIX timers are gone with the program; interval timers go on."""
    if p.p_timers is not None:
        for timer in p.p_timers.posix.values():
            timer.forget()
            timer.ktimer.stop()
        p.p_timers.posix.clear()


def timers_exit(p: Proc) -> None:
    """exit: nothing of a process expires any more."""
    if p.p_timers is not None:
        timers_exec(p)
        for ktimer in (*p.p_timers.itimers, p.p_timers.cpulimit):
            ktimer.stop()
        p.p_timers = None


def update_cpu_limit(p: Proc) -> None:
    """RLIMIT_CPU of `p` was set or inherited: be there when it is reached. A limit of 0 s is
    taken for 1 s, as it can't be reached again."""
    soft = p.p_limit[RLIMIT_CPU][0]
    if soft == RLIM_INFINITY or soft > TIME_MAX // NS:
        if p.p_timers is not None:
            p.p_timers.cpulimit.stop()
        return
    proc_timers(p).cpulimit.set(max(soft, 1) * NS, 0)


def _cpu_exceeded(p: Proc) -> bool:
    """Past the soft limit: SIGXCPU every second; past the hard one: SIGKILL."""
    soft, hard = p.p_limit[RLIMIT_CPU]
    if cputime_ns(p) >= max(hard, 1) * NS:
        ksignal(p, SIGKILL)
        return True
    ksignal(p, SIGXCPU)
    p.p_limit[RLIMIT_CPU] = (soft + 1, hard)
    proc_timers(p).cpulimit.set((soft + 1) * NS, 0)
    return True


# ---- interval timers -----------------------------------------------------------------------------


def _itimer_pack(p: Proc, which: int) -> bytes:
    if p.p_timers is None:
        return bytes(32)
    timer = p.p_timers.itimers[which]
    interval, left = timer.interval // 1000, -(-timer.left() // 1000)
    return ITIMERSPEC.pack(*divmod(interval, 1_000_000), *divmod(left, 1_000_000))


def _itimer_set(p: Proc, which: int, value: int, interval: int) -> None:
    if value or p.p_timers is not None:
        timer = proc_timers(p).itimers[which]
        if not value and which == ITIMER_REAL:
            interval = 0
        timer.set(min(timer.read() + value, TIME_MAX) if value else 0, interval)


def sys_getitimer(lp: Lwp, which: int, uvalue: int) -> int:
    """Time left on an interval timer, and its interval."""
    which = s32(which)
    if which not in (ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF):
        raise err(EINVAL)
    copyout(lp.lwp_proc.p_vmspace, _itimer_pack(lp.lwp_proc, which), uvalue)
    return 0


def sys_setitimer(lp: Lwp, which: int, uvalue: int, uold: int) -> int:
    """Set an interval timer; no value is a zero one."""
    which = s32(which)
    p = lp.lwp_proc
    interval = value = 0
    if uvalue:
        i_sec, i_us, v_sec, v_us = ITIMERSPEC.unpack(copyin(p.p_vmspace, uvalue, 32))
        interval, value = timespec_ns(i_sec, i_us * 1000), timespec_ns(v_sec, v_us * 1000)
    if which not in (ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF):
        raise err(EINVAL)
    old = _itimer_pack(p, which)
    _itimer_set(p, which, value, interval)
    if uold:
        copyout(p.p_vmspace, old, uold)
    return 0


def sys_alarm(lp: Lwp, seconds: int) -> int:
    """setitimer for people with time; returns the seconds that were left, not 0 if any time
    was."""
    p = lp.lwp_proc
    left = 0
    if p.p_timers is not None:
        us = -(-p.p_timers.itimers[ITIMER_REAL].left() // 1000)
        left, us = divmod(us, 1_000_000)
        if us >= 500_000 or (not left and us):
            left += 1
    _itimer_set(p, ITIMER_REAL, u32(seconds) * NS, 0)
    return left


# ---- POSIX timers --------------------------------------------------------------------------------


def sys_timer_create(lp: Lwp, clock: int, usevp: int, utimerid: int) -> int:
    """Make a timer on a clock; it says what to do when it expires."""
    clock = s32(clock)
    p = lp.lwp_proc
    space = p.p_vmspace
    value, signo, notify, tid = 0, SIGALRM, SIGEV_SIGNAL, 0
    if usevp:
        value, signo, notify, tid = _SIGEVENT.unpack(copyin(space, usevp, _SIGEVENT.size))
    if clock in ALARMS:
        raise err(EOPNOTSUPP)
    read = clock_reader(lp, clock)
    if clock in _ANY_WALL and clock not in _WALL:
        raise err(EOPNOTSUPP)
    timers = proc_timers(p)
    if len(timers.posix) + queued_signals(p) >= p.p_rlimit(RLIMIT_SIGPENDING):
        raise err(EAGAIN)
    timerid = timers.nextid
    while timerid in timers.posix:
        timerid = timerid + 1 & 0x7FFF_FFFF
    target = None
    if notify == SIGEV_SIGNAL | SIGEV_THREAD_ID:
        target = p.p_lwps.get(tid)
        if target is None:
            raise err(EINVAL)
    elif notify not in (SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD):
        raise err(EINVAL)
    if notify != SIGEV_NONE and not 1 <= signo <= NSIG:
        raise err(EINVAL)
    if not usevp:
        value = timerid
    copyout(space, timerid.to_bytes(4, "little"), utimerid)
    timer = PosixTimer(timerid, clock, notify, signo, value, target)
    on_cpu = clock < 0 or clock in (CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID)
    timer.ktimer = Ktimer(p, read, on_cpu, timer.fire)
    timers.posix[timerid] = timer
    timers.nextid = timerid + 1 & 0x7FFF_FFFF
    return 0


def _find_timer(lp: Lwp, timerid: int) -> PosixTimer:
    timers = lp.lwp_proc.p_timers
    timer = None if timers is None else timers.posix.get(s32(timerid))
    if timer is None:
        raise err(EINVAL)
    return timer


def _timer_pack(timer: PosixTimer) -> bytes:
    ktimer = timer.ktimer
    return ITIMERSPEC.pack(*divmod(ktimer.interval, NS), *divmod(ktimer.left(), NS))


def sys_timer_settime(lp: Lwp, timerid: int, flags: int, unew: int, uold: int) -> int:
    """Arm or disarm a timer."""
    space = lp.lwp_proc.p_vmspace
    if not unew:
        raise err(EINVAL)
    i_sec, i_ns, v_sec, v_ns = ITIMERSPEC.unpack(copyin(space, unew, 32))
    interval, value = timespec_ns(i_sec, i_ns), timespec_ns(v_sec, v_ns)
    timer = _find_timer(lp, timerid)
    old = _timer_pack(timer)
    ktimer = timer.ktimer
    if value and not s32(flags) & TIMER_ABSTIME:
        value = min(value + ktimer.read(), TIME_MAX)
    timer.forget()
    ktimer.set(value, interval if value or ktimer.on_cpu else 0)
    if uold:
        copyout(space, old, uold)
    return 0


def sys_timer_gettime(lp: Lwp, timerid: int, ucur: int) -> int:
    """Time left on a timer, and its interval."""
    copyout(lp.lwp_proc.p_vmspace, _timer_pack(_find_timer(lp, timerid)), ucur)
    return 0


def sys_timer_getoverrun(lp: Lwp, timerid: int) -> int:
    """Expirations beyond the first that the last signal stood for."""
    return _find_timer(lp, timerid).overrun()


def sys_timer_delete(lp: Lwp, timerid: int) -> int:
    """Remove a timer."""
    timer = _find_timer(lp, timerid)
    timer.forget()
    timer.ktimer.stop()
    timers = lp.lwp_proc.p_timers
    assert timers is not None
    del timers.posix[timer.timerid]
    return 0
