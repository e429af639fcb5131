"""System V shared memory: the same on the host and in the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfvm.kern.kern_check import check_machine
from dfvm.kern.sysv_ipc import ipc_ns
from dfvm.kern.sysv_shm import SHM_LOCK, SHM_UNLOCK, sys_shmat, sys_shmctl, sys_shmdt, sys_shmget
from dfvm.lwkt.panic import Panic
from dfvm.vm.vm_object import OBJT_DEFAULT, OBJT_PHYS
from dfvm.vm.vm_page import PG_UNQUEUED
from tests.kern.guest_util import CHILD, build, by_guest, same

if TYPE_CHECKING:
    from tests.kern.user_util import User

HEAD = (
    CHILD
    + r"""
#include <sys/ipc.h>
#include <sys/shm.h>
#define P 4096
static int id;
static struct shmid_ds ds;
static int got(int r) { return r < 0 ? -errno : 0; }
static void stat_(const char *what)
{
    if (shmctl(id, IPC_STAT, &ds) < 0) { printf("%s: stat %d\n", what, errno); return; }
    printf("%s: nattch %d mode %o size %zu key %d atime %d dtime %d cpid %d lpid %d\n", what,
           (int)ds.shm_nattch, ds.shm_perm.mode, ds.shm_segsz, ds.shm_perm.__key != 0,
           ds.shm_atime != 0, ds.shm_dtime != 0, ds.shm_cpid == getpid(),
           ds.shm_lpid == getpid());
}
static int cmp(const void *a, const void *b) { return strcmp(a, b); }
static void maps(void) /* in an order that does not depend on addresses */
{
    char line[512], rw[8], dev[8], name[99], out[20][200];
    unsigned long off, n = 0;
    int ino;
    FILE *f = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "%*s %s %lx %s %d %[^\n]", rw, &off, dev, &ino, name) == 5 &&
            strstr(name, "SYSV"))
            sprintf(out[n++], " %s %lx %s %d %s", rw, off, dev, ino == id, name);
    fclose(f);
    qsort(out, n, sizeof out[0], cmp);
    for (int i = 0; i < n; i++) puts(out[i]);
}
static jmp_buf env;
static void onsig(int s) { siglongjmp(env, s); }
static int touch(volatile char *p, int write)
{
    int s = sigsetjmp(env, 1);
    if (s) return s;
    signal(SIGSEGV, onsig);
    signal(SIGBUS, onsig);
    if (write) *p = 1; else *p;
    return 0;
}
"""
)


def test_pieces() -> None:
    """Each mapping of a segment, and each piece of one, is an attachment. They are not put
    together again."""
    same(
        HEAD
        + r"""
int main(void)
{
    id = shmget(IPC_PRIVATE, 10 * P - 100, IPC_CREAT | 0640);
    stat_("new");
    char *p = shmat(id, 0, 0);
    stat_("at"); maps();
    p[0] = 'a'; p[5 * P] = 'f'; p[10 * P - 1] = 'z';
    mprotect(p + P, P, PROT_READ); stat_("protected");
    mprotect(p + P, P, PROT_READ | PROT_WRITE); stat_("back"); maps();
    munmap(p + 2 * P, P); stat_("hole");
    char *q = mmap(0, 64 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("%d\n", mremap(p + 5 * P, 2 * P, 2 * P, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q);
    printf("%c\n", q[0]);
    stat_("moved"); maps();
    mlock(p, P); stat_("locked"); munlock(p, P); stat_("unlocked");
    printf("dt %d\n", got(shmdt(p))); stat_("detached"); maps();
    printf("dt %d\n", got(shmdt(p)));
    printf("dt %d\n", got(shmdt(q - 5 * P))); stat_("gone"); maps();
    p = shmat(id, 0, SHM_RDONLY);
    printf("%c %c %c\n", p[0], p[5 * P], p[10 * P - 1]);
    printf("%d\n", got(shmctl(id, IPC_RMID, 0)));
    stat_("removed"); maps();
    char *r = shmat(id, 0, 0);
    printf("again %d\n", r != (char *)-1); stat_("again");
    shmdt(p); stat_("one");
    shmdt(r); stat_("none");
    return 0;
}
"""
    )


def test_fork_exec_exit() -> None:
    """A child has what the parent has attached; exec and exit detach."""
    same(
        HEAD
        + r"""
static char *p;
static void kid(void)
{
    stat_("in the child");
    p[1]++;
    munmap(p, P);
    stat_("cut in the child");
}
int main(int argc, char **argv)
{
    if (argc > 1) {
        id = atoi(argv[1]);
        stat_("after exec"); maps();
        shmctl(id, IPC_RMID, 0);
        return 0;
    }
    id = shmget(IPC_PRIVATE, 3 * P, 0600);
    p = shmat(id, 0, 0);
    p[1] = 'a';
    child(kid);
    printf("%c\n", p[1]);
    stat_("child gone");
    madvise(p, 3 * P, MADV_DONTFORK);
    if (!fork()) { stat_("not inherited"); maps(); fflush(stdout); _exit(0); }
    wait(0);
    if (!vfork()) _exit(0);
    wait(0);
    stat_("vfork");
    char num[20];
    sprintf(num, "%d", id);
    fflush(stdout);
    execl("/proc/self/exe", "again", num, NULL);
    return 1;
}
"""
    )


def test_errors_of_get() -> None:
    same(
        HEAD
        + r"""
static int key;
static void nobody(void)
{
    if (setresgid(99, 99, 99) || setresuid(99, 99, 99)) printf("not root\n");
    printf("nobody: %d %d %d\n", got(shmget(key, 0, 0400)), got(shmget(key, 0, 0)),
           got(shmget(key, 0, 0004)));
    printf("at %d ro %d\n", shmat(id, 0, 0) == (void *)-1 ? errno : 0,
           shmat(id, 0, SHM_RDONLY) == (void *)-1 ? errno : 0);
    printf("stat %d set %d rm %d lock %d any %d\n", got(shmctl(id, IPC_STAT, &ds)),
           got(shmctl(id, IPC_SET, &ds)), got(shmctl(id, IPC_RMID, 0)),
           got(shmctl(id, SHM_LOCK, 0)), got(shmctl(id & 32767, 15, &ds)));
}
int main(void)
{
    key = 0x5e000000 + getpid();
    printf("%d\n", got(shmget(key, P, 0600)));
    printf("%d %d\n", got(shmget(key, 0, IPC_CREAT | 0600)), got(shmget(IPC_PRIVATE, 0, 0600)));
    printf("%d\n", got(shmget(IPC_PRIVATE, -1L, 0600)));
    printf("%d\n", got(shmget(IPC_PRIVATE, -1L - (1 << 24), 0600)));
    printf("%d\n", got(shmget(IPC_PRIVATE, 1L << 62, 0600)));
    printf("%d\n", got(shmget(IPC_PRIVATE, 1L << 50, 0600)));
    id = shmget(key, P + 1, IPC_CREAT | IPC_EXCL | 0600);
    printf("%d\n", id >= 0);
    printf("%d\n", got(shmget(key, P, IPC_CREAT | IPC_EXCL | 0600)));
    printf("%d %d\n", shmget(key, P, 0) == id, shmget(key, 0, IPC_CREAT) == id);
    printf("%d\n", got(shmget(key, 2 * P, 0)));
    printf("%d\n", got(shmget(key, P + 2, 0)));
    child(nobody);
    ds.shm_perm.uid = 99; ds.shm_perm.gid = 99; ds.shm_perm.mode = 07644;
    printf("set %d\n", got(shmctl(id, IPC_SET, &ds)));
    shmctl(id, IPC_STAT, &ds);
    printf("%d %d %d %d %o\n", ds.shm_perm.uid, ds.shm_perm.gid, ds.shm_perm.cuid,
           ds.shm_perm.cgid, ds.shm_perm.mode);
    child(nobody);
    ds.shm_perm.uid = -1;
    printf("set %d\n", got(shmctl(id, IPC_SET, &ds)));
    printf("%d\n", got(shmctl(id, IPC_RMID, 0)));
    printf("%d %d\n", got(shmctl(id, IPC_RMID, 0)), got(shmctl(-1, IPC_RMID, 0)));
    printf("%d\n", got(shmget(key, P, 0)));
    printf("huge %d\n", got(shmget(IPC_PRIVATE, 2 << 20, 04600 | 9 << 26)));
    printf("cmd %d %d %d\n", got(shmctl(0, 77, 0)), got(shmctl(0, -1, 0)),
           got(shmctl(0, IPC_STAT | 0x100, &ds)));
    printf("fault %d %d\n", got(shmctl(0, IPC_INFO, 0)), got(shmctl(0, SHM_INFO, 0)));
    return 0;
}
"""
    )


def test_errors_of_at() -> None:
    same(
        HEAD
        + r"""
static long at(void *addr, int flags)
{
    void *p = shmat(id, addr, flags);
    return p == (void *)-1 ? -errno : addr ? (char *)p - (char *)addr : 1;
}
int main(void)
{
    id = shmget(IPC_PRIVATE, 3 * P, 0600);
    char *q = mmap(0, 16 * P, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("taken %ld\n", at(q, 0));
    printf("remap %ld\n", at(q, SHM_REMAP));
    maps();
    printf("again %ld\n", at(q + P, SHM_REMAP));
    maps();
    stat_("both");
    printf("dt %d\n", got(shmdt(q)));
    maps();
    printf("part %ld\n", at(q - 2 * P, 0));
    printf("odd %ld\n", at(q + 8 * P + 100, SHM_REMAP));
    printf("rnd %ld\n", at(q + 8 * P + 100, SHM_REMAP | SHM_RND));
    maps();
    printf("null %ld %ld\n", at(0, SHM_REMAP), at((void *)100, SHM_REMAP | SHM_RND));
    printf("high %ld %ld\n", at((void *)0x7ffffffff000, 0), at((void *)-4096L, 0));
    printf("high %ld\n", at((void *)0x800000000000, SHM_REMAP));
    printf("dt %d %d\n", got(shmdt(q + 1)), got(shmdt((void *)0x1000)));
    printf("no id %d\n", shmat(-1, 0, 0) == (void *)-1 ? errno : 0);
    char *r = shmat(id, 0, SHM_RDONLY);
    printf("read %d write %d\n", touch(r, 0), touch(r, 1));
    printf("protect %d %d\n", got(mprotect(r, P, PROT_READ | PROT_WRITE)),
           got(mprotect(r, P, PROT_READ | PROT_EXEC)));
    maps();
    char *x = shmat(id, 0, SHM_EXEC);
    printf("exec right %d\n", x == (char *)-1 ? errno : 0);
    maps();
    shmctl(id, IPC_RMID, 0);
    id = shmget(IPC_PRIVATE, 2 * P, 0700);
    x = shmat(id, 0, SHM_EXEC);
    x[0] = 0xb8; x[1] = 42; x[2] = x[3] = x[4] = 0; x[5] = 0xc3;
    printf("run %d\n", ((int (*)(void))x)());
    char *more = mremap(x, 2 * P, 4 * P, MREMAP_MAYMOVE);
    printf("grow %d %d %d\n", more != MAP_FAILED, touch(more + P, 1), touch(more + 2 * P, 1));
    maps();
    shmctl(id, IPC_STAT, &ds); /* whether it had to be moved, which detaches, may differ */
    printf("%d\n", (int)ds.shm_nattch);
    char *twice = mremap(more, 0, P, MREMAP_MAYMOVE);
    printf("twice %d\n", twice != MAP_FAILED && twice[0] == more[0]);
    shmctl(id, IPC_STAT, &ds);
    printf("%d\n", (int)ds.shm_nattch);
    struct rlimit rl = {0};
    getrlimit(RLIMIT_AS, &rl);
    rl.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_AS, &rl);
    int big = shmget(IPC_PRIVATE, 4 << 20, 0600);
    printf("limit %d\n", shmat(big, 0, 0) == (void *)-1 ? errno : 0);
    shmctl(big, IPC_RMID, 0);
    shmctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_memory() -> None:
    """What is in a segment stays, wherever it is attached or not; holes are zeros; what is removed
    goes."""
    same(
        HEAD
        + r"""
int main(void)
{
    id = shmget(IPC_PRIVATE, 64 * P, 0600);
    char *p = shmat(id, 0, 0), *q = shmat(id, 0, 0);
    for (int i = 0; i < 64; i += 3) p[i * P] = i + 1;
    int sum = 0;
    for (int i = 0; i < 64; i++) sum = sum * 3 + q[i * P];
    printf("%d\n", sum);
    shmdt(p); shmdt(q);
    p = shmat(id, 0, 0);
    sum = 0;
    for (int i = 0; i < 64; i++) sum = sum * 3 + p[i * P];
    printf("%d\n", sum);
    printf("%d\n", got(madvise(p + 3 * P, P, MADV_DONTNEED)));
    printf("%d\n", p[3 * P]);
    printf("%d\n", got(madvise(p + 3 * P, P, MADV_REMOVE)));
    printf("%d\n", p[3 * P]);
    printf("lock %d", got(shmctl(id, SHM_LOCK, 0)));
    stat_("");
    printf("lock %d\n", got(shmctl(id, SHM_LOCK, 0)));
    p[3 * P] = 7; p[4 * P] = 8;
    printf("%d\n", got(madvise(p + 6 * P, P, MADV_REMOVE)));
    printf("unlock %d", got(shmctl(id, SHM_UNLOCK, 0)));
    stat_("");
    printf("unlock %d\n", got(shmctl(id, SHM_UNLOCK, 0)));
    printf("%d %d %d %d\n", p[3 * P], p[4 * P], p[6 * P], p[9 * P]);
    struct shm_info info;
    shmctl(id, SHM_LOCK, 0);
    printf("msync %d mlock %d\n", got(msync(p, 64 * P, MS_SYNC)), got(mlock(p, 2 * P)));
    if (!fork()) { p[0] = 99; _exit(0); }
    wait(0);
    printf("%d\n", p[0]);
    shmctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_lock_limit() -> None:
    """SHM_LOCK counts a whole segment against RLIMIT_MEMLOCK, for those who may not lock freely."""
    same(
        HEAD
        + r"""
static void nobody(void)
{
    struct rlimit rl = {8 * P, 8 * P};
    setrlimit(RLIMIT_MEMLOCK, &rl);
    if (setresgid(98, 98, 98) || setresuid(98, 98, 98)) printf("not root\n");
    int a = shmget(IPC_PRIVATE, 6 * P, 0600), b = shmget(IPC_PRIVATE, 2 * P + 1, 0600);
    printf("%d\n", got(shmctl(a, SHM_LOCK, 0)));
    printf("%d\n", got(shmctl(b, SHM_LOCK, 0)));
    printf("%d\n", got(shmctl(a, SHM_LOCK, 0)));
    printf("%d\n", got(shmctl(a, SHM_UNLOCK, 0)));
    printf("%d\n", got(shmctl(b, SHM_LOCK, 0)));
    printf("%d\n", got(shmctl(a, SHM_LOCK, 0)));
    shmctl(b, IPC_RMID, 0);
    printf("%d\n", got(shmctl(a, SHM_LOCK, 0)));
    shmctl(a, IPC_RMID, 0);
    printf("%d\n", got(shmctl(id, SHM_LOCK, 0)));
    printf("%d\n", got(shmctl(id, SHM_UNLOCK, 0)));
    rl.rlim_cur = 0;
    setrlimit(RLIMIT_MEMLOCK, &rl);
    a = shmget(IPC_PRIVATE, P, 0600);
    printf("%d %d\n", got(shmctl(a, SHM_LOCK, 0)), got(shmctl(a, SHM_UNLOCK, 0)));
    shmctl(a, IPC_RMID, 0);
    char *p = shmat(id, 0, 0);
    printf("%d\n", got(mlock(p, P)));
}
int main(void)
{
    id = shmget(IPC_PRIVATE, P, 0666);
    child(nobody);
    shmctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_numbers() -> None:
    """Numbers are given in turn; a place that is used again has another number. (The host may have
    segments of others, so this is about the machine alone.)"""
    status, out = by_guest(
        build(
            HEAD
            + r"""
int main(void)
{
    int ids[200], n, i;
    for (i = 0; i < 70; i++) {
        n = shmget(IPC_PRIVATE, P, 0600);
        if (i % 23 == 0) printf("%d ", n);
        shmctl(n, IPC_RMID, 0);
    }
    for (i = 0; i < 100; i++) ids[i] = shmget(IPC_PRIVATE, P, 0600);
    printf("%d %d\n", ids[0], ids[99]);
    shmctl(ids[5], IPC_RMID, 0);
    n = shmget(IPC_PRIVATE, P, 0600);
    printf("%d %d\n", n, shmctl(ids[5] + 0x8000, IPC_STAT, &ds));
    struct shminfo info;
    struct shm_info sum;
    printf("%d\n", shmctl(0, IPC_INFO, (void *)&info));
    printf("%lu %lu\n", info.shmmni, info.shmmin);
    printf("%d\n", shmctl(0, SHM_INFO, (void *)&sum));
    printf("%d %lu %lu\n", sum.used_ids, sum.shm_tot, sum.shm_rss);
    printf("%d %d %d\n", shmctl(9, SHM_STAT, &ds) == ids[3], shmctl(ids[5] & 32767, 15, &ds),
           shmctl(9, SHM_STAT, 0));
    for (i = 0; (n = shmget(IPC_PRIVATE, P, 0600)) >= 0; i++)
        ;
    printf("%d %d\n", i, errno);
    return 0;
}
"""
        )
    )
    assert status == 0
    assert out.decode().split("\n") == [
        "0 23 46 32773 32774 32873",
        "32874 -1",
        "106",
        "4096 1",
        "106",
        "100 100 0",
        "1 -1 -1",
        "3996 28",
        "",
    ]


def test_proc() -> None:
    """/proc/sysvipc/shm, and the limits in /proc/sys/kernel."""
    same(
        HEAD
        + r"""
static int put(const char *name, const char *value)
{
    char path[99];
    sprintf(path, "/proc/sys/kernel/%s", name);
    int fd = open(path, O_WRONLY);
    if (fd < 0) return -errno;
    int r = write(fd, value, strlen(value));
    close(fd);
    return r < 0 ? -errno : r;
}
int main(void)
{
    char line[512], want[99];
    id = shmget(IPC_PRIVATE, 3 * P + 5, 0612);
    char *p = shmat(id, 0, 0);
    p[0] = p[P] = p[2 * P] = p[3 * P] = 1;
    sprintf(want, "%10d %10d ", 0, id);
    FILE *f = fopen("/proc/sysvipc/shm", "r");
    while (fgets(line, sizeof line, f)) {
        if (!strncmp(line, want, strlen(want))) {
            long cpid, lpid, times[3];
            sscanf(line + 49, "%ld %ld", &cpid, &lpid);
            sscanf(line + 92, "%ld %ld %ld", times, times + 1, times + 2);
            printf("%.27s %d %d %.31s %d %ld %d %.43s\n", line + 22, cpid == getpid(),
                   lpid == getpid(), line + 61, times[0] > 1e9, times[1], times[2] > 1e9,
                   line + strlen(line) - 44);
        } else if (strstr(line, "key"))
            printf("%s", line);
    }
    shmctl(id, IPC_RMID, 0);
    printf("%d %d %d\n", put("shmmni", "40000"), put("shmmax", ""), put("shm_rmid_forced", "2"));
    return 0;
}
"""
    )


def test_limits() -> None:
    """What the limits say is what is kept to; segments can be made to go with their last user."""
    status, out = by_guest(
        build(
            HEAD
            + r"""
static void put(const char *name, const char *value)
{
    char path[99];
    sprintf(path, "/proc/sys/kernel/%s", name);
    int fd = open(path, O_WRONLY);
    if (write(fd, value, strlen(value)) < 0) printf("%s: %d\n", name, errno);
    close(fd);
}
static void make(void) { id = shmget(99, P, IPC_CREAT | 0600); }
static void use(void)
{
    id = shmget(98, P, IPC_CREAT | 0600);
    shmat(id, 0, 0);
    shmget(97, P, IPC_CREAT);
}
int main(void)
{
    if (geteuid()) return 0;
    put("shmmax", "20000");
    printf("%d\n", got(shmget(IPC_PRIVATE, 20001, 0600)));
    put("shmall", "5");
    int a = shmget(IPC_PRIVATE, 4 * P - 5000 + P - 4000, 0600);
    printf("%d\n", got(shmget(IPC_PRIVATE, 2 * P + 1, 0600)));
    put("shmmni", "2");
    int b = shmget(IPC_PRIVATE, P, 0600);
    printf("%d\n", got(shmget(IPC_PRIVATE, 1, 0600)));
    put("shmmni", "4096");
    put("shmall", "10000");
    child(make);
    printf("%d\n", got(shmget(99, 0, 0)));
    put("shm_rmid_forced", "1");
    printf("%d\n", got(shmget(99, 0, 0)));
    child(use);
    printf("%d %d\n", got(shmget(98, 0, 0)), got(shmget(97, 0, 0)));
    id = a; stat_("");
    shmdt(shmat(a, 0, 0)); stat_("");
    put("shm_next_id", "98304");
    printf("%d\n", shmget(IPC_PRIVATE, P, 0600));
    return 0;
}
"""
        )
    )
    assert status == 0
    if out:
        assert out.decode().split("\n") == [
            "-22",
            "-28",
            "-28",
            "0",
            "-2",
            "-2 -2",
            ": nattch 0 mode 600 size 11480 key 0 atime 0 dtime 0 cpid 1 lpid 0",
            ": stat 22",
            "98304",
            "",
        ]


@pytest.mark.spec("PAGER-6")
def test_locked_memory_is_the_phys_pagers(user: User) -> None:
    """SHM_LOCK takes the pages there are off their queues, and those to come never enter one."""
    page = 4096
    shmid = user.call(sys_shmget, 0, 4 * page, 0o600)
    at = user.call(sys_shmat, shmid, 0, 0)
    user.write(at, b"before")
    shp = ipc_ns(user.kernel).shm_ids.get(shmid)
    obj = shp.object
    assert obj.type == OBJT_DEFAULT
    assert all(m.queue for m in obj.rb_memq.values())
    assert user.call(sys_shmctl, shmid, SHM_LOCK, 0) == 0
    user.write(at + 3 * page, b"locked")
    assert obj.type == OBJT_PHYS
    assert set(obj.rb_memq) >= {0, 3}
    assert all(not m.queue and m.flags & PG_UNQUEUED for m in obj.rb_memq.values())
    assert user.call(sys_shmctl, shmid, SHM_UNLOCK, 0) == 0
    assert obj.type == OBJT_DEFAULT
    assert all(m.queue and m.dirty for m in obj.rb_memq.values())
    assert user.read(at, 6) + user.read(at + 3 * page, 6) == b"beforelocked"


def test_check(user: User) -> None:
    """Machine.check() knows why a segment's memory is there, and finds what nothing explains."""
    shmid = user.call(sys_shmget, 0, 4096, 0o600)
    at = user.call(sys_shmat, shmid, 0, 0)
    ns = ipc_ns(user.kernel)
    shp = ns.shm_ids.get(shmid)
    assert shp.object.ref_count == 2
    ns.shm_tot += 1
    with pytest.raises(Panic, match="have 1 pages, not 2"):
        check_machine(user.kernel)
    ns.shm_tot -= 1
    del ns.shm_ids.ipcs[0]
    with pytest.raises(Panic, match="belongs to a segment that is gone"):
        check_machine(user.kernel)
    ns.shm_ids.ipcs[0] = shp
    assert user.call(sys_shmdt, at) == 0
    assert shp.object.ref_count == 1


def test_wired_attachments() -> None:
    """Attachments that are locked with mlock grow, and lose pages to others who make holes."""
    same(
        HEAD
        + r"""
int main(void)
{
    id = shmget(IPC_PRIVATE, 4 * P, 0600);
    char *p = shmat(id, 0, 0), *q = shmat(id, 0, 0);
    memset(p, 7, 4 * P);
    munmap(p + 2 * P, 2 * P);
    printf("%d\n", got(mlock(p, 2 * P)));
    p = mremap(p, 2 * P, 4 * P, MREMAP_MAYMOVE);
    printf("%d %d\n", p[0], p[3 * P]);
    printf("%d %d\n", got(madvise(p, P, MADV_REMOVE)), got(madvise(q, P, MADV_REMOVE)));
    printf("%d\n", got(shmctl(id, SHM_LOCK, 0)));
    printf("%d\n", got(shmctl(id, SHM_UNLOCK, 0)));
    printf("%d %d\n", p[0], q[P]);
    p[0] = 8;
    printf("%d %d\n", q[0], got(munlock(p, 4 * P)));
    shmdt(p); shmdt(q);
    stat_("");
    shmctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_over_itself() -> None:
    """Attaching a removed segment in place of its last attachment keeps it; remap_file_pages,
    which takes the old mapping away first, does not."""
    same(
        HEAD
        + r"""
int main(void)
{
    id = shmget(IPC_PRIVATE, 2 * P, 0600);
    char *p = shmat(id, 0, 0);
    p[0] = 5;
    shmctl(id, IPC_RMID, 0);
    printf("%d\n", shmat(id, p, SHM_REMAP) == p);
    stat_("over itself"); maps();
    printf("%d\n", p[0]);
    printf("%d\n", got(remap_file_pages(p, 2 * P, 0, 0, 0)));
    stat_("remapped");
    printf("%d %d\n", touch(p, 0), got(shmdt(p)));
    id = shmget(IPC_PRIVATE, 2 * P, 0600);
    p = shmat(id, 0, 0);
    shmctl(id, IPC_RMID, 0);
    int other = shmget(IPC_PRIVATE, P, 0600);
    printf("%d\n", shmat(other, p, SHM_REMAP) == p);
    stat_("half");
    printf("%d\n", shmat(other, p+P, SHM_REMAP) == p+P);
    stat_("gone");
    munmap(p, 2*P);
    shmctl(other, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_advice_and_locks() -> None:
    """What cuts an attachment, and what does not."""
    same(
        HEAD
        + r"""
int main(void)
{
    id = shmget(IPC_PRIVATE, 8 * P, 0600);
    char *p = shmat(id, 0, 0);
    for (int i = 0; i < 8; i++) p[i * P] = i + 1;
    printf("%d\n", got(remap_file_pages(p + P, 2 * P, 0, 4, 0)));
    for (int i = 0; i < 8; i++) printf("%d ", p[i * P]);
    stat_("remapped"); maps();
    printf("dt %d\n", got(shmdt(p)));
    stat_("dt"); maps();
    char *q = shmat(id, 0, SHM_RDONLY);
    printf("%d\n", got(remap_file_pages(q + P, 2 * P, 0, 4, 0)));
    int advice[] = {MADV_DONTFORK, MADV_DOFORK, MADV_SEQUENTIAL, MADV_NORMAL, MADV_WILLNEED,
                    MADV_FREE, MADV_WIPEONFORK, MADV_DONTDUMP};
    for (int i = 0; i < 8; i++) {
        printf("%d", got(madvise(q, P, advice[i])));
        stat_("");
    }
    printf("%d\n", got(mlock2(q + 4 * P, P, MLOCK_ONFAULT))); stat_("mlock2");
    printf("%d\n", got(mlockall(MCL_CURRENT))); stat_("mlockall");
    printf("%d\n", got(munlockall())); stat_("munlockall");
    printf("%d\n", got(msync(q, 3 * P, MS_SYNC | MS_INVALIDATE))); stat_("msync");
    shmctl(id, IPC_RMID, 0);
    mlockall(MCL_FUTURE);
    id = shmget(IPC_PRIVATE, 8 * P, 0600);
    char vec[8];
    printf("future %d", got(mincore(shmat(id, 0, 0), 8 * P, vec)));
    for (int i = 0; i < 8; i++) printf(" %d", vec[i] & 1);
    shmctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_borders() -> None:
    """A change may move the border between two pieces of an attachment; it never makes one of two
    that were there before. Pieces that are moved join what they come to lie behind."""
    same(
        HEAD
        + r"""
#define BASE ((char *)0x10000000000)
static void show(const char *what) { stat_(what); maps(); }
int main(void)
{
    id = shmget(IPC_PRIVATE, 8 * P, 0600);
    char *p = shmat(id, BASE, 0);
    mprotect(p, P, PROT_READ); show("first page");
    mprotect(p + P, P, PROT_READ); show("second page");
    mprotect(p, 3 * P, PROT_READ | PROT_WRITE); show("writable");
    mprotect(p + 4 * P, P, PROT_READ); show("middle");
    mprotect(p + 4 * P, P, PROT_READ | PROT_WRITE); show("back");
    madvise(p, 8 * P, MADV_NORMAL); show("normal");
    madvise(p + P, 2 * P, MADV_RANDOM); show("random");
    madvise(p + P, P, MADV_NORMAL); show("normal");
    mremap(p + 7 * P, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, p + 20 * P); show("moved");
    mremap(p + 20 * P, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, p + 7 * P); show("and back");
    remap_file_pages(p + 6 * P, P, 0, 6, 0); show("remapped");
    printf("%d\n", mremap(p, 8 * P, 8 * P, MREMAP_MAYMOVE | MREMAP_FIXED, p + 20 * P) ==
           MAP_FAILED ? errno : 0);
    show("all at once");
    printf("%d\n", got(shmdt(p)));
    show("gone");
    shmctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )


def test_borders_of_locks() -> None:
    """So do mlock and mlock2, which wait for pages on their way or take several steps."""
    same(
        HEAD
        + r"""
int main(void)
{
    id = shmget(IPC_PRIVATE, 6 * P, 0600);
    char *p = shmat(id, (char *)0x10000000000, 0);
    mlock(p + 4 * P, 2 * P); stat_("the end");
    mlock(p + P, 4 * P); stat_("from the second page on");
    munlock(p + 2 * P, P); stat_("without the third");
    mlock(p, 6 * P); stat_("all");
    shmdt(p);
    for (int n = 0; n < 6; n++) munmap(p + n * P, P);
    stat_("gone");
    p = shmat(id, (char *)0x10000000000, 0);
    mlock2(p + P, 2 * P, 1); stat_("when they come");
    mlock2(p, 4 * P, 1); stat_("those around them, too");
    munlock(p + 2 * P, 4 * P); stat_("not so many");
    for (int n = 0; n < 6; n++) munmap(p + n * P, P);
    shmctl(id, IPC_RMID, 0);
    return 0;
}
"""
    )
