"""The kernel's accesses to user memory."""

from __future__ import annotations

from errno import EFAULT, ENAMETOOLONG
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvm.machine.pte import PG_A, PG_M
from dfvm.vm.copyio import (
    UIO_READ,
    UIO_WRITE,
    Uio,
    copyin,
    copyinstr,
    copyout,
    fuword32,
    fuword64,
    suword32,
    suword64,
    uiomove,
    uiomove_pa,
    uioread,
    user_pages,
)
from dfvm.vm.pmap import pmap_pte
from dfvm.vm.vm import VM_PROT_NONE, VM_PROT_READ
from dfvm.vm.vm_param import VM_MAX_USER_ADDRESS, VM_MIN_KERNEL_ADDRESS
from dfvm.vm.vmspace import vmspace_fork
from tests.vm.map_util import P, Proc, anon
from tests.vm.vnode_stub import make_vm

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vmspace import Vmspace

BASE = 0x40_0000


@pytest.fixture
def space(vm: VmSystem) -> Vmspace:
    """Eight pages at BASE, then nothing; a read-only page and a forbidden one further up."""
    proc = Proc(vm)
    anon(proc.map, BASE, 8)
    anon(proc.map, BASE + 16 * P, 1, VM_PROT_READ)
    anon(proc.map, BASE + 20 * P, 1, VM_PROT_NONE)
    return proc.p_vmspace


@pytest.mark.spec("FAULT-12")
def test_accesses_fault_pages_in_and_set_a_and_d(space: Vmspace) -> None:
    assert copyin(space, BASE + 5, 3) == bytes(3)
    pmap = space.vm_pmap
    assert pmap_pte(pmap, BASE) & (PG_A | PG_M) == PG_A
    copyout(space, b"xyz", BASE + 5)
    assert pmap_pte(pmap, BASE) & (PG_A | PG_M) == PG_A | PG_M
    assert copyin(space, BASE + 4, 5) == b"\0xyz\0"


def test_ranges_over_many_pages(space: Vmspace) -> None:
    data = bytes(i * 7 & 0xFF for i in range(3 * P + 11))
    copyout(space, data, BASE + 100)
    assert copyin(space, BASE + 100, len(data)) == data
    assert copyin(space, BASE, 100) == bytes(100)
    copyout(space, b"", 0)  # nothing is nowhere
    assert copyin(space, 0, 0) == b""


@pytest.mark.spec("FAULT-8")
@pytest.mark.parametrize(
    "uaddr",
    [0, BASE + 8 * P, BASE + 20 * P, VM_MAX_USER_ADDRESS, 1 << 47, VM_MIN_KERNEL_ADDRESS,
     (1 << 64) - 1],
)  # fmt: skip
def test_bad_addresses_are_efault(space: Vmspace, uaddr: int) -> None:
    for access in (
        lambda: copyin(space, uaddr, 1),
        lambda: copyin(space, uaddr, 1 << 40),
        lambda: copyout(space, b"ab", uaddr),
        lambda: copyinstr(space, uaddr, 10),
        lambda: uiomove(b"ab", Uio(space, [(uaddr, 2)], UIO_READ)),
    ):
        with pytest.raises(OSError, match="Bad address") as error:
            access()
        assert error.value.errno == EFAULT


def test_read_only_memory_is_read_and_not_written(space: Vmspace) -> None:
    assert copyin(space, BASE + 16 * P, 4) == bytes(4)
    with pytest.raises(OSError, match="Bad address"):
        copyout(space, b"a", BASE + 16 * P)
    assert copyin(space, BASE + 16 * P, 1) == b"\0"


def test_what_lies_before_a_bad_address_is_done(space: Vmspace) -> None:
    edge = BASE + 8 * P
    with pytest.raises(OSError, match="Bad address"):
        copyout(space, b"abcdef", edge - 3)
    assert copyin(space, edge - 3, 3) == b"abc"
    uio = Uio(space, [(edge - 3, 6)], UIO_READ)
    with pytest.raises(OSError, match="Bad address"):
        uiomove(b"uvwxyz", uio)
    assert uio.uio_resid == 3
    assert copyin(space, edge - 3, 3) == b"uvw"
    seen = []
    with pytest.raises(OSError, match="Bad address"):
        seen += [k for _, k in user_pages(space, edge - 10, 20, False)]
    assert next(iter(user_pages(space, edge - 10, 10, False)))[1] == 10


def test_strings(space: Vmspace) -> None:
    copyout(space, b"hello\0world", BASE + P - 3)
    assert copyinstr(space, BASE + P - 3, 100) == b"hello"
    assert copyinstr(space, BASE + P - 3, 6) == b"hello"
    with pytest.raises(OSError, match="too long") as error:
        copyinstr(space, BASE + P - 3, 5)
    assert error.value.errno == ENAMETOOLONG
    assert copyinstr(space, BASE + P + 2, 9) == b""
    copyout(space, b"q" * 8, BASE + 8 * P - 8)
    with pytest.raises(OSError, match="Bad address"):
        copyinstr(space, BASE + 8 * P - 8, 100)
    copyout(space, b"q\0", BASE + 8 * P - 2)
    assert copyinstr(space, BASE + 8 * P - 2, 100) == b"q"  # does not look beyond


def test_words(space: Vmspace) -> None:
    suword64(space, BASE + P - 4, 0x1122334455667788)
    assert fuword64(space, BASE + P - 4) == 0x1122334455667788
    assert fuword32(space, BASE + P) == 0x11223344
    suword32(space, BASE, -1)
    assert fuword64(space, BASE) == 0xFFFFFFFF


def test_a_write_copies_memory_that_is_shared_after_fork(space: Vmspace) -> None:
    copyout(space, b"old", BASE)
    child = vmspace_fork(space)
    copyout(space, b"new", BASE)
    assert copyin(child, BASE, 3) == b"old"
    copyout(child, b"own", BASE)
    assert copyin(space, BASE, 3) == b"new"


def test_uio_gathers_and_scatters(vm: VmSystem, space: Vmspace) -> None:
    iov = [(BASE + P - 2, 5), (BASE, 0), (BASE + 3 * P, 4)]
    uio = Uio(space, iov, UIO_READ)
    assert uio.uio_resid == 9
    assert uiomove(b"abc", uio) == 3
    assert uiomove(b"defghijkl", uio) == 6
    assert uio.uio_resid == 0
    assert uiomove(b"more", uio) == 0
    assert copyin(space, BASE + P - 2, 5) == b"abcde"
    assert copyin(space, BASE + 3 * P, 4) == b"fghi"
    back = Uio(space, iov, UIO_WRITE)
    into = bytearray(4)
    assert uiomove(into, back) == 4
    assert bytes(into) == b"abcd"
    assert uioread(back, 100) == b"efghi"
    pa = next(iter(user_pages(space, BASE + 5 * P, P, True)))[0]
    assert uiomove_pa(vm, pa, 3, Uio(space, [(BASE + P - 2, 3)], UIO_WRITE)) == 3
    assert copyin(space, BASE + 5 * P, 4) == b"abc\0"


def test_uio_over_kernel_buffers() -> None:
    first, second = bytearray(3), bytearray(4)
    uio = Uio(None, [memoryview(first), memoryview(b""), memoryview(second)], UIO_READ)
    assert uio.uio_resid == 7
    assert uiomove(b"abcde", uio) == 5
    assert (bytes(first), bytes(second)) == (b"abc", b"de\0\0")
    assert uio.uio_resid == 2
    assert uioread(Uio(None, [memoryview(b"xy"), memoryview(b"z")], UIO_WRITE), 9) == b"xyz"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3 * P), st.integers(0, 5000)), min_size=1, max_size=5),
    st.lists(st.integers(1, 6000), max_size=8),
)
def test_uio_moves_like_a_flat_copy(iov: list[tuple[int, int]], steps: list[int]) -> None:
    vm = make_vm(4)
    proc = Proc(vm)
    anon(proc.map, BASE, 8)
    space = proc.p_vmspace
    model = bytearray(8 * P)
    total = sum(n for _, n in iov)
    data = bytes(i * 31 % 251 for i in range(total))
    uio = Uio(space, [(BASE + at, n) for at, n in iov], UIO_READ)
    done = 0
    for step in steps:
        done += uiomove(data[done : done + step], uio)
    left = done
    at = 0
    for start, n in iov:
        k = min(n, left)
        model[start : start + k] = data[at : at + k]
        at += k
        left -= k
    assert uio.uio_resid == total - done
    assert copyin(space, BASE, 8 * P) == bytes(model)
