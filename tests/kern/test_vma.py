"""What is one mapping to a program and what is two: /proc/PID/maps, mremap, and max_map_count."""

from __future__ import annotations

from dfvm import PIPE, Machine
from tests.kern.guest_util import CHILD, build, by_host, same

# A free range between pages that are not, memory at places in it, and which mappings are in it.
VMAS = r"""
#define PG 4096UL
#define RW (PROT_READ | PROT_WRITE)
static char *b;
static void hole(int n)
{
    b = mmap(0, (n + 2) * PG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + PG;
    munmap(b, n * PG);
}
static char *fix(int at, int n, int prot)
{
    return mmap(b + at * PG, n * PG, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}
static void show(const char *what)
{
    FILE *f = fopen("/proc/self/maps", "r");
    char line[400], perm[8];
    unsigned long s, e, at = (unsigned long)b;
    printf("%s:", what);
    while (fgets(line, sizeof line, f)) {
        sscanf(line, "%lx-%lx %4s", &s, &e, perm);
        if (e > at && s < at + 16 * PG)
            printf(" %ld-%ld%s", (long)(s - at) / 4096, (long)(e - at) / 4096, perm);
    }
    fclose(f);
    puts("");
}
"""


def test_a_child_adds_nothing_to_what_it_has_inherited_written() -> None:
    # Linux: an anon_vma that has parents is merged with no other (vma_had_uncowed_parents).
    out = same(
        VMAS
        + CHILD
        + r"""
        static void grow(void)
        {
            fix(2, 2, RW);
            show("behind");
            char *r = mremap(b, 3 * PG, 4 * PG, MREMAP_MAYMOVE);
            printf("over both %d\n", r == MAP_FAILED ? errno : 0);
            fix(4, 2, RW);
            show("more");
            mprotect(b, PG, PROT_READ);
            show("cut");
            mprotect(b, PG, RW);
            show("mended");
            madvise(b, 2 * PG, MADV_DONTNEED);
            show("thrown away");
        }
        static void again(void) { fix(2, 2, RW); b[2 * PG] = 1; child(grow); }
        static void below(void) { fix(4, 2, RW); show("below"); }
        static void alike(void) { mprotect(b, 2 * PG, RW); show("alike"); }
        static void untouched(void) { fix(2, 2, RW); show("untouched"); }
        static void move(void)
        {
            char *r = mremap(b, 2 * PG, 6 * PG, 0);
            printf("in place %d\n", r == b);
            show("grown");
            mremap(b + PG, PG, PG, MREMAP_MAYMOVE | MREMAP_FIXED, b + 10 * PG);
            fix(11, 1, RW);
            show("moved");
            mremap(b + 10 * PG, PG, PG, MREMAP_MAYMOVE | MREMAP_FIXED, b + PG);
            show("moved back");
        }
        static int fd;
        static void file(void)
        {
            mmap(b + 2 * PG, 2 * PG, RW, MAP_PRIVATE | MAP_FIXED, fd, 2 * PG);
            show("file");
        }
        static void heap(void)
        {
            sbrk(3 * PG);
            sbrk(3 * PG);
            FILE *f = fopen("/proc/self/maps", "r");
            char line[400];
            int n = 0;
            while (fgets(line, 400, f)) n += !!strstr(line, "[heap]");
            fclose(f);
            printf("heaps %d\n", n);
        }
        int main(void)
        {
            hole(16); fix(0, 2, RW); b[0] = 1;
            child(grow);
            fix(2, 2, RW); show("the parent's is one");
            hole(16); fix(0, 2, RW);
            child(untouched);
            (void)*(volatile char *)b;    /* reading is no use of it */
            child(untouched);
            hole(16); fix(0, 8, RW);      /* nor is that somebody has cut it */
            munmap(b + 2 * PG, 6 * PG);
            mprotect(b + PG, PG, PROT_READ);
            mprotect(b + PG, PG, RW);
            child(untouched);
            b[0] = 1;
            child(again);
            hole(16); fix(6, 2, RW); b[6 * PG] = 1;
            child(below);
            hole(16); fix(0, 2, PROT_READ); fix(2, 2, RW); b[2 * PG] = 1;
            child(alike);
            hole(16); fix(0, 4, RW); b[0] = b[3 * PG] = 1; mprotect(b, 2 * PG, PROT_READ);
            child(alike);
            mprotect(b, 2 * PG, RW); show("the parent's are");
            hole(16); fix(0, 2, RW); b[0] = b[PG] = 1;
            child(move);
            fd = memfd_create("x", 0); ftruncate(fd, 16 * PG);
            hole(16); mmap(b, 2 * PG, RW, MAP_PRIVATE | MAP_FIXED, fd, 0);
            child(file);
            b[0] = 1;
            child(file);
            file();
            *(char *)sbrk(PG) = 1;
            child(heap);
            heap();
            return 0;
        }
        """
    )
    assert b"behind: 0-2rw-p 2-4rw-p\nover both 14\nmore: 0-2rw-p 2-6rw-p" in out
    assert b"heaps 2\nheaps 1" in out


def test_what_fork_finds_in_pieces_is_one_in_the_child() -> None:
    """The VM cuts large memory as it is touched; a grandchild's pieces were children's pieces."""
    assert same(
        VMAS + CHILD + r"""
        #define MB (1UL << 20)
        static void look(void)
        {
            show("child");
            char *r = mremap(b, 256 * MB, 512 * MB, MREMAP_MAYMOVE);
            printf("%d %d %d\n", r != MAP_FAILED, r[0], r[200 * MB]);
        }
        static void twice(void) { b[100 * MB] = 1; child(look); look(); }
        int main(void)
        {
            char *p = mmap(0, 640 * MB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                           -1, 0);
            b = (char *)(((unsigned long)p + 64 * MB - 1) & -(64 * MB));
            munmap(p, 640 * MB);
            mmap(b, 256 * MB, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
            for (int i = 0; i < 256; i += 40) b[i * MB] = i + 1;
            child(twice);
            look();
            return 0;
        }
        """
    ).count(b"child: 0-65536rw-p\n1 1 -55\n") == 3  # fmt: skip


# Take as many mappings as there may be: each step cuts one off a large one.
_FILL = r"""
#include <sys/shm.h>
static unsigned long limit;
static char *spare;
static void fill(void)
{
    static const int prots[] = {PROT_READ, RW};
    static int n;
    while (mprotect(spare, PG, prots[n & 1]) == 0) spare += PG, n++;
    if (errno != ENOMEM) puts("not for that");
}
#define T(x) do { errno = 0; int ok = (long)(x) != -1; printf("%s: %d\n", #x, ok ? 0 : errno); \
                  fill(); } while (0)
static void start(void)
{
    FILE *f = fopen("/proc/sys/vm/max_map_count", "r");
    fscanf(f, "%lu", &limit);
    fclose(f);
    spare = mmap(0, (limit + 200) * PG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
    hole(40);
    fix(0, 8, RW); fix(8, 8, PROT_READ); fix(16, 4, RW); fix(21, 4, RW | PROT_EXEC);
    fix(25, 4, PROT_NONE); fix(29, 6, RW);
}
"""


def _limited(source: str) -> bytes:
    """What a program prints on the host, and in a machine with less to fill."""
    program = build(source)
    expected = by_host(program)
    with Machine(mem="64M", check=True) as m:
        m.kernel.vm.sysctl.max_proc_mmap = 150
        p = m.spawn([str(program)], stdout=PIPE)
        m.run(timeout=60)
        m.check()
        assert (p.exit_status, p.stdout) == expected
    return expected[1]


def test_at_the_limit_nothing_is_cut() -> None:
    # mm/vma.c: split_vma, vms_gather_munmap_vmas; madvise(2) says EAGAIN for the same.
    out = _limited(
        VMAS
        + _FILL
        + r"""
        int main(void)
        {
            start();
            int fd = memfd_create("f", 0), shm = shmget(IPC_PRIVATE, 2 * PG, 0600);
            ftruncate(fd, 8 * PG);
            fill();
            T(munmap(b + PG, PG));
            T(munmap(b + 9 * PG, 2 * PG));
            T(mmap(b + PG, PG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
            T(mmap(b + PG, PG, RW, MAP_SHARED | MAP_FIXED, fd, 0));
            T(mprotect(b + PG, PG, PROT_READ));
            T(mprotect(b, PG, PROT_READ));
            T(mprotect(b + 9 * PG, 2 * PG, RW));
            T(mprotect(b, PG, RW));                 /* is so already */
            T(mprotect(b + 6 * PG, 2 * PG, PROT_READ));   /* the border moves */
            T(mprotect(b + 6 * PG, PG, RW));
            T(mprotect(b + 6 * PG, 5 * PG, RW));
            T(mprotect(b + 19 * PG, PG, PROT_READ));
            T(mprotect(b + 21 * PG, 4 * PG, PROT_NONE));  /* all of one, which joins the next */
            T(mprotect(b + 21 * PG, 4 * PG, RW | PROT_EXEC));
            T(mlock(b + PG, PG));
            T(mlock2(b, PG, 1));
            T(mlock(b + 16 * PG, 4 * PG));
            T(munlock(b + 16 * PG, PG));
            T(mlock(b + 16 * PG, PG));
            T(munlock(b + 16 * PG, 4 * PG));
            T(madvise(b + PG, PG, MADV_DONTFORK));
            T(madvise(b + PG, PG, MADV_WIPEONFORK));
            T(madvise(b + PG, PG, MADV_DONTDUMP));
            T(madvise(b + PG, PG, MADV_RANDOM));
            T(madvise(b + PG, PG, MADV_DOFORK));
            T(madvise(b + PG, PG, MADV_NORMAL));
            T(madvise(b + PG, PG, MADV_DONTNEED));
            T(madvise(b + PG, PG, MADV_WILLNEED));
            T(madvise(b + 16 * PG, 4 * PG, MADV_DONTFORK));
            T(madvise(b + 17 * PG, PG, MADV_DOFORK));
            T(madvise(b + 16 * PG, 4 * PG, MADV_DOFORK));
            T(mremap(b, 2 * PG, 4 * PG, MREMAP_MAYMOVE));
            T(mremap(b, PG, PG, MREMAP_MAYMOVE | MREMAP_FIXED, b + 36 * PG));
            T(mremap(b, PG, PG, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0));
            T(mremap(b, 4 * PG, 2 * PG, 0));
            T(mremap(b + 16 * PG, 4 * PG, 5 * PG, 0));    /* grows where it is */
            T(mremap(b + 16 * PG, 5 * PG, 4 * PG, 0));
            T(shmat(shm, b + PG, SHM_REMAP));
            shmctl(shm, IPC_RMID, 0);
            T(munmap(b, PG));
            T(munmap(b + 7 * PG, 2 * PG));
            T(sbrk(PG));
            return 0;
        }
        """
    )
    for line in (
        b"munmap(b + PG, PG): 12\n", b"mprotect(b, PG, PROT_READ): 12\n", b"mlock(b + PG, PG): 12",
        b"madvise(b + PG, PG, MADV_DONTFORK): 11\n", b"MREMAP_MAYMOVE): 12\n",
        b"mprotect(b + 6 * PG, 2 * PG, PROT_READ): 0\n", b"munmap(b, PG): 0\n",
    ):  # fmt: skip
        assert line in out


def test_near_the_limit_room_for_one_more_cut_is_not_room_for_two() -> None:
    _limited(
        VMAS
        + _FILL
        + r"""
        #define ONE(x) do { munmap(b, 8 * PG); errno = 0; int ok = (long)(x) != -1; \
            printf("%s: %d\n", #x, ok ? 0 : errno); fix(0, 8, RW); fix(8, 8, PROT_READ); \
            fix(16, 4, RW); fix(21, 4, RW | PROT_EXEC); madvise(b, 40 * PG, MADV_DOFORK); \
            munlock(b + 16 * PG, 19 * PG); fill(); } while (0)
        int main(void)
        {
            start();
            fill();
            ONE(mprotect(b + 17 * PG, PG, PROT_READ));
            ONE(mprotect(b + 16 * PG, PG, RW | PROT_EXEC));
            ONE(mprotect(b + 17 * PG, 6 * PG, PROT_READ));
            ONE(munmap(b + 17 * PG, PG));
            ONE(mlock(b + 17 * PG, PG));
            ONE(mlock(b + 17 * PG, 3 * PG));
            ONE(madvise(b + 17 * PG, PG, MADV_DONTFORK));
            ONE(madvise(b + 18 * PG, 2 * PG, MADV_DONTFORK));
            ONE(mremap(b + 16 * PG, PG, 2 * PG, MREMAP_MAYMOVE));
            ONE(mmap(b + 17 * PG, PG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
            return 0;
        }
        """
    )


def test_beyond_the_limit_nothing_is_mapped() -> None:
    """mmap, which only asks whether there are too many already, can make one too many."""
    out = _limited(
        VMAS
        + _FILL
        + r"""
        #undef T
        #define T(x) do { errno = 0; int ok = (long)(x) != -1; \
                          printf("%s: %d\n", #x, ok ? 0 : errno); } while (0)
        #define MAP(at, n, prot) \
            mmap(b + at * PG, n * PG, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
        int main(void)
        {
            start();
            sbrk(PG);
            int shm = shmget(IPC_PRIVATE, 2 * PG, 0600);
            fill();
            T(MAP(36, 1, PROT_READ));
            T(MAP(38, 1, PROT_READ));
            T(MAP(35, 1, RW));
            T(MAP(0, 1, RW));
            T(shmat(shm, 0, 0));
            T(sbrk(PG));
            T(munmap(b + PG, PG));
            T(mprotect(b + 36 * PG, PG, RW));
            T(munmap(b + 36 * PG, PG));
            T(sbrk(PG));
            shmctl(shm, IPC_RMID, 0);
            return 0;
        }
        """
    )
    assert b"MAP(36, 1, PROT_READ): 0\nMAP(38, 1, PROT_READ): 12\n" in out


def test_entries_that_the_vm_has_cut_do_not_count() -> None:
    """Large memory is cut as it is touched: more entries than there may be mappings."""
    program = build(
        VMAS
        + r"""
        #define PART (32UL << 20)
        int main(void)
        {
            char *p = mmap(0, 100 * PART, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            for (int i = 0; i < 100; i++) p[i * PART] = 1;
            hole(16);
            fix(0, 4, RW);
            if (mprotect(b + PG, PG, PROT_READ) || munmap(b, 4 * PG)) return 1;
            int i = 0;  /* and yet they are limited */
            while (!mprotect(p + i * PG, PG, i & 1 ? PROT_READ : PROT_NONE)) i++;
            return i < 20 || i > 60;
        }
        """
    )
    with Machine(mem="64M", check=True) as m:
        m.kernel.vm.sysctl.max_proc_mmap = 60
        p = m.spawn([str(program)])
        m.run(timeout=60)
        m.check()
        assert p.exit_status == 0


def test_the_default_limit_is_linuxs() -> None:
    with Machine(mem="64M") as m:
        assert m.kernel.vm.sysctl.max_proc_mmap == 65_530  # DEFAULT_MAX_MAP_COUNT
