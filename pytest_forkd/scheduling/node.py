"""The part of a worker that schedulers use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["Node"]


class Node(Protocol):
    """A worker, such as an ``xdist.workermanage.WorkerController``; items are indices.

    :ivar ids: the ids of its items, once they are known.
    :ivar running: the index of the item that it runs, as last reported.
    """

    gateway: Any
    ids: list[str] | None
    running: int | None

    @property
    def shutting_down(self) -> bool:
        """Whether it has been told to end, or has ended."""

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        """Queue these items."""

    def send_steal(self, indices: Sequence[int]) -> None:
        """Ask it to return those of these items that it has not begun."""

    def shutdown(self) -> None:
        """Have it end once its queue is empty."""
