"""splice, tee, vmsplice and sendfile: moving data between pipes and files without the program
touching it.

Between two pipes whole pages change hands; everything else is copied once, between a pipe's page
and the file. The bytes that vmsplice puts into a pipe are those of the moment of the call.

A pipe is locked as long as something moves through it, as for read and write. A pipe of the host
(a standard stream) can't be peeked into or filled in place, so its data go through a buffer.

Behaviour of Linux fs/splice.c.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s64, u32
from dfvm.kern.host_file import HostFile
from dfvm.kern.kern_descrip import (
    O_APPEND,
    O_NOATIME,
    O_NONBLOCK,
    holding,
    holding_both,
    signal_self,
)
from dfvm.kern.kern_errno import EAGAIN, EBADF, EINVAL, EPIPE, ESPIPE, err
from dfvm.kern.kern_event import POLLIN
from dfvm.kern.kern_sig import SIGPIPE
from dfvm.kern.sys_generic import MAX_RW_COUNT, user_iov
from dfvm.kern.sys_pipe import PipeBuf, PipeFile
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, IN_ACCESS, VREG
from dfvm.kern.vfs_storage import copy_file, user_off
from dfvm.kern.vnode_file import SEEK_CUR, SEEK_SET, VnodeFile
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import UIO_READ, UIO_WRITE, Uio, copyout, suword64, uiomove
from dfvm.vm.vm_param import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfvm.kern.kern_descrip import File
    from dfvm.kern.proc import Lwp
    from dfvm.kern.sys_pipe import Pipe

_SPLICE_F_NONBLOCK: Final = 2
_SPLICE_F_ALL: Final = 15  # MOVE, NONBLOCK, MORE, GIFT

_BOUNCE: Final = 1 << 16  # most bytes moved through a buffer in one call


# -- waiting ------------------------------------------------------------------------------------
# Both return with the pipe's lock held, or raise without it.


def _lock_for_data(pipe: Pipe, nonblock: bool) -> bool:
    """Wait until there is something to read, and lock. False, and no lock, at the end of file.

    :raises OSError: EAGAIN, EINTR, ERESTART
    """
    sched = pipe.pi_table.sched
    while True:
        pipe.lock()
        if pipe.pi_bufs:
            return True
        pipe.unlock()
        if not pipe.pi_writers:
            return False
        if nonblock:
            raise err(EAGAIN)
        error = sched.tsleep(pipe.pi_rwait, PCATCH, "splice")
        if error:
            raise err(error)


def _lock_for_room(lwp: Lwp, pipe: Pipe, nonblock: bool) -> None:
    """Wait until a page may be put in, and lock.

    :raises OSError: EPIPE, EAGAIN, EINTR, ERESTART
    """
    sched = pipe.pi_table.sched
    while True:
        pipe.lock()
        if pipe.pi_readers and len(pipe.pi_bufs) < pipe.pi_slots:
            return
        pipe.unlock()
        if not pipe.pi_readers:
            signal_self(lwp, SIGPIPE)
            raise err(EPIPE)
        if nonblock:
            raise err(EAGAIN)
        error = sched.tsleep(pipe.pi_wwait, PCATCH, "splice")
        if error:
            raise err(error)


# -- a pipe and something else ------------------------------------------------------------------


def _drain(pipe: Pipe, count: int, nonblock: bool, put: Callable[[Uio], None]) -> int:
    """Wait for data and hand what is there, at most `count` bytes, to `put` page by page, until
    it takes less than it was given. Returns how many it took. May block.

    :raises OSError: when nothing was taken
    """
    if not _lock_for_data(pipe, nonblock):
        return 0
    mem = pipe.pi_table.vm.ram.mem
    done = 0
    try:
        while pipe.pi_bufs and done < count:
            buf = pipe.pi_bufs[0]
            at = buf.pb_pa + buf.pb_off
            n = min(buf.pb_len, count - done)
            uio = Uio(None, [mem[at : at + n]], UIO_WRITE)
            try:
                put(uio)
            except OSError:
                if not done:
                    raise
                break
            moved = n - uio.uio_resid
            pipe.consumed(moved)
            done += moved
            if moved < n:
                break
    finally:
        pipe.unlock()
        if done:
            pipe.drained()
    return done


def _pieces(at: int, count: int) -> Iterator[int]:
    """How `count` bytes from address or offset `at` on are divided up by page boundaries."""
    while count:
        n = min(count, PAGE_SIZE - at % PAGE_SIZE)
        yield n
        at += n
        count -= n


def _fill(
    lwp: Lwp, pipe: Pipe, pieces: Iterator[int], nonblock: bool, get: Callable[[Uio], None]
) -> int:
    """Wait for room and let `get` fill fresh pages, once, with as many `pieces` of these sizes as
    fit; they go into the pipe. Returns how many bytes. May block.

    On Linux the pipe gets the pages of the file or of memory themselves. So the sizes are what
    these have of the data, and the first has less than a page.

    :raises OSError: when nothing was put in
    """
    _lock_for_room(lwp, pipe, nonblock)
    mem = pipe.pi_table.vm.ram.mem
    pages: list[int] = []
    done = used = 0
    try:
        views = []
        for size in islice(pieces, pipe.pi_slots - len(pipe.pi_bufs)):
            pa = pipe.pi_pages.get()
            pages.append(pa)
            views.append(mem[pa : pa + size])
        uio = Uio(None, views, UIO_READ)
        count = uio.uio_resid
        get(uio)
        left = done = count - uio.uio_resid
        while left:
            size = min(left, len(views[used]))
            pipe.pi_bufs.append(PipeBuf(pages[used], 0, size, False))
            left -= size
            used += 1
    finally:
        for pa in pages[used:]:
            pipe.pi_pages.put(pa)
        pipe.unlock()
        if done:
            pipe.filled()
    return done


# -- two pipes ----------------------------------------------------------------------------------


def _pipe_to_pipe(
    lwp: Lwp, source: Pipe, sink: Pipe, count: int, nonblock: bool, keep: bool
) -> int:
    """Move what is there, or with `keep` copy it, at most `count` bytes and as much as fits,
    after waiting for the first byte and for room. Returns how many. May block.

    :raises OSError: EPIPE, EAGAIN, ENOMEM, EINTR, ERESTART
    """
    first, second = (source, sink) if source.pi_serial < sink.pi_serial else (sink, source)
    while True:
        if not _lock_for_data(source, nonblock):
            return 0
        source.unlock()
        _lock_for_room(lwp, sink, nonblock)
        sink.unlock()
        first.lock()
        second.lock()
        done = 0
        try:
            if sink.pi_readers:  # what was waited for may be gone again
                done = _copy_slots(source, sink, count) if keep else _move(source, sink, count)
        finally:
            second.unlock()
            first.unlock()
        if done:
            if not keep:
                source.drained()
            sink.filled()
            return done


def _move(source: Pipe, sink: Pipe, count: int) -> int:
    """Move up to `count` bytes, as far as `sink` has slots: whole pages change hands, what is
    wanted of the last one is copied. Returns the bytes moved. Both pipes are locked."""
    bufs = source.pi_bufs
    left = count
    while left and bufs and len(sink.pi_bufs) < sink.pi_slots:
        buf = bufs[0]
        if buf.pb_len <= left:
            sink.pi_bufs.append(bufs.popleft())
            left -= buf.pb_len
        else:
            copy = _copy_slot(sink, buf, left, left == count)
            if copy is None:
                break
            sink.pi_bufs.append(copy)
            source.consumed(left)
            left = 0
    return count - left


def _copy_slots(source: Pipe, sink: Pipe, count: int) -> int:
    """The same for tee: everything is copied, and stays in `source`."""
    left = count
    for buf in source.pi_bufs:
        if not left or len(sink.pi_bufs) >= sink.pi_slots:
            break
        copy = _copy_slot(sink, buf, left, left == count)
        if copy is None:
            break
        sink.pi_bufs.append(copy)
        left -= copy.pb_len
    return count - left


def _copy_slot(sink: Pipe, buf: PipeBuf, most: int, first: bool) -> PipeBuf | None:
    """A page of `sink`'s own with the first bytes of `buf`, `most` at most. None: there is no
    page, which is an error for the `first` one only."""
    n = min(buf.pb_len, most)
    try:
        pa = sink.pi_pages.get()
    except OSError:
        if first:
            raise
        return None
    mem = sink.pi_table.vm.ram.mem
    at = buf.pb_pa + buf.pb_off
    mem[pa : pa + n] = mem[at : at + n]
    return PipeBuf(pa, 0, n, buf.pb_packet)


# -- system calls -------------------------------------------------------------------------------


def _is_pipe(fp: File) -> bool:
    """A pipe of ours, or of the host's."""
    return isinstance(fp, PipeFile) or (isinstance(fp, HostFile) and fp.is_fifo())


def _splices(fp: File) -> int:
    """Whether data may be moved from the file (FREAD) and to it (FWRITE)."""
    vp = fp.f_vnode
    return fp.f_splice if vp is None else vp.splices()


def _bounce(count: int, get: Callable[[Uio], None], put: Callable[[Uio], None]) -> int:
    """From or to a pipe of the host. What was read and can't be written is lost."""
    buffer = memoryview(bytearray(min(count, _BOUNCE)))
    uio = Uio(None, [buffer], UIO_READ)
    get(uio)
    n = len(buffer) - uio.uio_resid
    uio = Uio(None, [buffer[:n]], UIO_WRITE)
    while uio.uio_resid:
        left = uio.uio_resid
        put(uio)
        if uio.uio_resid == left:
            break
    return n - uio.uio_resid


def _check_files(ifp: File, ofp: File, in_off: int | None, out_off: int | None, count: int) -> None:
    """One end is a pipe; the other is something that splice knows to handle.

    :raises OSError: EBADF, EINVAL
    """
    if not ifp.f_mode & FREAD or not ofp.f_mode & FWRITE:
        raise err(EBADF)
    if not (_is_pipe(ifp) or _is_pipe(ofp)) or s64(count) < 0:
        raise err(EINVAL)
    for fp, off, way in ((ifp, in_off, FREAD), (ofp, out_off, FWRITE)):
        if _is_pipe(fp):
            continue
        if not _splices(fp) & way:
            raise err(EINVAL)
        if off is not None and (off < 0 or not fp.f_seekable):
            raise err(EINVAL)
    if ofp.f_flag & O_APPEND and not _is_pipe(ofp):
        raise err(EINVAL)


def sys_splice(
    lwp: Lwp, in_fd: int, uinoff: int, out_fd: int, uoutoff: int, count: int, flags: int
) -> int:
    """splice(2)"""
    if not count:
        return 0
    flags = u32(flags)
    if flags & ~_SPLICE_F_ALL:
        raise err(EINVAL)
    p = lwp.lwp_proc
    ifp, ofp = p.p_fd.fget(in_fd), p.p_fd.fget(out_fd)
    if (uinoff and _is_pipe(ifp)) or (uoutoff and _is_pipe(ofp)):
        raise err(ESPIPE)
    return holding_both(ifp, ofp, _splice_files, lwp, ifp, uinoff, ofp, uoutoff, count, flags)


def _splice_files(
    lwp: Lwp, ifp: File, uinoff: int, ofp: File, uoutoff: int, count: int, flags: int
) -> int:
    """splice(2) with both files held."""
    out_off, in_off = user_off(lwp, uoutoff), user_off(lwp, uinoff)
    _check_files(ifp, ofp, in_off, out_off, count)
    done = _splice(lwp, ifp, in_off, ofp, out_off, min(count, MAX_RW_COUNT), flags)
    for uoff, off in ((uoutoff, out_off), (uinoff, in_off)):
        if off is not None:
            copyout(lwp.lwp_proc.p_vmspace, (off + done).to_bytes(8, "little"), uoff)
    return done


def _splice(
    lwp: Lwp, ifp: File, in_off: int | None, ofp: File, out_off: int | None, count: int, flags: int
) -> int:
    """splice(2) with both files held and the offsets read: which of the ways it goes."""
    nonblock = bool(flags & _SPLICE_F_NONBLOCK)
    at = out_off

    def get(uio: Uio) -> None:
        if in_off is None:
            ifp.fo_read(lwp, uio)
        else:
            ifp.fo_pread(lwp, uio, in_off)

    def put(uio: Uio) -> None:
        nonlocal at
        if at is None:
            ofp.fo_write(lwp, uio)
        else:
            n = uio.uio_resid
            ofp.fo_pwrite(lwp, uio, at)
            at += n - uio.uio_resid

    if isinstance(ifp, PipeFile):
        nonblock = nonblock or bool(ifp.f_flag & O_NONBLOCK)
        if isinstance(ofp, PipeFile):
            if ifp.f_pipe is ofp.f_pipe:
                raise err(EINVAL)
            nonblock = nonblock or bool(ofp.f_flag & O_NONBLOCK)
            return _pipe_to_pipe(lwp, ifp.f_pipe, ofp.f_pipe, count, nonblock, False)
        return _drain(ifp.f_pipe, count, nonblock, put)
    if isinstance(ifp, HostFile) and ifp.is_fifo():
        if nonblock and not ifp.fo_poll() & POLLIN:
            raise err(EAGAIN)
        ifp.wait(POLLIN)  # here, where no lock is held
    if isinstance(ofp, PipeFile):
        vp, off = ifp.f_vnode, ifp.f_offset if in_off is None else in_off
        pieces = _pieces(off if vp is not None and vp.v_type == VREG else 0, count)
        nonblock = nonblock or bool(ofp.f_flag & O_NONBLOCK)
        return _fill(lwp, ofp.f_pipe, pieces, nonblock, get)
    return _bounce(count, get, put)


def sys_sendfile(lwp: Lwp, out_fd: int, in_fd: int, uoff: int, count: int) -> int:
    """sendfile(2): into a pipe as much as there is room for, anywhere else all there is"""
    p = lwp.lwp_proc
    off = user_off(lwp, uoff)
    ifp, ofp = p.p_fd.fget(in_fd), p.p_fd.fget(out_fd)
    if not ifp.f_mode & FREAD:
        raise err(EBADF)
    if off is not None and not isinstance(ifp, VnodeFile | HostFile):
        raise err(ESPIPE)
    if s64(count) < 0 or (off is not None and off < 0):
        raise err(EINVAL)
    if not ofp.f_mode & FWRITE:
        raise err(EBADF)
    count = min(count, MAX_RW_COUNT)
    done = holding_both(ifp, ofp, _sendfile, lwp, ifp, off, ofp, count)
    if off is not None:
        suword64(p.p_vmspace, uoff, off + done)
    return done


def _sendfile(lwp: Lwp, ifp: File, off: int | None, ofp: File, count: int) -> int:
    """sendfile(2) with both files held and the offset read."""
    if _is_pipe(ofp):
        if not count:
            return 0
        if _is_pipe(ifp) or not _splices(ifp) & FREAD:
            raise err(EINVAL)
        flags = _SPLICE_F_NONBLOCK if ifp.f_flag & O_NONBLOCK else 0
        return _splice(lwp, ifp, off, ofp, None, count, flags)
    if ofp.f_flag & O_APPEND or not ifp.f_seekable:
        raise err(EINVAL)
    if not count:
        return 0
    if not _splices(ifp) & FREAD or not _splices(ofp) & FWRITE:
        raise err(EINVAL)
    vp = ifp.f_vnode
    at = ifp.fo_seek(lwp, 0, SEEK_CUR) if off is None else off

    def get(uio: Uio, done: int) -> None:
        if vp is None:
            ifp.fo_pread(lwp, uio, at + done)
        else:
            vp.read(uio, at + done, 0)

    done = copy_file(lwp, get, count, lambda uio, _: ofp.fo_write(lwp, uio))
    if vp is not None:
        if not ifp.f_flag & O_NOATIME:
            vp.vop_accessed()
        if done:
            vp.event(IN_ACCESS)
    if off is None:
        ifp.fo_seek(lwp, at + done, SEEK_SET)
    return done


def sys_tee(lwp: Lwp, in_fd: int, out_fd: int, count: int, flags: int) -> int:
    """tee(2); not with pipes of the host, whose data can't be read and left there"""
    flags = u32(flags)
    if flags & ~_SPLICE_F_ALL:
        raise err(EINVAL)
    if not count:
        return 0
    fdp = lwp.lwp_proc.p_fd
    ifp, ofp = fdp.fget(in_fd), fdp.fget(out_fd)
    if not ifp.f_mode & FREAD or not ofp.f_mode & FWRITE:
        raise err(EBADF)
    if not isinstance(ifp, PipeFile) or not isinstance(ofp, PipeFile) or ifp.f_pipe is ofp.f_pipe:
        raise err(EINVAL)
    nonblock = bool((ifp.f_flag | ofp.f_flag) & O_NONBLOCK or flags & _SPLICE_F_NONBLOCK)
    pipes = (ifp.f_pipe, ofp.f_pipe)
    return holding_both(ifp, ofp, _pipe_to_pipe, lwp, *pipes, count, nonblock, True)


def sys_vmsplice(lwp: Lwp, fd: int, uiov: int, vlen: int, flags: int) -> int:
    """vmsplice(2): into a pipe as much as there is room for, or out of one"""
    flags = u32(flags)
    if flags & ~_SPLICE_F_ALL:
        raise err(EINVAL)
    fp = lwp.lwp_proc.p_fd.fget(fd)
    return holding(fp, _vmsplice, lwp, fp, uiov, vlen, flags)


def _vmsplice(lwp: Lwp, fp: File, uiov: int, vlen: int, flags: int) -> int:
    """vmsplice(2) with the file held."""
    reads = not fp.f_mode & FWRITE
    iov = user_iov(lwp, uiov, vlen)
    uio = Uio(lwp.lwp_proc.p_vmspace, iov, UIO_READ if reads else UIO_WRITE)
    count = uio.uio_resid
    if not count:
        return 0
    if not isinstance(fp, PipeFile):
        raise err(EBADF)
    nonblock = bool(flags & _SPLICE_F_NONBLOCK)
    if reads:
        return _drain(fp.f_pipe, count, nonblock, lambda data: _between(data, uio))
    pieces = chain.from_iterable(_pieces(addr, n) for addr, n in iov)
    return _fill(lwp, fp.f_pipe, pieces, nonblock, lambda data: _between(data, uio))


def _between(data: Uio, user: Uio) -> None:
    """From or to the pipe's pages as far as the user's memory can be reached."""
    wanted = data.uio_resid
    while data.uio_resid:
        piece = data.piece(data.uio_resid)
        left = user.uio_resid
        try:
            uiomove(piece, user)
        except OSError:
            data.advance(left - user.uio_resid)
            if data.uio_resid == wanted:
                raise
            return
        data.advance(len(piece))
