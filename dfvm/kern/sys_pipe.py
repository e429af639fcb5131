"""Pipes and fifos.

A pipe is a queue of page-sized slots, 16 unless F_SETPIPE_SZ says otherwise. A write fills the
rest of the last page if all of its odd bytes fit there, then takes new pages; so writes of up to
PIPE_BUF bytes are atomic and a pipe is writable when it has a free slot, exactly as programs find
it on Linux. Pages come from a submap of the kernel's map when data comes, and go back as it is
read: an idle pipe holds no memory.

A fifo is the same thing hung on a vnode while somebody has it open.

Locking: `pi_locked` is held across the copies, which may block on the user's pages, so that two
readers or writers don't meet in the middle of a buffer. Whoever waits for data or room gives it up.

Source: DragonFly sys/kern/sys_pipe.c and sys/vfs/fifofs/fifo_vnops.c; behaviour of Linux fs/pipe.c.
"""

from __future__ import annotations

from collections import deque
from struct import pack
from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.abi.linux.linux_struct import anon_attr
from dfvm.kern.kern_caps import CAP_FOWNER, CAP_SYS_RESOURCE
from dfvm.kern.kern_descrip import (
    FIONREAD,
    O_ACCMODE,
    O_CLOEXEC,
    O_DIRECT,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    File,
    FileTable,
    nofile,
    signal_self,
)
from dfvm.kern.kern_errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EBUSY,
    EINVAL,
    ENOMEM,
    ENOTTY,
    ENXIO,
    EPERM,
    EPIPE,
    err,
)  # fmt: skip
from dfvm.kern.kern_event import (
    POLL_READABLE,
    POLL_WRITABLE,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    Kqinfo,
)  # fmt: skip
from dfvm.kern.kern_fcntl import F_GETPIPE_SZ
from dfvm.kern.kern_sig import SIGPIPE
from dfvm.kern.vfs.vfs_helper import may_chown
from dfvm.kern.vfs.vfs_notify import IN_CLOSE_NOWRITE, IN_CLOSE_WRITE
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, VFIFO, Vattr
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyout, uiomove_pa
from dfvm.vm.vm_param import PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.kern.kern_lockf import LockfHead
    from dfvm.kern.proc import Lwp
    from dfvm.kern.vfs.mount import Statfs
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred
    from dfvm.vm.copyio import Uio
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map import VmMap

PIPE_BUF: Final = 4096  # writes up to this are atomic
PIPE_SLOTS: Final = 16  # capacity of a new pipe, pages

PIPEFS_MAGIC: Final = 0x50495045


_PIPE_MAP_SIZE: Final = 256 << 20  # kernel address space for the buffers of all pipes
_CHUNK: Final = 16  # pages taken from the kernel's map at a time
_KEEP: Final = 64  # free pages kept for the next pipe at least


class PipePages:
    """The stock of pages for pipe buffers, by physical address; taken from a submap of kernel_map
    in chunks, and given back when much more than needed lies idle."""

    __slots__ = ("pp_chunks", "pp_free", "pp_map", "pp_trim", "pp_vm")

    pp_vm: VmSystem
    pp_map: VmMap  # the submap
    pp_free: list[int]  # pages in stock
    pp_chunks: dict[int, list[int]]  # kernel address of a chunk → its pages
    pp_trim: int  # give chunks back when the stock is larger

    def __init__(self, vm: VmSystem) -> None:
        from dfvm.vm.vm_kern import kmem_suballoc

        self.pp_vm = vm
        self.pp_map = kmem_suballoc(vm.kernel_map, _PIPE_MAP_SIZE)
        self.pp_free = []
        self.pp_chunks = {}
        self.pp_trim = _KEEP

    def get(self) -> int:
        """A page; its contents are anything. May block.

        :raises OSError: ENOMEM
        """
        if not self.pp_free:
            self._grow()
        return self.pp_free.pop()

    def put(self, pa: int) -> None:
        """A page is no longer needed."""
        self.pp_free.append(pa)
        if len(self.pp_free) > self.pp_trim:
            self._trim()

    def _grow(self) -> None:
        from dfvm.vm.vm import VM_SUBSYS_PIPE
        from dfvm.vm.vm_kern import kmem_alloc, kva_to_pa

        kva = kmem_alloc(self.pp_map, _CHUNK * PAGE_SIZE, VM_SUBSYS_PIPE)
        if not kva:
            raise err(ENOMEM)
        pages = [kva_to_pa(self.pp_vm, kva + i * PAGE_SIZE) for i in range(_CHUNK)]
        self.pp_chunks[kva] = pages
        self.pp_free += pages

    def _trim(self) -> None:
        # Linear in the stock, which has at least doubled since the last time.
        from dfvm.vm.vm_kern import kmem_free

        free = set(self.pp_free)
        for kva, pages in list(self.pp_chunks.items()):
            if len(free) <= _KEEP:
                break
            if free.issuperset(pages):
                free.difference_update(pages)
                del self.pp_chunks[kva]
                kmem_free(self.pp_map, kva, _CHUNK * PAGE_SIZE)
        self.pp_free = [pa for pa in self.pp_free if pa in free]
        self.pp_trim = max(_KEEP, 2 * len(free))


class PipeBuf:
    """One slot: `pb_len` bytes from `pb_off` on in a page of the stock."""

    __slots__ = ("pb_len", "pb_off", "pb_pa", "pb_packet")

    pb_pa: int  # the page
    pb_off: int  # first unread byte in it
    pb_len: int  # unread bytes; > 0 while queued
    pb_packet: bool  # written with O_DIRECT: a read ends here and drops what it does not take

    def __init__(self, pa: int, off: int, length: int, packet: bool) -> None:
        self.pb_pa = pa
        self.pb_off = off
        self.pb_len = length
        self.pb_packet = packet


class Pipe:
    """What the two ends share."""

    __slots__ = ("pi_atime", "pi_bufs", "pi_gid", "pi_kq", "pi_locked", "pi_lockf", "pi_mode",
                 "pi_mtime", "pi_pages", "pi_rcount", "pi_readers", "pi_rwait", "pi_serial",
                 "pi_slots", "pi_table", "pi_uid", "pi_wcount", "pi_writers",
                 "pi_wwait")  # fmt: skip

    pi_table: FileTable
    pi_pages: PipePages
    pi_bufs: deque[PipeBuf]  # data, oldest first; at most pi_slots
    pi_slots: int  # capacity in pages; a power of two
    pi_readers: int  # open files that may read
    pi_writers: int  # open files that may write
    pi_rcount: int  # opens for reading so far: how a fifo's opener sees that a partner came
    pi_wcount: int  # opens for writing so far
    pi_locked: bool  # somebody copies
    pi_rwait: object  # wait channel of readers: an identity, nothing else
    pi_wwait: object  # wait channel of writers; the pipe itself is that of pi_locked
    pi_kq: Kqinfo  # who polls either end
    pi_serial: int  # inode number
    pi_lockf: LockfHead | None  # locks on a pipe without a name
    pi_atime: int  # ns; last read
    pi_mtime: int  # last write
    pi_mode: int  # permission bits, owner and group of a pipe without a name; nobody is checked
    pi_uid: int
    pi_gid: int

    def __init__(self, table: FileTable, uid: int = 0, gid: int = 0) -> None:
        pages = table.pipe_pages
        if pages is None:
            pages = table.pipe_pages = PipePages(table.vm)
        self.pi_table = table
        self.pi_pages = pages
        self.pi_bufs = deque()
        self.pi_slots = PIPE_SLOTS
        most = table.sysctl.pipe_max_size // PAGE_SIZE
        if most < PIPE_SLOTS and not table.capable(CAP_SYS_RESOURCE):
            self.pi_slots = most
        self.pi_readers = self.pi_writers = 0
        self.pi_rcount = self.pi_wcount = 0
        self.pi_locked = False
        self.pi_rwait = object()
        self.pi_wwait = object()
        self.pi_kq = Kqinfo()
        self.pi_serial = table.new_serial()
        self.pi_lockf = None
        self.pi_atime = self.pi_mtime = time_ns()
        self.pi_mode = 0o600
        self.pi_uid = uid
        self.pi_gid = gid

    def lock(self) -> None:
        """Take pi_locked. May block, not to be interrupted: whoever has it will finish."""
        while self.pi_locked:
            self.pi_table.sched.tsleep(self, 0, "pipelk")
        self.pi_locked = True

    def unlock(self) -> None:
        """Give it up."""
        self.pi_locked = False
        self.pi_table.sched.wakeup(self)

    def nbytes(self) -> int:
        """Bytes that wait to be read."""
        return sum(buf.pb_len for buf in self.pi_bufs)

    # -- transfers ------------------------------------------------------------------------------

    def read(self, fp: File, uio: Uio) -> None:
        """Take what is there; wait for the first byte unless `fp` says not to. May block.

        :raises OSError: EAGAIN, EINTR, ERESTART, EFAULT; nothing was taken then
        """
        if not uio.uio_resid:
            return
        bufs = self.pi_bufs
        sched = self.pi_table.sched
        while True:
            if bufs:
                if self._drain(uio):
                    return
                continue
            if not self.pi_writers:
                return
            if fp.f_flag & O_NONBLOCK:
                raise err(EAGAIN)
            fp.fhold()
            try:
                error = sched.tsleep(self.pi_rwait, PCATCH, "piperd")
            finally:
                fp.fdrop()
            if error:
                raise err(error)

    def _drain(self, uio: Uio) -> bool:
        """Move data to `uio` until it is full or the pipe empty. True if anything moved."""
        self.lock()
        bufs = self.pi_bufs
        vm = self.pi_table.vm
        put = self.pi_pages.put
        was_full = len(bufs) >= self.pi_slots
        wanted = uio.uio_resid
        try:
            while bufs and uio.uio_resid:
                buf = bufs[0]
                resid = uio.uio_resid
                n = buf.pb_len if buf.pb_len < resid else resid
                try:
                    uiomove_pa(vm, buf.pb_pa + buf.pb_off, n, uio)
                except OSError:
                    uio.uio_resid = resid  # this slot counts as not read, and is read again
                    if resid == wanted:
                        raise
                    break
                if n == buf.pb_len or buf.pb_packet:
                    bufs.popleft()
                    put(buf.pb_pa)
                    if buf.pb_packet:
                        break
                else:
                    buf.pb_off += n
                    buf.pb_len -= n
        finally:
            self.unlock()
            if was_full and len(bufs) < self.pi_slots:
                self.pi_table.sched.wakeup(self.pi_wwait)
            if self.pi_kq.ki_notes and len(bufs) < self.pi_slots:
                self.pi_kq.knote(POLLOUT)
        if uio.uio_resid == wanted:
            return False
        self.pi_atime = time_ns()
        return True

    def write(self, lwp: Lwp, fp: File, uio: Uio) -> None:
        """Put all of `uio` in, waiting for room unless `fp` says not to. May block. Sends SIGPIPE
        when nobody can ever read it.

        :raises OSError: EPIPE, EAGAIN, EINTR, ERESTART, EFAULT, ENOMEM; nothing was written then
        """
        wanted = uio.uio_resid
        if not wanted:
            return
        sched = self.pi_table.sched
        packet = bool(fp.f_flag & O_DIRECT)
        while True:
            if not self.pi_readers:
                signal_self(lwp, SIGPIPE)
                if uio.uio_resid == wanted:
                    raise err(EPIPE)
                return
            try:
                self._fill(uio, packet, uio.uio_resid == wanted)
            except OSError:
                if uio.uio_resid == wanted:
                    raise
                return
            if not uio.uio_resid:
                return
            if not self.pi_readers or len(self.pi_bufs) < self.pi_slots:
                continue
            if fp.f_flag & O_NONBLOCK:
                if uio.uio_resid == wanted:
                    raise err(EAGAIN)
                return
            fp.fhold()
            try:
                error = sched.tsleep(self.pi_wwait, PCATCH, "pipewr")
            finally:
                fp.fdrop()
            if error:
                if uio.uio_resid == wanted:
                    raise err(error)
                return

    def _fill(self, uio: Uio, packet: bool, first: bool) -> None:
        """Move data from `uio` until it is empty or the pipe full. The first part of a write may
        go into the last page, if there is room for all of its odd bytes."""
        self.lock()
        bufs = self.pi_bufs
        vm = self.pi_table.vm
        pages = self.pi_pages
        before = uio.uio_resid
        resid = before
        try:
            odd = resid & (PAGE_SIZE - 1)
            if first and odd and bufs and not packet:
                buf = bufs[-1]
                end = buf.pb_off + buf.pb_len
                if not buf.pb_packet and end + odd <= PAGE_SIZE:
                    uiomove_pa(vm, buf.pb_pa + end, odd, uio)
                    buf.pb_len += odd
                    resid = uio.uio_resid
            while resid and len(bufs) < self.pi_slots:
                n = PAGE_SIZE if resid > PAGE_SIZE else resid
                pa = pages.get()
                try:
                    uiomove_pa(vm, pa, n, uio)
                except OSError:
                    pages.put(pa)
                    raise
                bufs.append(PipeBuf(pa, 0, n, packet))
                resid = uio.uio_resid
        except OSError:
            uio.uio_resid = resid  # the page the error was in counts as not written
            raise
        finally:
            self.unlock()
            if resid != before:
                self.pi_mtime = time_ns()
                self.pi_table.sched.wakeup(self.pi_rwait)
                self.pi_kq.knote(POLLIN)

    # For splice, which moves the data itself, with the pipe locked, and reports it afterwards.

    def consumed(self, n: int) -> None:
        """The first `n` bytes of the first slot are read."""
        buf = self.pi_bufs[0]
        if n == buf.pb_len:
            self.pi_bufs.popleft()
            self.pi_pages.put(buf.pb_pa)
        else:
            buf.pb_off += n
            buf.pb_len -= n

    def drained(self) -> None:
        """Something was read."""
        self.pi_atime = time_ns()
        if len(self.pi_bufs) < self.pi_slots:
            self.pi_table.sched.wakeup(self.pi_wwait)
            self.pi_kq.knote(POLLOUT)

    def filled(self) -> None:
        """Something was written."""
        self.pi_mtime = time_ns()
        self.pi_table.sched.wakeup(self.pi_rwait)
        self.pi_kq.knote(POLLIN)

    # -- ends -----------------------------------------------------------------------------------

    def attach(self, mode: int) -> None:
        """An end is opened; whoever waits for a partner is told."""
        wakeup = self.pi_table.sched.wakeup
        if mode & FREAD:
            self.pi_readers += 1
            self.pi_rcount += 1
            wakeup(self.pi_wwait)
        if mode & FWRITE:
            self.pi_writers += 1
            self.pi_wcount += 1
            wakeup(self.pi_rwait)

    def detach(self, mode: int) -> None:
        """An end is closed; with the last one go the data."""
        if mode & FREAD:
            self.pi_readers -= 1
        if mode & FWRITE:
            self.pi_writers -= 1
        if not (self.pi_readers or self.pi_writers):
            for buf in self.pi_bufs:
                self.pi_pages.put(buf.pb_pa)
            self.pi_bufs.clear()
            return
        wakeup = self.pi_table.sched.wakeup
        if not self.pi_readers:
            wakeup(self.pi_wwait)
        if not self.pi_writers:
            wakeup(self.pi_rwait)
        self.pi_kq.knote(POLLIN | POLLOUT | POLLERR | POLLHUP)

    def set_slots(self, size: int) -> int:
        """F_SETPIPE_SZ: room for at least `size` bytes. Returns the new capacity.

        :raises OSError: EINVAL, EPERM, EBUSY when there are more data than that
        """
        if size > 1 << 31:
            raise err(EINVAL)
        slots = 1
        while slots * PAGE_SIZE < size:
            slots *= 2
        table = self.pi_table
        if slots > self.pi_slots and slots * PAGE_SIZE > table.sysctl.pipe_max_size:
            if not table.capable(CAP_SYS_RESOURCE):
                raise err(EPERM)
        if slots < len(self.pi_bufs):
            raise err(EBUSY)
        grown = slots > self.pi_slots
        self.pi_slots = slots
        if grown:
            self.pi_table.sched.wakeup(self.pi_wwait)
            self.pi_kq.knote(POLLOUT)
        return slots * PAGE_SIZE


class PipeFile(File):
    """One end of a pipe, or an open fifo (which has a vnode, and may be both ends)."""

    __slots__ = ("f_pipe", "f_vnode", "f_wseen")

    f_fasync = True
    f_splice = FREAD | FWRITE
    f_seekable = False

    f_pipe: Pipe
    f_vnode: Vnode | None  # of a fifo; open, ours to close
    f_wseen: int  # pi_wcount at the time of a non-blocking open without writers, else -1: until
    #               one comes, the lack of writers is no hang-up

    def __init__(self, pipe: Pipe, flag: int, vp: Vnode | None = None) -> None:
        super().__init__(pipe.pi_table, flag)
        self.f_pipe = pipe
        self.f_vnode = vp
        self.f_wseen = -1
        pipe.attach(self.f_mode)

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        resid = uio.uio_resid
        self.f_pipe.read(self, uio)
        vp = self.f_vnode
        if vp is not None and uio.uio_resid != resid:
            vp.vop_accessed()

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        resid = uio.uio_resid
        self.f_pipe.write(lwp, self, uio)
        vp = self.f_vnode
        if vp is not None and uio.uio_resid != resid:
            vp.vop_wrote(0)

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        if cmd != FIONREAD:
            raise err(ENOTTY)
        copyout(lwp.lwp_proc.p_vmspace, pack("<i", self.f_pipe.nbytes()), arg)
        return 0

    def fo_poll(self) -> int:
        pipe = self.f_pipe
        events = 0
        if self.f_mode & FREAD:
            if pipe.pi_bufs:
                events |= POLL_READABLE
            if not pipe.pi_writers and self.f_wseen != pipe.pi_wcount:
                events |= POLLHUP
        if self.f_mode & FWRITE:
            if len(pipe.pi_bufs) < pipe.pi_slots:
                events |= POLL_WRITABLE
            if not pipe.pi_readers:
                events |= POLLERR
        return events

    def fo_kqinfo(self) -> Kqinfo:
        return self.f_pipe.pi_kq

    def fo_stat(self, lwp: Lwp) -> Vattr:
        if self.f_vnode is not None:
            return self.f_vnode.getattr()
        pipe = self.f_pipe
        va = anon_attr(VFIFO, pipe.pi_serial)
        va.va_mode = pipe.pi_mode
        va.va_uid = pipe.pi_uid
        va.va_gid = pipe.pi_gid
        va.va_atime = pipe.pi_atime
        va.va_mtime = va.va_ctime = va.va_birthtime = pipe.pi_mtime
        return va

    def fo_chmod(self, mode: int, cred: Cred) -> None:
        vp, pipe = self.f_vnode, self.f_pipe
        if vp is not None:
            vp.chmod(mode, cred)
            return
        if cred.cr_fsuid != pipe.pi_uid and not cred.cr_cap_e & CAP_FOWNER:
            raise err(EPERM)
        pipe.pi_mode = mode

    def fo_chown(self, uid: int, gid: int, cred: Cred) -> None:
        vp, pipe = self.f_vnode, self.f_pipe
        if vp is not None:
            vp.chown(uid, gid, cred)
            return
        may_chown(pipe.pi_uid, pipe.pi_gid, uid, gid, cred)
        pipe.pi_uid = pipe.pi_uid if uid == -1 else uid
        pipe.pi_gid = pipe.pi_gid if gid == -1 else gid

    def fo_utimes(self, atime: int | None, mtime: int | None, cred: Cred, explicit: bool) -> None:
        vp, pipe = self.f_vnode, self.f_pipe
        if vp is not None:
            vp.utimes(atime, mtime, cred, explicit)
            return
        if cred.cr_fsuid != pipe.pi_uid and not cred.cr_cap_e & CAP_FOWNER:
            raise err(EPERM if explicit else EACCES)
        pipe.pi_atime = pipe.pi_atime if atime is None else atime
        pipe.pi_mtime = pipe.pi_mtime if mtime is None else mtime

    def fo_statfs(self) -> Statfs:
        from dfvm.kern.vfs.mount import Statfs

        vp = self.f_vnode
        return Statfs(PIPEFS_MAGIC, 0) if vp is None else vp.v_mount.statfs()

    def fo_setfl(self, flag: int) -> None:
        pass

    def fo_lockf(self) -> LockfHead | None:
        vp = self.f_vnode
        head: LockfHead | None = self.f_pipe.pi_lockf if vp is None else vp.v_lockf
        return head

    def fo_set_lockf(self, head: LockfHead | None) -> None:
        if self.f_vnode is None:
            self.f_pipe.pi_lockf = head
        else:
            self.f_vnode.v_lockf = head

    def fo_close(self) -> None:
        pipe = self.f_pipe
        pipe.detach(self.f_mode)
        vp = self.f_vnode
        if vp is not None:
            if not (pipe.pi_readers or pipe.pi_writers):
                vp.v_fifoinfo = None
            vp.event(IN_CLOSE_WRITE if self.f_mode & FWRITE else IN_CLOSE_NOWRITE)
            vp.close(self.f_mode)

    def fo_name(self) -> str:
        return f"pipe:[{self.f_pipe.pi_serial}]"

    def fo_reopen(self, lwp: Lwp, flag: int) -> File:
        return PipeFile(self.f_pipe, flag)


def fifo_open(lwp: Lwp, table: FileTable, vp: Vnode, flag: int) -> PipeFile:
    """Make a file of the fifo `vp`, which was opened for it; wait for the other side as open(2)
    says. May block. On failure the vnode stays with the caller.

    :raises OSError: ENXIO, EINTR, ERESTART
    """
    pipe: Pipe | None = vp.v_fifoinfo
    acc = flag & O_ACCMODE
    if acc == O_WRONLY and flag & O_NONBLOCK and (pipe is None or not pipe.pi_readers):
        raise err(ENXIO)
    if pipe is None:
        pipe = vp.v_fifoinfo = Pipe(table)
    fp = PipeFile(pipe, flag, vp)
    if acc == O_RDWR:
        return fp
    try:
        if acc == O_RDONLY and not pipe.pi_writers:
            if flag & O_NONBLOCK:
                fp.f_wseen = pipe.pi_wcount
            else:
                seen = pipe.pi_wcount
                while seen == pipe.pi_wcount:
                    _wait_partner(table, pipe.pi_rwait)
        elif acc == O_WRONLY and not pipe.pi_readers:
            seen = pipe.pi_rcount
            while seen == pipe.pi_rcount:
                _wait_partner(table, pipe.pi_wwait)
    except OSError:
        fp.f_vnode = None  # closing it is left to the caller
        fp.fdrop()
        if not (pipe.pi_readers or pipe.pi_writers):
            vp.v_fifoinfo = None
        raise
    return fp


def _wait_partner(table: FileTable, wait: object) -> None:
    error = table.sched.tsleep(wait, PCATCH, "fifoopen")
    if error:
        raise err(error)


def pipe_fcntl(fp: File, cmd: int, arg: int) -> int:
    """F_GETPIPE_SZ and F_SETPIPE_SZ."""
    if not isinstance(fp, PipeFile):
        raise err(EBADF)
    if cmd == F_GETPIPE_SZ:
        return fp.f_pipe.pi_slots * PAGE_SIZE
    return fp.f_pipe.set_slots(u32(arg))


# -- system calls -------------------------------------------------------------------------------


def sys_pipe2(lwp: Lwp, fdpair: int, flags: int) -> int:
    """pipe2(2)"""
    flags = u32(flags)
    if flags & ~(O_CLOEXEC | O_NONBLOCK | O_DIRECT):
        raise err(EINVAL)
    p = lwp.lwp_proc
    fdp = p.p_fd
    limit = nofile(p)
    cloexec = bool(flags & O_CLOEXEC)
    flags &= ~O_CLOEXEC
    pipe = Pipe(fdp.fd_table, p.p_ucred.cr_fsuid, p.p_ucred.cr_fsgid)
    rfd = fdp.fdalloc(0, limit)
    wfd = -1
    try:
        wfd = fdp.fdalloc(0, limit)
        copyout(p.p_vmspace, pack("<ii", rfd, wfd), fdpair)
        rfp = PipeFile(pipe, O_RDONLY | flags & O_NONBLOCK)
        try:
            wfp = PipeFile(pipe, O_WRONLY | flags)
        except OSError:
            rfp.fdrop()
            raise
    except OSError:
        fdp.fdrelease(rfd)
        if wfd >= 0:
            fdp.fdrelease(wfd)
        raise
    fdp.fdset(rfd, rfp, cloexec)
    fdp.fdset(wfd, wfp, cloexec)
    return 0


def sys_pipe(lwp: Lwp, fdpair: int) -> int:
    """pipe(2)"""
    return sys_pipe2(lwp, fdpair, 0)
