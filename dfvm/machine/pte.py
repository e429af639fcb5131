"""Page-table entries of x86-64, and how a memory attribute is spelled in one.

    63  62       52 51                          12 11   9 8 7 6 5 4   3   2 1 0
    NX  (software)           frame address         (soft) G S D A PCD PWT U W P
                                                            └ page size; PAT in a 4 KiB leaf
                                                              (in a large leaf PAT is bit 12)

The three bits PAT, PCD, PWT select one of eight entries of the PAT MSR.

Source: DragonFly platform/pc64/include/pmap.h and x86_64/pmap.c (pmap_init_pat).
"""

from __future__ import annotations

from typing import Final

PG_V: Final = 0x001  # valid (P)
PG_RW: Final = 0x002  # writable
PG_U: Final = 0x004  # user may use it
PG_NC_PWT: Final = 0x008  # PAT index bit 0
PG_NC_PCD: Final = 0x010  # PAT index bit 1
PG_A: Final = 0x020  # accessed, set by the walk
PG_M: Final = 0x040  # modified (D), set by the walk
PG_PS: Final = 0x080  # in a directory: this entry is a large page
PG_PTE_PAT: Final = 0x080  # in a 4 KiB leaf: PAT index bit 2
PG_G: Final = 0x100  # survives a load of CR3
PG_W: Final = 0x200  # software: wired
PG_MANAGED: Final = 0x400  # software: the frame has a vm_page
PG_PDE_PAT: Final = 0x1000  # in a 2 MiB leaf: PAT index bit 2
PG_NX: Final = 1 << 63  # no instruction fetch
PG_FRAME: Final = 0x000F_FFFF_FFFF_F000

# The error code of a page fault.
PGEX_P: Final = 0x01  # the PTE was present: a right was missing
PGEX_W: Final = 0x02  # a write
PGEX_RSV: Final = 0x08  # a reserved bit was set
PGEX_I: Final = 0x10  # an instruction fetch

# Memory types as the PAT MSR encodes them.
PAT_UNCACHEABLE: Final = 0x00
PAT_WRITE_COMBINING: Final = 0x01
PAT_WRITE_THROUGH: Final = 0x04
PAT_WRITE_PROTECTED: Final = 0x05
PAT_WRITE_BACK: Final = 0x06
PAT_UNCACHED: Final = 0x07  # UC-: an MTRR may override it

MSR_PAT: Final = 0x277

# Entry i of the MSR. 0 to 3 are the power-on values, so that a PTE without any of the bits is
# write-back whatever else happens.
PAT_ENTRIES: Final = (
    PAT_WRITE_BACK,
    PAT_WRITE_THROUGH,
    PAT_UNCACHED,
    PAT_UNCACHEABLE,
    PAT_WRITE_BACK,
    PAT_WRITE_PROTECTED,
    PAT_WRITE_COMBINING,
    PAT_UNCACHEABLE,
)
PAT_MSR_VALUE: Final = sum(kind << (8 * i) for i, kind in enumerate(PAT_ENTRIES))

_LEAF_BITS: Final = {
    PAT_WRITE_BACK: 0,
    PAT_WRITE_THROUGH: PG_NC_PWT,
    PAT_UNCACHED: PG_NC_PCD,
    PAT_UNCACHEABLE: PG_NC_PCD | PG_NC_PWT,
    PAT_WRITE_PROTECTED: PG_PTE_PAT | PG_NC_PWT,
    PAT_WRITE_COMBINING: PG_PTE_PAT | PG_NC_PCD,
}
PAT_NAMES: Final = {
    PAT_WRITE_BACK: "WB",
    PAT_WRITE_THROUGH: "WT",
    PAT_UNCACHED: "UC-",
    PAT_UNCACHEABLE: "UC",
    PAT_WRITE_PROTECTED: "WP",
    PAT_WRITE_COMBINING: "WC",
}


def pat_bits(memattr: int, large: bool = False) -> int:
    """The PTE bits that select memory type `memattr` in a 4 KiB leaf, or in a 2 MiB one.

    :raises KeyError: when memattr is no memory type of the PAT.
    """
    bits = _LEAF_BITS[memattr]
    if large and bits & PG_PTE_PAT:
        bits ^= PG_PTE_PAT | PG_PDE_PAT
    return bits


def pat_memattr(pte: int, large: bool = False) -> int:
    """The memory type that a leaf `pte` selects."""
    pat = PG_PDE_PAT if large else PG_PTE_PAT
    index = (4 if pte & pat else 0) | (2 if pte & PG_NC_PCD else 0) | (1 if pte & PG_NC_PWT else 0)
    return PAT_ENTRIES[index]


def pte_flags(pte: int, large: bool = False) -> str:
    """The flags of a leaf for people, for example "P W U A D NX WB"."""
    names = [
        name
        for bit, name in ((PG_V, "P"), (PG_RW, "W"), (PG_U, "U"), (PG_A, "A"), (PG_M, "D"),
                          (PG_G, "G"), (PG_W, "wired"), (PG_NX, "NX"))
        if pte & bit
    ]  # fmt: skip
    names.append(PAT_NAMES[pat_memattr(pte, large)])
    return " ".join(names)
