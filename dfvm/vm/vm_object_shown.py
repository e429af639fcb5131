"""Which pages of an object its backing elements show: the question a mapping asks before it goes,
so that pages which nobody could reach without it go along (tests/spec.py, MAP-17).

An object has few elements as a rule, and they are looked at one by one. One that has been cut into
many pieces (or is seen by many processes) gets an index, because the pieces go one by one, too:

    sizes[k]     elements that show at least 2**k pages, but less than 2**(k+1)
      [n]        … of which the first lies in [n * 2**k, (n+1) * 2**k)

An element of sizes[k] that reaches a page begins in that page's slot or in one of the two before
it. The index goes by page indices only: moving an element to other addresses does not matter.

DragonFly asks OBJ_ONEMAPPING alone, which a fork takes from an object for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dfvm.vm.vm_param import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dfvm.vm.vm_map_entry import VmMapBacking
    from dfvm.vm.vm_object import VmObject

_MANY: Final = 16  # elements from which on they are indexed
_FEW: Final = 4  # … and at which the index is thrown away again


class ShownIndex:
    """The elements of one object by the pages they show. Protected like backing_list."""

    __slots__ = ("sizes",)

    sizes: dict[int, dict[int, dict[VmMapBacking, None]]]

    def __init__(self, elements: Iterable[VmMapBacking]) -> None:
        self.sizes = {}
        for ba in elements:
            self.add(ba)

    def add(self, ba: VmMapBacking) -> None:
        """`ba` shows its pages from now on."""
        first = ba.offset >> PAGE_SHIFT
        k = (ba.end - ba.start >> PAGE_SHIFT).bit_length() - 1
        self.sizes.setdefault(k, {}).setdefault(first >> k, {})[ba] = None

    def remove(self, ba: VmMapBacking) -> None:
        """`ba`, whose range has not changed since it came, does not count any more."""
        first = ba.offset >> PAGE_SHIFT
        k = (ba.end - ba.start >> PAGE_SHIFT).bit_length() - 1
        slots = self.sizes[k]
        slot = slots[first >> k]
        del slot[ba]
        if not slot:
            del slots[first >> k]
            if not slots:
                del self.sizes[k]

    def near(self, first: int, end: int) -> Iterable[VmMapBacking]:
        """The elements that show a page in [first, end), and perhaps some of their neighbours.
        The large ones, which are likely to show all of it, come first."""
        for k in sorted(self.sizes, reverse=True):
            slots = self.sizes[k]
            low, high = (first >> k) - 2, end - 1 >> k
            if high - low < len(slots):
                for n in range(low, high + 1):
                    if n in slots:
                        yield from slots[n]
            else:
                for n, slot in slots.items():
                    if low <= n <= high:
                        yield from slot


def vm_object_unshown(object: VmObject, ba: VmMapBacking) -> list[tuple[int, int]]:
    """The parts [first page, end) of what `ba` shows that no other element of the object does.
    Nobody changes backing_list meanwhile; does not block."""
    first = ba.offset >> PAGE_SHIFT
    end = first + (ba.end - ba.start >> PAGE_SHIFT)
    elements: Iterable[VmMapBacking] = object.backing_list
    if len(object.backing_list) >= _MANY:
        if object.shown is None:
            object.shown = ShownIndex(object.backing_list)
        elements = object.shown.near(first, end)
    elif object.shown is not None and len(object.backing_list) <= _FEW:
        object.shown = None
    others = []
    for other in elements:
        start = other.offset >> PAGE_SHIFT
        stop = start + (other.end - other.start >> PAGE_SHIFT)
        if start < end and first < stop and other is not ba:
            if start <= first and end <= stop:
                return []
            others.append((start, stop))
    parts = []
    for start, stop in sorted(others):
        if first < start:
            parts.append((first, start))
        first = max(first, stop)
    if first < end:
        parts.append((first, end))
    return parts
