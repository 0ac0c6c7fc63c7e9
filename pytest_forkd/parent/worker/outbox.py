"""The events that a worker has not sent to the controller yet."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
from execnet import DumpError

from pytest_forkd.channel.events import encode_batch, pack_object
from pytest_forkd.channel.packing import Replaced, pack_report, pack_somehow, sendable_event
from pytest_forkd.channel.sendable import as_builtins
from pytest_forkd.channel.wire import WorkerChannel
from pytest_forkd.parent.worker.warned import replaced_warnings, take_apart

__all__ = ["Outbox"]

#: The events that are reports.
_REPORTS = ("report", "collectreport")


class Outbox(list[list[Any]]):
    """A list of events, see :mod:`pytest_forkd.channel.events`; makes any report sendable.

    :param config: the worker's.
    """

    def __init__(self, config: pytest.Config) -> None:
        super().__init__()
        self._config = config
        self._channel: WorkerChannel | None = None
        #: Fields of the running test that the user was warned about: each of its reports has them.
        self._told: set[tuple[str, str, str]] = set()

    def attach(self, channel: WorkerChannel) -> None:
        """Send over ``channel`` from now on."""
        self._channel = channel

    def flush(self) -> None:
        """Send all events as one message, if there are any and there is a channel."""
        if self._channel is None or not self:
            return
        payload = self._encode()
        self.clear()
        # If the controller is gone, the next attempt to read commands ends the session.
        with contextlib.suppress(OSError):
            self._channel.send(payload)

    def take(self) -> list[list[Any]]:
        """Remove and return all events, to be sent in a collector's message."""
        self._encode()
        events = self[:]
        self.clear()
        return events

    def _encode(self) -> bytes:
        """The events as a message; those that JSON cannot represent are made representable."""
        try:
            return encode_batch(self)
        except DumpError:
            pass
        for index, event in enumerate(self[:]):
            replaced: Replaced = []
            self[index] = sendable_event(event, replaced)
            if replaced:
                if event[0] in _REPORTS:
                    when = "runtest" if event[0] == "report" else "collect"
                    self._tell("report", replaced, event[1]["nodeid"], when)
                else:
                    self._tell(event[0], replaced)
        return encode_batch(self)

    def begin(self) -> None:
        """Call this when a test begins."""
        self._told.clear()

    def add_report(self, event: str, data: dict[str, Any]) -> None:
        """Add a report.

        :param event: ``report`` or ``collectreport``.
        :param data: what ``pytest_report_to_serializable`` returned.
        """
        replaced: Replaced = []
        packed = pack_report(data, replaced)
        self.append([event, packed])
        if replaced:
            when = "runtest" if event == "report" else "collect"
            self._tell("report", replaced, packed["nodeid"], when, packed.get("location"))

    def add_warning(
        self, message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        """Add a warning that was recorded."""
        self.append(["warning", pack_somehow(take_apart(message), []), when, nodeid, location])

    def add_finished(self, workeroutput: dict[str, Any]) -> None:
        """Add the end of the session."""
        replaced: Replaced = []
        try:
            packed = pack_object(workeroutput)
        except DumpError:
            sendable: dict[Any, Any] = {}
            for key, value in workeroutput.items():
                parts: list[str] = []
                sendable.update(as_builtins({key: value}, parts))
                field = f"workeroutput[{key!r}]" if type(key) is str else "workeroutput"
                replaced += [(field, part) for part in parts]
            packed = pack_object(sendable)
        if replaced:
            self._tell("config", replaced)
        self.append(["finished", packed])

    def _tell(
        self,
        what: str,
        replaced: Replaced,
        nodeid: str = "",
        when: str = "config",
        location: Any = None,
    ) -> None:
        """Warn the user about fields that are sent as text, once for each field of a test."""
        new = [each for each in replaced if (nodeid, *each) not in self._told]
        self._told.update((nodeid, *each) for each in new)
        named = [(f"{what}.{field}", kind) for field, kind in new]
        for message in replaced_warnings(self._config, named, nodeid, location):
            self._config.hook.pytest_warning_recorded.call_historic(
                kwargs={
                    "warning_message": message,
                    "when": when,
                    "nodeid": nodeid,
                    "location": None,
                }
            )
