"""The words of the vnode layer: types and modes of files, flags of vnodes and of what is done to
them, whose rights count (Cred), and what stat(2) tells of a file (Vattr).

Source: DragonFly sys/sys/vnode.h, sys/sys/stat.h, sys/sys/fcntl.h.
"""

from __future__ import annotations

from time import time_ns
from typing import Final, Protocol

from dfvm.kern.kern_caps import CAP_FULL

# v_type
VNON: Final = 0
VREG: Final = 1
VDIR: Final = 2
VBLK: Final = 3
VCHR: Final = 4
VLNK: Final = 5
VSOCK: Final = 6
VFIFO: Final = 7

S_IFMT: Final = 0o170000
VTTOIF: Final = (0, 0o100000, 0o040000, 0o060000, 0o020000, 0o120000, 0o140000, 0o010000)
IFTOVT: Final = {fmt: vtype for vtype, fmt in enumerate(VTTOIF)}
VTTODT: Final = (0, 8, 4, 6, 2, 10, 12, 1)  # d_type of a directory entry

S_ISUID: Final = 0o4000
S_ISGID: Final = 0o2000
S_ISVTX: Final = 0o1000

# v_flag
VROOT: Final = 0x01  # root of its mount
VMAGIC: Final = 0x02  # a symbolic link that namei asks for a vnode, not for a path (/proc/1/exe)
VKEEP: Final = 0x04  # holds what exists nowhere else, or is made anew at each lookup: not recycled
VRECLAIMED: Final = 0x08  # recycled: no longer stands for its file
VNOCACHE: Final = 0x10  # a directory whose names must not be cached (procfs)
VUNLINKED: Final = 0x20  # the name in v_parent, v_name is gone
VREFD: Final = 0x40  # found by a lookup since the recycler last looked
VNOLINK: Final = 0x80  # made with O_TMPFILE | O_EXCL: never gets a name
VSEALABLE: Final = 0x100  # made by memfd_create: v_seals counts
VSTALE: Final = VRECLAIMED | VUNLINKED  # found under a cached name: look it up, which names it anew

# access()
VEXEC: Final = 1
VWRITE: Final = 2
VREAD: Final = 4

# open()
FREAD: Final = 1
FWRITE: Final = 2
# By O_ACCMODE. 3 asks for both rights, and gives none: such a file is only good for ioctl.
FFLAGS: Final = (FREAD, FWRITE, FREAD | FWRITE, 0)

# read() and write()
IO_APPEND: Final = 0x02
IO_SYNC: Final = 0x04
IO_NDELAY: Final = 0x10

# allocate()
FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10

# rename()
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

# mmap()
MMAP_VNODE: Final = 0
MMAP_ANON: Final = 1

# Events (inotify) that operations on vnodes make; vfs_notify.py has the others.
IN_ACCESS: Final = 0x001
IN_MODIFY: Final = 0x002
IN_ATTRIB: Final = 0x004
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_MOVE_SELF: Final = 0x800

NAME_MAX: Final = 255
LINK_MAX: Final = 65000
OFF_MAX: Final = (1 << 63) - 1

FOREVER: Final = 1 << 63  # a v_names_until that never comes
NAMES_MAX: Final = 50_000  # cached names in one directory; beyond it they are dropped and relearnt

vfs_timestamp: Final = time_ns  # the time for a file's attributes, ns


class Cred(Protocol):
    """Whose rights are checked: proc.Ucred, or KCRED."""

    @property
    def cr_fsuid(self) -> int: ...
    @property
    def cr_fsgid(self) -> int: ...
    @property
    def cr_cap_e(self) -> int: ...
    def groupmember(self, gid: int) -> bool: ...


class KernCred:
    """The kernel's own rights: everything."""

    __slots__ = ()
    cr_fsuid = 0
    cr_fsgid = 0
    cr_cap_e = CAP_FULL

    def groupmember(self, gid: int) -> bool:
        return True


KCRED: Final = KernCred()


class Vattr:
    """What stat(2) tells of a file. An ABI packs it into its own struct."""

    __slots__ = ("va_atime", "va_birthtime", "va_blksize", "va_bytes", "va_ctime", "va_fileid",
                 "va_fsid", "va_gid", "va_mode", "va_mtime", "va_nlink", "va_rdev", "va_size",
                 "va_type", "va_uid")  # fmt: skip

    va_type: int  # VREG …
    va_mode: int  # permission bits with setuid, setgid, sticky; without the type
    va_nlink: int
    va_uid: int
    va_gid: int
    va_fsid: int  # st_dev
    va_fileid: int  # st_ino
    va_rdev: int  # of a device, else 0
    va_size: int
    va_blksize: int  # good size for I/O
    va_bytes: int  # storage in use; st_blocks is a 512th of it
    va_atime: int  # ns, as the other three
    va_mtime: int
    va_ctime: int
    va_birthtime: int | None  # None: not known, as of the host's files
