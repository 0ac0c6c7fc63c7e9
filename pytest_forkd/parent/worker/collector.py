"""The collector: configures itself as an xdist worker, collects once, and forks the workers.

A collector is forked from the parent for one run, and talks to the controller over a connection of
its own. What it is asked for comes in the request:

* at warm level ``collection`` it configures and collects, and forks workers inside its run loop;
* at level ``imports`` it only imports what the request names, and its forks configure and collect
  for themselves.

In both cases the fork becomes a worker in :mod:`pytest_forkd.parent.worker.start`. The collector
stays behind to watch its workers, and ends with the run.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

import pytest_forkd
from pytest_forkd.channel.bounds import PART_CHARACTERS, parts, size
from pytest_forkd.channel.events import unpack_object
from pytest_forkd.channel.frames import FrameSocket
from pytest_forkd.compat.cpython import run_exit_handlers
from pytest_forkd.compat.pytest import (
    OutcomeException,
    prepare_config,
    set_program_name,
    unconfigure,
)
from pytest_forkd.compat.xdist_remote import setup_config
from pytest_forkd.parent import processes
from pytest_forkd.parent.hygiene import CrashFiles
from pytest_forkd.parent.imports.importing import note_conftests, watch_imports
from pytest_forkd.parent.imports.rewriting import plainly_imported, rewriting
from pytest_forkd.parent.plan import Rewriting
from pytest_forkd.parent.third_party import (
    import_modules,
    last_module,
    modules_since,
    named_modules,
)
from pytest_forkd.parent.watch.findings import Finding, project_files
from pytest_forkd.parent.watch.suite import Watch
from pytest_forkd.parent.watch.tripwires import WorkerInput
from pytest_forkd.parent.worker.fixtures import fixture_table
from pytest_forkd.parent.worker.interactor import Interactor
from pytest_forkd.parent.worker.nursery import Nursery, WorkerStart
from pytest_forkd.parent.worker.start import (
    become_worker,
    configure_worker,
    finish_worker,
    tell_unconfigured,
)
from pytest_forkd.parent.worker.unconfigured import reason
from pytest_forkd.runtime import frozen_gc as frozen

__all__ = ["run_collector"]

#: Seconds that a collector started early waits for the controller to ask for the collection.
_REQUEST_TIMEOUT = 600.0


def run_collector(
    connection: FrameSocket,
    request: dict[str, Any],
    nursery: Nursery | None = None,
    files: CrashFiles | None = None,
) -> int:
    """Serve one run; returns in the collector and in each of its workers.

    :param connection: to the controller.
    :param request: see ``pytest_forkd.backends.process.backend``.
    :param nursery: forks the workers; needed if the connection is not a frame socket.
    :param files: receive output and crash dumps, for the parent to read if this process dies.
    :returns: the process's exit status.
    """
    processes.become_subreaper()
    take_over(request)
    files = files or CrashFiles()
    note_conftests(files)
    if faulthandler.is_enabled():
        faulthandler.enable(file=files.dump)
    nursery = nursery or Nursery(connection)
    last_early = last_module()
    start: Start | Unconfigured | None = None
    if request.get("early"):
        try:
            start = start_collection(request)
        except Unconfigured as exc:
            start = exc
        try:
            request = connection.receive(_REQUEST_TIMEOUT).message["request"]
        except (EOFError, TimeoutError):
            return 0  # the controller does not want this collector after all
    plain = set(plainly_imported((request["rewriting"] or {}).get("names", ())))
    if not plain.issubset(modules_since(last_early)):
        connection.send({"imported_early": sorted(plain.difference(modules_since(last_early)))})
        return 0
    try:
        if request["level"] == "imports":
            birth = serve_imports(nursery, request)
        else:
            if isinstance(start, Unconfigured):
                raise start
            birth = serve_collection(nursery, request, start or start_collection(request), files)
    except Unconfigured as exc:
        connection.send({"unconfigured": exc.reason})
        return int(pytest.ExitCode.USAGE_ERROR)
    if birth is not None:
        return finish_worker()
    run_exit_handlers(join_threads=False)
    return 0


def take_over(request: dict[str, Any]) -> None:
    """Take over what a child of the controller would have inherited from it."""
    devnull = os.open(os.devnull, os.O_RDWR)
    # As execnet does for xdist's workers: only the controller writes to standard output.
    os.dup2(devnull, 0)
    os.dup2(devnull, 1)
    os.close(devnull)
    os.chdir(request["cwd"])
    importlib.invalidate_caches()  # files may have been added since the parent's imports
    os.environ.clear()
    os.environ.update(request["environ"])
    if hasattr(time, "tzset"):
        time.tzset()
    sys.path[:] = request["sys_path"]
    sys.argv[:] = request["mainargv"]
    if request["sigint"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def set_role(workerinput: dict[str, Any]) -> None:
    """Set the variables by which xdist tells a process that it is a worker."""
    os.environ["PYTEST_XDIST_TESTRUNUID"] = workerinput["testrunuid"]
    os.environ["PYTEST_XDIST_WORKER"] = workerinput["workerid"]
    os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(workerinput["workercount"])


class Unconfigured(Exception):
    """pytest could not be configured, so there is no session.

    :ivar reason: see :func:`pytest_forkd.parent.worker.unconfigured.reason`.
    """

    def __init__(self, exc: BaseException) -> None:
        super().__init__(str(exc))
        self.reason = reason(exc)


def make_config(request: dict[str, Any], workerinput: dict[str, Any], basetemp: str | None) -> Any:
    """A configuration as ``xdist.remote`` makes it: conftests loaded, not yet configured.

    :raises Unconfigured: if that is impossible.
    """
    pytest_forkd._config_of_a_clone = True
    try:
        config: Any = prepare_config(request["args"])
    except (Exception, SystemExit, OutcomeException) as exc:
        raise Unconfigured(exc) from exc
    finally:
        pytest_forkd._config_of_a_clone = False
    setup_config(config, basetemp)
    set_program_name(config, os.path.basename(request["mainargv"][0]))
    config.workerinput = workerinput
    config.workeroutput = {}
    return config


# -- warm level imports ------------------------------------------------------------------------


def serve_imports(nursery: Nursery, request: dict[str, Any]) -> WorkerStart | None:
    """Import heavy modules, then fork workers that configure and collect for themselves.

    :returns: in a worker, what it was started with, once its session has ended; ``None`` in the
        collector.
    """
    names = request["modules"]
    if request["scan"]:
        names += named_modules(request["args"], request["testpaths"], request["exclude"])
    with rewriting(Rewriting.from_json(request["rewriting"])):
        import_modules(names, request["skip"])
    frozen.freeze()
    nursery.connection.send({"warm": {"level": "imports"}})
    birth = nursery.run()
    if birth is None:
        return None
    frozen.resume()
    workerinput = birth.workerinput
    note_conftests(birth.files)
    if faulthandler.is_enabled():
        faulthandler.enable(file=birth.files.dump)
    set_role(workerinput)
    try:
        config = make_config(request, workerinput, birth.basetemp)
        interactor = Interactor(config, workerinput)
        configure_worker(config, interactor, birth)
        watch_imports(config, birth.files, request)
        run_session(config)
    except Unconfigured as exc:
        tell_unconfigured(birth, exc.reason)
    return birth


def run_session(config: Any) -> int:
    """Configure, and run the session.

    :returns: its exit status.
    :raises Unconfigured: on a usage error. pytest passes other exceptions to
        ``pytest_internalerror``.
    """
    try:
        return int(config.hook.pytest_cmdline_main(config=config))
    except pytest.UsageError as exc:
        raise Unconfigured(exc) from exc


# -- warm level collection ---------------------------------------------------------------------


@dataclass
class Start:
    """A collection begun before the nodes are known: options parsed, conftests loaded, watched.

    :ivar workerinput: empty until the nodes are known.
    """

    config: Any
    workerinput: WorkerInput
    watch: Watch


def start_collection(request: dict[str, Any]) -> Start:
    """Do the part of a collection that can be done before ``pytest_configure_node`` is called."""
    workerinput = WorkerInput({}, ())
    set_role(request["role"])
    watch = Watch(workerinput)
    return Start(make_config(request, workerinput, None), workerinput, watch)


def serve_collection(
    nursery: Nursery, request: dict[str, Any], start: Start, files: CrashFiles
) -> WorkerStart | None:
    """Configure and collect, then fork workers from inside the run loop.

    :returns: in a worker, what it was started with, once its session has ended; ``None`` in the
        collector.
    """
    nodes = [unpack_object(text) for text in request["nodes"]]
    first = nodes[0]
    identity = {
        key
        for key in {key for node in nodes for key in node}
        if any(node.get(key) != first.get(key) or key not in node for node in nodes)
    }
    config, watch = start.config, start.watch
    start.workerinput.announce(first, identity | {"workerid"})
    config.option.basetemp = request["basetemp"]
    plugin = CollectorPlugin(
        config,
        nursery,
        watch,
        exclude=request["exclude"],
        strict=request["warm"] == "collection",
    )
    plugin.leave_if_unsuitable()
    config.pluginmanager.register(plugin, "forkd-collector")
    watch_imports(config, files, request)
    status = run_session(config)
    if plugin.birth is None:
        # The run loop was not reached: collection failed, or a hook ended it.
        plugin.report_end(status)
    return plugin.birth


class CollectorPlugin:
    """Collects under watch, reports the collection, and forks workers in ``pytest_runtestloop``."""

    def __init__(
        self,
        config: pytest.Config,
        nursery: Nursery,
        watch: Watch,
        *,
        exclude: list[str],
        strict: bool,
    ) -> None:
        self.config: Any = config
        self.nursery = nursery
        self.watch = watch
        self.exclude = exclude
        #: Share the collection whatever is found.
        self.strict = strict
        self.interactor = Interactor(config, config.workerinput)  # type: ignore[attr-defined]
        #: Set in a worker.
        self.birth: WorkerStart | None = None
        self.started = time.perf_counter()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        self.leave_if_unsuitable()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> object:
        self.leave_if_unsuitable(complete=True)
        findings = self.watch.resources(self.config, self.nursery.fds())
        if findings and not self.strict:
            self.leave(findings, complete=True)
        self.watch.stop()
        # Frozen objects are left out of the workers' garbage collections, which would otherwise
        # copy their memory pages. No gc.collect() first: it is slow, and there is little garbage.
        frozen.freeze()
        events = self.interactor.outbox.take()
        ids = self.send_parts([item.nodeid for item in session.items], events)
        self.nursery.connection.send(
            {
                "warm": {
                    "level": "collection",
                    "ids": ids,
                    "fixtures": fixture_table(session.items),
                    "events": events,
                    "findings": [f.to_json() for f in self.watch.trips(self.config) + findings],
                    "modules": self.watch.modules(self.config, self.exclude),
                    "seconds": time.perf_counter() - self.started,
                }
            }
        )
        birth = self.nursery.run()
        if birth is None:
            run_exit_handlers(join_threads=False)
            self.end(0)
        self.birth = birth
        frozen.resume()
        become_worker(self.config, self.interactor, birth, self.watch)
        return None  # and so on to the interactor's run loop

    def send_parts(self, ids: list[str], events: list[list[Any]]) -> list[str]:
        """Send ahead, in parts, what would make the final message too long.

        :param events: those that were sent are removed from it.
        :returns: the ids that were not sent.
        """
        *first, rest = parts(ids)
        for part in first:
            self.nursery.connection.send({"part": {"ids": part, "events": []}})
        while len(events) > 1 and sum(map(size, events)) > PART_CHARACTERS:
            self.nursery.connection.send({"part": {"ids": [], "events": [events.pop(0)]}})
        return rest

    def leave_if_unsuitable(self, *, complete: bool = False) -> None:
        """Unless the level is forced, end the collector as soon as there is a finding."""
        if not self.strict and self.watch.trips(self.config):
            self.leave(self.watch.trips(self.config), complete=complete)

    def leave(self, findings: list[Finding], *, complete: bool) -> NoReturn:
        """Tell the controller why the collection cannot be shared, unconfigure pytest, and exit.

        :param complete: whether everything was collected.
        """
        self.watch.stop()
        self.nursery.connection.send(
            {
                "unsuitable": {
                    "findings": [finding.to_json() for finding in findings],
                    "modules": self.watch.modules(self.config, self.exclude),
                    "complete": complete,
                    "files": [f.path for f in findings if f.path] + project_files(),
                }
            }
        )
        with contextlib.suppress(Exception):
            unconfigure(self.config)
        run_exit_handlers(join_threads=False)
        self.end(0)

    def report_end(self, status: int) -> None:
        """Tell the controller that the session ended before its run loop."""
        self.watch.stop()
        events = self.interactor.outbox.take()
        self.send_parts([], events)
        self.nursery.connection.send({"ended": {"status": status, "events": events}})

    @staticmethod
    def end(status: int) -> NoReturn:
        """Exit at once: returning to pytest would make it finish a session that did not run."""
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)
