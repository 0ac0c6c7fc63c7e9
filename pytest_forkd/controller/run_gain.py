"""Measures what a run gains from its workers, for the line at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_forkd.scheduling.reserve import available_processors

if TYPE_CHECKING:
    from pytest_forkd.controller.gain_words import Times

__all__ = ["RunGain"]


class RunGain:
    """Where a run's time goes.

    :param clock: the time in seconds, from any moment on.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = self._ended = clock()
        self._ready: float | None = None
        self._collection: float | None = None
        #: How many tests each worker has run, and what they took, in seconds.
        self._workers: dict[str, tuple[int, float]] = {}
        self._longest = 0.0
        self._name = ""
        #: For each shared fixture, what its set-ups took together, and the shortest of them.
        self._fixtures: dict[str, tuple[float, float]] = {}

    def collected(self, seconds: float) -> None:
        """The collection was made once, and took so many seconds."""
        self._collection = seconds

    def ready(self) -> None:
        """A worker can be given tests."""
        if self._ready is None:
            self._ready = self._clock()

    def ran(self, worker: str, seconds: float, name: Callable[[], str]) -> None:
        """A worker has run a test.

        :param name: returns the test's node id.
        """
        self._ended = self._clock()
        tests, busy = self._workers.get(worker, (0, 0.0))
        self._workers[worker] = (tests + 1, busy + seconds)
        if seconds > self._longest:
            self._longest, self._name = seconds, name()

    def set_up(self, fixture: str, seconds: float) -> None:
        """A worker has set up a fixture that its tests share."""
        total, least = self._fixtures.get(fixture, (0.0, seconds))
        self._fixtures[fixture] = (total + seconds, min(least, seconds))

    def times(self) -> Times | None:
        """Where the time went; ``None`` if no test was run."""
        from pytest_forkd.controller.gain_words import Times  # slow to import, and not for -q

        if not self._workers:
            return None
        now = self._clock()
        ready = self._began if self._ready is None else self._ready
        return Times(
            wall=now - self._began,
            before=ready - self._began,
            after=now - self._ended,
            collection=self._collection,
            tests=sum(busy for _tests, busy in self._workers.values()),
            longest=self._longest,
            name=self._name,
            repeated=sum(total - least for total, least in self._fixtures.values()),
            workers=len(self._workers),
            processors=available_processors(),
        )

    def lines(self, origin: str, *, workers: bool) -> list[str]:
        """What to say at the end of the run; nothing if no test was run.

        :param origin: how its parent came about.
        :param workers: whether each worker is to have a line, too.
        """
        from pytest_forkd.controller.gain_words import gain_line, worker_line

        times = self.times()
        if times is None:
            return []
        found = self._workers.items() if workers else ()
        return [
            gain_line(times, origin),
            *(worker_line(times, name, *done) for name, done in found),
        ]
