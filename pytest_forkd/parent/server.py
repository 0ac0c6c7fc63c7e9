"""The parent: a process that has imported what the suite needs, and forks collectors.

It listens on a unix socket that the process starting it has bound and passed on. Controllers and
the ``pytest-forkd`` command connect to it. Requests, each a frame with one key:

* ``open``: ``{"keep": seconds, "most": parents, "skip": {package: reason}}``; answered by ``alive``
  once everything is preloaded, and then by a greeting, which says whether a file that was loaded
  has changed since, or whether a package was imported early that must not be;
* ``alive``: answered in kind;
* ``collect``: the request of a run, with the descriptors of the collector's connection and of
  standard error; answered by ``forked`` and, when the collector ends, ``exited``;
* ``learn``: modules that the suite's collection has imported, to import when this process is idle;
* ``release``: end all processes started for this controller; answered when none is left;
* ``status`` and ``stop``: see :mod:`pytest_forkd.commands.main`.

The parent does nothing else: the less it does, the longer it stays clean. If it belongs to a single
run, it ends, with everything that descends from it, when the controller closes its connection, and
also, on Linux, when the controller dies. A kept parent ends when
:class:`~pytest_forkd.parent.kept.keeping.Keeping` says so; if a controller dies, the processes
started for it are ended at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from pytest_forkd.channel.frames import Frame, FrameError, FrameSocket, peer_uid
from pytest_forkd.compat.tracebacks import stack
from pytest_forkd.parent import processes
from pytest_forkd.parent.hygiene import CrashFiles
from pytest_forkd.parent.imports.preloading import Preloaded, Unsafe, learn_more, preload
from pytest_forkd.parent.imports.stamps import Stamps, process_start
from pytest_forkd.parent.imports.starting_anew import start_again, start_anew
from pytest_forkd.parent.kept.entries import Place
from pytest_forkd.parent.kept.keeping import CHECK_INTERVAL, Keeping
from pytest_forkd.parent.plan import Plan
from pytest_forkd.parent.third_party import third_party_packages
from pytest_forkd.parent.worker.collector_fork import collect, leave_parent
from pytest_forkd.runtime import frozen_gc as frozen
from pytest_forkd.runtime.wakeup import Wakeup

__all__ = ["main"]

#: Seconds to wait for a first controller.
_FIRST_CONNECTION_LIMIT = 60.0


def main(argv: list[str]) -> int:
    """Run the parent until its controller leaves, or until it is not kept any longer.

    :param argv: the command line, see ``--help``.
    :returns: the exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m pytest_forkd.parent")
    parser.add_argument("--listen-fd", type=int, required=True, help="a listening unix socket")
    parser.add_argument("--plan-fd", type=int, required=True, help="what to import, as JSON")
    parser.add_argument("--controller", type=int, help="pid of the controller to die with")
    parser.add_argument("--directory", help="where the socket is; removed at the end")
    parser.add_argument("--keep", type=float, default=0.0, help="seconds to stay without use")
    parser.add_argument("--skip", default="{}", help="packages not to import and why, as JSON")
    parser.add_argument("--again", type=int, help="when a parent in use became this one, in ns")
    options = parser.parse_args(argv)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
    if options.controller is not None:
        processes.die_with(options.controller)
    processes.become_subreaper()
    frozen.watch()
    frozen.pause()
    try:
        place = Place(options.directory) if options.directory is not None else None
    except OSError:
        return 0  # its directory has been removed already
    plan = Plan.read(options.plan_fd)
    plan.skip.update(json.loads(options.skip))
    stamps = Stamps(options.again or process_start())
    try:
        preloaded = preload(plan, stamps.recorded if options.keep else contextlib.nullcontext)
    except Unsafe as exc:
        start_anew(argv, plan, exc)
    os.close(options.plan_fd)
    frozen.freeze()
    if options.controller is not None:
        # From here on this process notices when the controller's connection closes. Being killed
        # would leave it no time to end its own descendants.
        processes.die_with(None)
    if options.keep:
        stamps.take()
    keeping = Keeping(place, options.keep, plan.project)
    with socket.socket(fileno=options.listen_fd) as listener:
        if options.keep:
            listener.listen(16)  # so that SO_PEERCRED of a connection names this process
        parent = _Parent(listener, plan, preloaded, stamps, keeping, argv)
        parent.uses = int(options.again is not None)
        return parent.run()


class _Parent:
    def __init__(
        self,
        listener: socket.socket,
        plan: Plan,
        preloaded: Preloaded,
        stamps: Stamps,
        keeping: Keeping,
        argv: list[str],
    ) -> None:
        self.listener = listener
        self.plan = plan
        self.preloaded = preloaded
        self.stamps = stamps
        self.keeping = keeping
        self.argv = argv
        self.keep = keeping.seconds > 0
        self.uses = 0
        #: Why no further run may use this parent.
        self.ending: str | None = None
        self.selector = selectors.DefaultSelector()
        self.connections: list[FrameSocket] = []
        self.controllers: list[FrameSocket] = []
        #: The files that each collector leaves if it dies, by its pid.
        self.left: dict[int, CrashFiles] = {}
        self.collectors: dict[int, FrameSocket] = {}  # pid -> the controller that asked for it
        self.to_learn: list[str] = []
        self.wakeup = Wakeup()

    def run(self) -> int:
        self.listener.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that the wake-up fd is written
        signal.set_wakeup_fd(self.wakeup.signal_fd, warn_on_full_buffer=False)
        if self.keep:
            for signum in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, self.end_on_signal)
            signal.signal(signal.SIGUSR1, self.stop_on_signal)
            self.mark("ready")
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.wakeup, selectors.EVENT_READ, self.reap)
        deadline = time.monotonic() + _FIRST_CONNECTION_LIMIT
        served = False
        try:
            while not self.done(served or time.monotonic() > deadline):
                for key, _mask in self.selector.select(CHECK_INTERVAL if self.keep else 1.0):
                    key.data()
                served = served or bool(self.connections)
        finally:
            self.withdraw()
            processes.kill_children(list(self.collectors))
        return 0

    def done(self, served: bool) -> bool:
        """Whether to end now; imports what is to be learnt if there is nothing else to do."""
        if self.connections:
            return False
        if not self.keep:
            return served
        if self.ending is None:
            self.ending = self.keeping.reason_to_end()
        if self.ending is None and self.to_learn:
            self.learn()
        return self.ending is not None

    def end_on_signal(self, signum: int, frame: object) -> None:
        """Clean up and end at once, even if runs are using this parent."""
        self.withdraw()
        processes.kill_children(list(self.collectors))
        os._exit(128 + signum)

    def stop_on_signal(self, signum: int, frame: object) -> None:
        """End as soon as no run uses this parent: the run that started it has failed."""
        self.stop("the run that it was made for came to nothing")

    def stop(self, reason: str) -> None:
        """Take no further runs, and end with the last run that uses this parent."""
        self.ending = self.ending or reason
        self.withdraw()

    def withdraw(self) -> None:
        """Remove the entry by which runs find this parent."""
        if self.keeping.place is not None:
            self.keeping.place.withdraw()

    def mark(self, state: str) -> None:
        """Tell runs whether this parent answers at once."""
        if self.keeping.place is not None:
            self.keeping.place.mark(state)

    # -- connections ---------------------------------------------------------------------------

    def accept(self) -> None:
        try:
            sock, _address = self.listener.accept()
        except OSError:
            return
        if peer_uid(sock) not in (None, os.getuid()):
            sock.close()
            return
        connection = FrameSocket(sock)
        self.connections.append(connection)
        self.selector.register(connection, selectors.EVENT_READ, lambda: self.read(connection))

    def read(self, connection: FrameSocket) -> None:
        try:
            frames = connection.read_available()
        except FrameError:
            connection.eof, frames = True, []
        with contextlib.suppress(OSError):  # a closed connection shows as eof, below or next time
            for frame in frames:
                self.handle(connection, frame)
        if connection.eof:
            self.selector.unregister(connection)
            self.connections.remove(connection)
            if connection in self.controllers:
                self.controllers.remove(connection)
                self.release(connection)
                self.keeping.used()
            connection.close()

    def handle(self, connection: FrameSocket, frame: Frame) -> None:
        message = frame.message
        if "collect" in message:
            self.fork_collector(connection, frame)
        elif "open" in message:
            connection.send({"alive": True})  # checking every file may take a while
            connection.send(self.open(connection, **message["open"]))
        elif "alive" in message:
            connection.send({"alive": True})
        elif "release" in message:
            self.release(connection)
            connection.send({"released": True})
        elif "learn" in message:
            self.to_learn += message["learn"]
        elif "status" in message:
            connection.send({"status": self.status()})
        elif "stop" in message:
            self.stop("asked to stop")
            connection.send({"stopping": self.status()})

    def open(
        self,
        connection: FrameSocket,
        keep: float,
        most: int,
        skip: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Greet a controller, if it may use this parent."""
        first = self.uses == 0
        if self.keep and not first and self.ending is None:
            changed = self.stamps.changed()
            if changed is not None:
                self.ending = f"{changed} has changed"
        early = self.preloaded.early
        if early and self.ending is None and not early.isdisjoint(skip.keys() - {"*"}):
            self.ending = "it has imported what must not be imported early"
        elif early and self.ending is None and "*" in skip:
            self.ending = "it has imported modules early"
        if self.keep and (self.stamps.doubtful or self.preloaded.failures):
            self.withdraw()
            if first:
                self.keep = False  # only the run that started it may use it
            else:
                self.ending = f"{self.stamps.doubtful} was written while it was loaded"
        hello: dict[str, Any] = {
            "hello": os.getpid(),
            "age": None if first else time.monotonic() - self.keeping.started,
            "preload_failures": self.preloaded.failures,
            "scanned": self.preloaded.scanned,
            "early": bool(self.preloaded.early),
            "skipped": self.plan.skip,
            "stale": self.ending,
            "kept": self.keep,
        }
        if self.ending is not None:
            self.withdraw()
        else:
            self.uses += 1
            self.controllers.append(connection)
            self.keeping.wanted(float(keep), int(most))
        return hello

    def status(self) -> dict[str, Any]:
        """What ``pytest-forkd`` shows of this parent."""
        return {
            "pid": os.getpid(),
            "age": time.monotonic() - self.keeping.started,
            "idle": 0.0 if self.controllers else time.monotonic() - self.keeping.last_use,
            "keep": self.keeping.seconds,
            "runs": len(self.controllers),
            "uses": self.uses,
            "modules": len(sys.modules),
            "packages": third_party_packages(),
            "skipped": self.plan.skip,
            "project": self.plan.project,
        }

    # -- collectors ----------------------------------------------------------------------------

    def fork_collector(self, controller: FrameSocket, frame: Frame) -> None:
        connection, stderr = frame.fds
        parent_pid = os.getpid()
        files = CrashFiles()
        known, tell = os.pipe()
        pid = processes.fork()
        if pid == 0:
            os.close(tell)
            self.become_collector(
                parent_pid, known, connection, stderr, frame.message["collect"], files
            )
        self.left[pid] = files
        for fd in (known, connection, stderr):
            os.close(fd)
        self.collectors[pid] = controller
        try:
            controller.send({"forked": pid})
            os.write(tell, b"x")
        finally:
            os.close(tell)

    def become_collector(
        self,
        parent_pid: int,
        known: int,
        connection: int,
        stderr: int,
        request: dict[str, Any],
        files: CrashFiles,
    ) -> NoReturn:
        """Run the collector in this fresh fork; does not return."""
        status = 70  # EX_SOFTWARE of sysexits.h
        try:
            leave_parent(parent_pid, known)
            ours: list[Any] = [self.selector, self.listener, self.wakeup]
            for each in ours + self.connections:
                each.close()
            os.dup2(stderr, 2)
            os.close(stderr)
            status = collect(connection, request, self.preloaded.environ, files)
        except BaseException as exc:
            sys.stderr.write(f"{stack(exc)}\n")
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def release(self, controller: FrameSocket) -> None:
        """End all processes started for a controller, even orphaned ones."""
        pids = [pid for pid, owner in self.collectors.items() if owner is controller]
        for pid in pids:
            self.collectors.pop(pid)
            self.left.pop(pid).close()
        # Orphans of workers are adopted by their collector, and when that ends, by this process.
        processes.kill_children(pids, spare=self.collectors)

    def reap(self) -> None:
        self.wakeup.take()
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            controller = self.collectors.pop(pid, None)
            files = self.left.pop(pid, None)
            left = files.read() if files is not None else {}
            if files is not None:
                files.close()
            if controller is not None and controller in self.controllers:
                with contextlib.suppress(OSError):
                    controller.send({"exited": pid, "status": status, **left})

    def learn(self) -> None:
        """Import what the last run has imported, while this process is idle."""
        self.mark("learning")
        names, self.to_learn = self.to_learn, []
        frozen.thaw()
        try:
            with self.stamps.recorded():
                learn_more(names, self.plan, self.preloaded)
        except Unsafe as exc:
            processes.kill_children(list(self.collectors))
            self.mark("preloading")
            self.plan.learnt += names
            start_again(self.argv, self.plan, exc, self.listener, self.keeping.seconds)
        frozen.freeze()
        self.stamps.take()
        if self.stamps.doubtful:
            self.ending = f"{self.stamps.doubtful} was written while it was loaded"
        self.mark("ready")
