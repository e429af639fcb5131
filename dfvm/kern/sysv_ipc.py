"""What the three kinds of System V IPC have in common: keys, numbers, owners, rights, limits.

Everything of one kind is in an `IpcIds`, found by number or by key in a step. A number has two
parts: the place in the table, which is used again, and how often the places have been gone
through, so that the number of something removed is not soon that of something else.

What the objects occupy besides pages (semaphores, messages) is not in the machine's memory, but
is charged as though it were, so that no program can have more of it than the machine has.

Source: Linux ipc/util.c and ipc/ipcns.c for the behaviour, uapi linux/ipc.h for the structures.
"""

from __future__ import annotations

from struct import Struct
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from dfvm.kern.abi.linux.args import s32
from dfvm.kern.abi.linux.linux_struct import NS
from dfvm.kern.kern_caps import CAP_IPC_OWNER, CAP_SYS_ADMIN
from dfvm.kern.kern_errno import (
    EACCES,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EPERM,
    err,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Proc, Ucred
    from dfvm.kern.sysv_msg import MsgQueue
    from dfvm.kern.sysv_sem import SemSet
    from dfvm.kern.sysv_shm import ShmSegment

IPC_PRIVATE: Final = 0  # a key that nothing has

# Flags of the get calls, above the permission bits; IPC_NOWAIT also of operations.
IPC_CREAT: Final = 0o1000
IPC_EXCL: Final = 0o2000
IPC_NOWAIT: Final = 0o4000

# Commands of the ctl calls.
IPC_RMID: Final = 0
IPC_SET: Final = 1
IPC_STAT: Final = 2
IPC_INFO: Final = 3

IPCMNI: Final = 32768  # places in a table: no limit on numbers is higher
_IDX_BITS: Final = 15
_IDX_MASK: Final = IPCMNI - 1
_SEQ_MAX: Final = 0x7FFF_FFFF >> _IDX_BITS
_MIN_CYCLE: Final = 64  # places that are gone through before the first is used again

S_IRUGO: Final = 0o444
S_IWUGO: Final = 0o222
S_IXUGO: Final = 0o111
_S_IRWXUGO: Final = 0o777

# struct ipc64_perm: key uid gid cuid cgid mode seq, and room
_PERM: Final = Struct("<iIIIIIH22x")
PERM_SIZE: Final = _PERM.size
_NOBODY: Final = 0xFFFF_FFFF  # an id that is none


class IpcPerm:
    """Whose an object is, and who may use it: struct kern_ipc_perm."""

    __slots__ = ("cgid", "cuid", "deleted", "gid", "id", "key", "mode", "seq", "uid")

    id: int  # its number; IpcIds.add gives it
    seq: int  # the upper part of that
    key: int  # IPC_PRIVATE: nobody finds it by a key
    uid: int  # owner
    gid: int
    cuid: int  # who made it
    cgid: int
    mode: int  # permission bits, and a kind's own marks above them
    deleted: bool  # IPC_RMID: it is in the table no more, though sleepers may still know it

    def __init__(self, key: int, mode: int, cred: Ucred) -> None:
        self.id = self.seq = -1
        self.key = key
        self.uid = self.cuid = cred.cr_uid
        self.gid = self.cgid = cred.cr_gid
        self.mode = mode & _S_IRWXUGO
        self.deleted = False

    def pack(self) -> bytes:
        """struct ipc64_perm."""
        return _PERM.pack(
            self.key, self.uid, self.gid, self.cuid, self.cgid, self.mode, self.seq & 0xFFFF
        )

    def update(self, raw: bytes) -> None:
        """IPC_SET: take owner and mode from a struct ipc64_perm.

        :raises OSError: EINVAL for ids that are none.
        """
        _, uid, gid, _, _, mode, _ = _PERM.unpack_from(raw)
        if uid == _NOBODY or gid == _NOBODY:
            raise err(EINVAL)
        self.uid, self.gid = uid, gid
        self.mode = self.mode & ~_S_IRWXUGO | mode & _S_IRWXUGO


class _HasPerm(Protocol):
    perm: IpcPerm


T = TypeVar("T", bound=_HasPerm)


class IpcIds(Generic[T]):
    """Everything of one kind."""

    __slots__ = ("_last", "_next", "_seq", "ipcs", "keys", "next_id", "places")

    ipcs: dict[int, T]  # by place
    keys: dict[int, T]  # by key, but for IPC_PRIVATE
    next_id: int  # the number that the next one is to have (sysctl); -1: whichever comes
    places: int  # bit n: place n is taken
    _next: int  # the place where the next search begins
    _last: int  # the place that was given last
    _seq: int

    def __init__(self) -> None:
        self.ipcs = {}
        self.keys = {}
        self.next_id = -1
        self.places = self._next = self._seq = 0
        self._last = -1

    def __iter__(self) -> Iterator[T]:
        """In order of place."""
        return (self.ipcs[n] for n in sorted(self.ipcs))

    @property
    def max_idx(self) -> int:
        """The highest place in use; 0 when there is none, as the INFO commands answer."""
        return max(self.places.bit_length() - 1, 0)

    def add(self, obj: T, limit: int) -> int:
        """Enter `obj`, give it its number, and return that.

        :raises OSError: ENOSPC when there are `limit` already.
        """
        if len(self.ipcs) >= min(limit, IPCMNI):
            raise err(ENOSPC)
        perm = obj.perm
        wanted, self.next_id = self.next_id, -1
        if wanted < 0:
            place = self._next_place()
            perm.seq = self._seq
        else:
            found = self._free(wanted & _IDX_MASK, IPCMNI)
            if found is None:
                raise err(ENOSPC)
            place = found
            perm.seq = wanted >> _IDX_BITS
        self.places |= 1 << place
        perm.id = (perm.seq << _IDX_BITS) + place
        self.ipcs[place] = obj
        if perm.key != IPC_PRIVATE:
            self.keys[perm.key] = obj
        return perm.id

    def _next_place(self) -> int:
        """The free place behind the one that was given last, or, all gone through, the first one,
        with another `_seq`."""
        end = min(max(len(self.ipcs) * 3 // 2, _MIN_CYCLE), IPCMNI)
        place = self._free(self._next, end)
        if place is None:
            place = self._free(0, end)
        assert place is not None  # a third of the places below `end` are free
        self._next = place + 1
        if place <= self._last:
            self._seq = (self._seq + 1) % _SEQ_MAX
        self._last = place
        return place

    def _free(self, start: int, end: int) -> int | None:
        # The first free place in [start, end).
        above = self.places >> start
        place = start + (~above & (above + 1)).bit_length() - 1
        return place if place < end else None

    def remove(self, obj: T) -> None:
        """Take `obj` out."""
        perm = obj.perm
        place = perm.id & _IDX_MASK
        self.forget_key(obj)
        del self.ipcs[place]
        self.places &= ~(1 << place)
        perm.deleted = True

    def forget_key(self, obj: T) -> None:
        """Nobody is to find `obj` by its key any more."""
        if obj.perm.key != IPC_PRIVATE:
            del self.keys[obj.perm.key]
            obj.perm.key = IPC_PRIVATE

    def at(self, index: int) -> T:
        """What is at a place: the upper part of a number does not count.

        :raises OSError: EINVAL.
        """
        obj = self.ipcs.get(index & _IDX_MASK)
        if obj is None:
            raise err(EINVAL)
        return obj

    def get(self, ident: int) -> T:
        """What has the number `ident`.

        :raises OSError: EINVAL.
        """
        obj = self.ipcs.get(ident & _IDX_MASK)
        if obj is None or obj.perm.id != ident:
            raise err(EINVAL)
        return obj


class IpcNs:
    """All of a machine's IPC, and its limits, which are in /proc/sys/kernel."""

    __slots__ = ("charged", "kernel", "msg_bytes", "msg_ctlmax", "msg_ctlmnb", "msg_ctlmni",
                 "msg_hdrs", "msg_ids", "sem_ids", "sem_mni", "sem_mns", "sem_msl", "sem_opm",
                 "shm_created", "shm_ctlall", "shm_ctlmax", "shm_ctlmni", "shm_ids", "shm_locked",
                 "shm_rmid_forced", "shm_tot", "used_sems")  # fmt: skip

    kernel: Kernel
    charged: int  # bytes of semaphores and messages
    shm_ids: IpcIds[ShmSegment]
    shm_ctlmax: int  # bytes of one segment at most
    shm_ctlall: int  # pages of all segments
    shm_ctlmni: int  # segments
    shm_rmid_forced: int  # segments go with their last attachment, and with their maker
    shm_tot: int  # pages of the segments there are
    shm_created: dict[Proc, dict[ShmSegment, None]]  # what each process has made, until it ends
    shm_locked: dict[int, int]  # pages that each user has locked with SHM_LOCK
    sem_ids: IpcIds[SemSet]
    sem_msl: int  # semaphores of one set at most
    sem_mns: int  # semaphores
    sem_opm: int  # operations of one call
    sem_mni: int  # sets
    used_sems: int  # semaphores there are
    msg_ids: IpcIds[MsgQueue]
    msg_ctlmax: int  # bytes of one message at most
    msg_ctlmnb: int  # bytes of one queue, unless that says something else
    msg_ctlmni: int  # queues
    msg_bytes: int  # bytes in all queues
    msg_hdrs: int  # messages in all queues

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.charged = 0
        self.shm_ids = IpcIds()
        self.shm_ctlmax = self.shm_ctlall = (1 << 64) - 1 - (1 << 24)
        self.shm_ctlmni = 4096
        self.shm_rmid_forced = self.shm_tot = 0
        self.shm_created = {}
        self.shm_locked = {}
        self.sem_ids = IpcIds()
        self.sem_msl, self.sem_mns, self.sem_opm, self.sem_mni = 32000, 1_024_000_000, 500, 32000
        self.used_sems = 0
        self.msg_ids = IpcIds()
        self.msg_ctlmax, self.msg_ctlmnb, self.msg_ctlmni = 8192, 16384, 32000
        self.msg_bytes = self.msg_hdrs = 0

    def check_room(self, size: int) -> None:
        """Whether there could be `size` more bytes.

        :raises OSError: ENOMEM when that is more than the machine could have.
        """
        if self.charged + size > self.kernel.ram.size // 2:
            raise err(ENOMEM)

    def charge(self, size: int) -> None:
        """`size` more bytes are needed.

        :raises OSError: ENOMEM, as check_room.
        """
        self.check_room(size)
        self.charged += size

    def uncharge(self, size: int) -> None:
        """They are needed no more."""
        self.charged -= size


def ipc_ns(kernel: Kernel) -> IpcNs:
    """The machine's IPC; it comes into being when somebody asks for it."""
    ns = kernel.ipc
    if ns is None:
        ns = kernel.ipc = IpcNs(kernel)
    return ns


def ipc_now() -> int:
    """The time in seconds, as the objects note it."""
    return time_ns() // NS


def ipcperms(cred: Ucred, perm: IpcPerm, mode: int) -> None:
    """Check that one may do what `mode` (permission bits, in any of the three places) stands for.

    :raises OSError: EACCES.
    """
    wanted = mode >> 6 | mode >> 3 | mode
    granted = perm.mode
    if cred.cr_uid in (perm.cuid, perm.uid):
        granted >>= 6
    elif cred.groupmember(perm.cgid) or cred.groupmember(perm.gid):
        granted >>= 3
    if wanted & ~granted & 7 and not cred.cr_cap_e & CAP_IPC_OWNER:
        raise err(EACCES)


def ipc_own(cred: Ucred, perm: IpcPerm) -> None:
    """Check that one may change or remove an object.

    :raises OSError: EPERM.
    """
    if cred.cr_uid not in (perm.cuid, perm.uid) and not cred.cr_cap_e & CAP_SYS_ADMIN:
        raise err(EPERM)


def ipcget(
    cred: Ucred,
    ids: IpcIds[T],
    key: int,
    flags: int,
    new: Callable[[int, int], T],
    check: Callable[[T], None] | None = None,
) -> int:
    """The get calls: the number of what has the key, or of something new. `new` makes and enters
    it, given key and flags; `check` looks at what is there already.

    :raises OSError: ENOENT, EEXIST, EACCES, and what `new` and `check` raise.
    """
    key, flags = s32(key), s32(flags)
    if key == IPC_PRIVATE:
        return new(key, flags).perm.id
    obj = ids.keys.get(key)
    if obj is None:
        if not flags & IPC_CREAT:
            raise err(ENOENT)
        return new(key, flags).perm.id
    if flags & IPC_CREAT and flags & IPC_EXCL:
        raise err(EEXIST)
    if check is not None:
        check(obj)
    ipcperms(cred, obj.perm, flags & _S_IRWXUGO)
    return obj.perm.id


def ipc_check(ns: IpcNs) -> Iterator[str]:
    """What is wrong with what they have in common: Machine.check()."""
    charged = sum(sma.charge for sma in ns.sem_ids) + sum(msq.charge for msq in ns.msg_ids)
    if charged != ns.charged:
        yield f"IPC is charged as {ns.charged} bytes, but has {charged}"
    tables: tuple[IpcIds[Any], ...] = (ns.shm_ids, ns.sem_ids, ns.msg_ids)
    for ids in tables:
        keys = {obj.perm.key: obj for obj in ids if obj.perm.key != IPC_PRIVATE}
        if keys != ids.keys:
            yield f"keys {sorted(ids.keys)} lead to objects that have others"
        for place, obj in ids.ipcs.items():
            if obj.perm.id & _IDX_MASK != place or obj.perm.deleted:
                yield f"IPC object {obj.perm.id} is at {place}"
        if ids.places != sum(1 << place for place in ids.ipcs):
            yield f"places {ids.places:#x} count as taken, {sorted(ids.ipcs)} are"
