"""Which snapshots were made from here, and which of them fits a project as it is now."""

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
    """A snapshot that was made from here.

    :ivar root: of which project.
    :ivar fingerprint: what it depends on, see :class:`~pytest_forkd.forkd.recipe.Recipe`.
    :ivar image: the name that its image had, by which forkd keeps the file system.
    :ivar created: when, in seconds since 1970.
    :ivar named: whether the tag was chosen by the user.
    :ivar wishes: what it was to hold, as far as the command line said so.
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

    :ivar stale: why it does not fit the project any longer; ``None`` if it does.
    """

    tag: str
    stale: str | None = None


class BuiltSnapshots:
    """The list, in the user's state directory.

    :param directory: where; the user's by default.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory if directory is not None else state_directory()
        self._path = self.directory / "snapshots.json"

    def all(self) -> list[Built]:
        """All on the list, the oldest first; empty if it is damaged."""
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
        """Put a snapshot on the list, in place of another one of its tag."""
        self._change(lambda known: [*(each for each in known if each.tag != built.tag), built])

    def remove(self, tag: str) -> None:
        """Strike a snapshot out."""
        self._change(lambda known: [each for each in known if each.tag != tag])

    def find(self, tag: str) -> Built | None:
        """What is known of a snapshot."""
        return next((each for each in self.all() if each.tag == tag), None)

    def latest(self, root: str) -> Built | None:
        """The one that was made last for a project."""
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

    :param given: wishes that come before those of ``pyproject.toml``.
    :raises ForkdError: if it cannot be read, or makes no sense.
    """
    if not os.path.isdir(folder):
        raise ForkdError(f"{folder} is no directory.")
    root = find_root(folder)
    return Recipe.plan(root, Wishes.read(root, given))


def choose_tag(folder: str) -> Choice:
    """The snapshot for a run of the project that a folder is in, if no tag is given.

    It is what ``pytest-forkd snapshot build`` would make now: with the options of the last time,
    if it was run here, else with those of ``pyproject.toml``. Whether there is such a
    snapshot only the daemon knows.

    :raises ForkdError: if the project cannot be read.
    """
    last = BuiltSnapshots().latest(find_root(folder))
    recipe = plan_for(folder, last.wishes if last is not None else {})
    if last is None or not last.named:
        return Choice(default_tag(recipe))
    if last.fingerprint == recipe.fingerprint:
        return Choice(last.tag)
    return Choice(last.tag, "what it was made from has changed since")
