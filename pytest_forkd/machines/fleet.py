"""The machines of a run: made on the hosts with the fewest, set up, and removed."""

from __future__ import annotations

import abc
import collections
import math
import threading
import time
from typing import Any

from pytest_forkd import __version__
from pytest_forkd.machines.host import Host, KnownMachine, Place
from pytest_forkd.machines.machine import Machine, MachineError
from pytest_forkd.machines.main_loop_calls import Mailbox
from pytest_forkd.machines.working_tree import ProjectSource

__all__ = ["CLOSE_LIMIT", "Fleet"]

#: Seconds for everything that a run has made to be removed at its end.
CLOSE_LIMIT = 20.0


class Fleet(abc.ABC):
    """Manages hosts and machines; a subclass decides what they are used for.

    :param project: the working tree; ``None`` if a subclass handles it.
    """

    #: The command that rebuilds the snapshot.
    rebuild = ""

    def __init__(self, project: ProjectSource | None) -> None:
        self._project = project
        self._mailbox = Mailbox()
        self._hosts: list[Host] = []
        #: Snapshots of machines that have collected, by host.
        self._branches: dict[int, object] = {}
        self._entries: dict[int, KnownMachine] = {}
        #: How many machines have been requested but are not set up yet, by host.
        self._making: collections.Counter[int] = collections.Counter()
        self._level = ""
        self._answered = False
        self._failures = 0
        self._closed = False
        #: Whether machines were still being removed when nobody waited for that any longer.
        self._unfinished = False

    # -- for subclasses ------------------------------------------------------------------------

    @abc.abstractmethod
    def _set_up(self, machine: Machine, hello: dict[str, Any]) -> None:
        """Prepare a guest that has been restored from the snapshot; called in a thread.

        :raises MachineError: if it cannot be used.
        """

    @abc.abstractmethod
    def _is_ready(self, entry: KnownMachine, *, collected: bool) -> None:
        """Called when a machine has been set up."""

    @abc.abstractmethod
    def _said(self, entry: KnownMachine, name: str, value: Any) -> None:
        """Called with each message of a guest that has been set up."""

    @abc.abstractmethod
    def _lost_worker(self, entry: KnownMachine, reason: str, *, blameless: bool) -> None:
        """Called when a machine with a worker is lost."""

    @abc.abstractmethod
    def _could_not_make(self, reason: str, *, collecting: bool = False) -> None:
        """Called when a machine could not be made, or is lost before it has a worker.

        :param collecting: whether it was lost while it collected.
        """

    @abc.abstractmethod
    def _no_hosts(self, reason: str) -> None:
        """Called when there is no host left that could make a machine."""

    @abc.abstractmethod
    def _fail(self, entry: KnownMachine, reason: str) -> None:
        """Called when a machine has shown that no other one would work, either."""

    # -- machines ------------------------------------------------------------------------------

    def _make(self, count: int) -> None:
        """Have machines made, each on the host that has the fewest."""
        shares: collections.Counter[int] = collections.Counter()
        by_id = {id(host): host for host in self._usable_hosts()}
        if not by_id:
            return
        load = collections.Counter({key: self._making[key] for key in by_id})
        load.update(id(e.host) for e in self._entries.values() if e.stage in ("idle", "busy"))
        # Leave a share for hosts that are not ready yet.
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
        if self._level == "collection" and self._answered:
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

        self._mailbox.in_thread(make, lambda places: self._made(host, places, branch), failed)

    def _made(self, host: Host, places: list[Place], branch: object | None) -> None:
        for place in places:
            if host not in self._hosts or self._branches.get(id(host)) is not branch:
                self._mailbox.submit(place.remove)  # the run or its host is gone
                continue
            entry = self._enter(host, place, from_snapshot=branch is None)
            entry.machine.start()

    def _enter(self, host: Host, place: Place, *, from_snapshot: bool) -> KnownMachine:
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
            self._mailbox.post(lambda: self._is_set_up(entry, collected=not from_snapshot))

        def tell(machine: Machine, name: str, value: Any) -> None:
            if name == "fatal":
                self._mailbox.post(lambda: self._fail(entry, value))
            elif name == "lost":
                blameless = not host.alive()
                self._mailbox.post(lambda: self._lost(entry, value, blameless=blameless))
            else:
                self._mailbox.post(lambda: self._said(entry, name, value))

        entry = KnownMachine(host, place, Machine(place.name, place.connect, set_up, tell))
        self._entries[id(entry)] = entry
        return entry

    def _is_set_up(self, entry: KnownMachine, *, collected: bool) -> None:
        if entry.stage == "gone":
            return
        self._making[id(entry.host)] -= 1
        self._is_ready(entry, collected=collected)

    def _lost(self, entry: KnownMachine, reason: str, *, blameless: bool = False) -> None:
        """Handle the loss of a machine.

        :param blameless: whether its host is gone, with all machines there.
        """
        if entry.stage == "gone":
            return
        reason = f"{entry.place.name}: {reason}"
        if blameless:
            self._drop_host(entry.host, reason)
        else:
            self._lose(entry, reason)

    def _lose(self, entry: KnownMachine, reason: str, *, blameless: bool = False) -> None:
        stage = entry.stage
        self._remove(entry)
        if stage == "busy":
            self._lost_worker(entry, reason, blameless=blameless)
        else:
            self._failures += 1
            self._could_not_make(reason, collecting=stage == "collecting")

    def _branching(self) -> bool:
        """Whether a host may still get a branch, at level ``collection``."""
        if self._level != "collection":
            return False
        branched = [id(host) for host in self._hosts if id(host) in self._branches]
        return any(id(entry.host) not in branched for entry in self._entries.values())

    def _drop_host(self, host: Host, reason: str) -> None:
        """Stop using a host: its machines are lost."""
        if host not in self._hosts:
            return
        self._hosts.remove(host)
        self._branches.pop(id(host), None)
        if not self._hosts:
            self._no_hosts(reason)
            return
        for entry in list(self._entries.values()):
            if entry.host is host:
                self._lose(entry, reason, blameless=True)

    def _remove(self, entry: KnownMachine) -> None:
        """Forget a machine, and have it removed in a thread."""
        if entry.stage != "gone":
            if entry.stage == "setup":
                self._making[id(entry.host)] -= 1
            entry.stage = "gone"
            entry.unwatch()
            entry.machine.close()
            del self._entries[id(entry)]
            if not self._closed:
                if entry.host in self._hosts:  # a dropped host may hang; close() cleans up there
                    self._mailbox.submit(entry.place.remove)
                self._mailbox.submit(self._release, entry.machine)

    def _remove_all(self) -> None:
        """Remove every machine, and let the hosts go; waits for that, with a limit."""
        for entry in list(self._entries.values()):
            self._remove(entry)
        self._closed = True
        closer = threading.Thread(target=self._close_hosts, name="forkd-close", daemon=True)
        closer.start()
        closer.join(CLOSE_LIMIT)
        self._unfinished = closer.is_alive()

    def leftovers(self) -> list[str]:
        """See :meth:`pytest_forkd.backends.base.Backend.leftovers`."""
        if not self._unfinished:
            return []
        return [f"machines are still being removed after {CLOSE_LIMIT:g} seconds"]

    def _close_hosts(self) -> None:
        self._mailbox.finish()
        for host in self._all_hosts():
            host.close()

    def _all_hosts(self) -> list[Host]:
        """Every host that was ever used."""
        return self._hosts

    @staticmethod
    def _release(machine: Machine) -> None:
        machine.join(time.monotonic() + CLOSE_LIMIT)
        machine.release()
