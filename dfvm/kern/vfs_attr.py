"""System calls that ask for the attributes of files, and change them: stat, access, mode, owner,
times, and those of whole file systems.

Source: behaviour of Linux fs/{stat,open,utimes,statfs}.c.
"""

from __future__ import annotations

from struct import unpack
from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import id_or_none, s32, u32
from dfvm.kern.abi.linux.linux_struct import NS, STATX__RESERVED, pack_stat, pack_statfs, pack_statx
from dfvm.kern.kern_descrip import File
from dfvm.kern.kern_errno import EACCES, EINVAL, ETXTBSY, err
from dfvm.kern.kern_path import (
    AT_EACCESS,
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_STATX_SYNC_TYPE,
    AT_SYMLINK_NOFOLLOW,
    fd_vnode,
    path_start,
    path_target,
    path_vnode,
    user_path,
)
from dfvm.kern.vfs.mount import ST_NOEXEC
from dfvm.kern.vfs.namei import NAMEI_FOLLOW, namei
from dfvm.kern.vfs.vnode_param import VEXEC, VREG, VROOT
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp, Ucred
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Vattr

_UTIME_NOW: Final = 0x3FFFFFFF
_UTIME_OMIT: Final = 0x3FFFFFFE


def _target(lwp: Lwp, dirfd: int, upath: int, flags: int) -> Vnode | File:
    """What stat and its kin are about: by path, or with AT_EMPTY_PATH by descriptor. A null path
    means an empty one then, as in Linux since 6.11."""
    path = b"" if not upath and flags & AT_EMPTY_PATH else user_path(lwp, upath)
    if path or not flags & AT_EMPTY_PATH:
        return path_vnode(lwp, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW)
    return fd_vnode(lwp, dirfd)


def _attr(lwp: Lwp, dirfd: int, upath: int, flags: int) -> Vattr:
    target = _target(lwp, dirfd, upath, flags)
    return target.fo_stat(lwp) if isinstance(target, File) else target.getattr()


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
    target = _target(lwp, dirfd, upath, flags)
    if isinstance(target, File):
        stx = pack_statx(target.fo_stat(lwp), 0, False)
    else:
        root = bool(target.v_flag & VROOT)
        stx = pack_statx(target.getattr(), target.v_mount.mnt_id, root)
    copyout(lwp.lwp_proc.p_vmspace, stx, ustx)
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
    path = user_path(lwp, upath)
    if not path and flags & AT_EMPTY_PATH:
        found = fd_vnode(lwp, dirfd)
        if isinstance(found, File):
            return 0
        vp = found
    else:
        follow = 0 if flags & AT_SYMLINK_NOFOLLOW else NAMEI_FOLLOW
        vp = namei(p.p_fs.fs_rdir, path_start(p, dirfd, path), path, cred, follow)
    if mode:
        if mode & VEXEC and vp.v_type == VREG and vp.v_mount.mnt_flags & ST_NOEXEC:
            raise err(EACCES)
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
    target = path_target(lwp, dirfd, upath, flags)
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
    target = path_target(lwp, dirfd, upath, flags)
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
        target = path_target(lwp, dirfd, upath, flags)
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
    vp = path_vnode(lwp, AT_FDCWD, user_path(lwp, upath))
    copyout(lwp.lwp_proc.p_vmspace, pack_statfs(vp.v_mount.statfs()), ubuf)
    return 0


def sys_fstatfs(lwp: Lwp, fd: int, ubuf: int) -> int:
    """fstatfs(2)"""
    fp = lwp.lwp_proc.p_fd.fget_path(fd)
    copyout(lwp.lwp_proc.p_vmspace, pack_statfs(fp.fo_statfs()), ubuf)
    return 0
