"""From measured cases to figures: medians, ratios, and what one more worker costs.

In: the cases of one suite. Out: plain dictionaries of numbers (seconds, milliseconds, megabytes
of 10**6 bytes), None where a part was not measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from measure import Case

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


def ratio(over: float | None, under: float | None) -> float | None:
    """Return `over / under`, None where either is unknown."""
    return over / under if over is not None and under else None


class Table:
    """The cases of one suite, found by runner and worker count."""

    def __init__(self, cases: Iterable[Case]) -> None:
        """Index `cases`, which are all of one suite."""
        self._cases = {(case.runner.name, case.workers): case for case in cases}

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
