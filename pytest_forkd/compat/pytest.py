"""What is private to pytest. Read in, and checked with, pytest 8.0 to 9.2."""

from __future__ import annotations

from _pytest.outcomes import Exit

__all__ = ["Exit"]
