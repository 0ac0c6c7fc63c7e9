"""Fixtures for runs in virtual machines.

Without QEMU the tests that use them are skipped; where ``PYTEST_FORKD_REQUIRE_QEMU`` is set, they
fail. ``PYTEST_FORKD_QEMU_CACHE`` names a directory that keeps image and snapshot for the next time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_forkd.backends.base import BackendError
from pytest_forkd.parent.plan import Plan, Rewriting
from pytest_forkd.qemu.store import Artifact, ArtifactStore
from pytest_forkd.qemu.warmup import Base, find_base, warm_snapshot
from tests.conftest import Runner

#: Says what pytest rewrites in a run as the fixture ``run`` starts it.
_REWRITING = """
import dataclasses, json
from _pytest.config import _prepareconfig
from pytest_forkd.parent.plan import Rewriting
config = _prepareconfig(["-p", "xdist", "-p", "forkd"])
print(json.dumps(dataclasses.asdict(Rewriting.of(config))))
"""


@pytest.fixture(scope="session")
def run_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """What a run plans for a suite that names no third-party module: its snapshot depends on it."""
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    folder = tmp_path_factory.mktemp("plan")
    told = subprocess.check_output([sys.executable, "-c", _REWRITING], cwd=folder, env=environ)
    return Plan(rewriting=Rewriting.from_json(json.loads(told)))


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory, run_plan: Plan) -> tuple[Path, Base, Artifact]:
    """A cache directory with an image and a snapshot of this environment."""
    kept = os.environ.get("PYTEST_FORKD_QEMU_CACHE")
    cache = Path(kept) if kept else tmp_path_factory.mktemp("cache")
    store = ArtifactStore(cache / "pytest-forkd")
    try:
        base = find_base(store)
    except BackendError as exc:
        if os.environ.get("PYTEST_FORKD_REQUIRE_QEMU"):
            raise
        pytest.skip(f"no virtual machines here: {str(exc).splitlines()[0]}")
    return cache, base, warm_snapshot(store, base, run_plan)


@pytest.fixture
def qemu(
    warm: tuple[Path, Base, Artifact], run: Runner, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run the suite in the test's directory in virtual machines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm[0]))
    return lambda *args, **kwargs: run("--forkd-backend=qemu", *args, **kwargs)
