"""The guest's end of its stream, if the stream is a virtio port of its own.

Linux shows such a port as a character device, which one process can open. The device does not show
that the guest has been cloned and has another peer: an ``OPEN`` frame says so.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import time
from pathlib import Path
from typing import Any

from pytest_forkd.channel.mux import (
    CONTROL,
    FILES,
    OPEN,
    WORKER,
    Demultiplexer,
    control_frame,
    data_frames,
)
from pytest_forkd.guest.port import MAX_UNSENT

__all__ = ["VirtioPort", "find_port"]

#: Seconds for the kernel to find the device.
_DEVICE_LIMIT = 20.0
#: Seconds after which a closed other end is taken for gone.
_HANGUP_LIMIT = 5.0
_HANGUP_INTERVAL = 0.05
_CHUNK = 128 * 1024


def find_port(name: str) -> int:
    """Open the virtio port of that name.

    :raises SystemExit: if there is none.
    """
    deadline = time.monotonic() + _DEVICE_LIMIT
    while True:
        for path in Path("/sys/class/virtio-ports").glob("*/name"):
            with contextlib.suppress(OSError):
                if path.read_text("utf-8").strip() == name:
                    device = f"/dev/{path.parent.name}"
                    return os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if time.monotonic() > deadline:
            raise SystemExit(f"there is no virtio port {name!r}")
        time.sleep(0.02)


class VirtioPort:
    """Sends and receives frames; has the interface of :class:`~pytest_forkd.guest.port.Port`.

    :param fd: the descriptor of the open device, which it owns.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._demultiplexer = Demultiplexer(CONTROL, WORKER, FILES, OPEN)
        self._frames: list[tuple[int, bytes]] = []
        self._unsent = bytearray()
        self._opened = False
        self._events = selectors.EVENT_READ
        self._hung_up: float | None = None
        #: Register other files to wait for here.
        self.selector = selectors.PollSelector()
        self.selector.register(fd, self._events, self)

    @property
    def full(self) -> bool:
        """Whether nothing more should be written until the controller has read something."""
        return len(self._unsent) >= MAX_UNSENT

    @property
    def pending(self) -> bool:
        """Whether some of what was written has not been sent."""
        return bool(self._unsent)

    def opened(self) -> bool:
        """Whether a new stream has been opened since the last call."""
        opened, self._opened = self._opened, False
        return opened

    def control(self, message: dict[str, Any]) -> None:
        """Write a control message."""
        self._unsent += control_frame(message)
        self._write()

    def data(self, channel: int, data: bytes) -> None:
        """Write data to another channel."""
        self._unsent += data_frames(channel, data)
        self._write()

    def frames(self) -> list[tuple[int, bytes]]:
        """The frames that have arrived since the last call."""
        frames, self._frames = self._frames, []
        return frames

    def wait(self, timeout: float | None) -> list[Any]:
        """Send and receive until there is something to do.

        :param timeout: seconds to wait at most.
        :returns: the data of other registered files that are ready.
        :raises EOFError: if the controller has gone.
        """
        self._watch()
        others = []
        for key, events in self.selector.select(timeout):
            if key.data is not self:
                others.append(key.data)
                continue
            if events & selectors.EVENT_WRITE:
                self._write()
            if events & selectors.EVENT_READ:
                self._read()
        return others

    def flush(self, limit: float) -> bool:
        """Wait until all that was written has been sent.

        :param limit: seconds to wait at most.
        :returns: whether it has.
        """
        deadline = time.monotonic() + limit
        while self._unsent and (left := deadline - time.monotonic()) > 0:
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            poller.poll(min(left, 1.0) * 1000)
            self._write()
        return not self._unsent

    def close(self) -> None:
        """In a worker: close the port, since it belongs to the collector."""
        self.selector.close()
        os.close(self._fd)

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: os.write(self._fd, self._unsent[:_CHUNK])]

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._nobody_there()
            return
        self._hung_up = None
        for channel, payload in self._demultiplexer.feed(data):
            if channel == OPEN:
                # Data from and for the previous peer is void.
                self._frames.clear()
                self._unsent.clear()
                self._opened = True
            else:
                self._frames.append((channel, payload))

    def _nobody_there(self) -> None:
        """Handle a closed other end; in every clone, it is closed for a moment at first."""
        now = time.monotonic()
        if self._hung_up is None:
            self._hung_up = now
        if now - self._hung_up > _HANGUP_LIMIT:
            raise EOFError("the controller has gone")
        time.sleep(_HANGUP_INTERVAL)

    def _watch(self) -> None:
        """Wait for room to write if there is unsent data."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if events != self._events:
            self._events = events
            self.selector.modify(self._fd, events, self)
