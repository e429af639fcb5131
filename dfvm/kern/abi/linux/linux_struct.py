"""Structures of the Linux x86-64 ABI that system calls on files fill in or read.

Layouts from the kernel's uapi headers (asm/stat.h, linux/stat.h, asm/statfs.h, linux/dirent.h,
linux/time_types.h, asm-generic/poll.h, linux/eventpoll.h). Pure packing: no user memory here.
"""

from __future__ import annotations

from struct import Struct
from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.vfs.vnode_param import VNON, VSOCK, VTTOIF, Vattr

if TYPE_CHECKING:
    from dfvm.kern.vfs.mount import Statfs

NS: Final = 1_000_000_000

TIMESPEC: Final = Struct("<qq")
EPOLL_EVENT: Final = Struct("<IQ")  # packed on x86-64: 12 bytes

# struct stat: dev ino nlink mode uid gid pad rdev size blksize blocks, three timespecs, unused
_STAT: Final = Struct("<QQQIIIIQqqqqQqQqQ24x")
# struct statx: mask blksize attributes nlink uid gid mode pad ino size blocks attributes_mask,
# four statx_timestamps (s64, u32, pad), rdev, dev (major, minor each), mnt_id dio_mem dio_offset
_STATX: Final = Struct("<IIQIIIHHQQQQ" + "qII" * 4 + "IIIIQII96x")  # 256 bytes
# struct statfs: type bsize blocks bfree bavail files ffree fsid[2] namelen frsize flags spare[4]
_STATFS: Final = Struct("<qqQQQQQQqqq32x")
_DIRENT64: Final = Struct("<QqHB")  # ino, off, reclen, type; the name follows
_DIRENT: Final = Struct("<QQH")  # ino, off, reclen; the name, NUL and the type follow

ANON_DEV: Final = 12  # st_dev of what lies in no file system
PIPEFS_DEV: Final = 13  # st_dev of pipes without a name
SOCKFS_DEV: Final = 8  # st_dev of sockets
_ANON_DEVS: Final = {VNON: ANON_DEV, VSOCK: SOCKFS_DEV}

STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
STATX_MNT_ID: Final = 0x1000
STATX_ATTR_MOUNT_ROOT: Final = 0x2000
STATX__RESERVED: Final = 0x8000_0000


def dev_major(dev: int) -> int:
    """The major number of a Linux dev_t."""
    return dev >> 8 & 0xFFF | dev >> 32 & 0xFFFFF000


def dev_minor(dev: int) -> int:
    """The minor number of a Linux dev_t."""
    return dev & 0xFF | dev >> 12 & 0xFFFFFF00


def pack_stat(va: Vattr) -> bytes:
    """struct stat, 144 bytes."""
    asec, ansec = divmod(va.va_atime, NS)
    msec, mnsec = divmod(va.va_mtime, NS)
    csec, cnsec = divmod(va.va_ctime, NS)
    return _STAT.pack(
        va.va_fsid, va.va_fileid, va.va_nlink, VTTOIF[va.va_type] | va.va_mode, va.va_uid,
        va.va_gid, 0, va.va_rdev, va.va_size, va.va_blksize, (va.va_bytes + 511) // 512,
        asec, ansec, msec, mnsec, csec, cnsec,
    )  # fmt: skip


def pack_statx(va: Vattr, mnt_id: int, mount_root: bool) -> bytes:
    """struct statx of something in the mount `mnt_id` (0: in none). Everything known is given,
    whatever the caller's mask says, as statx(2) allows."""
    mask, birth = STATX_BASIC_STATS, va.va_birthtime
    if mnt_id:
        mask |= STATX_MNT_ID
    if birth is not None:
        mask |= STATX_BTIME
    asec, ansec = divmod(va.va_atime, NS)
    bsec, bnsec = divmod(birth or 0, NS)
    csec, cnsec = divmod(va.va_ctime, NS)
    msec, mnsec = divmod(va.va_mtime, NS)
    rdev, dev = va.va_rdev, va.va_fsid
    return _STATX.pack(
        mask, va.va_blksize, STATX_ATTR_MOUNT_ROOT if mount_root else 0, va.va_nlink, va.va_uid,
        va.va_gid, VTTOIF[va.va_type] | va.va_mode, 0, va.va_fileid, va.va_size,
        (va.va_bytes + 511) // 512, STATX_ATTR_MOUNT_ROOT,
        asec, ansec, 0, bsec, bnsec, 0, csec, cnsec, 0, msec, mnsec, 0,
        dev_major(rdev), dev_minor(rdev), dev_major(dev), dev_minor(dev), mnt_id, 0, 0,
    )  # fmt: skip


def pack_dirent64(name: bytes, ino: int, off: int, dtype: int) -> bytes:
    """struct linux_dirent64; `off` is the cookie of the entry after it."""
    size = _DIRENT64.size + len(name) + 1
    reclen = (size + 7) & ~7
    return _DIRENT64.pack(ino, off, reclen, dtype) + name + bytes(reclen - size + 1)


def pack_dirent(name: bytes, ino: int, off: int, dtype: int) -> bytes:
    """struct linux_dirent, of the old getdents: the type is the record's last byte."""
    size = _DIRENT.size + len(name) + 2
    reclen = (size + 7) & ~7
    return _DIRENT.pack(ino, off, reclen) + name + bytes(reclen - size + 1) + bytes((dtype,))


def whole_dirents(records: bytes, n: int) -> tuple[int, int]:
    """Of the entries in `records`, of either form: how long those are together that lie whole in
    the first `n` bytes, and the cookie of what follows them (0 when there are none)."""
    at = cookie = 0
    while at < n:
        _, off, reclen = _DIRENT.unpack_from(records, at)
        if at + reclen > n:
            break
        at, cookie = at + reclen, off
    return at, cookie


def pack_statfs(sf: Statfs) -> bytes:
    """struct statfs, 120 bytes."""
    return _STATFS.pack(
        sf.f_type, sf.f_bsize, sf.f_blocks, sf.f_bfree, sf.f_bavail, sf.f_files, sf.f_ffree,
        sf.f_fsid, sf.f_namelen, sf.f_frsize, sf.f_flags,
    )  # fmt: skip


def anon_attr(vtype: int = VNON, ino: int = 1) -> Vattr:
    """Attributes of something without a file system: a pipe, a socket, an eventfd. The latter sort
    all share one inode without a type, as in Linux."""
    va = Vattr()
    va.va_type = vtype
    va.va_mode = 0o600
    va.va_nlink = 1
    va.va_uid = va.va_gid = va.va_rdev = va.va_size = va.va_bytes = 0
    va.va_fsid = _ANON_DEVS.get(vtype, PIPEFS_DEV)
    va.va_fileid = ino
    va.va_blksize = 4096
    va.va_atime = va.va_mtime = va.va_ctime = va.va_birthtime = time_ns()
    return va
