"""Events of the file systems, for whoever watches files and directories (kern/sys_inotify.py).

What happens to a file is told to the watches on it and, with its name, to those on the directory it
is in. Whoever makes something happen asks `mnt_vfs.nwatches` first: while nothing is watched that
is all it costs.

Source: behaviour of Linux include/linux/fsnotify.h, fs/notify/fsnotify.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.vfs.vnode_param import IN_MOVE_SELF, VDIR, VREG, VUNLINKED

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode

IN_CLOSE_WRITE: Final = 0x008
IN_CLOSE_NOWRITE: Final = 0x010
IN_OPEN: Final = 0x020
IN_MOVED_FROM: Final = 0x040
IN_MOVED_TO: Final = 0x080
IN_DELETE_SELF: Final = 0x400
IN_UNMOUNT: Final = 0x2000
IN_ISDIR: Final = 0x4000_0000


class Watch:
    """Somebody who wants to hear of one file. Holds a reference on it."""

    __slots__ = ("w_vp",)

    w_vp: Vnode

    def event(self, mask: int, name: bytes, cookie: int, unlinked: bool) -> None:
        """Something happened: to the file, or (a name) to one in this directory that may have
        lost that name. Does not block."""
        raise NotImplementedError

    def gone(self) -> None:
        """The file exists no more. The watch has left it. Does not block."""
        raise NotImplementedError


def watch(w: Watch, vp: Vnode) -> None:
    """`w` watches vp from now on."""
    vp = vp.vop_data()
    vp.vref()
    w.w_vp = vp
    if vp.v_watches is None:
        vp.v_watches = {}
    vp.v_watches[w] = None
    vp.v_mount.mnt_vfs.nwatches += 1


def unwatch(w: Watch) -> None:
    """And no longer. May block."""
    vp = w.w_vp
    assert vp.v_watches is not None
    del vp.v_watches[w]
    if not vp.v_watches:
        vp.v_watches = None
    vp.v_mount.mnt_vfs.nwatches -= 1
    vp.vrele()


def vn_notify(vp: Vnode, mask: int) -> None:
    """`mask` (IN_*) happened to vp."""
    if vp.v_type == VDIR:
        mask |= IN_ISDIR
    dvp = vp.v_parent
    if dvp is not None and dvp.v_watches:
        for w in list(dvp.v_watches):
            w.event(mask, vp.v_name, 0, bool(vp.v_flag & VUNLINKED))
    if vp.v_watches:
        for w in list(vp.v_watches):
            w.event(mask, b"", 0, False)


def self_notify(vp: Vnode, mask: int) -> None:
    """The same, but only the file's own watches are told: its directory hears it otherwise."""
    if vp.v_watches:
        if vp.v_type == VDIR and mask not in (IN_DELETE_SELF, IN_MOVE_SELF):
            mask |= IN_ISDIR
        for w in list(vp.v_watches):
            w.event(mask, b"", 0, False)


def name_notify(dvp: Vnode, name: bytes, mask: int, vp: Vnode, cookie: int = 0) -> None:
    """`mask` happened to the entry `name`, vp's, in dvp."""
    if dvp.v_watches:
        if vp.v_type == VDIR:
            mask |= IN_ISDIR
        for w in list(dvp.v_watches):
            w.event(mask, name, cookie, False)


def rename_notify(dvp: Vnode, name: bytes, tdvp: Vnode, tname: bytes, vp: Vnode) -> None:
    """vp was `name` in dvp and is `tname` in tdvp now."""
    vfs = vp.v_mount.mnt_vfs
    vfs.rename_cookie += 1
    name_notify(dvp, name, IN_MOVED_FROM, vp, vfs.rename_cookie)
    name_notify(tdvp, tname, IN_MOVED_TO, vp, vfs.rename_cookie)


def unmount_notify(vp: Vnode) -> None:
    """The file system of vp is unmounted: that ends every watch. May block."""
    mask = IN_UNMOUNT | IN_ISDIR if vp.v_type == VDIR else IN_UNMOUNT
    for w in list(vp.v_watches or ()):
        w.event(mask, b"", 0, False)
        w.gone()
        unwatch(w)


def last_user_gone(vp: Vnode) -> None:
    """Nobody but watches holds vp: if it has no name left either, that is the end of it; of a
    directory when what was in it is gone altogether, too. May block."""
    if vp.v_type == VREG:
        if vp.getattr().va_nlink:
            return
    elif not vp.v_flag & VUNLINKED or vp.v_nchild:
        return
    self_notify(vp, IN_DELETE_SELF)
    watches = list(vp.v_watches or ())
    vp.v_watches = None
    vp.v_mount.mnt_vfs.nwatches -= len(watches)
    for w in watches:
        w.gone()
    for _ in watches:
        vp.vrele()
