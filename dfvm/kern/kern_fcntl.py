"""fcntl: what can be done to a descriptor or an open file that has no call of its own.

One small function for each command, and the table of them. The modules behind some of the commands
are imported by the first program that uses those.

Source: Linux fs/fcntl.c for arguments and errors; DragonFly sys/kern/kern_descrip.c (kern_fcntl).
"""

from __future__ import annotations

from struct import pack, unpack
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, s64, u32
from dfvm.kern.kern_caps import CAP_FOWNER
from dfvm.kern.kern_descrip import (
    FASYNC,
    FPATH,
    O_APPEND,
    O_DIRECT,
    O_NOATIME,
    O_NONBLOCK,
    nofile,
)
from dfvm.kern.kern_errno import EBADF, EINVAL, EPERM, ESRCH, err
from dfvm.kern.kern_sig import NSIG
from dfvm.kern.vfs.vnode_param import FWRITE
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.kern_descrip import File
    from dfvm.kern.proc import Lwp

F_DUPFD: Final = 0
F_GETFD: Final = 1
F_SETFD: Final = 2
F_GETFL: Final = 3
F_SETFL: Final = 4
F_GETLK: Final = 5
F_SETLK: Final = 6
F_SETLKW: Final = 7
F_SETOWN: Final = 8
F_GETOWN: Final = 9
F_SETSIG: Final = 10
F_GETSIG: Final = 11
F_SETOWN_EX: Final = 15
F_GETOWN_EX: Final = 16
F_OFD_GETLK: Final = 36
F_OFD_SETLK: Final = 37
F_OFD_SETLKW: Final = 38
F_SETLEASE: Final = 1024
F_GETLEASE: Final = 1025
F_NOTIFY: Final = 1026
F_DUPFD_QUERY: Final = 1027
F_DUPFD_CLOEXEC: Final = 1030
F_SETPIPE_SZ: Final = 1031
F_GETPIPE_SZ: Final = 1032
F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034

FD_CLOEXEC: Final = 1

# l_type of a struct flock, and what F_GETLEASE answers.
F_RDLCK: Final = 0
F_WRLCK: Final = 1
F_UNLCK: Final = 2

_F_OWNER_TID: Final = 0
_F_OWNER_PID: Final = 1
_F_OWNER_PGRP: Final = 2
_INT_MIN: Final = -1 << 31
_SETFL_MASK: Final = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME
_PATH_COMMANDS: Final = frozenset(
    (F_DUPFD, F_DUPFD_CLOEXEC, F_DUPFD_QUERY, F_GETFD, F_SETFD, F_GETFL)
)


def sys_fcntl(lwp: Lwp, fd: int, cmd: int, arg: int) -> int:
    """fcntl(2)"""
    fd, cmd = u32(fd), u32(cmd)
    fp = lwp.lwp_proc.p_fd.fget_path(fd)
    if fp.f_mode & FPATH and cmd not in _PATH_COMMANDS:
        raise err(EBADF)
    function = _COMMANDS.get(cmd)
    if function is None:
        raise err(EINVAL)
    return function(lwp, fp, fd, cmd, arg)


# ---- the descriptor ------------------------------------------------------------------------------


def _getfd(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    return int(fd in lwp.lwp_proc.p_fd.fd_cloexec)


def _setfd(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    cloexec = lwp.lwp_proc.p_fd.fd_cloexec
    if arg & FD_CLOEXEC:
        cloexec.add(fd)
    else:
        cloexec.discard(fd)
    return 0


def _dupfd(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    p = lwp.lwp_proc
    want, limit = u32(arg), nofile(p)
    if want >= limit:
        raise err(EINVAL)
    new = p.p_fd.fdinstall(fp, want, limit, cmd == F_DUPFD_CLOEXEC)
    fp.f_count += 1
    return new


def _dupfd_query(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    return int(lwp.lwp_proc.p_fd.fget_path(arg) is fp)


# ---- the open file -------------------------------------------------------------------------------


def _getfl(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    return fp.f_flag


def _setfl(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    flag = fp.f_flag & ~_SETFL_MASK | arg & _SETFL_MASK
    vp = fp.f_vnode
    if flag & ~fp.f_flag & O_NOATIME and vp is not None:
        cred = lwp.lwp_proc.p_ucred
        if cred.cr_fsuid != vp.v_uid and not cred.cr_cap_e & CAP_FOWNER:
            raise err(EPERM)
    fp.fo_setfl(flag)
    fp.f_flag = flag
    if fp.f_fasync and (flag ^ arg) & FASYNC:
        from dfvm.kern.sys_sigio import set_async

        set_async(lwp, fp, fd, bool(arg & FASYNC))
    return 0


def _lock(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    from dfvm.kern.kern_lockf import fcntl_lock

    return fcntl_lock(lwp, fp, cmd, arg)


def _getlease(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    from dfvm.kern.kern_lease import get_lease

    return get_lease(fp)


def _setlease(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    from dfvm.kern.kern_lease import set_lease

    set_lease(lwp, fp, fd, arg)
    return 0


def _notify(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    from dfvm.kern.sys_dnotify import dnotify

    dnotify(lwp, fp, fd, arg)
    return 0


def _pipe_size(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    from dfvm.kern.sys_pipe import pipe_fcntl

    return pipe_fcntl(fp, cmd, arg)


def _get_seals(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    from dfvm.kern.vfs.seals import get_seals

    return get_seals(fp.f_vnode)


def _add_seals(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    from dfvm.kern.vfs.seals import add_seals

    add_seals(fp.f_vnode, u32(arg), bool(fp.f_mode & FWRITE))
    return 0


# ---- who gets the signals of O_ASYNC, and which --------------------------------------------------


def _getown(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    return fp.f_owner


def _getown_ex(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    kind = _F_OWNER_PGRP if fp.f_owner < 0 else _F_OWNER_PID
    copyout(lwp.lwp_proc.p_vmspace, pack("<ii", kind, abs(fp.f_owner)), arg)
    return 0


def _setown(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    owner = s32(arg)
    if owner == _INT_MIN:
        raise err(EINVAL)
    return set_owner(lwp, fp, owner)


def _setown_ex(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    kind, owner = unpack("<ii", copyin(lwp.lwp_proc.p_vmspace, arg, 8))
    if kind not in (_F_OWNER_TID, _F_OWNER_PID, _F_OWNER_PGRP):
        raise err(EINVAL)
    if owner < 0:
        raise err(ESRCH)
    return set_owner(lwp, fp, -owner if kind == _F_OWNER_PGRP else owner)


def set_owner(lwp: Lwp, fp: File, owner: int) -> int:
    """`owner`: a process's number, or that of a process group, negative; 0: nobody."""
    p = lwp.lwp_proc
    if owner and -owner not in p.kernel.pgrps and owner not in p.kernel.procs:
        raise err(ESRCH)
    fp.f_owner = owner
    fp.f_ownercred = p.p_ucred
    return 0


def _getsig(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    return fp.f_sig


def _setsig(lwp: Lwp, fp: File, fd: int, cmd: int, arg: int) -> int:
    if not 0 <= s64(arg) <= NSIG:
        raise err(EINVAL)
    fp.f_sig = arg
    return 0


_COMMANDS: Final[dict[int, Callable[[Lwp, File, int, int, int], int]]] = {
    F_DUPFD: _dupfd,
    F_DUPFD_CLOEXEC: _dupfd,
    F_DUPFD_QUERY: _dupfd_query,
    F_GETFD: _getfd,
    F_SETFD: _setfd,
    F_GETFL: _getfl,
    F_SETFL: _setfl,
    F_GETLK: _lock,
    F_SETLK: _lock,
    F_SETLKW: _lock,
    F_OFD_GETLK: _lock,
    F_OFD_SETLK: _lock,
    F_OFD_SETLKW: _lock,
    F_GETLEASE: _getlease,
    F_SETLEASE: _setlease,
    F_NOTIFY: _notify,
    F_GETOWN: _getown,
    F_SETOWN: _setown,
    F_GETOWN_EX: _getown_ex,
    F_SETOWN_EX: _setown_ex,
    F_GETSIG: _getsig,
    F_SETSIG: _setsig,
    F_GETPIPE_SZ: _pipe_size,
    F_SETPIPE_SZ: _pipe_size,
    F_GET_SEALS: _get_seals,
    F_ADD_SEALS: _add_seals,
}
