"""Fixtures for running suites under forkd, as a user would: real processes, real options."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_forkd.parent.kept.store import ParentStore
from tests.leftovers import end_kept_parents, run_processes

pytest_plugins = ["pytester", "tests.forkd_fixtures", "tests.qemu_fixtures"]

#: Seconds for a suite that a test runs; far above what any takes on a busy machine.
TIMEOUT = 90

Runner = Callable[..., pytest.RunResult]


#: Where installed plugins are loaded: tests run in the order in which they stand, and nothing is
#: written to standard error that a test does not expect.
_WITH_PLUGINS = "-p no:randomly -p no:random_order -o asyncio_default_fixture_loop_scope=function"


@pytest.fixture(autouse=True)
def _plain_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that a test runs sees neither this run's workers nor the machine's other plugins."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_XDIST", "PYTEST_ADDOPTS", "COV_CORE")):
            monkeypatch.delenv(name)
    # Where they believe to be on CI, pytest says more and Hypothesis draws the same every time;
    # Hypothesis also looks at what tox passes on.
    for name in ("BUILD_NUMBER", "CI", "GITHUB_ACTIONS", "__TOX_ENVIRONMENT_VARIABLE_ORIGINAL_CI"):
        monkeypatch.delenv(name, raising=False)
    if os.environ.get("PYTEST_FORKD_TEST_AUTOLOAD"):  # tox -e real
        monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
        if not getattr(request.module, "LOADS_ALL_PLUGINS", False):
            monkeypatch.setenv("PYTEST_ADDOPTS", _WITH_PLUGINS)
    else:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """A suite that a test runs is not inside a test, as far as it knows: it keeps its parent."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


@pytest.fixture(autouse=True)
def _own_parents(_plain_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of a test find no parents but those of the same test, which end with it."""
    # Not below the test's directory: the path of a unix socket has to be short.
    with tempfile.TemporaryDirectory(prefix="forkd-test-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield
        for name in os.listdir(folder):
            end_kept_parents(ParentStore(Path(folder) / name))


@pytest.fixture
def run(pytester: pytest.Pytester) -> Runner:
    """Run the suite in the test's directory in a subprocess.

    ``run("-x", workers=3, dist="load", plugins=("pytest_cov",))``; ``runner`` is ``forkd`` (the
    default), ``xdist`` or ``plain``.
    """

    def run(
        *args: str | Path,
        workers: int | str = 2,
        runner: str = "forkd",
        plugins: tuple[str, ...] = (),
        timeout: float = TIMEOUT,
    ) -> pytest.RunResult:
        command: list[str | Path] = []
        if runner != "plain":
            command += ["-p", "xdist"]
        if runner == "forkd":
            command += ["-p", "forkd", f"--forkd-workers={workers}"]
        elif runner == "xdist":
            command += ["-n", str(workers)]
        for plugin in plugins:
            command += ["-p", plugin]
        return pytester.runpytest_subprocess(*command, *args, timeout=timeout)

    return run


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test, no process of a run may be left."""
    if "pytester" not in request.fixturenames:
        yield
        return
    directory = request.getfixturevalue("pytester").path
    yield
    left = run_processes(str(directory))
    assert not left, f"left running: {left}"
