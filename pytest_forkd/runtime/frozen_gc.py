"""The garbage collector, frozen and paused for the sake of speed, and nobody can tell.

Frozen objects (:func:`gc.freeze`) stay out of a worker's collections, which would otherwise copy
the pages that it shares with the others, and out of the controller's. But :func:`gc.get_objects`
skips them, too, and :func:`gc.collect` does not free them. A paused collector saves a fifth of the
time of a collection of tests, but code that is imported sees it switched off. So :mod:`gc` is
watched: whoever asks a question to which the answer would be another one gets the plain answer.
Who is told of frozen objects has them thawed first, in that process, which costs the memory that
was shared.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

__all__ = ["collect_others", "freeze", "pause", "resume", "thaw", "watch"]


class _Watched:
    """Stands in :mod:`gc` for a function, of which it decides when it is called.

    The call itself is made without a frame of ours, for a warning that the collection of an object
    leads to names the caller. That is what a property in the place of ``__call__`` is for: it
    returns what is to be called, and has returned when that happens.

    :param name: of the function.
    :param choose: is given the function; returns what is to be called.
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

#: What the interpreter itself has frozen (some hundred objects, in Python 3.12).
_frozen_at_start = gc.get_freeze_count()
#: Whether what is frozen was frozen by us; and whether what was frozen at the start no longer is.
_frozen = _thawed = False
#: Somebody has a use of his own for it.
_taken = False
#: While the collector is paused: whether it is on, as far as everybody else is concerned.
_enabled: bool | None = None


def watch() -> None:
    """Watch the functions of :mod:`gc` from now on, in this process and in its forks.

    Call it before anybody could import one of them by its name.
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

    A :class:`_Watched` would be called with a tuple of the arguments, which refers to them, too.
    From Python 3.13 on the function does not leave that out, and nobody else can tell it from a
    tuple of the caller's own.
    """
    function = gc.get_referrers

    @functools.wraps(function, assigned=(*functools.WRAPPER_ASSIGNMENTS, "__self__"))
    def get_referrers(*objs: Any) -> list[Any]:
        thaw()
        return [each for each in function(*objs) if each is not objs]

    return get_referrers


def freeze() -> None:
    """Freeze all objects that there are, unless somebody else freezes or thaws them on purpose."""
    global _frozen
    if not _taken:
        _collector_freeze()
        _frozen = True


def thaw() -> None:
    """Have everything that :func:`freeze` froze looked at again."""
    global _frozen, _thawed
    if _frozen:
        _collector_thaw()
        _frozen, _thawed = False, True


def collect_others() -> int:
    """Collect what is not frozen; returns how many objects could not be reached."""
    return _collector_collect()


def pause() -> None:
    """Do not collect anything until :func:`resume` is called; forks are paused, too."""
    global _enabled
    if _enabled is None:
        _enabled = _collector_enabled()
        _collector_disable()


def resume() -> None:
    """Collect again, unless the collector was switched off before, or meanwhile."""
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
    _taken, _thawed = True, False  # what the interpreter froze is now frozen or not as they say
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
