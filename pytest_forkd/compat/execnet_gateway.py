"""What is private to execnet's gateways.

In a module of its own, since only the controller uses gateways. Read in, and checked with, execnet
2.1.
"""

from __future__ import annotations

from execnet.gateway import Gateway, RInfo

__all__ = ["Gateway", "RInfo", "close_channels"]


def close_channels(gateway: Gateway) -> None:
    """Tell a gateway's channels that nothing more will come."""
    gateway._channelfactory._finished_receiving()
