"""Instructions that the engine gets wrong, and where all others end."""

from __future__ import annotations

import random
from pathlib import Path

import capstone
import pytest
from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_X86, UC_MODE_32, UC_MODE_64, Uc
from unicorn.unicorn_py3.unicorn import uclib
from unicorn.x86_const import UC_X86_REG_EAX

from dfvm import PIPE, Machine
from dfvm.machine import cpu, native
from tests.kern.guest_util import build, same

MATH = ("-frounding-math", "-lm")


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    native.install(uclib.uc_emu_start)


def lengths_differ(code: bytes) -> list[str]:
    """Instructions of `code` that we take for longer or shorter than capstone does."""
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    padded = code + bytes(16)
    return [
        f"{code[at : at + size].hex()} {name} {operands}"
        for at, size, name, operands in disassembler.disasm_lite(code, 0)
        if native.instruction_length(padded[at : at + 15]) != size and not name.startswith("ev")
        if code[at] != 0x62  # EVEX: an invalid opcode to the engine, too
    ]


@pytest.mark.parametrize("program", ["/bin/busybox", "/bin/bash-static"])
def test_lengths_of_all_instructions_of_a_program(program: str) -> None:
    if not Path(program).exists():
        pytest.skip(f"no {program}")
    with open(program, "rb") as f:
        text = ELFFile(f).get_section_by_name(".text").data()
    assert lengths_differ(text[:400_000]) == []


def test_lengths_of_random_instructions() -> None:
    """Prefixes, ModRM and SIB of every kind, in front of everything that capstone knows; except
    invalid opcodes, SSE4a, control registers (a ModRM byte of their own), and branches with an
    operand size, where makers of processors differ: they end a block."""
    rng = random.Random(1)
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    differ, same_size = [], 0
    for _ in range(30_000):
        code = rng.choice([b"", b"\x48", b"\x41", b"\x66", b"\xf3", b"\xf2\x4f", b"\x67", b"\x64"])
        code += rng.choice([b"", b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"]) + rng.randbytes(12)
        insn = next(disassembler.disasm(code, 0), None)
        if insn is None or 0x62 in code[:3]:
            continue
        if native.instruction_length((code + bytes(8))[:15]) == insn.size:
            same_size += 1
        elif not (
            insn.mnemonic in ("ud0", "ud1", "extrq", "insertq")
            or (insn.mnemonic[0] in "jcr" and b"\x66" in insn.bytes[:2])
            or "cr" in insn.op_str
            or "dr" in insn.op_str
        ):
            differ.append(f"{insn.bytes.hex()} {insn.mnemonic} {insn.op_str}")
    assert differ == []
    assert same_size > 10_000


def run(program: Path) -> tuple[int | None, str]:
    with Machine(mem="32M", check=True, env={}) as m:
        p = m.spawn([str(program)], stdin=b"", stdout=PIPE)
        m.run(timeout=600)
        assert p.stdout is not None
        return p.exit_status, p.stdout.decode()


ILLEGAL = r"""
static sigjmp_buf env;
static void *at;
static int code;
static void handler(int sig, siginfo_t *info, void *uc)
{
    at = (void *)((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP];
    code = info->si_addr == at ? info->si_code : -1;
    siglongjmp(env, 1);
}
#define TRY(label, text) do {                                                               \
        extern char label[];                                                                \
        count++;                                                                            \
        if (sigsetjmp(env, 1))                                                              \
            printf(#label " %s, code %d, count %d\n", at == label ? "here" : "elsewhere",   \
                   code, count);                                                            \
        else {                                                                              \
            asm volatile("incl %0\n nop\n .globl " #label "\n" #label ": " text               \
                         : "+m"(count) : : "xmm1", "rax", "memory");                        \
            printf(#label " ran, count %d\n", count);                                       \
        }                                                                                   \
    } while (0)
int main(void)
{
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &sa, 0);
    volatile int count = 0;
    for (int i = 0; i < 2; i++) {
        TRY(vaddps, "vaddps %%xmm1, %%xmm2, %%xmm1\n addl $100, %0");
        TRY(vaddpd, "vaddpd %%ymm1, %%ymm2, %%ymm1");
        TRY(vzeroupper, "vzeroupper");
        TRY(vpshufb, "vpshufb %%xmm1, %%xmm1, %%xmm1");
        TRY(vpalignr, "vpalignr $3, %%xmm1, %%xmm1, %%xmm1");
        TRY(vmovd, "vmovd %0, %%xmm1");
        TRY(evex, "vaddpd %%zmm1, %%zmm2, %%zmm1");
        TRY(vpermil2, ".byte 0x8f, 0xe9, 0x78, 0x81, 0xc8");
        TRY(andn, "andn %%rax, %%rax, %%rax");
        TRY(rorx, "rorx $3, %%rax, %%rax");
        TRY(shlx, "shlx %%rax, %%rax, %%rax");
    }
}
"""


def test_avx_is_an_invalid_opcode() -> None:
    """What stands before it in its block has happened, once."""
    names = ["vaddps", "vaddpd", "vzeroupper", "vpshufb", "vpalignr", "vmovd", "evex", "vpermil2"]
    lines, count = [], 0
    for _ in range(2):
        for name in names:
            count += 2
            lines.append(f"{name} here, code 2, count {count}")
        for name in ("andn", "rorx", "shlx"):  # BMI is there
            count += 2
            lines.append(f"{name} ran, count {count}")
    assert run(build(ILLEGAL)) == (0, "\n".join(lines) + "\n")


FENV = r"""
#include <fenv.h>
#include <math.h>
volatile double zero = 0, one = 1, three = 3, big = 1e308, r;
volatile float fzero = 0, fone = 1, f;
volatile long double lzero = 0, lone = 1, lthree = 3, l;
volatile int i;
volatile long k;
static void show(const char *what)
{
    int e = fetestexcept(FE_ALL_EXCEPT);
    printf("%s:%s%s%s%s%s\n", what, e & FE_INVALID ? " invalid" : "",
           e & FE_DIVBYZERO ? " divide" : "", e & FE_OVERFLOW ? " overflow" : "",
           e & FE_UNDERFLOW ? " underflow" : "", e & FE_INEXACT ? " inexact" : "");
    feclearexcept(FE_ALL_EXCEPT);
}
"""


def test_floating_point_exceptions_are_seen() -> None:
    same(
        FENV
        + r"""
int main(void)
{
    show("start");
    r = one / zero; show("1/0");
    r = zero / zero; show("0/0");
    r = big * big; show("big * big");
    r = one / three; show("1/3");
    r = one + one; show("1 + 1");
    r = one / big / big; show("1 / big / big");
    r = sqrt(-one); show("sqrt(-1)");
    f = fone / fzero; show("float 1/0");
    f = big; show("narrow");
    i = (int)big; show("to int");
    i = (int)(one / three); show("1/3 to int");
    r = one < NAN; show("< NaN");
    r = isless(one, NAN); show("isless NaN");
    r = exp(big); show("exp");
    r = log(zero); show("log");
    l = lone / lzero; show("long 1/0");
    l = lone / lthree; show("long 1/3");
    l = lone + lone; show("long 1 + 1");
    l = sqrtl(-lone); show("long sqrt(-1)");
    k = lrintl(lone / lthree); show("lrintl");
    fenv_t env;
    r = one / zero;
    feholdexcept(&env);
    show("held");
    r = one / three;
    feupdateenv(&env);
    show("updated");
    feraiseexcept(FE_OVERFLOW); show("raised");
    r = one / zero;
    l = lone / lthree;
    feclearexcept(FE_DIVBYZERO); show("half cleared");
    char area[512] __attribute__((aligned(16)));
    r = one / zero;
    asm volatile("fxsave %0" : "=m"(area));
    printf("fxsave %x\n", *(unsigned *)(area + 24) & ~2);  /* denormals: not seen */
    feclearexcept(FE_ALL_EXCEPT);
    show("cleared");
    r = zero / zero;
    asm volatile("fxrstor %0" : : "m"(area));
    show("fxrstor");
}
""",
        flags=MATH,
    )


def test_floating_point_exceptions_belong_to_a_thread() -> None:
    """A child has its own, a handler starts without, and gives back what was there."""
    same(
        FENV
        + r"""
static void handler(int sig) { show("handler"); r = one / three; }
int main(void)
{
    signal(SIGUSR1, handler);
    r = one / zero;
    raise(SIGUSR1);
    show("after the handler");
    r = zero / zero;
    for (int n = 0; n < 3; n++) {
        fflush(stdout);
        if (!fork()) {
            show("child");
            r = big * big;
            sched_yield();
            show("child again");
            fflush(stdout);
            _exit(0);
        }
        wait(0);
    }
    show("parent");
}
""",
        flags=MATH,
    )


def test_many_places_and_places_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many such instructions, other code where one was, and a clock that ticks meanwhile."""
    monkeypatch.setattr(cpu, "TICK_NS", 100_000)
    places = "\n".join(
        r'r = one / zero; asm volatile("jmp 1f\n 1: stmxcsr %0" : "=m"(k)); sum += k & 4;'
        'feclearexcept(FE_ALL_EXCEPT);'
        for _ in range(40)
    )  # fmt: skip
    same(
        FENV
        + r"""
static unsigned run(unsigned char *p, const char *code, int n)
{
    unsigned value = 0;
    memcpy(p, code, n);
    ((void (*)(unsigned *))p)(&value);
    return value;
}
int main(void)
{
    unsigned k, sum = 0;
    unsigned char *p = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int n = 0; n < 3; n++) {
        """
        + places
        + r"""
        r = one / zero;
        printf("%u %x", sum, run(p, "\x0f\xae\x1f\xc3", 4));      /* stmxcsr (%rdi) */
        printf(" %x", run(p, "\xc7\x07\x05\0\0\0\xc3", 7));       /* movl $5, (%rdi) */
        printf(" %x\n", run(p, "\x90\x0f\xae\x1f\xc3", 5));
        feclearexcept(FE_ALL_EXCEPT);
    }
}
""",
        flags=MATH,
    )


def test_other_engines_of_the_process_are_left_as_they_were() -> None:
    """Ring 0 and 32 bits, where a selector is of a table and INVLPG is an instruction."""
    native.install(uclib.uc_emu_start)
    for mode in (UC_MODE_64, UC_MODE_32):
        uc = Uc(UC_ARCH_X86, mode)
        uc.mem_map(0x10000, 0x2000)
        # invlpg [eax]; fxsave [eax]; fld1; fstp qword [eax + 512]; movaps xmm0, [eax + 160]
        code = bytes.fromhex("0f0138 0fae00 d9e8 dd9800020000 0f2880a0000000 90")
        uc.mem_write(0x10000, code)
        uc.reg_write(UC_X86_REG_EAX, 0x11000)
        uc.emu_start(0x10000, 0x10000 + len(code))
        assert bytes(uc.mem_read(0x11200, 8)) == bytes.fromhex("000000000000f03f")
