"""Which worker am I? Every way to ask has to answer as it does under xdist."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from tests.conftest import Runner
from tests.parity_suite import make_recorder, read_records

#: For conftests: records all that says who a process is.
_IDENTITY = """
import os
import pytest
from recorder import record

def identity(config):
    workerinput = getattr(config, "workerinput", None)
    if workerinput is None:
        return {"workerid": "controller"}
    return {
        "workerid": workerinput["workerid"],
        "uid": workerinput["testrunuid"],
        "count": workerinput["workercount"],
        "env": [
            os.environ.get("PYTEST_XDIST_WORKER"),
            os.environ.get("PYTEST_XDIST_TESTRUNUID"),
            os.environ.get("PYTEST_XDIST_WORKER_COUNT"),
        ],
    }
"""

#: Tests for three workers; each gets at least two of them.
_TESTS = """
import pytest
from recorder import record
from conftest import identity

record("module")

@pytest.mark.parametrize("i", range(12))
def test_it(i, request):
    record("test", **identity(request.config))
"""

_WORKERS = ("gw0", "gw1", "gw2")

_HOOKS = (
    "pytest_configure",
    "pytest_sessionstart",
    "pytest_collection_modifyitems",
    "pytest_runtest_setup",
    "pytest_runtest_teardown",
    "pytest_sessionfinish",
    "pytest_unconfigure",
)


def _conftest(pytester: pytest.Pytester, source: str) -> None:
    make_recorder(pytester)
    pytester.makeconftest(_IDENTITY + textwrap.dedent(source))


def _check(entry: dict[str, Any], uid: str) -> None:
    """A record of :data:`_IDENTITY` in a worker: all sources agree."""
    assert entry["workerid"] in _WORKERS
    assert entry["uid"] == uid
    assert entry["count"] == 3
    assert entry["env"] == [entry["workerid"], uid, "3"]


def _worker_of(records: list[dict[str, Any]]) -> dict[int, str]:
    """Which worker each process was that ran a test."""
    workers = {entry["pid"]: entry["workerid"] for entry in records if entry["what"] == "test"}
    assert sorted(workers.values()) == list(_WORKERS)
    return workers


def test_every_hook_from_configure_on_sees_its_workers_identity(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A conftest that asks early makes each worker configure and collect for itself."""
    _conftest(
        pytester,
        """
        def pytest_configure(config):
            record("pytest_configure", **identity(config))
        def pytest_sessionstart(session):
            record("pytest_sessionstart", **identity(session.config))
        def pytest_collection_modifyitems(config):
            record("pytest_collection_modifyitems", **identity(config))
        def pytest_runtest_setup(item):
            record("pytest_runtest_setup", **identity(item.config))
        def pytest_runtest_teardown(item):
            record("pytest_runtest_teardown", **identity(item.config))
        def pytest_sessionfinish(session):
            record("pytest_sessionfinish", **identity(session.config))
        def pytest_unconfigure(config):
            record("pytest_unconfigure", **identity(config))
        """,
    )
    pytester.makepyfile(test_it=_TESTS)
    result = run("--testrunuid=a-run", workers=3)
    result.assert_outcomes(passed=12)
    result.stdout.fnmatch_lines(["forkd: each worker collects for itself: *(conftest.py:*"])
    records = read_records(pytester.path)
    workers = _worker_of(records)
    for pid, workerid in workers.items():
        own = [entry for entry in records if entry["pid"] == pid and entry["what"] != "module"]
        for entry in own:
            _check(entry, "a-run")
        assert {entry["workerid"] for entry in own} == {workerid}
        assert {entry["what"] for entry in own} == {*_HOOKS, "test"}
        for once in ("pytest_configure", "pytest_sessionstart", "pytest_unconfigure"):
            assert [entry["what"] for entry in own].count(once) == 1
    imported = {entry["pid"] for entry in records if entry["what"] == "module"}
    assert imported == set(workers)


@pytest.mark.parametrize(
    ("place", "conftest", "module"),
    [
        pytest.param(
            "conftest.py:3",
            """
            import os
            if "PYTEST_XDIST_WORKER" in os.environ:
                WORKER = os.environ["PYTEST_XDIST_WORKER"]
            """,
            "import conftest",
            id="environ-in-conftest",
        ),
        pytest.param(
            "test_it.py:2",
            "",
            """
            import os
            WORKER = os.getenv("PYTEST_XDIST_WORKER")
            """,
            id="getenv-in-test-module",
        ),
        pytest.param(
            "conftest.py:3",
            """
            def pytest_configure(config):
                global WORKER
                WORKER = getattr(config, "workerinput", {}).get("workerid")
            """,
            "import conftest",
            id="workerinput-in-configure",
        ),
        pytest.param(
            "conftest.py:4",
            """
            from xdist import get_xdist_worker_id
            def pytest_collection_modifyitems(session):
                global WORKER
                WORKER = get_xdist_worker_id(session)
            """,
            "import conftest",
            id="get_xdist_worker_id-in-modifyitems",
        ),
        pytest.param(
            "conftest.py:3",
            """
            def pytest_collection_finish(session):
                global WORKER
                WORKER = dict(getattr(session.config, "workerinput", {}).items())["workerid"]
            """,
            "import conftest",
            id="items-in-collection_finish",
        ),
        pytest.param(
            "conftest.py:2",
            """
            def pytest_configure(config):
                given = dict(getattr(config, "workerinput", {}))
                global WORKER
                WORKER = given.get("workerid")
            """,
            "import conftest",
            id="dict-of-workerinput",
        ),
        pytest.param(
            "conftest.py:2",
            """
            def pytest_configure(config):
                given = {**getattr(config, "workerinput", {})}
                global WORKER
                WORKER = given.get("workerid")
            """,
            "import conftest",
            id="unpacked-workerinput",
        ),
        pytest.param(
            "conftest.py:3",
            """
            import copy
            def pytest_configure(config):
                given = copy.copy(getattr(config, "workerinput", {}))
                global WORKER
                WORKER = given.get("workerid")
            """,
            "import conftest",
            id="copied-workerinput",
        ),
    ],
)
def test_an_early_read_is_noticed_and_answered_truly(
    pytester: pytest.Pytester, run: Runner, place: str, conftest: str, module: str
) -> None:
    """Wherever a suite asks before its tests run, the place is named and the answer is right."""
    make_recorder(pytester)
    pytester.makeconftest(conftest)
    source = textwrap.dedent(module).strip() + textwrap.dedent(
        """
        import sys, pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(4))
        def test_it(i, worker_id):
            here = sys.modules[__name__]
            assert (here if hasattr(here, "WORKER") else conftest).WORKER == worker_id
            record("test", worker=worker_id)
        """
    )
    pytester.makepyfile(test_it=source)
    result = run(workers=2)
    result.assert_outcomes(passed=4)
    line = next(
        line
        for line in result.stdout.lines
        if line.startswith("forkd: each worker collects for itself: ")
    )
    assert line.endswith(f"({place})")
    assert {entry["worker"] for entry in read_records(pytester.path)} == {"gw0", "gw1"}


def test_asking_at_test_time_shares_one_collection(pytester: pytest.Pytester, run: Runner) -> None:
    """Fixtures, tests and run-test hooks see the worker although the suite was collected once."""
    _conftest(
        pytester,
        """
        def pytest_runtest_setup(item):
            record("setup", **identity(item.config))
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_call(item):
            record("call", **identity(item.config))
            return (yield)
        def pytest_runtest_teardown(item):
            record("teardown", **identity(item.config))

        @pytest.fixture(scope="session", autouse=True)
        def session_fixture(request):
            record("session", **identity(request.config))
            yield
            record("session end", **identity(request.config))
        @pytest.fixture(scope="module", autouse=True)
        def module_fixture(request, worker_id):
            record("module fixture", **identity(request.config))
            assert worker_id == os.environ["PYTEST_XDIST_WORKER"]
        @pytest.fixture(autouse=True)
        def function_fixture(request):
            record("function", **identity(request.config))
        """,
    )
    pytester.makepyfile(test_it=_TESTS)
    result = run(workers=3)
    result.assert_outcomes(passed=12)
    result.stdout.no_fnmatch_line("*collects for itself*")
    records = read_records(pytester.path)
    workers = _worker_of(records)
    imported = [entry["pid"] for entry in records if entry["what"] == "module"]
    assert len(imported) == 1
    assert imported[0] not in workers
    inside = [entry for entry in records if entry["what"] != "module"]
    uid = inside[0]["uid"]
    assert uid
    for entry in inside:
        _check(entry, uid)
        assert entry["workerid"] == workers[entry["pid"]]
    for what, count in (
        ("session", 3),
        ("session end", 3),
        ("module fixture", 3),
        ("function", 12),
        ("setup", 12),
        ("call", 12),
        ("teardown", 12),
    ):
        assert sum(entry["what"] == what for entry in inside) == count, what


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_xdists_fixtures_and_functions_answer(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """``worker_id``, ``testrun_uid`` and the functions that xdist exports."""
    make_recorder(pytester)
    pytester.makepyfile(
        """
        import os, pytest, xdist
        from recorder import record

        @pytest.mark.parametrize("i", range(6))
        def test_it(i, request, worker_id, testrun_uid):
            assert xdist.is_xdist_worker(request)
            assert not xdist.is_xdist_controller(request)
            assert xdist.get_xdist_worker_id(request) == worker_id
            assert xdist.get_xdist_worker_id(request.session) == worker_id
            assert worker_id == os.environ["PYTEST_XDIST_WORKER"]
            assert testrun_uid == os.environ["PYTEST_XDIST_TESTRUNUID"] == "my-own-run"
            record("test", worker=worker_id)
        """
    )
    result = run("--testrunuid=my-own-run", f"--forkd-warm={warm}", workers=3)
    result.assert_outcomes(passed=6)
    assert {entry["worker"] for entry in read_records(pytester.path)} == set(_WORKERS)


def test_each_run_has_a_uid_of_its_own(pytester: pytest.Pytester, run: Runner) -> None:
    """Without ``--testrunuid`` one is made up, the same for all workers of a run."""
    make_recorder(pytester)
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(4))
        def test_it(i, testrun_uid):
            record("test", uid=testrun_uid)
        """
    )
    run(workers=2).assert_outcomes(passed=4)
    run(workers=2).assert_outcomes(passed=4)
    uids = [entry["uid"] for entry in read_records(pytester.path)]
    assert len(set(uids[:4])) == len(set(uids[4:])) == 1
    assert uids[0] != uids[4]


@pytest.mark.parametrize("warm", ["auto", "imports"])
def test_builtins_travel_unchanged_to_and_from_a_worker(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """What ``pytest_configure_node`` sets and what a worker puts into ``workeroutput``."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        import pytest
        from recorder import record

        SHARED = {
            "tuple": (1, "two", (3.5, None)),
            "bytes": b"\\x00\\xff",
            "set": {1, 2},
            "frozenset": frozenset("ab"),
            "big": 2 ** 80,
            "list": [True, False, None, -1, 1e300, "\\u00e9\\U0001f600"],
            "dict": {1: "int key", (1, 2): "tuple key"},
        }

        def pytest_configure_node(node):
            node.workerinput.update(SHARED)
            node.workerinput["port"] = 5000 + int(node.gateway.id[2:])
            node.workerinput["pair"] = (node.gateway.id, b"raw")

        @pytest.fixture
        def checked_input(request, worker_id):
            given = request.config.workerinput
            for key, value in SHARED.items():
                assert given[key] == value
                assert type(given[key]) is type(value)
            assert given["port"] == 5000 + int(worker_id[2:])
            assert given["pair"] == (worker_id, b"raw")
            output = request.config.workeroutput
            output.update(SHARED)
            output.setdefault("pids", set()).add(worker_id)
            output["pair"] = (worker_id, b"raw")

        def pytest_testnodedown(node, error):
            for key, value in SHARED.items():
                assert node.workeroutput[key] == value
                assert type(node.workeroutput[key]) is type(value)
            assert node.workeroutput["pair"] == (node.gateway.id, b"raw")
            assert node.workeroutput["pids"] == {node.gateway.id}
            record("down", worker=node.gateway.id, error=error)
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("i", range(6))
        def test_it(i, checked_input):
            pass
        """
    )
    result = run(f"--forkd-warm={warm}", workers=3)
    result.assert_outcomes(passed=6)
    assert result.ret == 0
    down = read_records(pytester.path)
    assert sorted(entry["worker"] for entry in down) == list(_WORKERS)
    assert all(entry["error"] is None for entry in down)


def test_what_is_no_builtin_cannot_be_sent_to_a_worker(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """It is refused with the node's name, as a mistake in the use of pytest."""
    pytester.makeconftest(
        """
        def pytest_configure_node(node):
            node.workerinput["object"] = object()
        """
    )
    pytester.makepyfile("def test_it(): pass")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pytest_configure_node: cannot send the workerinput of gw0*"])


def test_what_is_no_builtin_arrives_from_a_worker_as_text(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A warning names the key, and what can be sent arrives as it is."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        from recorder import record

        def pytest_testnodedown(node, error):
            assert isinstance(node.workeroutput.get("path", ""), str)
            record("down", worker=node.gateway.id, other=node.workeroutput.get("other"))
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("i", range(4))
        def test_it(i, request, tmp_path, worker_id):
            request.config.workeroutput["other"] = worker_id
            if i == 1:
                request.config.workeroutput["path"] = tmp_path
        """
    )
    result = run(workers=2)
    result.assert_outcomes(passed=4, warnings=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*config.workeroutput?'path'? holds a value of type pathlib.*"])
    down = {entry["worker"]: entry["other"] for entry in read_records(pytester.path)}
    assert down == {"gw0": "gw0", "gw1": "gw1"}


def test_a_reference_kept_since_configure_shows_the_workers_own_values(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """The same mapping is changed in each worker, so that plugins may hold on to it."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        def pytest_configure_node(node):
            node.workerinput["database"] = "test_" + node.gateway.id

        def pytest_configure(config):
            config.kept = getattr(config, "workerinput", None)
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        record("module")

        @pytest.mark.parametrize("i", range(6))
        def test_it(i, request, worker_id):
            kept = request.config.kept
            assert kept is request.config.workerinput
            assert kept["workerid"] == worker_id
            assert kept["database"] == "test_" + worker_id
            assert dict(kept) == dict(kept.items())
            record("test", worker=worker_id)
        """
    )
    result = run(workers=3)
    result.assert_outcomes(passed=6)
    assert len(read_records(pytester.path, "module")) == 1
    assert {entry["worker"] for entry in read_records(pytester.path, "test")} == set(_WORKERS)


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_worker_start_is_called_once_in_each_worker(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """``pytest_forkd_worker_start`` runs in the worker, with its own values, before any test."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        import os
        from recorder import record

        def pytest_configure_node(node):
            node.workerinput["port"] = 5000 + int(node.gateway.id[2:])

        def pytest_forkd_worker_start(config, workerinput):
            assert workerinput is config.workerinput
            record(
                "start",
                worker=workerinput["workerid"],
                port=workerinput["port"],
                env=os.environ["PYTEST_XDIST_WORKER"],
            )
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(6))
        def test_it(i, worker_id):
            record("test", worker=worker_id)
        """
    )
    run(f"--forkd-warm={warm}", workers=3).assert_outcomes(passed=6)
    records = read_records(pytester.path)
    starts = [entry for entry in records if entry["what"] == "start"]
    assert sorted(entry["worker"] for entry in starts) == list(_WORKERS)
    for start in starts:
        assert start["env"] == start["worker"]
        assert start["port"] == 5000 + int(start["worker"][2:])
        own = [entry for entry in records if entry["pid"] == start["pid"]]
        assert own[0] is start
        assert {entry["worker"] for entry in own} == {start["worker"]}
        assert len(own) > 1


def test_sharing_by_force_warns_of_an_early_read(pytester: pytest.Pytester, run: Runner) -> None:
    """``--forkd-warm=collection`` keeps the one collection, and names the place."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        def pytest_configure(config):
            if hasattr(config, "workerinput"):
                config.name = config.workerinput["workerid"]
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        record("module")

        @pytest.mark.parametrize("i", range(4))
        def test_it(i, worker_id, request):
            assert request.config.name == "gw0"  # what the collector was told
            record("test", worker=worker_id)
        """
    )
    result = run("--forkd-warm=collection", workers=2)
    result.assert_outcomes(passed=4, warnings=1)
    result.stdout.fnmatch_lines(["*PytestForkdWarning: *workerid*conftest.py:3*"])
    assert len(read_records(pytester.path, "module")) == 1
    assert {entry["worker"] for entry in read_records(pytester.path, "test")} == {"gw0", "gw1"}
