"""timerfd: a timer as a file.

Reading takes the number of expirations since the timer was set or last read. Only the first of
them is noticed when it happens: the others are computed from the time when somebody looks, so that
a short interval costs nothing while nobody does.

Source: behaviour of Linux fs/timerfd.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import NS, anon_attr
from dfvm.kern.kern_caps import CAP_WAKE_ALARM
from dfvm.kern.kern_descrip import O_CLOEXEC, O_NONBLOCK, O_RDWR, File, FileTable, nofile
from dfvm.kern.kern_errno import EAGAIN, EINVAL, EPERM, err
from dfvm.kern.kern_event import POLL_READABLE, POLLIN, Kqinfo
from dfvm.kern.kern_time import (
    ALARMS,
    CLOCK_BOOTTIME,
    CLOCK_BOOTTIME_ALARM,
    CLOCK_MONOTONIC,
    CLOCK_REALTIME,
    CLOCK_REALTIME_ALARM,
    ITIMERSPEC,
    LONGEST_NS,
    TIME_MAX,
    clock_reader,
    timespec_ns,
)
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, copyout, uiomove

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.vnode_param import Vattr
    from dfvm.lwkt.kern_clock import Callout
    from dfvm.vm.copyio import Uio

TFD_TIMER_ABSTIME: Final = 1
TFD_TIMER_CANCEL_ON_SET: Final = 2

# The clocks there are timers on. Those that would wake a sleeping computer need CAP_WAKE_ALARM.
_CLOCKS: Final = {
    CLOCK_REALTIME: CLOCK_REALTIME,
    CLOCK_MONOTONIC: CLOCK_MONOTONIC,
    CLOCK_BOOTTIME: CLOCK_BOOTTIME,
    CLOCK_REALTIME_ALARM: CLOCK_REALTIME,
    CLOCK_BOOTTIME_ALARM: CLOCK_BOOTTIME,
}


class TimerFile(File):
    """A timer, disarmed at first."""

    __slots__ = ("tf_callout", "tf_clock", "tf_expired", "tf_expiry", "tf_flags",
                 "tf_interval", "tf_kq", "tf_read")  # fmt: skip

    tf_clock: int  # CLOCK_*; never changes
    tf_read: Callable[[], int]  # what it shows, in ns
    tf_expiry: int  # on it, the first expiration that nobody has read, past or future; 0: disarmed
    tf_interval: int  # ns between expirations; 0: there is only one
    tf_flags: int  # of the last timerfd_settime
    tf_expired: bool  # tf_expiry is past, and those who wait were told
    tf_callout: Callout | None  # pending iff armed and not expired
    tf_kq: Kqinfo

    def __init__(self, table: FileTable, clock: int, read: Callable[[], int], flag: int) -> None:
        super().__init__(table, flag)
        self.tf_clock = clock
        self.tf_read = read
        self.tf_expiry = self.tf_interval = self.tf_flags = 0
        self.tf_expired = False
        self.tf_callout = None
        self.tf_kq = Kqinfo()

    def set(self, expiry: int, interval: int) -> None:
        """Arm it for `expiry` on its clock, or disarm it (0). What was not read is forgotten."""
        if self.tf_callout is not None:
            self.tf_callout.stop()
            self.tf_callout = None
        self.tf_expiry, self.tf_interval = expiry, interval
        self.tf_expired = False
        if expiry:
            self._arm()

    def _arm(self) -> None:
        delay = max(self.tf_expiry - self.tf_read(), 0)
        self.tf_callout = self.f_table.sched.callout(min(delay, LONGEST_NS), self._expire)

    def _expire(self) -> None:
        """Callout: look at the clock."""
        self.tf_callout = None
        if self.tf_read() < self.tf_expiry:
            self._arm()
            return
        self.tf_expired = True
        self.f_table.sched.wakeup(self)
        self.tf_kq.knote(POLLIN)

    def expired(self) -> bool:
        """Whether there is something to read. The callout may be a tick behind the clock."""
        return self.tf_expired or 0 < self.tf_expiry <= self.tf_read()

    def take(self) -> int:
        """The expirations up to now, which are over with; the timer goes on to the next one."""
        if not self.expired():
            return 0
        if not self.tf_interval:
            self.set(0, 0)
            return 1
        count = 1 + max(self.tf_read() - self.tf_expiry, 0) // self.tf_interval
        self.set(min(self.tf_expiry + count * self.tf_interval, TIME_MAX), self.tf_interval)
        return count

    def left(self) -> int:
        """ns to the next expiration; 0 when there is none."""
        left = self.tf_expiry - self.tf_read() if self.tf_expiry else 0
        if left < 0 and self.tf_interval:
            left %= self.tf_interval
        return max(left, 0)

    def pack(self) -> bytes:
        """struct itimerspec: the interval, and the time left."""
        return ITIMERSPEC.pack(*divmod(self.tf_interval, NS), *divmod(self.left(), NS))

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        if uio.uio_resid < 8:
            raise err(EINVAL)
        while not (count := self.take()):
            if self.f_flag & O_NONBLOCK:
                raise err(EAGAIN)
            self.fhold()
            try:
                error = self.f_table.sched.tsleep(self, PCATCH, "timerfd")
            finally:
                self.fdrop()
            if error:
                raise err(error)
        uiomove(count.to_bytes(8, "little"), uio)

    def fo_poll(self) -> int:
        return POLL_READABLE if self.expired() else 0

    def fo_kqinfo(self) -> Kqinfo:
        return self.tf_kq

    def fo_seek(self, lwp: Lwp, offset: int, whence: int) -> int:
        return 0  # as Linux: no position, no error

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return anon_attr()

    def fo_close(self) -> None:
        self.set(0, 0)

    def fo_name(self) -> str:
        return "anon_inode:[timerfd]"

    def fo_show(self) -> str:
        value, interval = divmod(self.left(), NS), divmod(self.tf_interval, NS)
        return (f"clockid: {self.tf_clock}\nticks: {int(self.expired())}\n"
                f"settime flags: 0{self.tf_flags:o}\nit_value: {value}\n"
                f"it_interval: {interval}\n")  # fmt: skip


def sys_timerfd_create(lwp: Lwp, clock: int, flags: int) -> int:
    """timerfd_create(2)"""
    clock, flags = s32(clock), u32(flags)
    if flags & ~(O_CLOEXEC | O_NONBLOCK) or clock not in _CLOCKS:
        raise err(EINVAL)
    _check_alarm(lwp, clock)
    p = lwp.lwp_proc
    read = clock_reader(lwp, _CLOCKS[clock])
    fp = TimerFile(p.p_fd.fd_table, clock, read, O_RDWR | flags & O_NONBLOCK)
    try:
        return p.p_fd.fdinstall(fp, 0, nofile(p), bool(flags & O_CLOEXEC))
    except OSError:
        fp.fdrop()
        raise


def _check_alarm(lwp: Lwp, clock: int) -> None:
    if clock in ALARMS and not lwp.lwp_proc.p_ucred.cr_cap_e & CAP_WAKE_ALARM:
        raise err(EPERM)


def _find(lwp: Lwp, fd: int) -> TimerFile:
    fp = lwp.lwp_proc.p_fd.fget(fd)
    if not isinstance(fp, TimerFile):
        raise err(EINVAL)
    return fp


def sys_timerfd_settime(lwp: Lwp, fd: int, flags: int, unew: int, uold: int) -> int:
    """timerfd_settime(2). Nobody in the machine can set the clock, so a timer that is to be
    cancelled then never is."""
    space, flags = lwp.lwp_proc.p_vmspace, u32(flags)
    i_sec, i_ns, v_sec, v_ns = ITIMERSPEC.unpack(copyin(space, unew, ITIMERSPEC.size))
    if flags & ~(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET):
        raise err(EINVAL)
    interval, value = timespec_ns(i_sec, i_ns), timespec_ns(v_sec, v_ns)
    fp = _find(lwp, fd)
    _check_alarm(lwp, fp.tf_clock)
    old = fp.pack()
    if value and not flags & TFD_TIMER_ABSTIME:
        value = min(value + fp.tf_read(), TIME_MAX)
    fp.tf_flags = flags
    fp.set(value, interval)
    if uold:
        copyout(space, old, uold)
    return 0


def sys_timerfd_gettime(lwp: Lwp, fd: int, ucur: int) -> int:
    """timerfd_gettime(2)"""
    copyout(lwp.lwp_proc.p_vmspace, _find(lwp, fd).pack(), ucur)
    return 0
