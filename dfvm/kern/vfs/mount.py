"""Mounts, and what all of one machine's file systems share.

A file system is mounted over a name in a directory, whether or not there is a file of that name
below: so /proc needs nothing on the host. Lookups find the root of a mount in the name cache of the
directory like any other name. What may be mounted, moved and unmounted is in vfs_mount.py.

Source: DragonFly sys/sys/mount.h, sys/kern/vfs_mount.c; the recycling of vnodes is that of
sys/kern/vfs_lock.c, simplified to one queue with a reference bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import EBUSY, EINVAL, ENOTDIR, err
from dfvm.kern.vfs.hostfd import HostFds
from dfvm.kern.vfs.vnode_param import KCRED, VDIR, VKEEP, VRECLAIMED, VREFD, VROOT

if TYPE_CHECKING:
    from dfvm.kern.dev_loop import Loop
    from dfvm.kern.vfs.devfs import Cdev
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.vm.vm_init import VmSystem

# Linux's f_flags of statfs.
ST_RDONLY: Final = 0x0001
ST_NOSUID: Final = 0x0002
ST_NODEV: Final = 0x0004
ST_NOEXEC: Final = 0x0008
ST_SYNCHRONOUS: Final = 0x0010
ST_VALID: Final = 0x0020
ST_NOATIME: Final = 0x0400
ST_NODIRATIME: Final = 0x0800
ST_RELATIME: Final = 0x1000
ST_NOSYMFOLLOW: Final = 0x2000

# What a mount has for itself; what else there is, all mounts of a file system share.
ST_MOUNT: Final = (
    ST_RDONLY | ST_NOSUID | ST_NODEV | ST_NOEXEC | ST_NOATIME | ST_NODIRATIME | ST_RELATIME
    | ST_NOSYMFOLLOW
)  # fmt: skip
_MOUNT_WORDS: Final = (
    (ST_NOSUID, "nosuid"), (ST_NODEV, "nodev"), (ST_NOEXEC, "noexec"), (ST_NOATIME, "noatime"),
    (ST_NODIRATIME, "nodiratime"), (ST_RELATIME, "relatime"), (ST_NOSYMFOLLOW, "nosymfollow"),
)  # fmt: skip

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
    """One mounted file system: the tree itself, its vnodes' v_mount, and its first place among the
    names. It is mounted at more places by views of it (nullfs.py), which are mounts, too.

    What was unmounted lives on while somebody uses it: a view, or who has a file open.
    """

    __slots__ = ("mnt_dead", "mnt_dvp", "mnt_expire", "mnt_fixed", "mnt_flags", "mnt_from",
                 "mnt_fs", "mnt_fsflags", "mnt_fstype", "mnt_id", "mnt_inuse", "mnt_magic",
                 "mnt_name", "mnt_permanent", "mnt_private", "mnt_rdonly", "mnt_root",
                 "mnt_unbindable", "mnt_under", "mnt_vfs")  # fmt: skip

    mnt_vfs: Vfs  # the machine's file systems; never changes
    mnt_fs: Mount  # the file system it shows: itself, or what it is a view of; never changes
    mnt_root: Vnode  # its root directory, with a reference of the mount's
    mnt_dvp: Vnode | None  # the directory it is mounted in, referenced; None: root of everything,
    # or mounted nowhere
    mnt_name: bytes  # the name it covers there
    mnt_under: Mount | None  # what was mounted over that name before, and will be again
    mnt_rdonly: bool  # nothing may be changed through it: by mnt_flags, or the file system's
    mnt_private: bool  # what is made on it exists in this machine only
    mnt_fixed: bool  # where a name is not, none can be made: ENOENT (procfs)
    mnt_permanent: bool  # the kernel's own: stays though it is mounted nowhere
    mnt_flags: int  # ST_NOSUID …: this mount's (ST_MOUNT)
    mnt_fsflags: int  # of a file system: ST_RDONLY, ST_SYNCHRONOUS for all its mounts
    mnt_id: int  # its number in /proc/self/mountinfo; 0 until it is mounted
    mnt_fstype: str  # third column of /proc/mounts
    mnt_from: str  # first column
    mnt_magic: int  # Statfs.f_type
    mnt_inuse: int  # its vnodes that somebody references
    mnt_dead: bool  # mounted nowhere, and will not be again: goes when mnt_inuse is 0
    mnt_expire: bool  # MNT_EXPIRE was asked for, and nobody seen to use it since
    mnt_unbindable: bool  # MS_UNBINDABLE: no view of it can be made

    def __init__(self, vfs: Vfs, fstype: str, source: str, magic: int, flags: int = 0) -> None:
        self.mnt_vfs = vfs
        self.mnt_fs = self
        self.mnt_dvp = None
        self.mnt_name = b""
        self.mnt_under = None
        self.mnt_fixed = False
        self.mnt_permanent = False
        self.mnt_private = False
        self.mnt_rdonly = bool(flags & ST_RDONLY)
        self.mnt_flags = flags | ST_RELATIME
        self.mnt_fsflags = 0
        self.mnt_id = 0
        self.mnt_fstype = fstype
        self.mnt_from = source
        self.mnt_magic = magic
        self.mnt_inuse = 0
        self.mnt_dead = False
        self.mnt_expire = False
        self.mnt_unbindable = False

    def set_root(self, vp: Vnode) -> None:
        """`vp` is the root directory."""
        self.mnt_root = vp
        vp.v_flag |= VROOT | VKEEP
        vp.vref()

    def set_flags(self, flags: int) -> None:
        """The mount's own flags are `flags` (ST_MOUNT) from now on."""
        self.mnt_flags = flags
        self.mnt_rdonly = bool((flags | self.mnt_fs.mnt_fsflags) & ST_RDONLY)

    def mount_options(self) -> str:
        """What it has for itself, as in the sixth column of mountinfo."""
        words = ["ro" if self.mnt_flags & ST_RDONLY else "rw"]
        words += [word for flag, word in _MOUNT_WORDS if self.mnt_flags & flag]
        return ",".join(words)

    def fs_options(self) -> str:
        """What all mounts of its file system share, as in the last column of mountinfo."""
        fs = self.mnt_fs
        words = ["ro" if fs.mnt_fsflags & ST_RDONLY else "rw"]
        if fs.mnt_fsflags & ST_SYNCHRONOUS:
            words.append("sync")
        return ",".join(words + fs.vfs_options())

    def options(self) -> str:
        """The fourth column of /proc/mounts: both."""
        own, shared = self.mount_options().split(","), self.fs_options().split(",")
        words = ["ro" if self.mnt_rdonly else "rw"]
        words += [word for word in shared[1:] if word == "sync"] + own[1:]
        return ",".join(words + [word for word in shared[1:] if word != "sync"])

    def vfs_options(self) -> list[str]:
        """Of a file system: the options of its own kind."""
        return []

    def statfs(self) -> Statfs:
        """Sizes; a file system without storage has none."""
        return Statfs(self.mnt_magic, self.mnt_flags | self.mnt_fsflags | ST_VALID)

    def sync(self) -> list[tuple[Vnode, str]]:
        """Write to the host what is to be written there. Returns what could not be, and why. May
        block."""
        return []

    def remount(self, options: str) -> None:
        """New options of its own kind for a file system.

        :raises OSError: EINVAL; nothing has changed then.
        """

    def unused(self) -> None:
        """The last of its vnodes that was in use no longer is. May block."""
        if self.mnt_dead:
            self.mnt_vfs.unmounted(self)

    def unmount(self) -> bool:
        """Of a file system that is gone: give back what it holds. False if it could not, and has
        to stay until the machine ends. May block."""
        return True

    def vnodes(self) -> list[Vnode]:
        """The vnodes it keeps track of, for the checker and for sync."""
        return [self.mnt_root]

    def check(self, bad: list[str]) -> None:
        """Append what is wrong in the file system itself (Machine.check)."""


class Vfs:
    """The file systems of one machine."""

    __slots__ = ("blockdevs", "devices", "fds", "filesystems", "inactive", "last_mntid",
                 "loops", "maxinactive", "memory", "mountpoints", "mounts", "next_dev", "nstacked",
                 "nwatches", "rename_cookie", "rootvnode", "vm")  # fmt: skip

    vm: VmSystem
    fds: HostFds  # descriptors of the host's files
    mounts: list[Mount]  # in the order in which they were mounted; the root first
    filesystems: list[Mount]  # those that live, mounted or still in use; no views
    last_mntid: int  # the last mnt_id
    memory: Mount | None  # see memory_root; None: not needed yet
    mountpoints: dict[tuple[Vnode, bytes], int]
    # Names over which something is mounted in a view: how often, by the vnode that all views share
    rootvnode: Vnode  # root of the root mount, referenced
    inactive: dict[Vnode, None]  # vnodes nobody uses and that may be recycled, oldest first
    maxinactive: int  # how many of them are kept
    devices: dict[int, Cdev]  # character devices by number (st_rdev)
    blockdevs: dict[int, Cdev]  # block devices, likewise
    loops: dict[int, Loop]  # loop devices that somebody has asked for, by number
    next_dev: int  # minor number for the next file system without a device
    nstacked: int  # mounts that have another one under them
    nwatches: int  # watches on files (inotify): while 0, events need not be made
    rename_cookie: int  # the last one: what makes one of the two events of a rename

    def __init__(self, vm: VmSystem) -> None:
        self.vm = vm
        self.fds = HostFds()
        self.mounts = []
        self.filesystems = []
        self.last_mntid = 0
        self.memory = None
        self.mountpoints = {}
        self.inactive = {}
        self.maxinactive = MAXINACTIVE
        self.devices = {}
        self.blockdevs = {}
        self.loops = {}
        self.next_dev = 0x40
        self.nstacked = 0
        self.nwatches = 0
        self.rename_cookie = 0

    def anon_dev(self) -> int:
        """A device number for a file system without a device."""
        self.next_dev += 1
        return self.next_dev & 0xFF | (self.next_dev & 0xFFFFFF00) << 12

    def mountroot(self, mount: Mount) -> None:
        """Mount the root."""
        self._mounted(mount)
        self.rootvnode = mount.mnt_root
        self.rootvnode.vref()

    def mount(self, path: bytes, mount: Mount) -> None:
        """Mount over `path`. Directories on the way to it that don't exist are made.

        :raises OSError: EBUSY when something is mounted there; what namei says.
        """
        from dfvm.kern.vfs.namei import nameiat  # which needs our flags

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
        if dvp.v_mounts is not None and name in dvp.v_mounts:
            raise err(EBUSY)
        if dvp.v_mount.mnt_private and dvp.lookup(name) is None:
            dvp.mkdir(name, 0o755, KCRED)  # so that it is counted as a subdirectory
        self.attach(mount, dvp, name)

    def _mounted(self, mount: Mount) -> None:
        self.mounts.append(mount)
        self.last_mntid += 1
        mount.mnt_id = self.last_mntid
        if mount.mnt_fs is mount and mount not in self.filesystems:
            self.filesystems.append(mount)

    def attach(self, mount: Mount, dvp: Vnode, name: bytes) -> None:
        """Mount over `name` in dvp, which vop_mounton has been told. What is mounted there already
        will be seen again when this goes."""
        self._enter(mount, dvp, name)
        self._mounted(mount)

    def _enter(self, mount: Mount, dvp: Vnode, name: bytes) -> None:
        if dvp.v_mounts is None:
            dvp.v_mounts = {}
        dvp.vref()
        mount.mnt_dvp = dvp
        mount.mnt_name = name
        mount.mnt_under = dvp.v_mounts.get(name)
        self.nstacked += mount.mnt_under is not None
        dvp.v_mounts[name] = mount
        dvp.v_names[name] = mount.mnt_root
        mount.mnt_root.set_parent(dvp, name)
        data = dvp.vop_data()
        if data is not dvp:
            key = (data, name)
            self.mountpoints[key] = self.mountpoints.get(key, 0) + 1

    def _leave(self, mount: Mount) -> None:
        # The opposite of _enter. May block.
        dvp, name = mount.mnt_dvp, mount.mnt_name
        assert dvp is not None and dvp.v_mounts is not None
        under = mount.mnt_under
        top = dvp.v_mounts[name]
        self.nstacked -= under is not None or top is not mount
        if top is not mount:
            while top.mnt_under is not mount:
                assert top.mnt_under is not None
                top = top.mnt_under
            top.mnt_under = under
        elif under is not None:
            dvp.v_mounts[name] = under
            dvp.v_names[name] = under.mnt_root
        else:
            del dvp.v_mounts[name]
            dvp.v_names.pop(name, None)
        mount.mnt_root.set_parent(None, b"")
        mount.mnt_dvp = mount.mnt_under = None
        data = dvp.vop_data()
        if data is not dvp:
            key = (data, name)
            self.mountpoints[key] -= 1
            if not self.mountpoints[key]:
                del self.mountpoints[key]
        dvp.vrele()

    def detach(self, mount: Mount) -> None:
        """Take away a mount, with which its file system goes if nothing else shows or uses it.
        May block."""
        self.mounts.remove(mount)
        self._leave(mount)
        fs = mount.mnt_fs
        if fs is not mount:
            mount.mnt_root.vrele()
        if not (fs.mnt_permanent or any(m.mnt_fs is fs for m in self.mounts)):
            fs.mnt_dead = True
            fs.mnt_root.vrele()

    def move(self, mount: Mount, dvp: Vnode, name: bytes) -> None:
        """Take a mount, and with it what is mounted on it, to another name, whose directory has
        been told (vop_mounton). May block."""
        dvp.vref()
        self._leave(mount)
        self._enter(mount, dvp, name)
        dvp.vrele()

    def unmounted(self, fs: Mount) -> None:
        """Nobody uses the file system, which is mounted nowhere: that is its end. May block."""
        if fs in self.filesystems:  # and not on its way already
            self.filesystems.remove(fs)
            if not fs.unmount():
                self.filesystems.append(fs)

    def memory_root(self) -> Vnode:
        """The root directory of a file system in memory that is mounted nowhere, for files that
        never have a name."""
        if self.memory is None:
            from dfvm.kern.vfs.tmpfs import tmpfs  # which is built on this

            self.memory = tmpfs(self)
            self.memory.mnt_permanent = True
            self.filesystems.append(self.memory)
        return self.memory.mnt_root

    def sync(self) -> list[tuple[Vnode, str]]:
        """Write everything that is written through. Returns what could not be. May block."""
        return [failed for fs in self.filesystems for failed in fs.sync()]

    def shutdown(self) -> None:
        """The machine ends: write what is to be written, close the host's files. May block."""
        for loop in self.loops.values():
            if loop.l_file is not None:
                loop.clear()
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
