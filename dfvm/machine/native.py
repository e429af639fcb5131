"""The native half of the machine: instructions that the engine gets wrong, done by the host's
processor or by a few lines of C, in place of the engine's own functions for them.

The C is in `native/`: decode.c (what an instruction is), translate.c (what the engine translates),
memory.c (alignment, stores over a page border, what a page fault says), sse.c and x87.c (floating
point, executed by the host's), insn.c (the rest), interpose.c (how the engine comes to call it). It
is compiled when dfvm is installed, and nothing here runs without it: with the engine's own ideas a
program would compute something else than on a processor.

`install` comes before the first engine is made; `found` with each engine.
"""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Final

# In the order of dfvm_native_layout.
_FIELDS: Final = ("eip", "fs_base", "gs_base", "cr3", "fpuc", "fpregs", "mxcsr", "xmm", "xmm1")

_libraries: list[ctypes.CDLL] = []  # the one that was installed, when it was


class NativeError(RuntimeError):
    """The native half is not there, or does not fit the installed engine."""


def install(function: Any) -> None:
    """Put our functions into the engine, of whose library `function` is any function. Once for the
    process; further calls do nothing.

    :raises NativeError: when the library was not compiled, or the engine is another one.
    """
    if _libraries:
        return
    folder = Path(__file__).parent
    found = [p for s in EXTENSION_SUFFIXES if (p := folder / f"_native{s}").exists()]
    if not found:
        raise NativeError(
            "dfvm.machine._native is not compiled: install a C compiler, then dfvm again"
        )
    library = ctypes.PyDLL(str(found[0]))
    library.dfvm_native_install.restype = ctypes.c_char_p
    library.dfvm_native_install.argtypes = [ctypes.c_void_p]
    problem = library.dfvm_native_install(ctypes.cast(function, ctypes.c_void_p))
    if problem:
        raise NativeError(problem.decode())
    _libraries.append(library)


def layout() -> dict[str, int]:
    """Where the native half takes fields of the CPU state to be: byte offsets, by name."""
    offsets = (ctypes.c_uint32 * len(_FIELDS))()
    _libraries[0].dfvm_native_layout(offsets)
    return dict(zip(_FIELDS, offsets, strict=True))


def found(to_state: int) -> None:
    """The CPU state begins `to_state` bytes behind the engine's CPU, in every engine."""
    _libraries[0].dfvm_native_found(ctypes.c_ssize_t(to_state))


def power_up(state: int) -> None:
    """Give the CPU state at host address `state` what a program sees of system registers."""
    _libraries[0].dfvm_native_power_up(ctypes.c_void_p(state))


def instruction_length(code: bytes) -> int:
    """Bytes of the instruction that `code` begins with; 0 when it goes on behind the end of `code`,
    -1 when it is longer than an instruction may be."""
    length: int = _libraries[0].dfvm_native_length(code, len(code))
    return length
