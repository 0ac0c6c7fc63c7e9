"""A byte stream to a guest whose agent can only run a command, or evaluate an expression.

The agent cannot stream, so the stream is made of exchanges (:mod:`pytest_forkd.channel.exchange`).
An exchange that sends data is answered at once; one that receives is answered when the guest has
data, or after :data:`POLL_WAIT`. Each direction has one exchange at a time, retried until it
succeeds. The two directions do not wait for each other.

There are two ways into the guest. *eval* has the agent's own interpreter pass the exchange on,
which starts no process; *exec* runs ``python3 -c`` for each exchange, which any agent can do.
:func:`open_way` finds out which of them works.

Rejected: a connection to a port in the guest (a daemon does not allow that); files in the guest as
mailboxes (each exchange would take several calls, and leave files); one exchange for both
directions (data to send would have to wait for a poll in progress).
"""

from __future__ import annotations

import ast
import contextlib
import math
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from pytest_forkd.channel.exchange import Answer, BadExchange, Request

__all__ = [
    "POLL_WAIT",
    "EvalWay",
    "ExecStream",
    "ExecWay",
    "StreamError",
    "Transport",
    "open_way",
]

#: Seconds that the guest waits for data to answer with. The daemon gives up after 30.
POLL_WAIT = 10.0
#: Seconds for an exchange, beyond what the guest may wait.
EXCHANGE_LIMIT = 10.0
#: Seconds without any answer after which the guest is taken for dead.
SILENCE_LIMIT = 60.0
#: Bytes in one exchange. Base64 adds a third, and the daemon refuses requests of 2 MB.
CHUNK = 512 * 1024
#: A single argument of a command may have 128 KiB (``MAX_ARG_STRLEN`` of execve(2)).
_MAX_ARGUMENT = 96 * 1024
#: Seconds before an exchange that failed is tried again, at first and at most.
_RETRY, _MAX_RETRY = 0.05, 1.0
#: How often each way is tried before it is given up.
_ATTEMPTS = 3
_PYTHONS = ("python3", "/usr/local/bin/python3", "/usr/bin/python3")
#: Characters of an answer that needs parsing, such as an error message with escapes.
_MAX_ESCAPED = 4096
#: The attribute of ``sys`` in the agent's interpreter that holds the relay.
_KEPT = "_pytest_forkd_relay"


class StreamError(Exception):
    """The guest cannot be reached, or breaks the protocol; the message says why."""


class _EvalResult(Protocol):
    @property
    def result(self) -> str | None: ...
    @property
    def error(self) -> str | None: ...


class _ExecResult(Protocol):
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    @property
    def exit_code(self) -> int: ...


class Transport(Protocol):
    """Takes an exchange into the guest."""

    #: How many bytes of the stream one exchange should carry.
    chunk: int

    def __call__(self, line: str, timeout: float) -> str:
        """The guest's answer to a line.

        :param timeout: seconds that the guest may take.
        :raises StreamError: if retrying is useless.
        :raises Exception: any other exception if the caller may retry.
        """


class _Failed(Exception):
    """An exchange failed; retrying may help."""


class EvalWay:
    """Has the agent evaluate an expression.

    :param evaluate: evaluates an expression in the guest's agent, with a limit in seconds; returns
        an object with ``result`` (the value's ``repr``) and ``error``.
    """

    chunk = CHUNK

    def __init__(self, evaluate: Callable[[str, float], _EvalResult]) -> None:
        self._evaluate = evaluate

    def install(self) -> None:
        """Load the relay into the agent's interpreter.

        :raises Exception: if that fails.
        """
        source = _relay_source()
        code = (
            f"__import__('builtins').exec({source!r}, "
            f"__import__('sys').__dict__.setdefault({_KEPT!r}, {{'__name__': {_KEPT!r}}}))"
        )
        answer = self._evaluate(code, EXCHANGE_LIMIT)
        if answer.error or answer.result != "None":
            raise _Failed(f"eval: {answer.error or answer.result}"[:500])

    def __call__(self, line: str, timeout: float) -> str:
        code = f"__import__('sys').{_KEPT}['exchange']({line!r})"
        answer = self._evaluate(code, timeout + EXCHANGE_LIMIT)
        if answer.error:
            if _KEPT in answer.error:
                self.install()  # the agent has been restarted
            raise _Failed(f"eval: {answer.error}"[:500])
        return _text_of_repr(answer.result or "")


def _text_of_repr(result: str) -> str:
    """The string whose ``repr`` a guest's agent has sent.

    Exchanges are plain words and base64, so usually only the quotes are stripped. The guest is not
    trusted: it must not have a long text parsed.
    """
    inner = result[1:-1]
    if result[:1] in ("'", '"') and result[-1:] == result[:1] and len(result) > 1:
        if "\\" not in inner and result[0] not in inner:
            return inner
        if len(result) <= _MAX_ESCAPED:
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                value = ast.literal_eval(result)
                if isinstance(value, str):
                    return value
    raise _Failed(f"eval: no text: {result[:100]!r}")


class ExecWay:
    """Has the agent run the relay as a command.

    :param execute: runs a command in the guest, with a limit in seconds; returns an object with
        ``stdout``, ``stderr`` and ``exit_code``.
    """

    chunk = 256 * 1024

    def __init__(self, execute: Callable[[list[str], float], _ExecResult]) -> None:
        self._execute = execute
        self.python = _PYTHONS[0]

    def install(self) -> None:
        """Find a Python interpreter in the guest.

        :raises Exception: if there is none.
        """
        why = ""
        for self.python in _PYTHONS:
            answer = self._execute([self.python, "-c", "print(6 * 7)"], EXCHANGE_LIMIT)
            if answer.exit_code == 0 and answer.stdout.strip() == "42":
                return
            why = why or f"{self.python}: exit code {answer.exit_code}, {answer.stderr.strip()}"
        raise _Failed(f"exec: {why}"[:500])

    def __call__(self, line: str, timeout: float) -> str:
        parts = [line[i : i + _MAX_ARGUMENT] for i in range(0, len(line), _MAX_ARGUMENT)]
        answer = self._execute(
            [self.python, "-c", _relay_source(), *parts], math.ceil(timeout + EXCHANGE_LIMIT)
        )
        if answer.exit_code != 0:
            raise _Failed(f"exec: exit code {answer.exit_code}, {answer.stderr.strip()[-300:]}")
        return answer.stdout


def open_way(
    evaluate: Callable[[str, float], _EvalResult] | None,
    execute: Callable[[list[str], float], _ExecResult],
) -> Transport:
    """The way into the guest that works: eval, else exec.

    :raises StreamError: if neither does.
    """
    reasons = []
    ways: list[EvalWay | ExecWay] = [ExecWay(execute)]
    if evaluate is not None:
        ways.insert(0, EvalWay(evaluate))
    for way in ways:
        reason = ""
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    time.sleep(_RETRY)
                way.install()
            except StreamError:
                raise
            except Exception as exc:
                reason = reason or str(exc) or type(exc).__name__
            else:
                return way
        reasons.append(reason)
    raise StreamError(f"the guest's agent runs no Python: {'; '.join(reasons)}")


class ExecStream:
    """A byte stream in both directions, over exchanges.

    One thread may be in :meth:`send` and another one in :meth:`receive`.

    :param way: takes an exchange into the guest.
    :param generation: must be larger than that of any earlier stream to this guest, or to a guest
        that it was cloned from.
    :param silence_limit: seconds without an answer after which the guest is taken for dead.
    """

    def __init__(
        self, way: Transport, generation: int = 1, *, silence_limit: float = SILENCE_LIMIT
    ) -> None:
        self._way = way
        self._generation = generation
        self._nonce = secrets.token_hex(8)
        self._sent = 0
        self._received = 0
        self._silence_limit = silence_limit
        self._heard = time.monotonic()
        self._closed = threading.Event()
        #: How many exchanges there have been, failed ones included.
        self.exchanges = 0

    def send(self, data: bytes) -> None:
        """Send bytes, waiting until the guest has them.

        :raises StreamError: if the guest cannot be reached, or the stream has been closed.
        """
        view = memoryview(data)
        pause = _RETRY
        while view:
            chunk = bytes(view[: self._way.chunk])
            answer = self._exchange(partial(self._request, data=chunk))
            assert answer is not None
            taken = max(0, answer.taken - self._sent)  # negative in a delayed answer
            if taken > len(chunk):
                raise StreamError(f"the guest has taken {answer.taken} bytes of {self._sent} sent")
            self._sent += taken
            view = view[taken:]
            if taken:
                pause = _RETRY
            else:
                self._closed.wait(pause)  # the guest's buffer is full
                pause = min(2 * pause, _MAX_RETRY)

    def receive(self, timeout: float | None = None) -> bytes:
        """Wait for bytes.

        :param timeout: about how many seconds to wait at most; ``None`` means no limit.
        :returns: what has arrived; empty only after a timeout.
        :raises StreamError: if the guest cannot be reached, or the stream has been closed.
        """
        limit = self._way.chunk
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while (start := time.monotonic()) < deadline:
            wait = min(POLL_WAIT, deadline - start)
            answer = self._exchange(partial(self._request, wait=wait, limit=limit), deadline)
            if answer is None:
                break
            if answer.start != self._received or not answer.data:
                # An answer to an earlier exchange, or no data. A guest that answers so at once must
                # not keep the controller busy.
                if time.monotonic() - start < wait / 2:
                    self._closed.wait(_RETRY)
                continue
            if len(answer.data) > limit:
                raise StreamError(f"the guest has sent {len(answer.data)} bytes at once")
            self._received += len(answer.data)
            return answer.data
        return b""

    def confirm(self) -> None:
        """Tell the guest how much has been received, as it may be waiting for that.

        :raises StreamError: if the guest cannot be reached, or the stream has been closed.
        """
        self._exchange(self._request)

    def close(self) -> None:
        """End :meth:`send` and :meth:`receive` as soon as their current exchange returns."""
        self._closed.set()

    def _request(self, *, wait: float = 0.0, limit: int = 0, data: bytes = b"") -> Request:
        return Request(self._generation, self._nonce, self._sent, self._received, wait, limit, data)

    def _exchange(
        self, make_request: Callable[[], Request], deadline: float = math.inf
    ) -> Answer | None:
        """Retry an exchange until it succeeds; ``None`` if the deadline passes first."""
        pause = _RETRY
        while time.monotonic() < deadline:
            if self._closed.is_set():
                raise StreamError("the stream has been closed")
            request = make_request()
            self.exchanges += 1
            try:
                answer = self._try(request)
            except StreamError:
                raise
            except Exception as exc:
                if time.monotonic() - self._heard > self._silence_limit:
                    raise StreamError(
                        f"no answer for {self._silence_limit:g} seconds: {exc}"
                    ) from exc
                self._closed.wait(pause)
                pause = min(2 * pause, _MAX_RETRY)
                continue
            self._heard = time.monotonic()
            if answer is not None:
                return answer
        return None

    def _try(self, request: Request) -> Answer | None:
        """One attempt; ``None`` if the guest's parent is too busy to answer."""
        line = self._way(request.encode(), request.wait)
        word, _, text = line.partition(" ")
        if word == "busy":
            self._closed.wait(_RETRY)
            return None
        if word == "gone":
            raise StreamError(f"the guest's parent process has ended ({_printable(text)})")
        if word == "superseded":
            raise StreamError("somebody else talks to the guest")
        if word == "bad":
            raise StreamError(f"the guest does not understand: {_printable(text)}")
        try:
            return Answer.decode(line)
        except BadExchange as exc:
            raise _Failed(str(exc)) from exc


def _printable(text: str) -> str:
    """A guest's text with control characters escaped, since they could change the terminal."""
    return text[:300].encode("unicode_escape").decode("ascii")


_source: list[str] = []


def _relay_source() -> str:
    if not _source:
        path = Path(__file__).resolve().parents[1] / "guest" / "relay.py"
        _source.append(path.read_text("utf-8"))
    return _source[0]
