"""Memory calls and faults in C, each program run by Linux and in the machine: what every call
answers, what every access finds, and what /proc says of it must be the same.
"""

from __future__ import annotations

from tests.kern.guest_util import same

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
