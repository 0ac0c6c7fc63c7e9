"""What workers say, decoded and checked in the controller's main loop.

A worker is not trusted: whatever it sends becomes builtins, is checked here, and only then reaches
the session. An event that no worker of ours would send ends that worker and touches nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_forkd.channel.events import decode_batch, unpack_object, unpack_report
from pytest_forkd.channel.passed import PHASES, PassedReports
from pytest_forkd.nodes import ForkdWorkerController
from pytest_forkd.safewarnings import rebuild_warning
from pytest_forkd.scheduling import SharedFixtures

if TYPE_CHECKING:
    from pytest_forkd.session import ForkdSession

__all__ = ["Inbox"]


#: Events that a worker may send before the next test begins: reports of subtests, warnings.
_MAX_CHATTER = 500_000
#: Characters of what a worker says that are shown in a line of the session's.
_MAX_LINE = 300


class BadEvent(Exception):
    """An event that no worker of ours would send."""


class WorkerInternalError(Exception):
    """Carries the traceback of an internal error in a worker, as text."""


class Inbox:
    """Turns the messages of workers into calls of the session's ``worker_*`` methods.

    See :mod:`pytest_forkd.channel.events` for the events.

    :param session: whose methods are called.
    """

    def __init__(self, session: ForkdSession) -> None:
        self._session = session
        self._config = session.config
        #: The ids of the items, as all workers have them; ``None`` until they are known.
        self.ids: list[str] | None = None
        #: Which fixtures they share.
        self.fixtures = SharedFixtures()
        self._deselecting: ForkdWorkerController | None = None
        #: Whether workers collect for themselves.
        self.workers_collect = False
        self._passed = PassedReports(
            self._config.hook.pytest_report_from_serializable, self._deserialize
        )
        #: By the event's name: its handler, and how few and how many arguments that takes.
        self._handlers = {
            name.removeprefix("_on_"): _handler(getattr(self, name))
            for name in dir(type(self))
            if name.startswith("_on_")
        }

    def receive(self, node: ForkdWorkerController, payload: bytes) -> None:
        """Handle one message, which holds several events."""
        try:
            events = decode_batch(payload)
        except ValueError as exc:
            node.broke_protocol(str(exc))
            return
        self.dispatch(node, events)

    def dispatch(self, node: ForkdWorkerController, events: list[list[Any]]) -> None:
        """Handle events, up to the first bad one."""
        node.chatter += len(events)
        if node.chatter > _MAX_CHATTER:
            node.broke_protocol(f"more than {_MAX_CHATTER} events without another test")
            return
        for name, *args in events:
            handler, fewest, most = self._handlers.get(name, _UNKNOWN)
            try:
                if handler is None:
                    raise BadEvent("unknown event")
                if not fewest <= len(args) <= most:
                    raise BadEvent(f"{len(args)} arguments")
                handler(node, *args)
            except BadEvent as exc:
                node.broke_protocol(f"{name}: {exc}")
                return

    def take_fixtures(self, table: Any) -> None:
        """Remember which fixtures items share."""
        try:
            self.fixtures = SharedFixtures.from_json(table, len(self.ids or ()))
        except ValueError as exc:
            raise BadEvent(str(exc)) from exc

    def nodeid(self, node: ForkdWorkerController, index: Any) -> str:
        """The id of a node's item, checked."""
        ids = node.ids
        if type(index) is not int or ids is None or not 0 <= index < len(ids):
            raise BadEvent(f"no item has the index {index!r}")
        return ids[index]

    def _on_start(self, node: ForkdWorkerController, index: Any, location: Any) -> None:
        nodeid = self.nodeid(node, index)
        if index not in node.given:
            raise BadEvent(f"it was not given {nodeid!r}")
        if node.running is not None:
            raise BadEvent(f"it has not completed {self.nodeid(node, node.running)!r}")
        del node.given[index]
        node.chatter = 0
        node.running = index
        node.begun.add(index)
        node.location = location = _location(location)
        node.held.clear()
        node.passed = None
        self._session.worker_logstart(node, nodeid, location)

    def _on_logstart(self, node: ForkdWorkerController, nodeid: Any, location: Any) -> None:
        self._session.worker_logstart(node, _text(nodeid), _location(location))

    def _on_logfinish(
        self, node: ForkdWorkerController, nodeid: Any = None, location: Any = None
    ) -> None:
        if nodeid is None:
            arguments = (self.nodeid(node, node.running), node.location)
        else:
            arguments = (_text(nodeid), _location(location))
        node.held.append(lambda: self._session.worker_logfinish(node, *arguments))

    def _on_report(self, node: ForkdWorkerController, data: Any) -> None:
        report = self._report(data)
        if not isinstance(report, pytest.TestReport):
            raise BadEvent("not a test report")
        self._hold(node, report)

    def _hold(self, node: ForkdWorkerController, report: pytest.TestReport) -> None:
        # Reports that come before the test has ended are held back: should it crash its worker
        # now, the crash is its outcome, and they are part of the story.
        node.last_report = report
        node.held.append(lambda: self._session.worker_testreport(node, report))

    def _on_passed(
        self,
        node: ForkdWorkerController,
        when: Any,
        duration: Any,
        start: Any,
        stop: Any,
        keywords: Any = None,
    ) -> None:
        if keywords is not None:
            if not isinstance(keywords, list):
                raise BadEvent("no keywords")
            for name in keywords:
                _text(name)
            added = {
                "item_index": node.running,
                "worker_id": node.workerinput["workerid"],
                "testrun_uid": node.workerinput["testrunuid"],
            }
            nodeid = self.nodeid(node, node.running)
            node.passed = self._passed.of_item(nodeid, node.location, keywords, added)
        if node.passed is None or when not in PHASES:
            raise BadEvent("no report of a running item")
        for seconds in (duration, start, stop):
            if type(seconds) is not float:
                raise BadEvent("no time")
        report = node.passed.report(when, duration, start, stop)
        if not isinstance(report, pytest.TestReport):
            raise BadEvent("not a test report")
        self._hold(node, report)

    def _on_collectreport(self, node: ForkdWorkerController, data: Any) -> None:
        self._session.worker_collectreport(node, self._report(data))

    def _report(self, data: Any) -> Any:
        try:
            data = unpack_report(data)
        except ValueError as exc:
            raise BadEvent(f"not a report: {exc}") from exc
        return self._deserialize(data)

    def _deserialize(self, data: dict[str, Any]) -> Any:
        try:
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=data
            )
        except (ValueError, TypeError, KeyError, RuntimeError) as exc:
            raise BadEvent(f"not a report: {exc}") from exc
        if report is None:
            raise BadEvent("not a report")
        return report

    def _on_deselected(self, node: ForkdWorkerController, count: Any) -> None:
        if type(count) is not int or not 0 <= count < 2**31:
            raise BadEvent("no count")
        # Every worker that collects for itself deselects the same items.
        if self._deselecting in (None, node):
            self._deselecting = node
            self._session.count_deselected(count)

    def _on_complete(
        self, node: ForkdWorkerController, index: Any, duration: Any, phases: Any = None
    ) -> None:
        self.nodeid(node, index)
        if node.running != index or type(duration) is not float:
            raise BadEvent(f"item {index} was not running, or for no time")
        seconds = _seconds(duration)
        if phases is not None:
            if not isinstance(phases, list) or len(phases) != 3:
                raise BadEvent("no durations")
            if node.ids is self.ids:
                self._session.durations.record(index, [_seconds(value) for value in phases])
        node.running = node.passed = None
        self._tell_held(node)
        self._session.worker_runtest_protocol_complete(node, index, seconds)

    def _on_want(self, node: ForkdWorkerController) -> None:
        self._session.worker_wants(node)

    def _on_fixture(self, node: ForkdWorkerController, key: Any, seconds: Any) -> None:
        self._session.durations.record_fixture(_text(key), _seconds(seconds))

    @staticmethod
    def _tell_held(node: ForkdWorkerController) -> None:
        held, node.held, node.last_report = node.held, [], None
        for tell in held:
            tell()

    def _on_warning(
        self, node: ForkdWorkerController, data: Any, when: Any, nodeid: Any, location: Any
    ) -> None:
        try:
            message = rebuild_warning(unpack_object(data))
        except (ValueError, TypeError, KeyError) as exc:
            raise BadEvent(f"not a warning: {exc}") from exc
        place = None if location is None else _location(location)
        self._session.worker_warning_recorded(message, _text(when), _text(nodeid), place)

    def _on_ready(self, node: ForkdWorkerController, workerinfo: Any) -> None:
        if not isinstance(workerinfo, dict):
            raise BadEvent("no information about the worker")
        node.ready_at = time.monotonic()
        workerinfo["version_info"] = tuple(workerinfo.get("version_info", ()))
        sched = self._session.sched
        if self.workers_collect and sched is not None and sched.collection_is_completed:
            # A replacement: schedulers want to be told of it and of its collection at once.
            node.ready = workerinfo
            return
        self._session.worker_workerready(node, workerinfo)  # type: ignore[arg-type]
        if self.ids is not None and not self.workers_collect:
            node.ids = self.ids
            self._session.worker_collectionfinish(node, self.ids)

    def _on_collection(self, node: ForkdWorkerController, ids: Any, fixtures: Any = None) -> None:
        if not isinstance(ids, list) or not self.workers_collect:
            raise BadEvent("no collection was asked for")
        ids = [_text(nodeid) for nodeid in ids]
        if self.ids is None:
            self.ids = ids
            self._session.memory.remember_seconds(time.monotonic() - node.ready_at)
        if fixtures is not None and ids == self.ids:
            self.take_fixtures(fixtures)
        node.ids = self.ids if ids == self.ids else ids
        if node.ready is not None:
            self._session.worker_workerready(node, node.ready)  # type: ignore[arg-type]
        self._session.worker_collectionfinish(node, node.ids)

    def _on_unscheduled(self, node: ForkdWorkerController, indices: Any) -> None:
        if not isinstance(indices, list):
            raise BadEvent("no list of items")
        for index in indices:
            self.nodeid(node, index)
            if index not in node.given:
                raise BadEvent(f"item {index} is not its to give back")
        self._session.worker_unscheduled(node, indices)

    def _on_exhausted(self, node: ForkdWorkerController, text: Any) -> None:
        if not node.begun:  # else it could ask for another machine again and again
            raise BadEvent("it has run nothing")
        # The session shows it in a line of its own, on a terminal maybe.
        node.exhausted = "".join(c if c.isprintable() else "?" for c in _text(text)[:_MAX_LINE])

    def _on_interrupted(
        self, node: ForkdWorkerController, kind: Any, message: Any, returncode: Any
    ) -> None:
        code = returncode if isinstance(returncode, int) else None
        node.interruption = (_text(kind), _text(message), code)
        self._session.stop_dealing()

    def _on_internal_error(self, node: ForkdWorkerController, text: Any) -> None:
        node.internal_error = True
        self.show_internal_error(_text(text))

    def show_internal_error(self, text: str) -> None:
        """Have plugins show the traceback of an internal error in another process."""
        try:
            raise WorkerInternalError(text)
        except WorkerInternalError:
            excinfo = pytest.ExceptionInfo.from_current()
            self._config.hook.pytest_internalerror(excrepr=text, excinfo=excinfo)

    def _on_unconfigured(self, node: ForkdWorkerController, usage: Any, text: Any) -> None:
        if not self.workers_collect or node.ready_at or type(usage) is not bool:
            raise BadEvent("its session has begun")
        self._session.worker_unconfigured(node, usage, _text(text))

    def _on_finished(self, node: ForkdWorkerController, workeroutput: Any) -> None:
        try:
            output = unpack_object(workeroutput)
        except (ValueError, TypeError) as exc:
            raise BadEvent(str(exc)) from exc
        if not isinstance(output, dict) or not isinstance(output.get("exitstatus"), int):
            raise BadEvent("no workeroutput")
        self._tell_held(node)
        node.finished(output)


_Handler = tuple[Callable[..., None] | None, int, int]
_UNKNOWN: _Handler = (None, 0, 0)


def _handler(method: Any) -> _Handler:
    most = method.__code__.co_argcount - 2  # less self and node
    return method, most - len(method.__defaults__ or ()), most


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadEvent(f"{type(value).__name__} instead of text")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise BadEvent(f"{value!r} is no number of seconds")
    return float(value)


def _location(value: Any) -> tuple[Any, Any, Any]:
    if not isinstance(value, list) or len(value) != 3:
        raise BadEvent("no location")
    return tuple(value)
