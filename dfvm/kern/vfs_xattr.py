"""Extended attributes: small named values that a file carries.

The kinds of names are Linux's. "user." is for everybody who may write the file, a regular one or a
directory; "trusted.", and writing "security.", is for CAP_SYS_ADMIN. Names that would do more than
be kept (access control lists, capabilities of programs) are EOPNOTSUPP.

Source: Linux fs/xattr.c, Documentation of xattr(7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.kern_caps import CAP_SYS_ADMIN
from dfvm.kern.kern_errno import (
    E2BIG,
    EEXIST,
    EINVAL,
    ENAMETOOLONG,
    ENODATA,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
    EROFS,
    ETXTBSY,
    err,
)
from dfvm.kern.vfs.namei import NAMEI_FOLLOW, PATH_MAX, namei
from dfvm.kern.vfs.vnode_param import IN_ATTRIB, S_ISVTX, VDIR, VREAD, VREG, VWRITE
from dfvm.vm.copyio import copyin, copyinstr, copyout

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp, Ucred
    from dfvm.kern.vfs.vnode import Vnode

XATTR_NAME_MAX: Final = 255
XATTR_SIZE_MAX: Final = 65536
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2


# -- arguments ----------------------------------------------------------------------------------


def _by_path(lwp: Lwp, upath: int, flags: int) -> Vnode:
    p = lwp.lwp_proc
    path = copyinstr(p.p_vmspace, upath, PATH_MAX)
    return namei(p.p_fs.fs_rdir, p.p_fs.fs_cdir, path, p.p_ucred, flags)


def _by_fd(lwp: Lwp, fd: int) -> Vnode | None:
    """The vnode of a descriptor that is open, and not with O_PATH only; None: it has none."""
    return lwp.lwp_proc.p_fd.fget(fd).f_vnode


def _name(lwp: Lwp, uname: int) -> bytes:
    """The attribute's name.

    :raises OSError: EFAULT; ERANGE for a length that a name can't have
    """
    try:
        name = copyinstr(lwp.lwp_proc.p_vmspace, uname, XATTR_NAME_MAX + 1)
    except OSError as e:
        raise (err(ERANGE) if e.errno == ENAMETOOLONG else e) from None
    if not name:
        raise err(ERANGE)
    return name


def _value(lwp: Lwp, uvalue: int, size: int, flags: int) -> bytes:
    if u32(flags) & ~(XATTR_CREATE | XATTR_REPLACE):
        raise err(EINVAL)
    if size > XATTR_SIZE_MAX:
        raise err(E2BIG)
    return copyin(lwp.lwp_proc.p_vmspace, uvalue, size)


def _give(lwp: Lwp, data: bytes, ubuf: int, size: int) -> int:
    # What get and list return: the length alone for a size of 0.
    if size:
        if len(data) > size:
            raise err(ERANGE)
        copyout(lwp.lwp_proc.p_vmspace, data, ubuf)
    return len(data)


# -- rights -------------------------------------------------------------------------------------


def _check(vp: Vnode | None, name: bytes, cred: Ucred, write: bool) -> Vnode:
    """Whether `cred` may read or write this attribute, and whether there can be one.

    :raises OSError: EROFS, EPERM, ENODATA, EACCES, EOPNOTSUPP, EINVAL
    """
    refuse = EPERM if write else ENODATA
    if vp is None:
        raise err(refuse if name.startswith(b"user.") else EOPNOTSUPP)
    if write and vp.v_mount.mnt_rdonly:
        raise err(EROFS)
    root = cred.cr_cap_e & CAP_SYS_ADMIN
    space, dot, rest = name.partition(b".")
    space += dot
    if space == b"trusted." and not root:
        raise err(refuse)
    if space == b"user.":
        if vp.v_type not in (VREG, VDIR):
            raise err(refuse)
        sticky = vp.v_type == VDIR and vp.v_mode & S_ISVTX
        if write and sticky and not root and cred.cr_fsuid != vp.v_uid:
            raise err(EPERM)
    if space not in (b"security.", b"system."):
        try:
            vp.access(VWRITE if write else VREAD, cred)
        except OSError as e:
            if e.errno != ETXTBSY:  # an attribute is not what is executed
                raise
    if space not in (b"user.", b"trusted.", b"security."):
        raise err(EOPNOTSUPP)
    if not rest:
        raise err(EINVAL)
    if name == b"security.capability":
        raise err(EOPNOTSUPP)
    if space == b"security." and write and not root:
        raise err(EPERM)
    return vp


def _get(lwp: Lwp, vp: Vnode | None, name: bytes, ubuf: int, size: int) -> int:
    value = _check(vp, name, lwp.lwp_proc.p_ucred, False).vop_xattrs().get(name)
    if value is None:
        raise err(ENODATA)
    return _give(lwp, value, ubuf, size)


def _set(lwp: Lwp, vp: Vnode | None, name: bytes, value: bytes, flags: int) -> int:
    vp = _check(vp, name, lwp.lwp_proc.p_ucred, True)
    there = name in vp.vop_xattrs()
    if there and flags & XATTR_CREATE:
        raise err(EEXIST)
    if not there and flags & XATTR_REPLACE:
        raise err(ENODATA)
    vp.vop_setxattr(name, value)
    vp.event(IN_ATTRIB)
    return 0


def _remove(lwp: Lwp, vp: Vnode | None, name: bytes) -> int:
    vp = _check(vp, name, lwp.lwp_proc.p_ucred, True)
    if name not in vp.vop_xattrs():
        raise err(ENODATA)
    vp.vop_setxattr(name, None)
    vp.event(IN_ATTRIB)
    return 0


def _list(lwp: Lwp, vp: Vnode | None, ubuf: int, size: int) -> int:
    names: list[bytes] = []
    if vp is not None:
        try:
            names = list(vp.vop_xattrs())
        except OSError as e:
            if e.errno != EOPNOTSUPP:
                raise
    if not lwp.lwp_proc.p_ucred.cr_cap_e & CAP_SYS_ADMIN:
        names = [name for name in names if not name.startswith(b"trusted.")]
    return _give(lwp, b"".join(name + b"\0" for name in names), ubuf, size)


# -- system calls -------------------------------------------------------------------------------


def sys_getxattr(lwp: Lwp, path: int, name: int, value: int, size: int) -> int:
    """getxattr(2)"""
    kname = _name(lwp, name)
    return _get(lwp, _by_path(lwp, path, NAMEI_FOLLOW), kname, value, size)


def sys_lgetxattr(lwp: Lwp, path: int, name: int, value: int, size: int) -> int:
    """lgetxattr(2)"""
    kname = _name(lwp, name)
    return _get(lwp, _by_path(lwp, path, 0), kname, value, size)


def sys_fgetxattr(lwp: Lwp, fd: int, name: int, value: int, size: int) -> int:
    """fgetxattr(2)"""
    kname = _name(lwp, name)
    return _get(lwp, _by_fd(lwp, fd), kname, value, size)


def sys_setxattr(lwp: Lwp, path: int, name: int, value: int, size: int, flags: int) -> int:
    """setxattr(2)"""
    kname, kvalue = _name(lwp, name), _value(lwp, value, size, flags)
    return _set(lwp, _by_path(lwp, path, NAMEI_FOLLOW), kname, kvalue, flags)


def sys_lsetxattr(lwp: Lwp, path: int, name: int, value: int, size: int, flags: int) -> int:
    """lsetxattr(2)"""
    kname, kvalue = _name(lwp, name), _value(lwp, value, size, flags)
    return _set(lwp, _by_path(lwp, path, 0), kname, kvalue, flags)


def sys_fsetxattr(lwp: Lwp, fd: int, name: int, value: int, size: int, flags: int) -> int:
    """fsetxattr(2)"""
    kname, kvalue = _name(lwp, name), _value(lwp, value, size, flags)
    return _set(lwp, _by_fd(lwp, fd), kname, kvalue, flags)


def sys_removexattr(lwp: Lwp, path: int, name: int) -> int:
    """removexattr(2)"""
    kname = _name(lwp, name)
    return _remove(lwp, _by_path(lwp, path, NAMEI_FOLLOW), kname)


def sys_lremovexattr(lwp: Lwp, path: int, name: int) -> int:
    """lremovexattr(2)"""
    kname = _name(lwp, name)
    return _remove(lwp, _by_path(lwp, path, 0), kname)


def sys_fremovexattr(lwp: Lwp, fd: int, name: int) -> int:
    """fremovexattr(2)"""
    kname = _name(lwp, name)
    return _remove(lwp, _by_fd(lwp, fd), kname)


def sys_listxattr(lwp: Lwp, path: int, names: int, size: int) -> int:
    """listxattr(2)"""
    return _list(lwp, _by_path(lwp, path, NAMEI_FOLLOW), names, size)


def sys_llistxattr(lwp: Lwp, path: int, names: int, size: int) -> int:
    """llistxattr(2)"""
    return _list(lwp, _by_path(lwp, path, 0), names, size)


def sys_flistxattr(lwp: Lwp, fd: int, names: int, size: int) -> int:
    """flistxattr(2)"""
    return _list(lwp, _by_fd(lwp, fd), names, size)
