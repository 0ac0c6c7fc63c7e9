"""How many workers a run begins with, and when others are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.scheduling import Estimates
from pytest_forkd.scheduling.reserve import (
    CALL_AFTER,
    PATIENCE,
    WORTH_A_WORKER,
    Reserve,
    workers_worth,
)
from tests.unit import property_based


class Events:
    """Where :class:`Reserve` puts its event."""

    def __init__(self) -> None:
        self.later: list[float] = []

    def put_later(self, seconds: float, event: object) -> None:
        assert event == ("reserve_due", {})
        self.later.append(seconds)


def estimate(seconds: float, known: int) -> Any:
    """Of twelve tests the first ``known`` are known to take ``seconds`` each."""

    def of(ids: Sequence[str]) -> Estimates:
        return Estimates(ids, dict.fromkeys(ids[:known], seconds))

    return of


IDS = [f"test_it.py::test_{i}" for i in range(12)]


@pytest.mark.parametrize(
    ("seconds", "processors", "workers"),
    [
        (None, 2, 8),
        (0.0, 2, 1),
        (WORTH_A_WORKER, 2, 1),
        (WORTH_A_WORKER * 1.5, 2, 2),
        (WORTH_A_WORKER * 2.5, 2, 2),
        (WORTH_A_WORKER * 4, 2, 3),
        (WORTH_A_WORKER * 4, 16, 4),
        (60.0, 1, 8),
    ],
)
def test_a_worker_is_made_for_some_tenths_of_a_second(
    seconds: float | None, processors: int, workers: int
) -> None:
    assert workers_worth(seconds, 8, processors) == workers


@property_based
@given(st.none() | st.floats(0, 1e9), st.integers(1, 1000), st.integers(1, 200), st.floats(0, 1e6))
def test_more_work_never_has_fewer_workers(
    seconds: float | None, most: int, processors: int, more: float
) -> None:
    count = workers_worth(seconds, most, processors)
    assert 1 <= count <= most
    if seconds is not None:
        assert count <= workers_worth(seconds + more, most, processors)


def test_as_many_again_are_called_as_long_as_there_is_work() -> None:
    called: list[list[Any]] = []
    reserve: Reserve[Any] = Reserve(lambda nodes: called.append(list(nodes)))
    events: Any = Events()
    nodes: Any = list(range(8))
    assert list(reserve.split(nodes, estimate(0.001, 12), IDS)) == nodes[:1]
    reserve.watch(events)
    reserve.due(False, events)
    assert called == []
    for _ in range(3):
        reserve.due(True, events)
    assert called == [[1], [2, 3], [4, 5, 6, 7]]
    assert events.later == [CALL_AFTER] * 4, "and nobody is looked for once all are at work"
    reserve.due(True, events)
    assert len(called) == 3


def test_the_first_ones_get_the_time_that_they_need() -> None:
    """Others would start up beside them, and be told that there is nothing left."""
    reserve: Reserve[Any] = Reserve(lambda nodes: None)
    events: Any = Events()
    nodes: Any = list(range(8))
    assert reserve.split(nodes, estimate(0.025, 12), IDS) == nodes[:1]
    reserve.watch(events)
    reserve.due(True, events)
    assert events.later == [pytest.approx(PATIENCE * 12 * 0.025, rel=0.05), CALL_AFTER]


@pytest.mark.parametrize("known", [0, 11])
def test_all_begin_where_anything_is_unknown(known: int) -> None:
    reserve: Reserve[Any] = Reserve(lambda nodes: None)
    events: Any = Events()
    nodes: Any = list(range(8))
    assert reserve.split(nodes, estimate(0.001, known), IDS) == nodes
    reserve.watch(events)
    assert events.later == []
