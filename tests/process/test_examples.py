"""The example suite, in clones of every kind."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from tests.conftest import Runner

EXAMPLE = Path(__file__).parents[2] / "examples" / "ml_suite"
#: The part that needs nothing but NumPy.
NUMPY_PART = ["test_arithmetic.py", "test_text.py", "test_arrays.py"]


@pytest.fixture
def example(pytester: pytest.Pytester) -> int:
    """Copy the suite to the test's directory; returns the number of tests in its NumPy part."""
    if importlib.util.find_spec("numpy") is None:  # not imported: pytester would forget that it is
        pytest.skip("needs NumPy")
    shutil.copytree(
        EXAMPLE,
        pytester.path,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__", ".*_cache"),
    )
    result = pytester.runpytest_subprocess("-q", *NUMPY_PART)
    assert result.ret == 0
    passed = result.parseoutcomes()["passed"]
    assert passed > 20
    return passed


def test_in_forks(example: int, run: Runner) -> None:
    run(*NUMPY_PART, workers=2).assert_outcomes(passed=example)


@pytest.mark.qemu
@pytest.mark.slow
def test_in_virtual_machines(example: int, qemu: Runner) -> None:
    # It makes a snapshot, for which NumPy is imported in a machine that QEMU emulates: a minute.
    result = qemu(*NUMPY_PART, "--dist=load", workers=2, timeout=300)
    result.assert_outcomes(passed=example)
