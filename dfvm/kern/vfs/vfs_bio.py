"""read, write, truncate and fsync of regular files, over the page cache.

The pages of a file's VM object are what read, write, mmap and exec share; the vnode pager brings
them in and takes them out through the vnode's vop_getpage and vop_putpage. Here bytes go between
these pages and a program's memory.

Writers and truncation hold v_lock, so that O_APPEND and a write of several pages are one; readers
don't, as on Linux. A page fault on the program's side never needs v_lock: a program may write a
file from a mapping of the same file.

Source: DragonFly sys/kern/vfs_vnops.c (vn_rdwr), sys/kern/vfs_bio.c, sys/kern/vfs_subr.c
(vtruncbuf, nvextendbuf).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_caps import CAP_FSETID
from dfvm.kern.kern_errno import EFBIG, EINVAL, EIO, ENODEV, ENXIO, EOPNOTSUPP, err
from dfvm.kern.vfs.seals import sealed_size, sealed_write, sealed_zero
from dfvm.kern.vfs.vnode_param import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    IO_APPEND,
    IO_SYNC,
    OFF_MAX,
    S_ISGID,
    S_ISUID,
    VREG,
)
from dfvm.lwkt.kern_lock import LK_CANRECURSE, LK_EXCLUSIVE, LK_RELEASE, Lock, lockmgr
from dfvm.vm.copyio import uiomove_pa
from dfvm.vm.pager.vnode_pager import (
    vnode_pager_object,
    vnode_pager_readpage,
    vnode_pager_setsize,
    vnode_pager_writepage,
    vnode_pager_wrote,
)
from dfvm.vm.vm_map import MAP_ENTRY_USER_WIRED, vm_map_lookup_entry
from dfvm.vm.vm_map_wire import vm_map_wire_on_fault
from dfvm.vm.vm_object import (
    OBJ_MIGHTBEDIRTY,
    OBJPC_SYNC,
    vm_object_deallocate,
    vm_object_page_clean,
    vm_object_page_remove,
    vm_object_reference_quick,
)
from dfvm.vm.vm_page import vm_page_unhold
from dfvm.vm.vmspace import vmspace_drop, vmspace_hold

if TYPE_CHECKING:
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.kern.vfs.vnode_param import Cred
    from dfvm.vm.copyio import Uio
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMapBacking
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vmspace import Vmspace

_SHIFT: Final = 12
_PAGE: Final = 1 << _SHIFT
_MASK: Final = _PAGE - 1


def vn_lock(vp: Vnode, flags: int = 0) -> Lock:
    """Take vp's lock, exclusively; with LK_CANRECURSE once more. May block."""
    lock = vp.v_lock
    if lock is None:
        lock = vp.v_lock = Lock(vp.v_mount.mnt_vfs.vm.sched, "vnode", 0)
    lockmgr(lock, LK_EXCLUSIVE | flags)
    return lock


def vn_at_work(vp: Vnode) -> bool:
    """Whether another thread than the current one writes the file or changes its size."""
    holder = None if vp.v_lock is None else vp.v_lock.lk_holder
    return holder is not None and holder is not vp.v_mount.mnt_vfs.vm.sched.curthread


def vn_host_changed(vp: Vnode, size: int) -> None:
    """The host's file under vp, which is not vn_at_work, is another than it was, and has `size`
    bytes. What memory has of it goes, but for what is newer. May block."""
    lock = vn_lock(vp, LK_CANRECURSE)  # the writer looks at the host when it begins
    try:
        vnode_pager_setsize(vp, size)
        if vp.v_object is not None:
            vm_object_page_remove(vp.v_object, 0, 0, True)
    finally:
        lockmgr(lock, LK_RELEASE)


def vn_read(vp: Vnode, uio: Uio, off: int) -> None:
    """Vnode.read of a regular file."""
    size = vp.v_filesize
    if off < 0:
        raise err(EINVAL)
    if off + uio.uio_resid > size:
        if off + uio.uio_resid > OFF_MAX:
            raise err(EINVAL)
        size = vp.vop_newsize()
        if off >= size:
            return
    resid = uio.uio_resid
    vm = vp.v_mount.mnt_vfs.vm
    object = vnode_pager_object(vm, vp)
    end = min(off + resid, size)
    try:
        while off < end:
            pindex = off >> _SHIFT
            m = vnode_pager_readpage(object, pindex, ((end + _MASK) >> _SHIFT) - pindex)
            try:
                if end > vp.v_filesize:  # cut short while we slept: zeros there are not the file's
                    end = vp.v_filesize
                base = off & _MASK
                n = min(_PAGE - base, end - off)
                if n <= 0:
                    break
                uiomove_pa(vm, m.phys_addr + base, n, uio)
            finally:
                vm_page_unhold(vm, m)
            off += n
    except OSError:
        # What was read before is the result; the rest fails when it is asked for by itself.
        if uio.uio_resid == resid and off < vp.v_filesize:
            raise


def vn_write(vp: Vnode, uio: Uio, off: int, ioflag: int, limit: int) -> int:
    """Vnode.write of a regular file."""
    resid = uio.uio_resid
    if resid == 0:
        return off
    if off < 0 or off + resid > OFF_MAX:
        raise err(EINVAL)
    lock = vn_lock(vp)
    try:
        osize = vp.vop_modify()
        if ioflag & IO_APPEND:
            off = osize
        limit = min(limit, OFF_MAX)
        if off >= limit:
            raise err(EFBIG)
        start = off
        end = min(off + resid, limit)
        if vp.v_seals:
            end = sealed_write(vp, off, end)
        end = vp.vop_reserve(off, end)
        if end > osize:
            mapped = vp.v_object is not None and vp.v_object.backing_list
            vnode_pager_setsize(vp, max(off, osize) if mapped else end)
        try:
            _copy_in(vp, uio, off, end)
        except OSError:
            if uio.uio_resid == resid:
                raise
        finally:
            off = start + resid - uio.uio_resid
            size = max(osize, off)
            if size < vp.v_filesize:
                vnode_pager_setsize(vp, size)
            if off > start:
                if vp.v_mode & (S_ISUID | S_ISGID):
                    _drop_suid(vp)
                vp.vop_wrote(size)
        if ioflag & IO_SYNC:
            vn_fsync(vp)
        return off
    finally:
        lockmgr(lock, LK_RELEASE)


def _copy_in(vp: Vnode, uio: Uio, off: int, end: int) -> None:
    # Bytes off … end come from uio. The file reaches to `end`; or, if it is mapped, to `off`, and
    # grows with what comes: that may be from such a mapping, and there is nothing beyond its end.
    vm = vp.v_mount.mnt_vfs.vm
    object = vnode_pager_object(vm, vp)
    while off < end:
        base = off & _MASK
        n = min(_PAGE - base, end - off)
        if off + n > vp.v_filesize:
            n = len(uio.piece(n))
            vnode_pager_setsize(vp, max(off + n, vp.v_filesize))
        m = vnode_pager_writepage(object, off >> _SHIFT, base, n)
        before = uio.uio_resid
        try:
            uiomove_pa(vm, m.phys_addr + base, n, uio)
        finally:
            vnode_pager_wrote(m, base, before - uio.uio_resid)
            vm_page_unhold(vm, m)
        off += n


def _drop_suid(vp: Vnode) -> None:
    # Somebody else's program must not stay privileged once it has been written to.
    proc = vp.v_mount.mnt_vfs.vm.curproc()
    cred: Cred | None = getattr(proc, "p_ucred", None)
    if cred is None or cred.cr_cap_e & CAP_FSETID:
        return
    mode = vp.v_mode & ~S_ISUID
    if mode & 0o010 or not cred.groupmember(vp.v_gid):
        mode &= ~S_ISGID
    if mode != vp.v_mode:
        vp.vop_setattr(mode, -1, -1, None, None)


def vn_setsize(vp: Vnode, length: int) -> None:
    """Vnode.setsize."""
    if length < 0:
        raise err(EINVAL)
    lock = vn_lock(vp)
    try:
        osize = vp.vop_modify()
        if vp.v_seals:
            sealed_size(vp, osize, length)
        if length > osize:  # the storage first: it may refuse
            vp.vop_setsize(length)
            vnode_pager_setsize(vp, length)
        else:
            if length < osize:
                vnode_pager_setsize(vp, length)
                _forget_copies(vp, length)
            vp.vop_setsize(length)
        if vp.v_mode & (S_ISUID | S_ISGID):
            _drop_suid(vp)
    finally:
        lockmgr(lock, LK_RELEASE)


def _forget_copies(vp: Vnode, length: int) -> None:
    """What private mappings have copied of the pages that a truncation takes away goes, too: on
    Linux nothing is left behind the end of a file, and an access there is SIGBUS. (To DragonFly's
    VM the copies are the process's own, whatever becomes of the file.) May block."""
    object = vp.v_object
    if object is None or not object.backing_list:
        return
    gone = (length + _MASK) >> _SHIFT
    copies: list[tuple[VmObject, int, int]] = []
    vm = object.vm
    assert vm.hooks is not None
    wired: list[tuple[Vmspace, int, int]] = []
    spaces = {p.p_vmspace.vm_pmap: p.p_vmspace for p in vm.hooks.allproc()}
    for tail in object.backing_list:
        space = spaces.get(tail.pmap)
        first = max(gone - (tail.offset >> _SHIFT), 0)
        pages = tail.end - tail.start >> _SHIFT
        if space is None or first >= pages:
            continue
        found, entry = vm_map_lookup_entry(space.vm_map, tail.start)
        if not found or entry is None:
            continue
        if entry.eflags & MAP_ENTRY_USER_WIRED and entry.ba is not tail:
            vmspace_hold(space)
            wired.append((space, tail.start + (first << _SHIFT), tail.end))
        ba: VmMapBacking | None = entry.ba
        while ba is not None and ba is not tail:
            if ba.object is not None:
                vm_object_reference_quick(ba.object)
                base = ba.offset >> _SHIFT
                copies.append((ba.object, base + first, base + pages))
            ba = ba.backing_ba
    while wired:  # the holds have tokens, which go in the opposite order
        space, start, end = wired.pop()
        vm_map_wire_on_fault(space.vm_map, start, end)
        vmspace_drop(space)
    for obj, start, end in copies:
        vm_object_page_remove(obj, start, end, False)
        vm_object_deallocate(obj)


def vn_flush(vp: Vnode) -> int:
    """Put the dirty pages to the storage. Returns how many could not be; they stay dirty. May
    block."""
    object = vp.v_object
    if object is None or not object.flags & OBJ_MIGHTBEDIRTY:
        return 0
    return vm_object_page_clean(object, 0, 0, OBJPC_SYNC)


def vn_fsync(vp: Vnode) -> None:
    """Vnode.fsync."""
    if vn_flush(vp):
        raise err(EIO)
    vp.vop_fsync()


def vn_allocate(vp: Vnode, mode: int, off: int, length: int) -> None:
    """Vnode.allocate: make room, or make a hole."""
    if vp.v_type != VREG:
        raise err(ENODEV)
    if off < 0 or length <= 0:
        raise err(EINVAL)
    end = off + length
    if end > OFF_MAX:
        raise err(EFBIG)
    kind = mode & ~FALLOC_KEEP_SIZE
    if kind not in (0, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE):
        raise err(EOPNOTSUPP)
    if kind == FALLOC_PUNCH_HOLE and not mode & FALLOC_KEEP_SIZE:
        raise err(EOPNOTSUPP)
    lock = vn_lock(vp)
    try:
        osize = vp.vop_modify()
        if vp.v_seals:
            if kind:
                sealed_zero(vp)
            if kind != FALLOC_PUNCH_HOLE:
                sealed_size(vp, osize, max(osize, end))
        if kind:
            _zero(vp, off, min(end, vp.v_filesize + _MASK & ~_MASK))
        if kind != FALLOC_PUNCH_HOLE:
            vp.vop_allocate(off, end)
        if end > vp.v_filesize and not mode & FALLOC_KEEP_SIZE:
            vp.vop_setsize(end)
            vnode_pager_setsize(vp, end)
        else:
            vp.vop_wrote(vp.v_filesize)
    finally:
        lockmgr(lock, LK_RELEASE)


def _zero(vp: Vnode, off: int, end: int) -> None:
    # Bytes off … end, in the file's pages, become zero: whole pages by leaving memory and storage.
    vm = vp.v_mount.mnt_vfs.vm
    first, last = (off + _MASK) >> _SHIFT, end >> _SHIFT
    if first < last:
        vp.vop_zero(first << _SHIFT, last << _SHIFT)
        if vp.v_object is not None:
            vm_object_page_remove(vp.v_object, first, last, False)
        parts = ((off, first << _SHIFT), (last << _SHIFT, end))
    else:
        mid = min(end, first << _SHIFT)
        parts = ((off, mid), (mid, end))
    for start, stop in parts:
        stop = min(stop, vp.v_filesize)
        if start < stop and not _is_hole(vp, start >> _SHIFT):
            _zero_part(vm, vp, start, stop)


def _is_hole(vp: Vnode, pindex: int) -> bool:
    """Whether the file has nothing at that page, in memory or in its storage."""
    if vp.v_object is not None and pindex in vp.v_object.rb_memq:
        return False
    try:
        return vp.vop_seek_data(pindex << _SHIFT, False) >= pindex + 1 << _SHIFT
    except OSError as e:
        return e.errno == ENXIO


def _zero_part(vm: VmSystem, vp: Vnode, start: int, stop: int) -> None:
    # The same within one page.
    base, n = start & _MASK, stop - start
    vp.vop_reserve(start, stop)
    m = vnode_pager_writepage(vnode_pager_object(vm, vp), start >> _SHIFT, base, n)
    pa = m.phys_addr + base
    vm.ram.mem[pa : pa + n] = bytes(n)
    vnode_pager_wrote(m, base, n)
    vm_page_unhold(vm, m)
