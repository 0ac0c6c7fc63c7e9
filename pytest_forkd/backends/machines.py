"""Workers in machines: what backends whose clones are virtual machines have in common.

Each worker has a machine of its own. The parent in it (:mod:`pytest_forkd.guest`) becomes the
collector, and forks the worker; :class:`~pytest_forkd.backends.machine.Machine` carries its
channel. At warm level ``imports`` all machines are clones of the snapshot, and each collects for
itself. At level ``collection`` one machine collects, is made a snapshot of (branched), and the
workers' machines are clones of that. Where there are several hosts, one machine on each collects.

Machines work in threads; what they have to say is queued, and handled in the controller's main
loop, as is everything else here unless it says otherwise.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pytest_forkd import __version__
from pytest_forkd.backends.base import Backend, BackendError, Listener, RunRequest, WorkerEnd
from pytest_forkd.backends.guest_request import for_guests
from pytest_forkd.backends.machine import Link, Machine, MachineError
from pytest_forkd.backends.process import describe_exit
from pytest_forkd.backends.project import Project
from pytest_forkd.channel.gateway import EventQueue

__all__ = ["Host", "MachinesBackend", "Place"]

#: Seconds for everything that a run has made to be removed at its end.
_CLOSE_LIMIT = 20.0
#: Seconds for a guest to say that it has forked its worker.
_FORK_LIMIT = 60.0
_SILENT = f"it has not said within {_FORK_LIMIT:g} seconds that its worker exists"
#: Machines that may fail while they are set up, beyond one for each worker.
_SPARE_FAILURES = 3


@dataclass(frozen=True)
class Place:
    """A machine that has been made, and how to reach it.

    :ivar name: for messages to the user.
    :ivar connect: makes the stream to its guest; may wait, and raises MachineError.
    :ivar remove: ends it for good; may wait; never raises.
    """

    name: str
    connect: Callable[[], Link]
    remove: Callable[[], None]


class Host(abc.ABC):
    """Where machines are made. Its methods are called in threads, and may wait.

    :ivar name: for messages to the user.
    """

    name: str

    @abc.abstractmethod
    def make(self, count: int, branch: object | None) -> list[Place]:
        """Make machines: clones of the snapshot, or of a branch.

        :raises MachineError: if that is impossible.
        """

    @abc.abstractmethod
    def branch(self, place: Place) -> object:
        """Make a snapshot of a machine, which nobody uses any more afterwards.

        :returns: what :meth:`make` takes.
        :raises MachineError: if that is impossible.
        """

    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether machines can still be made here."""

    @abc.abstractmethod
    def close(self) -> None:
        """Remove what is left of the run, branches included; never raises."""


@dataclass
class _Order:
    """A worker that is to have a machine."""

    worker: str
    message: dict[str, Any]
    channel: socket.socket


class _Entry:
    """What the backend knows of a machine."""

    def __init__(self, host: Host, place: Place, machine: Machine) -> None:
        self.host = host
        self.place = place
        self.machine = machine
        #: ``setup``, ``collecting``, ``idle``, ``busy`` or ``gone``.
        self.stage = "setup"
        self.ended = False
        self._timer: threading.Timer | None = None

    def watch(self, post: Callable[[Callable[[], None]], None], late: Callable[[], None]) -> None:
        """Have ``late`` called in the main loop if the worker is not forked in time."""
        self._timer = threading.Timer(_FORK_LIMIT, post, (late,))
        self._timer.daemon = True
        self._timer.start()

    def unwatch(self) -> None:
        """There is nothing to be late with any more."""
        if self._timer is not None:
            self._timer.cancel()


class MachinesBackend(Backend):
    """The part that does not depend on what makes the machines.

    :param project: the working tree; ``None`` if a subclass sees to it.
    """

    #: The command that makes the snapshot anew.
    rebuild = ""

    shares_files = False
    trusted = False
    worth_sharing = 1.0

    def __init__(self, project: Project | None = None) -> None:
        self._project = project
        self._events: EventQueue | None = None
        self._listener: Listener | None = None
        self._request: RunRequest | None = None
        self._hosts: list[Host] = []
        self._branches: dict[int, object] = {}
        self._entries: dict[int, _Entry] = {}
        self._orders: collections.deque[_Order] = collections.deque()
        #: How many machines have been asked for and not been set up, by host.
        self._making: collections.Counter[int] = collections.Counter()
        self._level = ""
        #: ``asked``, ``answered``; then orders are taken.
        self._stage = ""
        self._answer: dict[str, Any] | None = None
        self._failures = 0
        self._ending = False
        self._dealing = False
        self._closed = False
        self._mail: collections.deque[Callable[[], None]] = collections.deque()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._pool = ThreadPoolExecutor(32, "forkd-machines")

    # -- for subclasses ------------------------------------------------------------------------

    @abc.abstractmethod
    def _find_hosts(self) -> list[Host]:
        """The hosts that can be used; waits for them, with a limit.

        :raises BackendError: if there is none.
        """

    @abc.abstractmethod
    def _set_up(self, machine: Machine, hello: dict[str, Any]) -> None:
        """Prepare a guest that has been restored from the snapshot; in a thread.

        :raises MachineError: if it is of no use.
        """

    def start(self) -> None:
        if self._project is not None:
            self._project.start()

    # -- what has no parent process to tell of -------------------------------------------------

    def start_collector(self, request: RunRequest) -> None:
        """Nothing: a guest may have to get the working tree first."""

    def early_imports(self) -> tuple[list[str], dict[str, str]]:
        return [], {}

    def learn(self, modules: list[str]) -> None:
        """Nothing: a snapshot does not learn."""

    def rinfo(self) -> dict[str, Any]:
        return {
            "executable": sys.executable,
            "version_info": tuple(sys.version_info),
            "platform": sys.platform,
            "cwd": os.getcwd(),
            "pid": None,
        }

    # -- the collection ------------------------------------------------------------------------

    def begin(self, request: RunRequest, events: EventQueue, listener: Listener) -> None:
        self._events, self._listener, self._request = events, listener, request
        events.unregister(self._wake)
        events.register(self._wake, self._read_mail)
        for entry in list(self._entries.values()):
            self._remove(entry)
        self._making.clear()
        self._branches.clear()
        self._orders.clear()
        self._hosts = self._find_hosts()
        self._level, self._stage, self._answer = request.level, "asked", None
        self._failures, self._ending = 0, False
        if self._level == "imports":
            self._make(len(request.nodes))
        else:
            for host in self._hosts:
                self._make_at(host, 1)

    def _ask_to_collect(self, entry: _Entry) -> None:
        assert self._request is not None
        entry.stage = "collecting"
        entry.machine.post({"collect": for_guests(self._request, self._environ_patterns())})

    def _environ_patterns(self) -> list[str]:
        """Patterns of the variables that guests get besides the usual ones."""
        return []

    def _collected(self, entry: _Entry, name: str, value: Any) -> None:
        """A collector has answered."""
        if name == "warm" and value["level"] == "imports":
            entry.stage = "idle"
            self._tell_answer({"warm": value})
            self._deal_soon()
            return
        if name != "warm":
            entry.ended = True
            self._remove(entry)
            if self._stage == "asked":
                # The others are not waited for: they have the same suite.
                for other in list(self._entries.values()):
                    self._remove(other)
                self._tell_answer({name: value})
            return
        if self._answer is not None and self._answer["warm"]["ids"] != value["ids"]:
            self._drop_host(entry.host, f"{entry.host.name} found different tests")
            return
        entry.stage = "branching"
        self._in_thread(
            lambda: entry.host.branch(entry.place),
            lambda branch: self._branched(entry, branch),
            lambda reason: self._lost(entry, reason),
        )
        self._tell_answer({"warm": value})

    def _branched(self, entry: _Entry, branch: object) -> None:
        self._branches[id(entry.host)] = branch
        self._remove(entry)
        self._deal_soon()

    def _tell_answer(self, answer: dict[str, Any]) -> None:
        """The session gets one answer to what it asked for, whoever has it first."""
        if self._stage == "asked":
            self._stage = "answered"
            self._answer = answer
            assert self._listener is not None
            self._listener.on_collector_message(answer)

    # -- machines ------------------------------------------------------------------------------

    def _make(self, count: int) -> None:
        """Have machines made, dealt over the hosts that have fewest."""
        shares: collections.Counter[int] = collections.Counter()
        by_id = {id(host): host for host in self._usable_hosts()}
        if not by_id:
            return
        load = collections.Counter({key: self._making[key] for key in by_id})
        load.update(id(e.host) for e in self._entries.values() if e.stage in ("idle", "busy"))
        # A host that is not ready yet is to get its share, too.
        most = math.ceil((sum(load.values()) + count) / len(self._hosts))
        for _ in range(count):
            key = min(by_id, key=lambda each: load[each])
            if load[key] >= most and self._branching():
                break  # see _branched()
            load[key] += 1
            shares[key] += 1
        for key, share in shares.items():
            self._make_at(by_id[key], share)

    def _usable_hosts(self) -> list[Host]:
        if self._level == "collection" and self._stage == "answered":
            return [host for host in self._hosts if id(host) in self._branches]
        return self._hosts

    def _make_at(self, host: Host, count: int) -> None:
        branch = self._branches.get(id(host))
        self._making[id(host)] += count

        def failed(reason: str) -> None:
            self._making[id(host)] -= count
            self._failures += count
            if not host_is_up:
                self._drop_host(host, reason)
            self._could_not_make(reason)

        host_is_up = True

        def make() -> list[Place]:
            nonlocal host_is_up
            try:
                return host.make(count, branch)
            except MachineError:
                host_is_up = host.alive()
                raise

        self._in_thread(make, lambda places: self._made(host, places, branch), failed)

    def _made(self, host: Host, places: list[Place], branch: object | None) -> None:
        for place in places:
            if host not in self._hosts or self._branches.get(id(host)) is not branch:
                self._pool.submit(place.remove)  # of a run, or a host, that is over
                continue
            entry = self._enter(host, place, from_snapshot=branch is None)
            entry.machine.start()

    def _enter(self, host: Host, place: Place, *, from_snapshot: bool) -> _Entry:
        def set_up(machine: Machine) -> None:
            hello = machine.restore()
            if from_snapshot:
                if hello["state"] != "rest":
                    raise MachineError(f"its parent is not at rest, but {hello['state']!r}")
                if hello["version"] != __version__:
                    raise MachineError(
                        f"the snapshot has pytest-forkd {hello['version']}, this is "
                        f"{__version__}.\nBuild it anew: {self.rebuild}",
                        fatal=True,
                    )
                self._set_up(machine, hello)
                if self._project is not None:
                    self._project.send(machine, host.name, self.rebuild)
            elif hello["state"] != "collected":
                raise MachineError("it has not collected")
            self._post(lambda: self._is_set_up(entry, collected=not from_snapshot))

        def tell(machine: Machine, name: str, value: Any) -> None:
            if name == "fatal":
                self._post(lambda: self._fail(entry, value))
            elif name == "lost":
                blameless = not host.alive()
                self._post(lambda: self._lost(entry, value, blameless=blameless))
            else:
                self._post(lambda: self._said(entry, name, value))

        entry = _Entry(host, place, Machine(place.name, place.connect, set_up, tell))
        self._entries[id(entry)] = entry
        return entry

    def _is_set_up(self, entry: _Entry, *, collected: bool) -> None:
        if entry.stage == "gone":
            return
        self._making[id(entry.host)] -= 1
        if collected:
            entry.stage = "idle"
            self._deal_soon()
        else:
            self._ask_to_collect(entry)

    def _said(self, entry: _Entry, name: str, value: Any) -> None:
        if entry.stage == "gone":
            return
        if entry.stage == "collecting" and name in ("warm", "unsuitable", "ended", "usage_error"):
            self._collected(entry, name, value)
        elif entry.stage == "busy" and name in ("forked", "exit", "fork_failed"):
            self._worker_said(entry, name, value)
        elif name == "over":
            if not entry.ended:
                self._lost(entry, f"the guest's parent has ended with exit code {value}")
        else:
            self._lost(entry, f"it said {name!r}, which nobody had asked for")

    def _lost(self, entry: _Entry, reason: str, *, blameless: bool = False) -> None:
        """A machine is of no use any more.

        :param blameless: its host is gone, and all that was there.
        """
        if entry.stage == "gone":
            return
        reason = f"{entry.place.name}: {reason}"
        if blameless:
            self._drop_host(entry.host, reason)
        else:
            self._lose(entry, reason)

    def _lose(self, entry: _Entry, reason: str, *, blameless: bool = False) -> None:
        stage, worker = entry.stage, entry.machine.worker
        self._remove(entry)
        if stage == "busy":
            assert worker is not None
            if not entry.ended:
                self._end_worker(worker, WorkerEnd(reason, blameless=blameless, abrupt=True))
        else:
            self._failures += 1
            self._could_not_make(reason)

    def _fail(self, entry: _Entry, reason: str) -> None:
        """No machine can be of use."""
        if self._stage == "asked" and entry.stage != "gone":
            for each in list(self._entries.values()):
                self._remove(each)
            self._tell_answer({"usage_error": [f"pytest-forkd: {reason}"]})
        else:
            self._lost(entry, reason)

    def _could_not_make(self, reason: str) -> None:
        """A machine that was to be had is not."""
        assert self._request is not None
        if self._closed or self._ending:
            return
        limit = len(self._request.nodes) + _SPARE_FAILURES
        if self._stage == "asked":
            if self._entries or any(self._making.values()):
                return  # another one may still answer
            self._tell_answer({"usage_error": [f"pytest-forkd: {reason}"]})
        elif not self._usable_hosts() and not self._branching():
            self._give_up(reason)
        elif self._failures > limit:
            while self._orders:
                order = self._orders.popleft()
                order.channel.close()
                self._end_worker(order.worker, WorkerEnd(f"it was never made: {reason}"))
        else:
            self._deal_soon()

    def _branching(self) -> bool:
        """Whether a host may still come to have a branch, at level ``collection``."""
        if self._level != "collection":
            return False
        branched = [id(host) for host in self._hosts if id(host) in self._branches]
        return any(id(entry.host) not in branched for entry in self._entries.values())

    def _give_up(self, reason: str) -> None:
        """No host is left that could make a machine."""
        for order in self._orders:
            order.channel.close()
        self._orders.clear()
        for entry in list(self._entries.values()):
            self._remove(entry)
        if self._stage == "asked":
            self._tell_answer({"usage_error": [f"pytest-forkd: {reason}"]})
        elif not self._ending:
            assert self._listener is not None
            self._listener.on_collector_lost(reason)

    def _drop_host(self, host: Host, reason: str) -> None:
        """Do without a host: its machines are lost."""
        if host not in self._hosts:
            return
        self._hosts.remove(host)
        self._branches.pop(id(host), None)
        if not self._hosts:
            self._give_up(reason)
            return
        for entry in list(self._entries.values()):
            if entry.host is host:
                self._lose(entry, reason, blameless=True)

    def _remove(self, entry: _Entry) -> None:
        """Let go of a machine and have it removed."""
        if entry.stage != "gone":
            if entry.stage == "setup":
                self._making[id(entry.host)] -= 1
            entry.stage = "gone"
            entry.unwatch()
            entry.machine.close()
            del self._entries[id(entry)]
            if not self._closed:
                self._pool.submit(entry.place.remove)
                self._pool.submit(self._release, entry.machine)

    @staticmethod
    def _release(machine: Machine) -> None:
        machine.join(time.monotonic() + _CLOSE_LIMIT)
        machine.release()

    # -- workers -------------------------------------------------------------------------------

    def spawn(
        self,
        worker: str,
        workerinput: str,
        basetemp: str | None,
        channel: socket.socket,
        claims_fd: int,
    ) -> None:
        if not self._hosts:
            raise BackendError("there is no host left to make a machine on")
        message = {"worker": worker, "workerinput": workerinput, "basetemp": basetemp}
        self._orders.append(_Order(worker, message, channel.dup()))
        self._deal_soon()

    def _deal_soon(self) -> None:
        """Deal once everything that is being said at the moment has been said."""
        if not self._dealing:
            self._dealing = True
            self._post(self._deal)

    def _deal(self) -> None:
        """Give machines to those who wait for one, and have made what is missing."""
        self._dealing = False
        idle = [entry for entry in self._entries.values() if entry.stage == "idle"]
        while idle and self._orders:
            self._assign(idle.pop(0), self._orders.popleft())
        underway = sum(self._making.values())
        underway += sum(entry.stage == "collecting" for entry in self._entries.values())
        missing = len(self._orders) - underway
        if missing > 0 and self._usable_hosts():
            self._make(missing)

    def _assign(self, entry: _Entry, order: _Order) -> None:
        machine = entry.machine
        entry.stage = "busy"
        entry.watch(self._post, lambda: self._lost(entry, _SILENT))
        machine.worker = order.worker
        with order.channel:
            machine.attach(order.channel)
        machine.post({"fork": order.message})

    def _worker_said(self, entry: _Entry, name: str, value: dict[str, Any]) -> None:
        worker = entry.machine.worker
        if value["worker"] != worker or entry.ended:
            self._lost(entry, f"it speaks of the worker {value['worker']!r}, which is another's")
            return
        assert worker is not None
        if name == "forked":
            entry.unwatch()
            return
        entry.ended = True
        self._remove(entry)
        if name == "fork_failed":
            self._end_worker(worker, WorkerEnd(f"fork failed: {value['error']}"))
            return
        status = value["status"]
        self._end_worker(
            worker,
            WorkerEnd(
                describe_exit(os.waitstatus_to_exitcode(status)),
                clean=status == 0,
                dump=value["dump"],
                out=value["out"],
                err=value["err"],
            ),
        )

    def _end_worker(self, worker: str, end: WorkerEnd) -> None:
        assert self._listener is not None
        self._listener.on_worker_exit(worker, end)

    def signal(self, worker: str, signum: int) -> None:
        entry = self._entry_of(worker)
        if entry is None:
            for order in [order for order in self._orders if order.worker == worker]:
                self._orders.remove(order)
                order.channel.close()
                self._end_worker(worker, WorkerEnd("it was not wanted any more"))
        elif signum == signal.SIGKILL:
            # The guest is not asked whether it would like to.
            entry.ended = True
            self._remove(entry)
            self._end_worker(worker, WorkerEnd("signal SIGKILL"))
        else:
            entry.machine.post({"signal": {"worker": worker, "signum": signum}})

    def _entry_of(self, worker: str) -> _Entry | None:
        for entry in self._entries.values():
            if entry.machine.worker == worker and entry.stage == "busy":
                return entry
        return None

    # -- the end -------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End what collects; with its machine goes all that it could leave behind."""
        self._ending = True
        for entry in list(self._entries.values()):
            self._remove(entry)

    def end_run(self, timeout: float) -> None:
        self._ending = True
        while self._orders:
            self._orders.popleft().channel.close()
        for entry in list(self._entries.values()):
            if entry.stage != "busy":
                self._remove(entry)
        deadline = time.monotonic() + timeout
        assert self._events is not None
        while self._entries and time.monotonic() < deadline:
            self._events.poll(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        if self._closed:
            return
        for order in self._orders:
            order.channel.close()
        self._orders.clear()
        entries = list(self._entries.values())
        for entry in entries:
            self._remove(entry)
        self._closed = True
        if self._events is not None:
            self._events.unregister(self._wake)
        closer = threading.Thread(target=self._close_hosts, name="forkd-close", daemon=True)
        closer.start()
        closer.join(_CLOSE_LIMIT)
        self._wake.close()
        self._waker.close()

    def _close_hosts(self) -> None:
        self._pool.shutdown(wait=True)
        for host in self._all_hosts():
            host.close()

    def _all_hosts(self) -> list[Host]:
        """Every host that was ever used."""
        return self._hosts

    # -- threads -------------------------------------------------------------------------------

    def _post(self, call: Callable[[], None]) -> None:
        """Have something called in the main loop; from any thread."""
        self._mail.append(call)
        with contextlib.suppress(OSError):
            self._waker.send(b"!")

    def _read_mail(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass
        for _ in range(len(self._mail)):
            self._mail.popleft()()

    def _in_thread(
        self,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        failed: Callable[[str], None],
    ) -> None:
        def run() -> None:
            try:
                result = work()
            except MachineError as exc:
                reason = str(exc)
            except Exception as exc:
                reason = f"{type(exc).__name__}: {exc}"
            else:
                self._post(lambda: done(result))
                return
            self._post(lambda: failed(reason))

        self._pool.submit(run)
