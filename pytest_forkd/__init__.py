"""pytest-forkd: run a pytest suite in copy-on-write clones of one prewarmed, collected parent."""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["PytestForkdWarning", "__version__"]

__version__ = version("pytest-forkd")


class PytestForkdWarning(UserWarning):
    """Something in the suite may behave differently in a clone than in a fresh interpreter."""


#: True while a collector or worker makes its configuration. There the plugin must do nothing, but
#: ``config.workerinput``, which shows what the process is, is not set yet.
_config_of_a_clone = False
