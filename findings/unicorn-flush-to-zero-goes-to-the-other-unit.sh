#!/usr/bin/env bash
# unicorn 2.1.4, x86-64: MXCSR.FTZ does nothing to SSE, while DAZ works.
#
# Guess: whoever implements one of these two bits of MXCSR implements the other. Seen: a product that is
# denormal stays so with FTZ; an operand that is denormal counts as zero with DAZ. (The engine sets the
# flag in the state of its x87 unit.)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check unicorn==2.1.4
"$dir/venv/bin/python" - <<'PY'
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RSP

CODE, STACK = 0x10000, 0x20000


def product(mxcsr: int, a: int, b: int) -> int:
    """Of two doubles, as bits, by mulsd."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(CODE, 0x1000)
    uc.mem_map(STACK, 0x1000)
    uc.mem_write(STACK, mxcsr.to_bytes(4, "little"))
    code = bytes.fromhex("0fae1424 66480f6ec0 66480f6ec9 f20f59c1 66480f7ec0")
    uc.mem_write(CODE, code)
    uc.reg_write(UC_X86_REG_RSP, STACK)
    uc.reg_write(UC_X86_REG_RAX, a)
    uc.reg_write(UC_X86_REG_RCX, b)
    uc.emu_start(CODE, CODE + len(code))
    return uc.reg_read(UC_X86_REG_RAX)


small, half, denormal, one = 0x0010000000000000, 0x3FE0000000000000, 1, 0x3FF0000000000000
ftz, daz = product(0x9F80, small, half), product(0x1FC0, denormal, one)
print(f"least normal * 0.5 with FTZ {ftz:016x}, least denormal * 1 with DAZ {daz:016x}")
assert daz == 0, "this was right"
assert ftz == 0x0008000000000000, "it has changed"  # right would be 0
PY
