"""Floating point and the rest of what SSE and x87 compute, bit by bit against the host, which
executes the same instructions: which NaN, which exception, to zero or not, trapped or not."""

from __future__ import annotations

import pytest

from tests.kern.guest_util import same

VALUES = r"""
#include <math.h>
#include <immintrin.h>
static const unsigned long D[] = {0, 1L << 63, 1, 0x000fffffffffffff, 0x0010000000000000,
    0x3ff0000000000000, 0xbff8000000000000, 0x3fd5555555555555, 0x7fefffffffffffff,
    0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000123, 0xfff8000000000456,
    0x7ff0000000000001, 0x41dfffffffe00000, 0xc3e0000000000000, 0x43e0000000000001,
    0x0008000000000000, 0x36a0000000000000, 0x47efffffe0000001};
#define NV (sizeof D / sizeof *D)
static unsigned long hash;
static void mix(unsigned long v) { hash = (hash ^ v) * 0x100000001b3; hash ^= hash >> 29; }
static const unsigned MODES[] = {0x1f80, 0x3f80, 0x5f80, 0x7f80, 0x9f80, 0x1fc0, 0x9fc0, 0x1fa0};
"""


@pytest.mark.parametrize("kind", ["sd", "ss", "pd", "ps"])
def test_arithmetic_of_sse(kind: str) -> None:
    ops = ["add", "sub", "mul", "div", "min", "max", "sqrt", "cmpeq", "cmplt", "cmple", "cmpunord"]
    body = "".join(
        f"""
        for (int m = 0; m < 8; m++) for (int i = 0; i < NV; i++) for (int j = 0; j < NV; j++) {{
            unsigned csr = MODES[m];
            union {{ double d[2]; float f[4]; unsigned long q[2]; }} a, b;
            a.q[0] = D[i]; a.q[1] = D[j]; b.q[0] = D[j]; b.q[1] = D[i];
            if ("{kind}"[1] == 's') {{
                a.f[0] = a.d[0]; a.f[1] = b.d[0]; a.f[2] = 1; a.f[3] = a.f[1];
                b.f[0] = b.d[0]; b.f[1] = a.f[0]; b.f[2] = 3; b.f[3] = a.f[0];
            }}
            asm volatile("ldmxcsr %1; movups %0, %%xmm0; movups %2, %%xmm1\\n"
                         "{op}{kind} %%xmm1, %%xmm0\\n movups %%xmm0, %0; stmxcsr %1"
                         : "+m"(a), "+m"(csr) : "m"(b) : "xmm0", "xmm1");
            mix(a.q[0]); mix(a.q[1]); mix(csr);
        }}
        printf("{op}{kind} %lx\\n", hash);
        """
        for op in ops
    )
    same(VALUES + "int main(void) {" + body + "}")


def test_conversions_and_comparisons_of_sse() -> None:
    ops = {
        "cvtsd2si %1, %0": "long", "cvttsd2si %1, %0": "long", "cvtsd2si %1, %k0": "long",
        "cvttsd2si %1, %k0": "long", "cvtss2si %1, %0": "long", "cvttss2si %1, %k0": "long",
        "cvtsi2sdq %2, %%xmm0; movq %%xmm0, %0": "long",
        "cvtsi2ssl %k2, %%xmm0; movq %%xmm0, %0": "long",
        "cvtsd2ss %1, %%xmm0; movq %%xmm0, %0": "long",
        "cvtss2sd %1, %%xmm0; movq %%xmm0, %0": "long",
        "cvtpd2dq %1, %%xmm0; movq %%xmm0, %0": "long",
        "cvttps2dq %1, %%xmm0; movq %%xmm0, %0": "long",
        "ucomisd %1, %%xmm2; pushf; pop %0": "long", "comiss %1, %%xmm2; pushf; pop %0": "long",
        "roundsd $8, %1, %%xmm0; movq %%xmm0, %0": "long",
        "roundps $4, %1, %%xmm0; movq %%xmm0, %0": "long",
        "roundpd $3, %1, %%xmm0; movq %%xmm0, %0": "long",
        "dppd $0x31, %1, %%xmm2; movq %%xmm2, %0": "long",
        "dpps $0xf1, %1, %%xmm2; movq %%xmm2, %0": "long",
        "rsqrtss %1, %%xmm0; movq %%xmm0, %0": "long", "rcpps %1, %%xmm0; movq %%xmm0, %0": "long",
    }  # fmt: skip
    body = "".join(
        f"""
        for (int m = 0; m < 8; m++) for (int i = 0; i < NV; i++) for (int j = 0; j < NV; j += 3) {{
            unsigned csr = MODES[m];
            __m128d x = {{*(double *)&D[i], *(double *)&D[j]}}, y = {{*(double *)&D[j], 1}};
            {kind} r = 0;
            asm volatile("ldmxcsr %3; xorps %%xmm0, %%xmm0; movaps %4, %%xmm2\\n {op}\\n stmxcsr %3"
                         : "+r"(r) : "x"(x), "r"(D[i]), "m"(csr), "x"(y) : "xmm0", "xmm2", "cc");
            mix(r); mix(csr);
        }}
        printf("%s %lx\\n", "{op.replace("%", "")}", hash);
        """
        for op, kind in ops.items()
    )
    same(VALUES + "int main(void) {" + body + "}", flags=("-msse4.2",))


def test_strings_of_sse_in_every_mode() -> None:
    modes = "".join(f"ONE({mode})\n" for mode in range(128))
    same(
        VALUES
        + r"""
#define ONE(mode) for (int i = 0; i < 40; i++) {                                            \
    unsigned long f1, f2, f3, f4, c1, c2;                                                   \
    __m128i x = text[i % 8], y = text[i / 5], r1, r2;                                       \
    int la = i * 7 % 23 - 3, lb = i * 5 % 21 - 2;                                           \
    asm("pcmpestri %4, %3, %2; pushf; pop %1" : "=c"(c1), "=r"(f1)                          \
        : "x"(x), "x"(y), "i"(mode), "a"(la), "d"(lb) : "cc");                              \
    asm("pcmpistri %4, %3, %2; pushf; pop %1" : "=c"(c2), "=r"(f2)                          \
        : "x"(x), "x"(y), "i"(mode) : "cc");                                                \
    asm("pcmpestrm %4, %3, %2; movaps %%xmm0, %0; pushf; pop %1" : "=m"(r1), "=r"(f3)       \
        : "x"(x), "x"(y), "i"(mode), "a"(la), "d"(lb) : "cc", "xmm0");                      \
    asm("pcmpistrm %4, %3, %2; movaps %%xmm0, %0; pushf; pop %1" : "=m"(r2), "=r"(f4)       \
        : "x"(x), "x"(y), "i"(mode) : "cc", "xmm0");                                        \
    mix(c1); mix(c2); mix(f1); mix(f2); mix(f3); mix(f4); mix(r1[0]); mix(r1[1]); mix(r2[0]); \
    mix(r2[1]); } printf("%d %lx\n", mode, hash);
int main(void)
{
    static const char *words[] = {"abcabcabdabcabc", "abd", "az09", "", "aaaaaaaaaaaaaaaa",
                                  "\200\377ab\1\2", "bcabd", "c"};
    __m128i text[8];
    for (int i = 0; i < 8; i++) { text[i] = _mm_setzero_si128(); memcpy(&text[i], words[i],
        strlen(words[i])); }
"""
        + modes
        + "}",
        flags=("-msse4.2",),
    )


def test_x87() -> None:
    """With each rounding mode and precision, on what is special and what is not; the whole state
    afterwards."""
    one = ["fsqrt", "frndint", "f2xm1", "fxtract", "fsin", "fcos", "fptan", "fsincos", "fchs",
           "fabs", "ftst", "fxam", "fldpi", "fldl2t", "fldlg2", "fldln2", "fldl2e", "fld1",
           "fstps (%0); flds (%0)", "fstpl (%0); fldl (%0)", "fistpll (%0); fildll (%0)",
           "fistpl (%0); fildl (%0)", "fistps (%0); filds (%0)", "fisttpll (%0); fildll (%0)",
           "fbstp (%0); fbld (%0)"]  # fmt: skip
    two = ["faddp", "fsubp", "fsubrp", "fmulp", "fdivp", "fdivrp", "fprem", "fprem1", "fscale",
           "fpatan", "fyl2x", "fyl2xp1", "fcompp", "fucompp", "fxch", "fcomi %%st(1)",
           "fucomi %%st(1)"]  # fmt: skip
    body = "".join(f'X87("{op}", {1 + (op in two)})\n' for op in one + two)
    same(
        VALUES
        + r"""
static const struct { unsigned long m; unsigned short e; } L[] = {{0, 0}, {0, 0x8000},
    {1L << 63, 0x3fff}, {0xc000000000000000, 0xbffe}, {1, 0}, {1L << 63, 0}, {1L << 63, 0x7fff},
    {1L << 63, 0xffff}, {0xc000000000000123, 0x7fff}, {0xa000000000000123, 0x7fff},
    {0xffffffffffffffff, 0x7ffe}, {0xc90fdaa22168c235, 0x4000}, {0xaaaaaaaaaaaaaaab, 0x3ffd},
    {1234567, 0x4000}, {0xfffffffffffffffe, 0x403d}, {0x8000000000000001, 0x3ffe}};
#define NL (sizeof L / sizeof *L)
#define X87(op, n)                                                                          \
    for (int c = 0; c < 12; c++) for (int i = 0; i < NL; i++) for (int j = 0; j < NL; j++) { \
        unsigned short control = 0x7f | (c & 3) << 10 | (c / 4 + (c >= 4)) << 8, sw;        \
        unsigned long area[32] = {0}, flags;                                                \
        if (n == 1 && j) break;                                                             \
        asm volatile("fninit; fldcw %3; fldt (%4); fldt (%5)\n " op                        \
                     "\n pushf; pop %2; fnstsw %1; fnsave (%0)"                             \
                     : : "r"(area), "m"(sw), "r"(flags), "m"(control), "r"(&L[j]),          \
                         "r"(&L[i]) : "memory", "cc");                                      \
        mix(sw); mix(area[1] & 0xffff);                                                     \
        for (int k = 28; k < 108; k++) mix(((unsigned char *)area)[k]);                     \
    }                                                                                       \
    printf(op " %lx\n", hash);
int main(void) {
    asm volatile("cld");
"""
        + body.replace("%%st", "%%st")
        + "}"
    )


def test_long_double_functions() -> None:
    same(
        r"""
#include <math.h>
int main(void)
{
    volatile long double x = 3, y = 0.3L, z = 0;
    printf("%La %La %La %La\n", fmodl(x, y), remainderl(x, y), logl(z), logl(-x));
    printf("%La %La %La %La\n", sinl(x), atan2l(x, y), exp2l(y), log1pl(y));
    printf("%.21Lg %a\n", strtold("2.71828182845904523536", 0), strtod("8.5e-310", 0));
}
""",
        flags=("-lm",),
    )


TRAPS = r"""
#include <fenv.h>
#include <math.h>
static sigjmp_buf env;
static void handler(int sig, siginfo_t *si, void *uc)
{
    struct _libc_fpstate *fp = ((ucontext_t *)uc)->uc_mcontext.fpregs;
    printf("signal %d code %d sw %x mxcsr %x\n", sig, si->si_code, fp->swd & 0xff, fp->mxcsr);
    siglongjmp(env, 1);
}
#define TRY(x) do { if (!sigsetjmp(env, 1)) { feclearexcept(FE_ALL_EXCEPT); x; \
    printf(#x " %a\n", (double)r); } } while (0)
volatile double r, zero = 0, one = 1, three = 3, big = 1e308, small = 1e-308;
volatile long double l, lzero = 0, lone = 1, lthree = 3;
int main(void)
{
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGFPE, &sa, 0);
    for (int e = 0; e < 5; e++) {
        static const int bits[] = {FE_INVALID, FE_DIVBYZERO, FE_OVERFLOW, FE_UNDERFLOW, FE_INEXACT};
        feenableexcept(bits[e]);
        TRY(r = one / zero); TRY(r = zero / zero); TRY(r = big * big); TRY(r = small * small);
        TRY(r = one / three); TRY(r = one + one); TRY(r = sqrt(-one)); TRY(r = (int)big);
        TRY(l = lone / lzero); TRY(l = lzero / lzero); TRY(l = lone / lthree; r = l);
        TRY(r = (float)big); TRY(r = small / 3);
        fedisableexcept(FE_ALL_EXCEPT);
    }
    r = one / zero; printf("%x\n", fetestexcept(FE_ALL_EXCEPT));
}
"""


def test_exceptions_that_are_not_masked_trap() -> None:
    same(TRAPS, flags=("-frounding-math", "-lm"))


def test_mmx_and_x87_are_one_state() -> None:
    same(
        r"""
int main(void)
{
    static unsigned char area[512] __attribute__((aligned(16)));
    unsigned long v = 0x1122334455667788, r;
#define SHOW(text)                                                                          \
    memset(area, 0, 512);                                                                   \
    asm volatile("fninit; fldpi; fld1\n" text "\n fxsave (%0); emms" : : "r"(area), "r"(v), \
                 "r"(&v) : "memory");                                                       \
    printf(text ": %x %x", *(unsigned short *)(area + 2), area[4]);                         \
    for (int i = 0; i < 8; i++)                                                             \
        printf(" %lx:%x", *(long *)(area + 32 + 16 * i), *(short *)(area + 40 + 16 * i) & 0xffff); \
    printf("\n");
    SHOW("") SHOW("movq %1, %%mm3") SHOW("movq (%2), %%mm7; paddb %%mm7, %%mm7")
    SHOW("movq %1, %%mm2; phaddd %%mm2, %%mm2") SHOW("movq %%mm1, (%2)") SHOW("emms")
    SHOW("movq %1, %%mm0; psrlq $4, %%mm0") SHOW("pshufw $0x1b, (%2), %%mm5")
    SHOW("movq %1, %%mm1; emms; fldz") SHOW("cvtps2pi %%xmm0, %%mm4")
    SHOW("movd %k1, %%mm6; .byte 0x44, 0x0f, 0x38, 0x1e, 0xf6")
}
"""
    )


def test_what_xsave_has_and_xrstor_takes() -> None:
    same(
        r"""
int main(void)
{
    static unsigned char a[1088] __attribute__((aligned(64))), b[1088] __attribute__((aligned(64)));
    unsigned csr = 0x1fbf, out;
    volatile double zero = 0, r = 1;
    asm volatile("fninit; fldpi; ldmxcsr %0" : : "m"(csr));
    asm volatile("xsave (%0)" : : "r"(a), "a"(3), "d"(0) : "memory");
    printf("%x %x %lx\n", *(unsigned *)(a + 24), *(unsigned short *)(a + 2),
           *(long *)(a + 512) & 1);
    csr = 0x1f80;
    asm volatile("fninit; ldmxcsr %0; xrstor (%1); stmxcsr %2; fstpl %3" : : "m"(csr), "r"(a),
                 "m"(out), "m"(r), "a"(3), "d"(0) : "memory");
    printf("%x %a\n", out, r);
    asm volatile("fninit; xsave (%0)" : : "r"(b), "a"(1), "d"(0) : "memory");
    printf("%lx\n", *(long *)(b + 512));
    r = 1 / zero;
    asm volatile("stmxcsr %0" : "=m"(out));
    asm volatile("xsave (%0)" : : "r"(b), "a"(2), "d"(0) : "memory");
    printf("%x %x\n", out, *(unsigned *)(b + 24));
}
"""
    )


def test_bits_and_exchanges() -> None:
    same(
        VALUES
        + r"""
#define BITS(op) for (int i = 0; i < NV; i++) for (int j = 0; j < NV; j++) {                \
    unsigned long q = 0x5a5a5a5a5a5a5a5a, d = q, f, g;                                      \
    asm(op : "+r"(q), "=r"(f) : "r"(D[i]), "r"(D[j] >> (j & 7)) : "cc", "rax", "memory");   \
    mix(q); mix(f & 0x8c1); } printf(op " %lx\n", hash);
#define F "\n pushf\n pop %1"
int main(void)
{
    BITS("blsi %2, %0" F) BITS("blsi %k2, %k0" F) BITS("blsr %2, %0" F) BITS("blsmsk %k2, %k0" F)
    BITS("bzhi %3, %2, %0" F) BITS("bzhi %k3, %k2, %k0" F)
    BITS("pdep %k3, %k2, %k0\n mov $0, %1") BITS("pext %3, %2, %0\n mov $0, %1")
    BITS("push %2\n lock negl (%%rsp)" F "\n pop %0")
    BITS("push %2\n lock negb (%%rsp)" F "\n pop %0")
    BITS("mov %3, %%rax\n mov %2, %0\n cmpxchg %k3, %k0" F "\n add %%rax, %0")
    BITS("mov %2, %%rax\n push %2\n lock cmpxchg %k3, (%%rsp)" F "\n pop %0\n add %%rax, %0")
    for (int sel = 0; sel < 0x100; sel++) {
        unsigned long a = 0xdead, f1, f2, f3;
        asm("lar %k3, %k0; pushf; pop %1; verr %w3; pushf; pop %2"
            : "+r"(a), "=r"(f1), "=r"(f2) : "r"(sel) : "cc");
        asm("verw %w1; pushf; pop %0" : "=r"(f3) : "r"(sel) : "cc");
        mix(a); mix(f1 & 64); mix(f2 & 64); mix(f3 & 64);
    }
    printf("%lx\n", hash);
}
""",
        flags=("-mbmi", "-mbmi2"),
    )


def test_strings_repeated() -> None:
    """REP MOVS and STOS: forwards, backwards, overlapping, over borders, and where they fault."""
    same(
        VALUES
        + r"""
#include <sys/mman.h>
static sigjmp_buf env;
static greg_t g[23];
static void handler(int sig, siginfo_t *si, void *uc)
{
    memcpy(g, ((ucontext_t *)uc)->uc_mcontext.gregs, sizeof g);
    siglongjmp(env, 1);
}
int main(void)
{
    unsigned char *p = mmap((void *)0x10000000, 5 * 4096, 3,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &sa, 0);
    mprotect(p + 4 * 4096, 4096, 0);
#define REP(op, bytes)                                                                      \
    for (int i = 0; i < 400; i++) {                                                         \
        int back = i % 5 == 0;                                                              \
        for (int k = 0; k < 4 * 4096; k++) p[k] = k * 7 + k / 251;                          \
        long d = (long)p + i * 977 % 16000;                                                 \
        long s = i % 3 ? (long)p + i * 1277 % 15000 : d + i % 17 - 8, a = D[i % NV];        \
        long c = i * 331 % (i % 7 ? 300 : 9000) / bytes;                                    \
        if (sigsetjmp(env, 1)) { d = g[REG_RDI]; s = g[REG_RSI]; c = g[REG_RCX]; }          \
        else if (back) asm volatile("std; rep " op "; cld" : "+D"(d), "+S"(s), "+c"(c)      \
                                    : "a"(a) : "memory");                                   \
        else asm volatile("rep " op : "+D"(d), "+S"(s), "+c"(c) : "a"(a) : "memory");       \
        mix(d); mix(s); mix(c);                                                             \
        for (int k = 0; k < 4 * 4096; k++) mix(p[k]);                                       \
    }                                                                                       \
    printf(op " %lx\n", hash);
    REP("movsb", 1) REP("movsw", 2) REP("movsq", 8) REP("stosb", 1) REP("stosl", 4)
}
"""
    )
