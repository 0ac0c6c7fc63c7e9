"""A pytest plugin that writes down when a run gets where: `-p timeline_recorder`.

The file that the environment variable BENCHMARK_TIMELINE names gets a line of JSON for each step
of each process: the process's role, the step, the real-time clock in seconds, and the page faults
and processor seconds that it has had by then. A fork counts from its own beginning.
"""

from __future__ import annotations

import json
import os
import resource
import time

import pytest

_FILE = os.environ.get("BENCHMARK_TIMELINE", os.devnull)
_role = "collector" if "PYTEST_XDIST_WORKER" in os.environ else "controller"
_tests_began = False


def _note(step: str) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    line = {
        "role": _role,
        "step": step,
        "time": time.time(),
        "faults": used.ru_minflt,
        "cpu": used.ru_utime + used.ru_stime,
    }
    with open(_FILE, "a", encoding="ascii") as file:
        file.write(json.dumps(line) + "\n")


_note("plugins are imported")


def pytest_configure() -> None:
    """Conftests are loaded."""
    _note("configures")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """The session begins."""
    _note("session starts")


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Called in the controller, too, which does not collect."""
    if _role == "collector":
        _note("begins to collect")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """All items are known."""
    if _role == "collector":
        _note("has collected")


@pytest.hookimpl(optionalhook=True)
def pytest_forkd_worker_start() -> None:
    """The first code of anybody's that runs in a worker."""
    global _role
    _role = "worker"
    _note("is forked")


def pytest_runtest_logstart() -> None:
    """Called for each test; the first one counts."""
    global _tests_began
    if _role == "worker" and not _tests_began:
        _tests_began = True
        _note("begins its first test")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """All tests have ended."""
    _note("has seen the last test end")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Pytest has done its part."""
    _note("is done with pytest")
