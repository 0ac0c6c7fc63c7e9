"""The part of a run's request that a guest gets: it is another machine, and must get no secrets."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from pytest_forkd.backends.base import RunRequest

__all__ = ["ENVIRONMENT", "for_guests"]

#: Patterns of variables that tests may depend on and that do not describe this machine.
ENVIRONMENT = (
    "CI",
    "COLUMNS",
    "FORCE_COLOR",
    "HYPOTHESIS_*",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "LINES",
    "NO_COLOR",
    "PYTEST_*",
    "PYTHONDEVMODE",
    "PYTHONHASHSEED",
    "PYTHONOPTIMIZE",
    "PYTHONUTF8",
    "PYTHONWARNINGS",
    "PY_COLORS",
    "TERM",
    "TZ",
)
#: Never sent, whatever the patterns say.
_NEVER = ("FORKD_TOKEN", "PYTEST_FORKD_*")


def for_guests(request: RunRequest, patterns: Iterable[str]) -> dict[str, Any]:
    """The request as it is sent.

    :param patterns: patterns of further variables that guests get.
    """
    wanted = [*ENVIRONMENT, *patterns]
    environ = {
        name: value
        for name, value in request.environ.items()
        if _matches(name, wanted) and not _matches(name, _NEVER)
    }
    return replace(
        request, environ=environ, sys_path=_own_path(request.sys_path, request.cwd), sigint=True
    ).to_json()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _own_path(path: list[str], cwd: str) -> list[str]:
    """The module search path without this interpreter's directories: a guest has its own."""
    foreign = {os.path.realpath(each) for each in (sys.prefix, sys.base_prefix)}
    foreign.update(os.path.realpath(each) for each in sysconfig.get_paths().values())

    def is_foreign(entry: str) -> bool:
        entry = os.path.realpath(os.path.join(cwd, entry))
        if entry == os.path.realpath(cwd):
            return False
        return any(entry == each or entry.startswith(each + os.sep) for each in foreign)

    return [entry for entry in path if not is_foreign(entry)]
