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
    """A daemon with a snapshot, whose guests have nothing of the suites that tests write."""
    with StandIn(tmp_path_factory.mktemp("daemon")) as daemon:
        daemon.boot(TAG, WARMUP, {str(tmp_path_factory.getbasetemp()): None})
        yield daemon


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs write down what they have made at daemons."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "pytest-forkd" / "forkd"


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

    def forkd(*args: str | Path, tag: str = TAG, **kwargs: object) -> pytest.RunResult:
        return run(*options(daemon, tag=tag), *args, **kwargs)

    yield forkd
    assert_nothing_is_left(records, daemon)


@pytest.fixture(scope="module")
def known() -> dict[str, Outcome]:
    """The run to compare with, made once."""
    return {}


@pytest.mark.parametrize("workers", [1, 4, 8])
@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_machines_have_the_outcomes_of_a_plain_run(
    pytester: pytest.Pytester,
    run: Runner,
    forkd: Runner,
    known: dict[str, Outcome],
    workers: int,
    warm: str,
) -> None:
    """The suite of the process backend's parity test."""
    if "plain" not in known:
        known["plain"] = run_suite(pytester, run, runner="plain")
        (pytester.path / "records").unlink()
    outcome = run_suite(pytester, forkd, f"--forkd-warm={warm}", workers=workers)
    check_outcome(outcome, known["plain"])


# -- where tests run ---------------------------------------------------------------------------


def test_tests_run_in_guests_with_an_environment_of_their_own(
    pytester: pytest.Pytester, forkd: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not known to be harmless stays here, the token above all."""
    for name in ("SECRET", "FORKD_TOKEN", "PYTEST_FORKD_SOCKET", "API_HOST", "TZ"):
        monkeypatch.setenv(name, "from-here")
    pytester.makeini("[pytest]\nforkd_env =\n  API_*\n  FORKD_*\n")
    pytester.makepyfile(
        """
        import os, time
        def test_where():
            assert os.path.exists("/run/pytest-forkd.socket")
            assert os.environ["PYTEST_XDIST_WORKER"] == "gw0"
        def test_environment():
            assert os.environ["API_HOST"] == os.environ["TZ"] == "from-here"
            assert time.tzname[0] == "from"
            assert "SECRET" not in os.environ
            assert "FORKD_TOKEN" not in os.environ
            assert "PYTEST_FORKD_SOCKET" not in os.environ
            assert "STANDIN_CONTROL" in os.environ  # the guest's own
        """
    )
    forkd(workers=1).assert_outcomes(passed=2)


def test_there_are_no_more_machines_than_tests(
    pytester: pytest.Pytester, forkd: Runner, daemon: StandIn
) -> None:
    """Where the collection is known before they are made."""
    pytester.makepyfile("def test_a(): pass\ndef test_b(): pass")
    before = daemon.log.read_text().count("/branch HTTP")
    deleted = daemon.log.read_text().count('"DELETE /v1/sandboxes')
    result = forkd("--forkd-warm=collection", workers=8)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["created: 2/2 workers", f"forkd: 8 workers, forkd backend, *{TAG}*"]
    )
    assert daemon.log.read_text().count("/branch HTTP") == before + 1
    assert daemon.log.read_text().count('"DELETE /v1/sandboxes') == deleted + 3
