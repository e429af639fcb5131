"""Names for addresses: which function of which file RIP lies in.

The symbol table is read from the host's file, once for each. What a program writes over its own
file, or unlinks, is not found; a stripped program has no names, a stripped library those that it
exports.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from mmap import ACCESS_READ, mmap
from struct import Struct, error, unpack_from
from typing import TYPE_CHECKING, Final

from dfvm.kern.vfs.vnode import Vnode
from dfvm.kern.vma import chain_end
from dfvm.vm.vm_map_clip import vm_map_lookup_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.proc import Proc
    from dfvm.vm.vm_map_entry import VmMapEntry

_PHDR: Final = Struct("<I4xQQ8xQ16x")  # type, offset, vaddr, filesz
_SHDR: Final = Struct("<4xI16xQQI4x8xQ")  # type, offset, size, link, entsize
_SYM: Final = Struct("<IB3xQQ")  # name, info, value, size
_PT_LOAD: Final = 1
_SHT_SYMTAB: Final = 2
_SHT_DYNSYM: Final = 11
_FUNCTIONS: Final = (2, 10)  # STT_FUNC, STT_GNU_IFUNC


class Symbols:
    """The functions of the files that programs map, which lie below the host directory `root`."""

    def __init__(self, root: str) -> None:
        self.root = root
        # By path: where in the file functions start, ascending, and (end, name) of each.
        self._tables: dict[str, tuple[list[int], list[tuple[int, str]]]] = {}

    def name(self, proc: Proc, address: int) -> str:
        """ "function+0x12" for an address in `proc`, "" where there is none that has a name."""
        found, entry = vm_map_lookup_entry(proc.p_vmspace.vm_map, address)
        if not found or entry is None:
            return ""
        vp = mapped_file(entry)
        if vp is None:
            return ""
        path = proc.kernel.vn_name(vp)
        if path not in self._tables:
            self._tables[path] = read_functions(os.path.join(self.root, path.lstrip("/")))
        starts, functions = self._tables[path]
        at = address - entry.ba.start + chain_end(entry).offset
        n = bisect_right(starts, at) - 1
        if n < 0 or at >= functions[n][0]:
            return ""
        return f"{functions[n][1]}+{at - starts[n]:#x}"


def mapped_file(entry: VmMapEntry) -> Vnode | None:
    """The file at the bottom of an entry's chain, None for anonymous memory."""
    obj = chain_end(entry).object
    vp = None if obj is None else obj.handle
    return vp if isinstance(vp, Vnode) else None


def read_functions(path: str) -> tuple[list[int], list[tuple[int, str]]]:
    """Where in an ELF file its functions start, ascending, and (end, name) of each. None of what
    is no such file, or is not in order."""
    found: dict[int, tuple[int, str]] = {}
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO's open() does not wait
        try:
            with mmap(fd, 0, access=ACCESS_READ) as data:
                for start, size, name in _functions(data):
                    found.setdefault(start, (start + size, name))
        finally:
            os.close(fd)
    except (OSError, ValueError, OverflowError, error):  # not there, empty, cut off
        pass
    starts = sorted(found)
    return starts, [found[start] for start in starts]


def _functions(data: mmap) -> Iterator[tuple[int, int, str]]:
    """(start in the file, size, name) of each function. Reads nothing outside the file, whatever
    its tables say.

    :raises struct.error, OverflowError: a table lies outside.
    """
    if data[:4] != b"\x7fELF":
        return
    phoff, shoff = unpack_from("<QQ", data, 32)
    phentsize, phnum, shentsize, shnum = unpack_from("<HHHH", data, 54)
    if phentsize != _PHDR.size or shentsize != _SHDR.size:
        return
    segments = [_PHDR.unpack_from(data, phoff + n * phentsize) for n in range(phnum)]
    loads = [(vaddr, offset, size) for kind, offset, vaddr, size in segments if kind == _PT_LOAD]
    sections = [_SHDR.unpack_from(data, shoff + n * shentsize) for n in range(shnum)]
    tables = {section[0]: section for section in sections}
    table = tables.get(_SHT_SYMTAB) or tables.get(_SHT_DYNSYM)
    if table is None or table[4] != _SYM.size or table[3] >= shnum:
        return
    _, offset, size, link, entsize = table
    names = sections[link][1]
    symbols = data[offset : offset + size]
    for name, info, value, size in _SYM.iter_unpack(symbols[: len(symbols) // entsize * entsize]):
        if info & 15 not in _FUNCTIONS or not size:
            continue
        for vaddr, start, length in loads:
            if vaddr <= value < vaddr + length:
                yield value - vaddr + start, size, _string(data, names + name)


def _string(data: mmap, at: int) -> str:
    """A name of the string table, which ends with a zero byte."""
    end = data.find(b"\0", at) if at < len(data) else -1
    text = data[at:end].decode("utf-8", "backslashreplace") if end >= 0 else ""
    return text if text.isprintable() else ascii(text)[1:-1]
