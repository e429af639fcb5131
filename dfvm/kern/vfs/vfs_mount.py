"""Mounting, unmounting, moving: what may be done to the tree of mounts, and doing it.

The tree: a mount's parent is the mount that holds the directory it is mounted in, or what it covers
under the same name. `Vfs.attach`, `detach` and `move` change it; here is what has to be so before.
All of it is in proportion to mounts, open files or the file system's vnodes, and none of it is done
often.

The system calls are in kern/sys_mount.py.

Source: behaviour of Linux fs/namespace.c and fs/super.c; names of DragonFly sys/kern/vfs_mount.c.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_descrip import FPATH
from dfvm.kern.kern_errno import (
    EBUSY,
    EINVAL,
    ELOOP,
    ENODEV,
    ENOENT,
    ENOTDIR,
    err,
)
from dfvm.kern.vfs.mount import ST_RDONLY, ST_SYNCHRONOUS
from dfvm.kern.vfs.namei import NAMEI_FOLLOW, namei, nameiat
from dfvm.kern.vfs.nullfs import NullMount
from dfvm.kern.vfs.seals import mapped_writable
from dfvm.kern.vfs.tmpfs import TmpMount, TmpOptions
from dfvm.kern.vfs.vfs_notify import unmount_notify
from dfvm.kern.vfs.vnode_param import FWRITE, VDIR, VREFD, VREG, VROOT, VUNLINKED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.kernel import Kernel
    from dfvm.kern.vfs.mount import Mount, Vfs
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred

FSTYPES: Final = ("sysfs", "tmpfs", "proc", "devtmpfs", "mqueue")  # what can be mounted


class Mountpoint:
    """A place where something may be mounted."""

    __slots__ = ("mp_dvp", "mp_name", "mp_vp")

    mp_vp: Vnode  # what is there now
    mp_dvp: Vnode  # the directory, and the name in it, that it is found by
    mp_name: bytes

    def __init__(self, vp: Vnode, dvp: Vnode, name: bytes) -> None:
        self.mp_vp, self.mp_dvp, self.mp_name = vp, dvp, name


# -- the tree -----------------------------------------------------------------------------------


def mount_parent(mount: Mount) -> Mount | None:
    """The mount that holds the place where `mount` is; None for the root."""
    if mount.mnt_under is not None:
        return mount.mnt_under
    return None if mount.mnt_dvp is None else mount.mnt_dvp.v_mount


def _children(mount: Mount) -> list[Mount]:
    return [m for m in mount.mnt_vfs.mounts if mount_parent(m) is mount]


def subtree(mount: Mount) -> list[Mount]:
    """It and everything mounted on it, parents first."""
    found = [mount]
    for m in found:
        found += _children(m)
    return found


def rooted(vp: Vnode) -> Mount | None:
    """The mount whose root vp is, if it is one that is mounted."""
    mount = vp.v_mount
    if vp.v_flag & VROOT and vp is mount.mnt_root and mount in mount.mnt_vfs.mounts:
        return mount
    return None


def find_mountpoint(root: Vnode, start: Vnode, path: bytes, cred: Cred) -> Mountpoint:
    """Where `path` leads, as a place to mount at.

    :raises OSError: what namei says; ENOENT for what was removed; EBUSY for the root of everything;
        what vop_mounton says.
    """
    mp = _find(root, start, path, cred)
    mp.mp_dvp.vop_mounton()
    return mp


def _find(root: Vnode, start: Vnode, path: bytes, cred: Cred) -> Mountpoint:
    vp = namei(root, start, path, cred, NAMEI_FOLLOW)
    mount = rooted(vp)
    if mount is not None:
        if mount.mnt_dvp is None:
            raise err(EBUSY)
        if vp.v_flag & VUNLINKED:
            raise err(ENOENT)
        return Mountpoint(vp, mount.mnt_dvp, mount.mnt_name)
    if vp.v_type != VDIR:
        # Of its names, the one by which it was found.
        nd = nameiat(root, start, path, cred, follow=True)
        if nd.ni_name not in (b"", b".", b"..") and nd.ni_dvp.lookup(nd.ni_name) is vp:
            return Mountpoint(vp, nd.ni_dvp, nd.ni_name)
    if vp.v_parent is None or vp.v_flag & VUNLINKED:
        raise err(ENOENT)
    return Mountpoint(vp, vp.v_parent, vp.v_name)


def _attach(mount: Mount, mp: Mountpoint) -> None:
    if (mount.mnt_root.v_type == VDIR) != (mp.mp_vp.v_type == VDIR):
        raise err(ENOTDIR)
    mount.mnt_vfs.attach(mount, mp.mp_dvp, mp.mp_name)


# -- mounting -----------------------------------------------------------------------------------


def mount_new(vfs: Vfs, fstype: str, source: str, options: str, flags: int, fsflags: int,
              mp: Mountpoint) -> None:  # fmt: skip
    """Mount a file system of a kind (FSTYPES), with `flags` (ST_MOUNT) and, if it is a new one,
    `fsflags` (ST_RDONLY, ST_SYNCHRONOUS).

    :raises OSError: EINVAL for its options; EBUSY when it is mounted right there; ENOTDIR
    """
    if fstype == "tmpfs":
        if mp.mp_vp.v_type != VDIR:
            TmpOptions(options)
            raise err(ENOTDIR)
        mount: Mount = TmpMount(vfs, TmpOptions(options))
        mount.mnt_fsflags = fsflags
        mount.set_flags(flags)
    else:
        mount = _more_of(vfs, fstype, options, flags, mp)
    mount.mnt_from = source
    _attach(mount, mp)


def _more_of(vfs: Vfs, fstype: str, options: str, flags: int, mp: Mountpoint) -> Mount:
    # There is one of these, the kernel's.
    if fstype == "devtmpfs":
        TmpOptions(options)
    elif options.strip(","):
        raise err(EINVAL)
    fs = next((fs for fs in vfs.filesystems if fs.mnt_fstype == fstype), None)
    if fs is None:
        raise err(ENODEV)
    at = rooted(mp.mp_vp)
    if at is not None and at.mnt_fs is fs and fstype != "proc":  # of which Linux makes a new one
        raise err(EBUSY)
    if mp.mp_vp.v_type != VDIR:
        raise err(ENOTDIR)
    if fs not in vfs.mounts:
        fs.set_flags(flags)
        return fs
    return NullMount(fs, fs.mnt_root, flags)


def mount_bind(vp: Vnode, mp: Mountpoint, whole: bool) -> None:
    """Show what lies at vp at `mp`, too; `whole`: with everything that is mounted below vp.

    :raises OSError: EINVAL for what is in no mount of the tree, or must not be shown; ENOTDIR
    """
    mount = vp.v_mount
    placeless = vp.v_parent is None and not vp.v_flag & VROOT
    if placeless or mount.mnt_unbindable or mount not in mount.mnt_vfs.mounts:
        raise err(EINVAL)
    if (vp.v_type == VDIR) != (mp.mp_vp.v_type == VDIR):
        raise err(ENOTDIR)
    top = _Copy(mount, vp, None)
    for copy in list(top.all()) if whole else [top]:
        view = copy.made = NullMount(copy.mount.mnt_fs, copy.vp.vop_data(), copy.mount.mnt_flags)
        if copy.on is None:
            _attach(view, mp)
        else:
            dvp = copy.mount.mnt_dvp
            assert dvp is not None and copy.on.made is not None
            mount.mnt_vfs.attach(view, copy.on.made.node(dvp.vop_data()), copy.mount.mnt_name)


class _Copy:
    """A mount of which, or of a part of which, a view is to be made."""

    __slots__ = ("made", "mount", "on", "vp")

    mount: Mount
    vp: Vnode  # the part: what the view's root shows
    on: _Copy | None  # whose view it is to be mounted in; None: at the place asked for
    made: NullMount | None

    def __init__(self, mount: Mount, vp: Vnode, on: _Copy | None) -> None:
        self.mount, self.vp, self.on = mount, vp, on
        self.made = None

    def all(self) -> Iterator[_Copy]:
        """It, and what is mounted in that part."""
        yield self
        for m in self.mount.mnt_vfs.mounts:
            if m.mnt_dvp is None or m.mnt_dvp.v_mount is not self.mount or m.mnt_unbindable:
                continue
            if m.mnt_under is None or m.mnt_under is not self.mount:
                if _is_below(m.mnt_dvp, self.vp):
                    yield from _Copy(m, m.mnt_root, self).all()


def _is_below(vp: Vnode, top: Vnode) -> bool:
    # Is the directory vp, of the same mount, `top` or below it?
    at: Vnode | None = vp
    while at is not None and at is not top:
        if at.v_flag & VROOT:
            return False
        at = at.v_parent
    return at is not None


def mount_move(vp: Vnode, mp: Mountpoint) -> None:
    """Take the mount whose root is vp to `mp`. May block.

    :raises OSError: EINVAL when it is none, or can't be there; ELOOP when that is on itself
    """
    mount = rooted(vp)
    if mount is None or mount.mnt_dvp is None:
        raise err(EINVAL)
    if (vp.v_type == VDIR) != (mp.mp_vp.v_type == VDIR):
        raise err(EINVAL)
    at: Mount | None = mp.mp_vp.v_mount
    while at is not None:
        if at is mount:
            raise err(ELOOP)
        at = mount_parent(at)
    mount.mnt_vfs.move(mount, mp.mp_dvp, mp.mp_name)


# -- changing -----------------------------------------------------------------------------------


def remount_mount(kernel: Kernel, mount: Mount, flags: int) -> None:
    """The mount's own flags are to be `flags` (ST_MOUNT).

    :raises OSError: EBUSY when it is to be read-only, and a file is open for writing through it
    """
    if flags & ST_RDONLY and not mount.mnt_flags & ST_RDONLY:
        if any(vp.v_mount is mount for vp in _written(kernel)):
            raise err(EBUSY)
    mount.set_flags(flags)


def remount_fs(kernel: Kernel, mount: Mount, flags: int, fsflags: int, options: str) -> None:
    """The file system is to have `fsflags` and `options`, and the mount `flags`.

    :raises OSError: EINVAL for the options; EBUSY when it is to be read-only, and is written to
    """
    fs = mount.mnt_fs
    if fsflags & ST_RDONLY and not fs.mnt_fsflags & ST_RDONLY and _is_written(kernel, fs):
        raise err(EBUSY)
    fs.remount(options)
    keep = fs.mnt_fsflags & ~(ST_RDONLY | ST_SYNCHRONOUS)
    fs.mnt_fsflags = keep | fsflags
    mount.set_flags(flags)
    for m in {fs, *kernel.vfs.mounts}:
        if m.mnt_fs is fs:
            m.set_flags(m.mnt_flags)


def _open_files(kernel: Kernel) -> Iterator[tuple[Vnode, bool]]:
    # The vnodes of open files, and whether those may write.
    for p in kernel.procs.values():
        for fp in p.p_fd.fd_files.values() if p.p_lwps else ():
            if fp.f_vnode is not None and not fp.f_mode & FPATH:
                yield fp.f_vnode, bool(fp.f_mode & FWRITE)


def _written(kernel: Kernel) -> Iterator[Vnode]:
    # The regular files that are open for writing.
    return (vp for vp, write in _open_files(kernel) if write and vp.v_type == VREG)


def _is_written(kernel: Kernel, fs: Mount) -> bool:
    """Is a file open for writing, or mapped so; or is something without a name in use, which goes
    when it no longer is?"""
    roots = [m.mnt_root for m in kernel.vfs.mounts]
    for p in kernel.procs.values():
        if p.p_lwps:
            roots += (p.p_fs.fs_cdir, p.p_fs.fs_rdir)
    if any(vp.v_mount.mnt_fs is fs and vp.v_flag & VUNLINKED for vp in roots):
        return True
    for vp, write in _open_files(kernel):
        if vp.v_mount.mnt_fs is fs and vp.v_type == VREG:
            if write or not vp.getattr().va_nlink:
                return True
    return any(vp.v_writecount or mapped_writable(vp) for vp in fs.vnodes() if vp.v_type == VREG)


# -- unmounting ---------------------------------------------------------------------------------


def mount_busy(mount: Mount) -> bool:
    """Does anybody use what is on the mount, or is something mounted there?"""
    if _children(mount):
        return True
    root = mount.mnt_root
    if isinstance(mount, NullMount) and mount.is_mapped():
        return True
    if mount.mnt_inuse == 1 and root.v_usecount == 1:
        return False
    if mount.mnt_fs is not mount:
        return True
    # References that do not count: what views hold, and who only watches.
    others: Counter[Vnode] = Counter()
    for m in mount.mnt_vfs.mounts:
        if m.mnt_fs is mount and isinstance(m, NullMount):
            others.update(vp.n_lower for vp in m.n_used)
    if mount.mnt_vfs.nwatches:
        for vp in mount.vnodes():
            if vp.v_watches:
                others[vp] += len(vp.v_watches)
    others[root] += 1
    unused = sum(1 for vp, count in others.items() if vp.v_usecount == count)
    return mount.mnt_inuse > unused


def mount_expire(mount: Mount) -> bool:
    """MNT_EXPIRE: has nobody looked at anything on the mount since the last time? Begins to watch
    for that if so far nobody did."""
    vnodes = mount.mnt_fs.vnodes()
    seen = any(vp.v_flag & VREFD for vp in vnodes)
    for vp in vnodes:
        vp.v_flag &= ~VREFD
    was, mount.mnt_expire = mount.mnt_expire, True
    return was and not seen


def unmount(mount: Mount) -> None:
    """Take a mount away, and lazily what is mounted on it. May block."""
    vfs = mount.mnt_vfs
    for m in reversed(subtree(mount)):
        fs = m.mnt_fs
        if vfs.nwatches and not any(o.mnt_fs is fs and o is not m for o in vfs.mounts):
            if not fs.mnt_permanent:
                for vp in fs.vnodes():
                    unmount_notify(vp)
        vfs.detach(m)
