"""System V semaphores.

An operation on several semaphores is done as a whole or not at all. A process that can't go on is
entered in a queue, with all that it wants, and sleeps; whoever changes a semaphore does what has
become possible on behalf of those who sleep, in the order in which they came, before anybody else
gets to see the set. So nobody is woken in vain, and the values seen are those of one's turn.

Those who want one semaphore wait in a queue of that semaphore, so that a set of many costs no more
than a small one; those who want several, in a queue of the set.

Source: Linux ipc/sem.c for the behaviour, DragonFly sys/kern/sysv_sem.c for the names.
"""

from __future__ import annotations

from heapq import merge
from operator import attrgetter
from struct import Struct, pack, unpack
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.abi.linux.linux_struct import TIMESPEC
from dfvm.kern.kern_errno import (
    E2BIG,
    EAGAIN,
    EFBIG,
    EIDRM,
    EINTR,
    EINVAL,
    ENOSPC,
    ERANGE,
    err,
)
from dfvm.kern.kern_time import LONGEST_NS, timespec_ns
from dfvm.kern.sysv_ipc import (
    IPC_INFO,
    IPC_NOWAIT,
    IPC_RMID,
    IPC_SET,
    IPC_STAT,
    PERM_SIZE,
    S_IRUGO,
    S_IWUGO,
    IpcPerm,
    ipc_now,
    ipc_ns,
    ipc_own,
    ipcget,
    ipcperms,
)
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, copyout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.sysv_ipc import IpcNs

# semctl's own commands.
GETPID: Final = 11
GETVAL: Final = 12
GETALL: Final = 13
GETNCNT: Final = 14
GETZCNT: Final = 15
SETVAL: Final = 16
SETALL: Final = 17
SEM_STAT: Final = 18
SEM_INFO: Final = 19
SEM_STAT_ANY: Final = 20

SEM_UNDO: Final = 0x1000  # take it back when the process ends

SEMVMX: Final = 32767  # no semaphore is higher
SEMAEM: Final = SEMVMX  # nor is what is to be taken back
_SEMMNS: Final = 1_024_000_000
_SEMOPM: Final = 500
_SEMUSZ: Final = 20

_SEM_BYTES: Final = 64  # what a semaphore is charged as
_SET_BYTES: Final = 256
_SOP_BYTES: Final = 64  # what an operation occupies while its call lasts
_UNDO_BYTES: Final = 8  # … and again for each process that may have to take something back

_SEMBUF: Final = Struct("<Hhh")
# struct semid64_ds, behind its perm: otime, ctime, each with room behind it, nsems, and room
_SEMID_DS: Final = Struct("<q8xq8xQ16x")
# struct seminfo: map mni mns mnu msl opm ume usz vmx aem
_SEMINFO: Final = Struct("<10i")

# One operation: which semaphore, what, flags.
Sembuf = tuple[int, int, int]

_BLOCKED: Final = -1  # what SemQueue.attempt answers for "not now"


class SemUndoList:
    """What is to be taken back when a process ends: struct sem_undo_list. Shared by processes made
    with CLONE_SYSVSEM."""

    __slots__ = ("refcnt", "undos")

    refcnt: int  # processes that share it
    undos: dict[SemSet, list[int]]  # for each set, by semaphore, what is to be added

    def __init__(self) -> None:
        self.refcnt = 1
        self.undos = {}


class SemQueue:
    """Somebody who wants something of a set: struct sem_queue."""

    __slots__ = ("alter", "blocking", "pid", "serial", "sops", "status", "undo")

    sops: list[Sembuf]
    alter: bool  # some semaphore is to change; not only zeros are waited for
    undo: list[int] | None  # where SEM_UNDO is noted: of SemUndoList.undos
    pid: int
    serial: int  # its place among those that sleep
    blocking: Sembuf | None  # what could not be done when it was last tried
    status: int  # EINTR during the sleep; then 0, or the error that is to be returned

    def __init__(self, sops: list[Sembuf], alter: bool, undo: list[int] | None, pid: int) -> None:
        self.sops = sops
        self.alter = alter
        self.undo = undo
        self.pid = pid
        self.serial = 0
        self.blocking = None
        self.status = EINTR

    def attempt(self, sma: SemSet) -> int:
        """Do all of it, or nothing. 0 done, an error number, _BLOCKED."""
        semval = sma.semval
        undo = self.undo
        done = 0
        rv = 0
        for sop in self.sops:
            num, op, flags = sop
            value = semval[num] + op
            if value < 0 or (not op and value):
                self.blocking = sop
                rv = EAGAIN if flags & IPC_NOWAIT else _BLOCKED
                break
            if value > SEMVMX:
                rv = ERANGE
                break
            if flags & SEM_UNDO and undo is not None:
                back = undo[num] - op
                if not -SEMAEM - 1 <= back <= SEMAEM:
                    rv = ERANGE
                    break
                undo[num] = back
            semval[num] = value
            done += 1
        if not rv:
            for num, _, _ in self.sops:
                sma.sempid[num] = self.pid
            return 0
        for num, op, flags in self.sops[:done]:
            semval[num] -= op
            if flags & SEM_UNDO and undo is not None:
                undo[num] += op
        return rv


# Those who sleep, first come first.
_Queue = dict[SemQueue, None]
_serial: Final = attrgetter("serial")


class SemSet:
    """A set of semaphores: struct sem_array."""

    __slots__ = ("alter", "const", "ns", "perm", "sem_alter", "sem_const", "sem_ctime",
                 "sem_otime", "sempid", "semval", "serial", "undo_lists")  # fmt: skip

    ns: IpcNs
    perm: IpcPerm
    sem_otime: int  # seconds: the last operation; 0 none
    sem_ctime: int  # … it was made or changed
    semval: list[int]  # the values, 0 … SEMVMX
    sempid: list[int]  # who changed each of them last
    sem_alter: dict[int, _Queue]  # who waits for one semaphore, by semaphore: to change it
    sem_const: dict[int, _Queue]  # … for it to be 0, and changes nothing
    alter: _Queue  # who waits for several, and changes something
    const: _Queue  # … and changes nothing
    serial: int  # of the one that came last
    undo_lists: dict[SemUndoList, None]  # who has something of it to take back

    def __init__(self, ns: IpcNs, perm: IpcPerm, nsems: int) -> None:
        self.ns = ns
        self.perm = perm
        self.sem_otime = 0
        self.sem_ctime = ipc_now()
        self.semval = [0] * nsems
        self.sempid = [0] * nsems
        self.sem_alter, self.sem_const = {}, {}
        self.alter, self.const = {}, {}
        self.serial = 0
        self.undo_lists = {}

    @property
    def charge(self) -> int:
        """Bytes that it is charged as."""
        return _SET_BYTES + _SEM_BYTES * len(self.semval) + self.undo_charge * len(self.undo_lists)

    @property
    def undo_charge(self) -> int:
        """What of that is for one process that may have something to take back."""
        return _UNDO_BYTES * len(self.semval)

    # -- who sleeps -----------------------------------------------------------------------------

    def _queue(self, q: SemQueue) -> tuple[dict[int, _Queue] | None, _Queue]:
        """The queue that `q` belongs in, and if that is of one semaphore, whose it is."""
        if len(q.sops) > 1:
            return None, self.alter if q.alter else self.const
        table = self.sem_alter if q.alter else self.sem_const
        return table, table.setdefault(q.sops[0][0], {})

    def enter(self, q: SemQueue) -> None:
        """`q` has to wait."""
        self.serial += 1
        q.serial = self.serial
        self._queue(q)[1][q] = None

    def leave(self, q: SemQueue) -> None:
        """`q` waits no more."""
        table, queue = self._queue(q)
        del queue[q]
        if table is not None and not queue:
            del table[q.sops[0][0]]

    def sleepers(self) -> Iterator[SemQueue]:
        """Everybody who waits, in no particular order."""
        for table in (self.sem_alter, self.sem_const):
            for queue in table.values():
                yield from queue
        yield from self.alter
        yield from self.const

    def count(self, num: int, zero: bool) -> int:
        """How many wait for semaphore `num`, to be 0 or to be higher. Those who want several count
        for the one that they could not have."""
        return sum(
            q.blocking is not None and q.blocking[0] == num and (q.blocking[1] == 0) == zero
            for q in self.sleepers()
        )

    def _finish(self, q: SemQueue, status: int) -> None:
        self.leave(q)
        q.status = status
        self.ns.kernel.sched.wakeup(q)

    def removed(self) -> None:
        """IPC_RMID: everybody hears of it."""
        for q in sorted(self.sleepers(), key=_serial):
            self._finish(q, EIDRM)

    # -- what has become possible ---------------------------------------------------------------

    def update(self, changed: Iterable[int], altered: bool) -> None:
        """The semaphores `changed` may have changed: do what is possible now. Sets the time of the
        last operation if there was one, the caller's (`altered`) or one of these."""
        if not (self.sem_alter or self.sem_const or self.alter or self.const):
            if altered:
                self.sem_otime = ipc_now()
            return
        nums = dict.fromkeys(changed)
        done = self._wake_zero(nums)
        done |= self._update_all(nums) if self.alter else self._update_each(nums)
        if done or altered:
            self.sem_otime = ipc_now()

    def _wake_zero(self, nums: Iterable[int]) -> bool:
        """Those who wait for zeros and change nothing, after a change of `nums`."""
        done = zero = False
        for num in nums:
            if not self.semval[num]:
                zero = True
                if num in self.sem_const:
                    done |= self._try_const(self.sem_const[num])
        if zero and self.const:
            done |= self._try_const(self.const)
        return done

    def _try_const(self, queue: _Queue) -> bool:
        done = False
        for q in list(queue):
            rv = q.attempt(self)
            if rv != _BLOCKED:
                self._finish(q, rv)
                done |= not rv
        return done

    def _update_each(self, nums: Iterable[int]) -> bool:
        """Nobody waits for several: those who wait for one of `nums` can only take from it, so
        once through is enough, and it ends where nothing is left."""
        done = False
        for num in nums:
            for q in list(self.sem_alter.get(num, ())):
                if not self.semval[num]:
                    break
                rv = q.attempt(self)
                if rv == _BLOCKED:
                    continue
                self._finish(q, rv)
                if not rv:
                    done = True
                    self._wake_zero((num,))
        return done

    def _update_all(self, nums: dict[int, None]) -> bool:
        """Somebody waits for several: each operation that succeeds may make others possible, those
        who came first again first."""
        done = False
        again = True
        while again:
            again = False
            queues = [self.sem_alter[num] for num in nums if num in self.sem_alter]
            for q in list(merge(*queues, self.alter, key=_serial)):
                rv = q.attempt(self)
                if rv == _BLOCKED:
                    continue
                self._finish(q, rv)
                if not rv:
                    done = True
                    changed = [num for num, _, _ in q.sops]
                    self._wake_zero(changed)
                    nums = nums | dict.fromkeys(changed)
                    again = bool(self.alter) or len(q.sops) > 1
                    if again:
                        break
        return done

    # -- undo -----------------------------------------------------------------------------------

    def forget_undo(self, num: int) -> None:
        """SETVAL, SETALL: what would be taken back of semaphore `num` is void."""
        for ulist in self.undo_lists:
            ulist.undos[self][num] = 0

    def take_back(self, undo: list[int], pid: int) -> None:
        """The process `pid` ends."""
        semval = self.semval
        for num, back in enumerate(undo):
            if back:
                semval[num] = min(max(semval[num] + back, 0), SEMVMX)
                self.sempid[num] = pid
        self.update(range(len(semval)), True)

    def pack(self) -> bytes:
        """struct semid64_ds."""
        return self.perm.pack() + _SEMID_DS.pack(self.sem_otime, self.sem_ctime, len(self.semval))


# ---- semget --------------------------------------------------------------------------------------


def sys_semget(lp: Lwp, key: int, nsems: int, flags: int) -> int:
    """The number of the set with a key, or of a new one."""
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)
    nsems = s32(nsems)
    if not 0 <= nsems <= ns.sem_msl:
        raise err(EINVAL)

    def new(key: int, flags: int) -> SemSet:
        return _newary(ns, p, key, nsems, flags)

    def check(sma: SemSet) -> None:
        if nsems > len(sma.semval):
            raise err(EINVAL)

    return ipcget(p.p_ucred, ns.sem_ids, key, flags, new, check)


def _newary(ns: IpcNs, p: Proc, key: int, nsems: int, flags: int) -> SemSet:
    if not nsems:
        raise err(EINVAL)
    if ns.used_sems + nsems > ns.sem_mns:
        raise err(ENOSPC)
    charge = _SET_BYTES + _SEM_BYTES * nsems
    ns.charge(charge)
    sma = SemSet(ns, IpcPerm(key, flags, p.p_ucred), nsems)
    try:
        ns.sem_ids.add(sma, ns.sem_mni)
    except OSError:
        ns.uncharge(charge)
        raise
    ns.used_sems += nsems
    return sma


def _freeary(ns: IpcNs, sma: SemSet) -> None:
    ns.sem_ids.remove(sma)
    ns.uncharge(sma.charge)
    for ulist in sma.undo_lists:
        del ulist.undos[sma]
    sma.undo_lists.clear()
    sma.removed()
    ns.used_sems -= len(sma.semval)


# ---- semop ---------------------------------------------------------------------------------------


def sys_semop(lp: Lwp, semid: int, usops: int, nsops: int) -> int:
    """Do operations on a set, all at once; sleep until they can be done."""
    return _semop(lp, semid, _copyin_sops(lp, usops, nsops), -1)


def sys_semtimedop(lp: Lwp, semid: int, usops: int, nsops: int, utimeout: int) -> int:
    """The same, with a time after which it is over: EAGAIN."""
    raw = copyin(lp.lwp_proc.p_vmspace, utimeout, TIMESPEC.size) if utimeout else b""
    sops = _copyin_sops(lp, usops, nsops)  # what is wrong with them comes before a bad time
    return _semop(lp, semid, sops, timespec_ns(*TIMESPEC.unpack(raw)) if raw else -1)


def _copyin_sops(lp: Lwp, usops: int, nsops: int) -> list[Sembuf]:
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)
    nsops = u32(nsops)
    if nsops > ns.sem_opm:
        raise err(E2BIG)
    if nsops < 1:
        raise err(EINVAL)
    ns.check_room(nsops * _SOP_BYTES)
    return list(_SEMBUF.iter_unpack(copyin(p.p_vmspace, usops, nsops * _SEMBUF.size)))


def _semop(lp: Lwp, semid: int, sops: list[Sembuf], timeout: int) -> int:
    """semop, with `timeout` in ns; -1: none."""
    semid = s32(semid)
    if semid < 0:
        raise err(EINVAL)
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)
    sma = ns.sem_ids.get(semid)
    highest = 0
    alter = undoes = False
    for num, op, semflags in sops:
        if num > highest:
            highest = num
        if op:
            alter = True
        if semflags & SEM_UNDO:
            undoes = True
    undo = _undo(p, sma) if undoes else None  # even if nothing will come of it, as in Linux
    if highest >= len(sma.semval):
        raise err(EFBIG)
    ipcperms(p.p_ucred, sma.perm, S_IWUGO if alter else S_IRUGO)
    q = SemQueue(sops, alter, undo, p.p_pid)
    rv = q.attempt(sma)
    if not rv:
        if alter:
            sma.update([num for num, _, _ in sops], True)
        else:
            sma.sem_otime = ipc_now()
        return 0
    if rv == _BLOCKED:
        rv = _sleep(ns, sma, q, timeout)
    if rv:
        raise err(rv)
    return 0


def _sleep(ns: IpcNs, sma: SemSet, q: SemQueue, timeout: int) -> int:
    """Wait until somebody has done it for us; returns 0 or an error number."""
    if not timeout:
        return EAGAIN
    sma.enter(q)
    sched = ns.kernel.sched
    error = sched.tsleep_ns(q, PCATCH, "semwait", min(timeout, LONGEST_NS) if timeout > 0 else 0)
    if q.status != EINTR:
        return q.status
    sma.leave(q)
    return EAGAIN if error == EAGAIN else EINTR


def _undo(p: Proc, sma: SemSet) -> list[int]:
    """Where what `p` does to a set is noted to be taken back.

    :raises OSError: ENOMEM.
    """
    ulist = p.p_semundo
    if ulist is None:
        ulist = p.p_semundo = SemUndoList()
    undo = ulist.undos.get(sma)
    if undo is None:
        sma.ns.charge(sma.undo_charge)
        undo = ulist.undos[sma] = [0] * len(sma.semval)
        sma.undo_lists[ulist] = None
    return undo


def sem_fork(p: Proc, child: Proc) -> None:
    """CLONE_SYSVSEM: what the two do is taken back when both have ended."""
    if p.p_semundo is None:
        p.p_semundo = SemUndoList()
    p.p_semundo.refcnt += 1
    child.p_semundo = p.p_semundo


def sem_exit(p: Proc) -> None:
    """`p` ends, or shares with nobody any more (unshare): take back what is to be taken back."""
    ulist, p.p_semundo = p.p_semundo, None
    if ulist is None:
        return
    ulist.refcnt -= 1
    if ulist.refcnt:
        return
    while ulist.undos:
        sma, undo = ulist.undos.popitem()
        del sma.undo_lists[ulist]
        sma.ns.uncharge(sma.undo_charge)
        sma.take_back(undo, p.p_pid)


# ---- semctl --------------------------------------------------------------------------------------


def sys_semctl(lp: Lwp, semid: int, semnum: int, cmd: int, arg: int) -> int:
    """Look at a set, change or remove it."""
    semid, semnum, cmd = s32(semid), s32(semnum), s32(cmd)
    if semid < 0:
        raise err(EINVAL)
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)
    if cmd in (IPC_INFO, SEM_INFO):
        copyout(p.p_vmspace, _info(ns, cmd), arg)
        return ns.sem_ids.max_idx
    if cmd in (IPC_STAT, SEM_STAT, SEM_STAT_ANY):
        sma = ns.sem_ids.get(semid) if cmd == IPC_STAT else ns.sem_ids.at(semid)
        if cmd != SEM_STAT_ANY:
            ipcperms(p.p_ucred, sma.perm, S_IRUGO)
        copyout(p.p_vmspace, sma.pack(), arg)
        return 0 if cmd == IPC_STAT else sma.perm.id
    if cmd == SETVAL:
        _setval(ns, p, semid, semnum, s32(arg))
        return 0
    if cmd in (GETALL, SETALL):
        _all(ns, p, semid, cmd, arg)
        return 0
    if cmd in (GETVAL, GETPID, GETNCNT, GETZCNT):
        return _get(ns, p, semid, semnum, cmd)
    if cmd == IPC_SET:
        raw = copyin(p.p_vmspace, arg, PERM_SIZE + _SEMID_DS.size)
        sma = ns.sem_ids.get(semid)
        ipc_own(p.p_ucred, sma.perm)
        sma.perm.update(raw)
        sma.sem_ctime = ipc_now()
        return 0
    if cmd == IPC_RMID:
        sma = ns.sem_ids.get(semid)
        ipc_own(p.p_ucred, sma.perm)
        _freeary(ns, sma)
        return 0
    raise err(EINVAL)


def _info(ns: IpcNs, cmd: int) -> bytes:
    used, semaphores = _SEMUSZ, SEMAEM
    if cmd == SEM_INFO:
        used, semaphores = len(ns.sem_ids.ipcs), ns.used_sems
    return _SEMINFO.pack(
        _SEMMNS, ns.sem_mni, ns.sem_mns, _SEMMNS, ns.sem_msl, ns.sem_opm, _SEMOPM, used, SEMVMX,
        semaphores,
    )  # fmt: skip


def _setval(ns: IpcNs, p: Proc, semid: int, semnum: int, value: int) -> None:
    if not 0 <= value <= SEMVMX:
        raise err(ERANGE)
    sma = ns.sem_ids.get(semid)
    if not 0 <= semnum < len(sma.semval):
        raise err(EINVAL)
    ipcperms(p.p_ucred, sma.perm, S_IWUGO)
    sma.forget_undo(semnum)
    sma.semval[semnum] = value
    sma.sempid[semnum] = p.p_pid
    sma.sem_ctime = ipc_now()
    sma.update(range(len(sma.semval)), False)  # Linux does not tell which one it was


def _all(ns: IpcNs, p: Proc, semid: int, cmd: int, addr: int) -> None:
    sma = ns.sem_ids.get(semid)
    ipcperms(p.p_ucred, sma.perm, S_IWUGO if cmd == SETALL else S_IRUGO)
    nsems = len(sma.semval)
    if cmd == GETALL:
        copyout(p.p_vmspace, pack(f"<{nsems}H", *sma.semval), addr)
        return
    values = unpack(f"<{nsems}H", copyin(p.p_vmspace, addr, 2 * nsems))
    if max(values) > SEMVMX:
        raise err(ERANGE)
    if sma.perm.deleted:  # while we waited for the values
        raise err(EIDRM)
    sma.semval[:] = values
    sma.sempid[:] = [p.p_pid] * nsems
    for ulist in sma.undo_lists:
        ulist.undos[sma][:] = [0] * nsems
    sma.sem_ctime = ipc_now()
    sma.update(range(nsems), False)


def _get(ns: IpcNs, p: Proc, semid: int, semnum: int, cmd: int) -> int:
    sma = ns.sem_ids.get(semid)
    ipcperms(p.p_ucred, sma.perm, S_IRUGO)
    if not 0 <= semnum < len(sma.semval):
        raise err(EINVAL)
    if cmd == GETVAL:
        return sma.semval[semnum]
    if cmd == GETPID:
        return sma.sempid[semnum]
    return sma.count(semnum, cmd == GETZCNT)


# ---- for others ----------------------------------------------------------------------------------


def sem_lines(kernel: Kernel) -> bytes:
    """/proc/sysvipc/sem."""
    lines = [
        "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n"
    ]
    for s in ipc_ns(kernel).sem_ids:
        perm = s.perm
        lines.append(
            f"{perm.key:10} {perm.id:10}  {perm.mode:4o} {len(s.semval):10} {perm.uid:5} "
            f"{perm.gid:5} {perm.cuid:5} {perm.cgid:5} {s.sem_otime:10} {s.sem_ctime:10}\n"
        )
    return "".join(lines).encode()


def sem_check(ns: IpcNs) -> Iterator[str]:
    """What is wrong with the semaphores: Machine.check()."""
    if sum(len(sma.semval) for sma in ns.sem_ids) != ns.used_sems:
        yield f"there are not {ns.used_sems} semaphores"
    for sma in ns.sem_ids:
        name = f"semaphores {sma.perm.id}"
        if not all(0 <= value <= SEMVMX for value in sma.semval):
            yield f"{name}: out of range: {sma.semval}"
        for table in (sma.sem_alter, sma.sem_const):
            if not all(table.values()):
                yield f"{name}: an empty queue"
        for q in sma.sleepers():
            if q.status != EINTR:
                yield f"{name}: pid {q.pid} sleeps, but is done"
            values, undo = sma.semval[:], None if q.undo is None else q.undo[:]
            blocking = q.blocking
            rv = q.attempt(sma)
            q.blocking = blocking
            # Who only waits for zeros is not tried when there is none, even if he would fail now.
            if not rv or (rv != _BLOCKED and q.alter):
                yield f"{name}: pid {q.pid} could go on"
            if values != sma.semval:
                sma.semval[:] = values
                if undo is not None and q.undo is not None:
                    q.undo[:] = undo
        for ulist in sma.undo_lists:
            if sma not in ulist.undos:
                yield f"{name}: undone by a list that does not know it"
    shared: dict[SemUndoList, int] = {}
    for p in ns.kernel.procs.values():
        if p.p_semundo is not None:
            shared[p.p_semundo] = shared.get(p.p_semundo, 0) + 1
    for ulist, users in shared.items():
        if ulist.refcnt != users:
            yield f"a list of undos has {users} users, not {ulist.refcnt}"
        if any(sma.perm.deleted for sma in ulist.undos):
            yield "a list of undos has a set that is gone"
