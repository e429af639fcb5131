"""prctl: what a process may set, or ask, about itself.

One small function for each option, and the table of them. All get the arguments as registers; what
an option does not use it does not look at, unless Linux insists on zeros there.

Source: Linux kernel/sys.c for arguments and errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, s64
from dfvm.kern.kern_caps import (
    CAP_LAST,
    SECBIT_KEEP_CAPS,
    cap_ambient,
    cap_bset_drop,
    set_keepcaps,
    set_securebits,
)
from dfvm.kern.kern_errno import EFAULT, EINVAL, err
from dfvm.kern.kern_sig import NSIG
from dfvm.vm.copyio import copyin, copyinstr, copyout, suword32

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp, Proc

LONG_MAX: Final = (1 << 63) - 1

PR_SET_PDEATHSIG: Final = 1
PR_GET_PDEATHSIG: Final = 2
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_GET_KEEPCAPS: Final = 7
PR_SET_KEEPCAPS: Final = 8
PR_GET_TIMING: Final = 13
PR_SET_TIMING: Final = 14
PR_SET_NAME: Final = 15
PR_GET_NAME: Final = 16
PR_GET_SECCOMP: Final = 21
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_GET_TSC: Final = 25
PR_SET_TSC: Final = 26
PR_GET_SECUREBITS: Final = 27
PR_SET_SECUREBITS: Final = 28
PR_SET_TIMERSLACK: Final = 29
PR_GET_TIMERSLACK: Final = 30
PR_MCE_KILL: Final = 33
PR_MCE_KILL_GET: Final = 34
PR_SET_CHILD_SUBREAPER: Final = 36
PR_GET_CHILD_SUBREAPER: Final = 37
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_GET_TID_ADDRESS: Final = 40
PR_SET_THP_DISABLE: Final = 41
PR_GET_THP_DISABLE: Final = 42
PR_CAP_AMBIENT: Final = 47

PR_TSC_ENABLE: Final = 1
PR_TIMING_STATISTICAL: Final = 0
PR_MCE_KILL_CLEAR: Final = 0
PR_MCE_KILL_SET: Final = 1
PR_MCE_KILL_DEFAULT: Final = 2

_COMM_LEN: Final = 16


def sys_prctl(lp: Lwp, option: int, arg2: int, arg3: int, arg4: int, arg5: int) -> int:
    """prctl(2). An option that is not here is EINVAL, as on a Linux built without it."""
    function = _OPTIONS.get(s32(option))
    if function is None:
        raise err(EINVAL)
    return function(lp, arg2, arg3, arg4, arg5)


def _only(wanted: bool) -> int:
    # 0 where there is one thing that can be asked for, and that is how it is.
    if not wanted:
        raise err(EINVAL)
    return 0


def _word(lp: Lwp, addr: int, value: int) -> int:
    suword32(lp.lwp_proc.p_vmspace, addr, value)
    return 0


# ---- name, parent, privileges --------------------------------------------------------------------


def _set_name(lp: Lwp, addr: int, *_: int) -> int:
    p = lp.lwp_proc
    p.p_comm = _copyin_comm(p, addr).decode("utf-8", "surrogateescape")
    return 0


def _get_name(lp: Lwp, addr: int, *_: int) -> int:
    p = lp.lwp_proc
    name = p.p_comm.encode("utf-8", "surrogateescape")[: _COMM_LEN - 1]
    copyout(p.p_vmspace, name.ljust(_COMM_LEN, b"\0"), addr)
    return 0


def _copyin_comm(p: Proc, addr: int) -> bytes:
    """A name of at most 15 bytes; a longer one is cut."""
    try:
        return copyinstr(p.p_vmspace, addr, _COMM_LEN)[: _COMM_LEN - 1]
    except OSError as e:
        if e.errno == EFAULT:
            raise
        return copyin(p.p_vmspace, addr, _COMM_LEN - 1)


def _set_pdeathsig(lp: Lwp, sig: int, *_: int) -> int:
    if sig > NSIG:
        raise err(EINVAL)
    lp.lwp_proc.p_pdeathsig = sig
    return 0


def _set_subreaper(lp: Lwp, on: int, *_: int) -> int:
    lp.lwp_proc.p_subreaper = bool(on)
    return 0


def _set_dumpable(lp: Lwp, dumpable: int, *_: int) -> int:
    if dumpable > 1:
        raise err(EINVAL)
    lp.lwp_proc.p_dumpable = dumpable
    return 0


def _set_nonewprivs(lp: Lwp, on: int, *rest: int) -> int:
    if on != 1 or any(rest):
        raise err(EINVAL)
    lp.lwp_proc.p_nonewprivs = True
    return 0


def _get_nonewprivs(lp: Lwp, *args: int) -> int:
    if any(args):
        raise err(EINVAL)
    return int(lp.lwp_proc.p_nonewprivs)


def _capbset_read(lp: Lwp, cap: int, *_: int) -> int:
    if cap > CAP_LAST:
        raise err(EINVAL)
    return lp.lwp_proc.p_ucred.cr_cap_b >> cap & 1


def _get_tid_address(lp: Lwp, addr: int, *_: int) -> int:
    copyout(lp.lwp_proc.p_vmspace, lp.lwp_clear_tid.to_bytes(8, "little"), addr)
    return 0


# ---- about things that don't happen here, and need only be remembered ----------------------------


def _set_timerslack(lp: Lwp, slack: int, *_: int) -> int:
    # Timers are never put off to be run with others.
    p = lp.lwp_proc
    p.p_timerslack = slack if s64(slack) > 0 else p.p_timerslack0
    return 0


def _get_timerslack(lp: Lwp, *_: int) -> int:
    return min(lp.lwp_proc.p_timerslack, LONG_MAX)


def _set_mce_kill(lp: Lwp, what: int, policy: int, *rest: int) -> int:
    # Memory has no errors.
    if any(rest):
        raise err(EINVAL)
    if what == PR_MCE_KILL_CLEAR and not policy:
        policy = PR_MCE_KILL_DEFAULT
    elif what != PR_MCE_KILL_SET or policy > PR_MCE_KILL_DEFAULT:
        raise err(EINVAL)
    lp.lwp_proc.p_mcekill = policy
    return 0


def _get_mce_kill(lp: Lwp, *args: int) -> int:
    if any(args):
        raise err(EINVAL)
    return lp.lwp_proc.p_mcekill


def _set_thp_disable(lp: Lwp, on: int, *rest: int) -> int:
    # Pages are small.
    if any(rest):
        raise err(EINVAL)
    lp.lwp_proc.p_thpdisable = bool(on)
    return 0


def _get_thp_disable(lp: Lwp, *args: int) -> int:
    if any(args):
        raise err(EINVAL)
    return int(lp.lwp_proc.p_thpdisable)


_OPTIONS: Final[dict[int, Callable[[Lwp, int, int, int, int], int]]] = {
    PR_SET_NAME: _set_name,
    PR_GET_NAME: _get_name,
    PR_SET_PDEATHSIG: _set_pdeathsig,
    PR_GET_PDEATHSIG: lambda lp, addr, *_: _word(lp, addr, lp.lwp_proc.p_pdeathsig),
    PR_SET_CHILD_SUBREAPER: _set_subreaper,
    PR_GET_CHILD_SUBREAPER: lambda lp, addr, *_: _word(lp, addr, int(lp.lwp_proc.p_subreaper)),
    PR_SET_DUMPABLE: _set_dumpable,
    PR_GET_DUMPABLE: lambda lp, *_: lp.lwp_proc.p_dumpable,
    PR_SET_NO_NEW_PRIVS: _set_nonewprivs,
    PR_GET_NO_NEW_PRIVS: _get_nonewprivs,
    PR_CAPBSET_READ: _capbset_read,
    PR_CAPBSET_DROP: lambda lp, cap, *_: cap_bset_drop(lp.lwp_proc, cap),
    PR_CAP_AMBIENT: lambda lp, what, cap, *rest: cap_ambient(lp.lwp_proc, what, cap, any(rest)),
    PR_GET_KEEPCAPS: lambda lp, *_: int(bool(lp.lwp_proc.p_ucred.cr_securebits & SECBIT_KEEP_CAPS)),
    PR_SET_KEEPCAPS: lambda lp, keep, *_: set_keepcaps(lp.lwp_proc, keep),
    PR_GET_SECUREBITS: lambda lp, *_: lp.lwp_proc.p_ucred.cr_securebits,
    PR_SET_SECUREBITS: lambda lp, bits, *_: set_securebits(lp.lwp_proc, bits),
    PR_GET_TID_ADDRESS: _get_tid_address,
    PR_GET_TSC: lambda lp, addr, *_: _word(lp, addr, PR_TSC_ENABLE),
    PR_SET_TSC: lambda lp, tsc, *_: _only(tsc == PR_TSC_ENABLE),
    PR_GET_TIMING: lambda lp, *_: PR_TIMING_STATISTICAL,
    PR_SET_TIMING: lambda lp, timing, *_: _only(timing == PR_TIMING_STATISTICAL),
    PR_GET_SECCOMP: lambda lp, *_: 0,
    PR_SET_TIMERSLACK: _set_timerslack,
    PR_GET_TIMERSLACK: _get_timerslack,
    PR_MCE_KILL: _set_mce_kill,
    PR_MCE_KILL_GET: _get_mce_kill,
    PR_SET_THP_DISABLE: _set_thp_disable,
    PR_GET_THP_DISABLE: _get_thp_disable,
}
