"""forkd's scheduler: longest tests first, in shrinking chunks, with work stealing at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from xdist.report import report_collection_diff

from pytest_forkd.scheduling.estimates import Estimates
from pytest_forkd.scheduling.pool import Pool

__all__ = ["ForkdScheduling"]

#: A worker with at most this many items left, expected to take at most this many seconds, is given
#: more before it asks, so that it does not have to wait for an answer.
LOW_ITEMS = 8
LOW_SECONDS = 0.01


class _Share:
    """What one node has been given."""

    __slots__ = ("committed", "items", "scopes", "since", "stealing_for", "wanting")

    def __init__(self) -> None:
        #: Items that it has not completed, in the order in which it runs them.
        self.items: dict[int, None] = {}
        #: Scopes of which it has completed a test, if scopes must not be split.
        self.scopes: set[str] = set()
        #: Items that cannot be taken back, since they have begun or are about to.
        self.committed: set[int] = set()
        #: When the first item began, as far as known.
        self.since = 0.0
        #: The node has asked for items and has not been answered.
        self.wanting = False
        #: The node that items are being taken back for, and these items.
        self.stealing_for: tuple[Any, tuple[int, ...]] | None = None


class ForkdScheduling:
    """Gives each worker about the same expected time; implements ``xdist.scheduler.Scheduling``.

    Life cycle: ``ForkdSession`` makes it when the run loop starts. Each node is added when it is
    ready (:meth:`add_node`) and when its collection is known (:meth:`add_node_collection`). When
    the collections of all nodes that the run began with are known, :meth:`schedule` deals the first
    chunks. From then on the session reports each completed test (:meth:`mark_test_complete`), and
    each worker that needs its next item to go on (:meth:`want`). A worker that wants always gets an
    answer: items from the pool, items taken back from the node with the most work left, or a
    shutdown. The session calls :meth:`take_out` when a worker has died; its replacement is added
    like any other node.

    A node is anything with ``send_runtest_some``, ``send_steal``, ``shutdown``, ``shutting_down``
    and ``gateway.id``. Nothing here waits, reads or writes.

    :param config: the controller's configuration; plugins look for it here.
    :param nodes: how many nodes the run begins with.
    :param estimate: called once with the ids of all items, when they are known.
    :param reorder: see :class:`~pytest_forkd.scheduling.pool.Pool`.
    :param report: called with a failed collection report if nodes have different collections.
    :param clock: returns a time in seconds.
    """

    def __init__(
        self,
        config: Any,
        nodes: int,
        estimate: Callable[[Sequence[str]], Estimates] = Estimates,
        *,
        reorder: bool = True,
        report: Callable[[pytest.CollectReport], object] = lambda report: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.numnodes = nodes
        self.collection: list[str] | None = None
        self._estimate = estimate
        self._reorder = reorder
        self._report = report
        self._clock = clock
        self._collections: dict[Any, Sequence[str]] = {}
        self._shares: dict[Any, _Share] = {}
        self._estimates = Estimates(())
        self._pool = Pool(self._estimates, 1)
        #: Whether the run is to end early, so that nothing more is dealt.
        self._stopped = False
        #: How many tests have not been completed.
        self._left = 0

    # -- what xdist asks -----------------------------------------------------------------------

    @property
    def nodes(self) -> list[Any]:
        """All nodes that have been added and not removed."""
        return list(self._shares)

    @property
    def collection_is_completed(self) -> bool:
        """Whether all nodes that the run began with have collected."""
        return len(self._collections) >= self.numnodes

    @property
    def tests_finished(self) -> bool:
        """Whether the pool is empty and no node has more than the test that it is running."""
        if self._left > len(self._shares) or not self.collection_is_completed or self._pool:
            return False
        return all(
            len(share.items) < 2 and share.stealing_for is None for share in self._shares.values()
        )

    @property
    def has_pending(self) -> bool:
        """Whether any test has not been completed."""
        return self._left > 0

    @property
    def has_work(self) -> bool:
        """Whether there is work that another worker could be given."""
        if self._stopped:
            return False
        return bool(self._pool) or any(len(share.items) > 1 for share in self._shares.values())

    # -- what the session tells ----------------------------------------------------------------

    def add_node(self, node: Any) -> None:
        """Add a worker that is ready."""
        self._shares[node] = _Share()

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        """Take a worker's collection; a replacement that found other tests is given none."""
        if self.collection is not None and list(collection) != self.collection:
            node.shutdown()
            return
        self._collections[node] = collection

    def schedule(self) -> None:
        """Deal the first chunks; later, give work to nodes that have none."""
        if self.collection is None:
            if not self._same_collections():
                return
            collection = next(iter(self._collections.values()))
            self.collection = collection if isinstance(collection, list) else list(collection)
            self._estimates = self._estimate(self.collection)
            workers = max(1, len(self._shares))
            # Another order than that of collection does not help a single worker.
            reorder = self._reorder and (workers > 1 or self._estimates.scopes is not None)
            self._pool = Pool(self._estimates, workers, reorder=reorder)
            self._left = len(self.collection)
        for node, share in list(self._shares.items()):
            if not share.items and node in self._collections:
                share.wanting = True
        self._serve()

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Record that a worker has completed a test.

        :param duration: seconds, without shared fixtures.
        """
        share = self._shares[node]
        if item_index not in share.items:
            return
        del share.items[item_index]
        share.committed.discard(item_index)
        share.since = self._clock()
        share.wanting = False
        self._left -= 1
        if self._estimates.scopes is not None:
            share.scopes.add(self._estimates.scopes[item_index])
        self._estimates.learn(item_index, duration)
        if (
            len(share.items) <= LOW_ITEMS
            and self._pool
            and not self._stopped
            and not node.shutting_down
            and sum(map(self._estimates.time, share.items)) <= LOW_SECONDS
        ):
            self._deal(node, share)

    def want(self, node: Any, last: int | None) -> None:
        """Give a worker its next item, which it needs to go on.

        :param last: the last item that it has: it is ending, or cannot begin yet; ``None`` if it
            has none.
        """
        share = self._shares.get(node)
        if share is None or node.shutting_down:
            return
        if share.stealing_for is None and any(index != last for index in share.items):
            return  # it asked before it received further items
        share.wanting = True
        if self.collection is not None:
            self._serve()

    def mark_test_pending(self, item: str) -> None:
        """Run a test (again)."""
        assert self.collection is not None
        self._left += 1
        self._pool.put_back([self.collection.index(item)])
        self._serve()

    def remove_pending_tests_from_node(self, node: Any, indices: Sequence[int]) -> None:
        """Take the items that a worker has given back when it was asked to."""
        share = self._shares[node]
        back = [index for index in indices if index in share.items]
        for index in back:
            del share.items[index]
        thief: Any = None
        if share.stealing_for is not None:
            thief, asked = share.stealing_for
            share.stealing_for = None
            share.committed.update(index for index in asked if index in share.items)
        if not self._stopped:
            back = self._keep_scopes(node, share, back)
        if back:
            other = self._shares.get(thief)
            if other is not None and other.wanting and not (self._stopped or thief.shutting_down):
                self._send(thief, other, back)
            else:
                self._pool.put_back(back)
        self._serve()

    def _keep_scopes(self, node: Any, share: _Share, back: list[int]) -> list[int]:
        """Return items to a node if it has begun their scope, which must not be split.

        :returns: the other items.
        """
        scopes = self._estimates.scopes
        if scopes is None or not back or node.shutting_down:
            return back
        begun = share.scopes.union(scopes[index] for index in share.items)
        again = [index for index in back if scopes[index] in begun]
        if again:
            share.items.update(dict.fromkeys(again))
            node.send_runtest_some(again)
        return [index for index in back if scopes[index] not in begun]

    def remove_node(self, node: Any) -> str | None:
        """Forget a node.

        :returns: the id of the test that it had begun, if it had any.
        """
        items = list(self._shares[node].items)
        self.take_out(node, items[0] if items else None)
        if not items:
            return None
        assert self.collection is not None
        return self.collection[items[0]]

    def take_out(self, node: Any, running: int | None) -> bool:
        """Forget a node that died; the items that it had not begun go back to the pool.

        :param running: the item that it was running, which counts as completed.
        :returns: whether there is work for a replacement.
        """
        share = self._shares.pop(node)
        if running in share.items:
            del share.items[running]
            self._left -= 1
        if share.items:
            self._pool.put_back(list(share.items))
        for other in self._shares.values():
            if other.stealing_for is not None and other.stealing_for[0] is node:
                other.stealing_for = (None, other.stealing_for[1])
        if self.collection is None:
            return True
        self._serve()
        return self.has_work

    def withdraw(self) -> None:
        """End the run early: deal nothing more, and take back items that have not begun."""
        if self._stopped:
            return
        self._stopped = True
        for node, share in list(self._shares.items()):
            items = tuple(share.items)[1:]
            if items and share.stealing_for is None:
                share.stealing_for = (None, items)
                node.send_steal(list(items))

    # -- dealing and stealing ------------------------------------------------------------------

    def _serve(self) -> None:
        """Answer every node that is waiting for an item."""
        for node, share in list(self._shares.items()):
            if not share.wanting or node.shutting_down:
                continue
            if len(share.items) > 1:
                continue  # it has been sent more already
            if self._stopped:
                node.shutdown()
            elif self._pool:
                self._deal(node, share)
            elif not self._steal(node):
                node.shutdown()

    def _deal(self, node: Any, share: _Share) -> None:
        workers = sum(not other.shutting_down for other in self._shares)
        self._send(node, share, self._pool.deal(max(1, workers)))

    def _send(self, node: Any, share: _Share, indices: list[int]) -> None:
        if not share.items:
            share.since = self._clock()
        share.items.update(dict.fromkeys(indices))
        share.committed.difference_update(indices)
        if share.wanting:
            # The node is about to begin it. Otherwise workers that are ending a test could steal
            # the run's last test from each other for ever.
            share.committed.add(indices[0])
        share.wanting = False
        node.send_runtest_some(indices)

    def _steal(self, thief: Any) -> bool:
        """Take back items for a node, if that ends the run sooner.

        :returns: whether the node should wait: items have been asked back.
        """
        if any(share.stealing_for is not None for share in self._shares.values()):
            return True  # tried again when the steal in progress has been answered
        now = self._clock()
        plans = []
        for node, share in self._shares.items():
            if node is thief or len(share.items) < 2:
                continue
            plan = self._cut(share, now)
            if plan is not None:
                plans.append((plan[0], node, share, plan[1]))
        if not plans:
            return False
        _left, node, share, indices = max(plans, key=lambda plan: plan[0])
        share.stealing_for = (thief, tuple(indices))
        node.send_steal(indices)
        return True

    def _cut(self, share: _Share, now: float) -> tuple[float, list[int]] | None:
        """Decide where to cut a node's queue so that both parts end as early as possible.

        :returns: the seconds that the node has left, and the items to take; ``None`` if it is best
            to take none.
        """
        estimates = self._estimates
        items = list(share.items)
        expected = estimates.time(items[0])
        elapsed = max(0.0, now - share.since)
        # If it has exceeded its estimate by some time, expect it to take that time again.
        head = max(expected - elapsed, elapsed - expected, expected / 10, 1e-6)
        begun = 1
        while begun < len(items) and items[begun] in share.committed:
            head += estimates.time(items[begun])
            begun += 1
        steps = [
            estimates.time(index) + estimates.enter(items[at], index)
            for at, index in enumerate(items[begun:], begun - 1)
        ]
        total = tail = head + sum(steps)
        tail -= head
        best, cut = total, None
        for at in range(begun, len(items)):
            again = estimates.shared(items[at - 1], items[at])
            longer = max(head, tail + again)
            # The time saved must be more than that of the fixtures that are set up again.
            if longer < best and total - longer > again:
                best, cut = longer, at
            head += steps[at - begun]
            tail -= steps[at - begun]
        return None if cut is None else (total, items[cut:])

    def _same_collections(self) -> bool:
        """Report it if nodes have collected different tests; then none is run."""
        (first, ids), *others = self._collections.items()
        same = True
        for node, other in others:
            if other is ids:
                continue
            text = report_collection_diff(ids, other, first.gateway.id, node.gateway.id)
            if text:
                same = False
                self._report(
                    pytest.CollectReport(
                        nodeid=node.gateway.id, outcome="failed", longrepr=text, result=[]
                    )
                )
        return same
