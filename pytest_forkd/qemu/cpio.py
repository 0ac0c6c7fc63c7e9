"""Archives that the kernel unpacks as its first file system (cpio, the format "newc").

Linux: Documentation/driver-api/early-userspace/buffer-format.rst. Archives may follow each other.
"""

from __future__ import annotations

import stat

__all__ = ["archive"]


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive; everything in it is owned by root.

    :param files: mode (including file type) and content by path; folders before their contents.
    """
    out = bytearray()
    for number, (path, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))]):
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number + 1, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4)
        out += content
        out += bytes(-len(out) % 4)
    return bytes(out)
