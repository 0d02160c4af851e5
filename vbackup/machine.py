"""The host that vbackup runs on, as backups and journals record it."""

from __future__ import annotations

import os
from pathlib import Path

from vbackup.model import HostIdentity

#: machine-id(5): 32 hexadecimal digits, made when the system was installed. The second one is D-Bus's.
MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def this_host() -> HostIdentity:
    """Return the name of this host, and its machine id if it has one."""
    return HostIdentity(os.uname().nodename, _machine_id())


def _machine_id() -> str | None:
    for path in MACHINE_IDS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text and text != "uninitialized":
            return text
    return None
