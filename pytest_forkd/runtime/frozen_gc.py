"""Freezes and pauses the garbage collector for speed, and hides that from other code.

Frozen objects (:func:`gc.freeze`) are left out of a worker's garbage collections, which would
otherwise copy memory pages that workers share, and out of the controller's. But then
:func:`gc.get_objects` skips them, and :func:`gc.collect` does not free them. Pausing the collector
saves a fifth of the time of a collection of tests, but imported code would see it disabled. So the
functions of :mod:`gc` are replaced by ones that return what they would without all this. Those that
need frozen objects thaw them first, in that process, which costs the memory that was shared.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

__all__ = ["collect_others", "freeze", "pause", "resume", "thaw", "watch"]


class _Watched:
    """Replaces a function of :mod:`gc`, and chooses at each call what to call in its place.

    No frame of ours may be on the stack during the call: freeing an object may lead to a warning,
    which names the caller. So ``__call__`` is a property: it returns the function to call, and has
    ended when that function runs.

    :param name: the name of the function.
    :param choose: gets the function; returns the function to call.
    """

    def __init__(
        self, name: str, choose: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self._function = function = getattr(gc, name)
        self._choose = choose
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__", "__self__"):
            setattr(self, attribute, getattr(function, attribute))

    @property
    def __call__(self) -> Callable[..., Any]:
        return self._choose(self._function)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._function)

    def __repr__(self) -> str:
        return repr(self._function)

    def __reduce__(self) -> str:
        return str(self._function.__name__)  # pickle finds it in its module


_collector_enable, _collector_disable, _collector_enabled = gc.enable, gc.disable, gc.isenabled
_collector_freeze, _collector_thaw = gc.freeze, gc.unfreeze
_collector_collect = gc.collect

#: How many objects the interpreter itself has frozen (some hundred in Python 3.12).
_frozen_at_start = gc.get_freeze_count()
#: Whether we have frozen objects; and whether we have thawed those frozen at the start.
_frozen = _thawed = False
#: Whether other code has called gc.freeze() or gc.unfreeze(): we no longer freeze then.
_taken = False
#: While the collector is paused: whether other code sees it enabled. ``None`` if it is not paused.
_enabled: bool | None = None


def watch() -> None:
    """Watch the functions of :mod:`gc` from now on, in this process and in its forks.

    Call it before other code can import one of them by name.
    """
    if isinstance(gc.collect, _Watched):
        return
    chosen: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
        "collect": _after_thawing,
        "disable": lambda function: function if _enabled is None else _believe_disabled,
        "enable": lambda function: function if _enabled is None else _believe_enabled,
        "freeze": _after_taking,
        "get_freeze_count": lambda function: lambda: _count(function()),
        "get_objects": _after_thawing,
        "isenabled": lambda function: function if _enabled is None else _is_believed_enabled,
        "unfreeze": _after_taking,
    }
    for name, choose in chosen.items():
        setattr(gc, name, _Watched(name, choose))
    gc.get_referrers = _watched_referrers()


def _watched_referrers() -> Callable[..., list[Any]]:
    """A stand-in for :func:`gc.get_referrers`.

    With a :class:`_Watched`, the tuple of arguments would be among the referrers: since Python 3.13
    the function does not leave it out, and the caller could not tell it from a tuple of its own.
    """
    function = gc.get_referrers

    @functools.wraps(function, assigned=(*functools.WRAPPER_ASSIGNMENTS, "__self__"))
    def get_referrers(*objs: Any) -> list[Any]:
        thaw()
        return [each for each in function(*objs) if each is not objs]

    return get_referrers


def freeze() -> None:
    """Freeze all existing objects, unless other code has used gc.freeze() or gc.unfreeze()."""
    global _frozen
    if not _taken:
        _collector_freeze()
        _frozen = True


def thaw() -> None:
    """Undo :func:`freeze`."""
    global _frozen, _thawed
    if _frozen:
        _collector_thaw()
        _frozen, _thawed = False, True


def collect_others() -> int:
    """Collect objects that are not frozen; returns how many were unreachable."""
    return _collector_collect()


def pause() -> None:
    """Disable the collector until :func:`resume` is called; forks inherit that."""
    global _enabled
    if _enabled is None:
        _enabled = _collector_enabled()
        _collector_disable()


def resume() -> None:
    """Enable the collector, unless other code has disabled it before or meanwhile."""
    global _enabled
    if _enabled:
        _collector_enable()
    _enabled = None


def _after_thawing(function: Callable[..., Any]) -> Callable[..., Any]:
    thaw()
    return function


def _after_taking(function: Callable[..., Any]) -> Callable[..., Any]:
    global _taken, _thawed
    thaw()
    _taken, _thawed = True, False  # from now on, other code decides what is frozen
    return function


def _count(count: int) -> int:
    if _frozen:
        return _frozen_at_start
    return count + _frozen_at_start if _thawed else count


def _believe_disabled() -> None:
    global _enabled
    _enabled = False


def _believe_enabled() -> None:
    global _enabled
    _enabled = True


def _is_believed_enabled() -> bool:
    return bool(_enabled)
