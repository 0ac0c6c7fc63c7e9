"""How far the parent gets before it is cloned: the warm levels, and what they have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TIMEOUT, Runner

#: Tests that note who imported their module and who runs them.
PROBE = """
    import os
    import posix  # os.getpid(), called here, is a reason not to share the collection
    import pytest

    IMPORTED_BY = posix.getpid()
    with open("imported", "a") as file:
        print("test module", posix.getpid(), file=file)

    @pytest.mark.parametrize("number", range(6))
    def test_probe(number, worker_id):
        with open("ran", "a") as file:
            print(worker_id, os.getpid(), os.getppid(), IMPORTED_BY, file=file)
"""
#: A module that notes who imports it.
HEAVY = """
import os
PID = os.getpid()
with open({path!r}, "a") as file:
    print({name!r}, PID, file=file)
"""
FELL_BACK = "forkd: each worker collects for itself: *"


def imports(pytester: pytest.Pytester, name: str = "test module") -> list[int]:
    """The processes that imported a module since the last time this was asked."""
    path = pytester.path / "imported"
    if not path.exists():
        return []
    lines = [line.rpartition(" ") for line in path.read_text().splitlines()]
    kept = [line for line in lines if line[0] != name]
    path.write_text("".join(f"{' '.join((line[0], line[2]))}\n" for line in kept))
    return [int(pid) for module, _, pid in lines if module == name]


def ran(pytester: pytest.Pytester) -> list[tuple[str, int, int, int]]:
    """What the tests noted since this was asked last: worker, pid, its parent's, importer's."""
    path = pytester.path / "ran"
    lines = [line.split() for line in path.read_text().splitlines()]
    path.unlink()
    return [(worker, int(pid), int(ppid), int(by)) for worker, pid, ppid, by in lines]


@pytest.fixture
def site_packages(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules count as installed."""
    path = pytester.path / "site-packages"
    path.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(path))
    return path


def make_heavy(folder: Path, *names: str) -> None:
    """Write modules that note who imports them."""
    base = folder if folder.name != "site-packages" else folder.parent
    for name in names:
        source = HEAVY.format(path=str(base / "imported"), name=name)
        (folder / f"{name}.py").write_text(source)


# -- results -----------------------------------------------------------------------------------


def test_all_levels_give_the_results_of_plain_pytest(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture(scope="session")
        def number():
            yield 1
        @pytest.fixture
        def broken():
            raise RuntimeError("no")
        @pytest.fixture
        def broken_end():
            yield
            raise RuntimeError("no")
        """
    )
    pytester.makepyfile(
        test_one="""
        import unittest, pytest

        @pytest.mark.parametrize("text", ["", "a b", "ü", "x" * 10])
        def test_text(text, number):
            assert len(text) <= number

        @pytest.mark.xfail
        def test_xfail():
            assert 0

        @pytest.mark.xfail
        def test_xpass():
            pass

        @pytest.mark.skip(reason="never")
        def test_skip():
            pass

        class TestClass:
            def test_method(self, tmp_path, capsys):
                print(tmp_path)
                assert capsys.readouterr().out

        class Case(unittest.TestCase):
            def test_sub(self):
                self.assertEqual(1, 1)
        """,
        test_two="""
        import warnings, pytest

        def test_error(broken):
            pass

        def test_error_at_end(broken_end):
            pass

        def test_warning():
            warnings.warn("mind the gap")
        """,
        test_three="import pytest\npytest.skip('not here', allow_module_level=True)",
    )
    expected = run(runner="plain").parseoutcomes()
    for warm in ("auto", "collection", "imports"):
        result = run(f"--forkd-warm={warm}", "-rA")
        assert result.parseoutcomes() == expected, warm
        result.stdout.fnmatch_lines(["*UserWarning: mind the gap"])
        result.stdout.fnmatch_lines_random(
            ["FAILED test_one.py::test_text* - *3 <= 1*", "ERROR test_two.py::test_error - *no"]
        )


def test_level_collection_runs_suites_whose_test_ids_differ_between_collections(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """xdist ends such a run, since its workers have to agree on the tests."""
    pytester.makepyfile(
        """
        import uuid, pytest
        @pytest.mark.parametrize("key", [str(uuid.uuid4()) for _ in range(4)])
        def test_key(key):
            pass
        """
    )
    run().assert_outcomes(passed=4)
    result = run(runner="xdist")
    result.stdout.fnmatch_lines(["*Different tests were collected between gw*"])


@pytest.mark.parametrize("warm", ["imports", "collection"])
def test_workers_agree_on_the_order_of_sets(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """They all have the hash seed of their parent, so a set of texts is in one order."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("key", {str(number) for number in range(40)})
        def test_key(key):
            pass
        """
    )
    run(f"--forkd-warm={warm}").assert_outcomes(passed=40)


@pytest.mark.parametrize("warm", ["imports", "collection"])
def test_assertions_are_rewritten_at_every_level(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """Those of test modules, conftests and modules registered for it."""
    pytester.makeconftest(
        """
        import pytest
        pytest.register_assert_rewrite("helpers")
        @pytest.fixture
        def checked():
            def check(left):
                assert left == {"conftest": 1}
            return check
        """
    )
    pytester.makepyfile(
        helpers="def check(left):\n    assert left == {'helpers': 1}",
        test_it="""
        import helpers
        def test_module():
            left = {}
            assert left == {"module": 1}
        def test_helpers():
            helpers.check({})
        def test_conftest(checked):
            checked({})
        """,
    )
    result = run(f"--forkd-warm={warm}")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines_random(
        [f"E * assert {{}} == {{'{name}': 1}}" for name in ("module", "helpers", "conftest")]
    )


# -- who imports what --------------------------------------------------------------------------


def test_level_collection_imports_a_test_module_once_for_all_workers(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """The collector does; the workers are its children."""
    pytester.makepyfile(PROBE)
    run("--forkd-warm=collection", "--dist=each", workers=3).assert_outcomes(passed=18)
    [collector] = imports(pytester)
    notes = ran(pytester)
    assert {(parent, importer) for _, _, parent, importer in notes} == {(collector, collector)}
    assert len({(worker, pid) for worker, pid, _, _ in notes}) == 3
    assert collector not in {pid for _, pid, _, _ in notes}


def test_level_imports_imports_a_test_module_once_in_each_worker(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(PROBE)
    run("--forkd-warm=imports", "--dist=each", workers=3).assert_outcomes(passed=18)
    notes = ran(pytester)
    assert all(pid == importer for _, pid, _, importer in notes)
    assert sorted(imports(pytester)) == sorted({pid for _, pid, _, _ in notes})
    assert len({parent for _, _, parent, _ in notes}) == 1


def test_level_auto_is_level_collection_for_a_suite_that_can_share_it(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(PROBE)
    result = run()
    result.assert_outcomes(passed=6)
    result.stdout.no_fnmatch_line(FELL_BACK)
    assert len(imports(pytester)) == 1


def test_a_conftest_runs_in_the_controller_and_once_in_the_collector(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """At level ``imports``, in the controller and in each worker, as under xdist."""
    make_heavy(pytester.path, "conftest")
    pytester.makepyfile(PROBE)
    for arguments, times in ((("--forkd-warm=collection",), 2), (("--forkd-warm=imports",), 4)):
        run(*arguments, "--dist=each", workers=3).assert_outcomes(passed=18)
        pids = imports(pytester, "conftest")
        assert len(pids) == len(set(pids)) == times


@pytest.mark.parametrize("warm", ["imports", "collection"])
def test_a_module_to_preload_is_imported_once_by_the_parent(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """Before anything of the suite is, also if only one of its tests imports it, late."""
    make_heavy(pytester.path, "heavy", "heavier")
    pytester.makepyfile(
        PROBE
        + """
        import heavy, heavier
        assert heavy.PID == heavier.PID != os.getpid()
        with open("ran", "a") as file:
            print("heavy", heavy.PID, 0, 0, file=file)
    """
    )
    result = run(
        f"--forkd-warm={warm}", "--forkd-preload=heavy", "--forkd-preload", "heavier", "-s"
    )
    result.assert_outcomes(passed=6)
    [parent] = imports(pytester, "heavy")
    assert imports(pytester, "heavier") == [parent]
    notes = ran(pytester)
    assert {pid for who, pid, _, _ in notes if who == "heavy"} == {parent}
    others = {pid for note in notes if note[0] != "heavy" for pid in note[1:]}
    assert parent not in others


def test_a_module_of_the_project_can_be_preloaded_by_name(pytester: pytest.Pytester) -> None:
    """Where the controller finds it, as in the working directory, the parent does, too."""
    make_heavy(pytester.path, "heavy")
    pytester.makepyfile(PROBE + "    import heavy\n    assert heavy.PID != os.getpid()\n")
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "forkd", "--forkd-workers=2"]
    subprocess.run(
        [*command, "--forkd-preload=heavy"],
        cwd=pytester.path,
        env=environ,
        check=True,
        timeout=TIMEOUT,
    )
    assert len(imports(pytester, "heavy")) == 1


def test_a_module_that_cannot_be_preloaded_ends_the_run_with_its_name_and_the_reason(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(PROBE, broken="1/0")
    result = run("--forkd-preload=no_such_module")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--forkd-preload: cannot import 'no_such_module': ModuleNotF*"])
    result = run("--forkd-preload=broken")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--forkd-preload: cannot import 'broken': ZeroDivisionError*"])
    assert imports(pytester) == []


def test_third_party_modules_that_test_files_name_are_imported_before_the_workers_are_forked(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    """At level ``imports`` as at ``collection``, a heavy module is imported once, not N times."""
    make_heavy(site_packages, "heavy")
    make_heavy(pytester.path, "own")
    pytester.makepyfile(PROBE + "    import heavy, own\n")
    for warm, own in (("imports", 3), ("collection", 1)):
        run(f"--forkd-warm={warm}", "--forkd-keep=0", "--dist=each", workers=3).assert_outcomes(
            passed=18
        )
        assert len(imports(pytester, "heavy")) == 1
        assert len(imports(pytester, "own")) == own, "the project's own code is never preloaded"


def test_third_party_modules_of_the_last_collection_are_preloaded_at_level_imports(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    """Also those that no file names."""
    make_heavy(site_packages, "heavy")
    pytester.makepyfile(PROBE + "    HEAVY = __import__('hea' + 'vy')\n")
    arguments = ("--dist=each", "--forkd-warm=imports", "--forkd-keep=0")
    run(*arguments, workers=3).assert_outcomes(passed=18)
    assert len(imports(pytester, "heavy")) == 3, "nothing tells of it yet"
    run("--forkd-keep=0").assert_outcomes(passed=6)
    assert len(imports(pytester, "heavy")) == 1
    run(*arguments, workers=3).assert_outcomes(passed=18)
    assert len(imports(pytester, "heavy")) == 1


@pytest.mark.parametrize("found", ["early", "late"])
def test_what_conftest_and_test_modules_import_is_preloaded_for_a_suite_that_is_unfit_to_share(
    pytester: pytest.Pytester, run: Runner, site_packages: Path, found: str
) -> None:
    """Whether the reason is found before its test modules were imported, or after."""
    make_heavy(site_packages, "heavy", "heavier", "heaviest")
    early, late = ('["workerid"]', "") if found == "early" else ("", "    PIPE = os.pipe()\n")
    pytester.makeconftest(
        f"""
        import heavier
        def pytest_configure(config):
            if hasattr(config, "workerinput"):
                import heaviest
                config.found = config.workerinput{early}
        """
    )
    pytester.makepyfile(PROBE + "    import heavy\n" + late)
    for attempts in (2, 1):
        run("--dist=each", "--forkd-keep=0", workers=3).assert_outcomes(passed=18)
        collected = attempts if found == "late" else 1
        assert len(imports(pytester)) == collected + 2
        assert len(imports(pytester, "heavy")) == 1
        assert len(imports(pytester, "heavier")) == 2, "the controller's, too"
        assert len(imports(pytester, "heaviest")) == attempts


def test_a_remembered_module_that_is_gone_does_no_harm(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    make_heavy(site_packages, "heavy")
    pytester.makepyfile(PROBE + "    import heavy\n")
    run().assert_outcomes(passed=6)
    (site_packages / "heavy.py").unlink()
    pytester.makepyfile(PROBE)
    result = run("--forkd-warm=imports")
    result.assert_outcomes(passed=6)
    assert not result.errlines


def test_a_module_that_skips_or_exits_when_it_is_imported_is_left_for_the_suite(
    pytester: pytest.Pytester, run: Runner, site_packages: Path
) -> None:
    (site_packages / "skipping.py").write_text(
        "import pytest\npytest.skip('not here', allow_module_level=True)\n"
    )
    (site_packages / "exiting.py").write_text("raise SystemExit(3)\n")
    pytester.makepyfile(
        test_skips="import skipping\n",
        test_runs="""
        import sys
        try:
            import exiting
        except SystemExit:
            pass
        def test_it():
            assert "exiting" not in sys.modules
        """,
    )
    for warm in ("imports", "collection"):
        run(f"--forkd-warm={warm}").assert_outcomes(passed=1, skipped=1)


# -- settings ----------------------------------------------------------------------------------


def test_every_setting_has_an_ini_value_that_the_command_line_overrides(
    pytester: pytest.Pytester, run: Runner
) -> None:
    make_heavy(pytester.path, "heavy", "heavier")
    pytester.makeini(
        """
        [pytest]
        forkd_workers = 3
        forkd_backend = process
        forkd_warm = imports
        forkd_preload =
            heavy
            heavier
        """
    )
    pytester.makepyfile(PROBE)
    command = ("-p", "xdist", "-p", "forkd", "--dist=each")
    result = run(*command, runner="plain")
    result.assert_outcomes(passed=18)
    assert len(imports(pytester)) == 3
    assert len(imports(pytester, "heavy")) == len(imports(pytester, "heavier")) == 1
    result = run(*command, "--forkd-warm=collection", "--forkd-workers=2", runner="plain")
    result.assert_outcomes(passed=12)
    assert len(imports(pytester)) == 1


def test_a_warm_level_that_there_is_not_is_a_usage_error(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(PROBE)
    result = run("--forkd-warm=hot")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--forkd-warm: 'hot' must be one of auto, collection, imports*"])
    pytester.makeini("[pytest]\nforkd_warm = hot")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ini value forkd_warm: 'hot' must be one of auto, *"])


# -- memory ------------------------------------------------------------------------------------


def test_cache_clear_forgets_what_was_learnt_of_a_suite(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makeconftest("def pytest_sessionstart(): pass")
    pytester.makepyfile(PROBE)
    run().stdout.fnmatch_lines([FELL_BACK])
    run().stdout.no_fnmatch_line(FELL_BACK)
    result = run("--cache-clear")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines([FELL_BACK])


def test_without_a_cache_every_run_finds_out_anew(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makeconftest("def pytest_sessionstart(): pass")
    pytester.makepyfile(PROBE)
    for _ in range(2):
        result = run("-p", "no:cacheprovider")
        result.assert_outcomes(passed=6)
        result.stdout.fnmatch_lines([FELL_BACK])
    assert not (pytester.path / ".pytest_cache").exists()


def test_nonsense_in_the_cache_is_ignored(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makeconftest("def pytest_sessionstart(): pass")
    pytester.makepyfile(PROBE)
    run().assert_outcomes(passed=6)
    folder = pytester.path / ".pytest_cache" / "v" / "forkd"
    files = sorted(folder.iterdir())
    assert files
    for text in ('{"files": 1, "args": []}', "[1]", "not json"):
        for path in files:
            path.write_text(text)
        result = run()
        result.assert_outcomes(passed=6)
        result.stdout.fnmatch_lines([FELL_BACK])
