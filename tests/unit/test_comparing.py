"""What counts as a difference between two runs of another project's suite."""

from __future__ import annotations

from typing import Any

import pytest

from tests.downstream.comparing import TABLE_HEAD, compare, merged, row
from tests.downstream.running import Recipe, Run

PASSED = ["call passed"]
FAILED = ["call failed"]


def recipe(**differs: str) -> Recipe:
    return Recipe("project", "1.0", "0" * 64, 10, differs=differs)


def one_run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "exit": 0,
        "tests": {"test_it.py::test_a": PASSED, "test_it.py::test_b[0x7fffa0123456]": PASSED},
        "warnings": {"UserWarning: old [test_it.py::test_a]": 1},
        "stats": {"passed": 2, "warnings": 1},
        "seconds": 1.5,
        "finding": "",
        "output": "",
    }
    return Run(**{**fields, **changes})


def runs(**changed: Run) -> dict[str, Run]:
    return {mode: one_run() for mode in ("plain", "xdist", "first", "second", "imports")} | changed


def test_equal_runs_do_not_differ() -> None:
    """Nor do ids that hold an address, or times."""
    other = one_run(
        tests={"test_it.py::test_a": PASSED, "test_it.py::test_b[0x55550000abcd]": PASSED},
        seconds=99.0,
    )
    assert compare(recipe(), runs(second=other)) == ([], [])
    assert "| shared | none |" in row(recipe(), runs(), [], [])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"exit": 1}, ("exit status", "0", "1")),
        ({"exit": None}, ("exit status", "0", "None")),
        (
            {"tests": {"test_it.py::test_b[0x7fffa0123456]": PASSED}},
            ("test_a", "passed", "nothing"),
        ),
        (
            {"tests": {**one_run().tests, "test_it.py::test_a": [*FAILED, "teardown failed"]}},
            ("test_a", "call passed", "call failed, teardown failed"),
        ),
        ({"tests": {**one_run().tests, "test_c": PASSED}}, ("test_c", "nothing", "call passed")),
        ({"warnings": {}}, ("warning UserWarning: old", "1 times", "nothing")),
        ({"stats": {"passed": 1, "warnings": 1}}, ("count of passed", "2", "1")),
    ],
)
@pytest.mark.parametrize("mode", ["first", "second", "imports"])
def test_whatever_differs_is_told(
    mode: str, changes: dict[str, Any], what: tuple[str, str, str]
) -> None:
    different = runs(**{mode: one_run(**changes)})
    ours, known = compare(recipe(), different)
    assert known == []
    [(in_mode, name, wanted, found)] = ours
    assert in_mode == mode
    assert what[0] in name
    assert wanted.endswith(what[1])
    assert found == what[2]
    assert "**1 undeclared**" in row(recipe(), different, ours, known)


def test_what_differs_in_the_same_way_under_xdist_is_not_ours() -> None:
    failed = one_run(exit=1, tests={**one_run().tests, "test_it.py::test_a": FAILED})
    under_both = runs(xdist=failed, first=failed)
    ours, known = compare(recipe(), under_both)
    assert ours == []
    assert len(known) == 2
    assert "2, as under xdist" in row(recipe(), under_both, ours, known)
    # In another way, it is.
    errors = one_run(exit=1, tests={**one_run().tests, "test_it.py::test_a": ["setup failed"]})
    ours, _known = compare(recipe(), runs(xdist=failed, first=errors))
    assert [what for _mode, what, _wanted, _found in ours] == ["test_it.py::test_a"]


def test_what_is_declared_is_told_with_its_reason() -> None:
    failed = one_run(tests={**one_run().tests, "test_it.py::test_a": FAILED}, stats={"passed": 1})
    declared = recipe(**{"::test_a": "it measures time", "count of .*": "it measures time"})
    different = runs(imports=failed)
    ours, known = compare(declared, different)
    assert [what for _mode, what, _wanted, _found in ours] == []
    assert row(declared, different, ours, known).endswith("| shared | it measures time |\n")
    ours, _known = compare(recipe(est_="too short to mean it"), different)
    assert len(ours) == 3


def test_a_row_takes_the_place_of_its_older_one() -> None:
    rows = [row(Recipe(name, "1.0", "", 1), runs(), [], []) for name in ("b", "a", "c")]
    table = ""
    for each in rows:
        table = merged(table, each)
    assert table == TABLE_HEAD + rows[1] + rows[0] + rows[2]
    newer = rows[0].replace("1.0", "2.0")
    assert merged(table, newer) == TABLE_HEAD + rows[1] + newer + rows[2]
