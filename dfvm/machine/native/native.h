/* What the native half of dfvm.machine shares: the engine's structures as far as they are used here,
 * its functions that are called, and the decoded instruction.
 *
 * The layout is that of Unicorn 2.1.4 on x86-64. machine/native.py compares it at every start with
 * what machine/engine.py finds by experiment, and dfvm does not run where they differ. */
#ifndef DFVM_NATIVE_H
#define DFVM_NATIVE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;
typedef unsigned __int128 u128;

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS };

/* ---- the engine's CPU state -------------------------------------------------------------------- */

typedef struct {
    u32 selector;
    u64 base;
    u32 limit;
    u32 flags;
} Segment;

typedef struct {
    u64 mantissa;
    u16 exponent; /* with the sign */
    u8 pad[6];
} X87Reg;

typedef union {
    u8 b[64];
    u32 l[16];
    u64 q[8];
    float s[16];
    double d[8];
} Xmm;

typedef union {
    u8 b[8];
    u32 l[2];
    u64 q;
} Mmx;

typedef struct Cpu Cpu; /* the engine's CPUState */

typedef struct {
    u64 regs[16];
    u64 eip;
    u64 eflags; /* without the arithmetic flags and DF */
    u64 cc_dst, cc_src, cc_src2;
    u32 cc_op;
    i32 df; /* 1 or -1 */
    u32 hflags, hflags2;
    Segment segs[6];
    Segment ldt, tr, gdt, idt;
    u64 cr[9];
    i32 a20_mask;
    u64 bounds[11]; /* MPX */
    u64 efer;
    i32 start_init_save;
    u32 fpstt;      /* top of the x87 stack */
    u16 fpus, fpuc; /* status without the top, and control */
    u8 fptags[8];    /* 1: empty; by physical register */
    X87Reg fpregs[8];
    u16 fpop, fpcs, fpds;
    u64 fpip, fpdp;
    u8 fp_status[8];
    X87Reg ft0;
    u8 mmx_status[8], sse_status[8];
    u32 mxcsr;
    Xmm xmm[32];
    Xmm xmm_t0;
} Env;

#define CC_C 0x001
#define CC_P 0x004
#define CC_A 0x010
#define CC_Z 0x040
#define CC_S 0x080
#define CC_O 0x800
#define CC_ALL (CC_C | CC_P | CC_A | CC_Z | CC_S | CC_O)
#define CC_OP_EFLAGS 1
#define EFLAGS_TF 0x100
#define EFLAGS_AC 0x40000
#define HF_CS64 (1u << 15)
#define HF_CPL 3u

enum { MMU_LOAD, MMU_STORE, MMU_FETCH };
#define MMU_USER 1
#define PAGE 4096u

enum { DE = 0, DB = 1, UD = 6, GP = 13, SS = 12, PF = 14, MF = 16, AC = 17, XF = 19 };

/* ---- the engine's translator ------------------------------------------------------------------- */

typedef struct {
    u64 pc, cs_base;
    u32 flags;
} Block; /* a TranslationBlock, as far as it is needed */

typedef struct {
    Block *tb;
    u64 pc_first, pc_next;
    i32 is_jmp, num_insns, max_insns;
    bool singlestep;
} Disas; /* a DisasContextBase */

enum { DISAS_NEXT, DISAS_TOO_MANY };

typedef struct {
    void (*init_disas_context)(Disas *, Cpu *);
    void (*tb_start)(Disas *, Cpu *);
    void (*insn_start)(Disas *, Cpu *);
    bool (*breakpoint_check)(Disas *, Cpu *, const void *);
    void (*translate_insn)(Disas *, Cpu *);
    void (*tb_stop)(Disas *, Cpu *);
    void (*pc_sync)(Disas *, Cpu *);
} TranslatorOps;

/* ---- the engine's functions (interpose.c finds them) ------------------------------------------- */

#define ENGINE_CALLS(X)                                                                        \
    X(void *, probe_access, (Env *, u64 va, int size, int access, int mmu, uintptr_t ra))     \
    X(void *, tlb_vaddr_to_host, (Env *, u64 va, int access, int mmu))                        \
    X(bool, cpu_restore_state, (Cpu *, uintptr_t ra, bool will_exit))                         \
    X(void, raise_exception_err_ra, (Env *, int vector, int error, uintptr_t ra))             \
    X(u32, cpu_cc_compute_all, (Env *, int op))                                               \
    X(void, helper_cc_compute_all, (void))                                                    \
    X(void, helper_cc_compute_c, (void))                                                      \
    X(void, helper_check_exit_request, (void))                                                \
    X(void, helper_uc_tracecode, (void))                                               \
    X(void *, tcg_const_i64, (void *tcg, i64))                                                \
    X(void, tcg_temp_free_internal, (void *tcg, void *temp))

#define ENGINE_POINTER(type, name, args) extern type(*engine_##name) args;
ENGINE_CALLS(ENGINE_POINTER)

extern intptr_t cpu_to_env;  /* from a Cpu to its Env */

static inline Cpu *cpu_of(Env *env) { return (Cpu *)((char *)env - cpu_to_env); }
static inline Env *env_of(Cpu *cpu) { return (Env *)((char *)cpu + cpu_to_env); }

/* Whether the engine is one of dfvm's. Others in this process have our functions, too: they run in ring 0
 * as a rule, where all is to be as the engine has it. */
static inline bool in_ring_3(const Env *env) { return (env->hflags & HF_CPL) == 3; }

_Noreturn static inline void raise_fault(Env *env, int vector, int error, uintptr_t ra)
{
    engine_raise_exception_err_ra(env, vector, error, ra);
    __builtin_unreachable();
}

#define RETADDR ((uintptr_t)__builtin_return_address(0))

/* ---- an instruction ---------------------------------------------------------------------------- */

enum { MAP_1, MAP_0F, MAP_0F38, MAP_0F3A };

typedef struct Insn Insn;
typedef void Handler(Env *, const Insn *, uintptr_t ra);

struct Insn {
    Handler *run;  /* what is called in place of the engine's idea of it; NULL: nothing */
    u64 pc;        /* where it stands, when that matters; else 0 */
    u8 bytes[16];
    u8 length;
    u8 map, opcode;
    bool has_modrm;
    u8 modrm, mod, reg, rm; /* reg and rm with REX's bits */
    u8 modrm_at;            /* where it is in bytes */
    bool rex, rex_w, opsize, addr32, lock, vex;
    u8 vex_v, vex_l, vex_pp;
    u8 rep;        /* 0, 0xf2 or 0xf3: the last of them */
    i32 seg;       /* -1: none named */
    i32 base, index, scale; /* of the operand in memory: -1 none, base 16 is RIP */
    i64 disp;
    u64 imm;       /* zero-extended */
    u8 imm_bytes;
    u8 width;      /* of a general operand, in bytes: 1, 2, 4, 8 */
};

/* decode.c */
int decode(Insn *, const u8 *code, int available);
u64 effective_address(const Env *, const Insn *);
bool modifies_memory(const Insn *);
bool through_stack(const Env *, const Insn *, u64 va);
bool aligned_operand(const Insn *);
bool unaligned_store(const Insn *);
bool accesses_memory(const Insn *);
bool ends_block(const Insn *);
bool lockable(const Insn *);
bool is_sse(const Insn *);
bool undefined_sse(const Insn *);
bool uses_mmx(const Insn *);
int mmx_operand(const Insn *);
int mmx_written(const Insn *);

/* memory.c: the guest's memory, in ring 3; faults leave by way of the engine */
void read_guest(Env *, u64 va, void *to, unsigned size, uintptr_t ra);
void probe_store(Env *, u64 va, unsigned size, uintptr_t ra);
void write_guest(Env *, u64 va, const void *from, unsigned size, uintptr_t ra);

/* Memory that a store has been found to reach: filling it can't fault any more, even if the clock takes
 * the pages out of the TLB meanwhile. For what has an effect besides the store. */
typedef struct {
    char *one, *two;
    unsigned n; /* bytes at `one`; the rest is at `two` */
} Target;
Target reach_store(Env *, u64 va, unsigned size, uintptr_t ra);
void fill_target(Target, const void *from, unsigned size);

/* sse.c */
void sse_round_scalar(Env *, Xmm *d, Xmm *s, u32 mode, unsigned size, uintptr_t ra);

/* insn.c, x87.c: what runs in place of the engine's translation */
Handler *handler_for(const Insn *, bool stepped, bool *sets_flags);
bool not_allowed(const Insn *);
bool invalid(const Insn *);
bool other_encoding(const Insn *, u8 *code);
Handler *x87_handler(const Insn *, bool *sets_flags);
Handler *mmx_handler(const Insn *);
void x87_enter_mmx(Env *, const Insn *, uintptr_t ra);
void x87_sync(Env *);
void dfvm_helper_enter_mmx(Env *);

static inline u32 get_flags(Env *env)
{
    return engine_cpu_cc_compute_all(env, env->cc_op) & CC_ALL;
}

static inline void set_flags(Env *env, u32 flags)
{
    env->cc_src = flags & CC_ALL;
    env->cc_op = CC_OP_EFLAGS;
}

/* What machine/native.py calls. */
#define EXPORT __attribute__((visibility("default")))

/* The engine's TLB of ring 3: what is in it is found here, as translated code finds it. */
typedef struct {
    u64 mask;
    char *entries; /* of 8 words: the addresses that may be read, written, fetched; the physical one; what
                    * to add for the host's */
} Tlb;
#define TLB_BEFORE_ENV 48

static inline void *in_tlb(Env *env, u64 va, int access)
{
    const Tlb *tlb = (const Tlb *)((char *)env - TLB_BEFORE_ENV);
    const u64 *entry = (const u64 *)(tlb->entries + (va >> 6 & tlb->mask));
    if (entry[access] == (va & ~(u64)(PAGE - 1)))
        return (void *)(va + entry[4]);
    return NULL;
}

/* With EFLAGS.AC, `size` bytes have to lie at a multiple of that. */
static inline void check_aligned(Env *env, u64 va, unsigned size, uintptr_t ra)
{
    if (__builtin_expect(env->eflags & EFLAGS_AC && va & (size - 1), 0))
        raise_fault(env, AC, 0, ra);
}

/* A host address for an access within one page; a fault raises, with the state that `ra`, an address in
 * translated code, has. */
static inline void *guest_page(Env *env, u64 va, unsigned size, int access, uintptr_t ra)
{
    void *p = in_tlb(env, va, access);
    return __builtin_expect(p != NULL, 1) ? p
                                          : engine_probe_access(env, va, size, access, MMU_USER, ra);
}

/* An access to memory, as the engine's translator describes it: its size in the lowest two bits (0: a
 * byte), what alignment it needs, and a bit of ours. */
#define MO_ALIGN_MASK 0x70u
#define MO_ALIGN_16 0x40u
#define MO_ALIGN_NATURAL 0x70u
#define MO_PROBE_16 0x80u /* the first half of 16 bytes that may lie anywhere */

#endif
