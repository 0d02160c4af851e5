"""The directories in which libvirt's QEMU driver keeps what the XML of a domain need not name.

virQEMUDriverConfigNew in libvirt's qemu_conf.c: the driver of the system, of a user, or of a directory (embed).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from vbackup.domain.host import Host

SYSTEM, SESSION = "qemu:///system", "qemu:///session"


@dataclass(frozen=True)
class Directories:
    """Where a driver keeps what belongs to its domains."""

    nvram: Path  #: variables of UEFI firmware: NAME_VARS.fd
    swtpm: Path  #: states of emulated TPMs: UUID/tpm2


def directories_of(host: Host) -> Directories | None:
    """Return the directories of the driver of a host, on that host.

    None for a driver that is not known, and for that of a user on another host, whose home is not known.
    """
    if host.is_local:
        return directories(host.real_uri)
    is_system = urlsplit(host.real_uri).path == "/system"
    return directories(SYSTEM) if is_system else None


def directories(uri: str | None) -> Directories | None:
    """Return the directories of the driver that the URI names, on this host; None for any other driver.

    Without a URI it is the driver of the system for root, and that of the user for anybody else.
    """
    parts = urlsplit(uri if uri is not None else SYSTEM if os.geteuid() == 0 else SESSION)
    if parts.scheme.partition("+")[0] != "qemu" or parts.hostname:
        return None
    if parts.path == "/embed":
        root = parse_qs(parts.query).get("root", [""])[0]
        return Directories(Path(root, "lib/qemu/nvram"), Path(root, "lib/swtpm")) if root else None
    if parts.path == "/system":
        return Directories(Path("/var/lib/libvirt/qemu/nvram"), Path("/var/lib/libvirt/swtpm"))
    if parts.path == "/session":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "libvirt/qemu"
        return Directories(config / "nvram", config / "swtpm")
    return None
