"""Futexes that are locks: the kernel knows who has one, and gives it to the next in line.

The word holds the owner's thread id, with FUTEX_WAITERS when others are to ask the kernel; as long
as it has no waiters a lock is the program's own business. Once it has, there is a UmtxPi: the owner
runs with the priority of whoever waits for it, directly or through other locks, and what it gives
up, or leaves behind when it ends, goes to the waiter of the highest priority, longest wait first.

What is inherited is a real-time priority. Threads without one share the CPU and are served in the
order in which they came, whatever their nice levels, as in Linux.

Nothing here sleeps between the look at a word and what follows from it: the page is faulted in for
writing first (_Word), and nobody else runs until the thread sleeps.

Source: FreeBSD sys/kern/kern_umtx.c (struct umtx_pi) for the structure; arguments, errors and what
the word says of Linux kernel/futex/{pi,requeue}.c, Documentation/locking/pi-futex.rst and
futex-requeue-pi.rst.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import (
    EAGAIN,
    EDEADLK,
    EINVAL,
    EPERM,
    ESRCH,
    ETIMEDOUT,
    err,
)
from dfvm.kern.kern_sched import SCHED_RESET_ON_FORK, SCHED_RR
from dfvm.kern.kern_sig import ERESTARTNOINTR
from dfvm.kern.kern_time import LONGEST_NS
from dfvm.kern.sys_futex import (
    FUTEX_OWNER_DIED,
    FUTEX_TID_MASK,
    FUTEX_WAITERS,
    Futex,
    futex_key,
)
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import fuword32, user_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp
    from dfvm.lwkt.lwkt_thread import Thread
    from dfvm.vm.vmspace import Vmspace

    Key = tuple[int, int]

_BITSET_ANY: Final = (1 << 32) - 1


class UmtxPi:
    """A lock that somebody waits for."""

    __slots__ = ("pi_blocked", "pi_key", "pi_owner", "pi_pending")

    pi_key: Key  # which word it is
    pi_owner: Lwp  # who has it
    pi_blocked: list[UmtxQ]  # who waits, in the order in which they get it; empty if pending only
    pi_pending: bool  # the owner has yet to write that its predecessor died

    def __init__(self, key: Key, owner: Lwp) -> None:
        self.pi_key = key
        self.pi_owner = owner
        self.pi_blocked = []
        self.pi_pending = False


class UmtxQ:
    """One that waits for a lock; its own wait channel. Or for what is requeued to one."""

    __slots__ = ("uq_died", "uq_granted", "uq_lwp", "uq_pi")

    uq_lwp: Lwp
    uq_pi: UmtxPi | None  # which lock; None before it is requeued, and once it has it
    uq_granted: bool  # it has been given the lock
    uq_died: bool  # because the owner ended: the word does not say so yet

    def __init__(self, lp: Lwp) -> None:
        self.uq_lwp = lp
        self.uq_pi = None
        self.uq_granted = self.uq_died = False


class RequeueFutex(Futex):
    """What a thread in FUTEX_WAIT_REQUEUE_PI sleeps on."""

    __slots__ = ("key2", "uq")

    key2: Key  # the lock that it may be requeued to
    uq: UmtxQ

    def __init__(self, key: Key, key2: Key, uq: UmtxQ) -> None:
        super().__init__(key, _BITSET_ANY)
        self.key2 = key2
        self.uq = uq


class _Word:
    """A word of user memory, for reading and writing until the thread sleeps."""

    __slots__ = ("at",)

    at: memoryview

    def __init__(self, space: Vmspace, uaddr: int) -> None:
        """:raises OSError: EFAULT. May block."""
        pa = user_page(space, uaddr, True)
        self.at = space.vm_pmap.vm.ram.mem[pa : pa + 4]

    def get(self) -> int:
        return int.from_bytes(self.at, "little")

    def set(self, value: int) -> None:
        self.at[:] = value.to_bytes(4, "little")


# ---- priorities ----------------------------------------------------------------------------------


def umtx_priority(lp: Lwp) -> int:
    """The real-time priority that `lp` is to run with: its own, or the highest of those who wait
    for what it has."""
    priority = lp.lwp_rtprio
    for pi in lp.lwp_pi_contested or ():
        if pi.pi_blocked:
            priority = max(priority, pi.pi_blocked[0].uq_lwp.lwp_thread.td_rtprio)
    return priority


def umtx_adjust(lp: Lwp) -> None:
    """What decides the priority of `lp` has changed: so may that of the owner of the lock it waits
    for, and so on."""
    sched = lp.lwp_proc.kernel.sched
    while True:
        priority, td = umtx_priority(lp), lp.lwp_thread
        if priority == td.td_rtprio:
            return
        policy = lp.lwp_policy & ~SCHED_RESET_ON_FORK
        sched.set_realtime(td, priority, policy == SCHED_RR)
        uq = lp.lwp_pi_blocked
        if uq is None or uq.uq_pi is None:
            return
        uq.uq_pi.pi_blocked.remove(uq)
        _insert(uq.uq_pi, uq)
        lp = uq.uq_pi.pi_owner


def _insert(pi: UmtxPi, uq: UmtxQ) -> None:
    priority = uq.uq_lwp.lwp_thread.td_rtprio
    at = len(pi.pi_blocked)
    while at and pi.pi_blocked[at - 1].uq_lwp.lwp_thread.td_rtprio < priority:
        at -= 1
    pi.pi_blocked.insert(at, uq)


# ---- who has a lock, and who waits ---------------------------------------------------------------


def _own(pi: UmtxPi, lp: Lwp) -> None:
    pi.pi_owner = lp
    if not isinstance(lp.lwp_pi_contested, dict):
        lp.lwp_pi_contested = {}
    lp.lwp_pi_contested[pi] = None


def _disown(pi: UmtxPi) -> None:
    lp = pi.pi_owner
    assert isinstance(lp.lwp_pi_contested, dict)
    del lp.lwp_pi_contested[pi]


def _attach(kernel: Kernel, key: Key, word: _Word) -> UmtxPi:
    """The lock of this word, which somebody has; it says from here on that others wait.

    :raises OSError: ESRCH whoever is in it is not there, EINVAL it is not as the kernel left it
    """
    value = word.get()
    tid = value & FUTEX_TID_MASK
    pi = kernel.umtx_pis.get(key)
    if pi is not None:
        died = not tid and value & FUTEX_OWNER_DIED  # and is on its way to umtx_exit
        if tid != pi.pi_owner.lwp_tid and not pi.pi_pending and not died:
            raise err(EINVAL)
        return pi
    word.set(value | FUTEX_WAITERS)
    owner = kernel.find_lwp(tid)
    if owner is None or owner.lwp_pi_contested is None:
        raise err(ESRCH)
    pi = UmtxPi(key, owner)
    kernel.umtx_pis[key] = pi
    _own(pi, owner)
    return pi


def _settle(kernel: Kernel, pi: UmtxPi) -> None:
    """Fewer may wait for a lock: with nobody it is the program's own business again, and the owner
    has the priority that is left."""
    owner = pi.pi_owner
    if not pi.pi_blocked and not pi.pi_pending:
        del kernel.umtx_pis[pi.pi_key]
        _disown(pi)
    umtx_adjust(owner)


def _block(pi: UmtxPi, uq: UmtxQ) -> None:
    """`uq` waits from here on, and lends its priority.

    :raises OSError: EDEADLK when the owner waits for it
    """
    lp: Lwp = pi.pi_owner
    while True:
        if lp is uq.uq_lwp:
            raise err(EDEADLK)
        other = lp.lwp_pi_blocked
        if other is None or other.uq_pi is None:
            break
        lp = other.uq_pi.pi_owner
    uq.uq_pi = pi
    uq.uq_lwp.lwp_pi_blocked = uq
    _insert(pi, uq)
    umtx_adjust(pi.pi_owner)


def _unblock(kernel: Kernel, uq: UmtxQ) -> None:
    """It gives up."""
    pi = uq.uq_pi
    assert pi is not None
    pi.pi_blocked.remove(uq)
    uq.uq_pi = uq.uq_lwp.lwp_pi_blocked = None
    _settle(kernel, pi)


def _grant(kernel: Kernel, pi: UmtxPi, died: bool) -> Lwp:
    """The first who waits gets the lock; returns who that is. `died`: from one who ended. Until the
    new owner has written that, the lock stays known, and nobody takes it by its word."""
    uq = pi.pi_blocked.pop(0)
    old, new = pi.pi_owner, uq.uq_lwp
    uq.uq_pi = new.lwp_pi_blocked = None
    uq.uq_granted, uq.uq_died = True, died
    _disown(pi)
    _own(pi, new)
    pi.pi_pending = died
    _settle(kernel, pi)
    umtx_adjust(old)
    kernel.sched.wakeup(uq)
    return new


def _leave(kernel: Kernel, pi: UmtxPi) -> None:
    """The owner has gone."""
    pi.pi_pending = False
    if pi.pi_blocked:
        _grant(kernel, pi, True)
    else:
        _settle(kernel, pi)


def umtx_exit(lp: Lwp) -> None:
    """`lp` leaves its address space, or ends: what it has and others wait for is theirs. Does not
    block."""
    kernel = lp.lwp_proc.kernel
    contested = lp.lwp_pi_contested
    while contested:
        pi = next(iter(contested))
        _leave(kernel, pi)


def _inherit(lp: Lwp, uq: UmtxQ, key: Key, uaddr: int) -> None:
    """`uq`, the current thread's, has been given a lock. If its owner ended the word says so from
    now on. May block.

    :raises OSError: EFAULT; somebody else has it then
    """
    if not uq.uq_died:
        return
    kernel = lp.lwp_proc.kernel
    pi = kernel.umtx_pis[key]
    try:
        word = _Word(lp.lwp_proc.p_vmspace, uaddr)
    except OSError:
        _leave(kernel, pi)
        raise
    word.set(FUTEX_WAITERS | FUTEX_OWNER_DIED | lp.lwp_tid)
    pi.pi_pending = False
    _settle(kernel, pi)


# ---- the operations ------------------------------------------------------------------------------


def _timeout(lp: Lwp, deadline: int, realtime: bool) -> int:
    """ns up to `deadline` on its clock, 0 without one (-1).

    :raises OSError: ETIMEDOUT
    """
    if deadline < 0:
        return 0
    left = deadline - (time_ns() if realtime else lp.lwp_proc.kernel.sched.uptime_ns)
    if left <= 0:
        raise err(ETIMEDOUT)
    return min(left, LONGEST_NS)


def umtx_lock_pi(
    lp: Lwp, uaddr: int, private: bool, deadline: int, realtime: bool, wait: bool
) -> int:
    """FUTEX_LOCK_PI, LOCK_PI2, and without `wait` TRYLOCK_PI. May block."""
    kernel = lp.lwp_proc.kernel
    key = futex_key(lp.lwp_proc.p_vmspace, uaddr, private)
    word = _Word(lp.lwp_proc.p_vmspace, uaddr)
    value = word.get()
    tid = value & FUTEX_TID_MASK
    if tid == lp.lwp_tid:
        raise err(EDEADLK)
    if not tid and key not in kernel.umtx_pis:
        word.set(value & FUTEX_OWNER_DIED | lp.lwp_tid)
        return 0
    pi = _attach(kernel, key, word)
    uq = UmtxQ(lp)
    try:
        timeout = _timeout(lp, deadline, realtime)
        if not wait:
            raise err(EAGAIN)
        _block(pi, uq)
    except OSError:
        _settle(kernel, pi)
        raise
    error = kernel.sched.tsleep_ns(uq, PCATCH, "umtxpi", timeout)
    if uq.uq_granted:
        _inherit(lp, uq, key, uaddr)
        return 0
    _unblock(kernel, uq)
    raise err(ETIMEDOUT if error > 0 else ERESTARTNOINTR)


def umtx_unlock_pi(lp: Lwp, uaddr: int, private: bool) -> int:
    """FUTEX_UNLOCK_PI. May block, before anything is done."""
    kernel = lp.lwp_proc.kernel
    space = lp.lwp_proc.p_vmspace
    if fuword32(space, uaddr) & FUTEX_TID_MASK != lp.lwp_tid:
        raise err(EPERM)
    key = futex_key(space, uaddr, private)
    word = _Word(space, uaddr)
    pi = kernel.umtx_pis.get(key)
    if pi is None:
        word.set(0)
        return 0
    if pi.pi_owner is not lp:
        raise err(EINVAL)
    word.set(FUTEX_WAITERS | _grant(kernel, pi, False).lwp_tid)
    return 0


def umtx_wait_requeue_pi(
    lp: Lwp, uaddr: int, val: int, uaddr2: int, private: bool, deadline: int, realtime: bool
) -> int:
    """FUTEX_WAIT_REQUEUE_PI: sleep while the word is `val`, until one has been given the lock at
    `uaddr2`. May block."""
    kernel, space = lp.lwp_proc.kernel, lp.lwp_proc.p_vmspace
    if uaddr == uaddr2:
        raise err(EINVAL)
    key2 = futex_key(space, uaddr2, private)
    key = futex_key(space, uaddr, private)
    if key == key2:
        raise err(EINVAL)
    if fuword32(space, uaddr) != val:
        raise err(EAGAIN)
    uq = UmtxQ(lp)
    timeout = _timeout(lp, deadline, realtime)
    error = kernel.sched.tsleep_ns(RequeueFutex(key, key2, uq), PCATCH, "umtxcv", timeout)
    if uq.uq_granted:
        _inherit(lp, uq, key2, uaddr2)
        return 0
    requeued = uq.uq_pi is not None
    if requeued:
        _unblock(kernel, uq)
    if error > 0:
        raise err(ETIMEDOUT)
    # What it slept on first has been signalled, so the call can't be made again.
    raise err(EAGAIN if requeued else ERESTARTNOINTR)


def umtx_requeue_pi(
    lp: Lwp, uaddr: int, uaddr2: int, nwake: int, nmove: int, expected: int, private: bool
) -> int:
    """FUTEX_CMP_REQUEUE_PI: of those in FUTEX_WAIT_REQUEUE_PI the first gets the lock if it is
    free, the others wait for it. Returns how many that were. May block, before anything is done."""
    if nmove < 0 or nwake != 1 or uaddr == uaddr2:
        raise err(EINVAL)
    kernel, space = lp.lwp_proc.kernel, lp.lwp_proc.p_vmspace
    key, key2 = futex_key(space, uaddr, private), futex_key(space, uaddr2, private)
    if key == key2:
        raise err(EINVAL)
    word = _Word(space, uaddr2)
    if fuword32(space, uaddr) != expected:
        raise err(EAGAIN)
    sleepers = _in_order(kernel.sched.sleepers(Futex(key, _BITSET_ANY)))[: nwake + nmove]
    futexes = []
    for td in sleepers:
        futex = td.td_wchan
        if not isinstance(futex, RequeueFutex) or futex.key2 != key2:
            raise err(EINVAL)
        futexes.append(futex)
    done = 0
    for td, futex in zip(sleepers, futexes, strict=True):
        uq = futex.uq
        value = word.get()
        if not value & FUTEX_TID_MASK and key2 not in kernel.umtx_pis:
            waiters = FUTEX_WAITERS if nmove else 0
            word.set(value & FUTEX_OWNER_DIED | waiters | uq.uq_lwp.lwp_tid)
            uq.uq_granted = True
            kernel.sched.wakeup_thread(td)
        else:
            pi = _attach(kernel, key2, word)
            try:
                _block(pi, uq)
            except OSError:
                _settle(kernel, pi)
                if not done:
                    raise
                break
            kernel.sched.requeue(td, uq)
        done += 1
    return done


def _in_order(sleepers: list[Thread]) -> list[Thread]:
    return sorted(sleepers, key=lambda td: -td.td_rtprio)


# ---- for Machine.check() -------------------------------------------------------------------------


def umtx_check(kernel: Kernel) -> Iterator[str]:
    """What is wrong with the locks that somebody waits for, and with inherited priorities. The
    machine is at rest."""
    for key, pi in kernel.umtx_pis.items():
        owner = pi.pi_owner
        name = f"lock {key[1]:#x} of thread {owner.lwp_tid}"
        if pi.pi_key != key or pi not in (owner.lwp_pi_contested or ()):
            yield f"{name}: the owner does not know"
        if not pi.pi_blocked and not pi.pi_pending:
            yield f"{name}: nobody waits for it"
        ranks = [uq.uq_lwp.lwp_thread.td_rtprio for uq in pi.pi_blocked]
        if ranks != sorted(ranks, reverse=True):
            yield f"{name}: priorities {ranks} wait in this order"
        for uq in pi.pi_blocked:
            if uq.uq_pi is not pi or uq.uq_lwp.lwp_pi_blocked is not uq:
                yield f"{name}: thread {uq.uq_lwp.lwp_tid} does not know that it waits"
    for p in kernel.procs.values():
        for lp in p.p_lwps.values():
            want, have = umtx_priority(lp), lp.lwp_thread.td_rtprio
            if want != have:
                yield f"thread {lp.lwp_tid} runs with priority {have}, and is to with {want}"
            if any(kernel.umtx_pis.get(pi.pi_key) is not pi for pi in lp.lwp_pi_contested or ()):
                yield f"thread {lp.lwp_tid} has a lock that nobody knows of"
