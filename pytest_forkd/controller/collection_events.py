"""Checks what workers tell of their collections, and keeps what all of them have in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pytest_forkd.channel import messages
from pytest_forkd.channel.bounds import MAX_VALUES, shown
from pytest_forkd.channel.deselected import deselected_items
from pytest_forkd.controller.nodes import ForkdWorkerController
from pytest_forkd.controller.run import Run
from pytest_forkd.controller.worker_errors import BadEvent
from pytest_forkd.scheduling import SharedFixtures

__all__ = ["CollectionEvents", "Tell"]

#: A call that passes a checked event on to the session; ``None`` if there is nothing to do.
Tell = Callable[[], object] | None


class CollectionEvents:
    """The handlers of :class:`~.worker_events.WorkerEvents` for events before a worker's tests.

    :param run: the session, whose methods are called.
    :param deserialize: makes a report of its data.
    """

    def __init__(self, run: Run, deserialize: Callable[[dict[str, Any]], Any]) -> None:
        self._run = run
        self._deserialize = deserialize
        #: The ids of the items, as all workers have them; ``None`` until they are known.
        self.ids: list[str] | None = None
        #: Which fixtures they share.
        self.fixtures = SharedFixtures()
        #: Whether workers collect for themselves.
        self.workers_collect = False
        self._deselecting: ForkdWorkerController | None = None
        self._deselected = 0

    def take_fixtures(self, table: Any) -> None:
        """Remember which fixtures items share.

        :raises BadEvent: if the table is invalid.
        """
        try:
            self.fixtures = SharedFixtures.from_json(table, len(self.ids or ()))
        except ValueError as exc:
            raise BadEvent(str(exc)) from exc

    def on_report(self, node: ForkdWorkerController, event: messages.CollectReport) -> Tell:
        if node.ids is not None:
            raise BadEvent("it has collected already")
        from pytest_forkd.channel.report_schema import check_report  # most runs have no error

        data = check_report(event.data, of_test=False)
        report = self._deserialize(data)
        if not isinstance(report, pytest.CollectReport) or report.passed:
            raise BadEvent("not a collection report")
        return partial(self._run.worker_collectreport, node, report)

    def on_deselected(self, node: ForkdWorkerController, event: messages.Deselected) -> Tell:
        # Every worker that collects for itself deselects the same items.
        if self._deselecting not in (None, node):
            return None
        self._deselecting = node
        self._deselected += len(event.items)
        if self._deselected > MAX_VALUES:
            raise BadEvent(f"more than {MAX_VALUES} tests")
        return partial(self._run.add_deselected, deselected_items(event.items))

    def on_ready(self, node: ForkdWorkerController, event: messages.Ready) -> Tell:
        if node.ready_at is not None:
            raise BadEvent("it has said so before")
        node.ready_at = time.monotonic()
        info: Any = {
            name: shown(value) if isinstance(value, str) else value
            for name, value in event.info.items()
        }
        sched = self._run.sched
        if self.workers_collect and sched is not None and sched.collection_is_completed:
            # A replacement: schedulers must get it and its collection at the same time.
            node.ready = info
            return None
        if self.ids is None or self.workers_collect:
            return partial(self._run.worker_workerready, node, info)
        node.ids = self.ids
        return partial(self._join, node, info, self.ids)

    def _join(self, node: ForkdWorkerController, info: Any, ids: list[str]) -> None:
        if info is not None:
            self._run.worker_workerready(node, info)
        self._run.worker_collectionfinish(node, ids)

    def on_ids(self, node: ForkdWorkerController, event: messages.Ids) -> Tell:
        self._check_collecting(node)
        node.collected += event.ids
        if len(node.collected) > MAX_VALUES:
            raise BadEvent(f"more than {MAX_VALUES} tests")
        return None

    def on_collection(self, node: ForkdWorkerController, event: messages.Collection) -> Tell:
        self._check_collecting(node)
        ids = node.collected + event.ids
        node.collected = []
        fixtures = event.fixtures
        if self.ids is None:
            table = SharedFixtures.from_json(fixtures, len(ids))
            self.ids = ids
            self.fixtures = table
            assert node.ready_at is not None
            self._run.memory.remember_seconds(time.monotonic() - node.ready_at)
        elif fixtures is not None and ids == self.ids:
            self.take_fixtures(fixtures)
        node.ids = self.ids if ids == self.ids else ids
        node.heard = 0
        return partial(self._join, node, node.ready, node.ids)

    def _check_collecting(self, node: ForkdWorkerController) -> None:
        if not self.workers_collect or node.ready_at is None or node.ids is not None:
            raise BadEvent("no collection was asked for")
