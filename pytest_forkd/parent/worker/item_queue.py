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
    """Takes the controller's commands, and gives one item after the other.

    Items are indices; after the last one comes ``Marker.SHUTDOWN``.

    :param outbox: what the controller is to be told goes there.
    :param clock: seconds.
    :param count: how many items the session has.
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
        #: Items that need no claim.
        self._regained: set[int] = set()

    def attach(self, channel: WorkerChannel, claims: Claims | None) -> None:
        """Take commands from the channel, and claim each item before it is given."""
        self._channel = channel
        self._claims = claims

    @property
    def attached(self) -> bool:
        """Whether there is a controller."""
        return self._channel is not None

    def likely(self) -> Any:
        """The item that :meth:`next` would give now, unless that is taken back before."""
        return self._queue[0] if self._queue else Marker.SHUTDOWN

    def next(self, last: int | None) -> tuple[Any, float]:
        """The next item; waits for one, reporting first.

        :param last: the item that the worker has, begun or not.
        :returns: the item, and the seconds that were waited for it.
        """
        waited = 0.0
        while True:
            self._receive(wait=False)
            while self._queue:
                index = self._queue.popleft()
                if index is Marker.SHUTDOWN or index in self._regained or self._claim(index):
                    return index, waited
            # Until it is answered; what comes may have been taken back before it was read.
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
                # Taken back without a word, and given again: the controller holds the claim.
                again = set(kwargs["indices"])
                self._drop(again)
                self._regained |= again

    def _drop(self, wanted: set[int]) -> list[int]:
        """Take out of the queue what is in it of ``wanted``."""
        found = [index for index in self._queue if index in wanted]
        self._queue = collections.deque(index for index in self._queue if index not in wanted)
        return found

    def _claim(self, index: int) -> bool:
        return self._claims is None or self._claims.claim(index)
