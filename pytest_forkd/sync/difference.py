"""What has to change in a guest's tree to make it equal to the working tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_forkd.sync.scan import SyncError, WorkingTree
from pytest_forkd.sync.tree import Manifest, TreeEntry, to_bytes

__all__ = ["Difference", "difference", "manifest_from_json"]

#: Paths of a manifest that a guest may send; more is refused.
MAX_ENTRIES = 2_000_000
_KINDS = frozenset({"file", "link", "other"})


@dataclass(frozen=True)
class Difference:
    """What has to change.

    :ivar tree: the working tree.
    :ivar have: what the guest has.
    :ivar write: paths to write, sorted.
    :ivar delete: paths to delete, sorted.
    """

    tree: WorkingTree
    have: Manifest
    write: list[str]
    delete: list[str]

    def __bool__(self) -> bool:
        return bool(self.write or self.delete)

    @property
    def size(self) -> int:
        """Bytes of the files to write."""
        return sum(self.tree.manifest[path].size for path in self.write)


def difference(tree: WorkingTree, have: Manifest) -> Difference:
    """Compare the working tree with what the guest has.

    Files that only the guest has are deleted, unless git (or a walk) would ignore them, or a
    pattern excludes them: they may have been built in the guest.

    :raises SyncError: if git fails.
    """
    want = tree.manifest
    write = sorted(path for path, entry in want.items() if have.get(path) != entry)
    on_the_way = {part for path in write for part in _folders(path)}
    extra = [path for path in have if path not in want]
    left_alone = tree.ignored(extra)
    delete = sorted(path for path in extra if path not in left_alone or path in on_the_way)
    return Difference(tree, have, write, delete)


def manifest_from_json(data: Any) -> Manifest:
    """Check a manifest from a guest, which is not trusted: an object of lists.

    :raises SyncError: if it is not a manifest.
    """
    if not isinstance(data, dict) or len(data) > MAX_ENTRIES:
        raise SyncError("the guest's manifest is no manifest")
    checked = {}
    for path, fields in data.items():
        if not _is_path(path) or not isinstance(fields, list) or len(fields) != 4:
            raise SyncError("the guest's manifest has an entry that is none")
        kind, mode, size, digest = fields
        if (
            not (isinstance(kind, str) and isinstance(digest, str))
            or kind not in _KINDS
            or type(mode) is not int
            or type(size) is not int
        ):
            raise SyncError("the guest's manifest has an entry that is none")
        checked[path] = TreeEntry(kind, mode, size, digest)
    return checked


def _is_path(path: Any) -> bool:
    if not isinstance(path, str) or not 0 < len(path) < 4096 or "\0" in path:
        return False
    try:
        to_bytes(path)
    except UnicodeEncodeError:
        return False
    return not {"", ".", ".."}.intersection(path.split("/"))


def _folders(path: str) -> list[str]:
    """The folders that a path is in."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
