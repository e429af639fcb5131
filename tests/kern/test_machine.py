"""Machine, as whoever embeds it sees it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import dfvm
from dfvm import PIPE, STDOUT, Machine
from dfvm.kern.kernel import Kernel
from dfvm.lwkt.lwkt_thread import Deadlock
from dfvm.lwkt.panic import Panic
from dfvm.machine.cpu import PCB_PAGES
from dfvm.machine.reg import RIP
from dfvm.vm.pmap import pmap_extract
from dfvm.vm.vm_kern import kcopyin
from dfvm.vm.vm_map_entry import MAP_ENTRY_KSTACK
from dfvm.vm.vm_param import PAGE_SIZE, UPAGES
from tests.kern.guest_util import build

BUSYBOX = "/usr/bin/busybox"
_PCB_OFFSET = (UPAGES + 1 - PCB_PAGES) * PAGE_SIZE

CAT = r"""
    int main(int argc, char **argv) {
        char b[4096];
        long n, sum = 0;
        while ((n = read(0, b, sizeof b)) > 0) {
            write(1, b, n);
            sum += n;
        }
        dprintf(2, "%ld bytes\n", sum);
        return argc;
    }
    """


def test_streams() -> None:
    program = str(build(CAT))
    with Machine() as m:
        p = m.spawn([program], stdin=b"x" * 100_000, stdout=PIPE, stderr=PIPE)
        both = m.spawn([program, "a"], stdin=b"y", stdout=PIPE, stderr=STDOUT)
        assert p.exit_status is None
        m.run(timeout=600)
        assert (p.exit_status, p.stdout, p.stderr) == (1, b"x" * 100_000, b"100000 bytes\n")
        assert (both.exit_status, both.stdout, both.stderr) == (2, b"y1 bytes\n", b"y1 bytes\n")
        assert p.pid != both.pid


def test_host_descriptors(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file")
    with (tmp_path / "in").open() as i, (tmp_path / "out").open("w") as o, Machine() as m:
        m.spawn([str(build(CAT))], stdin=i.fileno(), stdout=o.fileno(), stderr=PIPE)
        m.run(timeout=600)
    assert (tmp_path / "out").read_bytes() == b"from a file"


def test_inherited_descriptors() -> None:
    """Without arguments the guest has the host's own; a pipe is read as it fills."""
    script = (
        "from dfvm import Machine; m = Machine(); "
        f"p = m.spawn([{str(build(CAT))!r}]); m.run(); print(p.exit_status)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=b"hello\n", capture_output=True,
                          check=True, cwd=Path(__file__).parents[2], timeout=600)  # fmt: skip
    assert done.stdout == b"hello\n1\n"
    assert done.stderr == b"6 bytes\n"


def test_environment_and_directory(tmp_path: Path) -> None:
    program = str(
        build(r"""
    int main(int argc, char **argv, char **envp) {
        char d[4096];
        puts(getcwd(d, sizeof d));
        while (*envp) puts(*envp++);
        return 0;
    }
    """)
    )
    with Machine(env={"A": "1", "B": "zwei"}) as m:
        p = m.spawn([program], stdout=PIPE, cwd=str(tmp_path))
        q = m.spawn([program], stdout=PIPE, env={}, cwd="/usr")
        r = m.spawn([program], stdout=PIPE, env={})
        m.run(timeout=600)
        assert p.stdout == os.fsencode(tmp_path) + b"\nA=1\nB=zwei\n"
        assert q.stdout == b"/usr\n"
        assert r.stdout == os.getcwdb() + b"\n"
        with pytest.raises(FileNotFoundError):
            m.spawn([program], cwd="/no/such/directory")
        with pytest.raises(ValueError):
            m.spawn([])
        m.check()


def test_timeout_and_going_on() -> None:
    """A machine whose time is over stays as it is, and can be run on."""
    computes = str(
        build(r"""
    int main(void) {
        volatile long i;
        for (i = 0; i < 400000000; i++);
        return 5;
    }
    """)
    )
    waits = str(build("int main(void) { pause(); }"))
    with Machine() as m:
        p, q = m.spawn([computes]), m.spawn([waits])
        with pytest.raises(TimeoutError):
            m.run(timeout=0.05)
        assert (p.exit_status, q.exit_status) == (None, None)
        m.check()
        q.kill(signal.SIGUSR1)
        m.run(timeout=600, until=q)
        assert q.exit_status == 128 + signal.SIGUSR1
        m.run(timeout=600)
        assert p.exit_status == 5


def test_kill_from_outside() -> None:
    with Machine() as m:
        p = m.spawn([str(build("int main(void) { for (;;) pause(); }"))], stdin=b"")
        with pytest.raises(Deadlock):
            m.run()
        p.kill(9)
        m.run(timeout=600)
        assert p.exit_status == 137


def test_waiting_for_ever() -> None:
    """Nothing can run and nobody can change that: the report says who waits for what."""
    program = str(build("int main(void) { int p[2]; pipe(p); char c; return read(p[0], &c, 1); }"))
    with Machine() as m:
        m.spawn([program], stdin=b"")
        with pytest.raises(Deadlock, match="sleeps on"):
            m.run()


def test_several_machines() -> None:
    program = str(build(CAT))
    with Machine(mem="16M") as a, Machine(mem="32M") as b:
        p = a.spawn([program], stdin=b"a", stdout=PIPE)
        q = b.spawn([program], stdin=b"b", stdout=PIPE)
        b.run(timeout=600)
        a.run(timeout=600)
        assert (p.stdout, q.stdout) == (b"a", b"b")
        assert a.vmstats.v_page_count < b.vmstats.v_page_count


def test_counters() -> None:
    program = str(
        build(r"""
    int main(void) {
        volatile char *m = malloc(1 << 20);
        for (int i = 0; i < 1 << 20; i += 4096) m[i] = 1;
        if (!fork()) {
            m[0] = 2;
            _exit(0);
        }
        wait(0);
        return 0;
    }
    """)
    )
    with Machine() as m:
        m.spawn([program])
        before = m.vmmeter.v_zfod
        m.run(timeout=600)
        assert m.vmmeter.v_zfod - before >= 250
        assert m.vmmeter.v_cow_faults >= 1
        assert m.vmstats.v_free_count > 0


def test_out_of_memory_kills_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    program = str(
        build(r"""
    int main(void) {
        for (long n = 0;; n++) {
            volatile char *m = malloc(1 << 20);
            if (!m) return 3;
            for (int i = 0; i < 1 << 20; i += 4096) m[i] = 1;
        }
    }
    """)
    )
    small = str(build("int main(void) { usleep(200000); return 4; }"))
    with Machine(mem="16M", check=True) as m:
        p, q = m.spawn([program]), m.spawn([small])
        m.run(timeout=600)
        assert (p.exit_status, q.exit_status) == (137, 4)
        m.check()
    assert "out of memory" in capfd.readouterr().err


def test_who_is_killed_for_memory_can_be_said(capfd: pytest.CaptureFixture[str]) -> None:
    """The larger one asks to be spared. When it is alone, it can't be."""
    program = build(r"""
    static void eat(int mib) {
        for (int n = 0; n < mib; n++) {
            char *m = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            for (int i = 0; i < 1 << 20; i += 4096) m[i] = 1;
        }
    }
    int main(void) {
        int fd, p[2];
        char c;
        pipe(p);
        if (!fork()) eat(2), write(p[1], "x", 1), pause();
        read(p[0], &c, 1);
        fd = open("/proc/self/oom_score_adj", O_WRONLY);
        if (write(fd, "-1000", 5) != 5) return 1;
        eat(30);
        return 2;
    }
    """)  # fmt: skip
    with Machine(mem="16M", check=True) as m:
        p = m.spawn([str(program)])
        m.run(timeout=600)
        assert p.exit_status == 137
        m.check()
    assert capfd.readouterr().err.count("out of memory") == 2


@pytest.mark.parametrize("what", ["fork of locked memory", "forks"])
def test_out_of_memory_in_the_middle_of_a_fork(
    capfd: pytest.CaptureFixture[str], what: str
) -> None:
    """The fork needs more than there is: a copy of what is locked, or one kernel stack more. Who is
    killed for it may be the one that forks."""
    program = str(
        build(r"""
    int main(int argc, char **argv) {
        int ends[2], made = 0;
        pipe(ends);
        if (argv[1][4]) {
            mlock(mmap(0, 6 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 6 << 20);
            return fork() < 0;
        }
        for (pid_t child; made < 300 && (child = fork()) >= 0; made++)
            if (!child) { close(ends[1]), read(ends[0], &made, 1); _exit(0); }
        close(ends[1]);
        while (wait(0) > 0);
        return 0;
    }
    """)
    )
    with Machine(mem="8M", check=True) as m:
        p = m.spawn([program, "lock it" if "locked" in what else "fork"])
        m.run(timeout=600)
        assert p.exit_status in ((137,) if "locked" in what else (0, 137))
    assert "out of memory" in capfd.readouterr().err


def test_a_file_mapped_shared_may_be_larger_than_memory() -> None:
    program = str(
        build(r"""
    int main(void) {
        long size = 40 << 20, good = 0;
        int fd = open("/tmp/large", O_CREAT | O_EXCL | O_RDWR, 0600);
        ftruncate(fd, size);
        char *m = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        for (long i = 0; i < size; i += 4096) *(long *)(m + i) = i;
        for (long i = 0; i < size; i += 4096) good += *(long *)(m + i) == i;
        return good == size >> 12 ? 0 : 1;
    }
    """)
    )
    with Machine(mem="16M", check=True) as m:
        p = m.spawn([program])
        m.run(timeout=600)
        assert p.exit_status == 0
        m.check()


def test_nothing_is_left_behind() -> None:
    """Exit gives back frames, page tables and kernel stacks; only the page cache stays."""
    program = str(
        build(r"""
    int main(void) {
        for (int i = 0; i < 20; i++)
            if (!fork()) {
                volatile char *m = malloc(1 << 18);
                for (int j = 0; j < 1 << 18; j += 4096) m[j] = 1;
                _exit(0);
            }
        while (wait(0) > 0);
        return 0;
    }
    """)
    )
    with Machine() as m:
        m.spawn([program])
        m.run(timeout=600)
        wired = m.vmstats.v_wire_count - UPAGES * len(m.kernel.kstacks)
        objects = sum(map(len, m.kernel.vm.object_hash))
        for _ in range(3):
            m.spawn([program])
            m.run(timeout=600)
        assert m.vmstats.v_wire_count - UPAGES * len(m.kernel.kstacks) == wired
        assert sum(map(len, m.kernel.vm.object_hash)) == objects
        assert len(m.kernel.procs) == 2
        m.check()


def _resident_kib() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4


def test_close_gives_the_memory_back() -> None:
    program = str(
        build(r"""
    int main(void) {
        volatile char *m = malloc(40 << 20);
        for (int i = 0; i < 40 << 20; i += 4096) m[i] = 1;
        pause();
        return 0;
    }
    """)
    )

    def once() -> None:
        with Machine(mem="64M") as m:
            m.spawn([program], stdin=b"")
            with pytest.raises(Deadlock):
                m.run()

    once()
    gc.collect()
    before = _resident_kib()
    for _ in range(4):
        once()
    gc.collect()
    assert _resident_kib() - before < 30 << 10


def test_closed_machine() -> None:
    m = Machine(mem="16M")
    p = m.spawn([str(build("int main(void) { return 9; }"))])
    m.run(timeout=600)
    m.close()
    m.close()
    assert p.exit_status == 9
    p.kill(9)
    for use in (m.run, m.check, m.__enter__, lambda: m.spawn(["x"]), lambda: m.vmmeter):
        with pytest.raises(RuntimeError, match="the machine is closed"):
            use()


def test_forgotten_machine() -> None:
    """It says so, and leaves no descriptors, threads or memory."""
    before = os.listdir("/proc/self/fd"), threading.active_count()
    m = Machine(mem="16M")
    m.spawn([str(build("int main(void) { pause(); return 0; }"))])
    with suppress(TimeoutError):
        m.run(timeout=0)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del m
    assert (os.listdir("/proc/self/fd"), threading.active_count()) == before


def test_errors_name_the_file() -> None:
    with Machine(mem="16M") as m:
        with pytest.raises(OSError) as info:
            m.spawn(["/no/such"])
        assert info.value.filename == "/no/such"
        with pytest.raises(OSError) as info:
            m.spawn([BUSYBOX, "true"], cwd="/no")
        assert info.value.filename == "/no"


def test_paths_may_be_paths(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with Machine(mem="16M", root=Path("/"), rw=[tmp_path]) as m:
        m.spawn([Path(BUSYBOX), "touch", "x"], cwd=tmp_path / "d")
        m.run()
    assert (tmp_path / "d" / "x").exists()
    with pytest.raises(FileNotFoundError):
        Machine(mem="16M", root="")  # not the host's


def test_what_the_package_shows() -> None:
    assert set(dfvm.__all__) <= set(dir(dfvm))
    assert (dfvm.Deadlock, dfvm.Panic) == (Deadlock, Panic)
    with pytest.raises(AttributeError):
        _ = dfvm.machines  # type: ignore[attr-defined]


def test_files_as_streams(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("text")
    with Machine(mem="16M") as m, open(tmp_path / "in") as i, open(tmp_path / "out", "wb") as o:
        m.spawn([BUSYBOX, "cat"], stdin=i, stdout=o)
        p = m.spawn([BUSYBOX, "cat"], stdin=bytearray(b"bytes"), stdout=PIPE)
        m.run()
    assert (tmp_path / "out").read_text() == "text"
    assert p.stdout == b"bytes"


def test_calls_during_a_run_are_refused() -> None:
    """A signal handler of the host's may send signals, and nothing else."""
    refused = []

    def handler(signo: int, frame: object) -> None:
        for use in (m.run, m.check, m.close, lambda: m.spawn([BUSYBOX, "true"])):
            try:
                use()
            except RuntimeError as e:
                refused.append(str(e))
        p.kill(signal.SIGTERM)

    old = signal.signal(signal.SIGUSR1, handler)
    try:
        with Machine(mem="16M", check=True) as m:
            p = m.spawn([BUSYBOX, "sh", "-c", "while :; do :; done"], stdin=b"")
            m.kernel.sched.callout(0, os.kill, os.getpid(), signal.SIGUSR1)
            m.run()
            assert p.exit_status == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert refused == ["the machine is running"] * 4


def test_a_signal_that_the_host_has_a_use_for_is_not_the_programs() -> None:
    came = []
    old = signal.signal(signal.SIGUSR2, lambda signo, frame: came.append(signo))
    try:
        with Machine(mem="16M") as m:
            p = m.spawn([BUSYBOX, "sh", "-c", "while :; do :; done"])  # it hears the host
            for sig in (signal.SIGUSR2, signal.SIGUSR1):
                m.kernel.sched.callout(0, os.kill, os.getpid(), sig)
            m.run()
            assert p.exit_status == 128 + signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR2, old)
    assert came == [signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_kill_from_another_thread() -> None:
    """Also while the machine waits for something else."""
    with Machine(mem="16M") as m:
        p = m.spawn([BUSYBOX, "sleep", "1000"])
        killer = threading.Thread(target=p.kill, args=[signal.SIGKILL])
        with pytest.raises(TimeoutError):
            m.run(timeout=0.01)
        killer.start()
        m.run()
        killer.join()
        assert p.exit_status == 128 + signal.SIGKILL


def test_another_thread_is_refused_and_harms_nothing() -> None:
    said = []

    def use() -> None:
        try:
            m.run()
        except RuntimeError as e:
            said.append(str(e))

    with Machine(mem="16M", check=True) as m:
        p = m.spawn([BUSYBOX, "echo", "here"], stdout=PIPE)
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        m.run()
    assert said == ["a machine can be used only by the thread that made it"]
    assert p.stdout == b"here\n"


def test_fork_of_the_hosts_process() -> None:
    """Both halves have the whole machine, with a clock and a wake-up call of their own."""
    script = "while read x; do [ $x = go ] && break; done; echo $x; while :; do :; done"
    gets, puts = os.pipe()
    with Machine(mem="16M", check=True) as m:
        p = m.spawn([BUSYBOX, "sh", "-c", script], stdin=gets, stdout=PIPE)
        with pytest.raises(TimeoutError):
            m.run(timeout=0.01)  # it waits for the host
        child = os.fork()
        if not child:
            status = 1
            try:
                m.run(timeout=0.01)
            except TimeoutError:
                p.kill(signal.SIGUSR1)
                m.run()
                m.close()
                status = p.exit_status
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGUSR1
        os.write(puts, b"go\n")
        while p.stdout != b"go\n":
            with pytest.raises(TimeoutError):
                m.run(timeout=0.01)
        child = os.fork()
        if not child:
            status = 1
            try:
                m.run(timeout=0.01)  # only a clock takes the CPU from what it does now
            except TimeoutError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        p.kill(signal.SIGTERM)
        m.run()
        assert p.exit_status == 128 + signal.SIGTERM
    os.close(gets)
    os.close(puts)


def test_until_another_machines_program() -> None:
    with Machine(mem="16M") as m, Machine(mem="16M") as other:
        p = other.spawn([BUSYBOX, "true"])
        with pytest.raises(ValueError, match="another machine's"):
            m.run(until=p)


def test_a_signal_handler_that_raises() -> None:
    """Ends the run, be it that it hit a callback of the engine's, and the machine with it."""

    def handler(signo: int, frame: object) -> None:
        raise LookupError("by a handler")

    old = signal.signal(signal.SIGALRM, handler)
    try:
        with Machine(mem="16M") as m:
            m.spawn([BUSYBOX, "sh", "-c", "while :; do :; done"], stdin=b"")
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(LookupError, match="by a handler"):
                m.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_after_a_bug_nothing_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel thread ended by an exception leaves a machine that only can be closed."""

    def fork(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    with Machine(mem="16M") as m:
        p = m.spawn([BUSYBOX, "sh", "-c", "busybox true; true"], stdin=b"")
        monkeypatch.setattr("dfvm.kern.kern_fork.newproc", fork)
        with pytest.raises(ZeroDivisionError):
            m.run()
        monkeypatch.undo()
        for _ in range(2):
            with pytest.raises(Panic, match=r"ended in the middle: ZeroDivisionError\('a bug'\)"):
                m.run()
    assert p.exit_status is None


def test_interrupt_while_a_program_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """^C in the middle of the kernel waits until that is in order."""
    find = Machine._find

    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return find(*args)

    with Machine(mem="16M", check=True) as m:
        monkeypatch.setattr(Machine, "_find", interrupted)
        with pytest.raises(KeyboardInterrupt):
            m.spawn([BUSYBOX, "true"])
        monkeypatch.undo()
        m.check()
        m.run()
        m.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_while_a_machine_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    boot = Kernel.__init__

    def interrupted(self: Kernel, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        boot(self, *args)

    monkeypatch.setattr(Kernel, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Machine(mem="16M")
    assert os.listdir("/proc/self/fd") == before


def test_checker_sees_a_broken_machine() -> None:
    with Machine() as m:
        m.spawn([str(build("int main(void) { return 0; }"))])
        m.run(timeout=600)
        m.kernel.launcher.p_children[77] = m.kernel.initproc
        with pytest.raises(Panic, match="Machine"):
            m.check()
        del m.kernel.launcher.p_children[77]
        m.check()
        m.kernel.vfs.rootvnode.vref()
        with pytest.raises(Panic, match="references are explained"):
            m.check()
        m.kernel.vfs.rootvnode.vrele()
        m.check()


@pytest.mark.spec("KERN-1", "MAP-15")
def test_kernel_memory_of_a_process() -> None:
    """A process's kernel stack is wired kernel memory above a guard page; its registers lie in
    the top of it while another runs. Exec arguments pass through the exec submap."""
    program = str(build("int main(int c, char **v) { pause(); return strlen(v[1]); }"))
    with Machine() as m:
        kernel = m.kernel
        p = m.spawn([program, "x" * 70_000], stdin=b"")
        q = m.spawn([program, "y"], stdin=b"")
        assert list(kernel.exec_map) == []
        with pytest.raises(Deadlock):
            m.run()
        stacks = [e for e in kernel.vm.kernel_map if e.eflags & MAP_ENTRY_KSTACK]
        for proc in (p.proc, q.proc):
            kva = proc.p_mainlwp.lwp_stack.ks_kva
            entry = next(e for e in stacks if e.ba.start <= kva < e.ba.end)
            assert entry.wired_count
            assert pmap_extract(kernel.vm.kernel_pmap, kva) is None
            top = kva + UPAGES * PAGE_SIZE
            assert pmap_extract(kernel.vm.kernel_pmap, top) is not None
        saved = q.proc.p_mainlwp if kernel.vcpu.loaded is p.proc.p_mainlwp.ctx else p.proc.p_mainlwp
        pcb = saved.lwp_stack.ks_kva + _PCB_OFFSET
        assert int.from_bytes(kcopyin(kernel.vm, pcb + 8 * RIP, 8), "little") == saved.ctx.q[RIP]
        m.check()


@pytest.mark.spec("SPACE-1")
def test_exit_and_reap_are_two_steps() -> None:
    """A zombie has no mappings and no pages, but still its page tables; they go when it is waited
    for."""
    program = str(
        build(r"""
    static void h(int sig) { }
    int main(void) {
        signal(SIGUSR1, h);
        if (!fork()) _exit(0);
        pause();
        wait(0);
        pause();
    }
    """)
    )
    with Machine() as m:
        p = m.spawn([program], stdin=b"")
        with pytest.raises(Deadlock):
            m.run()
        (zombie,) = p.proc.p_zombies.values()
        space = zombie.p_vmspace
        assert (space.vm_refcnt, space.vm_holdcnt, list(space.vm_map)) == (-1, 1, [])
        assert space.vm_pmap.pm_stats.resident_count == 0
        assert space.vm_pmap.pm_pml4_m is not None
        p.kill(signal.SIGUSR1)
        with pytest.raises(Deadlock):
            m.run()
        assert space.vm_holdcnt == 0
        assert space.vm_pmap.pm_pml4_m is None
        m.check()
