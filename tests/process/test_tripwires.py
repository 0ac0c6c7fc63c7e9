"""What makes a suite unfit to share one collection, and what does not.

At warm level ``auto`` the first finding sends the run to level ``imports``, in one line that names
the cause; ``--forkd-warm=collection`` keeps the level and turns each finding into a warning.
"""

from __future__ import annotations

import importlib.util
import re
import textwrap

import pytest

from tests.conftest import Runner

FELL_BACK = "forkd: each worker collects for itself: "
WARNED = "PytestForkdWarning: workers share one collection, but "

#: Tests that note in a file who imported their module: the worker itself, or the collector.
PROBE = """
    import os
    import posix  # os.getpid(), called here, would be a finding
    import pytest

    IMPORTED_BY = posix.getpid()

    @pytest.mark.parametrize("number", range(4))
    def test_probe(number, worker_id):
        with open("levels", "a") as file:
            file.write("imports " if os.getpid() == IMPORTED_BY else "collection ")
        assert os.environ["PYTEST_XDIST_WORKER"] == worker_id
"""


def skip_without(module: str) -> None:
    """Skip a test whose suite needs ``module``, which is not imported here.

    pytester unloads what a test has imported, and NumPy cannot be loaded twice.
    """
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"could not import {module!r}")


def level(pytester: pytest.Pytester) -> str:
    """The warm level at which the tests of the last run were run; asking forgets it."""
    path = pytester.path / "levels"
    [found] = set(path.read_text().split())
    path.unlink()
    return found


def causes(result: pytest.RunResult) -> list[str]:
    """The lines that say why a run falls back to level ``imports``."""
    return [line[len(FELL_BACK) :] for line in result.outlines if line.startswith(FELL_BACK)]


def warned(result: pytest.RunResult) -> list[str]:
    """The findings in the warnings summary."""
    return [line.partition(WARNED)[2] for line in result.outlines if WARNED in line]


def line_of(source: str, marker: str) -> int:
    """The number of the line of ``source`` that holds ``marker``."""
    lines = textwrap.dedent(source).strip().splitlines()
    [number] = [number for number, line in enumerate(lines, 1) if marker in line]
    return number


# -- identity ----------------------------------------------------------------------------------

#: Ways to learn the worker's name from ``config`` or the environment, as conftests do.
READS = [
    'config.workerinput["workerid"]',
    'config.workerinput.get("workerid")',
    'config.workerinput.get("workerid", "master")',
    'dict(config.workerinput.items())["workerid"]',
    '[v for v in config.workerinput.values() if str(v).startswith("gw")][0]',
    'config.workerinput.copy()["workerid"]',
    'dict(config.workerinput)["workerid"]',
    '{**config.workerinput}["workerid"]',
    'copy.copy(config.workerinput)["workerid"]',
    'copy.deepcopy(config.workerinput)["workerid"]',
    '(config.workerinput | {"more": 1})["workerid"]',
    '({"more": 1} | config.workerinput)["workerid"]',
    'json.loads(json.dumps(config.workerinput))["workerid"]',
    '"{workerid}".format(**config.workerinput)',
    '"{workerid}".format_map(config.workerinput)',
    'operator.itemgetter("workerid")(config.workerinput)',
    "xdist.get_xdist_worker_id(types.SimpleNamespace(config=config))",
    "xdist.plugin.get_xdist_worker_id(types.SimpleNamespace(config=config))",
    'os.environ["PYTEST_XDIST_WORKER"]',
    'os.environ.get("PYTEST_XDIST_WORKER")',
    'os.environ.setdefault("PYTEST_XDIST_WORKER", "gw0")',
    'os.getenv("PYTEST_XDIST_WORKER")',
    'os.getenv("PYTEST_XDIST_WORKER", "master")',
    'os.path.expandvars("$PYTEST_XDIST_WORKER")',
]


def test_every_way_to_read_the_worker_s_name_is_noticed(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Each of them is warned about with its own line, when level ``collection`` is forced."""
    head = """\
import copy, json, operator, os, types
import xdist, xdist.plugin

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        return
    names = []
"""
    body = "".join(f"    names.append({read})\n" for read in READS)
    tail = '    assert set(names) == {config.workerinput["workerid"]}, names\n'
    pytester.makeconftest(head + body + tail)
    pytester.makepyfile(PROBE)
    result = run("--forkd-warm=collection")
    result.assert_outcomes(passed=4, warnings=len(READS) + 1)
    first = head.count("\n") + 1
    lines = {int(found[1]) for text in warned(result) if (found := re.search(r":(\d+)\)", text))}
    missed = [read for number, read in enumerate(READS, first) if number not in lines]
    assert missed == []


def test_reading_the_worker_s_name_from_the_environment_is_noticed_after_a_copy_of_it(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A copy of the whole environment is no reading; what is read after it is."""
    source = """
        import os
        for name, value in os.environ.items():
            pass
        environ = dict(os.environ)
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
        worker = os.environ.get("PYTEST_XDIST_WORKER")
    """
    pytester.makeconftest(source)
    pytester.makepyfile(PROBE)
    result = run()
    result.assert_outcomes(passed=4)
    assert causes(result) == [
        "PYTEST_XDIST_WORKER is read before the workers exist "
        f"(conftest.py:{line_of(source, 'worker = ')})"
    ]


def test_reading_the_worker_s_name_is_noticed_after_looking_for_it_among_all_variables(
    pytester: pytest.Pytester, run: Runner
) -> None:
    source = """
        import os
        if any(name == "PYTEST_XDIST_WORKER" for name in os.environ):
            worker = os.environ["PYTEST_XDIST_WORKER"]
    """
    pytester.makeconftest(source)
    pytester.makepyfile(PROBE)
    result = run()
    result.assert_outcomes(passed=4)
    assert causes(result) == [
        "PYTEST_XDIST_WORKER is read before the workers exist "
        f"(conftest.py:{line_of(source, 'worker = ')})"
    ]


IDENTITY = {
    "pytest_configure": (
        """
        def pytest_configure(config):
            global worker
            worker = config.workerinput["workerid"] if hasattr(config, "workerinput") else None
        """,
        'config.workerinput["workerid"] is read before the workers exist',
    ),
    "conftest import": (
        """
        import os
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        """,
        "PYTEST_XDIST_WORKER is read before the workers exist",
    ),
    "collection": (
        """
        import xdist
        def pytest_collection_modifyitems(session):
            global worker
            worker = xdist.get_xdist_worker_id(session)
        """,
        'config.workerinput["workerid"] is read before the workers exist',
    ),
    "differing node key": (
        """
        def pytest_configure_node(node):
            node.workerinput["database"] = "db_" + node.gateway.id
        def pytest_configure(config):
            global worker
            worker = getattr(config, "workerinput", {}).get("database", "db_")[3:]
        """,
        'config.workerinput["database"] is read before the workers exist',
    ),
}


@pytest.mark.parametrize("name", IDENTITY)
def test_a_suite_that_reads_its_identity_early_gets_it_right(
    pytester: pytest.Pytester, run: Runner, name: str
) -> None:
    """Its workers collect for themselves, so that what they read is their own."""
    conftest, what = IDENTITY[name]
    pytester.makeconftest(conftest)
    pytester.makepyfile(
        PROBE
        + """
    def test_worker(worker_id):
        from conftest import worker
        assert worker == worker_id
    """
    )
    result = run("--dist=each")
    result.assert_outcomes(passed=10)
    assert causes(result) == [f"{what} (conftest.py:{line_of(conftest, 'worker = ')})"]
    assert level(pytester) == "imports"


def test_a_test_module_that_reads_the_worker_s_name_at_import_gets_it_right(
    pytester: pytest.Pytester, run: Runner
) -> None:
    source = (
        PROBE
        + """
    WORKER = os.environ["PYTEST_XDIST_WORKER"]
    def test_worker(worker_id):
        assert WORKER == worker_id
    """
    )
    pytester.makepyfile(test_it=source)
    result = run("--dist=each")
    result.assert_outcomes(passed=10)
    assert causes(result) == [
        "PYTEST_XDIST_WORKER is read before the workers exist "
        f"(test_it.py:{line_of(source, 'WORKER = ')})"
    ]
    assert level(pytester) == "imports"


def test_asking_whether_one_is_a_worker_and_reading_what_all_workers_share_is_no_finding(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makeconftest(
        """
        import os, subprocess, sys
        import xdist

        def pytest_configure_node(node):
            node.workerinput["shared"] = {"port": 4711, "names": ["a", "b"]}

        if "PYTEST_XDIST_WORKER" in os.environ:
            assert "PYTEST_XDIST_WORKER" in os.environ.keys()
            os.environ.copy(), dict(os.environ), {**os.environ}, list(os.environ.items())
            list(os.environ), list(os.environ.values()), os.environ | {}, len(os.environ)
            print(os.environ["PYTEST_XDIST_WORKER_COUNT"], os.environ["PYTEST_XDIST_TESTRUNUID"])
            subprocess.run([sys.executable, "-c", ""], env={**os.environ, "A": "1"}, check=True)
            subprocess.run([sys.executable, "-c", ""], check=True)

        def pytest_configure(config):
            if hasattr(config, "workerinput"):
                assert "workerid" in config.workerinput
                assert config.workerinput["testrunuid"] == os.environ["PYTEST_XDIST_TESTRUNUID"]
                assert config.workerinput["workercount"] == 2
                assert config.workerinput["shared"]["port"] == 4711
                assert "workerid" in list(config.workerinput), len(config.workerinput)
                assert "workerid" in config.workerinput.keys()

        def pytest_collection_modifyitems(session):
            assert xdist.is_xdist_worker(session) and not xdist.is_xdist_controller(session)
        """
    )
    pytester.makepyfile(PROBE)
    result = run()
    result.assert_outcomes(passed=4)
    assert causes(result) == []
    assert level(pytester) == "collection"


def test_key_of_pytest_configure_node_that_differs_between_nodes_may_stay_unread(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """It is read in the tests, where each worker has its own."""
    pytester.makeconftest(
        """
        import pytest
        def pytest_configure_node(node):
            node.workerinput["database"] = "db_" + node.gateway.id
        @pytest.fixture
        def database(request):
            return request.config.workerinput["database"]
        """
    )
    pytester.makepyfile(
        PROBE
        + """
    def test_database(database, worker_id):
        assert database == "db_" + worker_id
    """
    )
    result = run("--dist=each")
    result.assert_outcomes(passed=10)
    assert causes(result) == []
    assert level(pytester) == "collection"


# -- resources ---------------------------------------------------------------------------------

#: What a test module may hold open, a test that breaks if workers share it, and the cause named.
RESOURCES = {
    "thread": (
        """
    import threading
    def beat():
        threading.Event().wait()
    THREAD = threading.Thread(target=beat, name="heartbeat", daemon=True)
    THREAD.start()
    def test_resource():
        assert THREAD.is_alive()
        """,
        r"thread 'heartbeat' runs, and would be in no worker \(test_it\.py:{beat}\)",
    ),
    "thread subclass": (
        """
    import threading
    class Beat(threading.Thread):
        def run(self):
            threading.Event().wait()
    THREAD = Beat(name="heartbeat", daemon=True)
    THREAD.start()
    def test_resource():
        assert THREAD.is_alive()
        """,
        r"thread 'heartbeat' runs, and would be in no worker \(test_it\.py:{run}\)",
    ),
    "listening socket": (
        """
    import socket
    SERVER = socket.create_server(("127.0.0.1", 0))
    def test_resource():
        for number in range(20):
            with socket.create_connection(SERVER.getsockname()) as client:
                peer, address = SERVER.accept()
                peer.close()
                assert address == client.getsockname()
        """,
        r"a socket at 127\.0\.0\.1:\d+ is open, and would be shared by all workers",
    ),
    "socketpair": (
        """
    import socket
    ONE, OTHER = socket.socketpair()
    def test_resource():
        for number in range(200):
            me = b"%10d" % os.getpid()
            ONE.send(me)
            assert OTHER.recv(10) == me
        """,
        r"a socket \(descriptor \d+\) is open, and would be shared by all workers",
    ),
    "pipe": (
        """
    READ, WRITE = os.pipe()
    def test_resource():
        for number in range(200):
            me = b"%10d" % os.getpid()
            os.write(WRITE, me)
            assert os.read(READ, 10) == me
        """,
        r"a pipe \(descriptor \d+\) is open, and would be shared by all workers",
    ),
    "sqlite connection": (
        """
    import sqlite3
    DATABASE = sqlite3.connect("data.db")
    def test_resource():
        assert DATABASE.execute("select 1").fetchall() == [(1,)]
        """,
        r"file \S*/data\.db is open, and all workers would share its position.*",
    ),
    "file": (
        """
    with open("data.txt", "w") as file:
        file.write("line\\n" * 5)
    FILE = open("data.txt")
    def test_resource():
        assert FILE.tell() == 0 and FILE.read() == "line\\n" * 5
        """,
        r"file \S*/data\.txt is open, and all workers would share its position.*",
    ),
    "temporary directory": (
        """
    import tempfile
    FOLDER = tempfile.TemporaryDirectory()  # here
    def test_resource():
        with open(os.path.join(FOLDER.name, "file"), "x"):
            pass
        """,
        r"tempfile\.mkdtemp\(\) is called, .* \(test_it\.py:{here}\)",
    ),
    "named temporary file": (
        """
    import tempfile
    with tempfile.NamedTemporaryFile("w", delete=False, dir=".") as file:  # here
        print("line", file=file)
    def test_resource():
        with open(file.name, "r+") as again:
            assert again.read() == "line\\n"
            again.truncate(0)
        """,
        r".* is called, and workers would share what it makes \(test_it\.py:{here}\)",
    ),
    "event loop": (
        """
    import asyncio
    LOOP = asyncio.new_event_loop()
    def test_resource():
        assert LOOP.run_until_complete(asyncio.sleep(0.01, "done")) == "done"
        """,
        r"(an event loop|a socket \(descriptor \d+\)) is open, and would be shared by all workers",
    ),
}


PIDS = {
    "os": ("import os", "os.getpid()"),
    "the name": ("from os import getpid", "getpid()"),
    "the parent's": ("import os", "os.getppid()"),
    "psutil": ("import os, psutil", "psutil.Process().pid"),
}


@pytest.mark.parametrize("name", PIDS)
def test_a_process_id_that_a_module_keeps_is_that_of_the_worker(
    pytester: pytest.Pytester, run: Runner, name: str
) -> None:
    imported, asked = PIDS[name]
    if "psutil" in imported:
        skip_without("psutil")
    pytester.makepyfile(
        f"""
        {imported}
        PID = {asked}
        def test_it():
            assert PID == {asked}
        """
    )
    result = run()
    result.assert_outcomes(passed=1)
    assert [re.search(r"os\.getp+id\(\) is called.*:2\)$", cause) for cause in causes(result)] != []


def test_a_process_id_that_others_ask_for_is_no_finding(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Each log record notes it; and a hook that asks means the process that it is called in."""
    pytester.makeconftest(
        """
        import os
        def pytest_configure(config):
            config.pid = os.getpid()
        """
    )
    pytester.makepyfile(
        """
        import logging, os
        logging.getLogger().warning("imported")
        def test_it(): assert os.getpid() > 0
        """
    )
    result = run()
    result.assert_outcomes(passed=1)
    assert causes(result) == []


@pytest.mark.parametrize("name", RESOURCES)
def test_a_suite_that_holds_a_resource_gets_one_in_each_worker(
    pytester: pytest.Pytester, run: Runner, name: str
) -> None:
    """And says so once; level ``collection`` can be forced, and then warns."""
    source, cause = RESOURCES[name]
    for name, marker in (("beat", "def beat("), ("run", "def run("), ("here", "# here")):
        if f"{{{name}}}" in cause:
            cause = cause.replace(f"{{{name}}}", str(line_of(PROBE + source, marker)))
    pytester.makepyfile(test_it=PROBE + source)
    result = run("--dist=each")
    result.assert_outcomes(passed=10)
    [found] = causes(result)
    assert re.fullmatch(cause, found)
    assert level(pytester) == "imports"

    result = run("--forkd-warm=collection", "-k", "probe")
    result.assert_outcomes(passed=4, warnings=len(warned(result)))
    assert causes(result) == []
    assert any(re.fullmatch(cause, found) for found in warned(result))
    assert level(pytester) == "collection"


def test_a_temporary_directory_made_during_collection_is_one_in_each_worker(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makeconftest(
        """
        def pytest_collection_modifyitems(config):
            config.shared = config._tmp_path_factory.mktemp("shared", numbered=False)
        """
    )
    pytester.makepyfile(
        PROBE
        + """
    def test_resource(pytestconfig, tmp_path_factory):
        assert pytestconfig.shared.parent == tmp_path_factory.getbasetemp()
    """
    )
    result = run("--dist=each")
    result.assert_outcomes(passed=10)
    assert causes(result) == ["a temporary directory was made during collection"]
    assert level(pytester) == "imports"


def test_resources_that_survive_a_fork_or_are_closed_are_no_finding(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(
        PROBE
        + """
    import asyncio, concurrent.futures, logging, multiprocessing, pathlib, queue, socket, sqlite3
    import subprocess, sys, tempfile, threading, zipfile

    LOGGER = logging.getLogger("suite")
    LOGGER.addHandler(logging.FileHandler("suite.log"))
    LOGGER.setLevel("INFO")
    LOGGER.info("collected")

    THREAD = threading.Thread(target=int)
    THREAD.start()
    THREAD.join()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(int, "123"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        pass
    asyncio.run(asyncio.sleep(0))
    MEMORY = sqlite3.connect(":memory:")
    NULL = open(os.devnull, "w")
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as file:
        pass
    LOCK, QUEUE = threading.Lock(), queue.Queue()
    subprocess.run([sys.executable, "-c", ""], check=True, capture_output=True)
    CHILD = multiprocessing.get_context("fork").Process(target=int)
    CHILD.start()
    CHILD.join()
    CHILD.close()
    with open("data.txt", "w") as file:
        file.write("data")

    def test_resources():
        LOGGER.info("tested by %s", os.environ["PYTEST_XDIST_WORKER"])
        assert MEMORY.execute("select 1").fetchall() == [(1,)]
    """
    )
    result = run("--dist=each")
    result.assert_outcomes(passed=10)
    assert causes(result) == []
    assert level(pytester) == "collection"
    log = (pytester.path / "suite.log").read_text().splitlines()
    assert log.count("collected") == 1
    assert sorted(log) == ["collected", "tested by gw0", "tested by gw1"]


def test_native_threads_of_openmp_are_noticed_and_nothing_hangs(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A worker that waited for a thread pool that it did not inherit would wait for ever."""
    skip_without("sklearn")
    pytester.makepyfile(
        test_it=PROBE
        + """
    import numpy
    from sklearn.cluster import KMeans

    def fit():
        data = numpy.random.RandomState(1).rand(5000, 8)
        return KMeans(8, n_init=1, random_state=1).fit(data).inertia_

    INERTIA = fit()

    def test_fit():
        assert abs(fit() - INERTIA) < 1e-6
    """
    )
    result = run("--dist=each", "-p", "no:randomly")
    result.assert_outcomes(passed=10)
    [cause] = causes(result)
    assert re.fullmatch(r"\d+ native threads? of a library runs?\b.*", cause)
    assert level(pytester) == "imports"


def test_the_thread_pool_of_numpy_s_blas_is_no_finding(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """OpenBLAS ends its threads before a fork and starts them again when they are needed."""
    skip_without("numpy")
    pytester.makepyfile(
        PROBE
        + """
    import numpy
    MATRIX = numpy.ones((400, 400))
    PRODUCT = MATRIX @ MATRIX
    def test_product():
        assert (MATRIX @ MATRIX == PRODUCT).all()
    """
    )
    result = run("--dist=each")
    result.assert_outcomes(passed=10)
    assert causes(result) == []
    assert level(pytester) == "collection"


# -- hooks -------------------------------------------------------------------------------------

HOOKS = ["pytest_sessionstart", "pytest_sessionfinish", "pytest_unconfigure"]

#: A hook that notes which process it ran in.
NOTING = """
    import os, pytest
    @pytest.hookimpl(specname="{hook}")
    def {name}():
        with open("hooks", "a") as file:
            print(os.environ.get("PYTEST_XDIST_WORKER"), os.getpid(), file=file)
"""


def ran_in(pytester: pytest.Pytester) -> list[str]:
    """The workers in which a hook of :data:`NOTING` ran (by the process, none twice)."""
    lines = (pytester.path / "hooks").read_text().splitlines()
    assert len(lines) == len(set(lines)), lines
    return sorted(worker for line in lines if (worker := line.split()[0]) != "None")


@pytest.mark.parametrize("hook", HOOKS)
def test_session_hook_of_a_conftest_runs_once_in_each_worker(
    pytester: pytest.Pytester, run: Runner, hook: str
) -> None:
    """One that ends a session does so in workers that share their collection, too."""
    source = NOTING.format(hook=hook, name=hook)
    pytester.makeconftest(source)
    pytester.makepyfile(PROBE)
    result = run("--dist=each")
    result.assert_outcomes(passed=8)
    said = f"{hook} is implemented and expects to run in each worker"
    if hook == "pytest_sessionstart":
        assert causes(result) == [f"{said} (conftest.py:{line_of(source, '@pytest')})"]
        assert {"gw0", "gw1"} <= set(ran_in(pytester))
        assert level(pytester) == "imports"
    else:
        assert causes(result) == []
        assert ran_in(pytester) == ["gw0", "gw1"]
        assert level(pytester) == "collection"


HOOK_PLACES = {
    "plugin of the project": ("myplugin.py", NOTING.format(hook=HOOKS[0], name=HOOKS[0])),
    "function of another name": ("conftest.py", NOTING.format(hook=HOOKS[0], name="pytest_note")),
    "conftest of a folder": ("sub/conftest.py", NOTING.format(hook=HOOKS[0], name=HOOKS[0])),
    "registered object": (
        "conftest.py",
        """
    class Plugin:
        def pytest_sessionstart(self):
            pass
    def pytest_configure(config):
        config.pluginmanager.register(Plugin())
        """,
    ),
    "wrapper": (
        "conftest.py",
        """
    import pytest
    @pytest.hookimpl(wrapper=True)
    def pytest_sessionstart():
        return (yield)
        """,
    ),
}


@pytest.mark.parametrize("name", HOOK_PLACES)
def test_session_hook_is_noticed_wherever_the_project_keeps_it(
    pytester: pytest.Pytester, run: Runner, name: str
) -> None:
    path, source = HOOK_PLACES[name]
    (pytester.path / "sub").mkdir()
    (pytester.path / path).write_text(textwrap.dedent(source))
    pytester.makepyfile(**{"sub/test_it": PROBE})
    result = run(plugins=("myplugin",) if path == "myplugin.py" else ())
    result.assert_outcomes(passed=4)
    [cause] = causes(result)
    assert re.fullmatch(
        rf"pytest_sessionstart is implemented and expects to run in each worker \({path}:\d+\)",
        cause,
    )
    assert level(pytester) == "imports"


def test_hooks_of_installed_plugins_are_no_finding(pytester: pytest.Pytester, run: Runner) -> None:
    skip_without("pytest_timeout")
    skip_without("pytest_cov")
    pytester.makepyfile(PROBE)
    result = run("--timeout=60", "--cov=.", plugins=("timeout", "pytest_cov"))
    result.assert_outcomes(passed=4)
    assert causes(result) == []
    assert level(pytester) == "collection"


# -- what is said and remembered ---------------------------------------------------------------


@pytest.mark.parametrize("recorded", [True, False])
def test_what_was_installed_into_a_directory_of_its_own_is_no_project_code(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """``pip install --target``, named by PYTHONPATH: as with ``site-packages``, libraries may."""
    target = pytester.mkdir("target")
    (target / "library.py").write_text("import os\nPID = os.getpid()\n")
    if recorded:
        (target / "library-1.0.dist-info").mkdir()
        (target / "library-1.0.dist-info/RECORD").write_text("library.py,,\n")
    monkeypatch.setenv("PYTHONPATH", str(target))
    pytester.makepyfile(test_it=f"{PROBE}\n    import library\n")
    found = causes(run())
    assert level(pytester) == ("collection" if recorded else "imports"), found
    assert ["os.getpid() is called" in each for each in found] == [True][recorded:]


def test_one_line_is_enough_for_many_findings(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makeconftest(
        """
        import os, socket
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        server = socket.create_server(("127.0.0.1", 0))
        def pytest_sessionstart(): pass
        def pytest_unconfigure(): pass
        """
    )
    pytester.makepyfile(PROBE)
    result = run()
    result.assert_outcomes(passed=4)
    assert len(causes(result)) == 1
    assert level(pytester) == "imports"


#: A suite that cannot share its collection, by the file with the cause, and the same one mended.
CHANGES = {
    "worker's name": (
        "conftest.py",
        "def pytest_configure(config):\n"
        "    config.x = getattr(config, 'workerinput', {}).get('workerid')\n",
        "def pytest_configure(config): getattr(config, 'workerinput', {}).get('testrunuid')\n",
    ),
    "hook": ("conftest.py", "def pytest_sessionstart(): pass\n", "\n"),
    "socket": (
        "test_other.py",
        "import socket\nSERVER = socket.create_server(('127.0.0.1', 0))\n",
        "import socket\n",
    ),
    "thread": (
        "test_other.py",
        "import threading\nTIMER = threading.Timer(600, int)\nTIMER.daemon = True\nTIMER.start()\n",
        "import threading\n",
    ),
    "file": ("test_other.py", "FILE = open('out.txt', 'w')\n", "import os\n"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_finding_is_remembered_until_its_cause_changes(
    pytester: pytest.Pytester, run: Runner, name: str
) -> None:
    """The second run says nothing and starts at level ``imports``."""
    path, unfit, mended = CHANGES[name]
    pytester.makepyfile(PROBE)
    (pytester.path / path).write_text(unfit)
    result = run()
    result.assert_outcomes(passed=4)
    assert len(causes(result)) == 1
    assert level(pytester) == "imports"

    result = run()
    result.assert_outcomes(passed=4)
    assert causes(result) == []
    assert level(pytester) == "imports"

    (pytester.path / path).write_text(mended)
    result = run()
    result.assert_outcomes(passed=4)
    assert causes(result) == []
    assert level(pytester) == "collection"


def test_a_finding_is_remembered_for_its_environment(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable may be what the finding was about: it was followed, and nothing changed."""
    pytester.makepyfile(
        PROBE, test_other="import os\nif 'ASK' not in os.environ: F = open('f', 'w')"
    )
    assert len(causes(run())) == 1
    monkeypatch.setenv("TERM_SESSION_ID", "another")  # of a prompt: it makes no difference
    assert causes(run()) == []
    assert level(pytester) == "imports"
    monkeypatch.setenv("ASK", "gently")
    assert causes(run()) == []
    assert level(pytester) == "collection"


def test_forcing_level_collection_forgets_and_remembers_nothing(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makeconftest("def pytest_sessionstart(): pass")
    pytester.makepyfile(PROBE)
    result = run("--forkd-warm=collection")
    assert warned(result) == [
        "pytest_sessionstart is implemented and expects to run in each worker (conftest.py:1)"
    ]
    assert level(pytester) == "collection"
    assert len(causes(run())) == 1
    assert level(pytester) == "imports"
    run("--forkd-warm=collection")
    assert level(pytester) == "collection"
    assert causes(run()) == []
    assert level(pytester) == "imports"


def test_a_warning_about_a_forced_level_obeys_warning_filters(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """``-W ignore`` by its category silences it."""
    pytester.makeconftest("def pytest_sessionstart(): pass")
    pytester.makepyfile(PROBE)
    result = run("--forkd-warm=collection", "-W", "ignore::pytest_forkd.PytestForkdWarning")
    result.assert_outcomes(passed=4, warnings=0)
    assert level(pytester) == "collection"
