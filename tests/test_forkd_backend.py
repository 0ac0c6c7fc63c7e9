"""Workers in machines of a forkd daemon, the stand-in: outcomes, warm levels, loss of machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from tests.conftest import Runner
from tests.standin.fixture import StandIn
from tests.test_parity import Outcome, check_outcome, run_suite

TAG = "base"
WARMUP = {"FORKD_WARMUP_CMD": "python3 -m pytest_forkd.parent --ready-json"}

ForkdRunner = Callable[..., pytest.RunResult]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A daemon with a snapshot; nothing of a run may be left on it."""
    with StandIn(tmp_path_factory.mktemp("daemon")) as daemon:
        daemon.boot(TAG, WARMUP)
        yield daemon


@pytest.fixture
def forkd(run: Runner, daemon: StandIn) -> Iterator[Runner]:
    """Run the suite in the test's directory in machines of the daemon."""

    def forkd(*args: str | Path, **kwargs: object) -> pytest.RunResult:
        options = ["--forkd-backend=forkd", f"--forkd-url={daemon.url}", f"--forkd-tag={TAG}"]
        return run(*options, *args, **kwargs)

    yield forkd
    assert daemon.get("/v1/sandboxes") == []
    assert [each["tag"] for each in daemon.get("/v1/snapshots")] == [TAG]


@pytest.fixture(scope="module")
def _outcomes() -> dict[str, Outcome]:
    """The run to compare with, made once."""
    return {}


@pytest.mark.parametrize("workers", [1, 4, 8])
@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_machines_have_the_outcomes_of_a_plain_run(
    pytester: pytest.Pytester,
    run: Runner,
    forkd: Runner,
    _outcomes: dict[str, Outcome],
    workers: int,
    warm: str,
) -> None:
    """The suite of the process backend's parity test."""
    if "plain" not in _outcomes:
        _outcomes["plain"] = run_suite(pytester, run, runner="plain")
        (pytester.path / "records").unlink()
    outcome = run_suite(pytester, forkd, f"--forkd-warm={warm}", workers=workers)
    check_outcome(outcome, _outcomes["plain"])
