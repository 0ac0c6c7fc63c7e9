"""How a run takes the loss of its collector, or of all that import a file that ends them."""

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
    """The collector died twice; there is no third try."""


class Collecting(Protocol):
    """How collectors are asked; :class:`~.collector_answers.CollectorAnswers` does that.

    :ivar level_asked: the warm level that the last one was asked for.
    """

    level_asked: str

    def begin(self, level: str) -> None:
        """Ask for a collector."""

    def await_answer(self) -> dict[str, Any]:
        """The collector's next answer."""

    def take_collection(
        self, warm: dict[str, Any], nodes: list[ForkdWorkerController]
    ) -> list[ForkdWorkerController]:
        """Take what a collector has found."""


class CollectorLosses:
    """Has another collector made, once, and other workers in the place of those that go with one.

    :param run: whose collector it is.
    :param ends: takes the ends of single workers.
    """

    def __init__(self, run: Run, ends: WorkerEnds) -> None:
        self._run = run
        self._ends = ends
        self._losses = 0
        self.deadly = DeadlyFiles(run.config.rootpath)

    def worker_exited(self, node: ForkdWorkerController, collecting: Collecting) -> None:
        """A worker has ended; at level imports, maybe because of a file that all are to import."""
        end, nodes = node.end, self._run.nodes
        if end is None or node.ids is not None or not end.importing or node.down:
            self._ends.exited(node)
            return
        others = [other for other in nodes.nodes.values() if other.ids is not None]
        try:
            line = None if others else self.deadly.blame(end)
        except (pytest.UsageError, pytest.Session.Interrupted):
            nodes.kill_workers()  # they are importing it, too, and have nothing to undo
            raise
        if line is None:
            self._ends.exited(node)
            return
        nodes.kill_workers()
        lost = list(dict.fromkeys([node, *nodes.lose_collector(line)]))
        for each in lost:
            each.mark_down()  # they are replaced here, and not once more when their ends are told
        self._run.report_line(f"\nforkd: {line}; starting again without it")
        self._replace_collector(line, lost, collecting, told=True)

    def collector_lost(
        self,
        reason: str,
        nodes: list[ForkdWorkerController],
        end: WorkerEnd | None,
        collecting: Collecting,
    ) -> None:
        """The collector died: start another one, once, and replace all workers.

        :param nodes: those that have died with it.
        :raises CollectorLost: if it is not the first, or if no other can be had.
        """
        run = self._run
        # Those that had died before have been replaced when that was told.
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
        """Start another collector, and workers in the place of those that have gone.

        :param told: the user knows already why, and is not told for each worker.
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
