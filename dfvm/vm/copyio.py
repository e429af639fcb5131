"""The kernel's way to user memory: copyin, copyout, strings, words, and uio.

Every access goes through the page table as the user's own would: it needs the user's right at that
page, faults the page in, copies it on write, and sets A and M. An address that can't be reached is
OSError(EFAULT), raised at the first such byte: what lies before it has been done.

Nothing here keeps a page. A frame that `user_pages` yields may be anybody's as soon as the thread
sleeps, so it is used before the next thing that can.

    uio = Uio(space, [(addr, len), …], UIO_READ)    read(2): kernel → user
    uiomove(data, uio)                              the next len(data) bytes, advances uio
    uiogive(data, uio)                              likewise, and what arrived before a fault counts

Source: DragonFly sys/kern/kern_subr.c, sys/cpu/x86_64 support.s (copyin, copyout), sys/sys/uio.h.
"""

from __future__ import annotations

from errno import EFAULT, ENAMETOOLONG
from typing import TYPE_CHECKING, Any, Final

from dfvm.machine.pte import PG_A, PG_FRAME, PG_M, PG_RW, PG_U, PG_V
from dfvm.vm.vm import KERN_SUCCESS, VM_PROT_READ, VM_PROT_WRITE
from dfvm.vm.vm_fault import VM_FAULT_BURST, VM_FAULT_DIRTY, vm_fault
from dfvm.vm.vm_fault_quick import vm_fault_quick
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SIZE, VM_MAX_USER_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vmspace import Vmspace

UIO_READ: Final = 0  # the kernel gives, the user's buffers are written
UIO_WRITE: Final = 1  # the user gives

_READABLE: Final = PG_V | PG_U
_WRITABLE: Final = PG_V | PG_U | PG_RW


def efault() -> OSError:
    """The error of an address that can't be reached."""
    return OSError(EFAULT, "Bad address")


def user_page(space: Vmspace, uaddr: int, write: bool) -> int:
    """The physical address of the user's byte `uaddr`, valid up to the end of its page, after an
    access there by the user: faulted in, A set, and M with `write`.

    :raises OSError: EFAULT. May block for the fault.
    """
    pmap = space.vm_pmap
    base = pmap.pm_pt.get(uaddr >> 21)
    while True:
        if base is not None:
            slot = base + (uaddr >> 12 & 511)
            pte: int = pmap.q[slot]
            if write:
                if pte & _WRITABLE == _WRITABLE:
                    pa = pte & PG_FRAME
                    pmap.q[slot] = pte | PG_A | PG_M
                    if pa >> 12 in pmap.code_frames:
                        pmap.vm.mmu.code_written(pa >> 12)
                    return pa | uaddr & PAGE_MASK
            elif pte & _READABLE == _READABLE:
                pmap.q[slot] = pte | PG_A
                return pte & PG_FRAME | uaddr & PAGE_MASK
        _fault(space, uaddr, write)
        base = pmap.pm_pt.get(uaddr >> 21)


def _fault(space: Vmspace, uaddr: int, write: bool) -> None:
    """Fault as the user would."""
    if uaddr >= VM_MAX_USER_ADDRESS or uaddr < 0:
        raise efault()
    map = space.vm_map
    fault_type = VM_PROT_READ | VM_PROT_WRITE if write else VM_PROT_READ
    if vm_fault_quick(map, uaddr, fault_type, False):
        return
    flags = VM_FAULT_BURST | VM_FAULT_DIRTY if write else VM_FAULT_BURST
    if vm_fault(map, uaddr, fault_type, flags) != KERN_SUCCESS:
        raise efault()


def user_pages(space: Vmspace, uaddr: int, n: int, write: bool) -> Iterator[tuple[int, int]]:
    """The frames behind [uaddr, uaddr + n): (physical address, length) of each piece in order,
    each good until the thread sleeps.

    :raises OSError: EFAULT at the first byte that can't be reached, after what lies before it.
    """
    while n > 0:
        length = min(n, PAGE_SIZE - (uaddr & PAGE_MASK))
        yield user_page(space, uaddr, write), length
        uaddr += length
        n -= length


def copyin(space: Vmspace, uaddr: int, n: int) -> bytes:
    """`n` bytes of the user's memory.

    :raises OSError: EFAULT. May block.
    """
    mem = space.vm_pmap.vm.ram.mem
    if (uaddr & PAGE_MASK) + n <= PAGE_SIZE:
        if n <= 0:
            return b""
        pa = user_page(space, uaddr, False)
        return bytes(mem[pa : pa + n])
    first = PAGE_SIZE - (uaddr & PAGE_MASK)
    if n <= first + PAGE_SIZE:
        pa = user_page(space, uaddr, False)
        head = bytes(mem[pa : pa + first])  # now: what comes may block
        pa = user_page(space, uaddr + first, False)
        return head + bytes(mem[pa : pa + n - first])
    if uaddr + n > VM_MAX_USER_ADDRESS:
        raise efault()  # before gathering what may be absurdly much
    return b"".join([bytes(mem[pa : pa + k]) for pa, k in user_pages(space, uaddr, n, False)])


def copyinstr(space: Vmspace, uaddr: int, maxlen: int) -> bytes:
    """The user's string at `uaddr` without its NUL, which must be among the first `maxlen` bytes.

    :raises OSError: EFAULT, ENAMETOOLONG. May block.
    """
    mem = space.vm_pmap.vm.ram.mem
    parts = []
    for pa, k in user_pages(space, uaddr, maxlen, False):
        piece = bytes(mem[pa : pa + k])
        end = piece.find(0)
        if end >= 0:
            parts.append(piece[:end])
            return b"".join(parts)
        parts.append(piece)
    raise OSError(ENAMETOOLONG, "File name too long")


def copyout(space: Vmspace, data: bytes | bytearray | memoryview, uaddr: int) -> None:
    """Write `data` to the user's memory.

    :raises OSError: EFAULT, part-way perhaps. May block.
    """
    mem = space.vm_pmap.vm.ram.mem
    n = len(data)
    if (uaddr & PAGE_MASK) + n <= PAGE_SIZE:
        if n:
            pa = user_page(space, uaddr, True)
            mem[pa : pa + n] = data
        return
    first = PAGE_SIZE - (uaddr & PAGE_MASK)
    if n <= first + PAGE_SIZE:
        pa = user_page(space, uaddr, True)
        mem[pa : pa + first] = data[:first]
        pa = user_page(space, uaddr + first, True)
        mem[pa : pa + n - first] = data[first:]
        return
    at = 0
    for pa, k in user_pages(space, uaddr, n, True):
        mem[pa : pa + k] = data[at : at + k]
        at += k


def fuword32(space: Vmspace, uaddr: int) -> int:
    """The user's 32-bit word at `uaddr`, unsigned."""
    return int.from_bytes(copyin(space, uaddr, 4), "little")


def fuword64(space: Vmspace, uaddr: int) -> int:
    """The user's 64-bit word at `uaddr`, unsigned."""
    return int.from_bytes(copyin(space, uaddr, 8), "little")


def suword32(space: Vmspace, uaddr: int, value: int) -> None:
    """Store the low 32 bits of `value` at `uaddr`: all of them or, with EFAULT, none, as one
    instruction does that meets the end of what is mapped."""
    _suword(space, uaddr, value, 4)


def suword64(space: Vmspace, uaddr: int, value: int) -> None:
    """Store the low 64 bits of `value` at `uaddr`, likewise."""
    _suword(space, uaddr, value, 8)


def _suword(space: Vmspace, uaddr: int, value: int, size: int) -> None:
    if (uaddr & PAGE_MASK) + size > PAGE_SIZE:
        user_page(space, uaddr + size - 1, True)
    copyout(space, (value & (1 << 8 * size) - 1).to_bytes(size, "little"), uaddr)


class Uio:
    """Buffers that a read or write goes to or comes from, and how far it has got.

    With a space the buffers are the user's, (address, length) each. Without one they are the
    kernel's own, memoryviews of bytes (DragonFly's UIO_SYSSPACE).
    """

    __slots__ = ("_iov", "_next", "rw", "space", "uio_resid")

    space: Vmspace | None  # whose buffers; None: the kernel's
    rw: int  # UIO_READ or UIO_WRITE, as the user sees it
    uio_resid: int  # bytes still to move
    _iov: list[Any]  # what is left: pairs, or memoryviews without a space; the first may be begun
    _next: int  # the first of _iov that is not used up

    def __init__(
        self, space: Vmspace | None, iov: Sequence[tuple[int, int]] | Sequence[memoryview], rw: int
    ) -> None:
        self.space = space
        self.rw = rw
        self._next = 0
        self._iov = list(iov)
        if space is None:
            self.uio_resid = sum(len(buffer) for buffer in self._iov)
        else:
            self.uio_resid = sum(piece[1] for piece in self._iov)

    def piece(self, n: int) -> memoryview:
        """The next bytes of the buffers, at most `n`, up to a page boundary: memory to copy to or
        from before the thread sleeps. uio_resid is not 0. Then comes `advance`.

        :raises OSError: EFAULT.
        """
        iov, space = self._iov, self.space
        if space is None:
            while not len(iov[self._next]):
                self._next += 1
            buffer: memoryview = iov[self._next]
            return buffer[:n]
        addr, length = iov[self._next]
        while not length:
            self._next += 1
            addr, length = iov[self._next]
        room = PAGE_SIZE - (addr & PAGE_MASK)
        if n > length:
            n = length
        if n > room:
            n = room
        pa = user_page(space, addr, self.rw == UIO_READ)
        return space.vm_pmap.vm.ram.mem[pa : pa + n]

    def advance(self, n: int) -> None:
        """`n` bytes of the last piece have been moved."""
        iov, at = self._iov, self._next
        if self.space is None:
            iov[at] = iov[at][n:]
        else:
            addr, length = iov[at]
            iov[at] = (addr + n, length - n)
        self.uio_resid -= n


def uiomove(data: bytes | bytearray | memoryview, uio: Uio) -> int:
    """Move bytes between `data` and the buffers, as many as both have; returns how many. With
    UIO_WRITE `data` must be writable.

    :raises OSError: EFAULT; uio says how far it got. May block.
    """
    view = memoryview(data)
    total = min(len(view), uio.uio_resid)
    at = 0
    iov = uio._iov
    if uio.space is None:
        read = uio.rw == UIO_READ
        while at < total:
            buffer = iov[uio._next]
            n = len(buffer)
            if not n:
                uio._next += 1
                continue
            if n > total - at:
                n = total - at
            end = at + n
            if read:
                buffer[:n] = view[at:end]
            else:
                view[at:end] = buffer[:n]
            iov[uio._next] = buffer[n:]
            at = end
        uio.uio_resid -= total
        return total
    # A page at a time, as piece and advance do, for all that read and write move.
    space, read = uio.space, uio.rw == UIO_READ
    mem = space.vm_pmap.vm.ram.mem
    while at < total:
        addr, length = iov[uio._next]
        if not length:
            uio._next += 1
            continue
        n = PAGE_SIZE - (addr & PAGE_MASK)
        if n > length:
            n = length
        if n > total - at:
            n = total - at
        pa = user_page(space, addr, read)
        end = at + n
        if read:
            mem[pa : pa + n] = view[at:end]
        else:
            view[at:end] = mem[pa : pa + n]
        iov[uio._next] = (addr + n, length - n)
        uio.uio_resid -= n
        at = end
    return total


def uiogive(data: bytes | bytearray | memoryview, uio: Uio) -> int:
    """uiomove to the user of something that is lost, or can be asked for again, once part of it has
    arrived: what did counts, and only a first byte that can't be reached is an error.

    :raises OSError: EFAULT, and nothing was moved. May block.
    """
    resid = uio.uio_resid
    try:
        return uiomove(data, uio)
    except OSError:
        if uio.uio_resid == resid:
            raise
        return resid - uio.uio_resid


def uiomove_pa(vm: VmSystem, pa: int, n: int, uio: Uio) -> int:
    """Move bytes between RAM at `pa` and the buffers: `n` or as many as they have; returns how
    many. The frame is wired or held; for UIO_WRITE the caller knows that it is overwritten.

    :raises OSError: EFAULT; uio says how far it got. May block.
    """
    return uiomove(vm.ram.mem[pa : pa + n], uio)


def uioread(uio: Uio, n: int) -> bytes:
    """The next `n` bytes, or as many as there are, of UIO_WRITE buffers.

    :raises OSError: EFAULT, and what was read before it is lost. May block.
    """
    parts = []
    left = min(n, uio.uio_resid)
    while left:
        piece = uio.piece(left)
        parts.append(bytes(piece))
        uio.advance(len(piece))
        left -= len(piece)
    return b"".join(parts)
