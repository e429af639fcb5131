"""Locks that inherit priorities: FUTEX_LOCK_PI and its kin, between processes. What programs see
runs on the host, too; who runs when only in the machine, which has one CPU.
"""

from __future__ import annotations

import pytest

from dfvm import PIPE, Deadlock, Machine, Panic
from tests.kern.file_util import T
from tests.kern.guest_util import SLEEPS, build, same

L = (
    T
    + SLEEPS
    + r"""
#include <linux/futex.h>
#ifndef FUTEX_LOCK_PI2
#define FUTEX_LOCK_PI2 13
#endif
/* Words of shared memory: locks, what processes sleep on, and marks. */
static volatile unsigned *w_;
__attribute__((constructor)) static void map_(void) {
    w_ = mmap(0, 4096, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}
static long fx_(int n, int op, unsigned val, void *to, int n2, unsigned val3) {
    return syscall(SYS_futex, w_ + n, op, val, to, n2 < 0 ? 0 : w_ + n2, val3);
}
static long lock_(int n) { return fx_(n, FUTEX_LOCK_PI, 0, 0, -1, 0); }
static long unlock_(int n) { return fx_(n, FUTEX_UNLOCK_PI, 0, 0, -1, 0); }
static int tid_(void) { return syscall(SYS_gettid); }
/* What is in a lock: whose it is, and the flags. */
static void word_(const char *what, int n, int other) {
    unsigned tid = w_[n] & FUTEX_TID_MASK;
    printf("%s: %s%s%s\n", what,
           tid == tid_() ? "me" : tid && tid == other ? "other" : tid ? "?" : "0",
           w_[n] & FUTEX_WAITERS ? " waiters" : "", w_[n] & FUTEX_OWNER_DIED ? " died" : "");
    fflush(stdout);
}
/* T, but told after the child that it lets go on has ended. */
#define U(e, pid) do { errno = 0; long r_ = (long)(e); int n_ = errno; waitpid(pid, &st, 0); \
    printf("%s = %ld %d\n", #e, r_ < 0 ? -1L : r_, r_ < 0 ? n_ : 0); fflush(stdout); } while (0)
/* A child that runs `what`, once this process knows that it sleeps there or has ended. */
#define CHILD(what) ({ fflush(stdout); int pid_ = fork(); \
    if (!pid_) { what; fflush(stdout); _exit(0); } pid_; })
static void until_(int n, unsigned v) { while (w_[n] != v) sched_yield(); }
"""
)


def test_a_lock_changes_hands() -> None:
    same(L + r"""
int main() {
    int c, d, st; struct timespec past = {1, 0}, bad = {1, -1}, soon; clock_gettime(0, &soon);
    T(lock_(0)); word_("free", 0, 0); T(lock_(0)); T(fx_(0, FUTEX_TRYLOCK_PI, 0, 0, -1, 0));
    T(unlock_(0)); word_("unlocked", 0, 0); T(unlock_(0)); T(fx_(0, FUTEX_TRYLOCK_PI, 0, 0, -1, 0));
    w_[0] = 0; T(lock_(0)); c = CHILD(T(lock_(0)); word_("child", 0, getppid()); w_[9] = 1;
        until_(9, 2); T(unlock_(0)); word_("child after", 0, getppid()));
    sleeps(c); word_("contended", 0, c); T(fx_(0, FUTEX_WAKE, 1, 0, -1, 0));
    st = unlock_(0); until_(9, 1); T(st); word_("given", 0, c);
    T(fx_(0, FUTEX_TRYLOCK_PI, 0, 0, -1, 0)); word_("tried", 0, c); T(unlock_(0));
    T(fx_(0, FUTEX_LOCK_PI, 0, &past, -1, 0)); T(fx_(0, FUTEX_LOCK_PI, 0, &bad, -1, 0));
    T(fx_(0, FUTEX_LOCK_PI2, 0, &past, -1, 0));
    T(fx_(0, FUTEX_LOCK_PI2 | FUTEX_CLOCK_REALTIME, 0, &past, -1, 0));
    T(fx_(0, FUTEX_LOCK_PI | FUTEX_CLOCK_REALTIME, 0, &past, -1, 0));
    soon.tv_nsec += 3000000; if (soon.tv_nsec > 999999999) { soon.tv_sec++;
    soon.tv_nsec -= 1000000000; }
    T(fx_(0, FUTEX_LOCK_PI, 0, &soon, -1, 0)); w_[9] = 2; waitpid(c, &st, 0);
    word_("after timeouts", 0, 0);
    /* First come, first served. */
    T(lock_(0)); c = CHILD(lock_(0); puts("first"); fflush(stdout); unlock_(0)); sleeps(c);
    d = CHILD(lock_(0); puts("second"); fflush(stdout); unlock_(0)); sleeps(d);
    U(unlock_(0), d); waitpid(c, &st, 0); word_("all done", 0, 0);
    /* Words that make no sense. */
    w_[0] = 999999; T(lock_(0)); word_("nobody's", 0, 0); w_[0] = FUTEX_OWNER_DIED; T(lock_(0));
    word_("the owner died", 0, 0); w_[0] = 1 | FUTEX_WAITERS; T(unlock_(0)); w_[0] = 0; lock_(0);
    c = CHILD(T(lock_(0))); sleeps(c);
    d = CHILD(w_[0] = getpid() | FUTEX_WAITERS; T(unlock_(0))); waitpid(d, &st, 0);
    w_[0] = getppid();
    d = CHILD(T(lock_(0))); waitpid(d, &st, 0); T(unlock_(0)); w_[0] = getpid() | FUTEX_WAITERS;
    U(unlock_(0), c);
    T(syscall(SYS_futex, 1, FUTEX_LOCK_PI, 0, 0)); T(syscall(SYS_futex, 8, FUTEX_LOCK_PI, 0, 0));
    unsigned *ro = mmap(0, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    T(syscall(SYS_futex, ro, FUTEX_LOCK_PI, 0, 0));
    T(syscall(SYS_futex, ro, FUTEX_UNLOCK_PI, 0, 0));
    return 0;
}""")  # fmt: skip


def test_owners_that_end_and_rings() -> None:
    same(L + r"""
static struct robust_list_head head;
static struct robust_list entry;
/* As pthread_mutexattr_setrobust does: bit 0 says that it is a lock of this kind. */
static void robust(int n) {
    head.futex_offset = (char *)(w_ + n) - (char *)&entry;
    head.list.next = (void *)((long)&entry | 1); entry.next = &head.list;
    syscall(SYS_set_robust_list, &head, sizeof head);
}
/* The same with two, words 0 and 4, each with its link behind it. */
static void both(void) {
    struct robust_list *a = (void *)(w_ + 2), *b = (void *)(w_ + 6);
    head.futex_offset = -8; head.list.next = (void *)((long)a | 1);
    a->next = (void *)((long)b | 1); b->next = &head.list;
    syscall(SYS_set_robust_list, &head, sizeof head);
}
static void h(int s) {}
int main() {
    int c, d, st;
    /* Ends while it has the lock and others wait, with a robust list and without. */
    for (int i = 0; i < 2; i++) {
        w_[9] = w_[0] = 0;
        c = CHILD(if (i) robust(0); lock_(0); w_[9] = 1; until_(9, 2); _exit(0)); until_(9, 1);
        d = CHILD(T(lock_(0)); word_("second", 0, 0); T(unlock_(0)); word_("let go", 0, 0));
        sleeps(d); w_[9] = 2; waitpid(c, &st, 0); waitpid(d, &st, 0);
    }
    /* Nobody waited. */
    w_[0] = w_[9] = 0; c = CHILD(robust(0); lock_(0)); waitpid(c, &st, 0); word_("left", 0, 0);
    T(lock_(0)); word_("taken", 0, 0); T(unlock_(0)); word_("let go", 0, 0);
    c = CHILD(lock_(0)); waitpid(c, &st, 0); T(lock_(0)); w_[0] = 0;
    /* By exec. */
    c = CHILD(lock_(0); w_[9] = 1; until_(9, 2); execl("/bin/sleep", "sleep", "9999", NULL));
    until_(9, 1);
    d = CHILD(T(lock_(0)); word_("second", 0, 0)); sleeps(d); w_[9] = 2;
    waitpid(d, &st, 0); kill(c, SIGKILL); waitpid(c, &st, 0); w_[0] = w_[9] = 0;
    /* Two on the list: the second is marked, too. */
    c = CHILD(both(); lock_(0); lock_(4); w_[9] = 1; until_(9, 2)); until_(9, 1);
    d = CHILD(T(lock_(0)); word_("second", 0, 0)); sleeps(d); w_[9] = 2; waitpid(c, &st, 0);
    waitpid(d, &st, 0); word_("the other", 4, 0); w_[0] = w_[9] = 0;
    /* Killed while it waits, and interrupted. */
    lock_(0); c = CHILD(lock_(0)); sleeps(c); kill(c, SIGKILL); waitpid(c, &st, 0);
    T(unlock_(0)); word_("alone", 0, 0); lock_(0);
    signal(SIGUSR1, h); c = CHILD(siginterrupt(SIGUSR1, 1); T(lock_(0)); unlock_(0)); sleeps(c);
    kill(c, SIGUSR1); sleeps(c); U(unlock_(0), c);
    /* A ring: each waits for the next. */
    lock_(0); c = CHILD(lock_(1); w_[9] = 1; T(lock_(0)); T(unlock_(0)); unlock_(1));
    until_(9, 1);
    sleeps(c); d = CHILD(lock_(5); w_[9] = 2; T(lock_(1)); unlock_(1); unlock_(5));
    until_(9, 2); sleeps(d); T(lock_(5)); T(lock_(1)); U(unlock_(0), d);
    waitpid(c, &st, 0); word_("0", 0, 0); word_("1", 1, 0); word_("5", 5, 0);
    return 0;
}""")  # fmt: skip


def test_waiting_for_something_and_then_for_the_lock() -> None:
    """FUTEX_WAIT_REQUEUE_PI and CMP_REQUEUE_PI: a condition variable. Word 1 is what is waited on,
    word 0 the lock."""
    same(L + r"""
#define WAITS(n) CHILD(int r_ = fx_(1, FUTEX_WAIT_REQUEUE_PI, w_[1], 0, 0, 0); \
    printf(n ": %d %d\n", r_, r_ < 0 ? errno : 0); if (!r_) { word_(n, 0, 0); unlock_(0); })
#define REQUEUE(wake, move, val) fx_(1, FUTEX_CMP_REQUEUE_PI, wake, (void *)(long)(move), 0, val)
static void h(int s) {}
int main() {
    int a, b, c, st; struct timespec past = {1, 0};
    T(REQUEUE(1, 5, 0)); T(REQUEUE(0, 5, 0)); T(REQUEUE(2, 5, 0)); T(REQUEUE(1, 5, 7));
    T(REQUEUE(1, -1, 0)); T(fx_(1, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, 1, 0));
    T(fx_(1, FUTEX_WAIT_REQUEUE_PI, 0, 0, 1, 0)); T(fx_(1, FUTEX_WAIT_REQUEUE_PI, 9, 0, 0, 0));
    T(fx_(1, FUTEX_WAIT_REQUEUE_PI, 0, &past, 0, 0)); T(fx_(1, FUTEX_WAIT_REQUEUE_PI, 0, 0, -1, 0));
    /* The lock is free: the first has it at once, the others follow. */
    a = WAITS("a"); sleeps(a); b = WAITS("b"); sleeps(b); c = WAITS("c"); sleeps(c);
    T(fx_(1, FUTEX_WAKE, 9, 0, -1, 0)); T(fx_(1, FUTEX_REQUEUE, 1, (void *)1, 2, 0));
    U(REQUEUE(1, 1, 0), b); waitpid(a, &st, 0);
    U(REQUEUE(1, 99, 0), c); word_("done", 0, 0);
    /* It is not. */
    lock_(0); a = WAITS("a"); sleeps(a); b = WAITS("b"); sleeps(b); T(REQUEUE(1, 0, 0));
    T(REQUEUE(1, 99, 0)); word_("all wait", 0, 0); T(REQUEUE(1, 9, 0)); U(unlock_(0), b);
    waitpid(a, &st, 0); word_("done", 0, 0);
    /* One who waits as usual, or for another lock. */
    a = CHILD(T(fx_(1, FUTEX_WAIT, 0, 0, -1, 0))); sleeps(a); T(REQUEUE(1, 9, 0));
    U(fx_(1, FUTEX_WAKE, 1, 0, -1, 0), a);
    a = CHILD(T(fx_(1, FUTEX_WAIT_REQUEUE_PI, 0, 0, 2, 0)); unlock_(2)); sleeps(a);
    T(REQUEUE(1, 9, 0)); U(fx_(1, FUTEX_CMP_REQUEUE_PI, 1, 0, 2, 0), a);
    /* Signals: before it is requeued the call goes on, after it does not. */
    signal(SIGUSR1, h); lock_(0); a = WAITS("a"); sleeps(a); kill(a, SIGUSR1); sleeps(a);
    T(REQUEUE(1, 0, 0)); kill(a, SIGUSR1); waitpid(a, &st, 0); T(unlock_(0)); word_("end", 0, 0);
    return 0;
}""")  # fmt: skip


def test_priorities_are_inherited() -> None:
    same(L + r"""
static void rt(int pid, int prio) { struct sched_param sp = {prio};
    if (sched_setscheduler(pid, prio ? SCHED_FIFO : SCHED_OTHER, &sp)) { T(-1); _exit(1); } }
/* Its own priority, and the one it runs with: columns 40 and 18 of stat. */
static void prio(const char *what, int pid) {
    char path[40]; sprintf(path, "/proc/%d/stat", pid); char *at = strrchr(get_(path), ')');
    long v[50] = {0}; int n = 3; for (at = strtok(at + 4, " "); at;
    at = strtok(0, " ")) v[++n] = atol(at);
    struct sched_param sp; sched_getparam(pid, &sp);
    printf("%s: %d %ld %ld\n", what, sp.sched_priority, v[40], v[18]); fflush(stdout);
}
/* Steps that wait for each other. */
static int up[2], go[2]; static char x_;
static void done(void) { write(up[1], "", 1); read(go[0], &x_, 1); }
static void next(void) { write(go[1], "", 1); }
static void did(void) { read(up[0], &x_, 1); }
int main() {
    int a, b, c, d, st; pipe(up); pipe(go);
    a = CHILD(lock_(0); done(); unlock_(0); done()); did(); prio("alone", a);
    b = CHILD(rt(0, 10); lock_(0); unlock_(0)); sleeps(b); prio("for one of 10", a);
    c = CHILD(rt(0, 30); lock_(0); prio("got it", getpid()); unlock_(0)); sleeps(c);
    prio("and one of 30", a); rt(c, 5); prio("which has 5 now", a); rt(c, 20); prio("and 20", a);
    rt(a, 15); prio("and itself 15", a); rt(a, 40); prio("and 40", a); rt(a, 1); prio("and 1", a);
    kill(c, SIGKILL); waitpid(c, &st, 0); prio("without it", a);
    c = CHILD(rt(0, 30); lock_(0); prio("got it", getpid()); unlock_(0)); sleeps(c);
    next(); did(); waitpid(c, &st, 0); prio("let go", a);
    next(); waitpid(a, &st, 0); waitpid(b, &st, 0);
    /* Through another lock, and to who is forked meanwhile not. */
    a = CHILD(lock_(0); done(); int k = fork(); if (!k) { prio("a child", getpid()); _exit(0); }
        waitpid(k, 0, 0); unlock_(0); done());
    did(); rt(a, 2); b = CHILD(rt(0, 3); lock_(1); lock_(0); unlock_(0); unlock_(1)); sleeps(b);
    prio("a", a); c = CHILD(rt(0, 33); lock_(1); unlock_(1)); sleeps(c); prio("a", a); prio("b", b);
    d = CHILD(struct timespec t; clock_gettime(0, &t); t.tv_sec += 500; rt(0, 44);
        fx_(1, FUTEX_LOCK_PI, 0, &t, -1, 0)); sleeps(d); prio("a", a); kill(d, SIGKILL);
    waitpid(d, &st, 0); prio("a", a); next(); did(); prio("a", a); next();
    waitpid(a, &st, 0); waitpid(b, &st, 0); waitpid(c, &st, 0);
    /* The highest gets it first, whoever came first. */
    d = CHILD(lock_(0); done(); unlock_(0)); did();
    a = CHILD(rt(0, 7); lock_(0); puts("7"); fflush(stdout); unlock_(0)); sleeps(a);
    b = CHILD(rt(0, 9); lock_(0); puts("9"); fflush(stdout); unlock_(0)); sleeps(b);
    c = CHILD(rt(0, 8); lock_(0); puts("8"); fflush(stdout); unlock_(0)); sleeps(c);
    next(); waitpid(d, &st, 0); waitpid(a, &st, 0); waitpid(b, &st, 0); waitpid(c, &st, 0);
    return 0;
}""")  # fmt: skip


def test_who_has_the_lock_is_not_kept_from_the_cpu() -> None:
    """One of priority 2 computes; whoever it would keep waiting for one of 1 is of 3."""
    program = build(L + r"""
static void rt(int prio) { struct sched_param sp = {prio}; sched_setscheduler(0, SCHED_FIFO, &sp); }
int main() {
    int st; rt(4); lock_(0);
    CHILD(rt(3); lock_(0); puts("3 has it"); unlock_(0));
    CHILD(rt(2); until_(8, 1); for (volatile int i = 0; i < 3000000; i++) {} puts("2 is done"));
    sched_yield(); struct sched_param sp = {1}; w_[8] = 1; sched_setparam(0, &sp);
    puts("1 lets go"); fflush(stdout); unlock_(0); wait(&st); wait(&st);
    return 0;
}""")  # fmt: skip
    with Machine(mem="64M", check=True) as m:
        p = m.spawn([program], stdin=b"", stdout=PIPE)
        m.run()
        assert p.stdout == b"1 lets go\n3 has it\n2 is done\n"


def test_the_machine_knows_its_locks() -> None:
    """What Machine.check() says when something about a lock is not as it should be."""
    program = build(L + r"""
int main() {
    int c; lock_(0); c = CHILD(struct sched_param sp = {3}; sched_setscheduler(0, SCHED_FIFO, &sp);
        lock_(0)); sleeps(c); CHILD(lock_(0)); pause();
    return 0;
}""")  # fmt: skip
    with Machine(mem="64M") as m:
        m.spawn([program], stdin=b"")
        with pytest.raises(Deadlock):
            m.run()
        m.check()
        (pi,) = m.kernel.umtx_pis.values()
        first, second = pi.pi_blocked
        owner = pi.pi_owner

        def complaint(thing: object, name: str, value: object) -> str:
            old = getattr(thing, name)
            setattr(thing, name, value)
            with pytest.raises(Panic) as e:
                m.check()
            setattr(thing, name, old)
            m.check()
            return str(e.value)

        assert "the owner does not know" in complaint(owner, "lwp_pi_contested", ())
        assert "nobody waits for it" in complaint(pi, "pi_blocked", [])
        assert "wait in this order" in complaint(pi, "pi_blocked", [second, first])
        assert "does not know that it waits" in complaint(second, "uq_pi", None)
        assert "runs with priority 3, and is to with 9" in complaint(owner, "lwp_rtprio", 9)
        assert "that nobody knows of" in complaint(m.kernel, "umtx_pis", {})
