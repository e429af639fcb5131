"""Sizes and the shape of the address space.

    0x0000_0000_0000_0000   VM_MIN_USER_ADDRESS
    0x0000_7fff_ffff_f000   VM_MAX_USER_ADDRESS
        (addresses that are not canonical)
    0xffff_8000_0000_0000   DMAP_MIN_ADDRESS: all of RAM, in 2 MiB pages
    0xffff_ffff_8000_0000   VM_MIN_KERNEL_ADDRESS: kernel_map
    0xffff_ffff_ffff_f000   VM_MAX_KERNEL_ADDRESS

Source: DragonFly sys/vm/vm_param.h and platform/pc64/include/vmparam.h.
"""

from __future__ import annotations

from typing import Final

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = PAGE_SIZE - 1

DEV_BSHIFT: Final = 9
DEV_BSIZE: Final = 1 << DEV_BSHIFT  # what one bit of vm_page.valid and .dirty stands for

NBPDR: Final = 1 << 21  # bytes one page-table page maps, and the size of a large page

VM_MIN_USER_ADDRESS: Final = 0
VM_MAX_USER_ADDRESS: Final = 0x0000_7FFF_FFFF_F000

DMAP_MIN_ADDRESS: Final = 0xFFFF_8000_0000_0000
VM_MIN_KERNEL_ADDRESS: Final = 0xFFFF_FFFF_8000_0000
VM_MAX_KERNEL_ADDRESS: Final = 0xFFFF_FFFF_FFFF_F000

SGROWSIZ: Final = 128 * 1024  # how much a stack grows at once, bytes
MAXSSIZ: Final = 512 * 1024 * 1024  # the largest stack, bytes, whatever RLIMIT_STACK says
UPAGES: Final = 4  # pages of a kernel stack, guard page not counted


def trunc_page(x: int) -> int:
    """The start of the page that holds byte `x`."""
    return x & ~PAGE_MASK


def round_page(x: int) -> int:
    """The first page boundary at or above `x`."""
    return (x + PAGE_MASK) & ~PAGE_MASK
