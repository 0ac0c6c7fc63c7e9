"""The results of ``pytest-forkd doctor``: one check after the other, with advice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Check", "show"]

_MARKS = {"ok": "ok   ", "warning": "warn ", "problem": "FAIL ", "skipped": "  -  "}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    :ivar name: what was checked.
    :ivar level: ``ok``, ``warning``, ``problem`` or ``skipped``.
    :ivar text: what was found.
    :ivar advice: what to do about it.
    """

    name: str
    level: str
    text: str
    advice: str = ""

    def lines(self) -> list[str]:
        """The check as it is printed."""
        first, *rest = self.text.splitlines() or [""]
        lines = [f"{_MARKS[self.level]}{self.name}: {first}"]
        lines += [f"       {line}" for line in (*rest, *self.advice.splitlines())]
        return lines


def show(checks: Iterable[Check]) -> int:
    """Print checks as they come.

    :returns: the command's exit status: 1 if there is a problem.
    """
    problems = 0
    for check in checks:
        print("\n".join(check.lines()), flush=True)
        problems += check.level == "problem"
    return int(problems > 0)
