"""The files of /proc/PID about memory: whose memory it is, and what is left of it after the end."""

from __future__ import annotations

from tests.kern.guest_util import CHILD, same


def test_they_are_about_what_was_there_when_they_were_opened() -> None:
    # fs/proc/base.c: proc_mem_open, mem_rw, environ_read, auxv_read; fs/proc/task_mmu.c.
    out = same(
        CHILD + r"""
        static const char *names[] = {"mem", "pagemap", "maps", "smaps", "smaps_rollup", "environ",
                                      "auxv", "cmdline", "statm", "clear_refs", 0};
        static int fds[12];
        static char word[] = "a word";
        static void look(const char *when, int pid)
        {
            printf("-- %s\n", when);
            for (int i = 0; names[i]; i++) {
                char path[40], b[8];
                int fd = fds[i];
                sprintf(path, "/proc/%d/%s", pid, names[i]);
                off_t at = i == 0 ? (long)word : i == 1 ? (long)word / 4096 * 8 : 0;
                if (pid) fd = open(path, i == 9 ? O_WRONLY : i ? O_RDONLY : O_RDWR);
                errno = fd < 0 ? errno : 0;
                long n = i == 9 ? pwrite(fd, "1", 1, 0) : pread(fd, b, 8, at);
                printf("%s %d %ld %d\n", names[i], fd < 0, n > 0 ? 1 : n, errno);
                if (i == 0) {
                    errno = 0;
                    n = pwrite(fd, "a", 1, at);
                    printf("  written %ld %d\n", n, errno);
                }
                if (pid && fd >= 0) close(fd);
            }
        }
        static void have(int pid)
        {
            for (int i = 0; names[i]; i++) {
                char path[40];
                sprintf(path, "/proc/%d/%s", pid, names[i]);
                fds[i] = open(path, i == 9 ? O_WRONLY : i ? O_RDONLY : O_RDWR);
            }
        }
        int main(int argc, char **argv)
        {
            int pid, in[2], out[2];
            char c;
            if (argc > 1) { write(1, "", 1); pause(); }
            pid = fork();
            if (!pid) { pause(); _exit(0); }
            have(pid);
            look("alive", 0);
            kill(pid, SIGKILL);
            waitid(P_PID, pid, &(siginfo_t){0}, WEXITED | WNOWAIT);
            look("dead", 0);
            look("opened when it was dead", pid);
            waitpid(pid, 0, 0);
            look("reaped", 0);
            look("opened when it was reaped", pid);
            for (int i = 0; names[i]; i++) close(fds[i]);
            pipe(in); pipe(out);
            pid = fork();
            if (!pid) {
                dup2(out[1], 1);
                read(in[0], &c, 1);
                execl("/proc/self/exe", "x", "y", (char *)0);
            }
            have(pid);
            write(in[1], "", 1);
            read(out[0], &c, 1);
            look("something else", 0);
            kill(pid, SIGKILL);
            /* whoever shares it goes on */
            printf("== shared\n");
            pid = syscall(SYS_clone, 0x4100 /* CLONE_VM | CLONE_VFORK */, 0, 0, 0, 0);
            if (!pid) { have(getpid()); syscall(SYS_exit, 0); }
            look("its sharer is dead", 0);
            return 0;
        }
        """
    )  # fmt: skip
    assert b"-- dead\nmem 0 0 0\n  written 0 0\npagemap 0 0 0\nmaps 0 0 0\n" in out
