"""System V shared memory.

A segment is an object of the VM's, with a reference of the segment's own, that whoever attaches it
maps. The map entries that show it are the attachments: fork makes more of them, munmap and mprotect
cut them, exec and exit take them away, and the object tells the segment each time (VmShm). So there
is no list of attachments besides the maps, and the count is that of the object's backing elements.

A segment that was removed while attached is there until the last attachment goes.

Source: DragonFly sys/kern/sysv_shm.c for how it stands on the VM; Linux ipc/shm.c for everything a
program sees.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.kern_caps import CAP_IPC_LOCK
from dfvm.kern.kern_commit import OVERCOMMIT_NEVER, check_expand, check_memory
from dfvm.kern.kern_errno import EAGAIN, EINVAL, ENOMEM, ENOSPC, EPERM, err
from dfvm.kern.sys_mman import check_place, find_room, mapped
from dfvm.kern.sysv_ipc import (
    IPC_INFO,
    IPC_RMID,
    IPC_SET,
    IPC_STAT,
    PERM_SIZE,
    S_IRUGO,
    S_IWUGO,
    S_IXUGO,
    IpcPerm,
    ipc_now,
    ipc_ns,
    ipc_own,
    ipcget,
    ipcperms,
)
from dfvm.kern.vma import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    U64,
    check_unmap,
    entries,
    is_sealed,
    lock_room,
    vm_prot,
    vma_full,
)
from dfvm.vm.copyio import copyin, copyout
from dfvm.vm.vm import VM_PROT_ALL, VM_PROT_WRITE
from dfvm.vm.vm_map import MAP_WIREFUTURE, vm_map_first_entry, vm_map_remove
from dfvm.vm.vm_mmap import MAP_FIXED, vm_mmap_shmem
from dfvm.vm.vm_object import vm_object_deallocate, vm_object_reference_quick
from dfvm.vm.vm_param import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, round_page
from dfvm.vm.vm_proc import RLIM_INFINITY, RLIMIT_MEMLOCK
from dfvm.vm.vm_shm import vm_shm_lock, vm_shm_object, vm_shm_unlock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp, Proc
    from dfvm.kern.sysv_ipc import IpcNs
    from dfvm.vm.vm_map import VmMap, VmMapEntry
    from dfvm.vm.vm_object import VmObject

# shmget's flags, beside those of all get calls.
SHM_HUGETLB: Final = 0o4000
SHM_NORESERVE: Final = 0o10000
_HUGE_SHIFT: Final = 26
_HUGE_MASK: Final = 0x3F
_HUGE_SIZES: Final = (0, 21, 30)  # their logarithms; 0 is the usual one

_HUGE_GROUP: Final = 0  # who may have them without CAP_IPC_LOCK (vm.hugetlb_shm_group)

# shmat's.
SHM_RDONLY: Final = 0o10000
SHM_RND: Final = 0o20000
SHM_REMAP: Final = 0o40000
SHM_EXEC: Final = 0o100000

# Marks in a segment's mode.
SHM_DEST: Final = 0o1000  # goes with the last attachment
SHM_LOCKED: Final = 0o2000

# shmctl's own commands.
SHM_LOCK: Final = 11
SHM_UNLOCK: Final = 12
SHM_STAT: Final = 13
SHM_INFO: Final = 14
SHM_STAT_ANY: Final = 15

SHMMIN: Final = 1

# struct shmid64_ds, behind its perm: segsz atime dtime ctime cpid lpid nattch, and room
_SHMID_DS: Final = Struct("<QqqqiiQ16x")
# struct shminfo64: max min mni seg all, and room
_SHMINFO: Final = Struct("<QQQQQ32x")
# struct shm_info: used_ids, then tot rss swp, swap attempts and successes
_SHM_INFO: Final = Struct("<i4xQQQQQ")


class ShmSegment:
    """A segment: struct shmid_kernel. What its object knows of it is VmShm."""

    __slots__ = ("ns", "object", "perm", "shm_account", "shm_atime", "shm_cpid", "shm_creator",
                 "shm_ctime", "shm_dtime", "shm_key", "shm_lockuid", "shm_lpid", "shm_pins",
                 "shm_segsz")  # fmt: skip

    ns: IpcNs
    perm: IpcPerm
    object: VmObject  # the memory; its attribute shm is this segment
    shm_key: int  # its key when it was made
    shm_segsz: int  # bytes, as asked for
    shm_atime: int  # seconds: the last time somebody attached; 0 never
    shm_dtime: int  # … detached
    shm_ctime: int  # … it was made or changed
    shm_cpid: int  # who made it
    shm_lpid: int  # who attached or detached last
    shm_pins: int  # calls that are just attaching it, and keep it meanwhile
    shm_creator: Proc | None  # who made it, until that ends; see ns.shm_created
    shm_account: bool  # its memory is promised: no SHM_NORESERVE
    shm_lockuid: int  # the user whose locked memory it counts as; -1: it is not locked

    def __init__(self, ns: IpcNs, perm: IpcPerm, size: int, p: Proc) -> None:
        self.ns = ns
        self.perm = perm
        self.object = vm_shm_object(ns.kernel.vm, self.pages_of(size), self)
        self.shm_key = perm.key
        self.shm_segsz = size
        self.shm_atime = self.shm_dtime = self.shm_lpid = 0
        self.shm_ctime = ipc_now()
        self.shm_cpid = p.p_pid
        self.shm_creator = p
        self.shm_account = True
        ns.shm_created.setdefault(p, {})[self] = None
        self.shm_lockuid = -1
        self.shm_pins = 0

    @staticmethod
    def pages_of(size: int) -> int:
        """Pages of a segment of `size` bytes."""
        return round_page(size) >> PAGE_SHIFT

    def name(self) -> bytes:
        """What /proc/PID/maps calls it."""
        return b"/SYSV%08x (deleted)" % (self.shm_key & 0xFFFF_FFFF)

    @property
    def nattch(self) -> int:
        """How often it is attached."""
        return len(self.object.backing_list)

    def _touched(self) -> None:
        p = self.ns.kernel.sched.curthread.td_proc
        if p is not None:
            self.shm_lpid = p.p_pid

    def shm_open(self) -> None:
        """It is attached once more: VmShm."""
        self.shm_atime = ipc_now()
        self._touched()

    def shm_close(self) -> None:
        """An attachment has gone: VmShm. The last one may end the segment."""
        self.shm_dtime = ipc_now()
        self._touched()
        if self.may_destroy():
            self.destroy()

    def may_destroy(self) -> bool:
        """Whether it goes, now that something has gone."""
        if self.nattch or self.shm_pins or self.perm.deleted:
            return False
        return bool(self.ns.shm_rmid_forced or self.perm.mode & SHM_DEST)

    def destroy(self) -> None:
        """Nobody has it attached, and nobody is to find it any more. May block."""
        ns = self.ns
        ns.shm_ids.remove(self)
        ns.shm_tot -= self.pages_of(self.shm_segsz)
        self._unaccount()
        self.free()

    def free(self) -> None:
        """Let go of the memory. May block."""
        if self.shm_creator is not None:
            del self.ns.shm_created[self.shm_creator][self]
        self.object.shm = None
        vm_object_deallocate(self.object)

    def remove(self) -> None:
        """IPC_RMID. May block."""
        if self.nattch or self.shm_pins:
            self.perm.mode |= SHM_DEST
            self.ns.shm_ids.forget_key(self)
        else:
            self.destroy()

    def lock(self, p: Proc) -> None:
        """SHM_LOCK: its pages stay in memory, and count as memory that the user has locked.

        :raises OSError: ENOMEM beyond RLIMIT_MEMLOCK. May block.
        """
        if self.perm.mode & SHM_LOCKED:
            return
        ns, uid = self.ns, p.p_ucred.cr_ruid
        pages = ns.shm_locked.get(uid, 0) + self.pages_of(self.shm_segsz)
        limit = p.p_rlimit(RLIMIT_MEMLOCK)
        if (
            limit != RLIM_INFINITY
            and pages > limit >> PAGE_SHIFT
            and not p.p_ucred.cr_cap_e & CAP_IPC_LOCK
        ):
            raise err(ENOMEM)
        ns.shm_locked[uid] = pages
        self.shm_lockuid = uid
        self.perm.mode |= SHM_LOCKED
        vm_shm_lock(self.object)

    def unlock(self) -> None:
        """SHM_UNLOCK. May block."""
        if self.perm.mode & SHM_LOCKED:
            self._unaccount()
            self.perm.mode &= ~SHM_LOCKED
            vm_shm_unlock(self.object)

    def _unaccount(self) -> None:
        uid, self.shm_lockuid = self.shm_lockuid, -1
        if uid < 0:
            return
        locked = self.ns.shm_locked
        locked[uid] -= self.pages_of(self.shm_segsz)
        if not locked[uid]:
            del locked[uid]

    def pack(self) -> bytes:
        """struct shmid64_ds."""
        return self.perm.pack() + _SHMID_DS.pack(
            self.shm_segsz, self.shm_atime, self.shm_dtime, self.shm_ctime, self.shm_cpid,
            self.shm_lpid, self.nattch,
        )  # fmt: skip


# ---- shmget --------------------------------------------------------------------------------------


def sys_shmget(lp: Lwp, key: int, size: int, flags: int) -> int:
    """The number of the segment with a key, or of a new one."""
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)

    def new(key: int, flags: int) -> ShmSegment:
        return _newseg(ns, p, key, size, flags)

    def check(shp: ShmSegment) -> None:
        if shp.shm_segsz < size:
            raise err(EINVAL)

    return ipcget(p.p_ucred, ns.shm_ids, key, flags, new, check)


def _newseg(ns: IpcNs, p: Proc, key: int, size: int, flags: int) -> ShmSegment:
    """Make a segment, if size, flags and limits allow it.

    :raises OSError: EINVAL, ENOSPC, EPERM, ENOMEM; in the order that Linux has.
    """
    if not SHMMIN <= size <= ns.shm_ctlmax:
        raise err(EINVAL)
    pages = ShmSegment.pages_of(size)
    if pages << PAGE_SHIFT > U64 or ns.shm_tot + pages > ns.shm_ctlall:
        raise err(ENOSPC)
    if flags & SHM_HUGETLB:
        if flags >> _HUGE_SHIFT & _HUGE_MASK not in _HUGE_SIZES:
            raise err(EINVAL)
        if not p.p_ucred.cr_cap_e & CAP_IPC_LOCK and not p.p_ucred.groupmember(_HUGE_GROUP):
            raise err(EPERM)
        raise err(ENOMEM)  # there is no pool of huge pages
    if size >= 1 << 63:  # for Linux a segment is a file, and none is so large
        raise err(EINVAL)
    account = not flags & SHM_NORESERVE or p.kernel.overcommit.overcommit_memory == OVERCOMMIT_NEVER
    if account:
        check_memory(p, size)
    perm = IpcPerm(key, flags, p.p_ucred)
    shp = ShmSegment(ns, perm, size, p)
    shp.shm_account = account
    try:
        ns.shm_ids.add(shp, ns.shm_ctlmni)
    except OSError:
        shp.free()
        raise
    ns.shm_tot += pages
    return shp


# ---- shmat and shmdt -----------------------------------------------------------------------------


def sys_shmat(lp: Lwp, shmid: int, addr: int, flags: int) -> int:
    """Attach a segment; returns where it is."""
    shmid, flags = s32(shmid), u32(flags)
    p = lp.lwp_proc
    if shmid < 0:
        raise err(EINVAL)
    fixed = addr != 0
    if addr & PAGE_MASK:
        if not flags & SHM_RND:
            raise err(EINVAL)
        addr &= ~PAGE_MASK
    if not addr and flags & SHM_REMAP:
        raise err(EINVAL)
    prot, mode, maximum = PROT_READ | PROT_WRITE, S_IRUGO | S_IWUGO, VM_PROT_ALL
    if flags & SHM_RDONLY:
        prot, mode, maximum = PROT_READ, S_IRUGO, VM_PROT_ALL & ~VM_PROT_WRITE
    if flags & SHM_EXEC:
        prot |= PROT_EXEC
        mode |= S_IXUGO
    shp = ipc_ns(p.kernel).shm_ids.get(shmid)
    ipcperms(p.p_ucred, shp.perm, mode)
    shp.shm_pins += 1  # what is at `addr` may be its last attachment
    try:
        return _attach(p, shp, addr, fixed, bool(flags & SHM_REMAP), prot, maximum)
    finally:
        shp.shm_pins -= 1
        if shp.may_destroy():
            shp.destroy()


def _attach(
    p: Proc, shp: ShmSegment, addr: int, fixed: bool, remap: bool, prot: int, maximum: int
) -> int:
    """Map a segment, as mmap would: at `addr` if `fixed`, and there in place of what is there only
    if `remap`.

    :raises OSError: EINVAL, ENOMEM, EPERM, EAGAIN.
    """
    map = p.p_vmspace.vm_map
    size = round_page(shp.shm_segsz)
    if fixed and not remap:
        if addr + shp.shm_segsz > U64:
            raise err(EINVAL)
        for _ in entries(map, addr, addr + shp.shm_segsz):
            raise err(EINVAL)
    if vma_full(map, 0):
        raise err(ENOMEM)
    if fixed:
        check_place(p, addr, size)
    if map.flags & MAP_WIREFUTURE and size > lock_room(p):
        raise err(EAGAIN)
    overlap = 0
    if fixed:
        overlap = sum(last - first for _, first, last in entries(map, addr, addr + size))
    check_expand(p, size - overlap, False, False)
    if fixed:
        check_unmap(map, addr, addr + size)
    else:
        addr = find_room(map, 0, size)
    bits = vm_prot(p, prot)
    obj = shp.object
    vm_object_reference_quick(obj)
    if vm_mmap_shmem(map, addr, size, bits, maximum, MAP_FIXED if fixed else 0, obj):
        raise err(ENOMEM)
    mapped(map, addr, size, False, bits, True, 0)
    return addr


def _attached(entry: VmMapEntry, addr: int) -> ShmSegment | None:
    """The segment that an entry shows, if it is where an attachment at `addr` would have it."""
    ba = entry.ba
    obj = ba.object
    if obj is None or obj.shm is None or ba.start - addr != ba.offset:
        return None
    shp = obj.shm
    assert isinstance(shp, ShmSegment)
    return shp


def sys_shmdt(lp: Lwp, addr: int) -> int:
    """Detach what was attached at `addr`: all that is left of it, in however many pieces."""
    if addr & PAGE_MASK:
        raise err(EINVAL)
    map = lp.lwp_proc.p_vmspace.vm_map
    entry = vm_map_first_entry(map, addr)
    shp = None
    while entry is not None and (shp := _attached(entry, addr)) is None:
        entry = entry.next
    if entry is None or shp is None:
        raise err(EINVAL)
    end = addr + round_page(shp.shm_segsz)
    at = entry.ba.end
    _detach(map, entry.ba.start, at)
    for entry, first, last in entries(map, at, max(at, end)):
        if entry.ba.end <= end and _attached(entry, addr) is shp:
            _detach(map, first, last)
    return 0


def _detach(map: VmMap, start: int, end: int) -> None:
    # What is sealed stays, and nobody is told.
    if not is_sealed(map, start, end):
        vm_map_remove(map, start, end)


# ---- shmctl --------------------------------------------------------------------------------------


def sys_shmctl(lp: Lwp, shmid: int, cmd: int, buf: int) -> int:
    """Look at a segment, change, lock or remove it."""
    shmid, cmd = s32(shmid), s32(cmd)
    if shmid < 0 or cmd < 0:
        raise err(EINVAL)
    p = lp.lwp_proc
    ns = ipc_ns(p.kernel)
    if cmd in (IPC_INFO, SHM_INFO):
        copyout(p.p_vmspace, _limits(ns) if cmd == IPC_INFO else _totals(ns), buf)
        return ns.shm_ids.max_idx
    if cmd in (IPC_STAT, SHM_STAT, SHM_STAT_ANY):
        shp = ns.shm_ids.get(shmid) if cmd == IPC_STAT else ns.shm_ids.at(shmid)
        if cmd != SHM_STAT_ANY:
            ipcperms(p.p_ucred, shp.perm, S_IRUGO)
        copyout(p.p_vmspace, shp.pack(), buf)
        return 0 if cmd == IPC_STAT else shp.perm.id
    if cmd == IPC_SET:
        raw = copyin(p.p_vmspace, buf, PERM_SIZE + _SHMID_DS.size)
        shp = ns.shm_ids.get(shmid)
        ipc_own(p.p_ucred, shp.perm)
        shp.perm.update(raw)
        shp.shm_ctime = ipc_now()
        return 0
    if cmd == IPC_RMID:
        shp = ns.shm_ids.get(shmid)
        ipc_own(p.p_ucred, shp.perm)
        shp.remove()
        return 0
    if cmd in (SHM_LOCK, SHM_UNLOCK):
        shp = ns.shm_ids.get(shmid)
        _may_lock(p, shp, cmd == SHM_LOCK)
        if cmd == SHM_LOCK:
            shp.lock(p)
        else:
            shp.unlock()
        return 0
    raise err(EINVAL)


def _may_lock(p: Proc, shp: ShmSegment, lock: bool) -> None:
    cred = p.p_ucred
    if cred.cr_cap_e & CAP_IPC_LOCK:
        return
    if cred.cr_uid not in (shp.perm.uid, shp.perm.cuid):
        raise err(EPERM)
    if lock and not p.p_rlimit(RLIMIT_MEMLOCK):
        raise err(EPERM)


def _limits(ns: IpcNs) -> bytes:
    return _SHMINFO.pack(ns.shm_ctlmax, SHMMIN, ns.shm_ctlmni, ns.shm_ctlmni, ns.shm_ctlall)


def _totals(ns: IpcNs) -> bytes:
    resident = sum(shp.object.resident_page_count for shp in ns.shm_ids)
    return _SHM_INFO.pack(len(ns.shm_ids.ipcs), ns.shm_tot, resident, 0, 0, 0)


# ---- for others ----------------------------------------------------------------------------------


def shm_exit(p: Proc) -> None:
    """`p`, which has no address space any more, ends. With shm_rmid_forced what it has made and
    nobody has attached goes. May block."""
    ns = p.kernel.ipc
    made = None if ns is None else ns.shm_created.pop(p, None)
    for shp in made or ():
        shp.shm_creator = None
        if shp.may_destroy():
            shp.destroy()


def shm_force(ns: IpcNs, on: int) -> None:
    """Set shm_rmid_forced, which takes what is orphaned already. May block."""
    ns.shm_rmid_forced = on
    for shp in list(ns.shm_ids):
        if shp.shm_creator is None and shp.may_destroy():
            shp.destroy()


def shm_lines(kernel: Kernel) -> bytes:
    """/proc/sysvipc/shm."""
    lines = [
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid"
        "  cgid      atime      dtime      ctime                   rss                  swap\n"
    ]
    for s in ipc_ns(kernel).shm_ids:
        perm, resident = s.perm, s.object.resident_page_count * PAGE_SIZE
        lines.append(
            f"{perm.key:10} {perm.id:10}  {perm.mode:4o} {s.shm_segsz:21} {s.shm_cpid:5} "
            f"{s.shm_lpid:5}  {s.nattch:5} {perm.uid:5} {perm.gid:5} {perm.cuid:5} {perm.cgid:5} "
            f"{s.shm_atime:10} {s.shm_dtime:10} {s.shm_ctime:10} {resident:21} {0:21}\n"
        )
    return "".join(lines).encode()


def shm_check(ns: IpcNs) -> Iterator[str]:
    """What is wrong with the segments: Machine.check()."""
    pages = 0
    locked: dict[int, int] = {}
    for shp in ns.shm_ids:
        pages += shp.pages_of(shp.shm_segsz)
        if shp.shm_lockuid >= 0:
            locked[shp.shm_lockuid] = locked.get(shp.shm_lockuid, 0) + shp.pages_of(shp.shm_segsz)
        if shp.object.shm is not shp:
            yield f"segment {shp.perm.id}: its memory is that of another"
        if shp.perm.mode & SHM_DEST and not shp.nattch:
            yield f"segment {shp.perm.id} was removed and is attached nowhere"
    if pages != ns.shm_tot:
        yield f"the segments have {pages} pages, not {ns.shm_tot}"
    if locked != ns.shm_locked:
        yield f"locked segments have {locked} pages, not {ns.shm_locked}"
    known = {shp.object for shp in ns.shm_ids}
    for bucket in ns.kernel.vm.object_hash:
        for obj in bucket:
            if obj.shm is not None and obj not in known:
                yield f"{obj!r} belongs to a segment that is gone"
