"""Capabilities: what root can do without, on the host and in the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kern.guest_util import same

_USED = 0x1F | 0x1E0 | 1 << 14 | 1 << 18 | 1 << 21 | 1 << 23 | 1 << 27


def _host_has_them() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) & _USED == _USED
    return False


pytestmark = pytest.mark.skipif(not _host_has_them(), reason="the host's root lacks capabilities")

CAPS = r"""
    #include <sys/fsuid.h>
    static struct { uint32_t version; int pid; } h = {0x20080522};
    static struct { uint32_t e, p, i; } d[2];
    #define E(x) (errno = 0, printf("%s %d\n", #x, (int)(x) < 0 ? -errno : 0), fflush(stdout))
    #define P(...) (errno = 0, printf("%s", #__VA_ARGS__),                                   \
                    printf(" %d", (int)syscall(SYS_prctl, __VA_ARGS__)), printf(" %d\n", errno), \
                    fflush(stdout))
    static int get(void) { h.pid = 0; return syscall(SYS_capget, &h, d); }
    static int set(void) { return syscall(SYS_capset, &h, d); }
    static void show(const char *what) {
        get();
        printf("%s: effective %d permitted %d inheritable %x setuid %x %x files %x\n", what,
               d[0].e != 0, d[0].p != 0, d[0].i, d[0].e & 0x80, d[0].p & 0x80, d[0].e & 0x1f);
        fflush(stdout);
    }
    static void drop(int cap) { get(); d[0].e &= ~(1u << cap); E(set()); }
    static void again(void) { execl("/proc/self/exe", "x", "y", (char *)0); }
    #define IN_CHILD(...)                                                   \
        do {                                                                \
            fflush(stdout);                                                 \
            if (!fork()) { __VA_ARGS__; fflush(stdout); _exit(0); }         \
            wait(0);                                                        \
        } while (0)
    #define AFTER_EXEC                                                      \
        if (argc > 1) {                                                     \
            show("exec");                                                   \
            P(7, 0, 0, 0, 0), P(27, 0, 0, 0, 0);                            \
            P(47, 1, 10, 0, 0), P(23, 10, 0, 0, 0);                         \
            return 0;                                                       \
        }
    """


def test_capset_and_what_it_takes_away() -> None:
    same(
        CAPS
        + r"""
    int main(void) {
        void *bad = (void *)-1;
        show("start");
        E(set()), E(syscall(SYS_capset, bad, d)), E(syscall(SYS_capset, &h, bad));
        h.version = 0, E(set()), printf("%x\n", h.version);
        h.pid = getppid(), E(set()), h.pid = -1, E(set()), E(syscall(SYS_capget, &h, d));
        h.pid = 0;
        IN_CHILD(drop(7), E(setuid(5)), E(setreuid(0, 0)), E(setresuid(-1, 5, -1)),
                 get(), d[0].e |= 0x80, E(set()), E(seteuid(5)), show("effective 5"),
                 E(set()), E(seteuid(0)), show("back"));
        IN_CHILD(get(), d[0].p = d[0].e = 1 << 7, d[1].p = d[1].e = 0, E(set()), show("one"),
                 d[0].p |= 1, E(set()), d[0].p = 1 << 7, d[0].e = 1, E(set()), d[0].e = 0,
                 d[0].i = 1 << 7, E(set()), d[0].i = 1 << 6, E(set()), E(chroot("/")));
        IN_CHILD(drop(6), E(setgid(5)), E(setgroups(0, 0)), E(setresgid(1, 2, 3)));
        IN_CHILD(drop(14), setrlimit(RLIMIT_MEMLOCK, (&(struct rlimit){0, 0})),
                 E(mlock(stdout, 1)), E(mlockall(MCL_CURRENT)));
        IN_CHILD(drop(18), E(chroot("/")));
        IN_CHILD(drop(21), E(sethostname("x", -1)));
        IN_CHILD(drop(23), E(nice(-1)), E(nice(1)),
                 E(sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1})));
        return 0;
    }
    """
    )


def test_capabilities_about_files() -> None:
    same(
        CAPS
        + r"""
    int main(void) {
        char f[] = "/tmp/capsXXXXXX", dir[] = "/tmp/capsXXXXXX";
        int fd = mkstemp(f);
        mkdtemp(dir);
        IN_CHILD(drop(1), fchmod(fd, 0), chmod(dir, 0), E(open(f, O_RDONLY)), E(open(f, O_WRONLY)),
                 E(open(f, O_RDWR)), E(open(dir, O_RDONLY)), E(execl(f, f, (char *)0)), drop(2),
                 E(open(f, O_RDONLY)), E(open(dir, O_RDONLY)), fchmod(fd, 0400),
                 E(open(f, O_RDONLY)), E(open(f, O_WRONLY)));
        IN_CHILD(drop(0), E(chown(f, 5, -1)), E(chown(f, 0, 0)));
        IN_CHILD(setfsuid(9), show("files as 9"), E(chmod(f, 0600)), setfsuid(0), show("root"),
                 drop(3), E(chmod(f, 0600)));
        IN_CHILD(drop(27), E(mknod("/tmp/caps.node", S_IFCHR | 0600, 0x103)));
        unlink(f), rmdir(dir);
        return 0;
    }
    """
    )


def test_capabilities_follow_users_and_exec() -> None:
    same(
        CAPS
        + r"""
    int main(int argc, char **argv) {
        AFTER_EXEC
        IN_CHILD(setuid(5), show("user"), again());
        IN_CHILD(seteuid(5), again());
        IN_CHILD(drop(7), again());
        IN_CHILD(P(8, 2, 0, 0, 0), P(8, 1, 0, 0, 0), P(7, 0, 0, 0, 0), E(setuid(5)), show("kept"),
                 get(), d[0].e = d[0].p, E(set()), show("raised"), E(setuid(0)), show("root"),
                 again());
        IN_CHILD(P(28, 0x30, 0, 0, 0), P(8, 0, 0, 0, 0), P(28, 0, 0, 0, 0), P(27, 0, 0, 0, 0));
        IN_CHILD(P(28, 4, 0, 0, 0), E(setuid(5)), show("no fixup"));
        IN_CHILD(P(28, 1, 0, 0, 0), again());
        IN_CHILD(drop(8), P(28, 1, 0, 0, 0), P(24, 5, 0, 0, 0));
        IN_CHILD(P(24, 10, 0, 0, 0), P(24, 41, 0, 0, 0), P(23, 41, 0, 0, 0), show("less"),
                 get(), d[0].i = 1 << 10, E(set()), again());
        IN_CHILD(P(47, 2, 10, 0, 0), get(), d[0].i = 1 << 10, E(set()), P(47, 2, 10, 0, 0),
                 P(47, 1, 10, 0, 0), P(47, 3, 10, 0, 0), P(47, 1, 10, 0, 0), P(47, 4, 1, 0, 0),
                 P(47, 9, 0, 0, 0), P(47, 1, 41, 0, 0), P(8, 1, 0, 0, 0), setuid(5),
                 P(47, 2, 10, 0, 0), again());
        return 0;
    }
    """
    )


def test_no_new_privileges_keep_capabilities_away() -> None:
    same(
        CAPS
        + r"""
    static void none(void) { memset(d, 0, sizeof d); E(set()); }
    int main(int argc, char **argv) {
        AFTER_EXEC
        IN_CHILD(none(), P(38, 1, 0, 0, 0), again());
        IN_CHILD(drop(7), P(38, 1, 0, 0, 0), again());
        IN_CHILD(get(), d[0].p = d[0].e = 0x80, E(set()), P(38, 1, 0, 0, 0), again());
        IN_CHILD(none(), again());
        return 0;
    }
    """
    )


def test_directories_are_searched_by_capability() -> None:
    same(
        CAPS
        + r"""
    int main(int argc, char **argv) {
        char dir[] = "/tmp/caps.XXXXXX", f[64];
        struct stat st;
        mkdtemp(dir), sprintf(f, "%s/f", dir), close(creat(f, 0600)), chown(dir, 7, 7);
        IN_CHILD(drop(1), drop(2), E(stat(f, &st)), E(open(f, O_RDONLY)), E(unlink(f)));
        IN_CHILD(drop(1), drop(2), drop(1), E(syscall(SYS_openat2, AT_FDCWD, f,
                 ((uint64_t[]){0, 0, 2}), 24)));
        IN_CHILD(drop(1), E(stat(f, &st)), E(open(f, O_RDONLY)), E(unlink(f)));
        IN_CHILD(drop(2), E(stat(f, &st)), E(unlink(f)));
        rmdir(dir);
        return 0;
    }
    """
    )


def test_nobody_looks_into_a_process_that_may_do_more() -> None:
    same(
        CAPS
        + r"""
    #include <sys/uio.h>
    static void none(void) { memset(d, 0, sizeof d); E(set()); }
    static void look(int pid) {
        char path[64], byte, *a = &byte;
        size_t n;
        struct iovec v = {&byte, 1}, w = {path, 1};
        sprintf(path, "/proc/%d/mem", pid);
        E(syscall(SYS_process_vm_readv, pid, &v, 1, &w, 1, 0));
        E(syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, pid, 0), 0, 0) < 0 ? -1 : 0);
        E(open(path, O_RDONLY) < 0 ? -1 : 0);
        E(syscall(SYS_get_robust_list, pid, &a, &n));
    }
    int main(int argc, char **argv) {
        int end[2];
        char byte;
        pipe(end);
        int pid = fork();
        if (!pid) { close(end[1]); read(end[0], &byte, 1); _exit(0); }
        close(end[0]);
        IN_CHILD(look(pid));
        IN_CHILD(none(), look(pid), look(getpid()));
        IN_CHILD(drop(19), look(pid));
        IN_CHILD(setgid(5), drop(19), P(4, 1, 0, 0, 0), look(pid));
        IN_CHILD(setfsuid(5), P(4, 1, 0, 0, 0), drop(19), look(pid));
        return 0;
    }
    """
    )


def test_terminals_go_by_capability() -> None:
    same(
        CAPS
        + r"""
    #include <sys/ioctl.h>
    int main(int argc, char **argv) {
        int m = open("/dev/ptmx", O_RDWR | O_NOCTTY), zero = 0;
        char *name = ptsname(m);
        ioctl(m, TIOCSPTLCK, &zero);
        int s = open(name, O_RDWR | O_NOCTTY);
        E(ioctl(s, TIOCEXCL));
        E(open(name, O_RDWR | O_NOCTTY) < 0 ? -1 : 0);
        IN_CHILD(drop(21), E(open(name, O_RDWR | O_NOCTTY) < 0 ? -1 : 0));
        IN_CHILD(seteuid(5), E(open(name, O_RDWR | O_NOCTTY) < 0 ? -1 : 0));
        return 0;
    }
    """
    )


@pytest.mark.skipif(
    Path("/proc/sys/fs/protected_hardlinks").read_text() != "1\n",
    reason="the host lets anybody link anything",
)
def test_links_to_what_is_anothers_take_a_capability() -> None:
    same(
        CAPS
        + r"""
    static void none(void) { memset(d, 0, sizeof d); E(set()); }
    int main(void) {
        char dir[] = "/tmp/linksXXXXXX";
        chdir(mkdtemp(dir));
        close(open("closed", O_CREAT, 0600)), close(open("open", O_CREAT, 0666));
        chmod("open", 0666), chmod(".", 0777);
        E(chown("closed", 65534, 65534)), E(chown("open", 65534, 65534));
        E(link("closed", "a"));
        none();
        E(link("closed", "b")), E(link("open", "c"));
        return 0;
    }
    """
    )
