"""The distributed session: xdist's, fed by clones of one prewarmed parent.

What xdist does well it goes on doing: the loop, the schedulers, the hooks, the terminal lines. What
differs is where workers come from (one collector, which reports the collection once), and that a
test's reports come as one message, which is decoded here, in the main loop.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import pytest
from xdist.dsession import Interrupted

from pytest_forkd import PytestForkdWarning
from pytest_forkd.backends.base import Backend, BackendError, WorkerEnd
from pytest_forkd.channel.bounds import line as one_line
from pytest_forkd.channel.bounds import shown
from pytest_forkd.channel.deselected import DeselectedItem
from pytest_forkd.channel.messages import Finished, Unconfigured, unpack_output
from pytest_forkd.controller.batched_terminal import batched_terminal
from pytest_forkd.controller.collector_losses import CollectorLosses, CollectorLost
from pytest_forkd.controller.early_imports import EarlyImports
from pytest_forkd.controller.nodes import ForkdNodeManager, ForkdWorkerController
from pytest_forkd.controller.settings import Settings
from pytest_forkd.controller.suite_memory import WarmMemory, finding_line, warn_about
from pytest_forkd.controller.worker_events import BadEvent, Inbox
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
from pytest_forkd.scheduling.xdist_repair import top_up

__all__ = ["ForkdSession"]


def _refused(why: str) -> Exception:
    """What ends a run whose collector has said what cannot be used."""
    return pytest.exit.Exception(
        f"pytest-forkd: the collector sent a bad message ({one_line(why)})",
        int(pytest.ExitCode.INTERNAL_ERROR),
    )


class ForkdSession(CollectorLosses):
    """Registered as ``dsession``, in the place of xdist's.

    :param config: the controller's configuration.
    :param settings: what the user asked for.
    :param backend: started already.
    :param plan: what its parent was told to import.
    """

    nodemanager: ForkdNodeManager | None

    def __init__(
        self, config: pytest.Config, settings: Settings, backend: Backend, plan: Plan
    ) -> None:
        super().__init__(config)
        self.settings = settings
        self.backend = backend
        self.memory = WarmMemory(config)
        self._recalled = self.memory.recall(settings.warm, backend.worth_sharing)
        self._level_asked = self._recalled.level
        self._early = EarlyImports(config, backend, plan, self._recalled.modules, self.memory)
        self._warm_answer: dict[str, Any] | None = None
        self.inbox = Inbox(self)
        self.durations = Durations(None, self.warn)
        self._estimates: Estimates | None = None
        self._reserve = Reserve(self._call_reserve)
        # Workers append to a log file that the controller has open, too.
        reopen_log_files()

    # -- setting up ----------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Set up the nodes, and ask for a collector."""
        self._session = session
        try:
            self._start_nodes()
        except BaseException as exc:
            # pytest calls no pytest_sessionfinish for a session that could not be started.
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
        if self.backend.shares_files:
            check_open_files(len(self.config.option.tx))
        self.nodemanager = ForkdNodeManager(self.config, self.backend, self.settings.testrunuid)
        self.queue = self.nodemanager.events  # type: ignore[assignment]
        self._active_nodes.update(self.nodemanager.setup_nodes(putevent=self.queue.put))
        self._begin(self._level_asked)
        self.durations = Durations.load(self.config, self.warn)  # while the collector works

    @pytest.hookimpl
    def pytest_report_header(self, config: pytest.Config) -> str:
        """One line about the workers."""
        count = len(config.option.tx)
        line = f"forkd: {count} worker{'s' * (count != 1)}, {self.backend.name} backend"
        origin = self.backend.describe_parent()
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
            # While they end: their memory is what takes time to free.
            self.durations.save(self.inbox.ids or ())
            self.durations = Durations(None, self.warn)  # less to look through for garbage
            self._estimates = None
            end_when_nothing_is_found()
        finally:
            super().pytest_sessionfinish()
        self.backend.close()
        for line in self.backend.leftovers():
            # No warning: after an internal error there is no summary to show it.
            if self.terminal:
                self.terminal.write_line(f"forkd: {line}")
        if self.terminal:
            without_reports_at_exit(self.terminal)

    def _begin(self, level: str) -> None:
        assert self.nodemanager is not None
        self._warm_answer = None
        request = self.nodemanager.request(
            self.settings.warm, level, self._early, self._deadly.known
        )
        self.backend.begin(request, self.nodemanager.events, self)

    @pytest.hookimpl
    def pytest_runtestloop(self) -> bool:
        """Wait for the collection, then loop as xdist does."""
        if not self._settle():
            return True
        assert self.nodemanager is not None
        try:
            with fewer_full_collections(), batched_terminal(self.terminal) as flush:
                self.nodemanager.events.before_wait = flush
                return super().pytest_runtestloop()
        except Interrupted:
            if self._exit is not None:
                raise self._exit from None
            raise

    @pytest.hookimpl(trylast=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """forkd's own scheduler, where no mode was asked for or it serves the mode better."""
        return make_scheduler(
            config, self.settings.own_scheduler, self._estimate
        ) or super().pytest_xdist_make_scheduler(config, log)

    def _estimate(self, ids: Sequence[str], split_scope: SplitScope | None) -> Estimates:
        """What is known of the tests, now that they are."""
        if self._estimates is None:
            known = self.durations.known(ids)
            self._estimates = Estimates(
                ids, known, self.inbox.fixtures, self.durations.fixtures, split_scope
            )
        return self._estimates

    def triggershutdown(self) -> None:
        """Shut down all workers; a run that is to stop does not wait for what they have queued."""
        super().triggershutdown()
        if self.shouldstop:
            self.stop_dealing()

    def stop_dealing(self) -> None:
        """The run is to end: no worker begins what it has queued."""
        if isinstance(self.sched, ForkdScheduling):
            self.sched.withdraw()

    def worker_wants(self, node: ForkdWorkerController, index: int | None) -> None:
        """A worker waits to be told what comes next; xdist's schedulers have told it already."""
        if isinstance(self.sched, ForkdScheduling):
            self.sched.want(node, index)

    def _settle(self) -> bool:
        """Handle events until the warm level is known, and spawn the workers.

        :returns: whether there is anything to run.
        """
        assert self.nodemanager is not None
        while True:
            answer = self._await_answer()
            if "warm" in answer:
                break
            if "unsuitable" in answer:
                self._fall_back(answer["unsuitable"])
            elif "usage_error" in answer:
                raise pytest.UsageError(*answer["usage_error"])
            elif "imported_early" in answer:
                self._early.leave_out(answer["imported_early"])
                self._begin(self._level_asked)
            elif "unconfigured" in answer:
                self._take_unconfigured(**answer["unconfigured"])
                self._begin(self._level_asked)
            elif "ended" in answer:
                ended = answer["ended"]
                failed = [each for each in ended["events"] if isinstance(each, Unconfigured)]
                if not failed:
                    return self._collection_ended(ended)
                self._take_unconfigured(failed[0].usage, shown(failed[0].text))
                self._begin(self._level_asked)
            else:
                raise _refused(answer["broken"])
        warm = answer["warm"]
        self.level = str(warm["level"])
        self.inbox.workers_collect = self.level == "imports"
        nodes = list(self.nodemanager.nodes.values())
        if self.level == "collection":
            nodes = self._take_collection(warm, nodes)
        self.nodemanager.spawn_nodes(nodes)
        self._reserve.watch(self.nodemanager.events)
        return True

    def _await_answer(self) -> dict[str, Any]:
        """The collector's next answer; a lost collector is replaced once."""
        while self._warm_answer is None:
            self.loop_event()
        answer, self._warm_answer = self._warm_answer, None
        return answer

    def worker_collector_answer(self, message: dict[str, Any]) -> None:
        """The collector has answered; :meth:`_await_answer` waits for this."""
        self._warm_answer = message

    def loop_event(self) -> None:
        """Handle one event, before there is a scheduler."""
        name, kwargs = self.queue.get()
        getattr(self, f"worker_{name}")(**kwargs)

    def _take_unconfigured(self, usage: bool, text: str) -> None:
        """A collector or a worker could not be configured, although the controller could.

        :param usage: whether pytest takes that for an error of the user's.
        :param text: what pytest would say.
        :raises pytest.UsageError: or :exc:`pytest.exit.Exception`, unless there is another parent
            to be tried, which has imported nothing early.
        """
        why = text.strip().rpartition("\n")[2]
        if self._early.do_without(why):
            self.report_line(
                "forkd: nothing is imported early any more, since a worker cannot be configured "
                f"then: {one_line(why)}"
            )
            return
        if usage:
            raise pytest.UsageError(text)
        self.inbox.show_internal_error(text)
        raise pytest.exit.Exception(
            "a worker cannot be configured", int(pytest.ExitCode.INTERNAL_ERROR)
        )

    def worker_unconfigured(self, node: ForkdWorkerController, usage: bool, text: str) -> None:
        """A worker that was to configure itself could not; all others will not, either."""
        if node.down:
            return  # one of those that another parent's workers have replaced
        assert self.nodemanager is not None
        reason = "no worker can be configured"
        nodes = [each for each in self.nodemanager.nodes.values() if each.spawned and not each.down]
        try:
            self._take_unconfigured(usage, text)
        except BaseException:
            for each in nodes:
                if each.ready_at is None:  # interrupted, it would show where
                    self.backend.signal(each.gateway.id, signal.SIGKILL)
            raise
        self.nodemanager.warm = False
        for each in nodes:
            each.given_up, each.end = True, WorkerEnd(reason)
            each._down = True  # it is replaced here, and not once more when its end is told
        self._begin("imports")
        answer = self._await_answer()
        if "warm" not in answer:
            raise CollectorLost(f"{reason}, and another collector could not begin: {answer}")
        self.nodemanager.spawn_nodes([])
        for each in nodes:
            self._take_out(each)
            self._replace(each)
            self._active_nodes.discard(each)
            each.discard()

    def _fall_back(self, unsuitable: dict[str, Any]) -> None:
        """The suite cannot share its collection: say why, remember it, go on at level imports."""
        findings = unsuitable["findings"]
        if self.terminal and self.config.option.verbose >= -1:
            # With -q, too, unlike report_line(): later runs say it in the header, which -q hides.
            self.terminal.write_line(
                f"forkd: each worker collects for itself: {finding_line(findings[0], self.config)}"
            )
        self._early.learn(unsuitable["modules"], complete=unsuitable["complete"])
        if unsuitable.get("remember", True):
            self.memory.remember_unsuitable(findings, unsuitable["files"])
        self._level_asked = "imports"
        self._begin("imports")

    def _take_collection(
        self, warm: dict[str, Any], nodes: list[ForkdWorkerController]
    ) -> list[ForkdWorkerController]:
        """Report the collection, once for all workers.

        :returns: the nodes that are worth a process.
        """
        ids = [str(nodeid) for nodeid in warm["ids"]]
        if self.inbox.ids is not None:
            if ids != self.inbox.ids:
                raise CollectorLost("the collector's replacement found different tests")
            return nodes
        self.inbox.ids = ids
        try:
            self.inbox.take_fixtures(warm["fixtures"])
        except BadEvent as exc:
            raise _refused(str(exc)) from None
        warn_about(warm["findings"], self.config, self.warn)
        self._early.learn(warm["modules"], complete=True)
        self.memory.remember_seconds(warm["seconds"])
        self._take_events(nodes[0], warm["events"])
        if self.config.getvalue("dist") == "each":
            return nodes
        nodes = self._keep(nodes, max(1, min(len(nodes), len(ids))))
        if not self._deals():
            return nodes
        begin = self._reserve.split(nodes, lambda ids: self._estimate(ids, None), ids)
        for node in nodes[len(begin) :]:
            self._do_without(node)
        self._have_workers(len(begin))
        return begin

    def _take_events(self, node: ForkdWorkerController, events: list[Any]) -> None:
        try:
            self.inbox.take_collected(node, events)
        except BadEvent as exc:
            raise _refused(str(exc)) from None

    def _have_workers(self, count: int) -> None:
        """Let the options say how many there are: schedulers and plugins wait for so many."""
        self.config.option.tx = ["popen"] * count
        self.config.option.numprocesses = count

    def _deals(self) -> bool:
        """Whether forkd's own scheduler is going to deal, which takes workers at any time."""
        hook = self.config.hook.pytest_xdist_make_scheduler
        return self.settings.own_scheduler and len(hook.get_hookimpls()) == 1

    def _call_reserve(self, nodes: Sequence[ForkdWorkerController]) -> None:
        assert self.nodemanager is not None
        self._active_nodes.update(nodes)
        self._have_workers(len(self.config.option.tx) + len(nodes))
        for node in nodes:
            self.nodemanager.spawn(node)

    def worker_reserve_due(self) -> None:
        """The tests may take longer than was expected."""
        assert self.nodemanager is not None
        possible = self.nodemanager.warm and not self.shuttingdown
        work = isinstance(self.sched, ForkdScheduling) and self.sched.has_work
        self._reserve.due(possible and work, self.nodemanager.events)

    def _do_without(self, node: ForkdWorkerController) -> None:
        self._active_nodes.discard(node)
        if self.terminal:
            self.trdist._status.pop(node.gateway.spec.id, None)

    def _keep(self, nodes: list[ForkdWorkerController], count: int) -> list[ForkdWorkerController]:
        """Do without the nodes after the first ``count``: there are no tests for them."""
        for node in nodes[count:]:
            node.discard()
            self._do_without(node)
        self._have_workers(count)
        for node in nodes[:count]:
            node.workerinput["workercount"] = count
        return nodes[:count]

    def _collection_ended(self, ended: dict[str, Any]) -> bool:
        """The collector's session ended before its run loop: pass on what it had to say."""
        assert self.nodemanager is not None
        self.shouldstop = False
        node = next(iter(self.nodemanager.nodes.values()))
        events = ended["events"]
        self._take_events(node, events)
        self._active_nodes.clear()
        for event in events:
            if isinstance(event, Finished):
                try:
                    output = unpack_output(event.workeroutput)
                except ValueError as exc:
                    raise _refused(f"finished: {exc}") from None
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

    # -- what the backend says (pytest_forkd.backends.base.Listener) ---------------------------

    def on_collector_message(self, message: dict[str, Any]) -> None:
        """Queue the collector's answer behind what has come in before it."""
        self.queue.put(("collector_answer", {"message": message}))

    def on_collector_lost(self, reason: str, end: WorkerEnd | None = None) -> None:
        """Its workers die with it: take what they have still sent, then handle the loss."""
        assert self.nodemanager is not None
        nodes = self.nodemanager.lose_collector(reason)
        self.queue.put(("collector_lost", {"reason": reason, "nodes": nodes, "end": end}))

    def on_worker_exit(self, worker: str, end: WorkerEnd) -> None:
        """Let the node take what the worker has still sent, and tell the session then."""
        assert self.nodemanager is not None
        node = self.nodemanager.nodes.get(worker)
        if node is not None and node.spawned:  # else it is a lie, about nobody
            node.exited(end)

    def _failed_worker_collectreport(
        self, node: Any, rep: pytest.CollectReport | pytest.TestReport
    ) -> None:
        """Report what several workers failed to collect once.

        xdist knows a failure again by its representation, most kinds of which are equal to none.
        """
        key = (rep.nodeid, str(rep.longrepr))
        if key not in self._failed_collection_errors:
            self._failed_collection_errors[key] = True
            self.config.hook.pytest_collectreport(report=rep)
            self._handlefailures(rep)

    def worker_collectionfinish(self, node: Any, ids: Any) -> None:
        """A worker is ready to be given tests."""
        super().worker_collectionfinish(node, ids)
        top_up(self.sched)

    def worker_unscheduled(self, node: Any, indices: Any) -> None:
        """A worker gave tests back; if it has died since, the scheduler has them already."""
        if self.sched is not None and node in self.sched.nodes:
            indices = [index for index in indices if index not in node.begun]
            for index in indices:
                node.given.pop(index, None)
            super().worker_unscheduled(node, indices)

    def warn(self, text: str) -> None:
        """Have the summary show a warning; where warnings are errors, the run goes on, too."""
        try:
            self.config.issue_config_time_warning(PytestForkdWarning(text), stacklevel=2)
        except PytestForkdWarning:
            self.report_line(f"forkd: {text}")

    def add_deselected(self, items: list[DeselectedItem]) -> None:
        """Have the summary say how many tests were deselected, as it does in a plain run."""
        if self.terminal and items:
            self.terminal.stats.setdefault("deselected", []).extend(items)

    def worker_batch(self, node: ForkdWorkerController, payload: bytes) -> None:
        """A message of a worker."""
        self.inbox.receive(node, payload)
