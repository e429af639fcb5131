"""What README and docs/ say is so: their examples run, and what they name is there."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("kern", "kern/abi/linux", "kern/vfs", "lwkt", "machine", "tools", "trace", "vm")
SOURCES = "".join(path.read_text() for path in (ROOT / "dfvm").rglob("*.py"))


def test_the_example_of_a_guest_test(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guest.md").read_text()
    (program,) = re.findall(r"```c\n(.*?)```", text, re.DOTALL)
    (test,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    source = tmp_path / "read_first.c"
    source.write_text(program)
    subprocess.run(
        ["cc", "-O1", "-static", "-I", str(ROOT / "guest"), "-o", str(source.with_suffix("")),
         str(source)],
        check=True,
    )  # fmt: skip
    names: dict[str, Any] = {}
    exec("from dfvm.machine.pte import PG_RW\nfrom tests.guest.watch import *\n" + test, names)
    names["test_a_page_that_was_read_can_be_written"](tmp_path)


def test_the_example_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(example, {})
    assert capsys.readouterr().out.endswith("copies on write\n")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_in_the_overview_of_its_package(package: str) -> None:
    text = (ROOT / "dfvm" / package / "__init__.py").read_text()
    named = [(name, name.replace("_*", "")) for name in re.findall(r"[\w*]+\.py\b", text)]
    modules = {path.name for path in (ROOT / "dfvm" / package).glob("*.py")} - {"__init__.py"}
    assert {m for m in modules if not any(fnmatch(m, n) or m == one for n, one in named)} == set()


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_what_is_named_is_there(path: Path) -> None:
    text = path.read_text()
    files = {name.rpartition("/")[2] for name in re.findall(r"(?<!\*)\b[\w/]+\.(?:py|c|h)\b", text)}
    places = [ROOT / name for name in ("dfvm", "guest", "tests")]
    there = {found.name for place in places for found in place.rglob("*.[pch]*")}
    assert files <= there | {"read_first.c"}
    functions = set(re.findall(r"\b(?:vm|pmap|vmspace)_\w+|(?<=`)_\w+(?=`)", text))
    assert {name for name in functions if not re.search(rf"\b{name}\b", SOURCES)} == set()
