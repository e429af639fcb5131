"""File locks. Each program runs on the host too."""

from __future__ import annotations

from file_util import T
from guest_util import same

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
    read(p[0], &c, 1); usleep(50000);
    T(lk(fd, F_SETLKW, F_WRLCK, 20, 10)); T(lk(fd, F_SETLK, F_WRLCK, 20, 10));
    int r = lk(fd, F_SETLK, F_UNLCK, 0, 10);  // told when the child has told what it made of it
    waitpid(pid, 0, 0); T(r); T(lk(fd, F_SETLKW, F_WRLCK, 20, 10));
    return 0;
}""")  # fmt: skip


def test_deadlock_of_three() -> None:
    same(L + r"""
int main() {
    int fd = open("f", O_RDWR | O_CREAT, 0644);
    for (int i = 0; i < 3; i++)
        if (!fork()) {
            lk(fd, F_SETLKW, F_WRLCK, i, 1); usleep(50000 + 30000 * i);
            int r = lk(fd, F_SETLKW, F_WRLCK, (i + 1) % 3, 1);
            _exit(r < 0 ? errno : 0);
        }
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
    struct itimerval it = {{0, 0}, {0, 20000}}; setitimer(ITIMER_REAL, &it, 0);
    T(lk(g, F_OFD_SETLKW, F_RDLCK, 0, 1)); T(flock(fd, LOCK_EX)); setitimer(ITIMER_REAL, &it, 0);
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
    if (!pid) { usleep(30000); flock(c, LOCK_UN); _exit(0); }
    T(flock(b, LOCK_EX)); waitpid(pid, 0, 0); T(close(c));
    if (!(pid = fork())) { T(flock(b, LOCK_UN)); _exit(0); }
    waitpid(pid, 0, 0); a = open("f", O_RDWR); T(flock(a, LOCK_EX | LOCK_NB));
    T(flock(open(".", O_RDONLY), LOCK_EX)); T(flock(open("f", O_PATH), LOCK_EX));
    return 0;
}""")  # fmt: skip
