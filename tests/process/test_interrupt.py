"""Ctrl-C, signals and a controller that dies: fixtures are torn down, and nothing is left."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from tests.conftest import Runner
from tests.observing import BackgroundRun, wait_until, write_suite

#: Seconds for an interrupted run to end, on a busy machine; the suites here go on for a minute.
SOON = 30.0
#: Less than the ten seconds that xdist gives its workers to end.
NO_TIMEOUT = 9.0

#: A module whose fixtures of every scope note their end, and whose tests wait to be interrupted.
WAITING = """
    import pytest, time
    from doing import note
    @pytest.fixture(scope="session", autouse=True)
    def session(worker_id):
        yield
        note("torn-down", f"session {worker_id}")
    @pytest.fixture(scope="module", autouse=True)
    def module(worker_id):
        yield
        note("torn-down", f"module {worker_id}")
    @pytest.fixture
    def function(worker_id):
        yield
        note("torn-down", f"function {worker_id}")
    @pytest.mark.parametrize("i", range(8))
    def test_waits(function, worker_id, i):
        note("running-" + worker_id)
        time.sleep(60)
"""
ALL_TORN_DOWN = Counter(
    f"{scope} {worker}" for scope in ("function", "module", "session") for worker in ("gw0", "gw1")
)

everybody = pytest.mark.parametrize(
    "everybody", [True, False], ids=["as a terminal does", "controller only"]
)


@everybody
def test_ctrl_c_tears_down_every_fixture_once(pytester: pytest.Pytester, everybody: bool) -> None:
    """In every worker; then the run says that it was interrupted, and leaves nothing."""
    write_suite(pytester, test_it=WAITING)
    with BackgroundRun(pytester) as run:
        run.wait_for("running-gw0", "running-gw1")
        run.interrupt(everybody=everybody)
        assert run.wait(SOON) == pytest.ExitCode.INTERRUPTED
        assert Counter(run.lines("torn-down")) == ALL_TORN_DOWN
        assert len(run.lines("running-gw0") + run.lines("running-gw1")) == 2
        assert "KeyboardInterrupt" in run.output
        assert "no tests ran" in run.output
        assert "INTERNALERROR" not in run.output
        assert run.left(0) == []


@everybody
def test_ctrl_c_at_warm_level_imports(pytester: pytest.Pytester, everybody: bool) -> None:
    write_suite(pytester, test_it=WAITING)
    with BackgroundRun(pytester, "--forkd-warm=imports") as run:
        run.wait_for("running-gw0", "running-gw1")
        run.interrupt(everybody=everybody)
        assert run.wait(SOON) == pytest.ExitCode.INTERRUPTED
        assert Counter(run.lines("torn-down")) == ALL_TORN_DOWN
        assert "KeyboardInterrupt" in run.output
        assert run.left(0) == []


@everybody
def test_ctrl_c_keeps_the_results_so_far(pytester: pytest.Pytester, everybody: bool) -> None:
    """What has finished is counted, and failures are shown."""
    write_suite(
        pytester,
        conftest="""
        from doing import note
        def pytest_runtest_logreport(report):
            if hasattr(report, "node") and report.when == "teardown":
                note("reported")
        """,
        test_it="""
        import time
        from doing import note
        def test_passes(): pass
        def test_fails(): assert 2 + 2 == 5, "arithmetic"
        def test_waits():
            note("waiting")
            time.sleep(60)
        def test_last(): pass
        """,
    )
    with BackgroundRun(pytester, workers=1) as run:
        run.wait_for("waiting")
        assert wait_until(lambda: len(run.lines("reported")) == 2)
        run.interrupt(everybody=everybody)
        assert run.wait(SOON) == pytest.ExitCode.INTERRUPTED
        assert "1 failed, 1 passed" in run.output
        assert "AssertionError: arithmetic" in run.output
        assert run.left(0) == []


@everybody
@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_ctrl_c_during_collection(pytester: pytest.Pytester, everybody: bool, warm: str) -> None:
    write_suite(
        pytester,
        test_it="""
        import time
        from doing import note
        note("collecting")
        time.sleep(60)
        def test_it(): pass
        """,
    )
    with BackgroundRun(pytester, f"--forkd-warm={warm}") as run:
        run.wait_for("collecting")
        run.interrupt(everybody=everybody)
        assert run.wait(NO_TIMEOUT) == pytest.ExitCode.INTERRUPTED
        assert "KeyboardInterrupt" in run.output
        assert "INTERNALERROR" not in run.output
        assert run.left(0) == []


@everybody
def test_ctrl_c_while_the_parent_preloads(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, everybody: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    write_suite(
        pytester,
        slow_to_import="""
        import time
        from doing import note
        note("preloading")
        time.sleep(60)
        """,
        test_it="def test_it(): pass",
    )
    with BackgroundRun(pytester, "--forkd-preload=slow_to_import") as run:
        run.wait_for("preloading")
        run.interrupt(everybody=everybody)
        assert run.wait(SOON) == pytest.ExitCode.INTERRUPTED
        assert run.left(0) == []


@everybody
def test_ctrl_c_while_a_worker_is_idle(pytester: pytest.Pytester, everybody: bool) -> None:
    """It waits, in the teardown of its second test, to learn which is next; that goes on."""
    write_suite(
        pytester,
        conftest="""
        from doing import note
        from xdist.scheduler import LoadScheduling
        class Holding(LoadScheduling):
            "Gives nobody more than the first two tests."
            def check_schedule(self, node, duration=0):
                note("idle")
        def pytest_xdist_make_scheduler(config, log):
            return Holding(config, log)
        """,
        test_it="""
        import pytest, time
        from doing import note
        @pytest.fixture(scope="session", autouse=True)
        def session(worker_id):
            yield
            note("torn-down", worker_id)
        @pytest.mark.parametrize("i", range(8))
        def test_it(i, worker_id):
            note("started")
            if i > 1:
                note("waiting")
                time.sleep(60)
        """,
    )
    with BackgroundRun(pytester) as run:
        run.wait_for("waiting", "idle")
        run.interrupt(everybody=everybody)
        assert run.wait(SOON) == pytest.ExitCode.INTERRUPTED
        assert sorted(run.lines("torn-down")) == ["gw0", "gw1"]
        assert len(run.lines("started")) == 3
        assert run.left(0) == []


@everybody
def test_ctrl_c_leaves_a_test_time_to_clean_up(pytester: pytest.Pytester, everybody: bool) -> None:
    """A worker is interrupted once, even if the terminal and the controller both could do so."""
    write_suite(
        pytester,
        test_it="""
        import pytest, time
        from doing import note
        @pytest.fixture
        def fixture():
            yield
            time.sleep(1)
            note("torn-down")
        @pytest.mark.parametrize("i", range(2))
        def test_it(i, fixture, worker_id):
            try:
                note("running-" + worker_id)
                time.sleep(60)
            finally:
                time.sleep(1)
                note("cleaned")
        """,
    )
    with BackgroundRun(pytester) as run:
        run.wait_for("running-gw0", "running-gw1")
        run.interrupt(everybody=everybody)
        assert run.wait(SOON) == pytest.ExitCode.INTERRUPTED
        assert len(run.lines("cleaned")) == 2
        assert len(run.lines("torn-down")) == 2
        assert run.left(0) == []


@everybody
def test_ctrl_c_ends_what_tests_have_started(pytester: pytest.Pytester, everybody: bool) -> None:
    """Also what has a session of its own, which the terminal's signal does not reach."""
    write_suite(
        pytester,
        test_it="""
        import subprocess
        from doing import note
        def test_it():
            process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            note("waiting")
            process.wait()
        """,
    )
    with BackgroundRun(pytester) as run:
        run.wait_for("waiting")
        run.interrupt(everybody=everybody)
        assert run.wait(SOON) == pytest.ExitCode.INTERRUPTED
        assert run.left(0) == []


@everybody
def test_a_second_ctrl_c_waits_for_no_teardown(pytester: pytest.Pytester, everybody: bool) -> None:
    write_suite(
        pytester,
        test_it="""
        import pytest, time
        from doing import note
        @pytest.fixture
        def slow(worker_id):
            yield
            note("tearing-down-" + worker_id)
            time.sleep(30)
            note("torn-down")
        @pytest.mark.parametrize("i", range(4))
        def test_it(i, slow, worker_id):
            note("running-" + worker_id)
            time.sleep(60)
        """,
    )
    with BackgroundRun(pytester) as run:
        run.wait_for("running-gw0", "running-gw1")
        run.interrupt(everybody=everybody)
        run.wait_for("tearing-down-gw0", "tearing-down-gw1")
        run.interrupt(everybody=everybody)
        assert run.wait(NO_TIMEOUT) == pytest.ExitCode.INTERRUPTED
        assert run.lines("torn-down") == []
        assert "INTERNALERROR" not in run.output
        assert run.left(0) == []


@pytest.mark.slow
@everybody
def test_a_test_that_ignores_ctrl_c_is_killed_in_the_end(
    pytester: pytest.Pytester, everybody: bool
) -> None:
    """xdist's limit for its workers, ten seconds, holds here, too."""
    write_suite(
        pytester,
        test_it="""
        import signal, time
        from doing import note
        def test_it():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            note("waiting")
            time.sleep(60)
        """,
    )
    with BackgroundRun(pytester) as run:
        run.wait_for("waiting")
        run.interrupt(everybody=everybody)
        assert run.wait(SOON) == pytest.ExitCode.INTERRUPTED
        assert run.left(0) == []


STUBBORN = """
    import signal, subprocess, time
    from doing import note
    def test_it():
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"], start_new_session=True, cwd="/")
        note("started")
        time.sleep(60)
"""
COLLECTING = """
    import time
    from doing import note
    note("started")
    time.sleep(60)
    def test_it(): pass
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    ("source", "warm"),
    [
        pytest.param(COLLECTING, "collection", id="collecting"),
        pytest.param(COLLECTING, "imports", id="workers collecting"),
        pytest.param(STUBBORN, "collection", id="stubborn test"),
        pytest.param(STUBBORN, "imports", id="stubborn test at level imports"),
    ],
)
def test_all_of_a_run_goes_when_its_controller_is_killed(
    pytester: pytest.Pytester, source: str, warm: str, signum: signal.Signals
) -> None:
    """Within two seconds: also what ignores signals, and what it has put in a new session."""
    write_suite(pytester, test_it=source)
    with BackgroundRun(pytester, f"--forkd-warm={warm}") as run:
        run.wait_for("started")
        assert len(run.left(0)) >= 3  # the controller, the parent, the collector
        run.process.send_signal(signum)
        assert run.wait(SOON) == -signum
        assert run.left(2) == []


def test_a_keyboard_interrupt_in_a_test_ends_the_run(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """As with xdist: the worker's session is over, and then the others' are."""
    write_suite(
        pytester,
        test_it="""
        import pytest
        from doing import first, note, wait_for
        @pytest.fixture(scope="session", autouse=True)
        def session(worker_id):
            yield
            note("torn-down", worker_id)
        @pytest.mark.parametrize("i", range(40))
        def test_it(i):
            if first("interrupter"):
                wait_for("other")
                raise KeyboardInterrupt
            note("other")
        """,
    )
    result = run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*Interrupted: *received keyboard-interrupt*"])
    torn_down = (pytester.path / "torn-down").read_text().split()
    assert sorted(torn_down) == ["gw0", "gw1"]
    assert "INTERNALERROR" not in result.stdout.str()


def test_pytest_exit_in_a_test_ends_the_run_with_its_return_code(
    pytester: pytest.Pytester, run: Runner
) -> None:
    write_suite(
        pytester,
        test_it="""
        import pytest
        from doing import first, note, wait_for
        @pytest.fixture(scope="session", autouse=True)
        def session(worker_id):
            yield
            note("torn-down", worker_id)
        @pytest.mark.parametrize("i", range(40))
        def test_it(i):
            if first("leaver"):
                wait_for("other")
                pytest.exit("enough for today", returncode=7)
            note("other")
        """,
    )
    result = run()
    assert result.ret == 7
    assert "enough for today" in result.stdout.str()
    torn_down = (pytester.path / "torn-down").read_text().split()
    assert sorted(torn_down) == ["gw0", "gw1"]
