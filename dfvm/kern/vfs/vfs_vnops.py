"""vn_open: what open(2) does before there is a descriptor.

Source: DragonFly sys/kern/vfs_vnops.c; the rules for flags are Linux's (fs/namei.c do_open).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_FOWNER
from dfvm.kern.kern_descrip import (
    O_ACCMODE,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_NOATIME,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_RDWR,
    O_TMPFILE,
    O_TRUNC,
    O_WRONLY,
)
from dfvm.kern.kern_errno import (
    EACCES,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    ENXIO,
    EPERM,
    err,
)
from dfvm.kern.vfs.mount import ST_NODEV
from dfvm.kern.vfs.namei import NAMEI_DIRECTORY, NAMEI_FOLLOW, namei, nameiat
from dfvm.kern.vfs.vfs_notify import IN_OPEN
from dfvm.kern.vfs.vnode_param import (
    FFLAGS,
    VBLK,
    VCHR,
    VDIR,
    VFIFO,
    VLNK,
    VNOLINK,
    VREAD,
    VREG,
    VSOCK,
    VWRITE,
)

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred

_WANT: Final = (VREAD, VWRITE, VREAD | VWRITE, VREAD | VWRITE)


def vn_open(root: Vnode, start: Vnode, path: bytes, oflags: int, mode: int,
            cred: Cred) -> tuple[Vnode, object | None]:  # fmt: skip
    """Find, and when asked for make, the file `path`; check the rights; open it. `mode` has had
    the umask applied. May block.

    Returns the vnode and what Vnode.open returned. When that is None the vnode is open, and the
    caller's file owns one close(FREAD | FWRITE as opened). With O_PATH nothing is opened, only a
    reference is taken.
    """
    if oflags & O_PATH:
        flags = 0 if oflags & O_NOFOLLOW else NAMEI_FOLLOW
        if oflags & O_DIRECTORY:
            flags |= NAMEI_DIRECTORY
        vp = namei(root, start, path, cred, flags)
        vp.vref()
        return vp, None
    acc = oflags & O_ACCMODE
    if oflags & O_TMPFILE == O_TMPFILE:
        if acc not in (O_WRONLY, O_RDWR):
            raise err(EINVAL)
        dvp = namei(root, start, path, cred, NAMEI_FOLLOW | NAMEI_DIRECTORY)
        vp = dvp.tmpfile(mode, cred)
        if oflags & O_EXCL:
            vp.v_flag |= VNOLINK
        return vp, vp.open(FFLAGS[acc], cred)
    if oflags & O_CREAT:
        if oflags & O_DIRECTORY:
            raise err(EINVAL)
        made, vp = _open_create(root, start, path, oflags, mode, cred)
        if made:
            return vp, _opened(vp, oflags, cred)
    else:
        flags = 0 if oflags & O_NOFOLLOW else NAMEI_FOLLOW
        if oflags & O_DIRECTORY:
            flags |= NAMEI_DIRECTORY
        vp = namei(root, start, path, cred, flags)
    vtype = vp.v_type
    want = _WANT[acc]
    if oflags & O_TRUNC:
        want |= VWRITE
    if vtype == VLNK:
        raise err(ELOOP)
    if vtype == VDIR and want & VWRITE:
        raise err(EISDIR)
    if vtype == VSOCK:
        raise err(ENXIO)
    if vtype in (VCHR, VBLK) and vp.v_mount.mnt_flags & ST_NODEV:
        raise err(EACCES)
    vp.access(want, cred)
    if vtype == VFIFO and acc == O_ACCMODE:
        raise err(EINVAL)
    if oflags & O_NOATIME and cred.cr_fsuid != vp.v_uid and not cred.cr_cap_e & CAP_FOWNER:
        raise err(EPERM)
    other = _opened(vp, oflags, cred)
    if other is None and oflags & O_TRUNC and vtype == VREG:
        try:
            vp.setsize(0)
        except OSError:
            vp.close(FFLAGS[acc])
            raise
    return vp, other


def _opened(vp: Vnode, oflags: int, cred: Cred) -> object | None:
    # Vnode.open, with leases out of the way, and told to those who watch; of a fifo only when its
    # other end is there, too.
    head = vp.v_lockf
    if head is not None and head.lh_leases:
        from dfvm.kern.kern_lease import break_lease

        vp.vref()  # whoever has the lease may unlink the file before giving it back
        try:
            break_lease(vp, bool(oflags & O_ACCMODE), bool(oflags & O_NONBLOCK))
            other = vp.open(FFLAGS[oflags & O_ACCMODE], cred)
        finally:
            vp.vrele()
    else:
        other = vp.open(FFLAGS[oflags & O_ACCMODE], cred)
    if other is None and vp.v_type != VFIFO:
        vp.event(IN_OPEN)
    return other


def _open_create(root: Vnode, start: Vnode, path: bytes, oflags: int, mode: int,
                 cred: Cred) -> tuple[bool, Vnode]:  # fmt: skip
    # The O_CREAT part: whether the file was made, and the file.
    follow = not oflags & (O_EXCL | O_NOFOLLOW)
    nd = nameiat(root, start, path, cred, follow)
    if nd.ni_name in (b"", b".", b".."):
        raise err(EEXIST if oflags & O_EXCL else EISDIR)
    if nd.ni_slash:
        raise err(EISDIR)
    vp = nd.ni_vp
    if vp is None:
        return True, nd.ni_dvp.create(nd.ni_name, mode, cred)
    if oflags & O_EXCL:
        raise err(EEXIST)
    if vp.v_type == VDIR:
        raise err(EISDIR)
    return False, vp
