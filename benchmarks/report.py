"""The results as Markdown for people and as JSON for programs.

In: the cases by suite, the rounds of runs started together, and the facts about the machine.
Out: text, or a structure that `json` can write. Seconds are wall-clock seconds unless they are
said to be CPU seconds; megabytes are 10**6 bytes.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import concurrent_runs
import regimes
from concurrent_runs import Together
from figures import MEGA, Derived, Table, controller_cpu, median, ratio, times_best
from measure import Case
from suites import RECIPES
from tables import markdown_table, number

SHOWN_VERSIONS = (
    "pytest",
    "pytest-xdist",
    "pytest-zygote",
    "pytest-parallex",
    "rstest",
    "pytest-forkd",
    "numpy",
    "pandas",
    "scikit-learn",
)


@dataclass
class Results:
    """All that one session measured: cases by suite, and rounds of runs started together."""

    suites: dict[str, list[Case]] = field(default_factory=dict)
    together: list[Together] = field(default_factory=list)


def machine() -> dict[str, Any]:
    """Return the facts about this machine and interpreter that the figures depend on."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": affinity,
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def markdown(results: Results, facts: Mapping[str, Any]) -> str:
    """Return the whole report."""
    parts = ["# Benchmark results"]
    rows = regimes.summary(results.suites, results.together)
    if rows:
        shown = [_about_regimes(facts), regimes.table(rows), _facts(results, facts)]
        parts += ["## Regimes", regimes.marked("\n\n".join(shown))]
    else:
        parts.append(_facts(results, facts))
    for name, cases in results.suites.items():
        parts += [f"## {name}", _about(name, facts), _suite_table(cases)]
        derived = Table(cases).derived()
        if derived:
            parts.append(markdown_table(["derived", "value"], [_derived_row(d) for d in derived]))
    if results.together:
        parts += [f"## {concurrent_runs.NAME}", concurrent_runs.table(results.together)]
    return "\n\n".join(parts) + "\n"


def _about(name: str, facts: Mapping[str, Any]) -> str:
    small = " Small variant (`--quick`)." if facts.get("quick") else ""
    return f"{RECIPES[name].summary}.{small}"


def _about_regimes(facts: Mapping[str, Any]) -> str:
    text = "Medians, and ratios of medians; lower is better."
    if facts.get("quick"):
        text += " Small variants of the suites (`--quick`): not to be held against the targets."
    return text


def _facts(results: Results, facts: Mapping[str, Any]) -> str:
    found: dict[str, set[str]] = {}
    for cases in results.suites.values():
        for case in cases:
            for name in SHOWN_VERSIONS:
                if name in case.environment.versions:
                    found.setdefault(name, set()).add(case.environment.versions[name])
    versions = ", ".join(f"{name} {' or '.join(sorted(vs))}" for name, vs in found.items())
    return (
        f"Python {facts['python']}, {facts['system']}, {facts['cpus']} CPUs, load average at the "
        f"start {facts['load_at_start']}. {versions}. Wall-clock seconds; the first run of each "
        f"row is not counted among the others. It all took {facts.get('minutes', '-')} minutes."
    )


def _suite_table(cases: Sequence[Case]) -> str:
    sequential = median(Table(cases).case("sequential", 1))
    best = any(case.suite.best_s for case in cases)
    cpu = any(case.cpu_s for case in cases if case.runner.parallel)
    memory = any(case.peak for case in cases)
    header = ["runner", "workers", "median s", "min-max s", "runs", "x sequential", "first run s"]
    header += ["x best"] if best else []
    header += ["controller CPU s"] if cpu else []
    header += ["peak PSS MB", "USS then MB"] if memory else []
    rows = []
    for case in cases:
        middle = median(case)
        spread = f"{min(case.seconds):.2f}-{max(case.seconds):.2f}" if case.seconds else "-"
        row = [
            _runner_and_part(case),
            str(case.workers),
            number(middle),
            spread,
            str(len(case.seconds)),
            number(None if RECIPES[case.suite.name].part_of else ratio(middle, sequential)),
            number(case.first_s),
        ]
        if best:
            row.append(number(times_best(case)))
        if cpu:
            row.append(number(controller_cpu(case)))
        if memory:
            row.append(number(case.peak.pss / MEGA if case.peak else None, ".0f"))
            row.append(number(case.peak.uss / MEGA if case.peak else None, ".0f"))
        rows.append(row)
    table = markdown_table(header, rows)
    notes = [f"- {note}" for case in cases if (note := _note(case))]
    notes += [f"- {_name(case)} said: {text}" for case in cases for text in sorted(case.remarks)]
    notes += [
        f"- {_name(case)}: {case.remade} of the counted runs did not find a kept parent, or made "
        "another"
        for case in cases
        if case.remade
    ]
    return table + ("\n\nTo note:\n\n" + "\n".join(notes) if notes else "")


def _runner_and_part(case: Case) -> str:
    part = f" on {case.suite.name}" if RECIPES[case.suite.name].part_of else ""
    return case.runner.name + part


def _name(case: Case) -> str:
    workers = f"{case.workers} worker{'s' if case.workers > 1 else ''}"
    return f"`{_runner_and_part(case)}` with {workers}"


def _note(case: Case) -> str:
    """Return in words what went wrong in a case, or an empty string."""
    if not case.problems:
        return ""
    name = _name(case)
    if case.given_up:
        return f"{name}: not measured, its first run went wrong: {case.problems[0]}"
    kinds = "; ".join(f"{case.problems.count(p)} x {p}" for p in dict.fromkeys(case.problems))
    return f"{name}: runs that went wrong and are not counted: {kinds}"


def _derived_row(figure: Derived) -> list[str]:
    if not figure.unit:
        return [figure.name, number(figure.value)]
    return [figure.name, f"{number(figure.value, '.1f')} {figure.unit}"]


def as_json(results: Results, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything measured; bytes and seconds, unrounded."""
    return {
        "machine": dict(facts),
        "regimes": [asdict(row) for row in regimes.summary(results.suites, results.together)],
        "suites": {
            name: {
                "cases": [_case_json(case) for case in cases],
                "derived": [
                    {"name": d.name, "value": d.value, "unit": d.unit or "ratio"}
                    for d in Table(cases).derived()
                ],
            }
            for name, cases in results.suites.items()
        },
        concurrent_runs.NAME: [one.as_json() for one in results.together],
    }


def _case_json(case: Case) -> dict[str, Any]:
    peak = case.peak
    return {
        "suite": case.suite.name,
        "runner": case.runner.name,
        "workers": case.workers,
        "median_s": median(case),
        "seconds": case.seconds,
        "first_run_s": case.first_s,
        "median_times_best": times_best(case),
        "controller_cpu_s": case.cpu_s,
        "median_controller_cpu_s": controller_cpu(case),
        "runs_without_kept_parent": case.remade if case.runner.stop else None,
        "problems": case.problems,
        "given_up": case.given_up,
        "remarks": sorted(case.remarks),
        "peak_pss_bytes": peak.pss if peak else None,
        "uss_at_peak_bytes": peak.uss if peak else None,
        "processes_at_peak": peak.processes if peak else None,
        "memory_samples": peak.samples if peak else None,
        "versions": dict(case.environment.versions),
    }
