"""mseal: mappings that stay as they are."""

from __future__ import annotations

import platform

import pytest

from tests.kern.guest_util import CHILD, same
from tests.kern.test_vma import VMAS

# Of 6.16: what is sealed and a file's may be thrown away, as its pages come back.
pytestmark = pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 16), reason="the host is too old"
)

_SEAL = (
    VMAS
    + CHILD
    + r"""
#include <sys/shm.h>
static int seal(int page, long n, unsigned long flags)
{
    return syscall(462, b + page * PG, n * PG, flags);
}
#define T(x) do { errno = 0; long r = (long)(x); \
    printf("%s: %d\n", #x, r == -1 ? errno : 0); } while (0)
"""
)


def test_what_is_sealed_is_not_unmapped_moved_or_protected() -> None:
    out = same(
        _SEAL
        + r"""
        static void kid(void)
        {
            T(munmap(b + 2 * PG, PG));
            T(mprotect(b + 2 * PG, PG, PROT_READ));
            T(munmap(b, PG));
        }
        int main(void)
        {
            hole(40);
            fix(0, 8, RW);
            memset(b, 'x', 8 * PG);
            T(seal(2, 3, 1));
            T(syscall(462, b + 1, PG, 0));
            T(syscall(462, b, -1L, 0));
            T(syscall(462, b, -PG, 0));
            T(syscall(462, -PG, PG, 0));
            T(seal(6, 3, 0));
            T(seal(30, 0, 0));
            show("not yet");
            T(seal(2, 3, 0));
            show("sealed");
            T(munmap(b + 2 * PG, PG));
            T(munmap(b, 8 * PG));
            T(munmap(b + 4 * PG, 2 * PG));
            show("nothing is gone");
            T(fix(3, 1, RW));
            T(fix(0, 3, RW));
            T(mmap(b, 8 * PG, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
            T(mprotect(b + 2 * PG, PG, RW));          /* what it has already */
            T(mprotect(b + 4 * PG, PG, PROT_READ));
            T(mprotect(b, 8 * PG, PROT_READ));        /* those before it are changed */
            show("some are");
            T(mprotect(b, 2 * PG, RW));
            T(mremap(b + 2 * PG, 3 * PG, 4 * PG, MREMAP_MAYMOVE));
            T(mremap(b + 2 * PG, 3 * PG, 2 * PG, 0));
            T(mremap(b + 2 * PG, 3 * PG, 3 * PG, 0));
            T(mremap(b + 2 * PG, PG, PG, MREMAP_MAYMOVE | MREMAP_FIXED, b + 30 * PG));
            T(mremap(b + 2 * PG, PG, PG, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0));
            T(mremap(b, PG, PG, MREMAP_MAYMOVE | MREMAP_FIXED, b + 3 * PG));
            T(mremap(b, 4 * PG, 2 * PG, 0));
            T(mremap(b, 2 * PG, 3 * PG, 0));
            show("all there");
            T(seal(3, 4, 0));
            T(seal(2, 5, 0));
            show("more");
            T(mlock(b + 2 * PG, PG));
            T(munlock(b + 2 * PG, PG));
            T(madvise(b + 2 * PG, PG, MADV_DONTDUMP));
            T(madvise(b + 2 * PG, PG, MADV_DODUMP));
            T(madvise(b + 2 * PG, PG, MADV_DONTNEED));  /* could be written, too */
            T(madvise(b + 2 * PG, PG, MADV_WIPEONFORK));
            T(madvise(b + 2 * PG, PG, MADV_KEEPONFORK));
            printf("%d %d\n", b[2 * PG], b[3 * PG]);
            b[2 * PG] = 1;
            child(kid);
            T(munmap(b, 2 * PG));
            T(munmap(b + 7 * PG, PG));
            show("the rest");
            FILE *f = fopen("/proc/self/smaps", "r");
            char line[400];
            int sealed = 0;
            while (fgets(line, 400, f))
                sealed += !strncmp(line, "VmFlags", 7) && strstr(line, " sl");
            printf("%d\n", sealed > 0);
            return 0;
        }
        """
    )
    assert (
        b"munmap(b + 2 * PG, PG): 1\n" in out and b"nothing is gone: 0-2rw-p 2-5rw-p 5-8rw-p" in out
    )


def test_what_is_sealed_and_read_only_is_not_thrown_away() -> None:
    same(
        _SEAL
        + r"""
        static const int advice[] = {MADV_DONTNEED, MADV_FREE, 24, MADV_DONTFORK, MADV_WIPEONFORK,
                                     102, MADV_REMOVE, MADV_DOFORK, MADV_RANDOM, MADV_WILLNEED,
                                     MADV_COLD, MADV_POPULATE_READ, 103};
        static void each(const char *what)
        {
            printf("%s:", what);
            for (int i = 0; i < sizeof advice / 4; i++) {
                errno = 0;
                madvise(b, PG, advice[i]);
                printf(" %d", errno);
            }
            puts("");
        }
        int main(void)
        {
            hole(8);
            int fd = memfd_create("f", 0);
            ftruncate(fd, 2 * PG);
            fix(0, 1, RW); b[0] = 7; mprotect(b, PG, PROT_READ); seal(0, 1, 0);
            each("private");
            printf("%d\n", b[0]);
            hole(8);
            mmap(b, PG, RW, MAP_PRIVATE | MAP_FIXED, fd, 0); b[0] = 7;
            mprotect(b, PG, PROT_READ); seal(0, 1, 0);
            each("private view");
            hole(8);
            mmap(b, PG, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0); seal(0, 1, 0);
            each("file");
            hole(8);
            mmap(b, PG, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0); seal(0, 1, 0);
            each("shared");
            return 0;
        }
        """
    )


def test_the_heap_a_segment_and_the_stack() -> None:
    same(
        _SEAL
        + r"""
        int main(void)
        {
            char *end = sbrk(4 * PG);
            end = (char *)(((unsigned long)end + PG - 1) & -PG);
            T(syscall(462, end + PG, PG, 0));
            printf("%d\n", syscall(SYS_brk, end + PG) == (long)(end + PG));
            printf("%d\n", syscall(SYS_brk, end + 2 * PG) == (long)(end + 2 * PG));
            printf("%d\n", syscall(SYS_brk, end + PG) == (long)(end + PG));
            printf("%d\n", sbrk(4 * PG) == (void *)-1);
            int shm = shmget(IPC_PRIVATE, 2 * PG, 0600);
            char *p = shmat(shm, 0, 0);
            struct shmid_ds ds;
            T(syscall(462, p, 2 * PG, 0));
            T(shmat(shm, p, SHM_REMAP));
            T(shmdt(p));
            shmctl(shm, IPC_STAT, &ds);
            printf("%ld\n", (long)ds.shm_nattch);
            shmctl(shm, IPC_RMID, 0);
            char here;
            T(syscall(462, (unsigned long)&here & -PG, PG, 0));
            return 0;
        }
        """
    )
