"""The files of /proc/PID that are about memory: maps, smaps, mem, pagemap, clear_refs.

They read the map as it stands, without its lock: nothing here blocks between looking at one entry
and the next, except mem, which faults pages in and holds the space meanwhile.

Most are about the address space that the process had when they were opened: what it has gets lost
with an exec or its end, and they are empty then.

Source: Linux fs/proc/task_mmu.c, fs/proc/base.c (mem_rw); Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import os
from struct import pack
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_SYS_ADMIN
from dfvm.kern.kern_commit import is_committed
from dfvm.kern.kern_errno import EINVAL, EIO, ENODEV, ERANGE, ESRCH, err
from dfvm.kern.proc import SZOMB
from dfvm.kern.vfs.nullfs import NullMount
from dfvm.kern.vfs.procfs import ProcFile, ProcNode
from dfvm.kern.vfs.vnode import vn_fullpath
from dfvm.kern.vfs.vnode_param import OFF_MAX, VREG
from dfvm.kern.vma import (
    MARK_NOREAD,
    MARK_NORESERVE,
    MARK_ONFAULT,
    MARK_SEALED,
    MARK_WIPE,
    entries,
    is_locked,
    is_shared,
    same_vma,
)
from dfvm.machine.pte import PG_A, PG_FRAME, PG_M
from dfvm.vm.copyio import uiomove, uiomove_pa, uioread
from dfvm.vm.pmap import pmap_clear_young, pmap_mapped, pmap_pte, pmap_ptes
from dfvm.vm.vm import (
    VM_INHERIT_NONE,
    VM_PROT_EXECUTE,
    VM_PROT_OVERRIDE_WRITE,
    VM_PROT_READ,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_fault import VM_FAULT_DIRTY, VM_FAULT_NORMAL, vm_fault_page
from dfvm.vm.vm_map import vm_map_lookup_entry
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_BEHAV_MASK,
    MAP_ENTRY_BEHAV_RANDOM,
    MAP_ENTRY_BEHAV_SEQUENTIAL,
    MAP_ENTRY_GUARD,
    MAP_ENTRY_NOCOREDUMP,
    MAP_ENTRY_STACK,
)
from dfvm.vm.vm_object import OBJT_VNODE
from dfvm.vm.vm_page import PG_REFERENCED, PHYS_TO_VM_PAGE, vm_page_unhold
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, VM_MAX_USER_ADDRESS
from dfvm.vm.vmspace import vmspace_drop, vmspace_hold

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeGuard

    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.sysv_shm import ShmSegment
    from dfvm.kern.vfs.procfs import PseudoMount, Show
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred
    from dfvm.vm.copyio import Uio
    from dfvm.vm.vm_map_entry import VmMapBacking, VmMapEntry
    from dfvm.vm.vm_page import VmPage
    from dfvm.vm.vmspace import Vmspace

_NAME_COLUMN: Final = 73  # where the name begins in a line of maps
_CHUNK: Final = 65536
SHMEM_DEV: Final = 1  # where shared memory without a file is

# An entry of pagemap.
PM_PRESENT: Final = 1 << 63
PM_SWAP: Final = 1 << 62  # not memory, but something in its place
PM_GUARD_REGION: Final = 1 << 58  # a guard, which Linux has as an entry of that kind
PM_FILE: Final = 1 << 61  # page of a file, or shared anonymous memory
PM_MMAP_EXCLUSIVE: Final = 1 << 56  # nobody else maps it

# What can be written to clear_refs.
CLEAR_REFS_ALL: Final = 1
CLEAR_REFS_ANON: Final = 2  # where no file is mapped
CLEAR_REFS_MAPPED: Final = 3  # where one is
CLEAR_REFS_SOFT_DIRTY: Final = 4
CLEAR_REFS_MM_HIWATER_RSS: Final = 5
_CLEAR_REFS_MAX: Final = 12  # characters that one write takes
_INT_MAX: Final = (1 << 31) - 1


def space_of(p: Proc) -> Vmspace | None:
    """The process's address space; None for what has none any more."""
    if p.p_stat == SZOMB or not p.p_lwps:
        return None
    return p.p_vmspace


def backing_file(entry: VmMapEntry) -> VmMapBacking | None:
    """The element of the chain that shows a file; a private mapping's own pages lie before it."""
    ba: VmMapBacking | None = entry.ba
    while ba is not None:
        object = ba.object
        if object is not None and object.type == OBJT_VNODE:
            return ba
        ba = ba.backing_ba
    return None


def shm_segment(entry: VmMapEntry) -> ShmSegment | None:
    """The System V segment that an entry shows."""
    object = entry.ba.object
    return None if object is None else object.shm  # type: ignore[return-value]  # kern's own


def mapped_file(entry: VmMapEntry) -> Vnode | None:
    """The file that an entry maps, if it does."""
    ba = backing_file(entry)
    obj = None if ba is None else ba.object
    return None if obj is None else obj.handle  # type: ignore[return-value]  # kern's own Vnode


def mapped_where(entry: VmMapEntry) -> tuple[int, int, int]:
    """Device and inode number of what an entry maps, and where in it that begins, in bytes; nothing
    for what is no file's."""
    segment = shm_segment(entry)
    if segment is not None:
        return SHMEM_DEV, segment.perm.id, entry.ba.offset
    ba, vp = backing_file(entry), mapped_file(entry)
    if ba is None or vp is None:
        return 0, 0, 0
    va = vp.getattr()
    return va.va_fsid, va.va_fileid, ba.offset


def mapped_name(space: Vmspace, entry: VmMapEntry, end: int, root: Vnode) -> bytes:
    """What the VMA that begins with `entry` and ends at `end` is called; nothing for most of what
    is no file's."""
    vp = mapped_file(entry)
    if vp is not None:
        at = root.v_mount
        if at.mnt_fs is vp.v_mount and isinstance(at, NullMount):
            vp = at.node(vp)  # as whose root is in a view sees it
        return vn_fullpath(vp, root)
    start = entry.ba.start
    if is_shared(entry):
        segment = shm_segment(entry)
        return b"/dev/zero (deleted)" if segment is None else segment.name()
    if entry.eflags & MAP_ENTRY_STACK and start < space.vm_minsaddr <= end:
        return b"[stack]"
    if start < space.vm_daddr + space.vm_dsize and end > space.vm_daddr:
        return b"[heap]"
    return b""


def _line(space: Vmspace, vma: list[VmMapEntry], root: Vnode) -> bytes:
    entry, end = vma[0], vma[-1].ba.end
    prot = requested_protection(entry)
    perms = b"".join(
        letter if prot & bit else b"-"
        for letter, bit in ((b"r", VM_PROT_READ), (b"w", VM_PROT_WRITE), (b"x", VM_PROT_EXECUTE))
    ) + (b"s" if is_shared(entry) else b"p")
    dev, ino, offset = mapped_where(entry)
    head = b"%08x-%08x %s %08x %02x:%02x %d " % (
        entry.ba.start, end, perms, offset, os.major(dev), os.minor(dev), ino,
    )  # fmt: skip
    name = mapped_name(space, entry, end, root).replace(b"\n", b"\\012")
    return head.ljust(_NAME_COLUMN) + name + b"\n" if name else head + b"\n"


def requested_protection(entry: VmMapEntry) -> int:
    """What was asked for, which may be less than the MMU grants."""
    return entry.protection & ~VM_PROT_READ if entry.eflags & MARK_NOREAD else entry.protection


def vmas(space: Vmspace) -> list[list[VmMapEntry]]:
    """The entries, those together that are one VMA to Linux."""
    result: list[list[VmMapEntry]] = []
    for entry in space.vm_map:
        if result and same_vma(result[-1][-1], entry):
            result[-1].append(entry)
        else:
            result.append([entry])
    return result


def maps(space: Vmspace, root: Vnode) -> bytes:
    """/proc/PID/maps."""
    return b"".join([_line(space, vma, root) for vma in vmas(space)])


class Kinds:
    """How many bytes of a space are mapped as what."""

    __slots__ = ("code", "data", "locked", "stack")

    def __init__(self) -> None:
        self.code = 0  # executable and not writable
        self.data = 0  # private, writable, not a stack
        self.stack = 0
        self.locked = 0  # by mlock


def vm_kinds(space: Vmspace) -> Kinds:
    """Sort the entries of a space."""
    kinds = Kinds()
    for entry in space.vm_map:
        size = entry.ba.end - entry.ba.start
        if is_locked(entry):
            kinds.locked += size
        if entry.eflags & MAP_ENTRY_STACK:
            kinds.stack += size
        elif entry.protection & VM_PROT_WRITE:
            if not is_shared(entry):
                kinds.data += size
        elif entry.protection & VM_PROT_EXECUTE:
            kinds.code += size
    return kinds


def _page(space: Vmspace, pte: int) -> VmPage | None:
    return PHYS_TO_VM_PAGE(space.vm_map.vm, pte & PG_FRAME)


def rss_split(space: Vmspace) -> tuple[int, int, int]:
    """Resident pages that are anonymous, of files, and of shared anonymous memory. Only entries
    that may have others than anonymous ones are looked at closely."""
    files = shmem = 0
    for entry in space.vm_map:
        if backing_file(entry) is not None:
            for _, pte in pmap_ptes(space.vm_pmap, entry.ba.start, entry.ba.end):
                m = _page(space, pte)
                if m is not None and m.object is not None and m.object.type == OBJT_VNODE:
                    files += 1
        elif is_shared(entry):
            shmem += sum(1 for _ in pmap_ptes(space.vm_pmap, entry.ba.start, entry.ba.end))
    total = space.vm_pmap.pm_stats.resident_count
    return total - files - shmem, files, shmem


class Usage:
    """What smaps counts, in bytes (pss: in 4096ths of them)."""

    __slots__ = ("anonymous", "locked", "pc", "pd", "pss", "pss_anon", "pss_dirty", "pss_file",
                 "pss_shmem", "referenced", "rss", "sc", "sd", "size")  # fmt: skip

    def __init__(self) -> None:
        self.size = self.rss = self.pss = self.pss_dirty = 0
        self.pss_anon = self.pss_file = self.pss_shmem = 0
        self.sc = self.sd = self.pc = self.pd = 0  # shared or private, clean or dirty
        self.referenced = self.anonymous = self.locked = 0

    def add(self, space: Vmspace, entry: VmMapEntry) -> None:
        """Count an entry."""
        start, end = entry.ba.start, entry.ba.end
        shared, locked = is_shared(entry), is_locked(entry)
        self.size += end - start
        for _, pte in pmap_ptes(space.vm_pmap, start, end):
            m = _page(space, pte)
            if m is None:
                continue
            self.rss += PAGE_SIZE
            sharers = max(sum(1 for _ in pmap_mapped(m)), 1)
            share = (PAGE_SIZE << 12) // sharers
            self.pss += share
            dirty = bool(pte & PG_M or m.dirty)
            if dirty:
                self.pss_dirty += share
            if sharers > 1:
                if dirty:
                    self.sd += PAGE_SIZE
                else:
                    self.sc += PAGE_SIZE
            elif dirty:
                self.pd += PAGE_SIZE
            else:
                self.pc += PAGE_SIZE
            if pte & PG_A or m.flags & PG_REFERENCED:
                self.referenced += PAGE_SIZE
            if m.object is not None and m.object.type == OBJT_VNODE:
                vp = m.object.handle
                if vp is not None and vp.v_mount.mnt_fstype == "tmpfs":  # type: ignore[attr-defined]
                    self.pss_shmem += share
                else:
                    self.pss_file += share
            elif shared:
                self.pss_shmem += share
            else:
                self.pss_anon += share
                self.anonymous += PAGE_SIZE
            if locked:
                self.locked += share

    def _kinds(self) -> tuple[tuple[str, int], ...]:
        return (
            ("Pss_Anon", self.pss_anon >> 12),
            ("Pss_File", self.pss_file >> 12),
            ("Pss_Shmem", self.pss_shmem >> 12),
        )

    def lines(self, rollup: bool) -> str:
        """The lines of smaps, from Rss on."""
        numbers = (
            ("Rss", self.rss),
            ("Pss", self.pss >> 12),
            ("Pss_Dirty", self.pss_dirty >> 12),
            *(self._kinds() if rollup else ()),
            ("Shared_Clean", self.sc),
            ("Shared_Dirty", self.sd),
            ("Private_Clean", self.pc),
            ("Private_Dirty", self.pd),
            ("Referenced", self.referenced),
            ("Anonymous", self.anonymous),
            ("KSM", 0),
            ("LazyFree", 0),
            ("AnonHugePages", 0),
            ("ShmemPmdMapped", 0),
            ("FilePmdMapped", 0),
            ("Shared_Hugetlb", 0),
            ("Private_Hugetlb", 0),
            ("Swap", 0),
            ("SwapPss", 0),
            ("Locked", self.locked >> 12),
        )
        return "".join(_kb(name, n) for name, n in numbers)


def _kb(name: str, size: int) -> str:
    return f"{name + ':':<16}{size >> 10:8} kB\n"


def _vmflags(entry: VmMapEntry) -> str:
    """The two-letter flags of an entry."""
    prot, maximum = requested_protection(entry), entry.max_protection
    shared = is_shared(entry)
    behaviour = entry.eflags & MAP_ENTRY_BEHAV_MASK
    flags = (
        ("rd", prot & VM_PROT_READ),
        ("wr", prot & VM_PROT_WRITE),
        ("ex", prot & VM_PROT_EXECUTE),
        ("sh", shared and maximum & VM_PROT_WRITE),
        ("mr", maximum & VM_PROT_READ),
        ("mw", maximum & VM_PROT_WRITE),
        ("me", maximum & VM_PROT_EXECUTE),
        ("ms", shared),
        ("gd", entry.eflags & MAP_ENTRY_STACK),
        ("lo", is_locked(entry)),
        ("sr", behaviour == MAP_ENTRY_BEHAV_SEQUENTIAL),
        ("rr", behaviour == MAP_ENTRY_BEHAV_RANDOM),
        ("dc", entry.inheritance == VM_INHERIT_NONE),
        ("lf", is_locked(entry) and entry.eflags & MARK_ONFAULT),
        ("ac", is_committed(entry)),
        ("nr", entry.eflags & MARK_NORESERVE),
        ("wf", entry.eflags & MARK_WIPE != 0),
        ("dd", entry.eflags & MAP_ENTRY_NOCOREDUMP),
        ("sl", entry.eflags & MARK_SEALED),
    )
    return "".join(f"{name} " for name, on in flags if on)


def smaps(space: Vmspace, root: Vnode) -> bytes:
    """/proc/PID/smaps."""
    parts = []
    for vma in vmas(space):
        usage = Usage()
        for entry in vma:
            usage.add(space, entry)
        text = (
            _kb("Size", usage.size)
            + _kb("KernelPageSize", PAGE_SIZE)
            + _kb("MMUPageSize", PAGE_SIZE)
            + usage.lines(False)
            + f"{'THPeligible:':<16}{0:8}\n"
            + f"VmFlags: {_vmflags(vma[0])}\n"
        )
        parts += [_line(space, vma, root), text.encode()]
    return b"".join(parts)


def smaps_rollup(space: Vmspace) -> bytes:
    """/proc/PID/smaps_rollup: the sum."""
    entries = list(space.vm_map)
    if not entries:
        return b""
    usage = Usage()
    for entry in entries:
        usage.add(space, entry)
    head = b"%08x-%08x ---p 00000000 00:00 0 " % (entries[0].ba.start, entries[-1].ba.end)
    return head.ljust(_NAME_COLUMN) + b"[rollup]\n" + usage.lines(True).encode()


class SpaceFile(ProcFile):
    """A text about the space that the process has when it is opened."""

    __slots__ = ("p_show_space",)

    p_show_space: Callable[[Proc, Vmspace | None], Show]
    # Given the process and its space at opening: what makes the text

    def __init__(
        self,
        mount: PseudoMount,
        fileid: int,
        p: Proc,
        mode: int,
        show: Callable[[Proc, Vmspace | None], Show],
    ) -> None:
        super().__init__(mount, fileid, None, None, mode, p, True)
        self.p_show_space = show

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        super().vop_open(fflag, cred)
        assert self.p_proc is not None
        self.p_show = self.p_show_space(self.p_proc, space_of(self.p_proc))
        return None

    def check_proc(self) -> None:
        """That is up to what makes the text."""


class MapsFile(SpaceFile):
    """/proc/PID/maps, which can be asked for single mappings, too."""

    __slots__ = ("p_space",)

    p_space: Vmspace | None

    def __init__(
        self,
        mount: PseudoMount,
        fileid: int,
        p: Proc,
        mode: int,
        show: Callable[[Proc, Vmspace | None], Show],
    ) -> None:
        super().__init__(mount, fileid, p, mode, show)
        self.p_space = None

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        super().vop_open(fflag, cred)
        assert self.p_proc is not None
        self.p_space = space_of(self.p_proc)
        return None

    def ioctl(self, cmd: int, arg: int, lwp: Lwp) -> int:
        from dfvm.kern.vfs.procfs_query import PROCMAP_QUERY, procmap_query  # few programs ask

        if cmd != PROCMAP_QUERY:
            return super().ioctl(cmd, arg, lwp)
        assert self.p_proc is not None
        space = self.p_space
        return procmap_query(lwp, self.p_proc, space if _in_use(space) else None, arg)


def of_maps(text: Callable[[Vmspace, Vnode], bytes]) -> Callable[[Proc, Vmspace | None], Show]:
    """For maps and smaps: `text`, given the space and the process's root. The process must not have
    been reaped; if it has lost the space, there is nothing to say."""

    def bind(p: Proc, space: Vmspace | None) -> Show:
        def show() -> bytes:
            if p.kernel.procs.get(p.p_pid) is not p:
                raise err(ESRCH)
            root = p.p_fs.fs_rdir if p.p_lwps else p.kernel.vfs.rootvnode
            return text(space, root) if _in_use(space) else b""

        return show

    return bind


def of_rollup(p: Proc, space: Vmspace | None) -> Show:
    """For smaps_rollup."""
    if space is None:
        raise err(ESRCH)

    def show() -> bytes:
        if not _in_use(space):
            raise err(ESRCH)
        return smaps_rollup(space)

    return show


def of_environ(p: Proc, space: Vmspace | None) -> Show:
    """For environ: what is there now where exec has put the environment."""
    if space is None:
        raise err(ESRCH)
    where = p.p_env
    return lambda: read_user(space, *where) if _in_use(space) else b""


def of_auxv(p: Proc, space: Vmspace | None) -> Show:
    """For auxv, which outlives the space."""
    if space is None:
        raise err(ESRCH)
    auxv = p.p_auxv
    return lambda: auxv


def _in_use(space: Vmspace | None) -> TypeGuard[Vmspace]:
    """Whether somebody uses the space, and it is not just looked at."""
    return space is not None and space.vm_refcnt > 0


class _MemoryFile(ProcNode):
    """Binary files about the memory that a process has when they are opened."""

    __slots__ = ("p_space",)

    p_space: Vmspace | None  # which may not be in use any more

    def __init__(self, mount: PseudoMount, fileid: int, p: Proc, mode: int) -> None:
        super().__init__(mount, VREG, mode, fileid, p)
        self.p_space = None

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        self.may_look(cred)
        assert self.p_proc is not None
        self.p_space = space_of(self.p_proc)
        if self.p_space is None:
            raise err(ESRCH)
        return None

    def setsize(self, length: int) -> None:
        if length:
            raise err(EINVAL)

    def splices(self) -> int:
        return 0

    def mmap(self) -> int:
        raise err(ENODEV)

    def fsync(self) -> None:
        raise err(EINVAL)


class MemFile(_MemoryFile):
    """/proc/PID/mem: the memory itself; the offset is the address. As a debugger needs it: what the
    process may not read can be read, and what is private to it can be written whatever its rights,
    on a copy where others see the page, too."""

    __slots__ = ()

    def __init__(self, mount: PseudoMount, fileid: int, p: Proc) -> None:
        super().__init__(mount, fileid, p, 0o600)

    def read(self, uio: Uio, off: int, ioflag: int) -> None:
        self._move(uio, off, False)

    def write(self, uio: Uio, off: int, ioflag: int, limit: int = OFF_MAX) -> int:
        return self._move(uio, off, True)

    def _move(self, uio: Uio, off: int, write: bool) -> int:
        space = self.p_space
        if not _in_use(space):
            return off
        vm = space.vm_map.vm
        resid = uio.uio_resid
        end = off + resid
        vmspace_hold(space)
        try:
            while uio.uio_resid:
                va = end - uio.uio_resid
                m = page_at(space, va, write)
                if m is None:
                    if uio.uio_resid == resid:
                        raise err(EIO)
                    break
                try:
                    n = min(PAGE_SIZE - (va & PAGE_MASK), uio.uio_resid)
                    uiomove_pa(vm, m.phys_addr + (va & PAGE_MASK), n, uio)
                finally:
                    if write:  # at the end: it may have run what was there while this blocked
                        vm.mmu.code_written(m.phys_addr >> PAGE_SHIFT)
                    vm_page_unhold(vm, m)
        finally:
            vmspace_drop(space)
        return end - uio.uio_resid


def page_at(space: Vmspace, va: int, write: bool) -> VmPage | None:
    """The page that a debugger reaches at `va`, held; None if there is none. May block."""
    if not 0 <= va < VM_MAX_USER_ADDRESS:
        return None
    map = space.vm_map
    if write:
        found, entry = vm_map_lookup_entry(map, va)
        if not found or entry is None:
            return None
        if not entry.protection & VM_PROT_WRITE and is_shared(entry):
            return None  # others would see it
    prot = VM_PROT_WRITE if write else VM_PROT_READ
    flags = VM_FAULT_DIRTY if write else VM_FAULT_NORMAL
    return vm_fault_page(map, va, prot | VM_PROT_OVERRIDE_WRITE, flags)[0]


def read_user(space: Vmspace, va: int, end: int) -> bytes:
    """What is in [va, end), up to the first page that the process itself can't read. May block."""
    vm = space.vm_map.vm
    parts: list[bytes] = []
    vmspace_hold(space)
    try:
        while va < end:
            m = vm_fault_page(space.vm_map, va, VM_PROT_READ, VM_FAULT_NORMAL)[0]
            if m is None:
                break
            n = min(PAGE_SIZE - (va & PAGE_MASK), end - va)
            pa = m.phys_addr + (va & PAGE_MASK)
            parts.append(bytes(vm.ram.mem[pa : pa + n]))
            vm_page_unhold(vm, m)
            va += n
    finally:
        vmspace_drop(space)
    return b"".join(parts)


class PagemapFile(_MemoryFile):
    """/proc/PID/pagemap: 64 bits for each page of the address space."""

    __slots__ = ("p_frames",)

    p_frames: bool  # whoever opened it may know frame numbers

    def __init__(self, mount: PseudoMount, fileid: int, p: Proc) -> None:
        super().__init__(mount, fileid, p, 0o400)
        self.p_frames = False

    def vop_open(self, fflag: int, cred: Cred) -> object | None:
        super().vop_open(fflag, cred)
        self.p_frames = bool(cred.cr_cap_e & CAP_SYS_ADMIN)
        return None

    def read(self, uio: Uio, off: int, ioflag: int) -> None:
        if off & 7 or uio.uio_resid & 7:
            raise err(EINVAL)
        space = self.p_space
        while uio.uio_resid and _in_use(space):
            va = off << (PAGE_SHIFT - 3)
            if va >= VM_MAX_USER_ADDRESS:
                return
            n = min(uio.uio_resid, _CHUNK) >> 3
            end = min(va + (n << PAGE_SHIFT), VM_MAX_USER_ADDRESS)
            words = [0] * ((end - va) >> PAGE_SHIFT)
            for at, _ in pmap_ptes(space.vm_pmap, va, end):
                words[(at - va) >> PAGE_SHIFT] = self._word(space, at)
            for entry, first, last in entries(space.vm_map, va, end):
                if entry.eflags & MAP_ENTRY_GUARD:
                    n = last - first >> PAGE_SHIFT
                    at = first - va >> PAGE_SHIFT
                    words[at : at + n] = [PM_SWAP | PM_GUARD_REGION] * n
            uiomove(pack(f"<{len(words)}Q", *words), uio)
            off += len(words) << 3

    def write(self, uio: Uio, off: int, ioflag: int, limit: int = OFF_MAX) -> int:
        raise err(EIO)

    def _word(self, space: Vmspace, va: int) -> int:
        pte = pmap_pte(space.vm_pmap, va)
        word = PM_PRESENT
        if self.p_frames:
            word |= (pte & PG_FRAME) >> PAGE_SHIFT
        m = _page(space, pte)
        if m is None or m.object is None:
            return word
        if m.object.type == OBJT_VNODE:
            word |= PM_FILE
        else:
            found, entry = vm_map_lookup_entry(space.vm_map, va)
            if found and entry is not None and is_shared(entry):
                word |= PM_FILE
        if sum(1 for _ in pmap_mapped(m)) <= 1:
            word |= PM_MMAP_EXCLUSIVE
        return word


class ClearRefsFile(ProcFile):
    """/proc/PID/clear_refs: the process's pages have not been used, or its resident set has never
    been larger. Soft-dirty bits can be cleared, as on a Linux that is built without them: there
    are none, and pagemap never shows one."""

    __slots__ = ()

    def __init__(self, mount: PseudoMount, fileid: int, p: Proc) -> None:
        super().__init__(mount, fileid, None, None, 0o200, p)

    def write(self, uio: Uio, off: int, ioflag: int, limit: int = OFF_MAX) -> int:
        data = uioread(uio, _CLEAR_REFS_MAX)
        text = data.partition(b"\0")[0].strip().removeprefix(b"+")
        what = int(text) if text.isdigit() else 0
        if what > _INT_MAX:
            raise err(ERANGE)
        if not CLEAR_REFS_ALL <= what <= CLEAR_REFS_MM_HIWATER_RSS:
            raise err(EINVAL)
        p = self.alive()
        space = space_of(p)
        if space is None:
            pass
        elif what == CLEAR_REFS_MM_HIWATER_RSS:
            p.p_ru.ru_maxrss = 0
        elif what != CLEAR_REFS_SOFT_DIRTY:
            for entry in space.vm_map:
                if what == CLEAR_REFS_ALL or (what == CLEAR_REFS_MAPPED) == _maps_file(entry):
                    pmap_clear_young(space.vm_pmap, entry.ba.start, entry.ba.end)
        return off + len(data)


def _maps_file(entry: VmMapEntry) -> bool:
    return backing_file(entry) is not None or is_shared(entry)
