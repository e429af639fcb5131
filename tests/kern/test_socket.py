"""Local sockets. Each program runs on the host too."""

from __future__ import annotations

import os
from collections import Counter
from errno import EAFNOSUPPORT, EOPNOTSUPP
from typing import TYPE_CHECKING

import pytest
from guest_util import build, by_guest, by_host, same
from sock_util import S

from dfvm import PIPE, Deadlock, Machine, Panic
from dfvm.tools.stats import gather

if TYPE_CHECKING:
    from collections.abc import Callable


def test_kinds_and_what_is_refused() -> None:
    same(S + r"""
int main() {
    int sv[2];
    T(socket(AF_UNIX, SOCK_STREAM, 0)); T(socket(AF_UNIX, SOCK_DGRAM, 1));
    T(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    T(fcntl(5, F_GETFD)); T(fcntl(5, F_GETFL)); T(fcntl(3, F_GETFL));
    T(socket(AF_UNIX, SOCK_RAW, 0)); T(opt_(6, SO_TYPE));
    T(socket(AF_UNIX, SOCK_STREAM, 2)); T(socket(AF_UNIX, SOCK_RDM, 0));
    T(socket(AF_UNIX, 11, 0)); T(socket(AF_UNIX, SOCK_STREAM | 0x100, 0));
    T(socket(-1, SOCK_STREAM, 0)); T(socket(46, SOCK_STREAM, 0)); T(socket(99, 15, 0));
    T(socketpair(AF_UNIX, SOCK_STREAM, 0, (int *)8)); T(lowest_());
    T(socketpair(AF_UNIX, SOCK_STREAM | 0x100, 0, sv)); T(socketpair(AF_UNIX, 15, 0, sv));
    T(lowest_());
    T(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv)); T(sv[0]); T(sv[1]);
    T(fcntl(sv[1], F_GETFD));
    int p[2]; pipe(p);
    T(bind_(p[0], "x")); T(listen(p[0], 1)); T(accept(p[0], 0, 0)); T(connect_(99, "x"));
    T(send(p[1], "a", 1, 0)); T(shutdown(p[1], 9)); T(shutdown(sv[0], 3)); T(shutdown(sv[0], -1));
    T(accept4(sv[0], 0, 0, 1)); T(accept4(p[0], 0, 0, 0)); T(lowest_());
    T(lseek(sv[0], 0, SEEK_CUR)); T(pread(sv[0], buf, 1, 0)); T(pwrite(sv[0], buf, 1, 0));
    T(ftruncate(sv[0], 0)); T(fsync(sv[0])); T(isatty(sv[0]));
    T(mmap(0, 4096, PROT_READ, MAP_SHARED, sv[0], 0) == MAP_FAILED);
    T(fcntl(sv[0], F_SETPIPE_SZ, 9));
    T(fcntl(sv[0], F_SETFL, O_DIRECT)); T(fallocate(sv[0], 0, 0, 1));
    struct stat st; fstat(sv[0], &st);
    T(S_ISSOCK(st.st_mode)); T(st.st_mode & 07777); T(st.st_size); T(st.st_nlink); T(st.st_blksize);
    T(fchmod(sv[0], 0640)); fstat(sv[0], &st); T(st.st_mode & 07777);
    char link[64], path[64];
    sprintf(path, "/proc/self/fd/%d", sv[0]);
    long n = readlink(path, link, 63); link[n] = 0;
    char *end; T(!strncmp(link, "socket:[", 8)); T(strtoul(link + 8, &end, 10) == st.st_ino);
    T(*end == ']'); T(open(path, O_RDWR)); stat(path, &st); T(S_ISSOCK(st.st_mode));
    struct statfs sf; T(fstatfs(sv[0], &sf)); T(sf.f_type);
    T(setsockopt(sv[0], 6, 1, &n, 4)); T(opt_(sv[0], 999)); T(set_(sv[0], 999, 1));
    socklen_t len = 4; T(getsockopt(sv[0], 0, 1, &n, &len));
    return 0;
}""")  # fmt: skip


def test_a_stream_moves_bytes() -> None:
    same(S + r"""
int main() {
    int sv[2]; socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
    T(send(sv[0], "hello", 5, 0)); T(write(sv[0], " world", 6)); T(inq_(sv[1])); T(outq_(sv[0]));
    T(recv(sv[1], buf, 3, MSG_PEEK)); T(inq_(sv[1]));
    T(recv(sv[1], buf, 100, MSG_PEEK)); printf("%.11s\n", buf);
    memset(buf, 0, 100); T(read(sv[1], buf, 7)); puts(buf); T(outq_(sv[0]));
    memset(buf, 0, 100); T(recv(sv[1], buf, 100, 0)); puts(buf); T(outq_(sv[0]));
    T(recv(sv[1], buf, 1, MSG_DONTWAIT)); T(read(sv[1], buf, 0)); T(send(sv[0], "", 0, 0));
    T(inq_(sv[1])); T(recv(sv[1], buf, 1, MSG_DONTWAIT));
    struct iovec v[] = {{"one ", 4}, {"", 0}, {"two", 3}}; T(writev(sv[1], v, 3));
    char a[2], b[9]; struct iovec w[] = {{a, 2}, {b, 9}}; memset(b, 0, 9);
    T(readv(sv[0], w, 2)); printf("%.2s %s\n", a, b);
    T(send(sv[0], "x", 1, 0)); T(recv(sv[1], buf, 10, MSG_TRUNC)); got_(sv[1], 1, 0, MSG_DONTWAIT);
    T(write(sv[0], (char *)8, 5)); T(inq_(sv[1])); T(outq_(sv[0]));
    T(write(sv[0], "keep", 4)); T(read(sv[1], (char *)8, 4)); T(read(sv[1], buf, 4));
    T(send(sv[0], "q", 1, MSG_DONTROUTE)); T(recv(sv[1], buf, 9, 0));
    return 0;
}""")  # fmt: skip


def test_messages_keep_their_borders() -> None:
    for kind in ("SOCK_DGRAM", "SOCK_SEQPACKET"):
        same(S + r"""
int main() {
    int sv[2]; socketpair(AF_UNIX, KIND, 0, sv);
    T(send(sv[0], "hello", 5, 0)); T(send(sv[0], "", 0, 0)); T(write(sv[0], "", 0));
    T(send(sv[0], "world!", 6, 0));
    T(inq_(sv[1])); T(outq_(sv[0])); T(recv(sv[1], buf, 3, MSG_PEEK));
    T(recv(sv[1], buf, 3, MSG_PEEK | MSG_TRUNC)); got_(sv[1], 3, 0, 0); got_(sv[1], 9, 0, 0);
    got_(sv[1], 9, 0, 0);
    got_(sv[1], 3, 0, MSG_TRUNC); T(recv(sv[1], buf, 9, MSG_DONTWAIT)); T(inq_(sv[1]));
    T(outq_(sv[0]));
    T(send(sv[1], buf, 212992 - 32, MSG_DONTWAIT)); T(send(sv[1], buf, 212992 - 31, MSG_DONTWAIT));
    T(inq_(sv[0])); T(recv(sv[0], buf, sizeof buf, 0));
    T(write(sv[0], (char *)8, 5)); T(inq_(sv[1])); T(outq_(sv[0]));
    T(write(sv[0], "lost", 4)); T(recv(sv[1], (char *)8, 4, 0)); T(inq_(sv[1]));
    T(read(sv[1], buf, 0));
    return 0;
}""".replace("KIND", kind))  # fmt: skip


def test_what_fits_into_a_buffer() -> None:
    same(S + r"""
int main() {
    int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    int sizes[] = {0, 1, 192, 193, 704, 705, 1728, 1729, 3776, 3777, 4096, 5000, 7873, 10000, 16064,
                   16065, 20000, 36544, 36545, 40000, 65536, 100000, 150000, 212000};
    for (int t = 0; t < 3; t++) {
        int sv[2];
        for (int i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            socketpair(AF_UNIX, types[t], 0, sv);
            long r = send(sv[0], buf, sizes[i], MSG_DONTWAIT);
            printf("%d %d: %ld %d %d\n", t, sizes[i], r, outq_(sv[0]), inq_(sv[1]));
            close(sv[0]); close(sv[1]);
        }
        int steps[] = {1, 100, 1000, 5000, 65536};
        for (int i = 0; i < 5; i++) for (int small = 0; small < 2; small++) {
            socketpair(AF_UNIX, types[t], 0, sv);
            if (small) set_(sv[0], SO_SNDBUF, 9000);
            long n = 0, total = 0, r;
            while ((r = send(sv[0], buf, steps[i], MSG_DONTWAIT)) > 0) { n++; total += r; }
            printf("%d %d: %ld %ld %d %d %x\n", t, steps[i], n, total, errno, outq_(sv[0]),
                   poll_(sv[0]));
            while (outq_(sv[0]) && !(poll_(sv[0]) & POLLOUT)) recv(sv[1], buf, steps[i], 0);
            printf("writable at %d\n", outq_(sv[0]));
            close(sv[0]); close(sv[1]);
        }
    }
    return 0;
}""")  # fmt: skip


# Prints an address as the kernel gives it.
NAMES = r"""
static void name_(const char *what, int r, struct sockaddr_un *a, socklen_t n) {
    printf("%s = %d %d: %d family %d", what, r, r < 0 ? errno : 0, (int)n, n ? a->sun_family : -1);
    if (r >= 0 && n > 2 && a->sun_path[0]) printf(" %.*s", (int)n - 2, a->sun_path);
    if (r >= 0 && n > 2 && !a->sun_path[0] && n != 8) printf(" abstract %s", a->sun_path + 9);
    puts("");
}
#define NAME(f, s) do { struct sockaddr_un a_; memset(&a_, 0, sizeof a_); \
    socklen_t n_ = sizeof a_; int r_ = f(s, (void *)&a_, &n_); name_(#f "(" #s ")", r_, &a_, n_); \
    } while (0)
"""


def test_names() -> None:
    same(S + NAMES + r"""
int main() {
    int a = socket(AF_UNIX, SOCK_DGRAM, 0), b = socket(AF_UNIX, SOCK_DGRAM, 0);
    int s = socket(AF_UNIX, SOCK_STREAM, 0), t = socket(AF_UNIX, SOCK_STREAM, 0);
    struct stat st; umask(027);
    NAME(getsockname, a); NAME(getpeername, a);
    T(bind_(a, "file")); NAME(getsockname, a); stat("file", &st);
    T(st.st_mode == (S_IFSOCK | 0750));
    T(bind_(a, "other")); T(access("other", F_OK)); T(bind_(b, "file")); T(bind_(b, "no/where"));
    T(bind_(b, "dir/")); mkdir("d", 0700); T(bind_(b, "d")); symlink("nowhere", "l");
    T(bind_(b, "l")); symlink("d", "ld"); T(bind_(b, "ld/x")); T(access("d/x", F_OK));
    T(fchmod(s, 0604)); T(bind_(s, "mode")); stat("mode", &st); T(st.st_mode & 07777);
    T(open("file", O_RDWR)); T(open("file", O_PATH) >= 0);
    T(bind_(t, "@one")); NAME(getsockname, t); T(bind_(t, "@two"));
    T(bind_(socket(AF_UNIX, SOCK_STREAM, 0), "@one"));
    T(bind_(socket(AF_UNIX, SOCK_DGRAM, 0), "@one"));
    T(connect_(socket(AF_UNIX, SOCK_SEQPACKET, 0), "@one"));
    T(bind_(socket(AF_UNIX, SOCK_STREAM, 0), "@one\0"));
    un_.sun_family = AF_UNIX;
    int u = socket(AF_UNIX, SOCK_STREAM, 0);
    T(bind(u, (void *)&un_, 2)); struct sockaddr_un c; socklen_t n = sizeof c;
    T(getsockname(u, (void *)&c, &n)); T(n); T(c.sun_path[0]); T(strspn(c.sun_path + 1,
        "0123456789abcdef") == 5);
    T(bind(u, (void *)&un_, 2));
    u = socket(AF_UNIX, SOCK_STREAM, 0);
    T(bind(u, (void *)&un_, 1)); T(bind(u, (void *)&un_, 0)); T(bind(u, (void *)&un_, 111));
    T(bind(u, (void *)&un_, 129)); T(bind(u, (void *)&un_, -1)); T(bind(u, (void *)8, 10));
    un_.sun_family = AF_INET; T(bind(u, (void *)&un_, 10)); un_.sun_family = AF_UNIX;
    memset(un_.sun_path, 'p', 108); T(bind(u, (void *)&un_, 110)); NAME(getsockname, u);
    T(unlink(memset(buf, 'p', 108)));
    n = 5; memset(&c, '#', sizeof c); T(getsockname(a, (void *)&c, &n)); T(n);
    printf("%.6s\n", c.sun_path); n = -1; T(getsockname(a, (void *)&c, &n));
    T(getsockname(a, (void *)8, &n)); n = 0; T(getsockname(a, (void *)8, &n)); T(n);
    T(getsockname(a, (void *)&c, (void *)8));
    close(a); T(access("file", F_OK)); T(connect_(b, "file")); T(unlink("file"));
    T(rename("mode", "moved")); T(listen(s, 1));
    T(connect_(socket(AF_UNIX, SOCK_STREAM, 0), "moved"));
    T(connect_(socket(AF_UNIX, SOCK_STREAM, 0), "mode"));
    link("moved", "twin"); T(connect_(socket(AF_UNIX, SOCK_STREAM, 0), "twin"));
    T(mknod("dead", S_IFSOCK | 0600, 0)); T(connect_(socket(AF_UNIX, SOCK_STREAM, 0), "dead"));
    T(connect_(b, "moved")); put_("plain", "x"); T(connect_(b, "plain"));
    chmod(".", 0755); int o = socket(AF_UNIX, SOCK_STREAM, 0); T(chmod("moved", 0604)); setuid(1);
    T(connect_(o, "moved")); T(sendto_(b, "x", "plain")); T(bind_(o, "mine"));
    return 0;
}""")  # fmt: skip


def test_connections() -> None:
    for kind in ("SOCK_STREAM", "SOCK_SEQPACKET"):
        same(S + NAMES + r"""
int main() {
    int l = socket(AF_UNIX, KIND, 0), d = socket(AF_UNIX, SOCK_DGRAM, 0);
    T(listen(l, 1)); bind_(l, "srv"); bind_(d, "dgram");
    int c0 = socket(AF_UNIX, KIND | SOCK_NONBLOCK, 0); T(connect_(c0, "srv"));
    T(accept(l, 0, 0)); T(poll_(l)); T(opt_(l, SO_ACCEPTCONN));
    T(listen(l, 1)); T(opt_(l, SO_ACCEPTCONN)); T(poll_(l)); fcntl(l, F_SETFL, O_NONBLOCK);
    T(accept(l, 0, 0)); T(listen(d, 1)); T(accept(d, 0, 0)); T(connect_(d, "srv"));
    T(connect_(c0, "dgram")); T(connect_(c0, "none")); T(connect(c0, (void *)&un_, 1));
    un_.sun_family = 0; T(connect(c0, (void *)&un_, 2));
    T(poll_(c0)); T(recv(c0, buf, 1, 0)); T(send(c0, "x", 1, MSG_NOSIGNAL));
    T(connect_(c0, "srv")); T(poll_(l)); T(poll_(c0)); NAME(getpeername, c0); NAME(getsockname, c0);
    T(connect_(c0, "srv")); T(inq_(l)); T(listen(c0, 1));
    T(send(c0, "early", 5, 0)); T(connect_(l, "srv"));
    int c1 = socket(AF_UNIX, KIND | SOCK_NONBLOCK, 0);
    int c2 = socket(AF_UNIX, KIND | SOCK_NONBLOCK, 0);
    bind_(c1, "client"); T(connect_(c1, "srv")); T(connect_(c2, "srv")); T(listen(l, 2));
    T(connect_(c2, "srv")); close(c2);
    struct sockaddr_un a; socklen_t n = sizeof a;
    int s0 = accept(l, (void *)&a, &n); T(n); T(fcntl(s0, F_GETFL)); got_(s0, 99, 0, 0);
    n = sizeof a; memset(&a, 0, sizeof a);
    int s1 = accept4(l, (void *)&a, &n, SOCK_NONBLOCK | SOCK_CLOEXEC); T(n); puts(a.sun_path);
    T(fcntl(s1, F_GETFL)); T(fcntl(s1, F_GETFD)); NAME(getpeername, s1); NAME(getsockname, s1);
    T(send(c1, "from", 4, 0)); got_(s1, 99, 0, 0);
    n = sizeof a; int s2 = accept(l, (void *)&a, &n); T(s2 >= 0); T(n); T(poll_(s2));
    T(recv(s2, buf, 9, 0)); T(accept(l, 0, 0));
    int c3 = socket(AF_UNIX, KIND, 0); T(connect_(c3, "srv")); T(send(c3, "abc", 3, 0));
    T(lowest_()); T(accept(l, (void *)8, (void *)8)); T(lowest_());
    T(poll_(c3)); T(opt_(c3, SO_ERROR)); T(poll_(c3)); T(recv(c3, buf, 9, 0));
    int c4 = socket(AF_UNIX, KIND, 0); T(connect_(c4, "srv")); close(l); T(poll_(c4));
    T(recv(c4, buf, 9, 0)); T(recv(c4, buf, 9, 0)); T(send(c4, "x", 1, MSG_NOSIGNAL));
    NAME(getpeername, c4); T(connect_(c4, "srv")); T(connect_(socket(AF_UNIX, KIND, 0), "srv"));
    T(send(s0, "still", 5, 0)); got_(c0, 9, 0, 0);
    int l2 = listener_(KIND, "again", 3); T(shutdown(l2, SHUT_RD)); T(accept(l2, 0, 0));
    T(connect_(socket(AF_UNIX, KIND, 0), "again")); T(poll_(l2)); T(sendto_(l2, "x", "again"));
    return 0;
}""".replace("KIND", kind))  # fmt: skip


def test_shutdown_and_close() -> None:
    for kind in ("SOCK_STREAM", "SOCK_SEQPACKET", "SOCK_DGRAM"):
        same(S + r"""
static int pipes;
static void on(int sig) { pipes++; }
#define P(e) do { pipes = 0; T(e); if (pipes) puts("SIGPIPE"); } while (0)
int main() {
    int sv[2]; signal(SIGPIPE, on);
    for (int how = 0; how < 3; how++) for (int who = 0; who < 2; who++) {
        socketpair(AF_UNIX, KIND | SOCK_NONBLOCK, 0, sv);
        send(sv[0], "data", 4, 0);
        T(shutdown(sv[who], how)); T(poll_(sv[0])); T(poll_(sv[1]));
        P(recv(sv[1], buf, 9, 0)); P(recv(sv[1], buf, 9, 0)); P(recv(sv[0], buf, 9, 0));
        P(send(sv[0], "x", 1, 0)); P(send(sv[1], "x", 1, 0)); P(send(sv[1], "", 0, 0));
        P(write(sv[0], "x", 1)); P(send(sv[0], "x", 1, MSG_NOSIGNAL)); T(shutdown(sv[0], 2));
        T(opt_(sv[0], SO_ERROR));
        close(sv[0]); close(sv[1]);
    }
    for (int unread = 0; unread < 3; unread++) {
        socketpair(AF_UNIX, KIND | SOCK_NONBLOCK, 0, sv);
        if (unread) send(sv[0], "data", 4, 0);
        if (unread == 2) send(sv[1], "back", 4, 0);
        close(sv[1]);
        T(poll_(sv[0])); P(recv(sv[0], buf, 9, 0)); P(send(sv[0], "x", 1, 0));
        P(recv(sv[0], buf, 9, 0)); P(send(sv[0], "x", 1, 0)); T(opt_(sv[0], SO_ERROR));
        T(poll_(sv[0])); T(outq_(sv[0]));
        struct sockaddr_un a; socklen_t n = sizeof a; T(getpeername(sv[0], (void *)&a, &n));
        close(sv[0]);
    }
    int s = socket(AF_UNIX, KIND, 0); T(poll_(s)); T(shutdown(s, SHUT_WR)); T(poll_(s));
    P(send(s, "x", 1, 0)); T(poll_(s)); T(recv(s, buf, 1, MSG_DONTWAIT));
    return 0;
}""".replace("KIND", kind))  # fmt: skip


def test_datagrams() -> None:
    same(S + NAMES + r"""
int main() {
    int a = socket(AF_UNIX, SOCK_DGRAM, 0), b = socket(AF_UNIX, SOCK_DGRAM, 0);
    int c = socket(AF_UNIX, SOCK_DGRAM, 0);
    T(send(a, "x", 1, 0)); T(sendto_(a, "x", "b")); bind_(b, "b"); bind_(c, "@c");
    T(sendto_(a, "one", "b")); T(sendto_(c, "two", "b")); got_(b, 9, 0, MSG_DONTWAIT);
    got_(b, 9, 0, MSG_DONTWAIT);
    T(sendto_(a, "self", "@c")); got_(c, 9, 0, MSG_DONTWAIT); T(connect_(a, "b"));
    NAME(getpeername, a);
    T(send(a, "via", 3, 0)); got_(b, 9, 0, MSG_DONTWAIT); T(sendto_(a, "else", "@c"));
    got_(c, 9, 0, MSG_DONTWAIT);
    T(connect_(b, "@c")); T(send(a, "x", 1, 0)); T(sendto_(a, "x", "b")); T(connect_(a, "b"));
    T(sendto_(c, "ok", "b")); got_(b, 9, 0, MSG_DONTWAIT);
    un_.sun_family = AF_UNSPEC; T(connect(b, (void *)&un_, 2)); NAME(getpeername, b);
    T(send(a, "x", 1, 0)); got_(b, 9, 0, MSG_DONTWAIT);
    int n = 0; while (send(a, "x", 1, MSG_DONTWAIT) == 1) n++; T(n); ERRNO; T(poll_(a));
    T(poll_(c)); recv(b, buf, 9, 0); T(poll_(a)); T(send(a, "y", 1, MSG_DONTWAIT));
    T(connect_(b, "@c")); T(poll_(a)); T(recv(b, buf, 9, MSG_DONTWAIT));
    T(connect(b, (void *)&un_, 1)); un_.sun_family = AF_UNSPEC; connect(b, (void *)&un_, 2);
    while (recv(b, buf, 9, MSG_DONTWAIT) > 0) {}
    T(send(a, "z", 1, 0)); close(b); T(poll_(a)); T(send(a, "x", 1, 0)); T(send(a, "x", 1, 0));
    T(outq_(a)); T(outq_(c));
    int sv[2]; socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, sv);
    n = 0; while (send(sv[0], "x", 1, 0) == 1) n++; T(n); T(poll_(sv[0]));
    T(sendto_(c, "x", "@c")); got_(c, 9, 0, MSG_DONTWAIT);
    T(send(sv[1], "old", 3, 0)); T(connect_(sv[0], "@c")); T(opt_(sv[1], SO_ERROR));
    T(recv(sv[0], buf, 9, 0)); T(send(sv[1], "x", 1, 0)); while (recv(sv[1], buf, 9, 0) > 0) {}
    T(send(sv[0], "new", 3, 0));
    got_(c, 9, 0, MSG_DONTWAIT); T(bind_(sv[0], "named")); T(send(sv[0], "named", 5, 0));
    got_(c, 9, 0, MSG_DONTWAIT);
    n = 0; while (sendto_(c, "x", "@c") == 1) n++; T(n); ERRNO;
    return 0;
}""")  # fmt: skip


def test_files_are_sent() -> None:
    for kind in ("SOCK_STREAM", "SOCK_SEQPACKET", "SOCK_DGRAM"):
        same(S + r"""
int main() {
    int sv[2], p[2]; socketpair(AF_UNIX, KIND | SOCK_NONBLOCK, 0, sv); pipe(p);
    int many[260]; for (int i = 0; i < 260; i++) many[i] = p[1];
    T(give_(sv[0], "a", 1, &p[1])); got_(sv[1], 9, 100, 0); T(write(7, "hi", 2));
    T(read(p[0], buf, 9)); T(close(7));
    T(give_(sv[0], "bc", 2, p)); got_(sv[1], 9, 100, MSG_CMSG_CLOEXEC); close(7); close(8);
    T(give_(sv[0], "", 1, p)); got_(sv[1], 9, 100, 0); close(7);
    T(give_(sv[0], "d", 3, many)); got_(sv[1], 9, CMSG_LEN(8), 0); T(lowest_()); close(7); close(8);
    T(give_(sv[0], "e", 3, many)); got_(sv[1], 9, CMSG_LEN(8) + 3, 0); close(7); close(8);
    T(give_(sv[0], "f", 3, many)); got_(sv[1], 9, 16, 0); T(lowest_());
    T(give_(sv[0], "f", 3, many)); got_(sv[1], 9, 12, 0); T(lowest_());
    T(give_(sv[0], "g", 3, many)); got_(sv[1], 9, 0, 0); T(lowest_());
    T(give_(sv[0], "h", 3, many)); T(read(sv[1], buf, 9)); T(lowest_());
    T(give_(sv[0], "i", 1, p)); got_(sv[1], 9, 100, MSG_PEEK); got_(sv[1], 9, 100, MSG_PEEK);
    got_(sv[1], 9, 100, 0); T(lowest_()); close(7); close(8); close(9);
    T(give_(sv[0], "j", 254, many)); T(give_(sv[0], "k", 253, many)); T(read(sv[1], buf, 9));
    int bad = 77; T(give_(sv[0], "l", 1, &bad)); bad = -1; T(give_(sv[0], "l", 1, &bad));
    T(give_(sv[0], "none", 0, p)); got_(sv[1], 9, 100, 0);
    T(send(sv[0], "before ", 7, 0)); T(give_(sv[0], "with", 1, p)); T(send(sv[0], " after", 6, 0));
    got_(sv[1], 99, 100, 0); got_(sv[1], 99, 100, 0); got_(sv[1], 99, 100, 0); close(7);
    T(give_(sv[0], "longer", 1, p)); got_(sv[1], 2, 100, 0); got_(sv[1], 9, 100, 0); close(7);
    int path = open(".", O_PATH); T(give_(sv[0], "path", 1, &path)); got_(sv[1], 9, 100, 0);
    close(7); close(8); T(lowest_());
    struct rlimit rl = {9, 9}; setrlimit(RLIMIT_NOFILE, &rl);
    T(give_(sv[0], "full", 3, many)); got_(sv[1], 9, 100, 0); close(7); close(8);
    /* Under way the file stays, whoever closes it. */
    T(give_(sv[0], "m", 1, p)); T(close(p[0])); T(write(p[1], "kept", 4)); got_(sv[1], 9, 100, 0);
    T(read(p[0], buf, 4)); signal(SIGPIPE, SIG_IGN);
    T(give_(sv[0], "n", 1, p)); T(close(p[0])); T(write(p[1], "x", 1)); close(sv[1]);
    T(write(p[1], "x", 1)); T(lowest_());
    /* Control messages that are wrong. */
    socketpair(AF_UNIX, KIND, 0, sv);
    char c[64] = {0}; struct iovec iov = {"x", 1}; struct msghdr m = {0, 0, &iov, 1, c, 24, 0};
    struct cmsghdr *h = (void *)c; int lens[] = {0, 15, 16, 20, 25};
    for (int i = 0; i < 5; i++) { *h = (struct cmsghdr){lens[i], SOL_SOCKET, SCM_RIGHTS};
        T(sendmsg(sv[0], &m, 0)); }
    *h = (struct cmsghdr){20, SOL_SOCKET, 99}; T(sendmsg(sv[0], &m, 0));
    *h = (struct cmsghdr){20, 99, 99}; T(sendmsg(sv[0], &m, 0));
    *h = (struct cmsghdr){20, SOL_SOCKET, SCM_CREDENTIALS}; T(sendmsg(sv[0], &m, 0));
    m.msg_controllen = 15; T(sendmsg(sv[0], &m, 0)); m.msg_control = (void *)8;
    T(sendmsg(sv[0], &m, 0));
    m.msg_controllen = 1UL << 40; T(sendmsg(sv[0], &m, 0)); m.msg_controllen = 0;
    m.msg_iovlen = 1025; T(sendmsg(sv[0], &m, 0)); m.msg_iovlen = 1; m.msg_name = c;
    m.msg_namelen = -1; T(sendmsg(sv[0], &m, 0)); T(sendmsg(sv[0], (void *)8, 0));
    return 0;
}""".replace("KIND", kind))  # fmt: skip


def test_who_sent_it() -> None:
    for kind in ("SOCK_STREAM", "SOCK_SEQPACKET", "SOCK_DGRAM"):
        same(S + r"""
static long as(int s, int pid, int uid, int gid) {
    char c[CMSG_SPACE(12)] = {0}; struct iovec iov = {"as", 2};
    struct msghdr m = {0, 0, &iov, 1, c, sizeof c, 0};
    struct cmsghdr *h = (void *)c; *h = (struct cmsghdr){28, SOL_SOCKET, SCM_CREDENTIALS};
    memcpy(CMSG_DATA(h), &(struct ucred){pid, uid, gid}, 12);
    return sendmsg(s, &m, MSG_DONTWAIT);
}
static void peer(int s) { struct ucred u; socklen_t n = sizeof u;
    T(getsockopt(s, SOL_SOCKET, SO_PEERCRED, &u, &n)); T(n);
    printf("%s %d %d\n", u.pid == getpid() ? "me" : u.pid ? "other" : "0", u.uid, u.gid); }
int main() {
    int sv[2], st; socketpair(AF_UNIX, KIND | SOCK_NONBLOCK, 0, sv); peer(sv[0]);
    peer(socket(AF_UNIX, KIND, 0));
    send(sv[0], "old", 3, 0); T(set_(sv[1], SO_PASSCRED, 5)); T(opt_(sv[1], SO_PASSCRED));
    got_(sv[1], 9, 100, 0); send(sv[0], "new", 3, 0); got_(sv[1], 9, 100, 0);
    send(sv[0], "new", 3, 0); got_(sv[1], 9, 0, 0); send(sv[0], "new", 3, 0); got_(sv[1], 9, 8, 0);
    send(sv[0], "new", 3, 0); got_(sv[1], 9, 20, 0); send(sv[0], "new", 3, 0);
    T(read(sv[1], buf, 9));
    T(give_(sv[0], "files", 1, sv)); got_(sv[1], 9, 100, 0); close(5);
    T(give_(sv[0], "files", 1, sv)); got_(sv[1], 9, 32, 0); T(lowest_());
    fflush(stdout);
    if (!fork()) { send(sv[0], "child", 5, 0); as(sv[0], getppid(), 0, 0); _exit(0); }
    wait(&st); send(sv[0], "parent", 6, 0);
    for (int i = 0; i < 4; i++) got_(sv[1], 99, 100, MSG_DONTWAIT);
    T(as(sv[0], getpid(), getuid(), getgid())); got_(sv[1], 9, 100, 0);
    T(as(sv[0], 1, 7, 8)); got_(sv[1], 9, 100, 0); T(as(sv[0], 4000000, 0, 0));
    if (!fork()) {
        setresuid(10, 11, 12); T(as(sv[0], getpid(), 11, 0)); T(as(sv[0], getpid(), 12, 0));
        T(as(sv[0], getpid(), 0, 0)); T(as(sv[0], getppid(), 10, 0)); T(as(sv[0], getpid(), 10, 3));
        int p[2]; socketpair(AF_UNIX, KIND, 0, p); peer(p[0]); T(set_(p[0], SO_PASSCRED, 1));
        send(p[0], "x", 1, 0); T(set_(p[1], SO_PASSCRED, 1)); got_(p[1], 9, 100, 0); _exit(0);
    }
    wait(&st);
    while (recv(sv[1], buf, 99, 0) > 0) {}
    gid_t groups[3], want[2] = {5, 9}; socklen_t n = 12; setgroups(2, want);
    socketpair(AF_UNIX, KIND, 0, sv); T(getsockopt(sv[0], SOL_SOCKET, SO_PEERGROUPS, groups, &n));
    T(n); T(groups[0]); T(groups[1]); n = 4;
    T(getsockopt(sv[0], SOL_SOCKET, SO_PEERGROUPS, groups, &n)); T(n);
    T(getsockopt(socket(AF_UNIX, KIND, 0), SOL_SOCKET, SO_PEERGROUPS, groups, &n));
    if (KIND != SOCK_DGRAM) {
        int l = listener_(KIND, "l", 3), c = socket(AF_UNIX, KIND, 0); set_(l, SO_PASSCRED, 1);
        peer(l); fflush(stdout);
        if (!fork()) { connect_(c, "l"); peer(c); fflush(stdout); _exit(0); }
        wait(&st); int s = accept(l, 0, 0); peer(s); peer(c); T(opt_(s, SO_PASSCRED)); close(c);
    } else {
        int a = socket(AF_UNIX, KIND, 0), b = socket(AF_UNIX, KIND, 0); bind_(a, "a");
        set_(b, SO_PASSCRED, 1); T(connect_(b, "a")); struct sockaddr_un u; n = sizeof u;
        getsockname(b, (void *)&u, &n); T(n); peer(a); peer(b);
        b = socket(AF_UNIX, KIND, 0); set_(b, SO_PASSCRED, 1); T(sendto_(b, "x", "a"));
        n = sizeof u;
        getsockname(b, (void *)&u, &n); T(n);
    }
    return 0;
}""".replace("KIND", kind))  # fmt: skip


def test_options() -> None:
    same(S + r"""
int main() {
    int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    int names[] = {SO_REUSEADDR, SO_TYPE, SO_ERROR, SO_DONTROUTE, SO_BROADCAST, SO_KEEPALIVE,
                   SO_OOBINLINE, SO_PRIORITY, SO_REUSEPORT, SO_PASSCRED, SO_RCVLOWAT, SO_SNDLOWAT,
                   SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN, SO_PEEK_OFF};
    int values[] = {0, 1, 7, -1};
    for (int t = 0; t < 3; t++) {
        int s = socket(AF_UNIX, types[t], 0);
        for (int i = 0; i < sizeof names / 4; i++) {
            printf("%d: %d\n", names[i], opt_(s, names[i]));
            for (int k = 0; k < 4; k++) {
                int r = set_(s, names[i], values[k]);
                printf("%d %d %d\n", r, r ? errno : 0, opt_(s, names[i]));
            }
        }
    }
    int s = socket(AF_UNIX, SOCK_STREAM, 1), sizes[] = {0, 1, 3000, 50000, 100000};
    T(opt_(s, SO_PROTOCOL)); T(opt_(s, SO_SNDBUF)); T(opt_(s, SO_RCVBUF));
    for (int i = 0; i < 5; i++) {
        T(set_(s, SO_SNDBUF, sizes[i])); T(opt_(s, SO_SNDBUF));
        T(set_(s, SO_RCVBUF, sizes[i])); T(opt_(s, SO_RCVBUF));
    }
    T(set_(s, SO_SNDBUFFORCE, 500000)); T(opt_(s, SO_SNDBUF)); T(set_(s, SO_SNDBUFFORCE, -1));
    T(opt_(s, SO_SNDBUF));
    struct timeval tv = {3, 500000}; socklen_t n = sizeof tv;
    T(getsockopt(s, SOL_SOCKET, SO_RCVTIMEO, buf, &n)); T(n); T(*(long *)buf); T(((long *)buf)[1]);
    T(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, 16));
    T(setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &tv, 15));
    T(getsockopt(s, SOL_SOCKET, SO_RCVTIMEO, buf, &n)); T(*(long *)buf); T(((long *)buf)[1]);
    tv.tv_usec = 1000000; T(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, 16)); tv.tv_usec = -1;
    T(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, 16));
    struct linger l = {5, 9}; T(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, 8));
    T(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, 7)); n = 8; memset(&l, 0, 8);
    T(getsockopt(s, SOL_SOCKET, SO_LINGER, &l, &n)); T(l.l_onoff); T(l.l_linger);
    T(setsockopt(s, SOL_SOCKET, SO_PASSCRED, &l, 3));
    T(setsockopt(s, SOL_SOCKET, SO_PASSCRED, &l, -1));
    T(setsockopt(s, SOL_SOCKET, SO_PASSCRED, (void *)8, 4));
    n = 2; *(int *)buf = -1; T(getsockopt(s, SOL_SOCKET, SO_TYPE, buf, &n)); T(n); T(*(int *)buf);
    n = -1; T(getsockopt(s, SOL_SOCKET, SO_TYPE, buf, &n)); n = 99;
    T(getsockopt(s, SOL_SOCKET, SO_TYPE, buf, &n)); T(n);
    T(getsockopt(s, SOL_SOCKET, SO_TYPE, (void *)8, &n));
    T(getsockopt(s, SOL_SOCKET, SO_TYPE, buf, (void *)8));
    setuid(1); T(set_(s, SO_PRIORITY, 6)); T(set_(s, SO_PRIORITY, 7));
    T(set_(s, SO_SNDBUFFORCE, 9));
    return 0;
}""")  # fmt: skip


def test_peeking_at_an_offset() -> None:
    for kind in ("SOCK_STREAM", "SOCK_DGRAM"):
        same(S + r"""
int main() {
    int sv[2]; socketpair(AF_UNIX, KIND | SOCK_NONBLOCK, 0, sv); T(set_(sv[1], SO_PEEK_OFF, 0));
    send(sv[0], "abcdef", 6, 0); send(sv[0], "ghi", 3, 0);
    got_(sv[1], 2, 0, MSG_PEEK); T(opt_(sv[1], SO_PEEK_OFF)); got_(sv[1], 2, 0, MSG_PEEK);
    got_(sv[1], 3, 0, MSG_PEEK); T(opt_(sv[1], SO_PEEK_OFF)); got_(sv[1], 5, 0, 0);
    T(opt_(sv[1], SO_PEEK_OFF)); T(set_(sv[1], SO_PEEK_OFF, 2)); got_(sv[1], 9, 0, MSG_PEEK);
    T(opt_(sv[1], SO_PEEK_OFF)); got_(sv[1], 9, 0, MSG_PEEK); T(set_(sv[1], SO_PEEK_OFF, -1));
    got_(sv[1], 9, 0, MSG_PEEK); got_(sv[1], 9, 0, 0);
    return 0;
}""".replace("KIND", kind))  # fmt: skip


def test_blocking_and_signals() -> None:
    same(S + r"""
static int hits; static void on(int sig) { hits++; }

static void sig(int how) { struct sigaction sa = {.sa_handler = on, .sa_flags = how};
    sigaction(SIGUSR1, &sa, 0); }
/* A child does something as soon as this process sleeps. */
#define WHEN_ASLEEP(what) do { fflush(stdout); if (!fork()) { sleeps(getppid()); what; \
    _exit(0); } } while (0)
int main() {
    int sv[2], st; socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
    WHEN_ASLEEP(write(sv[1], "late", 4)); got_(sv[0], 9, 0, 0); wait(&st);
    WHEN_ASLEEP(write(sv[1], "ab", 2); sleeps(getppid()); write(sv[1], "cd", 2));
    got_(sv[0], 4, 0, MSG_WAITALL); wait(&st);
    set_(sv[0], SO_RCVLOWAT, 3);
    WHEN_ASLEEP(write(sv[1], "ab", 2); sleeps(getppid()); write(sv[1], "cd", 2));
    got_(sv[0], 9, 0, 0); wait(&st); set_(sv[0], SO_RCVLOWAT, 1);
    WHEN_ASLEEP(shutdown(sv[1], SHUT_WR)); T(read(sv[0], buf, 9)); wait(&st);
    socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
    sig(0); WHEN_ASLEEP(kill(getppid(), SIGUSR1)); T(read(sv[0], buf, 9)); T(hits); wait(&st);
    sig(SA_RESTART); WHEN_ASLEEP(kill(getppid(), SIGUSR1); sleeps(getppid()); write(sv[1], "x", 1));
    T(read(sv[0], buf, 9)); T(hits); wait(&st);
    struct timeval tv = {100, 0}; setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &tv, 16);
    WHEN_ASLEEP(kill(getppid(), SIGUSR1)); T(read(sv[0], buf, 9)); T(hits); wait(&st);
    tv = (struct timeval){0, 1000}; setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &tv, 16);
    T(read(sv[0], buf, 9)); T(recv(sv[0], buf, 9, MSG_WAITALL)); write(sv[1], "xy", 2);
    T(recv(sv[0], buf, 9, MSG_WAITALL)); setsockopt(sv[0], SOL_SOCKET, SO_SNDTIMEO, &tv, 16);
    long n = 0, r; while ((r = write(sv[0], buf, 60000)) == 60000) n++; T(n); T(r); ERRNO;
    tv = (struct timeval){0, 0}; setsockopt(sv[0], SOL_SOCKET, SO_SNDTIMEO, &tv, 16);
    WHEN_ASLEEP(while ((r = recv(sv[1], buf, sizeof buf, MSG_DONTWAIT)) > 0) {});
    T(write(sv[0], "more", 4)); wait(&st);
    while (recv(sv[1], buf, sizeof buf, MSG_DONTWAIT) > 0) {}
    /* Far more than fits is written in one go, and arrives whole. */
    memset(buf, 'z', sizeof buf);
    WHEN_ASLEEP(long k = 0; while (k < sizeof buf && (r = read(sv[1], buf, 70000)) > 0) k += r);
    T(write(sv[0], buf, sizeof buf)); wait(&st); T(st); T(inq_(sv[1]));
    WHEN_ASLEEP(shutdown(sv[0], SHUT_WR)); signal(SIGPIPE, on); hits = 0;
    T(write(sv[0], buf, sizeof buf) < sizeof buf); T(hits); wait(&st);
    while (recv(sv[1], buf, sizeof buf, MSG_DONTWAIT) > 0) {}
    int l = listener_(SOCK_STREAM, "l", 0), c = socket(AF_UNIX, SOCK_STREAM, 0);
    WHEN_ASLEEP(c = socket(AF_UNIX, SOCK_STREAM, 0); connect_(c, "l"); write(c, "me", 2));
    int s = accept(l, 0, 0); got_(s, 9, 0, MSG_WAITALL); wait(&st);
    T(connect_(c, "l")); c = socket(AF_UNIX, SOCK_STREAM, 0); WHEN_ASLEEP(close(accept(l, 0, 0)));
    T(connect_(c, "l")); wait(&st); c = socket(AF_UNIX, SOCK_STREAM, 0);
    WHEN_ASLEEP(kill(getppid(), SIGUSR1); sleeps(getppid()); listen(l, 3));
    T(connect_(c, "l")); wait(&st);
    int d = socket(AF_UNIX, SOCK_DGRAM, 0), e = socket(AF_UNIX, SOCK_DGRAM, 0);
    bind_(d, "d"); connect_(e, "d"); while (send(e, "x", 1, MSG_DONTWAIT) == 1) {}
    WHEN_ASLEEP(recv(d, buf, 9, 0)); T(send(e, "x", 1, 0)); wait(&st);
    return 0;
}""")  # fmt: skip


def test_epoll_select_and_sigio() -> None:
    same(S + r"""
static int ep_;
static void ev(void) { struct epoll_event e[8]; int n = epoll_wait(ep_, e, 8, 0);
    for (int i = 0; i < n; i++) printf(" %d:%x", e[i].data.fd, e[i].events);
    puts(n ? "" : " none"); }
static void watch(int fd, unsigned events) { struct epoll_event e = {events, {.fd = fd}};
    T(epoll_ctl(ep_, EPOLL_CTL_ADD, fd, &e)); }
static int ios; static siginfo_t last;
static void io(int sig, siginfo_t *info, void *u) { ios++; last = *info; }
int main() {
    int sv[2], types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    for (int t = 0; t < 3; t++) {
        ep_ = epoll_create1(0); socketpair(AF_UNIX, types[t] | SOCK_NONBLOCK, 0, sv);
        watch(sv[0], EPOLLIN | EPOLLRDHUP | EPOLLET); watch(sv[1], EPOLLOUT | EPOLLET); ev(); ev();
        write(sv[1], "a", 1); ev(); ev(); write(sv[1], "b", 1); ev(); read(sv[0], buf, 1); ev();
        while (write(sv[1], buf, 1000) > 0) {} ev(); ev();
        while (!(poll_(sv[1]) & POLLOUT)) read(sv[0], buf, 1000); ev(); ev();
        fd_set in, out; FD_ZERO(&in); FD_ZERO(&out); FD_SET(sv[0], &in); FD_SET(sv[1], &out);
        struct timeval tv = {0}; T(select(9, &in, &out, 0, &tv)); T(FD_ISSET(sv[0], &in));
        shutdown(sv[1], SHUT_WR); ev(); shutdown(sv[1], SHUT_RD); ev(); close(sv[1]); ev();
        close(sv[0]); close(ep_);
    }
    ep_ = epoll_create1(0); int l = listener_(SOCK_STREAM, "l", 5); watch(l, EPOLLIN | EPOLLET);
    ev();
    int c = socket(AF_UNIX, SOCK_STREAM, 0); watch(c, EPOLLIN | EPOLLOUT | EPOLLET); ev();
    connect_(c, "l"); ev(); close(accept(l, 0, 0)); ev();
    int d = socket(AF_UNIX, SOCK_DGRAM, 0), e = socket(AF_UNIX, SOCK_DGRAM, 0); bind_(d, "d");
    connect_(e, "d"); watch(e, EPOLLOUT); ev(); while (send(e, "x", 1, MSG_DONTWAIT) == 1) {} ev();
    struct epoll_event x; fflush(stdout);
    if (!fork()) { recv(d, buf, 1, 0); _exit(0); }
    T(epoll_wait(ep_, &x, 1, -1)); T(x.events); wait(0);
    /* One that has sent nothing itself hears that there is room, too. */
    int f = socket(AF_UNIX, SOCK_DGRAM, 0); connect_(f, "d"); send(e, "x", 1, MSG_DONTWAIT);
    ep_ = epoll_create1(0); watch(f, EPOLLOUT | EPOLLET); ev(); fflush(stdout);
    if (!fork()) { recv(d, buf, 1, 0); _exit(0); }
    T(epoll_wait(ep_, &x, 1, 20000)); T(x.events); wait(0);
    struct sigaction sa = {.sa_sigaction = io, .sa_flags = SA_SIGINFO}; sigaction(SIGIO, &sa, 0);
    sigaction(SIGRTMIN, &sa, 0);
    socketpair(AF_UNIX, SOCK_STREAM, 0, sv); T(ioctl(sv[0], FIOSETOWN, &(int){getpid()}));
    int who = 0; T(ioctl(sv[0], FIOGETOWN, &who)); T(who == getpid());
    T(fcntl(sv[0], F_SETFL, O_ASYNC)); write(sv[1], "x", 1); T(ios);
    T(fcntl(sv[0], F_SETSIG, SIGRTMIN));
    write(sv[1], "x", 1); T(ios); T(last.si_code); T(last.si_fd == sv[0]); T(last.si_band);
    int on = 0; T(ioctl(sv[0], FIOASYNC, &on)); write(sv[1], "x", 1); T(ios);
    T(ioctl(sv[0], FIONBIO, (on = 1, &on))); T(fcntl(sv[0], F_GETFL));
    return 0;
}""")  # fmt: skip


def test_splice_and_sendfile() -> None:
    same(S + r"""
int main() {
    int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    for (int t = 0; t < 3; t++) {
        int sv[2], p[2]; socketpair(AF_UNIX, types[t] | SOCK_NONBLOCK, 0, sv); pipe(p);
        write(p[1], "through the pipe", 16); T(splice(p[0], 0, sv[0], 0, 99, 0));
        T(splice(sv[1], 0, p[1], 0, 7, 0));
        T(splice(sv[1], 0, p[1], 0, 99, SPLICE_F_NONBLOCK) > -2);
        long n = read(p[0], buf, 99); T(n); printf("%.*s\n", (int)n, buf);
        put_("f", "the contents of a file"); int f = open("f", O_RDONLY); off_t at = 4;
        while (recv(sv[1], buf, 99, MSG_DONTWAIT) > 0) {}
        T(sendfile(sv[0], f, &at, 8)); T(at); T(sendfile(sv[0], f, 0, 99)); memset(buf, 0, 99);
        while (recv(sv[1], buf + strlen(buf), 99, MSG_DONTWAIT) > 0) {} puts(buf);
        T(splice(sv[1], &at, p[1], 0, 7, 0)); T(sendfile(f, sv[1], 0, 4));
        T(tee(sv[0], p[1], 3, 0));
        close(sv[1]); signal(SIGPIPE, SIG_IGN); T(sendfile(sv[0], f, &at, 3));
        write(p[1], "x", 1); T(splice(p[0], 0, sv[0], 0, 9, 0));
        T(splice(sv[0], 0, p[1], 0, 9, SPLICE_F_NONBLOCK));
    }
    return 0;
}""")  # fmt: skip


def test_several_messages_in_one_call() -> None:
    same(S + r"""
int main() {
    int sv[2]; socketpair(AF_UNIX, SOCK_DGRAM, 0, sv);
    struct iovec o[3] = {{"a", 1}, {"bc", 2}, {"def", 3}}, in[4]; static char b[4][9];
    struct mmsghdr m[4] = {0};
    for (int i = 0; i < 4; i++) { m[i].msg_hdr.msg_iov = o + i; m[i].msg_hdr.msg_iovlen = 1; }
    m[3].msg_hdr.msg_iov = (void *)8;
    T(sendmmsg(sv[0], m, 3, 0)); T(m[0].msg_len); T(m[2].msg_len); T(sendmmsg(sv[0], m + 2, 2, 0));
    T(sendmmsg(sv[0], m + 3, 1, 0)); T(sendmmsg(sv[0], m, 0, 0)); T(sendmmsg(0, m, 1, 0));
    for (int i = 0; i < 4; i++) { in[i] = (struct iovec){b[i], 2}; m[i].msg_hdr.msg_iov = in + i; }
    T(recvmmsg(sv[1], m, 3, MSG_DONTWAIT, 0)); T(m[1].msg_len); T(m[2].msg_len);
    T(m[2].msg_hdr.msg_flags); T(recvmmsg(sv[1], m, 4, MSG_WAITFORONE, 0)); puts(b[0]);
    T(recvmmsg(sv[1], m, 4, MSG_DONTWAIT, 0)); struct timespec ts = {1, -1};
    T(recvmmsg(sv[1], m, 4, MSG_DONTWAIT, &ts)); ts = (struct timespec){0, 0};
    send(sv[0], "x", 1, 0);
    send(sv[0], "y", 1, 0); T(recvmmsg(sv[1], m, 4, 0, &ts)); T(ts.tv_sec); T(ts.tv_nsec);
    T(recv(sv[1], buf, 9, 0)); T(close(sv[0])); T(recvmmsg(sv[1], m, 4, MSG_DONTWAIT, 0));
    return 0;
}""")  # fmt: skip


def test_a_socket_on_its_way_to_itself() -> None:
    """Nobody can receive it; it is closed when the next socket is, and what was under way with
    it. Each case leaves a pipe's write end behind in a cycle, and its reader sees the end."""
    same(S + r"""
static int p[2];
static void pipe_(int *sv) { pipe(p); T(give_(sv[0], "p", 1, &p[1])); close(p[1]); }
static void gone_(void) { close(socket(AF_UNIX, SOCK_STREAM, 0)); fflush(stdout);
    struct pollfd f = {p[0], POLLIN, 0}; poll(&f, 1, 20000); T(f.revents); close(p[0]);
    T(lowest_()); }
int main() {
    int sv[2], tv[2], uv[2], both[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, sv); pipe_(sv); T(give_(sv[0], "x", 1, &sv[1]));
    close(sv[0]); close(sv[1]); gone_();
    socketpair(AF_UNIX, SOCK_DGRAM, 0, sv); pipe_(sv); T(give_(sv[0], "x", 2, sv));
    T(give_(sv[1], "x", 2, sv)); close(sv[0]); close(sv[1]); gone_();
    socketpair(AF_UNIX, SOCK_STREAM, 0, sv); socketpair(AF_UNIX, SOCK_STREAM, 0, tv); pipe_(sv);
    T(give_(sv[0], "x", 1, &tv[1])); T(give_(tv[0], "x", 1, &sv[1]));
    close(sv[0]); close(sv[1]); close(tv[0]); close(tv[1]); gone_();
    /* A listener whose waiting connection carries the listener. */
    int l = listener_(SOCK_STREAM, "l", 4), c = socket(AF_UNIX, SOCK_STREAM, 0); connect_(c, "l");
    both[0] = c; pipe_(both); T(give_(c, "x", 1, &l)); close(l); close(c); gone_();
    /* What can be reached is left alone, however far away. */
    socketpair(AF_UNIX, SOCK_STREAM, 0, sv); socketpair(AF_UNIX, SOCK_STREAM, 0, tv);
    pipe(p); T(give_(tv[0], "p", 1, &p[1])); close(p[1]); T(give_(sv[0], "x", 1, &tv[1]));
    close(tv[1]); close(socket(AF_UNIX, SOCK_STREAM, 0)); got_(sv[1], 9, 99, 0); got_(6, 9, 99, 0);
    T(write(8, "here", 4)); T(read(p[0], buf, 9));
    for (int i = 3; i < 12; i++) close(i);
    /* So is a ring, as long as it can be. */
    socketpair(AF_UNIX, SOCK_STREAM, 0, sv); socketpair(AF_UNIX, SOCK_STREAM, 0, tv); pipe(p);
    socketpair(AF_UNIX, SOCK_STREAM, 0, uv);
    T(give_(uv[0], "u", 1, &p[1])); close(p[1]); T(give_(tv[0], "ring", 2, (int[]){tv[1], uv[1]}));
    T(give_(sv[0], "x", 1, &tv[1])); close(tv[0]); close(tv[1]); close(uv[0]); close(uv[1]);
    close(socket(AF_UNIX, SOCK_STREAM, 0)); got_(sv[1], 9, 99, 0); got_(5, 9, 99, 0);
    got_(8, 9, 99, 0); T(write(9, "here", 4)); T(read(p[0], buf, 9));
    close(9); close(8); close(6); close(5);
    close(socket(AF_UNIX, SOCK_STREAM, 0)); fflush(stdout); T(read(p[0], buf, 9)); T(lowest_());
    return 0;
}""")  # fmt: skip


def test_sockets_within_sockets() -> None:
    """Each is under way in the next. Closing the last one closes all, without the kernel's own
    calls nesting."""
    same(S + r"""
int main() {
    int sv[2], old, at; socketpair(AF_UNIX, SOCK_DGRAM, 0, sv);
    old = sv[1]; close(sv[0]);
    struct rlimit rl; getrlimit(RLIMIT_NOFILE, &rl); rl.rlim_cur = rl.rlim_max;
    setrlimit(RLIMIT_NOFILE, &rl);
    for (int i = 0; i < 3000; i++) {
        socketpair(AF_UNIX, SOCK_DGRAM, 0, sv);
        if (give_(sv[0], "x", 1, &old) != 1) { printf("%d\n", i); break; }
        close(old); close(sv[0]); old = sv[1];
    }
    T(lowest_()); T(close(old)); T(lowest_());
    setuid(65534); rl.rlim_cur = 20; setrlimit(RLIMIT_NOFILE, &rl); int n = 0;
    socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
    while (give_(sv[0], "x", 1, sv) == 1) n++;
    T(n); ERRNO;
    return 0;
}""")  # fmt: skip


def test_the_list_of_sockets() -> None:
    """Of all sockets there are on the host, only those that this program has made."""
    same(S + r"""
static unsigned long ino_(int s) { struct stat st; fstat(s, &st); return st.st_ino; }
int main() {
    int sv[2], l = listener_(SOCK_STREAM, "l", 4), d = socket(AF_UNIX, SOCK_DGRAM, 0);
    int a = socket(AF_UNIX, SOCK_SEQPACKET, 0), c = socket(AF_UNIX, SOCK_STREAM, 0);
    socketpair(AF_UNIX, SOCK_STREAM, 0, sv); bind_(a, "@abstract"); connect_(c, "l");
    int fds[] = {l, d, a, c, sv[0]}; char line[400];
    for (int i = 0; i < 5; i++) {
        FILE *f = fopen("/proc/net/unix", "r");
        if (!i) printf("%s", fgets(line, sizeof line, f));
        while (fgets(line, sizeof line, f)) {
            unsigned ref, proto, flags, type, st; unsigned long ino; char path[200] = "";
            int n = sscanf(line, "%*[^:]: %x %x %x %x %x %lu %199s", &ref, &proto, &flags, &type,
                           &st, &ino, path);
            if (n < 6 || ino != ino_(fds[i])) continue;
            printf("%d: %d %x %x %x %x %x %s\n", i, n, ref, proto, flags, type, st,
                   *path == '@' ? path + 9 : path);
        }
        fclose(f);
    }
    return 0;
}""")  # fmt: skip


def test_the_machine_knows_its_sockets() -> None:
    """What Machine.check() says when something about a socket is not as it should be."""
    program = build(S + r"""
int main() {
    int sv[2], p[2]; socketpair(AF_UNIX, SOCK_STREAM, 0, sv); pipe(p);
    int d = socket(AF_UNIX, SOCK_DGRAM, 0); bind_(d, "d");
    bind_(socket(AF_UNIX, SOCK_DGRAM, 0), "@a");
    int l = listener_(SOCK_STREAM, "l", 4); connect_(socket(AF_UNIX, SOCK_STREAM, 0), "l");
    send(sv[0], "data", 4, 0); give_(sv[0], "x", 2, (int[]){p[0], d}); pause(); return 0;
}""")  # fmt: skip
    with Machine(mem="64M") as m:
        p = m.spawn([program], stdin=b"")
        with pytest.raises(Deadlock):
            m.run()
        m.check()
        files = p.proc.p_fd.fd_files
        a, b, d = (files[fd].f_socket for fd in (3, 4, 7))  # type: ignore[attr-defined]
        un = m.kernel.files.unix
        assert un is not None
        data, message = b.so_rcv.sb_mb

        def complaint(undo: Callable[[], object]) -> str:
            try:
                with pytest.raises(Panic) as e:
                    m.check()
            finally:
                undo()
            m.check()
            return str(e.value)

        def swap(thing: object, name: str, value: object) -> Callable[[], None]:
            old = getattr(thing, name)
            setattr(thing, name, value)
            return lambda: setattr(thing, name, old)

        assert "bytes charged" in complaint(swap(a.so_snd, "sb_cc", a.so_snd.sb_cc + 1))
        assert "bytes of it under way" in complaint(swap(data, "m_size", 10_000))
        assert "the messages have others" in complaint(swap(b.so_rcv, "sb_cc", 3))
        assert "in state 2" in complaint(swap(a, "unp_conn", None))
        assert "connected with another" in complaint(swap(b, "unp_conn", d))
        assert "files under way" in complaint(swap(message, "m_rights", None))
        assert "the file it is bound to does not know" in complaint(
            swap(d.unp_vnode, "v_socket", None)
        )
        assert "references are held" in complaint(swap(d.unp_vnode, "v_usecount", 0))
        assert "places have it" in complaint(swap(files[5], "f_count", 1))
        assert "it is dead" in complaint(swap(a, "so_dead", True))
        assert "connections wait where no one listens" in complaint(swap(data, "m_conn", a))
        named = next(iter(un.un_names.values()))
        assert "names a socket" in complaint(swap(named, "unp_name", b""))
        assert "bytes in sockets" in complaint(swap(m.kernel.files, "so_charged", 0))
        assert "sockets under way" in complaint(swap(un, "un_inflight", Counter()))


def test_what_is_refused_is_counted() -> None:
    program = build(S + r"""
#include <netinet/in.h>
int main() {
    T(socket(AF_INET, SOCK_STREAM, 0)); T(socket(AF_INET, SOCK_DGRAM, 0));
    T(socket(AF_NETLINK, SOCK_RAW, 0)); T(socket(30, SOCK_STREAM, 0)); int sv[2];
    T(socketpair(AF_INET6, SOCK_STREAM, 0, sv)); T(socket(200, SOCK_STREAM, 0));
    socketpair(AF_UNIX, SOCK_STREAM, 0, sv); T(send(sv[0], "x", 1, MSG_OOB));
    T(recv(sv[0], buf, 1, MSG_OOB));
    return 0;
}""")  # fmt: skip
    with Machine(mem="64M", check=True) as m:
        p = m.spawn([program], stdin=b"", stdout=PIPE)
        m.run()
        assert p.stdout is not None
        errors = [int(line.rpartition(b" ")[2]) for line in p.stdout.splitlines()]
        assert errors == [EAFNOSUPPORT] * 6 + [EOPNOTSUPP, EOPNOTSUPP]
        assert gather(m)["refused_syscalls"] == {
            "socket(30)": 1, "socket(AF_INET)": 2, "socket(AF_INET6)": 1,
            "socket(AF_NETLINK)": 1,
        }  # fmt: skip


def test_sockets_leave_room_for_others() -> None:
    """Messages are in no page of the machine's, but they may not be more than half of its memory
    together."""
    program = build(S + r"""
int main() {
    int sv[2]; struct rlimit rl = {4096, 4096}; setrlimit(RLIMIT_NOFILE, &rl); long total = 0;
    for (;;) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv)) break;
        long r;
        while ((r = send(sv[0], buf, 200000, MSG_DONTWAIT)) > 0) total += r;
        if (errno != EAGAIN) break;
    }
    ERRNO; T(total >> 20);
    return 0;
}""")  # fmt: skip
    with Machine(mem="64M", check=True) as m:
        p = m.spawn([program], stdin=b"", stdout=PIPE)
        m.run()
        assert p.stdout == b"errno 105\ntotal >> 20 = 31 0\n"


ASYNCIO = r"""
import asyncio, os, signal

async def handle(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()

async def client(path, n):
    reader, writer = await asyncio.open_unix_connection(path)
    out = []
    for i in range(3):
        writer.write(f"client {n} line {i}\n".encode())
        await writer.drain()
        out.append((await reader.readline()).decode().strip())
    writer.close()
    await writer.wait_closed()
    return out

async def main():
    path = f"/tmp/dfvm-aio-{os.getpid()}"
    server = await asyncio.start_unix_server(handle, path)
    print(await asyncio.gather(*(client(path, n) for n in range(5))))
    server.close()
    await server.wait_closed()
    os.unlink(path)
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, event.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await event.wait()
    asyncio.set_child_watcher(watcher := asyncio.PidfdChildWatcher())
    pipe = asyncio.subprocess.PIPE
    cat = await asyncio.create_subprocess_exec("/bin/cat", stdin=pipe, stdout=pipe)
    print(await cat.communicate(b"through cat\n"), cat.returncode)

asyncio.run(main())
"""


def test_asyncio() -> None:
    python = "/usr/bin/python3"
    if not os.access(python, os.X_OK):
        pytest.skip("no Python of the system's")
    command = (python, "-W", "ignore", "-c", ASYNCIO)
    assert by_guest(*command) == by_host(*command)
