"""The host that vbackup runs on, as a backup records it."""

from __future__ import annotations

import socket
from pathlib import Path

from vbackup.model import HostIdentity

#: machine-id(5): 32 hexadecimal digits, made when the system was installed.
MACHINE_ID = Path("/etc/machine-id")


def this_host() -> HostIdentity:
    """Return the name of this host, and its machine id if it has one."""
    try:
        machine_id = MACHINE_ID.read_text().strip()
    except (OSError, ValueError):
        machine_id = ""
    return HostIdentity(socket.gethostname(), machine_id or None)
