"""Open files and the tables that name them.

For other modules, in one place:

    FileTable(vm, sched)            one for each machine: what all open files share
    FileDesc(table)                 a process's descriptors (p_fd)
    fdp.fdcopy() / fdp.fdshare()    fork / clone(CLONE_FILES)
    fdp.fdcloseexec()               exec; fdp.fdfree() exit
    fdp.fd_files                    {fd: File}; fdp.fd_cloexec {fd}
    fdp.fget(fd)                    File, or EBADF (O_PATH files too: EBADF);
                                    fget_path(fd) takes O_PATH files as well
    fdp.fdinstall(fp, minfd, limit, cloexec) -> fd        EMFILE

    File                            the base class. f_flag (Linux O_* as F_GETFL reports them),
                                    f_mode (FREAD, FWRITE, FPATH), f_offset, f_count,
                                    f_vnode (None for what is no vnode), and fo_* operations

Whoever holds a File counts in f_count; fhold() and fdrop() keep it. A descriptor is such a holder
for as long as nobody closes it, which only the process itself and those who share its table can
do. So a system call that may sleep holds the file itself, or while it does (`holding`), unless the
table is not shared (fd_refcnt is 1), as Linux's fdget. Everything here runs without blocking except
what fdrop may do when a last reference goes (a vnode's close).

Source: DragonFly sys/kern/kern_descrip.c, sys/sys/file.h, sys/sys/filedesc.h; behaviour as
Linux fs/file.c and fs/fcntl.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.kern_caps import CAP_SYS_ADMIN
from dfvm.kern.kern_errno import (
    EBADF,
    EBUSY,
    EINVAL,
    EMFILE,
    ENFILE,
    ENOTDIR,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    ESPIPE,
    err,
)  # fmt: skip
from dfvm.kern.kern_event import POLL_READABLE, POLL_WRITABLE
from dfvm.kern.proc import RLIMIT_NOFILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.kern_event import Kqinfo
    from dfvm.kern.kern_lockf import Lockf, LockfHead
    from dfvm.kern.proc import Lwp, Proc, Ucred
    from dfvm.kern.sys_epoll import EpollItem
    from dfvm.kern.sys_pipe import PipePages
    from dfvm.kern.sys_sigio import AsyncNote
    from dfvm.kern.tty import HostTty
    from dfvm.kern.uipc_rights import UnixDomain
    from dfvm.kern.vfs.mount import Statfs
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred, Vattr
    from dfvm.lwkt.lwkt_thread import Scheduler
    from dfvm.vm.copyio import Uio
    from dfvm.vm.vm_init import VmSystem

_T = TypeVar("_T")

# open(2) flags, x86-64.
O_RDONLY: Final = 0
O_WRONLY: Final = 1
O_RDWR: Final = 2
O_ACCMODE: Final = 3
O_CREAT: Final = 0o100
O_EXCL: Final = 0o200
O_NOCTTY: Final = 0o400
O_TRUNC: Final = 0o1000
O_APPEND: Final = 0o2000
O_NONBLOCK: Final = 0o4000
O_DSYNC: Final = 0o10000
FASYNC: Final = 0o20000
O_DIRECT: Final = 0o40000
O_LARGEFILE: Final = 0o100000
O_DIRECTORY: Final = 0o200000
O_NOFOLLOW: Final = 0o400000
O_NOATIME: Final = 0o1000000
O_CLOEXEC: Final = 0o2000000
O_SYNC: Final = 0o4010000
O_PATH: Final = 0o10000000
O_TMPFILE: Final = 0o20200000

# f_mode: what the descriptor may be used for: FREAD, FWRITE, or
FPATH: Final = 4  # opened with O_PATH: names a file, and nothing else

FIONREAD: Final = 0x541B  # ioctl: how many bytes can be read

ANON_INODE_FS_MAGIC: Final = 0x09041934


_CLOSE_RANGE_UNSHARE: Final = 2
_CLOSE_RANGE_CLOEXEC: Final = 4

# The map of descriptors in use: words of 1024 bits and one summary word of what is full.
_SHIFT: Final = 10
_BITS: Final = 1 << _SHIFT
_FULL: Final = (1 << _BITS) - 1


NR_OPEN: Final = 1 << 20  # the highest limit on open files, until fs.nr_open says otherwise


class FileSysctl:
    """The fs.* tunables, named by the leaf of the sysctl."""

    __slots__ = ("dir_notify_enable", "file_max", "lease_break_time", "leases_enable",
                 "max_queued_events", "max_user_instances", "max_user_watches", "nr_open",
                 "pipe_max_size")  # fmt: skip

    def __init__(self) -> None:
        self.dir_notify_enable = 1  # F_NOTIFY may be asked for
        self.file_max = 1 << 22  # open files on the machine, but for root
        self.lease_break_time = 45  # seconds in which a lease is to be given up
        self.leases_enable = 1  # F_SETLEASE may be asked for
        self.max_queued_events = 16_384  # of one inotify instance made from now on
        self.max_user_instances = 128  # inotify instances of one user
        self.max_user_watches = 65_536  # watches, of all users together
        self.nr_open = NR_OPEN  # no descriptor is this high or higher, whatever the limit
        self.pipe_max_size = 1 << 20  # bytes that a pipe may hold, but for root


class FileTable:
    """What all open files of a machine share."""

    __slots__ = ("console_vp", "host_ttys", "inotify_users", "lockf_blocked", "nfiles", "nlockf",
                 "nmqnotify", "pipe_pages", "sched", "serial", "so_charged", "sysctl", "unix",
                 "vm")  # fmt: skip

    vm: VmSystem
    sched: Scheduler
    nfiles: int  # Files alive, for ENFILE and /proc/sys/fs/file-nr
    serial: int  # the last inode number given to something without a file system (a pipe)
    sysctl: FileSysctl
    inotify_users: dict[int, int]  # inotify instances by user; no user has 0
    nlockf: int  # locks and leases held on any file, and directories that notify: while 0, closing
    #              one need not look for its
    nmqnotify: int  # message queues that are to tell somebody: likewise
    lockf_blocked: dict[object, list[tuple[LockfHead, Lockf]]]  # owner → POSIX locks it waits for
    host_ttys: dict[int, HostTty]  # terminals of the host in use, by device number there
    console_vp: Vnode | None  # /dev/console
    pipe_pages: PipePages | None  # pages of pipe buffers; made by the first pipe
    so_charged: int  # bytes that messages of all sockets are charged as
    unix: UnixDomain | None  # local sockets; made by the first one

    def __init__(self, vm: VmSystem, sched: Scheduler) -> None:
        self.vm = vm
        self.sched = sched
        self.nfiles = 0
        self.serial = 0
        self.nlockf = self.nmqnotify = 0
        self.sysctl = FileSysctl()
        self.inotify_users = {}
        self.lockf_blocked = {}
        self.host_ttys = {}
        self.console_vp = None
        self.pipe_pages = None
        self.so_charged = 0
        self.unix = None

    def capable(self, cap: int) -> bool:
        """Whether the process on whose behalf the kernel runs has a capability (CAP_*). The kernel
        itself has all."""
        p = self.sched.curthread.td_proc
        return p is None or bool(p.p_ucred.cr_cap_e & cap)

    def new_serial(self) -> int:
        """An inode number nobody had before."""
        self.serial += 1
        return self.serial


class File:
    """An open file: what dup and fork share. Operations that a kind of file lacks fail here the
    way Linux fails them.

    Source: DragonFly struct file and struct fileops.
    """

    __slots__ = ("f_async", "f_count", "f_epitems", "f_flag", "f_lockf", "f_mode", "f_offset",
                 "f_owner", "f_ownercred", "f_sig", "f_table")  # fmt: skip

    f_table: FileTable
    f_count: int  # descriptors and system calls that hold it; 0: closed, must not be used
    f_flag: int  # O_* as F_GETFL reports them; F_SETFL changes some
    f_mode: int  # FREAD | FWRITE | FPATH; never changes
    f_offset: int  # of the next read, write or getdents, in bytes (or cookies)
    f_owner: int  # F_SETOWN: pid, or minus a process group
    f_ownercred: Ucred | None  # who said so: whom they may signal
    f_sig: int  # F_SETSIG: the signal of O_ASYNC; 0: SIGIO
    f_async: AsyncNote | None  # what sends it; None without O_ASYNC
    f_epitems: dict[EpollItem, None] | None  # epolls that watch it; None: none ever did
    f_lockf: LockfHead | None  # locks, of what has no better place for them (fo_lockf)

    f_vnode: Vnode | None = None  # overridden by files of vnodes
    f_pollable = True  # of a kind that epoll takes: readiness can change
    f_fasync = False  # of a kind that O_ASYNC means something to
    f_splice = 0  # of a kind that splice moves data from (FREAD), to (FWRITE); a vnode's knows
    f_seekable = True  # of a kind that has a position, even if it says nothing
    f_preads = False  # of a kind that pread and pwrite work on

    def __init__(self, table: FileTable, flag: int) -> None:
        if table.nfiles >= table.sysctl.file_max and not table.capable(CAP_SYS_ADMIN):
            raise err(ENFILE)
        table.nfiles += 1
        self.f_table = table
        self.f_count = 1
        self.f_flag = flag
        self.f_mode = file_mode(flag)
        self.f_offset = 0
        self.f_owner = 0
        self.f_ownercred = None
        self.f_sig = 0
        self.f_async = None
        self.f_epitems = None
        self.f_lockf = None

    # -- operations -----------------------------------------------------------------------------
    # Transfers move what they can into or out of `uio` and raise only when nothing was moved; the
    # caller counts by uio_resid. They may block unless f_flag has O_NONBLOCK.

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        """Read at f_offset and advance it."""
        raise err(EINVAL)

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        """Write at f_offset, or at the end with O_APPEND, and advance it."""
        raise err(EINVAL)

    def fo_pread(self, lwp: Lwp, uio: Uio, offset: int) -> None:
        """Read at `offset`; f_offset stays. Only of a kind with f_preads."""
        raise err(EINVAL)

    def fo_pwrite(self, lwp: Lwp, uio: Uio, offset: int) -> None:
        """Write at `offset`; f_offset stays."""
        raise err(EINVAL)

    def fo_seek(self, lwp: Lwp, offset: int, whence: int) -> int:
        """Move f_offset and return it."""
        raise err(ESPIPE)

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        """ioctl(2) beyond what every file knows; `arg` is the raw register."""
        raise err(ENOTTY)

    def fo_poll(self) -> int:
        """The POLL* events that are true now. Regular files and the like are always ready."""
        return POLL_READABLE | POLL_WRITABLE

    def fo_hostfd(self) -> int:
        """The host's descriptor whose readiness decides fo_poll; -1 when there is none."""
        return -1

    def fo_kqinfo(self) -> Kqinfo | None:
        """Where to listen for changes of fo_poll; None when there are none."""
        return None

    def fo_stat(self, lwp: Lwp) -> Vattr:
        """Attributes, for fstat."""
        raise err(EBADF)

    def fo_readdir(self, room: int, pack_one: Callable[[bytes, int, int, int], bytes]) -> bytes:
        """Directory entries from f_offset on, as records made by pack_one(name, inode, cookie of
        the next, type), at most `room` bytes; advances f_offset."""
        raise err(ENOTDIR)

    def fo_lockf(self) -> LockfHead | None:
        """The locks on the inode behind this file: the same for every File of it."""
        return self.f_lockf

    def fo_set_lockf(self, head: LockfHead | None) -> None:
        """The inode gets its first lock, or has lost its last one."""
        self.f_lockf = head

    def fo_chmod(self, mode: int, cred: Cred) -> None:
        """fchmod(2). What shares the one inode without a type has no attributes of its own."""
        raise err(EOPNOTSUPP)

    def fo_chown(self, uid: int, gid: int, cred: Cred) -> None:
        """fchown(2); -1: leave it."""
        raise err(EOPNOTSUPP)

    def fo_utimes(self, atime: int | None, mtime: int | None, cred: Cred, explicit: bool) -> None:
        """futimens(2), with the arguments of Vnode.utimes."""
        raise err(EOPNOTSUPP)

    def fo_statfs(self) -> Statfs:
        """fstatfs(2) of what is in no file system."""
        from dfvm.kern.vfs.mount import Statfs

        return Statfs(ANON_INODE_FS_MAGIC, 0)

    def fo_setfl(self, flag: int) -> None:
        """F_SETFL is about to store `flag`; refuse by raising."""
        if flag & O_DIRECT and not self.f_flag & O_DIRECT:
            raise err(EINVAL)

    def fo_opened(self, lwp: Lwp, flag: int) -> None:
        """open(2) with `flag` made this file; it has its final f_flag."""

    def fo_close(self) -> None:
        """The last reference is gone. May block."""

    def fo_name(self) -> str:
        """What /proc/PID/fd/N points at when there is no path."""
        return f"anon_inode:[{type(self).__name__}]"

    def fo_show(self) -> str:
        """Lines of its own in /proc/PID/fdinfo/N."""
        return ""

    def fo_reopen(self, lwp: Lwp, flag: int) -> File:
        """open(2) of /proc/PID/fd/N: a new open file on the same thing."""
        raise err(ENXIO)

    # -- references -----------------------------------------------------------------------------

    def fhold(self) -> None:
        """One more holder."""
        self.f_count += 1

    def fdrop(self) -> None:
        """One holder less; the last one closes. May block then."""
        self.f_count -= 1
        if self.f_count == 0:
            table = self.f_table
            if self.f_async is not None:
                from dfvm.kern.sys_sigio import clear_async

                clear_async(self)
            if self.f_epitems:
                for item in list(self.f_epitems):
                    item.detach()
            if table.nlockf:
                from dfvm.kern.kern_lockf import lf_file_closed

                lf_file_closed(table, self)
            table.nfiles -= 1
            self.fo_close()


def holding(fp: File, call: Callable[..., _T], *args: object) -> _T:
    """call(*args), which may sleep, with `fp` held meanwhile."""
    fp.f_count += 1
    try:
        return call(*args)
    finally:
        fp.fdrop()


def holding_both(one: File, other: File, call: Callable[..., _T], *args: object) -> _T:
    """The same with two files."""
    one.f_count += 1
    try:
        return holding(other, call, *args)
    finally:
        one.fdrop()


def file_mode(flag: int) -> int:
    """f_mode of a file opened with `flag`."""
    return FPATH if flag & O_PATH else ((flag & O_ACCMODE) + 1) & 3


class FileDesc:
    """A process's descriptor table, shared between processes only by clone(CLONE_FILES).

    Invariant: a bit in the map is set for every key of fd_files, and for numbers that an open in
    progress has reserved.
    """

    __slots__ = ("_full", "_map", "fd_cloexec", "fd_files", "fd_refcnt", "fd_table")

    fd_table: FileTable
    fd_files: dict[int, File]
    fd_cloexec: set[int]  # descriptors that exec closes; a subset of fd_files' keys
    fd_refcnt: int  # processes that use this table
    _map: list[int]  # words of the map of numbers in use
    _full: int  # bit w: _map[w] has no clear bit

    def __init__(self, table: FileTable) -> None:
        self.fd_table = table
        self.fd_files = {}
        self.fd_cloexec = set()
        self.fd_refcnt = 1
        self._map = [0]
        self._full = 0

    # -- lookup ---------------------------------------------------------------------------------

    def fget(self, fd: int) -> File:
        """The open file at `fd` (a raw register), for use and not just for its name.

        :raises OSError: EBADF
        """
        fp = self.fd_files.get(fd & 0xFFFFFFFF)
        if fp is None or fp.f_mode & FPATH:
            raise err(EBADF)
        return fp

    def fget_path(self, fd: int) -> File:
        """The open file at `fd` even if it was opened with O_PATH.

        :raises OSError: EBADF
        """
        fp = self.fd_files.get(fd & 0xFFFFFFFF)
        if fp is None:
            raise err(EBADF)
        return fp

    # -- numbers --------------------------------------------------------------------------------

    @property
    def fd_size(self) -> int:
        """Numbers the table has room for now; select(2) looks at no more."""
        return len(self._map) * _BITS

    def fdalloc(self, want: int, limit: int) -> int:
        """Reserve the lowest free number not below `want`.

        :raises OSError: EMFILE when there is none below `limit`
        """
        words = self._map
        w = want >> _SHIFT
        while w >= len(words):
            words.append(0)
        used = words[w] | ((1 << (want & _BITS - 1)) - 1)
        if used == _FULL:
            above = self._full >> (w + 1)
            w += (~above & (above + 1)).bit_length()
            if w >= len(words):
                words.append(0)
            used = words[w]
        bit = ~used & (used + 1)
        fd = (w << _SHIFT) + bit.bit_length() - 1
        if fd >= limit or fd >= self.fd_table.sysctl.nr_open:
            raise err(EMFILE)
        words[w] |= bit
        if words[w] == _FULL:
            self._full |= 1 << w
        return fd

    def fdrelease(self, fd: int) -> None:
        """Give a reserved number back."""
        w = fd >> _SHIFT
        self._map[w] &= ~(1 << (fd & _BITS - 1))
        self._full &= ~(1 << w)

    def fdset(self, fd: int, fp: File, cloexec: bool) -> None:
        """Put `fp` at the reserved number `fd`; the caller's reference goes to the table."""
        self.fd_files[fd] = fp
        if cloexec:
            self.fd_cloexec.add(fd)

    def fdinstall(self, fp: File, minfd: int, limit: int, cloexec: bool) -> int:
        """Put `fp` at the lowest number free from `minfd` up; the caller's reference goes to the
        table.

        :raises OSError: EMFILE; the reference stays with the caller
        """
        fd = self.fdalloc(minfd, limit)
        self.fdset(fd, fp, cloexec)
        return fd

    def fdclose(self, fd: int) -> None:
        """close(2) of an open number. May block.

        :raises OSError: EBADF
        """
        fp = self.fd_files.pop(fd, None)
        if fp is None:
            raise err(EBADF)
        self.fd_cloexec.discard(fd)
        self.fdrelease(fd)
        self._closef(fp)

    def _closef(self, fp: File) -> None:
        """A descriptor of this table let go of `fp`: POSIX locks on its file go with it."""
        table = self.fd_table
        if table.nlockf:
            from dfvm.kern.kern_lockf import lf_fd_closed

            lf_fd_closed(table, self, fp)
        if table.nmqnotify:
            from dfvm.kern.sys_mqueue import mq_closed

            mq_closed(fp, table.sched.curthread.td_proc)
        fp.fdrop()

    # -- life -----------------------------------------------------------------------------------

    def fdshare(self) -> FileDesc:
        """One more process uses this table."""
        self.fd_refcnt += 1
        return self

    def fdunshare(self) -> FileDesc:
        """The table that the process is to use so as to share none: a copy if others use this one.
        Does not block."""
        if self.fd_refcnt == 1:
            return self
        self.fd_refcnt -= 1
        return self.fdcopy()

    def fdcopy(self) -> FileDesc:
        """A copy for a child: the same open files at the same numbers. Does not block."""
        new = FileDesc(self.fd_table)
        new.fd_files = files = self.fd_files.copy()
        for fp in files.values():
            fp.f_count += 1
        new.fd_cloexec = self.fd_cloexec.copy()
        if len(self._map) == 1:
            word = 0
            for fd in files:
                word |= 1 << fd
            new._map[0] = word
            new._full = int(word == _FULL)
        else:  # numbers that another process's open has reserved are free in the copy
            for fd in files:
                new._reserve(fd)
        return new

    def _reserve(self, fd: int) -> bool:
        """Reserve exactly `fd`; False when it is in use or reserved."""
        words = self._map
        w = fd >> _SHIFT
        while w >= len(words):
            words.append(0)
        bit = 1 << (fd & _BITS - 1)
        if words[w] & bit:
            return False
        words[w] |= bit
        if words[w] == _FULL:
            self._full |= 1 << w
        return True

    def fdcloseexec(self) -> None:
        """exec: close what is marked. The table must not be shared. May block."""
        for fd in sorted(self.fd_cloexec):
            self.fdclose(fd)

    def fdfree(self) -> None:
        """A process leaves; the last one closes everything. May block."""
        self.fd_refcnt -= 1
        if self.fd_refcnt:
            return
        for fd in sorted(self.fd_files):
            self.fdclose(fd)

    def dup2(self, fp: File, new: int, cloexec: bool) -> None:
        """Make `new` name `fp`, closing what it named. `new` is below the limit. May block in
        the close, after the change is visible.

        :raises OSError: EBUSY when another process that shares the table is just opening `new`
        """
        old = self.fd_files.get(new)
        if old is None and not self._reserve(new):
            raise err(EBUSY)
        fp.f_count += 1
        self.fd_files[new] = fp
        if cloexec:
            self.fd_cloexec.add(new)
        else:
            self.fd_cloexec.discard(new)
        if old is not None:
            self._closef(old)


def nofile(p: Proc) -> int:
    """The process's soft RLIMIT_NOFILE."""
    return p.p_rlimit(RLIMIT_NOFILE)


def signal_self(lwp: Lwp, sig: int) -> None:
    """A system call of `lwp` earns it a signal (SIGPIPE, SIGXFSZ). Linux says it comes from the
    process itself."""
    from dfvm.kern.kern_sig import SI_USER, Siginfo, lwpsignal

    p = lwp.lwp_proc
    lwpsignal(lwp, sig, Siginfo(sig, SI_USER, p.p_pid, p.p_ucred.cr_ruid))


# -- system calls -------------------------------------------------------------------------------


def sys_close(lwp: Lwp, fd: int) -> int:
    """close(2)"""
    lwp.lwp_proc.p_fd.fdclose(u32(fd))
    return 0


def sys_close_range(lwp: Lwp, first: int, last: int, flags: int) -> int:
    """close_range(2)"""
    first, last, flags = u32(first), u32(last), u32(flags)
    if flags & ~(_CLOSE_RANGE_UNSHARE | _CLOSE_RANGE_CLOEXEC) or first > last:
        raise err(EINVAL)
    p = lwp.lwp_proc
    if flags & _CLOSE_RANGE_UNSHARE:
        p.p_fd = p.p_fd.fdunshare()
    fdp = p.p_fd
    if last - first < len(fdp.fd_files):
        fds = [fd for fd in range(first, last + 1) if fd in fdp.fd_files]
    else:
        fds = sorted(fd for fd in fdp.fd_files if first <= fd <= last)
    if flags & _CLOSE_RANGE_CLOEXEC:
        fdp.fd_cloexec.update(fds)
    else:
        for fd in fds:
            fdp.fdclose(fd)
    return 0


def sys_dup(lwp: Lwp, fd: int) -> int:
    """dup(2)"""
    p = lwp.lwp_proc
    fp = p.p_fd.fget_path(fd)
    new = p.p_fd.fdinstall(fp, 0, nofile(p), False)
    fp.f_count += 1
    return new


def sys_dup2(lwp: Lwp, old: int, new: int) -> int:
    """dup2(2)"""
    p = lwp.lwp_proc
    old, new = u32(old), u32(new)
    fp = p.p_fd.fget_path(old)
    if new >= nofile(p) or new >= p.p_fd.fd_table.sysctl.nr_open:
        raise err(EBADF)
    if old != new:
        p.p_fd.dup2(fp, new, False)
    return new


def sys_dup3(lwp: Lwp, old: int, new: int, flags: int) -> int:
    """dup3(2)"""
    p = lwp.lwp_proc
    old, new, flags = u32(old), u32(new), u32(flags)
    if flags & ~O_CLOEXEC or old == new:
        raise err(EINVAL)
    if new >= nofile(p) or new >= p.p_fd.fd_table.sysctl.nr_open:
        raise err(EBADF)
    p.p_fd.dup2(p.p_fd.fget_path(old), new, bool(flags & O_CLOEXEC))
    return new
