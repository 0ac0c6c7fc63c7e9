"""Against a real forkd daemon: the one at ``FORKD_URL``, with ``FORKD_TOKEN`` if it wants one.

``PYTEST_FORKD_TEST_TAG`` names a snapshot there that holds this version of pytest-forkd, such as
``pytest-forkd snapshot build --tag NAME`` makes in this checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from pytest_forkd.forkd.access import read_token
from pytest_forkd.forkd.client import Client
from tests.conftest import Runner

URL = os.environ.get("FORKD_URL", "")
TAG = os.environ.get("PYTEST_FORKD_TEST_TAG", "")

pytestmark = [
    pytest.mark.forkd_daemon,
    pytest.mark.skipif(not URL or not TAG, reason="needs FORKD_URL and PYTEST_FORKD_TEST_TAG"),
]


@pytest.fixture(autouse=True)
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """The daemon, on which nothing of the test may be left."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with Client(URL, read_token(None, os.environ)) as client:
        before = {each.id for each in client.sandboxes()}, {each.tag for each in client.snapshots()}
        yield client
        after = {each.id for each in client.sandboxes()}, {each.tag for each in client.snapshots()}
    assert after == before
    assert not [*(tmp_path / "state" / "pytest-forkd" / "forkd").glob("*.json")]


def test_the_doctor_finds_no_problem() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest_forkd.commands.main",
        "doctor",
        "--url",
        URL,
        "--tag",
        TAG,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("level", ["imports", "collection"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_suite(pytester: pytest.Pytester, run: Runner, level: str, workers: int) -> None:
    pytester.makepyfile(
        helper="VALUE = 42",
        test_it="""
            import os, random, uuid
            import pytest
            from helper import VALUE

            @pytest.mark.parametrize("number", range(20))
            def test_passes(number, tmp_path, worker_id):
                assert VALUE == 42
                (tmp_path / "file").write_text(worker_id)
                print("DRAWN", uuid.uuid4(), random.random(), os.urandom(8).hex())

            def test_fails():
                print("some output")
                assert VALUE == 43

            @pytest.mark.skip(reason="not now")
            def test_skipped():
                pass
        """,
    )
    result = run(
        "--forkd-backend=forkd",
        f"--forkd-tag={TAG}",
        f"--forkd-warm={level}",
        "-rP",
        workers=workers,
    )
    result.assert_outcomes(passed=20, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*assert 42 == 43", "some output"])
    drawn = [word for line in result.outlines if "DRAWN" in line for word in line.split()[1:]]
    assert len(drawn) == 60
    assert len(set(drawn)) == 60, "two machines have drawn the same"


def test_a_machine_that_dies_is_replaced(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makepyfile(
        """
        import os, signal

        def test_before():
            pass

        def test_kills():
            os.kill(os.getpid(), signal.SIGKILL)

        def test_after():
            pass
        """
    )
    result = run("--forkd-backend=forkd", f"--forkd-tag={TAG}", workers=1)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*signal SIGKILL*"])
