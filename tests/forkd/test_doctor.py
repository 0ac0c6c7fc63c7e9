"""``pytest-forkd doctor``: each of its findings, with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from pytest_forkd import __version__
from pytest_forkd.forkd.doctor import _namespaces
from tests.standin.fixture import StandIn

SECRET = "hUsh-4711"
PARENT = {"FORKD_WARMUP_CMD": "python3 -m pytest_forkd.parent --ready-json"}

Doctor = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn(tmp_path_factory.mktemp("daemon"), token=SECRET) as daemon:
        daemon.boot("good", PARENT)
        daemon.boot("unready", {"FORKD_WARMUP_CMD": "false"})
        daemon.boot("broken")
        daemon.damage("broken", "missing memory: /snapshots/broken/memory.bin")
        yield daemon


@pytest.fixture
def daemon(shared_daemon: StandIn) -> Iterator[StandIn]:
    yield shared_daemon
    shared_daemon.faults()
    assert shared_daemon.get("/v1/sandboxes") == []


@pytest.fixture
def doctor(daemon: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Run the command in an empty directory, with the daemon's URL and token."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("FORKD_URL", daemon.url)
    monkeypatch.setenv("FORKD_TOKEN", SECRET)
    (tmp_path / "project").mkdir()

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest_forkd.commands.main", "doctor", *args]
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path / "project",
            env=environ,
            timeout=60,
        )
        assert "Traceback" not in result.stderr
        assert SECRET not in result.stdout + result.stderr
        return result

    return run


def test_all_is_well(doctor: Doctor, daemon: StandIn) -> None:
    result = doctor("--tag", "good")
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout
    assert lines[0].startswith(f"ok   client: pytest-forkd {__version__}, httpx ")
    assert lines[1] == "ok   token: in FORKD_TOKEN"
    assert lines[2] == f"ok   daemon {daemon.url}: forkd 0.5.3"
    assert lines[3] == "ok   snapshot good: bootable, 0 days old"
    assert lines[4].startswith("ok   guest: restored and answering after 0.")
    assert lines[5] == "ok   parent: ready in the snapshot"
    assert lines[6].startswith("warn guest disk: ")  # the stand-in's guests share the host's
    assert "guest kernel: " in lines[8]
    assert lines[9].startswith("ok   guest: Python 3.")
    assert lines[10] == "ok   records: no run has left anything"
    assert not [line for line in lines if line.startswith("FAIL")]


def test_no_daemon(doctor: Doctor) -> None:
    result = doctor("--url", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert "FAIL daemon http://127.0.0.1:9: no forkd daemon at" in result.stdout
    assert "       Start one as root: forkd-controller serve" in result.stdout


def test_tokens(
    doctor: Doctor, daemon: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORKD_TOKEN")
    assert "FAIL daemon" in doctor().stdout
    assert "wants a token: set FORKD_TOKEN, or give --forkd-token-file" in doctor().stdout
    file = tmp_path / "token"
    file.write_text(SECRET)
    file.chmod(0o644)
    open_to_all = doctor("--token-file", str(file), "--tag", "good", "--no-boot")
    assert open_to_all.returncode == 0
    assert f"warn token: {file} can be read by others (mode 0644)" in open_to_all.stdout
    assert f"chmod 600 {file}" in open_to_all.stdout
    file.chmod(0o600)
    closed = doctor("--token-file", str(file), "--tag", "good", "--no-boot").stdout
    assert f"ok   token: in {file}" in closed
    assert "  -  guest: not restored (--no-boot)" in closed
    file.write_text("wrong")
    assert "does not accept the token" in doctor("--token-file", str(file)).stdout
    assert "cannot be read: No such file" in doctor("--token-file", str(tmp_path / "x")).stdout


def test_a_token_that_is_sent_as_it_is(doctor: Doctor, daemon: StandIn) -> None:
    # To Linux this is the loopback, to who looks at the URL it is not.
    port = daemon.url.rpartition(":")[2]
    result = doctor("--url", f"http://0.0.0.0:{port}", "--tag", "good", "--no-boot")
    assert result.returncode == 0
    assert "which is root there, is sent over the network as it is" in result.stdout
    assert "--tls-cert and --tls-key" in result.stdout
    assert "see forkd-controller serve --help" in doctor("--url", "http://0.0.0.0:9").stdout


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("missing", "has no snapshot 'missing'; it has broken, good, unready."),
        ("broken", "snapshot broken: snapshot is not bootable: missing memory: /snapshots/"),
        ("unready", "parent: it was not ready when the snapshot was taken"),
    ],
)
def test_snapshots_of_no_use(doctor: Doctor, tag: str, message: str) -> None:
    result = doctor("--tag", tag)
    assert result.returncode == 1
    [line] = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert message in line
    assert (
        "pytest-forkd snapshot build" in result.stdout
        or "a longer --boot-wait-secs" in result.stdout
    )


def test_an_old_snapshot_and_an_old_daemon(doctor: Doctor, daemon: StandIn) -> None:
    [listed] = [each for each in daemon.get("/v1/snapshots") if each["tag"] == "good"]
    listed["created_at_unix"] = int(time.time()) - 40 * 86400
    daemon.faults(
        {"method": "GET", "path": "/v1/snapshots$", "body": json.dumps([listed])},
        {"path": "/version", "body": json.dumps({"version": "0.4.1", "api": "v1"})},
    )
    result = doctor("--tag", "good", "--no-boot")
    assert result.returncode == 0
    assert "warn snapshot good: 40 days old" in result.stdout
    assert "forkd 0.4.1; it does not say whether a snapshot can be restored" in result.stdout


def test_sandboxes_on_no_record(doctor: Doctor, daemon: StandIn) -> None:
    [sandbox] = daemon.post("/v1/sandboxes", {"snapshot_tag": "good"})
    result = doctor("--tag", "good", "--no-boot")
    daemon.delete(f"/v1/sandboxes/{sandbox['id']}")
    assert result.returncode == 0
    assert f"warn sandboxes: 1 of snapshot good are on no record here: {sandbox['id']}" in (
        result.stdout
    )
    assert "no record here" not in doctor("--tag", "good", "--no-boot").stdout


def test_the_snapshot_of_the_project(doctor: Doctor) -> None:
    result = doctor()
    assert "ok   project: its snapshot is pytest-forkd-project-" in result.stdout
    assert "FAIL snapshot pytest-forkd-project-" in result.stdout


@pytest.mark.parametrize(
    ("answer", "level", "message"),
    [
        (("5.10.0", "3.12.1", __version__, True), "warn", "guest kernel: 5.10.0 does not notice"),
        (("6.1.141", "3.12.1", __version__, True), "ok  ", "guest kernel: 6.1.141 reseeds itself"),
        (("6.1.141", "3.12.1", __version__, True), "ok  ", "guest disk: read-only"),
        (
            ("6.1.141", "3.12.1", __version__, False),
            "warn",
            "guest disk: all guests of forkd share",
        ),
        (
            ("6.1.141", "3.12.1", "0.0.1", True),
            "FAIL",
            f"has pytest-forkd 0.0.1, and here is {__version__}",
        ),
        (("6.1.141", "3.12.1", False, True), "FAIL", "its Python has no pytest-forkd"),
        ("\x1b[2J", "FAIL", "it cannot be looked into"),
    ],
)
def test_what_is_in_the_guest(
    doctor: Doctor, daemon: StandIn, answer: object, level: str, message: str
) -> None:
    reply = {"result": repr(answer), "error": None, "exit_code": 0}
    daemon.faults({"path": "/v1/sandboxes/.*/eval", "body": json.dumps(reply)})
    result = doctor("--tag", "good")
    [line] = [line for line in result.stdout.splitlines() if message in line]
    assert line.startswith(level)
    assert "\x1b" not in result.stdout


def test_namespaces(doctor: Doctor, tmp_path: Path) -> None:
    with StandIn(tmp_path / "none", token=SECRET, options=("--namespaces", "0")) as daemon:
        daemon.boot("good", PARENT)
        result = doctor("--url", daemon.url, "--tag", "good")
        assert result.returncode == 1
        assert "FAIL guest: " in result.stdout
        assert "as root: bash scripts/netns-setup.sh N" in result.stdout
        assert doctor("--url", daemon.url, "--tag", "good", "--no-netns").returncode == 0


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["forkd-child-1", "forkd-child-2", "other"], "ok   netns: 2 network namespaces, for as"),
        (["other"], "warn netns: no network namespace forkd-child-* in "),
    ],
)
def test_how_many_namespaces_there_are(tmp_path: Path, names: list[str], line: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    [check] = _namespaces(str(tmp_path))
    assert check.lines()[0].startswith(line)
    assert not [*_namespaces(str(tmp_path / "none"))]


def test_without_httpx(tmp_path: Path) -> None:
    for command in ("doctor", "snapshot list", "prune"):
        code = (
            "import sys; sys.modules['httpx'] = None\n"
            f"from pytest_forkd.commands.main import main; sys.exit(main({command.split()!r}))"
        )
        environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environ
        )
        assert result.returncode == 1
        assert "pip install 'pytest-forkd[forkd]'" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


def test_help_and_kept_parents_need_no_httpx() -> None:
    code = (
        "import sys; from pytest_forkd.commands.main import main; main(['status']); "
        "print([name for name in ('httpx', 'ssl') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("[]\n"), result.stdout
