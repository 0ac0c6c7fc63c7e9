"""Test modules that end who imports them, in machines: errors of these modules, as with forks."""

from __future__ import annotations

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from tests.conftest import Runner
from tests.observing import blamed, matching


@pytest.mark.parametrize(
    ("warm", "how", "reason"),
    [
        ("imports", "import ctypes; ctypes.string_at(0)", "signal SIGSEGV"),
        ("imports", "import os; os._exit(3)", "exit code 3"),
        ("auto", "import os; os._exit(3)", "exit code 3"),
    ],
)
def test_a_module_that_ends_its_process_at_import_is_an_error(
    pytester: pytest.Pytester, forkd: Runner, warm: str, how: str, reason: str
) -> None:
    """As with forks; at level collection it ends the guest, and workers are tried instead."""
    pytester.makepyfile(
        test_a=f"print('about to')\n{how}",
        test_b="def test_it(): pass",
        test_c="def test_it(): pass",
    )
    for first in (True, False):  # that a machine was lost is not remembered
        result = forkd("-rfE", f"--forkd-warm={warm}")
        result.assert_outcomes(passed=2, errors=1)
        assert blamed(result) == ["test_a.py"]
        result.stdout.fnmatch_lines(
            [f"The process that was importing test_a.py ended with {reason}.", "about to"]
        )
        told = matching(result.outlines, "collects for itself")
        assert len(told) == (first and warm == "auto")
        assert matching(result.outlines, "node down") == []


def test_a_collection_that_must_be_shared_and_ends_its_guest(
    pytester: pytest.Pytester, forkd: Runner
) -> None:
    pytester.makepyfile(test_a="import os; os._exit(3)")
    result = forkd("--forkd-warm=collection")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: *: *has ended*", "If a test file ends *--forkd-warm=imports *"]
    )
