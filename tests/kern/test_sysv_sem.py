"""System V semaphores: the same on the host and in the machine."""

from __future__ import annotations

from tests.kern.guest_util import CHILD, build, by_guest, same

HEAD = (
    CHILD
    + r"""
#include <sys/ipc.h>
#include <sys/sem.h>
static int id;
static struct semid_ds ds;
static unsigned short all[64];
static int got(int r) { return r < 0 ? -errno : r; }
static int op1(int num, int op, int flags)
{
    struct sembuf s = {num, op, flags};
    return got(semop(id, &s, 1));
}
static int val(int n) { return got(semctl(id, n, GETVAL)); }
static void values(const char *what, int n)
{
    printf("%s:", what);
    for (int i = 0; i < n; i++) printf(" %d", val(i));
    printf("\n");
}
/* until so many sleep on a semaphore */
static void asleep(int n, int num, int cmd)
{
    while (semctl(id, num, cmd) < n) sched_yield();
}
#define OPS(...) ({                                  \
    struct sembuf s_[] = {__VA_ARGS__};              \
    got(semop(id, s_, sizeof s_ / sizeof *s_));      \
})
"""
)


def test_values() -> None:
    same(
        HEAD
        + r"""
int main(void)
{
    id = semget(IPC_PRIVATE, 3, 0600);
    semctl(id, 0, IPC_STAT, &ds);
    printf("%lu %d %d\n", ds.sem_nsems, ds.sem_otime != 0, ds.sem_ctime != 0);
    printf("%d\n", op1(0, 5, 0));
    printf("%d\n", op1(0, -2, 0));
    semctl(id, 0, IPC_STAT, &ds);
    printf("%d\n", ds.sem_otime != 0);
    values("start", 3);
    printf("pids %d %d\n", semctl(id, 0, GETPID) == getpid(), semctl(id, 1, GETPID));
    printf("%d %d\n", op1(0, -4, IPC_NOWAIT), op1(0, 0, IPC_NOWAIT));
    printf("%d\n", op1(1, 0, 0));
    printf("both %d\n", OPS({0, -1, 0}, {1, -1, IPC_NOWAIT}));
    values("nothing", 3);
    printf("both %d\n", OPS({0, -1, 0}, {1, 1, 0}, {1, -1, 0}, {2, 7, 0}));
    values("all", 3);
    printf("twice %d\n", OPS({2, -7, 0}, {2, 0, 0}, {2, 3, 0}));
    values("twice", 3);
    printf("order %d\n", OPS({2, 0, IPC_NOWAIT}, {2, -3, 0}));
    printf("range %d\n", op1(2, 32767, 0));
    printf("range %d\n", OPS({2, 32764, 0}, {0, -1, 0}));
    values("range", 3);
    printf("setval %d %d %d\n", got(semctl(id, 1, SETVAL, 12)), got(semctl(id, 1, SETVAL, 32768)),
           got(semctl(id, 1, SETVAL, -1)));
    all[0] = 1; all[1] = 2; all[2] = 3;
    printf("setall %d\n", got(semctl(id, 99, SETALL, all)));
    values("setall", 3);
    all[1] = 40000;
    printf("setall %d %d\n", got(semctl(id, 0, SETALL, all)), got(semctl(id, 0, SETALL, 0)));
    printf("getall %d %d %d %d\n", got(semctl(id, 0, GETALL, all)), all[0], all[1], all[2]);
    printf("getall %d\n", got(semctl(id, 0, GETALL, 8)));
    printf("count %d %d\n", got(semctl(id, 0, GETNCNT)), got(semctl(id, 0, GETZCNT)));
    printf("%d %d\n", got(semctl(id, 3, GETVAL)), got(semctl(id, -1, GETVAL)));
    printf("%d %d\n", got(semctl(id, 3, SETVAL, 0)), got(semctl(id, 3, GETZCNT)));
    printf("%d\n", got(semctl(id, 0, IPC_RMID)));
    printf("%d %d\n", op1(0, 1, 0), got(semctl(id, 0, GETVAL)));
    return 0;
}
"""
    )


def test_errors() -> None:
    same(
        HEAD
        + r"""
static int key;
static void nobody(void)
{
    struct sembuf s = {0, 0, 0};
    if (setresgid(99, 99, 99) || setresuid(99, 99, 99)) printf("not root\n");
    printf("get %d %d %d\n", got(semget(key, 0, 0400)) >= 0, got(semget(key, 0, 0)) >= 0,
           got(semget(key, 0, 0004)) >= 0);
    printf("op %d %d\n", got(semop(id, &s, 1)), op1(0, 1, 0));
    printf("val %d all %d set %d setall %d\n", got(semctl(id, 0, GETVAL)),
           got(semctl(id, 0, GETALL, all)), got(semctl(id, 0, SETVAL, 1)),
           got(semctl(id, 0, SETALL, all)));
    printf("stat %d set %d rm %d any %d\n", got(semctl(id, 0, IPC_STAT, &ds)),
           got(semctl(id, 0, IPC_SET, &ds)), got(semctl(id, 0, IPC_RMID, 0)),
           got(semctl(id & 32767, 0, SEM_STAT, &ds)) >= 0);
}
int main(void)
{
    struct sembuf s[600] = {0};
    key = 0x5e000000 + getpid();
    printf("%d %d %d\n", got(semget(key, 1, 0)), got(semget(key, 0, IPC_CREAT)),
           got(semget(IPC_PRIVATE, 32001, 0)));
    printf("%d\n", got(semget(IPC_PRIVATE, -1, 0)));
    id = semget(key, 4, IPC_CREAT | 0604);
    printf("%d %d %d\n", semget(key, 4, 0) == id, semget(key, 0, 0) == id, got(semget(key, 5, 0)));
    printf("%d\n", got(semget(key, 5, IPC_CREAT | IPC_EXCL)));
    printf("%d\n", got(semop(id, s, 0)));
    printf("%d\n", got(semop(id, s, 500)));
    printf("%d\n", got(semop(id, s, 501)));
    printf("%d %d\n", got(semop(id, 0, 1)), got(semop(id, (void *)8, 501)));
    printf("%d %d\n", got(semop(-1, s, 1)), got(semop(-1, 0, 1)));
    s[0].sem_num = 4;
    printf("%d\n", got(semop(id, s, 1)));
    s[0].sem_num = 65535;
    printf("%d\n", got(semop(id, s, 1)));
    s[0].sem_num = 0;
    struct timespec bad = {0, 1000000000}, neg = {-1, 0}, zero = {0, 0};
    printf("%d %d\n", got(semtimedop(id, s, 1, &bad)), got(semtimedop(id, s, 1, &neg)));
    printf("%d %d\n", got(semtimedop(id, s, 1, &zero)), got(semtimedop(id, s, 1, (void *)8)));
    s[0].sem_op = -1;
    printf("%d %d\n", got(semtimedop(id, s, 1, &zero)), got(semtimedop(id, s, 1, &bad)));
    zero.tv_nsec = 1000000;
    printf("%d\n", got(semtimedop(id, s, 1, &zero)));
    child(nobody);
    semctl(id, 0, IPC_STAT, &ds);
    ds.sem_perm.uid = 99; ds.sem_perm.gid = 7; ds.sem_perm.mode = 07066;
    printf("set %d\n", got(semctl(id, 0, IPC_SET, &ds)));
    semctl(id, 0, IPC_STAT, &ds);
    printf("%d %d %d %d %o\n", ds.sem_perm.uid, ds.sem_perm.gid, ds.sem_perm.cuid,
           ds.sem_perm.cgid, ds.sem_perm.mode);
    child(nobody);
    ds.sem_perm.gid = -1;
    printf("set %d %d\n", got(semctl(id, 0, IPC_SET, &ds)), got(semctl(id, 0, IPC_SET, 0)));
    printf("cmd %d %d\n", got(semctl(id, 0, 77)), got(semctl(id, 0, -1)));
    printf("cmd %d %d %d\n", got(semctl(-1, 0, IPC_RMID)), got(semctl(-1, 0, IPC_INFO, 0)),
           got(semctl(0, 0, IPC_INFO, 0)));
    struct seminfo info;
    semctl(0, 0, IPC_INFO, &info);
    printf("%d %d %d %d %d %d %d %d %d %d\n", info.semmap, info.semmni, info.semmns, info.semmnu,
           info.semmsl, info.semopm, info.semume, info.semusz, info.semvmx, info.semaem);
    printf("%d\n", got(semctl(id, 0, IPC_RMID)));
    printf("%d\n", got(semctl(id, 0, IPC_RMID)));
    return 0;
}
"""
    )


def test_order() -> None:
    """Who came first goes first, as far as he can; what several want is done as a whole."""
    same(
        HEAD
        + r"""
static int fds[2];
static void sleeper(char name, struct sembuf *s, int n, int num, int cmd, int count)
{
    if (!fork()) {
        int r = got(semop(id, s, n));
        char text[20];
        write(fds[1], text, sprintf(text, "%c%d ", name, r));
        _exit(0);
    }
    asleep(count, num, cmd);
}
/* what was heard, in an order that does not depend on who runs first */
static int cmp(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }
static void hear(int n)
{
    char text[200], *words[20], *w;
    int k = 0;
    while (n--) wait(0);
    text[read(fds[0], text, sizeof text - 1)] = 0;
    for (w = strtok(text, " "); w; w = strtok(0, " ")) words[k++] = w;
    qsort(words, k, sizeof *words, cmp);
    for (int i = 0; i < k; i++) printf("%s ", words[i]);
    printf("|");
    values("", 3);
}
#define S(...) ((struct sembuf[]){__VA_ARGS__})
int main(void)
{
    pipe(fds);
    id = semget(IPC_PRIVATE, 3, 0600);
    /* one after the other, on one semaphore */
    sleeper('a', S({0, -2, 0}), 1, 0, GETNCNT, 1);
    sleeper('b', S({0, -1, 0}), 1, 0, GETNCNT, 2);
    printf("%d %d\n", semctl(id, 0, GETNCNT), semctl(id, 0, GETZCNT));
    op1(0, 1, 0); hear(1);      /* b overtakes a, for whom it is not enough */
    op1(0, 2, 0); hear(1);
    /* several semaphores: counted where they were stuck */
    sleeper('c', S({0, -1, 0}, {1, -1, 0}), 2, 0, GETNCNT, 1);
    op1(0, 1, 0);
    printf("%d %d\n", semctl(id, 0, GETNCNT), semctl(id, 1, GETNCNT));
    values("held", 3);
    sleeper('d', S({2, 0, 0}, {1, -1, 0}, {2, 2, 0}), 3, 1, GETNCNT, 2);
    op1(1, 1, 0); hear(1);      /* c, who came first */
    op1(1, 1, 0); hear(1);
    /* zero, alone and together */
    sleeper('e', S({2, 0, 0}), 1, 2, GETZCNT, 1);
    sleeper('f', S({2, 0, 0}, {1, 0, 0}), 2, 2, GETZCNT, 2);
    sleeper('g', S({2, 0, 0}, {0, 1, 0}), 2, 2, GETZCNT, 3);
    op1(2, -2, 0); hear(3);
    /* one makes way for the next */
    semctl(id, 0, SETVAL, 0);
    sleeper('h', S({1, -1, 0}, {2, 1, 0}), 2, 1, GETNCNT, 1);
    sleeper('i', S({0, -1, 0}, {1, 1, 0}), 2, 0, GETNCNT, 1);
    sleeper('j', S({2, -1, 0}), 1, 2, GETNCNT, 1);
    op1(0, 1, 0); hear(3);
    /* what can't be done later any more */
    sleeper('k', S({0, -1, 0}, {1, -1, IPC_NOWAIT}), 2, 0, GETNCNT, 1);
    op1(0, 1, 0); hear(1);
    sleeper('l', S({1, -1, 0}), 1, 1, GETNCNT, 1);
    semctl(id, 1, SETVAL, 3); hear(1);
    sleeper('m', S({0, -2, 0}), 1, 0, GETNCNT, 1);
    all[0] = 9; all[1] = all[2] = 1;
    semctl(id, 0, SETALL, all); hear(1);
    sleeper('n', S({2, -5, 0}), 1, 2, GETNCNT, 1);
    sleeper('o', S({2, 0, 0}), 1, 2, GETZCNT, 1);
    sleeper('p', S({2, 0, 0}, {1, -9, 0}), 2, 2, GETZCNT, 2);
    semctl(id, 0, IPC_RMID); hear(3);
    return 0;
}
"""
    )


def test_undo() -> None:
    same(
        HEAD
        + r"""
static void takes(void)
{
    printf("%d\n", op1(0, 3, SEM_UNDO));
    printf("%d\n", op1(1, -2, SEM_UNDO));
    printf("%d\n", op1(2, 1, 0));
    values("during", 3);
}
static void fights(void)
{
    op1(0, -1, SEM_UNDO);
    semctl(id, 0, SETVAL, 7);
    op1(1, 1, SEM_UNDO);
    all[0] = 4; all[1] = 5; all[2] = 6;
    semctl(id, 0, SETALL, all);
    op1(2, 1, SEM_UNDO);
}
static void below(void)
{
    op1(0, 10, SEM_UNDO);
    if (!fork()) { op1(0, -12, 0); _exit(0); }
    wait(0);
}
static void range(void)
{
    semctl(id, 0, SETVAL, 0);
    printf("%d\n", op1(0, 32767, SEM_UNDO));
    op1(0, -32767, 0);
    printf("%d\n", op1(0, 1, SEM_UNDO));
    printf("%d\n", op1(0, 1, SEM_UNDO));
    values("range", 1);
    printf("%d\n", OPS({0, 1, 0}, {0, -1, SEM_UNDO}, {0, 3, SEM_UNDO}));
    values("range", 1);
}
static void execs(void)
{
    op1(1, 1, SEM_UNDO);
    char num[20];
    sprintf(num, "%d", id);
    execl("/proc/self/exe", "again", num, NULL);
}
static void dies(void)
{
    op1(1, 20, SEM_UNDO);
    kill(getpid(), SIGKILL);
}
static void forks(void)
{
    op1(0, 1, SEM_UNDO);
    if (!fork()) { op1(0, 1, SEM_UNDO); _exit(0); }
    wait(0);
    values("forked", 1);
}
static void removes(void)
{
    int keep = id;
    id = semget(IPC_PRIVATE, 2, 0600);
    op1(0, 1, SEM_UNDO);
    semctl(id, 0, IPC_RMID);
    id = semget(IPC_PRIVATE, 2, 0600);
    op1(1, 1, SEM_UNDO);
    semctl(id, 0, IPC_RMID);
    id = keep;
}
static void unshares(void)
{
    op1(0, 100, SEM_UNDO);
    printf("%d\n", got(syscall(SYS_unshare, CLONE_SYSVSEM)));
    values("unshared", 1);
}
static int shares_(void *arg)
{
    op1(0, 5, SEM_UNDO);
    return 0;
}
static char stack[65536];
static void shares(void)
{
    op1(0, 1, SEM_UNDO);
    int st, pid = clone(shares_, stack + sizeof stack, CLONE_SYSVSEM | SIGCHLD, 0);
    waitpid(pid, &st, 0);
    values("shared", 1);
}
int main(int argc, char **argv)
{
    if (argc > 1) {
        id = atoi(argv[1]);
        values("exec", 3);
        return 0;
    }
    id = semget(IPC_PRIVATE, 3, 0600);
    all[0] = 2; all[1] = 2; all[2] = 0;
    semctl(id, 0, SETALL, all);
    child(takes); values("takes", 3);
    child(fights); values("fights", 3);
    semctl(id, 0, SETVAL, 5);
    child(below); values("below", 3);
    child(range); values("range", 3);
    child(execs); values("execs", 3);
    child(dies); values("dies", 3);
    child(forks); values("forks", 3);
    child(removes); values("removes", 3);
    child(unshares); values("unshares", 3);
    child(shares); values("shares", 3);
    /* whose undo lets somebody go on */
    semctl(id, 0, SETVAL, 1);
    op1(0, -1, 0);
    int fds[2];
    pipe(fds);
    if (!fork()) {
        op1(0, 1, 0);
        op1(0, -1, SEM_UNDO);
        write(fds[1], "x", 1);
        asleep(1, 0, GETNCNT);
        _exit(0);
    }
    read(fds[0], all, 1);
    printf("%d\n", op1(0, -1, 0));
    wait(0);
    printf("pid %d\n", semctl(id, 0, GETPID) == getpid());
    semctl(id, 0, IPC_RMID);
    return 0;
}
"""
    )


def test_signals() -> None:
    """A handler ends the wait, with SA_RESTART or without; a stop does, too. Who is killed leaves
    the queue."""
    same(
        HEAD
        + r"""
static void onsig(int s) {}
static void waits(int flags)
{
    struct sigaction sa = {.sa_handler = onsig, .sa_flags = flags};
    sigaction(SIGUSR1, &sa, 0);
    int st, pid;
    fflush(stdout);
    if (!(pid = fork())) {
        int r = op1(0, -1, 0);
        _exit(-r);
    }
    asleep(1, 0, GETNCNT);
    kill(pid, SIGUSR1);
    waitpid(pid, &st, 0);
    printf("%x, waiting %d\n", st, semctl(id, 0, GETNCNT));
}
int main(void)
{
    id = semget(IPC_PRIVATE, 2, 0600);
    waits(0);
    waits(SA_RESTART);
    int st, pid;
    fflush(stdout);
    if (!(pid = fork())) _exit(-op1(0, -1, 0));
    asleep(1, 0, GETNCNT);
    kill(pid, SIGSTOP);
    waitpid(pid, &st, WUNTRACED);
    kill(pid, SIGCONT);
    waitpid(pid, &st, 0);
    printf("stopped %x\n", st);
    fflush(stdout);
    if (!(pid = fork())) { OPS({1, 0, 0}, {0, -1, SEM_UNDO}); _exit(1); }
    asleep(1, 0, GETNCNT);
    kill(pid, SIGKILL);
    waitpid(pid, &st, 0);
    printf("killed %x, waiting %d\n", st, semctl(id, 0, GETNCNT));
    semctl(id, 0, IPC_RMID);
    return 0;
}
"""
    )


def test_memory() -> None:
    """Semaphores are charged: no program has more of them than the machine has memory for."""
    status, out = by_guest(
        build(
            HEAD
            + r"""
int main(void)
{
    int n = 0;
    while (semget(IPC_PRIVATE, 32000, 0600) >= 0) n++;
    printf("%d %d\n", n, errno);
    struct seminfo info;
    printf("%d ", semctl(0, 0, SEM_INFO, &info));
    printf("%d %d\n", info.semusz, info.semaem);
    return 0;
}
"""
        )
    )
    assert (status, out) == (0, b"16 12\n15 16 512000\n")


def test_more_than_there_could_be_memory_for() -> None:
    """Limits may be raised beyond it: who then asks for that much does not get the host's."""
    program = build(r"""
#include <sys/msg.h>
#include <sys/sem.h>
#define E(call) do { int r_ = call; printf("%d %d\n", r_, errno); } while (0)
static void put(const char *name, const char *s) {
    int fd = open(name, O_WRONLY); write(fd, s, strlen(s)); close(fd);
}
int main(void)
{
    put("/proc/sys/kernel/sem", "2147483647\t2147483647\t2147483647");
    put("/proc/sys/kernel/msgmax", "2147483647");
    put("/proc/sys/kernel/msgmnb", "2147483647");
    char *m = mmap(0, 1L << 34, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *w = mmap(m, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    int id = semget(IPC_PRIVATE, 1, 0600), q = msgget(IPC_PRIVATE, 0600);
    *(long *)w = 1;
    E(semop(id, (void *)m, 0x7fffffff));
    E(msgsnd(q, m, 0x7fffffff, IPC_NOWAIT));
    E((int)msgrcv(q, m, 0x7fffffff, 0, IPC_NOWAIT | 040000));
    return 0;
}""")  # fmt: skip
    assert by_guest(program)[:2] == (0, b"-1 12\n-1 12\n-1 12\n")


def test_proc() -> None:
    same(
        HEAD
        + r"""
int main(void)
{
    char line[512], want[99];
    id = semget(IPC_PRIVATE, 5, 0612);
    op1(0, 1, 0);
    sprintf(want, "%10d %10d ", 0, id);
    FILE *f = fopen("/proc/sysvipc/sem", "r");
    while (fgets(line, sizeof line, f)) {
        if (!strncmp(line, want, strlen(want))) {
            long ot, ct;
            sscanf(line + 63, "%ld %ld", &ot, &ct);
            printf("%.41s %d %d %d\n", line + 22, ot > 1e9, ct > 1e9, (int)strlen(line));
        } else if (strstr(line, "key"))
            printf("%s", line);
    }
    semctl(id, 0, IPC_RMID);
    return 0;
}
"""
    )


def test_undo_of_what_was_refused() -> None:
    """Who was not allowed to change a set with SEM_UNDO leaves a trace of his end in it."""
    same(
        HEAD
        + r"""
static void refused(void)
{
    if (setresgid(99, 99, 99) || setresuid(99, 99, 99)) printf("not root\n");
    printf("%d %d\n", op1(0, 1, SEM_UNDO | IPC_NOWAIT), op1(9, 1, SEM_UNDO));
    semctl(id, 0, IPC_STAT, &ds);
    printf("%d\n", ds.sem_otime != 0);
}
int main(void)
{
    id = semget(IPC_PRIVATE, 3, 0644);
    child(refused);
    semctl(id, 0, IPC_STAT, &ds);
    printf("%d\n", ds.sem_otime != 0);
    semctl(id, 0, IPC_RMID);
    return 0;
}
"""
    )


def test_who_waits_for_zeros_may_sleep_though_he_would_fail() -> None:
    """He is tried again when what was changed is zero, and after SETVAL when anything is."""
    same(
        HEAD
        + r"""
static void zeros(void) { printf("%d\n", OPS({0, 0, IPC_NOWAIT}, {1, 0, 0})); }
static void nothing(void) {}
int main(void)
{
    id = semget(IPC_PRIVATE, 3, 0600);
    semctl(id, 1, SETVAL, 1);
    fflush(stdout);
    if (!fork()) { zeros(); fflush(stdout); _exit(0); }
    asleep(1, 1, GETZCNT);
    op1(0, 1, 0);
    child(nothing); /* when it ends, the machine is checked */
    printf("%d %d\n", semctl(id, 0, GETZCNT), semctl(id, 1, GETZCNT));
    fflush(stdout);
    semctl(id, 1, SETVAL, 2); /* the third one is zero, that is enough */
    wait(0);
    printf("%d %d\n", semctl(id, 0, GETZCNT), semctl(id, 1, GETZCNT));
    semctl(id, 0, IPC_RMID);
    return 0;
}
"""
    )
