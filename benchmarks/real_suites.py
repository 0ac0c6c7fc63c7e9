"""Compare outcomes on suites that ship in wheels: `python benchmarks/real_suites.py --help`.

Each suite runs twice under plain pytest, once under pytest-xdist for reference, and under forkd
with each worker count, all in one environment. A recorder plugin writes every test's outcomes.
A test that differs between the two plain runs is flaky by itself: it is listed and not counted.
Exit code 1 means that a test came out differently under forkd, or that a run could not be judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from environments import Environment, InstallError, ensure
from layout import HERE, WORK
from measure import last_line, remarks, summary_line
from processes import clean_environment, end_processes, marked, run
from progress import Progress, showing
from report import machine
from runners import XDIST
from session import exclusive
from suites import EMPTY_INI
from tables import markdown_table, number

FOLDER = WORK / "real"
SUITES = ("numpy.linalg", "pandas.tests.series", "sklearn.cluster")
NEWEST = {"numpy": "2.4.6", "pandas": "3.1.1", "scikit-learn": "1.9.1"}
LISTED = 50  # differing tests shown a run; the JSON file has them all

Outcomes = dict[str, list[tuple[str, str]]]


@dataclass
class Run:
    """One run of one suite: its time in seconds, outcomes by node id, and what went wrong."""

    label: str
    seconds: float
    outcomes: Outcomes
    summary: str
    problem: str = ""


@dataclass
class Compared:
    """All runs of one suite, the tests that are flaky by themselves, and the differing ones."""

    suite: str
    runs: list[Run]
    flaky: list[str] = field(default_factory=list)
    differing: dict[str, list[str]] = field(default_factory=dict)

    def failed(self) -> bool:
        """Tell whether forkd gave another outcome than plain pytest, or a run broke."""
        broke = any(run.problem for run in self.runs if not run.label.startswith("xdist"))
        return broke or any(self.differing[k] for k in self.differing if k.startswith("forkd"))


def variants(workers: list[int]) -> dict[str, list[str]]:
    """Return the options of each run by its label, in the order in which they are made."""
    plain = ["-p", "no:xdist", "-p", "no:forkd"]
    forkd = {f"forkd {n}": ["-p", "forkd", "--forkd-workers", str(n)] for n in workers}
    xdist = {"xdist 2": ["-p", "no:forkd", "-n", "2"]}
    return {"plain": plain, "plain again": plain, **xdist, **forkd}


def prepare(progress: Progress) -> Environment:
    """Make the environment that holds the suites, pytest, pytest-xdist and this checkout."""
    pinned = [f'{name}=={version}; python_version >= "3.11"' for name, version in NEWEST.items()]
    older = [f'{name}; python_version < "3.11"' for name in NEWEST]
    wanted = (*XDIST, "hypothesis", *pinned, *older)
    environment = ensure("real", wanted, progress.note, checkout=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    # With `--pyargs` pytest looks for a configuration from the working directory upwards: this
    # one stops it before it finds this checkout's.
    (FOLDER / "pytest.ini").write_text(EMPTY_INI)
    return environment


def run_suite(
    environment: Environment,
    suite: str,
    label: str,
    options: list[str],
    session: str,
    limit_s: float,
) -> Run:
    """Run one suite once and read its outcomes back."""
    name = f"{suite}-{label.replace(' ', '-')}"
    outcomes = FOLDER / f"{name}.json"
    outcomes.unlink(missing_ok=True)
    command = [str(environment.python), "-m", "pytest", "-q", "-p", "outcome_recorder"]
    command += ["--outcomes", str(outcomes), *options, "--pyargs", suite]
    # One mark a session: it is part of the environment of what is compared.
    variables = clean_environment(session, FOLDER, PYTHONPATH=str(HERE / "recorder"))
    done = run(command, FOLDER, variables, limit_s, WORK / "logs" / f"real-{name}.log")
    summary = summary_line(done.output)
    said = "; ".join([summary or last_line(done.output), *remarks(done.output)])
    found = Run(label, done.seconds, _read(outcomes), said)
    if done.timed_out:
        found.problem = f"no end after {limit_s:.0f} s"
    elif done.exit_code not in (0, 1) or not found.outcomes:  # 1: some tests failed
        found.problem = f"exit code {done.exit_code}: {found.summary}"
    elif done.lingered:
        found.problem = "left processes behind"
    return found


def _read(path: Path) -> Outcomes:
    if not path.is_file():
        return {}
    data = json.loads(path.read_text())
    return {name: [(when, outcome) for when, outcome in phases] for name, phases in data.items()}


def different(one: Outcomes, other: Outcomes) -> set[str]:
    """Return the node ids whose outcomes differ, or that only one side has."""
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


def compare(suite: str, runs: list[Run]) -> Compared:
    """Compare each run with the first, which is a plain one."""
    plain, again, *others = runs
    flaky = different(plain.outcomes, again.outcomes)
    result = Compared(suite, runs, sorted(flaky))
    for other in others:
        result.differing[other.label] = sorted(different(plain.outcomes, other.outcomes) - flaky)
    return result


def markdown(results: list[Compared]) -> str:
    """Return the tables and the lists as Markdown."""
    rows = []
    for result in results:
        for one in result.runs:
            count = result.differing.get(one.label)
            rows.append(
                [
                    result.suite,
                    one.label,
                    str(len(one.outcomes)),
                    number(one.seconds, ".1f"),
                    "-" if count is None else str(len(count)),
                    str(len(result.flaky)),
                    one.problem or one.summary,
                ]
            )
    header = ["suite", "run", "tests", "time s", "differing", "flaky by themselves", "summary"]
    parts = [markdown_table(header, rows)]
    for result in results:
        if result.flaky:
            parts.append(_listing(f"{result.suite}: flaky by themselves", result.flaky))
        for label, names in result.differing.items():
            if names:
                lines = [_difference(result, label, name) for name in names]
                parts.append(_listing(f"{result.suite}: different under {label}", lines))
    return "\n\n".join(parts) + "\n"


def _listing(title: str, lines: list[str]) -> str:
    shown = [f"- {line}" for line in lines[:LISTED]]
    if len(lines) > LISTED:
        shown.append(f"- and {len(lines) - LISTED} more")
    return f"### {title}\n\n" + "\n".join(shown)


def _difference(result: Compared, label: str, name: str) -> str:
    other = next(run for run in result.runs if run.label == label)
    return f"`{name}`: {_phases(result.runs[0], name)} became {_phases(other, name)}"


def _phases(run: Run, name: str) -> str:
    phases = run.outcomes.get(name)
    return "nothing" if phases is None else ", ".join(f"{when} {what}" for when, what in phases)


def as_json(results: list[Compared]) -> list[dict[str, object]]:
    """Return all but the outcomes themselves, which stay in the work folder."""
    return [
        {
            "suite": result.suite,
            "runs": [
                {
                    "label": run.label,
                    "seconds": run.seconds,
                    "tests": len(run.outcomes),
                    "summary": run.summary,
                    "problem": run.problem,
                }
                for run in result.runs
            ],
            "flaky": result.flaky,
            "differing": result.differing,
        }
        for result in results
    ]


def main(arguments: list[str]) -> int:
    """Run the chosen suites; return 1 where forkd's outcomes differ from plain pytest's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--suite", action="append", help=f"default: {', '.join(SUITES)}")
    parser.add_argument(
        "--workers", default="2,4", help="forkd's worker counts (default 2,4; '' for none)"
    )
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds a run may take")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    runs = variants([int(count) for count in options.workers.split(",") if count])
    results = []
    try:
        with exclusive() as session, showing() as progress:
            environment = prepare(progress)
            for suite in options.suite or SUITES:
                progress.suite(suite, len(runs))
                made = []
                for label, extra in runs.items():
                    progress.doing(f"{suite}: {label}")
                    made.append(run_suite(environment, suite, label, extra, session, options.limit))
                    progress.advance()
                results.append(compare(suite, made))
                end_processes(marked(session))
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    text = f"# Outcomes on suites that ship in wheels\n\n{markdown(results)}"
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)
    if options.json:
        data = {"machine": machine(), "suites": as_json(results)}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return int(any(result.failed() for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
