"""Titles and reviews as text. Standard library only."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def slug(title: str) -> str:
    """``title`` as it stands in an address: ASCII, lower case, dashes between the words."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def words(text: str) -> list[str]:
    """The words of ``text`` in lower case; an inner apostrophe belongs to its word."""
    return _WORD.findall(text.lower())


def most_common(text: str, n: int) -> list[tuple[str, int]]:
    """The ``n`` most frequent words and their counts; equal counts come in alphabetical order."""
    return sorted(Counter(words(text)).items(), key=lambda pair: (-pair[1], pair[0]))[:n]


def read_reviews(path: Path) -> dict[str, list[str]]:
    """Reviews by product, from lines of ``product: review``; other lines are passed over."""
    reviews: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        product, colon, review = line.partition(":")
        if colon and review.strip():
            reviews.setdefault(product.strip(), []).append(review.strip())
    return reviews
