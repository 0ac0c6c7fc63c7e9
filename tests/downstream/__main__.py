"""``python -m tests.downstream``: run other projects' suites, and compare.

Exits with 1 if anything differs under forkd that neither differs under xdist nor is declared in
``recipes.toml``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.downstream.comparing import TABLE_HEAD, Difference, compare, merged, row
from tests.downstream.running import Recipe, Run, prepare, run_all

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]

#: Differences that are shown of one project.
_SHOWN = 40


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.downstream")
    parser.add_argument("names", nargs="*", metavar="PROJECT", help="only these; all by default")
    parser.add_argument("--quickest", type=int, metavar="N", help="only the N quickest")
    parser.add_argument("--work", type=Path, help="directory for environments, to be used again")
    parser.add_argument(
        "--table",
        type=Path,
        help="write the table to this file, too; rows of projects that are not run stay in it",
    )
    parser.add_argument("--outputs", type=Path, help="keep what the runs print in this directory")
    options = parser.parse_args()
    recipes = [
        Recipe(name, **fields)
        for name, fields in tomllib.loads((_HERE / "recipes.toml").read_text()).items()
    ]
    if unknown := set(options.names) - {recipe.name for recipe in recipes}:
        parser.error(f"no such recipe: {', '.join(sorted(unknown))}")
    recipes = [recipe for recipe in recipes if not options.names or recipe.name in options.names]
    if options.quickest:
        recipes = sorted(recipes, key=lambda recipe: recipe.seconds)[: options.quickest]
    if options.work:
        return _run_recipes(recipes, options.work.absolute(), options)
    with tempfile.TemporaryDirectory(prefix="downstream-") as work:
        return _run_recipes(recipes, Path(work), options)


def _run_recipes(recipes: list[Recipe], work: Path, options: argparse.Namespace) -> int:
    wheel = _build(work / "wheel")
    rows, failed = "", []
    for recipe in recipes:
        started = time.monotonic()
        try:
            project, environment = prepare(recipe, wheel, work / recipe.name)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
            print(f"{recipe.name}: its environment cannot be made: {exc}", flush=True)
            failed.append(recipe.name)
            continue
        runs = run_all(recipe, project, environment)
        if options.outputs:
            _keep_outputs(options.outputs / recipe.name, runs)
        ours, known = compare(recipe, runs)
        if ours or not runs["plain"].tests:
            failed.append(recipe.name)
        rows += row(recipe, runs, ours, known)
        if options.table:  # after each, since the whole takes long
            old = options.table.read_text() if options.table.exists() else ""
            options.table.write_text(merged(old, row(recipe, runs, ours, known)))
        _tell(recipe, runs, ours, known)
        print(f"{recipe.name}: {time.monotonic() - started:.0f} s in all", flush=True)
    print(f"\n{TABLE_HEAD}{rows}")
    if failed:
        print(f"differ: {', '.join(failed)}")
    return 1 if failed else 0


def _build(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "wheel",
        "--no-deps",
        "-w",
        directory,
        _ROOT,
    ]
    subprocess.run(command, check=True, timeout=120)
    (wheel,) = directory.iterdir()
    return wheel


def _keep_outputs(directory: Path, runs: dict[str, Run]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for mode, run in runs.items():
        (directory / f"{mode}.txt").write_text(run.output, errors="replace")


def _tell(
    recipe: Recipe, runs: dict[str, Run], ours: list[Difference], known: list[Difference]
) -> None:
    plain = runs["plain"]
    print(f"{recipe.name}: {plain.stats}, exit status {plain.exit}")
    if not plain.tests:
        print(plain.output[-4000:])
    for mode, what, wanted, found in ours[:_SHOWN]:
        print(f"  {mode}: {what}: plain {wanted}, here {found}")
    if len(ours) > _SHOWN:
        print(f"  and {len(ours) - _SHOWN} more")
    for mode, what, wanted, found in known[:_SHOWN]:
        print(f"  (known) {mode}: {what}: plain {wanted}, here {found}")


if __name__ == "__main__":
    sys.exit(main())
