"""What is private to xdist's worker module.

Read in, and checked with, pytest-xdist 3.6, 3.7 and 3.8. A worker imports this module.
"""

from __future__ import annotations

from xdist.remote import (
    Marker,
    Producer,
    WorkerInteractor,
    getinfodict,
    setup_config,
    worker_title,
)

__all__ = ["Marker", "Producer", "WorkerInteractor", "getinfodict", "setup_config", "worker_title"]
