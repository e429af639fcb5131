"""Memory that is given back in part, after forks and in pieces: it is free at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.guest.watch import Look, watch_same

if TYPE_CHECKING:
    from pathlib import Path

LITTLE = 200  # pages: page tables, stacks, the page or two that each mapping keeps


@pytest.mark.spec("MAP-17")
def test_what_was_shared_with_a_child_is_freed_with_the_last_view(guest_bin: Path) -> None:
    def at(look: Look) -> int:
        return look.counts().v_free_count

    seen = watch_same(guest_bin / "free_after_fork", at=at)
    free = [seen.one(tag) for tag in (1, 2, 3, 4, 5, 6)]
    assert [free[0] - n < LITTLE for n in free] == [True] * 6, free


@pytest.mark.spec("MAP-14")
@pytest.mark.parametrize("name", ["stack_guard", "stack_small"])
def test_stacks_keep_to_their_limits(guest_bin: Path, name: str) -> None:
    seen = watch_same(guest_bin / name, at=lambda look: None)
    assert seen.status == 0


@pytest.mark.spec("FAULT-8", "SPACE-2")
def test_a_copy_of_wired_private_memory_still_shows_the_file(guest_bin: Path) -> None:
    seen = watch_same(guest_bin / "wired_private", at=lambda look: None)
    assert seen.stdout == b"XYcd\nabcd\nXbcd\n"
