"""Workers in microVMs that forkd daemons restore from a snapshot."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_forkd.backends.base import BackendError, Listener, RunRequest
from pytest_forkd.channel.exec_stream import ExecStream, StreamError, open_way
from pytest_forkd.forkd.errors import (
    Busy,
    ForkdError,
    NoSuchSandbox,
    RequestFailed,
    Unreachable,
)
from pytest_forkd.machines.backend import Host, MachinesBackend, Place
from pytest_forkd.machines.machine import Link, Machine, MachineError
from pytest_forkd.machines.working_tree import ProjectSource, SyncSettings

if TYPE_CHECKING:
    from pytest_forkd.channel.event_queue import EventQueue
    from pytest_forkd.forkd.client import Client, Sandbox
    from pytest_forkd.forkd.ledger import Ledger

__all__ = ["ForkdBackend", "ForkdSettings"]

#: Seconds for the agent of a machine that has just been restored to answer.
_PING_LIMIT = 30.0
_PING_INTERVAL = 0.02
#: Seconds for a daemon that does not answer to come back: it may be restarting.
_UNREACHABLE_LIMIT = 6.0
#: Seconds for a daemon that has too many branches in progress to accept another.
_BRANCH_PATIENCE = 60.0
_BRANCH_INTERVAL = 0.5


@dataclass(frozen=True)
class ForkdSettings:
    """Where machines come from, and what they are like.

    :ivar urls: URLs of the daemons.
    :ivar token: returns the token.
    :ivar token_file: the file with the token, if it is in a file.
    :ivar ca: a file with the certificates to trust.
    :ivar tag: the tag of the snapshot.
    :ivar netns: whether each machine gets a network namespace of its own.
    :ivar memory: MiB that the host grants a machine; ``None`` for the snapshot's own size.
    :ivar environ: patterns of the variables that guests get besides the usual ones.
    """

    urls: tuple[str, ...]
    tag: str
    token: Callable[[], str | None]
    token_file: str | None = None
    ca: str | None = None
    netns: bool = True
    memory: int | None = None
    environ: tuple[str, ...] = ()


class Daemon(Host):
    """One daemon.

    :param client: a client for it.
    :param settings: what to ask it for.
    :param ledger: returns the ledger, which records what is made and deletes it at the end.
    """

    def __init__(
        self, client: Client, settings: ForkdSettings, ledger: Callable[[], Ledger]
    ) -> None:
        self.name = client.url
        self.client = client
        self._settings = settings
        #: Held while spawning: concurrent requests for one tag would race inside the daemon.
        self._spawning = threading.Lock()
        self._ledger = ledger
        self._sandbox_of: dict[str, Sandbox] = {}
        #: Whether a branch can be made without pausing the machine; found out by trying.
        self._live = True
        self._closed = False

    def check(self) -> None:
        """Make sure that the daemon answers and has the snapshot.

        :raises ForkdError: if not.
        """
        self.client.health()
        self.client.version()
        self.client.snapshot_info(self._settings.tag)

    def alive(self) -> bool:
        try:
            self.client.health()
        except ForkdError:
            return False
        return True

    def make(self, count: int, branch: object | None) -> list[Place]:
        tag = self._settings.tag if branch is None else str(branch)
        try:
            with self._spawning:
                if self._closed:
                    raise MachineError("the run has ended")
                sandboxes = self._spawn(tag, count)
                self._write_down(sandboxes)
        except ForkdError as exc:
            raise MachineError(str(exc)) from exc
        generation = 1 if branch is None else 2
        return [self._place(each, generation) for each in sandboxes]

    def _write_down(self, sandboxes: list[Sandbox]) -> None:
        try:
            self._ledger().add_sandboxes(self.name, [each.id for each in sandboxes])
        except ForkdError:
            for each in sandboxes:
                with contextlib.suppress(ForkdError):
                    self.client.delete_sandbox(each.id)
            raise

    def _spawn(self, tag: str, count: int) -> list[Sandbox]:
        netns, memory = self._settings.netns, self._settings.memory
        if self._live and tag == self._settings.tag:
            try:
                return self.client.spawn(tag, count, netns, memory, live_fork=True)
            except RequestFailed as exc:
                if exc.status != 400:
                    raise
                self._live = False  # for example a chained snapshot; branches then take longer
        return self.client.spawn(tag, count, netns, memory)

    def _place(self, sandbox: Sandbox, generation: int) -> Place:
        name = f"sandbox {sandbox.id} at {self.name}"
        self._sandbox_of[name] = sandbox
        return Place(
            name,
            lambda: self._connect(sandbox.id, generation),
            lambda: self._delete(sandbox.id),
        )

    def _connect(self, sandbox: str, generation: int) -> Link:
        """The stream to a guest, once its agent answers."""
        deadline = time.monotonic() + _PING_LIMIT
        while True:
            try:
                answer = self.client.ping(sandbox)
                break
            except (NoSuchSandbox, Unreachable) as exc:
                raise MachineError(str(exc)) from exc
            except ForkdError as exc:
                if time.monotonic() > deadline:
                    raise MachineError(
                        f"its agent has not answered within {_PING_LIMIT:g} seconds: {exc}"
                    ) from exc
                time.sleep(_PING_INTERVAL)
        if answer.get("warmup_ready") is False:
            raise MachineError(
                "its parent is not ready: the snapshot has no FORKD_WARMUP_CMD, or it fails.\n"
                "Build the snapshot anew: pytest-forkd snapshot build"
            )

        patience = _Patience(sandbox, self.alive)

        def evaluate(code: str, timeout: float) -> Any:
            with patience():
                return self.client.eval(sandbox, code, timeout)

        def execute(args: list[str], timeout: float) -> Any:
            with patience():
                return self.client.exec(sandbox, args, int(timeout))

        try:
            return ExecStream(open_way(evaluate, execute), generation)
        except StreamError as exc:
            raise MachineError(str(exc)) from exc

    def branch(self, place: Place) -> object:
        sandbox = self._sandbox_of[place.name]
        try:
            tag = self._ledger().add_branch(self.name)
        except ForkdError as exc:
            raise MachineError(f"cannot branch: {exc}") from exc
        deadline = time.monotonic() + _BRANCH_PATIENCE
        modes = ["live", "diff", "full"] if self._live else ["diff", "full"]
        while True:
            try:
                self.client.branch(sandbox.id, tag, modes[0])
            except Busy as exc:
                if time.monotonic() > deadline:
                    raise MachineError(f"cannot branch: {exc}") from exc
                time.sleep(_BRANCH_INTERVAL)
            except RequestFailed as exc:
                if len(modes) == 1 or exc.status not in (400, 409, 500, 501):
                    raise MachineError(f"cannot branch: {exc}") from exc
                del modes[0]
            except ForkdError as exc:
                raise MachineError(f"cannot branch: {exc}") from exc
            else:
                return tag

    def _delete(self, sandbox: str) -> None:
        # If deleting fails, the sandbox stays in the ledger.
        with contextlib.suppress(ForkdError):
            self.client.delete_sandbox(sandbox)
            self._ledger().forget_sandbox(self.name, sandbox)

    def close(self) -> None:
        with self._spawning:
            self._closed = True


class _Patience:
    """Decides when to stop retrying requests to a sandbox; a few may get lost.

    :param sandbox: its id.
    :param alive: returns whether its daemon answers at all.
    """

    def __init__(self, sandbox: str, alive: Callable[[], bool]) -> None:
        self._sandbox = sandbox
        self._alive = alive
        self._lock = threading.Lock()
        self._since: float | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Use this around each request to the sandbox; raises StreamError to end its stream."""
        start = time.monotonic()
        try:
            yield
        except NoSuchSandbox as exc:
            raise StreamError(f"the daemon has ended sandbox {self._sandbox}: {exc}") from exc
        except Unreachable as exc:
            now = time.monotonic()
            with self._lock:
                self._since = since = self._since or now
            late = now - start > _UNREACHABLE_LIMIT and not self._alive()
            if late or now - since > _UNREACHABLE_LIMIT:
                raise StreamError(str(exc)) from exc
            raise
        else:
            self._since = None


class ForkdBackend(MachinesBackend):
    """The ``forkd`` backend.

    :param settings: where machines come from.
    :param sync: which part of the working tree they get.
    """

    name = "forkd"
    rebuild = "pytest-forkd snapshot build"

    def __init__(self, settings: ForkdSettings, sync: SyncSettings) -> None:
        super().__init__(ProjectSource(sync))
        self._settings = settings
        self._daemons: list[Daemon] = []
        self._token: str | None = None
        self._ledger: Ledger | None = None
        self._left: list[str] = []
        self._problems: dict[str, ForkdError] = {}
        self._checks: list[threading.Thread] = []

    def start(self) -> None:
        try:
            from pytest_forkd.forkd.client import Client
        except ModuleNotFoundError as exc:
            raise BackendError(
                f"--forkd-backend=forkd needs {exc.name}, which is not installed.\n"
                "Install it with: pip install 'pytest-forkd[forkd]'"
            ) from exc
        try:
            self._token = self._settings.token()
            for url in self._settings.urls:
                client = Client(url, self._token, self._settings.ca)
                self._daemons.append(Daemon(client, self._settings, self._open_ledger))
        except ForkdError as exc:
            raise BackendError(str(exc)) from exc
        super().start()
        for daemon in self._daemons:
            thread = threading.Thread(target=self._check, args=(daemon,), daemon=True)
            thread.start()
            self._checks.append(thread)

    def _open_ledger(self) -> Ledger:
        assert self._ledger is not None
        return self._ledger

    def begin(self, request: RunRequest, events: EventQueue, listener: Listener) -> None:
        if self._ledger is None:
            from pytest_forkd.forkd.ledger import Ledger

            try:
                self._ledger = Ledger(self._settings.token_file, self._settings.ca)
            except ForkdError as exc:
                raise BackendError(str(exc)) from exc
        super().begin(request, events, listener)

    def _close_hosts(self) -> None:
        super()._close_hosts()
        if self._ledger is not None:
            from pytest_forkd.forkd.client import Client

            outcome = self._ledger.close(lambda url: Client(url, self._token, self._settings.ca))
            self._left += outcome.errors
        for daemon in self._daemons:
            daemon.client.close()

    def _check(self, daemon: Daemon) -> None:
        try:
            daemon.check()
        except ForkdError as exc:
            self._problems[daemon.name] = exc
        else:
            self._problems.pop(daemon.name, None)

    def _find_hosts(self) -> list[Host]:
        for thread in self._checks or [
            threading.Thread(target=self._check, args=(daemon,)) for daemon in self._daemons
        ]:
            if thread.ident is None:
                thread.start()
            thread.join()
        self._checks = []
        usable: list[Host] = [each for each in self._daemons if each.name not in self._problems]
        if not usable:
            raise BackendError("\n".join(str(exc) for exc in self._problems.values()))
        return usable

    def describe_parent(self) -> str:
        count = len(self._daemons)
        where = self._daemons[0].name if count == 1 else f"{count} daemons"
        line = f"snapshot {self._settings.tag} at {where}"
        if self._problems:
            line += f"; without {', '.join(sorted(self._problems))}"
        return line

    def _environ_patterns(self) -> list[str]:
        return list(self._settings.environ)

    def _set_up(self, machine: Machine, hello: dict[str, Any]) -> None:
        failures = hello["preload_failures"]
        if failures:
            name, why = next(iter(failures.items()))
            raise MachineError(
                f"the snapshot's parent could not import {name!r}: {why}\n"
                "Correct its list of modules and build it anew: pytest-forkd snapshot build",
                fatal=True,
            )

    def leftovers(self) -> list[str]:
        unfinished = [
            f"{line}; what is left then, 'pytest-forkd prune' deletes"
            for line in super().leftovers()
        ]
        return unfinished + [
            f"sandboxes are left: {line}\n'pytest-forkd prune' deletes them later"
            for line in self._left
        ]

    def _all_hosts(self) -> list[Host]:
        return list(self._daemons)
