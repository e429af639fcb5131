"""Executables made by hand to be wrong in one way each.

Where Linux notices only after the old program is gone, and kills, this kernel has looked before and
answers ENOEXEC. What Linux runs, runs.
"""

from __future__ import annotations

import os
from errno import EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOMEM, ENOTDIR, EPERM
from pathlib import Path
from struct import pack

import pytest

from dfvm import PIPE, Machine

PAGE = 4096
BASE = 0x400000
CODE = 0x800  # where in the file, and in its first page
TOP = 1 << 47
EXIT_0 = b"\x31\xff\xb8\x3c\0\0\0\x0f\x05"
PT_LOAD, PT_INTERP = 1, 3
R, W, X = 4, 2, 1


def segment(
    vaddr: int = BASE, filesz: int = PAGE, memsz: int = PAGE, offset: int = 0,
    flags: int = R | X, align: int = PAGE, kind: int = PT_LOAD,
) -> bytes:  # fmt: skip
    return pack("<IIQQQQQQ", kind, flags, offset, vaddr, vaddr, filesz, memsz, align)


def elf(
    *segments: bytes, entry: int = BASE + CODE, pie: bool = False, phnum: int | None = None,
    phoff: int = 64, phentsize: int = 56, interp: bytes = b"",
) -> bytes:  # fmt: skip
    """A program that exits with 0, if it gets to run."""
    if interp:
        segments += (segment(kind=PT_INTERP, offset=0x900, filesz=len(interp)),)
    count = len(segments) if phnum is None else phnum
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + pack(
        "<HHIQQQIHHHHHH", 3 if pie else 2, 62, 1, entry, phoff, 0, 0, 64, phentsize, count, 0, 0, 0
    )
    image = (head + b"".join(segments)).ljust(CODE, b"\0") + EXIT_0
    return (image.ljust(0x900, b"\0") + interp).ljust(PAGE, b"\0")


def load(image: bytes, tmp_path: Path) -> int:
    """The exit status, or the negative errno."""
    path = tmp_path / "image"
    path.write_bytes(image.replace(b"{here}", bytes(tmp_path)))
    path.chmod(0o755)
    with Machine(mem="32M", check=True) as m:
        try:
            p = m.spawn([str(path)], stdin=b"", stdout=PIPE, stderr=PIPE)
        except OSError as e:
            m.check()
            return -(e.errno or 0)
        m.run(timeout=600)
        assert p.exit_status is not None
        return p.exit_status


MANY = [segment(vaddr=0x1000_0000 + 2 * n * PAGE, filesz=0, flags=R | W) for n in range(30)]

IMAGES = {
    "as it should be": (elf(segment()), 0),
    "position-independent": (elf(segment(vaddr=0), entry=CODE, pie=True), 0),
    "linked high, but movable": (elf(segment(vaddr=0x7F0000000000), entry=0x7F0000000800, pie=True),
                                 0),
    "aligned to 1 GiB": (elf(segment(vaddr=0, align=1 << 30), entry=CODE, pie=True), 0),
    "aligned absurdly": (elf(segment(vaddr=0, align=1 << 63), entry=CODE, pie=True), 0),
    "many segments": (elf(segment(), *MANY), 0),
    "an empty segment": (elf(segment(), segment(vaddr=0x600000, filesz=0, memsz=0)), 0),
    "a terabyte of bss": (elf(segment(memsz=1 << 40, flags=R | W | X)), 0),
    "bss that can't be written": (elf(segment(filesz=0x900, memsz=3 * PAGE)), 0),
    "no rights": (elf(segment(flags=0)), 139),
    "entry in no segment": (elf(segment(), entry=0x500000), 139),
    "entry at the last page": (elf(segment(), entry=TOP - PAGE - 1), 139),
    "65535 headers, one there": (elf(segment(), phnum=65535), -ENOEXEC),
    "no headers": (elf(), -ENOEXEC),
    "headers far away": (elf(segment(), phoff=1 << 63), -ENOEXEC),
    "headers behind the end": (elf(segment(), phoff=PAGE - 8), -ENOEXEC),
    "headers of no size": (elf(segment(), phentsize=0), -ENOEXEC),
    "nothing to load": (elf(segment(memsz=0, filesz=0)), -ENOEXEC),
    "segments overlap": (elf(segment(), segment()), 0),
    "at address 0": (elf(segment(vaddr=0), entry=CODE), -EPERM if os.geteuid() else 0),
    "over the top": (elf(segment(vaddr=TOP - PAGE)), -ENOEXEC),
    "in the way of the stack": (elf(segment(), segment(vaddr=TOP - 4 * PAGE, filesz=0)), -ENOMEM),
    "in the kernel": (elf(segment(vaddr=1 << 63), entry=1 << 63), -ENOEXEC),
    "wraps around": (elf(segment(vaddr=(1 << 64) - PAGE)), -ENOEXEC),
    "2^63 bytes": (elf(segment(memsz=1 << 63)), -ENOEXEC),
    "2^64-1 bytes": (elf(segment(memsz=(1 << 64) - 1)), -ENOEXEC),
    "all of user space": (elf(segment(memsz=TOP - BASE - PAGE)), -ENOMEM),
    "more in the file than in memory": (elf(segment(memsz=0x800)), -ENOEXEC),
    "2^62 bytes of the file": (elf(segment(filesz=1 << 62, memsz=1 << 62)), -ENOEXEC),
    "from beyond the file": (elf(segment(offset=(1 << 64) - PAGE)), -ENOEXEC),
    "entry not canonical": (elf(segment(), entry=1 << 62), -ENOEXEC),
    "interpreter missing": (elf(segment(), interp=b"/nowhere/ld.so\0"), -ENOENT),
    "interpreter a directory": (elf(segment(), interp=b"/tmp\0"), -EACCES),
    "interpreter a device": (elf(segment(), interp=b"/dev/null\0"), -EACCES),
    "interpreter below a file": (elf(segment(), interp=b"/etc/passwd/x\0"), -ENOTDIR),
    "interpreter's name endless": (elf(segment(), interp=b"/" + b"a" * 600), -ENOEXEC),
    "interpreter's name too long": (elf(segment(), interp=b"/" + b"a" * 600 + b"\0"),
                                    -ENAMETOOLONG),
    "script of itself": (b"#!{here}/image\n", -ELOOP),
    "script of a directory": (b"#!/tmp\n", -EACCES),
    "script of nothing": (b"#! \t\n", -ENOEXEC),
    "script of what is missing": (b"#!/nowhere/sh\n", -ENOENT),
    "script's line too long": (b"#!/" + b"a" * 5000, -ENOEXEC),
    "empty": (b"", -ENOEXEC),
    "magic only": (b"\x7fELF", -ENOEXEC),
}  # fmt: skip


@pytest.mark.parametrize(("image", "result"), IMAGES.values(), ids=IMAGES)
def test_bad_image(image: bytes, result: int, tmp_path: Path) -> None:
    assert load(image, tmp_path) == result
