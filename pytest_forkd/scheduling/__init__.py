"""forkd's own scheduler, and its estimates of how long tests and shared fixtures take."""

from pytest_forkd.scheduling.estimates import Estimates, SharedFixtures
from pytest_forkd.scheduling.modes import SplitScope, make_scheduler
from pytest_forkd.scheduling.scheduler import ForkdScheduling

__all__ = ["Estimates", "ForkdScheduling", "SharedFixtures", "SplitScope", "make_scheduler"]
