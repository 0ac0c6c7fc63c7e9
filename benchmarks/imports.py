"""Which Python files need a library, by themselves or through other files of the same suite.

In: sources by their path in the suite, and names of top-level modules. Nothing is run: `import`
statements are read wherever they stand in a file.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from collections.abc import Set as AbstractSet


def without_imports_of(modules: AbstractSet[str], sources: Mapping[str, str]) -> set[str]:
    """Return the paths in `sources` that import none of `modules`, however indirectly.

    Keys of `sources` are paths with forward slashes, relative to the folder that is on the
    import path. Importing `a.b` also runs `a`.
    """
    names = {path: imported_names(text, path) for path, text in sources.items()}
    needing = {path for path, found in names.items() if {n.split(".")[0] for n in found} & modules}
    while True:
        paths = {path for path, found in names.items() if _files_of(found, sources) & needing}
        if paths <= needing:
            return set(sources) - needing
        needing |= paths


def imported_names(text: str, path: str) -> set[str]:
    """Return the dotted names that a file may import; `from a import b` gives `a` and `a.b`."""
    package = path.split("/")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def _files_of(names: set[str], sources: Mapping[str, str]) -> set[str]:
    """Return which of the suite's own files importing `names` runs."""
    found: set[str] = set()
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            stem = "/".join(parts[:length])
            found.update({f"{stem}.py", f"{stem}/__init__.py"} & set(sources))
    return found
