"""Lines for systemd's journal: where standard error leads there, each begins with its priority (sd-daemon(3))."""

from __future__ import annotations

import os
import sys

ERROR, WARNING, INFO = 3, 4, 6


def is_there() -> bool:
    """Return True if standard error leads to the journal; JOURNAL_STREAM alone can be inherited (systemd.exec(5))."""
    device, colon, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not colon:
        return False
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (str(status.st_dev), str(status.st_ino)) == (device, inode)


def prefix(priority: int) -> str:
    """Return what a line of this priority begins with: "" if it does not go to the journal."""
    return f"<{priority}>" if is_there() else ""
