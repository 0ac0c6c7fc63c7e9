"""What a user of the forkd backend can get wrong: exit code 4, at once, and nothing is left."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from tests.conftest import Runner
from tests.forkd_fixtures import TAG, WARMUP
from tests.standin.fixture import StandIn

Refused = Callable[..., str]


@pytest.fixture
def refused(pytester: pytest.Pytester, forkd: Runner) -> Refused:
    """Run a suite, which is refused; returns what is said, less the header."""
    pytester.makepyfile("def test_it(): pass")

    def refused(*args: str, **kwargs: str) -> str:
        start = time.monotonic()
        result = forkd(*args, **kwargs)
        assert time.monotonic() - start < 10
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        told = result.stderr.str() + "\n".join(result.outlines)
        assert "Traceback" not in told
        assert "INTERNALERROR" not in told
        return told

    return refused


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--forkd-memory=much", "--forkd-memory: 'much' is no size"),
        ("--forkd-memory=1", "--forkd-memory: '1' is no size"),
        ("--forkd-url=ftp://x", "--forkd-url: 'ftp://x' is no URL of a daemon"),
        ("--forkd-url=http://a:b@c", "must not hold a password"),
        ("--forkd-token-file=no-such", "no-such cannot be read"),
        ("--forkd-url=https://127.0.0.1 --forkd-ca=no-such", "--forkd-ca: no-such cannot be used"),
    ],
)
def test_options_that_make_no_sense(refused: Refused, option: str, complaint: str) -> None:
    assert complaint in refused(*option.split())


def test_no_snapshot_of_this_suite(pytester: pytest.Pytester, run: Runner, daemon: StandIn) -> None:
    """Without a tag it is the one that ``snapshot build`` would make."""
    result = run("--forkd-backend=forkd", f"--forkd-url={daemon.url}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "no snapshot 'pytest-forkd-test-no-sn" in result.stderr.str()
    assert "snapshot build" in result.stderr.str()


def test_no_such_tag(refused: Refused) -> None:
    """Those there are are named."""
    told = refused(tag="other")
    assert "no snapshot 'other'" in told
    assert TAG in told


def test_no_daemon(pytester: pytest.Pytester, run: Runner, records: Path) -> None:
    """Said within five seconds, with what starts one."""
    pytester.makepyfile("def test_it(): pass")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    start = time.monotonic()
    result = run("--forkd-backend=forkd", "--forkd-tag=x", f"--forkd-url=http://127.0.0.1:{port}")
    assert time.monotonic() - start < 8  # the start of pytest included
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"http://127.0.0.1:{port}" in result.stderr.str()
    assert "forkd-controller serve" in result.stderr.str()


def test_a_token_that_is_wrong(
    pytester: pytest.Pytester, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not shown."""
    pytester.makepyfile("def test_it(): pass")
    monkeypatch.setenv("FORKD_TOKEN", "a-wrong-token")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with StandIn(tmp_path / "daemon", token="the-right-token") as daemon:
        options = ["--forkd-backend=forkd", "--forkd-tag=x", f"--forkd-url={daemon.url}"]
        result = run(*options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "token" in result.stderr.str()
        assert "wrong-token" not in result.stderr.str() + result.stdout.str()
        daemon.boot(TAG, WARMUP, {str(pytester.path): None})
        result = run(
            *options[:1],
            f"--forkd-tag={TAG}",
            *options[2:],
            f"--forkd-token-file={daemon.token_file}",
        )
        result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("tag", "command", "complaint"),
    [
        ("no-warmup", None, "FORKD_WARMUP_CMD"),
        ("fails", "python3 -c 'raise SystemExit(3)'", "FORKD_WARMUP_CMD"),
        (
            "preload",
            "python3 -m pytest_forkd.parent --ready-json --preload no_such_module",
            "could not import 'no_such_module': ModuleNotFoundError",
        ),
    ],
)
def test_snapshots_that_are_of_no_use(
    refused: Refused, daemon: StandIn, tag: str, command: str | None, complaint: str
) -> None:
    """With what is wrong with them."""
    daemon.boot(tag, {} if command is None else {"FORKD_WARMUP_CMD": command})
    assert complaint in refused(tag=tag)


def test_a_daemon_that_cannot_spawn(refused: Refused, daemon: StandIn) -> None:
    daemon.faults({"path": "/v1/sandboxes$", "method": "POST", "status": 500, "times": -1})
    try:
        assert "injected" in refused()
    finally:
        daemon.faults()


def test_a_suite_that_cannot_be_configured(pytester: pytest.Pytester, forkd: Runner) -> None:
    """Said as without workers."""
    pytester.makeconftest(
        """
        import pytest
        def pytest_configure(config):
            if hasattr(config, "workerinput"):
                raise pytest.UsageError("not like this")
        """
    )
    pytester.makepyfile("def test_it(): pass")
    result = forkd("--forkd-warm=collection")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "not like this" in result.stderr.str()
