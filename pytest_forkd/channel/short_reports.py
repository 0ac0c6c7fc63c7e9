"""A short form of the reports that most tests have: passed, nothing captured, nothing added.

A test has three reports, and pytest's serialization of each repeats the node id, the location and
the keywords. The controller knows the first two from ``start``; the keywords come with a test's
first short report. So that plugins miss nothing, the short form is used only if no plugin takes
part in serializing reports, and only for a report that can be rebuilt from it exactly. Every other
report is sent whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["PHASES", "PassedItem", "PassedReports", "PytestAlone", "as_passed"]

#: The phases of a test that have a report of this form.
PHASES = ("setup", "call", "teardown")
#: The fields in ``vars()`` of a report to which nothing was added. Since pytest 9.2 the node id is
#: made from a structured one. If a later pytest adds a field, its reports are sent whole.
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
    """True as long as all implementations of a hook are pytest's own; plugins may come and go.

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
    """The short form of a report.

    :param nodeid: the item's node id, as the controller knows it.
    :param location: the item's location, as the controller knows it.
    :returns: phase, duration, start, stop and the names of the keywords; ``None`` if the report
        cannot be rebuilt from these.
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
    """Makes reports from their short form: the same that pytest would make from the whole form.

    :param hook: ``config.hook.pytest_report_from_serializable``, to see whether plugins implement
        it.
    :param deserialize: calls that hook with the data of a report.
    """

    def __init__(self, hook: Any, deserialize: Callable[[dict[str, Any]], Any]) -> None:
        self._deserialize = deserialize
        self._pytest_alone = PytestAlone(hook)
        self._template: dict[str, Any] | None = None

    def of_item(
        self, nodeid: str, location: object, keywords: list[str], added: dict[str, Any]
    ) -> PassedItem:
        """An object that makes the reports of one test.

        :param keywords: the names of the keywords.
        :param added: fields that all of a worker's reports have in addition to pytest's own.
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
    """Makes the reports of one test; they share no mutable objects.

    :param fields: the fields that are the same in all of them.
    :param make: makes a report from its fields.
    """

    __slots__ = ("_fields", "_make")

    def __init__(self, fields: dict[str, Any], make: Callable[[dict[str, Any]], Any]) -> None:
        self._fields = fields
        self._make = make

    def report(self, when: str, duration: float, start: float, stop: float) -> Any:
        """The report of one phase; may be ``None`` if a plugin's hook makes it."""
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
    """Such a report, as pytest serializes it."""
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
    # With setattr(), Python 3.11 and later creates no dictionary. All reports of a session are
    # kept, so this halves the objects that the garbage collector has to visit.
    for name, value in fields.items():
        setattr(report, name, value)
    return report
