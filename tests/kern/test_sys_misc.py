"""What the system is, prctl, random bytes, futexes."""

from __future__ import annotations

import struct
from errno import EAGAIN, EFAULT, EINVAL, ENODEV, ENOSYS, EPERM, ESRCH, ETIMEDOUT
from typing import TYPE_CHECKING

import pytest
from user_util import PAGE, User

from dfvm.kern import sys_misc as sm
from dfvm.kern.kern_errno import ERESTART
from dfvm.kern.kern_sig import ERESTART_RESTARTBLOCK, SIGUSR1, ksignal
from dfvm.kern.sys_mman import sys_mmap

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel

BAD = 0x1234_5000
MS = 1_000_000
S = 1_000_000_000


def fields(user: User, at: int, fmt: str) -> tuple[int, ...]:
    return struct.unpack(fmt, user.read(at, struct.calcsize(fmt)))


def test_uname_and_host_name(user: User, nobody: User) -> None:
    at = user.put(bytes(390))
    assert user.call(sm.sys_uname, at) == 0
    names = [user.read(at + n * 65, 65).split(b"\0")[0] for n in range(6)]
    assert names[0] == b"Linux" and names[4] == b"x86_64"
    user.write(at + 1000, b"dragonfly")
    assert user.call(sm.sys_sethostname, at + 1000, 6) == 0
    assert user.call(sm.sys_setdomainname, at + 1000, 9) == 0
    nobody.call(sm.sys_uname, nobody.put(bytes(390)))
    assert nobody.read(at + 65, 7) == b"dragon\0"
    assert nobody.read(at + 5 * 65, 10) == b"dragonfly\0"
    assert nobody.call(sm.sys_sethostname, at, 1) == -EPERM
    assert user.call(sm.sys_sethostname, at, 65) == user.call(sm.sys_sethostname, at, -1) == -EINVAL
    assert user.call(sm.sys_sethostname, BAD, 3) == user.call(sm.sys_uname, BAD) == -EFAULT


def test_sysinfo(user: User) -> None:
    at = user.put(bytes(112))
    assert user.call(sm.sys_sysinfo, at) == 0
    info = fields(user, at, "<q3Q6QHxxxxxx2QI")
    assert 60 << 20 < info[4] <= 64 << 20
    assert 0 < info[5] < info[4]
    assert info[10] == len(user.kernel.procs)
    assert info[13] == 1
    assert user.call(sm.sys_sysinfo, BAD) == -EFAULT


def test_getrandom(user: User) -> None:
    at = user.put(bytes(64))
    assert user.call(sm.sys_getrandom, at, 32, 0) == 32
    assert user.read(at, 32) != bytes(32) and user.read(at + 32, 32) == bytes(32)
    assert user.call(sm.sys_getrandom, at, 0, 3) == 0
    assert user.call(sm.sys_getrandom, at, 1, 8) == user.call(sm.sys_getrandom, at, 1, 6) == -EINVAL
    assert user.call(sm.sys_getrandom, BAD, 1, 0) == -EFAULT


def test_arch_prctl(user: User) -> None:
    at = user.put(bytes(8))
    assert user.call(sm.sys_arch_prctl, sm.ARCH_SET_FS, 0x1000) == 0
    assert user.lp.ctx.fs_base == 0x1000
    assert user.call(sm.sys_arch_prctl, sm.ARCH_GET_FS, at) == 0
    assert fields(user, at, "<Q") == (0x1000,)
    assert user.call(sm.sys_arch_prctl, sm.ARCH_SET_GS, 0x2000) == 0
    assert user.lp.ctx.gs_base == 0x2000
    assert user.call(sm.sys_arch_prctl, sm.ARCH_SET_FS, 1 << 47) == -EPERM
    assert user.call(sm.sys_arch_prctl, sm.ARCH_GET_FS, BAD) == -EFAULT
    assert user.call(sm.sys_arch_prctl, sm.ARCH_GET_CPUID, 0) == 1
    assert user.call(sm.sys_arch_prctl, sm.ARCH_SET_CPUID, 0) == -ENODEV
    assert user.call(sm.sys_arch_prctl, 0x3001, at) == -EINVAL


def test_thread_state(user: User, kernel: Kernel) -> None:
    assert user.call(sm.sys_set_tid_address, 0x4000) == user.lp.lwp_tid
    assert user.lp.lwp_clear_tid == 0x4000
    assert user.call(sm.sys_set_robust_list, 0x5000, 24) == 0
    assert user.call(sm.sys_set_robust_list, 0x5000, 25) == -EINVAL
    at = user.put(bytes(16))
    assert user.call(sm.sys_get_robust_list, 0, at, at + 8) == 0
    assert fields(user, at, "<QQ") == (0x5000, 24)
    assert user.call(sm.sys_get_robust_list, 77_777, at, at) == -ESRCH
    nobody = User(kernel, 9)
    assert nobody.call(sm.sys_get_robust_list, user.p.p_pid, at, at) == -EPERM
    assert user.call(sm.sys_getcpu, at, at + 4, 0) == 0
    assert fields(user, at, "<II") == (0, 0)
    assert user.call(sm.sys_personality, 0xFFFF_FFFF) == 0
    assert user.call(sm.sys_personality, 0x0040_0000) == 0
    assert user.call(sm.sys_personality, 0xFFFF_FFFF) == 0x0040_0000
    assert user.call(sm.sys_rseq, 0, 0, 0, 0) == -ENOSYS


def prctl(user: User, *args: int) -> int:
    return user.call(sm.sys_prctl, *args, *[0] * (5 - len(args)))


def test_prctl(user: User) -> None:
    at = user.put(b"a name that is too long\0")
    assert prctl(user, sm.PR_SET_NAME, at) == 0
    assert user.p.p_comm == "a name that is "
    assert prctl(user, sm.PR_GET_NAME, at + 64) == 0
    assert user.read(at + 64, 16) == b"a name that is \0"
    assert prctl(user, sm.PR_SET_NAME, user.put(b"sh\0")) == 0
    assert user.p.p_comm == "sh"
    assert prctl(user, sm.PR_SET_PDEATHSIG, 15) == 0
    assert prctl(user, sm.PR_GET_PDEATHSIG, at) == 0
    assert fields(user, at, "<I") == (15,)
    assert prctl(user, sm.PR_SET_PDEATHSIG, 65) == -EINVAL
    assert prctl(user, sm.PR_SET_DUMPABLE, 0) == 0 == prctl(user, sm.PR_GET_DUMPABLE)
    assert prctl(user, sm.PR_SET_DUMPABLE, 2) == -EINVAL
    assert prctl(user, sm.PR_SET_NO_NEW_PRIVS, 2) == -EINVAL
    assert prctl(user, sm.PR_SET_NO_NEW_PRIVS, 1) == 0
    assert prctl(user, sm.PR_GET_NO_NEW_PRIVS) == 1
    assert prctl(user, sm.PR_SET_CHILD_SUBREAPER, 1) == 0
    assert prctl(user, sm.PR_GET_CHILD_SUBREAPER, at) == 0
    assert fields(user, at, "<I") == (1,)
    assert prctl(user, sm.PR_CAPBSET_READ, 40) == 1
    assert prctl(user, sm.PR_CAPBSET_READ, 41) == -EINVAL
    assert prctl(user, 12345) == -EINVAL
    assert prctl(user, sm.PR_SET_NAME, BAD) == prctl(user, sm.PR_GET_NAME, BAD) == -EFAULT


# ---- futexes -------------------------------------------------------------------------------------


class Threads:
    """Processes that sleep on futexes, each in a kernel thread of its own."""

    def __init__(self, kernel: Kernel) -> None:
        self.sched = kernel.sched
        self.results: dict[str, int] = {}

    def start(self, user: User, name: str, *args: int) -> None:
        def body() -> None:
            try:
                self.results[name] = sm.sys_futex(user.lp, *[a & (1 << 64) - 1 for a in args])
            except OSError as e:
                assert e.errno is not None
                self.results[name] = -abs(e.errno)

        td = self.sched.create(body, name=name)
        td.td_proc, td.td_lwp = user.p, user.lp
        self.sched.yield_()


def futex(user: User, *args: int) -> int:
    return user.call(sm.sys_futex, *args, *[0] * (6 - len(args)))


@pytest.fixture
def word(user: User) -> int:
    at = user.call(sys_mmap, 0, PAGE, 3, 0x22, -1, 0)
    user.write(at, struct.pack("<II", 7, 8))
    return at


def test_futex_wakes_in_order_and_counts(kernel: Kernel, user: User, word: int) -> None:
    threads = Threads(kernel)
    for name in "abcd":
        threads.start(user, name, word, sm.FUTEX_WAIT, 7, 0, 0, 0)
    assert futex(user, word, sm.FUTEX_WAKE | sm.FUTEX_PRIVATE_FLAG, 2) == 2
    kernel.sched.yield_()
    assert threads.results == {"a": 0, "b": 0}
    assert futex(user, word + 4, sm.FUTEX_WAKE, 9) == 0
    assert futex(user, word, sm.FUTEX_WAKE, 9) == 2


def test_futex_requeue_and_bitsets(kernel: Kernel, user: User, word: int) -> None:
    threads = Threads(kernel)
    for name, bits in (("a", 1), ("b", 2), ("c", 1), ("d", 4)):
        threads.start(user, name, word, sm.FUTEX_WAIT_BITSET, 7, 0, 0, bits)
    assert futex(user, word, sm.FUTEX_WAKE_BITSET, 9, 0, 0, 2) == 1
    assert futex(user, word, sm.FUTEX_WAKE_BITSET, 9, 0, 0, 0) == -EINVAL
    assert futex(user, word, sm.FUTEX_CMP_REQUEUE, 1, 1, word + 4, 9) == -EAGAIN
    assert futex(user, word, sm.FUTEX_CMP_REQUEUE, 1, 1, word + 4, 7) == 2
    kernel.sched.yield_()
    assert threads.results == {"b": 0, "a": 0}
    assert futex(user, word + 4, sm.FUTEX_WAKE, 9) == 1
    assert futex(user, word, sm.FUTEX_REQUEUE, -1, 1, word) == -EINVAL
    # op set, compare equal: word + 4 becomes 3, and was 8, so both are woken.
    threads.start(user, "e", word + 4, sm.FUTEX_WAIT, 8, 0, 0, 0)
    assert futex(user, word, sm.FUTEX_WAKE_OP, 9, 9, word + 4, 0 << 28 | 0 << 24 | 3 << 12 | 8) == 2
    assert fields(user, word, "<II") == (7, 3)


def test_futex_errors_and_timeouts(kernel: Kernel, user: User, word: int) -> None:
    soon = user.put(struct.pack("<qq", 0, 2 * MS))
    assert futex(user, word, sm.FUTEX_WAIT, 6) == -EAGAIN
    assert futex(user, word + 1, sm.FUTEX_WAIT, 7) == -EINVAL
    assert futex(user, BAD, sm.FUTEX_WAIT, 7) == -EFAULT
    assert futex(user, 1 << 47, sm.FUTEX_WAKE, 1) == -EFAULT
    assert futex(user, word, sm.FUTEX_WAIT, 7, BAD) == -EFAULT
    assert futex(user, word, sm.FUTEX_WAIT, 7, soon) == -ETIMEDOUT
    # An absolute time in the past, on either clock.
    assert futex(user, word, sm.FUTEX_WAIT_BITSET, 7, soon, 0, -1) == -ETIMEDOUT
    assert futex(user, word, sm.FUTEX_WAIT_BITSET | 256, 7, soon, 0, -1) == -ETIMEDOUT
    assert futex(user, word, sm.FUTEX_WAIT | 256, 7, soon) == -ENOSYS
    assert futex(user, word, 6, 7) == -ENOSYS
    user.p.p_sigacts.set(SIGUSR1, (0x40_0000, 0, 0, 0))
    kernel.sched.callout(MS, ksignal, user.p, SIGUSR1)
    assert futex(user, word, sm.FUTEX_WAIT, 7) == ERESTART
    user.p.p_sigqueue.discard(-1)
    kernel.sched.callout(MS, ksignal, user.p, SIGUSR1)
    later = user.put(struct.pack("<qq", 5, 0))
    assert futex(user, word, sm.FUTEX_WAIT, 7, later) == ERESTART_RESTARTBLOCK


def test_futex_across_processes(kernel: Kernel, user: User, word: int) -> None:
    """Shared memory is one word at any address; private memory is another after fork."""
    shared = user.call(sys_mmap, 0, PAGE, 3, 0x21, -1, 0)
    child = user.fork()
    threads = Threads(kernel)
    threads.start(child, "shared", shared, sm.FUTEX_WAIT, 0, 0, 0, 0)
    threads.start(child, "private", word, sm.FUTEX_WAIT, 7, 0, 0, 0)
    assert futex(user, word, sm.FUTEX_WAKE, 9) == 0
    assert futex(user, shared, sm.FUTEX_WAKE, 9) == 1
    assert sm.futex_wake(child.lp, child.lp.lwp_proc.p_vmspace, word, 1) == 1
    kernel.sched.run()
    assert threads.results == {"shared": 0, "private": 0}
