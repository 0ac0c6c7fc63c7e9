"""Items that will not run: as a worker tells of them, and as plugins find them in the controller.

In a plain run pytest puts the items themselves among the terminal reporter's ``stats``, which many
a plugin walks over, Hypothesis among them, to read what all entries have: a node id, keywords.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

__all__ = ["DeselectedItem", "described", "deselected_items"]

#: Items that one event tells of.
_MOST = 10_000

#: A node id, and the names of the keywords but for the item's own; ``None`` where they are those of
#: the item before.
Description = tuple[str, list[str] | None]


class DeselectedItem:
    """Stands for an item of a worker's that will not run.

    :ivar nodeid: the item's.
    :ivar name: the item's, with parameters.
    :ivar location: path, line (not known, so ``None``) and name, as ``Item.location``.
    :ivar keywords: by name; each is 1.
    """

    def __init__(self, nodeid: str, keywords: Sequence[str]) -> None:
        self.nodeid = nodeid
        # The parameters may hold anything.
        base, bracket, parameters = nodeid.partition("[")
        path, *names = base.split("::")
        names[-1:] = [f"{each}{bracket}{parameters}" for each in names[-1:]]
        self.name = names[-1] if names else nodeid
        self.location: tuple[str, int | None, str] = (path, None, ".".join(names))
        self.keywords = dict.fromkeys([*keywords, self.name], 1)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.nodeid}>"


def described(items: Sequence[pytest.Item]) -> Iterator[list[Description]]:
    """Tell of items, in parts that are not too long for a message."""
    for start in range(0, len(items), _MOST):
        before: list[str] | None = None
        part: list[Description] = []
        for item in items[start : start + _MOST]:
            names = [name for name in item.keywords if type(name) is str and name != item.name]
            part.append((item.nodeid, None if names == before else names))
            before = names
        yield part


def deselected_items(part: Sequence[Description]) -> list[DeselectedItem]:
    """What :func:`described` told of."""
    keywords: list[str] = []
    made = []
    for nodeid, names in part:
        keywords = keywords if names is None else names
        made.append(DeselectedItem(nodeid, keywords))
    return made
