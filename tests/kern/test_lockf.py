"""File locks. Each program runs on the host too."""

from __future__ import annotations

from file_util import T
from guest_util import build, by_guest, same

L = (
    T
    + r"""
static int lk(int fd, int cmd, int type, long start, long len) {
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return fcntl(fd, cmd, &l);
}
static void get(int fd, int cmd, int type, long start, long len) {
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    int r = fcntl(fd, cmd, &l);
    const char *who = l.l_pid == getppid() ? "parent" : l.l_pid == -1 ? "ofd" : "0";
    printf("getlk %ld+%ld: %d type %d whence %d %ld+%ld pid %s\n", start, len, r, l.l_type,
           l.l_whence, (long)l.l_start, (long)l.l_len, who);
    fflush(stdout);
}
static void other(void (*f)(int), int fd) { fflush(stdout); if (!fork()) { f(fd); _exit(0); }
wait(0); }
"""
)


def test_ranges() -> None:
    same(L + r"""
static void look(int fd) {
    for (int i = 0; i < 120; i += 10) get(fd, F_GETLK, F_WRLCK, i, 10);
    get(fd, F_GETLK, F_RDLCK, 0, 0); get(fd, F_GETLK, F_WRLCK, 200, 0);
}
int main() {
    int fd = open("f", O_RDWR | O_CREAT, 0644);
    T(lk(fd, F_SETLK, F_WRLCK, 10, 20)); T(lk(fd, F_SETLK, F_RDLCK, 50, 30)); other(look, fd);
    T(lk(fd, F_SETLK, F_UNLCK, 15, 5)); other(look, fd);
    T(lk(fd, F_SETLK, F_WRLCK, 60, 10)); other(look, fd); T(lk(fd, F_SETLK, F_RDLCK, 60, 10));
    other(look, fd);
    T(lk(fd, F_SETLK, F_WRLCK, 40, 0)); other(look, fd); T(lk(fd, F_SETLK, F_UNLCK, 100, 0));
    other(look, fd);
    T(lk(fd, F_SETLK, F_WRLCK, 15, 5)); other(look, fd); T(lk(fd, F_SETLK, F_UNLCK, 0, 0));
    other(look, fd);
    return 0;
}""")  # fmt: skip


def test_conflicts_errors_and_close() -> None:
    same(L + r"""
static void rival(int fd) {
    T(lk(fd, F_SETLK, F_RDLCK, 0, 5)); T(lk(fd, F_SETLK, F_WRLCK, 0, 5));
    T(lk(fd, F_SETLK, F_WRLCK, 100, 5));
    T(lk(fd, F_SETLK, F_UNLCK, 0, 0)); T(lk(fd, F_OFD_SETLK, F_WRLCK, 0, 5));
}
int main() {
    int fd = open("f", O_RDWR | O_CREAT, 0644), ro = open("f", O_RDONLY), wo = open("f", O_WRONLY);
    struct flock l = {.l_type = 7}; T(fcntl(fd, F_SETLK, &l)); l.l_type = F_UNLCK;
    T(fcntl(fd, F_GETLK, &l));
    l.l_type = F_WRLCK; l.l_whence = 5; T(fcntl(fd, F_SETLK, &l));
    T(lk(fd, F_SETLK, F_WRLCK, -1, 1));
    T(lk(fd, F_SETLK, F_WRLCK, 5, -6)); T(lk(fd, F_SETLK, F_WRLCK, 5, -5));
    T(lk(fd, F_SETLK, F_WRLCK, 1, LONG_MAX));
    T(lk(fd, F_SETLK, F_WRLCK, 2, LONG_MAX)); T(lk(fd, F_SETLK, F_UNLCK, 0, 0));
    T(lk(ro, F_SETLK, F_WRLCK, 0, 1)); T(lk(wo, F_SETLK, F_RDLCK, 0, 1));
    T(lk(ro, F_SETLK, F_RDLCK, 0, 1));
    other(rival, fd); T(close(dup(fd))); other(rival, fd);
    T(lk(fd, F_SETLK, F_RDLCK, 0, 1)); T(lk(fd, F_SETLK, F_WRLCK, 0, 1)); other(rival, fd);
    T(close(ro)); other(rival, fd);
    l = (struct flock){.l_type = F_WRLCK, .l_pid = 1}; T(fcntl(fd, F_OFD_SETLK, &l)); l.l_pid = 0;
    T(fcntl(fd, F_OFD_SETLK, &l)); T(fcntl(wo, F_OFD_SETLK, &l));
    T(lk(wo, F_SETLK, F_WRLCK, 0, 0));
    get(wo, F_OFD_GETLK, F_WRLCK, 5, 5); T(close(fd)); T(fcntl(wo, F_OFD_SETLK, &l));
    int p[2]; pipe(p); T(lk(99, F_SETLK, F_RDLCK, 0, 1));
    write(wo, "0123456789", 10);
    l = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_END, .l_start = -3};
    T(fcntl(wo, F_SETLK, &l));
    return 0;
}""")  # fmt: skip


def test_waiting_and_deadlock() -> None:
    same(L + r"""
int main() {
    int fd = open("f", O_RDWR | O_CREAT, 0644), p[2], q[2]; pipe(p); pipe(q); char c;
    T(lk(fd, F_SETLKW, F_WRLCK, 0, 10));
    int pid = fork();
    if (!pid) {
        T(lk(fd, F_SETLKW, F_WRLCK, 20, 10)); write(p[1], "x", 1);
        int r = lk(fd, F_SETLKW, F_WRLCK, 0, 10); printf("child got it: %d\n", r); fflush(stdout);
        _exit(0);
    }
    read(p[0], &c, 1); sleeps(pid);
    T(lk(fd, F_SETLKW, F_WRLCK, 20, 10)); T(lk(fd, F_SETLK, F_WRLCK, 20, 10));
    int r = lk(fd, F_SETLK, F_UNLCK, 0, 10);  // told when the child has told what it made of it
    waitpid(pid, 0, 0); T(r); T(lk(fd, F_SETLKW, F_WRLCK, 20, 10));
    return 0;
}""")  # fmt: skip


def test_deadlock_of_three() -> None:
    same(L + r"""
int main() {
    int fd = open("f", O_RDWR | O_CREAT, 0644), held[2], go[2]; pipe(held); pipe(go);
    for (int i = 0; i < 3; i++)
        if (!fork()) {
            lk(fd, F_SETLKW, F_WRLCK, i, 1); char c; write(held[1], "x", 1); read(go[0], &c, 1);
            int r = lk(fd, F_SETLKW, F_WRLCK, (i + 1) % 3, 1);
            _exit(r < 0 ? errno : 0);
        }
    for (int i = 0; i < 3; i++) read(held[0], buf, 1);
    for (int i = 0; i < 3; i++) write(go[1], "x", 1);
    int st, dead = 0, fine = 0;
    while (wait(&st) > 0) { dead += st >> 8 == EDEADLK; fine += st == 0; }
    T(dead); T(fine);
    return 0;
}""")  # fmt: skip


def test_wait_is_interrupted() -> None:
    same(L + r"""
static void h(int s) { }
int main() {
    int fd = open("f", O_RDWR | O_CREAT, 0644), g = open("f", O_RDWR);
    lk(fd, F_OFD_SETLK, F_WRLCK, 0, 0);
    struct sigaction sa = {.sa_handler = h}; sigaction(SIGALRM, &sa, 0);
    when_asleep(SIGALRM); T(lk(g, F_OFD_SETLKW, F_RDLCK, 0, 1)); T(flock(fd, LOCK_EX));
    when_asleep(SIGALRM);
    T(flock(g, LOCK_SH));
    return 0;
}""")  # fmt: skip


def test_flock() -> None:
    same(L + r"""
int main() {
    int a = open("f", O_RDWR | O_CREAT, 0644), b = open("f", O_RDONLY), c = dup(a);
    T(flock(a, LOCK_SH)); T(flock(b, LOCK_SH | LOCK_NB)); T(flock(a, LOCK_EX | LOCK_NB));
    T(flock(b, LOCK_EX | LOCK_NB));
    T(flock(a, LOCK_SH | LOCK_NB)); T(flock(b, LOCK_UN)); T(flock(a, LOCK_EX | LOCK_NB));
    T(flock(c, LOCK_EX | LOCK_NB));
    T(flock(b, LOCK_SH | LOCK_NB)); T(lk(b, F_SETLK, F_RDLCK, 0, 0)); T(flock(a, 0));
    T(flock(a, 3)); T(flock(99, LOCK_SH));
    T(close(a)); T(flock(b, LOCK_SH | LOCK_NB)); int pid = fork();
    if (!pid) { sleeps(getppid()); flock(c, LOCK_UN); _exit(0); }
    T(flock(b, LOCK_EX)); waitpid(pid, 0, 0); T(close(c));
    if (!(pid = fork())) { T(flock(b, LOCK_UN)); _exit(0); }
    waitpid(pid, 0, 0); a = open("f", O_RDWR); T(flock(a, LOCK_EX | LOCK_NB));
    T(flock(open(".", O_RDONLY), LOCK_EX)); T(flock(open("f", O_PATH), LOCK_EX));
    return 0;
}""")  # fmt: skip


LEASE = r"""
static volatile int got; static siginfo_t si;
static void on(int sig, siginfo_t *info, void *c) { got = sig; si = *info; }
static void handle(int sig) {
    struct sigaction sa = {.sa_sigaction = on, .sa_flags = SA_SIGINFO}; sigaction(sig, &sa, 0);
}
static int lease(int fd, int kind) { return fcntl(fd, F_SETLEASE, kind); }
static int get(int fd) { return fcntl(fd, F_GETLEASE); }
"""


def test_leases() -> None:
    same(T + LEASE + r"""
int main() {
    put_("f", ""); handle(SIGIO); int f = open("f", O_RDWR), r, w, r2, q[2]; pipe(q);
    T(get(f)); T(lease(f, F_RDLCK)); T(lease(f, F_WRLCK)); T(get(f)); T(lease(f, F_UNLCK));
    T(lease(f, F_UNLCK)); T(lease(f, 7)); T(lease(f, -1)); T(lease(q[0], F_RDLCK)); T(get(q[0]));
    T(lease(open(".", 0), F_RDLCK)); T(lease(open("f", O_PATH), F_RDLCK)); T(lease(99, F_RDLCK));
    close(f); r = open("f", O_RDONLY); T(lease(r, F_RDLCK)); T(get(r)); T(fcntl(r, F_GETSIG));
    T(fcntl(r, F_GETOWN) == getpid()); T(fcntl(r, F_GETFL)); T(r2 = open("f", O_RDONLY)); close(r2);
    T(got); T(open("f", O_WRONLY | O_NONBLOCK)); T(got); T(si.si_code); T(si.si_fd); got = 0;
    T(get(r)); T(open("f", O_RDWR | O_NONBLOCK)); T(got); T(lease(r, F_RDLCK)); T(get(r));
    T(open("f", O_WRONLY | O_NONBLOCK)); T(got); got = 0; T(lease(r, F_UNLCK));
    T(fcntl(r, F_GETOWN)); T(fcntl(r, F_GETFL)); T(w = open("f", O_WRONLY | O_NONBLOCK));
    T(lease(r, F_RDLCK)); close(w); T(lease(r, F_RDLCK)); r2 = open("f", O_RDONLY);
    T(lease(r2, F_RDLCK)); T(lease(r2, F_WRLCK)); close(r2); T(lease(r, F_WRLCK)); T(get(r));
    int d = dup(r); T(get(d)); close(d); T(get(r)); T(unlink("f")); T(ftruncate(r, 0));
    T(fchmod(r, 0600)); T(get(r)); T(open("f", O_RDWR | O_CREAT | O_EXCL, 0666) >= 0);
    T(truncate("none", 0)); if (geteuid()) return 0;
    if (!fork()) {
        setresuid(77, 77, 77); T(lease(open("f", O_RDONLY), F_RDLCK));
        T(lease(open("/", O_RDONLY), F_RDLCK)); _exit(0);
    }
    wait(0); return 0;
}""")  # fmt: skip


def test_who_opens_waits_for_the_lease() -> None:
    same(T + LEASE + r"""
static pid_t start(int how) {
    pid_t p = fork(); got = 0;
    if (!p) _exit(how < 0 ? truncate("f", 10) : open("f", how) < 0);
    return p;
}
static void end(pid_t p) { int s; waitpid(p, &s, 0); T(s); }
static void signalled(void) {
    sigset_t none; sigemptyset(&none); while (!got) sigsuspend(&none);
    printf("signal %d %d %lx\n", got - SIGRTMIN, si.si_code, si.si_band);
}
int main() {
    sigset_t set; sigemptyset(&set); sigaddset(&set, SIGRTMIN); sigprocmask(SIG_BLOCK, &set, 0);
    put_("f", ""); handle(SIGRTMIN); pid_t p; int r = open("f", O_RDONLY);
    T(lease(r, F_WRLCK)); fcntl(r, F_SETSIG, SIGRTMIN);
    p = start(O_RDONLY); signalled(); T(get(r)); T(lease(r, F_RDLCK)); end(p); T(get(r));
    p = start(-1); signalled(); T(get(r)); T(lease(r, F_UNLCK)); end(p);
    T(lease(r, F_WRLCK)); fcntl(r, F_SETSIG, SIGRTMIN);
    p = start(O_RDONLY); signalled(); T(lease(r, F_UNLCK)); end(p);
    T(lease(r, F_WRLCK)); fcntl(r, F_SETSIG, SIGRTMIN); got = 0; p = fork();
    if (!p) { close(r); _exit(open("f", O_RDWR) < 0); }
    signalled(); close(r); end(p); r = open("f", O_RDONLY); T(lease(r, F_RDLCK));
    fcntl(r, F_SETSIG, SIGRTMIN); got = 0; p = fork();
    if (!p) { close(r); signal(SIGALRM, exit); open("f", O_RDWR); _exit(3); }
    signalled(); kill(p, SIGALRM); end(p); T(get(r)); return 0;
}""")  # fmt: skip


def test_who_waits_for_a_lease_has_the_file_open() -> None:
    """What the holder may make of it while somebody waits, and when he has given up."""
    same(T + LEASE + r"""
static pid_t start(int how) {
    pid_t p = fork(); got = 0;
    if (!p) _exit(how < 0 ? truncate("f", 10) : open("f", how) < 0);
    return p;
}
static void end(pid_t p) { int s; waitpid(p, &s, 0); T(s); }
static void signalled(void) {
    sigset_t none; sigemptyset(&none); while (!got) sigsuspend(&none);
    printf("signal %d %d %lx\n", got - SIGRTMIN, si.si_code, si.si_band);
}
int main() {
    sigset_t set; sigemptyset(&set); sigaddset(&set, SIGRTMIN); sigprocmask(SIG_BLOCK, &set, 0);
    put_("f", ""); handle(SIGRTMIN); pid_t p; int r = open("f", O_RDONLY);
    int ways[] = {O_WRONLY, O_RDWR, O_RDONLY, -1};
    for (int i = 0; i < 4; i++) {
        T(lease(r, F_WRLCK)); fcntl(r, F_SETSIG, SIGRTMIN);
        p = start(ways[i]); signalled();
        T(lease(r, F_WRLCK)); T(get(r)); T(lease(r, F_RDLCK)); T(get(r));
        T(lease(r, F_UNLCK)); end(p); T(get(r));
    }
    T(lease(r, F_RDLCK)); fcntl(r, F_SETSIG, SIGRTMIN);
    p = start(O_WRONLY); signalled(); T(lease(r, F_RDLCK)); T(get(r));
    kill(p, SIGKILL); end(p); T(get(r)); T(lease(r, F_RDLCK)); T(get(r));
    T(open("f", O_WRONLY | O_NONBLOCK)); T(lease(r, F_UNLCK)); T(get(r));
    return 0;
}""")  # fmt: skip


def test_a_lease_that_is_not_given_up_is_taken_away() -> None:
    program = build(T + LEASE + r"""
int main() {
    put_("f", ""); handle(SIGIO); put_("/proc/sys/fs/lease-break-time", "1");
    int r = open("f", O_RDONLY); lease(r, F_WRLCK); pid_t p = getpid();
    if (!fork()) {
        close(r); if (open("f", O_RDONLY) < 0) _exit(1);
        _exit(open("f", O_WRONLY) < 0);
    }
    int s; while (wait(&s) < 0); return s || get(r) != F_UNLCK || !got;
}""")  # fmt: skip
    assert by_guest(program)[0] == 0


def test_leases_are_listed_with_the_locks() -> None:
    program = build(T + LEASE + r"""
static int listed(const char *state, const char *way) {
    char want[100], line[200]; int n = 0; FILE *f = fopen("/proc/locks", "r");
    while (fgets(line, sizeof line, f)) {
        char kind[20], is[20], left[20], start[20], end[20]; int pid;
        if (sscanf(line, "%*s %s %s %s %d %*s %s %s", kind, is, left, &pid, start, end) == 6)
            n += !strcmp(kind, "LEASE") && !strcmp(is, state) && !strcmp(left, way)
                && pid == getpid() && !strcmp(start, "0") && !strcmp(end, "EOF");
    }
    fclose(f); return n;
}
int main() {
    put_("f", ""); handle(SIGIO); int r = open("f", O_RDONLY);
    if (listed("ACTIVE", "WRITE")) return 1;
    lease(r, F_WRLCK); if (!listed("ACTIVE", "WRITE")) return 2;
    open("f", O_RDONLY | O_NONBLOCK); if (!listed("BREAKING", "READ")) return 3;
    open("f", O_RDWR | O_NONBLOCK); if (!listed("BREAKING", "UNLCK")) return 4;
    lease(r, F_UNLCK); return listed("BREAKING", "UNLCK") ? 5 : 0;
}""")  # fmt: skip
    assert by_guest(program)[0] == 0
