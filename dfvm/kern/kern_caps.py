"""Capabilities: root's rights, one by one.

A process has three sets that count for it: what it may have (permitted), what is in force
(effective), and what exec may pass on (inheritable); the bounding set limits what exec may give,
and the ambient set is what a program without privileges keeps over it. They are part of the
credentials. Whoever asks whether something is allowed tests a bit of `cr_cap_e`.

Source: behaviour of Linux security/commoncap.c, kernel/capability.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32
from dfvm.kern.kern_errno import EINVAL, EPERM, ESRCH, err
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp, Proc, Ucred

# The bits of those that are asked for.
CAP_CHOWN: Final = 1 << 0
CAP_DAC_OVERRIDE: Final = 1 << 1
CAP_DAC_READ_SEARCH: Final = 1 << 2
CAP_FOWNER: Final = 1 << 3
CAP_FSETID: Final = 1 << 4
CAP_KILL: Final = 1 << 5
CAP_SETGID: Final = 1 << 6
CAP_SETUID: Final = 1 << 7
CAP_SETPCAP: Final = 1 << 8
CAP_NET_ADMIN: Final = 1 << 12
CAP_IPC_LOCK: Final = 1 << 14
CAP_IPC_OWNER: Final = 1 << 15
CAP_SYS_RAWIO: Final = 1 << 17
CAP_SYS_CHROOT: Final = 1 << 18
CAP_SYS_PTRACE: Final = 1 << 19
CAP_SYS_ADMIN: Final = 1 << 21
CAP_SYS_NICE: Final = 1 << 23
CAP_SYS_RESOURCE: Final = 1 << 24
CAP_MKNOD: Final = 1 << 27
CAP_LEASE: Final = 1 << 28
CAP_WAKE_ALARM: Final = 1 << 35
CAP_CHECKPOINT_RESTORE: Final = 1 << 40

CAP_LAST: Final = 40
CAP_FULL: Final = (1 << CAP_LAST + 1) - 1
# Those that come and go with the user for access to files: the ones above from CAP_CHOWN to
# CAP_FSETID, and LINUX_IMMUTABLE, MKNOD and MAC_OVERRIDE.
CAP_FS_SET: Final = 0x1F | 1 << 9 | CAP_MKNOD | 1 << 32
# With one of these every directory may be searched.
CAP_SEARCH: Final = CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH

# Securebits; each has a lock beside it.
SECBIT_NOROOT: Final = 0x01
SECBIT_NO_SETUID_FIXUP: Final = 0x04
SECBIT_KEEP_CAPS: Final = 0x10
SECBIT_KEEP_CAPS_LOCKED: Final = 0x20
SECBIT_NO_CAP_AMBIENT_RAISE: Final = 0x40
_SECURE_BITS: Final = 0x55
_SECURE_LOCKS: Final = 0xAA

PR_CAP_AMBIENT_IS_SET: Final = 1
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_LOWER: Final = 3
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_VERSION_3: Final = 0x2008_0522
_WORDS: Final = {0x1998_0330: 1, 0x2007_1026: 2, _VERSION_3: 2}  # 32-bit words of a set


# ---- what changes with the user ------------------------------------------------------------------


def cap_setuid(old: Ucred, new: Ucred) -> None:
    """`new` has other users than `old`, by a setuid call: capabilities follow root's number."""
    if new.cr_securebits & SECBIT_NO_SETUID_FIXUP:
        return
    was = 0 in (old.cr_ruid, old.cr_uid, old.cr_svuid)
    if was and 0 not in (new.cr_ruid, new.cr_uid, new.cr_svuid):
        if not new.cr_securebits & SECBIT_KEEP_CAPS:
            new.cr_cap_p = new.cr_cap_e = 0
        new.cr_cap_a = 0
    if old.cr_uid == 0 != new.cr_uid:
        new.cr_cap_e = 0
    elif old.cr_uid != 0 == new.cr_uid:
        new.cr_cap_e = new.cr_cap_p


def cap_setfsuid(old: Ucred, new: Ucred) -> None:
    """Likewise for setfsuid, and the capabilities about files."""
    if new.cr_securebits & SECBIT_NO_SETUID_FIXUP:
        return
    if old.cr_fsuid == 0 != new.cr_fsuid:
        new.cr_cap_e &= ~CAP_FS_SET
    elif old.cr_fsuid != 0 == new.cr_fsuid:
        new.cr_cap_e |= new.cr_cap_p & CAP_FS_SET


def cap_exec(old: Ucred, new: Ucred, no_new: bool, tied: bool) -> None:
    """`new` is to be the credentials of a new program, users and groups as they will be. It gets
    no capability that `old` hasn't with `no_new` (PR_SET_NO_NEW_PRIVS), or if it is `tied` to
    others, which could lead it astray; nor does it stay another user then who would have more.
    Files have no capabilities here."""
    permitted, effective = 0, False
    if not new.cr_securebits & SECBIT_NOROOT:
        if 0 in (new.cr_uid, new.cr_ruid):
            permitted = new.cr_cap_b | new.cr_cap_i
        effective = new.cr_uid == 0
    setid = new.cr_uid != new.cr_ruid or new.cr_gid != new.cr_rgid
    if (no_new or tied) and permitted & ~old.cr_cap_p:
        permitted &= old.cr_cap_p
        if no_new or not old.cr_cap_e & CAP_SETUID:
            new.cr_uid = new.cr_svuid = new.cr_fsuid = new.cr_ruid
            new.cr_gid = new.cr_svgid = new.cr_fsgid = new.cr_rgid
    if setid:
        new.cr_cap_a = 0
    new.cr_cap_p = permitted | new.cr_cap_a
    new.cr_cap_e = new.cr_cap_p if effective else new.cr_cap_a
    new.cr_securebits &= ~SECBIT_KEEP_CAPS


# ---- system calls --------------------------------------------------------------------------------


def _header(lp: Lwp, uheader: int) -> tuple[int, int]:
    """The words of a set, and the pid, that a call is about; no words for a version that nobody
    knows, and who asked is told of one."""
    space = lp.lwp_proc.p_vmspace
    header = copyin(space, uheader, 8)
    words = _WORDS.get(int.from_bytes(header[:4], "little"), 0)
    if not words:
        copyout(space, _VERSION_3.to_bytes(4, "little"), uheader)
    return words, s32(int.from_bytes(header[4:], "little"))


def sys_capget(lp: Lwp, uheader: int, udata: int) -> int:
    """capget(2)"""
    p = lp.lwp_proc
    words, pid = _header(lp, uheader)
    if not words:
        if udata == 0:
            return 0
        raise err(EINVAL)
    if pid < 0:
        raise err(EINVAL)
    target: Proc | None = p.kernel.procs.get(pid) if pid else p
    if target is None:
        raise err(ESRCH)
    cred = target.p_ucred
    sets = (cred.cr_cap_e, cred.cr_cap_p, cred.cr_cap_i)
    if udata:
        data = [caps >> 32 * n & 0xFFFF_FFFF for n in range(words) for caps in sets]
        copyout(p.p_vmspace, b"".join([word.to_bytes(4, "little") for word in data]), udata)
    return 0


def sys_capset(lp: Lwp, uheader: int, udata: int) -> int:
    """capset(2): one's own, and only to less than one may have."""
    p = lp.lwp_proc
    words, pid = _header(lp, uheader)
    if not words:
        raise err(EINVAL)
    if pid not in (0, p.p_pid):
        raise err(EPERM)
    raw = memoryview(copyin(p.p_vmspace, udata, 12 * words)).cast("I")
    effective, permitted, inheritable = (
        sum(raw[3 * n + which] << 32 * n for n in range(words)) & CAP_FULL for which in range(3)
    )
    old = p.p_ucred
    may_inherit = old.cr_cap_i | old.cr_cap_b
    if not old.cr_cap_e & CAP_SETPCAP:
        may_inherit &= old.cr_cap_i | old.cr_cap_p
    if inheritable & ~may_inherit or permitted & ~old.cr_cap_p or effective & ~permitted:
        raise err(EPERM)
    cred = old.copy()
    cred.cr_cap_e, cred.cr_cap_p, cred.cr_cap_i = effective, permitted, inheritable
    cred.cr_cap_a &= permitted & inheritable
    p.p_ucred = cred
    return 0


def cap_bset_drop(p: Proc, cap: int) -> int:
    """prctl(PR_CAPBSET_DROP)"""
    if not p.p_ucred.cr_cap_e & CAP_SETPCAP:
        raise err(EPERM)
    if cap > CAP_LAST:
        raise err(EINVAL)
    cred = p.p_ucred.copy()
    cred.cr_cap_b &= ~(1 << cap)
    p.p_ucred = cred
    return 0


def set_securebits(p: Proc, bits: int) -> int:
    """prctl(PR_SET_SECUREBITS)"""
    old = p.p_ucred
    locks = old.cr_securebits & _SECURE_LOCKS
    if (
        locks >> 1 & (old.cr_securebits ^ bits)
        or locks & ~bits
        or bits & ~(_SECURE_BITS | _SECURE_LOCKS)
        or not old.cr_cap_e & CAP_SETPCAP
    ):
        raise err(EPERM)
    cred = old.copy()
    cred.cr_securebits = bits
    p.p_ucred = cred
    return 0


def set_keepcaps(p: Proc, keep: int) -> int:
    """prctl(PR_SET_KEEPCAPS)"""
    if keep > 1:
        raise err(EINVAL)
    if p.p_ucred.cr_securebits & SECBIT_KEEP_CAPS_LOCKED:
        raise err(EPERM)
    cred = p.p_ucred.copy()
    cred.cr_securebits = cred.cr_securebits & ~SECBIT_KEEP_CAPS | keep * SECBIT_KEEP_CAPS
    p.p_ucred = cred
    return 0


def cap_ambient(p: Proc, what: int, cap: int, more: bool) -> int:
    """prctl(PR_CAP_AMBIENT)"""
    if more or cap > CAP_LAST or (what == PR_CAP_AMBIENT_CLEAR_ALL and cap):
        raise err(EINVAL)
    old, bit = p.p_ucred, 1 << cap
    if what == PR_CAP_AMBIENT_IS_SET:
        return int(bool(old.cr_cap_a & bit))
    cred = old.copy()
    if what == PR_CAP_AMBIENT_CLEAR_ALL:
        cred.cr_cap_a = 0
    elif what == PR_CAP_AMBIENT_LOWER:
        cred.cr_cap_a &= ~bit
    elif what != PR_CAP_AMBIENT_RAISE:
        raise err(EINVAL)
    elif old.cr_securebits & SECBIT_NO_CAP_AMBIENT_RAISE or not old.cr_cap_p & old.cr_cap_i & bit:
        raise err(EPERM)
    else:
        cred.cr_cap_a |= bit
    p.p_ucred = cred
    return 0
