"""`--stats`: what the machine counted, by DragonFly's names (struct vmmeter, struct vmstats)."""

from __future__ import annotations

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
            machine.kernel.sysent.name(n): k
            for n, k in sorted(machine.kernel.sysent.unknown.items())
        },
        "refused_syscalls": dict(sorted(machine.kernel.sysent.refused.items())),
    }


def as_json(figures: dict[str, Any]) -> str:
    """The figures for programs."""
    import json

    return json.dumps(figures, indent=2) + "\n"


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
