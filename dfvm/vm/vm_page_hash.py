"""The page hash: (object, pindex) → page without the object's token.

A fault on a page that several mappings share looks here first (vm_fault_bypass). A hit is a page
that was soft-busied on the spot, so its identity can't change any more; a miss means nothing, and
the caller takes the long way. Only pages with PG_MAPPEDMULTI enter: others are not looked for by
more than one process, and would push out those that are.

The table has page_count / 16 entries in sets of four. A set is a list with the most recently used
page last, so age needs no clock. Sets come into being when they are used, and entries are not
removed when a page changes hands: a hit compares the page's own object and pindex.

Source: DragonFly sys/vm/vm_page.c, vm_page_hash_get, vm_page_hash_enter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.vm.vm_page_queue import PBUSY_LOCKED, PG_FICTITIOUS, PG_MAPPEDMULTI

if TYPE_CHECKING:
    from dfvm.vm.vm_object import VmObject
    from dfvm.vm.vm_page_queue import VmPage

VM_PAGE_HASH_SET: Final = 4  # ways


def vm_page_hash_set(object: VmObject, pindex: int) -> int:
    """Which set a page belongs to, before it is masked. The colour stands for the object: it is
    the same in each run, as an address would not be, and differs between neighbours."""
    color = object.pg_color
    h = object.id ^ color ^ pindex
    h += color * pindex
    return h ^ h >> 20


def vm_page_hash_get(object: VmObject, pindex: int) -> VmPage | None:
    """The page, soft-busied, or None when it is not in the hash or is hard-busied. No
    requirements; does not block. The caller drops the busy with vm_page_sbusy_drop."""
    pages = object.vm.pages
    color = object.pg_color
    h = (object.id ^ color ^ pindex) + color * pindex
    ways = pages.vm_page_hash.get((h ^ h >> 20) & pages.hash_mask)
    if ways is None:
        return None
    for m in ways:
        if m.pindex == pindex and m.object is object:
            if m.busy_count & PBUSY_LOCKED:
                return None
            m.busy_count += 1
            if m is not ways[-1]:
                ways.remove(m)
                ways.append(m)
            return m
    return None


def vm_page_hash_enter(m: VmPage) -> None:
    """Make `m` known, if it is mapped more than once; the oldest page of its set gives way. The
    page is in an object and can't leave it meanwhile. Does not block."""
    object = m.object
    if object is None or m.flags & (PG_MAPPEDMULTI | PG_FICTITIOUS) != PG_MAPPEDMULTI:
        return
    pages = object.vm.pages
    index = vm_page_hash_set(object, m.pindex) & pages.hash_mask
    ways = pages.vm_page_hash.get(index)
    if ways is None:
        pages.vm_page_hash[index] = [m]
        return
    if ways[-1] is m:
        return
    # A page found here under an identity it no longer has is as good as old.
    if m in ways:
        ways.remove(m)
    elif len(ways) == VM_PAGE_HASH_SET:
        del ways[0]
    ways.append(m)
