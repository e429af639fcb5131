"""Run instruction sequences made at random on the host's processor and in a machine, and compare
all that a program can see: registers, flags, XMM, x87, memory, the signal, its code and address,
the error code, and where it stands.

    tools/cpu_diff.py --count 5000                 five thousand sequences
    tools/cpu_diff.py --seed 7 --index 353 --show 1    one of them, with all that differs
    tools/cpu_diff.py --only '^fsin|^fcos' --show 3    sequences of these instructions

The same seed gives the same sequences. The exit status is 1 when something differs that
cpudiff/known.py does not explain.
"""

from __future__ import annotations

import argparse
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.cpudiff.case import CODE_KINDS, KINDS, REGS, Case  # noqa: E402
from tools.cpudiff.compare import Difference, compare  # noqa: E402
from tools.cpudiff.execute import run  # noqa: E402
from tools.cpudiff.generate import Generator, clean  # noqa: E402
from tools.cpudiff.known import explained  # noqa: E402

CHUNK = 2000  # cases that one run of the runner takes

Found = tuple[Case, list[Difference]]


def differing(generator: Generator, cases: list[Case]) -> list[list[Difference]]:
    """What differs in each case."""
    host = run(cases, generator.patterns, guest=False)
    guest = run(cases, generator.patterns, guest=True)
    return [
        compare(case, generator.patterns, a, b)
        for case, a, b in zip(cases, host, guest, strict=True)
    ]


def without(case: Case, n: int) -> Case:
    """`case` without its nth instruction."""
    seed, index, *kept = case.name.split(":")
    left = kept[0].split(",") if kept else [str(i) for i in range(len(case.insns))]
    name = f"{seed}:{index}:{','.join(left[:n] + left[n + 1 :])}"
    return replace(case, name=name, insns=case.insns[:n] + case.insns[n + 1 :])


def minimize(generator: Generator, found: list[Found]) -> list[Found]:
    """Shorten each of the cases that differ as long as it still does."""
    work, final = found, []
    while work:
        trials = [
            [s for n in range(len(case.insns)) if clean((s := without(case, n)).insns)]
            if len(case.insns) > 1
            else []
            for case, _ in work
        ]
        flat = [trial for mine in trials for trial in mine]
        results = iter(differing(generator, flat) if flat else [])
        again: list[Found] = []
        for (case, diffs), mine in zip(work, trials, strict=True):
            better = [(trial, d) for trial in mine if (d := next(results))]
            if better:
                again.append(better[0])
            else:
                final.append((case, diffs))
        work = again
    return final


def chunk(seed: int, only: str, indexes: Sequence[int], shorten: bool) -> list[Found]:
    """The cases that differ, of some of a seed's."""
    generator = Generator(seed, only)
    cases = [generator.case(i) for i in indexes]
    found = [(c, d) for c, d in zip(cases, differing(generator, cases), strict=True) if d]
    return minimize(generator, found) if shorten and found else found


def show(case: Case, diffs: list[Difference]) -> str:
    """A case for people: what it starts from, its code, and what differs."""
    one, two = case.kinds
    title = f"case {case.name}  pages {KINDS[one]}, {KINDS[two]}"
    if case.fork:
        title += ", in a child"
    if case.border is not None:
        title += f", a border {case.border_at} bytes in, then {CODE_KINDS[case.border]}"
    lines = [title]
    starts, code = case.starts(), case.code(case.rip)
    for at, insn in zip(starts, case.insns, strict=False):
        raw = code[at - case.rip : at - case.rip + len(insn.code)]
        op = f"   ; [{insn.operand:#x}] {insn.operand_size}" if insn.operand is not None else ""
        lines.append(f"  {at:#x}  {raw.hex():30} {insn.text}{op}")
    lines.append("  " + " ".join(f"{n}={v:#x}" for n, v in zip(REGS, case.gpr, strict=True)))
    fcw, fsw, ftw = struct.unpack_from("<HHB", case.fx)
    (mxcsr,) = struct.unpack_from("<I", case.fx, 24)
    lines.append(
        f"  rflags={case.rflags:#x} fs={case.fsbase:#x} gs={case.gsbase:#x} "
        f"fcw={fcw:#x} fsw={fsw:#x} ftw={ftw:#x} mxcsr={mxcsr:#x}"
    )
    lines += [f"  patch {off:#x}: {data.hex()}" for off, data in case.patches]
    used = " ".join(i.text for i in case.insns)
    for n in range(16):
        if f"xmm{n}" in used:
            lines.append(f"  xmm{n}={case.fx[160 + 16 * n : 176 + 16 * n][::-1].hex()}")
    if any(i.mnemonic.startswith("f") or "mm" in i.text for i in case.insns):
        for n in range(8):
            d = case.fx[32 + 16 * n : 42 + 16 * n][::-1].hex()
            lines.append(f"  st{n}={d[:4]}:{d[4:]}")
    return "\n".join(lines + [f"    {d}" for d in diffs])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="what the sequences are made from")
    parser.add_argument("--count", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the index of the first")
    parser.add_argument("--index", type=int, help="this one only")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run at a time")
    parser.add_argument("--only", default="", help="of instructions that this expression finds")
    parser.add_argument("--show", type=int, default=0, help="so many examples of each group")
    parser.add_argument(
        "--minimize", action="store_true", help="leave out instructions that it takes none of"
    )
    args = parser.parse_args(argv)
    indexes: Sequence[int] = range(args.first, args.first + args.count)
    if args.index is not None:
        indexes = [args.index]
    chunks = [indexes[i : i + CHUNK] for i in range(0, len(indexes), CHUNK)]
    n = len(chunks)
    begin = time.monotonic()
    with ProcessPoolExecutor(args.jobs) as pool:
        parts = pool.map(chunk, [args.seed] * n, [args.only] * n, chunks, [args.minimize] * n)
        found = [one for part in parts for one in part]
    names = Counter(explained(case, diffs) for case, diffs in found)
    new = names.pop(None, 0)
    took = time.monotonic() - begin
    print(f"{len(indexes)} sequences, {new} differ, and {len(found) - new} as known; {took:.0f} s")
    for name, count in names.most_common():
        print(f"{count:6} known: {name}")
    groups: dict[str, list[Found]] = {}
    for case, diffs in found:
        if explained(case, diffs) is None:
            groups.setdefault(" ; ".join(i.mnemonic for i in case.insns), []).append((case, diffs))
    for key, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        kinds = Counter(k for _, d in members for k in {x.kind for x in d})
        print(f"{len(members):6} {key:30} " + ", ".join(f"{k} {c}" for k, c in kinds.most_common()))
        for case, diffs in members[: args.show]:
            print(show(case, diffs))
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
