"""Several processes at the same memory and the same files: the machine stays well, and what is in a
file is what somebody has written there.

Two guests (guest/fuzz/): sharefuzz does everything to everything and looks at no result, filefuzz
knows of each word of a file whether it belongs there. Both run as they are, and with storage, user
memory and page allocation that sleep where they may (`slow`), which brings one into the middle of
what another does: that is how a truncation meets a fault, a read, a write or an unlock.

A run is the same again: nothing depends on the clock, as nobody is preempted here, and what is slow
is so by the seed. So a failure is repeated by the test's own name, say

    pytest "tests/fuzz/test_share_fuzz.py::test_shared[sharefuzz-slow-17]"

and SHARE_SEEDS=1000:2000 in the environment has it try other seeds than a few small ones. On the
host: guest/bin/filefuzz SEED 150.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from dfvm import PIPE, Machine
from dfvm.kern import trap
from dfvm.lwkt.lwkt_thread import Scheduler
from tests.kern.slow_util import Slow, slow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPERATIONS = "150"  # of each of five processes
FEW = {("sharefuzz", "slow"): 24, ("sharefuzz", "fast"): 10,
       ("filefuzz", "slow"): 12, ("filefuzz", "fast"): 5}  # fmt: skip


def runs() -> Iterator[tuple[str, str, int]]:
    given = os.environ.get("SHARE_SEEDS")
    for (guest, speed), few in FEW.items():
        first, end = map(int, given.split(":")) if given else (0, few)
        for seed in range(first, end):
            yield guest, speed, seed


@pytest.mark.parametrize(("guest", "speed", "seed"), list(runs()))
def test_shared(
    guest: str, speed: str, seed: int, guest_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scheduler, "hardclock", lambda self: False)
    monkeypatch.setattr(trap, "CHECK_FAULTS", 100)
    how = Slow(read=0.5, write=0.4, fault=0.3, memory=0.02, turns=(1, 3), seed=seed)
    with Machine(mem="64M", check=True) as m:
        argv = [str(guest_bin / guest), str(seed), OPERATIONS]
        p = m.spawn(argv, stdin=b"", stdout=PIPE, stderr=PIPE)
        with slow(m, how) if speed == "slow" else nullcontext():
            try:
                m.run(timeout=60)
            except TimeoutError:
                raise AssertionError(m.kernel.sched.deadlock_report()) from None
        m.check()
        assert p.exit_status == 0, (p.stderr or b"").decode()
