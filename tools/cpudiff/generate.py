"""Makes cases: from a seed and a number always the same one."""

from __future__ import annotations

import re
from random import Random
from typing import Final

import capstone
from capstone import x86 as cs

from tools.cpudiff import values
from tools.cpudiff.case import (
    CODE,
    CODE_ABSENT,
    CODE_NONE,
    CODE_NX,
    CODE_RX,
    CODE_UNMAPPED,
    COW,
    DATA,
    KINDS,
    MAX_PATCHES,
    PAGE,
    PATCH,
    RCX,
    RDI,
    RDX,
    REGS,
    RSI,
    RSP,
    RW,
    SLOT,
    STACK,
    Case,
    Insn,
)  # fmt: skip
from tools.cpudiff.templates import (
    MAP_0F,
    MAP_0F3A,
    MAP_0F38,
    MAP_1,
    TEMPLATES,
    VEX_0F3A,
    VEX_0F38,
    WEIGHTS,
    Template,
    excluded,
)  # fmt: skip
from tools.cpudiff.values import MASK64

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
ALL_FLAGS: Final = CF | PF | AF | ZF | SF | OF

PATTERNS: Final = 8

_ESCAPE: Final = {
    MAP_1: b"", MAP_0F: b"\x0f", MAP_0F38: b"\x0f\x38", MAP_0F3A: b"\x0f\x3a",
}  # fmt: skip


def _register_numbers() -> dict[str, int]:
    numbers = {}
    for n, name in enumerate(REGS):
        numbers[name] = n
        if n >= 8:
            for suffix in "dwb":
                numbers[name + suffix] = n
        else:
            short = name[1:]
            numbers["e" + short] = numbers[short] = n
            numbers[short[0] + "l" if short[1] == "x" else short + "l"] = n
            if short[1] == "x":
                numbers[short[0] + "h"] = n
    return numbers


NUMBER_OF: Final = _register_numbers()

_md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_md.detail = True

# Flags that the manuals call undefined after an instruction, by mnemonic. (AMD64 volume 3 and
# Intel's volume 2; where one of them defines what the other does not, it is undefined here.)
UNDEFINED: Final = {
    "and": AF, "or": AF, "xor": AF, "test": AF,
    "shl": AF, "sal": AF, "shr": AF, "sar": AF, "rol": 0, "ror": 0, "rcl": 0, "rcr": 0,
    "shld": AF, "shrd": AF,
    "mul": SF | ZF | AF | PF, "imul": SF | ZF | AF | PF, "div": ALL_FLAGS, "idiv": ALL_FLAGS,
    "bsf": CF | OF | SF | AF | PF, "bsr": CF | OF | SF | AF | PF,
    "bt": OF | SF | AF | PF, "bts": OF | SF | AF | PF, "btr": OF | SF | AF | PF,
    "btc": OF | SF | AF | PF,
    "tzcnt": OF | SF | AF | PF, "lzcnt": OF | SF | AF | PF,
    "bextr": AF | SF | PF, "bzhi": AF | PF, "blsi": AF | PF, "blsr": AF | PF, "blsmsk": AF | PF,
    "andn": AF | PF,
}  # fmt: skip
# What sets every flag.
_DEFINES: Final = frozenset(
    [
        "add",
        "sub",
        "cmp",
        "adc",
        "sbb",
        "neg",
        "xadd",
        "cmpxchg",
        "popcnt",
        "comiss",
        "comisd",
        "ucomiss",
        "ucomisd",
        "ptest",
        "fcomi",
        "fcompi",
        "fucomi",
        "fucompi",
        "pcmpestri",
        "pcmpestrm",
        "pcmpistri",
        "pcmpistrm",
        "popfq",
        "popf",
        "cmpsb",
        "cmpsw",
        "cmpsd",
        "cmpsq",
        "scasb",
        "scasw",
        "scasd",
        "scasq",
    ]
)
_CONDITIONS: Final = {
    "o": OF, "no": OF, "b": CF, "ae": CF, "e": ZF, "ne": ZF, "be": CF | ZF, "a": CF | ZF,
    "s": SF, "ns": SF, "p": PF, "np": PF, "l": SF | OF, "ge": SF | OF, "le": ZF | SF | OF,
    "g": ZF | SF | OF, "u": PF, "nu": PF, "nbe": CF | ZF, "nb": CF,
}  # fmt: skip


def reads(mnemonic: str) -> int:
    """Flags that an instruction depends on."""
    if mnemonic in ("pushfq", "pushf", "lahf"):
        return ALL_FLAGS
    if mnemonic in ("adc", "sbb", "rcl", "rcr", "cmc", "adcx"):
        return CF
    if mnemonic in ("loope", "loopne"):
        return ZF
    for prefix in ("fcmov", "cmov", "set", "j"):
        if mnemonic.startswith(prefix):
            return _CONDITIONS.get(mnemonic[len(prefix) :], 0)
    return 0


def undefined_after(insns: list[Insn]) -> int:
    """Flags that are undefined after all of these."""
    taint = 0
    for insn in insns:
        taint = taint & ~insn.defined | insn.undefined
    return taint


def clean(insns: list[Insn]) -> bool:
    """Whether none of these depends on a flag that one before left undefined."""
    taint = 0
    for insn in insns:
        if reads(insn.mnemonic) & taint:
            return False
        taint = taint & ~insn.defined | insn.undefined
    return True


def _flags(insn: capstone.CsInsn, name: str) -> tuple[int, int]:
    """(undefined, defined) flags after an instruction."""
    undefined = UNDEFINED.get(name, 0)
    if name in _DEFINES:
        return 0, ALL_FLAGS
    ops = insn.operands
    if name in ("shl", "sal", "shr", "sar", "rol", "ror", "rcl", "rcr"):
        size = ops[0].size * 8
        count = None
        if len(ops) < 2:
            count = 1
        elif ops[1].type == cs.X86_OP_IMM:
            count = ops[1].imm & (63 if size == 64 else 31)
        if count == 0:
            return 0, 0
        if count != 1:
            undefined |= OF
        if name in ("shl", "sal", "shr") and (size < 32 if count is None else count >= size):
            undefined |= CF
        return undefined, 0
    if name in ("shld", "shrd"):
        size = ops[0].size * 8
        count = None
        if ops[-1].type == cs.X86_OP_IMM:
            count = ops[-1].imm & (63 if size == 64 else 31)
        if count == 0:
            return 0, 0
        if count != 1:
            undefined |= OF
        if count is None or count > size:
            undefined |= ALL_FLAGS if size == 16 else 0
        return undefined, 0
    if name in ("imul", "mul"):
        return undefined, CF | OF
    if name in ("and", "or", "xor", "test", "bzhi", "blsi", "blsr", "blsmsk", "andn", "bextr"):
        return undefined, ALL_FLAGS & ~undefined
    if name in ("inc", "dec"):
        return 0, ALL_FLAGS & ~CF
    if name in ("tzcnt", "lzcnt"):
        return undefined, CF | ZF
    if name in ("bt", "bts", "btr", "btc", "stc", "clc"):
        return undefined, CF
    if name == "sahf":
        return 0, ALL_FLAGS & ~OF
    return undefined, 0


class Generator:
    """Makes the cases of one seed; `only`, a regular expression, keeps to groups or mnemonics that
    it matches."""

    def __init__(self, seed: int, only: str = "") -> None:
        self.seed = seed
        rng = Random(f"{seed}:patterns")
        self.patterns = [values.pattern_page(rng) for _ in range(PATTERNS)]
        self._only = re.compile(only) if only else None
        self._templates: dict[str, list[Template]] = {}
        for template in TEMPLATES:
            self._templates.setdefault(template.group, []).append(template)
        if self._only is not None:
            self._keep()

    def _keep(self) -> None:
        """Keep the templates that have given what is wanted."""
        assert self._only is not None
        kept: dict[str, list[Template]] = {}
        rng = Random("keep")
        for group, templates in self._templates.items():
            if self._only.fullmatch(group):
                kept[group] = templates
                continue
            for template in templates:
                maker = _Maker(rng, "")
                for _ in range(12):
                    insn = maker.instruction(template)
                    if insn is not None and self._only.fullmatch(insn.mnemonic):
                        kept.setdefault(group, []).append(template)
                        break
        if not kept:
            raise ValueError(f"nothing matches {self._only.pattern!r}")
        self._templates = kept

    def _wanted(self, insn: Insn, group: str) -> bool:
        only = self._only
        return only is None or bool(only.fullmatch(group) or only.fullmatch(insn.mnemonic))

    def case(self, index: int) -> Case:
        """Case number `index`."""
        rng = Random(f"{self.seed}:{index}")
        maker = _Maker(rng, f"{self.seed}:{index}")
        groups = list(self._templates)
        weights = [WEIGHTS[g] * (len(self._templates[g]) ** 0.5) for g in groups]
        if self._only is None:
            weights = [WEIGHTS[g] for g in groups]
        wanted = rng.choices((1, 2, 3, 4, 6), (45, 25, 15, 10, 5))[0]
        mixed = rng.random() < 0.4
        group = rng.choices(groups, weights)[0]
        insns: list[Insn] = []
        taint = size = tries = 0
        while len(insns) < wanted and tries < 200:
            tries += 1
            if mixed and insns:
                group = rng.choices(groups, weights)[0]
            insn = maker.instruction(rng.choice(self._templates[group]))
            if insn is None or not self._wanted(insn, group) or reads(insn.mnemonic) & taint:
                maker.forget()
                continue
            if size + len(insn.code) >= SLOT - 1:
                break
            maker.commit(insn)
            insns.append(insn)
            size += len(insn.code)
            taint = taint & ~insn.defined | insn.undefined
            if insn.mnemonic == "(bad)":
                break
        return maker.finish(insns)


class _Maker:
    """One case as it comes into being: what is known of its registers and its memory."""

    def __init__(self, rng: Random, name: str) -> None:
        self.rng = rng
        self.name = name
        rand = rng.random
        self.kinds = (RW, RW)
        if rand() < 0.45:
            self.kinds = (rng.randrange(len(KINDS)), rng.randrange(len(KINDS)))
            if rand() < 0.4:
                self.kinds = (RW, self.kinds[1]) if rand() < 0.7 else (self.kinds[0], RW)
        self.fork = rand() < 0.02
        if self.fork:
            self.kinds = (RW, rng.choice((RW, RW, COW)))
        self.patterns = (rng.randrange(PATTERNS), rng.randrange(PATTERNS), rng.randrange(PATTERNS))
        gpr = [values.integer(rng) for _ in REGS]
        gpr[RSP] = STACK + 0x800 + 16 * rng.randrange(8)
        r = rand()
        if r < 0.08:
            gpr[RSP] = (
                DATA + PAGE + rng.randrange(-4, 5) * 8 + (rng.randrange(16) if r < 0.03 else 0)
            )
        elif r < 0.11:
            gpr[RSP] += rng.randrange(1, 16)
        elif r < 0.13:
            gpr[RSP] = values.integer(rng)
        for reg in (RSI, RDI, rng.choice((3, 5, 8, 9)), rng.randrange(10, 16)):
            gpr[reg] = self._place(16)
        if rand() < 0.6:
            gpr[RCX] = rng.choice((0, 1, 2, 3, 4, 7, 8, 17))
        if rand() < 0.4:
            gpr[RDX] = rng.choice((0, 0, 0, 1, MASK64))
        if rand() < 0.1:
            gpr[rng.choice((0, 1, 2, 3, 8, 9))] = CODE + rng.randrange(PAGE)
        self.gpr = gpr
        self.known: dict[int, int] = dict(enumerate(gpr))
        self.rflags = 0x202 | rng.getrandbits(12) & ALL_FLAGS
        if rand() < 0.15:
            self.rflags |= 0x400
        if rand() < 0.04:
            self.rflags |= 0x40000
        self.fx = values.fxsave(rng, plain=rand() < 0.3)
        self.fsbase = rng.choice((0, 0, 0, 0x1000, DATA, 0x7FFF_FFFF_F000, MASK64 - 0xFFF))
        self.gsbase = rng.choice((0, 0, 0, 0x1000, DATA, 0x7FFF_FFFF_F000, MASK64 - 0xFFF))
        self.patches: list[tuple[int, bytes]] = []
        self._pending: tuple[int, int, str] | None = None
        self._written: list[int] = []

    def _place(self, size: int) -> int:
        """An address for an operand of `size` bytes or so."""
        rng = self.rng
        r = rng.random()
        if r < 0.5:
            return DATA + rng.randrange(0, 2 * PAGE - 64, 16)
        if r < 0.7:
            return DATA + rng.randrange(2 * PAGE - 64)
        if r < 0.93:
            return DATA + PAGE - rng.randrange(0, size + 1)
        if r < 0.96:
            return DATA + 2 * PAGE - rng.randrange(0, size + 1)
        if r < 0.98:
            return DATA - rng.randrange(0, size + 1)
        return DATA + rng.choice((0, PAGE - 16, PAGE, 2 * PAGE - 16))

    def _modrm_memory(
        self, reg: int, address32: bool, segment: int, align: int
    ) -> tuple[bytes, int, int | None, int | None]:
        """ModRM and what follows for an operand in memory: (bytes, REX.XB, the address where it is
        relative to RIP, the address where it is known)."""
        rng = self.rng
        r = rng.random()
        target = self._place(rng.choice((8, 16, 16, 28)))
        if rng.random() < 0.15 and self.patches:
            off = rng.choice(self.patches)[0]
            if off < 2 * PAGE:
                target = DATA + off
        if align and rng.random() < 0.9:
            target &= -align
        base_of = self.fsbase if segment == 0x64 else self.gsbase if segment == 0x65 else 0
        want = target - base_of
        if r < 0.03:  # anywhere
            base = rng.randrange(16)
            low = base & 7
            tail = b"\x24" if low == 4 else b""
            disp = rng.randbytes(4)
            return bytes((0x80 | reg << 3 | low,)) + tail + disp, base >> 3, None, None
        if r < 0.1 and not base_of and not address32:
            return bytes((reg << 3 | 5,)) + bytes(4), 0, target, target
        width = 32 if address32 else 64
        if r < 0.15 and 0 <= want < 1 << 31:
            return bytes((reg << 3 | 4, 0x25)) + want.to_bytes(4, "little"), 0, None, target

        def fits(value: int) -> int | None:
            d = (want - value) & (1 << width) - 1
            if d >= 1 << width - 1:
                d -= 1 << width
            return d if -(1 << 31) <= d < 1 << 31 else None

        known = list(self.known.items())
        rng.shuffle(known)
        index = None
        value = 0
        if rng.random() < 0.3:
            for candidate, v in known:
                if candidate != 4 and v < 1 << 24:
                    index, value = candidate, v
                    break
        scale = rng.randrange(4)
        for base, v in known:
            if index is None:
                disp = fits(v)
            else:
                disp = fits(v + (value << scale))
            if disp is None:
                continue
            low = base & 7
            small = -128 <= disp < 128 and rng.random() < 0.9
            size = 1 if small else 4
            mod = 0x40 if small else 0x80
            if disp == 0 and low != 5:
                mod, size = 0, 0
            d = (disp & (1 << 8 * size) - 1).to_bytes(size, "little") if size else b""
            if index is not None:
                sib = scale << 6 | (index & 7) << 3 | low
                return (
                    bytes((mod | reg << 3 | 4, sib)) + d, (index >> 3) << 1 | base >> 3,
                    None, target,
                )  # fmt: skip
            if low == 4:
                return bytes((mod | reg << 3 | 4, 0x24)) + d, base >> 3, None, target
            return bytes((mod | reg << 3 | low,)) + d, base >> 3, None, target
        return bytes((reg << 3 | 5,)) + bytes(4), 0, (target if not base_of else None), None

    def _immediate(self, kind: str, size66: bool, rex_w: bool, address32: bool) -> bytes:
        rng = self.rng
        if not kind or kind.startswith("rel"):
            return b"\0" * {"": 0, "rel8": 1, "rel32": 4}[kind]
        if kind == "wb":
            return (rng.choice((0, 8, 16, 0x100, rng.getrandbits(16)))).to_bytes(
                2, "little"
            ) + bytes((rng.choice((0, 0, 0, 1, 2, 31, rng.getrandbits(8))),))
        if kind == "o":
            return self._place(8).to_bytes(4 if address32 else 8, "little")
        size = {
            "b": 1, "w": 2, "z": 2 if size66 and not rex_w else 4,
            "v": 8 if rex_w else 2 if size66 else 4,
        }[kind]  # fmt: skip
        value = values.integer(rng)
        if kind == "b" and rng.random() < 0.5:
            value = rng.getrandbits(8)
        return (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def instruction(self, t: Template) -> Insn | None:
        """One that `t` allows, or None where the choice was one to leave out."""
        rng = self.rng
        rand = rng.random
        if t.map in (VEX_0F38, VEX_0F3A):
            return self._vex(t)
        mandatory = rng.choice(t.prefixes)
        legacy = []
        size66 = mandatory == 0x66
        if t.opsize and not mandatory and rand() < 0.2:
            legacy.append(0x66)
            size66 = True
        elif rand() < 0.01:
            legacy.append(rng.choice((0x66, 0xF2, 0xF3)))
            size66 |= legacy[-1] == 0x66
        segment = 0
        address32 = False
        if rand() < 0.06:
            segment = rng.choice((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x64, 0x65, 0x65))
            legacy.append(segment)
        if rand() < 0.04:
            address32 = True
            legacy.append(0x67)
        if t.rep and rand() < 0.6:
            legacy.append(rng.choice((0xF2, 0xF3, 0xF3)))
        memory = t.form == "m" or (t.form == "rm" and rand() < 0.55)
        if (t.lock and memory and rand() < 0.25) or rand() < 0.005:
            legacy.append(0xF0)
        rng.shuffle(legacy)
        if mandatory:
            legacy.append(mandatory)
        rex_w = rand() < (0.4 if t.opsize else 0.08)
        rex = 8 if rex_w else 0
        force_rex = rand() < 0.1
        modrm = b""
        rip_target = operand = None
        first = 0
        if t.form != "n":
            reg = t.ext if t.ext is not None else rng.randrange(16)
            if t.form == "x":
                assert t.ext is not None
                modrm = bytes((t.ext,))
            else:
                low_reg = reg & 7
                if t.ext is None and reg >= 8:
                    rex |= 4
                elif t.ext is not None and rand() < 0.03:
                    rex |= 4
                if memory:
                    align = 64 if t.hint == "fx" else 16 if t.map != MAP_1 and rand() < 0.5 else 0
                    modrm, xb, rip_target, operand = self._modrm_memory(
                        low_reg, address32, segment, align
                    )
                    rex |= xb
                else:
                    rm = rng.randrange(16)
                    modrm = bytes((0xC0 | low_reg << 3 | rm & 7,))
                    rex |= rm >> 3
            first = modrm[0]
        elif rand() < 0.3:
            rex |= rng.getrandbits(1)
        imm = self._immediate(t.imm, size66, rex_w, address32)
        if t.form == "n" and imm:
            first = imm[0]
        effective = next((p for p in reversed(legacy) if p in (0xF2, 0xF3)), 0) or (
            0x66 if size66 else 0
        )
        if excluded(t.map, t.opcode, first, effective):
            return None
        if size66 and t.map == MAP_0F and 0xC8 <= t.opcode <= 0xCF and not rex_w:
            return None  # BSWAP of 16 bits: the result is undefined
        head = bytes(legacy)
        if rex or force_rex:
            head += bytes((0x40 | rex,))
        head += _ESCAPE[t.map] + bytes((t.opcode,))
        code = head + modrm + imm
        return self._decode(t, code, len(head) + len(modrm) - 4, rip_target, operand, imm)

    def _vex(self, t: Template) -> Insn | None:
        rng = self.rng
        pp = {0: 0, 0x66: 1, 0xF3: 2, 0xF2: 3}[rng.choice(t.prefixes)]
        reg = t.ext if t.ext is not None else rng.randrange(16)
        rip_target = operand = None
        if rng.random() < 0.5:
            modrm, xb, rip_target, operand = self._modrm_memory(reg & 7, False, 0, 0)
        else:
            rm = rng.randrange(16)
            modrm, xb = bytes((0xC0 | (reg & 7) << 3 | rm & 7,)), rm >> 3
        vvvv = rng.randrange(16)
        if t.map == VEX_0F3A:
            vvvv = 0  # RORX: must be 1111
        rxb = (reg >> 3) << 2 | xb
        assert t.w is not None
        head = bytes(
            (
                0xC4, (~rxb & 7) << 5 | (2 if t.map == VEX_0F38 else 3),
                t.w << 7 | (~vvvv & 15) << 3 | pp, t.opcode,
            )
        )  # fmt: skip
        imm = self._immediate(t.imm, False, False, False)
        return self._decode(
            t, head + modrm + imm, len(head) + len(modrm) - 4, rip_target, operand, imm
        )

    def _decode(
        self, t: Template, code: bytes, fix: int, rip_target: int | None, operand: int | None,
        imm: bytes,
    ) -> Insn | None:  # fmt: skip
        self._written = []
        self._pending = None
        found = next(_md.disasm(code, 0, 1), None)
        if found is None or found.size != len(code):
            name = found.mnemonic.split()[-1] if found is not None else "(bad)"
            text = f"{found.mnemonic} {found.op_str}" if found is not None else code.hex()
            insn = Insn(code, "(bad)" if found is None else name, text)
            insn.undefined = ALL_FLAGS if found is not None else 0
            self._written = list(range(16))
            return insn
        name = found.mnemonic.split()[-1]
        undefined, defined = _flags(found, name)
        insn = Insn(
            code, name, f"{found.mnemonic} {found.op_str}".strip(), undefined=undefined,
            defined=defined,
        )  # fmt: skip
        if rip_target is not None:
            insn.rip_target, insn.fix = rip_target, fix
        if t.imm.startswith("rel"):
            size = len(imm)
            if size == 4 and self.rng.random() < 0.06:
                wild = bytearray(code)
                wild[-4:] = self.rng.randbytes(4)
                insn.code = bytes(wild)
            else:
                insn.skip = self.rng.choice((0, 0, 1, 1, 2))
                insn.fix, insn.fix_size = len(code) - size, size
        try:
            _, written = found.regs_access()
        except capstone.CsError:
            self._written = list(range(16))
            return insn
        self._written = [
            NUMBER_OF[n] for n in map(found.reg_name, written) if n is not None and n in NUMBER_OF
        ]
        if operand is not None:
            insn.operand = operand
            insn.operand_size = next(
                (op.size for op in found.operands if op.type == cs.X86_OP_MEM), 0
            )
            self._pending = (operand, insn.operand_size, t.hint)
        return insn

    def forget(self) -> None:
        self._pending = None
        self._written = []

    def commit(self, insn: Insn) -> None:
        """Take what `instruction` has just made."""
        for reg in self._written:
            self.known.pop(reg, None)
        if self._pending is not None and len(self.patches) < MAX_PATCHES:
            operand, size, hint = self._pending
            if DATA <= operand < DATA + 2 * PAGE and all(
                off != operand - DATA for off, _ in self.patches
            ):
                data = self._operand(hint, size, insn)
                data = data[: 2 * PAGE - (operand - DATA)]
                if data:
                    self.patches.append((operand - DATA, data))
        self.forget()

    def _operand(self, hint: str, size: int, insn: Insn) -> bytes:
        rng = self.rng
        if hint == "int" and size in (1, 2, 4, 8):
            return (values.integer(rng) & (1 << 8 * size) - 1).to_bytes(size, "little")
        if hint == "f32":
            return values.f32(rng).to_bytes(4, "little")
        if hint == "f64":
            return values.f64(rng).to_bytes(8, "little")
        if hint == "f80":
            return values.f80(rng)
        if hint == "ptr":
            return (CODE + rng.randrange(PAGE)).to_bytes(8, "little")
        if hint == "text":
            return values.text(rng)
        if hint == "mxcsr":
            return values.fxsave(rng, plain=False)[24:28]
        if hint == "ctrl":
            return values.fxsave(rng, plain=False)[0:2]
        if hint == "bcd":
            return bytes(rng.randrange(10) << 4 | rng.randrange(10) for _ in range(9)) + bytes(
                (rng.choice((0, 0x80)),)
            )
        if hint == "fp":
            kind = "f64" if insn.mnemonic.endswith("d") else "f32"
            return values.xmm(rng, kind)[: size or 16]
        if hint == "fx":
            return values.fxsave(rng, plain=False)[:PATCH]
        return values.xmm(rng)[: size or 16] if size <= 16 else b""

    def finish(self, insns: list[Insn]) -> Case:
        rng = self.rng
        case = Case(
            self.name, insns, self.gpr, self.rflags, self.fx, self.fsbase, self.gsbase, self.kinds,
            self.patterns, self.patches, self.fork,
        )  # fmt: skip
        if rng.random() < 0.06:
            case.border = rng.choice(
                (CODE_RX, CODE_NX, CODE_NONE, CODE_UNMAPPED, CODE_UNMAPPED, CODE_ABSENT)
            )
            case.border_at = rng.randrange(1, case.length + 1)
        return case
