/* Floating point of SSE, computed by the host's processor.
 *
 * Each of the engine's helpers for it is replaced by the very instruction, executed with the guest's
 * MXCSR, all exceptions masked. So results, the choice among NaNs, FTZ and DAZ, and the exceptions are
 * the processor's; what it has flagged is in the guest's MXCSR at once, where STMXCSR finds it. An
 * exception that the guest has not masked is raised instead of a result. */

#include "native.h"
#include "replace.h"

#define FLAGS 0x3fu
#define MASKS 0x1f80u
#define HOST_MXCSR 0x1f80u

static const u32 host_mxcsr = HOST_MXCSR;

/* The flags that an operation has raised, in MXCSR `after`, become the guest's. Whether one of them
 * traps: then an exception found before the computation keeps those of the result from being found. */
static inline bool traps(Env *env, u32 after)
{
    u32 raised = after & FLAGS, unmasked = raised & ~(env->mxcsr >> 7) & FLAGS;
    if (unmasked & 7)
        raised &= 7;
    env->mxcsr |= raised;
    return unmasked != 0;
}

/* The guest's MXCSR without flags and with all exceptions masked. */
#define GUEST_MXCSR(env) (((env)->mxcsr & ~FLAGS) | MASKS)

#define WITH_GUEST_MXCSR(instruction, ...)                                                     \
    u32 in_ = GUEST_MXCSR(env), out_;                                                          \
    asm volatile("ldmxcsr %[in]\n\t" instruction "\n\tstmxcsr %[out]\n\tldmxcsr %[host]"       \
                 : [out] "=m"(out_), __VA_ARGS__);                                             \
    if (traps(env, out_))                                                                      \
    raise_fault(env, XF, 0, ra)

typedef float v4 __attribute__((vector_size(16)));
typedef float v4_anywhere __attribute__((vector_size(16), aligned(1)));
#define V(x) (*(v4_anywhere *)(x))

/* Both operands and the result are XMM registers. */
#define OP2(name, instruction)                                                                 \
    __attribute__((always_inline)) static inline void name##_of(Env *env, Xmm *d, Xmm *s,      \
                                                                uintptr_t ra)                  \
    {                                                                                          \
        v4 x = V(d);                                                                           \
        WITH_GUEST_MXCSR(instruction " %[s], %[x]", [x] "+x"(x)                                \
                         : [s] "x"(V(s)), [in] "m"(in_), [host] "m"(host_mxcsr));              \
        V(d) = x;                                                                              \
    }                                                                                          \
    static void dfvm_helper_##name(Env *env, Xmm *d, Xmm *s)                                   \
    {                                                                                          \
        name##_of(env, d, s, RETADDR);                                                         \
    }

/* The same for scalars, which most programs compute with: with numbers that are neither zero nor
 * denormal nor anything special, and a result of this kind, nothing can be flagged but that it is
 * inexact; if that is so already and rounding is to nearest, MXCSR need not be looked at. */
#define NORMAL_64(bits) (((bits) >> 52 & 0x7ff) - 2 < 0x7fdu) /* the least may come of an underflow */
#define NORMAL_32(bits) (((bits) >> 23 & 0xff) - 2 < 0xfdu)
#define ORDINARY(env) (((env)->mxcsr & 0xffe0) == 0x1fa0)

#define SCALAR(name, instruction, field, normal, both)                                         \
    static void dfvm_helper_##name(Env *env, Xmm *d, Xmm *s)                                   \
    {                                                                                          \
        uintptr_t ra = RETADDR;                                                                \
        v4 x = V(d);                                                                           \
        if (ORDINARY(env) && normal(s->field) && (!(both) || normal(d->field))) {              \
            Xmm result;                                                                        \
            asm(instruction " %[s], %[x]" : [x] "+x"(x) : [s] "x"(V(s)));                      \
            V(&result) = x;                                                                    \
            if (normal(result.field)) {                                                        \
                V(d) = x;                                                                      \
                return;                                                                        \
            }                                                                                  \
            x = V(d);                                                                          \
        }                                                                                      \
        WITH_GUEST_MXCSR(instruction " %[s], %[x]", [x] "+x"(x)                                \
                         : [s] "x"(V(s)), [in] "m"(in_), [host] "m"(host_mxcsr));              \
        V(d) = x;                                                                              \
    }

#define ARITHMETIC(op, both)                                                                   \
    OP2(op##ps, #op "ps")                                                                      \
    OP2(op##pd, #op "pd")                                                                      \
    SCALAR(op##ss, #op "ss", l[0], NORMAL_32, both)                                            \
    SCALAR(op##sd, #op "sd", q[0], NORMAL_64, both)
ARITHMETIC(add, true)
ARITHMETIC(sub, true)
ARITHMETIC(mul, true)
ARITHMETIC(div, true)
ARITHMETIC(sqrt, false)

/* A comparison of numbers that are nothing special flags nothing at all. */
#define COMPARE(name, instruction, field, normal)                                              \
    static void dfvm_helper_##name(Env *env, Xmm *d, Xmm *s)                                   \
    {                                                                                          \
        uintptr_t ra = RETADDR;                                                                \
        v4 x = V(d);                                                                           \
        if (normal(s->field) && normal(d->field)) {                                            \
            asm(instruction " %[s], %[x]" : [x] "+x"(x) : [s] "x"(V(s)));                      \
            V(d) = x;                                                                          \
            return;                                                                            \
        }                                                                                      \
        WITH_GUEST_MXCSR(instruction " %[s], %[x]", [x] "+x"(x)                                \
                         : [s] "x"(V(s)), [in] "m"(in_), [host] "m"(host_mxcsr));              \
        V(d) = x;                                                                              \
    }
#define COMPARES(op)                                                                           \
    OP2(op##ps, #op "ps")                                                                      \
    OP2(op##pd, #op "pd")                                                                      \
    COMPARE(op##ss, #op "ss", l[0], NORMAL_32)                                                 \
    COMPARE(op##sd, #op "sd", q[0], NORMAL_64)
COMPARES(min)
COMPARES(max)
COMPARES(cmpeq)
COMPARES(cmplt)
COMPARES(cmple)
COMPARES(cmpunord)
COMPARES(cmpneq)
COMPARES(cmpnlt)
COMPARES(cmpnle)
COMPARES(cmpord)

/* A double that becomes a float. */
#define SCALAR_TO_FLOAT(name)                                                                  \
    static void dfvm_helper_##name(Env *env, Xmm *d, Xmm *s)                                   \
    {                                                                                          \
        uintptr_t ra = RETADDR;                                                                \
        v4 x = V(d);                                                                           \
        if (ORDINARY(env) && NORMAL_64(s->q[0])) {                                             \
            Xmm result;                                                                        \
            asm(#name " %[s], %[x]" : [x] "+x"(x) : [s] "x"(V(s)));                            \
            V(&result) = x;                                                                    \
            if (NORMAL_32(result.l[0])) {                                                      \
                V(d) = x;                                                                      \
                return;                                                                        \
            }                                                                                  \
            x = V(d);                                                                          \
        }                                                                                      \
        WITH_GUEST_MXCSR(#name " %[s], %[x]", [x] "+x"(x)                                      \
                         : [s] "x"(V(s)), [in] "m"(in_), [host] "m"(host_mxcsr));              \
        V(d) = x;                                                                              \
    }

OP2(haddps, "haddps")
OP2(haddpd, "haddpd")
OP2(hsubps, "hsubps")
OP2(hsubpd, "hsubpd")
OP2(addsubps, "addsubps")
OP2(addsubpd, "addsubpd")
OP2(rcpps, "rcpps")
OP2(rcpss, "rcpss")
OP2(rsqrtps, "rsqrtps")
OP2(rsqrtss, "rsqrtss")
OP2(cvtps2pd, "cvtps2pd")
OP2(cvtpd2ps, "cvtpd2ps")
SCALAR(cvtss2sd, "cvtss2sd", l[0], NORMAL_32, false)
SCALAR_TO_FLOAT(cvtsd2ss)
OP2(cvtdq2ps, "cvtdq2ps")
OP2(cvtdq2pd, "cvtdq2pd")
OP2(cvtps2dq, "cvtps2dq")
OP2(cvtpd2dq, "cvtpd2dq")
OP2(cvttps2dq, "cvttps2dq")
OP2(cvttpd2dq, "cvttpd2dq")

#define FROM_INT(name, instruction, type)                                                      \
    static void dfvm_helper_##name(Env *env, Xmm *d, type value)                               \
    {                                                                                          \
        uintptr_t ra = RETADDR;                                                                \
        v4 x = V(d);                                                                           \
        if (ORDINARY(env)) { /* it can be inexact, and that is all */                          \
            asm(instruction " %[s], %[x]" : [x] "+x"(x) : [s] "r"(value));                     \
            V(d) = x;                                                                          \
            return;                                                                            \
        }                                                                                      \
        WITH_GUEST_MXCSR(instruction " %[s], %[x]", [x] "+x"(x)                                \
                         : [s] "r"(value), [in] "m"(in_), [host] "m"(host_mxcsr));             \
        V(d) = x;                                                                              \
    }
FROM_INT(cvtsi2ss, "cvtsi2ssl", i32)
FROM_INT(cvtsq2ss, "cvtsi2ssq", i64)
FROM_INT(cvtsq2sd, "cvtsi2sdq", i64)
/* This one is exact. */
static void dfvm_helper_cvtsi2sd(Env *env, Xmm *d, i32 value)
{
    (void)env;
    d->d[0] = value;
}

#define TO_INT(name, instruction, type, exponent)                                              \
    static type dfvm_helper_##name(Env *env, Xmm *s)                                           \
    {                                                                                          \
        uintptr_t ra = RETADDR;                                                                \
        type x;                                                                                \
        if (ORDINARY(env) && (exponent) - 2 < SAFE_##type) { /* and it fits */                 \
            asm(instruction " %[s], %[x]" : [x] "=r"(x) : [s] "x"(V(s)));                      \
            return x;                                                                          \
        }                                                                                      \
        WITH_GUEST_MXCSR(instruction " %[s], %[x]", [x] "=r"(x)                                \
                         : [s] "x"(V(s)), [in] "m"(in_), [host] "m"(host_mxcsr));              \
        return x;                                                                              \
    }
/* As those of a double. */
#define EXPONENT_32 ((s->l[0] >> 23 & 0xff) + (s->l[0] >> 23 & 0xff ? 1023u - 127 : 0u))
#define EXPONENT_64 ((u32)(s->q[0] >> 52) & 0x7ff)
#define SAFE_i32 (1023u + 28) /* less than 2**30 */
#define SAFE_i64 (1023u + 60)
TO_INT(cvtss2si, "cvtss2si", i32, EXPONENT_32)
TO_INT(cvtsd2si, "cvtsd2si", i32, EXPONENT_64)
TO_INT(cvtss2sq, "cvtss2si", i64, EXPONENT_32)
TO_INT(cvtsd2sq, "cvtsd2si", i64, EXPONENT_64)
TO_INT(cvttss2si, "cvttss2si", i32, EXPONENT_32)
TO_INT(cvttsd2si, "cvttsd2si", i32, EXPONENT_64)
TO_INT(cvttss2sq, "cvttss2si", i64, EXPONENT_32)
TO_INT(cvttsd2sq, "cvttsd2si", i64, EXPONENT_64)

/* What goes to and from MMX registers is computed in XMM registers: two of four numbers, or two. */
#define FROM_MMX(name, other, half)                                                            \
    static void dfvm_helper_##name(Env *env, Xmm *d, Mmx *s)                                   \
    {                                                                                          \
        Xmm from = {.q = {s->q}}, to = *d;                                                     \
        other##_of(env, &to, &from, RETADDR);                                                  \
        d->q[0] = to.q[0];                                                                     \
        if (!(half))                                                                           \
            d->q[1] = to.q[1];                                                                 \
    }
FROM_MMX(cvtpi2ps, cvtdq2ps, true)
FROM_MMX(cvtpi2pd, cvtdq2pd, false)

#define TO_MMX(name, other, half)                                                              \
    static void dfvm_helper_##name(Env *env, Mmx *d, Xmm *s)                                   \
    {                                                                                          \
        Xmm from = {.q = {s->q[0], half ? 0 : s->q[1]}}, to = from;                                   \
        other##_of(env, &to, &from, RETADDR);                                                  \
        d->q = to.q[0];                                                                        \
    }
TO_MMX(cvtps2pi, cvtps2dq, true)
TO_MMX(cvtpd2pi, cvtpd2dq, false)
TO_MMX(cvttps2pi, cvttps2dq, true)
TO_MMX(cvttpd2pi, cvttpd2dq, false)

/* Comparisons that set the flags. */
#define COMPARE_FLAGS(name, type, field, number, normal)                                       \
    static void dfvm_helper_##name(Env *env, Xmm *d, Xmm *s)                                   \
    {                                                                                          \
        uintptr_t ra = RETADDR;                                                                \
        u64 flags;                                                                             \
        if (normal(d->field) && normal(s->field)) {                                            \
            type a = d->number, b = s->number;                                                 \
            env->cc_src = a == b ? CC_Z : a < b ? CC_C : 0;                                    \
            return;                                                                            \
        }                                                                                      \
        WITH_GUEST_MXCSR(#name " %[s], %[x]\n\tpushfq\n\tpop %[flags]", [flags] "=&r"(flags)   \
                         : [s] "x"(V(s)), [x] "x"(V(d)), [in] "m"(in_),                        \
                           [host] "m"(host_mxcsr)                                              \
                         : "cc", "memory");                                                    \
        env->cc_src = flags & CC_ALL;                                                          \
    }
COMPARE_FLAGS(ucomiss, float, l[0], s[0], NORMAL_32)
COMPARE_FLAGS(comiss, float, l[0], s[0], NORMAL_32)
COMPARE_FLAGS(ucomisd, double, q[0], d[0], NORMAL_64)
COMPARE_FLAGS(comisd, double, q[0], d[0], NORMAL_64)

/* With an immediate operand: one instruction for each value that makes a difference. */
#define CASE(n, instruction)                                                                   \
    case n:                                                                                    \
        asm volatile("ldmxcsr %[in]\n\t" instruction " $" #n ", %[s], %[x]\n\t"                \
                     "stmxcsr %[out]\n\tldmxcsr %[host]"                                       \
                     : [out] "=m"(out), [x] "+x"(x)                                            \
                     : [s] "x"(V(s)), [in] "m"(in), [host] "m"(host_mxcsr));                   \
        break;
#define CASES_4(i, a, b, c, d) CASE(a, i) CASE(b, i) CASE(c, i) CASE(d, i)
#define CASES_16(i)                                                                            \
    CASES_4(i, 0, 1, 2, 3) CASES_4(i, 4, 5, 6, 7) CASES_4(i, 8, 9, 10, 11)                     \
    CASES_4(i, 12, 13, 14, 15)

#define ROUND(name)                                                                            \
    static void name##_of(Env *env, Xmm *d, Xmm *s, u32 mode, uintptr_t ra)                    \
    {                                                                                          \
        v4 x = V(d);                                                                           \
        u32 in = GUEST_MXCSR(env), out = 0;                                                    \
        switch (mode & 15) { CASES_16(#name) }                                                 \
        if (traps(env, out))                                                                   \
            raise_fault(env, XF, 0, ra);                                                       \
        V(d) = x;                                                                              \
    }                                                                                          \
    static void dfvm_helper_##name##_xmm(Env *env, Xmm *d, Xmm *s, u32 mode)                   \
    {                                                                                          \
        name##_of(env, d, s, mode, RETADDR);                                                   \
    }
ROUND(roundps)
ROUND(roundpd)
ROUND(roundss)
ROUND(roundsd)

/* For an operand in memory, which the engine does not fetch as it should. */
void sse_round_scalar(Env *env, Xmm *d, Xmm *s, u32 mode, unsigned size, uintptr_t ra)
{
    if (size == 4)
        roundss_of(env, d, s, mode, ra);
    else
        roundsd_of(env, d, s, mode, ra);
}

/* Dot products: the upper bits of the immediate select what is multiplied, the lower where the sum
 * goes; the order of the additions is the processor's. */
#define ROW(i, h)                                                                              \
    CASES_4(i, h##0, h##1, h##2, h##3) CASES_4(i, h##4, h##5, h##6, h##7)                      \
    CASES_4(i, h##8, h##9, h##a, h##b) CASES_4(i, h##c, h##d, h##e, h##f)
#define CASES_256(i)                                                                           \
    ROW(i, 0x0) ROW(i, 0x1) ROW(i, 0x2) ROW(i, 0x3) ROW(i, 0x4) ROW(i, 0x5) ROW(i, 0x6)        \
    ROW(i, 0x7) ROW(i, 0x8) ROW(i, 0x9) ROW(i, 0xa) ROW(i, 0xb) ROW(i, 0xc) ROW(i, 0xd)        \
    ROW(i, 0xe) ROW(i, 0xf)

#define DOT(name)                                                                              \
    static void dfvm_helper_##name##_xmm(Env *env, Xmm *d, Xmm *s, u32 mask)                   \
    {                                                                                          \
        uintptr_t ra = RETADDR;                                                                \
        v4 x = V(d);                                                                           \
        u32 in = GUEST_MXCSR(env), out = 0;                                                    \
        switch (mask & 255) { CASES_256(#name) }                                               \
        if (traps(env, out))                                                                   \
            raise_fault(env, XF, 0, ra);                                                  \
        V(d) = x;                                                                              \
    }
DOT(dpps)
DOT(dppd)

/* Horizontal operations on integers: the engine writes half of the result before it reads the rest of
 * an operand that may be the same register. */
#define HORIZONTAL(name)                                                                       \
    static void dfvm_helper_##name##_xmm(Env *env, Xmm *d, Xmm *s)                             \
    {                                                                                          \
        v4 x = V(d);                                                                           \
        (void)env;                                                                             \
        asm(#name " %[s], %[x]" : [x] "+x"(x) : [s] "x"(V(s)));                                \
        V(d) = x;                                                                              \
    }                                                                                          \
    static void dfvm_helper_##name##_mmx(Env *env, Mmx *d, Mmx *s)                             \
    {                                                                                          \
        Xmm both = {.q = {d->q, s->q}};                                                        \
        dfvm_helper_##name##_xmm(env, &both, &both);                                           \
        d->q = both.q[0];                                                                      \
    }
HORIZONTAL(phaddw)
HORIZONTAL(phaddd)
HORIZONTAL(phaddsw)
HORIZONTAL(phsubw)
HORIZONTAL(phsubd)
HORIZONTAL(phsubsw)

/* String comparisons set flags and ECX or XMM0, and no exceptions. */
#define STRING_CASE(n, instruction)                                                            \
    case n:                                                                                    \
        asm volatile(instruction " $" #n ", %[s], %[x]\n\tpushfq\n\tpop %[flags]"              \
                     : [flags] "=r"(flags), "+c"(index), "+Yz"(mask)                           \
                     : [s] "x"(V(s)), [x] "x"(V(d)), "a"(la), "d"(ld)                          \
                     : "cc", "memory");                                                        \
        break;
#undef CASE
#define CASE(n, i) STRING_CASE(n, i)

#define STRING(name, lengths, result)                                                          \
    static void dfvm_helper_##name##_xmm(Env *env, Xmm *d, Xmm *s, u32 mode)                   \
    {                                                                                          \
        u64 flags = 0, index = 0, la = lengths(env, RAX, mode), ld = lengths(env, RDX, mode);  \
        v4 mask = {0};                                                                         \
        switch (mode & 0x7f) {                                                                 \
            ROW(#name, 0x0) ROW(#name, 0x1) ROW(#name, 0x2) ROW(#name, 0x3) ROW(#name, 0x4)    \
            ROW(#name, 0x5) ROW(#name, 0x6) ROW(#name, 0x7)                                    \
        }                                                                                      \
        result;                                                                                \
        env->cc_src = flags & CC_ALL;                                                          \
    }
/* The engine puts REX.W into bit 8 of the immediate. */
#define LENGTH(env, reg, mode) ((mode) & 0x100 ? length_64((env)->regs[reg]) : (u64)(i64)(i32)(env)->regs[reg])
#define NO_LENGTH(env, reg, mode) 0

/* EAX and EDX are looked at here: what is beyond 16 elements either way counts as 16. */
static inline u64 length_64(u64 value)
{
    i64 n = (i64)value;
    return n > 16 || n < -16 ? 16 : (u64)n;
}

STRING(pcmpestri, LENGTH, env->regs[RCX] = index)
STRING(pcmpestrm, LENGTH, V(&env->xmm[0]) = mask)
STRING(pcmpistri, NO_LENGTH, env->regs[RCX] = index)
STRING(pcmpistrm, NO_LENGTH, V(&env->xmm[0]) = mask)

static void dfvm_helper_ldmxcsr(Env *env, u32 value)
{
    if (value & ~0xffffu)
        raise_fault(env, GP, 0, RETADDR);
    env->mxcsr = value;
}

#define ALL_4(op)                                                                              \
    OURS(helper_##op##ps), OURS(helper_##op##pd), OURS(helper_##op##ss), OURS(helper_##op##sd)

#define MMX_AND_XMM(name) OURS(helper_##name##_xmm), OURS(helper_##name##_mmx)

const Replacement replace_sse[] = {
    MMX_AND_XMM(phaddw), MMX_AND_XMM(phaddd), MMX_AND_XMM(phaddsw), MMX_AND_XMM(phsubw),
    MMX_AND_XMM(phsubd), MMX_AND_XMM(phsubsw),
    ALL_4(add), ALL_4(sub), ALL_4(mul), ALL_4(div), ALL_4(sqrt), ALL_4(min), ALL_4(max),
    ALL_4(cmpeq), ALL_4(cmplt), ALL_4(cmple), ALL_4(cmpunord), ALL_4(cmpneq), ALL_4(cmpnlt),
    ALL_4(cmpnle), ALL_4(cmpord),
    OURS(helper_haddps), OURS(helper_haddpd), OURS(helper_hsubps), OURS(helper_hsubpd),
    OURS(helper_addsubps), OURS(helper_addsubpd), OURS(helper_rcpps), OURS(helper_rcpss),
    OURS(helper_rsqrtps), OURS(helper_rsqrtss), OURS(helper_cvtps2pd), OURS(helper_cvtpd2ps),
    OURS(helper_cvtss2sd), OURS(helper_cvtsd2ss), OURS(helper_cvtdq2ps), OURS(helper_cvtdq2pd),
    OURS(helper_cvtps2dq), OURS(helper_cvtpd2dq), OURS(helper_cvttps2dq), OURS(helper_cvttpd2dq),
    OURS(helper_cvtsi2ss), OURS(helper_cvtsi2sd), OURS(helper_cvtsq2ss), OURS(helper_cvtsq2sd),
    OURS(helper_cvtss2si), OURS(helper_cvtsd2si), OURS(helper_cvtss2sq), OURS(helper_cvtsd2sq),
    OURS(helper_cvttss2si), OURS(helper_cvttsd2si), OURS(helper_cvttss2sq), OURS(helper_cvttsd2sq),
    OURS(helper_cvtpi2ps), OURS(helper_cvtpi2pd), OURS(helper_cvtps2pi), OURS(helper_cvtpd2pi),
    OURS(helper_cvttps2pi), OURS(helper_cvttpd2pi), OURS(helper_ucomiss), OURS(helper_comiss),
    OURS(helper_ucomisd), OURS(helper_comisd), OURS(helper_roundps_xmm), OURS(helper_roundpd_xmm),
    OURS(helper_roundss_xmm), OURS(helper_roundsd_xmm), OURS(helper_dpps_xmm), OURS(helper_dppd_xmm),
    OURS(helper_pcmpestri_xmm), OURS(helper_pcmpestrm_xmm), OURS(helper_pcmpistri_xmm),
    OURS(helper_pcmpistrm_xmm), OURS(helper_ldmxcsr), END,
};
