"""How a run begins: it asks for a collector, and handles its answer.

A collector answers with a collection for all workers, with the reason why it cannot be shared, or
with the reason why it could not collect. See ``parent/worker/collector.py`` for the answers.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import pytest

from pytest_forkd.backends.base import WorkerEnd
from pytest_forkd.channel.bounds import line as one_line
from pytest_forkd.channel.bounds import shown
from pytest_forkd.channel.messages import Finished, Unconfigured
from pytest_forkd.channel.worker_output import unpack_output
from pytest_forkd.controller.collector_losses import CollectorLosses, CollectorLost
from pytest_forkd.controller.early_imports import EarlyImports
from pytest_forkd.controller.nodes import ForkdWorkerController
from pytest_forkd.controller.run import Run
from pytest_forkd.controller.suite_memory import Recalled, finding_line, warn_about
from pytest_forkd.controller.worker_ends import WorkerEnds
from pytest_forkd.controller.worker_errors import BadEvent, show_internal_error
from pytest_forkd.controller.worker_events import WorkerEvents

__all__ = ["CollectorAnswers"]


def _refuse(why: str) -> NoReturn:
    """End a run whose collector has sent an unusable answer."""
    raise pytest.exit.Exception(
        f"pytest-forkd: the collector sent a bad message ({one_line(why)})",
        int(pytest.ExitCode.INTERNAL_ERROR),
    )


class CollectorAnswers:
    """Asks for collectors until the warm level is settled, and takes over the collection.

    :param run: the run.
    :param warm: the warm level that the user wants: ``auto``, ``collection`` or ``imports``.
    :param recalled: what is known about the suite from earlier runs.
    :param early: what the parent imports before the suite does.
    :param events: takes the collector's events.
    :param ends: handles the ends of workers.
    :param losses: knows the files that have ended a collector.
    :param handle_event: waits for the next event of the run, and handles it.
    :param choose_nodes: returns the nodes that are worth a worker, for the ids of the tests.
    """

    def __init__(
        self,
        run: Run,
        *,
        warm: str,
        recalled: Recalled,
        early: EarlyImports,
        events: WorkerEvents,
        ends: WorkerEnds,
        losses: CollectorLosses,
        handle_event: Callable[[], None],
        choose_nodes: Callable[
            [list[ForkdWorkerController], Sequence[str]], list[ForkdWorkerController]
        ],
    ) -> None:
        self._run = run
        self._warm = warm
        self._early = early
        self._events = events
        self._ends = ends
        self._losses = losses
        self._handle_event = handle_event
        self._choose_nodes = choose_nodes
        self._answer: dict[str, Any] | None = None
        #: The warm level to ask for.
        self.level_asked = recalled.level

    # -- asking --------------------------------------------------------------------------------

    def begin(self, level: str) -> None:
        """Ask for a collector.

        :param level: the warm level to try.
        """
        self._answer = None
        run = self._run
        request = run.nodes.request(self._warm, level, self._early, self._losses.deadly.known)
        run.backend.begin(request, run.nodes.events, run)

    def answered(self, message: dict[str, Any]) -> None:
        """Take the collector's answer, which :meth:`await_answer` waits for."""
        self._answer = message

    def await_answer(self) -> dict[str, Any]:
        """Wait for the collector's next answer; a lost collector is replaced once."""
        while self._answer is None:
            self._handle_event()
        answer, self._answer = self._answer, None
        return answer

    def settle(self) -> bool:
        """Handle events until the warm level is known, and spawn the workers.

        :returns: whether there is anything to run.
        """
        while True:
            answer = self.await_answer()
            if "warm" in answer:
                break
            if "unsuitable" in answer:
                self._fall_back(answer["unsuitable"])
            elif "usage_error" in answer:
                raise pytest.UsageError(*answer["usage_error"])
            elif "imported_early" in answer:
                self._early.leave_out(answer["imported_early"])
                self.begin(self.level_asked)
            elif "unconfigured" in answer:
                self._take_unconfigured(**answer["unconfigured"])
                self.begin(self.level_asked)
            elif "ended" in answer:
                ended = answer["ended"]
                failed = [each for each in ended["events"] if isinstance(each, Unconfigured)]
                if not failed:
                    return self._collection_ended(ended)
                self._take_unconfigured(failed[0].usage, shown(failed[0].text))
                self.begin(self.level_asked)
            else:
                _refuse(answer["broken"])
        warm = answer["warm"]
        run = self._run
        run.level = str(warm["level"])
        self._events.collection.workers_collect = run.level == "imports"
        nodes = list(run.nodes.nodes.values())
        if run.level == "collection":
            nodes = self.take_collection(warm, nodes)
        run.nodes.spawn_nodes(nodes)
        return True

    # -- answers -------------------------------------------------------------------------------

    def _fall_back(self, unsuitable: dict[str, Any]) -> None:
        """Go on at level imports: say why the collection cannot be shared, and remember it."""
        run = self._run
        findings = unsuitable["findings"]
        if run.terminal and run.config.option.verbose >= -1:
            # Also with -q, unlike report_line(): later runs say it in the header, which -q hides.
            run.terminal.write_line(
                f"forkd: each worker collects for itself: {finding_line(findings[0], run.config)}"
            )
        self._early.learn(unsuitable["modules"], complete=unsuitable["complete"])
        if unsuitable.get("remember", True):
            run.memory.remember_unsuitable(findings, unsuitable["files"])
        self.level_asked = "imports"
        self.begin("imports")

    def take_collection(
        self, warm: dict[str, Any], nodes: list[ForkdWorkerController]
    ) -> list[ForkdWorkerController]:
        """Report the collection, once for all workers.

        :returns: the nodes that are worth a process.
        """
        run = self._run
        ids = [str(nodeid) for nodeid in warm["ids"]]
        if self._events.collection.ids is not None:
            if ids != self._events.collection.ids:
                raise CollectorLost("the collector's replacement found different tests")
            return nodes
        self._events.collection.ids = ids
        try:
            self._events.collection.take_fixtures(warm["fixtures"])
        except BadEvent as exc:
            _refuse(str(exc))
        warn_about(warm["findings"], run.config, run.warn)
        self._early.learn(warm["modules"], complete=True)
        run.memory.remember_seconds(warm["seconds"])
        run.gain.collected(warm["seconds"])
        self._take_events(nodes[0], warm["events"])
        return self._choose_nodes(nodes, ids)

    def _take_events(self, node: ForkdWorkerController, events: list[Any]) -> None:
        try:
            self._events.take_collected(node, events)
        except BadEvent as exc:
            _refuse(str(exc))

    def _collection_ended(self, ended: dict[str, Any]) -> bool:
        """Pass on the events of a collector whose session ended before its run loop."""
        run = self._run
        run.shouldstop = False
        node = next(iter(run.nodes.nodes.values()))
        events = ended["events"]
        self._take_events(node, events)
        run.active_nodes.clear()
        for event in events:
            if isinstance(event, Finished):
                try:
                    output = unpack_output(event.workeroutput)
                except ValueError as exc:
                    _refuse(f"finished: {exc}")
                reason = output["shouldfail"] or output["shouldstop"]
                if reason:
                    raise pytest.Session.Interrupted(str(reason))
        if node.interruption is not None:
            kind, message, returncode = node.interruption
            if kind == "exit":
                raise pytest.exit.Exception(message, returncode)
            raise KeyboardInterrupt(message)
        if node.internal_errors:
            raise pytest.exit.Exception(
                "internal error while collecting", int(pytest.ExitCode.INTERNAL_ERROR)
            )
        return False

    # -- what cannot be configured -------------------------------------------------------------

    def _take_unconfigured(self, usage: bool, text: str) -> None:
        """Handle that a collector or worker could not be configured, although the controller was.

        :param usage: whether pytest treats that as a usage error.
        :param text: what pytest would print.
        :raises pytest.UsageError: or :exc:`pytest.exit.Exception`, unless a parent without early
            imports can be tried instead.
        """
        why = text.strip().rpartition("\n")[2]
        if self._early.do_without(why):
            self._run.report_line(
                "forkd: nothing is imported early any more, since a worker cannot be configured "
                f"then: {one_line(why)}"
            )
            return
        if usage:
            raise pytest.UsageError(text)
        show_internal_error(self._run.config, text)
        raise pytest.exit.Exception(
            "a worker cannot be configured", int(pytest.ExitCode.INTERNAL_ERROR)
        )

    def worker_unconfigured(self, node: ForkdWorkerController, usage: bool, text: str) -> None:
        """Handle that a worker could not configure itself; the others will fail, too."""
        if node.down:
            return  # it has been replaced already
        run = self._run
        reason = "no worker can be configured"
        nodes = [each for each in run.nodes.nodes.values() if each.spawned and not each.down]
        try:
            self._take_unconfigured(usage, text)
        except BaseException:
            for each in nodes:
                if each.ready_at is None:  # SIGINT would make it print a traceback
                    run.backend.signal(each.gateway.id, signal.SIGKILL)
            raise
        run.nodes.warm = False
        for each in nodes:
            each.given_up, each.end = True, WorkerEnd(reason)
            each.mark_down()  # it is replaced here, so not again when its end is reported
        self.begin("imports")
        answer = self.await_answer()
        if "warm" not in answer:
            raise CollectorLost(f"{reason}, and another collector could not begin: {answer}")
        run.nodes.spawn_nodes([])
        for each in nodes:
            self._ends.make_up_for(each, *self._ends.take_out(each))
            each.discard()
