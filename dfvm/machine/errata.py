"""What the engine gets wrong about instructions, put right.

    AVX and all else that is encoded with VEX or XOP, except BMI: the engine does not know it, and
        executes the SSE or other instruction that the rest of the encoding looks like. It has to
        be an invalid opcode, as CPUID promises no such thing.
    Floating-point exceptions: the engine collects them, but not where a program looks for them. So
        they are brought to MXCSR and the x87 status word before an instruction that reads these,
        and forgotten before one that sets or clears them.

Such instructions are looked for in each block of code that the engine has just translated, which
costs a search for a few bytes, and the engine is told to call before those that are found. Code
without them runs as ever.

Not put right: an exception that is unmasked does not trap; x87 takes 0/0 for a division by zero,
too; FPREM raises nothing; no operand is ever denormal.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dfvm.machine.pte import PG_FRAME, PG_V
from dfvm.machine.x86_length import MAP_0F, MAP_0F3A, MAP_0F38, MAP_1, Insn

if TYPE_CHECKING:
    from dfvm.machine.engine import Engine
    from dfvm.machine.mmu import Mmu
    from dfvm.machine.ram import Ram

# What has to be done before an instruction.
REFUSE: Final = 1  # it is an invalid opcode
GATHER: Final = 2  # it reads MXCSR or the x87 status: bring the exceptions there
FORGET_SSE: Final = 4  # it sets MXCSR
FORGET_X87: Final = 8  # it sets the x87 status, or clears it

# Code without any of this has no such instruction: a VEX prefix and an opcode that there is with it
# (two bytes long, and three, by its field for the map), XOP, and what is in the tables below. The
# end counts, as a block ends where the engine takes an instruction for a shorter one.
_SUSPECT: Final = re.compile(
    rb"\xc5.(?:[\x10-\x17\x28-\x2f\x41-\x4b\x50-\x7f\x90-\x9b\xae\xc2\xc4-\xc6\xd0-\xff]|$)"
    rb"|\xc4[\x01-\x03\x21-\x23\x41-\x43\x61-\x63\x81-\x83\xa1-\xa3\xc1-\xc3\xe1-\xe3]"
    rb"|\x8f[\x08-\x0a\x28-\x2a\x48-\x4a\x68-\x6a\x88-\x8a\xa8-\xaa\xc8-\xca\xe8-\xea]"
    rb"|\x0f\xae[\x00-\x1f\x40-\x5f\x80-\x9f]"
    rb"|[\xd9\xdd][\x20-\x3f\x60-\x7f\xa0-\xbf]|\xdf\xe0|\xdb[\xe2\xe3]",
    re.DOTALL,
)

_suspect: Final = _SUSPECT.search

_BMI: Final = frozenset(
    [(MAP_0F38, opcode) for opcode in (0xF2, 0xF3, 0xF5, 0xF6, 0xF7)] + [(MAP_0F3A, 0xF0)]
)
# With an operand in memory, by opcode and the register field of ModRM.
_IN_MEMORY: Final = {
    (MAP_0F, 0xAE, 0): GATHER,  # FXSAVE
    (MAP_0F, 0xAE, 1): FORGET_SSE | FORGET_X87,  # FXRSTOR
    (MAP_0F, 0xAE, 2): FORGET_SSE,  # LDMXCSR
    (MAP_0F, 0xAE, 3): GATHER,  # STMXCSR
    (MAP_1, 0xD9, 4): FORGET_X87,  # FLDENV
    (MAP_1, 0xD9, 6): GATHER,  # FNSTENV
    (MAP_1, 0xDD, 4): FORGET_X87,  # FRSTOR
    (MAP_1, 0xDD, 6): GATHER,  # FNSAVE
    (MAP_1, 0xDD, 7): GATHER,  # FNSTSW
}
# By opcode and ModRM.
_OTHERS: Final = {
    (MAP_1, 0xDF, 0xE0): GATHER,  # FNSTSW AX
    (MAP_1, 0xDB, 0xE2): FORGET_X87,  # FNCLEX
    (MAP_1, 0xDB, 0xE3): FORGET_X87,  # FNINIT
}

_EXCEPTIONS: Final = 0x3F  # in MXCSR, the status word, and, as masks, in the control word
_MAX_WATCHED: Final = 256  # each is one more comparison per instruction that is translated


def remedy(insn: Insn) -> int:
    """What has to be done before `insn`; 0 for nearly all."""
    if insn.vex:
        return 0 if (insn.map, insn.opcode) in _BMI else REFUSE
    modrm = insn.modrm
    if modrm >= 0xC0:
        return _OTHERS.get((insn.map, insn.opcode, modrm), 0)
    return _IN_MEMORY.get((insn.map, insn.opcode, modrm >> 3 & 7), 0)


def sites(code: bytes) -> list[int]:
    """Where in a block of code something has to be done."""
    found, at, end = [], 0, len(code)
    code += bytes(16)  # an instruction that the engine takes for a shorter one ends there
    while at < end:
        insn = Insn(code, at)
        if remedy(insn):
            found.append(at)
        at = insn.end
    return found


class Errata:
    """The remedies of one engine."""

    __slots__ = ("_engine", "_mem", "_mmu", "_q", "_watched", "stale")

    stale: tuple[int, int] | None  # (address, size) of a block that has to be translated again
    _watched: set[int]  # addresses, in whatever space, of instructions that the engine calls for

    def __init__(self, engine: Engine, mmu: Mmu, ram: Ram) -> None:
        self._engine = engine
        self._mmu = mmu
        self._mem = ram.mem
        self._q = ram.q
        self._watched = set()
        self.stale = None

    def translated(self, pc: int, size: int) -> bool:
        """A block of code was translated. Whether it must not be executed as it is: it is `stale`,
        and the engine has to stop for `retranslate`."""
        code = self._code(pc, size)
        if _suspect(code) is None:
            return False
        new = [pc + at for at in sites(code) if pc + at not in self._watched]
        if not new:
            return False
        engine = self._engine
        if len(self._watched) + len(new) > _MAX_WATCHED:
            self._watched.clear()
            engine.unwatch()
            self._mmu.need_flush = self._mmu.need_flush_code = True
        for address in new:
            self._watched.add(address)
            engine.watch(address)
        self.stale = pc, size
        return True

    def retranslate(self) -> None:
        """Have the stale block translated again, now with what was found in it. The engine stands:
        it looks for the block by way of its TLB, which the clock must not be about to poison."""
        assert self.stale is not None
        self._engine.forget_block(*self.stale)
        self.stale = None

    def before(self, pc: int) -> bool:
        """The instruction at `pc` is next, which is watched, in this space or another. Whether it
        is to be refused."""
        try:
            todo = remedy(Insn(self._code(pc, 15), 0))
        except IndexError:
            return False
        if todo & GATHER:
            self.gather()
        if todo & FORGET_SSE:
            self._engine.b[self._engine.o_sse_exceptions] = 0
        if todo & FORGET_X87:
            self._engine.b[self._engine.o_x87_exceptions] = 0
        return bool(todo & REFUSE)

    def gather(self) -> None:
        """Bring exceptions to where a program looks for them."""
        engine, b = self._engine, self._engine.b
        b[engine.o_mxcsr] |= b[engine.o_sse_exceptions] & _EXCEPTIONS
        raised = b[engine.o_x87_exceptions] & _EXCEPTIONS
        if raised:
            b[engine.o_x87_exceptions] = 0
            b[engine.o_fpuc - 2] |= raised
            if raised & ~b[engine.o_fpuc]:  # unmasked: ES and B
                b[engine.o_fpuc - 2] |= 0x80
                b[engine.o_fpuc - 1] |= 0x80

    def _code(self, va: int, size: int) -> bytes:
        """Code in the space that is loaded; less of it where there is no page."""
        # A table that is not there leads to frame 0, which is never used: all zeros.
        q = self._q
        entry = q[(self._mmu.cr3 >> 3) + (va >> 39 & 511)]
        entry = q[((entry & PG_FRAME) >> 3) + (va >> 30 & 511)]
        entry = q[((entry & PG_FRAME) >> 3) + (va >> 21 & 511)]
        entry = q[((entry & PG_FRAME) >> 3) + (va >> 12 & 511)]
        if not entry & PG_V:
            return b""
        offset = va & 4095
        pa = entry & PG_FRAME | offset
        if offset + size <= 4096:
            return self._mem[pa : pa + size].tobytes()
        n = 4096 - offset
        return self._mem[pa : pa + n].tobytes() + self._code(va + n, size - n)
