"""System V message queues: the same on the host and in the machine."""

from __future__ import annotations

from tests.kern.guest_util import CHILD, SLEEPS, same

HEAD = (
    CHILD
    + SLEEPS
    + r"""
#include <sys/ipc.h>
#include <sys/msg.h>
#ifndef MSG_COPY
#define MSG_COPY 040000
#endif
static int id;
static struct msqid_ds ds;
static struct { long type; char text[20000]; } m;
static int got(long r) { return r < 0 ? -errno : r; }
static int snd(long type, const char *text, int flags)
{
    m.type = type;
    strcpy(m.text, text);
    return got(msgsnd(id, &m, strlen(text), flags));
}
static void rcv(long type, int size, int flags)
{
    memset(&m, 0, sizeof m);
    int r = got(msgrcv(id, &m, size, type, flags));
    printf("  %d: %ld '%s'\n", r, m.type, m.text);
}
static void stat_(const char *what)
{
    if (msgctl(id, IPC_STAT, &ds)) { printf("%s: %d\n", what, errno); return; }
    printf("%s: %lu messages, %lu of %lu bytes, mode %o, sent %d by %d, received %d by %d\n", what,
           ds.msg_qnum, ds.__msg_cbytes, ds.msg_qbytes, ds.msg_perm.mode, ds.msg_stime != 0,
           ds.msg_lspid == getpid(), ds.msg_rtime != 0, ds.msg_lrpid == getpid());
}
"""
)


def test_messages() -> None:
    same(
        HEAD
        + r"""
int main(void)
{
    id = msgget(IPC_PRIVATE, 0600);
    stat_("new");
    printf("%d\n", snd(3, "three", 0));
    printf("%d\n", snd(1, "one", 0));
    printf("%d\n", snd(2, "", 0));
    printf("%d\n", snd(5, "five", 0));
    printf("%d\n", snd(3, "again", 0));
    stat_("full");
    rcv(0, 100, 0);                     /* the oldest */
    rcv(5, 100, 0);
    rcv(4, 100, IPC_NOWAIT);
    rcv(-3, 100, 0);                    /* the lowest type */
    snd(1, "one", 0);
    rcv(1, 100, MSG_EXCEPT);
    rcv(-2, 100, MSG_EXCEPT);
    rcv(0, 4, 0);
    rcv(0, 4, MSG_NOERROR);
    rcv(0, 4, IPC_NOWAIT);
    stat_("empty");
    snd(1, "a", 0); snd(9, "bb", 0); snd(4, "ccc", 0);
    rcv(1, 100, MSG_COPY | IPC_NOWAIT);
    rcv(2, 3, MSG_COPY | IPC_NOWAIT);
    rcv(2, 2, MSG_COPY | IPC_NOWAIT);
    rcv(2, 2, MSG_COPY | IPC_NOWAIT | MSG_NOERROR);
    rcv(3, 100, MSG_COPY | IPC_NOWAIT);
    rcv(-1, 100, MSG_COPY | IPC_NOWAIT);
    rcv(0, 100, MSG_COPY);
    rcv(0, 100, MSG_COPY | IPC_NOWAIT | MSG_EXCEPT);
    stat_("looked at");
    rcv((long)1 << 63, 100, 0);
    rcv(-8, 100, 0);
    rcv(0, 0, MSG_NOERROR);
    printf("%d\n", got(msgctl(id, IPC_RMID, 0)));
    printf("%d\n", got(msgctl(id, IPC_RMID, 0)));
    printf("%d\n", snd(1, "x", 0));
    rcv(0, 1, 0);
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
    if (setresgid(99, 99, 99) || setresuid(99, 99, 99)) printf("not root\n");
    printf("get %d %d %d\n", got(msgget(key, 0400)) >= 0, got(msgget(key, 0)) >= 0,
           got(msgget(key, 0002)) >= 0);
    printf("snd %d\n", snd(1, "nobody", IPC_NOWAIT));
    rcv(0, 100, IPC_NOWAIT);
    printf("stat %d rm %d\n", got(msgctl(id, IPC_STAT, &ds)), got(msgctl(id, IPC_RMID, 0)));
    ds.msg_qbytes = 16385;
    printf("set %d\n", got(msgctl(id, IPC_SET, &ds)));
    ds.msg_qbytes = 16384;
    printf("set %d\n", got(msgctl(id, IPC_SET, &ds)));
}
int main(void)
{
    key = 0x5e000000 + getpid();
    printf("%d\n", got(msgget(key, 0)));
    id = msgget(key, IPC_CREAT | 0602);
    printf("%d %d\n", msgget(key, 0) == id, got(msgget(key, IPC_CREAT | IPC_EXCL)));
    printf("%d %d %d\n", snd(0, "a", 0), snd(-1, "a", 0), got(msgsnd(-1, &m, 1, 0)));
    m.type = 1;
    printf("%d %d %d\n", got(msgsnd(id, &m, 8193, 0)), got(msgsnd(id, &m, -1, 0)),
           got(msgsnd(id, &m, 8192, 0)));
    printf("%d %d\n", got(msgsnd(id, 0, 1, 0)), got(msgsnd(id, (void *)8, 8193, 0)));
    printf("%d %d\n", got(msgrcv(id, &m, -1, 0, 0)), got(msgrcv(-1, &m, 1, 0, 0)));
    printf("%d\n", got(msgrcv(id, &m, 8191, 0, 0)));
    printf("%d\n", got(msgrcv(id, 0, 8192, 0, 0)));
    stat_("lost");
    child(nobody);
    msgctl(id, IPC_STAT, &ds);
    ds.msg_perm.uid = 99; ds.msg_perm.gid = 7; ds.msg_perm.mode = 07622; ds.msg_qbytes = 12000;
    printf("set %d\n", got(msgctl(id, IPC_SET, &ds)));
    stat_("set");
    child(nobody);
    stat_("set");
    ds.msg_perm.uid = -1;
    printf("set %d %d\n", got(msgctl(id, IPC_SET, &ds)), got(msgctl(id, IPC_SET, 0)));
    printf("cmd %d %d %d\n", got(msgctl(id, 77, 0)), got(msgctl(id, -1, 0)),
           got(msgctl(-1, IPC_INFO, 0)));
    struct msginfo info;
    msgctl(0, IPC_INFO, (void *)&info);
    printf("%d %d %d %d %d %d %d %d\n", info.msgpool, info.msgmap, info.msgmax, info.msgmnb,
           info.msgmni, info.msgssz, info.msgtql, info.msgseg);
    printf("fault %d\n", got(msgctl(0, MSG_INFO, 0)));
    msgctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_waiting_for_messages() -> None:
    """A message goes to the one who has waited for such a one longest. Who takes too little is
    told."""
    same(
        HEAD
        + r"""
static int fds[2], npids;
static void receiver(char name, long type, int size, int flags)
{
    fflush(stdout);
    int pid = fork();
    if (!pid) {
        char text[99];
        int r = got(msgrcv(id, &m, size, type, flags));
        write(fds[1], text, sprintf(text, "%c%d%.*s ", name, r, r < 0 ? 0 : r, m.text));
        _exit(0);
    }
    sleeps(pid);
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
    stat_("");
}
int main(void)
{
    pipe(fds);
    id = msgget(IPC_PRIVATE, 0600);
    receiver('a', 0, 99, 0);
    receiver('b', 2, 99, 0);
    receiver('c', -3, 99, 0);
    receiver('d', 4, 99, MSG_EXCEPT);
    snd(2, "first", 0); hear(1);
    snd(2, "second", 0); hear(1);
    snd(4, "third", 0);
    stat_("left");
    snd(3, "fourth", 0); hear(1);
    snd(9, "fifth", 0); hear(1);
    rcv(0, 99, 0);
    receiver('e', 1, 2, 0);
    receiver('f', 1, 2, MSG_NOERROR);
    snd(1, "long", 0); hear(2);
    receiver('g', 7, 99, 0);
    msgctl(id, IPC_STAT, &ds);
    ds.msg_perm.mode = 0;
    msgctl(id, IPC_SET, &ds);
    receiver('h', 8, 99, 0);
    msgctl(id, IPC_SET, &ds);   /* has them look again, and is followed at once by the end */
    msgctl(id, IPC_RMID, 0); hear(2);
    return 0;
}
"""
    )


def test_waiting_for_room() -> None:
    same(
        HEAD
        + r"""
static int fds[2];
static void sender(char name, int size)
{
    fflush(stdout);
    int pid = fork();
    if (!pid) {
        char text[99];
        m.type = size + 1;
        int r = got(msgsnd(id, &m, size, 0));
        write(fds[1], text, sprintf(text, "%c%d ", name, r));
        _exit(0);
    }
    sleeps(pid);
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
    printf("\n");
}
int main(void)
{
    pipe(fds);
    id = msgget(IPC_PRIVATE, 0600);
    m.type = 1;
    for (int i = 0; i < 4; i++) printf("%d\n", got(msgsnd(id, &m, 4096, IPC_NOWAIT)));
    printf("%d %d\n", got(msgsnd(id, &m, 1, IPC_NOWAIT)), got(msgsnd(id, &m, 0, IPC_NOWAIT)));
    sender('a', 4097);
    sender('b', 100);
    msgrcv(id, &m, 4096, 0, 0); hear(1);
    stat_("one");
    msgrcv(id, &m, 4096, 0, 0); hear(1);
    stat_("two");
    msgctl(id, IPC_STAT, &ds);
    ds.msg_qbytes = 100;
    printf("%d\n", got(msgctl(id, IPC_SET, &ds)));
    sender('c', 10);
    ds.msg_qbytes = 16384;
    printf("%d\n", got(msgctl(id, IPC_SET, &ds))); hear(1);
    ds.msg_qbytes = 2;
    msgctl(id, IPC_SET, &ds);
    sender('d', 1);
    sender('e', 0);
    msgctl(id, IPC_RMID, 0); hear(2);
    id = msgget(IPC_PRIVATE, 0600);
    msgctl(id, IPC_STAT, &ds);
    ds.msg_qbytes = 3;
    msgctl(id, IPC_SET, &ds);
    for (int i = 0; i < 4; i++) printf("%d\n", got(msgsnd(id, &m, 0, IPC_NOWAIT)));
    msgctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_signals() -> None:
    """A handler ends the wait, SA_RESTART or not; without one it goes on."""
    same(
        HEAD
        + r"""
static void onsig(int s) {}
static int how;
static int waits(int flags)
{
    struct sigaction sa = {.sa_handler = onsig, .sa_flags = flags};
    sigaction(SIGUSR1, &sa, 0);
    int st, pid;
    fflush(stdout);
    if (!(pid = fork())) {
        m.type = 1;
        _exit(-(how ? got(msgrcv(id, &m, 99, 5, 0)) : got(msgsnd(id, &m, 8192, 0))));
    }
    sleeps(pid);
    return pid;
}
int main(void)
{
    id = msgget(IPC_PRIVATE, 0600);
    m.type = 1;
    for (int i = 0; i < 2; i++) msgsnd(id, &m, 8192, 0);
    for (how = 0; how < 2; how++) {
        for (int i = 0; i < 2; i++) {
            int st, pid = waits(i ? SA_RESTART : 0);
            kill(pid, SIGUSR1);
            waitpid(pid, &st, 0);
            printf("%x\n", st);
        }
        int st, pid = waits(0);
        kill(pid, SIGSTOP);
        waitpid(pid, &st, WUNTRACED);
        kill(pid, SIGCONT);
        sleeps(pid);
        kill(pid, SIGKILL);
        waitpid(pid, &st, 0);
        printf("%x\n", st);
        stat_("");
    }
    printf("%d\n", snd(5, "five", IPC_NOWAIT));
    msgctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_proc() -> None:
    same(
        HEAD
        + r"""
int main(void)
{
    char line[512], want[99];
    id = msgget(IPC_PRIVATE, 0612);
    snd(1, "hello", 0);
    snd(1, "world!", 0);
    rcv(0, 99, 0);
    sprintf(want, "%10d %10d ", 0, id);
    FILE *f = fopen("/proc/sysvipc/msg", "r");
    while (fgets(line, sizeof line, f)) {
        if (!strncmp(line, want, strlen(want))) {
            int s, r;
            sscanf(line + 50, "%d %d", &s, &r);
            printf("%.27s %d %d %.24s %d\n", line + 22, s == getpid(), r == getpid(), line + 62,
                   (int)strlen(line));
        } else if (strstr(line, "key"))
            printf("%s", line);
    }
    msgctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )
