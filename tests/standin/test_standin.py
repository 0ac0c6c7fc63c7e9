"""The stand-in daemon: its limits are forkd's, and its sandboxes really are clones."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from pytest_forkd.forkd.client import Client, RequestFailed
from tests.leftovers import run_processes
from tests.standin.fixture import StandIn
from tests.standin.inspection import processes

#: A guest with a tree of processes as pytest-forkd's: a server that has forked a child, waits for
#: that one's end with SIGCHLD, and sits in a selector on sockets, one of them listening.
WARMUP = """
import os, random, selectors, signal, socket, sys, tempfile

os.makedirs("/run/w", exist_ok=True)
random.seed(4)
mine, theirs = socket.socketpair()
child = os.fork()
if child == 0:
    mine.close()
    scratch = tempfile.TemporaryFile()
    scratch.write(b"before ")
    scratch.flush()
    count = 0
    while True:
        order = theirs.recv(100)
        count += 1
        if order == b"die":
            os._exit(7)
        if order == b"write":
            scratch.write(str(count).encode())
            scratch.flush()
            scratch.seek(0)
            theirs.send(scratch.read())
            scratch.seek(0, 2)
        else:
            theirs.send(f"{count} {random.random()}".encode())
theirs.close()
wakeup, wakeup_write = socket.socketpair()
for end in (wakeup, wakeup_write):
    end.setblocking(False)
signal.signal(signal.SIGCHLD, lambda *args: None)
signal.set_wakeup_fd(wakeup_write.fileno(), warn_on_full_buffer=False)
listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/w/server")
listener.listen()
listener.setblocking(False)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
selector.register(wakeup, selectors.EVENT_READ)
ended = []
print('{"ready": true}', flush=True)
while True:
    for key, _ in selector.select():
        if key.fileobj is wakeup:
            wakeup.recv(100)
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid:
                    ended.append((pid == child, os.waitstatus_to_exitcode(status)))
            except ChildProcessError:
                pass
        else:
            connection, _ = listener.accept()
            connection.setblocking(True)
            order = connection.recv(100)
            if order == b"ended":
                connection.send(repr(ended).encode())
            elif order == b"kill":
                os.kill(child, 9)
            else:
                mine.send(order)
                connection.send(b"" if order == b"die" else mine.recv(100))
            connection.close()
"""
#: What asks the server, in an agent's interpreter.
ASK = (
    "(lambda s: (s.connect('/run/w/server'), s.send({order!r}), s.recv(100))[2].decode())"
    "(__import__('socket').socket(__import__('socket').AF_UNIX))"
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(tmp_path / "daemon", token="secret") as daemon:
        yield daemon


@pytest.fixture
def client(daemon: StandIn) -> Iterator[Client]:
    with Client(daemon.url, token="secret") as client:
        yield client


@pytest.fixture
def tree(daemon: StandIn, tmp_path: Path) -> Path:
    """Boot ``tree``, a guest with several processes; returns a directory of its own."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "warm.py").write_text(WARMUP)
    recipe = {"FORKD_WARMUP_CMD": f"python3 {folder}/warm.py"}
    daemon.boot("tree", recipe, {str(folder): str(folder)})
    return folder


def ask(client: Client, sandbox: str, order: bytes) -> str:
    answer = client.eval(sandbox, ASK.format(order=order))
    assert answer.error is None
    assert answer.result is not None
    return str(eval(answer.result))


def test_clones_start_alike_and_go_their_own_ways(client: Client, tree: Path) -> None:
    first, second = (each.id for each in client.spawn("tree", 2, per_child_netns=True))
    one = [ask(client, first, b"x") for _ in range(3)]
    [two] = [ask(client, second, b"x")]
    # Counting anew, and with the same random numbers: nothing but what runs in a clone reseeds it.
    assert one[0] == two
    assert [text.split()[0] for text in one] == ["1", "2", "3"]
    assert ask(client, first, b"write") == "before 4"
    assert ask(client, second, b"write") == "before 2"


def test_a_branch_goes_on_where_the_sandbox_was(client: Client, tree: Path) -> None:
    [source] = (each.id for each in client.spawn("tree", 1, per_child_netns=True))
    assert ask(client, source, b"write") == "before 1"
    client.eval(source, "__import__('builtins').__dict__.__setitem__('KEPT', [1])")
    snapshot = client.branch(source, "later", "full")
    assert snapshot.branched_from == source
    assert ask(client, source, b"write") == "before 12"
    client.delete_sandbox(source)
    copies = [each.id for each in client.spawn("later", 2, per_child_netns=True)]
    client.delete_snapshot("later")
    for copy in copies:
        assert ask(client, copy, b"write") == "before 12"
        assert client.eval(copy, "KEPT.append(2) or KEPT").result == "[1, 2]"


def test_a_clone_of_a_clone_of_a_clone(client: Client, tree: Path) -> None:
    tag = "tree"
    for number in range(1, 4):
        [sandbox] = (each.id for each in client.spawn(tag, 1, per_child_netns=True))
        assert ask(client, sandbox, b"x").startswith(f"{number} ")
        tag = f"tree{number}"
        client.branch(sandbox, tag, "diff")
    ask(client, sandbox, b"die")
    assert wait_for(client, sandbox) == "[(True, 7)]"


@pytest.mark.parametrize(("order", "status"), [(b"die", 7), (b"kill", -9)])
def test_a_cloned_parent_learns_how_its_cloned_child_ended(
    client: Client, tree: Path, order: bytes, status: int
) -> None:
    first, second = (each.id for each in client.spawn("tree", 2, per_child_netns=True))
    ask(client, first, order)
    assert wait_for(client, first) == f"[(True, {status})]"
    assert ask(client, second, b"ended") == "[]"
    assert ask(client, second, b"x").startswith("1 ")


def wait_for(client: Client, sandbox: str) -> str:
    deadline = time.monotonic() + 10
    while (ended := ask(client, sandbox, b"ended")) == "[]" and time.monotonic() < deadline:
        time.sleep(0.01)
    return ended


def test_directories_of_its_own(client: Client, tree: Path) -> None:
    first, second = (each.id for each in client.spawn("tree", 2, per_child_netns=True))
    (tree / "new").write_text("on the host")
    path = str(tree / "new")
    assert client.exec(first, ["cat", path]).exit_code == 1
    client.exec(first, ["sh", "-c", f"echo in the guest > {path}"])
    assert client.exec(first, ["cat", path]).stdout == "in the guest\n"
    assert client.exec(second, ["cat", path]).exit_code == 1
    assert (tree / "new").read_text() == "on the host"
    assert client.exec(first, ["ls", "/run"]).stdout == "tmp\nw\n"


def test_what_cannot_be_cloned_says_so(client: Client, tree: Path) -> None:
    [sandbox] = (each.id for each in client.spawn("tree", 1, per_child_netns=True))
    client.eval(
        sandbox,
        "__import__('threading').Thread(target=__import__('time').sleep, args=(60,), "
        "daemon=True, name='mine').start()",
    )
    client.eval(sandbox, "__import__('subprocess').Popen(['sleep', '60'])")
    with pytest.raises(RequestFailed, match="takes no part in cloning"):
        client.branch(sandbox, "impossible", "full")
    assert [each.tag for each in client.snapshots()] == ["tree"]


def test_exec_answers_at_the_end_and_decodes_lossily(client: Client, daemon: StandIn) -> None:
    daemon.boot("plain")
    [sandbox] = client.spawn("plain", 1, per_child_netns=False)
    assert sandbox.netns is None
    result = client.exec(sandbox.id, ["printf", r"a\377b"])
    assert result.stdout == "a�b"
    with pytest.raises(RequestFailed, match="exec: ") as caught:
        client.exec(sandbox.id, ["sleep", "30"], timeout_secs=1)
    assert caught.value.status == 500
    assert client.eval(sandbox.id, "1/0").error == "ZeroDivisionError: division by zero"
    assert client.eval(sandbox.id, "1;2").result is None
    with pytest.raises(RequestFailed, match="at least one element"):
        client.exec(sandbox.id, [])


def test_requests_for_one_tag_at_once_race(client: Client, daemon: StandIn) -> None:
    daemon.boot("plain")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.spawn, "plain", 60, False)
        while not client.sandboxes() and not first.done():
            pass  # it has begun, and takes a while
        with pytest.raises(RequestFailed, match=r"restore_many: .*Address in use") as caught:
            client.spawn("plain", 1, per_child_netns=False)
        assert len(first.result()) == 60
    assert caught.value.status == 500
    assert len(client.sandboxes()) == 60


def test_an_expression_that_takes_too_long(tmp_path: Path) -> None:
    with (
        StandIn(tmp_path / "daemon", options=("--eval-limit", "0.3")) as daemon,
        Client(daemon.url) as client,
    ):
        daemon.boot("plain")
        [sandbox] = client.spawn("plain", 1, per_child_netns=False)
        with pytest.raises(RequestFailed, match="eval: timed out") as caught:
            client.eval(sandbox.id, "__import__('time').sleep(1)")
        assert caught.value.status == 500
        assert client.eval(sandbox.id, "1").result == "1"


def test_namespaces_are_limited_and_a_failed_batch_leaves_nothing(tmp_path: Path) -> None:
    with (
        StandIn(tmp_path / "few", options=("--namespaces", "2")) as daemon,
        Client(daemon.url) as client,
    ):
        daemon.boot("plain")
        with pytest.raises(RequestFailed, match=r"netns-setup\.sh"):
            client.spawn("plain", 3, per_child_netns=True)
        assert client.sandboxes() == []
        assert len(client.spawn("plain", 2, per_child_netns=True)) == 2


@pytest.mark.parametrize("victim", ["daemon", "guardian"])
def test_nothing_survives_it(tmp_path: Path, victim: str) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "warm.py").write_text(WARMUP)
    with StandIn(tmp_path / "daemon") as daemon, Client(daemon.url) as client:
        daemon.boot("tree", {"FORKD_WARMUP_CMD": f"python3 {folder}/warm.py"})
        sandboxes = client.spawn("tree", 2, per_child_netns=True)
        for each in sandboxes:
            client.exec(each.id, ["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 &"])
        state = client.eval(sandboxes[0].id, "__import__('os').environ['STANDIN_CONTROL']").result
        assert state is not None
        directory = os.path.dirname(eval(state))
        pids = descendants(daemon.pid)
        assert len(pids) >= 3 * 3
        if victim == "daemon":
            daemon.kill()
    assert wait_until_gone(pids) == []
    assert not os.path.exists(directory)
    assert run_processes(str(tmp_path)) == []


def descendants(pid: int) -> list[int]:
    """The processes below one, which is the daemon's."""
    table = processes()
    found = [pid]
    for each in found:
        found += [child for child, (_state, parent) in table.items() if parent == each]
    return found


def wait_until_gone(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + 5
    while left := [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return left


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    """A test process that is killed leaves no daemon."""
    import subprocess
    import sys

    code = (
        "import pathlib, sys, time\n"
        "from tests.standin.fixture import StandIn\n"
        f"with StandIn(pathlib.Path({str(tmp_path)!r})) as daemon:\n"
        "    daemon.boot('plain')\n"
        "    print(daemon.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root
    ) as starter:
        try:
            assert starter.stdout is not None
            pids = descendants(int(starter.stdout.readline()))
            assert len(pids) > 1
        finally:
            starter.send_signal(signal.SIGKILL)
    assert wait_until_gone(pids) == []
