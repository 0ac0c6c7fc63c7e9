"""The parent: a process that has imported what the suite needs, and forks collectors.

It listens on a unix socket that whoever started it bound and passed on. A connection is a
controller: it gets a greeting once everything is preloaded, and may then ask for collectors, each
with a connection of its own that came as a file descriptor. The parent does nothing else: the less
it does, the longer it stays clean.

It ends, with everything that descends from it, when the controller closes its connection, and
also, on Linux, when the controller dies.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import platform
import selectors
import shutil
import signal
import socket
import sys
import time
import warnings
from typing import Any

from pytest_forkd.channel.frames import Frame, FrameError, FrameSocket, peer_uid
from pytest_forkd.parent import processes

__all__ = ["main"]

#: Seconds to wait for a first controller.
_FIRST_CONNECTION_LIMIT = 60.0


def main(argv: list[str]) -> int:
    """Run the parent until its controller leaves.

    :param argv: the command line, see ``--help``.
    :returns: the exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m pytest_forkd.parent")
    parser.add_argument("--listen-fd", type=int, required=True, help="a listening unix socket")
    parser.add_argument("--controller", type=int, help="pid of the controller to die with")
    parser.add_argument("--directory", help="directory to remove at the end")
    parser.add_argument("--preload", default="[]", help="modules to import, a JSON list")
    parser.add_argument("--path", default="[]", help="where to look for them first, a JSON list")
    options = parser.parse_args(argv)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
    if options.controller is not None:
        processes.die_with(options.controller)
    processes.become_subreaper()
    gc.disable()
    own_path = list(sys.path)
    failures = preload(json.loads(options.preload), json.loads(options.path))
    sys.path[:] = own_path
    gc.freeze()
    if options.controller is not None:
        # From here on the end of its connection is noticed at once, and there is time to end what
        # descends from this process, wherever it has gone.
        processes.die_with(None)
    with socket.socket(fileno=options.listen_fd) as listener:
        parent = _Parent(listener, options.directory, failures)
        return parent.run()


def preload(modules: list[str], path: list[str]) -> dict[str, str]:
    """Import pytest with its usual company, then ``modules`` in order.

    :param path: where to look for ``modules`` before anywhere else.
    :returns: for each module that failed to import, why.
    """
    import xdist
    from _pytest.outcomes import OutcomeException

    import pytest_forkd

    for name in ("_pytest.junitxml", "xdist.plugin", "pytest_forkd.parent.collector"):
        importlib.import_module(name)
    # Each worker tells xdist its platform; finding out takes a subprocess, once.
    platform.platform()
    # pytest warns that it cannot rewrite the assertions of plugins that are loaded already, unless
    # their docstring says that they do without (documented at "Assertion Rewriting").
    for module in (xdist, pytest_forkd):
        module.__doc__ = f"{module.__doc__ or ''}\nPYTEST_DONT_REWRITE"
    sys.path[:0] = path
    failures = {}
    with warnings.catch_warnings():
        # A suite's own filters decide what its imports may warn about; they are not known yet.
        warnings.simplefilter("ignore")
        for name in modules:
            try:
                importlib.import_module(name)
            except (Exception, SystemExit, OutcomeException) as exc:
                failures[name] = f"{type(exc).__name__}: {exc}"
    return failures


class _Parent:
    def __init__(
        self, listener: socket.socket, directory: str | None, failures: dict[str, str]
    ) -> None:
        self.listener = listener
        self.directory = directory
        self.failures = failures
        self.selector = selectors.DefaultSelector()
        self.controllers: list[FrameSocket] = []
        self.collectors: dict[int, FrameSocket] = {}  # pid -> the controller that asked for it
        self.wakeup, self.wakeup_write = socket.socketpair()

    def run(self) -> int:
        for end in (self.listener, self.wakeup, self.wakeup_write):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, _ignore)  # a handler, so that the wake-up fd is written
        signal.set_wakeup_fd(self.wakeup_write.fileno(), warn_on_full_buffer=False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.wakeup, selectors.EVENT_READ, self.reap)
        try:
            deadline = time.monotonic() + _FIRST_CONNECTION_LIMIT
            served = False
            while self.controllers or (not served and time.monotonic() < deadline):
                for key, _mask in self.selector.select(1.0):
                    key.data()
                served = served or bool(self.controllers)
        finally:
            processes.kill_children(list(self.collectors))
            if self.directory is not None:
                shutil.rmtree(self.directory, ignore_errors=True)
        return 0

    def accept(self) -> None:
        sock, _address = self.listener.accept()
        if peer_uid(sock) not in (None, os.getuid()):
            sock.close()
            return
        controller = FrameSocket(sock)
        with contextlib.suppress(OSError):
            controller.send({"hello": os.getpid(), "preload_failures": self.failures})
        self.controllers.append(controller)
        self.selector.register(
            controller, selectors.EVENT_READ, lambda: self.read_controller(controller)
        )

    def read_controller(self, controller: FrameSocket) -> None:
        try:
            frames = controller.read_available()
        except FrameError:
            controller.eof, frames = True, []
        for frame in frames:
            self.fork_collector(controller, frame)
        if controller.eof:
            self.selector.unregister(controller)
            self.controllers.remove(controller)
            controller.close()
            for pid, owner in self.collectors.items():
                if owner is controller:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def fork_collector(self, controller: FrameSocket, frame: Frame) -> None:
        connection, stderr = frame.fds
        parent_pid = os.getpid()
        pid = processes.fork()
        if pid == 0:
            self.become_collector(parent_pid, connection, stderr, frame.message)
        os.close(connection)
        os.close(stderr)
        self.collectors[pid] = controller
        controller.send({"forked": pid})

    def become_collector(
        self, parent_pid: int, connection: int, stderr: int, request: dict[str, Any]
    ) -> None:
        """Run the collector in this fresh fork; does not return."""
        status = 70  # EX_SOFTWARE of sysexits.h
        try:
            processes.die_with(parent_pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.selector.close()
            self.listener.close()
            self.wakeup.close()
            self.wakeup_write.close()
            for controller in self.controllers:
                controller.close()
            os.dup2(stderr, 2)
            os.close(stderr)
            from pytest_forkd.parent.collector import run_collector

            status = run_collector(FrameSocket(socket.socket(fileno=connection)), request)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.wakeup.recv(512):
                pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            controller = self.collectors.pop(pid, None)
            if controller is not None and controller in self.controllers:
                with contextlib.suppress(OSError):
                    controller.send({"exited": pid, "status": status})


def _ignore(signum: int, frame: object) -> None:
    """Do nothing; see signal.set_wakeup_fd."""
