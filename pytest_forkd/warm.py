"""What is remembered of a suite: whether it can share one collection, and why not."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

from pytest_forkd import PytestForkdWarning

__all__ = ["WarmMemory", "finding_line", "warn_about"]

_UNSUITABLE = "forkd/unsuitable"
_MODULES = "forkd/modules"


class WarmMemory:
    """Kept in pytest's cache, so that ``--cache-clear`` forgets it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._cache: Any = getattr(config, "cache", None)

    def recall(self, warm: str) -> tuple[str, list[str] | None]:
        """The warm level to try.

        :param warm: what was asked for: ``auto``, ``collection`` or ``imports``.
        :returns: the level, and the third-party modules that the suite is known to import, if any.
        """
        modules = self._get(_MODULES)
        if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
            modules = None
        if warm != "auto":
            return warm, modules
        known = self._get(_UNSUITABLE)
        if isinstance(known, dict) and self._holds(known):
            return "imports", modules
        return "collection", modules

    def remember_unsuitable(
        self, findings: list[dict[str, Any]], modules: list[str] | None, files: list[str]
    ) -> None:
        """Note why this suite's workers have to collect for themselves.

        It holds until one of the project's files, of those that were loaded, or the ini file
        changes.

        :param files: the project's files.
        """
        if self._config.inipath is not None:
            files = [*files, str(self._config.inipath)]
        self._set(
            _UNSUITABLE,
            {
                "args": [str(arg) for arg in self._config.args],
                "findings": findings,
                "files": {path: _stamp(path) for path in files},
            },
        )
        if modules:
            self.remember_modules(modules)

    def remember_modules(self, modules: list[str]) -> None:
        """Note which third-party modules collection imported."""
        if modules != self._get(_MODULES):
            self._set(_MODULES, modules)

    def _holds(self, known: dict[str, Any]) -> bool:
        files = known.get("files")
        if not isinstance(files, dict) or known.get("args") != [str(a) for a in self._config.args]:
            return False
        return all(_stamp(path) == stamp for path, stamp in files.items())

    def _get(self, key: str) -> Any:
        return self._cache.get(key, None) if self._cache is not None else None

    def _set(self, key: str, value: object) -> None:
        if self._cache is not None:
            self._cache.set(key, value)


def _stamp(path: str) -> list[int] | None:
    """What changes when a file does: its time (ns) and size; ``None`` if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_mtime_ns, stat.st_size]


def finding_line(finding: dict[str, Any], config: pytest.Config) -> str:
    """A finding in one line, with the file and line that caused it if they are known."""
    path = finding["path"]
    if not path:
        return str(finding["what"])
    with contextlib.suppress(ValueError):
        path = os.path.relpath(path, config.invocation_params.dir)
    place = f"{path}:{finding['lineno']}" if finding["lineno"] else path
    return f"{finding['what']} ({place})"


def warn_about(findings: list[dict[str, Any]], config: pytest.Config) -> None:
    """Turn what speaks against a forced ``--forkd-warm=collection`` into warnings."""
    for finding in findings:
        config.issue_config_time_warning(
            PytestForkdWarning(
                f"workers share one collection, but {finding_line(finding, config)}"
            ),
            stacklevel=2,
        )
