"""The distributed session: xdist's, fed by clones of one prewarmed parent.

What xdist does well it goes on doing: the loop, the schedulers, the hooks, the terminal lines. What
differs is where workers come from (one collector, which reports the collection once), and that a
test's reports come as one message, which is decoded here, in the main loop.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.dsession import DSession, Interrupted
from xdist.scheduler import LoadScopeScheduling

from pytest_forkd.backends.base import Backend, BackendError, WorkerEnd
from pytest_forkd.channel.events import decode_batch, unpack_object, unpack_report
from pytest_forkd.crash import crash_report
from pytest_forkd.nodes import ForkdNodeManager, ForkdWorkerController
from pytest_forkd.safewarnings import rebuild_warning
from pytest_forkd.settings import Settings
from pytest_forkd.warm import WarmMemory, finding_line, warn_about

__all__ = ["ForkdSession"]


class CollectorLost(RuntimeError):
    """The collector died twice; there is no third try."""


class ForkdSession(DSession):
    """Registered as ``dsession``, in the place of xdist's.

    :param config: the controller's configuration.
    :param settings: what the user asked for.
    :param backend: started already.
    """

    nodemanager: ForkdNodeManager | None

    def __init__(self, config: pytest.Config, settings: Settings, backend: Backend) -> None:
        super().__init__(config)
        self.settings = settings
        self.backend = backend
        self.memory = WarmMemory(config)
        #: The warm level in use: ``collection`` or ``imports``; ``None`` until it is settled.
        self.level: str | None = None
        self._level_asked = "collection"
        self._modules: list[str] | None = None
        self._warm_answer: dict[str, Any] | None = None
        self._ids: list[str] | None = None
        self._collector_losses = 0
        self._exit: Exception | None = None

    # -- setting up ----------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Set up the nodes, and ask for a collector."""
        self._session = session
        try:
            self.nodemanager = ForkdNodeManager(self.config, self.backend)
            self.queue = self.nodemanager.events  # type: ignore[assignment]
            nodes = self.nodemanager.setup_nodes(putevent=self.queue.put)
        except OSError as exc:
            self.backend.close()
            raise pytest.UsageError(
                f"pytest-forkd: cannot make the workers' temporary directories: {exc}\n"
                "Set TMPDIR, or --basetemp, to a directory with free space that you may write to."
            ) from exc
        self._active_nodes.update(nodes)
        self._level_asked, self._modules = self.memory.recall(self.settings.warm)
        try:
            self._begin(self._level_asked)
        except BackendError as exc:
            self.nodemanager.teardown_nodes()
            self.nodemanager = None
            raise pytest.UsageError(f"pytest-forkd: {exc}") from exc

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Shut down all nodes, the collector and the parent."""
        super().pytest_sessionfinish()
        self.backend.close()

    def _begin(self, level: str) -> None:
        assert self.nodemanager is not None
        self._warm_answer = None
        request = self.nodemanager.request(self.settings.warm, level, self._modules)
        self.backend.begin(request, self.nodemanager.events, self)

    @pytest.hookimpl
    def pytest_runtestloop(self) -> bool:
        """Wait for the collection, then loop as xdist does."""
        if not self._settle():
            return True
        try:
            return super().pytest_runtestloop()
        except Interrupted:
            if self._exit is not None:
                raise self._exit from None
            raise

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
            else:
                return self._collection_ended(answer.get("ended", {}))
        warm = answer["warm"]
        self.level = str(warm["level"])
        nodes = list(self.nodemanager.nodes.values())
        if self.level == "collection":
            nodes = self._take_collection(warm, nodes)
        self.nodemanager.spawn_nodes(nodes)
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

    def _fall_back(self, unsuitable: dict[str, Any]) -> None:
        """The suite cannot share its collection: say why, remember it, go on at level imports."""
        findings = unsuitable["findings"]
        self.report_line(
            f"forkd: each worker collects for itself: {finding_line(findings[0], self.config)}"
        )
        self._modules = unsuitable["modules"]
        self.memory.remember_unsuitable(findings, self._modules, unsuitable["files"])
        self._level_asked = "imports"
        self._begin("imports")

    def _take_collection(
        self, warm: dict[str, Any], nodes: list[ForkdWorkerController]
    ) -> list[ForkdWorkerController]:
        """Report the collection, once for all workers.

        :returns: the nodes that are worth a process.
        """
        ids = [str(nodeid) for nodeid in warm["ids"]]
        if self._ids is not None:
            if ids != self._ids:
                raise CollectorLost("the collector's replacement found different tests")
            return nodes
        self._ids = ids
        warn_about(warm["findings"], self.config)
        self.memory.remember_modules(warm["modules"])
        self._dispatch(nodes[0], warm["events"])
        if self.config.getvalue("dist") == "each":
            return nodes
        return self._keep(nodes, max(1, min(len(nodes), len(ids))))

    def _keep(self, nodes: list[ForkdWorkerController], count: int) -> list[ForkdWorkerController]:
        """Do without the nodes after the first ``count``: there are no tests for them."""
        for node in nodes[count:]:
            node.discard()
            self._active_nodes.discard(node)
            if self.terminal:
                self.trdist._status.pop(node.gateway.spec.id, None)
        # Schedulers wait for as many nodes as there are --tx entries.
        self.config.option.tx = self.config.option.tx[:count]
        return nodes[:count]

    def _collection_ended(self, ended: dict[str, Any]) -> bool:
        """The collector's session ended before its run loop: pass on what it had to say."""
        assert self.nodemanager is not None
        self.shouldstop = False
        node = next(iter(self.nodemanager.nodes.values()))
        events = ended.get("events", [])
        self._dispatch(node, [event for event in events if event[0] != "finished"])
        self._active_nodes.clear()
        if self._exit is not None:
            raise self._exit
        for event in events:
            if event[0] == "finished":
                output = unpack_object(event[1])
                reason = output.get("shouldfail") or output.get("shouldstop")
                if reason:
                    raise pytest.Session.Interrupted(str(reason))
        if node.interruption is not None:
            raise KeyboardInterrupt(node.interruption[1])
        if any(event[0] == "internal_error" for event in events):
            assert self._session is not None
            raise pytest.exit.Exception(
                "internal error while collecting", int(pytest.ExitCode.INTERNAL_ERROR)
            )
        return False

    # -- what the backend says (pytest_forkd.backends.base.Listener) ---------------------------

    def on_collector_message(self, message: dict[str, Any]) -> None:
        """Queue the collector's answer behind what has come in before it."""
        self.queue.put(("collector_answer", {"message": message}))

    def on_collector_lost(self, reason: str) -> None:
        """Its workers die with it: take what they have still sent, then handle the loss."""
        assert self.nodemanager is not None
        nodes = self.nodemanager.lose_collector(reason)
        self.queue.put(("collector_lost", {"reason": reason, "nodes": nodes}))

    def on_worker_exit(self, worker: str, end: WorkerEnd) -> None:
        """Let the node take what the worker has still sent, and tell the session then."""
        assert self.nodemanager is not None
        self.nodemanager.nodes[worker].exited(end)

    # -- the end of a worker -------------------------------------------------------------------

    def worker_exited(self, node: ForkdWorkerController) -> None:
        """A worker's process has ended, in good order or not."""
        assert node.end is not None
        if not node.down:
            self.worker_errordown(node, f"Not properly terminated: {node.end.reason}")

    def worker_errordown(  # type: ignore[override]
        self, node: ForkdWorkerController, error: object | None
    ) -> None:
        """A worker died: blame the test that was running, and replace the worker."""
        node._down = True
        self.config.hook.pytest_testnodedown(node=node, error=error)
        crashitem = self._take_from_scheduler(node)
        if crashitem:
            self.handle_crashitem(crashitem, node)
        self._failed_nodes_count += 1
        limit = self._max_worker_restart
        if limit is not None and self._failed_nodes_count > limit:
            if limit == 0:
                message = f"worker {node.gateway.id} crashed and worker restarting disabled"
            else:
                message = f"maximum crashed workers reached: {limit}"
            self._summary_report = message
            self.report_line(f"\n{message}")
            self.triggershutdown()
        else:
            self.report_line(f"\nreplacing crashed worker {node.gateway.id}")
            self._replace(node)
        self._active_nodes.discard(node)

    def _replace(self, node: ForkdWorkerController) -> None:
        self.shuttingdown = False
        self._clone_node(node)

    def _take_from_scheduler(self, node: ForkdWorkerController) -> str | None:
        """Take a dead node out of the scheduler, which gives its other tests to the others.

        xdist's schedulers take the first test that a node has not completed for the one that
        crashed it. Here the worker has told what it was running, so a worker that died between
        tests crashes none, and a scope's tests are not run again with the one that crashed.

        :returns: the id of the test that was running.
        """
        sched = self.sched
        if sched is None or node not in sched.nodes:
            return None
        running = None if node.running is None else self._nodeid(node, node.running)
        if isinstance(sched, LoadScopeScheduling):
            if running is not None:
                scope = sched._split_scope(running)
                sched.assigned_work[node][scope][running] = True
            sched.remove_node(node)  # what it returns has not begun, and is queued again
            return running
        first = sched.remove_node(node)
        if first is not None and running is None and self.config.getvalue("dist") != "each":
            sched.mark_test_pending(first)
            return None
        return first

    def worker_collector_lost(self, reason: str, nodes: list[ForkdWorkerController]) -> None:
        """The collector died: start another one, once, and replace all workers."""
        self._collector_losses += 1
        if self.level is not None and not nodes:
            return  # every worker had finished
        if self._collector_losses > 1:
            raise CollectorLost(f"{reason}; so did the one before it")
        self.report_line(f"\nforkd: {reason}; starting another one")
        level = self.level or self._level_asked
        try:
            self._begin(level)
        except BackendError as exc:
            raise CollectorLost(f"{reason}; no other can be started: {exc}") from exc
        if self.level is None:
            return
        answer = self._await_answer()
        if "warm" not in answer:
            raise CollectorLost(f"{reason}; the one started instead could not collect: {answer}")
        if self.level == "collection":
            self._take_collection(answer["warm"], [])
        assert self.nodemanager is not None
        self.nodemanager.spawn_nodes([])
        for node in nodes:
            node._down = True
            self.config.hook.pytest_testnodedown(node=node, error=reason)
            interrupted = self._take_from_scheduler(node)
            if interrupted:
                self._run_again(interrupted)
            self._replace(node)
            self._active_nodes.discard(node)

    def _run_again(self, nodeid: str) -> None:
        """Queue a test that was cut short through no fault of its own."""
        sched = self.sched
        assert sched is not None
        if isinstance(sched, LoadScopeScheduling):
            scope = sched._split_scope(nodeid)
            sched.workqueue.setdefault(scope, {})[nodeid] = False
        else:
            sched.mark_test_pending(nodeid)

    def handle_crashitem(  # type: ignore[override]
        self, nodeid: str, worker: ForkdWorkerController
    ) -> None:
        """Report a test as failed because its worker died."""
        report = crash_report(nodeid, worker)
        self.config.hook.pytest_handlecrashitem(crashitem=nodeid, report=report, sched=self.sched)
        self.config.hook.pytest_runtest_logreport(report=report)
        self._handlefailures(report)

    def worker_workerfinished(  # type: ignore[override]
        self, node: ForkdWorkerController
    ) -> None:
        """A worker's session has ended; it may want the whole run to end."""
        interruption = node.interruption
        if interruption is None and not node.internal_error:
            super().worker_workerfinished(node)
            return
        self.config.hook.pytest_testnodedown(node=node, error=None)
        if interruption is None:
            reason = f"worker {node.gateway.id} had an internal error"
            self._exit = pytest.exit.Exception(reason, int(pytest.ExitCode.INTERNAL_ERROR))
        elif interruption[0] == "exit":
            reason = interruption[1]
            self._exit = pytest.exit.Exception(reason, interruption[2])
        else:
            reason = f"{node} received keyboard-interrupt"
        self.shouldstop = self.shouldstop or reason or "exit"
        if self.sched is not None and node in self.sched.nodes:
            self.sched.remove_node(node)
        self._active_nodes.discard(node)

    # -- what workers say ----------------------------------------------------------------------

    def worker_batch(self, node: ForkdWorkerController, payload: bytes) -> None:
        """A message of a worker: several events, decoded and checked here."""
        try:
            events = decode_batch(payload)
        except ValueError as exc:
            node.broke_protocol(str(exc))
            return
        self._dispatch(node, events)

    def _dispatch(self, node: ForkdWorkerController, events: list[list[Any]]) -> None:
        for name, *args in events:
            handler = getattr(self, f"_on_{name}", None)
            try:
                if handler is None:
                    raise BadEvent(f"unknown event {name!r}")
                handler(node, *args)
            except BadEvent as exc:
                node.broke_protocol(f"{name}: {exc}")
                return

    def _nodeid(self, node: ForkdWorkerController, index: Any) -> str:
        """The id of a node's item, checked."""
        ids = node.ids
        if type(index) is not int or ids is None or not 0 <= index < len(ids):
            raise BadEvent(f"no item has the index {index!r}")
        return ids[index]

    def _on_start(self, node: ForkdWorkerController, index: Any, location: Any) -> None:
        nodeid = self._nodeid(node, index)
        node.running = index
        node.location = location = _location(location)
        node.sections = []
        self.worker_logstart(node, nodeid, location)

    def _on_logstart(self, node: ForkdWorkerController, nodeid: Any, location: Any) -> None:
        self.worker_logstart(node, _text(nodeid), _location(location))

    def _on_logfinish(self, node: ForkdWorkerController, nodeid: Any, location: Any) -> None:
        self.worker_logfinish(node, _text(nodeid), _location(location))

    def _on_report(self, node: ForkdWorkerController, data: Any) -> None:
        report = self._report(data)
        if not isinstance(report, pytest.TestReport):
            raise BadEvent("not a test report")
        if report.when == "setup":
            node.sections = list(report.sections)
        self.worker_testreport(node, report)

    def _on_collectreport(self, node: ForkdWorkerController, data: Any) -> None:
        self.worker_collectreport(node, self._report(data))

    def _report(self, data: Any) -> Any:
        try:
            data = unpack_report(data)
            report = self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
        except (ValueError, TypeError, KeyError, RuntimeError) as exc:
            raise BadEvent(f"not a report: {exc}") from exc
        if report is None:
            raise BadEvent("not a report")
        return report

    def _on_complete(self, node: ForkdWorkerController, index: Any, duration: Any) -> None:
        self._nodeid(node, index)
        if node.running != index:
            raise BadEvent(f"item {index} was not running")
        node.running = None
        self.worker_runtest_protocol_complete(node, index, float(duration))

    def _on_warning(
        self, node: ForkdWorkerController, data: Any, when: Any, nodeid: Any, location: Any
    ) -> None:
        try:
            message = rebuild_warning(unpack_object(data))
        except (ValueError, TypeError, KeyError) as exc:
            raise BadEvent(f"not a warning: {exc}") from exc
        place = None if location is None else _location(location)
        self.worker_warning_recorded(message, _text(when), _text(nodeid), place)

    def _on_ready(self, node: ForkdWorkerController, workerinfo: Any) -> None:
        if not isinstance(workerinfo, dict):
            raise BadEvent("no information about the worker")
        workerinfo["version_info"] = tuple(workerinfo.get("version_info", ()))
        self.worker_workerready(node, workerinfo)  # type: ignore[arg-type]
        if self._ids is not None and self.level == "collection":
            node.ids = self._ids
            self.worker_collectionfinish(node, self._ids)

    def _on_collection(self, node: ForkdWorkerController, ids: Any) -> None:
        if not isinstance(ids, list) or self.level != "imports":
            raise BadEvent("no collection was asked for")
        ids = [_text(nodeid) for nodeid in ids]
        if self._ids is None:
            self._ids = ids
        node.ids = self._ids if ids == self._ids else ids
        self.worker_collectionfinish(node, node.ids)

    def _on_unscheduled(self, node: ForkdWorkerController, indices: Any) -> None:
        if not isinstance(indices, list):
            raise BadEvent("no list of items")
        for index in indices:
            self._nodeid(node, index)
        self.worker_unscheduled(node, indices)

    def _on_interrupted(
        self, node: ForkdWorkerController, kind: Any, message: Any, returncode: Any
    ) -> None:
        code = returncode if isinstance(returncode, int) else None
        node.interruption = (_text(kind), _text(message), code)

    def _on_internal_error(self, node: ForkdWorkerController, text: Any) -> None:
        node.internal_error = True
        try:
            raise WorkerInternalError(_text(text))
        except WorkerInternalError:
            excinfo = pytest.ExceptionInfo.from_current()
            self.config.hook.pytest_internalerror(excrepr=_text(text), excinfo=excinfo)

    def _on_finished(self, node: ForkdWorkerController, workeroutput: Any) -> None:
        try:
            output = unpack_object(workeroutput)
        except (ValueError, TypeError) as exc:
            raise BadEvent(str(exc)) from exc
        if not isinstance(output, dict) or not isinstance(output.get("exitstatus"), int):
            raise BadEvent("no workeroutput")
        node.finished(output)


class BadEvent(Exception):
    """An event that no worker of ours would send."""


class WorkerInternalError(Exception):
    """Carries the traceback of an internal error in a worker, as text."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadEvent(f"{type(value).__name__} instead of text")
    return value


def _location(value: Any) -> tuple[Any, Any, Any]:
    if not isinstance(value, list) or len(value) != 3:
        raise BadEvent("no location")
    return tuple(value)
