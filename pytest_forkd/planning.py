"""What the parent of a run is to import: worked out before anything of the suite is loaded."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from _pytest.cacheprovider import Cache

from pytest_forkd.settings import Settings
from pytest_forkd.snapshots.plan import Plan
from pytest_forkd.warm import MODULES_KEY, Modules

__all__ = ["make_plan"]

#: Where a project keeps its own packages, below its root directory.
_SOURCE_FOLDERS = ("", "src", "lib", "python")


def make_plan(config: pytest.Config, namespace: Any, settings: Settings) -> Plan:
    """The plan for a parent.

    :param config: as early as ``pytest_load_initial_conftests``: there is no ``config.cache`` yet.
    :param namespace: the options as parsed so far.
    """
    known = _remembered(config, namespace)
    exclude = _own_packages(config.rootpath, namespace)
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
    )


def _remembered(config: pytest.Config, namespace: Any) -> Modules:
    """What pytest's cache holds, read without the plugin that has yet to be configured."""
    if getattr(namespace, "cacheclear", False):
        return Modules()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        folder = Cache.cache_dir_from_config(config, _ispytest=True)
        text = (folder / "v" / MODULES_KEY).read_text("utf-8")
        return Modules.from_json(json.loads(text))
    return Modules()


def _own_packages(root: Path, namespace: Any) -> set[str]:
    """Names of what may be the project's own modules: they may be installed like any others.

    They are never imported early: their import is part of what is tested and measured.
    """
    names = set()
    for folder in _SOURCE_FOLDERS:
        with contextlib.suppress(OSError), os.scandir(root / folder) as entries:
            for entry in entries:
                name = entry.name.partition(".")[0]
                if name.isidentifier():
                    names.add(name)
    for source in getattr(namespace, "cov_source", None) or ():
        if isinstance(source, str):
            names.add(source.partition(".")[0])
    return names
