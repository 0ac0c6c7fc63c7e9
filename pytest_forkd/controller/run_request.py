"""Makes the requests that tell a collector about a run."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from pytest_forkd.backends.base import RunRequest
from pytest_forkd.controller.settings import Settings, guess_workers

__all__ = ["early_request", "make_request"]

_ROLE = ("workerid", "workercount", "testrunuid")


def make_request(
    config: pytest.Config, role: dict[str, Any], *, warm: str, level: str, **known: Any
) -> RunRequest:
    """A request for a collector.

    :param role: the first node's ``workerinput``.
    :param warm: the warm level that was asked for.
    :param level: the warm level to try.
    :param known: the fields of a request that only its nodes and its memory know.
    """
    from pytest_forkd.compat.xdist_plugin import import_path

    return RunRequest(
        args=[str(arg) for arg in config.invocation_params.args or ()],
        cwd=os.fspath(config.invocation_params.dir),
        environ=dict(os.environ),
        sys_path=list(import_path()),
        mainargv=list(sys.argv),
        sigint=signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,
        role={name: role[name] for name in _ROLE},
        warm=warm,
        level=level,
        **known,
    )


def early_request(config: pytest.Config, namespace: Any, settings: Settings) -> RunRequest:
    """A guess at this run's request, made before conftests are loaded."""
    role = {
        "workerid": "gw0",
        "workercount": guess_workers(settings, namespace),
        "testrunuid": settings.testrunuid,
    }
    return make_request(config, role, warm=settings.warm, level="collection")
