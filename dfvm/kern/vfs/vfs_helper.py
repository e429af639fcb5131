"""Who may do what to a file: what the operations of Vnode check before they go to the file system.
What the mode bits allow is Vnode.access. A may_ function returns when it is allowed.

Nothing here blocks.

Source: DragonFly sys/kern/vfs_helper.c, sys/kern/vfs_nlookup.c (naccess); with the corners of
Linux's (fs/namei.c, fs/attr.c), whose programs we run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.kern.kern_caps import CAP_CHOWN, CAP_FOWNER, CAP_FSETID
from dfvm.kern.kern_errno import EBUSY, EEXIST, EISDIR, ENOENT, ENOTDIR, EPERM, EROFS, err
from dfvm.kern.vfs.vnode_param import (
    S_ISGID,
    S_ISUID,
    S_ISVTX,
    VDIR,
    VEXEC,
    VREAD,
    VREG,
    VUNLINKED,
    VWRITE,
)

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred


def may_add(dvp: Vnode, name: bytes, cred: Cred) -> None:
    """Make the entry `name` in dvp: nothing is there, and dvp may be written.

    :raises OSError: EEXIST; ENOENT where names are fixed; and what lookup and may_write_dir say.
    """
    if dvp.lookup(name) is not None:
        raise err(EEXIST)
    if dvp.v_mount.mnt_fixed:
        raise err(ENOENT)
    may_write_dir(dvp, cred)


def may_write_dir(dvp: Vnode, cred: Cred) -> None:
    """Change the entries of dvp.

    :raises OSError: EROFS, EACCES; ENOENT when dvp itself was removed.
    """
    if dvp.v_mount.mnt_rdonly:
        raise err(EROFS)
    if dvp.v_flag & VUNLINKED:
        raise err(ENOENT)
    dvp.access(VWRITE | VEXEC, cred)


def may_remove(dvp: Vnode, vp: Vnode, cred: Cred, isdir: bool) -> None:
    """Take away vp's entry in dvp, or replace it (by a directory: isdir).

    :raises OSError: EPERM in a sticky directory, ENOTDIR, EISDIR, and what may_write_dir says.
    """
    may_write_dir(dvp, cred)
    if (
        dvp.v_mode & S_ISVTX
        and cred.cr_fsuid not in (vp.v_uid, dvp.v_uid)
        and not cred.cr_cap_e & CAP_FOWNER
    ):
        raise err(EPERM)
    if isdir:
        if vp.v_type != VDIR:
            raise err(ENOTDIR)
    elif vp.v_type == VDIR:
        raise err(EISDIR)


def not_a_mountpoint(dvp: Vnode, name: bytes, vp: Vnode) -> None:
    """Take away or replace `name` in dvp, which is vp's: nothing is mounted over it, in no view,
    nor over a view whose root vp is.

    :raises OSError: EBUSY
    """
    data = dvp.vop_data()
    if data.v_mounts is not None and name in data.v_mounts:
        raise err(EBUSY)
    vfs = dvp.v_mount.mnt_vfs
    if vfs.mountpoints and (data, name) in vfs.mountpoints:
        raise err(EBUSY)
    if vfs.nstacked:
        data = vp.vop_data()
        for mount in vfs.mounts:
            if mount.mnt_under is not None and mount.mnt_under.mnt_root.vop_data() is data:
                raise err(EBUSY)


def may_linkat(vp: Vnode, cred: Cred) -> None:
    """Give vp another name. As with the sysctl fs.protected_hardlinks: nobody pins down another's
    privileged program or a file that is closed to them.

    :raises OSError: EPERM
    """
    if cred.cr_fsuid == vp.v_uid or cred.cr_cap_e & CAP_FOWNER:
        return
    mode = vp.v_mode
    if vp.v_type != VREG or mode & S_ISUID or mode & (S_ISGID | 0o010) == S_ISGID | 0o010:
        raise err(EPERM)
    try:
        vp.access(VREAD | VWRITE, cred)
    except OSError:
        raise err(EPERM) from None


def may_setattr(vp: Vnode, cred: Cred) -> None:
    """Do what only vp's owner may.

    :raises OSError: EROFS, EPERM
    """
    if vp.v_mount.mnt_rdonly:
        raise err(EROFS)
    if cred.cr_fsuid != vp.v_uid and not cred.cr_cap_e & CAP_FOWNER:
        raise err(EPERM)


def new_ids(dvp: Vnode, cred: Cred) -> tuple[int, int]:
    """Owner and group of what is created in dvp."""
    return cred.cr_fsuid, dvp.v_gid if dvp.v_mode & S_ISGID else cred.cr_fsgid


def new_mode(dvp: Vnode, mode: int, cred: Cred) -> int:
    """Mode of what is created in dvp and is no directory: where dvp gives the group, nobody gets a
    setgid program of a group that is not theirs."""
    mode &= 0o7777
    if dvp.v_mode & S_ISGID and mode & (S_ISGID | 0o010) == S_ISGID | 0o010:
        if not cred.groupmember(dvp.v_gid) and not cred.cr_cap_e & CAP_FSETID:
            mode &= ~S_ISGID
    return mode


def may_chown(owner: int, group: int, uid: int, gid: int, cred: Cred) -> None:
    """May `cred` give what is owner's and group's to `uid` and `gid` (-1: leave it)?

    :raises OSError: EPERM
    """
    if cred.cr_cap_e & CAP_CHOWN:
        return
    mine = cred.cr_fsuid == owner
    if uid != -1 and not (mine and uid == owner):
        raise err(EPERM)
    if gid != -1 and not (mine and (gid == group or cred.groupmember(gid))):
        raise err(EPERM)
