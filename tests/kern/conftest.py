"""A machine, and a process in it, for each test; verified afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from user_util import User, verify

from dfvm.kern.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    machine = Kernel(64 << 20)
    yield machine
    verify(machine)
    machine.sched.close()


@pytest.fixture
def user(kernel: Kernel) -> User:
    """A process of root's."""
    return User(kernel)


@pytest.fixture
def nobody(kernel: Kernel) -> User:
    """A process without privileges."""
    return User(kernel, 65534)
