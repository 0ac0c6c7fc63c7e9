"""What is private to other libraries is looked for before anything depends on it."""

from __future__ import annotations

import json

import pytest

from pytest_forkd.compat import selftest
from pytest_forkd.compat.versions import versions
from tests.conftest import Runner

#: A plugin that takes away a name which pytest itself has no more use for by then.
OLD_PLUGGY = """
    import pluggy._tracing
    del pluggy._tracing.TagTracer
"""


def test_the_installed_libraries_have_all_of_it() -> None:
    assert selftest.missing() is None


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("_pytest.config:_prepareconfig", True),
        ("_pytest.config:prepareconfig", False),
        ("_pytest.configuration:_prepareconfig", False),
        ("_pytest.capture:CaptureManager.__init__|_global_capturing", True),
        ("_pytest.capture:CaptureManager.__init__|_capturing", False),
        ("_pytest.tmpdir:TempPathFactory|_basetemp", True),
        ("_pytest.tmpdir:TempPathFactory|_base", False),
    ],
)
def test_a_name_is_there_or_not(name: str, there: bool) -> None:
    assert selftest._is_there(name) is there


def test_where_something_is_missing_the_workers_are_xdists(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """And a line says what it was; every worker used to die at birth."""
    pytester.makepyfile(old_pluggy=OLD_PLUGGY, test_it="def test_it(worker_id): assert worker_id")
    result = run("-pold_pluggy")
    result.assert_outcomes(passed=1)
    line = "forkd: plain xdist workers: pluggy * has no pluggy._tracing.TagTracer; *"
    result.stdout.fnmatch_lines([line])
    assert result.ret == 0


def test_libraries_that_are_known_are_not_looked_into_again(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(test_it="def test_it(): pass", old_pluggy="")
    run("-pold_pluggy").assert_outcomes(passed=1)
    kept = pytester.path / ".pytest_cache/v/forkd/internals"
    assert json.loads(kept.read_text()) == versions()
    before = kept.stat().st_mtime_ns
    pytester.makepyfile(
        old_pluggy="""
        from pytest_forkd.compat import selftest
        selftest.missing = lambda: 1 / 0
        """
    )
    run("-pold_pluggy").assert_outcomes(passed=1)
    assert kept.stat().st_mtime_ns == before
    kept.write_text('{"pytest": "7.0"}')
    result = run("-pold_pluggy")
    assert result.ret != 0
    result.stderr.fnmatch_lines(["*ZeroDivisionError*"])
