"""inotify: events of files and directories as a file.

Source: behaviour of Linux fs/notify/inotify.
"""

from __future__ import annotations

import os
from collections import deque
from struct import Struct, pack
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import anon_attr
from dfvm.kern.kern_descrip import (
    FIONREAD,
    O_CLOEXEC,
    O_NONBLOCK,
    O_RDONLY,
    File,
    FileTable,
    nofile,
)
from dfvm.kern.kern_errno import EAGAIN, EEXIST, EINVAL, EMFILE, ENOSPC, ENOTTY, err
from dfvm.kern.kern_event import POLL_READABLE, POLLIN, Kqinfo
from dfvm.kern.vfs.namei import NAMEI_DIRECTORY, NAMEI_FOLLOW, PATH_MAX, namei
from dfvm.kern.vfs.vfs_notify import IN_UNMOUNT, Watch, unwatch, watch
from dfvm.kern.vfs.vnode_param import VREAD
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyinstr, copyout, uiomove

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Vattr
    from dfvm.vm.copyio import Uio

IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x0100_0000
IN_DONT_FOLLOW: Final = 0x0200_0000
IN_EXCL_UNLINK: Final = 0x0400_0000
IN_MASK_CREATE: Final = 0x1000_0000
IN_MASK_ADD: Final = 0x2000_0000
IN_ONESHOT: Final = 0x8000_0000
_EVENTS: Final = 0xFFF
_ALL_BITS: Final = (
    _EVENTS | 0xE000 | IN_ONLYDIR | IN_DONT_FOLLOW | IN_EXCL_UNLINK | IN_MASK_CREATE | IN_MASK_ADD
    | 0x4000_0000 | IN_ONESHOT
)  # fmt: skip

_EVENT: Final = Struct("<iIII")  # wd, mask, cookie, length of what follows: the name and NULs


class InotifyWatch(Watch):
    """One file that an inotify watches."""

    __slots__ = ("iw_file", "iw_mask", "iw_wd")

    iw_file: InotifyFile
    iw_wd: int  # its number, which events carry
    iw_mask: int  # IN_* it reports, and IN_ONESHOT, IN_EXCL_UNLINK

    def __init__(self, fp: InotifyFile, wd: int, mask: int) -> None:
        self.iw_file = fp
        self.iw_wd = wd
        self.iw_mask = mask

    def event(self, mask: int, name: bytes, cookie: int, unlinked: bool) -> None:
        if mask & IN_UNMOUNT:  # is told whether it was asked for or not
            self.iw_file.queue(self.iw_wd, mask, 0, b"")
            return
        if not mask & self.iw_mask & _EVENTS or (unlinked and self.iw_mask & IN_EXCL_UNLINK):
            return
        fp = self.iw_file
        fp.queue(self.iw_wd, mask, cookie, name)
        if self.iw_mask & IN_ONESHOT:
            self.iw_mask = 0
            fp.in_spent.append(self)
            self.gone()

    def gone(self) -> None:
        fp = self.iw_file
        if fp.in_watches.pop(self.iw_wd, None) is not None:
            fp.queue(self.iw_wd, IN_IGNORED, 0, b"")


class InotifyFile(File):
    """An inotify instance."""

    __slots__ = ("in_bytes", "in_events", "in_kq", "in_lastwd", "in_max", "in_spent", "in_uid",
                 "in_watches")  # fmt: skip

    f_fasync = True

    in_watches: dict[int, InotifyWatch]  # by number
    in_lastwd: int  # the last number given
    in_events: deque[tuple[int, int, int, bytes]]  # (wd, mask, cookie, name), oldest first
    in_bytes: int  # what a read of all of them returns
    in_spent: list[InotifyWatch]  # one-shot watches that have fired, still on their file
    in_max: int  # events that are kept at most
    in_uid: int  # whose instance it is
    in_kq: Kqinfo

    def __init__(self, table: FileTable, flag: int, uid: int) -> None:
        """An instance of user `uid`.

        :raises OSError: EMFILE when the user has as many as may be; ENFILE
        """
        users = table.inotify_users
        if users.get(uid, 0) >= table.sysctl.max_user_instances:
            raise err(EMFILE)
        super().__init__(table, flag)
        users[uid] = users.get(uid, 0) + 1
        self.in_uid = uid
        self.in_max = table.sysctl.max_queued_events
        self.in_watches = {}
        self.in_lastwd = 0
        self.in_events = deque()
        self.in_bytes = 0
        self.in_spent = []
        self.in_kq = Kqinfo()

    def fo_show(self) -> str:
        """The watches. Linux has a handle of the file behind each, of which there is none here."""
        lines = []
        for wd, w in reversed(self.in_watches.items()):  # as Linux: the newest first
            va = w.w_vp.getattr()
            dev = os.major(va.va_fsid) << 20 | os.minor(va.va_fsid)  # as the kernel has it inside
            lines.append(
                f"inotify wd:{wd:x} ino:{va.va_fileid:x} sdev:{dev:x} mask:{w.iw_mask:x} "
                "ignored_mask:0\n"
            )
        return "".join(lines)

    def queue(self, wd: int, mask: int, cookie: int, name: bytes) -> None:
        """One event more, unless it is the last one once again, or there are too many."""
        events = self.in_events
        new = (wd, mask, cookie, name)
        if len(events) >= self.in_max:
            new = (-1, IN_Q_OVERFLOW, 0, b"")
        if events and events[-1] == new:
            return
        events.append(new)
        self.in_bytes += _size(new[3])
        self.f_table.sched.wakeup(self)
        self.in_kq.knote(POLLIN)

    def drop_spent(self) -> None:
        """Let go of the files whose one-shot watch has fired. May block."""
        while self.in_spent:
            w = self.in_spent.pop()
            if w in (w.w_vp.v_watches or ()):
                unwatch(w)

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        self.drop_spent()
        events = self.in_events
        while not events:
            if self.f_flag & O_NONBLOCK:
                raise err(EAGAIN)
            self.fhold()
            try:
                error = self.f_table.sched.tsleep(self, PCATCH, "inotify")
            finally:
                self.fdrop()
            if error:
                raise err(error)
        moved = False
        while events and _size(events[0][3]) <= uio.uio_resid:
            wd, mask, cookie, name = events.popleft()
            size = _size(name)
            self.in_bytes -= size
            head = _EVENT.pack(wd, mask, cookie, size - _EVENT.size)
            # As Linux: when this fails the call does, whatever it has read before.
            uiomove(head + name + bytes(size - _EVENT.size - len(name)), uio)
            moved = True
        if not moved:
            raise err(EINVAL)

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        if cmd != FIONREAD:
            raise err(ENOTTY)
        copyout(lwp.lwp_proc.p_vmspace, pack("<i", self.in_bytes), arg)
        return 0

    def fo_poll(self) -> int:
        return POLL_READABLE if self.in_events else 0

    def fo_kqinfo(self) -> Kqinfo:
        return self.in_kq

    def fo_seek(self, lwp: Lwp, offset: int, whence: int) -> int:
        return 0  # as Linux: no position, no error

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return anon_attr()

    def fo_close(self) -> None:
        users = self.f_table.inotify_users
        users[self.in_uid] -= 1
        if not users[self.in_uid]:
            del users[self.in_uid]
        watches = list(self.in_watches.values())
        self.in_watches.clear()
        self.drop_spent()
        for w in watches:
            unwatch(w)

    def fo_name(self) -> str:
        return "anon_inode:inotify"

    def find(self, vp: Vnode) -> InotifyWatch | None:
        """Its watch on vp."""
        for w in vp.v_watches or ():
            if isinstance(w, InotifyWatch) and w.iw_file is self and w.iw_wd in self.in_watches:
                return w
        return None


def _size(name: bytes) -> int:
    # Of an event's record. Names are padded so that records stay aligned.
    unit = _EVENT.size
    return unit if not name else unit + (len(name) + unit) // unit * unit


def sys_inotify_init1(lwp: Lwp, flags: int) -> int:
    """inotify_init1(2)"""
    flags = u32(flags)
    if flags & ~(O_CLOEXEC | O_NONBLOCK):
        raise err(EINVAL)
    p = lwp.lwp_proc
    fp = InotifyFile(p.p_fd.fd_table, O_RDONLY | flags & O_NONBLOCK, p.p_ucred.cr_uid)
    try:
        return p.p_fd.fdinstall(fp, 0, nofile(p), bool(flags & O_CLOEXEC))
    except OSError:
        fp.fdrop()
        raise


def sys_inotify_init(lwp: Lwp) -> int:
    """inotify_init(2)"""
    return sys_inotify_init1(lwp, 0)


def _inotify(lwp: Lwp, fd: int) -> InotifyFile:
    fp = lwp.lwp_proc.p_fd.fget(fd)
    if not isinstance(fp, InotifyFile):
        raise err(EINVAL)
    return fp


def sys_inotify_add_watch(lwp: Lwp, fd: int, upath: int, mask: int) -> int:
    """inotify_add_watch(2)"""
    mask = u32(mask)
    if not mask & _ALL_BITS:
        raise err(EINVAL)
    p = lwp.lwp_proc
    p.p_fd.fget(fd)
    if mask & IN_MASK_ADD and mask & IN_MASK_CREATE:
        raise err(EINVAL)
    fp = _inotify(lwp, fd)
    path = copyinstr(p.p_vmspace, upath, PATH_MAX)
    flags = 0 if mask & IN_DONT_FOLLOW else NAMEI_FOLLOW
    if mask & IN_ONLYDIR:
        flags |= NAMEI_DIRECTORY
    vp = namei(p.p_fs.fs_rdir, p.p_fs.fs_cdir, path, p.p_ucred, flags)
    vp.access(VREAD, p.p_ucred)
    keep = mask & (_EVENTS | IN_ONESHOT | IN_EXCL_UNLINK)
    w = fp.find(vp.vop_data())
    if w is not None:
        if mask & IN_MASK_CREATE:
            raise err(EEXIST)
        w.iw_mask = w.iw_mask | keep if mask & IN_MASK_ADD else keep
        return w.iw_wd
    if vp.v_mount.mnt_vfs.nwatches >= fp.f_table.sysctl.max_user_watches:
        raise err(ENOSPC)
    fp.in_lastwd += 1
    w = InotifyWatch(fp, fp.in_lastwd, keep)
    fp.in_watches[w.iw_wd] = w
    watch(w, vp)
    return w.iw_wd


def sys_inotify_rm_watch(lwp: Lwp, fd: int, wd: int) -> int:
    """inotify_rm_watch(2)"""
    w = _inotify(lwp, fd).in_watches.get(s32(wd))
    if w is None:
        raise err(EINVAL)
    w.gone()
    unwatch(w)
    return 0
