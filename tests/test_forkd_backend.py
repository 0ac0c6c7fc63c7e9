"""Workers in machines of a forkd daemon, the stand-in: outcomes, warm levels, loss of machines."""

from __future__ import annotations

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from tests.conftest import Runner
from tests.forkd_fixtures import TAG
from tests.standin.fixture import StandIn
from tests.test_parity import Outcome, check_outcome, run_suite


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
        [f"forkd: 8 workers, forkd backend, *{TAG}*", "2 workers [[]2 items[]]"]
    )
    assert daemon.log.read_text().count("/branch HTTP") == before + 1
    assert daemon.log.read_text().count('"DELETE /v1/sandboxes') == deleted + 3
