"""The VCPU on hand-made page tables: what stops it, what it leaves behind, what it flushes.

Every test writes a few instructions into RAM and runs them in ring 3.
"""

from __future__ import annotations

import signal
import struct
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from dfvm.machine import cpu as c
from dfvm.machine.cpu import CpuContext, Vcpu
from dfvm.machine.engine import Engine
from dfvm.machine.mmu import Mmu
from dfvm.machine.pte import PG_A, PG_M, PG_NX, PG_RW, PG_U, PG_V
from dfvm.machine.ram import Ram
from dfvm.machine.reg import RAX, RBX, RCX, RDI, RDX, RIP, RSI, X86_TRAP_DB

CODE = 0x40_0000
DATA = 0x50_0000


class Bench:
    """A VCPU, one address space made by hand, and a frame allocator that only counts up."""

    def __init__(self, ram_bytes: int = 16 << 20) -> None:
        self.ram = Ram(ram_bytes)
        self.mmu = Mmu()
        self.vcpu = Vcpu(self.ram, self.mmu)
        self.next = 0x1000
        self.cr3 = self.frame()
        self.ctx = CpuContext(self.vcpu, self.frame(), self.frame())

    def frame(self) -> int:
        self.next += 0x1000
        return self.next - 0x1000

    def pte(self, va: int) -> int:
        """Index of the PTE of `va` in ram.q, tables made on the way."""
        table = self.cr3
        for shift in (39, 30, 21):
            at = (table >> 3) + (va >> shift & 511)
            if not self.ram.q[at]:
                self.ram.q[at] = self.frame() | PG_V | PG_RW | PG_U
            table = self.ram.q[at] & ~0xFFF
        return (table >> 3) + (va >> 12 & 511)

    def map(self, va: int, flags: int) -> int:
        pa = self.frame()
        self.ram.q[self.pte(va)] = pa | flags | PG_V | PG_U
        return pa

    def code(self, hexa: str) -> None:
        text = bytes.fromhex(hexa)
        pa = self.map(CODE, 0)
        self.ram.mem[pa : pa + len(text)] = text
        self.ctx.q[RIP] = CODE

    def run(self, slice_ns: int = 0) -> int:
        return self.vcpu.run(self.ctx, self.cr3, slice_ns)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_syscall_leaves_arguments_and_the_next_rip(bench: Bench) -> None:
    bench.code("b827000000 0f05 ffc0 0f05")  # mov eax,39; syscall; inc eax; syscall
    assert bench.run() == c.EXIT_SYSCALL
    assert bench.ctx.q[RAX] == 39
    assert bench.ctx.q[RIP] == CODE + 7
    bench.ctx.q[RAX] = 1000
    assert bench.run() == c.EXIT_SYSCALL
    assert bench.ctx.q[RAX] == 1001


@pytest.mark.parametrize(
    ("setup", "text", "error"),
    [
        (None, "488b07", 4),  # mov rax,[rdi]: absent
        (None, "488907", 6),  # mov [rdi],rax: absent
        (PG_NX, "488907", 7),  # write to a read-only page
        (PG_NX | PG_RW, "ffe7", 0x15),  # jmp rdi into a no-execute page
    ],
)
def test_page_fault_tells_address_and_error_code(
    bench: Bench, setup: int | None, text: str, error: int
) -> None:
    bench.code(text)
    if setup is not None:
        bench.map(DATA, setup)
    bench.ctx.q[RDI] = DATA + 8
    assert bench.run() == c.EXIT_FAULT
    assert (bench.vcpu.fault_va, bench.vcpu.fault_err) == (DATA + 8, error)


def test_null_jump_faults(bench: Bench) -> None:
    bench.code("31ff ffe7")  # xor edi,edi; jmp rdi
    assert bench.run() == c.EXIT_FAULT
    assert (bench.vcpu.fault_va, bench.vcpu.fault_err) == (0, 0x14)


def test_fault_resolved_in_the_callback_does_not_leave(bench: Bench) -> None:
    bench.code("488907 488b0e 0f05")  # mov [rdi],rax; mov rcx,[rsi]; syscall
    bench.ctx.q[RDI], bench.ctx.q[RSI] = DATA, DATA + 0x1000
    bench.ctx.q[RAX] = 0x1234
    seen = []

    def resolve(va: int, error: int) -> bool:
        seen.append((va, error))
        bench.map(va & ~0xFFF, PG_RW | PG_NX)
        return True

    bench.vcpu.on_fault = resolve
    assert bench.run() == c.EXIT_SYSCALL
    assert seen == [(DATA, 6), (DATA + 0x1000, 4)]
    pte = bench.ram.q[bench.pte(DATA)]
    assert pte & (PG_A | PG_M) == PG_A | PG_M, "the walk sets A and D"
    assert bench.ram.q[bench.pte(DATA + 0x1000)] & (PG_A | PG_M) == PG_A
    assert bench.ram.mem[(pte & 0xFFFFF000) : (pte & 0xFFFFF000) + 2] == b"\x34\x12"


def test_exception_in_the_callback_comes_out_of_run(bench: Bench) -> None:
    bench.code("488907 0f05")
    bench.ctx.q[RDI] = DATA

    def resolve(va: int, error: int) -> bool:
        raise LookupError("here")

    bench.vcpu.on_fault = resolve
    with pytest.raises(LookupError, match="here"):
        bench.run()


def test_exception_that_leaves_a_callback_comes_out_of_run(bench: Bench) -> None:
    """As one of a signal handler's may, which runs where Python likes."""
    bench.code("0f05 ebfe")  # syscall; jmp to itself

    def on_syscall() -> None:
        raise LookupError("here")

    bench.vcpu.engine.on_syscall = on_syscall
    before = sys.unraisablehook
    with pytest.raises(LookupError, match="here"), bench.vcpu.catching():
        bench.run()
    assert sys.unraisablehook is before


@pytest.mark.parametrize(
    ("text", "vector", "rip"),
    [
        ("31c9 f7f1", 0, 2),  # xor ecx,ecx; div ecx
        ("cc", 3 | c.INT, 1),  # int3: RIP behind it
        ("cd04", 4 | c.INT, 2),  # into's gate
        ("cd06", 13, 0),  # int 6: not an invalid opcode
        ("cd0e", 13, 0),  # int 14: not a page fault
        ("0f0b", 6, 0),  # ud2
        ("f4", 13, 0),  # hlt in ring 3
        ("cd80", 13, 0),  # int 0x80
        ("ffc0 e460 ffc3 fec3", 13, 2),  # in al,60h, after which nothing has happened
    ],
)
def test_other_exceptions(bench: Bench, text: str, vector: int, rip: int) -> None:
    bench.code(text)
    assert bench.run() == c.EXIT_EXCEPTION
    assert bench.vcpu.exception == vector
    assert bench.ctx.q[RIP] == CODE + rip
    if text.startswith("cd") and vector == 13:
        assert bench.vcpu.exception_err == int(text[2:], 16) * 8 + 2


def test_lost_right_is_seen_after_stale(bench: Bench) -> None:
    bench.code("488907 0f05 ebf9")  # l: mov [rdi],rax; syscall; jmp l
    bench.ctx.q[RDI] = DATA
    bench.map(DATA, PG_RW)
    assert bench.run() == c.EXIT_SYSCALL
    bench.ram.q[bench.pte(DATA)] &= ~PG_RW
    bench.mmu.stale(bench.cr3)
    assert bench.run() == c.EXIT_FAULT
    assert bench.vcpu.fault_err == 7


def test_overwritten_code_runs_as_new(bench: Bench) -> None:
    bench.code("b801000000 0f05 ebf7")  # l: mov eax,1; syscall; jmp l
    assert bench.run() == c.EXIT_SYSCALL
    assert bench.ctx.q[RAX] == 1
    pa = bench.ram.q[bench.pte(CODE)] & 0xFFFFF000
    bench.mmu.code_frames.add(pa >> 12)
    bench.mmu.code_written(pa >> 12)
    bench.ram.mem[pa + 1] = 2
    assert bench.run() == c.EXIT_SYSCALL
    assert bench.ctx.q[RAX] == 2


def test_slice_ends_by_the_clock(bench: Bench) -> None:
    bench.code("ebfe")
    bench.vcpu.start_clock()
    try:
        start = time.perf_counter()
        assert bench.run(slice_ns=50_000_000) == c.EXIT_PREEMPTED
        assert time.perf_counter() - start > 0.03
    finally:
        bench.vcpu.stop_clock()


def test_contexts_keep_their_registers(bench: Bench) -> None:
    bench.code("ffc0 0f05 ebfa")  # l: inc eax; syscall; jmp l
    other = CpuContext(bench.vcpu, bench.frame(), bench.frame())
    other.q[RIP], other.q[RAX] = CODE, 100
    for n in (1, 2, 3):
        assert bench.run() == c.EXIT_SYSCALL
        assert bench.vcpu.run(other, bench.cr3, 0) == c.EXIT_SYSCALL
        assert (bench.ctx.q[RAX], other.q[RAX]) == (n, 100 + n)
    child = CpuContext(bench.vcpu, bench.frame(), bench.frame())
    child.copy_from(other)
    bench.vcpu.run(child, bench.cr3, 0)
    assert (child.q[RAX], other.q[RAX]) == (104, 103)


def test_flags_and_thread_bases(bench: Bench) -> None:
    bench.code("31c0 0f05 64488b00 0f05")  # xor eax,eax; syscall; mov rax,fs:[rax]; syscall
    assert bench.run() == c.EXIT_SYSCALL
    assert bench.ctx.eflags & 0x44 == 0x44, "ZF and PF after xor"
    bench.ctx.eflags = 0xFFFF_FFFF
    assert bench.ctx.eflags & 0x0003_3000 == 0, "no IOPL, NT, RF, VM from a program"
    bench.ctx.eflags = 0
    pa = bench.map(DATA, PG_RW)
    bench.ram.mem[pa + 16 : pa + 24] = struct.pack("<Q", 77)
    bench.ctx.fs_base, bench.ctx.q[RAX] = DATA, 16
    assert bench.run() == c.EXIT_SYSCALL
    assert bench.ctx.q[RAX] == 77


def test_fxsave_is_what_the_instruction_writes(bench: Bench) -> None:
    # fld1; fldpi; movd xmm5,eax; fxsave [rdi]; syscall; fxrstor [rsi]; fxsave [rdi]; syscall
    bench.code("d9e8 d9eb 660f6ee8 0fae07 0f05 0fae0e 0fae07 0f05")
    pa = bench.map(DATA, PG_RW)
    bench.ctx.q[RDI], bench.ctx.q[RSI] = DATA, DATA + 1024
    bench.ctx.q[RAX] = 0xDEAD_BEEF
    assert bench.run() == c.EXIT_SYSCALL
    image = bytes(bench.ram.mem[pa : pa + 512])
    ours = bench.ctx.fxsave()

    def same(a: bytes, b: bytes) -> bool:
        return a[0:5] == b[0:5] and a[24:28] == b[24:28] and a[32:416] == b[32:416]

    assert same(ours, image)
    changed = bytearray(ours)
    changed[0:2] = b"\x7f\x0f"  # round towards zero
    changed[160:176] = bytes(range(16))
    bench.ctx.fxrstor(bytes(changed))
    assert same(bench.ctx.fxsave(), bytes(changed))
    with pytest.raises(ValueError, match="reserved"):
        bench.ctx.fxrstor(bytes(24) + b"\0\0\1\0" + bytes(484))


def test_breakpoint_on_the_stack_of_exceptions(bench: Bench) -> None:
    """Many faults in a row never become a double fault."""
    bench.code("488907 4881c700100000 ebf4")  # l: mov [rdi],rax; add rdi,4096; jmp l
    bench.ctx.q[RDI] = DATA
    for n in range(20):
        assert bench.run() == c.EXIT_FAULT
        assert bench.vcpu.fault_va == DATA + n * 4096
        bench.map(DATA + n * 4096, PG_RW)


def test_ticks_reach_who_makes_system_calls_all_the_time(bench: Bench) -> None:
    """A tick that comes together with another exit, or while the kernel runs, is not lost: a
    thread that never computes for a tick on end could not be preempted."""
    bench.code("0f05 ebfc")  # l: syscall; jmp l
    bench.vcpu.start_clock()
    try:
        for ticks in range(3):
            for _ in range(10_000_000):
                if bench.run(slice_ns=c.TICK_NS) == c.EXIT_PREEMPTED:
                    break
                assert bench.ctx.q[RIP] == CODE + 2
            else:
                pytest.fail(f"ten million system calls, and only {ticks} ticks")
    finally:
        bench.vcpu.stop_clock()


def test_bad_ram_size() -> None:
    with pytest.raises(ValueError, match="2 MiB"):
        Ram(12345)


def test_clock_stops_between_instructions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the clock hits, everything before RIP has been executed once and nothing behind."""
    monkeypatch.setattr(c, "TICK_NS", 100_000)
    monkeypatch.setattr(c, "KICK_NS", 1_000_000)  # no memory access here that it could hit
    # l: inc rax; jmp 1f; 1: inc rbx; jmp 2f; 2: inc rcx; jmp l
    bench.code("48ffc0 eb00 48ffc3 eb00 48ffc1 ebf1")
    bench.vcpu.start_clock()
    try:
        seen = set()
        for _ in range(300):
            assert bench.run(slice_ns=1) == c.EXIT_PREEMPTED
            q = bench.ctx.q
            at = q[RIP] - CODE
            seen.add(at)
            assert q[RAX] - q[RBX] == (1 if at in (3, 5) else 0), f"at {at}"
            assert q[RBX] - q[RCX] == (1 if at in (8, 10) else 0), f"at {at}"
    finally:
        bench.vcpu.stop_clock()


def test_clock_loses_no_single_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every instruction that is stepped is told, also when the clock hits meanwhile."""
    monkeypatch.setattr(c, "TICK_NS", 50_000)
    bench.code("48ffc0 48ffc0 48ffc0 ebf5")  # l: inc rax; inc rax; inc rax; jmp l
    bench.ctx.eflags = 0x100
    bench.vcpu.start_clock()
    try:
        at = 0
        for _ in range(20_000):
            why = bench.run(slice_ns=1)
            if why == c.EXIT_EXCEPTION:
                assert bench.vcpu.exception == X86_TRAP_DB
                at = {0: 3, 3: 6, 6: 9, 9: 0}[at]
            assert bench.ctx.q[RIP] == CODE + at
    finally:
        bench.vcpu.stop_clock()


@pytest.mark.parametrize("text", ["480117", "f0480117", "f0480fc117"])
def test_clock_repeats_no_store(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """add [rdi],rdx and its kin run once each, though the clock hits while the host looks for
    memory: every page is the first one touched in a large page of the host's."""
    monkeypatch.setattr(c, "TICK_NS", 50_000)
    bench = Bench(256 << 20)
    body = bytes.fromhex(text) + bytes.fromhex("4881c700100000")  # …; add rdi,4096; jmp back
    if text.endswith("c117"):
        body = bytes.fromhex("ba01000000") + body  # xadd changes rdx: mov edx,1
    bench.code((body + bytes([0xEB, 256 - len(body) - 2])).hex())
    bench.ctx.q[RDI], bench.ctx.q[RDX] = DATA, 1
    frames = list(range(4 << 20, 250 << 20, 2 << 20))
    left = iter(frames)

    def resolve(va: int, error: int) -> bool:
        pa = next(left, None)
        if pa is None or error & 0x10:
            return False
        bench.ram.q[bench.pte(va)] = pa | PG_V | PG_U | PG_RW
        return True

    bench.vcpu.on_fault = resolve
    bench.vcpu.start_clock()
    try:
        assert bench.run() == c.EXIT_FAULT
    finally:
        bench.vcpu.stop_clock()
    assert {bench.ram.q[pa >> 3] for pa in frames} == {1}
    assert bench.mmu.flushes


def test_no_flush_while_the_clock_poisons(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush may free the memory that the clock thread is about to write to."""
    monkeypatch.setattr(c, "TICK_NS", 1_000_000)
    steps = []
    poison, flush = Engine.poison, bench.vcpu.engine.flush_tlb

    def slow_poison(engine: Engine) -> None:
        steps.append("poison")
        time.sleep(0.002)  # somebody else on the host has the processor, and we not the GIL
        poison(engine)
        steps.append("poisoned")

    monkeypatch.setattr(Engine, "poison", slow_poison)
    bench.vcpu.engine.flush_tlb = lambda: (steps.append("flush"), flush())[1]
    bench.code("0f05 ebfc")  # l: syscall; jmp l
    bench.vcpu.start_clock()
    try:
        while steps.count("poisoned") < 20:
            bench.mmu.need_flush = True
            assert bench.run() == c.EXIT_SYSCALL
    finally:
        bench.vcpu.stop_clock()
    assert "flush" in steps
    assert {b for a, b in pairwise(steps) if a == "poison"} == {"poisoned"}


def test_clock_repeats_no_store_that_it_missed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the clock poisons, an access that has just walked the page tables may yet enter its page
    in the TLB, and go on there for ever."""
    monkeypatch.setattr(c, "TICK_NS", 100_000)
    monkeypatch.setattr(c, "KICK_NS", 1_000_000)
    poison, missed = Engine.poison, []

    def missing(engine: Engine) -> None:
        if len(missed) % 2:
            poison(engine)
        missed.append(engine)

    monkeypatch.setattr(Engine, "poison", missing)
    bench.map(DATA, PG_RW)
    pa = bench.ram.q[bench.pte(DATA)] & 0xFFFFF000
    bench.code("480117 48ffc1 ebf8")  # l: add [rdi],rdx; inc rcx; jmp l
    bench.ctx.q[RDI], bench.ctx.q[RDX] = DATA, 1
    bench.vcpu.start_clock()
    try:
        for _ in range(100):
            assert bench.run(slice_ns=1) == c.EXIT_PREEMPTED
            done = bench.ctx.q[RIP] == CODE + 3
            assert bench.ram.q[pa >> 3] - bench.ctx.q[RCX] == done
    finally:
        bench.vcpu.stop_clock()


def test_clock_takes_no_signals(bench: Bench) -> None:
    bench.vcpu.start_clock()
    try:
        clock = next(t for t in threading.enumerate() if t.name == "dfvm clock")
        status = Path(f"/proc/self/task/{clock.native_id}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT, signal.SIGWINCH):
            assert blocked >> (sig - 1) & 1
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        bench.vcpu.stop_clock()
