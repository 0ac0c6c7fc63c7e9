"""Hooks of pytest-forkd."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["pytest_forkd_worker_start"]


@pytest.hookspec()
def pytest_forkd_worker_start(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """Called in each worker right after it got its identity, before it runs a test.

    For plugins that opened something while they were configured and need one of their own in each
    worker: at warm level ``collection`` all workers are clones of one process that was configured
    once. ``workerinput`` is ``config.workerinput`` and holds this worker's own values, and
    ``PYTEST_XDIST_WORKER`` is set. At level ``imports`` it is called before ``pytest_configure``.

    :param config: the worker's configuration.
    :param workerinput: what ``pytest_configure_node`` put together for this worker.
    """
