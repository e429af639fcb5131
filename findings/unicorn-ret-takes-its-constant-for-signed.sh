#!/usr/bin/env bash
# unicorn 2.1.4, x86-64: RET imm16 takes its constant for a signed number.
#
# Guess: `ret 0x8000` gives back the return address and 32 768 bytes of arguments: RSP grows by 32 776.
# Seen: RSP shrinks by 32 760. The manual has an unsigned word. Compilers of languages whose callees
# remove their arguments emit such constants for large structures passed by value.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check unicorn==2.1.4
"$dir/venv/bin/python" - <<'PY'
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RSP

CODE, STACK = 0x10000, 0x100000
moved = {}
for constant in (0x10, 0x7FF8, 0x8000, 0xFFF8):
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(CODE, 0x1000)
    uc.mem_map(STACK, 0x40000)
    uc.mem_write(CODE, b"\xc2" + constant.to_bytes(2, "little"))
    sp = STACK + 0x20000
    uc.mem_write(sp, (CODE + 0x100).to_bytes(8, "little"))
    uc.reg_write(UC_X86_REG_RSP, sp)
    uc.emu_start(CODE, CODE + 0x100)
    moved[constant] = uc.reg_read(UC_X86_REG_RSP) - sp
print({hex(k): v for k, v in moved.items()})
assert moved == {0x10: 0x18, 0x7FF8: 0x8000, 0x8000: 8 - 0x8000, 0xFFF8: 0}, "it has changed"
PY
