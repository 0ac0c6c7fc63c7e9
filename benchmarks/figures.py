"""From measured cases to figures: medians, ratios, and what one more worker costs.

In: the cases of one suite. Out: plain dictionaries of numbers (seconds, milliseconds, megabytes
of 10**6 bytes), None where a part was not measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from measure import Case
from suites import RECIPES

MEGA = 1e6


@dataclass(frozen=True)
class Derived:
    """One derived figure: what it says, its value, and its unit ("" for a ratio)."""

    name: str
    value: float | None
    unit: str = ""


def median(case: Case | None) -> float | None:
    """Return the median of a case's counted runs in seconds."""
    return statistics.median(case.seconds) if case and case.seconds else None


def controller_cpu(case: Case | None) -> float | None:
    """Return the median of the controller's own processor time in a case's counted runs."""
    parallel = case is not None and case.runner.parallel
    return statistics.median(case.cpu_s) if case and parallel and case.cpu_s else None


def times_best(case: Case | None) -> float | None:
    """Return a case's median over the best wall time possible, None where that is not known."""
    best_s = case.suite.best_s if case else None
    return ratio(median(case), best_s(case.workers)) if case and best_s else None


def ratio(over: float | None, under: float | None) -> float | None:
    """Return `over / under`, None where either is unknown."""
    return over / under if over is not None and under else None


class Table:
    """The cases of one suite, found by runner and worker count; its parts by their name, too."""

    def __init__(self, cases: Iterable[Case]) -> None:
        """Index `cases`, which are all of one suite and its parts."""
        whole, self._parts = {}, {}
        for case in cases:
            if RECIPES[case.suite.name].part_of:
                self._parts[case.suite.name, case.runner.name, case.workers] = case
            else:
                whole[case.runner.name, case.workers] = case
        self._cases = whole

    def case(self, runner: str, workers: int) -> Case | None:
        """Return a runner's case, None where there is none."""
        return self._cases.get((runner, workers))

    def part(self, name: str, runner: str, workers: int) -> Case | None:
        """Return a runner's case of a part of the suite, None where there is none."""
        return self._parts.get((name, runner, workers))

    def cpu_per_test(self, part: str, runner: str, workers: int) -> float | None:
        """Return the controller's processor seconds a test, beyond those of the part `part`.

        The part is the same suite with fewer tests: what both take is start-up.
        """
        whole, fewer = self.case(runner, workers), self.part(part, runner, workers)
        above, below = controller_cpu(whole), controller_cpu(fewer)
        if above is None or below is None or whole is None or fewer is None:
            return None
        tests = (whole.suite.expected or 0) - (fewer.suite.expected or 0)
        return (above - below) / tests if tests > 0 else None

    def runners(self) -> list[str]:
        """Return the names of the parallel runners, in table order."""
        cases = self._cases.values()
        return list(dict.fromkeys(case.runner.name for case in cases if case.runner.parallel))

    def added(self, runner: str) -> list[Derived]:
        """Return what a worker adds, from the runs with the fewest and the most workers.

        Time: (t_most - t_fewest) / (most - fewest). Memory: the same of the whole tree's peak PSS
        and of its private memory (USS) at that moment.
        """
        counts = sorted(workers for name, workers in self._cases if name == runner)
        if len(counts) < 2:
            return []
        few, many = counts[0], counts[-1]
        step = many - few
        least, most = self._cases[runner, few], self._cases[runner, many]
        figures = []
        fast, slow = median(least), median(most)
        if fast is not None and slow is not None:
            name = f"{runner}: time an added worker costs, (t{many} - t{few}) / {step}"
            figures.append(Derived(name, (slow - fast) / step * 1000, "ms"))
        if least.peak and most.peak:
            for kind, low, high in (
                ("PSS", least.peak.pss, most.peak.pss),
                ("USS", least.peak.uss, most.peak.uss),
            ):
                name = f"{runner}: {kind} a worker adds, (m{many} - m{few}) / {step}"
                figures.append(Derived(name, (high - low) / step / MEGA, "MB"))
        return figures

    def headline(self) -> list[Derived]:
        """Return the ratios that the project's claims rest on, of the cases that were asked for."""
        pairs = (
            ("forkd 4 / sequential", ("forkd", 4), ("sequential", 1)),
            ("forkd 4 / xdist -n4", ("forkd", 4), ("xdist", 4)),
            ("forkd 4 / forkd-first 4", ("forkd", 4), ("forkd-first", 4)),
            ("forkd 8 / forkd 2", ("forkd", 8), ("forkd", 2)),
            ("xdist -n8 / xdist -n2", ("xdist", 8), ("xdist", 2)),
        )
        return [
            Derived(name, ratio(median(self._cases[over]), median(self._cases[under])))
            for name, over, under in pairs
            if over in self._cases and under in self._cases
        ]

    def derived(self) -> list[Derived]:
        """Return all derived figures of the suite."""
        return [*self.headline(), *(f for name in self.runners() for f in self.added(name))]
