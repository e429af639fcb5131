"""PROCMAP_QUERY, an ioctl of /proc/PID/maps: one mapping, by its address, as numbers.

Source: Linux fs/proc/task_mmu.c (do_procmap_query), include/uapi/linux/fs.h, lib/buildid.c.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.linux_struct import dev_major, dev_minor
from dfvm.kern.kern_errno import E2BIG, EINVAL, ENAMETOOLONG, ENOENT, ESRCH, err
from dfvm.kern.vfs.procfs_maps import (
    mapped_file,
    mapped_name,
    mapped_where,
    requested_protection,
)
from dfvm.kern.vma import U64, is_shared, vma_end, vma_start
from dfvm.vm.copyio import copyin, copyout
from dfvm.vm.vm import VM_PROT_EXECUTE, VM_PROT_READ, VM_PROT_WRITE
from dfvm.vm.vm_map import vm_map_first_entry, vm_map_lookup_entry
from dfvm.vm.vm_param import PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.vm.vm_map import VmMapEntry
    from dfvm.vm.vmspace import Vmspace

PROCMAP_QUERY: Final = 0xC068_6611  # _IOWR('f', 17, struct procmap_query)

# What is asked for, and (but for the last two) what there is.
QUERY_READABLE: Final = 0x01
QUERY_WRITABLE: Final = 0x02
QUERY_EXECUTABLE: Final = 0x04
QUERY_SHARED: Final = 0x08
QUERY_COVERING_OR_NEXT: Final = 0x10
QUERY_FILE_BACKED: Final = 0x20
_RIGHTS: Final = 0x0F
_ALL: Final = 0x3F

# struct procmap_query: size query_flags query_addr vma_start vma_end vma_flags vma_page_size
# vma_offset inode, dev_major dev_minor vma_name_size build_id_size, vma_name_addr build_id_addr
_QUERY: Final = Struct("<QQQQQQQQQIIIIQQ")
_QUERY_MIN: Final = 24  # up to query_addr
_PATH_MAX: Final = 4096

_EHDR: Final = Struct("<16sHHIQQQIHHH")  # up to e_phnum
_PHDR: Final = Struct("<IIQQQQQQ")
_NHDR: Final = Struct("<III")
_PT_NOTE: Final = 4
_NT_GNU_BUILD_ID: Final = 3
_BUILD_ID_MAX: Final = 20


def procmap_query(lwp: Lwp, p: Proc, space: Vmspace | None, arg: int) -> int:
    """Answer the query at user address `arg` about `space`, which was `p`'s when the file was
    opened; None when nobody uses it any more. May block.

    :raises OSError: EFAULT, E2BIG, EINVAL, ESRCH; ENOENT when there is no such mapping;
        ENAMETOOLONG when its name, or its build id, does not fit.
    """
    mine = lwp.lwp_proc.p_vmspace
    size = int.from_bytes(copyin(mine, arg, 8), "little")
    if size > PAGE_SIZE:
        raise err(E2BIG)
    if size < _QUERY_MIN:
        raise err(EINVAL)
    raw = copyin(mine, arg, size)
    if any(raw[_QUERY.size :]):
        raise err(E2BIG)
    query = list(_QUERY.unpack(raw[: _QUERY.size].ljust(_QUERY.size, b"\0")))
    flags, addr, name_size, id_size, name_addr, id_addr = *query[1:3], *query[11:15]
    if flags & ~_ALL or bool(name_size) != bool(name_addr) or bool(id_size) != bool(id_addr):
        raise err(EINVAL)
    if space is None:
        raise err(ESRCH)
    entry = _find(space, addr, flags)
    build_id = name = b""
    vp = mapped_file(entry)
    if id_size and vp is not None:
        build_id = _build_id(p.kernel, vp)
        if len(build_id) > id_size:
            raise err(ENAMETOOLONG)
    end = vma_end(entry, U64)
    if name_size:
        name = _name(p, space, entry, end)
        if len(name) > min(name_size, _PATH_MAX):
            raise err(ENAMETOOLONG)
    dev, ino, offset = mapped_where(entry)
    query[3:13] = (
        entry.ba.start, end, _rights(entry), PAGE_SIZE, offset, ino,
        dev_major(dev), dev_minor(dev), len(name), len(build_id),
    )  # fmt: skip
    if name:
        copyout(mine, name, name_addr)
    if build_id:
        copyout(mine, build_id, id_addr)
    copyout(mine, _QUERY.pack(*query)[:size], arg)
    return 0


def _find(space: Vmspace, addr: int, flags: int) -> VmMapEntry:
    """The first entry of the mapping that is asked for.

    :raises OSError: ENOENT
    """
    map = space.vm_map
    entry = vm_map_first_entry(map, addr)
    while entry is not None:
        _, first = vm_map_lookup_entry(map, vma_start(entry))
        assert first is not None
        entry = first
        fits = not flags & QUERY_FILE_BACKED or _has_file(entry)
        if fits and not flags & _RIGHTS & ~_rights(entry):
            if flags & QUERY_COVERING_OR_NEXT or entry.ba.start <= addr:
                return entry
        if not flags & QUERY_COVERING_OR_NEXT:
            break
        entry = vm_map_first_entry(map, vma_end(entry, U64))
    raise err(ENOENT)


def _rights(entry: VmMapEntry) -> int:
    prot = requested_protection(entry)
    return (
        (QUERY_READABLE if prot & VM_PROT_READ else 0)
        | (QUERY_WRITABLE if prot & VM_PROT_WRITE else 0)
        | (QUERY_EXECUTABLE if prot & VM_PROT_EXECUTE else 0)
        | (QUERY_SHARED if is_shared(entry) else 0)
    )


def _has_file(entry: VmMapEntry) -> bool:
    # What is shared without a file has one to Linux, of tmpfs.
    return mapped_file(entry) is not None or is_shared(entry)


def _name(p: Proc, space: Vmspace, entry: VmMapEntry, end: int) -> bytes:
    """The name, and its NUL; nothing if it has none."""
    root = p.p_fs.fs_rdir if p.p_lwps else p.kernel.vfs.rootvnode
    name = mapped_name(space, entry, end, root)
    return name + b"\0" if name else b""


def _build_id(kernel: Kernel, vp: Vnode) -> bytes:
    """The build id of an ELF file; nothing for what is none, or has none. May block."""
    from dfvm.kern.kern_exec import ImageParams

    image = ImageParams(kernel, vp)
    head = image.read(0, _EHDR.size)
    if len(head) < _EHDR.size or head[:5] != b"\x7fELF\2":
        return b""
    _, _, _, _, _, phoff, _, _, _, _, phnum = _EHDR.unpack(head)
    for i in range(phnum):
        raw = image.read(phoff + i * _PHDR.size, _PHDR.size)
        if len(raw) < _PHDR.size:
            break
        kind, _, offset, _, _, size, _, _ = _PHDR.unpack(raw)
        if kind == _PT_NOTE and (found := _note(image.read(offset, min(size, 65536)))):
            return found
    return b""


def _note(notes: bytes) -> bytes:
    """The build id among some notes."""
    at = 0
    while at + _NHDR.size <= len(notes):
        name_size, size, kind = _NHDR.unpack_from(notes, at)
        name = at + _NHDR.size
        desc = name + (name_size + 3 & -4)
        if (
            kind == _NT_GNU_BUILD_ID
            and notes[name : name + name_size] == b"GNU\0"
            and 0 < size <= _BUILD_ID_MAX
            and desc + size <= len(notes)
        ):
            return notes[desc : desc + size]
        at = desc + (size + 3 & -4)
    return b""
