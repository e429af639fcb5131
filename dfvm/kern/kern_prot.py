"""Identity: process and thread numbers, process groups, sessions, users and groups.

Source: DragonFly sys/kern/kern_prot.c; permissions as Linux kernel/sys.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_caps import CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE, cap_setfsuid, cap_setuid
from dfvm.kern.kern_errno import EACCES, EINVAL, EPERM, ESRCH, err
from dfvm.kern.proc import P_EXEC, Pgrp, Proc, enterpgrp
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp, Ucred
    from dfvm.kern.vfs.vnode_param import Cred

NGROUPS_MAX: Final = 65536
_NOBODY: Final = 0xFFFF_FFFF  # -1: leave the id as it is, or "no such id"


def sys_getpid(lp: Lwp) -> int:
    """getpid(2)"""
    return lp.lwp_proc.p_pid


def sys_getppid(lp: Lwp) -> int:
    """getppid(2)"""
    return lp.lwp_proc.p_pptr.p_pid


def sys_gettid(lp: Lwp) -> int:
    """gettid(2)"""
    return lp.lwp_tid


# ---- process groups and sessions -----------------------------------------------------------------


def sys_getpgrp(lp: Lwp) -> int:
    """getpgrp(2)"""
    return lp.lwp_proc.p_pgrp.pg_id


def _target(lp: Lwp, pid: int) -> Proc:
    """The process `pid`, 0 meaning the caller."""
    p = lp.lwp_proc.kernel.procs.get(pid) if pid else lp.lwp_proc
    if p is None:
        raise err(ESRCH)
    return p


def sys_getpgid(lp: Lwp, pid: int) -> int:
    """getpgid(2)"""
    return _target(lp, s32(pid)).p_pgrp.pg_id


def sys_getsid(lp: Lwp, pid: int) -> int:
    """getsid(2)"""
    return _target(lp, s32(pid)).p_session.s_sid


def sys_setpgid(lp: Lwp, pid: int, pgid: int) -> int:
    """setpgid(2): of oneself, or of a child that has not called execve yet."""
    pid, pgid = s32(pid), s32(pgid)
    if (pgid or pid) < 0:
        raise err(EINVAL)
    me = lp.lwp_proc
    p = _target(lp, pid)
    if p is not me:
        if p.p_pptr is not me:
            raise err(ESRCH)
        if p.p_session is not me.p_session:
            raise err(EPERM)
        if p.p_flags & P_EXEC:
            raise err(EACCES)
    if p.p_session.s_leader is p:
        raise err(EPERM)
    pgid = pgid or p.p_pid
    if pgid != p.p_pid:
        pgrp: Pgrp | None = me.kernel.pgrps.get(pgid)
        if pgrp is None or pgrp.pg_session is not me.p_session:
            raise err(EPERM)
    enterpgrp(p, pgid, new_session=False)
    return 0


def sys_setsid(lp: Lwp) -> int:
    """setsid(2): a new session with the caller as its leader, without a terminal."""
    p = lp.lwp_proc
    if p.p_pid in p.kernel.pgrps:
        raise err(EPERM)
    enterpgrp(p, p.p_pid, new_session=True)
    return p.p_pid


# ---- users and groups ----------------------------------------------------------------------------


def sys_getuid(lp: Lwp) -> int:
    """getuid(2)"""
    return lp.lwp_proc.p_ucred.cr_ruid


def sys_geteuid(lp: Lwp) -> int:
    """geteuid(2)"""
    return lp.lwp_proc.p_ucred.cr_uid


def sys_getgid(lp: Lwp) -> int:
    """getgid(2)"""
    return lp.lwp_proc.p_ucred.cr_rgid


def sys_getegid(lp: Lwp) -> int:
    """getegid(2)"""
    return lp.lwp_proc.p_ucred.cr_gid


def sys_getresuid(lp: Lwp, ruid: int, euid: int, suid: int) -> int:
    """getresuid(2)"""
    cred = lp.lwp_proc.p_ucred
    _store_ids(lp, ((ruid, cred.cr_ruid), (euid, cred.cr_uid), (suid, cred.cr_svuid)))
    return 0


def sys_getresgid(lp: Lwp, rgid: int, egid: int, sgid: int) -> int:
    """getresgid(2)"""
    cred = lp.lwp_proc.p_ucred
    _store_ids(lp, ((rgid, cred.cr_rgid), (egid, cred.cr_gid), (sgid, cred.cr_svgid)))
    return 0


def _store_ids(lp: Lwp, where: tuple[tuple[int, int], ...]) -> None:
    for addr, value in where:
        copyout(lp.lwp_proc.p_vmspace, value.to_bytes(4, "little"), addr)


def _changed(lp: Lwp, cred: Ucred) -> None:
    """Install new credentials. A process of another identity is no longer to be looked into."""
    p = lp.lwp_proc
    old = p.p_ucred
    cap_setuid(old, cred)
    if cred.cr_uid != old.cr_uid or cred.cr_gid != old.cr_gid:
        p.p_dumpable = 0
        p.p_pdeathsig = 0
    p.p_ucred = cred


def sys_setuid(lp: Lwp, uid: int) -> int:
    """setuid(2)"""
    uid = u32(uid)
    cred = lp.lwp_proc.p_ucred.copy()
    if uid == _NOBODY:
        raise err(EINVAL)
    if cred.cr_cap_e & CAP_SETUID:
        cred.cr_ruid = cred.cr_svuid = uid
    elif uid not in (cred.cr_ruid, cred.cr_svuid):
        raise err(EPERM)
    cred.cr_uid = cred.cr_fsuid = uid
    _changed(lp, cred)
    return 0


def sys_setgid(lp: Lwp, gid: int) -> int:
    """setgid(2)"""
    gid = u32(gid)
    cred = lp.lwp_proc.p_ucred.copy()
    if gid == _NOBODY:
        raise err(EINVAL)
    if cred.cr_cap_e & CAP_SETGID:
        cred.cr_rgid = cred.cr_svgid = gid
    elif gid not in (cred.cr_rgid, cred.cr_svgid):
        raise err(EPERM)
    cred.cr_gid = cred.cr_fsgid = gid
    _changed(lp, cred)
    return 0


def sys_setreuid(lp: Lwp, ruid: int, euid: int) -> int:
    """setreuid(2)"""
    ruid, euid = u32(ruid), u32(euid)
    old = lp.lwp_proc.p_ucred
    cred = old.copy()
    if not old.cr_cap_e & CAP_SETUID:
        if ruid not in (_NOBODY, old.cr_ruid, old.cr_uid):
            raise err(EPERM)
        if euid not in (_NOBODY, old.cr_ruid, old.cr_uid, old.cr_svuid):
            raise err(EPERM)
    if ruid != _NOBODY:
        cred.cr_ruid = ruid
    if euid != _NOBODY:
        cred.cr_uid = euid
    if ruid != _NOBODY or (euid != _NOBODY and euid != old.cr_ruid):
        cred.cr_svuid = cred.cr_uid
    cred.cr_fsuid = cred.cr_uid
    _changed(lp, cred)
    return 0


def sys_setregid(lp: Lwp, rgid: int, egid: int) -> int:
    """setregid(2)"""
    rgid, egid = u32(rgid), u32(egid)
    old = lp.lwp_proc.p_ucred
    cred = old.copy()
    if not old.cr_cap_e & CAP_SETGID:
        if rgid not in (_NOBODY, old.cr_rgid, old.cr_gid):
            raise err(EPERM)
        if egid not in (_NOBODY, old.cr_rgid, old.cr_gid, old.cr_svgid):
            raise err(EPERM)
    if rgid != _NOBODY:
        cred.cr_rgid = rgid
    if egid != _NOBODY:
        cred.cr_gid = egid
    if rgid != _NOBODY or (egid != _NOBODY and egid != old.cr_rgid):
        cred.cr_svgid = cred.cr_gid
    cred.cr_fsgid = cred.cr_gid
    _changed(lp, cred)
    return 0


def sys_setresuid(lp: Lwp, ruid: int, euid: int, suid: int) -> int:
    """setresuid(2)"""
    old = lp.lwp_proc.p_ucred
    cred = old.copy()
    mine = (old.cr_ruid, old.cr_uid, old.cr_svuid)
    ruid, euid, suid = (_allowed(old, x, mine, CAP_SETUID) for x in (ruid, euid, suid))
    if ruid != _NOBODY:
        cred.cr_ruid = ruid
    if euid != _NOBODY:
        cred.cr_uid = euid
    if suid != _NOBODY:
        cred.cr_svuid = suid
    cred.cr_fsuid = cred.cr_uid
    _changed(lp, cred)
    return 0


def sys_setresgid(lp: Lwp, rgid: int, egid: int, sgid: int) -> int:
    """setresgid(2)"""
    old = lp.lwp_proc.p_ucred
    cred = old.copy()
    mine = (old.cr_rgid, old.cr_gid, old.cr_svgid)
    rgid, egid, sgid = (_allowed(old, x, mine, CAP_SETGID) for x in (rgid, egid, sgid))
    if rgid != _NOBODY:
        cred.cr_rgid = rgid
    if egid != _NOBODY:
        cred.cr_gid = egid
    if sgid != _NOBODY:
        cred.cr_svgid = sgid
    cred.cr_fsgid = cred.cr_gid
    _changed(lp, cred)
    return 0


def _allowed(cred: Ucred, value: int, mine: tuple[int, int, int], cap: int) -> int:
    """An id that somebody with `cred`, and the ids `mine`, wants to have; with `cap` it is any."""
    value = u32(value)
    if value != _NOBODY and value not in mine and not cred.cr_cap_e & cap:
        raise err(EPERM)
    return value


def sys_setfsuid(lp: Lwp, uid: int) -> int:
    """setfsuid(2): tells the old id, and never an error."""
    uid = u32(uid)
    old = lp.lwp_proc.p_ucred
    if old.cr_cap_e & CAP_SETUID or uid in (old.cr_ruid, old.cr_uid, old.cr_svuid, old.cr_fsuid):
        if uid != _NOBODY:
            cred = old.copy()
            cred.cr_fsuid = uid
            cap_setfsuid(old, cred)
            lp.lwp_proc.p_ucred = cred
    return old.cr_fsuid


def sys_setfsgid(lp: Lwp, gid: int) -> int:
    """setfsgid(2)"""
    gid = u32(gid)
    old = lp.lwp_proc.p_ucred
    if old.cr_cap_e & CAP_SETGID or gid in (old.cr_rgid, old.cr_gid, old.cr_svgid, old.cr_fsgid):
        if gid != _NOBODY:
            cred = old.copy()
            cred.cr_fsgid = gid
            lp.lwp_proc.p_ucred = cred
    return old.cr_fsgid


def sys_getgroups(lp: Lwp, size: int, ulist: int) -> int:
    """getgroups(2)"""
    size = s32(size)
    groups = lp.lwp_proc.p_ucred.cr_groups
    if size == 0:
        return len(groups)
    if size < len(groups):
        raise err(EINVAL)
    copyout(lp.lwp_proc.p_vmspace, b"".join([g.to_bytes(4, "little") for g in groups]), ulist)
    return len(groups)


def sys_setgroups(lp: Lwp, size: int, ulist: int) -> int:
    """setgroups(2)"""
    p = lp.lwp_proc
    if not p.p_ucred.cr_cap_e & CAP_SETGID:
        raise err(EPERM)
    size = u32(size)
    if size > NGROUPS_MAX:
        raise err(EINVAL)
    raw = copyin(p.p_vmspace, ulist, 4 * size) if size else b""
    cred = p.p_ucred.copy()
    cred.cr_groups = tuple(int.from_bytes(raw[n : n + 4], "little") for n in range(0, 4 * size, 4))
    p.p_ucred = cred
    return 0


# ---- who may look into whom ----------------------------------------------------------------------


def may_trace(p: Proc, target: Proc) -> bool:
    """Whether `p` may do to `target` what a debugger does: read and write its memory, take its
    descriptors. Itself it may; another one of the same user's that has no more capabilities."""
    mine = p.p_ucred
    if p is target or mine.cr_cap_e & CAP_SYS_PTRACE:
        return True
    return _may_trace(target, mine.cr_ruid, mine.cr_rgid, mine.cr_cap_p)


def may_look(cred: Cred, target: Proc) -> bool:
    """The same for somebody with `cred` who comes by way of the file system (/proc), which another
    user and group, and the capabilities in force, count for."""
    if cred.cr_cap_e & CAP_SYS_PTRACE:
        return True
    return _may_trace(target, cred.cr_fsuid, cred.cr_fsgid, cred.cr_cap_e)


def _may_trace(target: Proc, uid: int, gid: int, caps: int) -> bool:
    hers = target.p_ucred
    return (
        bool(target.p_dumpable)
        and uid == hers.cr_ruid == hers.cr_uid == hers.cr_svuid
        and gid == hers.cr_rgid == hers.cr_gid == hers.cr_svgid
        and not hers.cr_cap_p & ~caps
    )
