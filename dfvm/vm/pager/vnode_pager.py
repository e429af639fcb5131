"""The pager of files, and the page cache that read(2), write(2), mmap and exec share.

A file's contents are the pages of its vnode's object. Where a page is resident it is the truth;
where none is, the storage under the vnode is (VmVnode.vop_getpage and vop_putpage). The rules:

- A page of a file is wholly valid or not at all, from the moment it is unbusied. So whoever finds
  it may use all of it, and a write(2) of a few bytes first reads the page.
- dirty says which 512-byte chunks the storage does not know yet; only they are written.
- What lies beyond the end of the file is never written, and reads as zero once the file grows.
  A mapping may have scribbled there: writing the page out, and growing, clear it.
- The object lives as long as the vnode, whether somebody has a reference on it or not.
- While a page is read or written it is busy, and truncation waits for it (see VmObject.size). So
  the end of the file can move under whoever waits for storage or memory, but what he has busied
  stays where it is; he looks at v_filesize, or the size of the object, when he has it.

Source: DragonFly sys/vm/vnode_pager.c, and what sys/kern/vfs_bio.c and vfs_subr.c do above it.
"""

from __future__ import annotations

from errno import EIO
from os import strerror
from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.vm.pager import (
    VM_PAGER_BAD,
    VM_PAGER_ERROR,
    VM_PAGER_OK,
    VmPager,
)
from dfvm.vm.vm_object import (
    OBJ_DEAD,
    OBJ_MIGHTBEDIRTY,
    OBJ_WRITEABLE,
    OBJT_DEAD,
    OBJT_VNODE,
    vm_object_allocate,
    vm_object_drop,
    vm_object_hold,
    vm_object_page_remove,
    vm_object_pip_wait,
    vm_object_reference_quick,
    vm_object_terminate,
)
from dfvm.vm.vm_page import (
    PBUSY_LOCKED,
    PG_RAM,
    PG_REFERENCED,
    PQ_CACHE,
    PQ_HOLD,
    PQ_INACTIVE,
    VM_ALLOC_NORMAL,
    VM_ALLOC_NULL_OK,
    VM_ALLOC_QUICK,
    VM_PAGE_BITS_ALL,
    vm_no_memory,
    vm_page_alloc,
    vm_page_alloc_run,
    vm_page_deactivate,
    vm_page_free,
    vm_page_lookup_busy_try,
    vm_page_lookup_busy_wait,
    vm_page_queue_run,
    vm_page_sleep_busy,
    vm_page_wakeup,
    vm_wait,
)
from dfvm.vm.vm_page2 import vm_paging_wait
from dfvm.vm.vm_param import DEV_BSHIFT, DEV_BSIZE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page import VmPage
    from dfvm.vm.vm_vnode import VmVnode

_RUN: Final = 16  # pages read at once where the access is sequential
_CLUSTER: Final = 8  # pages read at once where it is not known to be; a power of two
_CHUNK_MASK: Final = DEV_BSIZE - 1


class VnodePager(VmPager):
    """OBJT_VNODE."""

    __slots__ = ()

    def dealloc(self, object: VmObject) -> None:
        """Part vnode and object."""
        vp = object.handle
        if vp is None:
            panic(f"vnode_pager_dealloc: {object!r} has no vnode any more")
        vm_object_pip_wait(object, "vnpdea")
        object.handle = None
        object.type = OBJT_DEAD
        vp.v_object = None

    def getpage(
        self, object: VmObject, pindex: int, m: VmPage, seqaccess: int
    ) -> tuple[int, VmPage]:
        """Read a page, and some around it. A page that is valid already has been a read-ahead
        mark, and only the pages behind it are read. ERROR beyond the end of the file."""
        vp = object.handle
        if vp is None:
            return VM_PAGER_BAD, m
        if pindex << PAGE_SHIFT >= vp.v_filesize:
            return VM_PAGER_ERROR, m
        if m.valid != VM_PAGE_BITS_ALL:
            try:
                _pagein(object, vp, m)
            except OSError:
                return VM_PAGER_ERROR, m
            _read_around(object, vp, pindex, seqaccess)
        elif seqaccess:
            _read_ahead(object, vp, pindex + 1, pindex + 1 + _RUN)
        return VM_PAGER_OK, m

    def putpages(self, object: VmObject, ms: list[VmPage], flags: int) -> list[int]:
        """Write the dirty chunks of `ms` as far as the file goes. BAD for pages beyond it."""
        vp = object.handle
        if vp is None:
            return [VM_PAGER_BAD] * len(ms)
        cnt = object.vm.gd.gd_cnt
        cnt.v_vnodeout += 1
        cnt.v_vnodepgsout += len(ms)
        return [_pageout(object, vp, m) for m in ms]

    def haspage(self, object: VmObject, pindex: int) -> bool:
        """Whether the file reaches so far."""
        vp = object.handle
        return vp is not None and pindex << PAGE_SHIFT < vp.v_filesize


# --- Vnode and object --------------------------------------------------------------------------


def vnode_pager_alloc(vm: VmSystem, vp: VmVnode, size: int) -> VmObject:
    """The object of `vp`, a file of `size` bytes, with one more reference for the caller; made if
    there is none. The vnode is referenced. Does not block."""
    object = vp.v_object
    if object is None:
        object = vm_object_allocate(vm, OBJT_VNODE, (size + PAGE_MASK) >> PAGE_SHIFT)
        object.handle = vp
        vp.v_object = object
        vp.v_filesize = size
        vp.vref()
    else:
        if object.flags & OBJ_DEAD:
            panic(f"vnode_pager_alloc: {object!r} is being taken down")
        vm_object_reference_quick(object)
    return object


def vnode_pager_object(vm: VmSystem, vp: VmVnode) -> VmObject:
    """The object of `vp` for as long as the caller's reference on the vnode lasts, without a
    reference of its own: what read and write want. Does not block."""
    object = vp.v_object
    if object is None:
        object = vm_object_allocate(vm, OBJT_VNODE, (vp.v_filesize + PAGE_MASK) >> PAGE_SHIFT)
        object.ref_count = 0
        object.handle = vp
        vp.v_object = object
    return object


def vnode_pager_reclaim(vp: VmVnode) -> None:
    """The last reference to `vp` is gone and the vnode is about to be: write what is dirty, free
    the pages, end the object. Whoever wants the contents of an unlinked file thrown away instead
    of written calls vnode_pager_setsize(vp, 0) first. May block."""
    object = vp.v_object
    if object is None:
        return
    vm_object_hold(object)
    vm_object_terminate(object)
    vm_object_drop(object)


def vnode_pager_setsize(vp: VmVnode, nsize: int) -> None:
    """The file has `nsize` bytes from now on. To be called before the write that makes a file
    longer, and at a truncation, where the storage is the caller's to cut. May block."""
    osize = vp.v_filesize
    if nsize == osize:
        return
    object = vp.v_object
    vp.v_filesize = nsize
    if object is None:
        return
    # First the sizes, so that no new page appears behind the end while we sleep.
    opages = object.size
    npages = object.size = (nsize + PAGE_MASK) >> PAGE_SHIFT
    if npages < opages:
        vm_object_page_remove(object, npages, opages, False)
    cut = min(nsize, osize)
    if cut & PAGE_MASK:
        _clear_tail(object, cut)


def _clear_tail(object: VmObject, cut: int) -> None:
    """Zero the page that byte `cut` of the file lies in from there on: what a longer file had
    there, or what a mapping has written behind the end. May block."""
    vm = object.vm
    pindex = cut >> PAGE_SHIFT
    if pindex not in object.rb_memq:
        return
    vm_object_hold(object)
    m = vm_page_lookup_busy_wait(object, pindex, True, "vsetsz")
    if m is not None:
        if m.valid:
            pa = m.phys_addr
            base = cut & PAGE_MASK
            vm.ram.mem[pa + base : pa + PAGE_SIZE] = bytes(PAGE_SIZE - base)
            vm.mmu.code_written(pa >> PAGE_SHIFT)
            # Chunks that lie behind the cut as a whole have nothing to say any more.
            m.dirty &= (1 << ((base + _CHUNK_MASK) >> DEV_BSHIFT)) - 1
        vm_page_wakeup(vm, m)
    vm_object_drop(object)


# --- Reading -----------------------------------------------------------------------------------


def _pagein(object: VmObject, vp: VmVnode, m: VmPage) -> None:
    """Fill what is not valid in `m` (hard-busied, inside the file) from the storage, zeros where
    that has nothing.

    :raises OSError: the storage cannot be read; the page is as it was.
    """
    vm = object.vm
    pa = m.phys_addr
    off = m.pindex << PAGE_SHIFT
    want = max(min(PAGE_SIZE, vp.v_filesize - off), 0)  # it may have been cut while we slept
    if m.valid == 0:
        mem = vm.ram.mem
        got = vp.vop_getpage(off, mem[pa : pa + want])
        if got < PAGE_SIZE:
            mem[pa + got : pa + PAGE_SIZE] = bytes(PAGE_SIZE - got)
        m.dirty = 0
    else:
        _pagein_rest(vm, vp, m, off, want)
    m.valid = VM_PAGE_BITS_ALL


def _pagein_rest(vm: VmSystem, vp: VmVnode, m: VmPage, off: int, want: int) -> None:
    """Fill the chunks of a page that are not valid, leaving the others, which are newer."""
    data = bytearray(PAGE_SIZE)
    vp.vop_getpage(off, memoryview(data)[:want])
    for base in range(0, PAGE_SIZE, DEV_BSIZE):
        if not m.valid >> (base >> DEV_BSHIFT) & 1:
            pa = m.phys_addr + base
            vm.ram.mem[pa : pa + DEV_BSIZE] = data[base : base + DEV_BSIZE]


def _read_around(object: VmObject, vp: VmVnode, pindex: int, seqaccess: int) -> None:
    """Page `pindex` had to be read: read what will probably be wanted next. In sequence (we are
    told so, the page before is there, or the file begins here) that is a run of pages ahead;
    else the aligned cluster the page is in, as a file system's block would bring it."""
    cnt = object.vm.gd.gd_cnt
    cnt.v_vnodein += 1
    cnt.v_vnodepgsin += 1
    if seqaccess == 0:
        return
    if seqaccess > 0 or pindex == 0 or pindex - 1 in object.rb_memq:
        _read_ahead(object, vp, pindex + 1, pindex + _RUN)
        return
    first = pindex & -_CLUSTER
    start = pindex
    while start > first and start - 1 not in object.rb_memq:
        start -= 1
    if _read_run(object, vp, start, pindex) is not None or start == pindex:
        _read_run(object, vp, pindex + 1, first + _CLUSTER)


def _read_ahead(object: VmObject, vp: VmVnode, start: int, end: int) -> None:
    """Read a run and mark its last page, so that touching that reads the next run."""
    last = _read_run(object, vp, start, end)
    if last is not None:
        last.flags |= PG_RAM


def _read_run(object: VmObject, vp: VmVnode, start: int, end: int) -> VmPage | None:
    """Read pages from `start` up to `end`, as far as none is resident, the file goes, and memory
    is not short. They go to the inactive queue. Returns the last one read; an error ends the run
    without a word, as nobody has asked for these pages yet. May block."""
    vm = object.vm
    count = min(end, object.size) - start
    if count <= 0 or vm_paging_wait(vm):
        return None
    run = vm_page_alloc_run(object, start, count, VM_ALLOC_QUICK)
    good = 0
    try:
        for m in run:
            _pagein(object, vp, m)
            good += 1
    except OSError:
        for m in run[good:]:
            vm_page_free(vm, m)
        del run[good:]
    if not run:
        return None
    vm.gd.gd_cnt.v_vnodepgsin += good
    vm_page_queue_run(vm, run, PQ_INACTIVE)
    return run[-1]


def vnode_pager_readpage(object: VmObject, pindex: int, count: int = 1) -> VmPage:
    """Page `pindex` of a file, valid and held (vm_page_unhold gives it back), for read(2), which
    is going to want `count` pages from here. The caller has a reference on the vnode. A held page
    keeps its bytes even when it is truncated away meanwhile. May block if the page is not
    resident, or busy: the file may be shorter then, so the caller compares with v_filesize now.

    :raises OSError: EIO or what the storage says; EIO also beyond the end of the file, where the
        page can also have come to lie while we slept. ENOMEM if the process is being killed to free
        memory.
    """
    m = object.rb_memq.get(pindex)
    if (
        m is None
        or m.busy_count & PBUSY_LOCKED
        or m.valid != VM_PAGE_BITS_ALL
        or m.flags & PG_RAM
        or PQ_CACHE <= m.queue < PQ_HOLD
    ):
        return _readpage_slow(object, pindex, count)
    m.flags |= PG_REFERENCED
    m.hold_count += 1
    return m


def _readpage_slow(object: VmObject, pindex: int, count: int) -> VmPage:
    """The page is not there, or something has to be done about it. Returns it valid, held, and not
    busied."""
    vm = object.vm
    vm_object_hold(object)
    try:
        while True:
            vp = object.handle
            if vp is None or pindex >= object.size:
                raise OSError(EIO, strerror(EIO))
            m, busy = vm_page_lookup_busy_try(object, pindex, False)
            if m is None:
                m = vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL | VM_ALLOC_NULL_OK)
                if m is not None:
                    break
                if not vm_wait(vm, 0):
                    raise vm_no_memory()
            elif not busy:
                break
            else:
                vm_page_sleep_busy(vm, m, False, "vnread")
        ahead = m.flags & PG_RAM
        m.flags &= ~PG_RAM
        if m.valid != VM_PAGE_BITS_ALL:
            try:
                _pagein(object, vp, m)
            except OSError:
                if m.valid == 0 and m.wire_count == 0:
                    vm_page_free(vm, m)
                else:
                    vm_page_wakeup(vm, m)
                raise
            cnt = vm.gd.gd_cnt
            cnt.v_vnodein += 1
            cnt.v_vnodepgsin += 1
            ahead = 1
        # Keep the page while its neighbours are read: that may take memory, or sleep. It may be
        # truncated away then, and is ours to read but not to change from the wakeup on.
        m.hold_count += 1
        m.flags |= PG_REFERENCED
        vm_page_deactivate(vm, m)
        vm_page_wakeup(vm, m)
        if ahead:
            if pindex == 0 or pindex - 1 in object.rb_memq:
                _read_ahead(object, vp, pindex + 1, pindex + max(_RUN, count))
            else:
                _read_run(object, vp, pindex + 1, pindex + count)
        return m
    finally:
        vm_object_drop(object)


# --- Writing -----------------------------------------------------------------------------------


def vnode_pager_writepage(object: VmObject, pindex: int, base: int, size: int) -> VmPage:
    """Page `pindex` of a file, valid and held, for write(2) to overwrite `size` bytes from byte
    `base` of it. vnode_pager_setsize has made the file long enough. The caller copies, calls
    vnode_pager_wrote for what it has copied, and vm_page_unhold. May block.

    The page is read even where all of it is to be overwritten: the copy from the user may fault
    and end half way, and what it has not reached must be the file's."""
    if pindex >= object.size or not 0 <= base < base + size <= PAGE_SIZE:
        panic(f"vnode_pager_writepage: {size} bytes at {base} of page {pindex} of {object!r}")
    return vnode_pager_readpage(object, pindex)


def vnode_pager_wrote(m: VmPage, base: int, size: int) -> None:
    """`size` bytes from byte `base` of page `m`, held, have been overwritten. If the page has been
    truncated away meanwhile there is nothing to remember. Does not block."""
    object = m.object
    if object is None or size == 0:
        return
    m.dirty |= (1 << ((base + size + _CHUNK_MASK) >> DEV_BSHIFT)) - (1 << (base >> DEV_BSHIFT))
    object.flags |= OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
    object.vm.mmu.code_written(m.phys_addr >> PAGE_SHIFT)


def _pageout(object: VmObject, vp: VmVnode, m: VmPage) -> int:
    """Write the runs of dirty chunks of `m`. Returns VM_PAGER_*."""
    off = m.pindex << PAGE_SHIFT
    left = vp.v_filesize - off
    if left <= 0:
        return VM_PAGER_BAD
    # A write(2) may come in between, if the storage blocks, and must not be forgotten.
    bits = m.dirty & m.valid
    m.dirty &= ~bits
    mem = object.vm.ram.mem
    pa = m.phys_addr
    if left < PAGE_SIZE:
        # What a mapping has written behind the end never was the file's: a clean page ends in
        # zeros, as it would when it was read again.
        mem[pa + left : pa + PAGE_SIZE] = bytes(PAGE_SIZE - left)
        object.vm.mmu.code_written(pa >> PAGE_SHIFT)
    try:
        base = 0
        while bits >> (base >> DEV_BSHIFT):
            if not bits >> (base >> DEV_BSHIFT) & 1:
                base += DEV_BSIZE
                continue
            end = base
            while bits >> (end >> DEV_BSHIFT) & 1:
                end += DEV_BSIZE
            if base < left:
                vp.vop_putpage(off + base, mem[pa + base : pa + min(end, left)])
            base = end
    except OSError:
        m.dirty |= bits
        return VM_PAGER_ERROR
    return VM_PAGER_OK
