"""The scheduler as pure logic: each test is run once, and nobody waits for ever."""

from __future__ import annotations

import collections
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_forkd.scheduling import Estimates, ForkdScheduling, SharedFixtures
from pytest_forkd.scheduling.pool import Pool


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A worker: a queue of items, the one that it runs, and messages to and from it."""

    def __init__(self, name: str, *, claims: bool, early: bool = False) -> None:
        # Whether what it has not begun can be taken back without asking it.
        self.claims = claims
        # Whether it begins no test before it knows the next one, and the test that it has then.
        self.early = early
        self.held: int | None = None
        self.taken: list[list[int]] = []
        self.gateway = SimpleNamespace(id=name)
        self.commands: collections.deque[tuple[str, list[int]]] = collections.deque()
        self.queue: collections.deque[int] = collections.deque()
        self.running: int | None = None
        self.until = 0.0
        self.shutting_down = False
        self.shut_down = False  # has read that it is to end
        self.finished = False
        self.wants = False
        self.ran: list[int] = []

    def __repr__(self) -> str:
        return f"<{self.gateway.id}: {self.running} {list(self.queue)} {list(self.commands)}>"

    def send_runtest_some(self, indices: Any) -> None:
        assert not self.shutting_down
        self.commands.append(("run", list(indices)))

    def send_steal(self, indices: Any) -> None:
        if not self.claims:
            self.commands.append(("steal", list(indices)))
            return
        queued = list(self.queue) + [i for _name, sent in self.commands for i in sent]
        back = [index for index in indices if index in queued]
        self.queue = collections.deque(i for i in self.queue if i not in back)
        self.commands = collections.deque(
            (name, [i for i in sent if i not in back]) for name, sent in self.commands
        )
        self.taken.append(back)

    def shutdown(self) -> None:
        self.shutting_down = True
        self.commands.append(("shutdown", []))


class Run:
    """Workers and a scheduler, and an interactor's behaviour: what ``parent.interactor`` does."""

    def __init__(
        self,
        durations: list[float],
        nodes: int,
        *,
        estimates: Any = Estimates,
        ids: list[str] | None = None,
        cost: Any = None,
        claims: bool = True,
        early: bool = False,
    ) -> None:
        self.claims, self.early = claims, early
        self.ids = ids or [f"test_{i // 5}.py::test_{i}" for i in range(len(durations))]
        self.durations = durations
        self.clock = Clock()
        self.sched: Any = ForkdScheduling(None, nodes, estimates, clock=self.clock)
        self.nodes = [Node(f"gw{i}", claims=claims, early=early) for i in range(nodes)]
        self.crashed: list[int] = []
        self.deaths = 0
        self.completed: collections.Counter[int] = collections.Counter()
        self.shuttingdown = False
        self.cost = cost or (lambda before, index: 0.0)
        for node in self.nodes:
            self.sched.add_node(node)
            self.sched.add_node_collection(node, self.ids)
        self.sched.schedule()
        self.after()

    def after(self) -> None:
        """What the session does after each event."""
        if self.sched.tests_finished and not self.shuttingdown:
            self.shuttingdown = True
            for node in self.sched.nodes:
                node.shutdown()

    def read(self, node: Node) -> None:
        """A worker reads its commands: between tests, or when it waits."""
        while node.commands:
            name, indices = node.commands.popleft()
            if name == "run":
                node.queue.extend(indices)
            elif name == "shutdown":
                node.shut_down = True
            else:
                back = [index for index in node.queue if index in indices]
                node.queue = collections.deque(i for i in node.queue if i not in indices)
                self.sched.remove_pending_tests_from_node(node, back)
                self.after()

    def step(self, node: Node) -> bool:
        """Let a worker do the next thing that it can do; false if it waits or has ended."""
        for other in self.nodes:
            while other.taken and not other.finished:
                self.sched.remove_pending_tests_from_node(other, other.taken.pop(0))
                self.after()
        if node.finished:
            return False
        if node.running is not None and self.clock.now < node.until:
            return False
        news = bool(node.commands)
        self.read(node)
        if node.early:
            return self.step_early(node, news)
        if node.queue:
            if node.running is not None:
                self.complete(node)
            self.start(node)
            return True
        if node.shut_down:
            if node.running is not None:
                self.complete(node)
            node.finished = True
            self.sched.remove_node(node)
            self.after()
            return True
        if node.wants and not news:
            return False
        node.wants = True
        self.sched.want(node, node.running)
        self.after()
        return True

    def step_early(self, node: Node, news: bool) -> bool:
        if node.running is not None:
            self.complete(node)
        elif node.queue:
            if node.held is not None:
                self.start(node, node.held)
            node.wants, node.held = False, node.queue.popleft()
        elif node.shut_down and node.held is not None:
            self.start(node, node.held)
            node.held = None
        elif node.shut_down:
            node.finished = True
            self.sched.remove_node(node)
            self.after()
        elif node.wants and not news:
            return False
        else:
            node.wants = True
            self.sched.want(node, node.held)
            self.after()
        return True

    def complete(self, node: Node) -> None:
        index, node.running = node.running, None
        assert index is not None
        self.completed[index] += 1
        self.sched.mark_test_complete(node, index, self.durations[index])
        self.after()

    def start(self, node: Node, index: int | None = None) -> None:
        node.wants = False
        before = node.ran[-1] if node.ran else None
        node.running = node.queue.popleft() if index is None else index
        node.ran.append(node.running)
        node.until = self.clock.now + self.durations[node.running] + self.cost(before, node.running)

    def crash(self, node: Node) -> None:
        """A worker dies; the session replaces it if there is work."""
        self.deaths += 1
        node.finished = True
        node.shutting_down = True
        if node not in self.sched.nodes:
            return
        if node.running is not None:
            self.crashed.append(node.running)
        more = self.sched.take_out(node, node.running)
        if more:
            self.shuttingdown = False
            new = Node(f"gw{len(self.nodes)}", claims=self.claims, early=self.early)
            self.nodes.append(new)
            self.sched.add_node(new)
            self.sched.add_node_collection(new, self.ids)
            self.sched.schedule()
        self.after()

    def go(self) -> float:
        """Run to the end.

        :returns: seconds.
        """
        for _ in range(100_000):
            if all(node.finished for node in self.nodes):
                break
            went_on = [self.step(node) for node in self.nodes]
            if not any(went_on):
                waiting = [n.until for n in self.nodes if not n.finished and n.running is not None]
                later = [until for until in waiting if until > self.clock.now]
                assert later, f"all wait for ever: {self.nodes}"
                self.clock.now = min(later)
        assert all(node.finished for node in self.nodes)
        return self.clock.now

    def check(self) -> None:
        """Each test was run once, or crashed its worker."""
        ran = collections.Counter(self.crashed) + self.completed
        assert ran == collections.Counter(range(len(self.durations)))


def known(times: list[float], **kwargs: Any) -> Any:
    """Estimates that know all."""
    return lambda ids: Estimates(ids, dict(zip(ids, times, strict=True)), **kwargs)


TIMES = st.lists(st.sampled_from([0.0001, 0.001, 0.05, 0.3, 5.0]), max_size=60)


@settings(deadline=None)
@given(
    durations=TIMES,
    nodes=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    crashes=st.integers(0, 4),
    informed=st.booleans(),
    scoped=st.booleans(),
    claims=st.booleans(),
    early=st.booleans(),
)
def test_each_test_is_run_once_whatever_happens(
    durations: list[float],
    nodes: int,
    seed: int,
    crashes: int,
    informed: bool,
    scoped: bool,
    claims: bool,
    early: bool,
) -> None:
    """Durations, wrong expectations, messages that cross, crashes at any moment, steals."""
    rng = random.Random(seed)
    wrong = [rng.choice([0.0001, 0.01, 1.0]) for _ in durations]
    split = (lambda nodeid: nodeid.partition("::")[0]) if scoped else None
    fixtures = SharedFixtures(
        ["::a", "::b"],
        [0, 1, 1],
        [(i, i + 1, rng.choice([[0], [1], [0, 2]])) for i in range(0, len(durations), 2)],
    )
    run = Run(
        durations,
        nodes,
        claims=claims,
        early=early,
        estimates=known(
            durations if informed else wrong,
            split_scope=split,
            fixtures=fixtures,
            costs={"::a": rng.choice([0.0, 0.1, 10.0])},
        ),
    )
    for _ in range(rng.randrange(200)):
        alive = [node for node in run.nodes if not node.finished]
        if not alive:
            break
        if crashes and rng.random() < 0.05:
            crashes -= 1
            run.crash(rng.choice(alive))
        elif rng.random() < 0.3:
            run.clock.now += rng.choice([0.0001, 0.01, 1.0])
        else:
            run.step(rng.choice(alive))
    run.go()
    run.check()
    if scoped and not run.deaths:
        of_scope = collections.defaultdict(set)
        for node in run.nodes:
            for index in node.ran:
                of_scope[run.ids[index].partition("::")[0]].add(node.gateway.id)
        assert all(len(workers) == 1 for workers in of_scope.values())


@settings(deadline=None)
@given(durations=TIMES, nodes=st.integers(1, 4), informed=st.booleans())
def test_nobody_is_idle_while_there_is_something_to_start(
    durations: list[float], nodes: int, informed: bool
) -> None:
    """So no run takes longer than a greedy one: the mean and the longest test."""
    run = Run(durations, nodes, estimates=known(durations) if informed else Estimates)
    seconds = run.go()
    run.check()
    assert seconds <= sum(durations) / nodes + max(durations, default=0) + 0.05


def test_a_long_test_is_started_first() -> None:
    """The run takes as long as its longest test."""
    durations = [0.05] * 200 + [5.0]
    run = Run(durations, 4, estimates=known(durations))
    assert run.go() == pytest.approx(5.0, rel=0.02)
    assert 200 in {node.ran[0] for node in run.nodes}


@pytest.mark.parametrize("informed", [True, False])
def test_tests_stay_with_the_fixtures_that_they_share(informed: bool) -> None:
    """40 modules, each with a fixture of 0.3 s and ten tests of 10 ms: each is set up once."""
    ids = [f"test_{m}.py::test_{i}" for m in range(40) for i in range(10)]
    fixtures = SharedFixtures(
        [f"test_{m}.py::costly" for m in range(40)],
        range(40),
        [(m * 10, m * 10 + 10, [m]) for m in range(40)],
    )
    set_up = 0

    def cost(before: int | None, index: int) -> float:
        nonlocal set_up
        if before is None or before // 10 != index // 10:
            set_up += 1
            return 0.3
        return 0.0

    durations = [0.01] * 400
    costs = dict.fromkeys(fixtures.keys, 0.3)
    estimates = (
        known(durations, fixtures=fixtures, costs=costs)
        if informed
        else lambda ids: Estimates(ids, fixtures=fixtures)
    )
    run = Run(durations, 4, estimates=estimates, ids=ids, cost=cost)
    seconds = run.go()
    run.check()
    assert seconds <= 4.0 * (1.12 if informed else 1.25)
    assert set_up <= (40 if informed else 46)


def test_a_large_group_is_split_where_that_wins_more_than_it_costs() -> None:
    """A hundred tests of 0.1 s that share a fixture of 0.2 s are worth four set-ups."""
    durations = [0.1] * 100
    ids = [f"test_a.py::test_{i}" for i in range(100)]
    fixtures = SharedFixtures(["test_a.py::f"], [0], [(0, 100, [0])])
    run = Run(
        durations,
        4,
        ids=ids,
        estimates=known(durations, fixtures=fixtures, costs={"test_a.py::f": 0.2}),
        cost=lambda before, index: 0.2 if before is None else 0.0,
    )
    assert run.go() < 3.2


def test_a_small_group_is_not_split() -> None:
    """Ten tests of 10 ms that share a fixture of 0.3 s stay on one worker, the other ends."""
    fixtures = SharedFixtures(["test_a.py::f"], [0], [(0, 10, [0])])
    run = Run(
        [0.01] * 10,
        2,
        ids=[f"test_a.py::test_{i}" for i in range(10)],
        estimates=known([0.01] * 10, fixtures=fixtures, costs={"test_a.py::f": 0.3}),
    )
    run.go()
    assert sorted(len(node.ran) for node in run.nodes) == [0, 10]


def test_what_is_queued_behind_a_test_that_takes_too_long_is_run_by_others() -> None:
    """Nothing was known of it."""
    durations = [5.0] + [0.01] * 40
    run = Run(durations, 2)
    assert run.go() == pytest.approx(5.0, rel=0.01)
    assert run.nodes[0].ran == [0]


def test_the_longest_group_is_first_and_order_is_kept_where_asked_for() -> None:
    ids = ["a.py::t0", "b.py::t1", "b.py::t2", "c.py::t3"]
    times = dict(zip(ids, [0.1, 1.0, 1.0, 5.0], strict=True))
    estimates = Estimates(ids, times, split_scope=lambda nodeid: nodeid[0])
    assert Pool(estimates, 4).deal(4) == [3]
    assert Pool(estimates, 4, reorder=False).deal(4)[0] == 0


def test_unknown_tests_are_expected_to_take_what_their_file_or_the_suite_takes() -> None:
    ids = ["a.py::1", "a.py::2", "a.py::3", "a.py::new", "b.py::new"]
    estimates = Estimates(ids, {"a.py::1": 1.0, "a.py::2": 2.0, "a.py::3": 9.0})
    assert estimates.time(3) == pytest.approx(2.0, rel=0.01)
    assert estimates.time(4) == pytest.approx(2.0, rel=0.01)
    estimates.learn(4, 7.0)
    assert estimates.time(4) == 7.0


def test_tiny_tests_travel_in_hundreds() -> None:
    """Ten thousand of them need few messages, and stay with their files."""
    durations = [0.0001] * 10_000
    run = Run(
        durations,
        2,
        estimates=known(durations),
        ids=[f"test_{i // 100}.py::test_{i}" for i in range(10_000)],
    )
    sent = 0
    original = Node.send_runtest_some

    def count(self: Node, indices: Any) -> None:
        nonlocal sent
        sent += 1
        original(self, indices)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Node, "send_runtest_some", count)
        run.go()
    run.check()
    assert sent < 200
    changes = sum(
        a // 100 != b // 100 for n in run.nodes for a, b in zip(n.ran, n.ran[1:], strict=False)
    )
    assert changes < 200


def test_different_collections_are_reported_and_nothing_is_run() -> None:
    reports: list[Any] = []
    sched = ForkdScheduling(None, 2, report=reports.append)
    nodes = [Node(f"gw{i}", claims=True) for i in range(2)]
    for node, ids in zip(nodes, (["a::1"], ["a::2"]), strict=True):
        sched.add_node(node)
        sched.add_node_collection(node, ids)
    sched.schedule()
    assert len(reports) == 1
    assert sched.tests_finished
    assert not any(node.commands for node in nodes)


@pytest.mark.parametrize(
    "table",
    [
        3,
        [],
        [[1], [], []],
        [["a"], [1], []],
        [["a"], [0], [[0, 5, [0]]]],
        [["a"], [0], [[0, 1, [1]]]],
        [["a"], [0], [[1, 1, [0]]]],
        [["a"], [0], [[0, 2, [0]], [1, 2, [0]]]],
        [["a"], [0], [[0, 1.5, [0]]]],
    ],
)
def test_a_bad_table_of_fixtures_is_refused(table: object) -> None:
    with pytest.raises(ValueError):
        SharedFixtures.from_json(table, 3)


@pytest.mark.parametrize("begun", ["running", "completed"])
def test_a_scope_that_was_begun_while_it_was_taken_back_is_given_back_to_its_worker(
    begun: str,
) -> None:
    """The worker was faster with the first test of it than the controller."""
    ids = ["b::0", "a::1", "a::2", "a::3"]
    estimates = Estimates(ids, dict.fromkeys(ids, 1.0), split_scope=lambda nodeid: nodeid[0])
    sched = ForkdScheduling(None, 1, lambda _ids: estimates, reorder=False, clock=Clock())
    busy, idle = Node("gw0", claims=False), Node("gw1", claims=False)
    sched.add_node(busy)
    sched.add_node_collection(busy, ids)
    sched.schedule()
    sched.add_node(idle)
    sched.add_node_collection(idle, ids)
    while sched._pool:
        sched._deal(busy, sched._shares[busy])
    sched.want(idle, None)
    assert ("steal", [1, 2, 3]) in busy.commands
    busy.commands.clear()
    sched.mark_test_complete(busy, 0)
    if begun == "completed":
        sched.mark_test_complete(busy, 1)
    sched.remove_pending_tests_from_node(busy, [2, 3])
    assert ("run", [2, 3]) in busy.commands
    assert [command for command in idle.commands if command[0] == "run"] == []


def test_who_asked_before_it_was_sent_something_is_not_given_more() -> None:
    """It would have it queued behind its first test, as good as begun."""
    ids = [f"a::{i}" for i in range(6)]
    clock = Clock()
    sched = ForkdScheduling(None, 1, clock=clock)
    busy, idle = Node("gw0", claims=True), Node("gw1", claims=True)
    sched.add_node(busy)
    sched.add_node_collection(busy, ids)
    sched.schedule()
    while sched._pool:
        sched._deal(busy, sched._shares[busy])
    sched.want(busy, None)  # said before that, and read only now
    clock.now = 10.0  # its first test takes so long that the others are all taken from it
    sched.add_node(idle)
    sched.add_node_collection(idle, ids)
    sched.schedule()
    [back] = busy.taken
    assert len(back) == 5
    sched.remove_pending_tests_from_node(busy, back)
    assert ("run", back) in idle.commands
    assert len(idle.taken) == 0, "and nothing of it goes back to the first"
