"""What lies under the pages of a regular file that is not written through: pages in host memory
over, perhaps, a file of the host's.

Guest RAM caches a file's pages (its VM object); a page comes here when it is laundered, and is read
from here when it is not resident. Nothing is copied up front: a page that was never written is read
from the host's file each time, up to the point to which that file still shows through.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from dfvm.kern.kern_errno import ENOSPC, ENXIO, err

if TYPE_CHECKING:
    from dfvm.kern.vfs.hostfd import HostRef

_PAGE: Final = 4096
_ZERO: Final = bytes(_PAGE)


class Quota:
    """How much memory the files of one file system may take."""

    __slots__ = ("limit", "used")

    limit: int  # pages
    used: int  # pages of all its stores, written or promised to a write, and of attributes

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class Store:
    """The contents of one file."""

    __slots__ = ("lower", "lower_end", "order", "pages", "quota")

    quota: Quota
    pages: dict[int, bytes | bytearray | None]
    # By page number: what was written there; None: counted against the quota, but what has been
    # written is still in guest RAM only. All count in quota.used.
    order: list[int] | None  # the page numbers in order, for seek; None when they have changed
    lower: HostRef | None  # what shows where pages has nothing
    lower_end: int  # up to which byte it does: what was cut off once never shows again

    def __init__(self, quota: Quota, lower: HostRef | None, lower_end: int) -> None:
        self.quota = quota
        self.pages = {}
        self.order = None
        self.lower = lower
        self.lower_end = lower_end

    def read(self, off: int, mv: memoryview) -> int:
        """Fill mv from byte `off`, a page boundary. Returns how many bytes there were; behind
        them there is nothing but zeros."""
        length = len(mv)
        count = 0
        lower = self.lower
        if lower is not None and off < self.lower_end:
            want = min(length, self.lower_end - off)
            count = os.preadv(lower.fd(), (mv[:want],), off)
        pages = self.pages
        if not pages:
            return count
        first = off // _PAGE
        for i in range((length + _PAGE - 1) // _PAGE):
            page = pages.get(first + i)
            if page is None:
                continue
            at = i * _PAGE
            if at > count:
                mv[count:at] = bytes(at - count)
            n = min(_PAGE, length - at)
            mv[at : at + n] = page if n == _PAGE else page[:n]
            if at + n > count:
                count = at + n
        return count

    def write(self, off: int, mv: memoryview) -> None:
        """Keep mv as the contents from byte `off`. Never fails for lack of room: room was asked
        for when the data came in, or it came through a mapping and has to go somewhere."""
        pages = self.pages
        end = off + len(mv)
        at = off
        while at < end:
            pindex, base = divmod(at, _PAGE)
            n = min(_PAGE - base, end - at)
            if pindex not in pages:
                self.quota.used += 1
                self.order = None
            part = mv[at - off : at - off + n]
            if n == _PAGE:
                pages[pindex] = bytes(part)
            else:
                page = self._page(pindex)
                page[base : base + n] = part
                pages[pindex] = page
            at += n

    def _page(self, pindex: int) -> bytearray:
        # The contents of one page, to be changed.
        page = self.pages.get(pindex)
        if isinstance(page, bytearray):
            return page
        if page is not None:
            return bytearray(page)
        buf = bytearray(_PAGE)
        if self.lower is not None:
            self.read(pindex * _PAGE, memoryview(buf))
        return buf

    def reserve(self, off: int, end: int) -> int:
        """Bytes off … end are about to be written: count their pages. Returns the byte up to which
        there is room.

        :raises OSError: ENOSPC when there is none for the first byte.
        """
        pages = self.pages
        quota = self.quota
        for pindex in range(off // _PAGE, (end + _PAGE - 1) // _PAGE):
            if pindex not in pages:
                if quota.used >= quota.limit:
                    if pindex * _PAGE <= off:
                        raise err(ENOSPC)
                    return pindex * _PAGE
                pages[pindex] = None
                quota.used += 1
                self.order = None
        return end

    def seek(self, off: int, hole: bool, size: int) -> int:
        """From byte `off` on, where there is data, or with `hole` none, in the file of `size`
        bytes all of which are here.

        :raises OSError: ENXIO when no data comes any more.
        """
        pages = self.pages
        if self.order is None:
            self.order = sorted(pages)
        order = self.order
        i = bisect_left(order, off // _PAGE)
        while off < size:
            while i < len(order) and pages[order[i]] is None:
                i += 1
            if i < len(order) and order[i] == off // _PAGE:
                data, end = pages[order[i]] is not _ZERO, (order[i] + 1) * _PAGE
                i += 1
            else:
                data, end = self._below(off, order[i] * _PAGE if i < len(order) else size)
            if data != hole:
                return off
            off = end
        if hole:
            return size
        raise err(ENXIO)

    def _below(self, off: int, end: int) -> tuple[bool, int]:
        # Whether there is data at `off` in the host's file, and up to where (`end` at most).
        lower = self.lower
        if lower is None or off >= self.lower_end:
            return False, end
        fd = lower.fd()
        try:
            at = os.lseek(fd, off, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to its end
            return False, end
        if at > off:
            return False, min(at, end)
        return True, min(os.lseek(fd, off, os.SEEK_HOLE), self.lower_end, end)

    def setsize(self, size: int) -> None:
        """Nothing beyond byte `size` remains."""
        if self.lower_end > size:
            self.lower_end = size
        pages = self.pages
        if not pages:
            return
        last, base = divmod(size, _PAGE)
        if base:
            page = pages.get(last)
            if page is not None:
                pages[last] = bytes(page[:base]) + _ZERO[base:]
            last += 1
        gone = [p for p in pages if p >= last]
        self._drop(gone)

    def _drop(self, gone: list[int]) -> None:
        for pindex in gone:
            del self.pages[pindex]
        self.quota.used -= len(gone)
        self.order = None

    def zero(self, off: int, end: int) -> None:
        """The whole pages off … end read as zero from now on."""
        first, last = off // _PAGE, end // _PAGE
        pages = self.pages
        if last - first < len(pages):
            self._drop([p for p in range(first, last) if p in pages])
        else:
            self._drop([p for p in pages if first <= p < last])
        for pindex in range(first, min(last, (self.lower_end + _PAGE - 1) // _PAGE)):
            pages[pindex] = _ZERO
            self.quota.used += 1

    def free(self) -> None:
        """The file is gone."""
        self.quota.used -= len(self.pages)
        self.pages = {}
        self.order = None
        self.lower = None
        self.lower_end = 0
