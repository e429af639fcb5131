"""eventfd: a counter that can be waited for.

Source: behaviour of Linux fs/eventfd.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.abi.linux.linux_struct import anon_attr
from dfvm.kern.kern_descrip import O_CLOEXEC, O_NONBLOCK, O_RDWR, File, FileTable, nofile
from dfvm.kern.kern_errno import EAGAIN, EINVAL, err
from dfvm.kern.kern_event import POLLIN, POLLOUT, Kqinfo
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import uiomove, uioread

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.vnode_param import Vattr
    from dfvm.vm.copyio import Uio

EFD_SEMAPHORE: Final = 1

_MAX: Final = (1 << 64) - 2  # the largest count; one more is what a write may not ask for


class EventFile(File):
    """The counter."""

    __slots__ = ("ev_count", "ev_kq", "ev_semaphore")

    ev_count: int  # 0 … _MAX
    ev_semaphore: bool  # a read takes 1, not everything
    ev_kq: Kqinfo

    def __init__(self, table: FileTable, count: int, flag: int, semaphore: bool) -> None:
        super().__init__(table, flag)
        self.ev_count = count
        self.ev_semaphore = semaphore
        self.ev_kq = Kqinfo()

    def _sleep(self) -> None:
        if self.f_flag & O_NONBLOCK:
            raise err(EAGAIN)
        self.fhold()
        try:
            error = self.f_table.sched.tsleep(self, PCATCH, "eventfd")
        finally:
            self.fdrop()
        if error:
            raise err(error)

    def _changed(self, hint: int) -> None:
        self.f_table.sched.wakeup(self)
        self.ev_kq.knote(hint)

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        if uio.uio_resid < 8:
            raise err(EINVAL)
        while not self.ev_count:
            self._sleep()
        taken = 1 if self.ev_semaphore else self.ev_count
        self.ev_count -= taken
        self._changed(POLLOUT)
        uiomove(taken.to_bytes(8, "little"), uio)

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        if uio.uio_resid != 8:
            raise err(EINVAL)
        count = int.from_bytes(uioread(uio, 8), "little")
        if count > _MAX:
            raise err(EINVAL)
        while self.ev_count + count > _MAX:
            self._sleep()
        self.ev_count += count
        self._changed(POLLIN)

    def fo_poll(self) -> int:
        events = 0
        if self.ev_count:
            events |= POLLIN
        if self.ev_count < _MAX:
            events |= POLLOUT
        return events

    def fo_kqinfo(self) -> Kqinfo:
        return self.ev_kq

    def fo_seek(self, lwp: Lwp, offset: int, whence: int) -> int:
        return 0  # as Linux: no position, no error

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return anon_attr()

    def fo_name(self) -> str:
        return "anon_inode:[eventfd]"

    def fo_show(self) -> str:
        return f"eventfd-count: {self.ev_count:16x}\n"


def sys_eventfd2(lwp: Lwp, count: int, flags: int) -> int:
    """eventfd2(2)"""
    flags = u32(flags)
    if flags & ~(EFD_SEMAPHORE | O_CLOEXEC | O_NONBLOCK):
        raise err(EINVAL)
    p = lwp.lwp_proc
    fp = EventFile(
        p.p_fd.fd_table, u32(count), O_RDWR | flags & O_NONBLOCK, bool(flags & EFD_SEMAPHORE)
    )
    try:
        return p.p_fd.fdinstall(fp, 0, nofile(p), bool(flags & O_CLOEXEC))
    except OSError:
        fp.fdrop()
        raise


def sys_eventfd(lwp: Lwp, count: int) -> int:
    """eventfd(2)"""
    return sys_eventfd2(lwp, count, 0)
