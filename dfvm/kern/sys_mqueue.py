"""The system calls on POSIX message queues: mq_open, mq_unlink, mq_timedsend, mq_timedreceive,
mq_notify, mq_getsetattr. What a queue is, is in vfs/mqueuefs.

Source: Linux ipc/mqueue.c.
"""

from __future__ import annotations

from struct import Struct
from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.kern_descrip import (
    O_ACCMODE,
    O_CREAT,
    O_EXCL,
    O_NOCTTY,
    O_NONBLOCK,
    O_TRUNC,
    File,
    nofile,
)
from dfvm.kern.kern_errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EBUSY,
    EEXIST,
    EINVAL,
    EMSGSIZE,
    ENOENT,
    ENOMEM,
    ENOTSOCK,
    ETIMEDOUT,
    err,
)
from dfvm.kern.kern_path import user_path
from dfvm.kern.kern_sig import NSIG, SI_MESGQ, Siginfo, ksignal
from dfvm.kern.kern_time import LONGEST_NS, SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD, copyin_timespec
from dfvm.kern.vfs.mqueuefs import MQ_PRIO_MAX, MqRoot, MqVnode, MqWaiter
from dfvm.kern.vfs.vnode_param import FFLAGS, FREAD, FWRITE, VREAD, VWRITE, vfs_timestamp
from dfvm.kern.vnode_file import VnodeFile
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from dfvm.kern.kern_event import Kqinfo
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.vm.copyio import Uio
    from dfvm.vm.vmspace import Vmspace

_MQ_ATTR: Final = Struct("<4q32x")  # flags maxmsg msgsize curmsgs, and room
_SIGEVENT: Final = Struct("<Qii48x")  # value signo notify, and room
_COOKIE_LEN: Final = 32  # SIGEV_THREAD: what the C library wants to be sent

_NICE_0: Final = 120  # the rank of an ordinary thread; real-time ones are below 100
_RT_0: Final = 99

_WANT: Final = (VREAD, VWRITE, VREAD | VWRITE)


class MqNotify:
    """Who is told when a message comes to an empty queue."""

    __slots__ = ("notify", "proc", "signo", "space", "value")

    proc: Proc
    space: Vmspace  # what it ran when it asked: a program that it has become since is not told
    notify: int  # SIGEV_*
    signo: int
    value: int  # what the signal carries along

    def __init__(self, p: Proc, notify: int, signo: int, value: int) -> None:
        self.proc, self.space = p, p.p_vmspace
        self.notify, self.signo, self.value = notify, signo, value

    def status(self) -> tuple[int, int, int]:
        """Kind, signal and process, as reading the queue shows them."""
        return self.notify, self.signo if self.notify == SIGEV_SIGNAL else 0, self.proc.p_pid

    def send(self, sender: Proc) -> None:
        """A message of `sender`'s has come."""
        p = self.proc
        if self.notify == SIGEV_SIGNAL and self.signo and p.p_vmspace is self.space:
            cred = sender.p_ucred
            info = Siginfo(self.signo, SI_MESGQ, sender.p_pid, cred.cr_ruid, value=self.value)
            ksignal(p, self.signo, info)


class MqFile(VnodeFile):
    """An open queue."""

    __slots__ = ()

    f_vnode: MqVnode
    f_pollable = True

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        raise err(EINVAL)

    def fo_pwrite(self, lwp: Lwp, uio: Uio, offset: int) -> None:
        raise err(EINVAL)

    def fo_setfl(self, flag: int) -> None:
        File.fo_setfl(self, flag)

    def fo_poll(self) -> int:
        return self.f_vnode.poll_events()

    def fo_kqinfo(self) -> Kqinfo:
        return self.f_vnode.m_kq


def mq_closed(fp: File, p: Proc | None) -> None:
    """`p` has closed a descriptor of `fp`: it is told nothing any more."""
    if isinstance(fp, MqFile):
        vp = fp.f_vnode
        if vp.m_notify is not None and vp.m_notify.proc is p:
            _forget(fp, vp)


def _forget(fp: File, vp: MqVnode) -> None:
    vp.m_notify = None
    fp.f_table.nmqnotify -= 1


# ---- names ---------------------------------------------------------------------------------------


def _name(lp: Lwp, uname: int) -> tuple[MqRoot, bytes]:
    """The directory, and a name in it.

    :raises OSError: EFAULT, ENAMETOOLONG; ENOENT for none, EACCES for a path.
    """
    name = user_path(lp, uname)
    if not name:
        raise err(ENOENT)
    return lp.lwp_proc.kernel.mqueues.m_root, name


def _check_name(name: bytes) -> None:
    if name in (b".", b"..") or b"/" in name:
        raise err(EACCES)


def sys_mq_open(lp: Lwp, uname: int, oflag: int, mode: int, uattr: int) -> int:
    """A descriptor for the queue with a name, which is made if need be."""
    p = lp.lwp_proc
    oflag = u32(oflag)
    attr = None
    if uattr:
        _, maxmsg, msgsize, _ = _MQ_ATTR.unpack(copyin(p.p_vmspace, uattr, _MQ_ATTR.size))
        attr = maxmsg, msgsize
    root, name = _name(lp, uname)
    fdp = p.p_fd
    fd = fdp.fdalloc(0, nofile(p))
    try:
        _check_name(name)
        fp = _open(p, root, name, oflag, mode & 0o7777 & ~p.p_fs.fs_cmask, attr)
    except OSError:
        fdp.fdrelease(fd)
        raise
    fdp.fdset(fd, fp, True)
    return fd


def _open(
    p: Proc, root: MqRoot, name: bytes, oflag: int, mode: int, attr: tuple[int, int] | None
) -> File:
    vp = root.lookup(name)
    acc = oflag & O_ACCMODE
    if vp is None:
        if not oflag & O_CREAT:
            raise err(ENOENT)
        vp = root.mq_create(name, mode, p, attr)
    else:
        if oflag & O_CREAT and oflag & O_EXCL:
            raise err(EEXIST)
        if acc == O_ACCMODE:
            raise err(EINVAL)
        vp.access(_WANT[acc], p.p_ucred)
    assert isinstance(vp, MqVnode)
    vp.open(FFLAGS[acc], p.p_ucred)
    try:
        return MqFile(p.p_fd.fd_table, oflag & ~(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC), vp)
    except OSError:
        vp.close(FFLAGS[acc])
        raise


def sys_mq_unlink(lp: Lwp, uname: int) -> int:
    """Take a queue's name away. It is there as long as somebody has it open."""
    root, name = _name(lp, uname)
    _check_name(name)
    root.unlink(name, lp.lwp_proc.p_ucred)
    return 0


# ---- sending and receiving -----------------------------------------------------------------------


def _queue(lp: Lwp, fd: int, right: int) -> MqFile:
    """The open queue `fd`, which may be used for `right` (FREAD, FWRITE, or 0 for anything).

    :raises OSError: EBADF
    """
    fp = lp.lwp_proc.p_fd.fget(fd)
    if not isinstance(fp, MqFile) or right & ~fp.f_mode:
        raise err(EBADF)
    return fp


def _rank(lp: Lwp) -> int:
    # Those who wait go by their priority, as the scheduler sees it.
    td = lp.lwp_thread
    return _RT_0 - td.td_rtprio if td.td_rtprio else _NICE_0 + lp.lwp_proc.p_nice


def _first(waiters: list[MqWaiter]) -> MqWaiter:
    """Take out who goes first: there is somebody."""
    waiter = min(waiters, key=lambda w: w.rank)
    waiters.remove(waiter)
    return waiter


def _wait(fp: MqFile, waiters: list[MqWaiter], waiter: MqWaiter, deadline: int) -> None:
    """Sleep until `waiter` is done; `deadline` in ns of real time, -1: none.

    :raises OSError: EAGAIN, ETIMEDOUT, EINTR, ERESTART.
    """
    if fp.f_flag & O_NONBLOCK:
        raise err(EAGAIN)
    left = 0
    if deadline >= 0:
        left = min(deadline - time_ns(), LONGEST_NS)
        if left <= 0:
            raise err(ETIMEDOUT)
    waiters.append(waiter)
    fp.fhold()
    error = fp.f_table.sched.tsleep_ns(waiter, PCATCH, "mqueue", left)
    if not waiter.done:
        waiters.remove(waiter)
    fp.fdrop()
    if not waiter.done:
        raise err(ETIMEDOUT if error == EAGAIN else error)


def _finish(fp: MqFile, waiter: MqWaiter) -> None:
    waiter.done = True
    fp.f_table.sched.wakeup(waiter)


def sys_mq_timedsend(lp: Lwp, fd: int, umsg: int, size: int, prio: int, utimeout: int) -> int:
    """Send a message; wait for room until a time."""
    deadline = copyin_timespec(lp, utimeout) if utimeout else -1
    prio = u32(prio)
    if prio >= MQ_PRIO_MAX:
        raise err(EINVAL)
    fp = _queue(lp, fd, FWRITE)
    vp = fp.f_vnode
    if size > vp.m_msgsize:
        raise err(EMSGSIZE)
    fp.fhold()
    try:
        msg = copyin(lp.lwp_proc.p_vmspace, umsg, size) if size else b""
        _send(lp, fp, vp, prio, msg, deadline)
    finally:
        fp.fdrop()
    return 0


def _send(lp: Lwp, fp: MqFile, vp: MqVnode, prio: int, msg: bytes, deadline: int) -> None:
    if vp.m_curmsgs >= vp.m_maxmsg:
        _wait(fp, vp.m_senders, MqWaiter(_rank(lp), prio, msg), deadline)
        return
    if vp.m_receivers:
        receiver = _first(vp.m_receivers)
        receiver.prio, receiver.msg = prio, msg
        _finish(fp, receiver)
    else:
        mount = vp.v_mount
        if mount.m_bytes + len(msg) > mount.m_kernel.ram.size // 2:
            raise err(ENOMEM)  # messages are not in the machine's memory, but count as if
        vp.insert(prio, msg)
        _notify(lp.lwp_proc, fp, vp)
    vp.m_atime = vp.m_mtime = vp.m_ctime = vfs_timestamp()


def _notify(sender: Proc, fp: MqFile, vp: MqVnode) -> None:
    """A message has come that nobody waited for."""
    notify = vp.m_notify
    if notify is not None and vp.m_curmsgs == 1:
        _forget(fp, vp)
        notify.send(sender)
    vp.m_kq.knote(vp.poll_events())


def sys_mq_timedreceive(lp: Lwp, fd: int, umsg: int, size: int, uprio: int, utimeout: int) -> int:
    """Receive the oldest message of the highest priority; wait for one until a time. Returns its
    length."""
    deadline = copyin_timespec(lp, utimeout) if utimeout else -1
    fp = _queue(lp, fd, FREAD)
    vp = fp.f_vnode
    if size < vp.m_msgsize:
        raise err(EMSGSIZE)
    if vp.m_curmsgs:
        prio, msg = vp.take()
        if vp.m_senders:
            sender = _first(vp.m_senders)
            vp.insert(sender.prio, sender.msg)
            _finish(fp, sender)
        vp.m_atime = vp.m_mtime = vp.m_ctime = vfs_timestamp()
        vp.m_kq.knote(vp.poll_events())
    else:
        waiter = MqWaiter(_rank(lp))
        _wait(fp, vp.m_receivers, waiter, deadline)
        prio, msg = waiter.prio, waiter.msg
    space = lp.lwp_proc.p_vmspace
    if uprio:
        copyout(space, prio.to_bytes(4, "little"), uprio)
    if msg:
        copyout(space, msg, umsg)
    return len(msg)


# ---- notification and attributes -----------------------------------------------------------------


def sys_mq_notify(lp: Lwp, fd: int, usevp: int) -> int:
    """Be told, once, when a message comes to an empty queue that nobody waits at; or no more."""
    p = lp.lwp_proc
    value = signo = notify = 0
    if usevp:
        value, signo, notify = _SIGEVENT.unpack(copyin(p.p_vmspace, usevp, _SIGEVENT.size))
        if notify not in (SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD):
            raise err(EINVAL)
        if notify == SIGEV_SIGNAL and not 0 <= signo <= NSIG:
            raise err(EINVAL)
        if notify == SIGEV_THREAD:
            # The C library listens at a netlink socket, of which there are none.
            copyin(p.p_vmspace, value, _COOKIE_LEN)
            p.p_fd.fget(signo)
            raise err(ENOTSOCK)
    fp = _queue(lp, fd, 0)
    vp = fp.f_vnode
    if not usevp:
        if vp.m_notify is None or vp.m_notify.proc is not p:
            return 0
        _forget(fp, vp)
    elif vp.m_notify is not None:
        raise err(EBUSY)
    else:
        vp.m_notify = MqNotify(p, notify, signo, value)
        fp.f_table.nmqnotify += 1
    vp.m_atime = vp.m_ctime = vfs_timestamp()
    return 0


def sys_mq_getsetattr(lp: Lwp, fd: int, unew: int, uold: int) -> int:
    """What a queue is for and holds, and whether the descriptor waits, which may be changed."""
    space = lp.lwp_proc.p_vmspace
    flags = 0
    if unew:
        flags = _MQ_ATTR.unpack(copyin(space, unew, _MQ_ATTR.size))[0]
        if flags & ~O_NONBLOCK:
            raise err(EINVAL)
    fp = _queue(lp, fd, 0)
    vp = fp.f_vnode
    old = _MQ_ATTR.pack(fp.f_flag & O_NONBLOCK, vp.m_maxmsg, vp.m_msgsize, vp.m_curmsgs)
    if unew:
        fp.f_flag = fp.f_flag & ~O_NONBLOCK | flags
        vp.m_atime = vp.m_ctime = vfs_timestamp()
    if uold:
        copyout(space, old, uold)
    return 0
