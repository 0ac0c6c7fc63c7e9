"""Makes a project's environment from its source distribution, and runs its suite there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["MODES", "Recipe", "Run", "prepare", "run_all"]

_HERE = Path(__file__).parent

#: Seconds for pip to download a source distribution, and to fill an environment.
_PIP_LIMIT = 300

_FORKD = ("--forkd-workers=2", "--forkd-keep=120")

#: Name -> options. "second" is the run after "first", with what that has left.
MODES = {
    "plain": ("-p", "no:forkd"),
    "xdist": ("-p", "no:forkd", "-n2"),
    "first": _FORKD,
    "second": _FORKD,
    "imports": (*_FORKD, "--forkd-warm=imports"),
}


@dataclass(frozen=True)
class Recipe:
    """How to run one project's suite; ``recipes.toml`` says what each field means."""

    name: str
    version: str
    sha256: str
    seconds: int
    requires: list[str] = field(default_factory=list)
    args: list[str] = field(default_factory=list)
    limit: int = 300
    environ: dict[str, str] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """What one run of a suite came to.

    :ivar exit: its exit status; None if it took longer than its limit.
    :ivar tests: node id -> what was reported of it.
    :ivar warnings: what is shown as a warning -> how often.
    :ivar stats: kind -> count, of the last line.
    :ivar seconds: from its start to its end.
    :ivar finding: why each worker collected for itself; empty if the collection was shared.
    :ivar output: all that it printed.
    """

    exit: int | None
    tests: dict[str, list[str]]
    warnings: dict[str, int]
    stats: dict[str, int]
    seconds: float
    finding: str
    output: str


def prepare(recipe: Recipe, wheel: Path, work: Path) -> tuple[Path, Path]:
    """Download the project's source distribution and make an environment for its tests.

    :param wheel: pytest-forkd.
    :param work: where it all goes; an environment that is there already is used again.
    :returns: the unpacked project and its environment.
    :raises subprocess.CalledProcessError: pip failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    pinned = f"{recipe.name}=={recipe.version}"
    archives = work / f"sdist-{recipe.version}"
    if not archives.exists():
        requirement = work / "requirement.txt"
        requirement.write_text(f"{pinned} --hash=sha256:{recipe.sha256}\n")
        _pip("download", "--no-deps", "--no-binary", recipe.name, "-d", archives, "-r", requirement)
    source = work / "source"
    shutil.rmtree(source, ignore_errors=True)
    (archive,) = archives.iterdir()
    with tarfile.open(archive) as tar:
        if sys.version_info >= (3, 12):
            tar.extractall(source, filter="data")
        else:  # the file's hash is pinned
            tar.extractall(source)
    (project,) = source.iterdir()

    environment = work / "env"
    requires = ["pytest", "pytest-xdist", "hypothesis", "trio", *recipe.requires]
    stamp = environment / "stamp"
    wanted = repr((pinned, requires, sys.version_info))
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60
        )
        _pip("--python", environment / "bin" / "python", "install", project, wheel, *requires)
        stamp.write_text(wanted)
    else:
        _pip(
            *("--python", environment / "bin" / "python", "install"),
            *("--no-deps", "--force-reinstall", wheel),
        )
    (site_packages,) = environment.glob("lib/python*/site-packages")
    shutil.copyfile(_HERE / "outcomes.py", site_packages / "forkd_outcomes.py")
    return project, environment


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=_PIP_LIMIT, stdin=subprocess.DEVNULL)


def run_all(recipe: Recipe, project: Path, environment: Path) -> dict[str, Run]:
    """Run the suite in each mode.

    :returns: mode -> run.
    """
    # The path of a unix socket has to be short.
    with tempfile.TemporaryDirectory(prefix="ds-", ignore_cleanup_errors=True) as runtime:
        environ = _environ(recipe, environment, Path(runtime))
        try:
            # So that no run is slower for being the first to compile the tests.
            _run(recipe, project, environ, ("-p", "no:forkd", "--collect-only", "-q"))
            runs = {}
            for mode, options in MODES.items():
                if mode != "second":
                    for cache in project.rglob(".pytest_cache"):
                        shutil.rmtree(cache)
                runs[mode] = _run(recipe, project, environ, options)
            return runs
        finally:
            subprocess.run(
                [environment / "bin" / "pytest-forkd", "stop"],
                env=environ,
                stdout=subprocess.DEVNULL,
                timeout=60,
                check=False,
            )


def _environ(recipe: Recipe, environment: Path, runtime: Path) -> dict[str, str]:
    """A user's environment, without what tells of this run."""
    ours = ("PYTEST", "PYTHON", "COV_", "TOX", "_", "VIRTUAL_ENV", "CI", "GITHUB_", "BUILD_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ |= {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(environment),
        "XDG_RUNTIME_DIR": str(runtime),
        "TMPDIR": str(runtime),
        "TERM": "dumb",
        "COLUMNS": "80",
    }
    return environ | recipe.environ


def _run(recipe: Recipe, project: Path, environ: dict[str, str], options: tuple[str, ...]) -> Run:
    file = Path(environ["XDG_RUNTIME_DIR"]) / "outcomes.json"
    file.unlink(missing_ok=True)
    command: list[str | Path] = [
        Path(environ["VIRTUAL_ENV"]) / "bin" / "pytest",
        *options,
        *recipe.args,
    ]
    command += ["-p", "forkd_outcomes", f"--outcomes-file={file}"]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        with subprocess.Popen(
            command,
            cwd=project,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                status: int | None = process.wait(timeout=recipe.limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read()
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    told = re.search(r"each worker collects for itself: (.*)", text)
    return Run(
        exit=status,
        tests=found.get("tests", {}),
        warnings=found.get("warnings", {}),
        stats=found.get("stats", {}),
        seconds=seconds,
        finding=told[1].strip() if told else "",
        output=text,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what a run has left in its session; nothing, if it ended well."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
