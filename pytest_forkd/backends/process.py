"""Workers that are forks of a collector, which is a fork of a parent process.

Linux, macOS and other systems with ``fork(2)``. Nothing to install; isolation is that between
processes.
"""

from __future__ import annotations

import contextlib
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
from pytest_forkd.snapshots.fingerprint import fingerprint
from pytest_forkd.snapshots.plan import Plan
from pytest_forkd.snapshots.store import Store, StoreError, socket_bases

__all__ = ["ProcessBackend", "describe_exit", "runtime_directory"]

#: Seconds for the parent to import pytest and what is to be preloaded.
_HELLO_TIMEOUT = 300.0
#: Seconds for a process that has been told to end to do so.
_END_TIMEOUT = 5.0
#: Seconds for a collector that is interrupted to undo what it has configured.
_INTERRUPT_TIMEOUT = 2.0
#: A parent that was found to be stale is replaced; one that is stale at once is not, for ever.
_MAX_ATTEMPTS = 3
#: Characters of what a parent said before it died.
_MAX_LOG = 2000


def runtime_directory() -> Path:
    """Make a private directory (mode 0700) for a run's socket.

    In ``XDG_RUNTIME_DIR`` if that is set, else where temporary files go.

    :raises BackendError: if none can be made or written to.
    """
    error: OSError | None = None
    for base in socket_bases(len("/pytest-forkd-12345678")):
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


class ProcessBackend(Backend):
    """The ``process`` backend.

    :param plan: what the parent is to import.
    :param keep: seconds for which the parent is kept after a run; 0 for one that ends with it.
    """

    name = "process"
    shares_files = True

    def __init__(self, plan: Plan, keep: float) -> None:
        self._plan = plan
        self._keep = keep
        #: How the parent came about, in a few words.
        self._origin = ""
        self._process: subprocess.Popen[bytes] | None = None
        #: What a parent that is kept writes to; its directory is the parent's own.
        self._log: Path | None = None
        self._directory: Path | None = None
        self._control: FrameSocket | None = None
        self._hello: dict[str, Any] | None = None
        self._early: tuple[dict[str, Any], FrameSocket] | None = None
        self._collector: FrameSocket | None = None
        self._collector_pid: int | None = None
        self._collector_status: int | None = None
        self._ending = False
        self._events: EventQueue | None = None
        self._listener: Listener | None = None

    # -- the parent ----------------------------------------------------------------------------

    def start(self) -> None:
        self._hello = None
        self._origin = self._origin or "parent made"
        if self._keep:
            try:
                self._start_kept()
            except (StoreError, OSError) as exc:
                self._keep = 0.0
                self._origin += f" and not kept: {exc}"
        if not self._keep:
            self._directory = runtime_directory()
            self._control = self._launch(self._directory)
            # Nobody else is to connect, so nothing of the run needs a name any more.
            shutil.rmtree(self._directory, ignore_errors=True)
        assert self._control is not None
        with contextlib.suppress(OSError):  # its end is noticed where its greeting is awaited
            self._control.send({"open": {"keep": self._keep}})

    def _start_kept(self) -> None:
        """Connect to a kept parent, or make one that is kept."""
        plan = self._plan
        store = Store.find()
        store.prepare()
        mark = fingerprint(plan.project, plan.preload, plan.path, os.environ)
        self._control = store.connect(mark)
        if self._control is not None:
            return
        with store.lock():
            self._control = store.connect(mark)  # another run may have been faster
            if self._control is None:
                entry = store.make_entry(mark)
                try:
                    self._control = self._launch(entry)
                except BaseException:
                    shutil.rmtree(entry, ignore_errors=True)
                    raise

    def _launch(self, directory: Path) -> FrameSocket:
        """Start a parent that listens in ``directory``; returns a connection to it."""
        path = str(directory / "parent")
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # Bound here and handed on: the first connection cannot come too early.
            listener.bind(path)
            listener.listen(16)
            plan = stack.enter_context(tempfile.TemporaryFile())
            self._plan.write(plan.fileno())
            package = Path(__file__).resolve().parents[1]
            command = [
                sys.executable,
                *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                str(package / "parent" / "__main__.py"),
                f"--listen-fd={listener.fileno()}",
                f"--plan-fd={plan.fileno()}",
                f"--directory={directory}",
            ]
            output: Any = None
            if self._keep:
                # Who reads this run's output waits until nobody has it open any more.
                self._log = directory / "log"
                output = stack.enter_context(open(self._log, "wb"))
                command.append(f"--keep={self._keep}")
            else:
                command.append(f"--controller={os.getpid()}")
            try:
                # In a session of its own: Ctrl-C on a terminal reaches the controller alone, which
                # interrupts each worker once, and a test that asks the terminal gets an error.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[listener.fileno(), plan.fileno()],
                    start_new_session=True,
                )
            except OSError as exc:
                self.close()
                raise BackendError(f"cannot start the parent process: {exc}") from exc
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        return FrameSocket(sock)

    def describe_parent(self) -> str:
        if self._keep and self._process is None:
            self._connect()
        return self._origin

    def early_imports(self) -> tuple[list[str], dict[str, str]]:
        if self._hello is None:
            return [], {}
        return self._hello["scanned"], self._hello["skipped"]

    def learn(self, modules: list[str]) -> None:
        if self._keep and self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send({"learn": modules})

    def rinfo(self) -> dict[str, Any]:
        return {
            "executable": sys.executable,
            "version_info": tuple(sys.version_info),
            "platform": sys.platform,
            "cwd": os.getcwd(),
            "pid": self._parent_pid(),
        }

    def _parent_pid(self) -> int | None:
        if self._process is not None:
            return self._process.pid
        return int(self._hello["hello"]) if self._hello is not None else None

    def _connect(self) -> FrameSocket:
        """The connection to a parent that has said hello, and is one that this run may use."""
        for _attempt in range(_MAX_ATTEMPTS):
            if self._control is None:
                self.start()
            assert self._control is not None
            if self._hello is not None:
                return self._control
            why = self._greet(self._control)
            if why is None:
                return self._control
            # A kept one that has changed, or that was just ending. Nobody finds it any more.
            self._drop_parent()
            self._origin = f"parent remade: {why}"
        raise BackendError(f"no parent process stays: {self._origin}")

    def _greet(self, control: FrameSocket) -> str | None:
        """Take the parent's greeting; returns why it is not to be used."""
        try:
            hello = control.receive(_HELLO_TIMEOUT).message
        except TimeoutError:
            raise BackendError(
                f"the parent process was not ready within {_HELLO_TIMEOUT:g} seconds; "
                "does a module in --forkd-preload wait for something?"
            ) from None
        except (EOFError, FrameError):
            if self._process is None:
                return "the one that was kept has just ended"
            raise BackendError(f"the parent process {self._parent_end()}") from None
        if hello["stale"] is not None:
            return str(hello["stale"])
        failures = hello["preload_failures"]
        if failures:
            name, why = next(iter(failures.items()))
            raise BackendError(
                f"--forkd-preload: cannot import {name!r}: {why}\n"
                "Correct the name, install the module, or drop it from the option "
                "or the ini value forkd_preload."
            )
        if self._process is None:
            age = hello["age"]
            self._origin = "parent shared" if age is None else f"kept parent ({_duration(age)} old)"
        self._hello = hello
        return None

    def _parent_end(self) -> str:
        if self._process is None:
            return "closed its connection"
        try:
            code = self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        end = f"ended with {describe_exit(code)}"
        if self._log is not None:
            with contextlib.suppress(OSError):
                said = self._log.read_text("utf-8", "replace").strip()
                shutil.rmtree(self._log.parent, ignore_errors=True)
                if said:
                    end += f"; it said:\n{said[-_MAX_LOG:]}"
        return end

    # -- the collector -------------------------------------------------------------------------

    def begin(self, request: RunRequest, events: EventQueue, listener: Listener) -> None:
        self._events, self._listener = events, listener
        if self._collector is not None:
            events.unregister(self._collector)
            self._collector.close()
        control = self._connect()
        events.unregister(control)
        events.register(control, self._read_control)
        self._ending = False
        self._collector_pid = self._collector_status = None
        self._collector = self._take_early(request)
        if self._collector is None:
            self._collector = self._ask_for_collector(control, request.to_json())
        events.register(self._collector, self._read_collector)
        self._read_control()  # what has come with the greeting makes nobody look again

    def start_collector(self, request: RunRequest) -> None:
        if self._control is not None and self._early is None:
            early = request.early_part()
            with contextlib.suppress(BackendError):  # begin() says what is wrong
                collector = self._ask_for_collector(self._control, {"early": True, **early})
                self._early = early, collector

    def _take_early(self, request: RunRequest) -> FrameSocket | None:
        """The collector that was started early, if it began with what is true now."""
        if self._early is None:
            return None
        (early, collector), self._early = self._early, None
        if request.level == "collection" and request.early_part() == early:
            with contextlib.suppress(OSError):
                collector.send({"request": request.to_json()})
                return collector
        collector.close()
        return None

    def _ask_for_collector(self, control: FrameSocket, request: dict[str, Any]) -> FrameSocket:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as stack:
            stderr = _real_stderr(stack)
            try:
                control.send({"collect": request}, [theirs.fileno(), stderr])
            except OSError:
                ours.close()
                raise BackendError(f"the parent process {self._parent_end()}") from None
        return FrameSocket(ours)

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
                    describe_exit(os.waitstatus_to_exitcode(status)),
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
            return f"the collector ended with {describe_exit(code)}"
        end = self._parent_end()
        self._drop_parent()
        return f"the parent process {end}"

    def _drop_parent(self) -> None:
        """Forget a parent that has died, so that the next ``begin`` starts one."""
        if self._events is not None and self._control is not None:
            self._events.unregister(self._control)
        if self._control is not None:
            self._control.close()
        if self._process is not None and self._process.poll() is None:
            _disown(self._process)
        self._drop_early()
        self._control = self._process = self._hello = None

    def _drop_early(self) -> None:
        if self._early is not None:
            self._early[1].close()
            self._early = None

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
            what = "does not listen" if isinstance(exc, TimeoutError) else "has gone"
            raise BackendError(f"the collector {what}: {exc}") from exc

    def interrupt(self) -> None:
        if self._collector is None or self._collector_pid is None:
            return
        if not self._ending:  # else it has answered, and is about to leave by itself
            self._ending = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._collector_pid, signal.SIGINT)
        self._wait_for_collector(_INTERRUPT_TIMEOUT)

    def ask_to_end(self) -> None:
        if self._collector is None or self._collector.eof or self._ending:
            return
        self._ending = True
        with contextlib.suppress(BackendError):
            self._ask({"end": {}})

    def end_run(self, timeout: float) -> None:
        self.ask_to_end()
        if self._collector is not None:
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
        self._drop_early()
        if self._collector is not None:
            if self._events is not None:
                self._events.unregister(self._collector)
            self._collector.close()
            self._collector = None
        if self._control is not None:
            if self._events is not None:
                self._events.unregister(self._control)
            if self._keep:
                self._release(self._control)
            self._control.close()
            self._control = None
        if self._process is not None:
            if self._log is not None and self._hello is None:
                # It was made for a run that came to nothing, such as one with bad options. Should
                # another one be waiting for it, that makes its own.
                self._process.terminate()
                _wait_or_kill(self._process)
                shutil.rmtree(self._log.parent, ignore_errors=True)
            elif self._keep:
                _disown(self._process)
            else:
                # It kills what descends from it as soon as its connection is closed.
                _wait_or_kill(self._process)
            self._process = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _release(self, control: FrameSocket) -> None:
        """Have the parent, which stays, end what is left of this run."""
        if self._hello is None:
            return  # it has started nothing
        deadline = time.monotonic() + _END_TIMEOUT
        try:
            control.send({"release": {}})
            released = False
            while not released:
                frame = control.receive(max(0.0, deadline - time.monotonic()))
                released = "released" in frame.message
        except (OSError, EOFError, FrameError):
            # The end of a parent is the end of what descends from it.
            pid = self._parent_pid()
            if pid is not None and not control.eof:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _disown(process: subprocess.Popen[bytes]) -> None:
    """Let a process live on without the warning that nobody has waited for it."""
    process.returncode = 0


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def describe_exit(code: int) -> str:
    """A process's exit code (negative: a signal) in words."""
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
