"""How a fork of the collector becomes a worker, and how it ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from typing import Any

import pytest

from pytest_forkd.channel.events import encode_batch
from pytest_forkd.compat.cpython import forget_exit_handlers, run_exit_handlers
from pytest_forkd.parent.hygiene import own_basetemp, restart_capture
from pytest_forkd.parent.watch.adapters import adapt_worker
from pytest_forkd.parent.watch.seeds import SeedWatch
from pytest_forkd.parent.watch.suite import Watch
from pytest_forkd.parent.worker.interactor import Interactor
from pytest_forkd.parent.worker.nursery import WorkerStart
from pytest_forkd.runtime import frozen_gc as frozen
from pytest_forkd.runtime.gc_tuning import end_when_nothing_is_found
from pytest_forkd.runtime.log_files import reopen_log_files

__all__ = ["become_worker", "configure_worker", "finish_worker", "tell_unconfigured"]


def become_worker(config: Any, interactor: Interactor, birth: WorkerStart, watch: Watch) -> None:
    """Give a clone of the collector the identity in ``birth``.

    The same objects are changed, not replaced: plugins keep references to them.
    """
    forget_exit_handlers()
    end_when_nothing_is_found(watch.suite_has_finalizers)
    os.environ["PYTEST_XDIST_WORKER"] = birth.workerinput["workerid"]
    os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(birth.workerinput["workercount"])
    config.workerinput.become(birth.workerinput)
    interactor.identify(birth.workerinput)
    own_basetemp(config, birth.basetemp)
    restart_capture(config, birth.files)
    reopen_log_files()
    watch.seeds.reseed()
    interactor.attach(birth.channel, birth.claims, birth.exhausted)
    adapt_worker(config, config.workerinput)
    config.hook.pytest_forkd_worker_start(config=config, workerinput=config.workerinput)
    interactor.send_ready()


def configure_worker(config: Any, interactor: Interactor, birth: WorkerStart) -> None:
    """Prepare a clone that has its identity from the start and will configure itself."""
    forget_exit_handlers()
    end_when_nothing_is_found()
    if hasattr(config.option, "log_file_mode"):
        config.option.log_file_mode = "a"  # all workers write to the file that the controller made
    SeedWatch().reseed()  # only installed modules were imported, so no seed of the suite is lost
    interactor.attach(birth.channel, birth.claims, birth.exhausted)
    config.pluginmanager.register(_SelfCollecting(), "forkd-worker")
    config.hook.pytest_forkd_worker_start(config=config, workerinput=config.workerinput)


def tell_unconfigured(birth: WorkerStart, reason: dict[str, Any]) -> None:
    """Tell the controller why there is no session; all workers of a run have the same reason."""
    with contextlib.suppress(OSError):  # the controller may be gone
        birth.channel.send(encode_batch([["unconfigured", reason["usage"], reason["text"]]]))


class _SelfCollecting:
    """The plugin of a worker that configures and collects for itself."""

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)  # old-style wrappers add no traceback entry
    def pytest_collection(self) -> Generator[None, object, None]:
        frozen.pause()  # a collector inherits this from its parent
        yield
        frozen.resume()


def finish_worker() -> int:
    """Run the exit handlers registered since the fork, and flush the standard streams.

    :returns: the exit status: 0 whatever the tests did, as in xdist's workers. The session's result
        is in ``workeroutput``.
    """
    run_exit_handlers(join_threads=True)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return 0
