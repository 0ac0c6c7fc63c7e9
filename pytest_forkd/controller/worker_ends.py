"""How the session takes the end of its workers: in good order, worn out, or dead."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.outcomes import Exit
from xdist.dsession import DSession

from pytest_forkd.controller.crash_report import crash_report
from pytest_forkd.controller.nodes import ForkdNodeManager, ForkdWorkerController
from pytest_forkd.scheduling import ForkdScheduling
from pytest_forkd.scheduling.xdist_repair import run_again, take_out

if TYPE_CHECKING:
    from pytest_forkd.backends.base import Backend
    from pytest_forkd.controller.worker_events import Inbox

__all__ = ["RunLost", "WorkerEnds"]

#: Seconds for a plugin's thread in the controller to read what a dead worker has sent it.
_SERVER_GRACE = 0.02
#: Machines that may end in the middle of nothing, as far as is known.
_MAX_UNEXPLAINED = 2


class RunLost(Exit):
    """The run cannot go on, for no fault of the suite's; pytest shows this in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, returncode=pytest.ExitCode.INTERNAL_ERROR)


class WorkerEnds(DSession):
    """The part of the session that is about workers that end.

    :param config: the controller's configuration.
    """

    backend: Backend
    inbox: Inbox
    nodemanager: ForkdNodeManager | None

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config)
        self._unexplained = 0
        #: What the run is to end with, if a worker has said so.
        self._exit: Exception | None = None

    def worker_exited(self, node: ForkdWorkerController) -> None:
        """A worker's process has ended, in good order or not."""
        assert node.end is not None
        if not node.down:
            self.worker_errordown(node, f"Not properly terminated: {node.end.reason}")
        node.discard()

    def worker_errordown(  # type: ignore[override]
        self, node: ForkdWorkerController, error: object | None
    ) -> None:
        """A worker died: blame the test that was running, and replace the worker."""
        node._down = True
        self.config.hook.pytest_testnodedown(node=node, error=error)
        crashitem, more = self._take_out(node)
        if node.end is not None and node.end.blameless:
            self.report_line(f"\nforkd: worker {node.gateway.id} is lost: {node.end.reason}")
            if crashitem:
                run_again(self.sched, node, crashitem)
            if crashitem or self._is_missed(more):
                self._replace(node)
            self._active_nodes.discard(node)
            return
        if node.end is not None and node.end.unborn:
            self._active_nodes.discard(node)
            if not self._active_nodes:
                raise RunLost(f"no worker can be made: {node.end.reason}")
            return  # the others do its part
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
            if not getattr(self._session, "testsfailed", 0):  # or it would end with success
                self.shouldstop = message
            self.triggershutdown()
        elif self._is_missed(more):
            self.report_line(f"\nreplacing crashed worker {node.gateway.id}")
            self._replace(node)
        self._active_nodes.discard(node)

    def _is_missed(self, more: bool) -> bool:
        return more or (isinstance(self.sched, ForkdScheduling) and self.sched.has_work)

    def _end_exhausted(self, node: ForkdWorkerController) -> None:
        """A worker has ended its session since its machine is worn out: have another one go on."""
        self.config.hook.pytest_testnodedown(node=node, error=None)
        _nothing, more = self._take_out(node)
        line = f"\nforkd: worker {node.gateway.id} leaves its machine: {node.exhausted}"
        if self._is_missed(more):
            self.report_line(f"{line}; replacing it")
            self._replace(node)
        else:
            self.report_line(line)
        self._active_nodes.discard(node)
        self.backend.signal(node.gateway.id, signal.SIGKILL)  # it may not be able to leave

    def _replace(self, node: ForkdWorkerController) -> None:
        self.shuttingdown = False
        clone: Any = self._clone_node(node)
        assert self.nodemanager is not None
        self.nodemanager.replaced(clone)

    def _take_out(self, node: ForkdWorkerController) -> tuple[str | None, bool]:
        end = node.end
        if end is not None and end.abrupt and not end.blameless and node.running is None:
            # It may have begun a test and not been heard. Once that is chance; if it happens again
            # and again, the first test that it was to run is blamed, or this would never end.
            self._unexplained += 1
            if self._unexplained > _MAX_UNEXPLAINED and node.given:
                node.running = next(iter(node.given))
        running = None if node.running is None else self.inbox.nodeid(node, node.running)
        return take_out(self.sched, node, running)

    def handle_crashitem(  # type: ignore[override]
        self, nodeid: str, worker: ForkdWorkerController
    ) -> None:
        """Report a test as failed because its worker died."""
        if threading.active_count() > 1:
            # What the worker told a plugin's server (pytest-rerunfailures has one) just before it
            # died may not have been read yet, and decides whether the test runs again.
            time.sleep(_SERVER_GRACE)
        report = crash_report(nodeid, worker)
        self.config.hook.pytest_handlecrashitem(crashitem=nodeid, report=report, sched=self.sched)
        self.config.hook.pytest_runtest_logreport(report=report)
        self._handlefailures(report)

    def worker_workerfinished(  # type: ignore[override]
        self, node: ForkdWorkerController
    ) -> None:
        """A worker's session has ended; it may want the whole run to end."""
        interruption = node.interruption
        if interruption is None and not node.internal_errors:
            if node.exhausted is None:
                super().worker_workerfinished(node)
            else:
                self._end_exhausted(node)
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
