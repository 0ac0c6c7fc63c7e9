"""The interface of a session for its parts; :class:`~.session.ForkdSession` implements it."""

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
    from pytest_forkd.controller.run_gain import RunGain
    from pytest_forkd.controller.suite_memory import WarmMemory
    from pytest_forkd.scheduling.durations import Durations

__all__ = ["Run", "RunLost"]


class RunLost(Exit):
    """The run cannot go on, through no fault of the suite; pytest shows this in one line."""

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
    gain: RunGain
    memory: WarmMemory

    @property
    def nodes(self) -> ForkdNodeManager:
        """The workers."""

    @property
    def active_nodes(self) -> set[Any]:
        """The nodes that the run waits for."""

    @property
    def pytest_session(self) -> pytest.Session | None:
        """pytest's own session, while there is one."""

    @property
    def max_worker_restart(self) -> int | None:
        """How many nodes may fail; ``None`` for any number."""

    def count_failed_node(self) -> bool:
        """Count a node that has failed; returns whether others may still be replaced."""

    def clone_node(self, node: ForkdWorkerController) -> Any:
        """Make a replacement for a node, which the run then waits for, too."""

    def triggershutdown(self) -> None:
        """Shut down all workers."""

    def stop_after_failures(self, report: Any) -> None:
        """Count a failed report, for ``--maxfail``."""

    def summarize(self, text: str) -> None:
        """Show this text at the end of the run."""

    def warn(self, text: str) -> None:
        """Have the summary show a warning."""

    def report_line(self, line: str) -> None:
        """Show a line, except with ``-q``."""

    def stop_dealing(self) -> None:
        """End the run early: workers do not begin the items in their queues."""

    def add_deselected(self, items: list[DeselectedItem]) -> None:
        """Count deselected tests in the summary."""

    # -- events of a worker, once they have been checked ---------------------------------------

    def worker_workerready(self, node: ForkdWorkerController, workerinfo: Any) -> None:
        """The worker's session has begun."""

    def worker_collectionfinish(self, node: ForkdWorkerController, ids: list[str]) -> None:
        """The worker is ready to be given tests."""

    def worker_unconfigured(self, node: ForkdWorkerController, usage: bool, text: str) -> None:
        """The worker could not configure itself."""

    def worker_collectreport(self, node: ForkdWorkerController, rep: pytest.CollectReport) -> None:
        """The worker could not collect something."""

    def worker_logstart(self, node: ForkdWorkerController, nodeid: str, location: Any) -> None:
        """The worker begins a test."""

    def worker_logfinish(self, node: ForkdWorkerController, nodeid: str, location: Any) -> None:
        """The worker is done with a test."""

    def worker_testreport(self, node: ForkdWorkerController, rep: pytest.TestReport) -> None:
        """A phase of a test has an outcome."""

    def worker_runtest_protocol_complete(
        self, node: ForkdWorkerController, item_index: int, duration: float
    ) -> None:
        """A test has been run; ``duration`` is in seconds."""

    def worker_unscheduled(self, node: ForkdWorkerController, indices: Any) -> None:
        """The worker gives tests back."""

    def worker_warning_recorded(
        self, warning_message: Any, when: str, nodeid: str, location: Any
    ) -> None:
        """A warning was caught."""

    def worker_wants(self, node: ForkdWorkerController, index: int | None) -> None:
        """The worker waits to be told which item comes after the one at ``index``."""
