"""What travels between a worker and the controller is builtins, and comes back as it was."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import pytest
from execnet import DumpError
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.channel.events import (
    encode_batch,
    pack_object,
    unpack_object,
    unpack_report,
)
from pytest_forkd.channel.messages import decode_events, names_of_events
from pytest_forkd.channel.packing import pack_report
from tests.unit import property_based
from tests.unit.test_frames import json_values

#: Lone surrogates, too: a file name that is no UTF-8 is given with them.
texts = st.text(max_size=10)
hashables = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | texts
    | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
builtins = st.recursive(
    hashables,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashables, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4)
    ),
    max_leaves=10,
)


def shape(value: Any) -> Any:
    """A value with the types of all that is in it: 1, True and 1.0 are equal, but not the same."""
    if isinstance(value, (list, tuple)):
        return type(value), [shape(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, map(shape, value)))
    if isinstance(value, dict):
        return dict, [(shape(key), shape(part)) for key, part in value.items()]
    return type(value), value


@property_based
@given(builtins)
def test_builtins_survive_being_packed(value: Any) -> None:
    text = pack_object(value)
    assert json.loads(json.dumps(text)) == text
    assert shape(unpack_object(text)) == shape(value)


@pytest.mark.parametrize("value", [object(), len, Exception(), range(3), bytearray(b"x")])
def test_what_is_no_builtin_cannot_be_packed(value: object) -> None:
    for wrapped in (value, [value], {"key": (value,)}):
        with pytest.raises(DumpError):
            pack_object(wrapped)


@property_based
@given(
    st.text(max_size=30)
    | st.binary(max_size=30).map(lambda data: base64.b64encode(data).decode())
    # Not what asks for a list of some length: see the test of memory below.
    | st.lists(st.sampled_from(b"ABCDEFGHIJLMNOPQRSTU@\0\1"), max_size=30).map(
        lambda data: base64.b64encode(b"\x02" + bytes(data)).decode()
    )
    | builtins
)
def test_unpacking_junk_gives_builtins_or_a_value_error(junk: Any) -> None:
    try:
        value = unpack_object(junk)
    except ValueError:
        return
    assert shape(value)


def test_a_short_text_cannot_ask_for_much_memory() -> None:
    """A list's length travels before its items, and a worker may lie about it."""
    text = base64.b64encode(b"K" + (20_000_000).to_bytes(4, "big") + b"Q").decode()
    assert unpack_object(pack_object([1] * 1000)) == [1] * 1000
    tracemalloc.start()
    try:
        for prefix in ("", "Ag=="):
            with pytest.raises(ValueError):
                unpack_object(
                    base64.b64encode(base64.b64decode(prefix) + base64.b64decode(text)).decode()
                )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


# -- reports -----------------------------------------------------------------------------------

locations = st.tuples(texts, st.none() | st.integers(0, 10**6), texts)
outcomes = st.sampled_from(["passed", "failed", "skipped", "rerun"])
reports = st.fixed_dictionaries(
    {
        "$report_type": st.just("TestReport"),
        "nodeid": texts,
        "location": locations,
        "keywords": st.dictionaries(texts, st.integers(0, 1), max_size=3),
        "outcome": outcomes,
        "longrepr": st.none() | texts | locations | st.dictionaries(texts, json_values, max_size=3),
        "when": st.sampled_from(["setup", "call", "teardown"]),
        "sections": st.lists(st.tuples(texts, texts), max_size=3),
        "duration": st.floats(0, 1e6),
        "start": st.floats(0, 1e10),
        "stop": st.floats(0, 1e10),
        "user_properties": st.lists(st.tuples(texts, builtins), max_size=3),
        "item_index": st.integers(0),
        "worker_id": texts,
        "testrun_uid": texts,
    },
    # What plugins add, such as pytest-rerunfailures' "rerun" and pytest-html's "extras".
    optional={"rerun": st.integers(), "extras": builtins, "description": builtins},
)


@property_based
@given(reports)
def test_reports_come_back_as_they_were(report: dict[str, Any]) -> None:
    before = shape(report)
    payload = encode_batch([["report", pack_report(report, [])]])
    assert shape(report) == before, "packing changes nothing"
    [[name, data]] = json.loads(payload)
    assert name == "report"
    found = unpack_report(data)
    assert {key: shape(value) for key, value in found.items()} == {
        key: shape(value) for key, value in report.items()
    }


def test_a_report_may_hold_any_text() -> None:
    """Such as file names that are no UTF-8, which Python gives as lone surrogates."""
    report = {
        "nodeid": "test_\udcff.py::test\0",
        "sections": [("Captured stdout call", "\ud800\x1b[31m\r\n")],
        "user_properties": [("path", "\udcff")],
    }
    [[_, data]] = json.loads(encode_batch([["report", pack_report(report, [])]]))
    assert unpack_report(data) == report


def test_a_batch_of_what_json_cannot_keep_is_refused() -> None:
    with pytest.raises(DumpError, match="warning"):
        encode_batch([["warning", {"a": {1, 2}}]])


@property_based
@given(
    json_values
    | st.dictionaries(
        st.sampled_from(["location", "longrepr", "sections", "user_properties", "$packed"]),
        json_values,
    ).map(lambda data: {"nodeid": "a", **data})
)
def test_unpacking_what_is_no_report_is_a_value_error(data: Any) -> None:
    try:
        report = unpack_report(data)
    except ValueError:
        return
    assert isinstance(report["nodeid"], str)


# -- batches -----------------------------------------------------------------------------------


@property_based
@given(st.lists(st.lists(json_values, max_size=3).map(lambda rest: ["name", *rest]), max_size=4))
def test_batches_of_events_survive(events: list[list[Any]]) -> None:
    assert json.loads(encode_batch(events)) == events


@property_based
@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_decoding_junk_gives_events_or_a_value_error(payload: bytes) -> None:
    try:
        events = decode_events(payload)
    except ValueError:
        return
    assert all(type(event) in names_of_events() for event in events)


@pytest.mark.parametrize("empty", [(), set(), frozenset()], ids=["tuple", "set", "frozenset"])
def test_empty_values_are_not_taken_for_deep_ones(empty: object) -> None:
    """Each was taken to hold all that was being read, and a hundred of them ended the worker."""
    value = [[empty] for _ in range(300)]
    assert unpack_object(pack_object(value)) == value
    many = [empty] * 300
    assert unpack_object(pack_object(many)) == many


def test_a_batch_that_is_nested_too_deeply_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        decode_events(b"[" * 200_000)
