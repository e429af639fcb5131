/* Instructions that the engine gets wrong, or slowly, done by us. Which they are is in handler_for. */

#include "native.h"
#include "replace.h"

/* ---- operands -------------------------------------------------------------------------------------- */

static inline u64 mask_of(unsigned bytes) { return bytes == 8 ? ~0ull : (1ull << 8 * bytes) - 1; }
static inline u64 sign_of(unsigned bytes) { return 1ull << (8 * bytes - 1); }

/* A general register of one byte: without REX, 4 to 7 are AH, CH, DH, BH. */
static u8 *byte_register(Env *env, const Insn *in, u8 n)
{
    if (!in->rex && n >= 4 && n < 8)
        return (u8 *)&env->regs[n - 4] + 1;
    return (u8 *)&env->regs[n];
}

static u64 get_register(Env *env, const Insn *in, u8 n)
{
    return in->width == 1 ? *byte_register(env, in, n) : env->regs[n] & mask_of(in->width);
}

static void set_register(Env *env, const Insn *in, u8 n, u64 value)
{
    if (in->width == 1)
        *byte_register(env, in, n) = value;
    else if (in->width == 2)
        memcpy(&env->regs[n], &value, 2);
    else
        env->regs[n] = value & mask_of(in->width);
}

/* The operand that ModRM's rm names. `written`: it will be, so that must be possible. */
static u64 get_rm(Env *env, const Insn *in, bool written, uintptr_t ra)
{
    u64 value = 0;
    if (in->mod == 3)
        return get_register(env, in, in->rm);
    u64 va = effective_address(env, in);
    check_aligned(env, va, in->width, ra);
    if (written)
        probe_store(env, va, in->width, ra);
    read_guest(env, va, &value, in->width, ra);
    return value;
}

static void set_rm(Env *env, const Insn *in, u64 value, uintptr_t ra)
{
    if (in->mod == 3)
        set_register(env, in, in->rm, value);
    else
        write_guest(env, effective_address(env, in), &value, in->width, ra);
}

static u32 result_flags(u64 result, unsigned bytes)
{
    u32 flags = 0;
    result &= mask_of(bytes);
    if (!result)
        flags |= CC_Z;
    if (result & sign_of(bytes))
        flags |= CC_S;
    if (!__builtin_parity(result & 0xff))
        flags |= CC_P;
    return flags;
}

static u32 subtract_flags(u64 a, u64 b, unsigned bytes)
{
    u64 mask = mask_of(bytes), r = (a - b) & mask;
    u32 flags = result_flags(r, bytes);
    if ((a & mask) < (b & mask))
        flags |= CC_C;
    if ((a ^ b ^ r) & 0x10)
        flags |= CC_A;
    if ((a ^ b) & (a ^ r) & sign_of(bytes))
        flags |= CC_O;
    return flags;
}

/* An instruction that the engine knows under another encoding: that one, of the same length. */
bool other_encoding(const Insn *in, u8 *code)
{
    u8 op = in->opcode, n = in->modrm >> 3 & 7;
    memcpy(code, in->bytes, in->length);
    if (in->vex) {
        if (in->base == 16 && in->map == MAP_0F3A && op == 0xf0) { /* RORX, as below */
            i32 disp = (i32)in->disp + 1;
            memcpy(code + in->modrm_at + 1, &disp, 4);
            return true;
        }
        return false;
    }
    if (in->map == MAP_1 && (op == 0xf6 || op == 0xf7) && n == 1) { /* TEST once more */
        code[in->modrm_at] &= ~0x38;
        return true;
    }
    if (in->map == MAP_1 && (op == 0x9e || op == 0x9f) && in->rex) { /* AH is AH here, too */
        memset(code, 0x2e, in->length - 1);
        return true;
    }
    if (uses_mmx(in) && in->reg > 7 && !(in->map == MAP_0F && (op == 0x2a || op == 0xc5 || op == 0xd7))) { /* there are eight MMX registers */
        for (int i = 0; i < in->length; i++)
            if ((code[i] & 0xf0) == 0x40 && code[i + 1] == 0x0f) {
                code[i] &= ~4;
                return true;
            }
    }
    bool changed = false;
    if (in->map == MAP_0F && op == 0x18 && in->mod == 3) { /* a prefetch of nothing is a NOP */
        code[in->modrm_at - 1] = 0x1f;
        return true;
    }
    if (in->base == 16 && in->map == MAP_0F && (op == 0xa4 || op == 0xac)) {
        /* the engine forgets that RIP is behind the immediate operand, too */
        i32 disp = (i32)in->disp + 1;
        memcpy(code + in->modrm_at + 1, &disp, 4);
        changed = true;
    }
    if (in->map == MAP_0F && op == 0xc2 && in->imm & ~7) { /* there are eight comparisons */
        code[in->length - 1] &= 7;
        changed = true;
    }
    if (in->rep && is_sse(in)) { /* F2 and F3 come before 66, in whatever order, and the last of them */
        for (int i = 0; code[i] != 0x0f; i++)
            if (code[i] == 0x66 || code[i] == (in->rep ^ 1))
                code[i] = in->rep; /* once more: 2E would name a segment */
        changed = true;
    }
    return changed;
}

/* ---- RCL, RCR in memory: the engine has changed the carry before the store faults --------------------- */

static void rotate_carry(Env *env, const Insn *in, uintptr_t ra)
{
    unsigned bits = in->width * 8, count;
    u64 value = get_rm(env, in, true, ra);
    u32 flags = get_flags(env);
    if (in->opcode < 0xd0)
        count = in->imm;
    else
        count = in->opcode < 0xd2 ? 1 : env->regs[RCX] & 0xff;
    count &= bits == 64 ? 63 : 31;
    bool any = count != 0, left = (in->modrm >> 3 & 7) == 2;
    count %= bits + 1;
    u128 wide = value | (u128)(flags & CC_C) << bits; /* the carry is one more bit at the top */
    u128 all = ((u128)1 << (bits + 1)) - 1;
    if (count) {
        unsigned up = left ? count : bits + 1 - count;
        wide = (wide << up | wide >> (bits + 1 - up)) & all;
    }
    value = (u64)wide & mask_of(in->width);
    set_rm(env, in, value, ra);
    if (any) {
        bool carry = wide >> bits & 1, top = value & sign_of(in->width);
        bool next = value & sign_of(in->width) >> 1;
        flags &= ~(CC_C | CC_O);
        flags |= carry ? CC_C : 0;
        flags |= (left ? top != carry : top != next) ? CC_O : 0;
    }
    set_flags(env, flags);
}

/* ---- LOCK NEG ----------------------------------------------------------------------------------------- */

static void negate(Env *env, const Insn *in, uintptr_t ra)
{
    u64 value = get_rm(env, in, true, ra);
    set_rm(env, in, -value, ra);
    set_flags(env, subtract_flags(0, value, in->width));
}

/* ---- CMPXCHG of 32 bits: a register that is not changed keeps its upper half ---------------------------- */

static void compare_exchange(Env *env, const Insn *in, uintptr_t ra)
{
    u64 old = get_rm(env, in, true, ra), accumulator = (u32)env->regs[RAX];
    if (old == accumulator)
        set_rm(env, in, get_register(env, in, in->reg), ra);
    else
        env->regs[RAX] = old;
    set_flags(env, subtract_flags(accumulator, old, 4));
}

/* ---- CMPXCHG8B, CMPXCHG16B: all flags but ZF stay, of which the engine has forgotten what made them --------- */

static void compare_exchange_pair(Env *env, const Insn *in, uintptr_t ra)
{
    unsigned half = in->rex_w ? 8 : 4;
    u64 va = effective_address(env, in), mask = mask_of(half), old[2] = {0}, new[2];
    u32 flags = get_flags(env) & ~CC_Z;
    if (half == 8 && va & 15)
        raise_fault(env, GP, 0, ra);
    check_aligned(env, va, 2 * half, ra);
    Target target = reach_store(env, va, 2 * half, ra);
    u8 bytes[16];
    read_guest(env, va, bytes, 2 * half, ra);
    memcpy(&old[0], bytes, half);
    memcpy(&old[1], bytes + half, half);
    if (old[0] == (env->regs[RAX] & mask) && old[1] == (env->regs[RDX] & mask)) {
        new[0] = env->regs[RBX];
        new[1] = env->regs[RCX];
        memcpy(bytes, &new[0], half);
        memcpy(bytes + half, &new[1], half);
        fill_target(target, bytes, 2 * half);
        flags |= CC_Z;
    } else {
        env->regs[RAX] = old[0];
        env->regs[RDX] = old[1];
    }
    set_flags(env, flags);
}

/* ---- BMI ------------------------------------------------------------------------------------------------ */

static void bmi(Env *env, const Insn *in, uintptr_t ra)
{
    unsigned bits = in->width * 8;
    u64 mask = mask_of(in->width), source = get_rm(env, in, false, ra), result;
    u64 other = env->regs[in->vex_v] & mask;
    u32 flags = 0;
    if (in->opcode == 0xf3) { /* BLSR, BLSMSK, BLSI */
        switch (in->reg & 7) {
        case 1: result = source & (source - 1); break;
        case 2: result = source ^ (source - 1); break;
        default: result = source & -source; break;
        }
        result &= mask;
        bool blsi = (in->reg & 7) == 3;
        if (blsi ? source != 0 : source == 0)
            flags |= CC_C;
        set_register(env, in, in->vex_v, result);
    } else if (in->opcode == 0xf5) { /* BZHI */
        unsigned n = other & 0xff;
        result = n < bits ? source & ((1ull << n) - 1) : source;
        if (n >= bits)
            flags |= CC_C;
        set_register(env, in, in->reg, result);
    } else { /* BEXTR */
        unsigned start = other & 0xff, length = other >> 8 & 0xff;
        result = start < bits ? source >> start : 0;
        if (length < bits)
            result &= (1ull << length) - 1;
        set_register(env, in, in->reg, result);
    }
    flags |= result_flags(result, in->width) & (CC_Z | CC_S);
    set_flags(env, flags);
}

/* ---- MOVQ2DQ: the engine has only eight registers for it to go to --------------------------------------------- */

static void movq2dq(Env *env, const Insn *in, uintptr_t ra)
{
    x87_enter_mmx(env, in, ra);
    env->xmm[in->reg].q[0] = env->fpregs[in->modrm & 7].mantissa;
    env->xmm[in->reg].q[1] = 0;
}

/* PDEP, PEXT: the engine leaves rubbish in the upper half of a register of 32 bits. */
static void bits_by_mask(Env *env, const Insn *in, uintptr_t ra)
{
    u64 mask = get_rm(env, in, false, ra), source = env->regs[in->vex_v] & mask_of(in->width);
    u64 result = 0;
    bool deposit = in->vex_pp == 3;
    for (unsigned taken = 0; mask; mask &= mask - 1, taken++) {
        u64 bit = mask & -mask;
        if (deposit)
            result |= source >> taken & 1 ? bit : 0;
        else
            result |= source & bit ? 1ull << taken : 0;
    }
    set_register(env, in, in->reg, result);
}

/* ---- ENTER: changes nothing when the frame can't be had -------------------------------------------------------- */

static void enter(Env *env, const Insn *in, uintptr_t ra)
{
    unsigned size = in->opsize && !in->rex_w ? 2 : 8, level = in->imm >> 16 & 31;
    u64 rsp = env->regs[RSP] - size, rbp = env->regs[RBP], frame = rsp;
    check_aligned(env, rsp, size, ra);
    write_guest(env, rsp, &rbp, size, ra);
    for (unsigned i = 1; i < level; i++) {
        u64 pointer;
        rbp -= size;
        rsp -= size;
        read_guest(env, rbp, &pointer, size, ra);
        write_guest(env, rsp, &pointer, size, ra);
    }
    if (level) {
        rsp -= size;
        write_guest(env, rsp, &frame, size, ra);
    }
    rsp -= in->imm & 0xffff;
    probe_store(env, rsp, size, ra);
    env->regs[RSP] = rsp;
    memcpy(&env->regs[RBP], &frame, size);
}

/* ---- INT n: user mode may use the gates of INT3 and INTO, which the engine knows ---------------------------------- */

static void interrupt(Env *env, const Insn *in, uintptr_t ra)
{
    raise_fault(env, GP, (int)(in->imm & 0xff) * 8 + 2, ra);
}

/* ---- segments: there is no descriptor table, and user mode sees four descriptors of Linux's ---------------- */

static const struct {
    u16 selector;
    u32 access, limit;
    bool writable, code;
} descriptors[] = {
    {0x20, 0xcffb00, 0xffffffff, false, true}, /* code of 32 bits */
    {0x28, 0xcff300, 0xffffffff, true, false}, /* data */
    {0x30, 0xaffb00, 0xffffffff, false, true}, /* code */
    {0x78, 0x40f500, 0, false, false},         /* the CPU's number, as a limit */
};
#define DESCRIPTORS (int)(sizeof descriptors / sizeof *descriptors)

static int descriptor(u16 selector)
{
    for (int i = 0; i < DESCRIPTORS; i++)
        if (descriptors[i].selector == (selector & ~3))
            return i;
    return -1;
}

/* LAR, LSL, VERR, VERW. */
static void ask_descriptor(Env *env, const Insn *in, uintptr_t ra)
{
    Insn word = *in;
    word.width = 2;
    int i = descriptor(get_rm(env, &word, false, ra));
    bool yes = i >= 0;
    if (in->opcode == 0x00) {
        if ((in->modrm >> 3 & 7) == 5)
            yes = yes && descriptors[i].writable;
    } else if (yes)
        set_register(env, in, in->reg,
                     in->opcode == 0x02 ? descriptors[i].access : descriptors[i].limit);
    set_flags(env, (get_flags(env) & ~CC_Z) | (yes ? CC_Z : 0));
}

static void (*their_load_seg)(Env *, int, int);
static void dfvm_helper_load_seg(Env *env, int segment, int selector)
{
    if (!in_ring_3(env)) {
        their_load_seg(env, segment, selector);
        return;
    }
    uintptr_t ra = RETADDR;
    selector &= 0xffff;
    int i = descriptor(selector);
    bool null = !(selector & ~3);
    if (segment == SEG_SS) {
        if (i < 0 || !descriptors[i].writable || (selector & 3) != 3)
            raise_fault(env, GP, selector & ~3, ra);
    } else if (i < 0 && !null)
        raise_fault(env, GP, selector & ~3, ra);
    env->segs[segment].selector = null ? 0 : selector;
    env->segs[segment].base = 0;
}

/* WRFSBASE, WRGSBASE. */
static void write_base(Env *env, const Insn *in, uintptr_t ra)
{
    u64 value = in->rex_w ? env->regs[in->rm] : (u32)env->regs[in->rm];
    if ((u64)((i64)(value << 16) >> 16) != value)
        raise_fault(env, GP, 0, ra);
    env->segs[(in->modrm >> 3 & 7) == 2 ? SEG_FS : SEG_GS].base = value;
}

/* ---- what user mode may not --------------------------------------------------------------------------------- */

/* An instruction for an I/O port, a performance counter, or SYSEXIT. */
bool not_allowed(const Insn *in)
{
    u8 op = in->opcode;
    if (in->vex || in->lock)
        return false;
    if (in->map == MAP_0F)
        return op == 0x33 || op == 0x35;
    return in->map == MAP_1 && ((op >= 0x6c && op <= 0x6f) || (op >= 0xe4 && op <= 0xe7) ||
                                (op >= 0xec && op <= 0xef));
}

/* One that the engine knows and the processor we promise does not. */
bool invalid(const Insn *in)
{
    u8 op = in->opcode;
    if (in->vex)
        return !((in->map == MAP_0F38 && (op == 0xf2 || op == 0xf3 || (op >= 0xf5 && op <= 0xf7))) ||
                 (in->map == MAP_0F3A && op == 0xf0));
    if ((in->lock && !lockable(in)) || undefined_sse(in))
        return true;
    if (in->map == MAP_0F38 && (op == 0xf0 || op == 0xf1) && in->rep != 0xf2)
        return in->mod == 3 || in->rep; /* MOVBE */
    if (in->map != MAP_0F)
        return false;
    u8 n = in->modrm >> 3 & 7;
    switch (op) {
    case 0x01: /* VMCALL, VMMCALL and what they control, XEND, XTEST */
        return in->mod == 3 && (in->modrm == 0xc1 || in->modrm == 0xd5 || in->modrm == 0xd6 ||
                                (in->modrm >= 0xd8 && in->modrm <= 0xdf));
    case 0x20:
    case 0x22: /* control registers that there are not */
        return !(in->reg == 0 || (in->reg >= 2 && in->reg <= 4) || in->reg == 8);
    case 0x21:
    case 0x23: /* and debug registers */
        return in->reg > 7;
    case 0x34: /* SYSENTER */
        return true;
    case 0x71:
    case 0x72: /* shifts by a constant */
        return in->mod != 3 || !(n == 2 || n == 4 || n == 6) || in->rep;
    case 0x73:
        return in->mod != 3 || !(n == 2 || n == 6 || (in->opsize && (n == 3 || n == 7))) || in->rep;
    case 0xae: /* FXSAVE, FXRSTOR, LDMXCSR, STMXCSR take no prefix */
        return in->mod != 3 && n < 4 && (in->opsize || in->rep);
    default: return false;
    }
}

/* ---- REP MOVS, REP STOS: as fast as CPUID promises (ERMS) ------------------------------------------------------- */

static void fill(u8 *to, u64 value, unsigned width, u64 n)
{
    if (width == 1) {
        memset(to, (u8)value, n);
        return;
    }
    for (; n; n--, to += width)
        memcpy(to, &value, width);
}

/* Copy element by element where the destination overlaps what is still to be read. */
static void copy(u8 *to, const u8 *from, unsigned width, u64 n)
{
    u64 bytes = n * width;
    if (to >= from + bytes || to <= from - bytes || to == from) {
        memcpy(to, from, to == from ? 0 : bytes);
        return;
    }
    if (to < from) {
        memmove(to, from, bytes);
        return;
    }
    for (; n; n--, to += width, from += width) {
        u64 element;
        memcpy(&element, from, width);
        memcpy(to, &element, width);
    }
}

static inline u64 whole_elements(u64 va, unsigned width) { return (PAGE - (va & (PAGE - 1))) / width; }

/* How many elements of one page are done at a time; a fault leaves the registers as they are after the
 * last whole element, as the processor does. */
static void repeat(Env *env, const Insn *in, uintptr_t ra)
{
    bool moves = in->opcode < 0xa8;
    unsigned width = in->width;
    u64 segment = in->seg == SEG_FS || in->seg == SEG_GS ? env->segs[in->seg].base : 0;
    while (env->regs[RCX]) {
        u64 to = env->regs[RDI], from = env->regs[RSI] + segment, n = env->regs[RCX], element = 0;
        if (moves)
            check_aligned(env, from, width, ra);
        check_aligned(env, to, width, ra);
        u64 limit = env->df > 0 ? whole_elements(to, width) : 0;
        if (moves && limit > whole_elements(from, width))
            limit = whole_elements(from, width);
        if (limit == 0) { /* backwards, or over a border: one */
            if (moves)
                read_guest(env, from, &element, width, ra);
            else
                element = env->regs[RAX];
            write_guest(env, to, &element, width, ra);
            n = 1;
        } else {
            if (n > limit)
                n = limit;
            const u8 *source = NULL;
            if (moves)
                source = guest_page(env, from, n * width, MMU_LOAD, ra);
            u8 *target = guest_page(env, to, n * width, MMU_STORE, ra);
            if (moves)
                copy(target, source, width, n);
            else
                fill(target, env->regs[RAX], width, n);
        }
        i64 step = (i64)(n * width) * env->df;
        env->regs[RDI] += step;
        if (moves)
            env->regs[RSI] += step;
        env->regs[RCX] -= n;
    }
}

/* ---- REP CMPS: as fast as it can be ------------------------------------------------------------------------------- */

static void compare_strings(Env *env, const Insn *in, uintptr_t ra)
{
    unsigned width = in->width;
    u64 segment = in->seg == SEG_FS || in->seg == SEG_GS ? env->segs[in->seg].base : 0;
    u32 flags = get_flags(env);
    do {
        u64 a = 0, b = 0;
        if (!env->regs[RCX])
            break;
        check_aligned(env, env->regs[RDI], width, ra);
        read_guest(env, env->regs[RDI], &b, width, ra);
        check_aligned(env, env->regs[RSI] + segment, width, ra);
        read_guest(env, env->regs[RSI] + segment, &a, width, ra);
        flags = subtract_flags(a, b, width);
        env->regs[RSI] += (i64)width * env->df;
        env->regs[RDI] += (i64)width * env->df;
        env->regs[RCX]--;
    } while ((in->rep == 0xf3) == !!(flags & CC_Z));
    set_flags(env, flags);
}

/* ---- ROUNDSS, ROUNDSD: of an operand in memory the engine reads 16 bytes -------------------------------------------- */

static void round_scalar(Env *env, const Insn *in, uintptr_t ra)
{
    unsigned size = in->opcode == 0x0a ? 4 : 8;
    u64 va = effective_address(env, in);
    check_aligned(env, va, size, ra);
    read_guest(env, va, &env->xmm_t0, size, ra);
    sse_round_scalar(env, &env->xmm[in->reg], &env->xmm_t0, (u32)in->imm & 0xff, size, ra);
}

/* ---- SYSCALL: RCX is where it returns to, R11 the flags ---------------------------------------------------------- */

static void (*their_syscall)(Env *, int);

static void dfvm_helper_syscall(Env *env, int length)
{
    env->regs[RCX] = env->eip + length;
    env->regs[R11] = (env->eflags & ~(u64)0x10000) | get_flags(env) | (env->df & 0x400) | 2;
    their_syscall(env, length);
}

/* ---- which ---------------------------------------------------------------------------------------------------------- */

Handler *handler_for(const Insn *in, bool stepped, bool *sets_flags)
{
    u8 op = in->opcode, n = in->modrm >> 3 & 7;
    bool memory = in->has_modrm && in->mod != 3;
    *sets_flags = false;
    if (in->vex) {
        if (in->map == MAP_0F38 && !in->vex_l &&
            ((op == 0xf3 && n >= 1 && n <= 3 && in->vex_pp == 0) ||
             ((op == 0xf5 || op == 0xf7) && in->vex_pp == 0))) {
            *sets_flags = true;
            return bmi;
        }
        if (in->map == MAP_0F38 && op == 0xf5 && !in->vex_l && in->vex_pp >= 2)
            return bits_by_mask;
        return NULL;
    }
    switch (in->map) {
    case MAP_1:
        if (memory && (op == 0xc0 || op == 0xc1 || (op >= 0xd0 && op <= 0xd3)) &&
            (n == 2 || n == 3) && !in->lock) {
            *sets_flags = true;
            return rotate_carry;
        }
        if ((op == 0xf6 || op == 0xf7) && n == 3 && memory && in->lock) {
            *sets_flags = true;
            return negate;
        }
        if ((op == 0xa4 || op == 0xa5 || op == 0xaa || op == 0xab) && in->rep && !in->addr32 &&
            !in->lock && !stepped)
            return repeat;
        if ((op == 0xa6 || op == 0xa7) && in->rep && !in->addr32 && !stepped) {
            *sets_flags = true;
            return compare_strings;
        }
        if (op == 0xc8)
            return enter;
        if (op == 0xcd && (u8)in->imm != 3 && (u8)in->imm != 4)
            return interrupt;
        return x87_handler(in, sets_flags);
    case MAP_0F:
        if (op == 0xb1 && in->width == 4 && (memory || !in->lock)) {
            *sets_flags = true;
            return compare_exchange;
        }
        if (op == 0xc7 && n == 1 && memory) {
            *sets_flags = true;
            return compare_exchange_pair;
        }
        if ((op == 0x02 || op == 0x03 || (op == 0x00 && (n == 4 || n == 5))) && !in->lock) {
            *sets_flags = true;
            return ask_descriptor;
        }
        if (op == 0xd6 && in->rep == 0xf3)
            return movq2dq;
        if (op == 0xae && in->rep == 0xf3 && !memory && (n == 2 || n == 3) && !in->lock)
            return write_base;
        return NULL;
    case MAP_0F3A: return (op == 0x0a || op == 0x0b) && memory ? round_scalar : NULL;
    default: return NULL;
    }
}

/* What user mode reads of the system's registers: the values that Linux makes up where the processor
 * lets it keep the true ones to itself (UMIP), and its own selector of a task. */
EXPORT void dfvm_native_power_up(Env *env)
{
    env->gdt.base = 0xfffffffffffe0000;
    env->gdt.limit = 0;
    env->idt.base = 0xffffffffffff0000;
    env->idt.limit = 0;
    env->tr.selector = 0x40;
}

const Replacement replace_insn[] = {
    OURS_AND(helper_load_seg, their_load_seg),
    OURS_AND(helper_syscall, their_syscall),
    END,
};
