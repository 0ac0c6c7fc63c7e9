"""Workers that are forks of a collector, which is a fork of a parent process.

Linux, macOS and other systems with ``fork(2)``. Nothing to install; isolation is that between
processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pytest_forkd.backends.base import Backend, BackendError, Listener, RunRequest, WorkerEnd
from pytest_forkd.channel.frames import Frame, FrameError, FrameSocket
from pytest_forkd.channel.gateway import EventQueue

__all__ = ["ProcessBackend", "runtime_directory"]

#: Seconds for the parent to import pytest and what is to be preloaded.
_HELLO_TIMEOUT = 300.0
#: Seconds for a process that has been told to end to do so.
_END_TIMEOUT = 5.0
#: Seconds for a collector that is interrupted to undo what it has configured.
_INTERRUPT_TIMEOUT = 2.0
#: ``sun_path`` of unix(7), less the terminating null byte and the name of the socket.
_MAX_DIRECTORY_LENGTH = 107 - len("/parent")


def runtime_directory() -> Path:
    """Make a private directory (mode 0700) for a run's socket.

    In ``XDG_RUNTIME_DIR`` if that is set, else where temporary files go.

    :raises BackendError: if none can be made or written to.
    """
    bases = [os.environ.get("XDG_RUNTIME_DIR"), _temporary_directory(), "/tmp"]  # noqa: S108
    error: OSError | None = None
    for base in bases:
        if not base or len(base) + len("/pytest-forkd-12345678") > _MAX_DIRECTORY_LENGTH:
            continue
        try:
            path = Path(tempfile.mkdtemp(prefix="pytest-forkd-", dir=base))
        except OSError as exc:
            error = error or exc
            continue
        try:
            (path / "probe").write_bytes(b"\0" * 4096)  # a full disk may still take a directory
            (path / "probe").unlink()
        except OSError as exc:
            error = error or exc
            shutil.rmtree(path, ignore_errors=True)
            continue
        return path
    reason = f": {error.strerror}: {error.filename}" if error is not None else ""
    raise BackendError(
        f"cannot write to a temporary directory{reason}\n"
        "Set TMPDIR to a directory with free space that you may write to."
    )


def _temporary_directory() -> str | None:
    try:
        return tempfile.gettempdir()
    except OSError:
        return None


class ProcessBackend(Backend):
    """The ``process`` backend.

    :param preload: modules for the parent to import before anything else.
    :param path: where to look for them first.
    """

    name = "process"
    shares_files = True

    def __init__(self, preload: list[str], path: list[str]) -> None:
        self._preload = preload
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self._control: FrameSocket | None = None
        self._greeted = False
        self._collector: FrameSocket | None = None
        self._collector_pid: int | None = None
        self._collector_status: int | None = None
        self._ending = False
        self._events: EventQueue | None = None
        self._listener: Listener | None = None

    # -- the parent ----------------------------------------------------------------------------

    def start(self) -> None:
        self._directory = runtime_directory()
        path = str(self._directory / "parent")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # Bound here and handed on: the first connection cannot come too early.
            listener.bind(path)
            listener.listen(4)
            package = Path(__file__).resolve().parents[1]
            command = [
                sys.executable,
                *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                str(package / "parent" / "__main__.py"),
                f"--listen-fd={listener.fileno()}",
                f"--controller={os.getpid()}",
                f"--directory={self._directory}",
                f"--preload={json.dumps(self._preload)}",
                f"--path={json.dumps(self._path)}",
            ]
            try:
                # In a session of its own: Ctrl-C on a terminal reaches the controller alone, which
                # interrupts each worker once, and a test that asks the terminal gets an error.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,
                )
            except OSError as exc:
                self.close()
                raise BackendError(f"cannot start the parent process: {exc}") from exc
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        self._control = FrameSocket(sock)
        # Nobody else is to connect, so nothing of the run needs a name any more.
        shutil.rmtree(self._directory, ignore_errors=True)

    def rinfo(self) -> dict[str, Any]:
        return {
            "executable": sys.executable,
            "version_info": tuple(sys.version_info),
            "platform": sys.platform,
            "cwd": os.getcwd(),
            "pid": self._process.pid if self._process is not None else None,
        }

    def _connect(self) -> FrameSocket:
        """The connection to a parent that has said hello."""
        if self._control is None:
            self.start()
        assert self._control is not None
        if self._greeted:
            return self._control
        try:
            hello = self._control.receive(_HELLO_TIMEOUT).message
        except TimeoutError:
            raise BackendError(
                f"the parent process was not ready within {_HELLO_TIMEOUT:g} seconds; "
                "does a module in --forkd-preload wait for something?"
            ) from None
        except (EOFError, FrameError):
            raise BackendError(f"the parent process {self._parent_end()}") from None
        failures = hello.get("preload_failures")
        if failures:
            name, why = next(iter(failures.items()))
            raise BackendError(
                f"--forkd-preload: cannot import {name!r}: {why}\n"
                "Correct the name, install the module, or drop it from the option "
                "or the ini value forkd_preload."
            )
        self._greeted = True
        return self._control

    def _parent_end(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"ended with {_describe(code)}"

    # -- the collector -------------------------------------------------------------------------

    def begin(self, request: RunRequest, events: EventQueue, listener: Listener) -> None:
        self._events, self._listener = events, listener
        if self._collector is not None:
            events.unregister(self._collector)
            self._collector.close()
        control = self._connect()
        events.unregister(control)
        events.register(control, self._read_control)
        ours, theirs = socket.socketpair()
        self._ending = False
        self._collector_pid = self._collector_status = None
        with theirs, contextlib.ExitStack() as stack:
            stderr = _real_stderr(stack)
            try:
                control.send(request.to_json(), [theirs.fileno(), stderr])
            except OSError:
                ours.close()
                raise BackendError(f"the parent process {self._parent_end()}") from None
        self._collector = FrameSocket(ours)
        events.register(self._collector, self._read_collector)

    def _read_control(self) -> None:
        assert self._control is not None
        assert self._events is not None
        for frame in self._control.read_available():
            if "forked" in frame.message:
                self._collector_pid = frame.message["forked"]
            elif frame.message.get("exited") == self._collector_pid:
                self._collector_status = frame.message["status"]
        if self._control.eof:
            self._events.unregister(self._control)

    def _read_collector(self) -> None:
        assert self._collector is not None
        assert self._events is not None
        assert self._listener is not None
        try:
            frames = self._collector.read_available()
        except FrameError as exc:
            self._collector.eof = True
            frames = [Frame({"broken": str(exc)}, [])]
        for frame in frames:
            self._handle(frame.message)
        if self._collector.eof:
            self._events.unregister(self._collector)
            if not self._ending:
                self._listener.on_collector_lost(self._collector_end())

    def _handle(self, message: dict[str, Any]) -> None:
        assert self._listener is not None
        if "exit" in message:
            end = message["exit"]
            status = int(end["status"])
            self._listener.on_worker_exit(
                end["worker"],
                WorkerEnd(
                    _describe(os.waitstatus_to_exitcode(status)),
                    clean=status == 0,
                    dump=end.get("dump", ""),
                    out=end.get("out", ""),
                    err=end.get("err", ""),
                ),
            )
        elif "fork_failed" in message:
            failed = message["fork_failed"]
            self._listener.on_worker_exit(
                failed["worker"], WorkerEnd(f"fork failed: {failed['error']}")
            )
        elif "forked" not in message:
            if not message.keys() & {"warm", "broken"}:
                self._ending = True  # it leaves by itself
            self._listener.on_collector_message(message)

    def _collector_end(self) -> str:
        """How the collector, or the parent above it, ended."""
        deadline = time.monotonic() + 1.0
        assert self._control is not None
        while self._collector_status is None and not self._control.eof:
            if time.monotonic() > deadline:
                return "the collector closed its connection"
            time.sleep(0.002)
            self._read_control()
        if self._collector_status is not None:
            code = os.waitstatus_to_exitcode(self._collector_status)
            return f"the collector ended with {_describe(code)}"
        end = self._parent_end()
        self._drop_parent()
        return f"the parent process {end}"

    def _drop_parent(self) -> None:
        """Forget a parent that has died, so that the next ``begin`` starts one."""
        if self._events is not None and self._control is not None:
            self._events.unregister(self._control)
        if self._control is not None:
            self._control.close()
        self._control = self._process = None
        self._greeted = False

    # -- workers -------------------------------------------------------------------------------

    def spawn(
        self,
        worker: str,
        workerinput: str,
        basetemp: str | None,
        channel: socket.socket,
        claims_fd: int,
    ) -> None:
        request = {"worker": worker, "workerinput": workerinput, "basetemp": basetemp}
        self._ask({"fork": request}, [channel.fileno(), claims_fd])

    def signal(self, worker: str, signum: int) -> None:
        with contextlib.suppress(BackendError):
            self._ask({"signal": {"worker": worker, "signum": signum}})

    def _ask(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            if self._collector is None:
                raise OSError("no collector")
            self._collector.send(message, fds or [])
        except OSError as exc:
            raise BackendError(f"the collector has gone: {exc}") from exc

    def interrupt(self) -> None:
        if self._collector is None or self._collector_pid is None:
            return
        if not self._ending:  # else it has answered, and is about to leave by itself
            self._ending = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._collector_pid, signal.SIGINT)
        self._wait_for_collector(_INTERRUPT_TIMEOUT)

    def end_run(self, timeout: float) -> None:
        if self._collector is None or self._collector.eof:
            return
        self._ending = True
        with contextlib.suppress(BackendError):
            self._ask({"end": {}})
        self._wait_for_collector(timeout)

    def _wait_for_collector(self, timeout: float) -> bool:
        """Handle events until the collector has gone; false if it has not in time."""
        assert self._events is not None
        assert self._collector is not None
        deadline = time.monotonic() + timeout
        while not self._collector.eof:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            self._events.poll(remaining)
        return True

    def close(self) -> None:
        for connection in (self._collector, self._control):
            if connection is not None:
                if self._events is not None:
                    self._events.unregister(connection)
                connection.close()
        self._collector = self._control = None
        if self._process is not None:
            # It kills what descends from it as soon as its connection is closed.
            try:
                self._process.wait(_END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _real_stderr(stack: contextlib.ExitStack) -> int:
    """A descriptor for what workers write to standard error: the controller's own."""
    try:
        os.fstat(2)
    except OSError:
        return stack.enter_context(open(os.devnull, "wb")).fileno()
    return 2
