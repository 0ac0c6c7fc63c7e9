"""Makes a snapshot: an image with Docker, and the snapshot of a guest that has booted from it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from pytest_forkd.forkd.built import Built, BuiltSnapshots
from pytest_forkd.forkd.errors import ForkdError
from pytest_forkd.forkd.recipe import LABEL, Recipe, default_tag, dockerfile, install_script
from pytest_forkd.forkd.wheel import make_wheel
from pytest_forkd.sync.scan import SyncError, WorkingTree, scan

__all__ = ["Machine", "build", "commands", "locked"]

#: Seconds that Docker and forkd may take: packages are downloaded and perhaps compiled.
_LIMIT = 3600.0
#: Seconds for a program that was interrupted to end.
_END_LIMIT = 10.0
#: Seconds to wait for another build of the same snapshot.
_LOCK_LIMIT = 2 * _LIMIT
_REPOSITORY = "pytest-forkd"


@dataclass(frozen=True)
class Machine:
    """What the guests are like, and how they are made.

    :ivar mem_size_mib: MiB of memory of each guest.
    :ivar size_mib: MiB of its file system.
    :ivar boot_wait_secs: seconds for it to boot and to import, before the snapshot is taken.
    :ivar docker_args: more arguments for ``docker build``.
    :ivar forkd_args: more arguments for ``forkd from-image``.
    :ivar data_home: a directory; forkd puts snapshots into its ``forkd/snapshots``.
    :ivar sudo: whether forkd is run with sudo.
    """

    mem_size_mib: int = 1024
    size_mib: int = 4096
    boot_wait_secs: int = 30
    docker_args: tuple[str, ...] = ()
    forkd_args: tuple[str, ...] = ()
    data_home: str | None = None
    sudo: bool = False


def commands(recipe: Recipe, machine: Machine, tag: str, image: str) -> list[list[str]]:
    """The commands to run, in order; the last but one reads the build context from its input."""
    found = []
    base = recipe.wishes.image
    if recipe.wishes.dockerfile:
        base = f"{image}-base"
        file = os.path.normpath(os.path.join(recipe.root, recipe.wishes.dockerfile))
        found.append(
            ["docker", "build", "--force-rm", *machine.docker_args, "-t", base, "-f", file]
        )
        found[-1].append(os.path.dirname(file))
    found.append(["docker", "build", "--force-rm", *machine.docker_args, "-t", image, "-"])
    found.append(
        [
            *(["sudo", "-E"] if machine.sudo else []),
            *(["env", f"XDG_DATA_HOME={machine.data_home}"] if machine.data_home else []),
            *("forkd", "from-image", image, "--tag", tag),
            *("--mem-size-mib", str(machine.mem_size_mib)),
            *("--size-mib", str(machine.size_mib)),
            *("--boot-wait-secs", str(machine.boot_wait_secs)),
            *machine.forkd_args,
        ]
    )
    return found


def make_image_name(recipe: Recipe) -> str:
    """An image name that was never used before: forkd caches file systems by image name."""
    return f"{_REPOSITORY}:{recipe.fingerprint}-{secrets.token_hex(3)}"


def base_image(recipe: Recipe, image: str) -> str:
    """The image to start with."""
    return f"{image}-base" if recipe.wishes.dockerfile else recipe.wishes.image


def write_context(tree: WorkingTree, recipe: Recipe, base: str, file: IO[bytes]) -> None:
    """Write the context for ``docker build``: container recipe, this package, and the project."""
    wheel, content = make_wheel()
    plan = json.dumps(recipe.parent_plan().to_json())
    about = json.dumps({"fingerprint": recipe.fingerprint, "built": int(time.time())})
    own: dict[str, str | bytes] = {
        "Dockerfile": dockerfile(recipe, base),
        "pytest-forkd/install.sh": install_script(recipe, wheel),
        "pytest-forkd/plan.json": plan,
        "pytest-forkd/snapshot.json": about,
        f"pytest-forkd/{wheel}": content,
    }
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, text in own.items():
            data = text.encode("utf-8") if isinstance(text, str) else text
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
        folder = tarfile.TarInfo("project")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for path, what in tree.manifest.items():
            if what.kind in ("file", "link"):
                with contextlib.suppress(FileNotFoundError):  # it has just been removed
                    archive.add(
                        os.path.join(tree.root, path),
                        f"project/{path}",
                        recursive=False,
                        filter=_of_root,
                    )


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    if entry.islnk():
        entry.type = tarfile.REGTYPE  # a hard link: the guest gets two files
    return entry


def check_programs(machine: Machine) -> None:
    """Make sure that the programs needed for a build are installed.

    :raises ForkdError: if not; says what is missing, and what to do.
    """
    if shutil.which("docker") is None:
        raise ForkdError(
            "docker is not on PATH. A snapshot is made on the daemon's host, which needs Docker; "
            "--print shows what would be run there."
        )
    if shutil.which("forkd") is None or (machine.sudo and shutil.which("sudo") is None):
        raise ForkdError(
            "forkd is not on PATH. A snapshot is made on the daemon's host, where forkd is "
            "installed; --print shows what would be run there."
        )


@contextlib.contextmanager
def locked(tag: str, directory: Path) -> Iterator[None]:
    """Hold the lock of a tag, so that of several builds started together only one builds.

    :raises ForkdError: if another build takes too long.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(directory / f"build-{tag}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another build of {tag} is under way; waiting for it", file=sys.stderr)  # noqa: T201
        try:
            lock.acquire(timeout=_LOCK_LIMIT)
        except Timeout:
            raise ForkdError(f"another build of {tag} has not ended: {lock.lock_file}") from None
    try:
        yield
    finally:
        lock.release()


def build(
    recipe: Recipe, machine: Machine, tag: str, given: dict[str, Any], built: BuiltSnapshots
) -> None:
    """Make the snapshot, and record it.

    :param given: the wishes from the command line.
    :raises ForkdError: if a program fails; no image is left then.
    """
    check_programs(machine)
    try:
        tree = scan(recipe.root)
    except SyncError as exc:
        raise ForkdError(str(exc)) from exc
    image = make_image_name(recipe)
    base = base_image(recipe, image)
    *before, making_image, making_snapshot = commands(recipe, machine, tag, image)
    try:
        for command in before:
            _run(command)
        _run(making_image, lambda file: write_context(tree, recipe, base, file))
        _run(making_snapshot)
    finally:
        _clean_up([image, *([base] if before else [])], recipe)
    built.add(
        Built(
            tag=tag,
            root=recipe.root,
            fingerprint=recipe.fingerprint,
            image=image,
            created=time.time(),
            named=tag != default_tag(recipe),
            wishes=given,
        )
    )


def _clean_up(images: list[str], recipe: Recipe) -> None:
    """Remove the images, which forkd has copied, and what a failed build has left."""
    label = f"label={LABEL}={recipe.fingerprint}"
    for command in (
        ["docker", "image", "rm", "--force", *images],
        ["docker", "image", "prune", "--force", "--filter", label],
    ):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_END_LIMIT * 6,
                check=False,
            )


def _run(command: list[str], write: object = None) -> None:
    """Run a program to its end; its output goes to the user.

    :param write: writes to its standard input.
    :raises ForkdError: if it fails.
    """
    print("+ " + shlex.join(command), file=sys.stderr)  # noqa: T201
    shown = [each for each in command if each not in ("sudo", "-E", "env") and "=" not in each]
    name = " ".join(shown[:2])
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE if write else subprocess.DEVNULL)
    except OSError as exc:
        raise ForkdError(f"{command[0]} cannot be started: {exc.strerror}.") from exc
    try:
        if callable(write):
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as file:
                write(file)  # if the program ends early, it says why itself
        status = process.wait(_LIMIT)
    except subprocess.TimeoutExpired:
        raise ForkdError(f"{name} has not ended within {_LIMIT:g} seconds.") from None
    finally:
        _end(process)
    if status:
        raise ForkdError(
            f"{name} has failed with "
            + (f"exit code {status}" if status > 0 else signal.Signals(-status).name)
            + "; its messages are above."
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_END_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
