"""What the C programs of the file tests share: a call, its result and its errno in a line."""

from __future__ import annotations

from guest_util import SLEEPS

T = r"""
#include <dirent.h>
#include <limits.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <utime.h>
#include <grp.h>
#include <linux/falloc.h>
#include <sys/uio.h>
#define T(e) do { errno = 0; long r_ = (long)(e); \
    printf("%s = %ld %d\n", #e, r_ < 0 ? -1L : r_, r_ < 0 ? errno : 0); fflush(stdout); } while (0)
static char buf[1 << 20];
__attribute__((constructor)) static void fresh_(void) {
    static char d[] = "/tmp/dfvmXXXXXX";
    if (!mkdtemp(d) || chdir(d)) _exit(99);
    umask(022);
}
static void put_(const char *name, const char *s) {
    int fd = open(name, O_CREAT | O_WRONLY | O_TRUNC, 0644);
    if (write(fd, s, strlen(s)) < 0) _exit(98);
    close(fd);
}
static const char *get_(const char *name) {
    int fd = open(name, O_RDONLY);
    long n = read(fd, buf, sizeof buf - 1);
    close(fd);
    buf[n < 0 ? 0 : n] = 0;
    return buf;
}
"""
T += SLEEPS
