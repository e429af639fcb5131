"""Signals, each rule by a program that shows it, on the host and in the machine."""

from __future__ import annotations

import pytest

from tests.kern.guest_util import SLEEPS, build, by_guest, same

SIGINFO = r"""
    static const char *src;
    static void show(int s, siginfo_t *i, void *c) {
        ucontext_t *u = c;
        printf("%s: sig %d code %d errno %d", src, s, i->si_code, i->si_errno);
        if (s == SIGSEGV || s == SIGBUS)
            printf(" addr %p trap %lld err %lld cr2 %llx", i->si_addr,
                   u->uc_mcontext.gregs[REG_TRAPNO], u->uc_mcontext.gregs[REG_ERR] & 6,
                   u->uc_mcontext.gregs[REG_CR2]);
        if (s == SIGFPE || s == SIGILL)
            printf(" at rip %d", i->si_addr == (void *)u->uc_mcontext.gregs[REG_RIP]);
        if (i->si_code <= 0)
            printf(" mine %d uid %d", i->si_pid == getpid(), i->si_uid == getuid());
        if (i->si_code == SI_QUEUE) printf(" value %d", i->si_value.sival_int);
        printf("\n");
    }
    static sigjmp_buf jb;
    static void show_jump(int s, siginfo_t *i, void *c) {
        show(s, i, c);
        siglongjmp(jb, 1);
    }
    static void on(int s, void (*f)(int, siginfo_t *, void *), int flags) {
        struct sigaction a = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};
        if (sigaction(s, &a, 0)) perror("sigaction");
    }
    """


@pytest.mark.spec("FAULT-10")
def test_synchronous_siginfo() -> None:
    """Codes, addresses and what the ucontext says of faults; siglongjmp out of the handler."""
    out = same(
        SIGINFO
        + r"""
    int main(void) {
        on(SIGSEGV, show_jump, 0);
        on(SIGBUS, show_jump, 0);
        on(SIGFPE, show_jump, 0);
        on(SIGILL, show_jump, 0);
        on(SIGTRAP, show, 0);
        char *ro = mmap((void *)0x10000000, 4096, PROT_READ,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        volatile int zero = 0, r;
        src = "unmapped read";
        if (!sigsetjmp(jb, 1)) r = *(volatile char *)0x12345678;
        src = "unmapped write";
        if (!sigsetjmp(jb, 1)) *(volatile char *)0x12345678 = 1;
        src = "null";
        if (!sigsetjmp(jb, 1)) r = *(volatile char *)0;
        src = "read only";
        if (!sigsetjmp(jb, 1)) *(volatile char *)ro = 1;
        src = "no exec";
        if (!sigsetjmp(jb, 1)) ((void (*)(void))ro)();
        src = "kernel address";
        if (!sigsetjmp(jb, 1)) r = *(volatile char *)0xffffffff81000000;
        src = "divide";
        if (!sigsetjmp(jb, 1)) r = 1 / zero;
        src = "ud2";
        if (!sigsetjmp(jb, 1)) __asm__ volatile("ud2");
        src = "int3";
        __asm__ volatile("int3");
        src = "hlt";
        if (!sigsetjmp(jb, 1)) __asm__ volatile("hlt");
        src = "non-canonical";
        if (!sigsetjmp(jb, 1)) r = *(volatile char *)0x8000000000000000;
        FILE *f = tmpfile();
        ftruncate(fileno(f), 100);
        char *m =
            mmap((void *)0x20000000, 8192, PROT_READ, MAP_SHARED | MAP_FIXED, fileno(f), 0);
        src = "beyond end";
        if (!sigsetjmp(jb, 1)) r = m[5000];
        return 0;
    }
    """
    )
    assert out.count(b"\n") >= 11


def test_sent_siginfo() -> None:
    same(
        SIGINFO
        + r"""
    int main(void) {
        on(SIGUSR1, show, 0);
        on(SIGRTMIN + 3, show, 0);
        src = "kill";
        kill(getpid(), SIGUSR1);
        src = "raise";
        raise(SIGUSR1);
        src = "sigqueue";
        sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 42});
        src = "tgkill";
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1);
        src = "queued";
        sigset_t s;
        sigemptyset(&s);
        sigaddset(&s, SIGRTMIN + 3);
        sigaddset(&s, SIGUSR1);
        sigprocmask(SIG_BLOCK, &s, 0);
        for (int i = 0; i < 3; i++) {
            sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = i});
            sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = i});
        }
        sigset_t p;
        sigpending(&p);
        printf("pending %d %d\n", sigismember(&p, SIGUSR1), sigismember(&p, SIGRTMIN + 3));
        sigprocmask(SIG_UNBLOCK, &s, 0);
        return 0;
    }
    """
    )


def test_registers_and_fpu_survive() -> None:
    """A handler that uses everything must not disturb what it interrupted; nested handlers too."""
    same(r"""
    static volatile int depth;
    static void h(int s) {
        double d = s;
        for (int i = 0; i < 50; i++) d = d * 1.5 + i;
        __asm__ volatile("fldpi; fstp %%st(0); pcmpeqd %%xmm7, %%xmm7; std; cld" ::: "xmm7");
        volatile long double l = d;
        l *= 3;
        if (depth++ < 3) raise(SIGUSR1);
    }
    int main(void) {
        struct sigaction a = {.sa_handler = h, .sa_flags = SA_NODEFER};
        sigaction(SIGUSR1, &a, 0);
        double x = 1.0 / 3;
        long double y = 1.0L / 7;
        unsigned long out[2], in = 0x123456789abcdef0;
        long pid = getpid();
        __asm__ volatile(
            "fldpi; movq %3, %%xmm7; mov $0x1111, %%r12; mov $62, %%eax; mov %4, %%rdi;"
            "mov $10, %%esi; stc; syscall; mov %%r12, %0; movq %%xmm7, %1; fstpt %2"
            : "=m"(out[0]), "=m"(out[1]), "=m"(y)
            : "r"(in), "r"(pid)
            : "rax", "rdi", "rsi", "rcx", "r11", "r12", "xmm7", "memory");
        printf("%lx %lx %.10Lf %.10f depth %d\n", out[0], out[1], y, x, depth);
        return 0;
    }
    """)


def test_a_handler_starts_with_a_fresh_fpu() -> None:
    """Whatever precision, rounding, exceptions and x87 registers it interrupts."""
    same(r"""
    struct state { unsigned short control, status, tags; unsigned mxcsr; };
    static void show(const char *what) {
        struct { unsigned w[7]; } env;
        unsigned mxcsr;
        unsigned long xmm7;
        __asm__ volatile("fnstenv %0; fldenv %0; stmxcsr %1; movq %%xmm7, %2"
                         : "=m"(env), "=m"(mxcsr), "=r"(xmm7));
        printf("%s: %x %x %x %x %lx\n", what, env.w[0] & 0xffff, env.w[1] & 0xffff,
               env.w[2] & 0xffff, mxcsr, xmm7);
    }
    static void h(int s) { show("handler"); }
    int main(void) {
        unsigned short control = 0x0c7f;
        unsigned mxcsr = 0x7f85;
        unsigned long x = 0x123456789abcdef0;
        signal(SIGUSR1, h);
        long pid = getpid();
        __asm__ volatile("fldcw %0; ldmxcsr %1; fld1; fldpi; fld1; fldz; fdivrp; movq %2, %%xmm7;"
                         "mov $62, %%eax; mov %3, %%rdi; mov $10, %%esi; syscall"
                         : : "m"(control), "m"(mxcsr), "r"(x), "r"(pid)
                         : "rax", "rdi", "rsi", "rcx", "r11", "xmm7", "memory");
        show("main");
        return 0;
    }
    """)


def test_altstack() -> None:
    """SA_ONSTACK, SS_ONSTACK while there, EPERM to change it there, a stack overflow caught on it,
    SS_AUTODISARM."""
    same(
        SIGINFO
        + r"""
    static char alt[65536], alt2[65536];
    static int in(void *p) { return (char *)p >= alt && (char *)p < alt + sizeof alt; }
    static void h(int s, siginfo_t *i, void *c) {
        stack_t ss, old;
        int x;
        sigaltstack(0, &old);
        ss.ss_sp = alt2;
        ss.ss_size = sizeof alt2;
        ss.ss_flags = 0;
        int r = sigaltstack(&ss, 0);
        ucontext_t *u = c;
        printf("in %d flags %x set %d %s saved %d\n", in(&x), old.ss_flags, r,
               r ? strerror(errno) : "", u->uc_stack.ss_sp == alt);
    }
    static void overflow_h(int s, siginfo_t *i, void *c) {
        int x;
        printf("overflow on alt %d code %d\n", in(&x), i->si_code);
        siglongjmp(jb, 1);
    }
    static int deep(int n) {
        volatile char b[10000];
        b[0] = n;
        return deep(n + 1) + b[0];
    }
    int main(void) {
        stack_t ss = {.ss_sp = alt, .ss_size = sizeof alt}, old;
        sigaltstack(0, &old);
        printf("flags %x\n", old.ss_flags);
        sigaltstack(&ss, 0);
        on(SIGUSR1, h, 0);
        raise(SIGUSR1);
        on(SIGUSR1, h, SA_ONSTACK);
        raise(SIGUSR1);
        ss.ss_flags = 1u << 31;
        printf("autodisarm %d\n", sigaltstack(&ss, 0));
        raise(SIGUSR1);
        sigaltstack(0, &old);
        printf("after %x %d\n", old.ss_flags, old.ss_sp == alt);
        ss.ss_flags = 0;
        ss.ss_size = 100;
        printf("small %d %s\n", sigaltstack(&ss, 0), strerror(errno));
        ss.ss_size = sizeof alt;
        sigaltstack(&ss, 0);
        on(SIGSEGV, overflow_h, SA_ONSTACK);
        if (!sigsetjmp(jb, 1)) deep(0);
        ss.ss_flags = SS_DISABLE;
        sigaltstack(&ss, 0);
        sigaltstack(0, &old);
        printf("disabled %x\n", old.ss_flags);
        return 0;
    }
    """
    )


def test_flags() -> None:
    """SA_RESETHAND, SA_NODEFER, masks during handlers, unknown flags, SIGKILL and SIGSTOP."""
    same(
        SIGINFO
        + r"""
    static volatile int n;
    static void nest(int s) {
        int d = ++n;
        if (d < 3) { raise(SIGUSR1); }
        printf("nest %d of %d\n", d, n);
    }
    static void masked(int s) {
        sigset_t m;
        sigprocmask(0, 0, &m);
        printf("masked USR1 %d USR2 %d INT %d\n", sigismember(&m, SIGUSR1),
               sigismember(&m, SIGUSR2), sigismember(&m, SIGINT));
    }
    int main(void) {
        struct sigaction a = {.sa_handler = nest}, old;
        sigset_t m;
        sigaction(SIGUSR1, &a, 0);
        raise(SIGUSR1);
        n = 0;
        a.sa_flags = SA_NODEFER;
        sigaction(SIGUSR1, &a, 0);
        raise(SIGUSR1);
        a.sa_handler = masked;
        a.sa_flags = SA_RESETHAND;
        sigemptyset(&a.sa_mask);
        sigaddset(&a.sa_mask, SIGUSR2);
        sigaddset(&a.sa_mask, SIGKILL);
        sigaction(SIGUSR1, &a, 0);
        raise(SIGUSR1);
        sigaction(SIGUSR1, 0, &old);
        printf("reset to default %d flags %x\n", old.sa_handler == SIG_DFL,
               old.sa_flags & ~0x4000000);
        a.sa_flags = 0x40 | 0x10;
        sigaction(SIGUSR2, &a, 0);
        sigaction(SIGUSR2, 0, &old);
        printf("kill in mask %d\n", sigismember(&old.sa_mask, SIGKILL));
        printf("%d %d\n", sigaction(SIGKILL, &a, 0), errno);
        printf("%d %d\n", sigaction(SIGSTOP, &a, 0), errno);
        printf("%d %d\n", (int)syscall(SYS_rt_sigaction, 65, 0, 0, 8), errno);
        printf("%d %d\n", (int)syscall(SYS_rt_sigaction, 1, 0, 0, 4), errno);
        sigfillset(&m);
        sigprocmask(SIG_SETMASK, &m, 0);
        sigprocmask(0, 0, &m);
        printf("full %d %d %d\n", sigismember(&m, SIGKILL), sigismember(&m, SIGSTOP),
               sigismember(&m, 64));
        printf("%d %d\n", sigprocmask(7, &m, 0), errno);
        return 0;
    }
    """
    )


def test_restart() -> None:
    """SA_RESTART of read and wait; EINTR without; nanosleep tells the rest; pause and sigsuspend
    always end."""
    same(
        SLEEPS
        + r"""
    static volatile int hits;
    static void h(int s) { hits++; }
    static void set(int flags) {
        struct sigaction a = {.sa_handler = h, .sa_flags = flags};
        sigaction(SIGALRM, &a, 0);
    }
    int main(void) {
        int p[2];
        char c;
        pipe(p);
        set(0);
        when_asleep(SIGALRM);
        int r = read(p[0], &c, 1), parent = getpid();
        printf("read %d %d hits %d\n", r, errno, hits);
        set(SA_RESTART);
        fflush(stdout);
        if (!fork()) {
            sleeps(parent);
            kill(parent, SIGALRM);
            sleeps(parent);
            write(p[1], "x", 1);
            _exit(5);
        }
        errno = 0;
        r = read(p[0], &c, 1);
        printf("read %d %d hits %d\n", r, errno, hits);
        int st;
        wait(&st);
        if (!fork()) {
            sleeps(parent);
            kill(parent, SIGALRM);
            sleeps(parent);
            _exit(6);
        }
        r = wait(&st);
        printf("wait %d %d hits %d\n", r > 0, WEXITSTATUS(st), hits);
        struct timespec t = {100000, 0}, rem = {9, 9};
        when_asleep(SIGALRM);
        r = nanosleep(&t, &rem);
        printf("nanosleep %d %d left %d hits %d\n", r, errno,
               rem.tv_sec > 90000 && rem.tv_sec <= 100000, hits);
        when_asleep(SIGALRM);
        r = pause();
        printf("pause %d %d hits %d\n", r, errno, hits);
        sigset_t s, e;
        sigemptyset(&e);
        sigemptyset(&s);
        sigaddset(&s, SIGALRM);
        sigprocmask(SIG_BLOCK, &s, 0);
        kill(parent, SIGALRM);
        printf("blocked: hits %d\n", hits);
        r = sigsuspend(&e);
        printf("sigsuspend %d %d hits %d\n", r, errno, hits);
        sigprocmask(0, 0, &e);
        printf("mask back %d\n", sigismember(&e, SIGALRM));
        return 0;
    }
    """
    )


def test_sigtimedwait() -> None:
    same(
        SLEEPS
        + r"""
    int main(void) {
        sigset_t s;
        sigemptyset(&s);
        sigaddset(&s, SIGUSR1);
        sigaddset(&s, SIGCHLD);
        sigaddset(&s, SIGRTMIN);
        sigprocmask(SIG_BLOCK, &s, 0);
        struct timespec z = {0, 0}, t = {0, 30000000}, bad = {0, -1};
        siginfo_t i;
        printf("%d %d\n", sigtimedwait(&s, &i, &z), errno);
        printf("%d %d\n", sigtimedwait(&s, &i, &t), errno);
        printf("%d %d\n", sigtimedwait(&s, &i, &bad), errno);
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 7});
        int r = sigtimedwait(&s, &i, &t);
        printf("%d value %d code %d\n", r - SIGRTMIN, i.si_value.sival_int, i.si_code);
        pid_t c = fork();
        if (!c) {
            sleeps(getppid());
            kill(getppid(), SIGUSR1);
            sleeps(getppid());
            _exit(3);
        }
        r = sigwaitinfo(&s, &i);
        printf("%d from child %d\n", r, i.si_pid == c);
        r = sigwaitinfo(&s, &i);
        printf("%d code %d status %d child %d\n", r, i.si_code, i.si_status, i.si_pid == c);
        return 0;
    }
    """
    )


def test_default_actions() -> None:
    """What each signal does to a process that has not asked for anything."""
    same(r"""
    int main(void) {
        for (int s = 1; s <= 64; s++) {
            pid_t p = fork();
            if (!p) {
                struct rlimit r = {0, 0};
                setrlimit(RLIMIT_CORE, &r);
                raise(s);
                _exit(7);
            }
            int st;
            waitpid(p, &st, WUNTRACED);
            if (WIFSTOPPED(st)) {
                printf("%d stop %d;", s, WSTOPSIG(st));
                kill(p, SIGKILL);
                waitpid(p, &st, 0);
            }
            printf("%d %s %d\n", s, WIFSIGNALED(st) ? "killed" : "exited",
                   WIFSIGNALED(st) ? WTERMSIG(st) : WEXITSTATUS(st));
        }
        return 0;
    }
    """)


def test_blocked_or_ignored_fault_kills() -> None:
    same(r"""
    int main(void) {
        for (int how = 0; how < 3; how++) {
            pid_t p = fork();
            if (!p) {
                sigset_t s;
                sigfillset(&s);
                if (how == 0) sigprocmask(SIG_BLOCK, &s, 0);
                if (how == 1) signal(SIGSEGV, SIG_IGN);
                if (how == 2) {
                    struct sigaction a = {.sa_handler = (void *)0x123, .sa_flags = 0};
                    sigaction(SIGSEGV, &a, 0);
                }
                *(volatile int *)8 = 1;
                _exit(0);
            }
            int st;
            wait(&st);
            printf("%d %d\n", how, WTERMSIG(st));
        }
        return 0;
    }
    """)


def test_frame_without_room_kills() -> None:
    """No stack for the frame: SIGSEGV, and for its handler as little."""
    same(r"""
    static void h(int s) { _exit(9); }
    int main(void) {
        struct sigaction a = {.sa_handler = h};
        sigaction(SIGUSR1, &a, 0);
        sigaction(SIGSEGV, &a, 0);
        pid_t p = fork();
        if (!p)
            __asm__ volatile("mov $0x1000, %%rsp; mov $62, %%eax; mov %0, %%edi; mov $10, "
                             "%%esi; syscall" ::"r"(getpid()));
        int st;
        wait(&st);
        printf("%d\n", st);
        return 0;
    }
    """)


def test_sigreturn_of_nonsense_kills() -> None:
    same(r"""
    int main(void) {
        pid_t p = fork();
        if (!p) {
            memset((char *)&p - 64, 0xff, 32);
            __asm__ volatile("mov $8, %%rsp; mov $15, %%eax; syscall" ::: "memory");
            _exit(0);
        }
        int st;
        wait(&st);
        printf("%d\n", st);
        return 0;
    }
    """)


def test_handler_may_change_the_context() -> None:
    """Skipping an instruction by changing RIP; changing the mask that is restored."""
    same(r"""
    static void h(int s, siginfo_t *i, void *c) {
        ucontext_t *u = c;
        u->uc_mcontext.gregs[REG_RIP] += 2;
        u->uc_mcontext.gregs[REG_RAX] = 77;
        sigaddset(&u->uc_sigmask, SIGUSR2);
    }
    int main(void) {
        struct sigaction a = {.sa_sigaction = h, .sa_flags = SA_SIGINFO};
        sigaction(SIGILL, &a, 0);
        long r;
        __asm__ volatile("mov $1, %%eax; ud2; mov %%rax, %0" : "=r"(r)::"rax");
        sigset_t m;
        sigprocmask(0, 0, &m);
        printf("%ld %d\n", r, sigismember(&m, SIGUSR2));
        return 0;
    }
    """)


def test_frame_layout() -> None:
    """What libraries look at: selectors, flags, fpstate, the red zone, alignment."""
    same(r"""
    static unsigned long sp0;
    static void h(int s, siginfo_t *i, void *c) {
        ucontext_t *u = c;
        greg_t *g = u->uc_mcontext.gregs;
        struct _libc_fpstate *f = u->uc_mcontext.fpregs;
        unsigned long fl = (unsigned long)g[REG_CSGSFS];
        printf("cs %lx ss %lx flags-ss %lx if %d fx %d cwd %x mxcsr %x mask %x aligned %d "
               "below redzone %d\n",
               fl & 0xffff, fl >> 48, u->uc_flags & 6, !!(g[REG_EFL] & 0x200),
               (unsigned long)f % 64 == 0, f->cwd, f->mxcsr, f->mxcr_mask & 0xffff,
               (unsigned long)__builtin_frame_address(0) % 16 == 0,
               (unsigned long)f + 512 <= g[REG_RSP] - 128);
        printf("xmm3 %x%08x\n", f->_xmm[3].element[1], f->_xmm[3].element[0]);
    }
    int main(void) {
        struct sigaction a = {.sa_sigaction = h, .sa_flags = SA_SIGINFO};
        sigaction(SIGUSR1, &a, 0);
        unsigned long v = 0xfeedface12345678;
        long pid = getpid();
        __asm__ volatile(
            "movq %0, %%xmm3; mov $62, %%eax; mov %1, %%rdi; mov $10, %%esi; syscall" ::"r"(
                v),
            "r"(pid)
            : "rax", "rdi", "rsi", "rcx", "r11", "xmm3", "memory");
        return 0;
    }
    """)


def test_stop_and_continue() -> None:
    """Stops are seen by wait, SIGCONT continues even when blocked, SIGKILL works on the stopped."""
    same(
        SLEEPS
        + r"""
    static volatile int conts;
    static void h(int s) { conts++; }
    int main(void) {
        int st;
        pid_t p = fork();
        if (!p) {
            signal(SIGCONT, h);
            raise(SIGSTOP);
            sleeps(getppid()); /* it has heard of it */
            raise(SIGTSTP);
            sleeps(getppid());
            _exit(conts);
        }
        for (;;) {
            waitpid(p, &st, WUNTRACED | WCONTINUED);
            if (WIFSTOPPED(st)) {
                printf("stopped %d\n", WSTOPSIG(st));
                kill(p, SIGCONT);
            } else if (WIFCONTINUED(st)) printf("continued %x\n", st);
            else {
                printf("exit %d\n", WEXITSTATUS(st));
                break;
            }
        }
        p = fork();
        if (!p) {
            for (;;) pause();
        }
        kill(p, SIGSTOP);
        waitpid(p, &st, WUNTRACED);
        printf("stopped %d\n", WIFSTOPPED(st));
        printf("again %d\n", waitpid(p, &st, WUNTRACED | WNOHANG));
        kill(p, SIGTERM);
        printf("still %d\n", waitpid(p, &st, WUNTRACED | WNOHANG));
        kill(p, SIGKILL);
        waitpid(p, &st, 0);
        printf("killed %d\n", WTERMSIG(st));
        p = fork();
        if (!p) {
            signal(SIGTSTP, SIG_IGN);
            raise(SIGTSTP);
            _exit(4);
        }
        waitpid(p, &st, WUNTRACED);
        printf("ignored %d\n", WEXITSTATUS(st));
        return 0;
    }
    """
    )


def test_stop_in_a_sleep_restarts_it() -> None:
    same(
        SLEEPS
        + r"""
    int main(void) {
        int st;
        struct timespec a, b;
        pid_t p = fork();
        if (!p) {
            struct timespec t = {0, 100000000};
            clock_gettime(CLOCK_MONOTONIC, &a);
            int r = nanosleep(&t, 0);
            clock_gettime(CLOCK_MONOTONIC, &b);
            long ms = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
            _exit(r == 0 && ms >= 99 ? 0 : 1);
        }
        comes_to(p, "SZ");
        kill(p, SIGSTOP);
        waitpid(p, &st, WUNTRACED);
        kill(p, SIGCONT);
        waitpid(p, &st, 0);
        printf("%d\n", st);
        return 0;
    }
    """
    )


def test_child_signals() -> None:
    """SIGCHLD's siginfo, SA_NOCLDWAIT, SA_NOCLDSTOP, SIG_IGN of SIGCHLD."""
    same(
        SLEEPS
        + r"""
    static volatile int n;
    static void h(int s, siginfo_t *i, void *c) {
        n++;
        printf("code %d status %d uid %d\n", i->si_code, i->si_status, i->si_uid == getuid());
    }
    int main(void) {
        struct sigaction a = {.sa_sigaction = h, .sa_flags = SA_SIGINFO | SA_RESTART};
        sigaction(SIGCHLD, &a, 0);
        setvbuf(stdout, 0, _IONBF, 0);
        pid_t p = fork();
        if (!p) _exit(3);
        waitpid(p, 0, 0);
        p = fork();
        if (!p) raise(SIGKILL);
        waitpid(p, 0, 0);
        p = fork();
        if (!p) {
            raise(SIGSTOP);
            sleeps(getppid()); /* or its end overtakes the news that it goes on */
            _exit(4);
        }
        int st;
        waitpid(p, &st, WUNTRACED);
        kill(p, SIGCONT);
        waitpid(p, &st, 0);
        printf("n %d\n", n);
        a.sa_flags |= SA_NOCLDSTOP;
        sigaction(SIGCHLD, &a, 0);
        n = 0;
        p = fork();
        if (!p) {
            raise(SIGSTOP);
            sleeps(getppid()); /* or its end overtakes the news that it goes on */
            _exit(4);
        }
        waitpid(p, &st, WUNTRACED);
        printf("n %d\n", n);
        kill(p, SIGCONT);
        waitpid(p, &st, 0);
        printf("n %d\n", n);
        a.sa_flags |= SA_NOCLDWAIT;
        sigaction(SIGCHLD, &a, 0);
        p = fork();
        if (!p) _exit(5);
        int r = waitpid(p, &st, 0);
        printf("%d %d\n", r, errno);
        signal(SIGCHLD, SIG_IGN);
        p = fork();
        if (!p) _exit(6);
        r = waitpid(p, &st, 0);
        printf("%d %d\n", r, errno);
        return 0;
    }
    """
    )


def test_kill_permissions_and_errors() -> None:
    same(r"""
    #define T(x)                                  \
        do {                                      \
            errno = 0;                            \
            int r = (x);                          \
            printf("%s = %d %d\n", #x, r, errno); \
        } while (0)
    int main(void) {
        setpgid(0, 0);
        signal(SIGUSR1, SIG_IGN);
        T(kill(getpid(), 0));
        T(kill(getpid(), 65));
        T(kill(getpid(), -1));
        T(kill(99999999, 0));
        T(kill(-99999999, 0));
        T(kill(0, SIGUSR1));
        T(kill(-getpgrp(), SIGUSR1));
        T(syscall(SYS_tkill, getpid(), 0));
        T(syscall(SYS_tkill, 0, 0));
        T(syscall(SYS_tgkill, 1, getpid(), 0));
        T(syscall(SYS_rt_sigqueueinfo, 99999999, 10, 8));
        T(sigqueue(getpid(), 0, (union sigval){0}));
        siginfo_t i = {.si_code = SI_USER};
        T(syscall(SYS_rt_sigqueueinfo, getppid(), 10, &i));
        pid_t p = fork();
        if (!p) { pause(); }
        T(kill(p, 0));
        kill(p, SIGKILL);
        T(waitid(P_PID, p, 0, WEXITED | WNOWAIT));
        T(kill(p, 0));
        T(waitpid(p, 0, 0) == p);
        T(kill(p, 0));
        return 0;
    }
    """)


def test_orphaned_group_is_told() -> None:
    """The last one who could continue a stopped group exits: SIGHUP and SIGCONT."""
    same(
        SLEEPS
        + r"""
    int main(void) {
        int fd[2];
        pipe(fd);
        char c;
        if (!fork()) {
            pid_t stops = fork();
            if (!stops) {
                setpgid(0, 0);
                signal(SIGHUP, SIG_IGN);
                raise(SIGSTOP);
                write(fd[1], "c", 1);
                _exit(0);
            }
            comes_to(stops, "T");
            _exit(0);
        }
        wait(0);
        read(fd[0], &c, 1);
        printf("%c\n", c);
        return 0;
    }
    """
    )


def test_signals_reach_a_computing_process() -> None:
    same(r"""
    static volatile int done;
    static void h(int s) { done++; }
    int main(void) {
        signal(SIGALRM, h);
        struct itimerval t = {{0, 10000}, {0, 10000}};
        setitimer(ITIMER_REAL, &t, 0);
        while (done < 5);
        puts("five");
        return 0;
    }
    """)


def test_killed_status() -> None:
    assert by_guest(build("int main(void){ raise(SIGTERM); return 0; }"))[0] == 128 + 15
    assert by_guest(build("int main(void){ *(volatile int *)0 = 1; return 0; }"))[0] == 128 + 11


def test_signalfd() -> None:
    """Reading takes pending signals, several at once; poll sees them; a child sees its own."""
    same(
        SLEEPS
        + r"""
    #include <poll.h>
    #include <sys/signalfd.h>
    int main(void) {
        sigset_t s;
        sigemptyset(&s);
        sigaddset(&s, SIGUSR1);
        sigaddset(&s, SIGRTMIN);
        sigaddset(&s, SIGCHLD);
        sigprocmask(SIG_BLOCK, &s, 0);
        int fd = signalfd(-1, &s, SFD_NONBLOCK | SFD_CLOEXEC);
        struct signalfd_siginfo i[4];
        struct pollfd p = {fd, POLLIN};
        printf("%d %d\n", (int)read(fd, i, sizeof i), errno);
        printf("%d %d\n", (int)read(fd, i, 10), errno);
        printf("poll %d\n", poll(&p, 1, 0));
        kill(getpid(), SIGUSR1);
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 5});
        printf("poll %d\n", poll(&p, 1, 0));
        int n = read(fd, i, sizeof i) / sizeof *i;
        for (int k = 0; k < n; k++)
            printf("%d code %d mine %d value %d\n", i[k].ssi_signo, i[k].ssi_code,
                   i[k].ssi_pid == getpid(), i[k].ssi_int);
        pid_t c = fork();
        if (!c) {
            printf("child %d\n", poll(&p, 1, 0));
            fflush(stdout);
            sleeps(getppid());
            _exit(6);
        }
        printf("poll %d\n", poll(&p, 1, -1));
        read(fd, i, sizeof *i);
        printf("%d status %d child %d\n", i->ssi_signo, i->ssi_status, i->ssi_pid == c);
        wait(0);
        fcntl(fd, F_SETFL, 0);
        if (!fork()) {
            sleeps(getppid());
            kill(getppid(), SIGUSR1);
            _exit(0);
        }
        read(fd, i, sizeof *i);
        printf("blocking %d\n", i->ssi_signo);
        wait(0);
        sigdelset(&s, SIGUSR1);
        printf("same %d\n", signalfd(fd, &s, 0) == fd);
        printf("%d %d\n", signalfd(0, &s, 0), errno);
        printf("%d %d\n", (int)syscall(SYS_signalfd4, -1, &s, 4, 0), errno);
        return 0;
    }
    """
    )


def test_icebp_is_a_trap_behind_itself() -> None:
    """As on a processor (Intel's manual: INT1 is a trap). Not compared with the host: some
    hypervisors let RIP stand before it."""
    program = build(
        r"""
static char at[] = "\xf1\xc3";
static void handler(int sig, siginfo_t *si, void *uc)
{
    long behind = ((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP] - (long)at;
    printf("%d %d %ld %d\n", sig, si->si_code, behind, (char *)si->si_addr == at + 1);
}
int main(void)
{
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &sa, 0);
    mprotect((void *)((long)at & ~4095), 4096, 7);
    ((void (*)(void))at)();
}
"""
    )
    assert by_guest(program) == (0, b"5 1 1 1\n")


def test_instructions_that_ring_3_may_not_use() -> None:
    """What is left of the registers is what they were before the instruction, for those, too, that
    the engine itself lets pass; gates other than int3 and int 4 are closed."""
    same(r"""
    static sigjmp_buf jb;
    static volatile int word;
    static void h(int s, siginfo_t *i, void *c) {
        greg_t *g = ((ucontext_t *)c)->uc_mcontext.gregs;
        printf("sig %d code %d at %d trap %lld err %llx insn %02x rax %llx cf %lld word %d\n", s,
               i->si_code, i->si_addr == (void *)g[REG_RIP], g[REG_TRAPNO], g[REG_ERR],
               *(unsigned char *)g[REG_RIP], g[REG_RAX], g[REG_EFL] & 1, word);
        siglongjmp(jb, 1);
    }
    #define TRY(x)                                                                           \
        if (!sigsetjmp(jb, 1)) {                                                             \
            printf("%s: ", x);                                                               \
            __asm__ volatile("mov $5, %%eax; stc;" x "; clc; movl $3, (%%rdi);"              \
                             "mov $39, %%eax; syscall" ::"D"(&word)                          \
                             : "rax", "rcx", "r11", "rdx", "memory", "cc");                  \
            puts("went on");                                                                 \
        }
    int main(void) {
        struct sigaction a = {.sa_sigaction = h, .sa_flags = SA_SIGINFO};
        sigaction(SIGSEGV, &a, 0);
        sigaction(SIGILL, &a, 0);
        sigaction(SIGFPE, &a, 0);
        sigaction(SIGTRAP, &a, 0);
        TRY("inb $0x60, %%al") TRY("outb %%al, $0x80") TRY("insb") TRY("inl %%dx, %%eax")
        TRY("outl %%eax, %%dx") TRY("inb $0x60, %%al; inb $0x61, %%al")
        TRY("hlt") TRY("cli") TRY("mov %%cr0, %%rax") TRY("rdmsr") TRY("rdpmc")
        TRY("int $0") TRY("int $1") TRY("int $2") TRY("int $6") TRY("int $13") TRY("int $14")
        TRY("int $0x20") TRY("int $0xff") TRY("int $4") TRY("int3")
        TRY("movw %%ax, %%ds; mov $0x1234, %%eax; movw %%ax, %%ds")
        return 0;
    }
    """)


def test_x87_errors_are_signals() -> None:
    same(r"""
    static sigjmp_buf jb;
    static void h(int s, siginfo_t *i, void *c) {
        ucontext_t *u = c;
        printf("sig %d code %d trap %lld at %d\n", s, i->si_code,
               u->uc_mcontext.gregs[REG_TRAPNO],
               i->si_addr == (void *)u->uc_mcontext.gregs[REG_RIP]);
        siglongjmp(jb, 1);
    }
    int main(void) {
        struct sigaction a = {.sa_sigaction = h, .sa_flags = SA_SIGINFO};
        sigaction(SIGFPE, &a, 0);
        unsigned short cw = 0x37b;
        if (!sigsetjmp(jb, 1))
            __asm__ volatile("fninit; fldcw %0; fldz; fld1; fdiv %%st(1), %%st; fwait" ::"m"(cw));
        return 0;
    }
    """)


def test_frame() -> None:
    """What the frame says, and what becomes of a handler's changes to it."""
    same(r"""
    static char stack[65536];
    static void show(int s, siginfo_t *i, void *c) {
        ucontext_t *u = c;
        printf("flags %lx stack %x %zu cs %llx fpu %x %x %x mxcsr %x mask %llx\n",
               u->uc_flags & 6, u->uc_stack.ss_flags, u->uc_stack.ss_size,
               u->uc_mcontext.gregs[REG_CSGSFS] & 0xffff, u->uc_mcontext.fpregs->cwd,
               u->uc_mcontext.fpregs->swd, u->uc_mcontext.fpregs->ftw,
               u->uc_mcontext.fpregs->mxcsr, u->uc_mcontext.gregs[REG_OLDMASK]);
    }
    static void no_fpu(int s, siginfo_t *i, void *c) { ((ucontext_t *)c)->uc_mcontext.fpregs = 0; }
    static void bad_cs(int s, siginfo_t *i, void *c) {
        ((ucontext_t *)c)->uc_mcontext.gregs[REG_CSGSFS] &= ~0xffffLL;
        ((ucontext_t *)c)->uc_mcontext.gregs[REG_CSGSFS] |= 0x10;
    }
    static void on(void (*f)(int, siginfo_t *, void *), int flags) {
        struct sigaction a = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};
        sigaction(SIGUSR1, &a, 0);
    }
    int main(void) {
        stack_t st = {.ss_sp = stack, .ss_size = sizeof stack}, old;
        on(show, 0);
        raise(SIGUSR1);
        sigaltstack(&st, 0);
        on(show, SA_ONSTACK);
        raise(SIGUSR1);
        st.ss_flags = SS_DISABLE | 1 << 31;
        sigaltstack(&st, 0);
        sigaltstack(0, &old);
        printf("%x %zu\n", old.ss_flags, old.ss_size);
        raise(SIGUSR1);
        on(no_fpu, 0);
        unsigned mxcsr = 0x9fc0;
        __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
        raise(SIGUSR1);
        __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
        printf("mxcsr %x\n", mxcsr);
        fflush(stdout);
        on(bad_cs, 0);
        raise(SIGUSR1);
        puts("unreached");
        return 0;
    }
    """)


def test_what_is_checked_first() -> None:
    """Bad arguments in combination: Linux's order decides the errno. The restorer is told as it
    was given; RLIMIT_SIGPENDING bounds what is queued, not what kill makes pending."""
    out = same(r"""
    static void nop(int s) {}
    int main(void) {
        void *bad = (void *)-1;
        struct { void *h; unsigned long flags; void *restorer; unsigned long mask; } k = {
            nop, 0, (void *)0x1234, 0}, old;
        siginfo_t si = {.si_code = SI_QUEUE};
        #define E(x) (errno = 0, printf("%s %d\n", #x, (int)(x) < 0 ? errno : 0))
        E(syscall(SYS_rt_sigaction, SIGKILL, bad, 0, 8));
        E(syscall(SYS_rt_sigaction, SIGUSR1, &k, 0, 8));
        E(syscall(SYS_rt_sigaction, SIGUSR1, 0, &old, 8));
        printf("%p %lx\n", old.restorer, old.flags);
        E(syscall(SYS_rt_sigqueueinfo, getpid(), 65, bad));
        E(kill(0x7fffffff, 65));
        E(kill(getpid(), 65));
        E(syscall(SYS_tgkill, getpid(), 0x7fffffff, 65));
        sigset_t s;
        sigfillset(&s);
        sigprocmask(SIG_SETMASK, &s, 0);
        struct rlimit rl = {0, 0};
        E(setrlimit(RLIMIT_SIGPENDING, &rl));
        E(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){0}));
        E(raise(SIGRTMIN + 2));
        E(kill(getpid(), SIGRTMIN + 3));
        E(sigqueue(getpid(), SIGUSR1, (union sigval){0}));
        E(raise(SIGUSR2));
        timer_t t;
        E(timer_create(CLOCK_REALTIME, 0, &t));
        sigpending(&s);
        for (int i = 1; i <= SIGRTMAX; i++)
            if (sigismember(&s, i) == 1) printf(" %d", i);
        puts("");
        return 0;
    }
    """)
    assert out.endswith(b" 10 12 37\n")


def test_a_signal_that_the_mask_lets_through_ends_a_poll_that_does_not_wait() -> None:
    """Unless there is something to tell."""
    same(r"""
    #include <poll.h>
    #include <sys/select.h>
    #include <sys/signalfd.h>
    static int got;
    static void h(int s) { got++; }
    #define E(x)                                                                          \
        do {                                                                              \
            raise(SIGUSR1);                                                               \
            got = errno = 0;                                                              \
            int ret = (x);                                                                \
            printf("%s = %d %d got %d\n", #x, ret, ret < 0 ? errno : 0, *(volatile int *)&got); \
        } while (0)
    int main(void) {
        struct sigaction a = {.sa_handler = h};
        sigaction(SIGUSR1, &a, 0);
        sigset_t s, none;
        sigemptyset(&none);
        sigemptyset(&s);
        sigaddset(&s, SIGUSR1);
        sigprocmask(SIG_BLOCK, &s, 0);
        struct timespec z = {0};
        int fds[2];
        pipe(fds);
        struct pollfd pf[2] = {{fds[0], POLLIN}, {-1}};
        fd_set in;
        FD_ZERO(&in);
        FD_SET(fds[0], &in);
        E(ppoll(pf, 1, &z, 0));
        E(ppoll(pf, 1, &z, &none));
        E(ppoll(0, 0, &z, &none));
        E(pselect(fds[0] + 1, &in, 0, 0, &z, &none));
        pf[1].fd = 99;
        E(ppoll(pf, 2, &z, &none));
        write(fds[1], "", 1);
        E(ppoll(pf, 1, &z, &none));
        FD_SET(fds[0], &in);
        E(pselect(fds[0] + 1, &in, 0, 0, &z, &none));
        printf("%d\n", signalfd(-1, (void *)-1, 99) < 0 ? errno : 0);
        printf("%ld\n", (long)lseek(signalfd(-1, &s, 0), 5, SEEK_SET));
        return 0;
    }
    """)


def test_floating_point_state_comes_and_goes_with_frames() -> None:
    """Rounding modes, SSE and x87 registers are what they were behind a handler that has its own,
    or what the handler made of them in the frame; the same again and again, in two processes by
    turns, and when a frame says once more what an earlier one said."""
    out = same(
        r"""
    static volatile double one = 1, three = 3;
    static volatile long double lone = 1, lthree = 3;
    static int change;
    static void show(const char *who) {
        union { double d; uint64_t u; } a = {one / three};
        union { long double d; uint64_t u[2]; } b = {lone / lthree};
        unsigned m; unsigned short c, s;
        asm volatile("stmxcsr %0; fnstcw %1; fnstsw %2" : "=m"(m), "=m"(c), "=m"(s));
        printf("%s %lx %lx mxcsr %x cw %x sw %x\n", who, a.u, b.u[0], m & ~0x20, c, s & ~0x20);
    }
    static void h(int s, siginfo_t *i, void *c) {
        ucontext_t *u = c;
        show(" handler");
        unsigned down = 0x3f80;
        asm volatile("ldmxcsr %0" :: "m"(down));
        asm volatile("pxor %%xmm11, %%xmm11" ::: "xmm11");
        struct _libc_fpstate *f = u->uc_mcontext.fpregs;
        printf(" frame %x %x %x\n", f->cwd, f->mxcsr & ~0x20, f->_xmm[11].element[0]);
        if (change) {
            f->mxcsr = 0x1f80 | change << 13;
            f->cwd = 0x37f | change << 10;
            f->_xmm[11].element[0] = 0x77;
        }
    }
    static void once(int mode, int to) {
        unsigned m = 0x1f80 | mode << 13, x;
        unsigned short c = 0x37f | mode << 10;
        change = to;
        asm volatile("fninit; ldmxcsr %1; fldcw %2; movd %3, %%xmm11; mov %4, %%eax;"
            "mov %5, %%edi; mov %6, %%esi; syscall; movd %%xmm11, %0"
            : "=r"(x) : "m"(m), "m"(c), "r"(mode + 0x50), "i"(SYS_kill), "r"(getpid()),
              "i"(SIGUSR1) : "rax", "rdi", "rsi", "rcx", "r11", "xmm11");
        show("after");
        printf("xmm11 %x\n", x);
    }
    int main(void) {
        struct sigaction a = {.sa_sigaction = h, .sa_flags = SA_SIGINFO};
        sigaction(SIGUSR1, &a, 0);
        int modes[] = {0, 1, 2, 3, 1, 1, 1, 0, 0};
        for (int i = 0; i < 9; i++) { once(modes[i], 0); once(modes[i], (modes[i] + 1) & 3); }
        int fds[2][2];
        pipe(fds[0]); pipe(fds[1]);
        fflush(stdout);
        int me = !fork();
        char turn;
        if (!me) write(fds[0][1], "x", 1);
        for (int i = 0; i < 4; i++) {
            read(fds[me][0], &turn, 1);
            printf("%s\n", me ? "child" : "parent");
            once(me ? 1 : 2, i & 1 ? 3 : 0);
            fflush(stdout);
            write(fds[!me][1], "x", 1);
        }
        if (!me) wait(0);
        return 0;
    }
    """
    )  # fmt: skip
    assert out.count(b"handler") == 18 + 8


RETURN = r"""
    #include <sys/ucontext.h>
    #include <asm/prctl.h>
    static char stack[65536] __attribute__((aligned(4096)));
    static unsigned long value;
    static const char *field;
    static int repeats;
    extern void target(void);
    static void inner(int s, siginfo_t *i, void *c) {
        printf(", inner %llx", ((ucontext_t *)c)->uc_mcontext.gregs[REG_CSGSFS]);
    }
    static void caught(int s, siginfo_t *i, void *c) {
        greg_t *g = ((ucontext_t *)c)->uc_mcontext.gregs;
        printf(" sig %d code %d addr %lx trap %llx err %llx cs %llx ss %llx", s, i->si_code,
               (long)i->si_addr, g[REG_TRAPNO], g[REG_ERR], g[REG_CSGSFS] & 0xffff,
               (unsigned long long)g[REG_CSGSFS] >> 48);
        if (g[REG_RIP] == (greg_t)target) printf(" at the target");
        else printf(" at %llx", g[REG_RIP]);
        if (!repeats++) {
            printf(", again:");      /* a return that changes nothing fails again */
            return;
        }
        struct sigaction a = {.sa_sigaction = inner, .sa_flags = SA_SIGINFO};
        sigaction(SIGUSR2, &a, 0);
        raise(SIGUSR2);
        printf("\n");
        fflush(stdout);
        _exit(0);
    }
    /* Where the frame leads: tells the flags, and ends the child. */
    __attribute__((used))
    static void arrived(unsigned long flags, unsigned ss, unsigned cs) {
        unsigned mxcsr;
        asm volatile("stmxcsr %0" : "=m"(mxcsr));
        printf(" flags %lx ss %x cs %x mxcsr %x\n", flags, ss, cs, mxcsr);
        fflush(stdout);
        _exit(0);
    }
    asm(".text; target: pushfq; pop %rdi; pushq $2; popfq; mov %ss, %esi; mov %cs, %edx;"
        "and $-16, %rsp; call arrived; hlt");
    static void change(int s, siginfo_t *i, void *c) {
        ucontext_t *u = c;
        greg_t *g = u->uc_mcontext.gregs;
        g[REG_RIP] = (greg_t)target;
        g[REG_RSP] = (greg_t)stack + 32768;
        g[REG_EFL] = 0x202;
        if (!strcmp(field, "cs")) g[REG_CSGSFS] = (g[REG_CSGSFS] & ~0xffffll) | value;
        if (!strcmp(field, "ss") || !strcmp(field, "lax ss"))
            g[REG_CSGSFS] = (g[REG_CSGSFS] & 0xffffffffffffll) | value << 48;
        if (!strcmp(field, "lax ss")) u->uc_flags &= ~4ul;
        if (!strcmp(field, "cs and ss")) g[REG_CSGSFS] = value;
        if (!strcmp(field, "rip")) g[REG_RIP] = value;
        if (!strcmp(field, "rsp")) g[REG_RSP] = value;
        if (!strcmp(field, "flags")) g[REG_EFL] = value;
        if (!strcmp(field, "mxcsr")) u->uc_mcontext.fpregs->mxcsr = value;
        if (!strcmp(field, "fpstate by"))
            u->uc_mcontext.fpregs = (void *)((char *)u->uc_mcontext.fpregs + value);
        if (!strcmp(field, "fpstate")) u->uc_mcontext.fpregs = (void *)value;
    }
    static void row(const char *f, unsigned long v) {
        int st;
        fflush(stdout);
        if (!fork()) {
            field = f; value = v;
            stack_t ss = {.ss_sp = stack + 32768, .ss_size = 32768};
            sigaltstack(&ss, 0);
            struct sigaction a = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_ONSTACK};
            int sigs[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
            for (int i = 0; i < 5; i++) sigaction(sigs[i], &a, 0);
            a.sa_sigaction = change;
            sigaction(SIGUSR1, &a, 0);
            printf("%s %lx:", f, v);
            kill(getpid(), SIGUSR1);
            _exit(1);
        }
        wait(&st);
        if (st) printf("%s %lx: status %x\n", f, v, st);
    }
    #define ROWS(f, ...) do { unsigned long v_[] = {__VA_ARGS__}; \
        for (int i = 0; i < sizeof v_ / 8; i++) row(f, v_[i]); } while (0)
"""


def test_what_a_frame_may_say() -> None:
    """sigreturn of frames that no processor can return to, or only just. Not here: 0x23, the code
    segment of 32-bit programs, which exist on the host."""
    out = same(
        RETURN
        + r"""
    int main(void) {
        ROWS("cs", 0, 1, 3, 4, 7, 8, 0x10, 0x13, 0x18, 0x1b, 0x28, 0x2b, 0x30, 0x31, 0x32, 0x33,
             0x38, 0x3b, 0x40, 0x43, 0x63, 0x73, 0x7b, 0x83, 0x100, 0xfff8, 0xffff);
        ROWS("ss", 0, 1, 3, 4, 7, 8, 0x10, 0x13, 0x18, 0x1b, 0x20, 0x23, 0x28, 0x29, 0x2a, 0x2b,
             0x30, 0x33, 0x38, 0x3b, 0x40, 0x43, 0x63, 0x7b, 0x83, 0x100, 0xfff8, 0xffff);
        ROWS("lax ss", 0, 3, 0x10, 0x2b, 0x33, 0xffff);
        ROWS("cs and ss", 0, 0x2b00000000000010, 0x1000000000000010, 0x3300000000000033);
        ROWS("rip", 0, 8, 0x7ffffffff000, 0x7fffffffffff,
             0x800000000000, 0x800000000001, 0x1000000000000, 0x7fffffffffffffff, 1ul << 63,
             0xffff7fffffffffff, 0xffff800000000000, 0xffffffff81000000, -1ul);
        ROWS("rsp", 0, 8, 1ul << 47, -8ul);
        return 0;
    }
    """
    )  # fmt: skip
    assert b"rip 800000000000: sig 11 code 128 addr 0 trap d err 0 cs 33 ss 2b at 8" in out


def test_flags_of_a_frame() -> None:
    """Each bit of RFLAGS in a frame, and of MXCSR; where the floating-point state may lie."""
    same(
        RETURN
        + r"""
    int main(void) {
        for (int bit = 0; bit < 64; bit++) if (bit != 8) row("flags", 1ul << bit);
        ROWS("flags", 0, 0x202, 0xffff00000000fe00 | 0x2d5, -1ul & ~0x100);
        row("flags", 0x102);
        for (int bit = 0; bit < 32; bit++) if (bit != 17) row("mxcsr", 1ul << bit);
        ROWS("mxcsr", 0, 0x1f80, 0xffff, 0xffc0, 0xfffc0000);
        ROWS("fpstate by", 1, 2, 4, 8, 16, 32);
        ROWS("fpstate", 0, 8, 0x7ffffffff000, 0x800000000000, 1ul << 63, -512ul, -1ul);
        return 0;
    }
    """
    )  # fmt: skip


def test_bases_of_segments() -> None:
    """arch_prctl takes what lies in user space."""
    same(r"""
    #include <asm/prctl.h>
    int main(void) {
        unsigned long at[] = {0, 1, 0x7fffffffefff, 0x7ffffffff000, 0x7fffffffffff,
                              0x800000000000, 1ul << 48, 1ul << 62, 1ul << 63, 0xffff7fffffffffff,
                              0xffff800000000000, -1ul};
        for (int i = 0; i < 12; i++) {
            unsigned long fs, old, gs = 0x55;
            syscall(SYS_arch_prctl, ARCH_GET_FS, &old);
            /* Nothing may use thread-local storage in between. */
            long r;
            asm volatile("syscall" : "=a"(r) : "0"(SYS_arch_prctl), "D"(ARCH_SET_FS), "S"(at[i])
                         : "rcx", "r11", "memory");
            long q;
            asm volatile("syscall" : "=a"(q) : "0"(SYS_arch_prctl), "D"(ARCH_GET_FS), "S"(&fs)
                         : "rcx", "r11", "memory");
            asm volatile("syscall" : "=a"(q) : "0"(SYS_arch_prctl), "D"(ARCH_SET_FS), "S"(old)
                         : "rcx", "r11", "memory");
            long g = syscall(SYS_arch_prctl, ARCH_SET_GS, at[i]);
            int e = g ? errno : 0;
            syscall(SYS_arch_prctl, ARCH_GET_GS, &gs);
            printf("%lx: %ld %lx %ld %d %lx\n", at[i], r, fs == old ? 0 : fs, g, e, gs);
        }
        return 0;
    }
    """)
