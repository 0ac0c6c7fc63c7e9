"""Shows the progress of building an image or snapshot: a bar on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["ProgressBar"]

_WIDTH = 30
#: What each stage does, in the order in which they come.
STAGES = {
    "tree": "gathering the environment",
    "image": "writing the root image",
    "boot": "booting a guest",
    "warm-up": "importing in the guest",
    "snapshot": "saving the snapshot",
}
#: The rough fraction of the total time that each stage takes.
_SHARES = {"tree": 0.2, "image": 0.15, "boot": 0.3, "warm-up": 0.33, "snapshot": 0.02}
_REDRAW_INTERVAL = 0.1


class ProgressBar:
    """A progress bar; :meth:`set` may be called from any thread, :meth:`draw` from one only.

    :param stream: the stream to draw on.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._on_terminal = self._stream.isatty()
        self._stage = ""
        self._part = 0.0
        self._shown = ""
        self._drawn = 0.0
        self._begun = time.monotonic()

    def set(self, stage: str, part: float) -> None:
        """Set the fraction of a stage that is done, from 0 to 1."""
        self._stage, self._part = stage, part

    def draw(self, *, now: bool = False) -> None:
        """Draw the bar, unless it was just drawn, or there is nothing to show."""
        stage = self._stage
        if not stage:
            return
        if not self._on_terminal:
            if stage != self._shown:
                self._shown = stage
                self._write(f"forkd: {STAGES[stage]} ...\n")
            return
        if now or time.monotonic() - self._drawn >= _REDRAW_INTERVAL:
            self._drawn = time.monotonic()
            names = list(_SHARES)
            before = sum(_SHARES[name] for name in names[: names.index(stage)])
            done = round(_WIDTH * (before + _SHARES[stage] * self._part))
            bar = "#" * done + "." * (_WIDTH - done)
            self._write(f"\r\033[Kforkd: [{bar}] {STAGES[stage]}")

    def end(self) -> None:
        """Remove the bar."""
        if self._stage and self._on_terminal:
            self._write("\r\033[K")

    def say(self, text: str) -> None:
        """Write other text; only while the bar is not being drawn."""
        self._write(text)

    @property
    def seconds(self) -> float | None:
        """How many seconds everything took; ``None`` if there was nothing to do."""
        return time.monotonic() - self._begun if self._stage else None

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # the stream is closed or broken
