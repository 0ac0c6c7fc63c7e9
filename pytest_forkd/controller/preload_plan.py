"""Works out what a run's parent is to import, before any code of the suite is loaded."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import pytest

from pytest_forkd.compat.pytest import cache_directory
from pytest_forkd.controller.settings import Settings
from pytest_forkd.controller.suite_memory import MODULES_KEY, Modules
from pytest_forkd.parent.plan import Plan, Rewriting, own_packages

__all__ = ["make_plan"]


def make_plan(config: pytest.Config, namespace: Any, settings: Settings) -> Plan:
    """The plan for a parent.

    :param config: as early as ``pytest_load_initial_conftests``: there is no ``config.cache`` yet.
    :param namespace: the options as parsed so far.
    """
    known = _remembered(config, namespace)
    exclude = own_packages(config.rootpath, getattr(namespace, "cov_source", None) or ())
    directory = config.invocation_params.dir
    scan = None
    if not known.complete:
        named = list(getattr(namespace, "file_or_dir", None) or ())
        if not named:
            named = [str(config.rootpath / path) for path in config.getini("testpaths")]
        scan = [str(directory / path) for path in named] or [str(directory)]
    return Plan(
        preload=settings.preload,
        path=[os.path.abspath(entry) for entry in settings.path],
        cwd=str(directory),
        project=f"{config.rootpath}|{config.inipath}",
        learnt=[name for name in known.names if name.partition(".")[0] not in exclude],
        scan=scan,
        exclude=sorted(exclude),
        skip=known.skip,
        rewriting=Rewriting.of(config),
    )


def _remembered(config: pytest.Config, namespace: Any) -> Modules:
    """Read the suite's modules from pytest's cache, whose plugin is not configured yet."""
    if getattr(namespace, "cacheclear", False):
        return Modules()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        folder = cache_directory(config)
        text = (folder / "v" / MODULES_KEY).read_text("utf-8")
        return Modules.from_json(json.loads(text))
    return Modules()
