"""A guest's tree becomes the working tree, whatever both were, and nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_forkd.sync import apply, scan, tree
from pytest_forkd.sync.difference import Difference, difference, manifest_from_json
from pytest_forkd.sync.pack import pack
from pytest_forkd.sync.scan import Rules
from pytest_forkd.sync.tree import TreeEntry, content_hash, manifest
from tests.unit import property_based

Git = Callable[..., str]

#: Few, so that the two trees have the same paths with different things at them.
NAMES = [
    b"a",
    b"b.py",
    b"-rf",
    b":(top)x",
    b"two words",
    b"new\nline",
    b"*",
    b"\xff\xfe",
    b"\xc3\xbc",
]

files = st.tuples(st.just("file"), st.binary(max_size=40), st.sampled_from([0o644, 0o755, 0o600]))
links = st.tuples(
    st.just("link"),
    st.sampled_from([b"a", b"..", b"/", b"/no/such", b"../..", b"\xff"]),
    st.just(0),
)
trees = st.recursive(
    files | links,
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, dict))


def plant(folder: bytes, tree: dict[bytes, Any]) -> None:
    os.makedirs(folder, exist_ok=True)
    for name, what in tree.items():
        path = os.path.join(folder, name)
        if isinstance(what, dict):
            plant(path, what)
        elif what[0] == "link":
            os.symlink(what[1], path)
        else:
            with open(path, "wb") as file:
                file.write(what[1])
            os.chmod(path, what[2])


def harvest(folder: bytes) -> dict[bytes, tuple[str, bytes, int]]:
    """All that is in a folder, read by other means than the code under test."""
    found = {}
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != b".git"]
        for name in [*names, *folders]:
            path = os.path.join(base, name)
            if os.path.islink(path):
                found[os.path.relpath(path, folder)] = ("link", os.readlink(path), 0)
            elif os.path.isfile(path):
                content = Path(os.fsdecode(path)).read_bytes()
                mode = os.stat(path).st_mode & 0o7777
                found[os.path.relpath(path, folder)] = ("file", content, mode)
    return found


def no_empty_folders(folder: bytes) -> bool:
    return all(names or folders for base, folders, names in os.walk(folder) if base != folder)


def sync(
    host: str | Path, guest: str | Path, rules: Rules | None = None, piece: int = 1 << 20
) -> Difference:
    """All of it, with the guest's manifest as it arrives, and the bytes cut in pieces."""
    tree = scan.scan(str(host), rules)
    exclude, prune = tree.guest_arguments()
    sent = json.loads(json.dumps(manifest(str(guest), exclude, prune)))
    what = difference(tree, manifest_from_json(sent))
    data = b"".join(pack(what))
    applied = apply.apply(str(guest), (data[at : at + piece] for at in range(0, len(data), piece)))
    assert applied.written == len(what.write)
    assert applied.deleted == len(what.delete)
    return what


@contextmanager
def folders() -> Iterator[tuple[str, str, str]]:
    """The host's tree, the guest's, and what is beside it and must not change."""
    with tempfile.TemporaryDirectory(prefix="forkd-sync-") as base:
        os.mkdir(f"{base}/guests")
        Path(base, "guests", "beside").write_text("beside")
        yield f"{base}/host", f"{base}/guests/guest", f"{base}/guests/beside"


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Run git in a folder, without the user's settings."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    who = [
        "-c",
        "user.name=x",
        "-c",
        "user.email=x@example.org",
        "-c",
        "protocol.file.allow=always",
    ]

    def git(folder: Path, *args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *who, *args], check=True, capture_output=True, text=True
        )
        return done.stdout

    return git


def write(root: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_py", ".py").replace("_so", ".so")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# any tree becomes any other -----------------------------------------------------------------------


@property_based
@given(host=trees, guest=trees, piece=st.sampled_from([1, 7, 1 << 20]))
@example(  # each kind becomes each other kind
    host={
        b"a": {b"b.py": ("file", b"1", 0o644)},
        b"*": ("link", b"/", 0),
        b"-rf": ("file", b"", 0o755),
        b"\xff\xfe": {b"a": {b"a": ("link", b"a", 0)}},
        b"b.py": ("link", b"a", 0),
        b"two words": ("file", b"2", 0o600),
    },
    guest={
        b"a": ("link", b"/no/such", 0),
        b"*": {b"a": ("file", b"1", 0o644), b"b.py": {b"a": ("file", b"1", 0o644)}},
        b"-rf": {b"a": {b"a": ("file", b"3", 0o644)}},
        b"\xff\xfe": ("file", b"", 0o644),
        b"b.py": ("file", b"4", 0o644),
        b"two words": ("link", b"..", 0),
    },
    piece=7,
)
def test_any_tree_becomes_any_other(
    host: dict[bytes, Any], guest: dict[bytes, Any], piece: int
) -> None:
    with folders() as (here, there, beside):
        plant(os.fsencode(here), host)
        plant(os.fsencode(there), guest)
        had_empty_folders = not no_empty_folders(os.fsencode(there))
        sync(here, there, piece=piece)
        assert harvest(os.fsencode(there)) == harvest(os.fsencode(here))
        assert no_empty_folders(os.fsencode(there)) or had_empty_folders
        assert Path(beside).read_text() == "beside"
        assert not sync(here, there), "a second time, nothing differs"


@settings(property_based, max_examples=25)
@given(host=trees, guest=trees, tracked=st.booleans())
def test_so_it_does_where_git_says_what_belongs_to_it(
    host: dict[bytes, Any], guest: dict[bytes, Any], tracked: bool
) -> None:
    with folders() as (here, there, beside):
        plant(os.fsencode(here), host)
        plant(os.fsencode(there), guest)
        subprocess.run(["git", "init", "-q", here], check=True)
        if tracked:
            subprocess.run(["git", "-C", here, "add", "-A"], check=True)
        assert scan.scan(here).by_git
        sync(here, there)
        assert harvest(os.fsencode(there)) == harvest(os.fsencode(here))
        assert Path(beside).read_text() == "beside"


# what belongs to the tree -------------------------------------------------------------------------


def test_git_says_what_is_sent_and_what_is_deleted(git: Git, tmp_path: Path) -> None:
    host, guest = tmp_path / "host", tmp_path / "guest"
    write(host, src__kept_py="1", src__gone_py="1", src__edited_py="1", old_py="same")
    (host / ".gitignore").write_text("*.so\n/build/\n")
    git(tmp_path, "init", "-q", "host")
    git(host, "add", ".")
    sync(host, guest)
    # The guest has built something; here there are other ignored files, edits, a rename.
    write(guest, src__fast_so="guest", build__x="guest", untracked="left from another run")
    write(host, src__fast_so="host", src__edited_py="2", src__new_py="new")
    (host / "src" / "gone.py").unlink()
    (host / "old.py").rename(host / "renamed.py")
    what = sync(host, guest)
    assert what.write == ["renamed.py", "src/edited.py", "src/new.py"]
    assert what.delete == ["old.py", "src/gone.py", "untracked"]
    assert (guest / "src" / "fast.so").read_text() == "guest"
    assert (guest / "build" / "x").read_text() == "guest"
    assert not (guest / ".git").exists()


def test_git_is_asked_about_odd_names(git: Git, tmp_path: Path) -> None:
    host, guest = tmp_path / "host", tmp_path / "guest"
    write(host, a_py="1")
    (host / ".gitignore").write_text("*.so\n")
    git(tmp_path, "init", "-q", "host")
    names = {b":(exclude)a", b"*", b"!a", b"\xff", b"-v", b"two\nlines", b"[a]", b"\\", b'"'}
    plant(
        bytes(guest), {name + end: ("file", b"", 0o644) for name in names for end in (b"", b".so")}
    )
    sync(host, guest)
    assert set(harvest(bytes(guest))) == {b"a.py", b".gitignore"} | {n + b".so" for n in names}


def test_a_tracked_folder_may_have_become_a_link(git: Git, tmp_path: Path) -> None:
    host, guest = tmp_path / "host", tmp_path / "guest"
    write(host, data__x="1", other__x="2")
    git(tmp_path, "init", "-q", "host")
    git(host, "add", ".")
    sync(host, guest)
    (host / "data" / "x").unlink()
    (host / "data").rmdir()
    (host / "data").symlink_to("other")
    sync(host, guest)
    assert os.readlink(guest / "data") == "other"
    assert harvest(bytes(guest)) == harvest(bytes(host))


def test_submodules_and_repositories_inside_are_sent(git: Git, tmp_path: Path) -> None:
    library, host, guest = tmp_path / "library", tmp_path / "host", tmp_path / "guest"
    write(library, lib_py="1")
    (library / ".gitignore").write_text("*.so\n")
    write(host, top_py="1", nested__inner_py="1")
    for folder in (library, host, host / "nested"):
        git(tmp_path, "init", "-q", str(folder))
    git(library, "add", ".")
    git(library, "commit", "-qm", "x")
    git(host, "submodule", "add", "-q", str(library), "sub")
    git(host, "submodule", "add", "-q", str(library), "absent")
    git(host, "submodule", "deinit", "-f", "absent")
    write(host, sub__new_py="1", sub__built_so="host")
    write(guest, sub__built_so="guest", sub__stray_py="", absent__stray_py="", nested__stray_py="")
    what = sync(host, guest)
    assert set(what.write) >= {"top.py", "sub/lib.py", "sub/new.py", "nested/inner.py"}
    assert what.delete == ["absent/stray.py", "nested/stray.py", "sub/stray.py"]
    assert (guest / "sub" / "built.so").read_text() == "guest"
    assert not sync(host, guest)


def test_in_a_git_hook_the_tree_is_still_its_own(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, other = tmp_path / "host", tmp_path / "other"
    write(host, here_py="1", ignored__x="1")
    (host / ".gitignore").write_text("ignored\n")
    git(tmp_path, "init", "-q", "host")
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert sorted(scan.scan(str(host)).manifest) == [".gitignore", "here.py"]


def test_a_repository_that_ignores_the_project_has_no_say(git: Git, tmp_path: Path) -> None:
    git(tmp_path.parent, "init", "-q", str(tmp_path))
    (tmp_path / ".gitignore").write_text("/home/\n")
    host = tmp_path / "home" / "project"
    write(host, a_py="1", node_modules__x="1", env__pyvenv="")
    (host / "env" / "pyvenv.cfg").write_text("")
    tree = scan.scan(str(host))
    assert not tree.by_git
    assert list(tree.manifest) == ["a.py"]
    assert scan.find_root(str(host)) == str(host)


def test_the_root_is_the_repository_by_the_path_that_is_used(git: Git, tmp_path: Path) -> None:
    host = tmp_path / "host"
    write(host, sub__a_py="1")
    git(tmp_path, "init", "-q", "host")
    (tmp_path / "alias").symlink_to("host")
    assert scan.find_root(str(tmp_path / "alias" / "sub")) == str(tmp_path / "alias")
    assert scan.find_root(str(tmp_path)) == str(tmp_path)


def test_excluded_files_are_neither_sent_nor_deleted(git: Git, tmp_path: Path) -> None:
    host, guest = tmp_path / "host", tmp_path / "guest"
    write(host, a_py="1", big__x="host", docs__deep__notes="host", docs__deep__keep="host")
    write(guest, big__x="guest", docs__deep__notes="guest", big__y="guest")
    git(tmp_path, "init", "-q", "host")
    what = sync(host, guest, Rules(exclude=("big", "docs/**/notes")))
    assert what.write == ["a.py", "docs/deep/keep"]
    assert not what.delete
    assert (guest / "big" / "x").read_text() == "guest"
    assert (guest / "docs" / "deep" / "notes").read_text() == "guest"


def test_included_files_are_sent_though_git_ignores_them(git: Git, tmp_path: Path) -> None:
    host, guest = tmp_path / "host", tmp_path / "guest"
    write(host, pkg__a_py="1", pkg__fast_so="1", cache__v__x="1", cache__w__x="1")
    write(guest, pkg__old_so="", cache__v__old="", cache__w__old="")
    (host / ".gitignore").write_text("*.so\ncache\n")
    git(tmp_path, "init", "-q", "host")
    what = sync(host, guest, Rules(include=("*.so", "cache/v")))
    assert what.write == [".gitignore", "cache/v/x", "pkg/a.py", "pkg/fast.so"]
    assert what.delete == ["cache/v/old", "pkg/old.so"]


def test_what_a_name_matches_in_an_environment_is_not_included(git: Git, tmp_path: Path) -> None:
    host = tmp_path / "host"
    write(host, pkg__fast_so="1", env__lib__x_so="", node_modules__y_so="")
    (host / "env" / "pyvenv.cfg").write_text("")
    (host / ".gitignore").write_text("*.so\nenv\nnode_modules\n")
    git(tmp_path, "init", "-q", "host")
    rules = Rules(include=("*.so",))
    assert sorted(scan.scan(str(host), rules).manifest) == [".gitignore", "pkg/fast.so"]
    named = Rules(include=("*.so", "node_modules/*.so"))
    assert sorted(scan.scan(str(host), named).manifest) == [
        ".gitignore",
        "node_modules/y.so",
        "pkg/fast.so",
    ]


def test_without_git_the_tree_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    host, guest = tmp_path / "host", tmp_path / "guest"
    write(host, a_py="1", node_modules__x="1")
    write(guest, node_modules__y="guest", stray="")
    what = sync(host, guest)
    assert (what.write, what.delete) == (["a.py"], ["stray"])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    if os.getuid() == 0:
        (tmp_path / "pipe").mkdir()
        os.mkfifo(tmp_path / "pipe" / "fifo")
        assert not scan.scan(str(tmp_path)).manifest  # not sent, and not waited for
        return
    write(tmp_path, secret="x")
    (tmp_path / "secret").chmod(0)
    tree = scan.scan(str(tmp_path))
    assert tree.unreadable == ["secret"]
    assert not tree.manifest


def test_files_that_have_not_changed_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, old="1", young="1")
    os.utime(tmp_path / "old", (1, 1))
    cache: scan.Cache = {}
    first = scan.scan(str(tmp_path), cache=cache)
    read: list[bytes] = []

    def entry_of(path: bytes) -> TreeEntry | None:
        read.append(path)
        return tree.entry_of(path)

    monkeypatch.setattr(scan, "entry_of", entry_of)
    again = scan.scan(str(tmp_path), cache=cache)
    assert again.manifest == first.manifest
    assert read == [bytes(tmp_path / "young")], "it may change again within its time stamp"
    write(tmp_path, old="2")
    assert scan.scan(str(tmp_path), cache=cache).manifest["old"] != first.manifest["old"]


# bytecode -----------------------------------------------------------------------------------------


def test_no_stale_bytecode_is_used(tmp_path: Path) -> None:
    host, guest = tmp_path / "host", tmp_path / "guest"

    def edit(answer: int) -> None:
        write(host, pkg__mod_py=f"ANSWER = {answer}\n")
        os.utime(host / "pkg" / "mod.py", (1_700_000_000, 1_700_000_000))

    def answer() -> str:
        code = "import mod; print(mod.ANSWER)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=guest / "pkg",
            capture_output=True,
            text=True,
            env={"PYTHONPATH": "."},
        )
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    edit(1)
    sync(host, guest)
    assert answer() == "1"
    assert list((guest / "pkg" / "__pycache__").iterdir()), "there is bytecode"
    edit(2)  # as large, modified in the same second
    sync(host, guest)
    assert answer() == "2"
    (host / "pkg" / "mod.py").unlink()
    sync(host, guest)
    assert "No module named 'mod'" in answer() if (guest / "pkg").exists() else True
    assert not (guest / "pkg").exists(), "no folder is left that could be imported"


# hostile differences ------------------------------------------------------------------------------

SECRET = "not to be touched"


@pytest.fixture
def jail(tmp_path: Path) -> tuple[Path, Path]:
    """A guest's root, and a folder outside that it has links to."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file").write_text(SECRET)
    (root / "out").symlink_to(outside)
    (root / "file").symlink_to(outside / "file")
    os.link(outside / "file", root / "hard")
    (root / "pkg").mkdir()
    (root / "pkg" / "__pycache__").symlink_to(outside)
    (outside / "mod.cpython-311.pyc").write_text(SECRET)
    return root, outside


def record(what: bytes, path: bytes, content: bytes | None = None, length: int = -1) -> bytes:
    head = apply.RECORD.pack(what, 0o777, 0, len(path) if length < 0 else length) + path
    if content is None:
        return head
    chunk = apply.CHUNK.pack(len(content)) + content if content else b""
    return head + chunk + apply.CHUNK.pack(0) + content_hash(content).digest()


def stream(*records: bytes, end: bool = True) -> bytes:
    import zlib

    last = record(apply.END, b"") if end else b""
    return apply.MAGIC + zlib.compress(b"".join(records) + last)


def file(path: bytes, content: bytes = b"evil") -> bytes:
    return record(apply.FILE, path, content)


@pytest.mark.parametrize(
    "path",
    [
        b"/etc/evil",
        b"../evil",
        b"a/../../evil",
        b"..",
        b".",
        b"./evil",
        b"a//evil",
        b"a/",
        b"/",
        b"a\0b",
        b"x" * 256,
        b"x/" * 2048 + b"x",
        b"x/" * 300 + b"x",
        b"out/evil",
        b"out/file",
        b"pkg/__pycache__/evil",
    ],
    ids=lambda path: repr(path[:20]),
)
@pytest.mark.parametrize("what", [apply.FILE, apply.LINK, apply.DELETE])
def test_nothing_outside_is_written(jail: tuple[Path, Path], path: bytes, what: bytes) -> None:
    root, outside = jail
    before = harvest(bytes(outside)), sorted(os.listdir(root.parent))
    sent = record(what, path, None if what == apply.DELETE else b"evil")
    if what == apply.DELETE and path.startswith((b"out/", b"pkg/")):
        # What is behind a link is not there, as far as the tree goes.
        assert apply.apply(str(root), [stream(sent)]).deleted == 0
    else:
        with pytest.raises(apply.ApplyError):
            apply.apply(str(root), [stream(sent)])
    assert (harvest(bytes(outside)), sorted(os.listdir(root.parent))) == before
    assert not [name for name in os.listdir(root) if name.startswith(".pytest-forkd")]


def test_what_points_outside_is_replaced_and_not_written_to(jail: tuple[Path, Path]) -> None:
    root, outside = jail
    before = harvest(bytes(outside))
    sent = stream(file(b"file"), file(b"hard"), file(b"out"), file(b"pkg/mod.py"))
    apply.apply(str(root), [sent])
    assert harvest(bytes(outside)) == before
    for name in ("file", "hard", "out"):
        assert (root / name).read_text() == "evil"
        assert not (root / name).is_symlink()
    assert os.stat(outside / "file").st_nlink == 1


def test_a_folder_that_is_replaced_is_emptied_without_following_links(
    jail: tuple[Path, Path],
) -> None:
    root, outside = jail
    before = harvest(bytes(outside))
    apply.apply(str(root), [stream(file(b"pkg"))])
    assert (root / "pkg").read_text() == "evil"
    assert harvest(bytes(outside)) == before


def test_a_link_made_by_the_same_difference_leads_nowhere(jail: tuple[Path, Path]) -> None:
    root, outside = jail
    before = harvest(bytes(outside))
    sent = stream(record(apply.LINK, b"new", bytes(outside)), file(b"new/evil"))
    with pytest.raises(apply.ApplyError, match=r"new/evil cannot be changed: .* a link"):
        apply.apply(str(root), [sent])
    assert harvest(bytes(outside)) == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too early"),
        (b"GET / HTTP/1.1\r\n\r\n", "no difference that this version understands"),
        (apply.MAGIC + b"no zlib stream", "damaged"),
        (stream(file(b"a"), end=False), "ends too early"),
        (stream(file(b"a")) + b"more", "follows the end"),
        (stream(file(b"a"), record(apply.END, b"") + b"more", end=False), "follows the end"),
        (stream(file(b"a"), record(apply.DELETE, b"b")), "out of order"),
        (stream(record(b"H", b"a", b"/etc/passwd")), "unknown"),
        (stream(file(b"a")[:-1] + b"\0"), "damaged on its way"),
        (stream(record(apply.FILE, b"a") + apply.CHUNK.pack(2**31)), "chunk of 2147483648 bytes"),
        (stream(file(b"a", b"x" * 900_000), file(b"b", b"x" * 900_000)), "more than 1 MiB"),
        (stream(record(apply.LINK, b"a", b"x" * 5000)), "more than 4095 bytes"),
        (stream(record(apply.LINK, b"a", b"")), "link to nothing"),
        (stream(record(apply.FILE, b"", b"")), "path of 0 bytes"),
    ],
)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_a_bad_difference_is_refused_with_the_reason(
    tmp_path: Path, data: bytes, message: str, piece: int
) -> None:
    if piece == 1 and len(data) > 10_000:
        piece = 1000
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    with pytest.raises(apply.ApplyError, match=message):
        apply.apply(str(tmp_path / "root"), pieces, max_bytes=1 << 20)
    assert not [n for n in os.listdir(tmp_path / "root") if n.startswith(".pytest-forkd")]


def test_after_an_error_nothing_more_is_taken(tmp_path: Path) -> None:
    applier = apply.Applier(str(tmp_path))
    bad = stream(file(b"../a"), file(b"b"))
    with pytest.raises(apply.ApplyError, match="refused"):
        applier.feed(bad)
    with pytest.raises(apply.ApplyError):
        applier.feed(stream(file(b"b"))[len(apply.MAGIC) :])
    with pytest.raises(apply.ApplyError):
        applier.finish()
    applier.close()
    applier.close()
    assert not os.listdir(tmp_path)


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(apply.ApplyError):
        apply.apply(str(tmp_path), [stream(file(b"a", b"new")[:-1], end=False)])
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "data",
    [
        [],
        {"a": 1},
        {"a": ["file", 0o644, 1]},
        {"a": ["folder", 0, 0, ""]},
        {"a": ["file", True, 0, ""]},
        {"a": ["file", 0, "1", ""]},
        {"a": [[], 0, 0, ""]},
        {"/a": ["file", 0, 0, ""]},
        {"a/../b": ["file", 0, 0, ""]},
        {"\ud800": ["file", 0, 0, ""]},
        {"": ["file", 0, 0, ""]},
    ],
)
def test_a_guest_cannot_send_anything_for_a_manifest(data: Any) -> None:
    with pytest.raises(scan.SyncError, match="guest's manifest"):
        manifest_from_json(data)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_that_goes_while_it_is_sent_is_named(tmp_path: Path, kind: str) -> None:
    """If the guest has it, and would keep it; a new one, such as an editor's, is left out."""
    write(tmp_path, a="1", b="2")
    if kind == "link":
        (tmp_path / "a").unlink()
        (tmp_path / "a").symlink_to("b")
    working = scan.scan(str(tmp_path))
    (tmp_path / "a").unlink()
    with pytest.raises(scan.SyncError, match="a changed while the working tree was being sent"):
        list(pack(difference(working, {"a": TreeEntry("file", 0o644, 7, "other")})))
    with tempfile.TemporaryDirectory() as guest:
        applied = apply.apply(guest, pack(difference(working, {})))
        assert applied.written == 1
        assert os.listdir(guest) == ["b"]


def test_a_large_tree_is_scanned_fast(tmp_path: Path) -> None:
    """5,000 files take 0.2 s on a quiet machine; ten times more would be a mistake in the code."""
    for folder in range(200):
        (tmp_path / f"{folder}").mkdir()
        for name in range(25):
            (tmp_path / f"{folder}" / f"m{name}.py").write_bytes(b"x = 1\n" * 100)
    begin = time.process_time()
    tree = scan.scan(str(tmp_path))
    assert len(tree.manifest) == 5_000
    assert time.process_time() - begin < 2.5
