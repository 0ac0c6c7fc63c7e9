"""The interface between the session and a backend."""

from __future__ import annotations

import abc
import signal
import socket
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.parent.plan import Plan

__all__ = [
    "Backend",
    "BackendError",
    "CollectorGone",
    "Listener",
    "RunRequest",
    "WorkerEnd",
    "describe_exit",
]


class BackendError(Exception):
    """A backend cannot do what it was asked for; the message says why and what to do."""


class CollectorGone(BackendError):
    """The collector has died; the listener is about to be told."""


@dataclass(frozen=True)
class RunRequest:
    """What a collector needs to know about a run.

    :ivar args: pytest's command line.
    :ivar cwd: the directory that pytest was started in.
    :ivar environ: the controller's environment.
    :ivar sys_path: the import path, as it was before any conftest changed it.
    :ivar mainargv: the controller's ``sys.argv``.
    :ivar sigint: whether Ctrl-C interrupts the controller (it does not under ``nohup ... &``).
    :ivar role: the first node's ``workerid``, ``workercount`` and ``testrunuid``.
    :ivar nodes: each node's ``workerinput``, packed (see ``channel.events.pack_object``).
    :ivar basetemp: the first node's base temporary directory.
    :ivar warm: the warm level that was asked for: ``auto``, ``collection`` or ``imports``.
    :ivar level: the warm level to try: ``collection`` or ``imports``.
    :ivar modules: third-party modules to import at level ``imports``.
    :ivar scan: whether to search test files and conftests for more of them.
    :ivar testpaths: where pytest looks for tests when the command line names no path.
    :ivar deadly: files that have ended the process that imported them, by path, with the error to
        report instead of importing them (``text`` and ``sections``).
    :ivar exclude: top-level packages that are the project's own, never imported early.
    :ivar skip: top-level packages that must not be imported early, with the reason; ``*`` is all.
    :ivar rewriting: which modules have their assertions rewritten (see ``parent.plan.Rewriting``).
    """

    args: list[str]
    cwd: str
    environ: dict[str, str]
    sys_path: list[str]
    mainargv: list[str]
    sigint: bool
    role: dict[str, Any]
    warm: str
    level: str
    nodes: list[str] = field(default_factory=list)
    basetemp: str | None = None
    modules: list[str] = field(default_factory=list)
    scan: bool = True
    testpaths: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    rewriting: dict[str, Any] | None = None
    skip: dict[str, str] = field(default_factory=dict)
    deadly: dict[str, dict[str, Any]] = field(default_factory=dict)

    def early_part(self) -> dict[str, Any]:
        """The fields that can be known, or guessed, before the controller is configured."""
        names = ("args", "cwd", "environ", "sys_path", "mainargv", "sigint", "role")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """The request as JSON-serializable fields."""
        return asdict(self)


class WorkerEnd(NamedTuple):
    """How a worker process ended.

    :ivar reason: in words, such as ``signal SIGSEGV`` or ``exit code 3``.
    :ivar clean: whether it ended with status 0.
    :ivar dump: what faulthandler wrote, if anything.
    :ivar out: what it had written to standard output since its last report.
    :ivar err: the same for standard error.
    :ivar importing: the file that it was importing, if any.
    :ivar abrupt: whether its last messages may be lost.
    :ivar unborn: whether no process was made, and another attempt would fail, too.
    :ivar blameless: whether its test did not cause its end, and so may run again elsewhere.
    """

    reason: str
    clean: bool = False
    dump: str = ""
    out: str = ""
    err: str = ""
    blameless: bool = False
    abrupt: bool = False
    importing: str = ""
    unborn: bool = False


def describe_exit(code: int) -> str:
    """A process's exit code (negative: a signal) in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


class Listener(Protocol):
    """What a backend reports to; called from the controller's main loop."""

    def on_collector_message(self, message: dict[str, Any]) -> None:
        """The collector has sent ``warm``, or why it has no collection, or was ``broken``."""

    def on_collector_lost(self, reason: str, end: WorkerEnd | None = None) -> None:
        """The collector or its parent has died unexpectedly; its workers die with it.

        :param end: how the collector ended and what it has left, if known.
        """

    def on_worker_exit(self, worker: str, end: WorkerEnd) -> None:
        """A worker's process has ended."""


class Backend(abc.ABC):
    """Makes workers by cloning.

    A backend is started once, serves one collector at a time, and is closed once. Its creator calls
    ``start`` and ``close``; the session calls the rest.
    """

    #: As in ``--forkd-backend``.
    name: str
    #: Whether controller and worker can lock the same file.
    can_lock_files: bool
    #: Whether the collector's messages may decide what later runs import early.
    trusted: bool = True
    #: If collecting takes at least these seconds, it is worthwhile to collect once for all workers.
    min_shared_collection_seconds: float = 0.0

    @abc.abstractmethod
    def start(self) -> None:
        """Begin to make a parent, without waiting for it.

        :raises BackendError: if that is impossible here.
        """

    @abc.abstractmethod
    def start_collector(self, request: RunRequest) -> None:
        """Start a collector early, while the controller is still being configured.

        :param request: a guess; if the request of :meth:`begin` differs, this collector is dropped.
        """

    @abc.abstractmethod
    def describe_parent(self) -> str:
        """How the parent came about, in a few words; empty if there is nothing to say."""

    @abc.abstractmethod
    def early_imports(self) -> tuple[list[str], dict[str, str]]:
        """What the parent has imported because test files name it, and what it must not import.

        :returns: names of modules; and top-level packages, each with the reason.
        """

    def take_another(self, plan: Plan) -> bool:
        """Use a parent that imports less for the next collector.

        :param plan: what that parent is to import.
        :returns: whether that is possible: false if this parent has imported nothing early, or if
            there is nothing else to clone from.
        """
        return False

    @abc.abstractmethod
    def learn(self, modules: list[str]) -> None:
        """Tell a kept parent which modules this run's collection has imported."""

    @abc.abstractmethod
    def rinfo(self) -> dict[str, Any]:
        """What ``gateway._rinfo()`` returns for a worker, even before the worker exists."""

    @abc.abstractmethod
    def begin(self, request: RunRequest, events: EventQueue, listener: Listener) -> None:
        """Start a collector for ``request``; its answers go to ``listener``.

        :raises BackendError: if there is no parent, or a module could not be preloaded.
        """

    @abc.abstractmethod
    def spawn(
        self,
        worker: str,
        workerinput: str,
        basetemp: str | None,
        channel: socket.socket,
        claims_fd: int,
    ) -> None:
        """Have a worker made; the caller still has to close ``channel`` and ``claims_fd``.

        :raises CollectorGone: if there is no collector any more.
        :raises BackendError: if no worker can be made.
        """

    @abc.abstractmethod
    def signal(self, worker: str, signum: int) -> None:
        """Send a signal to a worker, if it exists."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Interrupt a collector that has not answered yet, as Ctrl-C would, and wait a moment."""

    @abc.abstractmethod
    def ask_to_end(self) -> None:
        """Tell the collector to end once its workers have, without waiting for it.

        :meth:`end_run` does that, too, and waits; this lets the caller do something meanwhile.
        """

    @abc.abstractmethod
    def end_run(self, timeout: float) -> None:
        """Make no more workers, and wait until all workers and the collector have ended.

        :param timeout: seconds to wait at most; :meth:`close` kills what is left.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End everything at once, and leave nothing behind; safe to call twice."""

    def leftovers(self) -> list[str]:
        """After :meth:`close`: lines for the user about what could not be removed, and why."""
        return []
