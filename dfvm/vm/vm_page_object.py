"""A page and its object: how it gets in, how it is found, how it gets out.

`object.rb_memq` (pindex → page) is changed here, and by the allocator and vm_page_free, which do
the same inline. Membership changes only while the page is hard-busied and the object is held
exclusively; every change moves the object's `generation` on.

Source: DragonFly sys/vm/vm_page.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic
from dfvm.vm.vm_object import vm_object_set_writeable_dirty
from dfvm.vm.vm_page_busy import vm_page_busy_try, vm_page_sleep_wanted
from dfvm.vm.vm_page_hash import vm_page_hash_enter
from dfvm.vm.vm_page_paging import vm_page_deactivate
from dfvm.vm.vm_page_queue import (
    PBUSY_LOCKED,
    PBUSY_MASK,
    PG_MAPPEDMULTI,
    PG_NEED_COMMIT,
    PG_WRITEABLE,
    PQ_CACHE,
)
from dfvm.vm.vm_page_valid import vm_page_dirty

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page_queue import VmPage


def vm_page_insert(m: VmPage, object: VmObject, pindex: int) -> bool:
    """Enter `m` in `object`. False, and nothing is done, when there is a page at `pindex`. The
    page is hard-busied, the object held; does not block."""
    if m.object is not None:
        panic(f"vm_page_insert: in an object already: {m}")
    if not m.busy_count & PBUSY_LOCKED:
        panic(f"vm_page_insert: page not busy: {m}")
    memq = object.rb_memq
    if pindex in memq:
        return False
    m.object = object
    m.pindex = pindex
    memq[pindex] = m
    object.resident_page_count += 1
    object.generation += 1
    if m.valid & m.dirty or m.flags & (PG_WRITEABLE | PG_NEED_COMMIT):
        vm_object_set_writeable_dirty(object)
    return True


def vm_page_remove(vm: VmSystem, m: VmPage) -> None:
    """Take `m` out of its object, if it is in one. Its mappings stay; the page is hard-busied and
    stays so. Does not block."""
    object = m.object
    if object is None:
        return
    if not m.busy_count & PBUSY_LOCKED:
        panic(f"vm_page_remove: page not busy: {m}")
    del object.rb_memq[m.pindex]
    object.resident_page_count -= 1
    object.generation += 1
    m.object = None


def vm_page_rename(m: VmPage, object: VmObject, pindex: int) -> None:
    """Move `m` to `object` at `pindex`, where no page is. It becomes dirty: the new object's
    pager has no copy. The page is hard-busied and unmapped, both objects are held; does not
    block."""
    vm = object.vm
    vm_page_remove(vm, m)
    if not vm_page_insert(m, object, pindex):
        panic(f"vm_page_rename: target exists: {object} page {pindex}")
    if m.queue - m.pc == PQ_CACHE:
        vm_page_deactivate(vm, m)  # a dirty page can't be there
    vm_page_dirty(vm, m)


def vm_page_lookup(object: VmObject, pindex: int) -> VmPage | None:
    """The page of `object` at `pindex`, or None; it may be busy. A page with several mappings is
    entered in the page hash on the way. The object is held; does not block."""
    m = object.rb_memq.get(pindex)
    if m is not None and m.flags & PG_MAPPEDMULTI:
        vm_page_hash_enter(m)
    return m


def vm_page_lookup_busy_wait(
    object: VmObject, pindex: int, also_m_busy: bool, wmesg: str
) -> VmPage | None:
    """The page of `object` at `pindex`, hard-busied, or None. Sleeps while it is busied by
    somebody else (with `also_m_busy`: soft-busied, too), and looks again then, because it may
    have left meanwhile. The object is held; its token is given up while asleep."""
    get = object.rb_memq.get
    vm = object.vm
    while True:
        m = get(pindex)
        if m is None:
            return None
        busy = m.busy_count
        if not (busy & PBUSY_LOCKED or (also_m_busy and busy & PBUSY_MASK)):
            m.busy_count = busy | PBUSY_LOCKED
            if m.flags & PG_MAPPEDMULTI:
                vm_page_hash_enter(m)
            return m
        vm_page_sleep_wanted(vm, m, wmesg)


def vm_page_lookup_busy_try(
    object: VmObject, pindex: int, also_m_busy: bool
) -> tuple[VmPage | None, bool]:
    """(page, False): the page at `pindex`, hard-busied. (page, True): it is busied by somebody
    else. (None, False): there is none. The object is held; does not block."""
    m = object.rb_memq.get(pindex)
    if m is None:
        return None, False
    if m.flags & PG_MAPPEDMULTI:
        vm_page_hash_enter(m)
    return m, vm_page_busy_try(object.vm, m, also_m_busy)
