"""Mounts, and what all of one machine's file systems share.

A file system is mounted over a name in a directory, whether or not there is a file of that name
below: so /proc needs nothing on the host. Lookups find the root of a mount in the name cache of the
directory like any other name.

Source: DragonFly sys/sys/mount.h, sys/kern/vfs_mount.c; the recycling of vnodes is that of
sys/kern/vfs_lock.c, simplified to one queue with a reference bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EBUSY, EINVAL, ENOTDIR, err
from dfvm.kern.vfs.hostfd import HostFds
from dfvm.kern.vfs.namei import nameiat
from dfvm.kern.vfs.vnode_param import KCRED, VDIR, VKEEP, VRECLAIMED, VREFD, VROOT

if TYPE_CHECKING:
    from dfvm.kern.vfs.devfs import Cdev
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.vm.vm_init import VmSystem

# Linux's f_flags of statfs.
ST_RDONLY: Final = 0x0001
ST_NOSUID: Final = 0x0002
ST_NODEV: Final = 0x0004
ST_NOEXEC: Final = 0x0008
ST_VALID: Final = 0x0020
ST_RELATIME: Final = 0x1000

MAXINACTIVE: Final = 20_000  # vnodes kept though nobody uses them
_BATCH: Final = 64  # vnodes looked at when there are more


class Statfs:
    """What statfs(2) tells of a mount."""

    __slots__ = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_ffree", "f_files", "f_flags",
                 "f_frsize", "f_fsid", "f_namelen", "f_type")  # fmt: skip

    def __init__(self, f_type: int, f_flags: int) -> None:
        self.f_type = f_type  # magic number of the kind
        self.f_flags = f_flags  # ST_*
        self.f_bsize = self.f_frsize = 4096
        self.f_blocks = self.f_bfree = self.f_bavail = 0  # in f_frsize
        self.f_files = self.f_ffree = 0  # inodes
        self.f_fsid = 0
        self.f_namelen = 255


class Mount:
    """One mounted file system."""

    __slots__ = ("mnt_dvp", "mnt_fixed", "mnt_flags", "mnt_from", "mnt_fstype", "mnt_id",
                 "mnt_magic", "mnt_name", "mnt_private", "mnt_rdonly", "mnt_root",
                 "mnt_vfs")  # fmt: skip

    mnt_vfs: Vfs  # the machine's file systems; never changes
    mnt_root: Vnode  # its root directory, with a reference of the mount's
    mnt_dvp: Vnode | None  # the directory it is mounted in, referenced; None: root of everything
    mnt_name: bytes  # the name it covers there
    mnt_rdonly: bool  # nothing on it may be changed
    mnt_private: bool  # what is made on it exists in this machine only
    mnt_fixed: bool  # where a name is not, none can be made: ENOENT (procfs)
    mnt_flags: int  # ST_NOSUID …
    mnt_id: int  # its number in /proc/self/mountinfo; 0 until it is mounted
    mnt_fstype: str  # third column of /proc/mounts
    mnt_from: str  # first column
    mnt_magic: int  # Statfs.f_type

    def __init__(self, vfs: Vfs, fstype: str, source: str, magic: int, flags: int = 0) -> None:
        self.mnt_vfs = vfs
        self.mnt_dvp = None
        self.mnt_name = b""
        self.mnt_fixed = False
        self.mnt_private = False
        self.mnt_rdonly = bool(flags & ST_RDONLY)
        self.mnt_flags = flags
        self.mnt_id = 0
        self.mnt_fstype = fstype
        self.mnt_from = source
        self.mnt_magic = magic

    def set_root(self, vp: Vnode) -> None:
        """`vp` is the root directory."""
        self.mnt_root = vp
        vp.v_flag |= VROOT | VKEEP
        vp.vref()

    def options(self) -> str:
        """The fourth column of /proc/mounts."""
        words = ["ro" if self.mnt_rdonly else "rw"]
        for flag, word in ((ST_NOSUID, "nosuid"), (ST_NODEV, "nodev"), (ST_NOEXEC, "noexec")):
            if self.mnt_flags & flag:
                words.append(word)
        words.append("relatime")
        return ",".join(words)

    def statfs(self) -> Statfs:
        """Sizes; a file system without storage has none."""
        return Statfs(self.mnt_magic, self.mnt_flags | ST_VALID | ST_RELATIME)

    def sync(self) -> list[tuple[Vnode, str]]:
        """Write to the host what is to be written there. Returns what could not be, and why. May
        block."""
        return []

    def vnodes(self) -> list[Vnode]:
        """The vnodes it keeps track of, for the checker and for sync."""
        return [self.mnt_root]

    def check(self, bad: list[str]) -> None:
        """Append what is wrong in the file system itself (Machine.check)."""


class Vfs:
    """The file systems of one machine."""

    __slots__ = ("devices", "fds", "inactive", "maxinactive", "mounts", "next_dev", "nwatches",
                 "rename_cookie", "rootvnode", "vm")  # fmt: skip

    vm: VmSystem
    fds: HostFds  # descriptors of the host's files
    mounts: list[Mount]  # in the order in which they were mounted; the root first
    rootvnode: Vnode  # root of the root mount, referenced
    inactive: dict[Vnode, None]  # vnodes nobody uses and that may be recycled, oldest first
    maxinactive: int  # how many of them are kept
    devices: dict[int, Cdev]  # character devices by number (st_rdev)
    next_dev: int  # minor number for the next file system without a device
    nwatches: int  # watches on files (inotify): while 0, events need not be made
    rename_cookie: int  # the last one: what makes one of the two events of a rename

    def __init__(self, vm: VmSystem) -> None:
        self.vm = vm
        self.fds = HostFds()
        self.mounts = []
        self.inactive = {}
        self.maxinactive = MAXINACTIVE
        self.devices = {}
        self.next_dev = 0x40
        self.nwatches = 0
        self.rename_cookie = 0

    def anon_dev(self) -> int:
        """A device number for a file system without a device."""
        self.next_dev += 1
        return self.next_dev & 0xFF | (self.next_dev & 0xFFFFFF00) << 12

    def mountroot(self, mount: Mount) -> None:
        """Mount the root."""
        self.mounts.append(mount)
        mount.mnt_id = len(self.mounts)
        self.rootvnode = mount.mnt_root
        self.rootvnode.vref()

    def mount(self, path: bytes, mount: Mount) -> None:
        """Mount over `path`. Directories on the way to it that don't exist are made.

        :raises OSError: EBUSY when something is mounted there; what namei says.
        """
        dvp = self.rootvnode
        parts = [p for p in path.split(b"/") if p]
        for name in parts[:-1]:
            nd = nameiat(self.rootvnode, dvp, name, KCRED, follow=True)
            vp = nd.ni_vp
            if vp is None:
                vp = nd.ni_dvp.mkdir(nd.ni_name, 0o755, KCRED)
            dvp = vp
        if not parts:
            raise err(EINVAL)
        name = parts[-1]
        if dvp.v_type != VDIR:
            raise err(ENOTDIR)
        if dvp.v_mounts is None:
            dvp.v_mounts = {}
        if name in dvp.v_mounts:
            raise err(EBUSY)
        if dvp.v_mount.mnt_private and dvp.lookup(name) is None:
            dvp.mkdir(name, 0o755, KCRED)  # so that it is counted as a subdirectory
        dvp.vref()
        mount.mnt_dvp = dvp
        mount.mnt_name = name
        dvp.v_mounts[name] = mount
        dvp.v_names[name] = mount.mnt_root
        mount.mnt_root.set_parent(dvp, name)
        self.mounts.append(mount)
        mount.mnt_id = len(self.mounts)

    def sync(self) -> list[tuple[Vnode, str]]:
        """Write everything that is written through. Returns what could not be. May block."""
        return [failed for mount in self.mounts for failed in mount.sync()]

    def shutdown(self) -> None:
        """The machine ends: write what is to be written, close the host's files. May block."""
        try:
            self.sync()
        finally:
            self.fds.close()

    def vnode_idle(self, vp: Vnode) -> None:
        """Nobody uses vp. It stays for whoever looks for it next, until there are too many. May
        block."""
        if vp.v_nchild:
            return  # set_parent brings it here when the last child has left
        self.inactive[vp] = None
        if len(self.inactive) > self.maxinactive:
            self.recycle(_BATCH)

    def recycle(self, count: int) -> None:
        """Let go of vnodes that nobody uses, of the `count` that have been idle for longest those
        that nobody has looked for since the last time. May block."""
        inactive = self.inactive
        for vp in [vp for vp, _ in zip(inactive, range(count), strict=False)]:
            if vp not in inactive:
                continue  # found a user, or went, while we slept
            del inactive[vp]
            if vp.v_usecount or vp.v_nchild or vp.v_flag & VKEEP:
                continue
            object = vp.v_object
            if not vp.v_flag & VREFD and (
                object is None or not (object.hold_count or object.paging_in_progress)
            ):
                self.reclaim(vp)
            else:
                # Whoever found it a moment ago may still be at it: once more round.
                vp.v_flag &= ~VREFD
                inactive[vp] = None

    def reclaim(self, vp: Vnode) -> None:
        """Let go of a vnode that nobody uses: from here on it stands for nothing. May block."""
        if vp.v_flag & VRECLAIMED:
            return
        vp.v_flag |= VRECLAIMED
        self.inactive.pop(vp, None)
        vp.vop_reclaim()
        parent = vp.v_parent
        if parent is not None:
            if parent.v_type == VDIR and parent.v_names.get(vp.v_name) is vp:
                del parent.v_names[vp.v_name]
            vp.set_parent(None, vp.v_name)
        if vp.v_type == VDIR:
            vp.v_names.clear()
        if vp.v_object is not None:
            from dfvm.vm.pager.vnode_pager import vnode_pager_reclaim

            vnode_pager_reclaim(vp)
        if parent is not None and parent.v_watches:
            parent.nameless()  # it may have been kept by this one alone
