#!/usr/bin/env bash
# unicorn 2.1.4, x86-64: SHLD, SHRD and RORX with an operand relative to RIP and a constant behind it
# read, and write, one byte before the operand.
#
# Guess: an address relative to RIP counts from the end of the instruction, for every instruction; that
# is code which all of them share. Seen: true of `add dword [rip+x], 5` and `imul eax, [rip+x], 1`; the
# three that were looked at forget the constant's byte. A shift of a global by a constant count is
# ordinary compiler output for 128-bit integers.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check unicorn==2.1.4
"$dir/venv/bin/python" - <<'PY'
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RAX, UC_X86_REG_RCX

CODE, DATA = 0x10000, 0x11000


def run(before: str, after: str) -> tuple[str, int]:
    """One instruction whose operand is the word at DATA + 0x10; the bytes around it, and RAX."""
    length = len(bytes.fromhex(before)) + 4 + len(bytes.fromhex(after))
    disp = (DATA + 0x10 - CODE - length).to_bytes(4, "little")
    code = bytes.fromhex(before) + disp + bytes.fromhex(after)
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(CODE, 0x2000)
    uc.mem_write(CODE, code)
    uc.mem_write(DATA + 0x0F, bytes.fromhex("aa78563412bb"))
    uc.reg_write(UC_X86_REG_RCX, 0)
    uc.emu_start(CODE, CODE + length)
    return uc.mem_read(DATA + 0x0F, 6).hex(), uc.reg_read(UC_X86_REG_RAX)


add = run("8305", "05")            # add dword [rip+x], 5
imul = run("6b05", "01")           # imul eax, [rip+x], 1
shrd = run("0fac0d", "08")         # shrd dword [rip+x], ecx, 8
rorx = run("c4e37bf005", "00")     # rorx eax, dword [rip+x], 0
print(add, hex(imul[1]), shrd, hex(rorx[1]))
assert add[0] == "aa7d563412bb" and imul[1] == 0x12345678, "these were right"
# Right would be aa56341200bb, and 0x12345678.
assert shrd[0] == "7856340012bb" and rorx[1] == 0x345678AA, "it has changed"
PY
