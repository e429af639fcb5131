"""The bars of the project, measured: `make bench`.

Every figure is a ratio of two things measured in this one run, so that it means the same on a slow
machine as on a fast one. The bare side is tools/bare.py: the same engine without any of dfvm. Each
side is measured several times, alternating, and the best of each counts. Prints a table and writes
bench.json.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dfvm import PIPE, Machine  # noqa: E402
from tools.bare import Bare  # noqa: E402

BENCH = str(ROOT / "guest" / "bin" / "bench")
BUSYBOX = "/usr/bin/busybox"
ROUNDS = 3


def guest(*args: object, mem: str = "512M") -> list[float]:
    """Run the guest benchmark in a fresh machine; the figures it prints."""
    with Machine(mem=mem) as m:
        p = m.spawn([BENCH, *map(str, args)], stdin=b"", stdout=PIPE, stderr=PIPE)
        m.run(timeout=300)
        if p.exit_status:
            raise RuntimeError(f"bench {args}: exit {p.exit_status}: {p.stderr.decode()}")
        return [float(word) for word in p.stdout.split()]


def best(measure: Callable[[], float], rounds: int = ROUNDS) -> float:
    return min(measure() for _ in range(rounds))


class Row:
    """One bar: what was measured against what, and how far it may be."""

    def __init__(self, name: str, ours: float, bare: float, bar: float, unit: str) -> None:
        self.name, self.ours, self.bare, self.bar, self.unit = name, ours, bare, bar, unit
        self.ratio = ours / bare

    def line(self) -> str:
        verdict = "ok" if self.ratio <= self.bar else "OVER"
        return (
            f"{self.name:46} {self.ours:12.2f} {self.bare:12.2f} {self.unit:5}"
            f"{self.ratio:9.2f} {self.bar:8.2f}  {verdict}"
        )


def bare_handler(order: list[int]) -> float:
    """µs per fault of the bare handler over `order`."""
    return best(lambda: Bare(256 << 20).faults(order)) * 1e6


def compute_loop() -> Row:
    n = 300_000_000

    def ours() -> float:
        start = time.perf_counter()
        guest("loop", n, mem="64M")
        whole = time.perf_counter() - start
        start = time.perf_counter()
        guest("loop", 1, mem="64M")
        return whole - (time.perf_counter() - start)

    return Row(
        "compute loop",
        best(ours),
        best(lambda: Bare(64 << 20).run_elf([BENCH, "loop", str(n)])[0]),
        1.05,
        "s",
    )


def sha256sum() -> Row:
    path = "/tmp/dfvm-bench-data"
    Path(path).write_bytes(random.Random(1).randbytes(24 << 20))

    def ours() -> float:
        with Machine(mem="128M") as m:
            p = m.spawn([BUSYBOX, "sha256sum", path], stdin=b"", stdout=PIPE)
            start = time.perf_counter()
            m.run()
            took = time.perf_counter() - start
            assert p.exit_status == 0
            return took

    try:
        return Row(
            "busybox sha256sum of 24 MiB",
            best(ours),
            best(lambda: Bare(64 << 20).run_elf([BUSYBOX, "sha256sum", path])[0]),
            1.05,
            "s",
        )
    finally:
        os.unlink(path)


def first_touch() -> Row:
    pages = (64 << 20) // 4096
    runs = [guest("touch", pages) for _ in range(ROUNDS)]
    return Row(
        "first touch of 64 MiB in order, a page",
        min(r[0] for r in runs) / 1e3,
        min(r[1] for r in runs) / 1e3,
        2,
        "µs",
    )


def random_fault(handler: float) -> Row:
    runs = [guest("scatter", 16384) for _ in range(ROUNDS)]
    return Row(
        "fault in random order, no prefault", min(r[0] for r in runs) / 1e3, handler, 2.5, "µs"
    )


def getppid(trip: float) -> Row:
    ours = min(guest("getppid", 20_000)[0] for _ in range(ROUNDS)) / 1e3
    return Row("getppid", ours, trip, 2.5, "µs")


def transfers(trip: float) -> list[Row]:
    rows = []
    for what in ("pipe", "file"):
        runs = [guest(what, 200) for _ in range(ROUNDS)]
        for n, verb in enumerate(("read", "write")):
            rows.append(
                Row(f"{verb} of 64 KiB, {what}", min(r[n] for r in runs) / 1e3, trip, 40, "µs")
            )
    return rows


def forks(handler: float) -> list[Row]:
    small = min(guest("fork", 256, 30)[0] for _ in range(ROUNDS)) / 1e3
    large = min(guest("fork", 65536, 8, mem="1G")[0] for _ in range(2)) / 1e3
    return [
        Row("fork + exit + wait, 1 MiB resident", small, handler, 150, "µs"),
        Row("fork + exit + wait, 256 MiB against 1 MiB", large, small, 10, "µs"),
    ]


def growth() -> list[Row]:
    few = [guest("entries", 1_000) for _ in range(ROUNDS)]
    many = [guest("entries", 100_000) for _ in range(2)]
    return [
        Row(f"{what} with 100 000 entries against 1 000", min(r[n] for r in many) / 1e3,
            min(r[n] for r in few) / 1e3, 2, "µs")
        for n, what in enumerate(("fault", "mmap and munmap"))
    ]  # fmt: skip


def start_up() -> Row:
    def timed(*argv: str) -> float:
        start = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    hello = str(ROOT / "guest" / "bin" / "hello")
    command = str(Path(sys.executable).parent / "dfvm")
    ours = best(lambda: timed(command, "run", hello), 10) * 1e3
    bare = best(lambda: timed(sys.executable, "-c", "import unicorn"), 10) * 1e3
    return Row("dfvm run hello against import unicorn", ours, bare, 2, "ms")


BOOT = """
import resource, sys, time
from dfvm import PIPE, Machine
Machine(mem="64M").close()
start = time.perf_counter()
with Machine(mem=sys.argv[1]):
    took = time.perf_counter() - start
    print(took * 1e3, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def boot() -> list[Row]:
    def figures(mem: str) -> tuple[float, float]:
        runs = []
        for _ in range(ROUNDS):
            done = subprocess.run(
                [sys.executable, "-c", BOOT, mem], check=True, capture_output=True, cwd=ROOT
            )
            runs.append(tuple(map(float, done.stdout.split())))
        return min(r[0] for r in runs), min(r[1] for r in runs)

    (small_ms, small_mb), (large_ms, large_mb) = figures("64M"), figures("4G")
    return [
        Row("boot 4G: ms more than 64M (bar in ms)", max(large_ms - small_ms, 0), 1, 50, "ms"),
        Row("boot 4G: MB more than 64M (bar in MB)", max(large_mb - small_mb, 0), 1, 40, "MB"),
    ]


def main() -> int:
    order = [0x2_0000_0000 + i * 4096 for i in range(16384)]
    random.Random(1).shuffle(order)
    handler = bare_handler(order)
    trip = best(lambda: Bare(64 << 20).round_trip()) * 1e6
    rows = [
        compute_loop(),
        sha256sum(),
        first_touch(),
        random_fault(handler),
        getppid(trip),
        *transfers(trip),
        *forks(handler),
        start_up(),
        *growth(),
        *boot(),
    ]
    print(f"bare fault handler {handler:.2f} µs, bare emu_start round trip {trip:.2f} µs\n")
    print(f"{'':46} {'dfvm':>12} {'bare':>12} {'':5}{'ratio':>9} {'bar':>8}")
    for row in rows:
        print(row.line())
    table = [
        {"name": r.name, "ours": r.ours, "bare": r.bare, "ratio": r.ratio, "bar": r.bar,
         "unit": r.unit, "ok": r.ratio <= r.bar}
        for r in rows
    ]  # fmt: skip
    (ROOT / "bench.json").write_text(json.dumps(table, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
