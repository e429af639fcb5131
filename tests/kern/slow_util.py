"""Storage and user memory that take their time: where the kernel says that it may block, it does.

The host's files are read and written at once, so a machine hardly ever sleeps in the middle of a
fault, a read or a write unless memory is short. Everything there is written for a kernel that does,
though, and memory does get short. Inside `slow(machine)` a thread that reads or writes the storage
of a file sleeps until the others have had a turn; `Slow` says how often, and with a seed the same
way again. Nobody is preempted there, so that who runs when does not depend on the clock.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from dfvm.kern.vfs.store import Store
from dfvm.lwkt.lwkt_thread import Scheduler
from dfvm.vm import copyio, vm_fault_object, vm_fault_wire
from dfvm.vm.pager import vnode_pager
from dfvm.vm.vm_page import vm_page_alloc, vm_wait

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dfvm import Machine
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage
    from dfvm.vm.vmspace import Vmspace


@dataclass
class Slow:
    """How often (0 … 1) a thread sleeps, and what for."""

    file: Path | None = None  # the host's file that is slow to read; None: all are
    read: float = 1.0  # before and after a page is read
    write: float = 0.0  # before and after one is written
    fault: float = 0.0  # before the kernel's own access to user memory faults
    memory: float = 0.0  # a fault, a read or a fork gets no page at once, and waits for memory
    turns: tuple[int, int] = (1, 1)  # how often the others are let run: from … to
    seed: int = 0


@contextmanager
def slow(machine: Machine, how: Slow) -> Iterator[None]:
    """Everything is as slow as `how` says while the machine runs in here."""
    sched = machine.kernel.sched
    rng = random.Random(how.seed)
    ino = how.file.stat().st_ino if how.file else None
    store_read, store_write, user_fault = Store.read, Store.write, copyio._fault
    severe, wait, alloc = vm_fault_object._severe, vm_fault_object.vm_wait_pfault, vm_page_alloc

    def nap(chance: float, wmesg: str) -> None:
        td = sched.curthread
        if td.td_nosleep or td is sched.thread0 or rng.random() >= chance:
            return
        for _ in range(rng.randint(*how.turns)):
            channel = object()
            sched.post(sched.wakeup, channel)
            sched.tsleep(channel, 0, wmesg)

    def read(store: Store, off: int, mv: memoryview) -> int:
        chance = how.read
        if ino is not None and (store.lower is None or store.lower.hr_ino != ino):
            chance = 0.0
        nap(chance, "slowrd")
        count = store_read(store, off, mv)
        nap(chance, "slowrd")
        return count

    def write(store: Store, off: int, mv: memoryview) -> None:
        nap(how.write, "slowwr")
        store_write(store, off, mv)
        nap(how.write, "slowwr")

    def fault(space: Vmspace, uaddr: int, write: bool) -> None:
        nap(how.fault, "slowft")
        user_fault(space, uaddr, write)

    def is_short(vm: VmSystem) -> bool:
        return severe(vm) or rng.random() < how.memory

    def wait_pfault(vm: VmSystem, wmesg: str = "pfault", timo: int = 0) -> None:
        nap(float(how.memory > 0), wmesg)
        wait(vm, wmesg, timo)

    def page_alloc(vm: VmSystem, object: VmObject | None, pindex: int, req: int) -> VmPage | None:
        return None if rng.random() < how.memory else alloc(vm, object, pindex, req)

    def wait_memory(vm: VmSystem, timo: int = 0) -> bool:
        nap(1.0, "slowmm")
        return vm_wait(vm, timo)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "hardclock", lambda self: False)
        patch.setattr(Store, "read", read)
        patch.setattr(Store, "write", write)
        patch.setattr(copyio, "_fault", fault)
        patch.setattr(vm_fault_object, "_severe", is_short)
        patch.setattr(vm_fault_object, "vm_wait_pfault", wait_pfault)
        if how.memory:
            for module in (vnode_pager, vm_fault_wire):
                patch.setattr(module, "vm_page_alloc", page_alloc)
                patch.setattr(module, "vm_wait", wait_memory)
        yield
