/* What the engine translates: the guest's instructions, but for those that it gets wrong.
 *
 * The engine's translator is called for one instruction after the other. Before each we decode it, and
 *
 *   - end the block where the next instruction is not wholly on the block's page: if its page can't be
 *     fetched, what comes before has to happen first;
 *   - let the engine read an invalid opcode where it would take something unknown (AVX) for something
 *     else;
 *   - let it read another instruction, as long, whose translation is a call, where its own idea of this
 *     one is wrong, and make that a call of our handler with our decoded instruction. RDPMC is such a
 *     one: it leaves RIP and the flags as they stand before the call, and nothing else. VERR takes three
 *     bytes and makes the flags known again afterwards. After RDPMC and a handler that sets flags the
 *     block ends, as the translator would go on with those from before;
 *   - have accesses of 16 bytes come by memory.c when they are not aligned.
 *
 * Nothing of this costs anything when the code runs, except where a handler is called. */

#include <pthread.h>
#include <stdlib.h>

#include "native.h"
#include "replace.h"

intptr_t cpu_to_env;

static void (*their_translator_loop)(const TranslatorOps *, Disas *, Cpu *, Block *, int);
static u32 (*their_ldub)(Env *, u64);
static u32 (*their_lduw)(Env *, u64);
static u32 (*their_ldl)(Env *, u64);
static u64 (*their_ldq)(Env *, u64);
static void (*their_callN)(void *, void *, void *, int, void **);
static void (*their_gen_ld_i64)(void *, void *, void *, u64, u32);
static void (*their_gen_st_i64)(void *, void *, void *, u64, u32);
static void (*their_gen_ld_i32)(void *, void *, void *, u64, u32);
static void (*their_gen_st_i32)(void *, void *, void *, u64, u32);
static void (*their_translate_insn)(Disas *, Cpu *);

/* The instruction that is being translated by this host thread. */
static __thread struct {
    u64 pc;
    int size;         /* bytes that the engine gets from here, starting at pc */
    u8 bytes[16];
    const Insn *insn; /* to be called for; NULL: none */
    u32 first_half;   /* what to ask of the first access of eight bytes, MO_* */
    u32 all;          /* and of every one */
    bool ours;        /* it is code of ring 3 */
    bool no_test;     /* the block that begins here need not test whether it is to stop */
    bool unsigned_ret; /* it is RET with a constant that looks negative */
} now;

/* ---- decoded instructions, as long as code of the engine may call for them: each once ------------------ */

#define SLOTS (1 << 12)

struct kept {
    struct kept *next;
    Insn insn;
};

static struct store {
    struct store *next;
    Cpu *cpu; /* the engine's */
    struct kept *slots[SLOTS];
} *stores;
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER; /* engines may run on several threads */

static struct store *store_of(Cpu *cpu)
{
    struct store *s;
    for (s = stores; s; s = s->next)
        if (s->cpu == cpu)
            break;
    return s;
}

static const Insn *keep(Cpu *cpu, const Insn *in)
{
    u64 h = in->pc * 0x9e3779b97f4a7c15u;
    for (int i = 0; i < in->length; i++)
        h = (h ^ in->bytes[i]) * 0x100000001b3u;
    pthread_mutex_lock(&kept_lock);
    struct store *s = store_of(cpu);
    if (!s) {
        if (!(s = calloc(1, sizeof *s)))
            abort();
        s->cpu = cpu;
        s->next = stores;
        stores = s;
    }
    struct kept **slot = &s->slots[h >> 52], *k;
    for (k = *slot; k; k = k->next)
        if (!memcmp(&k->insn, in, sizeof *in))
            break;
    if (!k) {
        if (!(k = malloc(sizeof *k)))
            abort();
        k->insn = *in;
        k->next = *slot;
        *slot = k;
    }
    pthread_mutex_unlock(&kept_lock);
    return &k->insn;
}

/* All code of an engine has been thrown away: because its buffer is full, because Python says so, or
 * because the engine ends. So a guest that makes code for ever fills no memory here. */
static void (*their_tb_flush)(Cpu *);
static void dfvm_tb_flush(Cpu *cpu)
{
    their_tb_flush(cpu);
    pthread_mutex_lock(&kept_lock);
    struct store **at = &stores, *s;
    while ((s = *at) && s->cpu != cpu)
        at = &s->next;
    if (s) {
        *at = s->next;
        for (int i = 0; i < SLOTS; i++)
            for (struct kept *k = s->slots[i], *next; k; k = next) {
                next = k->next;
                free(k);
            }
        free(s);
    }
    pthread_mutex_unlock(&kept_lock);
}

/* ---- the two calls that the engine is led to ------------------------------------------------------ */

static void (*their_rdpmc)(Env *);
static void (*their_verr)(Env *, u64);
static void (*their_invlpg)(Env *, u64);

/* RDPMC's and VERR's: callN lets no code of ring 3 come here. */
static void dfvm_helper_rdpmc(Env *env) { their_rdpmc(env); }
static void dfvm_helper_verr(Env *env, u64 selector) { their_verr(env, selector); }

/* In place of INVLPG's, which ring 3 can't call: same arguments, and known to the translator. */
static void dfvm_helper_invlpg(Env *env, u64 insn)
{
    const Insn *in = (const Insn *)insn;
    if (in_ring_3(env))
        in->run(env, in, RETADDR);
    else
        their_invlpg(env, insn);
}

/* Whether a call that is about to be emitted is the one to put ours in place of, or before. An MMX
 * instruction calls one function that enters the state, but for those of SSSE3, of which the engine has
 * forgotten it: they call their own. Calls for flags, hooks and stops come in between. */
static bool is_ours(void *function)
{
    if (function == dfvm_helper_rdpmc || function == dfvm_helper_verr ||
        function == dfvm_helper_enter_mmx)
        return true;
    return now.insn->map != MAP_0F && uses_mmx(now.insn) &&
           function != engine_helper_check_exit_request &&
           function != engine_helper_uc_tracecode && function != engine_helper_cc_compute_all &&
           function != engine_helper_cc_compute_c;
}

static void dfvm_tcg_gen_callN(void *tcg, void *function, void *ret, int n, void **args)
{
    if (now.no_test && function == engine_helper_check_exit_request) {
        now.no_test = false;
        return;
    }
    if (now.insn && is_ours(function)) {
        bool instead = function == dfvm_helper_rdpmc || function == dfvm_helper_verr ||
                       function == dfvm_helper_enter_mmx;
        void *value = engine_tcg_const_i64(tcg, (i64)now.insn);
        void *temp = (char *)tcg + (uintptr_t)value;
        void *two[2] = {args[0], temp}; /* the first argument is the CPU's state */
        now.insn = NULL;
        their_callN(tcg, dfvm_helper_invlpg, NULL, 2, two);
        engine_tcg_temp_free_internal(tcg, temp);
        if (instead)
            return;
    }
    their_callN(tcg, function, ret, n, args);
}

/* ---- the bytes that the translator reads ---------------------------------------------------------- */

#define CODE(ours, theirs, type, n)                                                            \
    static type ours(Env *env, u64 va)                                                         \
    {                                                                                          \
        u64 at = va - now.pc;                                                                  \
        if (at < (u64)now.size && at + (n) <= (u64)now.size) {                                 \
            type value = 0;                                                                    \
            memcpy(&value, now.bytes + at, n);                                                 \
            return value;                                                                      \
        }                                                                                      \
        return theirs(env, va);                                                                \
    }
CODE(dfvm_cpu_ldub_code, their_ldub, u32, 1)
CODE(dfvm_cpu_lduw_code, their_lduw, u32, 2)
CODE(dfvm_cpu_ldl_code, their_ldl, u32, 4)
CODE(dfvm_cpu_ldq_code, their_ldq, u64, 8)

/* ---- accesses to memory ---------------------------------------------------------------------------- */

static inline u32 asked(u32 op)
{
    if (now.first_half && (op & 3) == 3) {
        op |= now.first_half;
        now.first_half = 0;
        return op;
    }
    return op | now.all;
}

/* The engine has translated code call a function after each access, to test whether it is to stop. It is
 * stopped otherwise (engine.py, poison), and between blocks. */
static __thread bool in_access;
static void (*their_check_exit_request)(void *);
static void dfvm_check_exit_request(void *tcg)
{
    if (!in_access)
        their_check_exit_request(tcg);
}

static void dfvm_tcg_gen_qemu_ld_i64(void *s, void *v, void *va, u64 mmu, u32 op)
{
    in_access = now.ours;
    their_gen_ld_i64(s, v, va, mmu, asked(op));
    in_access = false;
}
static void dfvm_tcg_gen_qemu_st_i64(void *s, void *v, void *va, u64 mmu, u32 op)
{
    in_access = now.ours;
    their_gen_st_i64(s, v, va, mmu, asked(op));
    in_access = false;
}
static void dfvm_tcg_gen_qemu_ld_i32(void *s, void *v, void *va, u64 mmu, u32 op)
{
    in_access = now.ours;
    their_gen_ld_i32(s, v, va, mmu, op | now.all);
    in_access = false;
}
static void dfvm_tcg_gen_qemu_st_i32(void *s, void *v, void *va, u64 mmu, u32 op)
{
    in_access = now.ours;
    their_gen_st_i32(s, v, va, mmu, op | now.all);
    in_access = false;
}

/* RET with a constant: the engine takes it to have a sign. */
static void (*their_gen_addi)(void *, void *, void *, i64);
static void dfvm_tcg_gen_addi_i64(void *tcg, void *to, void *from, i64 value)
{
    if (now.unsigned_ret && value < 8) /* a return address more than the constant, taken for negative */
        value += 0x10000;
    their_gen_addi(tcg, to, from, value);
}

/* ---- one instruction ------------------------------------------------------------------------------- */

/* As many bytes of the instruction at `pc` as its page has; how many. */
static int fetch(Env *env, u64 pc, u8 *to)
{
    int n = PAGE - (pc & (PAGE - 1));
    const u8 *p = engine_tlb_vaddr_to_host(env, pc, MMU_FETCH, MMU_USER);
    if (!p)
        return 0;
    if (n > 15)
        n = 15;
    memcpy(to, p, n);
    return n;
}

/* Let the engine read an instruction of the same length in place of this one. */
static void read_instead(const Insn *in, const u8 *code, int n)
{
    memset(now.bytes, 0x2e, in->length - n); /* a prefix that means nothing */
    memcpy(now.bytes + in->length - n, code, n);
    now.size = in->length;
}

/* Decide what the engine is to translate in place of `in`, at `pc`, whose bytes are in `now`; `stepped`: with
 * EFLAGS.TF. Whether the block has to end behind it. */
static bool prepare(Cpu *cpu, Insn *in, u64 pc, bool stepped)
{
    u8 code[16];
    bool sets_flags = false;
    if (not_allowed(in)) {
        read_instead(in, (const u8 *)"\xf4", 1); /* HLT */
        return false;
    }
    if (invalid(in)) {
        read_instead(in, (const u8 *)"\x0f\x0b", 2); /* UD2 */
        return false;
    }
    if (other_encoding(in, code))
        memcpy(now.bytes, code, in->length);
    if (aligned_operand(in))
        now.first_half = MO_ALIGN_16;
    else if (unaligned_store(in))
        now.first_half = MO_ALIGN_16 | MO_PROBE_16;
    in->run = in->length > 1 ? handler_for(in, stepped, &sets_flags) : NULL; /* RDPMC has two bytes */
    bool instead = in->run != NULL, verr = sets_flags && in->length >= 3;
    if (!instead)
        in->run = mmx_handler(in); /* in addition */
    if (!in->run)
        return false;
    if (in->base == 16 || verr) /* VERR does not leave RIP where it could be read */
        in->pc = pc;
    now.insn = keep(cpu, in);
    if (instead && verr)
        read_instead(in, (const u8 *)"\x0f\x00\xe0", 3);
    else if (instead)
        read_instead(in, (const u8 *)"\x0f\x33", 2);
    return sets_flags && !verr;
}

/* Whether code from `pc` on accesses memory before it can branch. Then it need not test when it begins
 * whether it is to stop, which costs a call for each block: the access is where it is stopped. What
 * loops without any such block does test. */
static bool reaches_memory(Env *env, u64 pc)
{
    const u8 *p = engine_tlb_vaddr_to_host(env, pc, MMU_FETCH, MMU_USER);
    int available = PAGE - (pc & (PAGE - 1));
    Insn in;
    for (int i = 0; p && i < 32; i++) {
        int length = decode(&in, p, available < 15 ? available : 15);
        if (length <= 0)
            return false;
        if (accesses_memory(&in) && !in.rep)
            return true;
        if (ends_block(&in))
            return false;
        p += length;
        available -= length;
    }
    return false;
}

static void translate_insn(Disas *db, Cpu *cpu)
{
    now.no_test = false;
    Env *env = env_of(cpu);
    u64 pc = db->pc_next;
    bool first = pc == db->pc_first;
    Insn in;
    if (!first && (pc ^ db->pc_first) & ~(u64)(PAGE - 1)) {
        db->is_jmp = DISAS_TOO_MANY;
        return;
    }
    now.pc = pc;
    now.size = fetch(env, pc, now.bytes);
    now.insn = NULL;
    now.first_half = 0;
    now.all = db->tb->flags & EFLAGS_AC ? MO_ALIGN_NATURAL : 0;
    int length = decode(&in, now.bytes, now.size);
    if (length == 0 && now.size) { /* it goes on behind the border */
        if (!first) {
            db->is_jmp = DISAS_TOO_MANY;
            return;
        }
        for (int n = now.size; length == 0 && n < 15; n++) {
            now.bytes[n] = their_ldub(env, pc + n); /* may be a page fault, of this instruction */
            length = decode(&in, now.bytes, n + 1);
        }
        now.size = length > 0 ? length : 0;
    }
    now.unsigned_ret = length > 0 && in.map == MAP_1 && in.opcode == 0xc2 && in.imm >= 0x8000;
    bool end = length > 0 && prepare(cpu, &in, pc, db->tb->flags & EFLAGS_TF);
    their_translate_insn(db, cpu);
    now.insn = NULL;
    now.size = 0;
    now.first_half = now.all = 0;
    now.unsigned_ret = false;
    if (end && db->is_jmp == DISAS_NEXT)
        db->is_jmp = DISAS_TOO_MANY;
}

static TranslatorOps our_ops;

static void dfvm_translator_loop(const TranslatorOps *ops, Disas *db, Cpu *cpu, Block *tb, int max)
{
    now.insn = NULL; /* a fault may have ended the last translation anywhere */
    now.size = 0;
    now.first_half = now.all = 0;
    now.ours = now.unsigned_ret = now.no_test = false;
    if ((tb->flags & HF_CPL) != 3 || !(tb->flags & HF_CS64)) {
        their_translator_loop(ops, db, cpu, tb, max);
        return;
    }
    if (!their_translate_insn) {
        our_ops = *ops;
        their_translate_insn = ops->translate_insn;
        our_ops.translate_insn = translate_insn;
    }
    now.ours = true;
    now.no_test = reaches_memory(env_of(cpu), tb->pc);
    their_translator_loop(&our_ops, db, cpu, tb, max);
    now.ours = false;
}

/* Where the state of a CPU begins, behind the CPU itself: known when an engine runs. */
EXPORT void dfvm_native_found(intptr_t to_env) { cpu_to_env = to_env; }

const Replacement replace_translate[] = {
    OURS_AND(translator_loop, their_translator_loop),
    OURS_AND(cpu_ldub_code, their_ldub),
    OURS_AND(cpu_lduw_code, their_lduw),
    OURS_AND(cpu_ldl_code, their_ldl),
    OURS_AND(cpu_ldq_code, their_ldq),
    OURS_AND(tcg_gen_callN, their_callN),
    OURS_AND(tb_flush, their_tb_flush),
    OURS_AND(check_exit_request, their_check_exit_request),
    OURS_AND(tcg_gen_qemu_ld_i64, their_gen_ld_i64),
    OURS_AND(tcg_gen_qemu_st_i64, their_gen_st_i64),
    OURS_AND(tcg_gen_qemu_ld_i32, their_gen_ld_i32),
    OURS_AND(tcg_gen_qemu_st_i32, their_gen_st_i32),
    OURS_AND(tcg_gen_addi_i64, their_gen_addi),
    OURS_AND(helper_rdpmc, their_rdpmc),
    OURS_AND(helper_verr, their_verr),
    OURS_AND(helper_invlpg, their_invlpg),
    END,
};
