"""Runs batches of cases, on the host and in a machine."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tools.cpudiff.case import Case, Result, batch, results

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SOURCE: Final = Path(__file__).with_name("runner.c")
CACHE: Final = Path(tempfile.gettempdir()) / f"dfvm-cpu-diff-{os.getuid()}"
CFLAGS: Final = (
    "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-nostdlib", "-ffreestanding",
    "-fno-stack-protector", "-fno-pie", "-no-pie", "-mgeneral-regs-only", "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables", "-Wl,-Ttext-segment=0x60000000", "-Wl,-z,noexecstack",
    "-Wl,--build-id=none",
)  # fmt: skip

# A case that has given no result after so many seconds never will: the whole of a batch takes a
# few.
TIMEOUT: Final = 60


def runner() -> Path:
    """The program that runs cases, built if it is not there."""
    key = hashlib.sha256(SOURCE.read_bytes() + repr(CFLAGS).encode()).hexdigest()[:16]
    path = CACHE / f"runner-{key}"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        fresh = CACHE / f"runner-{key}.{os.getpid()}"
        subprocess.run(["cc", *CFLAGS, "-o", fresh, SOURCE], check=True)
        fresh.replace(path)
    return path


def _command(guest: bool, program: Path) -> list[str]:
    if not guest:
        return [str(program)]
    code = "import sys; from dfvm.tools.main import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", code, "run", "--mem", "64M", str(program)]


def run(cases: list[Case], patterns: list[bytes], *, guest: bool) -> list[Result | str]:
    """What became of each of `cases`: a result, or what became of the runner instead."""
    program = runner()
    found: list[Result | str] = []
    env = dict(os.environ)
    env.setdefault("PYTHONPATH", str(ROOT))
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        path = Path(directory) / "batch"
        path.write_bytes(batch(cases, patterns))
        command = _command(guest, program)
        while len(found) < len(cases):
            first = len(found)
            process = subprocess.Popen(
                [*command, str(path), str(first)], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=directory,
            )  # fmt: skip
            try:
                out, err = process.communicate(timeout=TIMEOUT)
                end = f"exit {process.returncode}"
                if process.returncode < 0:
                    end = f"killed by {signal.Signals(-process.returncode).name}"
                elif process.returncode:
                    last = err.decode(errors="replace").strip().splitlines()[-1:]
                    end = f"exit {process.returncode}: {''.join(last)}"
            except subprocess.TimeoutExpired:
                process.kill()
                out, _ = process.communicate()
                end = f"no end in {TIMEOUT} s"
            got = results(out)
            for index in range(first, len(cases)):
                if index not in got:
                    break
                found.append(got[index])
            if len(found) < len(cases):
                found.append(end)
    return found
