"""Whoever asks the garbage collector anything is told what plain pytest's process would tell."""

from __future__ import annotations

import pytest
from _pytest import unraisableexception

from tests.conftest import Runner
from tests.process.test_hygiene import LEVELS, notes

#: Asks at the import of a test module, which a collector does, and in a test.
ASKS = """
    import gc, json, os, weakref
    from gc import collect, get_objects

    class Kept:
        pass

    def node():
        made = Kept()
        made.itself = made
        return made

    KEPT = Kept()
    NODE = node()
    DROPPED = weakref.ref(node())
    ENABLED = gc.isenabled()
    COUNT = gc.get_freeze_count()

    def seen(objects):
        return any(each is KEPT for each in objects)

    def test_it(request):
        global NODE
        facts = {
            "at import": [ENABLED, COUNT],
            "enabled": gc.isenabled(),
            "frozen": gc.get_freeze_count(),
        }
        ASK
        gc.enable()
        with open(request.config.rootpath / "notes", "a") as file:
            print(json.dumps([os.getpid(), NAME, facts]), file=file)
"""

QUESTIONS = {
    "get_objects": """
        facts["seen"] = seen(gc.get_objects())
    """,
    "an imported name": """
        facts["seen"] = seen(get_objects())
    """,
    "get_referrers": """
        facts["seen"] = [type(each).__name__ for each in gc.get_referrers(KEPT)]
        mine = (KEPT,)
        facts["mine"] = sorted(type(each).__name__ for each in gc.get_referrers(mine[0]))
    """,
    "collect": """
        reference, NODE = weakref.ref(NODE), None
        gc.collect()
        facts["collected"] = [reference() is None, DROPPED() is None]
    """,
    "an imported collect": """
        reference, NODE = weakref.ref(NODE), None
        collect(2)
        facts["collected"] = [reference() is None, DROPPED() is None]
    """,
    "freeze": """
        gc.freeze()
        facts["frozen now"] = seen(gc.get_objects())
        gc.unfreeze()
        facts["thawed"] = [seen(gc.get_objects()), gc.get_freeze_count()]
    """,
    "unfreeze": """
        gc.unfreeze()
        facts["thawed"] = [seen(gc.get_objects()), gc.get_freeze_count()]
    """,
    "disable": """
        gc.disable()
        facts["disabled"] = gc.isenabled()
    """,
    "the functions themselves": """
        import inspect, pickle
        facts["functions"] = [
            [repr(function).partition(" at ")[0], str(inspect.signature(function)),
             function.__name__, function.__module__, function.__doc__,
             pickle.loads(pickle.dumps(function)) is function]
            for function in (gc.collect, gc.get_objects, gc.freeze, gc.isenabled)
        ]
        function = gc.get_referrers
        facts["get_referrers"] = [
            function.__name__, function.__module__, function.__self__ is gc, function.__doc__,
            pickle.loads(pickle.dumps(function)) is function,
        ]
    """,
}


def test_a_test_is_told_what_it_is_told_in_a_plain_run(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """Each question in a process of its own, since an answer may change the next one."""
    files = []
    for number, (name, question) in enumerate(QUESTIONS.items()):
        source = ASKS.replace("NAME", repr(name)).replace("ASK", question.strip())
        files.append(pytester.makepyfile(**{f"test_{number}": source}))
    plain = {}
    for file in files:
        run(file, runner="plain").assert_outcomes(passed=1)
        [(_pid, name, facts)] = notes(pytester)
        plain[name] = facts
    for warm in LEVELS:
        result = run(f"--forkd-warm={warm}", "--dist=loadfile", workers=len(files))
        result.assert_outcomes(passed=len(files))
        noted = notes(pytester)
        assert len({pid for pid, _name, _facts in noted}) == len(files)
        assert {name: facts for _pid, name, facts in noted} == plain, warm


def test_a_module_that_switches_the_collector_off_has_it_off_in_its_tests(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(
        """
        import gc
        gc.disable()
        BEFORE = gc.isenabled()
        def test_it():
            assert not BEFORE
            assert not gc.isenabled()
        """
    )
    for warm in LEVELS:
        run(f"--forkd-warm={warm}", workers=1).assert_outcomes(passed=1)


def test_a_warning_that_a_collection_leads_to_names_the_line_of_the_suite(
    pytester: pytest.Pytester, run: Runner
) -> None:
    """There must be no frame of ours between the suite and the collector."""
    pytester.makepyfile(
        """
        import gc, warnings

        class Loud:
            def __del__(self):
                warnings.warn("dropped", stacklevel=2)

        def test_it():
            loud = Loud()
            loud.itself = loud
            del loud
            gc.collect()
        """
    )
    result = run("-Wdefault", workers=1)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*test_a_warning*.py:11: UserWarning: dropped"])


@pytest.mark.skipif(
    not hasattr(unraisableexception, "gc_collect_harder"), reason="pytest before 8.4 does not look"
)
def test_what_only_pytests_last_look_finds_is_found(pytester: pytest.Pytester, run: Runner) -> None:
    """An object of the import's, dropped by a test, that says something when it is freed."""
    pytester.makepyfile(
        """
        import pathlib

        class Loud:
            def __init__(self):
                self.me = self
            def __del__(self):
                with open("freed", "a") as file:
                    file.write("x")

        LOUD = Loud()

        def test_it():
            global LOUD
            LOUD = None
        """
    )
    for kwargs in ({"runner": "plain"}, {}):
        (pytester.path / "freed").unlink(missing_ok=True)
        args = [] if kwargs else ["--forkd-warm=collection"]
        run(*args, **kwargs).assert_outcomes(passed=1)
        assert (pytester.path / "freed").read_text() == "x"


def test_nobody_can_see_what_the_controller_freezes(pytester: pytest.Pytester, run: Runner) -> None:
    """Hypothesis asks for the referrers of random generators while the summary is written."""
    pytester.makeconftest(
        """
        import gc

        class Kept:
            pass

        KEPT = Kept()
        BEFORE = gc.get_freeze_count()

        def pytest_terminal_summary(terminalreporter):
            seen = any(each is KEPT for each in gc.get_objects())
            terminalreporter.write_line(
                f"seen {seen}, frozen {gc.get_freeze_count() - BEFORE}, "
                f"referrers {bool(gc.get_referrers(KEPT))}"
            )
        """
    )
    pytester.makepyfile("def test_it(): pass")
    result = run(workers=1)
    result.stdout.fnmatch_lines(["seen True, frozen 0, referrers True"])


def test_a_process_that_goes_on_after_the_run_is_left_as_it_was(
    pytester: pytest.Pytester,
) -> None:
    """One that has called ``pytest.main()``."""
    pytester.makepyfile(
        test_it="def test_it(): pass",
        calls="""
        import gc, sys, pytest
        functions = [getattr(gc, name) for name in dir(gc)]
        count = gc.get_freeze_count()
        status = pytest.main(["-p", "xdist", "-p", "forkd", "--forkd-workers=2", "test_it.py"])
        assert status == 0
        assert [getattr(gc, name) for name in dir(gc)] == functions
        assert gc.get_freeze_count() == count
        """,
    )
    result = pytester.runpython(pytester.path / "calls.py")
    assert result.ret == 0
    result.assert_outcomes(passed=1)
