"""Files in memory over a host directory: the root of every machine, and /tmp.

The host's tree shows through, read-only; what the guest changes is kept here and ends with the
machine. There is one vnode for each inode, the host's or our own, so hard links and repeated opens
share pages. What a change costs is what it changes:

- written data: the pages written (store.py)
- chmod, chown, times, link count: the vnode is owned from then on, its attributes no longer follow
  the host's
- names: a directory's `o_upper` has the names made or moved here, and None (a whiteout) for a name
  of the host's that is gone. A directory made where there was one before has no host directory
  below it and so hides it altogether
- rename: the vnode moves with all it has, a directory with its host directory, whose HostRef knows
  where it is on the host. So rename and link are the same across layers as within one

Vnodes that hold any of this are VKEEP, and reachable from o_upper or, by host inode, from the
mount's o_inodes.

The host may change its tree while we run. Names found there are believed for HOST_TTL, then dropped
if the directory's mtime has moved; attributes likewise. open always looks, and drops the clean
pages of a file that has changed.
"""

from __future__ import annotations

import os
import sys
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import ENOSPC, ENOTEMPTY, ENXIO, err
from dfvm.kern.vfs.hostfd import HostRef
from dfvm.kern.vfs.mount import (
    ST_NOATIME,
    ST_NODIRATIME,
    ST_RDONLY,
    ST_RELATIME,
    Mount,
    Statfs,
)
from dfvm.kern.vfs.store import Quota, Store
from dfvm.kern.vfs.vfs_bio import vn_at_work, vn_flush, vn_host_changed
from dfvm.kern.vfs.vnode import Vnode
from dfvm.kern.vfs.vnode_param import (
    FOREVER,
    FREAD,
    IFTOVT,
    RENAME_EXCHANGE,
    S_IFMT,
    VBLK,
    VCHR,
    VDIR,
    VFIFO,
    VKEEP,
    VLNK,
    VRECLAIMED,
    VREG,
    VROOT,
    VTTODT,
    VUNLINKED,
    Vattr,
    vfs_timestamp,
)
from dfvm.vm.pager.vnode_pager import vnode_pager_setsize

if TYPE_CHECKING:
    from dfvm.kern.vfs.mount import Vfs
    from dfvm.kern.vfs.vnode_param import Cred

HOST_TTL: Final = 20_000_000  # ns for which what the host said is believed
HOST_RACY: Final = 50_000_000  # ns: an mtime so young may not move with the next change

_NO_ATIME: Final = ST_NOATIME | ST_NODIRATIME | ST_RDONLY
_DAY_NS: Final = 24 * 3600 * 1_000_000_000

_XATTRS_MAX: Final = 1 << 17  # bytes of names and values of one file's extended attributes

_INO_BASE: Final = 1 << 48  # our own inode numbers, above any host's

OVERLAY_MAGIC: Final = 0x794C7630  # Linux's OVERLAYFS_SUPER_MAGIC

# o_own
_OWN_ATTR: Final = 1  # mode, owner, times and link count are ours
_OWN_DATA: Final = 2  # size and contents are


class OvlVnode(Vnode):
    """A file of the host's, or of our own."""

    __slots__ = ("o_atime", "o_birth", "o_bytes", "o_ctime", "o_fileid", "o_fsid", "o_link",
                 "o_lower", "o_lower_mtime", "o_mtime", "o_nlink", "o_own", "o_rdev", "o_store",
                 "o_until", "o_upper", "o_xattrs")  # fmt: skip

    v_mount: OvlMount
    o_fsid: int  # st_dev; never changes
    o_fileid: int  # st_ino; never changes
    o_lower: HostRef | None  # the host's file, None if it is our own
    o_own: int  # _OWN_*; what is our own altogether has all of them
    o_until: int  # monotonic ns to which the host's attributes are believed; FOREVER if all owned
    o_lower_mtime: int
    # Of a directory over a host's: its mtime when the cached names were last known to be so, -1 if
    # that proves nothing. Of a file not _OWN_DATA: the host file's mtime that its pages are from.
    o_nlink: int  # link count as the guest sees it
    o_rdev: int  # device number
    o_atime: int  # ns, as the following
    o_mtime: int
    o_ctime: int
    o_birth: int | None  # None: made by the host, at a time not known
    o_bytes: int  # storage the host's file takes
    o_upper: dict[bytes, OvlVnode | None]  # of a directory: names that are ours; None: whiteout
    o_link: bytes | None  # of a symbolic link: the target; None: not read from the host yet
    o_xattrs: dict[bytes, bytes] | None  # extended attributes; None: as the host's file has them
    o_store: Store  # of a regular file: what lies under its pages

    def __init__(self, mount: OvlMount, vtype: int, fsid: int, fileid: int) -> None:
        super().__init__(mount, vtype)
        self.o_fsid = fsid
        self.o_fileid = fileid
        self.o_lower = None
        self.o_own = _OWN_ATTR | _OWN_DATA
        self.o_until = FOREVER
        self.o_lower_mtime = -1
        self.o_nlink = 1
        self.o_rdev = 0
        self.o_bytes = 0
        self.o_atime = self.o_mtime = self.o_ctime = now = vfs_timestamp()
        self.o_birth = now
        if vtype == VDIR:
            self.o_upper = {}
        self.o_link = None
        self.o_xattrs = None

    # What the host says.

    def _set_lower(self, ref: HostRef, st: os.stat_result) -> None:
        # A new vnode stands for the host's file `ref`.
        self.o_lower = ref
        ref.hr_vp = self
        self.o_own = 0
        self._from_host(st)
        if self.v_type == VREG:
            self.v_filesize = st.st_size
            self.o_lower_mtime = st.st_mtime_ns
            self.o_store = Store(self.v_mount.o_quota, ref, st.st_size)
        elif self.v_type == VDIR:
            self.v_names_until = 0

    def _from_host(self, st: os.stat_result) -> None:
        # Take over the attributes.
        self.v_mode = st.st_mode & 0o7777
        self.v_uid = st.st_uid
        self.v_gid = st.st_gid
        self.o_nlink = st.st_nlink
        self.o_rdev = st.st_rdev
        self.o_atime = st.st_atime_ns
        self.o_mtime = st.st_mtime_ns
        self.o_ctime = st.st_ctime_ns
        self.o_birth = None
        self.o_bytes = st.st_blocks * 512
        self.o_until = monotonic_ns() + HOST_TTL

    def _refresh(self) -> None:
        # Look at the host again. What is no longer there stays as it was: somebody has it.
        lower = self.o_lower
        if lower is None or self.o_own == _OWN_ATTR | _OWN_DATA:
            self.o_until = FOREVER
            return
        try:
            st = lower.stat()
        except OSError:
            self.o_until = monotonic_ns() + HOST_TTL
            return
        if self.v_type == VREG and not self.o_own & _OWN_DATA and not vn_at_work(self):
            if st.st_size != self.v_filesize or st.st_mtime_ns != self.o_lower_mtime:
                self._changed(st)
            self.o_bytes = st.st_blocks * 512
        if self.o_own & _OWN_ATTR:
            self.o_until = monotonic_ns() + HOST_TTL if self.v_type == VREG else FOREVER
        else:
            self._from_host(st)

    def _changed(self, st: os.stat_result) -> None:
        # The host's file is not what our clean pages are from.
        self.o_lower_mtime = st.st_mtime_ns
        self.o_store.lower_end = st.st_size
        vn_host_changed(self, st.st_size)

    def _own(self, what: int = _OWN_ATTR) -> None:
        # The guest is about to change it: from now on `what` is ours.
        if self.o_own & what == what:
            return
        if self.o_until < monotonic_ns():
            self._refresh()
        self.o_own |= what
        if self.o_own == _OWN_ATTR | _OWN_DATA or self.v_type != VREG:
            self.o_until = FOREVER
        self._keep()

    def charged(self) -> bool:
        """It was made here, and counts as one of the file system's inodes."""
        return self.o_lower is None and self.o_birth is not None

    def _keep(self) -> None:
        # From now on it holds what is nowhere else.
        self.v_flag |= VKEEP
        self.v_mount.mnt_vfs.inactive.pop(self, None)

    # Names.

    def vop_lookup(self, name: bytes) -> Vnode | None:
        upper = self.o_upper
        if name in upper:
            return upper[name]
        lower = self.o_lower
        if lower is None:
            return None
        st = lower.stat_name(name)
        if st is None:
            return None
        return self._host_vnode(name, lower, st)

    def _host_vnode(self, name: bytes, lower: HostRef, st: os.stat_result) -> OvlVnode | None:
        # The vnode of what the host has under `name`, and looks like `st`.
        mount = self.v_mount
        key = (st.st_dev, st.st_ino)
        vtype = IFTOVT.get(st.st_mode & S_IFMT)
        if vtype is None:
            return None
        vp = mount.o_inodes.get(key)
        if vp is not None and vp.v_type == vtype and vp.o_lower is not None:
            # It may have been moved on the host, and is found under its new name only.
            ref = vp.o_lower
            if ref.hr_parent is not None:
                ref.hr_parent, ref.hr_name = lower, name
            return vp
        vp = OvlVnode(mount, vtype, mount.o_devs.get(st.st_dev, st.st_dev), st.st_ino)
        if st.st_dev != lower.hr_dev and mount.mnt_vfs.fds.hidden(st.st_dev):
            # Not files but the host's kernel: a directory shows, and is empty. See hostfd.
            vp._from_host(st)
            vp.o_until = FOREVER
            vp.v_flag |= VKEEP
        else:
            vp._set_lower(HostRef(mount.mnt_vfs.fds, lower, name, st), st)
        mount.o_inodes[key] = vp
        return vp

    def vop_revalidate(self) -> None:
        now = monotonic_ns()
        lower = self.o_lower
        if lower is None:
            self.v_names_until = FOREVER
            return
        self.v_names_until = now + HOST_TTL
        try:
            mtime = lower.stat().st_mtime_ns
        except OSError:
            self.cache_purge()
            return
        if mtime != self.o_lower_mtime:
            self.cache_purge()
            self.o_lower_mtime = mtime if time_ns() - mtime > HOST_RACY else -1

    def _touch(self) -> None:
        # Names in this directory have changed.
        self._own()
        self.o_mtime = self.o_ctime = vfs_timestamp()

    def _links(self, delta: int) -> None:
        # So many directories more in this one; some hosts don't count them.
        if self.o_nlink > 1:
            self.o_nlink += delta

    def _put(self, name: bytes, vp: OvlVnode) -> None:
        # `name` is vp's now.
        vp._keep()
        self.o_upper[name] = vp

    def _take(self, name: bytes) -> None:
        # There is no `name` any more. A whiteout is needed only over something.
        lower = self.o_lower
        if lower is not None:
            try:
                below = lower.stat_name(name) is not None
            except OSError:
                below = True
            if below:
                self.o_upper[name] = None
                return
        self.o_upper.pop(name, None)

    def _new(self, vtype: int, mode: int, uid: int, gid: int) -> OvlVnode:
        # A file of our own, without a name.
        mount = self.v_mount
        mount.take_inode()
        mount.o_lastino += 1
        vp = OvlVnode(mount, vtype, self.o_fsid, mount.o_lastino)
        vp.v_flag |= VKEEP
        vp.v_mode = mode
        vp.v_uid = uid
        vp.v_gid = gid
        if vtype == VREG:
            vp.o_store = Store(mount.o_quota, None, 0)
        elif vtype == VDIR:
            vp.o_nlink = 2
        return vp

    def vop_create(self, name: bytes, vtype: int, mode: int, uid: int, gid: int,
                   rdev: int) -> Vnode:  # fmt: skip
        vp = self._new(vtype, mode, uid, gid)
        self._touch()
        vp.o_rdev = rdev
        if vtype == VDIR:
            self._links(1)
        self.o_upper[name] = vp
        return vp

    def vop_symlink(self, name: bytes, target: bytes, uid: int, gid: int) -> Vnode:
        vp = self._new(VLNK, 0o777, uid, gid)
        self._touch()
        vp.o_link = target
        self.o_upper[name] = vp
        return vp

    def vop_tmpfile(self, mode: int, uid: int, gid: int) -> Vnode:
        vp = self._new(VREG, mode, uid, gid)
        vp.o_nlink = 0
        vp.v_flag |= VUNLINKED
        return vp

    def vop_link(self, name: bytes, vp: Vnode) -> None:
        assert isinstance(vp, OvlVnode)
        if vp.charged() and vp.o_nlink:  # each name but the first is charged as an inode
            self.v_mount.take_inode()
        vp._own()
        self._touch()
        vp.o_nlink += 1
        vp.o_ctime = self.o_ctime
        self._put(name, vp)

    def _unlinked(self, vp: OvlVnode) -> None:
        # vp has a name less.
        vp._own()
        if vp.charged() and vp.o_nlink > 1 and vp.v_type != VDIR:
            self.v_mount.o_ninodes -= 1
        vp.o_nlink = 0 if vp.v_type == VDIR else vp.o_nlink - 1
        vp.o_ctime = vfs_timestamp()

    def vop_unlink(self, name: bytes, vp: Vnode) -> None:
        assert isinstance(vp, OvlVnode)
        self._touch()
        self._take(name)
        self._unlinked(vp)

    def vop_rmdir(self, name: bytes, vp: Vnode) -> None:
        assert isinstance(vp, OvlVnode)
        if vp.vop_readdir():
            raise err(ENOTEMPTY)
        self.vop_unlink(name, vp)
        self._links(-1)

    def vop_rename(self, name: bytes, fvp: Vnode, tdvp: Vnode, tname: bytes, tvp: Vnode | None,
                   flags: int) -> None:  # fmt: skip
        assert isinstance(fvp, OvlVnode) and isinstance(tdvp, OvlVnode)
        assert tvp is None or isinstance(tvp, OvlVnode)
        fdir = fvp.v_type == VDIR
        tdir = tvp is not None and tvp.v_type == VDIR
        if tdir and tvp is not None and not flags & RENAME_EXCHANGE and tvp.vop_readdir():
            raise err(ENOTEMPTY)
        fvp._own()
        self._touch()
        tdvp._touch()
        fvp.o_ctime = tdvp.o_ctime
        if flags & RENAME_EXCHANGE:
            assert tvp is not None
            tvp._own()
            tvp.o_ctime = tdvp.o_ctime
            self._put(name, tvp)
            self._links(tdir - fdir)
            tdvp._links(fdir - tdir)
        else:
            self._take(name)
            self._links(-fdir)
            tdvp._links(fdir - tdir)
            if tvp is not None:
                tdvp._unlinked(tvp)
        tdvp._put(tname, fvp)

    def vop_readdir(self) -> list[tuple[bytes, int, int]]:
        upper = self.o_upper
        entries = []
        lower = self.o_lower
        if lower is not None:
            entries = [(name, ino, VTTODT[IFTOVT.get(fmt, 0)]) for name, ino, fmt in lower.list()
                       if name not in upper]  # fmt: skip
        entries += [(name, vp.o_fileid, VTTODT[vp.v_type]) for name, vp in upper.items() if vp]
        return entries

    def vop_readlink(self) -> bytes:
        target = self.o_link
        if target is None:
            assert self.o_lower is not None
            target = self.o_link = self.o_lower.readlink()
        return target

    # Attributes.

    def vop_fileid(self) -> int:
        return self.o_fileid

    def vop_getattr(self) -> Vattr:
        if self.o_until < monotonic_ns():
            self._refresh()
        va = Vattr()
        vtype = va.va_type = self.v_type
        va.va_mode = self.v_mode
        va.va_nlink = self.o_nlink
        va.va_uid = self.v_uid
        va.va_gid = self.v_gid
        va.va_fsid = self.o_fsid
        va.va_fileid = self.o_fileid
        va.va_rdev = self.o_rdev
        va.va_blksize = 4096
        va.va_atime = self.o_atime
        va.va_mtime = self.o_mtime
        va.va_ctime = self.o_ctime
        va.va_birthtime = self.o_birth
        if vtype == VREG:
            va.va_size = self.v_filesize
            va.va_bytes = max(self.o_bytes, len(self.o_store.pages) * 4096)
        elif vtype == VLNK:
            va.va_size = len(self.vop_readlink())
            va.va_bytes = 0
        else:
            va.va_size = 4096 if vtype == VDIR else 0
            va.va_bytes = va.va_size
        return va

    def vop_setattr(self, mode: int, uid: int, gid: int, atime: int | None,
                    mtime: int | None) -> None:  # fmt: skip
        self._own()
        if mode >= 0:
            self.v_mode = mode
        if uid >= 0:
            self.v_uid = uid
        if gid >= 0:
            self.v_gid = gid
        if atime is not None:
            self.o_atime = atime
        if mtime is not None:
            self.o_mtime = mtime
        self.o_ctime = vfs_timestamp()

    def vop_xattrs(self) -> dict[bytes, bytes]:
        xattrs = self.o_xattrs
        if xattrs is not None:
            return xattrs
        return {} if self.o_lower is None else self.o_lower.xattrs()

    def vop_setxattr(self, name: bytes, value: bytes | None) -> None:
        xattrs = dict(self.vop_xattrs())
        xattrs.pop(name, None)
        if value is not None:
            xattrs[name] = value
        quota = self.v_mount.o_quota
        more = _xattr_pages(xattrs) - _xattr_pages(self.o_xattrs)
        if value is not None and (
            _xattr_bytes(xattrs) > _XATTRS_MAX or (more > 0 and quota.used + more > quota.limit)
        ):
            raise err(ENOSPC)
        self._own()
        self.o_xattrs = xattrs
        quota.used += more
        self.o_ctime = vfs_timestamp()

    # Use.

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        vtype = self.v_type
        if vtype in (VCHR, VBLK):
            return self.device_open(self.o_rdev, fflag, cred)
        lower = self.o_lower
        if lower is None:
            return None
        if vtype == VFIFO:
            raise err(ENXIO)
        if vtype == VREG and not self.o_own & _OWN_DATA:
            if fflag & FREAD:
                lower.fd()  # the host may refuse
            self._refresh()
        return None

    def vop_inactive(self) -> None:
        if self.o_nlink <= 0:
            if not self.v_flag & (VROOT | VRECLAIMED):
                self._destroy()
        elif self.v_type == VREG and not self.o_own & _OWN_DATA:
            # What was written through a mapping must reach the store, and with it VKEEP, before
            # the vnode may be recycled.
            vn_flush(self)

    def _destroy(self) -> None:
        # No name, nobody uses it: what it holds goes.
        if self.charged():
            self.v_mount.o_ninodes -= 1
        if self.v_type == VREG:
            vnode_pager_setsize(self, 0)
            self.o_store.free()
        elif self.v_type == VDIR:
            self.o_upper = {}
        self.v_mount.o_quota.used -= _xattr_pages(self.o_xattrs)
        self.o_xattrs = None
        self.v_mount.mnt_vfs.reclaim(self)

    def vop_reclaim(self) -> None:
        lower = self.o_lower
        if lower is not None and lower.hr_parent is not None:
            lower.close()
            lower.hr_vp = None
        inodes = self.v_mount.o_inodes
        if lower is None:
            key = (self.o_fsid, self.o_fileid)
        else:
            key = (lower.hr_dev, lower.hr_ino)
        if inodes.get(key) is self:
            del inodes[key]

    # Pages.

    def vop_getpage(self, off: int, mv: memoryview) -> int:
        return self.o_store.read(off, mv)

    def vop_putpage(self, off: int, mv: memoryview) -> None:
        if not self.o_own & _OWN_DATA:
            # Written through a mapping. The page is busy: no look at the host now, which might
            # want to throw it away.
            self.o_own = _OWN_ATTR | _OWN_DATA
            self.o_until = FOREVER
            self._keep()
            self.o_mtime = self.o_ctime = vfs_timestamp()
        self.o_store.write(off, mv)

    def vop_modify(self) -> int:
        self._own(_OWN_ATTR | _OWN_DATA)
        return self.v_filesize

    def vop_newsize(self) -> int:
        if self.o_until < monotonic_ns():
            self._refresh()
        return self.v_filesize

    def vop_reserve(self, off: int, end: int) -> int:
        return self.o_store.reserve(off, end)

    def vop_wrote(self, size: int) -> None:
        self.o_mtime = self.o_ctime = vfs_timestamp()

    def vop_stored(self, wait: bool) -> bool:
        if not self.o_own & _OWN_DATA:
            if not wait:
                return False
            self.vop_modify()
        self.o_mtime = self.o_ctime = vfs_timestamp()
        return True

    def vop_accessed(self) -> None:
        if self.o_own & _OWN_ATTR:  # the host notes its own files'
            self.vop_note_access(self.v_mount.mnt_flags)

    def vop_note_access(self, flags: int) -> None:
        if not self.o_own & _OWN_ATTR:
            return
        if flags & _NO_ATIME and (flags & (ST_NOATIME | ST_RDONLY) or self.v_type == VDIR):
            return
        atime = self.o_atime
        now = vfs_timestamp()
        due = atime <= self.o_mtime or atime <= self.o_ctime or now - atime > _DAY_NS
        if (due or not flags & ST_RELATIME) and not self.v_mount.mnt_fsflags & ST_RDONLY:
            self.o_atime = now

    def vop_seek_data(self, off: int, hole: bool) -> int:
        return self.o_store.seek(off, hole, self.v_filesize)

    def vop_setsize(self, size: int) -> None:
        self.o_store.setsize(size)
        self.o_bytes = min(self.o_bytes, (size + 4095) & -4096)
        self.o_mtime = self.o_ctime = vfs_timestamp()

    def vop_zero(self, off: int, end: int) -> None:
        self.o_store.zero(off, end)


def _xattr_bytes(xattrs: dict[bytes, bytes]) -> int:
    return sum(map(len, xattrs)) + sum(map(len, xattrs.values()))


def _xattr_pages(xattrs: dict[bytes, bytes] | None) -> int:
    # Memory that a file's own extended attributes take.
    return 0 if xattrs is None else (_xattr_bytes(xattrs) + 4095) // 4096


class OvlMount(Mount):
    """A tree of files in memory, over a host directory or over nothing."""

    __slots__ = ("o_devs", "o_inodes", "o_lastino", "o_maxinodes", "o_ninodes", "o_quota",
                 "o_top")  # fmt: skip

    o_top: HostRef | None  # the host directory below the root; None: there is none
    o_inodes: dict[tuple[int, int], OvlVnode]  # vnodes over host files, by (st_dev, st_ino)
    o_devs: dict[int, int]  # host st_dev → what the guest sees in its place; else they are the same
    o_lastino: int  # the last inode number given to a file of our own
    o_quota: Quota  # memory the files may take
    o_ninodes: int  # our own files, each counted once for each name
    o_maxinodes: int  # how many of them there may be

    def __init__(self, vfs: Vfs, fstype: str, magic: int, top: bytes | None, limit: int,
                 flags: int = 0, dev: int = 0) -> None:  # fmt: skip
        """`top`: the host directory; `limit`: bytes of data and extended attributes the files may
        have altogether; `dev`: st_dev of what lies in `top`, if not the host's own."""
        super().__init__(vfs, fstype, "dfvm" if fstype == "overlay" else fstype, magic, flags)
        self.mnt_private = True
        self.o_inodes = {}
        self.o_devs = {}
        self.o_lastino = _INO_BASE
        self.o_quota = Quota(limit // 4096)
        self.o_ninodes = 0
        self.o_maxinodes = sys.maxsize
        self.o_top = None
        if top is None:
            self.o_lastino = 1
            root = OvlVnode(self, VDIR, vfs.anon_dev(), 1)
            root.v_mode = 0o1777
            root.o_nlink = 2
        else:
            ref = self.o_top = vfs.fds.top(top)
            st = ref.stat()
            if dev:
                self.o_devs[st.st_dev] = dev
            root = OvlVnode(self, VDIR, self.o_devs.get(st.st_dev, st.st_dev), st.st_ino)
            root._set_lower(ref, st)
            self.o_inodes[(st.st_dev, st.st_ino)] = root
        self.set_root(root)

    def take_inode(self) -> None:
        """A file of our own is about to be made, or to get one name more.

        :raises OSError: ENOSPC
        """
        if self.o_ninodes >= self.o_maxinodes:
            raise err(ENOSPC)
        self.o_ninodes += 1

    def unmount(self) -> bool:
        for vp in self.vnodes():
            assert isinstance(vp, OvlVnode)
            if vp.v_type == VREG:
                vnode_pager_setsize(vp, 0)
                vp.o_store.free()
            self.mnt_vfs.reclaim(vp)
        if self.o_top is not None:
            self.o_top.close()
        return True

    def statfs(self) -> Statfs:
        sf = super().statfs()
        quota = self.o_quota
        sf.f_blocks = quota.limit
        sf.f_bfree = sf.f_bavail = max(0, quota.limit - quota.used)
        sf.f_files = 1 << 20
        sf.f_ffree = sf.f_files - len(self.o_inodes)
        sf.f_fsid = self.mnt_root.vop_getattr().va_fsid
        if self.o_top is not None:
            host = os.fstatvfs(self.o_top.fd())
            sf.f_namelen = host.f_namemax
            if self.mnt_fstype == "overlay":
                # What is there is the host's, what may be written is ours.
                sf.f_blocks = host.f_blocks * host.f_frsize // 4096
                sf.f_bavail = min(sf.f_bavail, host.f_bavail * host.f_frsize // 4096)
                sf.f_bfree = max(sf.f_bavail, host.f_bfree * host.f_frsize // 4096)
                sf.f_files, sf.f_ffree = host.f_files, host.f_ffree
        return sf

    def vnodes(self) -> list[Vnode]:
        """Every vnode of this mount that a name leads to and that is in memory, and the host's
        ones nobody has a name for."""
        seen: dict[OvlVnode, None] = {}
        root = self.mnt_root
        assert isinstance(root, OvlVnode)
        todo = [root, *self.o_inodes.values()]
        while todo:
            vp = todo.pop()
            if vp in seen:
                continue
            seen[vp] = None
            if vp.v_type == VDIR:
                todo += [child for child in vp.o_upper.values() if child is not None]
        return list(seen)

    def check(self, bad: list[str]) -> None:
        """Every name we own counts as a link, directories have one parent, the quota is what the
        stores hold, and nothing that matters can be recycled."""
        names: dict[OvlVnode, int] = {}
        vnodes = self.vnodes()
        for vp in vnodes:
            assert isinstance(vp, OvlVnode)
            if vp.v_flag & VRECLAIMED:
                bad.append(f"{vp!r}: recycled, but still reachable")
            if vp.o_own and vp.o_lower is not None and not vp.v_flag & VKEEP:
                bad.append(f"{vp!r}: holds changes and may be recycled")
            if vp.v_type == VDIR:
                for child in vp.o_upper.values():
                    if child is not None:
                        names[child] = names.get(child, 0) + 1
        used = inodes = 0
        for vp in vnodes:
            assert isinstance(vp, OvlVnode)
            if vp.charged() and not vp.v_flag & VROOT:
                inodes += max(vp.o_nlink, 1) if vp.v_type != VDIR else 1
            used += _xattr_pages(vp.o_xattrs)
            if vp.v_type == VREG:
                used += len(vp.o_store.pages)
            count = names.get(vp, 0)
            if count and not vp.v_flag & VKEEP:
                bad.append(f"{vp!r}: named by the overlay and may be recycled")
            if vp.v_type == VDIR:
                if count > 1:
                    bad.append(f"{vp!r}: a directory with {count} parents")
                if vp.o_lower is None and not vp.v_flag & VROOT:
                    dirs = sum(1 for c in vp.o_upper.values() if c and c.v_type == VDIR)
                    if count and vp.o_nlink != 2 + dirs:
                        bad.append(f"{vp!r}: {vp.o_nlink} links, 2 + {dirs} directories")
            elif vp.o_lower is None and vp.o_nlink != count:
                bad.append(f"{vp!r}: {vp.o_nlink} links, {count} names")
            elif vp.o_nlink < count:
                bad.append(f"{vp!r}: {vp.o_nlink} links, {count} names here alone")
        if used > self.o_quota.used:
            bad.append(f"{self.mnt_fstype}: files hold {used} pages, {self.o_quota.used} counted")
        if inodes > self.o_ninodes:
            bad.append(f"{self.mnt_fstype}: {inodes} inodes, {self.o_ninodes} counted")
