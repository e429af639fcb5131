"""What becomes of a file while somebody sleeps in the middle of it: truncated under a reader,
closed under a writer, unlinked under who waits to open it.

A page is read slowly (slow_util), and others run meanwhile: `beside` starts one that waits to be
told to GO. What a call answers then must be something that Linux could answer, and the machine must
be well afterwards. The host can't be asked: it does not sleep where we want it to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfvm import PIPE, Machine
from dfvm.kern.vfs.overlay import OvlVnode
from dfvm.kern.vfs.vnode_param import VRECLAIMED
from tests.kern.guest_util import build, same
from tests.kern.slow_util import Slow, slow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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


@pytest.fixture
def dead_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of vnodes that had been reclaimed: nobody may."""
    calls: list[str] = []

    def watched(name: str) -> Callable[..., object]:
        method = getattr(OvlVnode, name)

        def call(vp: OvlVnode, *args: object) -> object:
            if vp.v_flag & VRECLAIMED:
                calls.append(name)
            return method(vp, *args)

        return call

    for name in ("vop_open", "vop_modify", "vop_setsize", "vop_zero", "vop_allocate"):
        monkeypatch.setattr(OvlVnode, name, watched(name))
    return calls


def run(
    source: str,
    data: Path,
    *args: str,
    turns: int = 1,
    slow_write: bool = False,
    memory: float = 0.0,
    rw: Sequence[Path] = (),
) -> list[str]:
    """The lines that a program printed which ended well, in a machine that is well, where `data`,
    its first argument, is slow to be read, and with `slow_write` every file to be written."""
    program = build(BESIDE + source)
    how = Slow(file=data, turns=(turns, turns), write=float(slow_write), memory=memory)
    with Machine(mem="64M", rw=rw, check=True) as m, slow(m, how):
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


def stops(source: str) -> None:
    """Run a program that stops now and then: the machine must be well each time. It ends with 0."""
    program = build(
        r"""
        #define STOP() kill(getpid(), SIGSTOP)
        void program(void);
        int main(int argc, char **argv)
        {
            char text[200];
            if (argc > 1) {
                do {
                    int fd = open(argv[1], O_RDONLY), n = read(fd, text, sizeof text - 1);
                    close(fd);
                    if (n <= 0) return 0;
                    text[n] = 0;
                    sched_yield();
                } while (!strstr(text, ") T") && !strstr(text, ") Z"));
                return 0;
            }
            program();
            return 0;
        }"""
        + source
    )
    with Machine(mem="64M", check=True) as m:
        p = m.spawn([str(program)])
        while p.exit_status is None:
            m.run(until=m.spawn([str(program), f"/proc/{p.pid}/stat"]), timeout=30)
            m.check()
            p.kill(18)
        assert p.exit_status == 0


def test_what_is_wired_and_truncated_away_is_nobodys() -> None:
    # A wired page behind the end stays, invalid, with what it held. When the file has grown again
    # and ends in the middle of it, that is not junk behind the end of the file.
    stops(r"""
    void program(void)
    {
        char text[200];
        int fd = memfd_create("x", 0);
        ftruncate(fd, 5 * 4096);
        char *p = mmap(0, 5 * 4096, 3, MAP_SHARED, fd, 0);
        memset(p, 'x', 5 * 4096);
        if (mlock(p, 5 * 4096)) exit(1);
        ftruncate(fd, 4096);
        fsync(fd);
        ftruncate(fd, 2 * 4096 + 100);
        fsync(fd);
        STOP();
        pread(fd, text, 100, 2 * 4096);
        for (int i = 0; i < 100; i++) if (text[i] || p[2 * 4096 + i]) exit(1);
        if (p[2 * 4096 + 100]) exit(1);
    }""")


PRIVATE = r"""
static int fd, status;
static char *p;

static void cut_and_grow(void)
{
    ftruncate(fd, 0);
    ftruncate(fd, 4 * 4096);
    pwrite(fd, "n", 1, 4096);
}

static void look(void)
{
    if (p[0] || p[4096] != 'n' || p[3 * 4096]) exit(1);
}

/* Private pages of a file that lie behind a front object: written before a fork, which keeps them
   in common with a child, and then only read. */
void program(void)
{
    fd = memfd_create("x", 0);
    ftruncate(fd, 4 * 4096);
    p = mmap(0, 4 * 4096, 3, MAP_PRIVATE, fd, 0);
    p[0] = p[4096] = p[2 * 4096] = 'p';
    int child = fork();
    p[3 * 4096] = 'f';
    mprotect(p, 4 * 4096, PROT_READ);
    if (!child) { CHILD; pause(); }
    CALLS;
    STOP();
    kill(child, SIGKILL);
    wait(&status);
    STOP();
}
"""


@pytest.mark.parametrize(
    ("child", "calls"),
    [
        ("", "mlock(p, 4*4096); cut_and_grow(); look(); STOP(); munlock(p, 4*4096)"),
        ("", "mlock(p, 4*4096); cut_and_grow(); look(); munmap(p, 2*4096)"),
        ("", "mlock(p, 4*4096); cut_and_grow(); munlock(p, 4*4096); STOP(); look()"),
        ("", "mlock(p, 4*4096); cut_and_grow(); munlock(p, 4*4096); mlock(p, 4*4096); look()"),
        ("mlock(p, 4*4096)", "mlock(p, 4*4096); sched_yield(); cut_and_grow(); look(); STOP()"),
        ("mlock(p, 4*4096)", "sched_yield(); cut_and_grow(); mlock(p, 4*4096); look(); STOP()"),
        ("mlock(p, 4*4096); sched_yield(); look(); munlock(p, 4*4096)",
         "mlock(p, 4*4096); sched_yield(); cut_and_grow(); look(); sched_yield(); STOP()"),
    ],
)  # fmt: skip
def test_private_pages_that_are_wired_and_cut_off(child: str, calls: str) -> None:
    # Who shows the file again in place of a copy that has gone takes its wirings over: all, as they
    # may be several processes'. And a copy that nobody has wired any more does not stay behind.
    stops(PRIVATE.replace("CHILD", child).replace("CALLS", calls))


@pytest.mark.parametrize("protect", ["", "mprotect(p, 6*4096, PROT_READ)"])
@pytest.mark.parametrize("flags", ["MAP_PRIVATE", "MAP_SHARED"])
@pytest.mark.parametrize("lock", ["mlock(p, 6*4096)", "mlock2(p, 6*4096, 1)"])
def test_what_is_locked_shows_the_file_when_it_has_grown_again(
    lock: str, flags: str, protect: str
) -> None:
    # A private page that was written to is the file's again once it was cut off, locked or not.
    program = r"""
    static sigjmp_buf back;
    static void on_bus(int sig) { siglongjmp(back, 1); }
    static void look(char *p)
    {
        for (int i = 0; i < 6; i++)
            if (sigsetjmp(back, 1)) printf("- ");
            else printf("%d ", *(volatile char *)(p + i * 4096));
        puts("");
    }
    static int pieces(char *p)
    {
        FILE *maps = fopen("/proc/self/maps", "r");
        char line[200];
        int n = 0;
        while (fgets(line, sizeof line, maps)) {
            char *at = (char *)strtoul(line, 0, 16);
            n += at >= p && at < p + 6 * 4096;
        }
        fclose(maps);
        return n;
    }
    int main(void)
    {
        signal(SIGBUS, on_bus);
        setvbuf(stdout, 0, _IONBF, 0);
        int fd = memfd_create("x", 0);
        ftruncate(fd, 6 * 4096);
        char *p = mmap(0, 6 * 4096, 3, FLAGS, fd, 0);
        for (int i = 0; i < 6; i += 2) p[i * 4096] = i + 1;
        LOCK;
        PROTECT;
        ftruncate(fd, 4096 + 100);
        look(p);
        ftruncate(fd, 5 * 4096 + 100);
        look(p);
        for (int i = 0; i < 5; i++) pwrite(fd, &(char){ 50 + i }, 1, i * 4096);
        look(p);
        printf("%d\n", pieces(p));
        munlock(p, 6 * 4096);
        look(p);
    }"""
    same(program.replace("LOCK", lock).replace("FLAGS", flags).replace("PROTECT", protect))


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
        data, turns=40,
    )  # fmt: skip
    assert lines == ["0 0"]


def test_a_page_that_is_unwired_while_it_is_written_stays_to_the_end_of_that(data: Path) -> None:
    # Nothing but the wiring keeps it, since the file was cut; and the write.
    lines = run(
        r"""
        static int fd;
        static void writes(void) { fsync(fd); }
        static void cut(void) { ftruncate(fd, 100); }
        int main(int argc, char **argv)
        {
            fd = open(argv[1], O_RDWR);
            char *p = mmap(0, 4 * 4096, 3, MAP_SHARED, fd, 0), c;
            printf("%d\n", mlock(p, 4 * 4096));
            memset(p, 'z', 4 * 4096);
            int w = beside(writes, 0), t = beside(cut, 0);
            sched_yield();
            GO(w);
            sched_yield();
            GO(t);
            sched_yield();
            printf("%d\n", munlock(p, 4 * 4096));
            reap();
            printf("%d\n", pread(fd, &c, 1, 4096));
        }""",
        data, turns=40, slow_write=True,
    )  # fmt: skip
    assert lines == ["0", "0", "0"]


def test_a_copy_that_is_locked_while_others_are_unlocked_for_a_truncation(data: Path) -> None:
    # The truncation waits for one who is about to lock what he has; we lock what it is going to
    # take away. The page keeps our wiring, and hands it to the file's when that shows again.
    lines = run(
        r"""
        static int fd, ready[2];
        static char *p;
        static void locks(void)
        {
            madvise(p, 12 * 4096, MADV_RANDOM);
            p[0] = 'a';
            mprotect(p, 12 * 4096, PROT_READ);
            write(ready[1], "", 1);
            mlock(p, 12 * 4096);
        }
        static void cut(void)
        {
            ftruncate(fd, 8 * 4096);
            ftruncate(fd, 12 * 4096);
        }
        int main(int argc, char **argv)
        {
            char c;
            fd = open(argv[1], O_RDWR);
            pipe(ready);
            p = mmap(0, 12 * 4096, 3, MAP_PRIVATE, fd, 0);
            p[9 * 4096] = 'p';
            int n = beside(locks, 0), t = beside(cut, CLONE_FILES);
            p[10 * 4096] = 'q';
            mprotect(p, 12 * 4096, PROT_READ);
            GO(n);
            read(ready[0], &c, 1);
            sched_yield();
            GO(t);
            sched_yield();
            int r = mlock(p + 9 * 4096, 4096);
            reap();
            printf("%d %d %d\n", r, p[9 * 4096], p[10 * 4096]);
            printf("%d\n", munlock(p + 9 * 4096, 4096));
        }""",
        data, turns=40,
    )  # fmt: skip
    assert lines == ["0 0 0", "0"]


def test_what_fork_copies_of_a_file_that_is_cut_meanwhile_ends_with_it(data: Path) -> None:
    # Private pages that are locked are copied, which may have to wait for memory. Behind the end
    # of the file there is nothing left, in the parent or in the child.
    lines = run(
        r"""
        static int fd;
        static sigjmp_buf back;
        static void on_bus(int sig) { siglongjmp(back, 1); }
        static void cut(void)
        {
            for (int i = 0; i < 3; i++) sched_yield();
            ftruncate(fd, 100);
        }
        static void look(char *p)
        {
            for (int i = 0; i < 8; i++)
                if (sigsetjmp(back, 1)) putchar('-');
                else putchar(*(volatile char *)(p + i * 4096));
            puts("");
        }
        int main(int argc, char **argv)
        {
            signal(SIGBUS, on_bus);
            setvbuf(stdout, 0, _IONBF, 0);
            fd = open(argv[1], O_RDWR);
            char *p = mmap(0, 8 * 4096, 3, MAP_PRIVATE, fd, 0);
            mlock(p, 8 * 4096);
            for (int i = 0; i < 8; i++) p[i * 4096] = 'a' + i;
            GO(beside(cut, CLONE_VM | CLONE_FILES));
            if (!fork()) { look(p); _exit(0); }
            reap();
            look(p);
        }""",
        data, memory=0.9,
    )  # fmt: skip
    assert lines == ["a-------", "a-------"]


# --- Files that are closed, or lose their name, while somebody is at work on them -----------------

CLOSED = r"""
#include <sys/uio.h>
static int fd, other, out[2];
static char *from;
static struct iovec v;
static void closes(void) { close(fd); }
int main(int argc, char **argv)
{
    from = slow_memory(argv[1]);
    v = (struct iovec){ from, 8192 };
    fd = memfd_create("mine", 0);
    other = memfd_create("other", 0);
    ftruncate(fd, 4096);
    pipe2(out, O_NONBLOCK);
    write(out[1], "piped", 5);
    int n = beside(closes, CLONE_VM | CLONE_FILES);
    sched_yield();
    GO(n);
    long r = CALL;
    reap();
    printf("%ld %d\n", r, fcntl(fd, F_GETFD));
}
"""


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("write(fd, from, 8192)", 8192),
        ("pwrite(fd, from, 8192, 100)", 8192),
        ("writev(fd, &v, 1)", 8192),
        ("pwritev2(fd, &v, 1, 0, 0x10)", 8192),
        ("pread(fd, from, 4096, 0)", 4096),
        ("read(fd, from, 4096)", 4096),
        ("readv(fd, (void *)(from + 8 * 4096), 1)", 0),
        ("copy_file_range(fd, (long *)(from + 9 * 4096), other, 0, 4096, 0)", 4096),
        ("splice(out[0], 0, fd, (long *)(from + 9 * 4096), 5, 0)", 5),
    ],
)
def test_a_file_that_is_closed_in_the_middle_lasts_to_the_end(
    data: Path, call: str, result: int
) -> None:
    # The only descriptor goes, by way of a table that is shared, while the call waits for memory.
    # It holds the file, as on Linux.
    assert run(CLOSED.replace("CALL", call), data) == [f"{result} -1"]


WAITS = r"""
static int fd;
static char *from, *map;
static long r;
static void writer(void) { pwrite(fd, from, 4096, 0); }
static void waits_for_it(void) { r = CALL; }
int main(int argc, char **argv)
{
    from = slow_memory(argv[1]);
    fd = open("/tmp/lost", O_RDWR | O_CREAT, 0600);
    ftruncate(fd, 4096);
    map = mmap(0, 4096, 3, MAP_SHARED, fd, 0);
    /* The writer's descriptors are its own. */
    int w = beside(writer, CLONE_VM), n = beside(waits_for_it, CLONE_VM | CLONE_FILES);
    sched_yield();
    GO(w);
    sched_yield();
    GO(n);
    sched_yield();
    munmap(map, 4096);
    close(fd);
    unlink("/tmp/lost");
    reap();
    printf("%ld\n", r);
}
"""


@pytest.mark.parametrize(
    "call",
    [
        "ftruncate(fd, 100)",
        "fallocate(fd, 0, 4096, 4096)",
        "fallocate(fd, 3, 0, 4096)",
        "madvise(map, 4096, MADV_REMOVE)",
        'truncate("/tmp/lost", 100)',
    ],
)
def test_who_waits_for_a_writer_finds_the_file_there(
    data: Path, call: str, dead_calls: list[str]
) -> None:
    # The writer sleeps with the vnode locked. It is the last to have the file, and ends.
    assert run(WAITS.replace("CALL", call), data, turns=40) == ["0"]
    assert dead_calls == []


def test_transfers_through_a_shared_descriptor_wait_for_each_other(data: Path) -> None:
    # Nothing but one descriptor has the file, but two processes have that.
    lines = run(
        r"""
        static int fd;
        static char theirs[4096];
        static void writes(void) { write(fd, theirs, 4096); }
        int main(int argc, char **argv)
        {
            char got[8192], *from = slow_memory(argv[1]);
            memset(theirs, 'y', 4096);
            fd = memfd_create("mine", 0);
            int n = beside(writes, CLONE_VM | CLONE_FILES);
            sched_yield();
            GO(n);
            write(fd, from, 4096);
            reap();
            int size = pread(fd, got, 8192, 0);
            printf("%d %c%c\n", size, got[0], got[4096]);
        }""",
        data,
    )  # fmt: skip
    assert lines == ["8192 xy"]


@pytest.mark.parametrize(
    "call", ["open(name, O_RDWR)", "open(name, O_WRONLY | O_TRUNC)", "truncate(name, 5)"]
)
def test_a_file_lasts_while_somebody_waits_for_its_lease(
    data: Path, call: str, dead_calls: list[str]
) -> None:
    # Its holder, when asked to give it back, unlinks the file and closes it.
    lines = run(
        r"""
        static const char *name = "/tmp/leased";
        static int fd;
        static void on_break(int sig) { unlink(name); close(fd); }
        int main(int argc, char **argv)
        {
            int ready[2];
            char c;
            pipe(ready);
            if (!fork()) {
                sigset_t set, none;
                sigemptyset(&none);
                sigemptyset(&set);
                sigaddset(&set, SIGIO);
                sigprocmask(SIG_BLOCK, &set, 0);
                signal(SIGIO, on_break);
                fd = open(name, O_RDWR | O_CREAT, 0600);
                write(fd, "text", 4);
                fcntl(fd, F_SETLEASE, F_WRLCK);
                write(ready[1], "", 1);
                sigsuspend(&none);
                _exit(0);
            }
            read(ready[0], &c, 1);
            struct stat st = { 0 };
            int r = CALL;
            if (r > 0) fstat(r, &st);
            reap();
            printf("%s %d\n", r < 0 ? strerror(errno) : "done", st.st_nlink);
        }""".replace("CALL", call),
        data,
    )  # fmt: skip
    assert lines == ["done 0"]
    assert dead_calls == []


def test_nobody_looks_at_the_host_while_a_file_grows(data: Path, tmp_path: Path) -> None:
    # In a --rw directory the host's file is shorter than ours while we write to ours; fsync, which
    # makes them equal, does not wait for the writer.
    shared = tmp_path / "shared"
    shared.mkdir()
    lines = run(
        r"""
        static int fd;
        static char name[200];
        static void looks(void)
        {
            for (int i = 0; i < 30; i++) {
                fsync(fd);
                close(open(name, 0));
                sched_yield();
            }
        }
        int main(int argc, char **argv)
        {
            char *from = slow_memory(argv[1]);
            madvise(from, 8 * 4096, MADV_RANDOM);
            sprintf(name, "%s/file", argv[2]);
            fd = open(name, O_RDWR | O_CREAT, 0600);
            write(fd, "0123", 4);
            char *map = mmap(0, 4096, 3, MAP_SHARED, fd, 0);
            int n = beside(looks, 0);
            sched_yield();
            GO(n);
            printf("%d\n", pwrite(fd, from, 8 * 4096, 2));
            reap();
            struct stat st;
            fstat(fd, &st);
            printf("%d\n", st.st_size);
        }""",
        data, str(shared), turns=4, rw=[shared],
    )  # fmt: skip
    assert lines == [str(8 * PAGE), str(8 * PAGE + 2)]
    assert (shared / "file").read_bytes() == b"01" + b"x" * 8 * PAGE


def test_two_who_wait_for_the_map_get_a_place_each(data: Path) -> None:
    # A fork waits for memory with the map locked. Both would have been given the same place.
    lines = run(
        r"""
        static char *got[2];
        static void *any(void)
        {
            return mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        }
        static void one(void) { got[0] = any(); }
        static void two(void) { got[1] = any(); }
        int main(int argc, char **argv)
        {
            char *p = any();
            mlock(p, 4096);
            *p = 1;
            int n = beside(one, CLONE_VM), m = beside(two, CLONE_VM);
            sched_yield();
            GO(n);
            GO(m);
            if (!fork()) _exit(0);
            reap();
            printf("%d %d\n", got[0] != MAP_FAILED && got[1] != MAP_FAILED, got[0] != got[1]);
        }""",
        data, memory=0.95, turns=40,
    )  # fmt: skip
    assert lines == ["1 1"]
