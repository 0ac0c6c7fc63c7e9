"""execnet's gateways, which it does not promise to keep as they are.

Apart from the rest, since only the controller has any. Read in, and checked with, execnet 2.1.
"""

from __future__ import annotations

from execnet.gateway import Gateway, RInfo

__all__ = ["Gateway", "RInfo"]
