"""The file of durations: what is written is read again, and nothing that it holds does harm."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_forkd.scheduling.durations import Durations

SECONDS = st.floats(0, 1e6)
IDS = st.lists(
    st.builds("{}.py::{}".format, st.sampled_from("ab"), st.text(min_size=1)),
    unique=True,
    max_size=20,
)


def load(path: Path, *, named: bool = True) -> tuple[Durations, list[str]]:
    """What is in a file, and what is said of it."""
    said: list[str] = []
    durations = Durations(path, said.append, named=named)
    durations.read()
    return durations, said


@settings(deadline=None)
@given(ids=IDS, data=st.data())
def test_what_is_written_is_read(
    ids: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("durations") / "file.json"
    durations, said = load(path)
    expected = {}
    for index, nodeid in enumerate(ids):
        phases = [data.draw(SECONDS) for _ in range(3)]
        durations.record(index, phases)
        expected[nodeid] = sum(phases)
    durations.record_fixture("a.py::f", 2.0)
    durations.record_fixture("a.py::f", 1.0)
    durations.save(ids)
    again, said_again = load(path)
    assert again.known(ids) == pytest.approx(expected, abs=1e-4)
    assert again.fixtures == {"a.py::f": 1.0}
    assert said == said_again == []
    assert os.listdir(path.parent) == ["file.json"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)


@settings(deadline=None)
@given(
    content=st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"version": st.just(1), "tests": JSON, "fixtures": JSON}).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_whatever_a_file_holds_is_used_or_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("durations") / "file.json"
    path.write_bytes(content)
    durations, said = load(path)
    assert len(said) <= 1
    assert all(seconds >= 0 for seconds in durations.known(["a::b"]).values())
    assert all(seconds >= 0 for seconds in durations.fixtures.values())
    durations.record(0, [1.0, 1.0, 1.0])
    durations.save(["a::b"])
    assert load(path)[0].known(["a::b"]) == {"a::b": 3.0}


def test_another_suites_durations_are_kept_and_told_of(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    one, _said = load(path)
    one.record(0, [1.0, 1.0, 1.0])
    one.save(["one.py::test"])
    other, said = load(path)
    assert other.known(["other.py::test"]) == {}
    assert len(said) == 1
    assert "of another suite" in said[0]
    other.record(0, [2.0, 2.0, 2.0])
    other.save(["other.py::test"])
    assert load(path)[0].known(["one.py::test", "other.py::test"]) == {
        "one.py::test": 3.0,
        "other.py::test": 6.0,
    }


def test_an_unwritable_file_is_told_of(tmp_path: Path) -> None:
    durations, said = load(tmp_path / "missing" / "file.json")
    durations.record(0, [1.0, 1.0, 1.0])
    durations.save(["a::b"])
    assert len(said) == 1
    assert "cannot write" in said[0]
