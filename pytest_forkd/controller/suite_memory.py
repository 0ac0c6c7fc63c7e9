"""What is remembered about a suite: whether it can share one collection, and if not, why."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from pytest_forkd.compat.pluggy import distribution_directory
from pytest_forkd.config.cache import QuietCache
from pytest_forkd.parent.fingerprint import that_matter
from pytest_forkd.runtime.file_stamps import last_write

__all__ = ["MODULES_KEY", "Modules", "Recalled", "WarmMemory", "finding_line", "warn_about"]

_UNSUITABLE = "forkd/unsuitable"
#: For how many sets of plugins and arguments findings are remembered, most recent first.
_MOST_UNSUITABLE = 8
_SECONDS = "forkd/collection-seconds"
MODULES_KEY = "forkd/modules"


@dataclass
class Modules:
    """Which third-party modules a suite imports.

    :ivar names: in the order of their import.
    :ivar complete: whether the collection that imported them came to its end.
    :ivar skip: top-level packages that cannot be imported early, and why.
    """

    names: list[str] = field(default_factory=list)
    complete: bool = False
    skip: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: object) -> Modules:
        """The inverse of :meth:`to_json`; empty if ``stored`` is anything else."""
        if not isinstance(stored, dict) or not isinstance(stored.get("modules"), list):
            return cls()
        skip = stored.get("skip")
        return cls(
            [name for name in stored["modules"] if isinstance(name, str)],
            bool(stored.get("complete")),
            {str(k): str(v) for k, v in skip.items()} if isinstance(skip, dict) else {},
        )

    def to_json(self) -> dict[str, Any]:
        """To be stored as JSON."""
        return {"modules": self.names, "complete": self.complete, "skip": self.skip}


class Recalled(NamedTuple):
    """What is known about a suite.

    :ivar level: the warm level to try: ``collection`` or ``imports``.
    :ivar modules: third-party modules that it is known to import.
    :ivar finding: why its workers have to collect for themselves, if that is known.
    """

    level: str
    modules: Modules
    finding: dict[str, Any] | None = None


class WarmMemory:
    """Remembers it in pytest's cache, so that ``--cache-clear`` clears it.

    :param ignored: patterns of environment variables that do not matter; see
        :func:`~pytest_forkd.parent.fingerprint.fingerprint`.
    """

    def __init__(self, config: pytest.Config, ignored: Iterable[str] = ()) -> None:
        self._config = config
        # A digest only: variables may hold passwords, and the cache may not be private.
        environ = repr(that_matter(os.environ, ignored)).encode("utf-8", "surrogateescape")
        self._environ = hashlib.sha256(environ).hexdigest()[:20]
        self._cache = QuietCache(config)
        self._plugins = active_plugins(config)

    def recall(self, warm: str, min_shared_collection_seconds: float = 0.0) -> Recalled:
        """What to try in this run.

        :param warm: what the user asked for: ``auto``, ``collection`` or ``imports``.
        :param min_shared_collection_seconds: a collection that took less time is not shared.
        """
        modules = Modules.from_json(self._cache.get(MODULES_KEY))
        if warm != "auto":
            return Recalled(warm, modules)
        for known in self._unsuitable():
            if self._same_run(known) and self._holds(known):
                return Recalled("imports", modules, finding=known["findings"][0])
        seconds = self._cache.get(_SECONDS)
        if isinstance(seconds, float) and seconds < min_shared_collection_seconds:
            return Recalled("imports", modules)
        return Recalled("collection", modules)

    def remember_unsuitable(self, findings: list[dict[str, Any]], files: list[str]) -> None:
        """Remember why this suite's workers have to collect for themselves.

        This is valid for the same arguments, plugins and environment, until one of the loaded
        project files or the ini file changes.

        :param files: the project's files.
        """
        if self._config.inipath is not None:
            files = [*files, str(self._config.inipath)]
        known = {
            "args": [str(arg) for arg in self._config.args],
            "plugins": self._plugins,
            "environ": self._environ,
            "findings": findings,
            "files": {path: last_write(path) for path in files},
        }
        others = [each for each in self._unsuitable() if not self._same_run(each)]
        self._cache.set(_UNSUITABLE, [known, *others][:_MOST_UNSUITABLE])

    def remember_seconds(self, seconds: float) -> None:
        """Remember how long a collection took."""
        self._cache.set(_SECONDS, round(float(seconds), 3))

    def remember_modules(self, modules: Modules) -> None:
        """Remember which third-party modules the suite imports."""
        stored = modules.to_json()
        if stored != self._cache.get(MODULES_KEY):
            self._cache.set(MODULES_KEY, stored)

    def _unsuitable(self) -> list[dict[str, Any]]:
        known = self._cache.get(_UNSUITABLE)
        return [each for each in known if isinstance(each, dict)] if isinstance(known, list) else []

    def _same_run(self, known: dict[str, Any]) -> bool:
        mine = ([str(arg) for arg in self._config.args], self._plugins, self._environ)
        return (known.get("args"), known.get("plugins"), known.get("environ")) == mine

    def _holds(self, known: dict[str, Any]) -> bool:
        files = known.get("files")
        if not isinstance(files, dict):
            return False
        findings = known.get("findings")
        if not isinstance(findings, list) or not findings or not _is_finding(findings[0]):
            return False
        return all(last_write(path) == stamp for path, stamp in files.items())


def active_plugins(config: pytest.Config) -> list[str]:
    """The loaded plugins, each with something that changes with its version, and Python's version.

    Conftests and built-in plugins are left out: they belong to the project's files and to pytest.
    """
    manager = config.pluginmanager
    found = {sys.version.split()[0], f"pytest {pytest.__version__}"}
    for _plugin, distribution in manager.list_plugin_distinfo():
        folder = distribution_directory(distribution)
        found.add(os.path.basename(folder) if folder else f"{distribution.project_name}")
    for _name, plugin in manager.list_name_plugin():
        path = getattr(plugin, "__file__", None)
        if not isinstance(plugin, ModuleType) or not path or plugin.__name__.startswith("_pytest."):
            continue
        if os.path.basename(path) != "conftest.py":
            found.add(f"{plugin.__name__} {last_write(path)}")
    return sorted(found)


def _is_finding(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("what"), str)
        and isinstance(value.get("path"), (str, type(None)))
        and isinstance(value.get("lineno"), int)
    )


def finding_line(finding: dict[str, Any], config: pytest.Config) -> str:
    """A finding in one line, with the file and line that caused it if they are known."""
    path = finding["path"]
    if not path:
        return str(finding["what"])
    with contextlib.suppress(ValueError):
        path = os.path.relpath(path, config.invocation_params.dir)
    place = f"{path}:{finding['lineno']}" if finding["lineno"] else path
    return f"{finding['what']} ({place})"


def warn_about(
    findings: list[dict[str, Any]], config: pytest.Config, warn: Callable[[str], object]
) -> None:
    """Turn findings into warnings if ``--forkd-warm=collection`` is used in spite of them."""
    for finding in findings:
        warn(f"workers share one collection, but {finding_line(finding, config)}")
