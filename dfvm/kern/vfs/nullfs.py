"""Views: a file system, or a part of it, at one more place (mount --bind).

A view has vnodes of its own, one for each of the file system's that somebody looks at through it.
They hold nothing but where they belong: name, contents, attributes, locks and watchers are those of
the vnode below (`n_lower`), which is asked each time, so that a change is seen in all views at
once. What a view decides by itself is what the mount decides: its flags (read-only, nosuid …),
where ".." of its root leads, and what is mounted on it.

The methods of Vnode check rights and mounts on the view's vnode and come down here as vop_
operations, which are passed on with the vnodes below. Contents are read, written and mapped on the
vnode below altogether; `Vnode.vop_data` names it to those who need to know what file it really is.

A vnode of a view exists as long as somebody refers to it; while it is referenced (v_usecount) it
has one reference on the vnode below.

Source: the idea is that of BSD's nullfs; that the layers share one vnode's pages is DragonFly's
sys/vfs/nullfs, whose name cache knows mounts. Behaviour as Linux fs/namespace.c (clone_mnt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from dfvm.kern.kern_errno import EROFS, err
from dfvm.kern.vfs.mount import Mount
from dfvm.kern.vfs.vnode import Vnode
from dfvm.kern.vfs.vnode_param import (
    FOREVER,
    OFF_MAX,
    VDIR,
    VKEEP,
    VLNK,
    VNOCACHE,
    VRECLAIMED,
    VREG,
    VROOT,
    VWRITE,
)
from dfvm.lwkt.panic import panic

if TYPE_CHECKING:
    from dfvm.kern.vfs.mount import Statfs
    from dfvm.kern.vfs.vnode_param import Cred, Vattr
    from dfvm.kern.vnode_file import VnodeFile
    from dfvm.vm.copyio import Uio

# What all views of a file have in common: kept in the vnode below.
_SHARED: Final = (
    "v_writecount", "v_textcount", "v_object", "v_filesize", "v_mode", "v_uid", "v_gid",
    "v_nchild", "v_lock", "v_rdev", "v_lockf", "v_fifoinfo", "v_seals", "v_watches",
)  # fmt: skip


def _shared(name: str) -> property:
    def get(self: NullVnode) -> Any:
        return getattr(self.n_lower, name)

    def put(self: NullVnode, value: Any) -> None:
        setattr(self.n_lower, name, value)

    return property(get, put)


class NullVnode(Vnode):
    """A file as one view shows it."""

    __slots__ = ("__weakref__", "n_lower", "n_name", "n_parent")

    v_mount: NullMount
    n_lower: Vnode  # the file system's own; never changes
    n_parent: Vnode | None  # of the view's root: the directory it is mounted in
    n_name: bytes  # … and its name there

    def __init__(self, mount: NullMount, lower: Vnode) -> None:
        # Not Vnode's: what is shared has been set long ago.
        self.v_type = lower.v_type
        self.v_mount = mount
        self.v_usecount = 0
        self.v_mounts = None
        self.n_lower = lower
        self.n_parent = None
        self.n_name = b""
        if lower.v_type == VDIR:
            self.v_names = {}  # only what is mounted here
            self.v_names_until = FOREVER

    def __repr__(self) -> str:
        return f"<view of {self.n_lower!r} use {self.v_usecount}>"

    def vop_data(self) -> Vnode:
        return self.n_lower

    def _root(self) -> bool:
        return self.n_lower is self.v_mount.n_root

    # Flags, and where it is. The root's place is the view's; everything else is where it is below.

    def _get_flag(self) -> int:
        flag = self.n_lower.v_flag & ~VROOT
        if self.v_type == VDIR:
            flag |= VNOCACHE
        return flag | VROOT if self._root() else flag

    def _set_flag(self, flag: int) -> None:
        lower = self.n_lower
        keep = VROOT | VNOCACHE
        lower.v_flag = flag & ~keep | lower.v_flag & keep

    def _get_parent(self) -> Vnode | None:
        mount = self.v_mount
        lower = self.n_lower
        if lower is mount.n_root:
            return self.n_parent
        up = lower.v_parent
        # It may have been moved out of what the view shows: there is no way up from there.
        at = up
        while at is not mount.n_root:
            if at is None or at.v_flag & VROOT:
                return None
            at = at.v_parent
        return None if up is None else mount.node(up)

    def _get_name(self) -> bytes:
        return self.n_name if self._root() else self.n_lower.v_name

    def _ignore(self, value: Any) -> None:
        # A lookup says where it found the vnode: the one below knows already.
        pass

    v_flag = property(_get_flag, _set_flag)
    v_parent = property(_get_parent, _ignore)
    v_name = property(_get_name, _ignore)

    def set_parent(self, dvp: Vnode | None, name: bytes) -> None:
        if self._root():
            self.n_parent, self.n_name = dvp, name

    # References.

    def vref(self) -> None:
        count = self.v_usecount
        self.v_usecount = count + 1
        if count == 0:
            mount = self.v_mount
            mount.mnt_inuse += 1
            mount.n_used[self] = None
            self.n_lower.vref()

    def vrele(self) -> None:
        count = self.v_usecount - 1
        self.v_usecount = count
        if count > 0:
            return
        if count < 0:
            panic(f"vrele: {self!r}")
        mount = self.v_mount
        mount.mnt_inuse -= 1
        del mount.n_used[self]
        self.n_lower.vrele()

    def nameless(self) -> None:
        self.n_lower.nameless()

    # Names.

    def vop_lookup(self, name: bytes) -> Vnode | None:
        lower = self.n_lower
        if lower.v_mounts is not None and name in lower.v_mounts:
            # What is mounted there is no part of the view: it shows what lies below.
            vp = lower.vop_lookup(name)
            if vp is not None and not vp.v_flag & VRECLAIMED:
                vp.set_parent(lower, name)
                if not (vp.v_usecount or vp.v_flag & VKEEP):
                    lower.v_mount.mnt_vfs.vnode_idle(vp)
        else:
            vp = lower.lookup(name)
        return None if vp is None else self.v_mount.node(vp)

    def cache_enter(self, name: bytes, vp: Vnode | None) -> None:
        self.n_lower.cache_enter(name, None if vp is None else vp.vop_data())

    def cache_purge(self) -> None:
        self.n_lower.cache_purge()

    def cache_gone(self, name: bytes, vp: Vnode) -> None:
        self.n_lower.cache_gone(name, vp.vop_data())

    def vop_create(self, name: bytes, vtype: int, mode: int, uid: int, gid: int,
                   rdev: int) -> Vnode:  # fmt: skip
        return self.v_mount.node(self.n_lower.vop_create(name, vtype, mode, uid, gid, rdev))

    def vop_symlink(self, name: bytes, target: bytes, uid: int, gid: int) -> Vnode:
        return self.v_mount.node(self.n_lower.vop_symlink(name, target, uid, gid))

    def vop_tmpfile(self, mode: int, uid: int, gid: int) -> Vnode:
        return self.v_mount.node(self.n_lower.vop_tmpfile(mode, uid, gid))

    def vop_link(self, name: bytes, vp: Vnode) -> None:
        self.n_lower.vop_link(name, vp.vop_data())

    def vop_unlink(self, name: bytes, vp: Vnode) -> None:
        self.n_lower.vop_unlink(name, vp.vop_data())

    def vop_rmdir(self, name: bytes, vp: Vnode) -> None:
        self.n_lower.vop_rmdir(name, vp.vop_data())

    def vop_rename(self, name: bytes, fvp: Vnode, tdvp: Vnode, tname: bytes, tvp: Vnode | None,
                   flags: int) -> None:  # fmt: skip
        over = None if tvp is None else tvp.vop_data()
        self.n_lower.vop_rename(name, fvp.vop_data(), tdvp.vop_data(), tname, over, flags)

    def vop_readdir(self) -> list[tuple[bytes, int, int]]:
        return self.n_lower.vop_readdir()

    def vop_readlink(self) -> bytes:
        return self.n_lower.vop_readlink()

    def vop_magic(self, cred: Cred) -> Vnode:
        return self.n_lower.vop_magic(cred)

    def vop_mapped(self) -> None:
        self.v_mount.n_mapped[self] = None

    def vop_mounton(self) -> None:
        self.n_lower.vop_mounton()

    # Attributes.

    def vop_fileid(self) -> int:
        return self.n_lower.vop_fileid()

    def vop_getattr(self) -> Vattr:
        return self.n_lower.vop_getattr()

    def vop_setattr(self, mode: int, uid: int, gid: int, atime: int | None,
                    mtime: int | None) -> None:  # fmt: skip
        self.n_lower.vop_setattr(mode, uid, gid, atime, mtime)

    def vop_xattrs(self) -> dict[bytes, bytes]:
        return self.n_lower.vop_xattrs()

    def vop_setxattr(self, name: bytes, value: bytes | None) -> None:
        self.n_lower.vop_setxattr(name, value)

    def access(self, want: int, cred: Cred) -> None:
        if self.n_lower.v_mount.mnt_rdonly:
            super().access(want, cred)  # the other mount's flags are not ours
            return
        if want & VWRITE and self.v_mount.mnt_rdonly and self.v_type in (VREG, VDIR, VLNK):
            raise err(EROFS)
        self.n_lower.access(want, cred)

    # Use.

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        return self.n_lower.vop_open(fflag, cred)

    def vop_fileclass(self) -> type[VnodeFile] | None:
        return None

    def vop_close(self, fflag: int) -> None:
        self.n_lower.vop_close(fflag)

    def vop_accessed(self) -> None:
        self.n_lower.vop_note_access(self.v_mount.mnt_flags)

    def vop_wrote(self, size: int) -> None:
        self.n_lower.vop_wrote(size)

    def vop_newsize(self) -> int:
        return self.n_lower.vop_newsize()

    # Contents: the business of the vnode below.

    def read(self, uio: Uio, off: int, ioflag: int) -> None:
        self.n_lower.read(uio, off, ioflag)

    def write(self, uio: Uio, off: int, ioflag: int, limit: int = OFF_MAX) -> int:
        return self.n_lower.write(uio, off, ioflag, limit)

    def setsize(self, length: int) -> None:
        self.n_lower.setsize(length)

    def seek_data(self, off: int, hole: bool) -> int:
        return self.n_lower.seek_data(off, hole)

    def poll(self, events: int) -> int:
        return self.n_lower.poll(events)

    def ioctl(self, cmd: int, arg: int, lwp: Any) -> int:
        return self.n_lower.ioctl(cmd, arg, lwp)

    def splices(self) -> int:
        return self.n_lower.splices()

    def mmap(self) -> int:
        return self.n_lower.mmap()

    def fsync(self) -> None:
        self.n_lower.fsync()

    def allocate(self, mode: int, off: int, length: int) -> None:
        self.n_lower.allocate(mode, off, length)


for _name in _SHARED:
    setattr(NullVnode, _name, _shared(_name))


class NullMount(Mount):
    """A view of (a part of) a file system."""

    __slots__ = ("n_mapped", "n_nodes", "n_root", "n_used")

    mnt_root: NullVnode
    n_root: Vnode  # the vnode below the root; never changes
    n_nodes: WeakValueDictionary[Vnode, NullVnode]  # by the vnode below
    n_used: dict[NullVnode, None]  # those with references
    n_mapped: dict[NullVnode, None]  # those that were mapped, and may still be

    def __init__(self, of: Mount, root: Vnode, flags: int) -> None:
        """A view of what lies at `root`, a vnode of the file system `of`, with flags (ST_MOUNT)
        of its own."""
        super().__init__(of.mnt_vfs, of.mnt_fstype, of.mnt_from, of.mnt_magic)
        self.mnt_fs = of
        self.mnt_private = of.mnt_private
        self.mnt_fixed = of.mnt_fixed
        self.n_root = root
        self.n_nodes = WeakValueDictionary()
        self.n_used = {}
        self.n_mapped = {}
        self.set_flags(flags)
        self.mnt_root = self.node(root)
        self.mnt_root.vref()

    def node(self, lower: Vnode) -> NullVnode:
        """What the view shows of a vnode of the file system."""
        vp = self.n_nodes.get(lower)
        if vp is None:
            vp = self.n_nodes[lower] = NullVnode(self, lower)
        return vp

    def is_mapped(self) -> bool:
        """Is a file mapped that was mapped through this view? (Which of the mappings that it has
        were made through it, nobody knows.)"""
        for vp in list(self.n_mapped):
            object = vp.v_object
            if object is not None and object.backing_list:
                return True
            del self.n_mapped[vp]
        return False

    def statfs(self) -> Statfs:
        sf = self.mnt_fs.statfs()
        sf.f_flags = super().statfs().f_flags | self.mnt_fs.mnt_fsflags
        return sf

    def sync(self) -> list[tuple[Vnode, str]]:
        return self.mnt_fs.sync()

    def vnodes(self) -> list[Vnode]:
        return [*self.n_used]
