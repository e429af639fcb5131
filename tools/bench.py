"""The bars of the project, measured: `make bench`.

Every figure is a ratio of two things measured in this one run, so that it means the same on a slow
machine as on a fast one. The bare side is tools/bare.py: the same engine without any of dfvm. Each
side is measured several times, alternating, and the best of each counts. Runs that last long enough
for the host to do something else meanwhile are measured in CPU time; the guest itself, which has no
such clock, takes the best or the median of many short stretches. Each part runs in a process of its
own. Prints a table and writes bench.json; `--only NAME` measures one part.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dfvm import PIPE, Machine  # noqa: E402
from dfvm.machine.ram import Ram  # noqa: E402
from dfvm.tools.main import GC_THRESHOLDS  # noqa: E402

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


def alternate(*measures: Callable[[], float], rounds: int = ROUNDS) -> list[float]:
    """The best of each, measured in turns."""
    runs = [[measure() for measure in measures] for _ in range(rounds)]
    return [min(column) for column in zip(*runs, strict=True)]


class Row:
    """One bar: what was measured against what, and how far it may be."""

    def __init__(
        self, name: str, ours: float, bare: float, bar: float, unit: str, obstacle: str = ""
    ) -> None:
        self.name, self.ours, self.bare, self.bar, self.unit = name, ours, bare, bar, unit
        self.ratio = ours / bare
        self.obstacle = obstacle  # what stands in the way when the bar is not met

    def line(self) -> str:
        verdict = "ok" if self.ratio <= self.bar else "OVER"
        return (
            f"{self.name:46} {self.ours:12.2f} {self.bare:12.2f} {self.unit:5}"
            f"{self.ratio:9.2f} {self.bar:8.2f}  {verdict}"
        )


BARE_SIDE = """
import random, sys
sys.path.insert(0, ".")
from tools.bare import Bare
argv = sys.argv[2:]
order = [0x2_0000_0000 + i * 4096 for i in range(16384)]
random.Random(1).shuffle(order)
print(eval(sys.argv[1]))
"""


def bare(measure: str, *argv: str) -> float:
    """What the bare engine takes: `measure` is an expression of `Bare`, `order` (of pages, at
    random) and `argv`. In a process of its own, as in this one the engine has our functions."""
    done = subprocess.run(
        [sys.executable, "-c", BARE_SIDE, measure, *argv],
        check=True, stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    return float(done.stdout)


class Yardstick:
    """What the bare engine takes, in µs; measured beside what is held against it."""

    def miss(self) -> float:
        """One first store to a page that is present, in order: a miss of the engine's TLB."""
        return bare("Bare(256 << 20).misses(sorted(order))") * 1e6

    def fresh(self) -> float:
        """What the host takes to come up with a zeroed page of RAM at its first touch; the median
        over stretches of 2 MiB, as the guest's own benchmark has it."""
        ram, touches, clock = Ram(64 << 20), bytes(512), time.perf_counter
        took = []
        for pa in range(0, ram.size, 2 << 20):
            start = clock()
            ram.mem[pa : pa + (2 << 20) : 4096] = touches
            middle = clock()
            ram.mem[pa : pa + (2 << 20) : 4096] = touches
            took.append(2 * middle - start - clock())
        return statistics.median(took) / 512 * 1e6

    def fault(self) -> float:
        """One page fault, in random order."""
        return bare("Bare(256 << 20).faults(order)") * 1e6

    def trip(self) -> float:
        """emu_start to a system call and back."""
        return bare("Bare(64 << 20).round_trip()") * 1e6

    def program(self, argv: list[str]) -> float:
        """Seconds of CPU time that a program takes."""
        return bare("Bare(64 << 20).run_elf(argv)[0]", *argv)


BARE = Yardstick()


def cpu_time(*argv: str, mem: str) -> float:
    """Seconds of CPU time that a program takes, without those of the boot."""
    with Machine(mem=mem) as m:
        p = m.spawn(argv, stdin=b"", stdout=PIPE)
        start = time.process_time()
        m.run()
        took = time.process_time() - start
        assert p.exit_status == 0
        return took


def compute_loop() -> list[Row]:
    argv = [BENCH, "loop", str(200_000_000)]
    ours, bare = alternate(lambda: cpu_time(*argv, mem="64M"), lambda: BARE.program(argv), rounds=5)
    return [Row("compute loop", ours, bare, 1.05, "s")]


def sines() -> list[Row]:
    """glibc's sin, which saves and restores the rounding mode."""
    argv = [BENCH, "sin", str(300_000)]
    ours, theirs = alternate(lambda: cpu_time(*argv, mem="64M"), lambda: BARE.program(argv))
    return [Row("sin, 300 000 times", ours, theirs, 1.5, "s")]


def sha256sum() -> list[Row]:
    with tempfile.NamedTemporaryFile() as f:
        f.write(random.Random(1).randbytes(12 << 20))
        f.flush()
        argv = [BUSYBOX, "sha256sum", f.name]
        ours, bare = alternate(
            lambda: cpu_time(*argv, mem="128M"), lambda: BARE.program(argv), rounds=5
        )
    return [Row("busybox sha256sum of 12 MiB", ours, bare, 1.05, "s")]


def first_touch() -> list[Row]:
    pages = (64 << 20) // 4096
    ours, bare, fresh = alternate(
        lambda: guest("touch", pages)[0] / 1e3, BARE.miss, BARE.fresh, rounds=5
    )
    obstacle = (
        f"a page that is present costs the engine a TLB miss, and the bar leaves {bare:.2f} µs for "
        f"all that a new one takes besides: {fresh:.2f} µs in which the host comes up with zeroed "
        "memory, and a vm_page, its place in object and queue and a PTE, some fifty attribute "
        "stores in Python, to memory that is itself new."
    )
    name = "first touch of 64 MiB in order, a page"
    return [Row(name, ours, bare, 2, "µs", obstacle)]


def random_fault() -> list[Row]:
    ours, bare = alternate(lambda: guest("scatter", 16384)[0] / 1e3, BARE.fault)
    return [Row("fault in random order, no prefault", ours, bare, 2.5, "µs")]


def getppid() -> list[Row]:
    ours, bare = alternate(lambda: guest("getppid", 5_000)[0] / 1e3, BARE.trip)
    return [Row("getppid", ours, bare, 2.5, "µs")]


def transfers() -> list[Row]:
    rows = []
    for what in ("pipe", "file"):
        runs = [(*guest(what, 200), BARE.trip()) for _ in range(ROUNDS)]
        read, write, trip = (min(column) for column in zip(*runs, strict=True))
        rows.append(Row(f"read of 64 KiB, {what}", read / 1e3, trip, 40, "µs"))
        rows.append(Row(f"write of 64 KiB, {what}", write / 1e3, trip, 40, "µs"))
    return rows


def forks() -> list[Row]:
    small, bare, large = alternate(
        lambda: guest("fork", 256, 100)[0] / 1e3,
        BARE.fault,
        lambda: guest("fork", 65536, 30, mem="1G")[0] / 1e3,
    )
    obstacle = (
        "it is 9 faults (5 of them copies), 9 map entries with their chains copied and given back, "
        "6 page-table pages, some 60 PTEs, two switches of space and a thread; no part of it takes "
        "more than a sixth."
    )
    return [
        Row("fork + exit + wait, 1 MiB resident", small, bare, 150, "µs", obstacle),
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


def start_up() -> list[Row]:
    hello = str(ROOT / "guest" / "bin" / "hello")
    command = str(Path(sys.executable).parent / "dfvm")
    with tempfile.TemporaryDirectory() as cache:
        # With the bytecode of both at hand, as after any installation.
        env = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        env.pop("PYTHONDONTWRITEBYTECODE", None)

        def cpu(*argv: str) -> float:
            child = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            assert child.returncode == 0
            return (usage.ru_utime + usage.ru_stime) * 1e3

        ours, bare = alternate(
            lambda: cpu(command, "run", hello),
            lambda: cpu(sys.executable, "-c", "import unicorn"),
            rounds=15,
        )
    return [Row("dfvm run hello against import unicorn", ours, bare, 2, "ms")]


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


PARTS: dict[str, Callable[[], list[Row]]] = {
    "loop": compute_loop,
    "sha256sum": sha256sum,
    "sin": sines,
    "touch": first_touch,
    "scatter": random_fault,
    "getppid": getppid,
    "transfers": transfers,
    "fork": forks,
    "start": start_up,
    "growth": growth,
    "boot": boot,
}


def in_own_process(part: str) -> list[Row]:
    """The rows of one part, measured by a fresh interpreter, as every run of dfvm has one: the
    machines of other parts leave a heap behind in which the next is slower."""
    argv = [sys.executable, __file__, "--only", part, "--json"]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
    return [Row(*fields) for fields in json.loads(done.stdout)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the bars of the project.")
    parser.add_argument("--only", choices=PARTS, help="measure one part, and write no bench.json")
    parser.add_argument("--json", action="store_true", help="with --only: print it for a program")
    args = parser.parse_args()
    gc.set_threshold(*GC_THRESHOLDS)  # as the command does
    if args.only:
        rows = PARTS[args.only]()
        if args.json:
            print(json.dumps([[r.name, r.ours, r.bare, r.bar, r.unit, r.obstacle] for r in rows]))
            return 0
    else:
        rows = [row for part in PARTS for row in in_own_process(part)]
    print(f"{'':46} {'dfvm':>12} {'bare':>12} {'':5}{'ratio':>9} {'bar':>8}")
    for row in rows:
        print(row.line())
    for row in rows:
        if row.ratio > row.bar and row.obstacle:
            print(f"\n{row.name}: {row.ratio:.2f} instead of {row.bar}, because {row.obstacle}")
    if args.only:
        return 0
    table = [
        {"name": r.name, "ours": r.ours, "bare": r.bare, "ratio": r.ratio, "bar": r.bar,
         "unit": r.unit, "ok": r.ratio <= r.bar,
         "obstacle": r.obstacle if r.ratio > r.bar else ""}
        for r in rows
    ]  # fmt: skip
    (ROOT / "bench.json").write_text(json.dumps(table, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
