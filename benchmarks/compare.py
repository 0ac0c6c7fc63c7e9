"""Compare runners on the same suites in one session: `python benchmarks/compare.py --help`.

Order of things: environments are made first; then, suite after suite, one uncounted first run
of every case, the timed rounds (each round runs every case once, in an order of its own), and
one memory round. A case whose first run goes wrong is given up and named in the report.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memory
from environments import Environment, InstallError, ensure
from measure import Case, log_of, mark_of, outcome_counts, run_case
from processes import end_processes, marked
from progress import Progress, showing
from report import as_json, machine, markdown
from runners import RUNNERS, Runner
from session import exclusive
from suites import RECIPES, Suite, SuiteUnavailable, build, clear_caches, requirements

Facts = dict[str, Any]

PAUSE_S = 0.2  # between runs, so that what one leaves to the kernel is not charged to the next


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--suite", action="append", choices=list(RECIPES), help="default: all")
    parser.add_argument("--runner", action="append", choices=list(RUNNERS), help="default: all")
    parser.add_argument("--workers", type=_counts, help="such as 2,4,8, which is the default")
    parser.add_argument("--repeat", type=int, help="timed rounds (default 5)")
    parser.add_argument("--quick", action="store_true", help="small suites, 2 and 4, one round")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory round out")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    options.suite = options.suite or list(RECIPES)
    options.runner = options.runner or list(RUNNERS)
    options.workers = options.workers or ([2, 4] if options.quick else [2, 4, 8])
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
            self._environments[name] = ensure(name, wanted, log, checkout=runner.checkout)
        return self._environments[name]

    def stop_kept(self, runner: Runner | None = None) -> None:
        """End the processes that outlived their run: a runner's, or all of this session's."""
        mark = mark_of(self.session, runner) if runner else f"{self.session}*"
        end_processes(marked(mark))

    def cases(self, suite: Suite) -> list[Case]:
        """Return the cases of a suite in table order."""
        chosen = [RUNNERS[name] for name in self.options.runner]
        return [
            Case(suite, runner, workers, self.environment(runner))
            for runner in chosen
            for workers in (self.options.workers if runner.parallel else [1])
        ]

    def expected(self, suite: Suite) -> int | None:
        """Return how many tests must pass, asking plain pytest where the suite cannot tell."""
        if suite.expected is not None:
            return suite.expected
        self.progress.doing(f"{suite.name}: counting its tests with plain pytest")
        return count_with_plain_pytest(suite, self.environment(RUNNERS["sequential"]), self.session)

    def compare(self, name: str) -> list[Case]:
        """Measure one suite."""
        suite = build(name, quick=self.options.quick)
        cases = self.cases(suite)
        expected = self.expected(suite)
        repeat = min(self.options.repeat, suite.repeat_limit or self.options.repeat)
        sample = suite.memory and memory.AVAILABLE and not self.options.no_memory
        self.progress.suite(name, len(cases) * (1 + repeat + sample))
        clear_caches(suite.folder)
        for case in self._round(cases):
            self.stop_kept(case.runner)
            case.first_s = run_case(case, self.session, expected)
            case.given_up = case.first_s is None
        good = [case for case in cases if not case.given_up]
        self.progress.drop((len(cases) - len(good)) * (repeat + sample))
        for number in range(repeat):
            for case in self._round(random.Random(number).sample(good, len(good))):
                seconds = run_case(case, self.session, expected)
                if seconds is not None:
                    case.seconds.append(seconds)
        if sample:
            for case in self._round(good):
                run_case(case, self.session, expected, sample=True)
        self.stop_kept()
        return cases

    def add(self, name: str, results: dict[str, list[Case]]) -> bool:
        """Measure one suite into `results`; return False after saying why it cannot be."""
        try:
            results[name] = self.compare(name)
        except (SuiteUnavailable, InstallError) as error:
            self.progress.note(f"{name} is left out: {error}")
        return name in results

    def _round(self, cases: list[Case]) -> Iterator[Case]:
        for case in cases:
            self.progress.doing(case.label)
            time.sleep(PAUSE_S)
            yield case
            self.progress.advance()


def count_with_plain_pytest(suite: Suite, environment: Environment, session: str) -> int:
    """Return how many tests plain pytest passes; raise SuiteUnavailable where it fails."""
    case = Case(suite, RUNNERS["sequential"], 0, environment)
    if run_case(case, session, None) is None:
        raise SuiteUnavailable(f"plain pytest fails on it ({case.problems[0]})")
    return outcome_counts(log_of(case).read_text(errors="replace"))["passed"]


def main(arguments: list[str]) -> int:
    """Run the comparison; return 0, 1 where a suite could not be made, 130 if interrupted."""
    options = parse(arguments)
    facts = {**machine(), "quick": options.quick}
    results: dict[str, list[Case]] = {}
    left_out = []
    try:
        with exclusive() as session, showing() as progress:
            comparison = Comparison(options, session, progress)
            for name in options.suite:
                if not comparison.add(name, results):
                    left_out.append(name)
                write(options, results, facts)
    except KeyboardInterrupt:
        print("interrupted: the report has the suites that were done", file=sys.stderr)
        return 130
    finally:
        if not options.markdown:
            print(markdown(results, facts))
    return int(bool(left_out))


def write(options: argparse.Namespace, results: dict[str, list[Case]], facts: Facts) -> None:
    """Write the files that were asked for, with the suites that are done."""
    if options.json:
        options.json.write_text(json.dumps(as_json(results, facts), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(results, facts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
