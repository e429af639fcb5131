"""What Machine's methods are given: nonsense is refused at once, in one line that names the
argument; and what Machine and what it hands out show of themselves."""

from __future__ import annotations

import copy
import io
import pickle
import signal
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import dfvm
from dfvm import PIPE, STDOUT, Machine, Process
from dfvm.kern.machine_args import MEM_MAX, parse_size

BUSYBOX = "/usr/bin/busybox"

SIZES = [
    ("64M", 64 << 20), ("64m", 64 << 20), ("64MiB", 64 << 20), ("64mib", 64 << 20), ("1G", 1 << 30),
    ("1.5G", 3 << 29), ("1.50GiB", 3 << 29), ("0.5k", 512), ("8192k", 8 << 20), ("1T", 1 << 40),
    ("16777216", 16 << 20), (5, 5), ("1.0000001K", 1025), ("0.1K", 103), ("007", 7),
]  # fmt: skip
NO_SIZES = [
    "", "M", "x", "64X", "-64M", "+64M", "6 4M", " 64M", "64 M", "64MM", "64MB", "64B", "1.5",
    "1.G", ".5G", "1,5G", "1e9", "64iB", "0x10", "9" * 30, "٣M", "64Mıb", "1.5iB", "64M\n", "infG",
]  # fmt: skip


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", NO_SIZES)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


class Nothing:
    """It isn't."""


BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "mem: '64MB' is not a size", {"mem": "64MB"}),
    (ValueError, "mem: 1M is too little; the least is 8M", {"mem": "1M"}),
    (ValueError, "mem: 64 is too little", {"mem": 64}),
    (ValueError, "mem: -1 is too little", {"mem": -1}),
    (ValueError, "mem: 1024G is too much; physical addresses have 40 bits, the most is 1048574M",
     {"mem": "1024G"}),
    (ValueError, "mem: 4000000T is too much", {"mem": "4000000T"}),
    (ValueError, "mem: 1267650600228229401496703205376 is too much", {"mem": 1 << 100}),
    (ValueError, "too much", {"mem": MEM_MAX + 1}),
    (TypeError, "mem: a size is", {"mem": None}),
    (TypeError, "mem: a size is", {"mem": 64e6}),
    (TypeError, "mem: a size is", {"mem": True}),
    (TypeError, "mem: a size is", {"mem": b"64M"}),
    (TypeError, "root: a path, not 5", {"root": 5}),
    (ValueError, "root: a zero byte", {"root": "/\0"}),
    (TypeError, "rw: a list of paths, not '/tmp'", {"rw": "/tmp"}),
    (TypeError, "rw: a list of paths", {"rw": Path("/tmp")}),
    (TypeError, "rw: a list of paths, not None", {"rw": None}),
    (TypeError, "rw[1]: a path, not 7", {"rw": ["/tmp", 7]}),
    (ValueError, "rw: '/etc' is not below the root", {"rw": ["/etc"], "root": "/usr"}),
    (TypeError, "env: a mapping of names to values, not ['A=1']", {"env": ["A=1"]}),
    (TypeError, "env: names and values are strings, not 'A': 1", {"env": {"A": 1}}),
    (TypeError, "env: names and values are strings, not 1: 'A'", {"env": {1: "A"}}),
    (ValueError, "env: 'A=B' can't be the name of a variable", {"env": {"A=B": "C"}}),
    (ValueError, "env: '' can't be the name of a variable", {"env": {"": "C"}}),
    (TypeError, "check: True or False, not 'no'", {"check": "no"}),
    (TypeError, "check: True or False, not None", {"check": None}),
    (TypeError, "ncpu: a whole number, not '2'", {"ncpu": "2"}),
    (TypeError, "ncpu: a whole number, not 1.0", {"ncpu": 1.0}),
    (TypeError, "ncpu: a whole number, not True", {"ncpu": True}),
    (ValueError, "ncpu: a machine has 1 to 1024 CPUs, not 0", {"ncpu": 0}),
    (ValueError, "ncpu: a machine has 1 to 1024 CPUs, not 1025", {"ncpu": 1025}),
    (FileNotFoundError, "/no/such/root", {"root": "/no/such/root"}),
    (FileNotFoundError, "/no/such/directory", {"rw": ["/no/such/directory"]}),
]  # fmt: skip


def refused(
    error: type[Exception], said: str, call: Callable[..., object], given: dict[str, Any]
) -> None:
    with pytest.raises(error) as info:
        call(**given)
    assert type(info.value) is error
    assert said in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize(("error", "said", "given"), BAD, ids=range(len(BAD)))
def test_machines_that_make_no_sense(
    error: type[Exception], said: str, given: dict[str, Any]
) -> None:
    refused(error, said, Machine, given)


BAD_SPAWN: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "argv: a list of words, not '/usr/bin/busybox'", {"argv": BUSYBOX}),
    (TypeError, "argv: a list of words", {"argv": Path(BUSYBOX)}),
    (TypeError, "argv: a list of words, not 3", {"argv": 3}),
    (TypeError, "argv: a list of words", {"argv": {BUSYBOX: "true"}}),
    (TypeError, "argv[1]: a string or a path, not 1", {"argv": [BUSYBOX, 1]}),
    (ValueError, "argv: no program to run", {"argv": []}),
    (ValueError, r"argv[1]: a zero byte in 'a\x00b'", {"argv": [BUSYBOX, "a\0b"]}),
    (ValueError, r"argv[0]: '\ud800' has no form in bytes", {"argv": ["\ud800"]}),
    (ValueError, "env: a zero byte", {"env": {"A": "x\0y"}}),
    (TypeError, "env: a mapping", {"env": [("A", "1")]}),
    (TypeError, "stdin: bytes, a descriptor or a file, not 'text'", {"stdin": "text"}),
    (TypeError, "stdin: bytes, a descriptor or a file, not True", {"stdin": True}),
    (ValueError, "stdin: it can't be PIPE", {"stdin": PIPE}),
    (ValueError, "has no descriptor: fileno", {"stdin": io.BytesIO()}),
    (ValueError, "has no descriptor: fileno", {"stdout": io.StringIO()}),
    (ValueError, "stdout: it can't be STDOUT", {"stdout": STDOUT}),
    (ValueError, "stderr: it can't be -7", {"stderr": -7}),
    (ValueError, "stderr: it can't be 1099511627776", {"stderr": 1 << 40}),
    (TypeError, "stdout: a descriptor or a file, not b'x'", {"stdout": b"x"}),
    (TypeError, "stderr: a descriptor or a file, not 1.0", {"stderr": 1.0}),
    (OSError, "Bad file descriptor: 'stdout'", {"stdout": 999}),
    (FileNotFoundError, "''", {"argv": [""]}),
    (TypeError, "cwd: a path, not 5", {"cwd": 5}),
    (ValueError, "cwd: a zero byte", {"cwd": "/\0"}),
    (FileNotFoundError, "/no/such", {"cwd": "/no/such"}),
    (NotADirectoryError, "/etc/passwd", {"cwd": "/etc/passwd"}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "said", "given"), BAD_SPAWN, ids=range(len(BAD_SPAWN)))
def test_programs_that_make_no_sense(
    error: type[Exception], said: str, given: dict[str, Any]
) -> None:
    with Machine(mem="16M", check=True) as m:
        refused(error, said, m.spawn, {"argv": [BUSYBOX, "true"], **given})
        m.check()
        p = m.spawn([BUSYBOX, "true"])
        m.run()
        assert p.exit_status == 0


def test_a_closed_file_is_no_stream(tmp_path: Path) -> None:
    with open(tmp_path / "x", "w") as file:
        pass
    with Machine(mem="16M") as m:
        refused(ValueError, "has no descriptor: I/O operation on closed file", m.spawn,
                {"argv": [BUSYBOX, "true"], "stdout": file})  # fmt: skip


BAD_RUN: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "timeout: a number of seconds or None, not '5'", {"timeout": "5"}),
    (TypeError, "timeout: a number of seconds or None", {"timeout": True}),
    (TypeError, "timeout: a number of seconds or None", {"timeout": Nothing()}),
    (ValueError, "timeout: nan is no number of seconds", {"timeout": float("nan")}),
    (TypeError, "until: a Process that spawn() returned, or None, not 'x'", {"until": "x"}),
    (TypeError, "until: a Process that spawn() returned, or None, not 4", {"until": 4}),
]


@pytest.mark.parametrize(("error", "said", "given"), BAD_RUN, ids=range(len(BAD_RUN)))
def test_runs_that_make_no_sense(error: type[Exception], said: str, given: dict[str, Any]) -> None:
    with Machine(mem="16M") as m:
        p = m.spawn([BUSYBOX, "true"])
        refused(error, said, m.run, given)
        m.run(timeout=Fraction(600), until=p)  # type: ignore[arg-type]
        assert p.exit_status == 0


@pytest.mark.parametrize("timeout", [0, 0.0, -1, float("-inf"), 1e-12])
def test_no_time_at_all(timeout: float) -> None:
    """As subprocess has it: what has no time left has none, and is over at once."""
    with Machine(mem="16M") as m:
        m.spawn([BUSYBOX, "sleep", "1000"])
        with pytest.raises(TimeoutError, match="still runs after "):
            m.run(timeout=timeout)


@pytest.mark.parametrize("timeout", [1e9, 1e300, 10**400, float("inf")])
def test_all_the_time_there_is(timeout: float) -> None:
    with Machine(mem="16M") as m:
        p = m.spawn([BUSYBOX, "true"])
        m.run(timeout=timeout)
        assert p.exit_status == 0


def test_signals_that_make_no_sense() -> None:
    with Machine(mem="16M") as m:
        p = m.spawn([BUSYBOX, "sleep", "100"])
        refused(ValueError, "sig: there is no signal 65", p.kill, {"sig": 65})
        refused(ValueError, "sig: there is no signal -1", p.kill, {"sig": -1})
        for odd in (15.0, "TERM", None, True):
            refused(TypeError, "sig: a whole number, not", p.kill, {"sig": odd})
        p.kill(0)
        p.kill(signal.SIGTERM)
        m.run()
        assert p.exit_status == 128 + 15
        m.check()


def test_the_environment_is_the_one_that_was_given() -> None:
    env = {"A": "1"}
    with Machine(mem="16M", env=env) as m:
        env["B"] = "2"
        p = m.spawn([BUSYBOX, "env"], stdout=PIPE)
        q = m.spawn([BUSYBOX, "env"], stdout=PIPE, env={"C": Path("/x"), b"D": b"\xff"})  # type: ignore[dict-item]
        m.run()
        assert p.stdout == b"A=1\n"
        assert q.stdout == b"C=/x\nD=\xff\n"


COPIES: list[Callable[[object], object]] = [copy.copy, copy.deepcopy, pickle.dumps]


@pytest.mark.parametrize("copied", COPIES)
def test_there_is_one_of_each(copied: Callable[[object], object]) -> None:
    with Machine(mem="16M") as m:
        p = m.spawn([BUSYBOX, "true"])
        with pytest.raises(TypeError, match="a Machine can't be copied or pickled"):
            copied(m)
        with pytest.raises(TypeError, match="a Process can't be copied or pickled"):
            copied(p)
        m.run()
        assert p.exit_status == 0


def test_what_they_show() -> None:
    with Machine(mem="16M") as m:
        assert repr(m) == "<Machine 16M, 0 of 0 programs alive>"
        p, q = m.spawn([BUSYBOX, "true"]), m.spawn([BUSYBOX, "sleep", "1000"], stdin=b"")
        assert repr(m) == "<Machine 16M, 2 of 2 programs alive>"
        assert repr(p) == f"<Process {p.pid} busybox>"
        shown: list[str] = []
        m.kernel.sched.post(lambda: shown.append(repr(m)))
        m.run(until=p)
        assert shown == ["<Machine 16M, running, 2 of 2 programs alive>"]
        assert repr(m) == "<Machine 16M, 1 of 2 programs alive>"
        assert repr(p) == f"<Process {p.pid} busybox, exit status 0>"
        q.kill(9)
        m.run()
        assert repr(q) == f"<Process {q.pid} busybox, exit status 137>"
        meter, stats = repr(m.vmmeter), repr(m.vmstats)
        assert meter.startswith("<VmMeter ") and f" v_vm_faults={m.vmmeter.v_vm_faults}" in meter
        assert stats.startswith("<VmStats ") and " v_page_count=4" in stats
        assert "=0" not in meter
    assert repr(m) == "<Machine 16M, closed>"
    assert repr(p) == f"<Process {p.pid} busybox, exit status 0>"
    assert "Machine" in repr(Machine.__new__(Machine))
    assert isinstance(p, Process) and dfvm.__version__.count(".") == 2
