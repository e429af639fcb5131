"""Leases: whoever has one on a file is told before somebody else opens or truncates it.

A lease belongs to an open file. A read lease is broken by an open for writing, a write lease by any
open. The holder gets a signal (SIGIO, or what F_SETSIG says) and has fs.lease-break-time to
give the lease up, or to make it a read lease if that is enough; then it is taken away. The open
waits meanwhile. Leases hang off the file's locks (LockfHead).

Source: behaviour of Linux fs/locks.c (generic_setlease, __break_lease).
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32
from dfvm.kern.abi.linux.linux_struct import NS
from dfvm.kern.kern_caps import CAP_LEASE
from dfvm.kern.kern_descrip import FASYNC, FPATH
from dfvm.kern.kern_errno import EACCES, EAGAIN, EINVAL, EWOULDBLOCK, err
from dfvm.kern.kern_event import POLL_READABLE
from dfvm.kern.kern_fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from dfvm.kern.kern_lockf import lf_head, lf_tidy
from dfvm.kern.sys_sigio import POLL_MSG, POLLMSG, send_sigio
from dfvm.kern.vfs.vnode_param import VREG
from dfvm.lwkt.kern_synch import PCATCH

if TYPE_CHECKING:
    from dfvm.kern.kern_descrip import File
    from dfvm.kern.kern_lockf import LockfHead
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.vnode import Vnode

_NAMES: Final = {F_RDLCK: "READ ", F_WRLCK: "WRITE", F_UNLCK: "UNLCK"}


class Lease:
    """One lease."""

    __slots__ = ("ls_deadline", "ls_fd", "ls_file", "ls_kernel", "ls_pid", "ls_target", "ls_type")

    ls_file: File  # whose it is; not referenced: goes with it
    ls_fd: int  # the number it was set by: si_fd
    ls_kernel: Kernel
    ls_pid: int  # who took it
    ls_type: int  # F_RDLCK or F_WRLCK
    ls_target: int  # what it has to become, F_RDLCK or F_UNLCK; -1: nobody is waiting
    ls_deadline: int  # monotonic ns: when it will be made so

    def __init__(self, lwp: Lwp, fp: File, fd: int, kind: int) -> None:
        self.ls_file = fp
        self.ls_fd = fd
        self.ls_kernel = lwp.lwp_proc.kernel
        self.ls_pid = lwp.lwp_proc.p_pid
        self.ls_type = kind
        self.ls_target = -1
        self.ls_deadline = 0

    def show(self) -> str:
        """What /proc/locks tells of it: the lease that is left when it has been broken."""
        breaking = self.ls_target >= 0
        left = self.ls_target if breaking else self.ls_type
        state = "BREAKING " if breaking else "ACTIVE   "
        return f"LEASE  {state} {_NAMES[left]} {self.ls_pid}"


def get_lease(fp: File) -> int:
    """F_GETLEASE: the lease that is left when those who wait for it have been served."""
    head = fp.fo_lockf()
    if head is not None:
        _expire(head)
        lf_tidy(fp, head)
        for lease in head.lh_leases:
            if lease.ls_file is fp:
                return lease.ls_type if lease.ls_target < 0 else lease.ls_target
    return F_UNLCK


def set_lease(lwp: Lwp, fp: File, fd: int, kind: int) -> None:
    """F_SETLEASE.

    :raises OSError: EINVAL, EACCES, EAGAIN
    """
    kind = s32(kind)
    if kind not in (F_RDLCK, F_WRLCK, F_UNLCK):
        raise err(EINVAL)
    cred = lwp.lwp_proc.p_ucred
    vp = fp.f_vnode
    if vp is None:
        raise err(EINVAL)
    if kind != F_UNLCK and not fp.f_table.sysctl.leases_enable:
        raise err(EINVAL)
    if cred.cr_fsuid != vp.v_uid and not cred.cr_cap_e & CAP_LEASE:
        raise err(EACCES)
    if vp.v_type != VREG:
        raise err(EINVAL)
    head = lf_head(fp)
    try:
        _expire(head)
        mine = next((lease for lease in head.lh_leases if lease.ls_file is fp), None)
        if kind == F_UNLCK:
            if mine is None:
                raise err(EAGAIN)
            _change(head, mine, F_UNLCK)
            return
        _check_opens(lwp, fp, vp, head, kind)
        for lease in head.lh_leases:
            if lease is not mine and (kind == F_WRLCK or lease.ls_target == F_UNLCK):
                raise err(EAGAIN)
        if mine is not None:
            _change(head, mine, kind)
            return
        head.lh_leases.append(Lease(lwp, fp, fd, kind))
        fp.f_table.nlockf += 1
        fp.f_flag |= FASYNC
        if not fp.f_owner:
            fp.f_owner = lwp.lwp_proc.p_pid
            fp.f_ownercred = cred
    finally:
        lf_tidy(fp, head)


def _check_opens(lwp: Lwp, fp: File, vp: Vnode, head: LockfHead, kind: int) -> None:
    """Check that a lease may be had: a read lease while nobody has the file open for writing, a
    write lease while nobody else has it open at all. Whoever waits for a lease in order to open it
    has it open.

    :raises OSError: EAGAIN if not.
    """
    if kind == F_RDLCK:
        if vp.v_writecount or head.lh_writing:
            raise err(EAGAIN)
        return
    if head.lh_opening:
        raise err(EAGAIN)
    for p in lwp.lwp_proc.kernel.procs.values():
        for other in p.p_fd.fd_files.values() if p.p_lwps else ():
            if other is fp or other.f_vnode is None or other.f_mode & FPATH:
                continue
            if other.f_vnode.vop_data() is vp.vop_data():
                raise err(EAGAIN)


def _change(head: LockfHead, lease: Lease, kind: int) -> None:
    """The lease becomes one of `kind`, as the holder wants it or because its time is over."""
    table = lease.ls_file.f_table
    if kind == F_UNLCK:
        head.lh_leases.remove(lease)
        table.nlockf -= 1
        fp = lease.ls_file
        fp.f_flag &= ~FASYNC
        fp.f_owner = fp.f_sig = 0
        fp.f_ownercred = None
    lease.ls_type = kind
    if kind == F_UNLCK or (kind == F_RDLCK and lease.ls_target == F_RDLCK):
        lease.ls_target = -1
    table.sched.wakeup(lease)


def _expire(head: LockfHead) -> None:
    """Take away what should have been given up by now."""
    now = monotonic_ns()
    for lease in list(head.lh_leases):
        if lease.ls_target >= 0 and now >= lease.ls_deadline:
            _change(head, lease, lease.ls_target)


def break_lease(vp: Vnode, write: bool, nonblock: bool) -> None:
    """Somebody opens vp, or with `write` opens it for writing or truncates it: have the leases that
    this breaks given up, and wait for it. May block.

    :raises OSError: EWOULDBLOCK; EINTR, ERESTART
    """
    head = vp.v_lockf
    if head is None:
        return
    vp.vref()
    head.lh_opening += 1
    head.lh_writing += write
    try:
        while True:
            _expire(head)
            leases = [ls for ls in head.lh_leases if write or ls.ls_type == F_WRLCK]
            if not leases:
                return
            for lease in leases:
                _ask(lease, F_UNLCK if write else F_RDLCK)
            if nonblock:
                raise err(EWOULDBLOCK)
            lease = leases[0]
            sched = lease.ls_file.f_table.sched
            left = max(lease.ls_deadline - monotonic_ns(), 1)
            error = sched.tsleep_ns(lease, PCATCH, "lease", left)
            if error not in (0, EWOULDBLOCK):
                raise err(error)
    finally:
        head.lh_opening -= 1
        head.lh_writing -= write
        if head.empty:
            vp.v_lockf = None
        vp.vrele()


def _ask(lease: Lease, target: int) -> None:
    """Tell the holder, unless it has been told already, that the lease is to become `target`."""
    if lease.ls_target == F_UNLCK or lease.ls_target == target:
        return
    lease.ls_target = target
    fp = lease.ls_file
    lease.ls_deadline = monotonic_ns() + fp.f_table.sysctl.lease_break_time * NS
    send_sigio(lease.ls_kernel, fp, lease.ls_fd, POLL_MSG, POLL_READABLE | POLLMSG)


def lease_file_closed(head: LockfHead, fp: File) -> None:
    """The last reference to an open file is gone, and its lease with it."""
    for lease in head.lh_leases:
        if lease.ls_file is fp:
            _change(head, lease, F_UNLCK)
            lf_tidy(fp, head)
            return
