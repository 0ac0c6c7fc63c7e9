"""What a run is said to have gained, and what kept it from more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.controller.gain_words import Times
from pytest_forkd.controller.run_gain import RunGain

#: Four workers on four processors that did as well as can be.
GOOD = Times(
    wall=10.0,
    before=0.5,
    after=0.0,
    collection=0.1,
    tests=36.0,
    longest=1.0,
    name="test_it.py::test_long",
    repeated=0.0,
    workers=4,
    processors=4,
)


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, None),
        ({"tests": 11.0}, None),
        ({"tests": 9.0, "workers": 1}, "there was one worker"),
        ({"tests": 4.0, "before": 6.0, "collection": 5.0}, "collecting took 5.00 s"),
        ({"tests": 4.0, "before": 6.0, "collection": None}, "the workers could begin after 6.00 s"),
        ({"tests": 4.0, "after": 6.0}, "ending the session took 6.00 s"),
        ({"tests": 10.0, "longest": 9.0}, "test_it.py::test_long took 9.00 s"),
        ({"tests": 10.0, "repeated": 6.0}, "setting up shared fixtures again took 6.00 s"),
        ({"tests": 10.0, "processors": 1}, "4 workers share 1 processor"),
        ({"tests": 10.0, "processors": 2}, "4 workers share 2 processors"),
        ({"tests": 10.0, "workers": 2}, "the tests are too short"),
        ({"tests": 10.0}, "the tests wait for one another"),
    ],
)
def test_what_kept_a_run_from_being_faster(changes: dict[str, float], bound: str | None) -> None:
    assert replace(GOOD, **changes).bound() == bound  # type: ignore[arg-type]


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_line_of_a_run() -> None:
    clock = Clock()
    gain = RunGain(clock)
    assert gain.lines("parent made", workers=True) == [], "no test was run"
    gain.collected(0.314)
    clock.now = 101.0
    gain.ready()
    clock.now = 101.5
    gain.ready()  # another worker; the first counts
    for second in range(1, 5):
        clock.now = 101.0 + second
        for worker in ("gw0", "gw1"):
            gain.ran(worker, 0.75, lambda: "test_it.py::test")
    origin = "kept parent (9 s old); each collects for itself: why"
    assert gain.lines(origin, workers=True) == [
        "forkd: 2 workers, kept parent, collected once in 0.31 s, 75 % busy, "
        "1.2x speed-up (6.00 s of tests in 5.00 s)",
        "forkd: gw0 ran 4 tests in 3.00 s, 75 % busy",
        "forkd: gw1 ran 4 tests in 3.00 s, 75 % busy",
    ]


def test_the_line_of_a_run_that_gained_nothing() -> None:
    clock = Clock()
    gain = RunGain(clock)
    clock.now = 104.0
    gain.ready()
    gain.set_up("test_it.py::costly", 2.0)
    gain.set_up("test_it.py::costly", 3.0)
    clock.now = 105.0
    for worker in ("gw0", "gw1"):
        gain.ran(worker, 0.5, lambda: "test_it.py::test")
    times = gain.times()
    assert times is not None
    assert times.repeated == 3.0
    assert gain.lines("", workers=False) == [
        "forkd: 2 workers, each collected for itself, 50 % busy, "
        "no speed-up (1.00 s of tests in 5.00 s): the workers could begin after 4.00 s"
    ]


def test_the_end_of_a_session_counts_and_keeps_no_worker_busy() -> None:
    clock = Clock()
    gain = RunGain(clock)
    gain.collected(0.1)
    gain.ready()
    clock.now = 102.0
    for worker in ("gw0", "gw1"):
        gain.ran(worker, 2.0, lambda: "test_it.py::test")
    clock.now = 110.0
    assert gain.lines("", workers=False) == [
        "forkd: 2 workers, collected once in 0.10 s, 100 % busy, "
        "no speed-up (4.00 s of tests in 10.00 s): ending the session took 8.00 s"
    ]


seconds = st.floats(0, 1e6)


@given(
    steps=st.lists(st.tuples(st.sampled_from(["gw0", "gw1", "gw2"]), seconds, seconds)),
    collection=st.none() | seconds,
    ready=st.booleans(),
)
def test_whatever_happened_there_is_a_line(
    steps: list[tuple[str, float, float]], collection: float | None, ready: bool
) -> None:
    """Clocks stand still, workers claim what they like: nothing fails, and no part is above 1."""
    clock = Clock()
    gain = RunGain(clock)
    if collection is not None:
        gain.collected(collection)
    if ready:
        gain.ready()
    for worker, taken, passed in steps:
        clock.now += passed
        gain.ran(worker, taken, lambda: "test_it.py::test")
    lines = gain.lines("parent made", workers=True)
    times = gain.times()
    if times is not None:
        assert 0 <= times.busy <= 1
        assert times.gain >= 0
        assert len(lines) == times.workers + 1
    else:
        assert lines == []
