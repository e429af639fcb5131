"""A clock that ticks a hundred times as often as it should must not be noticed by any program."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfvm import PIPE, Machine
from dfvm.machine import cpu


@pytest.mark.parametrize(
    ("argv", "out"),
    [
        (["random_touch", "1024"], b"1024 of 1024\n"),
        (["fork_tree"], b"31 processes\n"),
        (["sig_compute"], None),
        (["code_reuse"], None),
    ],
)
def test_fast_clock(
    argv: list[str], out: bytes | None, guest_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "TICK_NS", 100_000)
    for _ in range(5):
        with Machine(mem="32M", check=True) as m:
            p = m.spawn([str(guest_bin / argv[0]), *argv[1:]], stdin=b"", stdout=PIPE)
            m.run(timeout=60)
            assert p.exit_status == 0
            assert out is None or p.stdout == out
            assert m.kernel.mmu.flushes
