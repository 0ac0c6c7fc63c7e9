"""Remakes in each worker the connections that known plugins open while they are configured.

Attributes of plugins may change: each adapter looks for those that it needs, and does nothing where
it does not find them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

__all__ = ["adapt_worker", "adapted_fds"]


def adapted_fds(config: pytest.Config) -> list[int]:
    """Descriptors of connections that :func:`adapt_worker` replaces."""
    database = _rerunfailures_client(config)
    if database is None:
        return []
    with contextlib.suppress(OSError, AttributeError):
        return [database.sock.fileno()]
    return []


def adapt_worker(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """Tell known plugins which worker they are in now."""
    _adapt_rerunfailures(config, workerinput)
    _adapt_cov(config, workerinput)
    _adapt_benchmark(config, workerinput)


def _rerunfailures_client(config: pytest.Config) -> Any:
    database = getattr(config, "failures_db", None)
    return database if type(database).__name__ == "ClientStatusDB" else None


def _adapt_rerunfailures(config: Any, workerinput: dict[str, Any]) -> None:
    """pytest-rerunfailures: a TCP connection to the controller counts the reruns."""
    database = _rerunfailures_client(config)
    if database is None:
        return
    database.sock.close()
    arguments = [workerinput["sock_port"]]
    if "statusdb_token" in workerinput:  # since pytest-rerunfailures 16.2
        arguments.append(workerinput["statusdb_token"])
    config.failures_db = type(database)(*arguments)


def _adapt_cov(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """pytest-cov: each worker reports under its own name."""
    plugin: Any = config.pluginmanager.getplugin("_cov")
    controller = getattr(plugin, "cov_controller", None)
    if controller is not None:
        controller.nodeid = workerinput["workerid"]


def _adapt_benchmark(config: pytest.Config, workerinput: dict[str, Any]) -> None:
    """pytest-benchmark: make only ``gw0`` warn at its end; collection ran under that name."""
    session: Any = getattr(config, "_benchmarksession", None)
    if getattr(session, "xdist_worker", None) not in (None, workerinput["workerid"]):
        session.xdist_worker = workerinput["workerid"]
        session.xdist_benchmark_found = False
