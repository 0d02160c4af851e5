"""Messages for systemd's journal, where standard error leads there: with their priority, and fields to find them by.

    journalctl VBACKUP_DOMAIN=web                what concerns a domain
    journalctl VBACKUP_JOB=nightly -p warning    warnings and errors of a job
    journalctl VBACKUP_BACKUP=20261130T010000Z-full

They go to the journal's own socket (https://systemd.io/JOURNAL_NATIVE_PROTOCOL). If that is not there they go to
standard error with their priority in front (sd-daemon(3)), and the fields are missing.
"""

from __future__ import annotations

import os
import struct
import sys

ERROR, WARNING, INFO = 3, 4, 6
SOCKET = "/run/systemd/journal/socket"
#: What kind of message it is, for ever (MESSAGE_ID of systemd.journal-fields(7)).
FAILED, WARNED = "16f899c8a0a246d3a82ff143a7204515", "55b6e5541a9048eabbcc10872b067821"


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


def log(priority: int, message: str, **fields: str | None) -> bool:
    """Send a message; return False if standard error does not lead to the journal: then nothing was done.

    ``fields``: domain, job, backup, code, status; the backup is also found in the message.
    """
    if not is_there():
        return False
    kinds = {ERROR: {"MESSAGE_ID": FAILED}, WARNING: {"MESSAGE_ID": WARNED}}
    known = {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "vbackup", **kinds.get(priority, {})}
    known.update(_fields(message, fields))
    if not _sent(b"".join(_encoded(name, value) for name, value in known.items())):
        # In one write, so that lines of several threads stay whole.
        print(f"<{priority}>{' '.join(message.splitlines())}\n", end="", file=sys.stderr, flush=True)
    return True


def failed(text: str, **fields: str | None) -> None:
    """Send an error; where standard error does not lead to the journal, print it there. ``fields``: as for ``log``."""
    if not log(ERROR, text, **fields):
        print(f"vbackup: {text}", file=sys.stderr)


def job_in(message: str) -> str | None:
    """Return the job that a run names at the beginning of a message (vbackup.operations.run_job)."""
    import re  # which 'vbackup --help' does without

    match = re.match(r"Job ([A-Za-z0-9_.@+-]+): ", message)
    return match[1] if match is not None else None


def _fields(message: str, given: dict[str, str | None]) -> dict[str, str]:
    import re  # which 'vbackup --help' does without

    from vbackup import names

    found = {name: value for name, value in given.items() if value is not None}
    backup = re.search(rf"(?<![\w-]){names.BACKUP_ID.pattern}(?![\w-])", message)
    if backup is not None:
        found.setdefault("backup", backup[0])
    return {f"VBACKUP_{name.upper()}": value for name, value in found.items()}


def _encoded(name: str, value: str) -> bytes:
    """Return a field as the protocol has it: of several lines, with the length in front."""
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def _sent(data: bytes) -> bool:
    import socket  # which 'vbackup --help' does without

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.sendto(data, SOCKET)
    except OSError:
        return False
    return True
