"""Checks a daemon's answers: they must not be able to confuse this process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, TypeVar

from pytest_forkd.forkd.errors import RequestFailed, shorten

__all__ = ["EvalResult", "ExecResult", "Sandbox", "Snapshot", "SnapshotDetail"]
__all__ += ["ID", "TAG", "as_list", "as_object", "field", "optional"]

#: What forkd accepts as a tag.
TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: A valid sandbox id; ids become part of paths and file names.
ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_MAX_LIST = 100_000
#: Characters of a short text.
_MAX_TEXT = 4096

_T = TypeVar("_T", str, int, bool)


def as_object(value: object, what: str) -> dict[str, Any]:
    """``value`` as a JSON object.

    :raises RequestFailed: if it is none.
    """
    if not isinstance(value, dict):
        raise RequestFailed(f"the daemon's answer about {what} is no JSON object.")
    return value


def as_list(value: object) -> list[Any]:
    """``value`` as a list of a bounded length.

    :raises RequestFailed: if it is none.
    """
    if not isinstance(value, list) or len(value) > _MAX_LIST:
        raise RequestFailed("the daemon's answer is no list, or an endless one.")
    return value


def field(answer: dict[str, Any], name: str, kind: type[_T], limit: int = _MAX_TEXT) -> _T:
    """A field of an answer.

    :param limit: characters that a text may have.
    :raises RequestFailed: if it is missing or of another type.
    """
    value = answer.get(name)
    # Not isinstance(): to Python, true is a number.
    if type(value) is not kind or len(str(value)) > limit:
        raise RequestFailed(f"the daemon's answer has no usable {name!r}.")
    return value


def optional(
    answer: dict[str, Any], name: str, kind: type[_T], limit: int = _MAX_TEXT
) -> _T | None:
    """The same for a field that may be left out or null."""
    return None if answer.get(name) is None else field(answer, name, kind, limit)


def _matching(answer: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    text = field(answer, name, str)
    if not pattern.fullmatch(text) or text in (".", ".."):
        raise RequestFailed(f"the daemon's answer has no usable {name!r}: {shorten(text)!r}.")
    return text


def _tags(answer: dict[str, Any], name: str) -> list[str]:
    found = as_list(answer.get(name, []))
    return [_matching({"tag": each}, "tag", TAG) for each in found]


@dataclass(frozen=True)
class Sandbox:
    """A machine that a daemon runs.

    :ivar id: its id at that daemon.
    :ivar snapshot_tag: the snapshot that it was restored from.
    :ivar netns: its network namespace, if it has one of its own.
    :ivar guest_addr: where its agent listens; only the daemon can connect to it.
    :ivar created_at_unix: when it was made, in seconds since 1970, by the daemon's clock.
    :ivar pid: the virtual machine's process on the daemon's host.
    """

    id: str
    snapshot_tag: str
    netns: str | None
    guest_addr: str
    created_at_unix: int
    pid: int | None

    @classmethod
    def read(cls, value: object) -> Sandbox:
        """Read a sandbox from an answer.

        :raises RequestFailed: if it is not a valid one.
        """
        answer = as_object(value, "a sandbox")
        return cls(
            id=_matching(answer, "id", ID),
            snapshot_tag=field(answer, "snapshot_tag", str),
            netns=optional(answer, "netns", str),
            guest_addr=field(answer, "guest_addr", str),
            created_at_unix=field(answer, "created_at_unix", int),
            pid=optional(answer, "pid", int),
        )


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that a daemon has.

    :ivar status: ``writing``, ``ready`` or ``failed``.
    :ivar bootable: whether machines can be restored from it.
    :ivar warning: why it is not bootable, if the daemon knows.
    :ivar branched_from: the sandbox that it is a snapshot of, if it is a branch.
    :ivar pause_ms: milliseconds for which that sandbox was paused.
    """

    tag: str
    created_at_unix: int
    status: str
    bootable: bool
    warning: str | None = None
    branched_from: str | None = None
    pause_ms: int | None = None

    @classmethod
    def read(cls, value: object) -> Snapshot:
        """Read a snapshot from an answer.

        :raises RequestFailed: if it is not a valid one.
        """
        answer = as_object(value, "a snapshot")
        bootable = optional(answer, "bootable", bool)  # since forkd 0.5.3
        warning = optional(answer, "warning", str)
        return cls(
            tag=_matching(answer, "tag", TAG),
            created_at_unix=field(answer, "created_at_unix", int),
            status=shorten(optional(answer, "status", str) or "ready"),
            bootable=True if bootable is None else bootable,
            warning=None if warning is None else shorten(warning),
            branched_from=optional(answer, "branched_from", str),
            pause_ms=optional(answer, "pause_ms", int),
        )


@dataclass(frozen=True)
class SnapshotDetail:
    """More about a snapshot.

    :ivar memory_bytes: bytes that its memory takes on the daemon's disk.
    :ivar chain_depth: how many differences it consists of; 0 for a flat snapshot.
    :ivar ancestors: the snapshots that it is based on, the first one first.
    :ivar dependents: the snapshots that are based on it.
    """

    tag: str
    created_at_unix: int | None
    memory_bytes: int
    chain_depth: int
    ancestors: list[str] = dataclass_field(default_factory=list)
    dependents: list[str] = dataclass_field(default_factory=list)

    @classmethod
    def read(cls, value: object) -> SnapshotDetail:
        """Read the details from an answer.

        :raises RequestFailed: if they are not valid.
        """
        answer = as_object(value, "a snapshot")
        return cls(
            tag=_matching(answer, "tag", TAG),
            created_at_unix=optional(answer, "created_at_unix", int),
            memory_bytes=field(answer, "memory_physical_bytes", int),
            chain_depth=field(answer, "chain_depth", int),
            ancestors=_tags(answer, "ancestors"),
            dependents=_tags(answer, "dependents"),
        )


#: Characters of a guest's output; the size of a whole answer is limited before it is parsed.
_MAX_OUTPUT = 1 << 26


@dataclass(frozen=True)
class ExecResult:
    """How a program in a guest ended."""

    stdout: str
    stderr: str
    exit_code: int

    @classmethod
    def read(cls, value: object) -> ExecResult:
        """A result out of an answer.

        :raises RequestFailed: if it is none.
        """
        answer = as_object(value, "a program")
        return cls(
            stdout=field(answer, "stdout", str, _MAX_OUTPUT),
            stderr=field(answer, "stderr", str, _MAX_OUTPUT),
            exit_code=field(answer, "exit_code", int),
        )


@dataclass(frozen=True)
class EvalResult:
    """The result of an expression: the ``repr()`` of its value, or the error that it raised."""

    result: str | None
    error: str | None
    exit_code: int

    @classmethod
    def read(cls, value: object) -> EvalResult:
        """A result out of an answer.

        :raises RequestFailed: if it is none.
        """
        answer = as_object(value, "an expression")
        return cls(
            result=optional(answer, "result", str, _MAX_OUTPUT),
            error=optional(answer, "error", str, _MAX_OUTPUT),
            exit_code=field(answer, "exit_code", int),
        )
