"""Allocating and freeing pages.

vm_page_alloc is on the path of every first touch of memory and is written for speed: the common
case (memory is not short, the wanted colour has a page) is one straight line; what is left goes to
_alloc_slow.

Which colour? Each CPU has its slice of the 1024 colours; within it, neighbours in an object get
neighbouring colours, so that they do not contend for the same lines of a physically indexed
cache. Pages of no object have no neighbours and take the colours in turn.

A page is allocated hard-busied and off all queues. What VmPage fields a free page has is fixed, so
that allocation need not set them: no object, valid, dirty, flags and counts 0.

Source: DragonFly sys/vm/vm_page.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.vm.vm import VM_MEMATTR_DEFAULT, VM_PROT_NONE
from dfvm.vm.vm_meter import VMSTATS_ADJ_LIMIT, vmstats_rollup
from dfvm.vm.vm_object import vm_object_drop, vm_object_hold
from dfvm.vm.vm_page_busy import vm_page_busy_try, vm_page_sleep_busy, vm_page_wakeup
from dfvm.vm.vm_page_paging import (
    vm_page_count_wired,
    vm_page_deactivate,
    vm_page_protect,
)
from dfvm.vm.vm_page_queue import (
    ACT_INIT,
    PBUSY_LOCKED,
    PBUSY_WANTED,
    PG_FICTITIOUS,
    PG_MAPPED,
    PG_NEED_COMMIT,
    PG_UNQUEUED,
    PG_WRITEABLE,
    PQ_ACTIVE,
    PQ_CACHE,
    PQ_FREE,
    PQ_HOLD,
    PQ_L2_MASK,
    PQ_L2_SHIFT,
    PQ_NONE,
    VM_PAGE_BITS_ALL,
    VmPage,
    vm_page_add_queue,
    vm_page_list_find,
    vm_page_rem_queue,
)
from dfvm.vm.vm_page_valid import vm_page_test_dirty
from dfvm.vm.vm_page_wait import vm_page_free_wakeup, vm_wait
from dfvm.vm.vm_param import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_object import VmObject

# page_req: how far down the free queue may go (at least one of the first four and QUICK), and
# what else is wanted.
VM_ALLOC_NORMAL: Final = 0x0001  # down to v_free_reserved, then clean pages of the cache queue
VM_ALLOC_SYSTEM: Final = 0x0002  # down to v_interrupt_free_min
VM_ALLOC_INTERRUPT: Final = 0x0004  # down to the last page
VM_ALLOC_ZERO: Final = 0x0008  # the memory reads as zero
VM_ALLOC_QUICK: Final = 0x0010  # like NORMAL without the cache queue
VM_ALLOC_FORCE_ZERO: Final = 0x0020  # vm_page_grab: zero the page even if it was valid
VM_ALLOC_NULL_OK: Final = 0x0040  # there is a page already: return None instead of a panic
VM_ALLOC_RETRY: Final = 0x0080  # vm_page_grab: wait as long as it takes
VM_ALLOC_USE_GD: Final = 0x0100  # a colour of the CPU that runs (what happens without it, too)
VM_ALLOC_CPU_SPEC: Final = 0x0200  # a colour of the CPU that VM_ALLOC_CPU names
VM_ALLOC_CPU_SHIFT: Final = 16

_ALLOC_CLASSES: Final = VM_ALLOC_NORMAL | VM_ALLOC_SYSTEM | VM_ALLOC_INTERRUPT | VM_ALLOC_QUICK
_ZERO: Final = VM_ALLOC_ZERO | VM_ALLOC_FORCE_ZERO
_ZEROS: Final = bytes(PAGE_SIZE)


def VM_ALLOC_CPU(n: int) -> int:
    """page_req bits for a page whose colour is in the slice of CPU `n`."""
    return n << VM_ALLOC_CPU_SHIFT | VM_ALLOC_CPU_SPEC


# -- allocation -------------------------------------------------------------------------------


def vm_page_alloc(
    vm: VmSystem, object: VmObject | None, pindex: int, page_req: int
) -> VmPage | None:
    """Allocate a page, hard-busied and on no queue, and enter it in `object` at `pindex`. With no
    object m.pindex is for the caller to use. None when memory is short (the caller may
    vm_wait), or with NULL_OK when the object has a page there. VM_ALLOC_ZERO zeroes the memory;
    m.valid is 0 all the same. The object is held; does not block."""
    pages = vm.pages
    if object is not None:
        if pindex in object.rb_memq:
            if page_req & VM_ALLOC_NULL_OK:
                return None
            panic(f"vm_page_alloc: page {pindex} of {object} exists")
        color = pindex + object.pg_color
    else:
        color = pages.rover = pages.rover + 1
    gd = vm.gd
    span = pages.cpu_colors
    cpuid = page_req >> VM_ALLOC_CPU_SHIFT if page_req & VM_ALLOC_CPU_SPEC else gd.gd_cpuid
    color = (cpuid * span + color % span) & PQ_L2_MASK

    own = gd.gd_vmstats
    free = own.v_free_count
    q = pages.vm_page_queues[PQ_FREE + color]
    array = pages.vm_page_array
    if free <= own.v_free_reserved:
        return _alloc_slow(vm, object, pindex, color, page_req)
    if q is not None and q.lcnt:
        m = q.pq_next
        after = m.pq_next
        q.pq_next = after
        after.pq_prev = q
        q.lcnt -= 1
        m.queue = PQ_NONE
        m.busy_count = PBUSY_LOCKED
        m.object = object
        m.pindex = pindex
        pa = m.phys_addr
        if pa >> PAGE_SHIFT in vm.mmu.code_frames:
            _code_reused(vm)
        if page_req & _ZERO:
            vm.ram.mem[pa : pa + PAGE_SIZE] = _ZEROS
    else:
        b = pages.next_block[color]
        n = b << PQ_L2_SHIFT | ((color ^ b ^ b >> PQ_L2_SHIFT) & PQ_L2_MASK)
        if n >= len(array):
            if n >= pages.npages:
                return _alloc_slow(vm, object, pindex, color, page_req)
            pages.grow(n)
        pages.next_block[color] = b + 1
        m = array[n] = VmPage(n << PAGE_SHIFT, color, object, pindex)
        if page_req & _ZERO:
            gd.gd_cnt.v_ozfod += 1
    own.v_free_count = free - 1
    adj = gd.gd_vmstats_adj
    left = adj.v_free_count = adj.v_free_count - 1
    if left < -VMSTATS_ADJ_LIMIT:
        vmstats_rollup(vm)
    if object is not None:
        object.rb_memq[pindex] = m
        object.resident_page_count += 1
        object.generation += 1
    return m


def _alloc_slow(
    vm: VmSystem, object: VmObject | None, pindex: int, color: int, page_req: int
) -> VmPage | None:
    """The rest of vm_page_alloc: memory is short, or the colour has no page."""
    if not page_req & _ALLOC_CLASSES:
        panic(f"vm_page_alloc: no allocation class: {page_req:#x}")
    while not _may_take_free(vm, page_req):
        # A clean page of the cache queue becomes a free one, so that the counts stay what they
        # would be if paging had freed it in time.
        if not page_req & VM_ALLOC_NORMAL:
            return None
        cached = vm_page_select_cache(vm, color)
        if cached is None:
            return None
        vm_page_free(vm, cached)
    m = vm_page_list_find(vm, PQ_FREE, color)
    if m is None:
        panic(f"vm_page_alloc: {vm.gd.gd_vmstats.v_free_count} free pages are on no queue")
    m.busy_count = PBUSY_LOCKED
    m.object = object
    m.pindex = pindex
    if m.phys_addr >> PAGE_SHIFT in vm.mmu.code_frames:
        _code_reused(vm)
    if page_req & _ZERO:
        vm.ram.zero(m.phys_addr)
    if object is not None:
        object.rb_memq[pindex] = m
        object.resident_page_count += 1
        object.generation += 1
    return m


def _code_reused(vm: VmSystem) -> None:
    """A frame is given out that may have translated code. All translated code goes then, and with
    it that of the other frames that are mapped nowhere: a program that leaves many behind costs
    one flush."""
    array = vm.pages.vm_page_array
    unmapped = []
    for pfn in vm.mmu.code_frames:
        m = array[pfn] if pfn < len(array) else None
        if m is not None and not m.flags & PG_MAPPED:
            unmapped.append(pfn)
    vm.mmu.code_reused(unmapped)


def _may_take_free(vm: VmSystem, page_req: int) -> bool:
    """Whether an allocation of that class may take a page from the free queue now. SYSTEM digs
    below the reserve only when the cache queue can't help, if NORMAL allows it to."""
    own = vm.gd.gd_vmstats
    free = own.v_free_count
    if free > own.v_free_reserved:
        return True
    if page_req & VM_ALLOC_INTERRUPT and free > 0:
        return True
    return (
        page_req & VM_ALLOC_SYSTEM != 0
        and free > own.v_interrupt_free_min
        and not (page_req & VM_ALLOC_NORMAL and own.v_cache_count)
    )


def vm_page_select_cache(vm: VmSystem, color: int) -> VmPage | None:
    """Take a page from the cache queue and hard-busy it, near `color` if possible. Pages that
    turn out to be in use or dirty are deactivated. None when the queue is empty. Does not
    block."""
    while True:
        m = vm_page_list_find(vm, PQ_CACHE, color)
        if m is None:
            return None
        if vm_page_busy_try(vm, m, True):
            vm_page_deactivate(vm, m)
            continue
        if not (
            m.flags & (PG_UNQUEUED | PG_NEED_COMMIT)
            or m.hold_count
            or m.wire_count
            or m.dirty & m.valid
        ):
            return m
        vm_page_deactivate(vm, m)
        vm_page_wakeup(vm, m)


def vm_page_alloc_run(
    object: VmObject, pindex: int, n: int, page_req: int, active: bool = False, flags: int = 0
) -> list[VmPage]:
    """Allocate pages for `pindex` … `pindex` + n - 1, each as vm_page_alloc would, for less. The
    run ends early at the first index that has a page, and where memory gets short: a run never
    goes below v_free_reserved.

    `active`: the pages are not busied but ready for use: valid, active, with `flags`. This is for
    memory that is right as it comes, which is to say zeroed; it is what a fault on anonymous memory
    takes most of its time for, and that is why queues, counts and the page itself are dealt with in
    place: each call here would be paid for by every page.

    The object is held; does not block."""
    vm = object.vm
    pages = vm.pages
    gd = vm.gd
    own = gd.gd_vmstats
    memq = object.rb_memq
    span = pages.cpu_colors
    slice_base = gd.gd_cpuid * span
    pg_color = object.pg_color
    queues = pages.vm_page_queues
    next_block = pages.next_block
    array = pages.vm_page_array
    code_frames = vm.mmu.code_frames
    zero = page_req & _ZERO
    mem = vm.ram.mem
    new = VmPage.__new__
    if active:
        busy, act_count, valid = 0, ACT_INIT, VM_PAGE_BITS_ALL
    else:
        busy, act_count, valid = PBUSY_LOCKED, 0, 0
    fresh = 0  # frames that were never used
    counted = 0  # pages that the counts have already
    run: list[VmPage] = []
    limit = own.v_free_count - own.v_free_reserved
    for i in range(pindex, pindex + (n if n < limit else limit)):
        if i in memq:
            break
        color = slice_base + (i + pg_color) % span
        q = queues[PQ_FREE + color]
        if q is not None and q.lcnt:
            m = q.pq_next
            after = m.pq_next
            q.pq_next = after
            after.pq_prev = q
            q.lcnt -= 1
            pa = m.phys_addr
            if pa >> PAGE_SHIFT in code_frames:
                _code_reused(vm)
            if zero:
                mem[pa : pa + PAGE_SIZE] = _ZEROS
        else:
            b = next_block[color]
            frame = b << PQ_L2_SHIFT | ((color ^ b ^ b >> PQ_L2_SHIFT) & PQ_L2_MASK)
            if frame >= len(array):
                if frame >= pages.npages:  # this colour is used up: search wider
                    single = vm_page_alloc(vm, object, i, page_req)
                    if single is None:
                        break
                    if active:
                        single.valid = valid
                        single.flags = flags
                        single.act_count = act_count
                        single.busy_count = 0
                        vm_page_add_queue(vm, single, PQ_ACTIVE)
                    run.append(single)
                    counted += 1
                    continue
                pages.grow(frame)
            next_block[color] = b + 1
            # VmPage(), in place: the call alone costs as much as all that it would do.
            m = array[frame] = new(VmPage)
            m.phys_addr = frame << PAGE_SHIFT
            m.pc = color
            m.dirty = m.wire_count = m.hold_count = 0
            m.pat_mode = VM_MEMATTR_DEFAULT
            fresh += 1
        m.object = object
        m.pindex = i
        m.busy_count = busy
        m.act_count = act_count
        m.valid = valid
        m.flags = flags
        if active:
            queue = m.queue = PQ_ACTIVE + color
            q = queues[queue]
            if q is None:
                q = pages.queue(queue)
            q.lcnt += 1
            before = q.pq_prev
            m.pq_prev = before
            m.pq_next = q
            before.pq_next = m
            q.pq_prev = m
        else:
            m.queue = PQ_NONE
        memq[i] = m
        run.append(m)
    got = len(run) - counted
    if got:
        if zero:
            gd.gd_cnt.v_ozfod += fresh
        object.resident_page_count += got
        object.generation += 1
        own.v_free_count -= got
        adj = gd.gd_vmstats_adj
        adj.v_free_count -= got
        queued = 0
        if active:
            own.v_active_count += got
            queued = adj.v_active_count = adj.v_active_count + got
        if adj.v_free_count < -VMSTATS_ADJ_LIMIT or queued > VMSTATS_ADJ_LIMIT:
            vmstats_rollup(vm)
    return run


# -- freeing ----------------------------------------------------------------------------------


def vm_page_free(vm: VmSystem, m: VmPage) -> None:
    """Free `m`: it is unmapped, leaves its object and its queue, and goes to the free queue, or
    to PQ_HOLD as long as it is held. The page is hard-busied and not wired; who waits for it, or
    for memory, is woken. Does not block."""
    busy = m.busy_count
    if busy & ~PBUSY_WANTED != PBUSY_LOCKED:
        panic(f"vm_page_free: page not busy, or soft-busied: {m}")
    if m.flags & (PG_MAPPED | PG_WRITEABLE):
        vm_page_protect(vm, m, VM_PROT_NONE)
    object = m.object
    if object is not None:
        del object.rb_memq[m.pindex]
        object.resident_page_count -= 1
        object.generation += 1
        m.object = None
    if m.queue:
        vm_page_rem_queue(vm, m)
    gd = vm.gd
    gd.gd_cnt.v_tfree += 1
    if m.flags & PG_FICTITIOUS:
        vm_page_wakeup(vm, m)
        return
    if m.wire_count:
        panic(f"vm_page_free: page wired: {m}")
    m.valid = 0
    m.dirty = 0
    m.flags = 0
    m.act_count = 0
    m.pat_mode = VM_MEMATTR_DEFAULT
    m.busy_count = 0
    if m.hold_count:
        vm_page_add_queue(vm, m, PQ_HOLD)
    else:
        pages = vm.pages
        queue = PQ_FREE + m.pc
        q = pages.vm_page_queues[queue]
        if q is None:
            q = pages.queue(queue)
        m.queue = queue
        after = q.pq_next
        m.pq_prev = q
        m.pq_next = after
        q.pq_next = m
        after.pq_prev = m
        q.lcnt += 1
        if q.lcnt == 1:
            pages.colors[PQ_FREE] |= 1 << m.pc
        gd.gd_vmstats.v_free_count += 1
        adj = gd.gd_vmstats_adj
        n = adj.v_free_count = adj.v_free_count + 1
        if n > VMSTATS_ADJ_LIMIT:
            vmstats_rollup(vm)
    if busy & PBUSY_WANTED:
        vm.sched.wakeup(m)
    if vm.pages.pages_waiting:
        vm_page_free_wakeup(vm)


def vm_page_try_to_free(vm: VmSystem, m: VmPage) -> bool:
    """Free `m` if it is clean and nobody has a claim on it. The page is not busied by the caller.
    True if it is free now. Does not block."""
    if vm_page_busy_try(vm, m, True):
        return False
    if not (
        m.dirty
        or m.hold_count
        or m.wire_count
        or m.flags & (PG_UNQUEUED | PG_NEED_COMMIT)
        or m.queue - m.pc in (PQ_FREE, PQ_HOLD)
    ):
        vm_page_test_dirty(vm, m)
        if not m.dirty:
            vm_page_protect(vm, m, VM_PROT_NONE)
            if not m.dirty:  # unmapping brings M bits along, too
                vm_page_free(vm, m)
                return True
    vm_page_wakeup(vm, m)
    return False


def vm_page_alloczwq(vm: VmSystem, pindex: int, page_req: int) -> VmPage | None:
    """Allocate a page that belongs to no object, wired and not busy, with `pindex` for the caller
    to use. VM_ALLOC_ZERO zeroes it. None when memory is short. Does not block."""
    m = vm_page_alloc(vm, None, pindex, page_req)
    if m is not None:
        # vm_page_wire and vm_page_wakeup: it is on no queue, and nobody can have found it.
        m.wire_count = 1
        vm_page_count_wired(vm, 1)
        m.busy_count = 0
    return m


def vm_page_freezwq(vm: VmSystem, m: VmPage) -> None:
    """Free a page that vm_page_alloczwq made. Does not block."""
    if m.busy_count or m.wire_count != 1:
        panic(f"vm_page_freezwq: page in use: {m}")
    m.busy_count = PBUSY_LOCKED
    m.wire_count = 0
    vm_page_count_wired(vm, -1)
    vm_page_free(vm, m)
    # The next one that belongs to no object takes this frame, which is in the host's cache.
    vm.pages.rover = m.pc - 1


def vm_page_grab(object: VmObject, pindex: int, page_req: int) -> VmPage | None:
    """The page of `object` at `pindex`, hard-busied, allocated if there is none. It may be
    anything but hard-busied before and on any queue after. ZERO: a page that is not valid is
    zeroed and made valid. FORCE_ZERO: every page is. None if memory is short, or if it had to
    wait for a busy page, and RETRY was not given; or if the process is being killed for memory.
    No requirements; may block."""
    vm = object.vm
    vm_object_hold(object)
    try:
        while True:
            m = object.rb_memq.get(pindex)
            if m is None:
                m = vm_page_alloc(vm, object, pindex, page_req | VM_ALLOC_NULL_OK)
                if m is not None:
                    if page_req & _ZERO:
                        m.valid = VM_PAGE_BITS_ALL
                    return m
                if not vm_wait(vm, 0):
                    return None
            elif not vm_page_busy_try(vm, m, True):
                break
            else:
                vm_page_sleep_busy(vm, m, True, "pgrbwt")
            if not page_req & VM_ALLOC_RETRY:
                return None
    finally:
        vm_object_drop(object)
    if page_req & VM_ALLOC_FORCE_ZERO or (page_req & VM_ALLOC_ZERO and not m.valid):
        vm.mmu.code_written(m.phys_addr >> PAGE_SHIFT)
        vm.ram.zero(m.phys_addr)
        m.valid = VM_PAGE_BITS_ALL
    return m
