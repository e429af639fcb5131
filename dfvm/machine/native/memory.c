/* The guest's memory, as instructions of ours reach it, and what the processor checks that the engine
 * does not: alignment, the order of things in a store over a page border, what kind of access a fault
 * was. */

#include "native.h"
#include "replace.h"

static bool (*their_tlb_fill)(Cpu *, u64, int, int, int, bool, uintptr_t);
static const void *(*their_lookup)(Env *);

static inline unsigned to_border(u64 va) { return PAGE - (va & (PAGE - 1)); }

/* Read `size` bytes; a fault raises, with the state that `ra`, an address in translated code, has. */
void read_guest(Env *env, u64 va, void *to, unsigned size, uintptr_t ra)
{
    unsigned n = to_border(va) < size ? to_border(va) : size;
    memcpy(to, guest_page(env, va, n, MMU_LOAD, ra), n);
    if (n < size)
        memcpy((char *)to + n, guest_page(env, va + n, size - n, MMU_LOAD, ra), size - n);
}

/* Make sure that all of a store can be done before some of it is. */
void probe_store(Env *env, u64 va, unsigned size, uintptr_t ra)
{
    unsigned n = to_border(va) < size ? to_border(va) : size;
    guest_page(env, va, n, MMU_STORE, ra);
    if (n < size)
        guest_page(env, va + n, size - n, MMU_STORE, ra);
}

Target reach_store(Env *env, u64 va, unsigned size, uintptr_t ra)
{
    Target t = {.n = to_border(va) < size ? to_border(va) : size};
    t.one = guest_page(env, va, t.n, MMU_STORE, ra);
    if (t.n < size)
        t.two = guest_page(env, va + t.n, size - t.n, MMU_STORE, ra);
    return t;
}

void fill_target(Target t, const void *from, unsigned size)
{
    memcpy(t.one, from, t.n);
    if (t.n < size)
        memcpy(t.two, (const char *)from + t.n, size - t.n);
}

/* Write all of it, or nothing and raise. */
void write_guest(Env *env, u64 va, const void *from, unsigned size, uintptr_t ra)
{
    fill_target(reach_store(env, va, size, ra), from, size);
}

/* ---- what a fault says ------------------------------------------------------------------------- */

/* Decode the instruction at which the engine stands. */
static bool instruction_at(Env *env, Insn *in)
{
    u64 pc = env->eip, cr2 = env->cr[2];
    u8 code[16];
    int n = to_border(pc) < 15 ? to_border(pc) : 15;
    const u8 *p = engine_tlb_vaddr_to_host(env, pc, MMU_FETCH, MMU_USER);
    int length = -1;
    if (p) {
        memcpy(code, p, n);
        length = decode(in, code, n);
        if (length == 0 && (p = engine_tlb_vaddr_to_host(env, pc + n, MMU_FETCH, MMU_USER))) {
            memcpy(code + n, p, 15 - n);
            length = decode(in, code, 15);
        }
    }
    env->cr[2] = cr2; /* such a look changes it when there is no page */
    in->pc = pc;
    return length > 0;
}

static bool canonical(u64 va) { return (u64)((i64)(va << 16) >> 16) == va; }

#define PGEX_W 2

/* The walk of the page tables that is under way, if one is. */
static __thread struct {
    bool active;
    u64 va;
    int access;
} walk;

static bool dfvm_x86_cpu_tlb_fill(Cpu *cpu, u64 va, int size, int access, int mmu, bool probe,
                                  uintptr_t ra)
{
    walk.va = va;
    walk.access = access;
    walk.active = !probe;
    bool there = their_tlb_fill(cpu, va, size, access, mmu, probe, ra);
    walk.active = false;
    return there;
}

/* What such a walk ends with when there is no such page. The engine says of an instruction that changes
 * memory that it reads, since it reads first, and it knows no stack fault. */
static void dfvm_raise_exception_err_ra(Env *env, int vector, int error, uintptr_t ra)
{
    if (walk.active) {
        u64 bad = walk.va;
        walk.active = false;
        if (in_ring_3(env) && walk.access != MMU_FETCH &&
            (walk.access == MMU_LOAD || vector == GP)) {
            Insn in;
            if (ra)
                engine_cpu_restore_state(cpu_of(env), ra, true);
            if (instruction_at(env, &in)) {
                if (vector == GP && through_stack(env, &in, bad))
                    vector = SS;
                else if (vector == PF && modifies_memory(&in)) {
                    u64 va = effective_address(env, &in);
                    if (va < bad && to_border(va) == bad - va) /* the page before comes first */
                        guest_page(env, va, bad - va, MMU_STORE, ra);
                    env->cr[2] = bad;
                    error |= PGEX_W;
                }
            }
        }
    }
    raise_fault(env, vector, error, ra);
}

/* ---- where translated code leaves by a computed jump ------------------------------------------- */

/* A jump, call or return to an address that can't be one faults where it stands, and moves nothing. */
static const void *dfvm_helper_lookup_tb_ptr(Env *env)
{
    if (__builtin_expect(!canonical(env->eip), 0) && in_ring_3(env)) {
        Insn in;
        u64 target = env->eip;
        engine_cpu_restore_state(cpu_of(env), RETADDR, true);
        if (instruction_at(env, &in) && in.map == MAP_1) {
            if (in.opcode == 0xc3 || in.opcode == 0xc2)
                env->regs[RSP] -= 8 + in.imm;
            else if (in.opcode == 0xff && (in.modrm >> 3 & 7) == 2)
                env->regs[RSP] += 8;
        } else
            env->eip = target;
        raise_fault(env, GP, 0, 0);
    }
    return their_lookup(env);
}

/* ---- accesses that the translated code leaves to the engine ------------------------------------ */

/* translate.c has the engine come here for an operand of 16 bytes that is not at a multiple of 16, and
 * with EFLAGS.AC for all that is not where it should be. What it asks for is in the operation. */

static void check_alignment(Env *env, u64 va, u32 oi, uintptr_t ra)
{
    u32 op = oi >> 4;
    if ((op & MO_ALIGN_MASK) == MO_ALIGN_NATURAL && va & ((1u << (op & 3)) - 1))
        raise_fault(env, AC, 0, ra);
    if ((op & MO_ALIGN_MASK) == MO_ALIGN_16 && va & 15 && !(op & MO_PROBE_16))
        raise_fault(env, GP, 0, ra);
}

#define PLAIN(oi) ((oi) & ~((MO_ALIGN_MASK | MO_PROBE_16) << 4))
#define SPECIAL(oi) ((oi) & (MO_ALIGN_MASK | MO_PROBE_16) << 4)

#define LOAD(name, type)                                                                       \
    static type (*their_##name)(Env *, u64, u32, uintptr_t);                                   \
    static type dfvm_##name(Env *env, u64 va, u32 oi, uintptr_t ra)                            \
    {                                                                                          \
        if (SPECIAL(oi)) {                                                                     \
            check_alignment(env, va, oi, ra);                                                  \
            oi = PLAIN(oi);                                                                    \
        }                                                                                      \
        return their_##name(env, va, oi, ra);                                                  \
    }
LOAD(helper_le_lduw_mmu, u64)
LOAD(helper_le_ldsw_mmu, u64)
LOAD(helper_le_ldul_mmu, u64)
LOAD(helper_le_ldsl_mmu, u64)
LOAD(helper_le_ldq_mmu, u64)

/* A store that crosses a border is done by us: the engine does it byte by byte and looks up the page
 * each time, and the clock may take it away in between. */
#define STORE(ours, name, type)                                                                \
    static void (*their_##name)(Env *, u64, type, u32, uintptr_t);                             \
    static void ours(Env *env, u64 va, type value, u32 oi, uintptr_t ra)                       \
    {                                                                                          \
        if (SPECIAL(oi)) {                                                                     \
            check_alignment(env, va, oi, ra);                                                  \
            if (oi >> 4 & MO_PROBE_16 && to_border(va) < 16)                                   \
                probe_store(env, va, 16, ra);                                                  \
            if ((oi & 15) == MMU_USER) {                                                       \
                write_guest(env, va, &value, sizeof value, ra);                                \
                return;                                                                        \
            }                                                                                  \
            oi = PLAIN(oi);                                                                    \
        } else if (to_border(va) < sizeof value && (oi & 15) == MMU_USER) {                    \
            write_guest(env, va, &value, sizeof value, ra);                                    \
            return;                                                                            \
        }                                                                                      \
        their_##name(env, va, value, oi, ra);                                                  \
    }
STORE(dfvm_helper_le_stw_mmu, helper_le_stw_mmu, u16)
STORE(dfvm_helper_le_stl_mmu, helper_le_stl_mmu, u32)
STORE(careful_stq, helper_le_stq_mmu, u64)

/* Most of what comes here is the first half of 16 bytes that lie on one page which is in the TLB. */
static void dfvm_helper_le_stq_mmu(Env *env, u64 va, u64 value, u32 oi, uintptr_t ra)
{
    if (oi >> 4 & MO_PROBE_16 && to_border(va) >= 16 && (oi & 15) == MMU_USER) {
        void *p = in_tlb(env, va, MMU_STORE);
        if (p) {
            memcpy(p, &value, 8);
            return;
        }
    }
    careful_stq(env, va, value, oi, ra);
}

/* MASKMOVDQU, MASKMOVQ: the bytes of d that s selects. */
static void masked_store(Env *env, const u8 *d, const u8 *s, int n, u64 va, uintptr_t ra)
{
    for (int i = 0; i < n; i++)
        if (s[i] & 0x80)
            guest_page(env, va + i, 1, MMU_STORE, ra);
    for (int i = 0; i < n; i++)
        if (s[i] & 0x80)
            *(u8 *)guest_page(env, va + i, 1, MMU_STORE, ra) = d[i];
}

static void (*their_maskmov_xmm)(Env *, Xmm *, Xmm *, u64);
static void dfvm_helper_maskmov_xmm(Env *env, Xmm *d, Xmm *s, u64 va)
{
    if (!in_ring_3(env)) {
        their_maskmov_xmm(env, d, s, va);
        return;
    }
    masked_store(env, d->b, s->b, 16, va, RETADDR);
}

static void (*their_maskmov_mmx)(Env *, Mmx *, Mmx *, u64);
static void dfvm_helper_maskmov_mmx(Env *env, Mmx *d, Mmx *s, u64 va)
{
    if (!in_ring_3(env)) {
        their_maskmov_mmx(env, d, s, va);
        return;
    }
    masked_store(env, d->b, s->b, 8, va, RETADDR);
}

const Replacement replace_memory[] = {
    OURS_AND(x86_cpu_tlb_fill, their_tlb_fill),
    OURS(raise_exception_err_ra),
    OURS_AND(helper_lookup_tb_ptr, their_lookup),
    OURS_AND(helper_le_lduw_mmu, their_helper_le_lduw_mmu),
    OURS_AND(helper_le_ldsw_mmu, their_helper_le_ldsw_mmu),
    OURS_AND(helper_le_ldul_mmu, their_helper_le_ldul_mmu),
    OURS_AND(helper_le_ldsl_mmu, their_helper_le_ldsl_mmu),
    OURS_AND(helper_le_ldq_mmu, their_helper_le_ldq_mmu),
    OURS_AND(helper_le_stw_mmu, their_helper_le_stw_mmu),
    OURS_AND(helper_le_stl_mmu, their_helper_le_stl_mmu),
    OURS_AND(helper_le_stq_mmu, their_helper_le_stq_mmu),
    OURS_AND(helper_maskmov_xmm, their_maskmov_xmm),
    OURS_AND(helper_maskmov_mmx, their_maskmov_mmx),
    END,
};
