"""Files that are descriptors of the host: the machine's standard streams, as inherited or as given
by whoever embeds a Machine.

Reading waits through the scheduler, so other processes of the guest go on; the descriptor itself
keeps its blocking mode, because others on the host share it. A read or write is made only when the
host says that it will not block, or when the descriptor can't (a regular file).

    host_stdio(table, fd)       a File for the host's `fd`; a terminal gives a HostTtyFile
    InputFile(table, data)      a stream that ends after `data`
    OutputFile(table, sink)     a stream collected in a bytearray
    reserve_stdio()             keeps other files from becoming standard streams
"""

from __future__ import annotations

import os
import stat
from struct import pack
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.linux_struct import anon_attr
from dfvm.kern.kern_descrip import (
    FIONREAD,
    O_ACCMODE,
    O_APPEND,
    O_NONBLOCK,
    O_RDONLY,
    O_WRONLY,
    File,
    FileTable,
    signal_self,
)
from dfvm.kern.kern_errno import EAGAIN, EINVAL, ENOTTY, EPIPE, ESPIPE, err
from dfvm.kern.kern_event import POLL_READABLE, POLL_WRITABLE, POLLHUP, POLLIN, POLLOUT
from dfvm.kern.kern_sig import SIGPIPE
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, IFTOVT, OFF_MAX, S_IFMT, VFIFO, Vattr
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyout, uiogive, uiomove, uioread

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.vm.copyio import Uio


_CHUNK: Final = 1 << 20  # most bytes moved to or from a host file at a time
_STREAM_CHUNK: Final = 1 << 16  # most bytes read from a stream at a time
_PIPE_BUF: Final = 4096  # a pipe of the host that is writable takes so much without blocking

_SEEK_MAX: Final = 4  # SEEK_HOLE


class HostFile(File):
    """An open file of the host's."""

    __slots__ = ("f_blocks", "f_hostfd", "f_moves", "f_pollable", "f_preads",
                 "f_seekable")  # fmt: skip

    f_splice = FREAD | FWRITE

    f_hostfd: int  # the host's descriptor; not ours to close
    f_blocks: bool  # reading or writing may block: a pipe, a terminal, a socket
    f_moves: int  # transfers so far: what an edge-triggered epoll goes by

    def __init__(self, table: FileTable, fd: int, flag: int) -> None:
        super().__init__(table, flag)
        self.f_hostfd = fd
        self.f_blocks = self.f_pollable = not stat.S_ISREG(os.fstat(fd).st_mode)
        self.f_seekable = self.f_preads = not self.f_blocks
        self.f_moves = 0

    # -- transfers ------------------------------------------------------------------------------

    def wait(self, events: int, timeout_ns: int = 0) -> bool:
        """Before a transfer: sleep until the host's descriptor shows `events`; False when the
        time was over.

        :raises OSError: EAGAIN for a non-blocking file, EINTR, ERESTART
        """
        self.f_moves += 1
        if host_poll(self.f_hostfd, events):
            return True
        if self.f_flag & O_NONBLOCK:
            raise err(EAGAIN)
        self.fhold()
        try:
            error = self.f_table.sched.waitfd(self.f_hostfd, events, PCATCH, "hostfd", timeout_ns)
        finally:
            self.fdrop()
        if error == EAGAIN:
            return False
        if error:
            raise err(error)
        return True

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        fd = self.f_hostfd
        if not self.f_blocks:
            self._read_all(uio)
            return
        while uio.uio_resid:
            self.wait(POLLIN)
            try:
                data = os.read(fd, min(uio.uio_resid, _STREAM_CHUNK))
            except BlockingIOError:  # somebody else on the host took it first
                continue
            uiogive(data, uio)
            return

    def _read_all(self, uio: Uio) -> None:
        """Read a file that gives all that there is, at the position that it has on the host."""
        wanted = uio.uio_resid
        while uio.uio_resid:
            left = uio.uio_resid
            data = os.read(self.f_hostfd, min(left, _CHUNK))
            if not data:
                return
            try:
                uiomove(data, uio)
            except OSError:
                os.lseek(self.f_hostfd, left - uio.uio_resid - len(data), os.SEEK_CUR)
                if uio.uio_resid == wanted:
                    raise
                return

    def fo_pread(self, lwp: Lwp, uio: Uio, offset: int) -> None:
        if self.f_blocks:
            raise err(ESPIPE)
        wanted = uio.uio_resid
        try:
            while uio.uio_resid:
                data = os.pread(self.f_hostfd, min(uio.uio_resid, _CHUNK), offset)
                if not data:
                    return
                uiomove(data, uio)
                offset += len(data)
        except OSError:
            if uio.uio_resid == wanted:
                raise

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        wanted = uio.uio_resid
        while uio.uio_resid:
            left = uio.uio_resid
            try:
                data = uioread(uio, min(left, _PIPE_BUF if self.f_blocks else _CHUNK))
                done = self._put(data)
            except OSError as exc:
                uio.uio_resid = left  # nothing of this piece was written
                if exc.errno == EPIPE:
                    signal_self(lwp, SIGPIPE)
                if left == wanted:
                    raise
                return
            if done < len(data):
                uio.uio_resid = left - done
                return

    def _put(self, data: bytes) -> int:
        while True:
            if self.f_blocks:
                self.wait(POLLOUT)
            try:
                return os.write(self.f_hostfd, data)
            except BlockingIOError:  # somebody else on the host filled it first
                continue

    def fo_pwrite(self, lwp: Lwp, uio: Uio, offset: int) -> None:
        if self.f_blocks:
            raise err(ESPIPE)
        while uio.uio_resid:
            left = uio.uio_resid
            done = os.pwrite(self.f_hostfd, uioread(uio, min(left, _CHUNK)), offset)
            uio.uio_resid = left - done
            offset += done

    def fo_seek(self, lwp: Lwp, offset: int, whence: int) -> int:
        if whence > _SEEK_MAX or not -OFF_MAX <= offset <= OFF_MAX:
            raise err(EINVAL)
        return os.lseek(self.f_hostfd, offset, whence)

    # -- the rest -------------------------------------------------------------------------------

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        if cmd != FIONREAD:
            raise err(ENOTTY)
        from fcntl import ioctl

        answer = ioctl(self.f_hostfd, FIONREAD, bytes(4))
        copyout(lwp.lwp_proc.p_vmspace, answer, arg)
        return 0

    def fo_poll(self) -> int:
        if not self.f_blocks:
            return POLL_READABLE | POLL_WRITABLE
        got = host_poll(self.f_hostfd, POLLIN | POLLOUT)
        events = got & ~(POLLIN | POLLOUT)
        if got & POLLIN and self.f_mode & FREAD:
            events |= POLL_READABLE
        if got & POLLOUT and self.f_mode & FWRITE:
            events |= POLL_WRITABLE
        return events

    def is_fifo(self) -> bool:
        """Whether it is a pipe of the host."""
        return stat.S_ISFIFO(os.fstat(self.f_hostfd).st_mode)

    def fo_hostfd(self) -> int:
        return self.f_hostfd if self.f_blocks else -1

    def fo_stat(self, lwp: Lwp) -> Vattr:
        st = os.fstat(self.f_hostfd)
        va = Vattr()
        va.va_type = IFTOVT.get(st.st_mode & S_IFMT, VFIFO)
        va.va_mode = st.st_mode & 0o7777
        va.va_nlink = st.st_nlink
        va.va_uid = st.st_uid
        va.va_gid = st.st_gid
        va.va_fsid = st.st_dev
        va.va_fileid = st.st_ino
        va.va_rdev = st.st_rdev
        va.va_size = st.st_size
        va.va_blksize = st.st_blksize
        va.va_bytes = st.st_blocks * 512
        va.va_atime = st.st_atime_ns
        va.va_mtime = st.st_mtime_ns
        va.va_ctime = st.st_ctime_ns
        va.va_birthtime = None
        return va

    def fo_setfl(self, flag: int) -> None:
        pass

    def fo_name(self) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{self.f_hostfd}")
        except OSError:
            return f"host:[{self.f_hostfd}]"

    def fo_reopen(self, lwp: Lwp, flag: int) -> File:
        # The same open file of the host under another name: what is shared stays shared.
        return type(self)(self.f_table, self.f_hostfd, flag)


def host_poll(fd: int, events: int) -> int:
    """Which of `events` (and errors) the host's `fd` shows now."""
    from select import poll

    poller = poll()
    poller.register(fd, events)
    for _, got in poller.poll(0):
        return got
    return 0


class InputFile(File):
    """Standard input given as bytes: behaves as a pipe whose writer has written and gone."""

    __slots__ = ("f_data",)

    f_splice = FREAD
    f_seekable = False

    f_data: memoryview  # what has not been read

    def __init__(self, table: FileTable, data: bytes) -> None:
        super().__init__(table, O_RDONLY)
        self.f_data = memoryview(data)

    def fo_read(self, lwp: Lwp, uio: Uio) -> None:
        n = min(uio.uio_resid, len(self.f_data))
        if n:
            self.f_data = self.f_data[uiogive(self.f_data[:n], uio) :]

    def fo_ioctl(self, lwp: Lwp, cmd: int, arg: int) -> int:
        if cmd != FIONREAD:
            raise err(ENOTTY)
        copyout(lwp.lwp_proc.p_vmspace, pack("<i", len(self.f_data)), arg)
        return 0

    def fo_poll(self) -> int:
        return (POLL_READABLE if self.f_data else 0) | POLLHUP

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return anon_attr(VFIFO)

    def fo_name(self) -> str:
        return "pipe:[stdin]"

    def fo_reopen(self, lwp: Lwp, flag: int) -> File:
        new = InputFile(self.f_table, b"")
        new.f_data = self.f_data
        return new


class OutputFile(File):
    """Standard output or error collected for the embedding program."""

    __slots__ = ("f_sink",)

    f_splice = FWRITE
    f_seekable = False

    f_sink: bytearray  # shared by all files on the same stream

    def __init__(self, table: FileTable, sink: bytearray) -> None:
        super().__init__(table, O_WRONLY)
        self.f_sink = sink

    def fo_write(self, lwp: Lwp, uio: Uio) -> None:
        while uio.uio_resid:
            self.f_sink += uioread(uio, min(uio.uio_resid, _CHUNK))

    def fo_poll(self) -> int:
        return POLL_WRITABLE

    def fo_stat(self, lwp: Lwp) -> Vattr:
        return anon_attr(VFIFO)

    def fo_name(self) -> str:
        return "pipe:[stdout]"

    def fo_reopen(self, lwp: Lwp, flag: int) -> File:
        return OutputFile(self.f_table, self.f_sink)


def reserve_stdio() -> None:
    """Have a placeholder in each of descriptors 0 to 2 that was closed when this process was
    started. Otherwise a file that is opened for the machine would get the number, and programs
    would have it for their standard input or output."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/", os.O_PATH)  # gets the lowest number that is free


def host_stdio(table: FileTable, fd: int) -> File | None:
    """The guest's file for descriptor `fd` of the host; None when it is not open there, or a
    placeholder. Nothing is done to it: it stays open, and keeps its flags."""
    from fcntl import F_GETFL, fcntl

    try:
        flag = fcntl(fd, F_GETFL)
    except OSError:
        return None
    if flag & os.O_PATH:
        return None
    flag &= O_ACCMODE | O_APPEND | O_NONBLOCK
    if os.isatty(fd):
        from dfvm.kern.tty import HostTtyFile

        return HostTtyFile(table, fd, flag)
    return HostFile(table, fd, flag)
