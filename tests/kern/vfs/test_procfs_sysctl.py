"""/proc/sys: what can be written there takes effect; what can't be is not opened to be written."""

from __future__ import annotations

import os

import pytest

from dfvm import PIPE, Machine
from dfvm.vm.vm_page import vm_page_rollup
from tests.kern.guest_util import CHILD, build, by_guest, same

# The settings are the machine's, and only root's: the host's are left alone.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may write to /proc/sys")

_SYS = r"""
static long get(const char *name)
{
    char path[80], text[80] = "";
    sprintf(path, "/proc/sys/%s", name);
    int fd = open(path, O_RDONLY);
    read(fd, text, 79);
    close(fd);
    return atol(text);
}
static int put(const char *name, const char *text)
{
    char path[80];
    sprintf(path, "/proc/sys/%s", name);
    int fd = open(path, O_WRONLY);
    if (fd < 0) return -errno;
    int n = write(fd, text, strlen(text)) < 0 ? -errno : 0;
    close(fd);
    return n;
}
static long mem(const char *name)
{
    char line[100];
    long n = -1;
    FILE *f = fopen("/proc/meminfo", "r");
    while (fgets(line, 100, f)) if (!strncmp(line, name, strlen(name)))
        n = atol(line + strlen(name) + 1);
    fclose(f);
    return n;
}
#define E(x) ((long)(x) == -1 ? errno : 0)
#define KB(n) ((unsigned long)(n) << 10)
static void *take(unsigned long size, int prot, int flags)
{
    return mmap(0, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}
#define RW (PROT_READ | PROT_WRITE)
"""


def _check(source: str, *args: str) -> None:
    """Run a program whose main() says by 0 that all is well, else by the number of a line."""
    status, out = by_guest(build(_SYS + CHILD + source), *args)
    assert status == 0, out.decode()


_IS = r"""
#define IS(x, n) do { long is = (x); if (is != (n)) { \
    printf("%s is %ld, not %ld\n", #x, is, (long)(n)); bad = 1; } } while (0)
static int bad;
"""


def test_nothing_claims_to_be_writable_that_is_not() -> None:
    """All of /proc/sys: whatever root can open to write takes what is read from it."""
    program = build(r"""
        #include <ftw.h>
        static int bad, n;
        static int look(const char *path, const struct stat *st, int type)
        {
            char text[400];
            /* (those are for who has a capability, and say -1, which can't be written) */
            if (type != FTW_F || strstr(path, "_next_id")) return 0;
            int fd = open(path, O_WRONLY);
            if (!(st->st_mode & 0222) != (fd < 0 && errno == EACCES)) {
                printf("%s is %o and opens with %d\n", path, st->st_mode, errno);
                bad = 1;
            }
            if (fd < 0 || !(st->st_mode & 0444)) return 0;
            int in = open(path, O_RDONLY), len = read(in, text, sizeof text);
            if (write(fd, text, len) != len) {
                printf("%s: %m\n", path);
                bad = 1;
            }
            n++;
            close(in);
            close(fd);
            return 0;
        }
        int main(void) { ftw("/proc/sys", look, 9); printf("%d\n", n); return bad; }
    """)
    status, out = by_guest(program)
    assert status == 0, out.decode()
    assert int(out) > 30


def test_overcommit_guess() -> None:
    _check(
        _IS + r"""
        int main(void)
        {
            unsigned long total = KB(mem("MemTotal"));
            IS(get("vm/overcommit_memory"), 0);
            IS(E(take(total / 2, RW, 0)), 0);
            IS(E(take(total - (1 << 20), RW, 0)), 0);   /* each by itself could be had */
            IS(E(take(2 * total, RW, 0)), ENOMEM);
            IS(E(take(2 * total, RW, MAP_NORESERVE)), 0);
            IS(E(take(2 * total, PROT_READ, 0)), 0);
            IS(E(sbrk(2 * total)), ENOMEM);
            return bad;
        }
        """
    )  # fmt: skip


def test_overcommit_always() -> None:
    _check(
        _IS + r"""
        int main(void)
        {
            unsigned long total = KB(mem("MemTotal"));
            IS(put("vm/overcommit_memory", "1"), 0);
            IS(get("vm/overcommit_memory"), 1);
            IS(E(take(20 * total, RW, 0)), 0);
            char *p = take(20 * total, PROT_NONE, 0);
            IS(E(mprotect(p, 20 * total, RW)), 0);
            IS(E(sbrk(20 * total)), 0);
            return bad;
        }
        """
    )  # fmt: skip


def test_overcommit_never() -> None:
    # mm/util.c, __vm_enough_memory
    _check(
        _IS + r"""
        static unsigned long left(void)
        {
            return KB(mem("CommitLimit") - mem("Committed_AS"));
        }
        static unsigned long half;
        static void forks(void)
        {
            IS(E(take(left() / 2, RW, 0)), 0);
            half = left();
            errno = 0;
            pid_t pid = fork();  /* all that is promised would be promised twice */
            if (!pid) _exit(0);
            IS(pid, -1);
            IS(errno, ENOMEM);
            IS(left(), half);
            if (bad) _exit(1);
        }
        int main(void)
        {
            char text[30];
            IS(put("vm/overcommit_memory", "2"), 0);
            IS(put("vm/overcommit_memory", "3"), -EINVAL);
            IS(mem("CommitLimit"), mem("MemTotal") / 2 & -4);
            long before = mem("Committed_AS");
            char *p = take(8 << 20, RW, MAP_NORESERVE);   /* which does not count then */
            IS(mem("Committed_AS") - before, 8 << 10);
            munmap(p, 8 << 20);
            IS(mem("Committed_AS"), before);
            p = mmap(0, 4 << 20, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
            IS(mem("Committed_AS") - before, 4 << 10);
            munmap(p, 4 << 20);
            IS(mem("Committed_AS"), before);
            p = take(2 << 20, PROT_READ, 0);
            IS(mem("Committed_AS"), before);
            mprotect(p, 1 << 20, RW);
            IS(mem("Committed_AS") - before, 1 << 10);
            p[0] = 1;
            mprotect(p, 1 << 20, PROT_READ);              /* once written it stays promised */
            IS(mem("Committed_AS") - before, 1 << 10);
            munmap(p, 2 << 20);
            p = take(2 << 20, RW, 0);
            mprotect(p, 1 << 20, PROT_READ);
            (void)*(volatile char *)p;
            mprotect(p + (1 << 20), 1 << 20, PROT_READ);  /* nobody has written to it */
            IS(mem("Committed_AS"), before);
            munmap(p, 2 << 20);
            IS(E(take(left() + 4096, RW, 0)), ENOMEM);
            IS(E(take(2 * left(), PROT_NONE, 0)), 0);
            p = take(2 * left(), PROT_NONE, 0);
            IS(E(mprotect(p, 2 * left(), RW)), ENOMEM);
            IS(E(sbrk(left() + 4096)), ENOMEM);
            IS(E(take(left() / 2, RW, 0)), 0);
            IS(E(take(left() - (4 << 20), RW, 0)), 0);
            IS(E(take(left() + 4096, RW, 0)), ENOMEM);
            sprintf(text, "%ld", mem("CommitLimit") + 8192);
            IS(put("vm/overcommit_kbytes", text), 0);
            IS(get("vm/overcommit_ratio"), 0);
            IS(mem("CommitLimit"), atol(text));
            IS(E(p = take(6 << 20, RW, 0)), 0);
            /* in place of what was promised there is nothing more to promise */
            IS(E(mmap(p, 6 << 20, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)), 0);
            IS(put("vm/overcommit_ratio", "100"), 0);
            IS(get("vm/overcommit_kbytes"), 0);
            IS(mem("CommitLimit"), mem("MemTotal"));
            if (!bad && !(bad = child(0 ? forks : forks))) return 0;
            return 1;
        }
        """.replace("0 ? forks : forks", "forks")
    )  # fmt: skip


def test_some_memory_is_roots() -> None:
    _check(
        _IS + r"""
        static unsigned long left(void)
        {
            return KB(mem("CommitLimit") - mem("Committed_AS"));
        }
        int main(void)
        {
            IS(put("vm/overcommit_memory", "2"), 0);
            IS(put("vm/overcommit_ratio", "80"), 0);
            IS(put("vm/user_reserve_kbytes", "0"), 0);
            IS(put("vm/admin_reserve_kbytes", "4096"), 0);
            void *p = take(left() - (1 << 20), RW, 0);
            IS(E(p), 0);
            munmap(p, left());
            munmap(p, KB(mem("CommitLimit")));
            IS(setuid(1), 0);
            IS(E(take(left() - (1 << 20), RW, 0)), ENOMEM);
            IS(E(take(left() - (5 << 20), RW, 0)), 0);
            return bad;
        }
        """
    )  # fmt: skip


def test_min_free_kbytes_is_what_the_pagers_go_by() -> None:
    program = build(
        _SYS + r"""
        int main(int argc, char **argv)
        {
            char text[20];
            sprintf(text, "%ld", get("vm/min_free_kbytes") * 10);
            if (argc == 1) return 0;
            return put("vm/min_free_kbytes", text) || get("vm/min_free_kbytes") != atol(text);
        }
        """
    )  # fmt: skip
    marks = []
    for args in ([], ["more"]):
        with Machine(mem="64M", check=True) as m:
            p = m.spawn([str(program), *args], stdout=PIPE)
            m.run(timeout=60)
            m.check()
            assert p.exit_status == 0
            vm_page_rollup(m.kernel.vm)
            s = m.kernel.vm.vmstats
            marks.append(s.v_free_min)
            own = m.kernel.vm.gd.gd_vmstats
            assert s.v_free_reserved < s.v_free_min < s.v_paging_start == own.v_paging_start
    assert marks[1] == 10 * marks[0]


def test_absurd_marks_do_no_harm() -> None:
    """As much as can be wished for, or nothing: programs run all the same."""
    _check(
        _IS + r"""
        static void use(void)
        {
            char *p = take(24 << 20, RW, 0);
            for (int i = 0; i < 24 << 20; i += 4096) p[i] = 1;
        }
        int main(void)
        {
            IS(put("vm/min_free_kbytes", "2000000000"), 0);
            IS(child(use), 0);
            IS(put("vm/min_free_kbytes", "0"), 0);
            IS(child(use), 0);
            IS(put("vm/min_free_kbytes", "-1"), -EINVAL);
            return bad;
        }
        """
    )  # fmt: skip


def test_limits_of_open_files() -> None:
    _check(
        _IS + r"""
        #include <sys/inotify.h>
        static int fds[300], n;
        static int instances(void)
        {
            int error;
            errno = 0;
            for (n = 0; n < 300 && (fds[n] = inotify_init1(0)) >= 0; n++) ;
            error = errno;
            for (int i = 0; i < n; i++) close(fds[i]);
            return error;
        }
        int main(void)
        {
            IS(get("fs/inotify/max_user_instances"), 128);
            IS(instances(), EMFILE);
            IS(n, 128);
            IS(put("fs/inotify/max_user_instances", "3"), 0);
            IS(instances(), EMFILE);
            IS(n, 3);
            IS(put("fs/inotify/max_user_instances", "300"), 0);
            IS(instances(), 0);

            int in = inotify_init1(IN_NONBLOCK);
            IS(put("fs/inotify/max_user_watches", "1"), 0);
            IS(E(inotify_add_watch(in, "/dev", IN_OPEN)), 0);
            IS(E(inotify_add_watch(in, "/tmp", IN_OPEN)), ENOSPC);
            close(in);
            IS(put("fs/inotify/max_queued_events", "2"), 0);
            in = inotify_init1(IN_NONBLOCK);
            inotify_add_watch(in, "/dev/null", IN_OPEN | IN_CLOSE);
            for (int i = 0; i < 9; i++) close(open("/dev/null", O_RDONLY));
            struct inotify_event e[9];
            IS(read(in, e, sizeof e), 3 * sizeof *e);
            IS(e[2].mask, IN_Q_OVERFLOW);

            struct rlimit l = {200, 200};
            IS(put("fs/nr_open", "190"), 0);
            IS(get("fs/nr_open"), 128);
            IS(put("fs/nr_open", "63"), -EINVAL);
            IS(E(setrlimit(RLIMIT_NOFILE, &l)), EPERM);
            IS(E(dup2(0, 128)), EBADF);
            IS(dup2(0, 127), 127);
            IS(E(fcntl(0, F_DUPFD, 128)), EMFILE);

            IS(put("fs/pipe-max-size", "5000"), 0);
            IS(get("fs/pipe-max-size"), 8192);
            IS(put("fs/pipe-max-size", "0"), -EINVAL);
            int p[2];
            pipe(p);
            IS(fcntl(p[0], F_GETPIPE_SZ), 65536);
            IS(fcntl(p[0], F_SETPIPE_SZ, 4 << 20), 4 << 20);
            close(p[0]);
            IS(put("fs/dir-notify-enable", "0"), 0);
            IS(E(fcntl(open("/dev", O_RDONLY), F_NOTIFY, 1)), EINVAL);
            IS(put("fs/leases-enable", "0"), 0);
            IS(E(fcntl(memfd_create("l", 0), F_SETLEASE, F_RDLCK)), EINVAL);

            char text[20];
            sprintf(text, "%ld", get("fs/file-nr"));
            IS(put("fs/file-max", text), 0);
            IS(E(open("/dev/null", O_RDONLY)), 0);   /* root */
            IS(setuid(1), 0);
            IS(E(open("/dev/null", O_RDONLY)), ENFILE);
            close(9); close(p[1]); close(in); close(127);
            pipe(p);
            IS(fcntl(p[0], F_GETPIPE_SZ), 8192);
            IS(E(fcntl(p[0], F_SETPIPE_SZ, 8193)), EPERM);
            IS(fcntl(p[0], F_SETPIPE_SZ, 4096), 4096);
            return bad;
        }
        """
    )  # fmt: skip


def test_limits_of_processes() -> None:
    _check(
        _IS + r"""
        static int kid(void)
        {
            int pid = fork();
            if (!pid) _exit(0);
            int error = errno;
            if (pid < 0) return -error;
            waitpid(pid, 0, 0);
            return pid;
        }
        int main(void)
        {
            IS(get("kernel/pid_max"), 100000);
            IS(put("kernel/ns_last_pid", "4999"), 0);
            IS(kid(), 5000);
            IS(get("kernel/ns_last_pid"), 5000);
            IS(put("kernel/pid_max", "5001"), 0);
            IS(kid(), 100);
            IS(put("kernel/ns_last_pid", "5001"), -EINVAL);
            IS(put("kernel/pid_max", "300"), -EINVAL);
            IS(put("kernel/threads-max", "19"), -EINVAL);
            IS(put("kernel/threads-max", "20"), 0);
            int pids[30], n = 0;
            while (n < 30 && (pids[n] = fork())) {
                if (pids[n] < 0) break;
                n++;
            }
            if (n < 30 && !pids[n]) { pause(); _exit(0); }
            IS(errno, EAGAIN);
            IS(n > 10 && n < 20, 1);
            while (n--) kill(pids[n], SIGKILL), waitpid(pids[n], 0, 0);
            IS(kid() > 0, 1);
            IS(put("vm/mmap_min_addr", "4096"), 0);
            IS(setuid(1), 0);
            IS(put("kernel/ns_last_pid", "4999"), -EPERM);
            IS(put("kernel/pid_max", "5000"), -EACCES);
            IS(E(mmap((void *)4096, 4096, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)), 0);
            IS(E(mmap(0, 4096, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)), EPERM);
            return bad;
        }
        """
    )  # fmt: skip


def test_when_no_number_is_left_there_is_no_process() -> None:
    program = build(
        _SYS + _IS + r"""
        int main(void)
        {
            IS(put("kernel/pid_max", "301"), 0);
            int count = 0, some[400];   /* all numbers there are */
            while (count < 400 && (some[count] = fork())) {
                if (some[count] < 0) break;
                setpgid(some[count], some[count]);
                count++;
            }
            if (count < 400 && !some[count]) { pause(); _exit(0); }
            IS(errno, EAGAIN);
            IS(count > 180 && count < 305, 1);
            for (int i = 0; i < count; i++) kill(some[i], SIGKILL), waitpid(some[i], 0, 0);
            some[0] = fork();
            if (!some[0]) _exit(0);
            IS(some[0] > 0, 1);
            return bad;
        }
        """
    )  # fmt: skip
    with Machine(mem="64M") as m:  # it would look at all of them after each
        p = m.spawn([str(program)], stdout=PIPE)
        m.run(timeout=60)
        m.check()
        assert p.exit_status == 0, p.stdout


def test_coredump_filter() -> None:
    out = same(
        CHILD + r"""
        static void put(const char *text)
        {
            char now[20] = "";
            int fd = open("/proc/self/coredump_filter", O_RDWR), n, error;
            errno = 0;
            n = *text ? write(fd, text, strlen(text)) : 0;
            error = errno;
            close(fd);
            fd = open("/proc/self/coredump_filter", O_RDONLY);
            read(fd, now, 19);
            close(fd);
            printf("'%s' %d %d %s", text, n, error, now);
            fflush(stdout);
        }
        static void again(void) { put(""); put("1"); execl("/proc/self/exe", "x", "y", (char *)0); }
        int main(int argc, char **argv)
        {
            if (argc > 1) { put(""); return 0; }
            struct stat st;
            stat("/proc/self/coredump_filter", &st);
            printf("%o\n", st.st_mode);
            const char *texts[] = {
                "", "0x7e", "7\n", "7\n\n", " 7", "7 ", "+5", "-1", "0xffffffff", "0x100000000",
                "4294967296", "010", "09", "0", "x", "0x", "0x1ff", "1_0", 0};
            for (int i = 0; texts[i]; i++) put(texts[i]);
            child(again);
            put("");
            return 0;
        }
        """
    )  # fmt: skip
    assert out.startswith(b"100644\n'' 0 0 00000033\n") and b"'' 0 0 00000001\n" in out


def test_attributes_in_sys_are_not_opened_to_be_written() -> None:
    same(r"""
        int main(void)
        {
            const char *name = "/sys/devices/system/cpu/online";
            printf("%d %d\n", open(name, O_RDONLY) < 0, access(name, R_OK));
            printf("%d %d\n", open(name, O_WRONLY), errno);
            printf("%d %d\n", open(name, O_RDWR), errno);
            printf("%d\n", access(name, W_OK));
            return 0;
        }
    """)
