"""A pytest plugin that writes down every test's outcome: `-p outcome_recorder --outcomes FILE`.

FILE becomes JSON: {node id: sorted list of [when, outcome]}, `when` being setup, call or
teardown. Only the process that the user started writes it: there the reports of all workers
arrive, whichever plugin makes the workers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file."""
    parser.addoption("--outcomes", metavar="FILE", default="", help="write outcomes to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Record in the controller, and in a run that has no workers."""
    path = config.getoption("--outcomes")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)), "outcome-recorder")


class Recorder:
    """Collects (when, outcome) by test and writes them when the session ends."""

    def __init__(self, path: Path) -> None:
        """Write to `path` at the end."""
        self._path = path
        self._outcomes: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note one phase of one test."""
        outcome: str = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if outcome == "skipped" else "xpassed"
        self._outcomes[report.nodeid].append((report.when, outcome))

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        outcomes = {nodeid: sorted(phases) for nodeid, phases in sorted(self._outcomes.items())}
        self._path.write_text(json.dumps(outcomes, indent=0))
