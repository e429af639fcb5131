"""Core files: the image of a process that dies of a signal whose default action that is.

Whether one is written, where, and how much of memory goes into it follows Linux:

    RLIMIT_CORE          most bytes written; under a page none at all. What is beyond is missing;
                         holes don't count
    core_pattern         the file's name, from the process's current directory unless it begins with
                         a slash, with % sequences; core_uses_pid adds the pid if it has no %p
    p_dumpable           a process that others may not look into leaves nothing
    p_coredump_filter    which kinds of mappings; what MADV_DONTDUMP was said of never

An older file of that name is unlinked first: nobody who has it open sees it change. The file is an
ordinary one of the machine's: it is written with the process's rights, through the page cache, and
others run meanwhile. SIGKILL ends it early.

Memory that was never touched is not touched now: it becomes a hole, and so does a page of zeros. A
reservation of a terabyte costs nothing.

    ELF header, PT_NOTE, PT_LOADs │ notes │ up to a page │ memory in order │ section header

The section header is there only for more mappings than e_phnum can count, and does it instead.

Source: Linux fs/coredump.c, fs/binfmt_elf.c (elf_core_dump); Documentation/admin-guide/sysctl/
kernel.rst for the pattern; DragonFly sys/kern/kern_sig.c (coredump, expand_name) for the names.
"""

from __future__ import annotations

from itertools import groupby
from os import fsencode
from struct import Struct
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from dfvm.kern.abi.linux.linux_core import (
    NT_AUXV,
    NT_FILE,
    NT_FPREGSET,
    NT_PRPSINFO,
    NT_PRSTATUS,
    NT_SIGINFO,
    PSARGS_MAX,
    file_note,
    in_syscall,
    note,
    prpsinfo,
    prstatus,
)
from dfvm.kern.kern_descrip import O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY
from dfvm.kern.kern_errno import EINVAL, EPERM, err
from dfvm.kern.kern_sig import SIGKILL, sigbit
from dfvm.kern.proc import P_COREDUMP, P_WEXIT, RLIMIT_CORE, RLIMIT_FSIZE
from dfvm.kern.vfs.namei import nameiat
from dfvm.kern.vfs.procfs_maps import (
    backing_file,
    page_at,
    read_user,
    requested_protection,
    shm_segment,
    vmas,
)
from dfvm.kern.vfs.vfs_vnops import vn_open
from dfvm.kern.vfs.vnode import vn_fullpath
from dfvm.kern.vfs.vnode_param import FWRITE, IN_MODIFY, VREG
from dfvm.kern.vma import entries, is_shared
from dfvm.machine.reg import RIP
from dfvm.vm.copyio import UIO_WRITE, Uio
from dfvm.vm.vm import VM_PROT_EXECUTE, VM_PROT_READ, VM_PROT_WRITE
from dfvm.vm.vm_map_entry import MAP_ENTRY_NOCOREDUMP
from dfvm.vm.vm_object import OBJT_SWAP, OBJT_VNODE, vm_object_pages
from dfvm.vm.vm_page import vm_page_unhold
from dfvm.vm.vm_param import PAGE_SHIFT, PAGE_SIZE, round_page

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dfvm.kern.kern_sig import Siginfo
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.vm.vm_map_entry import VmMapBacking, VmMapEntry
    from dfvm.vm.vmspace import Vmspace

# p_coredump_filter: which mappings are written.
CORE_ANON_PRIVATE: Final = 0x01
CORE_ANON_SHARED: Final = 0x02
CORE_FILE_PRIVATE: Final = 0x04  # also what was not written to
CORE_FILE_SHARED: Final = 0x08
CORE_ELF_HEADERS: Final = 0x10  # the first page of programs and libraries

CORENAME_MAX: Final = 127  # bytes of core_pattern
_PATH_MAX: Final = 4095

_MIN_LIMIT: Final = PAGE_SIZE
_CHUNK: Final = 1 << 16  # bytes written at a time
_ZEROS: Final = bytes(PAGE_SIZE)
_CORE_MODE: Final = 0o600

_EHDR: Final = Struct("<16s HHI QQQ I 6H")
_PHDR: Final = Struct("<II 6Q")
_SHDR: Final = Struct("<II 4Q II QQ")
_IDENT: Final = b"\x7fELF\2\1\1"
_ET_CORE: Final = 4
_EM_X86_64: Final = 62
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_PN_XNUM: Final = 0xFFFF
_PROT_PF: Final = ((VM_PROT_READ, 4), (VM_PROT_WRITE, 2), (VM_PROT_EXECUTE, 1))
_ELFMAG: Final = b"\x7fELF"


class _Segment(NamedTuple):
    """A mapping, and how many bytes of it are written."""

    start: int
    end: int
    prot: int
    size: int


class _Ends(Exception):
    """No more of the core can be written: the limit, SIGKILL, or the file system."""


# ---- the file ------------------------------------------------------------------------------------


class _CoreFile:
    """What is written, from the start to the end, with holes."""

    __slots__ = ("_fsize", "_limit", "_lp", "_pos", "_vp", "_written")

    def __init__(self, lp: Lwp, vp: Vnode) -> None:
        p = lp.lwp_proc
        self._lp = lp
        self._vp = vp
        self._pos = self._written = 0
        self._limit = p.p_rlimit(RLIMIT_CORE)
        self._fsize = p.p_rlimit(RLIMIT_FSIZE)

    def emit(self, data: bytes | bytearray, unit: int) -> None:
        """Write `data`, of whose pieces of `unit` bytes each is written whole or not at all. May
        block, and lets others run."""
        room = self._limit - self._written
        whole = len(data) <= room
        view = memoryview(data)
        if not whole:
            view = view[: room // unit * unit]
        p = self._lp.lwp_proc
        if p.p_sigqueue.pending & sigbit(SIGKILL):
            raise _Ends
        while view:
            uio = Uio(None, [view], UIO_WRITE)
            try:
                self._vp.write(uio, self._pos, 0, self._fsize)
            except OSError:
                raise _Ends from None
            n = len(view) - uio.uio_resid
            self._pos += n
            self._written += n
            view = view[n:]
        if not whole:
            raise _Ends
        self._lp.lwp_thread.td_sched.yield_()

    def skip(self, n: int) -> None:
        """Leave a hole of `n` bytes."""
        self._pos += n

    def finish(self) -> None:
        """Make the file as long as a hole at its end wants it."""
        if self._pos > self._vp.v_filesize:
            self._pos -= 1
            self.emit(b"\0", 1)


def _open(p: Proc, name: bytes) -> Vnode:
    """Make the file, open for writing.

    :raises OSError: what is in the way.
    """
    fs, cred = p.p_fs, p.p_ucred
    try:
        nd = nameiat(fs.fs_rdir, fs.fs_cdir, name, cred)
        nd.may_unlink()
        nd.ni_dvp.unlink(nd.ni_name, cred)
    except OSError:
        pass  # mostly there is none; anything else shows below
    flags = O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW
    vp, other = vn_open(fs.fs_rdir, fs.fs_cdir, name, flags, _CORE_MODE & ~fs.fs_cmask, cred)
    assert other is None and vp.v_type == VREG  # it is new
    if vp.v_mode & 0o677 != _CORE_MODE or vp.v_uid != cred.cr_fsuid:
        # Not what was asked for: others could read it, or it can't be written again.
        vp.close(FWRITE)
        raise err(EPERM)
    return vp


# ---- its name ------------------------------------------------------------------------------------


def set_core_pattern(data: bytes) -> bytes:
    """What a pattern that is written to /proc becomes: its first line, as far as it fits. (Linux's
    "|" for a program, and "@" for a socket, that take the core don't exist here.)

    :raises OSError: EINVAL for a pattern of these kinds.
    """
    pattern = data.replace(b"\0", b"\n").split(b"\n", 1)[0][:CORENAME_MAX]
    if pattern[:1] in (b"|", b"@"):
        raise err(EINVAL)
    return pattern


def _escaped(text: bytes) -> bytes:
    """A text that comes from outside, as a part of one component of a path."""
    if text in (b".", b".."):
        text = b"!" + text[1:]
    return text.replace(b"/", b"!") or b"!"


def _exe(p: Proc) -> bytes:
    """The path of what `p` runs."""
    if p.p_textvp is None:
        return fsencode(p.p_comm) + b" (path unknown)"
    return vn_fullpath(p.p_textvp, p.kernel.vfs.rootvnode)


def expand_name(lp: Lwp, sig: int) -> bytes:
    """The name of the core file of `lp`'s process, which dies of `sig`: core_pattern with its
    % sequences replaced. Others than these, and a % at the end, become nothing."""
    p = lp.lwp_proc
    kernel = p.kernel
    pattern = kernel.core_pattern
    cred = p.p_ucred
    pid = b"%d" % p.p_pid
    parts: list[bytes] = []
    at = 0
    while True:
        mark = pattern.find(b"%", at)
        if mark < 0:
            parts.append(pattern[at:])
            break
        parts.append(pattern[at:mark])
        letter = pattern[mark + 1 : mark + 2]
        at = mark + 2
        if letter == b"%":
            parts.append(b"%")
        elif letter in (b"p", b"P"):
            parts.append(pid)
        elif letter in (b"i", b"I"):
            parts.append(b"%d" % lp.lwp_tid)
        elif letter == b"u":
            parts.append(b"%d" % cred.cr_ruid)
        elif letter == b"g":
            parts.append(b"%d" % cred.cr_rgid)
        elif letter == b"d":
            parts.append(b"%d" % p.p_dumpable)
        elif letter == b"s":
            parts.append(b"%d" % sig)
        elif letter == b"t":
            parts.append(b"%d" % time())
        elif letter == b"h":
            parts.append(_escaped(kernel.hostname))
        elif letter == b"e":
            parts.append(_escaped(fsencode(p.p_comm)))
        elif letter == b"f":
            parts.append(_escaped(_exe(p).rpartition(b"/")[2]))
        elif letter == b"E":
            parts.append(_escaped(_exe(p)))
        elif letter == b"c":
            parts.append(b"%d" % p.p_rlimit(RLIMIT_CORE))
        elif letter == b"C":
            parts.append(b"0")
    name = b"".join(parts)
    if kernel.core_uses_pid and b"%p" not in pattern.replace(b"%%", b""):
        name += b"." + pid
    return name


# ---- what goes into it ---------------------------------------------------------------------------


def _backings(entry: VmMapEntry) -> Iterator[VmMapBacking]:
    ba: VmMapBacking | None = entry.ba
    while ba is not None:
        yield ba
        ba = ba.backing_ba


def _written_to(entry: VmMapEntry) -> bool:
    """Whether an entry of a private mapping has pages of its own."""
    for ba in _backings(entry):
        object = ba.object
        if object is None or object.type > OBJT_SWAP or not object.rb_memq:
            continue
        first = ba.offset >> PAGE_SHIFT
        if vm_object_pages(object, first, first + (ba.end - ba.start >> PAGE_SHIFT)):
            return True
    return False


def _alike(vma: list[VmMapEntry]) -> Iterator[list[VmMapEntry]]:
    """The parts of a mapping that are either written to or not, where it is a file's: most of a
    library is not. (On Linux they would be mappings by themselves.)"""
    if backing_file(vma[0]) is None:
        yield vma
        return
    for _, run in groupby(vma, _written_to):
        yield list(run)


def _dump_size(space: Vmspace, vma: Sequence[VmMapEntry], dump: int) -> int:
    """How many bytes of a mapping, from its start, the filter `dump` wants."""
    entry = vma[0]
    whole = vma[-1].ba.end - entry.ba.start
    if entry.eflags & MAP_ENTRY_NOCOREDUMP:
        return 0
    ba = backing_file(entry)
    vp: Vnode | None = None
    if ba is not None and ba.object is not None:
        vp = ba.object.handle  # type: ignore[assignment]  # kern's own Vnode
    if is_shared(entry):
        named = vp is not None and vp.getattr().va_nlink
        return whole if dump & (CORE_FILE_SHARED if named else CORE_ANON_SHARED) else 0
    if dump & CORE_ANON_PRIVATE and any(map(_written_to, vma)):
        return whole
    if ba is None or vp is None:
        return 0
    if dump & CORE_FILE_PRIVATE:
        return whole
    if dump & CORE_ELF_HEADERS and ba.offset == 0 and requested_protection(entry) & VM_PROT_READ:
        start = entry.ba.start
        if vp.v_mode & 0o111 or read_user(space, start, start + len(_ELFMAG)) == _ELFMAG:
            return PAGE_SIZE
    return 0


def _segments(space: Vmspace, dump: int) -> list[_Segment]:
    """What the program headers tell. May block, to look for ELF headers."""
    result = []
    for run in [run for vma in vmas(space) for run in _alike(vma)]:
        start, end, prot = run[0].ba.start, run[-1].ba.end, requested_protection(run[0])
        result.append(_Segment(start, end, prot, _dump_size(space, run, dump)))
    return result


def _files(space: Vmspace, root: Vnode) -> list[tuple[int, int, int, bytes]]:
    """For NT_FILE: every mapping of a file, or of what Linux has files for."""
    files = []
    for vma in vmas(space):
        entry, end = vma[0], vma[-1].ba.end
        ba = backing_file(entry)
        if ba is not None and ba.object is not None and ba.object.handle is not None:
            vp: Vnode = ba.object.handle  # type: ignore[assignment]
            files.append((entry.ba.start, end, ba.offset, vn_fullpath(vp, root)))
        elif is_shared(entry):
            shm = shm_segment(entry)
            name = b"/dev/zero (deleted)" if shm is None else shm.name()
            files.append((entry.ba.start, end, entry.ba.offset, name))
    return files


def _notes(lp: Lwp, info: Siginfo) -> list[bytes]:
    """All notes. May block, to read the process's memory."""
    p = lp.lwp_proc
    space = p.p_vmspace
    args_at, args_end = p.p_args
    args = read_user(space, args_at, min(args_end, args_at + PSARGS_MAX))
    root = p.p_fs.fs_rdir
    notes = []
    for each in [lp, *(other for other in p.p_lwps.values() if other is not lp)]:
        cause = info if each is lp else None
        rip = each.ctx.q[RIP]
        syscall = in_syscall(each, cause, read_user(space, rip - 2, rip) if rip >= 2 else b"")
        notes.append(note(NT_PRSTATUS, prstatus(each, info.si_signo, syscall)))
        if each is lp:
            notes += [
                note(NT_PRPSINFO, prpsinfo(p, args)),
                note(NT_SIGINFO, p.kernel.siginfo_pack(info)),
                note(NT_AUXV, p.p_auxv),
                note(NT_FILE, file_note(_files(space, root))),
            ]
        notes.append(note(NT_FPREGSET, each.ctx.fxsave()))
    return notes


def _addresses(entry: VmMapEntry, first: int, last: int) -> Sequence[int]:
    """Which pages of [first, last), a part of `entry`, there is anything to read in: those of
    memory that exist, all of a file."""
    found: set[int] = set()
    for ba in _backings(entry):
        object = ba.object
        if object is None:
            continue
        skew = ba.start - ba.offset  # from an offset in the object to an address
        if object.type == OBJT_VNODE and object.handle is not None:
            vp: Vnode = object.handle  # type: ignore[assignment]
            return range(first, max(first, min(last, round_page(vp.v_filesize) + skew)), PAGE_SIZE)
        start, end = first - skew >> PAGE_SHIFT, last - skew >> PAGE_SHIFT
        found.update(
            (m.pindex << PAGE_SHIFT) + skew for m in vm_object_pages(object, start, end)
        )  # fmt: skip
    return sorted(found)


def _emit_memory(core: _CoreFile, space: Vmspace, start: int, end: int) -> None:
    """Write [start, end): what can be read there, holes for the rest."""
    vm = space.vm_map.vm
    mem = vm.ram.mem
    at = start  # how far the file has got
    chunk = bytearray()  # what is to be written there

    def flush(upto: int) -> None:
        nonlocal at, chunk
        if chunk:
            core.emit(chunk, PAGE_SIZE)
            at += len(chunk)
            chunk = bytearray()
        core.skip(upto - at)
        at = upto

    for entry, first, last in entries(space.vm_map, start, end):
        for va in _addresses(entry, first, last):
            m = page_at(space, va, False)
            if m is None:
                continue
            page = bytes(mem[m.phys_addr : m.phys_addr + PAGE_SIZE])
            vm_page_unhold(vm, m)
            if page == _ZEROS:
                continue
            if va != at + len(chunk) or len(chunk) == _CHUNK:
                flush(va)
            chunk += page
    flush(end)


def _write(core: _CoreFile, lp: Lwp, info: Siginfo) -> None:
    """The whole file."""
    p = lp.lwp_proc
    space = p.p_vmspace
    segments = _segments(space, p.p_coredump_filter)
    notes = _notes(lp, info)
    phnum = len(segments) + 1
    many = phnum >= _PN_XNUM
    headers = _EHDR.size + phnum * _PHDR.size
    notes_size = sum(map(len, notes))
    data = round_page(headers + notes_size)
    shoff = data + sum(seg.size for seg in segments) if many else 0

    core.emit(_EHDR.pack(
        _IDENT, _ET_CORE, _EM_X86_64, 1, 0, _EHDR.size, shoff, 0, _EHDR.size, _PHDR.size,
        _PN_XNUM if many else phnum, _SHDR.size if many else 0, int(many), 0,
    ), _EHDR.size)  # fmt: skip
    table = [_PHDR.pack(_PT_NOTE, 0, headers, 0, 0, notes_size, 0, 4)]
    at = data
    for seg in segments:
        flags = sum(pf for prot, pf in _PROT_PF if seg.prot & prot)
        table.append(_PHDR.pack(
            _PT_LOAD, flags, at, seg.start, 0, seg.size, seg.end - seg.start, PAGE_SIZE
        ))  # fmt: skip
        at += seg.size
    core.emit(b"".join(table), _PHDR.size)
    for each in notes:
        core.emit(each, len(each))
    core.skip(data - headers - notes_size)
    for seg in segments:
        if seg.size:
            _emit_memory(core, space, seg.start, seg.start + seg.size)
    if many:
        # The first section: how many there are of everything.
        core.emit(_SHDR.pack(0, 0, 0, 0, 0, 1, 0, phnum, 0, 0), _SHDR.size)
    core.finish()


def coredump(lp: Lwp, info: Siginfo) -> bool:
    """The process of `lp`, the current thread, dies of `info`: leave a core if it may and wants to.
    Whether there is one, be it cut short. From now on only SIGKILL reaches it. May block."""
    p = lp.lwp_proc
    if not p.p_dumpable or p.p_rlimit(RLIMIT_CORE) < _MIN_LIMIT:
        return False
    p.p_flags |= P_COREDUMP | P_WEXIT
    try:
        vp = _open(p, expand_name(lp, info.si_signo)[:_PATH_MAX])
    except OSError:
        return False
    try:
        _write(_CoreFile(lp, vp), lp, info)
    except _Ends:
        pass
    finally:
        vp.event(IN_MODIFY)
        vp.close(FWRITE)
    return True
