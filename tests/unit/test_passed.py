"""Reports that travel in their short form come back as those that travel whole do."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from typing import Any

import _pytest.reports
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.channel.events import encode_batch, unpack_report
from pytest_forkd.channel.packing import pack_report
from pytest_forkd.channel.short_reports import PHASES, PassedReports, PytestAlone, as_passed
from tests.unit import property_based

texts = st.text(max_size=10)
nodeids = st.builds("{}::{}".format, texts, texts) | texts
locations = st.tuples(texts, st.none() | st.integers(0, 10**6), texts)
seconds = st.floats(allow_nan=False)
ADDED = {"item_index": 7, "worker_id": "gw3", "testrun_uid": "uid"}


class Hook:
    """Stands for a hook's caller; lists who implements the hook."""

    def __init__(self, *plugins: object) -> None:
        self.plugins = [types.SimpleNamespace(plugin=plugin) for plugin in plugins]

    def get_hookimpls(self) -> list[types.SimpleNamespace]:
        return list(self.plugins)


def deserialize(data: dict[str, Any]) -> Any:
    return _pytest.reports.pytest_report_from_serializable(data)


def whole(report: pytest.TestReport) -> Any:
    """The report as it arrives in its whole form."""
    data: Any = _pytest.reports.pytest_report_to_serializable(report)
    [[_, data]] = json.loads(encode_batch([["report", pack_report({**data, **ADDED}, [])]]))
    return deserialize(unpack_report(data))


def passed_report(**fields: Any) -> pytest.TestReport:
    known: dict[str, Any] = {
        "nodeid": "a.py::test",
        "location": ("a.py", 3, "test"),
        "keywords": {"test": 1, "a.py": 1},
        "outcome": "passed",
        "longrepr": None,
        "when": "call",
        "duration": 0.5,
        "start": 1.0,
        "stop": 1.5,
    }
    return pytest.TestReport(**{**known, **fields})


@property_based
@given(
    nodeid=nodeids,
    location=locations,
    keywords=st.lists(texts, max_size=4, unique=True),
    times=st.lists(st.tuples(st.sampled_from(PHASES), seconds, seconds, seconds), max_size=4),
)
def test_short_reports_come_back_as_whole_ones_do(
    nodeid: str, location: Any, keywords: list[str], times: list[tuple[str, float, float, float]]
) -> None:
    reports = PassedReports(Hook(_pytest.reports), deserialize)
    item = reports.of_item(nodeid, location, keywords, ADDED)
    made = []
    for when, duration, start, stop in times:
        report = passed_report(
            nodeid=nodeid,
            location=location,
            keywords=dict.fromkeys(keywords, 1),
            when=when,
            duration=duration,
            start=start,
            stop=stop,
        )
        told = as_passed(report, nodeid, location)
        assert told is not None
        [[_, *fields]] = json.loads(encode_batch([["passed", *told]]))
        assert fields.pop() == keywords
        made.append(item.report(*fields))
        expected = whole(report)
        assert type(made[-1]) is type(expected)
        assert list(vars(made[-1]).items()) == list(vars(expected).items())
        assert made[-1].nodeid == nodeid
        assert list(made[-1].keywords.items()) == list(expected.keywords.items())
    for name in ("keywords", "sections", "user_properties", "__dict__"):
        assert len({id(getattr(report, name)) for report in made}) == len(made)


class Subclass(pytest.TestReport):
    pass


class Text(str):
    pass


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report.__dict__.update(outcome="failed"),
        lambda report: report.__dict__.update(outcome="rerun"),
        lambda report: report.__dict__.update(longrepr="text"),
        lambda report: report.__dict__.update(longrepr=""),
        lambda report: report.__dict__.update(when="somewhen"),
        lambda report: report.__dict__.update(sections=[("Captured stdout call", "text")]),
        lambda report: report.__dict__.update(sections=()),
        lambda report: report.__dict__.update(user_properties=[("name", 1)]),
        lambda report: report.__dict__.update(location=("b.py", 3, "test")),
        lambda report: setattr(report, "nodeid", "b.py::test"),
        lambda report: report.__dict__.update(keywords={"test": 1, "a.py": 2}),
        lambda report: report.__dict__.update(keywords={"test": True}),
        lambda report: report.__dict__.update(keywords={1: 1}),
        lambda report: report.__dict__.update(keywords={Text("test"): 1}),
        lambda report: report.__dict__.update(duration=1),
        lambda report: report.__dict__.update(start=None),
        lambda report: report.__dict__.update(wasxfail="reason"),
        lambda report: report.__dict__.update(extras=[]),
        lambda report: report.__dict__.pop("stop"),
        lambda report: setattr(report, "__class__", Subclass),
    ],
)
def test_a_report_that_says_more_travels_whole(
    change: Callable[[pytest.TestReport], object],
) -> None:
    report = passed_report()
    assert as_passed(report, "a.py::test", ("a.py", 3, "test")) is not None
    change(report)
    assert as_passed(report, "a.py::test", ("a.py", 3, "test")) is None


def test_who_implements_a_hook_is_seen_as_plugins_come_and_go() -> None:
    import _pytest.runner

    mine = types.ModuleType("conftest")
    hook = Hook(_pytest.reports, _pytest.runner)
    alone = PytestAlone(hook)
    assert alone
    hook.plugins.append(types.SimpleNamespace(plugin=mine))
    assert not alone
    assert not alone
    hook.plugins.pop()
    assert alone
    hook.plugins.append(types.SimpleNamespace(plugin=object()))
    assert not alone


def test_a_plugin_that_reads_reports_is_given_whole_ones() -> None:
    given_data = []

    def plugins(data: dict[str, Any]) -> Any:
        given_data.append(dict(data))
        return deserialize(data)

    item = PassedReports(Hook(_pytest.reports, object()), plugins).of_item(
        "a.py::test", ("a.py", 3, "test"), ["test", "a.py"], ADDED
    )
    report = item.report("call", 0.5, 1.0, 1.5)
    data: Any = _pytest.reports.pytest_report_to_serializable(passed_report())
    assert given_data == [{**data, **ADDED}]
    assert vars(report) == vars(whole(passed_report()))
