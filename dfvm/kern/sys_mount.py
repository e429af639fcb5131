"""mount(2), umount2(2): the arguments, and who may. The work is in vfs/vfs_mount.py.

Nothing of the host's is mounted or unmounted: everything happens to the machine's own names. What a
view shows of a host directory may be changed if, and where, it may be changed in the directory
itself.

Source: behaviour of Linux fs/namespace.c (path_mount, do_umount).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.kern_caps import CAP_SYS_ADMIN
from dfvm.kern.kern_errno import EAGAIN, EBUSY, EINVAL, ENAMETOOLONG, ENODEV, ENOENT, EPERM, err
from dfvm.kern.kern_path import AT_FDCWD, path_vnode, user_path
from dfvm.kern.vfs.mount import (
    ST_NOATIME,
    ST_NODEV,
    ST_NODIRATIME,
    ST_NOEXEC,
    ST_NOSUID,
    ST_NOSYMFOLLOW,
    ST_RDONLY,
    ST_RELATIME,
    ST_SYNCHRONOUS,
)
from dfvm.kern.vfs.namei import PATH_MAX, nameiat
from dfvm.kern.vfs.vfs_mount import (
    FSTYPES,
    find_mountpoint,
    mount_bind,
    mount_busy,
    mount_expire,
    mount_move,
    mount_new,
    remount_fs,
    remount_mount,
    rooted,
    subtree,
    unmount,
)
from dfvm.vm.copyio import copyin, copyinstr
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.mount import Mount
    from dfvm.kern.vfs.vnode import Vnode

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_SYNCHRONOUS: Final = 0x10
MS_REMOUNT: Final = 0x20
MS_NOSYMFOLLOW: Final = 0x100
MS_NOATIME: Final = 0x400
MS_NODIRATIME: Final = 0x800
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_SILENT: Final = 0x8000
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_NOUSER: Final = 1 << 31
_MS_MGC_MSK: Final = 0xFFFF0000  # once a magic number stood there
_MS_MGC_VAL: Final = 0xC0ED0000
_MS_TYPE: Final = MS_UNBINDABLE | MS_PRIVATE | MS_SLAVE | MS_SHARED
_MS_ATIME: Final = MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
MNT_EXPIRE: Final = 4
UMOUNT_NOFOLLOW: Final = 8

_FLAGS: Final = (
    (MS_RDONLY, ST_RDONLY), (MS_NOSUID, ST_NOSUID), (MS_NODEV, ST_NODEV), (MS_NOEXEC, ST_NOEXEC),
    (MS_NOATIME, ST_NOATIME), (MS_NODIRATIME, ST_NODIRATIME), (MS_NOSYMFOLLOW, ST_NOSYMFOLLOW),
)  # fmt: skip
_ST_ATIME: Final = ST_NOATIME | ST_NODIRATIME | ST_RELATIME


def _string(lwp: Lwp, uaddr: int) -> bytes | None:
    """A name that is no path; None: none was given.

    :raises OSError: EFAULT; EINVAL when it is too long
    """
    if not uaddr:
        return None
    try:
        return copyinstr(lwp.lwp_proc.p_vmspace, uaddr, PATH_MAX)
    except OSError as e:
        raise (err(EINVAL) if e.errno == ENAMETOOLONG else e) from None


def _data(lwp: Lwp, uaddr: int) -> bytes:
    """The options: a page, or as much of it as there is, up to a NUL.

    :raises OSError: EFAULT
    """
    if not uaddr:
        return b""
    space = lwp.lwp_proc.p_vmspace
    first = PAGE_SIZE - (uaddr & PAGE_MASK)
    data = copyin(space, uaddr, first)
    if b"\0" not in data and first < PAGE_SIZE:
        try:
            data += copyin(space, uaddr + first, PAGE_SIZE - first)
        except OSError:
            pass  # Linux takes what it could read
    return data[: PAGE_SIZE - 1].partition(b"\0")[0]


def _mount_flags(flags: int, old: int) -> int:
    """ST_MOUNT flags from the caller's; a remount that does not speak of access times leaves them
    as they are in `old`."""
    new = sum(st for ms, st in _FLAGS if flags & ms)
    if not flags & MS_NOATIME or flags & MS_STRICTATIME:
        new |= ST_RELATIME
    if flags & MS_STRICTATIME:
        new &= ~(ST_RELATIME | ST_NOATIME)
    if flags & MS_REMOUNT and not flags & _MS_ATIME:
        new = new & ~_ST_ATIME | old & _ST_ATIME
    return new


def sys_mount(lwp: Lwp, usource: int, utarget: int, ufstype: int, flags: int, udata: int) -> int:
    """mount(2)"""
    p = lwp.lwp_proc
    fstype = _string(lwp, ufstype)
    source = _string(lwp, usource)
    data = os.fsdecode(_data(lwp, udata))
    path = user_path(lwp, utarget)
    vp = path_vnode(lwp, AT_FDCWD, path)
    if flags & _MS_MGC_MSK == _MS_MGC_VAL:
        flags &= ~_MS_MGC_MSK
    if flags & MS_NOUSER:
        raise err(EINVAL)
    cred = p.p_ucred
    if not cred.cr_cap_e & CAP_SYS_ADMIN:
        raise err(EPERM)
    mount = rooted(vp)
    own = _mount_flags(flags, vp.v_mount.mnt_flags)
    shared = own & ST_RDONLY | (ST_SYNCHRONOUS if flags & MS_SYNCHRONOUS else 0)
    if flags & MS_REMOUNT:
        if mount is None:
            raise err(EINVAL)
        if flags & MS_BIND:
            remount_mount(p.kernel, mount, own)
        else:
            remount_fs(p.kernel, mount, own, shared, data)
        return 0
    if not flags & MS_BIND and flags & _MS_TYPE:
        _change_type(mount, flags)
        return 0
    if flags & (MS_BIND | MS_MOVE):
        what = _source(lwp, source)
        if not flags & MS_BIND and rooted(what) is None:
            raise err(EINVAL)
        mp = find_mountpoint(p.p_fs.fs_rdir, p.p_fs.fs_cdir, path, cred)
        if flags & MS_BIND:
            mount_bind(what, mp, bool(flags & MS_REC))
        else:
            mount_move(what, mp)
        return 0
    if fstype is None:
        raise err(EINVAL)
    kind = os.fsdecode(fstype)
    if kind not in FSTYPES:
        raise err(ENODEV)
    mp = find_mountpoint(p.p_fs.fs_rdir, p.p_fs.fs_cdir, path, cred)
    name = "none" if source is None else os.fsdecode(source)
    mount_new(p.kernel.vfs, kind, name, data, own, shared, mp)
    return 0


def _source(lwp: Lwp, path: bytes | None) -> Vnode:
    if not path:
        raise err(EINVAL)
    return path_vnode(lwp, AT_FDCWD, path)


def _change_type(mount: Mount | None, flags: int) -> None:
    """How what is mounted later here and in views of this concerns the other: not at all. So it is
    private, and a slave of nobody, already.

    :raises OSError: EINVAL for no mount, several types, and MS_SHARED, which there is not
    """
    kind = flags & _MS_TYPE
    if flags & ~(_MS_TYPE | MS_REC | MS_SILENT) or kind & (kind - 1):
        raise err(EINVAL)
    if mount is None or kind == MS_SHARED:
        raise err(EINVAL)
    for m in subtree(mount) if flags & MS_REC else [mount]:
        if kind != MS_SLAVE:
            m.mnt_unbindable = kind == MS_UNBINDABLE


def sys_umount2(lwp: Lwp, utarget: int, flags: int) -> int:
    """umount2(2)"""
    flags = u32(flags)
    if flags & ~(MNT_FORCE | MNT_DETACH | MNT_EXPIRE | UMOUNT_NOFOLLOW):
        raise err(EINVAL)
    p = lwp.lwp_proc
    path = user_path(lwp, utarget)
    if not path:
        raise err(ENOENT)
    mount = None
    if flags & MNT_EXPIRE:
        # So that our own look at it does not count as use.
        nd = nameiat(p.p_fs.fs_rdir, p.p_fs.fs_cdir, path, p.p_ucred)
        mount = (nd.ni_dvp.v_mounts or {}).get(nd.ni_name)
    if mount is None:
        mount = rooted(path_vnode(lwp, AT_FDCWD, path, not flags & UMOUNT_NOFOLLOW))
    if not p.p_ucred.cr_cap_e & CAP_SYS_ADMIN:
        raise err(EPERM)
    if mount is None:
        raise err(EINVAL)
    mine = mount is p.p_fs.fs_rdir.v_mount
    if flags & MNT_EXPIRE:
        if mine or flags & (MNT_FORCE | MNT_DETACH):
            raise err(EINVAL)
        if mount_busy(mount):
            raise err(EBUSY)
        if not mount_expire(mount):
            raise err(EAGAIN)
    if mine and not flags & MNT_DETACH:
        # The caller's root stays, but nothing is written to it any more.
        fs = mount.mnt_fs
        remount_fs(p.kernel, mount, mount.mnt_flags, fs.mnt_fsflags | ST_RDONLY, "")
        return 0
    if mount.mnt_dvp is None:
        raise err(EINVAL)
    if not flags & MNT_DETACH and mount_busy(mount):
        raise err(EBUSY)
    unmount(mount)
    return 0
