"""What makes a pytest session an xdist worker: it reports as events and runs what it is told to."""

from __future__ import annotations

import collections
import contextlib
import time
import warnings
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from _pytest.outcomes import Exit
from execnet import DumpError
from xdist.remote import (
    Marker,
    Producer,
    WorkerInteractor,
    getinfodict,
    serialize_warning_message,
    worker_title,
)

from pytest_forkd.channel.claims import Claims
from pytest_forkd.channel.events import encode_batch, pack_object, pack_report
from pytest_forkd.channel.passed import PytestAlone, as_passed
from pytest_forkd.channel.wire import ChannelClosed, WorkerChannel
from pytest_forkd.parent.hygiene import silence_reporter

__all__ = ["Interactor"]


class Interactor(WorkerInteractor):
    """xdist's worker plugin, over a channel without a thread.

    Until :meth:`attach` is called there is no channel: events are kept, for the collector to report
    once for all workers. Afterwards the events of one test travel together: its reports, its
    completion and the start of the next one are one message, written at once, so that a crash loses
    nothing that had finished and the controller always knows what was running.
    """

    def __init__(self, config: pytest.Config, workerinput: dict[str, Any]) -> None:
        # Not WorkerInteractor's: that builds a queue with locks for a receiver thread.
        self.config = config
        self.identify(workerinput)
        self.log = Producer(f"worker-{self.workerid}", enabled=config.option.debug)
        self.nextitem_index = None
        #: Events that have not been sent yet.
        self.outbox: list[list[Any]] = []
        self._channel: WorkerChannel | None = None
        self._claims: Claims | None = None
        self._queue: collections.deque[Any] = collections.deque()
        #: Node id and location of the item that "start" has told of, and of whose "logstart".
        self._running: tuple[str, object] | None = None
        self._started: tuple[str, object] | None = None
        #: The keywords that the running item's reports have had.
        self._keywords: list[str] | None = None
        self._pytest_alone = PytestAlone(config.hook.pytest_report_to_serializable)
        config.pluginmanager.register(self)

    def identify(self, workerinput: dict[str, Any]) -> None:
        """Take the worker's name from its ``workerinput``."""
        self.workerid = dict.__getitem__(workerinput, "workerid")
        self.testrunuid = dict.__getitem__(workerinput, "testrunuid")

    def attach(self, channel: WorkerChannel, claims: Claims | None) -> None:
        """Report to the controller from now on, and take commands from it."""
        self._channel = channel
        self._claims = claims

    def flush(self) -> None:
        """Send what is in the outbox as one message."""
        if self._channel is None or not self.outbox:
            return
        events, self.outbox = self.outbox, []
        # Without a controller there is nobody to tell; the next look for commands ends the session.
        with contextlib.suppress(OSError):
            self._channel.send(encode_batch(events))

    def send_ready(self) -> None:
        """Report that this worker exists."""
        self.outbox.append(["ready", dict(getinfodict())])
        self.flush()

    # -- session -------------------------------------------------------------------------------

    @pytest.hookimpl
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session
        silence_reporter(self.config)
        if self._channel is not None:
            self.send_ready()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_sessionfinish(self, exitstatus: int) -> Generator[None, object, None]:
        workeroutput: dict[str, Any] = self.config.workeroutput  # type: ignore[attr-defined]
        workeroutput["exitstatus"] = int(exitstatus)
        workeroutput["shouldfail"] = self.session.shouldfail
        workeroutput["shouldstop"] = self.session.shouldstop
        yield
        sendable = {}
        for key, value in workeroutput.items():
            try:
                pack_object({key: value})
            except DumpError as exc:
                # xdist's worker would end with a traceback, and be taken for crashed.
                text = f'config.workeroutput["{key}"] cannot be sent to the controller: {exc}'
                self.outbox.append(["internal_error", text])
            else:
                sendable[key] = value
        self.outbox.append(["finished", pack_object(sendable)])
        self.flush()

    @pytest.hookimpl
    def pytest_internalerror(self, excrepr: object) -> None:
        self.outbox.append(["internal_error", str(excrepr)])
        self.flush()

    @pytest.hookimpl
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        value = excinfo.value
        if isinstance(value, Exit):
            self.outbox.append(["interrupted", "exit", str(value.msg), value.returncode])
        else:
            self.outbox.append(["interrupted", "keyboard", str(excinfo.value), None])
        self.flush()

    # -- collection ----------------------------------------------------------------------------

    @pytest.hookimpl
    def pytest_collection(self) -> None:
        """Nothing to report: the controller knows that its workers collect."""

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        super().pytest_collection_modifyitems(config, items)
        each: Any
        for each in items:
            # For --dist=loadgroup, xdist (3.8) puts the group's name into an attribute that pytest
            # reads no longer since 9.2, where ids are structured (pytest-dev/pytest-xdist#1386).
            with_group = vars(each).get("_nodeid")
            if with_group is not None and each.nodeid != with_group:
                each._id = type(each._id).parse(with_group)

    @pytest.hookimpl
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self._channel is not None:
            self.outbox.append(["collection", [item.nodeid for item in session.items]])
            self.flush()

    @pytest.hookimpl
    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.outbox.append(["deselected", len(items)])

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
            self.outbox.append(["collectreport", pack_report(data)])

    @pytest.hookimpl
    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        data = pack_object(serialize_warning_message(warning_message))
        self.outbox.append(["warning", data, when, nodeid, location])

    # -- tests ---------------------------------------------------------------------------------

    @pytest.hookimpl
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.nextitem_index = self._next_index()
        while self.nextitem_index is not Marker.SHUTDOWN:
            self.run_one_test()
            if session.shouldfail or session.shouldstop:
                break
        self.flush()
        return True

    def run_one_test(self) -> None:
        assert isinstance(self.nextitem_index, int)
        self.item_index = self.nextitem_index
        self.nextitem_index = self._next_index()
        items = self.session.items
        item = items[self.item_index]
        nextitem = items[self.nextitem_index] if isinstance(self.nextitem_index, int) else None

        self._running = self._started = (item.nodeid, item.location)
        self._keywords = None
        self.outbox.append(["start", self.item_index, item.location])
        self.flush()
        worker_title(f"[pytest-forkd running] {item.nodeid}")
        start = time.perf_counter()
        self.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        duration = time.perf_counter() - start
        worker_title("[pytest-forkd idle]")
        self.outbox.append(["complete", self.item_index, duration])

    @pytest.hookimpl
    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        if self._started == (nodeid, location):
            self._started = None  # "start" has told it already
        else:
            self.outbox.append(["logstart", nodeid, location])

    @pytest.hookimpl
    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        if self._running == (nodeid, location):
            self.outbox.append(["logfinish"])
        else:
            self.outbox.append(["logfinish", nodeid, location])

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._running is not None and self._pytest_alone:
            passed = as_passed(report, *self._running)
            if passed is not None:
                if passed[-1] == self._keywords:
                    del passed[-1]
                else:
                    self._keywords = passed[-1]
                self.outbox.append(["passed", *passed])
                return
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        data["item_index"] = self.item_index
        data["worker_id"] = self.workerid
        data["testrun_uid"] = self.testrunuid
        assert self.session.items[self.item_index].nodeid == report.nodeid
        self.outbox.append(["report", pack_report(data)])
        if report.when != "teardown" and (report.sections or report.failed):
            # Should the test crash its worker now, this is part of the story.
            self.flush()

    # -- commands ------------------------------------------------------------------------------

    def _next_index(self) -> Any:
        """The next item's index, or ``Marker.SHUTDOWN``; waits for one, reporting first."""
        while True:
            self._receive(wait=False)
            while self._queue:
                index = self._queue.popleft()
                if index is Marker.SHUTDOWN or self._claims is None or self._claims.claim(index):
                    return index
            self.flush()
            self._receive(wait=True)

    def _receive(self, *, wait: bool) -> None:
        assert self._channel is not None
        try:
            commands = self._channel.commands(wait=wait)
        except ChannelClosed:
            self._queue.append(Marker.SHUTDOWN)
            return
        for name, kwargs in commands:
            if name == "runtests":
                self._queue.extend(kwargs["indices"])
            elif name == "runtests_all":
                self._queue.extend(range(len(self.session.items)))
            elif name == "shutdown":
                self._queue.append(Marker.SHUTDOWN)
            elif name == "steal":
                self.steal(kwargs["indices"])

    def steal(self, indices: Any) -> None:
        """Give back the items at ``indices`` that are still queued."""
        wanted = set(indices)
        stolen = [index for index in self._queue if index in wanted]
        self._queue = collections.deque(index for index in self._queue if index not in wanted)
        self.outbox.append(["unscheduled", stolen])
        self.flush()
