"""Workers that are forks of a collector, which is a fork of a parent process.

Works on Linux, macOS and other systems with ``fork(2)``, without installing anything. Workers are
isolated from each other as processes are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from pytest_forkd.backends.base import (
    Backend,
    BackendError,
    CollectorGone,
    Listener,
    RunRequest,
    WorkerEnd,
    describe_exit,
)
from pytest_forkd.backends.process.launching import Keep
from pytest_forkd.backends.process.parents import Parent
from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.channel.frames import Frame, FrameError, FrameSocket
from pytest_forkd.parent.plan import Plan
from pytest_forkd.runtime.limits import which_limit
from pytest_forkd.runtime.process_tree import Process, end_tree

if TYPE_CHECKING:
    from pytest_forkd.channel.collector_messages import Collected

__all__ = ["ProcessBackend"]

#: Seconds for an interrupted collector to clean up.
_INTERRUPT_TIMEOUT = 2.0


class ProcessBackend(Backend):
    """The ``process`` backend.

    :param plan: what the parent is to import.
    :param keep: whether the parent is kept.
    """

    name = "process"
    can_lock_files = True

    def __init__(self, plan: Plan, keep: Keep) -> None:
        self._parent = Parent(plan, keep, self._note)
        #: Collectors that this run has started and has to end.
        self._collectors: dict[int, Process | None] = {}
        self._early: tuple[dict[str, Any], FrameSocket] | None = None
        self._collector: FrameSocket | None = None
        self._collector_pid: int | None = None
        self._collector_status: int | None = None
        self._collected: Collected | None = None
        self._collector_left: WorkerEnd | None = None
        self._ending = False
        self._events: EventQueue | None = None
        self._listener: Listener | None = None

    # -- the parent ----------------------------------------------------------------------------

    def start(self) -> None:
        self._parent.start()

    def describe_parent(self) -> str:
        return self._parent.describe()

    def early_imports(self) -> tuple[list[str], dict[str, str]]:
        hello = self._parent.hello
        return ([], {}) if hello is None else (hello["scanned"], hello["skipped"])

    def take_another(self, plan: Plan) -> bool:
        hello, control = self._parent.hello, self._parent.control
        if hello is not None and not hello["early"]:
            return False
        if self._events is not None and control is not None:
            self._events.unregister(control)
        self._drop_early()
        self._parent.replace(plan)
        return True

    def learn(self, modules: list[str]) -> None:
        self._parent.learn(modules)

    def rinfo(self) -> dict[str, Any]:
        return {
            "executable": sys.executable,
            "version_info": tuple(sys.version_info),
            "platform": sys.platform,
            "cwd": os.getcwd(),
            "pid": self._parent.pid,
        }

    # -- the collector -------------------------------------------------------------------------

    def begin(self, request: RunRequest, events: EventQueue, listener: Listener) -> None:
        self._events, self._listener = events, listener
        if self._collector is not None:
            events.unregister(self._collector)
            self._collector.close()
        before = self._parent.control
        control = self._parent.connect()
        if before is not control:
            self._drop_early()
            if before is not None:
                events.unregister(before)
        events.unregister(control)
        events.register(control, self._read_control)
        self._ending = False
        from pytest_forkd.channel.collector_messages import Collected  # the parent works meanwhile

        self._collected = Collected()
        self._collector_pid = self._collector_status = self._collector_left = None
        self._collector = self._take_early(request)
        if self._collector is None:
            self._collector = self._ask_for_collector(control, request.to_json())
        events.register(self._collector, self._read_collector)
        self._read_control()  # the selector does not report what was read with the greeting

    def start_collector(self, request: RunRequest) -> None:
        control = self._parent.control
        if control is not None and self._parent.is_confirmed and self._early is None:
            early = request.early_part()
            with contextlib.suppress(BackendError):  # begin() says what is wrong
                collector = self._ask_for_collector(control, {"early": True, **early})
                self._early = early, collector

    def _take_early(self, request: RunRequest) -> FrameSocket | None:
        """The collector that was started early, if the guess that it began with was right."""
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
                raise BackendError(f"the parent process {self._parent.end()}") from None
        return FrameSocket(ours)

    def _read_control(self) -> None:
        control = self._parent.control
        assert control is not None
        assert self._events is not None
        for frame in control.read_available():
            self._note(frame.message)
        if control.eof:
            self._events.unregister(control)
            # The parent has gone, so nothing else would end them.
            self._end_collectors()

    def _note(self, message: dict[str, Any]) -> None:
        """Note what the parent reports about collectors."""
        if "forked" in message:
            pid = self._collector_pid = int(message["forked"])
            self._collector_status = self._collector_left = None
            self._collectors[pid] = Process.running(pid)
        elif "exited" in message:
            self._collectors.pop(message["exited"], None)
            if message["exited"] == self._collector_pid:
                self._collector_status = message["status"]
                self._collector_left = _end(message)

    def _end_collectors(self) -> None:
        """Kill the collectors that this run has started, and all their descendants."""
        while self._collectors:
            _pid, process = self._collectors.popitem()
            if process is not None:
                end_tree(process)

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
            try:
                self._handle(frame.message)
            except FrameError as exc:
                self._collector.eof = True
                self._listener.on_collector_message({"broken": str(exc)})
                break
        if self._collector.eof:
            self._events.unregister(self._collector)
            if not self._ending:
                self._listener.on_collector_lost(self._collector_end(), self._collector_left)

    def _handle(self, message: dict[str, Any]) -> None:
        assert self._listener is not None
        if "broken" not in message:  # such a message does not come from the collector
            from pytest_forkd.channel.collector_messages import check_collected, only_entry

            assert self._collected is not None
            name, value = only_entry(message)
            message = {name: check_collected(name, value)}
            if self._collected.take(name, message[name]):
                return
        if "exit" in message:
            self._listener.on_worker_exit(message["exit"]["worker"], _end(message["exit"]))
        elif "fork_failed" in message:
            failed = message["fork_failed"]
            reason = f"fork failed: {failed['error']}{which_limit(failed['error'])}"
            self._listener.on_worker_exit(failed["worker"], WorkerEnd(reason, unborn=True))
        elif "forked" not in message:
            if not message.keys() & {"warm", "broken"}:
                self._ending = True  # it ends by itself
            self._listener.on_collector_message(message)

    def _collector_end(self) -> str:
        """How the collector, or the parent above it, ended."""
        deadline = time.monotonic() + 1.0
        control = self._parent.control
        assert control is not None
        while self._collector_status is None and not control.eof:
            if time.monotonic() > deadline:
                return "the collector closed its connection"
            time.sleep(0.002)
            self._read_control()
        if self._collector_status is not None:
            code = os.waitstatus_to_exitcode(self._collector_status)
            return f"the collector ended with {describe_exit(code)}"
        end = self._parent.end()
        self._drop_parent()
        return f"the parent process {end}"

    def _drop_parent(self) -> None:
        """Forget a parent that has died, so that the next ``begin`` starts one."""
        if self._events is not None and self._parent.control is not None:
            self._events.unregister(self._parent.control)
        self._drop_early()
        self._parent.drop()

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
                raise BackendError("there is no collector")
            self._collector.send(message, fds or [])
        except TimeoutError as exc:
            raise BackendError(f"the collector does not listen: {exc}") from exc
        except OSError as exc:
            raise CollectorGone(f"the collector has gone: {exc}") from exc

    def interrupt(self) -> None:
        if self._collector is None or self._collector_pid is None:
            return
        if not self._ending:  # else it has answered, and is about to end by itself
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
        control = self._parent.control
        if control is not None and self._events is not None:
            self._events.unregister(control)
        if not self._parent.close():
            self._end_collectors()


def _end(message: dict[str, Any]) -> WorkerEnd:
    """How a process ended, from the message of the process that has waited for it."""
    status = int(message["status"])
    return WorkerEnd(
        describe_exit(os.waitstatus_to_exitcode(status)),
        clean=status == 0,
        dump=message.get("dump", ""),
        out=message.get("out", ""),
        err=message.get("err", ""),
        importing=message.get("importing", ""),
    )


def _real_stderr(stack: contextlib.ExitStack) -> int:
    """A descriptor of the controller's standard error, for workers to write to."""
    try:
        os.fstat(2)
    except OSError:
        return stack.enter_context(open(os.devnull, "wb")).fileno()
    return 2
