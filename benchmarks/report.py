"""The results as Markdown for people and as JSON for programs.

In: the cases by suite and the facts about the machine. Out: text, or a structure that `json`
can write. Seconds are wall-clock seconds; megabytes are 10**6 bytes.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

from figures import MEGA, Derived, Table, median, ratio
from measure import Case
from suites import RECIPES

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
Results = Mapping[str, Sequence[Case]]


def machine() -> dict[str, Any]:
    """Return the facts about this machine and interpreter that the figures depend on."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": affinity,
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are set to the right."""
    numeric = [all(_numeric(row[index]) for row in rows) for index in range(len(header))]
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join(" ---: " if right else " --- " for right in numeric) + "|")
    lines.extend("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join(lines)


def _numeric(cell: str) -> bool:
    return re.fullmatch(r"-|-?[\d.]+(-[\d.]+)?( [a-zA-Z]+)?", cell) is not None


def number(value: float | None, form: str = ".2f") -> str:
    """Return a number as text, a dash where there is none."""
    return "-" if value is None else format(value, form)


def markdown(results: Results, facts: Mapping[str, Any]) -> str:
    """Return the whole report."""
    parts = ["# Benchmark results", _facts(results, facts)]
    for name, cases in results.items():
        parts += [f"## {name}", _about(name, facts), _suite_table(cases)]
        derived = Table(cases).derived()
        if derived:
            parts.append(markdown_table(["derived", "value"], [_derived_row(d) for d in derived]))
    return "\n\n".join(parts) + "\n"


def _about(name: str, facts: Mapping[str, Any]) -> str:
    small = " Small variant (`--quick`)." if facts.get("quick") else ""
    return f"{RECIPES[name].summary}.{small}"


def _facts(results: Results, facts: Mapping[str, Any]) -> str:
    found: dict[str, set[str]] = {}
    for cases in results.values():
        for case in cases:
            for name in SHOWN_VERSIONS:
                if name in case.environment.versions:
                    found.setdefault(name, set()).add(case.environment.versions[name])
    versions = ", ".join(f"{name} {' or '.join(sorted(vs))}" for name, vs in found.items())
    return (
        f"Python {facts['python']}, {facts['system']}, {facts['cpus']} CPUs, load average at the "
        f"start {facts['load_at_start']}. {versions}. Wall-clock seconds; the first run of each "
        "row is not counted among the others."
    )


def _suite_table(cases: Sequence[Case]) -> str:
    sequential = next((median(case) for case in cases if not case.runner.parallel), None)
    memory = any(case.peak for case in cases)
    header = ["runner", "workers", "median s", "min-max s", "runs", "x sequential", "first run s"]
    header += ["peak PSS MB", "USS then MB"] if memory else []
    rows = []
    for case in cases:
        middle = median(case)
        spread = f"{min(case.seconds):.2f}-{max(case.seconds):.2f}" if case.seconds else "-"
        row = [
            case.runner.name,
            str(case.workers),
            number(middle),
            spread,
            str(len(case.seconds)),
            number(ratio(middle, sequential)),
            number(case.first_s),
        ]
        if memory:
            row.append(number(case.peak.pss / MEGA if case.peak else None, ".0f"))
            row.append(number(case.peak.uss / MEGA if case.peak else None, ".0f"))
        rows.append(row)
    table = markdown_table(header, rows)
    notes = [f"- {note}" for case in cases if (note := _note(case))]
    notes += [f"- {_name(case)} said: {text}" for case in cases for text in sorted(case.remarks)]
    return table + ("\n\nTo note:\n\n" + "\n".join(notes) if notes else "")


def _name(case: Case) -> str:
    return f"`{case.runner.name}` with {case.workers} worker{'s' if case.workers > 1 else ''}"


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
        "suites": {
            name: {
                "cases": [_case_json(case) for case in cases],
                "derived": [
                    {"name": d.name, "value": d.value, "unit": d.unit or "ratio"}
                    for d in Table(cases).derived()
                ],
            }
            for name, cases in results.items()
        },
    }


def _case_json(case: Case) -> dict[str, Any]:
    peak = case.peak
    return {
        "runner": case.runner.name,
        "workers": case.workers,
        "median_s": median(case),
        "seconds": case.seconds,
        "first_run_s": case.first_s,
        "problems": case.problems,
        "given_up": case.given_up,
        "remarks": sorted(case.remarks),
        "peak_pss_bytes": peak.pss if peak else None,
        "uss_at_peak_bytes": peak.uss if peak else None,
        "processes_at_peak": peak.processes if peak else None,
        "memory_samples": peak.samples if peak else None,
        "versions": dict(case.environment.versions),
    }
