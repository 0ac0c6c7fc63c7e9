"""Durations of tests and shared fixtures, kept from run to run.

The file is compact JSON::

    {"version": 1,
     "tests": {"test_a.py": {"::test_one": [setup, call, teardown]}},
     "fixtures": {"test_a.py::costly": seconds}}

Times are seconds. The file is in pytest's cache directory, or where ``--forkd-durations`` says, for
example to pass it from one CI job to the next. If it cannot be read or written, that is only a
warning: it is not worth failing a run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_forkd.compat.pytest import cache_directory_of
from pytest_forkd.config.cache import QuietCache

__all__ = ["Durations", "durations_path"]

_VERSION = 1
_DIRECTORY = "forkd"
_FILE = "durations.json"


def durations_path(config: pytest.Config) -> tuple[Path | None, bool]:
    """Where durations are kept.

    :returns: the file (``None`` if there is no cache), and whether the user has named it.
    """
    named = config.getoption("forkd_durations", None)
    if named:
        return Path(config.invocation_params.dir, os.path.expanduser(named)), True
    named = config.getini("forkd_durations")
    if named:
        return Path(config.rootpath, os.path.expanduser(named)), True
    cache: Any = getattr(config, "cache", None)
    if cache is None:
        return None, False
    # In folder "d", which --cache-clear empties when the session is set up.
    return cache_directory_of(cache) / "d" / _DIRECTORY / _FILE, False


class Durations:
    """The durations of earlier runs, and those of this one.

    :param path: path of the file; ``None`` keeps nothing.
    :param warn: called with a message if the file cannot be used.
    :param named: whether the user has named it.
    :param make_directory: called before the file is written.
    """

    def __init__(
        self,
        path: Path | None,
        warn: Callable[[str], object],
        *,
        named: bool = False,
        make_directory: Callable[[], object] = lambda: None,
    ) -> None:
        self.path = path
        self._warn = warn
        self._make_directory = make_directory
        self.named = named
        self._tests: dict[str, dict[str, list[float]]] = {}
        self._new: dict[int, list[float]] = {}
        #: Seconds for the set-up of each shared fixture, by key.
        self.fixtures: dict[str, float] = {}
        self._new_fixtures: dict[str, float] = {}

    @classmethod
    def load(cls, config: pytest.Config, warn: Callable[[str], object]) -> Durations:
        """Read the durations of earlier runs."""
        path, named = durations_path(config)
        cache = QuietCache(config)
        make_directory = (lambda: None) if named else partial(cache.make_directory, _DIRECTORY)
        durations = cls(path, warn, named=named, make_directory=make_directory)
        durations.read()
        return durations

    def read(self) -> None:
        """Read the file, if there is one; warns if it makes no sense."""
        if self.path is None:
            return
        try:
            self._tests, self.fixtures = _parse(self.path.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError) as exc:
            self._warn(f"cannot use the durations in {self.path}: {exc}")

    def known(self, ids: Sequence[str]) -> dict[str, float]:
        """Seconds that the items took before, by id, as far as known.

        Warns if the user has named a file of another suite.
        """
        known = {}
        for nodeid in ids:
            file, name = _split(nodeid)
            of_file = self._tests.get(file)
            if of_file is not None:
                phases = of_file.get(name)
                if phases is not None:
                    known[nodeid] = phases[0] + phases[1] + phases[2]
        if self.named and ids and self._tests and not known:
            self._warn(
                f"the durations in {self.path} are of another suite: they know none of the tests"
            )
        return known

    def record(self, index: int, phases: list[float]) -> None:
        """Record how long the item at ``index`` took: seconds of set-up, call and teardown."""
        self._new[index] = phases

    def record_fixture(self, key: str, seconds: float) -> None:
        """Record that a shared fixture's set-up took ``seconds``; a run's shortest time counts."""
        known = self._new_fixtures.get(key)
        if known is None or seconds < known:
            self._new_fixtures[key] = seconds

    def save(self, ids: Sequence[str]) -> None:
        """Add what this run has measured to the file; warns if it cannot be written.

        :param ids: the ids of the items, for the indices given to :meth:`record`.
        """
        if self.path is None or not (self._new or self._new_fixtures):
            return
        for index, phases in self._new.items():
            file, name = _split(ids[index])
            self._tests.setdefault(file, {})[name] = phases
        for key, seconds in self._new_fixtures.items():
            self.fixtures[key] = seconds
        data = {"version": _VERSION, "tests": self._tests, "fixtures": self.fixtures}
        try:
            self._make_directory()
            _write(self.path, json.dumps(data, separators=(",", ":")).encode("ascii"))
        except OSError as exc:
            if self.named:  # else pytest itself warns about its cache
                self._warn(f"cannot write the durations to {self.path}: {exc}")


def _split(nodeid: str) -> tuple[str, str]:
    file, separator, name = nodeid.partition("::")
    return file, separator + name


def _parse(data: bytes) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    content = json.loads(data)
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError("it is not a file of durations of this version of pytest-forkd")
    tests, fixtures = content.get("tests"), content.get("fixtures")
    if not isinstance(tests, dict) or not isinstance(fixtures, dict):
        raise ValueError("it holds no durations")
    for of_file in tests.values():
        if not isinstance(of_file, dict):
            raise ValueError("it holds no tests")
        for phases in of_file.values():
            if type(phases) is not list or len(phases) != 3:
                raise ValueError("it holds no durations")
            a, b, c = phases
            if (
                type(a) is type(b) is type(c) is float
                and 0 <= a < math.inf
                and 0 <= b < math.inf
                and 0 <= c < math.inf
            ):
                continue  # as good as always
            if not (_is_time(a) and _is_time(b) and _is_time(c)):
                raise ValueError("it holds what is no duration")
    if not all(map(_is_time, fixtures.values())):
        raise ValueError("it holds what is no duration")
    return tests, fixtures


def _is_time(value: object) -> bool:
    return (type(value) is float or type(value) is int) and 0 <= value < math.inf


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
