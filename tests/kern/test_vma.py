"""What is one mapping to a program and what is two: /proc/PID/maps, mremap, and max_map_count."""

from __future__ import annotations

from tests.kern.guest_util import CHILD, same

# A free range between pages that are not, memory at places in it, and which mappings are in it.
_VMAS = r"""
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
        _VMAS
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
        _VMAS + CHILD + r"""
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
