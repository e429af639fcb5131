"""tools/cpu_diff.py: a short run of it, and that it would say so if something differed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tools import cpu_diff
from tools.cpudiff import execute, known
from tools.cpudiff.generate import Generator

ROOT = Path(__file__).resolve().parent.parent.parent


def test_some_thousand_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a seed. Where a processor may do as it likes, makers differ: see the table."""
    status = cpu_diff.main(["--seed", "3", "--count", "4000", "--show", "5"])
    assert status == 0, capsys.readouterr().out


def test_a_seed_gives_the_same_sequences() -> None:
    one, two = Generator(5, ""), Generator(5, "")
    assert [one.case(i) for i in range(200)] == [two.case(i) for i in range(200)]
    assert Generator(6, "").case(0) != one.case(0)


def test_a_difference_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit of a register of one sequence, in the machine."""
    run = execute.run

    def wrong(cases, patterns, *, guest):  # type: ignore[no-untyped-def]
        found = run(cases, patterns, guest=guest)
        if guest:
            gpr = list(found[7].gpr)
            gpr[3] ^= 1 << 40
            found[7] = replace(found[7], gpr=tuple(gpr))
        return found

    monkeypatch.setattr(cpu_diff, "run", wrong)
    generator = Generator(3, "")
    cases = [generator.case(i) for i in range(20)]
    found = cpu_diff.differing(generator, cases)
    assert [[d.what for d in diffs] for diffs in found] == [
        ["rbx"] if i == 7 else [] for i in range(20)
    ]
    assert known.explained(cases[7], found[7]) is None


def test_the_table_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "engine.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text.partition("## What stays different")[2], re.M)
    assert rows[1:] == [(name, reason) for name, reason, _ in known.KNOWN]
