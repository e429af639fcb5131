"""Lock order, watched in debug mode (`sched.debug = True`).

Locks are of one class when they have the same name (every map's lock is "vmmap"). Taking class B
while holding class A says "A before B". The first thread ever to take them the other way round,
directly or through a third class, is told so: a deadlock that needs two threads to meet at the
wrong moment becomes a panic that needs one. Locks of one class may nest (fork holds two maps);
their order is their owner's business. Attempts that don't wait can't deadlock and are not watched.

Source: the idea is FreeBSD's witness(4); DragonFly checks spinlocks only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic

if TYPE_CHECKING:
    from dfvm.lwkt.lwkt_thread import Scheduler


class Witness:
    """What has been seen of the order of lock classes in one machine."""

    __slots__ = ("after",)

    after: dict[str, set[str]]  # class → classes that have been taken while it was held

    def __init__(self) -> None:
        self.after = {}

    def _path(self, first: str, last: str) -> list[str] | None:
        """Classes through which `first` is known to come before `last`."""
        paths = [[first]]
        seen = {first}
        for path in paths:
            for name in self.after.get(path[-1], ()):
                if name == last:
                    return [*path, last]
                if name not in seen:
                    seen.add(name)
                    paths.append([*path, name])
        return None

    def taking(self, held: list[str], name: str, who: str) -> None:
        """Thread `who`, which holds the classes `held`, takes one of class `name`."""
        for before in held:
            if before == name or name in self.after.get(before, ()):
                continue
            path = self._path(name, before)
            if path is not None:
                panic(
                    f"lock order: {who} takes {name} while it holds {before}, but the order is "
                    + " before ".join(path)
                )
            self.after.setdefault(before, set()).add(name)


def witness_lock(sched: Scheduler, name: str) -> None:
    """The current thread is about to take, waiting if it must, a lock of class `name`."""
    witness = sched.witness
    if witness is None:
        witness = sched.witness = Witness()
    td = sched.curthread
    held = [f"lock {lock.lk_wmesg}" for lock in td.td_locks]
    held += [f"spinlock {spin.desc}" for spin in td.td_spinlocks]
    if held:
        witness.taking(held, name, td.td_name)
