"""rename(2): moving an entry to another directory or name, over what is there, or exchanging two.

In order: is it possible at all, may the caller, the file system does it, and then the name cache
and those who watch learn of it. `fvp` is `fname` in `fdvp` and becomes `tname` in `tdvp`, where
`tvp` was, or nothing (None).

Source: DragonFly sys/kern/vfs_syscalls.c (kern_rename), sys/kern/vfs_cache.c (cache_rename); the
order of errors is that of Linux fs/namei.c (do_renameat2, vfs_rename).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.kern.kern_errno import EEXIST, EINVAL, ENOENT, ENOTEMPTY, EXDEV, err
from dfvm.kern.vfs.vfs_helper import may_remove, may_write_dir, not_a_mountpoint
from dfvm.kern.vfs.vfs_notify import rename_notify
from dfvm.kern.vfs.vnode_param import (
    IN_ATTRIB,
    IN_MOVE_SELF,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    VDIR,
    VWRITE,
)

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred


def vn_rename(fdvp: Vnode, fname: bytes, tdvp: Vnode, tname: bytes, flags: int, cred: Cred) -> None:
    """Move `fname` to `tname` in tdvp, over what is there (flags: RENAME_NOREPLACE: only if there
    is nothing, RENAME_EXCHANGE: which moves the other way). May block.

    :raises OSError: what rename(2) says.
    """
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise err(EINVAL)
    if fdvp.v_mount is not tdvp.v_mount:
        raise err(EXDEV)
    fvp = fdvp.lookup(fname)
    if fvp is None:
        raise err(ENOENT)
    tvp = tdvp.lookup(tname)
    exchange = flags == RENAME_EXCHANGE
    if tvp is None and (exchange or tdvp.v_mount.mnt_fixed):
        raise err(ENOENT)
    if tvp is not None and flags == RENAME_NOREPLACE:
        raise err(EEXIST)
    if _is_ancestor(fvp, tdvp):
        raise err(EINVAL)
    if tvp is not None and _is_ancestor(tvp, fdvp):
        raise err(EINVAL if exchange else ENOTEMPTY)
    # In procfs one name gives another vnode each time.
    if fvp is tvp or (fname == tname and fdvp.vop_fileid() == tdvp.vop_fileid()):
        return
    _may_rename(fdvp, fname, fvp, tdvp, tname, tvp, exchange, cred)
    fdvp.vop_rename(fname, fvp, tdvp, tname, tvp, flags)
    if tvp is not None and exchange:
        _exchanged(fdvp, fname, fvp, tdvp, tname, tvp)
    else:
        _moved(fdvp, fname, fvp, tdvp, tname, tvp)


def _is_ancestor(vp: Vnode, dvp: Vnode) -> bool:
    # Is the directory vp dvp itself or above it?
    if vp.v_type != VDIR:
        return False
    at: Vnode | None = dvp
    while at is not None:
        if at is vp:
            return True
        at = at.v_parent
    return False


def _may_rename(fdvp: Vnode, fname: bytes, fvp: Vnode, tdvp: Vnode, tname: bytes,
                tvp: Vnode | None, exchange: bool, cred: Cred) -> None:  # fmt: skip
    isdir = fvp.v_type == VDIR
    may_remove(fdvp, fvp, cred, isdir)
    if tvp is None:
        may_write_dir(tdvp, cred)
    else:
        may_remove(tdvp, tvp, cred, tvp.v_type == VDIR if exchange else isdir)
        not_a_mountpoint(tdvp, tname, tvp)
    not_a_mountpoint(fdvp, fname, fvp)
    if tvp is not None and tvp.vop_data().v_mounts and not exchange:
        raise err(ENOTEMPTY)
    if fdvp is not tdvp:
        # The ".." of a directory that moves will be another one: it is written to.
        if isdir:
            fvp.access(VWRITE, cred)
        if exchange and tvp is not None and tvp.v_type == VDIR:
            tvp.access(VWRITE, cred)


def _exchanged(
    fdvp: Vnode, fname: bytes, fvp: Vnode, tdvp: Vnode, tname: bytes, tvp: Vnode
) -> None:
    fdvp.cache_enter(fname, tvp)
    tdvp.cache_enter(tname, fvp)
    _tell(fdvp, fname, tdvp, tname, fvp)
    fvp.self_event(IN_MOVE_SELF)
    _tell(tdvp, tname, fdvp, fname, tvp)
    tvp.self_event(IN_MOVE_SELF)


def _moved(
    fdvp: Vnode, fname: bytes, fvp: Vnode, tdvp: Vnode, tname: bytes, tvp: Vnode | None
) -> None:
    fdvp.cache_gone(fname, fvp)
    if tvp is not None:
        tdvp.cache_gone(tname, tvp)
    tdvp.cache_enter(tname, fvp)
    _tell(fdvp, fname, tdvp, tname, fvp)
    if tvp is not None:
        tvp.self_event(IN_ATTRIB)
    fvp.self_event(IN_MOVE_SELF)
    if tvp is not None:
        tvp.nameless()


def _tell(dvp: Vnode, name: bytes, tdvp: Vnode, tname: bytes, vp: Vnode) -> None:
    if dvp.v_watches or tdvp.v_watches:
        rename_notify(dvp, name, tdvp, tname, vp)
