"""The ordered index of an address map: from an address to its entry, and from a length to a hole.

DragonFly keeps a red-black tree. Here it is a tree of two levels, lists of at most CHUNK entries
under a list of separators, because bisection and insertion in a list run in C: a map of 100,000
entries answers as quickly as one of ten. Each list also knows a bound on the largest hole behind
its entries, so that a search for space passes over hundreds of entries in one step.

The index belongs to a map and is changed under the map's exclusive lock. It does not know about
locks, objects or page tables.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dfvm.vm.vm_map_entry import VmMapEntry

CHUNK: Final = 256  # longest list; full lists are cut in two


class VmMapIndex:
    """All entries of one map, in order of their start."""

    __slots__ = ("entries", "gaps", "heads", "starts")

    heads: list[int]
    # One for each list: no entry of the list starts below it, none of the list before at or above
    # it. heads[0] is 0.
    starts: list[list[int]]  # the entries' starts, ascending; only the first list may be empty
    entries: list[list[VmMapEntry]]  # the entries, parallel to `starts`
    gaps: list[int]
    # One for each list: no entry of the list has a larger hole between its end and what follows
    # it. It may be too large (holes are filled without telling), never too small.

    def __init__(self) -> None:
        self.heads = [0]
        self.starts = [[]]
        self.entries = [[]]
        self.gaps = [0]

    def __iter__(self) -> Iterator[VmMapEntry]:
        for chunk in self.entries:
            yield from chunk

    def find(self, address: int) -> VmMapEntry | None:
        """The last entry that starts at or below `address`."""
        i = bisect_right(self.heads, address) - 1
        j = bisect_right(self.starts[i], address)
        if j:
            return self.entries[i][j - 1]
        return self.entries[i - 1][-1] if i > 0 else None

    def insert(self, entry: VmMapEntry, gap: int) -> None:
        """Enter `entry`, which has a hole of `gap` bytes behind it."""
        start = entry.ba.start
        i = bisect_right(self.heads, start) - 1
        starts = self.starts[i]
        j = bisect_right(starts, start)
        starts.insert(j, start)
        self.entries[i].insert(j, entry)
        if gap > self.gaps[i]:
            self.gaps[i] = gap
        if len(starts) > CHUNK:
            self._split(i)

    def _split(self, i: int) -> None:
        """Cut list `i` in two. A list that grows at its end is cut near its end: mappings are
        mostly made in ascending order, and lists cut in the middle would stay half empty."""
        starts, entries = self.starts[i], self.entries[i]
        last = i + 1 == len(self.heads)
        cut = len(starts) * 7 // 8 if last else len(starts) // 2
        self.heads.insert(i + 1, starts[cut])
        self.starts.insert(i + 1, starts[cut:])
        self.entries.insert(i + 1, entries[cut:])
        self.gaps.insert(i + 1, self.gaps[i])
        del starts[cut:], entries[cut:]

    def remove(self, start: int) -> None:
        """Take out the entry that starts at `start`. The hole it leaves is announced with
        `hole`, by the caller, who knows whether there is one."""
        i = bisect_right(self.heads, start) - 1
        starts = self.starts[i]
        j = bisect_right(starts, start) - 1
        del starts[j], self.entries[i][j]
        if not starts and len(self.heads) > 1:
            del self.heads[i], self.starts[i], self.entries[i], self.gaps[i]
            self.heads[0] = 0

    def rekey(self, old: int, new: int) -> None:
        """The entry that started at `old` now starts at `new`; its place in the order is the
        same."""
        i = bisect_right(self.heads, old) - 1
        starts = self.starts[i]
        starts[bisect_right(starts, old) - 1] = new
        if new < self.heads[i]:
            self.heads[i] = new
        elif i + 1 < len(self.heads) and new >= self.heads[i + 1]:
            self.heads[i + 1] = self.starts[i + 1][0]  # what it was made for has gone since

    def hole(self, before: VmMapEntry, gap: int) -> None:
        """There is a hole of `gap` bytes behind the entry `before` now."""
        i = bisect_right(self.heads, before.ba.start) - 1
        if gap > self.gaps[i]:
            self.gaps[i] = gap

    def candidates(self, after: VmMapEntry, length: int, limit: int) -> Iterator[VmMapEntry]:
        """The entries behind `after` that have a hole of at least `length` bytes behind them, in
        order. `limit` is where the hole behind the last entry ends. Bounds that turn out too
        large are corrected on the way; the index must not change meanwhile."""
        i = bisect_right(self.heads, after.ba.start) - 1
        j = bisect_right(self.starts[i], after.ba.start)
        gaps = self.gaps
        for k in range(i, len(gaps)):
            if gaps[k] < length:
                continue
            starts = self.starts[k]
            first = j if k == i else 0
            largest = 0
            n = len(starts)
            for p, entry in enumerate(self.entries[k][first:], first + 1):
                if p < n:
                    end = starts[p]
                else:
                    end = self.starts[k + 1][0] if k + 1 < len(gaps) else limit
                gap = end - entry.ba.end
                if gap > largest:
                    largest = gap
                    if gap >= length:
                        yield entry
                elif gap >= length:
                    yield entry
            if first == 0:
                gaps[k] = largest
