"""Hosts, on which machines are made, and what is known about each machine."""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pytest_forkd.machines.machine import Link, Machine

__all__ = ["COLLECT_LIMIT", "FORK_LIMIT", "Host", "KnownMachine", "Place"]

#: Seconds for a guest to say that it has forked its worker.
FORK_LIMIT = 60.0
#: Seconds for a guest to import and collect. It sends nothing meanwhile, so a guest that hangs
#: looks the same as one with a large suite and a slow processor.
COLLECT_LIMIT = 3600.0


@dataclass(frozen=True)
class Place:
    """A machine that has been made, and how to reach it.

    :ivar name: for messages to the user.
    :ivar connect: makes the stream to its guest; may wait, and may raise MachineError.
    :ivar remove: removes the machine; may wait; never raises.
    """

    name: str
    connect: Callable[[], Link]
    remove: Callable[[], None]


class Host(abc.ABC):
    """Where machines are made. Its methods are called in threads, and may wait.

    :ivar name: for messages to the user.
    """

    name: str

    @abc.abstractmethod
    def make(self, count: int, branch: object | None) -> list[Place]:
        """Make machines: clones of the snapshot, or of a branch.

        :raises MachineError: if that is impossible.
        """

    @abc.abstractmethod
    def branch(self, place: Place) -> object:
        """Make a snapshot of a machine, which must not be used afterwards.

        :returns: a branch, for :meth:`make`.
        :raises MachineError: if that is impossible.
        """

    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether machines can still be made here."""

    @abc.abstractmethod
    def close(self) -> None:
        """Remove what is left of the run, branches included; never raises."""


class KnownMachine:
    """What the backend knows about a machine.

    :ivar stage: ``setup``, ``collecting``, ``branching``, ``idle``, ``busy`` or ``gone``.
    :ivar ended: whether its guest has announced its end, which is then not a loss.
    """

    def __init__(self, host: Host, place: Place, machine: Machine) -> None:
        self.host = host
        self.place = place
        self.machine = machine
        self.stage = "setup"
        self.ended = False
        self._timer: threading.Timer | None = None

    def watch(
        self,
        limit: float,
        post: Callable[[Callable[[], None]], None],
        late: Callable[[], None],
    ) -> None:
        """Call ``late`` in the main loop after ``limit`` seconds; :meth:`unwatch` cancels that."""
        self.unwatch()

        def over() -> None:
            # The message may have been handled while this call was queued.
            if self._timer is timer:
                self._timer = None
                late()

        timer = threading.Timer(limit, post, (over,))
        timer.daemon = True
        self._timer = timer
        timer.start()

    def unwatch(self) -> bool:
        """Cancel :meth:`watch`.

        :returns: whether it was active.
        """
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return timer is not None
