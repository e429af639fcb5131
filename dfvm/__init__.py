"""dfvm: DragonFly BSD's virtual memory system as a running machine.

    from dfvm import Machine
    with Machine(mem="64M") as m:
        p = m.spawn(["/usr/bin/busybox", "true"])
        m.run()
        assert p.exit_status == 0

`Machine` and what its methods speak of are found here; they are imported when they are first
named, so that importing the package costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs its import, and this is the first thing dfvm does
if TYPE_CHECKING:
    from typing import Any

    from dfvm.kern.machine import INHERIT, PIPE, STDOUT, Deadlock, Machine, Panic, Process

__version__ = "0.1.0"

__all__ = ["INHERIT", "PIPE", "STDOUT", "Deadlock", "Machine", "Panic", "Process", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dfvm.kern import machine

    return getattr(machine, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
