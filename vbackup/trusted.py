"""Find who else could change what vbackup runs: a program, or a directory or link on the way to it.

Whoever may write to one of them commands what vbackup runs, which is usually root. So all of them belong to root or to
the caller, and nobody else may write there. In a directory with the sticky bit, such as /tmp, others cannot replace
what is not theirs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vbackup.files import user_name


@dataclass(frozen=True)
class Doubt:
    """What others could change. ``reason`` follows the path in a sentence."""

    path: Path
    reason: str


def doubt(path: Path, trusted: set[Path] | None = None) -> Doubt | None:
    """Return why others can change what is at an absolute path, or put something else there; None if they cannot.

    ``trusted``: directories that were looked at already; those on the way are added. Raises OSError.
    """
    trusted = set() if trusted is None else trusted
    *above, last = _on_the_way(path)
    for each in above:
        if each not in trusted:
            found = _doubt(each, may_be_sticky=True)
            if found is not None:
                return found
            trusted.add(each)
    return _doubt(last, may_be_sticky=False)


def _doubt(path: Path, *, may_be_sticky: bool) -> Doubt | None:
    status = path.lstat()
    if status.st_uid not in (0, os.geteuid()):
        return Doubt(path, f"belongs to {user_name(status.st_uid)}, and neither to root nor to the caller")
    if stat.S_ISLNK(status.st_mode) or (may_be_sticky and status.st_mode & stat.S_ISVTX):
        return None
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return Doubt(path, "can be written by others than its owner")
    return None


def _on_the_way(path: Path) -> Iterator[Path]:
    """Yield every directory and symbolic link on the way to what an absolute path leads to, and that itself last."""
    current, pending = Path("/"), [*reversed(path.parts[1:])]
    yield current
    while pending:
        part = pending.pop()
        if part == "..":
            current = current.parent
            continue
        one = current / part
        yield one
        if one.is_symlink():
            target = one.readlink()
            current = Path("/") if target.is_absolute() else current
            pending += [name for name in reversed(target.parts) if name != "/"]
        else:
            current = one
