"""``pytest-forkd snapshot``: what is run to make one, when, and what becomes of it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs the extra pytest-forkd[forkd]")

from pytest_forkd.commands.main import main
from pytest_forkd.forkd.built import BuiltSnapshots, choose_tag, plan_for
from pytest_forkd.forkd.errors import ForkdError
from pytest_forkd.forkd.recipe import Wishes, default_tag
from pytest_forkd.forkd.wheel import make_wheel
from tests.leftovers import run_processes
from tests.standin.fixture import StandIn

Command = Callable[..., subprocess.CompletedProcess[str]]

#: A docker that only notes what it is told, and keeps what it reads.
DOCKER = """#!{python}
import json, os, sys, time
folder = {folder!r}
with open(os.path.join(folder, "calls"), "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[-1] == "-":
    with open(os.path.join(folder, "context.tar"), "wb") as file:
        file.write(sys.stdin.buffer.read())
    time.sleep(float(os.environ.get("DOCKER_TAKES", "0")))
    sys.exit(int(os.environ.get("DOCKER_FAILS", "0")))
"""
#: A forkd that notes what it is told, and has the stand-in make the snapshot.
FORKD = """#!{python}
import json, os, sys, urllib.request
folder = {folder!r}
with open(os.path.join(folder, "calls"), "a") as file:
    file.write(json.dumps(["forkd", *sys.argv[1:]]) + "\\n")
if os.environ.get("FORKD_FAILS"):
    sys.exit("no kernel found")
if os.environ.get("XDG_DATA_HOME") == "/elsewhere":
    sys.exit()
tag = sys.argv[sys.argv.index("--tag") + 1]
rootfs = os.path.join(folder, "rootfs.json")
with open(rootfs, "w") as file:
    recipe = {{"FORKD_WARMUP_CMD": "python3 -m pytest_forkd.parent --ready-json"}}
    json.dump({{"recipe": recipe if os.environ.get("FORKD_READY") else {{}}}}, file)
body = json.dumps({{"tag": tag, "kernel": rootfs, "rootfs": rootfs}}).encode()
request = urllib.request.Request(os.environ["FORKD_URL"] + "/v1/snapshots", body)
urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(request)
"""


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared_daemon: StandIn) -> Iterator[StandIn]:
    yield shared_daemon
    shared_daemon.faults()
    for sandbox in shared_daemon.get("/v1/sandboxes"):
        shared_daemon.delete(f"/v1/sandboxes/{sandbox['id']}")
    for snapshot in shared_daemon.get("/v1/snapshots"):
        shared_daemon.delete(f"/v1/snapshots/{snapshot['tag']}?force=true")


@pytest.fixture
def programs(tmp_path: Path, daemon: StandIn, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on PATH with programs that note how they are called."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in (("docker", DOCKER), ("forkd", FORKD)):
        (folder / name).write_text(text.format(python=sys.executable, folder=str(folder)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FORKD_URL", daemon.url)
    monkeypatch.setenv("FORKD_RUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("FORKD_TOKEN", raising=False)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a lock file."""
    folder = tmp_path / "a project"
    folder.mkdir()
    (folder / "requirements.txt").write_text("-r more.txt\n")
    (folder / "more.txt").write_text("numpy==1\n")
    (folder / "uv.lock").write_text("locked\n")
    (folder / "test_it.py").write_text("def test_it(): pass\n")
    (folder / "secret.env").write_text("PASSWORD=1\n")
    (folder / ".gitignore").write_text("*.env\n")
    (folder / "link").symlink_to("test_it.py")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


@pytest.fixture
def command(
    project: Path,
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """Run ``pytest-forkd snapshot`` in the project, in this process."""

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(project)
        capfd.readouterr()
        try:
            status = main(complete(args))
        except SystemExit as exc:
            status = int(str(exc.code))
        return subprocess.CompletedProcess(args, status, *capfd.readouterr())

    return run


def complete(args: tuple[str, ...]) -> list[str]:
    """Arguments of ``pytest-forkd``; most tests do without a look into the guest."""
    unchecked = args[0] == "build" and "FORKD_READY" not in os.environ
    return ["snapshot", *args, *(["--no-check"] if unchecked else [])]


def calls(programs: Path) -> list[list[str]]:
    """What the programs were called with since the last time."""
    file = programs / "calls"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    file.unlink(missing_ok=True)
    return found


# -- build -------------------------------------------------------------------------------------


def test_what_is_run_to_make_a_snapshot(
    command: Command, programs: Path, project: Path, tmp_path: Path
) -> None:
    result = command("build", "--preload", "json.tool", "--mem-size-mib", "2048")
    assert result.returncode == 0, result.stderr
    recipe = plan_for(str(project), {"preload": ("json.tool",)})
    tag = choose_tag(str(project)).tag
    assert tag.startswith("pytest-forkd-a-project-")
    assert result.stdout == f"snapshot {tag} is made\n"
    docker, forkd, remove, tidy = calls(programs)
    image = docker[3]
    assert docker == ["build", "--force-rm", "-t", image, "-"]
    assert image.startswith(f"pytest-forkd:{recipe.fingerprint}-")
    assert forkd == [
        *("forkd", "from-image", image, "--tag", tag, "--mem-size-mib", "2048"),
        *("--size-mib", "4096", "--boot-wait-secs", "30"),
    ]
    assert remove == ["image", "rm", "--force", image]
    assert tidy[:3] == ["image", "prune", "--force"]
    assert tidy[4] == f"label=pytest-forkd.fingerprint={recipe.fingerprint}"

    with tarfile.open(programs / "context.tar") as archive:
        members = {member.name: member for member in archive}
        texts = {
            name: file.read().decode(errors="replace")
            for name, member in members.items()
            if (file := archive.extractfile(member)) is not None
        }
    wheel, _content = make_wheel()
    assert set(members) == {
        *("Dockerfile", "project", "pytest-forkd/install.sh", "pytest-forkd/plan.json"),
        *("pytest-forkd/snapshot.json", f"pytest-forkd/{wheel}"),
        *(f"project/{name}" for name in ("requirements.txt", "more.txt", "uv.lock", "test_it.py")),
        *("project/.gitignore", "project/link"),
    }
    assert members["project/link"].issym()
    assert f'COPY ["project/", "{project}/"]' in texts["Dockerfile"]
    assert texts["Dockerfile"].splitlines()[1].startswith("FROM python:3.")
    plan = json.loads(texts["pytest-forkd/plan.json"])
    assert plan["preload"] == ["json.tool"]
    assert plan["scan"] == [str(project)]
    assert json.loads(texts["pytest-forkd/snapshot.json"])["fingerprint"] == recipe.fingerprint
    script = texts["pytest-forkd/install.sh"]
    assert f"pip install -r '{project}/requirements.txt'" in script
    assert f"/etc/pytest-forkd/{wheel} pytest=={pytest.__version__}" in script
    assert "pip install -e" not in script  # nothing says how to install the project
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_a_snapshot_is_made_once_for_each_state_of_the_lock_file(
    command: Command, programs: Path, project: Path
) -> None:
    assert command("build").returncode == 0
    first = choose_tag(str(project)).tag
    assert len(calls(programs)) == 4
    (project / "test_it.py").write_text("def test_other(): pass\n")  # this is sent before a run
    again = command("build")
    assert again.stdout == f"snapshot {first} is there already\n"
    assert calls(programs) == []
    for file in ("uv.lock", "more.txt", "pyproject.toml"):
        (project / file).write_text("[dependency-groups]\ntest = ['pytest']\n")
        tag = choose_tag(str(project)).tag
        assert tag != first
        assert command("build").stdout == f"snapshot {tag} is made\n"
        first = tag
        assert calls(programs)[1][4] == tag


def test_a_tag_of_ones_own(command: Command, programs: Path, project: Path) -> None:
    assert command("build", "--tag", "mine", "--preload", "json").returncode == 0
    assert choose_tag(str(project)).tag == "mine"
    assert choose_tag(str(project)).stale is None
    assert command("build", "--tag", "mine", "--preload", "json").stdout.endswith("already\n")
    (project / "uv.lock").write_text("changed\n")
    assert choose_tag(str(project)).stale == "what it was made from has changed since"
    refused = command("build", "--tag", "mine", "--preload", "json")
    assert refused.returncode == 1
    assert "was made of something else; --force makes it anew" in refused.stderr
    calls(programs)
    forced = command("build", "--tag", "mine", "--preload", "json", "--force")
    assert forced.stdout == "snapshot mine is made\n"
    assert choose_tag(str(project)).stale is None
    assert "stale       no" in command("info", "mine").stdout


def test_what_would_be_run_is_only_printed(command: Command, programs: Path) -> None:
    result = command("build", "--print", "--docker-arg=--network=host", "--sudo")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[1].startswith("docker build --force-rm --network=host -t pytest-forkd:")
    assert lines[2].startswith("sudo -E forkd from-image pytest-forkd:")
    assert "COPY" in result.stdout
    assert "forkd-recipe.env" in result.stdout
    assert calls(programs) == []
    assert not BuiltSnapshots().directory.exists()


def test_a_dockerfile_of_the_project_comes_first(
    command: Command, programs: Path, project: Path
) -> None:
    (project / "ci").mkdir()
    (project / "ci" / "Dockerfile").write_text("FROM scratch\n")
    assert command("build", "--dockerfile", "ci/Dockerfile").returncode == 0
    base, image, _forkd, removed, _tidy = calls(programs)
    assert base[:4] == ["build", "--force-rm", "-t", f"{image[3]}-base"]
    assert base[4:] == ["-f", f"{project}/ci/Dockerfile", f"{project}/ci"]
    assert removed[3:] == [image[3], f"{image[3]}-base"]
    with tarfile.open(programs / "context.tar") as archive:
        file = archive.extractfile("Dockerfile")
        assert file is not None
        assert f"FROM {image[3]}-base\n" in file.read().decode()
    before = choose_tag(str(project)).tag
    (project / "ci" / "Dockerfile").write_text("FROM scratch\nRUN x\n")
    assert choose_tag(str(project)).tag != before


def test_builds_that_are_started_together_make_one_snapshot(
    project: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_TAKES", "0.5")
    full = [sys.executable, "-m", "pytest_forkd.commands.main", *complete(("build",))]

    def build(_number: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(full, capture_output=True, text=True, cwd=project, timeout=60)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(build, range(3)))
    assert [each.returncode for each in results] == [0, 0, 0]
    assert len([each for each in calls(programs) if each[0] == "forkd"]) == 1
    assert sorted(each.stdout.split()[-1] for each in results) == ["already", "already", "made"]


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            "DOCKER_FAILS",
            "docker build has failed with exit code 3; its messages are above",
        ),
        ("FORKD_FAILS", "forkd from-image has failed with exit code 1; its messages are above"),
    ],
)
def test_a_build_that_fails_leaves_nothing(
    command: Command,
    programs: Path,
    daemon: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, "3")
    result = command("build")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [each[1] for each in calls(programs)[-2:]] == ["rm", "prune"]
    assert BuiltSnapshots().all() == []
    assert daemon.get("/v1/snapshots") == []


def test_a_guest_of_the_new_snapshot_is_looked_into(
    command: Command, programs: Path, daemon: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORKD_READY", "1")
    result = command("build")
    assert result.returncode == 0, result.stdout
    assert "ok   parent: ready in the snapshot" in result.stdout
    assert daemon.get("/v1/sandboxes") == []
    monkeypatch.setenv("FORKD_READY", "")
    unready = command("build", "--tag", "unready")
    assert unready.returncode == 1
    assert "FAIL parent: it was not ready when the snapshot was taken" in unready.stdout
    assert "build it with a longer --boot-wait-secs" in unready.stdout


def test_a_snapshot_that_the_daemon_does_not_find(command: Command, programs: Path) -> None:
    result = command("build", "--data-home", "/elsewhere")
    assert result.returncode == 1
    assert "does not list it." in result.stderr
    assert "Give --data-home DIR, so that DIR/forkd/snapshots is where" in result.stderr
    printed = command("build", "--data-home", "/var/lib", "--sudo", "--print").stdout
    assert "\nsudo -E env XDG_DATA_HOME=/var/lib forkd from-image pytest-forkd:" in printed


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_interrupted_leaves_nothing(
    project: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    monkeypatch.setenv("DOCKER_TAKES", "60")
    full = [sys.executable, "-m", "pytest_forkd.commands.main", *complete(("build",))]
    with subprocess.Popen(
        full, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=project
    ) as process:
        deadline = time.monotonic() + 20
        while not (programs / "calls").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signum)
        _out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert err.endswith("pytest-forkd: interrupted\n")
    assert "Traceback" not in err
    assert [each[1] for each in calls(programs)] == ["--force-rm", "rm", "prune"]
    assert BuiltSnapshots().all() == []
    assert run_processes(str(project)) == []


def test_an_interruption_that_an_archive_hides(
    command: Command, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-written, it cannot be closed and says so: that was shown, with exit code 1."""

    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError("Can't close the ZIP file while there is an open writing handle on it")

    monkeypatch.setattr("pytest_forkd.forkd.building.make_wheel", interrupted)
    result = command("build")
    assert result.returncode == 130
    assert result.stderr.endswith("pytest-forkd: interrupted\n")
    assert [each[1] for each in calls(programs)][-2:] == ["rm", "prune"]


@pytest.mark.parametrize("name", ["docker", "forkd"])
def test_programs_that_are_missing(
    command: Command, programs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs / name).unlink()
    (programs / "git").symlink_to("/usr/bin/git")
    monkeypatch.setenv("PATH", str(programs))
    result = command("build")
    assert result.returncode == 1
    assert f"{name} is not on PATH. A snapshot is made on the daemon's host" in result.stderr
    assert calls(programs) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tag", "a b"], "'a b' is no tag: letters, digits"),
        (["--preload", "a-b"], "--preload: 'a-b' is no name of a module."),
        (["--extra", "a]"], "'a]' is no name of an extra"),
        (["--requirements", "missing.txt"], "there is no file "),
        (["--dockerfile", "missing"], "there is no file "),
        (["--extra", "test"], "has no pyproject.toml or setup.py"),
        (["--project", "/missing"], "/missing is no directory"),
        (["--url", "http://127.0.0.1:1", "--url", "http://127.0.0.1:2"], "run this on each host"),
    ],
)
def test_wishes_that_make_no_sense(
    command: Command, programs: Path, args: list[str], message: str
) -> None:
    result = command("build", *args)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert calls(programs) == []


def test_a_snapshot_that_is_there_and_of_no_use(
    command: Command, programs: Path, daemon: StandIn
) -> None:
    tag = command("build").stdout.split()[1]
    daemon.damage(tag, "missing vmstate")
    result = command("build")
    assert result.returncode == 1
    assert "missing vmstate); --force makes it anew" in result.stderr


def test_without_a_daemon_the_snapshot_is_made_all_the_same(
    command: Command, programs: Path
) -> None:
    result = command("build", "--url", "http://127.0.0.1:9")
    assert result.returncode == 0
    assert "no forkd daemon at http://127.0.0.1:9" in result.stderr
    assert result.stdout.endswith("is made; start the daemon to use it\n")


# -- what the project says ---------------------------------------------------------------------


def test_pyproject_says_what_goes_in(command: Command, programs: Path, project: Path) -> None:
    (project / "pyproject.toml").write_text(
        "[project]\nname = 'x'\nversion = '1'\n"
        "[tool.pytest-forkd.snapshot]\nimage = 'debian:12'\npreload = ['json']\nextras = ['test']\n"
        "groups = ['ci']\n"
    )
    wishes = Wishes.read(str(project), {})
    assert (wishes.image, wishes.preload) == ("debian:12", ("json",))
    assert Wishes.read(str(project), {"preload": ["csv"]}).preload == ("csv",)
    assert Wishes.read(str(project), {"dockerfile": "test_it.py"}).image == ""
    script = command("build", "--print").stdout
    assert f"pip install -e '{project}[test]'" in script
    assert f"pip install --group '{project}/pyproject.toml:ci'" in script
    # Whoever has not made it finds its tag by the checkout alone.
    assert choose_tag(str(project)).tag == default_tag(plan_for(str(project), {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.pytest-forkd]\nsnapshot = 1", "is no table"),
        ("[tool.pytest-forkd.snapshot]\nbase = 'x'", "has no key 'base'; it has dockerfile, "),
        ("[tool.pytest-forkd.snapshot]\npreload = 1", "preload in .* is to be a list of texts"),
        ("[tool.pytest-forkd.snapshot]\nimage = 'a b'", "makes no sense"),
        ("[tool", "cannot be read"),
    ],
)
def test_tables_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ForkdError, match=message):
        Wishes.read(str(tmp_path), {})


def test_this_package_as_a_wheel(tmp_path: Path) -> None:
    name, content = make_wheel()
    assert make_wheel() == (name, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path)
        names = set(archive.namelist())
    [info] = tmp_path.glob("*.dist-info")
    assert {entry.name for entry in Distribution.at(info).entry_points} == {"forkd", "pytest-forkd"}
    assert "pytest-xdist>=3.6" in (Distribution.at(info).requires or [])
    rows = list(csv.reader(io.StringIO((info / "RECORD").read_text())))
    assert {row[0] for row in rows} == names
    for path, digest, size in rows[:-1]:
        data = (tmp_path / path).read_bytes()
        assert str(len(data)) == size
        hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        assert digest == f"sha256={hashed}"
    code = "import pytest_forkd.parent.server; print(pytest_forkd.__file__)"
    # Before what is installed, as a path in PYTHONPATH is.
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(str(tmp_path))


# -- list, info, rm, prune ---------------------------------------------------------------------


def test_list_and_info(command: Command, daemon: StandIn, project: Path, programs: Path) -> None:
    assert command("list").stdout == "there is no snapshot\n"
    tag = command("build").stdout.split()[1]
    daemon.boot("foreign")
    [sandbox] = daemon.post("/v1/sandboxes", {"snapshot_tag": "foreign"})
    daemon.post(f"/v1/sandboxes/{sandbox['id']}/branch", {"tag": "twig", "parent_tag": "foreign"})
    daemon.damage("foreign", "missing memory")
    head, *rows = command("list").stdout.splitlines()
    assert head.split() == ["TAG", "AGE", "STATE", "PROJECT", "DAEMON"]
    found = {row.split()[0]: row for row in rows}
    assert str(project) in found[tag]
    assert "not bootable" in found["foreign"]
    assert "ready, branch" in found["twig"]
    info = command("info", "foreign").stdout
    assert "missing memory" in info
    assert "needed by   twig" in info
    (project / "uv.lock").write_text("changed")
    assert "stale       yes: the project has changed" in command("info", tag).stdout
    missing = command("info", "missing")
    assert missing.returncode == 1
    assert f"has no snapshot 'missing'; it has foreign, {tag}, twig." in missing.stderr


def test_rm(command: Command, daemon: StandIn, programs: Path, tmp_path: Path) -> None:
    tag = command("build").stdout.split()[1]
    [made] = BuiltSnapshots().all()
    cache = tmp_path / "cache"
    cache.mkdir()
    # As forkd names them: what is no letter or digit is a dash.
    kept = cache / (made.image.replace(":", "-") + ".ext4")
    kept.write_text("a file system")
    daemon.boot("foreign")
    [sandbox] = daemon.post("/v1/sandboxes", {"snapshot_tag": "foreign"})
    daemon.post(f"/v1/sandboxes/{sandbox['id']}/branch", {"tag": "twig", "parent_tag": "foreign"})
    refused = command("rm", "foreign")
    assert refused.returncode == 1
    assert "is the parent of 1 chained snapshot(s): [twig]" in refused.stderr
    result = command("rm", "--cascade", tag, "foreign")
    assert result.returncode == 0
    assert daemon.get("/v1/snapshots") == []
    assert BuiltSnapshots().all() == []
    assert not kept.exists()
    again = command("rm", tag)
    assert (again.returncode, again.stderr) == (1, f"pytest-forkd: there is no snapshot {tag}\n")


def test_prune_deletes_what_is_old_and_not_needed(
    command: Command, daemon: StandIn, programs: Path, project: Path
) -> None:
    tags = []
    for number in range(3):
        (project / "uv.lock").write_text(str(number))
        tags.append(command("build").stdout.split()[1])
    daemon.boot("foreign")
    [sandbox] = daemon.post("/v1/sandboxes", {"snapshot_tag": tags[1]})
    listed = daemon.get("/v1/snapshots")
    for each in listed:
        each["created_at_unix"] = int(time.time()) - 8 * 86400
    body = json.dumps(listed)
    daemon.faults({"method": "GET", "path": "/v1/snapshots$", "body": body, "times": -1})
    assert "no snapshot" in command("prune", "--older-than", "9d").stdout
    printed = command("prune", "--older-than", "1w", "--print").stdout
    assert f"{tags[0]} at {daemon.url} would be deleted" in printed
    result = command("prune", "--older-than", "1w")
    assert f"{tags[0]} at {daemon.url} is deleted" in result.stdout
    assert f"{tags[1]} at {daemon.url} is in use; kept" in result.stdout
    assert f"{tags[2]} at {daemon.url} is its project's latest; kept" in result.stdout
    daemon.faults()
    left = {each["tag"] for each in daemon.get("/v1/snapshots")}
    assert left == {tags[1], tags[2], "foreign"}
    assert command("prune", "--older-than", "soon").returncode == 2
    assert sandbox["id"]
