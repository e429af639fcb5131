"""/dev: a file system in memory like any other, with the machine's own devices in it. The host's
are never seen. A device is found by its number, so a node made elsewhere with mknod works, too.

Source: DragonFly sys/kern/kern_device.c, sys/kern/kern_memio.c; numbers and behaviour are Linux's
(drivers/char/mem.c, Documentation/admin-guide/devices.txt).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from dfvm.kern.kern_errno import ENODEV, ENOSPC, ENOTTY, EOPNOTSUPP, err
from dfvm.kern.kern_event import POLL_READABLE, POLL_WRITABLE
from dfvm.kern.vfs.mount import ST_NOSUID
from dfvm.kern.vfs.overlay import OvlMount
from dfvm.kern.vfs.tmpfs import TMPFS_MAGIC
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, KCRED, MMAP_ANON, VBLK, VCHR

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.vfs.mount import Vfs
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred
    from dfvm.vm.copyio import Uio

_CHUNK: Final = 65536  # bytes handed over at once
_ZERO: Final = bytes(_CHUNK)
LOOP_MAJOR: Final = 7  # of block devices
LOOP_CONTROL: Final = (10, 237)
DISK_GID: Final = 6  # the group "disk" of Debian and its kin
_NLOOPS: Final = 8  # that have a node from the start
_LIMIT: Final = 1 << 20  # bytes of regular files in /dev


class Cdev:
    """A device. This base is one that cannot do anything."""

    __slots__ = ()

    d_splice = 0  # what splice may do with it: FREAD, FWRITE

    def d_open(self, vp: Vnode, fflag: int, cred: Cred) -> object | None:
        """It is being opened. May return a file to use instead of one on the vnode."""
        return None

    def d_read(self, uio: Uio, off: int, ioflag: int) -> None:
        """Read. May block."""
        raise err(EOPNOTSUPP)

    def d_write(self, uio: Uio, off: int, ioflag: int) -> None:
        """Write. May block."""
        raise err(EOPNOTSUPP)

    def d_ioctl(self, cmd: int, arg: int, lwp: Any) -> int:
        """Control; `arg` is the caller's register."""
        raise err(ENOTTY)

    def d_poll(self, events: int) -> int:
        """Which of `events` hold."""
        return events & (POLL_READABLE | POLL_WRITABLE)

    def d_fsync(self) -> None:
        """Bring what was written to where it belongs. May block."""

    def d_mmap(self) -> int:
        """How it is mapped: MMAP_*."""
        raise err(ENODEV)


class NullDev(Cdev):
    """/dev/null: takes everything, has nothing."""

    __slots__ = ()

    d_splice = FWRITE

    def d_read(self, uio: Uio, off: int, ioflag: int) -> None:
        """End of file."""

    def d_write(self, uio: Uio, off: int, ioflag: int) -> None:
        """Nobody looks at the data, so its address may be anything."""
        uio.uio_resid = 0


def _give(uio: Uio, make: Callable[[int], bytes]) -> None:
    """Fill uio with what make(length) makes. An address that can't be reached ends it, and is an
    error only at the first byte."""
    from dfvm.vm.copyio import uiomove

    wanted = uio.uio_resid
    try:
        while uio.uio_resid:
            uiomove(make(min(_CHUNK, uio.uio_resid)), uio)
    except OSError:
        if uio.uio_resid == wanted:
            raise


class ZeroDev(Cdev):
    """/dev/zero: as many zeros as wanted."""

    __slots__ = ()

    d_splice = FREAD | FWRITE

    def d_read(self, uio: Uio, off: int, ioflag: int) -> None:
        _give(uio, lambda n: _ZERO[:n])

    def d_write(self, uio: Uio, off: int, ioflag: int) -> None:
        uio.uio_resid = 0

    def d_mmap(self) -> int:
        return MMAP_ANON


class FullDev(ZeroDev):
    """/dev/full: no room."""

    __slots__ = ()

    d_splice = FREAD

    def d_write(self, uio: Uio, off: int, ioflag: int) -> None:
        raise err(ENOSPC)

    def d_mmap(self) -> int:
        raise err(ENODEV)


class RandomDev(Cdev):
    """/dev/random and /dev/urandom: the host's."""

    __slots__ = ()

    d_splice = FREAD | FWRITE

    def d_read(self, uio: Uio, off: int, ioflag: int) -> None:
        _give(uio, os.urandom)

    def d_write(self, uio: Uio, off: int, ioflag: int) -> None:
        # Entropy from a program: welcome, and not needed.
        uio.uio_resid = 0


class DevMount(OvlMount):
    """/dev."""

    __slots__ = ()

    def __init__(self, vfs: Vfs) -> None:
        super().__init__(vfs, "devtmpfs", TMPFS_MAGIC, None, _LIMIT, ST_NOSUID)
        root = self.mnt_root
        root.v_mode = 0o755
        self.make_dev(b"null", 1, 3, 0o666, NullDev())
        self.make_dev(b"zero", 1, 5, 0o666, ZeroDev())
        self.make_dev(b"full", 1, 7, 0o666, FullDev())
        self.make_dev(b"random", 1, 8, 0o666, RandomDev())
        self.make_dev(b"urandom", 1, 9, 0o666, RandomDev())
        # Their devices are made when somebody opens them (kern/dev_loop.py).
        self.make_node(b"loop-control", VCHR, *LOOP_CONTROL, 0o660, DISK_GID)
        for number in range(_NLOOPS):
            self.make_node(b"loop%d" % number, VBLK, LOOP_MAJOR, number, 0o660, DISK_GID)
        root.symlink(b"fd", b"/proc/self/fd", KCRED)
        for fd, name in enumerate((b"stdin", b"stdout", b"stderr")):
            root.symlink(name, b"/proc/self/fd/%d" % fd, KCRED)

    def make_dev(
        self, name: bytes, major: int, minor: int, mode: int, dev: Cdev, gid: int = 0
    ) -> Vnode:
        """Add the device `dev` as /dev/`name` (no directories in it), owned by root."""
        self.mnt_vfs.devices[os.makedev(major, minor)] = dev
        return self.make_node(name, VCHR, major, minor, mode, gid)

    def make_node(
        self, name: bytes, vtype: int, major: int, minor: int, mode: int, gid: int = 0
    ) -> Vnode:
        """Add the node of a device that is found by its number."""
        root = self.mnt_root
        vp = root.vop_create(name, vtype, mode, 0, gid, os.makedev(major, minor))
        root.cache_enter(name, vp)
        return vp

    def remove_dev(self, name: bytes) -> None:
        """The device `name` exists no more: its node goes, if it is there. May block."""
        root = self.mnt_root
        if root.lookup(name) is not None:
            root.unlink(name, KCRED)
