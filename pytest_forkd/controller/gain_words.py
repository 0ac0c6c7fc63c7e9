"""Says in one line what a run gained from its workers, or what kept it from gaining anything."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Times", "gain_line", "worker_line"]

#: A run that is less than this faster than its tests' sum has gained nothing to speak of.
_NO_GAIN = 1.1
#: A reason has to explain at least this part of the time.
_ENOUGH = 0.4


@dataclass(frozen=True)
class Times:
    """Where a run's time went, in seconds.

    :ivar wall: from the start of the session to the summary.
    :ivar before: of these, what had passed when the workers could begin.
    :ivar after: of these, what has passed since the end of the last test.
    :ivar collection: of these, what the collection took, if it was made once for all workers.
    :ivar tests: what all tests took together.
    :ivar longest: what the longest test took.
    :ivar name: the node id of that test.
    :ivar repeated: what shared fixtures took beyond the first worker that set each of them up.
    :ivar workers: how many workers have run tests.
    :ivar processors: how many processors this process may use.
    """

    wall: float
    before: float
    after: float
    collection: float | None
    tests: float
    longest: float
    name: str
    repeated: float
    workers: int
    processors: int

    @property
    def running(self) -> float:
        """Seconds in which workers could run tests."""
        return self.wall - self.before - self.after

    @property
    def gain(self) -> float:
        """How many times faster the run was than its tests one after another."""
        return self.tests / self.wall if self.wall > 0 else 0.0

    @property
    def busy(self) -> float:
        """The part of their time that the workers spent in tests; at most 1."""
        possible = self.running * self.workers
        return min(1.0, self.tests / possible) if possible > 0 else 1.0

    def bound(self) -> str | None:
        """What kept the run from being faster than its tests' sum; ``None`` if nothing did."""
        if self.gain >= _NO_GAIN:
            return None
        if self.workers == 1:
            return "there was one worker"
        if self.collection is not None and self.collection >= _ENOUGH * self.wall:
            return f"collecting took {self.collection:.2f} s"
        if self.before >= _ENOUGH * self.wall:
            return f"the workers could begin after {self.before:.2f} s"
        if self.after >= _ENOUGH * self.wall:
            return f"ending the session took {self.after:.2f} s"
        if self.longest >= 2 * _ENOUGH * self.running:
            return f"{self.name} took {self.longest:.2f} s"
        if self.repeated >= _ENOUGH * self.tests:
            return f"setting up shared fixtures again took {self.repeated:.2f} s"
        if self.workers > self.processors:
            noun = "processor" if self.processors == 1 else "processors"
            return f"{self.workers} workers share {self.processors} {noun}"
        return (
            "the tests wait for one another" if self.busy < _ENOUGH else "the tests are too short"
        )


def gain_line(times: Times, origin: str) -> str:
    """What to say of a run.

    :param origin: how its parent came about.
    """
    parts = [f"{times.workers} worker{'s' * (times.workers != 1)}"]
    if origin:
        parts.append(origin.partition(" (")[0].partition(":")[0].partition(";")[0])
    if times.collection is not None:
        parts.append(f"collected once in {times.collection:.2f} s")
    else:
        parts.append("each collected for itself" if times.workers > 1 else "it collected")
    parts.append(f"{_percent(times.busy)} busy")
    spent = f"{times.tests:.2f} s of tests in {times.wall:.2f} s"
    bound = times.bound()
    if bound is None:
        parts.append(f"{times.gain:.1f}x speed-up ({spent})")
    else:
        parts.append(f"no speed-up ({spent}): {bound}")
    return f"forkd: {', '.join(parts)}"


def worker_line(times: Times, name: str, tests: int, busy: float) -> str:
    """What to say of a worker.

    :param tests: how many tests it has run.
    :param busy: seconds that these took.
    """
    part = busy / times.running if times.running > 0 else 1.0
    noun = "test" if tests == 1 else "tests"
    return f"forkd: {name} ran {tests} {noun} in {busy:.2f} s, {_percent(part)} busy"


def _percent(part: float) -> str:
    return f"{min(1.0, part) * 100:.0f} %"
