"""From a path in user memory, and where that begins, to a vnode.

The path is copied in before anything is looked up: user memory may block, and a vnode from namei is
good only until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32
from dfvm.kern.kern_descrip import File
from dfvm.kern.kern_errno import ENOENT, err
from dfvm.kern.vfs.namei import NAMEI_FOLLOW, PATH_MAX, Nameidata, namei, nameiat
from dfvm.kern.vnode_file import getdvnode
from dfvm.vm.copyio import copyinstr

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.vfs.vnode import Vnode

# What the ...at family of calls understands.
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EACCESS: Final = 0x200
AT_REMOVEDIR: Final = 0x200
AT_SYMLINK_FOLLOW: Final = 0x400
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_STATX_SYNC_TYPE: Final = 0x6000


def user_path(lwp: Lwp, upath: int) -> bytes:
    """The user's path.

    :raises OSError: EFAULT, ENAMETOOLONG
    """
    return copyinstr(lwp.lwp_proc.p_vmspace, upath, PATH_MAX)


def path_start(p: Proc, dirfd: int, path: bytes) -> Vnode:
    """Where `path` begins.

    :raises OSError: ENOENT for an empty path, before EBADF and ENOTDIR
    """
    if not path:
        raise err(ENOENT)
    if s32(dirfd) == AT_FDCWD or path[:1] == b"/":
        return p.p_fs.fs_cdir
    return getdvnode(p.p_fd.fget_path(dirfd))


def path_vnode(lwp: Lwp, dirfd: int, path: bytes, follow: bool = True) -> Vnode:
    """The vnode that `path` names, without a reference."""
    p = lwp.lwp_proc
    start = path_start(p, dirfd, path)
    return namei(p.p_fs.fs_rdir, start, path, p.p_ucred, NAMEI_FOLLOW if follow else 0)


def path_nameiat(lwp: Lwp, dirfd: int, path: bytes) -> Nameidata:
    """The directory that `path` leads to and the last name in it, which need not exist."""
    p = lwp.lwp_proc
    return nameiat(p.p_fs.fs_rdir, path_start(p, dirfd, path), path, p.p_ucred)


def fd_vnode(lwp: Lwp, dirfd: int) -> Vnode | File:
    """What an empty path with AT_EMPTY_PATH means."""
    p = lwp.lwp_proc
    if s32(dirfd) == AT_FDCWD:
        return p.p_fs.fs_cdir
    fp = p.p_fd.fget_path(dirfd)
    return fp if fp.f_vnode is None else fp.f_vnode


def path_target(lwp: Lwp, dirfd: int, upath: int, flags: int) -> Vnode | File:
    """What a call of the ...at family is about, by path or, with AT_EMPTY_PATH, by descriptor; a
    File when that has no vnode."""
    path = user_path(lwp, upath)
    if not path and flags & AT_EMPTY_PATH:
        return fd_vnode(lwp, dirfd)
    return path_vnode(lwp, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW)
