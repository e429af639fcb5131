"""VM objects: what memory holds, apart from where anybody sees it.

An object is a numbered sequence of pages, some of them resident, the others with its pager (a file,
swap) or nowhere yet. Maps show objects through vm_map_backing elements; a page belongs to exactly
one object. This module makes objects, counts who owns and who looks at them, takes them down, and
does what is done to ranges of their pages: clean, remove, advise. It is called by the maps, the
fault code, the pagers and the vnode layer.

Import order: almost everything in vm/ imports this module. So what of the page code is built on it
(and pmap and the pagers on that) is imported only where pages are walked.

Counts, and what each of them keeps from happening:

    ref_count           ownership. 1 → 0 takes an anonymous object down; a vnode's object stays,
                        as the file's cache, until the vnode is reclaimed
    hold_count          somebody looks: the structure stays what it is, dead or not
    paging_in_progress  I/O on its pages: terminate and the vnode pager wait for 0

Source: DragonFly sys/vm/vm_object.c, sys/vm/vm_object.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.kern_lock import Lock
from dfvm.lwkt.lwkt_token import (
    Token,
    lwkt_gettoken,
    lwkt_gettoken_shared,
    lwkt_reltoken,
)
from dfvm.lwkt.panic import panic
from dfvm.vm.vm import VM_MEMATTR_DEFAULT, VM_PROT_NONE, VM_PROT_READ
from dfvm.vm.vm_page_busy import vm_page_busy_try, vm_page_wakeup
from dfvm.vm.vm_page_queue import (
    PBUSY_LOCKED,
    PBUSY_MASK,
    PG_CLEANCHK,
    PG_FICTITIOUS,
    PG_MAPPED,
    PG_MAPPEDMULTI,
    PG_NEED_COMMIT,
    PG_NOSYNC,
    PG_UNQUEUED,
    PG_WRITEABLE,
    PQ_L2_MASK,
    PQ_PRIME2,
    VM_PAGE_BITS_ALL,
)
from dfvm.vm.vm_param import PAGE_SHIFT, VM_MAX_KERNEL_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMapBacking
    from dfvm.vm.vm_object_shown import ShownIndex
    from dfvm.vm.vm_page_queue import VmPage
    from dfvm.vm.vm_shm import VmShm
    from dfvm.vm.vm_vnode import VmVnode

# VmObject.type
OBJT_DEFAULT: Final = 0  # anonymous memory that has never been paged out
OBJT_SWAP: Final = 1  # anonymous memory with swap blocks
OBJT_VNODE: Final = 2  # the contents of a file
OBJT_DEVICE: Final = 3  # device memory
OBJT_MGTDEVICE: Final = 4  # device memory whose pages the device manages
OBJT_PHYS: Final = 5  # wired memory of the kernel's, never paged
OBJT_DEAD: Final = 6  # its pager has let go of it
OBJT_MARKER: Final = 7  # a scan's place in a list of objects

OBJT_NAMES: Final = ("default", "swap", "vnode", "device", "mgtdevice", "phys", "dead", "marker")

# VmObject.flags
OBJ_ACTIVE: Final = 0x0004
OBJ_DEAD: Final = 0x0008  # being taken down, or gone
OBJ_NOSPLIT: Final = 0x0010  # never clip its pages away with a part of a mapping
OBJ_NOPAGEIN: Final = 0x0040  # has swap blocks and never pages
OBJ_WRITEABLE: Final = 0x0080  # some mapping of it may be writable
OBJ_MIGHTBEDIRTY: Final = 0x0100  # some page may be dirty: cleaning has to look
OBJ_CLEANING: Final = 0x0200  # vm_object_page_clean is at work
OBJ_DEADWNT: Final = 0x1000  # somebody waits for it to be gone
OBJ_ONEMAPPING: Final = 0x2000  # no page index is mapped by more than one map entry
OBJ_NOMSYNC: Final = 0x4000  # msync leaves it alone

# vm_object_page_clean
OBJPC_SYNC: Final = 0x0001  # wait for the writes (no pager of ours does otherwise)
OBJPC_INVAL: Final = 0x0002  # the caller is going to throw the pages away
OBJPC_NOSYNC: Final = 0x0004  # leave pages with PG_NOSYNC dirty
OBJPC_TRY_TO_CACHE: Final = 0x0020  # what is clean afterwards goes to the cache queue

# Advice for vm_object_madvise (sys/mman.h). The map knows more kinds.
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_FREE: Final = 5

VMOBJ_HSIZE: Final = 256  # buckets of vm.object_hash
VMOBJ_HMASK: Final = VMOBJ_HSIZE - 1

_BUSY: Final = PBUSY_LOCKED | PBUSY_MASK  # hard- or soft-busied
_UNMAPPED: Final = ~(PG_MAPPED | PG_MAPPEDMULTI | PG_WRITEABLE)
_FLUSH_MAX: Final = 32  # pages that one call to a pager writes, and their alignment


class VmObject:
    """A sequence of pages.

    Source: DragonFly sys/vm/vm_object.h, struct vm_object. Unless something else is said an
    attribute is changed by whoever holds the object (vm_object_hold), which is also its token.
    """

    __slots__ = ("_backing_lk", "_token", "backing_list", "flags", "generation", "handle",
                 "hold_count", "id", "memattr", "paging_in_progress", "pg_color", "rb_memq",
                 "ref_count", "resident_page_count", "shm", "shown", "size", "type",
                 "vm")  # fmt: skip

    vm: VmSystem  # the machine; never changes
    id: int  # which object this is, counted from boot: its name for people, and its hash
    type: int  # OBJT_*: which pager; DEFAULT may become SWAP, a segment's PHYS, anything DEAD
    flags: int  # OBJ_*
    size: int
    # Pages. None lies at or beyond it, but for a wired one, which is invalid then. Whoever makes an
    # object smaller lowers this first and takes the pages away then, waiting for those that are
    # busy. So who puts a page in compares with size after the last thing that could sleep; who
    # found a page busy looks it up again when he has slept, as it may have gone, and its place may
    # lie beyond the end; and who holds a page, but has not busied it, finds it invalid, or in no
    # object, when that has happened meanwhile.
    ref_count: int
    # Owners: each vm_map_backing that shows the object, and the kernel itself for its own. While
    # it is not 0, a VNODE object holds as many references on its vnode. Adding one needs one, or
    # the token, or the vnode.
    hold_count: int
    # Who looks at the structure, most of them with the token. 0 whenever no thread is inside
    # the VM.
    paging_in_progress: int  # I/O operations under way; they keep the pages and the pager there
    memattr: int  # VM_MEMATTR_* of its pages; set before the first page comes
    pg_color: int  # colour of page 0; page n prefers (pg_color + n) & 1023; never changes
    handle: VmVnode | None  # VNODE: the file, until the pager is deallocated. Else None
    rb_memq: dict[int, VmPage]
    # Resident pages by pindex; m.object is this object and m.pindex the key. Changed only by
    # vm_page_insert and vm_page_remove, with the token held and the page hard-busied.
    resident_page_count: int  # == len(rb_memq)
    generation: int  # moves on whenever rb_memq changes
    backing_list: dict[VmMapBacking, None]
    # Every vm_map_backing that shows this object, in the order in which they came: how a page
    # finds the PTEs that map it. Changed with backing_lk held, or without blocking.
    shm: VmShm | None
    # The System V segment whose memory it is, which holds a reference and is told who comes to
    # show it and who leaves; None for others, and once the segment is gone
    shown: ShownIndex | None
    # backing_list by the pages shown, once it is long and somebody has asked; protected like it
    _token: Token | None  # made when first wanted: see `token`
    _backing_lk: Lock | None  # likewise: see `backing_lk`

    def __init__(self, vm: VmSystem, type: int, size: int, id: int) -> None:
        self.vm = vm
        self.id = id
        self.type = type
        self.flags = OBJ_ONEMAPPING if type <= OBJT_SWAP else 0
        self.size = size
        self.ref_count = 1
        self.hold_count = 0
        self.paging_in_progress = 0
        self.memattr = VM_MEMATTR_DEFAULT
        self.pg_color = id * PQ_PRIME2 & PQ_L2_MASK
        self.handle = None
        self.rb_memq = {}
        self.resident_page_count = 0
        self.generation = 1
        self.backing_list = {}
        self.shm = None
        self.shown = None
        self._token = None
        self._backing_lk = None

    def __repr__(self) -> str:
        return (f"<VmObject {self.id} {OBJT_NAMES[self.type]} size={self.size}"
                f" res={self.resident_page_count} ref={self.ref_count}"
                f" flags={self.flags:#x}>")  # fmt: skip

    @property
    def token(self) -> Token:
        """Soft lock of everything here: given up while its holder sleeps."""
        token = self._token
        if token is None:
            token = self._token = Token(self.vm.sched, "vmobj")
        return token

    @property
    def backing_lk(self) -> Lock:
        """Lock of backing_list for whoever has to block in the middle of it."""
        lock = self._backing_lk
        if lock is None:
            lock = self._backing_lk = Lock(self.vm.sched, "baclk", 0)
        return lock


class VmObjectHash(list[dict[VmObject, None]]):
    """All objects of a machine, in VMOBJ_HSIZE buckets: for the checker and the tools."""

    __slots__ = ("checked", "last_id")

    last_id: int  # of the object made last
    checked: dict[VmObject, tuple[int, frozenset[tuple[int, VmPage]]]]
    # Generation and pages of each object as the checker last saw them

    def __init__(self) -> None:
        super().__init__({} for _ in range(VMOBJ_HSIZE))
        self.last_id = -1
        self.checked = {}


# --- Making objects, holding them -------------------------------------------------------------


def vm_object_init(vm: VmSystem) -> None:
    """Boot: the hash of all objects, and the kernel's own object."""
    vm.object_hash = VmObjectHash()
    vm.kernel_object = vm_object_allocate(vm, OBJT_PHYS, VM_MAX_KERNEL_ADDRESS >> PAGE_SHIFT)


def vm_object_allocate(vm: VmSystem, type: int, size: int) -> VmObject:
    """A new object of `size` pages with one reference, the caller's. Does not block."""
    hash = vm.object_hash
    assert isinstance(hash, VmObjectHash)
    hash.last_id = id = hash.last_id + 1
    object = VmObject(vm, type, size, id)
    hash[id & VMOBJ_HMASK][object] = None
    return object


def vm_object_hash(object: VmObject) -> dict[VmObject, None]:
    """The bucket of vm.object_hash that `object` belongs in."""
    return object.vm.object_hash[object.id & VMOBJ_HMASK]


def vm_object_hold(object: VmObject) -> None:
    """Look at `object` and keep others from changing it: a hold, and the token exclusively. The
    caller has a reason to believe that it exists (a reference, a page, the map's lock). Does not
    block."""
    object.hold_count += 1
    lwkt_gettoken(object._token or object.token)


def vm_object_hold_shared(object: VmObject) -> None:
    """Like vm_object_hold, with the token shared. Does not block."""
    object.hold_count += 1
    lwkt_gettoken_shared(object._token or object.token)


def vm_object_drop(object: VmObject) -> None:
    """Undo a hold. The last one to leave a dead object ends it. Does not block."""
    if object.hold_count <= 0:
        panic(f"vm_object_drop: {object!r} is not held")
    object.hold_count -= 1
    lwkt_reltoken(object.token)


def vm_object_reference_locked(object: VmObject) -> None:
    """One more owner; for a vnode's object the vnode gets one more, too. The object is held,
    shared will do. Does not block."""
    if object.flags & OBJ_DEAD:
        panic(f"vm_object_reference: {object!r} is dead")
    object.ref_count += 1
    if object.type == OBJT_VNODE:
        vp = object.handle
        assert vp is not None
        vp.vref()


def vm_object_reference_quick(object: VmObject) -> None:
    """The same where the caller owns a reference already, or the vnode: the object cannot go away
    and need not be held. Does not block."""
    if object.type == OBJT_VNODE:
        vp = object.handle
        assert vp is not None
        vp.vref()
    elif object.ref_count <= 0:
        panic(f"vm_object_reference: {object!r} has no owner")
    object.ref_count += 1


def vm_object_deallocate(object: VmObject | None) -> None:
    """Give up a reference. The last one takes an anonymous object down; a vnode's loses the
    reference on its vnode and stays. May block at the last reference."""
    if object is None:
        return
    if object.type == OBJT_VNODE:
        _vndeallocate(object)
    elif object.ref_count > 1:
        object.ref_count -= 1
    elif object.ref_count == 1:
        # A hold without the token, which keeps nobody out of an object that nobody owns.
        object.ref_count = 0
        object.hold_count += 1
        vm_object_terminate(object)
        object.hold_count -= 1
    else:
        panic(f"vm_object_deallocate: {object!r} deallocated too many times")


def _vndeallocate(object: VmObject) -> None:
    """Give up a reference on a vnode's object. vrele comes last: it may reclaim the vnode, and
    the object with it."""
    vp = object.handle
    if vp is None or object.ref_count <= 0:
        panic(f"vm_object_vndeallocate: {object!r} deallocated too many times")
    object.ref_count -= 1
    vp.vrele()


# --- I/O in progress, flags --------------------------------------------------------------------


def vm_object_pip_add(object: VmObject, count: int = 1) -> None:
    """`count` operations begin. Does not block."""
    object.paging_in_progress += count


def vm_object_pip_wakeup(object: VmObject, count: int = 1) -> None:
    """`count` operations are over. Does not block."""
    left = object.paging_in_progress - count
    if left < 0:
        panic(f"vm_object_pip_wakeup: {object!r} has no paging in progress")
    object.paging_in_progress = left
    if left == 0:
        object.vm.sched.wakeup(object)


def vm_object_pip_wait(object: VmObject, wmesg: str) -> None:
    """Sleep until no operation is under way. The token, if held, is given up meanwhile."""
    while object.paging_in_progress:
        object.vm.sched.tsleep(object, 0, wmesg)


def vm_object_set_writeable_dirty(object: VmObject) -> None:
    """A page of it has become writable or dirty: cleaning has to look from now on. Whoever calls
    has the page busied, which keeps the object; nothing else is needed. Does not block."""
    object.flags |= OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY


# --- Ranges of pages ---------------------------------------------------------------------------


def vm_object_pages(object: VmObject, start: int, end: int) -> Sequence[VmPage]:
    """The resident pages with start <= pindex < end, as they are now. Looks at the range or at
    the resident pages, whichever is the smaller set. In no particular order. Object held."""
    memq = object.rb_memq
    if end - start < len(memq):
        get = memq.get
        return [m for i in range(start, end) if (m := get(i)) is not None]
    return [m for i, m in memq.items() if start <= i < end]


def vm_object_terminate(object: VmObject) -> None:
    """Take down an object nobody owns: write a file's dirty pages, free all pages, let the pager
    go, leave the hash. The object is held, and stays so: the structure goes with the last hold.
    May block."""
    if object.flags & OBJ_DEAD:
        panic(f"vm_object_terminate: {object!r} is dead already")
    object.flags |= OBJ_DEAD
    if object.paging_in_progress:
        vm_object_pip_wait(object, "objtrm1")
    if object.type == OBJT_VNODE:
        vm_object_page_clean(object, 0, 0, OBJPC_SYNC)
        vm_object_pip_wait(object, "objtrm2")
    if object.ref_count:
        panic(f"vm_object_terminate: {object!r} has owners")
    if object.backing_list:
        panic(f"vm_object_terminate: {object!r} is still mapped")
    if object.rb_memq:
        _free_pages(object)
    if object.type != OBJT_DEFAULT:  # which has nothing stored anywhere
        from dfvm.vm.vm_pager import vm_pager_deallocate

        vm_pager_deallocate(object)
    del vm_object_hash(object)[object]


def _free_pages(object: VmObject) -> None:
    """Free the pages of a dying object. Wired ones leave it and are freed by whoever wired them.
    May block."""
    from dfvm.vm.vm_page import vm_page_free, vm_page_lookup_busy_wait, vm_page_remove

    vm = object.vm
    memq = object.rb_memq
    while memq:
        for m in list(memq.values()):
            if m.object is not object:
                continue  # went away while we slept
            if m.busy_count & _BUSY:
                busied = vm_page_lookup_busy_wait(object, m.pindex, True, "vmotrm")
                if busied is None:
                    continue
                m = busied
            else:
                m.busy_count |= PBUSY_LOCKED
            # Nothing shows the object, so no PTE of a user's maps the page: its flags are hints
            # that may have stayed set too long.
            m.flags &= _UNMAPPED
            if m.wire_count == 0:
                vm_page_free(vm, m)
            else:
                vm_page_remove(vm, m)
                vm_page_wakeup(vm, m)


def vm_object_page_remove(object: VmObject, start: int, end: int, clean_only: bool) -> None:
    """Throw away the pages from start up to end, or to the last one if end is 0. With clean_only
    dirty and held ones stay. Wired pages stay, too, but lose their mappings and (unless
    clean_only) their contents. May block."""
    if not object.rb_memq:
        return
    from dfvm.vm.vm_page import (
        vm_page_free,
        vm_page_lookup_busy_wait,
        vm_page_protect,
        vm_page_test_dirty,
    )

    vm = object.vm
    if end == 0:
        end = 1 << 63
    vm_object_hold(object)
    vm_object_pip_add(object)
    again = True
    while again:
        again = False
        for m in vm_object_pages(object, start, end):
            if m.object is not object:
                continue  # went away while we slept
            if m.busy_count & _BUSY:
                again = True
                busied = vm_page_lookup_busy_wait(object, m.pindex, True, "vmopar")
                if busied is None:
                    continue
                m = busied
            else:
                m.busy_count |= PBUSY_LOCKED
            # Whoever holds the page may be about to write to it.
            if clean_only and m.wire_count == 0 and m.valid:
                vm_page_test_dirty(vm, m)
                if m.valid & m.dirty or m.hold_count or m.flags & PG_NEED_COMMIT:
                    vm_page_wakeup(vm, m)
                    continue
            vm_page_protect(vm, m, VM_PROT_NONE)
            if m.wire_count:
                if not clean_only:
                    m.valid = m.dirty = 0
                vm_page_wakeup(vm, m)
            elif clean_only and m.valid & m.dirty:
                vm_page_wakeup(vm, m)  # unmapping brought an M bit along
            else:
                vm_page_free(vm, m)
    vm_object_pip_wakeup(object)
    vm_object_drop(object)


def vm_object_page_clean(object: VmObject, start: int, end: int, flags: int) -> int:
    """Write the dirty pages from start up to end (all if end is 0) of a vnode's object to the
    file. Returns how many could not be written; they stay dirty. May block.

    Pass 1 write-protects the pages and marks them, so that pass 2 knows what was there when we
    began: what appears, or is written to, in between is the next cleaning's. Once the whole
    object has been through both without trouble it is clean until the next write fault.

    One thread cleans an object at a time: to find it clean because somebody else has begun to
    write it is not good enough for fsync."""
    sched = object.vm.sched
    while object.flags & OBJ_CLEANING:
        sched.tsleep(object, 0, "objcln")
    if object.type != OBJT_VNODE or not object.flags & OBJ_MIGHTBEDIRTY:
        return 0
    vm_object_hold(object)
    object.flags |= OBJ_CLEANING
    whole = start == 0 and (end == 0 or end >= object.size)
    if end == 0:
        end = 1 << 63
    marked, skipped = _page_clean_pass1(object, start, end, flags)
    if whole and not skipped:
        object.flags &= ~(OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY)
    failed = _page_clean_pass2(object, marked, flags)
    if failed:
        object.flags |= OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
    object.flags &= ~OBJ_CLEANING
    sched.wakeup(object)
    vm_object_drop(object)
    return failed


def _page_clean_pass1(object: VmObject, start: int, end: int, flags: int) -> tuple[list[int], bool]:
    """Mark and write-protect. Returns what pass 2 has to look at, in order, and whether a page
    was left writable or dirty."""
    from dfvm.vm.vm_page import vm_page_protect, vm_page_test_dirty

    vm = object.vm
    marked = []
    skipped = False
    for m in vm_object_pages(object, start, end):
        if not m.dirty and not m.flags & (PG_WRITEABLE | PG_NEED_COMMIT):
            # Nothing to write, unless somebody is about to change that.
            skipped = skipped or bool(m.busy_count & PBUSY_LOCKED)
            continue
        if flags & OBJPC_NOSYNC and m.flags & PG_NOSYNC:
            skipped = True
            continue
        marked.append(m.pindex)
        m.flags |= PG_CLEANCHK
        if vm_page_busy_try(vm, m, True):
            skipped = True
            continue
        # The M bits now, not in pass 2: finding one calls the object dirty.
        vm_page_test_dirty(vm, m)
        vm_page_protect(vm, m, VM_PROT_READ)
        vm_page_wakeup(vm, m)
    marked.sort()
    return marked, skipped


def _page_clean_pass2(object: VmObject, marked: list[int], flags: int) -> int:
    """Write runs of what pass 1 has marked and is dirty. Returns how many pages failed."""
    from dfvm.vm.vm_page import vm_page_lookup_busy_wait, vm_page_test_dirty
    from dfvm.vm.vm_pager import vm_pager_flush

    vm = object.vm
    failed = 0
    run: list[VmPage] = []
    for pindex in marked:
        if run and (pindex != run[-1].pindex + 1 or pindex % _FLUSH_MAX == 0):
            failed += vm_pager_flush(object, run, flags)
            run = []
        m = object.rb_memq.get(pindex)
        if m is None or not m.flags & PG_CLEANCHK:
            continue
        if vm_page_busy_try(vm, m, True):
            # Nobody must have to wait for a page of ours while we wait for his.
            if run:
                failed += vm_pager_flush(object, run, flags)
                run = []
            m = vm_page_lookup_busy_wait(object, pindex, True, "vpcwai")
            if m is None:
                continue
        m.flags &= ~PG_CLEANCHK
        if m.valid:
            vm_page_test_dirty(vm, m)
        if m.valid & m.dirty or m.flags & PG_NEED_COMMIT:
            run.append(m)
        else:
            vm_page_wakeup(vm, m)
    if run:
        failed += vm_pager_flush(object, run, flags)
    return failed


def vm_object_madvise(object: VmObject | None, pindex: int, count: int, advise: int) -> None:
    """Advice on pages of `object`: WILLNEED activates them, DONTNEED makes them the next to go.
    FREE says that their contents don't matter any more: they become clean and idle, but stay, so
    that memory that is soon used again costs no fault. It is for anonymous memory which only one
    entry maps. Pages that are wired, not in a queue, or not wholly valid are left alone. May
    block."""
    if object is None or not object.rb_memq:
        return
    if advise == MADV_FREE and (object.type > OBJT_SWAP or not object.flags & OBJ_ONEMAPPING):
        return
    from dfvm.vm.pmap import pmap_clear_modify
    from dfvm.vm.vm_page import vm_page_activate, vm_page_dontneed, vm_page_lookup_busy_wait

    vm = object.vm
    vm_object_hold(object)
    for m in vm_object_pages(object, pindex, pindex + count):
        if m.object is not object:
            continue
        if m.busy_count & _BUSY:
            busied = vm_page_lookup_busy_wait(object, m.pindex, True, "madvpo")
            if busied is None:
                continue
            m = busied
        else:
            m.busy_count |= PBUSY_LOCKED
        if not (
            m.wire_count
            or m.flags & (PG_FICTITIOUS | PG_UNQUEUED | PG_NEED_COMMIT)
            or m.valid != VM_PAGE_BITS_ALL
        ):
            if advise == MADV_WILLNEED:
                vm_page_activate(vm, m)
            elif advise == MADV_DONTNEED:
                vm_page_dontneed(vm, m)
            elif advise == MADV_FREE:
                pmap_clear_modify(vm, m)
                m.dirty = 0
                m.act_count = 0
                vm_page_dontneed(vm, m)
        vm_page_wakeup(vm, m)
    vm_object_drop(object)


def vm_object_coalesce(
    prev_object: VmObject | None, prev_pindex: int, prev_size: int, next_size: int
) -> bool:
    """Make `prev_object`, which shows prev_size bytes from page prev_pindex on, serve the
    next_size bytes behind them, too. Only anonymous memory can, and only if nobody else may have
    something there: one owner, or the object ends where the new part begins. The caller's map
    lock keeps the object. May block."""
    if prev_object is None:
        return True
    if prev_object.type > OBJT_SWAP:
        return False
    next_pindex = prev_pindex + (prev_size >> PAGE_SHIFT)
    next_pages = next_size >> PAGE_SHIFT
    if prev_object.ref_count > 1 and prev_object.size != next_pindex:
        return False
    if next_pindex < prev_object.size:
        # What an earlier mapping has left there must not show again.
        vm_object_page_remove(prev_object, next_pindex, next_pindex + next_pages, False)
    if next_pindex + next_pages > prev_object.size:
        prev_object.size = next_pindex + next_pages
    return True
