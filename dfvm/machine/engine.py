"""Unicorn as a whole x86-64 processor: made, switched to ring 3 on real page tables, and its
registers found in memory.

Reading a register through Unicorn's API costs microseconds, and the two things a page fault needs
most, its error code and the engine's notion of an undelivered exception, are no registers of the
API at all. All of them lie in the CPU state that `uc_context_save` copies. So at start the *live*
state is located, by following the engine's own pointers until a place shows the very registers we
have just written; then page faults whose error codes are known are provoked, and the fields that
show that sequence are the ones wanted. When anything is not unique or not as expected, the engine
is not the one this code knows, and it refuses to start.

Only `machine.cpu` uses this module. Nothing here knows what a process is.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Any, Final

from unicorn import (
    UC_ARCH_X86,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_MODE_64,
    UC_PROT_ALL,
)
from unicorn.unicorn_const import UC_CTL_IO_WRITE, UC_CTL_TLB_FLUSH, UC_TLB_CPU
from unicorn.unicorn_py3.unicorn import Uc, uclib
from unicorn.x86_const import (
    UC_X86_INS_SYSCALL,
    UC_X86_REG_CR0,
    UC_X86_REG_CR3,
    UC_X86_REG_CR4,
    UC_X86_REG_EFLAGS,
    UC_X86_REG_FP0,
    UC_X86_REG_FPCW,
    UC_X86_REG_FS_BASE,
    UC_X86_REG_GS_BASE,
    UC_X86_REG_MXCSR,
    UC_X86_REG_RAX,
    UC_X86_REG_RCX,
    UC_X86_REG_RDX,
    UC_X86_REG_RIP,
    UC_X86_REG_XMM0,
    UC_X86_REG_XMM1,
)

from dfvm.machine import native
from dfvm.machine.pte import MSR_PAT, PAT_MSR_VALUE, PG_NX, PG_RW, PG_U, PG_V
from dfvm.machine.reg import R11, RBX, RDI, RDX, RIP, RSI, X86_TRAP_DF, X86_TRAP_PF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfvm.machine.ram import Ram

MSR_EFER: Final = 0xC000_0080
MSR_STAR: Final = 0xC000_0081
EFER_SCE: Final = 0x001
EFER_LME: Final = 0x100
EFER_NXE: Final = 0x800
CR0_PE: Final = 0x0000_0001
CR0_MP: Final = 0x0000_0002  # FWAIT and x87 belong together
CR0_NE: Final = 0x0000_0020  # x87 errors are exceptions, not interrupts
CR0_WP: Final = 0x0001_0000
CR0_AM: Final = 0x0004_0000  # EFLAGS.AC means something
CR0_PG: Final = 0x8000_0000
CR4_PAE: Final = 0x0020
CR4_PGE: Final = 0x0080
CR4_OSFXSR: Final = 0x0200
CR4_OSXMMEXCPT: Final = 0x0400
CR4_FSGSBASE: Final = 0x1_0000

# sysretq loads CS from STAR[63:48] + 16 and SS from + 8: Linux's user selectors 0x33 and 0x2b.
STAR_VALUE: Final = 0x23 << 48 | 0x10 << 32

_INTR_HOOK: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_INSN_HOOK: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_INVALID_HOOK: Final = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)
# QEMU's cpu-all.h and cpu-defs.h.
_EXCP_HLT: Final = 0x10001  # the processor has halted
_TLB_ENTRY_BYTES: Final = 64  # addr_read, addr_write, addr_code, then what an access adds
_TLB_INVALID_MASK: Final = 0x800  # in an address: matches no access
_TLB_ENTRY_WORDS: Final = _TLB_ENTRY_BYTES // 8
_TLB_DESC_BYTES: Final = 696  # CPUTLBDesc
_TLB_DESC_VICTIMS: Final = 40  # where its victim TLB of 8 entries begins
_U64: Final = (1 << 64) - 1

_SEARCH_BYTES: Final = 0x10000  # how far behind a pointer of the engine's the registers may lie
_POINTER_WORDS: Final = 512  # how many words of the engine's own structure are followed


class EngineError(RuntimeError):
    """The installed engine is not the one dfvm knows; the message says what was different."""


class Engine:
    """One Unicorn instance in ring 3 with paging on, over `ram` at physical address 0.

    :raises EngineError: when the CPU state can't be found or doesn't behave as known.
    """

    __slots__ = ("_countdown", "_exception", "_exit_request", "_hooks", "_keep", "_nothing",
                 "_tlb", "_victims", "b", "cpu_state", "flush_code", "flush_tlb", "i", "i_error",
                 "i_int", "i_old", "image_bytes", "o_fpregs", "o_fpuc", "o_mxcsr", "o_xmm",
                 "on_exception", "on_invalid", "on_syscall", "q", "q_cr2", "q_cr3", "q_fs_base",
                 "q_gs_base", "start", "stop", "template", "uc", "uch",
                 "xmm_stride")  # fmt: skip

    uc: Any  # the unicorn.Uc, whose methods are mostly made at run time
    b: memoryview  # the live CPU state as bytes
    q: memoryview  # as 64-bit words: RAX … RIP, then the flags (lazily: read them by the API)
    i: memoryview  # as signed 32-bit words
    cpu_state: memoryview  # what lies before the registers: the engine's own business
    image_bytes: int  # its size: what a saved context holds
    q_cr2: int  # index in q: the address of the last page fault
    q_cr3: int  # index in q: the loaded page table
    i_error: int  # index in i: error code of the last exception
    i_int: int  # index in i: 1 when that was made by an int instruction
    i_old: int  # index in i: exception being delivered, -1 none. To be reset by us after each one
    q_fs_base: int
    q_gs_base: int
    o_xmm: int  # byte offset of XMM0, XMMn is n strides further
    xmm_stride: int
    o_mxcsr: int
    o_fpregs: int  # byte offset of the x87 registers, 16 bytes each, physical order
    o_fpuc: int  # byte offset of the control word; 6 below it the top of stack (32 bits), 2 below
    #              it the status, 2 above it the eight tags (bytes, 1 is empty)
    template: bytes  # the state of a fresh user context: ring 3, all registers zero
    on_exception: Callable[[int], None]  # called inside the engine with the vector
    on_syscall: Callable[[], None]  # at a syscall instruction, RIP still before it
    on_invalid: Callable[[], None]  # at an invalid opcode

    def __init__(self, ram: Ram) -> None:
        try:
            native.install(uclib.uc_emu_start)
        except native.NativeError as e:
            raise EngineError(str(e)) from None
        uc: Any = Uc(UC_ARCH_X86, UC_MODE_64)
        self.uc = uc
        uc.ctl_set_tlb_mode(UC_TLB_CPU)
        uc.ctl_exits_enabled(True)  # with the default, address 0 would be an exit
        uc.ctl_set_exits([])
        uc.mem_map_ptr(0, ram.size, UC_PROT_ALL, ram.base)
        self.uch: Any = uc._uch
        self._nothing = memoryview(b"").cast("B")
        self._bind()
        self._find_live_state()
        self._hook()
        self._calibrate(ram)

    def _bind(self) -> None:
        """Bind the engine's entry points once. Long calls let go of the GIL (a clock thread must
        be able to stop the engine); short ones keep it, which is cheaper."""
        self.start = uclib.uc_emu_start
        short = ctypes.PyDLL(uclib._name)
        self.stop = short.uc_emu_stop
        self.stop.argtypes = [ctypes.c_void_p]
        self.stop.restype = ctypes.c_int
        flush = short.uc_ctl
        flush.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        flush.restype = ctypes.c_int
        handle, command = self.uch, UC_CTL_IO_WRITE << 30 | UC_CTL_TLB_FLUSH
        self.flush_tlb = lambda: flush(handle, command)
        self.flush_code = self.uc.ctl_flush_tb

    def _find_live_state(self) -> None:
        """Find the live registers: b, q, i."""
        uc = self.uc
        magic = int.from_bytes(os.urandom(7), "little")
        for n, reg in enumerate((UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RDX)):
            uc.reg_write(reg, magic + n)
        uc.reg_write(UC_X86_REG_RIP, 0)
        pattern = b"".join((magic + n).to_bytes(8, "little") for n in range(3))
        context = uc.context_save()
        size = uclib.uc_context_size(self.uch)
        saved = ctypes.string_at(context.context, size)
        header = saved.find(pattern)
        if header < 0:
            raise EngineError("the engine's saved context does not hold the registers")
        image = saved[header:]
        self.image_bytes = len(image)
        # The copy just made lies in memory too, and so may others: the live one follows a write.
        for pointer, address in _search(
            ctypes.cast(self.uch, ctypes.c_void_p).value or 0, pattern, image
        ):
            raw = (ctypes.c_char * len(image)).from_address(address)
            self.b = memoryview(raw).cast("B")
            before = (ctypes.c_char * (address - pointer)).from_address(pointer)
            self.cpu_state = memoryview(before).cast("B")
            whole = self.b[: len(image) & ~7]
            self.q, self.i = whole.cast("Q"), whole.cast("i")
            uc.reg_write(UC_X86_REG_RIP, magic + 9)
            if self.q[RIP] == magic + 9:
                break
            uc.reg_write(UC_X86_REG_RIP, 0)  # as in the image that the next place must show
        else:
            raise EngineError("the engine's live CPU state was not found")
        native.found(len(self.cpu_state))
        self.q[0] = magic + 10
        if uc.reg_read(UC_X86_REG_RAX) != magic + 10:
            raise EngineError("the engine's registers do not follow the live state")

    def _hook(self) -> None:
        """Register prebound callbacks: cheaper than the binding's wrappers."""
        self.on_exception = lambda vector: None
        self.on_syscall = lambda: None
        self.on_invalid = lambda: None

        def invalid(_uc: Any, _data: Any) -> bool:
            self.on_invalid()
            return False

        intr = _INTR_HOOK(lambda _uc, vector, _data: self.on_exception(vector))
        insn = _INSN_HOOK(lambda _uc, _data: self.on_syscall())
        bad = _INVALID_HOOK(invalid)
        self._hooks = (intr, insn, bad)
        self._hook_add(UC_HOOK_INTR, intr)
        self._hook_add(UC_HOOK_INSN, insn, ctypes.c_int(UC_X86_INS_SYSCALL))
        self._hook_add(UC_HOOK_INSN_INVALID, bad)

    def _hook_add(self, kind: int, callback: Any, *extra: Any) -> None:
        """Register a callback for all addresses."""
        handle = ctypes.c_size_t()
        error = uclib.uc_hook_add(
            self.uch, ctypes.byref(handle), kind, ctypes.cast(callback, ctypes.c_void_p), None,
            ctypes.c_uint64(1), ctypes.c_uint64(0), *extra
        )  # fmt: skip
        if error:
            raise EngineError(f"the engine refused a hook of kind {kind}: error {error}")

    def _calibrate(self, ram: Ram) -> None:
        """Enter ring 3 on scratch tables outside RAM, provoke faults, and find the fields."""
        uc = self.uc
        scratch = _Scratch(uc, ram.size)
        self._power_up(scratch.base)
        self.q_cr3 = self._unique_word(scratch.base, "CR3")
        self._find_registers()
        self._find_fault_fields(scratch)
        self._check_faults(scratch)
        self._check_tlb(0x13000)
        self._find_int()
        self._check_layout()

        self.on_exception = lambda vector: None
        uc.reg_write(UC_X86_REG_EFLAGS, 0x202)
        for n in range(RIP + 1):
            self.q[n] = 0
        self.q[self.q_cr2] = self.q[self.q_cr3] = 0
        native.power_up(ctypes.addressof(ctypes.c_char.from_buffer(self.b)))
        self.template = bytes(self.b)
        scratch.unmap()
        self._keep = ram

    def _power_up(self, cr3: int) -> None:
        """Long mode with paging, and what Linux programs expect besides."""
        uc = self.uc
        uc.msr_write(MSR_EFER, uc.msr_read(MSR_EFER) | EFER_SCE | EFER_LME | EFER_NXE)
        uc.msr_write(MSR_STAR, STAR_VALUE)
        uc.msr_write(MSR_PAT, PAT_MSR_VALUE)
        cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE
        cr0 = CR0_PE | CR0_MP | CR0_NE | CR0_WP | CR0_AM | CR0_PG
        uc.reg_write(UC_X86_REG_CR3, cr3)
        uc.reg_write(UC_X86_REG_CR4, uc.reg_read(UC_X86_REG_CR4) | cr4)
        uc.reg_write(UC_X86_REG_CR0, uc.reg_read(UC_X86_REG_CR0) | cr0)

    def _find_fault_fields(self, scratch: _Scratch) -> None:
        """A fetch from an absent page is a page fault, error 0x14. The engine is not told that it
        was delivered, so the next fault, inside it, arrives as a double fault. From what the state
        looks like in both, find error code, CR2 and pending exception, and the brakes."""
        uc, q, pt = self.uc, self.q, scratch.pt
        images: list[tuple[int, bytes]] = []
        state: list[bytes] = []

        def on_exception(vector: int) -> None:
            images.append((vector, bytes(self.b)))
            state.append(bytes(self.cpu_state))
            if len(images) == 1:
                pt[0x11] = scratch.code | PG_V | PG_U
            else:
                self.stop(self.uch)
                state.append(bytes(self.cpu_state))

        q[RDI], q[RSI], q[RDX], q[RBX] = 0x12000, 0x13000, 0x14000, 0x15000
        uc.reg_write(UC_X86_REG_RCX, 0x11000)
        q[R11] = 0x202
        self.on_exception = on_exception
        uc.emu_start(0x10000, 0)
        if [vector for vector, _ in images] != [X86_TRAP_PF, X86_TRAP_DF]:
            raise EngineError(f"unexpected exceptions {[v for v, _ in images]} at start")
        one, two = (image[: len(image) & ~7] for _, image in images)
        one_q, two_q = memoryview(one).cast("Q"), memoryview(two).cast("Q")
        # Each field holds a known value in both images. CR2 is the address of the access that
        # failed, in the double fault too.
        self.i_old = _unique(
            "pending exception",
            _words(one, X86_TRAP_PF) & _words(two, X86_TRAP_DF),
        )
        self.i_error = _unique(
            "page-fault error code",
            _words(one, 0x14) & _words(two, 0),
        )
        self.q_cr2 = self.q_cr3 - 1  # cr[] is an array
        if one_q[self.q_cr2] != 0x11000 or two_q[self.q_cr2] != 0x12000:
            raise EngineError("CR2 is not where the control registers are")
        self._find_brakes(*state)

    def _check_faults(self, scratch: _Scratch) -> None:
        """With the pending exception reset each time, four faults of known kinds arrive as they
        should."""
        q, pt = self.q, scratch.pt
        seen: list[tuple[int, int, int]] = []
        data = scratch.data
        fixes = {0x12000: data | PG_V | PG_U, 0x13000: data | PG_V | PG_U | PG_RW,
                 0x14000: data | PG_V | PG_U | PG_RW}  # fmt: skip

        def on_exception(vector: int) -> None:
            va = q[self.q_cr2]
            seen.append((vector, va, self.i[self.i_error]))
            self.i[self.i_old] = -1
            if va in fixes:
                pt[va >> 12] = fixes[va]
            else:
                self.stop(self.uch)

        pt[0x14] = data | PG_V | PG_U
        pt[0x15] = data | PG_V | PG_U | PG_RW | PG_NX
        self.i[self.i_old] = -1
        self.on_exception = on_exception
        self.uc.emu_start(0x11000, 0)
        expected = [(14, 0x12000, 4), (14, 0x13000, 6), (14, 0x14000, 7), (14, 0x15000, 0x15)]
        if seen != expected:
            raise EngineError(f"page faults arrive as {seen}, expected {expected}")

    def _find_int(self) -> None:
        """An int instruction is told from an exception only by the word behind the error code."""
        self.i_int = self.i_error + 1
        flags = [self.i[self.i_int]]

        def on_exception(vector: int) -> None:
            flags.append(self.i[self.i_int])
            self.i[self.i_old] = -1
            self.stop(self.uch)

        self.on_exception = on_exception
        self.uc.emu_start(0x1100B, 0)
        if flags != [0, 1] or self.q[RIP] != 0x1100D:
            raise EngineError(f"an int instruction is marked {flags}, at {self.q[RIP]:#x}")

    def _find_registers(self) -> None:
        """Find the registers that signal frames and thread state need. Leaves them zero or at
        their power-on values."""
        uc = self.uc
        self.q_fs_base = self._by_write(UC_X86_REG_FS_BASE, 0x1234_5678_9ABC) // 8
        self.q_gs_base = self._by_write(UC_X86_REG_GS_BASE, 0x2345_6789_ABCD) // 8
        pattern = int.from_bytes(os.urandom(16), "little")
        self.o_xmm = self._by_write(UC_X86_REG_XMM0, pattern, 16)
        self.xmm_stride = self._by_write(UC_X86_REG_XMM1, pattern, 16) - self.o_xmm
        self.o_mxcsr = self.o_xmm - 8  # declared just before, with padding
        uc.reg_write(UC_X86_REG_MXCSR, 0x1FC0)
        if int.from_bytes(self.b[self.o_mxcsr : self.o_mxcsr + 4], "little") != 0x1FC0:
            raise EngineError("MXCSR is not before XMM0")
        uc.reg_write(UC_X86_REG_MXCSR, 0x1F80)
        mantissa = 0x8000_1234_5678_9ABC
        uc.reg_write(UC_X86_REG_FP0, (mantissa, 0x3FFF))
        self.o_fpregs = self._unique_bytes(mantissa.to_bytes(8, "little"), "x87 registers")
        uc.reg_write(UC_X86_REG_FP0, (0, 0))
        if (self.o_xmm | self.xmm_stride | self.o_fpregs) & 7:
            raise EngineError("the SSE and x87 registers do not lie at words")
        self.o_fpuc = self.o_fpregs - 14  # 8 tags and padding between
        self.b[self.o_fpuc + 2 : self.o_fpuc + 10] = bytes([1]) * 8  # all empty
        uc.reg_write(UC_X86_REG_FPCW, 0x027F)
        if int.from_bytes(self.b[self.o_fpuc : self.o_fpuc + 2], "little") != 0x027F:
            raise EngineError("the x87 control word is not before the x87 registers")
        uc.reg_write(UC_X86_REG_FPCW, 0x037F)

    def _check_layout(self) -> None:
        """The native half goes by the layout that was found."""
        word = 8
        ours = {
            "eip": RIP * word, "fs_base": self.q_fs_base * word, "gs_base": self.q_gs_base * word,
            "cr3": self.q_cr3 * word, "fpuc": self.o_fpuc, "fpregs": self.o_fpregs,
            "mxcsr": self.o_mxcsr, "xmm": self.o_xmm, "xmm1": self.o_xmm + self.xmm_stride,
        }  # fmt: skip
        theirs = native.layout()
        if ours != theirs:
            wrong = [name for name in ours if ours[name] != theirs[name]]
            raise EngineError(f"the engine keeps {', '.join(wrong)} elsewhere than expected")

    def _find_brakes(self, one: bytes, two: bytes, stopped: bytes) -> None:
        """Find what poison() and kick() need in the state before the registers, from how that
        looked inside a page fault, inside the double fault after it, and after a stop.

        Stopping sets two fields: exit_request, a bool, and the high half of the countdown that
        every block of translated code tests when it begins. The TLBs of three modes, of which the
        second is ring 3, lie before the countdown: three descriptors with a victim TLB each, then
        three pairs of mask and table."""
        changed = _changes(two, stopped)
        if [(two[n], stopped[n]) for n in changed] != [(0, 1), (0, 0xFF), (0, 0xFF)]:
            raise EngineError(f"stopping changes {len(changed)} bytes of the engine's CPU state")
        request, low, high = changed
        if low % 4 != 2 or high != low + 1:
            raise EngineError("stopping does not set the engine's countdown")
        index = _unique("current exception", _words(one, X86_TRAP_PF) & _words(two, X86_TRAP_DF))
        state = self.cpu_state
        self._exit_request = state[request : request + 1]
        self._countdown = state[low : low + 2].cast("H")
        self._exception = state[4 * index : 4 * index + 4].cast("i")
        tables = low - 2 - 3 * 16
        victim = tables - 2 * _TLB_DESC_BYTES + _TLB_DESC_VICTIMS
        self._tlb = state[tables + 16 : tables + 32].cast("Q")
        self._victims = state[victim : victim + 8 * _TLB_ENTRY_BYTES].cast("Q")
        self.flush_tlb()
        if set(self._victims) != {_U64}:
            raise EngineError("the engine's victim TLB is not where it was")

    def _check_tlb(self, va: int) -> None:
        """The TLB's layout is as known if the page `va`, just used in ring 3, is in its place."""
        mask = self._tlb[0]
        entries = mask // _TLB_ENTRY_BYTES + 1
        if mask % _TLB_ENTRY_BYTES or entries & (entries - 1) or not 64 <= entries <= 1 << 22:
            raise EngineError(f"{mask:#x} is no mask of a TLB")
        entry = self._tlb_words()[(va >> 12 & (entries - 1)) * _TLB_ENTRY_WORDS :]
        if entry[0] & ~0xFFF != va:
            raise EngineError("a page in use is not in the engine's TLB")

    def _tlb_words(self) -> memoryview:
        """The entries of ring 3's TLB, _TLB_ENTRY_WORDS each."""
        size = self._tlb[0] + _TLB_ENTRY_BYTES
        return memoryview((ctypes.c_char * size).from_address(self._tlb[1])).cast("B").cast("Q")

    def poison(self) -> None:
        """Make the next memory access of the running guest a page fault, from any host thread that
        has the GIL. Ended by cure().

        This is how a running guest is stopped. uc_emu_stop from another thread is not for it: the
        engine tests for a stop not only when a block of code begins but after each load and store,
        and leaves RIP at the block's beginning all the same, so that what was done is done again
        and a `lock cmpxchg` finds its own lock taken. A page fault is precise.

        Only the addresses are overwritten: translated code that has just found its page goes on to
        use the addend beside it. And with nothing but the mark of an invalid entry: an access that
        has just been through the page tables takes that off and looks at the other marks, among
        them "not memory" and "throw the store away"."""
        self.q[self.q_cr3] = 0  # frame 0 is never used: a table in which nothing is present
        words = self._tlb_words()
        entries = len(words) // _TLB_ENTRY_WORDS
        if len(self._nothing) != entries:
            word = _TLB_INVALID_MASK.to_bytes(8, "little")
            self._nothing = memoryview(bytearray(word * entries)).cast("Q")
        for field in range(3):
            words[field::_TLB_ENTRY_WORDS] = self._nothing
            self._victims[field::_TLB_ENTRY_WORDS] = self._nothing[:8]

    def cure(self, cr3: int) -> None:
        """Undo poison(), on the thread that runs the engine. The TLB is empty afterwards."""
        self.q[self.q_cr3] = cr3
        self.flush_tlb()

    def kick(self) -> None:
        """Make a poisoned engine return that runs code without any memory access: at the beginning
        of the next block. With a memory access under way this does the harm that poison() tells
        of, so it must have been poisoned for long enough that none can be.

        The exception put in place is the one that a halted processor returns with."""
        self._exception[0] = _EXCP_HLT
        self._exit_request[0] = 1
        self._countdown[0] = 0xFFFF

    def _by_write(self, reg: int, value: int, size: int = 8) -> int:
        """The byte offset of a register, by writing a value nobody else has. Leaves it zero."""
        self.uc.reg_write(reg, value)
        offset = self._unique_bytes(value.to_bytes(size, "little"), f"register {reg}")
        self.uc.reg_write(reg, 0)
        return offset

    def _unique_bytes(self, pattern: bytes, what: str) -> int:
        image = bytes(self.b)
        found = image.find(pattern)
        if found < 0 or image.find(pattern, found + 1) >= 0:
            raise EngineError(f"{what} can't be told apart in the engine's CPU state")
        return found

    def _unique_word(self, value: int, what: str) -> int:
        return _unique(what, {n for n, word in enumerate(self.q.tolist()) if word == value})


class _Scratch:
    """Page tables, and a little program in ring 3, in memory of its own behind RAM."""

    __slots__ = ("_keep", "_size", "_uc", "base", "code", "data", "pt")

    base: int  # physical address; the PML4 is there
    code: int  # a page with the program, to be mapped at 0x11000
    data: int  # an empty page
    pt: memoryview  # the PTEs of addresses from 0 on

    def __init__(self, uc: Any, base: int) -> None:
        scratch = mmap.mmap(-1, 8 * 4096)
        mem = memoryview(scratch)
        self._keep = (ctypes.c_char * len(mem)).from_buffer(scratch)
        self._uc, self._size = uc, len(mem)
        uc.mem_map_ptr(base, len(mem), UC_PROT_ALL, ctypes.addressof(self._keep))
        self.base, self.code, self.data = base, base + 5 * 4096, base + 6 * 4096
        tables = mem.cast("Q")
        for level in range(3):  # PML4, PDP, PD: entry 0 each
            tables[level * 512] = base + (level + 1) * 4096 | PG_V | PG_RW | PG_U
        self.pt = tables[3 * 512 : 4 * 512]
        self.pt[0x10] = base + 4 * 4096 | PG_V
        mem[4 * 4096 : 4 * 4096 + 3] = b"\x48\x0f\x07"  # sysretq, in ring 0 at 0x10000
        # At 0x11000: mov rax,[rdi]; mov [rsi],rax; mov [rdx],rax; jmp rbx; int 3
        code = bytes.fromhex("488b07 488906 488902 ffe3 cd03")
        mem[5 * 4096 : 5 * 4096 + len(code)] = code

    def unmap(self) -> None:
        self._uc.mem_unmap(self.base, self._size)


def _unique(what: str, found: set[int]) -> int:
    if len(found) != 1:
        raise EngineError(f"{what} found {len(found)} times in the engine's CPU state")
    return found.pop()


# The state is some 40 KiB, and every start of dfvm looks through it several times: what follows
# does so at the speed of C.


def _words(image: bytes, value: int) -> set[int]:
    """Indices of the 32-bit words of `image` that are `value`."""
    pattern = value.to_bytes(4, "little")
    found = set()
    at = image.find(pattern)
    while at >= 0:
        if at % 4 == 0:
            found.add(at // 4)
        at = image.find(pattern, (at | 3) + 1)
    return found


def _changes(one: bytes, two: bytes) -> list[int]:
    """Offsets at which two images of the same size differ."""
    block = 256
    return [
        n
        for start in range(0, len(one), block)
        if one[start : start + block] != two[start : start + block]
        for n in range(start, min(start + block, len(one)))
        if one[n] != two[n]
    ]


def _search(engine: int, pattern: bytes, image: bytes) -> Iterator[tuple[int, int]]:
    """Host addresses that show `image`, which begins with `pattern`, behind one of the pointers in
    the engine's own structure at `engine`; each after the pointer that comes nearest to it: the
    object that it is part of. Memory is read through the kernel, so a word that is no pointer is an
    error and not a crash."""
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        words = memoryview(os.pread(memory, 8 * _POINTER_WORDS, engine)).cast("Q").tolist()
        for pointer in words:
            if pointer < 0x1000 or pointer & 7 or pointer >> 47:
                continue
            try:
                near = os.pread(memory, _SEARCH_BYTES, pointer)
            except OSError:
                continue
            at = near.find(pattern)
            while at >= 0:
                if near[at : at + len(image)] == image:
                    address = pointer + at
                    yield max(p for p in words if p <= address), address
                at = near.find(pattern, at + 1)
    finally:
        os.close(memory)
