"""A worker that dies takes the test that it was running with it, and nothing else."""

from __future__ import annotations

import collections
import json
import random
from xml.etree import ElementTree

import pytest

from tests.conftest import Runner
from tests.leftovers import wait_for_no_processes
from tests.observing import assert_each_ran, blamed, matching, starts, write_suite


@pytest.mark.parametrize(
    ("how", "reason", "dump"),
    [
        ("segfault", "signal SIGSEGV", "Segmentation fault"),
        ("sigsegv", "signal SIGSEGV", "Segmentation fault"),
        ("stack_overflow", "signal SIGSEGV", "Segmentation fault"),
        ("abort", "signal SIGABRT", "Aborted"),
        ("sigkill", "signal SIGKILL", None),
        ("sigterm", "signal SIGTERM", None),
        ("exit_3", "exit code 3", None),
        ("exit_0", "exit code 0", None),
    ],
)
def test_the_running_test_fails_with_what_ended_its_worker(
    pytester: pytest.Pytester, run: Runner, how: str, reason: str, dump: str | None
) -> None:
    """Signal or exit code, faulthandler's dump, and everything printed so far are in the report."""
    write_suite(
        pytester,
        test_it=f"""
        import os, sys, pytest
        from doing import die
        @pytest.fixture
        def noisy():
            print("setup prints this")
            print("setup complains", file=sys.stderr)
        def test_before(): print("not of interest")
        def test_dies(noisy):
            print("a whole line")
            os.write(2, b"a complaint\\n")
            print("part of a line", end="")
            sys.stdout.flush()
            die({how!r})
        def test_after(): pass
        def test_last(): pass
        """,
    )
    result = run("-rfE")
    result.assert_outcomes(passed=3, failed=1)
    assert result.ret == 1
    assert blamed(result) == ["test_it.py::test_dies"]
    assert_each_ran(pytester, tests=4)
    result.stdout.fnmatch_lines(
        [
            "*worker 'gw?' crashed while running 'test_it.py::test_dies'",
            f"*The worker process died: {reason}*",
        ]
    )
    output = result.stdout.str()
    for text in ("setup prints this", "setup complains", "a whole line", "part of a line"):
        assert output.count(text) == 1, text
    assert output.count("a complaint") == 1
    assert "not of interest" not in output
    if dump is None:
        assert "Fatal Python error" not in output
    else:
        result.stdout.fnmatch_lines([f"Fatal Python error: {dump}", "*test_it.py*in test_dies"])
        assert output.count("Fatal Python error") == 1
    assert "Fatal Python error" not in result.stderr.str()


def test_a_worker_killed_from_outside_hints_at_the_memory(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """The kernel kills without a word when memory runs out, so the report says that it may have."""
    write_suite(
        pytester,
        test_it="""
        from doing import die
        def test_dies(): die("killed_by_another")
        """,
    )
    result = run("-rfE")
    result.assert_outcomes(failed=1)
    assert blamed(result) == ["test_it.py::test_dies"]
    result.stdout.fnmatch_lines(["*The worker process died: signal SIGKILL*ran out of memory*"])


@pytest.mark.parametrize("warm", ["collection", "imports"])
@pytest.mark.parametrize("how", ["segfault", "exit_0"])
@pytest.mark.parametrize("phase", ["setup", "call", "teardown", "module teardown"])
def test_a_death_in_any_phase_is_the_running_tests_own(
    pytester: pytest.Pytester, run: Runner, phase: str, how: str, warm: str
) -> None:
    """The last test of a module is the one that runs while the module's fixtures are torn down."""
    write_suite(
        pytester,
        test_a="def test_one(): pass\ndef test_two(): pass",
        test_b=f"""
        import pytest
        from doing import die
        phase = {phase!r}
        @pytest.fixture(scope="module")
        def module():
            yield
            if phase == "module teardown":
                die({how!r})
        @pytest.fixture
        def fixture(module):
            print("setup was here")
            if phase == "setup":
                die({how!r})
            yield
            if phase == "teardown":
                die({how!r})
        def test_dies(fixture):
            print("call was here")
            if phase == "call":
                die({how!r})
        """,
        test_c="def test_one(): pass\ndef test_two(): pass",
    )
    result = run("-rfE", f"--forkd-warm={warm}", "--dist=loadfile")
    result.assert_outcomes(passed=4, failed=1)
    assert result.ret == 1
    assert blamed(result) == ["test_b.py::test_dies"]
    assert_each_ran(pytester, tests=5)
    assert result.stdout.str().count("setup was here") == 1
    assert result.stdout.str().count("call was here") == (0 if phase == "setup" else 1)
    assert result.stdout.str().count("replacing crashed worker") <= 1


def test_a_failed_call_is_still_told_when_the_teardown_kills_the_worker(
    pytester: pytest.Pytester, run: Runner
) -> None:
    write_suite(
        pytester,
        test_it="""
        import pytest
        from doing import die
        @pytest.fixture
        def fixture():
            yield
            die("segfault")
        def test_dies(fixture):
            print("call", "was", "here")
            assert 2 + 2 == 5, "arithmetic"
        """,
    )
    result = run("-rfE")
    assert result.ret == 1
    assert set(blamed(result)) == {"test_it.py::test_dies"}
    result.stdout.fnmatch_lines(["*AssertionError: arithmetic"])
    result.stdout.fnmatch_lines(["*The worker process died: signal SIGSEGV*"])
    assert result.stdout.str().count("call was here") == 1


@pytest.mark.parametrize(
    "args", [["-s"], ["--capture=sys"], ["-p", "no:faulthandler"], ["-p", "no:terminal"], ["-q"]]
)
def test_a_crash_is_reported_whatever_is_switched_off(
    pytester: pytest.Pytester, run: Runner, args: list[str]
) -> None:
    write_suite(
        pytester,
        test_it="""
        from doing import die
        def test_dies(): die("segfault")
        def test_one(): pass
        def test_two(): pass
        """,
    )
    result = run(*args, "--junitxml=junit.xml")
    assert result.ret == 1
    assert_each_ran(pytester, tests=3)
    suite_ = ElementTree.parse(pytester.path / "junit.xml").getroot()[0]
    assert (suite_.get("tests"), suite_.get("errors"), suite_.get("failures")) == ("3", "1", "0")


def test_a_crash_at_the_end_of_a_session_blames_no_test(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """All tests have passed by then; the worker's death is told nevertheless."""
    write_suite(
        pytester,
        conftest="""
        import os, pathlib
        from doing import die
        def pytest_sessionfinish(session):
            if hasattr(session.config, "workerinput"):
                try:
                    pathlib.Path("died").touch(exist_ok=False)
                except FileExistsError:
                    return
                die("segfault")
        """,
        test_it="""
        import pytest
        @pytest.mark.parametrize("i", range(6))
        def test_it(i): pass
        """,
    )
    result = run("-rfE")
    result.assert_outcomes(passed=6)
    assert blamed(result) == []
    assert_each_ran(pytester, tests=6)
    assert len(matching(result.outlines, "node down: Not properly terminated: signal SIGSEGV")) == 1


def test_a_worker_that_dies_as_it_starts_is_replaced(
    pytester: pytest.Pytester, run: Runner
) -> None:
    write_suite(
        pytester,
        conftest="""
        import pathlib
        from doing import die
        def pytest_forkd_worker_start():
            try:
                pathlib.Path("died").touch(exist_ok=False)
            except FileExistsError:
                return
            die("exit_3")
        """,
        test_it="""
        import pytest
        @pytest.mark.parametrize("i", range(6))
        def test_it(i): pass
        """,
    )
    result = run("-rfE")
    result.assert_outcomes(passed=6)
    assert result.ret == 0
    assert_each_ran(pytester, tests=6)
    assert len(matching(result.outlines, "node down: Not properly terminated: exit code 3")) == 1
    assert len(matching(result.outlines, "replacing crashed worker")) == 1


@pytest.mark.parametrize("hook", ["pytest_forkd_worker_start", "pytest_configure"])
def test_workers_that_never_start_end_the_run_as_failed(
    pytester: pytest.Pytester, run: Runner, hook: str
) -> None:
    """Not with an endless series of replacements, and not as if all were well."""
    write_suite(
        pytester,
        conftest=f"""
        from doing import die
        def {hook}(config):
            if hasattr(config, "workerinput"):
                with open("deaths", "a") as file:
                    file.write("x")
                die("exit_3")
        """,
        test_it="def test_it(): pass\ndef test_that(): pass",
    )
    result = run("-rfE", "--max-worker-restart=3", "--forkd-warm=imports")
    assert result.ret != 0
    assert starts(pytester) == {}
    assert blamed(result) == []
    result.stdout.fnmatch_lines(["*maximum crashed workers reached: 3*"])
    assert 4 <= len((pytester.path / "deaths").read_text()) <= 5


CRASHES_IN_ALL_PHASES = {
    "test_a": """
        import pytest
        from doing import die
        @pytest.fixture
        def bad_setup(): die("exit_3")
        class TestOne:
            def test_1(self): pass
            def test_2(self): die("segfault")
            def test_3(self): pass
        class TestTwo:
            def test_1(self): pass
            def test_2(self, bad_setup): pass
            def test_3(self): pass
    """,
    "test_b": """
        import pytest
        from doing import die
        @pytest.fixture
        def bad_teardown():
            yield
            die("sigkill")
        @pytest.fixture(scope="module", autouse=True)
        def module(): yield
        def test_1(): pass
        def test_2(): pass
        def test_3(bad_teardown): pass
    """,
    "test_c": """
        import pytest
        from doing import die
        def test_1(): die("abort")
        @pytest.mark.parametrize("i", range(9))
        def test_2(i): pass
        def test_3(): die("exit_0")
    """,
}
CRASHING = [
    "test_a.py::TestOne::test_2",
    "test_a.py::TestTwo::test_2",
    "test_b.py::test_3",
    "test_c.py::test_1",
    "test_c.py::test_3",
]


@pytest.mark.parametrize("dist", ["load", "loadscope", "loadfile", "loadgroup", "worksteal"])
@pytest.mark.parametrize("workers", [1, 3])
def test_no_other_test_is_blamed_lost_or_run_twice(
    pytester: pytest.Pytester, run: Runner, dist: str, workers: int
) -> None:
    write_suite(pytester, **CRASHES_IN_ALL_PHASES)
    result = run("-rfE", f"--dist={dist}", "--max-worker-restart=9", workers=workers)
    result.assert_outcomes(passed=15, failed=5)
    assert result.ret == 1
    assert blamed(result) == CRASHING
    assert_each_ran(pytester, tests=20)
    # There may be nothing left for a sixth worker, or be enough others.
    assert len(matching(result.outlines, "replacing crashed worker")) in (3, 4, 5)


def test_with_dist_each_every_worker_runs_every_test_once(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A replacement goes on where the worker that it replaces has left off."""
    write_suite(pytester, **CRASHES_IN_ALL_PHASES)
    result = run("-rfE", "--dist=each", "--max-worker-restart=20")
    result.assert_outcomes(passed=30, failed=10)
    assert result.ret == 1
    assert blamed(result) == sorted(CRASHING * 2)
    assert_each_ran(pytester, tests=20, times=2)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_max_worker_restart_ends_the_run(
    pytester: pytest.Pytester, run: Runner, limit: int
) -> None:
    """One more death than replacements; each is told, and what has not run is not counted."""
    write_suite(
        pytester,
        test_it="""
        import pytest
        from doing import die
        @pytest.mark.parametrize("i", range(5))
        def test_dies(i): die("segfault")
        """,
    )
    result = run("-rfE", f"--max-worker-restart={limit}", workers=1)
    result.assert_outcomes(failed=limit + 1)
    assert result.ret == 1
    assert_each_ran(pytester, tests=limit + 1)
    assert len(matching(result.outlines, "replacing crashed worker")) == limit
    if limit:
        result.stdout.fnmatch_lines([f"*xdist: maximum crashed workers reached: {limit}*"])
    else:
        result.stdout.fnmatch_lines(["*xdist: worker gw0 crashed and worker restarting disabled*"])


def test_without_max_worker_restart_there_is_a_limit_all_the_same(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """As with xdist's ``-n``: four times the number of workers."""
    write_suite(
        pytester,
        test_it="""
        import pytest
        from doing import die
        @pytest.mark.parametrize("i", range(9))
        def test_dies(i): die("exit_3")
        """,
    )
    result = run("-rfE", workers=1)
    result.assert_outcomes(failed=5)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*xdist: maximum crashed workers reached: 4*"])


def test_many_crashes_in_one_run(pytester: pytest.Pytester, run: Runner) -> None:
    write_suite(
        pytester,
        test_it="""
        import pytest
        from doing import die
        @pytest.mark.parametrize("i", range(120))
        def test_it(i):
            if i % 3 == 1:
                die(["segfault", "exit_3", "sigkill", "exit_0"][i // 3 % 4])
        """,
    )
    result = run("-rfE", "--max-worker-restart=100", workers=3)
    result.assert_outcomes(passed=80, failed=40)
    assert result.ret == 1
    assert blamed(result) == sorted(f"test_it.py::test_it[{i}]" for i in range(1, 120, 3))
    assert_each_ran(pytester, tests=120)


def test_exitfirst_stops_at_a_crash(pytester: pytest.Pytester, run: Runner) -> None:
    write_suite(
        pytester,
        test_it="""
        import pytest
        from doing import die
        @pytest.mark.parametrize("i", range(50))
        def test_it(i):
            if i == 2:
                die("segfault")
        """,
    )
    result = run("-rfE", "-x", workers=1)
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])
    assert_each_ran(pytester, tests=3)


def test_junit_xml_reports_a_crash(pytester: pytest.Pytester, run: Runner) -> None:
    """Once, with the reason, the dump and the output."""
    write_suite(
        pytester,
        test_it="""
        import pytest
        from doing import die
        @pytest.fixture
        def noisy(): print("setup prints this")
        def test_dies(noisy):
            print("and then")
            die("segfault")
        def test_one(): pass
        """,
    )
    result = run("--junitxml=junit.xml", "-o", "junit_logging=all")
    assert result.ret == 1
    suite_ = ElementTree.parse(pytester.path / "junit.xml").getroot()[0]
    assert (suite_.get("tests"), suite_.get("errors"), suite_.get("failures")) == ("2", "1", "0")
    cases = {case.get("name"): case for case in suite_.findall("testcase")}
    assert sorted(case.get("name") or "" for case in suite_.findall("testcase")) == [
        "test_dies",
        "test_one",
    ]
    text = "".join(cases["test_dies"].itertext())
    assert "crashed while running 'test_it.py::test_dies'" in text
    assert "signal SIGSEGV" in text
    assert "Fatal Python error: Segmentation fault" in text
    assert [child.tag for child in cases["test_dies"]].count("error") == 1
    assert not {"error", "failure", "skipped"} & {child.tag for child in cases["test_one"]}


def test_a_plugin_may_queue_the_crashed_test_again(pytester: pytest.Pytester, run: Runner) -> None:
    """xdist's ``pytest_handlecrashitem``, as its documentation shows it."""
    write_suite(
        pytester,
        conftest="""
        def pytest_handlecrashitem(crashitem, report, sched):
            if not sched.config.crashed_once:
                sched.config.crashed_once = True
                sched.mark_test_pending(crashitem)
                report.outcome = "rerun"
        def pytest_configure(config):
            config.crashed_once = False
        """,
        test_it="""
        import os
        from doing import die
        def test_before(): pass
        def test_dies_once():
            try:
                os.close(os.open("died", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            die("segfault")
        def test_one(): pass
        def test_two(): pass
        """,
    )
    result = run("-rfE")
    assert result.ret == 0, result.stdout.str()
    counts = starts(pytester)
    assert counts.pop("test_it.py-test_dies_once") == 2
    assert set(counts.values()) == {1}
    assert len(counts) == 3


def test_a_worker_that_dies_waiting_has_not_torn_its_test_down(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """It waited to learn which test comes next, that is, which fixtures to tear down."""
    write_suite(
        pytester,
        conftest="""
        import os
        from xdist.scheduler import LoadScheduling
        class Holding(LoadScheduling):
            "Gives nobody more than the first two tests until one worker has been killed."
            def check_schedule(self, node, duration=0):
                if os.path.exists("killed"):
                    super().check_schedule(node, duration)
        def pytest_xdist_make_scheduler(config, log):
            return Holding(config, log)
        """,
        test_it="""
        import os, pathlib, pytest, signal, time
        from doing import first, note, wait_for

        def sleeps(pid):
            stat = pathlib.Path(f"/proc/{pid}/stat")
            return stat.read_text().rpartition(")")[2].split()[0] == "S"

        @pytest.mark.parametrize("i", range(8))
        def test_it(i, worker_id):
            if first("victim"):
                pathlib.Path("pid.tmp").write_text(f"{worker_id} {os.getpid()}")
                os.rename("pid.tmp", "pid")
                return
            wait_for("pid")
            victim, pid = pathlib.Path("pid").read_text().split()
            if victim == worker_id:
                note("second")
            elif not os.path.exists("killed"):
                wait_for("second")
                while not sleeps(pid):
                    time.sleep(0.005)
                pathlib.Path("killed").touch()
                os.kill(int(pid), signal.SIGKILL)
        """,
    )
    result = run("-rfE")
    result.assert_outcomes(passed=7, failed=1)
    assert len(blamed(result)) == 1
    assert_each_ran(pytester, tests=8)
    assert len(matching(result.outlines, "node down: Not properly terminated: signal SIGKILL")) == 1
    assert len(matching(result.outlines, "replacing crashed worker")) == 1


def test_the_death_of_a_worker_that_waits_for_its_first_test_blames_none(
    pytester: pytest.Pytester, run: Runner
) -> None:
    write_suite(
        pytester,
        conftest="""
        import os, pathlib, signal
        from doing import note, wait_for
        def pytest_testnodeready(node):
            note("ready-" + node.gateway.id)
        def pytest_forkd_worker_start(workerinput):
            if workerinput["workerid"] == "gw0":
                pathlib.Path("pid.tmp").write_text(str(os.getpid()))
                os.rename("pid.tmp", "pid")
            if workerinput["workerid"] == "gw1":
                wait_for("pid")
                wait_for("ready-gw0")
                os.kill(int(pathlib.Path("pid").read_text()), signal.SIGKILL)
        """,
        test_it="""
        import pytest
        @pytest.mark.parametrize("i", range(8))
        def test_it(i, worker_id):
            assert worker_id in ("gw1", "gw2")
        """,
    )
    result = run("-rfE", "--forkd-warm=collection")
    result.assert_outcomes(passed=8)
    assert result.ret == 0
    assert_each_ran(pytester, tests=8)
    assert len(matching(result.outlines, "node down: Not properly terminated: signal SIGKILL")) == 1


@pytest.mark.parametrize("session", [False, True], ids=["same session", "new session"])
def test_a_forked_child_that_holds_the_workers_files_does_not_hang_the_run(
    pytester: pytest.Pytester, run: Runner, session: bool
) -> None:
    """How a worker ended is told by its process, not by the end of its connection."""
    write_suite(
        pytester,
        test_it=f"""
        import os, signal
        from doing import die
        def test_dies():
            pid = os.fork()
            if pid == 0:
                if {session!r}:
                    os.setsid()
                while True:
                    signal.pause()
            die("exit_3")
        def test_one(): pass
        def test_two(): pass
        """,
    )
    result = run("-rfE")
    result.assert_outcomes(passed=2, failed=1)
    assert blamed(result) == ["test_it.py::test_dies"]
    assert_each_ran(pytester, tests=3)
    assert wait_for_no_processes(str(pytester.path), 1) == []


@pytest.mark.slow
def test_fifty_runs_full_of_crashes_lose_nothing(pytester: pytest.Pytester, run: Runner) -> None:
    """Thirty tests of which five die, again and again, in different places and modes."""
    generator = random.Random(4)
    modes = ["load", "loadscope", "loadfile", "worksteal"]
    hows = ["segfault", "exit_3", "exit_0", "sigkill", "abort"]
    source = """
        import json, pathlib, pytest
        from doing import die
        plan = json.loads(pathlib.Path("plan.json").read_text())
        @pytest.fixture
        def fixture(request):
            if plan.get(request.node.nodeid, "")[:5] == "setup":
                die(plan[request.node.nodeid][6:])
            yield
            if plan.get(request.node.nodeid, "")[:5] == "after":
                die(plan[request.node.nodeid][6:])
        @pytest.mark.parametrize("i", range(10))
        def test_it(i, fixture, request):
            if plan.get(request.node.nodeid, "")[:5] == "call ":
                die(plan[request.node.nodeid][5:])
    """
    write_suite(pytester, test_a=source, test_b=source, test_c=source)
    names = [f"test_{module}.py::test_it[{i}]" for module in "abc" for i in range(10)]
    for attempt in range(50):
        for path in (pytester.path / "runs").iterdir():
            path.unlink()
        dying = generator.sample(names, 5)
        plan = {
            name: generator.choice(["setup ", "call ", "after "]) + generator.choice(hows)
            for name in dying
        }
        pytester.path.joinpath("plan.json").write_text(json.dumps(plan))
        dist = modes[attempt % len(modes)]
        result = run("-rfE", f"--dist={dist}", "--max-worker-restart=9", workers=2 + attempt % 2)
        assert blamed(result) == sorted(dying), (dist, plan)
        result.assert_outcomes(passed=25, failed=5)
        assert collections.Counter(starts(pytester).values()) == {1: 30}, (dist, plan)


def test_a_test_that_is_taken_back_from_a_worker_that_is_dying_in_it_runs_once(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A worker's claims vanish with it, before anybody knows that it has died."""
    write_suite(
        pytester,
        conftest="""
        import os, pathlib
        from doing import wait_for
        from pytest_forkd.channel.claims import Claims
        claim = Claims.claim
        def slow_claim(self, index):
            if "PYTEST_XDIST_WORKER" not in os.environ and not os.path.exists("stealing"):
                pathlib.Path("stealing").touch()
                wait_for("dying")
                pid = pathlib.Path("dying").read_text()
                while os.path.exists(f"/proc/{pid}/exe"):
                    pass
            return claim(self, index)
        Claims.claim = slow_claim
        """,
        test_it="""
        import os, pathlib, pytest
        from doing import die, wait_for
        @pytest.mark.parametrize("i", range(8))
        def test_it(i, worker_id):
            if i < 4:
                wait_for("stealing")
            if i == 2:
                pathlib.Path("dying.new").write_text(str(os.getpid()))
                os.rename("dying.new", "dying")
                die("sigkill")
        """,
    )
    result = run("--dist=worksteal", "-rfE")
    result.assert_outcomes(passed=7, failed=1)
    assert blamed(result) == ["test_it.py::test_it[2]"]
    assert_each_ran(pytester, tests=8)
