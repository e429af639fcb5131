"""poll, select, epoll and eventfd. Each program runs on the host too."""

from __future__ import annotations

from file_util import T
from guest_util import same


def test_poll() -> None:
    same(T + r"""
static void show(struct pollfd *pf, int n, int ms) {
    int r = poll(pf, n, ms);
    printf("poll %d:", r);
    for (int i = 0; i < n; i++) printf(" %x", (unsigned short)pf[i].revents); puts("");
    fflush(stdout);
}
int main() {
    int p[2], q[2]; pipe(p); pipe(q); put_("f", "x");
    int f = open("f", O_RDWR), d = open(".", 0), n = open("/dev/null", O_RDWR);
    int o = open("f", O_PATH);
    struct pollfd pf[8] = {{p[0], POLLIN | POLLOUT}, {p[1], POLLOUT | POLLIN}, {f, 0xffff},
                           {d, POLLIN | POLLOUT},
                           {n, 0xffff}, {-1, 7}, {77, 7}, {o, 7}};
    show(pf, 8, 0); show(pf, 6, 0); write(p[1], "x", 1); show(pf, 1, -1); show(pf, 2, 100);
    read(p[0], buf, 10); show(pf, 1, 20); show(pf, 0, 20);
    close(p[1]); show(pf, 1, -1); close(q[0]); pf[0].fd = q[1]; show(pf, 1, -1); pf[0].events = 0;
    show(pf, 1, -1);
    fcntl(q[1], F_SETFL, O_NONBLOCK);
    return 0;
}""")  # fmt: skip


def test_poll_waits_for_one_of_many() -> None:
    same(T + r"""
int main() {
    int p[40][2]; struct pollfd pf[40];
    for (int i = 0; i < 40; i++) { pipe(p[i]); pf[i] = (struct pollfd){p[i][0], POLLIN}; }
    if (!fork()) {
        for (int i = 39; i >= 0; i -= 13) { sleeps(getppid()); write(p[i][1], "x", 1); }
        _exit(0);
    }
    for (int n = 0; n < 4; n++) {
        int r = poll(pf, 40, -1);
        for (int i = 0; i < 40; i++) if (pf[i].revents) {
        printf("%d: %d %x\n", r, i, pf[i].revents); read(p[i][0], buf, 9); }
    }
    struct timespec a, b; clock_gettime(CLOCK_MONOTONIC, &a); T(poll(pf, 40, 60));
    clock_gettime(CLOCK_MONOTONIC, &b);
    long ms = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
    T(ms >= 59);
    return 0;
}""")  # fmt: skip


def test_select() -> None:
    same(T + r"""
static fd_set r, w, e;
static void sets(int a, int b, int c) { FD_ZERO(&r); FD_ZERO(&w); FD_ZERO(&e); FD_SET(a, &r);
FD_SET(b, &w); FD_SET(c, &e); }
#define S(n, tv) do { T(select(n, &r, &w, &e, tv)); for (int i = 0; i < 12; i++) \
    printf("%d%d%d ", !!FD_ISSET(i, &r), !!FD_ISSET(i, &w), !!FD_ISSET(i, &e)); \
    puts(""); } while (0)
int main() {
    int p[2]; pipe(p); struct timeval z = {0, 0}, t = {0, 30000};
    sets(p[0], p[1], p[0]); S(12, &z); write(p[1], "x", 1); sets(p[0], p[1], p[0]); S(12, 0);
    sets(p[0], p[1], p[0]); S(p[0], &z); read(p[0], buf, 9); sets(p[0], p[0], p[0]); S(12, &t);
    T(t.tv_sec + t.tv_usec);
    sets(9, p[1], p[0]); T(select(12, &r, &w, &e, &z)); T(select(-1, 0, 0, 0, &z)); t.tv_sec = -1;
    T(select(0, 0, 0, 0, &t));
    t = (struct timeval){0, 20000}; T(select(0, 0, 0, 0, &t)); close(p[1]);
    sets(p[0], p[0], p[0]); S(12, 0);
    t = (struct timeval){100, 5000000}; sets(p[0], p[0], p[0]); S(12, &t); T(t.tv_sec >= 99);
    struct timespec ts = {0, 1000000000}; T(pselect(0, 0, 0, 0, &ts, 0)); ts.tv_nsec = 10000000;
    T(pselect(0, 0, 0, 0, &ts, 0));
    T(syscall(SYS_pselect6, 0, 0, 0, 0, &ts, 16)); T(select(INT_MAX, 0, 0, 0, &z));
    return 0;
}""")  # fmt: skip


def test_masks_and_signals() -> None:
    same(T + r"""
static int got; static void h(int s) { got = s; }
int main() {
    struct sigaction sa = {.sa_handler = h, .sa_flags = SA_RESTART}; sigaction(SIGUSR1, &sa, 0);
    sigaction(SIGALRM, &sa, 0);
    sigset_t all, none, old; sigfillset(&all); sigemptyset(&none);
    sigprocmask(SIG_BLOCK, &all, 0);
    struct timespec ts = {0, 30000000}; int p[2]; pipe(p); struct pollfd pf = {p[0], POLLIN};
    kill(getpid(), SIGUSR1); T(poll(&pf, 1, 20)); T(got); T(ppoll(&pf, 1, &ts, &none)); T(got);
    sigprocmask(SIG_BLOCK, 0, &old); T(sigismember(&old, SIGUSR1)); got = 0;
    T(ppoll(&pf, 1, &ts, &none)); kill(getpid(), SIGUSR1); fd_set r; FD_ZERO(&r);
    FD_SET(p[0], &r);
    T(pselect(p[0] + 1, &r, 0, 0, 0, &none)); T(got); T(FD_ISSET(p[0], &r)); got = 0;
    write(p[1], "x", 1);
    kill(getpid(), SIGUSR1); T(ppoll(&pf, 1, 0, &all)); T(got);
    T(syscall(SYS_ppoll, &pf, 1, 0, &none, 5));
    sigprocmask(SIG_SETMASK, &none, 0); T(got); got = 0; read(p[0], buf, 9);
    when_asleep(SIGALRM); T(poll(&pf, 1, -1)); T(got);
    when_asleep(SIGALRM); T(select(p[0] + 1, &r, 0, 0, 0)); int ep = epoll_create(1);
    when_asleep(SIGALRM); struct epoll_event ev; T(epoll_wait(ep, &ev, 1, -1));
    signal(SIGALRM, SIG_IGN); when_asleep(SIGALRM); T(poll(&pf, 1, 50));
    return 0;
}""")  # fmt: skip


def test_stop_and_continue_do_not_end_a_poll() -> None:
    same(T + r"""
int main() {
    int p[2]; pipe(p); int pid = fork();
    if (!pid) { struct pollfd pf = {p[0], POLLIN}; T(poll(&pf, 1, -1)); _exit(0); }
    sleeps(pid); kill(pid, SIGSTOP); waitpid(pid, 0, WUNTRACED); kill(pid, SIGCONT);
    sleeps(pid);
    write(p[1], "x", 1); waitpid(pid, 0, 0);
    return 0;
}""")  # fmt: skip


def test_epoll_level_edge_oneshot() -> None:
    same(T + r"""
static int ep;
static void w(int ms) {
    struct epoll_event ev[10]; int n = epoll_wait(ep, ev, 10, ms);
    printf("wait %d:", n);
    for (int i = 0; i < n; i++) printf(" %x/%ld", ev[i].events, (long)ev[i].data.u64); puts("");
    fflush(stdout);
}
static int ctl(int op, int fd, unsigned events, long data) {
    struct epoll_event ev = {events, {.u64 = data}}; return epoll_ctl(ep, op, fd, &ev);
}
int main() {
    int p[2], q[2]; pipe(p); pipe(q); put_("f", "x"); ep = epoll_create1(EPOLL_CLOEXEC);
    T(fcntl(ep, F_GETFD));
    T(ctl(EPOLL_CTL_ADD, p[0], EPOLLIN, 1)); T(ctl(EPOLL_CTL_ADD, p[0], EPOLLIN, 1));
    T(ctl(EPOLL_CTL_ADD, q[0], EPOLLIN | EPOLLET, 2));
    w(0); write(p[1], "a", 1); write(q[1], "b", 1); w(0); w(0); write(q[1], "c", 1); w(0);
    read(p[0], buf, 9); w(0);
    T(ctl(EPOLL_CTL_MOD, q[0], EPOLLIN | EPOLLET, 22)); w(0); w(0);
    T(ctl(EPOLL_CTL_MOD, q[0], EPOLLIN | EPOLLONESHOT, 3)); w(0); w(0);
    write(q[1], "d", 1); w(0); T(ctl(EPOLL_CTL_MOD, q[0], EPOLLIN | EPOLLONESHOT, 4)); w(0);
    T(ctl(EPOLL_CTL_MOD, q[0], EPOLLIN, 5)); w(0);
    T(ctl(EPOLL_CTL_DEL, q[0], 0, 0)); T(ctl(EPOLL_CTL_DEL, q[0], 0, 0));
    T(ctl(EPOLL_CTL_MOD, q[0], 1, 0)); w(0);
    T(ctl(EPOLL_CTL_ADD, p[1], EPOLLOUT, 6)); w(0); T(ctl(EPOLL_CTL_DEL, p[1], 0, 0));
    close(p[1]); w(0); close(p[0]); w(0);
    T(ctl(EPOLL_CTL_ADD, open("f", 0), 1, 0)); T(ctl(EPOLL_CTL_ADD, open(".", 0), 1, 0));
    T(ctl(EPOLL_CTL_ADD, ep, 1, 0));
    T(ctl(EPOLL_CTL_ADD, 99, 1, 0)); T(ctl(9, q[0], 1, 0));
    T(epoll_ctl(q[0], 1, q[1], (void *)buf)); T(epoll_ctl(ep, 1, q[1], 0));
    struct epoll_event ev; T(epoll_wait(ep, &ev, 0, 0)); T(epoll_wait(ep, &ev, -1, 0));
    T(epoll_wait(q[0], &ev, 1, 0)); T(epoll_wait(99, &ev, 1, 0));
    T(epoll_create(0)); T(epoll_create1(1));
    int e2 = epoll_create(1), e3 = epoll_create(1), save = ep;
    T(ctl(EPOLL_CTL_ADD, e2, EPOLLIN, 8)); ep = e2; T(ctl(EPOLL_CTL_ADD, save, EPOLLIN, 8));
    T(ctl(EPOLL_CTL_ADD, q[0], EPOLLIN, 9));
    ep = save; w(0); read(q[0], buf, 9); w(0); write(q[1], "z", 1); w(100);
    int du = dup(q[0]); ep = e3; T(ctl(EPOLL_CTL_ADD, du, EPOLLIN, 10)); close(du); w(0);
    return 0;
}""")  # fmt: skip


def test_epoll_wakes_and_is_fair() -> None:
    same(T + r"""
int main() {
    int p[30][2], ep = epoll_create1(0), seen[30] = {0};
    for (int i = 0; i < 30; i++) { pipe(p[i]); struct epoll_event ev = {EPOLLIN, {.u32 = i}};
    epoll_ctl(ep, 1, p[i][0], &ev); }
    if (!fork()) { for (int i = 0; i < 30; i++) write(p[i][1], "x", 1); _exit(0); }
    wait(0);
    for (int n = 0; n < 30; n++) { struct epoll_event ev;
    if (epoll_wait(ep, &ev, 1, 1000) == 1) seen[ev.data.u32]++; }
    int bad = 0; for (int i = 0; i < 30; i++) bad += seen[i] != 1; T(bad);
    struct pollfd pf = {ep, POLLIN}; T(poll(&pf, 1, 0)); T(pf.revents);
    for (int i = 0; i < 30; i++) read(p[i][0], buf, 1);
    T(poll(&pf, 1, 0)); if (!fork()) { sleeps(getppid()); write(p[7][1], "x", 1); _exit(0); }
    T(poll(&pf, 1, -1)); struct epoll_event ev[3]; T(epoll_wait(ep, ev, 3, -1));
    T(ev[0].data.u32);
    return 0;
}""")  # fmt: skip


def test_exclusive() -> None:
    """Of those who wait exclusively one is woken; whoever does not, and all at the end."""
    out = same(T + r"""
enum { N = 6 };
static pid_t child[N];
static char gone[N];
static void left(const char *what) {
    /* Those who were woken end; who sleeps now is still waiting. */
    int n = 0;
    for (int i = 0; i < N; i++) {
        siginfo_t si = {0};
        char path[40], text[200];
        while (!gone[i]) {
            if (!waitid(P_PID, child[i], &si, WEXITED | WNOHANG) && si.si_pid) gone[i] = 1;
            sprintf(path, "/proc/%d/stat", child[i]);
            int fd = open(path, O_RDONLY), k = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
            close(fd);
            text[k < 0 ? 0 : k] = 0;
            if (strstr(text, ") S")) break;
            sched_yield();
        }
        n += gone[i];
    }
    printf("%s: %d gone:", what, n);
    for (int i = 0; i < N; i++) printf(" %d", gone[i]);
    puts(""); fflush(stdout);
}
static void wait_on(int fd, int nexclusive, int events) {
    for (int i = 0; i < N; i++) {
        gone[i] = 0;
        fflush(stdout);
        if (!(child[i] = fork())) {
            int ep = epoll_create1(0);
            struct epoll_event ev = {events | (i < nexclusive ? EPOLLEXCLUSIVE : 0)};
            epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
            _exit(epoll_wait(ep, &ev, 1, -1));
        }
        sleeps(child[i]);
    }
}
int main() {
    int p[2], counts[] = {N, 3, 0};
    for (int k = 0; k < 3; k++) {
        pipe2(p, O_CLOEXEC);
        wait_on(p[0], counts[k], EPOLLIN | (k ? 0 : EPOLLET));
        write(p[1], "x", 1); left("write");
        write(p[1], "x", 1); left("write");
        for (int i = 0; i < N; i++) if (!gone[i]) kill(child[i], SIGKILL), waitpid(child[i], 0, 0);
        close(p[0]); close(p[1]);
    }
    int e = eventfd(0, EFD_NONBLOCK);
    wait_on(e, N, EPOLLIN);
    eventfd_write(e, 1); left("eventfd");
    eventfd_write(e, 1); left("eventfd");
    for (int i = 0; i < N; i++) if (!gone[i]) kill(child[i], SIGKILL), waitpid(child[i], 0, 0);
    struct epoll_event ev = {EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT};
    int ep = epoll_create1(0), ep2 = epoll_create1(0);
    T(epoll_ctl(ep, EPOLL_CTL_ADD, e, &ev)); ev.events = EPOLLIN | EPOLLEXCLUSIVE | EPOLLRDNORM;
    T(epoll_ctl(ep, EPOLL_CTL_ADD, e, &ev)); ev.events = EPOLLIN | EPOLLEXCLUSIVE;
    T(epoll_ctl(ep, EPOLL_CTL_ADD, ep2, &ev));
    T(epoll_ctl(ep, EPOLL_CTL_ADD, e, &ev)); T(epoll_ctl(ep, EPOLL_CTL_MOD, e, &ev));
    ev.events = EPOLLIN; T(epoll_ctl(ep, EPOLL_CTL_MOD, e, &ev));
    T(epoll_ctl(ep, EPOLL_CTL_DEL, e, &ev)); T(epoll_ctl(ep, EPOLL_CTL_ADD, e, &ev));
    ev.events |= EPOLLEXCLUSIVE; T(epoll_ctl(ep, EPOLL_CTL_MOD, e, &ev));
    return 0;
}""")  # fmt: skip
    lines = out.splitlines()
    assert lines[:2] == [b"write: 1 gone: 1 0 0 0 0 0", b"write: 2 gone: 1 1 0 0 0 0"]
    assert lines[2:4] == [b"write: 4 gone: 1 0 0 1 1 1", b"write: 5 gone: 1 1 0 1 1 1"]


def test_exclusive_hears_of_the_end() -> None:
    same(T + r"""
int main() {
    int p[2]; pipe(p);
    pid_t child[4];
    for (int i = 0; i < 4; i++) {
        fflush(stdout);
        if (!(child[i] = fork())) {
            close(p[1]);
            int ep = epoll_create1(0);
            struct epoll_event ev = {EPOLLIN | EPOLLEXCLUSIVE};
            epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev);
            int n = epoll_wait(ep, &ev, 1, -1);
            _exit(n == 1 && ev.events == EPOLLHUP ? 7 : 8);
        }
        sleeps(child[i]);
    }
    close(p[1]);
    for (int i = 0; i < 4; i++) { int st; T(waitpid(child[i], &st, 0) == child[i]);
        T(WEXITSTATUS(st)); }
    return 0;
}""")  # fmt: skip


def test_eventfd() -> None:
    same(T + r"""
int main() {
    int e = eventfd(3, EFD_NONBLOCK), s = eventfd(2, EFD_NONBLOCK | EFD_SEMAPHORE);
    uint64_t v = 0;
    T(read(e, &v, 8)); T(v); T(read(e, &v, 8)); T(read(e, &v, 7)); T(write(e, &v, 7));
    T(read(s, &v, 8)); T(v); T(read(s, &v, 100)); T(v); T(read(s, &v, 8));
    v = -1; T(write(e, &v, 8)); v = -2; T(write(e, &v, 8)); v = 1; T(write(e, &v, 8));
    struct pollfd pf = {e, POLLIN | POLLOUT}; T(poll(&pf, 1, 0)); T(pf.revents);
    T(read(e, &v, 8)); T(v == -2ull);
    T(poll(&pf, 1, 0)); T(pf.revents); T(eventfd(0, 5555555)); T(lseek(e, 0, 0));
    T(fcntl(e, F_GETFL));
    int b = eventfd(0, 0); if (!fork()) { sleeps(getppid()); v = 5; write(b, &v, 8); _exit(0); }
    T(read(b, &v, 8)); T(v);
    return 0;
}""")  # fmt: skip


def test_many_descriptors() -> None:
    same(T + r"""
#define N 3000
static unsigned long in[64], out[64], ex[64];
static struct pollfd pf[N];
static struct epoll_event es[N];
static unsigned sum(void *p, size_t n) {
    unsigned s = 0;
    for (size_t i = 0; i < n; i++) s = s * 31 + ((unsigned char *)p)[i];
    return s;
}
static void fill(unsigned seed) {
    srand(seed);
    for (int i = 8; i < N; i++) {
        unsigned long bit = 1ul << i % 64, r = rand();
        in[i / 64] &= ~bit; out[i / 64] &= ~bit; ex[i / 64] &= ~bit;
        if (r & 16) in[i / 64] |= bit;
        if (r & 32) out[i / 64] |= bit;
        if (r & 64) ex[i / 64] |= bit;
        pf[i] = (struct pollfd){r & 128 ? i : -1, r >> 8 & 7, 99};
    }
    in[0] &= ~255ul; out[0] &= ~255ul; ex[0] &= ~255ul;
}
int main() {
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){4096, 4096});
    int p[2], q[2], ep = epoll_create1(0); pipe(p); pipe(q); write(q[1], "x", 1);
    for (int i = 8; i < N; i++) dup2(i % 3 ? i % 2 ? p[0] : q[0] : q[1], i);
    for (int i = 0; i < 8; i++) pf[i].fd = -1;
    for (int n = N - 70; n <= N; n += 7) {
        struct timeval tv = {0, 0}; fill(n);
        T(select(n, (fd_set *)in, (fd_set *)out, (fd_set *)ex, &tv));
        printf("%x %x %x\n", sum(in, 512), sum(out, 512), sum(ex, 512));
        T(poll(pf, n, 0)); printf("%x\n", sum(pf, sizeof pf));
    }
    for (int i = 8; i < N; i++) {
        struct epoll_event e = {i % 5 ? EPOLLIN : EPOLLIN | EPOLLONESHOT, {.u32 = i}};
        epoll_ctl(ep, EPOLL_CTL_ADD, i, &e);
    }
    for (int i = 0; i < 5; i++) {
        int n = epoll_wait(ep, es, 700, 0); unsigned s = 0;
        for (int k = 0; k < n; k++) s = s * 31 + es[k].data.u32;
        printf("%d %x\n", n, s);
    }
    fill(1); close(2000); in[2000 / 64] |= 1ul << 2000 % 64;
    T(select(N, (fd_set *)in, 0, 0, &(struct timeval){0, 0}));
    T(select(2000, (fd_set *)in, 0, 0, &(struct timeval){0, 0}));
    return 0;
}""")  # fmt: skip
