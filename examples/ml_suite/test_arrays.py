"""Numeric helpers on NumPy arrays."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from shopstats.arrays import drawdown, moving_average, nearest, standardize


@pytest.fixture
def rng():
    return np.random.default_rng(20240601)


@pytest.mark.parametrize("window", [1, 3, 10])
def test_moving_average_matches_the_plain_definition(rng, window):
    values = rng.normal(size=10)
    expected = [values[i : i + window].mean() for i in range(len(values) - window + 1)]
    assert_allclose(moving_average(values, window), expected, atol=1e-12)


def test_moving_average_refuses_a_window_longer_than_the_values():
    with pytest.raises(ValueError, match="from 1 to 3, not 4"):
        moving_average([1, 2, 3], 4)


def test_standardized_columns(rng):
    table = standardize(rng.normal(5, 3, size=(200, 4)))
    assert_allclose(table.mean(axis=0), 0, atol=1e-12)
    assert_allclose(table.std(axis=0), 1)


def test_constant_column_is_standardized_to_zero():
    table = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    assert_array_equal(standardize(table)[:, 1], 0)


def test_nearest_finds_each_point_again_after_a_small_push(rng):
    points = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=-1).reshape(-1, 2)
    order = rng.permutation(len(points))
    pushed = points[order] + rng.uniform(-0.4, 0.4, size=points.shape)
    assert_array_equal(nearest(points, pushed), order)


def test_drawdown_is_measured_from_the_last_peak():
    assert drawdown([100, 80, 120, 60, 90]) == pytest.approx(0.5)
    assert drawdown([1, 2, 3]) == 0
