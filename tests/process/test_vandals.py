"""Tests that leave modules broken, or fork and return, lose nothing but themselves."""

from __future__ import annotations

import pytest

from tests.conftest import Runner


@pytest.mark.parametrize(
    "damage",
    [
        "import json; json.dumps = json.loads = None",
        "import json; json.JSONDecoder.decode = json.JSONDecoder.raw_decode = None",
        "import time; time.perf_counter = time.time = time.monotonic = None",
        "import socket; socket.socket = None; socket.MSG_DONTWAIT = None",
        "import os; os.getpid = lambda: 1",
        "import struct; struct.pack = struct.unpack = struct.calcsize = None",
        "import execnet.gateway_base as base; base.dumps_internal = base._Serializer = None",
        "import select; select.select = select.poll = None",
        "import os, sys; os.close(1); os.close(2); sys.stdout = sys.stderr = None",
    ],
)
def test_what_a_test_leaves_broken(pytester: pytest.Pytester, run: Runner, damage: str) -> None:
    pytester.makepyfile(f"def test_a(): {damage}\ndef test_b(): pass\ndef test_c(): pass")
    result = run(workers=1)
    result.assert_outcomes(passed=3)
    assert result.ret == 0


@pytest.mark.parametrize(
    "damage", ["import sys; sys.modules.clear()", "import builtins; builtins.isinstance = None"]
)
def test_what_pytest_cannot_go_on_without(
    pytester: pytest.Pytester, run: Runner, damage: str
) -> None:
    """A plain run ends in a traceback; here the test that did it is blamed, and no other."""
    pytester.makepyfile(f"def test_a(): {damage}\ndef test_b(): pass\ndef test_c(): pass")
    result = run("-rf", workers=1)
    result.assert_outcomes(passed=2, failed=1)
    assert "INTERNALERROR" not in result.stdout.str()
    result.stdout.fnmatch_lines(["FAILED *::test_a - worker 'gw0' crashed*"])
    if "modules" in damage:
        result.stderr.fnmatch_lines(["forkd: *::test_a removes pytest from sys.modules"])


def test_a_child_that_returns_into_pytest_ends_there(
    pytester: pytest.Pytester, run: Runner
) -> None:
    pytester.makepyfile(
        """
        import os
        def test_a():
            pid = os.fork()
            if pid:
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        def test_b():
            pid = os.fork()
            assert pid, "the child fails"
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        def test_c(): pass
        """
    )
    result = run(workers=1)
    result.assert_outcomes(passed=3)
    assert result.ret == 0
