"""Limits for messages from other processes: bytes, values and depth, checked before decoding.

Also how text from another process is shown: escaped, and shortened if it is long.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "MAX_COLLECTED_BYTES",
    "MAX_DEPTH",
    "MAX_MESSAGE_BYTES",
    "MAX_VALUES",
    "PART_CHARACTERS",
    "check_json",
    "line",
    "parts",
    "shown",
    "size",
]

#: Bytes of one message, and of all messages of a worker about one test.
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
#: Bytes of all messages about one collection, which comes in parts.
MAX_COLLECTED_BYTES = 4 * 1024 * 1024 * 1024
#: Characters in a part of a long message; each may take 6 or 12 bytes of JSON.
PART_CHARACTERS = 4 * 1024 * 1024
#: Values in one message (numbers, texts, lists, objects). As many lists would take 300 MB.
MAX_VALUES = 4_000_000
#: Levels of lists and objects around a value. A serialized exception of pytest's has twelve.
MAX_DEPTH = 100
#: Characters shown of another process's text: in one line, and in several.
_MAX_LINE = 300
_MAX_SHOWN = 20_000


def check_json(payload: bytes) -> None:
    """Make sure that decoding a JSON text takes neither long nor much memory.

    Looks at brackets, commas and quotes only; whether it is JSON is for the decoder to say.

    :raises ValueError: if it is longer, or has more values or levels, than is allowed.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{len(payload)} bytes, of which {MAX_MESSAGE_BYTES} are allowed")
    lists = payload.count(b"[") + payload.count(b"{")
    if lists <= MAX_DEPTH and len(payload) <= MAX_VALUES:
        return  # too few brackets to nest deeper, and too few bytes for more values
    # Without escape sequences, each quote begins or ends a text. Ignore what is inside texts.
    text = payload.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > 2 * MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    text = b"".join(text.split(b'"')[::2])
    brackets = text.translate(_SQUARE, _NO_BRACKETS)
    if text.count(b",") + len(brackets) // 2 > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    for _level in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parts(texts: list[str]) -> list[list[str]]:
    """Split texts into parts that each fit into a message; always at least one part."""
    if sum(map(len, texts)) <= PART_CHARACTERS:
        return [texts]
    found: list[list[str]] = [[]]
    total = 0
    for text in texts:
        if found[-1] and total + len(text) > PART_CHARACTERS:
            found.append([])
            total = 0
        found[-1].append(text)
        total += len(text)
    return found


def size(event: list[Any]) -> int:
    """About how many characters an event takes in a message."""
    return sum(len(each) if isinstance(each, str) else len(str(each)) for each in event)


def line(text: str) -> str:
    """Another process's text as one line that can be shown on a terminal."""
    cut = f"{text[:_MAX_LINE]}..." if len(text) > _MAX_LINE else text
    return "".join(c if c.isprintable() else _escaped(c) for c in cut)


def shown(text: str) -> str:
    """Another process's text as lines that can be shown; of a long text, its beginning and end."""
    if len(text) > _MAX_SHOWN:
        half = _MAX_SHOWN // 2
        text = f"{text[:half]}\n... ({len(text) - 2 * half} characters left out)\n{text[-half:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
