"""What most tests of the VM begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm.map_util import Proc
from tests.vm.vnode_stub import make_vm

if TYPE_CHECKING:
    from dfvm.vm.vm_init import VmSystem
    from dfvm.vm.vm_map import VmMap


@pytest.fixture
def vm() -> VmSystem:
    """A small machine's virtual memory."""
    return make_vm()


@pytest.fixture
def proc(vm: VmSystem) -> Proc:
    """The current process, with an empty address space."""
    return Proc(vm)


@pytest.fixture
def map(proc: Proc) -> VmMap:
    """Its map."""
    return proc.map
