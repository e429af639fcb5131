"""Whatever a guest throws at the machine, the machine survives, and its state is clean.

Three kinds of noise: executables that are random bytes or damaged real ones, system calls with
random numbers and arguments, and random memory operations in several processes. Of the machine no
exception is expected, a passing check, and that no descriptor of the host's is left over; of the
guests nothing, but for the memory operations, which know what every byte must be.

A seed that fails: `dfvm run --check guest/bin/sysfuzz SEED 4`, or memfuzz, which runs on the host,
too.
"""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dfvm import PIPE, Machine, Process

SLOW = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def exec_bytes(image: bytes, tmp_path: Path) -> None:
    """Try to run `image`; either it is refused with an errno, or it runs and ends or is ended."""
    path = tmp_path / "image"
    path.write_bytes(image)
    path.chmod(0o755)
    with Machine(mem="32M", check=True) as m:
        try:
            p = m.spawn([str(path)], stdin=b"", stdout=PIPE, stderr=PIPE)
        except OSError:
            m.check()
            return
        try:
            m.run(timeout=2)
        except TimeoutError:
            p.kill(9)
            m.run(timeout=600)
        m.check()


@SLOW
@given(head=st.sampled_from([b"", b"\x7fELF", b"\x7fELF\x02\x01\x01", b"#!", b"#!/bin/"]),
       tail=st.binary(max_size=400))  # fmt: skip
def test_random_bytes_as_program(head: bytes, tail: bytes, tmp_path: Path) -> None:
    exec_bytes(head + tail, tmp_path)


@SLOW
@given(data=st.data())
def test_damaged_elf_as_program(data: st.DataObject, guest_bin: Path, tmp_path: Path) -> None:
    image = bytearray(
        (guest_bin / data.draw(st.sampled_from(["hello_musl", "hello_pie"]))).read_bytes()
    )
    headers = 64 + 56 * int.from_bytes(image[56:58], "little")
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, headers - 1))
        if data.draw(st.booleans()):
            image[at] = data.draw(st.integers(0, 255))
        else:
            at &= ~7
            image[at : at + 8] = data.draw(
                st.sampled_from([0, 1, 4096, 2**31, 2**47, 2**63, 2**64 - 1, 2**64 - 4096])
            ).to_bytes(8, "little")
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image))) :]
    exec_bytes(bytes(image), tmp_path)


def run_seed(program: Path, seed: int, count: str, mem: str) -> Process:
    """Run `program` with a seed to its end; the machine must be well afterwards."""
    before = len(os.listdir("/proc/self/fd"))
    with Machine(mem=mem, check=True) as m:
        p = m.spawn([str(program), str(seed), count], stdin=b"", stdout=PIPE, stderr=PIPE)
        try:
            m.run(timeout=600)
        except TimeoutError:
            raise AssertionError(f"seed {seed}: {m.kernel.sched.deadlock_report()}") from None
        m.check()
    assert len(os.listdir("/proc/self/fd")) == before
    return p


@settings(SLOW, max_examples=8)
@given(seed=st.integers(0, 2**63), mem=st.sampled_from(["8M", "64M"]))
def test_random_system_calls(seed: int, mem: str, guest_bin: Path) -> None:
    p = run_seed(guest_bin / "sysfuzz", seed, "4", mem)
    # With little memory it may be the one that is killed for more.
    assert p.exit_status == 0 or mem == "8M"


@settings(SLOW, max_examples=12)
@example(seed=370)  # code that is also mapped to be read only
@given(seed=st.integers(0, 2**32))
def test_random_memory_operations(seed: int, guest_bin: Path) -> None:
    p = run_seed(guest_bin / "memfuzz", seed, "200", "32M")
    assert p.exit_status == 0, (p.stderr or b"").decode()
