"""Robust futexes: what becomes of those that a process holds when it ends."""

from __future__ import annotations

from tests.kern.guest_util import SLEEPS, same

# A list by hand, in memory that parent and child share: a head, two futexes, and what to do.
LISTS = r"""
#include <linux/futex.h>
struct node { struct node *next; unsigned word; };
struct shared {
    struct { struct node *next; long offset; struct node *pending; } head;
    struct node a, b;
} *s;

static long futex(unsigned *word, int op, unsigned value, struct timespec *t) {
    return syscall(SYS_futex, word, op, value, t, 0, 0);
}

static void start(void) {
    s->head.next = &s->a;
    s->head.offset = offsetof(struct node, word);
    s->head.pending = 0;
    s->a.next = &s->b;
    s->b.next = (struct node *)&s->head;
    s->a.word = s->b.word = getpid();
    syscall(SYS_set_robust_list, &s->head, sizeof s->head);
}

static int tell(const char *what, pid_t p) {
    int st;
    waitpid(p, &st, 0);
    unsigned a = s->a.word, b = s->b.word;
    printf("%s: status %x, a %x%s, b %x%s\n", what, st,
           a & 0xc0000000, (a & 0x3fffffff) == p ? " its" : a & 0x3fffffff ? " other" : "",
           b & 0xc0000000, (b & 0x3fffffff) == p ? " its" : b & 0x3fffffff ? " other" : "");
    return 0;
}

#define CHILD(what, ...) do { \
    fflush(stdout); \
    pid_t p = fork(); \
    if (!p) { start(); __VA_ARGS__; _exit(0); } \
    tell(what, p); \
} while (0)

int main(int argc, char **argv) {
    if (argc > 1) return 7;
    s = mmap(0, 4096, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHILD("exit");
    CHILD("killed", raise(SIGKILL));
    CHILD("exec", char *v[] = {argv[0], "x", 0}; execv("/proc/self/exe", v));
    CHILD("waiters", s->b.word |= FUTEX_WAITERS);
    CHILD("not its own", s->b.word = 1);
    CHILD("free", s->a.word = 0);
    CHILD("forgotten", syscall(SYS_set_robust_list, 0, sizeof s->head));
    CHILD("no head", syscall(SYS_set_robust_list, 16, sizeof s->head));
    CHILD("bad head", syscall(SYS_set_robust_list, -8, sizeof s->head));
    CHILD("no next", s->head.next = 0);
    CHILD("bad next", s->a.next = (void *)0x123450);
    CHILD("wild next", s->a.next = (void *)-16);
    CHILD("cycle", s->b.next = &s->a);
    CHILD("only pending", s->head.next = (void *)s; s->head.pending = &s->b);
    CHILD("pending too", s->head.pending = &s->a);
    CHILD("bad pending", s->head.pending = (void *)-32);
    CHILD("not aligned", s->head.offset += 1);
    CHILD("far off", s->head.offset = 1L << 50);
    return 0;
}
"""


def test_lists() -> None:
    out = same("#include <stddef.h>\n" + LISTS)
    assert b"exit: status 0, a 40000000, b 40000000\n" in out
    assert b"waiters: status 0, a 40000000, b c0000000\n" in out


def test_a_long_list_ends() -> None:
    same(r"""
    struct node { struct node *next; unsigned word, pad; };
    int main(void) {
        struct { struct node *next; long offset; void *pending; } *head =
            mmap(0, 1 << 20, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        struct node *n = (struct node *)(head + 1);
        if (!fork()) {
            for (int i = 0; i < 3000; i++) n[i] = (struct node){n + i + 1, getpid()};
            head->next = n;
            head->offset = 8;
            syscall(SYS_set_robust_list, head, sizeof *head);
            _exit(0);
        }
        wait(0);
        int died = 0;
        for (int i = 0; i < 3000; i++) died += n[i].word == 0x40000000;
        printf("%d\n", died);
        return 0;
    }
    """)


WAIT = (
    SLEEPS
    + r"""
#include <linux/futex.h>
#include <pthread.h>
int main(int argc, char **argv) {
    if (argc > 1) { pause(); return 0; }
    pthread_mutex_t *m = mmap(0, 4096, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_setpshared(&a, 1);
    pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
    for (int how = 0; how < 3; how++) {
        pthread_mutex_init(m, &a);
        int p[2];
        pipe(p);
        pid_t child = fork();
        if (!child) {
            pthread_mutex_lock(m);
            write(p[1], "x", 1);
            sleeps(getppid());
            if (how == 1) raise(SIGKILL);
            char *v[] = {argv[0], "x", 0};
            if (how == 2) execv("/proc/self/exe", v);
            _exit(0);
        }
        char c;
        read(p[0], &c, 1);
        int r = pthread_mutex_lock(m);  // sleeps until the child is gone
        printf("%d", r == EOWNERDEAD);
        printf(" %d", pthread_mutex_consistent(m));
        printf(" %d", pthread_mutex_unlock(m));
        printf(" %d\n", pthread_mutex_lock(m));
        kill(child, SIGKILL);
        waitpid(child, 0, 0);
    }
    return 0;
}
"""
)


def test_waiters_hear_of_it() -> None:
    assert same(WAIT) == b"1 0 0 0\n" * 3


def test_cleared_thread_id_anywhere() -> None:
    """set_tid_address believes any address; what is wrong with it shows when the thread ends."""
    same(r"""
    int main(void) {
        char *page = mmap(0, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(page + 4096, 4096);
        char *at[] = {page, page + 1, page + 4096, 0, (char *)-4, (char *)16};
        for (int i = 0; i < 6; i++) {
            memset(page, 'x', 4096);
            pid_t p = vfork();
            if (!p) {
                syscall(SYS_set_tid_address, at[i]);
                _exit(3);
            }
            int status, cleared = 0;
            waitpid(p, &status, 0);
            for (int j = 0; j < 4096; j++) cleared += !page[j];
            printf("%d: %x, %d cleared\n", i, status, cleared);
        }
        return 0;
    }
    """)
