"""What the user asked for: options, ini values and what follows from them."""

from __future__ import annotations

import os
import sys
import uuid
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_forkd.backends.base import Backend, BackendError
from pytest_forkd.config.lookup import option_or_ini, whole_number
from pytest_forkd.parent.plan import Plan

if TYPE_CHECKING:
    from pytest_forkd.forkd.backend import ForkdSettings
    from pytest_forkd.machines.working_tree import SyncSettings
    from pytest_forkd.qemu.backend import QemuSettings

__all__ = [
    "BACKENDS",
    "DEFAULT_KEEP",
    "WARM_LEVELS",
    "Settings",
    "count_workers",
    "guess_workers",
    "make_backend",
    "read_settings",
]

BACKENDS = ("auto", "process", "qemu", "forkd")
WARM_LEVELS = ("auto", "collection", "imports")
#: Seconds for which a parent is kept by default, except on CI.
DEFAULT_KEEP = 600.0
#: How many parents are kept for a user by default.
DEFAULT_KEEP_MAX = 4

#: Options with which pytest runs no tests, or runs them under a debugger that needs the terminal.
#: ``-f`` starts a pytest of its own, which has no forkd workers.
_NOT_DISTRIBUTED = (
    "collectonly",
    "looponfail",
    "show_fixtures_per_test",
    "showfixtures",
    "trace",
    "usepdb",
)


@dataclass(frozen=True)
class Settings:
    """A run that is to be distributed over clones.

    :ivar workers: how many, at least 1; or ``auto``, see :func:`count_workers`.
    :ivar backend: ``process``, ``qemu`` or ``forkd``.
    :ivar warm: the warm level: ``auto``, ``collection`` or ``imports``.
    :ivar preload: modules for the parent to import.
    :ivar path: where the controller looks for modules first.
    :ivar testrunuid: the run's id: ``--testrunuid``, or made up.
    :ivar keep: seconds for which the parent is kept after the run; 0 not to keep it.
    :ivar keep_max: how many parents are kept for this user.
    :ivar keep_ignore_env: patterns of environment variables that do not matter for which parent is
        used.
    :ivar own_scheduler: whether the user has asked for none of xdist's modes of distribution.
    :ivar forkd: the settings of the forkd backend.
    :ivar qemu: the settings of the qemu backend.
    :ivar sync: which part of the working tree is sent to machines.
    """

    workers: int | str
    backend: str = "process"
    warm: str = "auto"
    preload: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    keep: float = 0.0
    keep_max: int = DEFAULT_KEEP_MAX
    keep_ignore_env: list[str] = field(default_factory=list)
    testrunuid: str = field(default_factory=lambda: uuid.uuid4().hex)
    own_scheduler: bool = False
    forkd: ForkdSettings | None = None
    qemu: QemuSettings | None = None
    sync: SyncSettings | None = None


def parse_workers(text: str) -> int | str:
    """``--forkd-workers`` as a number, or ``auto``.

    :raises ValueError: for anything else.
    """
    if text.strip() == "auto":
        return "auto"
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def read_settings(config: pytest.Config, namespace: Any) -> Settings | None:
    """Work out what the user asked for.

    :param config: for ini values and hooks.
    :param namespace: the options as parsed so far.
    :returns: ``None`` if this run is not to be distributed by forkd.
    :raises pytest.UsageError: on a value that makes no sense.
    """
    workers = _workers(config, namespace)
    if not workers:
        return None
    if any(getattr(namespace, name, False) for name in _NOT_DISTRIBUTED):
        return None
    if not any(config.pluginmanager.hasplugin(name) for name in ("xdist", "xdist.plugin")):
        raise pytest.UsageError(
            "pytest-forkd needs pytest-xdist, which is disabled here.\n"
            "Drop '-p no:xdist' (or load it with '-p xdist'), or say --forkd-workers=0."
        )
    if getattr(namespace, "tx", None) and getattr(namespace, "forkd_workers", None) is not None:
        raise pytest.UsageError("--tx cannot be combined with forkd workers; drop one of them.")
    _popen_specs(namespace)
    backend = _choice(config, namespace, "forkd_backend", BACKENDS)
    forkd = qemu = sync = None
    if backend == "forkd":
        from pytest_forkd.forkd.options import read_forkd_settings, read_sync_settings

        forkd = read_forkd_settings(config, namespace)
        sync = read_sync_settings(config, namespace)
    elif backend == "qemu":
        from pytest_forkd.forkd.options import read_sync_settings
        from pytest_forkd.qemu.options import read_qemu_settings

        qemu = read_qemu_settings(config, namespace)
        sync = read_sync_settings(config, namespace)
    return Settings(
        workers=workers,
        backend=backend,
        forkd=forkd,
        qemu=qemu,
        sync=sync,
        warm=_choice(config, namespace, "forkd_warm", WARM_LEVELS),
        preload=[
            *config.getini("forkd_preload"),
            *(getattr(namespace, "forkd_preload", None) or ()),
        ],
        path=[*(str(path) for path in config.getini("pythonpath")), *sys.path],
        keep=_keep(config, namespace),
        keep_max=_keep_max(config),
        keep_ignore_env=config.getini("forkd_keep_ignore_env"),
        testrunuid=getattr(namespace, "testrunuid", None) or uuid.uuid4().hex,
    )


def _workers(config: pytest.Config, namespace: Any) -> int | str:
    wanted = getattr(namespace, "forkd_workers", None)
    xdist_workers = getattr(namespace, "numprocesses", None)
    if wanted is not None and xdist_workers is not None:
        raise pytest.UsageError(
            "-n and --forkd-workers both say how many workers there are to be; give one of them."
        )
    if wanted is None and xdist_workers is not None:
        if not config.getini("forkd_replace_xdist"):
            return 0  # -n asks for xdist, which overrides the default in the ini file
        return xdist_workers  # type: ignore[no-any-return]
    if wanted is None and getattr(namespace, "tx", None):
        distributed = getattr(namespace, "dist", "no") != "no" or getattr(namespace, "distload", 0)
        replaces = config.getini("forkd_replace_xdist")
        if replaces or distributed:  # else it was meant for xdist, as -n is
            return _popen_specs(namespace) if replaces and distributed else 0
    wanted, source = option_or_ini(config, namespace, "forkd_workers")
    if wanted is None or wanted == "":
        return 0
    try:
        return parse_workers(str(wanted))
    except ValueError:
        raise pytest.UsageError(
            f"{source}: {str(wanted)!r} is no number of workers.\n"
            "Give a whole number, 0 for none, or 'auto' for one a processor."
        ) from None


def _popen_specs(namespace: Any) -> int:
    """How many workers ``--tx`` asks for, as ``popen`` or ``3*popen``.

    :raises pytest.UsageError: for any other specification, such as another Python or machine.
    """
    count = 0
    for spec in getattr(namespace, "tx", None) or ():
        times, star, kind = str(spec).rpartition("*")
        if kind != "popen" or (star and not times.isdecimal()):
            raise pytest.UsageError(
                f"--tx={spec}: forkd workers are clones of one parent on this machine, so only "
                "'popen' and 'N*popen' can be combined with them.\n"
                "Drop --tx, or leave the workers to xdist (-p no:forkd)."
            )
        count += int(times) if star else 1
    return count


def _keep(config: pytest.Config, namespace: Any) -> float:
    seconds, source = option_or_ini(config, namespace, "forkd_keep")
    if seconds is None or seconds == "":
        # A process started on CI should end with the job's step, and one started by a test with
        # the test.
        inside = os.environ.get("CI") or "PYTEST_CURRENT_TEST" in os.environ
        return 0.0 if inside else DEFAULT_KEEP
    try:
        keep = float(seconds)
        if not 0 <= keep < float("inf"):
            raise ValueError
    except ValueError:
        raise pytest.UsageError(
            f"{source}: {str(seconds)!r} is no number of seconds.\n"
            "Give how long the parent is to be kept after the run, 0 not to keep it."
        ) from None
    return keep


def _keep_max(config: pytest.Config) -> int:
    value = config.getini("forkd_keep_max")
    if value in (None, ""):
        return DEFAULT_KEEP_MAX
    return whole_number(
        value,
        1,
        sys.maxsize,
        f"forkd_keep_max: {value!r} is no number of parents to keep.\n"
        "Give a whole number, at least 1; forkd_keep = 0 keeps none.",
    )


def count_workers(settings: Settings, config: pytest.Config) -> int:
    """The number of workers, once conftests are loaded: their hooks may decide about ``auto``.

    :returns: 0 if the run is not to be distributed after all.
    """
    number = settings.workers
    if isinstance(number, str):
        # xdist's own implementation of the hook tells 'auto' from 'logical' by this option.
        config.option.numprocesses = number
        number = int(config.hook.pytest_xdist_auto_num_workers(config=config))
    return min(number, config.option.maxprocesses) if config.option.maxprocesses else number


def guess_workers(settings: Settings, namespace: Any) -> int:
    """What :func:`count_workers` will return, unless a conftest's hook changes it."""
    number = settings.workers
    if isinstance(number, str):
        from pytest_forkd.compat.xdist_plugin import number_of_workers

        options = SimpleNamespace(option=SimpleNamespace(numprocesses=number))
        number = number_of_workers(options)
    most = getattr(namespace, "maxprocesses", None)
    return min(number, most) if most else number


def _choice(config: pytest.Config, namespace: Any, name: str, choices: tuple[str, ...]) -> str:
    value, source = option_or_ini(config, namespace, name)
    if value is None:
        value = choices[0]
    if value not in choices:
        raise pytest.UsageError(f"{source}: {value!r} must be one of {', '.join(choices)}.")
    return str(value)


def make_backend(settings: Settings, plan: Plan) -> Backend | None:
    """The backend for a run, not yet started.

    :param plan: what its parent is to import.
    :returns: ``None`` if ``auto`` decides that plain xdist workers are the better choice.
    :raises BackendError: if the backend that was asked for is not available.
    """
    if settings.forkd is not None and settings.sync is not None:
        from pytest_forkd.forkd.backend import ForkdBackend

        return ForkdBackend(settings.forkd, settings.sync)
    if settings.qemu is not None and settings.sync is not None:
        from pytest_forkd.qemu.backend import QemuBackend

        return QemuBackend(settings.qemu, settings.sync, plan)
    if not hasattr(os, "fork"):
        raise BackendError(
            f"the process backend needs fork(), which {sys.platform} does not have.\n"
            "Use pytest -n N, or run the suite under WSL or in a container."
        )
    if sys.platform == "darwin" and settings.backend == "auto":
        return None
    from pytest_forkd.backends.process.backend import ProcessBackend
    from pytest_forkd.backends.process.launching import Keep

    keep = Keep(settings.keep, settings.keep_max, tuple(settings.keep_ignore_env))
    return ProcessBackend(plan, keep)
