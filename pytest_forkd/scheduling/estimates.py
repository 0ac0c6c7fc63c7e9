"""How long tests, and the fixtures that they share, are expected to take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Estimates", "SharedFixtures"]

#: Seconds for a test if nothing is known about the suite. Not less than for a fixture: otherwise
#: all tests of a small suite would stay with their fixture, on one worker.
UNKNOWN_TEST = 0.05
#: Seconds for an unknown shared fixture: enough to keep its tests together.
UNKNOWN_FIXTURE = 0.05
#: Seconds that pytest itself spends on a test, outside of the phases that it times.
OVERHEAD = 0.0003


@dataclass(frozen=True)
class SharedFixtures:
    """Which fixtures of a scope above function each item uses; session-scoped ones are left out.

    An instance is one set-up that neighbours share, such as a parametrized fixture in a module.

    :ivar keys: the fixtures' names, by which their costs are remembered.
    :ivar instances: for each instance, the position of its fixture in ``keys``.
    :ivar runs: ``(start, stop, instances)``: those that items ``start`` to ``stop`` - 1 use.
    """

    keys: Sequence[str] = ()
    instances: Sequence[int] = ()
    runs: Sequence[tuple[int, int, Sequence[int]]] = field(default=())

    @classmethod
    def from_json(cls, data: object, items: int) -> SharedFixtures:
        """Check what a worker has sent.

        :param data: ``[keys, instances, runs]``, or ``None``.
        :param items: how many items there are.
        :raises ValueError: if it is anything else.
        """
        if data is None:
            return cls()
        if not (isinstance(data, list) and len(data) == 3):
            raise ValueError("no table of shared fixtures")
        keys, instances, runs = data
        if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
            raise ValueError("shared fixtures without names")
        if not (isinstance(instances, list) and _all_below(instances, len(keys))):
            raise ValueError("instances of no fixture")
        if not isinstance(runs, list):
            raise ValueError("no items that use shared fixtures")
        checked: list[tuple[int, int, Sequence[int]]] = []
        at = 0
        for run in runs:
            if not (isinstance(run, list) and len(run) == 3 and isinstance(run[2], list)):
                raise ValueError("no item that uses shared fixtures")
            start, stop, used = run
            if not (
                _all_below([start, stop], items + 1)
                and at <= start < stop
                and _all_below(used, len(instances))
            ):
                raise ValueError("no item that uses shared fixtures")
            checked.append((start, stop, used))
            at = stop
        return cls(keys, instances, checked)


def _all_below(values: Sequence[object], limit: int) -> bool:
    return all(type(value) is int and 0 <= value < limit for value in values)


class Estimates:
    """Seconds that each item is expected to take; estimates of unknown items improve in the run.

    :param ids: the items' ids, in the order of their indices.
    :param known: seconds that tests took before, by id.
    :param fixtures: the fixtures that items share.
    :param costs: seconds that the set-up of shared fixtures took before, by key.
    :param split_scope: if given, items for which it returns the same value are never separated.
    """

    #: The shortest time that any test takes, in seconds.
    LEAST = OVERHEAD

    def __init__(
        self,
        ids: Sequence[str],
        known: Mapping[str, float] | None = None,
        fixtures: SharedFixtures | None = None,
        costs: Mapping[str, float] | None = None,
        split_scope: Callable[[str], str] | None = None,
    ) -> None:
        known = known or {}
        #: For each item: seconds, or ``None`` if unknown.
        self.times: list[float | None] = [
            None if seconds is None else seconds + OVERHEAD for seconds in map(known.get, ids)
        ]
        #: For each item: its file.
        self.files: list[str] = [nodeid.partition("::")[0] for nodeid in ids]
        #: For each item: its scope, which is never split; ``None`` if there are no such scopes.
        self.scopes = None if split_scope is None else [split_scope(nodeid) for nodeid in ids]
        of_files: dict[str, list[float]] = {}
        for file, seconds in zip(self.files, self.times, strict=True):
            if seconds is not None:
                of_files.setdefault(file, []).append(seconds)
        self._of_files = {file: statistics.median(times) for file, times in of_files.items()}
        known_times = [seconds for seconds in self.times if seconds is not None]
        self._of_suite = statistics.median(known_times) if known_times else None
        self._seen: dict[str, tuple[float, int]] = {}
        self._seen_all = (0.0, 0)
        self._used: list[frozenset[int]] = [frozenset()] * len(ids)
        self._costs: list[float] = []
        if fixtures is not None:
            self._take_fixtures(fixtures, costs or {})

    def _take_fixtures(self, fixtures: SharedFixtures, costs: Mapping[str, float]) -> None:
        by_name: dict[str, list[float]] = {}
        for key, seconds in costs.items():
            by_name.setdefault(_name(key), []).append(seconds)
        medians = {name: statistics.median(values) for name, values in by_name.items()}
        of_keys = [
            costs.get(key, medians.get(_name(key), UNKNOWN_FIXTURE)) for key in fixtures.keys
        ]
        self._costs = [of_keys[key] for key in fixtures.instances]
        for start, stop, used in fixtures.runs:
            self._used[start:stop] = [frozenset(used)] * (stop - start)

    def total(self) -> float | None:
        """Seconds that all items take, one after the other; ``None`` if some are unknown."""
        total = sum(self._costs)
        for seconds in self.times:
            if seconds is None:
                return None
            total += seconds
        return total

    def time(self, index: int) -> float:
        """Seconds that an item is expected to take, without the fixtures that it shares."""
        seconds = self.times[index]
        return self.unknown(self.files[index]) if seconds is None else seconds

    def unknown(self, file: str) -> float:
        """Seconds for an unknown test in ``file``."""
        seconds = self._of_files.get(file)
        if seconds is not None:
            return seconds
        seen = self._seen.get(file)
        if seen is not None:
            return seen[0] / seen[1]
        if self._of_suite is not None:
            return self._of_suite
        total, count = self._seen_all
        return total / count if count else UNKNOWN_TEST

    def learn(self, index: int, seconds: float) -> None:
        """Record that an item took ``seconds``, to estimate other unknown items."""
        if self.times[index] is None:
            file = self.files[index]
            total, count = self._seen.get(file, (0.0, 0))
            self._seen[file] = (total + seconds, count + 1)
            total, count = self._seen_all
            self._seen_all = (total + seconds, count + 1)

    def shared(self, before: int | None, index: int) -> float:
        """Seconds of set-up repeated if ``index`` runs on another worker than ``before``.

        :returns: infinity if the two must not be separated.
        """
        if before is None:
            return 0.0
        if self.scopes is not None and self.scopes[before] == self.scopes[index]:
            return float("inf")
        mine = self._used[index]
        if not mine:
            return 0.0
        theirs = self._used[before]
        return sum(
            self._costs[instance] for instance in (mine if mine is theirs else mine & theirs)
        )

    def enter(self, before: int | None, index: int) -> float:
        """Seconds for the shared fixtures that ``index`` needs beyond those of ``before``."""
        mine = self._used[index]
        if not mine:
            return 0.0
        if before is not None:
            theirs = self._used[before]
            if mine is theirs:
                return 0.0
            mine = mine - theirs
        return sum(self._costs[instance] for instance in mine)


def _name(key: str) -> str:
    """A fixture's own name, which fixtures of several modules may have in common."""
    return key.rpartition("::")[2].partition("[")[0]
