"""PROCMAP_QUERY: asking /proc/PID/maps for one mapping."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.kern.guest_util import CHILD, same
from tests.kern.test_vma import VMAS

pytestmark = pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 11), reason="the host has it not"
)

_QUERY = (
    VMAS
    + CHILD
    + r"""
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
struct query {
    uint64_t size, flags, addr, start, end, vma_flags, page_size, offset, inode;
    uint32_t major, minor, name_size, id_size;
    uint64_t name, id;
};
#define QUERY _IOWR('f', 17, struct query)
static int fd;
static char name[5000];
static unsigned char id[20];
static struct query q;
static int ask(void *addr, uint64_t flags, int names)
{
    q = (struct query){.size = sizeof q, .flags = flags, .addr = (long)addr, .start = 7};
    if (names & 1) q.name = (long)name, q.name_size = sizeof name;
    if (names & 2) q.id = (long)id, q.id_size = sizeof id;
    errno = 0;
    return ioctl(fd, QUERY, &q) ? errno : 0;
}
static void tell(const char *what, int error)
{
    if (error) { printf("%s: error %d start %d\n", what, error, q.start == 7); return; }
    printf("%s: %ld-%ld flags %lx page %ld offset %lx inode %d dev %d '%s' id %u\n", what,
           (long)(q.start - (long)b) / 4096, (long)(q.end - (long)b) / 4096, (long)q.vma_flags,
           (long)q.page_size, (long)q.offset, q.inode != 0, q.major || q.minor,
           q.name_size ? name : "", q.id_size);
}
"""
)


def test_one_mapping(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(bytes(20 * 4096))
    same(
        _QUERY
        + r"""
        static void kid(void) { tell("the parent's", ask(b + 5 * PG, 0, 0)); }
        int main(int argc, char **argv)
        {
            int file = open(argv[1], O_RDWR), mem = memfd_create("mem", 0);
            struct stat st;
            ftruncate(mem, 4 * PG);
            hole(40);
            fd = open("/proc/self/maps", O_RDONLY);
            fix(2, 3, RW);
            mmap(b + 6 * PG, 2 * PG, PROT_READ, MAP_SHARED | MAP_FIXED, file, 3 * PG);
            mmap(b + 8 * PG, 2 * PG, RW, MAP_PRIVATE | MAP_FIXED, file, 8 * PG);
            fix(12, 2, PROT_READ | PROT_EXEC);
            mmap(b + 14 * PG, PG, PROT_NONE, MAP_SHARED | MAP_FIXED, mem, PG);
            b[8 * PG] = 1;
            for (int i = 1; i < 16; i++) tell("at", ask(b + i * PG + 9, 0, 1));
            fstat(file, &st);
            ask(b + 6 * PG, 0, 0);
            printf("%d %d\n", q.inode == st.st_ino, makedev(q.major, q.minor) == st.st_dev);
            tell("next", ask(b + PG, 16, 1));
            tell("executable", ask(b + 2 * PG, 4, 0));
            tell("next executable", ask(b + 2 * PG, 16 | 4, 0));
            tell("next writable", ask(b + 5 * PG, 16 | 2, 0));
            tell("readable and writable", ask(b + 8 * PG, 3, 0));
            tell("next shared", ask(b, 16 | 8, 1));
            tell("next file", ask(b, 16 | 32, 1));
            tell("file", ask(b + 3 * PG, 32, 1));
            tell("shared file", ask(b + 7 * PG, 16 | 8 | 32, 1));
            tell("next private file", ask(b + 7 * PG, 16 | 2 | 32, 1));
            mmap(b, 2 * PG, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            int error = ask(b, 32, 1);
            printf("shared memory %d %d '%s'\n", error, (int)(q.end - q.start), name);
            munmap(b, 2 * PG);
            /* large memory, which the VM cuts as it is used */
            unsigned long large = 200UL << 20;
            char *p = mmap(0, large, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            for (int i = 0; i < 200; i += 25) p[(unsigned long)i << 20] = 1;
            mprotect(p, PG, PROT_READ);
            mprotect(p + large - PG, PG, PROT_READ);
            error = ask(p + large / 2, 2, 0);
            printf("large %d %d %d\n", error, q.start == (long)p + PG,
                   q.end == (long)p + large - PG);
            tell("none is above", ask((void *)0x7ffffffff000, 16 | 2, 0));
            tell("flags", ask(b, 64, 0));
            fd = open("/proc/self/maps", O_RDONLY);
            child(kid);
            /* a stack and a heap have names */
            *(char *)sbrk(1) = 0;
            tell("stack", ask(&st, 0, 1) || strcmp(name, "[stack]"));
            printf("%d\n", ask((char *)sbrk(0) - 1, 0, 1) == 0 && !strcmp(name, "[heap]"));
            return 0;
        }
        """.replace('tell("stack", ask(&st, 0, 1) || strcmp(name, "[stack]"));',
                    'printf("%d\\n", ask(&st, 0, 1) == 0 && !strcmp(name, "[stack]"));'),
        str(path),
    )  # fmt: skip


def test_what_is_asked_wrongly() -> None:
    same(
        _QUERY
        + r"""
        static void size(unsigned n, int junk)
        {
            static char big[8192];
            memset(big, 0, sizeof big);
            struct query *s = (void *)big;
            s->size = n;
            s->addr = (long)b;
            s->start = 7;
            if (junk) big[n - 1] = 1;
            errno = 0;
            int r = ioctl(fd, QUERY, big);
            printf("size %u: %d %d start %d page %ld\n", n, r, errno, s->start == (long)b,
                   (long)s->page_size);
        }
        #define E(x) do { errno = 0; int r = (x); printf("%s: %d %d\n", #x, r, r ? errno : 0); } \
            while (0)
        int main(void)
        {
            static const int sizes[] = {0, 8, 23, 24, 32, 40, 100, 104, 105, 200, 4096, 4097};
            hole(40);
            fix(0, 2, RW);
            fd = open("/proc/self/maps", O_RDONLY);
            for (int i = 0; i < sizeof sizes / 4; i++) size(sizes[i], 0);
            size(110, 1);
            E(ioctl(fd, QUERY, 0));
            E(ioctl(fd, QUERY, b + 2 * PG - 4));
            E(ioctl(fd, _IOWR('f', 17, int), &q));
            E(ioctl(fd, _IOWR('f', 18, struct query), &q));
            ask(b, 0, 0); q.name_size = 5; E(ioctl(fd, QUERY, &q));
            ask(b, 0, 0); q.name = (long)name; E(ioctl(fd, QUERY, &q));
            ask(b, 0, 0); q.id_size = 5; E(ioctl(fd, QUERY, &q));
            ask(main, 0, 0); q.name = (long)name; q.name_size = 3; E(ioctl(fd, QUERY, &q));
            ask(main, 0, 0); q.name = 16; q.name_size = 300; E(ioctl(fd, QUERY, &q));
            ask(b, 0, 0); q.name = 16; q.name_size = 3; E(ioctl(fd, QUERY, &q));
            printf("%d\n", q.name_size);
            fd = open("/proc/self/smaps", O_RDONLY);
            E(ioctl(fd, QUERY, &q));
            int pid = fork(), out[2];
            if (!pid) { pause(); _exit(0); }
            sprintf(name, "/proc/%d/maps", pid);
            fd = open(name, O_RDONLY);
            tell("another's", ask(b, 0, 0));
            kill(pid, SIGKILL);
            waitid(P_PID, pid, &(siginfo_t){0}, WEXITED | WNOWAIT);
            tell("dead", ask(b, 0, 0));
            tell("dead, and wrong", ask(b, 64, 0));
            return 0;
        }
        """
    )


def test_build_ids() -> None:
    source = (
        _QUERY
        + r"""
        int main(void)
        {
            int mem = memfd_create("mem", 0), error;
            ftruncate(mem, 4 * PG);
            hole(40);
            fd = open("/proc/self/maps", O_RDONLY);
            printf("%d ", ask(main, 0, 2));
            for (int i = 0; i < q.id_size; i++) printf("%02x", id[i]);
            puts("");
            mmap(b, PG, RW, MAP_SHARED | MAP_FIXED, mem, 0);
            error = ask(b, 0, 2);
            printf("%d %d\n", error, q.id_size);
            fix(0, 1, RW);
            error = ask(b, 0, 2);
            printf("%d %d\n", error, q.id_size);
            ask(main, 0, 0);
            q.id = (long)id; q.id_size = 19;
            error = ioctl(fd, QUERY, &q);
            printf("%d %d\n", error, errno);
            return 0;
        }
        """
    )
    flags = ("-Wl,--build-id=0x0123456789abcdef0123456789abcdef01234567",)
    out = same(source, flags=flags)
    assert out == b"0 0123456789abcdef0123456789abcdef01234567\n0 0\n0 0\n-1 36\n"
    assert same(source, flags=("-Wl,--build-id=none",)).startswith(b"0 \n0 0\n0 0\n0 ")
    assert same(source, flags=("-Wl,--build-id=0xabcd",)).startswith(b"0 abcd\n")
