"""Where the guest enters the kernel: the main loop of each thread.

    user_mode(lwp):  run the guest
                       system call → its function → result in RAX
                       page fault  → vm_fault → go on, or a signal
                       exception   → a signal
                       tick        → let others run
                     signals and the rest of userret, if lwp_pending says so

The loop is the hottest code outside `vm_fault`: a system call costs one dictionary lookup and two
calls here.

Source: DragonFly platform/pc64/x86_64/trap.c.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EIO, EJUSTRETURN
from dfvm.kern.kern_sched import rt_tick
from dfvm.kern.kern_sig import (
    BUS_ADRALN,
    BUS_ADRERR,
    FPE_FLTDIV,
    FPE_FLTINV,
    FPE_FLTOVF,
    FPE_FLTRES,
    FPE_FLTUND,
    FPE_INTDIV,
    ILL_ILLOPN,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SI_KERNEL,
    SIGBUS,
    SIGFPE,
    SIGILL,
    SIGSEGV,
    SIGTRAP,
    TRAP_BRKPT,
    TRAP_TRACE,
    Siginfo,
    trapsignal,
    userret,
)
from dfvm.lwkt.kern_clock import TICK_NS
from dfvm.lwkt.panic import panic
from dfvm.machine.cpu import EXIT_EXCEPTION, EXIT_FAULT, EXIT_PREEMPTED, EXIT_SYSCALL, INT
from dfvm.machine.pte import PGEX_I, PGEX_P, PGEX_RSV, PGEX_W
from dfvm.machine.reg import (
    RAX,
    RIP,
    X86_TRAP_AC,
    X86_TRAP_BP,
    X86_TRAP_BR,
    X86_TRAP_DB,
    X86_TRAP_DE,
    X86_TRAP_GP,
    X86_TRAP_MF,
    X86_TRAP_NM,
    X86_TRAP_NP,
    X86_TRAP_OF,
    X86_TRAP_PF,
    X86_TRAP_SS,
    X86_TRAP_TS,
    X86_TRAP_UD,
    X86_TRAP_XF,
)
from dfvm.vm.copyio import copyin
from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_PROTECTION_FAILURE,
    KERN_SUCCESS,
    VM_PROT_EXECUTE,
    VM_PROT_READ,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_fault import (
    VM_FAULT_BURST,
    VM_FAULT_DIRTY,
    VM_FAULT_USERMODE,
    vm_fault,
    vm_fault_quick,
)
from dfvm.vm.vm_map import vm_map_lookup_entry
from dfvm.vm.vm_map_backing import vm_map_entry_resident
from dfvm.vm.vm_param import VM_MAX_USER_ADDRESS

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.vm.vm_map_entry import VmMap

_U64: Final = (1 << 64) - 1
_NR: Final = 0xFFFF_FFFF  # a system call's number is an int

TRAP_ICEBP: Final = 0x101  # no vector: X86_TRAP_DB, by an instruction of its own

# Vectors whose signal has nothing else to say.
_SIMPLE: Final = {
    X86_TRAP_BP: (SIGTRAP, SI_KERNEL),
    X86_TRAP_OF: (SIGSEGV, SI_KERNEL),
    X86_TRAP_BR: (SIGSEGV, SI_KERNEL),
    X86_TRAP_NM: (SIGSEGV, SI_KERNEL),
    X86_TRAP_TS: (SIGSEGV, SI_KERNEL),
    X86_TRAP_NP: (SIGBUS, SI_KERNEL),
    X86_TRAP_SS: (SIGBUS, SI_KERNEL),
    X86_TRAP_GP: (SIGSEGV, SI_KERNEL),
}
_ICEBP: Final = 0xF1
_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf2\xf3") | frozenset(
    range(0x40, 0x50)
)
_INSN_BYTES: Final = 15

CHECK_FAULTS: Final = 1000  # with --check: verify the machine every so many faults

# What kind of access a page fault's error code tells of. A write and a fetch at once there is not;
# the row for it spares a test.
_PGEX_ACCESS: Final = PGEX_I | PGEX_W
_ACCESS: Final = {0: VM_PROT_READ, PGEX_W: VM_PROT_WRITE, PGEX_I: VM_PROT_EXECUTE,
                  PGEX_I | PGEX_W: VM_PROT_EXECUTE}  # fmt: skip

# What vm_fault's answer is to the program; anything else is a page that could not be had.
_FAULT_SIGNALS: Final = {
    KERN_INVALID_ADDRESS: (SIGSEGV, SEGV_MAPERR),
    KERN_PROTECTION_FAILURE: (SIGSEGV, SEGV_ACCERR),
}

# MXCSR and x87 status flags in the order in which the hardware reports them.
_FPE_CODES: Final = (
    (0x01, FPE_FLTINV),
    (0x04, FPE_FLTDIV),
    (0x08, FPE_FLTOVF),
    (0x12, FPE_FLTUND),  # underflow, denormal
    (0x20, FPE_FLTRES),
)


def user_mode(lp: Lwp) -> None:
    """Run `lp` in the guest, and serve it, for as long as it lives."""
    p = lp.lwp_proc
    kernel = p.kernel
    sched, vcpu = kernel.sched, kernel.vcpu
    td, ctx = lp.lwp_thread, lp.ctx
    run, now = vcpu.run, monotonic_ns
    cnt = kernel.vm.gd.gd_cnt
    while True:
        if lp.lwp_pending:
            userret(lp)
        calls = p.p_sysent
        while not lp.lwp_pending:
            start = now()
            why = run(ctx, lp.lwp_cr3, TICK_NS)
            td.user_ns += now() - start
            if why == EXIT_SYSCALL:
                cnt.v_syscall += 1
                q = ctx.q
                number = lp.lwp_syscall = q[RAX] & _NR
                try:
                    # A call may sleep, and when others have run meanwhile our registers are no
                    # longer the live ones: ctx.q is looked up behind it, q is only for before.
                    ctx.q[RAX] = calls[number](lp, q) & _U64
                except OSError as e:
                    syscall_error(lp, e.errno)
            elif why == EXIT_FAULT:
                cnt.v_trap += 1
                trap_pfault(lp, vcpu.fault_va, vcpu.fault_err)
            elif why == EXIT_PREEMPTED:
                lp.lwp_syscall = -1
                if td.td_rtprio:
                    rt_tick(lp)
                if sched.hardclock():
                    lp.lwp_nivcsw += 1
                    cnt.v_swtch += 1
                    sched.yield_()
            elif why == EXIT_EXCEPTION:
                cnt.v_trap += 1
                trap(lp, vcpu.exception, vcpu.exception_err)


def syscall_error(lp: Lwp, errno: int | None) -> None:
    """A system call failed with `errno`, or with one of the pseudo errors."""
    if errno is None:
        errno = EIO  # an OSError of the host's that has no number
    if errno > 0:
        lp.ctx.q[RAX] = (1 << 64) - errno
    elif errno != EJUSTRETURN:
        lp.lwp_restart = errno
        lp.lwp_pending = True


def install_quick_faults(kernel: Kernel) -> None:
    """Have the engine's page faults resolved inside its callback where that takes no sleep."""
    sched, access = kernel.sched, _ACCESS

    def on_fault(va: int, error: int) -> bool:
        vm_map: VmMap = sched.curthread.td_lwp.lwp_proc.p_vmspace.vm_map
        return vm_fault_quick(vm_map, va, access[error & _PGEX_ACCESS])

    def on_fault_checked(va: int, error: int) -> bool:
        kernel.faults += 1
        # Not while the engine runs: what it has not written back can't be judged.
        return kernel.faults % CHECK_FAULTS != 0 and on_fault(va, error)

    kernel.vcpu.on_fault = on_fault_checked if kernel.checking else on_fault


def trap_pfault(lp: Lwp, va: int, error: int) -> None:
    """A page fault that the engine's callback left to us. May block."""
    if error & PGEX_RSV:
        panic(f"page fault at {va:#x}: a reserved bit is set in the page tables")
    p = lp.lwp_proc
    lp.lwp_syscall = -1
    flags = VM_FAULT_BURST | VM_FAULT_USERMODE
    prot = _ACCESS[error & _PGEX_ACCESS]
    if prot == VM_PROT_WRITE:
        flags |= VM_FAULT_DIRTY
    result = vm_fault(p.p_vmspace.vm_map, va, prot, flags)
    kernel = p.kernel
    if kernel.checking and kernel.faults % CHECK_FAULTS == 0:
        kernel.check_if_resting()
    if result == KERN_SUCCESS or p.p_lowmemkill:
        return
    if va >= VM_MAX_USER_ADDRESS:
        error |= PGEX_P  # as Linux: what the kernel's half looks like is nobody's business
    elif error & PGEX_I and result == KERN_PROTECTION_FAILURE and _readable(p, va):
        error |= PGEX_P  # executable and writable mappings of a page are there by turns only
    sig, code = _FAULT_SIGNALS.get(result, (SIGBUS, BUS_ADRERR))
    lp.lwp_trapno, lp.lwp_err, lp.lwp_cr2 = X86_TRAP_PF, error, va
    trapsignal(lp, Siginfo(sig, code, addr=va))


def _readable(p: Proc, va: int) -> bool:
    """Whether a page is in memory at `va` that may at least be read."""
    found, entry = vm_map_lookup_entry(p.p_vmspace.vm_map, va)
    if not found or entry is None or not entry.protection & VM_PROT_READ:
        return False
    return vm_map_entry_resident(entry, va)


def trap(lp: Lwp, vector: int, error: int) -> None:
    """An exception other than a page fault, or an int instruction (INT)."""
    q = lp.ctx.q
    lp.lwp_syscall = -1
    addr = 0
    if vector & INT:
        vector &= ~INT  # INT3 or INTO: others are general protection faults already
    elif vector == X86_TRAP_UD:
        vector = _known_opcode(lp)
    if vector in _SIMPLE:
        sig, code = _SIMPLE[vector]
    elif vector == X86_TRAP_DE:
        sig, code, addr = SIGFPE, FPE_INTDIV, q[RIP]
    elif vector == X86_TRAP_DB:
        sig, code, addr = SIGTRAP, TRAP_TRACE, q[RIP]
    elif vector == TRAP_ICEBP:
        sig, code, addr, vector = SIGTRAP, TRAP_BRKPT, q[RIP], X86_TRAP_DB
    elif vector == X86_TRAP_UD:
        sig, code, addr = SIGILL, ILL_ILLOPN, q[RIP]
    elif vector == X86_TRAP_AC:
        sig, code = SIGBUS, BUS_ADRALN
    elif vector in (X86_TRAP_MF, X86_TRAP_XF):
        sig, code, addr = SIGFPE, _fpe_code(lp, vector), q[RIP]
    else:
        panic(f"exception {vector}, which the CPU does not have")
    lp.lwp_trapno, lp.lwp_err = vector, error
    trapsignal(lp, Siginfo(sig, code, addr=addr))


def _known_opcode(lp: Lwp) -> int:
    """The vector of an instruction that the engine takes for an invalid one: there is one that the
    processor knows."""
    space, rip = lp.lwp_proc.p_vmspace, lp.ctx.q[RIP]
    try:
        for length in range(1, _INSN_BYTES + 1):
            code = copyin(space, rip + length - 1, 1)[0]
            if code == _ICEBP:
                lp.ctx.q[RIP] = rip + length
                return TRAP_ICEBP
            if code not in _PREFIXES:
                break
    except OSError:
        pass
    return X86_TRAP_UD


def _fpe_code(lp: Lwp, vector: int) -> int:
    """si_code of a floating-point exception: the first that is flagged and not masked."""
    image = lp.ctx.fxsave()
    if vector == X86_TRAP_MF:
        control, status = int.from_bytes(image[0:2], "little"), int.from_bytes(image[2:4], "little")
        flagged = status & ~control & 0x3F
    else:
        mxcsr = int.from_bytes(image[24:28], "little")
        flagged = mxcsr & ~(mxcsr >> 7) & 0x3F
    for bits, code in _FPE_CODES:
        if flagged & bits:
            return code
    return FPE_FLTINV
