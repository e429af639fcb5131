#!/usr/bin/env bash
# unicorn 2.1.4, x86-64: PHADDD and its kin of a register with itself add numbers that were just stored.
#
# Guess: `phaddd xmm0, xmm0`, the usual idiom for summing up a vector, gives the pairs' sums twice. Seen:
# right for XMM registers, wrong for MMX registers: the upper half is made of the lower half's result.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check unicorn==2.1.4
"$dir/venv/bin/python" - <<'PY'
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RAX

CODE = 0x10000
uc = Uc(UC_ARCH_X86, UC_MODE_64)
uc.mem_map(CODE, 0x1000)
value = 2 << 32 | 1


def run(code: str) -> int:
    code = bytes.fromhex(code)
    uc.mem_write(CODE, code)
    uc.reg_write(UC_X86_REG_RAX, value)
    uc.emu_start(CODE, CODE + len(code))
    return uc.reg_read(UC_X86_REG_RAX)


xmm = run("66480f6ec0 660f6cc0 660f3802c0 66480f7ec0")
mmx = run("480f6ef8 0f3802ff 480f7ef8")
print(f"xmm {xmm:016x} mmx {mmx:016x}")
assert xmm == 3 << 32 | 3, "this was right"
assert mmx == 5 << 32 | 3, "it has changed"  # right would be 3 and 3
PY
