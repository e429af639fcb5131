"""The yardstick of the benchmarks: Unicorn as a whole CPU with the least kernel around it.

No memory management at all: every page of the program, its heap and its stack is mapped before the
first instruction runs, and only the handful of system calls exist that a static program needs to
start, read a file and print. It shares no code with dfvm, so that it can't profit from or suffer
under it. Its page-fault handler (`faults`) is the one that docs/engine.md describes: save the CPU
state, reset the pending exception, walk the tables, set the PTE, restore.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from itertools import pairwise
from statistics import median
from typing import Any

from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INTR, UC_MODE_64, UC_PROT_ALL, Uc
from unicorn.unicorn_const import UC_TLB_CPU
from unicorn.unicorn_py3.unicorn import uclib
from unicorn.x86_const import (
    UC_X86_INS_SYSCALL,
    UC_X86_REG_CR0,
    UC_X86_REG_CR2,
    UC_X86_REG_CR3,
    UC_X86_REG_CR4,
    UC_X86_REG_FS_BASE,
    UC_X86_REG_R8,
    UC_X86_REG_R9,
    UC_X86_REG_R10,
    UC_X86_REG_R11,
    UC_X86_REG_RAX,
    UC_X86_REG_RCX,
    UC_X86_REG_RDI,
    UC_X86_REG_RDX,
    UC_X86_REG_RIP,
    UC_X86_REG_RSI,
    UC_X86_REG_RSP,
)

CHUNK = 64  # faults that are timed together
P, W, U, NX = 1, 2, 4, 1 << 63
FRAME = 0x000F_FFFF_FFFF_F000
SYSRET_VA = 0xFFFF_8000_0000_0000
INTR_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
ARGUMENTS = (UC_X86_REG_RDI, UC_X86_REG_RSI, UC_X86_REG_RDX, UC_X86_REG_R10, UC_X86_REG_R8,
             UC_X86_REG_R9)  # fmt: skip


class Bare:
    """An engine in ring 3 over `ram_bytes` of RAM, with one address space."""

    def __init__(self, ram_bytes: int) -> None:
        self.map = mmap.mmap(-1, ram_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.madvise(mmap.MADV_HUGEPAGE)
        self.ram = memoryview(self.map)
        self.q = self.ram.cast("Q")
        self.keep = (ctypes.c_char * ram_bytes).from_buffer(self.map)
        self.next_frame = 1
        uc = self.uc = Uc(UC_ARCH_X86, UC_MODE_64)
        uc.ctl_set_tlb_mode(UC_TLB_CPU)
        uc.ctl_exits_enabled(True)
        uc.ctl_set_exits([])
        uc.mem_map_ptr(0, ram_bytes, UC_PROT_ALL, ctypes.addressof(self.keep))
        self.cr3 = self.alloc()
        sysret = self.alloc()
        self.ram[sysret : sysret + 3] = b"\x48\x0f\x07"
        self.enter(SYSRET_VA, sysret, P)
        uc.msr_write(0xC000_0080, uc.msr_read(0xC000_0080) | 0x901)
        uc.msr_write(0xC000_0081, 0x1B << 48 | 0x8 << 32)
        uc.reg_write(UC_X86_REG_CR3, self.cr3)
        uc.reg_write(UC_X86_REG_CR4, uc.reg_read(UC_X86_REG_CR4) | 0x106A0)
        uc.reg_write(UC_X86_REG_CR0, uc.reg_read(UC_X86_REG_CR0) | 0x8001_0001)
        self.context = uc.context_save()
        self.cptr = self.context.context
        size = uclib.uc_context_size(uc._uch)
        raw = (ctypes.c_char * size).from_address(
            ctypes.cast(self.cptr, ctypes.c_void_p).value or 0
        )
        whole = memoryview(raw).cast("B")
        self.ctx_b, self.ctx_q, self.ctx_i = whole, whole.cast("Q"), whole.cast("i")
        self.on_exception: Any = lambda vector: None
        self.callback = INTR_HOOK(lambda _uc, vector, _data: self.on_exception(vector))
        handle = ctypes.c_size_t()
        uclib.uc_hook_add(
            uc._uch, ctypes.byref(handle), UC_HOOK_INTR,
            ctypes.cast(self.callback, ctypes.c_void_p), None, ctypes.c_uint64(1),
            ctypes.c_uint64(0))  # fmt: skip
        uc.hook_add(UC_HOOK_INSN, lambda u, _d: u.emu_stop(), None, 1, 0, UC_X86_INS_SYSCALL)
        self._calibrate()

    def alloc(self) -> int:
        self.next_frame += 1
        return (self.next_frame - 1) << 12

    def slot(self, va: int) -> int:
        """Index of the PTE of va in self.q; tables are made on the way."""
        t = self.cr3
        for shift in (39, 30, 21):
            i = (t >> 3) + (va >> shift & 511)
            if not self.q[i] & P:
                self.q[i] = self.alloc() | P | W | U
            t = self.q[i] & FRAME
        return (t >> 3) + (va >> 12 & 511)

    def enter(self, va: int, pa: int, flags: int) -> None:
        self.q[self.slot(va)] = pa | flags

    def save(self) -> None:
        uclib.uc_context_save(self.uc._uch, self.cptr)

    def restore(self) -> None:
        uclib.uc_context_restore(self.uc._uch, self.cptr)

    def _calibrate(self) -> None:
        """Find CR2 and the pending exception in the saved state, and enter ring 3."""
        uc, va = self.uc, 0x1000_0000
        code = self.alloc()
        self.ram[code : code + 3] = b"\x48\x89\x3f"  # mov [rdi],rdi
        seen: list[tuple[int, bytes]] = []

        def first(vector: int) -> None:
            self.save()
            seen.append((vector, bytes(self.ctx_b)))
            if len(seen) == 1:
                self.enter(uc.reg_read(UC_X86_REG_CR2) & ~4095, code, P | U)
            else:
                uc.emu_stop()

        self.on_exception = first
        uc.reg_write(UC_X86_REG_RAX, 0x1122_3344_5566_7788)
        uc.reg_write(UC_X86_REG_RCX, va)
        uc.reg_write(UC_X86_REG_R11, 0x202)
        uc.emu_start(SYSRET_VA, 0)
        one, two = (memoryview(image).cast("i") for _, image in seen)
        (self.i_old,) = (i for i in range(len(one)) if one[i] == 14 and two[i] == 8)
        image = seen[0][1]
        rax = image.index(struct.pack("<Q", 0x1122_3344_5566_7788)) // 8
        self.i_cr2 = image.index(struct.pack("<Q", va), (rax + 18) * 8) // 8
        self.q[self.slot(va)] = 0
        self.save()
        self.ctx_i[self.i_old] = -1
        self.restore()
        uc.reg_write(UC_X86_REG_CR3, self.cr3)

    def _store_loop(self, order: list[int]) -> int:
        """Put a program in place that stores to each address of `order`, by a table, and then
        makes a system call; returns its address."""
        code, table = 0x40_0000, 0x1_0000_0000
        text = bytes.fromhex("488b06 488900 4883c608 48ffc9 75f1 0f05")
        pa = self.alloc()
        self.ram[pa : pa + len(text)] = text
        self.enter(code, pa, P | U)
        for at in range(0, len(order), 512):
            pa = self.alloc()
            part = struct.pack(f"<{len(order[at : at + 512])}Q", *order[at : at + 512])
            self.ram[pa : pa + len(part)] = part
            self.enter(table + at * 8, pa, P | U)
        self.uc.reg_write(UC_X86_REG_RSI, table)
        self.uc.reg_write(UC_X86_REG_RCX, len(order))
        return code

    def misses(self, order: list[int]) -> float:
        """Seconds per store to a page that is present but not in the engine's TLB: one store to
        each address of `order`, more pages than a TLB holds that was never flushed (256). Zeroed
        memory that has been touched before."""
        code, zeros = self._store_loop(order), bytes(4096)
        for va in order:
            pa = self.alloc()
            self.ram[pa : pa + 4096] = zeros
            self.enter(va, pa, P | W | U | NX)
        start = time.perf_counter()
        self.uc.emu_start(code, 0)
        return (time.perf_counter() - start) / len(order)

    def faults(self, order: list[int], zero: bool = False) -> float:
        """Seconds per page fault: one store to each address of `order` by a loop over a table, all
        absent, each resolved by the bare handler. With `zero` it also clears the frame. The median
        over chunks, as the guest's own benchmark has it."""
        code, data = self._store_loop(order), bytes(4096)
        ram, ctx_q, ctx_i, i_cr2, i_old = self.ram, self.ctx_q, self.ctx_i, self.i_cr2, self.i_old
        count = 0
        clock = time.perf_counter
        times = [clock()]

        def handler(_vector: int) -> None:
            nonlocal count
            self.save()
            count += 1
            if count % CHUNK == 0:
                times.append(clock())
            ctx_i[i_old] = -1
            pa = self.alloc()
            if zero:
                ram[pa : pa + 4096] = data
            self.enter(ctx_q[i_cr2], pa, P | W | U)
            self.restore()

        self.on_exception = handler
        self.uc.emu_start(code, 0)
        assert count == len(order), f"{count} faults for {len(order)} pages"
        return median(b - a for a, b in pairwise(times[1:])) / CHUNK

    def round_trip(self, times: int = 20_000) -> float:
        """Seconds for emu_start up to a syscall instruction, emu_stop in its hook, and out. The
        best of several stretches, as the guest's own benchmark has it."""
        code = 0x40_0000
        pa = self.alloc()
        self.ram[pa : pa + 2] = b"\x0f\x05"
        self.enter(code, pa, P | U)
        uc = self.uc
        best = 1.0
        for _ in range(10):
            start = time.perf_counter()
            for _ in range(times // 10):
                uc.emu_start(code, 0)
            best = min(best, time.perf_counter() - start)
        return best / (times // 10)

    def run_elf(self, argv: list[str], heap_bytes: int = 4 << 20) -> tuple[float, bytes]:
        """Run a static executable with all its pages present; returns the seconds of CPU time from
        its first instruction to its exit, and what it wrote."""
        uc = self.uc
        area = 0x7F00_0000_0000
        heap, entry, phdr, phnum = self._load(argv[0])
        for va in [*range(heap, heap + heap_bytes, 4096), *range(area, area + heap_bytes, 4096)]:
            self.enter(va, self.alloc(), P | W | U | NX)
        top = 0x7FFF_FFF0_0000
        for va in range(top - (1 << 20), top, 4096):
            self.enter(va, self.alloc(), P | W | U | NX)
        sp = self._stack(top, argv, entry, phdr, phnum)
        uc.reg_write(UC_X86_REG_RSP, sp)
        self.on_exception = lambda vector: uc.emu_stop()
        out = bytearray()
        brk, pc, start = heap, entry, time.process_time()
        while True:
            uc.emu_start(pc, 0)
            number = uc.reg_read(UC_X86_REG_RAX)
            a = [uc.reg_read(reg) for reg in ARGUMENTS]
            result = -38
            if number in (60, 231):
                return time.process_time() - start, bytes(out)
            if number == 0:
                data = os.read(a[0], min(a[2], 4096 - a[1] % 4096 if a[2] < 4096 else a[2]))
                self._write(a[1], data)
                result = len(data)
            elif number == 1:
                out += self._read(a[1], a[2])
                result = a[2]
            elif number == 20:
                result = 0
                for i in range(a[2]):
                    base, size = struct.unpack("<QQ", self._read(a[1] + 16 * i, 16))
                    out += self._read(base, size)
                    result += size
            elif number in (2, 257):
                name = self._read(a[number == 257], 256).split(b"\0")[0]
                result = os.open(name, os.O_RDONLY)
            elif number == 3:
                os.close(a[0]) if a[0] > 2 else None
                result = 0
            elif number == 9:
                result, area = area, area + (a[1] + 4095 & ~4095)
            elif number == 12:
                brk = a[0] if heap <= a[0] <= heap + heap_bytes else brk
                result = brk
            elif number == 158:
                uc.reg_write(UC_X86_REG_FS_BASE, a[1])
                result = 0
            elif number in (39, 186, 102, 104, 107, 108, 218):
                result = 100
            elif number in (10, 11, 13, 14, 16, 131, 273):
                result = -25 if number == 16 else 0
            uc.reg_write(UC_X86_REG_RAX, result & 2**64 - 1)
            pc = uc.reg_read(UC_X86_REG_RIP)

    def _load(self, path: str) -> tuple[int, int, int, int]:
        end = phdr = 0
        with open(path, "rb") as f:
            elf = ELFFile(f)
            if elf.header.e_type != "ET_EXEC":
                raise ValueError(f"{path}: the bare engine runs ET_EXEC only")
            for h in (s.header for s in elf.iter_segments() if s.header.p_type == "PT_LOAD"):
                f.seek(h.p_offset)
                data = f.read(h.p_filesz)
                # The engine checks each store to a page that may be executed: data is not.
                flags = P | W | U | (0 if h.p_flags & 1 else NX)
                for va in range(h.p_vaddr & ~4095, h.p_vaddr + h.p_memsz, 4096):
                    if not self.q[self.slot(va)]:
                        self.enter(va, self.alloc(), flags)
                self._write(h.p_vaddr, data)
                end = max(end, h.p_vaddr + h.p_memsz + 4095 & ~4095)
                if h.p_offset == 0:
                    phdr = h.p_vaddr + elf.header.e_phoff
            return end, elf.header.e_entry, phdr, elf.header.e_phnum

    def _stack(self, sp: int, argv: list[str], entry: int, phdr: int, phnum: int) -> int:
        def push(data: bytes) -> int:
            nonlocal sp
            sp -= len(data)
            self._write(sp, data)
            return sp

        args = [push(os.fsencode(a) + b"\0") for a in argv]
        seed = push(bytes(16))
        aux = [3, phdr, 4, 56, 5, phnum, 6, 4096, 9, entry, 11, 0, 12, 0, 13, 0, 14, 0, 17, 100,
               16, 0x178BFBFF, 23, 0, 25, seed, 31, args[0], 0, 0]  # fmt: skip
        words = [len(args), *args, 0, 0, *aux]
        sp = (sp & ~15) - 8 * (len(words) + len(words) % 2)
        self._write(sp, struct.pack(f"<{len(words)}Q", *words))
        return sp

    def _pieces(self, va: int, n: int) -> list[tuple[int, int]]:
        pieces = []
        while n:
            part = min(n, 4096 - va % 4096)
            pieces.append(((self.q[self.slot(va)] & FRAME) + va % 4096, part))
            va, n = va + part, n - part
        return pieces

    def _read(self, va: int, n: int) -> bytes:
        return b"".join(bytes(self.ram[pa : pa + k]) for pa, k in self._pieces(va, n))

    def _write(self, va: int, data: bytes) -> None:
        done = 0
        for pa, k in self._pieces(va, len(data)):
            self.ram[pa : pa + k] = data[done : done + k]
            done += k
