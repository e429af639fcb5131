"""VnodeOps: a vnode's fields, and the operations that its file system provides.

A file system derives from vnode.Vnode and fills in what it can do. What it leaves out is refused as
Linux refuses it on a file of a kind that does not know the operation, or is nothing to be done.

Names are looked up and rights are checked by the callers, the methods of Vnode; `self` is the
directory where a name is an argument. Errors are OSError made by kern_errno.err.

Source: DragonFly sys/sys/vnode.h (struct vnode), sys/kern/vfs_vopops.c, sys/kern/vfs_default.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfvm.kern.kern_errno import (
    EACCES,
    EFBIG,
    EINVAL,
    ENOENT,
    ENOTDIR,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    err,
)
from dfvm.kern.vfs.vnode_param import FOREVER, VBLK, VCHR, VDIR, VFIFO, VREG

if TYPE_CHECKING:
    from dfvm.kern.vfs.devfs import Cdev
    from dfvm.kern.vfs.mount import Mount
    from dfvm.kern.vfs.vfs_notify import Watch
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred, Vattr
    from dfvm.kern.vnode_file import VnodeFile
    from dfvm.lwkt.kern_lock import Lock
    from dfvm.vm.vm_object import VmObject


class VnodeOps:
    """What a vnode consists of, and a file system's side of it."""

    __slots__ = ("v_fifoinfo", "v_filesize", "v_flag", "v_gid", "v_lock", "v_lockf", "v_mode",
                 "v_mount", "v_mounts", "v_name", "v_names", "v_names_until", "v_nchild",
                 "v_object", "v_parent", "v_rdev", "v_seals", "v_socket", "v_textcount", "v_type",
                 "v_uid", "v_usecount", "v_watches", "v_writecount")  # fmt: skip

    v_type: int  # VREG …; never changes
    v_flag: int  # VROOT …
    v_mount: Mount  # the file system it belongs to; never changes
    v_usecount: int  # references; at 0 it may be recycled unless VKEEP
    v_writecount: int  # how many of its opens may write
    v_textcount: int  # processes that execute it; excludes v_writecount
    v_object: VmObject | None  # the cached pages of a regular file, made by the vnode pager
    v_filesize: int  # of a regular file, bytes; changes under v_lock
    v_mode: int  # permission bits, for access(); on host files as of the last look
    v_uid: int  # owner, likewise
    v_gid: int  # group, likewise
    v_parent: Vnode | None  # the directory it was last found in; of a directory: its "..". None
    # only for the root of everything and for what never had a name
    v_name: bytes  # its name there
    v_nchild: int  # vnodes whose v_parent this is; while not 0 it is not recycled
    v_names: dict[bytes, Vnode | None]  # of a directory: the name cache; None: known not to exist
    v_names_until: int  # monotonic ns up to which v_names can be trusted; FOREVER on our own
    v_mounts: dict[bytes, Mount] | None  # of a directory: what is mounted over which names
    v_lock: Lock | None  # serialises writers and truncation; made when first needed
    v_rdev: Cdev | None  # of a device: who it is; set by open()
    v_lockf: Any  # record locks and flocks (kern_lockf)
    v_fifoinfo: Any  # the two ends of an open fifo
    v_socket: Any  # the socket that is bound to this file, and has a reference
    v_seals: int  # F_SEAL_* (seals.py); 0 on all but memfds
    v_watches: dict[Watch, None] | None  # who wants its events; each holds a reference

    def __init__(self, mount: Mount, vtype: int) -> None:
        self.v_type = vtype
        self.v_flag = 0
        self.v_mount = mount
        self.v_usecount = 0
        self.v_writecount = 0
        self.v_textcount = 0
        self.v_object = None
        self.v_filesize = 0
        self.v_mode = 0
        self.v_uid = 0
        self.v_gid = 0
        self.v_parent = None
        self.v_name = b""
        self.v_nchild = 0
        if vtype == VDIR:
            self.v_names = {}
            self.v_names_until = FOREVER
        self.v_mounts = None
        self.v_lock = None
        self.v_rdev = None
        self.v_lockf = None
        self.v_fifoinfo = None
        self.v_socket = None
        self.v_seals = 0
        self.v_watches = None

    def __repr__(self) -> str:
        kind = ("non", "reg", "dir", "blk", "chr", "lnk", "sock", "fifo")[self.v_type]
        return f"<vnode {kind} {self.v_name!r} use {self.v_usecount}>"

    # Names.

    def vop_lookup(self, name: bytes) -> Vnode | None:
        """Find a name that is not in the cache."""
        raise err(ENOTDIR)

    def vop_revalidate(self) -> None:
        """v_names_until has passed: drop the names that are no longer so, set a new time."""

    def vop_create(self, name: bytes, vtype: int, mode: int, uid: int, gid: int,
                   rdev: int) -> Vnode:  # fmt: skip
        """Make anything but a symbolic link."""
        raise err(EACCES if vtype == VREG else EPERM)

    def vop_symlink(self, name: bytes, target: bytes, uid: int, gid: int) -> Vnode:
        """Make a symbolic link."""
        raise err(EPERM)

    def vop_tmpfile(self, mode: int, uid: int, gid: int) -> Vnode:
        """Make a regular file with no name."""
        raise err(EOPNOTSUPP)

    def vop_link(self, name: bytes, vp: Vnode) -> None:
        """Make `name` another name of vp."""
        raise err(EPERM)

    def vop_unlink(self, name: bytes, vp: Vnode) -> None:
        """Remove `name`, which is vp's."""
        raise err(EPERM)

    def vop_rmdir(self, name: bytes, vp: Vnode) -> None:
        """Remove the directory vp if it is empty, else ENOTEMPTY."""
        raise err(EPERM)

    def vop_rename(self, name: bytes, fvp: Vnode, tdvp: Vnode, tname: bytes, tvp: Vnode | None,
                   flags: int) -> None:  # fmt: skip
        """Move fvp to `tname` in tdvp, in place of tvp, or exchange the two."""
        raise err(EPERM)

    def vop_readdir(self) -> list[tuple[bytes, int, int]]:
        """The entries without "." and ".."."""
        raise err(ENOTDIR)

    def vop_readlink(self) -> bytes:
        """The target of a symbolic link."""
        raise err(EINVAL)

    def vop_magic(self, cred: Cred) -> Vnode:
        """Where a VMAGIC link leads."""
        raise err(ENOENT)

    def vop_data(self) -> Vnode:
        """The vnode that the file's pages, locks and watchers know: itself, unless this is what a
        view shows of it (nullfs.py)."""
        raise NotImplementedError

    def vop_mapped(self) -> None:
        """The file was mapped."""

    def vop_mounton(self) -> None:
        """Something is about to be mounted over a name in this directory: from now on a lookup of
        the directory leads to this vnode.

        :raises OSError: it can't be so.
        """

    # Attributes.

    def vop_fileid(self) -> int:
        """The inode number."""
        raise NotImplementedError

    def vop_getattr(self) -> Vattr:
        """All attributes; refreshes v_mode, v_uid and v_gid."""
        raise NotImplementedError

    def vop_setattr(self, mode: int, uid: int, gid: int, atime: int | None,
                    mtime: int | None) -> None:  # fmt: skip
        """Change what is neither -1 nor None; sets ctime."""
        raise err(EPERM)

    def vop_xattrs(self) -> dict[bytes, bytes]:
        """The extended attributes, not to be changed by the caller."""
        raise err(EOPNOTSUPP)

    def vop_setxattr(self, name: bytes, value: bytes | None) -> None:
        """Give the file an extended attribute, or take one (None) that it has; sets ctime."""
        raise err(EOPNOTSUPP)

    # Use.

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        """See open(). Whoever has devices passes their number on to device_open."""
        if self.v_type in (VCHR, VBLK, VFIFO):
            raise err(ENXIO)
        return None

    def vop_fileclass(self) -> type[VnodeFile] | None:
        """What open(2) makes of it, if that is not a plain VnodeFile."""
        return None

    def vop_close(self, fflag: int) -> None:
        """See close(). The reference is still held."""

    def vop_inactive(self) -> None:
        """The last reference is gone. May take new ones for a while, and block."""

    def vop_reclaim(self) -> None:
        """The vnode is being recycled: forget it. Does not block."""

    # For regular files with pages, and the vnode pager.

    def vop_getpage(self, off: int, mv: memoryview) -> int:
        """Fill mv from the file at `off` (page aligned); fewer bytes at the end of the file."""
        raise err(EINVAL)

    def vop_putpage(self, off: int, mv: memoryview) -> None:
        """Bring mv to the file's storage at `off`."""
        raise err(EINVAL)

    def vop_modify(self) -> int:
        """The contents or the size are about to change, with v_lock held: from here on what we
        know of them is the truth, and not what the host says. Returns the size. May block."""
        return self.v_filesize

    def vop_reserve(self, off: int, end: int) -> int:
        """Bytes off … end are about to be written. Returns up to where there is room.

        :raises OSError: ENOSPC when there is none at all.
        """
        return end

    def vop_allocate(self, off: int, end: int) -> None:
        """Make sure that bytes off … end, whether written or not, have room (fallocate).

        :raises OSError: ENOSPC
        """
        self.vop_reserve(off, end)

    def vop_wrote(self, size: int) -> None:
        """Data was written and the file is now `size` long: note the times, drop setuid."""

    def vop_stored(self, wait: bool) -> bool:
        """A shared mapping is about to become writable for a store: as vop_modify and vop_wrote.
        Without `wait` only if that does not block. Returns whether it was done."""
        return True

    def vop_accessed(self) -> None:
        """Data, names or the link's target were read: note the time, if that is due."""

    def vop_note_access(self, flags: int) -> None:
        """The same, through a mount with `flags` (ST_NOATIME …)."""

    def vop_seek_data(self, off: int, hole: bool) -> int:
        """See seek_data; `off` is inside the file, whose pages are clean. The end is a hole."""
        return self.v_filesize if hole else off

    def vop_setsize(self, size: int) -> None:
        """Make the storage `size` bytes long; the pages were dealt with."""
        raise err(EFBIG)

    def vop_fsync(self) -> None:
        """The pages have been put; bring the storage to the disk."""

    def vop_newsize(self) -> int:
        """v_filesize, after a look at the host where the file is the host's. May block."""
        return self.v_filesize

    def vop_zero(self, off: int, end: int) -> None:
        """Whole pages off … end of the storage become a hole."""
        raise err(EOPNOTSUPP)
