"""tmpfs: files in memory, with a limit on their size and number. The overlay without a host
directory below.

Source of the name, the options and what statfs says: Linux mm/shmem.c,
Documentation/filesystems/tmpfs.rst.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EINVAL, err
from dfvm.kern.vfs.mount import ST_NODEV, ST_NOSUID
from dfvm.kern.vfs.overlay import OvlMount

if TYPE_CHECKING:
    from dfvm.kern.vfs.mount import Statfs, Vfs

TMPFS_MAGIC: Final = 0x01021994

_MODE: Final = 0o1777  # of the root directory, if nobody says otherwise
_UNITS: Final = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_PAGE: Final = 4096
_U64: Final = (1 << 64) - 1
_MAX_ID: Final = (1 << 32) - 2


def host_half() -> int:
    """Half of the host's memory, bytes: what files in memory may take if nobody says otherwise."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _number(text: str, base: int = 0) -> int:
    # As Linux's kstrto functions read it: 0x… and 0… count; no sign, nothing around it.
    if base == 0:
        base = 16 if text[:2].lower() == "0x" else 8 if text[:1] == "0" else 10
    try:
        if not text.isalnum():
            raise ValueError
        return int(text, base)
    except ValueError:
        raise err(EINVAL) from None


def _amount(text: str) -> int:
    """A number with a unit behind it, as of size=.

    :raises OSError: EINVAL
    """
    shift = _UNITS.get(text[-1:].lower(), 0)
    if text[:2].lower() == "0x" and text[-1:].lower() == "e":
        shift = 0
    value = _number(text[:-1] if shift else text) << shift
    return value & _U64


class TmpOptions:
    """The options of a tmpfs; None: not given."""

    __slots__ = ("gid", "inodes", "mode", "pages", "uid")

    pages: int | None  # how many its files may take; 0: as many as there are
    inodes: int | None  # how many files; likewise
    mode: int | None  # of the root directory, as are uid and gid
    uid: int | None
    gid: int | None

    def __init__(self, text: str) -> None:
        """:raises OSError: EINVAL for what is not understood."""
        self.pages = self.inodes = self.mode = self.uid = self.gid = None
        for word in text.split(","):
            if word:
                key, eq, value = word.partition("=")
                self._set(key, value if eq else None)

    def _set(self, key: str, value: str | None) -> None:
        if key in ("inode32", "inode64", "noswap") and value is None:
            return  # every number here has 64 bits, and there is no swap
        if value is None:
            raise err(EINVAL)
        if key == "size":
            if value.endswith("%"):
                size = (_number(value[:-1]) * host_half() * 2 // 100) & _U64
            else:
                size = _amount(value)
            self.pages = -(-size // _PAGE)
        elif key == "nr_blocks":
            self.pages = _amount(value)
        elif key == "nr_inodes":
            self.inodes = _amount(value)
        elif key == "mode":
            self.mode = _number(value, 8) & 0o7777
        elif key == "uid":
            self.uid = self._id(value)
        elif key == "gid":
            self.gid = self._id(value)
        elif (key, value) not in (("huge", "never"), ("mpol", "default")):
            raise err(EINVAL)

    @staticmethod
    def _id(value: str) -> int:
        number = _number(value)
        if number > _MAX_ID:
            raise err(EINVAL)
        return number


class TmpMount(OvlMount):
    """A tmpfs."""

    __slots__ = ("t_gid", "t_mode", "t_uid")

    t_mode: int  # what the root directory began with, for /proc/mounts
    t_uid: int
    t_gid: int

    def __init__(self, vfs: Vfs, options: TmpOptions, flags: int = 0) -> None:
        super().__init__(vfs, "tmpfs", TMPFS_MAGIC, None, host_half(), flags)
        self.o_maxinodes = _default_inodes()
        self.o_ninodes = 1  # the root directory
        self.t_mode = _MODE if options.mode is None else options.mode
        self.t_uid, self.t_gid = options.uid or 0, options.gid or 0
        root = self.mnt_root
        root.v_mode, root.v_uid, root.v_gid = self.t_mode, self.t_uid, self.t_gid
        self._limit(options)

    def _limit(self, options: TmpOptions) -> None:
        if options.pages is not None:
            self.o_quota.limit = options.pages or sys.maxsize
        if options.inodes is not None:
            self.o_maxinodes = options.inodes or sys.maxsize

    def remount(self, options: str) -> None:
        new = TmpOptions(options)
        for limit, had, used in (
            (new.pages, self.o_quota.limit, self.o_quota.used),
            (new.inodes, self.o_maxinodes, self.o_ninodes),
        ):
            # Without a limit nobody has counted (on Linux), so there can't be one afterwards.
            if limit and (used > limit or had == sys.maxsize):
                raise err(EINVAL)
        self._limit(new)

    def statfs(self) -> Statfs:
        sf = super().statfs()
        if self.o_quota.limit == sys.maxsize:
            sf.f_blocks = sf.f_bfree = sf.f_bavail = 0
        sf.f_files = sf.f_ffree = 0
        if self.o_maxinodes != sys.maxsize:
            sf.f_files = self.o_maxinodes
            sf.f_ffree = self.o_maxinodes - self.o_ninodes
        return sf

    def vfs_options(self) -> list[str]:
        words = []
        limit = self.o_quota.limit
        if limit != host_half() // _PAGE:
            words.append(f"size={0 if limit == sys.maxsize else limit * _PAGE >> 10}k")
        if self.o_maxinodes != _default_inodes():
            words.append(f"nr_inodes={0 if self.o_maxinodes == sys.maxsize else self.o_maxinodes}")
        if self.t_mode != _MODE:
            words.append(f"mode={self.t_mode:03o}")
        if self.t_uid:
            words.append(f"uid={self.t_uid}")
        if self.t_gid:
            words.append(f"gid={self.t_gid}")
        return words


def _default_inodes() -> int:
    return host_half() // _PAGE


def tmpfs(vfs: Vfs, size: int = 0) -> TmpMount:
    """A tmpfs of `size` bytes (0: half of the host's memory), as the machine's own are."""
    options = TmpOptions(f"size={size}" if size else "")
    return TmpMount(vfs, options, ST_NOSUID | ST_NODEV)
