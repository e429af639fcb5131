"""Host directories that are written through: what --rw names.

Every change of a name or an attribute is made on the host at once. Written data is cached in the
file's pages like any other and reaches the host with fsync, msync and the last close, when memory
is short, and at the end of the machine; until then the guest's size and mtime are the true ones.

Devices are never made on the host, and fifos only rendezvous within the machine: the host's own
are not opened.
"""

from __future__ import annotations

import os
from stat import S_IFIFO, S_IFSOCK, S_ISGID, S_ISUID
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EIO, EOPNOTSUPP, EPERM, ESTALE, EXDEV, err
from dfvm.kern.vfs.hostfd import HostRef, host_fallocate, host_rename
from dfvm.kern.vfs.mount import ST_NOATIME, Mount, Statfs
from dfvm.kern.vfs.overlay import HOST_RACY, HOST_TTL
from dfvm.kern.vfs.vfs_bio import vn_at_work, vn_flush, vn_host_changed
from dfvm.kern.vfs.vnode import Vnode
from dfvm.kern.vfs.vnode_param import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FREAD,
    FWRITE,
    IFTOVT,
    RENAME_EXCHANGE,
    S_IFMT,
    VDIR,
    VFIFO,
    VKEEP,
    VLNK,
    VREG,
    VSOCK,
    VTTODT,
    VUNLINKED,
    Vattr,
    vfs_timestamp,
)
from dfvm.vm.pager.vnode_pager import vnode_pager_setsize

if TYPE_CHECKING:
    from dfvm.kern.vfs.mount import Vfs
    from dfvm.kern.vfs.vnode_param import Cred

_CREATE: Final = (
    os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
)  # fmt: skip
_BIG: Final = (1 << 31) - 1  # every host takes files up to here
_OPATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class HostVnode(Vnode):
    """A file of the host's that may be changed."""

    __slots__ = ("h_dirty", "h_hidden", "h_lower_mtime", "h_ref", "h_st", "h_until", "h_wtime")

    v_mount: HostMount
    h_ref: HostRef  # where it is: by the name that v_parent and v_name say, too
    h_st: os.stat_result  # the host's attributes, as of the last look
    h_until: int  # monotonic ns to which they are believed
    h_lower_mtime: int  # of a directory: mtime when its cached names were last known to be so, -1
    # if that proves nothing. Of a file: the mtime its clean pages are from
    h_dirty: bool  # the guest has written: its size and h_wtime hold, not the host's
    h_wtime: int  # ns, when it did
    h_hidden: bool  # a directory of a pseudo file system: appears empty (see hostfd)

    def __init__(self, mount: HostMount, vtype: int, ref: HostRef, st: os.stat_result) -> None:
        super().__init__(mount, vtype)
        self.h_ref = ref
        ref.hr_vp = self
        self.h_lower_mtime = -1
        self.h_dirty = False
        self.h_wtime = 0
        self.h_hidden = False
        self._take_over(st)
        if vtype == VREG:
            self.v_filesize = st.st_size
            self.h_lower_mtime = st.st_mtime_ns
        elif vtype == VDIR:
            self.v_names_until = 0

    # What the host says.

    def _take_over(self, st: os.stat_result) -> None:
        self.h_st = st
        self.v_mode = st.st_mode & 0o7777
        self.v_uid = st.st_uid
        self.v_gid = st.st_gid
        self.h_until = monotonic_ns() + HOST_TTL

    def _refresh(self) -> None:
        # Look again. A file whose name is gone stays as it was, if it has no descriptor.
        try:
            st = self.h_ref.stat()
        except OSError:
            self.h_until = monotonic_ns() + HOST_TTL
            return
        self._take_over(st)
        if self.v_type != VREG or self.h_dirty or vn_at_work(self):
            return
        if st.st_size != self.v_filesize or st.st_mtime_ns != self.h_lower_mtime:
            self.h_lower_mtime = st.st_mtime_ns
            vn_host_changed(self, st.st_size)

    # Names.

    def vop_lookup(self, name: bytes) -> Vnode | None:
        if self.h_hidden:
            return None
        st = self.h_ref.stat_name(name)
        return None if st is None else self._vnode(name, st)

    def _vnode(self, name: bytes, st: os.stat_result) -> HostVnode | None:
        mount = self.v_mount
        key = (st.st_dev, st.st_ino)
        vtype = IFTOVT.get(st.st_mode & S_IFMT)
        if vtype is None:
            return None
        vp = mount.h_inodes.get(key)
        ref = self.h_ref
        if vp is not None and vp.v_type == vtype:
            vp.h_ref.hr_parent, vp.h_ref.hr_name = ref, name
            return vp
        vp = HostVnode(mount, vtype, HostRef(mount.mnt_vfs.fds, ref, name, st), st)
        vp.h_hidden = st.st_dev != ref.hr_dev and mount.mnt_vfs.fds.hidden(st.st_dev)
        mount.h_inodes[key] = vp
        return vp

    def vop_revalidate(self) -> None:
        self.v_names_until = monotonic_ns() + HOST_TTL
        try:
            mtime = self.h_ref.stat().st_mtime_ns
        except OSError:
            self.cache_purge()
            return
        if mtime != self.h_lower_mtime:
            self.cache_purge()
            self.h_lower_mtime = mtime if time_ns() - mtime > HOST_RACY else -1

    def _made(self, name: bytes, mode: int, uid: int, gid: int) -> HostVnode:
        # `name` was just made: give it the mode and owner the guest asked for. The host's umask
        # belongs to the process we run in.
        ref = self.h_ref
        self.h_until = 0
        st = ref.stat_name(name)
        vp = None if st is None else self._vnode(name, st)
        if vp is None:
            raise err(EIO)
        if (vp.v_uid, vp.v_gid) != (uid, gid):
            try:
                os.chown(name, uid, gid, dir_fd=ref.fd(), follow_symlinks=False)
            except PermissionError:
                pass  # only root may give files away
        # After the owner, whose change takes setuid away.
        if vp.v_type != VLNK and (vp.v_mode != mode or mode & (S_ISUID | S_ISGID)):
            vp._host_chmod(mode)
        vp._refresh()
        return vp

    def vop_create(self, name: bytes, vtype: int, mode: int, uid: int, gid: int,
                   rdev: int) -> Vnode:  # fmt: skip
        if self.h_hidden:
            raise err(EPERM)
        fd = self.h_ref.fd()
        if vtype == VREG:
            os.close(os.open(name, _CREATE, mode, dir_fd=fd))
        elif vtype == VDIR:
            os.mkdir(name, mode, dir_fd=fd)
        elif vtype in (VFIFO, VSOCK):
            kind = S_IFIFO if vtype == VFIFO else S_IFSOCK
            os.mknod(name, mode | kind, dir_fd=fd)
        else:
            raise err(EPERM)
        vp = self._made(name, mode, uid, gid)
        if vtype == VFIFO:
            self.v_mount.h_fifos.add((vp.h_ref.hr_dev, vp.h_ref.hr_ino))
        return vp

    def vop_symlink(self, name: bytes, target: bytes, uid: int, gid: int) -> Vnode:
        if self.h_hidden:
            raise err(EPERM)
        os.symlink(target, name, dir_fd=self.h_ref.fd())
        return self._made(name, 0o777, uid, gid)

    def vop_tmpfile(self, mode: int, uid: int, gid: int) -> Vnode:
        if self.h_hidden:
            raise err(EPERM)
        mount = self.v_mount
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self.h_ref.fd())
        os.fchmod(fd, mode)
        st = os.fstat(fd)
        ref = HostRef(mount.mnt_vfs.fds, self.h_ref, b"", st)
        ref.hr_keep = True
        mount.mnt_vfs.fds.adopt(ref, fd)
        vp = HostVnode(mount, VREG, ref, st)
        mount.h_inodes[(st.st_dev, st.st_ino)] = vp
        return vp

    def vop_link(self, name: bytes, vp: Vnode) -> None:
        assert isinstance(vp, HostVnode)
        ref = vp.h_ref
        dst = self.h_ref.fd()
        if ref.hr_keep:
            os.link(f"/proc/self/fd/{ref.hr_fd}", os.fsdecode(name), dst_dir_fd=dst)
        else:
            assert ref.hr_parent is not None
            src = ref.hr_parent.fd()
            os.link(ref.hr_name, name, src_dir_fd=src, dst_dir_fd=dst, follow_symlinks=False)
        ref.hr_parent, ref.hr_name = self.h_ref, name
        vp.h_until = self.h_until = 0

    def vop_unlink(self, name: bytes, vp: Vnode) -> None:
        assert isinstance(vp, HostVnode)
        self._last_look(vp)
        os.unlink(name, dir_fd=self.h_ref.fd())
        vp.h_until = self.h_until = 0

    def vop_rmdir(self, name: bytes, vp: Vnode) -> None:
        assert isinstance(vp, HostVnode)
        self._last_look(vp)
        os.rmdir(name, dir_fd=self.h_ref.fd())
        vp.h_until = self.h_until = 0

    def _last_look(self, vp: HostVnode) -> None:
        # vp is going to lose a name: whoever uses it must not lose the file with it.
        if vp.v_usecount and vp.v_type in (VREG, VDIR):
            vp.v_mount.mnt_vfs.fds.keep(vp.h_ref)

    def vop_rename(self, name: bytes, fvp: Vnode, tdvp: Vnode, tname: bytes, tvp: Vnode | None,
                   flags: int) -> None:  # fmt: skip
        assert isinstance(fvp, HostVnode) and isinstance(tdvp, HostVnode)
        exchange = flags & RENAME_EXCHANGE
        if isinstance(tvp, HostVnode):
            if not exchange:
                self._last_look(tvp)
            tvp.h_until = 0
        src, dst = self.h_ref, tdvp.h_ref
        # Each descriptor is good until the next one is asked for; a duplicate is good for longer.
        sfd = os.dup(src.fd())
        try:
            if exchange:
                host_rename(sfd, name, dst.fd(), tname, RENAME_EXCHANGE)
            else:
                os.rename(name, tname, src_dir_fd=sfd, dst_dir_fd=dst.fd())
        finally:
            os.close(sfd)
        if exchange and isinstance(tvp, HostVnode):
            tvp.h_ref.hr_parent, tvp.h_ref.hr_name = src, name
        fvp.h_ref.hr_parent, fvp.h_ref.hr_name = dst, tname
        fvp.h_until = self.h_until = tdvp.h_until = 0

    def vop_readdir(self) -> list[tuple[bytes, int, int]]:
        if self.h_hidden:
            return []
        return [(name, ino, VTTODT[IFTOVT.get(fmt, 0)]) for name, ino, fmt in self.h_ref.list()]

    def vop_readlink(self) -> bytes:
        return self.h_ref.readlink()

    # Attributes.

    def vop_fileid(self) -> int:
        return self.h_ref.hr_ino

    def vop_getattr(self) -> Vattr:
        if self.h_until < monotonic_ns():
            self._refresh()
        st = self.h_st
        va = Vattr()
        va.va_type = self.v_type
        va.va_mode = self.v_mode
        va.va_nlink = st.st_nlink
        va.va_uid = st.st_uid
        va.va_gid = st.st_gid
        va.va_fsid = st.st_dev
        va.va_fileid = st.st_ino
        va.va_rdev = st.st_rdev
        va.va_size = self.v_filesize if self.v_type == VREG else st.st_size
        va.va_blksize = st.st_blksize
        va.va_bytes = st.st_blocks * 512
        va.va_atime = st.st_atime_ns
        va.va_mtime = st.st_mtime_ns
        va.va_ctime = st.st_ctime_ns
        va.va_birthtime = None
        if self.h_dirty:
            va.va_mtime = max(va.va_mtime, self.h_wtime)
            va.va_ctime = max(va.va_ctime, self.h_wtime)
            object = self.v_object
            if object is not None:  # what is there and, at most, what is to come
                cached = min(object.resident_page_count, (self.v_filesize + 4095) >> 12)
                va.va_bytes = max(va.va_bytes, cached << 12)
        return va

    def _host_chmod(self, mode: int) -> None:
        ref = self.h_ref
        if ref.hr_keep and ref.hr_fd >= 0 and self.v_type == VREG:
            os.fchmod(ref.hr_fd, mode)
            return
        if ref.hr_keep or ref.hr_parent is None:
            os.chmod(f"/proc/self/fd/{ref.fd()}", mode)
            return
        # A mode is set through a descriptor that surely is this file's and no link's.
        fd = os.open(ref.hr_name, _OPATH, dir_fd=ref.hr_parent.fd())
        try:
            if os.fstat(fd).st_ino != ref.hr_ino:
                raise err(ESTALE)
            os.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            os.close(fd)

    def vop_setattr(self, mode: int, uid: int, gid: int, atime: int | None,
                    mtime: int | None) -> None:  # fmt: skip
        ref = self.h_ref
        if uid >= 0 or gid >= 0:
            if ref.hr_keep or ref.hr_parent is None:
                os.chown(f"/proc/self/fd/{ref.fd()}", uid, gid)
            else:
                os.chown(ref.hr_name, uid, gid, dir_fd=ref.hr_parent.fd(), follow_symlinks=False)
        if mode >= 0:
            self._host_chmod(mode)
        if atime is not None or mtime is not None:
            self._flush()  # or writing it later would set mtime again
            va = self.vop_getattr()
            times = (va.va_atime if atime is None else atime,
                     va.va_mtime if mtime is None else mtime)  # fmt: skip
            if ref.hr_keep or ref.hr_parent is None:
                os.utime(f"/proc/self/fd/{ref.fd()}", ns=times)
            else:
                os.utime(ref.hr_name, ns=times, dir_fd=ref.hr_parent.fd(), follow_symlinks=False)
        # Our own change of mtime is no reason to drop pages.
        st = ref.stat()
        if self.v_type == VREG:
            self.h_lower_mtime = st.st_mtime_ns
        self._take_over(st)

    def vop_xattrs(self) -> dict[bytes, bytes]:
        return {} if self.h_hidden else self.h_ref.xattrs()

    def vop_setxattr(self, name: bytes, value: bytes | None) -> None:
        if self.h_hidden or not name.startswith(b"user."):
            raise err(EOPNOTSUPP)
        path = self.h_ref.fd_path()
        if value is None:
            os.removexattr(path, name)
        else:
            os.setxattr(path, name, value)
        self.h_until = 0

    # Use.

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        if self.v_type == VREG:
            if fflag & (FREAD | FWRITE):
                self.h_ref.fd(bool(fflag & FWRITE))  # the host may refuse
            self._refresh()
        elif self.v_type == VFIFO:
            if (self.h_ref.hr_dev, self.h_ref.hr_ino) not in self.v_mount.h_fifos:
                return super().vop_open(fflag, cred)
        elif self.v_type != VDIR:
            return super().vop_open(fflag, cred)
        return None

    def _flush(self) -> bool:
        # Dirty pages to the host. False if some could not be written.
        if self.v_type != VREG:
            return True
        if vn_flush(self):
            return False
        if self.h_dirty:
            fd = self.h_ref.fd(True)
            if os.fstat(fd).st_size != self.v_filesize:
                os.ftruncate(fd, self.v_filesize)
            st = os.fstat(fd)
            self.h_dirty = vn_at_work(self)  # it has not got what comes
            self.h_lower_mtime = st.st_mtime_ns
            self._take_over(st)
        return True

    def vop_inactive(self) -> None:
        ref = self.h_ref
        if ref.hr_keep and ref.hr_parent is not None:
            # Kept for those who used it: only a name still counts.
            if os.fstat(ref.hr_fd).st_nlink == 0:
                if self.v_type == VREG:
                    vnode_pager_setsize(self, 0)
                self.v_mount.mnt_vfs.reclaim(self)
                return
            if not self.v_flag & VUNLINKED:
                self.v_mount.mnt_vfs.fds.unkeep(ref)  # found again under another name
        try:
            clean = self._flush()
        except OSError:
            clean = False
        if clean:
            self.v_flag &= ~VKEEP
            if self.v_flag & VUNLINKED:
                # The name by which we would open it is gone. If there is another one, it leads to
                # a new vnode.
                self.v_mount.mnt_vfs.reclaim(self)
        else:
            # The host does not take it. The data stays here, for sync to try once more.
            self.v_flag |= VKEEP

    def vop_reclaim(self) -> None:
        ref = self.h_ref
        if ref.hr_parent is not None:
            ref.close()
        ref.hr_vp = None
        key = (ref.hr_dev, ref.hr_ino)
        if self.v_mount.h_inodes.get(key) is self:
            del self.v_mount.h_inodes[key]

    # Pages.

    def vop_getpage(self, off: int, mv: memoryview) -> int:
        return os.preadv(self.h_ref.fd(), (mv,), off)

    def vop_putpage(self, off: int, mv: memoryview) -> None:
        fd = self.h_ref.fd(True)
        while mv:
            n = os.pwritev(fd, (mv,), off)
            mv = mv[n:]
            off += n

    def vop_reserve(self, off: int, end: int) -> int:
        if end > _BIG and end > self.v_filesize:
            # The host may not have files so large: it says so now, and not when the pages go.
            os.ftruncate(self.h_ref.fd(True), end)
        return end

    def vop_allocate(self, off: int, end: int) -> None:
        host_fallocate(self.h_ref.fd(True), FALLOC_KEEP_SIZE, off, end - off)
        self.h_until = 0

    def vop_zero(self, off: int, end: int) -> None:
        mode = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE
        host_fallocate(self.h_ref.fd(True), mode, off, end - off)
        self.h_until = 0

    def vop_newsize(self) -> int:
        if not self.h_dirty and self.h_until < monotonic_ns():
            self._refresh()
        return self.v_filesize

    def vop_modify(self) -> int:
        size = self.vop_newsize()
        self.h_dirty = True
        self.h_wtime = vfs_timestamp()
        return size

    def vop_wrote(self, size: int) -> None:
        self.h_wtime = vfs_timestamp()

    def vop_stored(self, wait: bool) -> bool:
        if not self.h_dirty:
            if not wait:
                return False
            self.vop_modify()
        self.h_wtime = vfs_timestamp()
        return True

    def vop_accessed(self) -> None:
        self.vop_note_access(self.v_mount.mnt_flags)

    def vop_note_access(self, flags: int) -> None:
        if flags & ST_NOATIME:
            return
        # The pages were in memory, so the host has seen nothing: it is shown a read where its rule
        # (relatime) may have it note the time.
        st = self.h_st
        if self.v_type == VREG and st.st_atime_ns <= max(st.st_mtime_ns, st.st_ctime_ns):
            try:
                os.pread(self.h_ref.fd(), 1, 0)
            except OSError:
                return
            self.h_until = 0

    def vop_seek_data(self, off: int, hole: bool) -> int:
        return os.lseek(self.h_ref.fd(), off, os.SEEK_HOLE if hole else os.SEEK_DATA)

    def vop_setsize(self, size: int) -> None:
        os.ftruncate(self.h_ref.fd(True), size)
        self.h_wtime = vfs_timestamp()

    def vop_fsync(self) -> None:
        if not self._flush():
            raise err(EIO)
        if self.h_ref.hr_fd >= 0 and self.v_type == VREG:
            os.fsync(self.h_ref.hr_fd)


class HostMount(Mount):
    """One --rw directory."""

    __slots__ = ("h_fifos", "h_inodes", "h_top")

    h_top: HostRef  # the host directory
    h_inodes: dict[tuple[int, int], HostVnode]  # its vnodes by (st_dev, st_ino)
    h_fifos: set[tuple[int, int]]  # fifos the guest has made, by the same

    def __init__(self, vfs: Vfs, top: bytes) -> None:
        """`top`: the host directory.

        :raises OSError: there is no such directory.
        """
        super().__init__(vfs, "hostfs", os.fsdecode(top), 0xEF53)
        self.h_fifos = set()
        ref = self.h_top = vfs.fds.top(top)
        st = ref.stat()
        if vfs.fds.hidden(st.st_dev):
            raise err(EXDEV)
        root = HostVnode(self, VDIR, ref, st)
        self.h_inodes = {(st.st_dev, st.st_ino): root}
        self.set_root(root)

    def statfs(self) -> Statfs:
        sf = super().statfs()
        root = self.mnt_root
        assert isinstance(root, HostVnode)
        host = os.fstatvfs(root.h_ref.fd())
        sf.f_bsize, sf.f_frsize = host.f_bsize, host.f_frsize
        sf.f_blocks, sf.f_bfree, sf.f_bavail = host.f_blocks, host.f_bfree, host.f_bavail
        sf.f_files, sf.f_ffree = host.f_files, host.f_ffree
        sf.f_fsid = root.h_ref.hr_dev
        sf.f_namelen = host.f_namemax
        return sf

    def sync(self) -> list[tuple[Vnode, str]]:
        failed: list[tuple[Vnode, str]] = []
        for vp in list(self.h_inodes.values()):
            if vp.v_type == VREG:
                try:
                    if not vp._flush():
                        failed.append((vp, "the host does not take all of it"))
                except OSError as e:
                    failed.append((vp, e.strerror or str(e)))
        return failed

    def unmount(self) -> bool:
        if self.sync():
            return False
        for vp in list(self.h_inodes.values()):
            self.mnt_vfs.reclaim(vp)
        self.h_top.close()
        return True

    def vnodes(self) -> list[Vnode]:
        return list(self.h_inodes.values())
