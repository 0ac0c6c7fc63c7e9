"""Other plugins do in forkd's workers what they do in xdist's."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.conftest import Runner

LEVELS = ["collection", "imports"]


def warned(result: pytest.RunResult) -> bool:
    """Whether the suite was found unfit to share its collection."""
    return any(
        "each worker collects for itself" in line or "PytestForkdWarning" in line
        for line in result.outlines
    )


def notes(pytester: pytest.Pytester) -> list[Any]:
    """What the tests of the last run noted, one JSON value a line; asking forgets it."""
    path = pytester.path / "notes"
    values = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return sorted(values)


# -- pytest-cov --------------------------------------------------------------------------------


@pytest.fixture
def package(pytester: pytest.Pytester) -> None:
    """A package with tests that leave some of its lines and branches out."""
    pytest.importorskip("pytest_cov")
    pytester.mkpydir("shop")
    for name, source in {
        "shop/__init__.py": "from shop.money import Money\nVERSION = 1\n",
        "shop/money.py": """
class Money:
    if VERSION := 2:
        currency = "EUR"

    def __init__(self, amount):
        if amount < 0:
            raise ValueError("negative")
        self.amount = amount

    def add(self, other):
        if other is None:
            return self
        return Money(self.amount + other.amount)

    def never(self):
        return [
            1,
        ]
""",
        "shop/late.py": """
def late(number):
    total = 0
    for part in range(number):
        if part % 2:
            total += part
    else:
        total += 100
    return total
""",
        "shop/untested.py": "def untested():\n    return 1\n",
        "conftest.py": "import pytest\nfrom shop import Money\n\n@pytest.fixture\ndef money():\n"
        "    yield Money(1)\n",
        "test_money.py": """
import pytest
from shop import Money

def test_add(money):
    assert money.add(Money(2)).amount == 3

def test_negative():
    with pytest.raises(ValueError):
        Money(-1)
""",
        "test_late.py": """
import threading
import pytest

@pytest.mark.parametrize("number, total", [(0, 100), (1, 100)])
def test_late(number, total):
    from shop.late import late
    assert late(number) == total

def test_late_in_a_thread():
    from shop.late import late
    thread = threading.Thread(target=late, args=[2])
    thread.start()
    thread.join()
""",
    }.items():
        (pytester.path / name).write_text(source.lstrip())


def coverage(pytester: pytest.Pytester, result: pytest.RunResult) -> dict[str, Any]:
    """Coverage by file, as in coverage's JSON report."""
    for line in [*result.outlines, *result.errlines]:
        assert not re.search(r"CovReportWarning|CoverageWarning|Coverage\.py warning", line), line
    assert not list(pytester.path.glob(".coverage.*")), "data files that were not combined"
    path = pytester.path / "coverage.json"
    files: dict[str, Any] = json.loads(path.read_text())["files"]
    path.unlink()
    return files


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("branch", [(), ("--cov-branch",)], ids=["lines", "branches"])
def test_coverage_is_that_of_plain_pytest(
    pytester: pytest.Pytester, run: Runner, branch: tuple[str, ...]
) -> None:
    """Lines that ran at import, in conftests, and in tests of different workers."""
    arguments = ("--cov=shop", "--cov=.", "--cov-report=json", *branch)
    result = run(*arguments, runner="plain", plugins=("pytest_cov",))
    result.assert_outcomes(passed=5)
    expected = coverage(pytester, result)
    assert expected["shop/money.py"]["missing_lines"]
    for warm in LEVELS:
        result = run(*arguments, f"--forkd-warm={warm}", plugins=("pytest_cov",))
        result.assert_outcomes(passed=5)
        assert not warned(result)
        assert coverage(pytester, result) == expected, warm


@pytest.mark.usefixtures("package")
def test_coverage_can_be_appended_and_reported_in_the_terminal(
    pytester: pytest.Pytester, run: Runner
) -> None:
    arguments = ("--cov=shop", "--cov-report=json", "--cov-report=term-missing")
    run(*arguments, "test_money.py", plugins=("pytest_cov",)).assert_outcomes(passed=2)
    result = run(*arguments, "--cov-append", "test_late.py", plugins=("pytest_cov",))
    result.assert_outcomes(passed=3)
    appended = coverage(pytester, result)
    report = [line for line in result.outlines if re.match(r"(shop/|TOTAL)", line)]
    result = run(*arguments, runner="plain", plugins=("pytest_cov",))
    assert appended == coverage(pytester, result)
    assert report == [line for line in result.outlines if re.match(r"(shop/|TOTAL)", line)]


@pytest.mark.usefixtures("package")
def test_coverage_contexts_name_the_tests(pytester: pytest.Pytester, run: Runner) -> None:
    (pytester.path / ".coveragerc").write_text("[json]\nshow_contexts = true\n")
    # A module that tests import late is first imported by other tests if others come first.
    arguments = ("--cov=shop", "--cov-report=json", "--cov-context=test", "--dist=load")
    found = {}
    for runner in ("xdist", "forkd"):
        result = run(*arguments, runner=runner, plugins=("pytest_cov",))
        found[runner] = {
            name: {line: sorted(contexts) for line, contexts in file["contexts"].items()}
            for name, file in coverage(pytester, result).items()
        }
    assert found["forkd"] == found["xdist"]
    assert "test_money.py::test_add|run" in found["forkd"]["shop/money.py"]["13"]


@pytest.mark.usefixtures("package")
def test_coverage_of_a_run_with_a_crash_keeps_what_the_other_workers_measured(
    pytester: pytest.Pytester, run: Runner
) -> None:
    (pytester.path / "test_zcrash.py").write_text("import os\ndef test_crash(): os._exit(1)\n")
    arguments = ("--cov=shop", "--cov-report=json", "--dist=loadfile")
    result = run(*arguments, workers=3, plugins=("pytest_cov",))
    result.assert_outcomes(passed=5, failed=1)
    path = pytester.path / "coverage.json"
    files = json.loads(path.read_text())["files"]
    assert files["shop/money.py"]["executed_lines"]
    assert files["shop/late.py"]["executed_lines"]


# -- pytest-rerunfailures ----------------------------------------------------------------------


def test_reruns_count_in_workers_and_after_a_crash(pytester: pytest.Pytester, run: Runner) -> None:
    """The plugin's server in the controller counts the reruns of crashed tests."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        import os, pathlib
        import pytest

        def attempt(name):
            path = pathlib.Path(name)
            number = int(path.read_text()) + 1 if path.exists() else 1
            path.write_text(str(number))
            return number

        @pytest.mark.parametrize("number", range(4))
        def test_flaky(number):
            assert attempt(f"flaky{number}") == 3

        def test_hopeless():
            attempt("hopeless")
            assert 0

        def test_crash_once():
            if attempt("crash") == 1:
                os._exit(1)

        def test_fine():
            pass
        """
    )
    counters = ("crash", "hopeless", *(f"flaky{number}" for number in range(4)))
    for runner, more in (
        ("xdist", ()),
        ("forkd", ("--forkd-warm=collection",)),
        ("forkd", ("--forkd-warm=imports",)),
    ):
        result = run("--reruns=2", *more, runner=runner, plugins=("rerunfailures",))
        attempts = {name: (pytester.path / name).read_text() for name in counters}
        for name in counters:
            (pytester.path / name).unlink()
        assert result.parseoutcomes() == {"passed": 6, "failed": 1, "rerun": 11}, more
        assert not warned(result)
        assert list(attempts.values()) == ["2", "3", "3", "3", "3", "3"], more


# -- pytest-randomly ---------------------------------------------------------------------------


@pytest.mark.parametrize("warm", LEVELS)
def test_pytest_randomly_has_one_seed_and_one_order_in_all_workers(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """A test draws what it draws under plain pytest with the seed in the header."""
    pytest.importorskip("pytest_randomly")
    pytester.makepyfile(
        """
        import json, random
        import pytest

        AT_IMPORT = random.random()

        @pytest.mark.parametrize("number", range(12))
        def test_draw(number, request):
            order = [item.name for item in request.session.items]
            seed = request.config.getoption("randomly_seed")
            with open("notes", "a") as file:
                print(json.dumps([number, random.random(), seed, order]), file=file)
        """
    )
    result = run(f"--forkd-warm={warm}", plugins=("randomly",))
    result.assert_outcomes(passed=12)
    assert not warned(result)
    [seed] = [line.rpartition("=")[2] for line in result.outlines if "--randomly-seed=" in line]
    found = notes(pytester)
    assert {note[2] for note in found} == {int(seed)}
    run(f"--randomly-seed={seed}", runner="plain", plugins=("randomly",))
    assert found == notes(pytester)


# -- pytest-timeout ----------------------------------------------------------------------------


@pytest.mark.parametrize("warm", LEVELS)
@pytest.mark.parametrize("method", ["signal", "thread"])
def test_pytest_timeout_ends_a_test(
    pytester: pytest.Pytester, run: Runner, method: str, warm: str
) -> None:
    """By a failure (``signal``), or with its worker (``thread``)."""
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(
        """
        import threading
        import pytest

        @pytest.mark.timeout(0.2)
        def test_waits():
            threading.Event().wait(60)

        @pytest.mark.parametrize("number", range(4))
        def test_fine(number):
            pass
        """
    )
    result = run(
        f"--forkd-warm={warm}", "--timeout=60", f"--timeout-method={method}", plugins=("timeout",)
    )
    result.assert_outcomes(passed=4, failed=1)
    if method == "signal":
        result.stdout.fnmatch_lines(["E * Failed: Timeout*0.2*"])
        result.stdout.no_fnmatch_line("*replacing crashed worker*")
    else:
        result.stdout.fnmatch_lines(["*crashed while running *::test_waits'"])


# -- pytest-django -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "test.sqlite3"], ids=["memory", "file"])
def test_pytest_django_gives_each_worker_a_database(
    pytester: pytest.Pytester, run: Runner, name: str | None
) -> None:
    """In memory, or a file whose name ends in the worker's."""
    pytest.importorskip("django")
    pytest.importorskip("pytest_django")
    app = pytester.mkpydir("app")
    (app / "models.py").write_text(
        "from django.db import models\n\nclass Thing(models.Model):\n"
        "    name = models.CharField(max_length=50)\n    class Meta:\n        app_label = 'app'\n"
    )
    pytester.makepyfile(
        project_settings=f"""
        SECRET_KEY = "x"
        INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "app"]
        DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
        USE_TZ = True
        DATABASES = {{
            "default": {{
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": "data.sqlite3",
                "TEST": {{"NAME": {name!r}}},
            }}
        }}
        """,
        test_django="""
        import json
        import pytest
        from django.contrib.auth.models import User
        from django.db import connection
        from app.models import Thing

        @pytest.mark.parametrize("number", range(6))
        @pytest.mark.django_db
        def test_thing(number, worker_id, settings, django_user_model):
            assert Thing.objects.count() == 0
            Thing.objects.create(name=worker_id)
            User.objects.create_user("someone")
            assert [thing.name for thing in Thing.objects.all()] == [worker_id]
            with open("notes", "a") as file:
                print(json.dumps([worker_id, str(connection.settings_dict["NAME"])]), file=file)

        @pytest.mark.django_db(transaction=True)
        def test_transaction(client):
            Thing.objects.create(name="kept")
            assert Thing.objects.count() == 1
        """,
    )
    pytester.makeini("[pytest]\nDJANGO_SETTINGS_MODULE = project_settings\npythonpath = .\n")
    run("--dist=each", runner="xdist", plugins=("django",)).assert_outcomes(passed=14)
    expected = notes(pytester)
    if name is not None:
        assert {note[1] for note in expected} == {"test.sqlite3_gw0", "test.sqlite3_gw1"}
    for warm in LEVELS:
        result = run("--dist=each", f"--forkd-warm={warm}", plugins=("django",))
        result.assert_outcomes(passed=14)
        assert not warned(result)
        assert notes(pytester) == expected
        assert not list(pytester.path.glob("*.sqlite3*")), "test databases were left behind"


# -- syrupy ------------------------------------------------------------------------------------


def test_syrupy_compares_updates_and_reports_snapshots(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """What xdist's workers do with snapshots, forkd's do, too."""
    pytest.importorskip("syrupy")
    found = {}
    for runner in ("xdist", "forkd"):
        steps: list[tuple[object, ...]] = []
        for offset, arguments in ((0, ("--snapshot-update",)), (0, ()), (1, ())):
            pytester.makepyfile(
                test_it=f"""
                import pytest
                @pytest.mark.parametrize("number", range(4))
                def test_value(number, snapshot):
                    assert {{"number": number + {offset}}} == snapshot
                """
            )
            result = run(*arguments, runner=runner, plugins=("syrupy",))
            assert not warned(result)
            lines = [line for line in result.outlines if re.search(r"\d+ snapshots? ", line)]
            files = {path.name: path.read_text() for path in pytester.path.rglob("*.ambr")}
            steps.append((result.ret, result.parseoutcomes(), lines, files))
        found[runner] = steps
        for path in pytester.path.rglob("*.ambr"):
            path.unlink()
    assert found["forkd"] == found["xdist"]
    assert [step[0] for step in found["forkd"]] == [0, 0, 1]
    assert found["forkd"][0][3]


# -- asyncio -----------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["anyio", "pytest_asyncio"])
def test_async_tests_and_fixtures_run_in_workers(
    pytester: pytest.Pytester, run: Runner, plugin: str
) -> None:
    pytest.importorskip(plugin)
    name, mark = {"anyio": ("anyio", "anyio"), "pytest_asyncio": ("asyncio", "asyncio")}[plugin]
    fixture = {"anyio": "pytest.fixture", "pytest_asyncio": "pytest_asyncio.fixture"}[plugin]
    pytester.makepyfile(
        f"""
        import asyncio
        import pytest, {plugin}

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @{fixture}
        async def server():
            async def answer(reader, writer):
                writer.write(await reader.readline())
                await writer.drain()
                writer.close()
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            yield server.sockets[0].getsockname()
            server.close()

        @pytest.mark.{mark}
        @pytest.mark.parametrize("number", range(6))
        async def test_echo(number, server):
            reader, writer = await asyncio.open_connection(*server)
            writer.write(b"hello\\n")
            assert await reader.read() == b"hello\\n"
            writer.close()
        """
    )
    arguments = ("-o", "asyncio_default_fixture_loop_scope=function")
    for warm in LEVELS:
        result = run(
            f"--forkd-warm={warm}", *(arguments if name == "asyncio" else ()), plugins=(name,)
        )
        result.assert_outcomes(passed=6)
        assert not warned(result)


# -- many at once ------------------------------------------------------------------------------


def test_plugins_that_are_installed_together_let_a_suite_share_its_collection(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """All of them loaded, none used: no reason to fall back."""
    names = {
        "anyio": "anyio",
        "hypothesis": "hypothesispytest",
        "pytest_cov": "pytest_cov",
        "pytest_randomly": "randomly",
        "pytest_rerunfailures": "rerunfailures",
        "pytest_timeout": "timeout",
        "syrupy": "syrupy",
    }
    for module in names:
        pytest.importorskip(module)
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("number", range(6))
        def test_it(number):
            pass
        """
    )
    result = run("--reruns=1", "--timeout=60", "--cov=.", plugins=tuple(names.values()))
    result.assert_outcomes(passed=6)
    assert not warned(result)
    assert not result.errlines
