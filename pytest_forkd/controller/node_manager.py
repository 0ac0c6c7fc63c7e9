"""xdist's node manager, over a backend that makes clones."""

from __future__ import annotations

import signal
import socket
import time
from dataclasses import asdict
from typing import Any

import execnet
import pytest
from xdist.workermanage import NodeManager

from pytest_forkd.backends.base import (
    Backend,
    BackendError,
    CollectorGone,
    RunRequest,
    WorkerEnd,
)
from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.channel.gateway import CloneGateway, SocketIO
from pytest_forkd.compat.execnet import enter_group, forget_joins, leave_group
from pytest_forkd.controller.early_imports import EarlyImports
from pytest_forkd.controller.nodes import ForkdWorkerController
from pytest_forkd.controller.run_request import make_request

__all__ = ["ForkdNodeManager"]


class ForkdNodeManager(NodeManager):
    """Makes nodes over a backend instead of over execnet's own gateways.

    :param config: the controller's configuration.
    :param backend: must have been started; :meth:`teardown_nodes` closes it.
    :param testrunuid: the id of this run.
    """

    def __init__(self, config: pytest.Config, backend: Backend, testrunuid: str) -> None:
        super().__init__(config)
        self.testrunuid = testrunuid
        self.backend = backend
        self.events = EventQueue()
        self.nodes: dict[str, ForkdWorkerController] = {}
        #: Whether there is a collector that forks workers.
        self.warm = False
        #: Replacements that were made while there was no collector.
        self._waiting: dict[ForkdWorkerController, None] = {}

    def setup_node(self, spec: execnet.XSpec, putevent: Any) -> ForkdWorkerController:
        """Make a node; its process is spawned at once if there is a collector to fork it."""
        ours, theirs = socket.socketpair()
        io = SocketIO(ours, self.group.execmodel)
        gateway = CloneGateway(io, spec, self.events, self.backend.rinfo())
        enter_group(self.group, gateway)
        self.config.hook.pytest_xdist_newgateway(gateway=gateway)
        node = ForkdWorkerController(self, gateway, self.config, self.events, theirs)
        gateway.node = node  # type: ignore[attr-defined]
        self.nodes[gateway.id] = node
        node.setup()
        if self.warm:
            self.spawn(node)
        return node

    def spawn(self, node: ForkdWorkerController) -> None:
        """Have a node's process made; if that fails, the node counts as dead."""
        try:
            node.spawn(self.backend)
        except CollectorGone:
            # The loss is about to be reported; the next collector will make the process.
            self.warm = False
            self._waiting[node] = None
        except BackendError as exc:
            node.exited(WorkerEnd(str(exc)))

    def spawn_nodes(self, nodes: list[ForkdWorkerController]) -> None:
        """Have processes made for these nodes, and for later ones: the collector is ready.

        Replacements that were made while there was no collector get theirs, too: otherwise the run
        would wait for them for ever.
        """
        self.warm = True
        waiting, self._waiting = self._waiting, {}
        for node in [*nodes, *waiting]:
            self.spawn(node)

    def replaced(self, node: ForkdWorkerController) -> None:
        """Note a replacement; its process is made once there is a collector."""
        if not node.spawned:
            self._waiting[node] = None

    @property
    def has_waiting(self) -> bool:
        """Whether there are nodes that wait for a collector."""
        return bool(self._waiting)

    def request(
        self, warm: str, level: str, early: EarlyImports, deadly: dict[str, dict[str, Any]]
    ) -> RunRequest:
        """The request for a collector; see :class:`RunRequest`."""
        modules, rewriting = early.modules, early.rewriting()
        nodes = list(self.nodes.values())
        return make_request(
            self.config,
            nodes[0].workerinput,
            warm=warm,
            level=level,
            nodes=[node.packed_workerinput() for node in nodes],
            basetemp=nodes[0].basetemp,
            modules=modules.names,
            scan=not modules.complete,
            testpaths=[str(path) for path in self.config.getini("testpaths")],
            exclude=early.plan.exclude,
            skip=early.plan.skip,
            rewriting=None if rewriting is None else asdict(rewriting),
            deadly=deadly,
        )

    def lose_collector(self, reason: str) -> list[ForkdWorkerController]:
        """Note that the collector has died: no node can be spawned until there is another.

        :returns: the nodes that die with it, after reading everything they sent.
        """
        self.warm = False
        nodes = [node for node in self.nodes.values() if node.spawned and not node.down]
        deadline = time.monotonic() + 1.0
        for node in nodes:
            # They die a moment after the collector, and may report until then.
            while not node.gateway.drain() and time.monotonic() < deadline:
                time.sleep(0.001)
            if node.end is None:  # else it died earlier, for another reason
                node.end = WorkerEnd(reason)
        return nodes

    def kill_workers(self) -> None:
        """Kill all workers, which will be replaced."""
        for node in self.nodes.values():
            if node.spawned and not node.down:
                self.backend.signal(node.gateway.id, signal.SIGKILL)

    def expect_end(self) -> None:
        """If all workers have ended, tell the collector to end, too, without waiting for it."""
        if self.warm and all(node.down for node in self.nodes.values() if node.spawned):
            self.backend.ask_to_end()

    def teardown_nodes(self) -> None:
        """End every worker, then the collector and the parent.

        Workers that are still in a session, because the controller's was interrupted, are
        interrupted, too, so that their fixtures are torn down. A second Ctrl-C ends all at once.
        """
        try:
            if self.warm:
                self._interrupt_workers()
                self.backend.end_run(self.EXIT_TIMEOUT)
            else:
                self.backend.interrupt()
        except KeyboardInterrupt:
            pass  # a second Ctrl-C: close() kills whatever is left
        finally:
            self.backend.close()
            for node in self.nodes.values():
                node.discard()
                # Otherwise execnet starts a thread for each gateway, to wait for its process.
                leave_group(self.group, node.gateway)
            forget_joins(self.group)
            self.events.close()

    def _interrupt_workers(self) -> None:
        """Interrupt every worker that is still in a session; Ctrl-C reaches only the controller."""
        for node in self.nodes.values():
            if node.spawned and not node.down:
                if node.ids is None:
                    # During collection, pytest 8.0 treats the interruption as a module's error, and
                    # the worker would go on to wait for tests. It has none yet, so shut it down.
                    node.shutdown()
                self.backend.signal(node.gateway.id, signal.SIGINT)
