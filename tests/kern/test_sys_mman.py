"""mmap and its family: what test_mman_host can't compare with Linux, because it is about this
machine's memory, limits and rights, or about more than one process.
"""

from __future__ import annotations

import os
from errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EEXIST,
    EFAULT,
    EINVAL,
    ENODEV,
    ENOMEM,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
)
from typing import TYPE_CHECKING

import pytest
from user_util import PAGE, User

from dfvm.kern import sys_mlock as ml
from dfvm.kern import sys_mman as mm
from dfvm.kern.kern_commit import data_size
from dfvm.kern.sys_generic import sys_pwrite64
from dfvm.kern.sys_pipe import sys_pipe
from dfvm.kern.vfs_syscalls import sys_open
from dfvm.kern.vma import PROT_GROWSDOWN, PROT_GROWSUP
from dfvm.vm.vm_map import MAP_WIREFUTURE
from dfvm.vm.vm_proc import RLIMIT_DATA, RLIMIT_MEMLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.kernel import Kernel

ANON = 0x22
SHARED = 0x21
BASE = 0x2000_0000_0000  # free user addresses


def mmap(
    user: User,
    size: int,
    prot: int = 3,
    flags: int = ANON,
    addr: int = 0,
    fd: int = -1,
    off: int = 0,
) -> int:
    return user.call(mm.sys_mmap, addr, size, prot, flags, fd, off)


def fixed(user: User, addr: int, size: int, prot: int = 3, flags: int = ANON) -> int:
    assert mmap(user, size, prot, flags | mm.MAP_FIXED, addr) == addr
    return addr


def resident(user: User) -> int:
    return user.p.p_vmspace.vm_pmap.pm_stats.resident_count


def wired(user: User) -> int:
    return user.p.p_vmspace.vm_pmap.pm_stats.wired_count


def mincore(user: User, addr: int, pages: int) -> bytes:
    at = user.put(b"")
    assert user.call(mm.sys_mincore, addr, pages * PAGE, at) == 0
    return user.read(at, pages)


@pytest.fixture
def file(user: User) -> Iterator[int]:
    """A file of three pages, open for reading and writing."""
    at = user.put(b"/tmp/dfvm-mman-test\0")
    fd = user.call(sys_open, at, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    assert fd >= 0
    for n in range(3):
        user.call(sys_pwrite64, fd, user.put(bytes([65 + n]) * PAGE), PAGE, n * PAGE)
    yield fd


def reopen(user: User, flags: int) -> int:
    return user.call(sys_open, user.put(b"/tmp/dfvm-mman-test\0"), flags, 0)


# ---- mmap ----------------------------------------------------------------------------------------


def test_mmap_errors(user: User, nobody: User, file: int) -> None:
    assert mmap(user, 0) == -EINVAL
    assert mmap(user, PAGE, off=1) == -EINVAL
    assert mmap(user, (1 << 64) - 1) == -ENOMEM
    assert mmap(user, 1 << 47) == -ENOMEM
    assert mmap(user, PAGE, flags=0x20) == -EINVAL
    assert mmap(user, PAGE, flags=0x23) == -EINVAL
    assert mmap(user, PAGE, flags=ANON | 0x10, addr=BASE + 1) == -EINVAL
    assert mmap(user, PAGE, flags=ANON | 0x10, addr=(1 << 47) - PAGE) == -ENOMEM
    assert mmap(nobody, PAGE, flags=ANON | 0x10, addr=0) == -EPERM
    assert mmap(nobody, PAGE, flags=ANON | 0x10, addr=0x8000) == -EPERM
    assert mmap(user, PAGE, flags=ANON | 0x10, addr=0x8000) == 0x8000
    assert mmap(user, PAGE, flags=ANON | mm.MAP_HUGETLB) == -ENOMEM
    assert mmap(user, PAGE, flags=SHARED | mm.MAP_GROWSDOWN) == -EINVAL
    fixed(user, BASE, PAGE)
    assert mmap(user, 3 * PAGE, flags=ANON | mm.MAP_FIXED_NOREPLACE, addr=BASE - PAGE) == -EEXIST
    assert mmap(user, PAGE, flags=ANON | mm.MAP_FIXED_NOREPLACE, addr=BASE - PAGE) == BASE - PAGE
    # More than there could ever be, unless nobody wants to have it all.
    assert mmap(user, 128 << 20) == -ENOMEM
    assert mmap(user, 128 << 20, flags=ANON | mm.MAP_NORESERVE) > 0
    assert mmap(user, 128 << 20, prot=0) > 0
    assert mmap(user, PAGE, fd=file, flags=2, off=1 << 63) == -EOVERFLOW
    assert mmap(user, PAGE, fd=99, flags=2) == -EBADF


def test_mmap_rights_to_the_file(user: User, file: int) -> None:
    readonly, writeonly = reopen(user, os.O_RDONLY), reopen(user, os.O_WRONLY)
    assert mmap(user, PAGE, 3, 1, fd=readonly) == -EACCES
    assert mmap(user, PAGE, 1, 2, fd=writeonly) == mmap(user, PAGE, 2, 1, fd=writeonly) == -EACCES
    private = mmap(user, PAGE, 3, 2, fd=readonly)
    user.write(private, b"mine")
    shared = mmap(user, PAGE, 1, 1, fd=readonly)
    assert user.read(shared, 4) == b"AAAA"
    assert user.call(mm.sys_mprotect, shared, PAGE, 3) == -EACCES
    assert user.call(mm.sys_mprotect, private, PAGE, 3) == 0
    assert mmap(user, PAGE, 3, 3, fd=file) > 0
    assert mmap(user, PAGE, 3, 3 | 0x80_0000, fd=file) == -EOPNOTSUPP
    assert mmap(user, PAGE, 3, 2 | mm.MAP_GROWSDOWN, fd=file) == -EINVAL
    ends = user.put(bytes(8))
    user.call(sys_pipe, ends)
    assert mmap(user, PAGE, 1, 2, fd=int.from_bytes(user.read(ends, 4), "little")) == -ENODEV
    zero = user.call(sys_open, user.put(b"/dev/zero\0"), os.O_RDWR, 0)
    at = mmap(user, PAGE, 3, 2, fd=zero)
    user.write(at, b"z")
    null = user.call(sys_open, user.put(b"/dev/null\0"), os.O_RDWR, 0)
    assert mmap(user, PAGE, 3, 2, fd=null) == -ENODEV


def test_where_a_mapping_goes(user: User) -> None:
    hint = mmap(user, PAGE, addr=BASE + 100)
    assert hint == BASE  # a hint is rounded down
    assert mmap(user, PAGE, addr=BASE) != hint  # what is taken stays
    low = mmap(user, PAGE, flags=ANON | mm.MAP_32BIT)
    assert 0x4000_0000 <= low < 0x8000_0000
    assert mmap(user, 2 << 30, prot=0, flags=ANON | mm.MAP_32BIT) == -ENOMEM
    big = mmap(user, 2 << 20)
    assert big % (2 << 20) == 0


def test_populate_and_locked(user: User, kernel: Kernel, file: int) -> None:
    before = resident(user)
    at = mmap(user, 40 * PAGE, flags=ANON | mm.MAP_POPULATE)
    assert resident(user) - before == 40
    assert mincore(user, at, 40) == b"\1" * 40
    before = resident(user)
    mmap(user, 40 * PAGE, flags=ANON | mm.MAP_POPULATE | mm.MAP_NONBLOCK)
    mmap(user, 40 * PAGE, prot=0, flags=ANON | mm.MAP_POPULATE)
    assert resident(user) == before
    mmap(user, 3 * PAGE, flags=2 | mm.MAP_POPULATE, fd=file)
    assert resident(user) == before + 3
    at = mmap(user, 5 * PAGE, flags=ANON | mm.MAP_LOCKED)
    assert wired(user) == 5
    user.call(mm.sys_munmap, at, 5 * PAGE)
    assert wired(user) == 0


def test_growsdown(user: User) -> None:
    at = fixed(user, BASE, 4 * PAGE, flags=ANON | mm.MAP_GROWSDOWN)
    user.write(at - 20 * PAGE, b"grown")
    assert user.read(at - 20 * PAGE, 5) == b"grown"
    with pytest.raises(OSError):
        user.read(at - (9 << 20), 1)  # beyond RLIMIT_STACK
    below = fixed(user, BASE + (1 << 30), PAGE)
    near = fixed(user, below + (2 << 20), PAGE, flags=ANON | mm.MAP_GROWSDOWN)
    user.write(near - (1 << 20) + PAGE, b"x")
    with pytest.raises(OSError):
        user.read(below + 2 * PAGE, 1)  # too near to what is below
    elsewhere = mmap(user, 4 * PAGE, flags=ANON | mm.MAP_GROWSDOWN)
    user.write(elsewhere - 40 * PAGE, b"x")
    assert user.call(mm.sys_mprotect, elsewhere + PAGE, PAGE, 1 | PROT_GROWSDOWN) == 0
    with pytest.raises(OSError):
        user.write(elsewhere - 40 * PAGE, b"x")
    other = mmap(user, PAGE)
    assert user.call(mm.sys_mprotect, other, PAGE, 1 | PROT_GROWSDOWN) == -EINVAL
    assert user.call(mm.sys_mprotect, other, PAGE, 1 | PROT_GROWSUP) == -EINVAL


def test_shared_memory_is_shared_with_children_and_private_memory_is_not(user: User) -> None:
    shared, private = mmap(user, PAGE, flags=SHARED), mmap(user, PAGE)
    child = user.fork()
    child.write(shared, b"both")
    child.write(private, b"mine")
    assert user.read(shared, 4) == b"both"
    assert user.read(private, 4) == bytes(4)


# ---- brk -----------------------------------------------------------------------------------------


def test_brk(user: User) -> None:
    base = user.p.p_vmspace.vm_daddr
    assert user.call(mm.sys_brk, 0) == base
    assert user.call(mm.sys_brk, base + 10_000) == base + 10_000
    user.write(base + 9_999, b"x")
    assert user.call(mm.sys_brk, base + 5) == base + 5
    assert user.call(mm.sys_brk, base + 3 * PAGE) == base + 3 * PAGE
    assert user.read(base + 9_999, 1) == b"\0"  # what was given back is gone
    assert user.call(mm.sys_brk, base - 1) == base + 3 * PAGE
    assert user.call(mm.sys_brk, 1 << 63) == base + 3 * PAGE
    assert user.call(mm.sys_brk, base + (65 << 20)) == base + 3 * PAGE
    fixed(user, base + 8 * PAGE, PAGE)
    assert user.call(mm.sys_brk, base + 9 * PAGE) == base + 3 * PAGE
    room = data_size(user.p.p_vmspace.vm_map) + PAGE
    user.p.p_limit[RLIMIT_DATA] = (room, room)
    assert user.call(mm.sys_brk, base + 5 * PAGE) == base + 3 * PAGE
    assert user.call(mm.sys_brk, base + 4 * PAGE) == base + 4 * PAGE
    assert user.call(mm.sys_brk, base) == base


# ---- mincore -------------------------------------------------------------------------------------


def test_mincore(user: User, file: int) -> None:
    at = mmap(user, 64 * PAGE, flags=ANON)
    assert mincore(user, at, 64) == bytes(64)
    user.write(at + 63 * PAGE, b"x")
    assert mincore(user, at, 64)[63] == 1
    assert mincore(user, at, 64)[0] == 0
    shown = mmap(user, 3 * PAGE, 1, 1, fd=file)
    assert mincore(user, shown, 3) == b"\1\1\1"  # in the page cache since they were written
    vec = user.put(b"")
    assert user.call(mm.sys_mincore, at + 1, PAGE, vec) == -EINVAL
    assert user.call(mm.sys_mincore, BASE, PAGE, vec) == -ENOMEM
    assert user.call(mm.sys_mincore, at, PAGE, 0x1234_5000) == -EFAULT
    assert user.call(mm.sys_mincore, (1 << 47) - PAGE, PAGE, vec) == -ENOMEM
    assert user.call(mm.sys_mincore, at, 0, vec) == 0


# ---- locking -------------------------------------------------------------------------------------


def limit_locked(user: User, pages: int) -> None:
    user.p.p_limit[RLIMIT_MEMLOCK] = (pages * PAGE, pages * PAGE)


def test_mlock_keeps_to_its_limit(nobody: User) -> None:
    at = mmap(nobody, 10 * PAGE)
    limit_locked(nobody, 4)
    assert nobody.call(ml.sys_mlock, at, 5 * PAGE) == -ENOMEM
    assert nobody.call(ml.sys_mlock, at + 1, 3 * PAGE) == 0  # touches four pages
    assert wired(nobody) == 4
    assert nobody.call(ml.sys_mlock, at, 4 * PAGE) == 0  # counted once
    assert nobody.call(ml.sys_mlock, at + 4 * PAGE, PAGE) == -ENOMEM
    assert mmap(nobody, PAGE, flags=ANON | mm.MAP_LOCKED) == -EAGAIN
    assert nobody.call(mm.sys_mremap, at, 4 * PAGE, 5 * PAGE, 1, 0) == -EAGAIN
    assert nobody.call(ml.sys_munlock, at, 10 * PAGE) == 0
    assert wired(nobody) == 0
    assert nobody.call(ml.sys_mlockall, ml.MCL_CURRENT) == -ENOMEM
    limit_locked(nobody, 0)
    assert nobody.call(ml.sys_mlock, at, PAGE) == -EPERM
    assert nobody.call(ml.sys_mlock2, at, PAGE, 0) == -EPERM
    assert nobody.call(ml.sys_mlockall, ml.MCL_FUTURE) == -EPERM
    assert mmap(nobody, PAGE, flags=ANON | mm.MAP_LOCKED) == -EPERM


def test_mlock2_and_errors(user: User) -> None:
    at = mmap(user, 3 * PAGE)
    assert user.call(ml.sys_mlock2, at, PAGE, ml.MLOCK_ONFAULT) == 0
    assert user.call(ml.sys_mlock2, at, PAGE, 2) == -EINVAL
    assert user.call(ml.sys_mlock, at, (1 << 64) - PAGE) == -EINVAL
    assert user.call(ml.sys_mlock, BASE, PAGE) == -ENOMEM
    assert user.call(ml.sys_munlock, BASE, PAGE) == -ENOMEM
    assert user.call(ml.sys_mlock, at, 0) == 0


def test_mlockall(user: User) -> None:
    at = mmap(user, 4 * PAGE)
    guard = mmap(user, PAGE, prot=0)
    for flags in (0, 8, ml.MCL_ONFAULT):
        assert user.call(ml.sys_mlockall, flags) == -EINVAL
    assert user.call(ml.sys_mlockall, ml.MCL_CURRENT) == 0
    assert wired(user) == 4 + 16  # and the scratch pages
    assert mincore(user, at, 4) == b"\1" * 4
    assert user.call(ml.sys_mlockall, ml.MCL_FUTURE) == 0
    new = mmap(user, 2 * PAGE)
    assert wired(user) == 22
    base = user.p.p_vmspace.vm_daddr
    user.call(mm.sys_brk, base + PAGE)
    assert wired(user) == 23
    limit_locked(user, 1)  # does not count for root
    assert mmap(user, 2 * PAGE) > 0
    assert user.call(ml.sys_munlockall) == 0
    assert wired(user) == 0
    assert not user.p.p_vmspace.vm_map.flags & MAP_WIREFUTURE
    assert user.call(mm.sys_munmap, guard, PAGE) == user.call(mm.sys_munmap, new, PAGE) == 0


def test_locked_memory_moves_locked(user: User) -> None:
    at = fixed(user, BASE, 4 * PAGE)
    user.write(at, b"locked")
    user.call(ml.sys_mlock, at, 4 * PAGE)
    fixed(user, BASE + 4 * PAGE, PAGE)  # in the way
    moved = user.call(mm.sys_mremap, at, 4 * PAGE, 6 * PAGE, 1, 0)
    assert moved > 0 and moved != at
    assert wired(user) == 6
    assert user.read(moved, 6) == b"locked"
    there = BASE + 64 * PAGE
    assert user.call(mm.sys_mremap, moved, 6 * PAGE, 6 * PAGE, 7, there) == there
    assert wired(user) == 6
    assert user.read(there, 6) == b"locked" and user.read(moved, 6) == bytes(6)


# ---- mremap and madvise where others see the same memory -----------------------------------------


def test_mremap_after_fork_moves_one_side_only(user: User) -> None:
    at = fixed(user, BASE, 4 * PAGE)
    for n in range(4):
        user.write(at + n * PAGE, b"%d" % n)
    child = user.fork()
    user.write(at + PAGE, b"p")  # a chain: our page in front of the common ones
    there = BASE + 16 * PAGE
    assert user.call(mm.sys_mremap, at, 4 * PAGE, 8 * PAGE, 3, there) == there
    assert [user.read(there + n * PAGE, 1) for n in range(5)] == [b"0", b"p", b"2", b"3", b"\0"]
    child.write(at + 2 * PAGE, b"c")
    assert [child.read(at + n * PAGE, 1) for n in range(4)] == [b"0", b"1", b"c", b"3"]
    user.write(there + 2 * PAGE, b"u")
    assert child.read(at + 2 * PAGE, 1) == b"c"
    # Grown memory goes on being one mapping: it can be moved as one.
    last = BASE + 64 * PAGE
    assert user.call(mm.sys_mremap, there, 8 * PAGE, 8 * PAGE, 3, last) == last
    assert user.read(last + 2 * PAGE, 1) == b"u"


def test_mremap_over_partitions(user: User) -> None:
    """Large mappings are many entries here and one mapping to the program."""
    size = 40 << 20
    at = mmap(user, size, flags=ANON | mm.MAP_NORESERVE)
    for offset in (0, 33 << 20, size - PAGE):
        user.write(at + offset, b"%d" % offset)
    assert user.nentries() >= 3
    there = 0x3000_0000_0000 + 5 * PAGE
    assert user.call(mm.sys_mremap, at, size, size, 3, there) == there
    for offset in (0, 33 << 20, size - PAGE):
        assert user.read(there + offset, 3)[: len(b"%d" % offset)] == (b"%d" % offset)[:3]
    assert user.call(mm.sys_mremap, there, size, size + PAGE, 0, 0) == there


def test_mremap_twice_the_same_shared_memory(user: User) -> None:
    at = fixed(user, BASE, 4 * PAGE, flags=SHARED)
    twin = user.call(mm.sys_mremap, at, 0, 4 * PAGE, 1, 0)
    assert twin > 0
    user.write(twin + PAGE, b"seen")
    assert user.read(at + PAGE, 4) == b"seen"


def test_mremap_grows_a_file_mapping(user: User, file: int) -> None:
    for flags in (1, 2):
        at = mmap(user, PAGE, 3, flags, fd=file)
        user.write(at, b"first")
        there = BASE + flags * 64 * PAGE
        assert user.call(mm.sys_mremap, at, PAGE, 3 * PAGE, 3, there) == there
        assert user.read(there, 6) == b"firstA" and user.read(there + 2 * PAGE, 2) == b"CC"
        with pytest.raises(OSError):
            user.read(at, 1)


def test_dontneed_after_fork(user: User) -> None:
    """Throwing pages away affects nobody else, and what others share does not come back."""
    at = fixed(user, BASE, 4 * PAGE)
    user.write(at, b"a" * 4 * PAGE)
    child = user.fork()
    user.write(at + PAGE, b"b")
    assert user.call(mm.sys_madvise, at + PAGE, 2 * PAGE, 4) == 0
    assert user.read(at, 4 * PAGE) == b"a" * PAGE + bytes(2 * PAGE) + b"a" * PAGE
    assert child.read(at, 4 * PAGE) == b"a" * 4 * PAGE
    assert child.call(mm.sys_madvise, at, 4 * PAGE, 4) == 0
    assert child.read(at, 4 * PAGE) == bytes(4 * PAGE)
    assert user.read(at, PAGE) == b"a" * PAGE


def test_dontneed_of_a_private_file_shows_the_file_again(user: User, file: int) -> None:
    at = mmap(user, 3 * PAGE, 3, 2, fd=file)
    user.write(at + PAGE, b"x" * 2 * PAGE)
    child = user.fork()
    user.write(at + PAGE, b"y" * PAGE)
    assert user.call(mm.sys_madvise, at, 2 * PAGE, 4) == 0
    assert user.read(at, 3 * PAGE) == b"A" * PAGE + b"B" * PAGE + b"x" * PAGE
    assert child.read(at, 3 * PAGE) == b"A" * PAGE + b"x" * 2 * PAGE
    assert child.call(mm.sys_madvise, at, 3 * PAGE, 4) == 0
    assert child.read(at + 2 * PAGE, 1) == b"C"
    user.write(at, b"again")
    assert user.read(at, 6) == b"againA"


def test_dontneed_shows_the_file_again_after_every_page_was_written(user: User, file: int) -> None:
    """fork may shorten a chain whose front hides the rest, but the file has to stay in it."""
    at = mmap(user, 3 * PAGE, 3, 2, fd=file)
    user.write(at, b"x" * 3 * PAGE)
    child = user.fork()
    for side in (user, child):
        assert side.call(mm.sys_madvise, at, 3 * PAGE, 4) == 0
        assert side.read(at, 3 * PAGE) == b"A" * PAGE + b"B" * PAGE + b"C" * PAGE


def test_dontneed_gives_the_memory_back_and_keeps_the_map_small(user: User) -> None:
    size = 200 * PAGE
    at = mmap(user, size)
    user.write(at, bytes([1]) * size)
    entries, stats = user.nentries(), user.kernel.vm.gd.gd_vmstats
    free = stats.v_free_count
    for n in range(0, 200, 2):
        assert user.call(mm.sys_madvise, at + n * PAGE, PAGE, 4) == 0
    assert stats.v_free_count - free == 100
    assert user.nentries() == entries


def test_dontfork(user: User) -> None:
    private, shared = mmap(user, PAGE), mmap(user, PAGE, flags=SHARED)
    for at in (private, shared):
        assert user.call(mm.sys_madvise, at, PAGE, 10) == 0
    child = user.fork()
    for at in (private, shared):
        with pytest.raises(OSError):
            child.read(at, 1)
        assert user.call(mm.sys_madvise, at, PAGE, 11) == 0
    child = user.fork()
    child.write(private, b"1")
    child.write(shared, b"2")
    assert user.read(private, 1) == b"\0" and user.read(shared, 1) == b"2"


def test_remove_and_free_and_populate(user: User, file: int) -> None:
    shared, private = mmap(user, 2 * PAGE, flags=SHARED), mmap(user, 2 * PAGE)
    user.write(shared, b"x" * 2 * PAGE)
    child = user.fork()
    assert user.call(mm.sys_madvise, shared, PAGE, 9) == 0
    assert child.read(shared, 2 * PAGE) == bytes(PAGE) + b"x" * PAGE
    assert user.call(mm.sys_madvise, private, PAGE, 9) == -EINVAL
    shown = mmap(user, 3 * PAGE, 3, 1, fd=file)
    assert user.call(mm.sys_madvise, shown + PAGE, PAGE, 9) == 0
    assert user.read(shown, 3 * PAGE) == b"A" * PAGE + bytes(PAGE) + b"C" * PAGE
    assert user.call(mm.sys_madvise, shown, PAGE, 8) == -EINVAL
    user.write(private, b"y")
    assert user.call(mm.sys_madvise, private, 2 * PAGE, 8) == 0
    assert user.read(private, 1) in (b"y", b"\0")
    at = mmap(user, 32 * PAGE)
    before = resident(user)
    assert user.call(mm.sys_madvise, at, 32 * PAGE, 23) == 0
    assert resident(user) - before == 32
    readonly = mmap(user, PAGE, prot=1)
    assert user.call(mm.sys_madvise, readonly, PAGE, 23) == -EINVAL
    assert user.call(mm.sys_madvise, readonly, PAGE, 22) == 0
    beyond = mmap(user, 5 * PAGE, 3, 1, fd=file)
    assert user.call(mm.sys_madvise, beyond, 5 * PAGE, 22) == -EFAULT
