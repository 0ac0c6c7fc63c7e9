"""Scheduling, as a suite sees it: what starts first, what stays together, what comes next."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from tests.conftest import Runner
from tests.observing import assert_each_ran, matching, write_suite

#: Every start of a test adds "worker name" to the file "order".
_ORDER = """
    import pytest
    from doing import note
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(item):
        note(item.config.rootpath / "order", item.config.workerinput["workerid"] + " " + item.name)
"""


def order(pytester: pytest.Pytester) -> list[tuple[str, str]]:
    """Worker and name of each test, in the order in which they started."""
    path = pytester.path / "order"
    lines = path.read_text().split("\n")[:-1]
    path.unlink()
    return [(worker, name) for worker, _, name in (line.partition(" ") for line in lines)]


def test_a_long_test_that_is_last_starts_first_in_the_second_run(
    pytester: pytest.Pytester, run: Runner
) -> None:
    write_suite(
        pytester,
        conftest=_ORDER,
        test_it="""
        import pytest, time
        @pytest.mark.parametrize("i", range(20))
        def test_short(i): time.sleep(0.005)
        def test_long(): time.sleep(0.5)
        """,
    )
    run().assert_outcomes(passed=21)
    assert order(pytester)[0][1] != "test_long"
    run().assert_outcomes(passed=21)
    assert "test_long" in [name for _worker, name in order(pytester)[:2]]
    run("--cache-clear").assert_outcomes(passed=21)
    assert "test_long" not in [name for _worker, name in order(pytester)[:2]]


@pytest.mark.parametrize("dist", ["", "--dist=worksteal"])
def test_a_running_test_holds_nothing_back(
    pytester: pytest.Pytester, run: Runner, dist: str
) -> None:
    """The first test ends when all others have run, wherever they were queued."""
    write_suite(
        pytester,
        conftest=_ORDER,
        test_it="""
        import pytest
        from doing import note, wait_for
        import pathlib
        @pytest.mark.parametrize("i", range(30))
        def test_it(i):
            if i == 0:
                wait_for("done-29")
            note(f"done-{i}")
            if len(list(pathlib.Path().glob("done-*"))) == 29:
                note("done-29")
        """
        if not dist
        else """
        import pytest, time
        from doing import note, wait_for
        import pathlib
        @pytest.mark.parametrize("i", range(30))
        def test_it(i):
            if i == 0:
                wait_for("enough")
            note(f"done-{i}")
            if len(list(pathlib.Path().glob("done-*"))) == 28:
                note("enough")
        """,
    )
    run(*filter(None, [dist])).assert_outcomes(passed=30)
    assert_each_ran(pytester, tests=30)


def test_a_module_fixture_is_set_up_once(pytester: pytest.Pytester, run: Runner) -> None:
    """Also in a first run, when nothing is known of it; and without being named by any test."""
    module = """
        import pytest, time
        from doing import note
        @pytest.fixture(scope="module", autouse=True)
        def costly():
            note("setups")
            time.sleep(0.05)
        @pytest.mark.parametrize("i", range(6))
        def test_it(i): pass
    """
    write_suite(pytester, **{f"test_{name}": module for name in "abcdef"})
    for warm in ("collection", "imports"):
        run("--cache-clear", f"--forkd-warm={warm}", workers=3).assert_outcomes(passed=36)
        setups = pytester.path / "setups"
        assert len(setups.read_text().split()) == 6
        setups.unlink()


@pytest.mark.parametrize(
    "dist",
    ["", "--dist=load", "--dist=worksteal", "--dist=loadscope", "--dist=loadfile", "old pluggy"],
)
def test_nextitem_in_teardown_is_the_item_that_really_is_next(
    pytester: pytest.Pytester, run: Runner, dist: str
) -> None:
    """And there is none after a worker's last test, and after that only."""
    old = ""
    if dist == "old pluggy":
        # One whose hook callers are made in another way: the next item is decided on earlier.
        old, dist = "Interactor._decide_in_teardown = lambda self: False", ""
    write_suite(
        pytester,
        conftest=f"""
        import pytest
        from doing import note
        from pytest_forkd.parent.worker.interactor import Interactor
        {old}
        def pytest_runtest_setup(item):
            note("seen-" + item.config.workerinput["workerid"], "runs " + item.nodeid)
        def pytest_runtest_teardown(item, nextitem):
            name = nextitem.nodeid if nextitem else "None"
            note("seen-" + item.config.workerinput["workerid"], "next " + name)
        """,
        **{
            f"test_{name}": """
            import pytest, time
            @pytest.fixture(scope="module")
            def shared(): yield
            @pytest.mark.parametrize("i", range(12))
            def test_it(i, shared): time.sleep(0.002 * (i % 3))
            def test_skipped(): pytest.skip("this one")
            @pytest.mark.skip
            def test_not_set_up(): pass
            """
            for name in "abc"
        },
    )
    run(*filter(None, [dist]), workers=3).assert_outcomes(passed=36, skipped=6)
    seen = list(pytester.path.glob("seen-*"))
    assert seen
    for file in seen:
        lines = file.read_text().splitlines()
        assert lines[-1] == "next None"
        assert lines.count("next None") == 1
        runs = [line for line in lines if line.startswith("runs")]
        nexts = [line for line in lines if line.startswith("next")]
        expected = [line.replace("runs", "next") for line in runs[1:]] + ["next None"]
        # A test that is marked to be skipped is torn down without having been set up.
        assert [line for line in nexts if "not_set_up" not in line] == [
            line for line in expected if "not_set_up" not in line
        ]


def test_a_protocol_without_teardown_is_fine(pytester: pytest.Pytester, run: Runner) -> None:
    """A plugin runs some tests itself, and others twice."""
    write_suite(
        pytester,
        conftest="""
        import pytest
        from _pytest.runner import runtestprotocol
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_protocol(item, nextitem):
            if "own" in item.name:
                item.ihook.pytest_runtest_logreport(report=pytest.TestReport(
                    item.nodeid, item.location, {}, "passed", None, "call"))
                return True
            if "twice" in item.name:
                runtestprotocol(item, log=False, nextitem=nextitem)
                runtestprotocol(item, nextitem=nextitem)
                return True
        """,
        test_it="""
        import pytest
        @pytest.mark.parametrize("i", range(20))
        def test_own(i): assert False
        @pytest.mark.parametrize("i", range(20))
        def test_twice(i): pass
        @pytest.mark.parametrize("i", range(20))
        def test_other(i): pass
        """,
    )
    run(workers=3).assert_outcomes(passed=60)


def test_durations_may_be_taken_along(pytester: pytest.Pytester, run: Runner) -> None:
    """To another machine, which has no cache."""
    write_suite(
        pytester,
        conftest=_ORDER,
        test_it="""
        import pytest, time
        @pytest.fixture(scope="module")
        def shared(): time.sleep(0.1)
        @pytest.mark.parametrize("i", range(20))
        def test_short(i, shared): time.sleep(0.001)
        def test_long(): time.sleep(0.4)
        def test_skipped(): pytest.skip("has no duration")
        """,
    )
    run("--forkd-durations=ci/durations.json", "-p", "no:cacheprovider").stdout.fnmatch_lines(
        ["*PytestForkdWarning*cannot write*"]
    )
    order(pytester)
    pytester.mkdir("ci")
    result = run("--forkd-durations=ci/durations.json", "-p", "no:cacheprovider")
    assert "PytestForkdWarning" not in result.stdout.str()
    order(pytester)
    content = json.loads((pytester.path / "ci/durations.json").read_text())
    tests = content["tests"]["test_it.py"]
    assert len(tests) == 21
    setup, call, teardown = tests["::test_long"]
    assert setup < 0.2
    assert 0.4 <= call < 2
    assert teardown < 0.2
    assert all(phases[0] < 0.1 for phases in tests.values())
    assert 0.1 <= content["fixtures"]["test_it.py::shared"] < 1
    pytester.makeini("[pytest]\nforkd_durations = ci/durations.json")
    run("-p", "no:cacheprovider")
    assert "test_long" in [name for _worker, name in order(pytester)[:2]]
    assert not (pytester.path / ".pytest_cache").exists()


def test_where_a_relative_path_of_durations_leads(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option: from where pytest was started; the ini value: from the root directory."""
    pytester.makeini("[pytest]\nforkd_durations = ini.json")
    pytester.makepyfile("def test_it(): pass")
    below = pytester.mkdir("below")
    monkeypatch.chdir(below)
    run("--forkd-durations=option.json", "..").assert_outcomes(passed=1)
    assert (below / "option.json").exists()
    assert not (pytester.path / "ini.json").exists()
    run("..").assert_outcomes(passed=1)
    assert (pytester.path / "ini.json").exists()


def test_durations_of_tests_that_were_not_selected_are_kept(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(test_a="def test_1(): pass\ndef test_2(): pass")
    pytester.makepyfile(test_b="def test_1(): pass\ndef test_2(): pass")
    run("--forkd-durations=d.json").assert_outcomes(passed=4)
    run("--forkd-durations=d.json", "test_a.py::test_1").assert_outcomes(passed=1)
    tests = json.loads((pytester.path / "d.json").read_text())["tests"]
    assert {file: len(names) for file, names in tests.items()} == {"test_a.py": 2, "test_b.py": 2}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"version": 2}',
        '{"version": 1, "tests": {"test_it.py": {"::test_1": [1, 2]}}, "fixtures": {}}',
        '{"version": 1, "tests": {"test_it.py": {"::test_1": [1, -2, 3]}}, "fixtures": {}}',
        '{"version": 1, "tests": {"test_it.py": {"::test_1": [1, "a", 3]}}, "fixtures": {}}',
        '{"version": 1, "tests": {"other.py": {"::test": [1, 2, 3]}}, "fixtures": {}}',
    ],
)
def test_durations_that_are_of_no_use_are_a_warning(
    pytester: pytest.Pytester, run: Runner, content: str
) -> None:
    """Damaged, or of another suite."""
    pytester.makepyfile(test_it="def test_1(): pass\ndef test_2(): pass")
    (pytester.path / "d.json").write_text(content)
    result = run("--forkd-durations=d.json")
    result.assert_outcomes(passed=2, warnings=1)
    assert len(matching(result.outlines, ": PytestForkdWarning:")) == 1
    run("--forkd-durations=d.json").assert_outcomes(passed=2)


def test_loadscope_starts_with_the_longest_group(pytester: pytest.Pytester, run: Runner) -> None:
    """Not with the one of most tests; groups stay whole."""
    write_suite(
        pytester,
        conftest=_ORDER,
        test_it="""
        import time
        class TestMany:
            def test_1(self): pass
            def test_2(self): pass
            def test_3(self): pass
            def test_4(self): pass
        class TestLong:
            def test_a(self): time.sleep(0.2)
            def test_b(self): time.sleep(0.2)
        """,
    )
    for second in (False, True):
        run("--dist=loadscope", workers=1).assert_outcomes(passed=6)
        names = "".join(name[-1] for _worker, name in order(pytester))
        assert names == ("ab1234" if second else "1234ab")
    if tuple(map(int, version("pytest-xdist").split(".")[:2])) >= (3, 7):
        run("--dist=loadscope", "--no-loadscope-reorder", workers=1).assert_outcomes(passed=6)
        assert "".join(name[-1] for _worker, name in order(pytester)) == "1234ab"


@pytest.mark.parametrize("dist", ["load", "worksteal", "each", "loadscope", "loadfile"])
def test_modes_that_are_asked_for_are_the_ones_used(
    pytester: pytest.Pytester, run: Runner, dist: str
) -> None:
    names = {"load": "LoadScheduling", "worksteal": "WorkStealingScheduling"}
    names["each"] = "EachScheduling"
    pytester.makepyfile(test_it="def test_1(): pass\ndef test_2(): pass")
    result = run(f"--dist={dist}", "-v")
    result.assert_outcomes(passed=4 if dist == "each" else 2)
    result.stdout.fnmatch_lines([f"scheduling tests via {names.get(dist, 'ForkdScheduling')}"])


def test_with_x_nothing_more_is_begun(pytester: pytest.Pytester, run: Runner) -> None:
    """What other workers have queued is taken back."""
    write_suite(
        pytester,
        conftest=_ORDER,
        test_it="""
        import pytest, time
        @pytest.mark.parametrize("i", range(200))
        def test_it(i):
            time.sleep(0.01)
            assert i
        """,
    )
    result = run("-x", workers=2)
    assert result.ret == 2
    assert len(order(pytester)) < 20


def _workers_used(pytester: pytest.Pytester) -> set[str]:
    runs = (pytester.path / "runs").iterdir()
    return {worker for path in runs for worker in path.read_text().split()}


def _forget_runs(pytester: pytest.Pytester) -> None:
    for path in (pytester.path / "runs").iterdir():
        path.unlink()


def test_what_is_known_to_be_quick_has_few_workers(pytester: pytest.Pytester, run: Runner) -> None:
    """Each worker costs something; the others do as if there had been no tests for them."""
    write_suite(
        pytester,
        conftest="""
        from doing import note
        def pytest_testnodedown(node, error):
            note("down", node.gateway.id)
            note("count", node.config.option.numprocesses)
        """,
        test_it="""
        import pytest
        @pytest.mark.parametrize("i", range(12))
        def test_it(i, request):
            assert request.config.workerinput["workercount"] == 4
        """,
    )
    run(workers=4).assert_outcomes(passed=12)
    assert len((pytester.path / "down").read_text().split()) == 4, "nothing was known"
    (pytester.path / "down").unlink()
    (pytester.path / "count").unlink()
    _forget_runs(pytester)
    run(workers=4).assert_outcomes(passed=12)
    assert len((pytester.path / "down").read_text().split()) == len(_workers_used(pytester)) == 1
    assert (pytester.path / "count").read_text().split() == ["1"], "plugins wait for so many"
    assert_each_ran(pytester, tests=12)
    # Who asks for one of xdist's schedulers gets the workers that it deals to.
    (pytester.path / "down").unlink()
    run("--dist=load", workers=4).assert_outcomes(passed=12)
    assert len((pytester.path / "down").read_text().split()) == 4


def test_more_workers_come_if_tests_take_longer_than_was_known(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Here the first test ends only once three others are running."""
    write_suite(
        pytester,
        test_it="""
        import os, pathlib, pytest
        from doing import note, wait_for
        @pytest.mark.parametrize("i", range(12))
        def test_it(i, worker_id):
            if not os.path.exists("slow"):
                return
            note("at-work", worker_id)
            if len(set(pathlib.Path("at-work").read_text().split())) == 4:
                note("all")
            wait_for("all")
        """,
    )
    run(workers=4).assert_outcomes(passed=12)
    (pytester.path / "slow").touch()
    _forget_runs(pytester)
    run(workers=4).assert_outcomes(passed=12)
    assert len(_workers_used(pytester)) == 4
    assert_each_ran(pytester, tests=12)
