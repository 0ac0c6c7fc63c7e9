"""How a run handles the loss of its collector, or of all workers because of a deadly file."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from pytest_forkd.backends.base import BackendError, WorkerEnd
from pytest_forkd.channel.bounds import line as one_line
from pytest_forkd.controller.deadly_files import DeadlyFiles
from pytest_forkd.controller.nodes import ForkdWorkerController
from pytest_forkd.controller.run import Run, RunLost
from pytest_forkd.controller.worker_ends import WorkerEnds

__all__ = ["Collecting", "CollectorLosses", "CollectorLost"]


class CollectorLost(RunLost):
    """The collector has died twice, or cannot be replaced."""


class Collecting(Protocol):
    """Asks for collectors; implemented by :class:`~.collector_answers.CollectorAnswers`.

    :ivar level_asked: the warm level that was last asked for.
    """

    level_asked: str

    def begin(self, level: str) -> None:
        """Ask for a collector."""

    def await_answer(self) -> dict[str, Any]:
        """Wait for the collector's next answer."""

    def take_collection(
        self, warm: dict[str, Any], nodes: list[ForkdWorkerController]
    ) -> list[ForkdWorkerController]:
        """Take over a collection."""


class CollectorLosses:
    """Replaces a lost collector, once, and the workers that died with it.

    :param run: the run.
    :param ends: handles the ends of single workers.
    """

    def __init__(self, run: Run, ends: WorkerEnds) -> None:
        self._run = run
        self._ends = ends
        self._losses = 0
        self.deadly = DeadlyFiles(run.config.rootpath)

    def worker_exited(self, node: ForkdWorkerController, collecting: Collecting) -> None:
        """Handle a worker's end; at level imports, a file that all workers import may cause it."""
        end, nodes = node.end, self._run.nodes
        if end is None or node.ids is not None or not end.importing or node.down:
            self._ends.exited(node)
            return
        others = [other for other in nodes.nodes.values() if other.ids is not None]
        try:
            line = None if others else self.deadly.blame(end)
        except (pytest.UsageError, pytest.Session.Interrupted):
            nodes.kill_workers()  # they are importing it, too, and have nothing to clean up
            raise
        if line is None:
            self._ends.exited(node)
            return
        nodes.kill_workers()
        lost = list(dict.fromkeys([node, *nodes.lose_collector(line)]))
        for each in lost:
            each.mark_down()  # they are replaced here, so not again when their ends are reported
        self._run.report_line(f"\nforkd: {line}; starting again without it")
        self._replace_collector(line, lost, collecting, told=True)

    def collector_lost(
        self,
        reason: str,
        nodes: list[ForkdWorkerController],
        end: WorkerEnd | None,
        collecting: Collecting,
    ) -> None:
        """Handle the collector's death: start another one, once, and replace all workers.

        :param nodes: the nodes that have died with it.
        :raises CollectorLost: if this is the second loss, or if no other can be started.
        """
        run = self._run
        # Nodes that died earlier have been replaced already.
        nodes = [node for node in nodes if not node.down]
        if run.level is not None and not nodes and not run.nodes.has_waiting:
            return  # every worker had finished
        line = self.deadly.blame(end) if end is not None and run.level is None else None
        if line is not None:
            run.report_line(f"\nforkd: {line}; starting again without it")
        else:
            self._losses += 1
            if self._losses > 1:
                raise CollectorLost(f"{reason}; so did the one before it")
            run.report_line(f"\nforkd: {reason}; starting another one")
        self._replace_collector(reason, nodes, collecting)

    def _replace_collector(
        self,
        reason: str,
        nodes: list[ForkdWorkerController],
        collecting: Collecting,
        *,
        told: bool = False,
    ) -> None:
        """Start another collector, and replace the workers that have gone.

        :param told: whether the user has been told why, so that it is not repeated per worker.
        """
        run = self._run
        try:
            collecting.begin(run.level or collecting.level_asked)
        except BackendError as exc:
            raise CollectorLost(f"{reason}; no other can be started: {exc}") from exc
        if run.level is None:
            return
        answer = collecting.await_answer()
        if "warm" not in answer:
            why = one_line(str(answer))
            raise CollectorLost(f"{reason}; the one started instead could not collect: {why}")
        if run.level == "collection":
            collecting.take_collection(answer["warm"], [])
        run.nodes.spawn_nodes([])
        for node in nodes:
            node.mark_down()
            run.config.hook.pytest_testnodedown(node=node, error=None if told else reason)
            interrupted, more = self._ends.take_out(node)
            self._ends.make_up_for(node, interrupted, more)
            node.discard()
