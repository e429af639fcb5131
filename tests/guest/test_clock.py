"""A clock that ticks a hundred times as often as it should must not be noticed by any program."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dfvm import PIPE, Machine
from dfvm.machine import cpu
from dfvm.machine.engine import Engine


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
            m.run(timeout=600)
            assert p.exit_status == 0
            assert out is None or p.stdout == out
            assert m.kernel.mmu.flushes


def test_no_flush_while_the_clock_is_at_work(
    guest_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush gives the engine's TLB back and makes another. The clock thread, which writes to it,
    must never be half way through that: here it takes its time."""
    poison = Engine.poison
    at_work = 0
    clashes = []

    def slow_poison(engine: Engine) -> None:
        nonlocal at_work
        at_work = 1
        time.sleep(0.002)  # without the GIL: the engine comes back meanwhile
        poison(engine)
        at_work = 0

    monkeypatch.setattr(cpu, "TICK_NS", 1_000_000)
    monkeypatch.setattr(Engine, "poison", slow_poison)
    with Machine(mem="64M", check=True) as m:
        engine = m.kernel.vcpu.engine
        flush = engine.flush_tlb

        def watched_flush() -> None:
            clashes.append(at_work)
            flush()

        engine.flush_tlb = watched_flush
        p = m.spawn([str(guest_bin / "tlb_sizes")], stdin=b"", stdout=PIPE)
        m.run(timeout=600)
        assert p.exit_status == 0
        assert len(clashes) > 5_000
        assert not any(clashes)
