"""Guests that stand still while their worker runs a test are replaced; nobody waits on."""

from __future__ import annotations

import pytest

from tests.conftest import Runner

#: A guest may be silent for a short time only; and one test stops the process that answers for it.
SOON = """
    from pytest_forkd.machines import pulse
    pulse.INTERVAL, pulse.LIMIT = 0.5, 3.0
"""
SUITE = """
    import os, signal, time
    import pytest
    def test_stops_what_answers():
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(300)
    @pytest.mark.parametrize("n", range(3))
    def test_fine(n):
        pass
"""


def check(pytester: pytest.Pytester, run: Runner, workers: int) -> None:
    pytester.makeconftest(SOON)
    pytester.makepyfile(SUITE)
    result = run("-rf", "-q", "--forkd-warm=imports", workers=workers)
    result.assert_outcomes(failed=1, passed=3)
    assert "it has not answered for 3 seconds, though it has a worker" in result.stdout.str()


def test_a_sandbox_whose_agent_says_for_ever_that_it_is_busy(
    pytester: pytest.Pytester, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")
    check(pytester, request.getfixturevalue("forkd"), workers=2)


@pytest.mark.qemu
@pytest.mark.slow
def test_a_virtual_machine_that_says_nothing_any_more(
    pytester: pytest.Pytester, qemu: Runner
) -> None:
    check(pytester, qemu, workers=1)
