"""A vnode for tests: storage in a bytearray, with a log of what was asked of it and errors on
demand; and a machine's VM without a machine."""

from __future__ import annotations

from errno import EIO
from typing import TYPE_CHECKING

from dfvm.lwkt.lwkt_thread import Scheduler
from dfvm.machine.mmu import Mmu
from dfvm.machine.ram import Ram
from dfvm.vm.vm_init import VmSystem

if TYPE_CHECKING:
    from dfvm.vm.vm_object import VmObject


def make_vm(mib: int = 16) -> VmSystem:
    """A VM with `mib` MiB of RAM."""
    return VmSystem(Ram(mib << 20), Scheduler(), Mmu())


class StubVnode:
    """A regular file of the shape of VmVnode."""

    def __init__(self, data: bytes = b"") -> None:
        self.v_object: VmObject | None = None
        self.v_filesize = len(data)
        self.refs = 1
        self.storage = bytearray(data)
        self.reads: list[tuple[int, int]] = []  # (offset, bytes) of each vop_getpage
        self.writes: list[tuple[int, int]] = []  # (offset, bytes) of each vop_putpage
        self.bad: set[int] = set()  # offsets of pages that can't be read or written

    def vref(self) -> None:
        self.refs += 1

    def vrele(self) -> None:
        assert self.refs > 0
        self.refs -= 1

    def vop_stored(self, wait: bool) -> bool:
        return True

    def vop_getpage(self, off: int, mv: memoryview) -> int:
        self.reads.append((off, len(mv)))
        if off & ~4095 in self.bad:
            raise OSError(EIO, "bad sector")
        data = self.storage[off : off + len(mv)]
        mv[: len(data)] = data
        return len(data)

    def vop_putpage(self, off: int, mv: memoryview) -> None:
        self.writes.append((off, len(mv)))
        if off & ~4095 in self.bad:
            raise OSError(EIO, "bad sector")
        if len(self.storage) < off:
            self.storage.extend(bytes(off - len(self.storage)))
        self.storage[off : off + len(mv)] = mv
