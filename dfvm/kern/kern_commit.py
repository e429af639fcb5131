"""How much may be mapped: RLIMIT_AS, RLIMIT_DATA, and what all memory there is can be promised for.

A promise is a page that a program may write to without being told that there is none: private
memory that is or was writable, shared memory that is no file's, the pages of files in memory.
vm.overcommit_memory says how much of that there may be:

    0   as much as one likes, but not more at once than there is memory
    1   as much as one likes
    2   in all no more than a part of memory (vm.overcommit_ratio, or vm.overcommit_kbytes), a bit
        of which is root's (vm.admin_reserve_kbytes) or not for one process alone
        (vm.user_reserve_kbytes)

What is promised is not kept account of but counted from the maps when it is asked for: by
/proc/meminfo, and in mode 2 by whatever wants more.

Source: behaviour of Linux mm/util.c (__vm_enough_memory, vm_commit_limit), mm/mmap.c
(may_expand_vm); Documentation/mm/overcommit-accounting.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_SYS_ADMIN
from dfvm.kern.kern_errno import ENOMEM, err
from dfvm.kern.vma import MARK_ACCOUNT, MARK_NORESERVE, is_anonymous, is_shared
from dfvm.vm.vm import VM_PROT_WRITE
from dfvm.vm.vm_map import MAP_ENTRY_STACK
from dfvm.vm.vm_map_backing import vm_map_entry_written
from dfvm.vm.vm_object import OBJT_SWAP, OBJT_VNODE
from dfvm.vm.vm_param import PAGE_SHIFT
from dfvm.vm.vm_proc import RLIM_INFINITY, RLIMIT_DATA, RLIMIT_VMEM

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Proc
    from dfvm.vm.vm_map import VmMap, VmMapEntry
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vmspace import Vmspace

OVERCOMMIT_GUESS: Final = 0
OVERCOMMIT_ALWAYS: Final = 1
OVERCOMMIT_NEVER: Final = 2

_ADMIN_RESERVE: Final = 8 << 10  # KiB: at most that, or 3 % of memory
_USER_RESERVE: Final = 128 << 10  # KiB: likewise
_KIB_SHIFT: Final = PAGE_SHIFT - 10


class Overcommit:
    """The settings, named by the leaves of their sysctls."""

    __slots__ = ("admin_reserve_kbytes", "overcommit_kbytes", "overcommit_memory",
                 "overcommit_ratio", "user_reserve_kbytes")  # fmt: skip

    overcommit_memory: int  # OVERCOMMIT_*
    overcommit_ratio: int  # per cent of memory; 0 when overcommit_kbytes says it
    overcommit_kbytes: int  # 0 when overcommit_ratio says it
    admin_reserve_kbytes: int  # what is left to root
    user_reserve_kbytes: int  # what one process leaves to the others

    def __init__(self, pages: int) -> None:
        """`pages`: of all memory."""
        self.overcommit_memory = OVERCOMMIT_GUESS
        self.overcommit_ratio = 50
        self.overcommit_kbytes = 0
        part = (pages << _KIB_SHIFT) // 32
        self.admin_reserve_kbytes = min(part, _ADMIN_RESERVE)
        self.user_reserve_kbytes = min(part, _USER_RESERVE)


# ---- what is promised ----------------------------------------------------------------------------


def is_committed(entry: VmMapEntry) -> bool:
    """Whether it is private memory that is promised: writable, or it was and could have pages."""
    if entry.eflags & MARK_NORESERVE or is_shared(entry):
        return False
    return bool(entry.protection & VM_PROT_WRITE or entry.eflags & MARK_ACCOUNT)


def stays_committed(entry: VmMapEntry) -> bool:
    """Whether that does not change when it is no longer writable."""
    return is_committed(entry) and (not is_anonymous(entry) or vm_map_entry_written(entry))


def committed_by(map: VmMap) -> int:
    """Pages of private memory that are promised to whoever has the map: what a fork promises
    again."""
    return sum(e.ba.end - e.ba.start for e in map if is_committed(e)) >> PAGE_SHIFT


def committed(kernel: Kernel) -> int:
    """Pages that are promised: Committed_AS. Linear in everything that is mapped."""
    from dfvm.kern.sysv_ipc import ipc_ns

    pages = 0
    spaces: set[Vmspace] = {p.p_vmspace for p in kernel.procs.values() if p.p_lwps}
    shared: set[VmObject] = set()
    for space in spaces:
        pages += committed_by(space.vm_map)
        for entry in space.vm_map:
            obj = entry.ba.object
            if (
                obj is not None
                and obj.type <= OBJT_SWAP
                and obj.shm is None
                and is_shared(entry)
                and not entry.eflags & MARK_NORESERVE
            ):
                shared.add(obj)
    pages += sum(obj.size for obj in shared)
    pages += sum(shp.object.size for shp in ipc_ns(kernel).shm_ids.ipcs.values() if shp.shm_account)
    for bucket in kernel.vm.object_hash:
        for obj in bucket:
            vp = obj.handle
            if (
                obj.type == OBJT_VNODE and vp is not None and vp.v_mount.mnt_fstype == "tmpfs"  # type: ignore[attr-defined]  # kern's Vnode
            ):
                pages += obj.resident_page_count
    return pages


def commit_limit(kernel: Kernel) -> int:
    """Pages that may be promised in mode 2: CommitLimit. (There is no swap.)"""
    settings = kernel.overcommit
    if settings.overcommit_kbytes:
        return settings.overcommit_kbytes >> _KIB_SHIFT
    return kernel.vm.vmstats.v_page_count * settings.overcommit_ratio // 100


def check_memory(p: Proc, size: int) -> None:
    """Check that `size` bytes more may be promised to `p`.

    :raises OSError: ENOMEM
    """
    kernel = p.kernel
    settings = kernel.overcommit
    if settings.overcommit_memory == OVERCOMMIT_ALWAYS:
        return
    pages = size >> PAGE_SHIFT
    if settings.overcommit_memory == OVERCOMMIT_GUESS:
        if pages > kernel.vm.vmstats.v_page_count:
            raise err(ENOMEM)
        return
    allowed = commit_limit(kernel)
    if not p.p_ucred.cr_cap_e & CAP_SYS_ADMIN:
        allowed -= settings.admin_reserve_kbytes >> _KIB_SHIFT
    own = p.p_vmspace.vm_map.size >> PAGE_SHIFT
    allowed -= min(own // 32, settings.user_reserve_kbytes >> _KIB_SHIFT)
    if committed(kernel) + pages >= allowed:
        raise err(ENOMEM)


def check_fork(p: Proc) -> None:
    """Check that what is promised to `p` may be promised to a child of it once more.

    :raises OSError: ENOMEM
    """
    if p.kernel.overcommit.overcommit_memory == OVERCOMMIT_NEVER:
        check_memory(p, committed_by(p.p_vmspace.vm_map) << PAGE_SHIFT)


# ---- limits of a process -------------------------------------------------------------------------


def is_data(entry: VmMapEntry) -> bool:
    """Whether it is private and writable, and no stack: what RLIMIT_DATA limits."""
    return bool(
        entry.protection & VM_PROT_WRITE
        and not entry.eflags & MAP_ENTRY_STACK
        and not is_shared(entry)
    )


def data_size(map: VmMap) -> int:
    """Bytes of private writable memory, stacks aside."""
    return sum(entry.ba.end - entry.ba.start for entry in map if is_data(entry))


def check_expand(p: Proc, size: int, data: bool, reserve: bool) -> None:
    """Check that `size` more bytes may be mapped, `data` or not (is_data), and with `reserve` that
    so much memory may be promised.

    :raises OSError: ENOMEM beyond RLIMIT_AS or RLIMIT_DATA, or without the memory.
    """
    if p.p_vmspace.vm_map.size + size > p.p_rlimit(RLIMIT_VMEM):
        raise err(ENOMEM)
    if data:
        check_data(p, size)
    if reserve:
        check_memory(p, size)


def check_data(p: Proc, size: int) -> None:
    """Check that `size` more bytes may be private and writable.

    :raises OSError: ENOMEM beyond RLIMIT_DATA. A soft limit of 0, which debuggers of memory set to
        forbid brk, leaves it to the hard one.
    """
    limit = p.p_rlimit(RLIMIT_DATA) or p.p_limit[RLIMIT_DATA][1]
    if limit != RLIM_INFINITY and data_size(p.p_vmspace.vm_map) + size > limit:
        raise err(ENOMEM)
