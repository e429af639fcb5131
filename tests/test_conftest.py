"""What the tests themselves rest on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SEEN = """
from hypothesis import given, settings, strategies as st
import tests.conftest

@given(st.integers(0, 1 << 64))
def one(n):
    seen.append(n)

def run():
    global seen
    seen = []
    one()
    return seen

print(run() == run(), settings().deadline)
"""


@pytest.mark.parametrize("ci", ["", "true"])
@pytest.mark.parametrize(("profile", "same"), [("repeatable", b"True"), ("explore", b"False")])
def test_only_those_who_want_it_get_other_examples(profile: str, same: bytes, ci: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "CI"}
    env |= {"HYPOTHESIS_PROFILE": profile} | ({"CI": ci} if ci else {})
    done = subprocess.run([sys.executable, "-c", SEEN], cwd=ROOT, env=env, capture_output=True,
                          check=True)  # fmt: skip
    assert done.stdout.split() == [same, b"None"]
