"""Models of customers in scikit-learn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def make_customers(n: int, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """``n`` invented customers (idle days, orders, basket), and who of them has left (1) or not."""
    rng = np.random.default_rng(seed)
    left = np.arange(n) % 2
    features = np.column_stack(
        (
            rng.normal(20 + 60 * left, 10),
            rng.normal(12 - 6 * left, 2),
            rng.normal(40, 15, size=n),
        )
    )
    return features, left.astype(np.int64)


def churn_model() -> Pipeline:
    """An unfitted classifier of who is about to leave."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0))


def segments(features: npt.NDArray[np.float64], k: int, seed: int) -> npt.NDArray[np.int32]:
    """The segment, 0 to ``k - 1``, that each customer belongs to; segment 0 is the largest."""
    scaled = StandardScaler().fit_transform(features)
    labels = KMeans(n_clusters=k, n_init=3, random_state=seed).fit_predict(scaled)
    by_size = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return np.argsort(by_size)[labels].astype(np.int32)


def main_axes(features: npt.NDArray[np.float64], n: int) -> PCA:
    """The fitted ``n`` main axes of the standardized features."""
    return PCA(n_components=n).fit(StandardScaler().fit_transform(features))
