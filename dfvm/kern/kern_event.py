"""Knotes: who wants to hear when a file becomes readable, writable or hangs up.

Whatever can be polled owns a Kqinfo and calls `knote(hint)` on it when its state changes. poll,
select and epoll attach knotes; a file knows nothing of them. A change costs one truth test when
nobody listens, and what it costs otherwise is in proportion to the listeners of that one object.

Source: the idea and the names of DragonFly sys/kern/kern_event.c (struct kqinfo, KNOTE).
"""

from __future__ import annotations

from typing import Final

# Events, as poll(2) and epoll(7) number them. EPOLL* are the same numbers.
POLLIN: Final = 0x001
POLLPRI: Final = 0x002
POLLOUT: Final = 0x004
POLLERR: Final = 0x008
POLLHUP: Final = 0x010
POLLNVAL: Final = 0x020
POLLRDNORM: Final = 0x040
POLLRDBAND: Final = 0x080
POLLWRNORM: Final = 0x100
POLLWRBAND: Final = 0x200
POLLRDHUP: Final = 0x2000  # the other side will send no more

POLL_READABLE: Final = POLLIN | POLLRDNORM  # what a file with data reports
POLL_WRITABLE: Final = POLLOUT | POLLWRNORM  # what a file with room reports
POLL_ALWAYS: Final = POLLERR | POLLHUP | POLLNVAL  # reported whether asked for or not


class Knote:
    """A listener. Subclasses decide what a hint means to them."""

    __slots__ = ()

    def kn_event(self, hint: int) -> bool:
        """Some of the POLL* events in `hint` may have become true. Must not block. True if it woke
        somebody who waited for that: of those who listen exclusively, one is enough."""
        raise NotImplementedError


class Kqinfo:
    """The listeners of one object."""

    __slots__ = ("ki_exclusive", "ki_notes")

    ki_notes: dict[Knote, int]  # listener → how often it is attached (poll may name an fd twice)
    ki_exclusive: dict[Knote, None] | None  # those that needn't hear what woke another one of
    #                                         them, in the order of their coming; None: never any

    def __init__(self) -> None:
        self.ki_notes = {}
        self.ki_exclusive = None

    def attach(self, kn: Knote, exclusive: bool = False) -> None:
        """Tell `kn` from now on; `exclusive` is what it was the first time."""
        notes = self.ki_notes
        notes[kn] = notes.get(kn, 0) + 1
        if exclusive:
            if self.ki_exclusive is None:
                self.ki_exclusive = {}
            self.ki_exclusive[kn] = None

    def detach(self, kn: Knote) -> None:
        """Take back one attach."""
        notes = self.ki_notes
        left = notes[kn] - 1
        if left:
            notes[kn] = left
            return
        del notes[kn]
        if self.ki_exclusive is not None:
            self.ki_exclusive.pop(kn, None)

    def knote(self, hint: int) -> None:
        """The events in `hint` may have become true; tell everybody, or of those who listen
        exclusively the first who waits. That it is over (POLLHUP, POLLERR) concerns all. Does not
        block."""
        if self.ki_notes:
            exclusive = self.ki_exclusive
            if not exclusive:
                for kn in list(self.ki_notes):
                    kn.kn_event(hint)
                return
            for kn in list(self.ki_notes):
                if kn not in exclusive:
                    kn.kn_event(hint)
            for kn in list(exclusive):
                if kn.kn_event(hint) and not hint & POLL_ALWAYS:
                    break
