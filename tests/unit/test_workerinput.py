"""The mapping and the environment that tell who reads a worker's identity."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.parent.watch.findings import Finding, caller_outside, is_installed, place_of
from pytest_forkd.parent.watch.tripwires import EnvironTripwire, WorkerInput
from tests.unit import property_based

keys = st.sampled_from(["workerid", "workercount", "testrunuid", "database", "port"])
inputs = st.dictionaries(keys, st.integers() | st.text(max_size=5), min_size=1)


@property_based
@given(values=inputs, identity=st.sets(keys), key=keys)
def test_workerinput_is_the_dict_that_it_was(
    values: dict[str, Any], identity: set[str], key: str
) -> None:
    watched = WorkerInput(values, identity)
    assert watched == values
    assert dict(watched) == {**watched} == watched.copy() == copy.copy(watched) == values
    assert list(watched) == list(watched.keys()) == list(values)
    assert list(watched.items()) == list(values.items())
    assert list(watched.values()) == list(values.values())
    assert (key in watched) == (key in values)
    assert len(watched) == len(values)
    assert watched.get(key, "default") == values.get(key, "default")
    assert json.loads(json.dumps(watched)) == values
    assert watched | {"more": 1} == values | {"more": 1}
    assert {"more": 1} | watched == {"more": 1} | values
    assert repr(watched) == repr(values)
    assert isinstance(watched, dict)
    if key in values:
        assert watched[key] == values[key]
        watched["new"] = watched.pop(key)
        assert watched["new"] == values[key]
        assert key not in watched
    else:
        with pytest.raises(KeyError):
            watched[key]


@property_based
@given(values=inputs, identity=st.sets(keys), read=st.lists(keys))
def test_only_reads_of_identity_keys_are_noticed(
    values: dict[str, Any], identity: set[str], read: list[str]
) -> None:
    watched = WorkerInput(values, identity)
    assert "workerid" in watched or len(watched) == len(list(watched.keys()))
    for key in read:
        str(watched.get(key))
    line = sys._getframe().f_lineno - 1
    assert set(watched.trips) == {
        Finding(f'config.workerinput["{key}"] is read before the workers exist', __file__, line)
        for key in identity & set(read)
    }
    assert len(watched.trips) == len(set(watched.trips)), "each place is told once"


@property_based
@given(values=inputs, identity=st.sets(keys), other=inputs)
def test_a_worker_takes_over_its_values_in_the_same_object_and_is_not_watched(
    values: dict[str, Any], identity: set[str], other: dict[str, Any]
) -> None:
    watched = WorkerInput(values, identity)
    reference = watched
    watched.become(other)
    assert reference is watched
    assert dict(reference) == other
    assert list(reference.items()) == list(other.items())
    for key in other:
        assert reference[key] == other[key]
    assert watched.trips == []


@pytest.fixture
def tripwire(monkeypatch: pytest.MonkeyPatch) -> Iterator[EnvironTripwire]:
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "uid")
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    tripwire = EnvironTripwire()
    tripwire.arm()
    yield tripwire
    tripwire.disarm()


def test_reading_the_worker_s_variable_is_noticed_while_the_tripwire_is_armed(
    tripwire: EnvironTripwire,
) -> None:
    assert os.environ["PYTEST_XDIST_WORKER"] == "gw0"
    first = sys._getframe().f_lineno - 1
    assert os.environ.get("PYTEST_XDIST_WORKER") == "gw0"
    assert os.getenv("PYTEST_XDIST_WORKER") == "gw0"
    assert os.environ.pop("PYTEST_XDIST_WORKER") == "gw0"
    what = "PYTEST_XDIST_WORKER is read before the workers exist"
    assert tripwire.trips == [
        Finding(what, __file__, line) for line in (first, first + 2, first + 3, first + 4)
    ]
    tripwire.disarm()
    os.environ["PYTEST_XDIST_WORKER"] = "gw1"
    assert os.environ["PYTEST_XDIST_WORKER"] == "gw1"
    assert len(tripwire.trips) == 4
    assert type(os.environ).__module__ == "os"


def test_walks_over_the_environment_are_not_noticed(tripwire: EnvironTripwire) -> None:
    """Programs are started with copies of it."""
    plain = dict(os.environ)
    assert {**os.environ} == os.environ.copy() == os.environ | {} == {} | os.environ == plain
    assert dict(os.environ.items()) == plain
    assert sorted(os.environ.values()) == sorted(plain.values())
    assert "PYTEST_XDIST_WORKER" in os.environ
    assert "PYTEST_XDIST_WORKER" in os.environ.keys()  # noqa: SIM118
    assert os.environ == plain
    assert len(os.environ) == len(list(os.environ)) == len(plain)
    program = "import os; print(os.environ['PYTEST_XDIST_WORKER'])"
    for env in (None, os.environ, {**os.environ, "A": "1"}):
        out = subprocess.check_output([sys.executable, "-c", program], env=env, text=True)
        assert out == "gw0\n"
    assert os.environ["PYTEST_XDIST_TESTRUNUID"] == "uid"
    assert tripwire.trips == []


def test_a_copied_environment_is_not_watched_but_what_follows_is(tripwire: EnvironTripwire) -> None:
    copied = dict(os.environ)
    assert copied["PYTEST_XDIST_WORKER"] == "gw0"
    assert tripwire.trips == []
    assert os.environ["PYTEST_XDIST_TESTRUNUID"] != os.environ["PYTEST_XDIST_WORKER"]
    assert len(tripwire.trips) == 1


# -- findings ----------------------------------------------------------------------------------


def test_the_project_s_files_are_told_from_installed_ones(tmp_path: Path) -> None:
    link = tmp_path / "linked.py"
    link.symlink_to(pytest.__file__)
    for path in (json.__file__, os.__file__, pytest.__file__, str(link), None, ""):
        assert is_installed(path), path
    for path in (__file__, str(tmp_path / "conftest.py"), "relative.py"):
        assert not is_installed(path), path


def test_a_finding_names_the_line_of_the_project_that_caused_it() -> None:
    def here() -> Any:
        return caller_outside(sys._getframe(), frozenset())

    frame = here()
    assert frame.f_code is here.__code__
    # Through the standard library, and through modules that are named.
    [frame] = map(lambda _: caller_outside(sys._getframe(), frozenset({__name__})), [1])  # noqa: C417
    assert frame is None or frame.f_globals["__name__"] != __name__
    caught: list[Any] = []
    json.JSONEncoder(default=lambda _: caught.append(caller_outside(sys._getframe(1), frozenset())))
    encoder = json.JSONEncoder(
        indent=1, default=lambda _: caught.append(caller_outside(sys._getframe(1), frozenset()))
    )
    encoder.encode(object())
    assert caught[0].f_code.co_filename == __file__
    assert place_of(here.__code__) == (__file__, here.__code__.co_firstlineno)
    assert Finding("what", "path", 3).to_json() == {"what": "what", "path": "path", "lineno": 3}
    assert Finding("what").to_json() == {"what": "what", "path": None, "lineno": 0}
