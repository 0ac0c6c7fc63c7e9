"""Machines and daemons that are lost in the middle of a run, and runs that are ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from tests.conftest import Runner
from tests.forkd_fixtures import TAG, WARMUP, assert_nothing_is_left, options
from tests.observing import BackgroundRun, blamed, wait_until
from tests.standin.fixture import StandIn

warm_levels = pytest.mark.parametrize("warm", ["collection", "imports"])

#: For a suite's tests: what they share with the test, and each other.
SHARED = """
    import os, pathlib, signal, time
    import pytest
    shared = pathlib.Path(os.environ["PYTEST_SHARED"])
    def note(name, text="x"):
        with open(shared / name, "a") as file:
            file.write(text + "\\n")
    def wait_for(name):
        deadline = time.monotonic() + 60
        while not (shared / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
"""


def write_suite(pytester: pytest.Pytester, tests: str) -> None:
    pytester.makepyfile(helping=SHARED)
    pytester.makepyfile(test_it="from helping import *\n" + _dedent(tests))


def _dedent(text: str) -> str:
    import textwrap

    return textwrap.dedent(text)


@pytest.fixture
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, StandIn]]:
    """Two daemons with the same snapshot."""
    base = str(tmp_path_factory.getbasetemp())
    with (
        StandIn(tmp_path_factory.mktemp("one")) as one,
        StandIn(tmp_path_factory.mktemp("two")) as other,
    ):
        for daemon in (one, other):
            daemon.boot(TAG, WARMUP, {base: None})
        yield one, other


# -- one worker --------------------------------------------------------------------------------


@warm_levels
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "The worker process died: signal SIGSEGV."),
        ("os._exit(3)", "The worker process died: exit code 3."),
        (
            "time.sleep(0.3); os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)",
            "the guest's parent process has ended",
        ),
    ],
)
def test_a_dead_worker_is_replaced_by_another_machine(
    pytester: pytest.Pytester, forkd: Runner, shared: Path, warm: str, how: str, reason: str
) -> None:
    """The test that ran is blamed, with the reason; all others run, each once."""
    write_suite(
        pytester,
        f"""
        @pytest.mark.parametrize("i", range(6))
        def test_it(i):
            note("ran", str(i))
            if i == 2:
                print("last words")
                {how}
        """,
    )
    result = forkd(f"--forkd-warm={warm}", "-rf", workers=2)
    result.assert_outcomes(passed=5, failed=1)
    assert blamed(result) == ["test_it.py::test_it[2]"]
    assert reason in result.stdout.str()
    assert sorted((shared / "ran").read_text().split()) == list("012345")


def test_a_sandbox_that_somebody_deletes(
    pytester: pytest.Pytester, daemon: StandIn, records: Path, shared: Path
) -> None:
    """Its worker is replaced, and the test that ran there fails with the reason."""
    write_suite(
        pytester,
        """
        @pytest.mark.parametrize("i", range(4))
        def test_it(i):
            if i == 0:
                note("running", os.environ["PYTEST_XDIST_WORKER"])
                time.sleep(60)
        """,
    )
    with BackgroundRun(pytester, *options(daemon), "-rf", workers=1) as run:
        assert wait_until(lambda: (shared / "running").exists(), 30)
        (sandbox,) = daemon.get("/v1/sandboxes")
        os.system(f"curl -s -X DELETE {daemon.url}/v1/sandboxes/{sandbox['id']}")
        assert run.wait(30) == pytest.ExitCode.TESTS_FAILED
        assert "1 failed, 3 passed" in run.output
        assert f"has ended sandbox {sandbox['id']}" in run.output
        assert run.left(5) == []
    assert_nothing_is_left(records, daemon)


# -- several daemons ---------------------------------------------------------------------------


@warm_levels
def test_workers_are_dealt_over_the_daemons(
    pytester: pytest.Pytester,
    run: Runner,
    two: tuple[StandIn, StandIn],
    records: Path,
    shared: Path,
    warm: str,
) -> None:
    """Half of them each."""
    write_suite(
        pytester,
        """
        @pytest.mark.parametrize("i", range(4))
        def test_it(i):
            note("worker-" + os.environ["PYTEST_XDIST_WORKER"])
            while len(list(shared.glob("worker-*"))) < 4:
                time.sleep(0.01)
        """,
    )
    result = run(*options(*two), f"--forkd-warm={warm}", workers=4)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([f"forkd: 4 workers, forkd backend, snapshot {TAG} at 2 daemons"])
    for daemon in two:
        spawned = daemon.log.read_text().count('"DELETE /v1/sandboxes')
        assert spawned == (3 if warm == "collection" else 2)
    assert_nothing_is_left(records, *two)


@warm_levels
def test_a_daemon_that_dies_loses_its_workers_and_no_test(
    pytester: pytest.Pytester,
    two: tuple[StandIn, StandIn],
    records: Path,
    shared: Path,
    warm: str,
) -> None:
    """The tests that ran there run again elsewhere, and nobody is blamed."""
    write_suite(
        pytester,
        """
        @pytest.mark.parametrize("i", range(12))
        def test_it(i):
            note("running-" + os.environ["PYTEST_XDIST_WORKER"])
            wait_for("go-on")
            time.sleep(0.05)
        """,
    )
    one, other = two
    with BackgroundRun(pytester, *options(*two), f"--forkd-warm={warm}", workers=4) as run:
        assert wait_until(lambda: len(list(shared.glob("running-*"))) == 4, 30), run.output
        one.kill()
        assert wait_until(lambda: "is lost" in run.output, 30), run.output
        (shared / "go-on").touch()
        assert run.wait(60) == pytest.ExitCode.OK, run.output
        assert "12 passed" in run.output
        assert "failed" not in run.output.splitlines()[-1]
        assert run.output.count("is lost") == 2
    assert other.get("/v1/sandboxes") == []


def test_a_daemon_that_is_not_there_is_done_without(
    pytester: pytest.Pytester, run: Runner, two: tuple[StandIn, StandIn], records: Path
) -> None:
    """The header says so."""
    one, other = two
    one.kill()
    pytester.makepyfile("def test_it(): pass")
    result = run(*options(*two), workers=2)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"forkd: 2 workers, forkd backend, *; without {one.url}"])
    assert_nothing_is_left(records, other)


def test_when_the_last_daemon_dies_the_run_ends(
    pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, records: Path, shared: Path
) -> None:
    """It does not hang, and says what has happened."""
    write_suite(
        pytester,
        """
        @pytest.mark.parametrize("i", range(4))
        def test_it(i):
            note("running")
            time.sleep(60)
        """,
    )
    with StandIn(tmp_path_factory.mktemp("only")) as daemon:
        daemon.boot(TAG, WARMUP, {str(tmp_path_factory.getbasetemp()): None})
        with BackgroundRun(pytester, *options(daemon), workers=2) as run:
            assert wait_until(lambda: (shared / "running").exists(), 30), run.output
            daemon.kill()
            assert run.wait(60) == pytest.ExitCode.INTERNAL_ERROR, run.output
            assert daemon.url in run.output
            assert "sandboxes are left" in run.output
            assert "pytest-forkd prune" in run.output


# -- the end of a run --------------------------------------------------------------------------


@warm_levels
def test_ctrl_c_tears_down_fixtures_and_deletes_machines(
    pytester: pytest.Pytester, daemon: StandIn, records: Path, shared: Path, warm: str
) -> None:
    """As under the process backend."""
    write_suite(
        pytester,
        """
        @pytest.fixture(scope="session", autouse=True)
        def session(worker_id):
            yield
            note("torn-down", worker_id)
        @pytest.mark.parametrize("i", range(4))
        def test_it(i, worker_id):
            note("running-" + worker_id)
            time.sleep(60)
        """,
    )
    with BackgroundRun(pytester, *options(daemon), f"--forkd-warm={warm}") as run:
        assert wait_until(lambda: len(list(shared.glob("running-*"))) == 2, 30), run.output
        run.interrupt(everybody=True)
        assert run.wait(30) == pytest.ExitCode.INTERRUPTED
        assert sorted((shared / "torn-down").read_text().split()) == ["gw0", "gw1"]
        assert "KeyboardInterrupt" in run.output
        assert run.left(5) == []
    assert_nothing_is_left(records, daemon)


@warm_levels
def test_ctrl_c_while_collecting(
    pytester: pytest.Pytester, daemon: StandIn, records: Path, shared: Path, warm: str
) -> None:
    """What collects goes with its machine."""
    write_suite(pytester, 'note("collecting")\ntime.sleep(60)')
    with BackgroundRun(pytester, *options(daemon), f"--forkd-warm={warm}") as run:
        assert wait_until(lambda: (shared / "collecting").exists(), 30), run.output
        run.interrupt(everybody=True)
        start = time.monotonic()
        assert run.wait(30) == pytest.ExitCode.INTERRUPTED
        assert time.monotonic() - start < 15
        assert run.left(5) == []
    assert_nothing_is_left(records, daemon)


def test_a_controller_that_is_killed_leaves_no_machine(
    pytester: pytest.Pytester, daemon: StandIn, records: Path, shared: Path
) -> None:
    """What it had is on record, and the reaper deletes it."""
    write_suite(pytester, 'def test_it():\n    note("running")\n    time.sleep(60)')
    with BackgroundRun(pytester, *options(daemon)) as run:
        assert wait_until(lambda: (shared / "running").exists(), 30), run.output
        assert list(records.glob("*.json"))
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        assert wait_until(lambda: daemon.get("/v1/sandboxes") == [], 20)
        assert wait_until(lambda: list(records.glob("*.json")) == [], 20)
        assert run.left(10) == []
    assert_nothing_is_left(records, daemon)


# -- a bad line --------------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_workers_over_a_line_that_loses_and_delays(
    pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, records: Path
) -> None:
    """Every report arrives, once. ``FORKD_SOAK_SECONDS`` says for how long; 15 by default."""
    seconds = float(os.environ.get("FORKD_SOAK_SECONDS", "15"))
    count = int(seconds * 8 / 0.1)
    pytester.makepyfile(
        f"""
        import time
        import pytest
        @pytest.mark.parametrize("i", range({count}))
        def test_it(i):
            print("x" * (i % 50) * 100)
            time.sleep(0.1)
        """
    )
    with StandIn(tmp_path_factory.mktemp("soak")) as daemon:
        daemon.boot(TAG, WARMUP, {str(tmp_path_factory.getbasetemp()): None})
        path = "/v1/sandboxes/[^/]+/eval"
        kinds: list[dict[str, Any]] = [
            {"drop": "before"},
            {"drop": "after"},
            {"delay": 0.5},
            {"status": 500},
        ]
        daemon.faults(
            *({"path": path, "skip": 100 * i, **kinds[i % 4]} for i in range(1, int(seconds * 3)))
        )
        with BackgroundRun(pytester, *options(daemon), "-rA", "-q", workers=8) as run:
            assert run.wait(seconds * 4 + 60) == pytest.ExitCode.OK, run.output[-3000:]
            assert f"{count} passed" in run.output
            assert "node down" not in run.output
            assert len(set(_passed(run.output))) == len(_passed(run.output)) == count
        log = daemon.log.read_text()
        assert log.count('/eval HTTP/1.1" 500') >= 5
        assert_nothing_is_left(records, daemon)


def _passed(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("PASSED ")]


@pytest.mark.slow
def test_a_daemon_that_hangs_is_given_up(
    pytester: pytest.Pytester,
    two: tuple[StandIn, StandIn],
    records: Path,
    shared: Path,
) -> None:
    """It accepts connections and answers nothing: its workers' tests run elsewhere."""
    write_suite(
        pytester,
        """
        @pytest.mark.parametrize("i", range(4))
        def test_it(i):
            note("running-" + os.environ["PYTEST_XDIST_WORKER"])
            wait_for("go-on")
        """,
    )
    one, other = two
    with BackgroundRun(pytester, *options(*two), "--forkd-warm=imports", workers=2) as run:
        assert wait_until(lambda: len(list(shared.glob("running-*"))) == 2, 30), run.output
        os.kill(one.pid, signal.SIGSTOP)
        try:
            assert wait_until(lambda: "is lost" in run.output, 90), run.output
            (shared / "go-on").touch()
            assert run.wait(90) == pytest.ExitCode.OK, run.output
        finally:
            os.kill(one.pid, signal.SIGCONT)
        assert "4 passed" in run.output
    assert other.get("/v1/sandboxes") == []
