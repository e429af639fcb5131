"""System calls about what files take in storage: their size, room kept for them, when it is written
out; and copying from file to file without the program's memory.

Source: behaviour of Linux fs/{open,sync,read_write}.c.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, s64, u32
from dfvm.kern.kern_descrip import O_APPEND, File, holding_both, signal_self
from dfvm.kern.kern_errno import (
    EBADF,
    EFBIG,
    EINVAL,
    EIO,
    ENODEV,
    EOPNOTSUPP,
    EOVERFLOW,
    ESPIPE,
    EXDEV,
    err,
)
from dfvm.kern.kern_path import AT_FDCWD, path_vnode, user_path
from dfvm.kern.proc import RLIMIT_FSIZE
from dfvm.kern.sys_generic import MAX_RW_COUNT
from dfvm.kern.vfs.vnode_param import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FREAD,
    FWRITE,
    IN_ACCESS,
    IN_MODIFY,
    OFF_MAX,
    VBLK,
    VDIR,
    VLNK,
    VREG,
    VWRITE,
)
from dfvm.kern.vnode_file import check_fsize, getvnode
from dfvm.vm.copyio import UIO_READ, UIO_WRITE, Uio, copyin, copyout
from dfvm.vm.pmap import pmap_is_modified
from dfvm.vm.vm_object import vm_object_pages
from dfvm.vm.vm_param import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.vnode import Vnode

_COPY_CHUNK: Final = 1 << 16  # bytes that sendfile and copy_file_range move at a time
_U64: Final = (1 << 64) - 1
_CACHESTAT_RANGE: Final = Struct("<QQ")  # offset, length
_CACHESTAT: Final = Struct("<5Q")  # pages cached, dirty, being written, evicted, evicted recently


# -- sizes and storage --------------------------------------------------------------------------


def _is_pipe(fp: File) -> bool:
    """A pipe of ours: which takes no other room than its own."""
    from dfvm.kern.sys_pipe import PipeFile

    return isinstance(fp, PipeFile)


def _may_grow(lwp: Lwp, vp: Vnode, length: int) -> None:
    """RLIMIT_FSIZE for a change of size.

    :raises OSError: EFBIG, with SIGXFSZ
    """
    if length > vp.v_filesize and length > lwp.lwp_proc.p_rlimit(RLIMIT_FSIZE):
        from dfvm.kern.kern_sig import SIGXFSZ

        signal_self(lwp, SIGXFSZ)
        raise err(EFBIG)


def sys_truncate(lwp: Lwp, upath: int, length: int) -> int:
    """truncate(2)"""
    length = s64(length)
    if length < 0:
        raise err(EINVAL)
    vp = path_vnode(lwp, AT_FDCWD, user_path(lwp, upath))
    if vp.v_type == VREG:
        _may_grow(lwp, vp, length)
        head = vp.v_lockf
        if head is not None and head.lh_leases:
            from dfvm.kern.kern_lease import break_lease

            vp.access(VWRITE, lwp.lwp_proc.p_ucred)
            vp.vref()  # whoever has the lease may unlink the file before giving it back
            try:
                break_lease(vp, True, False)
                vp.truncate(length, lwp.lwp_proc.p_ucred)
            finally:
                vp.vrele()
            return 0
    vp.truncate(length, lwp.lwp_proc.p_ucred)
    return 0


def sys_ftruncate(lwp: Lwp, fd: int, length: int) -> int:
    """ftruncate(2)"""
    length = s64(length)
    if length < 0:
        raise err(EINVAL)
    fp = lwp.lwp_proc.p_fd.fget(fd)
    vp = fp.f_vnode
    if vp is None or vp.v_type != VREG or not fp.f_mode & FWRITE:
        raise err(EINVAL)
    _may_grow(lwp, vp, length)
    vp.setsize(length)
    return 0


def sys_fallocate(lwp: Lwp, fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2)"""
    mode, offset, length = u32(mode), s64(offset), s64(length)
    fp = lwp.lwp_proc.p_fd.fget(fd)
    if offset < 0 or length <= 0:
        raise err(EINVAL)
    if mode not in (0, FALLOC_KEEP_SIZE, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE):
        raise err(EOPNOTSUPP)
    if not fp.f_mode & FWRITE:
        raise err(EBADF)
    if _is_pipe(fp):
        raise err(ESPIPE)
    vp = fp.f_vnode
    if vp is None or vp.v_type != VREG:
        raise err(ENODEV)
    if offset + length > OFF_MAX:
        raise err(EFBIG)
    if not mode & FALLOC_KEEP_SIZE:
        _may_grow(lwp, vp, offset + length)
    vp.allocate(mode, offset, length)
    return 0


def sys_fsync(lwp: Lwp, fd: int) -> int:
    """fsync(2)"""
    vp = lwp.lwp_proc.p_fd.fget(fd).f_vnode
    if vp is None or vp.v_type not in (VREG, VDIR, VBLK):
        raise err(EINVAL)
    vp.fsync()
    return 0


def sys_fdatasync(lwp: Lwp, fd: int) -> int:
    """fdatasync(2)"""
    return sys_fsync(lwp, fd)


def sys_sync(lwp: Lwp) -> int:
    """sync(2)"""
    lwp.lwp_proc.p_fs.fs_rdir.v_mount.mnt_vfs.sync()
    return 0


def sys_syncfs(lwp: Lwp, fd: int) -> int:
    """syncfs(2)"""
    vp = lwp.lwp_proc.p_fd.fget(fd).f_vnode
    if vp is not None and vp.v_mount.sync():
        raise err(EIO)
    return 0


def sys_sync_file_range(lwp: Lwp, fd: int, offset: int, nbytes: int, flags: int) -> int:
    """sync_file_range(2): all of the file's data"""
    vp = lwp.lwp_proc.p_fd.fget(fd).f_vnode
    if u32(flags) & ~7 or s64(offset) < 0 or s64(nbytes) < 0:
        raise err(EINVAL)
    if vp is None or vp.v_type not in (VREG, VDIR, VLNK):
        raise err(ESPIPE)
    if vp.v_object is not None:  # else it has no pages, or is of a kind that never has any
        vp.fsync()
    return 0


def sys_fadvise64(lwp: Lwp, fd: int, offset: int, length: int, advice: int) -> int:
    """posix_fadvise(2): checked, and without effect, as the page cache keeps what it has"""
    if _is_pipe(lwp.lwp_proc.p_fd.fget(fd)):
        raise err(ESPIPE)
    if not 0 <= s32(advice) <= 5 or s64(length) < 0:
        raise err(EINVAL)
    return 0


def sys_readahead(lwp: Lwp, fd: int, offset: int, count: int) -> int:
    """readahead(2): reading is not slow enough to begin early"""
    fp = lwp.lwp_proc.p_fd.fget(fd)
    if not fp.f_mode & FREAD:
        raise err(EBADF)
    vp = fp.f_vnode
    if vp is None or vp.v_type != VREG:
        raise err(EINVAL)
    return 0


def sys_cachestat(lwp: Lwp, fd: int, urange: int, ucstat: int, flags: int) -> int:
    """cachestat(2): how much of a file is in memory. What has left is not remembered."""
    fp = lwp.lwp_proc.p_fd.fget(fd)
    space = lwp.lwp_proc.p_vmspace
    off, length = _CACHESTAT_RANGE.unpack(copyin(space, urange, _CACHESTAT_RANGE.size))
    if u32(flags):
        raise err(EINVAL)
    first = off // PAGE_SIZE
    last = ((off + length - 1) & _U64) // PAGE_SIZE if length else _U64
    cached = dirty = 0
    obj = fp.f_vnode.v_object if fp.f_vnode is not None else None
    if obj is not None:
        for m in vm_object_pages(obj, first, last + 1):
            cached += 1
            dirty += bool(m.dirty) or pmap_is_modified(obj.vm, m)
    copyout(space, _CACHESTAT.pack(cached, dirty, 0, 0, 0), ucstat)
    return 0


# -- copying inside the kernel ------------------------------------------------------------------


def user_off(lwp: Lwp, uoff: int) -> int | None:
    """The offset at `uoff`; None when it is null.

    :raises OSError: EFAULT
    """
    return s64(int.from_bytes(copyin(lwp.lwp_proc.p_vmspace, uoff, 8), "little")) if uoff else None


def copy_file(
    lwp: Lwp, get: Callable[[Uio, int], None], count: int, put: Callable[[Uio, int], None]
) -> int:
    """Copy `count` bytes, or as many as there are, from where get(uio, bytes done so far) finds
    them to wherever `put`, called likewise, puts them, until a signal comes. Returns how many were
    put; raises only when none were. May block."""
    td = lwp.lwp_thread
    buffer = memoryview(bytearray(min(count, _COPY_CHUNK)))
    done = 0
    while done < count:
        piece = buffer[: count - done]
        uio = Uio(None, [piece], UIO_READ)
        try:
            get(uio, done)
            n = len(piece) - uio.uio_resid
            if not n:
                break
            uio = Uio(None, [piece[:n]], UIO_WRITE)
            put(uio, done)
        except OSError:
            if not done:
                raise
            break
        done += n - uio.uio_resid
        if uio.uio_resid or td.td_cursig():
            break
        td.td_sched.yield_()  # it may be gigabytes
    return done


def sys_copy_file_range(
    lwp: Lwp, in_fd: int, uinoff: int, out_fd: int, uoutoff: int, count: int, flags: int
) -> int:
    """copy_file_range(2)"""
    p = lwp.lwp_proc
    ifp, ofp = p.p_fd.fget(in_fd), p.p_fd.fget(out_fd)
    return holding_both(ifp, ofp, _copy_file_range, lwp, ifp, uinoff, ofp, uoutoff, count, flags)


def _copy_file_range(
    lwp: Lwp, ifp: File, uinoff: int, ofp: File, uoutoff: int, count: int, flags: int
) -> int:
    """The same with both files held."""
    in_off, out_off = user_off(lwp, uinoff), user_off(lwp, uoutoff)
    if u32(flags):
        raise err(EINVAL)
    ivp, ovp = getvnode(ifp), getvnode(ofp)
    if not ifp.f_mode & FREAD or not ofp.f_mode & FWRITE or ofp.f_flag & O_APPEND:
        raise err(EBADF)
    src = ifp.f_offset if in_off is None else in_off
    dst = ofp.f_offset if out_off is None else out_off
    if max(src & _U64, dst & _U64) + count > _U64:
        raise err(EOVERFLOW)
    if ivp.v_mount.mnt_fs is not ovp.v_mount.mnt_fs:
        raise err(EXDEV)
    if dst >= OFF_MAX:
        raise err(EFBIG)
    if src < 0 or dst < 0 or s64(count) < 0:
        raise err(EINVAL)
    count = max(min(count, MAX_RW_COUNT, ivp.v_filesize - src, OFF_MAX - dst), 0)
    if ivp.vop_data() is ovp.vop_data() and src < dst + count and dst < src + count:
        raise err(EINVAL)

    def get(uio: Uio, done: int) -> None:
        ivp.read(uio, src + done, 0)

    def put(uio: Uio, done: int) -> None:
        ovp.write(uio, dst + done, 0, check_fsize(lwp, dst + done))

    done = copy_file(lwp, get, count, put)
    ivp.vop_accessed()
    if done:
        ivp.event(IN_ACCESS)
        ovp.event(IN_MODIFY)
    for fp, uoff, end in ((ifp, uinoff, src + done), (ofp, uoutoff, dst + done)):
        if uoff:
            copyout(lwp.lwp_proc.p_vmspace, end.to_bytes(8, "little"), uoff)
        else:
            fp.f_offset = end
    return done
