"""Makes a guest that has just been cloned different from other clones.

A snapshot holds the clock, the state of every random generator, the host name and the boot id, so
clones would share them. What a guest is not allowed to change is left as it is, and reported.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import random
import socket
import struct
import time
import uuid
from collections.abc import Callable
from typing import Any

from pytest_forkd.guest.disk import mount

__all__ = ["SHARED_KERNEL", "restore"]

#: Set if the "guest" shares its kernel with others, and so must not change clock and host name.
SHARED_KERNEL = "PYTEST_FORKD_SHARED_KERNEL"
#: Requests of Linux's include/uapi/linux/random.h.
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
#: Seconds by which the clock may be wrong; setting it would be no more exact.
_CLOCK_TOLERANCE = 0.02
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
#: The file that is mounted over it.
_OWN_BOOT_ID = "/run/pytest-forkd-boot-id"
#: mount(2).
_MS_BIND = 4096


def restore(message: dict[str, Any]) -> list[str]:
    """Make this guest different from other clones.

    :param message: ``time`` (seconds since the epoch, now), ``seed`` (base64 of random bytes that
        no other clone gets) and ``hostname``.
    :returns: which parts failed, of ``clock``, ``hostname``, ``entropy`` and ``boot_id``.
    """
    seed = base64.b64decode(message["seed"])
    shared = bool(os.environ.get(SHARED_KERNEL))
    failed = []
    steps: dict[str, Callable[[], None]] = {
        "clock": lambda: _set_clock(float(message["time"])),
        "hostname": lambda: socket.sethostname(message["hostname"]),
        "entropy": lambda: _feed_kernel(seed),
        "boot_id": lambda: _show_boot_id(seed),
    }
    for name, step in steps.items():
        try:
            if shared:
                raise PermissionError
            step()
        except (OSError, AttributeError):
            failed.append(name)
    # Any user may mix data into the kernel's pool, though it is not credited as entropy.
    with contextlib.suppress(OSError), open("/dev/urandom", "wb", buffering=0) as file:
        file.write(seed)
    random.seed(seed + os.urandom(32))
    return failed


def _set_clock(now: float) -> None:
    if abs(time.time() - now) > _CLOCK_TOLERANCE:
        time.clock_settime(time.CLOCK_REALTIME, now)


def _feed_kernel(seed: bytes) -> None:
    """Reseed the kernel's random generator from ``seed``; otherwise all clones would draw alike.

    ``RNDADDENTROPY`` takes a ``struct rand_pool_info``: bits of entropy, size, bytes.
    """
    with open("/dev/urandom", "wb", buffering=0) as file:
        fcntl.ioctl(file, _RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(file, _RNDRESEEDCRNG)


def _show_boot_id(seed: bytes) -> None:
    """Mount a file with another boot id over the kernel's, which cannot be changed.

    The id is derived from ``seed``: if reseeding the kernel has failed, clones draw equal numbers.
    """
    own = uuid.UUID(bytes=hashlib.sha256(b"boot id" + seed).digest()[:16], version=4)
    with open(_OWN_BOOT_ID, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o444)
        file.write(f"{own}\n")
    # In a clone of a clone, the file is mounted already.
    if not os.path.samefile(_OWN_BOOT_ID, _BOOT_ID):
        mount(_OWN_BOOT_ID, _BOOT_ID, None, _MS_BIND, None)
