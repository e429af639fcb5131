"""/proc, read by busybox in a running machine; formats compared with the host's own /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dfvm.kern.kern_errno import EIO
from dfvm.kern.machine import PIPE, Machine
from dfvm.kern.proc import Ucred
from dfvm.kern.vfs.namei import namei
from dfvm.kern.vfs.procfs import ProcMount
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, KCRED
from dfvm.vm.copyio import UIO_READ, UIO_WRITE, Uio
from tests.kern.file_util import T
from tests.kern.guest_util import SLEEPS, build, by_guest, same

BUSYBOX = "/usr/bin/busybox"
BASH = "/usr/bin/bash-static"

pytestmark = pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="no static busybox")


def run(script: str, shell: tuple[str, ...] = (BUSYBOX, "sh"), quiet: bool = True) -> bytes:
    with Machine(mem="64M", check=True) as m:
        vfs = m.kernel.vfs
        if not any(mount.mnt_fstype == "proc" for mount in vfs.mounts):
            vfs.mount(b"/proc", ProcMount(vfs, m.kernel))
        p = m.spawn([*shell, "-c", script], stdin=b"", stdout=PIPE, stderr=PIPE)
        m.run()
        assert p.stdout is not None and p.stderr is not None
        assert p.stderr == b"" or not quiet, p.stderr
        return p.stdout


def keys(text: str) -> list[str]:
    return [m.group(1) for m in re.finditer(r"^(\w[\w()]*):", text, re.M)]


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    it = iter(whole)
    return all(k in it for k in part)


def host(name: str) -> str:
    return Path(f"/proc/self/{name}").read_text()


def test_maps() -> None:
    out = run('while IFS= read -r line; do echo "$line"; done < /proc/self/maps').decode()
    line = re.compile(
        r"^[0-9a-f]{8,}-[0-9a-f]{8,} [r-][w-][x-][ps] [0-9a-f]{8} [0-9a-f]{2}:[0-9a-f]{2} \d+ "
        r"( *\S.*)?$"
    )
    lines = out.splitlines()
    assert all(line.match(text) for text in lines), out
    assert all(text.index("/") == 73 for text in lines if "/" in text)
    exe = [text for text in lines if text.endswith(BUSYBOX)]
    st = os.stat(BUSYBOX)
    assert exe and f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x} {st.st_ino} " in exe[0]
    assert any(text.endswith("[heap]") for text in lines)
    assert lines[-1].endswith("[stack]")
    starts = [int(text.split("-")[0], 16) for text in lines]
    assert starts == sorted(starts)


def test_status_and_friends_have_linux_keys_in_order() -> None:
    assert is_subsequence(keys(run("cat /proc/self/status").decode()), keys(host("status")))
    with open("/proc/meminfo") as f:
        assert is_subsequence(keys(run("cat /proc/meminfo").decode()), keys(f.read()))
    smaps = run("cat /proc/self/smaps").decode()
    one = re.split(r"^[0-9a-f]+-", smaps, flags=re.M)[1]
    want = re.split(r"^[0-9a-f]+-", host("smaps"), flags=re.M)[1]
    assert is_subsequence(keys(one), keys(want))
    assert [len(line) for line in one.splitlines() if line.endswith("kB")] == [27] * one.count("kB")
    assert "VmFlags: rd " in smaps


def test_stat_columns() -> None:
    out = run("cat /proc/self/stat; cat /proc/self/statm; echo $$")
    stat, statm, pid = out.decode().splitlines()
    fields = stat.rpartition(") ")[2].split()
    assert stat.split()[1] == "(cat)" and len(fields) + 2 == 52
    assert len(host("stat").rpartition(") ")[2].split()) == len(fields)
    assert fields[0] == "R" and fields[1] == pid
    assert len(statm.split()) == 7
    assert int(fields[20]) == int(statm.split()[0]) * 4096


def test_limits_and_system_files_look_the_same() -> None:
    mine = run("cat /proc/self/limits").decode().splitlines()
    theirs = host("limits").splitlines()
    assert [line[:26] for line in mine] == [line[:26] for line in theirs]
    assert mine[0] == theirs[0] and [len(line) for line in mine] == [len(line) for line in theirs]
    out = run(
        "cat /proc/uptime /proc/loadavg /proc/sys/kernel/ostype; uname -r;"
        "cat /proc/sys/kernel/osrelease; hostname; cat /proc/sys/kernel/hostname"
    )
    up, load, ostype, rel, osrelease, name, hostname = out.decode().splitlines()
    assert re.fullmatch(r"\d+\.\d\d \d+\.\d\d", up)
    assert re.fullmatch(r"\d\.\d\d \d\.\d\d \d\.\d\d \d+/\d+ \d+", load)
    assert (ostype, rel, name) == ("Linux", osrelease, hostname)
    assert run("grep -c ^processor /proc/cpuinfo") == b"1\n"
    assert run("head -n 1 /proc/stat").split()[0] == b"cpu"


def test_files_can_be_read_in_pieces_and_again() -> None:
    out = run("dd if=/proc/self/limits bs=7 2>/dev/null | sha1sum; sha1sum < /proc/self/limits")
    first, second = out.splitlines()
    assert first == second
    assert run("{ head -c 4; tail -c +3; } < /proc/version").startswith(b"Linuversion 6")


def test_memory_through_proc() -> None:
    """/proc/self/mem reads what is mapped and nothing else; pagemap says which pages are there."""
    same(r"""
    static char touched[8192] __attribute__((aligned(4096))) = "here";
    static uint64_t entry(void *p) {
        uint64_t word = 0;
        int fd = open("/proc/self/pagemap", O_RDONLY);
        if (pread(fd, &word, 8, (uintptr_t)p / 4096 * 8) != 8) word = 1;
        close(fd);
        return word;
    }
    int main(void) {
        char text[5] = "";
        int fd = open("/proc/self/mem", O_RDONLY);
        printf("%zd %s\n", pread(fd, text, 4, (off_t)touched), text);
        printf("%zd %d\n", pread(fd, text, 4, 0), errno);
        volatile char *p = mmap(0, 3 * 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise((void *)p, 3 * 4096, MADV_RANDOM);
        p[4096] = 1;
        for (int i = 0; i < 3; i++) printf("%d", (int)(entry((char *)p + i * 4096) >> 63));
        uint64_t word = entry((void *)main);
        printf(" text %d file %d\n", (int)(word >> 63), (int)(word >> 61 & 1));
        return (word & (1ULL << 55) - 1) == 0;
    }
    """)


def test_writing_memory() -> None:
    """What is written to mem at an address is what the program finds there: its first argument,
    before it runs."""
    with Machine(mem="64M") as m:
        vfs = m.kernel.vfs
        if not any(mount.mnt_fstype == "proc" for mount in vfs.mounts):
            vfs.mount(b"/proc", ProcMount(vfs, m.kernel))
        p = m.spawn([BUSYBOX, "echo", "XYZZY"], stdout=PIPE)
        root = vfs.rootvnode
        vp = namei(root, root, b"/proc/%d/mem" % p.pid, KCRED)
        assert vp.open(FREAD | FWRITE, KCRED) is None
        top = p.proc.p_vmspace.vm_minsaddr
        buf = bytearray(8192)
        uio = Uio(None, [memoryview(buf)], UIO_READ)
        vp.read(uio, top - 8192, 0)
        at = buf.rindex(b"XYZZY\0") + top - 8192
        data = memoryview(bytearray(b"PLUGH"))
        assert vp.write(Uio(None, [data], UIO_WRITE), at, 0) == at + 5
        # Half of it can be reached: that half is what is read.
        uio = Uio(None, [memoryview(buf)], UIO_READ)
        vp.read(uio, top - 100, 0)
        assert uio.uio_resid == 8192 - 100
        with pytest.raises(OSError) as e:
            vp.read(uio, 0, 0)
        assert e.value.errno == EIO
        vp.close(FREAD | FWRITE)
        m.run()
        assert p.stdout == b"PLUGH\n"


def test_other_processes() -> None:
    out = run(
        "exec 2>/dev/null; busybox sleep 5 & P=$!;"
        "until grep -q sleep /proc/$P/cmdline; do :; done; tr '\\0' ' ' < /proc/$P/cmdline; echo;"
        "cat /proc/$P/comm; grep ^PPid /proc/$P/status; echo $$; ls /proc | grep -x $P | wc -l;"
        "readlink /proc/$P/exe; readlink /proc/$P/cwd; kill $P; wait $P; ls -d /proc/$P 2>&1"
    )
    lines = out.decode().splitlines()
    assert lines[0].strip() == "busybox sleep 5" and lines[1] == "busybox"
    assert lines[2] == f"PPid:\t{lines[3]}" and lines[4] == "1"
    assert lines[5] == BUSYBOX and lines[6] == os.getcwd()
    assert "No such file" in lines[7]


def test_reaped_process_has_no_files() -> None:
    out = run(
        "sleep 5 & P=$!; exec 3< /proc/$P/status; kill $P; wait $P; cat <&3 2>&1", quiet=False
    )
    assert b"No such process" in out


def test_zombie() -> None:
    out = run(
        "sh -c 'sh -c \"exit 3\" & exec sleep 5' & P=$!;"
        'while ! Z=$(cat /proc/$P/task/$P/children) || [ -z "$Z" ] ||'
        " ! grep -q Z.*zombie /proc/${Z% }/status 2>/dev/null; do :; done;"
        "cat /proc/${Z% }/maps /proc/${Z% }/cmdline; cut -d' ' -f3 /proc/${Z% }/stat; kill $P"
    )
    assert out == b"Z\n"


def test_comm_can_be_set() -> None:
    assert run("echo a-long-name-of-a-shell > /proc/$$/comm; cat /proc/$$/comm; :") == (
        b"a-long-name-of-\n"
    )


def test_descriptors() -> None:
    out = run(
        "exec 5< /etc/passwd; readlink /proc/$$/fd/5; echo hi > /tmp/f; exec 6< /tmp/f;"
        "rm /tmp/f; readlink /proc/$$/fd/6; cat /proc/$$/fd/6; stat -L -c %F /dev/fd/6;"
        "cat /proc/$$/fdinfo/5 | head -n 2; echo x | readlink /dev/stdin;"
        "echo piped | cat /dev/stdin; echo out > /dev/stdout | cat; stat -c %a /proc/$$/fd/5"
    )
    lines = out.decode().splitlines()
    assert lines[:4] == ["/etc/passwd", "/tmp/f (deleted)", "hi", "regular file"]
    assert lines[4] == "pos:\t0" and lines[5].startswith("flags:\t0")
    assert lines[6] == "/proc/self/fd/0"
    assert lines[7:] == ["piped", "out", "500"]


@pytest.mark.skipif(not os.path.exists(BASH), reason="no static bash")
def test_process_substitution() -> None:
    assert run("cat <(echo one) <(echo two)", (BASH,)) == b"one\ntwo\n"


def test_mounts() -> None:
    out = run("cat /proc/mounts; cat /proc/self/mountinfo").decode()
    assert "proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n" in out
    assert re.search(r"^1 0 \d+:\d+ / / rw,relatime - overlay dfvm rw$", out, re.M)
    assert run("mount | head -n 1").startswith(b"dfvm on / type overlay (rw")


def test_every_file_can_be_read() -> None:
    """find, cat and ls over all of /proc, the tasks and descriptors included: no errors but those
    of files that are meant to refuse, and those that need memory where there is none."""
    out = run(
        "find /proc -type f ! -name mem ! -name pagemap ! -path '/proc/*/fdinfo/*'"
        " ! -name clear_refs ! -name drop_caches ! -path '*/task/*' ! -path '/proc/[12]/environ'"
        " ! -path '/proc/[12]/auxv' ! -path '/proc/[12]/smaps_rollup' -exec cat {} + > /dev/null"
        " && find /proc -type d | wc -l"
    )
    assert int(out) > 10


CLEAR_REFS = r"""
    static char *anon, *file;
    static void put(const char *text) {
        int fd = open("/proc/self/clear_refs", O_WRONLY);
        int n = write(fd, text, strlen(text));
        printf("[%s] %d %d\n", text, n, n < 0 ? errno : 0);
        close(fd);
    }
"""


def test_clear_refs() -> None:
    """Which pages smaps counts as referenced, after what is written to clear_refs."""
    program = build(
        CLEAR_REFS
        + r"""
    static void referenced(const char *after) {
        static char line[300];
        FILE *f = fopen("/proc/self/smaps", "r");
        unsigned long start, at = 0, kb;
        printf("%s:", after);
        while (fgets(line, sizeof line, f)) {
            if (sscanf(line, "%lx-%*x ", &start) == 1) at = start;
            if (sscanf(line, "Referenced: %lu", &kb) == 1 && (at == 1 << 28 || at == 1 << 29))
                printf(" %lu", kb);
        }
        puts("");
        fclose(f);
    }
    static void use(void) {
        for (int i = 0; i < 20; i++) (void)*(volatile char *)(anon + i * 4096);
        (void)*(volatile char *)file;
    }
    int main(void) {
        anon = mmap((void *)(1 << 28), 20 * 4096, 3, 0x100022, -1, 0);
        file = mmap((void *)(1 << 29), 4096, 1, 0x100002, open("/proc/self/exe", O_RDONLY), 0);
        memset(anon, 1, 20 * 4096);
        use(), referenced("used");
        put("1"), referenced("all");
        use(), referenced("used");
        put("2\n"), referenced("anonymous");
        use(), put(" +3 "), referenced("of files");
        use(), put("4"), put("5"), referenced("nothing");
        return 0;
    }
    """
    )
    assert by_guest(program)[1].decode().splitlines() == [
        "used: 80 4", "[1] 1 0", "all: 0 0", "used: 80 4", "[2", "] 2 0", "anonymous: 0 4",
        "[ +3 ] 4 0", "of files: 80 0", "[4] 1 0", "[5] 1 0", "nothing: 80 4",
    ]  # fmt: skip


def test_what_clear_refs_takes() -> None:
    same(
        CLEAR_REFS
        + r"""
    int main(void) {
        put("0"), put("6"), put("x"), put("1x"), put("-1"), put("1 2"), put("1_"), put("+5\n");
        put("1234567890123456"), put("1           x");
        char c;
        int fd = open("/proc/self/clear_refs", O_RDWR);
        printf("%zd", read(fd, &c, 1));
        printf(" %d\n", errno);
        return 0;
    }
    """
    )


def test_memory_is_private_to_owner_and_root() -> None:
    with Machine(mem="64M") as m:
        vfs = m.kernel.vfs
        if not any(mount.mnt_fstype == "proc" for mount in vfs.mounts):
            vfs.mount(b"/proc", ProcMount(vfs, m.kernel))
        p = m.spawn([BUSYBOX, "true"])
        root, here = vfs.rootvnode, b"/proc/%d/" % p.pid
        p.proc.p_ucred = Ucred(1000, 1000)
        for name in (b"maps", b"smaps", b"environ", b"mem", b"pagemap"):
            vp = namei(root, root, here + name, KCRED)
            assert vp.getattr().va_uid == 1000
            for cred, allowed in ((KCRED, True), (p.proc.p_ucred, True), (Ucred(7, 7), False)):
                try:
                    assert vp.open(FREAD, cred) is None
                    vp.close(FREAD)
                    assert allowed
                except PermissionError:
                    assert not allowed
        with pytest.raises(PermissionError):
            namei(root, root, here + b"exe", Ucred(7, 7))
        assert namei(root, root, here + b"exe", p.proc.p_ucred) is p.proc.p_textvp
        m.run()


def test_sys_tells_of_cpus_and_memory() -> None:
    out = run("""cd /sys/devices/system
    cat cpu/online cpu/possible cpu/present cpu/offline node/online node/node0/cpulist
    cat cpu/cpu0/node0/distance cpu/cpu0/topology/core_siblings_list; cat node/node0/meminfo
    find /sys -type f | while read f; do cat $f > /dev/null || echo $f; done
    ls -d /sys/class /sys/fs/cgroup; stat -c '%s %a %F' cpu/online; echo 1 > cpu/online || echo no
    nproc""", quiet=False)  # fmt: skip
    assert out.startswith(b"0\n0\n0\n\n0\n0\n10\n0\nNode 0 MemTotal:")
    assert out.endswith(b"/sys/class\n/sys/fs/cgroup\n4096 444 regular file\nno\n1\n")
    program = build(r"""
#include <sys/sysinfo.h>
int main() { printf("%d %d\n", get_nprocs(), get_nprocs_conf()); return 0; }""")  # fmt: skip
    assert by_guest(program) == (0, b"1 1\n")


def test_a_process_is_told_what_it_was_given_and_what_it_is_worth() -> None:
    same(r"""
#include <elf.h>
static int adj(const char *s) {
    char b[20] = ""; int fd = open("/proc/self/oom_score_adj", O_RDWR);
    int r = write(fd, s, strlen(s)); lseek(fd, 0, SEEK_SET); int e = errno; read(fd, b, 19);
    printf("%s: %d %d, %s", s, r, r < 0 ? e : 0, b); close(fd);
}
int main(void) {
    static Elf64_auxv_t a[100]; int fd = open("/proc/self/auxv", O_RDONLY), n, same = 1;
    n = read(fd, a, sizeof a) / sizeof *a;
    for (int i = 0; i < n - 1; i++) same &= getauxval(a[i].a_type) == a[i].a_un.a_val;
    printf("%d %d\n", same, a[n - 1].a_type == AT_NULL);
    setvbuf(stdout, 0, _IONBF, 0); if (!geteuid()) setresuid(77, 77, 77), prctl(PR_SET_DUMPABLE, 1);
    adj("0"); adj("1001"); adj("x"); adj("500\n"); adj("-1001");
    if (!fork()) { adj("600"); adj("599"); adj("-1"); adj("1000"); _exit(0); }
    wait(0); adj("300"); return 0;
}""")  # fmt: skip
    out = run("cat /proc/self/oom_score; echo -500 > /proc/$$/oom_score_adj; cat /proc/self/oom_*")
    assert [int(n) // 10 for n in out.split()] == [66, 33, -50]


LINES = r"""
#include <sys/file.h>
#include <ctype.h>
static char text[1 << 20];
static char *slurp(const char *name) {
    int fd = open(name, O_RDONLY), n = 0, k;
    while ((k = read(fd, text + n, sizeof text - 1 - n)) > 0) n += k;
    close(fd); text[n < 0 ? 0 : n] = 0; return text;
}
static void put(const char *name, const char *s) {
    int fd = open(name, O_WRONLY), r = write(fd, s, strlen(s));
    printf("%s < %s: %d %d\n", name, s, r, r < 0 ? errno : 0); close(fd);
}
"""


def test_locks_are_listed() -> None:
    same(LINES + r"""
static void show(pid_t me, pid_t other) {
    static char lines[20][200]; int n = 0;
    for (char *l = strtok(slurp("/proc/locks"), "\n"); l; l = strtok(0, "\n")) {
        char kind[20], adv[20], way[20], where[60], start[30], end[30]; int pid, waits;
        l = strchr(l, ':') + 2; waits = *l == '-';
        if (waits) l += 3;
        sscanf(l, "%s %s %s %d %s %s %s", kind, adv, way, &pid, where, start, end);
        if (pid == me || pid == other)
            sprintf(lines[n++], "%d %s %s %s %s %s %s", waits, pid == me ? "me" : "other", kind,
                    adv, way, start, end);
    }
    qsort(lines, n, sizeof *lines, (void *)strcmp);
    for (int i = 0; i < n; i++) puts(lines[i]);
}
int main(void) {
    char name[] = "/tmp/locksXXXXXX"; int fd = mkstemp(name); pid_t pid; unlink(name);
    struct flock l = {F_WRLCK, SEEK_SET, 10, 20}; fcntl(fd, F_SETLK, &l);
    l = (struct flock){F_RDLCK, SEEK_SET, 100, 0}; fcntl(fd, F_SETLK, &l); flock(fd, LOCK_EX);
    if (!(pid = fork())) {
        l = (struct flock){F_RDLCK, SEEK_SET, 0, 30}; fcntl(fd, F_SETLKW, &l); pause();
    }
    do slurp("/proc/locks"); while (!strstr(text, "->"));
    show(getpid(), pid); kill(pid, SIGKILL); wait(0);
    flock(fd, LOCK_UN); l = (struct flock){F_UNLCK, SEEK_SET, 0, 0}; fcntl(fd, F_SETLK, &l);
    show(getpid(), pid); return 0;
}""")  # fmt: skip


def test_what_a_process_may_be_told_to_forget() -> None:
    same(LINES + r"""
static void show(const char *what, char *m) {
    char key[30]; sprintf(key, "%lx-", (long)m); char *l = strstr(slurp("/proc/self/smaps"), key);
    l = strstr(l, "Referenced:"); printf("%s: %d\n", what, atoi(l + 11));
}
int main(void) {
    setvbuf(stdout, 0, _IONBF, 0);
    char *m = mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(m, 16384, MADV_NOHUGEPAGE); memset(m, 1, 12288); show("stored", m);
    put("/proc/self/clear_refs", "3"); show("files'", m);
    put("/proc/self/clear_refs", "2\n"); show("not files'", m); madvise(m, 4096, MADV_DONTNEED);
    m[0] = 1; show("stored", m); put("/proc/self/clear_refs", "1"); show("all", m);
    put("/proc/self/clear_refs", "0"); put("/proc/self/clear_refs", "x");
    put("/proc/self/clear_refs", "5"); printf("%d\n", open("/proc/self/clear_refs", O_RDONLY));
    return 0;
}""")  # fmt: skip


def test_timers_and_what_else_a_process_tells() -> None:
    same(LINES + r"""
int main(void) {
    timer_t t; struct sigevent e = {.sigev_notify = SIGEV_NONE};
    setvbuf(stdout, 0, _IONBF, 0); puts(slurp("/proc/self/timers"));
    timer_create(CLOCK_MONOTONIC, &e, &t);
    e.sigev_notify = SIGEV_SIGNAL, e.sigev_signo = SIGUSR1, e.sigev_value.sival_int = 7;
    timer_create(CLOCK_REALTIME, &e, &t);
    for (char *c = slurp("/proc/self/timers"); *c; c++)
        if (!strncmp(c, "pid.", 4)) {
            printf("%d", atoi(c + 4) == getpid()); while (c[1] != '\n') c++;
        } else putchar(*c);
    puts(slurp("/proc/self/timerslack_ns")); put("/proc/self/timerslack_ns", "1234");
    printf("%d\n", prctl(PR_GET_TIMERSLACK)); put("/proc/self/timerslack_ns", "x");
    put("/proc/self/timerslack_ns", "0"); printf("%d\n", prctl(PR_GET_TIMERSLACK));
    puts(slurp("/proc/self/uid_map")); puts(slurp("/proc/self/gid_map"));
    puts(slurp("/proc/self/setgroups")); return 0;
}""")  # fmt: skip


def test_what_can_be_written_has_its_effect(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(4_000_000))
    out = run(f"""cd /proc/sys; BIG={tmp_path}/big
    echo here > kernel/hostname; hostname; echo there > kernel/domainname; cat kernel/domainname
    echo 0x64 > vm/max_map_count; cat vm/max_map_count; echo -1 > vm/max_map_count
    echo 0 > vm/drop_caches; cat vm/drop_caches; stat -c %a vm/drop_caches
    cat $BIG > /dev/null; cached() {{ grep ^Cached /proc/meminfo | tr -dc 0-9; }}
    BEFORE=$(cached); echo 3 > vm/drop_caches; AFTER=$(cached); test $AFTER -lt $((BEFORE - 3000))
    echo $?; md5sum < $BIG""", quiet=False)  # fmt: skip
    assert out == b"here\nthere\n100\n200\n0\n90b741f98410e3bb408d92fa49f9c436  -\n"
    program = build(r"""
int main() {
    int fd = open("/proc/sys/vm/max_map_count", O_WRONLY), n = 0; write(fd, "100", 3);
    while (mmap(0, 4096, n % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
           != MAP_FAILED) n++;
    return errno != ENOMEM || n < 50 || n > 100;
}""")  # fmt: skip
    assert by_guest(program)[0] == 0


NAMES = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#define T(x) do { errno = 0; int r = (x); printf("%s: %d %d\n", #x, r, errno); } while (0)
#define MAKE(dir) \
    T(mkdir(dir "/none", 0755)); T(open(dir "/none", O_CREAT | O_RDWR, 0644)); \
    T(symlink("a", dir "/none")); T(mkfifo(dir "/none", 0644)); T(link("/dev/null", dir "/none")); \
    T(rmdir(dir)); T(rmdir(dir "/none")); T(unlink(dir "/none"))
#define FILES(dir, file, other) \
    T(mkdir(file, 0755)); T(link(file, dir "/none")); T(link(file, other)); \
    T(rename(file, dir "/none")); T(rename(dir "/none", file)); T(rename(file, other)); \
    T(rename(file, file)); T(rename(file, "/tmp/none")); T(unlink(file))
int main(void) {
    MAKE("/proc"); MAKE("/proc/self"); MAKE("/sys/kernel/mm");
    FILES("/proc", "/proc/version", "/proc/uptime");
    FILES("/proc/self", "/proc/self/maps", "/proc/self/comm");
    return 0;
}
"""


def test_names_cannot_be_changed() -> None:
    same(NAMES)


def test_namespaces_are_the_first_ones() -> None:
    same(LINES + r"""
#include <dirent.h>
int main(void) {
    DIR *d = opendir("/proc/self/ns"); struct dirent *e; char p[300], b[99]; struct stat s, l, t;
    while ((e = readdir(d))) {
        if (*e->d_name == '.') continue;
        sprintf(p, "/proc/self/ns/%s", e->d_name); int n = readlink(p, b, 98); b[n] = 0;
        stat(p, &s); lstat(p, &l); sprintf(p, "/proc/%d/ns/%s", getpid(), e->d_name); stat(p, &t);
        sprintf(p, "[%ld]", s.st_ino);
        printf("%s %d %.4s %d %d %o %o\n", e->d_name, e->d_type, b, strstr(b, p) != 0,
               s.st_ino == t.st_ino && s.st_dev == t.st_dev, s.st_mode, l.st_mode);
    }
    int f = open("/proc/self/ns/mnt", O_RDONLY), r = read(f, b, 1);
    printf("%d %d %d\n", f >= 0, r, errno); f = open("/proc/self/ns/mnt", O_WRONLY);
    printf("%d %d\n", f, errno); return 0;
}""")  # fmt: skip


def test_the_system_call_a_process_is_in() -> None:
    same(T + SLEEPS + r"""
static const char *call(int pid) {
    char path[40]; sprintf(path, "/proc/%d/syscall", pid); return get_(path);
}
int main() {
    unsigned long v[9], sp = (unsigned long)__builtin_frame_address(0); int p[2], pid, st; pipe(p);
    int n = sscanf(get_("/proc/self/syscall"), "%lu %lx %lx %lx %lx %lx %lx %lx %lx", v, v + 1,
                   v + 2, v + 3, v + 4, v + 5, v + 6, v + 7, v + 8);
    T(n); T(v[0]); T(v[1]); T(v[2] == (unsigned long)buf); T(v[3] == sizeof buf - 1);
    T(sp - v[7] < 4096); T(memcmp((char *)v[8] - 2, "\x0f\x05", 2));
    if (!(pid = fork())) { syscall(SYS_read, p[0], buf, 77, 4, 5, 6); _exit(1); }
    sleeps(pid); n = sscanf(call(pid), "%lu %lx %lx %lx %lx %lx %lx", v, v + 1, v + 2, v + 3, v + 4,
        v + 5, v + 6);
    T(n); T(v[0]); T(v[1] == p[0]); T(v[2] == (unsigned long)buf); T(v[3]); T(v[4]); T(v[5]);
    T(v[6]);
    kill(pid, SIGKILL); waitid(P_PID, pid, 0, WEXITED | WNOWAIT); puts(call(pid));
    waitpid(pid, &st, 0);
    /* One that computes is stopped outside of any. */
    int *go = mmap(0, 4096, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!(pid = fork())) { *go = 1; for (;;) asm volatile(""); }
    while (!*go) sched_yield();
    kill(pid, SIGSTOP); waitpid(pid, &st, WUNTRACED); long nr = 0;
    n = sscanf(call(pid), "%ld %lx %lx %lx", &nr, v, v + 1, v + 2); T(n); T(nr);
    T(v[0] > 4096); T(v[1] > 4096); kill(pid, SIGKILL); waitpid(pid, &st, 0); T(*call(pid));
    return 0;
}""")  # fmt: skip
