"""xdist's contract: its hooks, options, attributes and fixtures, over workers that are clones."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from typing import Any

import pytest

from tests.conftest import Runner
from tests.parity_suite import make_recorder, read_records

#: Tests that record which worker ran them.
_RECORDED = """
import os, pytest
from recorder import record

@pytest.mark.parametrize("i", range({count}))
def test_it(i, worker_id):
    record("test", i=i, worker=worker_id)
"""


def _suite(pytester: pytest.Pytester, count: int = 8) -> None:
    make_recorder(pytester)
    pytester.makepyfile(test_it=_RECORDED.format(count=count))


def _by_worker(records: list[dict[str, Any]], key: str) -> dict[str, set[str]]:
    """Which workers ran each group of tests."""
    workers = defaultdict(set)
    for entry in records:
        workers[str(entry[key])].add(str(entry["worker"]))
    return dict(workers)


# -- hooks and attributes in the controller ----------------------------------------------------


def test_the_controller_calls_xdists_hooks(pytester: pytest.Pytester, run: Runner) -> None:
    """Each of them, for each worker, in xdist's order and with what plugins look at."""
    _suite(pytester)
    pytester.makeconftest(
        """
        import sys
        from recorder import record

        def pytest_xdist_getremotemodule():
            record("getremotemodule")

        def pytest_xdist_rsyncstart(source, gateways):
            record("rsyncstart")

        def pytest_xdist_rsyncfinish(source, gateways):
            record("rsyncfinish")

        def pytest_xdist_setupnodes(config, specs):
            record("setupnodes", specs=[[spec.id, bool(spec.popen)] for spec in specs])

        def pytest_xdist_newgateway(gateway):
            rinfo = gateway._rinfo()
            assert rinfo.executable == sys.executable
            assert rinfo.version_info == tuple(sys.version_info)
            assert rinfo.platform == sys.platform
            record(
                "newgateway",
                worker=gateway.id,
                spec=gateway.spec.id,
                cwd=rinfo.cwd,
                parent=rinfo.pid,
            )

        def pytest_configure_node(node):
            assert node.workerinput["mainargv"] == sys.argv
            assert node.config.pluginmanager.hasplugin("dsession")
            given = {k: v for k, v in node.workerinput.items() if k != "mainargv"}
            record("configure_node", worker=node.gateway.id, given=given)

        def pytest_testnodeready(node):
            info = node.workerinfo
            assert info["executable"] == sys.executable
            assert info["version"] == sys.version
            assert info["version_info"] == tuple(sys.version_info)
            assert info["sysplatform"] == sys.platform
            assert info["id"] == node.gateway.id
            assert info["spec"] is node.gateway.spec
            record("testnodeready", worker=node.gateway.id, cwd=info["cwd"])

        def pytest_xdist_node_collection_finished(node, ids):
            record("collection_finished", worker=node.gateway.id, ids=list(ids))

        def pytest_testnodedown(node, error):
            status = node.workeroutput["exitstatus"]
            record("testnodedown", worker=node.gateway.id, error=error, status=status)
        """
    )
    result = run("--testrunuid=a-run", workers=2)
    result.assert_outcomes(passed=8)
    workers = {entry["pid"] for entry in read_records(pytester.path, "test")}
    records = [entry for entry in read_records(pytester.path) if entry["what"] != "test"]
    assert len({entry["pid"] for entry in records}) == 1
    assert not {"getremotemodule", "rsyncstart", "rsyncfinish"} & {each["what"] for each in records}
    [parent] = {each["parent"] for each in records if each["what"] == "newgateway"}
    assert parent not in {*workers, records[0]["pid"]}
    assert len(workers) == 2
    assert records[0]["specs"] == [["gw0", True], ["gw1", True]]
    ids = [f"test_it.py::test_it[{i}]" for i in range(8)]
    for worker in ("gw0", "gw1"):
        newgateway, configured, ready, collected, down = (
            entry for entry in records if entry.get("worker") == worker
        )
        assert newgateway["what"] == "newgateway"
        assert newgateway["spec"] == worker
        assert newgateway["cwd"] == str(pytester.path)
        assert configured["what"] == "configure_node"
        given = {"workerid": worker, "workercount": 2, "testrunuid": "a-run"}
        if os.environ.get("PYTEST_FORKD_TEST_AUTOLOAD"):  # plugins have added theirs
            assert given.items() <= configured["given"].items()
        else:
            assert configured["given"] == given
        assert ready["what"] == "testnodeready"
        assert ready["cwd"] == str(pytester.path)
        assert collected["what"] == "collection_finished"
        assert collected["ids"] == ids
        assert down["what"] == "testnodedown"
        assert (down["error"], down["status"]) == (None, 0)


def test_plugins_find_the_session_and_the_options_as_under_xdist(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Names of registered plugins, and xdist's options in the controller and in workers."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        import pytest, xdist
        from recorder import record

        @pytest.hookimpl(trylast=True)
        def pytest_sessionfinish(session):
            config = session.config
            manager = config.pluginmanager
            if hasattr(config, "workerinput"):
                assert not manager.hasplugin("dsession")
                assert not xdist.is_xdist_controller(session)
                assert config.option.dist == "no"
                assert config.option.numprocesses is None
                assert not config.option.tx
            else:
                from xdist.dsession import DSession
                assert isinstance(manager.getplugin("dsession"), DSession)
                assert manager.hasplugin("terminaldistreporter")
                assert xdist.is_xdist_controller(session)
                assert config.option.dist == "load"
                assert config.option.numprocesses == 2
                assert config.option.tx == ["popen"] * 2
                assert config.getoption("numprocesses") == config.getvalue("numprocesses")
            record("checked")
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("i", range(4))
        def test_it(i):
            pass
        """
    )
    result = run(workers=2)
    result.assert_outcomes(passed=4)
    assert result.ret == 0
    assert len({entry["pid"] for entry in read_records(pytester.path)}) == 3


def test_reports_tell_which_worker_they_are_from(pytester: pytest.Pytester, run: Runner) -> None:
    """``report.node`` and the fields that xdist adds, and a worker's reports in their order."""
    _suite(pytester)
    pytester.makeconftest(
        """
        from recorder import record

        def pytest_runtest_logstart(nodeid, location):
            assert location == ("test_it.py", 2, "test_it" + nodeid[nodeid.index("["):])
            record("logstart", nodeid=nodeid)

        def pytest_runtest_logfinish(nodeid, location):
            record("logfinish", nodeid=nodeid)

        def pytest_runtest_logreport(report):
            if hasattr(report, "node"):
                assert report.node.gateway.id == report.node.workerinput["workerid"]
                assert report.worker_id == report.node.gateway.id
                assert report.testrun_uid == report.node.workerinput["testrunuid"]
                assert report.nodeid.endswith(f"[{report.item_index}]")
                assert type(report.location) is tuple
                assert report.nodeid.partition("::")[2] in report.keywords
                if report.skipped:
                    path, lineno, reason = report.longrepr
                    assert type(report.longrepr) is tuple
                    assert (path[-10:], lineno, reason) == ("test_it.py", 8, "Skipped: not now")
                record(
                    report.when,
                    nodeid=report.nodeid,
                    worker=report.worker_id,
                    properties=report.user_properties,
                )
        """
    )
    pytester.makepyfile(
        test_it="""
        import pytest
        from recorder import record
        @pytest.mark.parametrize("i", range(8))
        def test_it(i, worker_id, record_property):
            record_property("number", i)
            record("test", nodeid=f"test_it.py::test_it[{i}]", worker=worker_id)
            if i == 3:
                pytest.skip("not now")
        """
    )
    run(workers=2).assert_outcomes(passed=7, skipped=1)
    records = read_records(pytester.path)
    controller = next(entry["pid"] for entry in records if entry["what"] == "setup")
    for i in range(8):
        nodeid = f"test_it.py::test_it[{i}]"
        own = [
            entry for entry in records if entry["nodeid"] == nodeid and entry["pid"] == controller
        ]
        assert [e["what"] for e in own] == ["logstart", "setup", "call", "teardown", "logfinish"]
        (ran,) = (e for e in records if e["nodeid"] == nodeid and e["what"] == "test")
        assert {e["worker"] for e in own if "worker" in e} == {ran["worker"]}
        assert own[2]["properties"] == [["number", i]]


def test_the_controller_imports_no_test_module(pytester: pytest.Pytester, run: Runner) -> None:
    """Test modules are imported once, in a process that is neither controller nor worker."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        from recorder import record

        def pytest_configure(config):
            if not hasattr(config, "workerinput"):
                record("controller")
        """
    )
    pytester.makepyfile(
        test_it="""
        import pytest
        from recorder import record

        record("module")

        @pytest.mark.parametrize("i", range(4))
        def test_it(i):
            record("test")
        """
    )
    run(workers=2).assert_outcomes(passed=4)
    records = read_records(pytester.path)
    (controller,) = (entry["pid"] for entry in records if entry["what"] == "controller")
    (importer,) = (entry["pid"] for entry in records if entry["what"] == "module")
    workers = {entry["pid"] for entry in records if entry["what"] == "test"}
    assert len({controller, importer} | workers) == 4


def test_code_cannot_be_sent_to_a_worker(pytester: pytest.Pytester, run: Runner) -> None:
    """``gateway.remote_exec`` raises an error that says what to use instead."""
    pytester.makeconftest(
        """
        import pytest

        def pytest_configure_node(node):
            with pytest.raises(RuntimeError, match="pytest_forkd_worker_start") as caught:
                node.gateway.remote_exec("pass")
            print("refused for", node.gateway.id, str(caught.value)[:15])
        """
    )
    pytester.makepyfile("def test_it(): pass")
    result = run("-s", workers=2)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["refused for gw0 pytest-forkd: *", "refused for gw1 *"])


def test_a_users_scheduler_is_used(pytester: pytest.Pytester, run: Runner) -> None:
    """``pytest_xdist_make_scheduler`` in a conftest decides who runs what."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        from xdist.scheduler import LoadScopeScheduling

        class OddsAndEvens(LoadScopeScheduling):
            def _split_scope(self, nodeid):
                return "odd" if int(nodeid[-2]) % 2 else "even"

        def pytest_xdist_make_scheduler(config, log):
            return OddsAndEvens(config, log)
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(10))
        def test_it(i, worker_id):
            record("test", odd=i % 2, worker=worker_id)
        """
    )
    result = run("-v", workers=2)
    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines(["scheduling tests via OddsAndEvens"])
    groups = _by_worker(read_records(pytester.path), "odd")
    assert sorted(map(sorted, groups.values())) == [["gw0"], ["gw1"]]


def test_a_crashed_test_can_be_run_again(pytester: pytest.Pytester, run: Runner) -> None:
    """``pytest_handlecrashitem`` may change the report and queue the test once more."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        from recorder import record

        def pytest_handlecrashitem(crashitem, report, sched):
            record("crash", item=crashitem, outcome=report.outcome, worker=report.node.gateway.id)
            sched.mark_test_pending(crashitem)
            report.outcome = "rerun"

        def pytest_report_teststatus(report):
            if report.outcome == "rerun":
                return "rerun", "R", "RERUN"
        """
    )
    pytester.makepyfile(
        test_it="""
        import os, pathlib, signal, pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(6))
        def test_it(i, worker_id):
            record("test", i=i, worker=worker_id)
            marker = pathlib.Path(__file__).with_name("crashed")
            if i == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    result = run(workers=2)
    result.assert_outcomes(passed=6)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*6 passed, 1 rerun in *"])
    (crash,) = read_records(pytester.path, "crash")
    assert crash["item"] == "test_it.py::test_it[1]"
    assert crash["outcome"] == "failed"
    first, again = (e for e in read_records(pytester.path, "test") if e["i"] == 1)
    assert first["worker"] == crash["worker"]
    assert again["pid"] != first["pid"]


# -- how many workers --------------------------------------------------------------------------


def test_auto_asks_the_hook_of_the_suites_conftest(pytester: pytest.Pytester, run: Runner) -> None:
    """``pytest_xdist_auto_num_workers`` decides about ``--forkd-workers=auto``."""
    _suite(pytester)
    pytester.makeconftest("def pytest_xdist_auto_num_workers(config): return 3")
    result = run(workers="auto")
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["3 workers [[]8 items[]]"])
    assert {e["worker"] for e in read_records(pytester.path)} == {"gw0", "gw1", "gw2"}


def test_auto_obeys_xdists_environment_variable(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``-n auto`` does."""
    _suite(pytester)
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "3")
    run(workers="auto").stdout.fnmatch_lines(["3 workers [[]8 items[]]"])


@pytest.mark.parametrize("workers", ["auto", 4])
def test_maxprocesses_is_the_limit(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch, workers: str | int
) -> None:
    """``--maxprocesses`` limits any number of workers, as it does for ``-n``."""
    _suite(pytester)
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "4")
    result = run("--maxprocesses=2", workers=workers)
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["2 workers [[]8 items[]]"])


def test_there_are_no_more_workers_than_tests(pytester: pytest.Pytester, run: Runner) -> None:
    """A worker without a test is never made; nobody is told of one, and none is counted."""
    make_recorder(pytester)
    pytester.makepyfile(
        test_it="""
        import os, pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(3))
        def test_it(i, request, worker_id):
            record("test", worker=worker_id)
            assert request.config.workerinput["workercount"] == 3
            assert os.environ["PYTEST_XDIST_WORKER_COUNT"] == "3"
        """
    )
    pytester.makeconftest(
        """
        from recorder import record

        def pytest_testnodeready(node):
            record("ready", worker=node.gateway.id)
        def pytest_testnodedown(node, error):
            record("down", worker=node.gateway.id)
        """
    )
    result = run(workers=8)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["3 workers [[]3 items[]]"])
    for what in ("ready", "test", "down"):
        workers = sorted(entry["worker"] for entry in read_records(pytester.path, what))
        assert workers == ["gw0", "gw1", "gw2"], what


@pytest.mark.parametrize(
    ("ini", "args"),
    [
        pytest.param("forkd_replace_xdist = true", ["-n2"], id="n"),
        pytest.param("forkd_replace_xdist = true", ["-nauto", "--maxprocesses=2"], id="n-auto"),
        pytest.param("forkd_workers = 2", [], id="ini"),
        pytest.param("addopts = -p forkd --forkd-workers=2", [], id="addopts"),
    ],
)
def test_ini_values_make_workers(
    pytester: pytest.Pytester,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    ini: str,
    args: list[str],
) -> None:
    """An ini file can ask for workers, and can let ``-n`` make clones."""
    _suite(pytester)
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "3")
    pytester.makeini("[pytest]\n" + ini)
    result = run(*args, runner="plain", plugins=("xdist", "forkd"))
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["forkd: 2 workers, process backend, parent made"])
    assert {entry["worker"] for entry in read_records(pytester.path)} == {"gw0", "gw1"}


def test_n_alone_stays_xdist(pytester: pytest.Pytester, run: Runner) -> None:
    """Whoever asks for xdist's workers gets them, even where the ini file asks for clones."""
    _suite(pytester, count=2)
    pytester.makeini("[pytest]\nforkd_workers = 1")
    result = run(runner="xdist", workers=2, plugins=("forkd",))
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("forkd: *")
    assert {entry["worker"] for entry in read_records(pytester.path)} == {"gw0", "gw1"}


@pytest.mark.parametrize("option", ["--forkd-workers=0", "-n0", "--pdb", "--trace"])
def test_nothing_is_distributed(pytester: pytest.Pytester, run: Runner, option: str) -> None:
    """With no workers, or under a debugger, the tests run in the process that was started."""
    _suite(pytester, count=2)
    pytester.makeini("[pytest]\nforkd_workers = 2")
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(autouse=True)
        def _no_prompt(monkeypatch):
            import pdb
            monkeypatch.setattr(pdb.Pdb, "runcall", lambda self, func, *a, **k: func(*a, **k))
        """
    )
    result = run(option, runner="plain", plugins=("xdist", "forkd"))
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("forkd: *")
    records = read_records(pytester.path)
    assert {entry["worker"] for entry in records} == {"master"}
    assert len({entry["pid"] for entry in records}) == 1


def test_collect_only_collects_in_the_controller(pytester: pytest.Pytester, run: Runner) -> None:
    """The tests are listed as plain pytest does, and none runs."""
    _suite(pytester, count=2)
    result = run("--collect-only", "-q", workers=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["test_it.py::test_it[[]0[]]", "test_it.py::test_it[[]1[]]"])
    result.stdout.no_fnmatch_line("forkd: *")
    assert not read_records(pytester.path)


def test_fixtures_of_each_test_are_shown_by_the_controller(
    pytester: pytest.Pytester, run: Runner
) -> None:
    _suite(pytester, count=2)
    result = run("--fixtures-per-test", workers=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*fixtures used by test_it[[]0[]]*"])
    result.stdout.no_fnmatch_line("forkd: *")
    assert not read_records(pytester.path)


def test_how_many_tests_a_worker_is_dealt_at_once(pytester: pytest.Pytester, run: Runner) -> None:
    """With ``--dist=load``; those behind a slow one wait for it."""
    make_recorder(pytester)
    pytester.makepyfile(
        """
        import os, time, pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(40))
        def test_it(i):
            if i == 0:
                time.sleep(2)
            record("ran", i=i, worker=os.environ["PYTEST_XDIST_WORKER"])
        """
    )
    for options, dealt in ((["--maxschedchunk=1"], 2), ([], 5)):
        run("--dist=load", *options, workers=2).assert_outcomes(passed=40)
        ran = read_records(pytester.path, "ran")
        (pytester.path / "records").unlink()
        slow = next(each["worker"] for each in ran if each["i"] == 0)
        assert len([each for each in ran if each["worker"] == slow]) == dealt


@pytest.mark.parametrize("option", ["--help", "--markers", "--fixtures", "--version"])
def test_asking_about_pytest_works_in_a_suite_with_workers(
    pytester: pytest.Pytester, run: Runner, option: str
) -> None:
    """No worker is waited for where no test is to run."""
    _suite(pytester, count=2)
    pytester.makeini("[pytest]\nforkd_workers = 2")
    result = run(option, runner="plain", plugins=("xdist", "forkd"))
    assert result.ret == 0
    expected = {"--markers": "@pytest.mark.xdist_group*", "--fixtures": "worker_id*"}
    if option in expected:
        result.stdout.fnmatch_lines([expected[option]])
    elif option == "--help":
        result.stdout.fnmatch_lines(["*--forkd-workers=N*"])
    assert not read_records(pytester.path)


# -- distribution ------------------------------------------------------------------------------


def test_dist_each_runs_every_test_in_every_worker(pytester: pytest.Pytester, run: Runner) -> None:
    """``--dist=each``, with more workers than tests."""
    _suite(pytester, count=2)
    result = run("--dist=each", workers=3)
    result.assert_outcomes(passed=6)
    groups = _by_worker(read_records(pytester.path), "i")
    assert groups == {"0": {"gw0", "gw1", "gw2"}, "1": {"gw0", "gw1", "gw2"}}


def test_dist_load_shares_out_the_tests(pytester: pytest.Pytester, run: Runner) -> None:
    """``--dist=load``: every test runs once, every worker has some."""
    _suite(pytester, count=20)
    run("--dist=load", workers=3).assert_outcomes(passed=20)
    records = read_records(pytester.path)
    assert sorted(entry["i"] for entry in records) == list(range(20))
    assert {entry["worker"] for entry in records} == {"gw0", "gw1", "gw2"}


def test_dist_worksteal_takes_tests_from_behind_a_long_one(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """What waits behind a running test is run by a worker that has nothing left to do."""
    make_recorder(pytester)
    pytester.makepyfile(
        """
        import pathlib, time, pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(12))
        def test_it(i, worker_id):
            record("test", i=i, worker=worker_id)
            deadline = time.monotonic() + 30
            records = pathlib.Path(__file__).with_name("records")
            # Its worker holds the next test already; all the others have to run elsewhere.
            while i == 0 and len(records.read_text().splitlines()) < 11:
                assert time.monotonic() < deadline, "nobody took the tests behind this one"
                time.sleep(0.01)
        """
    )
    result = run("--dist=worksteal", "-v", workers=2)
    result.assert_outcomes(passed=12)
    result.stdout.fnmatch_lines(["scheduling tests via WorkStealingScheduling"])
    records = read_records(pytester.path)
    assert sorted(entry["i"] for entry in records) == list(range(12))


def test_dist_worksteal_finds_that_every_test_has_begun(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A worker may have come further than it has told; what it has begun is not taken from it."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        import pathlib, time
        from recorder import record

        HERE = pathlib.Path(__file__).parent

        def wait_for(what):
            deadline = time.monotonic() + 30
            while what not in (HERE / "records").read_text():
                assert time.monotonic() < deadline, what
                time.sleep(0.005)

        def pytest_runtest_logreport(report):
            # The worker with the first half is about to have nothing to do. The other one has told
            # nothing so far, and now runs all that it has.
            nodeid = report.nodeid
            if hasattr(report, "node") and nodeid.endswith("[4]") and report.when == "teardown":
                record("go")
                wait_for('"begun 10"')
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from conftest import wait_for
        from recorder import record

        @pytest.mark.parametrize("i", range(12))
        def test_it(i):
            record(f"begun {i}")
            if i == 6:
                wait_for('"go"')
        """
    )
    result = run("--dist=worksteal", workers=2)
    result.assert_outcomes(passed=12)
    assert len(read_records(pytester.path)) == 13


_SCOPED = """
import pytest
from recorder import record

@pytest.mark.parametrize("i", range(3))
class TestA:
    def test_it(self, i, worker_id):
        record("test", scope=__name__ + "A", file=__name__, group="none", worker=worker_id)

class TestB:
    @pytest.mark.parametrize("i", range(3))
    @pytest.mark.xdist_group("shared")
    def test_it(self, i, worker_id):
        record("test", scope=__name__ + "B", file=__name__, group="shared", worker=worker_id)

@pytest.mark.parametrize("i", range(3))
@pytest.mark.xdist_group(name=__name__)
def test_it(i, worker_id):
    record("test", scope=__name__, file=__name__, group=__name__, worker=worker_id)
"""


@pytest.mark.parametrize(
    ("dist", "key"), [("loadscope", "scope"), ("loadfile", "file"), ("loadgroup", "group")]
)
def test_tests_that_belong_together_stay_in_one_worker(
    pytester: pytest.Pytester, run: Runner, dist: str, key: str
) -> None:
    """Those of a class or module under ``loadscope``, of a file, or of an ``xdist_group``."""
    make_recorder(pytester)
    pytester.makepyfile(test_one=_SCOPED, test_two=_SCOPED)
    result = run(f"--dist={dist}", "-v", workers=3)
    result.assert_outcomes(passed=18)
    records = read_records(pytester.path)
    groups = _by_worker(records, key)
    groups.pop("none", None)
    assert len(groups) == {"scope": 6, "file": 2, "group": 3}[key]
    assert all(len(workers) == 1 for workers in groups.values()), groups
    assert len({entry["worker"] for entry in records}) == (2 if key == "file" else 3)
    if dist == "loadgroup":
        result.stdout.fnmatch_lines(["*test_one.py::TestB::test_it?0?@shared*"])


# -- stopping, and going on from the last run --------------------------------------------------

_FAILING = """
import pytest
from recorder import record

@pytest.mark.parametrize("i", range(40))
def test_it(i):
    record("test", i=i)
    assert i % 4 != 1
"""


@pytest.mark.parametrize(("option", "limit"), [("-x", 1), ("--maxfail=3", 3)])
def test_a_run_stops_after_so_many_failures(
    pytester: pytest.Pytester, run: Runner, option: str, limit: int
) -> None:
    """``-x`` and ``--maxfail``; as under xdist, each worker may get as far before it is told."""
    make_recorder(pytester)
    pytester.makepyfile(_FAILING)
    result = run(option, workers=2)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*Interrupted: stopping after {limit} failures*"])
    outcomes = result.parseoutcomes()
    assert limit <= outcomes["failed"] <= 2 * limit
    assert len(read_records(pytester.path)) < 40


def test_last_failed_runs_only_what_failed(pytester: pytest.Pytester, run: Runner) -> None:
    """``--lf`` and ``--ff`` after a run with workers."""
    make_recorder(pytester)
    pytester.makepyfile(test_it=_FAILING)
    pytester.makepyfile(test_other="def test_it(): pass")
    run(workers=2).assert_outcomes(passed=31, failed=10)
    first = read_records(pytester.path)
    assert len(first) == 40

    result = run("--lf", workers=2)
    result.assert_outcomes(failed=10)
    again = read_records(pytester.path)[40:]
    failed = set(range(1, 40, 4))
    assert {entry["i"] for entry in again} == failed

    result = run("--ff", workers=1)
    result.assert_outcomes(passed=31, failed=10)
    third = read_records(pytester.path)[50:]
    assert {entry["i"] for entry in third[:10]} == failed


def test_stepwise_goes_on_from_the_test_that_failed(pytester: pytest.Pytester, run: Runner) -> None:
    """``--sw`` stops at a failure, and the next run begins there."""
    make_recorder(pytester)
    pytester.makepyfile(
        """
        import pathlib, pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(10))
        def test_it(i):
            record("test", i=i)
            assert i != 4 or pathlib.Path(__file__).with_name("mended").exists()
        """
    )
    result = run("--sw", workers=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*Test failed, continuing from this test next run.*"])
    # A worker has been handed its next test before it learns that there is none.
    assert [entry["i"] for entry in read_records(pytester.path)] == [0, 1, 2, 3, 4]
    (pytester.path / "mended").touch()
    result = run("--sw", workers=1)
    assert result.ret == 0
    result.assert_outcomes(passed=6)
    assert [entry["i"] for entry in read_records(pytester.path)][5:] == [4, 5, 6, 7, 8, 9]


def test_exit_in_a_test_ends_the_run_with_its_reason(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """``pytest.exit`` works as in a plain run: the reason is printed, the return code is kept."""
    make_recorder(pytester)
    pytester.makepyfile(
        """
        import pytest, time
        from recorder import record

        @pytest.mark.parametrize("i", range(40))
        def test_it(i):
            record("test", i=i)
            time.sleep(0.01 if i < 2 else 0.3)  # 40 of them take longer than the end does
            if i == 1:
                pytest.exit("no database", returncode=42)
        """
    )
    result = run(workers=2)
    assert result.ret == 42
    result.stdout.fnmatch_lines(["!* _pytest.outcomes.Exit: no database !*"])
    assert len(read_records(pytester.path)) < 40


def test_an_interrupt_in_a_test_interrupts_the_run(pytester: pytest.Pytester, run: Runner) -> None:
    """A test that raises ``KeyboardInterrupt``: the other worker stops, too, with its fixtures."""
    make_recorder(pytester)
    pytester.makepyfile(
        """
        import pytest, time
        from recorder import record

        @pytest.fixture(scope="session", autouse=True)
        def session_fixture(worker_id):
            record("up", worker=worker_id)
            yield
            record("down", worker=worker_id)

        @pytest.mark.parametrize("i", range(40))
        def test_it(i):
            record("test", i=i)
            time.sleep(0.01 if i < 20 else 1)  # so that the interrupt comes first on any machine
            if i == 1:
                raise KeyboardInterrupt
        """
    )
    result = run(workers=2)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["!*Interrupted: * received keyboard-interrupt !*"])
    assert len(read_records(pytester.path, "test")) < 40
    for what in ("up", "down"):
        workers = sorted(entry["worker"] for entry in read_records(pytester.path, what))
        assert workers == ["gw0", "gw1"], what


def test_a_worker_may_stop_the_run(pytester: pytest.Pytester, run: Runner) -> None:
    """``session.shouldstop``, set in a worker, ends the run with its text."""
    make_recorder(pytester)
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(40))
        def test_it(i, request):
            record("test", i=i)
            if i == 1:
                request.session.shouldstop = "the disk is full"
        """
    )
    result = run(workers=2)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["!*Interrupted: the disk is full !*"])
    assert len(read_records(pytester.path)) < 40


@pytest.mark.parametrize("where", ["conftest.py", "sub/conftest.py", "sub/test_sub.py"])
def test_exit_while_collecting_ends_the_run_with_its_reason(
    pytester: pytest.Pytester, run: Runner, where: str
) -> None:
    """Whether it is the controller or the collector that imports the file."""
    pytester.mkdir("sub").joinpath("test_sub.py").write_text("def test_it(): pass\n")
    pytester.path.joinpath(where).write_text(
        "import pytest\npytest.exit('not today', returncode=7)\n"
    )
    plain = run(runner="plain")
    result = run(workers=2)
    # Since pytest 9.2 it counts as a collection error; for those, xdist says that tests failed
    # where plain pytest says that it was interrupted.
    counts_as_error = plain.ret == pytest.ExitCode.INTERRUPTED
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if counts_as_error else plain.ret)
    assert result.ret != 0
    reasons = [line for line in result.outlines + result.errlines if "Exit: not today" in line]
    assert sum(not line.startswith("ERROR ") for line in reasons) == 1


@pytest.mark.parametrize(
    "hook", ["pytest_collection(session)", "pytest_collection_modifyitems(session)"]
)
def test_exit_in_a_collection_hook_ends_the_run_with_its_reason(
    pytester: pytest.Pytester, run: Runner, hook: str
) -> None:
    """In the controller, too, where a hook is called in both."""
    pytester.makeconftest(f"import pytest\ndef {hook}: pytest.exit('not today', returncode=7)")
    pytester.makepyfile("def test_it(): pass")
    result = run(workers=2)
    assert result.ret == 7
    result.stdout.fnmatch_lines(["!* _pytest.outcomes.Exit: not today !*"])


def test_junit_xml_is_written_by_the_controller(pytester: pytest.Pytester, run: Runner) -> None:
    """``--junitxml``: one file, every test once."""
    pytester.makepyfile(test_it=_FAILING)
    make_recorder(pytester)
    run("--junitxml=junit.xml", workers=2).assert_outcomes(passed=30, failed=10)
    suite = ET.parse(pytester.path / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("40", "10", "0")
    names = [case.get("name") for case in suite.iter("testcase")]
    assert sorted(map(str, names)) == sorted(f"test_it[{i}]" for i in range(40))
    assert all(float(case.get("time", "-1")) >= 0 for case in suite.iter("testcase"))


@pytest.mark.parametrize(
    "missing",
    [
        ["terminal"],
        ["cacheprovider", "logging", "tmpdir", "faulthandler", "warnings", "junitxml", "doctest"],
    ],
    ids=["terminal", "others"],
)
def test_a_run_without_parts_of_pytest(
    pytester: pytest.Pytester, run: Runner, missing: list[str]
) -> None:
    """``-p no:terminal`` is quiet; without the others the tests run as well."""
    _suite(pytester)
    result = run(*(f"-pno:{name}" for name in missing), workers=2)
    assert result.ret == 0
    assert bool(result.outlines) == (missing != ["terminal"])
    assert not result.errlines
    assert len(read_records(pytester.path)) == 8


# -- fixtures ----------------------------------------------------------------------------------


def test_every_fixture_scope_is_set_up_and_torn_down_as_often_as_under_xdist(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Once a worker for a session; once for a file that one worker runs; innermost ends first."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        import pytest
        from recorder import record

        def make(scope):
            @pytest.fixture(scope=scope, autouse=True, name=scope + "_fixture")
            def fixture(request, worker_id):
                name = "" if scope == "session" else request.node.nodeid
                record("up", scope=scope, name=name, worker=worker_id)
                yield
                record("down", scope=scope, name=name, worker=worker_id)
            return fixture

        session, package, module, cls, function = map(
            make, ["session", "package", "module", "class", "function"]
        )
        """
    )
    for package in ("one", "two"):
        pytester.mkpydir(package).joinpath(f"test_{package}.py").write_text(
            "class TestA:\n"
            "    def test_1(self): pass\n"
            "    def test_2(self): pass\n"
            "class TestB:\n"
            "    def test_1(self): pass\n"
            "    def test_2(self): pass\n"
        )
    result = run("--dist=loadfile", workers=2)
    result.assert_outcomes(passed=8)
    records = read_records(pytester.path)
    expected = {"session": 2, "package": 2, "module": 2, "class": 4, "function": 8}
    for what in ("up", "down"):
        assert Counter(e["scope"] for e in records if e["what"] == what) == expected
    for worker in ("gw0", "gw1"):
        open_fixtures = []
        for entry in records:
            if entry["worker"] != worker:
                continue
            key = (entry["scope"], entry["name"])
            if entry["what"] == "up":
                open_fixtures.append(key)
            else:
                assert open_fixtures.pop() == key
        assert not open_fixtures


def test_a_session_fixture_is_shared_as_xdists_documentation_says(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """The recipe with a file lock: all workers see one temporary directory above their own."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        import json
        import pytest
        from filelock import FileLock
        from recorder import record

        def produce_expensive_data():
            record("produced")
            return {"answer": 42}

        @pytest.fixture(scope="session")
        def session_data(tmp_path_factory, worker_id):
            if worker_id == "master":
                # not executing in with multiple workers, just produce the data and let
                # pytest's fixture caching do its job
                return produce_expensive_data()

            # get the temp directory shared by all workers
            root_tmp_dir = tmp_path_factory.getbasetemp().parent

            fn = root_tmp_dir / "data.json"
            with FileLock(str(fn) + ".lock"):
                if fn.is_file():
                    data = json.loads(fn.read_text())
                else:
                    data = produce_expensive_data()
                    fn.write_text(json.dumps(data))
            return data
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(9))
        def test_it(i, session_data, worker_id):
            assert session_data == {"answer": 42}
            record("test", worker=worker_id)
        """
    )
    run(workers=3).assert_outcomes(passed=9)
    assert len(read_records(pytester.path, "produced")) == 1
    assert len({entry["worker"] for entry in read_records(pytester.path, "test")}) == 3


@pytest.mark.parametrize("basetemp", [True, False])
def test_temporary_directories_are_a_workers_own(
    pytester: pytest.Pytester, run: Runner, basetemp: bool
) -> None:
    """``tmp_path`` is below ``popen-gwN``, which is in the controller's base directory."""
    make_recorder(pytester)
    pytester.makeconftest(
        """
        from recorder import record

        def pytest_sessionfinish(session):
            if not hasattr(session.config, "workerinput"):
                record("base", path=str(session.config._tmp_path_factory.getbasetemp()))
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from recorder import record

        @pytest.mark.parametrize("i", range(6))
        def test_it(tmp_path, tmp_path_factory, worker_id, i):
            base = tmp_path_factory.getbasetemp()
            assert base in tmp_path.parents
            assert not list(tmp_path.iterdir())
            (tmp_path / "mine").touch()
            record("test", base=str(base), path=str(tmp_path), worker=worker_id)
        """
    )
    args = [f"--basetemp={pytester.path / 'base'}"] if basetemp else []
    run("--forkd-warm=collection", *args, workers=3).assert_outcomes(passed=6)
    (base,) = (entry["path"] for entry in read_records(pytester.path, "base"))
    if basetemp:
        assert base == str(pytester.path / "base")
    tests = read_records(pytester.path, "test")
    assert len({entry["path"] for entry in tests}) == 6
    for entry in tests:
        assert entry["base"] == os.path.join(base, f"popen-{entry['worker']}")


@pytest.mark.parametrize("runner", ["xdist", "forkd-collection", "forkd-imports"])
def test_a_worker_s_terminal_reporter_has_the_reports_by_status(
    pytester: pytest.Pytester, run: Runner, runner: str
) -> None:
    """It writes nothing, but plugins look there; and pytest fails tests by asking for statuses."""
    pytester.makeconftest(
        """
        import json, os
        import pytest

        def pytest_report_teststatus(report):
            if report.when == "call" and report.nodeid.endswith("special"):
                return "special", "Z", "SPECIAL"

        @pytest.fixture(autouse=True, scope="session")
        def statistics(request):
            reporter = request.config.pluginmanager.getplugin("terminalreporter")
            yield
            found = {
                status: sorted(report.nodeid.partition("::")[2] + " " + report.when
                               for report in reports)
                for status, reports in reporter.stats.items()
            }
            with open(os.environ["PYTEST_XDIST_WORKER"] + ".json", "w") as file:
                json.dump(found, file)
        """
    )
    pytester.makepyfile(
        """
        import pytest
        def test_passed(): pass
        def test_special(): pass
        def test_failed(): assert 0
        def test_skipped(): pytest.skip()
        @pytest.mark.xfail
        def test_xfailed(): assert 0
        @pytest.mark.xfail
        def test_xpassed(): pass
        @pytest.fixture
        def broken(): assert 0
        def test_error(broken): pass
        """
    )
    name, _, warm = runner.partition("-")
    args = [f"--forkd-warm={warm}"] if warm else []
    run(*args, workers=1, runner=name)
    found = json.loads((pytester.path / "gw0.json").read_text())
    last = found[""].pop()  # the last test's teardown has not ended: the fixture is part of it
    assert last.endswith(" teardown")
    del found[""]
    assert found == {
        "passed": ["test_passed call"],
        "special": ["test_special call"],
        "failed": ["test_failed call"],
        "skipped": ["test_skipped call"],
        "xfailed": ["test_xfailed call"],
        "xpassed": ["test_xpassed call"],
        "error": ["test_error setup"],
    }


# -- what a worker sends -----------------------------------------------------------------------


def test_an_event_that_makes_no_sense_ends_its_worker_and_nothing_else(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A worker is not trusted."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("event", [
            ["passed"],
            ["passed", "call", 0.1, 0.1],
            ["passed", "call", 0.1, 0.1, 0.1, "keywords"],
            ["passed", "call", 0.1, 0.1, 0.1, [1]],
            ["passed", "call", 0.1, 0.1, "1", []],
            ["passed", [], 0.1, 0.1, 0.1, []],
            ["passed", "somewhen", 0.1, 0.1, 0.1, []],
            ["complete", 0, "x"],
            ["complete"],
            ["start", 10**6, ["a", 0, "b"]],
            ["start", 0],
            ["logfinish", 1],
            ["nothing"],
        ], ids=lambda event: event[0])
        def test_bad(event, request):
            plugin, = (p for p in request.config.pluginmanager.get_plugins()
                       if type(p).__name__ == "Interactor")
            plugin.outbox.append(event)
            plugin.outbox.flush()
            __import__("time").sleep(60)
        def test_good(): pass
        """
    )
    result = run("--max-worker-restart=99")
    result.assert_outcomes(failed=13, passed=1)
    told = result.stdout.str()
    assert told.count("it was ended because it sent a bad message (") >= 13
    assert "INTERNALERROR" not in told
    assert "passed: Expected `array | null`, got `str`" in told
    assert "passed: Expected `str`, got `int`" in told
    assert "(nothing: unknown event)" in told
