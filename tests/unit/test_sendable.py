"""Whatever a suite puts into a report can be sent, and stays what it was as far as possible."""

from __future__ import annotations

import collections
import enum
import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from xdist.remote import serialize_warning_message

from pytest_forkd.channel.events import (
    encode_batch,
    pack_object,
    unpack_object,
    unpack_report,
)
from pytest_forkd.channel.packing import pack_report, pack_somehow, sendable_event
from pytest_forkd.channel.sendable import MAX_DEPTH, as_builtins, as_json
from pytest_forkd.parent.worker.warned import take_apart
from tests.unit import property_based
from tests.unit.test_events import builtins, hashables, reports, shape

#: pathlib._local.PosixPath in Python 3.13.
PATH = f"a value of type {type(Path()).__module__}.PosixPath"


class Silent:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Failing:
    def __str__(self) -> str:
        raise pytest.fail.Exception("no text")


class NoText:
    def __str__(self) -> Any:
        return 3  # noqa: PLE0307 - that is the point


class Color(enum.IntEnum):
    RED = 1


class Name(str):
    def __str__(self) -> str:
        return "another"

    def __len__(self) -> int:
        return 0


class Hashable(list):  # type: ignore[type-arg]
    def __hash__(self) -> int:  # type: ignore[override]
        return 1


class Point(NamedTuple):
    x: int
    y: int


odd = st.sampled_from(
    [Path("/x"), ValueError("x"), Silent(), Failing(), NoText(), object(), len, int, range(3), ...]
)
subclassed = st.sampled_from(
    [Color.RED, Name("name"), Point(1, 2), collections.OrderedDict(a=1), Hashable([1])]
)
anything = st.recursive(
    builtins | odd | subclassed,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(hashables | odd, inner, max_size=3)
        | st.sets(odd, max_size=3)
        | inner.map(lambda value: collections.defaultdict(list, a=value))
    ),
    max_leaves=8,
)


@property_based
@given(builtins)
def test_builtins_stay_what_they_are(value: Any) -> None:
    replaced: list[str] = []
    assert shape(as_builtins(value, replaced)) == shape(value)
    assert replaced == []


@property_based
@given(anything)
def test_anything_can_be_sent(value: Any) -> None:
    replaced: list[str] = []
    found = as_builtins(value, replaced)
    assert shape(unpack_object(pack_object(found))) == shape(found)
    if not replaced:
        assert found == value
    assert shape(unpack_object(pack_somehow(value, []))) == shape(found)


@property_based
@given(anything)
@example(math.inf)
@example({"a": [math.nan]})
def test_anything_can_be_told_as_json(value: Any) -> None:
    found = as_json(value, [])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("value", "sent", "what"),
    [
        (Path("/x"), "/x", PATH),
        (ValueError("why"), "why", "a value of type ValueError"),
        (Silent(), f"{__name__}.Silent", f"a value of type {__name__}.Silent"),
        (Failing(), f"{__name__}.Failing", f"a value of type {__name__}.Failing"),
        (NoText(), f"{__name__}.NoText", f"a value of type {__name__}.NoText"),
        ({"a": [Path("/x")]}, {"a": ["/x"]}, PATH),
        ({Path("/x"): 1}, {"/x": 1}, PATH),
        (10**5000, "int", "an int of too many digits"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_builtin_is_its_text(value: Any, sent: Any, what: str) -> None:
    replaced: list[str] = []
    assert as_builtins(value, replaced) == sent
    assert replaced == [what]


def test_an_instance_of_a_builtin_s_subclass_is_that_builtin() -> None:
    replaced: list[str] = []
    value = [Color.RED, Name("name"), Point(1, Color.RED), collections.OrderedDict(a=Name("b"))]
    assert shape(as_builtins(value, replaced)) == shape([1, "name", (1, 1), {"a": "b"}])
    assert replaced == []


def test_what_holds_itself_comes_to_an_end() -> None:
    loop: list[Any] = []
    loop.append(loop)
    replaced: list[str] = []
    found = as_builtins(loop, replaced)
    assert replaced == [f"a list inside {MAX_DEPTH} others"]
    for _ in range(MAX_DEPTH):
        [found] = found
    assert found == "[[...]]"
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert unpack_object(pack_somehow(deep, []))


# -- reports -----------------------------------------------------------------------------------


@property_based
@given(reports, st.dictionaries(st.sampled_from(["extras", "exc", "rerun"]), anything), anything)
def test_a_report_with_anything_added_can_be_sent(
    report: dict[str, Any], added: dict[str, Any], value: Any
) -> None:
    report = {**report, **added, "user_properties": [("name", value)]}
    found = unpack_report(json.loads(encode_batch([["report", pack_report(report, [])]]))[0][1])
    assert found.keys() == report.keys()
    for key in report.keys() - added.keys() - {"user_properties"}:
        assert shape(found[key]) == shape(report[key])
    for key, given_value in added.items():
        assert shape(found[key]) == shape(as_builtins(given_value, []))
    assert found["user_properties"] == [("name", as_builtins(value, []))]


#: What pytest's own fields are on arrival, whatever somebody has put into them.
FIELDS: dict[str, Any] = {
    "outcome": str,
    "when": (str, type(None)),
    "duration": (int, float),
    "start": (int, float),
    "keywords": dict,
    "sections": list,
    "user_properties": list,
    "location": (tuple, str, type(None)),
    "longrepr": (str, tuple, dict, type(None)),
}


@property_based
@given(reports, st.dictionaries(st.sampled_from(sorted(FIELDS)), anything, min_size=1))
def test_pytest_s_own_fields_keep_their_types(
    report: dict[str, Any], changed: dict[str, Any]
) -> None:
    event = ["report", pack_report({**report, **changed}, [])]
    try:
        payload = encode_batch([event])
    except Exception:
        payload = encode_batch([sendable_event(event, [])])
    found = unpack_report(json.loads(payload)[0][1])
    for key, types in FIELDS.items():
        assert isinstance(found[key], types), key
    for name, text in found["sections"]:
        assert type(name) is type(text) is str
    if isinstance(found["location"], tuple):
        path, line, name = found["location"]
        assert type(path) is type(name) is str
        assert type(line) in (int, type(None))


def test_what_was_replaced_is_named() -> None:
    replaced: list[tuple[str, str]] = []
    pack_report(
        {
            "nodeid": "a",
            "exc": ValueError("x"),
            "user_properties": [("fine", (1, 2)), ("path", Path("/x"))],
            "sections": [("a", Path("/x"))],
        },
        replaced,
    )
    assert sorted(replaced) == [
        ("exc", "a value of type ValueError"),
        ("sections", PATH),
        ("user_properties['path']", PATH),
    ]


# -- warnings ----------------------------------------------------------------------------------


@property_based
@given(
    st.lists(hashables | odd, max_size=3),
    st.sampled_from([UserWarning, DeprecationWarning, pytest.PytestWarning]),
)
def test_a_warning_is_taken_apart_as_xdist_does(args: list[Any], category: type[Warning]) -> None:
    """Where xdist can."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            warnings.warn_explicit(category(*args), category, "file", 3)
        except (RuntimeError, TypeError, pytest.fail.Exception):
            return  # a warning without a text, which plain pytest could not show either
    found = take_apart(caught[0])
    pack_object(found)
    try:
        expected = serialize_warning_message(caught[0])
        pack_object(expected)
    except Exception:
        return
    if "\\ud" not in ascii(args):
        assert shape(found) == shape(expected)
