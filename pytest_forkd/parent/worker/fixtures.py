"""Fixtures of a scope above function: which items share them, and what their set-up takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest

from pytest_forkd.compat.tracebacks import left_out

__all__ = ["FixtureTimer", "fixture_table"]

#: In a list, so that tools such as freezegun do not find it and freeze it.
_CLOCK = [time.perf_counter]


def fixture_table(items: Sequence[pytest.Item]) -> list[Any] | None:
    """Which items share the set-up of a fixture.

    Session-scoped fixtures are left out: each worker sets them up once, whatever it runs.

    :returns: ``[keys, instances, runs]`` as in ``pytest_forkd.scheduling.SharedFixtures``;
        ``None`` if nothing is shared.
    """
    keys: dict[str, int] = {}
    instances: dict[tuple[str, object], int] = {}
    of_keys: list[int] = []
    runs: list[list[Any]] = []
    shared_by_info: dict[int, list[tuple[str, str, str]]] = {}
    for index, item in enumerate(items):
        info = getattr(item, "_fixtureinfo", None)
        if info is None:
            continue
        shared = shared_by_info.get(id(info))
        if shared is None:
            shared = shared_by_info[id(info)] = _shared(info)
        if not shared:
            continue
        indices: dict[str, Any] = getattr(getattr(item, "callspec", None), "indices", {})
        used = []
        for name, scope, key in shared:
            if name in indices:
                key = f"{key}[{indices[name]}]"
            instance = (key, _owner(item, scope))
            number = instances.get(instance)
            if number is None:
                number = instances[instance] = len(of_keys)
                of_keys.append(keys.setdefault(key, len(keys)))
            used.append(number)
        if runs and runs[-1][1] == index and runs[-1][2] == used:
            runs[-1][1] = index + 1
        else:
            runs.append([index, index + 1, used])
    return [list(keys), of_keys, runs] if runs else None


def _shared(info: Any) -> list[tuple[str, str, str]]:
    """Name, scope and key of each fixture of an item that other items may share."""
    found = []
    for name, definitions in info.name2fixturedefs.items():
        if definitions:
            definition = definitions[-1]
            if definition.scope in ("module", "class", "package"):
                found.append((name, definition.scope, f"{definition.baseid}::{name}"))
    return found


def _owner(item: pytest.Item, scope: str) -> object:
    """The object that limits a fixture value's life: items with the same one share the value."""
    if scope == "module":
        return id(item.getparent(pytest.Module))
    if scope == "class":
        return id(item.getparent(pytest.Class) or item)
    return item.nodeid.partition("::")[0].rpartition("/")[0]


class FixtureTimer:
    """A worker's plugin that measures the set-up of fixtures of a scope above function.

    :param report: called with a fixture's key and the seconds that its set-up took.
    """

    def __init__(self, report: Callable[[str, float], object]) -> None:
        self._report = report
        #: Seconds that went into such set-ups since this was last set to 0.
        self.spent = 0.0

    @pytest.hookimpl(wrapper=True)
    @left_out
    def pytest_fixture_setup(
        self, fixturedef: Any, request: Any
    ) -> Generator[None, object, object]:
        __tracebackhide__ = True  # a traceback shows what it shows in a plain run
        if fixturedef.scope == "function":
            return (yield)
        before, self.spent = self.spent, 0.0
        start = _CLOCK[0]()
        try:
            result = yield
        finally:
            seconds = _CLOCK[0]() - start
            own = max(0.0, seconds - self.spent)  # without fixtures that it requested meanwhile
            self.spent = before + seconds
        key = f"{fixturedef.baseid}::{fixturedef.argname}"
        if hasattr(request, "param"):
            key += f"[{getattr(request, 'param_index', 0)}]"
        self._report(key, own)
        return result
