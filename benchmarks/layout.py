"""Where things are: this folder, the checkout around it, and the git-ignored work folder."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
EXAMPLES = CHECKOUT / "examples"
WORK = HERE / ".work"
