"""Fixtures for runs in machines of a forkd daemon, the stand-in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# pytester forgets what is imported while a test uses it. httpx imports httpcore when it needs it,
# and would not know the exceptions of a second one.
import httpcore  # noqa: F401
import pytest

from tests.conftest import Runner
from tests.standin.fixture import StandIn

__all__ = ["TAG", "WARMUP", "assert_nothing_is_left", "options"]

TAG = "base"
WARMUP = {"FORKD_WARMUP_CMD": "python3 -m pytest_forkd.parent --ready-json"}


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A daemon with a snapshot, whose guests have nothing of the suites that tests write."""
    with StandIn(tmp_path_factory.mktemp("daemon")) as daemon:
        daemon.boot(TAG, WARMUP, {str(tmp_path_factory.getbasetemp()): None})
        yield daemon


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs write down what they have made at daemons."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "pytest-forkd" / "forkd"


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that tests in guests share with the test: ``os.environ["PYTEST_SHARED"]``."""
    with tempfile.TemporaryDirectory(prefix="forkd-shared-", dir="/var/tmp") as folder:
        monkeypatch.setenv("PYTEST_SHARED", folder)
        yield Path(folder)


def options(*daemons: StandIn, tag: str = TAG) -> list[str]:
    """What makes a run use these daemons."""
    return [
        "--forkd-backend=forkd",
        f"--forkd-tag={tag}",
        *(f"--forkd-url={each.url}" for each in daemons),
    ]


def assert_nothing_is_left(records: Path, *daemons: StandIn) -> None:
    """No sandbox, no branch, no record of any."""
    for daemon in daemons:
        assert daemon.get("/v1/sandboxes") == []
        assert not [each["tag"] for each in daemon.get("/v1/snapshots") if "run" in each["tag"]]
    assert [path.name for path in records.glob("*.json")] == []


@pytest.fixture
def forkd(run: Runner, daemon: StandIn, records: Path) -> Iterator[Runner]:
    """Run the suite in the test's directory in machines of the daemon."""

    def forkd(*args: str | Path, tag: str = TAG, **kwargs: Any) -> pytest.RunResult:
        return run(*options(daemon, tag=tag), *args, **kwargs)

    yield forkd
    assert_nothing_is_left(records, daemon)
