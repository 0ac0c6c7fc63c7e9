"""The guests of the stand-in: process trees that are booted, cloned and killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.standin.guest import cloning
from tests.standin.inspection import catches, command_of, namespace_of, processes
from tests.standin.plumbing import NotClonable, Plumbing, open_files, unix_sockets

__all__ = ["Machine", "Machines", "NotClonable"]

_GUEST = Path(__file__).parent / "guest"
#: Seconds for all processes of a guest to stand still; the agent ends its requests first.
_FREEZE_LIMIT = 25.0
_SIGNAL_AGAIN = 0.5
#: Where every guest has a directory of its own, with one for its temporary files.
_RUN = "/run"
_TMP = "/run/tmp"
#: Of the daemon's environment, what is the same in a guest; the rest it does not see.
_KEPT = ("PATH", "LANG", "LC_ALL", "COVERAGE_PROCESS_START")


@dataclass
class Machine:
    """A guest.

    :ivar directory: what it has on disk.
    :ivar own: the paths at which it sees directories of its own.
    :ivar pids: its processes that are known: each remembered parent before its children.
    :ivar parents: of these, which is whose.
    :ivar control: connections to them, while they stand still.
    :ivar namespace: the mount namespace that all its processes are in, and nobody else.
    :ivar namespace_fd: keeps it, so that no other one gets its number before this guest is gone.
    """

    directory: Path
    own: list[str]
    pids: list[int] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)
    control: dict[int, socket.socket] = field(default_factory=dict)
    namespace: str | None = "unknown"
    namespace_fd: int = -1

    @property
    def agent_socket(self) -> str:
        """Where the daemon reaches the agent."""
        return str(self.directory / "agent")

    def mounts(self) -> list[list[str]]:
        """Its own directories: on disk, and where it sees them."""
        return [[str(self.directory / f"disk{i}"), path] for i, path in enumerate(self.own)]


class Machines:
    """All guests of one daemon. One at a time is cloned.

    :param state: the daemon's directory.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.exits = state / "exits"
        self.exits.mkdir()
        self._count = 0
        self._lock = threading.Lock()
        self._all: list[Machine] = []
        self._control_path = str(state / "control")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self._control_path)
        self._listener.listen(64)
        self._listener.settimeout(_SIGNAL_AGAIN)
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()

    # -- making --------------------------------------------------------------------------------

    def boot(self, recipe: dict[str, str], own: dict[str, str | None], limit: float) -> Machine:
        """Start a guest, wait until it serves, and stop it there.

        :param recipe: what would be in ``/etc/forkd-recipe.env``.
        :param own: directories of its own: the path, and of what it is a copy.
        :param limit: seconds.
        """
        with self._lock:
            machine = self._new([_RUN, *(path for path in own if path != _RUN)])
            for source, (disk, path) in zip([None, *own.values()], machine.mounts(), strict=True):
                _copy_tree(source, disk, path)
            ready = machine.directory / "ready"
            description = {
                "daemon": os.getpid(),
                "socket": machine.agent_socket,
                "mounts": machine.mounts(),
                "recipe": recipe,
                "ready": str(ready),
            }
            environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
            environ.update(
                HOME="/root",
                TMPDIR=_TMP,
                PYTHONPATH=str(_GUEST / "site"),
                STANDIN_CONTROL=self._control_path,
                PYTEST_FORKD_SHARED_KERNEL="1",
            )
            environ["PATH"] = f"{Path(sys.executable).parent}:{environ.get('PATH', os.defpath)}"
            log = os.open(machine.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.posix_spawn(
                sys.executable,
                [sys.executable, str(_GUEST / "agent.py"), json.dumps(description)],
                environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
            )
            os.close(log)
            deadline = time.monotonic() + limit
            while not ready.exists():
                if time.monotonic() > deadline:
                    text = (machine.directory / "log").read_text(errors="replace")[-2000:]
                    self._destroy(machine)
                    raise NotClonable(f"the guest was not ready within {limit:g} s: {text}")
                time.sleep(0.005)
            told = json.loads(ready.read_text())
            if "error" in told:
                self._destroy(machine)
                raise NotClonable(told["error"])
            machine.pids = [told["pid"]]
            machine.namespace_fd = os.open(f"/proc/{machine.pids[0]}/ns/mnt", os.O_RDONLY)
            machine.namespace = namespace_of(machine.pids[0])
            self._freeze(machine)
            return machine

    def clone(self, source: Machine) -> Machine:
        """A copy of a guest that stands still; it stands still, too."""
        with self._lock:
            return self._clone(source)

    def snapshot(self, source: Machine) -> Machine:
        """A copy, standing still, of a guest that runs on."""
        with self._lock:
            self._freeze(source)
            try:
                return self._clone(source)
            finally:
                self._resume(source)

    def resume(self, machine: Machine) -> None:
        """Let a guest run."""
        with self._lock:
            self._resume(machine)

    def destroy(self, machine: Machine) -> None:
        """Kill a guest, and remove what it had on disk."""
        with self._lock:
            self._destroy(machine)

    def destroy_all(self) -> None:
        """Kill all of them."""
        with self._lock:
            for machine in list(self._all):
                self._destroy(machine)

    def _new(self, own: list[str]) -> Machine:
        self._count += 1
        directory = self.state / f"m{self._count}"
        directory.mkdir()
        machine = Machine(directory, own)
        self._all.append(machine)
        return machine

    # -- standing still ------------------------------------------------------------------------

    def _freeze(self, machine: Machine) -> None:
        tree = self._tree(machine)
        machine.pids, machine.parents = list(tree), tree
        for pid in tree:
            if not catches(pid, cloning.CLONE_SIGNAL):
                raise NotClonable(f"process {pid} ({command_of(pid)}) takes no part in cloning")
        # The agent first, and alone: it lets requests end, for which it may need the others.
        try:
            for group in (machine.pids[:1], machine.pids[1:]):
                missing = set(group)
                deadline = time.monotonic() + _FREEZE_LIMIT
                for pid in missing:
                    os.kill(pid, cloning.CLONE_SIGNAL)
                while missing:
                    try:
                        control, _address = self._listener.accept()
                    except TimeoutError:
                        if time.monotonic() > deadline:
                            raise
                        # Python runs its handlers between two instructions, and a process that was
                        # about to wait for something may have missed it.
                        for pid in missing:
                            os.kill(pid, cloning.CLONE_SIGNAL)
                        continue
                    control.settimeout(_FREEZE_LIMIT)
                    hello, _fds = cloning.receive(control)
                    if hello["pid"] not in missing:
                        control.close()  # late, from an attempt that was given up
                        continue
                    missing.remove(hello["pid"])
                    if "error" in hello:
                        command = command_of(hello["pid"])
                        raise NotClonable(f"{command} cannot be cloned: {hello['error']}")
                    cloning.send(control, {"wanted": True})
                    machine.control[hello["pid"]] = control
        except TimeoutError:
            self._resume(machine)
            raise NotClonable("not every process of the guest stood still in time") from None
        except NotClonable:
            self._resume(machine)
            raise

    def _resume(self, machine: Machine) -> None:
        for control in machine.control.values():
            with contextlib.suppress(OSError):
                cloning.send(control, {"resume": True})
            control.close()
        machine.control.clear()

    def _tree(self, machine: Machine) -> dict[int, int]:
        """A guest's processes, the agent first, each with its parent or what stands for it."""
        table = processes()
        inside = {pid for pid in table if namespace_of(pid) == machine.namespace}
        inside.update(pid for pid in machine.pids if pid in table)
        found = {}
        for pid in [*machine.pids, *sorted(inside)]:
            state, ppid = table.get(pid, ("Z", 0))
            if state != "Z":
                found[pid] = ppid if ppid in inside else machine.parents.get(pid, 0)
        return found

    # -- cloning -------------------------------------------------------------------------------

    def _clone(self, source: Machine) -> Machine:
        clone = self._new(source.own)
        try:
            for (old, _path), (new, path) in zip(source.mounts(), clone.mounts(), strict=True):
                _copy_tree(old, new, path)
            self._clone_processes(source, clone)
        except BaseException:
            self._destroy(clone)
            raise
        return clone

    def _clone_processes(self, source: Machine, clone: Machine) -> None:
        tables = {
            pid: open_files(pid, _control_fd(pid, source.control[pid])) for pid in source.pids
        }
        plumbing = Plumbing(
            tables,
            source.own,
            (source.agent_socket, clone.agent_socket),
            lambda pid, fds: _ask(source.control[pid], {"peek": fds})["peeked"],
        )
        new_pids: dict[int, int] = {}
        namespace = -1
        try:
            for pid in source.pids:
                mine, theirs = socket.socketpair()
                mine.settimeout(_FREEZE_LIMIT)
                fds = [theirs.fileno()]
                plan = plumbing.plan(pid, fds)
                if namespace >= 0:
                    plan["namespace"] = len(fds)
                    fds.append(namespace)
                plan["mounts"] = clone.mounts() if namespace < 0 else None
                plan["cwd"] = os.readlink(f"/proc/{pid}/cwd")
                plan["daemon"] = os.getpid()
                cloning.send(source.control[pid], {"fork": plan}, fds)
                theirs.close()
                cloning.receive(source.control[pid])
                answer, _fds = cloning.receive(mine)
                if "cloned" not in answer:
                    mine.close()
                    raise NotClonable(f"{command_of(pid)}: {answer['failed']}")
                new = answer["cloned"]
                new_pids[pid] = new
                clone.control[new] = mine
                clone.pids.append(new)
                if namespace < 0:
                    namespace = os.open(f"/proc/{new}/ns/mnt", os.O_RDONLY)
                    clone.namespace_fd = namespace
                    clone.namespace = namespace_of(new)
        except (EOFError, OSError) as exc:
            raise NotClonable(f"a process of the guest was lost: {exc!r}") from exc
        finally:
            plumbing.close()
        clone.parents = {
            new: new_pids.get(source.parents.get(old, 0), 0) for old, new in new_pids.items()
        }
        for old, new in new_pids.items():
            self._finish(tables[old], new_pids, old, clone.control[new], source.parents)

    def _finish(
        self,
        table: list[Any],
        new_pids: dict[int, int],
        old: int,
        control: socket.socket,
        parents: dict[int, int],
    ) -> None:
        pidfds: list[list[int]] = []
        fds: list[int] = []
        for entry in table:
            if entry.target == "anon_inode:[pidfd]" and entry.pid in new_pids:
                pidfds.append([entry.fd, len(fds)])
                fds.append(os.pidfd_open(new_pids[entry.pid]))
        news = {
            "pids": new_pids,
            "children": [child for child, parent in parents.items() if parent == old],
            "exits": str(self.exits),
            "pidfds": pidfds,
        }
        cloning.send(control, {"finish": news}, fds)
        for fd in fds:
            os.close(fd)
        cloning.receive(control)

    # -- the end -------------------------------------------------------------------------------

    def _destroy(self, machine: Machine) -> None:
        for control in machine.control.values():
            control.close()
        machine.control.clear()
        deadline = time.monotonic() + 5
        known: set[int] = set(machine.pids)
        while time.monotonic() < deadline:
            machine.pids = list(known)
            tree = self._tree(machine)
            known.update(tree)
            for pid in tree:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not tree:
                break
            time.sleep(0.002)
        if machine.namespace_fd >= 0:
            os.close(machine.namespace_fd)
            machine.namespace_fd = -1
        for pid in known:
            (self.exits / str(pid)).unlink(missing_ok=True)
        shutil.rmtree(machine.directory, ignore_errors=True)
        if machine in self._all:
            self._all.remove(machine)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.005)
                continue
            for machine in list(self._all):
                if pid in machine.pids:
                    (self.exits / f"{pid}.new").write_text(str(status))
                    (self.exits / f"{pid}.new").rename(self.exits / str(pid))
                    parent = machine.parents.get(pid, 0)
                    if parent:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(parent, signal.SIGCHLD)


def _ask(control: socket.socket, message: Any) -> Any:
    cloning.send(control, message)
    return cloning.receive(control)[0]


def _control_fd(pid: int, control: socket.socket) -> int:
    """The descriptor of a process's end of the connection to it."""
    mine = os.fstat(control.fileno()).st_ino
    peer = unix_sockets()[mine].peer
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{name}") == f"socket:[{peer}]":
                return int(name)
    raise NotClonable(f"process {pid} has lost its connection")


def _copy_tree(source: str | None, target: str, path: str) -> None:
    """Copy a directory, or make one; sockets are left out, since nobody would listen on them."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if not _is_copied(os.path.join(folder, n))]

    if source is None or not os.path.isdir(source):
        os.makedirs(target)
    else:
        shutil.copytree(source, target, symlinks=True, ignore=left_out)


def _is_copied(path: str) -> bool:
    return os.path.islink(path) or os.path.isfile(path) or os.path.isdir(path)
