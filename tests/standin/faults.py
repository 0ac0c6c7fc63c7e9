"""Faults on demand: answers that are late, lost, wrong, or refusals."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import Any

__all__ = ["Fault", "Faults"]


@dataclass
class Fault:
    """What happens to some of the requests.

    :ivar method: of the requests; empty for any.
    :ivar path: a regular expression that the start of their path has to match.
    :ivar skip: so many of them are left alone first.
    :ivar times: how many it happens to; negative for all.
    :ivar delay: seconds that the answer is held back.
    :ivar drop: ``before`` breaks the connection instead of doing what was asked for, ``after`` does
        it and breaks the connection instead of answering.
    :ivar status: answer with that status instead of doing anything.
    :ivar body: with that body, else with ``{"error": "injected"}``. With neither status nor drop,
        do what was asked for and answer with this body.
    """

    method: str = ""
    path: str = ""
    skip: int = 0
    times: int = 1
    delay: float = 0.0
    drop: str = ""
    status: int = 0
    body: str | None = None


class Faults:
    """The faults of a daemon; may be used from several threads."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def set(self, faults: list[dict[str, Any]]) -> None:
        """Replace them all."""
        with self._lock:
            self._faults = [Fault(**each) for each in faults]

    def take(self, method: str, path: str) -> Fault | None:
        """What is to happen to a request."""
        with self._lock:
            for fault in self._faults:
                if fault.times == 0 or fault.method not in ("", method):
                    continue
                if not re.match(fault.path, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                break
            else:
                return None
        time.sleep(fault.delay)
        return fault
