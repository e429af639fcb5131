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

from dfvm.kern import sys_mlock, sys_mman
from dfvm.kern.kernel import Kernel
from dfvm.kern.sys_generic import sys_pread64, sys_pwrite64
from dfvm.kern.vfs_syscalls import sys_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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
    "mlock": (149, sys_mlock.sys_mlock),
    "munlock": (150, sys_mlock.sys_munlock),
}

MAP_FIXED, MAP_FIXED_NOREPLACE = 0x10, 0x10_0000
PRIVATE_ANON, SHARED_ANON = 0x22, 0x21
PRIVATE_FILE, SHARED_FILE = 0x02, 0x01
FILE_PAGES = 9
FILE_BYTES = FILE_PAGES * PAGE - 100
CONTENTS = b"".join(bytes([n + 1]) * PAGE for n in range(FILE_PAGES))[:FILE_BYTES]


class Host:
    """The Linux below, in a window of this process."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(CONTENTS)
        self.fd = os.open(path, os.O_RDWR)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.restype = ctypes.c_long
        self.mem = os.open("/proc/self/mem", os.O_RDWR)
        self.clear()

    def clear(self) -> None:
        self.call("munmap", WINDOW, PAGES * PAGE)
        os.pwrite(self.fd, CONTENTS, 0)

    def close(self) -> None:
        self.clear()
        os.close(self.mem)
        os.close(self.fd)

    def call(self, name: str, *args: int) -> int:
        result: int = self.libc.syscall(
            ctypes.c_long(CALLS[name][0]), *[ctypes.c_long(a) for a in args]
        )
        return -ctypes.get_errno() if result == -1 else result

    def prots(self) -> dict[int, tuple[str, int]]:
        """Page number in the window → (rights, which mapping it belongs to). "f" is a file."""
        found = {}
        with open("/proc/self/maps") as maps:
            for n, line in enumerate(maps):
                where, rights, _, dev, _ = line.split()[:5]
                rights += "f" if dev != "00:00" and "/dev/zero" not in line else "-"
                start, end = (int(x, 16) for x in where.split("-"))
                if WINDOW <= start < WINDOW + PAGES * PAGE:
                    for va in range(start, end, PAGE):
                        found[(va - WINDOW) // PAGE] = (rights, n)
        return found

    def read(self, page: int) -> bytes | None:
        """None beyond the end of a file."""
        try:
            return os.pread(self.mem, PAGE, WINDOW + page * PAGE)
        except OSError:
            return None

    def write(self, page: int, data: bytes) -> None:
        os.pwrite(self.mem, data, WINDOW + page * PAGE)


pages = st.integers(0, PAGES - 1)
sizes = st.integers(0, PAGES // 3)
prots = st.sampled_from([0, 1, 3, 3, 3, 5])

STEP = st.one_of(
    st.tuples(st.just("mmap"), pages, sizes, prots,
              st.sampled_from([PRIVATE_ANON, PRIVATE_ANON, SHARED_ANON, PRIVATE_FILE, SHARED_FILE]),
              st.sampled_from([MAP_FIXED, MAP_FIXED_NOREPLACE]), st.integers(0, 6)),
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

FILL = ("mmap", 0, PAGES - 4, 3, PRIVATE_ANON, MAP_FIXED, 0)


MREMAP_DONTUNMAP = 4
FD = 1000  # stands for the file


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
        return at, n[0] * PAGE, n[1], n[2] | n[3], -1 if n[2] & 0x20 else FD, n[4] * PAGE
    if name == "mremap":
        old, new, to, flags = n
        if to + new > PAGES:
            return None
        return at, old * PAGE, new * PAGE, flags, WINDOW + to * PAGE
    if name == "madvise" and n[1] == 4 and n[0] == 0:
        return None
    return at, n[0] * PAGE, *n[1:]


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=30), st.booleans())
def test_same_as_linux(
    machine: tuple[Kernel, Host], steps: list[tuple[int | str, ...]], fill: bool
) -> None:
    kernel, host = machine
    host.clear()
    user = User(kernel)
    fd = open_file(user)
    for step in [FILL, *steps] if fill else steps:
        name = str(step[0])
        rights = host.prots()
        if name == "write":
            page, value = step[1], step[2]
            assert isinstance(page, int) and isinstance(value, int)
            # Beyond the end of a file it is SIGBUS, here and there.
            if "w" in rights.get(page, ("", 0))[0] and host.read(page) is not None:
                host.write(page, bytes([value]) * 8)
                user.write(WINDOW + page * PAGE, bytes([value]) * 8)
            continue
        args = arguments(step)
        if args is None or skip(host, name, args, rights):
            continue
        want = host.call(name, *[host.fd if a == FD else a for a in args])
        got = user.call(CALLS[name][1], *[fd if a == FD else a for a in args])
        assert got == want, f"{name}{tuple(map(hex, args))}: {got} instead of {want}"
        compare(user, host, step)
    verify(kernel)
    at = user.put(b"")
    assert user.call(sys_pread64, fd, at, FILE_BYTES, 0) == FILE_BYTES
    assert user.read(at, FILE_BYTES) == os.pread(host.fd, FILE_BYTES, 0)
    reap(user)


def open_file(user: User) -> int:
    """A file like the host's; returns its descriptor."""
    at = user.put(CONTENTS)
    user.write(at + FILE_BYTES, b"/tmp/dfvm-mman-test\0")
    fd = user.call(sys_open, at + FILE_BYTES, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    assert fd >= 0
    assert user.call(sys_pwrite64, fd, at, FILE_BYTES, 0) == FILE_BYTES
    return fd


def skip(host: Host, name: str, args: tuple[int, ...], rights: dict[int, tuple[str, int]]) -> bool:
    """Whether Linux's answer depends on its version, or on how mappings have been merged."""
    if name == "mremap":
        first = (args[0] - WINDOW) // PAGE
        span = {rights.get(n, ("", -1)) for n in range(first, first + max(args[1] // PAGE, 1))}
        # MREMAP_DONTUNMAP of a part takes the lock off the whole mapping on Linux.
        last = first + args[1] // PAGE
        around = {rights.get(n, ("", -2))[1] for n in (first - 1, last)}
        if args[3] & MREMAP_DONTUNMAP and around & {n for _, n in span}:
            return True
        # Linux 6.17 moves several mappings at once; earlier ones answer EFAULT. What is shared
        # and grows has no memory there: reading it would be SIGBUS.
        return len(span) > 1 or (args[2] > args[1] and any("s-" in how for how, _ in span))
    if name == "mlock":
        # Linux remembers that memory which can't be had was to be locked.
        first = (args[0] - WINDOW) // PAGE
        return any(
            rights.get(page, ("",))[0].startswith("---") or (page in rights and not host.read(page))
            for page in range(first, first + args[1] // PAGE)
        )
    return False


def compare(user: User, host: Host, step: tuple[int | str, ...]) -> None:
    """Every page that may be read on the host reads the same here, and no other may be read."""
    rights = host.prots()
    for page in range(PAGES):
        want = host.read(page) if "r" in rights.get(page, ("-", 0))[0] else None
        try:
            mine = user.read(WINDOW + page * PAGE, PAGE)
        except OSError as e:
            assert e.errno == EFAULT
            assert want is None, f"page {page} can't be read after {step}"
            continue
        assert want is not None, f"page {page} can be read after {step}"
        assert mine == want, f"page {page} after {step}"


def reap(user: User) -> None:
    """Take the process away again."""
    from dfvm.vm.vmspace import vmspace_rel

    kernel = user.kernel
    kernel.sched.thread0.td_proc = None
    del kernel.procs[user.p.p_pid]
    del kernel.initproc.p_children[user.p.p_pid]
    del user.p.p_pgrp.pg_members[user.p.p_pid]
    user.p.p_fd.fdfree()
    user.p.p_fs.fsfree()
    vmspace_rel(user.p.p_vmspace)
    kernel.kstack_free(user.lp.lwp_stack)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kernel, Host]]:
    kernel, host = Kernel(64 << 20), Host(tmp_path_factory.mktemp("mman") / "file")
    yield kernel, host
    host.close()
    kernel.sched.close()
