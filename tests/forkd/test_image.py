"""The container recipe of ``pytest-forkd snapshot build``, with a real Docker.

No registry is needed: the image to start with is imported from this machine's Python.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from pytest_forkd.forkd.recipe import LABEL

#: What of a Python no test here needs; it would take most of the time.
LEFT_OUT = re.compile(
    r"/(test|tests|idlelib|tkinter|lib2to3|__pycache__|config-[^/]*|site-packages)$"
)
DISTRIBUTIONS = (
    *("pip", "pytest", "pluggy", "iniconfig", "packaging", "pygments", "pytest-xdist", "execnet"),
    *("filelock", "msgspec", "exceptiongroup", "tomli", "typing_extensions"),
)
#: A forkd that starts the warm-up command in the image, as the agent does, and asks the parent.
FORKD = """#!{python}
import json, subprocess, sys
image = sys.argv[2]
script = '''
set -e
cat /etc/forkd-recipe.env
eval "$(cat /etc/forkd-recipe.env)"
cd / && $FORKD_WARMUP_CMD >/tmp/ready </dev/null &
while [ ! -s /tmp/ready ]; do :; done
cat /tmp/ready
for each in /etc /usr /run /root /var/data %s; do
    if (: >$each/new) 2>/dev/null; then echo "$each"; fi
done
/usr/local/bin/python3 -c "import os, pytest_forkd, json
print(pytest_forkd.__file__, sorted(os.listdir('%s')))"
''' % (sys.argv[-1], sys.argv[-1])
# The first process is called as in a guest, and may mount as there; /tmp is in memory, as there.
command = ["docker", "run", "--rm", "--network=none", "--cap-add=SYS_ADMIN", "--tmpfs=/tmp"]
command += ["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined", image]
command += ["/bin/sh", "-c", script, "forkd-agent"]
done = subprocess.run(command, capture_output=True, text=True, timeout=60)
open({record!r}, "w").write(json.dumps([done.returncode, done.stdout, done.stderr]))
sys.exit(done.returncode)
"""


def has_docker() -> bool:
    if shutil.which("docker") is None:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(["docker", "info"], capture_output=True, timeout=20)
        return done.returncode == 0 and b"ERROR" not in done.stdout
    return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_docker(), reason="needs a Docker engine"),
]


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """An image with this Python, a shell, and what this package depends on."""
    name = f"pytest-forkd-test-{os.getpid()}"
    try:
        with subprocess.Popen(["docker", "import", "-", name], stdin=subprocess.PIPE) as docker:
            assert docker.stdin is not None
            with docker.stdin as file, tarfile.open(fileobj=file, mode="w|") as archive:
                write_base(archive)
        assert docker.returncode == 0
        yield name
    finally:
        subprocess.run(["docker", "image", "rm", "--force", name], capture_output=True, timeout=60)


def write_base(archive: tarfile.TarFile) -> None:
    prefix = sys.base_prefix
    python = os.path.realpath(sys.executable)
    stdlib = sysconfig.get_path("stdlib")
    tools = [shutil.which(name) for name in ("sh", "cat")]
    programs = [python, *(os.path.realpath(tool) for tool in tools if tool)]
    extensions = [str(path) for path in Path(stdlib).rglob("*.so")]
    listed = subprocess.run(["ldd", *programs, *extensions], capture_output=True, text=True).stdout
    libraries = set(re.findall(r"(?:=> |^\s+)(/\S+)", listed, re.MULTILINE))
    for path in {*programs, *libraries}:
        add(archive, os.path.realpath(path), path)
    for tool, path in zip(("sh", "cat"), programs[1:], strict=True):
        if path != f"/bin/{tool}":
            link(archive, f"/bin/{tool}", path)
    link(archive, "/usr/local/bin/python3", python)
    archive.add(stdlib, stdlib.lstrip("/"), filter=lambda m: None if LEFT_OUT.search(m.name) else m)
    packages = f"{stdlib}/site-packages"
    for name in DISTRIBUTIONS:
        with contextlib.suppress(PackageNotFoundError):
            for file in distribution(name).files or ():
                # virtualenv's pip lists bytecode that is not there, and folders.
                here = ".." not in file.parts and "__pycache__" not in file.parts
                if here and Path(str(file.locate())).is_file():
                    add(archive, str(file.locate()), f"{packages}/{file}")
    for folder in ("tmp", "etc", prefix.lstrip("/")):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)


def add(archive: tarfile.TarFile, source: str, target: str) -> None:
    data = Path(source).read_bytes()
    entry = tarfile.TarInfo(target.lstrip("/"))
    entry.size, entry.mode = len(data), 0o755
    archive.addfile(entry, io.BytesIO(data))


def link(archive: tarfile.TarFile, path: str, target: str) -> None:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def snapshot_build(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest_forkd.commands.main", "snapshot", "build", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=project, timeout=300)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Not below /tmp, where guests have something else.
    with tempfile.TemporaryDirectory(prefix="forkd-project-", dir="/var/tmp") as name:
        yield from _project(Path(name), tmp_path, monkeypatch)


def _project(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (folder / "test_it.py").write_text("import filelock\n\ndef test_it(): pass\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    record = str(tmp_path / "record")
    (programs / "forkd").write_text(FORKD.format(python=sys.executable, record=record))
    (programs / "forkd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FORKD_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield folder


def images() -> list[str]:
    """Those that this package has made, and containers that were to become one."""
    found = []
    for kind in ("image", "container"):
        command = ["docker", kind, "ls", "--all", "--quiet", "--filter", f"label={LABEL}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found += sorted(done.stdout.split())
    return found


def test_a_guest_has_a_ready_parent_and_the_project(
    base: str, project: Path, tmp_path: Path
) -> None:
    before = images()
    (project / "Dockerfile").write_text(f"FROM {base}\n")
    result = snapshot_build(
        project,
        "--dockerfile",
        "Dockerfile",
        "--preload",
        "filelock",
        "--writable",
        "/var/data",
        "--forkd-arg",
        str(project),
    )
    assert result.returncode == 0, result.stderr
    status, out, err = json.loads((tmp_path / "record").read_text())
    assert status == 0, err
    recipe, ready, *writable, rest = out.splitlines()
    assert recipe == (
        'FORKD_WARMUP_CMD="/usr/local/bin/python3 -m pytest_forkd.parent --ready-json --rehearse '
        f'--plan /etc/pytest-forkd/plan.json --in-memory {project} --in-memory /var/data"'
    )
    assert json.loads(ready) == {"ready": True}
    # The rest of the disk is read-only, since all guests share it.
    assert writable == ["/run", "/root", "/var/data", str(project)]
    assert err == ""
    listed = "['Dockerfile', 'new', 'test_it.py']"
    assert rest.endswith(f"site-packages/pytest_forkd/__init__.py {listed}")
    assert images() == before


@pytest.mark.parametrize(
    ("has_python", "message"),
    [
        (False, "has none of /usr/local/bin/python3 /usr/bin/python3"),
        (True, "cannot import no_such_module; is it in the requirements?"),
    ],
)
def test_an_image_of_no_use_says_why(
    base: str, project: Path, has_python: bool, message: str
) -> None:
    (project / "Dockerfile").write_text(f"FROM {base}\n")
    if not has_python:
        # There is no rm in the image.
        code = "import os; os.unlink('/usr/local/bin/python3')"
        run = json.dumps([os.path.realpath(sys.executable), "-c", code])
        (project / "Dockerfile").write_text(f"FROM {base}\nRUN {run}\n")
    before = images()
    result = snapshot_build(
        project, "--dockerfile", "Dockerfile", "--preload", "no_such_module", "--tag", "x"
    )
    assert result.returncode == 1
    assert message in result.stdout + result.stderr
    assert "docker build has failed with exit code" in result.stderr
    assert images() == before
