"""The VCPU: runs a user context in ring 3 until the kernel is needed, and says why it stopped.

    code = vcpu.run(context, cr3, slice_ns)
      EXIT_SYSCALL     a syscall instruction; arguments in the registers, RIP behind it
      EXIT_FAULT       a page fault that on_fault could not finish: fault_va, fault_err
      EXIT_EXCEPTION   any other exception: `exception` is the vector, `exception_err` its error
                       code; an int instruction has INT in it, and RIP behind it
      EXIT_PREEMPTED   the slice is over

Between two runs the registers of the loaded context are simply the engine's own, live: reading an
argument or writing a result is an index into a memoryview. Another context's registers are copied
in when it runs, and the old one's out, to kernel memory (the pcb at the top of a kernel stack).

Contexts are loaded and run by the one host thread that the kernel runs on. While the engine runs, a
clock thread makes it come back every 10 ms (code that makes no memory access at all: after 100 ms):
to end a slice, to let host signals through, and to flush the TLB, which only then grows to what the
program needs (docs/engine.md).
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from unicorn.unicorn_py3.unicorn import uclib
from unicorn.x86_const import UC_X86_REG_EFLAGS, UC_X86_REG_FPCW, UC_X86_REG_MXCSR

from dfvm.machine.engine import Engine
from dfvm.machine.reg import RIP, X86_TRAP_DB, X86_TRAP_PF, X86_TRAP_UD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dfvm.machine.mmu import Mmu
    from dfvm.machine.ram import Ram

EXIT_PREEMPTED: Final = 0
EXIT_SYSCALL: Final = 1
EXIT_FAULT: Final = 2
EXIT_EXCEPTION: Final = 3
INT: Final = 0x100  # in Vcpu.exception: made by an int instruction
_EXIT_RESUME: Final = -1  # resolved in the callback, but flush before going on

# What the list `_at_large` of a VCPU holds while the engine runs. It is empty while the kernel runs
# or the clock thread is at work on the engine: whoever takes the one item out, which is atomic, has
# the engine to himself. (A poison that went on while the kernel flushed the TLB, which gives its
# table back and makes another, would write into memory that is somebody else's by then.)
_RUNNING: Final = 1
_POISONED_TWICE: Final = 3
_RUNS: Final = (_RUNNING,)

# The clock's period while the engine runs. The same as kern_clock's, of which this layer knows
# nothing.
TICK_NS: Final = 10_000_000
# CPU time after which a poisoned engine accesses no memory at all: far longer than the host ever
# takes to find a page, compaction included.
KICK_NS: Final = 100_000_000
PCB_PAGES: Final = 2  # frames a saved context takes

# What a program may change in the flags: the arithmetic flags, TF, DF, NT, AC, ID. IF stays on.
EFLAGS_USER: Final = 0x0024_4DD5
EFLAGS_FIXED: Final = 0x0202
_MXCSR_MASK: Final = 0xFFFF
_ALL_EMPTY: Final = bytes([1]) * 8  # the engine's tags of x87 registers that are not in use
_PAGE: Final = 4096


class CpuContext:
    """The registers of one user thread, saved in two frames of RAM while it isn't loaded.

    `q` is valid at any time and indexed by RAX … RIP. The flags are kept lazily by the engine, so
    they go through a property; it, and the FPU state, load the context first.
    """

    __slots__ = ("_first", "_pcb", "_rest", "_vcpu", "b", "q")

    q: memoryview  # registers as 64-bit words, live or saved
    b: memoryview  # the same as bytes, with the SSE and x87 state

    def __init__(self, vcpu: Vcpu, pa0: int, pa1: int) -> None:
        """A context in the frames at `pa0` and `pa1`, in its initial user state. The frames are
        the caller's, wired, for as long as the context lives."""
        mem = vcpu.ram.mem
        rest = vcpu.engine.image_bytes - _PAGE
        self._vcpu = vcpu
        self._first = mem[pa0 : pa0 + _PAGE]
        self._rest = mem[pa1 : pa1 + rest]
        self._pcb = self._first.cast("Q")
        self.b, self.q = self._first, self._pcb
        self.reset()

    def reset(self) -> None:
        """All registers as a new program finds them."""
        template = self._vcpu.engine.template
        if self._vcpu.loaded is self:
            self._vcpu.engine.b[:] = template
        else:
            self._first[:] = template[:_PAGE]
            self._rest[:] = template[_PAGE:]

    def copy_from(self, other: CpuContext) -> None:
        """Take over every register of `other` (fork). Not while either of them is running."""
        if self._vcpu.loaded is self:
            self.unload()
        if self._vcpu.loaded is other:
            live = self._vcpu.engine.b
            self._first[:] = live[:_PAGE]
            self._rest[:] = live[_PAGE:]
        else:
            self._first[:] = other._first
            self._rest[:] = other._rest

    def load(self) -> None:
        """Make this the context whose registers are live."""
        vcpu = self._vcpu
        old = vcpu.loaded
        if old is self:
            return
        if old is not None:
            old.unload()
        engine = vcpu.engine
        live = engine.b
        live[:_PAGE] = self._first
        live[_PAGE:] = self._rest
        self.b, self.q = live, engine.q
        vcpu.loaded = self
        # The image brought the page table of the last run along; the MMU decides.
        engine.q[engine.q_cr3] = vcpu.mmu.cr3

    def discard(self) -> None:
        """The thread ends and nobody wants its registers any more. To be called before the frames
        are given back: afterwards nothing of the engine's refers to them."""
        if self._vcpu.loaded is self:
            self._vcpu.loaded = None
            self.b, self.q = self._first, self._pcb

    def unload(self) -> None:
        """Save the live registers, if they are ours."""
        vcpu = self._vcpu
        if vcpu.loaded is not self:
            return
        live = vcpu.engine.b
        self._first[:] = live[:_PAGE]
        self._rest[:] = live[_PAGE:]
        self.b, self.q = self._first, self._pcb
        vcpu.loaded = None

    @property
    def eflags(self) -> int:
        """RFLAGS, computed by the engine from what it keeps lazily."""
        self.load()
        vcpu = self._vcpu
        vcpu.reg_read(vcpu.engine.uch, UC_X86_REG_EFLAGS, vcpu.word_at)
        flags: int = vcpu.word.value
        return flags

    @eflags.setter
    def eflags(self, value: int) -> None:
        self.load()
        vcpu = self._vcpu
        vcpu.word.value = value & EFLAGS_USER | EFLAGS_FIXED
        vcpu.reg_write(vcpu.engine.uch, UC_X86_REG_EFLAGS, vcpu.word_at)

    @property
    def fs_base(self) -> int:
        base: int = self.q[self._vcpu.engine.q_fs_base]
        return base

    @fs_base.setter
    def fs_base(self, value: int) -> None:
        self.q[self._vcpu.engine.q_fs_base] = value

    @property
    def gs_base(self) -> int:
        base: int = self.q[self._vcpu.engine.q_gs_base]
        return base

    @gs_base.setter
    def gs_base(self, value: int) -> None:
        self.q[self._vcpu.engine.q_gs_base] = value

    def fxsave(self) -> bytes:
        """The x87 and SSE state as the FXSAVE instruction writes it, 512 bytes."""
        self.load()
        vcpu, b, q = self._vcpu, self.b, self.q
        engine = vcpu.engine
        raw = b[vcpu.fpu].tobytes()
        if raw == vcpu.fpu_raw:
            return vcpu.fpu_image
        fpuc = engine.o_fpuc
        image = bytearray(512)
        words = memoryview(image).cast("Q")
        top = b[fpuc - 6] & 7
        status = int.from_bytes(b[fpuc - 2 : fpuc], "little")
        image[0:2] = b[fpuc : fpuc + 2]
        image[2:4] = (status & ~0x3800 | top << 11).to_bytes(2, "little")
        tags = b[fpuc + 2 : fpuc + 10]
        if tags != _ALL_EMPTY:
            image[4] = sum(1 << n for n in range(8) if not tags[n])  # abridged: 1 is in use
        image[24:28] = b[engine.o_mxcsr : engine.o_mxcsr + 4]
        image[28:32] = _MXCSR_MASK.to_bytes(4, "little")
        at = engine.o_fpregs >> 3
        regs = q[at : at + 16].tolist()
        regs[1::2] = [high & 0xFFFF for high in regs[1::2]]
        # ST0 … ST7 are stored relative to the top of stack.
        words[4:20] = array("Q", regs[2 * top :] + regs[: 2 * top])
        at, stride = engine.o_xmm >> 3, engine.xmm_stride >> 3
        words[20:52:2] = q[at : at + 16 * stride : stride]
        words[21:52:2] = q[at + 1 : at + 16 * stride : stride]
        vcpu.fpu_raw, vcpu.fpu_image = raw, bytes(image)
        return vcpu.fpu_image

    def fpinit(self) -> None:
        """The x87 and SSE state as a new program finds it; the other registers stay."""
        self.load()
        vcpu = self._vcpu
        self.b[vcpu.fpu] = vcpu.fpu_fresh

    def fxrstor(self, image: bytes | memoryview) -> None:
        """Set the x87 and SSE state from an FXSAVE image of at least 512 bytes.

        :raises ValueError: for MXCSR bits that the FXRSTOR instruction faults on.
        """
        self.load()
        vcpu, b, q = self._vcpu, self.b, self.q
        if image == vcpu.fpu_image:
            b[vcpu.fpu] = vcpu.fpu_raw
            return
        mxcsr = int.from_bytes(image[24:28], "little")
        if mxcsr & ~_MXCSR_MASK:
            raise ValueError(f"MXCSR {mxcsr:#x} has reserved bits set")
        engine = vcpu.engine
        fpuc, mxcsr_at = engine.o_fpuc, engine.o_mxcsr
        words = memoryview(image)[:512].cast("Q")
        status = int.from_bytes(image[2:4], "little")
        top = status >> 11 & 7
        b[fpuc - 6] = top
        b[fpuc - 2 : fpuc] = (status & ~0x3800).to_bytes(2, "little")
        used = image[4]
        b[fpuc + 2 : fpuc + 10] = bytes([~used >> n & 1 for n in range(8)]) if used else _ALL_EMPTY
        at = engine.o_fpregs >> 3
        regs = words[4:20].tolist()
        q[at : at + 16] = array("Q", regs[16 - 2 * top :] + regs[: 16 - 2 * top])
        at, stride = engine.o_xmm >> 3, engine.xmm_stride >> 3
        q[at : at + 16 * stride : stride] = words[20:52:2]
        q[at + 1 : at + 16 * stride : stride] = words[21:52:2]
        # Through the API, because the engine derives its rounding modes from them; but they are
        # seldom others than before.
        if b[fpuc : fpuc + 2] != image[0:2]:
            engine.uc.reg_write(UC_X86_REG_FPCW, int.from_bytes(image[0:2], "little"))
        if b[mxcsr_at : mxcsr_at + 4] != image[24:28]:
            engine.uc.reg_write(UC_X86_REG_MXCSR, mxcsr)


class Vcpu:
    """One processor over `ram`. `mmu` collects what must be flushed before it runs again.

    :raises EngineError: when the installed Unicorn is not the one dfvm knows.
    """

    __slots__ = ("_at_large", "_clock", "_clock_lock", "_failure", "_owed", "_poisoned", "_start",
                 "_wake", "engine", "exception", "exception_err", "exit", "fault_err", "fault_va",
                 "fpu", "fpu_fresh", "fpu_image", "fpu_raw", "loaded", "mmu", "on_fault", "ram",
                 "reg_read", "reg_write", "word", "word_at")  # fmt: skip

    ram: Ram
    mmu: Mmu
    engine: Engine
    loaded: CpuContext | None  # whose registers are live
    exit: int  # why the last run ended, EXIT_*
    fault_va: int  # with EXIT_FAULT: the address
    fault_err: int  # with EXIT_FAULT: the hardware's error code
    exception: int  # with EXIT_EXCEPTION: the vector, and INT
    exception_err: int  # with EXIT_EXCEPTION: the hardware's error code
    reg_read: Any  # uc_reg_read without the binding's detours: engine.uch, register, word_at
    reg_write: Any  # uc_reg_write likewise
    word: ctypes.c_uint64  # what they read and write
    word_at: Any  # its address, as they want it
    fpu: slice  # where the x87 and SSE state lies in the engine's, with all that is derived from it
    fpu_fresh: bytes  # what a new program has there
    fpu_raw: bytes  # what fxsave found there last,
    fpu_image: bytes  # and made of it. Most often nothing has happened to it when the next signal
    #                   comes, and what a handler's return puts back is what was saved
    on_fault: Callable[[int, int], bool] | None  # (va, error code) → resolved. Runs inside the
    #                             engine: it must not block, switch threads, or touch registers

    def __init__(self, ram: Ram, mmu: Mmu) -> None:
        self.ram = ram
        self.mmu = mmu
        self.engine = Engine(ram)
        mmu.pc = lambda: self.engine.q[RIP]
        self.loaded = None
        self.exit = EXIT_PREEMPTED
        self.fault_va = self.fault_err = self.exception = self.exception_err = 0
        self.on_fault = None
        short = ctypes.PyDLL(uclib._name)
        self.reg_read, self.reg_write = short.uc_reg_read, short.uc_reg_write
        for call in (self.reg_read, self.reg_write):
            call.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
            call.restype = ctypes.c_int
        self.word = ctypes.c_uint64()
        self.word_at = ctypes.addressof(self.word)
        engine = self.engine
        self.fpu = slice(engine.o_fpuc - 6, engine.o_xmm + 16 * engine.xmm_stride)
        self.fpu_fresh = engine.template[self.fpu]
        self.fpu_raw = self.fpu_image = b""
        self._failure: BaseException | None = None
        self._poisoned = False
        self._owed = False  # a tick for `loaded` that no run has ended with; see _owe
        self._clock_lock = threading.Lock()  # held by the clock thread while it does something
        self._at_large: list[int] = []  # see _RUNNING
        self._start = self.engine.start
        self._clock: threading.Thread | None = None
        self._wake = threading.Event()
        self._install_callbacks()

    def run(self, context: CpuContext, cr3: int, slice_ns: int) -> int:
        """Run `context` in the space at `cr3` until an exit; returns EXIT_*. A slice of 0 is
        endless. Host exceptions raised in a callback come out here."""
        if self.loaded is not context:
            context.load()
            self._owed = False  # that was another one's tick
        engine, mmu = self.engine, self.mmu
        if cr3 != mmu.cr3:
            engine.q[engine.q_cr3] = mmu.cr3 = cr3
            mmu.need_flush = True
        if mmu.need_flush:
            self._flush()
            if mmu.step is not None and self._step(mmu.step):
                return self._go_on(slice_ns)
            if self._owed and slice_ns:
                self._owed = False
                return EXIT_PREEMPTED
        self.exit = EXIT_PREEMPTED
        at_large = self._at_large
        at_large[:] = _RUNS
        self._start(engine.uch, engine.q[RIP], 0, 0, 0)
        try:
            at_large.pop()
        except IndexError:
            self._take_back()
        if self._poisoned or self.exit <= 0 or self._failure is not None:
            return self._go_on(slice_ns)
        return self.exit

    def _go_on(self, slice_ns: int) -> int:
        """The engine came back and there is more to it than an exit: the clock has ticked, or a
        fault was resolved that needs a flush. Flush and go on until there is an exit or the slice
        is over."""
        engine, mmu = self.engine, self.mmu
        over = time.perf_counter_ns() + slice_ns - TICK_NS if slice_ns else 1 << 63
        while True:
            ticked = self._poisoned
            if ticked:
                self._poisoned = False
                engine.cure(mmu.cr3)
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self.exit > 0:
                if ticked:
                    self._owe()
                return self.exit
            engine.i[engine.i_old] = -1  # the clock may have hit while a fault was being raised
            if self.exit == EXIT_PREEMPTED:
                if self._clock is None:
                    raise RuntimeError("the engine stopped by itself")
                if time.perf_counter_ns() >= over:
                    return EXIT_PREEMPTED
            if mmu.need_flush:
                self._flush()
                if mmu.step is not None and self._step(mmu.step):
                    continue
            self.exit = EXIT_PREEMPTED
            self._at_large[:] = _RUNS
            self._start(engine.uch, engine.q[RIP], 0, 0, 0)
            try:
                self._at_large.pop()
            except IndexError:
                self._take_back()

    def _owe(self) -> None:
        """A tick met another exit, or the kernel: the next run ends with it before it begins. Who
        makes system calls all the time would keep the CPU otherwise."""
        self._owed = True
        self.mmu.need_flush = True  # what `run` looks at

    def _take_back(self) -> None:
        """The engine came back while the clock thread is at work on it: wait until that is done."""
        with self._clock_lock:
            self._at_large.clear()

    def start_clock(self) -> None:
        """Start the thread that ticks while the engine runs, which is done by this thread. Without
        it a run ends only by itself."""
        if self._clock is None or not self._clock.is_alive():
            # A process that the host forked off has the thread's locks, but not the thread.
            self._clock_lock, self._wake = threading.Lock(), threading.Event()
            cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
            self._clock = threading.Thread(
                target=self._tick, args=(cpu_clock,), name="dfvm clock", daemon=True
            )
            # Signals of the host are not for the clock, which starts with our mask: one that came
            # to it would not end an idle wait of Python's main thread, where it is dealt with.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                self._clock.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def stop_clock(self) -> None:
        """Stop the clock thread; the VCPU is not used any more."""
        if self._clock is not None:
            self._wake.set()
            self._clock.join()
            self._clock = None

    @contextmanager
    def catching(self) -> Iterator[None]:
        """An exception that leaves one of the engine's callbacks meanwhile comes out of run();
        Python would print it and go on. It is that of a signal handler of the host's: Python runs
        those in its main thread where a function begins, and so mostly where the engine calls
        one."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = sys.unraisablehook

        def hook(lost: sys.UnraisableHookArgs) -> None:
            if "ctypes callback" not in (lost.err_msg or ""):
                before(lost)
                return
            self._failure = lost.exc_value
            self.engine.stop(self.engine.uch)

        sys.unraisablehook = hook
        try:
            yield
        finally:
            sys.unraisablehook = before

    def _tick(self, cpu_clock: int) -> None:
        """The clock thread. A tick poisons the running engine, so that it comes back with its next
        memory access. The next tick does so again, because an access that was just looking for its
        page may have entered that in the TLB afterwards. Code that makes no access is kicked, once
        it has used so much CPU time since that none can still be under way: not even one for which
        the host first had to find memory."""
        wait, engine, since = self._wake.wait, self.engine, 0
        at_large = self._at_large
        while not wait(TICK_NS / 1e9):
            with self._clock_lock:
                try:
                    state = at_large.pop()
                except IndexError:  # the kernel runs
                    self._owe()
                    continue
                if state < _POISONED_TWICE:
                    since = time.clock_gettime_ns(cpu_clock)
                    self._poisoned = True
                    engine.poison()
                    state += 1
                elif time.clock_gettime_ns(cpu_clock) - since >= KICK_NS:
                    engine.kick()
                at_large.append(state)

    def _flush(self) -> None:
        """Pay the MMU's debt."""
        mmu = self.mmu
        if mmu.need_flush_code:
            mmu.need_flush_code = False
            mmu.code_flushes += 1
            self.engine.flush_code()
        mmu.need_flush = False
        mmu.flushes += 1
        self.engine.flush_tlb()

    def _step(self, then: Callable[[], None]) -> bool:
        """Execute one instruction, and call `then`. Whether that instruction needs the kernel: it
        may be any, as the one that this was for may have been the kernel's own access on its
        behalf, or another thread runs now."""
        self.mmu.step = None
        self.exit = EXIT_PREEMPTED
        self._start(self.engine.uch, self.engine.q[RIP], 0, 0, 1)
        then()
        if self.exit != EXIT_PREEMPTED or self._poisoned or self._failure is not None:
            return True
        if self.mmu.need_flush:
            self._flush()
        return False

    def _install_callbacks(self) -> None:
        """The engine's callbacks. Those that run for every fault and system call are closures,
        written out. An exception must not leave a callback, because the engine's C frames are below
        it."""
        engine, mmu = self.engine, self.mmu
        q, i, q_cr2 = engine.q, engine.i, engine.q_cr2
        i_error, i_int, i_old = engine.i_error, engine.i_int, engine.i_old
        stop, handle = engine.stop, engine.uch

        def on_exception(vector: int) -> None:
            i[i_old] = -1
            if self._poisoned and not i[i_int] and vector != X86_TRAP_DB:
                # Most likely no fault at all; a true one comes again when we go on. An int
                # instruction, or one that is stepped, is over and would not.
                stop(handle)
            elif vector == X86_TRAP_PF:
                va, error = q[q_cr2], i[i_error]
                resolve = self.on_fault
                if resolve is not None:
                    try:
                        if resolve(va, error):
                            if not mmu.need_flush:
                                return
                            self.exit = _EXIT_RESUME
                            stop(handle)
                            return
                    except BaseException as failure:
                        self._failure = failure
                self.fault_va, self.fault_err = va, error
                self.exit = EXIT_FAULT
            else:
                self.exception = vector | INT if i[i_int] else vector
                self.exception_err = i[i_error]
                self.exit = EXIT_EXCEPTION
            stop(handle)

        def on_syscall() -> None:
            self.exit = EXIT_SYSCALL
            stop(handle)

        engine.on_exception, engine.on_syscall = on_exception, on_syscall
        engine.on_invalid = self._on_invalid

    def _on_invalid(self) -> None:
        """An invalid opcode."""
        self.engine.i[self.engine.i_old] = -1
        self.exception, self.exception_err = X86_TRAP_UD, 0
        self.exit = EXIT_EXCEPTION
