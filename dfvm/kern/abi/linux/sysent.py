"""From the table of system calls to something that can be called: the dispatch of the Linux ABI.

The trap loop looks a number up in a `SysentTable` and calls what it finds with the lwp and the
registers. What it finds is a small function that picks the arguments; it is made the first time
the number is used, when the module that implements the call is imported, so that a program pays at
start only for the calls it makes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from dfvm.kern.abi.linux.syscalls import SYSCALLS
from dfvm.kern.kern_errno import ENOSYS, err
from dfvm.machine.reg import R8, R9, R10, RDI, RDX, RSI

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.proc import Lwp

    Handler = Callable[[Lwp, memoryview], int]


class Sysent:
    """One row of the table, parsed."""

    __slots__ = ("args", "module", "name", "number")

    number: int
    name: str
    args: tuple[tuple[str, str], ...]  # (kind, name) of each argument
    module: str  # of dfvm.kern; empty when it is not implemented

    def __init__(self, number: int, name: str, signature: str, module: str) -> None:
        self.number = number
        self.name = name
        self.module = module
        self.args = tuple(
            (words[0], words[-1])
            for words in (arg.split() for arg in signature.split(",") if arg.strip())
        )

    def function(self) -> Callable[..., int]:
        """The implementation."""
        module = import_module(f"dfvm.kern.{self.module}")
        function: Callable[..., int] = getattr(module, f"sys_{self.name}")
        return function

    def handler(self) -> Handler:
        """The implementation, called with the arguments that the registers hold."""
        return _adapters[len(self.args)](self.function())


class SysentTable(dict[int, "Handler"]):
    """Number → handler, filled in as numbers are used. One for each machine, because of the
    counts."""

    __slots__ = ("refused", "rows", "unknown")

    rows: dict[int, tuple[int, str, str, str]]  # the table by number
    unknown: dict[int, int]  # how often a call that is not implemented was made, by number; -1:
    #                          one that Linux does not have either
    refused: dict[str, int]  # how often a call asked for what is not implemented, by what it was

    def __init__(self) -> None:
        self.rows = {row[0]: row for row in SYSCALLS}
        self.unknown = {}
        self.refused = {}

    def __missing__(self, number: int) -> Handler:
        row = self.rows.get(number)
        if row is not None and row[3]:
            handler = self[number] = Sysent(*row).handler()
            return handler

        def enosys(lp: Lwp, q: memoryview) -> int:
            # A program may try every number there is; those beyond the table count as one.
            known = number if number in self.rows else -1
            self.unknown[known] = self.unknown.get(known, 0) + 1
            raise err(ENOSYS)

        return enosys

    def refuse(self, what: str) -> None:
        """Count a call that is implemented, but not what it was to do: "clone(CLONE_THREAD)"."""
        self.refused[what] = self.refused.get(what, 0) + 1

    def name(self, number: int) -> str:
        """What the call of that number is called, "other" when there is none."""
        row = self.rows.get(number)
        return "other" if row is None else row[1]

    def sysent(self, number: int) -> Sysent | None:
        """The row of `number`, for tracing and documentation; None when there is none."""
        row = self.rows.get(number)
        return None if row is None else Sysent(*row)


def _call0(fn: Callable[..., int]) -> Handler:
    return lambda lp, q: fn(lp)


def _call1(fn: Callable[..., int]) -> Handler:
    return lambda lp, q: fn(lp, q[RDI])


def _call2(fn: Callable[..., int]) -> Handler:
    return lambda lp, q: fn(lp, q[RDI], q[RSI])


def _call3(fn: Callable[..., int]) -> Handler:
    return lambda lp, q: fn(lp, q[RDI], q[RSI], q[RDX])


def _call4(fn: Callable[..., int]) -> Handler:
    return lambda lp, q: fn(lp, q[RDI], q[RSI], q[RDX], q[R10])


def _call5(fn: Callable[..., int]) -> Handler:
    return lambda lp, q: fn(lp, q[RDI], q[RSI], q[RDX], q[R10], q[R8])


def _call6(fn: Callable[..., int]) -> Handler:
    return lambda lp, q: fn(lp, q[RDI], q[RSI], q[RDX], q[R10], q[R8], q[R9])


_adapters = (_call0, _call1, _call2, _call3, _call4, _call5, _call6)
