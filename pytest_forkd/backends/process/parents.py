"""The parent of a run, as the controller sees it: found or made, greeted, let go.

A kept parent may have been stopped, may hang, or may be busy: no more than a request that costs
nothing is sent to one until it has shown that it answers. What is sent would stay in its socket,
descriptors included, and who reads the run's output would wait for those.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_forkd.backends.base import BackendError, describe_exit
from pytest_forkd.backends.process.launching import (
    RUNTIME_FILES,
    Keep,
    disown,
    launch,
    runtime_directory,
    wait_for_end,
)
from pytest_forkd.channel.frames import FrameError, FrameSocket
from pytest_forkd.console.tables import duration
from pytest_forkd.parent.fingerprint import fingerprint
from pytest_forkd.parent.kept.answers import PRELOAD_LIMIT, NotAnswering, receive
from pytest_forkd.parent.kept.entries import remove_directory
from pytest_forkd.parent.kept.store import Entry, Store, StoreError
from pytest_forkd.parent.plan import Plan
from pytest_forkd.runtime.process_tree import Process, end_tree

__all__ = ["Parent"]

#: Seconds for a process that has been told to end to do so.
_END_TIMEOUT = 5.0
#: A parent that was found to be stale is replaced; one that is stale at once is not, for ever.
_MAX_ATTEMPTS = 3
#: Characters of what a parent said before it died.
_MAX_LOG = 2000


class Parent:
    """A parent, and this run's connection to it.

    :param plan: what it is to import.
    :param keep: whether it is kept.
    :param note: is told what it says of collectors, wherever that comes in between.

    :ivar control: the connection; ``None`` before :meth:`start` and once it is lost.
    :ivar hello: its greeting, once it has come.
    :ivar origin: how it came about, in a few words.
    """

    def __init__(self, plan: Plan, keep: Keep, note: Callable[[dict[str, Any]], object]) -> None:
        self._plan = plan
        self._keep = keep
        self._note = note
        self.origin = ""
        self.control: FrameSocket | None = None
        self.hello: dict[str, Any] | None = None
        #: Of this run's making; it may be used by others by now.
        self._process: subprocess.Popen[bytes] | None = None
        self._store: Store | None = None
        self._entry: Entry | None = None
        #: It answers, or has yet to begin to and is this run's own.
        self._confirmed = False
        #: Names of kept ones that do not answer.
        self._silent: set[str] = set()

    @property
    def is_confirmed(self) -> bool:
        """Whether what is sent to it, descriptors included, is known to be read."""
        return self.control is not None and (self._confirmed or self.hello is not None)

    @property
    def pid(self) -> int | None:
        """Its process id, as far as known."""
        if self._process is not None:
            return self._process.pid
        return int(self.hello["hello"]) if self.hello is not None else None

    # -- found or made -------------------------------------------------------------------------

    def start(self) -> None:
        """Find one, or begin to make one; its greeting is not waited for.

        :raises BackendError: if none can be made.
        """
        self.hello = None
        self.origin = self.origin or "parent made"
        if self._keep.seconds:
            try:
                self._start_kept()
            except (StoreError, OSError) as exc:
                self._keep = Keep()
                self.origin += f" and not kept: {exc}"
        if not self._keep.seconds:
            directory = runtime_directory()
            try:
                self._launch(directory / "parent", None)
            finally:
                # Nobody else is to connect, so nothing of the run needs a name any more.
                remove_directory(directory, RUNTIME_FILES)
        if self._process is not None:
            self._open()

    def _start_kept(self) -> None:
        """Connect to a kept parent, or make one that is kept."""
        plan = self._plan
        self._store = self._store or Store.find()
        self._store.prepare()
        mark = fingerprint(
            plan.project,
            plan.preload,
            plan.path,
            os.environ,
            ignored=self._keep.ignored,
            rewriting=plan.rewriting,
        )
        if self._find(self._store, mark):
            return
        with self._store.lock():
            if self._find(self._store, mark):  # another run may have been faster
                return
            entry = self._store.make_entry(mark)
            try:
                self._launch(entry.path / "parent", entry)
            except BaseException:
                entry.remove()
                entry.close()
                raise
            self._entry = entry
            self._nudge(self._store)

    def _find(self, store: Store, mark: str) -> bool:
        """Connect to a kept parent that answers, or is about to."""
        for entry in store.entries(mark):
            if self._entry is None and entry.name not in self._silent:
                with contextlib.suppress(OSError, EOFError, FrameError):
                    self._try(entry)
            if self._entry is not entry:
                entry.close()
        return self._entry is not None

    def _try(self, entry: Entry) -> None:
        state, process = entry.state, entry.process
        self.control = entry.connect()
        try:
            if self.control is None:
                if process is not None and entry.exists():
                    raise NotAnswering("others have been waiting for it")
                return
            self._open()
            if state == "ready":
                receive(self.control, process, lambda: entry.state)
                self._confirmed = True
        except NotAnswering as exc:
            self._give_up(entry, exc)
        finally:
            if not self._confirmed and (state == "ready" or entry.name in self._silent):
                if self.control is not None:
                    self.control.close()
                self.control = None
        if self.control is not None:
            self._entry = entry

    def _give_up(self, entry: Entry, why: NotAnswering) -> None:
        """Leave a kept parent alone: others may be using it, or have stopped it on purpose."""
        self._silent.add(entry.name)
        process = entry.process
        number = f" ({process.pid})" if process is not None else ""
        self.origin = f"parent made, as the kept one{number} does not answer: {why}"

    @staticmethod
    def _nudge(store: Store) -> None:
        """Have the others look at once whether there are more than are to be kept."""
        for entry in store.entries():
            connection = entry.connect()
            if connection is not None:
                connection.close()
            entry.close()

    def _open(self) -> None:
        assert self.control is not None
        with contextlib.suppress(OSError):  # its end is noticed where its greeting is awaited
            keep, most = self._keep.seconds, self._keep.most
            self.control.send({"open": {"keep": keep, "most": most, "skip": self._plan.skip}})

    def _launch(self, path: Path, entry: Entry | None) -> None:
        """Start a parent that listens at ``path``, and connect to it."""
        self._process, self.control = launch(self._plan, path, entry, self._keep.seconds)
        self._confirmed = True

    # -- greeted -------------------------------------------------------------------------------

    def connect(self) -> FrameSocket:
        """The connection to a parent that has said hello, and is one that this run may use.

        :raises BackendError: if there is none.
        """
        if self.hello is not None and self.control is not None:
            try:
                self.control.send({"alive": {}})
                while "alive" not in (message := self._receive()):
                    self._note(message)
            except NotAnswering as exc:
                self.drop()
                self.origin = f"parent made, as the one before does not answer: {exc}"
            except (OSError, EOFError, FrameError):
                self.drop()
        for _attempt in range(_MAX_ATTEMPTS):
            if self.control is None:
                self.start()
            assert self.control is not None
            if self.hello is not None:
                return self.control
            why = self._greet()
            if why is None:
                return self.control
            # A kept one that has changed, or that was just ending. Nobody finds it any more.
            self.drop()
            if why:
                self.origin = f"parent remade: {why}"
        raise BackendError(f"no parent process stays: {self.origin}")

    def _receive(self) -> dict[str, Any]:
        """Its next message, see :func:`pytest_forkd.parent.kept.answers.receive`."""
        assert self.control is not None
        entry = self._entry
        if self._process is not None:
            process = Process.running(self._process.pid)
        else:
            process = entry.process if entry is not None else None
        # One that has greeted answers at once, wherever it is.
        rest = "ready" if self.hello is not None else "preloading"
        return receive(self.control, process, lambda: entry.state if entry is not None else rest)

    def _greet(self) -> str | None:
        """Take the parent's greeting; returns why it is not to be used."""
        try:
            while "hello" not in (hello := self._receive()):
                pass
        except NotAnswering as exc:
            if self._entry is not None and self._process is None:
                self._give_up(self._entry, exc)
                return ""
            self.end_own()
            return f"the one just made did not answer: {exc}"
        except TimeoutError:
            raise BackendError(
                f"the parent process was not ready within {PRELOAD_LIMIT:g} seconds; "
                "does a module in --forkd-preload wait for something?"
            ) from None
        except (EOFError, FrameError):
            if self._process is None:
                return "the one that was kept has just ended"
            raise BackendError(f"the parent process {self.end()}") from None
        if hello["stale"] is not None:
            return str(hello["stale"])
        failures = hello["preload_failures"]
        if failures:
            name, why = next(iter(failures.items()))
            raise BackendError(
                f"--forkd-preload: cannot import {name!r}: {why}\n"
                "Correct the name, install the module, or drop it from the option "
                "or the ini value forkd_preload."
            )
        if self._process is None:
            age = hello["age"]
            self.origin = "parent shared" if age is None else f"kept parent ({duration(age)} old)"
        self.hello = hello
        return None

    def describe(self) -> str:
        """How it came about; a kept one is asked for its age first."""
        if self._keep.seconds and self._process is None and self.hello is None:
            self.connect()
        return self.origin

    def learn(self, modules: list[str]) -> None:
        """Tell a parent that is kept what this run's collection has imported."""
        if self._keep.seconds and self.control is not None:
            with contextlib.suppress(OSError):
                self.control.send({"learn": modules})

    # -- let go --------------------------------------------------------------------------------

    def end(self) -> str:
        """How it has ended, in words."""
        if self._process is None:
            return "closed its connection"
        try:
            code = self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        end = f"ended with {describe_exit(code)}"
        if self._entry is not None:
            said = self._entry.read_log().strip()
            self._entry.remove()
            if said:
                end += f"; it said:\n{said[-_MAX_LOG:]}"
        return end

    def end_own(self) -> None:
        """Kill a parent that nobody but this run has, with what descends from it."""
        assert self._process is not None
        process = Process.running(self._process.pid)
        if process is not None:
            end_tree(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        if self._entry is not None:
            self._entry.remove()

    def drop(self) -> None:
        """Forget it, so that the next :meth:`connect` finds or makes one."""
        if self.control is not None:
            self.control.close()
        if self._process is not None and self._process.poll() is None:
            disown(self._process)
        self._forget()

    def replace(self, plan: Plan) -> None:
        """Forget it; the next one is to import something else."""
        self.drop()
        self._plan, self.origin = plan, "another parent made"

    def _forget(self) -> None:
        if self._entry is not None:
            self._entry.close()
        self.control = self.hello = self._process = self._entry = None
        self._confirmed = False

    def close(self) -> bool:
        """Have it end what is left of this run, and let it go; safe to call twice.

        :returns: whether it has; if not, what this run has started is to be ended by its starter.
        """
        released = True
        if self.control is not None:
            if self._keep.seconds and self.hello is not None:
                released = self._release(self.control)
            self.control.close()
            self.control = None
        if self._process is not None:
            if not self._keep.seconds:
                # It kills what descends from it as soon as its connection is closed.
                released = wait_for_end(self._process, _END_TIMEOUT)
                if not released:
                    self.end_own()
            elif self.hello is None:
                self._call_off(self._process)
            else:
                if not self.hello["kept"]:  # it ends with this run, of use to no other one
                    wait_for_end(self._process, _END_TIMEOUT)
                disown(self._process)
        self._forget()
        if self._store is not None:
            self._store.close()
            self._store = None
        return released

    def _release(self, control: FrameSocket) -> bool:
        """Have the parent, which stays, end what is left of this run."""
        with contextlib.suppress(OSError, EOFError, FrameError):
            control.send({"release": {}})
            while "released" not in (message := self._receive()):
                self._note(message)
            return True
        return False

    def _call_off(self, process: subprocess.Popen[bytes]) -> None:
        """End a kept parent that was made for a run that came to nothing (bad options, say).

        Another run that waits for it makes its own. One that uses it already goes on: the parent
        ends after that.
        """
        entry = self._entry
        assert entry is not None
        # Until it is ready it has no handler, and dies of this.
        process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + _END_TIMEOUT
        while process.poll() is None and entry.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None and entry.exists() and entry.state == "preloading":
            self.end_own()
        elif process.poll() is None:
            disown(process)
        else:
            entry.remove()
