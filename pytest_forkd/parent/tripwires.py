"""What notices that a suite needs its workers' identities before they have one.

Two of the four classes of worker state can tell workers apart before the fork: *identity*, which
is read from ``config.workerinput`` and from ``PYTEST_XDIST_WORKER``, and *resources*, which
:mod:`pytest_forkd.parent.resources` looks for. Here, a mapping that reports who reads an identity
key, and an environment that reports who reads the worker's name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from pytest_forkd.parent.findings import Finding, caller_outside

__all__ = ["SAFE_READERS", "EnvironTripwire", "WorkerInput", "hook_findings"]

#: Top-level packages that read a worker's identity before tests run and are known to cope: each
#: either only asks "am I a worker?", or is told its identity again (see ``adapters``).
SAFE_READERS = frozenset(
    {
        "_pytest",
        "pytest",
        "pytest_cov",
        "pytest_forkd",
        "pytest_randomly",
        "pytest_rerunfailures",
        "pytest_timeout",
        "syrupy",
        "xdist",
    }
)

#: Modules through which one reads without being the reader; ``xdist.plugin`` has
#: ``get_xdist_worker_id``, which anybody may call.
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

    def become(self, values: dict[str, Any]) -> None:
        """Take over a worker's own values, in place, and notice nothing any more."""
        self._identity = frozenset()
        self.clear()
        self.update(values)

    def _check(self, key: object) -> None:
        if key in self._identity:
            self.trips.trip(
                f'config.workerinput["{key}"] is read before the workers exist', sys._getframe(2)
            )

    def _check_all(self) -> None:
        for key in sorted(self._identity):
            self._check(key)

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

    # Walking over all values is how a mapping is copied or printed. Who copies it keeps an
    # identity that is not its own, so that counts, too.

    def __iter__(self) -> Iterator[str]:
        # Only because dict(...) and ** look at the values of a dict subclass behind its back
        # unless it says how it is iterated over; then they ask for each value.
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


class EnvironTripwire:
    """Notices who reads ``PYTEST_XDIST_WORKER`` from ``os.environ`` while it is armed.

    ``os.environ`` stays the same object, since modules keep references to it; only its class is
    changed. Copying the whole environment, as one does for a subprocess, is no reading of this
    variable.
    """

    def __init__(self) -> None:
        self.trips = _Trips()
        self._original: type[Any] | None = None

    def arm(self) -> None:
        """Begin to notice."""
        original = type(os.environ)
        trips = self.trips
        walk = _Walk()

        class TripwireEnviron(original):  # type: ignore[misc, valid-type]
            def __getitem__(self, key: Any) -> Any:
                if key == _WORKER_VARIABLE and not walk.covers(key):
                    trips.trip(
                        f"{_WORKER_VARIABLE} is read before the workers exist", sys._getframe(1)
                    )
                walk.last_read = key
                return super().__getitem__(key)

            def __contains__(self, key: object) -> bool:
                # Asking whether it is set asks for the role, which is the same in all workers.
                return key in list(super().__iter__())

            def __iter__(self) -> Iterator[Any]:
                for key in super().__iter__():
                    walk.last_yielded = key
                    yield key
                walk.last_yielded = None

            def keys(self) -> Any:
                keys = list(super().__iter__())
                if _WORKER_VARIABLE in keys[1:]:
                    walk.predecessor = keys[keys.index(_WORKER_VARIABLE) - 1]
                return super().keys()

        self._original = original
        os.environ.__class__ = TripwireEnviron

    def disarm(self) -> None:
        """Make ``os.environ`` what it was."""
        if self._original is not None:
            os.environ.__class__ = self._original
            self._original = None


class _Walk:
    """Tells a reading of one variable from a walk over all of them.

    ``items()`` reads each value right after its key was yielded. ``dict(os.environ)`` lists all
    keys and then reads the values in that order.
    """

    def __init__(self) -> None:
        self.last_yielded: Any = None
        self.last_read: Any = None
        self.predecessor: Any = None

    def covers(self, key: Any) -> bool:
        return self.last_yielded == key or (
            self.predecessor is not None and self.last_read == self.predecessor
        )


#: Hooks that a project pairs with each other and expects once a worker, in that worker.
_SESSION_HOOKS = ("pytest_sessionstart", "pytest_sessionfinish", "pytest_unconfigure")


def hook_findings(pluginmanager: Any, known: set[Any]) -> list[Finding]:
    """Project-local implementations of session hooks.

    :param pluginmanager: pytest's plugin manager.
    :param known: plugins already looked at; those seen now are added.
    """
    from pytest_forkd.parent.findings import is_installed, place_of

    findings = []
    for plugin in pluginmanager.get_plugins():
        if id(plugin) in known:
            continue
        known.add(id(plugin))
        for hook in _SESSION_HOOKS:
            function = getattr(plugin, hook, None)
            code = getattr(getattr(function, "__func__", function), "__code__", None)
            if code is None:
                continue
            path, lineno = place_of(code)
            if not is_installed(path) and not _is_ours(plugin):
                findings.append(
                    Finding(
                        f"{hook} is implemented and expects to run in each worker", path, lineno
                    )
                )
    return findings


def _is_ours(plugin: object) -> bool:
    module = getattr(plugin, "__name__", None) or type(plugin).__module__
    return str(module).partition(".")[0] in ("pytest_forkd", "xdist", "_pytest")
