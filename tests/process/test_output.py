"""Output: each test's own, whole, and shown as pytest and xdist show it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Runner
from tests.observing import BackgroundRun, wait_until, write_suite
from tests.parity_suite import make_recorder, read_records

#: 200 tests that print to everything there is, in each phase, and fail.
_TOKENS = """
import logging, os, sys
import pytest

def say(phase, i):
    print(f"<{phase} out {i}>")
    print(f"<{phase} err {i}>", file=sys.stderr)
    os.write(1, f"<{phase} fd1 {i}>\\n".encode())
    os.write(2, f"<{phase} fd2 {i}>\\n".encode())
    logging.getLogger(f"logger{i}").warning(f"<{phase} log {i}>")

@pytest.fixture
def speaker(request):
    i = request.node.callspec.params["i"]
    say("setup", i)
    yield
    say("teardown", i)

@pytest.mark.parametrize("i", range(COUNT))
def test_it(i, speaker):
    say("call", i)
    assert not i, "i is not zero" if i else "i is zero"
    pytest.fail("always")
"""
_TOKEN = re.compile(r"<(\w+) (\w+) (\d+)>")

#: Dumps the sections of reports in the controller.
_SECTIONS = """
from recorder import record

def pytest_runtest_logreport(report):
    if hasattr(report, "node"):
        record(report.when, nodeid=report.nodeid, sections=report.sections)
"""


def _tokens(text: str) -> Counter[tuple[str, str, int]]:
    return Counter((phase, stream, int(i)) for phase, stream, i in _TOKEN.findall(text))


def _expected(phases: list[str], streams: list[str], i: int) -> Counter[tuple[str, str, int]]:
    return Counter((phase, stream, i) for phase in phases for stream in streams)


def _token_suite(pytester: pytest.Pytester, count: int) -> None:
    make_recorder(pytester)
    pytester.makeconftest(_SECTIONS)
    pytester.makepyfile(test_it=_TOKENS.replace("COUNT", str(count)))


def _check_sections(directory: Path, count: int, streams: dict[str, list[str]]) -> None:
    """Each report holds exactly the tokens of its own test, each in the right section.

    :param streams: for the section's kind, what may be in it.
    """
    phases = ["setup", "call", "teardown"]
    seen = 0
    for when in phases:
        for entry in read_records(directory, when):
            i = int(entry["nodeid"].partition("[")[2][:-1])
            so_far = phases[: phases.index(when) + 1]
            found = {title: _tokens(text) for title, text in entry["sections"]}
            assert found == {
                f"Captured {kind} {phase}": _expected([phase], streams[kind], i)
                for phase in so_far
                for kind in streams
            }, entry["nodeid"]
            seen += 1
    assert seen == 3 * count


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_every_report_holds_its_own_output_and_no_other(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """200 failing tests in eight workers, each with output of its own on every stream."""
    _token_suite(pytester, 200)
    result = run(
        f"--forkd-warm={warm}",
        "--junitxml=junit.xml",
        "-ojunit_logging=all",
        "--tb=no",
        workers=8,
    )
    result.assert_outcomes(failed=200)
    assert not _tokens(result.stdout.str() + result.stderr.str())
    _check_sections(
        pytester.path,
        200,
        {"stdout": ["out", "fd1"], "stderr": ["err", "fd2"], "log": ["log"]},
    )
    cases = list(ET.parse(pytester.path / "junit.xml").iter("testcase"))
    assert len(cases) == 200
    for case in cases:
        i = int(str(case.get("name")).partition("[")[2][:-1])
        out = _tokens("".join(element.text or "" for element in case.iter("system-out")))
        err = _tokens("".join(element.text or "" for element in case.iter("system-err")))
        phases = ["setup", "call", "teardown"]
        assert err == _expected(phases, ["err", "fd2"], i)
        assert out == _expected(phases, ["out", "fd1", "log"], i)


def test_the_terminal_shows_each_failure_with_its_output(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Every token once, in the part of the report that is about its test."""
    _token_suite(pytester, 24)
    result = run(workers=8)
    result.assert_outcomes(failed=24)
    blocks = re.split(r"^_+ test_it\[(\d+)\] _+$", result.stdout.str(), flags=re.MULTILINE)
    assert len(blocks) == 1 + 2 * 24
    for number, block in zip(blocks[1::2], blocks[2::2], strict=True):
        tokens = _tokens(block.partition("short test summary info")[0])
        assert tokens == _expected(
            ["setup", "call", "teardown"], ["out", "err", "fd1", "fd2", "log"], int(number)
        )


@pytest.mark.parametrize("capture", ["sys", "tee-sys"])
def test_capture_of_python_level_output(
    pytester: pytest.Pytester, run: Runner, capture: str
) -> None:
    """``sys`` and ``tee-sys`` capture what went through ``sys.stdout`` and ``sys.stderr``.

    As with xdist, a worker's own standard output leads nowhere, its standard error to the terminal.
    """
    _token_suite(pytester, 24)
    result = run(f"--capture={capture}", "--tb=no", workers=8)
    result.assert_outcomes(failed=24)
    _check_sections(pytester.path, 24, {"stdout": ["out"], "stderr": ["err"], "log": ["log"]})
    assert not _tokens(result.stdout.str())
    streams = ["fd2"] if capture == "sys" else ["fd2", "err"]
    assert _tokens(result.stderr.str()) == _all_tokens(24, streams)


def test_no_capture(pytester: pytest.Pytester, run: Runner) -> None:
    """``-s``: as with xdist, standard error of all tests goes to the terminal, nothing is kept."""
    _token_suite(pytester, 24)
    result = run("-s", "--tb=no", workers=8)
    result.assert_outcomes(failed=24)
    _check_sections(pytester.path, 24, {"log": ["log"]})
    assert not _tokens(result.stdout.str())
    assert _tokens(result.stderr.str()) == _all_tokens(24, ["fd2", "err"])


def _all_tokens(count: int, streams: list[str]) -> Counter[tuple[str, str, int]]:
    tokens: Counter[tuple[str, str, int]] = Counter()
    for i in range(count):
        tokens += _expected(["setup", "call", "teardown"], streams, i)
    return tokens


def test_odd_and_large_output_arrives_whole(pytester: pytest.Pytester, run: Runner) -> None:
    """Control characters, bytes that are no text, lone surrogates, megabytes."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        from recorder import record

        def pytest_runtest_logreport(report):
            if hasattr(report, "node") and report.when == "call":
                for title, text in report.sections:
                    record(title, nodeid=report.nodeid, text=ascii(text[:80]), size=len(text))
                if report.longrepr:
                    record("longrepr", text=ascii(report.longrepr.reprcrash.message))
        """
    )
    pytester.makepyfile(
        """
        import os

        def test_control():
            print("\\x00\\x1b[31mred\\x1b[0m\\ttab \\u00e9 \\U0001f600 \\u2028")

        def test_bytes():
            os.write(1, b"raw \\xff\\xfe\\n")

        def test_surrogate():
            raise ValueError("lone \\udc80 surrogate")

        def test_large():
            for _ in range(1024):
                print("x" * 4095)
        """
    )
    result = run("--tb=no", "--no-summary", workers=2)
    result.assert_outcomes(passed=3, failed=1)
    printed = {
        entry["nodeid"].partition("::")[2]: entry
        for entry in read_records(pytester.path, "Captured stdout call")
    }
    assert set(printed) == {"test_control", "test_bytes", "test_large"}
    text = "\x00\x1b[31mred\x1b[0m\ttab \u00e9 \U0001f600 \u2028\n"
    assert printed["test_control"]["text"] == ascii(text)
    assert printed["test_bytes"]["text"] == ascii("raw \ufffd\ufffd\n")
    assert printed["test_large"]["size"] == 4096 * 1024
    (longrepr,) = read_records(pytester.path, "longrepr")
    assert longrepr["text"] == ascii("ValueError: lone \udc80 surrogate")


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_all_workers_write_to_one_log_file(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """``--log-file`` holds every record of every test, and the controller's, whole."""
    if warm == "imports" and pytest.version_tuple < (8, 1):
        pytest.skip("before pytest 8.1, whoever configures pytest empties the log file")
    pytester.makeconftest(
        """
        import logging

        def pytest_testnodeready(node):
            logging.getLogger().warning("<controller ready 0>")
        def pytest_testnodedown(node, error):
            logging.getLogger().warning("<controller down 0>")
        """
    )
    pytester.makepyfile(
        """
        import logging
        import pytest

        @pytest.mark.parametrize("i", range(80))
        def test_it(i):
            for n in range(5):
                logging.getLogger("suite").info(f"<call log{n} {i}> " + "x" * i)
        """
    )
    result = run(
        f"--forkd-warm={warm}",
        "--log-file=run.log",
        "--log-file-level=INFO",
        "--log-file-format=%(message)s",
        workers=4,
    )
    result.assert_outcomes(passed=80)
    lines = (pytester.path / "run.log").read_text().splitlines()
    expected = Counter(f"<call log{n} {i}> " + "x" * i for i in range(80) for n in range(5))
    expected.update({"<controller ready 0>": 4, "<controller down 0>": 4})
    assert Counter(lines) == expected


def test_capturing_fixtures_work(pytester: pytest.Pytester, run: Runner) -> None:
    """``capsys``, ``capfd`` and their binary forms, ``caplog``, ``capsys.disabled``."""
    pytester.makepyfile(
        """
        import logging, os, subprocess, sys
        import pytest

        rounds = pytest.mark.parametrize("i", range(4))

        @rounds
        def test_capsys(capsys, i):
            print("out", i)
            print("err", i, file=sys.stderr)
            assert capsys.readouterr() == (f"out {i}\\n", f"err {i}\\n")
            with capsys.disabled():
                print("shown to nobody")
            assert capsys.readouterr() == ("", "")

        @rounds
        def test_capsysbinary(capsysbinary, i):
            sys.stdout.buffer.write(b"\\xfe%d" % i)
            assert capsysbinary.readouterr() == (b"\\xfe%d" % i, b"")

        @rounds
        def test_capfd(capfd, i):
            subprocess.run([sys.executable, "-c", f"print({i})"], check=True)
            os.write(2, b"raw")
            assert capfd.readouterr() == (f"{i}\\n", "raw")

        @rounds
        def test_capfdbinary(capfdbinary, i):
            os.write(1, b"\\xff%d" % i)
            assert capfdbinary.readouterr() == (b"\\xff%d" % i, b"")

        @rounds
        def test_caplog(caplog, i):
            with caplog.at_level(logging.DEBUG, logger="a"):
                logging.getLogger("a").debug("seen %d", i)
            logging.getLogger("a").debug("not seen")
            assert caplog.record_tuples == [("a", logging.DEBUG, f"seen {i}")]
            assert caplog.messages == [f"seen {i}"]
        """
    )
    run(workers=3).assert_outcomes(passed=20)


# -- what the terminal shows -------------------------------------------------------------------

_MIXED = """
import pytest

def test_pass():
    print("passing")

def test_fail():
    print("failing")
    assert [1, 2, 3] == [1, 2, 4]

@pytest.fixture
def broken():
    raise RuntimeError("no setup")

def test_error(broken):
    pass

@pytest.fixture
def untidy():
    yield
    raise RuntimeError("no teardown")

def test_untidy(untidy):
    pass

@pytest.mark.skip(reason="some other day")
def test_skip():
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_xfail():
    assert 0

@pytest.mark.xfail(reason="hoped for")
def test_xpass():
    pass
"""


def _normal(result: pytest.RunResult) -> list[str]:
    """The lines of a run in an order and with names that do not depend on who ran what."""
    lines = []
    for line in result.outlines:
        own = ("forkd: ", "plugins: ", "created: ", "scheduling tests via ")
        if line.startswith(own) or "workers [" in line:
            continue  # says how the run is made
        line = re.sub(r"\bin \d+\.\d+s\b", "in TIMEs", re.sub(r"\bgw\d\b", "gwN", line))
        if re.fullmatch(r"[.FEsxX]+ +\[ *\d+%\]", line):
            line = "".join(sorted(line))
        line = re.sub(r"\[ *\d+%\]", "[  N%]", line)
        lines.append(line.strip("=_! "))
    return sorted(lines)


@pytest.mark.parametrize("options", [["-q", "-rA"], ["-v", "-ra"]], ids=" ".join)
def test_the_terminal_shows_what_xdist_shows(
    pytester: pytest.Pytester, run: Runner, options: list[str]
) -> None:
    """Line for line, except for order, times and workers' names."""
    pytester.makepyfile(_MIXED)
    xdist = run(*options, runner="xdist", workers=2)
    result = run(*options, workers=2)
    assert result.ret == xdist.ret == pytest.ExitCode.TESTS_FAILED
    counts = {"passed": 2, "failed": 1, "errors": 2, "skipped": 1, "xfailed": 1, "xpassed": 1}
    result.assert_outcomes(**counts)
    assert _normal(result) == _normal(xdist)
    assert not result.errlines


def test_a_failed_assertion_is_explained_as_in_a_plain_run(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """The same differences, for test modules, conftests and registered helpers."""
    pytester.makeconftest(
        """
        import pytest
        pytest.register_assert_rewrite("helper")

        def pytest_assertrepr_compare(config, op, left, right):
            if isinstance(left, complex):
                return ["comparing complex numbers", f"verbosity {config.get_verbosity()}"]

        @pytest.fixture
        def check():
            def check(a, b):
                assert a == b
            return check
        """
    )
    pytester.makepyfile(
        helper="""
        def check(a, b):
            assert a == b, "helper's message"
        """
    )
    pytester.makepyfile(
        test_it="""
        import pytest, helper

        TEXT = "\\n".join(f"line {i}" for i in range(30))
        PAIRS = {
            "list": ([1, 2, 3] * 9, [1, 2, 4] * 9),
            "dict": ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}, "d": 0}),
            "text": (TEXT, TEXT.replace("line 20", "line twenty")),
            "set": ({1, 2}, {2, 3}),
            "complex": (1j, 2j),
        }
        pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())

        @pairs
        def test_here(pair):
            left, right = pair
            assert left == right

        @pairs
        def test_conftest(pair, check):
            check(*pair)

        def test_helper():
            helper.check([1], [2])

        def test_call():
            assert all(n < 3 for n in range(5)), "not all"
        """
    )
    for verbose in ([], ["-vv"]):
        plain = _explanations(run(*verbose, runner="plain"))
        assert len(plain) == 12
        assert _explanations(run(*verbose, workers=3)) == plain


def _explanations(result: pytest.RunResult) -> dict[str, list[str]]:
    """For each failed test, the lines that explain why."""
    explanations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in result.outlines:
        title = re.fullmatch(r"_+ (test_\S+) _+", line)
        if "short test summary info" in line:
            break
        if title:
            lines = explanations.setdefault(title[1], [])
        elif line.startswith(("E  ", ">  ", "    ")) or re.match(r"\S+\.py:\d+: ", line):
            lines.append(re.sub(r"0x[0-9a-f]+", "0x...", line))
    return explanations


def test_durations_are_those_of_the_tests(pytester: pytest.Pytester, run: Runner) -> None:
    """``--durations`` lists each phase with the time that it took in its worker."""
    pytester.makepyfile(
        """
        import time
        import pytest

        @pytest.fixture
        def slow():
            time.sleep(0.2)
            yield
            time.sleep(0.3)

        def test_quick():
            pass

        def test_slow(slow):
            time.sleep(0.1)
        """
    )
    result = run("--durations=0", "--durations-min=0.05", workers=2)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*slowest durations*"])
    listed = [re.match(r"(\d+\.\d\d)s (\w+) +\S+::(\w+)$", line) for line in result.outlines]
    found = {(match[2], match[3]): float(match[1]) for match in listed if match}
    for phase, slept in (("setup", 0.2), ("call", 0.1), ("teardown", 0.3)):
        assert slept <= found[phase, "test_slow"] < slept + 5


def test_user_properties_may_be_any_builtin(pytester: pytest.Pytester, run: Runner) -> None:
    """``record_property`` keeps builtins that JSON does not have."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        from recorder import record

        def pytest_runtest_logreport(report):
            if hasattr(report, "node") and report.when == "call":
                record("properties", text=repr(report.user_properties))
        """
    )
    values = [(1, 2), b"raw", {1, 2}, {1: "one"}, None, 2**70, "text"]
    pytester.makepyfile(
        f"""
        def test_it(record_property):
            for value in {values!r}:
                record_property("value", value)
        """
    )
    run(workers=2).assert_outcomes(passed=1)
    (entry,) = read_records(pytester.path)
    assert entry["text"] == repr([("value", value) for value in values])


def test_a_test_s_result_is_seen_while_the_next_one_runs(pytester: pytest.Pytester) -> None:
    """Output into a pipe is written in batches, but not kept."""
    pytester.makepyfile(
        """
        import os, time
        def test_quick(): pass
        def test_waiting():
            deadline = time.monotonic() + 60
            while not os.path.exists("seen"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        """
    )
    command = [sys.executable, "-mpytest", "-p", "xdist", "-p", "forkd", "--forkd-workers=1", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=pytester.path) as process:
        assert process.stdout is not None
        seen = b""
        while b"." not in seen.replace(b"...", b""):
            piece = os.read(process.stdout.fileno(), 1000)
            assert piece, seen
            seen += piece
        Path("seen").touch()
        rest = process.stdout.read()
    assert process.returncode == 0
    assert b"2 passed" in rest


def test_what_is_said_of_a_worker_is_seen_while_the_run_goes_on(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a pipe or a file, where nothing is flushed for such lines themselves."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    write_suite(
        pytester,
        conftest="""
        def pytest_testnodeready(node):
            reporter = node.config.pluginmanager.getplugin("terminalreporter")
            reporter.write_line(f"ready: {node.gateway.id}")
        """,
        test_it="""
        from doing import wait_for
        def test_waits(): wait_for("seen")
        """,
    )
    with BackgroundRun(pytester) as run:
        assert wait_until(lambda: "ready: gw0" in run.output, 20), run.output
        (pytester.path / "seen").touch()
        assert run.wait(60) == pytest.ExitCode.OK
