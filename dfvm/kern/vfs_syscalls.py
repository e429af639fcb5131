"""System calls on names: opening, making, linking, renaming, removing, listing; and the directories
that a process is in.

Paths are copied in, resolved by kern/vfs/namei.py from the descriptor or directory the call names,
and handed to the vnode operations, which check rights. A vnode from namei has no reference: it is
used before anything here can block, and user memory is read before and written after.

Attributes are in vfs_attr.py, sizes and copying in vfs_storage.py, paths in kern_path.py.

Source: DragonFly sys/kern/vfs_syscalls.c for the structure; errors and their order are those of
Linux fs/{open,namei,readdir}.c.
"""

from __future__ import annotations

from struct import unpack
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import (
    pack_dirent,
    pack_dirent64,
    whole_dirents,
)  # fmt: skip
from dfvm.kern.kern_caps import CAP_SYS_CHROOT
from dfvm.kern.kern_descrip import (
    FASYNC,
    O_ACCMODE,
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_DIRECT,
    O_DIRECTORY,
    O_DSYNC,
    O_EXCL,
    O_LARGEFILE,
    O_NOATIME,
    O_NOCTTY,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_RDWR,
    O_SYNC,
    O_TMPFILE,
    O_TRUNC,
    O_WRONLY,
    File,
    file_mode,
    nofile,
)
from dfvm.kern.kern_errno import (
    E2BIG,
    EAGAIN,
    EINVAL,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    EPERM,
    ERANGE,
    err,
)  # fmt: skip
from dfvm.kern.kern_path import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_REMOVEDIR,
    AT_SYMLINK_FOLLOW,
    fd_vnode,
    path_nameiat,
    path_start,
    path_vnode,
    user_path,
)
from dfvm.kern.vfs.namei import (
    PATH_MAX,
    may_rename,
)  # fmt: skip
from dfvm.kern.vfs.resolve import (
    RESOLVE_ALL,
    RESOLVE_BENEATH,
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    resolve_at,
)  # fmt: skip
from dfvm.kern.vfs.seals import F_SEAL_EXEC, F_SEAL_SEAL
from dfvm.kern.vfs.vfs_notify import IN_OPEN
from dfvm.kern.vfs.vfs_vnops import vn_open
from dfvm.kern.vfs.vnode import vn_fullpath
from dfvm.kern.vfs.vnode_param import (
    FREAD,
    FWRITE,
    IFTOVT,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    S_IFMT,
    VDIR,
    VEXEC,
    VFIFO,
    VLNK,
    VREG,
    VSEALABLE,
    VUNLINKED,
)
from dfvm.kern.vnode_file import VnodeFile, getdvnode
from dfvm.vm.copyio import UIO_READ, Uio, copyin, copyinstr, copyout, uiomove

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.vfs.vnode import Vnode

_VALID_OPEN: Final = (
    O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_APPEND | O_NONBLOCK | O_SYNC | O_DSYNC
    | FASYNC | O_DIRECT | O_LARGEFILE | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC | O_PATH
    | O_TMPFILE
)  # fmt: skip
_TMPFILE_BIT: Final = O_TMPFILE & ~O_DIRECTORY
_SYNC_BIT: Final = O_SYNC & ~O_DSYNC
_PATH_FLAGS: Final = O_DIRECTORY | O_NOFOLLOW | O_PATH | O_CLOEXEC
_NOT_KEPT: Final = O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC

_OPEN_HOW: Final = 24  # sizeof (struct open_how)
_PAGE: Final = 4096

_MFD_CLOEXEC: Final = 1
_MFD_ALLOW_SEALING: Final = 2
_MFD_NOEXEC_SEAL: Final = 8
_MFD_EXEC: Final = 16
_MFD_NAME_MAX: Final = 249


# -- open ---------------------------------------------------------------------------------------


def file_open(lwp: Lwp, start: Vnode, path: bytes, flags: int, mode: int) -> File:
    """An open file on `path`; `flags` are checked and `mode` has the umask applied. May block."""
    p = lwp.lwp_proc
    fdp = p.p_fd
    vp, other = vn_open(p.p_fs.fs_rdir, start, path, flags, mode, p.p_ucred)
    kept = flags & ~_NOT_KEPT
    if other is not None:
        assert isinstance(other, File)
        other.f_flag = kept
        other.f_mode = file_mode(kept)
        other.fo_opened(lwp, flags)
        return other
    try:
        if kept & O_DIRECT and not flags & O_PATH and vp.v_type != VREG:
            raise err(EINVAL)
        if vp.v_type == VFIFO and not flags & O_PATH:
            from dfvm.kern.sys_pipe import fifo_open

            fp = fifo_open(lwp, fdp.fd_table, vp, kept)
            vp.event(IN_OPEN)
            return fp
        kind = None if flags & O_PATH else vp.vop_fileclass()
        return (kind or VnodeFile)(fdp.fd_table, kept, vp)
    except OSError:
        if flags & O_PATH:
            vp.vrele()
        else:
            vp.close(file_mode(kept))
        raise


def _open_flags(flags: int, mode: int, p: Proc) -> tuple[int, int]:
    """Flags and mode as the file system sees them.

    :raises OSError: EINVAL
    """
    flags &= _VALID_OPEN
    if flags & O_PATH:
        return flags & _PATH_FLAGS, 0
    flags |= O_LARGEFILE
    if flags & _TMPFILE_BIT:
        if flags & O_TMPFILE != O_TMPFILE or flags & O_CREAT or not flags & O_ACCMODE:
            raise err(EINVAL)
    elif flags & O_CREAT and flags & O_DIRECTORY:
        raise err(EINVAL)
    if flags & _SYNC_BIT:
        flags |= O_DSYNC
    return flags, mode & 0o7777 & ~p.p_fs.fs_cmask


def sys_openat(lwp: Lwp, dirfd: int, upath: int, flags: int, mode: int) -> int:
    """openat(2)"""
    return _openat(lwp, dirfd, upath, flags, mode, 0)


def _openat(lwp: Lwp, dirfd: int, upath: int, flags: int, mode: int, resolve: int) -> int:
    p = lwp.lwp_proc
    cloexec = bool(flags & O_CLOEXEC)
    flags, mode = _open_flags(u32(flags), mode, p)
    path = user_path(lwp, upath)
    if not path:  # before a number is looked for
        raise err(ENOENT)
    fdp = p.p_fd
    fd = fdp.fdalloc(0, nofile(p))
    try:
        start = path_start(p, dirfd, path)
        if resolve:
            follow = not flags & (O_NOFOLLOW | O_EXCL)
            if path[:1] == b"/" and resolve & RESOLVE_IN_ROOT and s32(dirfd) != AT_FDCWD:
                start = getdvnode(p.p_fd.fget_path(dirfd))
            start, path = resolve_at(p.p_fs.fs_rdir, start, path, p.p_ucred, resolve, follow)
        fp = file_open(lwp, start, path, flags, mode)
    except OSError:
        fdp.fdrelease(fd)
        raise
    fdp.fdset(fd, fp, cloexec)
    return fd


def sys_openat2(lwp: Lwp, dirfd: int, upath: int, uhow: int, size: int) -> int:
    """openat2(2)"""
    if size < _OPEN_HOW:
        raise err(EINVAL)
    if size > _PAGE:
        raise err(E2BIG)
    how = copyin(lwp.lwp_proc.p_vmspace, uhow, size)
    if any(how[_OPEN_HOW:]):
        raise err(E2BIG)
    flags, mode, resolve = unpack("<QQQ", how[:_OPEN_HOW])
    if resolve & ~RESOLVE_ALL or flags & ~_VALID_OPEN or mode & ~0o7777:
        raise err(EINVAL)
    if resolve & RESOLVE_BENEATH and resolve & RESOLVE_IN_ROOT:
        raise err(EINVAL)
    if mode and not flags & (O_CREAT | _TMPFILE_BIT):
        raise err(EINVAL)
    if flags & O_PATH and flags & ~_PATH_FLAGS:
        raise err(EINVAL)
    if resolve & RESOLVE_CACHED and flags & (O_TRUNC | O_CREAT | _TMPFILE_BIT):
        raise err(EAGAIN)
    return _openat(lwp, dirfd, upath, flags, mode, resolve)


def sys_open(lwp: Lwp, upath: int, flags: int, mode: int) -> int:
    """open(2)"""
    return sys_openat(lwp, AT_FDCWD, upath, flags, mode)


def sys_creat(lwp: Lwp, upath: int, mode: int) -> int:
    """creat(2)"""
    return sys_openat(lwp, AT_FDCWD, upath, O_CREAT | O_WRONLY | O_TRUNC, mode)


def sys_memfd_create(lwp: Lwp, uname: int, flags: int) -> int:
    """memfd_create(2)"""
    flags = u32(flags)
    if flags & ~(_MFD_CLOEXEC | _MFD_ALLOW_SEALING | _MFD_NOEXEC_SEAL | _MFD_EXEC):
        raise err(EINVAL)
    if flags & _MFD_EXEC and flags & _MFD_NOEXEC_SEAL:
        raise err(EINVAL)
    p = lwp.lwp_proc
    name = copyinstr(p.p_vmspace, uname, PATH_MAX)
    if len(name) > _MFD_NAME_MAX:
        raise err(EINVAL)
    fdp = p.p_fd
    fd = fdp.fdalloc(0, nofile(p))
    try:
        dvp = p.kernel.vfs.memory_root()
        vp = dvp.tmpfile(0o666 if flags & _MFD_NOEXEC_SEAL else 0o777, p.p_ucred)
        vp.v_name = b"/memfd:" + name
        vp.v_flag |= VSEALABLE
        if flags & _MFD_NOEXEC_SEAL:
            vp.v_seals = F_SEAL_EXEC
        elif not flags & _MFD_ALLOW_SEALING:
            vp.v_seals = F_SEAL_SEAL
        vp.open(FREAD | FWRITE, p.p_ucred)
        try:
            fp = VnodeFile(fdp.fd_table, O_RDWR | O_LARGEFILE, vp)
        except OSError:
            vp.close(FREAD | FWRITE)
            raise
    except OSError:
        fdp.fdrelease(fd)
        raise
    fdp.fdset(fd, fp, bool(flags & _MFD_CLOEXEC))
    return fd


# -- directories as a process's place -----------------------------------------------------------


def _may_enter(lwp: Lwp, vp: Vnode) -> None:
    if vp.v_type != VDIR:
        raise err(ENOTDIR)
    vp.access(VEXEC, lwp.lwp_proc.p_ucred)


def sys_chdir(lwp: Lwp, upath: int) -> int:
    """chdir(2)"""
    vp = path_vnode(lwp, AT_FDCWD, user_path(lwp, upath))
    _may_enter(lwp, vp)
    lwp.lwp_proc.p_fs.set_cdir(vp)
    return 0


def sys_fchdir(lwp: Lwp, fd: int) -> int:
    """fchdir(2)"""
    vp = getdvnode(lwp.lwp_proc.p_fd.fget_path(fd))
    _may_enter(lwp, vp)
    lwp.lwp_proc.p_fs.set_cdir(vp)
    return 0


def sys_chroot(lwp: Lwp, upath: int) -> int:
    """chroot(2)"""
    vp = path_vnode(lwp, AT_FDCWD, user_path(lwp, upath))
    _may_enter(lwp, vp)
    if not lwp.lwp_proc.p_ucred.cr_cap_e & CAP_SYS_CHROOT:
        raise err(EPERM)
    lwp.lwp_proc.p_fs.set_rdir(vp)
    return 0


def sys_getcwd(lwp: Lwp, ubuf: int, size: int) -> int:
    """getcwd(2); returns the length with the NUL"""
    fs = lwp.lwp_proc.p_fs
    vp = fs.fs_cdir
    if vp.v_flag & VUNLINKED:
        raise err(ENOENT)
    path = vn_fullpath(vp, fs.fs_rdir) + b"\0"
    if len(path) > PATH_MAX:
        raise err(ENAMETOOLONG)
    if len(path) > size:
        raise err(ERANGE)
    copyout(lwp.lwp_proc.p_vmspace, path, ubuf)
    return len(path)


def sys_umask(lwp: Lwp, mask: int) -> int:
    """umask(2)"""
    fs = lwp.lwp_proc.p_fs
    old = fs.fs_cmask
    fs.fs_cmask = mask & 0o777
    return old


# -- names --------------------------------------------------------------------------------------


def sys_mkdirat(lwp: Lwp, dirfd: int, upath: int, mode: int) -> int:
    """mkdirat(2)"""
    p = lwp.lwp_proc
    nd = path_nameiat(lwp, dirfd, user_path(lwp, upath))
    nd.may_create(True)
    nd.ni_dvp.mkdir(nd.ni_name, mode & 0o1777 & ~p.p_fs.fs_cmask, p.p_ucred)
    return 0


def sys_mkdir(lwp: Lwp, upath: int, mode: int) -> int:
    """mkdir(2)"""
    return sys_mkdirat(lwp, AT_FDCWD, upath, mode)


def sys_mknodat(lwp: Lwp, dirfd: int, upath: int, mode: int, dev: int) -> int:
    """mknodat(2)"""
    p = lwp.lwp_proc
    fmt = mode & S_IFMT
    vtype = VREG if fmt == 0 else IFTOVT.get(fmt, 0)
    if vtype == VDIR:
        raise err(EPERM)
    if vtype in (0, VLNK):
        raise err(EINVAL)
    nd = path_nameiat(lwp, dirfd, user_path(lwp, upath))
    nd.may_create(False)
    mode &= 0o7777 & ~p.p_fs.fs_cmask
    nd.ni_dvp.mknod(nd.ni_name, vtype, mode, u32(dev), p.p_ucred)
    return 0


def sys_mknod(lwp: Lwp, upath: int, mode: int, dev: int) -> int:
    """mknod(2)"""
    return sys_mknodat(lwp, AT_FDCWD, upath, mode, dev)


def sys_symlinkat(lwp: Lwp, utarget: int, dirfd: int, upath: int) -> int:
    """symlinkat(2)"""
    target = user_path(lwp, utarget)
    if not target:
        raise err(ENOENT)
    nd = path_nameiat(lwp, dirfd, user_path(lwp, upath))
    nd.may_create(False)
    nd.ni_dvp.symlink(nd.ni_name, target, lwp.lwp_proc.p_ucred)
    return 0


def sys_symlink(lwp: Lwp, utarget: int, upath: int) -> int:
    """symlink(2)"""
    return sys_symlinkat(lwp, utarget, AT_FDCWD, upath)


def sys_linkat(lwp: Lwp, olddirfd: int, uold: int, newdirfd: int, unew: int, flags: int) -> int:
    """linkat(2)"""
    flags = u32(flags)
    if flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH):
        raise err(EINVAL)
    old, new = user_path(lwp, uold), user_path(lwp, unew)
    vp: Vnode | File
    if not old and flags & AT_EMPTY_PATH:
        vp = fd_vnode(lwp, olddirfd)
        if isinstance(vp, File):
            raise err(EPERM)
    else:
        vp = path_vnode(lwp, olddirfd, old, bool(flags & AT_SYMLINK_FOLLOW))
    nd = path_nameiat(lwp, newdirfd, new)
    nd.may_create(False)
    nd.ni_dvp.link(nd.ni_name, vp, lwp.lwp_proc.p_ucred)
    return 0


def sys_link(lwp: Lwp, uold: int, unew: int) -> int:
    """link(2)"""
    return sys_linkat(lwp, AT_FDCWD, uold, AT_FDCWD, unew, 0)


def sys_unlinkat(lwp: Lwp, dirfd: int, upath: int, flags: int) -> int:
    """unlinkat(2)"""
    flags = u32(flags)
    if flags & ~AT_REMOVEDIR:
        raise err(EINVAL)
    nd = path_nameiat(lwp, dirfd, user_path(lwp, upath))
    cred = lwp.lwp_proc.p_ucred
    if flags:
        nd.may_rmdir()
        nd.ni_dvp.rmdir(nd.ni_name, cred)
    else:
        nd.may_unlink()
        nd.ni_dvp.unlink(nd.ni_name, cred)
    return 0


def sys_unlink(lwp: Lwp, upath: int) -> int:
    """unlink(2)"""
    return sys_unlinkat(lwp, AT_FDCWD, upath, 0)


def sys_rmdir(lwp: Lwp, upath: int) -> int:
    """rmdir(2)"""
    return sys_unlinkat(lwp, AT_FDCWD, upath, AT_REMOVEDIR)


def sys_renameat2(lwp: Lwp, olddirfd: int, uold: int, newdirfd: int, unew: int, flags: int) -> int:
    """renameat2(2)"""
    flags = u32(flags)
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise err(EINVAL)
    old_path, new_path = user_path(lwp, uold), user_path(lwp, unew)
    old = path_nameiat(lwp, olddirfd, old_path)
    new = path_nameiat(lwp, newdirfd, new_path)
    may_rename(old, new, flags)
    from dfvm.kern.vfs.vfs_rename import vn_rename  # which not every program needs

    vn_rename(old.ni_dvp, old.ni_name, new.ni_dvp, new.ni_name, flags, lwp.lwp_proc.p_ucred)
    return 0


def sys_renameat(lwp: Lwp, olddirfd: int, uold: int, newdirfd: int, unew: int) -> int:
    """renameat(2)"""
    return sys_renameat2(lwp, olddirfd, uold, newdirfd, unew, 0)


def sys_rename(lwp: Lwp, uold: int, unew: int) -> int:
    """rename(2)"""
    return sys_renameat2(lwp, AT_FDCWD, uold, AT_FDCWD, unew, 0)


def sys_readlinkat(lwp: Lwp, dirfd: int, upath: int, ubuf: int, size: int) -> int:
    """readlinkat(2)"""
    size = s32(size)
    if size <= 0:
        raise err(EINVAL)
    path = user_path(lwp, upath)
    if path:
        vp = path_vnode(lwp, dirfd, path, False)
        if vp.v_type != VLNK:
            raise err(EINVAL)
    else:
        found = fd_vnode(lwp, dirfd)
        if isinstance(found, File) or found.v_type != VLNK:
            raise err(ENOENT)
        vp = found
    target = vp.readlink()[:size]
    copyout(lwp.lwp_proc.p_vmspace, target, ubuf)
    return len(target)


def sys_readlink(lwp: Lwp, upath: int, ubuf: int, size: int) -> int:
    """readlink(2)"""
    return sys_readlinkat(lwp, AT_FDCWD, upath, ubuf, size)


def _getdents(
    lwp: Lwp, fd: int, ubuf: int, size: int, pack_one: Callable[[bytes, int, int, int], bytes]
) -> int:
    fp = lwp.lwp_proc.p_fd.fget(fd)
    keep = fp.f_offset
    records = fp.fo_readdir(u32(size), pack_one)
    uio = Uio(lwp.lwp_proc.p_vmspace, [(ubuf, len(records))], UIO_READ)
    try:
        uiomove(records, uio)
    except OSError:
        # The entries that arrived whole are the result; the next call begins behind them.
        whole, cookie = whole_dirents(records, len(records) - uio.uio_resid)
        fp.f_offset = cookie if whole else keep
        if not whole:
            raise
        return whole
    return len(records)


def sys_getdents64(lwp: Lwp, fd: int, ubuf: int, size: int) -> int:
    """getdents64(2)"""
    return _getdents(lwp, fd, ubuf, size, pack_dirent64)


def sys_getdents(lwp: Lwp, fd: int, ubuf: int, size: int) -> int:
    """getdents(2), the older form"""
    return _getdents(lwp, fd, ubuf, size, pack_dirent)
