"""Physical pages: the structure of a frame, and the queues: free, inactive, active, cache, hold.

This is the floor of the page code. It knows frames, colours, queues and their counts; it knows
nothing of objects, busy pages or who waits for what. The other vm_page_* modules build on it; the
rest of the VM imports all of them as `vm_page.py`.

A frame that was never used has no VmPage. All that is known of it is arithmetic: block b of 1024
frames has exactly one frame of each colour, so a colour's unused frames are one cursor,

    frame(colour, b) = b * 1024 + ((colour ^ b ^ b >> 10) & 1023)

and boot costs the same for any size of RAM. Blocks are used from the bottom up, which keeps
`vm_page_array` as short as what has been used. Frame 0 is never given out, so that a physical
address of 0 can stand for none.

Source: DragonFly sys/vm/vm_page.h, sys/vm/vm_page.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.lwkt.panic import panic
from dfvm.vm.vm import VM_MEMATTR_DEFAULT
from dfvm.vm.vm_meter import VMSTATS_ADJ_LIMIT, vmstats_rollup, vmstats_set_thresholds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_object import VmObject

# VmPage.busy_count
PBUSY_LOCKED: Final = 0x80000000  # hard-busied: one owner, who may change the page's identity
PBUSY_WANTED: Final = 0x40000000  # somebody sleeps on the page until it is less busy
PBUSY_SWAPINPROG: Final = 0x20000000  # swap I/O on the page
PBUSY_MASK: Final = 0x1FFFFFFF  # how many soft busies

# VmPage.flags. Changed by whoever has hard-busied the page, unless something else is said.
PG_WINATCFLS: Final = 0x00000004  # dirty, passed over once on the inactive queue
PG_FICTITIOUS: Final = 0x00000008  # stands for device memory; not in vm_page_array
PG_WRITEABLE: Final = 0x00000010  # some PTE might allow writing; a soft busy is enough to set it
PG_MAPPED: Final = 0x00000020  # some PTE might map it; a soft busy is enough to set it
PG_MAPPEDMULTI: Final = 0x00000040  # more than one PTE might; a soft busy is enough to set it
PG_REFERENCED: Final = 0x00000080  # used since it was last looked at; set by anybody
PG_CLEANCHK: Final = 0x00000100  # was there when vm_object_page_clean began
PG_NOSYNC: Final = 0x00000400  # dirty through a MAP_NOSYNC mapping only: the syncer leaves it
PG_UNQUEUED: Final = 0x00000800  # never on a paging queue
PG_MARKER: Final = 0x00001000  # no page: the head of a queue, or a scan's place in it
PG_RAM: Final = 0x00002000  # read-ahead mark: a fault here reads on; set by anybody
PG_SWAPPED: Final = 0x00004000  # swap has a copy
PG_NOTMETA: Final = 0x00008000  # file contents, as opposed to the file system's own data
PG_NEED_COMMIT: Final = 0x00040000  # clean, but must not be thrown away yet

# Colours and queues. VmPage.queue is 0 (PQ_NONE) or one of the bases plus the page's colour.
PQ_PRIME2: Final = 23
PQ_L2_SIZE: Final = 1024
PQ_L2_MASK: Final = PQ_L2_SIZE - 1
PQ_L2_SHIFT: Final = 10

PQ_NONE: Final = 0
PQ_FREE: Final = 1 + 0 * PQ_L2_SIZE
PQ_INACTIVE: Final = 1 + 1 * PQ_L2_SIZE
PQ_ACTIVE: Final = 1 + 2 * PQ_L2_SIZE
PQ_CACHE: Final = 1 + 3 * PQ_L2_SIZE
PQ_HOLD: Final = 1 + 4 * PQ_L2_SIZE
PQ_COUNT: Final = 1 + 5 * PQ_L2_SIZE

VM_PAGE_BITS_ALL: Final = 0xFF  # every DEV_BSIZE chunk of a page

# VmPage.act_count
ACT_DECLINE: Final = 1  # a scan found it unused
ACT_ADVANCE: Final = 3  # a scan found it used
ACT_INIT: Final = 5  # on activation
ACT_MAX: Final = 64


class VmPage:
    """One frame of physical memory.

    Source: DragonFly sys/vm/vm_page.h, struct vm_page. The spinlock of the original is not here:
    nothing below switches threads between two steps on a page. What must not change while a
    thread sleeps is protected by busying the page.
    """

    __slots__ = (
        "act_count",
        "busy_count",
        "dirty",
        "flags",
        "hold_count",
        "object",
        "pat_mode",
        "pc",
        "phys_addr",
        "pindex",
        "pq_next",
        "pq_prev",
        "queue",
        "valid",
        "wire_count",
    )

    pq_next: VmPage  # neighbours on the queue; mean something while queue != PQ_NONE
    pq_prev: VmPage
    object: VmObject | None  # whose page it is; hard busy, and the object's token
    pindex: int  # which page of the object; hard busy. Free for the owner when object is None
    phys_addr: int  # the frame; never changes
    queue: int  # PQ_NONE or base + pc; changed here, and inline where pages are allocated,
    #            freed and activated
    pc: int  # colour; never changes
    act_count: int  # 0 … ACT_MAX, how much it was used lately; whoever scans the queue
    pat_mode: int  # VM_MEMATTR_* its mappings get; hard busy
    valid: int  # bit map of DEV_BSIZE chunks that hold what they should; hard busy
    dirty: int  # bit map of chunks that the pager has older; hard busy, but a fault may set all
    flags: int  # PG_*
    wire_count: int  # wirings: while not 0, on no queue and not freed; 0 ↔ 1 needs hard busy
    busy_count: int  # PBUSY_*: whether and how the page is busy
    hold_count: int  # while not 0 the frame is not reused, whatever happens to the page

    def __init__(self, phys_addr: int, pc: int, object: VmObject | None, pindex: int) -> None:
        """A frame as the allocator hands it out for the first time: hard-busied."""
        self.phys_addr = phys_addr
        self.pc = pc
        self.object = object
        self.pindex = pindex
        self.busy_count = PBUSY_LOCKED
        self.queue = 0
        self.act_count = 0
        self.valid = 0
        self.dirty = 0
        self.flags = 0
        self.wire_count = 0
        self.hold_count = 0
        self.pat_mode = VM_MEMATTR_DEFAULT

    def __repr__(self) -> str:
        where = "" if self.object is None else f" pindex {self.pindex}"
        return (
            f"<vm_page {self.phys_addr:#x}{where} queue {self.queue} flags {self.flags:#x}"
            f" busy {self.busy_count:#x} wire {self.wire_count} hold {self.hold_count}"
            f" valid {self.valid:#x} dirty {self.dirty:#x}>"
        )


class VpgQueue(VmPage):
    """One colour of one queue: a circular list that begins and ends here. The head is a marker
    page, as a scan's marker is, so that linking knows no special case at either end.

    Source: DragonFly sys/vm/vm_page.h, struct vpgqueues.
    """

    __slots__ = ("lastq", "lcnt")

    lcnt: int  # pages on the list
    lastq: int  # colour where the last search that found this one empty ended; -1: none yet

    def __init__(self, queue: int) -> None:
        self.queue = queue
        self.flags = PG_MARKER
        self.pq_next = self
        self.pq_prev = self
        self.lcnt = 0
        self.lastq = -1

    def pages(self) -> Iterator[VmPage]:
        """The pages from head to tail. The one that was yielded last may leave the queue."""
        m = self.pq_next
        while m is not self:
            following = m.pq_next
            if not m.flags & PG_MARKER:
                yield m
            m = following

    def __repr__(self) -> str:
        return f"<vpgqueues {self.queue} lcnt {self.lcnt}>"


class PageSystem:
    """What vm_page.c keeps in global variables; `vm.pages`."""

    __slots__ = (
        "colors",
        "cpu_colors",
        "dnweight",
        "hash_mask",
        "next_block",
        "npages",
        "oom_time",
        "pages_waiting",
        "rover",
        "vm_page_array",
        "vm_page_hash",
        "vm_page_queues",
    )

    npages: int  # frames of RAM
    vm_page_array: list[VmPage | None]
    # By frame number; None for a frame that was never used. Grows a block at a time and is no
    # longer than the last block in use. The list itself stays the same object.
    vm_page_queues: list[VpgQueue | None]  # by queue number; None for one that never had a page
    next_block: list[int]  # by colour: the block that has its next frame that was never used
    colors: dict[int, int]  # PQ_FREE and PQ_CACHE → a bit for each colour that may have a page. A
    #                     search in memory that is nearly full would otherwise look into a thousand
    #                     empty queues. Set when a queue gets its first page, cleared by searches
    cpu_colors: int  # colours in one CPU's slice: PQ_L2_SIZE / ncpus
    vm_page_hash: dict[int, list[VmPage]]  # see vm_page_hash.py
    hash_mask: int  # sets in the hash - 1
    pages_waiting: int  # threads that sleep for memory, an upper bound
    oom_time: int  # ticks when a process was last killed for memory; see vm_pageout.py
    rover: int  # colour of the last page that was allocated for no object
    dnweight: int  # calls of vm_page_dontneed so far

    def __init__(self, npages: int, ncpus: int) -> None:
        self.npages = npages
        self.vm_page_array = []
        self.vm_page_queues = [None] * PQ_COUNT
        self.next_block = [0] * PQ_L2_SIZE
        self.next_block[0] = 1  # frame 0 is of colour 0; see above
        self.colors = {PQ_FREE: (1 << PQ_L2_SIZE) - 1, PQ_CACHE: 0}
        self.cpu_colors = PQ_L2_SIZE // ncpus
        self.vm_page_hash = {}
        self.hash_mask = 0
        self.pages_waiting = 0
        self.rover = 0
        self.dnweight = 0
        self.oom_time = -1

    def queue(self, queue: int) -> VpgQueue:
        """The queue of that number, made when it is first needed."""
        q = self.vm_page_queues[queue]
        if q is None:
            q = self.vm_page_queues[queue] = VpgQueue(queue)
        return q

    def queues(self, base: int) -> Iterator[VpgQueue]:
        """The queues of one kind (PQ_FREE …) that have ever had a page, by colour."""
        for q in self.vm_page_queues[base : base + PQ_L2_SIZE]:
            if q is not None:
                yield q

    def unused_count(self, color: int) -> int:
        """Frames of a colour that were never used."""
        full, rest = divmod(self.npages, PQ_L2_SIZE)
        low = (color ^ full ^ full >> PQ_L2_SHIFT) & PQ_L2_MASK
        return full + (low < rest) - self.next_block[color]

    def unused_frame(self, color: int) -> int:
        """Take the next frame of a colour that was never used: its number, 0 when there is
        none. vm_page_array has room for it afterwards."""
        b = self.next_block[color]
        n = b << PQ_L2_SHIFT | ((color ^ b ^ b >> PQ_L2_SHIFT) & PQ_L2_MASK)
        if n >= self.npages:
            return 0
        self.next_block[color] = b + 1
        if n >= len(self.vm_page_array):
            self.grow(n)
        return n

    def grow(self, n: int) -> None:
        """Make vm_page_array long enough for the block of frame `n`."""
        array = self.vm_page_array
        end = min((n | PQ_L2_MASK) + 1, self.npages)
        array.extend([None] * (end - len(array)))


def page_color(n: int) -> int:
    """The colour of frame `n`. The exclusive or with higher bits keeps pages that lie a power of
    two apart from sharing one colour."""
    return (n ^ n >> PQ_L2_SHIFT ^ n >> 2 * PQ_L2_SHIFT) & PQ_L2_MASK


def vm_page_startup(vm: VmSystem, ncpus: int = 1) -> None:
    """Bring up physical memory: every frame but the first is free. Does not block."""
    npages = vm.ram.npages
    pages = vm.pages = PageSystem(npages, ncpus)
    sets = max(npages // 16 // 4, 1)
    pages.hash_mask = (1 << (sets - 1).bit_length()) - 1
    vm.vmstats.v_page_count = vm.vmstats.v_free_count = npages - 1
    vmstats_set_thresholds(vm)


def PHYS_TO_VM_PAGE(vm: VmSystem, pa: int) -> VmPage | None:
    """The page of the frame that holds physical address `pa`; None when it was never used."""
    array = vm.pages.vm_page_array
    n = pa >> 12
    return array[n] if n < len(array) else None


# -- membership -------------------------------------------------------------------------------
#
# Counts of HOLD go to v_active_count, as in DragonFly.


def vm_page_rem_queue(vm: VmSystem, m: VmPage) -> int:
    """Take `m` off its queue, if it is on one. Returns the base of that queue (PQ_FREE …), or
    PQ_NONE. Does not block."""
    queue = m.queue
    if not queue:
        return PQ_NONE
    q = vm.pages.vm_page_queues[queue]
    if q is None:
        panic(f"vm_page_rem_queue: no such queue: {m}")
    before = m.pq_prev
    after = m.pq_next
    before.pq_next = after
    after.pq_prev = before
    q.lcnt -= 1
    m.queue = PQ_NONE
    gd = vm.gd
    own = gd.gd_vmstats
    adj = gd.gd_vmstats_adj
    base = queue - m.pc
    if base == PQ_FREE:
        own.v_free_count -= 1
        n = adj.v_free_count = adj.v_free_count - 1
    elif base == PQ_INACTIVE:
        own.v_inactive_count -= 1
        n = adj.v_inactive_count = adj.v_inactive_count - 1
    elif base == PQ_CACHE:
        own.v_cache_count -= 1
        n = adj.v_cache_count = adj.v_cache_count - 1
    else:
        own.v_active_count -= 1
        n = adj.v_active_count = adj.v_active_count - 1
    if n < -VMSTATS_ADJ_LIMIT:
        vmstats_rollup(vm)
    return base


def vm_page_add_queue(vm: VmSystem, m: VmPage, base: int, athead: bool = False) -> None:
    """Put `m`, which is on no queue, on its colour of the queue `base`. PQ_FREE always takes it
    at the head, where the next allocation finds it while the caches still know it. Does not
    block."""
    if m.queue:
        panic(f"vm_page_add_queue: on a queue already: {m}")
    pages = vm.pages
    queue = base + m.pc
    q = pages.vm_page_queues[queue]
    if q is None:
        q = pages.queue(queue)
    m.queue = queue
    q.lcnt += 1
    if q.lcnt == 1 and base in pages.colors:
        pages.colors[base] |= 1 << m.pc
    if athead or base == PQ_FREE:
        after = q.pq_next
        m.pq_prev = q
        m.pq_next = after
        q.pq_next = m
        after.pq_prev = m
    else:
        before = q.pq_prev
        m.pq_prev = before
        m.pq_next = q
        before.pq_next = m
        q.pq_prev = m
    gd = vm.gd
    own = gd.gd_vmstats
    adj = gd.gd_vmstats_adj
    if base == PQ_FREE:
        own.v_free_count += 1
        n = adj.v_free_count = adj.v_free_count + 1
    elif base == PQ_INACTIVE:
        own.v_inactive_count += 1
        n = adj.v_inactive_count = adj.v_inactive_count + 1
    elif base == PQ_CACHE:
        own.v_cache_count += 1
        n = adj.v_cache_count = adj.v_cache_count + 1
    else:
        own.v_active_count += 1
        n = adj.v_active_count = adj.v_active_count + 1
    if n > VMSTATS_ADJ_LIMIT:
        vmstats_rollup(vm)


# -- search -----------------------------------------------------------------------------------


def vm_page_list_find(vm: VmSystem, base: int, color: int) -> VmPage | None:
    """Take a page from PQ_FREE or PQ_CACHE (`base`), of the given colour if there is one, else of
    a colour near it: the search widens to the 16 colours around, then 32, 64 … to all. Returns the
    page, on no queue and as busy as it was, or None when the queue is empty. For PQ_FREE a frame
    that was never used counts as being at the tail of its queue. Does not block."""
    m = _take(vm, base, color)
    if m is not None:
        return m
    pages = vm.pages
    q = pages.queue(base + color)
    start = q.lastq
    if start < 0:
        start = color
    mask = 15
    while True:
        # Begin where the last search from this colour ended, if that is within reach: everything
        # on the way there was empty then.
        near = color & ~mask
        begin = start if start & ~mask == near else color
        while candidates := pages.colors[base] >> near & (1 << mask + 1) - 1:
            behind = candidates >> begin - near
            if behind:
                c = begin + _lowest(behind)
            else:
                c = near + _lowest(candidates)
            m = _take(vm, base, c)
            if m is not None:
                q.lastq = c
                return m
            pages.colors[base] &= ~(1 << c)
        if mask == PQ_L2_MASK:
            return None
        mask = mask << 1 | 1


def _lowest(bits: int) -> int:
    """The number of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1


def _take(vm: VmSystem, base: int, color: int) -> VmPage | None:
    """The first page of one colour of a queue, taken off it, or None."""
    pages = vm.pages
    q = pages.vm_page_queues[base + color]
    if q is not None and q.lcnt:
        m = q.pq_next
        while m.flags & PG_MARKER:
            m = m.pq_next
        vm_page_rem_queue(vm, m)
        return m
    if base == PQ_FREE:
        n = pages.unused_frame(color)
        if n:
            gd = vm.gd
            gd.gd_vmstats.v_free_count -= 1
            gd.gd_vmstats_adj.v_free_count -= 1
            if gd.gd_vmstats_adj.v_free_count < -VMSTATS_ADJ_LIMIT:
                vmstats_rollup(vm)
            m = VmPage(n << 12, color, None, 0)
            m.busy_count = 0
            pages.vm_page_array[n] = m
            return m
    return None
