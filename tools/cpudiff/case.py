"""A case: a state of the processor, pages of data, a few instructions; and a batch file of them.

The layouts are those of runner.c. Addresses are fixed: the data pages at DATA (two, side by side,
with nothing around them), a stack page at STACK, code from CODE on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

PAGE: Final = 4096
DATA: Final = 0x10000000
STACK: Final = 0x10010000
CODE: Final = 0x20000000

REGS: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)

# Kinds of a data page, by their numbers in runner.c.
KINDS: Final = (
    "rw", "absent", "ro", "none", "unmapped", "cow", "private", "shared", "beyond", "ro-absent",
)  # fmt: skip
RW, ABSENT, RO, NONE, UNMAPPED, COW, PRIVATE, SHARED, BEYOND, RO_ABSENT = range(10)

# Kinds of the page after a page of code.
CODE_KINDS: Final = ("rx", "nx", "none", "unmapped", "absent", "rwx")
CODE_RX, CODE_NX, CODE_NONE, CODE_UNMAPPED, CODE_ABSENT, CODE_RWX = range(6)

SLOT: Final = 128  # bytes of code a case may take, its int3 included
_PER_PAGE: Final = PAGE // SLOT
MAX_CODE_PAGES: Final = PAGE - 48

FORK: Final = 1
MAX_PATCHES: Final = 4
PATCH: Final = 64
_PATCH: Final = struct.Struct(f"<II{PATCH}s")
_HEAD: Final = struct.Struct("<6Q")
_STATE: Final = struct.Struct("<20Q8B")
_MAGIC: Final = 0x6664_7570_6366_6400


@dataclass(slots=True)
class Insn:
    """One instruction, as far as it is known before it has its place."""

    code: bytes
    mnemonic: str
    text: str  # disassembly, at address 0
    rip_target: int | None = None  # what the disp32 at `fix` is to name, relative to RIP
    skip: int | None = None  # a branch: over so many instructions
    fix: int = 0  # where in `code` the displacement is
    fix_size: int = 4
    undefined: int = 0  # flags that it leaves undefined
    defined: int = 0  # flags that it sets or clears
    operand: int | None = None  # address of its operand in memory, where it is known
    operand_size: int = 0


@dataclass(slots=True)
class Case:
    """A sequence and all that it starts from."""

    name: str  # SEED:INDEX, with the instructions kept where some were left out
    insns: list[Insn]
    gpr: list[int]
    rflags: int
    fx: bytes
    fsbase: int
    gsbase: int
    kinds: tuple[int, int]
    patterns: tuple[int, int, int]
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    fork: bool = False
    border: int | None = None  # the kind of the page after the code's; None: not at a border
    border_at: int = 0  # how many bytes of the code lie in the page before the border, from its end
    rip: int = 0  # where it was put

    def code(self, at: int) -> bytes:
        """The instructions, as they are at address `at`, with the int3 that ends them."""
        starts = [0]
        for insn in self.insns:
            starts.append(starts[-1] + len(insn.code))
        out = bytearray()
        for n, insn in enumerate(self.insns):
            code = bytearray(insn.code)
            end = starts[n + 1]
            target = None
            if insn.rip_target is not None:
                target = insn.rip_target - (at + end)
            elif insn.skip is not None:
                target = starts[min(n + 1 + insn.skip, len(self.insns))] - end
            if target is not None:
                size = insn.fix_size
                code[insn.fix : insn.fix + size] = (target & (1 << 8 * size) - 1).to_bytes(
                    size, "little"
                )
            out += code
        return bytes(out) + b"\xcc"

    @property
    def length(self) -> int:
        return sum(len(insn.code) for insn in self.insns) + 1

    def starts(self) -> list[int]:
        """Address of each instruction, and of the int3."""
        at = [self.rip]
        for insn in self.insns:
            at.append(at[-1] + len(insn.code))
        return at

    def record(self) -> bytes:
        head = _STATE.pack(
            *self.gpr, self.rflags, self.rip, self.fsbase, self.gsbase,
            *self.kinds, *self.patterns, FORK if self.fork else 0, len(self.patches), 0,
        )  # fmt: skip
        patches = b"".join(_PATCH.pack(off, len(data), data) for off, data in self.patches)
        return (self.fx + head + patches).ljust(1024, b"\0")


def batch(cases: list[Case], patterns: list[bytes]) -> bytes:
    """The file that the runner reads. Sets each case's `rip`."""
    pages: list[bytearray] = [bytearray(b"\xcc" * PAGE)]  # the first: where jumps may land
    kinds = [CODE_RX]
    slots: list[tuple[int, int]] = []
    for case in cases:
        if case.border is not None:
            pages += [bytearray(b"\xcc" * PAGE), bytearray(b"\xcc" * PAGE)]
            kinds += [CODE_RX, case.border]
            at = PAGE - min(case.border_at, case.length)
            case.rip = CODE + (len(pages) - 2) * PAGE + at
            code = case.code(case.rip)
            here = code[: PAGE - at]
            pages[-2][at : at + len(here)] = here
            rest = code[len(here) :]
            pages[-1][: len(rest)] = rest
        else:
            if not slots:
                pages.append(bytearray(b"\xcc" * PAGE))
                kinds.append(CODE_RX)
                slots = [(len(pages) - 1, n * SLOT) for n in reversed(range(_PER_PAGE))]
            page, at = slots.pop()
            case.rip = CODE + page * PAGE + at
            code = case.code(case.rip)
            assert len(code) <= SLOT, case
            pages[page][at : at + len(code)] = code
    # Nothing can be fetched behind the last.
    if len(pages) > MAX_CODE_PAGES:
        raise ValueError("too many cases for one batch")
    off_recs = PAGE
    off_patterns = (off_recs + len(cases) * 1024 + PAGE - 1) // PAGE * PAGE
    off_code = off_patterns + len(patterns) * PAGE
    head = _HEAD.pack(_MAGIC, len(cases), off_recs, off_patterns, off_code, len(pages))
    out = bytearray((head + bytes(kinds)).ljust(PAGE, b"\0"))
    for case in cases:
        out += case.record()
    out = out.ljust(off_patterns, b"\0")
    for pattern in patterns:
        out += pattern
    for page_bytes in pages:
        out += page_bytes
    return bytes(out)


# What changed: the runner's numbers.
CHANGE_OF: Final = ("memory", "file", "parent", "beneath")
_RESULT: Final = struct.Struct("<6I4Q16Q3Q2Q4H512s")
_CHANGE: Final = struct.Struct("<IIQ")
_RESULT_MAGIC: Final = 0x43505544


@dataclass(slots=True)
class Result:
    """What became of a case."""

    sig: int
    code: int
    status: int  # wait status of the child, where the case ran in one
    addr: int
    err: int
    trapno: int
    cr2: int
    gpr: tuple[int, ...]
    rflags: int
    rip: int
    segs: tuple[int, ...]  # cs and ss as in the signal frame, ds, es, fs, gs
    fsbase: int
    gsbase: int
    fx: bytes
    changes: dict[tuple[str, int], int]  # (of what, address) → the eight bytes there


def address_of(off: int) -> int:
    """The address of an offset into the three data pages."""
    return DATA + off if off < 2 * PAGE else STACK + off - 2 * PAGE


def results(out: bytes) -> dict[int, Result]:
    """What a run of the runner wrote, by the number of the case; an unfinished last one is left
    out."""
    found: dict[int, Result] = {}
    at = 0
    while at + _RESULT.size <= len(out):
        (magic, index, sig, code, n, status, addr, err, trapno, cr2, *rest) = _RESULT.unpack_from(
            out, at
        )
        if magic != _RESULT_MAGIC:
            raise ValueError(f"no result at {at}")
        at += _RESULT.size
        if at + n * _CHANGE.size > len(out):
            break
        changes = {}
        for _ in range(n):
            off, what, value = _CHANGE.unpack_from(out, at)
            changes[CHANGE_OF[what], address_of(off)] = value
            at += _CHANGE.size
        gpr, (rflags, rip, csss, fsbase, gsbase, ds, es, fs, gs, fx) = rest[:16], rest[16:]
        segs = (csss & 0xFFFF, csss >> 48, ds, es, fs, gs)
        found[index] = Result(
            sig, code, status, addr, err, trapno, cr2, tuple(gpr), rflags, rip, segs,
            fsbase, gsbase, fx, changes,
        )  # fmt: skip
    return found
