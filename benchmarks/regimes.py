"""The figures that the project has set itself, one row each, for every runner of one session.

In: the cases by suite and the rounds of runs started together. Out: rows with a value a runner,
None where it was not measured or has no meaning, and those rows as a Markdown table.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from concurrent_runs import Together
from figures import Table, median, ratio, times_best
from measure import Case
from runners import RUNNERS
from tables import markdown_table, number

BEGIN, END = "<!-- benchmark table -->", "<!-- end of benchmark table -->"
ORDER = ("forkd", "forkd-first")  # before all others

# What a preset runs: worker counts by suite.
PRESET: dict[str, tuple[int, ...]] = {
    "ml": (4,),
    "tiny": (2,),
    "one_long": (4,),
    "module_fixture": (4,),
    "ten_runs": (2,),
}


@dataclass(frozen=True)
class Measure:
    """One figure: the key of its suite, words for the table, its target, and how it is found.

    form: of its values and its target. value: from the suite's cases and a runner's name.
    """

    suite: str
    regime: str
    name: str
    target: float
    form: str
    value: Callable[[Table, str], float | None]


@dataclass(frozen=True)
class Row:
    """A measure's values in one session, by runner."""

    suite: str
    regime: str
    measure: str
    to_reach: float
    form: str
    values: dict[str, float | None]


def _over_sequential(workers: int) -> Callable[[Table, str], float | None]:
    def value(table: Table, runner: str) -> float | None:
        return ratio(median(table.case(runner, workers)), median(table.case("sequential", 1)))

    return value


def _over_floor(table: Table, runner: str) -> float | None:
    return ratio(median(table.case(runner, 4)), median(table.part("ml_floor", "sequential", 1)))


def _controller_ms(table: Table, runner: str) -> float | None:
    seconds = table.cpu_per_test("tiny_one", runner, 2)
    return None if seconds is None else seconds * 1000


def _over_best(table: Table, runner: str) -> float | None:
    return times_best(table.case(runner, 4))


ML = "ML suite, 4 workers"
TINY = "10,000 trivial tests in 100 files, 2 workers"
MEASURES = (
    Measure("ml", ML, "wall / sequential", 0.32, ".2f", _over_sequential(4)),
    Measure("ml", ML, "wall / plain pytest on its import-free tests", 1.8, ".2f", _over_floor),
    Measure("tiny", TINY, "wall / sequential", 0.72, ".2f", _over_sequential(2)),
    Measure(
        "tiny", TINY, "controller CPU per test, beyond start-up, ms", 0.15, ".3f", _controller_ms
    ),
    Measure(
        "one_long",
        "200 tests of 50 ms and one of 5 s placed last, 4 workers",
        "wall / best possible",
        1.12,
        ".2f",
        _over_best,
    ),
    Measure(
        "module_fixture",
        "40 modules with a 0.3 s module fixture and ten 10 ms tests each, 4 workers",
        "wall / best possible",
        1.15,
        ".2f",
        _over_best,
    ),
)


def summary(suites: Mapping[str, Sequence[Case]], together: Sequence[Together]) -> list[Row]:
    """Return the rows whose suites were measured."""
    used = {case.runner.name for cases in suites.values() for case in cases if case.runner.parallel}
    if together:
        used.add("forkd")  # the only one that makes parents
    runners = sorted((name for name in RUNNERS if name in used), key=lambda n: n not in ORDER)
    rows = []
    for measure in MEASURES:
        if measure.suite in suites:
            table = Table(suites[measure.suite])
            values = {name: measure.value(table, name) for name in runners}
            rows.append(_row(measure, values))
    if together:
        made: dict[str, float | None] = dict.fromkeys(runners)
        made["forkd"] = statistics.median(one.parents for one in together)
        name = "ten runs started at once, nothing kept"
        rows.append(Row("ten_runs", name, "parents made", 1, "g", made))
    return rows


def _row(measure: Measure, values: dict[str, float | None]) -> Row:
    return Row(measure.suite, measure.regime, measure.name, measure.target, measure.form, values)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, between the markers that a README has around it."""
    header = ["suite", "measure", "to reach", *rows[0].values]
    cells = [
        [
            row.regime,
            row.measure,
            f"{row.to_reach:g}",
            *(number(value, row.form) for value in row.values.values()),
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


def marked(text: str) -> str:
    """Put what a document is to show between the two lines by which it is found."""
    return f"{BEGIN}\n\n{text}\n\n{END}"


def put_into(path: Path, report: str) -> None:
    """Replace what is between the two lines in a document by what is there in a report.

    :raises ValueError: if the document or the report does not have each of them once.
    """
    text = path.read_text("utf-8")
    for name, content in ((str(path), text), ("the report", report)):
        if content.count(BEGIN) != 1 or content.count(END) != 1:
            raise ValueError(f"{name} does not have {BEGIN!r} and {END!r} once each")
    new = report.partition(BEGIN)[2].partition(END)[0]
    before, _, rest = text.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}{new}{END}{rest.partition(END)[2]}", "utf-8")
