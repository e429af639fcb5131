"""What README and docs/ say is so: their examples run, and what they name is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import dfvm
import dfvm.kern.machine
from tests.conftest import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("kern", "kern/abi/linux", "kern/vfs", "lwkt", "machine", "tools", "trace", "vm")
SOURCES = "".join(path.read_text() for path in (ROOT / "dfvm").rglob("*.py"))


def _examples() -> dict[str, str]:
    """Where it stands → an example in Python: in a document, or in the docstring of what a user
    imports, which ends with it."""
    found = {}
    for path in DOCS:
        for n, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)):
            found[f"{path.stem}-{n}"] = code
    for module in (dfvm, dfvm.kern.machine):
        code = (module.__doc__ or "").partition("    from dfvm ")
        name = module.__name__.replace(".", "_")
        found[name] = textwrap.dedent("".join(code[1:]).partition("\n\n`")[0])
    return found


EXAMPLES = _examples()


def test_the_example_of_a_guest_test(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guest.md").read_text()
    (program,) = re.findall(r"```c\n(.*?)```", text, re.DOTALL)
    source = tmp_path / "read_first.c"
    source.write_text(program)
    subprocess.run(
        ["cc", "-O1", "-static", "-I", str(ROOT / "guest"), "-o", str(source.with_suffix("")),
         str(source)],
        check=True,
    )  # fmt: skip
    names: dict[str, Any] = {}
    exec(EXAMPLES["guest-0"], names)
    names["test_a_page_that_was_read_can_be_written"](tmp_path)


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - {"guest-0"}))
def test_an_example_runs(
    name: str, guest_bin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Machine(" in EXAMPLES[name]
    monkeypatch.chdir(ROOT)
    exec(EXAMPLES[name], {})
    if name == "README-0":
        assert capsys.readouterr().out.endswith("copies on write\n")


def test_examples_are_typed(tmp_path: Path) -> None:
    """As a user's own code that is checked strictly."""
    paths = []
    for name, code in EXAMPLES.items():
        paths.append(tmp_path / f"example_{name.replace('-', '_')}.py")
        paths[-1].write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *map(str, paths)],
        cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (?:\$ )?(\.venv/bin/dfvm .*)", README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command: str, guest_bin: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", command.replace(".venv/bin/dfvm", "exec $PYTHON -m dfvm")],
        cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout, done.stderr
    said = [line.split() for line in done.stderr.splitlines()]
    if "trace" in command:
        heading, *_, last = [line.split() for line in _shown_after(command)]
        assert said[0] == heading and said[-1][1:] == last[1:]
        ways = {words[1] for line in _shown_after(command) if len(words := line.split()) == 2}
        assert ways and ways <= {words[1] for words in said if len(words) == 2}


def _shown_after(command: str) -> list[str]:
    """The lines that README shows below a command."""
    return README.partition(command + "\n")[2].partition("\n\n")[0].splitlines()


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
    places = [ROOT / name for name in ("dfvm", "guest", "tests", "tools")]
    there = {found.name for place in places for found in place.rglob("*.[pch]*")}
    assert files <= there | {"read_first.c"}
    functions = set(re.findall(r"\b(?:vm|pmap|vmspace)_\w+|(?<=`)_\w+(?=`)", text))
    assert {name for name in functions if not re.search(rf"\b{name}\b", SOURCES)} == set()
