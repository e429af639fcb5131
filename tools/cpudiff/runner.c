/*
 * Runs the cases of a batch file, one after the other, and writes what became of each to standard
 * output. The same binary runs on the host and in a machine; tools/cpu_diff.py compares.
 *
 *     runner BATCH FIRST
 *
 * A case is a state of the processor, two pages of data of some kind each, a stack page, and a
 * place in the batch's code pages. Its code ends with a signal, if only that of the int3 that stands
 * behind it. The handler keeps the context, and the runner writes it with what changed in memory.
 *
 * Freestanding, and without SSE or a thread pointer: nothing of the runner's own depends on a state
 * that a case may have changed.
 */
#include <asm/signal.h>
#include <asm/sigcontext.h>
#include <asm/siginfo.h>
#include <asm/ucontext.h>
#include <asm/unistd.h>
#include <linux/mman.h>
#include <stddef.h>
#include <stdint.h>

enum { PAGE = 4096, DATA = 0x10000000, STACK = 0x10010000, CODE = 0x20000000 };
enum { O_RDONLY = 0 };

/* Kinds of a data page; the names and numbers of tools/cpudiff/case.py. */
enum kind { RW, ABSENT, RO, NONE, UNMAPPED, COW, PRIVATE, SHARED, BEYOND, RO_ABSENT, KINDS };
/* Kinds of a code page. */
enum code_kind { CODE_RX, CODE_NX, CODE_NONE, CODE_UNMAPPED, CODE_ABSENT, CODE_RWX };

enum { PATCHES = 4, PATCH = 64, CHANGES = 192 };
enum { FORK = 1 };

struct patch { uint32_t off, len; uint8_t data[PATCH]; };

struct rec {
    uint8_t fx[512];
    uint64_t gpr[16]; /* as they are encoded: rax rcx rdx rbx rsp rbp rsi rdi r8 ... */
    uint64_t rflags, rip, fsbase, gsbase;
    uint8_t kind[2], pattern[3], flags, patches, pad;
    struct patch patch[PATCHES];
    uint8_t pad2[1024 - 968];
};
_Static_assert(sizeof(struct rec) == 1024, "struct rec");

struct header {
    uint64_t magic, recs, off_recs, off_patterns, off_code, code_pages;
    uint8_t code_kind[PAGE - 48];
};

struct change { uint32_t off, what; uint64_t value; };

struct result {
    uint32_t magic, index, sig, code, changes, status;
    uint64_t addr, err, trapno, cr2;
    uint64_t gpr[16], rflags, rip, csgsfs, fsbase, gsbase;
    uint16_t ds, es, fs, gs;
    uint8_t fx[512];
    struct change change[CHANGES];
};
/* What a change is of. */
enum { MEMORY, FILE_PAGE, PARENT, UNDERNEATH };

static struct result *res;
static const struct header *h;
static const uint8_t *batch;
static uint8_t init[3][PAGE], seen[PAGE];
static int memfd;
static uint64_t jump_to __attribute__((used));

static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}
#define sys(n, a, b, c) sys6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)

static void die(const char *why)
{
    long n = 0;
    while (why[n])
        n++;
    sys(__NR_write, 2, why, n);
    sys(__NR_write, 2, "\n", 1);
    sys(__NR_exit_group, 3, 0, 0);
    __builtin_unreachable();
}

static long must(long value, const char *why)
{
    if (value < 0 && value > -4096)
        die(why);
    return value;
}

/* Whole words: what the engine has to do for `rep movsb` is the same for each byte. */
static void copy(void *to, const void *from, long bytes)
{
    long n = bytes / 8;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    n = bytes & 7;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void zero(void *to, long bytes)
{
    long n = bytes / 8;
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(0) : "memory");
}

void *memcpy(void *to, const void *from, size_t n) { copy(to, from, (long)n); return to; }
void *memset(void *to, int c, size_t n)
{
    void *p = to;
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
    return to;
}

static void map(long at, long bytes, int prot, int flags, int fd, long off)
{
    must(sys6(__NR_mmap, at, bytes, prot, flags | MAP_FIXED, fd, off), "mmap");
}

/*
 * Into the case and out of it. The flags are the last but RSP and RDI, and mov changes none.
 */
void enter(const struct rec *r);
void back(void) __attribute__((noreturn));
__asm__(
    ".text\n"
    "enter:\n"
    "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "  mov %rsp, kept_rsp(%rip)\n"
    "  fxrstor64 (%rdi)\n"
    "  mov 656(%rdi), %rax; wrfsbase %rax\n"
    "  mov 664(%rdi), %rax; wrgsbase %rax\n"
    "  pushq 640(%rdi); popfq\n"
    "  mov 512(%rdi), %rax; mov 520(%rdi), %rcx; mov 528(%rdi), %rdx; mov 536(%rdi), %rbx\n"
    "  mov 552(%rdi), %rbp; mov 560(%rdi), %rsi; mov 576(%rdi), %r8; mov 584(%rdi), %r9\n"
    "  mov 592(%rdi), %r10; mov 600(%rdi), %r11; mov 608(%rdi), %r12; mov 616(%rdi), %r13\n"
    "  mov 624(%rdi), %r14; mov 632(%rdi), %r15; mov 544(%rdi), %rsp; mov 568(%rdi), %rdi\n"
    "  jmp *jump_to(%rip)\n"
    "back:\n"
    "  mov kept_rsp(%rip), %rsp\n"
    "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "  ret\n"
    "restorer: mov $15, %eax; syscall\n" /* rt_sigreturn: never reached, but it must be named */
    /* A handler begins with the AC and NT of what was interrupted. */
    "on_signal: pushq $0x202; popfq; jmp caught\n"
    ".globl _start\n"
    "_start: mov %rsp, %rdi; and $-16, %rsp; call start\n"
    ".local kept_rsp; .comm kept_rsp, 8, 8\n");
extern void on_signal(int), restorer(void);

__attribute__((used, noreturn)) void caught(int sig, siginfo_t *si, struct ucontext *uc)
{
    const struct sigcontext *sc = &uc->uc_mcontext;
    uint16_t seg;
#define SEG(name) \
    __asm__ volatile("mov %%" #name ", %0" : "=r"(seg)); \
    res->name = seg
    SEG(ds);
    SEG(es);
    SEG(fs);
    SEG(gs);
    __asm__ volatile("rdfsbase %0" : "=r"(res->fsbase));
    __asm__ volatile("rdgsbase %0" : "=r"(res->gsbase));
    __asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%fs; mov %0, %%gs" : : "r"(0));
    const uint64_t gpr[16] = {sc->rax, sc->rcx, sc->rdx, sc->rbx, sc->rsp, sc->rbp, sc->rsi, sc->rdi,
                              sc->r8, sc->r9, sc->r10, sc->r11, sc->r12, sc->r13, sc->r14, sc->r15};
    copy(res->gpr, gpr, sizeof gpr);
    res->rflags = sc->eflags;
    res->rip = sc->rip;
    res->csgsfs = sc->cs | (uint64_t)sc->ss << 48;
    res->sig = sig;
    res->code = si->si_code;
    res->addr = (uint64_t)si->si_addr;
    res->err = sc->err;
    res->trapno = sc->trapno;
    res->cr2 = sc->cr2;
    copy(res->fx, (void *)sc->fpstate, 512);
    back();
}

static void build_page(const struct rec *r, int n)
{
    /* What the page shows at first. */
    const uint8_t *pattern = batch + h->off_patterns + r->pattern[n] * (long)PAGE;
    int kind = n < 2 ? r->kind[n] : RW;
    if (kind == ABSENT || kind == RO_ABSENT || kind == UNMAPPED || kind == BEYOND) {
        zero(init[n], PAGE);
        return;
    }
    copy(init[n], pattern, PAGE);
}

static void patch(const struct rec *r)
{
    for (int i = 0; i < r->patches; i++)
        for (uint32_t k = 0; k < r->patch[i].len; k++) {
            uint32_t off = r->patch[i].off + k;
            int n = off / PAGE;
            int kind = n < 2 ? r->kind[n] : RW;
            if (kind != ABSENT && kind != RO_ABSENT && kind != UNMAPPED && kind != BEYOND)
                init[n][off % PAGE] = r->patch[i].data[k];
        }
}

static void map_page(const struct rec *r, int n)
{
    static int now[2] = {-1, -1};
    long at = DATA + n * (long)PAGE;
    int kind = r->kind[n], anon = MAP_PRIVATE | MAP_ANONYMOUS, rw = PROT_READ | PROT_WRITE;

    /* What no case can have changed but by its bytes stays as it is mapped. */
    if (kind != now[n] || kind != RW) {
        switch (kind) {
        case RW: case ABSENT: case RO: case NONE:
            map(at, PAGE, rw, anon, -1, 0);
            break;
        case RO_ABSENT:
            map(at, PAGE, PROT_READ, anon, -1, 0);
            break;
        case UNMAPPED:
            must(sys(__NR_munmap, at, PAGE, 0), "munmap");
            break;
        case COW: case PRIVATE: case SHARED:
            must(sys6(__NR_pwrite64, memfd, (long)init[n], PAGE, n * PAGE, 0, 0), "pwrite");
            map(at, PAGE, rw, kind == SHARED ? MAP_SHARED : MAP_PRIVATE, memfd, n * PAGE);
            if (kind == COW)
                (void)*(volatile char *)at;
            break;
        case BEYOND:
            map(at, PAGE, rw, n ? MAP_SHARED : MAP_PRIVATE, memfd, 16 * PAGE);
            break;
        }
        now[n] = kind;
    }
    if (kind == RW || kind == RO || kind == NONE)
        copy((void *)at, init[n], PAGE);
    if (kind == RO || kind == NONE)
        must(sys(__NR_mprotect, at, PAGE, kind == RO ? PROT_READ : 0), "mprotect");
}

static void changed(const uint8_t *now, int n, int what)
{
    const uint64_t *a = (const void *)init[n], *b = (const void *)now;
    for (int i = 0; i < PAGE / 8; i++)
        if (a[i] != b[i]) {
            if (res->changes < CHANGES)
                res->change[res->changes++] = (struct change){n * PAGE + i * 8, what, b[i]};
            else
                res->change[CHANGES - 1].value = res->change[CHANGES - 1].value * 31 + b[i] + i;
        }
}

static void collect(const struct rec *r, int parent)
{
    for (int n = 0; n < 2; n++) {
        const void *at = (const void *)(DATA + n * (long)PAGE);
        int kind = r->kind[n], what = parent ? PARENT : MEMORY;
        if (kind == NONE)
            must(sys(__NR_mprotect, at, PAGE, PROT_READ), "mprotect");
        if (kind != UNMAPPED && kind != BEYOND)
            changed(at, n, what);
        if (kind == COW || kind == PRIVATE) {
            must(sys6(__NR_pread64, memfd, (long)seen, PAGE, n * PAGE, 0, 0), "pread");
            changed(seen, n, FILE_PAGE);
        }
    }
    changed((const void *)STACK, 2, parent ? PARENT : MEMORY);
}

static void run(const struct rec *r, uint32_t index)
{
    for (int n = 0; n < 3; n++)
        build_page(r, n);
    patch(r);
    for (int n = 0; n < 2; n++)
        map_page(r, n);
    copy((void *)STACK, init[2], PAGE);
    zero(res, offsetof(struct result, change));
    res->magic = 0x43505544;
    res->index = index;
    jump_to = r->rip;
    if (r->flags & FORK) {
        long pid = must(sys(__NR_fork, 0, 0, 0), "fork");
        if (!pid) {
            enter(r);
            collect(r, 0);
            sys(__NR_exit_group, 0, 0, 0);
        }
        int status = 0;
        must(sys6(__NR_wait4, pid, (long)&status, 0, 0, 0, 0), "wait4");
        res->status = status;
        /* What the child did to its own private pages must not show here. */
        collect(r, 1);
    } else {
        enter(r);
        collect(r, 0);
    }
    long bytes = offsetof(struct result, change) + res->changes * (long)sizeof(struct change);
    for (long done = 0; done < bytes;)
        done += must(sys(__NR_write, 1, (char *)res + done, bytes - done), "write");
}

static uint64_t number(const char *text)
{
    uint64_t n = 0;
    while (*text)
        n = n * 10 + (*text++ - '0');
    return n;
}

__attribute__((used, noreturn)) void start(long *args)
{
    static uint8_t altstack[65536] __attribute__((aligned(64)));
    char **argv = (char **)(args + 1);
    int anon = MAP_PRIVATE | MAP_ANONYMOUS, rw = PROT_READ | PROT_WRITE;

    if (args[0] != 3)
        die("usage: runner BATCH FIRST");
    int fd = (int)must(sys(__NR_open, argv[1], O_RDONLY, 0), "open");
    static uint8_t head[PAGE];
    if (must(sys(__NR_read, fd, head, PAGE), "read") != PAGE)
        die("a short batch");
    h = (const void *)head;
    long off_end = h->off_code;
    batch = (const void *)must(
        sys6(__NR_mmap, 0, off_end, PROT_READ, MAP_PRIVATE, fd, 0), "mmap of the batch");

    memfd = (int)must(sys(__NR_memfd_create, "pages", 0, 0), "memfd_create");
    must(sys(__NR_ftruncate, memfd, 2 * PAGE, 0), "ftruncate");
    map(STACK, PAGE, rw, anon, -1, 0);
    res = (void *)must(
        sys6(__NR_mmap, 0, (sizeof *res + PAGE - 1) & -PAGE, rw, MAP_SHARED | MAP_ANONYMOUS, -1, 0),
        "mmap of the result");

    map(CODE, (long)h->code_pages * PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd,
        (long)h->off_code);
    for (uint64_t i = 0; i < h->code_pages; i++) {
        long at = CODE + (long)i * PAGE;
        switch (h->code_kind[i]) {
        case CODE_NX:
            must(sys(__NR_mprotect, at, PAGE, rw), "mprotect");
            break;
        case CODE_NONE:
            must(sys(__NR_mprotect, at, PAGE, 0), "mprotect");
            break;
        case CODE_UNMAPPED:
            must(sys(__NR_munmap, at, PAGE, 0), "munmap");
            break;
        case CODE_ABSENT:
            map(at, PAGE, PROT_READ | PROT_EXEC, anon, -1, 0);
            break;
        case CODE_RWX:
            must(sys(__NR_mprotect, at, PAGE, rw | PROT_EXEC), "mprotect");
            break;
        }
    }

    stack_t ss = {.ss_sp = altstack, .ss_size = sizeof altstack};
    must(sys(__NR_sigaltstack, &ss, 0, 0), "sigaltstack");
    static const int sigs[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    for (unsigned i = 0; i < sizeof sigs / sizeof sigs[0]; i++) {
        struct sigaction sa = {.sa_handler = on_signal,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER,
                               .sa_restorer = restorer};
        must(sys6(__NR_rt_sigaction, sigs[i], (long)&sa, 0, 8, 0, 0), "sigaction");
    }
    const struct rec *recs = (const void *)(batch + h->off_recs);
    for (uint64_t i = number(argv[2]); i < h->recs; i++)
        run(&recs[i], (uint32_t)i);
    sys(__NR_exit_group, 0, 0, 0);
    __builtin_unreachable();
}
