"""forkd's own scheduler, and what it expects tests and shared fixtures to take."""

from pytest_forkd.scheduling.estimates import Estimates, SharedFixtures
from pytest_forkd.scheduling.scheduler import ForkdScheduling

__all__ = ["Estimates", "ForkdScheduling", "SharedFixtures"]
