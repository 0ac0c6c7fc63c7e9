"""The list of snapshots that were made on this machine, and which one fits a project now."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pytest_forkd.forkd.answers import TAG
from pytest_forkd.forkd.errors import ForkdError
from pytest_forkd.forkd.recipe import Recipe, Wishes, default_tag
from pytest_forkd.forkd.records import state_directory
from pytest_forkd.sync.scan import find_root

__all__ = ["Built", "BuiltSnapshots", "Choice", "choose_tag", "plan_for"]

#: Seconds to wait for others that read or write the list.
_LOCK_TIMEOUT = 10.0


@dataclass(frozen=True)
class Built:
    """A snapshot that was made on this machine.

    :ivar root: the root of its project.
    :ivar fingerprint: what it depends on, see :class:`~pytest_forkd.forkd.recipe.Recipe`.
    :ivar image: the name of its image, by which forkd caches the file system.
    :ivar created: when it was made, in seconds since 1970.
    :ivar named: whether the user has chosen the tag.
    :ivar wishes: the wishes from the command line.
    """

    tag: str
    root: str
    fingerprint: str
    image: str
    created: float
    named: bool = False
    wishes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The snapshot for a run.

    :ivar stale: why it does not fit the project any more; ``None`` if it does.
    """

    tag: str
    stale: str | None = None


class BuiltSnapshots:
    """The list, in the user's state directory.

    :param directory: its directory; the user's state directory by default.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory if directory is not None else state_directory()
        self._path = self.directory / "snapshots.json"

    def all(self) -> list[Built]:
        """All snapshots on the list, the oldest first; empty if the list is damaged."""
        try:
            stored = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return []
        found = []
        for each in stored if isinstance(stored, list) else ():
            with contextlib.suppress(TypeError, ValueError, KeyError):
                built = Built(**each)
                texts = (built.tag, built.root, built.fingerprint, built.image)
                if all(isinstance(text, str) for text in texts) and TAG.fullmatch(built.tag):
                    found.append(built)
        return sorted(found, key=lambda each: float(each.created))

    def add(self, built: Built) -> None:
        """Add a snapshot to the list; replaces one with the same tag."""
        self._change(lambda known: [*(each for each in known if each.tag != built.tag), built])

    def remove(self, tag: str) -> None:
        """Remove a snapshot from the list."""
        self._change(lambda known: [each for each in known if each.tag != tag])

    def find(self, tag: str) -> Built | None:
        """The snapshot with a tag, if it is on the list."""
        return next((each for each in self.all() if each.tag == tag), None)

    def latest(self, root: str) -> Built | None:
        """The snapshot that was made last for a project."""
        return next((each for each in reversed(self.all()) if each.root == root), None)

    def _change(self, change: Any) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self.directory / "snapshots.lock", timeout=_LOCK_TIMEOUT):
                partial = self._path.with_suffix(".new")
                partial.write_text(json.dumps([asdict(each) for each in change(self.all())]))
                os.replace(partial, self._path)
        except Timeout:
            raise ForkdError(
                f"{self.directory}/snapshots.lock is held by another process."
            ) from None
        except OSError as exc:
            raise ForkdError(f"cannot write {self._path}: {exc.strerror}.") from exc


def plan_for(folder: str, given: dict[str, Any]) -> Recipe:
    """The recipe for the project that a folder is in, as it is now.

    :param given: wishes that override those in ``pyproject.toml``.
    :raises ForkdError: if these cannot be read, or make no sense.
    """
    if not os.path.isdir(folder):
        raise ForkdError(f"{folder} is no directory.")
    root = find_root(folder)
    return Recipe.plan(root, Wishes.read(root, given))


def choose_tag(folder: str) -> Choice:
    """The snapshot for a run of the project that a folder is in, if no tag is given.

    It is the one that ``pytest-forkd snapshot build`` would make now: with the options of its last
    run on this machine, if any, else with those in ``pyproject.toml``. Only the daemon knows
    whether that snapshot exists.

    :raises ForkdError: if the project cannot be read.
    """
    last = BuiltSnapshots().latest(find_root(folder))
    recipe = plan_for(folder, last.wishes if last is not None else {})
    if last is None or not last.named:
        return Choice(default_tag(recipe))
    if last.fingerprint == recipe.fingerprint:
        return Choice(last.tag)
    return Choice(last.tag, "what it was made from has changed since")
