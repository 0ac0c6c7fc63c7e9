"""The working tree, sent to machines before they collect."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

from pytest_forkd.machines.machine import Machine, MachineError
from pytest_forkd.sync.dependencies import partial_files, stale
from pytest_forkd.sync.difference import Difference, difference, manifest_from_json
from pytest_forkd.sync.pack import pack
from pytest_forkd.sync.scan import Rules, SyncError, WorkingTree, find_root, scan

__all__ = ["ProjectSource", "SyncSettings"]

#: Seconds for a guest to read all of its tree, or to write the changes.
_TREE_LIMIT = 300.0
#: Bytes a second that even the slowest guest receives.
_SLOWEST = 256 * 1024
#: Packed differences up to this size are kept for the next machine.
_KEPT = 64 * 1024 * 1024
#: Seconds for the working tree to be read.
_SCAN_LIMIT = 300.0


@dataclass(frozen=True)
class SyncSettings:
    """What is sent to guests.

    :ivar folder: the suite's root directory.
    :ivar enabled: false to use a guest's tree as it is.
    :ivar exclude: patterns of files that are not sent, and are left alone in the guest; paths are
        relative to ``folder``.
    :ivar include: patterns of files that are sent although git ignores them.
    :ivar allow_stale: whether to use a snapshot that was made from other dependencies.
    """

    folder: str
    enabled: bool = True
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    allow_stale: bool = False


@dataclass
class _Plan:
    """What the clones of one snapshot get.

    :ivar what: the difference.
    :ivar packed: the packed difference, if it is small.
    """

    what: Difference
    packed: list[bytes] | None = None


class ProjectSource:
    """The working tree of a run; may be used from several threads.

    :param settings: what to send.
    """

    def __init__(self, settings: SyncSettings) -> None:
        self._settings = settings
        self._tree: Future[WorkingTree] = Future()
        self._plans: dict[str, Future[_Plan]] = {}
        self._lock = threading.Lock()
        #: Why the snapshot is stale, if that was allowed.
        self.stale: str | None = None

    def start(self) -> None:
        """Begin to read the working tree, in a thread."""
        if self._settings.enabled:
            threading.Thread(target=self._scan, name="forkd-scan", daemon=True).start()

    def _scan(self) -> None:
        try:
            folder = self._settings.folder
            root = find_root(folder)
            exclude, include = (
                tuple(_below(root, folder, each) for each in patterns)
                for patterns in (self._settings.exclude, self._settings.include)
            )
            self._tree.set_result(scan(root, Rules(exclude, include)))
        except BaseException as exc:
            self._tree.set_exception(exc)

    def send(self, machine: Machine, snapshot: str, rebuild: str) -> None:
        """Make a guest's tree equal to ours; called in the machine's thread, before it collects.

        :param snapshot: names the snapshot that the machine is a clone of. All its clones have the
            same tree, so only one of them is asked for its manifest.
        :param rebuild: the command that rebuilds the snapshot.
        :raises MachineError: if that fails.
        """
        if not self._settings.enabled:
            return
        try:
            tree = self._tree.result(_SCAN_LIMIT)
            with self._lock:
                first = snapshot not in self._plans
                future = self._plans.setdefault(snapshot, Future())
            if first:
                try:
                    future.set_result(self._plan(machine, tree, rebuild))
                except BaseException as exc:
                    future.set_exception(exc)
            plan = future.result(_TREE_LIMIT)
            if plan.what:
                self._send(machine, tree.root, plan)
        except SyncError as exc:
            raise MachineError(f"cannot send the working tree: {exc}", fatal=True) from exc
        except (TimeoutError, FutureTimeout) as exc:  # different classes before Python 3.11
            raise MachineError("the working tree took too long to read", fatal=True) from exc

    def _plan(self, machine: Machine, tree: WorkingTree, rebuild: str) -> _Plan:
        exclude, prune = tree.guest_arguments()
        request = {
            "root": tree.root,
            "exclude": exclude,
            "prune": prune,
            "partial": partial_files(),
        }
        _name, value = machine.ask({"manifest": request}, "manifest", limit=_TREE_LIMIT)
        what = difference(tree, manifest_from_json(value["entries"]))
        why = stale(what, value["texts"])
        if why is not None:
            if not self._settings.allow_stale:
                raise MachineError(
                    f"the snapshot is stale: {why}.\nBuild it anew: {rebuild}\n"
                    "or use it all the same: --forkd-allow-stale",
                    fatal=True,
                )
            self.stale = why
        return _Plan(what, list(pack(what)) if what.size <= _KEPT else None)

    @staticmethod
    def _send(machine: Machine, root: str, plan: _Plan) -> None:
        machine.post({"sync": {"root": root}})
        machine.send_files(
            pack(plan.what) if plan.packed is None else plan.packed,
            limit=_TREE_LIMIT + plan.what.size / _SLOWEST,
        )
        _name, value = machine.ask({"sync_end": {}}, "synced", limit=_TREE_LIMIT)
        if value["error"] is not None:
            raise MachineError(f"the working tree cannot be written: {value['error']}")


def _below(root: str, folder: str, pattern: str) -> str:
    """Make a pattern relative to the whole tree; a bare name matches everywhere as it is."""
    if "/" not in pattern.rstrip("/"):
        return pattern
    return os.path.normpath(os.path.join(os.path.relpath(folder, root), pattern.lstrip("/")))
