"""Tables of orders in pandas: columns ``day``, ``customer``, ``units`` and ``price``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def load_orders(path: Path) -> pd.DataFrame:
    """Read orders from CSV and refuse a file with negative units."""
    orders = pd.read_csv(path, parse_dates=["day"], dtype={"customer": "string"})
    if (orders["units"] < 0).any():
        raise ValueError(f"{path.name}: units must not be negative")
    return orders


def with_revenue(orders: pd.DataFrame) -> pd.DataFrame:
    """A copy of ``orders`` with a column ``revenue``."""
    return orders.assign(revenue=orders["units"] * orders["price"])


def monthly_revenue(orders: pd.DataFrame) -> pd.Series:
    """Revenue by calendar month, without gaps: a month without orders stands there with 0."""
    revenue = with_revenue(orders).set_index("day")["revenue"]
    return revenue.resample("MS").sum()


def best_customers(orders: pd.DataFrame, n: int) -> list[str]:
    """The ``n`` customers with the most revenue, the best one first."""
    by_customer = with_revenue(orders).groupby("customer")["revenue"].sum()
    return by_customer.sort_values(ascending=False, kind="stable").index[:n].tolist()


def customer_table(orders: pd.DataFrame) -> pd.DataFrame:
    """One row a customer: number of orders, mean basket, days since the last order of all."""
    table = (
        with_revenue(orders)
        .groupby("customer")
        .agg(orders=("day", "size"), basket=("revenue", "mean"), last=("day", "max"))
    )
    table["idle_days"] = (orders["day"].max() - table.pop("last")).dt.days
    return table
