"""Numbers and Markdown tables as text."""

from __future__ import annotations

import re
from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are set to the right."""
    numeric = [all(_numeric(row[index]) for row in rows) for index in range(len(header))]
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join(" ---: " if right else " --- " for right in numeric) + "|")
    lines.extend("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join(lines)


def _numeric(cell: str) -> bool:
    return re.fullmatch(r"-|-?[\d.]+(-[\d.]+)?( [a-zA-Z]+)?", cell) is not None


def number(value: float | None, form: str = ".2f") -> str:
    """Return a number as text, a dash where there is none."""
    return "-" if value is None else format(value, form)
