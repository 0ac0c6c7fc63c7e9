"""Exact sums of money. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

CENT = Decimal("0.01")


def allocate(cents: int, weights: Sequence[int]) -> list[int]:
    """Share ``cents`` out by ``weights``, losing none: the largest remainders get the odd cents."""
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        raise ValueError("weights must not be negative, and one at least must be positive")
    shares = [cents * weight // total for weight in weights]
    by_remainder = sorted(
        range(len(weights)), key=lambda i: cents * weights[i] % total, reverse=True
    )
    for i in by_remainder[: cents - sum(shares)]:
        shares[i] += 1
    return shares


def with_tax(net: str, rate: str) -> Decimal:
    """``net`` plus tax, to the cent, halves going up as on an invoice."""
    return (Decimal(net) * (1 + Decimal(rate))).quantize(CENT, rounding=ROUND_HALF_UP)


def compound(principal: int, rate: Fraction, years: int) -> Fraction:
    """What ``principal`` has grown to after ``years``, as an exact fraction."""
    return principal * (1 + rate) ** years
