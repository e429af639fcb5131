"""MADV_GUARD_INSTALL and MADV_GUARD_REMOVE: pages of a mapping that nobody can touch."""

from __future__ import annotations

import platform

import pytest

from tests.kern.guest_util import CHILD, same
from tests.kern.test_vma import VMAS

# Guards in files, and in what is read-only, are as of 6.15.
pytestmark = pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 15), reason="the host has no guards"
)

_GUARD = (
    VMAS
    + CHILD
    + r"""
#include <sys/uio.h>
#define INSTALL 102
#define REMOVE 103
static sigjmp_buf jump;
static volatile int code;
static void caught(int sig, siginfo_t *si, void *u)
{
    code = sig * 100 + si->si_code;
    siglongjmp(jump, 1);
}
/* What a page says, or how the access ends. */
static int see(int page)
{
    if (sigsetjmp(jump, 1)) return code;
    return ((volatile char *)b)[page * PG];
}
static int put(int page)
{
    if (sigsetjmp(jump, 1)) return code;
    ((volatile char *)b)[page * PG] = 'w';
    return 0;
}
static void all(const char *what, int n)
{
    printf("%s:", what);
    for (int i = 0; i < n; i++) printf(" %d", see(i));
    puts("");
}
static void fill(int n) { for (int i = 0; i < n; i++) b[i * PG] = 'a' + i; }
#define M(page, n, advice) do { errno = 0; int r = madvise(b + (page) * PG, (n) * PG, advice); \
    printf("%d+%d %s: %d %d\n", page, n, #advice, r, r ? errno : 0); } while (0)
#define T(x) do { errno = 0; long r = (long)(x); printf("%s: %ld %d\n", #x, r, errno); } while (0)
static void setup(void)
{
    struct sigaction sa = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, 0);
    sigaction(SIGBUS, &sa, 0);
    hole(40);
}
"""
)


def test_a_guard_is_a_fault_and_the_mapping_stays_one() -> None:
    out = same(
        _GUARD
        + r"""
        static void kid(void) { all("child", 8); put(3); M(2, 1, REMOVE); all("child", 8); }
        int main(void)
        {
            setup();
            fix(0, 8, RW);
            fill(8);
            M(2, 3, INSTALL);
            all("installed", 8);
            printf("%d %d\n", put(2), put(4));
            show("one");
            M(3, 1, MADV_DONTNEED);
            M(3, 1, MADV_FREE);
            M(0, 8, MADV_WILLNEED);
            all("they stay", 8);
            mprotect(b + 3 * PG, PG, PROT_READ);
            mprotect(b + 3 * PG, PG, RW);
            mprotect(b, 8 * PG, PROT_NONE);
            mprotect(b, 8 * PG, RW);
            all("still", 8);
            show("one");
            child(kid);
            all("the child's are its own", 8);
            M(4, 2, REMOVE);
            all("removed", 8);
            M(2, 2, MADV_POPULATE_WRITE);
            M(1, 2, MADV_POPULATE_READ);
            M(4, 2, MADV_POPULATE_WRITE);
            fix(2, 1, RW);
            all("mapped over", 8);
            M(0, 9, INSTALL);             /* what is mapped of it has them */
            all("all", 8);
            M(0, 9, REMOVE);
            all("none", 8);
            M(0, 0, INSTALL);
            T(madvise(b + 1, PG, INSTALL));
            madvise(b, 2 * PG, MADV_WIPEONFORK);
            M(1, 2, INSTALL);
            child(kid);
            mlock(b + 6 * PG, PG);
            M(6, 1, INSTALL);
            M(5, 1, INSTALL);
            T(mlock(b + 5 * PG, PG));
            M(5, 1, INSTALL);
            M(5, 1, REMOVE);
            all("locked", 8);
            munmap(b, 8 * PG);
            return 0;
        }
        """
    )
    assert b"installed: 97 98 1101 1101 1101 102 103 104\n1101 1101\none: 0-8rw-p\n" in out


def test_guards_in_files() -> None:
    same(
        _GUARD
        + r"""
        static void kid(void) { all("child", 6); put(1); put(5); all("child", 6); }
        int main(void)
        {
            setup();
            int fd = memfd_create("f", 0);
            ftruncate(fd, 6 * PG);
            for (int i = 0; i < 6; i++) pwrite(fd, "ABCDEF" + i, 1, i * PG);
            mmap(b, 6 * PG, RW, MAP_SHARED | MAP_FIXED, fd, 0);
            put(2);
            M(2, 2, INSTALL);
            all("shared", 6);
            M(0, 6, MADV_WILLNEED);
            all("needed", 6);
            show("one");
            child(kid);
            M(2, 2, REMOVE);
            all("as it was", 6);
            mmap(b, 6 * PG, RW, MAP_PRIVATE | MAP_FIXED, fd, 0);
            put(2); put(4);
            M(2, 2, INSTALL);
            all("private", 6);
            child(kid);
            M(2, 2, REMOVE);
            all("the file's", 6);
            mmap(b, 6 * PG, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
            M(0, 1, INSTALL);
            all("read-only", 6);
            mmap(b, 6 * PG, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            fill(6);
            M(1, 2, INSTALL);
            all("no file", 6);
            child(kid);
            M(1, 2, REMOVE);
            all("kept", 6);
            return 0;
        }
        """
    )


def test_what_the_kernel_finds_at_a_guard() -> None:
    same(
        _GUARD
        + r"""
        int main(void)
        {
            setup();
            int p[2], fd, zero = open("/dev/zero", O_RDONLY);
            unsigned char vec[8] = {0};
            unsigned long words[8];
            char text[16];
            pipe(p);
            fix(0, 8, RW);
            fill(8);
            M(2, 2, INSTALL);
            T(write(p[1], b + 2 * PG, 10));
            T(write(p[1], b + 2 * PG - 5, 10));
            T(read(zero, b + PG, 3 * PG));
            T(read(zero, b + 3 * PG, PG));
            T(mincore(b, 8 * PG, vec));
            for (int i = 0; i < 8; i++) printf("%d ", vec[i]);
            puts("");
            fd = open("/proc/self/pagemap", O_RDONLY);
            pread(fd, words, 64, (long)b / PG * 8);
            for (int i = 0; i < 8; i++)
                printf("%d%d%d ", (int)(words[i] >> 63), (int)(words[i] >> 62 & 1),
                       (int)(words[i] >> 58 & 1));
            puts("");
            fd = open("/proc/self/mem", O_RDWR);
            T(pread(fd, text, 8, (long)b + 2 * PG));
            T(pread(fd, text, 8, (long)b + 2 * PG - 4));
            T(pwrite(fd, text, 8, (long)b + 3 * PG));
            struct iovec here = {text, 16}, there = {b + 2 * PG - 8, 16};
            T(process_vm_readv(getpid(), &here, 1, &there, 1, 0));
            return 0;
        }
        """
    )


def test_guards_move_with_the_mapping_and_not_beyond_it() -> None:
    same(
        _GUARD
        + r"""
        static void move(int from, int n, int to, int size, int flags)
        {
            char *r = mremap(b + from * PG, n * PG, size * PG, flags, b + to * PG);
            printf("%d+%d to %d+%d: %d\n", from, n, to, size, r == b + to * PG);
        }
        int main(void)
        {
            setup();
            fix(0, 4, RW);
            fill(4);
            M(1, 1, INSTALL);
            M(3, 1, INSTALL);
            move(0, 4, 10, 4, 3);
            all("moved", 16);
            move(10, 4, 10, 6, 0);
            all("grown", 18);
            move(10, 6, 20, 6, 7);          /* MREMAP_DONTUNMAP */
            all("both", 28);
            move(20, 6, 20, 2, 0);
            move(20, 2, 20, 6, 0);
            all("what was cut off", 28);
            show("which");
            return 0;
        }
        """
    )


def test_a_stack_grows_past_a_guard() -> None:
    same(
        _GUARD
        + r"""
        static char alt[65536];
        static void use(int n) { volatile char a[1000]; a[0] = 1; if (n) use(n - 1); a[1] = 1; }
        int main(void)
        {
            setup();
            stack_t ss = {.ss_sp = alt, .ss_size = sizeof alt};
            sigaltstack(&ss, 0);
            struct sigaction sa = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_ONSTACK};
            sigaction(SIGSEGV, &sa, 0);
            use(200);
            char here, *at = (char *)((unsigned long)&here & -PG) - 20 * PG;
            *at = 1;
            T(madvise(at, PG, INSTALL));
            if (!sigsetjmp(jump, 1)) use(200); else printf("met %d\n", code);
            volatile char *below = at - 100 * PG;
            if (!sigsetjmp(jump, 1)) *below = 1, puts("below"); else printf("below %d\n", code);
            T(madvise(at, PG, REMOVE));
            if (!sigsetjmp(jump, 1)) use(800), puts("used"); else printf("met %d\n", code);
            hole(600);
            mmap(b + 500 * PG, 4 * PG, RW,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0);
            T(madvise(b + 500 * PG, PG, INSTALL));
            printf("%d %d %d\n", put(500), put(498), put(500));
            return 0;
        }
        """
    )
