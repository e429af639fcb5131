"""System calls that belong to no other part: what the system is, what a process may set about
itself, random bytes, and futexes.

A futex is a word of user memory that threads sleep on. Its identity is the word itself: for memory
that is shared, the object and the place in it, so that processes find each other whatever address
they see it at; for private memory the address space and the address. Waiters sleep in the
scheduler's own queue for that identity; there is no other table.

Source: Linux kernel/{sys,futex,prctl}.c for arguments and errors; DragonFly sys/kern/kern_umtx.c
for sleeping on a word.
"""

from __future__ import annotations

from os import urandom
from struct import Struct
from time import time_ns
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, s64, u32
from dfvm.kern.kern_caps import (
    CAP_LAST,
    CAP_SYS_ADMIN,
    SECBIT_KEEP_CAPS,
    cap_ambient,
    cap_bset_drop,
    set_keepcaps,
    set_securebits,
)
from dfvm.kern.kern_errno import (
    EAGAIN,
    EFAULT,
    EINVAL,
    ENODEV,
    ENOSYS,
    EPERM,
    ERESTART,
    ESRCH,
    ETIMEDOUT,
    err,
)
from dfvm.kern.kern_prot import may_trace
from dfvm.kern.kern_sig import ERESTART_RESTARTBLOCK, NSIG
from dfvm.kern.kern_time import LONGEST_NS, NS, TIME_MAX, copyin_timespec
from dfvm.lwkt.kern_synch import PCATCH
from dfvm.vm.copyio import copyin, copyinstr, copyout, fuword32, suword32
from dfvm.vm.vm import VM_INHERIT_SHARE
from dfvm.vm.vm_map import vm_map_lookup_entry
from dfvm.vm.vm_meter import vm_page_rollup
from dfvm.vm.vm_object import OBJT_SWAP
from dfvm.vm.vm_param import PAGE_SHIFT, VM_MAX_USER_ADDRESS

if TYPE_CHECKING:
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.vm.vmspace import Vmspace

_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1
LONG_MAX: Final = (1 << 63) - 1


# ---- what the system is --------------------------------------------------------------------------

UTS_LEN: Final = 64  # longest of the strings of uname, without its NUL
UTS_SYSNAME: Final = b"Linux"
UTS_RELEASE: Final = b"6.1.0-dfvm"
UTS_VERSION: Final = b"#1 DragonFly VM"
UTS_MACHINE: Final = b"x86_64"

# uptime, 3 load averages, 6 memory sizes, processes, 2 sizes of high memory, unit.
_LOAD_SCALE: Final = 1 << 16  # what 1 is among the loads of sysinfo
_SYSINFO: Final = Struct("<q3Q6QHxxxxxx2QI4x")


def sys_uname(lp: Lwp, buf: int) -> int:
    """Names of the system."""
    kernel = lp.lwp_proc.kernel
    names = (UTS_SYSNAME, kernel.hostname, UTS_RELEASE, UTS_VERSION, UTS_MACHINE,
             kernel.domainname)  # fmt: skip
    data = b"".join(name[:UTS_LEN].ljust(UTS_LEN + 1, b"\0") for name in names)
    copyout(lp.lwp_proc.p_vmspace, data, buf)
    return 0


def _copyin_name(lp: Lwp, name: int, length: int) -> bytes:
    if not lp.lwp_proc.p_ucred.cr_cap_e & CAP_SYS_ADMIN:
        raise err(EPERM)
    length = s32(length)
    if not 0 <= length <= UTS_LEN:
        raise err(EINVAL)
    return copyin(lp.lwp_proc.p_vmspace, name, length).split(b"\0")[0]


def sys_sethostname(lp: Lwp, name: int, length: int) -> int:
    """Name the machine."""
    lp.lwp_proc.kernel.hostname = _copyin_name(lp, name, length)
    return 0


def sys_setdomainname(lp: Lwp, name: int, length: int) -> int:
    """Name its NIS domain."""
    lp.lwp_proc.kernel.domainname = _copyin_name(lp, name, length)
    return 0


def sys_sysinfo(lp: Lwp, info: int) -> int:
    """Memory, processes, uptime, load averages."""
    kernel = lp.lwp_proc.kernel
    vm = kernel.vm
    vm_page_rollup(vm)
    stats = vm.vmstats
    total, free = stats.v_page_count << PAGE_SHIFT, stats.v_free_count << PAGE_SHIFT
    data = _SYSINFO.pack(
        kernel.sched.uptime_ns // NS, *(int(n * _LOAD_SCALE) for n in kernel.sched.loadavg()),
        total, free, 0, 0, 0, 0, min(len(kernel.procs), 0xFFFF), 0, 0, 1,
    )  # fmt: skip
    copyout(lp.lwp_proc.p_vmspace, data, info)
    return 0


def sys_getcpu(lp: Lwp, cpu: int, node: int, cache: int) -> int:
    """Which CPU this is: the only one."""
    for addr in (cpu, node):
        if addr:
            suword32(lp.lwp_proc.p_vmspace, addr, 0)
    return 0


def sys_membarrier(lp: Lwp, cmd: int, flags: int, cpu: int) -> int:
    """Not here; its users fall back to something else."""
    raise err(ENOSYS)


def sys_rseq(lp: Lwp, rseq: int, length: int, flags: int, sig: int) -> int:
    """Not here; its users fall back to something else."""
    raise err(ENOSYS)


# ---- random bytes --------------------------------------------------------------------------------

GRND_NONBLOCK: Final = 1
GRND_RANDOM: Final = 2
GRND_INSECURE: Final = 4

_RANDOM_CHUNK: Final = 1 << 16  # bytes made at once
_RANDOM_MAX: Final = (1 << 31) - 1


def sys_getrandom(lp: Lwp, buf: int, count: int, flags: int) -> int:
    """Random bytes; never blocks, the host has plenty."""
    flags = u32(flags)
    if flags & ~(GRND_NONBLOCK | GRND_RANDOM | GRND_INSECURE):
        raise err(EINVAL)
    if flags & GRND_INSECURE and flags & GRND_RANDOM:
        raise err(EINVAL)
    space = lp.lwp_proc.p_vmspace
    left = count = min(count, _RANDOM_MAX)
    while left:
        n = min(left, _RANDOM_CHUNK)
        try:
            copyout(space, urandom(n), buf)
        except OSError:
            if left == count:
                raise
            break
        buf += n
        left -= n
    return count - left


# ---- about the thread ----------------------------------------------------------------------------

ARCH_SET_GS: Final = 0x1001
ARCH_SET_FS: Final = 0x1002
ARCH_GET_FS: Final = 0x1003
ARCH_GET_GS: Final = 0x1004
ARCH_GET_CPUID: Final = 0x1011
ARCH_SET_CPUID: Final = 0x1012

_ROBUST_LIST_HEAD: Final = 24  # sizeof(struct robust_list_head)


def sys_arch_prctl(lp: Lwp, code: int, addr: int) -> int:
    """The segment bases, through which a program finds its thread-local storage."""
    code = s32(code)
    ctx = lp.ctx
    if code in (ARCH_SET_FS, ARCH_SET_GS):
        if addr >= VM_MAX_USER_ADDRESS:
            raise err(EPERM)
        if code == ARCH_SET_FS:
            ctx.fs_base = addr
        else:
            ctx.gs_base = addr
    elif code in (ARCH_GET_FS, ARCH_GET_GS):
        base = ctx.fs_base if code == ARCH_GET_FS else ctx.gs_base
        copyout(lp.lwp_proc.p_vmspace, base.to_bytes(8, "little"), addr)
    elif code == ARCH_GET_CPUID:
        return 1  # the instruction may be used
    elif code == ARCH_SET_CPUID:
        raise err(ENODEV)
    else:
        raise err(EINVAL)
    return 0


def sys_set_tid_address(lp: Lwp, tidptr: int) -> int:
    """The word to zero and wake when the thread ends."""
    lp.lwp_clear_tid = tidptr
    return lp.lwp_tid


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


def sys_personality(lp: Lwp, persona: int) -> int:
    """Set and tell the execution domain."""
    persona = u32(persona)
    p = lp.lwp_proc
    old = p.p_personality
    if persona != _U32:
        p.p_personality = persona
    return old


# ---- prctl ---------------------------------------------------------------------------------------

PR_SET_PDEATHSIG: Final = 1
PR_GET_PDEATHSIG: Final = 2
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_GET_KEEPCAPS: Final = 7
PR_SET_KEEPCAPS: Final = 8
PR_GET_TIMING: Final = 13
PR_SET_TIMING: Final = 14
PR_SET_NAME: Final = 15
PR_GET_NAME: Final = 16
PR_GET_SECCOMP: Final = 21
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_GET_TSC: Final = 25
PR_SET_TSC: Final = 26
PR_GET_SECUREBITS: Final = 27
PR_SET_SECUREBITS: Final = 28
PR_SET_TIMERSLACK: Final = 29
PR_GET_TIMERSLACK: Final = 30
PR_MCE_KILL: Final = 33
PR_MCE_KILL_GET: Final = 34
PR_SET_CHILD_SUBREAPER: Final = 36
PR_GET_CHILD_SUBREAPER: Final = 37
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_GET_TID_ADDRESS: Final = 40
PR_SET_THP_DISABLE: Final = 41
PR_GET_THP_DISABLE: Final = 42
PR_CAP_AMBIENT: Final = 47

PR_TSC_ENABLE: Final = 1
PR_TIMING_STATISTICAL: Final = 0
PR_MCE_KILL_CLEAR: Final = 0
PR_MCE_KILL_SET: Final = 1
PR_MCE_KILL_DEFAULT: Final = 2

_COMM_LEN: Final = 16

# Options that this kernel has, and nothing to say about but no.
_ALWAYS_ZERO: Final = (PR_GET_SECCOMP, PR_GET_TIMING)
_REMEMBERED: Final = (PR_SET_TIMERSLACK, PR_GET_TIMERSLACK, PR_MCE_KILL, PR_MCE_KILL_GET,
                      PR_SET_THP_DISABLE, PR_GET_THP_DISABLE)  # fmt: skip


def sys_prctl(lp: Lwp, option: int, arg2: int, arg3: int, arg4: int, arg5: int) -> int:
    """What a process may set, or ask, about itself. What is not here is EINVAL, as on a Linux
    built without it."""
    option = s32(option)
    p = lp.lwp_proc
    if option == PR_SET_NAME:
        name = _copyin_comm(p, arg2)
        p.p_comm = name.decode("utf-8", "surrogateescape")
    elif option == PR_GET_NAME:
        name = p.p_comm.encode("utf-8", "surrogateescape")[: _COMM_LEN - 1]
        copyout(p.p_vmspace, name.ljust(_COMM_LEN, b"\0"), arg2)
    elif option == PR_SET_PDEATHSIG:
        if arg2 > NSIG:
            raise err(EINVAL)
        p.p_pdeathsig = arg2
    elif option == PR_SET_DUMPABLE:
        if arg2 > 1:
            raise err(EINVAL)
        p.p_dumpable = arg2
    elif option == PR_SET_CHILD_SUBREAPER:
        p.p_subreaper = bool(arg2)
    elif option == PR_SET_NO_NEW_PRIVS:
        if arg2 != 1 or arg3 or arg4 or arg5:
            raise err(EINVAL)
        p.p_nonewprivs = True
    elif option == PR_GET_NO_NEW_PRIVS:
        if arg2 or arg3 or arg4 or arg5:
            raise err(EINVAL)
        return int(p.p_nonewprivs)
    elif option == PR_GET_DUMPABLE:
        return p.p_dumpable
    elif option == PR_CAPBSET_READ:
        if arg2 > CAP_LAST:
            raise err(EINVAL)
        return p.p_ucred.cr_cap_b >> arg2 & 1
    elif option == PR_SET_TSC:
        if arg2 != PR_TSC_ENABLE:
            raise err(EINVAL)
    elif option == PR_GET_PDEATHSIG:
        suword32(p.p_vmspace, arg2, p.p_pdeathsig)
    elif option == PR_GET_CHILD_SUBREAPER:
        suword32(p.p_vmspace, arg2, int(p.p_subreaper))
    elif option == PR_GET_TSC:
        suword32(p.p_vmspace, arg2, PR_TSC_ENABLE)
    elif option == PR_GET_TID_ADDRESS:
        copyout(p.p_vmspace, lp.lwp_clear_tid.to_bytes(8, "little"), arg2)
    elif option == PR_CAPBSET_DROP:
        return cap_bset_drop(p, arg2)
    elif option == PR_GET_KEEPCAPS:
        return int(bool(p.p_ucred.cr_securebits & SECBIT_KEEP_CAPS))
    elif option == PR_SET_KEEPCAPS:
        return set_keepcaps(p, arg2)
    elif option == PR_GET_SECUREBITS:
        return p.p_ucred.cr_securebits
    elif option == PR_SET_SECUREBITS:
        return set_securebits(p, arg2)
    elif option == PR_CAP_AMBIENT:
        return cap_ambient(p, arg2, arg3, bool(arg4 or arg5))
    elif option in _REMEMBERED:
        return _prctl_remembered(lp, option, arg2, arg3, bool(arg4 or arg5))
    elif option == PR_SET_TIMING:
        if arg2 != PR_TIMING_STATISTICAL:
            raise err(EINVAL)
    elif option not in _ALWAYS_ZERO:
        raise err(EINVAL)
    return 0


def _prctl_remembered(lp: Lwp, option: int, arg2: int, arg3: int, more: bool) -> int:
    """What is about things that don't happen here, and need only be remembered: timers are never
    put off to be run with others, memory has no errors, and pages are small."""
    p = lp.lwp_proc
    if option == PR_SET_TIMERSLACK:
        p.p_timerslack = arg2 if s64(arg2) > 0 else p.p_timerslack0
        return 0
    if option == PR_GET_TIMERSLACK:
        return min(p.p_timerslack, LONG_MAX)
    if more or (arg3 and option != PR_MCE_KILL):
        raise err(EINVAL)
    if option == PR_MCE_KILL:
        if arg2 == PR_MCE_KILL_CLEAR and not arg3:
            p.p_mcekill = PR_MCE_KILL_DEFAULT
        elif arg2 == PR_MCE_KILL_SET and arg3 <= PR_MCE_KILL_DEFAULT:
            p.p_mcekill = arg3
        else:
            raise err(EINVAL)
        return 0
    if option == PR_SET_THP_DISABLE:
        p.p_thpdisable = bool(arg2)
        return 0
    if arg2:
        raise err(EINVAL)
    return p.p_mcekill if option == PR_MCE_KILL_GET else int(p.p_thpdisable)


def _copyin_comm(p: Proc, addr: int) -> bytes:
    """A name of at most 15 bytes; a longer one is cut."""
    try:
        return copyinstr(p.p_vmspace, addr, _COMM_LEN)[: _COMM_LEN - 1]
    except OSError as e:
        if e.errno == EFAULT:
            raise
        return copyin(p.p_vmspace, addr, _COMM_LEN - 1)


# ---- futexes -------------------------------------------------------------------------------------

FUTEX_WAIT: Final = 0
FUTEX_WAKE: Final = 1
FUTEX_REQUEUE: Final = 3
FUTEX_CMP_REQUEUE: Final = 4
FUTEX_WAKE_OP: Final = 5
FUTEX_WAIT_BITSET: Final = 9
FUTEX_WAKE_BITSET: Final = 10
FUTEX_PRIVATE_FLAG: Final = 128
FUTEX_CLOCK_REALTIME: Final = 256

# The word of a robust futex.
FUTEX_WAITERS: Final = 0x8000_0000
FUTEX_OWNER_DIED: Final = 0x4000_0000
FUTEX_TID_MASK: Final = 0x3FFF_FFFF

_ROBUST_LIST_LIMIT: Final = 2048  # futexes that a thread's end looks at

_BITSET_ANY: Final = _U32


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


def _futex_key(space: Vmspace, uaddr: int, private: bool) -> tuple[int, int]:
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
    """Sleep on a word, and wake who does."""
    op = s32(op)
    cmd = op & ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)
    private = bool(op & FUTEX_PRIVATE_FLAG)
    if op & FUTEX_CLOCK_REALTIME and cmd != FUTEX_WAIT_BITSET:
        raise err(ENOSYS)
    val, val3 = u32(val), u32(val3)
    if cmd in (FUTEX_WAIT, FUTEX_WAIT_BITSET):
        bitset = _BITSET_ANY if cmd == FUTEX_WAIT else val3
        return _futex_wait(lp, uaddr, val, bitset, utime, op, private)
    if cmd in (FUTEX_WAKE, FUTEX_WAKE_BITSET):
        bitset = _BITSET_ANY if cmd == FUTEX_WAKE else val3
        if not bitset:
            raise err(EINVAL)
        return _futex_wake(lp, _futex_key(lp.lwp_proc.p_vmspace, uaddr, private), s32(val), bitset)
    if cmd in (FUTEX_REQUEUE, FUTEX_CMP_REQUEUE):
        expected = val3 if cmd == FUTEX_CMP_REQUEUE else None
        return _futex_requeue(lp, uaddr, uaddr2, s32(val), s32(utime), expected, private)
    if cmd == FUTEX_WAKE_OP:
        return _futex_wake_op(lp, uaddr, uaddr2, s32(val), s32(utime), val3, private)
    raise err(ENOSYS)


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
    futex = Futex(_futex_key(lp.lwp_proc.p_vmspace, uaddr, private), bitset)
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
    return _futex_wake(lp, _futex_key(space, uaddr, False), count, _BITSET_ANY)


def exit_robust_list(lp: Lwp, space: Vmspace, head: int) -> None:
    """`lp` leaves `space`: mark the futexes that it holds, as its robust list at `head` tells, so
    that whoever waits for them learns that their owner is gone. May block.

    The list is the program's: whatever is wrong with it ends the walk, and nothing else."""
    try:
        raw = copyin(space, head, _ROBUST_LIST_HEAD)
        first, offset, pending = (int.from_bytes(raw[n : n + 8], "little") for n in (0, 8, 16))
        entry = first
        for _ in range(_ROBUST_LIST_LIMIT):
            # Bit 0 says that the futex inherits priorities: those have no waiters here.
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
                _futex_death(lp, space, at + offset & _U64, pending=False)
            if error is not None:
                raise error
            entry = following
        if pending & ~1:
            _futex_death(lp, space, (pending & ~1) + offset & _U64, pending=True)
    except OSError:
        pass


def _futex_death(lp: Lwp, space: Vmspace, uaddr: int, pending: bool) -> None:
    """If the futex at `uaddr` is held by `lp`, which ends, mark it and wake one who waits for it.
    `pending`: the thread was just about to take it or to let go of it, so with nobody holding it
    the wakeup may be the one that it owes."""
    if uaddr & 3:
        raise err(EINVAL)
    word = fuword32(space, uaddr)
    owner = word & FUTEX_TID_MASK
    if owner == lp.lwp_tid:
        suword32(space, uaddr, word & FUTEX_WAITERS | FUTEX_OWNER_DIED)
        if word & FUTEX_WAITERS:
            futex_wake(lp, space, uaddr, 1)
    elif pending and not owner:
        futex_wake(lp, space, uaddr, 1)


def _futex_wake(lp: Lwp, key: tuple[int, int], count: int, bitset: int) -> int:
    sched = lp.lwp_proc.kernel.sched
    woken = 0
    for td in sched.sleepers(Futex(key, bitset)):
        futex = td.td_wchan
        assert isinstance(futex, Futex)
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
    key, key2 = _futex_key(space, uaddr, private), _futex_key(space, uaddr2, private)
    if expected is not None and fuword32(space, uaddr) != expected:
        raise err(EAGAIN)
    sched = lp.lwp_proc.kernel.sched
    sleepers = sched.sleepers(Futex(key, _BITSET_ANY))
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
    key, key2 = _futex_key(space, uaddr, private), _futex_key(space, uaddr2, private)
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
