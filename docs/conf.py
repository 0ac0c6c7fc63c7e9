"""Configuration of Sphinx: ``sphinx-build -W -n -b html docs docs/_build/html``."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "pytest-forkd"
author = "The pytest-forkd developers"
project_copyright = author
release = version = installed_version("pytest-forkd")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "downstream-table.md"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"pytest-forkd {version}"
