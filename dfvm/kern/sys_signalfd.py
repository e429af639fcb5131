"""signalfd: pending signals as a file.

Whoever reads takes signals that are pending for himself, so one file inherited by fork means other
signals to the child. What is read should be blocked, or its action would come first.

Source: behaviour of Linux fs/signalfd.c.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import anon_attr
from dfvm.kern.kern_descrip import O_CLOEXEC, O_NONBLOCK, O_RDWR, File, FileTable, nofile
from dfvm.kern.kern_errno import EAGAIN, EINVAL, err
from dfvm.kern.kern_event import POLLIN, Kqinfo
from dfvm.kern.kern_sig import SIGS_CANTMASK
from dfvm.kern.sys_signal import take_pending
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, uiomove

if TYPE_CHECKING:
    from dfvm.kern.kern_sig import Siginfo
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.vnode_param import Vattr
    from dfvm.vm.copyio import Uio

# struct signalfd_siginfo: signo, errno, code, pid, uid, fd, tid, band, overrun, trapno, status,
# int; ptr, utime, stime, addr; then addr_lsb and padding.
_INFO: Final = Struct("<IiiIIiIIIIii QQQQ 48x")


class SignalFile(File):
    """A set of signals to be read."""

    __slots__ = ("sf_mask",)

    sf_mask: int  # which signals

    def __init__(self, table: FileTable, mask: int, flag: int) -> None:
        super().__init__(table, flag)
        self.sf_mask = mask

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        if uio.uio_resid < _INFO.size:
            raise err(EINVAL)
        wanted = uio.uio_resid
        info: Siginfo | None = self._next(lwp)
        while info is not None:
            resid = uio.uio_resid
            try:
                uiomove(_pack(info), uio)
            except OSError:
                uio.uio_resid = resid  # this signal is lost; those before it count
                if resid == wanted:
                    raise
                return
            info = take_pending(lwp, self.sf_mask) if uio.uio_resid >= _INFO.size else None

    def _next(self, lwp: Lwp) -> Siginfo:
        """The next signal, waiting for it if need be."""
        while (info := take_pending(lwp, self.sf_mask)) is None:
            if self.f_flag & O_NONBLOCK:
                raise err(EAGAIN)
            # Signals that are read are blocked, and would not wake anybody by themselves.
            lwp.lwp_sigwait = self.sf_mask
            self.fhold()
            try:
                error = self.f_table.sched.tsleep(lwp.lwp_sigqueue, PCATCH, "signalfd")
            finally:
                lwp.lwp_sigwait = 0
                self.fdrop()
            if error:
                info = take_pending(lwp, self.sf_mask)
                if info is None:
                    raise err(error)
                return info
        return info

    def fo_poll(self) -> int:
        lwp: Lwp = self.f_table.sched.curthread.td_lwp
        pending = lwp.lwp_sigqueue.pending | lwp.lwp_proc.p_sigqueue.pending
        return POLLIN if pending & self.sf_mask else 0

    def fo_kqinfo(self) -> Kqinfo:
        p = self.f_table.sched.curthread.td_lwp.lwp_proc
        kq: Kqinfo | None = p.p_sigkq
        if kq is None:
            kq = p.p_sigkq = Kqinfo()
        return kq

    def fo_seek(self, lwp: Lwp, offset: int, whence: int) -> int:
        return 0  # as Linux: no position, no error

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return anon_attr()

    def fo_name(self) -> str:
        return "anon_inode:[signalfd]"

    def fo_show(self) -> str:
        return f"sigmask:\t{self.sf_mask:016x}\n"


def _pack(info: Siginfo) -> bytes:
    value = info.si_value & (1 << 64) - 1
    return _INFO.pack(
        info.si_signo, info.si_errno, info.si_code, info.si_pid, info.si_uid, 0, info.si_timerid,
        0, info.si_overrun, 0, info.si_status, s32(value), value, info.si_utime, info.si_stime,
        info.si_addr,
    )  # fmt: skip


def sys_signalfd4(lwp: Lwp, fd: int, umask: int, size: int, flags: int) -> int:
    """signalfd4(2): a new file, or another set for an existing one."""
    flags = u32(flags)
    if size != 8:
        raise err(EINVAL)
    p = lwp.lwp_proc
    mask = int.from_bytes(copyin(p.p_vmspace, umask, 8), "little") & ~SIGS_CANTMASK
    if flags & ~(O_CLOEXEC | O_NONBLOCK):
        raise err(EINVAL)
    if s32(fd) != -1:
        old = p.p_fd.fget(fd)
        if not isinstance(old, SignalFile):
            raise err(EINVAL)
        old.sf_mask = mask
        return u32(fd)
    fp = SignalFile(p.p_fd.fd_table, mask, O_RDWR | flags & O_NONBLOCK)
    try:
        return p.p_fd.fdinstall(fp, 0, nofile(p), bool(flags & O_CLOEXEC))
    except OSError:
        fp.fdrop()
        raise


def sys_signalfd(lwp: Lwp, fd: int, umask: int, size: int) -> int:
    """signalfd(2)"""
    return sys_signalfd4(lwp, fd, umask, size, 0)
