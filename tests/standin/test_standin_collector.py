"""The stand-in clones pytest-forkd's own parent, with a collector that waits to fork workers."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from pytest_forkd.forkd.client import Client
from tests.standin.fixture import StandIn

WARMUP = """
import json, os, socket, sys
from pytest_forkd.parent.server import main
from pytest_forkd.parent.plan import Plan

os.makedirs("/run/w")
listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/w/parent")
listener.listen()
plan = os.memfd_create("plan")
Plan(project="x").write(plan)
print(json.dumps({"ready": True}), flush=True)
main([f"--listen-fd={listener.detach()}", f"--plan-fd={plan}"])
"""
#: What the guest's end of a backend would do.
DRIVE = """
import os, socket
from pytest_forkd.channel.events import pack_object
from pytest_forkd.channel.frames import FrameSocket

def begin(project):
    global parent, collector
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("/run/w/parent")
    parent = FrameSocket(sock)
    parent.send({"open": {"keep": 0, "most": 4}})
    assert "alive" in parent.receive(20).message
    assert "hello" in parent.receive(20).message
    mine, theirs = socket.socketpair()
    collector = FrameSocket(mine)
    workerinput = {
        "workerid": "gw0", "workercount": 2, "testrunuid": "u", "mainargv": ["pytest"]
    }
    request = {
        "args": [project, "-p", "xdist", "-p", "no:cacheprovider"],
        "cwd": project, "environ": dict(os.environ), "sys_path": [], "mainargv": ["pytest"],
        "sigint": False, "role": workerinput, "warm": "collection", "level": "collection",
        "nodes": [pack_object(workerinput)], "basetemp": None, "modules": [], "scan": False,
        "testpaths": [], "exclude": [], "skip": {}, "rewriting": None,
    }
    import sys
    request["sys_path"] = [entry for entry in sys.path]
    parent.send({"collect": request}, [theirs.fileno(), 2])
    theirs.close()
    assert "forked" in parent.receive(20).message
    return collector.receive(60).message["warm"]["ids"]

def fork(name):
    mine, theirs = socket.socketpair()
    claims = os.memfd_create("claims")
    workerinput = {
        "workerid": name, "workercount": 2, "testrunuid": "u", "mainargv": ["pytest"]
    }
    fork = {"worker": name, "workerinput": pack_object(workerinput), "basetemp": None}
    collector.send({"fork": fork}, [theirs.fileno(), claims])
    theirs.close()
    collector.receive(20).message["forked"]
    collector.send({"signal": {"worker": name, "signum": 9}})
    status = collector.receive(20).message["exit"]["status"]
    collector.send({"end": True})
    return status

def end():
    return parent.receive(20).message
"""


def test_a_waiting_collector_is_cloned(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "warm.py").write_text(WARMUP)
    (project / "drive.py").write_text(DRIVE)
    (project / "test_it.py").write_text("def test_it(): pass\n")

    def drive(sandbox: str, call: str) -> object:
        code = (
            f"[__import__('sys').path.insert(0, {str(project)!r}), __import__('drive').{call}][1]"
        )
        answer = client.eval(sandbox, code)
        assert answer.error is None
        assert answer.result is not None
        return eval(answer.result)

    with StandIn(tmp_path / "daemon") as daemon, Client(daemon.url) as client:
        recipe = {"FORKD_WARMUP_CMD": f"python3 {project}/warm.py"}
        daemon.boot("warm", recipe, {str(project): str(project)})
        [source] = client.spawn("warm", 1, per_child_netns=True, live_fork=True)
        assert drive(source.id, f"begin({str(project)!r})") == ["test_it.py::test_it"]
        client.branch(source.id, "collected", "live")
        client.delete_sandbox(source.id)
        clones = client.spawn("collected", 3, per_child_netns=True)
        for number, clone in enumerate(clones):
            assert drive(clone.id, f"fork('gw{number}')") == 9  # SIGKILL
            # The cloned parent sees its collector end, though that is another process now.
            told = drive(clone.id, "end()")
            assert told["status"] == 0  # type: ignore[index]
            assert "exited" in told  # type: ignore[operator]
