"""A worker whose machine is worn out leaves between two tests, and another one goes on.

Real machines that are worn out are in ``test_qemu.py``; here a test only says that its own is.
"""

from __future__ import annotations

import pytest

from tests.conftest import Runner
from tests.observing import assert_each_ran, matching, write_suite

_SUITE = """
    import pathlib
    import pytest

    @pytest.fixture(scope="module")
    def shared(worker_id):
        yield
        with open(pathlib.Path(__file__).with_suffix(".ended"), "a") as file:
            print(worker_id, file=file)

    @pytest.fixture
    def worn_out(request):
        interactor, = (p for p in request.config.pluginmanager.get_plugins()
                       if type(p).__name__ == "Interactor")
        interactor._exhausted = lambda: "it has no more of anything\\x1b[2J" + 999 * "!"

    class TestSome:
        @pytest.mark.parametrize("n", range(4))
        def test_a(self, n, shared): pass

    def test_takes_all_there_is(shared, worn_out): pass

    class TestMore:
        @pytest.mark.parametrize("n", range(4))
        def test_b(self, n, shared): pass
"""


@pytest.mark.parametrize(
    "dist", ["no", "load", "loadscope", "loadfile", "loadgroup", "worksteal", "each"]
)
def test_what_it_has_not_begun_runs_elsewhere(
    pytester: pytest.Pytester, run: Runner, dist: str
) -> None:
    """Nothing fails, is lost or run twice; fixtures are torn down where they were set up."""
    write_suite(pytester, test_it=_SUITE, test_other=_SUITE)
    result = run(f"--dist={dist}", "--max-worker-restart=0", workers=2)
    times = 2 if dist == "each" else 1
    result.assert_outcomes(passed=18 * times)
    assert_each_ran(pytester, tests=18, times=times)
    lines = matching(result.outlines, " leaves its machine: it has no more of anything\\x1b[2J!")
    assert len(lines) == 2 * times
    assert max(map(len, lines)) < 400
    assert result.ret == 0
    for name in ("test_it", "test_other"):
        started = (pytester.path / "runs").glob(f"{name}*")
        used = {worker for path in started for worker in path.read_text().split()}
        assert set((pytester.path / f"{name}.ended").read_text().split()) == used


def test_a_worker_that_has_run_nothing_cannot_leave(pytester: pytest.Pytester, run: Runner) -> None:
    """It would be replaced for ever."""
    pytester.makeconftest(
        """
        def pytest_forkd_worker_start(config):
            interactor, = (p for p in config.pluginmanager.get_plugins()
                           if type(p).__name__ == "Interactor")
            interactor.outbox.append(["exhausted", "I do not like it here"])
        """
    )
    pytester.makepyfile("def test_it(): pass")
    result = run("--max-worker-restart=1")
    result.stdout.fnmatch_lines(["*sent a bad message (exhausted: it has run nothing)*"])
    assert result.ret != 0
