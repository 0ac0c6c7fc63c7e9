"""The project's files in a guest: lists them, and makes them equal to the controller's."""

from __future__ import annotations

from typing import Any

from pytest_forkd.sync.apply import Applier, ApplyError
from pytest_forkd.sync.tree import manifest, texts

__all__ = ["ProjectCopy"]


class ProjectCopy:
    """Answers and applies what the controller sends about the working tree."""

    def __init__(self) -> None:
        self._applier: Applier | None = None
        self._error: str | None = None

    def manifest(self, message: dict[str, Any]) -> dict[str, Any]:
        """What is in the tree.

        :param message: ``root``, and ``exclude``, ``prune`` and ``partial`` for
            :mod:`pytest_forkd.sync`.
        """
        root = message["root"]
        return {
            "entries": manifest(root, message["exclude"], message["prune"]),
            "texts": texts(root, message["partial"]),
        }

    def begin(self, message: dict[str, Any]) -> None:
        """Begin to take a difference for the tree at ``root``."""
        self._error = None
        try:
            self._applier = Applier(message["root"])
        except ApplyError as exc:
            self._error = str(exc)

    def take(self, data: bytes) -> None:
        """Take the next bytes of the difference; after an error they are ignored."""
        if self._applier is not None:
            try:
                self._applier.feed(data)
            except (ApplyError, OSError) as exc:
                self._fail(exc)

    def finish(self) -> dict[str, Any]:
        """End the difference; returns the result."""
        if self._applier is not None:
            try:
                self._applier.finish()
            except (ApplyError, OSError) as exc:
                self._fail(exc)
            else:
                self._applier.close()
                self._applier = None
        return {"error": self._error}

    def _fail(self, exc: Exception) -> None:
        assert self._applier is not None
        self._error = str(exc)
        self._applier.close()
        self._applier = None
