"""`--stats`: what the machine counted, by DragonFly's names (struct vmmeter, struct vmstats)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfvm.kern.machine import Machine


def gather(machine: Machine) -> dict[str, Any]:
    """All figures, as plain values in groups."""
    return {
        "vmmeter": _fields(machine.vmmeter),
        "vmstats": _fields(machine.vmstats),
        "engine": {
            "tlb_flushes": machine.kernel.mmu.flushes,
            "code_flushes": machine.kernel.mmu.code_flushes,
        },
        "unknown_syscalls": {
            "other" if n < 0 else str(n): k  # numbers that Linux doesn't have either
            for n, k in sorted(machine.kernel.sysent.unknown.items())
        },
    }


def write_stats(machine: Machine, where: str) -> None:
    """Print the figures to stderr for "-", else write them to the file: JSON when its name ends in
    .json, the same table otherwise.

    :raises OSError: when the file can't be written.
    """
    figures = gather(machine)
    if where == "-":
        sys.stderr.write(as_table(figures))
        return
    if where.endswith(".json"):
        import json

        text = json.dumps(figures, indent=2) + "\n"
    else:
        text = as_table(figures)
    with open(where, "w", encoding="utf-8") as f:
        f.write(text)


def as_table(figures: dict[str, Any]) -> str:
    """The figures that are not zero, a line each."""
    lines = []
    for group, values in figures.items():
        shown = {name: value for name, value in values.items() if value}
        if shown:
            lines.append(f"{group}:")
            width = max(map(len, shown))
            lines += [f"  {name:{width}}  {value:>12}" for name, value in shown.items()]
    return "\n".join(lines) + "\n"


def _fields(counters: object) -> dict[str, int]:
    slots: tuple[str, ...] = type(counters).__slots__  # type: ignore[attr-defined]
    return {name: getattr(counters, name) for name in sorted(slots)}
