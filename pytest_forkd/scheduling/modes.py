"""Which of ``--dist``'s modes forkd's own scheduler implements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from xdist.scheduler import LoadFileScheduling, LoadGroupScheduling, LoadScopeScheduling

from pytest_forkd.scheduling.estimates import Estimates
from pytest_forkd.scheduling.scheduler import ForkdScheduling

__all__ = ["SplitScope", "make_scheduler"]

#: Returns the scope of the item with an id; all items of a scope run on one worker.
SplitScope = Callable[[str], str]


def _split_scope(scheduler: type[LoadScopeScheduling]) -> SplitScope:
    """xdist's own method, as a function: it does not use ``self``."""
    return scheduler.__new__(scheduler)._split_scope


_SCOPES = {
    "loadscope": LoadScopeScheduling,
    "loadfile": LoadFileScheduling,
    "loadgroup": LoadGroupScheduling,
}
#: Options of pytest that put tests into an order that has to be kept.
_IN_ORDER = ("failedfirst", "newfirst", "stepwise")


def make_scheduler(
    config: pytest.Config,
    nobody_asked: bool,
    estimate: Callable[[Sequence[str], SplitScope | None], Estimates],
) -> ForkdScheduling | None:
    """forkd's scheduler, if the user asked for no mode, or for one that keeps scopes together.

    :param nobody_asked: whether forkd has chosen the mode in ``config``, not the user.
    :param estimate: called with the ids of all items, once they are known.
    :returns: ``None`` for modes that are left to xdist.
    """
    dist = config.getvalue("dist")
    split_scope = None
    if not nobody_asked:
        if dist not in _SCOPES:
            return None
        split_scope = _split_scope(_SCOPES[dist])
    in_order = split_scope is not None and not getattr(config.option, "loadscopereorder", True)
    in_order = in_order or any(getattr(config.option, name, False) for name in _IN_ORDER)
    return ForkdScheduling(
        config,
        len(config.option.tx),
        lambda ids: estimate(ids, split_scope),
        reorder=not in_order,
        report=lambda report: config.hook.pytest_collectreport(report=report),
    )
