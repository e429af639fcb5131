"""System calls on names and on the files behind them.

Paths are copied in, resolved by kern/vfs/namei.py from the descriptor or directory the call names,
and handed to the vnode operations, which check rights. A vnode from namei has no reference: it is
used before anything here can block, and user memory is read before and written after.

Source: DragonFly sys/kern/vfs_syscalls.c for the structure; errors and their order are those of
Linux fs/{open,namei,stat,read_write,utimes,statfs,sync}.c.
"""

from __future__ import annotations

from struct import unpack
from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import id_or_none, s32, s64, u32
from dfvm.kern.abi.linux.linux_struct import (
    NS,
    STATX__RESERVED,
    pack_dirent,
    pack_dirent64,
    pack_stat,
    pack_statfs,
    pack_statx,
)  # fmt: skip
from dfvm.kern.kern_caps import CAP_SYS_CHROOT
from dfvm.kern.kern_descrip import (
    FASYNC,
    FREAD,
    FWRITE,
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
    signal_self,
)  # fmt: skip
from dfvm.kern.kern_errno import (
    E2BIG,
    EAGAIN,
    EBADF,
    EFBIG,
    EINVAL,
    EIO,
    ENAMETOOLONG,
    ENODEV,
    ENOENT,
    ENOTDIR,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    ERANGE,
    ESPIPE,
    ETXTBSY,
    EXDEV,
    err,
)  # fmt: skip
from dfvm.kern.vfs.namei import (
    NAMEI_FOLLOW,
    PATH_MAX,
    Nameidata,
    may_rename,
    namei,
    nameiat,
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
from dfvm.kern.vfs.vnode import (
    IFTOVT,
    IN_ACCESS,
    IN_MODIFY,
    OFF_MAX,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    S_IFMT,
    VCHR,
    VDIR,
    VEXEC,
    VFIFO,
    VLNK,
    VREG,
    VSEALABLE,
    VUNLINKED,
    vn_fullpath,
)  # fmt: skip
from dfvm.kern.vnode_file import RLIMIT_FSIZE, VnodeFile, check_fsize, getdvnode, getvnode
from dfvm.vm.copyio import UIO_READ, UIO_WRITE, Uio, copyin, copyinstr, copyout

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp, Proc, Ucred
    from dfvm.kern.vfs.vnode import Vattr, Vnode

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EACCESS: Final = 0x200
AT_REMOVEDIR: Final = 0x200
AT_SYMLINK_FOLLOW: Final = 0x400
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_STATX_SYNC_TYPE: Final = 0x6000

_VALID_OPEN: Final = (
    O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_APPEND | O_NONBLOCK | O_SYNC | O_DSYNC
    | FASYNC | O_DIRECT | O_LARGEFILE | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC | O_PATH
    | O_TMPFILE
)  # fmt: skip
_TMPFILE_BIT: Final = O_TMPFILE & ~O_DIRECTORY
_SYNC_BIT: Final = O_SYNC & ~O_DSYNC
_PATH_FLAGS: Final = O_DIRECTORY | O_NOFOLLOW | O_PATH | O_CLOEXEC
_NOT_KEPT: Final = O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC

_NO_ID: Final = 0xFFFF_FFFF

_UTIME_NOW: Final = 0x3FFFFFFF
_UTIME_OMIT: Final = 0x3FFFFFFE

_OPEN_HOW: Final = 24  # sizeof (struct open_how)
_PAGE: Final = 4096

_COPY_CHUNK: Final = 1 << 16  # bytes that sendfile and copy_file_range move at a time
_MAX_COUNT: Final = 0x7FFF_F000
_U64: Final = (1 << 64) - 1

_FALLOC_KEEP_SIZE: Final = 1
_FALLOC_PUNCH_HOLE: Final = 2

_MFD_CLOEXEC: Final = 1
_MFD_ALLOW_SEALING: Final = 2
_MFD_NOEXEC_SEAL: Final = 8
_MFD_EXEC: Final = 16
_MFD_NAME_MAX: Final = 249


# -- finding files ------------------------------------------------------------------------------


def _path(lwp: Lwp, upath: int) -> bytes:
    """The user's path.

    :raises OSError: EFAULT, ENAMETOOLONG
    """
    return copyinstr(lwp.lwp_proc.p_vmspace, upath, PATH_MAX)


def _start(p: Proc, dirfd: int, path: bytes) -> Vnode:
    """Where `path` begins.

    :raises OSError: ENOENT for an empty path, before EBADF and ENOTDIR
    """
    if not path:
        raise err(ENOENT)
    if s32(dirfd) == AT_FDCWD or path[:1] == b"/":
        return p.p_fs.fs_cdir
    return getdvnode(p.p_fd.fget_path(dirfd))


def _namei(lwp: Lwp, dirfd: int, path: bytes, follow: bool = True) -> Vnode:
    p = lwp.lwp_proc
    start = _start(p, dirfd, path)
    return namei(p.p_fs.fs_rdir, start, path, p.p_ucred, NAMEI_FOLLOW if follow else 0)


def _nameiat(lwp: Lwp, dirfd: int, path: bytes) -> Nameidata:
    p = lwp.lwp_proc
    return nameiat(p.p_fs.fs_rdir, _start(p, dirfd, path), path, p.p_ucred)


def _fd_vnode(lwp: Lwp, dirfd: int) -> Vnode | File:
    """What an empty path with AT_EMPTY_PATH means."""
    p = lwp.lwp_proc
    if s32(dirfd) == AT_FDCWD:
        return p.p_fs.fs_cdir
    fp = p.p_fd.fget_path(dirfd)
    return fp if fp.f_vnode is None else fp.f_vnode


def _target(lwp: Lwp, dirfd: int, upath: int, flags: int) -> Vnode | File:
    """What a call of the ...at family is about, by path or, with AT_EMPTY_PATH, by descriptor; a
    File when that has no vnode."""
    path = _path(lwp, upath)
    if not path and flags & AT_EMPTY_PATH:
        return _fd_vnode(lwp, dirfd)
    return _namei(lwp, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW)


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
        return VnodeFile(fdp.fd_table, kept, vp)
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
    path = _path(lwp, upath)
    if not path:  # before a number is looked for
        raise err(ENOENT)
    fdp = p.p_fd
    fd = fdp.fdalloc(0, nofile(p))
    try:
        start = _start(p, dirfd, path)
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
        dvp = memory_root(p.p_fs.fs_rdir)
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


def memory_root(vp: Vnode) -> Vnode:
    """The root directory of a file system in memory, for files that never have a name.

    :raises OSError: ENODEV when none is mounted
    """
    for mount in vp.v_mount.mnt_vfs.mounts:
        if mount.mnt_fstype == "tmpfs":
            return mount.mnt_root
    raise err(ENODEV)


# -- directories as a process's place -----------------------------------------------------------


def _may_enter(lwp: Lwp, vp: Vnode) -> None:
    if vp.v_type != VDIR:
        raise err(ENOTDIR)
    vp.access(VEXEC, lwp.lwp_proc.p_ucred)


def sys_chdir(lwp: Lwp, upath: int) -> int:
    """chdir(2)"""
    vp = _namei(lwp, AT_FDCWD, _path(lwp, upath))
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
    vp = _namei(lwp, AT_FDCWD, _path(lwp, upath))
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
    nd = _nameiat(lwp, dirfd, _path(lwp, upath))
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
    nd = _nameiat(lwp, dirfd, _path(lwp, upath))
    nd.may_create(False)
    mode &= 0o7777 & ~p.p_fs.fs_cmask
    nd.ni_dvp.mknod(nd.ni_name, vtype, mode, u32(dev), p.p_ucred)
    return 0


def sys_mknod(lwp: Lwp, upath: int, mode: int, dev: int) -> int:
    """mknod(2)"""
    return sys_mknodat(lwp, AT_FDCWD, upath, mode, dev)


def sys_symlinkat(lwp: Lwp, utarget: int, dirfd: int, upath: int) -> int:
    """symlinkat(2)"""
    target = _path(lwp, utarget)
    if not target:
        raise err(ENOENT)
    nd = _nameiat(lwp, dirfd, _path(lwp, upath))
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
    old, new = _path(lwp, uold), _path(lwp, unew)
    vp: Vnode | File
    if not old and flags & AT_EMPTY_PATH:
        vp = _fd_vnode(lwp, olddirfd)
        if isinstance(vp, File):
            raise err(EPERM)
    else:
        vp = _namei(lwp, olddirfd, old, bool(flags & AT_SYMLINK_FOLLOW))
    nd = _nameiat(lwp, newdirfd, new)
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
    nd = _nameiat(lwp, dirfd, _path(lwp, upath))
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
    old_path, new_path = _path(lwp, uold), _path(lwp, unew)
    old = _nameiat(lwp, olddirfd, old_path)
    new = _nameiat(lwp, newdirfd, new_path)
    may_rename(old, new, flags)
    old.ni_dvp.rename(old.ni_name, new.ni_dvp, new.ni_name, flags, lwp.lwp_proc.p_ucred)
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
    path = _path(lwp, upath)
    if path:
        vp = _namei(lwp, dirfd, path, False)
        if vp.v_type != VLNK:
            raise err(EINVAL)
    else:
        found = _fd_vnode(lwp, dirfd)
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
    try:
        copyout(lwp.lwp_proc.p_vmspace, records, ubuf)
    except OSError:
        fp.f_offset = keep
        raise
    return len(records)


def sys_getdents64(lwp: Lwp, fd: int, ubuf: int, size: int) -> int:
    """getdents64(2)"""
    return _getdents(lwp, fd, ubuf, size, pack_dirent64)


def sys_getdents(lwp: Lwp, fd: int, ubuf: int, size: int) -> int:
    """getdents(2), the older form"""
    return _getdents(lwp, fd, ubuf, size, pack_dirent)


# -- attributes ---------------------------------------------------------------------------------


def _attr(lwp: Lwp, dirfd: int, upath: int, flags: int) -> Vattr:
    """Attributes by path, or with AT_EMPTY_PATH of a descriptor. A null path means an empty one
    then, as in Linux since 6.11."""
    path = b"" if not upath and flags & AT_EMPTY_PATH else _path(lwp, upath)
    if path or not flags & AT_EMPTY_PATH:
        return _namei(lwp, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW).getattr()
    p = lwp.lwp_proc
    if s32(dirfd) == AT_FDCWD:
        return p.p_fs.fs_cdir.getattr()
    return p.p_fd.fget_path(dirfd).fo_stat(lwp)


def sys_newfstatat(lwp: Lwp, dirfd: int, upath: int, ust: int, flags: int) -> int:
    """fstatat(2)"""
    flags = u32(flags)
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_SYNC_TYPE):
        raise err(EINVAL)
    copyout(lwp.lwp_proc.p_vmspace, pack_stat(_attr(lwp, dirfd, upath, flags)), ust)
    return 0


def sys_stat(lwp: Lwp, upath: int, ust: int) -> int:
    """stat(2)"""
    return sys_newfstatat(lwp, AT_FDCWD, upath, ust, 0)


def sys_lstat(lwp: Lwp, upath: int, ust: int) -> int:
    """lstat(2)"""
    return sys_newfstatat(lwp, AT_FDCWD, upath, ust, AT_SYMLINK_NOFOLLOW)


def sys_fstat(lwp: Lwp, fd: int, ust: int) -> int:
    """fstat(2)"""
    va = lwp.lwp_proc.p_fd.fget_path(fd).fo_stat(lwp)
    copyout(lwp.lwp_proc.p_vmspace, pack_stat(va), ust)
    return 0


def sys_statx(lwp: Lwp, dirfd: int, upath: int, flags: int, mask: int, ustx: int) -> int:
    """statx(2)"""
    flags = u32(flags)
    if u32(mask) & STATX__RESERVED or flags & AT_STATX_SYNC_TYPE == AT_STATX_SYNC_TYPE:
        raise err(EINVAL)
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_SYNC_TYPE):
        raise err(EINVAL)
    copyout(lwp.lwp_proc.p_vmspace, pack_statx(_attr(lwp, dirfd, upath, flags)), ustx)
    return 0


def _real_cred(cred: Ucred) -> Ucred:
    """Whose rights access(2) asks about: the real ids'."""
    if cred.cr_ruid == cred.cr_fsuid and cred.cr_rgid == cred.cr_fsgid:
        return cred
    real = cred.copy()
    real.cr_fsuid, real.cr_fsgid = cred.cr_ruid, cred.cr_rgid
    return real


def sys_faccessat2(lwp: Lwp, dirfd: int, upath: int, mode: int, flags: int) -> int:
    """faccessat2(2)"""
    mode, flags = u32(mode), u32(flags)
    if mode & ~7 or flags & ~(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise err(EINVAL)
    p = lwp.lwp_proc
    cred = p.p_ucred if flags & AT_EACCESS else _real_cred(p.p_ucred)
    path = _path(lwp, upath)
    if not path and flags & AT_EMPTY_PATH:
        found = _fd_vnode(lwp, dirfd)
        if isinstance(found, File):
            return 0
        vp = found
    else:
        follow = 0 if flags & AT_SYMLINK_NOFOLLOW else NAMEI_FOLLOW
        vp = namei(p.p_fs.fs_rdir, _start(p, dirfd, path), path, cred, follow)
    if mode:
        try:
            vp.access(mode, cred)  # R_OK, W_OK, X_OK are VREAD, VWRITE, VEXEC
        except OSError as exc:
            if exc.errno != ETXTBSY:  # asking is not writing
                raise
    return 0


def sys_faccessat(lwp: Lwp, dirfd: int, upath: int, mode: int) -> int:
    """faccessat(2); the system call has no flags"""
    return sys_faccessat2(lwp, dirfd, upath, mode, 0)


def sys_access(lwp: Lwp, upath: int, mode: int) -> int:
    """access(2)"""
    return sys_faccessat2(lwp, AT_FDCWD, upath, mode, 0)


def sys_fchmodat2(lwp: Lwp, dirfd: int, upath: int, mode: int, flags: int) -> int:
    """fchmodat2(2)"""
    flags = u32(flags)
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise err(EINVAL)
    target = _target(lwp, dirfd, upath, flags)
    chmod = target.fo_chmod if isinstance(target, File) else target.chmod
    chmod(mode & 0o7777, lwp.lwp_proc.p_ucred)
    return 0


def sys_fchmodat(lwp: Lwp, dirfd: int, upath: int, mode: int) -> int:
    """fchmodat(2); the system call has no flags"""
    return sys_fchmodat2(lwp, dirfd, upath, mode, 0)


def sys_chmod(lwp: Lwp, upath: int, mode: int) -> int:
    """chmod(2)"""
    return sys_fchmodat2(lwp, AT_FDCWD, upath, mode, 0)


def sys_fchmod(lwp: Lwp, fd: int, mode: int) -> int:
    """fchmod(2)"""
    p = lwp.lwp_proc
    p.p_fd.fget(fd).fo_chmod(mode & 0o7777, p.p_ucred)
    return 0


def sys_fchownat(lwp: Lwp, dirfd: int, upath: int, uid: int, gid: int, flags: int) -> int:
    """fchownat(2)"""
    flags = u32(flags)
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise err(EINVAL)
    target = _target(lwp, dirfd, upath, flags)
    chown = target.fo_chown if isinstance(target, File) else target.chown
    chown(id_or_none(uid), id_or_none(gid), lwp.lwp_proc.p_ucred)
    return 0


def sys_chown(lwp: Lwp, upath: int, uid: int, gid: int) -> int:
    """chown(2)"""
    return sys_fchownat(lwp, AT_FDCWD, upath, uid, gid, 0)


def sys_lchown(lwp: Lwp, upath: int, uid: int, gid: int) -> int:
    """lchown(2)"""
    return sys_fchownat(lwp, AT_FDCWD, upath, uid, gid, AT_SYMLINK_NOFOLLOW)


def sys_fchown(lwp: Lwp, fd: int, uid: int, gid: int) -> int:
    """fchown(2)"""
    p = lwp.lwp_proc
    p.p_fd.fget(fd).fo_chown(id_or_none(uid), id_or_none(gid), p.p_ucred)
    return 0


def _utimes(
    lwp: Lwp, dirfd: int, upath: int, times: tuple[int, int, int, int] | None, flags: int
) -> int:
    """Set a file's times: seconds and ns (or UTIME_NOW, UTIME_OMIT) of access and modification;
    None: now. A null path means the descriptor itself."""
    p = lwp.lwp_proc
    now = time_ns()
    atime: int | None = now
    mtime: int | None = now
    explicit = False
    if times is not None:
        asec, ansec, msec, mnsec = times
        if ansec == _UTIME_OMIT and mnsec == _UTIME_OMIT:
            return 0
        explicit = not (ansec == _UTIME_NOW and mnsec == _UTIME_NOW)
        atime = _one_time(asec, ansec, now)
        mtime = _one_time(msec, mnsec, now)
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise err(EINVAL)
    if not upath and s32(dirfd) != AT_FDCWD:
        if flags:
            raise err(EINVAL)
        target: Vnode | File = p.p_fd.fget(dirfd)
    else:
        target = _target(lwp, dirfd, upath, flags)
    utimes = target.fo_utimes if isinstance(target, File) else target.utimes
    utimes(atime, mtime, p.p_ucred, explicit)
    return 0


def _one_time(sec: int, nsec: int, now: int) -> int | None:
    if nsec == _UTIME_OMIT:
        return None
    if nsec == _UTIME_NOW:
        return now
    if not 0 <= nsec < NS:
        raise err(EINVAL)
    return sec * NS + nsec


def sys_utimensat(lwp: Lwp, dirfd: int, upath: int, utimes: int, flags: int) -> int:
    """utimensat(2)"""
    times = unpack("<4q", copyin(lwp.lwp_proc.p_vmspace, utimes, 32)) if utimes else None
    return _utimes(lwp, dirfd, upath, times, u32(flags))


def sys_futimesat(lwp: Lwp, dirfd: int, upath: int, utimes: int) -> int:
    """futimesat(2)"""
    times = None
    if utimes:
        asec, ausec, msec, musec = unpack("<4q", copyin(lwp.lwp_proc.p_vmspace, utimes, 32))
        if not (0 <= ausec < 1_000_000 and 0 <= musec < 1_000_000):
            raise err(EINVAL)
        times = (asec, ausec * 1000, msec, musec * 1000)
    return _utimes(lwp, dirfd, upath, times, 0)


def sys_utimes(lwp: Lwp, upath: int, utimes: int) -> int:
    """utimes(2)"""
    return sys_futimesat(lwp, AT_FDCWD, upath, utimes)


def sys_utime(lwp: Lwp, upath: int, utimbuf: int) -> int:
    """utime(2)"""
    times = None
    if utimbuf:
        asec, msec = unpack("<2q", copyin(lwp.lwp_proc.p_vmspace, utimbuf, 16))
        times = (asec, 0, msec, 0)
    return _utimes(lwp, AT_FDCWD, upath, times, 0)


def sys_statfs(lwp: Lwp, upath: int, ubuf: int) -> int:
    """statfs(2)"""
    vp = _namei(lwp, AT_FDCWD, _path(lwp, upath))
    copyout(lwp.lwp_proc.p_vmspace, pack_statfs(vp.v_mount.statfs()), ubuf)
    return 0


def sys_fstatfs(lwp: Lwp, fd: int, ubuf: int) -> int:
    """fstatfs(2)"""
    fp = lwp.lwp_proc.p_fd.fget_path(fd)
    copyout(lwp.lwp_proc.p_vmspace, pack_statfs(fp.fo_statfs()), ubuf)
    return 0


# -- sizes and storage --------------------------------------------------------------------------


def _is_pipe(fp: File) -> bool:
    from dfvm.kern.sys_pipe import PipeFile

    return isinstance(fp, PipeFile)


def _may_grow(lwp: Lwp, vp: Vnode, length: int) -> None:
    """RLIMIT_FSIZE for a change of size.

    :raises OSError: EFBIG, with SIGXFSZ
    """
    if length > vp.v_filesize and length > lwp.lwp_proc.p_rlimit(RLIMIT_FSIZE):
        from dfvm.kern.kern_sig import SIGXFSZ

        signal_self(lwp, SIGXFSZ)
        raise err(EFBIG)


def sys_truncate(lwp: Lwp, upath: int, length: int) -> int:
    """truncate(2)"""
    length = s64(length)
    if length < 0:
        raise err(EINVAL)
    vp = _namei(lwp, AT_FDCWD, _path(lwp, upath))
    if vp.v_type == VREG:
        _may_grow(lwp, vp, length)
    vp.truncate(length, lwp.lwp_proc.p_ucred)
    return 0


def sys_ftruncate(lwp: Lwp, fd: int, length: int) -> int:
    """ftruncate(2)"""
    length = s64(length)
    if length < 0:
        raise err(EINVAL)
    fp = lwp.lwp_proc.p_fd.fget(fd)
    vp = fp.f_vnode
    if vp is None or vp.v_type != VREG or not fp.f_mode & FWRITE:
        raise err(EINVAL)
    _may_grow(lwp, vp, length)
    vp.setsize(length)
    return 0


def sys_fallocate(lwp: Lwp, fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2)"""
    mode, offset, length = u32(mode), s64(offset), s64(length)
    fp = lwp.lwp_proc.p_fd.fget(fd)
    if offset < 0 or length <= 0:
        raise err(EINVAL)
    if mode not in (0, _FALLOC_KEEP_SIZE, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE):
        raise err(EOPNOTSUPP)
    if not fp.f_mode & FWRITE:
        raise err(EBADF)
    if _is_pipe(fp):
        raise err(ESPIPE)
    vp = fp.f_vnode
    if vp is None or vp.v_type != VREG:
        raise err(ENODEV)
    if offset + length > OFF_MAX:
        raise err(EFBIG)
    if not mode & _FALLOC_KEEP_SIZE:
        _may_grow(lwp, vp, offset + length)
    vp.allocate(mode, offset, length)
    return 0


def sys_fsync(lwp: Lwp, fd: int) -> int:
    """fsync(2)"""
    vp = lwp.lwp_proc.p_fd.fget(fd).f_vnode
    if vp is None or vp.v_type not in (VREG, VDIR):
        raise err(EINVAL)
    vp.fsync()
    return 0


def sys_fdatasync(lwp: Lwp, fd: int) -> int:
    """fdatasync(2)"""
    return sys_fsync(lwp, fd)


def sys_sync(lwp: Lwp) -> int:
    """sync(2)"""
    lwp.lwp_proc.p_fs.fs_rdir.v_mount.mnt_vfs.sync()
    return 0


def sys_syncfs(lwp: Lwp, fd: int) -> int:
    """syncfs(2)"""
    vp = lwp.lwp_proc.p_fd.fget(fd).f_vnode
    if vp is not None and vp.v_mount.sync():
        raise err(EIO)
    return 0


def sys_sync_file_range(lwp: Lwp, fd: int, offset: int, nbytes: int, flags: int) -> int:
    """sync_file_range(2): all of the file's data"""
    vp = lwp.lwp_proc.p_fd.fget(fd).f_vnode
    if u32(flags) & ~7 or s64(offset) < 0 or s64(nbytes) < 0:
        raise err(EINVAL)
    if vp is None or vp.v_type not in (VREG, VDIR, VLNK):
        raise err(ESPIPE)
    vp.fsync()
    return 0


def sys_fadvise64(lwp: Lwp, fd: int, offset: int, length: int, advice: int) -> int:
    """posix_fadvise(2): checked, and without effect, as the page cache keeps what it has"""
    if _is_pipe(lwp.lwp_proc.p_fd.fget(fd)):
        raise err(ESPIPE)
    if not 0 <= s32(advice) <= 5 or s64(length) < 0:
        raise err(EINVAL)
    return 0


def sys_readahead(lwp: Lwp, fd: int, offset: int, count: int) -> int:
    """readahead(2): reading is not slow enough to begin early"""
    fp = lwp.lwp_proc.p_fd.fget(fd)
    if not fp.f_mode & FREAD:
        raise err(EBADF)
    vp = fp.f_vnode
    if vp is None or vp.v_type != VREG:
        raise err(EINVAL)
    return 0


# -- copying inside the kernel ------------------------------------------------------------------


def user_off(lwp: Lwp, uoff: int) -> int | None:
    """The offset at `uoff`; None when it is null.

    :raises OSError: EFAULT
    """
    return s64(int.from_bytes(copyin(lwp.lwp_proc.p_vmspace, uoff, 8), "little")) if uoff else None


def _copy(lwp: Lwp, src: Vnode, src_off: int, count: int, put: Callable[[Uio, int], None]) -> int:
    """Copy `count` bytes, or as many as there are, from the regular file `src` at `src_off` to
    wherever put(uio, bytes done so far) puts them, until a signal comes. Returns how many were
    put; raises only when none were. May block."""
    td = lwp.lwp_thread
    buffer = memoryview(bytearray(min(count, _COPY_CHUNK)))
    done = 0
    while done < count:
        piece = buffer[: count - done]
        uio = Uio(None, [piece], UIO_READ)
        try:
            src.read(uio, src_off + done, 0)
            n = len(piece) - uio.uio_resid
            if not n:
                break
            uio = Uio(None, [piece[:n]], UIO_WRITE)
            put(uio, done)
        except OSError:
            if not done:
                raise
            break
        done += n - uio.uio_resid
        if uio.uio_resid or td.td_cursig():
            break
        td.td_sched.yield_()  # it may be gigabytes
    return done


def sys_sendfile(lwp: Lwp, out_fd: int, in_fd: int, uoff: int, count: int) -> int:
    """sendfile(2)"""
    p = lwp.lwp_proc
    off = user_off(lwp, uoff)
    ifp, ofp = p.p_fd.fget(in_fd), p.p_fd.fget(out_fd)
    if not ifp.f_mode & FREAD:
        raise err(EBADF)
    if off is not None and ifp.f_vnode is None:
        raise err(ESPIPE)
    if not ofp.f_mode & FWRITE:
        raise err(EBADF)
    vp = ifp.f_vnode
    if vp is None or vp.v_type not in (VREG, VCHR) or not ofp.f_splice or ofp.f_flag & O_APPEND:
        raise err(EINVAL)
    at = ifp.f_offset if off is None else off
    if at < 0 or s64(count) < 0:
        raise err(EINVAL)
    done = _copy(lwp, vp, at, min(count, _MAX_COUNT), lambda uio, _: ofp.fo_write(lwp, uio))
    vp.vop_accessed()
    if done:
        vp.event(IN_ACCESS)
    if off is None:
        ifp.f_offset = at + done
    else:
        copyout(p.p_vmspace, (at + done).to_bytes(8, "little"), uoff)
    return done


def sys_copy_file_range(
    lwp: Lwp, in_fd: int, uinoff: int, out_fd: int, uoutoff: int, count: int, flags: int
) -> int:
    """copy_file_range(2)"""
    p = lwp.lwp_proc
    ifp, ofp = p.p_fd.fget(in_fd), p.p_fd.fget(out_fd)
    in_off, out_off = user_off(lwp, uinoff), user_off(lwp, uoutoff)
    if u32(flags):
        raise err(EINVAL)
    ivp, ovp = getvnode(ifp), getvnode(ofp)
    if not ifp.f_mode & FREAD or not ofp.f_mode & FWRITE or ofp.f_flag & O_APPEND:
        raise err(EBADF)
    src = ifp.f_offset if in_off is None else in_off
    dst = ofp.f_offset if out_off is None else out_off
    if max(src & _U64, dst & _U64) + count > _U64:
        raise err(EOVERFLOW)
    if ivp.v_mount is not ovp.v_mount:
        raise err(EXDEV)
    if dst >= OFF_MAX:
        raise err(EFBIG)
    if src < 0 or dst < 0 or s64(count) < 0:
        raise err(EINVAL)
    count = max(min(count, _MAX_COUNT, ivp.v_filesize - src, OFF_MAX - dst), 0)
    if ivp is ovp and src < dst + count and dst < src + count:
        raise err(EINVAL)

    def put(uio: Uio, done: int) -> None:
        ovp.write(uio, dst + done, 0, check_fsize(lwp, dst + done))

    done = _copy(lwp, ivp, src, count, put)
    ivp.vop_accessed()
    if done:
        ivp.event(IN_ACCESS)
        ovp.event(IN_MODIFY)
    for fp, uoff, end in ((ifp, uinoff, src + done), (ofp, uoutoff, dst + done)):
        if uoff:
            copyout(p.p_vmspace, end.to_bytes(8, "little"), uoff)
        else:
            fp.f_offset = end
    return done
