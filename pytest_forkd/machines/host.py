"""Where machines are made, and what is known of each."""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pytest_forkd.machines.machine import Link, Machine

__all__ = ["COLLECT_LIMIT", "FORK_LIMIT", "Entry", "Host", "Place"]

#: Seconds for a guest to say that it has forked its worker.
FORK_LIMIT = 60.0
#: Seconds for a guest to import and collect. It says nothing meanwhile, so one that never comes to
#: an end cannot be told from one that has a large suite and a slow processor; nobody waits longer.
COLLECT_LIMIT = 3600.0


@dataclass(frozen=True)
class Place:
    """A machine that has been made, and how to reach it.

    :ivar name: for messages to the user.
    :ivar connect: makes the stream to its guest; may wait, and raises MachineError.
    :ivar remove: ends it for good; may wait; never raises.
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
        """Make a snapshot of a machine, which nobody uses any more afterwards.

        :returns: what :meth:`make` takes.
        :raises MachineError: if that is impossible.
        """

    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether machines can still be made here."""

    @abc.abstractmethod
    def close(self) -> None:
        """Remove what is left of the run, branches included; never raises."""


class Entry:
    """What the backend knows of a machine.

    :ivar stage: ``setup``, ``collecting``, ``branching``, ``idle``, ``busy`` or ``gone``.
    :ivar ended: its guest has told of the end that is to be expected.
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
        """Have ``late`` called in the main loop after ``limit`` seconds, if nobody unwatches it."""
        self.unwatch()

        def over() -> None:
            # The main loop may have been busy, and have found out in the meantime.
            if self._timer is timer:
                self._timer = None
                late()

        timer = threading.Timer(limit, post, (over,))
        timer.daemon = True
        self._timer = timer
        timer.start()

    def unwatch(self) -> bool:
        """There is nothing to be late with any more.

        :returns: whether there was.
        """
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return timer is not None
