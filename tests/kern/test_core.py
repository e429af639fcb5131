"""Core files: who leaves one and where, and what is in it. The expectations are Linux's; where the
host dumps to a file called core they are tried on the host, too."""

from __future__ import annotations

import os
import re
import resource
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from elftools.elf.elffile import ELFFile

from dfvm import PIPE, Machine
from dfvm.kern.kern_core import (
    CORE_ANON_PRIVATE,
    CORE_ANON_SHARED,
    CORE_ELF_HEADERS,
    CORE_FILE_PRIVATE,
    CORE_FILE_SHARED,
)
from tests.kern.guest_util import build

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096


def host_dumps() -> bool:
    """The host writes cores to a file "core", and lets us have them."""
    try:
        pattern = Path("/proc/sys/kernel/core_pattern").read_text()
        uses_pid = Path("/proc/sys/kernel/core_uses_pid").read_text()
    except OSError:
        return False
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    return (pattern, uses_pid, hard) == ("core\n", "0\n", resource.RLIM_INFINITY)


WHERE = ["guest", pytest.param("host", marks=pytest.mark.skipif(
    not host_dumps(), reason="the host's cores go elsewhere"))]  # fmt: skip


def guest(program: Path, *args: str, cwd: Path, filter: int | None = None,
          mem: str = "64M") -> tuple[int, str]:  # fmt: skip
    """Run in a machine that writes to `cwd`: exit status and output."""
    with Machine(mem=mem, rw=[cwd], check=True) as m:
        p = m.spawn([str(program), *args], stdin=b"", stdout=PIPE, stderr=PIPE, cwd=cwd)
        if filter is not None:
            p.proc.p_coredump_filter = filter
        m.run(timeout=60)
        m.check()
        assert p.exit_status is not None and p.stdout is not None
        return p.exit_status, p.stdout.decode()


def native(program: Path, *args: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run([program, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          cwd=cwd, timeout=60, check=False)  # fmt: skip
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    return status, done.stdout.decode()


def run(where: str, program: Path, *args: str, cwd: Path) -> tuple[int, str]:
    return (guest if where == "guest" else native)(program, *args, cwd=cwd)


# struct user_regs_struct, <sys/user.h>.
REGS = ("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
        "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds",
        "es", "fs", "gs")  # fmt: skip


class Segment(NamedTuple):
    flags: int
    filesz: int
    memsz: int


class Core:
    """A core file, read by pyelftools."""

    def __init__(self, path: Path) -> None:
        self.raw = path.open("rb")
        self.elf = ELFFile(self.raw)
        self.notes: list[tuple[str, Any]] = []
        self.loads = []
        for seg in self.elf.iter_segments():
            if seg["p_type"] == "PT_NOTE":
                self.notes = [(n["n_type"], n["n_desc"]) for n in seg.iter_notes()]
            elif seg["p_type"] == "PT_LOAD":
                self.loads.append(seg)

    def note(self, name: str) -> Any:
        return next(desc for ntype, desc in self.notes if ntype == name)

    def status(self) -> tuple[int, ...]:
        """struct elf_prstatus as in <sys/procfs.h>: registers from the 15th word on."""
        return struct.unpack("<iii h2x QQ 4i 8q 27Q i4x", self.note("NT_PRSTATUS"))

    def regs(self) -> dict[str, int]:
        return dict(zip(REGS, self.status()[18:45], strict=True))

    def segment(self, va: int) -> Segment | None:
        for seg in self.loads:
            if seg["p_vaddr"] <= va < seg["p_vaddr"] + seg["p_memsz"]:
                return Segment(seg["p_flags"], seg["p_filesz"], seg["p_memsz"])
        return None

    def read(self, va: int, n: int) -> bytes | None:
        """Memory; None where the core has none."""
        for seg in self.loads:
            if seg["p_vaddr"] <= va < seg["p_vaddr"] + seg["p_filesz"]:
                self.raw.seek(seg["p_offset"] + va - seg["p_vaddr"])
                return self.raw.read(n)
        return None


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Path]:
    """Where a core of a program that runs in tmp_path will be."""
    path = tmp_path / "core"
    yield path
    path.unlink(missing_ok=True)  # some are as long as an address space


UNLIMITED = r"""
    static void unlimited(void) {
        struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
        if (setrlimit(RLIMIT_CORE, &r)) perror("setrlimit");
    }
"""

# ---- who leaves one, where -----------------------------------------------------------------------

WHO = UNLIMITED + r"""
    static int limit;
    static void tell(const char *what, int sig, void (*how)(int)) {
        unlink("core");
        siginfo_t i;
        int st;
        fflush(stdout);
        int pid = fork();
        if (!pid) {
            struct rlimit r = {limit, RLIM_INFINITY};
            setrlimit(RLIMIT_CORE, &r);
            how(sig);
            _exit(0);
        }
        waitid(P_PID, pid, &i, WEXITED | WNOWAIT);
        wait4(pid, &st, 0, 0);
        struct stat s = {0};
        int r = stat("core", &s);
        printf("%s %d: term %d core %d code %d status %d file %d mode %o\n", what, sig,
               WTERMSIG(st), !!WCOREDUMP(st), i.si_code, i.si_status, r, s.st_mode);
    }
    static void raise_(int s) { signal(s, SIG_DFL); raise(s); }
    static void blocked(int s) {
        sigset_t set;
        sigfillset(&set);
        sigprocmask(SIG_BLOCK, &set, 0);
        *(volatile int *)8 = 0;
    }
    static void undumpable(int s) { prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); raise(s); }
    static void umasked(int s) { umask(0200); raise(s); }
    static void nowhere(int s) { mkdir("d", 0777); chdir("d"); rmdir("../d"); raise(s); }
    static void on_link(int s) {
        close(open("victim", O_CREAT | O_WRONLY, 0644));
        symlink("victim", "core");
        raise(s);
    }
    int main(void) {
        int all[] = {SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGXCPU, SIGXFSZ,
                     SIGSYS, SIGKILL, SIGTERM, SIGHUP, SIGUSR1, SIGALRM, 34, 64};
        limit = RLIM_INFINITY;
        for (int i = 0; i < sizeof all / sizeof *all; i++) tell("any", all[i], raise_);
        tell("blocked", SIGSEGV, blocked);
        tell("undumpable", SIGABRT, undumpable);
        tell("umask", SIGABRT, umasked);
        tell("nowhere", SIGABRT, nowhere);
        tell("link", SIGABRT, on_link);
        struct stat s;
        stat("victim", &s);
        printf("victim %ld\n", (long)s.st_size);
        limit = 0; tell("0", SIGABRT, raise_);
        limit = 4095; tell("4095", SIGABRT, raise_);
        limit = 4096; tell("4096", SIGABRT, raise_);
        link("core", "kept"); stat("kept", &s); unsigned long before = s.st_size;
        limit = 65536; tell("again", SIGABRT, raise_);
        stat("kept", &s);
        printf("kept %d\n", before == s.st_size);
    }
"""  # fmt: skip
# From signal(7): the signals whose action is Core.
WITH_CORE = (3, 4, 5, 6, 7, 8, 11, 24, 25, 31)
WITHOUT = (9, 15, 1, 10, 14, 34, 64)


@pytest.mark.parametrize("where", WHERE)
def test_who_dumps(where: str, tmp_path: Path) -> None:
    """Signals, limits, dumpable, what is in the way of the file."""
    dumped = "core 1 code 3 status {0} file 0 mode 100600"
    none = "core 0 code 2 status {0} file -1 mode 0"
    left_alone = "core 0 code 2 status {0} file {1} mode {2}"

    def line(what: str, sig: int, how: str, *more: object) -> str:
        return f"{what} {sig}: term {sig} " + how.format(sig, *more)

    sigs = (3, 4, 5, 6, 7, 8, 11, 24, 25, 31, 9, 15, 1, 10, 14, 34, 64)
    assert set(sigs) == {*WITH_CORE, *WITHOUT}
    expected = [line("any", sig, dumped if sig in WITH_CORE else none) for sig in sigs]
    expected += [
        line("blocked", 11, dumped),
        line("undumpable", 6, none),
        # Linux fs/coredump.c: a file that was not made with the mode that was asked for is left.
        line("umask", 6, left_alone, 0, 100400),
        line("nowhere", 6, none),
        line("link", 6, dumped),
        "victim 0",
        line("0", 6, none),
        line("4095", 6, none),
        line("4096", 6, dumped),
        line("again", 6, dumped),
        "kept 1",
    ]
    _, out = run(where, build(WHO), cwd=tmp_path)
    assert out.splitlines() == expected


PATTERN = UNLIMITED + r"""
    #include <dirent.h>
    static int put(const char *file, const char *text) {
        int fd = open(file, O_WRONLY), n = write(fd, text, strlen(text));
        close(fd);
        return n < 0 ? -errno : n;
    }
    static void dies(int argc, char **argv) {
        int st, pid = fork();
        if (!pid) {
            unlimited();
            prctl(PR_SET_NAME, "na/me");
            abort();
        }
        wait(&st);
        printf("pid %d core %d:", pid, !!WCOREDUMP(st));
        struct dirent **names;
        int n = scandir(".", &names, 0, alphasort);
        for (int i = 0; i < n; i++) if (names[i]->d_name[0] != '.' || names[i]->d_name[2] > '.')
            { printf(" %s", names[i]->d_name); unlink(names[i]->d_name); }
        printf("\n");
    }
    int main(int argc, char **argv) {
        char text[200];
        #define PAT "/proc/sys/kernel/core_pattern"
        for (int i = 1; i < argc; i++) {
            printf("%d ", put(PAT, argv[i]));
            int fd = open(PAT, O_RDONLY);
            text[read(fd, text, 199)] = 0;
            close(fd);
            printf("%s", text);
            fflush(stdout);
            dies(argc, argv);
        }
        put("/proc/sys/kernel/core_uses_pid", "1");
        put(PAT, "core"); dies(argc, argv);
        put(PAT, "c.%%p"); dies(argc, argv);
        put(PAT, "c.%p"); dies(argc, argv);
    }
"""  # fmt: skip


def test_pattern(tmp_path: Path) -> None:
    """Every % sequence; what is none; a path; programs and sockets, which are refused. As in Linux
    Documentation/admin-guide/sysctl/kernel.rst and format_corename."""
    program = build(PATTERN)
    away = tmp_path / "away"
    away.mkdir()
    here = tmp_path / "here"
    here.mkdir()
    patterns = ["c-%%-%p-%P-%i-%I-%u-%g-%d-%s-%c-%C-%e-%f-%h", "c%z%", "x.%E", f"{away}/got.%s",
                "|/bin/cat", "@socket", "one\ntwo", "no/dir", "", "."]  # fmt: skip
    with Machine(rw=[tmp_path], check=True) as m:
        m.kernel.hostname = b"box/1"
        p = m.spawn([str(program), *patterns], stdin=b"", stdout=PIPE, stderr=PIPE, cwd=here)
        m.run(timeout=60)
        assert p.stdout is not None
        lines = p.stdout.decode().splitlines()
    uid, gid = os.getuid(), os.getgid()

    def results(text: str) -> list[str]:
        found = re.fullmatch(r"pid (\d+) core (\d):(.*)", text)
        assert found is not None, text
        return [found[2], *found[3].split()], found[1]  # type: ignore[return-value]

    it = iter(lines)
    expected: list[tuple[str, list[str]]] = [
        (f"{len(patterns[0])} {patterns[0]}",
         ["1", f"c-%-PID-PID-PID-PID-{uid}-{gid}-1-6-{resource.RLIM_INFINITY & (1 << 64) - 1}-0-"
               f"na!me-{program.name}-box!1"]),
        ("4 c%z%", ["1", "c"]),
        ("4 x.%E", ["1", "x." + str(program).replace("/", "!")]),
        (f"{len(patterns[3])} {patterns[3]}", ["1"]),
        (f"-22 {patterns[3]}", ["1"]),
        (f"-22 {patterns[3]}", ["1"]),
        ("7 one", ["1", "one"]),
        ("6 no/dir", ["0"]),
        # A write of nothing is none: the pattern stays.
        ("0 no/dir", ["0"]),
        ("1 .", ["0"]),
    ]  # fmt: skip
    for written, names in expected:
        assert next(it) == written
        got, pid = results(next(it))
        assert got == [name.replace("PID", pid) for name in names]
    for name in ("core.PID", "c.%p.PID", "c.PID"):
        got, pid = results(next(it))
        assert got == ["1", name.replace("PID", pid)]
    assert [f.name for f in away.iterdir()] == ["got.6"]


# ---- what is in it -------------------------------------------------------------------------------

IMAGE = UNLIMITED + r"""
    #include <sys/procfs.h>
    static char data[8192] = "written data";
    static double half = 0.5;
    int main(int argc, char **argv) {
        unlimited();
        #define ANON MAP_PRIVATE | MAP_ANONYMOUS
        #define MAP(n, prot, flags) mmap(0, n, prot, flags, -1, 0)
        char *untouched = MAP(8 << 20, 3, ANON);
        char *reserved = MAP(atol(argv[1]), 3, ANON | MAP_NORESERVE);
        char *secret = MAP(8192, 3, ANON), *again = MAP(8192, 3, ANON);
        char *none = MAP(8192, 3, ANON), *shared = MAP(8192, 3, MAP_SHARED | MAP_ANONYMOUS);
        char *own = MAP(64 * 4096, 3, ANON), *zeros = MAP(4 << 20, 3, ANON);
        for (int i = 0; i < 4 << 20; i += 4096) (void)*(volatile char *)(zeros + i);
        int fd = open("file", O_CREAT | O_RDWR, 0600);
        ftruncate(fd, 3 * 4096 + 100);
        pwrite(fd, "from the file", 13, 4096);
        char *file = mmap(0, 4 * 4096, 3, MAP_PRIVATE, fd, 0);
        char *clean = mmap(0, 4096, 1, MAP_PRIVATE, fd, 4096);
        char *fshared = mmap(0, 8192, 3, MAP_SHARED, fd, 0);
        reserved[0x12345678] = 'r';
        strcpy(secret, "secret"); strcpy(again, "again"); strcpy(none, "none");
        strcpy(shared, "shared"); strcpy(own + 40 * 4096, "own"); strcpy(file + 8192, "copied");
        volatile char c = clean[0];
        madvise(secret, 8192, MADV_DONTDUMP);
        madvise(again, 8192, MADV_DONTDUMP);
        madvise(again, 8192, MADV_DODUMP);
        mprotect(none, 8192, PROT_NONE);
        /* Written to before a fork and after it, while the child has what was written before. */
        int fds[2];
        pipe(fds);
        if (!fork()) { close(fds[1]); read(fds[0], data, 1); _exit(0); }
        strcpy(own, "new");
        /* A part of a file that was relocated, as it were, and the part before it. */
        int whole = open("whole", O_CREAT | O_RDWR, 0600);
        ftruncate(whole, 16 * 4096);
        char *relro = mmap(0, 16 * 4096, 1, MAP_PRIVATE, whole, 0);
        mmap(relro + 8 * 4096, 8 * 4096, 3, MAP_PRIVATE | MAP_FIXED, whole, 8 * 4096);
        strcpy(relro + 10 * 4096, "relocated");
        mprotect(relro + 8 * 4096, 8 * 4096, 1);
        printf("%p %p %p %p %p %p %p %p %p %p %p %p\n", untouched, reserved, secret, again, none,
               shared, own, file, clean, fshared, data, relro);
        printf("%d %d %d %d %lu\n", getpid(), getppid(), getpgrp(), getsid(0), getauxval(AT_PHDR));
        fd = open("/proc/self/auxv", O_RDONLY);
        int n = read(fd, data + 4096, 4096);
        for (int i = 0; i < n; i++) printf("%02x", data[4096 + i] & 255);
        printf("\n");
        memset(data + 4096, 0, 4096);
        fflush(stdout);
        sigset_t set;
        sigemptyset(&set); sigaddset(&set, SIGUSR2); sigprocmask(SIG_BLOCK, &set, 0);
        raise(SIGUSR2);
        fd = open("/proc/self/maps", O_RDONLY);
        char maps[8192];
        n = read(fd, maps, 8192);
        write(1, maps, n);
        asm volatile("movsd %0, %%xmm9; fldl %0; mov $0xaaaabbbbccccdddd, %%r12;"
            "mov $0x1111, %%rbx; mov $0x2222, %%r15; mov $0x3333, %%rax; mov $0x4444, %%rdi;"
            "mov $0x30, %%r8; stc; std; movl $1, (%%r8)" :: "m"(half) : "memory");
    }
"""  # fmt: skip


@pytest.mark.parametrize("where", WHERE)
def test_image(where: str, tmp_path: Path, core: Path) -> None:
    """Registers, notes, and what of memory is there."""
    program = build(IMAGE)
    # The host looks at every page of a reservation.
    reserve = 1 << 40 if where == "guest" else 1 << 32
    status, out = run(where, program, str(reserve), "", "words", cwd=tmp_path)
    assert status == 128 + 11
    first, ids, auxv, *maps = out.splitlines()
    untouched, reserved, secret, again, none, shared, own, file, clean, fshared, data, relro = (
        int(word, 16) for word in first.split()
    )  # fmt: skip
    pid, ppid, pgrp, sid, _ = map(int, ids.split())
    c = Core(core)
    header = c.elf.header
    assert (header["e_type"], header["e_machine"], header["e_ident"]["EI_CLASS"]) == (
        "ET_CORE", "EM_X86_64", "ELFCLASS64")  # fmt: skip
    assert [ntype for ntype, _ in c.notes][:6] == [
        "NT_PRSTATUS", "NT_PRPSINFO", "NT_SIGINFO", "NT_AUXV", "NT_FILE", "NT_FPREGSET",
    ]  # fmt: skip

    regs = c.regs()
    assert (regs["r12"], regs["rbx"], regs["r15"], regs["rax"], regs["rdi"], regs["r8"]) == (
        0xAAAABBBBCCCCDDDD, 0x1111, 0x2222, 0x3333, 0x4444, 0x30)  # fmt: skip
    assert regs["eflags"] & 0x401 == 0x401 and regs["orig_rax"] == (1 << 64) - 1
    assert (regs["cs"], regs["ss"], regs["ds"], regs["gs_base"]) == (0x33, 0x2B, 0, 0)
    assert regs["fs_base"] != 0
    code = next(line for line in maps if " r-xp " in line and str(program) in line)
    low, high = (int(x, 16) for x in code.split()[0].split("-"))
    assert low <= regs["rip"] < high
    status_ = c.status()
    assert status_[:6] == (11, 0, 0, 11, 1 << 11, 1 << 11)
    assert status_[6:10] == (pid, ppid, pgrp, sid) and status_[45] == 1
    fpregs = c.note("NT_FPREGSET")
    assert len(fpregs) == 512 and fpregs[:2] == b"\x7f\x03"
    assert fpregs[160 + 9 * 16 :][:8] == struct.pack("<d", 0.5)
    assert fpregs[32:42] == bytes.fromhex("0000000000000080fe3f")  # ST0: 0.5

    info = c.note("NT_PRPSINFO")
    assert (info["pr_state"], info["pr_sname"], info["pr_zomb"], info["pr_nice"]) == (
        0, b"R", 0, os.getpriority(os.PRIO_PROCESS, 0))  # fmt: skip
    assert info["pr_flag"] & 0x400600 == 0x400600  # PF_RANDOMIZE, PF_SIGNALED, PF_DUMPCORE
    assert (info["pr_pid"], info["pr_ppid"], info["pr_pgrp"], info["pr_sid"]) == status_[6:10]
    assert (info["pr_uid"], info["pr_gid"]) == (os.getuid(), os.getgid())
    assert info["pr_fname"].rstrip(b"\0").decode() == program.name[:15]
    args = f"{program} {reserve}  words "
    assert info["pr_psargs"].rstrip(b"\0").decode() == args[:79]
    assert struct.unpack("<iii4xQ", c.note("NT_SIGINFO")[:24]) == (11, 0, 1, 0x30)
    assert c.note("NT_AUXV").hex() == auxv

    mapped = [re.split(r"\s+", line, maxsplit=5) for line in maps]
    named = [
        (*(int(x, 16) for x in words[0].split("-")), int(words[2], 16) // PAGE, words[5])
        for words in mapped if len(words) == 6 and words[5].startswith("/")
    ]  # fmt: skip
    note = c.note("NT_FILE")
    assert note["page_size"] == PAGE
    assert [
        (entry["vm_start"], entry["vm_end"], entry["page_offset"], name.decode())
        for entry, name in zip(note["Elf_Nt_File_Entry"], note["filename"], strict=True)
    ] == named  # fmt: skip
    for words in mapped:
        start = int(words[0].split("-")[0], 16)
        if start >> 63:
            continue  # [vsyscall]
        seg = c.segment(start)
        assert seg is not None, words
        assert seg.flags == sum(bit for x, bit in (("r", 4), ("w", 2), ("x", 1)) if x in words[1])

    assert c.segment(untouched) is not None and not (c.read(untouched, 8 << 20) or b"").strip(b"\0")
    assert c.read(reserved + 0x12345677, 3) == b"\0r\0"
    assert c.segment(secret).filesz == 0  # type: ignore[union-attr]
    assert c.read(again, 5) == b"again"
    assert c.read(none, 4) == b"none"
    assert c.read(shared, 6) == b"shared"
    assert (c.read(own, 4), c.read(own + 40 * PAGE, 4)) == (b"new\0", b"own\0")
    assert c.read(file + 8192, 6) == b"copied"
    assert c.read(file + 4096, 13) == b"from the file"
    assert c.read(file + 3 * PAGE + 90, 20) == bytes(20)
    assert c.read(clean, 4) is None and c.read(fshared, 4) is None
    assert c.read(relro + PAGE, 4) is None and c.read(relro + 10 * PAGE, 9) == b"relocated"
    assert c.read(data, 12) == b"written data"
    assert c.read(int(mapped[0][0].split("-")[0], 16), 4) == b"\x7fELF"
    assert core.stat().st_size > reserve and core.stat().st_blocks < 2048


def test_filter(tmp_path: Path, core: Path) -> None:
    """Each bit of coredump_filter: what is there with it and not without. core(5)."""
    kinds = {
        "own": CORE_ANON_PRIVATE, "file": CORE_ANON_PRIVATE | CORE_FILE_PRIVATE,
        "shared": CORE_ANON_SHARED, "clean": CORE_FILE_PRIVATE, "fshared": CORE_FILE_SHARED,
        "elf": CORE_ELF_HEADERS | CORE_FILE_PRIVATE,
    }  # fmt: skip
    program = build(IMAGE)
    for bits in (0, 1, 2, 4, 8, 16, 0x1F):
        _, out = guest(program, str(1 << 40), cwd=tmp_path, filter=bits)
        lines = out.splitlines()
        *_, shared, own, file, clean, fshared, _, _ = (int(word, 16) for word in lines[0].split())
        where = {"own": own + 40 * PAGE, "file": file, "shared": shared, "clean": clean,
                 "fshared": fshared, "elf": int(lines[3].split("-")[0], 16)}  # fmt: skip
        c = Core(core)
        there = {name for name, va in where.items() if c.read(va, 4) is not None}
        assert there == {name for name, wanted in kinds.items() if wanted & bits}, bits
        if bits == CORE_ANON_SHARED:  # the file ends with a hole
            assert c.read(shared + PAGE, PAGE) == bytes(PAGE)
    program = build(UNLIMITED + "int main(void) { unlimited(); if (!fork()) abort(); wait(0); }")
    guest(program, cwd=tmp_path, filter=0)
    assert all(seg["p_filesz"] == 0 for seg in Core(core).loads)


WAITING = UNLIMITED + r"""
    static int fds[2];
    static void dies(const char *what, void (*f)(void)) {
        int st, pid = fork();
        if (!pid) { unlimited(); f(); _exit(1); }
        char path[40], text[200];
        sprintf(path, "/proc/%d/stat", pid);
        do {
            int fd = open(path, O_RDONLY), n = read(fd, text, 199);
            close(fd);
            text[n] = 0;
            sched_yield();
        } while (!strstr(text, ") S"));
        kill(pid, SIGQUIT);
        wait(&st);
        rename("core", what);
    }
    static void in_read(void) { char c; read(fds[0], &c, 1); }
    static void in_pause(void) { pause(); }
    static void in_sleep(void) { struct timespec t = {1000}; nanosleep(&t, 0); }
    int main(void) {
        pipe(fds);
        dies("read", in_read);
        dies("pause", in_pause);
        dies("nanosleep", in_sleep);
    }
"""  # fmt: skip


@pytest.mark.parametrize("where", WHERE)
def test_killed_in_a_system_call(where: str, tmp_path: Path) -> None:
    """orig_rax says which call it was, rax that it was to be made again (ERESTARTSYS 512,
    ERESTARTNOHAND 514, ERESTART_RESTARTBLOCK 516)."""
    run(where, build(WAITING), cwd=tmp_path)
    calls = {}
    for name in ("read", "pause", "nanosleep"):
        regs = Core(tmp_path / name).regs()
        calls[name] = (regs["orig_rax"], (1 << 64) - regs["rax"])
    # glibc's pause and nanosleep are the calls of that name, or ppoll and clock_nanosleep.
    assert calls["read"] == (0, 512)
    assert calls["pause"] == (34, 514)
    assert calls["nanosleep"] in ((35, 516), (230, 516))


# ---- how much of it ------------------------------------------------------------------------------

LIMITED = r"""
    int main(int argc, char **argv) {
        struct rlimit r = {atol(argv[1]), RLIM_INFINITY};
        char *p = mmap(0, 4 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(p, 'x', 4 << 20);
        int st;
        if (!fork()) { setrlimit(RLIMIT_CORE, &r); abort(); }
        wait(&st);
        struct stat s;
        stat("core", &s);
        printf("%d %ld %ld\n", !!WCOREDUMP(st), (long)s.st_size, (long)s.st_blocks * 512);
    }
"""


@pytest.mark.parametrize("where", WHERE)
def test_limit(where: str, tmp_path: Path, core: Path) -> None:
    """The file ends where the limit is reached, and is a core nevertheless."""
    program = build(LIMITED)
    _, out = run(where, program, str(1 << 30), cwd=tmp_path)
    dumped, size, stored = map(int, out.split())
    assert dumped and stored > 4 << 20
    _, out = run(where, program, str(1 << 20), cwd=tmp_path)
    dumped, cut, stored = map(int, out.split())
    assert dumped and cut < size
    assert (1 << 20) - 2 * PAGE <= stored <= 1 << 20
    assert Core(core).regs()["cs"] == 0x33


KILLED = UNLIMITED + r"""
    int main(void) {
        int st, pid = fork();
        if (!pid) {
            unlimited();
            char *p = mmap(0, 16 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            memset(p, 'x', 16 << 20);
            abort();
        }
        struct stat s;
        do { sched_yield(); } while (stat("core", &s) || s.st_size < 1 << 20);
        kill(pid, SIGTERM);
        kill(pid, SIGKILL);
        wait(&st);
        stat("core", &s);
        printf("sig %d core %d whole %d\n", WTERMSIG(st), !!WCOREDUMP(st), s.st_size > 16 << 20);
    }
"""  # fmt: skip


def test_others_run_and_can_kill(tmp_path: Path, core: Path) -> None:
    """While a core is written others run, and one of them ends it by SIGKILL, which then is what
    the process has died of (Linux kernel/signal.c, prepare_signal and complete_signal)."""
    _, out = guest(build(KILLED), cwd=tmp_path)
    assert out == "sig 9 core 0 whole 0\n"


def test_many_mappings(tmp_path: Path, core: Path) -> None:
    """More than e_phnum can count: the first section header does."""
    source = (
        UNLIMITED
        + r"""
    int main(void) {
        unlimited();
        int fd = open("/proc/sys/vm/max_map_count", O_WRONLY);
        write(fd, "70000", 5);
        char *p = mmap(0, 66000 * 4096ul, 1, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (long i = 0; i < 66000; i += 2) madvise(p + i * 4096, 4096, MADV_DONTDUMP);
        printf("%p\n", p);
        fflush(stdout);
        abort();
    }
    """
    )
    _, out = guest(build(source), cwd=tmp_path, mem="256M")
    c = Core(core)
    assert c.elf.header["e_phnum"] == 0xFFFF
    assert 66000 < c.elf.num_segments() == 1 + len(c.loads) < 66100
    assert c.segment(int(out, 16) + 65999 * PAGE) == Segment(4, 0, PAGE)


def test_overlay(tmp_path: Path) -> None:
    """Without --rw the core is in the machine only."""
    source = (
        UNLIMITED
        + r"""
    int main(void) {
        if (!fork()) { unlimited(); abort(); }
        wait(0);
        struct stat s;
        printf("%d\n", stat("core", &s) == 0 && s.st_size > 4096);
    }
    """
    )
    with Machine(check=True) as m:
        p = m.spawn([str(build(source))], stdout=PIPE, stderr=PIPE, cwd=tmp_path)
        m.run(timeout=60)
        assert p.stdout == b"1\n"
    assert list(tmp_path.iterdir()) == []


GDB = UNLIMITED + r"""
    int twice(int n) {
        volatile int local = n * 2;
        if (n == 3) abort();
        return twice(n + 1) + local;
    }
    char *text;
    int main(void) { unlimited(); text = strdup("on the heap"); return twice(1); }
"""  # fmt: skip


@pytest.mark.skipif(shutil.which("gdb") is None, reason="no gdb")
def test_gdb(tmp_path: Path, core: Path) -> None:
    """gdb finds the frames, variables and the reason."""
    program = build(GDB, "-g", "-O0", link=())
    assert guest(program, cwd=tmp_path)[0] == 128 + 6
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", "bt", "-ex", "print (char *)text", "-ex", "frame function "
         "twice", "-ex", "print n", "-ex", "print $_siginfo.si_signo", str(program), str(core)],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "DEBUGINFOD_URLS": ""},
    )  # fmt: skip
    out = done.stdout
    assert "Program terminated with signal SIGABRT" in out, done
    assert [int(n) for n in re.findall(r"twice \(n=(\d)\)", out)[:3]] == [3, 2, 1]
    assert '"on the heap"' in out and re.search(r"^\$2 = 3$", out, re.M)
    assert re.search(r"^\$3 = 6$", out, re.M)
