"""The memory system calls against those of the host: the same random sequence of calls is made
here and, through ctypes, on the Linux below; results, error numbers and memory must agree.
"""

from __future__ import annotations

import ctypes
import os
import sys
from errno import EFAULT
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from user_util import PAGE, User, verify

from dfvm.kern import sys_mman
from dfvm.kern.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.uname().machine != "x86_64",
    reason="compares with Linux on x86-64",
)

WINDOW = 0x1000_0000_0000  # addresses that neither Python nor the guest uses otherwise
PAGES = 24

CALLS: dict[str, tuple[int, Callable[..., int]]] = {
    "mmap": (9, sys_mman.sys_mmap),
    "mprotect": (10, sys_mman.sys_mprotect),
    "munmap": (11, sys_mman.sys_munmap),
    "mremap": (25, sys_mman.sys_mremap),
    "msync": (26, sys_mman.sys_msync),
    "madvise": (28, sys_mman.sys_madvise),
    "mlock": (149, sys_mman.sys_mlock),
    "munlock": (150, sys_mman.sys_munlock),
}

MAP_FIXED, MAP_FIXED_NOREPLACE = 0x10, 0x10_0000
PRIVATE_ANON, SHARED_ANON = 0x22, 0x21


class Host:
    """The Linux below, in a window of this process."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.restype = ctypes.c_long
        self.mem = os.open("/proc/self/mem", os.O_RDWR)
        self.clear()

    def clear(self) -> None:
        self.call("munmap", WINDOW, PAGES * PAGE)

    def close(self) -> None:
        self.clear()
        os.close(self.mem)

    def call(self, name: str, *args: int) -> int:
        result: int = self.libc.syscall(
            ctypes.c_long(CALLS[name][0]), *[ctypes.c_long(a) for a in args]
        )
        return -ctypes.get_errno() if result == -1 else result

    def prots(self) -> dict[int, tuple[str, int]]:
        """Page number in the window → (rights, which mapping it belongs to)."""
        found = {}
        with open("/proc/self/maps") as maps:
            for n, line in enumerate(maps):
                where, rights = line.split()[:2]
                start, end = (int(x, 16) for x in where.split("-"))
                if WINDOW <= start < WINDOW + PAGES * PAGE:
                    for va in range(start, end, PAGE):
                        found[(va - WINDOW) // PAGE] = (rights, n)
        return found

    def read(self, page: int) -> bytes:
        return os.pread(self.mem, PAGE, WINDOW + page * PAGE)

    def write(self, page: int, data: bytes) -> None:
        os.pwrite(self.mem, data, WINDOW + page * PAGE)


pages = st.integers(0, PAGES - 1)
sizes = st.integers(0, PAGES // 3)
prots = st.sampled_from([0, 1, 3, 3, 3, 5])

STEP = st.one_of(
    st.tuples(st.just("mmap"), pages, sizes, prots,
              st.sampled_from([PRIVATE_ANON, PRIVATE_ANON, SHARED_ANON]),
              st.sampled_from([MAP_FIXED, MAP_FIXED_NOREPLACE])),
    st.tuples(st.just("munmap"), pages, sizes),
    st.tuples(st.just("mprotect"), pages, sizes, prots),
    st.tuples(st.just("write"), pages, st.integers(1, 255)),
    st.tuples(st.just("write"), pages, st.integers(1, 255)),
    st.tuples(st.just("madvise"), pages, sizes,
              st.sampled_from([0, 1, 2, 3, 4, 4, 4, 9, 10, 11, 14, 16, 17, 20, 22, 23, 24, 99])),
    st.tuples(st.just("mremap"), pages, sizes, sizes, pages,
              st.sampled_from([0, 0, 3, 3, 7, 2, 4, 8])),
    st.tuples(st.just("msync"), pages, sizes, st.sampled_from([0, 1, 4, 5, 2, 6])),
    st.tuples(st.just("mlock"), pages, sizes),
    st.tuples(st.just("munlock"), pages, sizes),
)  # fmt: skip

FILL = ("mmap", 0, PAGES - 4, 3, PRIVATE_ANON, MAP_FIXED)


def arguments(step: tuple[int | str, ...]) -> tuple[int, ...] | None:
    """The arguments of a call, from page numbers."""
    name, page, *rest = step
    assert isinstance(page, int)
    at = WINDOW + page * PAGE
    n = [x for x in rest if isinstance(x, int)]
    if n and name != "write":
        if page + n[0] > PAGES:
            return None
    if name == "mmap":
        return at, n[0] * PAGE, n[1], n[2] | n[3], -1, 0
    if name == "mremap":
        old, new, to, flags = n
        if to + new > PAGES:
            return None
        return at, old * PAGE, new * PAGE, flags, WINDOW + to * PAGE
    if name == "madvise" and n[1] == 4 and n[0] == 0:
        return None
    return at, n[0] * PAGE, *n[1:]


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=30), st.booleans())
def test_same_as_linux(
    machine: tuple[Kernel, Host], steps: list[tuple[int | str, ...]], fill: bool
) -> None:
    kernel, host = machine
    host.clear()
    user = User(kernel)
    for step in [FILL, *steps] if fill else steps:
        name = str(step[0])
        rights = host.prots()
        if name == "write":
            page, value = step[1], step[2]
            assert isinstance(page, int) and isinstance(value, int)
            if "w" in rights.get(page, ("", 0))[0]:
                host.write(page, bytes([value]) * 8)
                user.write(WINDOW + page * PAGE, bytes([value]) * 8)
            continue
        args = arguments(step)
        if args is None or skip(name, args, rights):
            continue
        want = host.call(name, *args)
        got = user.call(CALLS[name][1], *args)
        assert got == want, f"{name}{tuple(map(hex, args))}: {got} instead of {want}"
        compare(user, host, step)
    verify(kernel)
    reap(user)


def skip(name: str, args: tuple[int, ...], rights: dict[int, tuple[str, int]]) -> bool:
    """Whether Linux's answer depends on its version, or on how mappings have been merged."""
    if name == "mremap":
        first = (args[0] - WINDOW) // PAGE
        span = {rights.get(n, ("", -1)) for n in range(first, first + max(args[1] // PAGE, 1))}
        # Linux 6.17 moves several mappings at once; earlier ones answer EFAULT. What is shared
        # and grows has no memory there: reading it would be SIGBUS.
        return len(span) > 1 or (args[2] > args[1] and any("s" in how for how, _ in span))
    return False


def compare(user: User, host: Host, step: tuple[int | str, ...]) -> None:
    """Every page that may be read on the host reads the same here, and no other may be read."""
    rights = host.prots()
    for page in range(PAGES):
        readable = rights.get(page, ("---",))[0] != "---p" and "r" in rights.get(page, ("-", 0))[0]
        try:
            mine = user.read(WINDOW + page * PAGE, PAGE)
        except OSError as e:
            assert e.errno == EFAULT
            assert not readable, f"page {page} can't be read after {step}"
            continue
        assert readable, f"page {page} can be read after {step}"
        assert mine[:8] == host.read(page)[:8], f"page {page} after {step}"


def reap(user: User) -> None:
    """Take the process away again."""
    from dfvm.vm.vmspace import vmspace_rel

    kernel = user.kernel
    kernel.sched.thread0.td_proc = None
    del kernel.procs[user.p.p_pid]
    del kernel.initproc.p_children[user.p.p_pid]
    del user.p.p_pgrp.pg_members[user.p.p_pid]
    user.p.p_fd.fdfree()
    vmspace_rel(user.p.p_vmspace)
    kernel.kstack_free(user.lp.lwp_stack)


@pytest.fixture(scope="module")
def machine() -> object:
    kernel, host = Kernel(64 << 20), Host()
    yield kernel, host
    host.close()
    kernel.sched.close()
