"""Address spaces: a map with its page tables, the life they share, and their copying at fork.

A vmspace has two counts. `vm_refcnt` counts who uses it: processes, and snapshots. When the last
one goes (exit, exec) its mappings go. `vm_holdcnt` counts who may still look at the structure;
every reference is also a hold, and a process that has exited keeps one until it is reaped. When
the last hold goes the page tables and the structure go.

Source: DragonFly sys/vm/vm_map.c (vmspace_*), sys/vm/vm_map.h (struct vmspace).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.lwkt_token import lwkt_gettoken, lwkt_reltoken
from dfvm.lwkt.panic import panic
from dfvm.vm.pmap import (
    Pmap,
    pmap_copy,
    pmap_pinit,
    pmap_protect,
    pmap_release,
    pmap_remove,
)
from dfvm.vm.vm import (
    VM_INHERIT_COPY,
    VM_INHERIT_NONE,
    VM_INHERIT_SHARE,
    VM_INHERIT_ZERO,
    VM_PROT_WRITE,
)
from dfvm.vm.vm_fault import vm_fault_copy_entry
from dfvm.vm.vm_map_backing import (
    vm_map_backing_replicate,
    vm_map_entry_allocate_object,
    vm_map_entry_written,
)
from dfvm.vm.vm_map_clip import vm_map_entry_link, vm_map_transition_wait
from dfvm.vm.vm_map_collapse import (
    vm_map_collapse_chain,
    vm_map_file_tail,
    vm_map_shorten_chain,
)
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_COW,
    MAP_ENTRY_GUARD,
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_KIND_MASK,
    MAP_ENTRY_NEEDS_COPY,
    MAP_ENTRY_USER_WIRED,
    MAP_ENTRY_WIREONFAULT,
    MAP_SEALED,
    VM_MAPTYPE_NORMAL,
    VmMap,
    VmMapBacking,
    VmMapEntry,
    vm_map_lock,
    vm_map_unlock,
)
from dfvm.vm.vm_map_insert import vm_map_clear, vm_map_delete, vm_map_remove
from dfvm.vm.vm_object import OBJT_DEFAULT, OBJT_SWAP, OBJT_VNODE
from dfvm.vm.vm_page import vm_no_memory
from dfvm.vm.vm_param import VM_MAX_USER_ADDRESS, VM_MIN_USER_ADDRESS

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_proc import VmProc

# Vmspace.vm_flags
VMSPACE_EXIT1: Final = 0x0001  # the mappings are gone, or going
VMSPACE_EXIT2: Final = 0x0002  # the page tables, too

# What is shared with a child is mapped for it at once if the parent has at most so many pages
# mapped. What is copied on write is not: the child writes to it, or execs, and the copied PTEs were
# no use.
FORK_COPY_PTES: Final = 512


class Vmspace:
    """The address space of a process, or of several that share it.

    Source: DragonFly sys/vm/vm_map.h, struct vmspace.
    """

    __slots__ = ("vm_daddr", "vm_dsize", "vm_flags", "vm_holdcnt", "vm_map", "vm_maxsaddr",
                 "vm_minsaddr", "vm_pmap", "vm_refcnt", "vm_ssize", "vm_taddr",
                 "vm_tsize")  # fmt: skip

    vm_map: VmMap  # the address map; for whoever holds the vmspace
    vm_pmap: Pmap  # its page tables; until the last hold goes
    vm_flags: int  # VMSPACE_EXIT1, VMSPACE_EXIT2; map token
    vm_refcnt: int  # users; -1 from the moment the last one has gone
    vm_holdcnt: int  # lookers; >= vm_refcnt
    # Set by exec and fork, changed by the process itself:
    vm_tsize: int  # text size, bytes
    vm_dsize: int  # bytes of the data segment above vm_daddr: brk moves its end; exact, not rounded
    vm_ssize: int  # bytes of the stack that are mapped
    vm_taddr: int  # user virtual address of the text
    vm_daddr: int  # … of the data segment that brk grows: nothing below it is brk's
    vm_maxsaddr: int  # … the stack can grow down to
    vm_minsaddr: int  # … just above the stack

    def __init__(self, vm: VmSystem, min_addr: int, max_addr: int) -> None:
        self.vm_pmap = Pmap(vm)
        self.vm_map = VmMap(vm, min_addr, max_addr, self.vm_pmap)
        self.vm_flags = 0
        self.vm_refcnt = 1
        self.vm_holdcnt = 1
        self.vm_tsize = 0
        self.vm_dsize = 0
        self.vm_ssize = 0
        self.vm_taddr = 0
        self.vm_daddr = 0
        self.vm_maxsaddr = VM_MAX_USER_ADDRESS
        self.vm_minsaddr = VM_MAX_USER_ADDRESS

    def __repr__(self) -> str:
        return f"<Vmspace refs={self.vm_refcnt} holds={self.vm_holdcnt} {self.vm_map!r}>"


def vmspace_alloc(
    vm: VmSystem, min: int = VM_MIN_USER_ADDRESS, max: int = VM_MAX_USER_ADDRESS
) -> Vmspace:
    """A new, empty address space with one reference.

    :raises OSError: ENOMEM if the process is being killed to free memory. May block for memory.
    """
    vmspace = Vmspace(vm, min, max)
    if not pmap_pinit(vmspace.vm_pmap):
        raise vm_no_memory()
    return vmspace


def vmspace_getrefs(vmspace: Vmspace) -> int:
    """How many use the space; -1 when it is exiting."""
    return vmspace.vm_refcnt


def vmspace_hold(vmspace: Vmspace) -> None:
    """Look at a space and keep others from changing its soft state: a hold, and the map's
    token."""
    vmspace.vm_holdcnt += 1
    lwkt_gettoken(vmspace.vm_map.token)


def vmspace_drop(vmspace: Vmspace) -> None:
    """Undo vmspace_hold. The last hold ends the structure."""
    lwkt_reltoken(vmspace.vm_map.token)
    _drop_notoken(vmspace)


def _drop_notoken(vmspace: Vmspace) -> None:
    vmspace.vm_holdcnt -= 1
    if vmspace.vm_holdcnt == 0:
        _terminate2(vmspace)


def vmspace_ref(vmspace: Vmspace) -> None:
    """One more user. The space must have one, those that only look take holds."""
    if vmspace.vm_refcnt <= 0:
        panic(f"vmspace_ref: {vmspace!r} has no user left")
    vmspace.vm_refcnt += 1
    vmspace.vm_holdcnt += 1


def vmspace_rel(vmspace: Vmspace) -> None:
    """One user less. With the last the mappings go. May block."""
    if vmspace.vm_refcnt <= 0:
        panic(f"vmspace_rel: {vmspace!r} has no user left")
    vmspace.vm_refcnt -= 1
    if vmspace.vm_refcnt == 0:
        vmspace.vm_refcnt = -1
        _terminate1(vmspace)
    _drop_notoken(vmspace)


def vmspace_free(vmspace: Vmspace) -> None:
    """Give back a space that no process got to use: a fork or exec that failed. May block."""
    vmspace_rel(vmspace)


def vmspace_relexit(vmspace: Vmspace) -> None:
    """The process exits: it does not use the space any more, but has not been reaped. Leaves it a
    hold. May block."""
    vmspace.vm_holdcnt += 1
    vmspace_rel(vmspace)


def vmspace_exitfree(vmspace: Vmspace) -> None:
    """The process has been reaped: give up what vmspace_relexit has left it."""
    _drop_notoken(vmspace)


def _terminate1(vmspace: Vmspace) -> None:
    """The last user has gone: remove all mappings. The caller still has a hold."""
    map = vmspace.vm_map
    lwkt_gettoken(map.token)
    vmspace.vm_flags |= VMSPACE_EXIT1
    # Taking all PTEs out at once is cheaper than entry by entry. But unwiring finds the pages by
    # their PTEs, so not if something is wired.
    if vmspace.vm_pmap.pm_stats.wired_count == 0:
        pmap_remove(vmspace.vm_pmap, map.min_addr, map.max_addr)
        vm_map_lock(map)
        vm_map_clear(map)
        vm_map_unlock(map)
    else:
        vm_map_remove(map, map.min_addr, map.max_addr)
    lwkt_reltoken(map.token)


def _terminate2(vmspace: Vmspace) -> None:
    """The last hold has gone: nobody can reach the space any more."""
    if vmspace.vm_flags & (VMSPACE_EXIT1 | VMSPACE_EXIT2) != VMSPACE_EXIT1:
        panic(f"vmspace_terminate: {vmspace!r} flags {vmspace.vm_flags:#x}")
    vmspace.vm_flags |= VMSPACE_EXIT2
    map = vmspace.vm_map
    if map.first is not None:  # somebody who held the space has mapped something
        vm_map_lock(map)
        vm_map_delete(map, map.min_addr, map.max_addr)
        vm_map_unlock(map)
    pmap_release(vmspace.vm_pmap)


def vmspace_anonymous_count(vmspace: Vmspace) -> int:
    """Roughly how many resident pages of anonymous memory the space has."""
    count = 0
    vmspace_hold(vmspace)
    for entry in vmspace.vm_map:
        obj = entry.ba.object
        if obj is not None and (obj.type == OBJT_DEFAULT or obj.type == OBJT_SWAP):
            count += obj.resident_page_count
    vmspace_drop(vmspace)
    return count


def _copy_sizes(src: Vmspace, dst: Vmspace) -> None:
    dst.vm_tsize = src.vm_tsize
    dst.vm_dsize = src.vm_dsize
    dst.vm_ssize = src.vm_ssize
    dst.vm_taddr = src.vm_taddr
    dst.vm_daddr = src.vm_daddr
    dst.vm_maxsaddr = src.vm_maxsaddr
    dst.vm_minsaddr = src.vm_minsaddr


def vmspace_fork(vm1: Vmspace) -> Vmspace:
    """A new space with what `vm1`'s entries leave to a child. No page is copied, except wired
    ones.

    :raises OSError: ENOMEM if the process is being killed to free memory. May block.
    """
    old_map = vm1.vm_map
    vm2 = vmspace_alloc(old_map.vm, old_map.min_addr, old_map.max_addr)
    lwkt_gettoken(old_map.token)
    vm_map_lock(old_map)  # no fault is under way: each holds the lock from its lookup to its PTE
    while (busy := _in_transition(old_map)) is not None:
        vm_map_transition_wait(old_map, busy, relock=True)
    _copy_sizes(vm1, vm2)
    new_map = vm2.vm_map
    new_map.flags = old_map.flags & MAP_SEALED
    lwkt_gettoken(new_map.token)
    vm_map_lock(new_map)
    few_ptes = vm1.vm_pmap.pm_stats.resident_count <= FORK_COPY_PTES
    last: VmMapEntry | None = None
    ok = True
    entry = old_map.first
    while entry is not None and ok:
        if entry.inheritance != VM_INHERIT_NONE:
            if entry.inheritance == VM_INHERIT_ZERO:
                new = _fork_zero(new_map, entry)
            elif entry.wired_count and entry.inheritance == VM_INHERIT_COPY:
                ok, new = _fork_wired(old_map, new_map, entry)
            else:
                if entry.ba.backing_count:
                    vm_map_shorten_chain(old_map, entry)
                new = _fork_entry(old_map, new_map, entry)
                if few_ptes and entry.inheritance == VM_INHERIT_SHARE:
                    start, end = new.ba.start, new.ba.end
                    obj = new.ba.object
                    # Of a file each process's first store to a page is noted.
                    writable = obj is None or obj.type != OBJT_VNODE
                    pmap_copy(new_map.pmap, old_map.pmap, start, end - start, start, writable)
            vm_map_entry_link(new_map, last, new)
            new_map.size += new.ba.end - new.ba.start
            last = new
            object = entry.ba.object
            if entry.inheritance == VM_INHERIT_COPY and (
                (object is not None and object.type <= OBJT_SWAP)
                or entry.eflags & MAP_ENTRY_GUARD
                or (new.prev is not None and new.prev.forked)
            ):
                _set_forked(entry, new)
        entry = entry.next
    vm_map_unlock(new_map)
    vm_map_unlock(old_map)
    lwkt_reltoken(new_map.token)
    lwkt_reltoken(old_map.token)
    if not ok:
        vmspace_free(vm2)
        raise vm_no_memory()
    return vm2


def _in_transition(map: VmMap) -> VmMapEntry | None:
    """An entry that somebody is wiring: its pages are not all there, nor all wired."""
    entry = map.first
    while entry is not None and not entry.eflags & MAP_ENTRY_IN_TRANSITION:
        entry = entry.next
    return entry


def _set_forked(entry: VmMapEntry, new: VmMapEntry) -> None:
    """Set `forked` of `new`, which has just been linked and is the child's copy of `entry`, private
    memory; and of what lies before it, if that is another piece of the same."""
    last = new.prev
    if last is not None and last.forked and _continues(entry):
        new.forked = last.forked
    elif entry.forked or entry.eflags & MAP_ENTRY_GUARD or vm_map_entry_written(entry):
        # One piece that was written to, or has a guard, makes it so for all.
        new.forked = number = new.ba.end
        while last is not None and not last.forked and _continues(entry):
            assert entry.prev is not None
            last.forked = number
            entry, last = entry.prev, last.prev


def _continues(entry: VmMapEntry) -> bool:
    """Whether `entry` was one with what lies before it, before the VM cut it."""
    before = entry.prev
    if (
        before is None
        or before.ba.end != entry.ba.start
        or before.protection != entry.protection
        or before.inheritance != entry.inheritance
        or before.forked != entry.forked
        or (before.eflags ^ entry.eflags) & MAP_ENTRY_KIND_MASK
    ):
        return False
    lower, upper = vm_map_file_tail(before), vm_map_file_tail(entry)
    if lower is None or upper is None:
        return lower is upper
    return lower.object is upper.object


def _clone(entry: VmMapEntry, ba: VmMapBacking, eflags: int) -> VmMapEntry:
    """An entry like `entry` for the child, with chain `ba`. Wirings are not inherited."""
    new = VmMapEntry(
        ba,
        eflags & ~(MAP_ENTRY_USER_WIRED | MAP_ENTRY_WIREONFAULT),
        entry.maptype,
        entry.protection,
        entry.max_protection,
        entry.inheritance,
        entry.id,
    )
    new.avail_ssize = entry.avail_ssize
    return new


def _fork_entry(old_map: VmMap, new_map: VmMap, entry: VmMapEntry) -> VmMapEntry:
    """The child's entry: the same memory if inheritance says SHARE, else a copy that comes about
    as either side writes."""
    if entry.maptype != VM_MAPTYPE_NORMAL:
        panic(f"vmspace_fork: encountered a submap: {entry!r}")
    ba = entry.ba
    if entry.inheritance == VM_INHERIT_SHARE:
        # What they are to share must be there and be writable. A page that one of them copied
        # into a shared front object would be news to the other, who has mapped the old one: so
        # nothing may be left behind it.
        if ba.object is None:
            vm_map_entry_allocate_object(entry)
        elif ba.backing_count or entry.eflags & MAP_ENTRY_NEEDS_COPY:
            vm_map_collapse_chain(old_map, entry)
            ba = entry.ba
    elif ba.object is not None and not entry.eflags & MAP_ENTRY_NEEDS_COPY:
        if entry.protection & VM_PROT_WRITE:
            pmap_protect(old_map.pmap, ba.start, ba.end, entry.protection & ~VM_PROT_WRITE)
        entry.eflags |= MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY
    copy = vm_map_backing_replicate(ba, new_map.pmap, ba.start, ba.end, clipped=False)
    return _clone(entry, copy, entry.eflags)


def _fork_zero(new_map: VmMap, entry: VmMapEntry) -> VmMapEntry:
    """The child's entry, which has nothing of the parent's memory."""
    ba = VmMapBacking(entry.ba.start, entry.ba.end, new_map.pmap, None, 0)
    return _clone(
        entry, ba, entry.eflags & ~(MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY | MAP_ENTRY_GUARD)
    )


def _fork_wired(old_map: VmMap, new_map: VmMap, entry: VmMapEntry) -> tuple[bool, VmMapEntry]:
    """Wired memory can't become copy on write: a write would put another page in place of the
    wired one. So the child gets pages of its own at once (which are not wired). False with an entry
    that is not complete: there was no memory for it."""
    ba = VmMapBacking(entry.ba.start, entry.ba.end, new_map.pmap, None, 0)
    new = _clone(entry, ba, entry.eflags & ~(MAP_ENTRY_COW | MAP_ENTRY_NEEDS_COPY))
    ok = vm_fault_copy_entry(new_map, old_map, new, entry)
    tail = vm_map_file_tail(entry)
    if tail is not None:
        # Hidden by the copies, but it is there again when they are thrown away.
        start, end = ba.start, ba.end
        ba.backing_ba = vm_map_backing_replicate(tail, new_map.pmap, start, end, clipped=False)
        ba.backing_count = 1
        new.eflags |= MAP_ENTRY_COW
    return ok, new


def vmspace_unshare(p: VmProc) -> None:
    """If `p` shares its space with others, give it a copy of its own.

    :raises OSError: what vmspace_fork raises. May block.
    """
    old = p.p_vmspace
    if vmspace_getrefs(old) == 1:
        return
    p.p_vmspace = vmspace_fork(old)
    vmspace_rel(old)
