"""inotify. Each program runs on the host too."""

from __future__ import annotations

from file_util import T
from guest_util import same

EV = r"""
#include <sys/inotify.h>
static int in;
/* Cookies in the order in which they come: others on the host rename, too. */
static int cookie(unsigned c) {
    static unsigned seen[100]; static int n; int i = 0;
    if (!c) return -1;
    while (i < n && seen[i] != c) i++;
    if (i == n) seen[n++] = c;
    return i;
}
static void ev(const char *what) {
    static char b[65536]; long n;
    printf("-- %s\n", what);
    while ((n = read(in, b, sizeof b)) > 0)
        for (long o = 0; o < n;) {
            struct inotify_event *e = (void *)(b + o);
            printf("%d %x %d %s\n", e->wd, e->mask, cookie(e->cookie), e->len ? e->name : "");
            o += 16 + e->len;
        }
    fflush(stdout);
}
"""


def test_events_of_a_file() -> None:
    same(T + EV + r"""
int main() {
    in = inotify_init1(IN_NONBLOCK); put_("f", "x"); symlink("f", "l"); int fd, p[2]; pipe(p);
    T(inotify_add_watch(in, "f", IN_ALL_EVENTS)); T(inotify_add_watch(in, "l", IN_ALL_EVENTS));
    fd = open("f", O_RDWR); ev("open"); read(fd, buf, 10); read(fd, buf, 10); ev("read, end");
    write(fd, "abc", 3); ev("write"); pwrite(fd, "abc", 3, 0); pwrite(fd, "abc", 3, 0);
    ev("the same twice"); ftruncate(fd, 1); ev("ftruncate"); fchmod(fd, 0644); ev("fchmod");
    fchown(fd, -1, -1); ev("no chown"); futimens(fd, 0); ev("futimens");
    fallocate(fd, 0, 0, 100); ev("fallocate"); close(fd); ev("close"); close(open("f", O_RDONLY));
    ev("only read"); close(open("f", O_PATH)); ev("path"); truncate("f", 5); ev("truncate");
    link("f", "f2"); ev("link"); unlink("f2"); ev("unlink"); rename("f", "g"); ev("rename");
    fd = open("g", 0); sendfile(p[1], fd, 0, 3); ev("sendfile"); unlink("g"); ev("unlink, open");
    close(fd); ev("gone"); put_("q", "1"); put_("r", "2");
    inotify_add_watch(in, "q", IN_ALL_EVENTS);
    rename("r", "q"); ev("replaced"); symlink("x", "s");
    inotify_add_watch(in, "s", IN_ALL_EVENTS | IN_DONT_FOLLOW); unlink("s"); ev("link gone");
    return 0;
}""")  # fmt: skip


def test_events_in_a_directory() -> None:
    same(T + EV + r"""
int main() {
    in = inotify_init1(IN_NONBLOCK); mkdir("d", 0755); inotify_add_watch(in, "d", IN_ALL_EVENTS);
    close(creat("d/a", 0644)); ev("creat"); mkdir("d/sub", 0755); ev("mkdir"); symlink("q", "d/sl");
    mknod("d/ff", S_IFIFO | 0600, 0); ev("symlink, mknod"); link("d/a", "d/b"); ev("link");
    rename("d/a", "d/c"); ev("rename"); put_("d/x", "1"); put_("d/y", "2"); ev("two");
    rename("d/x", "d/y"); ev("rename over"); rename("d/y", "y"); ev("out"); rename("y", "d/z");
    ev("in"); chmod("d/z", 0600); ev("chmod a child"); chmod("d", 0700); ev("chmod");
    int fd = open("d/z", O_RDWR); write(fd, "1", 1); unlink("d/z"); ev("unlink, open");
    write(fd, "2", 1); close(fd); ev("write, close"); unlink("d/b"); unlink("d/c"); ev("unlink");
    rmdir("d/sub"); ev("rmdir"); DIR *dir = opendir("d"); ev("opendir"); while (readdir(dir));
    ev("readdir"); closedir(dir); ev("closedir");
    syscall(SYS_renameat2, AT_FDCWD, "d/sl", AT_FDCWD, "d/ff", 2); ev("exchange");
    close(open("d/sl", O_RDWR)); ev("a fifo");
    unlink("d/sl"); unlink("d/ff"); ev("empty"); fd = open("d", 0); rmdir("d"); ev("rmdir, open");
    close(fd); ev("gone"); return 0;
}""")  # fmt: skip


def test_watches_and_errors() -> None:
    same(T + EV + r"""
int main() {
    T(inotify_init1(4)); T(in = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)); T(fcntl(in, F_GETFL));
    T(read(in, buf, 100)); T(write(in, buf, 1)); T(lseek(in, 0, 0)); mkdir("e", 0755);
    put_("f", ""); T(inotify_add_watch(in, "e", 0)); T(inotify_add_watch(in, "none", 1));
    T(inotify_add_watch(99, "e", 1)); T(inotify_add_watch(0, "e", 1));
    T(inotify_add_watch(in, "f", 1 | IN_ONLYDIR)); T(inotify_add_watch(in, (char *)1, 1));
    T(inotify_add_watch(in, "f", IN_MASK_ADD | IN_MASK_CREATE | 1)); T(inotify_rm_watch(in, 5));
    T(inotify_rm_watch(0, 1)); T(inotify_add_watch(in, "e", IN_CREATE | IN_ONESHOT));
    close(creat("e/1", 0600)); close(creat("e/2", 0600)); ev("oneshot"); int w, n;
    T(w = inotify_add_watch(in, "e", IN_CREATE));
    T(inotify_add_watch(in, "e", 1 | IN_MASK_CREATE));
    T(inotify_add_watch(in, "e", IN_DELETE | IN_MASK_ADD));
    close(creat("e/3", 0600)); unlink("e/3");
    ev("added"); T(inotify_add_watch(in, "e", IN_DELETE)); close(creat("e/3", 0600)); unlink("e/3");
    ev("replaced"); T(inotify_rm_watch(in, w)); ev("removed"); T(inotify_rm_watch(in, w));
    T(inotify_add_watch(in, "e", IN_CREATE | IN_EXCL_UNLINK | IN_MODIFY));
    close(creat("e/abcdefghijklmnop", 0600)); T(ioctl(in, FIONREAD, &n)); T(n);
    T(read(in, buf, 16)); struct pollfd pf = {in, 0x7fff}; T(poll(&pf, 1, 0)); T(pf.revents);
    T(read(in, buf, 48)); poll(&pf, 1, 0); T(pf.revents); mkdir("e/k", 0700); mkdir("e/m", 0700);
    T(read(in, buf, 33)); T(read(in, (void *)-1, 100)); int fd = creat("e/u", 0600);
    write(fd, "1", 1); unlink("e/u"); write(fd, "2", 1); ev("unlinked"); int in2 = inotify_init();
    T(inotify_add_watch(in2, "f", IN_ATTRIB)); T(inotify_add_watch(in, "f", IN_ATTRIB));
    fcntl(in2, F_SETFL, O_NONBLOCK);
    chmod("f", 0600); T(read(in2, buf, 100)); close(in2); chmod("f", 0644); ev("of two");
    if (!fork()) { mkdir("e/late", 0700); _exit(0); } fcntl(in, F_SETFL, 0); T(read(in, buf, 100));
    return 0;
}""")  # fmt: skip


def test_too_many_events() -> None:
    same(T + EV + r"""
int main() {
    in = inotify_init1(IN_NONBLOCK); mkdir("d", 0755); inotify_add_watch(in, "d", IN_ATTRIB);
    close(creat("d/1", 0600)); close(creat("d/2", 0600)); int n; long k, count = 0, last = 0;
    for (int i = 0; i < 9000; i++) { chmod("d/1", 0600); chmod("d/2", 0600); }
    T(ioctl(in, FIONREAD, &n)); T(n);
    while ((k = read(in, buf, 65536)) > 0)
        for (long o = 0; o < k; count++) {
            struct inotify_event *e = (void *)(buf + o); last = e->mask; o += 16 + e->len;
        }
    T(count); T(last); return 0;
}""")  # fmt: skip


def test_the_end_of_directories() -> None:
    """Who is told first, and what keeps a removed directory: those who have it open, and those who
    have something open that was in it."""
    same(T + EV + r"""
#define WATCH(n) inotify_add_watch(in, n, IN_ALL_EVENTS)
static void start(void) {
    if (in) close(in);
    in = inotify_init1(IN_NONBLOCK); mkdir("a", 0755); WATCH("."); WATCH("a");
}
int main() {
    start(); mkdir("a/b", 0755); put_("a/b/f", ""); WATCH("a/b"); WATCH("a/b/f");
    unlink("a/b/f"); rmdir("a/b"); rmdir("a"); ev("from below");
    start(); mkdir("b", 0755); WATCH("b"); rename("a", "b"); ev("renamed over another");
    put_("b/x", ""); unlink("b/x"); rmdir("b"); ev("and removed");
    start(); int f = open("a", O_RDONLY); rmdir("a"); int g = openat(f, ".", O_RDONLY);
    close(g); ev("removed while open"); close(f); ev("closed");
    start(); if (!fork()) { chdir("a"); rmdir("../a"); _exit(0); }
    wait(0); ev("somebody was in it");
    start(); mkdir("a/b", 0755); WATCH("a/b"); f = open("a/b", O_RDONLY); rmdir("a/b"); rmdir("a");
    ev("a directory in it is open"); close(f); ev("is closed");
    start(); mkdir("a/b", 0755); f = open("a/b", O_RDONLY); rmdir("a/b"); rmdir("a");
    ev("one that is not watched"); close(f); ev("is closed");
    start(); put_("a/f", ""); f = open("a/f", O_RDWR); unlink("a/f"); rmdir("a");
    ev("a file in it is open"); write(f, "x", 1); close(f); ev("is closed");
    start(); put_("a/f", ""); link("a/f", "l"); unlink("a/f"); rmdir("a");
    ev("a file with another name was in it"); unlink("l");
    start(); mkdir("b", 0755); mkdir("b/c", 0755); WATCH("b/c"); rename("b/c", "a/c"); ev("moved");
    rmdir("a/c"); rmdir("a"); rmdir("b"); ev("removed");
    start(); mkdir("b", 0755); WATCH("b"); renameat2(AT_FDCWD, "a", AT_FDCWD, "b", 2);
    rmdir("a"); rmdir("b"); ev("exchanged and removed");
    return 0;
}""")  # fmt: skip


def test_signals_for_a_directory() -> None:
    same(T + r"""
#include <signal.h>
#include <sys/wait.h>
#include <sys/xattr.h>
static int got, code; static void on(int s, siginfo_t *i, void *c) { got++; code = i->si_code; }
static int want(int d, unsigned mask) { return fcntl(d, F_NOTIFY, mask); }
static void ev(const char *what) { printf("%s: %d %d\n", what, got, code); got = code = 0; }
int main() {
    struct sigaction sa = {.sa_sigaction = on, .sa_flags = SA_SIGINFO};
    sigaction(SIGIO, &sa, 0); sigaction(SIGRTMIN, &sa, 0); setvbuf(stdout, 0, _IONBF, 0);
    mkdir("d", 0755); mkdir("e", 0755); put_("d/f", ""); char b[9];
    int d = open("d", O_RDONLY), f = open("d/f", O_RDWR), k;
    T(want(f, DN_CREATE)); T(want(99, DN_CREATE)); T(want(open("d", O_PATH), DN_CREATE));
    T(want(d, 0)); T(want(f, 0)); T(fcntl(d, F_GETOWN));
    for (int bit = 0; bit < 6; bit++) {
        T(want(d, 1 << bit | DN_MULTISHOT)); T(fcntl(d, F_GETOWN) == getpid());
        pwrite(f, "x", 1, 0); ev("write"); pread(f, b, 1, 0); ev("read"); ftruncate(f, 0);
        ev("truncate"); fchmod(f, 0600); ev("chmod"); futimens(f, 0); ev("utimes");
        put_("d/g", ""); ev("create"); rename("d/g", "d/h"); ev("rename"); rename("d/h", "e/h");
        ev("out"); rename("e/h", "d/h"); ev("in"); link("d/h", "d/l"); ev("link"); unlink("d/l");
        ev("unlink"); put_("d/k", ""); ev("another"); rename("d/k", "d/h"); ev("over");
        unlink("d/h"); ev("unlink"); mkdir("d/s", 0755); ev("mkdir"); rmdir("d/s"); ev("rmdir");
        chmod("d", 0700); ev("itself"); close(open("d", 0)); ev("open"); want(d, 0);
    }
    T(want(d, DN_CREATE)); put_("d/1", ""); put_("d/2", ""); ev("once"); want(d, DN_CREATE);
    T(want(d, DN_DELETE)); unlink("d/1"); put_("d/3", ""); ev("either"); unlink("d/2"); ev("over");
    fcntl(d, F_SETSIG, SIGRTMIN); want(d, DN_DELETE | DN_MULTISHOT); unlink("d/3"); ev("signal");
    close(dup(d)); put_("d/4", ""); unlink("d/4"); ev("a duplicate was closed");
    want(d, DN_DELETE | DN_MULTISHOT); if (!fork()) { close(d); _exit(0); }
    wait(0); put_("d/4", ""); unlink("d/4"); ev("a child has closed it");
    if (!fork()) { put_("d/4", ""); unlink("d/4"); _exit(0); }
    wait(0); ev("a child has done it"); unlink("d/f"); ev("while open"); close(f); ev("closed");
    rmdir("d"); ev("rmdir"); close(d); return 0;
}""")  # fmt: skip


def test_watches_are_in_fdinfo() -> None:
    """Number, inode and mask of each."""
    same(T + EV + r"""
int main() {
    int wd; unsigned long ino, dev, mask; char path[40], line[200]; struct stat s;
    in = inotify_init();
    put_("a", "x"); mkdir("b", 0755);
    inotify_add_watch(in, "b", IN_CREATE | IN_ONESHOT); inotify_add_watch(in, "a", IN_ALL_EVENTS);
    inotify_add_watch(in, "a", IN_MODIFY); sprintf(path, "/proc/self/fdinfo/%d", in);
    FILE *f = fopen(path, "r");
    while (fgets(line, 200, f))
        if (sscanf(line, "inotify wd:%x ino:%lx sdev:%lx mask:%lx", &wd, &ino, &dev, &mask) == 4) {
            stat(wd == 1 ? "b" : "a", &s); T(wd); T(ino == s.st_ino); T(mask);
        }
    return 0;
}""")  # fmt: skip
