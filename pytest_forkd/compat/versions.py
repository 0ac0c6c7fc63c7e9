"""The versions of the libraries whose private names are used here."""

from __future__ import annotations

import platform
from typing import Any

import execnet
import pluggy
import pytest
import xdist

import pytest_forkd

__all__ = ["LIBRARIES", "versions"]

#: Modules with a ``__version__``, by distribution; reading the metadata would take milliseconds.
LIBRARIES: dict[str, Any] = {
    "pytest": pytest,
    "pluggy": pluggy,
    "pytest-xdist": xdist,
    "execnet": execnet,
}


def versions() -> dict[str, str]:
    """The versions that a result of :func:`~pytest_forkd.compat.selftest.missing` is valid for."""
    found = {library: str(module.__version__) for library, module in LIBRARIES.items()}
    return {**found, "pytest-forkd": pytest_forkd.__version__, "Python": platform.python_version()}
