"""Unpacks and checks the ``workeroutput`` of a worker; for the controller."""

# No postponed annotations: each would be compiled when the controller starts.

from typing import Any, TypedDict

from pytest_forkd.channel.bounds import shown
from pytest_forkd.channel.events import unpack_object
from pytest_forkd.channel.schema import Int, convert

__all__ = ["unpack_output"]


class _Output(TypedDict):
    exitstatus: Int
    shouldfail: bool | str
    shouldstop: bool | str


def unpack_output(packed: str) -> dict[str, Any]:
    """Unpack and check a ``workeroutput``; plugins may have added any builtins to it.

    :raises ValueError: if xdist could not use it.
    """
    output = unpack_object(packed)
    convert(output, _Output)
    checked: dict[str, Any] = output
    for name in ("shouldfail", "shouldstop"):
        if isinstance(checked[name], str):
            checked[name] = shown(checked[name])
    return checked
