"""The controller's side of a run's parent: finds or makes one, greets it, and releases it.

A kept parent may be stopped, hung or busy. Until it has shown that it answers, only a harmless
request is sent to it: anything else would stay in its socket, with descriptors of the run's output,
and the reader of that output would wait until they are closed.
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
from pytest_forkd.parent.kept.store import KeptParent, ParentStore, StoreError
from pytest_forkd.parent.plan import Plan
from pytest_forkd.runtime.process_tree import Process, end_tree

__all__ = ["Parent"]

#: Seconds for a process to end after being told to.
_END_TIMEOUT = 5.0
#: How often a stale parent is replaced, in case that every new one is stale at once.
_MAX_ATTEMPTS = 3
#: Characters shown of the output of a parent that has died.
_MAX_LOG = 2000


class Parent:
    """A parent, and this run's connection to it.

    :param plan: what it is to import.
    :param keep: whether it is kept.
    :param note: called with messages about collectors that arrive while waiting for another one.

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
        #: The process, if this run has started it; other runs may use it, too.
        self._process: subprocess.Popen[bytes] | None = None
        self._store: ParentStore | None = None
        self._entry: KeptParent | None = None
        #: Whether it has answered, or was started by this run.
        self._confirmed = False
        #: Names of kept parents that do not answer.
        self._silent: set[str] = set()

    @property
    def is_confirmed(self) -> bool:
        """Whether it is known to read what is sent to it, so that descriptors may be sent."""
        return self.control is not None and (self._confirmed or self.hello is not None)

    @property
    def pid(self) -> int | None:
        """Its process id, as far as known."""
        if self._process is not None:
            return self._process.pid
        return int(self.hello["hello"]) if self.hello is not None else None

    # -- found or made -------------------------------------------------------------------------

    def start(self) -> None:
        """Find a parent, or begin to make one, without waiting for its greeting.

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
                # No other process has to connect, so the socket needs no name any more.
                remove_directory(directory, RUNTIME_FILES)
        if self._process is not None:
            self._open()

    def _start_kept(self) -> None:
        """Connect to a kept parent, or make one that is kept."""
        plan = self._plan
        self._store = self._store or ParentStore.find()
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

    def _find(self, store: ParentStore, mark: str) -> bool:
        """Connect to a kept parent that answers, or is still preloading."""
        for entry in store.entries(mark):
            if self._entry is None and entry.name not in self._silent:
                with contextlib.suppress(OSError, EOFError, FrameError):
                    self._try(entry)
            if self._entry is not entry:
                entry.close()
        return self._entry is not None

    def _try(self, entry: KeptParent) -> None:
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

    def _give_up(self, entry: KeptParent, why: NotAnswering) -> None:
        """Ignore a kept parent, but do not end it: others may use it, or have stopped it."""
        self._silent.add(entry.name)
        process = entry.process
        number = f" ({process.pid})" if process is not None else ""
        self.origin = f"parent made, as the kept one{number} does not answer: {why}"

    @staticmethod
    def _nudge(store: ParentStore) -> None:
        """Wake the other kept parents, so that they check at once whether there are too many."""
        for entry in store.entries():
            connection = entry.connect()
            if connection is not None:
                connection.close()
            entry.close()

    def _open(self) -> None:
        assert self.control is not None
        with contextlib.suppress(OSError):  # if it has ended, waiting for its greeting fails
            keep, most = self._keep.seconds, self._keep.most
            self.control.send({"open": {"keep": keep, "most": most, "skip": self._plan.skip}})

    def _launch(self, path: Path, entry: KeptParent | None) -> None:
        """Start a parent that listens at ``path``, and connect to it."""
        self._process, self.control = launch(self._plan, path, entry, self._keep.seconds)
        self._confirmed = True

    # -- greeted -------------------------------------------------------------------------------

    def connect(self) -> FrameSocket:
        """The connection to a parent that has greeted, and that this run may use.

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
            # A kept parent that is stale, or was just ending. No run can find it any more.
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
        # Without an entry: once a parent has greeted, it answers at once.
        rest = "ready" if self.hello is not None else "preloading"
        return receive(self.control, process, lambda: entry.state if entry is not None else rest)

    def _greet(self) -> str | None:
        """Wait for the parent's greeting; returns why it must not be used, if so."""
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
        """How the parent came about; waits for the greeting of a kept one, to know its age."""
        if self._keep.seconds and self._process is None and self.hello is None:
            self.connect()
        return self.origin

    def learn(self, modules: list[str]) -> None:
        """Tell a kept parent which modules this run's collection has imported."""
        if self._keep.seconds and self.control is not None:
            with contextlib.suppress(OSError):
                self.control.send({"learn": modules})

    # -- let go --------------------------------------------------------------------------------

    def end(self) -> str:
        """How the parent has ended, in words."""
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
        """Kill a parent that only this run uses, with all its descendants."""
        assert self._process is not None
        process = Process.running(self._process.pid)
        if process is not None:
            end_tree(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        if self._entry is not None:
            self._entry.remove()

    def drop(self) -> None:
        """Forget the parent, so that the next :meth:`connect` finds or makes one."""
        if self.control is not None:
            self.control.close()
        if self._process is not None and self._process.poll() is None:
            disown(self._process)
        self._forget()

    def replace(self, plan: Plan) -> None:
        """Forget the parent; the next one gets another plan."""
        self.drop()
        self._plan, self.origin = plan, "another parent made"

    def _forget(self) -> None:
        if self._entry is not None:
            self._entry.close()
        self.control = self.hello = self._process = self._entry = None
        self._confirmed = False

    def close(self) -> bool:
        """Have the parent end what is left of this run, and release it; safe to call twice.

        :returns: whether it has done so; if not, the caller has to end what this run has started.
        """
        released = True
        if self.control is not None:
            if self._keep.seconds and self.hello is not None:
                released = self._release(self.control)
            self.control.close()
            self.control = None
        if self._process is not None:
            if not self._keep.seconds:
                # It kills its descendants when its connection is closed, and ends.
                released = wait_for_end(self._process, _END_TIMEOUT)
                if not released:
                    self.end_own()
            elif self.hello is None:
                self._call_off(self._process)
            else:
                if not self.hello["kept"]:  # no other run may use it, so it ends with this one
                    wait_for_end(self._process, _END_TIMEOUT)
                disown(self._process)
        self._forget()
        if self._store is not None:
            self._store.close()
            self._store = None
        return released

    def _release(self, control: FrameSocket) -> bool:
        """Have a kept parent end what is left of this run."""
        with contextlib.suppress(OSError, EOFError, FrameError):
            control.send({"release": {}})
            while "released" not in (message := self._receive()):
                self._note(message)
            return True
        return False

    def _call_off(self, process: subprocess.Popen[bytes]) -> None:
        """End a parent that was to be kept, since its run has failed, for example for bad options.

        If another run is waiting for it, that run makes its own. If another run uses it already,
        the parent ends after that run.
        """
        entry = self._entry
        assert entry is not None
        # Before it is ready it has no handler for this signal, which kills it.
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
