"""The command line, as a process of its own: what a user types, sees and gets back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DFVM = [sys.executable, "-m", "dfvm.tools.main"]


def dfvm(*args: object, stdin: bytes = b"", **more: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*DFVM, *map(str, args)], input=stdin, capture_output=True, timeout=60, check=False, **more
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
        (["rnu"], 2, "no command 'rnu'"),
        (["run"], 2, "a program is needed"),
        (["run", "--meme", "1M", "x"], 2, "--meme"),
        (["run", "--mem", "12Q", "/bin/true"], 2, "'12Q' is not a size"),
        (["run", "--mem", "-5M", "/bin/true"], 2, "--mem"),
        (["run", "--mem", "1M", "/bin/true"], 2, "too little"),
        (["run", "--mem", "99999T", "/bin/true"], 2, "more than this host has"),
        (["run", "--env", "novalue", "/bin/true"], 2, "'novalue' is not K=V"),
        (["run", "--rw", "/no/such", "/bin/true"], 2, "/no/such: does not exist"),
        (["run", "--root", "/etc/passwd", "/bin/true"], 2, "is not a directory"),
        (["run", "/no/such/program"], 127, "/no/such/program: No such file or directory"),
        (["run", "nosuchprogram"], 127, "nosuchprogram: No such file or directory"),
        (["run", "/etc/passwd"], 126, "/etc/passwd: Permission denied"),
        (["run", "/etc"], 126, "/etc: Permission denied"),
        (["trace", "--format", "xml", "/bin/true"], 2, "xml"),
        (["trace", "-o", "/no/such/dir/x", "/bin/true"], 2, "/no/such/dir/x: No such file"),
    ],
)
def test_bad_input_is_one_line(args: list[str], status: int, said: str) -> None:
    done = dfvm(*args)
    err = done.stderr.decode()
    assert done.returncode == status, err
    assert err.count("\n") == 1 and said in err, err


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 200, b"just text\n"])
def test_not_an_executable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    path.chmod(0o755)
    done = dfvm("run", path)
    assert done.returncode == 126
    said = done.stderr.decode()
    assert said.startswith(f"dfvm run: {path}: Exec format error: ") and said.count("\n") == 1


def test_statistics_as_table_and_json(guest_bin: Path, tmp_path: Path) -> None:
    done = dfvm("run", "--stats", guest_bin / "cow_fork")
    assert b"v_vm_faults" in done.stderr and b"v_cow_faults" in done.stderr
    path = tmp_path / "s.json"
    done = dfvm("run", f"--stats={path}", guest_bin / "cow_fork")
    assert done.stderr == b""
    figures = json.loads(path.read_text())
    assert figures["vmmeter"]["v_cow_faults"] > 0
    assert figures["vmstats"]["v_page_count"] > 0


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


def test_memory_too_small_is_a_message_and_no_traceback(guest_bin: Path) -> None:
    done = dfvm("run", "--mem", "16M", guest_bin / "random_touch", "4096")
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
    time.sleep(0.05)
    os.kill(p.pid, signal.SIGINT)
    out, err = p.communicate(timeout=20)
    assert (p.returncode, out, err) == (3, b"got it\n", b"")


def test_interrupt_ends_a_program_that_ignores_nothing() -> None:
    p = subprocess.Popen(
        [*DFVM, "run", "/usr/bin/busybox", "sleep", "60"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(1)
    os.kill(p.pid, signal.SIGINT)
    _out, err = p.communicate(timeout=20)
    assert p.returncode == 128 + signal.SIGINT
    assert b"Traceback" not in err
