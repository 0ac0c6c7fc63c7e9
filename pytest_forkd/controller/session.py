"""The distributed session: xdist's, fed by clones of one prewarmed parent.

The loop, the schedulers, the hooks and the terminal lines are xdist's. Two things differ: workers
come from one collector, which reports the collection once; and a test's reports come as one
message, which is decoded here, in the main loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_forkd import PytestForkdWarning
from pytest_forkd.backends.base import Backend, BackendError, WorkerEnd
from pytest_forkd.channel.deselected import DeselectedItem
from pytest_forkd.compat.xdist import DistSession, Interrupted
from pytest_forkd.compat.xdist_schedulers import top_up
from pytest_forkd.controller.batched_terminal import batched_terminal
from pytest_forkd.controller.collector_answers import CollectorAnswers
from pytest_forkd.controller.collector_losses import CollectorLosses
from pytest_forkd.controller.early_imports import EarlyImports
from pytest_forkd.controller.internals import remember_internals
from pytest_forkd.controller.node_manager import ForkdNodeManager
from pytest_forkd.controller.nodes import ForkdWorkerController
from pytest_forkd.controller.run_gain import RunGain
from pytest_forkd.controller.settings import Settings
from pytest_forkd.controller.suite_memory import WarmMemory, finding_line
from pytest_forkd.controller.worker_ends import WorkerEnds
from pytest_forkd.controller.worker_events import WorkerEvents
from pytest_forkd.parent.plan import Plan
from pytest_forkd.runtime.gc_tuning import (
    end_when_nothing_is_found,
    fewer_full_collections,
    without_reports_at_exit,
)
from pytest_forkd.runtime.limits import check_open_files, which_limit
from pytest_forkd.runtime.log_files import reopen_log_files
from pytest_forkd.scheduling import Estimates, ForkdScheduling, SplitScope, make_scheduler
from pytest_forkd.scheduling.durations import Durations
from pytest_forkd.scheduling.reserve import Reserve

__all__ = ["ForkdSession"]


class ForkdSession(DistSession):
    """Registered as ``dsession``, in place of xdist's session.

    It is a :class:`~pytest_forkd.controller.run.Run` to its parts, and a
    :class:`~pytest_forkd.backends.base.Listener` to the backend.

    :param config: the controller's configuration.
    :param settings: what the user asked for.
    :param backend: must have been started.
    :param plan: what its parent was told to import.
    """

    nodemanager: ForkdNodeManager | None

    def __init__(
        self, config: pytest.Config, settings: Settings, backend: Backend, plan: Plan
    ) -> None:
        super().__init__(config)
        self.settings = settings
        self.backend = backend
        self.level: str | None = None
        self.memory = WarmMemory(config, settings.keep_ignore_env)
        self._recalled = self.memory.recall(settings.warm, backend.min_shared_collection_seconds)
        self.durations = Durations(None, self.warn)
        self.gain = RunGain()
        self._origin = ""
        self._estimates: Estimates | None = None
        self._reserve: Reserve[ForkdWorkerController] = Reserve(self._call_reserve)
        self.events = WorkerEvents(self)
        self.ends = WorkerEnds(self)
        self.losses = CollectorLosses(self, self.ends)
        self.collector = CollectorAnswers(
            self,
            warm=settings.warm,
            recalled=self._recalled,
            early=EarlyImports(config, backend, plan, self._recalled.modules, self.memory),
            events=self.events,
            ends=self.ends,
            losses=self.losses,
            handle_event=self.handle_event,
            choose_nodes=self._choose_nodes,
        )
        #: Handlers of the events that nodes, the backend and the clock put into the queue.
        self._event_handlers: dict[str, Callable[..., None]] = {
            "batch": self.events.receive,
            "unscheduled": self.worker_unscheduled,
            "workerfinished": self.worker_workerfinished,
            "exited": self._worker_exited,
            "collector_answer": self.collector.answered,
            "collector_lost": self._collector_lost,
            "reserve_due": self._reserve_due,
        }
        # Workers write to the same log files, so the controller must append, too.
        reopen_log_files()

    @property
    def nodes(self) -> ForkdNodeManager:
        """The workers, once the session has been started."""
        assert self.nodemanager is not None
        return self.nodemanager

    # -- setting up ----------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Set up the nodes, and ask for a collector."""
        self.pytest_session = session
        try:
            self._start_nodes()
        except BaseException as exc:
            # pytest does not call pytest_sessionfinish for a session that could not start.
            if self.nodemanager is not None:
                self.nodemanager.teardown_nodes()
                self.nodemanager = None
            self.backend.close()
            if isinstance(exc, OSError):
                if short := which_limit(str(exc)):
                    raise pytest.UsageError(f"pytest-forkd: {exc}{short}") from exc
                raise pytest.UsageError(
                    f"pytest-forkd: cannot make the workers' temporary directories: {exc}\n"
                    "Set TMPDIR, or --basetemp, to a directory that has space and is writable."
                ) from exc
            if isinstance(exc, BackendError):
                raise pytest.UsageError(f"pytest-forkd: {exc}") from exc
            raise

    def _start_nodes(self) -> None:
        if self.backend.can_lock_files:
            check_open_files(len(self.config.option.tx))
        self.nodemanager = ForkdNodeManager(self.config, self.backend, self.settings.testrunuid)
        self.queue = self.nodemanager.events  # type: ignore[assignment]
        self.active_nodes.update(self.nodemanager.setup_nodes(putevent=self.queue.put))
        self.collector.begin(self.collector.level_asked)
        self.durations = Durations.load(self.config, self.warn)  # while the collector works

    @pytest.hookimpl
    def pytest_report_header(self, config: pytest.Config) -> str:
        """One line about the workers."""
        count = len(config.option.tx)
        line = f"forkd: {count} worker{'s' * (count != 1)}, {self.backend.name} backend"
        try:
            origin = self.backend.describe_parent()
        except BackendError as exc:  # a kept parent was of no use, and no other can be made
            raise pytest.UsageError(f"pytest-forkd: {exc}") from exc
        self._origin = origin
        if origin:
            line += f", {origin}"
        if self._recalled.finding is not None:
            line += f"; each collects for itself: {finding_line(self._recalled.finding, config)}"
        return line

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Shut down all nodes, the collector and the parent."""
        try:
            if self.nodemanager is not None:
                self.nodemanager.expect_end()
            # Do this while the workers end, since freeing their memory takes time.
            self.durations.save(self.events.collection.ids or ())
            self.durations = Durations(None, self.warn)  # fewer objects for the garbage collector
            self._estimates = None
            end_when_nothing_is_found()
        finally:
            super().pytest_sessionfinish()
        self.backend.close()
        for line in self.backend.leftovers():
            # Not a warning: after an internal error there is no summary to show it.
            if self.terminal:
                self.terminal.write_line(f"forkd: {line}")
        if self.terminal:
            without_reports_at_exit(self.terminal)

    # -- the loop ------------------------------------------------------------------------------

    @pytest.hookimpl
    def pytest_runtestloop(self) -> bool:
        """Wait for the collection, then loop as xdist does."""
        if not self.collector.settle():
            return True
        remember_internals(self.config)
        self._reserve.watch(self.nodes.events)
        try:
            with fewer_full_collections(), batched_terminal(self.terminal) as flush:
                self.nodes.events.before_wait = flush
                return super().pytest_runtestloop()
        except Interrupted:
            if self.ends.exit is not None:
                raise self.ends.exit from None
            raise

    def handle_event(self) -> None:
        """Handle one event; waits for it."""
        name, kwargs = self.queue.get()
        self._event_handlers[name](**kwargs)

    def loop_once(self) -> None:
        """Handle one event, and end the workers once there is nothing left for them."""
        if not self.active_nodes:
            self.triggershutdown()
            raise RuntimeError("Unexpectedly no active workers available")
        self.handle_event()
        assert self.sched is not None
        if self.sched.tests_finished:
            self.triggershutdown()

    @pytest.hookimpl(trylast=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """forkd's own scheduler, if the user asked for no mode or for one that it implements."""
        return make_scheduler(
            config, self.settings.own_scheduler, self._estimate
        ) or super().pytest_xdist_make_scheduler(config, log)

    def _estimate(self, ids: Sequence[str], split_scope: SplitScope | None) -> Estimates:
        """The estimates for the tests, now that their ids are known; made once."""
        if self._estimates is None:
            known = self.durations.known(ids)
            self._estimates = Estimates(
                ids, known, self.events.collection.fixtures, self.durations.fixtures, split_scope
            )
        return self._estimates

    def triggershutdown(self) -> None:
        """Shut down all workers; a run that is to stop does not wait for their queues."""
        super().triggershutdown()
        if self.shouldstop:
            self.stop_dealing()

    def stop_dealing(self) -> None:
        """End the run early: workers do not begin the items in their queues."""
        if isinstance(self.sched, ForkdScheduling):
            self.sched.withdraw()

    # -- how many workers ----------------------------------------------------------------------

    def _choose_nodes(
        self, nodes: list[ForkdWorkerController], ids: Sequence[str]
    ) -> list[ForkdWorkerController]:
        """The nodes that are worth a worker; the others are dropped, or held in reserve."""
        if self.config.getvalue("dist") == "each":
            return nodes
        nodes = self._drop_spare(nodes, max(1, min(len(nodes), len(ids))))
        if not self._deals():
            return nodes
        begin = self._reserve.split(nodes, lambda ids: self._estimate(ids, None), ids)
        for node in nodes[len(begin) :]:
            self._do_without(node)
        self._have_workers(len(begin))
        return begin

    def _drop_spare(
        self, nodes: list[ForkdWorkerController], count: int
    ) -> list[ForkdWorkerController]:
        """Drop the nodes after the first ``count``: there are no tests for them."""
        for node in nodes[count:]:
            node.discard()
            self._do_without(node)
        self._have_workers(count)
        for node in nodes[:count]:
            node.workerinput["workercount"] = count
        return nodes[:count]

    def _do_without(self, node: ForkdWorkerController) -> None:
        self.active_nodes.discard(node)
        self.forget_status(node)

    def _have_workers(self, count: int) -> None:
        """Set the number of workers in the options: schedulers and plugins wait for that many."""
        self.config.option.tx = ["popen"] * count
        self.config.option.numprocesses = count

    def _deals(self) -> bool:
        """Whether forkd's own scheduler will be used, which accepts workers at any time."""
        hook = self.config.hook.pytest_xdist_make_scheduler
        return self.settings.own_scheduler and len(hook.get_hookimpls()) == 1

    def _call_reserve(self, nodes: Sequence[ForkdWorkerController]) -> None:
        self.active_nodes.update(nodes)
        self._have_workers(len(self.config.option.tx) + len(nodes))
        for node in nodes:
            self.nodes.spawn(node)

    def _reserve_due(self) -> None:
        """Call more workers if tests take longer than expected."""
        possible = self.nodes.warm and not self.shuttingdown
        work = isinstance(self.sched, ForkdScheduling) and self.sched.has_work
        self._reserve.due(possible and work, self.nodes.events)

    # -- what the backend says (pytest_forkd.backends.base.Listener) ---------------------------

    def on_collector_message(self, message: dict[str, Any]) -> None:
        """Queue the collector's answer, after the events that came before it."""
        self.queue.put(("collector_answer", {"message": message}))

    def on_collector_lost(self, reason: str, end: WorkerEnd | None = None) -> None:
        """Read the last messages of the workers, which die with it, then queue the loss."""
        nodes = self.nodes.lose_collector(reason)
        self.queue.put(("collector_lost", {"reason": reason, "nodes": nodes, "end": end}))

    def on_worker_exit(self, worker: str, end: WorkerEnd) -> None:
        """Have the node read the worker's last messages, then queue its end."""
        node = self.nodes.nodes.get(worker)
        if node is not None and node.spawned:  # else the message is wrong: no such worker
            node.exited(end)

    def _collector_lost(
        self, reason: str, nodes: list[ForkdWorkerController], end: WorkerEnd | None
    ) -> None:
        self.losses.collector_lost(reason, nodes, end, self.collector)

    def _worker_exited(self, node: ForkdWorkerController) -> None:
        self.losses.worker_exited(node, self.collector)

    # -- what workers say (pytest_forkd.controller.run.Run) ------------------------------------

    def worker_workerfinished(  # type: ignore[override]
        self, node: ForkdWorkerController
    ) -> None:
        """A worker's session has ended."""
        if not self.ends.interrupted(node):
            super().worker_workerfinished(node)

    def worker_unconfigured(self, node: ForkdWorkerController, usage: bool, text: str) -> None:
        """A worker could not configure itself."""
        self.collector.worker_unconfigured(node, usage, text)

    def worker_wants(self, node: ForkdWorkerController, index: int | None) -> None:
        """A worker waits for its next item; xdist's schedulers need not be told."""
        if isinstance(self.sched, ForkdScheduling):
            self.sched.want(node, index)

    def _failed_worker_collectreport(
        self, node: Any, rep: pytest.CollectReport | pytest.TestReport
    ) -> None:
        """Report only once what several workers failed to collect.

        xdist compares the representations of failures, but most kinds of them are never equal.
        """
        if self.is_new_collection_error((rep.nodeid, str(rep.longrepr))):
            self.config.hook.pytest_collectreport(report=rep)
            self.stop_after_failures(rep)

    def worker_collectionfinish(self, node: Any, ids: Any) -> None:
        """A worker is ready to be given tests."""
        super().worker_collectionfinish(node, ids)
        self.gain.ready()
        top_up(self.sched)

    def worker_runtest_protocol_complete(self, node: Any, item_index: int, duration: float) -> None:
        """A test has been run."""
        self.gain.ran(node.gateway.id, duration, lambda: self.events.nodeid(node, item_index))
        super().worker_runtest_protocol_complete(node, item_index, duration)

    def worker_unscheduled(self, node: Any, indices: Any) -> None:
        """A worker has given tests back; if it has died since, the scheduler has them already."""
        if self.sched is not None and node in self.sched.nodes:
            indices = [index for index in indices if index not in node.begun]
            for index in indices:
                node.given.pop(index, None)
            super().worker_unscheduled(node, indices)

    # -- what is shown -------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What the workers were good for, but for ``-q``; with ``-v``, each of them."""
        super().pytest_terminal_summary(terminalreporter)
        verbose = self.config.option.verbose
        if verbose >= 0 and not self.config.option.no_summary:
            for line in self.gain.lines(self._origin, workers=verbose > 0):
                terminalreporter.write_line(line)

    def warn(self, text: str) -> None:
        """Have the summary show a warning; the run goes on even if warnings are errors."""
        try:
            self.config.issue_config_time_warning(PytestForkdWarning(text), stacklevel=2)
        except PytestForkdWarning:
            self.report_line(f"forkd: {text}")

    def add_deselected(self, items: list[DeselectedItem]) -> None:
        """Count deselected tests in the summary, as in a plain run."""
        if self.terminal and items:
            self.terminal.stats.setdefault("deselected", []).extend(items)
