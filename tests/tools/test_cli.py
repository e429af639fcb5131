"""The command line, as a process of its own: what a user types, sees and gets back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dfvm import __version__
from tests.conftest import ROOT

DFVM = [sys.executable, "-m", "dfvm"]


def dfvm(*args: object, stdin: bytes = b"", **more: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*DFVM, *map(str, args)], input=stdin, capture_output=True, timeout=600, check=False, **more
    )  # type: ignore[call-overload,no-any-return]


def test_output_and_status_are_the_programs(guest_bin: Path) -> None:
    done = dfvm("run", guest_bin / "hello", "a", "--mem", "-x")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello a --mem -x\n", b"")
    done = dfvm("run", "--mem", "32M", "--check", guest_bin / "fork_loop")
    assert (done.returncode, done.stdout) == (42, b"sum 24\n")


def test_killed_by_a_signal_exits_128_plus_n(tmp_path: Path) -> None:
    done = dfvm("run", "/usr/bin/busybox", "sh", "-c", "kill -TERM $$")
    assert done.returncode == 128 + signal.SIGTERM


def test_standard_streams_pass_through() -> None:
    script = "read a; echo out $a; echo err $a >&2; cat"
    done = dfvm("run", "/usr/bin/busybox", "sh", "-c", script, stdin=b"1\n2\n3\n")
    assert (done.stdout, done.stderr) == (b"out 1\n2\n3\n", b"err 1\n")


def test_name_is_looked_up_in_path() -> None:
    done = dfvm("run", "busybox", "echo", "found")
    assert (done.returncode, done.stdout) == (0, b"found\n")


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        ([], 2, "a command is needed"),
        (["rnu"], 2, "no command 'rnu' (did you mean run?)"),
        (["run"], 2, "a program is needed"),
        (["run", "--meme", "1M", "x"], 2, "no option --meme (did you mean --mem?)"),
        (["run", "-x", "y"], 2, "no option -x"),
        (["run", "--mem"], 2, "--mem needs a value"),
        (["run", "--check=yes", "/bin/true"], 2, "--check takes no value"),
        (["run", "--mem", "12Q", "/bin/true"], 2, "'12Q' is not a size"),
        (["run", "--mem", "-5M", "/bin/true"], 2, "--mem"),
        (["run", "--mem", "1M", "/bin/true"], 2, "too little"),
        (["run", "--mem", "64MB", "/bin/true"], 2, "'64MB' is not a size (for example 64M, 64MiB"),
        (["run", "--mem", "1T", "/bin/true"], 2, "1T is too much; physical addresses have 40 bits"),
        (["run", "--mem", "1023.9G", "/bin/true"], 2, "1023.9G is more than this host has ("),
        (["run", "--env", "novalue", "/bin/true"], 2, "'novalue' is not K=V"),
        (["run", "--rw", "/no/such", "/bin/true"], 2, "/no/such: does not exist"),
        (["run", "--root", "/etc/passwd", "/bin/true"], 2, "is not a directory"),
        (["run", "--root", "/usr", "--rw", "/etc", "/bin/true"], 2, "'/etc' is not below the"),
        (["run", "--env", "\udcff", "/bin/true"], 2, r"--env: '\xff' is not K=V"),
        (["run", "--mem", "1\udcff", "/bin/true"], 2, r"--mem: '1\xff' is not a size"),
        (["run", "--\udcff"], 2, r"no option '--\xff'"),
        (["\udcff"], 2, r"no command '\xff' (did you mean"),
        (["run", "--stats=", "/bin/true"], 2, "--stats: '': No such file"),
        (["run", "--stats=/no/such/dir/x", "/bin/true"], 2, "/no/such/dir/x: No such file"),
        (["run", "--stats=/dev/full", "busybox", "true"], 2, "/dev/full: No space left"),
        (["run", ""], 127, "'': No such file"),
        (["run", "./no\nsuch\x1b"], 127, r"'./no\nsuch\x1b': No such file"),
        (["run", "/no/such/program"], 127, "/no/such/program: No such file or directory"),
        (["run", "nosuchprogram"], 127, "nosuchprogram: No such file or directory"),
        (["run", "/etc/passwd"], 126, "/etc/passwd: Permission denied"),
        (["run", "/etc"], 126, "/etc: Is a directory"),
        (
            ["run", "README.md"],
            127,
            "No such file or directory in PATH (did you mean ./README.md?)",
        ),
        (["run", "--root", "/usr", "README.md"], 127, "README.md: No such file or directory\n"),
        (["run", "--rw", "/proc/self", "x"], 2, "--rw: '/proc/self' is the machine's own"),
        (["busybox", "true"], 2, "no command 'busybox' (did you mean dfvm run busybox?)"),
        (["--mem", "64M", "run", "x"], 2, "no option --mem before a command"),
        (["trace", "--format", "xml", "/bin/true"], 2, "trace: --format: invalid choice: 'xml'"),
        (["trace", "-o", "", "/bin/true"], 2, "-o: '': No such file"),
        (["trace", "-vo", "", "/bin/true"], 2, "-o: '': No such file"),
        (["trace", "-o", "/no/such/dir/x", "/bin/true"], 2, "/no/such/dir/x: No such file"),
        (["trace", "-vo", "/no/such/dir/x", "/bin/true"], 2, "/no/such/dir/x: No such file"),
        (["trace", "-vx", "/bin/true"], 2, "no option -x"),
    ],
)
def test_bad_input_is_one_line(args: list[str], status: int, said: str) -> None:
    done = dfvm(*args, cwd=ROOT)
    err = done.stderr.decode()
    assert done.returncode == status, err
    assert err.count("\n") == 1 and said in err, err


def test_in_a_directory_that_is_gone(tmp_path: Path) -> None:
    gone = f"mkdir {tmp_path}/d && cd {tmp_path}/d && rmdir {tmp_path}/d;"
    env = {"PYTHONPATH": str(ROOT)}
    assert shell(f"{gone} dfvm run busybox pwd", env=env) == (0, b"/\n", b"")
    said = b"dfvm run: ./x: No such file or directory\n"
    assert shell(f"{gone} dfvm run ./x", env=env) == (127, b"", said)
    said = b"dfvm run: .: No such file or directory\n"
    assert shell(f"{gone} dfvm run --rw . busybox pwd", env=env) == (2, b"", said)
    said = b"dfvm trace: -o: t: No such file or directory\n"
    assert shell(f"{gone} dfvm trace -o t busybox pwd", env=env) == (2, b"", said)


def test_what_the_host_refuses_is_named() -> None:
    said = b"dfvm run: --mem: 256M: Cannot allocate memory\n"
    assert shell("ulimit -v 300000; dfvm run busybox true") == (2, b"", said)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 200, b"just text\n"])
def test_not_an_executable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    path.chmod(0o755)
    done = dfvm("run", path)
    assert done.returncode == 126
    said = done.stderr.decode()
    assert said.startswith(f"dfvm run: {path}: Exec format error: ") and said.count("\n") == 1


def test_missing_interpreter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("#!/no/such/sh\n")
    path.chmod(0o755)
    done = dfvm("run", path)
    said = f"dfvm run: {path}: No such file or directory: interpreter '/no/such/sh'\n"
    assert (done.returncode, done.stderr.decode()) == (127, said)


def test_help() -> None:
    assert b"run a program" in dfvm("--help").stdout
    done = dfvm("run", "--help")
    assert (done.returncode, done.stderr) == (0, b"") and b"--stats[=FILE]" in done.stdout
    assert dfvm("help", "run").stdout == done.stdout
    assert b"The exit status is the program's" in done.stdout
    assert b"--walk" in dfvm("trace", "--help").stdout
    said = f"dfvm {__version__}, Unicorn {version('unicorn')}\n".encode()
    assert dfvm("--version").stdout == said
    for start in (["-m", "dfvm.tools.main"], ["-c", "from dfvm.__main__ import main; main()"]):
        done = subprocess.run(
            [sys.executable, *start, "--version"], capture_output=True, check=True
        )
        assert done.stdout == said


def shell(command: str, env: dict[str, str] | None = None, **more: Any) -> tuple[int, bytes, bytes]:
    """Run a host shell's command, in which "dfvm" stands for ours."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'dfvm() { "$PYTHON" -m dfvm "$@"; }\n' + command],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False,
        env={**os.environ, "PYTHON": sys.executable, **(env or {})}, **more,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("what", ["--help", "--version", "run --help", "trace --help"])
def test_what_is_asked_for_cannot_be_written(what: str) -> None:
    said = b"dfvm: standard output: No space left on device\n"
    assert shell(f"dfvm {what} >/dev/full") == (2, b"", said)
    said = b"dfvm: standard output: Bad file descriptor\n"
    assert shell(f"dfvm {what} >&-") == (2, b"", said)
    assert shell(f"dfvm {what} 2>&- >&-") == (2, b"", b"")


def test_complaints_when_stderr_is_closed_go_nowhere() -> None:
    assert shell("dfvm run /no/such 2>&-") == (127, b"", b"")
    assert shell("dfvm rnu 2>&-") == (2, b"", b"")
    assert shell("dfvm run --meme 2>/dev/full") == (2, b"", b"")
    assert shell("dfvm run --stats busybox echo out 2>&-") == (0, b"out\n", b"")


OPEN_STREAMS = r"""
#include <fcntl.h>
int main(void) {
    int n = 0;
    for (int fd = 0; fd < 20; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            n |= 1 << fd;
    return n;
}
"""


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_are_closed_for_the_program(closed: str, tmp_path: Path) -> None:
    (tmp_path / "open.c").write_text(OPEN_STREAMS)
    program, files = tmp_path / "open", f"--stats={tmp_path}/stats"
    subprocess.run(["cc", "-static", "-o", program, f"{program}.c"], check=True)
    is_open = shell(f"{program} {closed}")[0]
    assert shell(f"dfvm run {files} {program} {closed}")[0] == is_open
    assert shell(f"dfvm trace -o {tmp_path}/trace {files} {program} {closed}")[0] == is_open
    assert (tmp_path / "trace").read_bytes().count(b"\n") > 5


@pytest.mark.parametrize("before", ["umask 027", "umask 0", "trap '' HUP TERM", "cd /usr"])
def test_what_a_program_inherits(before: str) -> None:
    show = 'umask; pwd; cut -d " " -f 19 /proc/self/stat; kill -HUP $$; kill -TERM $$; echo alive'
    host = shell(f"{before}; nice -n 2 busybox sh -c '{show}'")
    ours = shell(f"{before}; nice -n 2 $PYTHON -m dfvm run busybox sh -c '{show}'")
    status = host[0] if host[0] >= 0 else 128 - host[0]
    assert ours[:2] == (status, host[1])


def test_statistics_as_table_and_json(guest_bin: Path, tmp_path: Path) -> None:
    done = dfvm("run", "--stats", guest_bin / "cow_fork")
    assert b"v_vm_faults" in done.stderr and b"v_cow_faults" in done.stderr
    path = tmp_path / "s.json"
    done = dfvm("run", f"--stats={path}", guest_bin / "cow_fork")
    assert done.stderr == b""
    figures = json.loads(path.read_text())
    assert figures["vmmeter"]["v_cow_faults"] > 0
    assert figures["vmstats"]["v_page_count"] > 0


def test_a_file_where_stats_takes_none() -> None:
    done = dfvm("run", "--stats", "figures.json", "busybox", "true")
    said = b"dfvm run: figures.json: No such file or directory (or --stats=FILE?)\n"
    assert done.returncode == 127 and done.stderr.startswith(said)


def test_limits_are_inherited() -> None:
    """Those that the machine can keep: as many descriptors as the host has, it has not."""
    limits = "ulimit -Sn 777; ulimit -Hn 20000; ulimit -Sc 0; ulimit -v 3000000; ulimit -t 900"
    show = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -v; ulimit -t; ulimit -Hs; ulimit -l"
    host = shell(f"{limits}; busybox sh -c '{show}'")
    assert host[1].startswith(b"777\n20000\n0\n3000000\n900\n")
    ours = shell(f"{limits}; dfvm run --mem 32M busybox sh -c '{show}'")
    assert ours == host


def test_the_limit_on_cpu_time_counts_from_the_start() -> None:
    script = (
        "import resource, dfvm; resource.setrlimit(resource.RLIMIT_CPU, (500, 600));"
        "m = dfvm.Machine(); p = m.spawn(['busybox', 'true']).proc;"
        "print(p.p_limit[0], p.p_timers.cpulimit.expiry // 10**9); m.close()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"(500, 600) 500\n", b"")


def test_setsid_does_not_end_the_machine() -> None:
    """A leader of a group must fork to lead a session, and its parent ends."""
    show = 'cut -d " " -f 1,5,6 /proc/$$/stat; exit 7'
    done = dfvm("run", "busybox", "setsid", "busybox", "sh", "-c", show)
    pid, pgrp, session = done.stdout.split()
    assert pid == pgrp == session and done.returncode == 7


def test_a_value_may_look_like_an_option(tmp_path: Path) -> None:
    assert dfvm("trace", "-vo", "-x", "busybox", "true", cwd=tmp_path).returncode == 0
    assert dfvm("trace", "-v-y", "busybox", "true", cwd=tmp_path).returncode == 2
    assert os.listdir(tmp_path) == ["-x"]


def test_trace_shows_every_fault(guest_bin: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    done = dfvm("trace", "-v", "--format", "jsonl", "-o", path, guest_bin / "cow_fork")
    assert done.returncode == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    ways = {way for r in records for way in r["how"].split("+")}
    assert {"zero", "cow", "file"} <= ways
    assert {r["pid"] for r in records} >= {records[0]["pid"]}
    assert len({r["pid"] for r in records if r["pid"]}) >= 2
    copied = next(r for r in records if "cow" in r["how"])
    assert copied["type"] == "w" and copied["frame"] and copied["pte"] & 3 == 3
    assert any("in __libc_start_main" in r["instruction"] for r in records)
    assert f"{len(records)} faults".encode() in done.stderr
    done = dfvm("trace", guest_bin / "cow_fork")
    assert done.stdout.startswith(b"child  xByD\n")
    assert b"cow from depth 1" in done.stderr


def test_columns_of_a_trace_stay_in_line(guest_bin: Path) -> None:
    """Whatever a line has to tell: addresses of the kernel's half, wired pages, signals."""
    for program in ("segv_codes", "wiring"):
        done = dfvm("trace", guest_bin / program)
        heading, *lines = done.stderr.decode().partition(" faults, ")[0].splitlines()[:-1]
        how, end = heading.index("how"), heading.index("entry")
        assert len(lines) > 30
        for line in lines:
            assert line[how - 6 : how - 2].strip() in {
                f"{access} {who}" for access in "rwx" for who in "uk"
            }
            assert line[how].isalpha() and line[end - 3] != " " == line[end - 1], line
        entries = [line[end:].split() for line in lines]
        assert {len(entry) for entry in entries} <= {1, 3}


def test_walks_and_functions(guest_bin: Path, tmp_path: Path) -> None:
    """Every walk ends in the PTE that was installed; libraries have functions too."""
    path = tmp_path / "t.jsonl"
    dfvm("trace", "-v", "--walk", "--format", "jsonl", "-o", path, guest_bin / "segv_codes")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for r in records:
        last = r["walk"][-1]
        assert last["entry"] == r["pte"] or r["how"] == "signal"
        assert [level["table"] for level in r["walk"][1:]] == [
            level["entry"] & 0xFFFFFFFFFF000 for level in r["walk"][:-1]
        ]
    assert [r["va"] for r in records if r["result"]].count(0xFFFFFFFF81000000) == 1
    assert len({r["walk"][0]["table"] for r in records if r["va"] < 1 << 47}) == 1
    done = dfvm("trace", "-v", "/bin/ls", "/")
    assert b" in malloc+0x0\n" in done.stderr


def test_totals_are_those_of_the_counters(guest_bin: Path, tmp_path: Path) -> None:
    lines, figures = tmp_path / "t.jsonl", tmp_path / "s.json"
    for program in ("cow_fork", "segv_codes", "wiring", "stack_grow", "efault"):
        done = dfvm("trace", "--format", "jsonl", "-o", lines, f"--stats={figures}",
                    guest_bin / program)  # fmt: skip
        records = [json.loads(line) for line in lines.read_text().splitlines()]
        vmmeter = json.loads(figures.read_text())["vmmeter"]
        ways = [way for r in records for way in r["how"].split("+")]
        assert vmmeter["v_vm_faults"] == len(records)
        assert vmmeter["v_cow_faults"] == ways.count("cow")
        assert vmmeter["v_prefault"] == sum(r["prefault"] for r in records)
        assert done.stderr.decode().startswith(
            f"{len(records)} faults, {sum(r['major'] for r in records)} major, "
        )


@pytest.mark.parametrize(
    ("at", "value"),
    [(0x28, b"\xff" * 8), (0x28, b"\xff\xff\0"), (0x3C, b"\xff\xff"), (0x3A, b"\1\0")],
)
def test_symbols_of_a_broken_file(guest_bin: Path, tmp_path: Path, at: int, value: bytes) -> None:
    """Where its section headers are is nothing that a program needs in order to run."""
    program = tmp_path / "x"
    data = bytearray((guest_bin / "hello").read_bytes())
    data[at : at + len(value)] = value
    program.write_bytes(data)
    program.chmod(0o755)
    done = dfvm("trace", "-v", "-o", tmp_path / "t", program)
    assert (done.returncode, done.stdout) == (0, b"hello\n")


def test_trace_that_cannot_be_written_ends(guest_bin: Path) -> None:
    done = dfvm("trace", "-o", "/dev/full", "busybox", "sh", "-c", "echo out; exit 3")
    assert (done.returncode, done.stdout) == (2, b"out\n")
    assert done.stderr.startswith(b"dfvm trace: /dev/full: No space left on device\n1 faults")
    assert shell("dfvm trace busybox echo out 2>/dev/full") == (2, b"out\n", b"")
    assert shell("dfvm trace busybox echo out 2>&-") == (2, b"out\n", b"")


@pytest.mark.parametrize("lines", [1, 100])
def test_nobody_reads_the_trace_any_more(lines: int) -> None:
    forever = "while :; do busybox true; done"
    run = f"dfvm trace busybox sh -c '{forever}' 2>&1; echo $? >&2"
    status, out, err = shell(f"{{ {run}; }} | head -n {lines}")
    assert (status, err) == (0, b"141\n")
    assert out.count(b"\n") == lines


def test_odd_file_names_do_not_break_the_trace(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"odd\xff\n")
    shutil.copy("/usr/bin/busybox", path)
    path.with_name("busybox").symlink_to(path)
    program = path.with_name("busybox")
    done = dfvm("trace", "-o", tmp_path / "text", program, "true")
    assert done.returncode == 0
    heading, *lines = (tmp_path / "text").read_text().splitlines()
    assert heading.split() == ["pid", "rip", "address", "how", "frame", "pte", "µs", "entry"]
    assert all(line.lstrip()[0].isdigit() for line in lines)
    assert any(line.endswith(r" r-x odd\xff\n") for line in lines)
    dfvm("trace", "--format", "jsonl", "-o", tmp_path / "json", program, "true")
    records = [json.loads(line) for line in (tmp_path / "json").read_text().splitlines()]
    assert path.name in {r["entry"]["name"] for r in records if r["entry"]}


def test_memory_too_small_is_a_message_and_no_traceback() -> None:
    dd = "dd if=/dev/zero of=/dev/null bs=16300k count=1"
    done = dfvm("run", "--mem", "16M", "busybox", *dd.split())
    assert done.returncode == 128 + signal.SIGKILL
    assert b"Traceback" not in done.stderr
    assert b"memory" in done.stderr and done.stderr.count(b"\n") == 1


def test_interrupt_reaches_the_program() -> None:
    script = "trap 'echo got it; exit 3' INT; echo ready; while :; do :; done"
    p = subprocess.Popen(
        [*DFVM, "run", "/usr/bin/busybox", "sh", "-c", script],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert p.stdout is not None
    assert p.stdout.readline() == b"ready\n"
    os.kill(p.pid, signal.SIGINT)
    out, err = p.communicate(timeout=600)
    assert (p.returncode, out, err) == (3, b"got it\n", b"")


@pytest.mark.parametrize("name", ["USR1", "USR2", "HUP", "QUIT", "ALRM", "IO"])
def test_signals_reach_the_program(name: str) -> None:
    script = f"trap 'echo got it; exit 3' {name}; echo ready; while :; do :; done"
    p = subprocess.Popen(
        [*DFVM, "run", "/usr/bin/busybox", "sh", "-c", script],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert p.stdout is not None
    assert p.stdout.readline() == b"ready\n"
    os.kill(p.pid, signal.Signals[f"SIG{name}"])
    out, err = p.communicate(timeout=600)
    assert (p.returncode, out, err) == (3, b"got it\n", b"")


def test_interrupt_ends_a_program_that_ignores_nothing() -> None:
    p = subprocess.Popen(
        [*DFVM, "run", "/usr/bin/busybox", "sh", "-c", "echo ready; exec busybox sleep 1000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert p.stdout is not None
    assert p.stdout.readline() == b"ready\n"
    os.kill(p.pid, signal.SIGINT)
    _out, err = p.communicate(timeout=600)
    assert p.returncode == 128 + signal.SIGINT
    assert b"Traceback" not in err
