"""Titles and reviews: no third-party import but pytest."""

import pytest
from shopstats.text import most_common, read_reviews, slug, words

REVIEWS = """\
kettle: Boils fast, and it's quiet.
this line names no product
teapot: Pours well.
kettle: Fast. Very fast!
"""


@pytest.fixture
def review_file(tmp_path):
    path = tmp_path / "reviews.txt"
    path.write_text(REVIEWS, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Blue Teapot", "blue-teapot"),
        ("  Crème brûlée, for 2! ", "creme-brulee-for-2"),
        ("***", ""),
    ],
)
def test_slug(title, expected):
    assert slug(title) == expected


def test_words_keep_inner_apostrophes():
    assert words("It's 'fine', isn't it? No. 7") == ["it's", "fine", "isn't", "it", "no"]


def test_equal_counts_come_in_alphabetical_order():
    assert most_common("pear fig pear apple fig kiwi", 3) == [("fig", 2), ("pear", 2), ("apple", 1)]


def test_reviews_are_grouped_by_product(review_file):
    reviews = read_reviews(review_file)
    assert list(reviews) == ["kettle", "teapot"]
    assert reviews["kettle"] == ["Boils fast, and it's quiet.", "Fast. Very fast!"]


def test_what_a_product_is_known_for(review_file):
    assert most_common(" ".join(read_reviews(review_file)["kettle"]), 1) == [("fast", 3)]
