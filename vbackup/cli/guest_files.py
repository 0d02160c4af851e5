"""Show files of a guest as 'ls -l' does, whatever their names are."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from vbackup.api import Entry, documents
from vbackup.cli import output


def size(entry: Entry, *, in_bytes: bool) -> str:
    """Return the size for people, or the numbers of a device."""
    if stat.S_ISBLK(entry.mode) or stat.S_ISCHR(entry.mode):
        return f"{os.major(entry.rdev)}, {os.minor(entry.rdev)}"
    return str(entry.size_bytes) if in_bytes else output.size(entry.size_bytes)


def mode(entry: Entry) -> str:
    """Return kind and mode, such as "-rw-r--r--"."""
    return stat.filemode(entry.mode)


def document(entry: Entry) -> Mapping[str, Any]:
    """Return the entry for a JSON document."""
    return {
        "path": entry.path,
        "mode": mode(entry),
        "uid": entry.uid,
        "gid": entry.gid,
        "size_bytes": entry.size_bytes,
        "mtime": documents.time(entry.mtime),
        "target": entry.target,
    }
