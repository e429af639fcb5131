"""Run a guest program and look at the machine where the program says so.

A guest that includes look.h calls `look(tag, a, b)`. To every other kernel that is a harmless
system call; here it calls the test's observer, in the guest's own thread and at exactly that point
of its run. What the observer returns is kept under the tag:

    seen = watch(guest_bin / "cow_counts", at=lambda look: look.chain(look.a))
    assert len(seen[2][0]) == 1
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

from dfvm import PIPE, Machine
from dfvm.machine import cpu
from dfvm.machine.reg import R8, R10, RDX, RSI
from dfvm.vm import probe
from dfvm.vm.pmap import pmap_pte
from dfvm.vm.vm_meter import VmMeter, VmStatsAdj
from dfvm.vm.vm_page import PHYS_TO_VM_PAGE
from tests.kern.guest_util import by_host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfvm.kern.proc import Lwp, Proc
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMap, VmMapBacking, VmMapEntry
    from dfvm.vm.vm_page import VmPage

PAGE = 4096
FRAME = 0x000F_FFFF_FFFF_F000
LOOK = 146  # sched_get_priority_max
# The clock ticks for programs that hang only. A tick flushes the TLB and may let another process
# run, so that what is counted here would depend on how fast the host is.
TICK_NS = 20_000_000_000


def place(n: int) -> int:
    """look.h's place()."""
    return 0x1000_0000_0000 + n * 0x4000_0000


class Counts:
    """All counters of the machine's memory at one moment; the difference of two is what has
    happened."""

    def __init__(self, vm: VmSystem, flushes: int) -> None:
        self.values = {
            name: getattr(vm.vmmeter, name) + getattr(vm.gd.gd_cnt, name)
            for name in VmMeter.__slots__
            if name not in ("v_swtch", "v_trap", "v_syscall")
        }
        for name in VmStatsAdj.__slots__:
            self.values[name] = getattr(vm.vmstats, name) + getattr(vm.gd.gd_vmstats_adj, name)
        self.values["flushes"] = flushes

    def __getattr__(self, name: str) -> int:
        return self.values[name]

    def __sub__(self, before: Counts) -> dict[str, int]:
        """What has changed since `before`."""
        return {
            name: n - before.values[name]
            for name, n in self.values.items()
            if n != before.values[name]
        }


class Look:
    """The machine as a guest wants it to be looked at, while the guest stands still."""

    def __init__(self, machine: Machine, lwp: Lwp, q: memoryview) -> None:
        self.machine = machine
        self.kernel = machine.kernel
        self.vm: VmSystem = machine.kernel.vm
        self.lwp = lwp
        self.proc: Proc = lwp.lwp_proc
        self.map: VmMap = self.proc.p_vmspace.vm_map
        self.pmap = self.map.pmap
        self.tag, self.a, self.b, self.c = q[RSI], q[RDX], q[R10], q[R8]

    def counts(self) -> Counts:
        return Counts(self.vm, self.kernel.mmu.flushes)

    def entries(self, start: int, end: int) -> list[VmMapEntry]:
        """The entries that overlap [start, end)."""
        return [e for e in self.map if e.ba.end > start and e.ba.start < end]

    def entry(self, va: int) -> VmMapEntry:
        """The entry at `va`."""
        (entry,) = self.entries(va, va + 1)
        return entry

    def chain(self, va: int) -> list[VmMapBacking]:
        """The backing chain at `va`, front first."""
        ba: VmMapBacking | None = self.entry(va).ba
        chain = []
        while ba is not None:
            chain.append(ba)
            ba = ba.backing_ba
        return chain

    def pte(self, va: int) -> int:
        return pmap_pte(self.pmap, va)

    def ptes(self, va: int, count: int) -> list[int]:
        return [self.pte(va + i * PAGE) for i in range(count)]

    def page(self, va: int) -> VmPage:
        """The page that is mapped at `va`."""
        m = PHYS_TO_VM_PAGE(self.vm, self.pte(va) & FRAME)
        assert m is not None, f"nothing is mapped at {va:#x}"
        return m

    def pages(self, va: int, count: int) -> list[VmPage]:
        return [self.page(va + i * PAGE) for i in range(count)]


class Seen(dict[int, list[Any]]):
    """What was seen under each tag, in order; and how it all ended."""

    status: int | None  # the program's exit status
    stdout: bytes
    stderr: bytes
    faults: list[probe.FaultRecord]  # every fault, when they were asked for

    def one(self, tag: int) -> Any:
        """What was seen under a tag that comes once."""
        (value,) = self[tag]
        return value


def watch(
    program: Path,
    *args: str,
    at: Callable[[Look], Any],
    mem: str | int = "64M",
    setup: Callable[[Machine], None] | None = None,
    faults: bool | Callable[[probe.FaultRecord], None] = False,
) -> Seen:
    """Run `program` with `at` as its observer, in a machine that checks itself.

    :param setup: is given the machine before anything runs.
    :param faults: keep a record of every fault, or what is to be done with each.
    """
    seen = Seen()
    seen.faults = []
    with Machine(mem=mem, check=True, env={}) as m:
        if setup is not None:
            setup(m)

        def observe(lwp: Lwp, q: memoryview) -> int:
            look = Look(m, lwp, q)
            seen.setdefault(look.tag, []).append(at(look))
            return 0

        m.kernel.sysent[LOOK] = observe
        p = m.spawn([str(program), *args], stdin=b"", stdout=PIPE, stderr=PIPE)
        if faults:
            probe.fault = seen.faults.append if faults is True else faults
        try:
            with mock.patch.object(cpu, "TICK_NS", TICK_NS):
                m.run(timeout=600)
        finally:
            probe.fault = None
        m.check()
        assert p.stdout is not None
        assert p.stderr is not None
        seen.status, seen.stdout, seen.stderr = p.exit_status, p.stdout, p.stderr
    return seen


def watch_same(program: Path, *args: str, at: Callable[[Look], Any], **how: Any) -> Seen:
    """`watch`, and the host must make the program print and end the same."""
    seen = watch(program, *args, at=at, **how)
    assert (seen.status, seen.stdout) == by_host(program, *args), seen.stderr.decode()
    return seen
