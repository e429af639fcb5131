"""What arrived before a page that can't be reached: where it is the result, where it is lost, and
where it stays to be asked for again. The host says which."""

from __future__ import annotations

from guest_util import same

START = r"""
#include <dirent.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/uio.h>
#define PG 4096L
#define N(name, x) do { errno = 0; long r_ = (x); \
    if (r_ < 0) printf("%s: %s\n", name, strerrorname_np(errno)); \
    else printf("%s: %ld\n", name, r_); } while (0)
static char *end; /* of the last page that is there */
static char room[PG];
static void border(void)
{
    /* far from the end of what a process may map */
    char *p = mmap((void *)(1L << 40), 3 * PG, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    memset(p, 0, 3 * PG);
    mprotect(p + 2 * PG, PG, PROT_NONE);
    end = p + 2 * PG;
}
"""


def test_random_bytes() -> None:
    out = same(START + r"""
int main(void)
{
    border();
    int fd = open("/dev/urandom", O_RDONLY);
    N("some", syscall(SYS_getrandom, end - 10, 20, 0));
    N("more than a page", syscall(SYS_getrandom, end - PG - 100, 2 * PG, 0));
    N("more than can be", syscall(SYS_getrandom, end - PG, -1L, 0));
    N("none", syscall(SYS_getrandom, end, 20, 0));
    N("nothing wanted", syscall(SYS_getrandom, end, 0, 0));
    N("the device", read(fd, end - 33, 70000));
    int seen = 0;
    for (int i = 1; i <= 20; i++) seen |= end[-i];
    printf("%d\n", seen != 0);
}
""")  # fmt: skip
    assert out.startswith(b"some: 10\nmore than a page: 4196\n")


def test_epoll_tells_of_what_it_could_tell() -> None:
    """The events that could not be stored are first in the next call, one-shot ones too."""
    out = same(START + r"""
static void show(int n, char *at)
{
    printf("%d:", n < 0 ? -errno : n);
    for (int i = 0; i < n && at + 12 <= end; i++, at += 12) {
        struct epoll_event ev;
        memcpy(&ev, at, 12);
        printf(" %x/%d", ev.events, ev.data.u32);
    }
    puts("");
}
int main(void)
{
    border();
    int ep = epoll_create1(0), fd[6];
    for (int i = 0; i < 6; i++) {
        int more = i == 2 ? EPOLLONESHOT : i == 4 ? EPOLLET : 0;
        struct epoll_event ev = {EPOLLIN | more, {.u32 = i}};
        fd[i] = eventfd(1, 0);
        epoll_ctl(ep, EPOLL_CTL_ADD, fd[i], &ev);
    }
    for (int i = 0; i < 4; i++)
        show(syscall(SYS_epoll_wait, ep, end - 24 - i, 10, 0), end - 24 - i);
    show(syscall(SYS_epoll_wait, ep, end, 10, 0), end);
    show(syscall(SYS_epoll_wait, ep, end - 5, 10, 0), end);
    for (int i = 0; i < 2; i++)
        show(syscall(SYS_epoll_wait, ep, end - 120, 10, 0), end - 120);
}
""")  # fmt: skip
    assert out.startswith(b"2: 1/0 1/1\n2: 1/2 1/3\n")


def test_directories_go_on_behind_what_arrived() -> None:
    out = same(START + r"""
int main(void)
{
    border();
    char dir[] = "/tmp/partial.XXXXXX", name[] = "a";
    chdir(mkdtemp(dir));
    for (; *name <= 'i'; ++*name) close(open(name, O_CREAT | O_RDWR, 0600));
    int fd = open(".", O_RDONLY), n;
    for (int nr = 0; nr < 2; nr++) {
        int call = nr ? SYS_getdents : SYS_getdents64, bits = 0;
        lseek(fd, 0, SEEK_SET);
        N("not one", syscall(call, fd, end - 20, 4096));
        N("not a byte", syscall(call, fd, end, 4096));
        while ((n = syscall(call, fd, end - 100, 4096)) > 0) {
            printf("%d\n", n);
            for (char *p = end - 100; p < end - 100 + n; p += *(short *)(p + 16))
                bits |= p[nr ? 18 : 19] == '.' ? 1 << strlen(p + (nr ? 18 : 19))
                                               : 8 << (p[nr ? 18 : 19] - 'a');
        }
        printf("%d %x\n", n, bits);
        N("at the end", syscall(call, fd, end, 4096));
    }
    for (*name = 'a'; *name <= 'i'; ++*name) unlink(name);
    rmdir(dir);
}
""")  # fmt: skip
    assert out.count(b"96\n96\n72\n0 ffe\n") == 2


def test_events_and_signals_that_are_read() -> None:
    """inotify fails whatever it has handed over; signalfd counts the records that arrived."""
    out = same(START + r"""
int main(void)
{
    border();
    char dir[] = "/tmp/partial.XXXXXX", name[] = "a";
    chdir(mkdtemp(dir));
    int in = inotify_init1(IN_NONBLOCK);
    inotify_add_watch(in, ".", IN_CREATE | IN_DELETE);
    for (; *name <= 'd'; ++*name) close(open(name, O_CREAT | O_RDWR, 0600));
    N("some events", read(in, end - 40, 4096));
    N("those left", read(in, room, 4096));
    N("none left", read(in, room, 4096));
    for (*name = 'a'; *name <= 'd'; ++*name) unlink(name);
    N("no room", read(in, end, 4096));
    N("those left", read(in, room, 4096));
    rmdir(dir);

    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, 0);
    int sfd = signalfd(-1, &set, SFD_NONBLOCK);
    kill(getpid(), SIGUSR1);
    kill(getpid(), SIGUSR2);
    N("one signal", read(sfd, end - 150, 256));
    N("none left", read(sfd, room, 256));
    kill(getpid(), SIGUSR1);
    N("half a signal", read(sfd, end - 20, 256));
    N("none left", read(sfd, room, 256));
}
""")  # fmt: skip
    assert b"some events: EFAULT\nthose left: 64\nnone left: EAGAIN\n" in out
    assert b"one signal: 128\nnone left: EAGAIN\n" in out


def test_files_of_proc() -> None:
    same(START + r"""
int main(void)
{
    border();
    char *names[] = {"maps", "stat", "cmdline", "auxv", "status", "mounts", "limits"};
    for (int i = 0; i < 7; i++) {
        char path[40];
        sprintf(path, "/proc/self/%s", names[i]);
        int fd = open(path, O_RDONLY);
        N(names[i], read(fd, end - 3, 200));
        N("at", lseek(fd, 0, SEEK_CUR));
        N("none", read(fd, end, 200));
    }
    int fd = open("/proc/version", O_RDONLY);
    N("version", read(fd, end - 3, 200));
    /* memory is moved by way of a page of the kernel's: the whole call fails */
    char *other = mmap(0, 2 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fd = open("/proc/self/mem", O_RDWR);
    N("mem", pread(fd, end - 10, 100, (long)other));
    N("mem, 2 pages", pread(fd, end - PG, 2 * PG, (long)other));
    N("mem, from a border", pread(fd, room, PG, (long)end - 100));
    N("mem written", pwrite(fd, end - PG, 2 * PG, (long)other));
}
""")  # fmt: skip


def test_a_pseudo_terminal() -> None:
    """A line that a bad address cuts short is gone; the master's side likewise."""
    same(START + r"""
#include <termios.h>
int main(void)
{
    border();
    int m = open("/dev/ptmx", O_RDWR | O_NONBLOCK | O_NOCTTY), n = 0;
    grantpt(m);
    unlockpt(m);
    int s = open(ptsname(m), O_RDWR | O_NONBLOCK | O_NOCTTY);
    struct termios t;
    tcgetattr(s, &t);
    cfmakeraw(&t);
    tcsetattr(s, TCSANOW, &t);
    write(m, "0123456789", 10);
    N("slave", read(s, end - 4, 10));
    N("slave, next", read(s, room, 10));
    write(m, "01", 2);
    N("slave, none", read(s, end, 10));
    N("slave, next", read(s, room, 10));
    write(s, "0123456789", 10);
    N("master", read(m, end - 4, 10));
    N("master, next", read(m, room, 10));
}
""")  # fmt: skip
