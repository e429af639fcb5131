"""pidfd: a process as a file. It means the same process however long it lives, and becomes
readable when that ends.

Source: behaviour of Linux kernel/pid.c, kernel/fork.c (pidfd_fops) and kernel/signal.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import anon_attr
from dfvm.kern.kern_descrip import O_NONBLOCK, O_RDWR, File, FileTable, nofile
from dfvm.kern.kern_errno import EBADF, EINVAL, EPERM, ESRCH, err
from dfvm.kern.kern_event import POLL_READABLE, Kqinfo
from dfvm.kern.kern_prot import may_trace
from dfvm.kern.proc import SZOMB
from dfvm.kern.sys_signal import check_signal, copyin_siginfo, send_user, user_info

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.vfs.vnode_param import Vattr


class PidFile(File):
    """The file of one process."""

    __slots__ = ("pf_proc",)

    f_seekable = False
    f_preads = True  # and then fail: there is nothing to read

    pf_proc: Proc  # alive, a zombie, or gone; never changes

    def __init__(self, table: FileTable, proc: Proc, flag: int) -> None:
        super().__init__(table, O_RDWR | flag & O_NONBLOCK)
        self.pf_proc = proc

    def proc(self) -> Proc:
        """The process, a zombie included.

        :raises OSError: ESRCH when it has been waited for.
        """
        return _alive(self.pf_proc)

    def fo_poll(self) -> int:
        return POLL_READABLE if self.pf_proc.p_stat == SZOMB else 0

    def fo_kqinfo(self) -> Kqinfo:
        p = self.pf_proc
        kq: Kqinfo | None = p.p_exitkq
        if kq is None:
            kq = p.p_exitkq = Kqinfo()
        return kq

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return anon_attr()

    def fo_name(self) -> str:
        return "anon_inode:[pidfd]"

    def fo_show(self) -> str:
        try:
            pid = self.proc().p_pid
        except OSError:
            pid = -1
        return f"Pid:\t{pid}\nNSpid:\t{pid}\n"


def _alive(p: Proc) -> Proc:
    if p.kernel.procs.get(p.p_pid) is not p:
        raise err(ESRCH)
    return p


def pidfd_get(lwp: Lwp, fd: int) -> PidFile:
    """The pidfd that `fd` names.

    :raises OSError: EBADF when it is none.
    """
    fp = lwp.lwp_proc.p_fd.fget(fd)
    if not isinstance(fp, PidFile):
        raise err(EBADF)
    return fp


def sys_pidfd_open(lwp: Lwp, pid: int, flags: int) -> int:
    """pidfd_open(2)"""
    pid, flags = s32(pid), u32(flags)
    if flags & ~O_NONBLOCK or pid <= 0:
        raise err(EINVAL)
    target = lwp.lwp_proc.kernel.procs.get(pid)
    if target is None:
        raise err(ESRCH)
    p = lwp.lwp_proc
    fp = PidFile(p.p_fd.fd_table, target, flags)
    try:
        return p.p_fd.fdinstall(fp, 0, nofile(p), True)
    except OSError:
        fp.fdrop()
        raise


def _signalled(lwp: Lwp, fd: int) -> Proc:
    """The process, gone perhaps, that `fd` names for a signal: a directory /proc/PID does, too.

    :raises OSError: EBADF when it names none.
    """
    from dfvm.kern.vfs.procfs_proc import ThreadDir

    vp = lwp.lwp_proc.p_fd.fget(fd).f_vnode
    vp = None if vp is None else vp.vop_data()
    if isinstance(vp, ThreadDir) and vp.p_whole and vp.p_proc is not None:
        return vp.p_proc
    return pidfd_get(lwp, fd).pf_proc


def sys_pidfd_send_signal(lwp: Lwp, fd: int, sig: int, uinfo: int, flags: int) -> int:
    """pidfd_send_signal(2): kill, or with a siginfo rt_sigqueueinfo."""
    if u32(flags):
        raise err(EINVAL)
    sig = s32(sig)
    target = _signalled(lwp, fd)
    if uinfo:
        info = copyin_siginfo(lwp, sig, uinfo, target.p_pid, exact=True)
    else:
        info = user_info(lwp, sig)
    check_signal(lwp, _alive(target), sig)
    if sig:
        send_user(target, None, info)
    return 0


def sys_pidfd_getfd(lwp: Lwp, pidfd: int, target: int, flags: int) -> int:
    """pidfd_getfd(2): a descriptor of another process's, which one may look into."""
    if u32(flags):
        raise err(EINVAL)
    p = lwp.lwp_proc
    other = pidfd_get(lwp, pidfd).proc()
    if not may_trace(p, other):
        raise err(EPERM)
    if not other.p_lwps:
        raise err(ESRCH)
    fp = other.p_fd.fget_path(target)
    fp.fhold()
    try:
        return p.p_fd.fdinstall(fp, 0, nofile(p), True)
    except OSError:
        fp.fdrop()
        raise
