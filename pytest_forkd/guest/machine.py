"""The parent in a guest: preloads modules, waits for the controller, and becomes the collector."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest_forkd
from pytest_forkd.channel.mux import CONTROL, FILES, parse_control
from pytest_forkd.guest.disk import prepare_disk
from pytest_forkd.guest.nursery import Connection, GuestNursery
from pytest_forkd.guest.port import Port
from pytest_forkd.guest.project import ProjectCopy
from pytest_forkd.guest.rehearsal import rehearse
from pytest_forkd.guest.relay import PATHS
from pytest_forkd.guest.restore import restore
from pytest_forkd.guest.virtio import VirtioPort, find_port
from pytest_forkd.parent import processes
from pytest_forkd.parent.imports.preloading import Preloaded, Unsafe, preload
from pytest_forkd.parent.imports.starting_anew import start_anew
from pytest_forkd.parent.plan import Plan
from pytest_forkd.runtime import frozen_gc as frozen

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the parent of a guest until the controller does not need it any more.

    Prints ``{"ready": true}`` once everything is preloaded and it listens on its socket: the
    guest's agent waits for that line from ``FORKD_WARMUP_CMD``.

    :param argv: the command line, see ``--help``.
    :returns: the exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m pytest_forkd.parent")
    parser.add_argument("--ready-json", action="store_true", help="this is the parent of a guest")
    parser.add_argument("--plan", type=Path, help="a file that says what to import, as JSON")
    parser.add_argument(
        "--preload", action="append", default=[], metavar="MODULE", help="import this module"
    )
    parser.add_argument(
        "--scan",
        action="append",
        default=[],
        metavar="PATH",
        help="import the third-party modules that the test files there name",
    )
    parser.add_argument(
        "--port",
        metavar="NAME",
        help="talk over this virtio port, and not over a socket that an agent connects to",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run a tiny suite first, so that a run finds what it needs in memory",
    )
    parser.add_argument(
        "--in-memory",
        action="append",
        default=[],
        metavar="DIR",
        help="in a guest of forkd, move this directory from the disk, which all guests share",
    )
    parser.add_argument("--skip", default="{}", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)

    if sys.path[:1] in ([""], [os.getcwd()]):
        del sys.path[0]  # "python -m" puts the agent's working directory first
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.become_subreaper()
    frozen.watch()
    frozen.pause()
    if options.in_memory:
        for problem in prepare_disk(options.in_memory):
            print(f"pytest-forkd: {problem}", file=sys.stderr)  # noqa: T201 - the guest's console
    plan = Plan()
    if options.plan is not None:
        try:
            plan = Plan.from_json(json.loads(options.plan.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as exc:
            sys.exit(f"--plan: cannot use {options.plan}: {exc}")
    plan.preload += options.preload
    if options.scan:
        plan.scan = [*(plan.scan or ()), *options.scan]
    plan.skip.update(json.loads(options.skip))
    try:
        preloaded = preload(plan)
    except Unsafe as exc:
        start_anew(argv, plan, exc)
    if options.rehearse:
        rehearse()
    port = Port(_listen()) if options.port is None else VirtioPort(find_port(options.port))
    frozen.freeze()
    print('{"ready": true}', flush=True)  # noqa: T201 - the agent reads it
    return _Guest(port, preloaded).run()


def _listen() -> socket.socket:
    """Make the socket that the relay connects to.

    :raises SystemExit: if it cannot be made.
    """
    given = os.environ.get("PYTEST_FORKD_SOCKET")
    error: OSError | None = None
    for path in (given,) if given else PATHS:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(128)
        except OSError as exc:
            error = exc
            listener.close()
        else:
            return listener
    sys.exit(f"the parent's socket cannot be made: {error}; set PYTEST_FORKD_SOCKET to a path")


class _Guest:
    def __init__(self, port: Port | VirtioPort, preloaded: Preloaded) -> None:
        self.port = port
        self.preloaded = preloaded
        self.project = ProjectCopy()

    def run(self) -> int:
        """Wait until the controller has a run, and become its collector."""
        while True:
            self.port.wait(None)
            if self.port.opened():
                self.port.control({"hello": self.describe()})
            for channel, payload in self.port.frames():
                if channel == FILES:
                    self.project.take(payload)
                elif channel == CONTROL:
                    message = parse_control(payload)
                    if "end" in message:
                        return 0
                    if "collect" in message:
                        self.collect(message["collect"])
                    self.obey(message)

    def describe(self) -> dict[str, Any]:
        """What the controller has to know about this guest."""
        return {
            "state": "rest",
            "version": pytest_forkd.__version__,
            "python": platform.python_version(),
            "executable": sys.executable,
            "version_info": list(sys.version_info),
            "platform": sys.platform,
            "pid": os.getpid(),
            "preload_failures": self.preloaded.failures,
        }

    def obey(self, message: dict[str, Any]) -> None:
        if "restore" in message:
            self.port.control({"restored": {"failed": restore(message["restore"])}})
        elif "manifest" in message:
            self.port.control({"manifest": self.project.manifest(message["manifest"])})
        elif "sync" in message:
            self.project.begin(message["sync"])
        elif "sync_end" in message:
            self.port.control({"synced": self.project.finish()})

    def collect(self, request: dict[str, Any]) -> NoReturn:
        """Run the collector in this process; its fork, the worker, ends here, too."""
        status = 70  # EX_SOFTWARE of sysexits.h
        connection = Connection(self.port)
        me = os.getpid()
        try:
            connection.take_stderr()
            from pytest_forkd.parent.worker.collector import run_collector

            problem = self.move_in(request)
            if problem is not None:
                connection.send({"usage_error": [problem]})
            else:
                status = run_collector(
                    connection,  # type: ignore[arg-type]
                    request,
                    GuestNursery(connection),
                )
        except BaseException as exc:
            from pytest_forkd.compat.tracebacks import stack

            sys.stderr.write(f"{stack(exc)}\n")
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            with contextlib.suppress(Exception):
                if os.getpid() == me:
                    connection.send({"over": {"status": status}})
            os._exit(status)

    def move_in(self, request: dict[str, Any]) -> str | None:
        """Adapt a request, which was made for the controller's machine, to this guest.

        :returns: why that is impossible; ``None`` if it was done.
        """
        if not os.path.isdir(request["cwd"]):
            return (
                f"the guest has no directory {request['cwd']}: the project is expected where it "
                "is on this machine.\nSend it (--forkd-sync), or build the snapshot with it."
            )
        request["environ"] = {**os.environ, **request["environ"]}
        own = list(sys.path)
        sent = [path for path in request["sys_path"] if path not in own]
        request["sys_path"] = sent + own
        return None
