"""What Linux puts on a program's stack to call a signal handler, and takes back afterwards.

    higher addresses
        interrupted stack, or the top of the alternate one
        (128 bytes, the red zone, left alone)
        fpstate     512 bytes as FXSAVE writes them, 64-byte aligned
        siginfo     128 bytes
        ucontext    304 bytes: flags, link, stack_t, sigcontext (256), mask
        pretcode    return address: the restorer, which calls rt_sigreturn
    lower addresses  <- RSP at the handler's entry, RSP % 16 == 8 as after a call

The CPU has no XSAVE, so the frame is the one of a kernel without it: uc_flags has no UC_FP_XSTATE
and the software bytes at the end of fpstate are zero, which says that nothing follows the 512.

Source: Linux arch/x86/kernel/signal_64.c, uapi asm/sigcontext.h and asm-generic/siginfo.h.
"""

from __future__ import annotations

from array import array
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EFAULT, err
from dfvm.kern.kern_sig import (
    CLD_CONTINUED,
    SA_ONSTACK,
    SA_RESTORER,
    SI_KERNEL,
    SI_QUEUE,
    SI_TIMER,
    SI_TKILL,
    SI_USER,
    SIGBUS,
    SIGCHLD,
    SIGFPE,
    SIGILL,
    SIGS_CANTMASK,
    SIGSEGV,
    SIGTRAP,
    Siginfo,
    setsigmask,
    trapsignal,
)
from dfvm.kern.proc import SS_AUTODISARM, SS_DISABLE, USER_CS, USER_SS
from dfvm.kern.sys_signal import on_sigstack, set_sigstack, sigstack_pack
from dfvm.machine.reg import (
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
    RSP,
    X86_TRAP_GP,
)
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from dfvm.kern.kern_sig import SigAction
    from dfvm.kern.proc import Lwp

_U64: Final = (1 << 64) - 1
_REDZONE: Final = 128
_FPSTATE_BYTES: Final = 512
_FXRSTOR_ALIGN: Final = 16  # of what the instruction reads
# The state of a new program: control word and MXCSR, nothing else.
_FPSTATE_INIT: Final = Struct("<H22xI484x").pack(0x37F, 0x1F80)
_FRAME_BYTES: Final = 8 + 304 + 128

_UC_SIGCONTEXT_SS: Final = 2  # the frame has a valid SS
_UC_STRICT_RESTORE_SS: Final = 4  # and sigreturn restores it

_RPL: Final = 3  # in a selector: the privilege that is asked for, which is always ring 3's
_TI: Final = 4  # … it is of the local descriptor table

# What of RFLAGS sigreturn takes from a frame: the arithmetic flags, TF, DF, RF, AC.
_FIX_EFLAGS: Final = 0x0005_0DD5

_PSL_DF: Final = 0x0400
_PSL_RF: Final = 0x1_0000
_PSL_TF: Final = 0x0100

# The order of the general registers in struct sigcontext.
_GREGS: Final = (R8, R9, R10, R11, R12, R13, R14, R15, RDI, RSI, RBP, RBX, RDX, RAX, RCX, RSP, RIP)

_gregs: Final = itemgetter(*_GREGS)  # of the registers in our order, in that of the frame
_from_gregs: Final = itemgetter(*(_GREGS.index(n) for n in range(len(_GREGS))))  # and back

# pretcode; uc_flags, uc_link, stack_t; 17 registers; flags; cs, gs, fs, ss; err, trapno, oldmask,
# cr2; fpstate; reserved; uc_sigmask.
_FRAME: Final = Struct("<Q QQ 24s 17Q Q 4H 4Q Q 64x Q")
_INFO_HEAD: Final = Struct("<iiii")
_INFO_KILL: Final = Struct("<II")
_INFO_VALUE: Final = Struct("<IIQ")
_INFO_CHILD: Final = Struct("<IIiiqq")
_INFO_ADDR: Final = Struct("<Q")

_FAULTS: Final = (SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP)


def siginfo_pack(info: Siginfo) -> bytes:
    """struct siginfo, 128 bytes."""
    sig, code = info.si_signo, info.si_code
    if info.si_raw is not None:
        rest = info.si_raw
    elif code == SI_TIMER:
        rest = _INFO_VALUE.pack(info.si_timerid, info.si_overrun, info.si_value)
    elif code in (SI_USER, SI_TKILL):
        rest = _INFO_KILL.pack(info.si_pid, info.si_uid)
    elif code <= SI_QUEUE:
        rest = _INFO_VALUE.pack(info.si_pid, info.si_uid, info.si_value)
    elif sig == SIGCHLD and code <= CLD_CONTINUED:
        rest = _INFO_CHILD.pack(info.si_pid, info.si_uid, info.si_status, 0, info.si_utime,
                                info.si_stime)  # fmt: skip
    elif sig in _FAULTS:
        rest = _INFO_ADDR.pack(info.si_addr)
    else:
        rest = _INFO_KILL.pack(info.si_pid, info.si_uid)
    return (_INFO_HEAD.pack(sig, info.si_errno, code, 0) + rest).ljust(128, b"\0")


def sendsig(lp: Lwp, info: Siginfo, action: SigAction, mask: int) -> None:
    """Build the frame for a handler and point the registers at it. `mask` is what the handler's
    return puts back.

    :raises OSError: EFAULT when the stack can't take the frame; the registers are unchanged.
    """
    handler, flags, restorer, _ = action
    ctx = lp.ctx
    ctx.load()
    q = ctx.q
    sp = q[RSP] - _REDZONE
    stack = sigstack_pack(lp, lp.lwp_sigstk_flags)
    nested = on_sigstack(lp, q[RSP])
    if nested:
        switched = False
    else:
        switched = bool(flags & SA_ONSTACK and lp.lwp_sigstk_size)
        if switched:
            sp = lp.lwp_sigstk_sp + lp.lwp_sigstk_size
    fp = (sp - _FPSTATE_BYTES) & ~63
    frame = ((fp - _FRAME_BYTES) & ~15) - 8
    # A handler that has used up the alternate stack must not go on below it.
    if (nested or switched) and frame <= lp.lwp_sigstk_sp:
        raise err(EFAULT)
    if frame < 0 or not flags & SA_RESTORER:
        raise err(EFAULT)
    eflags = ctx.eflags
    fxsave = ctx.fxsave()
    image = _FRAME.pack(
        restorer, _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS, 0, stack,
        *_gregs(q), eflags, lp.lwp_cs, 0, 0, lp.lwp_ss,
        lp.lwp_err, lp.lwp_trapno, mask, lp.lwp_cr2, fp, mask,
    )  # fmt: skip
    # One copy from the frame's start to the end of fpstate, so that nothing is half written when
    # a page is missing at the far end of a frame that fits into two.
    raw = (image + siginfo_pack(info)).ljust(fp - frame, b"\0") + fxsave
    copyout(lp.lwp_proc.p_vmspace, raw, frame)
    lp.lwp_cs, lp.lwp_ss = USER_CS, USER_SS
    ctx.fpinit()
    q = ctx.q  # copyout may have slept, and others have run
    if lp.lwp_sigstk_flags & SS_AUTODISARM:
        lp.lwp_sigstk_sp = lp.lwp_sigstk_size = 0
        lp.lwp_sigstk_flags = SS_DISABLE
    q[RDI] = info.si_signo
    q[RSI] = frame + 8 + 304
    q[RDX] = frame + 8
    q[RAX] = 0
    q[RSP] = frame
    q[RIP] = handler
    if eflags & (_PSL_DF | _PSL_RF | _PSL_TF):
        ctx.eflags = eflags & ~(_PSL_DF | _PSL_RF | _PSL_TF)


def sys_rt_sigreturn(lp: Lwp) -> int:
    """Put back what sendsig saved, or what the handler made of it; returns what RAX holds then. A
    frame that makes no sense kills, in Linux's order: what has been put back by then stays."""
    ctx = lp.ctx
    space = lp.lwp_proc.p_vmspace
    frame = ctx.q[RSP] - 8 & _U64
    lp.lwp_restart_block = None
    try:
        fields = _FRAME.unpack(copyin(space, frame, _FRAME.size))
        setsigmask(lp, fields[-1] & ~SIGS_CANTMASK)
        flags = fields[21] & _FIX_EFLAGS | ctx.eflags & ~_FIX_EFLAGS
        ctx.q[: RIP + 1] = array("Q", _from_gregs(fields[4:21]))
        ctx.eflags = flags
        fp = fields[-2]
        if fp % _FXRSTOR_ALIGN:
            raise err(EFAULT)
        fxsave = copyin(space, fp, _FPSTATE_BYTES) if fp else _FPSTATE_INIT
        ctx.fxrstor(fxsave)
    except (OSError, ValueError):
        trapsignal(lp, Siginfo(SIGSEGV, SI_KERNEL))
        return ctx.q[RAX]
    stack: bytes = fields[3]
    if stack != sigstack_pack(lp, lp.lwp_sigstk_flags):
        try:
            set_sigstack(lp, int.from_bytes(stack[:8], "little"),
                         int.from_bytes(stack[8:12], "little"),
                         int.from_bytes(stack[16:24], "little"), ctx.q[RSP])  # fmt: skip
        except OSError:
            pass  # as Linux: what the handler wrote there is its own affair
    cs, ss = fields[22] | _RPL, fields[25] | _RPL
    if cs != USER_CS or ss != USER_SS:
        _return_to(lp, cs, ss if fields[1] & _UC_STRICT_RESTORE_SS else USER_SS)
    return ctx.q[RAX]


def _return_to(lp: Lwp, cs: int, ss: int) -> None:
    """There are one code and one data segment to return to: with others the return itself is a
    general protection fault, after which the handler finds them in its frame."""
    lp.lwp_cs, lp.lwp_ss = cs, ss
    if cs != USER_CS:
        error = cs & ~_RPL
    elif ss != USER_SS:
        # Linux goes another way to a stack in the local descriptor table, and fails there.
        error = 0 if ss & _TI else ss & ~_RPL
    else:
        return
    lp.lwp_trapno, lp.lwp_err = X86_TRAP_GP, error
    trapsignal(lp, Siginfo(SIGSEGV, SI_KERNEL))
