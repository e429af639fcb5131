"""Where an instruction of 64-bit x86 ends and where its opcode is: as much of a disassembler as is
needed to go through code from one instruction to the next, at once and without loading one.

Opcodes that do not exist get the length that their place in the map suggests; who executes them
learns of it from the processor.
"""

from __future__ import annotations

from typing import Final

# Maps, as the bytes before the opcode select them.
MAP_1: Final = 0  # none
MAP_0F: Final = 1
MAP_0F38: Final = 2
MAP_0F3A: Final = 3

_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_VEX_MAPS: Final = {1: MAP_0F, 2: MAP_0F38, 3: MAP_0F3A, 8: MAP_0F3A}

# What follows an opcode: a ModRM byte, and an immediate operand of some size.
_MODRM: Final = 1
_BYTE: Final = 2
_WORD: Final = 4
_LONG: Final = 8  # 4 bytes; 2 with prefix 66
_QUAD: Final = 16  # as _LONG; 8 with REX.W
_ADDRESS: Final = 32  # 8 bytes; 4 with prefix 67
_TEST: Final = 64  # an immediate for two of the eight instructions that share the opcode


def _map(**groups: str) -> bytes:
    """What follows each opcode of a map, from lists of opcodes and ranges "first-last"."""
    follows = bytearray(256)
    for name, ranges in groups.items():
        for item in ranges.split():
            first, _, last = item.partition("-")
            for opcode in range(int(first, 16), int(last or first, 16) + 1):
                follows[opcode] |= globals()[f"_{name}"]
    return bytes(follows)


_FOLLOWS: Final = (
    _map(
        MODRM="00-03 08-0b 10-13 18-1b 20-23 28-2b 30-33 38-3b 62-63 69 6b 80-8f c0-c1 c4-c7 d0-d3 "
        "d8-df f6-f7 fe-ff",
        BYTE="04 0c 14 1c 24 2c 34 3c 6a-6b 70-80 82-83 a8 b0-b7 c0-c1 c6 c8 cd d4-d5 e0-e7 eb",
        WORD="c2 c8 ca",
        LONG="05 0d 15 1d 25 2d 35 3d 68-69 81 a9 c7 e8-e9",
        QUAD="b8-bf",
        ADDRESS="a0-a3",
        TEST="f6-f7",
    ),
    _map(
        MODRM="00-03 0d 0f-2f 38-76 78-7f 90-9f a3-a7 ab-c7 d0-ff",
        BYTE="0f 70-73 a4 ac ba c2 c4-c6",
        LONG="80-8f",
    ),
    _map(MODRM="00-ff"),
    _map(MODRM="00-ff", BYTE="00-ff"),
)


class Insn:
    """One instruction in a buffer of code."""

    __slots__ = ("end", "map", "modrm", "opcode", "vex")

    end: int  # index behind its last byte; may lie beyond the buffer
    map: int  # MAP_*
    opcode: int
    modrm: int  # -1: it has none
    vex: bool  # encoded with VEX or XOP

    def __init__(self, code: bytes, at: int) -> None:
        """Decode the instruction at index `at`.

        :raises IndexError: when the code ends before its length is known.
        """
        wide = short = narrow = False
        opcode = code[at]
        while True:
            if opcode & 0xF0 == 0x40:
                wide = opcode & 8 != 0
            elif opcode in _PREFIXES:
                short |= opcode == 0x66
                narrow |= opcode == 0x67
                wide = False
            else:
                break
            at += 1
            opcode = code[at]
        at += 1
        self.vex = False
        self.map = MAP_1
        if opcode == 0x0F:
            self.map, opcode = MAP_0F, code[at]
            at += 1
            if opcode in (0x38, 0x3A):
                self.map, opcode = (MAP_0F38 if opcode == 0x38 else MAP_0F3A), code[at]
                at += 1
        elif opcode == 0xC5:
            self.vex, self.map, opcode = True, MAP_0F, code[at + 1]
            at += 2
        elif opcode == 0xC4 or (opcode == 0x8F and code[at] & 0x38):
            self.vex, self.map = True, _VEX_MAPS.get(code[at] & 0x1F, MAP_0F38)
            opcode = code[at + 2]
            at += 3
        self.opcode = opcode
        self.modrm = -1
        follows = _FOLLOWS[self.map][opcode]
        if follows & _MODRM:
            self.modrm = modrm = code[at]
            at += 1
            if modrm < 0xC0:
                at += _operand(code, at, modrm)
            if follows & _TEST and not modrm & 0x30:
                follows |= _BYTE if opcode == 0xF6 else _LONG
        if follows & ~_MODRM:
            at += _immediate(follows, wide, short, narrow)
        self.end = at


def _operand(code: bytes, at: int, modrm: int) -> int:
    """Bytes that belong to an operand in memory, behind the ModRM byte, which is before `at`."""
    mod, rm = modrm >> 6, modrm & 7
    size = (0, 1, 4)[mod]
    if rm == 4:
        size += 1
        rm = code[at]  # the SIB byte, whose base is encoded alike
    if mod == 0 and rm & 7 == 5:
        size += 4
    return size


def _immediate(follows: int, wide: bool, short: bool, narrow: bool) -> int:
    """Bytes of the immediate operand. `wide`: REX.W; `short`, `narrow`: prefixes 66 and 67."""
    size = 0
    if follows & _BYTE:
        size = 1
    if follows & _WORD:
        size += 2
    if follows & (_LONG | _QUAD):
        size += 8 if wide and follows & _QUAD else 2 if short and not wide else 4
    if follows & _ADDRESS:
        size += 4 if narrow else 8
    return size
