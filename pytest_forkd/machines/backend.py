"""The common part of backends whose clones are virtual machines.

Each worker has a machine of its own. The parent in it (:mod:`pytest_forkd.guest`) becomes the
collector, and forks the worker; :class:`~pytest_forkd.machines.machine.Machine` carries its
channel. At warm level ``imports`` all machines are clones of the snapshot, and each collects for
itself. At level ``collection`` one machine collects, a snapshot of it is made (a branch), and the
workers' machines are clones of that. With several hosts, one machine on each host collects.

Machines work in threads. Their messages are queued, and handled in the controller's main loop.
Everything else here runs in the main loop, too, unless it says otherwise.
"""

from __future__ import annotations

import abc
import collections
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from pytest_forkd.backends.base import (
    Backend,
    BackendError,
    Listener,
    RunRequest,
    WorkerEnd,
    describe_exit,
)
from pytest_forkd.channel.event_queue import EventQueue
from pytest_forkd.machines import host as hosts
from pytest_forkd.machines.fleet import Fleet
from pytest_forkd.machines.guest_environment import for_guests
from pytest_forkd.machines.guest_messages import ANSWERS
from pytest_forkd.machines.host import Host, KnownMachine, Place
from pytest_forkd.machines.no_collection import no_collection
from pytest_forkd.machines.working_tree import ProjectSource

__all__ = ["Host", "MachinesBackend", "Place"]

#: How many machines may fail during set-up, in addition to one for each worker.
_SPARE_FAILURES = 3


@dataclass
class _Order:
    """A worker that waits for a machine."""

    worker: str
    message: dict[str, Any]
    channel: socket.socket


class MachinesBackend(Fleet, Backend):
    """The part of a backend that does not depend on how machines are made.

    :param project: the working tree; ``None`` if a subclass handles it.
    """

    can_lock_files = False
    trusted = False
    min_shared_collection_seconds = 1.0

    def __init__(self, project: ProjectSource | None = None) -> None:
        super().__init__(project)
        self._events: EventQueue | None = None
        self._listener: Listener | None = None
        self._request: RunRequest | None = None
        self._orders: collections.deque[_Order] = collections.deque()
        self._answer: dict[str, Any] | None = None
        self._ending = False
        self._dealing = False

    # -- for subclasses ------------------------------------------------------------------------

    @abc.abstractmethod
    def _find_hosts(self) -> list[Host]:
        """The hosts that can be used; waits for them, with a limit.

        :raises BackendError: if there is none.
        """

    def start(self) -> None:
        if self._project is not None:
            self._project.start()

    # -- methods that are about a parent process, which there is none of ------------------------

    def start_collector(self, request: RunRequest) -> None:
        """Do nothing: a guest may need the working tree first."""

    def early_imports(self) -> tuple[list[str], dict[str, str]]:
        return [], {}

    def learn(self, modules: list[str]) -> None:
        """Do nothing: a snapshot cannot be changed."""

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
        self._mailbox.listen(events)
        for entry in list(self._entries.values()):
            self._remove(entry)
        self._making.clear()
        self._branches.clear()
        self._orders.clear()
        self._hosts = self._find_hosts()
        self._level, self._answered, self._answer = request.level, False, None
        self._failures, self._ending = 0, False
        if self._level == "imports":
            self._make(len(request.nodes))
        else:
            for host in self._hosts:
                self._make_at(host, 1)

    def _ask_to_collect(self, entry: KnownMachine) -> None:
        assert self._request is not None
        entry.stage = "collecting"
        self._watch(entry, hosts.COLLECT_LIMIT, "what it has collected")
        entry.machine.post({"collect": for_guests(self._request, self._environ_patterns())})

    def _watch(self, entry: KnownMachine, limit: float, what: str) -> None:
        """Drop a machine that has not said ``what`` within ``limit`` seconds."""
        reason = f"it has not said within {limit:g} seconds {what}"
        entry.watch(limit, self._mailbox.post, lambda: self._lost(entry, reason))

    def _environ_patterns(self) -> list[str]:
        """Patterns of the variables that guests get besides the usual ones."""
        return []

    def _collected(self, entry: KnownMachine, name: str, value: Any) -> None:
        """A collector has answered."""
        entry.unwatch()
        if name == "warm" and value["level"] == "imports":
            entry.stage = "idle"
            self._tell_answer({"warm": value})
            self._deal_soon()
            return
        if name != "warm":
            entry.ended = True
            self._remove(entry)
            if not self._answered:
                # The other machines have the same suite, so do not wait for their answers.
                for other in list(self._entries.values()):
                    self._remove(other)
                self._tell_answer({name: value})
            return
        if self._answer is not None and self._answer["warm"]["ids"] != value["ids"]:
            self._drop_host(entry.host, f"{entry.host.name} found different tests")
            return
        entry.stage = "branching"
        self._mailbox.in_thread(
            lambda: entry.host.branch(entry.place),
            lambda branch: self._branched(entry, branch),
            lambda reason: self._lost(entry, reason),
        )
        self._tell_answer({"warm": value})

    def _branched(self, entry: KnownMachine, branch: object) -> None:
        self._branches[id(entry.host)] = branch
        self._remove(entry)
        self._deal_soon()

    def _tell_answer(self, answer: dict[str, Any]) -> None:
        """Pass the first machine's answer to the session, which must get only one."""
        if not self._answered:
            self._answered = True
            self._answer = answer
            assert self._listener is not None
            self._listener.on_collector_message(answer)

    # -- what becomes of machines ----------------------------------------------------------------

    def _is_ready(self, entry: KnownMachine, *, collected: bool) -> None:
        if collected:
            entry.stage = "idle"
            self._deal_soon()
        else:
            self._ask_to_collect(entry)

    def _said(self, entry: KnownMachine, name: str, value: Any) -> None:
        if entry.stage == "gone":
            return
        if entry.stage == "collecting" and name in ANSWERS:
            self._collected(entry, name, value)
        elif entry.stage == "busy" and name in ("forked", "exit", "fork_failed"):
            self._worker_said(entry, name, value)
        elif name == "over":
            if not entry.ended:
                self._lost(entry, f"the guest's parent has ended with exit code {value}")
        else:
            self._lost(entry, f"it said {name!r}, which nobody had asked for")

    def _lost_worker(self, entry: KnownMachine, reason: str, *, blameless: bool) -> None:
        assert entry.machine.worker is not None
        if not entry.ended:
            end = WorkerEnd(reason, blameless=blameless, abrupt=True)
            self._end_worker(entry.machine.worker, end)

    def _fail(self, entry: KnownMachine, reason: str) -> None:
        """Give up, since this machine has shown that no other one would work, either."""
        if not self._answered and entry.stage != "gone":
            for each in list(self._entries.values()):
                self._remove(each)
            self._tell_answer({"usage_error": [f"pytest-forkd: {reason}"]})
        else:
            self._lost(entry, reason)

    def _could_not_make(self, reason: str, *, collecting: bool = False) -> None:
        assert self._request is not None
        if self._closed or self._ending:
            return
        limit = len(self._request.nodes) + _SPARE_FAILURES
        if not self._answered:
            if self._entries or any(self._making.values()):
                return  # another machine may still answer
            self._tell_answer(self._no_collection(reason, collecting))
        elif not self._usable_hosts() and not self._branching():
            self._no_hosts(reason)
        elif self._failures > limit:
            while self._orders:
                order = self._orders.popleft()
                order.channel.close()
                self._end_worker(order.worker, WorkerEnd(f"it was never made: {reason}"))
        else:
            self._deal_soon()

    def _no_collection(self, reason: str, collecting: bool) -> dict[str, Any]:
        assert self._request is not None
        return no_collection(self._request, self._level, reason, collecting=collecting)

    def _no_hosts(self, reason: str) -> None:
        """No host is left that could make a machine."""
        for order in self._orders:
            order.channel.close()
        self._orders.clear()
        for entry in list(self._entries.values()):
            self._remove(entry)
        if not self._answered:
            self._tell_answer({"usage_error": [f"pytest-forkd: {reason}"]})
        elif not self._ending:
            assert self._listener is not None
            self._listener.on_collector_lost(reason)

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
        """Deal out machines once the messages that are already queued have been handled."""
        if not self._dealing:
            self._dealing = True
            self._mailbox.post(self._deal)

    def _deal(self) -> None:
        """Give idle machines to waiting workers, and make the machines that are missing."""
        self._dealing = False
        idle = [entry for entry in self._entries.values() if entry.stage == "idle"]
        while idle and self._orders:
            self._assign(idle.pop(0), self._orders.popleft())
        underway = sum(self._making.values())
        underway += sum(entry.stage == "collecting" for entry in self._entries.values())
        missing = len(self._orders) - underway
        if missing > 0 and self._usable_hosts():
            self._make(missing)

    def _assign(self, entry: KnownMachine, order: _Order) -> None:
        machine = entry.machine
        entry.stage = "busy"
        self._watch(entry, hosts.FORK_LIMIT, "that its worker exists")
        machine.worker = order.worker
        with order.channel:
            machine.attach(order.channel)
        machine.post({"fork": order.message})

    def _worker_said(self, entry: KnownMachine, name: str, value: dict[str, Any]) -> None:
        worker = entry.machine.worker
        if value["worker"] != worker or entry.ended:
            self._lost(entry, f"it speaks of the worker {value['worker']!r}, which is another's")
            return
        assert worker is not None
        if name == "forked":
            if not entry.unwatch():
                self._lost(entry, "it said 'forked', which nobody had asked for")
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
                value["reason"] or describe_exit(os.waitstatus_to_exitcode(status)),
                clean=status == 0,
                dump=value["dump"],
                out=value["out"],
                err=value["err"],
                importing=value["importing"],
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
            # Remove the machine; the guest may not be able to react any more.
            entry.ended = True
            self._remove(entry)
            self._end_worker(worker, WorkerEnd("signal SIGKILL"))
        else:
            entry.machine.post({"signal": {"worker": worker, "signum": signum}})

    def _entry_of(self, worker: str) -> KnownMachine | None:
        for entry in self._entries.values():
            if entry.machine.worker == worker and entry.stage == "busy":
                return entry
        return None

    # -- the end -------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End collecting by removing the machines, which leaves nothing behind."""
        self._ending = True
        for entry in list(self._entries.values()):
            self._remove(entry)

    def ask_to_end(self) -> None:
        self._ending = True
        while self._orders:
            self._orders.popleft().channel.close()
        for entry in list(self._entries.values()):
            if entry.stage != "busy":
                self._remove(entry)

    def end_run(self, timeout: float) -> None:
        self.ask_to_end()
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
        self._remove_all()
        self._mailbox.close(self._events)
