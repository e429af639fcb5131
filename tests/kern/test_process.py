"""fork, vfork, clone, exit, wait, groups, sessions, identities, scheduling calls: on the host and
in the machine."""

from __future__ import annotations

import os

import pytest

from dfvm import PIPE, Machine
from tests.kern.guest_util import build, by_guest, same


def test_fork_returns_twice() -> None:
    same(r"""
    int main(void) {
        int x = 1;
        pid_t me = getpid(), p = fork();
        if (!p) {
            x = 2;
            _exit(getppid() == me && getpid() != me ? x : 9);
        }
        int st;
        printf("%d ", waitpid(p, &st, 0) == p);
        printf("%d x %d\n", WEXITSTATUS(st), x);
        return 0;
    }
    """)


@pytest.mark.spec("SPACE-3")
def test_the_parent_of_a_vfork_can_be_killed() -> None:
    """It waits for its child, but a signal that is certain to end it does so at once."""
    same(r"""
    static int try(int sig, void *action, int blocked) {
        int ready[2], hold[2], status;
        pipe(ready);
        pipe(hold);
        pid_t p = fork();
        if (!p) {
            signal(sig, action);
            sigset_t s;
            sigemptyset(&s);
            if (blocked) sigaddset(&s, sig);
            sigprocmask(SIG_SETMASK, &s, 0);
            pid_t parent = getpid();
            if (!vfork()) {
                kill(parent, sig);  // it does not run before we let it, unless it is being killed
                write(ready[1], "", 1);
                close(hold[1]);
                if (sig == SIGTERM && action == SIG_DFL && !blocked) read(hold[0], &status, 1);
                _exit(0);
            }
            _exit(3);
        }
        char c;
        read(ready[0], &c, 1);
        waitpid(p, &status, 0);
        close(hold[1]);
        return status;
    }
    static void h(int s) {}
    int main(void) {
        printf("%x\n", try(SIGTERM, SIG_DFL, 0));
        printf("%x\n", try(SIGTERM, SIG_DFL, 1));
        printf("%x\n", try(SIGTERM, SIG_IGN, 0));
        printf("%x\n", try(SIGTERM, h, 0));
        printf("%x\n", try(SIGQUIT, h, 0));
        printf("%x\n", try(SIGCHLD, SIG_DFL, 0));
        return 0;
    }
    """)


def test_vfork_shares_memory_until_exec_or_exit() -> None:
    same(r"""
    static volatile int n;
    int main(int argc, char **argv) {
        if (argc > 1) return 8;
        pid_t p = vfork();
        if (!p) {
            n = 5;
            _exit(3);
        }
        int st;
        printf("n %d\n", n);
        wait(&st);
        printf("%d\n", WEXITSTATUS(st));
        p = vfork();
        if (!p) {
            n = 6;
            char *v[] = {argv[0], "x", 0};
            execv("/proc/self/exe", v);
            n = 7;
            _exit(1);
        }
        printf("n %d\n", n);
        wait(&st);
        printf("%d\n", WEXITSTATUS(st));
        p = vfork();
        if (!p) {
            char *v[] = {"x", 0};
            execv("/nonexistent", v);
            _exit(127);
        }
        wait(&st);
        printf("%d\n", WEXITSTATUS(st));
        return 0;
    }
    """)


@pytest.mark.spec("SPACE-3")
def test_clone_shares_what_it_says() -> None:
    same(r"""
    static volatile int n;
    static char stack[65536];
    static int child(void *a) {
        n++;
        close((long)a);
        signal(SIGUSR1, SIG_IGN);
        return 7;
    }
    #define RUN(flags)                                                               \
        do {                                                                         \
            int fd = dup(1), st;                                                     \
            n = 0;                                                                   \
            signal(SIGUSR1, SIG_DFL);                                                \
            pid_t p = clone(child, stack + sizeof stack, flags, (void *)(long)fd);   \
            if (p < 0) {                                                             \
                printf("%s: %d\n", #flags, errno);                                   \
                break;                                                               \
            }                                                                        \
            pid_t w = waitpid(p, &st, __WALL);                                       \
            struct sigaction a;                                                      \
            sigaction(SIGUSR1, 0, &a);                                               \
            printf("%s: waited %d status %d n %d fd %d ign %d\n", #flags, w == p,    \
                   WEXITSTATUS(st), n, fcntl(fd, F_GETFD), a.sa_handler == SIG_IGN); \
            close(fd);                                                               \
        } while (0)
    int main(void) {
        RUN(SIGCHLD);
        RUN(CLONE_VM | SIGCHLD);
        RUN(CLONE_VM | CLONE_VFORK | SIGCHLD);
        RUN(CLONE_FILES | SIGCHLD);
        RUN(CLONE_VM | CLONE_SIGHAND | SIGCHLD);
        RUN(CLONE_SIGHAND | SIGCHLD);
        RUN(0);
        RUN(SIGUSR2 & 0);
        RUN(CLONE_THREAD | SIGCHLD);
        pid_t tid = 0,
              p = syscall(SYS_clone, CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD, 0,
                          &tid, &tid, 0);
        if (!p) _exit(tid == getpid());
        int st;
        wait(&st);
        printf("settid %d %d\n", tid == p, WEXITSTATUS(st));
        return 0;
    }
    """)


def test_posix_spawn_and_system() -> None:
    same(r"""
    #include <spawn.h>
    extern char **environ;
    int main(int argc, char **argv) {
        if (argc > 1) {
            printf("spawned %s\n", argv[1]);
            return 4;
        }
        char path[300];
        int n = readlink("/proc/self/exe", path, 299);
        path[n] = 0;
        char *v[] = {argv[0], "yes", 0};
        pid_t p;
        int st;
        printf("%d\n", posix_spawn(&p, path, 0, 0, v, environ));
        waitpid(p, &st, 0);
        printf("%d\n", WEXITSTATUS(st));
        printf("%d\n", posix_spawn(&p, "/nonexistent", 0, 0, v, environ));
        fflush(stdout);
        return 0;
    }
    """)


def test_wait_variants() -> None:
    same(r"""
    #define T(x)                                                          \
        do {                                                              \
            errno = 0;                                                    \
            int r = (x);                                                  \
            printf("%s = %d %d\n", #x, r > 1 ? 1 : r, r < 0 ? errno : 0); \
        } while (0)
    int main(void) {
        int st;
        siginfo_t i;
        struct rusage ru;
        T(wait(&st));
        T(waitpid(-1, &st, WNOHANG));
        T(waitpid(1234567, &st, 0));
        T(waitpid(-1, &st, 0x100));
        T(waitid(P_ALL, 0, &i, 0));
        T(waitid(7, 0, &i, WEXITED));
        int p[2];
        pipe(p);
        pid_t a = fork();
        if (!a) {
            char c;
            close(p[1]);
            read(p[0], &c, 1);
            _exit(1);
        }
        pid_t b = fork();
        if (!b) {
            setpgid(0, 0);
            _exit(2);
        }
        setpgid(b, b);
        T(waitpid(a, &st, WNOHANG));
        memset(&i, 9, sizeof i);
        T(waitid(P_PID, a, &i, WEXITED | WNOHANG));
        printf("pid %d\n", i.si_pid);
        T(waitid(P_PID, b, &i, WEXITED | WNOWAIT));
        printf("%d %d %d %d\n", i.si_signo, i.si_code, i.si_status, i.si_pid == b);
        T(waitpid(-b, &st, 0));
        printf("%d\n", WEXITSTATUS(st));
        T(waitpid(-b, &st, 0));
        close(p[1]);
        T(wait4(a, &st, 0, &ru));
        printf("%d\n", st);
        T(waitpid(0, &st, 0));
        T(wait4(-1, (int *)8, 0, 0));
        a = fork();
        if (!a) _exit(0);
        T(wait4(a, (int *)8, 0, 0));
        return 0;
    }
    """)


def test_many_children_and_orphans() -> None:
    same(r"""
    int main(void) {
        for (int i = 0; i < 60; i++)
            if (!fork()) {
                int gone[2];
                pipe(gone);
                if (!fork()) {
                    char c;
                    close(gone[1]);
                    read(gone[0], &c, 1); /* until its parent is gone */
                    _exit(0);
                }
                _exit(i);
            }
        int sum = 0, st, n = 0;
        while (wait(&st) > 0) {
            sum += WEXITSTATUS(st);
            n++;
        }
        printf("%d %d %d\n", n, sum, errno);
        return 0;
    }
    """)


def test_orphans_go_to_init_or_the_subreaper() -> None:
    same(r"""
    int main(void) {
        int p[2];
        pipe(p);
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        if (!fork()) {
            if (!fork()) {
                char c;
                close(p[1]);
                read(p[0], &c, 1);
                _exit(getppid() == 1 ? 1 : 2);
            }
            _exit(9);
        }
        int st;
        wait(&st);
        printf("%d\n", WEXITSTATUS(st));
        close(p[1]);
        wait(&st);
        printf("%d\n", WEXITSTATUS(st));
        prctl(PR_SET_PDEATHSIG, 0);
        pipe(p);
        if (!fork()) {
            pid_t me = getpid();
            if (!fork()) {
                prctl(PR_SET_PDEATHSIG, SIGTERM);
                if (getppid() != me) raise(SIGTERM);
                write(p[1], "x", 1);
                pause();
                _exit(0);
            }
            char c;
            read(p[0], &c, 1);
            _exit(3);
        }
        for (int i = 0; i < 2; i++) {
            wait(&st);
            printf("%d\n", WIFSIGNALED(st) ? WTERMSIG(st) : WEXITSTATUS(st));
        }
        return 0;
    }
    """)


def test_groups_and_sessions() -> None:
    same(r"""
    #define T(x)                                                               \
        do {                                                                   \
            errno = 0;                                                         \
            long r = (x);                                                      \
            printf("%s = %d %d\n", #x, r > 1 ? 1 : (int)r, r < 0 ? errno : 0); \
        } while (0)
    int main(int argc, char **argv) {
        if (argc > 1) {
            pause();
            return 0;
        }
        pid_t c = fork();
        if (c) {
            int st;
            wait(&st);
            return WEXITSTATUS(st);
        }
        T(getpgrp() == getpgid(0));
        T(getsid(0) == getsid(getppid()));
        T(getpgid(1234567));
        T(getsid(1234567));
        T(setpgid(0, -1));
        T(setpgid(1234567, 0));
        T(setpgid(0, 1234567));
        T(setpgid(getppid(), 0));
        T(setpgid(0, 0));
        T(getpgrp() == getpid());
        T(setsid());
        pid_t g = fork();
        if (!g) {
            T(setsid() == getpid());
            T(getsid(0) == getpid());
            T(setsid());
            T(setpgid(0, 0));
            fflush(stdout);
            _exit(0);
        }
        waitpid(g, 0, 0);
        int p[2];
        pipe2(p, O_CLOEXEC);
        g = fork();
        if (!g) {
            char *v[] = {"x", "y", 0};
            execv("/proc/self/exe", v);
            _exit(1);
        }
        char ch;
        close(p[1]);
        read(p[0], &ch, 1);
        T(setpgid(g, g));
        kill(g, SIGKILL);
        waitpid(g, 0, 0);
        T(setpgid(g, g));
        return 0;
    }
    """)


def test_identities() -> None:
    same(r"""
    #define T(x)                                               \
        do {                                                   \
            errno = 0;                                         \
            long r = (x);                                      \
            printf("%s = %ld %d\n", #x, r, r < 0 ? errno : 0); \
        } while (0)
    static void ids(void) {
        uid_t r, e, s;
        getresuid(&r, &e, &s);
        printf("uid %d %d %d ", r, e, s);
        gid_t a, b, c;
        getresgid(&a, &b, &c);
        printf("gid %d %d %d\n", a, b, c);
    }
    int main(void) {
        if (getuid() != 0) {
            puts("not root");
            return 0;
        }
        ids();
        gid_t g[3] = {5, 6, 7};
        T(setgroups(3, g));
        T(getgroups(0, 0));
        T(getgroups(2, g));
        T(getgroups(3, g));
        printf("%d\n", g[2]);
        T(setregid(10, 11));
        ids();
        T(setresgid(-1, 12, 13));
        ids();
        T(setgid(14));
        ids();
        T(setreuid(-1, 20));
        ids();
        T(setuid(21));
        T(setuid(0));
        ids();
        T(setresuid(22, 23, 24));
        ids();
        T(setuid(0));
        T(seteuid(22));
        T(seteuid(24));
        ids();
        T(setresuid(0, -1, -1));
        T(setreuid(24, 22));
        ids();
        T(setgroups(0, g));
        T(setgid(0));
        T(setfsuid(22));
        T(setfsuid(-1));
        T(setfsgid(0));
        T(setfsgid(-1));
        T(prctl(PR_GET_DUMPABLE));
        T(kill(1, 0));
        T(setpriority(PRIO_PROCESS, 0, -5));
        T(nice(1));
        return 0;
    }
    """)


def test_scheduling_calls() -> None:
    same(r"""
    #define T(x)                                               \
        do {                                                   \
            errno = 0;                                         \
            long r = (x);                                      \
            printf("%s = %ld %d\n", #x, r, r < 0 ? errno : 0); \
        } while (0)
    int main(void) {
        struct sched_param p = {0}, q = {50};
        cpu_set_t s;
        CPU_ZERO(&s);
        CPU_SET(0, &s);
        T(sched_yield());
        T(sched_getscheduler(0));
        T(sched_setscheduler(0, SCHED_OTHER, &p));
        T(sched_setscheduler(0, SCHED_OTHER, &q));
        T(sched_setscheduler(0, 77, &p));
        T(sched_getparam(0, &p));
        T(sched_get_priority_max(SCHED_FIFO));
        T(sched_get_priority_min(SCHED_RR));
        T(sched_get_priority_max(SCHED_OTHER));
        T(sched_get_priority_max(99));
        T(sched_getscheduler(-1));
        T(sched_getscheduler(1234567));
        T(sched_setaffinity(0, sizeof s, &s));
        CPU_ZERO(&s);
        T(sched_setaffinity(0, sizeof s, &s));
        T(sched_getaffinity(0, 1, &s));
        T(sched_getaffinity(-1, 1, &s)); T(sched_getaffinity(-1, sizeof s, &s));
        T(sched_setaffinity(-1, sizeof s, &s)); T(sched_getscheduler(-1));
        CPU_ZERO(&s);
        T(sched_getaffinity(0, sizeof s, &s));
        T(CPU_ISSET(0, &s));
        T(sched_setscheduler(0, SCHED_FIFO, &p));
        return 0;
    }
    """)


def test_scheduling_class_and_cpus_are_remembered() -> None:
    out = same(r"""
    struct attr { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority;
                  uint64_t more[4]; };
    static void tell(const char *what) {
        struct sched_param p = {7};
        struct attr a = {0};
        cpu_set_t s;
        CPU_ZERO(&s);
        sched_getparam(0, &p);
        syscall(SYS_sched_getattr, 0, &a, sizeof a, 0);
        sched_getaffinity(0, sizeof s, &s);
        printf("%s: %x %d attr %u %lx %d %u cpus %d\n", what, sched_getscheduler(0),
               p.sched_priority, a.policy, (long)a.flags, a.nice, a.priority, CPU_COUNT(&s) == 1);
        fflush(stdout);
    }
    static void put(int policy) {
        struct sched_param p = {0};
        int r = sched_setscheduler(0, policy, &p);
        printf("%x -> %d %d\n", policy, r, r ? errno : 0);
    }
    static void attr(uint32_t policy, uint64_t flags, int nice) {
        struct attr a = {48, policy, flags, nice};
        int r = syscall(SYS_sched_setattr, 0, &a, 0);
        printf("attr %x %lx %d -> %d %d\n", policy, (long)flags, nice, r, r ? errno : 0);
        tell("after");
    }
    static void forked(const char *what) {
        fflush(stdout);
        if (!fork()) { tell(what); _exit(0); }
        wait(0);
    }
    int main(int argc, char **argv) {
        if (argc > 1) { tell("exec"); return 0; }
        setpriority(PRIO_PROCESS, 0, 0);  // whatever the tests are run with
        setgid(65534);
        setuid(65534);
        cpu_set_t s;
        sched_getaffinity(0, sizeof s, &s);
        int first = 0;
        while (!CPU_ISSET(first, &s)) first++;
        CPU_ZERO(&s);
        CPU_SET(first, &s);
        CPU_SET(1000, &s);  // not there
        printf("%d\n", sched_setaffinity(0, sizeof s, &s));
        tell("cpus");
        put(SCHED_BATCH); tell("batch"); forked("its child");
        put(SCHED_BATCH | SCHED_RESET_ON_FORK); tell("reset"); forked("its child");
        put(SCHED_BATCH);
        put(SCHED_OTHER | SCHED_RESET_ON_FORK);
        struct sched_param p = {0}, q = {5};
        printf("%d", sched_setparam(0, &p));
        printf(" %d\n", sched_setparam(0, &q));
        tell("param");
        attr(SCHED_BATCH, 1, 3);
        attr(SCHED_BATCH, 1, 1);
        attr(SCHED_BATCH, 0, 4);
        attr(SCHED_OTHER, 8, 5);
        attr(SCHED_OTHER, 1 | 16, 0);
        attr(99, 0, 5);
        put(SCHED_IDLE | SCHED_RESET_ON_FORK); tell("idle"); forked("its child");
        put(SCHED_OTHER | SCHED_RESET_ON_FORK); tell("stays idle");
        fflush(stdout);
        char *v[] = {argv[0], "x", 0};
        execv("/proc/self/exe", v);
    }
    """)
    assert b"batch: 3 0 attr 3 0 0 0 cpus 1\n" in out


def test_affinity_is_a_set_of_the_cpus_there_are() -> None:
    program = build(r"""
    int main(void) {
        cpu_set_t s;
        CPU_ZERO(&s);
        CPU_SET(1, &s); CPU_SET(2, &s); CPU_SET(40, &s);
        printf("%d", sched_setaffinity(0, sizeof s, &s));
        CPU_ZERO(&s);
        CPU_SET(4, &s);
        printf(" %d", sched_setaffinity(0, sizeof s, &s) < 0 ? errno : 0);
        CPU_ZERO(&s);
        sched_getaffinity(0, sizeof s, &s);
        for (int i = 0; i < 1024; i++) if (CPU_ISSET(i, &s)) printf(" cpu%d", i);
        return 0;
    }
    """)
    with Machine(ncpu=4) as m:
        p = m.spawn([str(program)], stdout=PIPE)
        m.run()
        assert p.stdout == b"0 22 cpu1 cpu2"


def test_nice_shares_the_cpu() -> None:
    """Two that compute: the nicer one gets clearly less done."""
    status, out = by_guest(
        build(r"""
    int main(void) {
        setpriority(PRIO_PROCESS, 0, 0);
        long *n = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        pid_t p[2];
        for (int i = 0; i < 2; i++)
            if (!(p[i] = fork())) {
                if (i) nice(10);
                volatile long *m = &n[8 * i];
                for (;;) ++*m;
            }
        while (n[8] < 5000000) usleep(10000); /* until the nicer one has had a few turns */
        for (int i = 0; i < 2; i++) kill(p[i], SIGKILL);
        printf("%d\n", n[0] > 2 * n[8]);
        return 0;
    }
    """)
    )
    assert (status, out) == (0, b"1\n")


def test_usage_of_children() -> None:
    same(r"""
    int main(void) {
        struct rusage a, b;
        if (!fork()) {
            volatile char *m = malloc(4 << 20);
            for (int i = 0; i < 4 << 20; i += 4096) m[i] = 1;
            volatile long i;
            for (i = 0; i < 100000000; i++);
            _exit(0);
        }
        wait4(-1, 0, 0, &a);
        getrusage(RUSAGE_CHILDREN, &b);
        printf("time %d faults %d rss %d same %d\n",
               a.ru_utime.tv_sec * 1000000 + a.ru_utime.tv_usec > 10000, a.ru_minflt > 50,
               a.ru_maxrss > 3000, a.ru_minflt == b.ru_minflt);
        return 0;
    }
    """)


def test_exit_codes() -> None:
    for code, expected in ((0, 0), (255, 255), (256, 0), (-1, 255)):
        assert by_guest(build(f"int main(void) {{ _exit({code}); }}"))[0] == expected


def test_exit_flushes_and_atexit() -> None:
    same(r"""
    static void bye(void) { printf("bye\n"); }
    int main(void) {
        atexit(bye);
        printf("no newline");
        exit(6);
    }
    """)


def test_fork_bomb_is_bounded() -> None:
    """RLIMIT_NPROC; root is not bound by it, so with another identity."""
    status, out = by_guest(
        build(r"""
    int main(void) {
        setuid(1000);
        struct rlimit r = {20, 20};
        setrlimit(RLIMIT_NPROC, &r);
        int n = 0, p[2];
        pipe(p);
        for (;;) {
            pid_t q = fork();
            if (q < 0) break;
            if (!q) {
                char c;
                close(p[1]);
                read(p[0], &c, 1);
                _exit(0);
            }
            n++;
        }
        printf("%d %d\n", n < 25, errno == EAGAIN);
        close(p[1]);
        while (wait(0) > 0);
        return 0;
    }
    """)
    )
    assert (status, out) == (0, b"1 1\n")


def test_waitid_tells_what_it_knows_and_zeros() -> None:
    """Only the fields it knows are written; those even when it fails."""
    same(r"""
    static siginfo_t si;
    static void tell(const char *what, int idtype, int id, int options) {
        memset(&si, 0x5a, sizeof si);
        errno = 0;
        int r = waitid(idtype, id, &si, options);
        printf("%s: %d %d signo %x code %x pid %d status %x utime %lx pad %x\n", what, r, errno,
               si.si_signo, si.si_code, si.si_pid == id && id, si.si_status, si.si_utime,
               ((int *)&si)[3]);
    }
    int main(void) {
        tell("none", P_ALL, 0, WEXITED);
        tell("options", P_ALL, 0, 0);
        printf("%d\n", waitid(P_ALL, 0, (void *)-1, WEXITED) < 0 ? errno : 0);
        pid_t p = fork();
        if (!p) for (;;) pause();
        tell("not yet", P_PID, p, WEXITED | WNOHANG);
        kill(p, SIGKILL);
        tell("killed", P_PID, p, WEXITED);
        printf("%d\n", setpgid(-1, 0) < 0 ? errno : 0);
        return 0;
    }
    """)


REALTIME = r"""
    static int ready[2];
    static void say(const char *what, int n) {
        char b[32];
        write(1, b, sprintf(b, "%s%d ", what, n));
    }
    static int be(int pid, int policy, int priority) {
        struct sched_param p = {priority};
        return sched_setscheduler(pid, policy, &p);
    }
    static void spin(long ms) {
        struct timespec a, b;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
        do clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
        while ((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < ms);
    }
    """


@pytest.mark.skipif(os.getuid() != 0, reason="real-time classes are for root")
def test_realtime_threads_go_first() -> None:
    """By priority, when they wake, when they or others are moved, and before those that are none;
    equals one after the other, or in turns when they are round robin."""
    program = build(
        REALTIME
        + r"""
    int main(void) {
        static const int priority[] = {40, 30, 60, 0, 45};
        int go[2];
        char c;
        pipe(ready), pipe(go);
        be(0, SCHED_FIFO, 50);
        for (int i = 0; i < 5; i++)
            if (!fork()) {
                be(0, priority[i] ? SCHED_FIFO : SCHED_OTHER, priority[i]);
                say("start", priority[i]);
                write(ready[1], "", 1);
                read(go[0], &c, 1);
                say("woken", priority[i]);
                exit(0);
            }
        say("made", 50);
        for (int i = 0; i < 5; i++) read(ready[0], &c, 1);
        for (int i = 0; i < 5; i++) write(go[1], "", 1);
        say("wrote", 50);
        while (wait(0) > 0);
        puts(""), fflush(stdout);
        for (int i = 0; i < 3; i++)
            if (!fork()) {
                say("a", i), spin(30), say("b", i), sched_yield(), say("c", i);
                exit(0);
            }
        while (wait(0) > 0);
        puts(""), fflush(stdout);
        pid_t p = fork();
        if (!p) { say("child", 0); exit(0); }
        say("raise", 0), be(p, SCHED_FIFO, 70), say("raised", 0);
        if (!fork()) { say("child", 1); exit(0); }
        say("lower", 0), be(0, SCHED_FIFO, 20), say("lowered", 0);
        while (wait(0) > 0);
        puts(""), fflush(stdout);
        // Nobody starves, and the limit on real-time computing holds.
        p = fork();
        if (!p) {
            be(0, SCHED_FIFO, 99);
            for (;;);
        }
        be(0, SCHED_OTHER, 0);
        int st;
        spin(20), kill(p, SIGKILL), wait(&st);
        printf("%x", st);
        if (!fork()) {
            struct rlimit rl = {100000, 200000};
            setrlimit(RLIMIT_RTTIME, &rl);
            be(0, SCHED_RR, 1);
            signal(SIGXCPU, SIG_IGN);
            for (;;);
        }
        wait(&st);
        printf(" %x\n", st);
        return 0;
    }
    """
    )
    assert by_guest(program) == (
        0,
        b"made50 start60 start45 start40 start30 start0 "
        b"woken60 wrote50 woken45 woken40 woken30 woken0 \n"
        b"a0 b0 a1 b1 a2 b2 c0 c1 c2 \n"
        b"raise0 child0 raised0 lower0 child1 lowered0 \n9 9\n",
    )


def test_realtime_arguments_and_rights() -> None:
    same(
        REALTIME
        + r"""
    #define E(x) (errno = 0, printf("%s %d\n", #x, (int)(x) < 0 ? -errno : 0), fflush(stdout))
    #define S(name, ...) syscall(SYS_sched_##name, __VA_ARGS__)
    static struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority;
                    uint64_t more[10]; } a;
    int main(int argc, char **argv) {
        void *bad = (void *)-1;
        struct sched_param p = {5};
        struct timespec t;
        if (argc > 1) {
            printf("exec %x\n", sched_getscheduler(0));
            return 0;
        }
        for (int i = 5; i < 9; i++)
            E(sched_get_priority_max(i)), E(sched_get_priority_min(i));
        E(S(setscheduler, 0, 0, 0)), E(S(setscheduler, -1, 0, bad)), E(S(setparam, 0, 0));
        E(S(getparam, 0, 0)), E(S(getparam, 0, bad)), E(S(setattr, 0, 0, 0));
        E(S(getattr, 0, 0, 48, 0)), E(S(setattr, -1, bad, 0));
        a.size = 47, E(S(setattr, 0, &a, 0)), printf("size %d\n", a.size > 47);
        a.size = 120, a.more[9] = 1, E(S(setattr, 0, &a, 0));
        E(be(0, SCHED_FIFO, 0)), E(be(0, SCHED_FIFO, 100)), E(be(0, SCHED_OTHER, 1));
        if (be(0, SCHED_RR | SCHED_RESET_ON_FORK, 7)) return 0;
        E(sched_rr_get_interval(0, &t)), printf("%ld\n", t.tv_nsec);
        E(sched_getparam(0, &p)), printf("%d\n", p.sched_priority);
        S(getattr, 0, &a, sizeof a, 0);
        printf("%u %lu %d %u\n", a.policy, a.flags, a.nice, a.priority);
        if (!fork()) {
            printf("%x ", sched_getscheduler(0)), fflush(stdout);
            E(be(0, SCHED_FIFO, 8)), E(be(getppid(), SCHED_RR, 6));
            execl("/proc/self/exe", "x", "y", (char *)0);
        }
        wait(0);
        E(be(0, SCHED_FIFO, 8));
        E(sched_rr_get_interval(0, &t)), printf("%ld\n", t.tv_nsec);
        setuid(1234);
        E(be(0, SCHED_FIFO, 8)), E(be(0, SCHED_FIFO, 9)), E(be(0, SCHED_FIFO, 2));
        E(be(0, SCHED_FIFO, 8)), E(be(0, SCHED_RR, 2)), E(be(0, SCHED_OTHER, 0));
        E(be(0, SCHED_FIFO, 1));
        return 0;
    }
    """
    )


def test_what_prctl_remembers() -> None:
    same(r"""
    #define P(...) (errno = 0, printf("%s %ld", #__VA_ARGS__,                  \
                                      (long)syscall(SYS_prctl, __VA_ARGS__)),  \
                    printf(" %d\n", errno), fflush(stdout))
    int main(void) {
        P(30, 0, 0, 0, 0);
        P(29, 70000, 0, 0, 0);
        P(33, 0, 2, 0, 0);
        P(33, 1, 3, 0, 0);
        P(33, 1, 1, 1, 0);
        P(33, 1, 1, 0, 0);
        P(41, 1, 1, 0, 0);
        P(41, 1, 0, 0, 0);
        P(14, 1, 0, 0, 0);
        P(14, 0, 0, 0, 0);
        if (!fork()) {
            P(30, 0, 0, 0, 0);
            P(29, 5, 0, 0, 0);
            P(29, 0, 0, 0, 0);
            P(30, 0, 0, 0, 0);
            P(34, 0, 0, 0, 0);
            P(34, 1, 0, 0, 0);
            P(42, 0, 0, 0, 0);
            P(42, 1, 0, 0, 0);
            exit(0);
        }
        wait(0);
        P(33, 0, 0, 0, 0);
        P(34, 0, 0, 0, 0);
        return 0;
    }
    """)


def test_what_is_asked_of_the_dead_is_answered() -> None:
    same(
        r"""
    #include <sched.h>
    int main(void) {
        siginfo_t info;
        struct sched_param param = {7};
        struct timespec slice = {7};
        unsigned attr[14] = {0};
        cpu_set_t cpus;
        pid_t p = fork();
        if (!p) nice(5), _exit(0);
        waitid(P_PID, p, &info, WEXITED | WNOWAIT);
        printf("%d %d\n", sched_getscheduler(p), sched_getparam(p, &param));
        printf("%d %d\n", param.sched_priority, sched_getaffinity(p, sizeof cpus, &cpus));
        printf("%d %ld\n", sched_rr_get_interval(p, &slice), slice.tv_sec);
        printf("%ld %u %d\n", syscall(SYS_sched_getattr, p, attr, 56, 0), attr[1], attr[4]);
        waitpid(p, 0, 0), printf("%d %d\n", sched_getaffinity(p, sizeof cpus, &cpus), errno);
        return 0;
    }
    """
    )
