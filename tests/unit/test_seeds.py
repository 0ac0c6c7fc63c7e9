"""Generators that somebody seeded, and those that nobody did."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.parent.watch.seeds import SeedWatch
from tests.unit import property_based


def _import_numpy() -> Any:
    """NumPy, if it is installed.

    Imported while this module is: pytester forgets what is imported during a test, and NumPy cannot
    be imported a second time.
    """
    try:
        return importlib.import_module("numpy")
    except ImportError:
        return None


numpy = _import_numpy()


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    """Leave the global generators as they were."""
    state = random.getstate()
    yield
    random.setstate(state)


def watched(actions: Callable[[], object]) -> SeedWatch:
    watch = SeedWatch()
    watch.start()
    try:
        actions()
    finally:
        watch.stop()
    return watch


ACTIONS = ["seed", "seed by keyword", "seed with chance", "draw", "keep", "restore", "set"]


def act(names: list[str]) -> None:
    """Do to the global generator what modules do at import."""
    kept: list[Any] = []
    for name in names:
        if name == "seed":
            random.seed(5)
        elif name == "seed by keyword":
            random.seed(a="text")
        elif name == "seed with chance":
            random.seed()
        elif name == "draw":
            random.random()
        elif name == "keep":
            kept = [random.getstate()]
        elif name == "restore" and kept:
            random.setstate(kept[0])
        elif name == "set":
            random.setstate(random.Random(3).getstate())


def is_chosen(names: list[str]) -> bool:
    """Whether the generator's state is somebody's choice after :func:`act`."""
    chosen = False
    kept: list[bool] = []
    for name in names:
        if name in ("seed", "seed by keyword", "set"):
            chosen = True
        elif name == "seed with chance":
            chosen = False
        elif name == "keep":
            kept = [chosen]
        elif name == "restore" and kept:
            chosen = kept[0]
    return chosen


@property_based
@given(st.lists(st.sampled_from(ACTIONS), max_size=6))
def test_a_state_that_was_chosen_is_restored_and_one_of_chance_is_not(names: list[str]) -> None:
    random.seed()
    watch = watched(lambda: act(names))
    state = random.getstate()
    random.seed()  # as Python does in every fork
    watch.reseed()
    assert (random.getstate() == state) == is_chosen(names)


def test_watching_leaves_the_generators_functions_as_they_were() -> None:
    functions = (random.seed, random.setstate, random.getstate)
    watched(lambda: random.seed(1))
    assert (random.seed, random.setstate, random.getstate) == functions


def test_a_function_that_a_module_took_while_watched_still_seeds() -> None:
    taken: list[Callable[..., None]] = []
    watched(lambda: taken.append(random.seed))
    taken[0](5)
    assert random.random() == random.Random(5).random()


def test_numpy_s_global_generator_is_watched_as_well() -> None:
    if numpy is None:
        pytest.skip("needs NumPy")
    before = numpy.random.get_state()
    try:
        for actions, chosen in (
            (lambda: numpy.random.seed(5), True),
            (lambda: numpy.random.rand(), False),
            (lambda: (numpy.random.seed(5), numpy.random.seed()), False),
            (lambda: numpy.random.set_state(numpy.random.RandomState(5).get_state()), True),
        ):
            watch = watched(actions)
            first = numpy.random.RandomState()
            first.set_state(numpy.random.get_state())
            watch.reseed()
            assert (first.rand() == numpy.random.rand()) == chosen
    finally:
        numpy.random.set_state(before)
