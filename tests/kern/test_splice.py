"""splice, tee and vmsplice. Each program runs on the host too."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from file_util import T
from guest_util import build, same

from dfvm import PIPE, Machine

if TYPE_CHECKING:
    from pathlib import Path

Q = r"""
static void q(int fd) { int n = -1; ioctl(fd, FIONREAD, &n); printf("%d waiting\n", n); }
static void drain(int fd) { fcntl(fd, F_SETFL, O_NONBLOCK); while (read(fd, buf, 65536) > 0);
    fcntl(fd, F_SETFL, 0); }
#define NB SPLICE_F_NONBLOCK
#define BAD ((void *)-1)
"""


def test_files_and_pipes() -> None:
    same(T + Q + r"""
int main() {
    int p[2], r[2]; loff_t o = 0; pipe(p); pipe(r); struct stat st; struct pollfd pf = {p[1], 4};
    for (int i = 0; i < 300000; i++) buf[i] = i * 13 + i / 256;
    int f = open("f", O_RDWR | O_CREAT, 0644), g = open("g", O_RDWR | O_CREAT, 0644);
    int d = open(".", 0), ap = open("g", O_WRONLY | O_APPEND), e = eventfd(5, 0);
    write(f, buf, 200000); lseek(f, 0, SEEK_SET);
    T(splice(f, &o, p[1], 0, 1000, 0)); T(o); q(p[0]); T(splice(f, 0, p[1], 0, 1 << 20, 0));
    T(lseek(f, 0, SEEK_CUR)); q(p[0]); T(splice(f, 0, p[1], 0, 100, NB)); T(poll(&pf, 1, 0));
    T(splice(p[0], 0, g, 0, 500, 0)); T(lseek(g, 0, SEEK_CUR)); o = 10;
    T(splice(p[0], 0, g, &o, 100000, 0)); T(o); q(p[0]); T(lseek(g, 0, SEEK_CUR));
    T(splice(p[0], 0, g, 0, 10, NB)); fstat(g, &st); T(st.st_size); pread(g, buf, 70000, 0);
    long sum = 0; for (int i = 0; i < 60000; i++) sum = (sum * 31 + buf[i]) & 0xffffff; T(sum);
    o = 100; T(splice(f, &o, p[1], 0, 1 << 20, 0)); drain(p[0]);
    o = 199990; T(splice(f, &o, p[1], 0, 100, 0)); o = 200000; T(splice(f, &o, p[1], 0, 100, 0));
    o = -1; T(splice(f, &o, p[1], 0, 100, 0)); o = 0; T(splice(p[0], &o, g, 0, 10, 0));
    T(splice(f, 0, p[1], &o, 10, 0)); T(splice(f, 0, g, 0, 10, 0));
    T(splice(p[0], 0, p[1], 0, 1, 0)); T(splice(f, 0, p[1], 0, 0, 99));
    T(splice(f, 0, p[1], 0, 1, 16)); T(splice(99, 0, p[1], 0, 1, 0));
    T(splice(f, 0, 99, 0, 1, 0)); T(splice(d, 0, p[1], 0, 1, 0)); T(splice(p[0], 0, ap, 0, 1, 0));
    T(splice(p[1], 0, g, 0, 1, 0)); T(splice(f, 0, p[0], 0, 1, 0)); T(splice(e, 0, p[1], 0, 8, 0));
    T(splice(p[0], 0, e, 0, 8, 0)); T(splice(f, BAD, p[1], 0, 1, 0));
    T(splice(open("/dev/zero", 0), 0, p[1], 0, 100, 0)); T(sendfile(g, open("/dev/zero", 0), 0, 9));
    T(splice(p[0], 0, open("/dev/null", 1), 0, 50, 0)); q(p[0]); T(sendfile(e, f, 0, 8));
    return 0;
}""")  # fmt: skip


def test_between_pipes() -> None:
    same(T + Q + r"""
int main() {
    int p[2], r[2]; pipe(p); pipe(r); signal(SIGPIPE, SIG_IGN);
    write(p[1], "hello", 5); write(p[1], "world", 5); T(splice(p[0], 0, r[1], 0, 7, 0));
    q(p[0]); q(r[0]); T(read(r[0], buf, 100)); T(read(p[0], buf + 7, 100)); buf[10] = 0; puts(buf);
    T(splice(p[0], 0, r[1], 0, 7, NB)); T(tee(p[0], r[1], 7, NB)); write(p[1], "teetee", 6);
    T(tee(p[0], r[1], 4, 0)); q(p[0]); q(r[0]); T(tee(p[0], r[1], 100, 0)); q(r[0]);
    T(read(r[0], buf, 100)); buf[10] = 0; puts(buf); T(read(p[0], buf, 100));
    T(tee(p[0], p[1], 1, 0)); T(tee(99, p[1], 1, 0)); T(tee(p[0], r[1], 0, 0));
    T(tee(p[0], r[1], 1, 16)); T(tee(p[1], r[1], 1, 0)); T(tee(p[0], r[0], 1, 0));
    fcntl(r[1], F_SETFL, O_NONBLOCK); while (write(r[1], buf, 4096) > 0); write(p[1], "x", 1);
    T(splice(p[0], 0, r[1], 0, 1, 0)); T(tee(p[0], r[1], 1, 0)); fcntl(r[1], F_SETFL, 0);
    T(read(r[0], buf, 65536)); for (int i = 0; i < 5; i++) write(p[1], buf, 5000);
    T(splice(p[0], 0, r[1], 0, 1 << 20, 0)); q(p[0]); q(r[0]);
    close(p[1]); T(splice(p[0], 0, r[1], 0, 1, 0)); T(tee(p[0], r[1], 1, 0)); pipe(p); close(p[0]);
    T(splice(r[0], 0, p[1], 0, 1, 0)); T(tee(r[0], p[1], 1, 0)); drain(r[0]); pipe(p);
    if (!fork()) { close(r[1]); splice(r[0], 0, p[1], 0, 3, 0); _exit(0); }
    write(r[1], "late", 4); T(read(p[0], buf, 9)); wait(0); q(r[0]);
    return 0;
}""")  # fmt: skip


def test_memory() -> None:
    same(T + Q + r"""
int main() {
    int p[2], f = open("f", O_RDWR | O_CREAT, 0644); struct iovec iv[2]; pipe(p);
    iv[0] = (struct iovec){"abc", 3}; iv[1] = (struct iovec){buf, 5000};
    T(vmsplice(p[1], iv, 2, 0)); q(p[0]); iv[0] = (struct iovec){buf, 10};
    T(vmsplice(p[0], iv, 1, 0)); q(p[0]); buf[3] = 0; puts(buf); T(vmsplice(f, iv, 1, 0));
    T(vmsplice(99, iv, 1, 0)); T(vmsplice(p[1], iv, 1, 16)); T(vmsplice(p[1], iv, 1025, 0));
    T(vmsplice(p[1], iv, 0, 0)); T(vmsplice(p[1], BAD, 1, 0)); iv[0] = (struct iovec){BAD, 1};
    T(vmsplice(p[1], iv, 1, 0)); iv[0] = (struct iovec){buf, 0}; T(vmsplice(f, iv, 1, 0));
    drain(p[0]); fcntl(p[1], F_SETFL, O_NONBLOCK); while (write(p[1], buf, 4096) > 0);
    iv[0] = (struct iovec){buf, 200000}; T(vmsplice(p[1], iv, 1, NB)); T(vmsplice(p[0], iv, 1, 0));
    T(vmsplice(p[0], iv, 1, NB)); close(p[1]); T(vmsplice(p[0], iv, 1, 0));
    return 0;
}""")  # fmt: skip


def test_memory_takes_the_slots_of_its_pages() -> None:
    same(T + Q + r"""
static char mem[1 << 19] __attribute__((aligned(4096))); static struct iovec v[32]; static int p[2];
static void go(const char *what, int n) {
    long got = vmsplice(p[1], v, n, NB), slots = 0; int e = got < 0 ? errno : 0; unsigned sum = 0;
    fcntl(p[1], F_SETFL, O_NONBLOCK | O_DIRECT); while (write(p[1], "x", 1) == 1) slots++;
    fcntl(p[1], F_SETFL, 0); fcntl(p[0], F_SETFL, O_NONBLOCK);
    for (long n; (n = read(p[0], buf, 65536)) > 0;)
        for (long i = 0; i < n; i++) sum = sum * 31 + buf[i];
    fcntl(p[0], F_SETFL, 0); printf("%s: %ld %d, %ld slots left, %x\n", what, got, e, slots, sum);
}
#define V(i, at, n) v[i] = (struct iovec){at, n}
int main() {
    pipe(p); for (int i = 0; i < sizeof mem; i++) mem[i] = i * 7 + i / 4096;
    char *hole = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(hole + 4096, 4096);
    V(0, mem, 3 * 4096); go("aligned", 1); V(0, mem + 100, 3 * 4096); go("not aligned", 1);
    V(0, mem + 4095, 2); go("two bytes", 1); V(0, mem + 4095, 1 << 18); go("much", 1);
    V(0, mem, 1 << 18); go("as much, aligned", 1); V(0, hole + 5, 8192); go("into a hole", 1);
    V(0, hole + 4096, 8); go("nothing there", 1); V(0, mem + 3, 10); V(1, hole + 4096, 9);
    V(2, mem, 9); go("the second is not there", 3);
    for (int i = 0; i < 20; i++) V(i, mem + 5 * i, 5);
    go("many", 20); V(3, mem, 0); go("an empty one", 10);
    for (int i = 0; i < 5; i++) V(i, mem + 5000 * i, 5000);
    go("some", 5); return 0;
}""")  # fmt: skip


def test_what_has_nothing_to_splice() -> None:
    """Files whose readers make their text anew each time, and what has no position."""
    same(T + r"""
#include <sys/inotify.h>
#include <sys/timerfd.h>
#include <pty.h>
static const char *names[] = {"/proc/self/status", "/proc/self/environ", "/proc/self/maps",
    "/proc/self/mem", "/proc/self/fdinfo/0", "/proc/version", "/proc/self/mounts", "/proc/swaps",
    "/proc/sys/kernel/ostype", "/dev/null", "/dev/zero", "/dev/urandom", ".", "fifo"};
static void try(int in, int out, int p[2]) {
    loff_t o = 0; long r;
#define R(e) r = (e); printf(" %ld", r < 0 ? -errno : r)
    R(sendfile(out, in, 0, 0)); R(sendfile(p[1], in, 0, 0)); R(sendfile(out, in, 0, 1));
    R(sendfile(out, in, &o, 1)); R(splice(in, 0, p[1], 0, 1, SPLICE_F_NONBLOCK));
    R(sendfile(p[1], in, 0, 1)); puts("");
}
int main() {
    int p[2], m, s, out = open("out", O_RDWR | O_CREAT, 0644); pipe(p); mkfifo("fifo", 0600);
    for (int i = 0; i < sizeof names / sizeof *names; i++) {
        printf("%s:", names[i]); try(open(names[i], O_RDONLY | O_NONBLOCK), out, p);
    }
    try(eventfd(1, O_NONBLOCK), out, p); try(epoll_create1(0), out, p);
    try(inotify_init(), out, p); openpty(&m, &s, 0, 0, 0);
    write(s, "hi\n", 3); try(m, out, p); write(m, "hi\n", 3); try(s, out, p);
    T(sendfile(open("/dev/full", 2), open("/dev/zero", 0), 0, 1));
    T(sendfile(open("/proc/self/comm", 2), open("/dev/zero", 0), 0, 1));
    return 0;
}""")  # fmt: skip


def test_sendfile_takes_what_fits_in_a_pipe() -> None:
    same(T + Q + r"""
int main() {
    int p[2], f = open("f", O_RDWR | O_CREAT, 0644); off_t o = 100; pipe(p);
    write(f, buf, 300000); T(sendfile(p[1], f, &o, 300000)); T(o); q(p[0]);
    fcntl(p[1], F_SETFL, O_NONBLOCK); T(sendfile(p[1], f, &o, 1)); drain(p[0]); lseek(f, 5, 0);
    T(sendfile(p[1], f, 0, 10000)); T(lseek(f, 0, SEEK_CUR)); q(p[0]); close(p[0]);
    signal(SIGPIPE, SIG_IGN); T(sendfile(p[1], f, 0, 1)); T(lseek(f, 0, SEEK_CUR)); return 0;
}""")  # fmt: skip


def test_sendfile_from_a_file_of_the_host(tmp_path: Path) -> None:
    program = build(r"""
#include <sys/sendfile.h>
int main() {
    int g = open("/dev/null", O_WRONLY); off_t o = 3;
    if (sendfile(g, 0, 0, 2) != 2 || lseek(0, 0, SEEK_CUR) != 2) return 1;
    if (sendfile(g, 0, &o, 100) != 7 || o != 10 || lseek(0, 0, SEEK_CUR) != 2) return 2;
    return sendfile(1, 0, 0, 100) != 8 || lseek(0, 0, SEEK_CUR) != 10;
}""")  # fmt: skip
    (tmp_path / "in").write_bytes(b"0123456789")
    with (tmp_path / "in").open() as stdin, Machine(mem="32M", check=True) as m:
        p = m.spawn([program], stdin=stdin.fileno(), stdout=PIPE)
        m.run(timeout=600)
        assert (p.exit_status, p.stdout) == (0, b"23456789")


def test_a_file_to_a_pipe_of_the_host() -> None:
    program = build(
        r"""
int main() {
    int f = memfd_create("f", 0); loff_t o = 5; write(f, "0123456789", 10); lseek(f, 2, SEEK_SET);
    if (splice(f, &o, 1, 0, 3, 0) != 3 || o != 8 || lseek(f, 0, SEEK_CUR) != 2) return 1;
    if (splice(f, 0, 1, 0, 1, 0) != 1 || lseek(f, 0, SEEK_CUR) != 3) return 2;
    return 0;
}"""
    )
    end, stdout = os.pipe()
    try:
        with Machine(mem="32M", check=True) as m:
            p = m.spawn([program], stdout=stdout)
            m.run(timeout=600)
        assert p.exit_status == 0
        assert os.read(end, 100) == b"5672"
    finally:
        os.close(end)
        os.close(stdout)


def test_tee_without_enough_pages_tells_what_it_copied() -> None:
    """All pipes together have 256M: here half of what the last one wants is left."""
    program = build(
        r"""
#include <sys/ioctl.h>
int main() {
    int p[2], last[2], zero = open("/dev/zero", O_RDONLY), n = -1;
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){4096, 4096});
    for (int i = 0; i < 256; i++) {
        pipe(p); fcntl(p[0], F_SETPIPE_SZ, 1 << 20);
        if (splice(zero, 0, p[1], 0, i ? 1 << 20 : 1 << 19, SPLICE_F_NONBLOCK) < 0) return 1;
    }
    pipe(last); fcntl(last[0], F_SETPIPE_SZ, 1 << 20);
    if (tee(p[0], last[1], 1 << 20, SPLICE_F_NONBLOCK) != 1 << 19) return 2;
    ioctl(last[0], FIONREAD, &n);
    if (n != 1 << 19) return 3;
    return tee(p[0], last[1], 1, SPLICE_F_NONBLOCK) != -1 || errno != ENOMEM;
}"""
    )
    with Machine(mem="320M") as m:
        p = m.spawn([program])
        m.run(timeout=600)
    assert p.exit_status == 0
