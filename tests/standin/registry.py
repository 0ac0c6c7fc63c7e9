"""What the stand-in has: snapshots and sandboxes, and what can be done with them."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.standin.machines import Machine, Machines, NotClonable

__all__ = ["Refusal", "Registry"]

VERSION = "0.5.3"
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_CHILDREN, _MAX_BOOT_WAIT, _MAX_BRANCHES = 1000, 60, 4
#: Seconds for a connection to an agent and for its answers.
_CONNECT_LIMIT, _PING_LIMIT, _EXEC_GRACE = 2.0, 3.0, 2.0


class Refusal(Exception):
    """A request that is not granted.

    :ivar status: the HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class _Snapshot:
    tag: str
    machine: Machine
    created: int
    parent: str | None = None
    branched_from: str | None = None
    pause_ms: int | None = None
    status: str = "ready"
    damage: str | None = None
    spawning: threading.Lock = field(default_factory=threading.Lock)

    def to_json(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "tag": self.tag,
            "dir": str(self.machine.directory),
            "created_at_unix": self.created,
            "status": self.status,
            "bootable": self.damage is None,
        }
        if self.damage is not None:
            info["warning"] = f"snapshot is not bootable: {self.damage}"
        if self.branched_from is not None:
            info |= {"branched_from": self.branched_from, "pause_ms": self.pause_ms}
        return info


@dataclass
class _Sandbox:
    id: str
    machine: Machine
    tag: str
    netns: int | None
    created: int
    memory: int | None
    live: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "snapshot_tag": self.tag,
            "netns": None if self.netns is None else f"forkd-child-{self.netns}",
            "guest_addr": "10.42.0.2:8888",
            "created_at_unix": self.created,
            "pid": self.machine.pids[0],
            "memory_limit_mib": self.memory,
            "has_branched": False,
            "branch_count": 0,
        }


class Registry:
    """Snapshots and sandboxes; may be used from several threads.

    :param machines: who makes and ends guests.
    :param namespaces: how many network namespaces the operator has made.
    :param branch_secs: how long a branch takes at least.
    :param eval_limit: seconds for an expression; 30 as forkd has it.
    """

    def __init__(
        self, machines: Machines, namespaces: int, branch_secs: float, eval_limit: float
    ) -> None:
        self.machines = machines
        self.namespaces = namespaces
        self.branch_secs = branch_secs
        self.eval_limit = eval_limit
        self._snapshots: dict[str, _Snapshot] = {}
        self._sandboxes: dict[str, _Sandbox] = {}
        self._branching: set[str] = set()
        self._numbers = itertools.count()
        self._lock = threading.RLock()

    # -- the daemon ----------------------------------------------------------------------------

    def version(self, _query: Any) -> Any:
        return {"version": VERSION, "api": "v1"}

    def metrics(self, _query: Any) -> Any:
        return 200, (
            f"forkd_snapshots_total {len(self._snapshots)}\n"
            f"forkd_sandboxes_active {len(self._sandboxes)}\n"
        )

    # -- snapshots -----------------------------------------------------------------------------

    def create_snapshot(self, request: Any) -> Any:
        tag = _checked_tag(request["tag"])
        for name in ("kernel", "rootfs"):
            if not os.path.isfile(request[name]):
                raise Refusal(400, f"{name} not found: {request[name]}")
        wait = int(request.get("boot_wait_secs", 10))
        if wait > _MAX_BOOT_WAIT:
            raise Refusal(400, f"boot_wait_secs must be <= {_MAX_BOOT_WAIT}")
        if tag in self._snapshots:
            raise Refusal(400, f"snapshot {tag} already exists")
        with open(request["rootfs"], encoding="utf-8") as file:
            description = json.load(file)
        try:
            machine = self.machines.boot(
                description.get("recipe", {}), description.get("own", {}), wait
            )
        except NotClonable as exc:
            raise Refusal(500, f"snapshot: {exc}") from exc
        snapshot = _Snapshot(tag, machine, int(time.time()))
        with self._lock:
            self._snapshots[tag] = snapshot
        return 201, snapshot.to_json()

    def list_snapshots(self, _query: Any) -> Any:
        with self._lock:
            return [each.to_json() for each in self._snapshots.values()]

    def snapshot_info(self, tag: str, _query: Any) -> Any:
        with self._lock:
            snapshot = self._snapshot(tag)
            ancestors: list[str] = []
            parent = snapshot.parent
            while parent is not None and parent in self._snapshots:
                ancestors.insert(0, parent)
                parent = self._snapshots[parent].parent
            return {
                "tag": tag,
                "dir": str(snapshot.machine.directory),
                "created_at_unix": snapshot.created,
                "memory_logical_bytes": 512 << 20,
                "memory_physical_bytes": 512 << 20,
                "vmstate_bytes": 21900,
                "parent_tag": snapshot.parent,
                "chain_depth": len(ancestors),
                "ancestors": ancestors,
                "dependents": self._dependents(tag),
            }

    def delete_snapshot(self, tag: str, query: Any) -> Any:
        cascade, force = (query.get(name) == "true" for name in ("cascade", "force"))
        if cascade and force:
            raise Refusal(400, "cascade and force are mutually exclusive")
        with self._lock:
            self._snapshot(tag)
            dependents = self._dependents(tag)
            if dependents and not cascade and not force:
                raise Refusal(
                    409,
                    f"snapshot `{tag}` is the parent of {len(dependents)} chained snapshot(s): "
                    f"[{', '.join(dependents)}]; rerun with `?cascade=true` to delete the whole "
                    "subtree, or `?force=true` to orphan the children (they will fail to restore)",
                )
            for each in dependents:
                if cascade:
                    self.delete_snapshot(each, query)
                else:
                    self._snapshots[each].damage = f"parent {tag} is missing"
            snapshot = self._snapshots.pop(tag)
        self.machines.destroy(snapshot.machine)
        return 204, None

    def damage(self, tag: str, reason: str) -> None:
        """Make a snapshot unbootable."""
        self._snapshots[tag].damage = reason

    def _snapshot(self, tag: str) -> _Snapshot:
        try:
            return self._snapshots[tag]
        except KeyError:
            raise Refusal(404, f"snapshot {tag} not found") from None

    def _dependents(self, tag: str) -> list[str]:
        return [each.tag for each in self._snapshots.values() if each.parent == tag]

    # -- sandboxes -----------------------------------------------------------------------------

    def spawn(self, request: Any) -> Any:
        tag, n = _checked_tag(request["snapshot_tag"]), int(request.get("n", 1))
        if not 1 <= n <= _MAX_CHILDREN:
            raise Refusal(400, f"n must be between 1 and {_MAX_CHILDREN}")
        with self._lock:
            snapshot = self._snapshot(tag)
        live = bool(request.get("live_fork"))
        if snapshot.status != "ready" or snapshot.damage is not None:
            raise Refusal(409, f"snapshot {tag} is not bootable: {snapshot.damage or 'writing'}")
        if live and snapshot.parent is not None:
            raise Refusal(400, "live_fork cannot be combined with a chained snapshot")
        # Concurrent requests for one tag race inside Firecracker: here, the later one loses.
        if not snapshot.spawning.acquire(blocking=False):
            raise Refusal(500, "restore_many: Firecracker API: Address in use (os error 98)")
        made: list[_Sandbox] = []
        try:
            for _ in range(n):
                made.append(self._restore(snapshot, request, live))  # noqa: PERF401 - see below
        except (NotClonable, OSError) as exc:
            for each in made:
                self.delete_sandbox(each.id, {})
            raise Refusal(500, f"restore_many: {exc}") from exc
        finally:
            snapshot.spawning.release()
        return 201, [each.to_json() for each in made]

    def _restore(self, snapshot: _Snapshot, request: Any, live: bool) -> _Sandbox:
        with self._lock:
            taken = {each.netns for each in self._sandboxes.values()}
            netns = None
            if request.get("per_child_netns"):
                free = (i for i in range(1, self.namespaces + 1) if i not in taken)
                netns = next(free, None)
                if netns is None:
                    raise NotClonable(f"netns forkd-child-{self.namespaces + 1} does not exist")
            number, now = next(self._numbers), int(time.time())
            sandbox = _Sandbox(
                f"sb-{now:x}-{number:04x}",
                snapshot.machine,
                snapshot.tag,
                netns,
                now,
                request.get("memory_limit_mib"),
                live,
            )
            sandbox.machine = self.machines.clone(snapshot.machine)
            self._sandboxes[sandbox.id] = sandbox
        self.machines.resume(sandbox.machine)
        return sandbox

    def list_sandboxes(self, _query: Any) -> Any:
        with self._lock:
            return [each.to_json() for each in self._sandboxes.values()]

    def get_sandbox(self, name: str, _query: Any) -> Any:
        return self._sandbox(name).to_json()

    def delete_sandbox(self, name: str, _query: Any) -> Any:
        with self._lock:
            sandbox = self._sandbox(name)
            del self._sandboxes[name]
        self.machines.destroy(sandbox.machine)
        return 204, None

    def _sandbox(self, name: str) -> _Sandbox:
        with self._lock:
            try:
                return self._sandboxes[name]
            except KeyError:
                raise Refusal(404, f"sandbox {name} not found") from None

    # -- the agent -----------------------------------------------------------------------------

    def ping(self, name: str, _query: Any) -> Any:
        return self._ask(name, "ping", {}, _PING_LIMIT)

    def exec(self, name: str, request: Any) -> Any:
        self._sandbox(name)
        args, limit = request["args"], int(request.get("timeout_secs", 30))
        if not args:
            raise Refusal(400, "args must contain at least one element")
        answer = self._ask(name, "exec", {"args": args, "timeout": limit}, limit + _EXEC_GRACE)
        if "stdout" not in answer:
            raise Refusal(500, f"exec: agent error: {answer.get('error')}")
        return {key: answer[key] for key in ("stdout", "stderr", "exit_code")}

    def eval(self, name: str, request: Any) -> Any:
        answer = self._ask(name, "eval", {"code": request["code"]}, self.eval_limit)
        return {key: answer.get(key) for key in ("result", "error")} | {
            "exit_code": answer.get("exit_code", 0)
        }

    def _ask(self, name: str, action: str, request: dict[str, Any], limit: float) -> Any:
        sandbox = self._sandbox(name)
        data = json.dumps({"action": action, **request}).encode() + b"\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
                agent.settimeout(_CONNECT_LIMIT)
                agent.connect(sandbox.machine.agent_socket)
                agent.settimeout(limit)
                agent.sendall(data)
                line = _read_line(agent, time.monotonic() + limit)
            return json.loads(line)
        except (OSError, ValueError) as exc:
            raise Refusal(500, f"{action}: {exc}") from exc

    # -- branches ------------------------------------------------------------------------------

    def branch(self, name: str, request: Any) -> Any:
        tag = request.get("tag") or f"branch-{name}-{int(time.time())}-{next(self._numbers):04x}"
        _checked_tag(tag)
        mode, wait = request.get("mode") or "full", request.get("wait", True)
        if mode not in ("full", "diff", "live"):
            raise Refusal(422, f"mode: unknown variant `{mode}`")
        if not wait and mode != "live":
            raise Refusal(400, "wait: false requires mode: live")
        with self._slot(tag):
            sandbox = self._sandbox(name)
            if mode == "live" and not sandbox.live:
                raise Refusal(400, f"sandbox {name} was not spawned with live_fork: true")
            time.sleep(self.branch_secs)
            started = time.monotonic()
            try:
                machine = self.machines.snapshot(sandbox.machine)
            except NotClonable as exc:
                raise Refusal(500, f"branch: {exc}") from exc
            snapshot = _Snapshot(
                tag,
                machine,
                int(time.time()),
                parent=request.get("parent_tag"),
                branched_from=name,
                pause_ms=int((time.monotonic() - started) * 1000),
            )
            with self._lock:
                self._snapshots[tag] = snapshot
        return (201 if wait else 202), snapshot.to_json()

    @contextmanager
    def _slot(self, tag: str) -> Iterator[None]:
        with self._lock:
            if tag in self._branching:
                raise Refusal(409, f"a BRANCH for tag {tag} is already in flight")
            if tag in self._snapshots:
                raise Refusal(409, f"snapshot {tag} already exists; DELETE first")
            if len(self._branching) >= _MAX_BRANCHES:
                raise Refusal(503, f"daemon at branch concurrency cap ({_MAX_BRANCHES})")
            self._branching.add(tag)
        try:
            yield
        finally:
            with self._lock:
                self._branching.discard(tag)


def _checked_tag(tag: object) -> str:
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise Refusal(400, f"unsafe snapshot tag: {tag!r}")
    return tag


def _read_line(agent: socket.socket, deadline: float) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        agent.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = agent.recv(1 << 20)
        if not chunk:
            raise ConnectionError("the agent closed the connection")
        data += chunk
    return bytes(data)
