"""Panic: a broken invariant. Everything that finds one ends here; nothing catches it below the
tools, which print it with the kernel threads and exit 70.

Source: DragonFly sys/kern/kern_shutdown.c (panic).
"""

from __future__ import annotations

from typing import NoReturn


class Panic(Exception):
    """The kernel's own state contradicts itself; going on would make it worse."""


def panic(msg: str) -> NoReturn:
    """Give up: `msg` says what was violated, with the values that show it."""
    raise Panic(msg)
