"""How a run handles the end of its workers: normal, on an exhausted machine, or by a crash."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from pytest_forkd.compat.xdist_schedulers import run_again, take_out
from pytest_forkd.controller.nodes import ForkdWorkerController
from pytest_forkd.controller.run import Run, RunLost
from pytest_forkd.scheduling import ForkdScheduling

__all__ = ["WorkerEnds"]

#: Seconds for a plugin's thread in the controller to read the last data of a dead worker.
_SERVER_GRACE = 0.02
#: How many machines may end abruptly, with no test running as far as known, before one is blamed.
_MAX_UNEXPLAINED = 2


class WorkerEnds:
    """Reports crashed tests, and replaces workers that have ended while there is work for them.

    :param run: the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._config = run.config
        self._unexplained = 0
        #: The exception to end the run with, if a worker's session demands that.
        self.exit: Exception | None = None

    def exited(self, node: ForkdWorkerController) -> None:
        """Handle the end of a worker's process, normal or not."""
        assert node.end is not None
        if not node.down:
            self.died(node, f"Not properly terminated: {node.end.reason}")
        node.discard()

    def died(self, node: ForkdWorkerController, error: object | None) -> None:
        """Handle a worker's death: blame the running test, and replace the worker.

        :raises RunLost: if no worker can be made.
        """
        run = self._run
        node.mark_down()
        self._config.hook.pytest_testnodedown(node=node, error=error)
        crashitem, more = self.take_out(node)
        if node.end is not None and node.end.blameless:
            run.report_line(f"\nforkd: worker {node.gateway.id} is lost: {node.end.reason}")
            self.make_up_for(node, crashitem, more)
            return
        if node.end is not None and node.end.unborn:
            run.active_nodes.discard(node)
            if not run.active_nodes:
                raise RunLost(f"no worker can be made: {node.end.reason}")
            return  # the other workers take over its work
        if crashitem:
            self.report_crash(crashitem, node)
        if not run.count_failed_node():
            self._stop_replacing(node)
        elif self._is_missed(more):
            run.report_line(f"\nreplacing crashed worker {node.gateway.id}")
            self.replace(node)
        run.active_nodes.discard(node)

    def _stop_replacing(self, node: ForkdWorkerController) -> None:
        run = self._run
        if run.max_worker_restart == 0:
            message = f"worker {node.gateway.id} crashed and worker restarting disabled"
        else:
            message = f"maximum crashed workers reached: {run.max_worker_restart}"
        run.summarize(message)
        run.report_line(f"\n{message}")
        if not getattr(run.pytest_session, "testsfailed", 0):  # else the run would count as passed
            run.shouldstop = message
        run.triggershutdown()

    def make_up_for(self, node: ForkdWorkerController, interrupted: str | None, more: bool) -> None:
        """Run the interrupted test again, since the worker was lost through no fault of its own.

        :param node: the lost node; must have been taken out before.
        :param interrupted: the id of the test that was running, if any.
        :param more: whether there is other work for a replacement.
        """
        if interrupted:
            run_again(self._run.sched, node, interrupted)
        if interrupted or self._is_missed(more):
            self.replace(node)
        self._run.active_nodes.discard(node)

    def _is_missed(self, more: bool) -> bool:
        sched = self._run.sched
        return more or (isinstance(sched, ForkdScheduling) and sched.has_work)

    def _end_exhausted(self, node: ForkdWorkerController) -> None:
        """Replace a worker that has ended its session because its machine is exhausted."""
        run = self._run
        self._config.hook.pytest_testnodedown(node=node, error=None)
        _nothing, more = self.take_out(node)
        line = f"\nforkd: worker {node.gateway.id} leaves its machine: {node.exhausted}"
        if self._is_missed(more):
            run.report_line(f"{line}; replacing it")
            self.replace(node)
        else:
            run.report_line(line)
        run.active_nodes.discard(node)
        run.backend.signal(node.gateway.id, signal.SIGKILL)  # it may not be able to exit

    def replace(self, node: ForkdWorkerController) -> None:
        """Have a replacement made for a worker that has ended."""
        self._run.shuttingdown = False
        self._run.nodes.replaced(self._run.clone_node(node))

    def take_out(self, node: ForkdWorkerController) -> tuple[str | None, bool]:
        """Take a dead worker from the scheduler.

        :returns: the id of the test that it was running, if any, and whether a replacement has
            work.
        """
        end = node.end
        if end is not None and end.abrupt and not end.blameless and node.running is None:
            # It may have begun a test without its message arriving. That may happen by chance. But
            # if it happens repeatedly, blame its first queued test, or the run would never end.
            self._unexplained += 1
            if self._unexplained > _MAX_UNEXPLAINED and node.given:
                node.running = next(iter(node.given))
        running = None if node.running is None else node.nodeid(node.running)
        sched = self._run.sched
        if isinstance(sched, ForkdScheduling) and node in sched.nodes:
            return running, sched.take_out(node, node.running)
        return take_out(sched, node, running)

    def report_crash(self, nodeid: str, node: ForkdWorkerController) -> None:
        """Report a test as failed because its worker died."""
        if threading.active_count() > 1:
            # A plugin's server (pytest-rerunfailures has one) may not have read the worker's last
            # data yet, which decides whether the test is run again.
            time.sleep(_SERVER_GRACE)
        from pytest_forkd.controller.crash_report import crash_report  # most runs have no crash

        report = crash_report(nodeid, node)
        hook = self._config.hook
        hook.pytest_handlecrashitem(crashitem=nodeid, report=report, sched=self._run.sched)
        hook.pytest_runtest_logreport(report=report)
        self._run.stop_after_failures(report)

    def interrupted(self, node: ForkdWorkerController) -> bool:
        """Handle the end of a worker's session that was interrupted or had an internal error.

        :returns: whether it was, or its machine is exhausted; then the end has been handled.
        """
        run = self._run
        interruption = node.interruption
        if interruption is None and not node.internal_errors:
            if node.exhausted is None:
                return False
            self._end_exhausted(node)
            return True
        self._config.hook.pytest_testnodedown(node=node, error=None)
        if interruption is None:
            reason = f"worker {node.gateway.id} had an internal error"
            self.exit = pytest.exit.Exception(reason, int(pytest.ExitCode.INTERNAL_ERROR))
        elif interruption[0] == "exit":
            reason = interruption[1]
            self.exit = pytest.exit.Exception(reason, interruption[2])
        else:
            reason = f"{node} received keyboard-interrupt"
        run.shouldstop = run.shouldstop or reason or "exit"
        if run.sched is not None and node in run.sched.nodes:
            run.sched.remove_node(node)
        run.active_nodes.discard(node)
        return True
