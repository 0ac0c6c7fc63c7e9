"""A pytest plugin that notes when each phase of a run begins, for ``demo.py``.

It records in the controller alone, that is, in the process that the user started; without workers
that is the only one. The hooks sit on an object that is registered there and nowhere else, so that
in a worker this plugin does nothing at all. The marks are ``time.time()``, and go as JSON to the
file that ``ML_SUITE_PHASES`` names.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

ENV_VAR = "ML_SUITE_PHASES"


class PhaseRecorder:
    """Notes the marks and the outcome counts of one run, and writes them when the session ends."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._path = path
        self._marks: dict[str, float] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        self._marks["session_start"] = time.time()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self) -> None:
        """A worker has started: the first one counts."""
        self._marks.setdefault("first_worker", time.time())

    def pytest_collection_finish(self) -> None:
        """The controller has collected: only where there are no workers."""
        self._collected()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        """A worker has sent its collection: the last one that tests waited for counts."""
        self._collected()

    def _collected(self) -> None:
        if "first_test" not in self._marks:
            self._marks["collected"] = time.time()

    def pytest_runtest_logstart(self) -> None:
        self._marks.setdefault("first_test", time.time())

    def pytest_runtest_logreport(self) -> None:
        self._marks["last_report"] = time.time()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        self._marks["session_finish"] = time.time()
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        stats = reporter.stats if reporter is not None else {}
        outcomes = {
            category: len(reports)
            for category, reports in sorted(stats.items())
            if category not in ("", "warnings")  # "" holds the passed set-ups and tear-downs
        }
        self._path.write_text(
            json.dumps({"marks": self._marks, "outcomes": outcomes}), encoding="utf-8"
        )


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get(ENV_VAR)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(PhaseRecorder(config, Path(path)), "ml_suite_phases")
