"""Deselected items: how a worker reports them, and what plugins see of them in the controller.

In a plain run pytest puts the items themselves into the terminal reporter's ``stats``. Plugins such
as Hypothesis iterate over these, and read the node id and keywords of every entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

__all__ = ["DeselectedItem", "described", "deselected_items"]

#: Most items in one event.
_MOST = 10_000

#: A node id, and the names of the keywords without the item's own; ``None`` if they are the same as
#: those of the item before.
Description = tuple[str, list[str] | None]


class DeselectedItem:
    """Stands for an item that a worker has deselected.

    :ivar nodeid: the item's node id.
    :ivar name: the item's name, with parameters.
    :ivar location: path, line (unknown, so ``None``) and name, like ``Item.location``.
    :ivar keywords: by name; each is 1.
    """

    def __init__(self, nodeid: str, keywords: Sequence[str]) -> None:
        self.nodeid = nodeid
        # Split before the parameters, which may contain "::".
        base, bracket, parameters = nodeid.partition("[")
        path, *names = base.split("::")
        names[-1:] = [f"{each}{bracket}{parameters}" for each in names[-1:]]
        self.name = names[-1] if names else nodeid
        self.location: tuple[str, int | None, str] = (path, None, ".".join(names))
        self.keywords = dict.fromkeys([*keywords, self.name], 1)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.nodeid}>"


def described(items: Sequence[pytest.Item]) -> Iterator[list[Description]]:
    """Describe items, in parts that are short enough for a message."""
    for start in range(0, len(items), _MOST):
        before: list[str] | None = None
        part: list[Description] = []
        for item in items[start : start + _MOST]:
            names = [name for name in item.keywords if type(name) is str and name != item.name]
            part.append((item.nodeid, None if names == before else names))
            before = names
        yield part


def deselected_items(part: Sequence[Description]) -> list[DeselectedItem]:
    """The inverse of :func:`described`, for one part."""
    keywords: list[str] = []
    made = []
    for nodeid, names in part:
        keywords = keywords if names is None else names
        made.append(DeselectedItem(nodeid, keywords))
    return made
