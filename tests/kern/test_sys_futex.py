"""Futexes: whose sleep ends when, and what is the same word."""

from __future__ import annotations

import struct
from errno import EAGAIN, EFAULT, EINVAL, ENOSYS, ETIMEDOUT
from typing import TYPE_CHECKING

import pytest
from user_util import PAGE, User

from dfvm.kern import sys_futex as fx
from dfvm.kern.kern_errno import ERESTART
from dfvm.kern.kern_sig import ERESTART_RESTARTBLOCK, SIGUSR1, ksignal
from dfvm.kern.sys_mman import sys_mmap

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel

BAD = 0x1234_5000
MS = 1_000_000


class Threads:
    """Processes that sleep on futexes, each in a kernel thread of its own."""

    def __init__(self, kernel: Kernel) -> None:
        self.sched = kernel.sched
        self.results: dict[str, int] = {}

    def start(self, user: User, name: str, *args: int) -> None:
        def body() -> None:
            try:
                self.results[name] = fx.sys_futex(user.lp, *[a & (1 << 64) - 1 for a in args])
            except OSError as e:
                assert e.errno is not None
                self.results[name] = -abs(e.errno)

        td = self.sched.create(body, name=name)
        td.td_proc, td.td_lwp = user.p, user.lp
        self.sched.yield_()


def futex(user: User, *args: int) -> int:
    return user.call(fx.sys_futex, *args, *[0] * (6 - len(args)))


@pytest.fixture
def word(user: User) -> int:
    at = user.call(sys_mmap, 0, PAGE, 3, 0x22, -1, 0)
    user.write(at, struct.pack("<II", 7, 8))
    return at


def test_futex_wakes_in_order_and_counts(kernel: Kernel, user: User, word: int) -> None:
    threads = Threads(kernel)
    for name in "abcd":
        threads.start(user, name, word, fx.FUTEX_WAIT, 7, 0, 0, 0)
    assert futex(user, word, fx.FUTEX_WAKE | fx.FUTEX_PRIVATE_FLAG, 2) == 2
    kernel.sched.yield_()
    assert threads.results == {"a": 0, "b": 0}
    assert futex(user, word + 4, fx.FUTEX_WAKE, 9) == 0
    assert futex(user, word, fx.FUTEX_WAKE, 9) == 2


def test_futex_requeue_and_bitsets(kernel: Kernel, user: User, word: int) -> None:
    threads = Threads(kernel)
    for name, bits in (("a", 1), ("b", 2), ("c", 1), ("d", 4)):
        threads.start(user, name, word, fx.FUTEX_WAIT_BITSET, 7, 0, 0, bits)
    assert futex(user, word, fx.FUTEX_WAKE_BITSET, 9, 0, 0, 2) == 1
    assert futex(user, word, fx.FUTEX_WAKE_BITSET, 9, 0, 0, 0) == -EINVAL
    assert futex(user, word, fx.FUTEX_CMP_REQUEUE, 1, 1, word + 4, 9) == -EAGAIN
    assert futex(user, word, fx.FUTEX_CMP_REQUEUE, 1, 1, word + 4, 7) == 2
    kernel.sched.yield_()
    assert threads.results == {"b": 0, "a": 0}
    assert futex(user, word + 4, fx.FUTEX_WAKE, 9) == 1
    assert futex(user, word, fx.FUTEX_REQUEUE, -1, 1, word) == -EINVAL
    # op set, compare equal: word + 4 becomes 3, and was 8, so both are woken.
    threads.start(user, "e", word + 4, fx.FUTEX_WAIT, 8, 0, 0, 0)
    assert futex(user, word, fx.FUTEX_WAKE_OP, 9, 9, word + 4, 0 << 28 | 0 << 24 | 3 << 12 | 8) == 2
    assert struct.unpack("<II", user.read(word, 8)) == (7, 3)


def test_futex_errors_and_timeouts(kernel: Kernel, user: User, word: int) -> None:
    soon = user.put(struct.pack("<qq", 0, 2 * MS))
    assert futex(user, word, fx.FUTEX_WAIT, 6) == -EAGAIN
    assert futex(user, word + 1, fx.FUTEX_WAIT, 7) == -EINVAL
    assert futex(user, BAD, fx.FUTEX_WAIT, 7) == -EFAULT
    assert futex(user, 1 << 47, fx.FUTEX_WAKE, 1) == -EFAULT
    assert futex(user, word, fx.FUTEX_WAIT, 7, BAD) == -EFAULT
    assert futex(user, word, fx.FUTEX_WAIT, 7, soon) == -ETIMEDOUT
    # An absolute time in the past, on either clock.
    assert futex(user, word, fx.FUTEX_WAIT_BITSET, 7, soon, 0, -1) == -ETIMEDOUT
    assert futex(user, word, fx.FUTEX_WAIT_BITSET | 256, 7, soon, 0, -1) == -ETIMEDOUT
    assert futex(user, word, fx.FUTEX_WAIT | 256, 7, soon) == -ENOSYS
    assert futex(user, word, 14, 7) == -ENOSYS
    user.p.p_sigacts.set(SIGUSR1, (0x40_0000, 0, 0, 0))
    kernel.sched.callout(MS, ksignal, user.p, SIGUSR1)
    assert futex(user, word, fx.FUTEX_WAIT, 7) == ERESTART
    user.p.p_sigqueue.discard(-1)
    kernel.sched.callout(MS, ksignal, user.p, SIGUSR1)
    later = user.put(struct.pack("<qq", 5, 0))
    assert futex(user, word, fx.FUTEX_WAIT, 7, later) == ERESTART_RESTARTBLOCK


def test_futex_across_processes(kernel: Kernel, user: User, word: int) -> None:
    """Shared memory is one word at any address; private memory is another after fork."""
    shared = user.call(sys_mmap, 0, PAGE, 3, 0x21, -1, 0)
    child = user.fork()
    threads = Threads(kernel)
    threads.start(child, "shared", shared, fx.FUTEX_WAIT, 0, 0, 0, 0)
    threads.start(child, "private", word, fx.FUTEX_WAIT, 7, 0, 0, 0)
    assert futex(user, word, fx.FUTEX_WAKE, 9) == 0
    assert futex(user, shared, fx.FUTEX_WAKE, 9) == 1
    assert fx.futex_wake(child.lp, child.lp.lwp_proc.p_vmspace, word, 1) == 1
    kernel.sched.run()
    assert threads.results == {"shared": 0, "private": 0}
