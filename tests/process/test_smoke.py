"""The main job in its plainest form."""

from __future__ import annotations

import pytest

from tests.conftest import Runner


def test_runs_a_suite_in_clones(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.mark.parametrize("i", range(10))
        def test_it(i, worker_id):
            assert os.environ["PYTEST_XDIST_WORKER"] == worker_id
        """
    )
    result = run(workers=3)
    result.assert_outcomes(passed=10)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*3 workers ?10 items?*"])
