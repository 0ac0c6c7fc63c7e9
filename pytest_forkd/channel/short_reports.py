"""A short form of the reports that most tests have: passed, nothing captured, nothing added.

A test has three reports, and pytest's serialization of each repeats the node id, the location and
the keywords. The controller knows the first two from ``start``; the keywords come with a test's
first short report. So that plugins miss nothing, the short form is used only where pytest alone
serializes reports, and only for a report that has exactly the fields and values that can be told
from it; every other report travels whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["PHASES", "PassedItem", "PassedReports", "PytestAlone", "as_passed"]

#: The phases of a test that have a report of this form.
PHASES = ("setup", "call", "teardown")
#: What ``vars()`` of a report holds that nobody has added to; the node id is made from a structured
#: one since pytest 9.2. A field that a later pytest adds is in neither: its reports travel whole.
_FIELDS = frozenset(
    {
        "duration",
        "keywords",
        "location",
        "longrepr",
        "outcome",
        "sections",
        "start",
        "stop",
        "user_properties",
        "when",
    }
)
_ALL_FIELDS = (_FIELDS | {"_id"}, _FIELDS | {"nodeid"})
_ONE = 1


class PytestAlone:
    """Tells whether all implementations of a hook are pytest's own, as plugins come and go.

    :param hook: ``config.hook.name``.
    """

    def __init__(self, hook: Any) -> None:
        self._hook = hook
        self._seen: list[Any] = []
        self._answer = True

    def __bool__(self) -> bool:
        implementations = self._hook.get_hookimpls()
        if implementations != self._seen:
            self._seen = implementations
            self._answer = all(
                str(getattr(implementation.plugin, "__name__", "")).startswith("_pytest.")
                for implementation in implementations
            )
        return self._answer


def as_passed(report: pytest.TestReport, nodeid: str, location: object) -> list[Any] | None:
    """What is to be told of a report in the short form.

    :param nodeid: the item's, as the controller knows it.
    :param location: the item's, likewise.
    :returns: phase, duration, start, stop and the names of the keywords; ``None`` if the report is
        not one that the short form can tell.
    """
    fields = vars(report)
    if (
        type(report) is not pytest.TestReport
        or fields.keys() not in _ALL_FIELDS
        or report.outcome != "passed"
        or report.longrepr is not None
        or report.when not in PHASES
        or report.sections != []
        or report.user_properties != []
        or report.location != location
        or report.nodeid != nodeid
    ):
        return None
    keywords = report.keywords
    for name, value in keywords.items():
        if type(name) is not str or value is not _ONE:
            return None
    times = [report.duration, report.start, report.stop]
    if not all(type(seconds) is float for seconds in times):
        return None
    return [report.when, *times, list(keywords)]


class PassedReports:
    """Makes reports from their short form: the ones that pytest would make from the whole form.

    :param hook: ``config.hook.pytest_report_from_serializable``, to see who implements it.
    :param deserialize: calls it with the data of a report.
    """

    def __init__(self, hook: Any, deserialize: Callable[[dict[str, Any]], Any]) -> None:
        self._deserialize = deserialize
        self._pytest_alone = PytestAlone(hook)
        self._template: dict[str, Any] | None = None

    def of_item(
        self, nodeid: str, location: object, keywords: list[str], added: dict[str, Any]
    ) -> PassedItem:
        """What makes the reports of one test.

        :param keywords: the names.
        :param added: fields that all of a worker's reports have beside pytest's own.
        """
        if not self._pytest_alone:
            data = {**_serialized(nodeid, location, keywords), **added}
            return PassedItem(data, self._deserialize)
        if self._template is None:
            data = {**_serialized("", ("", None, ""), []), **added}
            self._template = vars(self._deserialize(data))
        report = _report_with(self._template)
        report.nodeid = nodeid
        report.__dict__.update(location=location, keywords=dict.fromkeys(keywords, 1), **added)
        return PassedItem(vars(report), _report_with)


class PassedItem:
    """Makes the reports of one test, which share nothing that can be changed.

    :param fields: those that are the same in all of them.
    :param make: makes a report from its fields.
    """

    __slots__ = ("_fields", "_make")

    def __init__(self, fields: dict[str, Any], make: Callable[[dict[str, Any]], Any]) -> None:
        self._fields = fields
        self._make = make

    def report(self, when: str, duration: float, start: float, stop: float) -> Any:
        """The report of one phase; what the hooks that make it return, so maybe ``None``."""
        fields = self._fields
        return self._make(
            {
                **fields,
                "keywords": fields["keywords"].copy(),
                "when": when,
                "user_properties": [],
                "sections": [],
                "duration": duration,
                "start": start,
                "stop": stop,
            }
        )


def _serialized(nodeid: str, location: object, keywords: list[str]) -> dict[str, Any]:
    """What pytest's serialization makes of such a report."""
    return {
        "nodeid": nodeid,
        "location": location,
        "keywords": dict.fromkeys(keywords, 1),
        "outcome": "passed",
        "longrepr": None,
        "when": "call",
        "user_properties": [],
        "sections": [],
        "duration": 0.0,
        "start": 0.0,
        "stop": 0.0,
        "$report_type": "TestReport",
    }


def _report_with(fields: dict[str, Any]) -> pytest.TestReport:
    report = pytest.TestReport.__new__(pytest.TestReport)
    # One by one, since Python (3.11 and later) then makes no dictionary: the reports of a session
    # are all kept, and are half as much for the garbage collector to look through.
    for name, value in fields.items():
        setattr(report, name, value)
    return report
