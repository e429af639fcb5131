"""Clocks, sleeps and timers."""

from __future__ import annotations

import time
from errno import EFAULT, EINVAL, EOPNOTSUPP, EPERM
from struct import pack, unpack
from typing import TYPE_CHECKING

import pytest

from dfvm.kern import kern_time as kt
from dfvm.kern.kern_resource import sys_prlimit64, sys_setrlimit
from dfvm.kern.kern_sig import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    SIG_IGN,
    SIGALRM,
    SIGKILL,
    SIGPROF,
    SIGUSR1,
    SIGVTALRM,
    SIGXCPU,
    ksignal,
)
from dfvm.kern.proc import RLIMIT_CPU
from tests.kern.guest_util import build, by_guest, same

if TYPE_CHECKING:
    from user_util import User

MS = 1_000_000
S = 1_000_000_000
BAD = 0x1234_5000  # nothing is mapped there


def handler(user: User, *signals: int) -> None:
    for sig in signals:
        user.p.p_sigacts.set(sig, (0x40_0000, 0, 0, 0))


def pending(user: User, sig: int) -> bool:
    return bool(user.p.p_sigqueue.pending >> (sig - 1) & 1)


def wait(user: User, ns: int) -> None:
    user.kernel.sched.tsleep_ns("test", 0, "test", ns)


def itimer(interval: int, value: int) -> bytes:
    return pack("<qqqq", *divmod(interval, 1_000_000), *divmod(value, 1_000_000))


def itimerspec(interval: int, value: int) -> bytes:
    return pack("<qqqq", *divmod(interval, S), *divmod(value, S))


# ---- clocks --------------------------------------------------------------------------------------


def gettime(user: User, clock: int) -> int:
    at = user.put(bytes(16))
    result = user.call(kt.sys_clock_gettime, clock, at)
    if result:
        return result
    seconds, ns = unpack("<qq", user.read(at, 16))
    return int(seconds * S + ns)


def test_clocks(user: User) -> None:
    began = time.time_ns()
    assert began - S < gettime(user, kt.CLOCK_REALTIME) < time.time_ns() + S
    first = gettime(user, kt.CLOCK_MONOTONIC)
    time.sleep(0.002)
    assert gettime(user, kt.CLOCK_MONOTONIC) - first >= 2 * MS
    coarse = gettime(user, kt.CLOCK_MONOTONIC_COARSE)
    assert coarse % (10 * MS) == 0
    assert 0 <= gettime(user, kt.CLOCK_BOOTTIME) - coarse < S
    assert gettime(user, kt.CLOCK_THREAD_CPUTIME_ID) > 0
    assert gettime(user, kt.CLOCK_PROCESS_CPUTIME_ID) > 0
    assert gettime(user, -6 & ~7 | 2) > 0  # (~0 << 3) | SCHED: one's own process
    mine = (~user.p.p_pid << 3) | 2
    assert gettime(user, mine) > 0
    assert gettime(user, (~99_999 << 3) | 2) == -EINVAL
    assert gettime(user, 10) == gettime(user, 12) == gettime(user, -1) == -EINVAL
    assert user.call(kt.sys_clock_gettime, 0, BAD) == -EFAULT


def test_clock_resolution_and_setting(user: User) -> None:
    at = user.put(bytes(16))
    for clock, res in ((0, 1), (1, 1), (2, 1), (6, 10 * MS)):
        assert user.call(kt.sys_clock_getres, clock, at) == 0
        assert unpack("<qq", user.read(at, 16)) == (0, res)
    assert user.call(kt.sys_clock_getres, 1, 0) == 0
    assert user.call(kt.sys_clock_getres, 99, 0) == -EINVAL
    assert user.call(kt.sys_clock_settime, 0, user.put(pack("<qq", 1, 0))) == -EPERM
    assert user.call(kt.sys_clock_settime, 0, user.put(pack("<qq", 1, S))) == -EINVAL
    assert user.call(kt.sys_clock_settime, 1, at) == -EINVAL
    assert user.call(kt.sys_settimeofday, user.put(bytes(16)), 0) == -EPERM


def test_old_calls(user: User) -> None:
    at, began = user.put(b"\xff" * 32), time.time_ns()
    assert user.call(kt.sys_gettimeofday, at, at + 16) == 0
    seconds, us = unpack("<qq", user.read(at, 16))
    assert began - S < seconds * S + us * 1000 < time.time_ns() + S
    assert user.read(at + 16, 8) == bytes(8)
    now = user.call(kt.sys_time, at)
    assert unpack("<q", user.read(at, 8)) == (now,)
    assert began // S - 1 <= now <= time.time() + 1
    assert user.call(kt.sys_time, BAD) == user.call(kt.sys_gettimeofday, BAD, 0) == -EFAULT
    user.p.p_cru.ru_utime_ns = 3 * S
    ticks = user.call(kt.sys_times, at)
    assert abs(ticks - user.kernel.sched.uptime_ns // (10 * MS)) <= 1
    assert unpack("<qqqq", user.read(at, 32))[2] == 300


# ---- sleeping ------------------------------------------------------------------------------------


def test_nanosleep(user: User) -> None:
    began = time.monotonic_ns()
    assert user.call(kt.sys_nanosleep, user.put(pack("<qq", 0, 3 * MS)), 0) == 0
    assert time.monotonic_ns() - began >= 3 * MS
    assert user.call(kt.sys_nanosleep, user.put(pack("<qq", 0, S)), 0) == -EINVAL
    assert user.call(kt.sys_nanosleep, user.put(pack("<qq", -1, 0)), 0) == -EINVAL
    assert user.call(kt.sys_nanosleep, BAD, 0) == -EFAULT
    assert user.call(kt.sys_nanosleep, user.put(bytes(16)), 0) == 0


def test_absolute_sleep(user: User) -> None:
    for clock in (kt.CLOCK_REALTIME, kt.CLOCK_MONOTONIC):
        target = gettime(user, clock) + 3 * MS
        at = user.put(pack("<qq", *divmod(target, S)))
        assert user.call(kt.sys_clock_nanosleep, clock, 1, at, 0) == 0
        assert gettime(user, clock) >= target
    assert user.call(kt.sys_clock_nanosleep, 0, 1, user.put(bytes(16)), 0) == 0
    assert user.call(kt.sys_clock_nanosleep, 3, 0, at, 0) == -EOPNOTSUPP
    assert user.call(kt.sys_clock_nanosleep, 5, 0, at, 0) == -EOPNOTSUPP
    assert user.call(kt.sys_clock_nanosleep, 17, 0, at, 0) == -EINVAL


def test_a_signal_ends_a_sleep_and_says_what_is_left(user: User) -> None:
    handler(user, SIGUSR1)
    user.kernel.sched.callout(2 * MS, ksignal, user.p, SIGUSR1)
    at = user.put(pack("<qq", 1, 0) + bytes(16))
    assert user.call(kt.sys_nanosleep, at, at + 16) == ERESTART_RESTARTBLOCK
    seconds, ns = unpack("<qq", user.read(at + 16, 16))
    assert 0.5 * S < seconds * S + ns < S
    before = seconds * S + ns
    # Without a handler the sleep goes on where it was, not from the beginning.
    user.p.p_sigqueue.discard(-1)
    assert user.lp.lwp_restart_block is not None
    user.p.kernel.sched.callout(2 * MS, ksignal, user.p, SIGUSR1)
    assert user.call(user.lp.lwp_restart_block) == ERESTART_RESTARTBLOCK
    seconds, ns = unpack("<qq", user.read(at + 16, 16))
    assert seconds * S + ns < before
    user.p.p_sigqueue.discard(-1)
    user.kernel.sched.callout(2 * MS, ksignal, user.p, SIGUSR1)
    at = user.put(pack("<qq", 1 << 40, 0))
    assert user.call(kt.sys_clock_nanosleep, 1, 1, at, 0) == ERESTARTNOHAND


# ---- interval timers -----------------------------------------------------------------------------


def test_itimer_real(user: User) -> None:
    handler(user, SIGALRM)
    at = user.put(itimer(0, 2000))
    assert user.call(kt.sys_setitimer, 0, at, at + 32) == 0
    assert user.read(at + 32, 32) == bytes(32)
    user.call(kt.sys_getitimer, 0, at + 32)
    left = unpack("<qqqq", user.read(at + 32, 32))
    assert left[:3] == (0, 0, 0) and 0 < left[3] <= 2000
    wait(user, 4 * MS)
    assert pending(user, SIGALRM)
    user.call(kt.sys_getitimer, 0, at)
    assert user.read(at, 32) == bytes(32)


def test_itimer_repeats_and_is_disarmed(user: User) -> None:
    handler(user, SIGALRM)
    user.call(kt.sys_setitimer, 0, user.put(itimer(2000, 2000)), 0)
    for _ in range(3):
        wait(user, 5 * MS)
        assert pending(user, SIGALRM)
        user.p.p_sigqueue.discard(-1)
    user.call(kt.sys_setitimer, 0, 0, 0)
    user.p.p_sigqueue.discard(-1)
    wait(user, 5 * MS)
    assert not pending(user, SIGALRM)


def test_itimer_errors(user: User) -> None:
    good = user.put(itimer(0, 0))
    assert user.call(kt.sys_setitimer, 3, good, 0) == -EINVAL
    assert user.call(kt.sys_getitimer, -1, good) == -EINVAL
    assert user.call(kt.sys_setitimer, 0, BAD, 0) == -EFAULT
    assert user.call(kt.sys_setitimer, 0, user.put(itimer(0, 0)[:24] + pack("<q", 10**6)), 0) == (
        -EINVAL
    )
    assert user.call(kt.sys_getitimer, 0, BAD) == -EFAULT


@pytest.mark.parametrize(("which", "sig"), [(1, SIGVTALRM), (2, SIGPROF)])
def test_cpu_itimers_count_cpu_time_only(user: User, which: int, sig: int) -> None:
    handler(user, sig)
    td = user.lp.lwp_thread
    user.call(kt.sys_setitimer, which, user.put(itimer(0, 50_000)), 0)
    wait(user, 30 * MS)
    assert not pending(user, sig)
    td.user_ns += 60 * MS  # as if the guest had computed
    td.td_runtime_ns += 60 * MS
    wait(user, 120 * MS)
    assert pending(user, sig)


def test_alarm(user: User) -> None:
    assert user.call(kt.sys_alarm, 10) == 0
    assert user.call(kt.sys_alarm, 1) == 10
    wait(user, 600 * MS)
    assert user.call(kt.sys_alarm, 0) == 1  # less than half a second is still one
    assert user.call(kt.sys_alarm, 0) == 0


# ---- POSIX timers --------------------------------------------------------------------------------


def sigevent(value: int, signo: int, notify: int, tid: int = 0) -> bytes:
    return pack("<Qiii44x", value, signo, notify, tid)


def create(user: User, clock: int, event: bytes | None) -> int:
    at = user.put(bytes(8) + (event or b""))
    result = user.call(kt.sys_timer_create, clock, at + 8 if event else 0, at)
    return result or int(unpack("<i", user.read(at, 4))[0])


def test_posix_timer_sends_its_signal_with_its_value(user: User) -> None:
    handler(user, SIGUSR1)
    first = create(user, 1, sigevent(0xDEAD_BEEF, SIGUSR1, 0))
    timer = create(user, 1, sigevent(0x1234_5678_9ABC, SIGUSR1, 0))
    assert (first, timer) == (0, 1)
    at = user.put(itimerspec(0, 2 * MS))
    assert user.call(kt.sys_timer_settime, timer, 0, at, 0) == 0
    wait(user, 4 * MS)
    info = user.p.p_sigqueue.take(SIGUSR1)
    assert (info.si_timerid, info.si_value, info.si_overrun) == (1, 0x1234_5678_9ABC, 0)
    assert user.call(kt.sys_timer_gettime, timer, at) == 0
    assert user.read(at, 32) == bytes(32)
    assert user.call(kt.sys_timer_delete, timer) == 0
    assert user.call(kt.sys_timer_delete, timer) == -EINVAL
    assert user.call(kt.sys_timer_gettime, timer, at) == -EINVAL


def test_posix_timer_overruns(user: User) -> None:
    handler(user, SIGUSR1)
    user.lp.lwp_sigmask = 1 << (SIGUSR1 - 1)
    timer = create(user, 1, sigevent(0, SIGUSR1, 0))
    user.call(kt.sys_timer_settime, timer, 0, user.put(itimerspec(MS, MS)), 0)
    wait(user, 60 * MS)
    info = user.p.p_sigqueue.take(SIGUSR1)
    assert 20 <= info.si_overrun <= 80
    assert user.call(kt.sys_timer_getoverrun, timer) == info.si_overrun
    assert user.p.p_sigqueue.count() == 0  # one signal stands for all of them


def test_posix_timer_absolute_in_the_past_expires_at_once(user: User) -> None:
    handler(user, SIGALRM)
    timer = create(user, 0, None)
    user.call(kt.sys_timer_settime, timer, 1, user.put(itimerspec(0, 1)), 0)
    wait(user, MS)
    info = user.p.p_sigqueue.take(SIGALRM)
    assert info.si_value == timer


def test_posix_timer_that_says_nothing(user: User) -> None:
    timer = create(user, 1, sigevent(0, 0, 1))
    at = user.put(itimerspec(0, S))
    user.call(kt.sys_timer_settime, timer, 0, at, 0)
    assert user.call(kt.sys_timer_gettime, timer, at) == 0
    assert unpack("<qqqq", user.read(at, 32))[3] > 0
    user.call(kt.sys_timer_settime, timer, 0, user.put(bytes(32)), at + 32)
    assert unpack("<qqqq", user.read(at + 32, 32))[3] > 0


def test_posix_timer_errors(user: User) -> None:
    assert create(user, 4, None) == -EOPNOTSUPP
    assert create(user, 10, None) == -EINVAL
    assert create(user, 1, sigevent(0, 65, 0)) == -EINVAL
    assert create(user, 1, sigevent(0, 0, 0)) == -EINVAL
    assert create(user, 1, sigevent(0, SIGUSR1, 3)) == -EINVAL
    assert create(user, 1, sigevent(0, SIGUSR1, 4, 77)) == -EINVAL
    assert user.call(kt.sys_timer_create, 1, 0, BAD) == -EFAULT
    timer = create(user, 1, sigevent(0, SIGUSR1, 4, user.lp.lwp_tid))
    assert timer >= 0
    assert user.call(kt.sys_timer_settime, timer, 0, 0, 0) == -EINVAL
    assert user.call(kt.sys_timer_settime, timer, 0, BAD, 0) == -EFAULT
    bad = user.put(itimerspec(0, 0)[:24] + pack("<q", S))
    assert user.call(kt.sys_timer_settime, timer, 0, bad, 0) == -EINVAL
    assert user.call(kt.sys_timer_settime, 42, 0, user.put(bytes(32)), 0) == -EINVAL


def test_ignored_signals_do_not_make_the_machine_spin(user: User) -> None:
    user.p.p_sigacts.set(SIGALRM, (SIG_IGN, 0, 0, 0))
    user.call(kt.sys_setitimer, 0, user.put(itimer(1, 1)), 0)
    ran = user.kernel.sched._callouts.ran
    wait(user, 50 * MS)
    assert user.kernel.sched._callouts.ran - ran < 200


# ---- life ----------------------------------------------------------------------------------------


def test_fork_exec_exit(user: User) -> None:
    handler(user, SIGALRM, SIGUSR1)
    user.call(kt.sys_setitimer, 0, user.put(itimer(0, 20_000)), 0)
    timer = create(user, 1, sigevent(0, SIGUSR1, 0))
    user.call(kt.sys_timer_settime, timer, 0, user.put(itimerspec(0, 2 * MS)), 0)
    child = user.fork()
    kt.timers_fork(child.p)
    assert child.p.p_timers is None
    kt.timers_exec(user.p)
    assert user.call(kt.sys_timer_delete, timer) == -EINVAL
    wait(user, 30 * MS)
    assert pending(user, SIGALRM) and not pending(user, SIGUSR1)
    user.call(kt.sys_setitimer, 0, user.put(itimer(0, 1000)), 0)
    kt.timers_exit(user.p)
    user.p.p_sigqueue.discard(-1)
    wait(user, 3 * MS)
    assert not pending(user, SIGALRM)


def test_cpu_limit_signals_every_second_and_then_kills(user: User) -> None:
    handler(user, SIGXCPU)
    at = user.put(pack("<QQ", 1, 3))
    assert user.call(sys_setrlimit, RLIMIT_CPU, at) == 0
    td = user.lp.lwp_thread
    td.td_runtime_ns += S - td.cpu_ns + 10 * MS
    user.kernel.sched.callout(0, print)
    assert user.p.p_timers is not None
    user.p.p_timers.cpulimit._expire()
    assert pending(user, SIGXCPU)
    assert user.call(sys_prlimit64, 0, RLIMIT_CPU, 0, at) == 0
    assert unpack("<QQ", user.read(at, 16)) == (2, 3)
    td.td_runtime_ns += 2 * S
    user.p.p_timers.cpulimit._expire()
    assert pending(user, SIGKILL)
    child = user.fork()
    kt.timers_fork(child.p)
    assert child.p.p_timers is not None  # the limit is inherited, and so is its clock
    kt.timers_exit(child.p)


def test_posix_timer_is_not_heard_of_after_it_was_disarmed_or_deleted() -> None:
    """A signal that is still queued is nobody's then, until the timer expires again; timers have
    their signal queued each, whatever signal it is. As Linux since 6.13."""
    program = build(r"""
    static volatile int count, values;
    static void h(int s, siginfo_t *i, void *c) { count++, values += i->si_value.sival_int; }
    static timer_t make(int value) {
        struct sigevent se = {.sigev_signo = SIGUSR1, .sigev_value.sival_int = value};
        timer_t t;
        timer_create(CLOCK_MONOTONIC, &se, &t);
        return t;
    }
    static void set(timer_t t, long ns, long interval) {
        struct itimerspec is = {{interval, 0}, {0, ns}}, now;
        timer_settime(t, TIMER_ABSTIME, &is, 0);
        timer_gettime(t, &now);
        if (!ns) printf("interval %ld\n", (long)now.it_interval.tv_sec);
        while (ns && now.it_value.tv_sec | now.it_value.tv_nsec) timer_gettime(t, &now);
        sched_yield();
    }
    static void deliver(const char *what) {
        sigset_t s, pending;
        sigpending(&pending);
        sigemptyset(&s);
        sigaddset(&s, SIGUSR1);
        count = values = 0;
        sigprocmask(SIG_UNBLOCK, &s, 0);
        sigprocmask(SIG_BLOCK, &s, 0);
        printf("%s: pending %d got %d of %d\n", what, sigismember(&pending, SIGUSR1), count,
               values);
    }
    int main(void) {
        struct sigaction a = {.sa_sigaction = h, .sa_flags = SA_SIGINFO};
        sigaction(SIGUSR1, &a, 0);
        timer_t one = make(1), two = make(20);
        deliver("nothing");
        set(one, 1, 0), set(two, 1, 0), deliver("both");
        set(one, 1, 0), set(one, 0, 5), deliver("disarmed");
        set(one, 1, 0), set(one, 0, 0), set(one, 1, 0), deliver("again");
        set(one, 1, 0), set(two, 1, 0), timer_delete(one), deliver("deleted");
        return 0;
    }
    """)
    assert by_guest(program) == (
        0,
        b"nothing: pending 0 got 0 of 0\n"
        b"both: pending 1 got 2 of 21\n"
        b"interval 0\ndisarmed: pending 1 got 0 of 0\n"
        b"interval 0\nagain: pending 1 got 1 of 1\n"
        b"deleted: pending 1 got 1 of 20\n",
    )


def test_which_clocks_can_be_set_and_slept_on() -> None:
    same(r"""
    #define E(x) (errno = 0, printf("%s %d: %d\n", #x, c, (int)(x) < 0 ? errno : 0))
    int main(void) {
        struct timespec t = {0, 1000}, bad = {0, -1};
        int id;
        for (int c = -1; c < 13; c++) {
            E(syscall(SYS_clock_settime, c, &bad));
            E(syscall(SYS_clock_settime, c, (void *)-1));
            if (c != CLOCK_PROCESS_CPUTIME_ID) E(syscall(SYS_clock_nanosleep, c, 0, &t, 0));
            E(syscall(SYS_timer_create, c, 0, &id));
        }
        struct itimerval once = {{5, 0}, {0, 0}}, now;
        for (int c = 0; c < 3; c++) {
            E(setitimer(c, &once, 0));
            E(getitimer(c, &now));
            printf("%ld %ld\n", (long)now.it_interval.tv_sec, (long)now.it_value.tv_sec);
        }
        return 0;
    }
    """)


def test_the_clocks_discipline_is_told_and_not_set() -> None:
    same(r"""
#include <sys/timex.h>
static struct timex t;
static void show(long r) {
    printf("%ld %d: %x %ld %ld %x %ld %ld %ld %d %ld %d\n", r, r < 0 ? errno : 0, t.modes,
           t.offset, t.freq, t.status, t.constant, t.precision, t.tolerance, t.time.tv_sec > 1e9,
           t.tick, t.tai);
    memset(&t, 0, sizeof t);
}
int main() {
    show(syscall(SYS_adjtimex, &t));
    t.modes = ADJ_OFFSET_SS_READ, show(syscall(SYS_adjtimex, &t));
    for (int c = -9; c < 13; c++) show(syscall(SYS_clock_adjtime, c, &t));
    show(syscall(SYS_adjtimex, 8)); show(syscall(SYS_clock_adjtime, 1, 8));
    if (geteuid() == 0 && setresuid(77, 77, 77)) return 1;
    for (int b = 0; b < 16; b++) t.modes = 1 << b, show(syscall(SYS_adjtimex, &t));
    t.modes = ADJ_OFFSET_SS_READ, show(syscall(SYS_adjtimex, &t));
    t.modes = ADJ_OFFSET_SINGLESHOT, show(syscall(SYS_clock_adjtime, 0, &t));
    t.modes = ADJ_TICK, show(syscall(SYS_clock_adjtime, 1, &t));
    return 0;
}""")  # fmt: skip
    program = build(r"""
#include <sys/timex.h>
int main() {
    struct timex t = {.modes = ADJ_TICK, .tick = 10001};
    return adjtimex(&t) != -1 || errno != EPERM;
}""")  # fmt: skip
    assert by_guest(program)[0] == 0
