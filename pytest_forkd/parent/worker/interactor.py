"""Makes a pytest session an xdist worker: it reports events, and runs the items it is given."""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import pytest

from pytest_forkd.channel.bounds import parts
from pytest_forkd.channel.claims import Claims
from pytest_forkd.channel.deselected import described
from pytest_forkd.channel.packing import sendable_location
from pytest_forkd.channel.short_reports import PytestAlone, as_passed
from pytest_forkd.channel.wire import WorkerChannel
from pytest_forkd.compat.pluggy import change_arguments
from pytest_forkd.compat.pytest import Exit, set_nodeid
from pytest_forkd.compat.tracebacks import left_out
from pytest_forkd.compat.xdist_remote import (
    Marker,
    Producer,
    WorkerInteractor,
    getinfodict,
    worker_title,
)
from pytest_forkd.parent.worker.fixtures import FixtureTimer, fixture_table
from pytest_forkd.parent.worker.item_queue import ItemQueue
from pytest_forkd.parent.worker.outbox import Outbox

__all__ = ["Interactor"]

_PHASES = {"setup": 0, "call": 1, "teardown": 2}
#: The exit code of a worker that its test has left unusable: EX_SOFTWARE of sysexits.h.
_SOFTWARE_ERROR = 70


class Interactor(WorkerInteractor):
    """xdist's worker plugin, over a channel without a thread.

    Until :meth:`attach` is called there is no channel: events are kept, for the collector to report
    once for all workers. Afterwards the reports of a test, its completion and the start of the next
    test travel in one message, sent at once. So a crash loses nothing that had finished, and the
    controller always knows which test was running.
    """

    # Looked up before the first test: tests may patch these modules and leave them patched.
    _clock = staticmethod(time.perf_counter)
    _getpid = staticmethod(os.getpid)
    _modules = sys.modules

    def __init__(self, config: pytest.Config, workerinput: dict[str, Any]) -> None:
        # WorkerInteractor.__init__ is not called: it makes a queue with locks, for a thread.
        self.config = config
        self.identify(workerinput)
        self.log = Producer(f"worker-{self.workerid}", enabled=config.option.debug)
        self.nextitem_index = None
        self.session: Any = None
        #: Events that have not been sent yet.
        self.outbox = Outbox(config)
        self._items = ItemQueue(self.outbox, self._clock, lambda: len(self.session.items))
        self._exhausted: Callable[[], str | None] | None = None
        #: The running item, and whether the next one has been decided on.
        self._item: pytest.Item | None = None
        self._decided = False
        #: The last item it was given, begun or not; ``None`` once that is complete.
        self._last: int | None = None
        self._pid = 0
        #: When the running item began, by :attr:`_clock`.
        self._begun = 0.0
        #: Seconds of the running item: waiting and shared fixtures, which do not count as its own;
        #: waiting in its teardown; and the time of each phase.
        self._elsewhere = 0.0
        self._waiting = 0.0
        self._phases = [0.0, 0.0, 0.0]
        self._ran = False
        self._fixtures = FixtureTimer(self._fixture_was_set_up)
        #: Node id and location of the last "start" event, and the same until its "logstart" comes.
        self._running: tuple[str, object] | None = None
        self._started: tuple[str, object] | None = None
        #: The keywords in the running item's last short report.
        self._keywords: list[str] | None = None
        self._pytest_alone = PytestAlone(config.hook.pytest_report_to_serializable)
        config.pluginmanager.register(self)
        config.pluginmanager.register(self._fixtures, "forkd-fixture-timer")

    def identify(self, workerinput: dict[str, Any]) -> None:
        """Take the worker's name from its ``workerinput``."""
        self.workerid = dict.__getitem__(workerinput, "workerid")
        self.testrunuid = dict.__getitem__(workerinput, "testrunuid")

    def _is_first(self) -> bool:
        return str(self.workerid) == "gw0"

    def attach(
        self,
        channel: WorkerChannel,
        claims: Claims | None,
        exhausted: Callable[[], str | None] | None = None,
    ) -> None:
        """Report to the controller from now on, and take commands from it.

        :param exhausted: see :class:`pytest_forkd.parent.worker.nursery.WorkerStart`.
        """
        self._items.attach(channel, claims)
        self._exhausted = exhausted
        self.outbox.attach(channel)

    def send_ready(self) -> None:
        """Report that this worker exists."""
        self.outbox.append(["ready", dict(getinfodict())])
        self.outbox.flush()

    # -- session -------------------------------------------------------------------------------

    @pytest.hookimpl
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session
        if self._items.attached:
            self.send_ready()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_sessionfinish(self, exitstatus: int) -> Generator[None, object, None]:
        workeroutput: dict[str, Any] = self.config.workeroutput  # type: ignore[attr-defined]
        workeroutput["exitstatus"] = int(exitstatus)
        workeroutput["shouldfail"] = self.session.shouldfail
        workeroutput["shouldstop"] = self.session.shouldstop
        yield
        self.outbox.add_finished(workeroutput)
        self.outbox.flush()

    @pytest.hookimpl
    def pytest_internalerror(  # type: ignore[override]
        self, excrepr: object
    ) -> bool:
        if self.session is None:
            self.outbox.append(["unconfigured", False, str(excrepr)])
        else:
            self.outbox.append(["internal_error", str(excrepr)])
        self.outbox.flush()
        return True  # else pytest would also print it; the controller shows it

    @pytest.hookimpl
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        value = excinfo.value
        if isinstance(value, Exit):
            self.outbox.append(["interrupted", "exit", str(value.msg), value.returncode])
        else:
            self.outbox.append(["interrupted", "keyboard", str(excinfo.value), None])
        self.outbox.flush()

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
            # 9.2 and later ignores, since ids are structured there (pytest-dev/pytest-xdist#1386).
            with_group = vars(each).get("_nodeid")
            if with_group is not None and each.nodeid != with_group:
                set_nodeid(each, with_group)

    @pytest.hookimpl
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self._items.attached:
            ids = [item.nodeid for item in session.items]
            # All workers collect the same items, so it is enough if one reports the table.
            table = fixture_table(session.items) if self._is_first() else None
            *first, rest = parts(ids)
            for part in first:
                self.outbox.append(["ids", part])
                self.outbox.flush()
            self.outbox.append(["collection", rest, table])
            self.outbox.flush()

    @pytest.hookimpl
    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.outbox += [["deselected", part] for part in described(items)]

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
            self.outbox.add_report("collectreport", data)

    @pytest.hookimpl
    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        self.outbox.add_warning(warning_message, when, nodeid, location)

    # -- tests ---------------------------------------------------------------------------------

    @pytest.hookimpl
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._pid = self._getpid()
        in_teardown = self._decide_in_teardown()
        self.nextitem_index = self._next_index()
        while self.nextitem_index is not Marker.SHUTDOWN:
            self.run_one_test(in_teardown=in_teardown)
            if session.shouldfail or session.shouldstop:
                break
            self._decide()  # unless its teardown has done so
        self.outbox.flush()
        return True

    def run_one_test(self, *, in_teardown: bool = False) -> None:
        """Run the item at ``nextitem_index``.

        :param in_teardown: whether to decide on the next item when the teardown of this one begins,
            so that a long test does not hold back another. Otherwise it is decided before.
        """
        assert isinstance(self.nextitem_index, int)
        self.item_index = self._last = self.nextitem_index
        self._decided = False
        if not in_teardown:
            self._decide()
        self._elsewhere = self._waiting = 0.0
        items = self.session.items
        self._item = item = items[self.item_index]

        location = sendable_location(item.location)
        self._running = self._started = (item.nodeid, location)
        self._keywords = None
        self._phases = [0.0, 0.0, 0.0]
        self._ran = False
        self._fixtures.spent = 0.0
        self.outbox.begin()
        self.outbox.append(["start", self.item_index, location])
        self.outbox.flush()
        worker_title(f"[pytest-forkd running] {item.nodeid}")
        self._begun = start = self._clock()
        self.config.hook.pytest_runtest_protocol(item=item, nextitem=self._nextitem())
        if "pytest" not in self._modules:  # this process can run no further test
            os.write(2, f"forkd: {item.nodeid} removes pytest from sys.modules\n".encode())
            os._exit(_SOFTWARE_ERROR)
        duration = self._clock() - start - self._elsewhere - self._fixtures.spent
        worker_title("[pytest-forkd idle]")
        self._item = None
        phases = [round(seconds, 5) for seconds in self._phases] if self._ran else None
        self.outbox.append(["complete", self.item_index, max(0.0, duration), phases])
        self._last = None

    def _nextitem(self) -> pytest.Item | None:
        """The next item if it has been decided on, else the likely one."""
        index = self.nextitem_index
        if not self._decided:
            index = self._items.likely()
        return self.session.items[index] if isinstance(index, int) else None

    def _decide(self) -> None:
        """Decide on the next item, once per item; waits until there is one."""
        if not self._decided:
            self.nextitem_index = Marker.SHUTDOWN if self._leaves() else self._next_index()
            self._decided = True

    def _leaves(self) -> bool:
        """Whether no further test should run here, but in another worker."""
        reason = None if self._exhausted is None else self._exhausted()
        if reason is None:
            return False
        self.outbox.append(["exhausted", reason])
        return True

    def _decide_in_teardown(self) -> bool:
        """Decide on the next item as late as possible: when the teardown phase begins.

        Every implementation of ``pytest_runtest_teardown`` must get the same, true ``nextitem``,
        whoever calls the hook; see :func:`pytest_forkd.compat.pluggy.change_arguments`.

        :returns: whether that is possible with this version of pluggy.
        """

        @left_out
        def decide(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
            __tracebackhide__ = True  # a traceback shows what it shows in a plain run
            session = self.session
            if (
                kwargs.get("item") is self._item is not None
                and not (session.shouldfail or session.shouldstop)
                and self._getpid() == self._pid  # not in a process that the test has forked
            ):
                self._decide()
                return {**kwargs, "nextitem": self._nextitem()}
            return kwargs

        return change_arguments(self.config.hook.pytest_runtest_teardown, decide)

    def _fixture_was_set_up(self, key: str, seconds: float) -> None:
        self.outbox.append(["fixture", key, round(seconds, 5)])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        """End a process that the test has forked and that returns from it: it is not a worker."""
        if self._getpid() != self._pid:
            os._exit(0 if call.excinfo is None else 1)

    @pytest.hookimpl
    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        location = sendable_location(location)
        if self._started == (nodeid, location):
            self._started = None  # the "start" event has already said so
        else:
            self.outbox.append(["logstart", nodeid, location])

    @pytest.hookimpl
    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        location = sendable_location(location)
        if self._running == (nodeid, location):
            self.outbox.append(["logfinish"])
        else:
            self.outbox.append(["logfinish", nodeid, location])

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        duration = self._count(report)
        if self._running is not None and self._pytest_alone:
            passed = as_passed(report, *self._running)
            if passed is not None:
                passed[1] = duration
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
        if duration != report.duration:
            data["duration"] = duration
        self.outbox.add_report("report", data)
        if report.when != "teardown" and (report.sections or report.failed):
            # If the test crashes the worker later, the user still gets to see this.
            self.outbox.flush()

    def _count(self, report: pytest.TestReport) -> float:
        """Add up the time of a phase; returns the duration to report, which excludes waiting."""
        duration = report.duration if math.isfinite(report.duration) else 0.0
        if report.when == "teardown" and self._waiting:
            duration = max(0.0, duration - self._waiting)
            self._waiting = 0.0
        phase = _PHASES.get(str(report.when))
        if phase is not None:
            shared, self._fixtures.spent = self._fixtures.spent, 0.0
            self._elsewhere += shared
            # The test may have frozen or set pytest's clock, but not ours.
            elapsed = self._clock() - self._begun
            self._phases[phase] += min(max(0.0, duration - shared), elapsed)
            if report.outcome == "failed" or (phase == 1 and report.outcome == "passed"):
                self._ran = True
        return duration

    def _next_index(self) -> Any:
        """The next item's index, or ``Marker.SHUTDOWN``; may send all events and wait for one."""
        index, seconds = self._items.next(self._last)
        self._waiting += seconds
        self._elsewhere += seconds
        return index
