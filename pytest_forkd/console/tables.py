"""Tables and durations, as commands print them."""

from __future__ import annotations

__all__ = ["duration", "print_table"]


def duration(seconds: float) -> str:
    """Seconds, for people."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """Print rows under their heads."""
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
    for line in [heads, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())
