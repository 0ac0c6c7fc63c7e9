"""Makes every Python of a stand-in's guest clonable, see ``tests/standin/guest/cloning.py``."""

import importlib.util
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _here]
_spec = importlib.util.spec_from_file_location(
    "_standin_cloning", os.path.join(os.path.dirname(_here), "cloning.py")
)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["_standin_cloning"] = _module
_spec.loader.exec_module(_module)
if "STANDIN_CONTROL" in os.environ:
    _module.install(os.environ["STANDIN_CONTROL"])

# What the environment has under this name is still to be run.
del sys.modules["sitecustomize"]
try:
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
except ImportError:
    sys.modules["sitecustomize"] = sys.modules["_standin_cloning"]
