"""What the engine must forget before the guest runs again.

The engine keeps two things that Python can make stale: translations (its TLB, and its lookup of
translated code by virtual address) and translated code itself, which is keyed by physical address.
Whoever changes a page table or overwrites a frame says so here; the VCPU settles the debt once,
before the next guest instruction. See docs/engine.md for what needs a flush and what does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Mmu:
    """The flush debt of one engine."""

    __slots__ = ("code_flushes", "code_frames", "cr3", "flushes", "need_flush", "need_flush_code",
                 "pc", "step")  # fmt: skip

    cr3: int  # physical address of the page table the engine has loaded; 0 before the first
    need_flush: bool  # the TLB may hold a stale translation of the loaded space
    need_flush_code: bool  # translated code of a frame that was overwritten may be alive
    code_frames: set[int]  # frames (pa >> 12) that have been mapped executable since they were
    #                        given out, or could last be written where they are not: only they can
    #                        have translated code
    flushes: int  # how many TLB flushes were made, for the tools
    pc: Callable[[], int]  # RIP of the engine, which stands
    step: Callable[[], None] | None
    # To be called when the guest has executed one more instruction, if that is not None; goes with
    # need_flush
    code_flushes: int  # how many times all translated code was dropped

    def __init__(self) -> None:
        self.cr3 = 0
        self.need_flush = False
        self.need_flush_code = False
        self.code_frames = set()
        self.pc = int  # 0: no engine yet
        self.step = None
        self.flushes = 0
        self.code_flushes = 0

    def stale(self, cr3: int) -> None:
        """A translation of the space at `cr3` changed its frame or lost a right. A space that is
        not loaded needs nothing: loading it flushes."""
        if cr3 == self.cr3:
            self.need_flush = True

    def code_written(self, pfn: int) -> None:
        """Frame `pfn`, which stays mapped where it is, is about to be written by Python, or by the
        guest where it is not executable. Other stores need no such call: the engine notices
        them."""
        if pfn in self.code_frames:
            self.need_flush_code = True
            self.need_flush = True

    def code_reused(self, pfns: list[int]) -> None:
        """Of the frames `pfns`, mapped nowhere, some are given out again. Until one is mapped
        executable once more nothing can be translated from it."""
        self.code_frames.difference_update(pfns)
        self.need_flush_code = True
        self.need_flush = True
