"""The agent of a stand-in's guest: what forkd's own agent does, over a UNIX socket.

A request is a line of JSON, and so is its answer; each connection has a thread. ``exec`` is
``subprocess.run()``, ``eval`` evaluates an expression in this interpreter. ``FORKD_WARMUP_CMD`` is
started before the agent serves, and its line ``{"ready": true}`` is waited for.

Standard library only. It is started with one argument, the guest's description as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

import _standin_cloning as cloning  # type: ignore[import-not-found]

#: Seconds for requests that are being served to end before the guest is cloned.
_IDLE_LIMIT = 20.0
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000

_warmup_ready = False


def enter_namespace(mounts: list[list[str]]) -> None:
    """See this guest's directories, and let nobody else see them there."""
    uid, gid = os.getuid(), os.getgid()
    flags = _CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)
    cloning.call("unshare", flags)
    if uid:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    cloning.call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    for source, target in mounts:
        os.makedirs(target, exist_ok=True)
        cloning.bind_mounts([[source, target]])


def start_warmup(command: str) -> Any:
    """Start the warm-up command, and wait until it is ready."""
    global _warmup_ready
    try:
        process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
    except OSError as exc:
        print(f"failed to spawn warmup: {exc}", flush=True)
        return None
    assert process.stdout is not None
    line = process.stdout.readline()
    with contextlib.suppress(ValueError, AttributeError):
        _warmup_ready = json.loads(line).get("ready") is True
    print(f"warmup said {line!r}", flush=True)
    return process


def answer(request: Any) -> dict[str, Any]:
    """The answer to one request."""
    action = request.get("action")
    if action == "ping":
        return {
            "pong": True,
            "numpy_version": "not-installed",
            "pid": 1,
            "agent_lang": "python",
            "warmup_ready": _warmup_ready,
        }
    if action == "exec":
        done = subprocess.run(
            request["args"], capture_output=True, timeout=request.get("timeout", 30)
        )
        return {
            "stdout": done.stdout.decode("utf-8", "replace"),
            "stderr": done.stderr.decode("utf-8", "replace"),
            "exit_code": done.returncode,
        }
    if action == "eval":
        return {"result": repr(eval(request["code"], {})), "exit_code": 0}
    return {"error": f"unknown action: {action}", "exit_code": 1}


class Agent:
    """Serves requests until it is killed."""

    def __init__(self, path: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(128)
        cloning.get_ready = self.get_ready

    def get_ready(self) -> None:
        """Wait until no request is being served: their threads would not be in a clone."""
        deadline = time.monotonic() + _IDLE_LIMIT
        while threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
            if time.monotonic() > deadline:
                names = ", ".join(thread.name for thread in threading.enumerate())
                raise RuntimeError(f"the agent is busy: {names}")
            time.sleep(0.002)

    def serve(self) -> None:
        """Accept connections, each with a thread of its own."""
        while True:
            connection, _address = self.listener.accept()
            thread = threading.Thread(target=self.handle, args=(connection,), name="request")
            thread.start()

    def handle(self, connection: socket.socket) -> None:
        """Serve one connection."""
        with connection, contextlib.suppress(OSError):
            line = connection.makefile("rb").readline()
            if not line:
                return
            try:
                reply = answer(json.loads(line))
            except Exception as exc:
                reply = {
                    "error": f"{type(exc).__name__}: {exc}",
                    "traceback": traceback.format_exc(),
                    "exit_code": 1,
                }
            connection.sendall(json.dumps(reply).encode() + b"\n")


def announce(path: str, what: dict[str, Any]) -> None:
    """Tell the daemon how it went."""
    with open(path + ".new", "w", encoding="ascii") as file:
        json.dump(what, file)
    os.rename(path + ".new", path)


def main(description: Any) -> None:
    """Become the first process of a guest."""
    first = os.getpid()
    if os.fork():
        os._exit(0)  # so that the daemon's main thread is the parent, see PR_SET_PDEATHSIG
    while os.getppid() == first:
        time.sleep(0.0005)
    cloning.call("prctl", 1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != description["daemon"]:
        os._exit(1)
    try:
        enter_namespace(description["mounts"])
    except OSError as exc:
        announce(description["ready"], {"error": f"a guest needs a mount namespace: {exc}"})
        raise
    os.chdir("/")
    os.makedirs(os.environ["TMPDIR"], exist_ok=True)
    command = description["recipe"].get("FORKD_WARMUP_CMD")
    warmup = start_warmup(command) if command else None
    agent = Agent(description["socket"])
    announce(description["ready"], {"pid": os.getpid(), "warmup": _warmup_ready})
    agent.serve()
    del warmup


if __name__ == "__main__":
    del sys.path[0]
    main(json.loads(sys.argv[1]))
