"""A scheduler for each test, unwound afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dfvm.lwkt.lwkt_thread import Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sched() -> Iterator[Scheduler]:
    scheduler = Scheduler()
    yield scheduler
    scheduler.close()
