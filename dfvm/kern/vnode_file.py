"""Open files of vnodes: what open(2) gives for regular files, directories and devices.

Source: DragonFly sys/kern/vfs_vnops.c (vn_read, vn_write, vn_statfile, vn_ioctl …); the rules of
seeking and of RLIMIT_FSIZE are Linux's (fs/read_write.c).
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_descrip import (
    FIONREAD,
    FPATH,
    O_APPEND,
    O_DSYNC,
    O_NOATIME,
    O_NONBLOCK,
    File,
    FileTable,
    signal_self,
)
from dfvm.kern.kern_errno import (
    EBADF,
    EFBIG,
    EINVAL,
    EISDIR,
    ENOENT,
    ENOTDIR,
    EOPNOTSUPP,
    EXDEV,
    err,
)
from dfvm.kern.proc import RLIMIT_FSIZE
from dfvm.kern.vfs.vfs_notify import IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, vn_notify
from dfvm.kern.vfs.vnode import Vnode
from dfvm.kern.vfs.vnode_param import (
    FREAD,
    FWRITE,
    IN_ACCESS,
    IN_MODIFY,
    IO_APPEND,
    IO_NDELAY,
    IO_SYNC,
    OFF_MAX,
    VCHR,
    VDIR,
    VNOCACHE,
    VREG,
    VUNLINKED,
    Vattr,
)
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.kern_lockf import LockfHead
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.mount import Statfs
    from dfvm.kern.vfs.vnode_param import Cred
    from dfvm.vm.copyio import Uio

SEEK_SET: Final = 0
SEEK_CUR: Final = 1
SEEK_END: Final = 2
SEEK_DATA: Final = 3
SEEK_HOLE: Final = 4


FIGETBSZ: Final = 2
FICLONE: Final = 0x4004_9409
FICLONERANGE: Final = 0x4020_940D

_BUSY: Final = 1  # VnodeFile.f_busy
_WANTED: Final = 2

_POLL_ALL: Final = 0x3FF


def check_fsize(lwp: Lwp, off: int) -> int:
    """The file size limit of the caller, for a write at `off`.

    :raises OSError: EFBIG, with SIGXFSZ, when nothing may be written there
    """
    limit = lwp.lwp_proc.p_rlimit(RLIMIT_FSIZE)
    if off < limit:
        return limit if limit < OFF_MAX else OFF_MAX
    from dfvm.kern.kern_sig import SIGXFSZ

    signal_self(lwp, SIGXFSZ)
    raise err(EFBIG)


class VnodeFile(File):
    """An open vnode, or with O_PATH a reference to one."""

    __slots__ = ("f_busy", "f_entries", "f_vnode")

    f_pollable = False
    f_preads = True

    f_vnode: Vnode  # opened with f_mode, or with O_PATH just referenced; ours to close
    f_busy: int  # _BUSY: somebody transfers at f_offset; _WANTED: and others wait for their turn
    f_entries: list[tuple[bytes, int, int]]  # of a directory: the snapshot getdents walks;
    #                                          f_offset is the index into it

    def __init__(self, table: FileTable, flag: int, vp: Vnode) -> None:
        super().__init__(table, flag)
        self.f_vnode = vp
        self.f_busy = 0
        self.f_entries = []

    # -- transfers ------------------------------------------------------------------------------

    def _lock(self) -> None:
        # POSIX: transfers through one open file don't mix. They could where user memory blocks.
        while self.f_busy:
            self.f_busy = _WANTED
            self.f_table.sched.tsleep(self, 0, "f_pos")
        self.f_busy = _BUSY

    def _unlock(self) -> None:
        if self.f_busy == _WANTED:
            self.f_table.sched.wakeup(self)
        self.f_busy = 0

    def _ioflag(self) -> int:
        flag = self.f_flag
        ioflag = 0
        if flag & (O_APPEND | O_DSYNC | O_NONBLOCK):
            if flag & O_APPEND:
                ioflag = IO_APPEND
            if flag & O_DSYNC:  # a bit of O_SYNC too
                ioflag |= IO_SYNC
            if flag & O_NONBLOCK:
                ioflag |= IO_NDELAY
        return ioflag

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        self._lock()
        try:
            resid = uio.uio_resid
            vp, flag = self.f_vnode, self.f_flag
            vp.read(uio, self.f_offset, IO_NDELAY if flag & O_NONBLOCK else 0)
            self.f_offset += resid - uio.uio_resid
            if resid and not flag & O_NOATIME:
                vp.vop_accessed()
            if vp.v_mount.mnt_vfs.nwatches and uio.uio_resid != resid:
                vn_notify(vp, IN_ACCESS)
        finally:
            self._unlock()

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        self._lock()
        try:
            self.f_offset = self._write(lwp, uio, self.f_offset)
        finally:
            self._unlock()

    def _write(self, lwp: Lwp, uio: Uio, off: int) -> int:
        return self._write_as(lwp, uio, off, self._ioflag())

    def _write_as(self, lwp: Lwp, uio: Uio, off: int, ioflag: int) -> int:
        vp = self.f_vnode
        resid = uio.uio_resid
        if vp.v_type != VREG:
            end = vp.write(uio, off, ioflag)
        elif not resid:
            return off
        else:
            at = vp.v_filesize if ioflag & IO_APPEND else off
            end = vp.write(uio, off, ioflag, check_fsize(lwp, at))
        if vp.v_mount.mnt_vfs.nwatches and uio.uio_resid != resid:
            vn_notify(vp, IN_MODIFY)
        return end

    def write_append(self, lwp: Lwp, uio: Uio, offset: int | None, append: bool) -> None:
        """Write at the end or, without `append`, at `offset`, whatever O_APPEND says; None: at
        f_offset, which is advanced (pwritev2 with RWF_APPEND and RWF_NOAPPEND)."""
        ioflag = self._ioflag() & ~IO_APPEND | (IO_APPEND if append else 0)
        if offset is not None:
            self._write_as(lwp, uio, offset, ioflag)
            return
        self._lock()
        try:
            self.f_offset = self._write_as(lwp, uio, self.f_offset, ioflag)
        finally:
            self._unlock()

    def fo_pread(self, lwp: Lwp, uio: Uio, offset: int) -> None:
        resid = uio.uio_resid
        vp = self.f_vnode
        vp.read(uio, offset, 0)
        if resid:
            self.accessed()
        if vp.v_mount.mnt_vfs.nwatches and uio.uio_resid != resid:
            vn_notify(vp, IN_ACCESS)

    def accessed(self) -> None:
        """Something was read: the file's time of access, unless opened with O_NOATIME."""
        if not self.f_flag & O_NOATIME:
            self.f_vnode.vop_accessed()

    def fo_pwrite(self, lwp: Lwp, uio: Uio, offset: int) -> None:
        self._write(lwp, uio, offset)

    # -- position -------------------------------------------------------------------------------

    def fo_seek(self, lwp: Lwp, offset: int, whence: int) -> int:
        vp = self.f_vnode
        if vp.v_type == VCHR:
            return 0  # as /dev/null does: there is no position
        if vp.v_type == VDIR:
            return self._seekdir(offset, whence)
        if whence == SEEK_CUR:
            offset += self.f_offset
        elif whence in (SEEK_END, SEEK_DATA, SEEK_HOLE) and vp.v_flag & VNOCACHE:
            raise err(EINVAL)  # nobody knows how long it would be
        elif whence == SEEK_END:
            offset += vp.getattr().va_size
        elif whence in (SEEK_DATA, SEEK_HOLE):
            offset = vp.seek_data(offset, whence == SEEK_HOLE)
        elif whence != SEEK_SET:
            raise err(EINVAL)
        if not 0 <= offset <= OFF_MAX:
            raise err(EINVAL)
        self.f_offset = offset
        return offset

    def _seekdir(self, offset: int, whence: int) -> int:
        if whence == SEEK_CUR:
            offset += self.f_offset
        elif whence == SEEK_END:
            offset += len(self.f_entries)
        elif whence != SEEK_SET:
            raise err(EINVAL)
        if not 0 <= offset <= OFF_MAX:
            raise err(EINVAL)
        self.f_offset = offset
        return offset

    # -- directories ----------------------------------------------------------------------------

    def next_entries(self) -> list[tuple[bytes, int, int]]:
        """The snapshot of the directory that f_offset is an index into; a new one at its start.
        Names made or removed since then don't move the others.

        :raises OSError: ENOTDIR; ENOENT when the directory was removed
        """
        vp = self.f_vnode
        if vp.v_type != VDIR:
            raise err(ENOTDIR)
        if self.f_offset == 0:
            if vp.v_flag & VUNLINKED:
                raise err(ENOENT)
            self.f_entries = vp.readdir()
            self.accessed()
        return self.f_entries

    def fo_readdir(self, room: int, pack_one: Callable[[bytes, int, int, int], bytes]) -> bytes:
        entries = self.next_entries()
        records: list[bytes] = []
        at = self.f_offset
        while at < len(entries):
            name, ino, dtype = entries[at]
            record = pack_one(name, ino, at + 1, dtype)
            room -= len(record)
            if room < 0:
                if not records:
                    raise err(EINVAL)
                break
            records.append(record)
            at += 1
        self.f_offset = at
        self.f_vnode.event(IN_ACCESS)
        return b"".join(records)

    # -- the rest -------------------------------------------------------------------------------

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        vp = self.f_vnode
        if vp.v_type == VREG:
            if cmd == FIONREAD:
                left = max(vp.v_filesize - self.f_offset, 0) & 0xFFFFFFFF
                copyout(lwp.lwp_proc.p_vmspace, pack("<I", left), arg)
                return 0
            if cmd == FIGETBSZ:
                copyout(lwp.lwp_proc.p_vmspace, pack("<i", vp.getattr().va_blksize), arg)
                return 0
        if cmd == FICLONE:
            return self._clone(lwp, arg)
        if cmd == FICLONERANGE:
            return self._clone(lwp, copyin(lwp.lwp_proc.p_vmspace, arg, 32)[:8])
        return vp.ioctl(cmd, arg, lwp)

    def _clone(self, lwp: Lwp, source: int | bytes) -> int:
        """FICLONE, FICLONERANGE: on no file system here do files share their blocks; the errors
        before that are Linux's (vfs_clone_file_range)."""
        fd = source if isinstance(source, int) else int.from_bytes(source, "little", signed=True)
        other = lwp.lwp_proc.p_fd.fget(fd)
        if not isinstance(other, VnodeFile) or other.f_vnode.v_mount is not self.f_vnode.v_mount:
            raise err(EXDEV)
        if VDIR in (other.f_vnode.v_type, self.f_vnode.v_type):
            raise err(EISDIR)
        if other.f_vnode.v_type != VREG or self.f_vnode.v_type != VREG:
            raise err(EINVAL)
        if not other.f_mode & FREAD or not self.f_mode & FWRITE or self.f_flag & O_APPEND:
            raise err(EBADF)
        raise err(EOPNOTSUPP)

    def fo_poll(self) -> int:
        return self.f_vnode.poll(_POLL_ALL)

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return self.f_vnode.getattr()

    def fo_chmod(self, mode: int, cred: Cred) -> None:
        self.f_vnode.chmod(mode, cred)

    def fo_chown(self, uid: int, gid: int, cred: Cred) -> None:
        self.f_vnode.chown(uid, gid, cred)

    def fo_utimes(self, atime: int | None, mtime: int | None, cred: Cred, explicit: bool) -> None:
        self.f_vnode.utimes(atime, mtime, cred, explicit)

    def fo_statfs(self) -> Statfs:
        return self.f_vnode.v_mount.statfs()

    def fo_setfl(self, flag: int) -> None:
        if self.f_vnode.v_type != VREG:
            super().fo_setfl(flag)

    def fo_lockf(self) -> LockfHead | None:
        head: LockfHead | None = self.f_vnode.v_lockf
        return head

    def fo_set_lockf(self, head: LockfHead | None) -> None:
        self.f_vnode.v_lockf = head

    def fo_close(self) -> None:
        if self.f_mode & FPATH:
            self.f_vnode.vrele()
        else:
            vp = self.f_vnode
            vp.event(IN_CLOSE_WRITE if self.f_mode & FWRITE else IN_CLOSE_NOWRITE)
            vp.close(self.f_mode)


def getvnode(fp: File) -> Vnode:
    """The regular file's vnode behind `fp`, for calls that need one.

    :raises OSError: EISDIR, EINVAL
    """
    vp = fp.f_vnode
    if vp is None:
        raise err(EINVAL)
    if vp.v_type == VDIR:
        raise err(EISDIR)
    if vp.v_type != VREG:
        raise err(EINVAL)
    return vp


def getdvnode(fp: File) -> Vnode:
    """The directory behind `fp`.

    :raises OSError: ENOTDIR
    """
    vp = fp.f_vnode
    if vp is None or vp.v_type != VDIR:
        raise err(ENOTDIR)
    return vp
