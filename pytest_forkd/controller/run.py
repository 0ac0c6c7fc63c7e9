"""What the parts of a session know of it; :class:`~.session.ForkdSession` is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_forkd.backends.base import Listener
from pytest_forkd.compat.pytest import Exit

if TYPE_CHECKING:
    from pytest_forkd.backends.base import Backend
    from pytest_forkd.channel.deselected import DeselectedItem
    from pytest_forkd.controller.node_manager import ForkdNodeManager
    from pytest_forkd.controller.nodes import ForkdWorkerController
    from pytest_forkd.controller.suite_memory import WarmMemory
    from pytest_forkd.scheduling.durations import Durations

__all__ = ["Run", "RunLost"]


class RunLost(Exit):
    """The run cannot go on, for no fault of the suite's; pytest shows this in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, returncode=pytest.ExitCode.INTERNAL_ERROR)


class Run(Listener, Protocol):
    """A distributed run.

    :ivar sched: xdist's scheduler, or forkd's; ``None`` before there is one.
    :ivar shouldstop: why no more tests are to begin, or ``False``.
    :ivar level: the warm level in use: ``collection`` or ``imports``; ``None`` until it is settled.
    """

    config: pytest.Config
    backend: Backend
    sched: Any
    terminal: Any
    shuttingdown: bool
    shouldstop: bool | str
    level: str | None
    durations: Durations
    memory: WarmMemory

    @property
    def nodes(self) -> ForkdNodeManager:
        """The workers."""

    @property
    def active_nodes(self) -> set[Any]:
        """Those that the run waits for."""

    @property
    def pytest_session(self) -> pytest.Session | None:
        """pytest's own session, while there is one."""

    @property
    def max_worker_restart(self) -> int | None:
        """How many nodes may fail; ``None`` for any number."""

    def count_failed_node(self) -> bool:
        """Count a node that has failed; returns whether others may still be replaced."""

    def clone_node(self, node: ForkdWorkerController) -> Any:
        """Make a node in the place of another one, and wait for it, too."""

    def triggershutdown(self) -> None:
        """Shut down all workers."""

    def stop_after_failures(self, report: Any) -> None:
        """Count a failed report, for ``--maxfail``."""

    def summarize(self, text: str) -> None:
        """Say this at the end of the run."""

    def warn(self, text: str) -> None:
        """Have the summary show a warning."""

    def report_line(self, line: str) -> None:
        """Show a line, unless the user wants to see none (``-q``)."""

    def stop_dealing(self) -> None:
        """The run is to end: no worker begins what it has queued."""

    def add_deselected(self, items: list[DeselectedItem]) -> None:
        """Have the summary say how many tests were deselected."""

    # -- what a worker has said, once it is checked --------------------------------------------

    def worker_workerready(self, node: ForkdWorkerController, workerinfo: Any) -> None:
        """Its session has begun."""

    def worker_collectionfinish(self, node: ForkdWorkerController, ids: list[str]) -> None:
        """It is ready to be given tests."""

    def worker_unconfigured(self, node: ForkdWorkerController, usage: bool, text: str) -> None:
        """It was to configure itself, and could not."""

    def worker_collectreport(self, node: ForkdWorkerController, rep: pytest.CollectReport) -> None:
        """It could not collect something."""

    def worker_logstart(self, node: ForkdWorkerController, nodeid: str, location: Any) -> None:
        """It begins a test."""

    def worker_logfinish(self, node: ForkdWorkerController, nodeid: str, location: Any) -> None:
        """It has done with a test."""

    def worker_testreport(self, node: ForkdWorkerController, rep: pytest.TestReport) -> None:
        """A phase of a test has an outcome."""

    def worker_runtest_protocol_complete(
        self, node: ForkdWorkerController, item_index: int, duration: float
    ) -> None:
        """A test has been run, in so many seconds."""

    def worker_unscheduled(self, node: ForkdWorkerController, indices: Any) -> None:
        """It gives tests back."""

    def worker_warning_recorded(
        self, warning_message: Any, when: str, nodeid: str, location: Any
    ) -> None:
        """A warning was caught."""

    def worker_wants(self, node: ForkdWorkerController, index: int | None) -> None:
        """It waits to be told what comes after this item of its."""
