"""execve: what a program finds, what it keeps and loses, scripts, files that are no programs."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfvm import PIPE, Machine
from tests.kern.guest_util import build, by_guest, by_host, same

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
PT_LOAD, PT_INTERP, PT_GNU_STACK = 1, 3, 0x6474E551

# mov edi, 42; mov eax, 60; syscall
EXIT42 = bytes.fromhex("bf2a000000b83c0000000f05")


def elf(
    phdrs: list[tuple[int, ...]] | None = None,
    *,
    ident: bytes = b"\x7fELF\2\1\1",
    kind: int = 2,
    machine: int = 62,
    entry: int = 0x400000 + 0x1000,
    phoff: int = 64,
    phentsize: int = 56,
    phnum: int | None = None,
    size: int = 0x2000,
) -> bytes:
    """A program that exits with 42, unless it is spoilt: code at 0x1000 of the file."""
    if phdrs is None:
        phdrs = [(PT_LOAD, 5, 0, 0x400000, 0, size, size, 4096)]
    head = EHDR.pack(ident.ljust(16, b"\0"), kind, machine, 1, entry, phoff, 0, 0, 64, phentsize,
                     len(phdrs) if phnum is None else phnum, 64, 0, 0)  # fmt: skip
    image = bytearray(size)
    table = b"".join(PHDR.pack(*p) for p in phdrs)
    image[: len(head) + len(table)] = head + table
    image[0x1000 : 0x1000 + len(EXIT42)] = EXIT42
    return bytes(image)


def execute(tmp_path: Path, content: bytes) -> int:
    """Exit status, or minus the errno with which execve failed."""
    path = tmp_path / "prog"
    path.write_bytes(content)
    path.chmod(0o755)
    with Machine(mem="32M", check=True) as m:
        try:
            p = m.spawn([str(path)], stdin=b"", stdout=PIPE, stderr=PIPE)
        except OSError as e:
            m.check()
            assert e.errno is not None
            return -e.errno
        m.run(timeout=600)
        m.check()
        assert p.exit_status is not None
        return p.exit_status


def test_minimal(tmp_path: Path) -> None:
    assert execute(tmp_path, elf()) == 42


LOAD = (PT_LOAD, 5, 0, 0x400000, 0, 0x2000, 0x2000, 4096)
MAX = (1 << 64) - 1

MALFORMED = {
    "empty": b"",
    "text": b"hello, world\n",
    "magic only": b"\x7fELF",
    "truncated header": elf()[:63],
    "machine": elf(machine=40),
    "unknown machine": elf(machine=0xFFFF),
    "relocatable": elf(kind=1),
    "core": elf(kind=4),
    "strange type": elf(kind=0xFE00),
    "phentsize small": elf(phentsize=32),
    "phentsize large": elf(phentsize=57),
    "no program headers": elf(phnum=0),
    "too many program headers": elf(phnum=0xFFFF),
    "phoff beyond the file": elf(phoff=0x10000),
    "phoff wraps": elf(phoff=MAX - 10),
    "table cut off": elf(phoff=0x2000 - 50),
    "nothing to load": elf([(PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16)]),
    "offset wraps": elf([LOAD, (PT_LOAD, 6, MAX - 0xFFF, 0x500000, 0, 0x2000, 0x2000, 4096)]),
    "filesz over memsz": elf([(PT_LOAD, 5, 0, 0x400000, 0, 0x2000, 0x1000, 4096)]),
    "address wraps": elf([LOAD, (PT_LOAD, 6, 0, MAX - 0xFFF, 0, 0x1000, 0x2000, 4096)]),
    "kernel address": elf([LOAD, (PT_LOAD, 6, 0, 0xFFFF800000000000, 0, 0x1000, 0x1000, 4096)]),
    "absurd memsz": elf([(PT_LOAD, 5, 0, 0x400000, 0, 0x2000, MAX >> 1, 4096)]),
    "misaligned": elf([(PT_LOAD, 5, 0x10, 0x400000, 0, 0x1000, 0x1000, 4096)]),
    "entry in the kernel": elf(entry=0xFFFFFFFF81000000),
    "interp too short": elf([LOAD, (PT_INTERP, 4, 0x1800, 0, 0, 1, 1, 1)]),
    "interp too long": elf([LOAD, (PT_INTERP, 4, 0x1000, 0, 0, 0x1001, 0x1001, 1)], size=0x4000),
    "interp beyond end": elf([LOAD, (PT_INTERP, 4, 0x1FF0, 0, 0, 100, 100, 1)]),
    "interp without NUL": elf([LOAD, (PT_INTERP, 4, 0x1000, 0, 0, 2, 2, 1)]),
    "#! and an empty line": b"#!\n",
    "#! and blanks": b"#!   \t \n",
    "#! too long": b"#!/" + b"x" * 300 + b"\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str, tmp_path: Path) -> None:
    assert execute(tmp_path, MALFORMED[name]) == -errno.ENOEXEC


def test_where_a_line_of_a_script_ends(tmp_path: Path) -> None:
    """255 bytes count, and a name that is empty is the working directory."""
    same(
        r"""
static void script(const char *name, const char *text, int n)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    write(fd, text, n);
    close(fd);
    fflush(stdout);
    if (!fork()) {
        char *argv[] = {"zero", "one", 0};
        execv(name, argv);
        printf("%s: %s\n", name, strerror(errno));
        fflush(stdout);
        _exit(0);
    }
    wait(0);
}
int main(int argc, char **argv)
{
    char dir[] = "/tmp/line-XXXXXX", line[400], program[300];
    if (argc > 2) {
        printf("%d: %zu %s\n", argc, strlen(argv[1]), argv[1] + strlen(argv[1]) - 1);
        return 0;
    }
    program[readlink("/proc/self/exe", program, 299)] = 0;
    chdir(mkdtemp(dir));
    for (int n = 253; n < 259; n++) {
        int k = sprintf(line, "#!%s ", program);
        while (k < n - 2) line[k++] = 'A';
        line[k++] = 'z', line[k++] = '\n';
        script("long", line, k);
    }
    script("two", "#!", 2);
    script("blank", "#!  ", 4);
    script("empty", "#!\n", 3);
    script("blanks", "#! \t\n", 5);
    script("nul", "#!\0/bin/sh\n", 11);
    memset(line + 2, ' ', 398);
    script("all blanks", line, 300);
}
"""
    )


# mov byte [rip + 0xff9], 42; mov edi, [rip + 0xff3]; mov eax, 60; syscall: a byte, a page on.
WRITES = bytes.fromhex("c605f90f00002a8b3df30f0000b83c0000000f05")


def written(phdrs: list[tuple[int, ...]], code: bytes) -> bytes:
    """elf() with other code."""
    image = bytearray(elf(phdrs))
    image[0x1000 : 0x1000 + len(code)] = code
    return bytes(image)


HANDMADE = {
    "32 bit": (elf(ident=b"\x7fELF\1\1\1"), 42),
    "class 0": (elf(ident=b"\x7fELF\0\1\1"), 42),
    "big endian": (elf(ident=b"\x7fELF\2\2\1"), 42),
    "code in e_ident": (elf(ident=b"\x7fELF\xff\xfe\xfd" + b"\xcc" * 9), 42),
    "out of order": (elf([LOAD, (PT_LOAD, 6, 0, 0x300000, 0, 0x1000, 0x1000, 4096)]), 42),
    "out of order, movable": (
        elf([(PT_LOAD, 5, 0, 0x400000, 0, 0x2000, 0x2000, 4096),
             (PT_LOAD, 6, 0, 0x300000, 0, 0x1000, 0x1000, 4096)], kind=3), 42),
    "overlap": (elf([LOAD, (PT_LOAD, 6, 0x1000, 0x400000, 0, 0x1000, 0x1000, 4096)]), 42),
    "overlap, the later one wins": (
        elf([LOAD, (PT_LOAD, 6, 0x1000, 0x401000, 0, 0x1000, 0x1000, 4096)]), 128 + 11),
    "claims more of the file than there is": (
        elf([(PT_LOAD, 5, 0, 0x400000, 0, 0x30000, 0x30000, 4096)]), 42),
    "of which it touches some": (
        elf([(PT_LOAD, 5, 0, 0x400000, 0, 0x30000, 0x30000, 4096)], entry=0x403000), 128 + 7),
    "a segment beyond the end of the file": (
        elf([LOAD, (PT_LOAD, 6, 0x100000, 0x500000, 0, 0x100, 0x100, 4096)]), 42),
    "bss in a page beyond the end of the file": (
        elf([LOAD, (PT_LOAD, 6, 0x100000, 0x500000, 0, 0x100, 0x200, 4096)]), -errno.ENOEXEC),
    "bss of a segment that isn't writable": (
        written([(PT_LOAD, 5, 0, 0x400000, 0, 0x2000, 0x3000, 4096)], WRITES), 42),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade(name: str, tmp_path: Path) -> None:
    """What linkers don't make but people do, and Linux runs."""
    image, result = HANDMADE[name]
    assert execute(tmp_path, image) == result


def test_headers_as_elffile_sees_them() -> None:
    """The loader's idea of a file, against that of pyelftools' own reader of whole files."""
    from elftools.elf.elffile import ELFFile

    from dfvm.kern.imgact_elf import elf_parse
    from dfvm.kern.kern_exec import ImageParams

    class FileImage(ImageParams):
        def __init__(self, content: bytes) -> None:
            self.content = content
            self.size = len(content)
            self.reason = ""

        def read(self, offset: int, count: int) -> bytes:
            return self.content[offset : offset + count]

    links = (("-static",), ("-static-pie", "-fPIE"), ("-pie",))
    programs = [build(HELLO, link=link) for link in links]
    programs += map(Path, ("/usr/bin/busybox", "/bin/bash-static", "/bin/sh"))
    for program in programs:
        if not program.exists():
            continue
        ours = elf_parse(FileImage(program.read_bytes()))
        with open(program, "rb") as f:
            theirs = ELFFile(f)
            headers = [s.header for s in theirs.iter_segments()]
            interp = [s.get_interp_name() for s in theirs.iter_segments("PT_INTERP")]
        assert ours.entry == theirs.header.e_entry
        assert ours.pic == (theirs.header.e_type == "ET_DYN")
        assert ours.phnum == theirs.header.e_phnum
        loads = [h for h in headers if h.p_type == "PT_LOAD"]
        assert [(s.vaddr, s.memsz, s.offset, s.filesz) for s in ours.segments] == [
            (h.p_vaddr, h.p_memsz, h.p_offset, h.p_filesz) for h in loads]  # fmt: skip
        assert [s.prot for s in ours.segments] == [
            (h.p_flags & 4) >> 2 | h.p_flags & 2 | (h.p_flags & 1) << 2 for h in loads
        ]
        assert ([] if ours.interp is None else [ours.interp.decode()]) == interp
        assert [h.p_vaddr for h in headers if h.p_type == "PT_PHDR"] in ([], [ours.phdr_vaddr])


def test_missing_interpreter(tmp_path: Path) -> None:
    image = bytearray(elf([LOAD, (PT_INTERP, 4, 0x1800, 0, 0, 13, 13, 1)]))
    image[0x1800:0x180D] = b"/no/such/ld.\0"
    assert execute(tmp_path, bytes(image)) == -errno.ENOENT
    image[0x1800:0x180D] = b"/etc/passwd\0\0"
    assert execute(tmp_path, bytes(image)) == -errno.EACCES
    assert execute(tmp_path, b"#!/no/such/interpreter\n") == -errno.ENOENT


def test_bss_without_memory_for_it(tmp_path: Path) -> None:
    """A segment larger than RAM is only addresses; touching it ends in the program being killed."""
    big = elf([LOAD, (PT_LOAD, 6, 0, 0x10000000, 0, 0, 1 << 40, 4096)])
    assert execute(tmp_path, big) == 42


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with some bytes of its headers changed, cut off or repeated."""

    def apply(changes: list[tuple[int, int]], cut: int) -> bytes:
        image = bytearray(data)
        for at, value in changes:
            image[at % min(len(image), 700)] = value
        return bytes(image[:cut])

    return st.builds(
        apply,
        st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=6),
        st.one_of(st.just(len(data)), st.integers(0, len(data))),
    )


HELLO = r'int main(void) { puts("hello"); return 3; }'


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_programs(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the headers say: an errno, or a program that ends one way or other. Never a
    traceback, never a hang, and the machine is whole afterwards."""
    program = build(HELLO).read_bytes()
    content = data.draw(st.one_of(mutations(program), mutations(elf()), st.binary(max_size=300)))
    path = tmp_path_factory.mktemp("mutated") / "prog"
    path.write_bytes(content)
    path.chmod(0o755)
    with Machine(mem="16M", check=True) as m:
        try:
            m.spawn([str(path)], stdin=b"", stdout=PIPE, stderr=PIPE)
        except OSError as e:
            assert e.errno is not None
        else:
            try:
                m.run(timeout=0.5)
            except TimeoutError:
                pass
        m.check()


# ---- what a program finds ------------------------------------------------------------------------


def test_arguments_and_environment() -> None:
    source = r"""
    int main(int argc, char **argv, char **envp) {
        printf("%d\n", argc);
        for (int i = 0; i <= argc; i++) printf("<%s>\n", argv[i] ? argv[i] : "NULL");
        return 0;
    }
    """
    same(source, "one", "", "two words", "ü", "x" * 5000)


def test_auxv() -> None:
    same(r"""
    extern char __ehdr_start;
    int main(int argc, char **argv) {
        unsigned long sp;
        __asm__("mov %%rsp, %0" : "=r"(sp));
        printf("pagesz %lu clktck %lu phent %lu phnum %d phdr %d entry %d base %lu flags %lu "
               "secure %lu\n",
               getauxval(AT_PAGESZ), getauxval(AT_CLKTCK), getauxval(AT_PHENT),
               getauxval(AT_PHNUM) > 3, getauxval(AT_PHDR) != 0, getauxval(AT_ENTRY) != 0,
               getauxval(AT_BASE), getauxval(AT_FLAGS), getauxval(AT_SECURE));
        printf("ids %d %d %d %d\n", getauxval(AT_UID) == getuid(),
               getauxval(AT_EUID) == geteuid(), getauxval(AT_GID) == getgid(),
               getauxval(AT_EGID) == getegid());
        printf("platform %s execfn %s same %d\n", (char *)getauxval(AT_PLATFORM),
               (char *)getauxval(AT_EXECFN), !strcmp((char *)getauxval(AT_EXECFN), argv[0]));
        unsigned char *r = (void *)getauxval(AT_RANDOM), any = 0;
        for (int i = 0; i < 16; i++) any |= r[i];
        printf("random %d aligned %d minsig %d hwcap %d sse2 %d\n", any != 0,
               (unsigned long)argv % 8 == 0, getauxval(51) >= 1000, getauxval(AT_HWCAP) != 0,
               !!(getauxval(AT_HWCAP) & (1 << 26)));
        return 0;
    }
    """)


def test_what_the_cpu_has_is_what_cpuid_says() -> None:
    """AT_HWCAP is CPUID 1's EDX, AT_HWCAP2 bit 1 is FSGSBASE (Linux: arch/x86/include/asm/elf.h,
    asm/hwcap2.h). The host may keep something of its own processor's from programs, and glibc's
    getauxval(AT_HWCAP) has bits of its own."""
    program = build(r"""
    #include <cpuid.h>
    int main(int argc, char **argv, char **envp) {
        unsigned a, b, c, edx, ebx;
        __get_cpuid(1, &a, &b, &c, &edx);
        __cpuid_count(7, 0, a, ebx, b, c);
        while (*envp) envp++;
        for (unsigned long *aux = (unsigned long *)envp + 1; *aux; aux += 2) {
            if (*aux == AT_HWCAP) printf("%lx ", aux[1] ^ edx);
            if (*aux == AT_HWCAP2) printf("%lx ", aux[1] ^ (ebx & 1) << 1);
        }
        return 0;
    }
    """)
    assert by_guest(program) == (0, b"0 0 ")


def test_static_pie() -> None:
    source = r"""
    static int data = 5, bss[3000];
    static int *p = &data;
    int main(void) {
        printf("%d %d %d\n", *p, bss[2999], getauxval(AT_BASE) == 0);
        brk(0);
        return *p;
    }
    """
    same(source, link=("-static-pie", "-fPIE"))


def test_dynamic_program() -> None:
    """The interpreter is mapped beside the program, and everything else is its business."""
    if not os.path.exists("/lib64/ld-linux-x86-64.so.2"):
        pytest.skip("no dynamic linker")
    source = r'int main(void) { printf("base %d\n", getauxval(AT_BASE) != 0); return 7; }'
    for link in (("-no-pie",), ("-pie",)):
        same(source, link=link)


def test_stack_execution_follows_the_header() -> None:
    source = r"""
    int main(void) {
        volatile unsigned char code[] = {0xb8, 7, 0, 0, 0, 0xc3};
        return ((int (*)(void))(void *)code)();
    }
    """
    assert by_guest(build(source, "-z", "execstack"))[0] == 7
    assert by_guest(build(source, "-z", "noexecstack"))[0] == 128 + 11


def test_arguments_that_are_too_long() -> None:
    same(r"""
    #define T(x)                           \
        do {                               \
            errno = 0;                     \
            x;                             \
            printf("%s: %d\n", #x, errno); \
        } while (0)
    int main(int argc, char **argv) {
        if (argc > 1) {
            printf("argc %d last %zu\n", argc, strlen(argv[argc - 1]));
            return 0;
        }
        static char *v[100000];
        char *big = malloc(200000);
        memset(big, 'x', 200000);
        big[131072] = 0;
        v[0] = argv[0];
        v[1] = big;
        T(execv("/proc/self/exe", v));
        for (int i = 1; i < 50; i++) v[i] = big + 1000;
        T(execv("/proc/self/exe", v));
        v[1] = (char *)8;
        v[2] = 0;
        T(execv("/proc/self/exe", v));
        T(execv((char *)8, v));
        T(execve("/proc/self/exe", (char **)8, 0));
        T(execv("/nonexistent", v));
        T(execv("/", v));
        T(execv("", v));
        T(execv("/etc/passwd", v));
        T(execv("/etc/passwd/x", v));
        big[131071] = 0;
        for (int i = 1; i < 10; i++) v[i] = big;
        v[10] = 0;
        fflush(stdout);
        T(execv("/proc/self/exe", v));
        return 0;
    }
    """)


def test_scripts(tmp_path: Path) -> None:
    show = build(r"""
    int main(int c, char **v) {
        for (int i = 1; i < c; i++) printf("<%s>", v[i]);
        puts("");
        return 9;
    }
    """)
    a = tmp_path / "a"
    a.write_bytes(b"#! %s  one argument \nrest\n" % bytes(show))
    b = tmp_path / "b"
    b.write_bytes(b"#!%s -x\n" % bytes(a))
    c = tmp_path / "c"
    c.write_bytes(b"#!%s\n" % bytes(c))
    d = tmp_path / "d"
    d.write_bytes(b"#!%s" % bytes(show))
    for path in (a, b, c, d):
        path.chmod(0o755)
    for path in (a, b, d):
        assert by_guest(path, "p", "q") == by_host(path, "p", "q")
    with Machine(mem="32M") as m:
        with pytest.raises(OSError) as caught:
            m.spawn([str(c)])
        assert caught.value.errno == errno.ELOOP
        m.check()


def test_what_exec_keeps_and_loses() -> None:
    same(r"""
    static void h(int s) {}
    int main(int argc, char **argv) {
        if (argc == 1) {
            int keep = open("/etc/passwd", O_RDONLY),
                lose = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
            signal(SIGUSR1, h);
            signal(SIGUSR2, SIG_IGN);
            sigset_t s;
            sigemptyset(&s);
            sigaddset(&s, SIGTERM);
            sigaddset(&s, SIGINT);
            sigprocmask(SIG_BLOCK, &s, 0);
            raise(SIGTERM);
            umask(027);
            alarm(100);
            nice(3);
            stack_t ss = {.ss_sp = malloc(65536), .ss_size = 65536};
            sigaltstack(&ss, 0);
            struct rlimit r = {50, 60};
            setrlimit(RLIMIT_NOFILE, &r);
            chdir("/usr");
            char k[20], l[20];
            sprintf(k, "%d", keep);
            sprintf(l, "%d", lose);
            char *v[] = {argv[0], k, l, 0}, *e[] = {"ONLY=this", 0};
            execve("/proc/self/exe", v, e);
            return 1;
        }
        struct sigaction a;
        sigaction(SIGUSR1, 0, &a);
        printf("caught %d\n", a.sa_handler == SIG_DFL);
        sigaction(SIGUSR2, 0, &a);
        printf("ignored %d\n", a.sa_handler == SIG_IGN);
        sigset_t s, p;
        sigprocmask(0, 0, &s);
        sigpending(&p);
        printf("mask %d pending %d\n", sigismember(&s, SIGTERM), sigismember(&p, SIGTERM));
        printf("umask %o alarm %d nice %d\n", umask(0), alarm(0) > 90,
               getpriority(PRIO_PROCESS, 0));
        stack_t ss;
        sigaltstack(0, &ss);
        printf("altstack %d\n", ss.ss_flags);
        struct rlimit r;
        getrlimit(RLIMIT_NOFILE, &r);
        printf("nofile %d %d\n", (int)r.rlim_cur, (int)r.rlim_max);
        char d[100];
        printf("cwd %s\n", getcwd(d, 100));
        printf("keep %d lose %d\n", fcntl(atoi(argv[1]), F_GETFD),
               fcntl(atoi(argv[2]), F_GETFD));
        printf("env %s %d\n", getenv("ONLY"), getenv("PATH") == 0);
        char n[20];
        prctl(PR_GET_NAME, n);
        printf("%d\n", strlen(n) <= 15);
        return 0;
    }
    """)


def test_text_is_busy() -> None:
    same(r"""
    int main(int argc, char **argv) {
        char t[] = "/tmp/dfvm-busyXXXXXX";
        int fd = mkstemp(t), in = open("/proc/self/exe", O_RDONLY);
        char b[65536];
        int n;
        while ((n = read(in, b, sizeof b)) > 0) write(fd, b, n);
        fchmod(fd, 0755);
        char *v[] = {t, 0};
        execv(t, v);
        printf("open for writing: %d\n", errno == ETXTBSY);
        close(fd);
        if (argc == 1) {
            pid_t p = fork();
            if (!p) {
                char *w[] = {t, "x", 0};
                execv(t, w);
                _exit(1);
            }
            int st;
            wait(&st);
            printf("status %d\n", st);
        } else {
        }
        unlink(t);
        if (argc > 1) return 0;
        fd = open("/proc/self/exe", O_WRONLY);
        printf("running: %d %d\n", fd, errno == ETXTBSY);
        return 0;
    }
    """)


def test_execveat() -> None:
    same(r"""
    int main(int argc, char **argv) {
        if (argc > 1) {
            printf("%s %s\n", argv[1], (char *)getauxval(AT_EXECFN) ? "fn" : "");
            return 0;
        }
        int fd = open("/proc/self/exe", O_PATH), d = open("/", O_RDONLY);
        char *e[] = {0};
        char *v[] = {"x", "by fd", 0};
        if (!fork()) {
            syscall(SYS_execveat, fd, "", v, e, AT_EMPTY_PATH);
            _exit(1);
        }
        wait(0);
        char path[300];
        int n = readlink("/proc/self/exe", path, 299);
        path[n] = 0;
        char *w[] = {"x", "by dir", 0};
        if (!fork()) {
            syscall(SYS_execveat, d, path + 1, w, e, 0);
            _exit(1);
        }
        wait(0);
        printf("%d %d\n", (int)syscall(SYS_execveat, fd, "", v, e, 0), errno);
        printf("%d %d\n", (int)syscall(SYS_execveat, fd, "x", v, e, 0x8000), errno);
        printf("%d %d\n", (int)syscall(SYS_execveat, 77, "x", v, e, 0), errno);
        return 0;
    }
    """)


def test_failed_exec_changes_nothing() -> None:
    same(r"""
    static void h(int s) { puts("handler"); }
    int main(void) {
        signal(SIGUSR1, h);
        int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
        char *v[] = {"x", 0};
        for (int i = 0; i < 50; i++) {
            execv("/etc/passwd", v);
            execv("/none", v);
            execv("/", v);
        }
        raise(SIGUSR1);
        printf("%d\n", fcntl(fd, F_GETFD));
        return 0;
    }
    """)


@pytest.mark.spec("SPACE-3")
def test_exec_replaces_the_space() -> None:
    """After exec nothing of the old mappings is left, and a shared one stays with the others."""
    same(r"""
    int main(int argc, char **argv) {
        char *m = (void *)0x30000000;
        if (argc > 1) {
            unsigned char v;
            printf("old mapping %d\n", mincore(m, 4096, &v));
            return 0;
        }
        mmap(m, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        strcpy(m, "before");
        pid_t p = fork();
        if (!p) {
            strcpy(m, "child");
            char *v[] = {argv[0], "x", 0};
            execv("/proc/self/exe", v);
        }
        wait(0);
        puts(m);
        return 0;
    }
    """)


def test_spawn_errors_and_path(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(elf())
    with Machine(mem="32M", env={"PATH": f"/nonexistent:{tmp_path}"}) as m:
        for argv, number in ((["/nonexistent/x"], errno.ENOENT), ([str(plain)], errno.EACCES),
                             (["/etc"], errno.EACCES), (["no-such-program"], errno.ENOENT),
                             (["plain"], errno.EACCES)):  # fmt: skip
            with pytest.raises(OSError) as caught:
                m.spawn(argv)
            assert caught.value.errno == number, argv
        plain.chmod(0o755)
        p = m.spawn(["plain"])
        m.run(timeout=600)
        assert p.exit_status == 42
        m.check()


SETID = r"""
int main(int argc, char **argv) {
    if (argc > 2) {
        struct stat s;
        char name[64];
        snprintf(name, sizeof name, "/proc/%d/environ", getpid());
        stat(name, &s);
        printf("%s: aux %lu %lu %lu %lu %lu ids %d %d %d %d dumpable %d owner %d\n", argv[2],
               getauxval(AT_SECURE), getauxval(AT_UID), getauxval(AT_EUID), getauxval(AT_GID),
               getauxval(AT_EGID), getuid(), geteuid(), getgid(), getegid(),
               prctl(PR_GET_DUMPABLE), prctl(PR_GET_DUMPABLE) ? -1 : (int)s.st_uid);
        return 0;
    }
    char *self = argv[1];
    int modes[] = {0755, 04755, 02755, 06755, 02745};
    for (int i = 0; i < 5; i++) {
        chmod(self, modes[i]);
        fflush(stdout);
        char what[16], *v[] = {argv[0], self, what, 0};
        snprintf(what, sizeof what, "%o", modes[i]);
        if (!fork()) { execv(self, v); _exit(1); }
        wait(0);
        if (!fork()) { setgid(1000); setuid(1000); execv(self, v); _exit(1); }
        wait(0);
        if (!fork()) { setresuid(1000, 1001, 1002); execv(self, v); _exit(1); }
        wait(0);
    }
    return 0;
}
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make such files")
def test_set_id_programs() -> None:
    """They run as somebody else, the auxiliary vector says so, and nobody may look into them."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:  # /tmp is nosuid
        os.chmod(directory, 0o755)
        program = f"{directory}/program"
        shutil.copy(build(SETID), program)
        expected = by_host(program, program)
        os.chmod(program, 0o755)
        assert by_guest(program, program) == expected
    assert b"4755: aux 1 1000 0 1000 1000 ids 1000 0 1000 1000 dumpable 0 owner 0\n" in expected[1]


def test_translated_code_outlives_the_programs_that_ran_it() -> None:
    """Nothing that exec, fork and exit give back has held code: the text is the file's, which
    stays, so that no program has to be translated anew."""
    program = build(
        """
        int main(int argc, char **argv) {
            for (int i = 0; argc < 2 && i < 20; i++) {
                char *v[] = {argv[0], "x", 0};
                if (!fork()) execv("/proc/self/exe", v);
                wait(0);
            }
        }
        """
    )
    with Machine(mem="64M", check=True) as m:
        m.spawn([str(program)], stdin=b"")
        m.run()
        assert m.vmmeter.v_exec == 21
        assert m.kernel.vm.mmu.code_flushes == 0


def test_code_that_programs_leave_behind_is_forgotten_at_once() -> None:
    """The frames of code that a program has made are given out again after it, one by one; all
    translated code is dropped for the first."""
    program = build(
        """
        int main(void) {
            for (int i = 0; i < 4; i++) {
                if (!fork()) {
                    char *code = mmap(0, 50 * 4096, 7, 0x22, -1, 0);
                    for (int j = 0; j < 50; j++) {
                        code[j * 4096] = 0xc3;
                        ((void (*)(void))(code + j * 4096))();
                    }
                    _exit(0);
                }
                wait(0);
            }
        }
        """
    )
    with Machine(mem="64M", check=True) as m:
        m.spawn([str(program)], stdin=b"")
        m.run()
        assert 0 < m.kernel.vm.mmu.code_flushes <= 8


def test_an_executable_stack_is_no_code() -> None:
    """System calls write to it all the time, which must not cost the translated code."""
    program = build(
        """
        int main(void) {
            struct stat st;
            for (int i = 0; i < 100; i++) stat("/", &st);
            volatile unsigned char code[] = {0xb8, 7, 0, 0, 0, 0xc3};
            return ((int (*)(void))(void *)code)();
        }
        """,
        link=("-static", "-z", "execstack"),
    )
    with Machine(mem="64M", check=True) as m:
        p = m.spawn([str(program)], stdin=b"")
        m.run()
        assert p.exit_status == 7
        assert m.kernel.vm.mmu.code_flushes == 0


def test_arguments_must_fit_into_the_stack() -> None:
    """However much room for them there is: with a stack of 64 KiB, 100 000 bytes don't."""
    same(r"""
    static char arg[110000];
    int main(int argc, char **argv) {
        if (argc > 1) return argv[1][0] == 'a';
        struct rlimit rl;
        getrlimit(RLIMIT_STACK, &rl);
        rl.rlim_cur = 65536;
        setrlimit(RLIMIT_STACK, &rl);
        char *v[] = {"x", arg, 0}, *none[] = {0};
        for (int n = 20000; n <= 100000; n += 80000) {
            int st;
            memset(arg, 'a', n);
            pid_t p = fork();
            if (!p) {
                execve("/proc/self/exe", v, none);
                exit(errno);
            }
            waitpid(p, &st, 0);
            printf("%d: %x\n", n, st);
        }
        return 0;
    }
    """)


def test_scripts_by_descriptors_that_close() -> None:
    """Their interpreter would not find them. A program that has only a descriptor is called after
    its file, as on Linux since 6.14."""
    program = build(r"""
    static void run(int fd, const char *path, int flags) {
        char *v[] = {"0", "x", 0}, *none[] = {0};
        int st;
        pid_t p = fork();
        if (!p) {
            syscall(SYS_execveat, fd, path, v, none, flags);
            exit(errno);
        }
        waitpid(p, &st, 0);
        printf("%s %x\n", path, st);
        fflush(stdout);
    }
    int main(int argc, char **argv) {
        char name[32];
        if (argc > 1) {
            prctl(PR_GET_NAME, name);
            printf("%s ", name);
            return 0;
        }
        int in = open("/proc/self/exe", O_RDONLY);
        int out = open("/tmp/program", O_CREAT | O_WRONLY, 0755);
        char buf[65536];
        for (int n; (n = read(in, buf, sizeof buf)) > 0;) write(out, buf, n);
        close(out);
        out = open("/tmp/script", O_CREAT | O_WRONLY, 0755);
        dprintf(out, "#!/tmp/program\n");
        close(out);
        for (int flag = O_CLOEXEC;; flag = 0) {
            int dir = open("/tmp", O_RDONLY | O_DIRECTORY | flag);
            run(dir, "program", 0);
            run(dir, "script", 0);
            run(open("/tmp/program", O_RDONLY | flag), "", AT_EMPTY_PATH);
            run(open("/tmp/script", O_RDONLY | flag), "", AT_EMPTY_PATH);
            if (!flag) return 0;
        }
    }
    """)
    none = errno.ENOENT << 8
    assert by_guest(program) == (
        0,
        f"program program 0\nscript {none:x}\nprogram  0\n {none:x}\n"
        "program program 0\nscript script 0\nprogram  0\nprogram  0\n".encode(),
    )


def test_spawn_limits_arguments() -> None:
    """As execve does: a string, and all of them with their pointers."""
    with Machine() as m:
        for argv in (["/bin/true", "a" * 131072], ["/bin/true", *["a" * 100_000] * 25]):
            with pytest.raises(OSError) as caught:
                m.spawn(argv)
            assert caught.value.errno == errno.E2BIG
        with pytest.raises(OSError) as caught:
            m.spawn(["/bin/true"], env={str(n): "x" * 100 for n in range(20_000)})
        assert caught.value.errno == errno.E2BIG
        m.check()


def test_cmdline_and_environ_are_what_memory_holds() -> None:
    same(r"""
    static void show(const char *file) {
        static char data[10000];
        int fd = open(file, O_RDONLY);
        long n = read(fd, data, sizeof data);
        close(fd);
        printf("%s %ld:", file, n);
        for (long i = 0; i < n; i++) putchar(data[i] ? data[i] : '|');
        putchar('\n');
        fflush(stdout);
    }
    static __attribute__((noinline)) void hide(char *from, char *to) {
        volatile char below[8192];  // the frames from here on are on other pages than the strings
        below[0] = 0;
        char *page = (char *)((long)from & -4096);
        long size = ((long)to & -4096) + 4096 - (long)page;
        printf("%d\n", mprotect(page, size, PROT_NONE));
        show("/proc/self/environ");
        _exit(0);
    }
    int main(int argc, char **argv) {
        if (argc == 1) {
            char *v[] = {"first", "", "third", 0}, *e[] = {"A=1", "PATH=/bin", 0};
            execve("/proc/self/exe", v, e);
        }
        show("/proc/self/cmdline");
        show("/proc/self/environ");
        strcpy(argv[0], "wo");
        show("/proc/self/cmdline");
        char *end = argv[2] + 6;
        memset(argv[0], 't', end - argv[0]);
        show("/proc/self/cmdline");
        show("/proc/self/environ");
        end[3] = '=';
        show("/proc/self/cmdline");
        if (!fork()) { show("/proc/self/cmdline"); _exit(0); }
        wait(0);
        hide(argv[0], end + 13);
    }
    """)


# ---- where it is put -----------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [21, 30, 31, 36, 46])
@pytest.mark.parametrize("link", ["-static-pie", "-pie"])
def test_a_program_is_aligned_as_it_asks(tmp_path: Path, shift: int, link: str) -> None:
    """The alignment of its first PT_LOAD, whatever it is, is the program's."""
    source = r"""
        extern char __executable_start[];
        int main(void)
        {
            unsigned long a = (unsigned long)__executable_start;
            printf("%d\n", a != 0 && !(a & (1UL << SHIFT) - 1));
            return 0;
        }
    """
    image = bytearray(build(source, "-fPIE", f"-DSHIFT={shift}", link=(link,)).read_bytes())
    phoff, phnum = struct.unpack_from("<Q", image, 32)[0], struct.unpack_from("<H", image, 56)[0]
    loads = [at for at in range(phoff, phoff + 56 * phnum, 56)
             if struct.unpack_from("<I", image, at)[0] == PT_LOAD]  # fmt: skip
    struct.pack_into("<Q", image, loads[0] + 48, 1 << shift)
    program = tmp_path / "aligned"
    program.write_bytes(image)
    program.chmod(0o755)
    assert by_guest(program) == by_host(program) == (0, b"1\n")


def test_page_zero_is_roots(tmp_path: Path) -> None:
    program = tmp_path / "low"
    program.write_bytes(elf([(PT_LOAD, 5, 0, 0, 0, 0x2000, 0x2000, 4096)], entry=0x1000))
    program.chmod(0o755)
    run = build(r"""
        int main(int argc, char **argv)
        {
            int fd = open(argv[1], O_PATH);
            if (argc > 2 && setuid(1)) return 1;
            char *p = mmap(0, 4096, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            if (p != MAP_FAILED)  /* C has no object there */
                __asm__ volatile("movb $7, 0(%0)" : : "r"(p) : "memory");
            else if (errno != EPERM) return 2;
            syscall(SYS_execveat, fd, "", argv, 0, 0x1000 /* AT_EMPTY_PATH */);
            return p == MAP_FAILED ? errno : 3;
        }
    """)
    root = os.geteuid() == 0
    assert by_guest(run, program)[0] == (42 if root else errno.EPERM)
    if root:
        assert by_guest(run, program, "drop")[0] == errno.EPERM
