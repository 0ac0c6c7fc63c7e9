"""The same suite run plainly, under xdist and under forkd: the same outcomes, reports and files."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import Runner
from tests.parity_suite import make_suite, read_records

#: The test that takes a known time, and how long.
_TAKES_TIME, _SECONDS = "test_outcomes.py::test_takes_time", 0.05


@dataclass
class Outcome:
    """A run of the suite, without what may differ: order, times, addresses and directories.

    :ivar ret: the exit code.
    :ivar counts: of the last line.
    :ivar reports: every report that the user's process saw.
    :ivar warnings: every warning that a test made.
    :ivar suite: the counts in the JUnit file.
    :ivar cases: its test cases.
    """

    ret: int
    counts: dict[str, int]
    reports: Counter[str]
    warnings: Counter[str]
    suite: dict[str, str]
    cases: Counter[str]


def run_suite(pytester: pytest.Pytester, run: Runner, *options: str, **kwargs: Any) -> Outcome:
    make_suite(pytester)
    junit = ["--junitxml=junit.xml", "-ojunit_family=xunit1", "-ojunit_logging=all"]
    result = run("--doctest-modules", *junit, *options, **kwargs)

    def normal(text: str) -> str:
        return re.sub(r"0x[0-9a-f]+", "0x...", text.replace(str(pytester.path), "DIRECTORY"))

    reports: Counter[str] = Counter()
    for entry in read_records(pytester.path, "report"):
        duration, start, stop = (entry.pop(key) for key in ("duration", "start", "stop"))
        assert start <= stop
        assert duration >= 0
        if entry["nodeid"] == _TAKES_TIME and entry["when"] == "call":
            assert duration >= _SECONDS
        del entry["pid"]
        reports[normal(repr(sorted(entry.items())))] += 1
    warnings: Counter[str] = Counter()
    for entry in read_records(pytester.path, "warning"):
        del entry["pid"]
        warnings[repr(sorted(entry.items()))] += 1

    suite = ET.parse(pytester.path / "junit.xml").getroot()[0]
    assert float(suite.attrib.pop("time")) > 0
    for changing in ("timestamp", "hostname"):
        assert suite.attrib.pop(changing)
    cases: Counter[str] = Counter()
    for case in suite.iter("testcase"):
        seconds = float(case.attrib.pop("time"))
        assert seconds >= (_SECONDS if case.get("name") == "test_takes_time" else 0)
        case.tail = None
        cases[normal(ET.tostring(case, encoding="unicode"))] += 1
    return Outcome(int(result.ret), result.parseoutcomes(), reports, warnings, suite.attrib, cases)


@pytest.fixture(scope="module")
def _outcomes() -> dict[str, Outcome]:
    """What the runs to compare with came to; they are made once."""
    return {}


@pytest.fixture
def plain(pytester: pytest.Pytester, run: Runner, _outcomes: dict[str, Outcome]) -> Outcome:
    """The suite run by pytest alone."""
    if "plain" not in _outcomes:
        _outcomes["plain"] = run_suite(pytester, run, runner="plain")
        (pytester.path / "records").unlink()
    return _outcomes["plain"]


def _differences(found: Counter[str], wanted: Counter[str]) -> list[str]:
    return [f"- {text}" for text in wanted - found] + [f"+ {text}" for text in found - wanted]


def check_outcome(outcome: Outcome, plain: Outcome) -> None:
    assert outcome.ret == plain.ret == pytest.ExitCode.TESTS_FAILED
    assert _differences(outcome.reports, plain.reports) == []
    assert _differences(outcome.cases, plain.cases) == []
    assert outcome.suite == plain.suite
    assert outcome.warnings == plain.warnings
    assert outcome.counts == plain.counts


def test_the_suite_has_one_of_everything(plain: Outcome) -> None:
    """So that the comparisons mean something."""
    kinds = {"passed", "failed", "errors", "skipped", "xfailed", "xpassed", "warnings"}
    assert set(plain.counts) == kinds
    assert len(plain.cases) > 80
    assert len(plain.warnings) == 6
    if pytest.version_tuple >= (9, 0):
        assert any("('type', 'SubtestReport')" in report for report in plain.reports)


def test_xdist_has_the_outcomes_of_a_plain_run(
    pytester: pytest.Pytester, run: Runner, plain: Outcome
) -> None:
    """What is compared is the same under xdist, so forkd may not differ either."""
    check_outcome(run_suite(pytester, run, runner="xdist", workers=2), plain)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_forkd_has_the_outcomes_of_a_plain_run(
    pytester: pytest.Pytester, run: Runner, plain: Outcome, workers: int, warm: str
) -> None:
    """With any number of workers and at either warm level."""
    check_outcome(run_suite(pytester, run, f"--forkd-warm={warm}", workers=workers), plain)


@pytest.mark.parametrize("dist", ["loadscope", "loadfile", "worksteal"])
def test_the_outcomes_do_not_depend_on_the_distribution(
    pytester: pytest.Pytester, run: Runner, plain: Outcome, dist: str
) -> None:
    """Who runs what changes no report."""
    check_outcome(run_suite(pytester, run, f"--dist={dist}", workers=3), plain)


def test_a_test_may_stop_or_set_the_clock(pytester: pytest.Pytester, run: Runner) -> None:
    """As freezegun does: pytest's durations are nonsense then, in a plain run, too."""
    pytester.makepyfile(
        """
        import _pytest.timing, pytest, time
        @pytest.fixture
        def clock(request):
            real = _pytest.timing.perf_counter
            _pytest.timing.perf_counter = lambda: request.param
            yield
            _pytest.timing.perf_counter = real
        @pytest.mark.parametrize("clock", [0.0, -1e12, 1.7e9, 1e14], indirect=True)
        @pytest.mark.parametrize("i", range(2))
        def test_it(clock, i): pass
        """
    )
    for args in ([], ["--forkd-warm=imports"], []):  # the last knows what they took
        result = run("--durations=5", *args)
        result.assert_outcomes(passed=8)
        assert result.ret == 0


def test_errors_in_fixtures_of_libraries_show_the_same_frames(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """pytest shows all frames where each of them is its own; one of ours would hide the others."""
    pytester.makepyfile(
        """
        import pytest, _pytest.monkeypatch
        def test_setup(record_xml_attribute): pass  # warns, which is an error here
        def test_teardown(monkeypatch):
            class Gone:
                x = 1
                def __getattribute__(self, name): raise RuntimeError("gone")
                def __setattr__(self, name, value): raise RuntimeError("gone")
            monkeypatch._setattr.append((Gone(), "x", 1))
        """
    )

    def frames(*args: str, runner: str = "forkd") -> list[str]:
        result = run("-Werror", "--junitxml=out.xml", *args, runner=runner)
        result.assert_outcomes(errors=2, passed=1)
        text = result.stdout.str()
        assert "traceback entries are hidden" not in text
        # Without those of pluggy, which has one more for each hook wrapper.
        found = re.findall(r"^\S+/(\w+/\w+\.py:\d+): ", text, re.MULTILINE)
        return sorted(frame for frame in found if not frame.startswith("pluggy/"))

    plain = frames(runner="plain")
    # A frame of a plugin, where those are loaded, hides them, too.
    assert len(plain) > (0 if os.environ.get("PYTEST_FORKD_TEST_AUTOLOAD") else 10)
    assert frames("--forkd-warm=collection") == plain
    assert frames("--forkd-warm=imports") == plain
