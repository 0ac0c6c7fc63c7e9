"""What a run opens, starts and writes is gone when it ends, and tests see none of it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_forkd
from pytest_forkd.backends.base import Backend
from pytest_forkd.backends.process import parents
from pytest_forkd.backends.process.launching import runtime_directory
from pytest_forkd.channel.frames import FrameSocket
from pytest_forkd.controller.settings import Settings, make_backend
from pytest_forkd.parent.plan import Plan
from tests.conftest import Runner
from tests.observing import MARK, processes_of, write_suite

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
warm_levels = pytest.mark.parametrize("warm", ["collection", "imports"])


# -- descriptors and processes over many workers -----------------------------------------------


@linux_only
@pytest.mark.parametrize("workers", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_replacing_workers_leaks_neither_files_nor_processes(
    pytester: pytest.Pytester, run: Runner, workers: int
) -> None:
    """As many tests as workers, each of which dies; controller and collector stay as they were."""
    write_suite(
        pytester,
        conftest="""
        import os, pathlib
        from doing import note, parent_of
        def open_files(pid):
            return len(os.listdir(f"/proc/{pid}/fd"))
        def children(pid):
            count = 0
            for entry in os.listdir("/proc"):
                try:
                    count += entry.isdecimal() and parent_of(entry) == int(pid)
                except OSError:
                    pass
            return count
        def pytest_runtest_logreport(report):
            if hasattr(report, "node"):  # in the controller
                collector = pathlib.Path("collector").read_text().split()[0]
                note("seen", f"{open_files('self')} {open_files(collector)} {children(collector)}")
        """,
        test_it=f"""
        import os, pytest
        from doing import die, note
        @pytest.mark.parametrize("i", range({workers}))
        def test_dies(i):
            note("collector", str(os.getppid()))
            die("exit_3")
        """,
    )
    result = run("--tb=no", f"--max-worker-restart={workers}")
    result.assert_outcomes(failed=workers)
    assert len(set((pytester.path / "collector").read_text().split())) == 1
    seen = (pytester.path / "seen").read_text().splitlines()
    lines = [list(map(int, line.split())) for line in seen]
    assert len(lines) == workers
    for what, column in zip(
        ("files of the controller", "files of the collector", "processes"),
        zip(*lines, strict=True),
        strict=True,
    ):
        # Two workers live and may be about to be replaced: a handful more or less is no leak.
        assert max(column[-10:]) <= min(column[:10]) + 12, what


@linux_only
@warm_levels
@pytest.mark.parametrize("keep", [0, 60])
def test_what_tests_leave_running_is_gone_after_the_run(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch, warm: str, keep: int
) -> None:
    """Children, daemons that have left the session and the directory, and what ignores signals."""
    monkeypatch.setenv(MARK, str(pytester.path))
    write_suite(
        pytester,
        test_it="""
        import os, signal, subprocess, sys
        from doing import note
        IGNORING = "import signal, time\\n" + "".join(
            f"signal.signal({int(signum)}, signal.SIG_IGN)\\n"
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        ) + "print(flush=True)\\ntime.sleep(1000)"
        def test_child():
            note("left", subprocess.Popen(["sleep", "1000"]).pid)
        def test_new_session():
            note("left", subprocess.Popen(["sleep", "1000"], start_new_session=True, cwd="/").pid)
        def test_without_environment():
            note("left", subprocess.Popen(["/bin/sleep", "1000"], env={}, cwd="/").pid)
        def test_ignores_signals():
            command = [sys.executable, "-c", IGNORING]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            process.stdout.readline()
            note("left", process.pid)
        def test_daemon():
            child = os.fork()
            if child == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
                note("left", os.getpid())
                os.chdir("/")
                for fd in range(256):
                    try:
                        os.close(fd)
                    except OSError:
                        pass
                os.execv("/bin/sleep", ["sleep", "1000"])
            os.waitpid(child, 0)
        """,
    )
    result = run(f"--forkd-warm={warm}", f"--forkd-keep={keep}")
    result.assert_outcomes(passed=5)
    still = processes_of(str(pytester.path))
    assert len(still) == (keep > 0), still
    assert all("pytest_forkd/parent" in line for line in still)
    left = (pytester.path / "left").read_text().split()
    assert len(left) == 5
    assert [pid for pid in left if os.path.exists(f"/proc/{pid}")] == []


@linux_only
@pytest.mark.parametrize(
    ("source", "code"),
    [
        pytest.param("def test_it(): pass", 0, id="passing"),
        pytest.param("def test_it(): assert 0", 1, id="failing"),
        pytest.param("def test_it(): ...\nimport no_such_module", 1, id="not collected"),
        pytest.param("", 5, id="no tests"),
    ],
)
def test_no_file_is_left_in_the_temporary_directory(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch, source: str, code: int
) -> None:
    """Nor in the other places that a socket may go to."""
    temporary = pytester.mkdir("temporary")
    runtime = pytester.mkdir("runtime")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv(MARK, str(pytester.path))
    write_suite(pytester, test_it=source)
    assert run("--forkd-keep=0").ret == code
    assert list(temporary.iterdir()) == []
    assert list(runtime.iterdir()) == []
    assert processes_of(str(pytester.path)) == []


# -- what tests see ----------------------------------------------------------------------------


@linux_only
@warm_levels
def test_a_test_has_one_thread_and_may_fork(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """Python 3.12 and later warn when a process with threads forks."""
    write_suite(
        pytester,
        test_it="""
        import os, pytest, threading
        @pytest.mark.parametrize("i", range(4))
        def test_it(i):
            assert threading.enumerate() == [threading.main_thread()]
            assert threading.current_thread() is threading.main_thread()
            assert len(os.listdir("/proc/self/task")) == 1
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, 0)
        """,
    )
    result = run("-W", "error", f"--forkd-warm={warm}")
    result.assert_outcomes(passed=4)


@linux_only
@warm_levels
def test_programs_that_a_test_starts_inherit_the_standard_streams_only(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """No socket, claims file or crash file of the run, even without ``close_fds``."""
    write_suite(
        pytester,
        test_it="""
        import subprocess, sys
        def test_it():
            command = [sys.executable, "list_open_files.py"]
            done = subprocess.run(command, close_fds=False, capture_output=True, text=True)
            assert done.stdout + done.stderr == ""
        def test_once_more(): test_it()
        """,
        list_open_files="""
        import os
        for fd in range(3, 256):
            try:
                print(fd, os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                pass
        """,
    )
    result = run(f"--forkd-warm={warm}")
    result.assert_outcomes(passed=2)


# -- what runs at exit -------------------------------------------------------------------------


@linux_only
def test_a_directory_made_at_import_is_there_until_the_run_ends(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """A worker that ends early does not take along what the others still use."""
    write_suite(
        pytester,
        shared="""
        import tempfile, weakref
        from doing import note
        directory = tempfile.TemporaryDirectory(dir=".")
        def at_the_end(): note("ended")
        weakref.finalize(directory, at_the_end)
        """,
        test_a="""
        import os
        from doing import note
        from shared import directory
        def test_leaves():
            assert os.path.isdir(directory.name)
            note("directory", os.path.abspath(directory.name))
            note("leaving.tmp", os.getpid())
            os.rename("leaving.tmp", "leaving")
        """,
        test_b="""
        import os, pathlib, time
        from doing import wait_for
        from shared import directory
        def test_stays():
            wait_for("leaving")
            pid = pathlib.Path("leaving").read_text().strip()
            assert int(pid) != os.getpid()
            deadline = time.monotonic() + 30
            while os.path.exists(f"/proc/{pid}"):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            assert os.path.isdir(directory.name)
        """,
    )
    result = run("--dist=loadfile", "--forkd-warm=collection")
    result.assert_outcomes(passed=2)
    directory = (pytester.path / "directory").read_text().strip()
    assert not os.path.exists(directory)
    assert (pytester.path / "ended").read_text().split() == ["x"]


def test_exit_handlers_run_once_and_where_they_belong(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Those registered at import once for all workers, those registered in a test in its worker."""
    write_suite(
        pytester,
        test_it="""
        import atexit, os, pytest
        from doing import note
        def at_exit(name):
            note(name, os.getpid())
        atexit.register(at_exit, "of-the-module")
        @pytest.mark.parametrize("i", range(2))
        def test_it(i):
            note("workers", os.getpid())
            atexit.register(at_exit, "of-tests")
        """,
    )
    result = run("--forkd-warm=collection")
    result.assert_outcomes(passed=2)

    def pids(name: str) -> list[str]:
        return sorted((pytester.path / name).read_text().split())

    assert len(pids("of-the-module")) == 1
    assert pids("of-tests") == pids("workers")
    assert not set(pids("of-the-module")) & set(pids("workers"))


def test_exit_handlers_at_level_imports_run_in_each_worker(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Each has imported the module for itself, as under xdist."""
    write_suite(
        pytester,
        test_it="""
        import atexit, os, pytest
        from doing import note
        atexit.register(lambda: note("of-the-module", os.getpid()))
        @pytest.mark.parametrize("i", range(2))
        def test_it(i): note("workers", os.getpid())
        """,
    )
    result = run("--forkd-warm=imports")
    result.assert_outcomes(passed=2)
    exits = (pytester.path / "of-the-module").read_text().split()
    assert len(exits) == len(set(exits)) == 2
    assert set((pytester.path / "workers").read_text().split()) <= set(exits)


@pytest.mark.parametrize("warm", ["collection", "imports"])
def test_a_worker_ends_its_pools_and_threads_as_the_interpreter_does(
    pytester: pytest.Pytester, run: Runner, warm: str
) -> None:
    """Pools first, then threads, then exit handlers: in another order they wait for each other."""
    write_suite(
        pytester,
        test_it="""
        import atexit, concurrent.futures, multiprocessing, os, threading, time
        from doing import note
        pool = concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn")
        )
        def last_words():
            time.sleep(0.3)
            note("words", "thread")
        def test_it():
            atexit.register(note, "words", "handler")
            assert pool.submit(abs, -1).result() == 1
            threading.Thread(target=last_words).start()
        """,
    )
    result = run(f"--forkd-warm={warm}")
    result.assert_outcomes(passed=1)
    assert (pytester.path / "words").read_text().split() == ["thread", "handler"]


# -- who may connect ---------------------------------------------------------------------------


@pytest.fixture
def private_temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory of this process, for the length of a test."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    # Not below the test's directory: what is too long for a socket's path is passed over.
    with (
        tempfile.TemporaryDirectory(prefix="forkd-test-") as folder,
        monkeypatch.context() as patch,
    ):
        patch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_the_directory_of_the_socket_is_private(private_temporary: Path) -> None:
    """Whatever the umask is."""
    umask = os.umask(0)
    try:
        directory = runtime_directory()
    finally:
        os.umask(umask)
    assert directory.parent == private_temporary
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.stat().st_uid == os.getuid()
    assert list(directory.iterdir()) == []


def test_the_runtime_directory_is_preferred(
    private_temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = private_temporary / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert runtime_directory().parent == runtime


def process_backend() -> Backend:
    backend = make_backend(Settings(workers=1, backend="process"), Plan())
    assert backend is not None
    return backend


def test_a_started_backend_has_no_name_in_the_file_system(
    private_temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket's directory is private, and gone as soon as the controller has connected."""
    made: list[tuple[Path, int]] = []

    def recording() -> Path:
        directory = runtime_directory()
        made.append((directory, directory.stat().st_mode & 0o777))
        return directory

    monkeypatch.setattr(parents, "runtime_directory", recording)
    backend = process_backend()
    try:
        backend.start()
        [(directory, mode)] = made
        assert mode == 0o700
        assert directory.parent == private_temporary
        assert list(private_temporary.iterdir()) == []
        pid = backend.rinfo()["pid"]
        assert isinstance(pid, int)
    finally:
        backend.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    backend.close()  # for the second time


def test_a_backend_that_is_never_used_leaves_no_open_file(private_temporary: Path) -> None:
    backend = process_backend()
    before = _open_files()
    backend.start()
    backend.close()
    assert _open_files() == before


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))


@linux_only
@pytest.mark.parametrize("uid", [None, 65534], ids=["own user", "other user"])
def test_the_parent_talks_to_its_own_user_only(uid: int | None) -> None:
    """A peer with another user id is sent away without a word."""
    if uid is not None and os.getuid() != 0:
        pytest.skip("only root can be another user")
    address = f"\0pytest-forkd-test-{os.getpid()}-{uid}"  # abstract: no permissions in the way
    program = Path(pytest_forkd.__file__).parent / "parent" / "__main__.py"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(address)
        listener.listen(4)
        plan = stack.enter_context(tempfile.TemporaryFile())
        Plan().write(plan.fileno())
        fds = [listener.fileno(), plan.fileno()]
        command = [sys.executable, str(program), f"--listen-fd={fds[0]}", f"--plan-fd={fds[1]}"]
        parent = subprocess.Popen(
            [*command, f"--controller={os.getpid()}"], pass_fds=fds, stdin=subprocess.DEVNULL
        )
    try:
        answer = _answer_to(uid, address)
        if uid is None:
            assert b'"hello"' in answer
        else:
            assert answer == b""
            # It is still there for its own user.
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(address)
                connection = FrameSocket(sock)
                connection.send({"open": {"keep": 0, "most": 4}})
                assert connection.receive(30).message == {"alive": True}
                assert "hello" in connection.receive(30).message
    finally:
        parent.kill()
        parent.wait()


def _answer_to(uid: int | None, address: str) -> bytes:
    """What a process of another user is told by whoever listens at ``address``."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            if uid is not None:
                os.setgid(uid)
                os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                sock.connect(address)
                payload = b'{"open": {"keep": 0, "most": 4}}'
                sock.sendall(struct.pack("!II", len(payload), 0) + payload)
                with contextlib.suppress(ConnectionError):
                    answer = b""
                    while b'"hello"' not in answer and (data := sock.recv(4096)):
                        answer += data
                    os.write(writing, answer)
            status = 0
        os._exit(status)
    os.close(writing)
    with open(reading, "rb") as file:
        answer = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return answer


# -- awkward temporary directories -------------------------------------------------------------


def test_a_very_long_temporary_directory_works(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the address of a unix socket may be."""
    temporary = pytester.mkdir("x" * 200)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    write_suite(
        pytester,
        test_it="""
        import os, tempfile
        def test_it(tmp_path):
            assert tempfile.gettempdir() == os.environ["TMPDIR"]
        """,
    )
    result = run("--forkd-keep=0")
    result.assert_outcomes(passed=1)
    assert list(temporary.glob("pytest-forkd*")) == []


def test_a_temporary_directory_with_odd_characters_works(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = pytester.mkdir("a b\n'\"$ü")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    write_suite(pytester, test_it="def test_it(tmp_path): pass")
    result = run("--forkd-keep=0")
    result.assert_outcomes(passed=1)
    assert list(temporary.glob("pytest-forkd*")) == []
