"""The host's files: how they are found again, and the descriptors that are open on them.

A HostRef is a file of the host's by the directory it was found in and its name there. It is opened
when it is first needed, relative to that directory's own descriptor, one name at a time and never
through a link, and what was opened must be the inode that was found. So nothing that moves on the
host meanwhile leads anywhere else: the worst is ESTALE. Descriptors are bounded; the one unused for
longest is closed first and reopened when wanted.

Directories are opened with O_PATH. Fifos, sockets and devices are never opened.
"""

from __future__ import annotations

import os
from ctypes import CDLL, c_int64, c_uint, get_errno
from errno import EMFILE, ENFILE
from itertools import islice
from stat import S_IFDIR, S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EINVAL, EOPNOTSUPP, ESTALE, err

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode

_DIR_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REG_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_LIST_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_MAX_FDS: Final = 1024
_SPARE: Final = 32  # of the oldest descriptors, those among which one without a user is looked for

# Kinds of host file systems that are not files: their directories appear empty to the guest, which
# has /proc and /dev of its own. Reading there may have effects on the host, sizes don't hold, and
# what one sees describes the host, not the machine.
_PSEUDO: Final = frozenset((
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts",
    "devtmpfs", "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore",
    "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs",
))  # fmt: skip


_libc: Final = CDLL(None, use_errno=True)


def host_rename(sfd: int, src: bytes, dfd: int, dst: bytes, flags: int) -> None:
    """renameat2(2) of the host, which Python does not offer.

    :raises OSError: EINVAL when the host or its C library doesn't have it; what the host says.
    """
    call = getattr(_libc, "renameat2", None)
    if call is None:
        raise err(EINVAL)
    if call(sfd, src, dfd, dst, c_uint(flags)):
        raise err(get_errno())


def host_fallocate(fd: int, mode: int, off: int, length: int) -> None:
    """fallocate(2) of the host, likewise.

    :raises OSError: EOPNOTSUPP; what the host says.
    """
    call = getattr(_libc, "fallocate", None)
    if call is None:
        raise err(EOPNOTSUPP)
    if call(fd, mode, c_int64(off), c_int64(length)):
        raise err(get_errno())


class HostRef:
    """A file on the host."""

    __slots__ = ("hr_dev", "hr_fd", "hr_fds", "hr_fmt", "hr_ino", "hr_keep", "hr_name",
                 "hr_parent", "hr_rw", "hr_vp")  # fmt: skip

    hr_fds: HostFds
    hr_parent: HostRef | None  # the directory it was found in; None for the top
    hr_name: bytes  # its name there; of the top, the path it was opened by
    hr_dev: int  # what was found: st_dev, st_ino, and the type part of st_mode
    hr_ino: int
    hr_fmt: int
    hr_fd: int  # open descriptor, -1 without
    hr_rw: bool  # the descriptor is open for writing, too
    hr_keep: bool  # the name is gone, the descriptor is all there is: never closed early
    hr_vp: Vnode | None  # the vnode it lies under: descriptors of used ones are closed last

    def __init__(
        self, fds: HostFds, parent: HostRef | None, name: bytes, st: os.stat_result
    ) -> None:
        self.hr_fds = fds
        self.hr_parent = parent
        self.hr_name = name
        self.hr_dev = st.st_dev
        self.hr_ino = st.st_ino
        self.hr_fmt = S_IFMT(st.st_mode)
        self.hr_fd = -1
        self.hr_rw = False
        self.hr_keep = False
        self.hr_vp = None

    def fd(self, rw: bool = False) -> int:
        """A descriptor, good until the next call for any other file. O_PATH for directories,
        reading for regular files, or reading and writing if `rw`.

        :raises OSError: ESTALE when something else is there now; what the host says.
        """
        fd = self.hr_fd
        if fd < 0 or (rw and not self.hr_rw):
            return self.hr_fds.open(self, rw)
        lru = self.hr_fds.lru
        if self in lru:
            del lru[self]
            lru[self] = None
        return fd

    def stat(self) -> os.stat_result:
        """What the host says of it now.

        :raises OSError: ESTALE, and what the host says.
        """
        if self.hr_fd >= 0:
            return os.fstat(self.hr_fd)
        parent = self.hr_parent
        if parent is None:
            return os.fstat(self.fd())
        st = os.stat(self.hr_name, dir_fd=parent.fd(), follow_symlinks=False)
        if st.st_ino != self.hr_ino or st.st_dev != self.hr_dev:
            raise err(ESTALE)
        return st

    def stat_name(self, name: bytes) -> os.stat_result | None:
        """What the host has by that name in this directory; None when there is nothing."""
        try:
            return os.stat(name, dir_fd=self.fd(), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def readlink(self) -> bytes:
        """Target of a symbolic link."""
        assert self.hr_parent is not None
        return os.readlink(self.hr_name, dir_fd=self.hr_parent.fd())

    def list(self) -> list[tuple[bytes, int, int]]:
        """The entries of a directory: name, inode, type part of st_mode."""
        fd = os.open(b".", _LIST_FLAGS, dir_fd=self.fd())
        try:
            with os.scandir(fd) as it:
                return [(os.fsencode(e.name), e.inode(), _entry_fmt(e)) for e in it]
        finally:
            os.close(fd)

    def xattrs(self) -> dict[bytes, bytes]:
        """The users' extended attributes of a regular file or directory; those of the host's
        own (security, access lists) are not the guest's."""
        if self.hr_fmt not in (S_IFDIR, S_IFREG):
            return {}
        path = self.fd_path()
        try:
            names = [name for name in os.listxattr(path) if name.startswith("user.")]
            return {os.fsencode(name): os.getxattr(path, name) for name in names}
        except OSError as e:
            if e.errno == EOPNOTSUPP:  # by this file system
                return {}
            raise

    def fd_path(self) -> str:
        """A path on the host to what is open here, for calls that take no descriptor or not one
        opened with O_PATH."""
        return f"/proc/self/fd/{self.fd()}"

    def close(self) -> None:
        """Give the descriptor back; the file may be opened again."""
        if self.hr_fd >= 0:
            self.hr_fds.lru.pop(self, None)
            self.hr_fds.kept.pop(self, None)
            os.close(self.hr_fd)
            self.hr_fd = -1
            self.hr_rw = False


def _entry_fmt(e: os.DirEntry[str]) -> int:
    # The host has said the type along with the name; only an unusual one takes a stat.
    if e.is_symlink():
        return 0o120000
    if e.is_dir(follow_symlinks=False):
        return S_IFDIR
    if e.is_file(follow_symlinks=False):
        return S_IFREG
    try:
        return S_IFMT(e.stat(follow_symlinks=False).st_mode)
    except OSError:
        return 0


class HostFds:
    """The host descriptors of a machine's file systems."""

    __slots__ = ("_hidden", "kept", "limit", "lru")

    kept: dict[HostRef, None]  # what has an open descriptor that is the only way to it (hr_keep)
    lru: dict[HostRef, None]  # what has an open descriptor and may lose it, oldest first
    limit: int  # how many
    _hidden: dict[int, bool] | None  # by st_dev: is the file system there a pseudo one

    def __init__(self, limit: int = 0) -> None:
        if limit == 0:
            limit = min(_MAX_FDS, max(16, os.sysconf("SC_OPEN_MAX") // 4))
        self.limit = limit
        self.lru = {}
        self.kept = {}
        self._hidden = None

    def top(self, path: bytes) -> HostRef:
        """The directory at `path` of the host, where a tree begins. Stays open.

        :raises OSError: there is no such directory.
        """
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        ref = HostRef(self, None, path, os.fstat(fd))
        ref.hr_fd = fd
        ref.hr_keep = True
        self.kept[ref] = None
        return ref

    def open(self, ref: HostRef, rw: bool) -> int:
        """Open `ref`, or open it again for writing."""
        parent = ref.hr_parent
        if parent is None or ref.hr_fmt not in (S_IFDIR, S_IFREG):
            raise err(ESTALE)
        if ref.hr_fmt == S_IFDIR:
            flags = _DIR_FLAGS
        else:
            flags = _REG_FLAGS | (os.O_RDWR if rw else os.O_RDONLY)
        if ref.hr_fd >= 0 and ref.hr_keep:
            # Nameless: the way to it is through the descriptor there is.
            fd = os.open(f"/proc/self/fd/{ref.hr_fd}", flags & ~os.O_NOFOLLOW)
        else:
            fd = self._openat(ref.hr_name, flags, parent)
        st = os.fstat(fd)
        if st.st_ino != ref.hr_ino or st.st_dev != ref.hr_dev:
            os.close(fd)
            raise err(ESTALE)
        self._install(ref, fd, rw)
        return fd

    def adopt(self, ref: HostRef, fd: int) -> None:
        """`fd`, open for reading and writing, is a descriptor of `ref`, which has none."""
        self._install(ref, fd, True)

    def _install(self, ref: HostRef, fd: int, rw: bool) -> None:
        if ref.hr_fd >= 0:
            os.close(ref.hr_fd)
            self.lru.pop(ref, None)
        ref.hr_fd = fd
        ref.hr_rw = rw
        if ref.hr_keep:
            self.kept[ref] = None
        else:
            self.lru[ref] = None
            if len(self.lru) > self.limit:
                self._evict(ref)

    def _openat(self, name: bytes, flags: int, parent: HostRef) -> int:
        while True:
            try:
                return os.open(name, flags, dir_fd=parent.fd())
            except OSError as e:
                # The process this machine runs in may use descriptors of its own.
                if e.errno not in (EMFILE, ENFILE) or len(self.lru) < 2:
                    raise
                for _ in range(len(self.lru) // 2):
                    self._evict(parent)

    def _evict(self, but: HostRef) -> None:
        # The oldest whose vnode nobody uses, if there is one among the oldest; else the oldest.
        lru = self.lru
        victim = None
        for ref in islice(lru, _SPARE):
            if ref is but:
                continue
            if ref.hr_vp is None or not ref.hr_vp.v_usecount:
                victim = ref
                break
            victim = victim or ref
        if victim is not None:
            victim.close()

    def keep(self, ref: HostRef) -> None:
        """The last name of `ref` is about to go while it is in use: keep its descriptor."""
        if not ref.hr_keep:
            ref.fd()
            self.lru.pop(ref, None)
            self.kept[ref] = None
            ref.hr_keep = True

    def unkeep(self, ref: HostRef) -> None:
        """`ref` has a good name again: its descriptor may be closed and reopened as any other."""
        ref.hr_keep = False
        del self.kept[ref]
        self.lru[ref] = None

    def hidden(self, dev: int) -> bool:
        """Is `dev` a file system whose contents the guest does not see?"""
        if self._hidden is None:
            self._hidden = _pseudo_devs()
        return self._hidden.get(dev, False)

    def close(self) -> None:
        """Close everything: the machine is done."""
        for ref in [*self.lru, *self.kept]:
            ref.close()


def _pseudo_devs() -> dict[int, bool]:
    devs: dict[int, bool] = {}
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
            for line in f:
                left, _, right = line.partition(" - ")
                major, _, minor = left.split()[2].partition(":")
                devs[os.makedev(int(major), int(minor))] = right.split()[0] in _PSEUDO
    except (OSError, ValueError, IndexError):
        pass
    return devs
