"""What a run has made at a daemon is deleted, whatever becomes of the run, and nothing else is."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from pytest_forkd.forkd.cleaning import connect_for, delete_recorded
from pytest_forkd.forkd.client import Client, ForkdError
from pytest_forkd.forkd.ledger import Ledger
from pytest_forkd.forkd.records import Records, is_run_tag, make_run_tag, process_identity
from tests.standin.fixture import StandIn

ROOT = Path(__file__).parents[2]
SECRET = "hUsh-4711"
#: A controller: makes two sandboxes and a branch, writes them down, and waits.
CONTROLLER = """
import os, sys, time
from pytest_forkd.forkd.client import Client
from pytest_forkd.forkd.ledger import Ledger

url, token_file = sys.argv[1:]
token = open(token_file).read().strip()
ledger = Ledger(token_file)
with Client(url, token) as client:
    made = client.spawn("base", 2, True)
    ledger.add_sandboxes(url, [each.id for each in made])
    tag = ledger.add_branch(url)
    client.branch(made[0].id, tag, "diff")
    client.spawn(tag, 1, True)  # killed before it can write this one down
    if os.fork() == 0:
        time.sleep(600)  # a child without exec: it has the reaper's pipe open
    print(ledger._reaper.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state directory of the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("FORKD_TOKEN", raising=False)
    monkeypatch.delenv("FORKD_URL", raising=False)
    return tmp_path / "state" / "pytest-forkd" / "forkd"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(tmp_path / "daemon", token=SECRET) as daemon:
        daemon.boot("base")
        yield daemon


@pytest.fixture
def client(daemon: StandIn) -> Iterator[Client]:
    with Client(daemon.url, token=SECRET) as client:
        yield client


@pytest.fixture
def controller(daemon: StandIn) -> Iterator[subprocess.Popen[str]]:
    """A controller that has made what it makes, and its reaper's pid as ``args[-1]``."""
    command = [sys.executable, "-c", CONTROLLER, daemon.url, str(daemon.token_file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def reaper_of(controller: subprocess.Popen[str]) -> int:
    assert controller.stdout is not None
    return int(controller.stdout.readline())


def wait_for_end(pid: int, limit: float = 20.0) -> bool:
    deadline = time.monotonic() + limit
    while os.path.exists(f"/proc/{pid}/exe") and time.monotonic() < deadline:
        time.sleep(0.01)
    return not os.path.exists(f"/proc/{pid}/exe")


def prune(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest_forkd.commands.main", "prune"]
    return subprocess.run([*command, *args], capture_output=True, text=True, cwd=ROOT, timeout=60)


# -- a killed controller -----------------------------------------------------------------------


def test_the_reaper_deletes_what_a_killed_controller_has_made(
    daemon: StandIn, client: Client, controller: subprocess.Popen[str], state: Path
) -> None:
    [foreign] = client.spawn("base", 1, per_child_netns=True)
    reaper = reaper_of(controller)
    assert len(client.sandboxes()) == 4
    [record] = state.glob("*.json")
    assert SECRET not in record.read_text()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    os.kill(controller.pid, signal.SIGKILL)
    assert wait_for_end(reaper)
    assert [each.id for each in client.sandboxes()] == [foreign.id]
    assert [each.tag for each in client.snapshots()] == ["base"]
    assert not [*state.glob("*.json")]


def test_signals_that_end_a_job_do_not_end_the_reaper(
    daemon: StandIn, client: Client, controller: subprocess.Popen[str]
) -> None:
    reaper = reaper_of(controller)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(reaper, signum)
    os.kill(controller.pid, signal.SIGTERM)
    assert wait_for_end(reaper)
    assert client.sandboxes() == []


def test_the_reaper_loads_next_to_nothing_while_it_waits(
    daemon: StandIn, controller: subprocess.Popen[str]
) -> None:
    reaper = reaper_of(controller)
    with open(f"/proc/{reaper}/smaps_rollup", encoding="ascii") as file:
        [private] = [line.split()[1] for line in file if line.startswith("Private_Dirty:")]
    assert int(private) < 12_000  # KiB
    with open(f"/proc/{reaper}/maps", encoding="ascii") as file:
        assert "_ssl" not in file.read()


# -- a run that ends -----------------------------------------------------------------------------


def test_a_ledger_leaves_nothing(daemon: StandIn, client: Client, state: Path) -> None:
    def connect(url: str) -> Client:
        return Client(url, SECRET)

    ledger = Ledger(str(daemon.token_file))
    reaper = ledger._reaper.pid
    made = client.spawn("base", 2, per_child_netns=True)
    ledger.add_sandboxes(daemon.url, [each.id for each in made])
    tag = ledger.add_branch(daemon.url)
    client.branch(made[0].id, tag, "diff")
    client.delete_sandbox(made[0].id)
    ledger.forget_sandbox(daemon.url, made[0].id)
    outcome = ledger.close(connect)
    assert (outcome.deleted, outcome.gone, outcome.errors) == (2, 0, [])
    assert ledger.close(connect).deleted == 0
    assert client.sandboxes() == []
    assert wait_for_end(reaper)
    assert not [*state.glob("*.json")]


def test_nothing_is_used_that_cannot_be_written_down(state: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ForkdError, match="set XDG_STATE_HOME to another directory"):
        Ledger()


# -- prune -------------------------------------------------------------------------------------


def lost_run(daemon: StandIn, client: Client, state: Path) -> Path:
    """A record, as one of a machine that lost its power, of two sandboxes and a branch."""
    records = Records()
    run = records.begin(str(daemon.token_file))
    run.process = "another boot 1 2"
    made = client.spawn("base", 2, per_child_netns=True)
    tag = make_run_tag()
    records.add(
        run,
        sandboxes=[(daemon.url, each.id) for each in made],
        branches=[(daemon.url, tag), (daemon.url, make_run_tag())],
    )
    client.branch(made[0].id, tag, "diff")
    assert run.path is not None
    return run.path


def test_prune_deletes_what_a_lost_run_has_left(
    daemon: StandIn, client: Client, state: Path
) -> None:
    [foreign] = client.spawn("base", 1, per_child_netns=True)
    client.branch(foreign.id, "foreign", "diff")
    lost_run(daemon, client, state)
    result = prune()
    assert (result.returncode, result.stderr) == (0, "")
    assert "3 deleted, 1 had gone" in result.stdout
    assert [each.id for each in client.sandboxes()] == [foreign.id]
    assert [each.tag for each in client.snapshots()] == ["base", "foreign"]
    assert not [*state.glob("*.json")]
    assert prune().stdout == "no run has left anything\n"


def test_prune_leaves_running_runs_alone(
    daemon: StandIn, client: Client, controller: subprocess.Popen[str]
) -> None:
    reaper_of(controller)
    before = client.sandboxes()
    result = prune()
    assert result.returncode == 0
    assert f"process {controller.pid} is still running" in result.stdout
    assert client.sandboxes() == before


def test_prune_keeps_what_is_at_a_daemon_that_is_away(
    tmp_path: Path, daemon: StandIn, client: Client, state: Path
) -> None:
    record = lost_run(daemon, client, state)
    before = record.read_text()
    daemon.kill()
    result = prune()
    assert result.returncode == 1
    assert f"no forkd daemon at {daemon.url}" in result.stderr
    assert record.read_text() == before


def test_prune_wants_to_be_told_about_other_hosts(
    daemon: StandIn, client: Client, state: Path
) -> None:
    record = lost_run(daemon, client, state)
    stored = json.loads(record.read_text())
    record.write_text(json.dumps({**stored, "host": "elsewhere 0123"}))
    result = prune()
    assert result.returncode == 0
    assert "of another host (elsewhere); --other-hosts deletes it" in result.stdout
    assert len(client.sandboxes()) == 2
    assert prune("--other-hosts").returncode == 0
    assert client.sandboxes() == []


def test_prune_with_another_token(
    daemon: StandIn, client: Client, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_run(daemon, client, state)
    monkeypatch.setenv("FORKD_TOKEN", "wrong-token")
    result = prune()
    assert result.returncode == 1
    assert "does not accept the token" in result.stderr
    assert "wrong-token" not in result.stderr + result.stdout
    assert prune("--token-file", str(daemon.token_file)).returncode == 0


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"sandboxes": 1}', '{"host": "h", "sandboxes": [["u", "../x"]]}']
)
def test_a_damaged_record_is_left_alone(state: Path, damage: str) -> None:
    records = Records()
    path = state / "1-2-3.json"
    path.write_text(damage)
    assert records.all() == []
    with pytest.raises(ForkdError, match="is no record of a run"):
        records.read(path)


def test_one_that_is_refused_does_not_keep_the_others(
    daemon: StandIn, client: Client, state: Path
) -> None:
    path = lost_run(daemon, client, state)
    run = Records().read(path)
    assert run is not None
    refused = run.sandboxes[0][1]
    daemon.faults({"method": "DELETE", "path": f"/v1/sandboxes/{refused}", "status": 500})
    outcome = delete_recorded(Records(), run, connect_for(run))
    assert (outcome.deleted, outcome.gone) == (2, 1)
    assert outcome.errors == [f"{refused} at {daemon.url}: injected"]
    left = Records().read(path)
    assert left is not None
    assert left.sandboxes == [(daemon.url, refused)]
    assert left.branches == []


def test_processes_are_told_apart() -> None:
    me = process_identity(os.getpid())
    assert me is not None
    assert me == process_identity(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as other:
        assert process_identity(other.pid) not in (me, None)
        other.kill()
    assert process_identity(other.pid) is None


def test_tags_of_runs() -> None:
    assert is_run_tag(make_run_tag())
    assert make_run_tag() != make_run_tag()
    assert not is_run_tag("pytest-forkd-run-")
    assert not is_run_tag("pytest-forkd-0123456789abcdef0123")
