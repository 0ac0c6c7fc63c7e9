"""What runs once, before the workers exist: whether that makes a difference, and for how long."""

from __future__ import annotations

import pytest

from tests.conftest import Runner
from tests.process.test_tripwires import PROBE, causes, level, skip_without


@pytest.mark.parametrize("hook", ["pytest_sessionfinish", "pytest_unconfigure"])
def test_hook_that_undoes_what_an_earlier_one_did_is_a_finding(
    pytester: pytest.Pytester, run: Runner, hook: str
) -> None:
    """Each of xdist's workers makes a file of its own, and removes it."""
    pytester.makeconftest(
        f"""
        import os, uuid
        def pytest_configure(config):
            config.file = str(uuid.uuid4())
            open(config.file, "x").close()
        def {hook}():
            pass
        """
    )
    pytester.makepyfile(PROBE)
    result = run()
    result.assert_outcomes(passed=4)
    what = f"{hook} may undo in each worker what pytest_configure has done once"
    assert causes(result) == [f"{what} (conftest.py:5)"]
    assert level(pytester) == "imports"


def test_hook_is_no_finding_where_earlier_ones_only_describe(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makeconftest(
        """
        import pytest
        def pytest_configure(config):
            config.addinivalue_line("markers", "slow: takes long")
        def pytest_collection_modifyitems(config, items):
            if not config.getoption("verbose") > 5:
                for item in items:
                    if item.get_closest_marker("slow"):
                        item.add_marker(pytest.mark.skip(reason="slow"))
            items.sort(key=lambda item: item.name)
        def pytest_sessionfinish(session, exitstatus):
            with open("finished", "a") as file:
                file.write("x")
        """
    )
    pytester.makepyfile(PROBE)
    result = run("--dist=each")
    result.assert_outcomes(passed=8)
    assert causes(result) == []
    assert level(pytester) == "collection"
    assert (pytester.path / "finished").read_text() == "xxx"  # the controller's, too


def test_asking_whether_there_is_a_worker_s_name_is_no_finding(
    pytester: pytest.Pytester, run: Runner
) -> None:
    (pytester.path / "conftest.py").write_text(
        "import os\nif os.environ.get('PYTEST_XDIST_WORKER') is None:\n    print('controller')\n"
        "def in_worker():\n    return bool(0) or os.getenv('PYTEST_XDIST_WORKER') is not None\n"
        "IN_WORKER = in_worker()\n"
        "def pytest_configure(config):\n"
        "    if getattr(config, 'workerinput', {'workerid': ''})['workerid']:\n        pass\n"
    )
    pytester.makepyfile(PROBE)
    result = run()
    result.assert_outcomes(passed=4)
    assert causes(result) == []
    assert level(pytester) == "collection"


def test_a_finding_is_remembered_for_the_plugins_that_were_active(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(PROBE, early="import os\nNAME = os.environ.get('PYTEST_XDIST_WORKER')\n")
    for plugins, said, expected in (
        ((), 0, "collection"),
        (("early",), 1, "imports"),
        ((), 0, "collection"),
        (("early",), 0, "imports"),
    ):
        result = run(plugins=plugins)
        result.assert_outcomes(passed=4)
        assert len(causes(result)) == said
        assert level(pytester) == expected


def test_pytest_benchmark_warns_in_one_worker_as_under_xdist(
    pytester: pytest.Pytester, run: Runner
) -> None:
    skip_without("pytest_benchmark")
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("number", range(3))
        def test_fast(benchmark, number):
            assert benchmark(abs, -number) == number
        """
    )
    found = []
    for runner, more in (("xdist", ()), ("forkd", ()), ("forkd", ("--forkd-warm=collection",))):
        result = run("--dist=each", *more, runner=runner, plugins=("benchmark",))
        text = "\n".join([*result.outlines, *result.errlines])
        found.append((result.parseoutcomes(), text.count("Benchmarks are automatically disabled")))
        assert causes(result) == []
    assert found[0][0]["passed"] == 6
    assert found[1] == found[2] == found[0]
