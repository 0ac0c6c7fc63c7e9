"""Tables of orders in pandas."""

import pandas as pd
import pytest
from shopstats.frames import (
    best_customers,
    customer_table,
    load_orders,
    monthly_revenue,
    with_revenue,
)

ORDERS_CSV = """\
day,customer,units,price
2024-01-05,ada,2,10.0
2024-01-20,bob,1,35.5
2024-03-02,ada,4,10.0
2024-03-09,cy,3,5.0
2024-03-31,bob,0,99.0
"""


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """All orders, read once for the module; no test may change them."""
    path = tmp_path_factory.mktemp("orders") / "orders.csv"
    path.write_text(ORDERS_CSV, encoding="utf-8")
    return load_orders(path)


def test_orders_are_read_with_their_types(orders):
    assert orders.shape == (5, 4)
    assert pd.api.types.is_datetime64_any_dtype(orders["day"])
    assert pd.api.types.is_string_dtype(orders["customer"])


def test_negative_units_are_refused(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(ORDERS_CSV.replace(",2,", ",-2,"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.csv: units must not be negative"):
        load_orders(path)


def test_revenue_leaves_the_orders_alone(orders):
    before = orders.copy()
    assert with_revenue(orders)["revenue"].sum() == pytest.approx(110.5)
    pd.testing.assert_frame_equal(orders, before)


def test_a_month_without_orders_counts_as_zero(orders):
    revenue = monthly_revenue(orders)
    assert revenue.index.strftime("%Y-%m").tolist() == ["2024-01", "2024-02", "2024-03"]
    assert revenue.tolist() == [55.5, 0.0, 55.0]


@pytest.mark.parametrize(("n", "names"), [(1, ["ada"]), (9, ["ada", "bob", "cy"])])
def test_best_customers(orders, n, names):
    assert best_customers(orders, n) == names


def test_customer_table(orders):
    table = customer_table(orders)
    assert table.loc["ada"].to_dict() == {"orders": 2, "basket": 30.0, "idle_days": 29}
    assert table["idle_days"].min() == 0
