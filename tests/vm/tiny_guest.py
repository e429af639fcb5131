"""The smallest guest there is: a few instructions on the real engine, over a vmspace, with nothing
between the engine and vm_fault. For what only the hardware's walk can show.

    g = TinyGuest(vm, vmspace)
    g.run("mov byte [rdi], 7", rdi=addr)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.machine.cpu import EXIT_FAULT, EXIT_SYSCALL, CpuContext, Vcpu
from dfvm.machine.pte import PGEX_I, PGEX_W
from dfvm.machine.reg import RAX, RDI, RIP, RSI
from dfvm.vm.vm import (
    KERN_SUCCESS,
    VM_PROT_ALL,
    VM_PROT_EXECUTE,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_MMAP,
)
from dfvm.vm.vm_fault import (
    VM_FAULT_BURST,
    VM_FAULT_DIRTY,
    VM_FAULT_USERMODE,
    vm_fault,
    vm_fault_quick,
)
from dfvm.vm.vm_map import VM_MAPTYPE_NORMAL, vm_map_find
from dfvm.vm.vm_page import VM_ALLOC_SYSTEM, vm_page_alloczwq

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vmspace import Vmspace

SYSCALL = b"\x0f\x05"
LOAD = b"\x8a\x07"  # mov al, [rdi]
STORE = b"\x40\x88\x37"  # mov [rdi], sil
CALL = b"\xff\xd7"  # call rdi (needs a stack)
JUMP = b"\xff\xe7"  # jmp rdi
CODE = 0x7000_0000_0000


class Segv(Exception):
    """The guest would have got a signal: the KERN_* of its fault."""


def fault_type(error: int) -> int:
    """What the trap code makes of a page fault's error code."""
    if error & PGEX_W:
        return VM_PROT_READ | VM_PROT_WRITE
    if error & PGEX_I:
        return VM_PROT_READ | VM_PROT_EXECUTE
    return VM_PROT_READ


class TinyGuest:
    """A user context in `vmspace`. Its code is written anew for each run."""

    def __init__(self, vm: VmSystem, vmspace: Vmspace, vcpu: Vcpu | None = None,
                 quick: bool = False) -> None:  # fmt: skip
        self.vm = vm
        self.vmspace = vmspace
        self.vcpu = vcpu or Vcpu(vm.ram, vm.mmu)
        self.quick = quick
        self.faults: list[tuple[int, int]] = []  # (address, error code) of each that was resolved
        pcb = [vm_page_alloczwq(vm, n, VM_ALLOC_SYSTEM) for n in range(2)]
        assert pcb[0] is not None and pcb[1] is not None
        self.ctx = CpuContext(self.vcpu, pcb[0].phys_addr, pcb[1].phys_addr)
        rv, _ = vm_map_find(
            vmspace.vm_map, None, 0, CODE, 4096, 4096, False,
            VM_MAPTYPE_NORMAL, VM_SUBSYS_MMAP, VM_PROT_ALL, VM_PROT_ALL, 0,
        )  # fmt: skip
        assert rv == KERN_SUCCESS
        self.run(b"")  # so that no later fault is about the code

    def run(self, code: bytes, rdi: int = 0, rsi: int = 0) -> int:
        """Run `code` and then a system call; returns AL. Raises Segv."""
        from dfvm.vm.copyio import copyout

        copyout(self.vmspace, code + SYSCALL, CODE)
        self.faults = []
        q = self.ctx.q
        q[RIP], q[RDI], q[RSI], q[RAX] = CODE, rdi, rsi, 0
        vcpu, map = self.vcpu, self.vmspace.vm_map
        vcpu.on_fault = self._on_fault if self.quick else None
        while True:
            why = vcpu.run(self.ctx, self.vmspace.vm_pmap.pm_pml4, 0)
            if why == EXIT_SYSCALL:
                return int(self.ctx.q[RAX]) & 0xFF
            assert why == EXIT_FAULT
            flags = VM_FAULT_BURST | VM_FAULT_USERMODE
            if vcpu.fault_err & PGEX_W:
                flags |= VM_FAULT_DIRTY
            rv = vm_fault(map, vcpu.fault_va, fault_type(vcpu.fault_err), flags)
            if rv != KERN_SUCCESS:
                raise Segv(rv)
            self.faults.append((vcpu.fault_va, vcpu.fault_err))

    def _on_fault(self, va: int, error: int) -> bool:
        done = vm_fault_quick(self.vmspace.vm_map, va, fault_type(error))
        if done:
            self.faults.append((va, error))
        return done

    def load(self, va: int) -> int:
        """Read a byte."""
        return self.run(LOAD, rdi=va)

    def store(self, va: int, value: int) -> None:
        """Write a byte."""
        self.run(STORE, rdi=va, rsi=value)
