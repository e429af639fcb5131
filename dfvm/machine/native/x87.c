/* x87, executed by the host's.
 *
 * Every x87 instruction of the guest is a call that executes this very instruction, on the guest's x87
 * state, which is in the host's x87 while the guest runs: from the first such instruction after the
 * engine was entered until it is left or something else wants to see the state (an MMX instruction,
 * FXSAVE). The engine itself uses no x87. So every result, flag, tag and stack fault is the processor's.
 *
 * An instruction that waits (most do) raises an exception that an earlier one has left behind unmasked.
 * On the host that would be a signal; so when exceptions are unmasked we look first. */

#include "native.h"
#include "replace.h"

/* The state as FNSAVE and FRSTOR have it. */
typedef struct __attribute__((packed)) {
    u16 control, pad0, status, pad1, tags, pad2;
    u32 fip;
    u16 fcs, fop;
    u32 fdp;
    u16 fds, pad3;
    struct __attribute__((packed)) {
        u64 mantissa;
        u16 exponent;
    } st[8];
} Fsave;

#define EMPTY 3
#define ES 0x80
#define MASKED 0x3f

static __thread __attribute__((tls_model("initial-exec"))) struct {
    Env *env;      /* whose state the host's x87 holds; NULL: nobody's */
    bool unmasked; /* an exception may be pending */
} live;

static void load(Env *env)
{
    Fsave image = {.control = env->fpuc, .pad0 = 0xffff, .pad1 = 0xffff, .pad2 = 0xffff};
    unsigned top = env->fpstt & 7;
    image.status = (env->fpus & ~0x3800) | top << 11;
    for (unsigned i = 0; i < 8; i++) {
        if (env->fptags[i])
            image.tags |= EMPTY << 2 * i;
        image.st[i].mantissa = env->fpregs[(top + i) & 7].mantissa;
        image.st[i].exponent = env->fpregs[(top + i) & 7].exponent;
    }
    asm volatile("frstor %0" : : "m"(image));
    live.env = env;
    live.unmasked = (env->fpuc & MASKED) != MASKED;
}

/* Bring the guest's state back to where the engine and Python look for it. */
void x87_sync(Env *env)
{
    if (live.env != env)
        return;
    Fsave image;
    asm volatile("fnsave %0" : "=m"(image));
    live.env = NULL;
    unsigned top = image.status >> 11 & 7;
    env->fpstt = top;
    env->fpus = image.status & ~0x3800;
    env->fpuc = image.control;
    for (unsigned i = 0; i < 8; i++) {
        env->fptags[i] = (image.tags >> 2 * i & 3) == EMPTY;
        env->fpregs[(top + i) & 7].mantissa = image.st[i].mantissa;
        env->fpregs[(top + i) & 7].exponent = image.st[i].exponent;
    }
}

/* One piece of code for each instruction: without an operand in memory, by the low three bits of the
 * opcode and the low six of ModRM, four bytes each; with one, which is at RDI, by the opcode's bits and
 * those of ModRM that select the operation, and the same with prefix 66. */
asm(".pushsection .text\n"
    ".balign 64\n"
    "x87_registers:\n"
    ".set op, 0xd8\n"
    ".rept 8\n"
    ".set modrm, 0xc0\n"
    ".rept 64\n"
    ".byte op, modrm, 0xc3, 0xcc\n"
    ".set modrm, modrm + 1\n"
    ".endr\n"
    ".set op, op + 1\n"
    ".endr\n"
    "x87_memory:\n"
    ".set op, 0xd8\n"
    ".rept 8\n"
    ".set modrm, 0x07\n"
    ".rept 8\n"
    ".byte op, modrm, 0xc3, 0xcc, 0x66, op, modrm, 0xc3\n"
    ".set modrm, modrm + 8\n"
    ".endr\n"
    ".set op, op + 1\n"
    ".endr\n"
    ".popsection\n");
extern const u8 x87_registers[], x87_memory[];

static inline const u8 *on_registers(u8 op, u8 modrm)
{
    return x87_registers + ((op & 7) * 64 + (modrm & 63)) * 4;
}

static inline const u8 *on_memory(u8 op, u8 modrm, bool opsize)
{
    return x87_memory + ((op & 7) * 8 + (modrm >> 3 & 7)) * 8 + (opsize ? 4 : 0);
}

static inline void call(const u8 *code, void *operand)
{
    asm volatile("call *%[code]" : "+D"(operand) : [code] "r"(code) : "memory", "cc");
}

static inline u16 status(void)
{
    u16 word;
    asm volatile("fnstsw %0" : "=a"(word));
    return word;
}

static inline void take(Env *env, uintptr_t ra, bool waits)
{
    if (live.env != env)
        load(env);
    if (__builtin_expect(live.unmasked, 0) && waits && status() & ES)
        raise_fault(env, MF, 0, ra);
}

static void control_changed(void)
{
    u16 control;
    asm volatile("fnstcw %0" : "=m"(control));
    live.unmasked = (control & MASKED) != MASKED;
}

static void run_registers(Env *env, const Insn *in, uintptr_t ra)
{
    take(env, ra, true);
    call(on_registers(in->opcode, in->modrm), NULL);
}

/* FNCLEX, FNINIT, and what they did before the 80387: these do not wait. */
static void run_control(Env *env, const Insn *in, uintptr_t ra)
{
    take(env, ra, false);
    call(on_registers(in->opcode, in->modrm), NULL);
    control_changed();
}

static void run_fnstsw_ax(Env *env, const Insn *in, uintptr_t ra)
{
    (void)in;
    take(env, ra, false);
    memcpy(&env->regs[RAX], &(u16){status()}, 2);
}

/* FCMOVcc reads the flags; FCOMI and its kin set ZF, PF and CF, and clear the others. */
static void run_flags(Env *env, const Insn *in, uintptr_t ra)
{
    u32 flags = get_flags(env);
    u64 ah = (flags & 0xff) << 8;
    take(env, ra, true);
    asm volatile("sahf\n\tcall *%[code]\n\tlahf"
                 : "+a"(ah)
                 : [code] "r"(on_registers(in->opcode, in->modrm))
                 : "memory", "cc");
    if (in->opcode == 0xda || (in->opcode == 0xdb && in->modrm < 0xe0))
        return;
    set_flags(env, ah >> 8 & (CC_Z | CC_P | CC_C));
}

/* Bytes that an operand in memory has, by opcode and operation; negative: they are stored. */
static int operand_bytes(u8 op, u8 n, bool opsize)
{
    static const signed char bytes[8][8] = {
        {4, 4, 4, 4, 4, 4, 4, 4},
        {4, 0, -4, -4, 28, 2, -28, -2},
        {4, 4, 4, 4, 4, 4, 4, 4},
        {4, -4, -4, -4, 0, 10, 0, -10},
        {8, 8, 8, 8, 8, 8, 8, 8},
        {8, -8, -8, -8, 108, 0, -108, -2},
        {2, 2, 2, 2, 2, 2, 2, 2},
        {2, -2, -2, -2, 10, 8, -10, -8},
    };
    int size = bytes[op & 7][n];
    if (opsize && (size == 28 || size == -28 || size == 108 || size == -108))
        size -= size > 0 ? 14 : -14;
    return size;
}

/* What an operand is aligned to, when alignment is checked. */
static unsigned unit(int size)
{
    return size == 10 ? 8 : size == 14 || size == 94 ? 2 : size > 10 ? 4 : size;
}

static void run_load(Env *env, const Insn *in, uintptr_t ra)
{
    u8 operand[108];
    u8 op = in->opcode, n = in->modrm >> 3 & 7;
    int size = operand_bytes(op, n, in->opsize);
    u64 va = effective_address(env, in);
    take(env, ra, true);
    check_aligned(env, va, unit(size), ra);
    read_guest(env, va, operand, size, ra);
    call(on_memory(op, in->modrm, in->opsize), operand);
    if ((op == 0xd9 && (n == 4 || n == 5)) || (op == 0xdd && n == 4))
        control_changed();
}

/* The pointers to the last instruction and its operand would be our own addresses. */
static void forget_pointers(u8 *operand, bool opsize)
{
    if (opsize)
        memset(operand + 6, 0, 8);
    else {
        memset(operand + 12, 0, 14);
    }
}

static void run_store(Env *env, const Insn *in, uintptr_t ra)
{
    u8 operand[108];
    u8 op = in->opcode, n = in->modrm >> 3 & 7;
    int size = -operand_bytes(op, n, in->opsize);
    bool environment = (op == 0xd9 && n == 6) || (op == 0xdd && n == 6);
    bool waits = !(environment || (op == 0xd9 && n == 7) || (op == 0xdd && n == 7));
    u64 va = effective_address(env, in);
    take(env, ra, waits);
    check_aligned(env, va, unit(size), ra);
    Target target = reach_store(env, va, size, ra);
    if (live.unmasked && waits) { /* what it stores, if it stores */
        memcpy(operand, target.one, target.n);
        memcpy(operand + target.n, target.two, size - target.n);
    }
    call(on_memory(op, in->modrm, in->opsize), operand);
    if (environment) {
        forget_pointers(operand, in->opsize);
        control_changed(); /* it masks all exceptions, or initialises */
    }
    fill_target(target, operand, size);
}

/* Whether the processor knows it. Aliases that manuals leave out are there on all of them. */
static bool known(u8 op, u8 modrm)
{
    if (modrm < 0xc0)
        return operand_bytes(op, modrm >> 3 & 7, false) != 0;
    switch (op) {
    case 0xd9: return modrm <= 0xd0 || (modrm >= 0xd8 && modrm <= 0xe1) || modrm == 0xe4 ||
                      modrm == 0xe5 || (modrm >= 0xe8 && modrm != 0xef);
    case 0xda: return modrm < 0xe0 || modrm == 0xe9;
    case 0xdb: return modrm <= 0xe4 || (modrm >= 0xe8 && modrm < 0xf8);
    case 0xdd: return modrm < 0xf0;
    case 0xde: return modrm < 0xd8 || modrm == 0xd9 || modrm >= 0xe0;
    case 0xdf: return modrm <= 0xe0 || (modrm >= 0xe8 && modrm < 0xf8);
    default: return true;
    }
}

Handler *x87_handler(const Insn *in, bool *sets_flags)
{
    u8 op = in->opcode, modrm = in->modrm;
    if (in->map != MAP_1 || in->vex || in->lock)
        return NULL;
    if ((op & 0xf8) != 0xd8 || !known(op, modrm))
        return NULL;
    if (modrm < 0xc0)
        return operand_bytes(op, modrm >> 3 & 7, false) > 0 ? run_load : run_store;
    if (op == 0xdf && modrm == 0xe0)
        return run_fnstsw_ax;
    if (op == 0xdb && modrm >= 0xe0 && modrm <= 0xe4)
        return run_control;
    if (op == 0xda && modrm < 0xe0)
        return run_flags;
    if (op == 0xdb && modrm < 0xe0)
        return run_flags;
    if ((op == 0xdb || op == 0xdf) && modrm >= 0xe8) {
        *sets_flags = true;
        return run_flags;
    }
    return run_registers;
}

/* ---- what else sees the state ---------------------------------------------------------------------- */

static int (*their_cpu_exec)(void *, Cpu *);
static int dfvm_cpu_exec(void *uc, Cpu *cpu)
{
    int why = their_cpu_exec(uc, cpu);
    x87_sync(env_of(cpu));
    return why;
}

static void pending(Env *env, uintptr_t ra)
{
    x87_sync(env);
    if (env->fpus & ES)
        raise_fault(env, MF, 0, ra);
}

/* What an MMX instruction does before anything else: the x87 state becomes one of MMX registers, all
 * in use, with the top at 0; and a register that is written gets an exponent of all ones. Not before an
 * operand in memory is known to be there. */
void x87_enter_mmx(Env *env, const Insn *in, uintptr_t ra)
{
    u8 operand[16];
    int bytes = mmx_operand(in), written = mmx_written(in);
    pending(env, ra);
    if (bytes) {
        u64 va = effective_address(env, in);
        if (bytes == 16 && va & 15)
            raise_fault(env, GP, 0, ra);
        check_aligned(env, va, bytes < 0 ? -bytes : bytes, ra);
        if (bytes > 0)
            read_guest(env, va, operand, bytes, ra);
        else
            probe_store(env, va, -bytes, ra);
    }
    env->fpstt = 0;
    memset(env->fptags, 0, 8);
    if (written >= 0)
        env->fpregs[written].exponent = 0xffff;
}

Handler *mmx_handler(const Insn *in) { return uses_mmx(in) ? x87_enter_mmx : NULL; }

/* The engine's, of which translate.c makes a call of the above where it is ring 3's; but for a conversion
 * from memory, which has nothing to do with MMX registers. */
static void (*their_enter_mmx)(Env *);
void dfvm_helper_enter_mmx(Env *env)
{
    if (!in_ring_3(env))
        their_enter_mmx(env);
}

static void dfvm_helper_emms(Env *env)
{
    pending(env, RETADDR);
    env->fpstt = 0;
    memset(env->fptags, 1, 8);
}

/* FWAIT has one byte only, so the engine translates it. */
static void dfvm_helper_fwait(Env *env)
{
    u16 word = live.env == env ? status() : env->fpus;
    if (word & ES)
        raise_fault(env, MF, 0, RETADDR);
}

/* ---- FXSAVE, XSAVE and their kin -------------------------------------------------------------------- */

#define XFEATURE_X87 1u
#define XFEATURE_SSE 2u
#define XFEATURES (XFEATURE_X87 | XFEATURE_SSE)

static void save_x87(const Env *env, u8 *image)
{
    unsigned top = env->fpstt & 7;
    u16 word = (env->fpus & ~0x3800) | top << 11;
    memset(image, 0, 24);
    memcpy(image, &env->fpuc, 2);
    memcpy(image + 2, &word, 2);
    for (unsigned i = 0; i < 8; i++)
        image[4] |= !env->fptags[i] << i;
    for (unsigned i = 0; i < 8; i++) {
        memset(image + 32 + 16 * i, 0, 16);
        memcpy(image + 32 + 16 * i, &env->fpregs[(top + i) & 7], 10);
    }
}

static void restore_x87(Env *env, const u8 *image)
{
    u16 word;
    memcpy(&env->fpuc, image, 2);
    env->fpuc = (env->fpuc & 0x1f3f) | 0x40;
    memcpy(&word, image + 2, 2);
    unsigned top = word >> 11 & 7;
    env->fpstt = top;
    env->fpus = word & ~(0x3800 | ES | 0x8000);
    if (word & ~env->fpuc & MASKED)
        env->fpus |= ES | 0x8000;
    for (unsigned i = 0; i < 8; i++) {
        env->fptags[i] = !(image[4] >> i & 1);
        memcpy(&env->fpregs[(top + i) & 7], image + 32 + 16 * i, 10);
    }
}

static void init_x87(Env *env)
{
    env->fpuc = 0x37f;
    env->fpus = 0;
    env->fpstt = 0;
    memset(env->fptags, 1, 8);
    memset(env->fpregs, 0, sizeof env->fpregs);
}

static void (*their_fxsave)(Env *, u64);
static void dfvm_helper_fxsave(Env *env, u64 va)
{
    if (!in_ring_3(env)) {
        their_fxsave(env, va);
        return;
    }
    uintptr_t ra = RETADDR;
    u8 image[512];
    if (va & 15)
        raise_fault(env, GP, 0, ra);
    x87_sync(env);
    probe_store(env, va, 512, ra);
    save_x87(env, image);
    memcpy(image + 24, &env->mxcsr, 4);
    memcpy(image + 28, &(u32){0xffff}, 4);
    for (int i = 0; i < 16; i++)
        memcpy(image + 160 + 16 * i, &env->xmm[i], 16);
    write_guest(env, va, image, 416, ra); /* the rest is left alone */
}

static void (*their_fxrstor)(Env *, u64);
static void dfvm_helper_fxrstor(Env *env, u64 va)
{
    if (!in_ring_3(env)) {
        their_fxrstor(env, va);
        return;
    }
    uintptr_t ra = RETADDR;
    u8 image[512];
    u32 mxcsr;
    if (va & 15)
        raise_fault(env, GP, 0, ra);
    read_guest(env, va, image, 512, ra);
    memcpy(&mxcsr, image + 24, 4);
    if (mxcsr & ~0xffffu)
        raise_fault(env, GP, 0, ra);
    x87_sync(env);
    restore_x87(env, image);
    env->mxcsr = mxcsr;
    for (int i = 0; i < 16; i++)
        memcpy(&env->xmm[i], image + 160 + 16 * i, 16);
}

/* Which components are not in their initial state. */
static u64 in_use(const Env *env)
{
    u64 used = 0, any = env->fpuc ^ 0x37f;
    any |= env->fpus | env->fpstt;
    for (int i = 0; i < 8; i++)
        any |= (env->fptags[i] ^ 1) | env->fpregs[i].mantissa | env->fpregs[i].exponent;
    if (any)
        used |= XFEATURE_X87;
    any = 0;
    for (int i = 0; i < 16; i++)
        any |= env->xmm[i].q[0] | env->xmm[i].q[1];
    if (any)
        used |= XFEATURE_SSE;
    return used;
}

static void xsave(Env *env, u64 va, u64 wanted, bool optimised, uintptr_t ra)
{
    u8 image[576];
    u64 present;
    if (va & 63)
        raise_fault(env, GP, 0, ra);
    wanted &= XFEATURES;
    x87_sync(env);
    probe_store(env, va, 576, ra);
    read_guest(env, va, image, 576, ra);
    u64 used = in_use(env), written = optimised ? wanted & used : wanted;
    if (written & XFEATURE_X87)
        save_x87(env, image);
    if (wanted & XFEATURE_SSE) {
        memcpy(image + 24, &env->mxcsr, 4);
        memcpy(image + 28, &(u32){0xffff}, 4);
    }
    if (written & XFEATURE_SSE)
        for (int i = 0; i < 16; i++)
            memcpy(image + 160 + 16 * i, &env->xmm[i], 16);
    memcpy(&present, image + 512, 8);
    present = (present & ~wanted) | (used & wanted);
    memcpy(image + 512, &present, 8);
    write_guest(env, va, image, 520, ra);
}

static void (*their_xsave)(Env *, u64, u64);
static void dfvm_helper_xsave(Env *env, u64 va, u64 wanted)
{
    if (!in_ring_3(env)) {
        their_xsave(env, va, wanted);
        return;
    }
    xsave(env, va, wanted, false, RETADDR);
}

static void (*their_xsaveopt)(Env *, u64, u64);
static void dfvm_helper_xsaveopt(Env *env, u64 va, u64 wanted)
{
    if (!in_ring_3(env)) {
        their_xsaveopt(env, va, wanted);
        return;
    }
    xsave(env, va, wanted, true, RETADDR);
}

static void (*their_xrstor)(Env *, u64, u64);
static void dfvm_helper_xrstor(Env *env, u64 va, u64 wanted)
{
    if (!in_ring_3(env)) {
        their_xrstor(env, va, wanted);
        return;
    }
    uintptr_t ra = RETADDR;
    u8 image[576];
    u64 header[8];
    u32 mxcsr;
    if (va & 63)
        raise_fault(env, GP, 0, ra);
    read_guest(env, va, image, 576, ra);
    memcpy(header, image + 512, 64);
    for (int i = 1; i < 8; i++)
        if (header[i])
            raise_fault(env, GP, 0, ra);
    memcpy(&mxcsr, image + 24, 4);
    if (header[0] & ~(u64)XFEATURES || (wanted & XFEATURE_SSE && mxcsr & ~0xffffu))
        raise_fault(env, GP, 0, ra);
    x87_sync(env);
    if (wanted & XFEATURE_X87) {
        if (header[0] & XFEATURE_X87)
            restore_x87(env, image);
        else
            init_x87(env);
    }
    if (wanted & XFEATURE_SSE) {
        env->mxcsr = mxcsr;
        for (int i = 0; i < 16; i++)
            if (header[0] & XFEATURE_SSE)
                memcpy(&env->xmm[i], image + 160 + 16 * i, 16);
            else
                memset(&env->xmm[i], 0, 16);
    }
}

const Replacement replace_x87[] = {
    OURS_AND(cpu_exec, their_cpu_exec),
    OURS_AND(helper_enter_mmx, their_enter_mmx),
    OURS(helper_emms),
    OURS(helper_fwait),
    OURS_AND(helper_fxsave, their_fxsave),
    OURS_AND(helper_fxrstor, their_fxrstor),
    OURS_AND(helper_xsave, their_xsave),
    OURS_AND(helper_xsaveopt, their_xsaveopt),
    OURS_AND(helper_xrstor, their_xrstor),
    END,
};
