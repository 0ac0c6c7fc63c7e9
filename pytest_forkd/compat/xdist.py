"""What is private to pytest-xdist, under names of its own.

Read in, and checked with, pytest-xdist 3.6, 3.7 and 3.8.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.dsession import DSession, Interrupted

__all__ = ["DistSession", "Interrupted"]


class DistSession(DSession):
    """xdist's session, with public names for the private ones that our session needs.

    It overrides nothing.
    """

    @property
    def active_nodes(self) -> set[Any]:
        """The nodes that the run waits for."""
        return self._active_nodes

    @property
    def pytest_session(self) -> pytest.Session | None:
        """pytest's own session, while there is one."""
        return self._session

    @pytest_session.setter
    def pytest_session(self, session: pytest.Session) -> None:
        self._session = session

    def clone_node(self, node: Any) -> Any:
        """Make a replacement for a node, which the run then waits for, too."""
        return self._clone_node(node)

    def count_failed_node(self) -> bool:
        """Count a node that has failed; returns whether others may still be replaced."""
        self._failed_nodes_count += 1
        limit = self._max_worker_restart
        return limit is None or self._failed_nodes_count <= limit

    @property
    def max_worker_restart(self) -> int | None:
        """How many nodes may fail, as ``--max-worker-restart`` says; ``None`` for any number."""
        return self._max_worker_restart

    def summarize(self, text: str) -> None:
        """Show this text at the end of the run."""
        self._summary_report = text

    def stop_after_failures(self, report: Any) -> None:
        """Count a failed report, for ``--maxfail``."""
        self._handlefailures(report)

    def is_new_collection_error(self, key: object) -> bool:
        """Whether no worker has reported this error before; remembers it."""
        new = key not in self._failed_collection_errors
        self._failed_collection_errors[key] = True
        return new

    def forget_status(self, node: Any) -> None:
        """Leave a node out of the line that counts workers."""
        if self.terminal:
            self.trdist._status.pop(node.gateway.spec.id, None)
