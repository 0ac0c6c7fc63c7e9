"""Who asks whether there is a worker's name, and who asks which one it is."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_forkd.parent.watch.tripwires import EnvironTripwire, WorkerInput
from tests.unit import property_based

WHETHER = [
    "if READ: pass",
    "if not READ: pass",
    "if READ is None: pass",
    "if READ is not None: pass",
    "if other and READ: pass",
    "if other or READ: pass",
    "if READ or other: pass",
    "flag = READ is not None",
    "flag = not READ",
    "flag = 1 if READ else 2",
    "flag = READ and other",
    "if READ == 'master': pass",
    "flag = READ != 'master'",
    "READ",
    "flag = [x for x in (1, 2) if READ]",
    "flag = any(READ is None for _ in range(2))",
    "try:\n    flag = 1 if READ else 2\nfinally:\n    pass",
]

WHICH = [
    "name = READ",
    "if READ == 'gw0': pass",
    "if 'master' == READ: pass",
    "if READ == other: pass",
    "if READ in ('gw0', None): pass",
    "if READ is other: pass",
    "name = READ or other",
    "name = f'{READ}'",
    "name = str(READ)",
    "flag = bool(READ)",  # as far as can be seen: any function may be called bool
    "names.append(READ)",
    "if len(READ): pass",
    "if READ[2:]: pass",
    "if READ.startswith('gw0'): pass",
    "if READ > 'gw0': pass",
    "match = {READ: 1}",
    "name = [READ for _ in range(1)]",
]

#: The same in functions: local variables, and values that are returned.
WHETHER_IN_FUNCTIONS = [
    "def f():\n    name = READ\n    if name: return 1\nf()",
    "def f():\n    name = READ\n    return name is not None and bool(other)\nkeep = f()",
    "def f():\n    name = READ\n    if name is None: return\n    if name: return 1\nf()",
    "def f():\n    name = READ\nf()",
    "def f():\n    return READ\nif f(): pass",
    "def f():\n    return READ\nkeep = f() is None",
    "def f():\n    name = READ\n    return name\nif not f(): pass",
    "def f(a, b):\n    return READ\ndef g():\n    return f(1, b=other)\nif g(): pass",
    "class A:\n    def f(self):\n        return READ\nif A().f(): pass",
]

WHICH_IN_FUNCTIONS = [
    "def f():\n    return READ\nkeep = f()",
    "def f():\n    return READ\nkeep = str(f())",
    "def f():\n    name = READ\n    return locals()\nkeep = f()",
    "def f():\n    name = READ\n    return lambda: name\nkeep = f()",
    "def f():\n    name = READ\n    if name: return name\nkeep = f()",
    "def f():\n    name = READ\n    names.append(name)\nf()",
    "def f():\n    name = READ\n    twice = name, name\n    return 1\nf()",
    "def f(keep=names):\n    name = READ\n    if name: keep.append(name)\nf()",
    "def f():\n    yield READ\nkeep = list(f())",
    "def f():\n    return READ\nkeep = [*map(lambda _: f(), range(1))]",
    "def f(_):\n    return READ\nif max([1, 2], key=f) == 1: pass",
    "def f(_):\n    return READ\nif sorted('ab', key=f): pass",
]

READS = [
    'os.environ.get("PYTEST_XDIST_WORKER")',
    'os.environ.get("PYTEST_XDIST_WORKER", "master")',
    'os.environ["PYTEST_XDIST_WORKER"]',
    'os.getenv("PYTEST_XDIST_WORKER")',
    'os.getenv("PYTEST_XDIST_WORKER", default=None)',
    'workerinput["workerid"]',
    'workerinput.get("workerid", None)',
    "get_xdist_worker_id(request)",
]


def finds(source: str) -> bool:
    """Whether running a module's source counts as reading the worker's name."""
    workerinput = WorkerInput({"workerid": "gw0", "database": "db0"}, {"workerid", "database"})

    class Request:
        class config:
            pass

    Request.config.workerinput = workerinput  # type: ignore[attr-defined]
    head = "import os\nfrom xdist import get_xdist_worker_id\n"
    code = compile(head + source, "conftest.py", "exec")
    namespace: dict[str, Any] = {"workerinput": workerinput, "request": Request(), "names": []}
    environ = EnvironTripwire()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
        environ.arm()
        try:
            exec(code, {**namespace, "other": 0, "__name__": "conftest"})
        finally:
            environ.disarm()
    return bool(environ.trips or workerinput.trips)


def indented(source: str) -> str:
    """The body of a function that is called."""
    return f"def function():\n{textwrap.indent(source, '    ')}\nfunction()"


@pytest.mark.parametrize("source", WHETHER + WHETHER_IN_FUNCTIONS)
def test_a_test_for_being_a_worker_is_no_reading(source: str) -> None:
    for read in READS:
        assert not finds(source.replace("READ", read)), read
        assert not finds(indented(source.replace("READ", read))), read


@pytest.mark.parametrize("source", WHICH + WHICH_IN_FUNCTIONS)
def test_a_name_that_goes_anywhere_is_a_reading(source: str) -> None:
    for read in READS:
        assert finds(source.replace("READ", read)), read


@pytest.mark.parametrize(
    "source",
    [
        'if workerinput["database"]: pass',
        'if workerinput.pop("workerid"): pass',
        'if "{workerid}".format_map(workerinput): pass',
        "import operator\nif operator.itemgetter('workerid')(workerinput): pass",
        "import json\nif json.dumps(workerinput): pass",
        "if workerinput.items() == other: pass",
        'if os.path.expandvars("$PYTEST_XDIST_WORKER"): pass',
        'if {"PYTEST_XDIST_WORKER": "gw0"}.items() <= os.environ.items(): pass',
        'if max([1, 2], key=lambda _: os.environ["PYTEST_XDIST_WORKER"]): pass',
        'if next(map(os.environ.get, ["PYTEST_XDIST_WORKER"])): pass',
        'assert (name := os.environ.get("PYTEST_XDIST_WORKER"))',
    ],
)
def test_what_cannot_be_proven_to_be_a_test_is_a_reading(source: str) -> None:
    assert finds(source)


EXPRESSIONS = st.recursive(
    st.sampled_from([*READS, "other", "1", "None"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or", "==", "!=", "in (1,) or"]), inner)
        .map(" ".join)
        .map("({})".format),
        inner.map("(not {})".format),
        st.sampled_from(READS).map("({} is not None)".format),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
    ),
    max_leaves=5,
)


@property_based
@given(expression=EXPRESSIONS)
def test_an_expression_that_tells_workers_apart_is_a_reading(expression: str) -> None:
    """Evaluated as another worker: where the outcome differs, it has to be noticed."""
    outcomes = []
    for name in ("gw0", "gw1"):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("PYTEST_XDIST_WORKER", name)
            config = type("config", (), {"workerinput": {"workerid": name}})
            outcomes.append(evaluate(expression, config))
    if outcomes[0] != outcomes[1]:
        assert finds(f"keep = {expression}")
        assert finds(indented(f"keep = {expression}\nreturn names.append(keep)"))


def evaluate(expression: str, config: Any) -> Any:
    """What an expression of :data:`EXPRESSIONS` is in a worker."""
    import os

    from xdist import get_xdist_worker_id

    namespace = {
        "os": os,
        "get_xdist_worker_id": get_xdist_worker_id,
        "request": type("Request", (), {"config": config}),
        "workerinput": config.workerinput,
        "other": 0,
    }
    return eval(expression, namespace)
