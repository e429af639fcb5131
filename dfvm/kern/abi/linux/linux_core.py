"""The notes of a core file: what Linux writes down about a process and each of its threads.

    first thread      NT_PRSTATUS, then of the process NT_PRPSINFO, NT_SIGINFO, NT_AUXV, NT_FILE,
                      and NT_FPREGSET of the thread
    the others        NT_PRSTATUS, NT_FPREGSET

The CPU has no XSAVE, so there is no NT_X86_XSTATE: the 512 bytes of NT_FPREGSET are all of the
floating-point state.

Source: Linux fs/binfmt_elf.c (fill_prstatus, fill_psinfo, fill_files_note), uapi linux/elfcore.h,
arch/x86 struct user_regs_struct; gABI for the form of a note.
"""

from __future__ import annotations

from os import fsencode
from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EINTR, ERESTART
from dfvm.kern.kern_sig import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    ERESTARTNOINTR,
    SIGS_SYNCHRONOUS,
    sigbit,
)
from dfvm.kern.proc import calcru
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
)
from dfvm.vm.vm_param import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfvm.kern.kern_sig import Siginfo
    from dfvm.kern.proc import Lwp, Proc

NT_PRSTATUS: Final = 1
NT_FPREGSET: Final = 2
NT_PRPSINFO: Final = 3
NT_AUXV: Final = 6
NT_FILE: Final = 0x4649_4C45  # "FILE"
NT_SIGINFO: Final = 0x5349_4749  # "SIGI"

_OWNER: Final = b"CORE\0\0\0\0"  # who defines the notes, padded
_NHDR: Final = Struct("<III")
# pr_info: signo, code, errno; pr_cursig; pr_sigpend, pr_sighold; pid, ppid, pgrp, sid; four
# struct timeval; 27 registers; pr_fpvalid.
_PRSTATUS: Final = Struct("<iii hxx QQ 4i 8q 27Q i4x")
# state as a number and as a letter, zombie, nice; flags; uid, gid, pid, ppid, pgrp, sid; name;
# arguments.
_PRPSINFO: Final = Struct("<BcBb4x Q II4i 16s 80s")
_FILE_HEAD: Final = Struct("<QQ")
_FILE_RANGE: Final = Struct("<QQQ")

PSARGS_MAX: Final = 79  # characters of the arguments that pr_psargs has room for

_PF_SIGNALED: Final = 0x0400  # killed by a signal
_PF_DUMPCORE: Final = 0x0200  # has written a core
_PF_RANDOMIZE: Final = 0x0040_0000  # its addresses are random
_ADDR_NO_RANDOMIZE: Final = 0x0004_0000  # personality

# struct user_regs_struct: what is before orig_rax. (Behind it come rip, cs, eflags, rsp, ss, the
# bases of fs and gs, and ds, es, fs, gs.)
_GREGS: Final = (R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI)
_NO_SYSCALL: Final = (1 << 64) - 1  # orig_rax of who was not in a system call
_SYSCALL: Final = b"\x0f\x05"

# What RAX holds in a system call that a signal has cut short (Linux include/linux/errno.h).
_RESTART_RAX: Final = {
    ERESTART: 512,
    ERESTARTNOINTR: 513,
    ERESTARTNOHAND: 514,
    ERESTART_RESTARTBLOCK: 516,
}


def note(ntype: int, data: bytes) -> bytes:
    """One note: header, owner, data; padded to four bytes."""
    return _NHDR.pack(5, len(data), ntype) + _OWNER + data + bytes(-len(data) % 4)


def in_syscall(lp: Lwp, info: Siginfo | None, before: bytes) -> bool:
    """Whether `lp` came to the kernel by a system call. The current thread, which is to die of
    `info`, by what stands `before` its RIP; another one (None) sleeps, which is done in system
    calls and page faults."""
    if info is not None and info.si_code > 0 and sigbit(info.si_signo) & SIGS_SYNCHRONOUS:
        return False
    return lp.lwp_syscall >= 0 and before == _SYSCALL


def user_regs(lp: Lwp, syscall: bool) -> list[int]:
    """struct user_regs_struct as 27 words. `syscall` says that the thread is in a system call."""
    ctx = lp.ctx
    eflags = ctx.eflags
    q = ctx.q
    regs = [q[n] for n in _GREGS]
    if syscall and lp.lwp_restart:
        regs[10] = (1 << 64) - _RESTART_RAX.get(lp.lwp_restart, EINTR)
    return [
        *regs, lp.lwp_syscall if syscall else _NO_SYSCALL,
        q[RIP], lp.lwp_cs, eflags, q[RSP], lp.lwp_ss, ctx.fs_base, ctx.gs_base, 0, 0, 0, 0,
    ]  # fmt: skip


def _timeval(ns: int) -> tuple[int, int]:
    return ns // 1_000_000_000, ns // 1000 % 1_000_000


def prstatus(lp: Lwp, sig: int, syscall: bool) -> bytes:
    """NT_PRSTATUS of a thread of a process that dies of `sig`. The first thread answers for the
    time that all of them have used."""
    p = lp.lwp_proc
    if lp.lwp_tid == p.p_pid:
        ru = calcru(p)
        used = (*_timeval(ru.ru_utime_ns), *_timeval(ru.ru_stime_ns))
    else:
        td = lp.lwp_thread
        used = (*_timeval(td.user_ns), *_timeval(td.sys_ns))
    children = p.p_cru
    return _PRSTATUS.pack(
        sig, 0, 0, sig, lp.lwp_sigqueue.pending, lp.lwp_sigmask,
        lp.lwp_tid, p.p_ppid(), p.p_pgrp.pg_id, p.p_session.s_sid,
        *used, *_timeval(children.ru_utime_ns), *_timeval(children.ru_stime_ns),
        *user_regs(lp, syscall), 1,
    )  # fmt: skip


def prpsinfo(p: Proc, args: bytes) -> bytes:
    """NT_PRPSINFO. `args` are the first bytes of the arguments as they are in memory, PSARGS_MAX
    at most."""
    flags = _PF_SIGNALED | _PF_DUMPCORE
    if not p.p_personality & _ADDR_NO_RANDOMIZE:
        flags |= _PF_RANDOMIZE
    cred = p.p_ucred
    return _PRPSINFO.pack(
        0, b"R", 0, p.p_nice, flags, cred.cr_ruid, cred.cr_rgid, p.p_pid, p.p_ppid(),
        p.p_pgrp.pg_id, p.p_session.s_sid, fsencode(p.p_comm)[:15], args.replace(b"\0", b" "),
    )  # fmt: skip


def file_note(files: Sequence[tuple[int, int, int, bytes]]) -> bytes:
    """NT_FILE: (start, end, offset in the file in bytes, name) of each mapping of a file."""
    head = [_FILE_HEAD.pack(len(files), PAGE_SIZE)]
    head += [_FILE_RANGE.pack(start, end, off // PAGE_SIZE) for start, end, off, _ in files]
    return b"".join(head) + b"".join(name + b"\0" for *_, name in files)
