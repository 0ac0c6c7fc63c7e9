"""How a snapshot's image is made: what goes into it, its fingerprint, and the container recipe.

Settings come from the command line, else from ``[tool.pytest-forkd.snapshot]`` in the project's
``pyproject.toml``. So a run can work out the tag of the matching snapshot from the checkout alone.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytest_forkd import __version__
from pytest_forkd.forkd.answers import TAG
from pytest_forkd.forkd.errors import ForkdError
from pytest_forkd.parent.plan import Plan, own_packages
from pytest_forkd.sync.dependencies import dependency_files

tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

__all__ = [
    "GUEST_FILES",
    "LABEL",
    "Recipe",
    "Wishes",
    "default_tag",
    "dockerfile",
    "install_script",
]

#: The directory for this package's own files in an image.
GUEST_FILES = "/etc/pytest-forkd"
#: The label of images that this package makes.
LABEL = "pytest-forkd.fingerprint"
#: Increase this when images are made in another way.
_FORMAT = 2
_FOLDERS = ("/usr/local/bin", "/usr/bin")
#: Where forkd's init looks for the Python that runs its agent, in this order.
_PYTHONS = (
    "/usr/local/bin/python3",
    "/usr/bin/python3",
    "/usr/local/bin/python",
    "/usr/bin/python",
)
#: Distributions that guests need in the controller's version, since the two exchange messages.
_PINNED = ("pytest", "pytest-xdist", "execnet")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TABLE = "[tool.pytest-forkd.snapshot]"
#: How deep requirement files may include each other.
_MAX_DEPTH = 10


@dataclass(frozen=True)
class Wishes:
    """What goes into an image.

    :ivar image: the image to start with; the official one of this Python by default.
    :ivar dockerfile: a file that makes the image to start with, relative to the project.
    :ivar requirements: requirement files to install, relative to the project;
        ``requirements.txt`` by default, where there is one.
    :ivar extras: extras of the project to install.
    :ivar groups: dependency groups of the project to install.
    :ivar preload: modules for the parent to import.
    :ivar tests: paths whose test files are searched for more modules to import.
    :ivar writable: further directories that tests write to, besides the project, the home directory
        and those for temporary files.
    """

    image: str = ""
    dockerfile: str = ""
    requirements: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()

    @classmethod
    def read(cls, root: str, given: Mapping[str, object]) -> Wishes:
        """The given wishes, else those in the project's ``pyproject.toml``, else the defaults.

        :param root: the project's directory.
        :param given: values by field name; empty values count as not given.
        :raises ForkdError: if a value makes no sense.
        """
        table = _read_table(root)
        known = {each.name for each in fields(cls)}
        for name in table:
            if name not in known:
                keys = ", ".join(sorted(known))
                raise ForkdError(f"pyproject.toml: {_TABLE} has no key {name!r}; it has {keys}.")
        if given.get("image") or given.get("dockerfile"):
            table = {k: v for k, v in table.items() if k not in ("image", "dockerfile")}
        values = {**table, **{name: value for name, value in given.items() if value}}
        texts = {name: _text(values.get(name, ""), name) for name in ("image", "dockerfile")}
        lists = {
            name: _texts(values.get(name, ()), name) for name in known - {"image", "dockerfile"}
        }
        if texts["image"] and texts["dockerfile"]:
            raise ForkdError("--image and --dockerfile both say what to start with; give one.")
        if not texts["image"] and not texts["dockerfile"]:
            texts["image"] = f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
        if not lists["requirements"] and os.path.isfile(os.path.join(root, "requirements.txt")):
            lists["requirements"] = ("requirements.txt",)
        for module in lists["preload"]:
            if not _MODULE.fullmatch(module):
                raise ForkdError(f"--preload: {module!r} is no name of a module.")
        for name in (*lists["extras"], *lists["groups"]):
            if not _NAME.fullmatch(name):
                raise ForkdError(f"{name!r} is no name of an extra or a dependency group.")
        for name in lists["writable"]:
            if not os.path.isabs(name) or name != os.path.normpath(name) or name == "/":
                raise ForkdError(f"--writable: {name!r} is no absolute path of a directory.")
        for name in (*lists["requirements"], *filter(None, [texts["dockerfile"]])):
            if not os.path.isfile(os.path.join(root, name)):
                raise ForkdError(f"there is no file {os.path.join(root, name)}.")
        return cls(**texts, **lists)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Recipe:
    """An image to be made.

    :ivar root: the project's directory; it has the same path in guests.
    :ivar wishes: what goes into the image.
    :ivar installs: whether the project itself can be installed.
    :ivar pins: requirements that pin the controller's versions in guests.
    :ivar files: files that it depends on: paths and hashes.
    """

    root: str
    wishes: Wishes
    installs: bool
    pins: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def plan(cls, root: str, wishes: Wishes) -> Recipe:
        """The recipe for a project as it is now.

        :param root: the project's directory.
        :raises ForkdError: if a file cannot be read.
        """
        files = dict(dependency_files(root))
        for name in (*wishes.requirements, *filter(None, [wishes.dockerfile])):
            _hash_with_includes(os.path.join(root, name), files, _MAX_DEPTH)
        pyproject = _load_pyproject(root)
        installs = (
            os.path.isfile(os.path.join(root, "setup.py"))
            or "project" in pyproject
            or "build-system" in pyproject
        )
        if (wishes.extras or wishes.groups) and not pyproject and not installs:
            raise ForkdError(f"--extra, --group: {root} has no pyproject.toml or setup.py.")
        return cls(root, wishes, installs, _pins(), files)

    @property
    def fingerprint(self) -> str:
        """A hash of what a snapshot made by it depends on, as 20 hexadecimal digits.

        The project's other files do not count: their difference is sent before each run.
        """
        state = {
            "format": _FORMAT,
            "version": __version__,
            "root": self.root,
            "wishes": asdict(self.wishes),
            "installs": self.installs,
            "pins": self.pins,
            "files": self.files,
        }
        text = json.dumps(state, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]

    def parent_plan(self) -> Plan:
        """What the guests' parent imports."""
        tests = self.wishes.tests or ("",)
        return Plan(
            preload=list(self.wishes.preload),
            cwd=self.root,
            project=self.root,
            scan=[os.path.normpath(os.path.join(self.root, each)) for each in tests],
            exclude=sorted(own_packages(Path(self.root))),
        )


def default_tag(recipe: Recipe) -> str:
    """The tag of the snapshot that fits a project as it is now."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", os.path.basename(recipe.root)).strip("-")[:30]
    tag = f"pytest-forkd-{name or 'project'}-{recipe.fingerprint[:16]}"
    assert TAG.fullmatch(tag)
    return tag


def dockerfile(recipe: Recipe, base: str) -> str:
    """The container recipe.

    :param base: the image to start with.
    """
    copy_project = json.dumps(["project/", recipe.root + "/"])
    copy_own = json.dumps(["pytest-forkd/", GUEST_FILES + "/"])
    run = json.dumps(["/bin/sh", f"{GUEST_FILES}/install.sh"])
    return (
        f"# Made by pytest-forkd {__version__} for fingerprint {recipe.fingerprint}.\n"
        f"FROM {base}\n"
        f"LABEL {LABEL}={recipe.fingerprint}\n"
        "USER 0\n"
        f"COPY {copy_project}\n"
        f"COPY {copy_own}\n"
        "WORKDIR /\n"
        f"RUN {run}\n"
    )


def install_script(recipe: Recipe, wheel: str) -> str:
    """A script that runs while the image is built: installs everything, writes forkd's recipe file.

    :param wheel: the file name of this package.
    """
    wishes = recipe.wishes
    files = [os.path.normpath(os.path.join(recipe.root, name)) for name in wishes.requirements]
    commands = [["-r", file] for file in files]
    if recipe.installs:
        extras = f"[{','.join(wishes.extras)}]" if wishes.extras else ""
        commands.append(["-e", f"{recipe.root}{extras}"])
    commands += [["--group", f"{recipe.root}/pyproject.toml:{name}"] for name in wishes.groups]
    # Last, so that the controller's versions win.
    commands.append([f"{GUEST_FILES}/{wheel}", *recipe.pins])
    installs = "\n".join(f"pip install {shlex.join(command)}" for command in commands)
    modules = " ".join(["pytest", "xdist", "execnet", "pytest_forkd", *wishes.preload])
    return f"""#!/bin/sh
# Installs what the guests need, with the Python that forkd's agent will run with.
set -eu
python=
for each in {" ".join(_PYTHONS)}; do
    if [ -x "$each" ]; then python="$each"; break; fi
done
if [ -z "$python" ]; then
    echo "pytest-forkd: the image has none of {" ".join(_PYTHONS[:2])}, which forkd needs" >&2
    exit 1
fi
export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
if ! "$python" -m pip --version >/dev/null 2>&1 && ! "$python" -m ensurepip >/dev/null 2>&1; then
    echo "pytest-forkd: $python has no pip; install python3-pip in the image" >&2
    exit 1
fi
pip() {{ "$python" -m pip --quiet "$@"; }}
cd {shlex.quote(recipe.root)}
{installs}
cd /
for each in {modules}; do
    "$python" -c "import sys; del sys.path[0]; import $each" || {{
        echo "pytest-forkd: $python cannot import $each; is it in the requirements?" >&2
        exit 1
    }}
done
# Images tend to come without bytecode, and guests cannot write it.
stdlib=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
"$python" -m compileall -qq "$stdlib" || true
write='import sys; print(sys.argv[1].replace("PYTHON", sys.argv[2], 1))'
"$python" -c "$write" {shlex.quote(_warmup(recipe))} "$python" >/etc/forkd-recipe.env
"""


def _warmup(recipe: Recipe) -> str:
    """The line of forkd's recipe file; ``PYTHON`` stands for the interpreter."""
    command = ["PYTHON", "-m", "pytest_forkd.parent", "--ready-json", "--rehearse"]
    command += ["--plan", f"{GUEST_FILES}/plan.json"]
    for directory in (recipe.root, *recipe.wishes.writable):
        command += ["--in-memory", directory]
    # The agent strips one pair of quotes around the whole, and splits the rest like a shell.
    return f'FORKD_WARMUP_CMD="{shlex.join(command)}"'


def _pins() -> tuple[str, ...]:
    found = []
    for name in _PINNED:
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            raise ForkdError(
                f"{name} is not installed here; guests are to have the same."
            ) from None
    return tuple(found)


def _load_pyproject(root: str) -> dict[str, Any]:
    path = os.path.join(root, "pyproject.toml")
    try:
        with open(path, "rb") as file:
            document: dict[str, Any] = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise ForkdError(f"{path} cannot be read: {exc}") from exc
    return document


def _read_table(root: str) -> dict[str, Any]:
    table: Any = _load_pyproject(root)
    for key in ("tool", "pytest-forkd", "snapshot"):
        table = table.get(key, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise ForkdError(f"pyproject.toml: {_TABLE} is no table.")
    return table


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ForkdError(f"--{name}: {value!r} makes no sense; a line of text is expected.")
    if name == "image" and " " in value.strip():
        raise ForkdError(f"--image: {value!r} makes no sense as the name of an image.")
    return value.strip()


def _texts(value: object, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(each, str) and each.isprintable() for each in value
    ):
        raise ForkdError(f"pyproject.toml: {name} in {_TABLE} is to be a list of texts.")
    return tuple(value)


def _hash_with_includes(path: str, files: dict[str, str], depth: int) -> None:
    """Add the hashes of a file, and of the requirement files that it includes, to ``files``."""
    if path in files or depth == 0:
        return
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise ForkdError(f"{path} cannot be read: {exc.strerror}.") from exc
    files[path] = hashlib.sha256(data).hexdigest()
    included = re.findall(
        rb"^\s*(?:-r|-c|--requirement|--constraint)[ \t=]*([^\s#]+)", data, re.MULTILINE
    )
    for name in included:
        inner = os.path.join(os.path.dirname(path), os.fsdecode(name))
        if os.path.isfile(inner):
            _hash_with_includes(inner, files, depth - 1)
