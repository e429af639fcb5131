"""/proc: what the kernel tells of itself and its processes, as text files in Linux's formats.

Nothing is stored. A lookup makes a vnode that knows how to generate its contents; they are made
when the file is first read, or read from its start again, and stay until then, so that a program
may read in pieces or seek. The vnodes are in no cache (VNOCACHE) and hold on to nothing but the
process they are about.

This module has the kinds of vnodes, the root directory and the mount. What the files say is in
procfs_system.py (the machine) and procfs_proc.py, procfs_maps.py (processes), which are imported
when something is looked up.

Source: Linux fs/proc, Documentation/filesystems/proc.rst; structure of DragonFly sys/vfs/procfs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import (
    EACCES,
    EBUSY,
    EINVAL,
    EIO,
    ENODEV,
    ENOENT,
    ERANGE,
    ESRCH,
    err,
)
from dfvm.kern.kern_prot import may_look
from dfvm.kern.vfs.mount import ST_NODEV, ST_NOEXEC, ST_NOSUID, Mount
from dfvm.kern.vfs.vnode import Vnode
from dfvm.kern.vfs.vnode_param import (
    FREAD,
    FWRITE,
    OFF_MAX,
    VDIR,
    VKEEP,
    VLNK,
    VMAGIC,
    VNOCACHE,
    VREG,
    VROOT,
    VTTODT,
    Vattr,
    vfs_timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.kern_descrip import File
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Proc
    from dfvm.kern.vfs.mount import Vfs
    from dfvm.kern.vfs.vnode_param import Cred
    from dfvm.vm.copyio import Uio

    # What a file says, and what is done with something written to it.
    Show = Callable[[], bytes]
    Store = Callable[[bytes], None]

PROC_MAGIC: Final = 0x9FA0

_WRITE_MAX: Final = 4096  # bytes of one write to a file here

_INO_MASK: Final = (1 << 63) - 1

_UINT: Final = re.compile(rb"\+?(?:0[xX]([0-9a-fA-F]+)|0([0-7]+)|(0|[1-9][0-9]*))\n?\0*")

ROOT_INO: Final = 1
SYSTEM_INO: Final = 2  # first of the files about the machine


class ProcNode(Vnode):
    """Anything in /proc."""

    __slots__ = ("p_fileid", "p_proc", "p_time")

    v_mount: PseudoMount
    p_fileid: int  # inode number: the same for the same file each time
    p_proc: Proc | None  # the process it is about; None: the machine
    p_time: int  # ns: when this vnode was made; its times

    def __init__(
        self, mount: PseudoMount, vtype: int, mode: int, fileid: int, proc: Proc | None = None
    ) -> None:
        super().__init__(mount, vtype)
        self.v_flag = VKEEP | VNOCACHE
        self.v_mode = mode
        self.p_fileid = fileid
        self.p_proc = proc
        self.p_time = vfs_timestamp()
        if proc is not None and proc.p_dumpable:
            self.v_uid = proc.p_ucred.cr_uid
            self.v_gid = proc.p_ucred.cr_gid

    @property
    def kernel(self) -> Kernel:
        """The machine."""
        return self.v_mount.p_kernel

    def alive(self) -> Proc:
        """The process, if it has not been reaped.

        :raises OSError: ESRCH.
        """
        p = self.p_proc
        if p is None or self.kernel.procs.get(p.p_pid) is not p:
            raise err(ESRCH)
        return p

    def may_look(self, cred: Cred) -> None:
        """Memory and descriptors of a process are its own, its owner's and root's business.

        :raises OSError: EACCES.
        """
        p = self.p_proc
        if p is None or p is self.kernel.sched.curthread.td_proc:
            return
        if not may_look(cred, p):
            raise err(EACCES)

    def vop_fileid(self) -> int:
        return self.p_fileid

    def vop_mounton(self) -> None:
        # This vnode is what every lookup finds from now on: the directories above know it.
        if self.p_proc is not None:
            raise err(EBUSY)  # it goes with its process
        at: Vnode = self
        while not at.v_flag & VROOT and at.v_parent is not None:
            at.v_parent.v_names[at.v_name] = at
            at = at.v_parent

    def vop_getattr(self) -> Vattr:
        va = Vattr()
        va.va_type = self.v_type
        va.va_mode = self.v_mode
        va.va_nlink = 1
        va.va_uid = self.v_uid
        va.va_gid = self.v_gid
        va.va_fsid = self.v_mount.p_fsid
        va.va_fileid = self.p_fileid
        va.va_rdev = 0
        va.va_size = 0
        va.va_blksize = 1024
        va.va_bytes = 0
        va.va_atime = va.va_mtime = va.va_ctime = va.va_birthtime = self.p_time
        if self.v_type == VDIR:
            va.va_nlink = 2 + self.subdirs()
        elif self.v_type == VLNK and not self.v_flag & VMAGIC:
            va.va_size = 0
        elif self.v_type == VLNK and self.v_mode != 0o777:
            va.va_size = 64  # a descriptor's
        return va

    def subdirs(self) -> int:
        """How many directories are in this one."""
        return sum(1 for e in self.vop_readdir() if e[2] == VTTODT[VDIR])


class ProcDir(ProcNode):
    """A directory with names that don't change."""

    __slots__ = ("p_entries",)

    p_entries: dict[bytes, Callable[[ProcDir, int], ProcNode]]
    # By name, in order: what makes the vnode, given the directory and an inode number

    def __init__(
        self,
        mount: PseudoMount,
        fileid: int,
        entries: dict[bytes, Callable[[ProcDir, int], ProcNode]],
        mode: int = 0o555,
        proc: Proc | None = None,
    ) -> None:
        super().__init__(mount, VDIR, mode, fileid, proc)
        self.p_entries = entries

    def fileid_of(self, name: bytes) -> int:
        """Inode numbers of a directory's entries follow its own, with room for its files'."""
        for i, other in enumerate(self.p_entries):
            if other == name:
                return (self.p_fileid << 8) + i + 1 & _INO_MASK
        raise err(ENOENT)

    def vop_lookup(self, name: bytes) -> Vnode | None:
        if self.p_proc is not None:
            self.alive()
        make = self.p_entries.get(name)
        return None if make is None else make(self, self.fileid_of(name))

    def vop_readdir(self) -> list[tuple[bytes, int, int]]:
        p = self.p_proc
        if p is not None and self.kernel.procs.get(p.p_pid) is not p:
            raise err(ENOENT)
        return self._entries()

    def subdirs(self) -> int:
        return sum(1 for e in self._entries() if e[2] == VTTODT[VDIR])

    def _entries(self) -> list[tuple[bytes, int, int]]:
        entries = []
        for i, (name, make) in enumerate(self.p_entries.items()):
            ino = (self.p_fileid << 8) + i + 1 & _INO_MASK
            entries.append((name, ino, VTTODT[make(self, ino).v_type]))
        return entries


class ProcFile(ProcNode):
    """A file whose contents are generated."""

    __slots__ = ("p_data", "p_private", "p_show", "p_splice", "p_store")

    p_show: Show | None  # makes the contents; None: write only
    p_store: Store | None  # takes what is written, one write at a time; None: read only
    p_private: bool  # only for the process's owner and root
    p_splice: int  # what splice may do with it: FREAD, FWRITE
    p_data: bytes | None  # the contents as of the last read from the start

    def __init__(
        self,
        mount: PseudoMount,
        fileid: int,
        show: Show | None,
        store: Store | None = None,
        mode: int = 0o444,
        proc: Proc | None = None,
        private: bool = False,
        splice: int = 0,
    ) -> None:
        super().__init__(mount, VREG, mode, fileid, proc)
        self.p_show = show
        self.p_store = store
        self.p_private = private
        self.p_splice = splice
        self.p_data = None

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        if self.p_private:
            self.may_look(cred)
        return None

    def check_proc(self) -> None:
        """Whether what it is about is still there.

        :raises OSError: ESRCH
        """
        if self.p_proc is not None:
            self.alive()

    def read(self, uio: Uio, off: int, ioflag: int) -> None:
        from dfvm.vm.copyio import uiogive

        if off < 0:
            raise err(EINVAL)
        data = self.p_data
        if data is None or off == 0:
            self.check_proc()
            if self.p_show is None:
                raise err(EINVAL)
            data = self.p_data = self.p_show()
        if off < len(data):
            uiogive(data[off : off + uio.uio_resid], uio)

    def write(self, uio: Uio, off: int, ioflag: int, limit: int = OFF_MAX) -> int:
        from dfvm.vm.copyio import uioread

        if self.p_store is None:
            raise err(EIO if self.p_proc is None else EINVAL)
        self.check_proc()
        data = uioread(uio, _WRITE_MAX)
        self.p_store(data)
        return off + len(data)

    def setsize(self, length: int) -> None:
        # O_TRUNC on the way to a write: there is nothing to cut.
        if length:
            raise err(EINVAL)

    def splices(self) -> int:
        return self.p_splice

    def mmap(self) -> int:
        raise err(ENODEV)

    def fsync(self) -> None:
        raise err(EINVAL)

    def allocate(self, mode: int, off: int, length: int) -> None:
        raise err(ENODEV)


class SysctlFile(ProcFile):
    """A file of /proc/sys. Its mode is the truth for root, too: what can't be set can't be opened
    to be written.

    Source: Linux fs/proc/proc_sysctl.c, test_perm; ipc/ipc_sysctl.c, ipc_permissions.
    """

    __slots__ = ("p_cap",)

    p_cap: int  # who has one of these capabilities may read and write it whatever the mode is

    def __init__(
        self,
        mount: PseudoMount,
        fileid: int,
        show: Show | None,
        store: Store | None = None,
        mode: int = 0o444,
        cap: int = 0,
    ) -> None:
        super().__init__(mount, fileid, show, store, mode, splice=FREAD | FWRITE)
        self.p_cap = cap

    def access(self, want: int, cred: Cred) -> None:
        mode = self.v_mode
        if cred.cr_cap_e & self.p_cap:
            mode = 0o666
        if not cred.cr_fsuid:
            mode >>= 6
        elif cred.groupmember(0):
            mode >>= 3
        if want & ~mode & 7:
            raise err(EACCES)


class ProcLink(ProcNode):
    """A symbolic link to a path."""

    __slots__ = ("p_target",)

    p_target: Show  # makes the path

    def __init__(self, mount: PseudoMount, fileid: int, target: Show) -> None:
        super().__init__(mount, VLNK, 0o777, fileid)
        self.p_target = target

    def vop_readlink(self) -> bytes:
        return self.p_target()


class ProcMagicLink(ProcNode):
    """A link that leads to a vnode, whatever its name is now, if it has one."""

    __slots__ = ("p_follow", "p_text")

    p_text: Show  # what readlink says
    p_follow: Callable[[], Vnode]  # the vnode

    def __init__(
        self,
        mount: PseudoMount,
        fileid: int,
        proc: Proc,
        text: Show,
        follow: Callable[[], Vnode],
        mode: int = 0o777,
    ) -> None:
        super().__init__(mount, VLNK, mode, fileid, proc)
        self.v_flag |= VMAGIC
        self.p_text = text
        self.p_follow = follow

    def vop_readlink(self) -> bytes:
        self.alive()
        return self.p_text()

    def vop_magic(self, cred: Cred) -> Vnode:
        self.alive()
        self.may_look(cred)
        return self.p_follow()


class FdescVnode(ProcNode):
    """What /proc/PID/fd/N leads to when the open file is no vnode's: a pipe, a stream of the
    host's. Opening it makes another file on the same thing."""

    __slots__ = ("p_file",)

    p_file: File

    def __init__(self, mount: PseudoMount, fp: File, va: Vattr) -> None:
        super().__init__(mount, va.va_type, va.va_mode, va.va_fileid)
        self.v_uid = va.va_uid
        self.v_gid = va.va_gid
        self.p_file = fp

    def vop_getattr(self) -> Vattr:
        return self.p_file.fo_stat(self.kernel.sched.curthread.td_lwp)

    def access(self, want: int, cred: Cred) -> None:
        # Whoever has the descriptor has the right; what the file allows, its reopening decides.
        if want & 1:
            raise err(EACCES)

    def open(self, fflag: int, cred: Cred) -> object | None:
        return self.p_file.fo_reopen(self.kernel.sched.curthread.td_lwp, fflag - 1)

    def setsize(self, length: int) -> None:
        if length:
            raise err(EINVAL)

    def chmod(self, mode: int, cred: Cred) -> None:
        self.p_file.fo_chmod(mode, cred)

    def chown(self, uid: int, gid: int, cred: Cred) -> None:
        self.p_file.fo_chown(uid, gid, cred)

    def utimes(self, atime: int | None, mtime: int | None, cred: Cred, explicit: bool) -> None:
        self.p_file.fo_utimes(atime, mtime, cred, explicit)


class ProcRoot(ProcNode):
    """/proc itself: the machine's files, and a directory for each process."""

    __slots__ = ()

    v_mount: ProcMount

    def __init__(self, mount: ProcMount) -> None:
        super().__init__(mount, VDIR, 0o555, ROOT_INO)

    def vop_lookup(self, name: bytes) -> Vnode | None:
        mount = self.v_mount
        if name.isdigit():
            if name[0] == 0x30 or len(name) > 9:
                return None
            p = mount.p_kernel.procs.get(int(name))
            if p is None:
                return None
            from dfvm.kern.vfs.procfs_proc import proc_dir

            return proc_dir(mount, p)
        if name == b"self":
            return ProcLink(mount, SYSTEM_INO, mount.self_name)
        if name == b"thread-self":
            return ProcLink(mount, SYSTEM_INO + 1, mount.thread_name)
        from dfvm.kern.vfs.procfs_system import SYSTEM, system_node

        return system_node(mount, name) if name in SYSTEM else None

    def vop_readdir(self) -> list[tuple[bytes, int, int]]:
        from dfvm.kern.vfs.procfs_proc import proc_fileid
        from dfvm.kern.vfs.procfs_system import SYSTEM, system_node

        mount = self.v_mount
        entries = [(b"self", SYSTEM_INO, VTTODT[VLNK]), (b"thread-self", SYSTEM_INO + 1, 10)]
        for name in SYSTEM:
            vp = system_node(mount, name)
            entries.append((name, vp.p_fileid, VTTODT[vp.v_type]))
        for pid in sorted(mount.p_kernel.procs):
            entries.append((b"%d" % pid, proc_fileid(pid), VTTODT[VDIR]))
        return entries

    def vop_getattr(self) -> Vattr:
        va = super().vop_getattr()
        va.va_nlink = 2 + len(self.kernel.procs)
        return va


class PseudoMount(Mount):
    """A mounted tree of such files."""

    __slots__ = ("p_fsid", "p_kernel")

    p_kernel: Kernel
    p_fsid: int  # st_dev of everything here

    def __init__(self, vfs: Vfs, kernel: Kernel, fstype: str, magic: int, flags: int) -> None:
        super().__init__(vfs, fstype, fstype, magic, flags)
        self.p_kernel = kernel
        self.p_fsid = vfs.anon_dev()


class ProcMount(PseudoMount):
    """The mounted /proc."""

    __slots__ = ()

    def __init__(self, vfs: Vfs, kernel: Kernel) -> None:
        super().__init__(vfs, kernel, "proc", PROC_MAGIC, ST_NOSUID | ST_NODEV | ST_NOEXEC)
        self.mnt_fixed = True
        self.set_root(ProcRoot(self))

    def self_name(self) -> bytes:
        """Where /proc/self points for the process that asks."""
        proc: Proc | None = self.p_kernel.sched.curthread.td_proc
        if proc is None:
            raise err(ENOENT)
        return b"%d" % proc.p_pid

    def thread_name(self) -> bytes:
        """Likewise /proc/thread-self."""
        lwp = self.p_kernel.sched.curthread.td_lwp
        if lwp is None:
            raise err(ENOENT)
        return b"%s/task/%d" % (self.self_name(), lwp.lwp_tid)


def parse_int(data: bytes) -> int:
    """The number that was written to a file.

    :raises OSError: EINVAL.
    """
    try:
        return int(data.replace(b"_", b"x"))  # which Python takes in numbers
    except ValueError:
        raise err(EINVAL) from None


def parse_uint(data: bytes) -> int:
    """The unsigned number of 32 bits that was written to a file, as Linux's kstrtouint takes it:
    decimal, octal or hexadecimal, and one newline behind it at most.

    :raises OSError: EINVAL, ERANGE
    """
    match = _UINT.fullmatch(data)
    if match is None:
        raise err(EINVAL)
    hexadecimal, octal, decimal = match.groups()
    n = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    if n >> 32:
        raise err(ERANGE)
    return n
