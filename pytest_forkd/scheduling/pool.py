"""The tests that no worker has been given yet, in the order in which they are dealt."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Sequence

from pytest_forkd.scheduling.estimates import Estimates

__all__ = ["Pool"]

#: Shortest chunk, in seconds, that is worth a message: tiny tests are sent by the hundred.
MIN_CHUNK = 0.02
#: Seconds of shared fixtures that are not worth keeping tests together for.
NEGLIGIBLE = 0.001
#: A unit is long, and dealt before the others, if it takes this fraction of a worker's fair share.
LONG_PART = 1 / 16


class _Unit:
    """Items that are dealt in this order: of one file, or of one scope that is never split."""

    __slots__ = ("bound", "file", "items", "known", "unknown")

    def __init__(self, items: Iterable[int], estimates: Estimates, *, bound: bool) -> None:
        self.items = collections.deque(items)
        #: Whether they share fixtures, or must not be separated.
        self.bound = bound
        first = self.items[0]
        self.file = estimates.files[first]
        #: Seconds of the known items, and of one set-up of the fixtures that they share.
        self.known = estimates.enter(None, first)
        #: How many items are unknown.
        self.unknown = 0
        for index in self.items:
            self.add(index, estimates, 1)

    def add(self, index: int, estimates: Estimates, sign: int) -> None:
        """Add an item's time (``sign`` 1), or subtract it (-1)."""
        seconds = estimates.times[index]
        if seconds is None:
            self.unknown += sign
        else:
            self.known += sign * seconds

    def time(self, estimates: Estimates) -> float:
        """Seconds for the whole unit; computed in constant time."""
        if not self.unknown:
            return self.known
        return self.known + self.unknown * estimates.unknown(self.file)


class Pool:
    """Units in the order in which they are dealt: long units first, beginning with the longest.

    Short units stay in the order of collection, so that workers do not switch back and forth
    between modules.

    :param estimates: the estimates for all items.
    :param workers: how many workers share the work.
    :param reorder: whether the longest come first; otherwise all stay in the order of collection.
    """

    def __init__(self, estimates: Estimates, workers: int, *, reorder: bool = True) -> None:
        self._estimates = estimates
        units = self._scopes() if estimates.scopes is not None else self._neighbours(workers)
        if reorder:
            units = self._longest_first(units, workers)
        self._units = collections.deque(units)

    def __bool__(self) -> bool:
        return bool(self._units)

    def _scopes(self) -> list[_Unit]:
        assert self._estimates.scopes is not None
        scopes: dict[str, list[int]] = {}
        for index, scope in enumerate(self._estimates.scopes):
            scopes.setdefault(scope, []).append(index)
        return [_Unit(items, self._estimates, bound=True) for items in scopes.values()]

    def _neighbours(self, workers: int) -> list[_Unit]:
        """Runs of neighbours in a file: those that share fixtures, long tests, and the others."""
        estimates = self._estimates
        count = len(estimates.times)
        total = sum(map(estimates.time, range(count)))
        long = total / workers * LONG_PART
        groups: list[tuple[list[int], bool]] = []
        items: list[int] = []
        bound = False
        for index in range(count):
            if items:
                before = items[-1]
                if estimates.files[before] != estimates.files[index]:
                    groups.append((items, bound))
                    items, bound = [], False
                elif estimates.shared(before, index) > NEGLIGIBLE:
                    if not bound and len(items) > 1:
                        groups.append((items[:-1], False))
                        items = [before]
                    bound = True
                elif bound or estimates.time(index) > long or estimates.time(before) > long:
                    groups.append((items, bound))
                    items, bound = [], False
            items.append(index)
        if items:
            groups.append((items, bound))
        return [_Unit(group, estimates, bound=is_bound) for group, is_bound in groups]

    def _longest_first(self, units: list[_Unit], workers: int) -> list[_Unit]:
        estimates = self._estimates
        long = sum(unit.time(estimates) for unit in units) / workers * LONG_PART

        def key(unit: _Unit) -> float:
            # Rounded, so that units of about the same length stay in the order of collection.
            seconds = unit.time(estimates)
            whole = unit.bound or len(unit.items) == 1
            return -round(math.log(seconds), 1) if whole and seconds > long else math.inf

        return sorted(units, key=key)

    def put_back(self, indices: Sequence[int]) -> None:
        """Put items back, to be dealt next."""
        estimates = self._estimates
        groups: list[list[int]] = []
        for index in indices:
            if groups and (
                estimates.shared(groups[-1][-1], index) > NEGLIGIBLE
                or (
                    estimates.scopes is None
                    and estimates.files[groups[-1][-1]] == estimates.files[index]
                )
            ):
                groups[-1].append(index)
            else:
                groups.append([index])
        for items in reversed(groups):
            bound = any(
                estimates.shared(before, index) > NEGLIGIBLE
                for before, index in itertools.pairwise(items)
            )
            self._units.appendleft(
                _Unit(items, estimates, bound=bound or estimates.scopes is not None)
            )

    def deal(self, workers: int) -> list[int]:
        """Take out the next chunk; chunks shrink as less work is left.

        :param workers: how many workers share what is left.
        """
        estimates = self._estimates
        left = sum(unit.time(estimates) for unit in self._units)
        aim = max(left / (2 * workers), MIN_CHUNK)
        dealt: list[int] = []
        seconds = 0.0
        while self._units:
            unit = self._units[0]
            more = unit.time(estimates)
            if seconds + more <= aim:
                dealt.extend(unit.items)
                self._units.popleft()
            elif unit.bound and (dealt or estimates.scopes is not None or more <= left / workers):
                if dealt:
                    break
                dealt.extend(unit.items)
                self._units.popleft()
            else:
                dealt.extend(self._split(unit, aim - seconds, first=not dealt))
                break
            seconds += more
        return dealt

    def _split(self, unit: _Unit, aim: float, *, first: bool) -> list[int]:
        """Take about ``aim`` seconds off a unit; cut only where that saves more than it costs."""
        estimates = self._estimates
        taken: list[int] = []
        seconds = 0.0
        whole = unit.time(estimates)
        while unit.items:
            index = unit.items[0]
            before = taken[-1] if taken else None
            step = estimates.time(index) + estimates.enter(before, index)
            if (taken or not first) and seconds + step > aim:
                again = estimates.shared(before, index)
                # Splitting saves at most (whole - again) / 2, which must be more than ``again``.
                if whole > 3 * again:
                    break
            seconds += step
            unit.add(index, estimates, -1)
            taken.append(unit.items.popleft())
        if not unit.items:
            self._units.popleft()
        return taken
