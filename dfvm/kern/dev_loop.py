"""Loop devices: a regular file as a block device. /dev/loop-control hands them out, /dev/loopN is
one, and an open of it is a LoopFile, which knows whether it may write and tells the device when it
closes.

Data goes straight to the file and comes straight from it, through the file's pages: the device has
no cache of its own that could differ from it. It holds the file open as long as it is bound.

Nothing that is on the device can be mounted: file systems that need a device are none of ours.

Devices come into being when somebody asks for them, by number (`loop_device`, called by the open of
a node); the nodes of the first ones are in /dev from the start.

Source: Linux drivers/block/loop.c, block/ioctl.c, include/uapi/linux/loop.h.
"""

from __future__ import annotations

import os
from struct import Struct, pack, unpack
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_caps import CAP_SYS_ADMIN
from dfvm.kern.kern_errno import (
    EACCES,
    EBADF,
    EBUSY,
    EEXIST,
    EINVAL,
    ENODEV,
    ENOSPC,
    ENOSYS,
    ENOTTY,
    ENXIO,
    EOVERFLOW,
    EPERM,
    err,
)
from dfvm.kern.vfs.devfs import DISK_GID, LOOP_CONTROL, LOOP_MAJOR, Cdev, DevMount
from dfvm.kern.vfs.vnode import vn_fullpath
from dfvm.kern.vfs.vnode_param import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FWRITE,
    OFF_MAX,
    VBLK,
    VREG,
)
from dfvm.kern.vnode_file import VnodeFile
from dfvm.vm.copyio import UIO_READ, UIO_WRITE, Uio, copyin, copyout, uiomove

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.kern_descrip import File, FileDesc, FileTable
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.mount import Vfs
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred

LOOP_SET_FD: Final = 0x4C00
LOOP_CLR_FD: Final = 0x4C01
LOOP_SET_STATUS: Final = 0x4C02
LOOP_GET_STATUS: Final = 0x4C03
LOOP_SET_STATUS64: Final = 0x4C04
LOOP_GET_STATUS64: Final = 0x4C05
LOOP_CHANGE_FD: Final = 0x4C06
LOOP_SET_CAPACITY: Final = 0x4C07
LOOP_SET_DIRECT_IO: Final = 0x4C08
LOOP_SET_BLOCK_SIZE: Final = 0x4C09
LOOP_CONFIGURE: Final = 0x4C0A
LOOP_CTL_ADD: Final = 0x4C80
LOOP_CTL_REMOVE: Final = 0x4C81
LOOP_CTL_GET_FREE: Final = 0x4C82

LO_FLAGS_READ_ONLY: Final = 1
LO_FLAGS_AUTOCLEAR: Final = 4
LO_FLAGS_PARTSCAN: Final = 8
LO_FLAGS_DIRECT_IO: Final = 16
_SETTABLE: Final = LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN  # by LOOP_SET_STATUS
_CLEARABLE: Final = LO_FLAGS_AUTOCLEAR  # likewise
_CONFIGURABLE: Final = (
    LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN | LO_FLAGS_DIRECT_IO
)  # fmt: skip

BLKROSET: Final = 0x125D
BLKROGET: Final = 0x125E
BLKRRPART: Final = 0x125F
BLKGETSIZE: Final = 0x1260
BLKFLSBUF: Final = 0x1261
BLKRASET: Final = 0x1262
BLKRAGET: Final = 0x1263
BLKFRASET: Final = 0x1264
BLKFRAGET: Final = 0x1265
BLKSECTGET: Final = 0x1267
BLKSSZGET: Final = 0x1268
BLKDISCARD: Final = 0x1277
BLKIOMIN: Final = 0x1278
BLKIOOPT: Final = 0x1279
BLKALIGNOFF: Final = 0x127A
BLKPBSZGET: Final = 0x127B
BLKDISCARDZEROES: Final = 0x127C
BLKROTATIONAL: Final = 0x127E
BLKZEROOUT: Final = 0x127F
BLKBSZGET: Final = 0x80081270
BLKBSZSET: Final = 0x40081271
BLKGETSIZE64: Final = 0x80081272
HDIO_GETGEO: Final = 0x301

_SECTOR: Final = 512
_BLOCK_MAX: Final = 65536  # of LOOP_SET_BLOCK_SIZE
_PAGE: Final = 4096
_CHUNK: Final = 65536  # bytes moved at a time
_MAX_SECTORS: Final = 2560  # of one request, as a device on Linux is made with


# struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt_type,
# encrypt_key_size, flags, file_name, crypt_name, encrypt_key, init[2]
_INFO64: Final = Struct("<5Q4I64s64s32s2Q")
# struct loop_info: number, device, inode, rdevice, offset, encrypt_type, encrypt_key_size, flags,
# name, encrypt_key, init[2], reserved[4]
_INFO: Final = Struct("<i4x3Q4i64s32s2Q4s4x")
_CONFIG: Final = Struct("<II232s64x")  # struct loop_config: fd, block_size, info


class Loop(Cdev):
    """One loop device."""

    __slots__ = ("l_block", "l_bsize", "l_file", "l_flags", "l_name", "l_number", "l_offset",
                 "l_openers", "l_rdonly", "l_readahead", "l_size", "l_sizelimit",
                 "l_vfs")  # fmt: skip

    l_vfs: Vfs
    l_number: int
    l_openers: int  # LoopFiles of it
    l_file: File | None  # what it shows, held; None: not bound
    l_offset: int  # byte of the file that is its first
    l_sizelimit: int  # bytes it has at most; 0: all that follow
    l_size: int  # bytes it has
    l_flags: int  # LO_FLAGS_*
    l_rdonly: bool  # nothing may be written: what was asked for last, of LOOP_* or BLKROSET
    l_block: int  # logical block size
    l_bsize: int  # what BLKBSZSET said
    l_readahead: int  # sectors, as BLKRASET said
    l_name: bytes  # lo_file_name: what whoever set it up calls the file

    def __init__(self, vfs: Vfs, number: int) -> None:
        self.l_vfs = vfs
        self.l_number = number
        self.l_openers = 0
        self.l_rdonly = False
        self.l_bsize = _PAGE
        self.l_readahead = 256
        self._unbound()

    def _unbound(self) -> None:
        self.l_file = None
        self.l_offset = self.l_sizelimit = self.l_size = self.l_flags = 0
        self.l_block = _SECTOR
        self.l_name = b""

    # -- the file -------------------------------------------------------------------------------

    def backing(self) -> Vnode:
        """The file it shows.

        :raises OSError: ENXIO
        """
        if self.l_file is None or self.l_file.f_vnode is None:
            raise err(ENXIO)
        return self.l_file.f_vnode

    def backing_name(self) -> bytes:
        """Its path, for /sys."""
        return vn_fullpath(self.backing(), self.l_vfs.rootvnode)

    def resize(self) -> None:
        """Take over the file's size."""
        size = max(self.backing().vop_newsize() - self.l_offset, 0)
        if self.l_sizelimit:
            size = min(size, self.l_sizelimit)
        self.l_size = size & -_SECTOR

    def bind(self, fp: File, writable: bool, flags: int, block: int) -> None:
        """Show `fp`'s file; `writable`: the caller may write the device.

        :raises OSError: EBUSY, EINVAL
        """
        vp = fp.f_vnode
        if vp is None or vp.v_type != VREG:
            raise err(EINVAL)
        if self.l_file is not None:
            raise err(EBUSY)
        _check_block(block)
        if not (writable and fp.f_mode & FWRITE):
            flags |= LO_FLAGS_READ_ONLY
        fp.fhold()
        self.l_file = fp
        self.l_flags = flags
        self.l_block = block
        self.l_rdonly = bool(flags & LO_FLAGS_READ_ONLY)
        self.resize()

    def clear(self) -> None:
        """Let go of the file. May block."""
        fp = self.l_file
        assert fp is not None
        self._unbound()
        fp.fdrop()

    def closed(self) -> None:
        """A LoopFile of it is gone. May block."""
        self.l_openers -= 1
        if not self.l_openers and self.l_file is not None and self.l_flags & LO_FLAGS_AUTOCLEAR:
            self.clear()

    # -- as a device ----------------------------------------------------------------------------

    def d_open(self, vp: Vnode, fflag: int, cred: Cred) -> object | None:
        table: FileTable = self.l_vfs.vm.curproc().p_fd.fd_table  # type: ignore[union-attr]
        return LoopFile(table, vp, self)

    def d_read(self, uio: Uio, off: int, ioflag: int) -> None:
        if self.l_file is None:
            return
        vp = self.backing()
        want = min(uio.uio_resid, self.l_size - off)
        while want > 0:
            data = bytearray(min(want, _CHUNK))
            part = Uio(None, [memoryview(data)], UIO_READ)
            vp.read(part, self.l_offset + off, ioflag)  # what is not there any more is zero
            moved = uiomove(data, uio)
            off += moved
            want -= moved

    def d_write(self, uio: Uio, off: int, ioflag: int) -> None:
        if self.l_rdonly:
            raise err(EPERM)
        want = min(uio.uio_resid, self.l_size - off)
        if want <= 0:
            raise err(ENOSPC)
        vp = self.backing()
        while want > 0:
            data = bytearray(min(want, _CHUNK))
            moved = uiomove(data, uio)
            part = Uio(None, [memoryview(data)[:moved]], UIO_WRITE)
            vp.write(part, self.l_offset + off, ioflag)
            off += moved
            want -= moved

    def d_fsync(self) -> None:
        if self.l_file is not None:
            self.backing().fsync()

    # -- what it tells, and is told -------------------------------------------------------------

    def info(self) -> bytes:
        """struct loop_info64.

        :raises OSError: ENXIO
        """
        va = self.backing().getattr()
        return _INFO64.pack(va.va_fsid, va.va_fileid, va.va_rdev, self.l_offset, self.l_sizelimit,
                            self.l_number, 0, 0, self.l_flags, self.l_name, b"", b"",
                            0, 0)  # fmt: skip

    def old_info(self) -> bytes:
        """struct loop_info.

        :raises OSError: ENXIO; EOVERFLOW for an offset that does not fit
        """
        va = self.backing().getattr()
        if self.l_offset > 0x7FFFFFFF or self.l_sizelimit:
            raise err(EOVERFLOW)
        return _INFO.pack(self.l_number, va.va_fsid, va.va_fileid, va.va_rdev, self.l_offset, 0, 0,
                          self.l_flags, self.l_name, b"", 0, 0, b"")  # fmt: skip

    def set_place(self, offset: int, sizelimit: int, encrypt: int, name: bytes) -> None:
        """Where in the file it is.

        :raises OSError: EINVAL, EOVERFLOW; nothing has changed then
        """
        if encrypt:
            raise err(EINVAL)
        if offset > OFF_MAX or sizelimit > OFF_MAX:
            raise err(EOVERFLOW)
        self.l_offset, self.l_sizelimit = offset, sizelimit
        self.l_name = name.partition(b"\0")[0]

    def set_status(self, raw: bytes) -> None:
        """LOOP_SET_STATUS64, with a struct loop_info64.

        :raises OSError: ENXIO, EINVAL, EOVERFLOW
        """
        self.backing()
        info = _INFO64.unpack(raw)
        self.set_place(info[3], info[4], info[6], info[9])
        flags = info[8] & _SETTABLE
        self.l_flags = flags | self.l_flags & ~_SETTABLE | self.l_flags & ~_CLEARABLE
        self.resize()


def _check_block(size: int) -> None:
    if not _SECTOR <= size <= _BLOCK_MAX or size & (size - 1):
        raise err(EINVAL)


class LoopFile(VnodeFile):
    """An open loop device."""

    __slots__ = ("f_loop",)

    f_loop: Loop

    def __init__(self, table: FileTable, vp: Vnode, loop: Loop) -> None:
        super().__init__(table, 0, vp)  # the caller sets the flags
        vp.vref()
        self.f_loop = loop
        loop.l_openers += 1

    def fo_opened(self, lwp: Lwp, flag: int) -> None:
        if self.f_mode & FWRITE:
            self.f_vnode.v_writecount += 1

    def fo_close(self) -> None:
        vp = self.f_vnode
        if self.f_mode & FWRITE:
            vp.v_writecount -= 1
        vp.vrele()
        self.f_loop.closed()

    def fo_seek(self, lwp: Lwp, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset += self.f_offset
        elif whence == os.SEEK_END:
            offset += self.f_loop.l_size
        elif whence != os.SEEK_SET:
            raise err(EINVAL)
        if not 0 <= offset <= self.f_loop.l_size:
            raise err(EINVAL)
        self.f_offset = offset
        return offset

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        loop = self.f_loop
        space = lwp.lwp_proc.p_vmspace
        cmd = u32(cmd)
        if cmd in _NUMBERS:
            kind, get = _NUMBERS[cmd]
            copyout(space, pack(kind, get(loop)), arg)
        elif cmd in (BLKDISCARD, BLKZEROOUT):
            start, length = unpack("<2Q", copyin(space, arg, 16))
            self._zero(start, length, cmd == BLKZEROOUT)
        elif cmd == BLKROSET:
            (value,) = unpack("<i", copyin(space, arg, 4))
            self._may_admin(lwp, EACCES)
            loop.l_rdonly = bool(value) or bool(loop.l_flags & LO_FLAGS_READ_ONLY)
        elif cmd == BLKBSZSET:
            (value,) = unpack("<i", copyin(space, arg, 4))
            self._may_admin(lwp, EACCES)
            if not loop.l_block <= value <= _BLOCK_MAX or value & (value - 1):
                raise err(EINVAL)
            loop.l_bsize = value
        elif cmd in (BLKRASET, BLKFRASET):
            self._may_admin(lwp, EACCES)
            loop.l_readahead = arg  # the file's pages have their own
        elif cmd == BLKFLSBUF:
            self._may_admin(lwp, EACCES)
            loop.d_fsync()
        elif cmd == BLKRRPART:
            self._may_admin(lwp, EACCES)
            raise err(EINVAL)  # it has no partitions
        elif cmd == HDIO_GETGEO:
            raise err(ENOTTY)
        else:
            self._loop_ioctl(lwp, cmd, arg)
        return 0

    def _may_admin(self, lwp: Lwp, errno: int) -> None:
        if not lwp.lwp_proc.p_ucred.cr_cap_e & CAP_SYS_ADMIN:
            raise err(errno)

    def _may_set(self, lwp: Lwp) -> None:
        if not self.f_mode & FWRITE:
            self._may_admin(lwp, EPERM)

    def _zero(self, start: int, length: int, zero: bool) -> None:
        """BLKDISCARD or, with `zero`, BLKZEROOUT: the bytes become a hole of the file.

        :raises OSError: EBADF, EPERM, EINVAL
        """
        loop = self.f_loop
        if not self.f_mode & FWRITE:
            raise err(EBADF)
        if loop.l_rdonly:
            raise err(EPERM)
        block = _SECTOR if zero else loop.l_block
        if (start | length) % block or (not length and not zero) or start + length > loop.l_size:
            raise err(EINVAL)
        if length:
            mode = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE
            loop.backing().allocate(mode, loop.l_offset + start, length)

    def _loop_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> None:
        loop = self.f_loop
        p = lwp.lwp_proc
        space = p.p_vmspace
        writable = bool(self.f_mode & FWRITE)
        if cmd == LOOP_SET_FD:
            loop.bind(p.p_fd.fget(arg), writable, 0, _SECTOR)
        elif cmd == LOOP_CONFIGURE:
            self._configure(lwp, arg)
        elif cmd == LOOP_CHANGE_FD:
            self._change(p.p_fd, arg)
        elif cmd == LOOP_CLR_FD:
            loop.backing()
            if loop.l_openers > 1:
                loop.l_flags |= LO_FLAGS_AUTOCLEAR  # with the last one
            else:
                loop.clear()
        elif cmd == LOOP_GET_STATUS64:
            copyout(space, loop.info(), arg)
        elif cmd == LOOP_GET_STATUS:
            copyout(space, loop.old_info(), arg)
        elif cmd == LOOP_SET_STATUS64:
            self._may_set(lwp)
            loop.set_status(copyin(space, arg, _INFO64.size))
        elif cmd == LOOP_SET_STATUS:
            self._may_set(lwp)
            old = _INFO.unpack(copyin(space, arg, _INFO.size))
            loop.set_status(
                _INFO64.pack(0, 0, 0, old[4] & (1 << 64) - 1, 0, 0, u32(old[5]), 0, u32(old[7]),
                             old[8], b"", b"", 0, 0)
            )  # fmt: skip
        else:
            self._simple_ioctl(lwp, cmd, arg)

    def _simple_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> None:
        loop = self.f_loop
        if cmd in (LOOP_SET_CAPACITY, LOOP_SET_DIRECT_IO, LOOP_SET_BLOCK_SIZE):
            self._may_set(lwp)
        vp = loop.backing()
        if cmd == LOOP_SET_CAPACITY:
            loop.resize()
        elif cmd == LOOP_SET_BLOCK_SIZE:
            _check_block(arg)
            vp.fsync()
            loop.l_block = arg
        elif cmd == LOOP_SET_DIRECT_IO:
            if arg and loop.l_offset % loop.l_block:
                raise err(EINVAL)
            vp.fsync()
            loop.l_flags &= ~LO_FLAGS_DIRECT_IO
            if arg:
                loop.l_flags |= LO_FLAGS_DIRECT_IO
        else:
            raise err(EINVAL)

    def _configure(self, lwp: Lwp, arg: int) -> None:
        loop = self.f_loop
        p = lwp.lwp_proc
        fd, block, raw = _CONFIG.unpack(copyin(p.p_vmspace, arg, _CONFIG.size))
        fp = p.p_fd.fget(fd)
        info = _INFO64.unpack(raw)
        if loop.l_file is not None:
            raise err(EBUSY)
        if info[8] & ~_CONFIGURABLE:
            raise err(EINVAL)
        loop.set_place(info[3], info[4], info[6], info[9])
        try:
            loop.bind(fp, bool(self.f_mode & FWRITE), info[8], block or _SECTOR)
        except OSError:
            loop.set_place(0, 0, 0, b"")
            raise

    def _change(self, fdp: FileDesc, fd: int) -> None:
        """Another file of the same size in place of the one it shows. May block.

        :raises OSError: ENXIO; EINVAL for a device that may be written, and another size
        """
        loop = self.f_loop
        loop.backing()
        fp = fdp.fget(fd)
        if not loop.l_flags & LO_FLAGS_READ_ONLY:
            raise err(EINVAL)
        vp = fp.f_vnode
        if vp is None or vp.v_type != VREG or vp.vop_newsize() != loop.backing().vop_newsize():
            raise err(EINVAL)
        fp.fhold()
        old, loop.l_file = loop.l_file, fp
        assert old is not None
        old.fdrop()


_NUMBERS: Final[dict[int, tuple[str, Callable[[Loop], int]]]] = {
    BLKGETSIZE64: ("<Q", lambda loop: loop.l_size),
    BLKGETSIZE: ("<Q", lambda loop: loop.l_size // _SECTOR),
    BLKSSZGET: ("<I", lambda loop: loop.l_block),
    BLKPBSZGET: ("<I", lambda loop: loop.l_block),
    BLKBSZGET: ("<I", lambda loop: loop.l_bsize),
    BLKIOMIN: ("<I", lambda loop: loop.l_block),
    BLKIOOPT: ("<I", lambda loop: 0),
    BLKRAGET: ("<Q", lambda loop: loop.l_readahead),
    BLKFRAGET: ("<Q", lambda loop: loop.l_readahead),
    BLKALIGNOFF: ("<I", lambda loop: 0),
    BLKROGET: ("<I", lambda loop: loop.l_rdonly),
    BLKSECTGET: ("<H", lambda loop: _MAX_SECTORS),
    BLKROTATIONAL: ("<H", lambda loop: 0),
    BLKDISCARDZEROES: ("<I", lambda loop: 0),
}


class LoopControl(Cdev):
    """/dev/loop-control."""

    __slots__ = ("c_vfs",)

    c_vfs: Vfs

    def __init__(self, vfs: Vfs) -> None:
        self.c_vfs = vfs

    def d_read(self, uio: Uio, off: int, ioflag: int) -> None:
        raise err(EINVAL)

    def d_write(self, uio: Uio, off: int, ioflag: int) -> None:
        raise err(EINVAL)

    def d_ioctl(self, cmd: int, arg: int, lwp: object) -> int:
        vfs = self.c_vfs
        number = s32(arg)
        if cmd == LOOP_CTL_GET_FREE:
            number = 0
            while (loop := vfs.loops.get(number)) is not None and loop.l_file is not None:
                number += 1
            _make(vfs, number)
        elif cmd == LOOP_CTL_ADD:
            if number < 0:
                number = 0
                while _exists(vfs, number):
                    number += 1
            if _exists(vfs, number):
                raise err(EEXIST)
            _make(vfs, number)
        elif cmd == LOOP_CTL_REMOVE:
            if number < 0:
                raise err(EINVAL)
            if not _exists(vfs, number):
                raise err(ENODEV)
            loop = vfs.loops.get(number)
            if loop is not None and (loop.l_file is not None or loop.l_openers):
                raise err(EBUSY)
            _dev(vfs).remove_dev(b"loop%d" % number)
            if vfs.loops.pop(number, None) is not None:
                del vfs.blockdevs[os.makedev(LOOP_MAJOR, number)]
            return 0
        else:
            raise err(ENOSYS)
        return number


def _dev(vfs: Vfs) -> DevMount:
    return next(fs for fs in vfs.filesystems if isinstance(fs, DevMount))


def _exists(vfs: Vfs, number: int) -> bool:
    return number in vfs.loops or _dev(vfs).mnt_root.lookup(b"loop%d" % number) is not None


def _make(vfs: Vfs, number: int) -> Loop:
    """The device `number`, with its node."""
    loop = vfs.loops.get(number)
    if loop is None:
        loop = vfs.loops[number] = Loop(vfs, number)
        vfs.blockdevs[os.makedev(LOOP_MAJOR, number)] = loop
    dev, name = _dev(vfs), b"loop%d" % number
    if dev.mnt_root.lookup(name) is None:
        dev.make_node(name, VBLK, LOOP_MAJOR, number, 0o660, DISK_GID)
    return loop


def loop_device(vfs: Vfs, vtype: int, rdev: int) -> Cdev | None:
    """The device behind a node of type `vtype` with number `rdev`, if it is one of ours."""
    major, minor = os.major(rdev), os.minor(rdev)
    if not any(isinstance(fs, DevMount) for fs in vfs.filesystems):
        return None
    if vtype == VBLK and major == LOOP_MAJOR:
        return _make(vfs, minor)
    if vtype != VBLK and (major, minor) == LOOP_CONTROL:
        control = vfs.devices[rdev] = LoopControl(vfs)
        return control
    return None
