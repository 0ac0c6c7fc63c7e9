"""The values that messages of other processes are made of, described for :mod:`msgspec`."""

# Without "from __future__ import annotations": compiling text annotations slows the start down.

from typing import Annotated, Any

import msgspec
from msgspec import Meta

__all__ = ["Index", "Int", "Location", "Name", "Phases", "Seconds", "Time", "Word", "convert"]

_INT4 = 2**31

Int = Annotated[int, Meta(ge=-_INT4, lt=_INT4)]
Index = Annotated[int, Meta(ge=0, lt=_INT4)]
#: Excludes infinity; JSON itself has no NaN.
Time = Annotated[float, Meta(ge=-1e15, le=1e15)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Name = Annotated[str, Meta(max_length=10_000)]
Word = Annotated[str, Meta(pattern=r"\A[\w .?-]{1,100}\Z")]
Location = tuple[str, Int | None, str]
Phases = tuple[Seconds, Seconds, Seconds]


def convert(data: Any, type_: Any) -> Any:
    """Convert builtins to ``type_``.

    :raises ValueError: if they do not match it.
    """
    return msgspec.convert(data, type_)
