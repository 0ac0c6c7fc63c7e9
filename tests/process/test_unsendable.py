"""Whatever a suite reports, its outcomes are those of a plain run, and the run goes on."""

from __future__ import annotations

import os
import sys

import pytest

from tests.conftest import Runner
from tests.observing import matching

#: A text that no encoding takes: Python gives it for a file name that is no UTF-8.
SURROGATE = r"f\udcf6"


def outcome(result: pytest.RunResult) -> tuple[int, dict[str, int]]:
    """Exit code and counts of a run, which must not have shown any error of ours."""
    shown = result.stdout.str() + result.stderr.str()
    assert "INTERNALERROR" not in shown
    assert "Traceback" not in shown
    return int(result.ret), result.parseoutcomes()


LEVELS = pytest.mark.parametrize("warm", ["collection", "imports"])


@LEVELS
def test_lone_surrogates_are_sent_as_they_are(
    pytester: pytest.Pytester, run: Runner, warm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In warnings, in what is captured, in failures, ids, properties, and in what workers leave."""
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # the terminal takes no surrogates
    pytester.makeconftest(
        f"""
        import pytest
        def pytest_report_teststatus(report):
            if report.when == "call":
                assert dict(report.user_properties).get("name") in (None, "{SURROGATE}")
        @pytest.fixture(scope="session", autouse=True)
        def output(request):
            if hasattr(request.config, "workeroutput"):
                request.config.workeroutput["text"] = "{SURROGATE}"
        @pytest.hookimpl(optionalhook=True)
        def pytest_testnodedown(node, error):
            assert node.workeroutput.get("text", "{SURROGATE}") == "{SURROGATE}"
            print("left", error)
        """
    )
    pytester.makepyfile(
        rf"""
        import pytest, sys, warnings
        def test_warns(): warnings.warn("{SURROGATE} warned")
        def test_property(record_property): record_property("name", "{SURROGATE}")
        @pytest.mark.parametrize("name", ["{SURROGATE}"], ids=["{SURROGATE}"])
        def test_id(name): pass
        def test_fails():
            print("{SURROGATE} printed")
            assert 0, "{SURROGATE} failed"
        """
    )
    args = ("-vv", "-rA", "-p", "no:cacheprovider")
    plain = run(*args, runner="plain")
    result = run(*args, f"--forkd-warm={warm}")
    assert outcome(result) == outcome(plain) == (1, {"passed": 3, "failed": 1, "warnings": 1})
    assert matching(result.outlines, "left None")
    for text in ("warned", "printed", "AssertionError", "test_id"):
        assert set(matching(plain.outlines, text)) & set(matching(result.outlines, text)), text


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 elsewhere")
def test_bytes_that_are_no_text_in_arguments_environment_and_paths(
    pytester: pytest.Pytester, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python does not take everything for UTF-8, and for file names that are none."""
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    monkeypatch.setitem(os.environb, b"ODD", b"\xf6")
    directory = os.fsdecode(os.fsencode(pytester.path) + b"/d\xf6")
    os.mkdir(directory)
    with open(os.path.join(directory, "conftest.py"), "w") as file:
        # The hook is a finding, which is remembered with the file's path.
        file.write(
            "def pytest_addoption(parser): parser.addoption('--odd')\n"
            "def pytest_unconfigure(): pass\n"
        )
    with open(os.path.join(directory, "test_it.py"), "w") as file:
        file.write(
            "import os\n"
            "def test_it(pytestconfig):\n"
            "    assert os.fsencode(pytestconfig.getoption('--odd')) == b'\\xf6'\n"
            "    assert os.environb[b'ODD'] == b'\\xf6'\n"
        )
    os.chdir(directory)
    for _run in range(2):
        result = run("--odd=\udcf6", "-q")
        assert outcome(result) == (0, {"passed": 1})


CONFTEST = """
    import collections, enum, pathlib, pytest
    class Mute:
        def __str__(self): raise RuntimeError("no text")
    class Color(enum.IntEnum):
        RED = 1
    WHAT = {
        "exception": lambda report: setattr(report, "exc", ValueError("x")),
        "mute": lambda report: setattr(report, "mute", [Mute()]),
        "section": lambda report: report.sections.append(("path", pathlib.Path("/x"))),
        "keyword": lambda report: report.keywords.update(odd=object),
        "property": lambda report: report.user_properties.append(("path", pathlib.Path("/x"))),
        "location": lambda report: setattr(report, "location", (pathlib.Path("x"), "1", "y")),
        "loop": lambda report: setattr(report, "loop", LOOP),
        "fine": lambda report: report.user_properties.append(
            (Color.RED, collections.OrderedDict(a={1: (2, {3})}, b=-2**40))
        ),
    }
    LOOP = []
    LOOP.append(LOOP)
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(item, call):
        report = yield
        if call.when == "call":
            for name in WHAT:
                if name in item.name:
                    WHAT[name](report)
        return report
"""


@LEVELS
@pytest.mark.parametrize(
    ("what", "field", "kind"),
    [
        ("exception", "report.exc", "ValueError"),
        ("mute", "report.mute", "conftest.Mute"),
        ("section", "report.sections", "pathlib.PosixPath"),
        ("keyword", "report.keywords", "type"),
        ("property", "report.user_properties['path']", "pathlib.PosixPath"),
        ("location", "report.location", "pathlib.PosixPath"),
        ("loop", "report.loop", "list"),
        ("fine", None, None),
    ],
)
def test_what_is_no_builtin_is_sent_as_text_and_told_of(
    pytester: pytest.Pytester,
    run: Runner,
    warm: str,
    what: str,
    field: str | None,
    kind: str | None,
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(f"def test_{what}(): pass\ndef test_other(): pass")
    result = run(f"--forkd-warm={warm}")
    code, counts = outcome(result)
    assert (code, counts.pop("passed")) == (0, 2)
    if field is None:
        assert counts == {}
    else:
        assert counts == {"warnings": 1}
        assert f"test_what_is_no_builtin_is_sent_as_text_and_told_of.py::test_{what}" in [
            line.strip() for line in result.outlines
        ]
        [line] = matching(result.outlines, "PytestForkdWarning")
        assert field in line
        assert kind is not None
        assert kind in line


@pytest.mark.parametrize(
    ("filters", "counts"),
    [
        ("error", {"passed": 1, "warnings": 2}),
        ("ignore::pytest_forkd.PytestForkdWarning", {"passed": 1}),
    ],
)
def test_the_warning_ends_no_run(
    pytester: pytest.Pytester, run: Runner, filters: str, counts: dict[str, int]
) -> None:
    """Where warnings are errors; and who does not want it need not see it."""
    pytester.makeini(f"[pytest]\nfilterwarnings = {filters}")
    pytester.makeconftest(
        """
        import pathlib, pytest
        @pytest.fixture(scope="session", autouse=True)
        def output(request):
            request.config.workeroutput["path"] = {"deep": pathlib.Path("/x")}
        @pytest.hookimpl(optionalhook=True)
        def pytest_testnodedown(node, error):
            print("left", node.workeroutput["path"])
        """
    )
    pytester.makepyfile(
        """
        import pathlib
        def test_it(record_property): record_property("path", pathlib.Path("/x"))
        """
    )
    result = run("-s", workers=1)
    assert outcome(result) == (0, counts)
    assert matching(result.outlines, "left {'deep': '/x'}")
    if "warnings" in counts:
        assert matching(result.outlines, "config.workeroutput['path'] holds a value of type pathl")


def test_what_a_collection_reports_is_sent_somehow(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makeconftest(
        """
        import pytest
        @pytest.hookimpl(wrapper=True)
        def pytest_make_collect_report(collector):
            report = yield
            report.exc = ValueError("x")
            return report
        """
    )
    pytester.makepyfile(test_a="def test_it(): pass", test_b="1 / 0")
    result = run("--continue-on-collection-errors")
    code, counts = outcome(result)
    assert (code, counts) == (1, {"passed": 1, "errors": 1, "warnings": 1})
    assert matching(result.outlines, "ZeroDivisionError")
