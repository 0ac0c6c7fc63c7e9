"""Makes a wheel of this package from its installed files, so that guests get the same code.

Source: the binary distribution format of packaging.python.org.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest_forkd

__all__ = ["make_wheel", "wheel_name"]

#: A fixed date, so that equal content makes equal wheels.
_DATE = (2020, 1, 1, 0, 0, 0)


def make_wheel() -> tuple[str, bytes]:
    """The wheel's file name and content."""
    found = distribution("pytest-forkd")
    base = f"pytest_forkd-{found.version}"
    info = f"{base}.dist-info"
    folder = Path(pytest_forkd.__file__).parent
    files = {
        f"pytest_forkd/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in ("METADATA", "entry_points.txt"):
        text = found.read_text(name)
        if text is not None:
            files[f"{info}/{name}"] = text.encode("utf-8")
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: pytest-forkd\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = f"{info}/RECORD"
    lines = [f"{name},sha256={_hash(data)},{len(data)}" for name, data in files.items()]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode("utf-8")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return wheel_name(), buffer.getvalue()


def wheel_name() -> str:
    """The wheel's file name."""
    return f"pytest_forkd-{distribution('pytest-forkd').version}-py3-none-any.whl"


def _hash(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
