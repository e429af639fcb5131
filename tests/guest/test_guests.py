"""Every guest program, by the host and by dfvm: same output, same exit status.

The machine checks itself along the way and at the end. What only dfvm can show, numbers of faults
and shapes of chains, is asserted in the other files of this directory.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dfvm import PIPE, Machine
from tests.conftest import ROOT
from tests.kern.guest_util import by_host

PROGRAMS = sorted(path.stem for path in (ROOT / "guest").glob("*.c"))
VARIANTS = ["hello_pie", "hello_musl", "cow_fork_musl"]


def by_dfvm(program: Path, *args: str, mem: str = "64M") -> tuple[int, bytes, bytes]:
    with Machine(mem=mem, check=True) as m:
        p = m.spawn([str(program), *args], stdin=b"", stdout=PIPE, stderr=PIPE)
        m.run(timeout=600)
        m.check()
        return p.exit_status, p.stdout, p.stderr


@pytest.mark.parametrize("name", PROGRAMS + VARIANTS)
def test_same_as_host(name: str, guest_bin: Path) -> None:
    program = guest_bin / name
    if not program.exists():
        pytest.skip(f"{name} was not built (no musl-gcc)")
    status, out = by_host(program)
    ours, our_out, our_err = by_dfvm(program)
    assert our_out == out, our_err.decode(errors="replace")
    assert ours == status, our_err.decode(errors="replace")
