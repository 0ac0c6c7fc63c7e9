"""The collector, or the parent above it, dies: once that is mended, twice it ends the run."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import Runner
from tests.observing import assert_each_ran, blamed, matching, starts, write_suite

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="workers die with their collector on Linux only"
)

#: At the import of a test module, which happens in the collector: how to kill that or its parent.
KILL_AT_IMPORT = {
    "collector": "os.kill(os.getpid(), signal.SIGKILL)",
    "parent": "os.kill(os.getppid(), signal.SIGKILL)",
}
who_dies = pytest.mark.parametrize("who", ["collector", "parent"])


def killing_suite(pytester: pytest.Pytester, who: str, times: int, *, tests: int = 30) -> None:
    """A suite in which tests kill the collector or the parent, ``times`` of them in all."""
    module = f"""
        import doing, os, pathlib, pytest, signal, time
        @pytest.mark.parametrize("i", range({tests // 2}))
        def test_it(i):
            killed = pathlib.Path("killed")
            victim = doing.{who}()
            if i < 3 or len(list(killed.iterdir())) == {times}:
                return
            if doing.first(killed / str(victim)):
                os.kill(victim, signal.SIGKILL)
                time.sleep(60)  # killed, too, in no time
    """
    write_suite(pytester, test_a=module, test_b=module)
    pytester.mkdir("killed")


def assert_all_ran(pytester: pytest.Pytester, *, tests: int, cut_short: int) -> None:
    """Every test was started, and only those again that ran when the collector died."""
    counts = starts(pytester)
    assert len(counts) == tests
    again = {name: count for name, count in counts.items() if count != 1}
    assert len(again) <= cut_short
    assert set(again.values()) <= {2}


@who_dies
@pytest.mark.parametrize("dist", ["load", "loadscope", "worksteal"])
@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_a_run_goes_on_without_its_collector(
    pytester: pytest.Pytester, run: Runner, who: str, dist: str, warm: str
) -> None:
    """Another one is started, nothing is lost, and no test is to blame."""
    killing_suite(pytester, who, 1)
    result = run("-rfE", f"--dist={dist}", f"--forkd-warm={warm}")
    result.assert_outcomes(passed=30)
    assert result.ret == 0
    assert blamed(result) == []
    assert_all_ran(pytester, tests=30, cut_short=2)
    assert len(matching(result.outlines, "signal SIGKILL; starting another one")) == 1
    result.stdout.fnmatch_lines([f"forkd: the {who}*ended with signal SIGKILL; starting another*"])


@who_dies
def test_with_dist_each_every_worker_still_runs_every_test(
    pytester: pytest.Pytester, run: Runner, who: str
) -> None:
    killing_suite(pytester, who, 1)
    result = run("-rfE", "--dist=each")
    result.assert_outcomes(passed=60)
    assert result.ret == 0
    counts = starts(pytester)
    assert len(counts) == 30
    assert min(counts.values()) == 2
    assert sum(counts.values()) <= 62  # both workers may have been cut short


@who_dies
def test_with_dist_each_a_worker_that_has_run_everything_is_not_replaced(
    pytester: pytest.Pytester, run: Runner, who: str
) -> None:
    """xdist's scheduler has nothing for its replacement, which was an internal error."""
    write_suite(
        pytester,
        conftest="""
        import time
        def pytest_sessionfinish(session):
            if getattr(session.config, "workerinput", {}).get("workerid") == "gw0":
                time.sleep(60)  # it has run everything, and not ended yet
        """,
        test_it=f"""
        import os, pathlib, pytest, signal, time
        from doing import {who}, first
        @pytest.mark.parametrize("n", range(5))
        def test_it(n, worker_id):
            if worker_id == "gw1" and n == 2 and first("killed"):
                deadline = time.monotonic() + 20
                while not pathlib.Path("ran").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(0.5)  # for its report
                os.kill({who}(), signal.SIGKILL)
                time.sleep(60)
            if worker_id == "gw0" and n == 4:
                pathlib.Path("ran").touch()
        """,
    )
    result = run("-rfE", "--dist=each", timeout=40)
    result.assert_outcomes(passed=10)
    assert result.ret == 0
    assert sum(starts(pytester).values()) == 11  # one was cut short


def test_failures_from_before_the_loss_are_kept(pytester: pytest.Pytester, run: Runner) -> None:
    """And a crash after it is handled as ever."""
    write_suite(
        pytester,
        test_it="""
        import os, signal, time
        from doing import collector, die, first
        def test_fails(): assert 2 + 2 == 5, "arithmetic"
        def test_passes(): pass
        def test_kills():
            if first("killed"):
                os.kill(collector(), signal.SIGKILL)
                time.sleep(60)
        def test_crashes(): die("exit_3")
        def test_last(): pass
        """,
    )
    result = run("-rfE", workers=1)
    result.assert_outcomes(passed=3, failed=2)
    assert result.ret == 1
    assert blamed(result) == ["test_it.py::test_crashes", "test_it.py::test_fails"]
    assert_all_ran(pytester, tests=5, cut_short=1)
    assert result.stdout.str().count("AssertionError: arithmetic") >= 1


@who_dies
def test_a_worker_that_dies_just_before_its_collector_is_replaced_once(
    pytester: pytest.Pytester, run: Runner, who: str
) -> None:
    """Both ends are read at once, or one after the other: nobody else is blamed, none is missed.

    Each replacement was taken for a crashed worker, since nobody was there to fork it, or it was
    never made, and the run waited for it for ever.
    """
    pytester.makepyfile(
        busy="""
        import time
        def pytest_runtest_logreport(report):
            if report.when == "call" and "first" in report.nodeid and hasattr(report, "node"):
                time.sleep(3)  # the controller is busy; both die meanwhile
        """
    )
    write_suite(
        pytester,
        test_it=f"""
        import os, pathlib, pytest, signal, time
        from doing import die, first, {who}
        def test_first(): pass
        def test_crashes():
            time.sleep(0.5)
            if first("crashed"):
                die("exit_3")
        def test_kills():
            if first("killed"):
                time.sleep(1)
                os.kill({who}(), signal.SIGKILL)
                time.sleep(60)
        @pytest.mark.parametrize("n", range(4))
        def test_more(n): pass
        """,
    )
    result = run("-rfE", "-pbusy", "--dist=load", timeout=40)
    assert blamed(result) == ["test_it.py::test_crashes"]
    result.assert_outcomes(passed=6, failed=1)
    assert result.ret == 1
    assert len(matching(result.outlines, "node down")) == 2
    assert_all_ran(pytester, tests=7, cut_short=1)


@who_dies
def test_a_second_loss_ends_the_run(pytester: pytest.Pytester, run: Runner, who: str) -> None:
    """With exit code 3 and a line that names it; no test is blamed."""
    killing_suite(pytester, who, 2)
    result = run("-rfE")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert len(list((pytester.path / "killed").iterdir())) == 2
    assert blamed(result) == []
    result.stdout.fnmatch_lines(
        [f"!*CollectorLost: the {who}*ended with signal SIGKILL; so did the one before it !*"]
    )
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


@who_dies
def test_a_collector_that_dies_while_collecting_is_replaced(
    pytester: pytest.Pytester, run: Runner, who: str
) -> None:
    write_suite(
        pytester,
        test_a="import pytest\n@pytest.mark.parametrize('i', range(5))\ndef test_it(i): pass",
        test_b=f"""
        import os, pytest, signal, time
        from doing import first
        if first("killed"):
            {KILL_AT_IMPORT[who]}
            time.sleep(60)
        @pytest.mark.parametrize("i", range(5))
        def test_it(i): pass
        """,
    )
    result = run("-rfE")
    result.assert_outcomes(passed=10)
    assert result.ret == 0
    assert_each_ran(pytester, tests=10)
    result.stdout.fnmatch_lines([f"forkd: the {who}*ended with signal SIGKILL; starting another*"])


def assert_blamed(
    pytester: pytest.Pytester, result: pytest.RunResult, reason: str, *, passed: int
) -> None:
    """The modules test_b are errors, which say how the process ended; the other tests ran."""
    result.assert_outcomes(passed=passed, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert blamed(result) == ["test_b.py"]
    shown = result.stdout.str() + result.stderr.str()
    assert "INTERNALERROR" not in shown
    assert "Traceback" not in shown
    result.stdout.fnmatch_lines([f"The process that was importing test_b.py ended with {reason}."])
    assert len(matching(result.outlines, "starting again without it")) == 1
    assert_each_ran(pytester, tests=passed)


@pytest.mark.parametrize("warm", ["auto", "imports"])
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("segfault", "signal SIGSEGV"),
        ("abort", "signal SIGABRT"),
        ("exit_3", "exit code 3"),
        ("exit_0", "exit code 0"),
    ],
)
def test_a_module_that_ends_its_process_at_import_is_an_error(
    pytester: pytest.Pytester, run: Runner, how: str, reason: str, warm: str
) -> None:
    """Of that module, with all that the process has left; the tests of the others run."""
    write_suite(
        pytester,
        test_a="def test_it(): pass",
        test_b=f"print('about to')\nfrom doing import die\ndie({how!r})",
        test_c="def test_it(): pass",
    )
    result = run("-rfE", f"--forkd-warm={warm}", workers=3)
    assert_blamed(pytester, result, reason, passed=2)
    result.stdout.fnmatch_lines(["*Captured stdout*", "about to"])
    assert matching(result.outlines, "node down") == []
    if how in ("segfault", "abort"):
        result.stdout.fnmatch_lines(["Fatal Python error: *", "*test_b.py*line 3*"])


def test_a_module_whose_import_is_killed_is_tried_twice(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """It may have been killed from outside: by the kernel, for what others took of the memory."""
    write_suite(
        pytester,
        test_a="def test_it(): pass",
        test_b="from doing import die, note\nnote('imported')\ndie('sigkill')",
    )
    result = run("-rfE")
    assert_blamed(pytester, result, "signal SIGKILL", passed=1)
    assert len((pytester.path / "imported").read_text().split()) == 2


@pytest.mark.parametrize("warm", ["auto", "imports"])
def test_several_modules_that_end_their_process_are_all_found(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    write_suite(
        pytester,
        test_a="from doing import die\ndie('exit_3')",
        test_b="def test_it(): pass",
        test_c="from doing import die\ndie('abort')",
    )
    result = run("-rfE", f"--forkd-warm={warm}")
    result.assert_outcomes(passed=1, errors=2)
    assert blamed(result) == ["test_a.py", "test_c.py"]
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("warm", ["auto", "imports"])
@pytest.mark.parametrize("how", ["import sys; sys.exit(5)", "raise SystemExit", "exit()"])
def test_a_module_that_exits_is_an_error_of_that_module(
    pytester: pytest.Pytester, run: Runner, how: str, warm: str
) -> None:
    """A plain run ends with an internal error of pytest; xdist's of two workers, with its own."""
    pytester.makepyfile(test_a=how, test_b="def test_it(): pass")
    result = run("-rfE", f"--forkd-warm={warm}")
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert blamed(result) == ["test_a.py"]
    result.stdout.fnmatch_lines(["test_a.py:1: in <module>", "E   SystemExit*"])
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()


def test_the_number_of_such_modules_has_a_limit(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makepyfile(**{f"test_{i:02}": "import os; os._exit(3)" for i in range(12)})
    result = run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["*Interrupted: The process that was importing test_10.py ended with exit code 3, as did *"]
    )


@pytest.mark.parametrize("where", ["conftest.py", "sub/conftest.py"])
@pytest.mark.parametrize("warm", ["auto", "imports"])
def test_a_conftest_that_ends_its_process_is_a_usage_error(
    pytester: pytest.Pytester, run: Runner, where: str, warm: str
) -> None:
    """Nothing can be collected without it; plain pytest dies of it without a word."""
    pytester.mkdir("sub")
    pytester.makepyfile(test_a="def test_it(): pass")
    (pytester.path / "sub" / "test_b.py").write_text("def test_it(): pass")
    (pytester.path / where).write_text(
        # The controller loads the first ones, too.
        "import os, pytest_forkd\n"
        "if pytest_forkd._config_of_a_clone or 'sub' in __file__: os._exit(3)\n"
    )
    result = run(f"--forkd-warm={warm}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: The process that was importing {where} ended with exit code 3."]
    )
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_what_a_test_had_started_goes_with_the_collector(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """The parent adopts it, and ends it at the end of the run (looked for after each test)."""
    write_suite(
        pytester,
        test_it="""
        import os, signal, subprocess, time
        from doing import collector, first
        def test_kills():
            if first("killed"):
                subprocess.Popen(["sleep", "1000"], start_new_session=True)
                os.kill(collector(), signal.SIGKILL)
                time.sleep(60)
        """,
    )
    result = run("-rfE")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
