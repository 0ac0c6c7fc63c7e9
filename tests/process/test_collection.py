"""Collection: done once, reported once, and ending as it would in a plain run or under xdist."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.conftest import Runner
from tests.parity_suite import make_recorder, read_records

#: Some tests beside a file that is of interest.
_GOOD = """
import pytest

@pytest.mark.parametrize("i", range(6))
def test_good(i):
    pass
"""


def _lines(result: pytest.RunResult, pattern: str) -> list[str]:
    """The lines, of both streams, in which a pattern is found."""
    return [line for line in result.outlines + result.errlines if re.search(pattern, line)]


# -- what is reported, and how often -----------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--continue-on-collection-errors"]], ids=" ".join)
def test_a_collection_error_is_reported_once(
    pytester: pytest.Pytester, run: Runner, options: list[str]
) -> None:
    """As under xdist, the other tests run (plain pytest needs the option for that), and the exit
    code says that tests failed.
    """
    pytester.makepyfile(
        test_good=_GOOD,
        test_broken="print('printed by the module')\nimport no_such_module",
        test_syntax="def test_it(:",
    )
    xdist = run(*options, "--maxfail=100", runner="xdist", workers=2)
    result = run(*options, workers=4)
    result.assert_outcomes(passed=6, errors=2)
    assert result.ret == xdist.ret == pytest.ExitCode.TESTS_FAILED
    assert len(_lines(result, "^E .*No module named 'no_such_module'")) == 1
    assert len(_lines(result, "^E .*SyntaxError")) == len(_lines(xdist, "^E .*SyntaxError")) == 1
    assert len(_lines(result, "printed by the module")) == 1
    assert _lines(result, "^ERROR ") == _lines(xdist, "^ERROR ")


def test_a_collection_error_stops_a_run_that_is_to_stop_at_errors(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """``-x``: the collection error is the first failure."""
    make_recorder(pytester)
    pytester.makepyfile(
        test_a="import no_such_module",
        test_good="""
        from recorder import record
        def test_good(): record("test")
        """,
    )
    result = run("-x", workers=2)
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert _lines(result, "stopping after 1 failures")
    assert not read_records(pytester.path)


def test_modules_skipped_while_collecting_are_reported_once(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """``pytest.skip`` and ``importorskip`` at module level count once, whatever the workers."""
    pytester.makepyfile(
        test_good=_GOOD,
        test_skip="import pytest\npytest.skip('not here', allow_module_level=True)",
        test_import="import pytest\npytest.importorskip('no_such_module')",
    )
    result = run("-rs", workers=4)
    result.assert_outcomes(passed=6, skipped=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["SKIPPED [[]1[]] test_skip.py:2: not here"])
    result.stdout.fnmatch_lines(["SKIPPED [[]1[]] test_import.py:2: *no_such_module*"])


def test_warnings_are_reported_once(pytester: pytest.Pytester, run: Runner) -> None:
    """One made while collecting once for the run, one made by a test once for each test."""
    pytester.makeconftest(
        """
        import warnings

        class OwnWarning(UserWarning):
            def __init__(self, code, text):
                super().__init__(code, text)
            def __str__(self):
                return f"{self.args[0]}: {self.args[1]}"
        """
    )
    pytester.makepyfile(
        test_it="""
        import warnings
        import pytest
        from conftest import OwnWarning

        warnings.warn("at import")
        warnings.warn(OwnWarning(7, "own at import"))

        @pytest.mark.parametrize("i", range(8))
        def test_it(i):
            warnings.warn(OwnWarning(i, "in a test"))

        class TestLocal:
            class LocalWarning(RuntimeWarning):
                pass

            def test_local(self):
                warnings.warn("local", self.LocalWarning)
        """
    )
    plain = run(runner="plain")
    result = run(workers=4)
    result.assert_outcomes(passed=9, warnings=11)
    assert result.ret == 0
    assert len(_lines(result, "UserWarning: at import")) == 1
    assert len(_lines(result, "OwnWarning: 7: own at import")) == 1
    # Equal warnings are put together, so this may differ in what stands before them.
    for pattern in ("in a test$", "LocalWarning: local$"):
        lines = [line.strip() for line in _lines(result, pattern)]
        assert sorted(lines) == sorted(line.strip() for line in _lines(plain, pattern))


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_warnings_as_errors_fail_what_they_fail_in_a_plain_run(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """``filterwarnings = error``: tests that warn fail, and so does a module that warns."""
    pytester.makeini(
        """
        [pytest]
        filterwarnings =
            error
            ignore:harmless
        """
    )
    pytester.makepyfile(
        test_good=_GOOD,
        test_module="import warnings\nwarnings.warn('at import')",
        test_it="""
        import warnings
        import pytest

        warnings.warn("harmless")

        def test_warns():
            warnings.warn("in a test")

        @pytest.mark.filterwarnings("ignore:in a test")
        def test_ignores():
            warnings.warn("in a test")

        def test_expects():
            with pytest.warns(UserWarning, match="expected"):
                warnings.warn("expected")
        """,
    )
    plain = run("--continue-on-collection-errors", runner="plain")
    result = run(f"--forkd-warm={warm}", workers=2)
    result.assert_outcomes(passed=8, failed=1, errors=1)
    plain.assert_outcomes(passed=8, failed=1, errors=1)
    assert result.ret == plain.ret == pytest.ExitCode.TESTS_FAILED
    assert _lines(result, "^E .*UserWarning: ") == _lines(plain, "^E .*UserWarning: ")


def test_what_a_test_module_prints_is_in_no_report(pytester: pytest.Pytester, run: Runner) -> None:
    """Output of imports is captured and dropped, unless the import fails."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        from recorder import record

        def pytest_runtest_logreport(report):
            if hasattr(report, "node"):
                record("report", sections=report.sections)
        """
    )
    pytester.makepyfile(
        test_it="""
        import os, sys
        import pytest

        print("loud out")
        print("loud err", file=sys.stderr)
        os.write(1, b"loud fd 1\\n")

        @pytest.mark.parametrize("i", range(4))
        def test_it(i):
            assert not i
        """
    )
    result = run(workers=2)
    result.assert_outcomes(passed=1, failed=3)
    assert not _lines(result, "^loud")
    reports = read_records(pytester.path)
    assert len(reports) == 12
    assert all(not entry["sections"] for entry in reports)


# -- how a run ends that has nothing to run ----------------------------------------------------


@pytest.mark.parametrize("warm", ["collection", "imports"])
@pytest.mark.parametrize("options", [[], ["-k", "nothing"]], ids=["empty", "deselected"])
def test_no_tests(pytester: pytest.Pytester, run: Runner, options: list[str], warm: str) -> None:
    """The exit code says so, and the summary is that of a plain run."""
    pytester.makepyfile(_GOOD if options else "")
    result = run(f"--forkd-warm={warm}", *options, workers=4)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert _lines(result, "= 6 deselected in " if options else "= no tests ran in ")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["no_such_file.py"], id="no-such-file"),
        pytest.param(["test_good.py::no_such_test"], id="no-such-test"),
        pytest.param(["--no-such-option"], id="no-such-option"),
        pytest.param(["-k", "not ("], id="bad-expression"),
        pytest.param(["-p", "no_such_plugin"], id="no-such-plugin"),
        pytest.param(["-o", "conftest_says=no"], id="conftest"),
    ],
)
def test_mistakes_on_the_command_line_are_told_as_in_a_plain_run(
    pytester: pytest.Pytester, run: Runner, arguments: list[str]
) -> None:
    """Once, with the same words and exit code, and without a traceback of ours."""
    pytester.makepyfile(test_good=_GOOD)
    pytester.makeconftest(
        """
        import pytest

        def pytest_addoption(parser):
            parser.addini("conftest_says", "")

        def pytest_collection_modifyitems(config):
            if config.getini("conftest_says") == "no":
                raise pytest.UsageError("the conftest says no")
        """
    )
    plain = run(*arguments, runner="plain")
    result = run(*arguments, workers=2)
    assert result.ret == plain.ret
    assert result.ret != 0
    complaint = r"(?i)^(ERROR: (?!usage)|\S.*: error: |.*Import.*Error: )"
    expected = _lines(plain, complaint)
    assert expected
    assert _lines(result, complaint) == expected
    assert not _lines(result, "INTERNALERROR|pytest_forkd")


@pytest.mark.parametrize(
    "hook", ["pytest_collection_modifyitems(items)", "pytest_collection_finish(session)"]
)
def test_an_internal_error_in_a_collection_hook_is_reported_once(
    pytester: pytest.Pytester, run: Runner, hook: str
) -> None:
    """With its traceback, and with pytest's exit code for internal errors."""
    pytester.makeconftest(f"def {hook}: raise RuntimeError('broken hook')")
    pytester.makepyfile(_GOOD)
    result = run(workers=4)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert len(_lines(result, r"^INTERNALERROR> .*RuntimeError: broken hook$")) == 1
    assert _lines(result, r"^INTERNALERROR> .*conftest\.py.*, line 1")
    assert "passed" not in result.stdout.lines[-1]


def test_an_internal_error_in_a_worker_ends_the_run(pytester: pytest.Pytester, run: Runner) -> None:
    """A hook that breaks while a test runs in a worker."""
    pytester.makeconftest(
        """
        import os
        def pytest_runtest_protocol(item):
            if item.name == "test_good[3]":
                raise RuntimeError("broken hook in " + os.environ["PYTEST_XDIST_WORKER"])
        """
    )
    pytester.makepyfile(_GOOD)
    result = run(workers=2)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert len(_lines(result, r"^INTERNALERROR> .*RuntimeError: broken hook in gw\d$")) == 1


def test_an_interrupt_while_collecting_interrupts_the_run(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A ``KeyboardInterrupt`` is shown once and ends the run."""
    pytester.makeconftest("def pytest_collection_modifyitems(): raise KeyboardInterrupt('by hand')")
    pytester.makepyfile(_GOOD)
    result = run(workers=2)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert len(_lines(result, "^!+ KeyboardInterrupt")) == 1


# -- what is collected -------------------------------------------------------------------------


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_parameters_in_no_order_of_their_own(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch, warm: str
) -> None:
    """A set of strings is no obstacle: workers are clones, and their hashes are the same.

    (xdist refuses such a suite: its workers collect it in different orders.)
    """
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    make_recorder(pytester)
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        @pytest.mark.parametrize("name", {f"name{i}" for i in range(40)})
        def test_it(name):
            record("test", name=name)
        """
    )
    run(f"--forkd-warm={warm}", workers=3).assert_outcomes(passed=40)
    names = Counter(entry["name"] for entry in read_records(pytester.path))
    assert names == Counter(f"name{i}" for i in range(40))


_CHOICE = """
import pytest
from recorder import record

@pytest.fixture(autouse=True)
def ran(request):
    record("test", nodeid=request.node.nodeid)

@pytest.mark.fast
def test_a(): pass
def test_b(): pass
class TestC:
    @pytest.mark.fast
    def test_a(self): pass
    @pytest.mark.parametrize("x", "xyz")
    def test_d(self, x): pass
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["-k", "test_a or y"],
        ["-m", "fast"],
        ["-m", "not fast", "--deselect", "test_one.py::TestC::test_d[x]"],
        ["test_one.py::TestC", "sub/test_two.py::test_b", "test_one.py::TestC::test_d[y]"],
        ["sub", "--ignore=sub/test_three.py", "--import-mode=importlib"],
        ["--rootdir=sub", "-c", "sub/other.ini"],
        ["@files.txt"],
    ],
    ids=lambda arguments: arguments[0] + " ...",
)
def test_arguments_choose_the_same_tests_as_in_a_plain_run(
    pytester: pytest.Pytester, run: Runner, arguments: list[str]
) -> None:
    """Each of them runs once."""
    if arguments == ["@files.txt"] and pytest.version_tuple < (8, 2):
        pytest.skip("arguments from files came with pytest 8.2")
    make_recorder(pytester)
    pytester.makeini("[pytest]\nmarkers = fast: not slow\npythonpath = .")
    pytester.makepyfile(test_one=_CHOICE)
    pytester.mkdir("sub")
    for name in ("test_two", "test_three"):
        (pytester.path / "sub" / f"{name}.py").write_text(_CHOICE)
    (pytester.path / "sub" / "other.ini").write_text(
        "[pytest]\nmarkers = fast: not slow\npythonpath = ..\ntestpaths = .\n"
    )
    (pytester.path / "files.txt").write_text("test_one.py\nsub/test_two.py::TestC\n")
    plain = run(*arguments, runner="plain")
    assert plain.ret == 0
    expected = Counter(entry["nodeid"] for entry in read_records(pytester.path))
    (pytester.path / "records").unlink()
    result = run(*arguments, workers=2)
    assert result.ret == 0
    assert result.parseoutcomes() == plain.parseoutcomes()
    assert Counter(entry["nodeid"] for entry in read_records(pytester.path)) == expected


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_plugins_find_deselected_tests_where_pytest_has_the_items(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """Hypothesis and many a conftest walk over ``stats``, and ended the run there."""
    pytester.makeconftest(
        """
        def pytest_terminal_summary(terminalreporter):
            for category, entries in terminalreporter.stats.items():
                for entry in entries:
                    entry.__dict__
                    if category == "deselected":
                        keywords = sorted(set(entry.keywords) & {"slow", "TestIt", entry.name})
                        line = [entry.nodeid, entry.name, entry.location[0], entry.location[2]]
                        terminalreporter.write_line(f"DESELECTED {line} {keywords}")
        """
    )
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.slow
        class TestIt:
            @pytest.mark.parametrize("text", ["a::b", "[c]"])
            def test_method(self, text): pass
        @pytest.mark.slow
        def test_function(): pass
        def test_left(): pass
        """
    )
    arguments = ["-m", "not slow", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    lines = []
    for runner in ("plain", "forkd"):
        options = [] if runner == "plain" else [f"--forkd-warm={warm}"]
        result = run(*arguments, *options, runner=runner)
        result.assert_outcomes(passed=1, deselected=3)
        lines.append([line for line in result.outlines if line.startswith("DESELECTED")])
    assert len(lines[0]) == 3
    assert lines[1] == lines[0]


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_deselected_tests_are_counted_once(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """As in a plain run, whether one process collects or every worker does."""
    pytester.makepyfile(test_one=_GOOD, test_two=_GOOD)
    arguments = ["-k", "not 3", "--deselect=test_two.py"]
    plain = run(*arguments, runner="plain")
    assert plain.parseoutcomes() == {"passed": 5, "deselected": 7}
    result = run(f"--forkd-warm={warm}", *arguments, workers=3)
    assert result.ret == 0
    assert result.parseoutcomes() == plain.parseoutcomes()


def test_conftests_of_subdirectories_count_where_they_are(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Their fixtures and hooks are for the tests below them; one may ignore files."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture
        def place():
            return "root"
        """
    )
    test = """
        from recorder import record
        def test_it(place, request):
            record("test", place=place, nodeid=request.node.nodeid)
    """
    pytester.makepyfile(**{"test_root": test, "one/test_one": test, "two/test_two": test})
    pytester.makepyfile(
        **{
            "one/conftest": """
                import pytest
                from recorder import record
                collect_ignore = ["test_ignored.py"]
                @pytest.fixture
                def place(place):
                    return place + " one"
                def pytest_runtest_setup(item):
                    record("setup", nodeid=item.nodeid)
            """,
            "one/test_ignored": "raise RuntimeError",
            "two/conftest": """
                import pytest
                @pytest.fixture
                def place(place):
                    return place + " two"
            """,
        }
    )
    run(workers=3).assert_outcomes(passed=3)
    places = {entry["nodeid"]: entry["place"] for entry in read_records(pytester.path, "test")}
    assert places == {
        "test_root.py::test_it": "root",
        "one/test_one.py::test_it": "root one",
        "two/test_two.py::test_it": "root two",
    }
    (setup,) = read_records(pytester.path, "setup")
    assert setup["nodeid"] == "one/test_one.py::test_it"


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_a_suite_may_reorder_its_tests(pytester: pytest.Pytester, run: Runner, warm: str) -> None:
    """``pytest_collection_modifyitems`` decides what is run, and in which order."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        def pytest_collection_modifyitems(config, items):
            items.reverse()
            config.hook.pytest_deselected(items=items[-2:])
            del items[-2:]
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(8))
        def test_it(i):
            record("test", i=i)
        """
    )
    run(f"--forkd-warm={warm}", workers=1).assert_outcomes(passed=6, deselected=2)
    assert [entry["i"] for entry in read_records(pytester.path)] == [7, 6, 5, 4, 3, 2]


def test_doctests_run_and_fail_as_in_a_plain_run(pytester: pytest.Pytester, run: Runner) -> None:
    """In docstrings and in text files."""
    pytester.makepyfile(
        module='''
        """
        >>> 1 + 1
        2
        """

        def function():
            """
            >>> function()
            'wanted'
            >>> [1,
            ...  2]
            [1, 2]
            """
            return "got"

        def broken():
            """
            >>> 1 / 0
            """
        '''
    )
    pytester.maketxtfile(test_text=">>> print('text')\ntext\n>>> 2\n3\n")
    plain = run("--doctest-modules", runner="plain")
    result = run("--doctest-modules", workers=2)
    plain.assert_outcomes(passed=1, failed=3)
    result.assert_outcomes(passed=1, failed=3)
    assert result.ret == plain.ret
    pattern = r"^(\d\d\d |Expected:|Got:|    '?\w|UNEXPECTED|\S+:\d+: )"
    assert sorted(_lines(result, pattern)) == sorted(_lines(plain, pattern))


def test_tests_in_files_of_another_kind(pytester: pytest.Pytester, run: Runner) -> None:
    """A conftest's own collector and items, with their own way to tell a failure."""
    pytester.makeconftest(
        """
        import pytest

        def pytest_collect_file(parent, file_path):
            if file_path.suffix == ".sums":
                return SumsFile.from_parent(parent, path=file_path)

        class SumsFile(pytest.File):
            def collect(self):
                for number, line in enumerate(self.path.read_text().splitlines()):
                    yield Sum.from_parent(self, name=f"line {number + 1}", line=line)

        class Sum(pytest.Item):
            def __init__(self, *, line, **kwargs):
                super().__init__(**kwargs)
                self.line = line

            def runtest(self):
                left, right = self.line.split("=")
                if sum(map(int, left.split("+"))) != int(right):
                    raise ArithmeticError(self.line)

            def repr_failure(self, excinfo):
                return f"wrong: {excinfo.value.args[0]}"

            def reportinfo(self):
                return self.path, 0, f"sum {self.line}"
        """
    )
    pytester.path.joinpath("all.sums").write_text("1+1=2\n1+2=4\n2+2=4\n2+3=6\n")
    result = run("-v", workers=2)
    result.assert_outcomes(passed=2, failed=2)
    for name, line in (("line 2", "1+2=4"), ("line 4", "2+3=6")):
        result.stdout.fnmatch_lines([f"* FAILED all.sums::{name} *"])
        result.stdout.fnmatch_lines([f"wrong: {line}"])
        result.stdout.fnmatch_lines([f"*_ sum {line} _*"])
