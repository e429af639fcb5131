"""F_NOTIFY: a signal when something happens in a directory.

It is asked for on an open directory, by a descriptor table, and ends with the first descriptor of
the directory that is closed in that table, or, unless DN_MULTISHOT was given, with the first event.

Source: behaviour of Linux fs/notify/dnotify/dnotify.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.kern_errno import EINVAL, ENOTDIR, err
from dfvm.kern.kern_event import POLL_READABLE
from dfvm.kern.sys_sigio import POLL_MSG, POLLMSG, send_sigio
from dfvm.kern.vfs.vfs_notify import IN_MOVED_FROM, IN_MOVED_TO, Watch, unwatch, watch
from dfvm.kern.vfs.vnode_param import (
    IN_ACCESS,
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_MODIFY,
    VDIR,
)

if TYPE_CHECKING:
    from dfvm.kern.kern_descrip import File, FileDesc
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp

DN_ACCESS: Final = 0x01
DN_MODIFY: Final = 0x02
DN_CREATE: Final = 0x04
DN_DELETE: Final = 0x08
DN_RENAME: Final = 0x10  # within the directory; no one IN_* event says so
DN_ATTRIB: Final = 0x20
DN_MULTISHOT: Final = 0x8000_0000
_EVENTS: Final = (
    (DN_ACCESS, IN_ACCESS),
    (DN_MODIFY, IN_MODIFY),
    (DN_CREATE, IN_CREATE | IN_MOVED_TO),
    (DN_DELETE, IN_DELETE | IN_MOVED_FROM),
    (DN_ATTRIB, IN_ATTRIB),
)
_WANTED: Final = sum(mask for _, mask in _EVENTS)
_RENAME: Final = 1 << 30  # DN_RENAME in dn_mask, where no IN_* is


class Dnotify(Watch):
    """Who wants to hear of one open directory."""

    __slots__ = ("dn_cookie", "dn_fd", "dn_fdp", "dn_file", "dn_kernel", "dn_mask")

    dn_file: File  # not referenced: a close ends this
    dn_fdp: FileDesc  # likewise
    dn_fd: int  # the number it was asked for by: si_fd
    dn_mask: int  # IN_* that are wanted, _RENAME, DN_MULTISHOT; 0: it is over
    dn_cookie: int  # of the last rename of something in the directory
    dn_kernel: Kernel

    def __init__(self, lwp: Lwp, fp: File, fd: int) -> None:
        self.dn_file = fp
        self.dn_fdp = lwp.lwp_proc.p_fd
        self.dn_fd = fd
        self.dn_mask = self.dn_cookie = 0
        self.dn_kernel = lwp.lwp_proc.kernel

    def event(self, mask: int, name: bytes, cookie: int, unlinked: bool) -> None:
        within = bool(mask & IN_MOVED_TO) and cookie == self.dn_cookie
        if mask & IN_MOVED_FROM:
            self.dn_cookie = cookie
        if not (mask & self.dn_mask & _WANTED or (within and self.dn_mask & _RENAME)):
            return
        if not self.dn_mask & DN_MULTISHOT:
            self.dn_mask = 0
        send_sigio(self.dn_kernel, self.dn_file, self.dn_fd, POLL_MSG, POLL_READABLE | POLLMSG)

    def gone(self) -> None:
        self.dn_file.f_table.nlockf -= 1


def _find(fp: File, fdp: FileDesc) -> Dnotify | None:
    vp = fp.f_vnode
    for w in (vp.v_watches or ()) if vp is not None else ():
        if isinstance(w, Dnotify) and w.dn_file is fp and w.dn_fdp is fdp:
            return w
    return None


def dnotify(lwp: Lwp, fp: File, fd: int, arg: int) -> None:
    """F_NOTIFY. What is asked for adds to what was; asking for nothing ends it. May block.

    :raises OSError: ENOTDIR; EINVAL when it is switched off
    """
    if not fp.f_table.sysctl.dir_notify_enable:
        raise err(EINVAL)
    arg = u32(arg)
    p = lwp.lwp_proc
    if not arg & ~DN_MULTISHOT:
        dnotify_flush(fp, p.p_fd)
        return
    vp = fp.f_vnode
    if vp is None or vp.v_type != VDIR:
        raise err(ENOTDIR)
    w = _find(fp, p.p_fd)
    if w is None:
        w = Dnotify(lwp, fp, fd)
        watch(w, vp)
        fp.f_table.nlockf += 1
    mask = arg & DN_MULTISHOT | (_RENAME if arg & DN_RENAME else 0)
    for bit, events in _EVENTS:
        if arg & bit:
            mask |= events
    w.dn_mask |= mask
    if not fp.f_owner:
        fp.f_owner = p.p_pid
        fp.f_ownercred = p.p_ucred


def dnotify_flush(fp: File, fdp: FileDesc) -> None:
    """A descriptor of `fp` in this table is closed. May block."""
    w = _find(fp, fdp)
    if w is not None:
        w.gone()
        unwatch(w)
