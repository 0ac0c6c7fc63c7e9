"""What differs between runs of a suite, and the table that tells of it."""

from __future__ import annotations

import re

from tests.downstream.running import Recipe, Run

__all__ = ["TABLE_HEAD", "Difference", "compare", "merged", "row"]

#: One thing that differs from the plain run: (mode, what, in the plain run, in this mode's).
Difference = tuple[str, str, str, str]

TABLE_HEAD = """\
| project | tests | plain | xdist | first | second | collection | differences |
| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |
"""

#: The parts of a test's id that are another in each process.
_CHANGING = re.compile(r"0x[0-9a-f]{6,}|/tmp/\S+")


def _things(run: Run) -> dict[str, str]:
    """All that is compared: what -> value."""
    things = {"exit status": str(run.exit)}
    for nodeid, outcomes in run.tests.items():
        things[_CHANGING.sub("...", nodeid)] = ", ".join(outcomes)
    for text, count in run.warnings.items():
        things[f"warning {_CHANGING.sub('...', text)}"] = f"{count} times"
    for kind, count in run.stats.items():
        things[f"count of {kind}"] = str(count)
    return things


def _differing(run: Run, plain: Run) -> dict[str, tuple[str, str]]:
    found, wanted = _things(run), _things(plain)
    return {
        what: (wanted.get(what, "nothing"), found.get(what, "nothing"))
        for what in sorted(found.keys() | wanted.keys())
        if found.get(what) != wanted.get(what)
    }


def compare(recipe: Recipe, runs: dict[str, Run]) -> tuple[list[Difference], list[Difference]]:
    """Compare the runs under forkd with the plain one, and with xdist's.

    What differs in the same way under xdist is no difference of ours; nor is what the recipe
    declares with its reason.

    :returns: what differs undeclared, and what is known.
    """
    plain = runs["plain"]
    under_xdist = _differing(runs["xdist"], plain)
    ours: list[Difference] = []
    known: list[Difference] = []
    for mode in ("first", "second", "imports"):
        differing = _differing(runs[mode], plain)
        for what, (wanted, found) in differing.items():
            same = under_xdist.get(what) == (wanted, found)
            excused = same or _declared(recipe, what)
            (known if excused else ours).append((mode, what, wanted, found))
    return ours, known


def _declared(recipe: Recipe, what: str) -> bool:
    return any(what.endswith(pattern) or re.fullmatch(pattern, what) for pattern in recipe.differs)


def row(
    recipe: Recipe, runs: dict[str, Run], ours: list[Difference], known: list[Difference]
) -> str:
    """The project's row of the table."""
    times = [
        f"{runs[mode].seconds:.1f} s" if runs[mode].exit is not None else "no end"
        for mode in ("plain", "xdist", "first", "second")
    ]
    finding = runs["first"].finding.replace("|", "\\|")
    level = f"each worker: {finding}" if finding else "shared"
    parts = []
    if ours:
        parts.append(f"**{len({what for _, what, _, _ in ours})} undeclared**")
    under_xdist = {what for _, what, _, _ in known if not _declared(recipe, what)}
    if under_xdist:
        parts.append(f"{len(under_xdist)}, as under xdist")
    parts += sorted(
        {
            reason
            for _, what, _, _ in known
            for p, reason in recipe.differs.items()
            if what.endswith(p) or re.fullmatch(p, what)
        }
    )
    cells = [f"{recipe.name} {recipe.version}", str(len(runs["plain"].tests)), *times, level]
    return f"| {' | '.join(cells)} | {'; '.join(parts) or 'none'} |\n"


def merged(table: str, row: str) -> str:
    """A table with a project's row put in, or in the place of its older one; sorted by name."""
    rows = {_name(line): line for line in table.splitlines(keepends=True)[2:]}
    rows[_name(row)] = row
    return TABLE_HEAD + "".join(rows[name] for name in sorted(rows))


def _name(row: str) -> str:
    return row.split()[1]
