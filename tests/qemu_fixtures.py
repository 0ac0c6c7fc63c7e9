"""Fixtures for runs in virtual machines.

Without QEMU the tests that use them are skipped; where ``PYTEST_FORKD_REQUIRE_QEMU`` is set, they
fail. ``PYTEST_FORKD_QEMU_CACHE`` names a directory that keeps image and snapshot for the next time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_forkd.backends.base import BackendError
from pytest_forkd.qemu.store import Entry, Store
from pytest_forkd.qemu.warmup import Base, find_base, warm_snapshot
from pytest_forkd.snapshots.plan import Plan
from tests.conftest import Runner


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Base, Entry]:
    """A cache directory with an image and a snapshot of this environment."""
    kept = os.environ.get("PYTEST_FORKD_QEMU_CACHE")
    cache = Path(kept) if kept else tmp_path_factory.mktemp("cache")
    store = Store(cache / "pytest-forkd")
    try:
        base = find_base(store)
    except BackendError as exc:
        if os.environ.get("PYTEST_FORKD_REQUIRE_QEMU"):
            raise
        pytest.skip(f"no virtual machines here: {str(exc).splitlines()[0]}")
    return cache, base, warm_snapshot(store, base, Plan())


@pytest.fixture
def qemu(
    warm: tuple[Path, Base, Entry], run: Runner, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run the suite in the test's directory in virtual machines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm[0]))
    return lambda *args, **kwargs: run("--forkd-backend=qemu", *args, **kwargs)
