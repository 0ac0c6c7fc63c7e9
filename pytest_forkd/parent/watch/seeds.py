"""Which global random generators differ between workers, and which are alike on purpose."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import random
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

__all__ = ["SeedWatch"]

#: The functions that read and write a module's global generator: seed, get and set its state.
_FUNCTIONS = {
    "random": ("seed", "getstate", "setstate"),
    "numpy.random": ("seed", "get_state", "set_state"),
}


class SeedWatch:
    """Remembers whether collection seeded the global random generators on purpose.

    A generator that was not seeded must differ between workers. One that a module seeded while it
    was imported has the same state in each of xdist's workers, so it must here, too. Restoring a
    state that was saved before does not count as seeding.
    """

    def __init__(self) -> None:
        self._seeded: set[str] = set()
        self._restore: list[Callable[[], None]] = []
        self._state: Any = None

    def start(self) -> None:
        """Begin to watch the generators of ``random`` and ``numpy.random``."""
        self._watch(random)
        if "numpy.random" in sys.modules:
            self._watch(sys.modules["numpy.random"])
        else:
            finder = _AfterImport("numpy.random", self._watch)
            sys.meta_path.insert(0, finder)
            self._restore.append(lambda: _remove(sys.meta_path, finder))

    def stop(self) -> None:
        """Stop watching; to be called before the first fork."""
        for restore in reversed(self._restore):
            restore()
        self._restore.clear()
        self._state = random.getstate()

    def reseed(self) -> None:
        """In a worker: reseed generators that were not seeded, and restore those that were."""
        # Python reseeds its own generator in every fork (random.py: os.register_at_fork).
        if "random" in self._seeded:
            random.setstate(self._state)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None and "numpy.random" not in self._seeded:
            with contextlib.suppress(AttributeError):
                numpy_random.seed()
        generator = getattr(sys.modules.get("hypothesis.core"), "_hypothesis_global_random", None)
        if generator is not None:
            generator.seed()

    def _watch(self, module: ModuleType) -> None:
        name = module.__name__
        functions = vars(module)
        seed_name, get_name, set_name = _FUNCTIONS[name]
        original = {key: functions[key] for key in _FUNCTIONS[name]}
        found: set[object] = set()  # states read while the generator was unseeded

        def mark(seeded: bool) -> None:
            (self._seeded.add if seeded else self._seeded.discard)(name)

        def seed(*args: Any, **kwargs: Any) -> Any:
            mark(any(value is not None for value in (*args, *kwargs.values())))
            return original[seed_name](*args, **kwargs)

        def get_state(*args: Any, **kwargs: Any) -> Any:
            state = original[get_name](*args, **kwargs)
            if name not in self._seeded:
                found.add(_fingerprint(state))
            return state

        def set_state(state: Any) -> Any:
            mark(_fingerprint(state) not in found)
            return original[set_name](state)

        wrappers = {seed_name: seed, get_name: get_state, set_name: set_state}
        functions.update(wrappers)

        def restore() -> None:
            for key, wrapper in wrappers.items():
                if functions.get(key) is wrapper:
                    functions[key] = original[key]

        self._restore.append(restore)


def _fingerprint(state: Any) -> object:
    """Something hashable that is equal for equal generator states."""
    if isinstance(state, dict):
        return tuple((key, _fingerprint(value)) for key, value in sorted(state.items()))
    if isinstance(state, (tuple, list)):
        return tuple(_fingerprint(value) for value in state)
    return state.tobytes() if hasattr(state, "tobytes") else state


def _remove(finders: list[Any], finder: object) -> None:
    if finder in finders:
        finders.remove(finder)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls back once a module has been imported."""

    def __init__(self, name: str, callback: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._callback = callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> Any:
        if fullname != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module
        callback = self._callback

        def exec_and_call(module: ModuleType) -> None:
            exec_module(module)
            callback(module)

        spec.loader.exec_module = exec_and_call  # type: ignore[method-assign]
        return spec
