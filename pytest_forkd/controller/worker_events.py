"""Decodes and checks workers' messages, in the controller's main loop.

A worker is not trusted. A message is checked as a whole (:mod:`pytest_forkd.channel.messages`);
then each event is compared with what the worker was given, and only then does it reach the session
and its hooks. An invalid message ends the worker that sent it, and affects nothing else. An
exception in a plugin's hook is not the worker's fault, and ends the run as it would under xdist.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pytest_forkd.channel import messages
from pytest_forkd.channel.bounds import MAX_COLLECTED_BYTES, MAX_MESSAGE_BYTES, shown
from pytest_forkd.channel.bounds import line as one_line
from pytest_forkd.channel.short_reports import PassedReports
from pytest_forkd.channel.worker_output import unpack_output
from pytest_forkd.controller.collection_events import CollectionEvents, Tell
from pytest_forkd.controller.nodes import ForkdWorkerController
from pytest_forkd.controller.run import Run
from pytest_forkd.controller.worker_errors import BadEvent, describe, show_internal_error

__all__ = ["WorkerEvents"]

#: How many events a worker may send between the starts of two tests: subtest reports, warnings.
_MAX_CHATTER = 500_000
#: Internal errors of one worker; each is shown.
_MAX_INTERNAL_ERRORS = 100


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
        #: What workers tell of their collection, and what is known of it.
        self.collection = CollectionEvents(run, self._deserialize)
        self._passed = PassedReports(
            self._config.hook.pytest_report_from_serializable, self._deserialize
        )
        self._handlers: dict[type, Callable[[ForkdWorkerController, Any], Tell]] = {
            messages.Ready: self.collection.on_ready,
            messages.CollectReport: self.collection.on_report,
            messages.Deselected: self.collection.on_deselected,
            messages.Ids: self.collection.on_ids,
            messages.Collection: self.collection.on_collection,
            messages.Start: self._on_start,
            messages.Logstart: self._on_logstart,
            messages.Passed: self._on_passed,
            messages.Report: self._on_report,
            messages.Logfinish: self._on_logfinish,
            messages.Complete: self._on_complete,
            messages.Want: self._on_want,
            messages.Fixture: self._on_fixture,
            messages.Warned: self._on_warning,
            messages.Unscheduled: self._on_unscheduled,
            messages.Exhausted: self._on_exhausted,
            messages.Interrupted: self._on_interrupted,
            messages.InternalError: self._on_internal_error,
            messages.Unconfigured: self._on_unconfigured,
            messages.Finished: self._on_finished,
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

    def _on_start(self, node: ForkdWorkerController, event: messages.Start) -> Tell:
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

    def _on_logstart(self, node: ForkdWorkerController, event: messages.Logstart) -> Tell:
        self._check_current(node, event.nodeid)
        return partial(self._run.worker_logstart, node, event.nodeid, event.location)

    def _on_logfinish(self, node: ForkdWorkerController, event: messages.Logfinish) -> Tell:
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

    def _on_report(self, node: ForkdWorkerController, event: messages.Report) -> Tell:
        from pytest_forkd.channel.report_schema import check_report  # most runs have no failure

        data = check_report(event.data, of_test=True)
        self._check_current(node, data["nodeid"])
        for name, value in self._added(node).items():
            if data.get(name, value) != value:
                raise BadEvent(f"a report whose {name} is another's")
        report = self._deserialize(data)
        if not isinstance(report, pytest.TestReport):
            raise BadEvent("not a test report")
        return self._report(node, report)

    def _report(self, node: ForkdWorkerController, report: pytest.TestReport) -> Tell:
        if node.running is not None:
            node.last_report = report
        return self._hold(node, partial(self._run.worker_testreport, node, report))

    @staticmethod
    def _hold(node: ForkdWorkerController, tell: Callable[[], None]) -> Tell:
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

    def _on_passed(self, node: ForkdWorkerController, event: messages.Passed) -> Tell:
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

    def _on_complete(self, node: ForkdWorkerController, event: messages.Complete) -> Tell:
        index = event.index
        if node.running is None or node.running != index:
            raise BadEvent(f"item {index} was not running")
        if event.phases is not None and node.ids is self.collection.ids:
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

    def _on_want(self, node: ForkdWorkerController, event: messages.Want) -> Tell:
        index = event.index
        if index is not None and index != node.running and index not in node.given:
            raise BadEvent(f"item {index} is not its to run")
        return partial(self._run.worker_wants, node, index)

    def _on_fixture(self, node: ForkdWorkerController, event: messages.Fixture) -> Tell:
        self._run.durations.record_fixture(event.key, event.seconds)
        self._run.gain.set_up(event.key, event.seconds)
        return None

    def _on_unscheduled(self, node: ForkdWorkerController, event: messages.Unscheduled) -> Tell:
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

    def _on_warning(self, node: ForkdWorkerController, event: messages.Warned) -> Tell:
        from pytest_forkd.channel.report_schema import check_warning  # most runs have no warning
        from pytest_forkd.controller.received_warnings import rebuild_warning

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

    # -- ends ----------------------------------------------------------------------------------

    def _on_exhausted(self, node: ForkdWorkerController, event: messages.Exhausted) -> Tell:
        if not node.begun:  # without any progress, machines could be replaced for ever
            raise BadEvent("it has run nothing")
        node.exhausted = one_line(event.text)
        return None

    def _on_interrupted(self, node: ForkdWorkerController, event: messages.Interrupted) -> Tell:
        node.interruption = (event.kind, shown(event.message), event.returncode)
        return self._run.stop_dealing

    def _on_internal_error(
        self, node: ForkdWorkerController, event: messages.InternalError
    ) -> Tell:
        node.internal_errors += 1
        if node.internal_errors > _MAX_INTERNAL_ERRORS:
            raise BadEvent(f"more than {_MAX_INTERNAL_ERRORS} of them")
        return partial(show_internal_error, self._config, shown(event.text))

    def _on_unconfigured(self, node: ForkdWorkerController, event: messages.Unconfigured) -> Tell:
        if not self.collection.workers_collect or node.ready_at is not None:
            raise BadEvent("its session has begun")
        return partial(self._run.worker_unconfigured, node, event.usage, shown(event.text))

    def _on_finished(self, node: ForkdWorkerController, event: messages.Finished) -> Tell:
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
