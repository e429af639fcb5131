"""Pipes and fifos. Each program runs on the host too."""

from __future__ import annotations

import os
import struct
from errno import EFAULT
from typing import TYPE_CHECKING

import pytest
from file_util import T
from guest_util import build, same
from user_util import PAGE, SCRATCH, User

from dfvm import PIPE, Machine
from dfvm.kern.kern_descrip import O_NONBLOCK, sys_close
from dfvm.kern.sys_generic import sys_read, sys_write
from dfvm.kern.sys_pipe import sys_pipe2
from dfvm.vm.vm_kern import kva_to_pa

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel


def test_capacity_and_nonblocking() -> None:
    same(T + r"""
static long fill(int fd, long n) { long t = 0, r; while ((r = write(fd, buf, n)) > 0) t += r;
return t; }
static long drain(int fd) { long t = 0, r; while ((r = read(fd, buf, 5000)) > 0) t += r; return t;
}
int main() {
    int p[2]; pipe2(p, O_NONBLOCK);
    long sizes[] = {1, 3, 100, 4095, 4096, 4097, 5000, 10000, 65536, 100000};
    for (int i = 0; i < 10; i++) {
        printf("%ld: ", sizes[i]); T(fill(p[1], sizes[i])); T(write(p[1], buf, 1));
        T(drain(p[0]));
    }
    T(read(p[0], buf, 1)); T(write(p[1], buf, 4096)); T(write(p[1], buf, 4096));
    for (int i = 0; i < 14; i++) write(p[1], buf, 4000);
    T(write(p[1], buf, 4096)); T(write(p[1], buf, 10)); T(write(p[1], buf, 100));
    int n; ioctl(p[0], FIONREAD, &n); T(n); T(read(p[0], buf, 4000)); T(write(p[1], buf, 96));
    T(write(p[1], buf, 97)); T(read(p[0], buf, 96)); T(write(p[1], buf, 5000));
    T(fcntl(p[0], F_GETFL)); T(fcntl(p[1], F_GETFL)); T(lseek(p[0], 0, SEEK_CUR));
    T(pread(p[0], buf, 1, 0));
    T(write(p[0], "x", 1)); T(read(p[1], buf, 1)); T(fsync(p[1])); T(ftruncate(p[1], 0));
    struct stat st; fstat(p[0], &st); T(st.st_mode); T(st.st_size); T(st.st_nlink);
    T(st.st_blksize);
    return 0;
}""")  # fmt: skip


def test_data_survive_any_split() -> None:
    same(T + r"""
int main() {
    int p[2]; pipe(p);
    unsigned sum = 0, x = 12345; long total = 0;
    if (!fork()) {
        close(p[0]);
        for (int i = 0; i < 400; i++) {
            x = x * 1103515245 + 12345; long n = x % 20000;
            for (long k = 0; k < n; k++) buf[k] = (k * 7 + i) & 255;
            char *at = buf; while (n) { long r = write(p[1], at, n); at += r; n -= r; }
        }
        _exit(0);
    }
    close(p[1]);
    for (;;) {
        x = x * 1103515245 + 12345; long n = x % 9000 + 1, r = read(p[0], buf + x % 300, n);
        if (r <= 0) break;
        for (long k = 0; k < r; k++) sum = sum * 31 + (unsigned char)buf[x % 300 + k];
        total += r;
    }
    printf("%ld %u\n", total, sum);
    return 0;
}""")  # fmt: skip


def test_writes_up_to_pipe_buf_are_atomic() -> None:
    same(T + r"""
int main() {
    int p[2]; pipe(p);
    for (int c = 0; c < 5; c++)
        if (!fork()) {
            memset(buf, 'a' + c, 4096);
            for (int i = 0; i < 40; i++) write(p[1], buf, 4096 - 997 * (i % 4));
            _exit(0);
        }
    close(p[1]);
    long n = 0, r, runs = 0, mixed = 0; static char all[1 << 20];
    while ((r = read(p[0], all + n, 3000)) > 0) n += r;
    long counts[5] = {0}; for (long i = 0; i < n; i++) counts[all[i] - 'a']++;
    for (int c = 0; c < 5; c++) T(counts[c]);
    for (long i = 0; i < n; ) { /* runs of one letter are whole writes: sums of the four sizes */
        long k = i; while (k < n && all[k] == all[i]) k++;
        long len = k - i, ok = 0;
        for (int a = 0; a <= 40 && !ok; a++) for (int b = 0; b <= 40 && !ok; b++)
        for (int c = 0; c <= 40 && !ok; c++) {
            long left = len - a * 4096 - b * 3099 - c * 2102;
            if (left >= 0 && left % 1105 == 0) ok = 1;
        }
        mixed += !ok; i = k;
    }
    T(mixed);
    return 0;
}""")  # fmt: skip


def test_epipe_and_eof() -> None:
    same(T + r"""
static int got; static siginfo_t info;
static void h(int s, siginfo_t *si, void *u) { got++; info = *si; }
int main() {
    struct sigaction sa = {.sa_sigaction = h, .sa_flags = SA_SIGINFO}; sigaction(SIGPIPE, &sa, 0);
    int p[2]; pipe(p); T(write(p[1], "abc", 3)); close(p[1]); T(read(p[0], buf, 10));
    T(read(p[0], buf, 10));
    close(p[0]); pipe(p); close(p[0]); T(write(p[1], "x", 1)); T(got); T(info.si_code);
    T(info.si_pid == getpid()); T(write(p[1], "", 0)); T(got);
    pipe(p); int pid = fork();
    if (!pid) { close(p[1]); sleeps(getppid()); read(p[0], buf, 100); close(p[0]); _exit(0); }
    close(p[0]); T(write(p[1], buf, 200000)); T(got); waitpid(pid, 0, 0);
    signal(SIGPIPE, SIG_DFL);
    if (!(pid = fork())) { write(p[1], "x", 1); _exit(0); }
    int st; waitpid(pid, &st, 0); T(st);
    return 0;
}""")  # fmt: skip


def test_blocked_reader_and_writer_and_signals() -> None:
    same(T + r"""
static void h(int s) { }
int main() {
    struct sigaction sa = {.sa_handler = h}; sigaction(SIGALRM, &sa, 0);
    int p[2]; pipe(p);
    when_asleep(SIGALRM); T(read(p[0], buf, 1));
    when_asleep(SIGALRM); T(write(p[1], buf, 100000));
    fcntl(p[0], F_SETFL, O_NONBLOCK); long n = 0, r;
    while ((r = read(p[0], buf, 100000)) > 0) n += r; T(n);
    fcntl(p[0], F_SETFL, 0);
    sa.sa_flags = SA_RESTART; sigaction(SIGALRM, &sa, 0);
    if (!fork()) {
        int pp = getppid(); sleeps(pp); kill(pp, SIGALRM); sleeps(pp); write(p[1], "late", 4);
        _exit(0);
    }
    T(read(p[0], buf, 10));
    return 0;
}""")  # fmt: skip


def test_size_and_packets() -> None:
    same(T + r"""
int main() {
    struct { unsigned version; int pid; } h = {0x20080522};  /* no CAP_SYS_RESOURCE */
    struct { unsigned e, p, i; } caps[2];
    syscall(SYS_capget, &h, caps); caps[0].e &= ~(1u << 24); syscall(SYS_capset, &h, caps);
    int p[2]; pipe2(p, O_NONBLOCK);
    T(fcntl(p[0], F_GETPIPE_SZ)); T(fcntl(p[0], F_SETPIPE_SZ, 1)); T(fcntl(p[1], F_GETPIPE_SZ));
    T(write(p[1], buf, 5000)); T(fcntl(p[1], F_SETPIPE_SZ, 10000)); T(write(p[1], buf, 20000));
    T(fcntl(p[1], F_SETPIPE_SZ, 8192)); T(fcntl(p[1], F_SETPIPE_SZ, 0));
    T(fcntl(p[1], F_SETPIPE_SZ, 1048576));
    T(write(p[1], buf, 1 << 20)); T(fcntl(p[1], F_SETPIPE_SZ, 65536));
    T(fcntl(p[1], F_SETPIPE_SZ, 1u << 31));
    T(fcntl(p[1], F_SETPIPE_SZ, (1u << 31) + 1));
    pipe2(p, O_DIRECT | O_NONBLOCK); T(write(p[1], "abc", 3)); T(write(p[1], "defg", 4));
    T(write(p[1], buf, 5000));
    T(read(p[0], buf, 2)); T(read(p[0], buf, 100)); T(read(p[0], buf, 10000));
    T(read(p[0], buf, 10000));
    T(read(p[0], buf, 1)); T(fcntl(p[1], F_GETFL));
    return 0;
}""")  # fmt: skip


def test_fifo() -> None:
    same(T + r"""
int main() {
    T(mkfifo("p", 0644)); T(mkfifo("p", 0644));
    struct stat st; stat("p", &st); T(st.st_mode);
    T(open("p", O_WRONLY | O_NONBLOCK)); int r = open("p", O_RDONLY | O_NONBLOCK); T(r);
    struct pollfd pf = {r, POLLIN}; T(poll(&pf, 1, 0)); T(pf.revents); T(read(r, buf, 10));
    int w = open("p", O_WRONLY | O_NONBLOCK); T(w); T(read(r, buf, 10)); T(write(w, "hello", 5));
    T(poll(&pf, 1, 0)); T(pf.revents); T(read(r, buf, 10)); T(close(w)); T(read(r, buf, 10));
    T(poll(&pf, 1, 0)); T(pf.revents); T(close(r));
    if (!fork()) { int f = open("p", O_WRONLY); write(f, "from child", 10); _exit(0); }
    r = open("p", O_RDONLY); T(read(r, buf, 100)); buf[10] = 0; puts(buf); wait(0);
    T(read(r, buf, 1)); close(r);
    if (!fork()) { int f = open("p", O_RDONLY); _exit(read(f, buf, 3) != 3); }
    w = open("p", O_WRONLY); T(write(w, "xyz", 3)); int st_; wait(&st_); T(st_); close(w);
    int rw = open("p", O_RDWR); T(rw); T(write(rw, "self", 4)); T(read(rw, buf, 10));
    T(lseek(rw, 0, 0));
    T(open("p", O_RDONLY | O_TRUNC | O_CREAT, 0644)); T(unlink("p")); T(write(rw, "s", 1));
    T(read(rw, buf, 10));
    return 0;
}""")  # fmt: skip


def test_fifo_open_is_interrupted() -> None:
    same(T + r"""
static void h(int s) { }
int main() {
    struct sigaction sa = {.sa_handler = h}; sigaction(SIGALRM, &sa, 0);
    mkfifo("p", 0600);
    when_asleep(SIGALRM); T(open("p", O_RDONLY));
    when_asleep(SIGALRM); T(open("p", O_WRONLY));
    T(open("p", O_RDWR));
    return 0;
}""")  # fmt: skip


def test_reopen_through_proc() -> None:
    same(T + r"""
int main() {
    int p[2]; char name[64]; pipe(p);
    snprintf(name, sizeof name, "/proc/self/fd/%d", p[0]); int w = open(name, O_WRONLY); T(w);
    T(write(w, "abc", 3)); T(read(p[0], buf, 10)); int r = open(name, O_RDONLY | O_NONBLOCK);
    T(r);
    T(read(r, buf, 1)); T(fcntl(p[0], F_GETFL)); long n = readlink(name, buf, 100); buf[n] = 0;
    T(strncmp(buf, "pipe:[", 6));
    return 0;
}""")  # fmt: skip


@pytest.mark.spec("KERN-1")
def test_buffers_are_kernel_memory_and_come_back(kernel: Kernel) -> None:
    user = User(kernel)
    pipes = []
    for _ in range(12):
        assert user.call(sys_pipe2, SCRATCH, O_NONBLOCK) == 0
        pipes.append(struct.unpack("<ii", user.read(SCRATCH, 8)))
    assert kernel.files.pipe_pages is not None
    stock = kernel.files.pipe_pages
    assert not stock.pp_chunks  # an empty pipe has no memory
    for _, w in pipes:
        assert user.call(sys_write, w, SCRATCH, 65536) == 65536
    assert len(stock.pp_chunks) == 12
    submap = stock.pp_map
    assert kernel.vm.kernel_map.min_addr <= submap.min_addr < submap.max_addr
    for kva, pages in stock.pp_chunks.items():
        assert submap.min_addr <= kva < submap.max_addr
        assert pages == [kva_to_pa(kernel.vm, kva + 4096 * i) for i in range(16)]
    wired = kernel.vm.gd.gd_vmstats.v_wire_count
    for r, w in pipes:
        assert user.call(sys_close, r) == user.call(sys_close, w) == 0
    assert len(stock.pp_chunks) * 16 == len(stock.pp_free) <= 128
    assert kernel.vm.gd.gd_vmstats.v_wire_count <= wired - 64


def test_a_fault_takes_nothing(kernel: Kernel) -> None:
    """A read that can't be delivered leaves the data; a write that can't be read adds none, but
    what went in before it counts."""
    user = User(kernel)
    assert user.call(sys_pipe2, SCRATCH, O_NONBLOCK) == 0
    r, w = struct.unpack("<ii", user.read(SCRATCH, 8))
    end = SCRATCH + 16 * PAGE
    user.write(end - 100, bytes(range(100)))
    assert user.call(sys_write, w, end - 100, 200) == -EFAULT
    assert user.call(sys_write, w, end - 100, 100) == 100
    assert user.call(sys_read, r, end - 50, 100) == -EFAULT
    assert user.call(sys_read, r, SCRATCH, 100) == 100
    assert user.read(SCRATCH, 100) == bytes(range(100))
    assert user.call(sys_write, w, end - 2 * PAGE, 4 * PAGE) == 2 * PAGE


def test_splice() -> None:
    same(T + r"""
static long drain(int fd) { long t = 0, r; while ((r = read(fd, buf, 5000)) > 0) t += r;
return t; }
int main() {
    int p[2], q[2]; pipe2(p, O_NONBLOCK); pipe2(q, O_NONBLOCK); loff_t o = 3, e = 5, bad = -1;
    put_("f", "0123456789"); int f = open("f", O_RDWR), g = open("g", O_RDWR | O_CREAT, 0600);
    int a = open("g", O_WRONLY | O_APPEND), d = open(".", 0), w = open("f", O_WRONLY);
    T(splice(p[0], 0, g, 0, 0, 0)); T(splice(99, 0, g, 0, 1, 0)); T(splice(p[0], 0, g, 0, 1, 16));
    T(splice(f, 0, g, 0, 1, 0)); T(splice(p[1], 0, g, 0, 1, 0)); T(splice(w, 0, p[1], 0, 1, 0));
    T(splice(p[0], &o, g, 0, 1, 0)); T(splice(f, 0, p[1], &o, 1, 0));
    T(splice(f, &bad, p[1], 0, 1, 0));
    T(splice(f, (void *)8, p[1], 0, 1, 0)); T(splice(d, 0, p[1], 0, 1, 0));
    T(splice(p[0], 0, g, 0, 1, 0)); T(splice(p[0], 0, a, 0, 1, 0));
    T(splice(p[0], 0, p[1], 0, 1, 0));
    T(splice(f, 0, p[1], 0, 4, 0)); T(lseek(f, 0, SEEK_CUR)); T(splice(f, &o, p[1], 0, 100, 0));
    T(o);
    T(lseek(f, 0, SEEK_CUR)); T(splice(f, &o, p[1], 0, 100, 0));
    T(splice(p[0], 0, g, 0, 2, 0)); T(splice(p[0], 0, g, &e, 100, 0)); T(e);
    T(lseek(g, 0, SEEK_CUR)); T(pread(g, buf, 100, 0)); puts(buf + 5);
    T(splice(p[0], 0, g, 0, 9, 0));
    T(write(p[1], "some words", 10)); T(splice(p[0], 0, q[1], 0, 4, 0));
    T(splice(p[0], 0, q[1], 0, 99, 0));
    T(splice(p[0], 0, q[1], 0, 99, 0)); T(tee(q[0], p[1], 7, 0)); T(tee(q[0], p[1], 99, 0));
    T(tee(q[0], q[1], 9, 0)); T(tee(f, p[1], 9, 0)); T(tee(p[0], q[1], 0, 0));
    T(tee(p[0], q[1], 9, 16));
    T(tee(p[1], q[1], 9, 0)); memset(buf, 0, 100); T(read(p[0], buf, 100)); puts(buf);
    memset(buf, 0, 100); T(read(q[0], buf, 100)); puts(buf); T(tee(q[0], p[1], 9, 0));
    struct iovec v[3] = {{"one", 3}, {"two", 3}, {(void *)8, 1}}; char x[5] = {0}, y[5] = {0};
    T(vmsplice(p[1], v, 2, 0)); T(vmsplice(p[1], v + 2, 1, 0)); T(vmsplice(f, v, 2, 0));
    T(vmsplice(p[1], v, 2, 16)); T(vmsplice(p[1], v, 2000, 0)); T(vmsplice(p[1], v, 0, 0));
    struct iovec r[2] = {{x, 4}, {y, 4}}; T(vmsplice(p[0], r, 2, 0)); puts(x); puts(y);
    T(vmsplice(p[0], r, 2, SPLICE_F_NONBLOCK));
    memset(buf, 'z', 100000); write(g, buf, 100000); lseek(g, 0, 0);
    T(splice(g, 0, p[1], 0, 100000, 0)); T(splice(g, 0, p[1], 0, 100000, 0)); T(lseek(g, 0, 1));
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDWR);
    T(splice(p[0], 0, null, 0, 5000, 0)); T(splice(p[0], 0, null, 0, 100000, 0));
    int s = splice(zero, 0, p[1], 0, 10000, 0);
    T(drain(p[0]) == s);
    T(write(p[1], "end", 3)); close(q[0]); signal(SIGPIPE, SIG_IGN);
    T(splice(p[0], 0, q[1], 0, 9, 0)); T(splice(f, 0, q[1], 0, 9, 0)); T(tee(p[0], q[1], 9, 0));
    close(p[1]); T(splice(p[0], 0, null, 0, 9, 0)); T(splice(p[0], 0, null, 0, 9, 0));
    return 0;
}""")  # fmt: skip


def test_splice_waits() -> None:
    same(T + r"""
int main() {
    int p[2], q[2], f = open("f", O_RDWR | O_CREAT, 0600); pipe(p); pipe(q);
    if (!fork()) {
        for (int i = 0; i < 300000; i += 1000) {
            for (int k = 0; k < 1000; k++) buf[k] = (i + k) * 7;
            write(p[1], buf, 1000);
        }
        _exit(0);
    }
    close(p[1]);
    if (!fork()) { close(q[0]); while (splice(p[0], 0, q[1], 0, 2345, 0) > 0) ; _exit(0); }
    close(p[0]); close(q[1]);
    long t = 0, r, wrong = 0; while ((r = splice(q[0], 0, f, 0, 7777, 0)) > 0) t += r;
    T(r); T(t); lseek(f, 0, 0);
    for (long at = 0; (r = read(f, buf, 4096)) > 0; at += r)
        for (long k = 0; k < r; k++) wrong += buf[k] != (char)((at + k) * 7);
    T(wrong); pipe(p); alarm(1); signal(SIGALRM, exit); splice(p[0], 0, f, 0, 1, 0);
    return 0;
}""")  # fmt: skip


def test_splice_from_and_to_pipes_of_the_host() -> None:
    program = build(T + r"""
int main() {
    int p[2]; pipe(p); dprintf(2, "%ld", (long)splice(0, 0, p[1], 0, 5, 0));
    dprintf(2, " %ld", (long)splice(p[0], 0, 1, 0, 99, 0));
    dprintf(2, " %ld", (long)splice(0, 0, open("f", O_CREAT | O_RDWR, 0600), 0, 6, 0));
    dprintf(2, " %s", get_("f"));
    dprintf(2, " %ld", (long)splice(0, 0, 1, 0, 99, 0));
    dprintf(2, " %ld", (long)splice(0, 0, 1, 0, 99, 0));
    return 0;
}""")  # fmt: skip
    rin, win = os.pipe()
    rout, wout = os.pipe()
    os.write(win, b"alpha bravo charlie")
    os.close(win)
    with Machine(check=True) as m:
        p = m.spawn([str(program)], stdin=rin, stdout=wout, stderr=PIPE)
        m.run(timeout=600)
        assert p.stderr == b"5 5 6  bravo 8 0"
    assert os.read(rout, 100) == b"alpha charlie"
    for fd in (rin, rout, wout):
        os.close(fd)
