"""Futexes: words of user memory that threads sleep on; and robust lists, by which a thread that
ends while it holds some lets the others know.

A futex's identity is the word itself: for memory that is shared, the object and the place in it, so
that processes find each other whatever address they see it at; for private memory the address space
and the address. Waiters sleep in the scheduler's own queue for that identity; there is no other
table, but for the locks that inherit priorities (kern_umtx.py).

Source: Linux kernel/futex for arguments and errors; DragonFly sys/kern/kern_umtx.c for sleeping on
a word.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_errno import (
    EAGAIN,
    EFAULT,
    EINVAL,
    ENOSYS,
    EPERM,
    ERESTART,
    ESRCH,
    ETIMEDOUT,
    err,
)
from dfvm.kern.kern_prot import may_trace
from dfvm.kern.kern_sig import ERESTART_RESTARTBLOCK
from dfvm.kern.kern_time import LONGEST_NS, TIME_MAX, copyin_timespec
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, copyout, fuword32, suword32
from dfvm.vm.vm import VM_INHERIT_SHARE
from dfvm.vm.vm_map import vm_map_lookup_entry
from dfvm.vm.vm_object import OBJT_SWAP
from dfvm.vm.vm_param import VM_MAX_USER_ADDRESS

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp
    from dfvm.vm.vmspace import Vmspace

_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1

FUTEX_WAIT: Final = 0
FUTEX_WAKE: Final = 1
FUTEX_REQUEUE: Final = 3
FUTEX_CMP_REQUEUE: Final = 4
FUTEX_WAKE_OP: Final = 5
FUTEX_LOCK_PI: Final = 6
FUTEX_UNLOCK_PI: Final = 7
FUTEX_TRYLOCK_PI: Final = 8
FUTEX_WAIT_BITSET: Final = 9
FUTEX_WAKE_BITSET: Final = 10
FUTEX_WAIT_REQUEUE_PI: Final = 11
FUTEX_CMP_REQUEUE_PI: Final = 12
FUTEX_LOCK_PI2: Final = 13
FUTEX_PRIVATE_FLAG: Final = 128
FUTEX_CLOCK_REALTIME: Final = 256

# The word of a robust futex.
FUTEX_WAITERS: Final = 0x8000_0000
FUTEX_OWNER_DIED: Final = 0x4000_0000
FUTEX_TID_MASK: Final = 0x3FFF_FFFF

_ROBUST_LIST_HEAD: Final = 24  # sizeof(struct robust_list_head)
_ROBUST_LIST_LIMIT: Final = 2048  # futexes that a thread's end looks at

_BITSET_ANY: Final = _U32
_WITH_CLOCK: Final = (FUTEX_WAIT_BITSET, FUTEX_WAIT_REQUEUE_PI, FUTEX_LOCK_PI2)
_PI: Final = frozenset(
    (FUTEX_LOCK_PI, FUTEX_UNLOCK_PI, FUTEX_TRYLOCK_PI, FUTEX_WAIT_REQUEUE_PI, FUTEX_CMP_REQUEUE_PI,
     FUTEX_LOCK_PI2)
)  # fmt: skip


class Futex:
    """What threads sleep on: equal for all that mean the same word, with a bitset of its own for
    each waiter."""

    __slots__ = ("bitset", "key")

    key: tuple[int, int]  # (id of the object or the address space, place in it). Whoever sleeps
    #                       keeps that alive, since its mapping or its process does
    bitset: int  # which wakeups the waiter listens to

    def __init__(self, key: tuple[int, int], bitset: int) -> None:
        self.key = key
        self.bitset = bitset

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Futex) and self.key == other.key

    def __repr__(self) -> str:
        return f"<Futex {self.key[1]:#x}>"


def futex_key(space: Vmspace, uaddr: int, private: bool) -> tuple[int, int]:
    """The identity of the word at `uaddr` in `space`.

    :raises OSError: EINVAL not aligned, EFAULT not there.
    """
    if uaddr & 3:
        raise err(EINVAL)
    if uaddr >= VM_MAX_USER_ADDRESS:
        raise err(EFAULT)
    if not private:
        fuword32(space, uaddr)  # makes sure that there is an object
        found, entry = vm_map_lookup_entry(space.vm_map, uaddr)
        obj = entry.ba.object if found and entry is not None else None
        if (
            obj is not None
            and entry is not None
            and (entry.inheritance == VM_INHERIT_SHARE or obj.type > OBJT_SWAP)
        ):
            return id(obj), uaddr - entry.ba.start + entry.ba.offset
    return id(space), uaddr


def sys_futex(lp: Lwp, uaddr: int, op: int, val: int, utime: int, uaddr2: int, val3: int) -> int:
    """Sleep on a word, or wake those who do."""
    op = s32(op)
    cmd = op & ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)
    private = bool(op & FUTEX_PRIVATE_FLAG)
    if op & FUTEX_CLOCK_REALTIME and cmd not in _WITH_CLOCK:
        raise err(ENOSYS)
    val, val3 = u32(val), u32(val3)
    if cmd in (FUTEX_WAIT, FUTEX_WAIT_BITSET):
        bitset = _BITSET_ANY if cmd == FUTEX_WAIT else val3
        return _futex_wait(lp, uaddr, val, bitset, utime, op, private)
    if cmd in (FUTEX_WAKE, FUTEX_WAKE_BITSET):
        bitset = _BITSET_ANY if cmd == FUTEX_WAKE else val3
        if not bitset:
            raise err(EINVAL)
        return _futex_wake(lp, futex_key(lp.lwp_proc.p_vmspace, uaddr, private), s32(val), bitset)
    if cmd in (FUTEX_REQUEUE, FUTEX_CMP_REQUEUE):
        expected = val3 if cmd == FUTEX_CMP_REQUEUE else None
        return _futex_requeue(lp, uaddr, uaddr2, s32(val), s32(utime), expected, private)
    if cmd == FUTEX_WAKE_OP:
        return _futex_wake_op(lp, uaddr, uaddr2, s32(val), s32(utime), val3, private)
    if cmd in _PI:
        return _futex_pi(lp, uaddr, op, val, utime, uaddr2, val3)
    raise err(ENOSYS)


def _futex_pi(lp: Lwp, uaddr: int, op: int, val: int, utime: int, uaddr2: int, val3: int) -> int:
    """The operations on locks."""
    from dfvm.kern.kern_umtx import (
        umtx_lock_pi,
        umtx_requeue_pi,
        umtx_unlock_pi,
        umtx_wait_requeue_pi,
    )

    private, realtime = bool(op & FUTEX_PRIVATE_FLAG), bool(op & FUTEX_CLOCK_REALTIME)
    cmd = op & ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)
    if cmd == FUTEX_UNLOCK_PI:
        return umtx_unlock_pi(lp, uaddr, private)
    if cmd == FUTEX_TRYLOCK_PI:
        return umtx_lock_pi(lp, uaddr, private, -1, True, False)
    if cmd == FUTEX_CMP_REQUEUE_PI:
        return umtx_requeue_pi(lp, uaddr, uaddr2, s32(val), s32(utime), val3, private)
    deadline = copyin_timespec(lp, utime) if utime else -1
    if cmd == FUTEX_WAIT_REQUEUE_PI:
        return umtx_wait_requeue_pi(lp, uaddr, val, uaddr2, private, deadline, realtime)
    return umtx_lock_pi(lp, uaddr, private, deadline, realtime or cmd == FUTEX_LOCK_PI, True)


def _futex_wait(
    lp: Lwp, uaddr: int, val: int, bitset: int, utime: int, op: int, private: bool
) -> int:
    deadline = -1  # on the clock of `realtime`
    realtime = bool(op & FUTEX_CLOCK_REALTIME)
    if utime:
        deadline = copyin_timespec(lp, utime)
        if op & ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME) == FUTEX_WAIT:
            deadline = min(deadline + lp.lwp_proc.kernel.sched.uptime_ns, TIME_MAX)
    if not bitset:
        raise err(EINVAL)
    return _futex_sleep(lp, uaddr, val, bitset, deadline, realtime, private)


def _futex_sleep(
    lp: Lwp, uaddr: int, val: int, bitset: int, deadline: int, realtime: bool, private: bool
) -> int:
    """Sleep while the word is `val`."""
    sched = lp.lwp_proc.kernel.sched
    futex = Futex(futex_key(lp.lwp_proc.p_vmspace, uaddr, private), bitset)
    # Nothing blocks between the look at the word and the sleep, once the page is there.
    if fuword32(lp.lwp_proc.p_vmspace, uaddr) != val:
        raise err(EAGAIN)
    timeout = 0
    if deadline >= 0:
        timeout = deadline - (time_ns() if realtime else sched.uptime_ns)
        if timeout <= 0:
            raise err(ETIMEDOUT)
    error = sched.tsleep_ns(futex, PCATCH, "futex", min(timeout, LONGEST_NS))
    if not error:
        return 0
    if error > 0:
        raise err(ETIMEDOUT)
    if deadline < 0:
        raise err(ERESTART)
    lp.lwp_restart_block = lambda again: _futex_sleep(
        again, uaddr, val, bitset, deadline, realtime, private
    )
    raise err(ERESTART_RESTARTBLOCK)


def futex_wake(lp: Lwp, space: Vmspace, uaddr: int, count: int) -> int:
    """Wake up to `count` of those who sleep on the word at `uaddr` in `space`, wherever they see
    it; for a thread that leaves the space. Returns how many."""
    return _futex_wake(lp, futex_key(space, uaddr, False), count, _BITSET_ANY)


def sys_set_robust_list(lp: Lwp, head: int, length: int) -> int:
    """Where the thread keeps the list of its robust futexes."""
    if length != _ROBUST_LIST_HEAD:
        raise err(EINVAL)
    lp.lwp_robust_list = head
    return 0


def sys_get_robust_list(lp: Lwp, pid: int, uhead: int, ulen: int) -> int:
    """Where a thread keeps it."""
    pid = s32(pid)
    target = lp if pid == 0 else lp.lwp_proc.kernel.find_lwp(pid)
    if target is None:
        raise err(ESRCH)
    if not may_trace(lp.lwp_proc, target.lwp_proc):
        raise err(EPERM)
    space = lp.lwp_proc.p_vmspace
    copyout(space, _ROBUST_LIST_HEAD.to_bytes(8, "little"), ulen)
    copyout(space, target.lwp_robust_list.to_bytes(8, "little"), uhead)
    return 0


def exit_robust_list(lp: Lwp, space: Vmspace, head: int) -> None:
    """`lp` leaves `space`: mark the futexes that it holds, as its robust list at `head` tells, so
    that whoever waits for them learns that their owner is gone. May block.

    The list is the program's: whatever is wrong with it ends the walk, and nothing else."""
    try:
        raw = copyin(space, head, _ROBUST_LIST_HEAD)
        first, offset, pending = (int.from_bytes(raw[n : n + 8], "little") for n in (0, 8, 16))
        entry = first
        for _ in range(_ROBUST_LIST_LIMIT):
            at = entry & ~1
            if at == head:
                break
            # The next one first: the futex may be freed by whoever finds it marked.
            error, following = None, 0
            try:
                following = int.from_bytes(copyin(space, at, 8), "little")
            except OSError as e:
                error = e
            if at != pending & ~1:
                _futex_death(lp, space, at + offset & _U64, False, bool(entry & 1))
            if error is not None:
                raise error
            entry = following
        if pending & ~1:
            _futex_death(lp, space, (pending & ~1) + offset & _U64, True, bool(pending & 1))
    except OSError:
        pass


def _futex_death(lp: Lwp, space: Vmspace, uaddr: int, pending: bool, pi: bool) -> None:
    """If the futex at `uaddr` is held by `lp`, which ends, mark it and wake one who waits for it.
    `pending`: the thread was just about to take it or to let go of it, so with nobody holding it
    the wakeup may be the one that it owes. `pi`: bit 0 of the list's entry says that the futex
    inherits priorities; umtx_exit gives those to whoever waits."""
    if uaddr & 3:
        raise err(EINVAL)
    word = fuword32(space, uaddr)
    owner = word & FUTEX_TID_MASK
    if owner == lp.lwp_tid:
        suword32(space, uaddr, word & FUTEX_WAITERS | FUTEX_OWNER_DIED)
        if word & FUTEX_WAITERS and not pi:
            futex_wake(lp, space, uaddr, 1)
    elif pending and not owner and not pi:
        futex_wake(lp, space, uaddr, 1)


def _futex_wake(lp: Lwp, key: tuple[int, int], count: int, bitset: int) -> int:
    sched = lp.lwp_proc.kernel.sched
    woken = 0
    pis = lp.lwp_proc.kernel.umtx_pis
    if pis and key in pis:
        raise err(EINVAL)  # a lock that others wait for
    for td in sched.sleepers(Futex(key, bitset)):
        futex = td.td_wchan
        assert isinstance(futex, Futex)
        if type(futex) is not Futex:
            raise err(EINVAL)  # it waits for a lock to be given to it
        if futex.bitset & bitset:
            sched.wakeup_thread(td)
            woken += 1
            if woken >= count:
                break
    return woken


def _futex_requeue(
    lp: Lwp, uaddr: int, uaddr2: int, nwake: int, nmove: int, expected: int | None, private: bool
) -> int:
    """Wake some, and let others sleep on at another word."""
    if nwake < 0 or nmove < 0:
        raise err(EINVAL)
    space = lp.lwp_proc.p_vmspace
    key, key2 = futex_key(space, uaddr, private), futex_key(space, uaddr2, private)
    if expected is not None and fuword32(space, uaddr) != expected:
        raise err(EAGAIN)
    sched = lp.lwp_proc.kernel.sched
    sleepers = sched.sleepers(Futex(key, _BITSET_ANY))
    if any(type(td.td_wchan) is not Futex for td in sleepers[: nwake + nmove]):
        raise err(EINVAL)  # they wait for a lock to be given to them
    for td in sleepers[:nwake]:
        sched.wakeup_thread(td)
    moved = sleepers[nwake : nwake + nmove]
    for td in moved:
        futex = td.td_wchan
        assert isinstance(futex, Futex)
        sched.requeue(td, Futex(key2, futex.bitset))
    return len(sleepers[:nwake]) + (len(moved) if expected is not None else 0)


def _futex_wake_op(
    lp: Lwp, uaddr: int, uaddr2: int, nwake: int, nwake2: int, code: int, private: bool
) -> int:
    """Change the second word, wake at the first, and at the second if its old value says so."""
    space = lp.lwp_proc.p_vmspace
    key, key2 = futex_key(space, uaddr, private), futex_key(space, uaddr2, private)
    op, cmp = code >> 28 & 7, code >> 24 & 15
    oparg, cmparg = _s12(code >> 12), _s12(code)
    if code >> 31:  # FUTEX_OP_OPARG_SHIFT
        oparg = 1 << (oparg & 31)
    old = fuword32(space, uaddr2)
    if op > 4 or cmp > 5:
        raise err(ENOSYS)
    new = (oparg, old + oparg, old | oparg, old & ~oparg, old ^ oparg)[op]
    suword32(space, uaddr2, new & _U32)
    woken = _futex_wake(lp, key, nwake, _BITSET_ANY)
    signed = s32(old)
    if (
        signed == cmparg, signed != cmparg, signed < cmparg,
        signed <= cmparg, signed > cmparg, signed >= cmparg,
    )[cmp]:  # fmt: skip
        woken += _futex_wake(lp, key2, nwake2, _BITSET_ANY)
    return woken


def _s12(x: int) -> int:
    """A signed field of 12 bits."""
    return (x & 0xFFF ^ 0x800) - 0x800
