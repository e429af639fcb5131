"""Instructions that the engine alone gets wrong: what a program computes and which faults it sees
are the processor's. The same binary runs on the host; tools/cpu_diff.py looks for more at random.
"""

from __future__ import annotations

import pytest

from dfvm.vm.vm import VM_PROT_WRITE
from tests.guest.watch import watch
from tests.kern.guest_util import build, same

PLACE = 0x100000000000 >> 24

# Catch a signal at a line of assembly and say what it tells.
CATCH = r"""
#include <sys/mman.h>
static sigjmp_buf env;
static siginfo_t info;
static greg_t g[23];
static void handler(int sig, siginfo_t *si, void *uc)
{
    info = *si;
    memcpy(g, ((ucontext_t *)uc)->uc_mcontext.gregs, sizeof g);
    siglongjmp(env, 1);
}
static void catch(void)
{
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};
    int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    for (int i = 0; i < 5; i++) sigaction(signals[i], &sa, 0);
}
#define TRY(x) (sigsetjmp(env, 1) ? info.si_signo : ((x), 0))
static char *pages(int n, int prot)
{
    return mmap(0, n * 4096L, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
"""


def test_what_stands_before_a_page_border_comes_first() -> None:
    """Code ends at a page whose next can't be fetched: absent, without access, not executable."""
    same(
        CATCH
        + r"""
static char *code;
static volatile int cell;
static void run(const char *text, int size, int how)
{
    mmap(code, 8192, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    memcpy(code + 4096 - size, text, size);
    if (how == 0) munmap(code + 4096, 4096);
    else mprotect(code + 4096, 4096, how == 1 ? PROT_NONE : 3);
    cell = 7;
    int sig = TRY(({ asm volatile("call *%0" : : "r"(code + 4096 - size), "D"(&cell), "S"(0L),
                                  "c"(0) : "rax", "rdx", "memory"); }));
    printf("%d: signal %d code %d rip %ld addr %d cell %d rcx %lld\n", how, sig, info.si_code,
           (long)g[REG_RIP] - (long)code - 4096, info.si_addr == code + 4096, cell, g[REG_RCX]);
}
#define RUN(s) for (int how = 0; how < 3; how++) run(s, sizeof s - 1, how)
int main(void)
{
    catch();
    code = pages(2, 7);
    RUN("\xc7\x07\x09\0\0\0");          /* movl $9, (%rdi) */
    RUN("\xff\xc1\xff\xc1\x89\x0f");    /* inc %ecx, twice; mov %ecx, (%rdi) */
    RUN("\xff\xc1\x8b\x06");            /* inc %ecx; mov (%rsi), %eax */
    RUN("\x31\xd2\xf7\xf1");            /* xor %edx, %edx; div %ecx */
    RUN("\xff\xc1\x0f\x0b");            /* ud2 */
    RUN("\xc7\x07\x05\0");              /* half of a mov */
    RUN("\xf0\xff\x07");                /* lock incl (%rdi) */
    RUN("\xd9\xe8\xd9\xee");            /* fld1; fldz */
}
"""
    )


ROTATE = r"""
#define ROTATE(op, type, size)                                                              \
    for (int carry = 0; carry < 2; carry++) for (int n = 0; n < 70; n += 3) {               \
        volatile type *p = (void *)(page + 64);                                             \
        *p = (type)0x8123456789abcdf1;                                                      \
        unsigned long flags = 0;                                                            \
        fflush(stdout);                                                                     \
        if (!fork()) {                                                                      \
            asm volatile("bt $0, %2\n " op size " %%cl, %0\n pushf\n pop %1"                \
                         : "+m"(*p), "=r"(flags) : "r"(carry), "c"(n) : "cc", "memory");    \
            printf(op size " %d %d: %lx %lx\n", carry, n, (long)*p, flags & 1);             \
            fflush(stdout);                                                                 \
            _exit(0);                                                                       \
        }                                                                                   \
        wait(0);                                                                            \
    }
"""


@pytest.mark.parametrize("op", ["rcl", "rcr"])
def test_the_carry_is_rotated_once_into_a_page_that_is_copied(op: str) -> None:
    body = "".join(
        f'ROTATE("{op}", {kind}, "{size}")\n'
        for kind, size in (("char", "b"), ("short", "w"), ("int", "l"), ("long", "q"))
    )
    source = ROTATE + "int main(void) {\nstatic char page[4096];\n" + body + "}\n"
    same("#include <sys/wait.h>\n" + source)


def test_a_read_modify_write_is_a_write() -> None:
    """The error code in the frame of a signal, of pages that are absent, without access, and only
    to be read."""
    same(
        CATCH
        + r"""
#define ONE(text)                                                                           \
    for (int how = 0; how < 3; how++) {                                                     \
        char *p = pages(1, how == 1 ? PROT_NONE : 3);                                       \
        if (how == 0) munmap(p, 4096);                                                      \
        if (how == 2) { *p = 0; mprotect(p, 4096, PROT_READ); }                             \
        int sig = TRY(({ asm volatile(text : : "D"(p), "c"(1L) : "rax", "rdx", "rbx", "cc",  \
                                      "memory"); }));                                       \
        printf("%d " text ": %d code %d err %llx\n", how, sig, info.si_code, g[REG_ERR]);   \
    }
int main(void)
{
    catch();
    ONE("addl $1, (%%rdi)") ONE("incb (%%rdi)") ONE("xchgl %%ecx, (%%rdi)")
    ONE("lock xaddq %%rcx, (%%rdi)") ONE("lock cmpxchgl %%ecx, (%%rdi)")
    ONE("cmpxchgb %%cl, (%%rdi)") ONE("btsl $3, (%%rdi)") ONE("lock btcq $3, (%%rdi)")
    ONE("negw (%%rdi)") ONE("notl (%%rdi)") ONE("shll $1, (%%rdi)") ONE("rcrb $1, (%%rdi)")
    ONE("shldl $1, %%ecx, (%%rdi)") ONE("adcl %%ecx, (%%rdi)") ONE("cmpxchg16b (%%rdi)")
    ONE("cmpl $1, (%%rdi)") ONE("testb $1, (%%rdi)") ONE("btl $3, (%%rdi)")
    ONE("addl (%%rdi), %%ecx") ONE("mull (%%rdi)") ONE("movl %%ecx, (%%rdi)")
}
"""
    )


@pytest.mark.parametrize(
    "text",
    ["addl $1, (%0)", "incl (%0)", "xchgl %%eax, (%0)", "lock xaddl %%eax, (%0)",
     "lock cmpxchgl %%eax, (%0)", "btsl $1, (%0)", "rcll $1, (%0)", "movups %%xmm0, (%0)"],
)  # fmt: skip
def test_a_page_that_is_modified_takes_one_fault(text: str) -> None:
    source = r"""
#include <sys/mman.h>
int main(void)
{
    char *p = mmap((void *)0x100000000000, 64 * 4096, 3,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    madvise(p, 64 * 4096, MADV_RANDOM);
    for (int i = 0; i < 64; i++)
        asm volatile("TEXT" : : "r"(p + 4096 * i) : "eax", "cc", "memory");
}
"""
    seen = watch(build(source.replace("TEXT", text)), at=lambda look: None, faults=True)
    assert [f.fault_type for f in seen.faults if f.va >> 24 == PLACE] == [VM_PROT_WRITE] * 64


@pytest.mark.parametrize("how", ["PROT_NONE", "PROT_READ"])
def test_a_store_over_a_border_is_done_whole_or_not_at_all(how: str) -> None:
    """The second page can't be written, and then the first."""
    source = r"""
#define STORE(text)                                                                         \
    for (int bad = 0; bad < 2; bad++) for (int at = -15; at < 0; at++) {                    \
        mmap(p, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);                   \
        memset(p, 7, 8192);                                                                 \
        mprotect(p + (bad ? 0 : 4096), 4096, HOW);                                          \
        int written = 0, sig = TRY(({ asm volatile("pcmpeqd %%xmm1, %%xmm1\n" text          \
            : : "D"(p + 4096 + at), "a"(-1L) : "xmm1", "memory"); }));                      \
        mprotect(p, 8192, 3);                                                               \
        for (int i = 0; i < 8192; i++) written += p[i] != 7;                                \
        printf(text " %d %d: %d %ld %llx, %d\n", bad, at, sig,                              \
               sig ? (long)info.si_addr - (long)p : 0, sig ? g[REG_ERR] : 0, written);      \
    }
int main(void)
{
    char *p = pages(2, 3);
    catch();
    STORE("movups %%xmm1, (%%rdi)") STORE("movdqu %%xmm1, (%%rdi)")
    STORE("movupd %%xmm1, (%%rdi)") STORE("movq %%rax, (%%rdi)")
    STORE("fldpi; fstpt (%%rdi)")
}
"""
    same(CATCH + source.replace("HOW", how))


def test_the_x87_state_is_stored_whole_or_not_at_all() -> None:
    """The address of the fault is the processor's choice: AMD's is that of the last byte."""
    same(
        CATCH
        + r"""
#define STORE(text, size)                                                                   \
    for (int at = 16; at < size; at += 48) {                                                \
        mmap(p, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);                   \
        memset(p, 7, 4096);                                                                 \
        munmap(p + 4096, 4096);                                                             \
        int written = 0;                                                                    \
        int sig = TRY(({ asm volatile(text : : "D"(p + 4096 - at) : "memory"); }));         \
        for (int i = 0; i < 4096; i++) written += p[i] != 7;                                \
        printf(text " %d: %d, %d\n", at, sig, written);                                     \
    }
int main(void)
{
    char *p = pages(2, 3);
    catch();
    STORE("fxsave (%%rdi)", 512) STORE("fnstenv (%%rdi)", 28) STORE("fnsave (%%rdi)", 108)
    STORE("fld1; fbstp 8(%%rdi)", 17)
}
"""
    )


def test_alignment_and_addresses_that_can_not_be() -> None:
    same(
        CATCH
        + r"""
#define SAY(text, x) do { int sig = x; printf(text ": %d", sig);                            \
    if (sig) printf(" code %d trap %lld err %llx addr %d", info.si_code, g[REG_TRAPNO],     \
                    g[REG_ERR], info.si_addr != 0);                                         \
    printf("\n"); } while (0)
#define ONE(text) SAY(text, TRY(({ asm volatile(text : : "D"(p + 1), "a"(1L << 47),         \
    "S"(0x2b) : "rcx", "memory", "cc"); })))
#define AC(text) SAY(text, TRY(({ asm volatile("pushf; orl $0x40000, (%%rsp); popf\n" text  \
    "\n pushf; andl $~0x40000, (%%rsp); popf" : : "D"(p + 1), "a"(0L)                       \
    : "memory", "cc", "xmm1"); })))
int main(void)
{
    char *p = pages(1, 3);
    catch();
    ONE("movaps (%%rdi), %%xmm0") ; ONE("movaps %%xmm0, (%%rdi)"); ONE("addps (%%rdi), %%xmm0");
    ONE("pshufb (%%rdi), %%xmm0"); ONE("movntdq %%xmm0, (%%rdi)"); ONE("fxsave (%%rdi)");
    ONE("movups (%%rdi), %%xmm0"); ONE("addss (%%rdi), %%xmm0"); ONE("cvtps2pd (%%rdi), %%xmm0");
    ONE("movl (%%rax), %%ecx"); ONE("movl %%ecx, (%%rax)"); ONE("jmp *%%rax");
    ONE("mov %%rsp, %%rcx; mov %%rax, %%rsp; push %%rcx"); ONE("mov %%esi, %%ds");
    AC("movl (%%rdi), %%eax"); AC("movw %%ax, (%%rdi)"); AC("movb (%%rdi), %%al");
    AC("addq %%rax, (%%rdi)"); AC("lock incl (%%rdi)"); AC("flds (%%rdi)");
    AC("movl 3(%%rdi), %%eax");
}
"""
    )


def test_syscall_leaves_where_it_returns_and_the_flags() -> None:
    same(
        r"""
int main(void)
{
    for (long set = 0; set < 2; set++) {
        long rcx, r11, next;
        asm volatile("mov $39, %%eax\n syscall\n 1: lea 1b(%%rip), %0\n"
                     : "=&r"(next), "=&c"(rcx) : : "rax", "r11", "memory");
        asm volatile("bt $0, %1\n mov $39, %%eax\n syscall\n mov %%r11, %0"
                     : "=r"(r11) : "r"(set) : "rax", "rcx", "r11", "memory", "cc");
        printf("%d %lx\n", rcx == next, r11 & 1);
    }
}
"""
    )


def test_all_flags_of_a_program_survive_a_trap() -> None:
    """NT and ID are nothing to the kernel; TF is over in the handler."""
    same(
        r"""
static volatile long seen, inside;
static void handler(int sig, siginfo_t *si, void *uc)
{
    greg_t *flags = &((ucontext_t *)uc)->uc_mcontext.gregs[REG_EFL];
    seen = *flags;
    asm volatile("pushf; pop %0" : "=r"(inside));
    *flags &= ~0x100;
}
int main(void)
{
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    long sets[] = {0x4000, 0x4100, 0x100, 0x200000, 0x204100, 0x40000, 0x44100}, after;
    sigaction(SIGTRAP, &sa, 0);
    for (int k = 0; k < 7; k++) {
        seen = inside = 0;
        asm volatile("pushf; orq %1, (%%rsp); popf; nop; nop; pushf; pop %0\n"
                     "pushf; andq $~0x244100, (%%rsp); popf"
                     : "=&r"(after) : "r"(sets[k]) : "memory", "cc");
        printf("%lx: %lx %lx %lx\n", sets[k], after & ~0x8d5, seen & ~0x8d5, inside & ~0x8d5);
    }
}
"""
    )
