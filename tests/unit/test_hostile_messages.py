"""Mutated messages of a worker end that worker, and change nothing for the others.

``PYTEST_FORKD_MESSAGES=100000 pytest tests/unit/test_hostile_messages.py`` tries that many.
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_forkd.channel.bounds import MAX_DEPTH, MAX_VALUES, check_json
from pytest_forkd.channel.events import pack_object
from pytest_forkd.channel.messages import names_of_events
from pytest_forkd.channel.packing import pack_report
from pytest_forkd.controller import worker_events
from tests.unit.test_frames import json_values
from tests.unit.test_passed import passed_report

MESSAGES = int(os.environ.get("PYTEST_FORKD_MESSAGES", "1500"))
IDS = ["a.py::test_0", "a.py::test_1", "a.py::test_2"]
LOCATION = ["a.py", 3, "test_0"]


class Node:
    """As much of a node as the inbox uses: given tests 0 and 1, and running the first one."""

    def __new__(cls) -> Any:
        import collections

        from pytest_forkd.controller.nodes import ForkdWorkerController

        node: Any = ForkdWorkerController.__new__(ForkdWorkerController)
        node.__dict__.update(
            ids=IDS, begun={0}, given={1: None}, chatter=0, heard=0, running=0, latest=0, held=[],
            location=tuple(LOCATION), last_report=None, passed=None, end=None, _down=False,
            workerinput={"workerid": "gw0", "testrunuid": "uid"}, exhausted=None, collected=[],
            internal_errors=0, asked_back=collections.deque(), ready_at=1.0, ready=None,
            interruption=None, given_up=False,
        )  # fmt: skip
        node.broke_protocol = lambda reason: node.__dict__.update(end=reason, given_up=True)
        node.finished = lambda output: node.__dict__.update(_down=True)
        return node


class Session:
    """Notes what it is told."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.sched = None
        self.told: list[tuple[str, Any]] = []
        self.durations = self
        self.memory = self

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append((name, arguments))


def report(**fields: Any) -> dict[str, Any]:
    made: Any = passed_report(nodeid=IDS[0], **fields)._to_json()
    made["$report_type"] = "TestReport"
    made["location"] = list(made["location"])
    added = {"item_index": 0, "worker_id": "gw0", "testrun_uid": "uid"}
    return pack_report({**made, **added}, [])


def samples() -> list[list[Any]]:
    crash = {"path": "a.py", "lineno": 1, "message": "x"}
    entry = {
        "type": "ReprEntry",
        "data": {
            "lines": ["x"],
            "reprfuncargs": {"args": [["a", "1"]]},
            "reprlocals": {"lines": ["a = 1"]},
            "reprfileloc": crash,
            "style": "long",
        },
    }
    trace = {"reprentries": [entry], "extraline": None, "style": "long"}
    failed = {
        "reprcrash": crash,
        "reprtraceback": trace,
        "sections": [["a", "b", "-"]],
        "chain": [[trace, crash, None]],
    }
    return [
        ["start", 1, LOCATION],
        ["logstart", IDS[0], LOCATION],
        ["logfinish"],
        ["logfinish", IDS[0], LOCATION],
        ["passed", "call", 0.1, 1.0, 1.1, ["test_0"]],
        ["report", report(sections=[("Captured stdout call", "x")])],
        ["report", {**report(outcome="failed"), "longrepr": failed}],
        ["report", report(outcome="skipped", longrepr=("a.py", 3, "no"))],
        ["complete", 0, 0.1, [0.1, 0.1, 0.1]],
        ["want", 0],
        ["fixture", "a.py::f", 0.1],
        ["deselected", [[IDS[0], ["slow", "a.py"]], [IDS[1], None]]],
        ["collectreport", report()],
        ["warning", pack_object({"message_str": "x"}), "runtest", IDS[0], LOCATION],
        ["ready", {"version": "3"}],
        ["collection", IDS, None],
        ["unscheduled", [1]],
        ["exhausted", "disk"],
        ["interrupted", "exit", "x", 1],
        ["internal_error", "x"],
        ["unconfigured", False, "x"],
        ["finished", pack_object({"exitstatus": 0, "shouldfail": False, "shouldstop": False})],
    ]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    for key, part in inner if isinstance(value, (dict, list)) else ():
        found += places(part, (*path, key)) if isinstance(part, (dict, list)) else [(*path, key)]
    return found


junk = (
    json_values
    | st.sampled_from([None, True, -1, 2**31, 2**70, 1e300, "", "\udcff", "\x1b[31m", [], {}, IDS])
    | st.sampled_from([*IDS, 0, 1, 2, "passed", "failed", "skipped", "rerun", "toterminal"])
)


@st.composite
def messages(draw: Any) -> bytes:
    events = draw(st.lists(st.sampled_from(samples()), min_size=1, max_size=3))
    events = json.loads(json.dumps(events))
    for _ in range(draw(st.integers(0, 2))):
        if not events:
            break
        *path, last = draw(st.sampled_from(places(events)))
        at: Any = events
        try:
            for key in path:
                at = at[key]
            if draw(st.booleans()):
                at[last] = copy.deepcopy(draw(junk))
            elif draw(st.booleans()):
                del at[last]
            else:
                at[draw(st.text(max_size=9)) if isinstance(at, dict) else last] = copy.deepcopy(
                    draw(junk)
                )
        except (KeyError, IndexError, TypeError):
            pass  # what was there has been changed before
    return json.dumps(events).encode()


@settings(
    max_examples=MESSAGES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(message=messages())
def test_whatever_a_worker_sends_is_about_its_own_test_or_ends_it(
    message: bytes, request: pytest.FixtureRequest
) -> None:
    session: Any = Session(request.config)
    node, events = Node(), worker_events.WorkerEvents(session)
    events.collection.ids = IDS
    hook = request.config.hook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_events, "show_internal_error", lambda config, text: None)
        events.receive(node, message)
    if node.end is not None:
        assert isinstance(node.end, str)
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    for name, arguments in session.told:
        if name == "worker_testreport":
            found = arguments[1]
            assert found.nodeid in (IDS[0], IDS[1] if 1 in node.begun else IDS[0])
            # What pytest's own plugins do with it.
            hook.pytest_report_teststatus(report=found, config=request.config)
            assert isinstance(found.longreprtext, str)
            assert isinstance(found.head_line, str)
            assert all(isinstance(part, str) for pair in found.sections for part in pair)
            assert f"{found.duration:.2f}s {found.when:<8}"
            assert terminal is None or terminal._locationline(found.nodeid, *found.location)
        elif name in ("worker_logstart", "worker_logfinish"):
            assert arguments[1] in IDS[:2]
            assert terminal is None or terminal._locationline(arguments[1], *arguments[2])
        elif name == "worker_unscheduled":
            raise AssertionError("nothing was to be given back")
        elif name == "worker_runtest_protocol_complete":
            assert arguments[1] in node.begun
        elif name == "add_deselected":
            assert all(isinstance(item.nodeid, str) and item.keywords for item in arguments[0])


def test_every_event_has_a_handler(request: pytest.FixtureRequest) -> None:
    session: Any = Session(request.config)
    assert worker_events.WorkerEvents(session)._handlers.keys() == names_of_events().keys()


def test_every_event_has_a_sample() -> None:
    assert {sample[0] for sample in samples()} | {"ids"} == set(names_of_events().values())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"[" + b"[]," * (MAX_VALUES + 1) + b"[]]", "values"),
        (b"[" + b'"",' * (MAX_VALUES + 1) + b'""]', "values"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "levels"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "levels"),
    ],
    ids=["lists", "texts", "deep lists", "deep objects"],
)
def test_what_would_cost_too_much_is_refused_before_it_is_decoded(
    text: bytes, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_json(text)


def test_brackets_in_texts_do_not_count() -> None:
    check_json(json.dumps(["[" * 1000 + '"\\{,' * 1000]).encode())
