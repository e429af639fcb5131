"""What stays different, and why: rows that docs/engine.md has too. A case whose differences one row
explains is counted by that row and is no failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tools.cpudiff.case import CODE_ABSENT, Case
from tools.cpudiff.compare import Difference

Row = tuple[str, str, Callable[[Case, list[Difference]], bool]]

# Where a fault is, and of what kind: what differs when two of an instruction compete.
FAULT: Final = {"si_addr", "si_code", "cr2", "error code", "signal", "trapno"}
X87: Final = {"x87", "x87 empty", "fsw", "ftw"}
STATE: Final = (
    "fxsave", "fxsave64", "fxrstor", "fxrstor64", "fnsave", "frstor", "fldenv", "fnstenv", "xsave",
    "xsave64", "xrstor", "xrstor64", "xsaveopt", "xsaveopt64", "maskmovdqu", "maskmovq",
)  # fmt: skip
SYSTEM: Final = ("sgdt", "sidt", "sldt", "str", "smsw")
VIRTUAL: Final = (
    "skinit", "stgi", "clgi", "vmmcall", "vmcall", "vmload", "vmrun", "vmsave", "invlpga",
    "vmlaunch", "vmresume", "vmxoff",
)  # fmt: skip


def _any(case: Case, names: tuple[str, ...]) -> bool:
    return any(insn.mnemonic.split()[-1] in names for insn in case.insns)


def _only(diffs: list[Difference], *kinds: str) -> bool:
    return {d.kind for d in diffs} <= set(kinds)


def _inexact(d: Difference) -> bool:
    return d.kind == "mxcsr" and int(d.host, 16) ^ int(d.guest, 16) == 0x20


KNOWN: Final[tuple[Row, ...]] = (
    (
        "FXSAVE, FNSAVE, XSAVE, MASKMOVDQU and their kin on a bad page",
        "processors differ in which byte they name: AMD's the last one, dfvm the first",
        lambda case, diffs: _any(case, STATE) and _only(diffs, *FAULT),
    ),
    (
        "INT1",
        "a trap behind itself, as on a processor; below some hypervisors RIP stands before it",
        lambda case, diffs: _any(case, ("int1",)) and _only(diffs, "rip", *FAULT),
    ),
    (
        "CALL to an address that can't be one",
        "faults where it stands, but has written the return address below RSP",
        lambda case, diffs: _any(case, ("call",)) and _only(diffs, "memory"),
    ),
    (
        "SGDT, SIDT, SLDT, STR, SMSW",
        "the values that Linux makes up with UMIP, by the engine: other widths, other faults",
        lambda case, diffs: (
            _any(case, SYSTEM) and _only(diffs, "memory", "register", "rip", *FAULT)
        ),
    ),
    (
        "SKINIT, VMMCALL and their kin",
        "invalid opcodes: no virtualisation is promised",
        lambda case, diffs: _any(case, VIRTUAL) and _only(diffs, "rip", *FAULT),
    ),
    (
        "underflow that traps",
        "dfvm flags that the result is inexact, too; processors do where it is so without bounds",
        lambda case, diffs: all(_inexact(d) for d in diffs),
    ),
    (
        "BSF, BSR of zero",
        "undefined; AMD's leave all of the register, the engine clears its upper half",
        lambda case, diffs: _any(case, ("bsf", "bsr")) and _only(diffs, "register"),
    ),
    (
        "SHLD, SHRD of 16 bits by more than 16",
        "undefined",
        lambda case, diffs: (
            _any(case, ("shld", "shrd")) and _only(diffs, "register", "memory", "flag")
        ),
    ),
    (
        "conversions to MMX registers that trap",
        "have entered the MMX state",
        lambda case, diffs: (
            any(i.mnemonic.startswith("cvt") and i.mnemonic.endswith("pi") for i in case.insns)
            and _only(diffs, *X87)
        ),
    ),
    (
        "CMPS",
        "which of two bad addresses is named; flags of the elements before one that faults",
        lambda case, diffs: (
            any("cmps" in i.mnemonic for i in case.insns) and _only(diffs, "flag", *FAULT)
        ),
    ),
    (
        "code before a page that was never touched",
        "not understood: one sequence of some thousands goes on in another way behind the border",
        lambda case, diffs: case.border == CODE_ABSENT,
    ),
    (
        "an unaligned access that also has another fault",
        "which of the two is found first, with EFLAGS.AC",
        lambda case, diffs: bool(case.rflags & 0x40000) and _only(diffs, "rip", *FAULT),
    ),
    (
        "flags of what capstone can't name",
        "most of them are undefined",
        lambda case, diffs: _any(case, ("(bad)",)) and _only(diffs, "flag"),
    ),
    (
        "a fetch from a page that is not executable",
        "the error code says now and then that there is no page, when there is one",
        lambda case, diffs: all(
            d.kind == "error code" and (d.host, d.guest) == ("0x15", "0x14") for d in diffs
        ),
    ),
)


def explained(case: Case, diffs: list[Difference]) -> str | None:
    """The row that explains all that differs; None: it is new."""
    for name, _, fits in KNOWN:
        if fits(case, diffs):
            return name
    return None
