"""Memory calls and faults in C, each program run by Linux and in the machine: what every call
answers, what every access finds, and what /proc says of it must be the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm import Machine
from tests.kern.guest_util import build, by_guest, same

if TYPE_CHECKING:
    from pathlib import Path

HELP = r"""
#define P 4096L
#define RW (PROT_READ | PROT_WRITE)
#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
#define SHARED (MAP_SHARED | MAP_ANONYMOUS)

/* What a call answered; addresses are told by SAY(…) of a difference or of a comparison. */
#define SAY(call) do {                                                              \
    errno = 0;                                                                      \
    long answer = (long)(call);                                                     \
    if (answer == -1) printf("%d %s: -1, errno %d\n", __LINE__, #call, errno);      \
    else printf("%d %s: %ld\n", __LINE__, #call, answer);                           \
} while (0)
#define OK(call) SAY((void *)(call) == MAP_FAILED ? -1 : 0)

static sigjmp_buf out;
static siginfo_t info;
static void caught(int sig, siginfo_t *i, void *c) { info = *i; siglongjmp(out, 1); }

/* What reading ('r') or writing ('w') the byte at p does. */
static void touch(int line, char how, char *p) {
    struct sigaction sa = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, 0);
    sigaction(SIGBUS, &sa, 0);
    if (sigsetjmp(out, 1))
        printf("%d %c: signal %d, code %d, %s\n", line, how, info.si_signo, info.si_code,
               info.si_addr == p ? "there" : "elsewhere");
    else if (how == 'r')
        printf("%d r: %d\n", line, *(volatile char *)p);
    else
        *(volatile char *)p = 'w', printf("%d w\n", line);
}
#define R(p) touch(__LINE__, 'r', p)
#define W(p) touch(__LINE__, 'w', p)

static char *map(int pages, int prot, int flags, int fd) {
    char *p = mmap(0, pages * P, prot, flags, fd, 0);
    if (p == MAP_FAILED) perror("mmap"), exit(1);
    return p;
}

/* An unlinked file, page n of it full of 'a' + n. */
static int file(int pages) {
    char name[] = "/tmp/mmanXXXXXX", page[P];
    int fd = mkstemp(name);
    unlink(name);
    for (int n = 0; n < pages; n++) {
        memset(page, 'a' + n, P);
        write(fd, page, P);
    }
    return fd;
}

#define CHILD(...) do {                                                             \
    fflush(stdout);                                                                 \
    if (fork() == 0) { __VA_ARGS__; fflush(stdout); _exit(0); }                     \
    int how;                                                                        \
    wait(&how);                                                                     \
    printf("%d child: %#x\n", __LINE__, how);                                       \
} while (0)

/* A line of /proc/self/smaps, or the whole VmFlags line, of the mapping that p lies in. */
static void smaps(int line, char *p, const char *field) {
    FILE *f = fopen("/proc/self/smaps", "r");
    char text[512];
    unsigned long start, end;
    int inside = 0;
    while (fgets(text, sizeof text, f))
        if (sscanf(text, "%lx-%lx ", &start, &end) == 2)
            inside = start <= (unsigned long)p && (unsigned long)p < end;
        else if (inside && strncmp(text, field, strlen(field)) == 0)
            printf("%d %s", line, text);
    fclose(f);
}
#define SMAPS(p, field) smaps(__LINE__, p, field)
"""


def test_truncation_takes_private_copies_along() -> None:
    same(
        HELP
        + r"""
    int main(void) {
        int fd = file(4), fd2, go[2], done[2];
        char *p = map(4, RW, MAP_PRIVATE, fd), c;
        for (int n = 0; n < 4; n++) p[n * P] = '0' + n;
        ftruncate(fd, P + P / 2);
        for (int n = 0; n < 4; n++) R(p + n * P);
        W(p + 2 * P);
        ftruncate(fd, 4 * P);
        for (int n = 0; n < 4; n++) R(p + n * P);

        /* Copies in a parent and in its children, some of them behind others. */
        fd = file(4), p = map(4, RW, MAP_PRIVATE, fd);
        pipe(go), pipe(done);
        for (int k = 0; k < 3; k++) {
            p[(k + 1) * P] = 'A' + k;
            fflush(stdout);
            if (fork() == 0) {
                p[3 * P] = '0' + k;
                write(done[1], "", 1);
                read(go[0], &c, 1);
                for (int n = 0; n < 4; n++) R(p + n * P);
                exit(0);
            }
            read(done[0], &c, 1);
        }
        ftruncate(fd, 2 * P);
        for (int k = 0; k < 3; k++) {
            write(go[1], "", 1);
            wait(0);
        }
        for (int n = 0; n < 4; n++) R(p + n * P);

        /* By name, and by O_TRUNC. */
        sprintf(p, "/proc/self/fd/%d", fd);
        char *q = map(2, RW, MAP_PRIVATE, fd);
        q[0] = 'x', q[P] = 'y';
        SAY(truncate(p, P));
        R(q), R(q + P);
        SAY(open(p, O_RDWR | O_TRUNC) > 0);
        R(q), W(q);
        return 0;
    }
    """
    )


def test_truncation_of_what_is_locked() -> None:
    same(
        HELP
        + r"""
    int main(void) {
        for (int kind = MAP_SHARED; kind <= MAP_PRIVATE; kind++) {
            int fd = file(3);
            char *p = map(3, RW, kind, fd);
            p[P] = 'y';
            SAY(mlock(p, 3 * P));
            p[2 * P] = 'z';
            ftruncate(fd, P);
            for (int n = 0; n < 3; n++) R(p + n * P);
            CHILD(for (int n = 0; n < 3; n++) R(p + n * P));
            ftruncate(fd, 3 * P);
            R(p + P), R(p + 2 * P), W(p + P), R(p + P);
            CHILD(for (int n = 0; n < 3; n++) R(p + n * P));
            SAY(munlock(p, 3 * P));
            R(p + P), R(p + 2 * P);
        }
        return 0;
    }
    """
    )


def test_locked_is_more_than_wired() -> None:
    """What can't be in memory is locked, too, and memory can be locked as it comes."""
    same(
        HELP
        + r"""
    static char locked(char *p) {
        return msync(p, P, MS_ASYNC | MS_INVALIDATE) == 0 ? '-' : errno == EBUSY ? 'L' : '?';
    }
    static void tell(int line, char *p, int pages) {
        unsigned char here[16];
        printf("%d ", line);
        for (int n = 0; n < pages; n++) {
            mincore(p + n * P, P, here);
            printf("%c%d ", locked(p + n * P), here[0] & 1);
        }
        puts("");
        fflush(stdout);
    }
    #define TELL(p, pages) tell(__LINE__, p, pages)

    int main(void) {
        char *p = map(3, PROT_NONE, PRIVATE, -1), *q;
        SAY(mlock(p, 3 * P)); TELL(p, 3); SMAPS(p, "VmFlags"), SMAPS(p, "Locked");
        SAY(mprotect(p, 2 * P, PROT_READ)); TELL(p, 3);
        SAY(mprotect(p, 3 * P, RW)); TELL(p, 3); SMAPS(p, "Locked");
        CHILD(TELL(p, 3));
        SAY(munlock(p, 3 * P)); TELL(p, 3); SMAPS(p, "VmFlags");

        int fd = file(2);
        p = map(4, RW, MAP_SHARED, fd);
        SAY(mlock(p, 4 * P)); TELL(p, 2); SMAPS(p, "Locked");
        SAY(ftruncate(fd, 3 * P)); W(p + 2 * P); TELL(p, 3); SMAPS(p, "Locked");
        SAY(munlock(p, 4 * P));

        p = map(4, RW, PRIVATE, -1);
        p[P] = 1;
        SAY(madvise(p, 4 * P, MADV_RANDOM));
        SAY(madvise(p, P, MADV_DONTNEED)); SAY(madvise(p + 2 * P, 2 * P, MADV_DONTNEED));
        SAY(syscall(SYS_mlock2, p, 4 * P, 1)); TELL(p, 4); SMAPS(p, "Locked"), SMAPS(p, "VmFlags");
        W(p + 3 * P); TELL(p, 4); SMAPS(p, "Locked");
        OK(q = mremap(p, 4 * P, 5 * P, MREMAP_MAYMOVE)); SMAPS(q, "VmFlags");
        p = q;
        SAY(mlock(p, 4 * P)); TELL(p, 4); SMAPS(p, "VmFlags");
        SAY(syscall(SYS_mlock2, p, 4 * P, 1)); TELL(p, 4); SMAPS(p, "VmFlags");
        SAY(syscall(SYS_mlock2, p, 4 * P, 2));
        SAY(madvise(p, 4 * P, MADV_DONTNEED)); SAY(madvise(p, 4 * P, 24)); TELL(p, 4);
        SAY(munlockall()); TELL(p, 4);

        long room = 1L << 40;  // of which next to nothing is there
        OK(p = mmap(0, room, RW, PRIVATE | MAP_NORESERVE, -1, 0));
        SAY(madvise(p, room, MADV_RANDOM));
        p[7 * P] = p[8 * P] = p[room / 2] = 1;
        SAY(syscall(SYS_mlock2, p, room, 1)); SMAPS(p, "Locked"), SMAPS(p, "VmFlags");
        p[9 * P] = p[room - 1] = 1; SMAPS(p, "Locked");
        SAY(mlockall(MCL_CURRENT | 4)); SAY(munlockall()); SMAPS(p, "Locked"); SAY(munmap(p, room));

        CHILD(SAY(mlockall(MCL_FUTURE | 4)); p = map(2, RW, PRIVATE, -1); TELL(p, 2); p[P] = 1;
              TELL(p + P, 1); p = sbrk(4 * P) + P; TELL((char *)((long)p & -P), 2));
        CHILD(p = map(2, RW, PRIVATE, -1); q = map(1, 0, PRIVATE, -1);
              SAY(mlockall(MCL_CURRENT | 4)); TELL(p, 2), TELL(q, 1);
              SAY(mlockall(MCL_CURRENT)); TELL(p, 2), TELL(q, 1));
        CHILD(SAY(mlockall(MCL_FUTURE)); p = map(2, PROT_NONE, PRIVATE, -1); TELL(p, 2));
        SAY(mlock((void *)-P, P)); SAY(mlock(p, -P)); SAY(munlock(p, -P)); SAY(mlock(p + P, -1));
        return 0;
    }
    """
    )


def test_what_maps_and_smaps_tell() -> None:
    """One line for what is one mapping to Linux, however many entries it is here, with the rights
    and the flags that were asked for."""
    same(
        HELP
        + r"""
    static void line(int n, char *p) {
        FILE *f = fopen("/proc/self/maps", "r");
        char text[512], rights[8];
        unsigned long start, end;
        while (fgets(text, sizeof text, f))
            if (sscanf(text, "%lx-%lx %7s", &start, &end, rights) == 3 &&
                start <= (unsigned long)p && (unsigned long)p < end)
                printf("%d: %ld before, %ld after, %s\n", n, ((long)p - (long)start) / P,
                       ((long)end - (long)p) / P, rights);
        fclose(f);
    }
    #define LINE(p) line(__LINE__, p)

    /* Pages with others that can't be merged with them on both sides. */
    static char *apart(int pages, int prot, int flags, int fd) {
        char *p = map(pages + 2, PROT_NONE, SHARED, -1);
        return mmap(p + P, pages * P, prot, flags | MAP_FIXED, fd, 0);
    }

    int main(void) {
        int fd = file(8), ro = open("/proc/self/exe", O_RDONLY);
        char *p = apart(8, RW, PRIVATE, -1);
        for (int n = 0; n < 8; n += 2) p[n * P] = 1;
        CHILD(p[P] = 1; LINE(p));
        p[3 * P] = 1; LINE(p);
        mprotect(p + 3 * P, P, PROT_READ); LINE(p), LINE(p + 3 * P), LINE(p + 4 * P);
        mprotect(p + 3 * P, P, RW); LINE(p);
        mlock(p + 2 * P, P); LINE(p + 2 * P); munlock(p + 2 * P, P); LINE(p);
        SAY(madvise(p + 2 * P, 2 * P, MADV_DONTFORK)); LINE(p), LINE(p + 2 * P);
        SMAPS(p + 2 * P, "VmFlags");
        SAY(madvise(p + 2 * P, 2 * P, MADV_DOFORK)); LINE(p);
        p = apart(8, RW, MAP_PRIVATE, fd);
        p[4 * P] = 1, p[5 * P] = 1; LINE(p);
        CHILD(p[5 * P] = 2; LINE(p));
        mprotect(p + P, P, PROT_READ); mprotect(p + P, P, RW); LINE(p);
        p = apart(2, PROT_WRITE, PRIVATE | MAP_POPULATE, -1); LINE(p); SMAPS(p, "VmFlags");
        p = apart(2, PROT_EXEC, PRIVATE, -1); LINE(p);
        SAY(mprotect(p, P, PROT_READ | PROT_EXEC)); LINE(p), LINE(p + P);
        SAY(mprotect(p, P, PROT_WRITE)); LINE(p);
        p = apart(2, RW, PRIVATE | MAP_NORESERVE, -1); SMAPS(p, "VmFlags");
        p = apart(2, RW, SHARED, -1); SMAPS(p, "VmFlags"); LINE(p);
        p = apart(2, PROT_READ, MAP_SHARED, ro); SMAPS(p, "VmFlags"); LINE(p);
        return 0;
    }
    """
    )


def test_wipe_on_fork() -> None:
    same(
        HELP
        + r"""
    int main(void) {
        char *p = map(4, RW, PRIVATE, -1), *q = map(1, RW, SHARED, -1);
        memset(p, 'w', 4 * P);
        SAY(madvise(p + P, 2 * P, 18));
        CHILD(for (int n = 0; n < 4; n++) R(p + n * P);
              p[P] = 'c';
              CHILD(R(p + P));
              R(p + P));
        R(p + P);
        SAY(mlock(p, 4 * P));
        CHILD(R(p), R(p + P));
        SAY(munlock(p, 4 * P));
        SAY(madvise(p + P, P, 19));
        CHILD(R(p + P), R(p + 2 * P));
        SAY(madvise(q, P, 18)); SAY(madvise(map(1, RW, MAP_PRIVATE, file(1)), P, 18));
        SAY(madvise(q, P, 19));

        /* Nothing of it is there with DONTFORK, whichever was said first. */
        SAY(madvise(p, 4 * P, 10));
        SAY(madvise(p, 2 * P, 18)); SAY(madvise(p + 2 * P, P, 19));
        SMAPS(p, "VmFlags"); SMAPS(p + 2 * P, "VmFlags"); SMAPS(p + 3 * P, "VmFlags");
        CHILD(for (int n = 0; n < 4; n++) R(p + n * P));
        SAY(madvise(p, 4 * P, 11));
        CHILD(for (int n = 0; n < 4; n++) R(p + n * P));
        return 0;
    }
    """
    )


def test_mremap_of_several_mappings() -> None:
    """Since 6.17 a plain move takes everything in a range, holes in between included."""
    same(
        HELP
        + r"""
    static void tell(int line, char *p, int pages) {
        printf("%d ", line);
        for (int n = 0; n < pages; n++) putchar(msync(p + n * P, P, MS_ASYNC) ? '-' : 'm');
        puts("");
    }
    #define TELL(p, pages) tell(__LINE__, p, pages)
    #define TO (MREMAP_MAYMOVE | MREMAP_FIXED)

    int main(void) {
        char *p = map(6, RW, PRIVATE, -1), *q = map(8, RW, SHARED, -1);
        for (int n = 0; n < 6; n++) p[n * P] = '0' + n;
        munmap(p + P, P);
        mprotect(p + 3 * P, P, PROT_READ);
        SAY((char *)mremap(p, 5 * P, 5 * P, TO, q + P) - q);
        TELL(p, 6), TELL(q, 8);
        for (int n = 0; n < 8; n++) R(q + n * P);
        W(q + 4 * P), W(q + 5 * P);
        OK(mremap(p + P, P, P, TO, q)); OK(mremap(p, 6 * P, 6 * P, TO, q));
        OK(mremap(q + P, 4 * P, 5 * P, TO, p)); OK(mremap(q + P, 5 * P, 4 * P, TO, p));
        OK(mremap(q, P, 1L << 47, MREMAP_MAYMOVE)); OK(mremap(q, -1, P, MREMAP_MAYMOVE));
        OK(mremap(q, P, -1, MREMAP_MAYMOVE));
        return 0;
    }
    """
    )


def test_limits_of_files_and_of_data() -> None:
    same(
        HELP
        + r"""
    static void limit(int which, long to) {
        struct rlimit r;
        getrlimit(which, &r);
        r.rlim_cur = to;
        if (setrlimit(which, &r)) perror("setrlimit");
    }
    static int deep(int n) { volatile char page[P]; page[0] = n; return n ? deep(n - 1) : 0; }

    int main(void) {
        int fd = file(1), zero = open("/dev/zero", O_RDWR);
        const long last = 0x7ffffffffffff000;
        OK(mmap(0, P, PROT_READ, MAP_SHARED, fd, last - P));
        OK(mmap(0, P, PROT_READ, MAP_SHARED, fd, last));
        OK(mmap(0, P, PROT_READ, MAP_SHARED, fd, -P)); OK(mmap(0, P, PROT_READ, PRIVATE, -1, -P));
        OK(mmap(0, 2 * P, PROT_READ, PRIVATE, -1, -P));
        OK(mmap(0, P, PROT_READ, MAP_SHARED, zero, -P));
        OK(mmap(0, P, PROT_READ, MAP_SHARED, zero, -2 * P));
        SAY(mmap((void *)0x30000fff, P, RW, PRIVATE, -1, 0));
        char *p = map(2, RW, MAP_SHARED, fd);
        SAY(read(zero, p + P - 10, 20)); SAY(read(zero, p + P, 20));
        SAY(msync(p, -1, MS_SYNC)); SAY(msync(p, -P, MS_SYNC));

        char *end = (char *)((long)sbrk(0) + P - 1 & -P);
        OK(mmap(end + 16 * P, P, RW, PRIVATE | MAP_FIXED, -1, 0));
        SAY(brk(end + 16 * P)); SAY(brk(end + 15 * P)); SAY(brk(end));

        /* A soft limit of 0 is for brk alone. */
        CHILD(limit(RLIMIT_DATA, 0); OK(mmap(0, P, RW, PRIVATE, -1, 0)); OK(sbrk(P)));
        CHILD(limit(RLIMIT_DATA, 1); OK(mmap(0, P, RW, PRIVATE, -1, 0));
              OK(p = mmap(0, P, PROT_READ, PRIVATE, -1, 0)); SAY(mprotect(p, P, RW));
              OK(mmap(0, P, RW, SHARED, -1, 0)));
        CHILD(limit(RLIMIT_STACK, 64 << 20); SAY(deep(8000)));
        CHILD(limit(RLIMIT_STACK, RLIM_INFINITY); SAY(deep(8000)));
        CHILD(limit(RLIMIT_STACK, 64 << 10); deep(100));

        /* More at once than there is memory. */
        long all = sysconf(_SC_PHYS_PAGES) * P + P;
        OK(mmap(0, all, RW, PRIVATE, -1, 0)); OK(mmap(0, all, RW, SHARED, -1, 0));
        OK(mmap(0, all, PROT_NONE, SHARED, -1, 0)); OK(mmap(0, all, RW, MAP_PRIVATE, fd, 0));
        OK(mmap(0, all, RW, MAP_SHARED, fd, 0));
        OK(mmap(0, all, RW, SHARED | MAP_NORESERVE, -1, 0));
        OK(p = mmap(0, all, PROT_READ, PRIVATE, -1, 0)); SAY(mprotect(p, all, RW));
        SAY(mprotect(p, all / 2 & -P, RW));
        OK(p = mmap(0, all, PROT_READ, PRIVATE | MAP_NORESERVE, -1, 0)); SAY(mprotect(p, all, RW));
        OK(mremap(map(1, RW, PRIVATE, -1), P, all, MREMAP_MAYMOVE));
        OK(mremap(map(1, RW, PRIVATE | MAP_NORESERVE, -1), P, all, MREMAP_MAYMOVE));
        OK(mremap(map(1, PROT_READ, PRIVATE, -1), P, all, MREMAP_MAYMOVE));
        return 0;
    }
    """
    )


def test_memory_of_another_process() -> None:
    same(
        HELP
        + r"""
    #include <sys/uio.h>
    static struct iovec mine[2], hers[2];
    static long move(int write, pid_t pid, void *l, long nl, void *r, long nr, long flags) {
        return syscall(write ? SYS_process_vm_writev : SYS_process_vm_readv, pid, l, nl, r, nr,
                       flags);
    }
    #define PIECES(l0, l1, r0, r1, n)                                                        \
        mine[0] = (struct iovec){(void *)(l0), n}, mine[1] = (struct iovec){(void *)(l1), n},\
        hers[0] = (struct iovec){(void *)(r0), n}, hers[1] = (struct iovec){(void *)(r1), n}
    #define BOTH(pid) for (int w = 0; w < 2; w++) SAY(move(w, pid, mine, 2, hers, 2, 0))

    int main(void) {
        char a[32] = "", b[32] = "never told you", *nowhere = (char *)0xdeadbeef;
        pid_t me = getpid();
        PIECES(a, a + 8, b + 2, b + 7, 6);
        BOTH(me); puts(a), puts(a + 8), puts(b);
        SAY(move(0, me, mine, 1, hers, 1, 1)); SAY(move(0, -1, mine, 1, hers, 1, 0));
        SAY(move(0, -1, mine, 0, hers, 1, 0)); SAY(move(0, -1, mine, 1, hers, 0, 0));
        SAY(move(0, me, 0, 1, hers, 1, 0)); SAY(move(0, me, mine, 1, 0, 1, 0));
        SAY(move(0, me, mine, 1025, hers, 1, 0)); SAY(move(0, me, mine, 1, hers, 1025, 0));
        PIECES(a, a, b, b, -1); BOTH(me);
        PIECES(a, a, b, nowhere, 4); BOTH(me);
        PIECES(a, nowhere, b, b, 4); BOTH(me);
        PIECES(a, a, nowhere, b, 4); BOTH(me);
        PIECES(a, a, -P, -P, 4); BOTH(me);
        char *p = map(3, RW, PRIVATE, -1);
        mprotect(p + P, P, PROT_READ), mprotect(p + 2 * P, P, PROT_NONE);
        PIECES(a, a + 8, p + P - 4, p + 2 * P - 4, 8); BOTH(me);
        PIECES(a, a + 8, p + P, p + 2 * P, 8); BOTH(me);
        PIECES(p + P - 4, p, b, b, 8); BOTH(me);

        int ready[2], go[2];
        pipe(ready), pipe(go);
        p = map(20, RW, PRIVATE, -1);
        memset(p, 'P', 20 * P);
        fflush(stdout);
        pid_t pid = fork();
        if (!pid) {
            memset(p, 'C', 10 * P);
            write(ready[1], "", 1), read(go[0], a, 1);
            printf("%c %c %c\n", p[0], p[10 * P], p[20 * P - 1]);
            exit(0);
        }
        read(ready[0], a, 1);
        char *q = map(20, RW, PRIVATE, -1);
        PIECES(q + 7, q + 10 * P, p, p + 9 * P, 8 * P); SAY(move(0, pid, mine, 2, hers, 2, 0));
        printf("%c %c %c\n", q[7], q[8 * P + 6], q[12 * P]);
        memset(q, 'Q', 20 * P);
        PIECES(q, q, p + 1, p + 9 * P, 8 * P); SAY(move(1, pid, mine, 2, hers, 2, 0));
        printf("%c\n", p[P]);
        CHILD(setgid(1), setuid(1); BOTH(pid); BOTH(getpid()));
        write(go[1], "", 1);
        siginfo_t how;
        waitid(P_PID, pid, &how, WEXITED | WNOWAIT);
        BOTH(pid);
        wait(0);
        BOTH(pid);
        return 0;
    }
    """
    )


def test_code_that_is_written_elsewhere() -> None:
    """A page that is executed at one address and written at another, as compilers do that may not
    have both at once: what is executed is what has been written, however often."""
    same(
        HELP
        + r"""
    typedef int (*function)(void);
    static const char returns[] = "\xb8\0\0\0\0\xc3";  // mov $0, %eax; ret

    static int run(int n, char *w, char *x) {
        memcpy(w, returns, 6);
        w[1] = n;
        return ((function)x)();
    }
    static int fill(char *w, const char *code, int size, char *at) {
        memcpy(w, code, size);
        memcpy(w + 2, &at, 8);
    }

    int main(void) {
        int fd = file(4), other = file(1), ping[2], pong[2];
        char *w = map(4, RW, MAP_SHARED, fd), c;
        char *x = map(4, PROT_READ | PROT_EXEC, MAP_SHARED, fd);
        char *both = map(4, 7, MAP_SHARED, fd), *again = map(4, 7, MAP_SHARED, fd);
        for (int n = 0; n < 9; n++) printf("%d ", run(n, w + n % 4 * P, x + n % 4 * P));
        for (int n = 0; n < 9; n++) printf("%d ", run(n, n % 3 ? w : both, n % 2 ? x : both));
        for (int n = 0; n < 9; n++)
            printf("%d ", run(n, n % 3 ? both : again, n % 2 ? both : again));
        mlock(w, 4 * P), mlock(x, 4 * P);
        for (int n = 0; n < 9; n++) printf("%d ", run(n, w, x));
        munlockall();

        /* Code that writes to the page it is in: movabs $…, %rax; incl (%rax); mov (%rax), %eax;
         * ret; and movabs $…, %rax; movb $42, (%rax); mov $7, %eax; ret, which changes the 7. */
        fill(w, "\x48\xb8\0\0\0\0\0\0\0\0\xff\0\x8b\0\xc3", 15, w + 256);
        for (int n = 0; n < 5; n++) printf("%d ", (char)((function)x)());
        fill(w, "\x48\xb8\0\0\0\0\0\0\0\0\xc6\0\x2a\xb8\7\0\0\0\xc3", 19, w + 14);
        printf("%d ", ((function)x)());
        w[12]++;
        printf("%d\n", ((function)x)());

        CHILD(for (int n = 0; n < 9; n++) printf("%d ", run(n, w, x)));
        pipe(ping), pipe(pong);
        run(9, w, x);
        fflush(stdout);
        if (fork() == 0) {
            for (int n = 0; n < 9; n++) w[1] = n, write(ping[1], "", 1), read(pong[0], &c, 1);
            _exit(0);
        }
        for (int n = 0; n < 9; n++)
            read(ping[0], &c, 1), printf("%d ", ((function)x)()), write(pong[1], "", 1);
        for (int n = 0; n < 9; n++) {
            c = n, pwrite(other, &c, 1, 0), pread(other, w + 1, 1, 0);
            printf("%d ", ((function)x)());
        }
        return 0;
    }
    """
    )


def test_a_store_to_a_file_counts_as_modifying_it() -> None:
    same(
        HELP
        + r"""
    static int modified(int fd) {
        struct timespec old[2] = {{1000, 0}, {1000, 0}};
        struct stat st;
        fstat(fd, &st);
        futimens(fd, old);
        return st.st_mtime != 1000;
    }
    int main(void) {
        int fd = file(2);
        modified(fd);
        char *p = map(2, RW, MAP_SHARED, fd), *q = map(2, RW, MAP_PRIVATE, fd);
        SAY(p[P] + q[0]); SAY(msync(p, 2 * P, MS_SYNC)); SAY(modified(fd));
        p[P] = 1; SAY(msync(p, 2 * P, MS_SYNC)); SAY(modified(fd));
        SAY(msync(p, 2 * P, MS_SYNC)); SAY(modified(fd));
        q[0] = 1; SAY(msync(q, 2 * P, MS_SYNC)); SAY(munmap(q, 2 * P)); SAY(modified(fd));
        p[0] = 1; SAY(munmap(p, 2 * P)); SAY(modified(fd));
        p = map(2, RW, MAP_SHARED, fd); SAY(p[0]); SAY(munmap(p, 2 * P)); SAY(modified(fd));
        return 0;
    }
    """
    )


def test_the_first_store_to_a_page_counts_at_once() -> None:
    same(
        HELP
        + r"""
    #include <sys/uio.h>
    static int fd;
    static sigjmp_buf env;
    static void on_bus(int sig) { siglongjmp(env, 1); }
    static void see(const char *what) {
        struct timespec old[2] = {{1000, 0}, {1000, 0}};
        struct stat st;
        fstat(fd, &st);
        futimens(fd, old);
        printf("%s: %d\n", what, st.st_mtime != 1000), fflush(stdout);
    }
    int main(void) {
        char buf[P] = "";
        int zero = open("/dev/zero", O_RDONLY);
        fd = file(40);
        fsync(fd), see("new");
        volatile char *p = map(40, RW, MAP_SHARED, fd), *q, *r;
        see("mapped"), p[0], see("read"), p[0] = 1, see("stored"), p[1] = 1, see("again");
        p[P] = 1, see("the next"), p[3 * P], p[4 * P] = 1, see("beside one that was read");
        msync((void *)p, 40 * P, MS_SYNC), see("msync"), p[0] = 2, see("stored"), p[0] = 3;
        see("again"), fsync(fd), p[1] = 3, see("after fsync");
        q = map(40, RW, MAP_SHARED, fd), q[0], see("another map"), q[0] = 1, see("stored there");
        if (!fork()) {
            p[0], see("child reads"), p[0] = 7, see("stores"), p[9 * P] = 1, see("first store");
            _exit(0);
        }
        wait(0), p[9 * P] = 2, see("parent"), read(zero, (char *)p + 20 * P, 9), see("read(2)");
        pread(zero, (char *)p + 20 * P, 9, 0), see("again");
        r = map(40, RW, MAP_PRIVATE, fd), r[0] = 1, r[30 * P] = 1, see("private");
        pwrite(fd, buf, 1, 31 * P), see("pwrite"), p[31 * P] = 1, see("stored to the same");
        signal(SIGBUS, on_bus), r = map(42, RW, MAP_SHARED, fd);
        if (!sigsetjmp(env, 1)) r[41 * P] = 1;
        see("behind the end"), mlock((void *)q, 40 * P), see("mlock"), q[35 * P] = 1, see("stored");
        q[35 * P] = 2, see("again"), munlock((void *)q, 40 * P), see("munlock");
        struct iovec here = {buf, 2}, there = {(char *)p + 37 * P, 2};
        process_vm_writev(getpid(), &here, 1, &there, 1, 0), see("process_vm_writev");
        mprotect((void *)p, 40 * P, PROT_READ), mprotect((void *)p, 40 * P, RW), p[0] = 5;
        see("mprotect"), munmap((void *)p, 40 * P), see("munmap");
        q = map(40, RW, MAP_SHARED | MAP_POPULATE, fd), see("populated"), q[12 * P] = 1;
        see("stored");
        if (!fork()) q[13 * P] = 1, _exit(0);
        wait(0), see("a child that exited");
        return 0;
    }
    """
    )


def test_a_store_to_a_file_that_is_written_through(tmp_path: Path) -> None:
    program = build(
        r"""
    static int fd;
    static long modified(void) {
        struct timespec old[2] = {{1000, 0}, {1000, 0}};
        struct stat st;
        fstat(fd, &st);
        futimens(fd, old);
        return st.st_mtime != 1000;
    }
    int main(int argc, char **argv) {
        char buf[8192] = "";
        fd = open(argv[1], O_RDWR | O_CREAT, 0644);
        write(fd, buf, 8192);
        modified();
        volatile char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        p[0];
        if (modified()) return 1;
        p[0] = 1;
        if (!modified()) return 2;
        p[4096] = 2;
        return modified() ? 0 : 3;
    }
    """
    )
    with Machine(mem="32M", rw=[str(tmp_path)], check=True) as m:
        p = m.spawn([str(program), str(tmp_path / "f")])
        m.run(timeout=600)
    assert p.exit_status == 0
    assert (tmp_path / "f").read_bytes()[::4096] == b"\1\2"


def test_shared_memory_that_is_not_shown_stays() -> None:
    same(
        HELP
        + r"""
    #define SHOW(at, n, page) syscall(SYS_remap_file_pages, at, (n) * P, 0, page, 0)
    int main(void) {
        int fd = file(4);
        for (int kind = 0; kind < 2; kind++) {
            char *p = kind ? map(4, RW, SHARED, -1) : map(4, RW, MAP_SHARED, fd), *q;
            for (int n = 0; n < 4; n++) p[n * P] = 'A' + n;
            SAY(SHOW(p, 1, 2)); SAY(SHOW(p + P, 2, 0));
            for (int n = 0; n < 4; n++) R(p + n * P);
            p[0] = '!', p[P] = '?';
            CHILD(R(p); p[2 * P] = '.');
            SAY(SHOW(p, 4, 0));
            for (int n = 0; n < 4; n++) R(p + n * P);
            SAY(SHOW(p, 1, 9)); R(p); SAY(SHOW(p, 1, 0));
            OK(mremap(p, 4 * P, P, 0)); OK(q = mremap(p, P, 5 * P, MREMAP_MAYMOVE));
            for (int n = 0; n < 5; n++) R(q + n * P);
            SAY(munmap(q + P, P)); SAY(SHOW(q, 1, 1)); R(q); SAY(SHOW(q, 2, 0));
            SAY(syscall(SYS_remap_file_pages, q, P, PROT_READ, 0, 0)); SAY(SHOW(q, 0, 0));
            SAY(SHOW(q, 1, 1L << 60)); SAY(SHOW(q, 1, -2L)); SAY(SHOW(q, 1, -1L)); R(q);
        }
        SAY(SHOW(map(1, RW, PRIVATE, -1), 1, 0)); SAY(SHOW(map(1, RW, MAP_PRIVATE, fd), 1, 0));
        SAY(SHOW(map(1, PROT_READ, MAP_SHARED, open("/proc/self/exe", O_RDONLY)), 1, 0));
        return 0;
    }
    """
    )


def test_code_next_to_what_is_written_elsewhere() -> None:
    """The kernel writes to the page that the program is in, and the program's next instruction is
    another system call, or a breakpoint; and an instruction that begins in another page."""
    same(
        HELP
        + r"""
    static int breakpoints;
    static void trapped(int sig) { breakpoints++; }

    int main(void) {
        int fd = file(4), other = file(1);
        char *w = map(4, RW, MAP_SHARED, fd);
        char *x = map(4, PROT_READ | PROT_EXEC, MAP_SHARED, fd);
        char *at = w + P + 100, page[7] = "";
        long (*reads)(int, char *, long) = (void *)x;
        signal(SIGTRAP, trapped);

        /* xor %eax, %eax; syscall; syscall; ret: reads a byte, and, as 1 is write, writes it. */
        memcpy(w, "\x31\xc0\x0f\5\x0f\5\xc3", 7);
        pwrite(other, "abcdef", 6, 0), lseek(other, 0, SEEK_SET);
        for (int n = 0; n < 3; n++) SAY(reads(other, w + 2048, 1));
        pread(other, page, 6, 0), puts(page);
        SAY(lseek(other, 0, SEEK_CUR));
        memcpy(w, "\x31\xc0\x0f\5\xcc\xc3", 6);
        for (int n = 0; n < 3; n++) SAY(reads(other, w + 2048, 1));
        printf("%d breakpoints\n", breakpoints);

        /* movabs $at, %rax; movb $42, (%rax), the last two bytes of which are in the next page, as
         * is what it writes; ret. */
        memcpy(w + P - 11, "\x48\xb8", 2), memcpy(w + P - 9, &at, 8);
        memcpy(w + P - 1, "\xc6\0\x2a\xc3", 4);
        for (int n = 0; n < 3; n++) ((void (*)(void))(x + P - 11))(), printf("%d ", (*at)++);
        return 0;
    }
    """
    )


def test_code_that_is_written_while_it_is_data() -> None:
    """Two functions of a page are called, both are written where, or while, the page is writable
    and not executable, and called again."""
    same(
        HELP
        + r"""
    static char *x;
    static void put(char *w, int n) {
        for (int at = 0; at < 2; at++)
            memcpy(w + at * 2048, "\xb8\0\0\0\0\xc3", 6), w[at * 2048 + 1] = 2 * n + at;
    }
    static void call(int line) {
        for (int k = 0; k < 4; k++) printf("%d ", ((int (*)(void))(x + k % 2 * 2048))());
        printf("line %d\n", line);
    }
    #define CALL() call(__LINE__)

    int main(void) {
        int fd = file(64);
        char *w = map(1, RW, MAP_SHARED, fd);
        x = map(64, 7, MAP_SHARED, fd);
        for (int n = 0; n < 3; n++) {
            put(x, n), CALL();
            put(w, n + 10), CALL();
            madvise(x, P, MADV_DONTNEED), put(x, n + 20), CALL();
            mprotect(x, P, RW), put(x, n + 30), mprotect(x, P, PROT_READ | PROT_EXEC), CALL();
            mprotect(x, P, 7), put(x, n + 40), CALL();
            mprotect(x, 64 * P, RW), put(x, n + 50), mprotect(x, 64 * P, 7), CALL();
            CHILD(munmap(x, P), put(w, n + 60));
            CALL();
            CHILD(CALL(), put(w, n + 70), CALL());
            CALL();
        }
        x = map(2, 7, PRIVATE, -1);
        put(x, 1), put(x + P, 2), CALL(), x += P, CALL();
        mprotect(x - P, 2 * P, RW), put(x, 3), put(x - P, 4);
        mprotect(x - P, 2 * P, 7), CALL(), x -= P, CALL();

        /* Code that overwrites the page it is in from 256 on, and thus two functions: movabs $at,
         * %rdi; mov $800, %ecx; mov $0xc3, %al; rep stosb; ret. */
        char *at = w + 256;
        x = map(1, PROT_READ | PROT_EXEC, MAP_SHARED, fd);
        for (int n = 0; n < 3; n++) {
            for (int k = 0; k < 2; k++)
                memcpy(w + 512 + k * 256, "\xff\xc0\xc3", 3);  // inc %eax; ret
            memcpy(w, "\x48\xbf", 2), memcpy(w + 2, &at, 8);
            memcpy(w + 10, "\xb9\x20\3\0\0\xb0\xc3\xf3\xaa\xc3", 10);
            for (int k = 0; k < 4; k++) {
                long answer = k;
                __asm__ volatile("call *%1" : "+a"(answer) : "r"(x + 512 + k % 2 * 256));
                printf("%ld ", answer);
                if (k == 1) ((void (*)(void))x)();
            }
        }
        return 0;
    }
    """
    )


def test_a_private_view_that_is_locked_as_it_is_used() -> None:
    """It shows what is written to the file, as long as it has not been written to itself."""
    same(
        HELP
        + r"""
    static int fd;
    static void both(int line, volatile char *p, char c) {
        for (int n = 0; n < 3; n++) pwrite(fd, &c, 1, n * P);
        printf("%d: %c %c %c\n", line, p[0], p[P], p[2 * P]);
    }
    #define BOTH(p, c) both(__LINE__, p, c)

    int main(void) {
        fd = file(4);
        char *p = map(3, RW, MAP_PRIVATE, fd);
        R(p), W(p + P);
        SAY(mlock2(p, 3 * P, 1));
        R(p + 2 * P), BOTH(p, '1');
        W(p), BOTH(p, '2');
        CHILD(BOTH(p, '3'); W(p + 2 * P); BOTH(p, '4'));
        BOTH(p, '5'), munlock(p, 2 * P), BOTH(p, '6');
        SAY(mlock(p, 3 * P));
        BOTH(p, '7');
        p = map(4, RW, MAP_PRIVATE, fd);
        ftruncate(fd, 2 * P);
        SAY(mlock(p, 4 * P));
        ftruncate(fd, 4 * P);
        R(p + 2 * P), BOTH(p, '8'), W(p + 2 * P), BOTH(p, '9');

        /* Locked when it can't be written to, which copies nothing, and forked. */
        p = map(3, RW, MAP_PRIVATE, fd);
        W(p), mprotect(p, 3 * P, PROT_READ);
        SAY(mlock(p, 3 * P));
        CHILD(BOTH(p, 'a'); mprotect(p, 3 * P, RW); BOTH(p, 'b'); W(p + P); BOTH(p, 'c'));
        BOTH(p, 'd');
        return 0;
    }
    """
    )


def test_mremap_that_leaves_the_old_place_mapped() -> None:
    """MREMAP_DONTUNMAP takes room for as much as it moves, besides what was at the new place; and
    what is left may be one with what comes next."""
    same(
        HELP
        + r"""
    static long data(void) {
        char text[4096], *p;
        int fd = open("/proc/self/status", O_RDONLY);
        text[read(fd, text, sizeof text - 1)] = 0;
        close(fd);
        return atol(strstr(text, "VmData:") + 7) << 10;
    }
    static void room(int pages) {
        struct rlimit l = {data() + pages * P, RLIM_INFINITY};
        setrlimit(RLIMIT_DATA, &l);
    }

    #define NEW(pages) mmap(0, (pages) * P, RW, PRIVATE, -1, 0)

    int main(void) {
        char *from = map(8, RW, PRIVATE, -1), *to = map(8, PROT_NONE, PRIVATE, -1);
        memset(from, 'f', 8 * P);
        SAY(mremap(from, 4 * P, 4 * P, 7, to) == to);
        R(from), R(from + 4 * P), R(to + 3 * P), R(to + 4 * P);


        memset(from, 'f', 8 * P);
        for (int taken = 0; taken <= 4; taken += 2)
            for (int left = 0; left <= 4; left += 2)
                CHILD(
                    munmap(to, 8 * P);
                    if (taken) mmap(to, taken * P, RW, PRIVATE | MAP_FIXED, -1, 0);
                    room(left);
                    long before = data();
                    OK(mremap(from, 4 * P, 4 * P, 7, to));
                    printf("%ld\n", data() - before);
                    R(from); R(to));

        /* Data is what is private and may be written: heap, maps, but no stack. */
        CHILD(room(4); OK(NEW(4)); OK(sbrk(P)));
        CHILD(room(2); OK(sbrk(4 * P)); OK(sbrk(P)); OK(NEW(1)); OK(NEW(1)));
        CHILD(room(1); OK(mmap(0, 4 * P, RW, PRIVATE | MAP_GROWSDOWN, -1, 0)));
        CHILD(room(4); OK(NEW(4)); SAY(mprotect(to, 4 * P, RW)));
        return 0;
    }
    """
    )


def test_what_is_locked_stays_so() -> None:
    same(
        HELP
        + r"""
    int main(void) {
        /* A second mapping of what is locked is locked as well. */
        char *p = map(2, RW, SHARED, -1);
        SAY(mlock(p, 2 * P));
        char *q = mremap(p, 0, 2 * P, MREMAP_MAYMOVE);
        SMAPS(p, "Locked"); SMAPS(q, "Locked");

        /* Locked once more, when a part of it has gone with the end of the file. */
        int fd = file(4);
        char *f = map(4, RW, MAP_SHARED, fd);
        SAY(mlock(f, 4 * P)); SAY(ftruncate(fd, 2 * P));
        SAY(mlock(f, 4 * P)); SAY(mlock(f, 2 * P)); SAY(mlock(f + 2 * P, P));
        SAY(mprotect(p, P, PROT_NONE)); SAY(mlock(p, 2 * P)); SAY(mlock(p + P, P));
        return 0;
    }
    """
    )


def test_locked_private_pages_go_with_the_end_of_the_file() -> None:
    """And come back as the file's, which are locked in their place: pages of the mapping's own, and
    such that a fork has put behind it."""
    same(
        HELP
        + r"""
    int main(int argc, char **argv) {
        for (int forks = 0; forks < 2; forks++) {
            int fd = file(4), ends[2];
            char *p = map(4, RW, MAP_PRIVATE, fd);
            p[2 * P] = p[3 * P] = 'w';
            pipe(ends);
            fflush(stdout);
            if (forks && !fork()) { close(ends[1]), read(ends[0], ends, 1); R(p + 2 * P); exit(0); }
            p[P] = 'w';
            SAY(mprotect(p, 4 * P, PROT_READ)); SAY(mlock(p, 4 * P)); SAY(ftruncate(fd, P));
            R(p + 2 * P);
            for (int n = 1; n < 4; n++) pwrite(fd, "new", 4, n * P);
            for (int n = 0; n < 4; n++) R(p + n * P);
            if (forks) SMAPS(p, "Locked"); else SAY(munlock(p, 4 * P));
            for (int n = 0; n < 4; n++) R(p + n * P);
            SAY(munmap(p, 4 * P));
            close(ends[1]), wait(0);
        }
        return 0;
    }
    """
    )


def test_a_stack_grows_up_to_the_limit_of_all_memory() -> None:
    same(
        HELP
        + r"""
    static int deep(int n) {
        volatile char b[4000];
        b[3999] = 1;
        return n ? deep(n - 1) + b[3999] : 0;
    }

    int main(void) {
        char text[4096];
        int fd = open("/proc/self/status", O_RDONLY);
        text[read(fd, text, sizeof text - 1)] = 0;
        /* 300 KiB are more than two of the steps in which a stack grows, and less than three. */
        struct rlimit l = {(atol(strstr(text, "VmSize:") + 7) + 300) << 10, RLIM_INFINITY};
        SAY(setrlimit(RLIMIT_AS, &l));
        SAY(deep(100));
        CHILD(deep(200));
        return 0;
    }
    """
    )


def test_a_heap_that_is_locked_as_it_is_used() -> None:
    same(
        HELP
        + r"""
    int main(void) {
        SAY(mlockall(MCL_FUTURE | MCL_ONFAULT));
        char *p = (char *)((long)sbrk(9 * P) + P & -P);
        SMAPS(p, "Locked"); SMAPS(p, "VmFlags");
        p[P] = 1;
        SAY(mprotect(p, 8 * P, PROT_READ)); SAY(mprotect(p, 8 * P, RW));
        SMAPS(p, "Locked"); SMAPS(p, "VmFlags");
        return 0;
    }
    """
    )


def test_locked_memory_that_is_gone_becomes_writable() -> None:
    """A part of a locked, private view of a file can't be copied when it becomes writable, as the
    file has been cut. It stays locked."""
    same(
        HELP
        + r"""
    int main(void) {
        int fd = file(4);
        char *p = map(4, PROT_READ, MAP_PRIVATE, fd), *q = map(4, PROT_READ, MAP_PRIVATE, fd);
        SAY(mlock(p, 4 * P)); SAY(ftruncate(fd, 2 * P)); SAY(mlock(q, 4 * P));
        SAY(mprotect(p, 4 * P, RW)); SAY(mprotect(q, 4 * P, RW));
        W(p), W(p + P), W(p + 2 * P), W(q + P);
        SAY(ftruncate(fd, 4 * P));
        for (int n = 0; n < 4; n++) R(p + n * P), R(q + n * P);
        W(p + 3 * P);
        CHILD(R(p), R(p + 3 * P));
        SMAPS(p, "VmFlags"); SMAPS(q, "VmFlags"); SAY(munlock(p, 4 * P)); SMAPS(p, "VmFlags");
        return 0;
    }
    """
    )


def test_what_may_not_be_read_or_known_of() -> None:
    """What another process has not asked to read is not read for others, though it could; and of a
    file that one may only read, mincore does not tell what others have looked at."""
    same(
        HELP
        + r"""
    #include <sys/uio.h>
    int main(void) {
        char a[16] = "aaaaaaa", *p = map(4, RW, PRIVATE, -1);
        memset(p, 'p', 4 * P);
        mprotect(p, P, PROT_WRITE), mprotect(p + P, P, PROT_EXEC), mprotect(p + 2 * P, P, 0);
        for (int n = 0; n < 4; n++)
            for (int w = 0; w < 2; w++) {
                struct iovec l = {a, 8}, r = {p + n * P, 8};
                SAY(syscall(w ? SYS_process_vm_writev : SYS_process_vm_readv, getpid(), &l, 1, &r,
                            1, 0));
            }

        int fd = file(2);
        char *f = map(3, PROT_READ, MAP_SHARED, fd), *g = map(3, RW, MAP_PRIVATE, fd), v[3];
        SAY(ftruncate(fd, P));
        R(f); R(g);
        for (int n = 0; n < 2; n++) {
            SAY(mincore(f, 3 * P, v)); printf("%d %d %d\n", v[0], v[1], v[2]);
            SAY(mincore(g, 3 * P, v)); printf("%d %d %d\n", v[0], v[1], v[2]);
            SAY(setresuid(1234, 1234, 1234));
        }
        return 0;
    }
    """
    )


def test_a_file_that_is_written_from_a_mapping_of_itself() -> None:
    """It grows with what has been written, not before: what lies beyond its end is not there."""
    same(
        HELP
        + r"""
    int main(void) {
      for (int n = 0; n < 2; n++) {
        int fd = n ? file(2) : memfd_create("", 0);
        ftruncate(fd, 2 * P);
        char *p = map(8, RW, MAP_SHARED, fd), b[2] = "";
        SAY(pwrite(fd, p + 3 * P + 100, 2 * P, 3 * P)); SAY(lseek(fd, 0, SEEK_END));
        SAY(pwrite(fd, p + P, 2 * P, 3 * P)); SAY(lseek(fd, 0, SEEK_END));
        SAY(pwrite(fd, p + 4 * P, P, 4 * P - 10)); SAY(lseek(fd, 0, SEEK_END));
        SAY(pread(fd, b, 1, 3 * P)); puts(b);
        R(p + 3 * P), R(p + 4 * P);

        /* What ends early, before the end of the file, leaves that where it is. */
        char *edge = map(2, RW, PRIVATE, -1);
        long size = lseek(fd, 0, SEEK_END);
        munmap(edge + P, P);
        SAY(pwrite(fd, edge + P - 10, 100, size - 50)); SAY(lseek(fd, 0, SEEK_END) - size);
      }
      return 0;
    }
    """
    )


def test_there_are_no_protection_keys() -> None:
    program = build(
        r"""
    int main(void) {
        char *m = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pkey_mprotect(m, 4096, PROT_READ | PROT_WRITE, -1)) return 1;
        *m = 1;
        if (pkey_mprotect(m, 4096, PROT_READ, 0) != -1 || errno != EINVAL) return 2;
        if (pkey_alloc(0, 0) != -1 || errno != ENOSPC) return 3;
        if (pkey_alloc(1, 0) != -1 || errno != EINVAL) return 4;
        return pkey_free(1) != -1 || errno != EINVAL;
    }
    """
    )
    assert by_guest(program)[0] == 0
