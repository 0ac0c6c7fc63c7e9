"""What suites under test are made of: a recorder for what happened where, and one of everything."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

__all__ = ["SUITE_FILES", "make_recorder", "make_suite", "read_records"]

#: A module for a suite under test; each call adds a line, in one write, to a shared file.
_RECORDER = """
import json, os, posix

def record(what, **fields):
    line = json.dumps({"what": what, "pid": posix.getpid(), **fields}) + "\\n"
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "records")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)
"""


def make_recorder(pytester: pytest.Pytester) -> None:
    """Put the module ``recorder`` beside the suite: ``from recorder import record``."""
    pytester.makepyfile(recorder=_RECORDER)


def read_records(directory: Path, what: str | None = None) -> list[dict[str, Any]]:
    """What a suite has recorded, from all its processes, in order.

    :param directory: where the suite is.
    :param what: only records of this name.
    """
    try:
        lines = (directory / "records").read_text().splitlines()
    except FileNotFoundError:
        return []
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [entry for entry in records if what in (None, entry["what"])]


# -- a suite with one of everything ------------------------------------------------------------

#: Records every report that the user's process sees.
_CONFTEST = """
import pytest
from recorder import record

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reports(config.rootpath.name))

class Reports:
    def __init__(self, directory):
        self.directory = directory

    def pytest_runtest_logreport(self, report):
        record(
            "report",
            type=type(report).__name__,
            nodeid=report.nodeid,
            location=report.location,
            keywords=sorted(set(report.keywords) - {self.directory}),
            when=report.when,
            outcome=report.outcome,
            wasxfail=getattr(report, "wasxfail", None),
            longrepr=str(report.longrepr),
            sections=report.sections,
            properties=repr(report.user_properties),
            duration=report.duration,
            start=report.start,
            stop=report.stop,
        )

    def pytest_warning_recorded(self, warning_message, when, nodeid, location):
        if when == "runtest":
            record(
                "warning",
                category=warning_message.category.__name__,
                text=str(warning_message.message),
                line=warning_message.lineno,
                nodeid=nodeid,
            )

@pytest.fixture(scope="session")
def session_value():
    yield "session"

@pytest.fixture
def broken_setup():
    raise RuntimeError("setup is broken")

@pytest.fixture
def broken_teardown():
    yield
    raise RuntimeError("teardown is broken")

@pytest.fixture
def skipping():
    pytest.skip("skipped by a fixture")
"""

_OUTCOMES = """
import sys, time
import pytest

def test_pass():
    pass

def test_fail():
    assert {"a": 1} == {"a": 2}, "with a message"

def test_fail_without_traceback():
    pytest.fail("just so", pytrace=False)

def test_chained():
    try:
        raise KeyError("first")
    except KeyError as exc:
        raise ValueError("second") from exc

def test_exits():
    sys.exit(3)

def test_error(broken_setup):
    pass

def test_teardown_error(broken_teardown):
    pass

def test_fails_twice(broken_teardown):
    assert 0

@pytest.mark.skip(reason="always")
def test_skip():
    pass

@pytest.mark.skipif("sys.version_info > (3,)", reason="python 3")
def test_skipif():
    pass

def test_skip_inside():
    pytest.skip("on second thought")

def test_skip_in_fixture(skipping):
    pass

@pytest.mark.xfail(reason="known bug", raises=ZeroDivisionError)
def test_xfail():
    1 / 0

@pytest.mark.xfail(reason="another bug", raises=KeyError)
def test_xfail_of_another_kind():
    1 / 0

@pytest.mark.xfail(run=False, reason="would crash")
def test_xfail_not_run():
    raise SystemError

def test_xfail_inside():
    pytest.xfail("seen while running")

@pytest.mark.xfail(reason="may pass")
def test_xpass():
    pass

@pytest.mark.xfail(reason="must not pass", strict=True)
def test_xpass_strict():
    pass

@pytest.mark.xfail(reason="setup is known to be broken")
def test_xfail_in_setup(broken_setup):
    pass

def test_takes_time():
    time.sleep(0.05)
"""

_PARAMETERS = """
import enum
import pytest

class Colour(enum.Enum):
    RED = 1

@pytest.mark.parametrize("value", [1, "text", "sp ace", "a::b", "[x]", "\\u00e9", Colour.RED, None])
@pytest.mark.parametrize("other", [True, 1.5], ids=["yes", "half"])
def test_ids(value, other):
    assert other is True

@pytest.fixture(params=["one", pytest.param("two", marks=pytest.mark.xfail(strict=True))])
def parametrized(request):
    return request.param

def test_fixture(parametrized):
    assert parametrized == "one"

@pytest.mark.parametrize("indirect", [1, 2], indirect=True)
def test_indirect(indirect):
    assert indirect == 2

@pytest.fixture
def indirect(request):
    return request.param

@pytest.mark.parametrize("nothing", [])
def test_empty(nothing):
    pass

def pytest_generate_tests(metafunc):
    if "generated" in metafunc.fixturenames:
        metafunc.parametrize("generated", range(3))

def test_generated(generated):
    assert generated != 1
"""

_FIXTURES = """
import pytest

state = []

@pytest.fixture(scope="module")
def module_value(session_value):
    state.append("module")
    yield session_value + " module"
    state.remove("module")

@pytest.fixture(scope="class")
def class_value(request, module_value):
    request.cls.from_fixture = "class"
    yield module_value + " class"

@pytest.fixture(scope="class")
def broken_class():
    raise LookupError("no such class")

def test_module(module_value):
    assert (module_value, state) == ("session module", ["module"])

class TestClass:
    def test_one(self, class_value):
        assert class_value == "session module class"
    def test_two(self, class_value):
        assert self.from_fixture == "no"
    def setup_method(self, method):
        self.method = method.__name__
    def test_setup_method(self):
        assert self.method == "test_setup_method"

@pytest.mark.usefixtures("broken_class")
class TestBroken:
    def test_one(self): pass
    def test_two(self): pass

def test_teardown_order(request):
    request.addfinalizer(lambda: state.append("not reached"))
    request.addfinalizer(lambda: 1 / 0)
"""

_UNITTEST = """
import logging, unittest

class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.ready = True
    def setUp(self):
        assert self.ready
        self.addCleanup(self.clean)
    def clean(self):
        if "unclean" in self._testMethodName:
            raise OSError("unclean")
    def test_pass(self):
        self.assertTrue(self.ready)
    def test_fail(self):
        self.assertEqual([1], [2], "lists")
    def test_unclean(self):
        pass
    def test_skip(self):
        self.skipTest("not this one")
    @unittest.skip("decorated")
    def test_skip_decorated(self):
        pass
    @unittest.expectedFailure
    def test_expected(self):
        self.fail("as expected")
    @unittest.expectedFailure
    def test_unexpected(self):
        pass
    def test_subtests(self):
        for i in range(4):
            with self.subTest("part", i=i):
                self.assertNotEqual(i, 2)

class Broken(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise OSError("no class")
    def test_one(self): pass
    def test_two(self): pass

@unittest.skip("whole class")
class Skipped(unittest.TestCase):
    def test_it(self): pass

# On a slow machine it warns of callbacks that take longer than 0.1 seconds.
logging.getLogger("asyncio").setLevel(logging.ERROR)

class Asynchronous(unittest.IsolatedAsyncioTestCase):
    async def test_pass(self): pass
    async def test_fail(self): self.fail("asynchronously")
"""

_SUBTESTS = """
import pytest

def test_mixed(subtests):
    for i in range(6):
        with subtests.test("number", i=i):
            print("number", i)
            if i == 1:
                assert i == 2
            if i == 2:
                pytest.skip("no two")
            if i == 3:
                pytest.xfail("three")

def test_all_pass(subtests):
    for i in range(3):
        with subtests.test(i=i):
            pass

def test_fails_itself(subtests):
    with subtests.test(msg="fine"):
        pass
    assert 0
"""

_OUTPUT = """
import logging, os, sys, warnings
import pytest

@pytest.fixture
def talking():
    print("setup speaks")
    yield
    print("teardown speaks")
    logging.getLogger().error("teardown logs")

@pytest.mark.parametrize("fail", [False, True])
def test_output(talking, fail, record_property):
    record_property("fail", fail)
    record_property("pair", (1, "two"))
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.write(1, b"to descriptor 1\\n")
    logging.getLogger("suite").warning("logged")
    warnings.warn(DeprecationWarning("deprecated"))
    warnings.warn("twice")
    warnings.warn("twice")
    assert not fail

def test_capsys(capsys):
    print("mine")
    assert capsys.readouterr().out == "mine\\n"
"""

_DOCTESTS = '''
def right():
    """
    >>> 1 + 1
    2
    """

def wrong():
    """
    >>> print("one")
    two
    """

def skipped():
    """
    >>> 1 / 0  # doctest: +SKIP
    """
'''

#: Names and contents of the suite's files, beside the recorder.
SUITE_FILES = {
    "conftest.py": _CONFTEST,
    "test_outcomes.py": _OUTCOMES,
    "test_parameters.py": _PARAMETERS,
    "test_fixtures.py": _FIXTURES,
    "test_cases.py": _UNITTEST,
    "test_output.py": _OUTPUT,
    "documented.py": _DOCTESTS,
    "package/__init__.py": "",
    "package/test_inside.py": _PARAMETERS,
    "test_text.txt": ">>> print(1)\n1\n",
}
if pytest.version_tuple >= (9, 0):
    SUITE_FILES["test_subtests.py"] = _SUBTESTS


def make_suite(pytester: pytest.Pytester) -> None:
    """Write a suite with one of everything; run it with ``--doctest-modules``."""
    make_recorder(pytester)
    for name, source in SUITE_FILES.items():
        path = pytester.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source).lstrip("\n"), encoding="utf-8")
