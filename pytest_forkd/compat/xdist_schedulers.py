"""Taking a dead worker out of xdist's schedulers, so that no test is blamed, lost or run twice.

xdist's schedulers assume that the first test that a node has not completed has crashed it. Here the
worker has reported which test it was running; if it died between tests, no test crashed it. The
schedulers' bookkeeping also has gaps that show only when workers are replaced quickly (pytest-xdist
3.6 to 3.8); each one is described where it is dealt with.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import EachScheduling, LoadScopeScheduling

__all__ = ["run_again", "take_out", "top_up"]


def take_out(sched: Any, node: Any, running: str | None) -> tuple[str | None, bool]:
    """Remove a dead node; its other tests go back to the scheduler.

    :param sched: the scheduler, or ``None`` before there is one.
    :param node: the dead node.
    :param running: the id of the test that it reported to be running.
    :returns: the id of the test that crashed, if any, and whether a replacement has work.
    """
    if sched is None or node not in sched.nodes:
        return None, True
    if isinstance(sched, EachScheduling):
        return running, _take_out_each(sched, node)
    if isinstance(sched, LoadScopeScheduling):
        _take_out_scopes(sched, node, running)
        return running, True
    first = sched.remove_node(node)
    if first is not None and running is None:
        sched.mark_test_pending(first)
        return None, True
    return first, True


def _take_out_each(sched: EachScheduling, node: Any) -> bool:
    """Leave the tests that the node has not run to its replacement.

    ``remove_node`` does not know a replacement's collection. And a replacement for a node that had
    no tests left would be taken for a new node, and run all tests again.
    """
    pending = sched.node2pending.pop(node)
    if node.running in pending:
        pending.remove(node.running)
    sched.node2collection.setdefault(node, node.ids or [])
    if pending:
        sched._removed2pending[node] = pending
    return bool(pending)


def _take_out_scopes(sched: LoadScopeScheduling, node: Any, running: str | None) -> None:
    """Queue the node's scopes again, without the tests that were run.

    ``remove_node`` would also queue completed scopes, for which a node would wait for ever, and the
    test that crashed.
    """
    work = sched.assigned_work[node]
    if running is not None:
        work[sched._split_scope(running)][running] = True
    for scope in [scope for scope, unit in work.items() if all(unit.values())]:
        del work[scope]
    sched.remove_node(node)  # the test that it returns has not begun, and was queued again


def top_up(sched: Any) -> None:
    """Give every node enough to begin with.

    A worker begins a test only when it knows the next one, or that there is none. A replacement
    gets a single scope from ``LoadScopeScheduling``; if that has one test, the run would hang.
    """
    if isinstance(sched, LoadScopeScheduling) and sched.collection is not None:
        for node in sched.nodes:
            while not node.shutting_down and sched._pending_of(sched.assigned_work[node]) < 2:
                sched._reschedule(node)  # shuts the node down if there is nothing to give


def run_again(sched: Any, node: Any, nodeid: str) -> None:
    """Queue a test again that was interrupted through no fault of its own.

    :param node: the dead node that was running it; must have been taken out before.
    """
    if isinstance(sched, EachScheduling):
        index = (node.ids or []).index(nodeid)
        sched._removed2pending.setdefault(node, []).insert(0, index)
    elif isinstance(sched, LoadScopeScheduling):
        sched.workqueue.setdefault(sched._split_scope(nodeid), {})[nodeid] = False
    else:
        sched.mark_test_pending(nodeid)
