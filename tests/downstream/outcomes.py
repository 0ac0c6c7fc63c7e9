"""A pytest plugin, ``-p forkd_outcomes``: writes what a run came to, as the user's process saw it.

It is copied into each project's environment under that name, so it imports nothing but pytest, and
does nothing in workers.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes-file", metavar="FILE", help="Where to write what the run came to.")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes-file")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Outcomes(path))


class _Outcomes:
    def __init__(self, path: str) -> None:
        self._path = path
        self._tests: dict[str, list[str]] = {}
        self._warnings: Counter[str] = Counter()
        self._started = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        outcome: str = "xfail" if report.skipped and hasattr(report, "wasxfail") else report.outcome
        if report.passed and hasattr(report, "wasxfail"):
            outcome = "xpass"
        self._tests.setdefault(report.nodeid, []).append(f"{report.when} {outcome}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._tests.setdefault(report.nodeid, []).append(f"collect {report.outcome}")

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        text = f"{warning_message.category.__name__}: {warning_message.message} [{nodeid}]"
        self._warnings[text] += 1

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        stats = {
            kind: len([entry for entry in entries if getattr(entry, "count_towards_summary", True)])
            for kind, entries in terminalreporter.stats.items()
            if kind and entries
        }
        found = {
            "exit": int(exitstatus),
            "tests": {nodeid: sorted(outcomes) for nodeid, outcomes in self._tests.items()},
            "warnings": self._warnings,
            "stats": stats,
            "seconds": time.monotonic() - self._started,
        }
        temporary = f"{self._path}.new"
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(found, file)
        os.replace(temporary, self._path)
