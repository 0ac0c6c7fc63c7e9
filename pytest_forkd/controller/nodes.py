"""xdist's worker controller, over a clone that a backend makes."""

from __future__ import annotations

import collections
import json
import signal
import socket
from collections.abc import Callable
from typing import Any, Protocol

import execnet
import pytest
from xdist.workermanage import Marker, WorkerController

from pytest_forkd.backends.base import Backend, CollectorGone, WorkerEnd
from pytest_forkd.channel.bounds import line
from pytest_forkd.channel.claims import Claims, claims_file
from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.channel.events import pack_object
from pytest_forkd.channel.gateway import CloneGateway
from pytest_forkd.channel.short_reports import PassedItem
from pytest_forkd.channel.wire import CHANNEL_ID

__all__ = ["ForkdWorkerController"]


class _Nodes(Protocol):
    """The part of the node manager that a node uses."""

    backend: Backend
    events: EventQueue


class ForkdWorkerController(WorkerController):
    """The controller's view of one worker.

    Life cycle: made when the run is set up, and configured by ``pytest_configure_node``; spawned
    once the collection is known; then its messages become events of the session, until it has
    finished or its process has ended.
    """

    nodemanager: _Nodes  # type: ignore[assignment]
    gateway: CloneGateway

    def __init__(
        self,
        nodemanager: Any,
        gateway: CloneGateway,
        config: pytest.Config,
        events: EventQueue,
        theirs: socket.socket,
    ) -> None:
        super().__init__(nodemanager, gateway, config, events.put)
        self._theirs: socket.socket | None = theirs
        self._claims: Claims | None = None
        #: Items taken back by claiming them, and those of them that it was given again. For these
        #: it needs no claim.
        self._taken: set[int] = set()
        self._regained: set[int] = set()
        #: The worker's base temporary directory, below the controller's.
        self.basetemp: str | None = None
        #: The ids of its items; the same list for all workers that share a collection.
        self.ids: list[str] | None = None
        #: How many internal errors its session has had.
        self.internal_errors = 0
        #: The ids received so far, if they come in parts.
        self.collected: list[str] = []
        #: The indices of the items that it has begun, and of those that it may begin.
        self.begun: set[int] = set()
        self.given: dict[int, None] = {}
        #: Items asked back in messages that it has not answered.
        self.asked_back: collections.deque[frozenset[int]] = collections.deque()
        #: When its session began, by ``time.monotonic()``.
        self.ready_at: float | None = None
        #: How many events and bytes it has sent since it began its last test.
        self.chatter = 0
        self.heard = 0
        #: Index and location of the running item, as last reported.
        self.running: int | None = None
        self.location: Any = None
        #: Index of the item that is running or ran last.
        self.latest: int | None = None
        #: Calls to make once the running item has ended, and its last report.
        self.held: list[Callable[[], None]] = []
        self.last_report: pytest.TestReport | None = None
        #: Makes the running item's reports from their short form.
        self.passed: PassedItem | None = None
        #: The ``workerinfo`` of a replacement that collects for itself.
        self.ready: dict[str, Any] | None = None
        #: How the process ended, once it has.
        self.end: WorkerEnd | None = None
        #: ``(kind, message, returncode)`` if the worker's session was interrupted.
        self.interruption: tuple[str, str, int | None] | None = None
        #: What its machine has run out of; its session then ends, and another worker takes over.
        self.exhausted: str | None = None
        #: Whether to ignore its messages. Those that a dead worker sent before still count.
        self.given_up = False
        gateway.on_protocol_error = self.broke_stream
        gateway.on_deaf = self.is_deaf

    @property
    def spawned(self) -> bool:
        """Whether the backend has been asked for the process."""
        return self._theirs is None

    @property
    def down(self) -> bool:
        """Whether the worker has finished or died."""
        return self._down

    def mark_down(self) -> None:
        """Stop waiting for it, and do not handle its end again."""
        self._down = True

    def nodeid(self, index: int) -> str:
        """The node id of the item at ``index``."""
        assert self.ids is not None
        return self.ids[index]

    def setup(self) -> None:
        """Let plugins configure the node; the process comes later, see :meth:`spawn`."""
        self.log("setting up worker session")
        factory = getattr(self.config, "_tmp_path_factory", None)
        if factory is not None:
            self.basetemp = str(factory.getbasetemp() / f"popen-{self.gateway.id}")
        self.config.hook.pytest_configure_node(node=self)
        self.channel = self.gateway.newchannel()
        if self.channel.id != CHANNEL_ID:
            raise RuntimeError(f"a plugin has opened a channel on {self.gateway!r}")
        self.channel.setcallback(self.process_from_remote, endmarker=Marker.END)
        self.gateway.on_message = self.received

    def packed_workerinput(self) -> str:
        """The node's ``workerinput``, ready to be sent.

        :raises pytest.UsageError: if a plugin put in something that is not a builtin, which execnet
            could not send, either.
        """
        try:
            return pack_object(self.workerinput)
        except execnet.DumpError as exc:
            raise pytest.UsageError(
                f"pytest_configure_node: cannot send the workerinput of {self.gateway.id}: {exc}\n"
                "Only builtins can be sent to a worker: str, int, list, dict and the like."
            ) from exc

    def spawn(self, backend: Backend) -> None:
        """Ask the backend for the process.

        :raises CollectorGone: if there is no collector; ask again when there is another.
        :raises BackendError: if the process cannot be made.
        """
        assert self._theirs is not None
        if self._claims is None:
            self._claims = Claims(claims_file())
        theirs, self._theirs = self._theirs, None
        try:
            backend.spawn(
                self.gateway.id,
                self.packed_workerinput(),
                self.basetemp,
                theirs,
                self._claims.fd,
            )
        except CollectorGone:
            self._theirs = theirs  # for the next attempt
            raise
        finally:
            if self._theirs is None:
                theirs.close()

    def discard(self) -> None:
        """Close the sockets and files of a node whose process has gone, or will never be made."""
        self._down = True
        self.gateway.close()
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None
        if self._claims is not None:
            self._claims.close()

    # -- commands ------------------------------------------------------------------------------

    def sendcommand(self, name: str, **kwargs: object) -> None:
        """Send a command, as JSON; does nothing if the worker has gone.

        Its end is an event of its own, which also returns its items to the scheduler.
        """
        if self._down or self.end is not None:
            return
        self.log("sending command", name, kwargs)
        payload = json.dumps([name, kwargs], separators=(",", ":")).encode("ascii")
        try:
            self.channel.send(payload)
        except OSError:
            self.log("the worker has gone")

    def send_runtest_some(self, indices: Any) -> None:
        """Queue the items at ``indices``."""
        if self._claims is not None:
            again = [index for index in indices if index in self._taken]
            if again:
                # They may still be in the worker's queue, and must not run twice.
                self.sendcommand("regain", indices=again)
                self._taken.difference_update(again)
                self._regained.update(again)
        self.given.update(dict.fromkeys(indices))
        super().send_runtest_some(list(indices))

    def send_runtest_all(self) -> None:
        """Queue all items."""
        self.given.update(dict.fromkeys(range(len(self.ids or ()))))
        super().send_runtest_all()

    def send_steal(self, indices: Any) -> None:
        """Take back the items at ``indices`` that the worker has not begun.

        On the same host that needs no answer: whoever locks an item's byte first gets the item.
        """
        if (
            self._claims is None
            or not self.nodemanager.backend.can_lock_files
            or not self._regained.isdisjoint(indices)
        ):
            self.asked_back.append(frozenset(indices))
            super().send_steal(list(indices))
            return
        # Read the worker's pending messages first. Without them the scheduler does not know which
        # items have begun, would get nothing back, and could ask again for ever.
        self.nodemanager.events.poll(0)
        if self._down or self.end is not None:
            return  # the event of its end is queued, and returns all its items to the scheduler
        taken = [index for index in indices if self._claims.claim(index)]
        # A worker's claims vanish when it dies, so an item taken now may have begun. The worker has
        # reported that before: read it now, so that the session does not run such an item again.
        self.gateway.drain()
        self._taken.update(taken)
        self.notify_inproc("unscheduled", node=self, indices=taken)

    # -- what comes back -----------------------------------------------------------------------

    def received(self, payload: bytes) -> None:
        """Pass a message to the session, which decodes it."""
        # notify_inproc() would format the message for a log that is not kept.
        self.putevent(("batch", {"node": self, "payload": payload}))

    def process_from_remote(self, eventcall: Any) -> None:
        """Note the end of the channel; messages do not come this way."""
        if eventcall is Marker.END:
            self.log("channel closed")  # the backend reports how it ended
        else:
            self.broke_stream(f"a {type(eventcall).__name__} instead of a message")

    def finished(self, workeroutput: dict[str, Any]) -> None:
        """Note that the worker's session has ended normally."""
        self._down = True
        self.workeroutput = workeroutput
        self.notify_inproc("workerfinished", node=self)

    def exited(self, end: WorkerEnd) -> None:
        """Handle the end of the worker's process: read its last messages, then tell the session."""
        if self.end is not None:
            return
        self.gateway.drain()
        self.end = end
        self.notify_inproc("exited", node=self)

    def broke_protocol(self, reason: str) -> None:
        """Kill a worker that has sent an invalid message; everything it sent later is ignored."""
        self.given_up = True
        self.broke_stream(reason)

    def broke_stream(self, reason: str) -> None:
        """Kill a worker whose stream is damaged; earlier messages still count, to tell what ran."""
        self._give_up(f"it sent a bad message ({line(reason)})")

    def is_deaf(self, reason: str) -> None:
        """Kill a worker that does not read its commands, since further ones would be lost."""
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        if self.end is None:
            self.gateway.stop_reading()
            self.end = WorkerEnd(f"it was ended because {reason}")
            self.nodemanager.backend.signal(self.gateway.id, signal.SIGKILL)
            self.notify_inproc("exited", node=self)
