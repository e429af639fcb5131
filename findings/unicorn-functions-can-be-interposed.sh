#!/usr/bin/env bash
# unicorn 2.1.4, the wheel for Linux on x86-64: every function of the engine can be replaced from
# outside, by name.
#
# Guess: what a Python wheel's shared library calls inside itself is bound when it is linked, or hidden;
# to change how one instruction is executed one has to build the engine. Seen: the library exports its
# 30 000 functions, and they call one another by way of its own offset table, so that the ELF rules for
# interposition hold: a preloaded library that defines helper_cpuid_x86_64 is what CPUID runs.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check unicorn==2.1.4
cat >"$dir/cpuid.c" <<'C'
/* The CPU state begins with the general registers. */
void helper_cpuid_x86_64(unsigned long *env) { env[0] = 0x0dda; }
C
cc -shared -fPIC -o "$dir/cpuid.so" "$dir/cpuid.c"
cat >"$dir/run.py" <<'PY'
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RAX

uc = Uc(UC_ARCH_X86, UC_MODE_64)
uc.mem_map(0x10000, 0x1000)
uc.mem_write(0x10000, b"\x31\xc0\x0f\xa2")  # xor eax, eax; cpuid
uc.emu_start(0x10000, 0x10004)
print(hex(uc.reg_read(UC_X86_REG_RAX)))
PY
plain=$("$dir/venv/bin/python" "$dir/run.py")
ours=$(LD_PRELOAD="$dir/cpuid.so" "$dir/venv/bin/python" "$dir/run.py")
echo "as it is $plain, with a function of ours $ours"
[ "$plain" != 0xdda ] && [ "$ours" = 0xdda ] || { echo "it has changed"; exit 1; }
