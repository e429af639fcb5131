"""clone and unshare: what processes share of descriptors, directories, umask and memory."""

from __future__ import annotations

from errno import EINVAL, ENOSYS

import pytest

from dfvm import PIPE, Machine
from dfvm.tools.stats import gather
from tests.kern.guest_util import build, by_guest, same

PART = r"""
static char stack[65536] __attribute__((aligned(16)));
static char cwd[4096];

static const char *here(void) { return getcwd(cwd, sizeof cwd); }
static int mask(void) { int m = umask(0); umask(m); return m; }

static int change(void *arg) {
    chdir("/usr");
    umask(0);
    close(9);
    return 0;
}

static void run(int (*f)(void *), int flags) {
    int st;
    pid_t p = clone(f, stack + sizeof stack, flags | SIGCHLD, 0);
    if (p < 0) printf("clone: %s\n", strerror(errno));
    else waitpid(p, &st, 0), printf("[%x] ", st);
}

static void tell(const char *what) {
    printf("%s: %s %o fd %d\n", what, here(), mask(), fcntl(9, F_GETFD));
    fflush(stdout);
    chdir("/");
    umask(022);
    dup2(1, 9);
}
"""


@pytest.mark.spec("SPACE-3")
def test_clone_shares_directories_or_descriptors_or_both() -> None:
    out = same(
        PART
        + r"""
    int main(void) {
        tell("start");
        run(change, 0); tell("none");
        run(change, CLONE_FS); tell("fs");
        run(change, CLONE_FILES); tell("files");
        run(change, CLONE_FS | CLONE_FILES); tell("both");
        run(change, CLONE_VM | CLONE_FS); tell("vm, fs");
        return 0;
    }
    """
    )
    assert b"fs: /usr 0 fd 0\n" in out and b"files: / 22 fd -1\n" in out


def test_exec_shares_directories_on_and_descriptors_not() -> None:
    same(
        PART
        + r"""
    static int again(void *arg) {
        char *v[] = {"again", arg, 0};
        execv("/proc/self/exe", v);
        return 1;
    }
    int main(int argc, char **argv) {
        if (argc > 1) return change(0);
        tell("start");
        for (int flags = 0; flags < 4; flags++) {
            int st, how = (flags & 1 ? CLONE_FS : 0) | (flags & 2 ? CLONE_FILES : 0);
            pid_t p = clone(again, stack + sizeof stack, how | SIGCHLD, "x");
            waitpid(p, &st, 0);
            printf("%x ", st);
            tell("exec");
        }
        return 0;
    }
    """
    )


def test_unshare() -> None:
    out = same(
        PART
        + r"""
    static int apart_fs(void *arg) { int r = unshare(CLONE_FS); change(0); return r; }
    static int apart_files(void *arg) { int r = unshare(CLONE_FILES); change(0); return r; }
    static int apart(void *arg) { int r = unshare(CLONE_FS | CLONE_FILES); change(0); return r; }
    static int together(void *arg) { int r = unshare(0); change(0); return r; }
    int main(void) {
        int both = CLONE_FS | CLONE_FILES;
        tell("start");
        run(apart_fs, both); tell("fs");
        run(apart_files, both); tell("files");
        run(apart, both); tell("all");
        run(together, both); tell("none");
        static int flags[] = {
            0, CLONE_FS, CLONE_FILES, CLONE_THREAD, CLONE_SIGHAND, CLONE_VM, CLONE_SYSVSEM,
            CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_FS, SIGCHLD, CLONE_VFORK, CLONE_PARENT,
            CLONE_SETTLS, 1 << 31, CLONE_PIDFD,
        };
        for (int i = 0; i < sizeof flags / sizeof *flags; i++) {
            int r = unshare(flags[i]);
            printf("%x: %d %d\n", flags[i], r, r ? errno : 0);
        }
        return 0;
    }
    """
    )
    assert b"fs: / 22 fd -1\n" in out and b"all: / 22 fd 0\n" in out


def test_namespaces_are_not_to_be_had() -> None:
    """The same for root, who has them to himself on a host that allows it."""
    same(r"""
    int main(void) {
        setgid(65534);
        setuid(65534);
        static int flags[] = {
            CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWCGROUP,
        };
        for (int i = 0; i < sizeof flags / sizeof *flags; i++) {
            int r = unshare(flags[i]);
            printf("%x: %d %d\n", flags[i], r, errno);
        }
        return 0;
    }
    """)


@pytest.mark.spec("SPACE-3")
def test_unshare_of_memory() -> None:
    """A process that shares its memory gets a copy; Linux does not know how to. Signal actions
    can't be taken apart."""
    status, out = by_guest(
        build(
            PART
            + r"""
    static volatile int n;
    static int apart(void *arg) {
        n = 1;
        int r = unshare(CLONE_VM);
        n = 2;
        return r || n != 2;
    }
    static int tied(void *arg) { return unshare(CLONE_VM) == -1 ? errno : 0; }
    int main(void) {
        run(apart, CLONE_VM);
        printf("%d\n", n);
        run(tied, CLONE_VM | CLONE_SIGHAND);
        printf("%d\n", unshare(CLONE_VM | CLONE_SIGHAND));
        return 0;
    }
    """
        )
    )
    assert (status, out) == (0, b"[0] 1\n[1600] 0\n")


def test_a_word_is_stored_whole_or_not_at_all() -> None:
    """The ids that clone and exit store, at the end of what is mapped and across pages."""
    same(
        PART
        + r"""
    static unsigned char *m;
    static int leave(void *arg) { return 0; }
    static int set(void *at) { syscall(SYS_set_tid_address, at); return 0; }
    static void word(const char *what, unsigned char *p) {
        printf("%s: %x %x %x %x\n", what, p[-1] == 0xaa, p[0] == 0xaa, p[1] == 0xaa,
               p + 2 == m + 8192 ? 9 : p[2] == 0xaa);
    }
    int main(void) {
        m = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(m + 8192, 4096);
        for (int at = 4094; at <= 8190; at += 4096) {
            unsigned char *p = m + at;
            int st;
            memset(m, 0xaa, 8192);
            clone(leave, stack + sizeof stack, CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD, 0, 0, 0,
                  p);
            wait(&st), word("clear", p), memset(m, 0xaa, 8192);
            run(set, CLONE_VM), word("nothing asked for", p);
            clone(set, stack + sizeof stack, CLONE_VM | SIGCHLD, p);
            wait(&st), word("set_tid_address", p), memset(m, 0xaa, 8192);
            clone(leave, stack + sizeof stack, CLONE_VM | CLONE_PARENT_SETTID | SIGCHLD, 0, p);
            wait(&st), word("parent", p), memset(m, 0xaa, 8192);
            clone(leave, stack + sizeof stack, CLONE_VM | CLONE_CHILD_SETTID | SIGCHLD, 0, 0, 0, p);
            wait(&st), word("child", p), memset(m, 0xaa, 8192);
            if (!fork()) _exit(7);
            errno = 0, printf("%d ", wait((void *)p) > 0), word("status", p);
        }
        return 0;
    }
    """
    )


def test_a_thread_is_refused_and_counted() -> None:
    program = build(r"""
int main() {
    long flags[] = {CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, CLONE_VM | CLONE_THREAD};
    for (int i = 0; i < 2; i++) {
        syscall(SYS_clone, flags[i], 0, 0, 0, 0); printf("%d\n", errno);
    }
    return 0;
}""")  # fmt: skip
    with Machine(mem="64M", check=True) as m:
        p = m.spawn([program], stdin=b"", stdout=PIPE)
        m.run()
        assert p.stdout == b"%d\n%d\n" % (ENOSYS, EINVAL)
        assert gather(m)["refused_syscalls"] == {"clone(CLONE_THREAD)": 1}


def test_clone3_with_a_number() -> None:
    same(r"""
#define T(e) do { errno = 0; long r_ = (long)(e); \
    printf("%s = %ld %d\n", #e, r_ < 0 ? -1L : r_, r_ < 0 ? errno : 0); fflush(stdout); } while (0)
struct args { unsigned long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size,
    tls, set_tid, set_tid_size, cgroup; };
static int pids[40], got;
static long make(unsigned long set, unsigned long n, int size) {
    struct args a = {CLONE_PARENT_SETTID, 0, 0, (long)&got, SIGCHLD, 0, 0, 0, set, n};
    long pid = syscall(SYS_clone3, &a, size);
    if (!pid) _exit(0);
    if (pid > 0) waitpid(pid, 0, 0);
    return pid;
}
int main() {
    unsigned long at = (long)pids;
    /* A number that is free on the host, too. */
    int free = 31234; while (!kill(free, 0)) free++;
    pids[0] = free; pids[1] = 5; long r = make(at, 1, 88); T(r == free); T(got == free);
    r = make(at, 1, 80); T(r == free);
    T(make(at, 1, 72)); T(make(at, 0, 88)); T(make(0, 1, 88)); T(make(8, 1, 88));
    T(make(at, 33, 88)); T(make(at, 2, 88)); pids[0] = getpid(); T(make(at, 1, 88)); pids[0] = 1;
    T(make(at, 1, 88)); pids[0] = -1; T(make(at, 1, 88)); pids[0] = 1 << 30; T(make(at, 1, 88));
    pids[0] = free; setuid(1); T(make(at, 1, 88)); T(make(0, 0, 88) > 0);
    return 0;
}""")  # fmt: skip
