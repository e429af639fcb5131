"""Vnodes: what a file is to the kernel, whatever file system it lives on.

The file systems derive from `Vnode` and fill in the `vop_` methods (vnode_ops.py). Everybody else
(system calls, exec, the VM) uses the methods without that prefix, which check permissions and keep
the name cache.

References
    namei and lookup return vnodes *without* a reference. Such a vnode stays good until the caller
    next blocks (user memory access may block). Whoever keeps one longer (an open file, a working
    directory, a text image) has a reference: `vref()` … `vrele()`. `vrele` may block.
    Of the methods below those that may block and are called with a vnode from namei, or with one
    whose file somebody else may close meanwhile, take one themselves: setsize and truncate, fsync,
    allocate, seek_data. For read and write whoever calls has one.
    An open file takes exactly one `open(fflag, cred)` and gives one `close(fflag)`; these include
    the reference. A VM object holds a reference for each of its own (the VM does that).

Errors are OSError made by kern_errno.err.

Names are bytes: single components, never "", ".", ".." or with a "/" in them. `mode` arguments have
had the umask applied. Times are nanoseconds since 1970. `cred` is what is checked (see Cred).

For callers
    lookup(name) -> Vnode | None        through the name cache and mounts; rights not checked
    create(name, mode, cred) -> Vnode   new regular file; EEXIST when there is something
    mknod(name, vtype, mode, rdev, cred) -> Vnode     VFIFO, VSOCK, VCHR, VBLK, VREG
    mkdir(name, mode, cred) -> Vnode
    symlink(name, target, cred), tmpfile(mode, cred) -> Vnode      O_TMPFILE: without a name
    link(name, vp, cred)                new name in this directory for vp
    unlink(name, cred), rmdir(name, cred)
    readdir() -> list[(name, ino, dtype)]             a snapshot, "." and ".." first
    readlink() -> bytes
    getattr() -> Vattr
    chmod(mode, cred), chown(uid, gid, cred) (-1: leave), truncate(length, cred)
    utimes(atime, mtime, cred, explicit)   None: leave; explicit: times other than "now" were given
    access(want, cred)                  want: VREAD | VWRITE | VEXEC; raises EACCES, EROFS, ETXTBSY
    open(fflag, cred) -> object | None  FREAD | FWRITE; the mode is *not* checked here. None: make
                                        a file on this vnode. Else: the file to use in its place
                                        (a terminal, /proc/self/fd/N of a pipe); no close() then
    close(fflag)
    read(uio, off, ioflag)              ioflag: IO_APPEND, IO_NDELAY, IO_SYNC. Raises only when
    write(uio, off, ioflag, limit) -> int     nothing was transferred. write returns the offset
                                        behind the last byte written (IO_APPEND ignores off);
                                        limit: RLIMIT_FSIZE, EFBIG when nothing fits below it
    ioctl(cmd, arg, lwp) -> int, poll(events) -> int
    fsync(), allocate(mode, off, length)              fallocate(2)
    mmap() -> int                       MMAP_VNODE (map the vnode's object), MMAP_ANON (/dev/zero:
                                        map anonymous memory instead), or ENODEV
    settext(), cleartext()              the file is being executed: writing is ETXTBSY
    vfs_rename.vn_rename(fdvp, fname, tdvp, tname, flags, cred)
    vn_fullpath(vp, root) -> bytes      the name for getcwd, /proc/…/exe, maps; " (deleted)" added

Source: DragonFly sys/sys/vnode.h, sys/kern/vfs_subr.c, sys/kern/vfs_lock.c.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from dfvm.kern.kern_caps import (
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    CAP_FSETID,
    CAP_MKNOD,
)
from dfvm.kern.kern_errno import (
    EACCES,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    EMLINK,
    ENAMETOOLONG,
    ENODEV,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    ETXTBSY,
    EXDEV,
    err,
)
from dfvm.kern.kern_event import POLL_READABLE, POLL_WRITABLE
from dfvm.kern.vfs.seals import sealed_mode
from dfvm.kern.vfs.vfs_bio import vn_allocate, vn_flush, vn_fsync, vn_read, vn_setsize, vn_write
from dfvm.kern.vfs.vfs_helper import (
    may_add,
    may_chown,
    may_linkat,
    may_remove,
    may_setattr,
    may_write_dir,
    new_ids,
    new_mode,
    not_a_mountpoint,
)
from dfvm.kern.vfs.vfs_notify import (
    last_user_gone,
    name_notify,
    self_notify,
    vn_notify,
)
from dfvm.kern.vfs.vnode_ops import VnodeOps
from dfvm.kern.vfs.vnode_param import (
    FREAD,
    FWRITE,
    IN_ACCESS,
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_MODIFY,
    LINK_MAX,
    MMAP_VNODE,
    NAME_MAX,
    NAMES_MAX,
    OFF_MAX,
    S_ISGID,
    S_ISUID,
    VBLK,
    VCHR,
    VDIR,
    VEXEC,
    VFIFO,
    VKEEP,
    VLNK,
    VNOCACHE,
    VNOLINK,
    VREAD,
    VRECLAIMED,
    VREFD,
    VREG,
    VROOT,
    VSOCK,
    VSTALE,
    VTTODT,
    VUNLINKED,
    VWRITE,
    Cred,
    Vattr,
)
from dfvm.lwkt.panic import panic

if TYPE_CHECKING:
    from dfvm.vm.copyio import Uio

_MISSING: Final[Any] = object()


class Vnode(VnodeOps):
    """One file, while the kernel has an interest in it: what everybody else does with it."""

    __slots__ = ()

    # References.

    def vref(self) -> None:
        """One reference more. Does not block."""
        count = self.v_usecount
        self.v_usecount = count + 1
        if count == 0:
            mount = self.v_mount
            mount.mnt_inuse += 1
            mount.mnt_vfs.inactive.pop(self, None)

    def vrele(self) -> None:
        """One reference less. After the last one a file without a name is destroyed, and a file
        that is written through is flushed. May block."""
        count = self.v_usecount - 1
        self.v_usecount = count
        if count > 0:
            if self.v_watches and count == len(self.v_watches):
                last_user_gone(self)
            return
        if count < 0:
            panic(f"vrele: {self!r}")
        mount = self.v_mount
        mount.mnt_inuse -= 1
        self.vop_inactive()
        if self.v_usecount == 0 and not self.v_flag & (VKEEP | VRECLAIMED):
            mount.mnt_vfs.vnode_idle(self)
        if not mount.mnt_inuse:
            mount.unused()

    def nameless(self) -> None:
        """Its last name may be gone: if nobody uses it either, it is destroyed. May block."""
        if self.v_usecount == 0:
            self.vref()
            self.vrele()
            if self.v_flag & VUNLINKED and not (self.v_usecount or self.v_flag & VRECLAIMED):
                # What other names it has lead to it from elsewhere.
                self.set_parent(None, b"")
                self.v_flag |= VUNLINKED
        elif self.v_watches and self.v_usecount == len(self.v_watches):
            last_user_gone(self)

    def vop_data(self) -> Vnode:
        return self

    # Names.

    def lookup(self, name: bytes) -> Vnode | None:
        """What `name` in this directory stands for; None when there is no such name.

        :raises OSError: ENOTDIR, EACCES and EIO from the host, ENAMETOOLONG.
        """
        if self.v_type != VDIR:
            raise err(ENOTDIR)
        if self.v_names_until < monotonic_ns():
            self.vop_revalidate()
        vp: Vnode | None = self.v_names.get(name, _MISSING)
        if vp is _MISSING or (vp is not None and vp.v_flag & VSTALE):
            vp = self._lookup_slow(name)
        if vp is not None:
            vp.v_flag |= VREFD
        return vp

    def _lookup_slow(self, name: bytes) -> Vnode | None:
        if len(name) > NAME_MAX:
            raise err(ENAMETOOLONG)
        mounts = self.v_mounts
        if mounts is not None:
            mount = mounts.get(name)
            if mount is not None:
                self.v_names[name] = mount.mnt_root
                return mount.mnt_root
        vp = self.vop_lookup(name)
        if self.v_flag & VNOCACHE:
            if vp is not None:
                vp.v_parent = self
                vp.v_name = name
            return vp
        self.cache_enter(name, vp)
        if vp is not None and not (vp.v_usecount or vp.v_flag & VKEEP):
            self.v_mount.mnt_vfs.vnode_idle(vp)
        return vp

    def cache_enter(self, name: bytes, vp: Vnode | None) -> None:
        """Remember what `name` stands for (None: nothing), and where vp is to be found."""
        names = self.v_names
        if len(names) >= NAMES_MAX:
            names.clear()
        names[name] = vp
        if vp is not None:
            vp.set_parent(self, name)

    def cache_purge(self) -> None:
        """Forget every name in this directory."""
        self.v_names.clear()

    def set_parent(self, dvp: Vnode | None, name: bytes) -> None:
        """vp is now known as `name` in dvp."""
        old = self.v_parent
        if old is not dvp:
            if old is not None:
                old.v_nchild -= 1
                if not (old.v_nchild or old.v_usecount or old.v_flag & (VKEEP | VRECLAIMED)):
                    old.v_mount.mnt_vfs.inactive.setdefault(old)
            if dvp is not None:
                dvp.v_nchild += 1
            self.v_parent = dvp
        self.v_name = name
        self.v_flag &= ~VUNLINKED

    def cache_gone(self, name: bytes, vp: Vnode) -> None:
        """`name` in this directory no longer stands for vp."""
        self.cache_enter(name, None)
        if vp.v_parent is self and vp.v_name == name:
            vp.v_flag |= VUNLINKED

    def create(self, name: bytes, mode: int, cred: Cred) -> Vnode:
        """Make a regular file."""
        return self.mknod(name, VREG, mode, 0, cred)

    def mknod(self, name: bytes, vtype: int, mode: int, rdev: int, cred: Cred) -> Vnode:
        """Make a file of any type that is neither a directory nor a symbolic link."""
        may_add(self, name, cred)
        if vtype in (VCHR, VBLK) and not cred.cr_cap_e & CAP_MKNOD:
            raise err(EPERM)
        if vtype not in (VREG, VCHR, VBLK, VFIFO, VSOCK):
            raise err(EINVAL)
        uid, gid = new_ids(self, cred)
        vp = self.vop_create(name, vtype, new_mode(self, mode, cred), uid, gid, rdev)
        self.cache_enter(name, vp)
        self._made_name(name, vp)
        return vp

    def mkdir(self, name: bytes, mode: int, cred: Cred) -> Vnode:
        """Make a directory."""
        may_add(self, name, cred)
        uid, gid = new_ids(self, cred)
        vp = self.vop_create(name, VDIR, mode & 0o1777 | self.v_mode & S_ISGID, uid, gid, 0)
        self.cache_enter(name, vp)
        self._made_name(name, vp)
        return vp

    def symlink(self, name: bytes, target: bytes, cred: Cred) -> Vnode:
        """Make a symbolic link to `target`."""
        may_add(self, name, cred)
        uid, gid = new_ids(self, cred)
        vp = self.vop_symlink(name, target, uid, gid)
        self.cache_enter(name, vp)
        self._made_name(name, vp)
        return vp

    def tmpfile(self, mode: int, cred: Cred) -> Vnode:
        """Make a regular file without a name on this directory's file system."""
        if self.v_type != VDIR:
            raise err(ENOTDIR)
        may_write_dir(self, cred)
        uid, gid = new_ids(self, cred)
        return self.vop_tmpfile(new_mode(self, mode, cred), uid, gid)

    def link(self, name: bytes, vp: Vnode, cred: Cred) -> None:
        """Give vp another name, in this directory."""
        if self.lookup(name) is not None:
            raise err(EEXIST)
        if self.v_mount.mnt_fixed:
            raise err(ENOENT)
        if self.v_mount.mnt_rdonly:
            raise err(EROFS)
        if vp.v_mount is not self.v_mount:
            raise err(EXDEV)
        may_linkat(vp, cred)
        may_write_dir(self, cred)
        if vp.v_type == VDIR:
            raise err(EPERM)
        if vp.v_flag & VNOLINK:
            raise err(ENOENT)
        nlink = vp.getattr().va_nlink
        if nlink == 0 and vp.v_parent is not None:
            raise err(ENOENT)  # it had a name and lost it; what never had one may get one
        if nlink >= LINK_MAX:
            raise err(EMLINK)
        self.vop_link(name, vp)
        self.cache_enter(name, vp)
        vp.self_event(IN_ATTRIB)
        self._made_name(name, vp)

    def unlink(self, name: bytes, cred: Cred) -> None:
        """Take away a name that is not a directory's. May block."""
        vp = self.lookup(name)
        if vp is None:
            raise err(ENOENT)
        may_remove(self, vp, cred, False)
        not_a_mountpoint(self, name, vp)
        self.vop_unlink(name, vp)
        self.cache_gone(name, vp)
        vp.self_event(IN_ATTRIB)
        self._lost_name(name, vp)

    def rmdir(self, name: bytes, cred: Cred) -> None:
        """Take away an empty directory."""
        vp = self.lookup(name)
        if vp is None:
            raise err(ENOENT)
        may_remove(self, vp, cred, True)
        not_a_mountpoint(self, name, vp)
        if vp.vop_data().v_mounts:
            raise err(ENOTEMPTY)
        self.vop_rmdir(name, vp)
        vp.cache_purge()
        self.cache_gone(name, vp)
        self._lost_name(name, vp)

    def readdir(self) -> list[tuple[bytes, int, int]]:
        """All entries, as (name, inode number, DT_ type)."""
        if self.v_type != VDIR:
            raise err(ENOTDIR)
        parent = self.v_parent
        dots = [(b".", self.vop_fileid(), 4),
                (b"..", (self if parent is None else parent).vop_fileid(), 4)]  # fmt: skip
        entries = self.vop_readdir()
        mounts = self.v_mounts
        if mounts:
            # What is there is told of as it is below, as on Linux.
            names = {e[0] for e in entries}
            entries += [(n, m.mnt_root.vop_fileid(), VTTODT[m.mnt_root.v_type])
                        for n, m in mounts.items() if n not in names]  # fmt: skip
        return dots + entries

    def readlink(self) -> bytes:
        """Where the symbolic link points."""
        if self.v_type != VLNK:
            raise err(EINVAL)
        target = self.vop_readlink()
        self.vop_accessed()
        return target

    # Events: nobody but who watches pays for them.

    def event(self, mask: int) -> None:
        """`mask` (IN_*) happened to this file."""
        if self.v_mount.mnt_vfs.nwatches:
            vn_notify(self, mask)

    def self_event(self, mask: int) -> None:
        """The same, but the directory it is in is not told."""
        if self.v_watches:
            self_notify(self, mask)

    def _made_name(self, name: bytes, vp: Vnode) -> None:
        if self.v_watches:
            name_notify(self, name, IN_CREATE, vp)

    def _lost_name(self, name: bytes, vp: Vnode) -> None:
        # `name` in this directory was vp's; vp goes if that was all that held it.
        if not self.v_watches:
            vp.nameless()
            return
        self.vref()
        vp.nameless()
        name_notify(self, name, IN_DELETE, vp)
        self.vrele()

    # Attributes.

    def getattr(self) -> Vattr:
        """The file's attributes now."""
        return self.vop_getattr()

    def access(self, want: int, cred: Cred) -> None:
        """Check that `cred` may do all of `want` (VREAD | VWRITE | VEXEC).

        :raises OSError: EACCES; EROFS when a file on a read-only mount would be written; ETXTBSY
            when it is being executed.
        """
        if want & VWRITE:
            if self.v_mount.mnt_rdonly and self.v_type in (VREG, VDIR, VLNK):
                raise err(EROFS)
            if self.v_textcount:
                raise err(ETXTBSY)
        mode = self.v_mode
        if cred.cr_cap_e & CAP_DAC_OVERRIDE:
            # Root needs one x bit somewhere to execute a file, and nothing else.
            if want & VEXEC and self.v_type != VDIR and not mode & 0o111:
                raise err(EACCES)
            return
        if cred.cr_fsuid == self.v_uid:
            mode >>= 6
        elif cred.groupmember(self.v_gid):
            mode >>= 3
        if want & ~mode and not (
            cred.cr_cap_e & CAP_DAC_READ_SEARCH
            and (want == VREAD or (self.v_type == VDIR and not want & VWRITE))
        ):
            raise err(EACCES)

    def chmod(self, mode: int, cred: Cred) -> None:
        """Set the permission bits."""
        may_setattr(self, cred)
        if self.v_type == VLNK:
            raise err(EOPNOTSUPP)
        mode &= 0o7777
        if not cred.groupmember(self.v_gid) and not cred.cr_cap_e & CAP_FSETID:
            mode &= ~S_ISGID
        if self.v_seals:
            sealed_mode(self, mode)
        self.vop_setattr(mode, -1, -1, None, None)
        self.event(IN_ATTRIB)

    def chown(self, uid: int, gid: int, cred: Cred) -> None:
        """Set owner and group; -1 leaves one as it is."""
        if self.v_mount.mnt_rdonly:
            raise err(EROFS)
        may_chown(self.v_uid, self.v_gid, uid, gid, cred)
        mode = -1
        if self.v_type != VDIR and self.v_mode & (S_ISUID | S_ISGID):
            mode = self.v_mode & ~S_ISUID
            if mode & 0o010:  # setgid without group execute means something else; it stays
                mode &= ~S_ISGID
            if mode != self.v_mode and not (
                cred.cr_fsuid == self.v_uid or cred.cr_cap_e & CAP_FOWNER
            ):
                raise err(EPERM)
        self.vop_setattr(mode, uid, gid, None, None)
        if mode != -1 or uid != -1 or gid != -1:
            self.event(IN_ATTRIB)

    def utimes(self, atime: int | None, mtime: int | None, cred: Cred, explicit: bool) -> None:
        """Set the times. `explicit`: they are the caller's, not both "now", which only the owner
        may do; "now" may be set by everybody who could write the file."""
        if self.v_mount.mnt_rdonly:
            raise err(EROFS)
        if cred.cr_fsuid != self.v_uid and not cred.cr_cap_e & CAP_FOWNER:
            if explicit:
                raise err(EPERM)
            self.access(VWRITE, cred)
        self.vop_setattr(-1, -1, -1, atime, mtime)
        if atime is not None:
            self.event(IN_ACCESS if mtime is None else IN_ATTRIB)
        elif mtime is not None:
            self.event(IN_MODIFY)

    def truncate(self, length: int, cred: Cred) -> None:
        """Set the size of a regular file (truncate(2): checks the mode). May block."""
        if self.v_type == VDIR:
            raise err(EISDIR)
        if self.v_type != VREG:
            raise err(EINVAL)
        self.access(VWRITE, cred)
        self.setsize(length)

    def setsize(self, length: int) -> None:
        """Set the size of a regular file (ftruncate(2), O_TRUNC: the right was checked at open).
        Pages beyond it leave memory; the rest of the last page reads as zero. May block."""
        if self.v_type != VREG:
            raise err(EINVAL)
        self.vref()
        try:
            vn_setsize(self, length)
            self.event(IN_MODIFY)
        finally:
            self.vrele()

    def seek_data(self, off: int, hole: bool) -> int:
        """From byte `off` on, where there is data, or with `hole` none (lseek(2), SEEK_DATA and
        SEEK_HOLE). May block.

        :raises OSError: ENXIO
        """
        size = self.vop_newsize() if self.v_type == VREG else 0
        if not 0 <= off < size:
            raise err(ENXIO)
        self.vref()
        try:
            vn_flush(self)  # what is in memory only is known to the storage then
            return self.vop_seek_data(off, hole)
        finally:
            self.vrele()

    # Use.

    def open(self, fflag: int, cred: Cred) -> object | None:
        """A file is about to be made on this vnode."""
        vtype = self.v_type
        if vtype == VREG:
            if fflag & FWRITE and self.v_textcount:
                raise err(ETXTBSY)
        elif vtype == VDIR:
            if fflag & FWRITE:
                raise err(EISDIR)
        elif vtype == VLNK:
            raise err(ELOOP)
        elif vtype == VSOCK:
            raise err(ENXIO)
        other = self.vop_open(fflag, cred)
        if other is not None:
            return other
        self.vref()
        if fflag & FWRITE:
            self.v_writecount += 1
        return None

    def close(self, fflag: int) -> None:
        """The file made after open() is gone. May block."""
        if fflag & FWRITE:
            self.v_writecount -= 1
        self.vop_close(fflag)
        self.vrele()

    def settext(self) -> None:
        """A process starts executing the file; it has a reference of its own."""
        if self.v_writecount:
            raise err(ETXTBSY)
        self.v_textcount += 1

    def cleartext(self) -> None:
        """It no longer does."""
        self.v_textcount -= 1

    def read(self, uio: Uio, off: int, ioflag: int) -> None:
        """Read at `off` into uio, up to its length or the end of the file. May block."""
        vtype = self.v_type
        if vtype == VREG:
            vn_read(self, uio, off)
        elif vtype == VDIR:
            raise err(EISDIR)
        else:
            dev = self.v_rdev
            if dev is None:
                raise err(EINVAL)
            dev.d_read(uio, off, ioflag)

    def write(self, uio: Uio, off: int, ioflag: int, limit: int = OFF_MAX) -> int:
        """Write uio at `off`. Returns the offset behind the last byte. May block."""
        if self.v_type == VREG:
            return vn_write(self, uio, off, ioflag, limit)
        resid = uio.uio_resid
        dev = self.v_rdev
        if dev is None:
            raise err(EINVAL)
        dev.d_write(uio, off, ioflag)
        return off + resid - uio.uio_resid

    def poll(self, events: int) -> int:
        """Which of `events` would not block now."""
        if self.v_rdev is not None:
            return self.v_rdev.d_poll(events)
        return events & (POLL_READABLE | POLL_WRITABLE)

    def ioctl(self, cmd: int, arg: int, lwp: Any) -> int:
        """Device control; `arg` is the caller's register."""
        if self.v_rdev is not None:
            return self.v_rdev.d_ioctl(cmd, arg, lwp)
        raise err(ENOTTY)

    def splices(self) -> int:
        """Whether splice may move data from the open file (FREAD) and to it (FWRITE)."""
        if self.v_rdev is not None:
            return self.v_rdev.d_splice
        return FREAD | FWRITE if self.v_type == VREG else 0

    def mmap(self) -> int:
        """How this file is mapped: MMAP_VNODE or MMAP_ANON."""
        if self.v_rdev is not None:
            return self.v_rdev.d_mmap()
        if self.v_type != VREG:
            raise err(ENODEV)
        return MMAP_VNODE

    def fsync(self) -> None:
        """Bring what was written to where it belongs (the host, when it is written through). May
        block."""
        if self.v_type == VREG:
            self.vref()
            try:
                vn_fsync(self)
            finally:
                self.vrele()
        elif self.v_rdev is not None:
            self.v_rdev.d_fsync()

    def allocate(self, mode: int, off: int, length: int) -> None:
        """fallocate(2) on a file open for writing. May block."""
        self.vref()
        try:
            vn_allocate(self, mode, off, length)
            self.event(IN_MODIFY)
        finally:
            self.vrele()

    def device_open(self, rdev: int, fflag: int, cred: Cred) -> object | None:
        """vop_open of a device with number `rdev`."""
        vfs = self.v_mount.mnt_vfs
        dev = (vfs.devices if self.v_type == VCHR else vfs.blockdevs).get(rdev)
        if dev is None:
            from dfvm.kern.dev_loop import loop_device  # which few programs need

            dev = loop_device(vfs, self.v_type, rdev)
        if dev is None:
            raise err(ENXIO)
        self.v_rdev = dev
        return dev.d_open(self, fflag, cred)


def vn_fullpath(vp: Vnode, root: Vnode) -> bytes:
    """The absolute path of vp as a process sees it whose root directory is `root`. What was
    unlinked has " (deleted)" behind its last name, what lies outside the root "(unreachable)"
    before it, as in Linux's /proc."""
    if vp.v_parent is None and not vp.v_flag & VROOT:
        # Never had a name, but may have been given one to show (memfd).
        return (vp.v_name or b"/#%d" % vp.vop_fileid()) + b" (deleted)"
    parts: list[bytes] = []
    at = vp
    while at is not root:
        parent = at.v_parent
        if parent is None:
            break
        parts.append(at.v_name)
        at = parent
    path = b"/" + b"/".join(reversed(parts))
    if vp.v_flag & VUNLINKED:
        path += b" (deleted)"
    if at is not root:
        path = b"(unreachable)" + path
    return path
