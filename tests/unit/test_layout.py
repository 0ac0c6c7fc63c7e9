"""The rooms of the package: imports run one way, there are no circles, and no file is long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest_forkd

PACKAGE = Path(pytest_forkd.__file__).parent
#: Lines of a file that can still be read in one go.
MOST_LINES = 400

#: Modules of other libraries that hold what they do not promise to keep.
PRIVATE = (
    "_pytest",
    "execnet.gateway",
    "pluggy._",
    "xdist.dsession",
    "xdist.plugin",
    "xdist.remote",
)

#: From the roof to the cellar. A module imports what is in its own room or on a floor below; rooms
#: on one floor do not know each other. The longest name that fits is a module's room.
FLOORS = [
    ["plugin", "commands"],
    ["controller"],
    ["forkd", "qemu", "backends.process"],
    ["machines"],
    ["backends.base"],
    ["parent.__main__"],
    ["guest.machine"],
    ["parent.server"],
    ["guest"],
    ["scheduling"],
    ["parent.worker"],
    ["parent.imports"],
    ["parent.watch"],
    ["parent"],
    ["sync"],
    ["channel"],
    ["config", "console", "runtime", "hookspecs"],
    ["compat"],
    ["__init__"],
]


@cache
def files() -> dict[str, Path]:
    """Modules by their names, without the package's own."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Every import of a file, wherever it stands: line, module, names."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.lineno, node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, []


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """The modules of this package that a file imports."""
    known = files()
    for lineno, module, names in imports(path):
        if module.partition(".")[0] != "pytest_forkd":
            continue
        base = module.partition(".")[2]
        for name in names or [""]:
            full = ".".join(filter(None, (base, name)))
            for found in (full, f"{full}.__init__", base, f"{base}.__init__", "__init__"):
                if found in known:
                    yield lineno, found
                    break


def floor(module: str) -> tuple[int, str]:
    """Which floor a module's room is on, and the room; the roof is 0."""
    rooms = [
        (len(room), at, room)
        for at, names in enumerate(FLOORS)
        for room in names
        if module == room or module.startswith(f"{room}.")
    ]
    assert rooms, f"{module} has no room"
    _length, at, room = max(rooms)
    return at, room


#: Packages that hold nothing but rooms.
HALLS = {"backends.__init__"}
MODULES = [name for name in files() if name not in HALLS]


def test_imports_lead_down() -> None:
    wrong = []
    for module in MODULES:
        at, room = floor(module)
        path = files()[module]
        for lineno, other in own_imports(path):
            below, other_room = floor(other)
            if other_room != room and below <= at:
                wrong.append(f"{path}:{lineno}: {room} knows nothing of {other_room} ({other})")
    assert not wrong, "\n".join(wrong)


def test_what_is_private_to_others_is_reached_in_one_room() -> None:
    found = [
        f"{path}:{lineno}: {other}"
        for module, path in files().items()
        if not module.startswith("compat.")
        for lineno, other, _names in imports(path)
        if other.startswith(PRIVATE)
    ]
    assert not found, "\n".join(found)


def test_private_attributes_are_our_own() -> None:
    """Those that no class or module of this package has are somebody else's."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in files().values()}
    own = {"_exit", "_getframe", "_replace"}  # documented
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
    found = [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path, tree in trees.items()
        if path.parent.name != "compat"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in own
        # What a subclass has inherited is looked for by the self-test.
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]
    assert not found, "\n".join(found)


def test_there_are_no_circles() -> None:
    graph = {name: {other for _line, other in own_imports(path)} for name, path in files().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        raise AssertionError(" imports ".join(exc.args[1])) from None


def test_each_room_has_something_in_it() -> None:
    rooms = {floor(module)[1] for module in MODULES}
    assert rooms == {room for names in FLOORS for room in names}


def test_no_file_is_long() -> None:
    lines = {str(path): len(path.read_text("utf-8").splitlines()) for path in files().values()}
    assert not {path: count for path, count in lines.items() if count > MOST_LINES}


def test_a_wrong_import_is_noticed(tmp_path: Path) -> None:
    """The test of the test: an arrow up, from within a function, and by a module's name."""
    path = tmp_path / "it.py"
    path.write_text(
        "def f():\n    from pytest_forkd.controller import session\n"
        "import pytest_forkd.commands.main\nfrom pytest_forkd import plugin, __version__\n"
    )
    assert sorted(own_imports(path)) == [
        (2, "controller.session"),
        (3, "commands.main"),
        (4, "__init__"),
        (4, "plugin"),
    ]
