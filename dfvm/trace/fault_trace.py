"""Every page fault as it was resolved: a line for people, or a JSON object for programs.

A line tells process, RIP, the address, r/w/x, u(ser) or k(ernel), how the fault was resolved and
how many neighbours were mapped along, the frame and the PTE as installed, min(or) or maj(or), the
microseconds spent in vm_fault, and the map entry it fell in:

  pid       rip      address      how      frame     pte        µs  entry
    2  0x401c2a   0x7ffe1008 w u  zero +3  0x1f4000  P W U min 9.0  7ffdf000-7ffff000 rw- [stack]

The summary at the end counts by the way of resolving. The trace subscribes to `vm.probe.fault`
for one machine; nothing of it runs while nobody traces.
"""

from __future__ import annotations

import os
from errno import EBADF, EPIPE
from typing import TYPE_CHECKING, Any, Final, TextIO

from dfvm.machine.pte import PG_FRAME, PG_V, pte_flags
from dfvm.machine.reg import RIP
from dfvm.machine.walk import walk
from dfvm.trace.symbols import Symbols, mapped_file
from dfvm.vm import probe
from dfvm.vm.vm import (
    KERN_INVALID_ADDRESS,
    KERN_PROTECTION_FAILURE,
    KERN_RESOURCE_SHORTAGE,
    VM_PROT_EXECUTE,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_BRK,
    VM_SUBSYS_STACK,
)
from dfvm.vm.vm_param import VM_MAX_USER_ADDRESS

if TYPE_CHECKING:
    from dfvm.kern.machine import Machine
    from dfvm.machine.walk import WalkLevel
    from dfvm.vm.probe import FaultRecord
    from dfvm.vm.vm_map_entry import VmMapEntry

_TYPES: Final = ((VM_PROT_EXECUTE, "x"), (VM_PROT_WRITE, "w"), (VM_PROT_READ, "r"))
_HOWS: Final = (
    (probe.HOW_GROW, "grow"),
    (probe.HOW_ZFOD, "zero"),
    (probe.HOW_COW, "cow"),
    (probe.HOW_FILE, "file"),
    (probe.HOW_BYPASS, "bypass"),
    (probe.HOW_WPTE, "wpte"),
    (probe.HOW_RESIDENT, "resident"),
    (probe.HOW_WIRE, "wire"),
    (probe.HOW_SIGNAL, "signal"),
)
_SIGNALS: Final = {
    KERN_INVALID_ADDRESS: "SIGSEGV (MAPERR)",
    KERN_PROTECTION_FAILURE: "SIGSEGV (ACCERR)",
    KERN_RESOURCE_SHORTAGE: "SIGKILL (memory)",
}
_HEADING: Final = (
    f"{'pid':>5} {'rip':>14} {'address':>18}      {'how':<20} {'frame':<10} {'pte':<20} "
    f"{'µs':>12}  entry\n"
)


class FaultTrace:
    """Writes the faults of `machine` to `out`, a line at a time, from start() to stop()."""

    def __init__(
        self,
        machine: Machine,
        out: TextIO | None,
        form: str = "text",
        verbose: bool = False,
        walk: bool = False,
    ) -> None:
        self.machine = machine
        self.out = out
        self.form = form
        self.verbose = verbose
        self.walk = walk
        self.symbols = Symbols(machine.root)
        self.counts: dict[str, int] = {}  # by way of resolving
        self.faults = self.major = self.prefault = self.ns = 0
        self.error: OSError | None = None  # why the trace ended early
        self._started = False
        self._disassemble: Any = None

    def start(self) -> None:
        """Subscribe. One trace at a time in a Python process."""
        if probe.fault is not None:
            raise RuntimeError("somebody else is tracing faults")
        probe.fault = self._fault
        self._started = True

    def stop(self) -> None:
        """From now on nothing is written."""
        if self._started:
            self._started = False
            probe.fault = None

    def _write(self, text: str) -> None:
        """Write to `out`. If that fails the trace is over; if nobody reads it any more, so is the
        run, as it is for a program whose output nobody reads."""
        try:
            if self.out is None:
                raise OSError(EBADF, os.strerror(EBADF))
            self.out.write(text)
        except OSError as e:
            self.error = self.error or e
            self.stop()
            if e.errno == EPIPE:
                self.machine.kernel.sched.interrupt_run()

    def _fault(self, r: FaultRecord) -> None:
        if r.vm is not self.machine.kernel.vm:
            return
        how = how_name(r)
        self.counts[how] = self.counts.get(how, 0) + 1
        self.faults += 1
        self.major += r.major
        self.prefault += r.prefault
        self.ns += r.ns
        if self.form == "jsonl":
            self._json(r, how)
        else:
            self._text(r, how)

    def _who(self) -> tuple[int, int]:
        """pid of the process on whose behalf the kernel runs, and RIP; 0 while it is being given
        its program."""
        td = self.machine.kernel.sched.curthread
        if td.td_lwp is None:
            return (0 if td.td_proc is None else td.td_proc.p_pid), 0
        return td.td_lwp.lwp_proc.p_pid, td.td_lwp.ctx.q[RIP]

    def _text(self, r: FaultRecord, how: str) -> None:
        pid, rip = self._who()
        kind = next(name for bit, name in _TYPES if r.fault_type & bit)
        more = f" +{r.prefault}" if r.prefault else ""
        if r.depth and how == "cow":
            how = f"cow from depth {r.depth}"
        elif r.how & probe.HOW_SIGNAL:
            how = refusal(r)
        frame = flags = "-"
        if r.page is not None and r.pte & PG_V:
            frame, flags = f"{r.pte & PG_FRAME:#x}", pte_flags(r.pte)
        heading = _HEADING if self.faults == 1 else ""
        self._write(
            f"{heading}{pid:>5} {rip:#14x} {r.va:#18x} {kind} {by(r)[0]}  {how + more:<20} "
            f"{frame:<10} {flags:<20} {'maj' if r.major else 'min'} {r.ns / 1000:8.1f}  "
            f"{describe_entry(r)}\n"
        )
        if self.verbose:
            text = self._instruction(rip)
            if text:
                self._write(f"    {text}\n")
        if self.walk:
            self._walk(r)

    def _levels(self, r: FaultRecord) -> list[WalkLevel]:
        """The levels of the page tables that the MMU will pass through."""
        kernel = self.machine.kernel
        lwp = kernel.sched.curthread.td_lwp
        if r.map_entry is not None:  # the kernel may work for a space that nobody runs in yet
            return walk(kernel.ram, r.map_entry.ba.pmap.pm_pml4, r.va)
        return [] if lwp is None else walk(kernel.ram, lwp.lwp_cr3, r.va)

    def _walk(self, r: FaultRecord) -> None:
        for level in self._levels(r):
            flags = pte_flags(level.entry, level.name == "PD") if level.leaf else ""
            self._write(
                f"    {level.name:4} {level.table_pa:#010x} [{level.index:3}] "
                f"{level.entry:#018x} {flags}".rstrip()
                + "\n"
            )

    def _json(self, r: FaultRecord, how: str) -> None:
        import json

        pid, rip = self._who()
        record: dict[str, Any] = {
            "pid": pid,
            "rip": rip,
            "va": r.va,
            "type": next(name for bit, name in _TYPES if r.fault_type & bit),
            "from": by(r),
            "entry": None
            if r.map_entry is None
            else {"start": r.entry_start, "end": r.entry_end, "name": entry_name(r.map_entry),
                  "prot": entry_prot(r.map_entry)},
            "how": how,
            "depth": r.depth,
            "frame": r.pte & PG_FRAME if r.pte & PG_V else None,
            "pindex": r.pindex if r.page is not None else None,
            "pte": r.pte,
            "prefault": r.prefault,
            "major": r.major,
            "result": r.result,
            "ns": r.ns,
        }  # fmt: skip
        if self.verbose:
            record["instruction"] = self._instruction(rip)
        if self.walk:
            record["walk"] = [
                {"level": w.name, "table": w.table_pa, "index": w.index, "entry": w.entry}
                for w in self._levels(r)
            ]
        self._write(json.dumps(record) + "\n")

    def _instruction(self, rip: int) -> str:
        """The instruction at rip, as far as its bytes are mapped (reading it must not fault)."""
        if self._disassemble is None:
            from capstone import CS_ARCH_X86, CS_MODE_64, Cs

            self._disassemble = Cs(CS_ARCH_X86, CS_MODE_64).disasm_lite
        from dfvm.vm.pmap import pmap_extract

        kernel = self.machine.kernel
        lwp = kernel.sched.curthread.td_lwp
        if lwp is None:
            return ""
        pmap = lwp.lwp_proc.p_vmspace.vm_pmap
        code = b""
        for va in (rip, (rip | 0xFFF) + 1):
            pa = pmap_extract(pmap, va)
            if pa is None or len(code) >= 15:
                break
            code += bytes(kernel.ram.mem[pa : (pa | 0xFFF) + 1])[:15]
        name = self.symbols.name(lwp.lwp_proc, rip)
        for _address, _size, mnemonic, operands in self._disassemble(code[:15], rip, 1):
            return f"{mnemonic} {operands}".strip() + (f"  in {name}" if name else "")
        return name

    def summary(self) -> str:
        """What happened altogether, for people."""
        lines = [f"{self.faults} faults, {self.major} major, {self.prefault} pages mapped along"]
        lines += [f"  {n:8}  {how}" for how, n in sorted(self.counts.items(), key=lambda c: -c[1])]
        if self.faults:
            lines.append(f"  {self.ns / self.faults / 1000:8.1f}  µs on average in vm_fault")
        return "\n".join(lines) + "\n"


def by(r: FaultRecord) -> str:
    """Who made the access: what is wired, the kernel touches."""
    return "kernel" if r.how & (probe.HOW_KERNEL | probe.HOW_WIRE) else "user"


def refusal(r: FaultRecord) -> str:
    """What comes of a fault that could not be resolved: the process's signal, or the error of the
    system call that it happened in."""
    if r.how & (probe.HOW_KERNEL | probe.HOW_WIRE):
        return "EFAULT" if r.how & probe.HOW_KERNEL else "not wired"
    return _SIGNALS.get(r.result, "SIGBUS")


def how_name(r: FaultRecord) -> str:
    """How a fault was resolved, in a word or two."""
    return "+".join(name for bit, name in _HOWS if r.how & bit) or "retry"


def entry_prot(entry: VmMapEntry) -> str:
    """The protection of an entry as /proc/self/maps writes it."""
    prot = entry.protection
    return (
        ("r" if prot & VM_PROT_READ else "-")
        + ("w" if prot & VM_PROT_WRITE else "-")
        + ("x" if prot & VM_PROT_EXECUTE else "-")
    )


def entry_name(entry: VmMapEntry) -> str:
    """What an entry is: the file it maps, a System V segment, [heap], [stack],
    [kernel] or anon."""
    vp = mapped_file(entry)
    if vp is not None:
        return os.fsdecode(vp.v_name) or "file"
    shm: Any = entry.ba.object.shm if entry.ba.object is not None else None
    if shm is not None:
        return f"[shm {shm.perm.id}]"
    if entry.ba.start >= VM_MAX_USER_ADDRESS:
        return "[kernel]"
    if entry.id == VM_SUBSYS_STACK:
        return "[stack]"
    return "[heap]" if entry.id == VM_SUBSYS_BRK else "anon"


def describe_entry(r: FaultRecord) -> str:
    """The map entry of a fault: range, protection, name."""
    if r.map_entry is None:
        return "none"
    name = entry_name(r.map_entry)
    if not name.isprintable():  # a file's name may be anything
        name = repr(os.fsencode(name))[2:-1]
    return f"{r.entry_start:x}-{r.entry_end:x} {entry_prot(r.map_entry)} {name}"
