"""A worker is as fresh as an interpreter that has just been started."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from tests.conftest import Runner

LEVELS = ["collection", "imports"]


def skip_without(module: str) -> None:
    """Skip a test whose suite needs ``module``, which is not imported here.

    pytester unloads what a test has imported, and NumPy cannot be loaded twice.
    """
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"could not import {module!r}")


def notes(pytester: pytest.Pytester, name: str = "notes") -> list[Any]:
    """What the tests of the last run noted, one JSON value a line; asking forgets it."""
    path = pytester.path / name
    values = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return values


# -- chance ------------------------------------------------------------------------------------

DRAWS = {
    "standard library": """
        import secrets, tempfile, uuid
        def draw():
            return {
                "random": random.random(),
                "Random": random.Random().random(),
                "SystemRandom": random.SystemRandom().random(),
                "secrets": secrets.token_hex(),
                "urandom": os.urandom(16).hex(),
                "uuid1": uuid.uuid1().hex,
                "uuid4": uuid.uuid4().hex,
                "mktemp": tempfile.mktemp(),
                "names": next(tempfile._get_candidate_names()),
            }
    """,
    "numpy": """
        import numpy
        numpy.random.rand()
        def draw():
            return {
                "rand": numpy.random.rand(),
                "RandomState": numpy.random.RandomState().rand(),
                "default_rng": numpy.random.default_rng().random(),
            }
    """,
}


@pytest.mark.parametrize("warm", LEVELS)
@pytest.mark.parametrize("source", DRAWS)
def test_no_two_workers_draw_the_same(
    pytester: pytest.Pytester, run: Runner, source: str, warm: str
) -> None:
    """Nor does a worker that replaces another one draw what that one has drawn."""
    if source == "numpy":
        skip_without("numpy")
    pytester.makepyfile(
        f"""
        import json, os, random, signal
        import pytest
        random.random()
        {DRAWS[source]}
        def test_draw():
            with open("notes", "a") as file:
                print(json.dumps(draw()), file=file)

        def test_crash(worker_id):
            if worker_id in ("gw0", "gw1"):
                os.kill(os.getpid(), signal.SIGKILL)

        def test_draw_again():
            test_draw()
        """
    )
    result = run(f"--forkd-warm={warm}", "--dist=each", workers=2)
    for name in ("gw0", "gw1"):  # in either order
        result.stdout.fnmatch_lines([f"replacing crashed worker {name}"])
    draws = notes(pytester)
    assert len(draws) >= 4
    for kind in draws[0]:
        values = [draw[kind] for draw in draws]
        assert len(set(values)) == len(values), kind


#: How a module may seed a global generator, and the first number that its tests draw then.
SEEDS = {
    "random: seed": ("random.seed(1)", "random.random()", "random.Random(1).random()"),
    "random: seed, draw": (
        "random.seed(1); random.random()",
        "random.random()",
        "[(twin := random.Random(1)).random(), twin.random()][1]",
    ),
    "random: setstate": (
        "random.setstate(random.Random(7).getstate())",
        "random.random()",
        "random.Random(7).random()",
    ),
    "numpy: seed": (
        "import numpy; numpy.random.seed(1)",
        "numpy.random.rand()",
        "numpy.random.RandomState(1).rand()",
    ),
    "numpy: seed by another name": (
        "import numpy; from numpy.random import seed as s; s(1)",
        "numpy.random.rand()",
        "numpy.random.RandomState(1).rand()",
    ),
    "numpy: set_state": (
        "import numpy; numpy.random.set_state(numpy.random.RandomState(7).get_state())",
        "numpy.random.rand()",
        "numpy.random.RandomState(7).rand()",
    ),
}


@pytest.mark.parametrize("name", SEEDS)
def test_a_generator_seeded_at_import_is_in_that_state_in_each_worker(
    pytester: pytest.Pytester, run: Runner, name: str
) -> None:
    """Each worker's tests draw the numbers that they would draw if it had collected itself."""
    seed, draw, expected = SEEDS[name]
    if "numpy" in name:
        skip_without("numpy")
    pytester.makepyfile(
        f"""
        import random
        {seed}
        def test_draw():
            assert {draw} == {expected}
        """
    )
    for warm in LEVELS if name.endswith("seed") else LEVELS[:1]:
        run(f"--forkd-warm={warm}", "--dist=each").assert_outcomes(passed=2)


UNSEEDED = {
    "random: restored": (
        "state = random.getstate(); random.seed(1); random.setstate(state)",
        "random.random()",
    ),
    "random: seeded with chance": ("random.seed(1); random.seed()", "random.random()"),
    "numpy: restored": (
        "import numpy.random as r; state = r.get_state(); r.seed(1); r.set_state(state)",
        "r.rand()",
    ),
    "numpy: seeded with chance": (
        "import numpy.random as r; r.seed(1); r.seed()",
        "r.rand()",
    ),
}


@pytest.mark.parametrize("name", UNSEEDED)
def test_a_generator_that_was_seeded_for_a_while_at_import_is_not_the_same_in_all_workers(
    pytester: pytest.Pytester, run: Runner, name: str
) -> None:
    source, draw = UNSEEDED[name]
    if "numpy" in name:
        skip_without("numpy")
    pytester.makepyfile(
        f"""
        import json, random
        {source}
        def test_draw():
            with open("notes", "a") as file:
                print(json.dumps({draw}), file=file)
        """
    )
    run("--dist=each").assert_outcomes(passed=2)
    one, other = notes(pytester)
    assert one != other


def test_hypothesis_works_in_workers(pytester: pytest.Pytester, run: Runner) -> None:
    """They try different examples, and share a database that keeps what failed."""
    skip_without("hypothesis")
    failing = """
        TRIED_{part} = []

        @settings(max_examples=30)
        @given(st.integers())
        def check_{part}(number):
            TRIED_{part}.append(number)
            assert number < 1000 + {part}

        def test_fails_{part}():
            with pytest.raises(AssertionError):
                check_{part}()
            with open("failed", "a") as file:
                print(json.dumps([{part}, TRIED_{part}]), file=file)
    """
    pytester.makepyfile(
        """
        import json
        import pytest
        from hypothesis import given, settings, strategies as st

        SEEN = []

        @settings(max_examples=30)
        @given(st.integers(min_value=2**40, max_value=2**62))
        def test_tries(number):
            SEEN.append(number)

        def test_tried(worker_id):
            with open("notes", "a") as file:
                print(json.dumps(SEEN), file=file)

        """
        + "".join(failing.format(part=part) for part in range(4))
    )
    result = run("--dist=each", plugins=("hypothesispytest",))
    result.assert_outcomes(passed=12)
    one, other = notes(pytester)
    assert len(set(one) & set(other)) < 15, "all workers try the same"
    assert len(notes(pytester, "failed")) == 8

    run("--dist=load", plugins=("hypothesispytest",)).assert_outcomes(passed=6)
    first = {part: tried[0] for part, tried in notes(pytester, "failed")}
    assert first == {part: 1000 + part for part in range(4)}, "what failed comes first"


# -- the process -------------------------------------------------------------------------------

#: A test that notes what a test can see of the process that it runs in.
FACTS = """
    import asyncio, decimal, faulthandler, gc, json, locale, logging, multiprocessing, os, resource
    import signal, sys, threading, time, warnings

    def passed_on():
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.get_inheritable(int(name)):
                    target = os.readlink("/proc/self/fd/" + name)
                    if int(name) < 3 or target.startswith(("socket:", "/memfd:pytest-forkd")):
                        yield int(name)
            except OSError:
                pass

    def test_facts():
        umask = os.umask(0)
        os.umask(umask)
        facts = {
            "active children": multiprocessing.active_children(),
            "collector": [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
            "context": str(decimal.getcontext()),
            "cwd": os.getcwd(),
            "descriptors passed on to programs": sorted(passed_on()),
            "encodings": [sys.stdout.encoding, sys.stdout.errors, locale.getpreferredencoding()],
            "environment's class": type(os.environ).__name__,
            "event loop": asyncio.get_event_loop_policy()._local._loop,
            "excepthook": sys.excepthook is sys.__excepthook__,
            "faulthandler": faulthandler.is_enabled(),
            "flags": str(sys.flags),
            "limits": [resource.getrlimit(number) for number in range(10)],
            "locale": locale.setlocale(locale.LC_ALL),
            "logging": [[str(handler) for handler in logging.root.handlers], logging.root.level],
            "main thread": threading.current_thread() is threading.main_thread(),
            "meta_path": [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path],
            "nice": os.nice(0),
            "oom_score_adj": open("/proc/self/oom_score_adj").read(),
            "process": multiprocessing.current_process().name,
            "process group": os.getpgrp() == os.getpgid(os.getppid()),
            "recursion limit": sys.getrecursionlimit(),
            "seed": random_seed(),
            "signals": {
                str(number): str(signal.getsignal(number)).partition(" at ")[0]
                for number in signal.valid_signals()
            },
            "signals blocked": [str(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "start method": multiprocessing.get_start_method(),
            "streams": [type(s).__name__ for s in (sys.stdin, sys.stdout, sys.stderr)],
            "switch interval": sys.getswitchinterval(),
            "tasks": len(os.listdir("/proc/self/task")),
            "threads": [thread.name for thread in threading.enumerate()],
            "timer": signal.getitimer(signal.ITIMER_REAL),
            "trace": [sys.gettrace(), sys.getprofile()],
            "timezone": time.tzname,
            "umask": umask,
            "wake-up descriptor": signal.set_wakeup_fd(-1),
            "warning filters": [str(entry) for entry in warnings.filters],
            "warnoptions": sys.warnoptions,
        }
        with open("notes", "a") as file:
            print(json.dumps(facts), file=file)

    def random_seed():
        import random
        return random.seed.__qualname__
"""


@pytest.mark.skipif("sys.platform != 'linux'", reason="reads /proc")
def test_the_process_of_a_worker_looks_to_a_test_like_that_of_plain_pytest(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Signal handlers, warning filters, limits, threads, faulthandler, garbage collection, ..."""
    pytester.makepyfile(FACTS)
    pytester.makeini(
        """
        [pytest]
        filterwarnings =
            error
            ignore::ImportWarning
        """
    )
    run("-W", "default::UserWarning", runner="plain").assert_outcomes(passed=1)
    [plain] = notes(pytester)
    for warm in LEVELS:
        result = run(f"--forkd-warm={warm}", "-W", "default::UserWarning", workers=1)
        result.assert_outcomes(passed=1)
        [facts] = notes(pytester)
        assert facts == plain, warm


@pytest.mark.parametrize("warm", LEVELS)
def test_tests_see_the_folder_the_import_path_and_the_environment_that_conftests_made(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """As under xdist, except that ``sys.argv`` is the controller's."""
    pytester.makeconftest(
        """
        import os, sys
        os.environ["MADE"] = os.environ.get("MADE", "") + "in conftest"
        os.environ.pop("COLUMNS", None)
        sys.path.insert(0, "made in conftest")
        def pytest_configure():
            os.environ["CONFIGURED"] = "yes"
        def pytest_collection_modifyitems():
            sys.path.append("made while collecting")
            os.makedirs("folder", exist_ok=True)
            os.chdir("folder")
        """
    )
    pytester.makepyfile(
        """
        import json, os, sys
        os.environ["IMPORTED"] = "yes"
        def test_note(pytestconfig):
            environ = {
                key: value for key, value in os.environ.items()
                if not key.startswith("PYTEST_XDIST_") and key not in ("LINES", "COLUMNS")
            }
            with open(pytestconfig.rootpath / "notes", "a") as file:
                print(json.dumps([os.getcwd(), sys.path, environ]), file=file)
            with open(pytestconfig.rootpath / "argv", "a") as file:
                print(json.dumps(sys.argv), file=file)
        """
    )
    run(runner="xdist", workers=1).assert_outcomes(passed=1)
    expected = notes(pytester)
    notes(pytester, "argv")
    run(f"--forkd-warm={warm}", workers=1).assert_outcomes(passed=1)
    [[cwd, path, environ]] = notes(pytester)
    assert [[cwd, path, environ]] == expected
    assert cwd == str(pytester.path / "folder")
    assert environ["MADE"] == 2 * "in conftest", "the controller's environment is inherited"
    [argv] = notes(pytester, "argv")
    assert argv[1:3] == ["--basetemp=" + argv[1].partition("=")[2], "-p"]
    assert argv[-1] == "--forkd-workers=1" or f"--forkd-warm={warm}" in argv


@pytest.mark.parametrize("warm", LEVELS)
def test_standard_input_is_empty_and_cannot_block(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    pytester.makepyfile(
        """
        import os, subprocess, sys
        import pytest

        def test_read(pytestconfig):
            if pytestconfig.option.capture == "no":
                assert sys.stdin.read() == ""
                with pytest.raises(EOFError):
                    input()
            else:
                with pytest.raises(OSError, match="reading from stdin while output is captured"):
                    sys.stdin.read()

        def test_descriptor():
            assert os.read(0, 1) == b""
            assert not os.isatty(0)

        def test_subprocess():
            program = "import sys; print(repr(sys.stdin.read()))"
            assert subprocess.check_output([sys.executable, "-c", program]) == b"''\\n"
        """
    )
    for capture in ("fd", "no"):
        result = run(f"--forkd-warm={warm}", f"--capture={capture}")
        result.assert_outcomes(passed=3)


def test_signals_that_a_test_sends_to_itself_do_what_they_do_under_plain_pytest(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(
        """
        import os, signal
        import pytest

        def test_interrupt():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
                signal.sigtimedwait([], 0.1)

        def test_handler():
            caught = []
            before = signal.signal(signal.SIGTERM, lambda *args: caught.append(args[0]))
            assert before is signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)
            assert caught == [signal.SIGTERM]

        def test_alarm():
            caught = []
            before = signal.signal(signal.SIGALRM, lambda *args: caught.append(args[0]))
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            signal.pause()
            signal.signal(signal.SIGALRM, before)
            assert caught == [signal.SIGALRM]

        def test_child():
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

        def test_wakeup():
            read, write = os.pipe()
            os.set_blocking(write, False)
            before = signal.signal(signal.SIGUSR1, lambda *args: None)
            assert signal.set_wakeup_fd(write) == -1
            os.kill(os.getpid(), signal.SIGUSR1)
            assert os.read(read, 1) == bytes([signal.SIGUSR1])
            assert signal.set_wakeup_fd(-1) == write
            signal.signal(signal.SIGUSR1, before)
            os.close(read)
            os.close(write)
        """
    )
    for warm in LEVELS:
        run(f"--forkd-warm={warm}").assert_outcomes(passed=5)


# -- what tests start --------------------------------------------------------------------------


@pytest.mark.parametrize("warm", LEVELS)
def test_tests_may_start_processes_threads_pools_and_event_loops(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """Without a warning: a worker has one thread, so it may fork."""
    pytester.makepyfile(
        test_starts="""
        import asyncio, os, subprocess, sys, threading
        import concurrent.futures, multiprocessing
        import multiprocessing.shared_memory
        import pytest

        METHODS = ["fork", "spawn", "forkserver"]

        class Square:
            def __init__(self, number):
                self.number = number
            def __eq__(self, other):
                return type(other) is Square and other.number == self.number
            __hash__ = None

        def square(number):
            return Square(number * number), os.getpid()

        def put(queue):
            queue.put(square(3))

        @pytest.mark.parametrize("method", METHODS)
        def test_process(method):
            context = multiprocessing.get_context(method)
            queue = context.SimpleQueue()
            process = context.Process(target=put, args=[queue])
            process.start()
            value, pid = queue.get()
            process.join(30)
            assert (value, pid, process.exitcode) == (Square(9), process.pid, 0)
            process.close()
            queue.close()

        @pytest.mark.parametrize("method", METHODS)
        def test_process_pool(method):
            context = multiprocessing.get_context(method)
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                results = list(pool.map(square, range(3)))
            assert [value for value, _ in results] == [Square(0), Square(1), Square(4)]
            assert os.getpid() not in {pid for _, pid in results}

        def test_multiprocessing_pool():
            with multiprocessing.get_context("fork").Pool(1) as pool:
                assert [v for v, _ in pool.map(square, [2])] == [Square(4)]
                pool.close()
                pool.join()

        def test_manager_and_shared_memory():
            with multiprocessing.Manager() as manager:
                shared = manager.dict(a=1)
                assert dict(shared) == {"a": 1}
            memory = multiprocessing.shared_memory.SharedMemory(create=True, size=8)
            memory.close()
            memory.unlink()

        def test_thread_pool():
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                assert [v for v, _ in pool.map(square, [2, 3])] == [Square(4), Square(9)]
            assert threading.active_count() == 1

        def test_subprocess():
            done = subprocess.run(
                [sys.executable, "-c", "import sys; print(input()); sys.exit(3)"],
                input="text", capture_output=True, text=True,
            )
            assert (done.returncode, done.stdout) == (3, "text\\n")

        def test_asyncio():
            async def main():
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", "print(1)", stdout=asyncio.subprocess.PIPE
                )
                out, _ = await process.communicate()
                answer = await asyncio.get_running_loop().run_in_executor(None, square, 2)
                await asyncio.sleep(0)
                return out, answer[0], process.returncode
            assert asyncio.run(main()) == (b"1\\n", Square(4), 0)
            assert asyncio.run(asyncio.sleep(0, "again")) == "again"
        """
    )
    result = run(f"--forkd-warm={warm}", "-W", "error")
    result.assert_outcomes(passed=11)


@pytest.mark.parametrize("warm", LEVELS)
def test_objects_of_a_test_module_can_be_pickled(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """Also those that were made before the fork; ``__main__`` stays what it is and out of it."""
    pytester.makepyfile(
        """
        import copy, enum, pickle, sys

        class Colour(enum.Enum):
            RED = 1

        class Plain:
            pass

        EARLY = Plain()
        PICKLED = pickle.dumps(EARLY)

        def test_pickle():
            for value in (Plain(), EARLY, copy.deepcopy(EARLY)):
                assert type(pickle.loads(pickle.dumps(value))) is Plain
            assert type(pickle.loads(PICKLED)) is Plain
            assert pickle.loads(pickle.dumps(Colour.RED)) is Colour.RED
            assert pickle.loads(pickle.dumps(test_pickle)) is test_pickle
            assert Plain.__module__ == __name__ == "test_objects_of_a_test_module_can_be_pickled"

        def test_main():
            main = sys.modules["__main__"]
            assert main.__name__ == "__main__"
            assert vars(main).get("__spec__") is None
        """
    )
    run(f"--forkd-warm={warm}").assert_outcomes(passed=2)


# -- log files ---------------------------------------------------------------------------------

LOGGING_TESTS = """
    import logging
    import pytest

    @pytest.mark.parametrize("number", range(60))
    def test_log(number, worker_id):
        logging.getLogger("suite").warning("%s %s %s", number, worker_id, "x" * 200)
"""


@pytest.mark.parametrize("kind", ["FileHandler", "WatchedFileHandler", "--log-file"])
def test_records_of_all_workers_reach_a_shared_log_file_whole(
    pytester: pytest.Pytester, run: Runner, kind: str
) -> None:
    """Each appends to the file that was opened before the workers were forked."""
    arguments = ["--log-file=suite.log", "--log-file-format=%(message)s"]
    if not kind.startswith("--"):
        arguments = []
        pytester.makeconftest(
            f"""
            import logging, logging.handlers, os
            def pytest_configure(config):
                if hasattr(config, "workerinput"):
                    handler = (logging.FileHandler if {kind!r} == "FileHandler"
                               else logging.handlers.WatchedFileHandler)("suite.log", mode="w")
                    logging.getLogger("suite").addHandler(handler)
            """
        )
    pytester.makepyfile(LOGGING_TESTS)
    result = run(*arguments, workers=3)
    result.assert_outcomes(passed=60)
    result.stdout.no_fnmatch_line("forkd: each worker collects for itself*")
    lines = [line.split() for line in (pytester.path / "suite.log").read_text().splitlines()]
    assert sorted(int(number) for number, _, _ in lines) == list(range(60))
    assert {len(text) for _, _, text in lines} == {200}


def test_each_worker_can_have_a_log_file_of_its_own(pytester: pytest.Pytester, run: Runner) -> None:
    """The recipe in xdist's documentation, "Creating one log file for each worker"."""
    pytester.makeini("[pytest]\nlog_file = suite.log\nlog_file_level = INFO\n")
    pytester.makeconftest(
        """
        import logging, os
        def pytest_configure(config):
            worker_id = os.environ.get("PYTEST_XDIST_WORKER")
            if worker_id is not None:
                logging.basicConfig(
                    format=config.getini("log_file_format"),
                    filename=f"tests_{worker_id}.log",
                    level=config.getini("log_file_level"),
                )
        """
    )
    pytester.makepyfile(LOGGING_TESTS)
    run().assert_outcomes(passed=60)
    numbers = []
    for worker in ("gw0", "gw1"):
        for line in (pytester.path / f"tests_{worker}.log").read_text().splitlines():
            *_, number, name, text = line.split()
            assert (name, text) == (worker, "x" * 200)
            numbers.append(int(number))
    assert sorted(numbers) == list(range(60))


# -- crashes -----------------------------------------------------------------------------------


def test_faulthandler_is_enabled_in_a_worker_unless_it_is_disabled(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(
        """
        import faulthandler
        def test_dump(pytestconfig):
            enabled = pytestconfig.pluginmanager.hasplugin("faulthandler")
            assert faulthandler.is_enabled() == enabled
        """
    )
    for warm in LEVELS:
        run(f"--forkd-warm={warm}").assert_outcomes(passed=1)
    run("-p", "no:faulthandler").assert_outcomes(passed=1)
