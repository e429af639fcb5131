"""pidfds: processes as files, on the host and in the machine."""

from __future__ import annotations

from tests.kern.guest_util import same

PIDFD = r"""
    #include <poll.h>
    #include <sys/epoll.h>
    #define E(x) (errno = 0, printf("%s %d\n", #x, (long)(x) < 0 ? -errno : 0), fflush(stdout))
    #define OPEN(pid, flags) syscall(SYS_pidfd_open, pid, flags)
    #define SEND(fd, sig, info, flags) syscall(SYS_pidfd_send_signal, fd, sig, info, flags)
    #define GET(fd, target, flags) syscall(SYS_pidfd_getfd, fd, target, flags)
    #define WAIT(fd, options) waitid(3, fd, &si, options)
    static siginfo_t si;
    static void *bad = (void *)-1;
    static void show(int s, siginfo_t *i, void *c) {
        printf("got %d code %d mine %d value %d\n", s, i->si_code, i->si_pid == getpid(),
               i->si_code < 0 ? i->si_value.sival_int : 0);
    }
    static int child(void) {
        pid_t p = fork();
        if (!p) for (;;) pause();
        return p;
    }
    """


def test_pidfd_signals_and_waits() -> None:
    same(
        PIDFD
        + r"""
    int main(void) {
        E(OPEN(-1, 0));
        E(OPEN(0, 0));
        E(OPEN(9999999, 0));
        E(OPEN(getpid(), 1));
        int fd = OPEN(getpid(), 0);
        printf("%d %d\n", fcntl(fd, F_GETFD), fcntl(fd, F_GETFL) & O_ACCMODE);
        E(read(fd, &si, 8));
        struct sigaction a = {.sa_sigaction = show, .sa_flags = SA_SIGINFO};
        sigaction(SIGUSR1, &a, 0);
        E(SEND(fd, SIGUSR1, 0, 0));
        E(SEND(fd, 0, 0, 0));
        E(SEND(fd, 65, 0, 0));
        E(SEND(fd, SIGUSR1, 0, 99));
        E(SEND(-1, SIGUSR1, 0, 0));
        E(SEND(0, SIGUSR1, 0, 0));
        E(SEND(fd, SIGUSR1, bad, 0));
        si.si_code = SI_QUEUE, si.si_value.sival_int = 7, si.si_signo = SIGUSR2;
        E(SEND(fd, SIGUSR1, &si, 0));
        si.si_signo = SIGUSR1;
        E(SEND(fd, SIGUSR1, &si, 0));
        pid_t p = child();
        fd = OPEN(p, O_NONBLOCK);
        si.si_code = SI_USER;
        E(SEND(fd, SIGUSR1, &si, 0));
        struct pollfd pf = {fd, POLLIN};
        printf("poll %d\n", poll(&pf, 1, 0));
        E(WAIT(fd, WEXITED | WNOHANG));
        E(WAIT(fd, WEXITED));
        int ep = epoll_create1(0);
        struct epoll_event ev = {EPOLLIN};
        E(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
        E(SEND(fd, SIGTERM, 0, 0));
        printf("epoll %d\n", epoll_wait(ep, &ev, 1, -1));
        printf("poll %d\n", poll(&pf, 1, -1));
        E(SEND(fd, SIGTERM, 0, 0));
        E(GET(fd, 0, 0));
        E(WAIT(fd, WEXITED));
        printf("%d %d %d\n", si.si_pid == p, si.si_code, si.si_status);
        E(WAIT(fd, WEXITED));
        E(SEND(fd, 0, 0, 0));
        printf("poll %d\n", poll(&pf, 1, 0));
        E(WAIT(-1, WEXITED));
        E(WAIT(0, WEXITED));
        E(WAIT(OPEN(getpid(), 0), WEXITED));
        return 0;
    }
    """
    )


def test_directories_of_proc_take_signals() -> None:
    same(
        PIDFD
        + r"""
    int main(void) {
        char name[64];
        pid_t p = child();
        snprintf(name, sizeof name, "/proc/%d", p);
        int fd = open(name, O_RDONLY | O_DIRECTORY), path = open(name, O_PATH);
        snprintf(name, sizeof name, "/proc/%d/task/%d", p, p);
        int task = open(name, O_RDONLY | O_DIRECTORY), proc = open("/proc", O_RDONLY);
        E(SEND(fd, 0, 0, 0));
        E(SEND(task, 0, 0, 0));
        E(SEND(path, 0, 0, 0));
        E(SEND(proc, 0, 0, 0));
        E(GET(fd, 0, 0));
        E(WAIT(fd, WEXITED));
        E(SEND(fd, SIGTERM, 0, 0));
        E(waitid(P_PID, p, &si, WEXITED));
        printf("%d %d\n", si.si_code, si.si_status);
        E(SEND(fd, 0, 0, 0));
        return 0;
    }
    """
    )


def test_pidfd_getfd() -> None:
    same(
        PIDFD
        + r"""
    int main(void) {
        int pipefd[2];
        pipe(pipefd);
        write(pipefd[1], "x", 1);
        pid_t p = child();
        int fd = OPEN(p, 0);
        close(pipefd[0]);
        E(GET(fd, 99, 0));
        E(GET(fd, 0, 1));
        E(GET(-1, 0, 0));
        E(GET(0, 0, 0));
        int mine = GET(fd, pipefd[0], 0);
        char c;
        printf("%zd %d\n", read(mine, &c, 1), fcntl(mine, F_GETFD));
        fflush(stdout);
        if (!fork()) {
            setuid(1234);
            E(GET(fd, 0, 0));
            E(SEND(fd, SIGTERM, 0, 0));
            exit(0);
        }
        wait(0);
        kill(p, SIGKILL);
        return 0;
    }
    """
    )


def test_clone_makes_pidfds() -> None:
    """The number is stored after the child's memory has been copied, and the child's table has no
    such descriptor; what does not go together is refused before anything is made."""
    same(
        PIDFD
        + r"""
    static struct { uint64_t flags, pidfd, child_tid, parent_tid, signal, stack, size, rest[4]; } c;
    static int fd = -1;
    #define CLONE3 syscall(SYS_clone3, &c, sizeof c)
    int main(void) {
        pid_t p = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, &fd, 0, 0);
        if (!p) exit(fd == -1 ? 5 : 6);
        printf("%d %d\n", fd >= 0, fcntl(fd, F_GETFD));
        E(WAIT(fd, WEXITED));
        printf("%d %d\n", si.si_code, si.si_status);
        E(syscall(SYS_clone, CLONE_PIDFD | CLONE_PARENT_SETTID | SIGCHLD, 0, &fd, 0, 0));
        E(syscall(SYS_clone, CLONE_PIDFD | CLONE_DETACHED | SIGCHLD, 0, &fd, 0, 0));
        E(syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, bad, 0, 0));
        printf("next %d\n", open("/", O_RDONLY));
        c.flags = CLONE_PIDFD, c.pidfd = (uint64_t)&fd, c.signal = SIGCHLD;
        if (!CLONE3) exit(7);
        E(WAIT(fd, WEXITED));
        printf("%d %d\n", si.si_code, si.si_status);
        c.pidfd = 1, E(CLONE3);
        c.flags = CLONE_DETACHED, E(CLONE3);
        c.flags = CLONE_PARENT, E(CLONE3);
        c.flags = 0, c.signal = 65, E(CLONE3);
        // clone itself takes any signal, and sends none that does not exist
        p = syscall(SYS_clone, 200, 0, 0, 0, 0);
        if (!p) exit(8);
        int st;
        E(waitpid(p, &st, 0));
        printf("%d %x\n", waitpid(p, &st, __WALL) == p, st);
        return 0;
    }
    """
    )


OTHERS = r"""
#include <sys/epoll.h>
#include <sys/uio.h>
#define P 4096L
#define R(call) do { errno = 0; long r_ = (call); \
    printf("%d: %ld %d\n", __LINE__, r_, r_ < 0 ? errno : 0); } while (0)
#define ADVISE(fd, v, n, advice, flags) R(syscall(440, fd, v, n, advice, flags))
#define KCMP(p, q, kind, a, b) syscall(SYS_kcmp, p, q, kind, a, b)
"""


def test_advice_for_another_process() -> None:
    same(OTHERS + r"""
int main() {
    setvbuf(stdout, 0, _IONBF, 0); pid_t child;
    char *m = mmap(0, 8 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(m, 1, 8 * P); munmap(m + 5 * P, P); int me = syscall(434, getpid(), 0), other;
    struct iovec v[3] = {{m, 2 * P}, {m + 3 * P, P}, {m + 4 * P, 2 * P}};
    ADVISE(me, v, 2, MADV_WILLNEED, 0); ADVISE(me, v, 3, MADV_WILLNEED, 0);
    ADVISE(me, v, 1, MADV_DONTNEED, 0); printf("%d %d\n", m[0], m[3 * P]);
    ADVISE(me, v, 1, MADV_COLD, 1); ADVISE(me, v, 1, 99, 0); ADVISE(1, v, 1, MADV_COLD, 0);
    ADVISE(99, v, 1, MADV_COLD, 0); ADVISE(me, v, 1025, MADV_COLD, 0); ADVISE(me, v, 0, 20, 0);
    ADVISE(me, 8, 1, MADV_COLD, 0); v[0].iov_base = m + 1; ADVISE(me, v, 1, MADV_COLD, 0);
    v[0] = (struct iovec){m, 100}; ADVISE(me, v, 1, MADV_COLD, 0);
    v[1] = (struct iovec){m + 5 * P, P}; ADVISE(me, v, 2, MADV_COLD, 0);
    v[0] = (struct iovec){m, P}; if (!(child = fork())) pause();
    other = syscall(434, child, 0); if (geteuid()) return 0;
    for (int advice = 0; advice < 25; advice++) ADVISE(other, v, 1, advice, 0);
    if (!fork()) { setresuid(77, 77, 77); ADVISE(other, v, 1, MADV_COLD, 0); _exit(0); }
    wait(0); kill(child, SIGKILL); waitpid(child, 0, 0); ADVISE(other, v, 1, MADV_COLD, 0);
    return 0;
}""")  # fmt: skip


def test_whether_processes_undo_together() -> None:
    same(OTHERS + r"""
#include <sys/sem.h>
static char stack[65536]; static pid_t me;
static void take(void) {
    int id = semget(IPC_PRIVATE, 1, 0600); struct sembuf up = {0, 1, SEM_UNDO};
    semop(id, &up, 1); semctl(id, 0, IPC_RMID);
}
static int compare(void *arg) {
    R(!KCMP(me, getpid(), 6, 0, 0)); take(); R(!KCMP(me, getpid(), 6, 0, 0)); return 0;
}
int main() {
    setvbuf(stdout, 0, _IONBF, 0); me = getpid();
    for (int i = 0; i < 2; i++) {
        clone(compare, stack + sizeof stack, SIGCHLD, 0); while (wait(0) < 0);
        clone(compare, stack + sizeof stack, CLONE_SYSVSEM | SIGCHLD, 0); while (wait(0) < 0);
        take();
    }
    return 0;
}""")  # fmt: skip


def test_what_processes_share() -> None:
    same(OTHERS + r"""
static char stack[65536]; static int p[2]; static pid_t me;
static int compare(void *arg) {
    for (int kind = 1; kind < 5; kind++) R(!KCMP(me, getpid(), kind, 0, 0));
    return 0;
}
int main() {
    setvbuf(stdout, 0, _IONBF, 0); pipe(p); me = getpid(); pid_t child = fork();
    if (!child) pause();
    for (int kind = 1; kind < 7; kind++) {
        R(!KCMP(me, child, kind, 0, 0)); R(KCMP(child, child, kind, 0, 0));
    }
    R(KCMP(me, child, 0, p[0], p[0])); R(KCMP(me, me, 0, p[0], dup(p[0])));
    R(KCMP(me, child, 0, p[0], p[1]) > 0); R(KCMP(me, child, 0, p[0], 99));
    R(KCMP(me, 9999999, 0, 0, 0)); R(KCMP(me, me, 8, 0, 0)); R(KCMP(me, me, -1, 0, 0));
    R(KCMP(me, me, 0, 0, p[0]) + KCMP(me, me, 0, p[0], 0));
    int shares[] = {CLONE_VM, CLONE_VM | CLONE_FILES, CLONE_VM | CLONE_SIGHAND, CLONE_FS, 0};
    for (int i = 0; i < 5; i++) {
        clone(compare, stack + sizeof stack, shares[i] | SIGCHLD, 0); while (wait(0) < 0);
    }
    int ep = epoll_create1(0); struct epoll_event ev = {EPOLLIN};
    epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev); unsigned slot[3] = {ep, p[0], 0};
    R(KCMP(me, me, 7, p[0], slot)); R(KCMP(me, me, 7, p[1], slot) > 0); slot[2] = 1;
    R(KCMP(me, me, 7, p[0], slot)); slot[2] = 0, slot[1] = 77; R(KCMP(me, me, 7, p[0], slot));
    slot[0] = p[0]; R(KCMP(me, me, 7, p[0], slot)); slot[0] = 99; R(KCMP(me, me, 7, 0, slot));
    R(KCMP(me, me, 7, p[0], 8)); if (geteuid()) return 0;
    if (!fork()) { setresuid(77, 77, 77); R(KCMP(getpid(), me, 1, 0, 0)); _exit(0); }
    wait(0); kill(child, SIGKILL); waitpid(child, 0, 0); R(KCMP(me, child, 1, 0, 0)); return 0;
}""")  # fmt: skip
