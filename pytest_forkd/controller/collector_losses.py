"""How the session takes the loss of its collector, or of all that import a file that ends them."""

from __future__ import annotations

import abc
from typing import Any

import pytest

from pytest_forkd.backends.base import BackendError, WorkerEnd
from pytest_forkd.channel.bounds import line as one_line
from pytest_forkd.controller.deadly_files import DeadlyFiles
from pytest_forkd.controller.nodes import ForkdNodeManager, ForkdWorkerController
from pytest_forkd.controller.worker_ends import RunLost, WorkerEnds
from pytest_forkd.scheduling.xdist_repair import run_again

__all__ = ["CollectorLosses", "CollectorLost"]


class CollectorLost(RunLost):
    """The collector died twice; there is no third try."""


class CollectorLosses(WorkerEnds):
    """The part of the session that is about lost collectors.

    :param config: the controller's configuration.
    """

    nodemanager: ForkdNodeManager | None
    _level_asked: str

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config)
        #: The warm level in use: ``collection`` or ``imports``; ``None`` until it is settled.
        self.level: str | None = None
        self._collector_losses = 0
        self._deadly = DeadlyFiles(config.rootpath)

    @abc.abstractmethod
    def _begin(self, level: str) -> None:
        """Ask for a collector."""

    @abc.abstractmethod
    def _await_answer(self) -> dict[str, Any]:
        """The collector's next answer."""

    @abc.abstractmethod
    def _take_collection(
        self, warm: dict[str, Any], nodes: list[ForkdWorkerController]
    ) -> list[ForkdWorkerController]:
        """Take what a collector has found."""

    def worker_exited(self, node: ForkdWorkerController) -> None:
        """A worker has ended; at level imports, maybe because of a file that all are to import."""
        end = node.end
        assert self.nodemanager is not None
        if end is None or node.ids is not None or not end.importing or node.down:
            super().worker_exited(node)
            return
        others = [other for other in self.nodemanager.nodes.values() if other.ids is not None]
        try:
            line = None if others else self._deadly.blame(end)
        except (pytest.UsageError, pytest.Session.Interrupted):
            self.nodemanager.kill_workers()  # they are importing it, too, and have nothing to undo
            raise
        if line is None:
            super().worker_exited(node)
            return
        self.nodemanager.kill_workers()
        nodes = list(dict.fromkeys([node, *self.nodemanager.lose_collector(line)]))
        for each in nodes:
            each._down = True  # they are replaced here, and not once more when their ends are told
        self.report_line(f"\nforkd: {line}; starting again without it")
        self._replace_collector(line, nodes, told=True)

    def worker_collector_lost(
        self, reason: str, nodes: list[ForkdWorkerController], end: WorkerEnd | None = None
    ) -> None:
        """The collector died: start another one, once, and replace all workers."""
        assert self.nodemanager is not None
        # Those that had died before have been replaced when that was told.
        nodes = [node for node in nodes if not node.down]
        if self.level is not None and not nodes and not self.nodemanager.has_waiting:
            return  # every worker had finished
        line = self._deadly.blame(end) if end is not None and self.level is None else None
        if line is not None:
            self.report_line(f"\nforkd: {line}; starting again without it")
        else:
            self._collector_losses += 1
            if self._collector_losses > 1:
                raise CollectorLost(f"{reason}; so did the one before it")
            self.report_line(f"\nforkd: {reason}; starting another one")
        self._replace_collector(reason, nodes)

    def _replace_collector(
        self, reason: str, nodes: list[ForkdWorkerController], *, told: bool = False
    ) -> None:
        """Start another collector, and workers in the place of those that have gone.

        :param told: the user knows already why, and is not told for each worker.
        """
        level = self.level or self._level_asked
        try:
            self._begin(level)
        except BackendError as exc:
            raise CollectorLost(f"{reason}; no other can be started: {exc}") from exc
        if self.level is None:
            return
        answer = self._await_answer()
        if "warm" not in answer:
            why = one_line(str(answer))
            raise CollectorLost(f"{reason}; the one started instead could not collect: {why}")
        if self.level == "collection":
            self._take_collection(answer["warm"], [])
        assert self.nodemanager is not None
        self.nodemanager.spawn_nodes([])
        for node in nodes:
            node._down = True
            self.config.hook.pytest_testnodedown(node=node, error=None if told else reason)
            interrupted, more = self._take_out(node)
            if interrupted:
                run_again(self.sched, node, interrupted)
            if interrupted or self._is_missed(more):
                self._replace(node)
            self._active_nodes.discard(node)
            node.discard()
