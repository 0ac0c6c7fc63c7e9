"""Virtual environments, one a runner family, made once and used again while nothing changed.

In: a name, requirement lines, and whether this checkout is to be installed. Out: the path of
the environment's Python and the versions it holds. `constraints.txt` pins what goes in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from layout import CHECKOUT, HERE, WORK

INSTALL_LIMIT_S = 900.0

Log = Callable[[str], None]


class InstallError(Exception):
    """An environment could not be made; the message holds the end of the installer's output."""


@dataclass(frozen=True)
class Environment:
    """A ready environment: its name, its Python, and {distribution: version}."""

    name: str
    python: Path
    versions: Mapping[str, str]


def ensure(
    name: str,
    requirements: tuple[str, ...],
    log: Log,
    *,
    checkout: bool,
    commit: str = "",
) -> Environment:
    """Make the environment `name`, or take the one that is there when its inputs are the same.

    The checkout is installed as a user would have it (a built wheel, not a link), and only it
    is installed again when its sources have changed. `commit` names another state of it than the
    working tree's. `log` is called with what is being done.
    """
    source = _exported(commit) if commit else CHECKOUT
    folder = WORK / "venvs" / name
    python = folder / "bin" / "python"
    stamp = folder / "benchmark-stamp.json"
    wanted = {"packages": _packages_key(requirements), "checkout": ""}
    if checkout:
        wanted["checkout"] = _checkout_key(source)
    have = _read_stamp(stamp)
    if have.get("packages") != wanted["packages"]:
        log(f"making the virtual environment of {name}")
        stamp.unlink(missing_ok=True)
        _call([sys.executable, "-m", "venv", "--clear", str(folder)])
        constraints = str(HERE / "constraints.txt")
        _pip(python, "--constraint", constraints, *requirements)
        have = {"packages": wanted["packages"], "checkout": ""}
        stamp.write_text(json.dumps(have))
    if have.get("checkout") != wanted["checkout"]:
        log(f"installing {commit or 'this checkout'} into {name}")
        constraints = str(HERE / "constraints.txt")
        _pip(python, "--constraint", constraints, str(source))  # with its dependencies
        _pip(python, "--force-reinstall", "--no-deps", str(source))
        stamp.write_text(json.dumps(wanted))
    return Environment(name, python, _versions(python))


def _read_stamp(path: Path) -> dict[str, str]:
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _packages_key(requirements: tuple[str, ...]) -> str:
    """Hash what the packages in an environment depend on."""
    digest = hashlib.sha256()
    for part in (sys.version, sys.base_prefix, *sorted(requirements)):
        digest.update(part.encode() + b"\0")
    digest.update((HERE / "constraints.txt").read_bytes())
    return digest.hexdigest()


def _exported(commit: str) -> Path:
    """Return a folder with the checkout's files as they were at a commit."""
    folder = WORK / "commits" / commit.replace("/", "_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    _call(["git", "-C", str(CHECKOUT), "archive", "--output", str(archive), commit])
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="fully_trusted")  # the checkout's own
    archive.unlink()
    return folder


def _checkout_key(source: Path) -> str:
    """Hash the sources that the checkout's wheel is built from."""
    digest = hashlib.sha256((source / "pyproject.toml").read_bytes())
    for path in sorted((source / "pytest_forkd").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(source).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _pip(python: Path, *arguments: str) -> None:
    _call([str(python), "-m", "pip", "install", "--quiet", *arguments])


def _call(command: list[str]) -> None:
    """Run an installer's command within its time limit; raise InstallError where it fails."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"{' '.join(command)}: no end after {INSTALL_LIMIT_S:.0f} s") from None
    if done.returncode:
        raise InstallError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}")


def _versions(python: Path) -> dict[str, str]:
    code = (
        "import json, importlib.metadata as m;"
        "print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    done = subprocess.run(
        [str(python), "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    return {str(name).lower(): str(version) for name, version in json.loads(done.stdout).items()}
