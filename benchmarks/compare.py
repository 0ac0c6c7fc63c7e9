"""Compare runners on the same suites in one session: `python benchmarks/compare.py --help`.

Order of things: environments are made first; then, suite after suite, one uncounted first run
of every case, the timed rounds (each round runs every case once, in an order of its own), and
one memory round. A case whose first run goes wrong is given up and named in the report. What a
runner keeps from one run to the next is ended after each suite.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import memory
from concurrent_runs import NAME as TEN_RUNS
from concurrent_runs import Together
from concurrent_runs import measure as measure_together
from environments import Environment, InstallError, ensure
from layout import WORK
from measure import Case, last_line, log_of, mark_of, outcome_counts, run_case
from processes import clean_environment, end_processes, kept, marked, run
from progress import Progress, showing
from regimes import PRESET, put_into
from report import Results, as_json, machine, markdown
from runners import RUNNERS, Runner, add_commit
from session import exclusive
from suites import (
    RECIPES,
    SuiteUnavailable,
    build,
    clear_caches,
    requirements,
    whole,
    with_parts,
)

Facts = dict[str, Any]

STOP_LIMIT_S = 30.0
PAUSE_S = 0.2  # between runs, so that what one leaves to the kernel is not charged to the next


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    suites = [*whole(), TEN_RUNS]
    parser.add_argument("--suite", action="append", choices=suites, help="default: all")
    parser.add_argument("--runner", action="append", choices=list(RUNNERS), help="default: all")
    parser.add_argument("--workers", type=_counts, help="such as 2,4,8, which is the default")
    regimes = ", ".join(f"{suite} {counts[0]}" for suite, counts in PRESET.items())
    parser.add_argument(
        "--preset",
        choices=["regimes"],
        help=f"only what the first table needs: these suites and worker counts ({regimes}), "
        "every runner, no memory round",
    )
    parser.add_argument(
        "--against", metavar="COMMIT", help="also forkd as of this commit, beside --runner's"
    )
    parser.add_argument("--repeat", type=int, help="timed rounds (default 5)")
    parser.add_argument("--quick", action="store_true", help="small suites, 2 and 4, one round")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory round out")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        help="put the first table into this document, such as docs/benchmarks.md, once all is done",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    options.suite = options.suite or (list(PRESET) if options.preset else suites)
    if options.suite == suites and options.runner and "forkd" not in options.runner:
        options.suite.remove(TEN_RUNS)  # no other makes parents
    options.runner = options.runner or list(RUNNERS)
    if options.against:
        options.runner += add_commit(options.against)
    counts = options.workers or ([2, 4] if options.quick else [2, 4, 8])
    options.workers = dict.fromkeys(suites, counts)
    if options.preset:
        options.workers.update(PRESET)
        options.no_memory = True
    options.repeat = options.repeat or (1 if options.quick else 5)
    return options


def _counts(text: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a list of numbers: {text!r}") from None
    if counts[0] < 1:
        raise argparse.ArgumentTypeError("a worker count is at least 1")
    return counts


class Comparison:
    """One session: its options, its name, which its processes bear as a mark, and its bar."""

    def __init__(self, options: argparse.Namespace, session: str, progress: Progress) -> None:
        """Take the parsed options, the session's name, and a progress bar that is shown."""
        self.options = options
        self.session = session
        self.progress = progress
        self._environments: dict[str, Environment] = {}

    def environment(self, runner: Runner) -> Environment:
        """Return the runner's environment, made at most once a session."""
        name = runner.environment
        if name not in self._environments:
            wanted = (*runner.requirements, *requirements())
            log = self.progress.note
            self._environments[name] = ensure(
                name, wanted, log, checkout=runner.checkout, commit=runner.commit
            )
        return self._environments[name]

    def stop_kept(self, cases: Sequence[Case]) -> None:
        """End what the runners keep between runs: as they offer it, then whatever is left."""
        for case in cases:
            mark = mark_of(self.session, case)
            if case.runner.stop is None or not kept(mark):
                continue
            done = run(
                case.runner.stop(case.environment.python),
                case.suite.folder,
                clean_environment(mark, case.suite.folder),
                STOP_LIMIT_S,
                WORK / "logs" / f"stop-{case.runner.name}.log",
            )
            if done.exit_code or kept(mark):
                said = last_line(done.output)
                self.progress.note(f"{case.label}: what it keeps was not ended in its way: {said}")
        end_processes(marked(f"{self.session}*"))

    def cases(self, name: str) -> list[Case]:
        """Return the cases of a suite and its parts in table order."""
        return [
            Case(
                build(suite, runner.name, quick=self.options.quick),
                runner,
                workers,
                self.environment(runner),
            )
            for suite in with_parts(name)
            for runner in self._runners(suite)
            for workers in (self.options.workers[name] if runner.parallel else [1])
        ]

    def _runners(self, suite: str) -> list[Runner]:
        recipe = RECIPES[suite]
        return [
            runner
            for runner in (RUNNERS[name] for name in self.options.runner)
            if (not runner.suites or suite in runner.suites)
            and (not recipe.part_of or runner.parallel != recipe.plain)
        ]

    def count(self, cases: Sequence[Case]) -> None:
        """Find out from plain pytest how many tests must pass where the suite cannot tell."""
        for name in dict.fromkeys(c.suite.name for c in cases if c.suite.expected is None):
            self.progress.doing(f"{name}: counting its tests with plain pytest")
            plain = RUNNERS["sequential"]
            suite = build(name, plain.name, quick=self.options.quick)
            run_once = Case(suite, plain, 1, self.environment(plain))
            passed = count_with_plain_pytest(run_once, self.session)
            for case in cases:
                if case.suite.name == name:
                    case.suite = replace(case.suite, expected=passed)

    def compare(self, name: str) -> list[Case]:
        """Measure one suite."""
        cases = self.cases(name)
        self.count(cases)
        repeat = min(self.options.repeat, RECIPES[name].repeat_limit or self.options.repeat)
        sampled = memory.AVAILABLE and not self.options.no_memory
        samples = sum(case.suite.memory for case in cases) if sampled else 0
        self.progress.suite(name, len(cases) * (1 + repeat) + samples)
        for case in cases:
            clear_caches(case.suite.folder)
        for case in self._round(cases):
            case.first_s = run_case(case, self.session, count=False)
            case.given_up = case.first_s is None
            if case.given_up:
                end_processes(marked(mark_of(self.session, case)))
                self.progress.drop(repeat + (case.suite.memory and samples > 0))
        good = [case for case in cases if not case.given_up]
        for number in range(repeat):
            for case in self._round(random.Random(number).sample(good, len(good))):
                run_case(case, self.session)
        if samples:
            for case in self._round([case for case in good if case.suite.memory]):
                run_case(case, self.session, count=False, sample=True)
        self.stop_kept(cases)
        return cases

    def add(self, name: str, results: Results) -> bool:
        """Measure one suite into `results`; return False after saying why it cannot be."""
        try:
            if name == TEN_RUNS:
                results.together = self._together()
            else:
                results.suites[name] = self.compare(name)
        except (SuiteUnavailable, InstallError) as error:
            self.progress.note(f"{name} is left out: {error}")
            return False
        return True

    def _together(self) -> list[Together]:
        self.progress.suite(TEN_RUNS, self.options.repeat)
        rounds = []
        for one in measure_together(
            self.environment(RUNNERS["forkd"]), self.session, self.options.repeat
        ):
            self.progress.advance()
            rounds.append(one)
        return rounds

    def _round(self, cases: list[Case]) -> Iterator[Case]:
        for case in cases:
            self.progress.doing(case.label)
            time.sleep(PAUSE_S)
            yield case
            self.progress.advance()


def count_with_plain_pytest(case: Case, session: str) -> int:
    """Return how many tests plain pytest passes; raise SuiteUnavailable where it fails."""
    if run_case(case, session, count=False) is None:
        raise SuiteUnavailable(f"plain pytest fails on it ({case.problems[0]})")
    return outcome_counts(log_of(case).read_text(errors="replace"))["passed"]


def main(arguments: list[str]) -> int:
    """Run the comparison; return 0, 1 where a suite could not be made, 130 if interrupted."""
    options = parse(arguments)
    facts = {**machine(), "quick": options.quick}
    results = Results()
    left_out = []
    begin = time.monotonic()
    try:
        with exclusive() as session, showing() as progress:
            comparison = Comparison(options, session, progress)
            for name in options.suite:
                if not comparison.add(name, results):
                    left_out.append(name)
                facts["minutes"] = round((time.monotonic() - begin) / 60, 1)
                write(options, results, facts)
    except KeyboardInterrupt:
        print("interrupted: the report has the suites that were done", file=sys.stderr)
        return 130
    finally:
        if not options.markdown:
            print(markdown(results, facts))
    if options.into and not left_out:
        put_into(options.into, markdown(results, facts))
    return int(bool(left_out))


def write(options: argparse.Namespace, results: Results, facts: Facts) -> None:
    """Write the files that were asked for, with the suites that are done."""
    if options.json:
        options.json.write_text(json.dumps(as_json(results, facts), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(results, facts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
