"""A walk of the page tables for people: each level with its entry, as
`dfvm trace --walk` prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.machine.pte import PG_FRAME, PG_PS, PG_V

if TYPE_CHECKING:
    from dfvm.machine.ram import Ram


class WalkLevel:
    """One step of a walk."""

    __slots__ = ("entry", "index", "leaf", "name", "table_pa")

    name: str  # PML4, PDP, PD, PT
    table_pa: int  # physical address of the table
    index: int  # which of its 512 entries
    entry: int  # the entry itself
    leaf: bool  # the walk ends here with a page

    def __init__(self, name: str, table_pa: int, index: int, entry: int, leaf: bool) -> None:
        self.name = name
        self.table_pa = table_pa
        self.index = index
        self.entry = entry
        self.leaf = leaf


def walk(ram: Ram, cr3: int, va: int) -> list[WalkLevel]:
    """The levels that the MMU passes through for `va` in the space at `cr3`. The last one is a
    leaf, or an entry that is not present."""
    levels = []
    table = cr3 & PG_FRAME
    for name, shift in (("PML4", 39), ("PDP", 30), ("PD", 21), ("PT", 12)):
        index = va >> shift & 511
        entry = ram.q[(table >> 3) + index]
        leaf = bool(entry & PG_V) and (shift == 12 or (shift < 39 and bool(entry & PG_PS)))
        levels.append(WalkLevel(name, table, index, entry, leaf))
        if leaf or not entry & PG_V:
            break
        table = entry & PG_FRAME
    return levels
