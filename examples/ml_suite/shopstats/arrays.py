"""Numeric helpers on NumPy arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def moving_average(values: npt.ArrayLike, window: int) -> Floats:
    """The mean of each run of ``window`` neighbours; ``len(values) - window + 1`` of them."""
    array = np.asarray(values, dtype=np.float64)
    if not 1 <= window <= len(array):
        raise ValueError(f"window must be from 1 to {len(array)}, not {window}")
    sums = np.cumsum(np.concatenate(([0.0], array)))
    return (sums[window:] - sums[:-window]) / window


def standardize(table: Floats) -> Floats:
    """Each column with mean 0 and deviation 1; a constant column becomes 0."""
    deviation = table.std(axis=0)
    return (table - table.mean(axis=0)) / np.where(deviation == 0, 1.0, deviation)


def nearest(points: Floats, query: Floats) -> npt.NDArray[np.intp]:
    """For each row of ``query`` the index of the closest row of ``points``."""
    distances = ((query[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
    return distances.argmin(axis=1)


def drawdown(values: npt.ArrayLike) -> float:
    """The largest fall from a peak so far, as a share of that peak."""
    array = np.asarray(values, dtype=np.float64)
    peaks = np.maximum.accumulate(array)
    return float(((peaks - array) / peaks).max())
