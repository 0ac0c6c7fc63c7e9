"""What is remembered of a suite: whether it can share one collection, and why not."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_forkd import PytestForkdWarning

__all__ = ["Recalled", "WarmMemory", "finding_line", "warn_about"]

_UNSUITABLE = "forkd/unsuitable"
_MODULES = "forkd/modules"


@dataclass(frozen=True)
class Recalled:
    """What is known of a suite.

    :ivar level: the warm level to try: ``collection`` or ``imports``.
    :ivar modules: third-party modules that it is known to import.
    :ivar scan: whether there may be more of them.
    :ivar finding: why its workers have to collect for themselves, if that is known.
    """

    level: str
    modules: list[str]
    scan: bool
    finding: dict[str, Any] | None = None


class WarmMemory:
    """Kept in pytest's cache, so that ``--cache-clear`` forgets it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._cache: Any = getattr(config, "cache", None)

    def recall(self, warm: str) -> Recalled:
        """What to try.

        :param warm: what was asked for: ``auto``, ``collection`` or ``imports``.
        """
        stored = self._get(_MODULES)
        modules: list[str] = []
        complete = False
        if isinstance(stored, dict) and isinstance(stored.get("modules"), list):
            modules = [name for name in stored["modules"] if isinstance(name, str)]
            complete = bool(stored.get("complete"))
        known = self._get(_UNSUITABLE)
        if warm != "auto":
            return Recalled(warm, modules, scan=not complete)
        if isinstance(known, dict) and self._holds(known):
            return Recalled("imports", modules, scan=not complete, finding=known["findings"][0])
        return Recalled("collection", modules, scan=not complete)

    def remember_unsuitable(self, findings: list[dict[str, Any]], files: list[str]) -> None:
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

    def remember_modules(self, modules: list[str], *, complete: bool) -> None:
        """Note which third-party modules the suite imports.

        :param complete: whether the collection that imported them came to its end.
        """
        stored = {"modules": modules, "complete": complete}
        if stored != self._get(_MODULES):
            self._set(_MODULES, stored)

    def _holds(self, known: dict[str, Any]) -> bool:
        files = known.get("files")
        if not isinstance(files, dict) or known.get("args") != [str(a) for a in self._config.args]:
            return False
        findings = known.get("findings")
        if not isinstance(findings, list) or not findings or not _is_finding(findings[0]):
            return False
        return all(_stamp(path) == stamp for path, stamp in files.items())

    def _get(self, key: str) -> Any:
        return self._cache.get(key, None) if self._cache is not None else None

    def _set(self, key: str, value: object) -> None:
        if self._cache is not None:
            self._cache.set(key, value)


def _is_finding(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("what"), str)
        and isinstance(value.get("path"), (str, type(None)))
        and isinstance(value.get("lineno"), int)
    )


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
