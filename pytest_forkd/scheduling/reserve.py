"""Workers that are made only once there is enough for them to do.

A worker costs processor time: a fork, a session of its own, pages that it touches first, and shared
fixtures that it sets up again. Where the tests are known to take no longer than that, it makes the
run slower.
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

#: Seconds of tests that are worth a worker.
WORTH_A_WORKER = 0.4
#: Seconds after which others are called, should there be work for them after all; and how often the
#: first ones may take what was expected before that. Called while these are about to be done, they
#: hold them up, and what tests took is more the next time.
CALL_AFTER = 0.2
PATIENCE = 2.0


def workers_worth(seconds: float | None, most: int, processors: int) -> int:
    """How many workers to begin with.

    A worker beyond the processors is held to be worth half as much: it wins nothing but where tests
    wait, and what tests took among too many workers is more than they need.

    :param seconds: what all tests are expected to take together; ``None`` if that is unknown.
    :param most: how many there may be.
    :param processors: that this process may use.
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

    Once the first ones should have been done long ago, and as long as there is work that could be
    given to others, as many again are called every :data:`CALL_AFTER` seconds as are at work: a
    wrong estimate costs a moment and no more.

    :param call: makes the workers of some nodes.
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

        :param nodes: all that there could be.
        :param estimate: what the tests, and fixtures that they share, are expected to take.
        :param ids: of all tests.
        :returns: those to begin with.
        """
        count = len(nodes)
        if count > 1 and len(ids) * Estimates.LEAST < 2 * count * WORTH_A_WORKER:
            seconds = estimate(ids).total()
            count = workers_worth(seconds, count, _processors())
            self._expected = (seconds or 0.0) / count
        self._nodes = nodes[count:]
        self._at_work = count
        return nodes[:count]

    def watch(self, events: EventQueue) -> None:
        """Have ``reserve_due`` put into ``events`` when it is time to call others."""
        self._look_later(max(CALL_AFTER, PATIENCE * self._expected), events)

    def due(self, has_work: bool, events: EventQueue) -> None:
        """It is time: call others, if there is anything for them to do.

        :param has_work: whether the scheduler has something that another worker could be given.
        """
        if has_work and self._nodes:
            called, self._nodes = self._nodes[: self._at_work], self._nodes[self._at_work :]
            self._at_work += len(called)
            self._call(called)
        self._look_later(CALL_AFTER, events)

    def _look_later(self, seconds: float, events: EventQueue) -> None:
        if self._nodes:
            events.put_later(seconds, ("reserve_due", {}))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
