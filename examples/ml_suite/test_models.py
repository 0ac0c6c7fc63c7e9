"""Models of customers in scikit-learn."""

import numpy as np
import pytest
from shopstats.models import churn_model, main_axes, make_customers, segments
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, adjusted_rand_score
from sklearn.model_selection import cross_val_score

SEED = 7


@pytest.fixture(scope="module")
def customers():
    return make_customers(200, SEED)


@pytest.fixture(scope="module")
def model(customers):
    """A classifier fitted once for the module."""
    features, left = customers
    return churn_model().fit(features, left)


def test_model_must_be_fitted_first(customers):
    with pytest.raises(NotFittedError):
        churn_model().predict(customers[0])


def test_model_holds_on_unseen_customers(model):
    features, left = make_customers(100, SEED + 1)
    assert accuracy_score(left, model.predict(features)) > 0.95


@pytest.mark.parametrize(
    ("customer", "leaves"),
    [pytest.param([90, 4, 40], 1, id="idle"), pytest.param([5, 15, 40], 0, id="busy")],
)
def test_clear_cases(model, customer, leaves):
    assert model.predict([customer]).item() == leaves
    assert model.predict_proba([customer])[0, leaves] > 0.95


def test_cross_validation_is_stable(customers):
    features, left = customers
    scores = cross_val_score(churn_model(), features, left, cv=3)
    assert scores.min() > 0.9


def test_fitting_again_gives_the_same_model(customers, model):
    again = clone(model).fit(*customers)
    np.testing.assert_allclose(again[-1].coef_, model[-1].coef_)


def test_segments_find_who_has_left(customers):
    features, left = customers
    found = segments(features[:, :2], k=2, seed=SEED)
    assert set(found) == {0, 1}
    assert adjusted_rand_score(left, found) > 0.9


def test_first_axis_is_leaving(customers):
    axes = main_axes(customers[0], 2)
    assert axes.explained_variance_ratio_[0] > 0.5
    assert np.sign(axes.components_[0, 0]) == -np.sign(axes.components_[0, 1])
