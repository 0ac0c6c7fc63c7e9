"""The client of a forkd daemon, on the stand-in: its errors, limits, and what it tries again."""

from __future__ import annotations

import json
import logging
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from pytest_forkd.forkd import transport
from pytest_forkd.forkd.access import Token, parse_url, read_token
from pytest_forkd.forkd.answers import EvalResult, ExecResult, Sandbox, Snapshot, SnapshotDetail
from pytest_forkd.forkd.client import (
    Busy,
    Client,
    ForkdError,
    NoSuchSandbox,
    NoSuchTag,
    NotBootable,
    RequestFailed,
    TooLarge,
    Unauthorized,
    Unreachable,
)
from tests.standin.fixture import TLS, StandIn

SECRET = "hUsh-4711"


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn(tmp_path_factory.mktemp("daemon"), token=SECRET) as daemon:
        daemon.boot("base")
        yield daemon


@pytest.fixture
def daemon(shared_daemon: StandIn) -> Iterator[StandIn]:
    """A daemon with the snapshot ``base``."""
    yield shared_daemon
    shared_daemon.faults()
    with Client(shared_daemon.url, token=SECRET) as client:
        for sandbox in client.sandboxes():
            client.delete_sandbox(sandbox.id)
        for snapshot in client.snapshots():
            if snapshot.tag != "base":
                client.delete_snapshot(snapshot.tag, force=True)


@pytest.fixture
def client(daemon: StandIn) -> Iterator[Client]:
    with Client(daemon.url, token=SECRET) as client:
        yield client


# -- reaching it -------------------------------------------------------------------------------


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client, pytest.raises(Unreachable) as caught:
            client.snapshots()
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"no forkd daemon at {url}: ")
    assert second.startswith("Start one as root: forkd-controller serve --bind 127.0.0.1:")
    assert "--forkd-url or FORKD_URL" in second


def test_a_host_that_says_nothing_is_given_up_within_five_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with Client(url) as client, pytest.raises(Unreachable):
            client.version()
        assert time.monotonic() - started < 5


def test_a_name_that_is_not_resolved() -> None:
    client = Client("http://no-such-host.invalid:8889")
    with client, pytest.raises(Unreachable, match=r"no forkd daemon at http://no-such-host\."):
        client.health()


def test_something_else_listens(daemon: StandIn) -> None:
    with Client(f"{daemon.url}/elsewhere", token=SECRET) as client, pytest.raises(ForkdError):
        client.health()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8889", "is no URL of a daemon"),
        ("ftp://localhost", "is no URL of a daemon"),
        ("http://", "is no URL of a daemon"),
        ("http://localhost:port", "is no URL"),
        ("http://me:hUsh-4711@localhost", "must not hold a password"),
        ("http://localhost?token=1", "is no URL of a daemon"),
    ],
)
def test_urls_that_are_none(url: str, message: str) -> None:
    with pytest.raises(ForkdError, match=message) as caught:
        parse_url(url)
    assert str(caught.value).startswith("--forkd-url: ")
    assert SECRET not in str(caught.value)


def test_urls_in_short() -> None:
    assert parse_url(" https://host:1/ ") == "https://host:1"
    assert parse_url("http://[::1]:8889/forkd/") == "http://[::1]:8889/forkd"


def test_certificates_are_verified(tmp_path: Path) -> None:
    with StandIn(tmp_path, tls=True) as daemon:
        with Client(daemon.url, ca=str(TLS / "ca.pem")) as client:
            assert client.version() == "0.5.3"
        with Client(daemon.url) as client, pytest.raises(Unreachable, match="--forkd-ca FILE"):
            client.version()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_certificates_that_is_none(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ForkdError, match=r"--forkd-ca: .*ca\.pem cannot be used"):
        Client("https://127.0.0.1:1", ca=str(file))


# -- the token ---------------------------------------------------------------------------------


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f" {SECRET}\n")
    assert read_token(None, {}) is None
    assert read_token(None, {"FORKD_TOKEN": " "}) is None
    assert read_token(None, {"FORKD_TOKEN": SECRET}) == SECRET
    assert read_token(str(file), {"FORKD_TOKEN": "other"}) == SECRET


@pytest.mark.parametrize("content", [b"", b"two words", b"two\nlines", b"\xff\xfe", b"x" * 5000])
def test_token_files_that_hold_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ForkdError, match=r"--forkd-token-file: .*token (is empty|holds no token)"):
        read_token(str(file), {})
    with pytest.raises(ForkdError, match="cannot be read: No such file"):
        read_token(str(tmp_path / "none"), {})


def test_no_token_and_a_wrong_one(daemon: StandIn) -> None:
    with Client(daemon.url) as client, pytest.raises(Unauthorized, match="set FORKD_TOKEN, or"):
        client.snapshots()
    client = Client(daemon.url, token="wrong")
    with client, pytest.raises(Unauthorized, match="does not accept the token"):
        client.snapshots()


def test_the_token_is_shown_to_nobody(
    daemon: StandIn, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("httpx", "httpcore"):
        assert logging.getLogger(name).level == logging.WARNING  # or each request would be a line
        caplog.set_level(logging.DEBUG, name)
    daemon.faults({"path": "/v1/snapshots", "status": 500})
    with pytest.raises(RequestFailed, match="injected") as caught:
        client.snapshots()
    assert "HTTP Request: GET" in caplog.text
    frames: Any = caught.tb
    shown = [repr(client), str(caught.value), caplog.text, repr(client._transport.__dict__)]
    while frames is not None:
        shown += [repr(value) for value in frames.tb_frame.f_locals.values()]
        frames = frames.tb_next
    assert not [text for text in shown if SECRET in text]
    echo = json.dumps({"error": f"Bearer {SECRET} \x1b["})
    daemon.faults({"path": "/v1/snapshots", "status": 500, "body": echo})
    with pytest.raises(RequestFailed, match=r"^Bearer \*\*\* \[$"):
        client.snapshots()
    with pytest.raises(TypeError):
        pickle.dumps(Token(SECRET))


# -- refusals ----------------------------------------------------------------------------------


def test_no_such_tag_names_those_there_are(daemon: StandIn, client: Client) -> None:
    with pytest.raises(NoSuchTag) as caught:
        client.spawn("missing", 2, per_child_netns=True)
    assert str(caught.value).splitlines() == [
        f"the daemon at {daemon.url} has no snapshot 'missing'; it has base.",
        "Build one with: pytest-forkd snapshot build",
    ]
    with pytest.raises(NoSuchTag):
        client.snapshot_info("missing")
    assert client.delete_snapshot("missing") is False


def test_not_bootable_gives_the_reason(daemon: StandIn, client: Client) -> None:
    daemon.boot("broken")
    daemon.damage("broken", "missing memory: /var/lib/forkd/snapshots/broken/memory.bin")
    [broken] = [each for each in client.snapshots() if each.tag == "broken"]
    assert not broken.bootable
    assert broken.warning is not None
    assert "memory.bin" in broken.warning
    with pytest.raises(NotBootable, match=r"missing memory: /var/.*memory\.bin"):
        client.spawn("broken", 1, per_child_netns=True)


def test_too_large(client: Client) -> None:
    [sandbox] = client.spawn("base", 1, per_child_netns=True)
    assert client.eval(sandbox.id, "len('%s')" % ("x" * 1_900_000)).result == "1900000"
    with pytest.raises(TooLarge, match=r"a request of 2\d{6} bytes is too large .*limit exceeded"):
        client.eval(sandbox.id, "len('%s')" % ("x" * 2_200_000))
    assert client.eval(sandbox.id, "1").result == "1"


def test_busy(tmp_path: Path) -> None:
    with (
        StandIn(tmp_path, options=("--branch-secs", "1.5")) as daemon,
        Client(daemon.url) as client,
        ThreadPoolExecutor() as pool,
    ):
        daemon.boot("base")
        [sandbox] = client.spawn("base", 1, per_child_netns=True)
        tags = [f"tag{number}" for number in range(6)]
        futures = [pool.submit(client.branch, sandbox.id, tag, "diff") for tag in tags]
        errors = [future.exception() for future in futures]
        refused = [error for error in errors if error is not None]
        assert len(refused) == 2
        for error in refused:
            assert isinstance(error, Busy)
            assert "is busy: daemon at branch concurrency cap (4)" in str(error)


def test_a_sandbox_that_is_gone(client: Client) -> None:
    with pytest.raises(NoSuchSandbox, match="sandbox sb-none is gone from"):
        client.ping("sb-none")
    [sandbox] = client.spawn("base", 1, per_child_netns=True)
    assert client.delete_sandbox(sandbox.id) is True
    assert client.delete_sandbox(sandbox.id) is False


def test_branches_that_cannot_be(client: Client) -> None:
    [sandbox] = client.spawn("base", 1, per_child_netns=True)
    with pytest.raises(RequestFailed, match="not spawned with live_fork") as caught:
        client.branch(sandbox.id, "later", "live")
    assert caught.value.status == 400
    with pytest.raises(RequestFailed, match="already exists") as caught:
        client.branch(sandbox.id, "base", "diff")
    assert caught.value.status == 409


def test_dependents_keep_a_snapshot(daemon: StandIn, client: Client) -> None:
    [sandbox] = client.spawn("base", 1, per_child_netns=True)
    path = f"/v1/sandboxes/{sandbox.id}/branch"
    daemon.post(path, {"tag": "first", "mode": "diff"})
    daemon.post(path, {"tag": "second", "mode": "diff", "parent_tag": "first"})
    assert client.snapshot_info("first").dependents == ["second"]
    detail = client.snapshot_info("second")
    assert (detail.chain_depth, detail.ancestors) == (1, ["first"])
    with pytest.raises(RequestFailed, match=r"parent of 1 chained snapshot\(s\): \[second\]"):
        client.delete_snapshot("first")
    assert client.delete_snapshot("first", cascade=True)
    assert [each.tag for each in client.snapshots()] == ["base"]


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", ["before", "after"])
def test_what_is_safe_is_tried_again(daemon: StandIn, client: Client, drop: str) -> None:
    [sandbox] = client.spawn("base", 1, per_child_netns=True)
    daemon.faults(
        {"method": "GET", "path": "/v1/snapshots", "drop": drop, "times": 2},
        {"path": f"/v1/sandboxes/{sandbox.id}/ping", "drop": drop},
        {"method": "DELETE", "drop": drop},
    )
    assert [each.tag for each in client.snapshots()] == ["base"]
    assert client.ping(sandbox.id)["pong"] is True
    # Deleted by the request whose answer got lost, or by the repeated one.
    assert client.delete_sandbox(sandbox.id) is (drop == "before")
    assert client.sandboxes() == []


def test_what_has_an_effect_is_never_tried_again(daemon: StandIn, client: Client) -> None:
    daemon.faults({"method": "POST", "path": "/v1/sandboxes$", "drop": "after"})
    with pytest.raises(Unreachable, match=r"broke off POST /v1/sandboxes[^$]*on no record"):
        client.spawn("base", 1, per_child_netns=True)
    assert len(client.sandboxes()) == 1
    [sandbox] = client.sandboxes()
    calls: dict[str, Callable[[], object]] = {
        "eval": lambda: client.eval(sandbox.id, "1"),
        "exec": lambda: client.exec(sandbox.id, ["true"]),
        "branch": lambda: client.branch(sandbox.id, "later", "diff"),
    }
    for path, call in calls.items():
        daemon.faults({"path": f".*/{path}", "drop": "before"})
        with pytest.raises(Unreachable, match="broke off POST"):
            call()


def test_a_late_answer(daemon: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.version()
    defaults = {"limit": 0.2, "sandbox": None}
    monkeypatch.setattr(Client._json, "__kwdefaults__", defaults)
    daemon.faults({"path": "/v1/snapshots", "delay": 1.0})
    with pytest.raises(Unreachable, match=r"has not answered GET /v1/snapshots within 0\.2"):
        client.snapshots()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no JSON",
        "[" * 100_000,
        "{}",
        "[1]",
        '[{"tag": "../x", "created_at_unix": 1}]',
        '[{"tag": "x", "created_at_unix": true}]',
        '[{"tag": "x", "created_at_unix": 1, "bootable": "yes"}]',
        '[{"tag": "x", "created_at_unix": 1.5}]',
    ],
)
def test_answers_that_make_no_sense(daemon: StandIn, client: Client, body: str) -> None:
    daemon.faults({"path": "/v1/snapshots", "body": body})
    with pytest.raises(RequestFailed):
        client.snapshots()


def test_a_batch_of_another_size_is_deleted(daemon: StandIn, client: Client) -> None:
    [first] = daemon.post("/v1/sandboxes", {"snapshot_tag": "base"})
    daemon.faults({"path": "/v1/sandboxes$", "body": json.dumps([first])})
    with pytest.raises(RequestFailed, match="made 1 sandboxes instead of 2"):
        client.spawn("base", 2, per_child_netns=True)
    assert first["id"] not in [each.id for each in client.sandboxes()]


def test_an_endless_answer(
    daemon: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_MAX_ANSWER", 1000)
    [sandbox] = client.spawn("base", 1, per_child_netns=True)
    with pytest.raises(RequestFailed, match="with more than"):
        client.eval(sandbox.id, "'x' * 2000")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        "id",
        "tag",
        "snapshot_tag",
        "netns",
        "guest_addr",
        "created_at_unix",
        "pid",
        "status",
        "bootable",
        "warning",
        "pause_ms",
        "memory_physical_bytes",
        "chain_depth",
        "ancestors",
        "dependents",
        "stdout",
        "stderr",
        "exit_code",
        "result",
        "error",
        "branched_from",
    ]
)


@given(JSON | st.dictionaries(FIELDS, JSON | st.just("x") | st.just(1), min_size=5))
def test_no_answer_gets_past_the_checks(answer: object) -> None:
    for kind in (Sandbox, Snapshot, SnapshotDetail, ExecResult, EvalResult):
        try:
            read = kind.read(answer)
        except RequestFailed:
            continue
        for value in vars(read).values():
            assert type(value) in (str, int, bool, list, type(None))
