"""The line at the end of a run that says what the workers were good for."""

from __future__ import annotations

import re

import pytest

from tests.conftest import Runner

SUITE = """
    import time, pytest

    @pytest.mark.parametrize("i", range(8))
    def test_it(i):
        time.sleep(0.5)
"""


def gain(result: pytest.RunResult) -> list[str]:
    """The lines of ours after the tests."""
    lines = result.outlines
    end = next(n for n, line in enumerate(lines) if "[100%]" in line)
    return [line for line in lines[end:] if line.startswith("forkd: ")]


def test_a_run_says_what_it_gained(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makepyfile(SUITE)
    [line] = gain(run(workers=4))
    found = re.fullmatch(
        r"forkd: 4 workers, parent made, collected once in \d\.\d\d s, (\d+) % busy, "
        r"(\d\.\d)x speed-up \((\d\.\d\d) s of tests in (\d\.\d\d) s\)",
        line,
    )
    assert found is not None, line
    busy, times, tests, wall = map(float, found.groups())
    assert 50 <= busy <= 100
    assert tests >= 4
    assert abs(times - tests / wall) < 0.11
    [line] = gain(run(workers=4))
    assert line.startswith("forkd: 4 workers, kept parent, ")


def test_each_worker_has_a_line_with_v_and_the_run_none_with_q(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(SUITE)
    lines = gain(run("-v", "--dist=load", workers=2))
    assert len(lines) == 3
    for name, line in zip(("gw0", "gw1"), sorted(lines[1:]), strict=True):
        assert re.fullmatch(rf"forkd: {name} ran 4 tests in 2\.\d\d s, \d+ % busy", line), line
    for option in ("-q", "--no-summary"):
        assert gain(run(option, workers=2)) == []


@pytest.mark.parametrize(
    ("suite", "options", "why"),
    [
        pytest.param(
            "import time\ntime.sleep(1)\ndef test_a(): pass\ndef test_b(): pass",
            ["--forkd-warm=collection"],
            r"collecting took 1\.\d\d s",
            id="collection",
        ),
        pytest.param(
            "import time\ntime.sleep(1)\ndef test_a(): pass\ndef test_b(): pass",
            ["--forkd-warm=imports"],
            r"the workers could begin after \d\.\d\d s",
            id="start",
        ),
        pytest.param(
            "import time\ndef test_a(): time.sleep(2)\ndef test_b(): pass",
            ["--dist=load"],
            r"test_it\.py::test_a took 2\.\d\d s",
            id="one test",
        ),
        pytest.param(
            """
            import time, pytest
            @pytest.fixture(scope="session")
            def costly(): time.sleep(2)
            @pytest.mark.parametrize("i", range(4))
            def test_it(i, costly): pass
            """,
            ["--dist=load"],
            r"setting up shared fixtures again took 2\.\d\d s|test_it\.py::test_it\[\d\] took .*",
            id="fixtures",
        ),
        pytest.param(
            "import time\ndef test_a(): time.sleep(0.5)",
            [],
            "there was one worker",
            id="one worker",
        ),
    ],
)
def test_a_run_that_gained_nothing_says_why(
    pytester: pytest.Pytester, run: Runner, suite: str, options: list[str], why: str
) -> None:
    pytester.makepyfile(test_it=suite)
    [line] = gain(run(*options, workers=2))
    assert re.search(rf"no speed-up \(\d\.\d\d s of tests in \d\.\d\d s\): ({why})$", line), line


def test_a_run_without_tests_has_nothing_to_say(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = run("-k", "absent", workers=2)
    assert len([line for line in result.outlines if line.startswith("forkd: ")]) == 1
