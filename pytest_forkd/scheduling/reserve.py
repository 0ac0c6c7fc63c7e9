"""Workers that are made only if there is enough work for them.

A worker costs processor time: a fork, a session of its own, copies of memory pages, and shared
fixtures that it sets up again. If its tests take no longer than that, it makes the run slower.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from pytest_forkd.scheduling.estimates import Estimates

if TYPE_CHECKING:
    from pytest_forkd.channel.event_queue import EventQueue
    from pytest_forkd.scheduling.node import Node

__all__ = ["CALL_AFTER", "PATIENCE", "WORTH_A_WORKER", "Reserve", "workers_worth"]

#: How many seconds of tests make a worker worthwhile.
WORTH_A_WORKER = 0.4
#: Seconds between calls of more workers, while there is work for them; and how many times as long
#: as expected the first ones may take before the first call. Workers called when these are almost
#: done would slow them down, and the recorded durations would be too long.
CALL_AFTER = 0.2
PATIENCE = 2.0


def workers_worth(seconds: float | None, most: int, processors: int) -> int:
    """How many workers to begin with.

    A worker beyond the number of processors counts half: it helps only while tests wait, and
    durations recorded with too many workers are too long.

    :param seconds: how long all tests are expected to take in total; ``None`` if unknown.
    :param most: how many workers there may be.
    :param processors: how many processors this process may use.
    :returns: from 1 to ``most``.
    """
    if seconds is None:
        return most
    count = math.ceil(seconds / WORTH_A_WORKER)
    if count > processors:
        count = processors + (count - processors) // 2
    return max(1, min(most, count))


_Node = TypeVar("_Node", bound="Node")


class Reserve(Generic[_Node]):
    """The nodes that a run has not begun with.

    If the first workers take much longer than expected, and there is work for others, the number of
    workers is doubled every :data:`CALL_AFTER` seconds. So a wrong estimate costs little time.

    :param call: makes workers for some nodes.
    """

    def __init__(self, call: Callable[[Sequence[_Node]], object]) -> None:
        self._call = call
        self._nodes: list[_Node] = []
        self._at_work = 0
        self._expected = 0.0

    def split(
        self,
        nodes: list[_Node],
        estimate: Callable[[Sequence[str]], Estimates],
        ids: Sequence[str],
    ) -> list[_Node]:
        """Hold back the nodes that do not seem to be worth a worker.

        :param nodes: all nodes.
        :param estimate: returns how long tests, and the fixtures that they share, will take.
        :param ids: the ids of all tests.
        :returns: the nodes to begin with.
        """
        count = len(nodes)
        if count > 1 and len(ids) * Estimates.LEAST < 2 * count * WORTH_A_WORKER:
            seconds = estimate(ids).total()
            count = workers_worth(seconds, count, available_processors())
            self._expected = (seconds or 0.0) / count
        self._nodes = nodes[count:]
        self._at_work = count
        return nodes[:count]

    def watch(self, events: EventQueue) -> None:
        """Have ``reserve_due`` put into ``events`` when it is time to call others."""
        self._look_later(max(CALL_AFTER, PATIENCE * self._expected), events)

    def due(self, has_work: bool, events: EventQueue) -> None:
        """Call others, if there is work for them, and schedule the next check.

        :param has_work: whether the scheduler has work for another worker.
        """
        if has_work and self._nodes:
            called, self._nodes = self._nodes[: self._at_work], self._nodes[self._at_work :]
            self._at_work += len(called)
            self._call(called)
        self._look_later(CALL_AFTER, events)

    def _look_later(self, seconds: float, events: EventQueue) -> None:
        if self._nodes:
            events.put_later(seconds, ("reserve_due", {}))


def available_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
