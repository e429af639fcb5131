"""System calls that work on any open file: transfers, ioctl, and waiting with poll and select.

Behaviour of Linux fs/read_write.c, fs/select.c and fs/ioctl.c; structure of DragonFly
sys/kern/sys_generic.c.
"""

from __future__ import annotations

from array import array
from struct import iter_unpack, unpack_from
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, s64, u32
from dfvm.kern.abi.linux.linux_struct import NS
from dfvm.kern.kern_descrip import FASYNC, FPATH, O_NONBLOCK, File, holding, nofile
from dfvm.kern.kern_errno import (
    EAGAIN,
    EBADF,
    EFAULT,
    EINTR,
    EINVAL,
    ENOTTY,
    EOPNOTSUPP,
    ERESTART,
    ESPIPE,
    EWOULDBLOCK,
    err,
)  # fmt: skip
from dfvm.kern.kern_event import (
    POLL_ALWAYS,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLNVAL,
    POLLOUT,
    POLLPRI,
    POLLRDBAND,
    POLLRDNORM,
    POLLWRBAND,
    POLLWRNORM,
    Knote,
)  # fmt: skip
from dfvm.kern.kern_sig import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    restore_user_sigmask,
    set_user_sigmask,
    signal_pending,
)  # fmt: skip
from dfvm.kern.sys_sigio import set_async
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE
from dfvm.kern.vnode_file import SEEK_HOLE, VnodeFile
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import UIO_READ, UIO_WRITE, Uio, copyin, copyout

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.lwkt.lwkt_thread import Scheduler
    from dfvm.vm.vmspace import Vmspace

IOV_MAX: Final = 1024
MAX_RW_COUNT: Final = 0x7FFF_F000  # a transfer moves at most this much
_USER_MAX: Final = 0x7FFF_FFFF_F000

_RWF_HIPRI: Final = 1
_RWF_DSYNC: Final = 2
_RWF_SYNC: Final = 4
_RWF_NOWAIT: Final = 8
_RWF_APPEND: Final = 16
_RWF_NOAPPEND: Final = 32
_RWF_KNOWN: Final = (
    _RWF_HIPRI | _RWF_DSYNC | _RWF_SYNC | _RWF_NOWAIT | _RWF_APPEND | _RWF_NOAPPEND
)  # fmt: skip

FIONBIO: Final = 0x5421
FIONCLEX: Final = 0x5450
FIOASYNC: Final = 0x5452
FIOCLEX: Final = 0x5451


# -- transfers ----------------------------------------------------------------------------------


def user_range(buf: int, count: int) -> int:
    """Check that a user range lies in user space, as Linux does before anything else, and limit
    its length.

    :raises OSError: EFAULT
    """
    if buf + count > _USER_MAX:
        raise err(EFAULT)
    return count if count < MAX_RW_COUNT else MAX_RW_COUNT


def _range(fp: File, mode: int, buf: int, count: int) -> int:
    """user_range, for a transfer of `fp`: what no such file can do is EINVAL first.

    :raises OSError: EINVAL, EFAULT
    """
    if buf + count > _USER_MAX:
        _check_transfers(fp, mode)
        raise err(EFAULT)
    return count if count < MAX_RW_COUNT else MAX_RW_COUNT


def _check_transfers(fp: File, mode: int) -> None:
    """Check that files of this kind can be read (FREAD) or written.

    :raises OSError: EINVAL
    """
    kind = type(fp)
    if kind.fo_read is File.fo_read if mode == FREAD else kind.fo_write is File.fo_write:
        raise err(EINVAL)


def _file(lwp: Lwp, fd: int, mode: int) -> File:
    """The open file `fd`, which allows `mode` (FREAD or FWRITE).

    :raises OSError: EBADF
    """
    fp = lwp.lwp_proc.p_fd.fd_files.get(fd & 0xFFFFFFFF)
    if fp is None or not fp.f_mode & mode:
        raise err(EBADF)
    return fp


def sys_read(lwp: Lwp, fd: int, buf: int, count: int) -> int:
    """read(2)"""
    p = lwp.lwp_proc
    fdp = p.p_fd
    fp = fdp.fd_files.get(fd & 0xFFFFFFFF)
    if fp is None or not fp.f_mode & FREAD:
        raise err(EBADF)
    count = _range(fp, FREAD, buf, count)
    uio = Uio(p.p_vmspace, [(buf, count)], UIO_READ)
    if fdp.fd_refcnt == 1:
        fp.fo_read(lwp, uio)
    else:
        holding(fp, fp.fo_read, lwp, uio)
    return count - uio.uio_resid


def sys_write(lwp: Lwp, fd: int, buf: int, count: int) -> int:
    """write(2)"""
    p = lwp.lwp_proc
    fdp = p.p_fd
    fp = fdp.fd_files.get(fd & 0xFFFFFFFF)
    if fp is None or not fp.f_mode & FWRITE:
        raise err(EBADF)
    count = _range(fp, FWRITE, buf, count)
    uio = Uio(p.p_vmspace, [(buf, count)], UIO_WRITE)
    if fdp.fd_refcnt == 1:
        fp.fo_write(lwp, uio)
    else:
        holding(fp, fp.fo_write, lwp, uio)
    return count - uio.uio_resid


def _pos(lwp: Lwp, fd: int, pos: int, mode: int) -> tuple[File, int]:
    """File and offset of a pread or pwrite.

    :raises OSError: EINVAL, EBADF, ESPIPE
    """
    pos = s64(pos)
    if pos < 0:
        raise err(EINVAL)
    fp = lwp.lwp_proc.p_fd.fget(fd)
    if not fp.f_preads:
        raise err(ESPIPE)
    if not fp.f_mode & mode:
        raise err(EBADF)
    return fp, pos


def sys_pread64(lwp: Lwp, fd: int, buf: int, count: int, pos: int) -> int:
    """pread(2)"""
    fp, off = _pos(lwp, fd, pos, FREAD)
    count = _range(fp, FREAD, buf, count)
    uio = Uio(lwp.lwp_proc.p_vmspace, [(buf, count)], UIO_READ)
    if lwp.lwp_proc.p_fd.fd_refcnt == 1:
        fp.fo_pread(lwp, uio, off)
    else:
        holding(fp, fp.fo_pread, lwp, uio, off)
    return count - uio.uio_resid


def sys_pwrite64(lwp: Lwp, fd: int, buf: int, count: int, pos: int) -> int:
    """pwrite(2)"""
    fp, off = _pos(lwp, fd, pos, FWRITE)
    count = _range(fp, FWRITE, buf, count)
    uio = Uio(lwp.lwp_proc.p_vmspace, [(buf, count)], UIO_WRITE)
    if lwp.lwp_proc.p_fd.fd_refcnt == 1:
        fp.fo_pwrite(lwp, uio, off)
    else:
        holding(fp, fp.fo_pwrite, lwp, uio, off)
    return count - uio.uio_resid


def user_iov(lwp: Lwp, vec: int, vlen: int) -> list[tuple[int, int]]:
    """The user's iovec, checked: all of it in user space, no negative length, cut to what one
    transfer may move.

    :raises OSError: EINVAL, EFAULT
    """
    if vlen > IOV_MAX:
        raise err(EINVAL)
    raw = copyin(lwp.lwp_proc.p_vmspace, vec, 16 * vlen) if vlen else b""
    words = unpack_from(f"<{2 * vlen}Q", raw)
    if any(length >> 63 for length in words[1::2]):
        raise err(EINVAL)
    iov: list[tuple[int, int]] = []
    left = MAX_RW_COUNT
    for base, length in zip(words[::2], words[1::2], strict=True):
        if base + length > _USER_MAX:
            raise err(EFAULT)
        length = min(length, left)
        left -= length
        iov.append((base, length))
    return iov


def sys_readv(lwp: Lwp, fd: int, vec: int, vlen: int) -> int:
    """readv(2)"""
    fp = _file(lwp, fd, FREAD)
    return holding(fp, _transferv, lwp, fp, vec, vlen, UIO_READ, None)


def sys_writev(lwp: Lwp, fd: int, vec: int, vlen: int) -> int:
    """writev(2)"""
    fp = _file(lwp, fd, FWRITE)
    return holding(fp, _transferv, lwp, fp, vec, vlen, UIO_WRITE, None)


def _transferv(lwp: Lwp, fp: File, vec: int, vlen: int, rw: int, off: int | None) -> int:
    uio = _uiov(lwp, fp, vec, vlen, rw)
    count = uio.uio_resid
    if count:
        _move(lwp, fp, uio, off)
    return count - uio.uio_resid


def _move(lwp: Lwp, fp: File, uio: Uio, off: int | None) -> None:
    """Read or write at `off`; None: at f_offset."""
    if uio.rw == UIO_READ:
        if off is None:
            fp.fo_read(lwp, uio)
        else:
            fp.fo_pread(lwp, uio, off)
    elif off is None:
        fp.fo_write(lwp, uio)
    else:
        fp.fo_pwrite(lwp, uio, off)


def _uiov(lwp: Lwp, fp: File, vec: int, vlen: int, rw: int) -> Uio:
    """The user's buffers for a transfer of `fp`.

    :raises OSError: EINVAL, EFAULT
    """
    _check_transfers(fp, FREAD if rw == UIO_READ else FWRITE)
    return Uio(lwp.lwp_proc.p_vmspace, user_iov(lwp, vec, vlen), rw)


def sys_preadv(lwp: Lwp, fd: int, vec: int, vlen: int, pos: int, pos_high: int) -> int:
    """preadv(2); the high half of the offset is for 32-bit machines"""
    fp, off = _pos(lwp, fd, pos, FREAD)
    return holding(fp, _transferv, lwp, fp, vec, vlen, UIO_READ, off)


def sys_pwritev(lwp: Lwp, fd: int, vec: int, vlen: int, pos: int, pos_high: int) -> int:
    """pwritev(2)"""
    fp, off = _pos(lwp, fd, pos, FWRITE)
    return holding(fp, _transferv, lwp, fp, vec, vlen, UIO_WRITE, off)


def sys_preadv2(lwp: Lwp, fd: int, vec: int, vlen: int, pos: int, pos_high: int, flags: int) -> int:
    """preadv2(2)"""
    return _transferv2(lwp, fd, vec, vlen, pos, flags, UIO_READ)


def sys_pwritev2(
    lwp: Lwp, fd: int, vec: int, vlen: int, pos: int, pos_high: int, flags: int
) -> int:
    """pwritev2(2)"""
    return _transferv2(lwp, fd, vec, vlen, pos, flags, UIO_WRITE)


def _transferv2(lwp: Lwp, fd: int, vec: int, vlen: int, pos: int, flags: int, rw: int) -> int:
    flags = u32(flags)
    mode = FREAD if rw == UIO_READ else FWRITE
    off: int | None = None
    if s64(pos) == -1:
        fp = _file(lwp, fd, mode)
    else:
        fp, off = _pos(lwp, fd, pos, mode)
    return holding(fp, _transferv_flags, lwp, fp, vec, vlen, off, flags, rw)


def _transferv_flags(
    lwp: Lwp, fp: File, vec: int, vlen: int, off: int | None, flags: int, rw: int
) -> int:
    uio = _uiov(lwp, fp, vec, vlen, rw)
    moved = uio.uio_resid
    if not moved:
        return 0
    if flags & ~_RWF_KNOWN:
        raise err(EOPNOTSUPP)
    if flags & _RWF_APPEND and flags & _RWF_NOAPPEND:
        raise err(EINVAL)
    if flags & _RWF_NOWAIT and not fp.fo_poll() & (POLLIN if rw == UIO_READ else POLLOUT):
        raise err(EAGAIN)
    vp = fp.f_vnode
    if flags & (_RWF_APPEND | _RWF_NOAPPEND) and rw == UIO_WRITE and isinstance(fp, VnodeFile):
        fp.write_append(lwp, uio, off, bool(flags & _RWF_APPEND))
    else:
        _move(lwp, fp, uio, off)
    moved -= uio.uio_resid
    if flags & (_RWF_DSYNC | _RWF_SYNC) and vp is not None and rw == UIO_WRITE:
        vp.fsync()
    return moved


def sys_lseek(lwp: Lwp, fd: int, offset: int, whence: int) -> int:
    """lseek(2)"""
    fp = lwp.lwp_proc.p_fd.fget(fd)
    whence = u32(whence)
    if whence > SEEK_HOLE:
        raise err(EINVAL)
    return fp.fo_seek(lwp, s64(offset), whence)


def sys_ioctl(lwp: Lwp, fd: int, cmd: int, arg: int) -> int:
    """ioctl(2)"""
    p = lwp.lwp_proc
    fp = p.p_fd.fget(fd)
    cmd = u32(cmd)
    if cmd == FIOCLEX:
        p.p_fd.fd_cloexec.add(u32(fd))
        return 0
    if cmd == FIONCLEX:
        p.p_fd.fd_cloexec.discard(u32(fd))
        return 0
    if cmd == FIONBIO:
        on = copyin(p.p_vmspace, arg, 4) != bytes(4)
        flag = fp.f_flag | O_NONBLOCK if on else fp.f_flag & ~O_NONBLOCK
        fp.fo_setfl(flag)
        fp.f_flag = flag
        return 0
    if cmd == FIOASYNC:
        on = copyin(p.p_vmspace, arg, 4) != bytes(4)
        if on != bool(fp.f_flag & FASYNC):
            if not fp.f_fasync:
                raise err(ENOTTY)
            set_async(lwp, fp, u32(fd), on)
        return 0
    return holding(fp, fp.fo_ioctl, lwp, cmd, arg)


# -- waiting for readiness ----------------------------------------------------------------------


class PollKnote(Knote):
    """One thread inside poll or select; its own wait channel."""

    __slots__ = ("pk_sched",)

    pk_sched: Scheduler

    def __init__(self, sched: Scheduler) -> None:
        self.pk_sched = sched

    def kn_event(self, hint: int) -> bool:
        self.pk_sched.wakeup(self)
        return True


def poll_scan(lwp: Lwp, wants: list[tuple[File, int]], deadline: int | None) -> list[int]:
    """Wait until at least one of the (file, events) is ready, or `deadline` (monotonic ns; None:
    never; not in the future: don't wait; 0: nor look at signals). Returns what is ready of each.
    May block.

    While it waits each file is told to report changes: nobody looks at files, or at other
    pollers, that have not changed.

    :raises OSError: EINTR, ERESTART
    """
    ready = [fp.fo_poll() & want for fp, want in wants]
    if any(ready):
        return ready
    if deadline is not None and deadline <= monotonic_ns():
        # As Linux: with nothing to tell, a signal counts even if there was no time to wait.
        if deadline and lwp.lwp_pending and signal_pending(lwp):
            raise err(ERESTART)
        return ready
    sched = lwp.lwp_proc.kernel.sched
    kn = PollKnote(sched)
    hostfds: list[tuple[int, int]] = []
    infos = []
    for fp, want in wants:
        fp.fhold()
        fd = fp.fo_hostfd()
        if fd >= 0:
            hostfds.append((fd, want & (POLLIN | POLLPRI | POLLOUT)))
        info = fp.fo_kqinfo()
        if info is not None:
            info.attach(kn)
            infos.append(info)
    try:
        while True:
            timeout = 0
            if deadline is not None:
                timeout = deadline - monotonic_ns()
                if timeout <= 0:
                    return ready
            if hostfds:
                error = sched.waitfds(hostfds, kn, PCATCH, "poll", timeout)
            else:
                error = sched.tsleep_ns(kn, PCATCH, "poll", timeout)
            if error not in (0, EWOULDBLOCK):
                raise err(error)
            ready = [fp.fo_poll() & want for fp, want in wants]
            if error or any(ready):
                return ready
    finally:
        for info in infos:
            info.detach(kn)
        for fp, _ in wants:
            fp.fdrop()


def _user_timeout(lwp: Lwp, uts: int) -> int | None:
    """Deadline of a user's struct timespec, monotonic ns; None without one.

    :raises OSError: EFAULT, EINVAL
    """
    if not uts:
        return None
    sec, nsec = unpack_from("<qq", copyin(lwp.lwp_proc.p_vmspace, uts, 16))
    if sec < 0 or not 0 <= nsec < NS:
        raise err(EINVAL)
    return monotonic_ns() + int(sec) * NS + int(nsec)


def _give_left(lwp: Lwp, utime: int, deadline: int | None, unit: int) -> None:
    """Store the time that is left where the caller had its timeout (in seconds and `unit` ns).
    Linux does, and forgives when it can't."""
    if deadline is None:
        return
    sec, nsec = divmod(max(deadline - monotonic_ns(), 0), NS)
    try:
        copyout(lwp.lwp_proc.p_vmspace, sec.to_bytes(8, "little")
                + (nsec // unit).to_bytes(8, "little"), utime)  # fmt: skip
    except OSError:
        pass


def _kern_poll(lwp: Lwp, ufds: int, nfds: int, deadline: int | None) -> int:
    """The body of poll and ppoll.

    :raises OSError: EINVAL, EFAULT, EINTR, ERESTART
    """
    p = lwp.lwp_proc
    if nfds > nofile(p):
        raise err(EINVAL)
    pollfds = bytearray(copyin(p.p_vmspace, ufds, 8 * nfds)) if nfds else bytearray()
    files = p.p_fd.fd_files
    revents = array("H", bytes(2 * nfds))
    wants: list[tuple[File, int]] = []
    where: list[int] = []
    bad = 0
    for i, (fd, events, _) in enumerate(iter_unpack("<ihh", pollfds)):
        fp = files.get(fd)
        if fp is not None and not fp.f_mode & FPATH:
            wants.append((fp, events & 0xFFFF | POLL_ALWAYS))
            where.append(i)
        elif fd >= 0:
            revents[i] = POLLNVAL
            bad += 1
    ready = poll_scan(lwp, wants, 0 if bad else deadline)
    for i, got in zip(where, ready, strict=True):
        revents[i] = got
    if nfds:
        memoryview(pollfds).cast("H")[3::4] = memoryview(revents)
        copyout(p.p_vmspace, pollfds, ufds)
    return nfds - revents.count(0)


def sys_poll(lwp: Lwp, ufds: int, nfds: int, timeout_ms: int) -> int:
    """poll(2)"""
    nfds, timeout_ms = u32(nfds), s32(timeout_ms)
    deadline = None if timeout_ms < 0 else monotonic_ns() + timeout_ms * 1_000_000
    return _poll_until(lwp, ufds, nfds, deadline)


def _poll_until(lwp: Lwp, ufds: int, nfds: int, deadline: int | None) -> int:
    # A signal without a handler (the process was stopped and continued) does not end a poll: it
    # is taken up again for the time that is left.
    try:
        return _kern_poll(lwp, ufds, nfds, deadline)
    except OSError as exc:
        if exc.errno not in (EINTR, ERESTART):
            raise
        lwp.lwp_restart_block = lambda lwp: _poll_until(lwp, ufds, nfds, deadline)
        raise err(ERESTART_RESTARTBLOCK) from None


def sys_ppoll(lwp: Lwp, ufds: int, nfds: int, uts: int, sigmask: int, sigsetsize: int) -> int:
    """ppoll(2)"""
    deadline = _user_timeout(lwp, uts)
    interrupted = False
    if sigmask:
        set_user_sigmask(lwp, sigmask, sigsetsize)
    try:
        return _kern_poll(lwp, ufds, u32(nfds), deadline)
    except OSError as exc:
        if exc.errno not in (EINTR, ERESTART):
            raise
        interrupted = True
        raise err(ERESTARTNOHAND) from None
    finally:
        restore_user_sigmask(lwp, interrupted)
        _give_left(lwp, uts, deadline, 1)


_SEL_IN: Final = POLLIN | POLLRDNORM | POLLRDBAND | POLLHUP | POLLERR
_SEL_OUT: Final = POLLOUT | POLLWRNORM | POLLWRBAND | POLLERR
_SEL_EX: Final = POLLPRI
_SEL: Final = (_SEL_IN, _SEL_OUT, _SEL_EX)


def _kern_select(lwp: Lwp, nfds: int, uin: int, uout: int, uex: int, deadline: int | None) -> int:
    """The body of select and pselect6.

    :raises OSError: EINVAL, EBADF, EFAULT, EINTR, ERESTART
    """
    if nfds < 0:
        raise err(EINVAL)
    p = lwp.lwp_proc
    space = p.p_vmspace
    files = p.p_fd.fd_files
    nfds = min(nfds, p.p_fd.fd_size)
    words = (nfds + 63) // 64
    users = (uin, uout, uex)
    sets = [_get_fd_set(space, at, nfds) if at and nfds else [0] * words for at in users]
    wants: list[tuple[File, int]] = []
    where: list[tuple[int, int]] = []  # word and bit of each
    found = [[0] * words for _ in users]
    unusable = 0
    for w, asked in enumerate(zip(*sets, strict=True)):
        union = asked[0] | asked[1] | asked[2]
        while union:
            bit = union & -union
            union ^= bit
            fp = files.get((w << 6) + bit.bit_length() - 1)
            if fp is None:
                raise err(EBADF)
            want = 0
            for i, events in enumerate(_SEL):
                if asked[i] & bit:
                    want |= events
                    if fp.f_mode & FPATH:  # nothing there can block, or work
                        found[i][w] |= bit
                        unusable += 1
            if not fp.f_mode & FPATH:
                wants.append((fp, want))
                where.append((w, bit))
    count = unusable
    ready = poll_scan(lwp, wants, 0 if unusable else deadline)
    for (w, bit), got in zip(where, ready, strict=True):
        if got:
            for i, events in enumerate(_SEL):
                if got & events and sets[i][w] & bit:
                    found[i][w] |= bit
                    count += 1
    for at, bits in zip(users, found, strict=True):
        if at and nfds:
            copyout(space, array("Q", bits).tobytes(), at)
    return count


def _get_fd_set(space: Vmspace, at: int, nfds: int) -> list[int]:
    """The user's fd_set as 64-bit words, without what lies beyond `nfds`, which is not 0.

    :raises OSError: EFAULT
    """
    words = memoryview(copyin(space, at, (nfds + 63) // 64 * 8)).cast("Q").tolist()
    words[-1] &= (2 << (nfds - 1) % 64) - 1
    return words


def sys_select(lwp: Lwp, nfds: int, uin: int, uout: int, uex: int, utv: int) -> int:
    """select(2)"""
    deadline = None
    if utv:
        sec, usec = unpack_from("<qq", copyin(lwp.lwp_proc.p_vmspace, utv, 16))
        if sec < 0 or usec < 0:
            raise err(EINVAL)
        deadline = monotonic_ns() + int(sec) * NS + int(usec) * 1000
    try:
        return _kern_select(lwp, s32(nfds), uin, uout, uex, deadline)
    except OSError as exc:
        if exc.errno not in (EINTR, ERESTART):
            raise
        raise err(ERESTARTNOHAND) from None
    finally:
        _give_left(lwp, utv, deadline, 1000)


def sys_pselect6(lwp: Lwp, nfds: int, uin: int, uout: int, uex: int, uts: int, usig: int) -> int:
    """pselect(2); the sixth argument points at the mask's address and size"""
    sigmask = sigsetsize = 0
    if usig:
        sigmask, sigsetsize = unpack_from("<QQ", copyin(lwp.lwp_proc.p_vmspace, usig, 16))
    deadline = _user_timeout(lwp, uts)
    interrupted = False
    if sigmask:
        set_user_sigmask(lwp, sigmask, sigsetsize)
    try:
        return _kern_select(lwp, s32(nfds), uin, uout, uex, deadline)
    except OSError as exc:
        if exc.errno not in (EINTR, ERESTART):
            raise
        interrupted = True
        raise err(ERESTARTNOHAND) from None
    finally:
        restore_user_sigmask(lwp, interrupted)
        _give_left(lwp, uts, deadline, 1)
