"""What the parent imports ahead of the suite makes no difference to it, or is not imported."""

from __future__ import annotations

import pytest

from tests.conftest import Runner
from tests.process.test_hygiene import LEVELS

ERRORS = ["-W", "error"]


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library with a pytest plugin, and one without: ``plugged`` and ``plain``.

    Plugins are loaded by their entry points, as where nothing switches that off.
    """
    site = pytester.mkdir("site-packages")
    record = "plugged/__init__.py,,\nplugged/testing.py,,\nplugged/plugin.py,,\n"
    for name, text in {
        "plugged-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: plugged\nVersion: 1\n",
        "plugged-1.dist-info/entry_points.txt": "[pytest11]\nplugged = plugged.plugin\n",
        "plugged-1.dist-info/RECORD": record,
        "plugged/__init__.py": "from plugged.testing import check\n",
        "plugged/testing.py": "def check(left, right):\n    assert left == right\n",
        "plugged/plugin.py": "",
        "plain/__init__.py": "from plain.testing import check\n",
        "plain/testing.py": "def check(left, right):\n    assert left == right\n",
    }.items():
        path = site / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")


SUITE = """
    from {library} import check

    def test_passes():
        check(1, 1)

    def test_fails():
        check([1, 2], [1, 3])
"""


def shown(result: pytest.RunResult) -> list[str]:
    """The lines that tell warnings, and what was asserted."""
    return [line for line in result.outlines if line.startswith("E  ") or "Warning: " in line]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("warm", LEVELS)
def test_a_library_with_a_plugin_is_rewritten_as_pytest_would(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """Hypothesis and anyio are such; each run warned that they cannot be rewritten any more."""
    pytester.makepyfile(SUITE.format(library="plugged"))
    plain = run(*ERRORS, "-pno:asyncio", runner="plain")
    plain.assert_outcomes(passed=1, failed=1)
    assert any("At index 1 diff: 2 != 3" in line for line in shown(plain))
    for _run in ("first", "second"):
        result = run(*ERRORS, "-pno:asyncio", f"--forkd-warm={warm}")
        result.assert_outcomes(passed=1, failed=1)
        assert shown(result) == shown(plain)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("warm", LEVELS)
def test_what_a_conftest_has_rewritten_is_not_imported_early(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    pytester.makeconftest("import pytest; pytest.register_assert_rewrite('plain')")
    pytester.makepyfile(SUITE.format(library="plain"))
    plain = run("-pno:asyncio", runner="plain")
    assert any("At index 1 diff: 2 != 3" in line for line in shown(plain))
    for _run in ("first", "second", "third"):
        result = run("-pno:asyncio", f"--forkd-warm={warm}")
        result.assert_outcomes(passed=1, failed=1)
        assert shown(result) == shown(plain)


@pytest.mark.usefixtures("installed")
def test_without_rewriting_nothing_is_rewritten(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makepyfile(SUITE.format(library="plugged"))
    plain = run("--assert=plain", "-pno:asyncio", runner="plain")
    result = run("--assert=plain", "-pno:asyncio")
    result.assert_outcomes(passed=1, failed=1)
    assert shown(result) == shown(plain)


#: A conftest that raises what is in the place of RAISE, if ``plain`` was imported before it.
TOUCHY = """
    import sys, pytest

    def pytest_configure():
        if "plain" in sys.modules:
            RAISE
"""


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("warm", LEVELS)
@pytest.mark.parametrize("error", ["pytest.UsageError('too early')", "RuntimeError('too early')"])
def test_where_early_imports_keep_a_worker_from_being_configured_there_are_none(
    pytester: pytest.Pytester, run: Runner, warm: str, error: str
) -> None:
    """The next run knows, and says nothing of it."""
    pytester.makeconftest(TOUCHY.replace("RAISE", f"raise {error}"))
    pytester.makepyfile(SUITE.format(library="plain"))
    result = run("-pno:asyncio", f"--forkd-warm={warm}")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["forkd: nothing is imported early any more, since a worker cannot be configured*too early"]
    )
    assert result.ret == 1
    assert "INTERNALERROR" not in result.stdout.str()
    result = run("-pno:asyncio", f"--forkd-warm={warm}")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("forkd: nothing*")


@pytest.mark.usefixtures("installed")
def test_a_worker_that_ends_before_its_failure_is_read_is_replaced_once(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Twice, one of the two was never made, and the run waited for it for ever."""
    busy = "    def pytest_xdist_make_scheduler():\n        import time\n        time.sleep(2)\n"
    pytester.makeconftest(TOUCHY.replace("RAISE", "raise RuntimeError('too early')") + busy)
    pytester.makepyfile(SUITE.format(library="plain"))
    result = run("-pno:asyncio", "--forkd-warm=imports", timeout=30)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*replacing crashed worker*")


@pytest.mark.parametrize("warm", LEVELS)
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("pytest.UsageError('not here')", 4, "ERROR: not here"),
        ("RuntimeError('not here')", 3, "INTERNALERROR> RuntimeError: not here"),
    ],
)
def test_a_worker_that_cannot_be_configured_ends_the_run_with_what_pytest_says(
    pytester: pytest.Pytester, run: Runner, warm: str, error: str, code: int, line: str
) -> None:
    """It was said once for each worker, with a stack of ours, and no tests had run."""
    pytester.makeconftest(
        f"""
        import os, pytest

        def pytest_configure():
            if "PYTEST_XDIST_WORKER" in os.environ:
                raise {error}
        """
    )
    pytester.makepyfile("def test_it(): pass")
    result = run(f"--forkd-warm={warm}", workers=4)
    assert result.ret == code
    output = result.stdout.str() + result.stderr.str()
    assert output.count(line) == 1
    assert "pytest_forkd" not in output.replace("-p pytest_forkd", "")
    assert "starting another" not in output


@pytest.mark.parametrize("warm", LEVELS)
def test_a_conftest_that_only_workers_fail_to_import_is_a_usage_error(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    pytester.makeconftest(
        """
        import os
        if "PYTEST_XDIST_WORKER" in os.environ:
            raise RuntimeError("not here")
        """
    )
    pytester.makepyfile("def test_it(): pass")
    result = run(f"--forkd-warm={warm}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = result.stderr.str()
    assert errors.count("ImportError while loading conftest") == 1
    assert errors.count("RuntimeError: not here") == 1
    assert "pytest_forkd" not in errors


@pytest.mark.parametrize("installed_module", [True, False])
def test_what_a_preloaded_module_warns_about_is_lost_if_it_is_installed(
    pytester: pytest.Pytester,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    installed_module: bool,
) -> None:
    """Its import comes before the suite's filters are known, as the documentation says."""
    folder = pytester.mkdir("site-packages" if installed_module else "source")
    (folder / "library.py").write_text("import warnings; warnings.warn('old', DeprecationWarning)")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    pytester.makepyfile("import library\ndef test_it(): pass")
    run("--forkd-preload=library", *ERRORS).assert_outcomes(passed=1)
    result = run(*ERRORS)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*DeprecationWarning: old*"])
