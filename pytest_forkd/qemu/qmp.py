"""QEMU's monitor: commands and events as JSON lines over a connected socket."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

__all__ = ["Qmp", "QmpError"]

#: Seconds for QEMU to answer a command.
_ANSWER_TIMEOUT = 20.0
#: Bytes of a line. QEMU is more trusted than a guest, but its lines are never longer.
_MAX_LINE = 1 << 20


class QmpError(Exception):
    """QEMU refused a command, or did not answer in time."""


class Qmp:
    """A client for QEMU's monitor.

    Commands are sent at once; their answers are read by the next method that waits.

    :param sock: a connected socket, which the client owns.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._events: list[str] = []
        self._unanswered = 0

    def send(self, command: str, **arguments: Any) -> None:
        """Send a command; the next method that waits raises its error, or reports QEMU's end."""
        line = self._line(command, arguments)
        with contextlib.suppress(OSError):
            self._sock.sendall(line)

    def send_fd(self, name: str, fd: int) -> None:
        """Pass a descriptor to QEMU, for use as ``fd:NAME``."""
        line = self._line("getfd", {"fdname": name})
        with contextlib.suppress(OSError):
            socket.send_fds(self._sock, [line], [fd])

    def ignore_shared(self) -> None:
        """Exclude memory that is a shared file from saving and restoring."""
        capability = {"capability": "x-ignore-shared", "state": True}
        self.send("migrate-set-capabilities", capabilities=[capability])

    def migrate(self, uri: str, timeout: float) -> None:
        """Save the machine, and wait until that is done.

        :raises QmpError: if it fails, or takes longer than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        self.send("migrate", uri=uri)
        while True:
            status = self.ask("query-migrate").get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise QmpError(f"saving it has {status}")
            if time.monotonic() > deadline:
                raise QmpError(f"saving it took more than {timeout:g} seconds")
            time.sleep(0.002)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a command and wait for its answer, and those to all commands before it.

        :raises QmpError: if QEMU refuses any of them, or does not answer.
        """
        self.send(command, **arguments)
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        answer: Any = {}
        while self._unanswered:
            message = self._receive(deadline)
            answer = message.get("return", answer)
        return answer

    def wait_for(self, event: str, timeout: float) -> None:
        """Wait for an event.

        :raises QmpError: if a command is refused, or ``timeout`` seconds have passed.
        """
        deadline = time.monotonic() + timeout
        while event not in self._events:
            self._receive(deadline)
        self._events.remove(event)

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def _line(self, command: str, arguments: dict[str, Any]) -> bytes:
        self._unanswered += 1
        return json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"

    def _receive(self, deadline: float) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            left = deadline - time.monotonic()
            if left <= 0:
                raise QmpError("QEMU did not answer in time")
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                raise QmpError("QEMU did not answer in time") from None
            except OSError:
                data = b""
            if not data:
                raise EOFError("QEMU has ended")
            self._buffer += data
            if len(self._buffer) > _MAX_LINE:
                raise QmpError("QEMU sent a line that is too long")
        message = json.loads(bytes(self._buffer[:end]))
        del self._buffer[: end + 1]
        assert isinstance(message, dict)
        if "event" in message:
            self._events.append(message["event"])
        elif "error" in message:
            self._unanswered -= 1
            raise QmpError(str(message["error"].get("desc", message["error"])))
        elif "return" in message:
            self._unanswered -= 1
        return message
