"""Exact arithmetic: no third-party import but pytest."""

from decimal import Decimal
from fractions import Fraction

import pytest
from shopstats.money import allocate, compound, with_tax


@pytest.mark.parametrize(
    ("cents", "weights", "shares"),
    [
        pytest.param(100, [1, 1], [50, 50], id="even"),
        pytest.param(100, [1, 1, 1], [34, 33, 33], id="odd-cent-first"),
        pytest.param(1000, [70, 20, 10], [700, 200, 100], id="proportional"),
        pytest.param(5, [3, 7], [2, 3], id="largest-remainder"),
    ],
)
def test_allocation(cents, weights, shares):
    assert allocate(cents, weights) == shares


def test_allocation_gives_out_every_cent():
    for cents in range(200):
        shares = allocate(cents, [3, 5, 7, 11])
        assert sum(shares) == cents
        assert shares == sorted(shares)


def test_allocation_needs_a_positive_weight():
    with pytest.raises(ValueError, match="must be positive"):
        allocate(100, [0, 0])


@pytest.mark.parametrize(
    ("net", "rate", "gross"),
    [("0.50", "0.05", "0.53"), ("9.99", "0.075", "10.74")],
)
def test_tax_rounds_half_up(net, rate, gross):
    assert with_tax(net, rate) == Decimal(gross)


def test_compound_interest_is_exact():
    assert compound(1000, Fraction(1, 10), 3) == 1331
    assert compound(1, Fraction(1, 3), 2) == Fraction(16, 9)
