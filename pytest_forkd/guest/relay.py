"""Passes an exchange to the parent in this guest, and returns the answer; needs only Python.

The guest's agent runs this file, as ``python3 -c`` (the exchange is in the arguments, joined) or
inside its own interpreter. The parent listens on a unix socket: ``PYTEST_FORKD_SOCKET``, else
``/run/pytest-forkd.socket``, else the same in ``/tmp``.
"""

import os
import socket
import sys

PATHS = ("/run/pytest-forkd.socket", "/tmp/pytest-forkd.socket")  # noqa: S108 - a guest's own


def exchange(line: str) -> str:
    """The answer to an exchange: a line of ASCII; see ``pytest_forkd.channel.exchange``."""
    try:
        wait = int(line.split(" ", 5)[4]) / 1000.0
    except (IndexError, ValueError):
        return "bad not a request"
    why = "no socket"
    given = os.environ.get("PYTEST_FORKD_SOCKET")
    for path in (given,) if given else PATHS:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The parent does not answer while it imports and collects.
            sock.settimeout(wait + 2)
            try:
                sock.connect(path)
            except OSError as exc:
                why = f"{path}: {exc.strerror or exc}"
                continue
            sock.sendall(line.encode("ascii") + b"\n")
            parts = []
            while True:
                part = sock.recv(262144)
                parts.append(part)
                if not part or part.endswith(b"\n"):
                    break
            answer = b"".join(parts).decode("ascii")
            return answer[:-1] if answer.endswith("\n") else "busy"
        except (TimeoutError, ConnectionError, BlockingIOError):
            return "busy"
        finally:
            sock.close()
    return "gone " + why


if __name__ == "__main__":
    sys.stdout.write(exchange("".join(sys.argv[1:])))
