"""Which error comes first when several things are wrong with a call. The host says."""

from __future__ import annotations

from guest_util import same

N = r"""
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
static void say(const char *what, long r)
{
    if (r < 0) printf("%s: %s\n", what, strerrorname_np(errno));
    else printf("%s: %ld\n", what, r);
    fflush(stdout);
}
#define N(x) do { errno = 0; say(#x, (long)(x)); } while (0)
"""


def test_transfers_of_every_kind_of_file() -> None:
    out = same(N + r"""
static char b[100];
static void all(const char *name, int fd)
{
    struct iovec v = {b, 10};
    printf("-- %s\n", name);
    N(pread(fd, b, 10, 0)); N(pwrite(fd, b, 0, 0)); N(pread(fd, b, 10, -1));
    N(pwrite(fd, b, 10, -1)); N(preadv(fd, &v, 1, 0)); N(pwritev(fd, &v, 0, 0));
    N(preadv(fd, &v, 5000, 0)); N(preadv2(fd, &v, 1, 0, 0)); N(preadv2(fd, &v, 0, -1, 0));
    N(preadv2(fd, &v, 1, 0, 0x1000)); N(preadv2(fd, &v, 1, -1, 0x1000));
    N(lseek(fd, 0, SEEK_CUR)); N(lseek(fd, 0, 9)); N(pread(fd, (void *)-1, 10, 0));
    N(read(fd, (void *)-1, 10)); N(read(fd, (void *)8, 0)); N(write(fd, (void *)-1, 10));
    N(readv(fd, (void *)8, 1)); N(readv(fd, 0, 0)); N(readv(fd, 0, -1));
}
int main(void)
{
    int p[2];
    sigset_t set;
    pipe2(p, O_NONBLOCK);
    sigemptyset(&set);
    all("the reading end of a pipe", p[0]);
    all("the writing end", p[1]);
    all("eventfd", eventfd(1, EFD_NONBLOCK));
    all("epoll", epoll_create1(0));
    all("inotify", inotify_init1(IN_NONBLOCK));
    all("timerfd", timerfd_create(0, TFD_NONBLOCK));
    all("signalfd", signalfd(-1, &set, SFD_NONBLOCK));
    all("pidfd", syscall(SYS_pidfd_open, getpid(), 0));
    all("directory", open("/", O_RDONLY));
    all("O_PATH", open("/", O_PATH));
    all("null", open("/dev/null", O_WRONLY));
    all("zero", open("/dev/zero", O_RDONLY));
    all("ptmx", open("/dev/ptmx", O_RDWR | O_NONBLOCK | O_NOCTTY));
    all("memfd", memfd_create("x", 0));
    all("nothing", 99);
}
""")  # fmt: skip
    ends = out.split(b"-- ")
    assert ends[1].splitlines()[2] == b"pwrite(fd, b, 0, 0): ESPIPE"
    assert ends[2].splitlines()[1] == b"pread(fd, b, 10, 0): ESPIPE"
