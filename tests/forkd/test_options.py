"""Options of the forkd backend, and its errors, as who runs pytest sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from pytest_forkd.forkd.built import Built, BuiltSnapshots, choose_tag, plan_for
from tests.conftest import Runner
from tests.forkd_fixtures import WARMUP
from tests.standin.fixture import StandIn

SECRET = "hUsh-4711"


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn(tmp_path_factory.mktemp("daemon"), token=SECRET) as daemon:
        daemon.boot("base", WARMUP)
        daemon.boot("broken")
        daemon.damage("broken", "missing memory: /snapshots/broken/memory.bin")
        yield daemon


@pytest.fixture
def daemon(
    shared_daemon: StandIn, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandIn]:
    """A daemon whose URL and token are in the environment, and a suite of one test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(pytester.path / "state"))
    monkeypatch.setenv("FORKD_URL", shared_daemon.url)
    monkeypatch.setenv("FORKD_TOKEN", SECRET)
    pytester.makepyfile(test_it="def test_it(): pass")
    yield shared_daemon
    shared_daemon.faults()
    assert shared_daemon.get("/v1/sandboxes") == []


def usage_error(result: pytest.RunResult) -> str:
    """The message of a run that could not be."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str() + result.stderr.str()
    text = result.stderr.str()
    assert "Traceback" not in text
    assert SECRET not in text + result.stdout.str()
    return text


def test_no_daemon(daemon: StandIn, run: Runner) -> None:
    text = usage_error(run("--forkd-backend=forkd", "--forkd-url=http://127.0.0.1:9"))
    assert "no forkd daemon at http://127.0.0.1:9: " in text
    assert "Start one as root: forkd-controller serve --bind 127.0.0.1:9 --token-file" in text


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "wants a token: set FORKD_TOKEN, or give"), ("wrong", "does not accept the token")],
)
def test_tokens(
    daemon: StandIn,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    message: str,
) -> None:
    if token is None:
        monkeypatch.delenv("FORKD_TOKEN")
    else:
        monkeypatch.setenv("FORKD_TOKEN", token)
    assert message in usage_error(run("--forkd-backend=forkd", "--forkd-tag=base"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--forkd-url=localhost"], "--forkd-url: 'localhost' is no URL of a daemon"),
        (["--forkd-token-file=/missing"], "--forkd-token-file: /missing cannot be read"),
        (
            ["--forkd-url=https://127.0.0.1:9", "--forkd-ca=/missing"],
            "--forkd-ca: /missing cannot be used",
        ),
        (["--forkd-tag=missing"], "has no snapshot 'missing'; it has base, broken."),
        (["--forkd-tag=broken"], "missing memory: /snapshots/broken/memory.bin"),
        (["--forkd-memory=much"], "--forkd-memory: 'much' is no size for a machine's memory"),
    ],
)
def test_what_cannot_be(daemon: StandIn, run: Runner, args: list[str], message: str) -> None:
    args = args if any("tag" in each for each in args) else ["--forkd-tag=base", *args]
    assert message in usage_error(run("--forkd-backend=forkd", *args))


def test_too_many_machines_for_the_network_namespaces(
    daemon: StandIn, run: Runner, pytester: pytest.Pytester
) -> None:
    with StandIn(pytester.path / "few", options=("--namespaces", "0")) as few:
        few.boot("base", WARMUP)
        text = usage_error(
            run("--forkd-backend=forkd", "--forkd-tag=base", f"--forkd-url={few.url}")
        )
    assert "cannot restore" in text
    assert "netns-setup.sh" in text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 413, "body": "length limit exceeded"}, "is too large for the daemon at"),
        ({"status": 503}, "is busy: injected"),
        ({"status": 500}, "cannot restore 1 of snapshot 'base': injected"),
        ({"status": 409}, "snapshot 'base' at {url} cannot be restored: injected"),
        ({"drop": "before"}, "broke off POST /v1/sandboxes"),
        ({"body": "[]"}, "made 0 sandboxes instead of 1"),
        ({"body": "nonsense"}, "but not with JSON"),
    ],
)
def test_what_a_daemon_answers(
    daemon: StandIn, run: Runner, fault: dict[str, object], message: str
) -> None:
    daemon.faults({"method": "POST", "path": "/v1/sandboxes$", "times": -1, **fault})
    text = usage_error(run("--forkd-backend=forkd", "--forkd-tag=base", workers=1))
    assert message.format(url=daemon.url) in text
    for sandbox in daemon.get("/v1/sandboxes"):
        daemon.delete(f"/v1/sandboxes/{sandbox['id']}")  # made, though it was told otherwise


def test_without_a_tag_it_is_that_of_the_project(
    daemon: StandIn, run: Runner, pytester: pytest.Pytester
) -> None:
    tag = choose_tag(str(pytester.path)).tag
    text = usage_error(run("--forkd-backend=forkd"))
    assert f"has no snapshot '{tag}'; it has base, broken." in text
    assert "Build one with: pytest-forkd snapshot build" in text
    daemon.boot(tag, WARMUP, {str(pytester.path): str(pytester.path)})
    try:
        run("--forkd-backend=forkd").assert_outcomes(passed=1)
    finally:
        daemon.delete(f"/v1/snapshots/{tag}")


def test_a_snapshot_of_other_dependencies(
    daemon: StandIn, run: Runner, pytester: pytest.Pytester
) -> None:
    root = str(pytester.path)
    fingerprint = plan_for(root, {}).fingerprint
    BuiltSnapshots().add(Built("base", root, fingerprint, "", 1.0, named=True))
    (pytester.path / "uv.lock").write_text("new")
    text = usage_error(run("--forkd-backend=forkd"))
    assert "the snapshot is stale: base: what it was made from has changed since." in text
    assert "pytest-forkd snapshot build --force --tag base" in text
    assert "--forkd-allow-stale" in text


def test_nothing_is_made_that_cannot_be_written_down(
    daemon: StandIn, run: Runner, pytester: pytest.Pytester
) -> None:
    (pytester.path / "state").write_text("a file")
    text = usage_error(run("--forkd-backend=forkd", "--forkd-tag=base"))
    assert "set XDG_STATE_HOME to another directory" in text


def test_several_daemons_in_the_environment(
    daemon: StandIn, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORKD_URL", f"{daemon.url}, nonsense")
    text = usage_error(run("--forkd-backend=forkd", "--forkd-tag=base"))
    assert "FORKD_URL: 'nonsense' is no URL of a daemon" in text


def test_httpx_is_asked_for_by_those_who_need_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="def test_it(): pass")
    blocked = (
        "import sys; sys.modules['httpx'] = None; import pytest; "
        "sys.exit(pytest.main(['-p', 'xdist', '-p', 'forkd', '--forkd-workers=1', *sys.argv[1:]]))"
    )

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", blocked, *args],
            capture_output=True,
            text=True,
            env={**os.environ, "XDG_STATE_HOME": str(pytester.path)},
            timeout=60,
        )

    assert run("--forkd-keep=0").returncode == 0
    refused = run("--forkd-backend=forkd", "--forkd-tag=base")
    assert refused.returncode == 4
    assert "--forkd-backend=forkd needs httpx, which is not installed." in refused.stderr
    assert "pip install 'pytest-forkd[forkd]'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_other_backends_load_no_client(pytester: pytest.Pytester, run: Runner) -> None:
    pytester.makeconftest(
        """
        import json, sys

        def pytest_unconfigure(config):
            if not hasattr(config, "workerinput"):
                names = ("httpx", "pytest_forkd.forkd.client")
                with open("loaded", "w") as file:
                    json.dump([name for name in names if name in sys.modules], file)
        """
    )
    pytester.makepyfile(test_it="def test_it(): pass")
    run().assert_outcomes(passed=1)
    assert json.loads((pytester.path / "loaded").read_text()) == []
