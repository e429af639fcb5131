"""What becomes of a file while somebody sleeps in the middle of it.

A page is read slowly (slow_util), and others run meanwhile: `beside` starts one that waits to be
told to GO. What a call answers then must be something that Linux could answer, and the machine must
be well afterwards. The host can't be asked: it does not sleep where we want it to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfvm import PIPE, Machine
from tests.kern.guest_util import build
from tests.kern.slow_util import Slow, slow

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096

BESIDE = r"""
static int gate[8][2], besides;

struct beside { void (*fn)(void); int n; };

static int waits(void *arg)
{
    struct beside *b = arg;
    char c;
    read(gate[b->n][0], &c, 1);
    b->fn();
    syscall(SYS_exit, 0);
}

/* Starts a process that shares what `flags` say, and calls fn() after GO(n), where n is what this
   returns. */
static int beside(void (*fn)(void), int flags)
{
    char *stack = mmap(0, 65536, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(stack, 0, 65536);
    struct beside *b = (void *)stack;
    b->fn = fn;
    b->n = besides++;
    pipe(gate[b->n]);
    clone(waits, stack + 65536, flags | SIGCHLD, b);
    return b->n;
}

#define GO(n) write(gate[n][1], "", 1)

/* Memory that takes long to be read: a file's. */
static char *slow_memory(const char *file)
{
    return mmap(0, 12 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, open(file, O_RDONLY), 0);
}

static void reap(void) { while (wait(0) > 0) ; }
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of the host's, eight pages of 'x' and four of zeros, none of them in memory."""
    path = tmp_path / "data"
    path.write_bytes(b"x" * 8 * PAGE + bytes(4 * PAGE))
    return path


def run(source: str, data: Path, *args: str, turns: int = 1) -> list[str]:
    """The lines that a program printed which ended well, in a machine that is well, where `data`,
    its first argument, is slow to be read."""
    program = build(BESIDE + source)
    how = Slow(file=data, turns=(turns, turns))
    with Machine(mem="64M", check=True) as m, slow(m, how):
        argv = [str(program), str(data), *args]
        p = m.spawn(argv, stdin=b"", stdout=PIPE, stderr=PIPE)
        try:
            m.run(timeout=30)
        except TimeoutError:
            raise AssertionError(m.kernel.sched.deadlock_report()) from None
        m.check()
        assert p.exit_status == 0, p.stderr
        assert p.stdout is not None
        return p.stdout.decode().splitlines()


# --- Truncation, and those who have found or are about to read a page -----------------------------


def test_what_is_wired_and_truncated_away_is_nobodys() -> None:
    # A wired page behind the end stays, invalid, with what it held. When the file has grown again
    # and ends in the middle of it, that is not junk behind the end of the file.
    program = build(r"""
    int main(int argc, char **argv)
    {
        char text[200];
        if (argc > 1) {
            do {
                int fd = open(argv[1], O_RDONLY), n = read(fd, text, sizeof text - 1);
                close(fd);
                text[n] = 0;
                sched_yield();
            } while (!strstr(text, ") T"));
            return 0;
        }
        int fd = memfd_create("x", 0);
        ftruncate(fd, 5 * 4096);
        char *p = mmap(0, 5 * 4096, 3, MAP_SHARED, fd, 0);
        memset(p, 'x', 5 * 4096);
        if (mlock(p, 5 * 4096)) return 1;
        ftruncate(fd, 4096);
        fsync(fd);
        ftruncate(fd, 2 * 4096 + 100);
        fsync(fd);
        kill(getpid(), SIGSTOP);
        pread(fd, text, 100, 2 * 4096);
        for (int i = 0; i < 100; i++) if (text[i] || p[2 * 4096 + i]) return 1;
        return p[2 * 4096 + 100];
    }""")
    with Machine(mem="64M", check=True) as m:
        p = m.spawn([str(program)])
        m.run(until=m.spawn([str(program), f"/proc/{p.pid}/stat"]))
        m.check()
        p.kill(18)
        m.run(timeout=30)
        m.check()
        assert p.exit_status == 0


@pytest.mark.parametrize("later", range(6))
@pytest.mark.parametrize("size", [0, 100, PAGE + 100])
def test_a_read_ends_where_the_file_does_when_its_page_has_come(
    data: Path, size: int, later: int
) -> None:
    # The file is cut while its first page is read, or `later`, when those behind it are read ahead.
    # As on Linux, where filemap_read looks at i_size once the page is there, nobody gets the zeros
    # that stand behind the end by then; and the page, which leaves the file, keeps its bytes.
    lines = run(
        r"""
        static int fd, size, later;
        static void cut(void)
        {
            while (later--) sched_yield();
            ftruncate(fd, size);
        }
        int main(int argc, char **argv)
        {
            static char got[3 * 4096];
            fd = open(argv[1], O_RDWR);
            size = atoi(argv[2]);
            later = atoi(argv[3]);
            GO(beside(cut, 0));
            int n = pread(fd, got, sizeof got, 0), x = 0;
            while (x < n && got[x] == 'x') x++;
            reap();
            printf("%d %d\n", n, x);
        }""",
        data, str(size), str(later),
    )  # fmt: skip
    count, right = map(int, lines[0].split())
    assert count == right
    assert count >= size
    assert count == size or count % PAGE == 0


def test_who_waited_for_a_page_that_went_makes_no_new_one(data: Path) -> None:
    # One reads page 3; we wait for that; a third cuts the file, waits, too, and goes first.
    lines = run(
        r"""
        static int fd, got;
        static void reader(void)
        {
            static char c;
            got = pread(fd, &c, 1, 3 * 4096);
        }
        static void cut(void)
        {
            struct sched_param first = { 1 };
            sched_setscheduler(0, SCHED_FIFO, &first);
            ftruncate(fd, 100);
        }
        int main(int argc, char **argv)
        {
            static char c;
            fd = open(argv[1], O_RDWR);
            int r = beside(reader, CLONE_VM | CLONE_FILES), t = beside(cut, CLONE_VM | CLONE_FILES);
            sched_yield();
            GO(r);
            sched_yield();
            GO(t);
            int n = pread(fd, &c, 1, 3 * 4096);
            reap();
            printf("%d %d\n", n, got);
        }""",
        data, turns=9,
    )  # fmt: skip
    assert lines == ["0 0"]
