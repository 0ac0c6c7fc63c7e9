"""Decodes and checks workers' messages, in the controller's main loop.

A worker is not trusted. A message is checked as a whole (:mod:`pytest_forkd.channel.messages`);
then each event is compared with what the worker was given, and only then does it reach the session
and its hooks. An invalid message ends the worker that sent it, and affects nothing else. An
exception in a plugin's hook is not the worker's fault, and ends the run as it would under xdist.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pytest_forkd.channel import messages
from pytest_forkd.channel.bounds import MAX_COLLECTED_BYTES, MAX_MESSAGE_BYTES, MAX_VALUES, shown
from pytest_forkd.channel.bounds import line as one_line
from pytest_forkd.channel.deselected import deselected_items
from pytest_forkd.channel.report_schema import check_report, check_warning, unpack_output
from pytest_forkd.channel.short_reports import PassedReports
from pytest_forkd.controller.nodes import ForkdWorkerController
from pytest_forkd.controller.received_warnings import rebuild_warning
from pytest_forkd.controller.run import Run
from pytest_forkd.controller.worker_errors import BadEvent, describe, show_internal_error
from pytest_forkd.scheduling import SharedFixtures

__all__ = ["WorkerEvents"]


#: How many events a worker may send between the starts of two tests: subtest reports, warnings.
_MAX_CHATTER = 500_000
#: Internal errors of one worker; each is shown.
_MAX_INTERNAL_ERRORS = 100

#: A call that passes a checked event on to the session; ``None`` if there is nothing to do.
_Tell = Callable[[], object] | None


class WorkerEvents:
    """Turns the messages of workers into calls of the session's ``worker_*`` methods.

    See :mod:`pytest_forkd.channel.events` for the events. A handler checks an event, updates the
    node, and returns the call that tells the session. An exception in the handler itself is the
    worker's fault; one in that call is not.

    :param run: the session, whose methods are called.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._config = run.config
        #: The ids of the items, as all workers have them; ``None`` until they are known.
        self.ids: list[str] | None = None
        #: Which fixtures they share.
        self.fixtures = SharedFixtures()
        self._deselecting: ForkdWorkerController | None = None
        self._deselected = 0
        #: Whether workers collect for themselves.
        self.workers_collect = False
        self._passed = PassedReports(
            self._config.hook.pytest_report_from_serializable, self._deserialize
        )
        self._handlers: dict[type, Callable[[ForkdWorkerController, Any], _Tell]] = {
            cls: getattr(self, f"_on_{name}") for cls, name in messages.names_of_events().items()
        }

    def receive(self, node: ForkdWorkerController, payload: bytes) -> None:
        """Handle one message, which holds several events."""
        if node.given_up:
            return
        node.heard += len(payload)
        limit = MAX_MESSAGE_BYTES if node.ids is not None else MAX_COLLECTED_BYTES
        if node.heard > limit:
            node.broke_protocol(f"more than {limit} bytes without another test")
            return
        try:
            events = messages.decode_events(payload)
        except Exception as exc:
            node.broke_protocol(describe(exc))
            return
        node.chatter += len(events)
        if node.chatter > _MAX_CHATTER:
            node.broke_protocol(f"more than {_MAX_CHATTER} events without another test")
            return
        handlers = self._handlers
        for event in events:
            if node.down or node.given_up:
                return  # ignore messages after the worker's end
            try:
                tell = handlers[type(event)](node, event)
            except Exception as exc:
                name = messages.names_of_events()[type(event)]
                node.broke_protocol(f"{name}: {describe(exc)}")
                return
            if tell is not None:
                tell()

    def take_collected(self, node: ForkdWorkerController, events: list[Any]) -> None:
        """Handle the collector's events: of the collection, or of a session that ended early.

        :param node: stands for all nodes that the collector collects for.
        :raises BadEvent: on an event that no collector of ours would send.
        """
        for event in events:
            if isinstance(event, messages.Finished):
                continue
            try:
                tell = self._handlers[type(event)](node, event)
            except Exception as exc:
                name = messages.names_of_events()[type(event)]
                raise BadEvent(f"{name}: {describe(exc)}") from exc
            if tell is not None:
                tell()

    def take_fixtures(self, table: Any) -> None:
        """Remember which fixtures items share.

        :raises BadEvent: if the table is invalid.
        """
        try:
            self.fixtures = SharedFixtures.from_json(table, len(self.ids or ()))
        except ValueError as exc:
            raise BadEvent(str(exc)) from exc

    def nodeid(self, node: ForkdWorkerController, index: int | None) -> str:
        """The id of a node's item, checked."""
        ids = node.ids
        if index is None or ids is None or not 0 <= index < len(ids):
            raise BadEvent(f"no item has the index {index}")
        return ids[index]

    def _current(self, node: ForkdWorkerController) -> str:
        """The id of the item that a node runs, or that it ran last."""
        if node.latest is None:
            raise BadEvent("it has run nothing")
        return self.nodeid(node, node.latest)

    # -- tests ---------------------------------------------------------------------------------

    def _on_start(self, node: ForkdWorkerController, event: messages.Start) -> _Tell:
        index = event.index
        nodeid = self.nodeid(node, index)
        if index not in node.given:
            raise BadEvent(f"it was not given {nodeid!r}")
        if node.running is not None:
            raise BadEvent(f"it has not completed {self.nodeid(node, node.running)!r}")
        del node.given[index]
        node.chatter = node.heard = 0
        node.running = node.latest = index
        node.begun.add(index)
        node.location = event.location
        node.held.clear()
        node.passed = None
        return partial(self._run.worker_logstart, node, nodeid, event.location)

    def _on_logstart(self, node: ForkdWorkerController, event: messages.Logstart) -> _Tell:
        self._check_current(node, event.nodeid)
        return partial(self._run.worker_logstart, node, event.nodeid, event.location)

    def _on_logfinish(self, node: ForkdWorkerController, event: messages.Logfinish) -> _Tell:
        current = self._current(node)
        if event.nodeid is not None:
            self._check_current(node, event.nodeid)
            if event.location is None:
                raise BadEvent("no location")
        location = node.location if event.location is None else event.location
        return self._hold(node, partial(self._run.worker_logfinish, node, current, location))

    def _check_current(self, node: ForkdWorkerController, nodeid: str) -> None:
        if nodeid != self._current(node):
            raise BadEvent(f"it speaks of {nodeid!r}, which it does not run")

    def _on_report(self, node: ForkdWorkerController, event: messages.Report) -> _Tell:
        data = check_report(event.data, of_test=True)
        self._check_current(node, data["nodeid"])
        for name, value in self._added(node).items():
            if data.get(name, value) != value:
                raise BadEvent(f"a report whose {name} is another's")
        report = self._deserialize(data)
        if not isinstance(report, pytest.TestReport):
            raise BadEvent("not a test report")
        return self._report(node, report)

    def _report(self, node: ForkdWorkerController, report: pytest.TestReport) -> _Tell:
        if node.running is not None:
            node.last_report = report
        return self._hold(node, partial(self._run.worker_testreport, node, report))

    @staticmethod
    def _hold(node: ForkdWorkerController, tell: Callable[[], None]) -> _Tell:
        # Hold reports back until the test has ended: if it crashes its worker, its outcome is the
        # crash, and these reports become part of that.
        if node.running is None:
            return tell
        node.held.append(tell)
        return None

    def _added(self, node: ForkdWorkerController) -> dict[str, Any]:
        """The fields that a worker's reports have in addition to pytest's own."""
        return {
            "item_index": node.latest,
            "worker_id": node.workerinput["workerid"],
            "testrun_uid": node.workerinput["testrunuid"],
        }

    def _on_passed(self, node: ForkdWorkerController, event: messages.Passed) -> _Tell:
        if node.running is None:
            raise BadEvent("no report of a running item")
        if event.keywords is not None:
            nodeid = self.nodeid(node, node.running)
            node.passed = self._passed.of_item(
                nodeid, node.location, event.keywords, self._added(node)
            )
        if node.passed is None:
            raise BadEvent("no report of a running item")
        report = node.passed.report(event.when, event.duration, event.start, event.stop)
        if not isinstance(report, pytest.TestReport):
            raise BadEvent("not a test report")
        return self._report(node, report)

    def _deserialize(self, data: dict[str, Any]) -> Any:
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        if report is None:
            raise BadEvent("not a report")
        return report

    def _on_complete(self, node: ForkdWorkerController, event: messages.Complete) -> _Tell:
        index = event.index
        if node.running is None or node.running != index:
            raise BadEvent(f"item {index} was not running")
        if event.phases is not None and node.ids is self.ids:
            self._run.durations.record(index, list(event.phases))
        node.running = node.passed = None
        return partial(self._complete, node, index, event.seconds)

    def _complete(self, node: ForkdWorkerController, index: int, seconds: float) -> None:
        self._tell_held(node)
        self._run.worker_runtest_protocol_complete(node, index, seconds)

    @staticmethod
    def _tell_held(node: ForkdWorkerController) -> None:
        held, node.held, node.last_report = node.held, [], None
        for tell in held:
            tell()

    def _on_want(self, node: ForkdWorkerController, event: messages.Want) -> _Tell:
        index = event.index
        if index is not None and index != node.running and index not in node.given:
            raise BadEvent(f"item {index} is not its to run")
        return partial(self._run.worker_wants, node, index)

    def _on_fixture(self, node: ForkdWorkerController, event: messages.Fixture) -> _Tell:
        self._run.durations.record_fixture(event.key, event.seconds)
        return None

    def _on_unscheduled(self, node: ForkdWorkerController, event: messages.Unscheduled) -> _Tell:
        if not node.asked_back:
            raise BadEvent("nothing was to be given back")
        asked = node.asked_back.popleft()
        indices = event.indices
        if len(set(indices)) != len(indices):
            raise BadEvent("it gives an item back twice")
        for index in indices:
            self.nodeid(node, index)
            if index not in node.given or index not in asked:
                raise BadEvent(f"item {index} is not its to give back")
        return partial(self._run.worker_unscheduled, node, indices)

    # -- collection ----------------------------------------------------------------------------

    def _on_collectreport(
        self, node: ForkdWorkerController, event: messages.CollectReport
    ) -> _Tell:
        if node.ids is not None:
            raise BadEvent("it has collected already")
        data = check_report(event.data, of_test=False)
        report = self._deserialize(data)
        if not isinstance(report, pytest.CollectReport) or report.passed:
            raise BadEvent("not a collection report")
        return partial(self._run.worker_collectreport, node, report)

    def _on_deselected(self, node: ForkdWorkerController, event: messages.Deselected) -> _Tell:
        # Every worker that collects for itself deselects the same items.
        if self._deselecting not in (None, node):
            return None
        self._deselecting = node
        self._deselected += len(event.items)
        if self._deselected > MAX_VALUES:
            raise BadEvent(f"more than {MAX_VALUES} tests")
        return partial(self._run.add_deselected, deselected_items(event.items))

    def _on_warning(self, node: ForkdWorkerController, event: messages.Warned) -> _Tell:
        message = rebuild_warning(check_warning(event.data))
        if event.when == "runtest" and event.nodeid:
            self._check_current(node, event.nodeid)
        return partial(
            self._run.worker_warning_recorded,
            message,
            event.when,
            event.nodeid,
            event.location,
        )

    def _on_ready(self, node: ForkdWorkerController, event: messages.Ready) -> _Tell:
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

    def _on_ids(self, node: ForkdWorkerController, event: messages.Ids) -> _Tell:
        self._check_collecting(node)
        node.collected += event.ids
        if len(node.collected) > MAX_VALUES:
            raise BadEvent(f"more than {MAX_VALUES} tests")
        return None

    def _on_collection(self, node: ForkdWorkerController, event: messages.Collection) -> _Tell:
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

    # -- ends ----------------------------------------------------------------------------------

    def _on_exhausted(self, node: ForkdWorkerController, event: messages.Exhausted) -> _Tell:
        if not node.begun:  # without any progress, machines could be replaced for ever
            raise BadEvent("it has run nothing")
        node.exhausted = one_line(event.text)
        return None

    def _on_interrupted(self, node: ForkdWorkerController, event: messages.Interrupted) -> _Tell:
        node.interruption = (event.kind, shown(event.message), event.returncode)
        return self._run.stop_dealing

    def _on_internal_error(
        self, node: ForkdWorkerController, event: messages.InternalError
    ) -> _Tell:
        node.internal_errors += 1
        if node.internal_errors > _MAX_INTERNAL_ERRORS:
            raise BadEvent(f"more than {_MAX_INTERNAL_ERRORS} of them")
        return partial(show_internal_error, self._config, shown(event.text))

    def _on_unconfigured(self, node: ForkdWorkerController, event: messages.Unconfigured) -> _Tell:
        if not self.workers_collect or node.ready_at is not None:
            raise BadEvent("its session has begun")
        return partial(self._run.worker_unconfigured, node, event.usage, shown(event.text))

    def _on_finished(self, node: ForkdWorkerController, event: messages.Finished) -> _Tell:
        output = unpack_output(event.workeroutput)
        stopped = node.interruption is not None or node.internal_errors > 0
        if node.running is not None and not stopped:
            raise BadEvent(f"it has not completed {self.nodeid(node, node.running)!r}")
        if node.given and not (
            stopped
            or node.exhausted is not None
            or output["shouldfail"]
            or output["shouldstop"]
            or output["exitstatus"] == pytest.ExitCode.INTERRUPTED
        ):
            raise BadEvent(f"it has not run {len(node.given)} of its tests")
        return partial(self._finish, node, output)

    def _finish(self, node: ForkdWorkerController, output: dict[str, Any]) -> None:
        self._tell_held(node)
        node.finished(output)
