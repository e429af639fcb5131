"""ELF images: validation of the headers, and mapping the segments.

Nothing a file says is believed before it is checked, and everything is checked before anything is
mapped: a malformed file is ENOEXEC and leaves the caller as it was. What is demanded:

    the header     x86-64, EXEC or DYN, entries of 56 bytes
    the table      within the file, at most 64 KiB
    PT_LOAD        at least one; within user space, filesz <= memsz, and offset and address agree
                   about the place in a page
    PT_INTERP      a path that ends in a NUL, within the file
    the entry      within user space

That is little, as programs made by hand have code or other headers in the fields that Linux does
not look at: class, byte order, version, padding. Their segments overlap, come in any order, and
claim more of the file than there is.

Segments become private mappings of the file's pages; nothing is copied. What is behind the end of
the file's part is zeroed to the end of its page, and anonymous memory after that. Where segments
overlap, the later one wins.

Source: DragonFly sys/kern/imgact_elf.c; where they differ, Linux fs/binfmt_elf.c.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import ENOMEM, EPERM, err
from dfvm.vm.copyio import copyout
from dfvm.vm.pager.vnode_pager import vnode_pager_alloc
from dfvm.vm.vm import (
    KERN_SUCCESS,
    VM_PROT_ALL,
    VM_PROT_EXECUTE,
    VM_PROT_NONE,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_IMGACT,
)
from dfvm.vm.vm_map import (
    MAP_COPY_ON_WRITE,
    MAP_PREFAULT_PARTIAL,
    VM_MAPTYPE_NORMAL,
    vm_map_delete,
    vm_map_findspace,
    vm_map_insert,
    vm_map_lock,
    vm_map_unlock,
)
from dfvm.vm.vm_object import vm_object_deallocate
from dfvm.vm.vm_param import (
    PAGE_MASK,
    PAGE_SIZE,
    VM_MAX_USER_ADDRESS,
    round_page,
    trunc_page,
)

if TYPE_CHECKING:
    from elftools.elf.structs import ELFStructs

    from dfvm.kern.kern_exec import ImageParams
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vmspace import Vmspace

_PHDRS_MAX: Final = 65536  # bytes, as Linux
_INTERP_MAX: Final = 4096
_OFFSET_MAX: Final = (1 << 63) - 1  # loff_t

_PF_X: Final = 1
_PF_W: Final = 2
_PF_R: Final = 4


def _elf64_structs() -> ELFStructs:
    """pyelftools' description of what is in a little-endian ELF64 file. Its ELFFile would be more
    than is needed, and takes longer to import than half of what starts with dfvm. So does what its
    parsers import to be debugged with (pdb and more): they do without."""
    debug = "elftools.construct.debug"
    if debug not in sys.modules:
        stand_in = ModuleType(debug)
        stand_in.Probe = stand_in.Debugger = None  # type: ignore[attr-defined]
        sys.modules[debug] = stand_in
        try:
            from elftools.elf.structs import ELFStructs
        finally:
            del sys.modules[debug]
    from elftools.elf.structs import ELFStructs

    structs = ELFStructs(little_endian=True, elfclass=64)
    structs.create_basic_structs()
    structs.create_advanced_structs("ET_EXEC", "EM_X86_64")
    return structs


_ELF64: Final = _elf64_structs()
# What the parser wants to see in e_ident, where Linux looks at nothing but the magic.
_IDENT: Final = b"\x7fELF\2\1\1".ljust(16, b"\0")
_EHDR_BYTES: Final = _ELF64.Elf_Ehdr.sizeof()
PHDR_BYTES: Final = _ELF64.Elf_Phdr.sizeof()

# Where a position-independent program is put, and where its interpreter's search begins.
ET_DYN_BASE: Final = 0x5555_5555_4000
INTERP_BASE: Final = 0x7FFF_C000_0000  # below the room of the largest stack


class Segment:
    """One PT_LOAD."""

    __slots__ = ("filesz", "memsz", "offset", "prot", "vaddr")

    vaddr: int  # as in the file; the load bias comes on top
    memsz: int  # bytes in memory; > 0
    filesz: int  # of them, from the file; <= memsz
    offset: int  # where in the file
    prot: int  # VM_PROT_*

    def __init__(self, vaddr: int, memsz: int, offset: int, filesz: int, flags: int) -> None:
        """`flags`: PF_*. The hardware can neither write nor execute without reading."""
        self.vaddr = vaddr
        self.memsz = memsz
        self.offset = offset
        self.filesz = filesz
        prot = VM_PROT_READ if flags & (_PF_R | _PF_W | _PF_X) else VM_PROT_NONE
        if flags & _PF_W:
            prot |= VM_PROT_WRITE
        if flags & _PF_X:
            prot |= VM_PROT_EXECUTE
        self.prot = prot


class ElfImage:
    """A validated ELF file."""

    __slots__ = ("align", "entry", "high", "interp", "low", "phdr_vaddr", "phnum", "pic",
                 "segments", "stack_exec")  # fmt: skip

    pic: bool  # ET_DYN: may be put anywhere
    entry: int  # as in the file
    phnum: int
    phdr_vaddr: int  # where the program headers will be in memory; 0 when they are not loaded
    segments: list[Segment]  # at least one, in the file's order
    low: int  # the first page of the lowest
    high: int  # the first address behind the highest
    align: int  # the largest alignment asked for, a power of two; at least a page
    interp: bytes | None  # PT_INTERP
    stack_exec: bool  # PT_GNU_STACK wants an executable stack


def elf_parse(image: ImageParams) -> ElfImage:
    """Read and check the headers of `image`.

    :raises OSError: ENOEXEC for whatever is wrong with them; `image.reason` says what.
    """
    head = image.read(0, _EHDR_BYTES)
    if len(head) < _EHDR_BYTES:
        raise image.malformed("the ELF header is truncated")
    ehdr = _ELF64.Elf_Ehdr.parse(_IDENT + head[len(_IDENT) :])
    if ehdr.e_machine != "EM_X86_64":
        raise image.malformed(f"machine {ehdr.e_machine} is not x86-64")
    if ehdr.e_type not in ("ET_EXEC", "ET_DYN"):
        raise image.malformed(f"type {ehdr.e_type} is not executable")
    if ehdr.e_phentsize != PHDR_BYTES:
        raise image.malformed(f"program headers of {ehdr.e_phentsize} bytes")
    e_phoff, e_phnum = ehdr.e_phoff, ehdr.e_phnum
    size = e_phnum * PHDR_BYTES
    if not 0 < size <= _PHDRS_MAX:
        raise image.malformed(f"{e_phnum} program headers")
    if e_phoff + size > image.size:
        raise image.malformed("the program headers are truncated")
    table = image.read(e_phoff, size)
    if len(table) < size:
        raise image.malformed("the program headers are truncated")

    elf = ElfImage()
    elf.pic = ehdr.e_type == "ET_DYN"
    elf.entry = ehdr.e_entry
    elf.phnum = e_phnum
    elf.segments = []
    elf.align = PAGE_SIZE
    elf.interp = None
    elf.stack_exec = False
    elf.phdr_vaddr = 0
    for at in range(0, size, PHDR_BYTES):
        phdr = _ELF64.Elf_Phdr.parse(table[at : at + PHDR_BYTES])
        p_offset, p_filesz = phdr.p_offset, phdr.p_filesz
        if phdr.p_type == "PT_LOAD":
            seg = Segment(phdr.p_vaddr, phdr.p_memsz, p_offset, p_filesz, phdr.p_flags)
            _add_load(image, elf, seg, phdr.p_align)
            if p_offset <= e_phoff < p_offset + p_filesz:
                elf.phdr_vaddr = e_phoff - p_offset + seg.vaddr
        elif phdr.p_type == "PT_INTERP" and elf.interp is None:
            elf.interp = _interp(image, p_offset, p_filesz)
        elif phdr.p_type == "PT_GNU_STACK":
            elf.stack_exec = bool(phdr.p_flags & _PF_X)
    if not elf.segments:
        raise image.malformed("no segment to load")
    elf.low = trunc_page(min(seg.vaddr for seg in elf.segments))
    elf.high = max(seg.vaddr + seg.memsz for seg in elf.segments)
    if elf.high - elf.low > VM_MAX_USER_ADDRESS - ET_DYN_BASE and elf.pic:
        raise image.malformed("the segments don't fit into user space")
    if not (elf.pic or elf.entry < VM_MAX_USER_ADDRESS) or elf.entry >= 1 << 47:
        raise image.malformed(f"entry point {elf.entry:#x} is not in user space")
    return elf


def _add_load(image: ImageParams, elf: ElfImage, seg: Segment, align: int) -> None:
    """Check a PT_LOAD, and take it."""
    vaddr, memsz, offset, filesz = seg.vaddr, seg.memsz, seg.offset, seg.filesz
    what = f"segment at {vaddr:#x}"
    if filesz > memsz:
        raise image.malformed(f"{what}: more in the file than in memory")
    if memsz == 0:
        return
    if vaddr + memsz > VM_MAX_USER_ADDRESS:
        raise image.malformed(f"{what}: not in user space")
    if filesz:
        if offset + filesz > _OFFSET_MAX:
            raise image.malformed(f"{what}: lies beyond the end of any file")
        if (vaddr ^ offset) & PAGE_MASK:
            raise image.malformed(f"{what}: offset {offset:#x} does not suit the address")
    if align & (align - 1) == 0 and elf.align < align:
        elf.align = align
    elf.segments.append(seg)


def _interp(image: ImageParams, offset: int, size: int) -> bytes:
    if not 2 <= size <= _INTERP_MAX or offset + size > image.size:
        raise image.malformed("PT_INTERP is not a path")
    path = image.read(offset, size)
    if len(path) < size or path[-1] != 0:
        raise image.malformed("PT_INTERP is not a path")
    return path[: path.index(0)]


def elf_load(image: ImageParams, space: Vmspace, elf: ElfImage, bias: int) -> None:
    """Map the segments of `elf` into `space`, moved by `bias`. May block.

    :raises OSError: ENOMEM, EIO, ENOEXEC; the space is then half filled, and to be thrown away.
    """
    vm_map = space.vm_map
    for seg in elf.segments:
        start = seg.vaddr + bias
        base = trunc_page(start)
        data_end = start + seg.filesz
        end = round_page(start + seg.memsz)
        anon = base
        if seg.filesz:
            anon = round_page(data_end)
            obj = vnode_pager_alloc(vm_map.vm, image.vp.vop_data(), image.size)
            cow = MAP_COPY_ON_WRITE | MAP_PREFAULT_PARTIAL
            offset = trunc_page(seg.offset)
            if not _map_over(space, obj, offset, base, anon, seg.prot, cow):
                vm_object_deallocate(obj)
                raise err(ENOMEM)
        # Memory that no file is behind can always be written.
        bss_prot = seg.prot | VM_PROT_READ | VM_PROT_WRITE
        if end > anon and not _map_over(space, None, 0, anon, end, bss_prot, 0):
            raise err(ENOMEM)
        if seg.memsz > seg.filesz > 0 and data_end & PAGE_MASK and seg.prot & VM_PROT_WRITE:
            # bss begins in the middle of a page, behind whatever the file has there.
            try:
                copyout(space, bytes(anon - data_end), data_end)
            except OSError:
                if seg.offset + seg.filesz <= image.size:
                    raise
                raise image.malformed("bss begins in a page that the file hasn't") from None


def _map_over(
    space: Vmspace, obj: VmObject | None, offset: int, start: int, end: int, prot: int, cow: int
) -> bool:
    """Map `obj` in the place of whatever was there: the last page of a segment may also hold the
    first bytes of the next one. False when there is no room."""
    vm_map = space.vm_map
    vm_map_lock(vm_map)
    vm_map_delete(vm_map, start, end)
    rv = vm_map_insert(vm_map, obj, offset, start, end, VM_MAPTYPE_NORMAL, VM_SUBSYS_IMGACT,
                       prot, VM_PROT_ALL, cow)  # fmt: skip
    vm_map_unlock(vm_map)
    return rv == KERN_SUCCESS


def elf_activate(image: ImageParams, space: Vmspace, elf: ElfImage, low: bool) -> None:
    """Fill `space` with the program, and with its interpreter if it has one, and note in `image`
    where things are. `low`: it may be put below vm.mmap_min_addr. May block.

    :raises OSError: what elf_load raises; EPERM for a place that only root may map something at.
    """
    bias = ET_DYN_BASE & -elf.align if elf.pic else 0
    if elf.pic:
        bias -= elf.low & -elf.align
    if elf.low + bias < image.kernel.mmap_min_addr and not low:
        raise err(EPERM)
    elf_load(image, space, elf, bias)
    image.phdr = elf.phdr_vaddr + bias if elf.phdr_vaddr else 0
    image.phnum = elf.phnum
    image.entry = image.start = elf.entry + bias
    image.base = 0
    image.stack_exec = elf.stack_exec
    text = next((s for s in elf.segments if s.prot & VM_PROT_EXECUTE), elf.segments[0])
    space.vm_taddr = text.vaddr + bias
    space.vm_tsize = text.memsz
    space.vm_daddr = round_page(elf.high + bias)
    space.vm_dsize = 0
    if image.interp is not None:
        _load_interp(image, space)


def _load_interp(image: ImageParams, space: Vmspace) -> None:
    """Map the interpreter that elf_open_interp has found."""
    interp = image.interp
    assert interp is not None
    elf = interp.elf
    assert elf is not None
    bias = 0
    if elf.pic:
        size = round_page(elf.high) - elf.low
        vm_map_lock(space.vm_map)
        place = vm_map_findspace(space.vm_map, INTERP_BASE, size, PAGE_SIZE)
        vm_map_unlock(space.vm_map)
        if place is None:
            raise err(ENOMEM)
        bias = place - elf.low
    elf_load(interp, space, elf, bias)
    image.base = bias
    image.start = elf.entry + bias
