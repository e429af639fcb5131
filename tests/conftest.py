"""Fixtures and checks for all tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.spec import REQUIREMENTS

ROOT = Path(__file__).resolve().parent.parent
GUEST_BIN = ROOT / "guest" / "bin"

# What is tried at random is the same in each run, so that a failure is one of the change that was
# made. HYPOTHESIS_PROFILE=explore looks for others, also where CI is set, which is enough for
# Hypothesis to derandomize. How long an example takes says how busy the host is.
_ANY_TIME = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", _ANY_TIME, derandomize=True)
settings.register_profile("explore", _ANY_TIME, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# A shell starts what it runs in the background with these ignored, nohup another; programs inherit
# that, and then neither side of a comparison shows what a signal does.
for _sig, _action in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_sig) == signal.SIG_IGN:
        signal.signal(_sig, _action)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A spec marker with an ID that nobody knows is a typing error, not a proof."""
    for item in items:
        for mark in item.iter_markers("spec"):
            for requirement in mark.args:
                if requirement not in REQUIREMENTS:
                    raise pytest.UsageError(f"{item.nodeid}: no requirement {requirement!r}")


@pytest.fixture(scope="session")
def guest_bin() -> Path:
    """Where the guest programs lie, built if they are not."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to build the guest programs")
    subprocess.run(["make", "-s", "-C", str(ROOT / "guest")], check=True)
    return GUEST_BIN
