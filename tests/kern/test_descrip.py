"""Descriptors: numbers, flags, close-on-exec, limits. Each program runs on the host too."""

from __future__ import annotations

from file_util import T
from guest_util import same


def test_dup_and_fcntl() -> None:
    same(T + r"""
int main() {
    put_("f", "0123456789");
    int fd = open("f", O_RDWR);
    T(fd); T(dup(fd)); T(dup2(fd, 9)); T(dup2(fd, fd)); T(dup2(77, 78)); T(dup2(77, 77));
    T(dup(-1)); T(dup2(fd, -1)); T(dup2(fd, 1 << 20)); T(dup3(fd, fd, 0)); T(dup3(fd, 10, 1));
    T(dup3(fd, 10, O_CLOEXEC)); T(fcntl(10, F_GETFD)); T(fcntl(9, F_GETFD));
    T(fcntl(fd, F_DUPFD, 20)); T(fcntl(fd, F_DUPFD, 20)); T(fcntl(fd, F_DUPFD_CLOEXEC, 20));
    T(fcntl(22, F_GETFD)); T(fcntl(fd, F_DUPFD, -1)); T(fcntl(fd, F_DUPFD, 1 << 30));
    T(fcntl(10, F_SETFD, 0)); T(fcntl(10, F_GETFD)); T(fcntl(99, F_GETFD)); T(fcntl(fd, 12345));
    T(fcntl(fd, F_GETFL) & ~O_LARGEFILE); T(fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK | O_WRONLY));
    T(fcntl(9, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK));
    T(lseek(fd, 0, SEEK_SET)); T(write(9, "xy", 2)); T(lseek(fd, 0, SEEK_CUR));
    T(fcntl(fd, F_SETFL, 0)); T(lseek(20, 3, SEEK_SET)); T(read(fd, buf, 2)); T(buf[0]);
    T(close(fd)); T(close(fd)); T(close(-1)); T(read(9, buf, 1)); T(buf[0]);
    T(fcntl(9, F_GETPIPE_SZ)); T(fcntl(9, F_GETOWN)); T(fcntl(9, F_GETLEASE));
    return 0;
}""")  # fmt: skip


def test_numbers_are_the_lowest() -> None:
    same(T + r"""
int main() {
    int fds[3000], i, bad = 0;
    struct rlimit rl = {5000, 5000};
    setrlimit(RLIMIT_NOFILE, &rl);
    for (i = 0; i < 3000; i++) fds[i] = dup(1);
    for (i = 0; i < 3000; i++) bad += fds[i] != i + 3;
    T(bad); T(close(2000)); T(close(500)); T(close(1027));
    T(dup(1)); T(dup(1)); T(dup(1)); T(dup(1)); T(fcntl(1, F_DUPFD, 4999));
    T(fcntl(1, F_DUPFD, 4999));
    T(fcntl(1, F_DUPFD, 5000)); T(dup2(1, 4999)); T(dup2(1, 5000));
    return 0;
}""")  # fmt: skip


def test_rlimit_nofile() -> None:
    same(T + r"""
int main() {
    struct rlimit rl = {6, 6};
    T(setrlimit(RLIMIT_NOFILE, &rl));
    T(open("/dev/null", 0)); T(open("/dev/null", 0)); T(open("/dev/null", 0));
    T(open("/dev/null", 0)); T(open("/nowhere", 0)); T(dup(1)); int p[2]; T(pipe(p));
    T(close(4)); T(pipe(p)); T(dup(0)); T(close(4)); T(close(5)); T(pipe(p)); T(p[0] * 10 + p[1]);
    T(epoll_create1(0)); T(eventfd(0, 0));
    struct pollfd pf[7] = {{0}};
    T(poll(pf, 7, 0)); T(poll(pf, 6, 0) >= 0);
    return 0;
}""")  # fmt: skip


def test_close_on_exec_and_fork() -> None:
    same(T + r"""
int main(int argc, char **argv) {
    if (argc > 1) {
        for (int i = 3; i < 8; i++) T(fcntl(i, F_GETFD));
        return 0;
    }
    open("/dev/null", O_CLOEXEC); open("/dev/null", 0); dup3(4, 5, O_CLOEXEC); dup2(5, 6);
    fcntl(4, F_DUPFD_CLOEXEC, 7);
    if (!fork()) { close(4); T(fcntl(4, F_GETFD)); _exit(0); }
    wait(0);
    T(fcntl(4, F_GETFD));
    execl("/proc/self/exe", "again", "x", NULL);
    return 1;
}""")  # fmt: skip


def test_close_range() -> None:
    same(T + r"""
int main() {
    for (int i = 0; i < 10; i++) dup(1);
    T(syscall(436, 5, 7, 0)); T(fcntl(5, F_GETFD)); T(fcntl(8, F_GETFD));
    T(syscall(436, 8, ~0u, 4)); T(fcntl(8, F_GETFD)); T(fcntl(12, F_GETFD));
    T(syscall(436, 9, 3, 0)); T(syscall(436, 3, ~0u, 16)); T(syscall(436, 3, ~0u, 0));
    T(fcntl(8, F_GETFD)); T(fcntl(2, F_GETFD));
    return 0;
}""")  # fmt: skip


def test_offsets_are_shared_by_dup_and_fork() -> None:
    same(T + r"""
int main() {
    put_("f", "abcdefghij");
    int a = open("f", O_RDONLY), b = dup(a), c = open("f", O_RDONLY);
    T(read(a, buf, 3)); T(read(b, buf, 1)); T(buf[0]); T(read(c, buf, 1)); T(buf[0]);
    if (!fork()) { T(lseek(a, 7, SEEK_SET)); _exit(0); }
    wait(0); T(read(a, buf, 1)); T(buf[0]);
    return 0;
}""")  # fmt: skip


def test_garbage_arguments() -> None:
    same(T + r"""
int main() {
    int p[2]; pipe(p); put_("f", "data"); int fd = open("f", O_RDWR);
    char *bad = (char *)0x10;
    T(read(fd, bad, 4)); T(lseek(fd, 0, SEEK_CUR)); T(write(fd, bad, 4)); T(write(p[1], bad, 4));
    T(write(p[1], "abc", 3)); T(read(p[0], bad, 3)); T(read(p[0], buf, 3));
    T(read(fd, (void *)-1L, 1)); T(read(fd, buf, -1L)); T(write(fd, buf, -1L));
    T(read(fd, (void *)-1L, 0)); T(read(fd, bad, 0)); T(write(fd, bad, 0));
    T(write(p[1], bad, 0));
    T(pipe((int *)bad)); T(open(bad, 0)); T(stat(bad, (void *)buf)); T(stat("f", (void *)bad));
    T(fstat(fd, (void *)bad)); T(syscall(SYS_getcwd, bad, 100)); T(readlink(bad, buf, 10));
    T(syscall(SYS_poll, bad, 1, 0)); T(syscall(SYS_select, 5, bad, 0, 0, 0));
    T(fcntl(fd, F_GETLK, bad));
    T(ioctl(p[0], FIONREAD, bad)); T(syscall(SYS_readv, fd, bad, 1)); T(readv(fd, 0, 0));
    T(syscall(SYS_readv, fd, bad, 1025)); T(syscall(SYS_readv, fd, bad, -1));
    struct iovec iov[2] = {{buf, 2}, {bad, 2}};
    T(lseek(fd, 0, SEEK_SET)); T(readv(fd, iov, 2)); iov[1].iov_len = -1L; T(readv(fd, iov, 2));
    T(write(p[1], "abcd", 4)); iov[1].iov_len = 2; T(readv(p[0], iov, 2));
    T(syscall(SYS_getdents64, fd, buf, 100)); T(syscall(SYS_getdents64, 77, buf, 100));
    T(syscall(SYS_pipe2, buf, 1)); T(utimensat(AT_FDCWD, "f", (void *)bad, 0));
    T(syscall(SYS_epoll_ctl, 3, 1, 4, bad)); T(mkdir(bad, 0)); T(rename("f", bad));
    return 0;
}""")  # fmt: skip


def test_signals_of_readiness() -> None:
    """O_ASYNC, F_SETOWN and F_SETSIG."""
    same(T + r"""
static volatile int n, at, code, sig; static volatile long band;
static void h(int s, siginfo_t *i, void *u) {
    n++; sig = s; at = i->si_fd; code = i->si_code; band = i->si_band;
}
static void show(const char *what, int fd) {
    printf("%s: %d of %d", what, n, sig);
    if (sig && sig != SIGIO) printf(" fd %d code %d band %lx", at == fd, code, band);
    puts(""); n = sig = 0; fflush(stdout);
}
int main() {
    int p[2]; struct sigaction sa = {.sa_sigaction = h, .sa_flags = SA_SIGINFO}; pipe(p);
    sigaction(SIGIO, &sa, 0); sigaction(SIGUSR1, &sa, 0); sigaction(SIGRTMIN + 1, &sa, 0);
    T(fcntl(p[0], F_SETOWN, getpid())); T(fcntl(p[0], F_SETFL, O_ASYNC)); T(fcntl(p[0], F_GETFL));
    write(p[1], "a", 1); show("written", p[0]); read(p[0], buf, 10); show("read", p[0]);
    T(fcntl(p[0], F_SETSIG, SIGRTMIN + 1)); T(fcntl(p[0], F_GETSIG)); write(p[1], "a", 1);
    show("real time", p[0]); T(fcntl(p[0], F_SETSIG, SIGUSR1)); write(p[1], "a", 1);
    show("chosen", p[0]); T(fcntl(p[0], F_SETFL, 0)); write(p[1], "a", 1); show("off", p[0]);
    T(ioctl(p[0], FIOASYNC, &(int){1})); T(fcntl(p[0], F_GETFL)); write(p[1], "a", 1);
    show("on", p[0]); T(fcntl(p[0], F_SETOWN, 0)); write(p[1], "a", 1); show("nobody", p[0]);
    struct { int type, pid; } owner = {1, -getpgrp()}; T(fcntl(p[0], F_SETOWN, 1 << 31));
    T(fcntl(p[0], F_SETOWN_EX, &owner)); owner.type = 2; owner.pid = -getpid();
    T(fcntl(p[0], F_SETOWN_EX, &owner)); owner.type = 1; owner.pid = getpid();
    T(fcntl(p[0], F_SETOWN_EX, &owner));
    T(fcntl(p[0], F_SETSIG, 65)); T(fcntl(p[0], F_SETSIG, -1)); T(fcntl(p[0], F_SETSIG, 0));
    if (!fork()) { write(p[1], "x", 1); _exit(0); }
    while (wait(0) < 0 && errno == EINTR) ;  // its signal may come before it has closed the pipe
    show("a child", p[0]);
    close(p[1]); show("hung up", p[0]); close(p[0]); pipe(p); fcntl(p[1], F_SETOWN, getpid());
    fcntl(p[1], F_SETFL, O_ASYNC | O_NONBLOCK); while (write(p[1], buf, 4096) > 0); n = sig = 0;
    read(p[0], buf, 4096); show("room", p[1]); int d = dup(p[1]); close(p[1]); close(p[0]);
    show("no reader", d); int r = open("r", O_RDWR | O_CREAT, 0600); T(fcntl(r, F_SETFL, O_ASYNC));
    T(fcntl(r, F_GETFL)); T(ioctl(r, FIOASYNC, &(int){1})); T(ioctl(r, FIOASYNC, &(int){0}));
    return 0;
}""")  # fmt: skip
