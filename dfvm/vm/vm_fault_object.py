"""Finding the page that a fault is about: down a backing chain, through the pagers, with copy on
write and zero-fill at the end.

    first_ba ──▶ [ first object ]    the page is here            map it
                     │ backing_ba    it is deeper, and read      map it without the right to write
                     ▼               it is deeper, and written   copy it into the first object
                 [ older object ]    it is nowhere               zero-fill it in the first object
                     │
                     ▼ …

`vm_fault_object` is the general way, which may do I/O and sleep; `vm_fault_bypass` the short one
for pages that many processes share, which takes no object and no hard busy. What surrounds them,
from the map to the PTE, is `vm_fault.py`.

Whenever a function here has slept it answers KERN_TRY_AGAIN after giving everything back: the
world may have changed, and the fault starts again from the map.

Source: DragonFly sys/vm/vm_fault.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.vm.pager import VM_PAGER_FAIL, VM_PAGER_OK
from dfvm.vm.probe import HOW_BYPASS, HOW_COW, HOW_FILE, HOW_RESIDENT, HOW_ZFOD
from dfvm.vm.vm import (
    KERN_FAILURE,
    KERN_RESOURCE_SHORTAGE,
    KERN_SUCCESS,
    KERN_TRY_AGAIN,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_BEHAV_MASK,
    MAP_ENTRY_BEHAV_RANDOM,
    MAP_ENTRY_BEHAV_SEQUENTIAL,
    MAP_ENTRY_NOSYNC,
)
from dfvm.vm.vm_map_lookup import vm_map_lookup_done
from dfvm.vm.vm_object import (
    OBJ_DEAD,
    OBJ_MIGHTBEDIRTY,
    OBJ_WRITEABLE,
    OBJT_DEFAULT,
    OBJT_PHYS,
    vm_object_drop,
    vm_object_hold,
    vm_object_hold_shared,
    vm_object_pip_add,
    vm_object_pip_wakeup,
)
from dfvm.vm.vm_page import (
    ACT_INIT,
    PBUSY_LOCKED,
    PG_MAPPEDMULTI,
    PG_NOSYNC,
    PG_RAM,
    PG_SWAPPED,
    PQ_ACTIVE,
    PQ_CACHE,
    VM_ALLOC_NORMAL,
    VM_ALLOC_NULL_OK,
    VM_ALLOC_ZERO,
    VM_PAGE_BITS_ALL,
    vm_page_activate,
    vm_page_alloc,
    vm_page_busy_try,
    vm_page_deactivate,
    vm_page_free,
    vm_page_hash_enter,
    vm_page_hash_get,
    vm_page_lookup_busy_try,
    vm_page_sbusy_drop,
    vm_page_sleep_busy,
    vm_page_unwire,
    vm_page_wakeup,
    vm_page_wire,
    vm_page_zero_invalid,
    vm_wait_pfault,
)
from dfvm.vm.vm_pager import vm_pager_get_page

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map_entry import VmMap, VmMapBacking, VmMapEntry
    from dfvm.vm.vm_page import VmPage
    from dfvm.vm.vm_vnode import VmVnode

# How vm_fault is to go about it (vm_map.h).
VM_FAULT_NORMAL: Final = 0x00
VM_FAULT_CHANGE_WIRING: Final = 0x01  # the kernel wires or unwires the page
VM_FAULT_USER_WIRE: Final = 0x02  # the user does (mlock)
VM_FAULT_BURST: Final = 0x04  # neighbours may be mapped along with it
VM_FAULT_DIRTY: Final = 0x08  # the page is about to be written: mark it dirty now
VM_FAULT_UNSWAP: Final = 0x10  # and forget its copy in swap
VM_FAULT_USERMODE: Final = 0x40  # the guest itself has faulted, in the space that is loaded
VM_FAULT_WIRE_MASK: Final = VM_FAULT_CHANGE_WIRING | VM_FAULT_USER_WIRE

_NOT_HERE: Final = -1  # of _look: go deeper; no KERN_* is negative


class FaultState:
    """What one fault holds while it is being resolved.

    `m` is the page found: hard-busied, soft-busied after the bypass. `first_m` is a page of the
    first object, hard-busied, that waits to be copied into while a deeper one is looked for.
    """

    __slots__ = ("ba", "depth", "entry", "fault_flags", "first_ba", "first_held", "first_m",
                 "first_prot", "first_shared", "hardfault", "how", "lost", "m", "map", "map_locked",
                 "pindex", "prefault", "prot", "shared", "soft", "stored", "vm",
                 "wflags", "zeroed")  # fmt: skip

    vm: VmSystem
    map: VmMap  # where the entry is: a submap, perhaps
    map_locked: bool  # the map is locked by us (shared), unlock_things gives it back
    entry: VmMapEntry | None  # None until the lookup has found one
    first_ba: VmMapBacking  # front of the chain; the entry's
    first_prot: int  # what the entry allows a mapping of the page
    first_held: bool  # the first object is held by us, unlock_things gives it back
    ba: VmMapBacking  # where we are; its object is held, with a PIP when it isn't the first
    depth: int  # how far from the front that is
    pindex: int  # of `m` in its object
    prot: int  # what the page found may be mapped with
    wflags: int  # FW_*
    fault_flags: int  # VM_FAULT_*
    first_shared: bool  # the first object is held shared: nothing may be allocated in it
    shared: bool  # the same for those behind it
    soft: bool  # m is soft-busied only
    m: VmPage | None
    first_m: VmPage | None
    lost: list[VmPage]  # pages on the way to m that are wired, and lost their contents
    zeroed: bool  # a page that was allocated in the first object is zero already
    hardfault: bool  # a pager had to read
    prefault: int  # neighbours mapped along with it
    stored: VmVnode | None  # a file that was told of the store that this is about
    how: int  # HOW_*, for the probe

    def __init__(self, map: VmMap, fault_flags: int) -> None:
        self.vm = map.vm
        self.map = map
        self.map_locked = False
        self.fault_flags = fault_flags
        self.first_held = False
        self.first_shared = self.shared = bool(map.vm.sysctl.shared_fault)
        self.soft = False
        self.m = self.first_m = None
        self.lost = []
        self.hardfault = self.zeroed = False
        self.entry = None
        self.stored = None
        self.how = self.depth = self.prefault = self.pindex = 0


def unlock_things(fs: FaultState) -> None:
    """Give back what a fault holds: the page that was to be copied into and was not, the objects,
    the map. `fs.m` is the caller's."""
    ba = fs.ba
    if ba is not fs.first_ba:
        first_m = fs.first_m
        if first_m is not None:
            # It may be wholly valid when only its read-ahead mark brought us here; and one that was
            # invalidated stays while it is wired.
            if first_m.valid == VM_PAGE_BITS_ALL or first_m.wire_count:
                vm_page_wakeup(fs.vm, first_m)
            else:
                vm_page_free(fs.vm, first_m)
            fs.first_m = None
        object = ba.object
        assert object is not None
        vm_object_pip_wakeup(object)
        vm_object_drop(object)
        fs.ba = fs.first_ba
    if fs.first_held:
        fs.first_held = False
        object = fs.first_ba.object
        assert object is not None
        vm_object_drop(object)
    if fs.map_locked:
        fs.map_locked = False
        vm_map_lookup_done(fs.map)


def vm_set_nosync(m: VmPage, entry: VmMapEntry | None) -> None:
    """A page that becomes writable takes NOSYNC from its mapping, unless it holds changes that
    somebody may rely on being written."""
    if entry is not None and entry.eflags & MAP_ENTRY_NOSYNC:
        if m.dirty == 0:
            m.flags |= PG_NOSYNC
    else:
        m.flags &= ~PG_NOSYNC


def vm_fault_bypass(fs: FaultState, pindex: int) -> bool:
    """Resolve the fault without the object, if its page is in the page hash and everything about
    it is settled: wholly valid, active, without a copy in swap, and for a mapping that may write,
    already dirty in an object that is known to be so. The page is soft-busied then."""
    object = fs.first_ba.object
    assert object is not None
    if fs.fault_flags & VM_FAULT_WIRE_MASK:
        return False  # wiring takes a hard-busied page
    m = vm_page_hash_get(object, pindex)
    if m is None:
        return False
    prot = fs.prot
    if (
        object.flags & OBJ_DEAD
        or m.valid != VM_PAGE_BITS_ALL
        or m.queue - m.pc != PQ_ACTIVE
        or m.flags & PG_SWAPPED
    ):
        vm_page_sbusy_drop(fs.vm, m)
        return False
    if prot & VM_PROT_WRITE:
        wanted = OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
        if object.flags & wanted != wanted or m.dirty != VM_PAGE_BITS_ALL:
            vm_page_sbusy_drop(fs.vm, m)
            return False
        vm_set_nosync(m, fs.entry)
    if m.act_count < ACT_INIT:
        m.act_count = ACT_INIT
    fs.soft = True
    fs.m = m
    fs.pindex = pindex
    fs.how |= HOW_BYPASS
    return True


def vm_fault_object(fs: FaultState, first_pindex: int, fault_type: int) -> int:
    """Find, read, copy or make the page at `first_pindex` of the first object, which is held.

    KERN_SUCCESS: fs.m is hard-busied and valid, fs.prot says how it may be mapped; everything is
    still held. Any other result: everything has been given back. KERN_TRY_AGAIN: it slept.
    KERN_FAILURE: there is no such page (beyond the end of a file, a read error), which is SIGBUS
    to a process. KERN_RESOURCE_SHORTAGE: the process is being killed for memory.
    """
    first_object = fs.first_ba.object
    assert first_object is not None
    vm_object_pip_add(first_object)
    fs.prot = fs.first_prot
    fs.depth = 0
    rv = _find(fs, first_pindex)
    if rv != KERN_SUCCESS:
        return rv
    vm_object_pip_wakeup(first_object)
    m = fs.m
    assert m is not None
    if not m.busy_count & PBUSY_LOCKED:
        panic(f"vm_fault_object: page {m!r} is not busy")

    if fs.ba is not fs.first_ba:
        for lost in fs.lost:
            _wire_instead(fs.vm, lost, m)
        first_m = fs.first_m
        # A wired page that lost its contents, with the end of a file, is still what is wired here.
        if fault_type & VM_PROT_WRITE or (first_m is not None and first_m.wire_count):
            m = _copy(fs, first_pindex)
        else:
            # Nobody writes to what is behind the first object.
            fs.prot &= ~VM_PROT_WRITE

    vm_page_activate(fs.vm, m)
    if fs.prot & VM_PROT_WRITE:
        object = m.object
        assert object is not None
        object.flags |= OBJ_WRITEABLE | OBJ_MIGHTBEDIRTY
        vm_set_nosync(m, fs.entry)
        if fs.fault_flags & VM_FAULT_DIRTY:
            m.dirty = VM_PAGE_BITS_ALL
            m.flags &= ~PG_SWAPPED  # the copy in swap is worth nothing any more
    if m.valid != VM_PAGE_BITS_ALL:
        vm_page_zero_invalid(fs.vm, m, True)
    if m.flags & PG_MAPPEDMULTI:
        vm_page_hash_enter(m)  # the next process may find it by the bypass
    return KERN_SUCCESS


def _give_up(fs: FaultState) -> None:
    """End a vm_fault_object that has failed or is about to sleep. The PIP goes before the sleep:
    others may wait for it (a truncation), and we for them."""
    object = fs.first_ba.object
    assert object is not None
    vm_object_pip_wakeup(object)
    unlock_things(fs)


def _find(fs: FaultState, first_pindex: int) -> int:
    """The walk down the chain: results of vm_fault_object. fs.m, fs.ba and fs.pindex say which
    page was found where; a page that is nowhere has been zero-filled at the front. On success the
    PIP of the first object is still there, else _give_up has run."""
    pindex = first_pindex
    fs.zeroed = False
    if fs.lost:
        fs.lost = []
    while True:
        rv = _look(fs, pindex)
        if rv != _NOT_HERE:
            return rv
        ba = fs.ba
        below = ba.backing_ba
        if below is None:
            _zero_fill(fs, first_pindex)
            return KERN_SUCCESS
        pindex += (below.offset >> 12) - (ba.offset >> 12)
        _descend(fs, below, pindex)


def _look(fs: FaultState, pindex: int) -> int:
    """Look for the page in the object of fs.ba, and ask its pager: results of _find, or _NOT_HERE.
    In the first object a page is then left in fs.first_m that can be copied or zeroed into."""
    vm, ba = fs.vm, fs.ba
    object = ba.object
    assert object is not None
    first = ba is fs.first_ba
    if object.flags & OBJ_DEAD:
        _give_up(fs)
        return KERN_FAILURE
    m, busy = vm_page_lookup_busy_try(object, pindex, True)
    if busy:
        _give_up(fs)
        assert m is not None
        vm_page_sleep_busy(vm, m, True, "vmpfw")
        vm.gd.gd_cnt.v_intrans += 1
        return KERN_TRY_AGAIN
    fs.m = m
    trypager = object.type != OBJT_DEFAULT
    if m is not None:
        if m.queue - m.pc == PQ_CACHE and _severe(vm):
            # It counts as free memory: reviving it takes a page as allocating one does.
            vm_page_activate(vm, m)
            vm_page_wakeup(vm, m)
            fs.m = None
            return _no_memory(fs)
        if object is vm.kernel_object or (m.valid == VM_PAGE_BITS_ALL and not m.flags & PG_RAM):
            fs.pindex = pindex
            fs.how |= HOW_RESIDENT
            return KERN_SUCCESS
        # Else it must be read, at least in part; or it is marked as the last page of a read-ahead,
        # and the pager is to go on reading.
        m.flags &= ~PG_RAM
    elif first or trypager:
        if pindex >= object.size:
            _give_up(fs)
            return KERN_FAILURE
        m = fs.m = _new_page(fs, pindex)
        if m is None:
            return _no_memory(fs)

    if trypager:
        rv = _pagein(fs, pindex)
        if rv != KERN_SUCCESS:
            return rv
        m = fs.m
    if first:
        fs.first_m = m
    elif m is not None:
        # A page that was invalidated but, being wired, could not go.
        vm_page_wakeup(vm, m)
        fs.lost.append(m)
    return _NOT_HERE


def _wire_instead(vm: VmSystem, lost: VmPage, m: VmPage) -> None:
    """All wirings of `lost`, whose contents have gone with the end of a file, are for `m` from now
    on, which shows in its place wherever it did, and is busied. They need not be ours: the entries
    that wired `lost` have no PTE for it any more, and find its place taken by `m`. Does not
    block."""
    object = lost.object
    if lost.valid or object is None or vm_page_busy_try(vm, lost, True):
        return  # whoever has it busy will fill it
    while lost.wire_count:
        vm_page_wire(vm, m)
        vm_page_unwire(vm, lost, True)
    vm_object_hold(object)
    vm_page_free(vm, lost)
    vm_object_drop(object)


def _new_page(fs: FaultState, pindex: int) -> VmPage | None:
    """A page at `pindex` of fs.ba's object, to be read, copied or zeroed into; None when memory is
    short."""
    vm, ba = fs.vm, fs.ba
    object = ba.object
    assert object is not None
    if _severe(vm):
        return None
    zero = 0  # it will be overwritten, unless it is the last resort
    if ba.backing_ba is None and object.type == OBJT_DEFAULT:
        zero = VM_ALLOC_ZERO
        fs.zeroed = True
    return vm_page_alloc(vm, object, pindex, VM_ALLOC_NORMAL | VM_ALLOC_NULL_OK | zero)


def _descend(fs: FaultState, below: VmMapBacking, pindex: int) -> None:
    """Go on with the next element of the chain: hold its object, shared where the page at `pindex`
    will not have to be put into it, and let go of the one before unless it is the first."""
    _leave(fs)
    object = below.object
    assert object is not None
    if fs.shared and (object.type == OBJT_DEFAULT or pindex in object.rb_memq):
        vm_object_hold_shared(object)
    else:
        fs.shared = False
        vm_object_hold(object)
    vm_object_pip_add(object)
    fs.ba = below
    fs.depth += 1


def _leave(fs: FaultState) -> None:
    """Let go of fs.ba's object, unless it is the first, which vm_fault_object needs to the end."""
    if fs.ba is not fs.first_ba:
        object = fs.ba.object
        assert object is not None
        vm_object_pip_wakeup(object)
        vm_object_drop(object)


def _zero_fill(fs: FaultState, first_pindex: int) -> None:
    """The end of the chain: the page waiting in the first object is the one, zeroed."""
    _leave(fs)
    fs.ba = fs.first_ba
    fs.depth = 0
    m = fs.m = fs.first_m
    assert m is not None
    fs.first_m = None
    fs.pindex = first_pindex
    vm = fs.vm
    if not fs.zeroed:
        vm.ram.zero(m.phys_addr)
    m.valid = VM_PAGE_BITS_ALL
    vm.gd.gd_cnt.v_zfod += 1
    fs.how |= HOW_ZFOD


def _severe(vm: VmSystem) -> bool:
    """Whether a fault has to wait for memory. Unlike vm_paging_severe this does not look at the
    free queue alone: where that is short, the allocator takes from the cache queue."""
    own = vm.gd.gd_vmstats
    return own.v_free_count + own.v_cache_count < own.v_free_severe


def _no_memory(fs: FaultState) -> int:
    """No page is to be had now: give up for the moment, and wait."""
    object = fs.first_ba.object
    assert object is not None
    vm_object_pip_wakeup(object)
    return vm_fault_no_memory(fs)


def vm_fault_no_memory(fs: FaultState) -> int:
    """Give everything back, wait until there is memory, and have the fault start again; unless
    somebody has to go, and it is us."""
    vm = fs.vm
    unlock_things(fs)
    proc = vm.curproc()
    if proc is None or not proc.p_lowmemkill:
        vm_wait_pfault(vm, "pfault")
    if proc is not None and proc.p_lowmemkill:
        return KERN_RESOURCE_SHORTAGE
    return KERN_TRY_AGAIN


def _pagein(fs: FaultState, pindex: int) -> int:
    """Ask the pager of fs.ba for fs.m. KERN_SUCCESS: it has none, go deeper (fs.m is None unless
    this is the first object). KERN_TRY_AGAIN: it has read the page, which will be found now; or the
    object was held shared, which it will not be next time."""
    object, m = fs.ba.object, fs.m
    assert object is not None and m is not None
    vm = fs.vm
    if fs.first_shared if fs.ba is fs.first_ba else fs.shared:
        # Reading may put more pages into the object.
        vm_page_deactivate(vm, m)
        vm_page_wakeup(vm, m)
        fs.m = None
        fs.first_shared = fs.shared = False
        _give_up(fs)
        return KERN_TRY_AGAIN
    assert fs.entry is not None
    behavior = fs.entry.eflags & MAP_ENTRY_BEHAV_MASK
    seqaccess = -1
    if behavior == MAP_ENTRY_BEHAV_RANDOM:
        seqaccess = 0
    elif behavior == MAP_ENTRY_BEHAV_SEQUENTIAL:
        seqaccess = 1
    rv, m = vm_pager_get_page(object, pindex, m, seqaccess)
    if rv == VM_PAGER_OK:
        if object.type == OBJT_PHYS:
            fs.how |= HOW_ZFOD  # which takes no I/O
        else:
            fs.hardfault = True
            fs.how |= HOW_FILE
        vm_page_activate(vm, m)
        vm_page_wakeup(vm, m)
        fs.m = None
        _give_up(fs)
        return KERN_TRY_AGAIN
    if rv == VM_PAGER_FAIL:
        if fs.ba is not fs.first_ba:
            vm_page_free(vm, m)
            m = None
        fs.m = m
        return KERN_SUCCESS
    # An I/O error, or nothing there: the page must not stay, or the next fault would find it. One
    # that is wired can't go; it is invalid and will be tried again.
    fs.m = None
    if m.wire_count:
        vm_page_wakeup(vm, m)
    else:
        vm_page_free(vm, m)
    _give_up(fs)
    return KERN_FAILURE


def _copy(fs: FaultState, first_pindex: int) -> VmPage:
    """Copy on write: fs.m, found deeper, into the first object's page, which takes its place. The
    old one stays where it is, and the objects behind are let go."""
    vm, src, m = fs.vm, fs.m, fs.first_m
    assert src is not None and m is not None
    vm.ram.copy(m.phys_addr, src.phys_addr)
    m.valid = m.dirty = VM_PAGE_BITS_ALL
    vm_page_deactivate(vm, src)
    vm_page_wakeup(vm, src)
    _leave(fs)
    fs.ba = fs.first_ba
    fs.first_m = None
    fs.m = m
    fs.pindex = first_pindex
    fs.how = fs.how & ~HOW_RESIDENT | HOW_COW
    vm.gd.gd_cnt.v_cow_faults += 1
    return m
