"""Watching a run from outside: suites that record what ran, and runs in the background."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import final

import pytest

__all__ = [
    "BackgroundRun",
    "assert_each_ran",
    "blamed",
    "matching",
    "processes_of",
    "starts",
    "wait_until",
    "write_suite",
]

#: Every process of a run inherits this variable, wherever it goes and whoever adopts it.
MARK = "FORKD_TEST_RUN"

#: For a suite's conftest: every start of a test adds a line, the worker's name, to the test's file.
_RECORDING = """
    import os, re
    def pytest_runtest_protocol(item):
        name = re.sub("[^A-Za-z0-9_.]+", "-", item.nodeid)
        path = item.config.rootpath / "runs" / name
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, (os.environ["PYTEST_XDIST_WORKER"] + "\\n").encode())
        os.close(fd)
"""

#: Ways for a process to die, and other things that the tests of a suite may want to do.
_DOING = """
    import ctypes, os, pathlib, posix, resource, signal, subprocess, sys, time

    def segfault(): ctypes.string_at(0)
    def sigsegv(): os.kill(os.getpid(), signal.SIGSEGV)
    def abort(): os.abort()
    def sigkill(): os.kill(os.getpid(), signal.SIGKILL)
    def sigterm(): os.kill(os.getpid(), signal.SIGTERM)
    def exit_3(): os._exit(3)
    def exit_0(): os._exit(0)
    def killed_by_another(): subprocess.run(["kill", "-KILL", str(os.getpid())])

    def stack_overflow():
        # Room for little more: since 3.12 Python has a limit of its own on recursion in C, which
        # keeps well below the usual 8 MiB.
        try:
            status = pathlib.Path("/proc/self/status").read_text()
            used = int(status.split("VmStk:")[1].split()[0]) * 1024
        except OSError:
            used = 512 * 1024
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (used + 64 * 1024, hard))
        sys.setrecursionlimit(10 ** 9)
        nested = []
        for _ in range(1_000_000):
            nested = [nested]
        repr(nested)

    def die(how):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        globals()[how]()

    def first(name):
        "Whether this is the first call with this name in any process."
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def note(name, text="x"):
        "Append a line to a file."
        fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{text}\\n".encode())
        os.close(fd)

    def wait_for(name):
        "Wait for a file."
        deadline = time.monotonic() + 60
        while not os.path.exists(name):
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.005)

    def parent_of(pid):
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    # Looked up here, since who asks later may be told who has adopted it.
    _importer, _parent_of_importer = posix.getpid(), posix.getppid()

    def collector():
        "The process that forked this worker."
        return _importer if _importer != os.getpid() else _parent_of_importer

    def parent():
        "The process that forked the collector."
        return _parent_of_importer if _importer != os.getpid() else parent_of(_parent_of_importer)
"""


def write_suite(pytester: pytest.Pytester, conftest: str = "", **files: str) -> None:
    """Write a suite whose tests record that they were started, see :func:`starts`.

    Its tests may import ``die(how)`` and more from the module ``doing``.
    """
    pytester.mkdir("runs")
    pytester.makeconftest(_RECORDING)
    if conftest:
        # Not one text: both may be indented, each in its own way.
        pytester.makepyfile(more_conftest=conftest)
        with open(pytester.path / "conftest.py", "a") as file:
            file.write("\nfrom more_conftest import *\n")
    pytester.makepyfile(doing=_DOING, **files)


def starts(pytester: pytest.Pytester) -> dict[str, int]:
    """How often each test was started, by its id with a dash for whatever a file name lacks."""
    directory = pytester.path / "runs"
    return {path.name: len(path.read_text().split()) for path in sorted(directory.iterdir())}


def assert_each_ran(pytester: pytest.Pytester, *, tests: int, times: int = 1) -> None:
    """Every one of ``tests`` tests was started exactly ``times`` times."""
    counts = starts(pytester)
    assert {name: count for name, count in counts.items() if count != times} == {}
    assert len(counts) == tests


def blamed(result: pytest.RunResult) -> list[str]:
    """The tests that the short summary (``-rfE``) names as failed or in error, sorted."""
    return sorted(
        line.split(" - ")[0].split(" ", 1)[1]
        for line in result.outlines
        if line.startswith(("FAILED ", "ERROR "))
    )


def matching(lines: Iterable[str], text: str) -> list[str]:
    """The lines that hold ``text``."""
    return [line for line in lines if text in line]


def processes_of(mark: str) -> list[str]:
    """Processes that were started, directly or not, with :data:`MARK` set to ``mark``."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ")
                    if command:  # a zombie has none
                        found.append(f"{entry}: {command.decode(errors='replace')[:120]}")
    return found


def wait_until(condition: Callable[[], object], limit: float = 30.0) -> bool:
    """Wait until ``condition`` holds.

    :param limit: seconds to wait.
    :returns: whether it held in time.
    """
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@final
class BackgroundRun:
    """A run under forkd that goes on while the test does something to it.

    It has a session and process group of its own, as it has in a terminal. The temporary directory
    is a directory of the test.

    :param pytester: its directory is where the run is started.
    """

    def __init__(self, pytester: pytest.Pytester, *args: str, workers: int = 2) -> None:
        self.directory = pytester.path
        self.temporary = pytester.mkdir("tmp")
        self.output_file = pytester.path / "output.txt"
        self.mark = str(pytester.path)
        environ = {**os.environ, MARK: self.mark, "TMPDIR": str(self.temporary)}
        if not any(arg.startswith("--forkd-keep") for arg in args):
            environ.pop("XDG_RUNTIME_DIR", None)
        command = [
            *(sys.executable, "-m", "pytest", "-p", "xdist", "-p", "forkd"),
            *(f"--forkd-workers={workers}", "--forkd-keep=0", *args),
        ]
        with open(self.output_file, "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> BackgroundRun:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Whatever a test found, nothing goes on after it."""
        self.process.kill()
        self.process.wait()
        for line in processes_of(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.partition(":")[0]), signal.SIGKILL)

    def wait_for(self, *names: str) -> None:
        """Wait for files in the run's directory."""
        missing = list(names)

        def all_there() -> bool:
            missing[:] = [name for name in names if not (self.directory / name).exists()]
            return not missing or self.process.poll() is not None

        wait_until(all_there)
        assert not missing, f"no {missing}: {self.output}"

    def interrupt(self, *, everybody: bool) -> None:
        """Send SIGINT, to all processes of the group as a terminal does, or to the controller."""
        if everybody:
            os.killpg(self.process.pid, signal.SIGINT)
        else:
            self.process.send_signal(signal.SIGINT)

    def wait(self, limit: float) -> int:
        """The run's exit code, at most ``limit`` seconds from now."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the run goes on: {processes_of(self.mark)}\n{self.output}")

    @property
    def output(self) -> str:
        """What the run has written so far."""
        return self.output_file.read_text(errors="replace")

    def lines(self, name: str) -> list[str]:
        """The lines of a file that the run's tests write; none if there is no such file."""
        path = self.directory / name
        return path.read_text().splitlines() if path.exists() else []

    def left(self, limit: float) -> list[str]:
        """What is left of the run after ``limit`` seconds: processes, files in TMPDIR."""
        wait_until(lambda: not processes_of(self.mark), limit)
        files = [str(path) for path in self.temporary.rglob("pytest-forkd-*")]
        return processes_of(self.mark) + files
