"""Workers in machines of a forkd daemon, the stand-in: outcomes, warm levels, loss of machines."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from tests.conftest import Runner
from tests.forkd_fixtures import TAG, WARMUP
from tests.process.test_parity import Outcome, check_outcome, run_suite
from tests.standin.fixture import StandIn


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


@pytest.mark.parametrize("source", ["default", "option", "ini"])
def test_what_machines_are_granted(
    pytester: pytest.Pytester, forkd: Runner, daemon: StandIn, source: str
) -> None:
    """Memory, and a network namespace of their own unless none is wanted."""
    pytester.makepyfile("import time\ndef test_a(): time.sleep(0.5)")
    options = []
    if source == "option":
        options = ["--forkd-memory=300", "--no-forkd-netns"]
    elif source == "ini":
        pytester.makeini("[pytest]\nforkd_memory = 300\nforkd_netns = no")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(forkd, *options, workers=1)
        seen = []
        while not running.done():
            seen += daemon.get("/v1/sandboxes")
            time.sleep(0.02)
    running.result().assert_outcomes(passed=1)
    assert {each["memory_limit_mib"] for each in seen} == {None if source == "default" else 300}
    assert {each["netns"] is not None for each in seen} == {source == "default"}


# -- warm level auto ---------------------------------------------------------------------------


def test_a_short_collection_is_not_shared_the_next_time(
    pytester: pytest.Pytester, forkd: Runner, daemon: StandIn
) -> None:
    """Branching takes longer; and as soon as it has become long, it is shared again."""
    pytester.makepyfile(test_it="def test_a(): pass\ndef test_b(): pass")

    def branches() -> int:
        return daemon.log.read_text().count("/branch HTTP")

    before = branches()
    for expected in (1, 1):  # unknown, so it is shared; then it is known to be short
        forkd().assert_outcomes(passed=2)
        assert branches() == before + expected
    (pytester.path / "test_it.py").write_text("import time; time.sleep(1.2)\ndef test_a(): pass\n")
    for expected in (1, 2):  # it is noticed to have become long
        forkd().assert_outcomes(passed=1)
        assert branches() == before + expected


def test_a_suite_that_cannot_share_its_collection(pytester: pytest.Pytester, forkd: Runner) -> None:
    """One line says why, and each machine collects."""
    pytester.makeconftest("import os; NAME = os.environ.get('PYTEST_XDIST_WORKER')")
    pytester.makepyfile(
        """
        import conftest, pytest
        @pytest.mark.parametrize("i", range(4))
        def test_it(i, worker_id):
            assert conftest.NAME == worker_id
        """
    )
    result = forkd(workers=2)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["forkd: each worker collects for itself: *(conftest.py:1)"])


# -- the working tree --------------------------------------------------------------------------


def test_what_the_snapshot_has_is_made_what_is_here(
    pytester: pytest.Pytester, forkd: Runner, daemon: StandIn
) -> None:
    """Added, changed and deleted files, links, modes; what is excluded stays."""
    root = pytester.path
    pytester.makepyfile(helper="VALUE = 'old'", gone="import nothing_like_that")
    pytester.makepyfile(test_gone="def test_gone(): assert 0")
    (root / "data").mkdir()
    (root / "data" / "big").write_text("of the snapshot")
    daemon.boot("project", WARMUP, {str(root): str(root)})
    for name in ("gone.py", "test_gone.py"):
        (root / name).unlink()
    (root / "data" / "big").write_text("of the working tree")
    (root / "helper.py").write_text("VALUE = 'new'")
    (root / "ä b\n.txt").write_text("odd")
    (root / "link").symlink_to("helper.py")
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o755)
    pytester.makeini("[pytest]\nforkd_sync_exclude = data/big\n")
    pytester.makepyfile(
        test_tree="""
        import helper, os, pathlib
        here = pathlib.Path(__file__).parent
        def test_tree():
            assert helper.VALUE == "new"
            assert (here / "ä b\\n.txt").read_text() == "odd"
            assert os.readlink(here / "link") == "helper.py"
            assert os.access(here / "script", os.X_OK)
            assert not (here / "gone.py").exists()
            assert (here / "data" / "big").read_text() == "of the snapshot"
        def test_writes():
            (here / "helper.py").write_text("in the guest only")
        """
    )
    for warm in ("collection", "imports"):
        forkd(f"--forkd-warm={warm}", tag="project", workers=2).assert_outcomes(passed=2)
    assert (root / "helper.py").read_text() == "VALUE = 'new'"
    result = forkd("--no-forkd-sync", tag="project", workers=2)
    result.stdout.fnmatch_lines(["*test_gone.py*"])
    daemon_delete(daemon, "project")


def test_a_snapshot_with_other_dependencies_is_refused(
    pytester: pytest.Pytester, forkd: Runner, daemon: StandIn
) -> None:
    """With how to build it anew; unless the user insists."""
    pytester.makepyfile("def test_it(): pass")
    requirements = pytester.path / "requirements.txt"
    requirements.write_text("numpy==1\n")
    daemon.boot("stale", WARMUP, {str(pytester.path): str(pytester.path)})
    forkd(tag="stale").assert_outcomes(passed=1)
    requirements.write_text("numpy==2\n")
    for warm in ("collection", "imports"):
        result = forkd(f"--forkd-warm={warm}", tag="stale", workers=3)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            [
                "ERROR: pytest-forkd: the snapshot is stale: requirements.txt*",
                "Build it anew: pytest-forkd snapshot build*",
                "*--forkd-allow-stale",
            ]
        )
    forkd("--forkd-allow-stale", tag="stale").assert_outcomes(passed=1)
    daemon_delete(daemon, "stale")


def daemon_delete(daemon: StandIn, tag: str) -> None:
    from pytest_forkd.forkd.client import Client

    with Client(daemon.url) as client:
        assert client.delete_snapshot(tag)


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_no_two_machines_draw_the_same(
    pytester: pytest.Pytester, forkd: Runner, shared: Path, warm: str
) -> None:
    """Clones of one process would, if nothing was done about it."""
    pytester.makepyfile(
        """
        import os, pathlib, random, tempfile, time, uuid
        import pytest
        shared = pathlib.Path(os.environ["PYTEST_SHARED"])
        @pytest.mark.parametrize("i", range(4))
        def test_draws(i, worker_id):
            draws = [random.random(), random.SystemRandom().random(), os.urandom(8).hex(),
                     uuid.uuid4(), next(tempfile._get_candidate_names())]
            (shared / f"{worker_id}.part").write_text("\\n".join(map(str, draws)))
            os.rename(shared / f"{worker_id}.part", shared / worker_id)
            while len(list(shared.glob("gw?"))) < 4:
                time.sleep(0.01)
        """
    )
    forkd(f"--forkd-warm={warm}", workers=4).assert_outcomes(passed=4)
    draws = [line for path in shared.iterdir() for line in path.read_text().split("\n")]
    assert len(draws) == len(set(draws)) == 20


def test_an_agent_that_evaluates_nothing(
    pytester: pytest.Pytester, forkd: Runner, daemon: StandIn
) -> None:
    """Then each exchange is a command; slower, and the same."""
    pytester.makepyfile(
        """
        import pytest, sys
        @pytest.mark.parametrize("i", range(20))
        def test_it(i):
            print("x" * 100_000)
            assert i != 3
        """
    )
    daemon.faults({"path": "/v1/sandboxes/[^/]+/eval", "status": 500, "times": -1})
    try:
        result = forkd(workers=2)
    finally:
        daemon.faults()
    result.assert_outcomes(passed=19, failed=1)
    assert result.stdout.str().count("x" * 100_000) == 1


def test_standard_error_arrives_as_it_is_written(pytester: pytest.Pytester, forkd: Runner) -> None:
    """With ``-s``, and from outside of tests."""
    pytester.makeconftest("import os; os.write(2, b'while collecting\\n')")
    pytester.makepyfile(
        """
        import os, sys
        def test_it():
            print("from a test", file=sys.stderr)
            os.write(2, b"from below")
        """
    )
    result = forkd("-s", workers=1)
    result.assert_outcomes(passed=1)
    for text in ("while collecting", "from a test", "from below"):
        assert text in result.stderr.str()


@pytest.mark.parametrize(
    ("conftest", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the guest's parent process has ended"),
        ("import os; os._exit(7)", "the guest's parent process has ended"),
        ("raise MemoryError('no room')", "no room"),
    ],
)
def test_a_collector_that_dies(
    pytester: pytest.Pytester, forkd: Runner, conftest: str, said: str
) -> None:
    """The run ends, and says why."""
    pytester.makeconftest(
        "import os\nif 'PYTEST_XDIST_WORKER' in dict(os.environ):\n    " + conftest
    )
    pytester.makepyfile("def test_it(): pass")
    result = forkd("--forkd-warm=collection", workers=2)
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERNAL_ERROR)
    assert said in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize(
    "faults",
    [
        [{"path": "/v1/sandboxes$", "status": 400}],
        [{"path": "/v1/sandboxes/[^/]+/branch", "status": 400}],
        [{"path": "/v1/sandboxes/[^/]+/branch", "status": 503, "times": 2}],
        [{"path": "/v1/sandboxes/[^/]+/ping", "status": 500, "times": 3}],
    ],
    ids=["no live fork", "no live branch", "four branches already", "slow agent"],
)
def test_what_a_daemon_may_refuse_at_first(
    pytester: pytest.Pytester, forkd: Runner, daemon: StandIn, faults: list[dict[str, object]]
) -> None:
    """There is another way, or it is a matter of time."""
    pytester.makepyfile("def test_a(): pass\ndef test_b(): pass")
    daemon.faults(*({"method": "POST", **each} for each in faults))
    try:
        forkd("--forkd-warm=collection").assert_outcomes(passed=2)
    finally:
        daemon.faults()


def test_a_branch_that_cannot_be_made_ends_the_run(
    pytester: pytest.Pytester, forkd: Runner, daemon: StandIn
) -> None:
    """With the daemon's reason."""
    pytester.makepyfile("def test_a(): pass")
    daemon.faults({"path": "/v1/sandboxes/[^/]+/branch", "status": 500, "times": -1})
    try:
        result = forkd("--forkd-warm=collection")
    finally:
        daemon.faults()
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert "cannot branch: " in result.stdout.str()
    assert "injected" in result.stdout.str()
