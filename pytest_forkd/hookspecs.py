"""Hooks of pytest-forkd."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["pytest_forkd_worker_start"]


@pytest.hookspec()
def pytest_forkd_worker_start(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """Called in each worker right after it has got its identity, before it runs a test.

    For plugins that open something while they are configured and need one per worker: at warm level
    ``collection`` all workers are clones of one process, which was configured once. ``workerinput``
    is ``config.workerinput`` with this worker's own values, and ``PYTEST_XDIST_WORKER`` is set. At
    level ``imports`` this hook is called before ``pytest_configure``.

    :param config: the worker's configuration.
    :param workerinput: this worker's ``workerinput``, as ``pytest_configure_node`` has filled it.
    """
