"""Extended attributes: no file system here has any.

The calls are not missing, though: programs such as ls ask every file for its access control list,
and take "not supported" for an answer but "no such system call" for an error. So names, paths and
descriptors are checked as Linux checks them, and then the file system says that it has none.

Source: Linux fs/xattr.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import ENAMETOOLONG, EOPNOTSUPP, ERANGE, err
from dfvm.kern.vfs.namei import NAMEI_FOLLOW, namei
from dfvm.vm.copyio import copyinstr

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp

PATH_MAX: Final = 4096
XATTR_NAME_MAX: Final = 255


def _check_path(lwp: Lwp, upath: int, flags: int) -> None:
    """The file must exist."""
    p = lwp.lwp_proc
    path = copyinstr(p.p_vmspace, upath, PATH_MAX)
    namei(p.p_fs.fs_rdir, p.p_fs.fs_cdir, path, p.p_ucred, flags)


def _check_fd(lwp: Lwp, fd: int) -> None:
    """The descriptor must be open, and not with O_PATH only."""
    lwp.lwp_proc.p_fd.fget(fd)


def _check_name(lwp: Lwp, uname: int) -> None:
    """The attribute's name must be readable and of a length that a name can have."""
    try:
        name = copyinstr(lwp.lwp_proc.p_vmspace, uname, XATTR_NAME_MAX + 1)
    except OSError as e:
        raise (err(ERANGE) if e.errno == ENAMETOOLONG else e) from None
    if not name:
        raise err(ERANGE)


def sys_getxattr(lwp: Lwp, path: int, name: int, value: int, size: int) -> int:
    """getxattr(2)"""
    _check_name(lwp, name)
    _check_path(lwp, path, NAMEI_FOLLOW)
    raise err(EOPNOTSUPP)


def sys_lgetxattr(lwp: Lwp, path: int, name: int, value: int, size: int) -> int:
    """lgetxattr(2)"""
    _check_name(lwp, name)
    _check_path(lwp, path, 0)
    raise err(EOPNOTSUPP)


def sys_fgetxattr(lwp: Lwp, fd: int, name: int, value: int, size: int) -> int:
    """fgetxattr(2)"""
    _check_name(lwp, name)
    _check_fd(lwp, fd)
    raise err(EOPNOTSUPP)


def sys_setxattr(lwp: Lwp, path: int, name: int, value: int, size: int, flags: int) -> int:
    """setxattr(2)"""
    return sys_getxattr(lwp, path, name, value, size)


def sys_lsetxattr(lwp: Lwp, path: int, name: int, value: int, size: int, flags: int) -> int:
    """lsetxattr(2)"""
    return sys_lgetxattr(lwp, path, name, value, size)


def sys_fsetxattr(lwp: Lwp, fd: int, name: int, value: int, size: int, flags: int) -> int:
    """fsetxattr(2)"""
    return sys_fgetxattr(lwp, fd, name, value, size)


def sys_removexattr(lwp: Lwp, path: int, name: int) -> int:
    """removexattr(2)"""
    return sys_getxattr(lwp, path, name, 0, 0)


def sys_lremovexattr(lwp: Lwp, path: int, name: int) -> int:
    """lremovexattr(2)"""
    return sys_lgetxattr(lwp, path, name, 0, 0)


def sys_fremovexattr(lwp: Lwp, fd: int, name: int) -> int:
    """fremovexattr(2)"""
    return sys_fgetxattr(lwp, fd, name, 0, 0)


def sys_listxattr(lwp: Lwp, path: int, names: int, size: int) -> int:
    """listxattr(2): the list of a file without attributes is empty."""
    _check_path(lwp, path, NAMEI_FOLLOW)
    return 0


def sys_llistxattr(lwp: Lwp, path: int, names: int, size: int) -> int:
    """llistxattr(2)"""
    _check_path(lwp, path, 0)
    return 0


def sys_flistxattr(lwp: Lwp, fd: int, names: int, size: int) -> int:
    """flistxattr(2)"""
    _check_fd(lwp, fd)
    return 0
