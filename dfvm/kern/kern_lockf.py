"""Locks on files: POSIX record locks, open-file-description locks and flock(2).

All are advisory. POSIX locks belong to a process (to its descriptor table, as in Linux), OFD locks
and flocks to an open file. POSIX and OFD locks see each other; flocks live apart. The locks of a
file hang off its vnode (or pipe) and are there only while there are any.

Whoever has to wait sleeps on its own request and is woken when a lock that covers it goes; requests
are granted in order of arrival where they conflict with each other only through that lock. Waiting
that would close a circle of POSIX lock owners is EDEADLK.

Source: DragonFly sys/kern/kern_lockf.c; rules as Linux fs/locks.c.
"""

from __future__ import annotations

from bisect import insort
from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import u32
from dfvm.kern.kern_errno import EAGAIN, EBADF, EDEADLK, EINVAL, EOVERFLOW, err
from dfvm.kern.kern_fcntl import (
    F_GETLK,
    F_OFD_GETLK,
    F_OFD_SETLKW,
    F_RDLCK,
    F_SETLKW,
    F_UNLCK,
    F_WRLCK,
)
from dfvm.kern.vfs.vnode_param import FREAD, FWRITE, OFF_MAX, VDIR
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dfvm.kern.kern_descrip import File, FileDesc, FileTable
    from dfvm.kern.kern_lease import Lease
    from dfvm.kern.proc import Lwp


LOCK_SH: Final = 1
LOCK_EX: Final = 2
LOCK_NB: Final = 4
LOCK_UN: Final = 8


_FLOCK: Final = Struct("<hh4xqqi4x")  # struct flock: type, whence, start, len, pid


class Lockf:
    """One lock, held or wished for. Held ones of one owner never overlap, and never touch with
    the same type."""

    __slots__ = ("lf_end", "lf_owner", "lf_pid", "lf_start", "lf_type")

    lf_type: int  # F_RDLCK or F_WRLCK
    lf_start: int  # first byte
    lf_end: int  # last byte; OFF_MAX: to the end of the file, however long it gets
    lf_owner: object  # FileDesc of a POSIX lock, File of the others; compared by identity
    lf_pid: int  # who took it: whom F_GETLK names; -1 for OFD locks

    def __init__(self, kind: int, start: int, end: int, owner: object, pid: int) -> None:
        self.lf_type = kind
        self.lf_start = start
        self.lf_end = end
        self.lf_owner = owner
        self.lf_pid = pid

    def clashes(self, other: Lockf) -> bool:
        """Both cannot be held at once."""
        return (
            (self.lf_type == F_WRLCK or other.lf_type == F_WRLCK)
            and self.lf_owner is not other.lf_owner
            and self.lf_start <= other.lf_end
            and other.lf_start <= self.lf_end
        )


def lf_show(files: Iterable[File], inode: Callable[[File], str]) -> str:
    """Lines for /proc/locks: who has locked what, and below each who waits for it, of all open
    `files`. inode(file) names the inode."""
    heads = {id(head): (head, fp) for fp in files if (head := fp.fo_lockf()) is not None}
    lines = []
    n = 0
    for head, fp in heads.values():
        where = inode(fp)
        for lock in (*head.lh_records, *head.lh_flocks.values()):
            n += 1
            lines.append(f"{n}: {_show(lock, where)}")
            for want in head.lh_waiters:
                if want.clashes(lock) and _is_flock(want) == _is_flock(lock):
                    lines.append(f"{n}: -> {_show(want, where)}")
        for lease in head.lh_leases:
            n += 1
            lines.append(f"{n}: {lease.show()} {where} 0 EOF\n")
    return "".join(lines)


def _is_flock(lock: Lockf) -> bool:
    from dfvm.kern.kern_descrip import File  # which needs us

    return isinstance(lock.lf_owner, File) and lock.lf_pid >= 0


def _show(lock: Lockf, where: str) -> str:
    kind = "OFDLCK" if lock.lf_pid < 0 else "FLOCK " if _is_flock(lock) else "POSIX "
    way = "WRITE" if lock.lf_type == F_WRLCK else "READ "
    end = "EOF" if lock.lf_end == OFF_MAX else lock.lf_end
    return f"{kind} ADVISORY  {way} {lock.lf_pid} {where} {lock.lf_start} {end}\n"


def _start(lock: Lockf) -> int:
    return lock.lf_start


class LockfHead:
    """The locks of one file."""

    __slots__ = ("lh_flocks", "lh_leases", "lh_opening", "lh_records", "lh_waiters", "lh_writing")

    lh_records: list[Lockf]  # POSIX and OFD locks, by start
    lh_flocks: dict[object, Lockf]  # owner → its flock
    lh_waiters: list[Lockf]  # requests that sleep, oldest first
    lh_leases: list[Lease]  # kern_lease.py
    lh_opening: int  # threads that wait for a lease to be given up
    lh_writing: int  # those of them that will write

    def __init__(self) -> None:
        self.lh_records = []
        self.lh_flocks = {}
        self.lh_waiters = []
        self.lh_leases = []
        self.lh_opening = self.lh_writing = 0

    @property
    def empty(self) -> bool:
        """No lock, no waiter: the head may go."""
        return not (
            self.lh_records or self.lh_flocks or self.lh_waiters or self.lh_leases
            or self.lh_opening
        )  # fmt: skip

    def blockers(self, want: Lockf) -> list[Lockf]:
        """Record locks in the way of `want`, in order of start."""
        return [lock for lock in self.lh_records if lock.clashes(want)]

    def blocker(self, want: Lockf) -> Lockf | None:
        """The first of them."""
        for lock in self.lh_records:
            if lock.lf_start > want.lf_end:
                return None
            if lock.clashes(want):
                return lock
        return None

    def set_range(self, want: Lockf, unlock: bool) -> int:
        """Give `want`'s owner this range with this type, or with `unlock` nothing, in place of
        what it has there. Returns by how many the number of locks grew."""
        records = self.lh_records
        before = len(records)
        owner, start, end = want.lf_owner, want.lf_start, want.lf_end
        kept: list[Lockf] = []
        tail: Lockf | None = None
        for lock in records:
            if lock.lf_owner is not owner or lock.lf_end < start - 1 or lock.lf_start > end + 1:
                kept.append(lock)
            elif not unlock and lock.lf_type == want.lf_type:
                want.lf_start = min(want.lf_start, lock.lf_start)
                want.lf_end = max(want.lf_end, lock.lf_end)
            else:
                if lock.lf_end > end and lock.lf_start <= end:
                    tail = Lockf(lock.lf_type, end + 1, lock.lf_end, owner, lock.lf_pid)
                if lock.lf_start > end:
                    kept.append(lock)
                elif lock.lf_start < start:
                    lock.lf_end = min(lock.lf_end, start - 1)
                    kept.append(lock)
        if not unlock:
            insort(kept, want, key=_start)
        if tail is not None:
            insort(kept, tail, key=_start)
        self.lh_records = kept
        return len(kept) - before


def lf_head(fp: File) -> LockfHead:
    """The locks on the inode behind `fp`; lf_tidy when nothing was added."""
    head = fp.fo_lockf()
    if head is None:
        head = LockfHead()
        fp.fo_set_lockf(head)
    return head


def _wake(table: FileTable, head: LockfHead, start: int, end: int) -> None:
    # A lock inside start … end went or got weaker: whoever waits for something there looks again.
    for want in head.lh_waiters:
        if want.lf_start <= end and start <= want.lf_end:
            table.sched.wakeup(want)


def _wait(table: FileTable, fp: File, head: LockfHead, want: Lockf) -> None:
    """Sleep until it is worth looking again.

    :raises OSError: EINTR, ERESTART
    """
    head.lh_waiters.append(want)
    fp.fhold()
    try:
        error = table.sched.tsleep(want, PCATCH, "lockf")
    finally:
        head.lh_waiters.remove(want)
        fp.fdrop()
    if error:
        raise err(error)


def _deadlock(table: FileTable, head: LockfHead, want: Lockf) -> bool:
    """Would `want`'s owner, by waiting, wait for itself?"""
    blocked = table.lockf_blocked
    seen: set[object] = set()
    todo = [lock.lf_owner for lock in head.blockers(want)]
    while todo:
        owner = todo.pop()
        if owner is want.lf_owner:
            return True
        if owner in seen or owner not in blocked:
            continue
        seen.add(owner)
        for there, other in blocked[owner]:
            todo += [lock.lf_owner for lock in there.blockers(other)]
    return False


# -- fcntl --------------------------------------------------------------------------------------


def _range(fp: File, whence: int, start: int, length: int) -> tuple[int, int]:
    """First and last byte of a struct flock."""
    if whence == 1:
        base = fp.f_offset
    elif whence == 2:
        vp = fp.f_vnode
        base = 0 if vp is None else vp.getattr().va_size
    elif whence == 0:
        base = 0
    else:
        raise err(EINVAL)
    if start > OFF_MAX - base:
        raise err(EOVERFLOW)
    start += base
    if start < 0:
        raise err(EINVAL)
    if length > 0:
        if length - 1 > OFF_MAX - start:
            raise err(EOVERFLOW)
        return start, start + length - 1
    if length < 0:
        if start + length < 0:
            raise err(EINVAL)
        return start + length, start - 1
    return start, OFF_MAX


def fcntl_lock(lwp: Lwp, fp: File, cmd: int, arg: int) -> int:
    """F_GETLK, F_SETLK, F_SETLKW and their OFD forms; `arg` is the user's struct flock. May
    block."""
    p = lwp.lwp_proc
    space = p.p_vmspace
    kind, whence, start, length, pid = _FLOCK.unpack(copyin(space, arg, _FLOCK.size))
    ofd = cmd >= F_OFD_GETLK
    if ofd and pid:
        raise err(EINVAL)
    owner: FileDesc | File = fp if ofd else p.p_fd
    get = cmd in (F_GETLK, F_OFD_GETLK)
    if kind not in (F_RDLCK, F_WRLCK) and (get or kind != F_UNLCK):
        raise err(EINVAL)
    first, last = _range(fp, whence, start, length)
    want = Lockf(kind, first, last, owner, -1 if ofd else p.p_pid)
    if get:
        head = fp.fo_lockf()
        lock = None if head is None else head.blocker(want)
        if lock is None:
            answer = _FLOCK.pack(F_UNLCK, whence, start, length, pid)
        else:
            length = 0 if lock.lf_end == OFF_MAX else lock.lf_end - lock.lf_start + 1
            answer = _FLOCK.pack(lock.lf_type, 0, lock.lf_start, length, lock.lf_pid)
        copyout(space, answer, arg)
        return 0
    if kind != F_UNLCK and not fp.f_mode & (FREAD if kind == F_RDLCK else FWRITE):
        raise err(EBADF)
    if kind == F_UNLCK:
        lf_unlock(fp.f_table, fp, want)
    else:
        _setlock(fp.f_table, fp, want, cmd in (F_SETLKW, F_OFD_SETLKW), not ofd)
    return 0


def _setlock(table: FileTable, fp: File, want: Lockf, wait: bool, posix: bool) -> None:
    """Get `want`. May block when `wait`.

    :raises OSError: EAGAIN, EDEADLK, EINTR, ERESTART
    """
    head = lf_head(fp)
    try:
        while head.blocker(want) is not None:
            if not wait:
                raise err(EAGAIN)
            if not posix:
                _wait(table, fp, head, want)
            else:
                if _deadlock(table, head, want):
                    raise err(EDEADLK)
                _wait_posix(table, fp, head, want)
        start, end = want.lf_start, want.lf_end
        table.nlockf += head.set_range(want, False)
        if want.lf_type == F_RDLCK:  # it may have been a write lock
            _wake(table, head, start, end)
    finally:
        lf_tidy(fp, head)


def _wait_posix(table: FileTable, fp: File, head: LockfHead, want: Lockf) -> None:
    # _wait, and let others see in the meantime whom this owner waits for.
    entry = (head, want)
    table.lockf_blocked.setdefault(want.lf_owner, []).append(entry)
    try:
        _wait(table, fp, head, want)
    finally:
        mine = table.lockf_blocked[want.lf_owner]
        mine.remove(entry)
        if not mine:
            del table.lockf_blocked[want.lf_owner]


def lf_tidy(fp: File, head: LockfHead) -> None:
    """The head goes with the last lock."""
    if head.empty:
        fp.fo_set_lockf(None)


def lf_unlock(table: FileTable, fp: File, want: Lockf) -> None:
    """`want`'s owner gives up the range. Does not block."""
    head = fp.fo_lockf()
    if head is None:
        return
    table.nlockf += head.set_range(want, True)
    _wake(table, head, want.lf_start, want.lf_end)
    lf_tidy(fp, head)


def lf_fd_closed(table: FileTable, fdp: FileDesc, fp: File) -> None:
    """A descriptor of `fdp` for this file was closed: its POSIX locks on the file are gone,
    whichever descriptor they were made through. (POSIX wants it so.)"""
    head = fp.fo_lockf()
    if head is not None and any(lock.lf_owner is fdp for lock in head.lh_records):
        lf_unlock(table, fp, Lockf(F_UNLCK, 0, OFF_MAX, fdp, 0))
    vp = fp.f_vnode
    if vp is not None and vp.v_type == VDIR and vp.v_watches:
        from dfvm.kern.sys_dnotify import dnotify_flush  # which few programs need

        dnotify_flush(fp, fdp)


def lf_file_closed(table: FileTable, fp: File) -> None:
    """The last reference to an open file is gone, and its OFD locks and flock with it."""
    head = fp.fo_lockf()
    if head is None:
        return
    if any(lock.lf_owner is fp for lock in head.lh_records):
        lf_unlock(table, fp, Lockf(F_UNLCK, 0, OFF_MAX, fp, 0))
    if fp in head.lh_flocks:
        _funlock(table, fp, head)
    if head.lh_leases:
        from dfvm.kern.kern_lease import lease_file_closed  # which needs us

        lease_file_closed(head, fp)


# -- flock --------------------------------------------------------------------------------------


def _funlock(table: FileTable, fp: File, head: LockfHead) -> None:
    if head.lh_flocks.pop(fp, None) is not None:
        table.nlockf -= 1
        _wake(table, head, 0, OFF_MAX)
    lf_tidy(fp, head)


def sys_flock(lwp: Lwp, fd: int, op: int) -> int:
    """flock(2)"""
    op = u32(op)
    kind = op & ~LOCK_NB
    if kind not in (LOCK_SH, LOCK_EX, LOCK_UN):
        raise err(EINVAL)
    fp = lwp.lwp_proc.p_fd.fget(fd)
    table = fp.f_table
    if kind == LOCK_UN:
        head = fp.fo_lockf()
        if head is not None:
            _funlock(table, fp, head)
        return 0
    pid = lwp.lwp_proc.p_pid
    want = Lockf(F_RDLCK if kind == LOCK_SH else F_WRLCK, 0, OFF_MAX, fp, pid)
    head = lf_head(fp)
    held = head.lh_flocks.get(fp)
    if held is not None:
        if held.lf_type == want.lf_type:
            return 0
        # Not atomic, as flock(2) says: the old lock is given up before the new one is had.
        del head.lh_flocks[fp]
        table.nlockf -= 1
        _wake(table, head, 0, OFF_MAX)
    try:
        while any(lock.clashes(want) for lock in head.lh_flocks.values()):
            if op & LOCK_NB:
                raise err(EAGAIN)
            _wait(table, fp, head, want)
        head.lh_flocks[fp] = want
        table.nlockf += 1
    finally:
        lf_tidy(fp, head)
    return 0
