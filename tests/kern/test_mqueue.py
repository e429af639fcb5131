"""POSIX message queues: the same on the host and in the machine."""

from __future__ import annotations

from tests.kern.guest_util import CHILD, SLEEPS, build, by_guest, same

HEAD = (
    CHILD
    + SLEEPS
    + r"""
#include <limits.h>
#include <mqueue.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/epoll.h>
static char name[40], buf[20000];
static mqd_t q;
static int got(long r) { return r < 0 ? -errno : r; }
static mqd_t make(int flags, int maxmsg, int msgsize)
{
    struct mq_attr a = {.mq_maxmsg = maxmsg, .mq_msgsize = msgsize};
    sprintf(name, "/dfvm-%d", getpid());
    mq_unlink(name);
    return q = mq_open(name, flags | O_CREAT | O_EXCL, 0600, maxmsg ? &a : 0);
}
static int snd(const char *text, int prio) { return got(mq_send(q, text, strlen(text), prio)); }
static void rcv(void)
{
    unsigned prio = 77;
    memset(buf, 0, sizeof buf);
    int r = got(mq_receive(q, buf, sizeof buf, &prio));
    printf("  %d '%s' %u\n", r, buf, prio);
}
static void attr(const char *what)
{
    struct mq_attr a;
    if (mq_getattr(q, &a)) { printf("%s: %d\n", what, errno); return; }
    printf("%s: flags %lo max %ld size %ld now %ld\n", what, a.mq_flags, a.mq_maxmsg,
           a.mq_msgsize, a.mq_curmsgs);
}
static void status(void)
{
    char text[100];
    int pid, r = pread(q, text, 99, 0);
    if (r < 0) { printf("read: %d\n", errno); return; }
    text[r] = 0;
    char *at = strstr(text, "PID:");
    sscanf(at, "PID:%d", &pid);
    printf("%.*s %d %d\n", (int)(at - text), text, r, pid == getpid() ? 1 : pid ? 2 : 0);
}
"""
)


def test_messages() -> None:
    same(
        HEAD
        + r"""
int main(void)
{
    make(O_RDWR, 4, 100);
    attr("new");
    printf("%d\n", snd("low", 1));
    printf("%d\n", snd("high", 9));
    printf("%d\n", snd("", 1));
    printf("%d\n", snd("high again", 9));
    status();
    attr("full");
    for (int i = 0; i < 4; i++) rcv();
    attr("empty");
    status();
    printf("%d %d\n", snd("x", 32767), snd("x", 32768));
    printf("size %d\n", got(mq_send(q, buf, 101, 0)));
    printf("size %d\n", got(mq_send(q, buf, 100, 0)));
    printf("size %d\n", got(mq_receive(q, buf, 99, 0)));
    printf("size %d\n", got(mq_receive(q, buf, 100, 0)));
    printf("fault %d\n", got(mq_send(q, (void *)8, 1, 0)));
    printf("fault %d\n", got(mq_receive(q, (void *)8, 100, 0)));
    attr("lost");
    struct stat st;
    fstat(q, &st);
    printf("%o %d %d %d %d\n", st.st_mode, (int)st.st_size, (int)st.st_nlink, (int)st.st_blocks,
           (int)st.st_blksize);
    printf("unlink %d %d\n", got(mq_unlink(name)), errno = 0);
    printf("unlink %d\n", got(mq_unlink(name)));
    fstat(q, &st);
    printf("%d\n", (int)st.st_nlink);
    printf("%d\n", snd("still", 3));
    rcv();
    printf("write %d", got(write(q, "x", 1)));
    printf(" seek %d", got(lseek(q, 3, SEEK_SET)));
    printf(" read %d '%s'", got(read(q, buf, 4)), buf);
    printf(" mmap %d", mmap(0, 80, PROT_READ, MAP_SHARED, q, 0) == MAP_FAILED ? errno : 0);
    printf(" fsync %d\n", got(fsync(q)));
    printf("close %d %d\n", got(mq_close(q)), got(mq_close(-1)));
    printf("%d\n", snd("x", 1));
    q = open("/dev/null", O_RDWR);
    printf("%d %d\n", snd("x", 1), got(mq_notify(q, 0)));
    attr("null");
    return 0;
}
"""
    )


def test_open() -> None:
    same(
        HEAD
        + r"""
static void nobody(void)
{
    if (setresgid(99, 99, 99) || setresuid(99, 99, 99)) printf("not root\n");
    printf("r %d w %d rw %d\n", got(mq_open(name, O_RDONLY)) > 0, got(mq_open(name, O_WRONLY)),
           got(mq_open(name, O_RDWR)));
    printf("unlink %d\n", got(mq_unlink(name)));
    strcat(name, "-nobody");
    printf("%d %d %d %d %d %d\n", (int)make(O_RDWR, 11, 10), errno, (int)make(O_RDWR, 10, 8193),
           errno, (int)make(O_RDWR, 10, 8192) > 0, mq_unlink(name));
    struct rlimit rl = {10000, 10000};
    setrlimit(RLIMIT_MSGQUEUE, &rl);
    printf("%d", (int)make(O_RDWR, 10, 1024));
    printf(" %d\n", errno);
    q = make(O_RDWR, 10, 905);
    printf("%d\n", q == -1 ? errno : 0);
    mq_unlink(name);
    mq_close(q);
    q = make(O_RDWR, 10, 904);
    printf("%d\n", q == -1 ? errno : 0);
    mq_unlink(name);
    printf("%d", mq_open("/dfvm-second", O_CREAT | O_RDWR, 0600, 0));
    printf(" %d\n", errno);
}
int main(void)
{
    char *names[] = {"/", "/.", "/..", "/a/b", "/dfvm-none", "x", "", 0};
    for (int i = 0; names[i]; i++) {
        printf("%s: %d", names[i], got(mq_open(names[i], O_RDONLY)));
        printf(" %d\n", got(mq_unlink(names[i])));
    }
    char *raw[] = {"/x", ".", "", "a/", 0};
    for (int i = 0; raw[i]; i++) {
        printf("%s: %d", raw[i], got(syscall(SYS_mq_open, raw[i], O_CREAT | O_RDWR, 0600, 0)));
        printf(" %d\n", got(syscall(SYS_mq_unlink, raw[i])));
    }
    printf("%d %d\n", got(syscall(SYS_mq_open, 8, 0, 0, 0)),
           got(syscall(SYS_mq_open, "dfvm-x", O_CREAT, 0600, 8)));
    memset(buf, 'n', 300);
    buf[0] = '/';
    printf("long %d %d\n", got(mq_open(buf, O_CREAT | O_RDWR, 0600, 0)), got(mq_unlink(buf)));
    memset(buf, 'n', 5000);
    printf("longer %d\n", got(syscall(SYS_mq_open, buf, O_CREAT | O_RDWR, 0600, 0)));
    umask(022);
    struct mq_attr bad[] = {{0, 0, 10}, {0, 10, 0}, {0, -1, 10}, {0, 10, -1}, {0, 65537, 1},
                            {0, 1, (16 << 20) + 1}, {0, LONG_MAX, LONG_MAX}};
    for (int i = 0; i < 7; i++)
        printf("%d\n", got(mq_open("/dfvm-bad", O_CREAT | O_RDWR, 0600, &bad[i])));
    sprintf(name, "/dfvm-%d", getpid());
    q = mq_open(name, O_CREAT | O_RDONLY, 07746, 0);
    struct stat st;
    fstat(q, &st);
    printf("%o %d\n", st.st_mode, st.st_uid == geteuid());
    attr("default");
    printf("excl %d\n", got(mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, 0)));
    printf("again %d\n", got(mq_open(name, O_CREAT | O_RDWR, 0600, &bad[0])) > 0);
    printf("mode 3 %d\n", got(mq_open(name, 3)));
    printf("read only %d\n", snd("x", 1));
    mqd_t r = q;
    q = mq_open(name, O_WRONLY | O_NONBLOCK);
    printf("write only %d\n", got(mq_receive(q, buf, sizeof buf, 0)));
    printf("flags %o %d\n", fcntl(q, F_GETFL), fcntl(q, F_GETFD));
    int cloexec = mq_open(name, O_RDWR | O_CLOEXEC | O_TRUNC | O_APPEND);
    printf("flags %o %d\n", fcntl(cloexec, F_GETFL), fcntl(cloexec, F_GETFD));
    struct mq_attr set = {.mq_flags = 0, .mq_maxmsg = 3}, old;
    printf("set %d %lo", got(mq_setattr(q, &set, &old)), old.mq_flags);
    attr("");
    set.mq_flags = O_NONBLOCK;
    printf("set %d", got(mq_setattr(r, &set, &old)));
    set.mq_flags = O_NONBLOCK | O_APPEND;
    printf(" %d %d\n", got(mq_setattr(q, &set, 0)), got(syscall(SYS_mq_getsetattr, q, 8, 0)));
    printf("%d\n", got(syscall(SYS_mq_getsetattr, q, 0, 8)));
    printf("again %d\n", got(mq_receive(r, buf, sizeof buf, 0)));
    fflush(stdout);
    fchmod(q, 0644);
    child(nobody);
    printf("%d\n", got(mq_unlink(name)));
    struct rlimit rl = {3, 3};
    while (open("/dev/null", O_RDONLY) >= 0 && 0) ;
    setrlimit(RLIMIT_NOFILE, &rl);
    printf("%d\n", got(mq_open("/dfvm-many", O_CREAT | O_RDWR, 0600, 0)));
    printf("%d\n", got(mq_unlink("/dfvm-many")));
    return 0;
}
"""
    )


def test_waiting() -> None:
    """Who waits for a message gets it without anybody else; who waits for room has his message in
    its place. Times are of the real clock."""
    same(
        HEAD
        + r"""
static int fds[2];
static void say(const char *format, ...)
{
    char text[99];
    va_list ap;
    va_start(ap, format);
    write(fds[1], text, vsprintf(text, format, ap));
    _exit(0);
}
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
static void receiver(char who)
{
    fflush(stdout);
    int pid = fork();
    if (!pid) {
        unsigned prio = 0;
        int r = got(mq_receive(q, buf, 100, &prio));
        say("%c%d%.*s%u ", who, r, r < 0 ? 0 : r, buf, prio);
    }
    sleeps(pid);
}
static void sender(char who, int nice_, int prio)
{
    fflush(stdout);
    int pid = fork();
    if (!pid) {
        nice(nice_);
        say("%c%d ", who, got(mq_send(q, &who, 1, prio)));
    }
    sleeps(pid);
}
int main(void)
{
    pipe(fds);
    make(O_RDWR, 2, 100);
    receiver('a');
    receiver('b');
    snd("one", 1); hear(1);
    snd("two", 2); hear(1);
    attr("handed over");
    snd("x", 1); snd("y", 1);
    sender('c', 3, 5);
    sender('d', 0, 6);
    sender('e', 0, 0);
    attr("waiting");
    rcv(); hear(1); rcv(); hear(1); rcv(); hear(1); rcv(); rcv();
    attr("drained");
    struct timespec past = {1, 0}, bad = {0, 1000000000}, neg = {-1, 0}, soon;
    printf("past %d", got(mq_timedreceive(q, buf, 100, 0, &past)));
    printf(" bad %d", got(mq_timedreceive(q, buf, 100, 0, &bad)));
    printf(" negative %d", got(mq_timedreceive(q, buf, 100, 0, &neg)));
    printf(" fault %d", got(mq_timedreceive(q, buf, 100, 0, (void *)8)));
    printf(" send %d\n", got(mq_timedsend(q, "m", 1, 0, &past)));
    printf("bad %d", got(mq_timedsend(q, "m", 1, 0, &bad)));
    printf(" fd %d", got(mq_timedsend(-1, "m", 1, 0, &bad)));
    printf(" fits %d", got(mq_timedsend(q, "m", 1, 0, &past)));
    printf(" full %d\n", got(mq_timedsend(q, "m", 1, 0, &past)));
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_nsec += 2000000;
    if (soon.tv_nsec >= 1000000000) { soon.tv_sec++; soon.tv_nsec -= 1000000000; }
    printf("soon %d\n", got(mq_timedsend(q, "m", 1, 0, &soon)));
    attr("full");
    mq_unlink(name);
    return 0;
}
"""
    )


def test_signals() -> None:
    """A handler with SA_RESTART lets the wait go on, one without ends it."""
    same(
        HEAD
        + r"""
static int count;
static void onsig(int s) { count++; }
int main(void)
{
    make(O_RDWR, 1, 10);
    for (int i = 0; i < 2; i++) {
        struct sigaction sa = {.sa_handler = onsig, .sa_flags = i ? SA_RESTART : 0};
        int st, pid;
        sigaction(SIGUSR1, &sa, 0);
        fflush(stdout);
        if (!(pid = fork())) {
            int r = got(mq_receive(q, buf, 10, 0));
            printf("%d %.*s %d\n", r, r < 0 ? 0 : r, buf, count);
            fflush(stdout);
            _exit(0);
        }
        sleeps(pid);
        kill(pid, SIGUSR1);
        if (i) { sleeps(pid); snd("late", 1); }
        waitpid(pid, &st, 0);
    }
    attr("");
    mq_unlink(name);
    return 0;
}
"""
    )


def test_notify() -> None:
    same(
        HEAD
        + r"""
static int seen;
static siginfo_t info;
static void onsig(int s, siginfo_t *i, void *c) { seen++; info = *i; }
static int ask(int how, int sig)
{
    struct sigevent ev = {.sigev_notify = how, .sigev_signo = sig};
    ev.sigev_value.sival_int = 4711;
    return got(mq_notify(q, &ev));
}
static void told(const char *what)
{
    printf("%s: %d", what, seen);
    if (seen)
        printf(" sig %d code %d errno %d value %d pid %d uid %d", info.si_signo, info.si_code,
               info.si_errno, info.si_value.sival_int, info.si_pid == getpid(),
               info.si_uid == getuid());
    printf("\n");
    seen = 0;
}
static void busy(void) { printf("child %d %d\n", ask(SIGEV_NONE, 0), got(mq_notify(q, 0))); }
static void sends(void) { snd("from child", 1); }
static void asks(void) { printf("asks %d\n", ask(SIGEV_SIGNAL, SIGUSR1)); }
static void closes(void)
{
    mqd_t d = dup(q);
    printf("asks %d\n", ask(SIGEV_SIGNAL, SIGUSR1));
    status();
    mq_close(d);
    status();
}
int main(void)
{
    struct sigaction sa = {.sa_sigaction = onsig, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGUSR1, &sa, 0);
    make(O_RDWR, 3, 100);
    printf("%d %d %d\n", ask(9, 1), ask(SIGEV_SIGNAL, 65), ask(SIGEV_SIGNAL, -1));
    printf("%d %d\n", got(syscall(SYS_mq_notify, q, 8)), got(syscall(SYS_mq_notify, -1, 0)));
    printf("%d %d\n", got(mq_notify(q, 0)), ask(SIGEV_SIGNAL, SIGUSR1));
    printf("twice %d\n", ask(SIGEV_NONE, 0));
    status();
    child(busy);
    snd("first", 1); told("first"); status();
    rcv();
    snd("second", 1); told("second");
    printf("%d\n", ask(SIGEV_SIGNAL, SIGUSR1));
    snd("third", 1); told("not empty"); status();
    rcv(); rcv();
    child(sends);
    told("by a child");
    rcv();
    printf("%d\n", ask(SIGEV_NONE, 0)); status();
    snd("none", 1); told("none"); status(); rcv();
    printf("%d\n", ask(SIGEV_SIGNAL, SIGUSR1));
    fflush(stdout);
    int pid = fork();
    if (!pid) { mq_receive(q, buf, 100, 0); _exit(0); }
    sleeps(pid);
    snd("to the waiting", 1);
    waitpid(pid, 0, 0);
    told("waited for"); status();
    printf("%d\n", got(mq_notify(q, 0))); status();
    child(asks); status();
    closes();
    printf("%d\n", ask(SIGEV_SIGNAL, 0)); status();
    snd("signal 0", 1); told("0"); status(); rcv();
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD, .sigev_signo = 9999};
    ev.sigev_value.sival_ptr = buf;
    printf("thread %d\n", got(syscall(SYS_mq_notify, q, &ev)));
    ev.sigev_signo = q;
    printf("thread %d\n", got(syscall(SYS_mq_notify, q, &ev)));
    ev.sigev_value.sival_ptr = (void *)8;
    printf("thread %d\n", got(syscall(SYS_mq_notify, q, &ev)));
    mq_unlink(name);
    return 0;
}
"""
    )


def test_poll() -> None:
    same(
        HEAD
        + r"""
static int ready(void)
{
    struct pollfd p = {q, POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM, 0};
    poll(&p, 1, 0);
    return p.revents;
}
int main(void)
{
    make(O_RDWR | O_NONBLOCK, 2, 100);
    printf("%x\n", ready());
    snd("a", 1); printf("%x\n", ready());
    snd("a", 1); printf("%x\n", ready());
    printf("%d\n", snd("a", 1));
    int n, ep = epoll_create1(0);
    struct epoll_event ev = {EPOLLIN | EPOLLOUT | EPOLLET, {0}}, out = {0};
    printf("%d\n", got(epoll_ctl(ep, EPOLL_CTL_ADD, q, &ev)));
    n = epoll_wait(ep, &out, 1, 0);
    printf("%d %x\n", n, out.events);
    printf("%d\n", epoll_wait(ep, &out, 1, 0));
    rcv();
    n = epoll_wait(ep, &out, 1, 0);
    printf("%d %x\n", n, out.events);
    rcv(); rcv();
    n = epoll_wait(ep, &out, 1, 0);
    printf("%d %x\n", n, out.events);
    fflush(stdout);
    int pid = fork();
    if (!pid) {
        struct pollfd p = {q, POLLIN, 0};
        int r = poll(&p, 1, -1);
        printf("woken %d %x\n", r, p.revents);
        fflush(stdout);
        _exit(0);
    }
    sleeps(pid);
    snd("b", 1);
    waitpid(pid, 0, 0);
    mq_unlink(name);
    return 0;
}
"""
    )


def test_as_files() -> None:
    """The queues are files at /dev/mqueue (where the host has them only if it is mounted)."""
    status, out = by_guest(
        build(
            HEAD
            + r"""
#include <dirent.h>
int main(void)
{
    struct stat st;
    stat("/dev/mqueue", &st);
    printf("%o %d\n", st.st_mode, (int)st.st_size);
    make(O_RDWR, 2, 100);
    snd("hello", 3);
    DIR *d = opendir("/dev/mqueue");
    struct dirent *e;
    while ((e = readdir(d)))
        if (e->d_name[0] != '.') printf("%d %d\n", !strcmp(e->d_name, name + 1), e->d_type);
    char path[99];
    sprintf(path, "/dev/mqueue%s", name);
    int fd = open(path, O_RDWR);
    printf("%d ", got(read(fd, buf, 99)));
    printf("'%s'\n", strtok(buf, " "));
    q = fd;
    rcv();
    fd = open("/dev/mqueue/other", O_CREAT | O_RDWR | O_TRUNC, 0640);
    q = fd;
    attr("other");
    printf("%d %d %d\n", got(mkdir("/dev/mqueue/dir", 0700)), got(symlink("x", "/dev/mqueue/ln")),
           got(rename("/dev/mqueue/other", "/dev/mqueue/third")));
    printf("%d %d\n", got(link("/dev/mqueue/other", "/dev/mqueue/third")),
           got(truncate("/dev/mqueue/other", 0)));
    printf("%d ", got(chmod("/dev/mqueue/other", 0444)));
    printf("%d\n", got(unlink("/dev/mqueue/other")));
    printf("%d\n", got(mq_unlink("/other")));
    mq_unlink(name);
    sprintf(path, "/proc/self/fd/%d", fd);
    memset(buf, 0, 99);
    readlink(path, buf, 99);
    printf("%s\n", buf);
    return 0;
}
"""
        )
    )
    assert status == 0
    assert out.decode().split("\n") == [
        "41777 40",
        "1 8",
        "60 'QSIZE:5'",
        "  5 'hello' 3",
        "other: flags 0 max 10 size 8192 now 0",
        "-1 -1 -1",
        "-1 0",
        "0 0",
        "-2",
        "/dev/mqueue/other (deleted)",
        "",
    ]


def test_limits() -> None:
    """What /proc/sys/fs/mqueue says is kept to by those without CAP_SYS_RESOURCE."""
    status, out = by_guest(
        build(
            HEAD
            + r"""
static int put(const char *name, const char *value)
{
    char path[99];
    sprintf(path, "/proc/sys/fs/mqueue/%s", name);
    int fd = open(path, O_WRONLY);
    int r = got(write(fd, value, strlen(value)));
    close(fd);
    return r;
}
int main(void)
{
    if (geteuid()) return 0;
    printf("%d %d %d\n", put("msg_max", "70000"), put("msgsize_max", "100"), put("msg_max", "0"));
    put("msg_max", "5"); put("msgsize_default", "200"); put("queues_max", "2");
    printf("%d", make(O_RDWR, 70, 100000) > 0);
    printf(" %d\n", setresuid(99, 99, 99));
    make(O_RDWR, 6, 10); printf("%d\n", q < 0 ? errno : 0);
    make(O_RDWR, 0, 0); attr("");
    q = mq_open("/dfvm-third", O_CREAT | O_RDWR, 0600, 0); printf("%d\n", q < 0 ? errno : 0);
    return 0;
}
"""
        )
    )
    assert status == 0
    if out:
        assert out.decode().split("\n") == [
            "-22 -22 -22",
            "0 0",
            "22",
            ": flags 0 max 5 size 200 now 0",
            "0",
            "",
        ]


def test_file_calls() -> None:
    """What else can be done to an open queue, and what not."""
    same(
        HEAD
        + r"""
#include <sys/sendfile.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <linux/falloc.h>
#include <sys/inotify.h>
#define S(x) do {                                                          \
    errno = 0;                                                             \
    long r_ = (long)(x);                                                   \
    printf("%s: %ld %d\n", #x, r_, r_ < 0 ? errno : 0);                    \
} while (0)
int main(void)
{
    int p[2]; pipe(p); fcntl(p[0], F_SETFL, O_NONBLOCK);
    int f = open("/tmp", O_TMPFILE | O_RDWR, 0600), n = open("/dev/null", O_RDWR);
    write(f, "data", 4); lseek(f, 0, SEEK_SET);
    make(O_RDWR, 4, 100);
    snd("hello", 1);
    off_t off = 0;
    S(sendfile(p[1], q, 0, 10));
    S(sendfile(q, f, 0, 4));
    S(copy_file_range(q, 0, f, 0, 10, 0));
    S(copy_file_range(f, 0, q, 0, 10, 0));
    write(p[1], "pp", 2);
    S(splice(p[0], 0, q, 0, 2, 0));
    S(splice(q, 0, p[1], 0, 2, 0));
    S(fallocate(q, 0, 0, 10));
    S(fallocate(q, FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE, 0, 10));
    S(posix_fadvise(q, 0, 10, POSIX_FADV_WILLNEED));
    S(readahead(q, 0, 10));
    S(sync_file_range(q, 0, 10, 0));
    S(fdatasync(q));
    S(syncfs(q));
    S(flock(q, LOCK_EX));
    struct flock fl = {.l_type = F_WRLCK};
    S(fcntl(q, F_SETLK, &fl));
    S(fcntl(q, F_GETPIPE_SZ));
    S(fcntl(q, F_GET_SEALS));
    S(getdents64(q, buf, 100));
    S(fchdir(q));
    S(fgetxattr(q, "user.x", buf, 10));
    int k;
    S(ioctl(q, FIONREAD, &k));
    S(ioctl(q, TCGETS, buf));
    S(lseek(q, 0, SEEK_END));
    S(lseek(q, 0, SEEK_DATA));
    S(lseek(q, 0, SEEK_HOLE));
    S(lseek(q, 0, SEEK_SET));
    struct iovec v = {buf, 5};
    S(readv(q, &v, 1));
    S(writev(q, &v, 1));
    S(preadv(q, &v, 1, 2));
    S(pwritev(q, &v, 1, 0));
    S(pwrite(q, "x", 1, 0));
    struct statfs sf;
    S(fstatfs(q, &sf));
    printf("%lx %ld %ld\n", (long)sf.f_type, (long)sf.f_bsize, (long)sf.f_namelen);
    S(fchmod(q, 0640));
    S(fchown(q, -1, -1));
    struct stat st; fstat(q, &st); printf("%o\n", st.st_mode);
    struct timespec ts[2] = {{5, 0}, {6, 0}};
    S(futimens(q, ts));
    fstat(q, &st);
    printf("%ld %ld\n", st.st_atime, st.st_mtime);
    S(fcntl(q, F_SETFL, O_NONBLOCK | O_APPEND)); printf("%o\n", fcntl(q, F_GETFL));
    S(fcntl(q, F_SETFL, O_DIRECT));
    attr("");
    S(mmap(0, 4096, PROT_READ, MAP_PRIVATE, q, 0) == MAP_FAILED ? -1 : 0);
    rcv();
    char path[99]; sprintf(path, "/proc/self/fd/%d", q);
    mqd_t q2 = open(path, O_RDONLY|O_NONBLOCK); printf("%d\n", q2 >= 0);
    snd("again", 1);
    q = q2; rcv();
    mq_unlink(name);
    return 0;
}
"""
    )


def test_nobody_left_to_tell() -> None:
    """Who has asked to be told may leave the descriptor to others: it goes with the queue then."""
    same(
        HEAD
        + r"""
static int asks(void *arg)
{
    printf("asks %d\n", ask_());
    printf("unshare %d\n", got(syscall(SYS_unshare, CLONE_FILES)));
    status();
    fflush(stdout);
    return 0;
}
int ask_(void)
{
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    return got(mq_notify(q, &ev));
}
static char stack[65536];
int main(void)
{
    make(O_RDWR, 3, 100);
    fflush(stdout);
    int pid = clone(asks, stack + sizeof stack, CLONE_FILES | SIGCHLD, 0);
    waitpid(pid, 0, 0);
    status();
    snd("x", 1);
    mq_unlink(name);
    mq_close(q);
    return 0;
}
"""
    )
