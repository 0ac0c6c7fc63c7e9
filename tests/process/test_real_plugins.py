"""Suites with the plugins that people have, all loaded: forkd shows what a plain run shows.

Run by ``tox -e real,real2``, which set ``PYTEST_FORKD_TEST_AUTOLOAD`` to the name of the dependency
group that has the plugins.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Runner
from tests.downstream import outcomes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOADS_ALL_PLUGINS = True

_GROUP = os.environ.get("PYTEST_FORKD_TEST_AUTOLOAD", "")

pytestmark = pytest.mark.skipif(not _GROUP, reason="for tox -e real,real2")

_INI = {
    "pytest-asyncio": "asyncio_mode = strict\nasyncio_default_fixture_loop_scope = function",
    "pytest-env": "env =\n    FROM_INI=yes",
    "pytest-dotenv": "env_files = .env",
}

#: Distribution -> what its users write. Each file is a part of the suite where it is installed.
_TESTS = {
    "": """
        import warnings
        import pytest

        @pytest.fixture(scope="module")
        def number():
            return 3

        def test_pass(number): assert number == 3
        def test_fail(number): assert number == 4, "on purpose"
        def test_warn(): warnings.warn("of the suite")
        def test_property(record_property): record_property("name", "value")
        def test_output(): print("captured"); assert 0
        @pytest.mark.skip(reason="always")
        def test_skip(): pass
        @pytest.mark.xfail(reason="known")
        def test_xfail(): assert 0
        @pytest.mark.parametrize("value", range(30))
        def test_many(value): pass
        class TestClass:
            def test_one(self): pass
        """,
    "pytest-mock": """
        import os

        def test_patch(mocker):
            patched = mocker.patch("os.getcwd", return_value="here")
            assert os.getcwd() == "here"
            patched.assert_called_once_with()

        def test_spy_fails(mocker):
            mocker.patch("os.getcwd").assert_called_once_with()
        """,
    "pytest-asyncio": """
        import asyncio
        import pytest, pytest_asyncio

        @pytest_asyncio.fixture(loop_scope="module", scope="module")
        async def value():
            await asyncio.sleep(0)
            yield asyncio.get_running_loop()

        @pytest.mark.asyncio(loop_scope="module")
        async def test_loop(value): assert value is asyncio.get_running_loop()

        @pytest.mark.asyncio
        async def test_fails(): await asyncio.sleep(0); assert 0
        """,
    "anyio": """
        import anyio
        import pytest

        @pytest.mark.anyio
        async def test_sleep(): await anyio.sleep(0)
        """,
    "pytest-trio": """
        import pytest, trio

        @pytest.mark.trio
        async def test_sleep(autojump_clock): await trio.sleep(10)
        """,
    "pytest-freezer": """
        import datetime

        def test_move(freezer):
            freezer.move_to("2020-02-02")
            assert datetime.date.today() == datetime.date(2020, 2, 2)
        """,
    "pytest-benchmark": """
        def test_speed(benchmark): assert benchmark(lambda: 1) == 1
        """,
    "syrupy": """
        def test_absent(snapshot): assert {"a": 1} == snapshot
        """,
    "pytest-snapshot": """
        def test_absent(snapshot): snapshot.assert_match("text", "absent.txt")
        """,
    "hypothesis": """
        from hypothesis import given, strategies

        @given(strategies.integers())
        def test_integers(value): assert value == value

        @given(strategies.integers())
        def test_fails(value): assert value < 100
        """,
    "pytest-subtests": """
        def test_parts(subtests):
            for part in range(4):
                with subtests.test(part=part):
                    assert part != 2
        """,
    "pytest-env": """
        import os

        def test_variable(): assert os.environ["FROM_INI"] == "yes"
        """,
    "pytest-dotenv": """
        import os

        def test_variable(): assert os.environ["FROM_FILE"] == "yes"
        """,
    "pytest-bdd": """
        from pytest_bdd import given, scenario, then

        @scenario("it.feature", "It works")
        def test_scenario(): pass

        @given("a thing", target_fixture="thing")
        def _thing(): return 1

        @then("it works")
        def _works(thing): assert thing == 1
        """,
    "pytest-check": """
        import pytest_check

        def test_several():
            pytest_check.equal(1, 2)
            pytest_check.equal(1, 3)
        """,
    "pytest-rerunfailures": """
        import pytest

        runs = []

        @pytest.mark.flaky(reruns=2)
        def test_flaky():
            runs.append(1)
            assert len(runs) > 1
        """,
    "pytest-timeout": """
        import pytest

        @pytest.mark.timeout(30)
        def test_in_time(): pass
        """,
    "pytest-httpserver": """
        import urllib.request

        def test_request(httpserver):
            httpserver.expect_request("/").respond_with_data("data")
            assert urllib.request.urlopen(httpserver.url_for("/")).read() == b"data"
        """,
    "pytest-socket": """
        import socket
        import pytest

        @pytest.mark.disable_socket
        def test_disabled():
            with pytest.raises(Exception, match="socket"):
                socket.socket()
        """,
    "pytest-order": """
        import pytest

        @pytest.mark.order(2)
        def test_second(): pass

        @pytest.mark.order(1)
        def test_first(): pass
        """,
    "pytest-datadir": """
        def test_directory(datadir): assert datadir.name
        """,
    "pytest-regressions": """
        def test_absent(data_regression): data_regression.check({"a": 1})
        """,
    "pytest-lazy-fixtures": """
        import pytest
        from pytest_lazy_fixtures import lf

        @pytest.fixture
        def one(): return 1

        @pytest.mark.parametrize("value", [lf("one")])
        def test_value(value): assert value == 1
        """,
    "pytest-recording": """
        import pytest

        @pytest.mark.block_network
        def test_blocked(): pass
        """,
    "allure-pytest": """
        import allure

        @allure.title("With a title")
        def test_title():
            with allure.step("step"):
                pass
        """,
    "pytest-twisted": """
        def test_plain(): pass
        """,
}

_FEATURE = """\
Feature: It
    Scenario: It works
        Given a thing
        Then it works
"""

#: How each plugin is put to work, beside by being loaded: distribution -> options.
_OPTIONS = {
    "pytest-html": ["--html=report.html"],
    "pytest-json-report": ["--json-report", "--json-report-file=report.json"],
    "pytest-reportlog": ["--report-log=log.json"],
    "allure-pytest": ["--alluredir=allure"],
    "pytest-instafail": ["--instafail"],
    "pytest-cov": ["--cov=.", "--cov-report="],
    "pytest-randomly": ["-p", "randomly", "--randomly-seed=3"],
    "pytest-rich": ["--rich"],
    "pytest-twisted": ["--reactor=asyncio"],
}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed() -> set[str]:
    return {_normal(found.metadata["Name"]) for found in importlib.metadata.distributions()}


def _group() -> list[str]:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    groups: dict[str, list[str]] = tomllib.loads(pyproject.read_text())["dependency-groups"]
    return groups[_GROUP]


def test_the_plugins_are_installed() -> None:
    """So that the comparisons mean something."""
    assert {_normal(re.split(r"[<>=!~\[ ]", name)[0]) for name in _group()} <= _installed()


_FORCED = "PytestForkdWarning: workers share one collection, but "
#: Cannot run in a process in which a test of pytest-twisted has started the reactor.
_OTHER_LOOPS = {"anyio", "trio", "pytest-asyncio", "pytest-trio"}


def make_suite(directory: Path) -> None:
    installed = _installed()
    if "pytest-twisted" in installed:
        installed -= _OTHER_LOOPS
    for distribution, source in _TESTS.items():
        if not distribution or distribution in installed:
            lines = source.split("\n")[1:]
            name = _normal(distribution).replace("-", "_") or "plain"
            text = "\n".join(line.removeprefix("        ") for line in lines)
            (directory / f"test_{name}.py").write_text(text)
    ini = [text for name, text in _INI.items() if not name or name in installed]
    (directory / "pytest.ini").write_text("[pytest]\n" + "\n".join(ini) + "\n")
    (directory / "it.feature").write_text(_FEATURE)
    (directory / ".env").write_text("FROM_FILE=yes\n")
    shutil.copyfile(outcomes.__file__, directory / "forkd_outcomes.py")


#: What a test leaves for the next run to find.
_LEFT = ("test_pytest_regressions", "__snapshots__", "snapshots", ".pytest_cache", ".testmondata")


def outcome(pytester: pytest.Pytester, run: Runner, *options: str, **kwargs: Any) -> dict[str, Any]:
    """Run the suite.

    :returns: what the plugin ``forkd_outcomes`` has seen, and what the process has shown of it.
    """
    written = pytester.path / "outcomes.json"
    written.unlink(missing_ok=True)
    for name in _LEFT:
        shutil.rmtree(pytester.path / name, ignore_errors=True)
    installed = _installed()
    for name, more in _OPTIONS.items():
        if name in installed:
            options += tuple(more)
    result = run("-p", "forkd_outcomes", f"--outcomes-file={written}", *options, **kwargs)
    found: dict[str, Any] = json.loads(written.read_text()) if written.exists() else {}
    found.pop("seconds", None)
    found["exit"] = int(result.ret)
    shown = result.stdout.str() + result.stderr.str()
    found["internal error"] = [
        line for line in shown.splitlines() if "INTERNALERROR" in line or "pytest_forkd/" in line
    ][-5:]
    if not found.get("tests"):
        found["output"] = shown[-3000:]
    return found


@pytest.fixture(scope="module")
def plain_runs() -> dict[str, dict[str, Any]]:
    """What the runs to compare with came to; they are made once."""
    return {}


@pytest.mark.parametrize("options", [[], ["-Werror"]], ids=["as it is", "warnings are errors"])
@pytest.mark.parametrize("runner", ["xdist", "collection", "imports", "auto"])
def test_what_plugins_do_is_the_same(
    pytester: pytest.Pytester,
    run: Runner,
    plain_runs: dict[str, dict[str, Any]],
    runner: str,
    options: list[str],
) -> None:
    """Outcomes, warnings, exit status and the counts of the last line, in both runs."""
    make_suite(pytester.path)
    key = str(options)
    if key not in plain_runs:
        plain_runs[key] = outcome(pytester, run, *options, runner="plain")
    plain = plain_runs[key]
    assert len(plain["tests"]) > 20, plain
    if runner == "xdist":
        assert outcome(pytester, run, *options, runner="xdist") == plain
        return
    for _ in range(2):
        found = outcome(pytester, run, f"--forkd-warm={runner}", "--forkd-keep=30", *options)
        if runner == "collection":
            leave_out_what_was_forced(found)
        assert found == plain


def leave_out_what_was_forced(found: dict[str, Any]) -> None:
    """The warnings, documented, that say what workers share although they should not.

    pytest-twisted makes its reactor when it is configured.
    """
    told = [text for text in found["warnings"] if text.startswith(_FORCED)]
    assert not told or "pytest-twisted" in _installed()
    for text in told:
        count = found["warnings"].pop(text)
        found["stats"]["warnings"] -= count
    if told:  # each with the line of ours that warns
        found["internal error"] = [line for line in found["internal error"] if "INTERNAL" in line]
