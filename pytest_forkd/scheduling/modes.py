"""Which of ``--dist``'s modes forkd's own scheduler serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from xdist.scheduler import LoadFileScheduling, LoadGroupScheduling, LoadScopeScheduling

from pytest_forkd.scheduling.estimates import Estimates
from pytest_forkd.scheduling.scheduler import ForkdScheduling

__all__ = ["SplitScope", "make_scheduler"]

#: The scope of the item with an id: what is in one scope runs on one worker.
SplitScope = Callable[[str], str]


def _split_scope(scheduler: type[LoadScopeScheduling]) -> SplitScope:
    """xdist's own function, which uses nothing of the scheduler that it is a method of."""
    return scheduler.__new__(scheduler)._split_scope


_SCOPES = {
    "loadscope": LoadScopeScheduling,
    "loadfile": LoadFileScheduling,
    "loadgroup": LoadGroupScheduling,
}
#: Options of pytest's that put tests into an order which is meant to be kept.
_IN_ORDER = ("failedfirst", "newfirst", "stepwise")


def make_scheduler(
    config: pytest.Config,
    nobody_asked: bool,
    estimate: Callable[[Sequence[str], SplitScope | None], Estimates],
) -> ForkdScheduling | None:
    """forkd's scheduler: where no mode was asked for, and for those that keep scopes together.

    :param nobody_asked: whether the mode that ``config`` has is forkd's choice.
    :param estimate: called with the ids of all items, once they are known.
    :returns: ``None`` for the modes that are xdist's.
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
