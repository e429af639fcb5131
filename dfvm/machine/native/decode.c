/* Where an instruction of 64-bit x86 ends, what its operands are, and what it does to memory. */

#include "native.h"

enum { M = 1, B = 2, W = 4, Z = 8, Q = 16, A = 32, T = 64 };

/* What follows an opcode: M a ModRM byte; B, W, Z, Q, A an immediate of 1 byte, 2, 4 (2 with prefix
 * 66), 8 with REX.W, or an address; T an immediate for two of the eight instructions it stands for. */
static const u8 follows_1[256] = {
    [0x00 ... 0x03] = M, [0x04] = B, [0x05] = Z, [0x08 ... 0x0b] = M, [0x0c] = B, [0x0d] = Z,
    [0x10 ... 0x13] = M, [0x14] = B, [0x15] = Z, [0x18 ... 0x1b] = M, [0x1c] = B, [0x1d] = Z,
    [0x20 ... 0x23] = M, [0x24] = B, [0x25] = Z, [0x28 ... 0x2b] = M, [0x2c] = B, [0x2d] = Z,
    [0x30 ... 0x33] = M, [0x34] = B, [0x35] = Z, [0x38 ... 0x3b] = M, [0x3c] = B, [0x3d] = Z,
    [0x62 ... 0x63] = M, [0x68] = Z, [0x69] = M | Z, [0x6a] = B, [0x6b] = M | B,
    [0x70 ... 0x7f] = B, [0x80] = M | B, [0x81] = M | Z, [0x82 ... 0x83] = M | B,
    [0x84 ... 0x8f] = M, [0xa0 ... 0xa3] = A, [0xa8] = B, [0xa9] = Z, [0xb0 ... 0xb7] = B,
    [0xb8 ... 0xbf] = Q, [0xc0 ... 0xc1] = M | B, [0xc2] = W, [0xc4 ... 0xc5] = M,
    [0xc6] = M | B, [0xc7] = M | Z, [0xc8] = W | B, [0xca] = W, [0xcd] = B,
    [0xd0 ... 0xd3] = M, [0xd4 ... 0xd5] = B, [0xd8 ... 0xdf] = M, [0xe0 ... 0xe7] = B,
    [0xe8 ... 0xe9] = Z, [0xeb] = B, [0xf6 ... 0xf7] = M | T, [0xfe ... 0xff] = M,
};
static const u8 follows_0f[256] = {
    [0x00 ... 0x03] = M, [0x0d] = M, [0x0f] = M | B, [0x10 ... 0x2f] = M, [0x38 ... 0x6f] = M,
    [0x70 ... 0x73] = M | B, [0x74 ... 0x76] = M, [0x78 ... 0x7f] = M, [0x80 ... 0x8f] = Z,
    [0x90 ... 0x9f] = M, [0xa3] = M, [0xa4] = M | B, [0xa5 ... 0xa7] = M, [0xab] = M,
    [0xac] = M | B, [0xad ... 0xb8] = M, [0xba] = M | B, [0xbb ... 0xc1] = M, [0xc2] = M | B,
    [0xc3] = M, [0xc4 ... 0xc6] = M | B, [0xc7] = M, [0xd0 ... 0xfe] = M,
};

static u64 little_endian(const u8 *p, int bytes)
{
    u64 value = 0;
    memcpy(&value, p, bytes);
    return value;
}

/* Decode what `code` begins with, of which `available` bytes can be read. Its length; 0 when more
 * bytes than these would be needed; -1 when it is longer than an instruction may be. */
int decode(Insn *in, const u8 *code, int available)
{
    int at = 0, rex = 0;
    memset(in, 0, sizeof *in);
    in->seg = in->base = in->index = -1;
#define NEED(n)                                                                                \
    do {                                                                                       \
        if (at + (n) > 15)                                                                     \
            return -1;                                                                         \
        if (at + (n) > available)                                                              \
            return 0;                                                                          \
    } while (0)
    for (;; at++) {
        NEED(1);
        u8 c = code[at];
        if ((c & 0xf0) == 0x40) {
            rex = c;
            continue;
        }
        switch (c) {
        case 0x26: in->seg = SEG_ES; break;
        case 0x2e: in->seg = SEG_CS; break;
        case 0x36: in->seg = SEG_SS; break;
        case 0x3e: in->seg = SEG_DS; break;
        case 0x64: in->seg = SEG_FS; break;
        case 0x65: in->seg = SEG_GS; break;
        case 0x66: in->opsize = true; break;
        case 0x67: in->addr32 = true; break;
        case 0xf0: in->lock = true; break;
        case 0xf2:
        case 0xf3: in->rep = c; break;
        default: goto opcode;
        }
        rex = 0; /* only right before the opcode */
    }
opcode:
    in->rex = rex != 0;
    in->rex_w = rex & 8;
    u8 op = code[at++];
    const u8 *follows = follows_1;
    if (op == 0x0f) {
        NEED(1);
        op = code[at++];
        in->map = MAP_0F;
        follows = follows_0f;
        if (op == 0x38 || op == 0x3a) {
            in->map = op == 0x38 ? MAP_0F38 : MAP_0F3A;
            NEED(1);
            op = code[at++];
        }
    } else if (op == 0xc5 || op == 0xc4 || op == 0x8f) {
        NEED(1);
        if (op != 0x8f || code[at] & 0x38) {
            u8 first = code[at++], second = first;
            in->vex = true;
            in->map = MAP_0F;
            rex = ~first >> 5 & 4; /* R */
            if (op != 0xc5) {
                u8 map = first & 0x1f;
                in->map = map == 1 ? MAP_0F : map == 3 || map == 8 ? MAP_0F3A : MAP_0F38;
                rex |= (~first >> 5 & 3); /* X, B */
                NEED(1);
                second = code[at++];
                in->rex_w = second & 0x80;
            }
            in->vex_v = ~second >> 3 & 15;
            in->vex_l = second >> 2 & 1;
            in->vex_pp = second & 3;
            NEED(1);
            op = code[at++];
            follows = follows_0f;
        }
    }
    in->opcode = op;
    u8 what = in->map == MAP_0F38 ? M : in->map == MAP_0F3A ? M | B : follows[op];
    in->width = in->rex_w ? 8 : in->opsize ? 2 : 4;
    if (in->map == MAP_1 && !(op & 1) &&
        (op < 0x40 || (op >= 0x80 && op < 0x8c) || op == 0xc0 || op == 0xc6 || op == 0xd0 ||
         op == 0xd2 || op == 0xf6 || op == 0xfe || op == 0xa4 || op == 0xa6 || op == 0xaa))
        in->width = 1;
    if (what & M) {
        NEED(1);
        in->modrm_at = at;
        u8 modrm = code[at++];
        in->has_modrm = true;
        in->modrm = modrm;
        in->mod = modrm >> 6;
        in->reg = (modrm >> 3 & 7) | (rex & 4) << 1;
        in->rm = (modrm & 7) | (rex & 1) << 3;
        if (in->map == MAP_0F && op >= 0x20 && op <= 0x23)
            in->mod = 3; /* control and debug registers go to registers, whatever it says */
        if (in->mod != 3) {
            int size = in->mod == 1 ? 1 : in->mod == 2 ? 4 : 0;
            in->base = in->rm;
            if ((modrm & 7) == 4) {
                NEED(1);
                u8 sib = code[at++];
                in->scale = sib >> 6;
                in->index = (sib >> 3 & 7) | (rex & 2) << 2;
                if (in->index == 4)
                    in->index = -1;
                in->base = (sib & 7) | (rex & 1) << 3;
                if ((sib & 7) == 5 && in->mod == 0) {
                    in->base = -1;
                    size = 4;
                }
            } else if ((modrm & 7) == 5 && in->mod == 0) {
                in->base = 16;
                size = 4;
            }
            NEED(size);
            if (size == 1)
                in->disp = (int8_t)code[at];
            else if (size == 4)
                in->disp = (i32)little_endian(code + at, 4);
            at += size;
        }
        if (what & T && !(modrm & 0x30))
            what |= op == 0xf6 ? B : Z;
    }
    int size = 0;
    if (what & W)
        size += 2;
    if (what & B)
        size += 1;
    if (what & Z)
        size += in->opsize && !in->rex_w ? 2 : 4;
    if (what & Q)
        size += in->rex_w ? 8 : in->opsize ? 2 : 4;
    if (what & A)
        size += in->addr32 ? 4 : 8;
    NEED(size);
    in->imm = little_endian(code + at, size > 8 ? 8 : size);
    in->imm_bytes = size;
    at += size;
    in->length = at;
    memcpy(in->bytes, code, at);
    return at;
#undef NEED
}

/* The address of the operand in memory. With an operand relative to RIP, `pc` must be known. */
u64 effective_address(const Env *env, const Insn *in)
{
    u64 va = in->disp;
    if (in->base == 16)
        va += in->pc + in->length;
    else if (in->base >= 0)
        va += env->regs[in->base];
    if (in->index >= 0)
        va += env->regs[in->index] << in->scale;
    if (in->addr32)
        va = (u32)va;
    if (in->seg == SEG_FS || in->seg == SEG_GS)
        va += env->segs[in->seg].base;
    return va;
}

/* Whether it reads its operand in memory to write it: for the processor one access, a write. */
bool modifies_memory(const Insn *in)
{
    u8 op = in->opcode, n = in->modrm >> 3 & 7;
    if (!in->has_modrm || in->mod == 3 || in->vex)
        return false;
    if (in->map == MAP_0F)
        switch (op) {
        case 0xab: case 0xb3: case 0xbb: case 0xa4: case 0xa5: case 0xac: case 0xad:
        case 0xb0: case 0xb1: case 0xc0: case 0xc1:
            return true;
        case 0xba: return n >= 5;
        case 0xc7: return n == 1;
        default: return false;
        }
    if (in->map != MAP_1)
        return false;
    if (op < 0x38)
        return (op & 7) < 2;
    switch (op) {
    case 0x80: case 0x81: case 0x83: return n != 7;
    case 0x86: case 0x87: return true;
    case 0xc0: case 0xc1: case 0xd0: case 0xd1: case 0xd2: case 0xd3: return true;
    case 0xf6: case 0xf7: return n == 2 || n == 3;
    case 0xfe: return n < 2;
    case 0xff: return n < 2;
    default: return false;
    }
}

/* Whether its access to memory at `va` goes through SS: a bad address is then a stack fault. */
bool through_stack(const Env *env, const Insn *in, u64 va)
{
    u8 op = in->opcode, n = in->modrm >> 3 & 7;
    if (in->map == MAP_1 && !in->vex) {
        if ((op >= 0x50 && op <= 0x5f) || op == 0x68 || op == 0x6a || op == 0x9c || op == 0x9d ||
            op == 0xc2 || op == 0xc3 || op == 0xc8 || op == 0xc9 || op == 0xe8 || op == 0xca ||
            op == 0xcb || op == 0xcf)
            return true;
        if (op == 0x8f || (op == 0xff && (n == 2 || n == 6)))
            if (in->mod == 3 || va - (env->regs[RSP] - 8) <= 16)
                return true; /* the operand on the stack, and not the other one */
    }
    if (in->map == MAP_0F && (op == 0xa0 || op == 0xa1 || op == 0xa8 || op == 0xa9))
        return true;
    if (!in->has_modrm || in->mod == 3)
        return false;
    if (in->seg == SEG_FS || in->seg == SEG_GS)
        return false;
    return in->base == RSP || in->base == RBP;
}

/* Whether its operand of 16 bytes in memory must lie at a multiple of 16. */
bool aligned_operand(const Insn *in)
{
    u8 op = in->opcode;
    bool p66 = in->opsize && !in->rep, none = !in->opsize && !in->rep;
    if (in->vex || !in->has_modrm || in->mod == 3)
        return false;
    switch (in->map) {
    case MAP_0F:
        if (op == 0x12 || op == 0x16)
            return in->rep == 0xf3;
        if (op == 0x14 || op == 0x15 || op == 0x28 || op == 0x29 || op == 0x2b || op == 0xc2 ||
            op == 0xc6 || (op >= 0x51 && op <= 0x5f && op != 0x5a && op != 0x5b))
            return !in->rep && !(op == 0x52 && p66) && !(op == 0x53 && p66);
        if (op == 0x5a)
            return p66;
        if (op == 0x5b)
            return in->rep != 0xf2;
        if (op == 0x2c || op == 0x2d)
            return p66;
        if (op == 0x70)
            return !none;
        if (op == 0x7c || op == 0x7d || op == 0xd0)
            return p66 || in->rep == 0xf2;
        if (op == 0xe6)
            return p66 || in->rep == 0xf2;
        if ((op >= 0x60 && op <= 0x6d) || op == 0x6f || (op >= 0x74 && op <= 0x76) || op == 0x7f)
            return p66;
        if (op >= 0xd1 && op != 0xd6 && op != 0xd7 && op != 0xf0 && op != 0xf7 && op != 0xff)
            return p66;
        return false;
    case MAP_0F38:
        return p66 && (op <= 0x0b || op == 0x10 || op == 0x14 || op == 0x15 || op == 0x17 ||
                       (op >= 0x1c && op <= 0x1e) || (op >= 0x28 && op <= 0x2b) || op == 0x37 ||
                       (op >= 0x38 && op <= 0x41) || (op >= 0xdb && op <= 0xdf));
    case MAP_0F3A:
        return p66 && (op == 0x08 || op == 0x09 || (op >= 0x0c && op <= 0x0f) ||
                       (op >= 0x40 && op <= 0x44) || op == 0xdf);
    default:
        return false;
    }
}

/* Whether it stores 16 bytes, anywhere: MOVUPS, MOVUPD, MOVDQU. */
bool unaligned_store(const Insn *in)
{
    if (in->vex || in->map != MAP_0F || !in->has_modrm || in->mod == 3)
        return false;
    return (in->opcode == 0x11 && !in->rep) || (in->opcode == 0x7f && in->rep == 0xf3);
}

/* Whether it may have a LOCK prefix. */
bool lockable(const Insn *in)
{
    u8 op = in->opcode;
    if (in->map == MAP_1 && ((op >= 0xc0 && op <= 0xc1) || (op >= 0xd0 && op <= 0xd3)))
        return false;
    if (in->map == MAP_0F && (op == 0xa4 || op == 0xa5 || op == 0xac || op == 0xad))
        return false;
    return modifies_memory(in);
}

/* Whether it accesses memory whenever it is executed, as far as that is plain to see. */
bool accesses_memory(const Insn *in)
{
    u8 op = in->opcode, n = in->modrm >> 3 & 7;
    if (in->map == MAP_1 && !in->vex &&
        ((op >= 0x50 && op <= 0x5f) || op == 0x68 || op == 0x6a || op == 0x9c || op == 0x9d ||
         op == 0xc2 || op == 0xc3 || op == 0xc9 || op == 0xe8))
        return true; /* the stack */
    if (!in->has_modrm || in->mod == 3)
        return false;
    if (in->map == MAP_1)
        return op != 0x8d;
    if (in->map == MAP_0F) /* prefetches, NOPs, and what CLFLUSH and its kin are */
        return op != 0x0d && !(op >= 0x18 && op <= 0x1f) && !(op == 0xae && n >= 4);
    return true;
}

/* Whether what comes behind it need not be executed next. */
bool ends_block(const Insn *in)
{
    u8 op = in->opcode;
    if (in->map == MAP_0F)
        return (op >= 0x80 && op <= 0x8f) || op == 0x05 || op == 0x0b;
    return in->map == MAP_1 && ((op >= 0x70 && op <= 0x7f) || op == 0xc2 || op == 0xc3 ||
                                (op >= 0xe0 && op <= 0xeb) || op == 0xff || op == 0xcc || op == 0xf4);
}

/* ---- SSE: which mandatory prefixes an opcode is there with, and with which operands ------------------- */

enum { NP = 1, P66 = 2, PF3 = 4, PF2 = 8, MEM = 16, REG = 32 };
#define BOTH (NP | P66)
#define ALL (NP | P66 | PF3 | PF2)

static const u8 sse_0f[256] = {
    [0x10 ... 0x12] = ALL, [0x13] = BOTH | MEM, [0x14 ... 0x15] = BOTH, [0x16] = BOTH | PF3,
    [0x17] = BOTH | MEM, [0x28 ... 0x29] = BOTH, [0x2a] = ALL, [0x2b] = BOTH | MEM,
    [0x2c ... 0x2d] = ALL, [0x2e ... 0x2f] = BOTH, [0x50] = BOTH | REG, [0x51] = ALL,
    [0x52 ... 0x53] = NP | PF3, [0x54 ... 0x57] = BOTH, [0x58 ... 0x5a] = ALL,
    [0x5b] = BOTH | PF3, [0x5c ... 0x5f] = ALL, [0x60 ... 0x6b] = BOTH, [0x6c ... 0x6d] = P66,
    [0x6e] = BOTH, [0x6f] = BOTH | PF3, [0x70] = ALL, [0x71 ... 0x76] = BOTH, [0x77] = NP,
    [0x7c ... 0x7d] = P66 | PF2, [0x7e ... 0x7f] = BOTH | PF3, [0xc2] = ALL, [0xc3] = NP | MEM,
    [0xc4] = BOTH, [0xc5] = BOTH | REG, [0xc6] = BOTH, [0xd0] = P66 | PF2, [0xd1 ... 0xd5] = BOTH,
    [0xd6] = P66 | PF3 | PF2, [0xd7] = BOTH | REG, [0xd8 ... 0xe5] = BOTH, [0xe6] = P66 | PF3 | PF2,
    [0xe7] = BOTH | MEM, [0xe8 ... 0xef] = BOTH, [0xf0] = PF2 | MEM, [0xf1 ... 0xf6] = BOTH,
    [0xf7] = BOTH | REG, [0xf8 ... 0xfe] = BOTH,
};
static const u8 sse_0f38[256] = {
    [0x00 ... 0x0b] = BOTH, [0x10] = P66, [0x14 ... 0x15] = P66, [0x17] = P66,
    [0x1c ... 0x1e] = BOTH, [0x20 ... 0x25] = P66, [0x28 ... 0x29] = P66, [0x2a] = P66 | MEM,
    [0x2b] = P66, [0x30 ... 0x35] = P66, [0x37 ... 0x41] = P66, [0xdb ... 0xdf] = P66,
};
static const u8 sse_0f3a[256] = {
    [0x08 ... 0x0e] = P66, [0x0f] = BOTH, [0x14 ... 0x17] = P66, [0x20 ... 0x22] = P66,
    [0x40 ... 0x42] = P66, [0x44] = P66, [0x60 ... 0x63] = P66, [0xdf] = P66,
};

/* Whether it is one of these at all. */
bool is_sse(const Insn *in) { return in->map == MAP_0F && !in->vex && sse_0f[in->opcode]; }

/* Whether it is an encoding of SSE's that there is not. */
bool undefined_sse(const Insn *in)
{
    u8 op = in->opcode, prefix = in->rep == 0xf3 ? PF3 : in->rep ? PF2 : in->opsize ? P66 : NP;
    u8 known = in->map == MAP_0F     ? sse_0f[op]
               : in->map == MAP_0F38 ? sse_0f38[op]
               : in->map == MAP_0F3A ? sse_0f3a[op]
                                     : 0;
    if (!known)
        return false; /* not SSE, or the engine knows */
    if (!(known & prefix) || (known & MEM && in->mod == 3) || (known & REG && in->mod != 3))
        return true;
    if (in->map != MAP_0F)
        return false;
    if ((op == 0x12 || op == 0x16) && prefix == P66)
        return in->mod == 3;
    return op == 0xd6 && prefix != P66 && in->mod != 3;
}

/* ---- MMX ------------------------------------------------------------------------------------------- */

/* Whether it has an MMX register for an operand, or is about to. */
bool uses_mmx(const Insn *in)
{
    u8 op = in->opcode;
    bool plain = !in->opsize && !in->rep;
    if (in->vex || in->lock || !in->has_modrm)
        return false;
    switch (in->map) {
    case MAP_0F:
        if (op == 0x2a || op == 0x2c || op == 0x2d)
            return !in->rep && !(op == 0x2a && in->mod != 3);
        if (op == 0xd6)
            return in->rep && in->mod == 3;
        return plain && ((op >= 0x60 && op <= 0x76 && op != 0x6c && op != 0x6d) || op == 0x7e ||
                         op == 0x7f || op == 0xc4 || op == 0xc5 ||
                         (op >= 0xd1 && op != 0xd6 && op != 0xe6 && op != 0xf0 && op != 0xff));
    case MAP_0F38: return plain && (op <= 0x0b || (op >= 0x1c && op <= 0x1e));
    case MAP_0F3A: return plain && op == 0x0f;
    default: return false;
    }
}

/* The bytes that its operand in memory has; negative: they are stored; 0: there is none. */
int mmx_operand(const Insn *in)
{
    u8 op = in->opcode;
    if (in->mod == 3)
        return 0;
    if (in->map != MAP_0F)
        return 8;
    switch (op) {
    case 0x2c: case 0x2d: return in->opsize ? 16 : 8;
    case 0x60: case 0x61: case 0x62: return 4;
    case 0x6e: return in->rex_w ? 8 : 4;
    case 0x7e: return in->rex_w ? -8 : -4;
    case 0x7f: case 0xe7: return -8;
    case 0xc4: return 2;
    default: return 8;
    }
}

/* The MMX register that it writes; -1: none. */
int mmx_written(const Insn *in)
{
    u8 op = in->opcode, reg = in->modrm >> 3 & 7, rm = in->modrm & 7;
    if (in->map != MAP_0F)
        return reg;
    switch (op) {
    case 0x2a: case 0x7e: case 0xc5: case 0xd7: case 0xe7: case 0xf7: return -1;
    case 0xd6: return in->rep == 0xf2 ? reg : -1;
    case 0x7f: return in->mod == 3 ? rm : -1;
    case 0x71: case 0x72: case 0x73: return rm;
    default: return reg;
    }
}

/* The length of what `code` begins with, as decode() has it: for tests. */
EXPORT int dfvm_native_length(const u8 *code, int available)
{
    Insn in;
    return decode(&in, code, available);
}
