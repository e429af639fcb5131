"""What differs between two results of a case, leaving out what no program may rely on."""

from __future__ import annotations

import signal
import struct
from dataclasses import dataclass
from typing import Final

from tools.cpudiff.case import (
    ABSENT,
    BEYOND,
    DATA,
    PAGE,
    REGS,
    RO_ABSENT,
    RW,
    STACK,
    UNMAPPED,
    Case,
    Result,
)  # fmt: skip
from tools.cpudiff.generate import undefined_after

FLAG_NAMES: Final = {
    1: "CF", 4: "PF", 0x10: "AF", 0x40: "ZF", 0x80: "SF", 0x100: "TF", 0x200: "IF", 0x400: "DF",
    0x800: "OF", 0x3000: "IOPL", 0x4000: "NT", 0x10000: "RF", 0x20000: "VM", 0x40000: "AC",
    0x200000: "ID",
}  # fmt: skip
RF: Final = 0x10000


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs: of what kind, which one, and both values as they are to be read."""

    kind: str  # register, flag, xmm, x87, mxcsr, memory, signal, code, address, error, rip ...
    what: str
    host: str
    guest: str

    def __str__(self) -> str:
        return f"{self.what}: host {self.host}, dfvm {self.guest}"


def signal_name(sig: int) -> str:
    try:
        return signal.Signals(sig).name
    except ValueError:
        return str(sig)


def initial(case: Case, patterns: list[bytes], address: int) -> int:
    """The eight bytes at `address` of the data pages before the case."""
    off = address - DATA if address < STACK else address - STACK + 2 * PAGE
    page = off // PAGE
    kind = case.kinds[page] if page < 2 else RW
    if kind in (ABSENT, RO_ABSENT, UNMAPPED, BEYOND):
        return 0
    data = bytearray(patterns[case.patterns[page]][off % PAGE :][:8])
    for start, patch in case.patches:
        for i in range(8):
            if start <= off + i < start + len(patch):
                data[i] = patch[off + i - start]
    return int.from_bytes(data, "little")


def _unspecified(case: Case) -> set[int]:
    """Addresses of bytes that an instruction of the case stores and that no program may rely on:
    the instruction and data pointers and the opcode of x87, which AMD saves only when an exception
    is pending, and what is reserved."""
    out: set[int] = set()
    for insn in case.insns:
        if insn.operand is None:
            continue
        at = insn.operand
        name = insn.mnemonic
        if name in ("fnstenv", "fnsave", "fstenv", "fsave"):
            if 0x66 in insn.code[:3]:
                out.update(range(at + 6, at + 14))
            else:
                out.update(range(at + 12, at + 26))
        elif name.startswith("fxsave"):
            out.update(range(at + 6, at + 24), range(at + 28, at + 32))
            for n in range(8):
                out.update(range(at + 32 + 16 * n + 10, at + 32 + 16 * n + 16))
    return out


def _undefined(case: Case, rip: int) -> int:
    """Flags that are undefined where the case ended: at the instruction at `rip`, or behind it."""
    starts = case.starts()
    if rip in starts:
        return undefined_after(case.insns[: starts.index(rip)])
    if rip == starts[-1] + 1:
        return undefined_after(case.insns)
    mask = 0
    for insn in case.insns:
        mask |= insn.undefined
    return mask


def compare(
    case: Case, patterns: list[bytes], host: Result | str, guest: Result | str
) -> list[Difference]:
    """All that differs."""
    if isinstance(host, str) or isinstance(guest, str):
        if isinstance(host, str) and isinstance(guest, str):
            return []
        a = host if isinstance(host, str) else signal_name(host.sig)
        b = guest if isinstance(guest, str) else signal_name(guest.sig)
        return [Difference("end", "end", a, b)]
    out: list[Difference] = []

    def differ(kind: str, what: str, a: int, b: int, show: str = "#x") -> None:
        if a != b:
            out.append(Difference(kind, what, format(a, show), format(b, show)))

    if host.sig != guest.sig:
        out.append(Difference("signal", "signal", signal_name(host.sig), signal_name(guest.sig)))
    else:
        differ("si_code", "si_code", host.code, guest.code, "d")
        differ("si_addr", "si_addr", host.addr, guest.addr)
    differ("status", "status", host.status, guest.status)
    differ("trapno", "trapno", host.trapno, guest.trapno, "d")
    differ("error code", "err", host.err, guest.err)
    if host.trapno == guest.trapno == 14:
        differ("cr2", "cr2", host.cr2, guest.cr2)
    differ("rip", "rip", host.rip, guest.rip)
    for name, a, b in zip(REGS, host.gpr, guest.gpr, strict=True):
        differ("register", name, a, b)
    mask = ~(_undefined(case, host.rip) | RF)
    delta = (host.rflags ^ guest.rflags) & mask
    for bit, name in FLAG_NAMES.items():
        if delta & bit:
            differ("flag", name, bool(host.rflags & bit), bool(guest.rflags & bit), "d")
    for name, a, b in zip(("cs", "ss", "ds", "es", "fs", "gs"), host.segs, guest.segs, strict=True):
        differ("segment", name, a, b)
    differ("segment", "fsbase", host.fsbase, guest.fsbase)
    differ("segment", "gsbase", host.gsbase, guest.gsbase)
    _compare_fx(host.fx, guest.fx, out)
    unspecified = _unspecified(case)
    for key in sorted(host.changes.keys() | guest.changes.keys()):
        what, address = key
        before = initial(case, patterns, address)
        a, b = host.changes.get(key, before), guest.changes.get(key, before)
        if unspecified:
            for i in range(8):
                if address + i in unspecified:
                    a &= ~(0xFF << 8 * i)
                    b &= ~(0xFF << 8 * i)
        if a != b:
            out.append(Difference(what, f"{what} {address:#x}", f"{a:016x}", f"{b:016x}"))
    return out


def _compare_fx(a: bytes, b: bytes, out: list[Difference]) -> None:
    if a == b:
        return
    for name, fmt, at in (("fcw", "<H", 0), ("fsw", "<H", 2), ("ftw", "<B", 4)):
        (x,), (y,) = struct.unpack_from(fmt, a, at), struct.unpack_from(fmt, b, at)
        if x != y:
            out.append(Difference(name, name, f"{x:#x}", f"{y:#x}"))
    (x,), (y,) = struct.unpack_from("<I", a, 24), struct.unpack_from("<I", b, 24)
    if x != y:
        out.append(Difference("mxcsr", "mxcsr", f"{x:#x}", f"{y:#x}"))
    top = a[3] >> 3 & 7
    for n in range(8):
        at = 32 + 16 * n
        x, y = a[at : at + 10], b[at : at + 10]
        if x != y:
            empty = not a[4] >> ((top + n) & 7) & 1
            kind = "x87 empty" if empty else "x87"
            out.append(Difference(kind, f"st{n}", _f80(x), _f80(y)))
    for n in range(16):
        at = 160 + 16 * n
        x, y = a[at : at + 16], b[at : at + 16]
        if x != y:
            out.append(Difference("xmm", f"xmm{n}", _hex(x), _hex(y)))


def _f80(data: bytes) -> str:
    return f"{int.from_bytes(data[8:], 'little'):04x}:{int.from_bytes(data[:8], 'little'):016x}"


def _hex(data: bytes) -> str:
    return f"{int.from_bytes(data, 'little'):032x}"
