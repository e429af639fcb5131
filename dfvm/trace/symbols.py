"""Names for addresses: which function of the program RIP lies in.

The symbol table is read from the host's file, once for each program. What a program writes over its
own file, or unlinks, is not found; a stripped one has no names.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from dfvm.kern.imgact_elf import ET_DYN_BASE

if TYPE_CHECKING:
    from dfvm.kern.proc import Proc


class Symbols:
    """The functions of programs below the host directory `root`."""

    def __init__(self, root: str) -> None:
        self.root = root
        # By path: start addresses ascending, and (end, name) of each.
        self._tables: dict[str, tuple[list[int], list[tuple[int, str]]]] = {}

    def name(self, proc: Proc, address: int) -> str:
        """ "function+0x12" for an address in the program of `proc`, "" for any other."""
        path = proc.p_execpath
        if path not in self._tables:
            self._tables[path] = self._read(os.path.join(self.root, path.lstrip("/")))
        starts, functions = self._tables[path]
        n = bisect_right(starts, address) - 1
        if n < 0 or address >= functions[n][0]:
            return ""
        return f"{functions[n][1]}+{address - starts[n]:#x}"

    def _read(self, path: str) -> tuple[list[int], list[tuple[int, str]]]:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        found: dict[int, tuple[int, str]] = {}
        try:
            with open(path, "rb") as f:
                elf = ELFFile(f)
                bias = ET_DYN_BASE if elf.header.e_type == "ET_DYN" else 0
                table: Any = elf.get_section_by_name(".symtab")
                for symbol in table.iter_symbols() if table is not None else ():
                    start, size = symbol.entry.st_value + bias, symbol.entry.st_size
                    if symbol.entry.st_info.type == "STT_FUNC" and size:
                        found.setdefault(start, (start + size, symbol.name))
        except (OSError, ELFError):
            pass  # not there for us: no names
        starts = sorted(found)
        return starts, [found[start] for start in starts]
