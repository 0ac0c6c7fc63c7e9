"""What guests of forkd write stays in their memory: tried in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: The agent's name has to be in the first process's command line: /proc is another one here.
SCRIPT = """
import os, shutil, sys
from pytest_forkd.guest import disk

root, fake_proc = sys.argv[1:]
assert disk.prepare_disk([root]) == [], "not in a guest"
disk.runs_in_forkd = lambda: True
disk._USUAL = (root + "/usual",)
mounted = []
real = disk.mount

def mount(source, target, kind, flags, data):
    # The file system of this machine is not to become read-only: the calls are noted.
    if target in ("/", "/tmp"):
        mounted.append((target, flags, data))
    else:
        real(source, target, kind, flags, data)

disk.mount = mount
project = root + "/project"
before = os.stat(project + "/file")
problems = disk.prepare_disk([project, root + "/new", project])
assert problems == [], problems
assert mounted == [("/tmp", 32, "size=50%"), ("/", 33, None)], mounted
assert open(project + "/file").read() == "from the disk"
assert os.stat(project + "/file").st_mtime_ns == before.st_mtime_ns
assert os.stat(project + "/file").st_dev != before.st_dev
assert os.readlink(project + "/link") == "file"
assert os.stat(project).st_mode & 0o777 == 0o750
open(project + "/file", "w").write("in memory")
open(root + "/usual/new", "w").close()
open(root + "/new/file", "w").close()
# A parent that starts anew finds everything done.
mounts = open("/proc/self/mounts").read()
assert disk.prepare_disk([project, root + "/new"]) == []
assert open("/proc/self/mounts").read() == mounts
assert open(project + "/file").read() == "in memory"
assert os.environ["HOME"] == "/root"
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs the right to make a mount namespace",
)
def test_directories_move_to_memory(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir(mode=0o750)
    (project / "file").write_text("from the disk")
    (project / "link").symlink_to("file")
    result = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", SCRIPT, str(tmp_path), ""],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": "/"},
    )
    assert result.returncode == 0, result.stderr
    assert (project / "file").read_text() == "from the disk"
    assert not (tmp_path / "usual" / "new").exists()
    assert not [*Path("/tmp").glob("pytest-forkd-????????/link")]


def test_what_cannot_be_moved_stays(tmp_path: Path) -> None:
    from pytest_forkd.guest.disk import move_to_memory

    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"exists|directory"):
        move_to_memory(str(tmp_path / "file"))
