"""Which encodings there are to choose from: the opcode tables of the manuals, by groups.

A template is an opcode with what may vary about it. Encodings that are no instruction are in it,
too (they have to be #UD on both sides); what can't be compared is named, with the reason, in
`excluded`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAP_1, MAP_0F, MAP_0F38, MAP_0F3A, VEX_0F38, VEX_0F3A = range(6)

NONE: Final = (0,)
ALL: Final = (0, 0x66, 0xF2, 0xF3)


@dataclass(frozen=True, slots=True)
class Template:
    """One opcode. `form` says what follows: n nothing, rm a register or memory, m memory, r a
    register, x the very byte `ext`."""

    group: str
    map: int
    opcode: int
    form: str = "rm"
    ext: int | None = None  # ModRM.reg, where it belongs to the opcode
    imm: str = ""  # b, w, z (2 or 4), v (2, 4 or 8), wb (ENTER), o (an address), rel8, rel32
    prefixes: tuple[int, ...] = NONE  # mandatory ones to choose from
    lock: bool = False  # LOCK is allowed with memory
    hint: str = ""  # values for its operand: f32, f64, f80, text, int, bcd, ptr
    rep: bool = False
    opsize: bool = True  # 66 and REX.W mean something, or at least are tried
    w: int | None = None  # VEX.W


def _alu() -> Iterable[Template]:
    for n in range(8):
        base = n << 3
        lock = n != 7
        for low in range(2):
            yield Template("alu", MAP_1, base + low, lock=lock, hint="int")
            yield Template("alu", MAP_1, base + 2 + low, hint="int")
        yield Template("alu", MAP_1, base + 4, "n", imm="b")
        yield Template("alu", MAP_1, base + 5, "n", imm="z")
        yield Template("alu", MAP_1, 0x80, ext=n, imm="b", lock=lock, hint="int")
        yield Template("alu", MAP_1, 0x81, ext=n, imm="z", lock=lock, hint="int")
        yield Template("alu", MAP_1, 0x83, ext=n, imm="b", lock=lock, hint="int")
    for op in (0x84, 0x85):
        yield Template("alu", MAP_1, op, hint="int")
    yield Template("alu", MAP_1, 0xA8, "n", imm="b")
    yield Template("alu", MAP_1, 0xA9, "n", imm="z")
    for op, imm in ((0xF6, "b"), (0xF7, "z")):
        for ext in (0, 1):
            yield Template("alu", MAP_1, op, ext=ext, imm=imm, hint="int")
        for ext in (2, 3):
            yield Template("alu", MAP_1, op, ext=ext, lock=True, hint="int")
    for op in (0xFE, 0xFF):
        for ext in (0, 1):
            yield Template("alu", MAP_1, op, ext=ext, lock=True, hint="int")
    for op in (0x98, 0x99, 0xF5, 0xF8, 0xF9, 0x9E, 0x9F):
        yield Template("alu", MAP_1, op, "n")


def _shift() -> Iterable[Template]:
    for op in (0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3):
        for ext in range(8):
            yield Template("shift", MAP_1, op, ext=ext, imm="b" if op < 0xD0 else "", hint="int")
    for op in (0xA4, 0xAC):
        yield Template("shift", MAP_0F, op, imm="b", hint="int")
        yield Template("shift", MAP_0F, op + 1, hint="int")


def _muldiv() -> Iterable[Template]:
    for op in (0xF6, 0xF7):
        for ext in range(4, 8):
            yield Template("muldiv", MAP_1, op, ext=ext, hint="int")
    yield Template("muldiv", MAP_1, 0x69, imm="z", hint="int")
    yield Template("muldiv", MAP_1, 0x6B, imm="b", hint="int")
    yield Template("muldiv", MAP_0F, 0xAF, hint="int")


def _bit() -> Iterable[Template]:
    for op in (0xA3, 0xAB, 0xB3, 0xBB):
        yield Template("bit", MAP_0F, op, lock=op != 0xA3, hint="int")
    for ext in range(4, 8):
        yield Template("bit", MAP_0F, 0xBA, ext=ext, imm="b", lock=ext != 4, hint="int")
    for op in (0xBC, 0xBD):
        yield Template("bit", MAP_0F, op, prefixes=(0, 0xF3, 0xF3), hint="int")
    yield Template("bit", MAP_0F, 0xB8, prefixes=(0xF3,), hint="int")
    for op in range(0xC8, 0xD0):
        yield Template("bit", MAP_0F, op, "n")
    for op in (0xF0, 0xF1):
        yield Template("bit", MAP_0F38, op, prefixes=(0, 0xF2), hint="int")


def _mov() -> Iterable[Template]:
    for op in (0x88, 0x89, 0x8A, 0x8B, 0x63):
        yield Template("mov", MAP_1, op, hint="int")
    yield Template("mov", MAP_1, 0x8D, "m")
    for op in range(0xA0, 0xA4):
        yield Template("mov", MAP_1, op, "n", imm="o")
    for op in range(0xB0, 0xC0):
        yield Template("mov", MAP_1, op, "n", imm="b" if op < 0xB8 else "v")
    yield Template("mov", MAP_1, 0xC6, ext=0, imm="b")
    yield Template("mov", MAP_1, 0xC7, ext=0, imm="z")
    for op in (0xB6, 0xB7, 0xBE, 0xBF):
        yield Template("mov", MAP_0F, op, hint="int")
    for op in range(0x40, 0x50):
        yield Template("mov", MAP_0F, op, hint="int")
    for op in range(0x90, 0xA0):
        yield Template("mov", MAP_0F, op)
    yield Template("mov", MAP_0F, 0xC3, "m")
    yield Template("mov", MAP_1, 0xD7, "n")


def _xchg() -> Iterable[Template]:
    for op in (0x86, 0x87):
        yield Template("xchg", MAP_1, op, lock=True, hint="int")
    for op in range(0x90, 0x98):
        yield Template("xchg", MAP_1, op, "n")
    for op in (0xB0, 0xB1, 0xC0, 0xC1):
        yield Template("xchg", MAP_0F, op, lock=True, hint="int")
    yield Template("xchg", MAP_0F, 0xC7, "m", ext=1, lock=True, hint="int")


def _string() -> Iterable[Template]:
    for op in (0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF):
        yield Template("string", MAP_1, op, "n", rep=True)
    for op in (0xFC, 0xFD):
        yield Template("string", MAP_1, op, "n")


def _stack() -> Iterable[Template]:
    for op in range(0x50, 0x60):
        yield Template("stack", MAP_1, op, "n")
    yield Template("stack", MAP_1, 0x68, "n", imm="z")
    yield Template("stack", MAP_1, 0x6A, "n", imm="b")
    yield Template("stack", MAP_1, 0x8F, ext=0)
    yield Template("stack", MAP_1, 0xFF, ext=6, hint="int")
    for op in (0x9C, 0x9D, 0xC9):
        yield Template("stack", MAP_1, op, "n")
    yield Template("stack", MAP_1, 0xC8, "n", imm="wb")
    for op in (0xA0, 0xA1, 0xA8, 0xA9):
        yield Template("stack", MAP_0F, op, "n")


def _branch() -> Iterable[Template]:
    for op in range(0x70, 0x80):
        yield Template("branch", MAP_1, op, "n", imm="rel8")
        yield Template("branch", MAP_0F, op + 0x10, "n", imm="rel32")
    for op in (0xE0, 0xE1, 0xE2, 0xE3, 0xEB, 0xEB):
        yield Template("branch", MAP_1, op, "n", imm="rel8")
    for op in (0xE8, 0xE8, 0xE9, 0xE9):
        yield Template("branch", MAP_1, op, "n", imm="rel32")
    for ext in (2, 2, 4, 4):
        yield Template("branch", MAP_1, 0xFF, ext=ext, hint="ptr")
    yield Template("branch", MAP_1, 0xC3, "n")
    yield Template("branch", MAP_1, 0xC2, "n", imm="w")


def _x87() -> Iterable[Template]:
    hints = {
        0xD8: ["f32"] * 8,
        0xD9: ["f32", "", "f32", "f32", "env", "ctrl", "env", "ctrl"],
        0xDA: ["int"] * 8,
        0xDB: ["int", "int", "int", "int", "", "f80", "", "f80"],
        0xDC: ["f64"] * 8,
        0xDD: ["f64", "int", "f64", "f64", "env", "", "env", "ctrl"],
        0xDE: ["int"] * 8,
        0xDF: ["int", "int", "int", "int", "bcd", "int", "bcd", "int"],
    }
    for op in range(0xD8, 0xE0):
        for ext in range(8):
            yield Template("x87", MAP_1, op, "m", ext=ext, hint=hints[op][ext], opsize=False)
            if op != 0xD9 or ext < 4:
                yield Template("x87", MAP_1, op, "r", ext=ext, opsize=False)
    for modrm in range(0xE0, 0x100):  # FCHS ... FCOS
        yield Template("x87", MAP_1, 0xD9, "x", ext=modrm, opsize=False)
        yield Template("x87", MAP_1, 0xD9, "x", ext=modrm, opsize=False)
    for modrm in range(0xE0, 0xE8):
        yield Template("x87", MAP_1, 0xDB, "x", ext=modrm, opsize=False)
    yield Template("x87", MAP_1, 0xDF, "x", ext=0xE0, opsize=False)
    yield Template("x87", MAP_1, 0x9B, "n")


def _sse() -> Iterable[Template]:
    imm = {0x70, 0x71, 0x72, 0x73, 0xC2, 0xC4, 0xC5, 0xC6}
    floats = {*range(0x10, 0x18), *range(0x28, 0x30), *range(0x51, 0x60), 0xC2, 0xC6, 0x7C, 0x7D}
    floats |= {0xD0, 0xE6}
    for op in [*range(0x10, 0x18), *range(0x28, 0x30), *range(0x50, 0x80), 0xC2, 0xC4, 0xC5, 0xC6,
               *range(0xD0, 0xFF)]:  # fmt: skip
        group = "ssefp" if op in floats else "sse"
        if op == 0x77:
            yield Template("sse", MAP_0F, op, "n")
            continue
        if op in (0x71, 0x72, 0x73):
            for ext in range(8):
                yield Template(
                    group, MAP_0F, op, "r", ext=ext, imm="b", prefixes=(0, 0x66), opsize=False
                )
            continue
        yield Template(
            group, MAP_0F, op, imm="b" if op in imm else "", prefixes=ALL, opsize=False,
            hint="fp" if group == "ssefp" else "",
        )  # fmt: skip


def _sse4() -> Iterable[Template]:
    for op in [*range(0x0C), 0x10, 0x14, 0x15, 0x17, *range(0x1C, 0x1F), *range(0x20, 0x26),
               *range(0x28, 0x2C), *range(0x30, 0x42), *range(0xDB, 0xE0)]:  # fmt: skip
        old = op < 0x0C or 0x1C <= op <= 0x1E  # SSSE3, with MMX forms
        prefixes = (0, 0x66) if old else (0x66, 0x66, 0x66, 0)
        yield Template("sse4", MAP_0F38, op, prefixes=prefixes, opsize=False)
    for op in [*range(0x08, 0x10), *range(0x14, 0x18), 0x20, 0x21, 0x22, 0x40, 0x41, 0x42, 0x44,
               0xDF]:  # fmt: skip
        prefixes = (0, 0x66) if op == 0x0F else (0x66, 0x66, 0x66, 0)
        hint = "fp" if op in (0x08, 0x09, 0x0A, 0x0B, 0x40, 0x41, 0x21) else ""
        yield Template("sse4", MAP_0F3A, op, imm="b", prefixes=prefixes, opsize=False, hint=hint)


def _pcmpstr() -> Iterable[Template]:
    for op in range(0x60, 0x64):
        yield Template("pcmpstr", MAP_0F3A, op, imm="b", prefixes=(0x66,), hint="text")


def _bmi() -> Iterable[Template]:
    for w in (0, 1):
        yield Template("bmi", VEX_0F38, 0xF2, prefixes=(0,), w=w, hint="int")
        for ext in (1, 2, 3):
            yield Template("bmi", VEX_0F38, 0xF3, ext=ext, prefixes=(0,), w=w, hint="int")
        yield Template("bmi", VEX_0F38, 0xF5, prefixes=(0, 0xF2, 0xF3), w=w, hint="int")
        yield Template("bmi", VEX_0F38, 0xF6, prefixes=(0xF2,), w=w, hint="int")
        yield Template("bmi", VEX_0F38, 0xF7, prefixes=ALL, w=w, hint="int")
        yield Template("bmi", VEX_0F3A, 0xF0, prefixes=(0xF2,), imm="b", w=w, hint="int")


def _save() -> Iterable[Template]:
    for ext in (0, 1):
        yield Template("save", MAP_0F, 0xAE, "m", ext=ext, hint="fx")
    for ext in (2, 3):
        yield Template("save", MAP_0F, 0xAE, "m", ext=ext, hint="mxcsr")


def _system() -> Iterable[Template]:
    for op in (0x6C, 0x6D, 0x6E, 0x6F):
        yield Template("system", MAP_1, op, "n", rep=True)
    yield Template("system", MAP_1, 0x8C)
    yield Template("system", MAP_1, 0x8E)
    for op in (0xE4, 0xE5, 0xE6, 0xE7, 0xCD):
        yield Template("system", MAP_1, op, "n", imm="b")
    for op in (0xEC, 0xED, 0xEE, 0xEF, 0xF1, 0xF4, 0xFA, 0xFB, 0xCC):
        yield Template("system", MAP_1, op, "n")
    for ext in range(8):
        yield Template("system", MAP_0F, 0x00, ext=ext)
        yield Template("system", MAP_0F, 0x01, ext=ext)
        yield Template("system", MAP_0F, 0xAE, "r", ext=ext, prefixes=ALL)
        yield Template("system", MAP_0F, 0xC7, ext=ext, prefixes=ALL)
        yield Template("system", MAP_0F, 0x0D, "m", ext=ext)
        yield Template("system", MAP_0F, 0x18, ext=ext)
    for op in (0x02, 0x03, 0x19, 0x1C, 0x1D, 0x1E, 0x1F, 0x20, 0x21, 0x22, 0x23):
        yield Template("system", MAP_0F, op)
    for op in (0x06, 0x07, 0x08, 0x09, 0x0B, 0x30, 0x32, 0x33, 0x35, 0x37, 0xAA):
        yield Template("system", MAP_0F, op, "n")


def _blind() -> Iterable[Template]:
    for op in range(256):
        yield Template("blind", MAP_1, op)
        yield Template("blind", MAP_0F, op, prefixes=ALL)
        yield Template("blind", MAP_0F38, op, prefixes=ALL)
        yield Template("blind", MAP_0F3A, op, prefixes=ALL, imm="b")


TEMPLATES: Final = tuple(
    template
    for table in (
        _alu, _shift, _muldiv, _bit, _mov, _xchg, _string, _stack, _branch, _x87, _sse, _sse4,
        _pcmpstr, _bmi, _save, _system, _blind,
    )
    for template in table()
)  # fmt: skip

# How often a group is chosen.
WEIGHTS: Final = {
    "alu": 10, "shift": 6, "muldiv": 4, "bit": 5, "mov": 6, "xchg": 4, "string": 6, "stack": 6,
    "branch": 5, "x87": 16, "sse": 12, "ssefp": 12, "sse4": 10, "pcmpstr": 4, "bmi": 4, "save": 2,
    "system": 3, "blind": 3,
}  # fmt: skip


def excluded(map_: int, opcode: int, modrm: int, prefix: int) -> str:
    """Why such an instruction can't be compared, or nothing. `prefix` is the mandatory one; `modrm`
    the byte that follows, if any."""
    reg, memory = modrm >> 3 & 7, modrm < 0xC0
    if map_ == MAP_1:
        if opcode in (0xC4, 0xC5, 0x62) or (opcode == 0x8F and reg):
            return "VEX, EVEX and XOP are not promised by the machine's CPUID"
        if opcode in (0x9A, 0xEA, 0xCA, 0xCB, 0xCF) or (opcode == 0xFF and reg in (3, 5)):
            return "far transfers leave the case"
        if opcode == 0xCD and modrm == 0x80:
            return "a system call"
        if opcode == 0xC7 and reg == 7:
            return "TSX"
    elif map_ == MAP_0F:
        if opcode in (0x05, 0x34):
            return "a system call"
        if opcode in (0x31, 0xA2, 0x33):
            return "the time, CPUID and counters are the machine's own"
        if (
            opcode == 0x01
            and not memory
            and (modrm in (0xD0, 0xD5, 0xD6, 0xF9, 0xC8, 0xC9, 0xEE, 0xEF) or modrm >= 0xFA)
        ):
            return "not promised by the machine's CPUID, or its own value (XGETBV, RDTSCP)"
        if opcode == 0xC7 and not memory and reg >= 6:
            return "random numbers"
        if opcode == 0xC7 and memory and reg in (3, 4, 5):
            return "XSAVEC, XSAVES are not promised by the machine's CPUID"
        if opcode == 0xAE and (memory and (reg in (4, 5, 6) or (prefix and reg == 7))):
            return "XSAVE areas depend on XCR0; CLWB, CLFLUSHOPT are not promised"
        if opcode == 0xAE and prefix in (0x66, 0xF2, 0xF3) and reg >= 4:
            return "WAITPKG, PTWRITE and CET are not promised by the machine's CPUID"
        if opcode in (0x78, 0x79) or (opcode == 0x2B and prefix in (0xF2, 0xF3)):
            return "SSE4a is AMD's own"
        if opcode == 0x0F:
            return "3DNow! is AMD's own"
    elif map_ == MAP_0F38:
        if 0xC8 <= opcode <= 0xCF:
            return "SHA and GFNI are not promised by the machine's CPUID"
        if opcode in (0xF5, 0xF6) or opcode >= 0xF8 or opcode == 0xD8:
            return "ADX, MOVDIR and Key Locker are not promised by the machine's CPUID"
        if 0x80 <= opcode <= 0x82:
            return "INVPCID is not promised by the machine's CPUID"
    elif map_ == MAP_0F3A:
        if opcode in (0xCC, 0xCE, 0xCF):
            return "SHA and GFNI are not promised by the machine's CPUID"
    return ""
