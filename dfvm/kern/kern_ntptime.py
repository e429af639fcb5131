"""adjtimex and clock_adjtime: how well the real-time clock is kept.

The clock is the host's, and so is the answer. Nobody in the machine may change anything about it,
not even root (as with clock_settime).

Source: Linux kernel/time/ntp.c, timekeeping.c and posix-timers.c for errors and their order; the
name of DragonFly's sys/kern/kern_ntptime.c.
"""

from __future__ import annotations

from ctypes import CDLL, create_string_buffer, get_errno
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32
from dfvm.kern.kern_errno import EINVAL, EOPNOTSUPP, EPERM, err
from dfvm.kern.kern_time import ALARMS, CLOCK_REALTIME, clock_reader
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp

_TIMEX: Final = 208  # sizeof(struct timex)

# Bits of timex.modes.
ADJ_OFFSET: Final = 0x0001
ADJ_OFFSET_READONLY: Final = 0x2000
ADJ_ADJTIME: Final = 0x8000

_CLOCKFD: Final = 3  # in a negative clock: it is a descriptor's, of a device that isn't here

_libc: Final = CDLL(None, use_errno=True)


def sys_adjtimex(lp: Lwp, buf: int) -> int:
    """adjtimex(2)"""
    space = lp.lwp_proc.p_vmspace
    timex = bytearray(copyin(space, buf, _TIMEX))
    modes = int.from_bytes(timex[:4], "little")
    if modes & ADJ_ADJTIME and not modes & ADJ_OFFSET:
        raise err(EINVAL)
    if modes and not (modes & ADJ_ADJTIME and modes & ADJ_OFFSET_READONLY):
        raise err(EPERM)
    ask = ADJ_ADJTIME | ADJ_OFFSET_READONLY | ADJ_OFFSET if modes else 0
    host = create_string_buffer(ask.to_bytes(4, "little"), _TIMEX)
    state: int = _libc.adjtimex(host)
    if state < 0:
        raise err(get_errno())
    timex[4:] = host.raw[4:]
    copyout(space, timex, buf)
    return state


def sys_clock_adjtime(lp: Lwp, clock: int, tx: int) -> int:
    """clock_adjtime(2)"""
    clock = s32(clock)
    if clock == CLOCK_REALTIME:
        return sys_adjtimex(lp, tx)
    copyin(lp.lwp_proc.p_vmspace, tx, _TIMEX)
    if clock < 0 and clock & 7 == _CLOCKFD:
        raise err(EINVAL)
    if clock >= 0 and clock not in ALARMS:
        clock_reader(lp, clock)  # EINVAL when there is none
    raise err(EOPNOTSUPP)
