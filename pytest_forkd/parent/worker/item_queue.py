"""The items that a worker has been told to run and has not begun."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

from pytest_forkd.channel.claims import Claims
from pytest_forkd.channel.wire import ChannelClosed, WorkerChannel
from pytest_forkd.compat.xdist_remote import Marker
from pytest_forkd.parent.worker.outbox import Outbox

__all__ = ["ItemQueue"]


class ItemQueue:
    """Takes the controller's commands, and returns one item after the other.

    Items are indices; after the last one comes ``Marker.SHUTDOWN``.

    :param outbox: takes events for the controller.
    :param clock: returns a time in seconds.
    :param count: returns how many items the session has.
    """

    def __init__(
        self, outbox: Outbox, clock: Callable[[], float], count: Callable[[], int]
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._count = count
        self._channel: WorkerChannel | None = None
        self._claims: Claims | None = None
        self._queue: collections.deque[Any] = collections.deque()
        #: Items that need no claim: the controller holds it.
        self._regained: set[int] = set()

    def attach(self, channel: WorkerChannel, claims: Claims | None) -> None:
        """Take commands from the channel, and claim each item before returning it."""
        self._channel = channel
        self._claims = claims

    @property
    def attached(self) -> bool:
        """Whether there is a controller."""
        return self._channel is not None

    def likely(self) -> Any:
        """The item that :meth:`next` would return now, unless the controller takes it back."""
        return self._queue[0] if self._queue else Marker.SHUTDOWN

    def next(self, last: int | None) -> tuple[Any, float]:
        """The next item; if there is none, sends all events and waits for one.

        :param last: the last item that the worker was given, begun or not.
        :returns: the item, and the seconds spent waiting for it.
        """
        waited = 0.0
        while True:
            self._receive(wait=False)
            while self._queue:
                index = self._queue.popleft()
                if index is Marker.SHUTDOWN or index in self._regained or self._claim(index):
                    return index, waited
            # Ask again until an item comes: one may be taken back before it is read here.
            self._outbox.append(["want", last])
            self._outbox.flush()
            start = self._clock()
            self._receive(wait=True)
            waited += self._clock() - start

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
                self._queue.extend(range(self._count()))
            elif name == "shutdown":
                self._queue.append(Marker.SHUTDOWN)
            elif name == "steal":
                self._outbox.append(["unscheduled", self._drop(set(kwargs["indices"]))])
                self._outbox.flush()
            elif name == "regain":
                # The controller took these back by their locks, which it still holds, and now gives
                # them to this worker again.
                again = set(kwargs["indices"])
                self._drop(again)
                self._regained |= again

    def _drop(self, wanted: set[int]) -> list[int]:
        """Remove those of ``wanted`` that are in the queue, and return them."""
        found = [index for index in self._queue if index in wanted]
        self._queue = collections.deque(index for index in self._queue if index not in wanted)
        return found

    def _claim(self, index: int) -> bool:
        return self._claims is None or self._claims.claim(index)
