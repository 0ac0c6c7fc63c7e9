"""The progress bar, on standard error.

It redraws only when told to (no thread of its own), so that it takes no time from a timed run.
Where standard error is no terminal, each step is a line instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar


class Progress:
    """A bar a suite, one step a run; shown between `show()` and `leave()`."""

    def __init__(self) -> None:
        """Prepare the bar; nothing is shown yet."""
        self._console = Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.fields[suite]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            auto_refresh=False,
        )
        self._task: TaskID | None = None

    def show(self) -> None:
        """Show the bar."""
        self._bar.start()

    def leave(self) -> None:
        """Stop drawing; the bar stays as it is."""
        self._bar.stop()

    def suite(self, name: str, steps: int) -> None:
        """Begin a suite of so many runs."""
        self._task = self._bar.add_task("", total=steps, suite=name)
        self._bar.refresh()

    def doing(self, what: str) -> None:
        """Say what runs now."""
        if not self._console.is_terminal:
            self.note(what)
        elif self._task is not None:
            self._bar.update(self._task, description=what, refresh=True)

    def advance(self) -> None:
        """Count one run as done."""
        if self._task is not None:
            self._bar.update(self._task, advance=1, refresh=True)

    def drop(self, steps: int) -> None:
        """Take steps off the current suite's total: runs that will not be made."""
        if self._task is not None and steps:
            total = self._bar.tasks[self._task].total or 0
            self._bar.update(self._task, total=total - steps, refresh=True)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)


@contextmanager
def showing() -> Iterator[Progress]:
    """Show a bar while the block runs."""
    progress = Progress()
    progress.show()
    try:
        yield progress
    finally:
        progress.leave()
