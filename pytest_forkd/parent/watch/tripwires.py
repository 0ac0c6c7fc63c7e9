"""Notices when a suite uses a worker's identity before the workers exist.

Two of the four classes of worker state can tell workers apart before the fork: *identity*, which
is read from ``config.workerinput`` and from ``PYTEST_XDIST_WORKER``, and *resources*, which
:mod:`pytest_forkd.parent.watch.resources` looks for. The tripwires here report the code that reads
an identity key or the worker's name, asks for its pid, or makes temporary files.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, ItemsView, Iterable, Iterator, ValuesView
from types import FrameType
from typing import Any

import pytest_forkd
from pytest_forkd.parent.watch.asking import asks_whether
from pytest_forkd.parent.watch.findings import Finding, caller_outside, is_installed, is_stdlib

__all__ = ["SAFE_READERS", "EnvironTripwire", "PidTripwire", "TempfileTripwire", "WorkerInput"]

#: Top-level packages that read a worker's identity before tests run and are known to cope: each
#: either only asks "am I a worker?", or gets the new identity after the fork (see ``adapters``).
SAFE_READERS = frozenset(
    {
        "_pytest",
        "pytest",
        "pytest_benchmark",
        "pytest_cov",
        "pytest_forkd",
        "pytest_randomly",
        "pytest_rerunfailures",
        "pytest_timeout",
        "syrupy",
        "xdist",
    }
)

#: Modules that read on behalf of their caller, who is then reported instead; ``xdist.plugin`` has
#: ``get_xdist_worker_id()``.
_OWN_MODULES = frozenset(
    {__name__, "os", "_collections_abc", "collections.abc", "xdist", "xdist.plugin"}
)
_WORKER_VARIABLE = "PYTEST_XDIST_WORKER"


class _Trips(list[Finding]):
    """The findings of one tripwire, each place once."""

    def trip(self, what: str, frame: FrameType | None) -> None:
        reader = caller_outside(frame, _OWN_MODULES)
        if reader is None:
            finding = Finding(what)
        else:
            package = str(reader.f_globals.get("__name__", "")).partition(".")[0]
            if package in SAFE_READERS:
                return
            finding = Finding(what, reader.f_code.co_filename, reader.f_lineno)
        if finding not in self:
            self.append(finding)


class WorkerInput(dict[str, Any]):
    """``config.workerinput`` before the fork: reading a key that differs between nodes is noticed.

    :param values: the first node's ``workerinput``.
    :param identity_keys: the keys whose values differ between nodes.
    """

    def __init__(self, values: dict[str, Any], identity_keys: Iterable[str]) -> None:
        super().__init__(values)
        self._identity = frozenset(identity_keys)
        self.trips = _Trips()

    def announce(self, values: dict[str, Any], identity_keys: Iterable[str]) -> None:
        """Fill in the first node's values, which are not known yet when the object is made."""
        self.update(values)
        self._identity = frozenset(identity_keys)

    def become(self, values: dict[str, Any]) -> None:
        """Replace the contents with a worker's own values, and stop reporting reads."""
        self._identity = frozenset()
        self.clear()
        self.update(values)

    def _check(self, key: object) -> None:
        if key not in self._identity:
            return
        # Every worker has a name, so a test for one is harmless; other keys may be tested for more.
        accessor = sys._getframe(1)
        if key == "workerid" and accessor.f_code in _READS and asks_whether(accessor):
            return
        self._trip(key, accessor.f_back)

    def _check_all(self) -> None:
        for key in sorted(self._identity):
            self._trip(key, sys._getframe(2))

    def _trip(self, key: object, frame: FrameType | None) -> None:
        self.trips.trip(f'config.workerinput["{key}"] is read before the workers exist', frame)

    def __getitem__(self, key: str) -> Any:
        self._check(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._check(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self._check(key)
        return super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self._check(key)
        return super().setdefault(key, default)

    # Copying the mapping reads all values, and the copy would keep the identity of another worker.
    # So iterating over the values counts as reading them.

    def __iter__(self) -> Iterator[str]:
        # Needed, or dict(...) and ** copy the values of a dict subclass without calling its
        # methods. With __iter__ overridden they call __getitem__ for each value.
        return super().__iter__()

    def items(self) -> Any:
        self._check_all()
        return super().items()

    def values(self) -> Any:
        self._check_all()
        return super().values()

    def copy(self) -> dict[str, Any]:
        self._check_all()
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        self._check_all()
        return dict(super().items()) | other

    def __repr__(self) -> str:
        return repr(dict(super().items()))

    def __reduce__(self) -> Any:
        self._check_all()
        return dict, (dict(super().items()),)


#: Code that reads a value and changes nothing.
_READS = frozenset({WorkerInput.__getitem__.__code__, WorkerInput.get.__code__})


class EnvironTripwire:
    """Reports code that reads ``PYTEST_XDIST_WORKER`` from ``os.environ`` while it is armed.

    ``os.environ`` stays the same object, since modules keep references to it; only its class is
    changed. Copying the whole environment, for example for a subprocess, does not count as a read.
    """

    def __init__(self) -> None:
        self.trips = _Trips()
        self._original: type[Any] | None = None

    def arm(self) -> None:
        """Begin to notice."""
        original = type(os.environ)
        trips = self.trips
        copying: list[object] = [None]  # frame and instruction of the last call of keys()

        class TripwireEnviron(original):  # type: ignore[misc, valid-type]
            def __getitem__(self, key: Any) -> Any:
                if key == _WORKER_VARIABLE:
                    frame = sys._getframe(1)
                    if (
                        frame.f_code not in _WALKS
                        and copying[0] != (id(frame), frame.f_lasti)
                        and not asks_whether(sys._getframe())
                    ):
                        trips.trip(f"{key} is read before the workers exist", frame)
                return super().__getitem__(key)

            def __contains__(self, key: object) -> bool:
                # Not a read: whether the variable is set is the same in all workers.
                return key in list(super().__iter__())

            def keys(self) -> Any:
                # dict(os.environ) and ** call this and then read each value, all during a single
                # instruction of the caller.
                frame = sys._getframe(1)
                copying[0] = (id(frame), frame.f_lasti)
                return super().keys()

        self._original = original
        os.environ.__class__ = TripwireEnviron

    def disarm(self) -> None:
        """Restore ``os.environ``."""
        if self._original is not None:
            os.environ.__class__ = self._original
            self._original = None


class TempfileTripwire:
    """Reports temporary files and directories of the project that all workers would share.

    Each of xdist's workers would make its own. What an installed package makes does not count, nor
    does what is gone by the end of collection.
    """

    def __init__(self) -> None:
        self._made: list[tuple[str, Finding]] = []
        self._original: dict[str, Any] = {}

    @property
    def trips(self) -> list[Finding]:
        """Findings for what was made and still exists."""
        return [finding for path, finding in self._made if os.path.lexists(path)]

    def arm(self) -> None:
        """Begin to notice."""
        self._watch("mkdtemp", lambda made: made)
        self._watch("mkstemp", lambda made: made[1])
        self._watch("NamedTemporaryFile", lambda made: made.name)

    def disarm(self) -> None:
        """Restore ``tempfile``."""
        for name, function in self._original.items():
            setattr(tempfile, name, function)
        self._original.clear()

    def _watch(self, name: str, path_of: Callable[[Any], Any]) -> None:
        original = self._original[name] = getattr(tempfile, name)

        def noticing(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            caller = caller_outside(sys._getframe(1), _OWN_MODULES)
            path = caller.f_code.co_filename if caller is not None else None
            if caller is not None and not is_installed(path):
                what = f"tempfile.{name}() is called, and workers would share what it makes"
                self._made.append((path_of(made), Finding(what, path, caller.f_lineno)))
            return made

        setattr(tempfile, name, noticing)


class PidTripwire:
    """Reports code of the project that gets a pid while it is imported: ``PID = os.getpid()``.

    Calls by the standard library, for example to fill in a log record, do not count. A call by
    psutil counts as one by the code that made the ``Process()``. A call in a hook does not count:
    the hook wants the pid of the process that it runs in.
    """

    _NAMES = ("getpid", "getppid")

    def __init__(self) -> None:
        self.trips: list[Finding] = []
        self._original: dict[str, Any] = {}

    def arm(self) -> None:
        """Begin to notice."""
        for name in self._NAMES:
            self._watch(name)

    def disarm(self) -> None:
        """Restore ``os``; a wrapper that was imported by name keeps working."""
        for name, function in self._original.items():
            setattr(os, name, function)
        self._original.clear()

    def _watch(self, name: str) -> None:
        original = self._original[name] = getattr(os, name)

        @functools.wraps(original)
        def noticing() -> int:
            if self._original:
                frame: FrameType | None = sys._getframe(1)
                while frame is not None and _is_psutil(frame):
                    frame = frame.f_back
                path = frame.f_code.co_filename if frame is not None else ""
                if frame is not None and _is_own(path) and _is_imported(frame):
                    what = f"os.{name}() is called, and each worker has an id of its own"
                    finding = Finding(what, path, frame.f_lineno)
                    if finding not in self.trips:
                        self.trips.append(finding)
            return original()  # type: ignore[no-any-return]

        setattr(os, name, noticing)


#: This package's directory; in an editable install it would count as the project's own.
_THIS_PACKAGE = os.path.join(os.path.dirname(os.path.abspath(pytest_forkd.__file__)), "")


def _is_own(path: str) -> bool:
    return not (is_stdlib(path) or path.startswith(_THIS_PACKAGE) or is_installed(path))


def _is_imported(frame: FrameType | None) -> bool:
    """Whether a module of the project is being imported."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and _is_own(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


def _is_psutil(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "psutil"


#: Code objects that iterate over all values of a mapping.
_WALKS = frozenset({ItemsView.__iter__.__code__, ValuesView.__iter__.__code__})
