"""Print which requirement is proven by which tests: `make spec`.

Runs every test that carries a spec marker and shows ID, title, number of tests, verdict. The exit
status is 1 when a requirement that has tests fails one of them; a requirement without tests is
open, which is a state and no error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.spec import REQUIREMENTS  # noqa: E402


class Collector:
    """A pytest plugin that keeps the outcome of every test that proves something."""

    def __init__(self) -> None:
        self.ids: dict[str, list[str]] = {}  # node id → requirement IDs
        self.outcomes: dict[str, list[str]] = {}  # requirement ID → outcomes
        self.unknown: set[str] = set()

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        proving = []
        for item in items:
            ids = [str(a) for mark in item.iter_markers("spec") for a in mark.args]
            self.unknown.update(i for i in ids if i not in REQUIREMENTS)
            if ids:
                self.ids[item.nodeid] = ids
                proving.append(item)
        items[:] = proving

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for requirement in self.ids.get(report.nodeid, ()):
                self.outcomes.setdefault(requirement, []).append(report.outcome)


def main() -> int:
    collector = Collector()
    # Not spread over processes: the collector is in this one.
    pytest.main(
        ["-p", "no:xdist", "-q", "--no-header", "--tb=line", *sys.argv[1:]], plugins=[collector]
    )
    print(f"\n{'ID':10} {'tests':>5}  {'verdict':8} requirement")
    failed = 0
    for requirement, title in REQUIREMENTS.items():
        outcomes = collector.outcomes.get(requirement, [])
        passed = outcomes.count("passed")
        if "failed" in outcomes:
            verdict, failed = "FAILED", failed + 1
        else:
            verdict = "proven" if passed else "open"
        print(f"{requirement:10} {len(outcomes):5}  {verdict:8} {title}")
    proven = sum("passed" in o and "failed" not in o for o in collector.outcomes.values())
    print(f"\n{proven} of {len(REQUIREMENTS)} proven, {failed} failed")
    for name in sorted(collector.unknown):
        print(f"unknown requirement {name}", file=sys.stderr)
    return 1 if failed or collector.unknown else 0


if __name__ == "__main__":
    sys.exit(main())
